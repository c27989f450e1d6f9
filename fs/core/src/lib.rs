//! What the filesystem decides, and nothing else: ids, records, commands and the operations on the
//! namespace. No I/O, no clock and no randomness: they are arguments.

pub mod acl;
pub mod attributes;
pub mod check;
pub mod chunks;
pub mod commands;
pub mod encode;
pub mod error;
pub mod extents;
pub mod fsck;
pub mod ids;
pub mod intervals;
pub mod keys;
pub mod limits;
pub mod lock_table;
pub mod lock_waits;
pub mod locks;
pub mod namespace;
mod purge;
pub mod query;
pub mod records;
pub mod seek;
mod sessions;
pub mod store;
pub mod txn;
mod volume;
