//! Where the records are: a folder with an identity, a RocksDB in it, and a ballast file for the day the
//! disk is full.

pub mod ballast;
pub mod folder;
#[cfg(feature = "simulation")]
pub mod memory;
pub mod records;
pub mod rocks;
