//! The client: sessions, buffers, chunk writers and readers, and the filesystem that they make.

pub mod arena;
pub mod client;
pub mod data;
pub mod metadata;
pub mod read;
pub mod session;
pub mod storage_pool;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vfs;
pub mod write;
