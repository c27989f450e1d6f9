//! What is done to the local folder.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileHandle, FileType, FopenFlags, INodeNo, Request, TimeOrNow};

use crate::Options;
use crate::inodes::Inodes;

/// Bytes that one getdents64 call fills.
const LISTING_BYTES: usize = 32 << 10;

pub struct Passthrough {
    pub inodes: Inodes,
    pub ttl: Duration,
    pub writeback: bool,
    pub direct_io: bool,
}

pub type Result<T> = std::result::Result<T, Errno>;

pub fn last_error() -> Errno {
    Errno::from_i32(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

pub fn check(result: i32) -> Result<i32> {
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

pub fn c_string(name: &OsStr) -> Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// An open inode's path for calls that don't take `O_PATH` descriptors.
pub fn proc_path(fd: RawFd) -> CString {
    CString::new(format!("/proc/self/fd/{fd}")).unwrap_or_default()
}

pub fn stat(fd: RawFd) -> Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: an empty path with AT_EMPTY_PATH is the descriptor itself; there is room for the result.
    check(unsafe { libc::fstatat(fd, c"".as_ptr(), stat.as_mut_ptr(), flags) })?;
    // SAFETY: filled by the call above, which succeeded.
    Ok(unsafe { stat.assume_init() })
}

pub fn time(seconds: i64, nanos: i64) -> SystemTime {
    let nanos = Duration::from_nanos(nanos as u64);
    match u64::try_from(seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
        Err(_) => SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanos,
    }
}

pub fn file_type(mode: u32) -> FileType {
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
    pub fn new(source: &Path, options: &Options) -> io::Result<Passthrough> {
        Ok(Passthrough {
            inodes: Inodes::new(source, options.inodes_open_max)?,
            ttl: options.ttl,
            writeback: options.writeback,
            direct_io: options.direct_io,
        })
    }

    pub fn inode(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        self.inodes.find(ino)
    }

    pub fn attr(&self, ino: Option<INodeNo>, stat: &libc::stat) -> FileAttr {
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
    pub fn find(&self, parent: RawFd, name: &CStr) -> Result<FileAttr> {
        // SAFETY: a valid name; the descriptor is owned at once.
        let fd = unsafe {
            let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            OwnedFd::from_raw_fd(check(libc::openat(parent, name.as_ptr(), flags))?)
        };
        let stat = stat(fd.as_raw_fd())?;
        self.inodes.learn(stat.st_ino, fd)?;
        Ok(self.attr(None, &stat))
    }

    /// Gives what was made to who made it.
    pub fn own(&self, request: &Request, parent: RawFd, name: &CStr) -> Result<()> {
        if request.uid() == 0 && request.gid() == 0 {
            return Ok(());
        }
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: a valid name.
        check(unsafe { libc::fchownat(parent, name.as_ptr(), request.uid(), request.gid(), flags) })?;
        Ok(())
    }

    pub fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        make: impl FnOnce(RawFd, &CStr) -> Result<()>,
    ) -> Result<FileAttr> {
        let (parent, name) = (self.inode(parent)?, c_string(name)?);
        let parent = parent.as_raw_fd();
        make(parent, &name)?;
        self.own(request, parent, &name)?;
        self.find(parent, &name)
    }

    pub fn set(&self, ino: INodeNo, set: &Changes, fh: Option<FileHandle>) -> Result<FileAttr> {
        let inode = self.inode(ino)?;
        let fd = inode.as_raw_fd();
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

    pub fn open_file(&self, ino: INodeNo, flags: i32) -> Result<RawFd> {
        let inode = self.inode(ino)?;
        let path = proc_path(inode.as_raw_fd());
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

    pub fn open_flags(&self) -> FopenFlags {
        if self.direct_io { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::FOPEN_KEEP_CACHE }
    }

    /// Calls `add` with each entry from position `offset` on until it says that the reply is full.
    pub fn list(
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
}

pub struct Changes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<TimeOrNow>,
    pub mtime: Option<TimeOrNow>,
}

pub fn timespec(time: Option<TimeOrNow>) -> libc::timespec {
    match time {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(TimeOrNow::Now) => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            libc::timespec { tv_sec: since.as_secs() as i64, tv_nsec: i64::from(since.subsec_nanos()) }
        }
    }
}

impl Passthrough {
    pub fn remove(&self, parent: INodeNo, name: &OsStr, flags: i32) -> Result<()> {
        let (parent, name) = (self.inode(parent)?, c_string(name)?);
        // SAFETY: a valid name.
        check(unsafe { libc::unlinkat(parent.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
    }
}
