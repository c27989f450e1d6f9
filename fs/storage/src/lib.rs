//! The storage server: keeps chunk replicas on one disk, and decides nothing.
//!
//! From the bottom: [`disk`] is the seam to the disk, [`chunk_file`] one replica in one file (its on-disk format and
//! its crash argument are on the struct), [`store`] the folder of them. Above these nothing touches a disk:
//! [`service`] answers requests, `registration` speaks to the metadata service, `tasks` carries out what that
//! says, `scrub` looks for damage, [`server`] puts them together.

pub mod chunk_file;
mod copier;
pub mod disk;
pub mod metrics;
pub mod pool;
mod registration;
mod scrub;
pub mod server;
pub mod service;
pub mod store;
pub mod sync_group;
mod tasks;

pub use self::server::{StartError, StorageConfig, StorageHandle, StorageServer};
