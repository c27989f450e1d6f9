//! What the filesystem decides, and nothing else: ids, records, commands and the operations on the
//! namespace. No I/O, no clock and no randomness: they are arguments.

pub mod attributes;
pub mod error;
pub mod ids;
pub mod limits;
