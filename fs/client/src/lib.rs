//! The client: sessions, buffers, chunk writers and readers, and the filesystem that they make.

pub mod arena;
pub mod client;
pub mod data;
pub mod metadata;
mod origin;
pub mod read;
pub mod rights;
pub mod session;
pub mod storage_pool;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]
pub mod testing;
pub mod vfs;
pub mod write;
