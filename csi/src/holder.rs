//! The holder: keeps the descriptors of each mount of this node, and nothing else. The mount host that leads gives it the
//! bundle of each mount before the mount's first request is answered, and takes all of them when it begins to lead. So the
//! mounts outlive the mount host, and the mount host gives them to a holder that was restarted: either may die alone.
//!
//! ```text
//! mount host that leads ── Keep, Forget ──▶ holder ◀── Hello, Take ── mount host that is to lead
//!        has leader.lock  ◀──── Turn ─────         ──── Turn, Mount ──▶    waits for leader.lock
//! ```
//!
//! - Who leads has the lock on [`LEADER_LOCK`]; who is to lead says the holder (`seats`): the mount host that was started
//!   last. One that leads and isn't to lead ends its clients, and then lets go of the lock.
//! - A client is succeeded only when it is dead for sure: the other end of its control socket, which comes with its mount's
//!   descriptors, is closed.
//! - The holder knows nothing of what it keeps but its volume: records and descriptors of later versions are kept as well
//!   ([`record`]).

pub mod keeper;
pub mod link;
pub mod protocol;
pub mod record;
mod seats;

pub use keeper::{Keeper, KeeperError};

/// The name of the holder's socket in the node's directory for it.
pub const SOCKET: &str = "holder.sock";
/// The holder that keeps the mounts has a lock on this file.
pub const LOCK: &str = "holder.lock";
/// The mount host that leads has a lock on this file.
pub const LEADER_LOCK: &str = "leader.lock";
