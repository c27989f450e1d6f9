//! A client that dies is succeeded by another one, and so are the clients of a mount host that is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use atoll_fuse::bundle::Bundle;
use parking_lot::Mutex;

use super::super::packet::PacketSocket;
use super::super::protocol::{ClientState, Failure, Start};
use super::process::{await_end, died, said, words};
use super::{CONNECT_TIMEOUT, Entry, MOUNT_TIMEOUT, Process, Role, Shared};
use crate::budget;
use crate::holder::link::Given;
use crate::holder::record::{Borrowed, Mount, RecordError};

/// A client that has served for so long and dies is succeeded at once; one that dies sooner after a pause of at least …
pub const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// … this, doubled each time, …
pub const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// … up to this.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Attempts after which a mount host whose clients serve nothing leaves the mounts to another one, if there is one.
const ATTEMPTS_UNFIT: u32 = 3;
/// How often it is said that another mount host's client hasn't ended.
const STILL_PERIOD: Duration = Duration::from_secs(10);

/// What a client's successor needs. When the last of this, of the holder's and of the client goes, the mount is dead.
pub struct Kept {
    pub start: Start,
    pub bundle: Bundle,
    /// What the client has taken responsibility for: data and operations that the cluster doesn't have yet.
    arena: OwnedFd,
    /// The client's socket. While it is open the client continues; the other end is closed when it is dead.
    control: Mutex<Arc<PacketSocket>>,
    /// Deaths in a row, each soon after the client began to serve.
    deaths: Mutex<Deaths>,
}

struct Deaths {
    count: u32,
    serving_since: Option<Instant>,
}

impl Kept {
    pub fn new(start: Start, bundle: Bundle, arena: OwnedFd, control: Arc<PacketSocket>) -> Kept {
        let deaths = Mutex::new(Deaths { count: 0, serving_since: None });
        Kept { start, bundle, arena, control: Mutex::new(control), deaths }
    }

    /// Calls with the mount as the holder keeps it.
    pub fn with<T>(&self, call: impl FnOnce(Borrowed<'_>) -> T) -> T {
        let control = Arc::clone(&self.control.lock());
        let (control, arena) = (control.descriptor(), self.arena.as_fd());
        call(Borrowed { start: &self.start, control, arena, bundle: &self.bundle })
    }

    /// A client serves from now on.
    pub fn serves(&self, now: Instant) {
        self.deaths.lock().serving_since = Some(now);
    }

    /// The pause before a successor starts, the first one since the client died or, after `failed` attempts, another one.
    pub fn backoff(&self, now: Instant, failed: u32) -> Duration {
        let mut deaths = self.deaths.lock();
        if failed == 0 {
            let is_soon = deaths.serving_since.is_some_and(|since| now.duration_since(since) < SETTLED_AFTER);
            deaths.count = if is_soon { deaths.count + 1 } else { 0 };
        }
        match deaths.count + failed {
            0 => Duration::ZERO,
            count => (BACKOFF_MIN * (1 << (count - 1).min(16))).min(BACKOFF_MAX),
        }
    }
}

/// What becomes of a client that has ended.
enum Fate {
    /// Another one continues.
    Succeeded(Arc<Kept>),
    /// Another mount host continues.
    Left,
    /// It is gone, with its mount.
    Gone(ClientState),
    /// Nobody asks.
    Unknown,
}

impl Shared {
    /// Waits until a client ends, and sees to what comes after it.
    pub(super) fn reap(self: &Arc<Self>, volume: &str, mut child: Child) {
        let pid = child.id();
        await_end(&child);
        let mut table = self.table.lock();
        let status = child.wait();
        let role = table.role;
        let is_dead = status.as_ref().is_ok_and(|status| died(*status));
        let fate = match table.clients.get_mut(volume) {
            Some(entry) if entry.process == Process::Running(pid) => {
                entry.process = Process::None;
                entry.control = None;
                match (&entry.kept, role) {
                    (Some(kept), Role::Leading) if is_dead && entry.state == ClientState::Serving => {
                        entry.state = ClientState::Starting;
                        Fate::Succeeded(Arc::clone(kept))
                    }
                    (Some(_), Role::Leaving) if is_dead => Fate::Left,
                    _ => Fate::Gone(entry.state),
                }
            }
            _ => Fate::Unknown,
        };
        if let Fate::Gone(_) = fate {
            table.clients.remove(volume);
            table.adopting.remove(volume);
        }
        drop(table);
        if let Fate::Gone(_) = fate {
            self.link().forget(volume);
        }
        self.changed.notify_all();
        match (status, &fate) {
            (Ok(status), _) if status.success() => tracing::info!(volume, pid, "the client ended"),
            (Ok(_), Fate::Left | Fate::Unknown) => {
                tracing::info!(volume, pid, "the client was ended for another mount host to continue");
            }
            (Ok(status), fate) => {
                self.failed.inc();
                let status = words(status);
                match fate {
                    Fate::Gone(state) => tracing::error!(
                        volume,
                        pid,
                        ?state,
                        status,
                        "the client failed; pods that use the volume must be restarted"
                    ),
                    _ => tracing::error!(volume, pid, status, "the client died; another one continues"),
                }
            }
            (Err(error), _) => tracing::error!(volume, pid, %error, "waiting for a client process failed"),
        }
        if let Fate::Succeeded(kept) = fate {
            self.succeed(volume, &kept);
        }
    }

    /// Takes the mounts of another mount host over, each in a thread of its own.
    pub(super) fn adopt(self: &Arc<Self>, given: Vec<Given>) {
        let mut mounts = Vec::new();
        let mut table = self.table.lock();
        table.unreadable.clear();
        for Given { volume, record, descriptors } in given {
            match Mount::parse(&record, descriptors) {
                Ok(mount) => {
                    let control = Arc::new(PacketSocket::from(mount.control));
                    let kept = Arc::new(Kept::new(mount.start, mount.bundle, mount.arena, control));
                    // Also where it has no room: it is there already.
                    let entry = Entry {
                        process: Process::None,
                        uid: table.free_uid(),
                        budget: budget::of(&kept.start.flags),
                        state: ClientState::Starting,
                        control: None,
                        kept: Some(Arc::clone(&kept)),
                    };
                    table.clients.insert(volume.clone(), entry);
                    table.adopting.insert(volume.clone());
                    mounts.push((volume, kept));
                }
                Err(error) => {
                    if let RecordError::Damaged(_) = error {
                        tracing::error!(volume, %error, "the mount stays with the holder, and isn't served");
                    } else {
                        tracing::error!(volume, %error, "the mount waits for a later release's mount host");
                    }
                    table.unreadable.insert(volume);
                }
            }
        }
        let unreadable = table.unreadable.len();
        table.role = Role::Leading;
        drop(table);
        self.changed.notify_all();
        tracing::info!(mounts = mounts.len(), unreadable, "this mount host serves the node's mounts");
        if unreadable > 0 {
            self.link().unfit();
        }
        for (volume, kept) in mounts {
            let adopting = Arc::clone(self);
            let name = volume.clone();
            let thread = std::thread::Builder::new().name("adopt".to_owned()).spawn(move || {
                if adopting.await_predecessor(&volume, &kept) {
                    adopting.succeed(&volume, &kept);
                }
            });
            if let Err(error) = thread {
                tracing::error!(volume = name, %error, "a mount can't be taken over");
            }
        }
    }

    /// Waits until the client before is dead; never are there two for one mount. Returns whether the mount is still ours.
    fn await_predecessor(&self, volume: &str, kept: &Arc<Kept>) -> bool {
        loop {
            let control = Arc::clone(&kept.control.lock());
            match control.hung_up(Instant::now() + STILL_PERIOD) {
                Ok(()) => return true,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    tracing::error!(volume, "the client of the mount host before this one has not ended yet");
                }
                Err(error) => {
                    tracing::error!(volume, %error, "waiting for the client before failed");
                    std::thread::sleep(BACKOFF_MAX);
                }
            }
            if !self.is_ours(volume, kept) {
                return false;
            }
        }
    }

    fn is_ours(&self, volume: &str, kept: &Arc<Kept>) -> bool {
        let table = self.table.lock();
        table.role == Role::Leading && table.clients.get(volume).is_some_and(|entry| entry.has(kept))
    }

    /// Changes the entry of a volume if it is still that of this mount.
    fn change<T>(&self, volume: &str, kept: &Arc<Kept>, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut table = self.table.lock();
        let changed = table.clients.get_mut(volume).filter(|entry| entry.has(kept)).map(change);
        drop(table);
        self.changed.notify_all();
        changed
    }

    /// Starts a client that continues where a dead one stopped, again and again until one serves or the cluster refuses.
    fn succeed(self: &Arc<Self>, volume: &str, kept: &Arc<Kept>) {
        for failed in 0.. {
            std::thread::sleep(kept.backoff(Instant::now(), failed));
            let Some(uid) = self.claim(volume, kept) else {
                tracing::info!(volume, "another mount host continues");
                return;
            };
            let (child, control) = match self.spawner.client(&self.config, &kept.start, uid, true) {
                Ok(spawned) => spawned,
                Err(error) => {
                    self.change(volume, kept, |entry| entry.process = Process::None);
                    tracing::error!(volume, %error, "a successor of the client can't be started; retrying");
                    continue;
                }
            };
            let pid = child.id();
            self.change(volume, kept, |entry| {
                entry.process = Process::Running(pid);
                entry.control = Some(Arc::clone(&control));
            });
            *kept.control.lock() = Arc::clone(&control);
            // A holder that isn't there is given it when it comes.
            if self.is_ours(volume, kept)
                && let Err(error) = kept.with(|mount| self.link().keep(mount))
            {
                tracing::warn!(volume, %error, "the holder doesn't keep the mount yet");
            }
            match continue_with(&control, kept) {
                Ok(()) => {
                    kept.serves(Instant::now());
                    self.change(volume, kept, |entry| entry.state = ClientState::Serving);
                    self.started.inc();
                    self.succeeded.inc();
                    self.has_served.store(true, Ordering::Relaxed);
                    if self.table.lock().adopting.remove(volume) {
                        self.adopted.inc();
                    }
                    tracing::info!(volume, pid, "another client continues to serve the mount");
                    self.changed.notify_all();
                    return self.watch(volume, child);
                }
                Err((failure, message)) => {
                    self.end(volume, kept, child);
                    tracing::error!(
                        volume,
                        pid,
                        message,
                        "a successor of the client doesn't serve the mount"
                    );
                    match failure {
                        Failure::Refused | Failure::Taken => {
                            return self.give_up(volume, kept, "the cluster refuses it");
                        }
                        // The cluster is away, for any mount host.
                        Failure::Unreachable => drop(self.table.lock().adopting.remove(volume)),
                        Failure::Other => self.consider_leaving(failed + 1),
                    }
                }
            }
        }
    }

    /// Takes the right to start a client for a mount.
    fn claim(&self, volume: &str, kept: &Arc<Kept>) -> Option<u32> {
        let mut table = self.table.lock();
        if table.role != Role::Leading {
            return None;
        }
        let entry = table.clients.get_mut(volume).filter(|entry| entry.has(kept))?;
        entry.process = Process::Starting;
        Some(entry.uid)
    }

    /// Ends a client that doesn't serve, at once.
    fn end(&self, volume: &str, kept: &Arc<Kept>, mut child: Child) {
        let pid = child.id();
        let _ = child.kill();
        await_end(&child);
        let mut table = self.table.lock();
        let _ = child.wait();
        if let Some(entry) = table.clients.get_mut(volume).filter(|entry| entry.has(kept))
            && entry.process == Process::Running(pid)
        {
            entry.process = Process::None;
            entry.control = None;
        }
        drop(table);
        self.changed.notify_all();
    }

    /// A mount host whose clients have never served anything has a program that doesn't work: one that works may be there.
    fn consider_leaving(&self, attempts: u32) {
        if attempts >= ATTEMPTS_UNFIT
            && !self.has_served.load(Ordering::Relaxed)
            && self.link().turn().is_some_and(|turn| turn.others > 0)
        {
            tracing::error!(
                attempts,
                "no client of this mount host serves: leaving the mounts to another one"
            );
            self.link().unfit();
        }
    }

    /// The mount has no client any more.
    fn give_up(&self, volume: &str, kept: &Arc<Kept>, why: &str) {
        let mut table = self.table.lock();
        let is_ours = table.clients.get(volume).is_some_and(|entry| entry.has(kept));
        if is_ours {
            table.clients.remove(volume);
            table.adopting.remove(volume);
        }
        drop(table);
        if is_ours {
            self.link().forget(volume);
        }
        self.changed.notify_all();
        tracing::error!(volume, why, "the mount is dead; pods that use the volume must be restarted");
    }
}

impl Entry {
    fn has(&self, kept: &Arc<Kept>) -> bool {
        self.kept.as_ref().is_some_and(|own| Arc::ptr_eq(own, kept))
    }
}

/// Gives a successor what its predecessor had, and waits until it serves.
fn continue_with(control: &PacketSocket, kept: &Kept) -> Result<(), (Failure, String)> {
    let lost = |error: io::Error| (Failure::Other, format!("no message from the client: {error}"));
    control.send_descriptors(b"arena", &[kept.arena.as_fd()]).map_err(lost)?;
    said(control, "connected", Instant::now() + CONNECT_TIMEOUT)?;
    control.send_bundle(&kept.bundle).map_err(lost)?;
    said(control, "serving", Instant::now() + MOUNT_TIMEOUT)?;
    Ok(())
}
