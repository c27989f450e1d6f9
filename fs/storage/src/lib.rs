//! The storage server: keeps chunk replicas on one disk.

pub mod chunk_file;
pub mod disk;
