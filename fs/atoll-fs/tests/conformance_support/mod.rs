//! The cases, by what they are about.

pub mod acls;
pub mod files;
pub mod harness;
pub mod locks;
pub mod names;
pub mod owners;
pub mod paths;
pub mod permissions;
pub mod ranges;
pub mod times;
pub mod xattrs;
