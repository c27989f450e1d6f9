//! The messages from storage servers to the metadata service (kinds 0x300 … 0x3ff).
//!
//! A storage server registers when it connects, then sends heartbeats; it is told what to do in the replies. An
//! order is repeated until the inventory shows that it was carried out, so carrying it out twice must do no harm.

use std::collections::BTreeMap;

use atoll_core::ids::{ChunkId, ClusterId, Generation, ServerId};
use serde::{Deserialize, Serialize};

use crate::rpc::{KINDS_REGISTRATION, Rpc};
use crate::status::Status;
use crate::storage::{ChunkRange, CopySource, ReplicaInfo, StorageError};

/// Replicas named in one heartbeat; what is more comes with the next.
pub const HEARTBEAT_REPLICAS_MAX: usize = 4096;
/// Tasks in one reply; what is more comes with the next.
pub const TASKS_MAX: usize = 1024;
/// Labels of a server.
pub const LABELS_MAX: usize = 64;

/// A storage server says that it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Who it is: random, written to its disk when it joined.
    pub server: ServerId,
    /// The cluster that its disk belongs to.
    pub cluster: ClusterId,
    /// Where clients reach it, as [`Address`](crate::transport::Address) prints it.
    pub address: String,
    /// What placement may look at (node, zone, …), at most [`LABELS_MAX`].
    pub labels: BTreeMap<String, String>,
    /// Bytes that its disk has for it.
    pub capacity: u64,
    /// Bytes that it uses.
    pub used: u64,
    /// The version of the format on its disk.
    pub format_version: u32,
    /// Counts its starts: of two processes with the same disk the one with the lower number is the past.
    pub incarnation: u64,
}

/// The answer to [`Register`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterReply {
    /// How often to send a heartbeat, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// Whether the metadata service wants the whole inventory, page by page, in the next heartbeats.
    pub full_inventory: bool,
}

/// A storage server is alive. Sent at the interval that the last reply named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub server: ServerId,
    /// As in [`Register`].
    pub incarnation: u64,
    /// Counts the heartbeats of this incarnation, from 1.
    pub sequence: u64,
    /// Bytes that it uses.
    pub used: u64,
    /// Bytes that are free on its disk.
    pub free: u64,
    /// Replicas that it keeps.
    pub chunks: u64,
    /// Failures of the disk since it started.
    pub disk_errors: u64,
    /// What changed since the last heartbeat that was answered.
    pub changes: InventoryChanges,
    /// How tasks ended that were carried out since then.
    pub done: Vec<TaskDone>,
}

/// What changed in a server's inventory. At most [`HEARTBEAT_REPLICAS_MAX`] replicas in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryChanges {
    /// New or changed replicas.
    pub present: Vec<ReplicaInfo>,
    /// Replicas that were found bad.
    pub bad: Vec<BadReplica>,
    /// Replicas that are gone.
    pub removed: Vec<ChunkId>,
    /// Sealed replicas that were read from end to end, without anything bad.
    pub scrubbed: Vec<ScrubbedReplica>,
    /// When a full inventory is being sent: `present` holds all replicas after this one…
    pub from: Option<ChunkId>,
    /// …up to and with this one; `None` while no full inventory is sent.
    pub through: Option<ChunkId>,
    /// The last page of a full inventory: there is none after `present`.
    pub complete: bool,
}

/// A replica with bad blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadReplica {
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation that the replica knows.
    pub generation: Generation,
    /// Block numbers within the chunk, ascending; empty when all of the file is unusable.
    pub blocks: Vec<u64>,
}

/// A sealed replica in which nothing is bad. Whether anything is missing only the metadata service can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubbedReplica {
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation that the replica knows.
    pub generation: Generation,
    /// Blocks that are there.
    pub blocks: u64,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDone {
    /// The task's number.
    pub task: u64,
    /// Its outcome.
    pub result: Result<(), StorageError>,
}

/// The answer to [`Heartbeat`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// How often to send a heartbeat, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// What to do, at most [`TASKS_MAX`].
    pub tasks: Vec<NumberedTask>,
    /// Whether the metadata service wants the whole inventory in the next heartbeats.
    pub full_inventory: bool,
    /// Where the members of the group are, if there are several: when the leader falls silent, one of them leads.
    pub members: Vec<String>,
}

/// A task and the number under which its outcome is reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedTask {
    /// Given out by the metadata leader; a task that is repeated keeps it.
    pub number: u64,
    /// What to do.
    pub task: StorageTask,
}

/// What the metadata service tells a storage server to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StorageTask {
    /// As [`TrimChunk`](crate::storage::TrimChunk).
    Trim {
        /// The chunk.
        chunk: ChunkId,
        /// The dead ranges.
        ranges: Vec<ChunkRange>,
    },
    /// As [`DeleteChunk`](crate::storage::DeleteChunk).
    Delete {
        /// The chunk.
        chunk: ChunkId,
    },
    /// As [`SealChunk`](crate::storage::SealChunk).
    Seal {
        /// The chunk.
        chunk: ChunkId,
        /// The generation from now on.
        generation: Generation,
        /// Its bytes, for ever.
        length: u64,
    },
    /// As [`CopyChunk`](crate::storage::CopyChunk).
    Copy {
        /// The chunk.
        chunk: ChunkId,
        /// The generation that the new replica gets.
        generation: Generation,
        /// The sealed length.
        length: u64,
        /// Where from.
        from: Vec<CopySource>,
    },
    /// As [`Scrub`](crate::storage::Scrub).
    Scrub {
        /// The chunk.
        chunk: ChunkId,
    },
}

/// Why the metadata service refuses a storage server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum RegistrationError {
    /// This member doesn't lead the metadata group.
    #[error("this member isn't the leader{}", .leader.as_ref().map(|at| format!(", {at} is")).unwrap_or_default())]
    NotLeader {
        /// The leader's address, if it is known.
        leader: Option<String>,
    },
    /// The disk belongs to another cluster.
    #[error("this is cluster {here}, and the disk belongs to cluster {there}")]
    WrongCluster {
        /// Ours.
        here: ClusterId,
        /// The disk's.
        there: ClusterId,
    },
    /// The server isn't registered (any more): register again.
    #[error("this server isn't registered")]
    NotRegistered,
    /// The server was removed from the cluster for good; its replicas are of no use to anybody.
    #[error("this server was removed from the cluster")]
    Removed,
    /// Another process with the same disk registered later.
    #[error("a later process of this server has registered (incarnation {have}): stop one of the two")]
    StaleIncarnation {
        /// The later one's.
        have: u64,
    },
    /// The format on the disk is none that this cluster understands.
    #[error("the disk's format {have} is newer than the cluster's feature level allows ({max})")]
    Format {
        /// The disk's.
        have: u32,
        /// The newest that is understood.
        max: u32,
    },
}

impl From<RegistrationError> for Status {
    fn from(error: RegistrationError) -> Status {
        Status::service(&error)
    }
}

impl Rpc for Register {
    const KIND: u16 = KINDS_REGISTRATION + 0x01;
    type Request = Register;
    type Reply = RegisterReply;
}

impl Rpc for Heartbeat {
    const KIND: u16 = KINDS_REGISTRATION + 0x02;
    type Request = Heartbeat;
    type Reply = HeartbeatReply;
}
