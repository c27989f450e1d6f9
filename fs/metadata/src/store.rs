//! Where the records are: a folder with an identity, a RocksDB in it, and a ballast file for the day the
//! disk is full.

pub mod ballast;
pub mod folder;
pub mod rocks;
