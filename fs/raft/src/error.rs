//! Errors, by who sees them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::room::is_full;
use crate::types::{LogPosition, MemberId};

/// What can go wrong with the log on disk. Clonable, since one failed write fails many callers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused.
    #[error("can't {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Its answer.
        source: Arc<io::Error>,
    },
    /// A file that isn't ours where ours belongs.
    #[error("{path} is not an Atoll {what}: it was left unchanged; move it away, or use another directory")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it should have been.
        what: &'static str,
    },
    /// Written by a newer version.
    #[error(
        "{path} has format version {found}, this program reads versions up to {known}: use the version that \
         wrote it, or a newer one"
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The log of another member.
    #[error("{path} belongs to member {found}, and this is member {expected}: attach the right disk")]
    OtherMember {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: MemberId,
        /// Who we are.
        expected: MemberId,
    },
    /// Entries that had been acknowledged can't be read.
    #[error(
        "{path} is damaged at byte {offset}: {detail}. Acknowledged entries are lost here; replace this member, or restore its disk"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        detail: String,
    },
    /// An entry that doesn't fit.
    #[error("an entry of {bytes} bytes is larger than {max}")]
    EntryTooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// An entry that doesn't follow the last one: a mistake in the caller.
    #[error("entry {got} doesn't follow the log's end ({last:?})")]
    NotConsecutive {
        /// The entry.
        got: LogPosition,
        /// The end of the log.
        last: Option<LogPosition>,
    },
    /// Closed by [`crate::RaftNode::shutdown`].
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether the disk no longer holds what was written to it, as far as one can tell in a folder that is known to be
    /// this member's.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Foreign { .. })
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }

    pub(crate) fn damaged(path: &Path, offset: u64, detail: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, detail: detail.into() }
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        let kind = match &error {
            LogError::Io { source, .. } => source.kind(),
            LogError::Damaged { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Why a node didn't start, or an administrative call failed.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Another process has this folder.
    #[error("{dir} is in use by another process")]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The state machine is older than the oldest entry of the log.
    #[error(
        "the state ends at {state:?}, but the log begins after {log}: the state machine's data was replaced by older data; replace this member"
    )]
    StateBehindLog {
        /// Last entry in the state.
        state: Option<LogPosition>,
        /// Last entry before the log.
        log: LogPosition,
    },
    /// This member has taken part in its group, and what it voted is gone.
    #[error(
        "{dir} has no vote file, though this member has belonged to a group: it could vote twice; replace \
         this member or, if it is the only one, run atoll-fs admin unsafe-recovery"
    )]
    VoteMissing {
        /// The folder.
        dir: PathBuf,
    },
    /// The state machine.
    #[error(transparent)]
    StateMachine(#[from] StateMachineFailure),
    /// A setting that can't work.
    #[error("bad Raft settings: {0}")]
    Config(String),
    /// This node doesn't lead.
    #[error("not the leader (that is {leader:?})")]
    NotLeader {
        /// Where to go, if known.
        leader: Option<(MemberId, String)>,
    },
    /// The change of the membership isn't possible now.
    #[error("the membership can't be changed so: {0}")]
    Membership(String),
    /// The group exists, and this node isn't in the list to found it with.
    #[error("member {member} isn't in the list of members to bootstrap the group with")]
    NotAMember {
        /// This node.
        member: MemberId,
    },
    /// Waited in vain.
    #[error("{what} did not happen within {seconds} s")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// The node has stopped.
    #[error("this metadata server has stopped: {0}")]
    Stopped(String),
}

impl RaftError {
    /// Whether the disk no longer holds what was written to it, as far as one can tell in a folder that is known to be
    /// this member's: its group can give another member all of it, under another id.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Log(error) => error.is_damage(),
            Self::StateBehindLog { .. } | Self::VoteMissing { .. } => true,
            _ => false,
        }
    }
}

/// A failed call into the state machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StateMachineFailure(pub(crate) String);

/// Why a command was not carried out, or can't be said to have been.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was done: this node doesn't lead (or isn't sure to), ask `leader`. Without a
    /// leader: try again soon, an election is under way.
    #[error("not the leader (that is {leader:?})")]
    NotLeader {
        /// Where to go, if known.
        leader: Option<(MemberId, String)>,
    },
    /// Leadership was lost while the command was under way: it may or may not be carried out.
    /// Send it again to the new leader under the same session, slot and sequence.
    #[error("leadership was lost while the command was in progress; its outcome is unknown")]
    OutcomeUnknown {
        /// Where to ask, if known.
        leader: Option<(MemberId, String)>,
    },
    /// Nothing was done: the command is too large.
    #[error("a command of {bytes} bytes is larger than {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: u32,
    },
    /// Nothing was done: the disk is full (or failing in a way that may pass). Try again later.
    #[error("the log refuses commands: {0}")]
    Storage(String),
    /// The node has stopped; whether the command was carried out is unknown.
    #[error("this metadata server has stopped: {0}")]
    Stopped(String),
}

/// Why a peer's request couldn't be answered at all.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Bytes that make no sense.
    #[error("a malformed request of kind {kind} from a peer")]
    Malformed {
        /// Its kind.
        kind: u16,
    },
}
