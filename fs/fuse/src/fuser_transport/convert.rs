//! Between `fuser`'s types and ours.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use atoll_client::vfs::{Caller, DirEntry, Entry, FileLock, LockKind, Opened};
use atoll_core::attributes::{Attributes, FileKind, TimeChange, Timestamp};
use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyXattr, Request, TimeOrNow,
};

/// Bytes that programs should read and write at a time.
const IO_BYTES: u32 = 128 << 10;

pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    let (uid, gid, pid) = (request.uid(), request.gid(), request.pid());
    Caller { uid, gid, pid, umask, ..Caller::default() }
}

pub(super) fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

pub(super) fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let base = if time.seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    };
    base.and_then(|base| base.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Timestamp { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            // Nanoseconds count forwards, before 1970 too.
            let borrow = i64::from(before.subsec_nanos() > 0);
            let nanos = (1_000_000_000 - before.subsec_nanos()) % 1_000_000_000;
            Timestamp { seconds: -(before.as_secs() as i64) - borrow, nanos }
        }
    }
}

pub(super) fn time_change(time: TimeOrNow) -> TimeChange {
    match time {
        TimeOrNow::Now => TimeChange::Now,
        TimeOrNow::SpecificTime(time) => TimeChange::To(timestamp(time)),
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::File => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

pub(super) fn file_attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size: attributes.size,
        blocks: attributes.allocated.div_ceil(512),
        atime: system_time(attributes.atime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: system_time(attributes.btime),
        kind: file_type(attributes.kind()),
        perm: (attributes.mode & 0o7777) as u16,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: IO_BYTES,
        flags: 0,
    }
}

/// For "." and "..", of which the kernel looks at nothing but number and type.
pub(super) fn placeholder(entry: &DirEntry) -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(entry.ino.0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: file_type(entry.kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: IO_BYTES,
        flags: 0,
    }
}

pub(super) fn send_entry(reply: ReplyEntry, entry: Entry) {
    let generation = Generation(entry.generation);
    reply.entry_with_ttls(&entry.attribute_ttl, &entry.entry_ttl, &file_attr(&entry.attributes), generation);
}

pub(super) fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_CACHE_DIR, opened.cache_dir);
    flags.set(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES, opened.parallel_direct_writes);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
    flags
}

pub(super) fn send_opened(reply: ReplyOpen, opened: Opened) {
    reply.opened(FileHandle(opened.handle), open_flags(&opened));
}

pub(super) fn send_done(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

pub(super) fn send_xattr(size: u32) -> impl FnOnce(ReplyXattr, Bytes) + Send {
    move |reply, value| match size {
        0 => reply.size(value.len() as u32),
        _ if value.len() > size as usize => reply.error(Errno::ERANGE),
        _ => reply.data(&value),
    }
}

pub(super) fn lock(start: u64, end: u64, kind: i32, pid: u32) -> Option<FileLock> {
    let kind = match kind {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return None,
    };
    Some(FileLock { kind, start, end, pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive() {
        for time in [
            Timestamp { seconds: -2, nanos: 250_000_000 },
            Timestamp { seconds: -1, nanos: 0 },
            Timestamp { seconds: 0, nanos: 1 },
            Timestamp { seconds: 1_700_000_000, nanos: 999_999_999 },
        ] {
            assert_eq!(timestamp(system_time(time)), time);
        }
    }
}
