//! The filesystem's errors, and the one table that turns them into `errno`.

use serde::{Deserialize, Serialize};

/// Why an operation on the filesystem was refused. Outcomes of commands are stored and replayed, so
/// variants are only ever appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum FsError {
    /// No such name or inode.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Anything but a directory was needed.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// A name, target or attribute name is too long.
    #[error("name too long")]
    NameTooLong,
    /// An argument makes no sense (among others: a directory moved below itself).
    #[error("invalid argument")]
    InvalidArgument,
    /// The volume's bytes or inodes are used up.
    #[error("no space left on volume")]
    NoSpace,
    /// The inode has as many links as it can have.
    #[error("too many links")]
    TooManyLinks,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The attribute's value or all names together are too large.
    #[error("attribute too large")]
    AttributeTooLarge,
    /// An offset or size beyond what a file can have.
    #[error("file too large")]
    FileTooLarge,
    /// The inode existed once and is gone.
    #[error("stale file handle")]
    Stale,
    /// Not allowed whatever the permissions (a hard link to a directory, …).
    #[error("operation not permitted")]
    NotPermitted,
    /// The operation isn't supported.
    #[error("operation not supported")]
    Unsupported,
    /// Bytes are lost in all copies, or a record can't be read.
    #[error("input/output error")]
    Io,
    /// The command names a chunk generation that is no longer the chunk's, or a chunk that is sealed or
    /// not the session's: the writer takes another chunk.
    #[error("the chunk has changed")]
    StaleChunk,
    /// The expected place of a range has changed since it was read: the mover gives up.
    #[error("the range has changed")]
    Changed,
    /// The session isn't known (it expired or was evicted).
    #[error("session expired")]
    SessionExpired,
    /// The slot's sequence number is neither the next nor the last one.
    #[error("sequence out of order")]
    BadSequence,
    /// An earlier journal entry had another outcome than the client told its application.
    #[error("journal broken")]
    JournalBroken,
    /// Background work has to be done first; try again.
    #[error("try again")]
    TryAgain,
    /// More sessions than there may be.
    #[error("too many sessions")]
    TooManySessions,
    /// The volume is for one machine at a time, and another one has a session.
    #[error("another machine uses the volume")]
    Taken,
    /// The cluster isn't bootstrapped, or is bootstrapped already under another id.
    #[error("wrong cluster")]
    WrongCluster,
    /// The inline budget is used up: the data goes to a chunk.
    #[error("the inline budget is exhausted")]
    InlineBudget,
    /// Fewer storage servers than needed can take a new chunk; try again later.
    #[error("not enough storage servers")]
    NoServers,
    /// A blocked operation was interrupted.
    #[error("interrupted")]
    Interrupted,
    /// Somebody holds a lock that is in the way.
    #[error("locked")]
    Locked,
    /// Waiting for a lock would never end.
    #[error("deadlock")]
    Deadlock,
    /// More locks than there may be.
    #[error("too many locks")]
    NoLocks,
    /// Not allowed to the caller.
    #[error("permission denied")]
    Denied,
}

impl FsError {
    /// The `errno` that an application sees.
    #[must_use]
    pub fn errno(self) -> i32 {
        // Linux numbers (asm-generic/errno*.h); this crate does without libc.
        match self {
            Self::NotFound => 2,
            Self::Interrupted => 4,
            Self::Io => 5,
            Self::TryAgain | Self::NoServers | Self::Locked => 11,
            Self::Denied => 13,
            Self::Exists => 17,
            Self::NotDirectory => 20,
            Self::IsDirectory => 21,
            Self::InvalidArgument => 22,
            Self::FileTooLarge => 27,
            Self::NoSpace => 28,
            Self::TooManyLinks => 31,
            Self::Deadlock => 35,
            Self::NameTooLong => 36,
            Self::NoLocks => 37,
            Self::NotEmpty => 39,
            Self::NoAttribute => 61,
            Self::AttributeTooLarge => 7,
            Self::Unsupported => 95,
            Self::Stale => 116,
            Self::NotPermitted => 1,
            // These reach an application only when what it wrote is lost with its session.
            Self::StaleChunk
            | Self::Changed
            | Self::SessionExpired
            | Self::BadSequence
            | Self::JournalBroken
            | Self::TooManySessions
            | Self::Taken
            | Self::WrongCluster
            | Self::InlineBudget => 5,
        }
    }
}
