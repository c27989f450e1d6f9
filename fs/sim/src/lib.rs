//! Simulated worlds: the real metadata servers, storage servers and clients in one thread, under virtual time, on disks and a
//! network that fail by the seed. What they do is checked against what was asked of them.
//!
//! | module | is |
//! | --- | --- |
//! | [`world`] | one seed: a cluster, its clients, what goes wrong, and what has to hold |
//! | [`nodes`] | the servers and clients, as a world starts and kills them |
//! | [`client`] | what a client does, and what it expects |
//! | [`faults`] | what goes wrong |
//! | [`kernel`] | the pages that a kernel would keep between an application and a mount |
//! | [`network`] | streams that take their time, stall, break and are cut |
//! | [`seam`] | time and chance, under everything that asks the C library for them |
//! | [`invariants`] | what is checked in the end |
//!
//! Nothing of the filesystem is implemented a second time here. The records are in an ordered map instead of RocksDB, the
//! Raft log and the chunks are on disks in memory that lose what was not synced.

pub mod client;
pub mod faults;
pub mod invariants;
pub mod kernel;
pub mod network;
pub mod nodes;
pub mod seam;
pub mod world;
