//! Flag bits of the interface, grouped by the message that carries them.

#![allow(dead_code, reason = "the interface is written down whole, not as far as it is used")]

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Not};

/// The flags of INIT: the low half travels in `flags`, the high half in `flags2` (with [`InitFlags::INIT_EXT`]).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct InitFlags(pub u64);

macro_rules! init_flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        impl InitFlags {
            $($(#[$doc])* pub const $name: InitFlags = InitFlags(1 << $bit);)*
            const NAMES: &'static [(InitFlags, &'static str)] = &[$((InitFlags::$name, stringify!($name)),)*];
        }
    };
}

init_flags! {
    /// Several READs of one file may be under way.
    ASYNC_READ = 0;
    /// Record locks are asked of the server.
    POSIX_LOCKS = 1;
    /// OPEN carries `O_TRUNC`.
    ATOMIC_O_TRUNC = 3;
    /// LOOKUP of "." and ".." works (for handles by number: NFS export, `open_by_handle_at`).
    EXPORT_SUPPORT = 4;
    /// WRITEs larger than a page.
    BIG_WRITES = 5;
    /// The server applies the umask.
    DONT_MASK = 6;
    /// flock(2) is asked of the server.
    FLOCK_LOCKS = 10;
    /// The kernel drops a file's pages when it sees another mtime or size.
    AUTO_INVAL_DATA = 12;
    /// READDIRPLUS instead of READDIR.
    DO_READDIRPLUS = 13;
    /// READDIRPLUS only while lookups follow.
    READDIRPLUS_AUTO = 14;
    /// Direct I/O of one caller is cut into requests that run side by side.
    ASYNC_DIO = 15;
    /// The kernel collects writes in its page cache and trusts its own size and times.
    WRITEBACK_CACHE = 16;
    /// Lookups and listings of one directory may run side by side.
    PARALLEL_DIROPS = 18;
    /// ACLs are checked by the kernel from the extended attributes.
    POSIX_ACL = 20;
    /// Reading the device after an abort says ECONNABORTED instead of ENODEV.
    ABORT_ERROR = 21;
    /// INIT's reply has `max_pages`.
    MAX_PAGES = 22;
    /// READLINK's replies are cached.
    CACHE_SYMLINKS = 23;
    /// OPENDIR may be answered ENOSYS: then none is sent again.
    NO_OPENDIR_SUPPORT = 24;
    /// Pages are dropped only when the server says so.
    EXPLICIT_INVAL_DATA = 25;
    /// The server clears set-id bits when a request says so.
    HANDLE_KILLPRIV_V2 = 28;
    /// SETXATTR has its longer form.
    SETXATTR_EXT = 29;
    /// INIT has `flags2`.
    INIT_EXT = 30;
    /// Requests that make an inode carry its security label.
    SECURITY_CTX = 32;
    /// Requests that make an inode carry the caller's supplementary group that owns the directory.
    CREATE_SUPP_GROUP = 34;
    /// An entry can be expired instead of dropped.
    HAS_EXPIRE_ONLY = 35;
    /// Shared mappings of files that are open for direct I/O.
    DIRECT_IO_ALLOW_MMAP = 36;
    /// Files may be backed by a local file.
    PASSTHROUGH = 37;
    /// Handles by number are refused.
    NO_EXPORT_SUPPORT = 38;
    /// Unanswered requests can be had again (`FUSE_NOTIFY_RESEND`).
    HAS_RESEND = 39;
    /// Idmapped mounts of this filesystem (needs `default_permissions`).
    ALLOW_IDMAP = 40;
    /// Requests over io_uring.
    OVER_IO_URING = 41;
    /// The kernel ends requests that stay unanswered for too long.
    REQUEST_TIMEOUT = 42;
}

impl InitFlags {
    /// No flag at all.
    pub const EMPTY: InitFlags = InitFlags(0);

    /// Whether all of `other` are set.
    pub const fn contains(self, other: InitFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for InitFlags {
    type Output = InitFlags;
    fn bitor(self, other: InitFlags) -> InitFlags {
        InitFlags(self.0 | other.0)
    }
}

impl BitOrAssign for InitFlags {
    fn bitor_assign(&mut self, other: InitFlags) {
        self.0 |= other.0;
    }
}

impl BitAnd for InitFlags {
    type Output = InitFlags;
    fn bitand(self, other: InitFlags) -> InitFlags {
        InitFlags(self.0 & other.0)
    }
}

impl Not for InitFlags {
    type Output = InitFlags;
    fn not(self) -> InitFlags {
        InitFlags(!self.0)
    }
}

impl fmt::Debug for InitFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut list = f.debug_set();
        for (flag, name) in InitFlags::NAMES {
            if self.contains(*flag) {
                list.entry(&format_args!("{name}"));
                rest = rest & !*flag;
            }
        }
        if rest != InitFlags::EMPTY {
            list.entry(&format_args!("{:#x}", rest.0));
        }
        list.finish()
    }
}

/// `fuse_setattr_in.valid`
pub mod setattr {
    #![allow(missing_docs)]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const LOCKOWNER: u32 = 1 << 9;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `fuse_open_out.open_flags`: what the kernel may do with an open file.
pub mod open_reply {
    /// Past the page cache.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Pages from before this open stay.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// lseek(2) fails.
    pub const NONSEEKABLE: u32 = 1 << 2;
    /// The kernel may keep this directory's listing.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// No file position at all.
    pub const STREAM: u32 = 1 << 4;
    /// No FLUSH at close (unless the writeback cache is on).
    pub const NOFLUSH: u32 = 1 << 5;
    /// Direct writes that don't extend the file may run side by side.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// `fuse_open_in.open_flags`, `fuse_create_in.open_flags`: clear set-id bits when the file is truncated.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `fuse_getattr_in.getattr_flags`: `fh` is valid.
pub const GETATTR_FH: u32 = 1 << 0;
/// `fuse_lk_in.lk_flags`: flock(2), not a record lock.
pub const LK_FLOCK: u32 = 1 << 0;
/// `fuse_write_in.write_flags`: from the page cache; the handle is a guess.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `fuse_write_in.write_flags`: `lock_owner` is valid.
pub const WRITE_LOCKOWNER: u32 = 1 << 1;
/// `fuse_write_in.write_flags`: clear set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fuse_read_in.read_flags`: `lock_owner` is valid.
pub const READ_LOCKOWNER: u32 = 1 << 1;
/// `fuse_release_in.release_flags`: a FLUSH is due as well.
pub const RELEASE_FLUSH: u32 = 1 << 0;
/// `fuse_release_in.release_flags`: drop the owner's flock.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `fuse_fsync_in.fsync_flags`: data alone.
pub const FSYNC_DATASYNC: u32 = 1 << 0;
/// `fuse_setxattr_in.setxattr_flags`: clear the set-gid bit (an ACL was changed by a stranger to the group).
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `fuse_poll_in.flags`: tell when it changes.
pub const POLL_SCHEDULE_NOTIFY: u32 = 1 << 0;
/// `fuse_notify_inval_entry_out.flags`: expire the entry instead of dropping it.
pub const EXPIRE_ONLY: u32 = 1 << 0;
/// The type of the extension that carries supplementary groups; smaller numbers are counts of security labels.
pub const EXT_GROUPS: u32 = 32;
/// Security labels in one request, at most; an extension "type" up to this is a count of them.
pub const SECURITY_LABELS_MAX: u32 = 31;
