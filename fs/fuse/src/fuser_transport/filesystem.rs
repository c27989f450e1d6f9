//! `fuser`'s trait in terms of ours. Every method copies what it borrows, hands the operation to the runtime, and the
//! reply is sent from there.

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use atoll_client::vfs::{self, SeekKind, Vfs};
use atoll_core::attributes::{AttributeChanges, KillPriv};
use atoll_core::ids::InodeId;
use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use super::LOCK_WAIT_MAX;
use super::convert::*;
use crate::session::InitOptions;

/// `fuser` doesn't tell how large a listing may be; the kernel asks for between 4 and 128 KiB, and what doesn't fit is
/// given back.
const LISTING_BYTES: u32 = 32 << 10;

/// Our filesystem as `fuser` sees it.
pub(super) struct FuserFilesystem<V> {
    filesystem: Arc<V>,
    runtime: Handle,
    options: InitOptions,
}

impl<V: Vfs> FuserFilesystem<V> {
    pub(super) fn new(filesystem: Arc<V>, runtime: Handle, options: InitOptions) -> Self {
        FuserFilesystem { filesystem, runtime, options }
    }

    fn filesystem(&self) -> Arc<V> {
        Arc::clone(&self.filesystem)
    }

    fn spawn<T, R: Refuse>(
        &self,
        reply: R,
        operation: impl Future<Output = vfs::Result<T>> + Send + 'static,
        send: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.runtime.spawn(async move {
            match operation.await {
                Ok(value) => send(reply, value),
                Err(errno) => reply.refuse(Errno::from_i32(errno.0)),
            }
        });
    }
}

/// Replies, all of which can be errors.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {$(
        impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        }
    )*};
}
refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

impl<V: Vfs> Filesystem for FuserFilesystem<V> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let mut wanted = InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        wanted.set(InitFlags::FUSE_WRITEBACK_CACHE, self.options.writeback_cache);
        wanted.set(InitFlags::FUSE_POSIX_ACL, self.options.posix_acl);
        wanted.set(InitFlags::FUSE_DONT_MASK, self.options.posix_acl || self.options.dont_mask);
        wanted.set(InitFlags::FUSE_POSIX_LOCKS, self.options.locks);
        wanted.set(InitFlags::FUSE_ALLOW_IDMAP, self.options.allow_idmap);
        // What the kernel doesn't offer is done without.
        let _ = config.add_capabilities(wanted & config.capabilities());
        // Each returns the nearest value that is possible, which is as good.
        let _ = config.set_max_write(self.options.max_write);
        let _ = config.set_max_background(self.options.max_background);
        let _ = config.set_congestion_threshold(self.options.congestion_threshold);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, caller, name) = (self.filesystem(), caller(request, 0), bytes(name));
        let operation = async move { fs.lookup(&caller, InodeId(parent.0), name).await };
        self.spawn(reply, operation, send_entry);
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.filesystem.forget(InodeId(ino.0), lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.getattr(&caller, InodeId(ino.0), fh.map(|fh| fh.0)).await };
        self.spawn(reply, operation, |reply, it| reply.attr(&it.ttl, &file_attr(&it.attributes)));
    }

    fn setattr(
        &self,
        request: &Request,
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
        let changes = AttributeChanges {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(time_change),
            mtime: mtime.map(time_change),
            kill_priv: KillPriv::NONE,
        };
        let (fs, caller, fh) = (self.filesystem(), caller(request, 0), fh.map(|fh| fh.0));
        let operation = async move { fs.setattr(&caller, InodeId(ino.0), fh, changes).await };
        self.spawn(reply, operation, |reply, it| reply.attr(&it.ttl, &file_attr(&it.attributes)));
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.readlink(&caller, InodeId(ino.0)).await };
        self.spawn(reply, operation, |reply, target| reply.data(&target));
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
        let (fs, caller, name) = (self.filesystem(), caller(request, umask), bytes(name));
        let operation = async move { fs.mknod(&caller, InodeId(parent.0), name, mode, rdev).await };
        self.spawn(reply, operation, send_entry);
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
        let (fs, caller, name) = (self.filesystem(), caller(request, umask), bytes(name));
        let operation = async move { fs.mkdir(&caller, InodeId(parent.0), name, mode).await };
        self.spawn(reply, operation, send_entry);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, caller, name) = (self.filesystem(), caller(request, 0), bytes(name));
        let operation = async move { fs.unlink(&caller, InodeId(parent.0), name).await };
        self.spawn(reply, operation, send_done);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, caller, name) = (self.filesystem(), caller(request, 0), bytes(name));
        let operation = async move { fs.rmdir(&caller, InodeId(parent.0), name).await };
        self.spawn(reply, operation, send_done);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let (name, target) = (bytes(name), bytes(target.as_os_str()));
        let operation = async move { fs.symlink(&caller, InodeId(parent.0), name, target).await };
        self.spawn(reply, operation, send_entry);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let (name, new_name) = (bytes(name), bytes(new_name));
        let (parent, new_parent) = (InodeId(parent.0), InodeId(new_parent.0));
        let operation =
            async move { fs.rename(&caller, parent, name, new_parent, new_name, flags.bits()).await };
        self.spawn(reply, operation, send_done);
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (fs, caller, new_name) = (self.filesystem(), caller(request, 0), bytes(new_name));
        let operation =
            async move { fs.link(&caller, InodeId(ino.0), InodeId(new_parent.0), new_name).await };
        self.spawn(reply, operation, send_entry);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.open(&caller, InodeId(ino.0), flags.0 as u32).await };
        self.spawn(reply, operation, send_opened);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let fills_pages = owner.is_none();
        let operation =
            async move { fs.read(&caller, InodeId(ino.0), fh.0, offset, size, fills_pages).await };
        self.spawn(reply, operation, |reply, parts| match &parts[..] {
            [one] => reply.data(one),
            many => reply.data(&many.concat()),
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        open_flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (fs, caller, data) = (self.filesystem(), caller(request, 0), Bytes::copy_from_slice(data));
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let flags = vfs::WriteFlags::new(open_flags.0 as u32, kill, from_cache, owner.is_some());
        let operation = async move { fs.write(&caller, InodeId(ino.0), fh.0, offset, data, flags).await };
        self.spawn(reply, operation, |reply, written| reply.written(written));
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.flush(&caller, InodeId(ino.0), fh.0, owner.0).await };
        self.spawn(reply, operation, send_done);
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        owner: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let (fs, caller, owner) = (self.filesystem(), caller(request, 0), owner.map(|owner| owner.0));
        let operation = async move { fs.release(&caller, InodeId(ino.0), fh.0, owner, false).await };
        self.spawn(reply, operation, send_done);
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.fsync(&caller, InodeId(ino.0), fh.0, datasync).await };
        self.spawn(reply, operation, send_done);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.opendir(&caller, InodeId(ino.0), flags.0 as u32).await };
        self.spawn(reply, operation, send_opened);
    }

    fn readdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation =
            async move { fs.readdir(&caller, InodeId(ino.0), fh.0, offset, LISTING_BYTES, false).await };
        self.spawn(reply, operation, |mut reply, entries| {
            for entry in &entries {
                let (ino, name) = (INodeNo(entry.ino.0), OsStr::from_bytes(&entry.name));
                if reply.add(ino, entry.cookie, file_type(entry.kind), name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (fs, forgetful, caller) = (self.filesystem(), self.filesystem(), caller(request, 0));
        let operation =
            async move { fs.readdir(&caller, InodeId(ino.0), fh.0, offset, LISTING_BYTES, true).await };
        self.spawn(reply, operation, move |mut reply, entries| {
            let mut full = false;
            for dir_entry in &entries {
                let (attr, ttl, generation) = match &dir_entry.entry {
                    Some(entry) => {
                        let ttl = entry.attribute_ttl.min(entry.entry_ttl);
                        (file_attr(&entry.attributes), ttl, Generation(entry.generation))
                    }
                    None => (placeholder(dir_entry), Duration::ZERO, Generation(0)),
                };
                let name = OsStr::from_bytes(&dir_entry.name);
                full = full || reply.add(attr.ino, dir_entry.cookie, name, &ttl, &attr, generation);
                if let (true, Some(entry)) = (full, &dir_entry.entry) {
                    forgetful.forget(entry.attributes.ino, 1);
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, request: &Request, ino: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.releasedir(&caller, InodeId(ino.0), fh.0).await };
        self.spawn(reply, operation, send_done);
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.fsyncdir(&caller, InodeId(ino.0), fh.0, datasync).await };
        self.spawn(reply, operation, send_done);
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.statfs(&caller, InodeId(ino.0)).await };
        self.spawn(reply, operation, |reply, it| {
            let free = it.blocks_free;
            let (inodes, inodes_free) = (it.inodes, it.inodes_free);
            let block = it.block_bytes;
            reply.statfs(it.blocks, free, free, inodes, inodes_free, block, it.name_bytes_max, block);
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let (name, value) = (bytes(name), Bytes::copy_from_slice(value));
        let operation =
            async move { fs.setxattr(&caller, InodeId(ino.0), name, value, flags as u32, false).await };
        self.spawn(reply, operation, send_done);
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (fs, caller, name) = (self.filesystem(), caller(request, 0), bytes(name));
        let operation = async move { fs.getxattr(&caller, InodeId(ino.0), name).await };
        self.spawn(reply, operation, send_xattr(size));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.listxattr(&caller, InodeId(ino.0)).await };
        self.spawn(reply, operation, send_xattr(size));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, caller, name) = (self.filesystem(), caller(request, 0), bytes(name));
        let operation = async move { fs.removexattr(&caller, InodeId(ino.0), name).await };
        self.spawn(reply, operation, send_done);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
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
        let (fs, caller, name) = (self.filesystem(), caller(request, umask), bytes(name));
        let operation = async move { fs.create(&caller, InodeId(parent.0), name, mode, flags as u32).await };
        self.spawn(reply, operation, |reply, (entry, opened)| {
            let ttl = entry.attribute_ttl.min(entry.entry_ttl);
            let (generation, handle) = (Generation(entry.generation), FileHandle(opened.handle));
            reply.created(&ttl, &file_attr(&entry.attributes), generation, handle, open_flags(&opened));
        });
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let Some(lock) = lock(start, end, kind, pid) else { return reply.error(Errno::EINVAL) };
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.getlk(&caller, InodeId(ino.0), fh.0, owner.0, lock).await };
        self.spawn(reply, operation, |reply, it| {
            reply.locked(it.start, it.end, crate::request::lock_kind_to_raw(it.kind) as i32, it.pid);
        });
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let Some(lock) = lock(start, end, kind, pid) else { return reply.error(Errno::EINVAL) };
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move {
            let taken = fs.setlk(&caller, InodeId(ino.0), fh.0, owner.0, lock, false, sleep);
            match tokio::time::timeout(LOCK_WAIT_MAX, taken).await {
                Ok(outcome) => outcome,
                Err(_) => Err(vfs::Errno(libc::EINTR)),
            }
        };
        self.spawn(reply, operation, send_done);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation =
            async move { fs.fallocate(&caller, InodeId(ino.0), fh.0, offset, length, mode as u32).await };
        self.spawn(reply, operation, send_done);
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let kind = match whence {
            libc::SEEK_DATA => SeekKind::Data,
            libc::SEEK_HOLE => SeekKind::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let operation = async move { fs.lseek(&caller, InodeId(ino.0), fh.0, offset as u64, kind).await };
        self.spawn(reply, operation, |reply, found| reply.offset(found as i64));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        to_ino: INodeNo,
        to_fh: FileHandle,
        to_offset: u64,
        length: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (fs, caller) = (self.filesystem(), caller(request, 0));
        let from = (InodeId(ino.0), fh.0, offset);
        let to = (InodeId(to_ino.0), to_fh.0, to_offset);
        // The reply's count has 32 bits.
        let length = length.min(crate::adapter::NARROW_COPY_BYTES_MAX);
        let operation = async move { fs.copy_file_range(&caller, from, to, length).await };
        self.spawn(reply, operation, |reply, copied| reply.written(copied as u32));
    }
}
