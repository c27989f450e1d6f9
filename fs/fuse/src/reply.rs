//! The filesystem's answers as the kernel's structures.

use std::time::Duration;

use atoll_client::vfs::{AttributeReply, DirEntry, Entry, Opened, StatFs};
use atoll_core::attributes::{Attributes, Timestamp};

use crate::abi::Pod;
use crate::abi::flags::{InitFlags, open_reply};
use crate::abi::output::*;

/// `st_blksize`: what programs should read and write at a time, in bytes.
const IO_BYTES: u32 = 128 << 10;
/// `STATX_BASIC_STATS | STATX_BTIME`
const STATX_MASK: u32 = 0x0fff;
/// Largest `namelen` for alignment of directory entries.
const DIRENT_ALIGN: usize = 8;

fn attr(attributes: &Attributes) -> Attr {
    let Attributes { atime, mtime, ctime, .. } = attributes;
    Attr {
        ino: attributes.ino.0,
        size: attributes.size,
        blocks: attributes.allocated.div_ceil(512),
        atime: atime.seconds,
        mtime: mtime.seconds,
        ctime: ctime.seconds,
        atimensec: atime.nanos,
        mtimensec: mtime.nanos,
        ctimensec: ctime.nanos,
        mode: attributes.mode,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: IO_BYTES,
        flags: 0,
    }
}

/// `fuse_entry_out`
pub(crate) fn entry(entry: &Entry, node: u64) -> EntryOut {
    let (entry_valid, entry_valid_nsec) = seconds(entry.entry_ttl);
    let (attr_valid, attr_valid_nsec) = seconds(entry.attribute_ttl);
    EntryOut {
        nodeid: node,
        generation: entry.generation,
        entry_valid,
        attr_valid,
        entry_valid_nsec,
        attr_valid_nsec,
        attr: attr(&entry.attributes),
    }
}

/// `fuse_attr_out`
pub(crate) fn attributes(reply: &AttributeReply) -> AttrOut {
    let (attr_valid, attr_valid_nsec) = seconds(reply.ttl);
    AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attr(&reply.attributes) }
}

/// `fuse_statx_out`
pub(crate) fn statx(reply: &AttributeReply) -> StatxOut {
    let a = &reply.attributes;
    let (attr_valid, attr_valid_nsec) = seconds(reply.ttl);
    let time = |t: Timestamp| SxTime { tv_sec: t.seconds, tv_nsec: t.nanos, reserved: 0 };
    // `rdev` is in the encoding of `new_encode_dev`: minor's low 8 bits, 12 bits of major, the rest of minor.
    let (rdev_major, rdev_minor) = (a.rdev >> 8 & 0xfff, a.rdev & 0xff | a.rdev >> 12 & 0xfff00);
    StatxOut {
        attr_valid,
        attr_valid_nsec,
        stat: Statx {
            mask: STATX_MASK,
            blksize: IO_BYTES,
            nlink: a.nlink,
            uid: a.uid,
            gid: a.gid,
            mode: a.mode as u16,
            ino: a.ino.0,
            size: a.size,
            blocks: a.allocated.div_ceil(512),
            atime: time(a.atime),
            btime: time(a.btime),
            ctime: time(a.ctime),
            mtime: time(a.mtime),
            rdev_major,
            rdev_minor,
            ..Statx::default()
        },
        ..StatxOut::default()
    }
}

/// `fuse_open_out`. `negotiated`: where locks are requests, FLUSH is what lets go of a process's record locks, also of those that it
/// took through a descriptor that only reads. (A mount that a predecessor negotiated may be such a one.)
pub(crate) fn opened(opened: &Opened, negotiated: InitFlags) -> OpenOut {
    let no_flush = opened.no_flush && !negotiated.contains(InitFlags::POSIX_LOCKS);
    let flags = [
        (opened.direct_io, open_reply::DIRECT_IO),
        (opened.keep_cache, open_reply::KEEP_CACHE),
        (opened.cache_dir, open_reply::CACHE_DIR),
        (opened.parallel_direct_writes, open_reply::PARALLEL_DIRECT_WRITES),
        (no_flush, open_reply::NOFLUSH),
    ];
    let open_flags = flags.into_iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
    OpenOut { fh: opened.handle, open_flags, backing_id: 0 }
}

/// `fuse_statfs_out`
pub(crate) fn statfs(statfs: &StatFs) -> Kstatfs {
    Kstatfs {
        blocks: statfs.blocks,
        bfree: statfs.blocks_free,
        bavail: statfs.blocks_free,
        files: statfs.inodes,
        ffree: statfs.inodes_free,
        bsize: statfs.block_bytes,
        namelen: statfs.name_bytes_max,
        frsize: statfs.block_bytes,
        ..Kstatfs::default()
    }
}

fn seconds(duration: Duration) -> (u64, u32) {
    (duration.as_secs(), duration.subsec_nanos())
}

/// A reply to READDIR or READDIRPLUS while it fills.
pub(crate) struct DirectoryBuffer {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl DirectoryBuffer {
    /// An empty one of at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> DirectoryBuffer {
        DirectoryBuffer { bytes: Vec::with_capacity(bytes_max), bytes_max }
    }

    /// Adds an entry; false, and nothing added, if there is no room for it. `node`: what the kernel is to call it.
    pub fn push(&mut self, dir_entry: &DirEntry, plus: bool, node: impl Fn(&[u8], &Entry) -> u64) -> bool {
        let fixed = if plus { size_of::<EntryOut>() } else { 0 } + size_of::<Dirent>();
        let end = (self.bytes.len() + fixed + dir_entry.name.len()).next_multiple_of(DIRENT_ALIGN);
        if end > self.bytes_max {
            return false;
        }
        if plus {
            // Node id 0 says that the kernel shall not count a lookup: "." and "..", or what has no attributes.
            let none = EntryOut::default();
            let out = dir_entry.entry.as_ref();
            let out = out.map_or(none, |found| entry(found, node(&dir_entry.name, found)));
            self.bytes.extend_from_slice(out.as_bytes());
        }
        let dirent = Dirent {
            ino: dir_entry.ino.0,
            off: dir_entry.cookie,
            namelen: dir_entry.name.len() as u32,
            kind: dir_entry.kind.d_type(),
        };
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(&dir_entry.name);
        self.bytes.resize(end, 0);
        true
    }

    /// What was added.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::attributes::FileKind;
    use atoll_core::ids::InodeId;
    use bytes::Bytes;

    use super::*;

    fn number(_: &[u8], entry: &Entry) -> u64 {
        entry.attributes.ino.0
    }

    fn named(name: &'static str) -> DirEntry {
        DirEntry {
            name: Bytes::from_static(name.as_bytes()),
            ino: InodeId(9),
            kind: FileKind::File,
            cookie: 77,
            entry: None,
        }
    }

    #[test]
    fn directory_entries_are_aligned_and_bounded() {
        let mut buffer = DirectoryBuffer::new(64);
        assert!(buffer.push(&named("a"), false, number), "24 + 1, rounded to 32");
        assert!(buffer.push(&named("12345678"), false, number), "24 + 8 fill it exactly");
        assert!(!buffer.push(&named("b"), false, number));
        assert_eq!(buffer.bytes().len(), 64);
        let second = Dirent::read_from(&buffer.bytes()[32..]).expect("24 bytes");
        assert_eq!((second.ino, second.off, second.namelen, second.kind), (9, 77, 8, 8));
        assert_eq!(&buffer.bytes()[56..64], b"12345678");
    }

    #[test]
    fn entries_without_attributes_are_not_lookups() {
        let mut buffer = DirectoryBuffer::new(4096);
        assert!(buffer.push(&named("."), true, number));
        let entry = EntryOut::read_from(buffer.bytes()).expect("128 bytes");
        assert_eq!(entry.nodeid, 0);
        assert_eq!(buffer.bytes().len(), 128 + 24 + 8);
    }

    #[test]
    fn device_numbers() {
        let attributes = Attributes {
            ino: InodeId(2),
            mode: 0o020_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            // Major 0x123, minor 0x45678.
            rdev: 0x45678 & 0xff | 0x123 << 8 | (0x45678 & !0xff) << 12,
            size: 0,
            allocated: 4097,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            change: 0,
            acl: false,
        };
        let out = statx(&AttributeReply { attributes, ttl: Duration::from_millis(1500) });
        assert_eq!((out.stat.rdev_major, out.stat.rdev_minor), (0x123, 0x45678));
        assert_eq!((out.attr_valid, out.attr_valid_nsec), (1, 500_000_000));
        assert_eq!(out.stat.blocks, 9);
    }

    #[test]
    fn who_only_reads_is_not_flushed_unless_locks_are_requests() {
        let flags =
            |no_flush, negotiated| opened(&Opened { no_flush, ..Opened::default() }, negotiated).open_flags;
        assert_eq!(flags(true, InitFlags::EMPTY), open_reply::NOFLUSH);
        assert_eq!(flags(false, InitFlags::EMPTY), 0);
        assert_eq!(flags(true, InitFlags::POSIX_LOCKS | InitFlags::ASYNC_READ), 0);
    }
}
