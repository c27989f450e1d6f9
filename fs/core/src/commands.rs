//! The commands that change the volume, and their outcomes.
//!
//! A command is what a Raft entry holds; applying it depends on the entry and on the records alone. It is
//! identified by `(session, slot, sequence)` and takes effect once, however often it is sent.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::attributes::{AttributeChanges, Attributes, KillPriv, Timestamp};
use crate::check::{Kind, Subject};
use crate::error::FsError;
use crate::fsck::Corrections;
use crate::ids::{ChunkId, ClusterId, Generation, InodeId, SegmentIndex, ServerId, SessionId, SlotId};
use crate::locks::{LockRequest, LockScope};
use crate::records::{ChunkKind, ChunkRecord, Piece, VolumeConfig};

/// The session of the metadata service itself: its commands are idempotent by nature and use no slots.
pub const INTERNAL: SessionId = SessionId(0);

/// `RENAME_NOREPLACE` of renameat2(2).
pub const RENAME_NOREPLACE: u32 = 1;
/// `RENAME_EXCHANGE` of renameat2(2).
pub const RENAME_EXCHANGE: u32 = 2;
/// `RENAME_WHITEOUT` of renameat2(2).
pub const RENAME_WHITEOUT: u32 = 4;

/// One mutation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Who asks.
    pub session: SessionId,
    /// In which of its slots; slot 0 is the journal.
    pub slot: SlotId,
    /// 1 for the first operation of a slot, then one more each.
    pub sequence: u64,
    /// When it happened, by the client's clock corrected by the leader's.
    pub time: Timestamp,
    /// Hash of the outcome that the client told its application already (journal entries only).
    pub expect: Option<u64>,
    /// What to do.
    pub op: Op,
}

/// New bytes of a file: where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewPlace {
    /// Here.
    Inline(Bytes),
    /// In a chunk of the session's, durable on all its replicas. Starts at a block of the chunk and lies
    /// within one segment of the file.
    Chunk {
        /// The chunk.
        chunk: ChunkId,
        /// Its generation when the bytes were written.
        generation: Generation,
        /// First byte in the chunk.
        offset: u64,
    },
}

/// New bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPiece {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Where they are.
    pub place: NewPlace,
}

/// How `setxattr` treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// Fail if it exists (`XATTR_CREATE`).
    Create,
    /// Fail if it doesn't exist (`XATTR_REPLACE`).
    Replace,
}

/// What fallocate(2) does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllocateMode {
    /// Allocate what isn't mapped, without changing content.
    Allocate,
    /// Make it a hole.
    Punch,
    /// Make it read as zeroes and stay allocated.
    Zero,
}

/// The operations. Stored in logs: variants are only appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Makes an inode of any kind and its name.
    Create {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Bytes,
        /// A number out of a range that the session was given; `None`: the next free one.
        ino: Option<InodeId>,
        /// Type and permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group, unless the directory passes on its own.
        gid: u32,
        /// Device number.
        rdev: u32,
        /// Target of a symbolic link.
        target: Bytes,
        /// Permission bits that are taken away, unless the directory has a list that is inherited instead.
        umask: u32,
    },
    /// Makes a file without a name (`O_TMPFILE`): an orphan that may get one.
    CreateUnnamed {
        /// The directory that it would be in: what it inherits comes from there.
        parent: InodeId,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group, unless the directory passes on its own.
        gid: u32,
        /// As in [`Create`](Op::Create).
        umask: u32,
        /// It may get a name (no `O_EXCL`).
        linkable: bool,
    },
    /// Makes a further name.
    Link {
        /// What to name.
        ino: InodeId,
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Bytes,
    },
    /// Removes a name: of a directory if `directory`, else of anything else.
    Unlink {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Bytes,
        /// `rmdir` rather than `unlink`.
        directory: bool,
    },
    /// Renames.
    Rename {
        /// From this directory.
        parent: InodeId,
        /// This name.
        name: Bytes,
        /// To this directory.
        new_parent: InodeId,
        /// This name.
        new_name: Bytes,
        /// [`RENAME_NOREPLACE`], [`RENAME_EXCHANGE`], [`RENAME_WHITEOUT`].
        flags: u32,
        /// Owner and group of what is left behind with [`RENAME_WHITEOUT`].
        whiteout: (u32, u32),
    },
    /// Changes attributes; with a size it truncates or extends.
    SetAttributes {
        /// The inode.
        ino: InodeId,
        /// The changes.
        changes: AttributeChanges,
    },
    /// Commits written data.
    Write {
        /// The file.
        ino: InodeId,
        /// The data, by offset, without overlap.
        pieces: Vec<NewPiece>,
        /// When it was written.
        mtime: Timestamp,
        /// What the file loses by it.
        kill_priv: KillPriv,
        /// Bytes of the session's reservation that this uses up.
        reservation: u64,
    },
    /// Appends at the end of the file as it is when this takes effect.
    Append {
        /// The file.
        ino: InodeId,
        /// The bytes.
        data: NewPlace,
        /// How many.
        length: u64,
        /// What the file loses by it.
        kill_priv: KillPriv,
        /// Bytes of the session's reservation that this uses up.
        reservation: u64,
    },
    /// fallocate(2). A part of it is done if it is much.
    Allocate {
        /// The file.
        ino: InodeId,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// What to do.
        mode: AllocateMode,
        /// Don't change the size.
        keep_size: bool,
        /// What the file loses by it.
        kill_priv: KillPriv,
    },
    /// Sets an extended attribute.
    SetXattr {
        /// The inode.
        ino: InodeId,
        /// Its name.
        name: Bytes,
        /// Its value.
        value: Bytes,
        /// Whether it must or may exist.
        mode: XattrMode,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// The inode.
        ino: InodeId,
        /// Its name.
        name: Bytes,
    },
    /// Sets or removes an access control list. The permission bits follow.
    SetAcl {
        /// The inode.
        ino: InodeId,
        /// The list that is inherited, not the directory's own.
        default: bool,
        /// The attribute's value; `None` removes it.
        value: Option<Bytes>,
        /// The caller isn't in the inode's group: the set-gid bit goes.
        kill_sgid: bool,
    },
    /// copy_file_range(2), within the map: both files refer to the same bytes from then on. Copies a part if it is
    /// much.
    CopyRange {
        /// From this file,
        from: InodeId,
        /// from this byte on,
        offset: u64,
        /// to this file,
        to: InodeId,
        /// to this byte,
        to_offset: u64,
        /// so many.
        length: u64,
        /// What the second file loses by it.
        kill_priv: KillPriv,
    },
    /// Takes or lets go of a lock. Waiting is done before this is proposed.
    SetLock(LockRequest),
    /// Lets go of the locks that a process or an open file has on an inode.
    ReleaseLocks {
        /// The inode.
        ino: InodeId,
        /// Which of the session's locks on it.
        scope: LockScope,
    },
    /// Sets access times, which is no change: ctime and the change counter stay.
    Touch {
        /// Which, and when they were read; a time before the known one changes nothing.
        times: Vec<(InodeId, Timestamp)>,
    },
    /// Makes a chunk for the session to write. A client sends in `replicas` the servers that don't answer it; the leader
    /// replaces them by those that are to be written, and avoids the client's if there are enough others.
    CreateChunk {
        /// What for.
        kind: ChunkKind,
        /// The writing process.
        incarnation: u64,
        /// Servers that get a replica.
        replicas: Vec<ServerId>,
    },
    /// No more writes to a chunk; its length is what was committed.
    SealChunk {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Takes servers that are gone out of an open chunk's replicas (generation + 1).
    ShrinkChunk {
        /// The chunk.
        chunk: ChunkId,
        /// Its generation as the session knows it.
        generation: Generation,
        /// Servers to take out.
        without: Vec<ServerId>,
    },
    /// Asks for bytes of quota to buffer writes against.
    Reserve {
        /// Bytes, in whole blocks.
        bytes: u64,
        /// Fewer will do, down to this.
        bytes_min: u64,
    },
    /// Gives bytes of quota back.
    Unreserve {
        /// Bytes.
        bytes: u64,
    },
    /// Begins a session.
    OpenSession {
        /// What the client calls itself: its machine, a colon, and what the mount is called there.
        client: String,
        /// The process.
        incarnation: u64,
        /// The session that it takes the place of, to learn what became of its last operations.
        supersedes: Option<SessionId>,
    },
    /// Ends the asking session.
    CloseSession,

    // From here on: the metadata service's own.
    /// Makes the volume.
    Bootstrap {
        /// Its cluster.
        cluster: ClusterId,
        /// Key of the hash of names.
        hash_key: (u64, u64),
        /// Configuration.
        config: VolumeConfig,
    },
    /// Changes the configuration.
    Configure {
        /// The new one.
        config: VolumeConfig,
    },
    /// A storage server joins, or has a new address or labels.
    PutServer {
        /// Which.
        server: ServerId,
        /// Where it listens.
        address: String,
        /// Labels for placement.
        labels: BTreeMap<String, String>,
    },
    /// Ends a session that was silent for its lifetime, or was evicted.
    ExpireSession {
        /// Which.
        session: SessionId,
    },
    /// Forgets an ended session and its slots.
    ForgetSession {
        /// Which.
        session: SessionId,
    },
    /// Frees some of an orphan that nobody holds open; the last call removes it.
    PurgeOrphan {
        /// Which.
        ino: InodeId,
        /// Segments to free at most.
        segments_max: u32,
    },
    /// Frees some of what truncations of an inode cut off.
    PurgeTruncated {
        /// Which.
        ino: InodeId,
        /// Segments to free at most.
        segments_max: u32,
    },
    /// Records as dead what no extent of a sealed chunk refers to.
    SweepChunk {
        /// Which.
        chunk: ChunkId,
    },
    /// A server has carried out orders.
    OrdersDone {
        /// Which server.
        server: ServerId,
        /// What it has done.
        done: Vec<OrderDone>,
    },
    /// A server holds a replica that no record knows: it is to delete it.
    DeleteStray {
        /// Which server.
        server: ServerId,
        /// The chunks.
        chunks: Vec<ChunkId>,
    },
    /// Moves a range that is still where `expected` says to a new place; no times change.
    Relocate {
        /// The file.
        ino: InodeId,
        /// The segment.
        segment: SegmentIndex,
        /// The pieces as they were read.
        expected: Vec<Piece>,
        /// Where their bytes are now: one run from the start of the first to the end of the last.
        chunk: ChunkId,
        /// The generation of that chunk.
        generation: Generation,
        /// First byte in that chunk.
        offset: u64,
    },
    /// The generation is raised and lost replicas are taken out of a sealed chunk, or new ones added.
    SetReplicas {
        /// Which.
        chunk: ChunkId,
        /// Its generation as the leader read it.
        generation: Generation,
        /// The new set.
        replicas: Vec<ServerId>,
    },
    /// What the leader put in the place of a command that it can't let through for a reason that no record
    /// shows (a server's disk is full). The slot keeps the refusal like any other outcome.
    Refuse {
        /// Why.
        error: FsError,
        /// [`request_hash`](crate::namespace::request_hash) of what the client asked for, so that a retry which
        /// could be let through by now still meets the refusal that may have been answered already.
        request: u64,
    },
    /// Repairs what a check found, if it is still so.
    Fsck {
        /// What was found.
        kind: Kind,
        /// About what.
        subject: Subject,
    },
    /// Corrects the volume's sums.
    FsckTotals(Corrections),
    /// What an administrator wants of a storage server.
    ChangeServer {
        /// Which.
        server: ServerId,
        /// What.
        change: ServerChange,
    },
}

/// What becomes of a storage server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerChange {
    /// It gets no new replicas, and those that it has go elsewhere.
    Evacuate,
    /// It is used as any other (again).
    Keep,
    /// It is none of the cluster's any more. Only after it was evacuated; that no chunk names it the leader has seen,
    /// and none can come to, since it gets no new ones.
    Forget,
}

/// Something that a server was ordered to do and has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderDone {
    /// The replica is deleted.
    Deleted(ChunkId),
    /// The replica is sealed.
    Sealed(ChunkId, Generation),
    /// These ranges (first block, blocks) are trimmed.
    Trimmed(ChunkId, Vec<(u64, u64)>),
}

/// What came of a command. Stored in slots and replayed: variants are only appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done; nothing to tell.
    Done,
    /// Refused; nothing was changed.
    Refused(FsError),
    /// The inode's attributes afterwards.
    Inode(Box<Attributes>),
    /// An append: where it went, and the attributes afterwards.
    Appended(u64, Box<Attributes>),
    /// A new chunk.
    Chunk(ChunkId, Box<ChunkRecord>),
    /// Bytes of quota that the session got.
    Reserved(u64),
    /// A session began. With the last outcomes of the one that it supersedes.
    Session(SessionId, Vec<(SlotId, u64, Outcome)>),
    /// Background work: true if there is more to do.
    More(bool),
    /// fallocate(2): done up to this byte; the rest needs further commands.
    Allocated(u64, Box<Attributes>),
    /// A copy within the map: how many bytes, and the attributes of the second file afterwards.
    Copied(u64, Box<Attributes>),
    /// A rename that replaced something: attributes of what was moved, and of what was replaced, afterwards.
    Replaced(Box<Attributes>, Box<Attributes>),
}

impl Outcome {
    /// The outcome as a result.
    ///
    /// # Errors
    /// What the command was refused with.
    pub fn into_result(self) -> Result<Outcome, FsError> {
        match self {
            Outcome::Refused(error) => Err(error),
            other => Ok(other),
        }
    }
}
