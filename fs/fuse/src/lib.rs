//! Atoll's session with the kernel, and the adapter from its requests to the filesystem ([`atoll_client::vfs`]).
//!
//! ```text
//! device    open /dev/fuse, mount, clone, find and detach a dead mount, abort
//! bundle    what a successor needs: descriptors and the memory of requests; passed by SCM_RIGHTS
//! slots     that memory: requests are read straight into it
//! session   readers, requests under way, INIT, interrupts, take-over
//! request   parsed requests                reply      answers as the kernel's structures
//! notify    what the kernel must forget    adapter    request -> Vfs -> reply or errno, nothing else
//! fuser_transport                          the same filesystem over the `fuser` crate
//! ```
//!
//! Opening and mounting are apart from serving, since in Kubernetes different processes do them.
//! No decision about files is made in this crate.

mod abi;
pub mod adapter;
pub mod bundle;
pub mod device;
pub mod fuser_transport;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod notify;
mod reply;
pub mod request;
pub mod session;
mod slots;

pub use abi::flags::InitFlags;
pub use slots::{AdoptError, Layout, RequestMemory};
