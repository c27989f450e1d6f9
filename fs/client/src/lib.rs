//! The client: sessions, buffers, chunk writers and readers, and the filesystem that they make.

pub mod arena;
pub mod data;
pub mod metadata;
pub mod read;
pub mod storage_pool;
pub mod vfs;
pub mod write;
