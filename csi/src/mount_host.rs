//! The mount host: one client process of the filesystem for each volume that is mounted on this node, each under a user
//! id of its own. It needs no privilege but to start processes under other ids (SETUID, SETGID) and to end them (KILL):
//! the node plugin opens the device, mounts, and sends the descriptors.
//!
//! ```text
//! node plugin ── packets over a unix socket ──▶ supervisor ── packets over a socket pair ──▶ atoll-fs mount
//!    start (volume, key)                             starts the process, sends the key
//!                                 ◀── connected ──                              ◀── connected, arena ──
//!    mounts; the mount's descriptors ──────────▶     kept and passed on         ───────────────▶
//!                                 ◀── serving ───                               ◀── serving ────
//! ```
//!
//! A client process ends when its filesystem was unmounted everywhere, having written everything out. A client that dies is
//! succeeded by another one, which gets its mount's descriptors and its arena: no call of an application fails, and nothing
//! that was written is lost. A supervisor that dies (its clients die with it) leaves dead mounts; the next Publish or Stage
//! replaces each.

pub mod client;
pub mod packet;
pub mod protocol;
mod supervisor;

pub use supervisor::{Supervisor, SupervisorConfig, SupervisorError};

/// The name of the supervisor's socket in its folder.
pub const SOCKET: &str = "mount-host.sock";
/// The name of the volume in the pod, an emptyDir, that the socket is in.
pub const SOCKET_VOLUME: &str = "socket";
/// The component label of the mount host's pods.
pub const COMPONENT: &str = "mount-host";
