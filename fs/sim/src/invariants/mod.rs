//! What holds in every world, one file each. Operations in folders of their own check themselves as they go
//! ([`crate::client`]): each takes effect once, with one reply, whatever happens, and what was written is there.

pub mod appends;
pub mod counter;
pub mod follow;
pub mod names;
pub mod records;
pub mod register;
pub mod replicas;
