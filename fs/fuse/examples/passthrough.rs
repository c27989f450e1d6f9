//! A FUSE filesystem that passes everything on to a local folder, over `fuser`: what any filesystem in user space can
//! reach on this machine, for benchmarks to compare with. Not for production: `O_APPEND` across mounts, locks and
//! leases are the local filesystem's or nobody's.
//!
//! ```text
//! passthrough SOURCE MOUNTPOINT [--ttl-ms N] [--threads N] [--writeback] [--direct-io]
//! ```
//! It serves in the foreground until it is unmounted. Needs root.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, SessionACL, TimeOrNow, WriteFlags,
};
use parking_lot::RwLock;

/// Bytes of one WRITE.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Bytes that one getdents64 call fills.
const LISTING_BYTES: usize = 32 << 10;
/// Parts of the inode table, each with a lock of its own.
const SHARDS: usize = 16;

/// An inode that the kernel knows, held open by `O_PATH`.
struct Inode {
    fd: OwnedFd,
    lookups: AtomicU64,
}

struct Passthrough {
    root: Arc<Inode>,
    inodes: [RwLock<HashMap<u64, Arc<Inode>>>; SHARDS],
    ttl: Duration,
    writeback: bool,
    direct_io: bool,
}

type Result<T> = std::result::Result<T, Errno>;

fn last_error() -> Errno {
    Errno::from_i32(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn check(result: i32) -> Result<i32> {
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

fn c_string(name: &OsStr) -> Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// An open inode's path for calls that don't take `O_PATH` descriptors.
fn proc_path(fd: RawFd) -> CString {
    CString::new(format!("/proc/self/fd/{fd}")).unwrap_or_default()
}

fn stat(fd: RawFd) -> Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: an empty path with AT_EMPTY_PATH is the descriptor itself; there is room for the result.
    check(unsafe { libc::fstatat(fd, c"".as_ptr(), stat.as_mut_ptr(), flags) })?;
    // SAFETY: filled by the call above, which succeeded.
    Ok(unsafe { stat.assume_init() })
}

fn time(seconds: i64, nanos: i64) -> SystemTime {
    let nanos = Duration::from_nanos(nanos as u64);
    match u64::try_from(seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
        Err(_) => SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanos,
    }
}

fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

impl Passthrough {
    fn new(source: &Path, options: &Options) -> io::Result<Passthrough> {
        let path = CString::new(source.as_os_str().as_bytes())?;
        // SAFETY: a valid path; the descriptor is owned at once.
        let fd = unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Passthrough {
            root: Arc::new(Inode { fd, lookups: AtomicU64::new(1) }),
            inodes: std::array::from_fn(|_| RwLock::default()),
            ttl: options.ttl,
            writeback: options.writeback,
            direct_io: options.direct_io,
        })
    }

    fn shard(&self, ino: u64) -> &RwLock<HashMap<u64, Arc<Inode>>> {
        &self.inodes[ino as usize % SHARDS]
    }

    fn inode(&self, ino: INodeNo) -> Result<Arc<Inode>> {
        if ino == INodeNo::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        self.shard(ino.0).read().get(&ino.0).cloned().ok_or(Errno::ESTALE)
    }

    fn attr(&self, ino: Option<INodeNo>, stat: &libc::stat) -> FileAttr {
        let mtime = time(stat.st_mtime, stat.st_mtime_nsec);
        FileAttr {
            ino: ino.unwrap_or(INodeNo(stat.st_ino)),
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime,
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            crtime: mtime,
            kind: file_type(stat.st_mode),
            perm: (stat.st_mode & 0o7777) as u16,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev as u32,
            blksize: stat.st_blksize as u32,
            flags: 0,
        }
    }

    /// Finds a name, and counts it as a lookup.
    fn find(&self, parent: RawFd, name: &CStr) -> Result<FileAttr> {
        // SAFETY: a valid name; the descriptor is owned at once.
        let fd = unsafe {
            let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            OwnedFd::from_raw_fd(check(libc::openat(parent, name.as_ptr(), flags))?)
        };
        let stat = stat(fd.as_raw_fd())?;
        let known = |table: &HashMap<u64, Arc<Inode>>| {
            let inode = table.get(&stat.st_ino);
            inode.map(|inode| inode.lookups.fetch_add(1, Ordering::Relaxed)).is_some()
        };
        let shard = self.shard(stat.st_ino);
        if !known(&shard.read()) {
            let mut table = shard.write();
            if !known(&table) {
                table.insert(stat.st_ino, Arc::new(Inode { fd, lookups: AtomicU64::new(1) }));
            }
        }
        Ok(self.attr(None, &stat))
    }

    /// Gives what was made to who made it.
    fn own(&self, request: &Request, parent: RawFd, name: &CStr) -> Result<()> {
        if request.uid() == 0 && request.gid() == 0 {
            return Ok(());
        }
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: a valid name.
        check(unsafe { libc::fchownat(parent, name.as_ptr(), request.uid(), request.gid(), flags) })?;
        Ok(())
    }

    fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        make: impl FnOnce(RawFd, &CStr) -> Result<()>,
    ) -> Result<FileAttr> {
        let (parent, name) = (self.inode(parent)?, c_string(name)?);
        let parent = parent.fd.as_raw_fd();
        make(parent, &name)?;
        self.own(request, parent, &name)?;
        self.find(parent, &name)
    }

    fn set(&self, ino: INodeNo, set: &Changes, fh: Option<FileHandle>) -> Result<FileAttr> {
        let inode = self.inode(ino)?;
        let fd = inode.fd.as_raw_fd();
        let path = proc_path(fd);
        if let Some(mode) = set.mode {
            // SAFETY: a valid path.
            check(unsafe { libc::chmod(path.as_ptr(), mode) })?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.unwrap_or(u32::MAX), set.gid.unwrap_or(u32::MAX));
            let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
            // SAFETY: an empty path is the descriptor itself.
            check(unsafe { libc::fchownat(fd, c"".as_ptr(), uid, gid, flags) })?;
        }
        if let Some(size) = set.size {
            // SAFETY: the handle is an open file of ours, or the path is valid.
            check(unsafe {
                match fh {
                    Some(fh) => libc::ftruncate(fh.0 as RawFd, size as i64),
                    None => libc::truncate(path.as_ptr(), size as i64),
                }
            })?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times = [timespec(set.atime), timespec(set.mtime)];
            // SAFETY: a valid path and two times.
            check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) })?;
        }
        Ok(self.attr(Some(ino), &stat(fd)?))
    }

    fn open_file(&self, ino: INodeNo, flags: i32) -> Result<RawFd> {
        let inode = self.inode(ino)?;
        let path = proc_path(inode.fd.as_raw_fd());
        // With the writeback cache the kernel reads files that are open for writing alone, and appends by itself.
        let flags = match (self.writeback, flags & libc::O_ACCMODE) {
            (true, libc::O_WRONLY) => (flags & !libc::O_ACCMODE & !libc::O_APPEND) | libc::O_RDWR,
            (true, _) => flags & !libc::O_APPEND,
            (false, _) => flags,
        };
        let flags = (flags & !libc::O_NOFOLLOW & !libc::O_DIRECT) | libc::O_CLOEXEC;
        // SAFETY: a valid path. The descriptor is the kernel's handle until `release` closes it.
        check(unsafe { libc::open(path.as_ptr(), flags) })
    }

    fn open_flags(&self) -> FopenFlags {
        if self.direct_io { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::FOPEN_KEEP_CACHE }
    }

    /// Calls `add` with each entry from position `offset` on until it says that the reply is full.
    fn list(
        &self,
        fh: FileHandle,
        offset: u64,
        mut add: impl FnMut(&libc::dirent64, &CStr) -> bool,
    ) -> Result<()> {
        let fd = fh.0 as RawFd;
        // SAFETY: an open directory of ours.
        if unsafe { libc::lseek(fd, offset as i64, libc::SEEK_SET) } < 0 {
            return Err(last_error());
        }
        let mut buffer = vec![0u64; LISTING_BYTES / 8];
        loop {
            // SAFETY: room of that length, aligned for the entries.
            let bytes =
                unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), LISTING_BYTES) };
            match bytes {
                0 => return Ok(()),
                ..0 => return Err(last_error()),
                _ => {}
            }
            let mut at = 0;
            while at < bytes as usize {
                // SAFETY: the kernel filled `bytes` bytes with entries, each of which gives its length and ends its name.
                let (entry, name) = unsafe {
                    let entry = buffer.as_ptr().cast::<u8>().add(at).cast::<libc::dirent64>();
                    let name = (&raw const (*entry).d_name).cast::<libc::c_char>();
                    at += usize::from((*entry).d_reclen);
                    (&*entry, CStr::from_ptr(name))
                };
                if add(entry, name) {
                    return Ok(());
                }
            }
        }
    }

    fn forget_one(&self, ino: u64, lookups: u64) {
        if ino == INodeNo::ROOT.0 {
            return;
        }
        let mut table = self.shard(ino).write();
        if let Some(inode) = table.get(&ino)
            && inode.lookups.fetch_sub(lookups, Ordering::Relaxed) == lookups
        {
            table.remove(&ino);
        }
    }
}

struct Changes {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
}

fn timespec(time: Option<TimeOrNow>) -> libc::timespec {
    match time {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(TimeOrNow::Now) => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            libc::timespec { tv_sec: since.as_secs() as i64, tv_nsec: i64::from(since.subsec_nanos()) }
        }
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS;
        wanted.set(InitFlags::FUSE_WRITEBACK_CACHE, self.writeback);
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.inode(parent).and_then(|parent| self.find(parent.fd.as_raw_fd(), &c_string(name)?));
        match found {
            Ok(attr) => reply.entry(&self.ttl, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.forget_one(ino.0, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inode(ino).and_then(|inode| stat(inode.fd.as_raw_fd())) {
            Ok(stat) => reply.attr(&self.ttl, &self.attr(Some(ino), &stat)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.set(ino, &Changes { mode, uid, gid, size, atime, mtime }, fh) {
            Ok(attr) => reply.attr(&self.ttl, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.inode(ino).and_then(|inode| {
            let mut target = vec![0u8; libc::PATH_MAX as usize];
            // SAFETY: room of that length; an empty path is the descriptor itself.
            let bytes = unsafe {
                libc::readlinkat(inode.fd.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len())
            };
            target.truncate(check(bytes as i32)? as usize);
            Ok(target)
        });
        match target {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(request, parent, name, |parent, name| {
            // SAFETY: a valid name.
            check(unsafe { libc::mkdirat(parent, name.as_ptr(), mode & !umask) }).map(drop)
        });
        match made {
            Ok(attr) => reply.entry(&self.ttl, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(request, parent, name, |parent, name| {
            // SAFETY: a valid name.
            check(unsafe { libc::mknodat(parent, name.as_ptr(), mode & !umask, u64::from(rdev)) }).map(drop)
        });
        match made {
            Ok(attr) => reply.entry(&self.ttl, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = c_string(target.as_os_str()).and_then(|target| {
            self.make(request, parent, name, |parent, name| {
                // SAFETY: valid strings.
                check(unsafe { libc::symlinkat(target.as_ptr(), parent, name.as_ptr()) }).map(drop)
            })
        });
        match made {
            Ok(attr) => reply.entry(&self.ttl, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn link(&self, _: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let linked = (|| {
            let (inode, parent, name) = (self.inode(ino)?, self.inode(new_parent)?, c_string(new_name)?);
            let (path, parent) = (proc_path(inode.fd.as_raw_fd()), parent.fd.as_raw_fd());
            let follow = libc::AT_SYMLINK_FOLLOW;
            // SAFETY: valid strings.
            check(unsafe { libc::linkat(libc::AT_FDCWD, path.as_ptr(), parent, name.as_ptr(), follow) })?;
            self.find(parent, &name)
        })();
        match linked {
            Ok(attr) => reply.entry(&self.ttl, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        finish(reply, self.remove(parent, name, 0));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        finish(reply, self.remove(parent, name, libc::AT_REMOVEDIR));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = (|| {
            let (from, to) = (self.inode(parent)?, self.inode(new_parent)?);
            let (name, new_name) = (c_string(name)?, c_string(new_name)?);
            let (from, to) = (from.fd.as_raw_fd(), to.fd.as_raw_fd());
            // SAFETY: valid strings.
            check(unsafe { libc::renameat2(from, name.as_ptr(), to, new_name.as_ptr(), flags.bits()) })
        })();
        finish(reply, renamed.map(drop));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_file(ino, flags.0) {
            Ok(fd) => reply.opened(FileHandle(fd as u64), self.open_flags()),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let created = (|| {
            let (parent, name) = (self.inode(parent)?, c_string(name)?);
            let parent = parent.fd.as_raw_fd();
            let flags = (flags & !libc::O_DIRECT) | libc::O_CREAT | libc::O_CLOEXEC;
            // SAFETY: a valid name; the descriptor is owned at once.
            let file = unsafe {
                OwnedFd::from_raw_fd(check(libc::openat(parent, name.as_ptr(), flags, mode & !umask))?)
            };
            self.own(request, parent, &name)?;
            Ok((self.find(parent, &name)?, file))
        })();
        match created {
            Ok((attr, file)) => {
                let handle = FileHandle(std::os::fd::IntoRawFd::into_raw_fd(file) as u64);
                reply.created(&self.ttl, &attr, Generation(0), handle, self.open_flags());
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            // SAFETY: an open file of ours, and room of that length.
            let bytes = unsafe {
                libc::pread(fh.0 as RawFd, buffer.as_mut_ptr().cast(), size as usize, offset as i64)
            };
            match bytes {
                ..0 => reply.error(last_error()),
                _ => reply.data(&buffer[..bytes as usize]),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // SAFETY: an open file of ours, and data of that length.
        let bytes = unsafe { libc::pwrite(fh.0 as RawFd, data.as_ptr().cast(), data.len(), offset as i64) };
        match bytes {
            ..0 => reply.error(last_error()),
            _ => reply.written(bytes as u32),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing a copy is what tells the local filesystem of a close(2), and gets its errors.
        // SAFETY: an open file of ours; the copy is closed once.
        let closed = unsafe { check(libc::dup(fh.0 as RawFd)).and_then(|copy| check(libc::close(copy))) };
        finish(reply, closed.map(drop));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // SAFETY: the handle was an open file that nobody else owns, and is not used again.
        drop(unsafe { OwnedFd::from_raw_fd(fh.0 as RawFd) });
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let fd = fh.0 as RawFd;
        // SAFETY: an open file of ours.
        finish(
            reply,
            check(unsafe { if datasync { libc::fdatasync(fd) } else { libc::fsync(fd) } }).map(drop),
        );
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.inode(ino).and_then(|inode| {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
            // SAFETY: a valid path. The descriptor is the kernel's handle until `releasedir` closes it.
            check(unsafe { libc::openat(inode.fd.as_raw_fd(), c".".as_ptr(), flags) })
        });
        match opened {
            Ok(fd) => reply.opened(FileHandle(fd as u64), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.list(fh, offset, |entry, name| {
            let kind = file_type(u32::from(entry.d_type) << 12);
            reply.add(INodeNo(entry.d_ino), entry.d_off as u64, kind, OsStr::from_bytes(name.to_bytes()))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.list(fh, offset, |entry, name| {
            let dots = matches!(name.to_bytes(), b"." | b"..");
            let attr = if dots {
                stat(fh.0 as RawFd).map(|stat| self.attr(None, &stat))
            } else {
                self.find(fh.0 as RawFd, name)
            };
            // A name that went away while it was listed is left out.
            let Ok(attr) = attr else { return false };
            let os_name = OsStr::from_bytes(name.to_bytes());
            let full = reply.add(attr.ino, entry.d_off as u64, os_name, &self.ttl, &attr, Generation(0));
            if full && !dots {
                self.forget_one(attr.ino.0, 1);
            }
            full
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        // SAFETY: the handle was an open directory that nobody else owns, and is not used again.
        drop(unsafe { OwnedFd::from_raw_fd(fh.0 as RawFd) });
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        // SAFETY: an open directory of ours.
        finish(reply, check(unsafe { libc::fsync(fh.0 as RawFd) }).map(drop));
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let statfs = self.inode(ino).and_then(|inode| {
            let mut statfs = MaybeUninit::<libc::statvfs>::uninit();
            // SAFETY: an open descriptor and room for the result.
            check(unsafe { libc::fstatvfs(inode.fd.as_raw_fd(), statfs.as_mut_ptr()) })?;
            // SAFETY: filled by the call above, which succeeded.
            Ok(unsafe { statfs.assume_init() })
        });
        match statfs {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // SAFETY: an open file of ours.
        let done = unsafe { libc::fallocate(fh.0 as RawFd, mode, offset as i64, length as i64) };
        finish(reply, check(done).map(drop));
    }
}

impl Passthrough {
    fn remove(&self, parent: INodeNo, name: &OsStr, flags: i32) -> Result<()> {
        let (parent, name) = (self.inode(parent)?, c_string(name)?);
        // SAFETY: a valid name.
        check(unsafe { libc::unlinkat(parent.fd.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
    }
}

fn finish(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

struct Options {
    source: PathBuf,
    mountpoint: PathBuf,
    ttl: Duration,
    threads: usize,
    writeback: bool,
    direct_io: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
        let mut options = Options {
            source: arguments.next()?.into(),
            mountpoint: arguments.next()?.into(),
            ttl: Duration::from_secs(1),
            threads: 2,
            writeback: false,
            direct_io: false,
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--ttl-ms" => options.ttl = Duration::from_millis(arguments.next()?.parse().ok()?),
                "--threads" => options.threads = arguments.next()?.parse().ok()?,
                "--writeback" => options.writeback = true,
                "--direct-io" => options.direct_io = true,
                _ => return None,
            }
        }
        Some(options)
    }
}

fn run(options: &Options) -> io::Result<()> {
    // Every inode that the kernel knows is a descriptor.
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure; the umask has no preconditions.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
        libc::umask(0);
    }
    let filesystem = Passthrough::new(&options.source, options)?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(options.threads);
    config.clone_fd = true;
    config.mount_options = vec![
        MountOption::FSName("passthrough".to_owned()),
        MountOption::Subtype("passthrough".to_owned()),
        MountOption::DefaultPermissions,
    ];
    fuser::mount(filesystem, &options.mountpoint, &config)
}

fn main() -> ExitCode {
    let Some(options) = Options::parse(std::env::args().skip(1)) else {
        eprintln!(
            "usage: passthrough SOURCE MOUNTPOINT [--ttl-ms N] [--threads N] [--writeback] [--direct-io]"
        );
        return ExitCode::from(2);
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("passthrough: {error}");
            ExitCode::FAILURE
        }
    }
}
