//! The metadata server: the volume's records in RocksDB, replicated by Raft, and everything that is asked of them.
//!
//! What an operation means is decided in `atoll_core`; here is what has a clock, a disk or a network. The parts
//! that decide something are pure and have no I/O: [`admission`], [`placement`], [`sessions`], [`servers`],
//! [`tasks`].

pub mod admission;
pub mod changes;
mod clock;
mod counts;
mod file_locks;
mod leader;
mod lock;
mod making;
pub mod membership;
pub mod metrics;
pub mod node;
mod peers;
pub mod placement;
pub mod proposer;
mod reads;
mod rejoin;
pub mod repair;
pub mod server;
pub mod servers;
pub mod service;
pub mod sessions;
pub mod state_machine;
pub mod store;
pub mod tasks;
#[cfg(test)]
mod test_server;
mod unsafe_recovery;
mod workers;

pub use server::{MetadataConfig, MetadataServer, RunningMetadata, StartError};
pub use unsafe_recovery::unsafe_recovery;
