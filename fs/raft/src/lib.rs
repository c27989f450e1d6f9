//! Replication.
mod account;
mod clock;
mod disk;
mod error;
mod files;
mod log_store;
#[cfg(test)]
mod log_store_tests;
mod record;
mod segment;
#[cfg(test)]
mod sim_disk;
mod types;
mod vote;
mod writer;
pub use error::*;
pub use types::*;
