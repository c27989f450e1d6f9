//! What the filesystem decides, and nothing else: ids, records, commands and the operations on the
//! namespace. No I/O, no clock and no randomness: they are arguments.

pub mod attributes;
pub mod commands;
pub mod error;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod records;
pub mod store;
