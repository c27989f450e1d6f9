//! The records, their encoding and their formats.
//!
//! A value is one byte of format version and a postcard encoding. A field is never added to a version that
//! was released: a new version gets a new struct, and the old one is still decoded.
//!
//! What a record says is not to be trusted: a member that panics over it does so again whenever it applies that entry,
//! and so do all others. So counts go as far as they go (the check finds that they are wrong), and what makes no sense
//! is refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::attributes::{Attributes, FileKind, Timestamp, VolumeUse};
use crate::commands::Outcome;
use crate::encode;
use crate::ids::{ChunkId, ClusterId, Generation, InodeId, SegmentIndex, ServerId, SessionId};
use crate::limits::BLOCK_BYTES;
use crate::store::StoreError;

/// `bytes` in whole blocks; as many as there can be if there can't be so many.
#[must_use]
pub(crate) fn in_blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned {
    /// For messages about damage.
    const NAME: &'static str;
    /// The format that is written.
    const VERSION: u8 = 1;

    /// The stored form.
    fn encode(&self) -> Vec<u8> {
        let mut start = Vec::with_capacity(1 + encode::USUAL_BYTES);
        start.push(Self::VERSION);
        encode::append(start, self)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// If it is damaged or of a newer format.
    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let (version, body) =
            bytes.split_first().ok_or_else(|| StoreError::Damaged(format!("{}: empty", Self::NAME)))?;
        if *version != Self::VERSION {
            return Err(StoreError::NewerFormat {
                record: Self::NAME,
                found: *version,
                known: Self::VERSION,
            });
        }
        postcard::from_bytes(body).map_err(|error| StoreError::Damaged(format!("{}: {error}", Self::NAME)))
    }
}

/// What was asked for when the volume was made, and may be changed by an administrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeConfig {
    /// Bytes the live tree may have.
    pub bytes_total: u64,
    /// Inodes the live tree may have.
    pub inodes_total: u64,
    /// Replicas of each chunk.
    pub copies: u8,
    /// Replicas below which a chunk takes no writes.
    pub copies_min: u8,
    /// Files up to this size live in the metadata service (bytes).
    pub inline_file_bytes: u32,
    /// Inline bytes above which new data goes to chunks.
    pub inline_budget_bytes: u64,
    /// Data bytes of a chunk.
    pub chunk_bytes: u64,
    /// Owner, group and permission bits of the root directory at first.
    pub root: (u32, u32, u32),
    /// The volume is for one machine at a time: it belongs to the machine of its first session, until that has ended.
    pub exclusive: bool,
}

impl Default for VolumeConfig {
    fn default() -> Self {
        VolumeConfig {
            bytes_total: 1 << 40,
            inodes_total: 1 << 32,
            copies: 3,
            copies_min: 2,
            inline_file_bytes: crate::limits::INLINE_FILE_BYTES_MAX as u32,
            inline_budget_bytes: 10 << 30,
            chunk_bytes: crate::limits::CHUNK_BYTES,
            root: (0, 0, 0o755),
            exclusive: false,
        }
    }
}

/// When the feature level was raised: a kind of record that builds of level 1 don't know.
#[cfg(feature = "next-release")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelRecord {
    /// When.
    pub raised: Timestamp,
}

#[cfg(feature = "next-release")]
impl Record for LevelRecord {
    const NAME: &'static str = "feature level";
}

/// The one record about the whole volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superblock {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// What apply may make use of: raised only when every member understands it.
    pub feature_level: u32,
    /// Key of the hash that orders directory entries.
    pub hash_key: (u64, u64),
    /// Configuration.
    pub config: VolumeConfig,
    /// The next inode number.
    pub next_inode: u64,
    /// The next chunk id.
    pub next_chunk: u64,
    /// The next session id.
    pub next_session: u64,
    /// The next inline value.
    pub next_inline: u64,
    /// The current snapshot epoch: what is written now is born in it.
    pub epoch: u64,
    /// Bytes charged to the live tree.
    pub bytes_used: u64,
    /// Bytes promised to sessions.
    pub bytes_reserved: u64,
    /// Inodes of the live tree.
    pub inodes_used: u64,
    /// Bytes of inline values.
    pub inline_bytes: u64,
    /// When the volume was made.
    pub created: Timestamp,
}

impl Record for Superblock {
    const NAME: &'static str = "superblock";
}

impl Superblock {
    /// What `statvfs` shows.
    #[must_use]
    pub fn volume_use(&self) -> VolumeUse {
        VolumeUse {
            bytes_total: self.config.bytes_total,
            bytes_used: self.bytes_used,
            bytes_reserved: self.bytes_reserved,
            inodes_total: self.config.inodes_total,
            inodes_used: self.inodes_used,
        }
    }
}

/// A truncation whose segments the background purge has still to free: a segment at or after `from` that was
/// written before `epoch` counts as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingTruncation {
    /// First segment that was cut off whole.
    pub from: SegmentIndex,
    /// Segments of an older truncate epoch are gone.
    pub epoch: u32,
    /// Their bytes still count as mapped, until they are freed one by one.
    pub counted: bool,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRecord {
    /// Type and permission bits.
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Size in bytes; of a symbolic link the length of its target.
    pub size: u64,
    /// Mapped bytes.
    pub mapped: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// Counts changes.
    pub change: u64,
    /// Snapshot epoch in which this value was written.
    pub birth: u64,
    /// Of a directory: its parent (the root's is itself).
    pub parent: InodeId,
    /// Of a directory: how many entries it has.
    pub entries: u64,
    /// Of a symbolic link: its target.
    pub target: Bytes,
    /// Bytes of extended attribute names (each with its NUL), for the limit on all of them.
    pub xattr_list_bytes: u32,
    /// It has an access control list, among the extended attributes.
    pub access_acl: bool,
    /// A directory that has a list which is inherited.
    pub default_acl: bool,
    /// Grows with each truncation that leaves work behind.
    pub truncate_epoch: u32,
    /// Truncations whose segments are not freed yet.
    pub truncations: Vec<PendingTruncation>,
}

impl Record for InodeRecord {
    const NAME: &'static str = "inode";
}

impl InodeRecord {
    /// A new inode with nothing in it: one link, a directory two. Only a directory keeps its `parent`.
    #[must_use]
    pub fn new(
        mode: u32,
        (uid, gid): (u32, u32),
        parent: InodeId,
        epoch: u64,
        now: Timestamp,
    ) -> InodeRecord {
        let is_directory = FileKind::of_mode(mode) == Some(FileKind::Directory);
        InodeRecord {
            mode,
            nlink: if is_directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            size: 0,
            mapped: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            change: 1,
            birth: epoch,
            parent: if is_directory { parent } else { InodeId(0) },
            entries: 0,
            target: Bytes::new(),
            xattr_list_bytes: 0,
            access_acl: false,
            default_acl: false,
            truncate_epoch: 0,
            truncations: Vec::new(),
        }
    }

    /// The inode's type.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        FileKind::of_mode(self.mode).unwrap_or(FileKind::File)
    }

    /// True for a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    /// Bytes that count against the quota: mapped bytes in whole blocks.
    #[must_use]
    pub fn charged(&self) -> u64 {
        in_blocks(self.mapped)
    }

    /// It was changed.
    pub fn count_change(&mut self) {
        self.change = self.change.saturating_add(1);
    }

    /// What `stat` shows.
    #[must_use]
    pub fn attributes(&self, ino: InodeId) -> Attributes {
        Attributes {
            ino,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: if self.is_directory() { self.entries.saturating_mul(32).max(64) } else { self.size },
            allocated: self.charged(),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            change: self.change,
            acl: self.access_acl,
        }
    }

    /// True if a segment written in `epoch` at `segment` was cut off by a truncation.
    #[must_use]
    pub fn is_cut_off(&self, segment: SegmentIndex, epoch: u32) -> bool {
        self.truncations.iter().any(|cut| segment >= cut.from && epoch < cut.epoch)
    }
}

/// A directory entry. Its key holds the parent and the hash of the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryRecord {
    /// A name.
    Entry {
        /// The name.
        name: Bytes,
        /// What it names.
        ino: InodeId,
        /// The type of that.
        kind: FileKind,
        /// Snapshot epoch in which it was written.
        birth: u64,
    },
    /// Names with the same hash follow, this one's was removed. Only ever at collision index 0, so that a
    /// lookup that finds nothing there is done.
    Removed,
}

impl Record for EntryRecord {
    const NAME: &'static str = "directory entry";
}

/// Where the bytes of a piece are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In the inline value `id` of the segment, from byte `skip` on.
    Inline {
        /// Names the value.
        id: u64,
        /// Byte of the value at which the piece begins.
        skip: u32,
    },
    /// In a chunk, from this byte on.
    Chunk {
        /// The chunk.
        chunk: ChunkId,
        /// First byte in the chunk.
        offset: u64,
    },
    /// Allocated and never written: zeroes.
    Unwritten,
    /// Lost in all copies: reading fails.
    Lost,
}

impl Place {
    /// The place `by` bytes further on.
    #[must_use]
    pub fn advance(self, by: u64) -> Self {
        match self {
            Place::Inline { id, skip } => {
                Place::Inline { id, skip: skip.saturating_add(u32::try_from(by).unwrap_or(u32::MAX)) }
            }
            Place::Chunk { chunk, offset } => Place::Chunk { chunk, offset: offset.saturating_add(by) },
            Place::Unwritten | Place::Lost => self,
        }
    }
}

/// A run of bytes of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// First byte, counted from the start of the segment.
    pub start: u32,
    /// Length in bytes.
    pub length: u32,
    /// Where the bytes are.
    pub place: Place,
    /// Snapshot epoch in which it was written.
    pub birth: u64,
    /// Other segments may refer to the same bytes: freeing asks the back references.
    pub shared: bool,
}

impl Piece {
    /// The byte after its last.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.start.saturating_add(self.length)
    }
}

/// The map of one segment of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// The inode's truncate epoch when it was written.
    pub epoch: u32,
    /// Its pieces, by start; they don't overlap. What none covers is a hole.
    pub pieces: Vec<Piece>,
}

impl Record for SegmentRecord {
    const NAME: &'static str = "extent page";
}

/// What a chunk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChunkKind {
    /// Many small extents: preallocated and zero-filled, so that a sync costs little.
    Small,
    /// Big sequential data.
    Stream,
}

/// A chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRecord {
    /// Counts changes of the replica set.
    pub generation: Generation,
    /// The session that may write it.
    pub writer: SessionId,
    /// The process of that session that may write it.
    pub incarnation: u64,
    /// Servers that hold a replica.
    pub replicas: Vec<ServerId>,
    /// Replicas wanted.
    pub copies: u8,
    /// What it is for.
    pub kind: ChunkKind,
    /// Data bytes it can hold.
    pub capacity: u64,
    /// The end of the last committed extent in it, in bytes.
    pub committed: u64,
    /// No more writes.
    pub sealed: bool,
    /// Blocks that extents refer to.
    pub live_blocks: u64,
    /// Blocks recorded as dead and perhaps trimmed already.
    pub dead_blocks: u64,
}

impl Record for ChunkRecord {
    const NAME: &'static str = "chunk";
}

/// A dead range of a chunk, until every replica has trimmed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadRecord {
    /// Blocks of the range.
    pub blocks: u64,
    /// Replicas that have not trimmed it.
    pub waiting: Vec<ServerId>,
}

impl Record for DeadRecord {
    const NAME: &'static str = "dead range";
}

/// What one server has to do to one of its replicas; given to it with the reply to a heartbeat until it says
/// that it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Delete the replica.
    pub delete: bool,
    /// Seal it at this generation and length.
    pub seal: Option<(Generation, u64)>,
    /// Trim the chunk's dead ranges.
    pub trim: bool,
}

impl Record for TaskRecord {
    const NAME: &'static str = "order";
}

/// A storage server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Where it listens, `host:port`.
    pub address: String,
    /// Labels for placement (`zone`, `host`, …).
    pub labels: BTreeMap<String, String>,
    /// When it joined.
    pub joined: Timestamp,
    /// No new chunks go there.
    pub draining: bool,
}

impl Record for ServerRecord {
    const NAME: &'static str = "storage server";
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// What the client calls itself: its machine, a colon, and what the mount is called there.
    pub client: String,
    /// Incarnation of the client process.
    pub incarnation: u64,
    /// When it began.
    pub opened: Timestamp,
    /// When it ended (closed, expired or evicted); its slots stay for a successor.
    pub ended: Option<Timestamp>,
    /// Bytes promised to it.
    pub bytes_reserved: u64,
    /// An entry of its journal had another outcome than the client expected: the rest is refused.
    pub journal_broken: bool,
}

impl Record for SessionRecord {
    const NAME: &'static str = "session";
}

/// The last operation of one slot of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// Its sequence number.
    pub sequence: u64,
    /// Hash of the request, to tell a retry from another request.
    pub hash: u64,
    /// What came of it.
    pub outcome: Outcome,
}

impl Record for SlotRecord {
    const NAME: &'static str = "slot";
}

/// An inode without a name: it goes when no session holds it open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanRecord {
    /// When its last name went.
    pub since: Timestamp,
    /// No session holds it any more: its segments are being freed and it is not to be opened.
    pub purging: bool,
    /// It never had a name (`O_TMPFILE`) and may get one.
    pub linkable: bool,
}

impl Record for OrphanRecord {
    const NAME: &'static str = "orphan";
}

/// A record without content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker;

impl Record for Marker {
    const NAME: &'static str = "marker";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_newer_format_is_refused_by_name() {
        let mut stored = DeadRecord { blocks: 3, waiting: vec![ServerId(7)] }.encode();
        assert_eq!(DeadRecord::decode(&stored).unwrap().blocks, 3);
        stored[0] = 9;
        let error = DeadRecord::decode(&stored).unwrap_err().to_string();
        assert!(error.contains("dead range") && error.contains("format 9"), "{error}");
        assert!(DeadRecord::decode(&[]).is_err());
        assert!(DeadRecord::decode(&[1, 0xff]).is_err());
    }
}
