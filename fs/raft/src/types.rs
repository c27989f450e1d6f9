//! What the users of this crate see: ids and positions, the state machine that they bring, the
//! transport that they bring, and what a node says about itself.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, RealDisk};

/// Identity of one member of the group: random, chosen once for an empty disk, never used again
/// for another disk. A member that comes back without its log must come back under another id,
/// or it could vote a second time in a term in which it has voted.
pub type MemberId = u64;

/// A place in the log: the term of the leader that wrote the entry, and its index (the first
/// entry of a group has index 0). Ordered by term, then by index, as Raft orders logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// Term of the leader that proposed the entry.
    pub term: u64,
    /// Index of the entry.
    pub index: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// What a state machine says was applied last, kept in the same atomic unit as its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// Position of the last applied entry; `None` while nothing was applied.
    pub position: Option<LogPosition>,
    /// Bytes of the last [`AppliedPayload::Membership`], unchanged; `None` before the first.
    pub membership: Option<Vec<u8>>,
}

/// A committed entry on its way into the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedEntry {
    /// Its position: to be stored with the changes that the entry makes.
    pub position: LogPosition,
    /// What it carries.
    pub payload: AppliedPayload,
}

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppliedPayload {
    /// A command given to [`crate::RaftNode::propose`], opaque here.
    Normal(Bytes),
    /// Nothing (a new leader's first entry): only the position advances.
    Blank,
    /// The group's membership from here on: to be kept, and returned by
    /// [`StateMachine::applied`] byte by byte.
    Membership(Vec<u8>),
}

/// The state machine failed; the node stops, since going on would let members diverge.
#[derive(Debug, thiserror::Error)]
#[error("the state machine failed: {0}")]
pub struct StateMachineError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl StateMachineError {
    /// Wraps the store's own error.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// The replicated state, synchronous: it knows the commands, this crate doesn't.
///
/// `apply`, `checkpoint` and `install` never run at the same time as one another; `flush`,
/// `flushed`, `applied` and `verify` may run beside any of them. `apply` runs on a thread of the
/// async runtime and must wait for nothing but its own memory and processor, except, having told the
/// runtime so (`atoll_blocking::in_place`), for room on a full disk; `flush`, `checkpoint`, `verify`
/// and `install` run on threads that may block.
pub trait StateMachine: Send + Sync + 'static {
    /// What was applied last. After opening it is what the last flush covered.
    fn applied(&self) -> AppliedState;

    /// Applies committed entries in order; the result of each `Normal` entry, in order.
    /// Changes and position of one entry must become durable together or not at all.
    fn apply(&self, entries: Vec<AppliedEntry>) -> Result<Vec<Bytes>, StateMachineError>;

    /// Makes everything durable that was applied before the call, and returns the position that
    /// is durable now.
    fn flush(&self) -> Result<Option<LogPosition>, StateMachineError>;

    /// Position covered by the last completed flush (or install); `None` if nothing is durable.
    fn flushed(&self) -> Option<LogPosition>;

    /// Makes a consistent copy of the state as files under `dir` (which doesn't exist yet; its
    /// parent does) and returns what is applied in that copy. Nothing is applied meanwhile, so it
    /// must not read what the files hold.
    fn checkpoint(&self, dir: &Path) -> Result<AppliedState, StateMachineError>;

    /// Reads a copy that [`checkpoint`](Self::checkpoint) has made under `dir`, beside everything
    /// else, on a thread that may block: an error if it isn't what was written, so that damage
    /// doesn't spread. `pace` is told how many bytes were read since the last time: it waits if
    /// that was fast, and its error ends the reading.
    fn verify(
        &self,
        dir: &Path,
        pace: &mut dyn FnMut(u64) -> Result<(), StateMachineError>,
    ) -> Result<(), StateMachineError>;

    /// Replaces the whole state by the one whose files are under `dir` (made by `checkpoint` on
    /// another member), atomically and durably: after a crash it's the old or the new state, and
    /// after the return [`flushed`](Self::flushed) is the new one's position. Files may be moved
    /// out of `dir`; what is left is removed by the caller.
    fn install(&self, dir: &Path) -> Result<(), StateMachineError>;

    /// The node is going to stop: whatever waits, for room on a full disk, say, gives up with an
    /// error.
    fn stop_waiting(&self) {}
}

/// Carries requests to other members. Many calls may be in flight to one member; an answer may
/// overtake another. The transport proves who is at the other end (this crate checks only that a
/// request was meant for the member that received it).
pub trait PeerTransport: Send + Sync + 'static {
    /// Sends one request and waits for its answer, which the other side got from
    /// [`crate::RaftNode::handle_peer`]. The caller has a timeout of its own and drops the future.
    fn call<'a>(
        &'a self,
        to: MemberId,
        addr: &'a str,
        kind: u16,
        payload: Bytes,
    ) -> BoxFuture<'a, io::Result<Bytes>>;
}

/// A transport for a group of one: every call fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl PeerTransport for NoPeers {
    fn call<'a>(
        &'a self,
        to: MemberId,
        addr: &'a str,
        _kind: u16,
        _payload: Bytes,
    ) -> BoxFuture<'a, io::Result<Bytes>> {
        Box::pin(async move {
            Err(io::Error::new(io::ErrorKind::Unsupported, format!("no transport to member {to} at {addr}")))
        })
    }
}

/// How a node runs. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// This member's id.
    pub member: MemberId,
    /// Folder for log segments, vote and snapshots under way; made if it doesn't exist. Snapshots
    /// need it on the same filesystem as the state machine only if the state machine says so.
    pub dir: PathBuf,
    /// Interval of the leader's heartbeats.
    pub heartbeat: Duration,
    /// The longer one is the length of the leader's lease: so long after a heartbeat a follower votes for nobody else.
    /// Then it stands for election after a random time between the two.
    pub election: (Duration, Duration),
    /// Size of one log segment file. An entry is at most an eighth of it.
    pub segment_bytes: u32,
    /// At most this much log is replayed after a crash: the state machine is flushed at half of
    /// it, and proposals wait at the whole of it.
    pub flush_log_bytes: u64,
    /// Flushed log that is kept for followers that lag, if there are other members.
    pub keep_log_bytes: u64,
    /// Snapshots are read and sent no faster than this, bytes a second; 0: no limit.
    pub snapshot_bytes_per_second: u64,
    /// It is known from elsewhere that this member has voted: a folder without a vote has lost it, even if there is
    /// neither log nor state that would tell.
    pub has_voted: bool,
    /// `false` only to prove that the power-cut test can fail: nothing is ever synced then.
    pub sync: bool,
    /// Where log and vote are instead of in `dir`.
    #[cfg(any(test, feature = "simulation"))]
    pub disk: Option<crate::SimDisk>,
}

impl RaftConfig {
    /// The defaults for `member` with its log in `dir`.
    ///
    /// The times are sized for a starved machine: on two loaded cores leases of 0.9 s were lost again and again. The
    /// span between the two is what keeps two followers from standing at the same time.
    pub fn new(member: MemberId, dir: impl Into<PathBuf>) -> Self {
        Self {
            member,
            dir: dir.into(),
            heartbeat: Duration::from_millis(200),
            election: (Duration::from_millis(500), Duration::from_millis(1200)),
            segment_bytes: 16 << 20,
            flush_log_bytes: 64 << 20,
            keep_log_bytes: 64 << 20,
            snapshot_bytes_per_second: 100 << 20,
            has_voted: false,
            sync: true,
            #[cfg(any(test, feature = "simulation"))]
            disk: None,
        }
    }

    /// The disk for log and vote.
    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        #[cfg(any(test, feature = "simulation"))]
        if let Some(disk) = &self.disk {
            return Arc::new(disk.clone());
        }
        Arc::new(RealDisk { sync: self.sync })
    }

    /// Largest command in bytes.
    pub fn command_bytes_max(&self) -> u32 {
        self.segment_bytes / 8
    }
}

/// Whether this node may answer reads, and who leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Current term.
    pub term: u64,
    /// This node leads, everything that was committed before its term is applied here, and its
    /// lease holds: a read that is answered from the state machine now is linearizable.
    pub is_leader: bool,
    /// Who leads as far as this node knows: itself, or where to send the client.
    pub leader: Option<(MemberId, String)>,
}

/// Role of a node in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives the log, doesn't vote.
    Learner,
    /// Receives the log, votes.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Stopped, on purpose or by a failure ([`RaftStatus::failure`]).
    Stopped,
}

/// How far the transfer of a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotProgress {
    /// Bytes that are there, sent now or by an earlier attempt.
    pub done_bytes: u64,
    /// Bytes of the whole snapshot.
    pub total_bytes: u64,
}

/// How a member that follows is doing, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Address in the membership.
    pub addr: String,
    /// Whether it votes.
    pub voter: bool,
    /// Last position known to be in its log; `None` if this node doesn't lead or doesn't know.
    pub matched: Option<LogPosition>,
    /// Time since it last answered a heartbeat; `None` if this node doesn't lead or it never did.
    pub last_ack: Option<Duration>,
    /// A snapshot is being sent to it.
    pub snapshot: Option<SnapshotProgress>,
}

/// State of a node, for status pages and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member.
    pub member: MemberId,
    /// Its role.
    pub role: Role,
    /// Current term.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<(MemberId, String)>,
    /// The members of the current membership, this one among them.
    pub members: BTreeMap<MemberId, PeerStatus>,
    /// Whether a change of the membership is under way.
    pub membership_changing: bool,
    /// Last entry in the log.
    pub last_log: Option<LogPosition>,
    /// Last entry known to be committed.
    pub committed: Option<LogPosition>,
    /// Last entry applied.
    pub applied: Option<LogPosition>,
    /// Last entry that the state machine has made durable.
    pub flushed: Option<LogPosition>,
    /// Last entry that was dropped from the log.
    pub purged: Option<LogPosition>,
    /// Bytes of log since the last flush: what a crash now would replay.
    pub unflushed_log_bytes: u64,
    /// Bytes of log segment files on disk.
    pub log_file_bytes: u64,
    /// Why new commands are refused though the node works (a full disk), if they are.
    pub refusing: Option<String>,
    /// Why the node has stopped, if it failed.
    pub failure: Option<String>,
}
