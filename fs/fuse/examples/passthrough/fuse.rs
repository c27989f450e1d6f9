//! Requests of the kernel, and their replies.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::local::{Changes, Passthrough, Result, c_string, check, file_type, last_error, proc_path, stat};

/// Bytes of one WRITE.
const WRITE_BYTES_MAX: u32 = 1 << 20;
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
        let found = self.inode(parent).and_then(|parent| self.find(parent.as_raw_fd(), &c_string(name)?));
        match found {
            Ok(attr) => reply.entry(&self.ttl, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.inodes.forget(ino.0, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inode(ino).and_then(|inode| stat(inode.as_raw_fd())) {
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
                libc::readlinkat(inode.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len())
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
            let (path, parent) = (proc_path(inode.as_raw_fd()), parent.as_raw_fd());
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
            let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
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
            let parent = parent.as_raw_fd();
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
                let handle = FileHandle(file.into_raw_fd() as u64);
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
            check(unsafe { libc::openat(inode.as_raw_fd(), c".".as_ptr(), flags) })
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
                self.inodes.forget(attr.ino.0, 1);
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
            check(unsafe { libc::fstatvfs(inode.as_raw_fd(), statfs.as_mut_ptr()) })?;
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

fn finish(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
