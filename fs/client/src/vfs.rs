//! The filesystem as a kernel sees it: one method per request, POSIX in meaning, independent of the
//! transport that the requests come by. `SEMANTICS.md` is its contract.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::attributes::{AttributeChanges, Attributes, FileKind};
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use bytes::Bytes;
use tokio::sync::Notify;

/// The kernel's errno, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl From<FsError> for Errno {
    fn from(error: FsError) -> Self {
        Errno(error.errno())
    }
}

impl From<i32> for Errno {
    fn from(errno: i32) -> Self {
        Errno(errno)
    }
}

/// What every operation returns.
pub type Result<T> = std::result::Result<T, Errno>;

/// Tells a waiting operation that its caller got a signal. Cheap to clone; the default never fires.
#[derive(Clone, Default, Debug)]
pub struct Interrupt(Option<Arc<Notify>>);

impl Interrupt {
    /// A token and the handle that fires it (`Notify::notify_one`, which is remembered until it is waited for).
    #[must_use]
    pub fn new() -> (Self, Arc<Notify>) {
        let notify = Arc::new(Notify::new());
        (Interrupt(Some(Arc::clone(&notify))), notify)
    }

    /// Completes when the caller was interrupted; never, if it can't be.
    pub async fn interrupted(&self) {
        match &self.0 {
            Some(notify) => notify.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Whoever waited for it has gone on with something else: it fires again for who waits next.
    pub fn renew(&self) {
        if let Some(notify) = &self.0 {
            notify.notify_one();
        }
    }
}

/// Who asks.
#[derive(Clone, Default, Debug)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Thread id of the caller, 0 for the kernel itself.
    pub pid: u32,
    /// Its umask, for operations that make something. (Without DONT_MASK the kernel has applied it already.)
    pub umask: u32,
    /// Fires when the caller got a signal.
    pub interrupt: Interrupt,
    /// The number of the kernel's request, by which a successor of this process knows it again; numbers ascend for as long as
    /// the mount lives. 0: it has none.
    pub request: u64,
}

/// An inode as a reply to lookup and to what makes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its attributes (with its number).
    pub attributes: Attributes,
    /// Generation, for export by NFS.
    pub generation: u64,
    /// How long the kernel may keep the attributes.
    pub attribute_ttl: Duration,
    /// How long the kernel may keep the name.
    pub entry_ttl: Duration,
}

/// Attributes and how long the kernel may keep them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeReply {
    /// The attributes.
    pub attributes: Attributes,
    /// How long the kernel may keep them.
    pub ttl: Duration,
}

/// An opened file or directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Handle, given back with every request on it.
    pub handle: u64,
    /// The kernel may keep the pages it has of this file (`FOPEN_KEEP_CACHE`).
    pub keep_cache: bool,
    /// Reads and writes bypass the kernel's pages (`FOPEN_DIRECT_IO`).
    pub direct_io: bool,
    /// Directory entries may be kept by the kernel (`FOPEN_CACHE_DIR`).
    pub cache_dir: bool,
    /// Several direct writes may be in flight at once (`FOPEN_PARALLEL_DIRECT_WRITES`).
    pub parallel_direct_writes: bool,
    /// A descriptor that only reads: closing it need be no request (`FOPEN_NOFLUSH`), since there is nothing to write and nothing to
    /// be told, unless locks are requests.
    pub no_flush: bool,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Bytes,
    /// The inode it names.
    pub ino: InodeId,
    /// Its type.
    pub kind: FileKind,
    /// The position after it, for the next `readdir`.
    pub cookie: u64,
    /// With `plus`: what lookup would return. `None` for `.` and `..`, whose lookups aren't counted.
    pub entry: Option<Entry>,
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Capacity in blocks of `block_bytes`.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// Bytes per block.
    pub block_bytes: u32,
    /// Longest name in bytes.
    pub name_bytes_max: u32,
}

/// What kind of lock request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// Let go.
    Unlock,
}

/// A lock of a byte range, or of a whole file (`flock`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// Shared, exclusive or unlock.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `i64::MAX` is the end of the file.
    pub end: u64,
    /// Process that holds it, as `F_GETLK` shows it.
    pub pid: u32,
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekKind {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`.
    Hole,
}

/// How a WRITE is meant. An open file's flags can change after it was opened, so each request has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Clear the set-id bits (`FUSE_WRITE_KILL_SUIDGID`).
    pub kill_priv: bool,
    /// The kernel writes pages of a mapping (`FUSE_WRITE_CACHE`).
    pub from_cache: bool,
    /// `O_APPEND`: to the end of the file, wherever that is by then.
    pub append: bool,
    /// `O_DSYNC`, `O_SYNC`, `RWF_DSYNC`, `RWF_SYNC`: durable when it is answered.
    pub sync: bool,
    /// The bytes are not in the kernel's pages: the file is open for direct I/O, whoever asked for that.
    pub direct: bool,
}

impl WriteFlags {
    /// From the flags of open(2) that came with the request. `has_owner`: it names whose locks count
    /// (`FUSE_WRITE_LOCKOWNER`), which only direct I/O does.
    #[must_use]
    pub fn new(open_flags: u32, kill_priv: bool, from_cache: bool, has_owner: bool) -> Self {
        let has = |flag: i32| open_flags & flag as u32 == flag as u32;
        WriteFlags {
            kill_priv,
            from_cache,
            append: has(libc::O_APPEND),
            // O_SYNC has the bit of O_DSYNC.
            sync: has(libc::O_DSYNC),
            direct: !from_cache && (has_owner || has(libc::O_DIRECT)),
        }
    }
}

macro_rules! vfs_trait {
    ($($(#[$doc:meta])* fn $name:ident(&self $(, $arg:ident : $ty:ty)* $(,)?) -> $ret:ty;)*) => {
        /// The operations. Every method may be called from many threads at once. A future that is dropped
        /// before it completes leaves the filesystem consistent.
        // The kernel's requests have as many fields as they have.
        #[allow(clippy::too_many_arguments)]
        pub trait Vfs: Send + Sync + 'static {
            $($(#[$doc])* fn $name(&self $(, $arg: $ty)*) -> impl Future<Output = $ret> + Send;)*

            /// The kernel forgets `count` lookups of `ino`. No reply, never waits.
            fn forget(&self, ino: InodeId, count: u64);

            /// The kernel has taken the reply to the request with this number ([`Caller::request`]). Never waits.
            fn answered(&self, _request: u64) {}
        }
    };
}

vfs_trait! {
    /// Finds `name` in `parent` (`.` and `..` too, for exports). Counts as one lookup of the inode.
    fn lookup(&self, caller: &Caller, parent: InodeId, name: Bytes) -> Result<Entry>;
    /// Attributes of an inode.
    fn getattr(&self, caller: &Caller, ino: InodeId, handle: Option<u64>) -> Result<AttributeReply>;
    /// Changes attributes.
    fn setattr(&self, caller: &Caller, ino: InodeId, handle: Option<u64>, changes: AttributeChanges) -> Result<AttributeReply>;
    /// The target of a symbolic link.
    fn readlink(&self, caller: &Caller, ino: InodeId) -> Result<Bytes>;
    /// Makes a symbolic link. Counts as a lookup, as everything that makes something.
    fn symlink(&self, caller: &Caller, parent: InodeId, name: Bytes, target: Bytes) -> Result<Entry>;
    /// Makes a file, fifo, socket or device node; `mode` has the type bits.
    fn mknod(&self, caller: &Caller, parent: InodeId, name: Bytes, mode: u32, rdev: u32) -> Result<Entry>;
    /// Makes a directory.
    fn mkdir(&self, caller: &Caller, parent: InodeId, name: Bytes, mode: u32) -> Result<Entry>;
    /// Removes a name that isn't a directory's.
    fn unlink(&self, caller: &Caller, parent: InodeId, name: Bytes) -> Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, caller: &Caller, parent: InodeId, name: Bytes) -> Result<()>;
    /// Renames; `flags` as renameat2(2).
    fn rename(&self, caller: &Caller, parent: InodeId, name: Bytes, new_parent: InodeId, new_name: Bytes, flags: u32) -> Result<()>;
    /// Makes a further name for `ino`.
    fn link(&self, caller: &Caller, ino: InodeId, new_parent: InodeId, new_name: Bytes) -> Result<Entry>;
    /// Opens a file; `flags` as open(2).
    fn open(&self, caller: &Caller, ino: InodeId, flags: u32) -> Result<Opened>;
    /// Makes and opens a file, or opens what is there if `flags` has no `O_EXCL`.
    fn create(&self, caller: &Caller, parent: InodeId, name: Bytes, mode: u32, flags: u32) -> Result<(Entry, Opened)>;
    /// Makes and opens a file without a name (`O_TMPFILE`).
    fn tmpfile(&self, caller: &Caller, parent: InodeId, mode: u32, flags: u32) -> Result<(Entry, Opened)>;
    /// Reads up to `size` bytes; fewer only at the end of the file. `fills_pages`: the kernel keeps what it gets.
    fn read(&self, caller: &Caller, ino: InodeId, handle: u64, offset: u64, size: u32, fills_pages: bool) -> Result<Vec<Bytes>>;
    /// Writes all of `data`; returns its length.
    fn write(&self, caller: &Caller, ino: InodeId, handle: u64, offset: u64, data: Bytes, flags: WriteFlags) -> Result<u32>;
    /// A descriptor was closed: writes out what is buffered and returns the error of it.
    fn flush(&self, caller: &Caller, ino: InodeId, handle: u64, lock_owner: u64) -> Result<()>;
    /// The last descriptor of a handle is gone.
    fn release(&self, caller: &Caller, ino: InodeId, handle: u64, lock_owner: Option<u64>, flock: bool) -> Result<()>;
    /// Makes the file's data and attributes durable.
    fn fsync(&self, caller: &Caller, ino: InodeId, handle: u64, data_only: bool) -> Result<()>;
    /// Opens a directory.
    fn opendir(&self, caller: &Caller, ino: InodeId, flags: u32) -> Result<Opened>;
    /// Entries after `cookie` (0: from the start, `.` and `..` included), as many as fit in about `bytes` of reply.
    /// Every entry returned with `plus` counts as a lookup once the transport has put it into its reply;
    /// for those that it had no room for it calls `forget`.
    fn readdir(&self, caller: &Caller, ino: InodeId, handle: u64, cookie: u64, bytes: u32, plus: bool) -> Result<Vec<DirEntry>>;
    /// Closes a directory.
    fn releasedir(&self, caller: &Caller, ino: InodeId, handle: u64) -> Result<()>;
    /// Makes the directory's entries durable.
    fn fsyncdir(&self, caller: &Caller, ino: InodeId, handle: u64, data_only: bool) -> Result<()>;
    /// The volume's size and use.
    fn statfs(&self, caller: &Caller, ino: InodeId) -> Result<StatFs>;
    /// Sets an extended attribute; `flags` as setxattr(2). `kill_sgid`: it is an access control list, changed by
    /// somebody who isn't in the file's group, so the set-gid bit goes.
    fn setxattr(&self, caller: &Caller, ino: InodeId, name: Bytes, value: Bytes, flags: u32, kill_sgid: bool) -> Result<()>;
    /// The value of an extended attribute.
    fn getxattr(&self, caller: &Caller, ino: InodeId, name: Bytes) -> Result<Bytes>;
    /// The names of all extended attributes, each ended by NUL.
    fn listxattr(&self, caller: &Caller, ino: InodeId) -> Result<Bytes>;
    /// Removes an extended attribute.
    fn removexattr(&self, caller: &Caller, ino: InodeId, name: Bytes) -> Result<()>;
    /// The first lock that would block `lock`, or `lock` with `Unlock`.
    fn getlk(&self, caller: &Caller, ino: InodeId, handle: u64, owner: u64, lock: FileLock) -> Result<FileLock>;
    /// Takes or lets go of a record lock (or with `flock` a whole-file lock); `wait`: until it is free or the caller is interrupted.
    fn setlk(&self, caller: &Caller, ino: InodeId, handle: u64, owner: u64, lock: FileLock, flock: bool, wait: bool) -> Result<()>;
    /// Allocates, punches or zeroes; `mode` as fallocate(2).
    fn fallocate(&self, caller: &Caller, ino: InodeId, handle: u64, offset: u64, length: u64, mode: u32) -> Result<()>;
    /// The next data or hole at or after `offset`.
    fn lseek(&self, caller: &Caller, ino: InodeId, handle: u64, offset: u64, kind: SeekKind) -> Result<u64>;
    /// Copies a range between files of the volume; returns the bytes copied.
    fn copy_file_range(&self, caller: &Caller, from: (InodeId, u64, u64), to: (InodeId, u64, u64), length: u64) -> Result<u64>;
}
