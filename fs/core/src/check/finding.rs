//! What the check can find: a kind with a stable name, a subject, and words.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkId, InodeId, SegmentIndex, ServerId, SessionId};
use crate::locks::LockClass;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident, $name:literal, $phase:literal;)*) => {
        /// The kinds of damage. Stored in logs: variants are only appended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// The name that users see and ask for; it never changes.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name,)* }
            }

            /// When it is repaired: what a later phase counts rests on what an earlier one mends. 0: never.
            #[must_use]
            pub fn phase(self) -> u8 {
                match self { $(Kind::$kind => $phase,)* }
            }
        }
    };
}

kinds! {
    /// The volume has no record of itself.
    NoSuperblock, "no-superblock", 0;
    /// A record can't be decoded.
    UnreadableRecord, "unreadable-record", 0;
    /// Pieces of a segment overlap, are empty or stick out; or it has none.
    SegmentShape, "segment-shape", 0;
    /// Locks are empty, overlap or are in each other's way.
    LockConflict, "lock-conflict", 0;
    /// A name, or an extent, of an inode that doesn't exist.
    EntryWithoutInode, "entry-without-inode", 1;
    /// Extents of an inode that doesn't exist.
    SegmentWithoutInode, "segment-without-inode", 1;
    /// Names in something that doesn't exist.
    NamesWithoutDirectory, "names-without-directory", 1;
    /// An entry says another type than its inode.
    EntryKind, "entry-kind", 1;
    /// An entry whose inode doesn't know of it.
    ParentMissing, "parent-missing", 1;
    /// An inode has a name that its directory doesn't.
    NameMissing, "name-missing", 1;
    /// The mark of an unlinked file that doesn't exist.
    OrphanWithoutInode, "orphan-without-inode", 1;
    /// A piece's inline bytes are missing or short.
    InlineMissing, "inline-missing", 1;
    /// Inline bytes that no piece refers to.
    InlineUnused, "inline-unused", 1;
    /// A piece refers to a chunk that doesn't exist.
    ChunkMissing, "chunk-missing", 1;
    /// A segment refers to a chunk that doesn't know of it.
    ReferenceMissing, "reference-missing", 1;
    /// A chunk is told that a segment refers to it, which doesn't.
    ReferenceStale, "reference-stale", 1;
    /// An inode says that it has an access control list and has none, or the reverse.
    AclFlag, "acl-flag", 1;
    /// Locks of a session that isn't alive, or on an inode that doesn't exist.
    LockStale, "lock-stale", 1;
    /// A session's list of its locks differs from the locks.
    LockList, "lock-list", 1;
    /// Dead ranges of a chunk that doesn't exist.
    DeadWithoutChunk, "dead-without-chunk", 1;
    /// An inode that no name leads to.
    InodeWithoutName, "inode-without-name", 2;
    /// A file that has a name and counts as unlinked.
    OrphanWithName, "orphan-with-name", 2;
    /// An inode counts other links than it has names.
    LinkCount, "link-count", 3;
    /// A directory says that it is in another one.
    DirectoryParent, "directory-parent", 3;
    /// A directory counts other entries or links than it has.
    DirectoryCounts, "directory-counts", 3;
    /// An inode counts other bytes than are mapped.
    MappedBytes, "mapped-bytes", 3;
    /// Segments that refer to the same bytes without a mark of it.
    SharedMark, "shared-mark", 4;
    /// A chunk is referred to beyond its committed length.
    CommittedLength, "committed-length", 4;
    /// A range of a chunk is in use and marked as free.
    DeadInUse, "dead-in-use", 4;
    /// A chunk counts other blocks in use than there are.
    LiveBlocks, "live-blocks", 5;
    /// A server is not told to trim what it should, or the reverse.
    TrimOrder, "trim-order", 5;
    /// A sealed chunk that nothing refers to still exists.
    ChunkUnused, "chunk-unused", 6;
    /// The volume's sums differ from what there is.
    VolumeTotals, "volume-totals", 7;
    /// A server lacks a replica that it should have.
    ReplicaMissing, "replica-missing", 8;
    /// A replica has fewer bytes than were committed.
    ReplicaShort, "replica-short", 8;
    /// A replica of a sealed chunk is of an old generation, or open.
    ReplicaGeneration, "replica-generation", 8;
    /// A replica has blocks that don't have their checksum.
    ReplicaBad, "replica-bad", 8;
    /// A storage server doesn't answer.
    ReplicasUnchecked, "replicas-unchecked", 0;
    /// An unlinked file that nobody holds open, and nobody is freeing.
    OrphanForgotten, "orphan-forgotten", 8;
}

/// The phase from which on repairs trust the references to chunks.
pub const PHASE_CHUNKS: u8 = 4;

impl Kind {
    /// The kind with this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// While there is such damage it is not known what refers to a chunk: nothing may be taken for free.
    #[must_use]
    pub fn hides_references(self) -> bool {
        matches!(
            self,
            Kind::UnreadableRecord
                | Kind::SegmentShape
                | Kind::ReferenceMissing
                | Kind::SegmentWithoutInode
                | Kind::ChunkMissing
        )
    }
}

/// What a finding is about: enough to look at it again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// The volume as a whole.
    Volume,
    /// An inode.
    Inode(InodeId),
    /// The entry of a directory at a position.
    Entry(InodeId, u64),
    /// An inode, a directory, its name there.
    Parent(InodeId, InodeId, Vec<u8>),
    /// A segment of a file.
    Segment(InodeId, SegmentIndex),
    /// An inline value.
    Inline(InodeId, SegmentIndex, u64),
    /// A chunk.
    Chunk(ChunkId),
    /// A chunk's reference to a segment.
    Reference(ChunkId, InodeId, SegmentIndex),
    /// The mark of an unlinked file.
    Orphan(InodeId),
    /// Locks of a session's owner on an inode.
    Lock(LockClass, InodeId, SessionId, u64),
    /// The mark that a session has locks on an inode.
    Locked(SessionId, InodeId),
    /// A server's replica of a chunk.
    Replica(ServerId, ChunkId),
}

impl Subject {
    /// The inode to name by path, if the subject has one.
    #[must_use]
    pub fn inode(&self) -> Option<InodeId> {
        match self {
            Subject::Volume | Subject::Chunk(_) | Subject::Replica(..) => None,
            Subject::Inode(ino)
            | Subject::Entry(ino, _)
            | Subject::Parent(ino, ..)
            | Subject::Segment(ino, _)
            | Subject::Inline(ino, ..)
            | Subject::Reference(_, ino, _)
            | Subject::Orphan(ino)
            | Subject::Lock(_, ino, ..)
            | Subject::Locked(_, ino) => Some(*ino),
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Of which kind.
    pub kind: Kind,
    /// About what.
    pub subject: Subject,
    /// In words.
    pub words: String,
}

impl Finding {
    /// A finding.
    #[must_use]
    pub fn new(kind: Kind, subject: Subject, words: impl std::fmt::Display) -> Finding {
        Finding { kind, subject, words: words.to_string() }
    }
}
