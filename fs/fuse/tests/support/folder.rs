//! A `Vfs` over a local folder, as plain as can be. Inodes and handles are the local inodes' numbers, so a process that
//! knows nothing finds everything again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_client::vfs::*;
use atoll_core::attributes::{AttributeChanges, Attributes, FileKind, Timestamp};
use atoll_core::ids::{InodeId, ROOT};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{c_path, cvt};

/// READs and WRITEs from this offset on wait until the folder has a file called "go"; a signal ends the WRITEs.
pub const PATIENT_OFFSET: u64 = 1 << 30;

/// The filesystem.
pub struct Folder {
    root: PathBuf,
    root_ino: u64,
    paths: Mutex<HashMap<u64, PathBuf>>,
    files: Mutex<HashMap<u64, Arc<File>>>,
    /// Exclusive locks: (inode, is flock) -> owner.
    locks: Mutex<HashMap<(u64, bool), u64>>,
    unlocked: Notify,
    /// Sum of all forgotten lookups.
    pub forgotten: AtomicU64,
    /// WRITEs that were told to clear set-id bits.
    pub kill_priv: AtomicU64,
    /// How long the kernel may keep names and attributes.
    pub ttl: Duration,
}

fn errno(error: io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

impl Folder {
    pub fn new(root: &Path) -> Folder {
        let root_ino = fs::metadata(root).expect("root").ino();
        Folder {
            root: root.to_owned(),
            root_ino,
            paths: Mutex::default(),
            files: Mutex::default(),
            locks: Mutex::default(),
            unlocked: Notify::new(),
            forgotten: AtomicU64::new(0),
            kill_priv: AtomicU64::new(0),
            ttl: Duration::ZERO,
        }
    }

    fn path(&self, ino: InodeId) -> Result<PathBuf> {
        if ino == ROOT {
            return Ok(self.root.clone());
        }
        let known = self.paths.lock().get(&ino.0).cloned();
        if let Some(path) = known.filter(|path| fs::symlink_metadata(path).is_ok_and(|m| m.ino() == ino.0)) {
            return Ok(path);
        }
        let found = find(&self.root, ino.0).ok_or(Errno(libc::ESTALE))?;
        self.paths.lock().insert(ino.0, found.clone());
        Ok(found)
    }

    fn child(&self, parent: InodeId, name: &[u8]) -> Result<PathBuf> {
        Ok(self.path(parent)?.join(OsStr::from_bytes(name)))
    }

    fn file(&self, ino: u64) -> Result<Arc<File>> {
        if let Some(file) = self.files.lock().get(&ino) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(InodeId(ino))?;
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(errno)?;
        let file = Arc::new(file);
        self.files.lock().insert(ino, Arc::clone(&file));
        Ok(file)
    }

    fn attributes(&self, metadata: &Metadata) -> Attributes {
        let time = |seconds, nanos: i64| Timestamp { seconds, nanos: nanos as u32 };
        let ino = if metadata.ino() == self.root_ino { ROOT } else { InodeId(metadata.ino()) };
        Attributes {
            ino,
            mode: metadata.mode(),
            nlink: metadata.nlink() as u32,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: metadata.rdev() as u32,
            size: metadata.size(),
            allocated: metadata.blocks() * 512,
            atime: time(metadata.atime(), metadata.atime_nsec()),
            mtime: time(metadata.mtime(), metadata.mtime_nsec()),
            ctime: time(metadata.ctime(), metadata.ctime_nsec()),
            btime: Timestamp { seconds: 1, nanos: 2 },
            change: 0,
            acl: false,
        }
    }

    fn entry(&self, path: &Path) -> Result<Entry> {
        let metadata = fs::symlink_metadata(path).map_err(errno)?;
        self.paths.lock().insert(metadata.ino(), path.to_owned());
        Ok(Entry {
            attributes: self.attributes(&metadata),
            generation: 1,
            attribute_ttl: self.ttl,
            entry_ttl: self.ttl,
        })
    }

    fn reply(&self, ino: InodeId) -> Result<AttributeReply> {
        let open = self.files.lock().get(&ino.0).cloned();
        let metadata = match open {
            Some(file) => file.metadata(),
            None => fs::symlink_metadata(self.path(ino)?),
        };
        let attributes = self.attributes(&metadata.map_err(errno)?);
        Ok(AttributeReply { attributes, ttl: self.ttl })
    }

    fn opened(ino: InodeId) -> Opened {
        Opened { handle: ino.0, keep_cache: true, ..Opened::default() }
    }
}

fn find(folder: &Path, ino: u64) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let metadata = fs::symlink_metadata(entry.path()).ok()?;
        if metadata.ino() == ino {
            return Some(entry.path());
        }
        if metadata.is_dir()
            && let Some(found) = find(&entry.path(), ino)
        {
            return Some(found);
        }
    }
    None
}

fn own(caller: &Caller, path: &Path) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(caller.uid), Some(caller.gid)).map_err(errno)
}

impl Vfs for Folder {
    async fn lookup(&self, _: &Caller, parent: InodeId, name: Bytes) -> Result<Entry> {
        self.entry(&self.child(parent, &name)?)
    }

    async fn getattr(&self, _: &Caller, ino: InodeId, _: Option<u64>) -> Result<AttributeReply> {
        self.reply(ino)
    }

    async fn setattr(
        &self,
        _: &Caller,
        ino: InodeId,
        _: Option<u64>,
        changes: AttributeChanges,
    ) -> Result<AttributeReply> {
        if let Some(size) = changes.size {
            self.file(ino.0)?.set_len(size).map_err(errno)?;
        }
        if let Some(mode) = changes.mode {
            fs::set_permissions(self.path(ino)?, fs::Permissions::from_mode(mode)).map_err(errno)?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            std::os::unix::fs::lchown(self.path(ino)?, changes.uid, changes.gid).map_err(errno)?;
        }
        self.reply(ino)
    }

    async fn readlink(&self, _: &Caller, ino: InodeId) -> Result<Bytes> {
        let target = fs::read_link(self.path(ino)?).map_err(errno)?;
        Ok(Bytes::copy_from_slice(target.as_os_str().as_bytes()))
    }

    async fn symlink(&self, caller: &Caller, parent: InodeId, name: Bytes, target: Bytes) -> Result<Entry> {
        let path = self.child(parent, &name)?;
        std::os::unix::fs::symlink(OsStr::from_bytes(&target), &path).map_err(errno)?;
        own(caller, &path)?;
        self.entry(&path)
    }

    async fn mknod(&self, _: &Caller, parent: InodeId, name: Bytes, mode: u32, rdev: u32) -> Result<Entry> {
        let path = self.child(parent, &name)?;
        // SAFETY: a valid path; the call has no other preconditions.
        let made = unsafe { libc::mknod(c_path(&path).as_ptr(), mode, u64::from(rdev)) };
        cvt(i64::from(made)).map_err(Errno)?;
        self.entry(&path)
    }

    async fn mkdir(&self, caller: &Caller, parent: InodeId, name: Bytes, mode: u32) -> Result<Entry> {
        let path = self.child(parent, &name)?;
        fs::create_dir(&path).map_err(errno)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(errno)?;
        own(caller, &path)?;
        self.entry(&path)
    }

    async fn unlink(&self, _: &Caller, parent: InodeId, name: Bytes) -> Result<()> {
        let path = self.child(parent, &name)?;
        // An open file must be found without its name.
        if let Ok(metadata) = fs::symlink_metadata(&path)
            && metadata.is_file()
        {
            let _ = self.file(metadata.ino());
        }
        fs::remove_file(path).map_err(errno)
    }

    async fn rmdir(&self, _: &Caller, parent: InodeId, name: Bytes) -> Result<()> {
        fs::remove_dir(self.child(parent, &name)?).map_err(errno)
    }

    async fn rename(
        &self,
        _: &Caller,
        parent: InodeId,
        name: Bytes,
        new_parent: InodeId,
        new_name: Bytes,
        flags: u32,
    ) -> Result<()> {
        let (from, to) = (c_path(&self.child(parent, &name)?), c_path(&self.child(new_parent, &new_name)?));
        // SAFETY: valid paths; the call has no other preconditions.
        let done =
            unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
        cvt(i64::from(done)).map(drop).map_err(Errno)
    }

    async fn link(&self, _: &Caller, ino: InodeId, new_parent: InodeId, new_name: Bytes) -> Result<Entry> {
        let path = self.child(new_parent, &new_name)?;
        fs::hard_link(self.path(ino)?, &path).map_err(errno)?;
        self.entry(&path)
    }

    async fn open(&self, _: &Caller, ino: InodeId, flags: u32) -> Result<Opened> {
        let file = self.file(ino.0)?;
        if flags & libc::O_TRUNC as u32 != 0 {
            file.set_len(0).map_err(errno)?;
        }
        Ok(Folder::opened(ino))
    }

    async fn create(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let path = self.child(parent, &name)?;
        let exclusive = flags & libc::O_EXCL as u32 != 0;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).create_new(exclusive).mode(mode);
        let file = options.open(&path).map_err(errno)?;
        own(caller, &path)?;
        let entry = self.entry(&path)?;
        self.files.lock().insert(entry.attributes.ino.0, Arc::new(file));
        let opened = Folder::opened(entry.attributes.ino);
        Ok((entry, opened))
    }

    async fn tmpfile(&self, _: &Caller, parent: InodeId, mode: u32, _: u32) -> Result<(Entry, Opened)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_TMPFILE).mode(mode);
        let file = options.open(self.path(parent)?).map_err(errno)?;
        let attributes = self.attributes(&file.metadata().map_err(errno)?);
        let ino = attributes.ino;
        self.files.lock().insert(ino.0, Arc::new(file));
        let entry = Entry { attributes, generation: 1, attribute_ttl: self.ttl, entry_ttl: self.ttl };
        Ok((entry, Folder::opened(ino)))
    }

    async fn read(
        &self,
        _: &Caller,
        ino: InodeId,
        _: u64,
        offset: u64,
        size: u32,
        _: bool,
    ) -> Result<Vec<Bytes>> {
        let file = self.file(ino.0)?;
        // Every other page waits for another thread, so that both ways of answering are used.
        if offset / 4096 % 2 == 1 {
            tokio::task::yield_now().await;
        }
        while offset >= PATIENT_OFFSET && !self.root.join("go").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut data = vec![0; size as usize];
        let mut filled = 0;
        while filled < data.len() {
            match file.read_at(&mut data[filled..], offset + filled as u64).map_err(errno)? {
                0 => break,
                more => filled += more,
            }
        }
        data.truncate(filled);
        let mut data = Bytes::from(data);
        let tail = data.split_off(data.len() / 2);
        Ok(vec![data, tail])
    }

    async fn write(
        &self,
        caller: &Caller,
        ino: InodeId,
        _: u64,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<u32> {
        self.kill_priv.fetch_add(u64::from(flags.kill_priv), Ordering::Relaxed);
        let file = self.file(ino.0)?;
        if offset / 4096 % 2 == 1 {
            tokio::task::yield_now().await;
        }
        while offset >= PATIENT_OFFSET && !self.root.join("go").exists() {
            tokio::select! {
                () = caller.interrupt.interrupted() => return Err(Errno(libc::EINTR)),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
        file.write_all_at(&data, offset).map_err(errno)?;
        Ok(data.len() as u32)
    }

    async fn flush(&self, _: &Caller, ino: InodeId, _: u64, lock_owner: u64) -> Result<()> {
        self.unlock(ino.0, false, lock_owner);
        Ok(())
    }

    async fn release(
        &self,
        _: &Caller,
        ino: InodeId,
        _: u64,
        lock_owner: Option<u64>,
        flock: bool,
    ) -> Result<()> {
        if let (true, Some(owner)) = (flock, lock_owner) {
            self.unlock(ino.0, true, owner);
        }
        Ok(())
    }

    async fn fsync(&self, _: &Caller, ino: InodeId, _: u64, data_only: bool) -> Result<()> {
        let file = self.file(ino.0)?;
        if data_only { file.sync_data() } else { file.sync_all() }.map_err(errno)
    }

    async fn opendir(&self, _: &Caller, ino: InodeId, _: u32) -> Result<Opened> {
        Ok(Opened { handle: ino.0, ..Opened::default() })
    }

    async fn readdir(
        &self,
        _: &Caller,
        ino: InodeId,
        _: u64,
        cookie: u64,
        _: u32,
        plus: bool,
    ) -> Result<Vec<DirEntry>> {
        let folder = self.path(ino)?;
        let mut names: Vec<Bytes> = fs::read_dir(&folder)
            .map_err(errno)?
            .flatten()
            .map(|entry| Bytes::copy_from_slice(entry.file_name().as_bytes()))
            .collect();
        names.sort();
        let mut all = vec![Bytes::from_static(b"."), Bytes::from_static(b"..")];
        all.extend(names);
        let mut entries = Vec::new();
        for (at, name) in all.into_iter().enumerate().skip(cookie as usize) {
            let dots = at < 2;
            let entry = self.entry(&folder.join(OsStr::from_bytes(&name)))?;
            let kind = FileKind::of_mode(entry.attributes.mode).ok_or(Errno(libc::EIO))?;
            let ino = entry.attributes.ino;
            let entry = (plus && !dots).then_some(entry);
            entries.push(DirEntry { name, ino, kind, cookie: at as u64 + 1, entry });
        }
        Ok(entries)
    }

    async fn releasedir(&self, _: &Caller, _: InodeId, _: u64) -> Result<()> {
        Ok(())
    }

    async fn fsyncdir(&self, _: &Caller, ino: InodeId, _: u64, _: bool) -> Result<()> {
        File::open(self.path(ino)?).and_then(|folder| folder.sync_all()).map_err(errno)
    }

    async fn statfs(&self, _: &Caller, _: InodeId) -> Result<StatFs> {
        Ok(StatFs {
            blocks: 1000,
            blocks_free: 400,
            inodes: 77,
            inodes_free: 70,
            block_bytes: 4096,
            name_bytes_max: 255,
        })
    }

    async fn setxattr(
        &self,
        _: &Caller,
        ino: InodeId,
        name: Bytes,
        value: Bytes,
        flags: u32,
        _: bool,
    ) -> Result<()> {
        let (path, name) = (c_path(&self.path(ino)?), c_path(Path::new(OsStr::from_bytes(&name))));
        // SAFETY: valid strings, and a value of that length.
        let done = unsafe {
            libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags as i32)
        };
        cvt(i64::from(done)).map(drop).map_err(Errno)
    }

    async fn getxattr(&self, _: &Caller, ino: InodeId, name: Bytes) -> Result<Bytes> {
        let (path, name) = (c_path(&self.path(ino)?), c_path(Path::new(OsStr::from_bytes(&name))));
        let mut value = vec![0u8; 65_536];
        // SAFETY: valid strings, and room of that length.
        let bytes =
            unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(cvt(bytes as i64).map_err(Errno)? as usize);
        Ok(value.into())
    }

    async fn listxattr(&self, _: &Caller, ino: InodeId) -> Result<Bytes> {
        let path = c_path(&self.path(ino)?);
        let mut names = vec![0u8; 65_536];
        // SAFETY: a valid string, and room of that length.
        let bytes = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
        names.truncate(cvt(bytes as i64).map_err(Errno)? as usize);
        Ok(names.into())
    }

    async fn removexattr(&self, _: &Caller, ino: InodeId, name: Bytes) -> Result<()> {
        let (path, name) = (c_path(&self.path(ino)?), c_path(Path::new(OsStr::from_bytes(&name))));
        // SAFETY: valid strings.
        let done = unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) };
        cvt(i64::from(done)).map(drop).map_err(Errno)
    }

    async fn getlk(&self, _: &Caller, ino: InodeId, _: u64, owner: u64, lock: FileLock) -> Result<FileLock> {
        let held = self.locks.lock().get(&(ino.0, false)).copied();
        let kind = match held.filter(|holder| *holder != owner) {
            Some(_) => LockKind::Write,
            None => LockKind::Unlock,
        };
        Ok(FileLock { kind, pid: 4711, ..lock })
    }

    async fn setlk(
        &self,
        caller: &Caller,
        ino: InodeId,
        _: u64,
        owner: u64,
        lock: FileLock,
        flock: bool,
        wait: bool,
    ) -> Result<()> {
        loop {
            let unlocked = self.unlocked.notified();
            if lock.kind == LockKind::Unlock {
                self.unlock(ino.0, flock, owner);
                return Ok(());
            }
            if *self.locks.lock().entry((ino.0, flock)).or_insert(owner) == owner {
                return Ok(());
            }
            if !wait {
                return Err(Errno(libc::EAGAIN));
            }
            tokio::select! {
                () = unlocked => {}
                () = caller.interrupt.interrupted() => return Err(Errno(libc::EINTR)),
            }
        }
    }

    async fn fallocate(
        &self,
        _: &Caller,
        ino: InodeId,
        _: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        let file = self.file(ino.0)?;
        // SAFETY: an open descriptor.
        let done = unsafe { libc::fallocate(file.as_raw_fd(), mode as i32, offset as i64, length as i64) };
        cvt(i64::from(done)).map(drop).map_err(Errno)
    }

    async fn lseek(&self, _: &Caller, ino: InodeId, _: u64, offset: u64, kind: SeekKind) -> Result<u64> {
        let whence = match kind {
            SeekKind::Data => libc::SEEK_DATA,
            SeekKind::Hole => libc::SEEK_HOLE,
        };
        // SAFETY: an open descriptor.
        let found = unsafe { libc::lseek(self.file(ino.0)?.as_raw_fd(), offset as i64, whence) };
        cvt(found).map(|found| found as u64).map_err(Errno)
    }

    async fn copy_file_range(
        &self,
        _: &Caller,
        (from, _, mut from_offset): (InodeId, u64, u64),
        (to, _, mut to_offset): (InodeId, u64, u64),
        length: u64,
    ) -> Result<u64> {
        let (from, to) = (self.file(from.0)?, self.file(to.0)?);
        let (source, target) = ((&raw mut from_offset).cast(), (&raw mut to_offset).cast());
        // SAFETY: open descriptors and offsets that outlive the call.
        let copied = unsafe {
            libc::copy_file_range(from.as_raw_fd(), source, to.as_raw_fd(), target, length as usize, 0)
        };
        cvt(copied as i64).map(|copied| copied as u64).map_err(Errno)
    }

    fn forget(&self, _: InodeId, count: u64) {
        self.forgotten.fetch_add(count, Ordering::Relaxed);
    }
}

impl Folder {
    fn unlock(&self, ino: u64, flock: bool, owner: u64) {
        let mut locks = self.locks.lock();
        if locks.get(&(ino, flock)) == Some(&owner) {
            locks.remove(&(ino, flock));
            self.unlocked.notify_waiters();
        }
    }
}
