//! Requests of the kernel, parsed: [`Operation`] says what is asked, borrowing names and data from the message.

mod parse;

pub use parse::{Malformed, parse, parse_header};

use atoll_client::vfs::{FileLock, LockKind};
use atoll_core::attributes::AttributeChanges;

use crate::abi::input::InHeader;

/// Who asks, and about which inode.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// The whole message's length in bytes, this header included.
    pub len: u32,
    /// The request's number in `linux/fuse.h`.
    pub opcode: u32,
    /// Names the request until it is answered. Bit 63 says that the kernel sends it again.
    pub unique: u64,
    /// The inode that it is about (the parent, where a name follows).
    pub nodeid: u64,
    /// The caller's user, or `u32::MAX` on an idmapped mount where it isn't needed.
    pub uid: u32,
    /// The caller's group, or `u32::MAX` on an idmapped mount where it isn't needed.
    pub gid: u32,
    /// The caller's process, as seen from the namespace of the server; 0 for the kernel itself.
    pub pid: u32,
}

impl From<InHeader> for Header {
    fn from(raw: InHeader) -> Header {
        Header {
            len: raw.len,
            opcode: raw.opcode,
            unique: raw.unique,
            nodeid: raw.nodeid,
            uid: raw.uid,
            gid: raw.gid,
            pid: raw.pid,
        }
    }
}

/// What some requests carry after their arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions<'a> {
    /// The first security label for the new inode: attribute name and value.
    pub security_label: Option<(&'a [u8], &'a [u8])>,
    /// The directory's group, when the caller is a member of it by its supplementary groups.
    pub supplementary_group: Option<u32>,
}

/// The attributes that SETATTR changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// What changes. (The kernel's own ctime, sent with the writeback cache, is left out: the server stamps it.)
    pub changes: AttributeChanges,
    /// The open file that was used (ftruncate).
    pub handle: Option<u64>,
    /// The owner of record locks that mandatory locking would ask about.
    pub lock_owner: Option<u64>,
}

/// A request about a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// The open file.
    pub handle: u64,
    /// Whose lock: one number per process for record locks, per open file for `flock` and OFD locks.
    pub owner: u64,
    /// The range and the kind.
    pub lock: FileLock,
    /// A lock of flock(2), which has nothing to do with record locks.
    pub flock: bool,
}

/// From `l_type`.
fn lock_kind(raw: u32) -> Option<LockKind> {
    match raw as i32 {
        libc::F_RDLCK => Some(LockKind::Read),
        libc::F_WRLCK => Some(LockKind::Write),
        libc::F_UNLCK => Some(LockKind::Unlock),
        _ => None,
    }
}

/// As `l_type`.
pub(crate) fn lock_kind_to_raw(kind: LockKind) -> u32 {
    (match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    }) as u32
}

/// INIT's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Init {
    /// The kernel's major version.
    pub major: u32,
    /// The kernel's minor version.
    pub minor: u32,
    /// Bytes that the kernel reads ahead at most.
    pub max_readahead: u32,
    /// What the kernel can do.
    pub flags: crate::InitFlags,
}

/// One inode that the kernel forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forget {
    /// The inode.
    pub nodeid: u64,
    /// As many lookups as are taken back.
    pub lookups: u64,
}

/// The list of BATCH_FORGET.
#[derive(Clone, Copy, Debug)]
pub struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    /// Each inode in turn.
    pub fn iter(&self) -> impl Iterator<Item = Forget> + '_ {
        use crate::abi::Pod;
        use crate::abi::input::ForgetOne;
        self.0
            .chunks_exact(size_of::<ForgetOne>())
            .filter_map(ForgetOne::read_from)
            .map(|one| Forget { nodeid: one.nodeid, lookups: one.nlookup })
    }
}

/// What the kernel asks. Names are bytes without the terminating NUL; `handle` is what OPEN (or CREATE,
/// OPENDIR, TMPFILE) answered; offsets and sizes are bytes.
#[derive(Clone, Debug)]
#[allow(
    missing_docs,
    reason = "fields carry the names of the system calls' arguments; the rest is told here"
)]
pub enum Operation<'a> {
    /// Finds `name` in the directory. "." and ".." come from handles by number.
    Lookup { name: &'a [u8] },
    /// The kernel drops its knowledge of the inode. No reply.
    Forget { lookups: u64 },
    /// The same for many inodes. No reply.
    BatchForget(Forgets<'a>),
    /// Attributes, by handle where one is open.
    Getattr { handle: Option<u64> },
    /// statx(2): flags and the mask of what is wanted.
    Statx { handle: Option<u64>, flags: u32, mask: u32 },
    /// Changes attributes.
    Setattr(SetAttributes),
    /// A symbolic link's target.
    Readlink,
    /// Makes a symbolic link.
    Symlink { name: &'a [u8], target: &'a [u8], extensions: Extensions<'a> },
    /// Makes a file, device, pipe or socket.
    Mknod { name: &'a [u8], mode: u32, rdev: u32, umask: u32, extensions: Extensions<'a> },
    /// Makes a directory.
    Mkdir { name: &'a [u8], mode: u32, umask: u32, extensions: Extensions<'a> },
    /// Removes a name that is not a directory's.
    Unlink { name: &'a [u8] },
    /// Removes an empty directory.
    Rmdir { name: &'a [u8] },
    /// Renames; `flags` are renameat2(2)'s (0 for the plain request).
    Rename { name: &'a [u8], new_parent: u64, new_name: &'a [u8], flags: u32 },
    /// Gives inode `target` another name in this directory.
    Link { target: u64, new_name: &'a [u8] },
    /// Opens; `flags` are open(2)'s without those that the kernel deals with itself.
    Open { flags: u32, kill_suid_sgid: bool },
    /// Reads. `flags` are the open file's.
    Read { handle: u64, offset: u64, size: u32, flags: u32, lock_owner: Option<u64> },
    /// Writes. `from_cache` says that the page cache writes back, with any handle that is open for writing.
    Write {
        handle: u64,
        offset: u64,
        data: &'a [u8],
        flags: u32,
        from_cache: bool,
        kill_suid_sgid: bool,
        lock_owner: Option<u64>,
    },
    /// Space and inodes.
    Statfs,
    /// The last close of an open file. `flock_unlock`: drop the owner's flock.
    Release { handle: u64, flags: u32, flush: bool, flock_unlock: bool, lock_owner: u64 },
    /// Data (and attributes, unless `datasync`) must be durable.
    Fsync { handle: u64, datasync: bool },
    /// Sets an extended attribute; `flags` are setxattr(2)'s.
    Setxattr { name: &'a [u8], value: &'a [u8], flags: u32, acl_kill_sgid: bool },
    /// Reads an extended attribute; `size` 0 asks for its length alone.
    Getxattr { name: &'a [u8], size: u32 },
    /// Lists extended attributes; `size` 0 asks for the list's length alone.
    Listxattr { size: u32 },
    /// Removes an extended attribute.
    Removexattr { name: &'a [u8] },
    /// A close(2) of an open file: releases the owner's record locks, and may return errors.
    Flush { handle: u64, lock_owner: u64 },
    /// Begins the session.
    Init(Init),
    /// Opens a directory.
    Opendir { flags: u32 },
    /// Lists a directory from cookie `offset`, at most `size` bytes of reply.
    Readdir { handle: u64, offset: u64, size: u32 },
    /// The same with attributes; each entry but "." and ".." counts as a lookup.
    Readdirplus { handle: u64, offset: u64, size: u32 },
    /// The last close of a directory.
    Releasedir { handle: u64, flags: u32 },
    /// A directory's entries must be durable.
    Fsyncdir { handle: u64, datasync: bool },
    /// Who holds a lock that is in the way of this one?
    Getlk(LockRequest),
    /// Takes a lock or fails; `wait`: blocks until it is free or an INTERRUPT comes.
    Setlk { request: LockRequest, wait: bool },
    /// access(2), when the kernel doesn't check permissions itself.
    Access { mask: u32 },
    /// Makes a file and opens it.
    Create {
        name: &'a [u8],
        flags: u32,
        mode: u32,
        umask: u32,
        kill_suid_sgid: bool,
        extensions: Extensions<'a>,
    },
    /// Makes a file without a name in this directory and opens it (`O_TMPFILE`).
    Tmpfile { flags: u32, mode: u32, umask: u32, extensions: Extensions<'a> },
    /// A signal came for the caller of request `unique`.
    Interrupt { unique: u64 },
    /// Block of a block device under the file; nothing sensible to say.
    Bmap { block: u64, block_bytes: u32 },
    /// The mount is gone.
    Destroy,
    /// ioctl(2) with the caller's data.
    Ioctl { handle: u64, flags: u32, command: u32, argument: u64, data: &'a [u8], out_size: u32 },
    /// poll(2).
    Poll { handle: u64, kernel_handle: u64, flags: u32, events: u32 },
    /// fallocate(2).
    Fallocate { handle: u64, offset: u64, length: u64, mode: u32 },
    /// `SEEK_DATA` and `SEEK_HOLE`.
    Lseek { handle: u64, offset: u64, whence: u32 },
    /// copy_file_range(2) to inode `to_inode`. `wide`: the reply's count has 64 bits.
    CopyFileRange {
        handle: u64,
        offset: u64,
        to_inode: u64,
        to_handle: u64,
        to_offset: u64,
        length: u64,
        flags: u64,
        wide: bool,
    },
    /// syncfs(2). The kernel sends it to virtiofs and block-device servers only.
    Syncfs,
    /// Anything else. Answered ENOSYS.
    Unknown,
}
