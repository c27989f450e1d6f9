//! Locks as the kernel asks for them: `flock`, record locks of processes and of open files, with waiting.
//!
//! The leader has the truth, in its memory. What this client holds is known here too, so that closing a file costs nothing
//! unless there is something to let go of, and so that it is known what is lost with a session; and by the session, which
//! tells it to a new leader. Requests about one inode's locks go out one after another; waiting is done outside of that, all
//! of it by one question to the service that is asked again and again while anybody waits.
//!
//! Taking a lock and releasing one are one request each. The reply to who takes a lock brings the file as of then, so that
//! nothing else has to be asked for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_blocking::Detach;
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_core::lock_table::Claim;
use atoll_core::lock_waits::{Verdict, Wait};
use atoll_core::locks::{
    self, HeldLock, LockChange, LockClass, LockMode, LockRange, LockRequest, LockScope, ReleaseLocks,
};
use atoll_proto::metadata::FileExtents;
use atoll_proto::queries;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::Client;
use super::files::OPEN_SEGMENTS;
use super::identity::system_call;
use crate::metadata::{ClientError, Metadata};
use crate::vfs::{Caller, FileLock, LockKind, Result};

/// The kernel tells of a closed file in the background: a lock that was let go of by closing a file of this mount
/// may be in the way for so long after `close` has returned.
const CLOSING_GRACE: Duration = Duration::from_millis(3);
/// A call that waits for its lock ends so long after a signal if it hasn't been answered whether that is free: a new leader
/// may have to wait for what others have locked.
const SIGNALLED_WITHIN: Duration = Duration::from_millis(100);
/// The pause after a question about waits that failed.
const ASK_PAUSE: Duration = Duration::from_millis(200);

type Owner = (LockClass, u64);

/// What one owner has, as far as this client knows, and what is under way.
#[derive(Default)]
struct Owned {
    locks: Vec<HeldLock>,
    under_way: u32,
    /// Whether the owner is an open file and no process; `None` until somebody has looked.
    is_open_file: Option<bool>,
}

/// One inode's locks.
#[derive(Default)]
struct Inode {
    owners: HashMap<Owner, Owned>,
    /// Held while a request about this inode's locks is under way.
    order: Arc<tokio::sync::Mutex<()>>,
}

struct Waiting {
    wait: Wait,
    told: oneshot::Sender<std::result::Result<Verdict, ClientError>>,
}

#[derive(Default)]
struct Table {
    inodes: HashMap<InodeId, Inode>,
    waits: HashMap<u64, Waiting>,
    /// A task asks about the waits.
    asking: bool,
}

/// The locks of one mount.
#[derive(Default)]
pub struct Locks {
    table: Mutex<Table>,
    last_wait: AtomicU64,
    waits_changed: Notify,
}

impl Locks {
    /// What a predecessor of this process had locked.
    pub fn inherit(&self, claims: &[Claim]) {
        let mut table = self.table.lock();
        for Claim { ino, class, owner, lock } in claims {
            let inode = table.inodes.entry(*ino).or_default();
            inode.owners.entry((*class, *owner)).or_default().locks.push(*lock);
        }
    }

    /// True if the owner has, or is getting, locks of the inode.
    fn has(&self, ino: InodeId, owner: Owner) -> bool {
        let table = self.table.lock();
        let owned = table.inodes.get(&ino).and_then(|inode| inode.owners.get(&owner));
        owned.is_some_and(|owned| owned.under_way > 0 || !owned.locks.is_empty())
    }

    /// True if locks of the inode were taken through the handle, or may have been.
    fn has_through(&self, ino: InodeId, handle: u64) -> bool {
        let table = self.table.lock();
        let Some(inode) = table.inodes.get(&ino) else { return false };
        let through =
            |owned: &Owned| owned.under_way > 0 || owned.locks.iter().any(|lock| lock.handle == handle);
        inode.owners.values().any(through)
    }

    /// What an owner has.
    fn of(&self, ino: InodeId, owner: Owner) -> Vec<HeldLock> {
        let table = self.table.lock();
        let owned = table.inodes.get(&ino).and_then(|inode| inode.owners.get(&owner));
        owned.map(|owned| owned.locks.clone()).unwrap_or_default()
    }

    /// Whether an owner is an open file, as far as that is known.
    fn is_open_file(&self, ino: InodeId, owner: Owner) -> Option<bool> {
        let table = self.table.lock();
        table.inodes.get(&ino).and_then(|inode| inode.owners.get(&owner)).and_then(|owned| owned.is_open_file)
    }

    /// An owner that has locks is an open file, or isn't.
    fn note_open_file(&self, ino: InodeId, owner: Owner, is_open_file: bool) {
        let mut table = self.table.lock();
        if let Some(owned) = table.inodes.get_mut(&ino).and_then(|inode| inode.owners.get_mut(&owner)) {
            owned.is_open_file = Some(is_open_file);
        }
    }

    /// Another owner of this mount is in the way.
    fn others_are_in_the_way(&self, request: &LockRequest, mode: LockMode) -> bool {
        let table = self.table.lock();
        let Some(inode) = table.inodes.get(&request.ino) else { return false };
        inode.owners.iter().any(|((class, owner), owned)| {
            *class == request.class
                && *owner != request.owner
                && owned.locks.iter().any(|held| locks::conflicts(held, &request.range, mode))
        })
    }

    /// A request about an owner's locks is about to be sent.
    fn begin(&self, ino: InodeId, owner: Owner) -> Arc<tokio::sync::Mutex<()>> {
        let mut table = self.table.lock();
        let inode = table.inodes.entry(ino).or_default();
        inode.owners.entry(owner).or_default().under_way += 1;
        Arc::clone(&inode.order)
    }

    /// It is over; `change` says what the owner has now.
    fn end(&self, ino: InodeId, owner: Owner, change: impl FnOnce(&mut Vec<HeldLock>)) {
        let mut table = self.table.lock();
        let Some(inode) = table.inodes.get_mut(&ino) else { return };
        if let Some(owned) = inode.owners.get_mut(&owner) {
            change(&mut owned.locks);
            owned.under_way = owned.under_way.saturating_sub(1);
            if owned.under_way == 0 && owned.locks.is_empty() {
                inode.owners.remove(&owner);
            }
        }
        if inode.owners.is_empty() {
            table.inodes.remove(&ino);
        }
    }

    fn order(&self, ino: InodeId) -> Arc<tokio::sync::Mutex<()>> {
        self.table.lock().inodes.get(&ino).map(|inode| Arc::clone(&inode.order)).unwrap_or_default()
    }

    /// Locks were let go of.
    fn released(&self, ino: InodeId, is_gone: impl Fn(&Owner, &HeldLock) -> bool) {
        let mut table = self.table.lock();
        let Some(inode) = table.inodes.get_mut(&ino) else { return };
        for (owner, owned) in &mut inode.owners {
            owned.locks.retain(|lock| !is_gone(owner, lock));
        }
        inode.owners.retain(|_, owned| owned.under_way > 0 || !owned.locks.is_empty());
        if inode.owners.is_empty() {
            table.inodes.remove(&ino);
        }
    }

    /// The session is lost, and all locks with it: the handles that they were taken through.
    pub fn lost(&self) -> BTreeSet<u64> {
        let mut table = self.table.lock();
        let mut handles = BTreeSet::new();
        for inode in table.inodes.values_mut() {
            for owned in inode.owners.values_mut() {
                handles.extend(owned.locks.drain(..).map(|lock| lock.handle));
            }
            inode.owners.retain(|_, owned| owned.under_way > 0);
        }
        table.inodes.retain(|_, inode| !inode.owners.is_empty());
        handles
    }

    fn waits(&self) -> Vec<Wait> {
        self.table.lock().waits.values().map(|waiting| waiting.wait).collect()
    }

    fn tell(&self, verdicts: Vec<(u64, Verdict)>) {
        let mut table = self.table.lock();
        for (id, verdict) in verdicts {
            if let Some(waiting) = table.waits.remove(&id) {
                let _ = waiting.told.send(Ok(verdict));
            }
        }
    }

    fn fail(&self, error: &ClientError) {
        for (_, waiting) in self.table.lock().waits.drain() {
            let _ = waiting.told.send(Err(error.clone()));
        }
    }
}

/// A wait that ends when this is dropped.
struct Queued<'a> {
    locks: &'a Locks,
    id: u64,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.locks.table.lock().waits.remove(&self.id);
        self.locks.waits_changed.notify_waiters();
    }
}

/// Asks about all waits until there are none.
async fn keep_asking<M: Metadata>(locks: Arc<Locks>, metadata: Arc<M>) {
    loop {
        let changed = locks.waits_changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let waits = locks.waits();
        let nobody = waits.is_empty();
        let answer = tokio::select! {
            answer = metadata.ask(queries::AwaitLocks { waits }) => answer,
            () = changed => continue,
        };
        match answer {
            Ok(verdicts) => locks.tell(verdicts),
            Err(error @ (ClientError::Stopped | ClientError::TimedOut)) => locks.fail(&error),
            Err(error) => {
                tracing::debug!(%error, "waiting locks can't be reported to the metadata server");
                tokio::time::sleep(ASK_PAUSE).await;
            }
        }
        if nobody {
            let mut table = locks.table.lock();
            if table.waits.is_empty() {
                table.asking = false;
                return;
            }
        }
    }
}

/// Whether a thread is in a call for a lock of an open file: the kernel passes such a request on as if it were a
/// process's. `false` if that can't be found out.
async fn asks_for_open_file(thread: u32) -> bool {
    is_open_file_lock(&system_call(thread).await)
}

/// `line`: the number of a system call and its arguments, as /proc shows them.
fn is_open_file_lock(line: &str) -> bool {
    let mut fields = line.split_ascii_whitespace();
    let number = fields.next().and_then(|number| number.parse().ok());
    let command = fields.nth(1).and_then(|hex| i64::from_str_radix(hex.trim_start_matches("0x"), 16).ok());
    number == Some(libc::SYS_fcntl)
        && [libc::F_OFD_SETLK, libc::F_OFD_SETLKW].map(|known| Some(i64::from(known))).contains(&command)
}

fn mode_of(kind: LockKind) -> Option<LockMode> {
    match kind {
        LockKind::Read => Some(LockMode::Shared),
        LockKind::Write => Some(LockMode::Exclusive),
        LockKind::Unlock => None,
    }
}

fn request(ino: InodeId, handle: u64, owner: u64, lock: &FileLock, flock: bool) -> LockRequest {
    LockRequest {
        ino,
        class: if flock { LockClass::Flock } else { LockClass::Record },
        owner,
        handle,
        pid: lock.pid,
        mode: mode_of(lock.kind),
        range: if flock { LockRange::ALL } else { LockRange { start: lock.start, end: lock.end } },
    }
}

impl<M: Metadata> Client<M> {
    /// The first lock that is in the way. Processes of other mounts have no number here, and open files have none
    /// anywhere: 0. (The kernel looks for a process with the number that it is told, and makes 0 of -1 too.)
    pub(super) async fn do_getlk(
        &self,
        ino: InodeId,
        handle: u64,
        owner: u64,
        lock: FileLock,
    ) -> Result<FileLock> {
        let asked = request(ino, handle, owner, &lock, false);
        if !asked.range.is_sound() {
            return Err(FsError::InvalidArgument.into());
        }
        match self.metadata.ask(queries::GetLk(asked)).await? {
            None => Ok(FileLock { kind: LockKind::Unlock, ..lock }),
            Some((holder, held)) => Ok(FileLock {
                pid: match holder.session == self.metadata.session() {
                    true if self.locks.is_open_file(ino, (asked.class, holder.owner)) == Some(true) => 0,
                    true => held.pid,
                    false => 0,
                },
                kind: match held.mode {
                    LockMode::Shared => LockKind::Read,
                    LockMode::Exclusive => LockKind::Write,
                },
                start: held.range.start,
                end: held.range.end,
            }),
        }
    }

    /// Takes a lock, lets go of one, or waits for one. What was written goes out before: whoever has the lock next
    /// sees it; and what others wrote while they had it is seen afterwards.
    pub(super) async fn do_setlk(
        &self,
        caller: &Caller,
        asked: (InodeId, u64, u64),
        lock: FileLock,
        flock: bool,
        wait: bool,
    ) -> Result<()> {
        let (ino, handle, owner) = asked;
        let request = request(ino, handle, owner, &lock, flock);
        if !request.range.is_sound() {
            return Err(FsError::InvalidArgument.into());
        }
        let Some(mode) = request.mode else { return self.unlock(caller, request).await };
        self.check_not_broken(handle)?;
        let before = self.locks.of(ino, (request.class, owner));
        self.interruptible(caller, async { Ok(self.settle(ino).await?) }).await?;
        let mut tried = self.try_lock(caller, request, mode, wait).await;
        if is_locked(&tried) && flock && !self.locks.of(ino, (request.class, owner)).is_empty() {
            // Another kind of lock by the same owner goes first, as flock(2) has it: two that wait for each other's
            // shared lock to become an exclusive one would wait for ever.
            self.interruptible(caller, self.send_lock(LockRequest { mode: None, ..request })).await?;
            tried = self.try_lock(caller, request, mode, wait).await;
        }
        while wait && is_locked(&tried) {
            let is_process = !flock && !asks_for_open_file(caller.pid).await;
            match self.wait_for_lock(caller, &request, mode, is_process).await? {
                Verdict::Free => tried = self.try_lock(caller, request, mode, wait).await,
                Verdict::Deadlock => return Err(FsError::Deadlock.into()),
            }
        }
        let file = tried?;
        if let Ok(Some(handle)) = self.handle(handle) {
            handle.locks();
        }
        let owner = (request.class, owner);
        if !flock && self.locks.is_open_file(ino, owner).is_none() {
            self.locks.note_open_file(ino, owner, asks_for_open_file(caller.pid).await);
        }
        if atoll_faults::planted("lock-not-revalidated") {
            return Ok(());
        }
        let revalidated = self.interruptible(caller, self.revalidate(ino, file)).await;
        if revalidated.is_err() {
            // Who is told that there was an error doesn't let go of a lock.
            self.undo(request, before);
        }
        revalidated
    }

    /// Lets go of a lock, after what was written is committed. What isn't, and could be later, would replace what the
    /// next one writes under the lock: then the lock stays.
    async fn unlock(&self, caller: &Caller, request: LockRequest) -> Result<()> {
        let ino = request.ino;
        let flushed = self.interruptible(caller, async { Ok(self.settle(ino).await?) }).await;
        if flushed.is_err() && self.data.has_dirty(ino) {
            return flushed;
        }
        if self.locks.has(ino, (request.class, request.owner)) {
            self.interruptible(caller, self.send_lock(request)).await?;
        }
        flushed
    }

    /// Sets a range back to what it was `before`, in the background.
    fn undo(&self, request: LockRequest, before: Vec<HeldLock>) {
        let owner = (request.class, request.owner);
        let order = self.locks.begin(request.ino, owner);
        let (locks, metadata) = (Arc::clone(&self.locks), Arc::clone(&self.metadata));
        tokio::spawn(async move {
            let _order = order.lock().await;
            let done = take_back(&*metadata, &before, &request).await;
            locks.end(request.ino, owner, |known| done.iter().for_each(|step| *known = with(known, step)));
        });
    }

    async fn try_lock(
        &self,
        caller: &Caller,
        request: LockRequest,
        mode: LockMode,
        wait: bool,
    ) -> Result<Option<FileExtents>> {
        let tried = self.try_once(caller, request, wait).await;
        if !is_locked(&tried) || !self.locks.others_are_in_the_way(&request, mode) {
            return tried;
        }
        tokio::time::sleep(CLOSING_GRACE).await;
        self.try_once(caller, request, wait).await
    }

    async fn try_once(
        &self,
        caller: &Caller,
        request: LockRequest,
        wait: bool,
    ) -> Result<Option<FileExtents>> {
        if !wait {
            return self.interruptible(caller, self.send_lock(request)).await;
        }
        let signalled = AtomicBool::new(false);
        let given_up = async {
            caller.interrupt.interrupted().await;
            signalled.store(true, Ordering::Relaxed);
            tokio::time::sleep(SIGNALLED_WITHIN).await;
        };
        let tried = tokio::select! {
            biased;
            tried = self.send_lock(request) => tried,
            () = given_up => Err(FsError::Interrupted.into()),
        };
        if signalled.load(Ordering::Relaxed) {
            // What comes next of the same request must hear of it too.
            caller.interrupt.renew();
        }
        tried
    }

    /// Sends a request and takes note of what came of it. If whoever waits for that goes away, a lock that was
    /// taken all the same is given back.
    async fn send_lock(&self, request: LockRequest) -> Result<Option<FileExtents>> {
        let owner = (request.class, request.owner);
        let known_change = self.data.content_as_of(request.ino);
        let order = self.locks.begin(request.ino, owner);
        let abandoned = Arc::new(AtomicBool::new(false));
        let sent = {
            let (locks, metadata) = (Arc::clone(&self.locks), Arc::clone(&self.metadata));
            let abandoned = Arc::clone(&abandoned);
            let sent = async move {
                let _order = order.lock().await;
                let before = locks.of(request.ino, owner);
                let change = LockChange::Set(request);
                let result = metadata.change_locks(change, known_change, OPEN_SEGMENTS).await;
                let mut done = Vec::new();
                if result.is_ok() {
                    done.push(request);
                }
                // Who has waited for too long has no lock, once the cluster responds again.
                let gone = match result {
                    Ok(_) => abandoned.load(Ordering::SeqCst),
                    Err(ClientError::TimedOut) => true,
                    Err(_) => false,
                };
                if gone && request.mode.is_some() {
                    done.extend(take_back(&*metadata, &before, &request).await);
                }
                // What is known may have become less meanwhile, with a lost session.
                locks.end(request.ino, owner, |known| {
                    done.iter().for_each(|step| *known = with(known, step));
                });
                result
            };
            // By the caller's own thread, if nothing has to be waited for.
            Detach::new(sent, Handle::current())
        };
        // Dropped before the rest goes on without the caller.
        let guard = Abandon(&abandoned);
        let result = sent.await;
        std::mem::forget(guard);
        Ok(result?)
    }

    /// Waits until the lock may be free, or never will be, or a signal came.
    async fn wait_for_lock(
        &self,
        caller: &Caller,
        request: &LockRequest,
        mode: LockMode,
        is_process: bool,
    ) -> Result<Verdict> {
        let (told, verdict) = oneshot::channel();
        let id = self.locks.last_wait.fetch_add(1, Ordering::Relaxed) + 1;
        let LockRequest { ino, class, owner, range, .. } = *request;
        let wait = Wait { id, ino, class, owner, mode, range, is_process };
        {
            let mut table = self.locks.table.lock();
            table.waits.insert(id, Waiting { wait, told });
            if !std::mem::replace(&mut table.asking, true) {
                tokio::spawn(keep_asking(Arc::clone(&self.locks), Arc::clone(&self.metadata)));
            }
        }
        self.locks.waits_changed.notify_waiters();
        let _queued = Queued { locks: &self.locks, id };
        tokio::select! {
            verdict = verdict => Ok(verdict.unwrap_or(Err(ClientError::Stopped))?),
            () = caller.interrupt.interrupted() => Err(FsError::Interrupted.into()),
        }
    }

    /// A process has closed a file: all of its record locks on it go, whichever handle they were taken through.
    pub(super) async fn release_owner(&self, ino: InodeId, owner: u64) -> Result<()> {
        let class = LockClass::Record;
        if !self.locks.has(ino, (class, owner)) {
            return Ok(());
        }
        self.release_locks(ino, LockScope::Owner(class, owner)).await
    }

    /// A handle is closed: the locks go that were taken through it.
    pub(super) async fn release_handle(&self, ino: InodeId, handle: u64) -> Result<()> {
        if !self.locks.has_through(ino, handle) {
            return Ok(());
        }
        self.release_locks(ino, LockScope::Handle(handle)).await
    }

    /// Whoever has a lock next is to see what was written, through whichever handle; what could still be committed after
    /// that would replace what others write under it. Errors are told by close and fsync.
    async fn release_locks(&self, ino: InodeId, scope: LockScope) -> Result<()> {
        let (locks, metadata) = (Arc::clone(&self.locks), Arc::clone(&self.metadata));
        let order = locks.order(ino);
        let committed = self.data.committed(ino);
        // Whoever waits for this may go away; the locks must go all the same.
        let released = async move {
            committed.await;
            let _order = order.lock().await;
            let change = LockChange::Release(ReleaseLocks { ino, scope });
            let result = metadata.change_locks(change, None, 0).await;
            if result.is_ok() {
                locks.released(ino, |owner, lock| match scope {
                    LockScope::Owner(class, number) => *owner == (class, number),
                    LockScope::Handle(handle) => lock.handle == handle,
                });
            }
            result
        };
        let released = Detach::new(released, Handle::current());
        if self.settle(ino).await == Err(ClientError::TimedOut) {
            tracing::warn!(
                %ino,
                "a closed file isn't written out yet; its locks are released once the cluster responds again"
            );
            return Ok(());
        }
        released.await?;
        Ok(())
    }
}

fn is_locked<T>(tried: &Result<T>) -> bool {
    tried.as_ref().err() == Some(&FsError::Locked.into())
}

/// Says that nobody waits any more, unless it is forgotten.
struct Abandon<'a>(&'a AtomicBool);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn with(before: &[HeldLock], request: &LockRequest) -> Vec<HeldLock> {
    locks::with(before, request.range, request.lock())
}

/// Sets a range back to what it was `before`; returns the steps that were taken.
async fn take_back<M: Metadata>(
    metadata: &M,
    before: &[HeldLock],
    request: &LockRequest,
) -> Vec<LockRequest> {
    let mut done = Vec::new();
    let range = request.range;
    let mut steps = vec![LockRequest { mode: None, ..*request }];
    steps.extend(before.iter().filter(|lock| lock.range.overlaps(&range)).map(|lock| LockRequest {
        mode: Some(lock.mode),
        handle: lock.handle,
        pid: lock.pid,
        range: LockRange { start: lock.range.start.max(range.start), end: lock.range.end.min(range.end) },
        ..*request
    }));
    for step in steps {
        match metadata.change_locks(LockChange::Set(step), None, 0).await {
            Ok(_) => done.push(step),
            Err(error) => {
                tracing::warn!(
                    ino = %step.ino, %error,
                    "a failed lock request could not be undone"
                );
            }
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_for_an_open_files_lock_is_told_from_others() {
        let fcntl = libc::SYS_fcntl;
        assert!(is_open_file_lock(&format!("{fcntl} 0x3 0x26 0x7ffe0000 0x0 0x0 0x0 0x7ffe 0x7f00")));
        assert!(is_open_file_lock(&format!("{fcntl} 0x3 0x25 0x7ffe0000 0x0 0x0 0x0 0x7ffe 0x7f00")));
        assert!(!is_open_file_lock(&format!("{fcntl} 0x3 0x7 0x7ffe0000 0x0 0x0 0x0 0x7ffe 0x7f00")));
        assert!(!is_open_file_lock("running"));
        assert!(!is_open_file_lock(""));
    }
}
