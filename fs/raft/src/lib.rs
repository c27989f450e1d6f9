//! Replication of Atoll's metadata: a group of 1, 3 or 5 members agrees on a log of commands, and
//! each applies them to its own copy of the state.
//!
//! This is the one place that knows openraft. It knows nothing of what the commands mean: they are
//! bytes, the state machine is a trait ([`StateMachine`]), the way to the other members is one
//! ([`PeerTransport`]).
//!
//! | module | is |
//! | --- | --- |
//! | `node` | [`RaftNode`]: everything put together, and what its users call |
//! | `segment`, `record` | the log's format on disk, with the argument why a crash can't hurt it |
//! | `log_store`, `writer`, `files`, `recovery` | reading the log; the one thread that writes it; files made ready ahead; reading it back at the start |
//! | `vote` | the file with this member's vote |
//! | `flush`, `account` | when the state machine is flushed, and what of the log may be dropped |
//! | `snapshot` | files for and from a member that lags |
//! | `alone` | the way out when a majority is lost for good |
//! | `network`, `peer`, `wire` | requests to and from other members |
//! | `raft_log`, `machine`, `group`, `clock` | openraft's view of log, state machine, types and time |
//!
//! The log is the only thing that is synced: once for each batch of commands, by one thread that
//! takes all that has gathered while the last batch was being written. The state machine is flushed
//! whenever enough log has piled up, and what the flush covers needs no log any more.

mod account;
mod clock;
mod disk;
mod error;
mod files;
mod flush;
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod leadership;
mod log_store;
#[cfg(test)]
mod log_store_tests;
mod machine;
mod network;
mod node;
#[cfg(test)]
mod node_tests;
mod peer;
mod pulse;
mod raft_log;
mod record;
mod recovery;
mod room;
mod segment;
#[cfg(any(test, feature = "simulation"))]
mod sim_disk;
mod snapshot;
#[cfg(test)]
mod suite_tests;
#[cfg(test)]
mod test_support;
mod types;
mod unsafe_recovery;
mod vote;
mod wire;
mod writer;

pub use error::{LogError, PeerError, ProposeError, RaftError, StateMachineFailure};
pub use node::RaftNode;
pub use room::{WaitForRoom, is_full};
#[cfg(any(test, feature = "simulation"))]
pub use sim_disk::SimDisk;
pub use types::{
    AppliedEntry, AppliedPayload, AppliedState, Leadership, LogPosition, MemberId, NoPeers, PeerStatus,
    PeerTransport, RaftConfig, RaftStatus, Role, SnapshotProgress, StateMachine, StateMachineError,
};
pub use unsafe_recovery::unsafe_recovery;
