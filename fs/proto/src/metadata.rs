//! Messages between clients and the metadata service (kinds 0x100 to 0x1ff).
//!
//! A client sends its requests to the member that it takes for the leader. Whoever isn't answers
//! [`MetadataError::NotLeader`] with a hint. Mutations carry their identity, so a client may send one again
//! whenever it does not know what became of it.

use std::collections::BTreeMap;

use atoll_core::attributes::{Attributes, Timestamp, VolumeUse};
use atoll_core::commands::{ClientOp, Command, Outcome};
use atoll_core::error::FsError;
use atoll_core::ids::{ChunkId, ClusterId, Generation, InodeId, MemberId, SegmentIndex, ServerId, SessionId};
use atoll_core::lock_table::Claim;
use atoll_core::lock_waits::Verdict;
use atoll_core::locks::{HeldLock, Holder};
pub use atoll_core::query::{DirectoryEntry, DirectoryPage};
use atoll_core::records::VolumeConfig;
use atoll_core::seek::Sought;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use crate::queries::Query;
use crate::rpc::rpcs;
use crate::status::Status;

/// Why the metadata service did not carry a request out. What a command itself is refused with is an
/// [`Outcome`], not one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MetadataError {
    /// This member doesn't lead. The request had no effect.
    #[error("not the leader")]
    NotLeader {
        /// The leader's id and address, if known.
        leader: Option<(MemberId, String)>,
    },
    /// The leader lost leadership while it worked: a mutation may have taken effect or not; send it again.
    #[error("leadership lost")]
    LeadershipLost,
    /// The cluster isn't bootstrapped yet.
    #[error("the cluster isn't bootstrapped")]
    NotBootstrapped,
    /// The query was refused.
    #[error("{0}")]
    Fs(FsError),
    /// The member can't go on (its disk failed or is full); try another, or again later.
    #[error("metadata server failed: {0}")]
    Failed(String),
    /// It can't be done as the cluster is now; nothing was changed. In words, with what to do.
    #[error("{0}")]
    Refused(String),
}

/// Carries out a mutation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MutateRequest {
    /// The mutation.
    pub command: Command<ClientOp>,
    /// If it makes a file, the session holds that open from the start, as after [`Open`](crate::queries::Open). What came before this
    /// field reads over it, and doesn't send it: then it is `false`.
    pub opens: bool,
}

impl<'de> Deserialize<'de> for MutateRequest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> serde::de::Visitor<'de> for Fields {
            type Value = MutateRequest;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mutation")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut fields: A,
            ) -> Result<MutateRequest, A::Error> {
                let missing = || serde::de::Error::invalid_length(0, &self);
                let command = fields.next_element()?.ok_or_else(missing)?;
                // The message may end here.
                let opens = fields.next_element().ok().flatten().unwrap_or(false);
                Ok(MutateRequest { command, opens })
            }
        }

        deserializer.deserialize_struct("MutateRequest", &["command", "opens"], Fields)
    }
}

/// What came of a mutation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MutateReply {
    /// Its outcome, stored with the slot.
    pub outcome: Outcome,
    /// On a volume for one mount the directories in which it changed a name, as they are now: what the kernel asks for next.
    pub parents: Vec<Attributes>,
}

impl<'de> Deserialize<'de> for MutateReply {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> serde::de::Visitor<'de> for Fields {
            type Value = MutateReply;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the outcome of a mutation")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut fields: A) -> Result<MutateReply, A::Error> {
                let missing = || serde::de::Error::invalid_length(0, &self);
                let outcome = fields.next_element()?.ok_or_else(missing)?;
                // The message may end here.
                let parents = fields.next_element().ok().flatten().unwrap_or_default();
                Ok(MutateReply { outcome, parents })
            }
        }

        deserializer.deserialize_struct("MutateReply", &["outcome", "parents"], Fields)
    }
}

/// Entries of a session's journal, in their order. Sent again until they are known to be carried out, which each is once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalBatch {
    /// Whose.
    pub session: SessionId,
    /// The sequence number of the first one; each further one has the next.
    pub first: u64,
    /// The entries.
    pub entries: Vec<JournalEntry>,
}

/// An entry of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// When it happened, by the client's clock corrected by the leader's.
    pub time: Timestamp,
    /// What its application was told, see [`projection`](atoll_core::commands::projection).
    pub expect: u64,
    /// An inode whose last name goes by it, and that nobody has open.
    pub frees: Option<InodeId>,
    /// What to do.
    pub op: ClientOp,
}

/// What became of entries of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalReply {
    /// The last entry that is carried out.
    pub applied: u64,
    /// Why those after it are not.
    pub refused: Option<FsError>,
    /// The metadata servers' disks have little room: what grows is to be asked for, and refused.
    pub disk_low: bool,
    /// New files and small overwrites may travel inline, as in [`SessionHeartbeatReply`].
    pub inline_allowed: bool,
}

/// What a client has to know to keep a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalState {
    /// The volume's record, as it is stored.
    pub superblock: Bytes,
    /// The last entry of the session's journal that is carried out; 0: none.
    pub applied: u64,
    /// No further ones are.
    pub is_broken: bool,
}

/// Stored records of an inode, so that a client whose own it is carries operations out on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRecords {
    /// The inode.
    pub inode: Bytes,
    /// Its extended attributes, by key; `None`: they are too long.
    pub xattrs: Option<Vec<(Bytes, Bytes)>>,
    /// Of a directory: a part of its entries, by key.
    pub entries: Vec<(Bytes, Bytes)>,
    /// The inodes that these name.
    pub children: Vec<(InodeId, Bytes)>,
    /// Where the next part begins, if there is one.
    pub next: Option<u64>,
}

/// Asks something; changes no record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskRequest {
    /// Who asks.
    pub session: SessionId,
    /// What.
    pub query: Query,
}

/// Where the bytes of a piece are, for a reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PieceData {
    /// Here.
    Inline(Bytes),
    /// In a chunk, from this byte on.
    Chunk {
        /// The chunk.
        chunk: ChunkId,
        /// First byte in it.
        offset: u64,
    },
    /// Allocated, never written: zeroes.
    Unwritten,
    /// Lost in all copies.
    Lost,
}

/// A run of bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedPiece {
    /// First byte, counted from the start of its segment.
    pub start: u32,
    /// Length in bytes.
    pub length: u32,
    /// Where they are.
    pub data: PieceData,
}

/// A chunk, for a reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkInfo {
    /// Which.
    pub chunk: ChunkId,
    /// Generation of its replica set.
    pub generation: Generation,
    /// Servers that hold it.
    pub replicas: Vec<ServerId>,
}

/// A storage server, for a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Which.
    pub server: ServerId,
    /// Where it listens.
    pub address: String,
    /// Its labels (for reading from the nearest).
    pub labels: BTreeMap<String, String>,
    /// It is heard of.
    pub alive: bool,
}

/// Extents of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileExtents {
    /// The file's attributes.
    pub attributes: Attributes,
    /// Pieces by segment, in order; segments without pieces are left out.
    pub segments: Vec<(SegmentIndex, Vec<MappedPiece>)>,
    /// How many segments, from the first that was asked for, the answer covers (it is bounded in bytes).
    pub covered: u32,
    /// The chunks that the pieces name.
    pub chunks: Vec<ChunkInfo>,
}

/// Answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Attributes of an inode.
    Inode(Attributes),
    /// A target, a value or names.
    Bytes(Bytes),
    /// Entries of a directory.
    Directory(DirectoryPage),
    /// Extents of a file.
    Extents(FileExtents),
    /// Use of the volume.
    Volume(VolumeUse),
    /// Chunks.
    Chunks(Vec<ChunkInfo>),
    /// Storage servers.
    Servers(Vec<ServerInfo>),
    /// Data or a hole.
    Sought(Sought),
    /// A lock that is in the way, and who holds it.
    Lock(Option<(Holder, HeldLock)>),
    /// Waits that have come to an end, by their ids.
    Locks(Vec<(u64, Verdict)>),
    /// What a change of locks has led to.
    LocksChanged(LockAnswer),
    /// What a session has.
    Session(SessionState),
    /// What its journal begins with.
    Journal(JournalState),
    /// Stored records.
    Records(InodeRecords),
}

/// What a session has, for a process that succeeds the one that had it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// Files that it holds open, as far as this leader knows.
    pub open: Vec<InodeId>,
    /// What it has locked.
    pub locks: Vec<Claim>,
    /// The number of its last change of locks that this leader knows.
    pub last_change: u64,
    /// This leader has been told what the session holds and has locked; otherwise only its process knew.
    pub is_told: bool,
    /// Bytes of quota that are reserved for it.
    pub bytes_reserved: u64,
}

/// What a change of locks has led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockAnswer {
    /// It is done. For who has taken a lock: the file as of then, or later. Segments are only there if it has changed since
    /// what was known.
    Done(Option<Box<FileExtents>>),
    /// It is refused.
    Refused(FsError),
    /// Nothing was done: the leader of this term hasn't been told yet what the session holds ([`ReclaimRequest`]), or the
    /// change was meant for the leader of another term.
    Untold(u64),
}

/// Keeps a session alive; sent every third of its lifetime at the latest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionHeartbeat {
    /// Which.
    pub session: SessionId,
    /// The term of the leader that was last told all open files; if it is older than the leader's, the reply
    /// asks for them again.
    pub reclaimed_term: u64,
}

/// The reply to a session's heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionHeartbeatReply {
    /// The leader's clock.
    pub now: Timestamp,
    /// How long the session lives without a further heartbeat (milliseconds).
    pub lifetime_ms: u32,
    /// The leader's term.
    pub term: u64,
    /// The leader doesn't know which files the session has open, and what it has locked: send [`ReclaimRequest`].
    pub reclaim: bool,
    /// Give back what is reserved and not used: another session needs it.
    pub return_reservation: bool,
    /// New files and small overwrites may travel inline.
    pub inline_allowed: bool,
    /// Use of the volume.
    pub volume: VolumeUse,
    /// Changes whenever a server's address or state does: ask [`Servers`](crate::queries::Servers) then.
    pub servers_version: u64,
    /// Where the members of the group are, if there are several: when the leader falls silent, one of them leads.
    pub members: Vec<String>,
    /// What a client has to know of the configuration.
    pub config: VolumeConfig,
}

/// Tells a new leader which files the session has open, and what it has locked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReclaimRequest {
    /// Which session.
    pub session: SessionId,
    /// All of them (in the last message of several if `more` is false).
    pub open: Vec<InodeId>,
    /// Another message with further ones follows.
    pub more: bool,
    /// All locks, as with `open`. What came before this field reads over it, and doesn't send it.
    pub locks: Option<LocksTold>,
}

/// What a session has locked, as it tells a new leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocksTold {
    /// The term of the leader that is told. Another one answers `Stale`, as one does that lacks a part: all is told anew then.
    pub term: u64,
    /// Counts how often the session has begun to tell.
    pub telling: u64,
    /// Counts the messages of this telling.
    pub part: u32,
    /// The locks.
    pub locks: Vec<Claim>,
}

impl<'de> Deserialize<'de> for ReclaimRequest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> serde::de::Visitor<'de> for Fields {
            type Value = ReclaimRequest;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("what a session holds")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut fields: A,
            ) -> Result<ReclaimRequest, A::Error> {
                let missing = || serde::de::Error::invalid_length(0, &self);
                let session = fields.next_element()?.ok_or_else(missing)?;
                let open = fields.next_element()?.ok_or_else(missing)?;
                let more = fields.next_element()?.ok_or_else(missing)?;
                // The message may end here.
                let locks = fields.next_element().ok().flatten().unwrap_or_default();
                Ok(ReclaimRequest { session, open, more, locks })
            }
        }

        let fields = &["session", "open", "more", "locks"];
        deserializer.deserialize_struct("ReclaimRequest", fields, Fields)
    }
}

/// Tells that files were closed. One-way: a lost one is made good by the next reclaim or the session's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseNotice {
    /// Which session.
    pub session: SessionId,
    /// The session holds these open no more.
    pub closed: Vec<InodeId>,
}

/// Makes the volume. Idempotent for the same cluster id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapRequest {
    /// The new cluster.
    pub cluster: ClusterId,
    /// Its configuration.
    pub config: VolumeConfig,
    /// The first members and their addresses, the one that is asked among them; none: it alone.
    pub members: Vec<(MemberId, String)>,
}

/// Asks any member how the cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest;

/// How the cluster is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its id.
    pub cluster: Option<ClusterId>,
    /// The member that answers.
    pub member: MemberId,
    /// It leads.
    pub is_leader: bool,
    /// The leader, if known.
    pub leader: Option<(MemberId, String)>,
    /// Raft term.
    pub term: u64,
    /// Last applied log index.
    pub applied: u64,
    /// Members of the group.
    pub members: Vec<MemberStatus>,
    /// Storage servers.
    pub servers: Vec<ServerStatus>,
    /// Sessions that are alive.
    pub sessions: Vec<SessionStatus>,
    /// Use of the volume.
    pub volume: VolumeUse,
    /// Replicas wanted.
    pub copies: u8,
    /// Chunks that exist.
    pub chunks: u64,
    /// Sealed chunks with fewer replicas than wanted on live servers.
    pub chunks_short: u64,
    /// How far repair is; only the leader knows.
    pub repair: RepairStatus,
    /// Orphans that wait.
    pub orphans: u64,
    /// Bytes of inline data.
    pub inline_bytes: u64,
    /// What is wrong, in words, each with what to do. Empty: healthy.
    pub problems: Vec<String>,
    /// Bytes of inline data that there can be; 0 from a server that didn't say it yet.
    #[serde(deserialize_with = "or_default")]
    pub inline_budget_bytes: u64,
    /// Chunks by the number of their replicas on servers that are heard of and aren't drained: first those with none. Only the
    /// leader knows; empty from a server that didn't say it yet.
    #[serde(deserialize_with = "or_default")]
    pub chunks_by_replicas: Vec<u64>,
    /// Chunks that name a storage server as one that has a replica, whether it is heard of or not; a server that isn't listed is
    /// named by none. Only the leader knows, and it says so if `chunks_by_replicas` isn't empty.
    #[serde(deserialize_with = "or_default")]
    pub chunks_naming: Vec<(ServerId, u64)>,
    /// The volume's feature level; 0 from a server that didn't say it yet.
    #[serde(deserialize_with = "or_default")]
    pub feature_level: u32,
    /// The highest level that it could be raised to: every member, storage server and mount knows it. 0: not known, since the
    /// leader hasn't heard all of them, or this server doesn't lead.
    #[serde(deserialize_with = "or_default")]
    pub feature_level_max: u32,
    /// Who knows no higher level than that while the leader does, or hasn't said, each in words.
    #[serde(deserialize_with = "or_default")]
    pub behind: Vec<String>,
}

/// A field at a message's end, which its sender may be too old to have.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(T::deserialize(deserializer).unwrap_or_default())
}

/// How far repair is: replicas that are made because there are too few, or that move for balance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairStatus {
    /// Chunks that lacked replicas when they were last walked through, less those copied since.
    pub chunks_left: u64,
    /// Bytes that have to be copied for these.
    pub bytes_left: u64,
    /// Copies under way.
    pub copying: u64,
    /// Replicas made since this leader leads.
    pub chunks_copied: u64,
    /// Their bytes.
    pub bytes_copied: u64,
    /// Speed of the last half minute.
    pub bytes_per_second: u64,
    /// Seconds until it is done at that speed.
    pub eta_seconds: Option<u64>,
}

/// A member of the group in a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Which.
    pub member: MemberId,
    /// Where.
    pub address: String,
    /// It votes; otherwise it still receives the log.
    pub voter: bool,
    /// Entries of the log that it is not known to have; `None` if only the leader could tell.
    pub lag: Option<u64>,
    /// Milliseconds since it answered; `None` if only the leader could tell, or it never did.
    pub silent_ms: Option<u64>,
    /// It is getting a snapshot, since the log doesn't reach back to what it has: bytes that are there, and all of them.
    pub snapshot: Option<(u64, u64)>,
}

/// A storage server in a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Which.
    pub server: ServerId,
    /// Where.
    pub address: String,
    /// It is heard of.
    pub alive: bool,
    /// Its replicas go elsewhere, and it gets no new ones.
    pub draining: bool,
    /// Bytes that its disk has.
    pub capacity: u64,
    /// Bytes in use on its disk, whoever uses them.
    pub used: u64,
    /// Bytes free on its disk.
    pub free: u64,
    /// Replicas on it.
    pub chunks: u64,
    /// Milliseconds since it was heard of.
    pub silent_ms: u64,
    /// Bytes of this volume's files in the replicas on it.
    pub stored: u64,
}

/// A session in a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Which.
    pub session: SessionId,
    /// What the client calls itself.
    pub client: String,
    /// Since when.
    pub opened: Timestamp,
    /// Files it holds open.
    pub open_files: u64,
    /// Bytes of quota promised to it.
    pub bytes_reserved: u64,
}

/// Message kinds.
pub mod kind {
    /// [`MutateRequest`](super::MutateRequest) → [`MutateReply`](super::MutateReply)
    pub const MUTATE: u16 = 0x101;
    /// [`AskRequest`](super::AskRequest) → [`Answer`](super::Answer)
    pub const ASK: u16 = 0x102;
    /// [`SessionHeartbeat`](super::SessionHeartbeat) → [`SessionHeartbeatReply`](super::SessionHeartbeatReply)
    pub const SESSION_HEARTBEAT: u16 = 0x103;
    /// [`ReclaimRequest`](super::ReclaimRequest) → `()`
    pub const RECLAIM: u16 = 0x104;
    /// [`CloseNotice`](super::CloseNotice), one-way
    pub const CLOSE: u16 = 0x105;
    /// [`JournalBatch`](super::JournalBatch) → [`JournalReply`](super::JournalReply)
    pub const JOURNAL: u16 = 0x106;
    /// [`BootstrapRequest`](super::BootstrapRequest) → `()`
    pub const BOOTSTRAP: u16 = 0x110;
    /// [`StatusRequest`](super::StatusRequest) → [`ClusterStatus`](super::ClusterStatus)
    pub const STATUS: u16 = 0x111;
    /// Between members: opaque to all but the Raft crate.
    pub const RAFT: u16 = 0x120;
}

impl From<MetadataError> for Status {
    fn from(error: MetadataError) -> Status {
        Status::service(&error)
    }
}

rpcs! {
    MutateRequest => MutateReply, kind::MUTATE;
    AskRequest => Answer, kind::ASK;
    SessionHeartbeat => SessionHeartbeatReply, kind::SESSION_HEARTBEAT;
    ReclaimRequest => (), kind::RECLAIM;
    CloseNotice => (), kind::CLOSE;
    JournalBatch => JournalReply, kind::JOURNAL;
    BootstrapRequest => (), kind::BOOTSTRAP;
    StatusRequest => ClusterStatus, kind::STATUS;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_understood_without_what_came_later() {
        let status = ClusterStatus { inline_budget_bytes: 300, chunks: 7, ..ClusterStatus::default() };
        let bytes = postcard::to_allocvec(&status).unwrap();
        assert_eq!(postcard::from_bytes::<ClusterStatus>(&bytes).unwrap(), status);
        // 300 takes two bytes, what came after it one each.
        let earlier: ClusterStatus = postcard::from_bytes(&bytes[..bytes.len() - 7]).unwrap();
        assert_eq!(earlier, ClusterStatus { inline_budget_bytes: 0, ..status });
    }

    #[test]
    fn what_a_session_holds_is_understood_without_its_locks() {
        let told = LocksTold { term: 3, telling: 1, part: 0, locks: Vec::new() };
        let (session, open) = (SessionId(4), vec![InodeId(5)]);
        let request = ReclaimRequest { session, open: open.clone(), more: false, locks: Some(told) };
        let bytes = postcard::to_allocvec(&request).unwrap();
        assert_eq!(postcard::from_bytes::<ReclaimRequest>(&bytes).unwrap(), request);
        let earlier = postcard::to_allocvec(&(session, open, false)).unwrap();
        assert!(bytes.starts_with(&earlier));
        let request = ReclaimRequest { locks: None, ..request };
        assert_eq!(postcard::from_bytes::<ReclaimRequest>(&earlier).unwrap(), request);
    }
}
