//! The pieces of the power cut test.

pub mod disk;
pub mod load;
pub mod rig;
