//! The client: sessions, buffers, chunk writers and readers, and the filesystem that they make.

pub mod arena;
pub mod metadata;
pub mod vfs;
