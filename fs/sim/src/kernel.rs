//! What the kernel does between an application and a mount: it keeps pages of files and serves them without asking.
//!
//! Only what decides which bytes an application reads, after fs/fuse/file.c, fs/fuse/inode.c and mm/filemap.c of Linux 6.18:
//!
//! - a READ fills a locked page, behind the end of what it brought with zeroes; a short one makes the file shorter;
//! - a WRITE through a page has it locked until it is answered, unless it is filled (`fuse_fill_write_pages`), and sees to the
//!   size whatever was answered meanwhile;
//! - attributes are taken up unless something has changed the inode's version since they were asked for; another size than the
//!   known one cuts the pages off there (`fuse_change_attributes`), also if it is a larger one, and however long after that;
//! - an invalidation makes older attributes void, and waits for locked pages (`fuse_reverse_inval_inode`);
//! - the size counts that is known after a page was found (`filemap_read`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_client::client::Notifier;
use atoll_client::vfs::{AttributeReply, Caller, FileLock, LockKind, Opened, Result, Vfs, WriteFlags};
use atoll_core::ids::InodeId;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::nodes::FileSystem;

const PAGE_BYTES: usize = 4096;
/// Microseconds that the kernel takes for something, at most: whatever else is ready comes first, or doesn't.
const STEP_MICROSECONDS_MAX: u64 = 300;
/// Milliseconds for which a thread stands still at most that has no processor.
const PREEMPTED_MILLISECONDS_MAX: u64 = 20;
/// One in so many does.
const PREEMPTED_ONE_IN: u32 = 8;
/// Milliseconds after which a thread processes a reply at most, …
const LATE_MILLISECONDS_MAX: u64 = 150;
/// … one in so many later than at once.
const LATE_ONE_IN: u32 = 16;

/// A page. Who has found one may still copy from it after it is gone from the inode's mapping.
#[derive(Default)]
struct Page {
    /// Held by whoever fills, writes or drops it. True: it is no page of the inode any more.
    gone: Arc<tokio::sync::Mutex<bool>>,
    /// `None`: not filled (`PG_uptodate`).
    bytes: Mutex<Option<Box<[u8; PAGE_BYTES]>>>,
}

#[derive(Default)]
struct Inode {
    size: u64,
    attr_version: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

/// What the kernel knows of all inodes of a mount.
#[derive(Default)]
struct Cache {
    inodes: Mutex<HashMap<InodeId, Inode>>,
    attr_version: AtomicU64,
}

/// One mount's kernel.
pub struct Kernel {
    files: Arc<FileSystem>,
    cache: Arc<Cache>,
    /// Handles with `FOPEN_DIRECT_IO`.
    direct: Mutex<BTreeSet<u64>>,
}

async fn step() {
    tokio::time::sleep(Duration::from_micros(rand::random_range(0..STEP_MICROSECONDS_MAX))).await;
}

/// A step of a thread that something else may have taken the processor from.
async fn preempted() {
    step().await;
    if rand::random_ratio(1, PREEMPTED_ONE_IN) {
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..PREEMPTED_MILLISECONDS_MAX))).await;
    }
}

/// A thread that has been given a reply, and goes on whenever it gets a processor.
async fn late() {
    step().await;
    if rand::random_ratio(1, LATE_ONE_IN) {
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..LATE_MILLISECONDS_MAX))).await;
    }
}

impl Cache {
    fn version(&self) -> u64 {
        self.attr_version.load(Ordering::Relaxed)
    }

    fn next_version(&self) -> u64 {
        self.attr_version.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn size(&self, ino: InodeId) -> u64 {
        self.inodes.lock().get(&ino).map_or(0, |inode| inode.size)
    }

    fn page(&self, ino: InodeId, number: u64) -> Arc<Page> {
        Arc::clone(self.inodes.lock().entry(ino).or_default().pages.entry(number).or_default())
    }

    /// A page of the inode's, locked.
    async fn locked(&self, ino: InodeId, number: u64) -> (Arc<Page>, tokio::sync::OwnedMutexGuard<bool>) {
        loop {
            let page = self.page(ino, number);
            let gone = Arc::clone(&page.gone).lock_owned().await;
            if !*gone {
                return (page, gone);
            }
        }
    }

    /// Drops a range of pages when nobody has them locked.
    async fn drop_pages(&self, ino: InodeId, from: u64, to: u64) {
        for (number, page) in self.pages(ino, from, to) {
            let mut gone = page.gone.lock().await;
            if !std::mem::replace(&mut *gone, true)
                && let Some(inode) = self.inodes.lock().get_mut(&ino)
            {
                inode.pages.remove(&number);
            }
            drop(gone);
            step().await;
        }
    }

    fn pages(&self, ino: InodeId, from: u64, to: u64) -> Vec<(u64, Arc<Page>)> {
        let inodes = self.inodes.lock();
        let pages = inodes.get(&ino).into_iter().flat_map(|inode| inode.pages.range(from..=to));
        pages.map(|(number, page)| (*number, Arc::clone(page))).collect()
    }

    /// `fuse_change_attributes`.
    async fn take_up(&self, ino: InodeId, size: u64, asked_at: u64) {
        {
            let mut inodes = self.inodes.lock();
            let inode = inodes.entry(ino).or_default();
            if inode.attr_version > asked_at {
                return;
            }
            inode.attr_version = self.next_version();
            if std::mem::replace(&mut inode.size, size) == size {
                return;
            }
        }
        preempted().await;
        let within = size as usize % PAGE_BYTES;
        if within > 0 {
            let number = size / PAGE_BYTES as u64;
            while let Some((_, page)) = self.pages(ino, number, number).pop() {
                let gone = page.gone.lock().await;
                // While it was waited for it was dropped: another one may be in its place, and be waited for in turn.
                if *gone {
                    continue;
                }
                if let Some(bytes) = &mut *page.bytes.lock() {
                    bytes[within..].fill(0);
                }
                break;
            }
        }
        self.drop_pages(ino, size.div_ceil(PAGE_BYTES as u64), u64::MAX).await;
    }

    /// The file ends at least there, after a WRITE (`fuse_write_update_attr`).
    fn grow(&self, ino: InodeId, end: u64) {
        let version = self.next_version();
        let mut inodes = self.inodes.lock();
        let inode = inodes.entry(ino).or_default();
        inode.attr_version = version;
        inode.size = inode.size.max(end);
    }

    /// A READ was answered short (`fuse_read_update_size`).
    fn shrink(&self, ino: InodeId, end: u64, asked_at: u64) {
        let mut inodes = self.inodes.lock();
        let inode = inodes.entry(ino).or_default();
        if asked_at >= inode.attr_version && end < inode.size {
            inode.attr_version = self.next_version();
            inode.size = end;
        }
    }
}

impl Notifier for Cache {
    fn invalidate(&self, ino: InodeId, offset: u64, length: u64) -> BoxFuture<'_, ()> {
        async move {
            step().await;
            let version = self.next_version();
            self.inodes.lock().entry(ino).or_default().attr_version = version;
            let (from, to) = (offset / PAGE_BYTES as u64, offset.saturating_add(length) / PAGE_BYTES as u64);
            self.drop_pages(ino, from, to).await;
        }
        .boxed()
    }

    fn void(&self, ino: InodeId) -> BoxFuture<'_, ()> {
        async move {
            step().await;
            let version = self.next_version();
            self.inodes.lock().entry(ino).or_default().attr_version = version;
        }
        .boxed()
    }
}

impl Kernel {
    /// Between applications and this filesystem.
    #[must_use]
    pub fn new(files: &Arc<FileSystem>) -> Kernel {
        let cache = Arc::new(Cache::default());
        files.set_notifier(Arc::clone(&cache) as Arc<dyn Notifier>);
        Kernel { files: Arc::clone(files), cache, direct: Mutex::default() }
    }

    /// open(2), of an inode that the kernel has looked up.
    ///
    /// # Errors
    /// The filesystem's, as all here.
    pub async fn open(&self, caller: &Caller, ino: InodeId, flags: i32) -> Result<Opened> {
        self.stat(caller, ino).await?;
        let opened = self.files.open(caller, ino, flags as u32).await?;
        if opened.direct_io {
            self.direct.lock().insert(opened.handle);
        } else if !opened.keep_cache {
            self.cache.drop_pages(ino, 0, u64::MAX).await;
        }
        Ok(opened)
    }

    fn is_direct(&self, handle: u64) -> bool {
        self.direct.lock().contains(&handle)
    }

    /// fstat(2); attributes are never kept.
    pub async fn stat(&self, caller: &Caller, ino: InodeId) -> Result<AttributeReply> {
        let asked_at = self.cache.version();
        let reply = self.files.getattr(caller, ino, None).await?;
        late().await;
        self.cache.take_up(ino, reply.attributes.size, asked_at).await;
        Ok(reply)
    }

    /// pread(2) through the pages.
    pub async fn read(
        &self,
        caller: &Caller,
        (ino, handle): (InodeId, u64),
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>> {
        if self.is_direct(handle) {
            let read = self.files.read(caller, ino, handle, offset, length as u32, false).await;
            step().await;
            return Ok(read?.concat());
        }
        if offset + length as u64 > self.cache.size(ino) {
            self.stat(caller, ino).await?;
        }
        let mut read = Vec::new();
        while read.len() < length {
            let place = offset + read.len() as u64;
            if place >= self.cache.size(ino) {
                break;
            }
            let number = place / PAGE_BYTES as u64;
            let mut page = self.cache.page(ino, number);
            if page.bytes.lock().is_none() {
                let (locked, _guard) = self.cache.locked(ino, number).await;
                if locked.bytes.lock().is_none() {
                    let filled = self.fill(caller, (ino, handle), number * PAGE_BYTES as u64).await?;
                    *locked.bytes.lock() = Some(filled);
                }
                page = locked;
            }
            step().await;
            let size = self.cache.size(ino);
            let bytes = page.bytes.lock();
            let Some(bytes) = bytes.as_deref().filter(|_| place < size) else { break };
            let within = place as usize % PAGE_BYTES;
            let more = (length - read.len()).min(PAGE_BYTES - within).min((size - place) as usize);
            read.extend_from_slice(&bytes[within..within + more]);
        }
        Ok(read)
    }

    /// READ of a page.
    async fn fill(
        &self,
        caller: &Caller,
        (ino, handle): (InodeId, u64),
        start: u64,
    ) -> Result<Box<[u8; PAGE_BYTES]>> {
        let asked_at = self.cache.version();
        let parts = self.files.read(caller, ino, handle, start, PAGE_BYTES as u32, true).await?;
        step().await;
        let mut bytes = Box::new([0; PAGE_BYTES]);
        let mut length = 0;
        for part in parts {
            bytes[length..length + part.len()].copy_from_slice(&part);
            length += part.len();
        }
        if length < PAGE_BYTES {
            self.cache.shrink(ino, start + length as u64, asked_at);
        }
        Ok(bytes)
    }

    /// pwrite(2) through the pages, within one of them.
    pub async fn write(
        &self,
        caller: &Caller,
        (ino, handle): (InodeId, u64),
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        if self.is_direct(handle) {
            let bytes = Bytes::copy_from_slice(data);
            let written = self.files.write(caller, ino, handle, offset, bytes, WriteFlags::default()).await;
            step().await;
            return written.map(|length| self.cache.grow(ino, offset + u64::from(length)));
        }
        let (page, locked) = self.cache.locked(ino, offset / PAGE_BYTES as u64).await;
        let mut locked = Some(locked);
        if let Some(bytes) = &mut *page.bytes.lock() {
            let within = offset as usize % PAGE_BYTES;
            bytes[within..within + data.len()].copy_from_slice(data);
            locked = None;
        }
        let bytes = Bytes::copy_from_slice(data);
        let written = self.files.write(caller, ino, handle, offset, bytes, WriteFlags::default()).await;
        step().await;
        match written {
            Ok(length) => self.cache.grow(ino, offset + u64::from(length)),
            Err(_) => *page.bytes.lock() = None,
        }
        drop(locked);
        written.map(drop)
    }

    /// write(2) through a descriptor with `O_APPEND`: past the pages.
    pub async fn append(&self, caller: &Caller, (ino, handle): (InodeId, u64), data: Bytes) -> Result<()> {
        let guess = self.cache.size(ino);
        let how = WriteFlags { append: true, direct: true, ..WriteFlags::default() };
        let length = self.files.write(caller, ino, handle, guess, data, how).await?;
        step().await;
        self.cache.grow(ino, guess + u64::from(length));
        Ok(())
    }

    /// `fcntl` with `F_SETLKW`, for these bytes.
    pub async fn lock(
        &self,
        caller: &Caller,
        (ino, handle): (InodeId, u64),
        owner: u64,
        range: Range<u64>,
        kind: LockKind,
    ) -> Result<()> {
        let lock = FileLock { kind, start: range.start, end: range.end - 1, pid: 1 };
        self.files.setlk(caller, ino, handle, owner, lock, false, kind != LockKind::Unlock).await
    }

    /// close(2), of the process's only descriptor of the file.
    pub async fn close(&self, caller: &Caller, (ino, handle): (InodeId, u64), owner: u64) -> Result<()> {
        let flushed = self.files.flush(caller, ino, handle, owner).await;
        self.files.release(caller, ino, handle, None, false).await?;
        self.direct.lock().remove(&handle);
        flushed
    }
}
