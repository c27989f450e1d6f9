//! The keys. Numbers are big-endian, so that a directory or a file is one range.
//!
//! | family | key | value |
//! | --- | --- | --- |
//! | inodes | inode | [`InodeRecord`](crate::records::InodeRecord) |
//! | names | `e` parent, hash (48 bits), collision index (15 bits) | [`EntryRecord`](crate::records::EntryRecord) |
//! | names | `p` inode, parent, name | marker |
//! | extents | inode, segment | [`SegmentRecord`](crate::records::SegmentRecord) |
//! | inline | inode, segment, id | the bytes themselves |
//! | xattrs | inode, name | the bytes themselves |
//! | system | `S` | [`Superblock`](crate::records::Superblock) |
//! | system | `c` chunk | [`ChunkRecord`](crate::records::ChunkRecord) |
//! | system | `b` chunk, inode, segment | marker: the segment may refer to the chunk |
//! | system | `d` chunk, first block | [`DeadRecord`](crate::records::DeadRecord) |
//! | system | `q` server, chunk | [`TaskRecord`](crate::records::TaskRecord) |
//! | system | `v` server | [`ServerRecord`](crate::records::ServerRecord) |
//! | system | `n` session | [`SessionRecord`](crate::records::SessionRecord) |
//! | system | `w` session, chunk | marker: the session writes the (open) chunk |
//! | system | `s` session, slot | [`SlotRecord`](crate::records::SlotRecord) |
//! | system | `o` inode | [`OrphanRecord`](crate::records::OrphanRecord) |
//! | system | `t` inode | marker: the inode has pending truncations |
//! | system | `i` inode, segment | marker: the segment of a big file has inline pieces to be moved to a chunk |
//! | system | `l` inode, session, owner | [`LockRecord`](crate::locks::LockRecord): record locks |
//! | system | `f` inode, session, owner | [`LockRecord`](crate::locks::LockRecord): `flock` locks |
//! | system | `k` session, inode | marker: the session has locks on the inode |
//! | system | `u` level | when the feature level was raised to this one (in builds with the feature `next-release`) |
//! | system | `A…` | the metadata server's own (applied position and the like) |

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::ids::{ChunkId, InodeId, SegmentIndex, ServerId, SessionId, SlotId};
use crate::locks::LockClass;

/// Bits of the collision index in a key and in a cookie.
const COLLISION_BITS: u32 = 15;
/// Names of one directory with the same hash.
pub const COLLISIONS_MAX: u16 = 1 << COLLISION_BITS;

/// Builds a key from parts.
struct Key(Vec<u8>);

impl Key {
    fn new(tag: Option<u8>) -> Self {
        let mut bytes = Vec::with_capacity(32);
        bytes.extend(tag);
        Key(bytes)
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

fn number(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

/// Key of the record of a feature level.
#[cfg(feature = "next-release")]
#[must_use]
pub fn level(level: u32) -> Vec<u8> {
    Key::new(Some(b'u')).u64(u64::from(level)).0
}

/// Key of an inode.
#[must_use]
pub fn inode(ino: InodeId) -> Vec<u8> {
    Key::new(None).u64(ino.0).0
}

/// The 48 bits that order `name` in its directory; never 0, so that no cookie is one of the first few numbers.
#[must_use]
pub fn name_hash(key: (u64, u64), name: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(key.0, key.1);
    hasher.write(name);
    (hasher.finish() >> 16).max(1)
}

/// Key of a directory entry.
#[must_use]
pub fn entry(parent: InodeId, hash: u64, collision: u16) -> Vec<u8> {
    entry_at(parent, cookie(hash, collision))
}

/// Key of the directory entry with this cookie.
#[must_use]
pub fn entry_at(parent: InodeId, cookie: u64) -> Vec<u8> {
    Key::new(Some(b'e')).u64(parent.0).u64(cookie).0
}

/// A directory's range of entries begins here.
#[must_use]
pub fn entries(parent: InodeId) -> Vec<u8> {
    Key::new(Some(b'e')).u64(parent.0).0
}

/// The position of an entry in its directory: 63 bits, stable while the entry exists.
#[must_use]
pub fn cookie(hash: u64, collision: u16) -> u64 {
    (hash << COLLISION_BITS) | u64::from(collision)
}

/// The cookie in the key of an entry.
#[must_use]
pub fn cookie_of(key: &[u8]) -> Option<u64> {
    number(key, 9)
}

/// Key of the record that `name` in `parent` names `ino`.
#[must_use]
pub fn parent(ino: InodeId, parent: InodeId, name: &[u8]) -> Vec<u8> {
    Key::new(Some(b'p')).u64(ino.0).u64(parent.0).bytes(name).0
}

/// The range of an inode's parents begins here.
#[must_use]
pub fn parents(ino: InodeId) -> Vec<u8> {
    Key::new(Some(b'p')).u64(ino.0).0
}

/// Parent and name in the key of a parent record.
#[must_use]
pub fn parent_of(key: &[u8]) -> Option<(InodeId, &[u8])> {
    Some((InodeId(number(key, 9)?), key.get(17..)?))
}

/// Key of a segment.
#[must_use]
pub fn segment(ino: InodeId, segment: SegmentIndex) -> Vec<u8> {
    Key::new(None).u64(ino.0).u64(segment.0).0
}

/// The segment in the key of one.
#[must_use]
pub fn segment_of(key: &[u8]) -> Option<SegmentIndex> {
    number(key, 8).map(SegmentIndex)
}

/// Key of an inline value.
#[must_use]
pub fn inline(ino: InodeId, segment: SegmentIndex, id: u64) -> Vec<u8> {
    Key::new(None).u64(ino.0).u64(segment.0).u64(id).0
}

/// Key of an extended attribute.
#[must_use]
pub fn xattr(ino: InodeId, name: &[u8]) -> Vec<u8> {
    Key::new(None).u64(ino.0).bytes(name).0
}

/// The name in the key of an extended attribute.
#[must_use]
pub fn xattr_name_of(key: &[u8]) -> Option<&[u8]> {
    key.get(8..)
}

/// Key of the superblock.
#[must_use]
pub fn superblock() -> Vec<u8> {
    vec![b'S']
}

macro_rules! tagged {
    ($($(#[$doc:meta])* $name:ident, $all:ident, $tag:literal, ($($arg:ident : $ty:ty),+);)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name($($arg: $ty),+) -> Vec<u8> {
                Key::new(Some($tag))$(.u64(u64::from($arg.0)))+.0
            }

            /// The range of all such keys begins here.
            #[must_use]
            pub fn $all() -> Vec<u8> {
                vec![$tag]
            }
        )*
    };
}

tagged! {
    /// Key of a chunk.
    chunk, chunks, b'c', (chunk: ChunkId);
    /// Key of a back reference.
    back_reference, all_back_references, b'b', (chunk: ChunkId, ino: InodeId, segment: SegmentIndex);
    /// The range of a chunk's back references begins here.
    back_references, every_back_reference, b'b', (chunk: ChunkId);
    /// Key of a task to a server about a chunk.
    task, all_tasks, b'q', (server: ServerId, chunk: ChunkId);
    /// The range of a server's tasks begins here.
    tasks, every_task, b'q', (server: ServerId);
    /// Key of a storage server.
    server, servers, b'v', (server: ServerId);
    /// Key of a session.
    session, sessions, b'n', (session: SessionId);
    /// Key of the marker that a session writes an open chunk.
    written, all_written, b'w', (session: SessionId, chunk: ChunkId);
    /// The range of the open chunks that a session writes begins here.
    written_by, every_written, b'w', (session: SessionId);
    /// Key of a slot.
    slot, all_slots, b's', (session: SessionId, slot: SlotId);
    /// The range of a session's slots begins here.
    slots, every_slot, b's', (session: SessionId);
    /// Key of an orphan.
    orphan, orphans, b'o', (ino: InodeId);
    /// Key of the marker that an inode has pending truncations.
    truncation, truncations, b't', (ino: InodeId);
    /// Key of the marker that a segment has inline pieces to be moved.
    migration, migrations, b'i', (ino: InodeId, segment: SegmentIndex);
    /// Key of the marker that a session has locks on an inode.
    locked, all_locked, b'k', (session: SessionId, ino: InodeId);
    /// The range of the inodes that a session has locks on begins here.
    locked_by, every_locked, b'k', (session: SessionId);
    /// The range of a chunk's dead ranges begins here.
    dead_ranges, all_dead_ranges, b'd', (chunk: ChunkId);
}

fn lock_tag(class: LockClass) -> u8 {
    match class {
        LockClass::Record => b'l',
        LockClass::Flock => b'f',
    }
}

/// Key of an owner's locks of a class on an inode.
#[must_use]
pub fn lock(class: LockClass, ino: InodeId, session: SessionId, owner: u64) -> Vec<u8> {
    Key::new(Some(lock_tag(class))).u64(ino.0).u64(session.0).u64(owner).0
}

/// The range of a session's locks of a class on an inode begins here.
#[must_use]
pub fn locks_of_session(class: LockClass, ino: InodeId, session: SessionId) -> Vec<u8> {
    Key::new(Some(lock_tag(class))).u64(ino.0).u64(session.0).0
}

/// The range of all locks of a class on an inode begins here.
#[must_use]
pub fn locks_of_inode(class: LockClass, ino: InodeId) -> Vec<u8> {
    Key::new(Some(lock_tag(class))).u64(ino.0).0
}

/// The range of all locks of a class begins here.
#[must_use]
pub fn all_locks(class: LockClass) -> Vec<u8> {
    vec![lock_tag(class)]
}

/// Key of a dead range of a chunk.
#[must_use]
pub fn dead(chunk: ChunkId, block: u64) -> Vec<u8> {
    Key::new(Some(b'd')).u64(chunk.0).u64(block).0
}

/// The first number after the tag of a key of the system family.
#[must_use]
pub fn first_number(key: &[u8]) -> Option<u64> {
    number(key, 1)
}

/// The second number after the tag of a key of the system family.
#[must_use]
pub fn second_number(key: &[u8]) -> Option<u64> {
    number(key, 9)
}

/// The third number after the tag of a key of the system family.
#[must_use]
pub fn third_number(key: &[u8]) -> Option<u64> {
    number(key, 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_positive_as_off_t_and_leave_the_first_numbers_free() {
        let highest = cookie((1 << 48) - 1, COLLISIONS_MAX - 1);
        assert!(i64::try_from(highest).is_ok());
        assert!(cookie(name_hash((1, 2), b"x"), 0) > 2);
        let key = entry(InodeId(5), 77, 3);
        assert_eq!(cookie_of(&key), Some(cookie(77, 3)));
        assert_eq!(entry_at(InodeId(5), cookie(77, 3)), key);
    }

    #[test]
    fn keys_of_one_directory_are_one_range() {
        let start = entries(InodeId(5));
        let end = crate::store::prefix_end(&start);
        let key = entry(InodeId(5), 1, 0);
        assert!(start < key && key < end);
        let other = entry(InodeId(6), 1, 0);
        assert!(other >= end);
    }
}
