//! Skeleton.

pub mod metadata;
