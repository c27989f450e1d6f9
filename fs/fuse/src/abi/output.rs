//! What the kernel is told. Field for field `linux/fuse.h`, whose comments are the reference.

#![allow(missing_docs)]

use super::abi;
use super::input::FileLock;

abi! {
    /// Begins every reply (`error` is 0 or a negated errno) and every notification (`unique` is 0, `error` its code).
    struct OutHeader { len: u32, error: i32, unique: u64, }
    struct InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    struct Attr {
        ino: u64, size: u64, blocks: u64, atime: i64, mtime: i64, ctime: i64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    struct EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    struct AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    struct SxTime { tv_sec: i64, tv_nsec: u32, reserved: i32, }
    struct Statx {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: [u16; 1],
        ino: u64, size: u64, blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime,
        mtime: SxTime, rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    struct StatxOut { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx, }
    struct OpenOut { fh: u64, open_flags: u32, backing_id: i32, }
    struct CreateOut { entry: EntryOut, open: OpenOut, }
    struct WriteOut { size: u32, padding: u32, }
    struct Kstatfs {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    struct GetxattrOut { size: u32, padding: u32, }
    struct LkOut { lk: FileLock, }
    struct BmapOut { block: u64, }
    struct IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    struct PollOut { revents: u32, padding: u32, }
    struct LseekOut { offset: u64, }
    struct CopyFileRangeOut { bytes_copied: u64, }
    /// Followed by the name and zeroes up to a multiple of 8 bytes.
    struct Dirent { ino: u64, off: u64, namelen: u32, kind: u32, }
    struct NotifyInvalInode { ino: u64, off: i64, len: i64, }
    struct NotifyInvalEntry { parent: u64, namelen: u32, flags: u32, }
    struct NotifyDelete { parent: u64, child: u64, namelen: u32, padding: u32, }
    struct NotifyStore { nodeid: u64, offset: u64, size: u32, padding: u32, }
}
