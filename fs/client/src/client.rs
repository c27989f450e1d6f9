//! The filesystem of one mount: POSIX on top of the metadata service and the data path.
//!
//! Of a volume that others mount, too, the kernel may keep nothing without asking (all timeouts are 0): see
//! [`rights`](crate::rights); of a volume for one machine it keeps names and attributes while the session is valid. Data is coherent from
//! close to open: opening a file asks the service for its current state, closing one commits what was
//! written. What the kernel holds in its pages stays good over an open if the file's change counter says that
//! only this client has changed it.
//!
//! Lookups are not counted. Requests name inodes by their numbers, so nothing here has to
//! live as long as the kernel knows an inode; what is kept of one is a cache, and `forget` empties it.

mod atimes;
mod attributes;
mod complete;
mod described;
mod directories;
mod files;
mod gone;
mod handles;
mod identity;
mod keeping;
mod kept;
mod locks;
mod names;
mod pages;
mod succession;
mod tracked;
mod xattrs;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_core::attributes::{AttributeChanges, Attributes, FileKind, KillPriv};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, ROOT};
use atoll_core::limits::NAME_BYTES_MAX;
use atoll_proto::queries;
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::arena::Arena;
use crate::data::{DataConfig, DataPath};
use crate::metadata::{ClientError, Event, Metadata};
use crate::origin;
use crate::storage_pool::Storage;
use crate::vfs::{
    AttributeReply, Caller, DirEntry, Entry, FileLock, Opened, Result, SeekKind, StatFs, Vfs, WriteFlags,
};
use atimes::Atimes;
use complete::Complete;
use described::Described;
use gone::{LookAgain, Target};
use handles::Handles;
use keeping::Asked;
use pages::{Pages, Stale};
use xattrs::AclMemory;
use {kept::Kept, locks::Locks};
pub use {succession::Succession, tracked::Tracked};

/// A signal ends an operation only once the cluster has been away for so long: programs don't expect `EINTR`
/// from a file, and signals come for reasons of their own (a runtime's timers, for example).
pub const INTERRUPT_AFTER: Duration = Duration::from_secs(10);
/// How often a signalled operation looks whether that is the case.
const INTERRUPT_POLL: Duration = Duration::from_millis(500);
/// The root's attributes come from memory when the service doesn't answer for so long.
const ROOT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a read of the kernel's takes at most, on a machine that isn't starved, from finding a page to looking at the
/// file's size (`filemap_read` in mm/filemap.c). A page that is invalidated in between is served as far as that size.
const READ_GRACE: Duration = Duration::from_millis(2);
/// How often it is looked whether threads that were told a smaller size have gone on.
const CUT_POLL: Duration = Duration::from_millis(1);
/// Removed inodes whose last attributes are kept for who still refers to them without having them open.
const REMOVED_MAX: usize = 1024;

/// How `O_APPEND` is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Append {
    /// Each write is committed at once, at the end that the file has then, whoever else appends.
    #[default]
    Shared,
    /// Writes are buffered at the end as this mount knows it. Only for volumes that nobody else mounts.
    Exclusive,
}

/// Settings of a mount.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Limits of the data path (write-behind age, read-ahead and the like).
    pub data: DataConfig,
    /// How `O_APPEND` is carried out.
    pub append: Append,
    /// Bytes of one block in `statfs`.
    pub block_bytes: u32,
    /// Reading a file moves its access time, as `relatime` has it; otherwise it stays.
    pub access_times: bool,
}

impl ClientOptions {
    /// The usual settings with an arena of `arena_bytes`.
    #[must_use]
    pub fn for_arena(arena_bytes: u64) -> Self {
        ClientOptions {
            data: DataConfig::for_arena(arena_bytes),
            append: Append::default(),
            block_bytes: atoll_core::limits::BLOCK_BYTES as u32,
            access_times: true,
        }
    }
}

/// Tells the kernel what it must not keep; the transport implements it.
pub trait Notifier: Send + Sync {
    /// Drops the pages of a range of a file. Completes when they are gone, however that goes.
    fn invalidate(&self, ino: InodeId, offset: u64, length: u64) -> BoxFuture<'_, ()>;
    /// Makes what the kernel has asked of a file's attributes void. Completes when it takes no answer up any more that was
    /// asked for before this.
    fn void(&self, ino: InodeId) -> BoxFuture<'_, ()>;
}

/// See the module.
pub struct Client<M: Metadata> {
    metadata: Arc<Tracked<M>>,
    data: DataPath<Tracked<M>>,
    options: ClientOptions,
    handles: Arc<Handles>,
    pages: Arc<Pages>,
    locks: Arc<Locks>,
    atimes: Arc<Atimes>,
    /// Which inodes have access control lists, as the kernel was told last.
    acls: AclMemory,
    kept: Arc<Kept>,
    described: Arc<Described>,
    complete: Arc<Complete>,
    /// The root's attributes as they were seen last.
    root: Mutex<Option<Attributes>>,
    /// Inodes that this mount removed, until the kernel forgets them.
    removed: Mutex<HashMap<InodeId, Attributes>>,
    /// How often changes were lost that were done and not committed.
    losses: AtomicU64,
    /// Who was told to look again.
    look_again: LookAgain,
    notifier: RwLock<Option<Arc<dyn Notifier>>>,
}

impl<M: Metadata> Client<M> {
    /// A mount over these services. `storage` gets the metadata service as the data path sees it. Needs a tokio
    /// runtime.
    pub fn new(
        metadata: Arc<M>,
        storage: impl FnOnce(&Arc<Tracked<M>>) -> Arc<dyn Storage>,
        arena: Arc<Arena>,
        options: ClientOptions,
    ) -> Arc<Self> {
        let pages = Arc::new(Pages::default());
        let handles = Arc::new(Handles::recorded_in(Arc::clone(&arena)));
        let (kept, described, complete) =
            (Arc::<Kept>::default(), Arc::<Described>::default(), Arc::<Complete>::default());
        let tracked = Tracked::new(
            metadata,
            Arc::clone(&pages),
            Arc::clone(&handles),
            Arc::clone(&kept),
            Arc::clone(&described),
            Arc::clone(&complete),
        );
        let metadata = Arc::new(tracked);
        let storage = storage(&metadata);
        let client = Arc::new(Client {
            data: DataPath::new(Arc::clone(&metadata), storage, arena, options.data.clone()),
            metadata,
            options,
            handles,
            pages,
            locks: Arc::default(),
            atimes: Arc::default(),
            acls: AclMemory::default(),
            kept,
            described,
            complete,
            root: Mutex::default(),
            removed: Mutex::default(),
            losses: AtomicU64::new(0),
            look_again: LookAgain::default(),
            notifier: RwLock::default(),
        });
        let weak = Arc::downgrade(&client);
        let runtime = tokio::runtime::Handle::current();
        client.metadata.subscribe(Box::new(move |event| {
            let Some(client) = weak.upgrade() else { return };
            match event {
                Event::SessionLost { was_parted } => {
                    client.described.forget_all();
                    client.complete.session_lost();
                    // First the handles: the data path forgets what they had written.
                    let lost = client.lost_changes();
                    let locks_are_lost = was_parted && client.keeps_locks_in_the_kernel();
                    client.handles.break_files(|ino| {
                        locks_are_lost || lost.contains(&ino) || client.data.has_dirty(ino)
                    });
                    client.handles.break_handles(&client.locks.lost());
                    client.data.on_session_lost();
                    client.data.lose_changes(lost);
                }
                Event::JournalLost => {
                    client.described.forget_all();
                    client.complete.session_lost();
                    let lost = client.lost_changes();
                    client.handles.break_files(|ino| lost.contains(&ino));
                    client.data.lose_changes(lost);
                }
                Event::ReturnReservation => {
                    runtime.spawn(async move { client.data.return_reservation().await });
                }
            }
        }));
        client
    }

    /// Whether the kernel is the one that decides on locks: nobody else has the volume. What is locked isn't known here.
    #[must_use]
    pub fn keeps_locks_in_the_kernel(&self) -> bool {
        self.metadata.config().exclusive
    }

    /// Where notifications to the kernel go from now on.
    pub fn set_notifier(&self, notifier: Arc<dyn Notifier>) {
        *self.notifier.write() = Some(notifier);
    }

    /// The data path, for its counters.
    #[must_use]
    pub fn data(&self) -> &DataPath<Tracked<M>> {
        &self.data
    }

    /// The metadata service.
    #[must_use]
    pub fn metadata(&self) -> &Arc<M> {
        self.metadata.inner()
    }

    /// Asks for the root, so that its attributes are in memory: a mount is usable after this.
    ///
    /// # Errors
    /// If the service refuses.
    pub async fn warm_up(&self) -> std::result::Result<(), ClientError> {
        let attributes = self.metadata.ask(queries::GetAttr { ino: ROOT }).await?;
        *self.root.lock() = Some(attributes);
        Ok(())
    }

    /// Before a graceful end: commits everything that is buffered and gives back what is reserved. The session is
    /// to be ended after this.
    ///
    /// # Errors
    /// If something can't be committed; it is still in the arena then.
    pub async fn stop(&self) -> std::result::Result<(), ClientError> {
        while atimes::tell(&self.atimes, &*self.metadata).await {}
        self.data.close().await?;
        self.metadata.sync().await
    }

    /// Runs an operation; a signal ends it early only while the cluster is away.
    async fn interruptible<T>(
        &self,
        caller: &Caller,
        operation: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let signalled = AtomicBool::new(false);
        let given_up = async {
            caller.interrupt.interrupted().await;
            signalled.store(true, Ordering::Relaxed);
            while self.metadata.away_for().is_none_or(|away| away < INTERRUPT_AFTER) {
                tokio::time::sleep(INTERRUPT_POLL).await;
            }
        };
        let result = tokio::select! {
            biased;
            result = operation => result,
            () = given_up => Err(FsError::Interrupted.into()),
        };
        if signalled.load(Ordering::Relaxed) {
            // What comes next of the same request (a wait for a lock) must hear of it too.
            caller.interrupt.renew();
        }
        result
    }

    /// Carries out a request of the kernel's.
    async fn serve<T>(
        &self,
        caller: &Caller,
        target: Target,
        operation: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let result = origin::serving(caller.request, self.interruptible(caller, operation)).await;
        self.told_of(target, result)
    }

    /// A result as the application is to hear it.
    fn told_of<T>(&self, target: Target, result: Result<T>) -> Result<T> {
        gone::told(result, target, |ino| self.handles.has_handle(ino))
    }

    /// Asks for an inode.
    async fn inode(&self, ino: InodeId) -> std::result::Result<Attributes, ClientError> {
        self.metadata.ask(queries::GetAttr { ino }).await
    }

    /// Takes note of attributes that a mutation of this client's left.
    fn changed(&self, attributes: &Attributes) {
        match attributes.kind() {
            FileKind::File => self.data.after_change(attributes.ino, attributes),
            _ if attributes.ino == ROOT => *self.root.lock() = Some(attributes.clone()),
            _ => {}
        }
    }

    /// Takes note of attributes that the service told; returns them with what is buffered here.
    fn seen(&self, mut attributes: Attributes) -> Attributes {
        self.acls.told(&attributes);
        if attributes.kind() == FileKind::File {
            self.pages.learn(attributes.ino, attributes.size);
            self.handles.learn(&attributes);
            self.data.overlay(attributes.ino, &mut attributes);
            self.atimes.overlay(&mut attributes);
        } else if attributes.ino == ROOT {
            *self.root.lock() = Some(attributes.clone());
        }
        attributes
    }

    /// Has the kernel take no attributes up that it asked for before this. False if it can't be told.
    async fn void(&self, mut stale: Stale) -> bool {
        let Some(notifier) = self.notifier.read().clone() else { return false };
        notifier.void(stale.ino()).await;
        self.pages.dropped(&mut stale, Instant::now());
        true
    }

    /// Has the kernel drop pages, and waits until they are gone. False if it can't be told: they stay suspect.
    async fn drop_pages(&self, stale: Stale) -> bool {
        self.invalidate(stale).await.is_some()
    }

    /// The same before it hears that the file has grown.
    async fn drop_end(&self, stale: Stale) -> bool {
        let Some(gone) = self.invalidate(stale).await else { return false };
        // It is waited for even if nobody waits here any more.
        let _ = gone.await;
        true
    }

    /// Has the kernel drop pages; what is returned ends when nobody is served with one of them any more. `None`: it can't be
    /// told.
    async fn invalidate(&self, mut stale: Stale) -> Option<JoinHandle<()>> {
        let notifier = self.notifier.read().clone()?;
        let length = stale.range.end - stale.range.start;
        notifier.invalidate(stale.ino(), stale.range.start, length).await;
        self.pages.dropped(&mut stale, Instant::now());
        let pages = Arc::clone(&self.pages);
        Some(tokio::spawn(async move {
            if stale.has_no_end() {
                // A read that has found such a page looks at the size next. The kernel doesn't wait for it.
                tokio::time::sleep(READ_GRACE).await;
            }
            pages.gone(&stale);
        }))
    }

    /// Commits what is buffered of a file before something happens that must not come before it.
    async fn settle(&self, ino: InodeId) -> std::result::Result<(), ClientError> {
        match self.data.has_dirty(ino) {
            true => self.data.flush(ino).await,
            false => Ok(()),
        }
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    match name.len() > NAME_BYTES_MAX {
        true => Err(FsError::NameTooLong.into()),
        false => Ok(()),
    }
}

impl<M: Metadata> Vfs for Client<M> {
    async fn lookup(&self, caller: &Caller, parent: InodeId, name: Bytes) -> Result<Entry> {
        self.serve(caller, Target::Name, self.do_lookup(caller, parent, name)).await
    }

    async fn getattr(&self, caller: &Caller, ino: InodeId, _handle: Option<u64>) -> Result<AttributeReply> {
        self.serve(caller, Target::Inode(ino), self.do_getattr(caller, ino, self.asking())).await
    }

    async fn setattr(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: Option<u64>,
        changes: AttributeChanges,
    ) -> Result<AttributeReply> {
        self.serve(caller, Target::Inode(ino), self.do_setattr(caller, ino, handle, changes)).await
    }

    async fn readlink(&self, caller: &Caller, ino: InodeId) -> Result<Bytes> {
        self.serve(caller, Target::Inode(ino), self.do_readlink(ino)).await
    }

    async fn symlink(&self, caller: &Caller, parent: InodeId, name: Bytes, target: Bytes) -> Result<Entry> {
        let mode = FileKind::Symlink.mode_bits() | 0o777;
        self.serve(caller, Target::Name, self.do_mknod(caller, parent, name, mode, 0, target)).await
    }

    async fn mknod(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        mode: u32,
        rdev: u32,
    ) -> Result<Entry> {
        self.serve(caller, Target::Name, self.do_mknod(caller, parent, name, mode, rdev, Bytes::new())).await
    }

    async fn mkdir(&self, caller: &Caller, parent: InodeId, name: Bytes, mode: u32) -> Result<Entry> {
        let mode = FileKind::Directory.mode_bits() | (mode & 0o7777);
        self.serve(caller, Target::Name, self.do_mknod(caller, parent, name, mode, 0, Bytes::new())).await
    }

    async fn unlink(&self, caller: &Caller, parent: InodeId, name: Bytes) -> Result<()> {
        self.serve(caller, Target::Name, self.do_unlink(caller, parent, name, false)).await
    }

    async fn rmdir(&self, caller: &Caller, parent: InodeId, name: Bytes) -> Result<()> {
        self.serve(caller, Target::Name, self.do_unlink(caller, parent, name, true)).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        new_parent: InodeId,
        new_name: Bytes,
        flags: u32,
    ) -> Result<()> {
        self.serve(
            caller,
            Target::Name,
            self.do_rename(caller, (parent, name), (new_parent, new_name), flags),
        )
        .await
    }

    async fn link(
        &self,
        caller: &Caller,
        ino: InodeId,
        new_parent: InodeId,
        new_name: Bytes,
    ) -> Result<Entry> {
        self.serve(caller, Target::Name, self.do_link(caller, ino, new_parent, new_name)).await
    }

    async fn open(&self, caller: &Caller, ino: InodeId, flags: u32) -> Result<Opened> {
        self.serve(
            caller,
            Target::Inode(ino),
            self.do_open(ino, Some(caller.pid), flags, KillPriv::CAPABILITY),
        )
        .await
    }

    async fn create(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let made = self.do_create(caller, parent, name.clone(), mode, flags);
        match self.serve(caller, Target::Name, made).await? {
            Some(made) => Ok(made),
            None => Err(self.look_again.answer(caller.pid, parent, name)),
        }
    }

    async fn tmpfile(
        &self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        self.serve(caller, Target::Name, self.do_tmpfile(caller, parent, mode, flags)).await
    }

    async fn read(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        size: u32,
        fills_pages: bool,
    ) -> Result<Vec<Bytes>> {
        self.serve(caller, Target::OpenFile, self.do_read(ino, handle, offset, size, fills_pages)).await
    }

    async fn write(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<u32> {
        let write = files::WriteRequest { offset, data, flags };
        self.serve(caller, Target::OpenFile, self.do_write(caller, ino, handle, write)).await
    }

    async fn flush(&self, caller: &Caller, ino: InodeId, handle: u64, lock_owner: u64) -> Result<()> {
        self.pages.gone_on(ino, caller.pid, Instant::now());
        let flushed = self.serve(caller, Target::OpenFile, self.do_flush(ino, handle)).await;
        self.serve(caller, Target::OpenFile, self.release_owner(ino, lock_owner)).await?;
        flushed
    }

    /// Locks of the open file itself (`flock`, `F_OFD_SETLK`) go with it.
    async fn release(
        &self,
        _caller: &Caller,
        ino: InodeId,
        handle: u64,
        _lock_owner: Option<u64>,
        _flock: bool,
    ) -> Result<()> {
        let released = self.release_handle(ino, handle).await;
        self.do_release(handle);
        self.told_of(Target::OpenFile, released)
    }

    async fn fsync(&self, caller: &Caller, ino: InodeId, handle: u64, _data_only: bool) -> Result<()> {
        // A commit carries size and times along: there is nothing less to do for data alone.
        self.serve(caller, Target::OpenFile, self.do_fsync(ino, handle)).await
    }

    async fn opendir(&self, _caller: &Caller, ino: InodeId, _flags: u32) -> Result<Opened> {
        Ok(self.do_opendir(ino))
    }

    async fn readdir(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: u64,
        cookie: u64,
        bytes: u32,
        plus: bool,
    ) -> Result<Vec<DirEntry>> {
        self.serve(caller, Target::Name, self.do_readdir(caller, ino, handle, cookie, bytes, plus)).await
    }

    async fn releasedir(&self, _caller: &Caller, _ino: InodeId, handle: u64) -> Result<()> {
        self.handles.remove(handle);
        Ok(())
    }

    async fn fsyncdir(&self, _caller: &Caller, _ino: InodeId, handle: u64, _data_only: bool) -> Result<()> {
        self.do_fsyncdir(handle).await
    }

    async fn statfs(&self, _caller: &Caller, _ino: InodeId) -> Result<StatFs> {
        Ok(self.volume_use().await)
    }

    async fn setxattr(
        &self,
        caller: &Caller,
        ino: InodeId,
        name: Bytes,
        value: Bytes,
        flags: u32,
        kill_sgid: bool,
    ) -> Result<()> {
        let set = async {
            self.do_setxattr(ino, name, value, flags, kill_sgid).await?;
            self.void_kept(caller, [ino]).await;
            Ok(())
        };
        self.serve(caller, Target::Inode(ino), set).await
    }

    async fn getxattr(&self, caller: &Caller, ino: InodeId, name: Bytes) -> Result<Bytes> {
        self.serve(caller, Target::Inode(ino), self.do_getxattr(ino, name)).await
    }

    async fn listxattr(&self, caller: &Caller, ino: InodeId) -> Result<Bytes> {
        self.serve(caller, Target::Inode(ino), self.do_listxattr(caller, ino)).await
    }

    async fn removexattr(&self, caller: &Caller, ino: InodeId, name: Bytes) -> Result<()> {
        let removed = async {
            self.do_removexattr(caller, ino, name).await?;
            self.void_kept(caller, [ino]).await;
            Ok(())
        };
        self.serve(caller, Target::Inode(ino), removed).await
    }

    async fn getlk(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: u64,
        owner: u64,
        lock: FileLock,
    ) -> Result<FileLock> {
        self.serve(caller, Target::OpenFile, self.do_getlk(ino, handle, owner, lock)).await
    }

    async fn setlk(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: u64,
        owner: u64,
        lock: FileLock,
        flock: bool,
        wait: bool,
    ) -> Result<()> {
        let taken = self.do_setlk(caller, (ino, handle, owner), lock, flock, wait).await;
        self.told_of(Target::OpenFile, taken)
    }

    async fn fallocate(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        self.serve(caller, Target::OpenFile, self.do_fallocate(caller, (ino, handle), offset, length, mode))
            .await
    }

    async fn lseek(
        &self,
        caller: &Caller,
        ino: InodeId,
        _handle: u64,
        offset: u64,
        kind: SeekKind,
    ) -> Result<u64> {
        self.serve(caller, Target::OpenFile, self.do_lseek(ino, offset, kind)).await
    }

    async fn copy_file_range(
        &self,
        caller: &Caller,
        from: (InodeId, u64, u64),
        to: (InodeId, u64, u64),
        length: u64,
    ) -> Result<u64> {
        self.serve(caller, Target::OpenFile, self.do_copy_file_range(caller, from, to, length)).await
    }

    fn answered(&self, request: u64) {
        self.metadata.answered(request);
    }

    fn forget(&self, ino: InodeId, _count: u64) {
        if !self.removed.lock().is_empty() {
            self.removed.lock().remove(&ino);
        }
        if self.handles.file(ino).is_none() {
            self.pages.forget(ino);
            self.data.forget(ino);
            self.atimes.forget(ino);
        }
    }
}

#[cfg(test)]
mod posix_tests;
#[cfg(test)]
mod tests;
