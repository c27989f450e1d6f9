//! The cases, by what they are about.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every block is one raw system call, with C strings and buffers that outlive it and lengths that are theirs"
)]

pub mod acls;
pub mod files;
pub mod harness;
pub mod locks;
pub mod names;
pub mod owners;
pub mod paths;
pub mod permissions;
pub mod privileges;
pub mod ranges;
pub mod times;
pub mod xattrs;
