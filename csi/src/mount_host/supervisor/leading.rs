//! Which mount host of the node serves its mounts. There may be two for a while, when one replaces the other: the one that has
//! the lock leads, and which is to have it says the holder.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::super::protocol::ClientState;
use super::process::end_at_once;
use super::{NO_HOLDER, Process, Role, Shared};
use crate::holder::LEADER_LOCK;
use crate::holder::link::{Given, Link, Owner, Turn};
use crate::holder::record::Borrowed;

/// How often the lock is tried while the mount host that has it ends its clients.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// How often it is looked whether there is something to do, should nothing have said so.
const IDLE_POLL: Duration = Duration::from_millis(500);
/// How long clients may take to write out what they have before they are ended for another mount host.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long clients without a mount may take to end their sessions; meanwhile nobody serves the other mounts.
const SESSION_TIMEOUT: Duration = Duration::from_millis(500);
/// How long processes that were killed may take to end; their successors wait for those that need more time.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long clients may take to write everything out and end when nobody continues.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// How old what was taken beforehand may be: a mount that has ended is not to be held on to for longer.
const PREPARED_MAX: Duration = Duration::from_secs(5);

/// The mounts of a mount host that still serves them.
struct Prepared {
    at: Instant,
    given: Vec<Given>,
}

/// What to do about who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    /// Take the lock and the mounts.
    Lead,
    /// End the clients, and let go of the lock.
    Yield,
}

/// Decides. `kept`: the holder has everything that this mount host has.
fn step(role: Role, stopping: bool, turn: Option<Turn>, kept: bool) -> Step {
    match (role, turn) {
        (Role::Waiting, Some(Turn { yours: true, .. })) if !stopping => Step::Lead,
        // Only the holder's word ends clients that serve, and only if it has what the next ones need.
        (Role::Leading, Some(Turn { yours: false, .. })) if kept && !stopping => Step::Yield,
        _ => Step::Wait,
    }
}

/// The mounts, for a holder that asks for them.
struct Mounts(Weak<Shared>);

impl Owner for Mounts {
    fn volumes(&self) -> Vec<String> {
        self.0.upgrade().map(|shared| shared.kept()).unwrap_or_default()
    }

    fn with(&self, volume: &str, keep: &mut dyn FnMut(Borrowed<'_>) -> io::Result<()>) -> io::Result<()> {
        let kept = self
            .0
            .upgrade()
            .and_then(|shared| shared.table.lock().clients.get(volume).and_then(|entry| entry.kept.clone()));
        kept.map_or(Ok(()), |kept| kept.with(keep))
    }
}

/// Connects to the holder, and leads when it is its turn, in threads of their own.
pub fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let started_ms = boot_time_ms()?;
    let link = Link::start(&shared.config.holder, started_ms, Arc::new(Mounts(Arc::downgrade(shared))))?;
    let _ = shared.link.set(link);
    let leading = Arc::clone(shared);
    std::thread::Builder::new().name("lead".to_owned()).spawn(move || leading.take_turns())?;
    Ok(())
}

/// Milliseconds since the machine was started: the same clock for all pods of a node.
fn boot_time_ms() -> io::Result<u64> {
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let seconds = uptime.split_whitespace().next().and_then(|seconds| seconds.parse::<f64>().ok());
    let seconds = seconds.ok_or_else(|| io::Error::other("/proc/uptime can't be read"))?;
    Ok((seconds * 1000.0) as u64)
}

/// Takes the lock of who leads, if nobody has it.
fn try_lock(folder: &Path) -> io::Result<Option<Flock<File>>> {
    let file = File::options().create(true).truncate(false).write(true).open(folder.join(LEADER_LOCK))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

impl Shared {
    fn take_turns(self: &Arc<Self>) {
        let mut lock = None;
        let mut prepared = None;
        loop {
            let (role, stopping) = {
                let table = self.table.lock();
                (table.role, table.stopping)
            };
            let kept = self.link().keeps(&self.kept());
            let step = step(role, stopping, self.link().turn(), kept);
            if step != Step::Lead {
                prepared = None;
            }
            match step {
                Step::Wait if stopping && role != Role::Leading => return,
                Step::Wait => self.link().wait(IDLE_POLL),
                Step::Lead => match self.lead(&mut prepared) {
                    Ok(Some(taken)) => lock = Some(taken),
                    Ok(None) => self.link().wait(LOCK_POLL),
                    Err(error) => {
                        tracing::warn!(%error, "the mounts can't be taken over yet");
                        self.link().wait(IDLE_POLL);
                    }
                },
                // From here on the holder doesn't end before another mount host has taken everything.
                Step::Yield => match self.link().yielded() {
                    Ok(()) => {
                        tracing::info!("another mount host is to serve the mounts: ending the clients");
                        self.leave();
                        self.table.lock().role = Role::Waiting;
                        drop(lock.take());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the mounts can't be left to another mount host yet");
                        self.link().wait(IDLE_POLL);
                    }
                },
            }
        }
    }

    /// Takes the lock, and the mounts; `None` while another mount host has it.
    fn lead(self: &Arc<Self>, prepared: &mut Option<Prepared>) -> io::Result<Option<Flock<File>>> {
        // Before the other one lets go: should the holder end meanwhile, the mounts don't.
        if prepared.as_ref().is_none_or(|prepared| prepared.at.elapsed() > PREPARED_MAX) {
            *prepared = Some(Prepared { at: Instant::now(), given: self.link().take(false)? });
        }
        let Some(lock) = try_lock(&self.config.holder)? else { return Ok(None) };
        let given = match (self.link().take(true), prepared.take()) {
            (Ok(given), _) => given,
            (Err(error), Some(Prepared { given, .. })) => {
                tracing::warn!(%error, "the holder has ended; continuing with what it gave before");
                self.link().lead_alone();
                given
            }
            (Err(error), None) => return Err(error),
        };
        self.adopt(given);
        Ok(Some(lock))
    }

    /// The volumes with a mount that is to be kept.
    fn kept(&self) -> Vec<String> {
        let table = self.table.lock();
        let kept = table.clients.iter().filter(|(_, entry)| entry.kept.is_some());
        kept.map(|(volume, _)| volume.clone()).collect()
    }

    /// Ends all clients, those with a mount at once: they leave everything to a successor. Afterwards there is none.
    fn leave(&self) {
        let mut table = self.table.lock();
        table.role = Role::Leaving;
        for entry in table.clients.values().filter(|entry| entry.kept.is_none()) {
            if let Some(control) = &entry.control {
                control.end();
            }
        }
        let began = Instant::now();
        let deadline = began + SESSION_TIMEOUT + KILL_TIMEOUT;
        loop {
            let is_overdue = began.elapsed() >= SESSION_TIMEOUT;
            for entry in table.clients.values() {
                match entry.process {
                    Process::Running(pid) if entry.kept.is_some() || is_overdue => end_at_once(pid),
                    _ => {}
                }
            }
            let is_done = table.clients.values().all(|entry| entry.process == Process::None);
            if is_done || Instant::now() >= deadline {
                break;
            }
            let _ = self.changed.wait_for(&mut table, Duration::from_millis(100));
        }
        for (volume, entry) in table.clients.drain().filter(|(_, entry)| entry.process != Process::None) {
            tracing::error!(volume, process = ?entry.process, "a client has not ended; its successor waits for that");
        }
        table.adopting.clear();
        table.unreadable.clear();
    }

    /// Has all clients write out what they have, for a while.
    fn flush(&self) {
        let _talking = self.talking.lock();
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let serving: Vec<_> = {
            let table = self.table.lock();
            let serving = table.clients.iter().filter(|(_, entry)| entry.state == ClientState::Serving);
            serving.filter_map(|(volume, entry)| Some((volume.clone(), entry.control.clone()?))).collect()
        };
        let asked: Vec<_> =
            serving.into_iter().filter(|(_, control)| control.send_bytes(b"flush").is_ok()).collect();
        for (volume, control) in asked {
            let mut said = control.receive_bytes(deadline);
            // The answer to an earlier question, which came late.
            while said.as_ref().is_ok_and(|said| said == b"pong") {
                said = control.receive_bytes(deadline);
            }
            match said {
                Ok(said) if said == b"flushed" => {}
                said => tracing::warn!(
                    volume,
                    said = said.err().map(|error| error.to_string()),
                    "not all data was written out; the client that continues does it"
                ),
            }
        }
    }

    /// See [`Supervisor::problem`](super::Supervisor::problem).
    pub fn problem(&self) -> Option<String> {
        let is_connected = self.link().is_connected();
        let turn = self.link().turn();
        let table = self.table.lock();
        let names = |volumes: &std::collections::BTreeSet<String>| {
            volumes.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        };
        match table.role {
            _ if table.stopping => Some("it is stopping".to_owned()),
            _ if !is_connected => Some(NO_HOLDER.to_owned()),
            Role::Leaving => Some("another mount host takes over".to_owned()),
            Role::Waiting if turn.is_some_and(|turn| turn.yours) => {
                Some("waiting until the mount host before this one has ended its clients".to_owned())
            }
            Role::Waiting => Some("another mount host serves the mounts of this node".to_owned()),
            Role::Leading if !table.unreadable.is_empty() => {
                Some(format!("mounts that only a later release can serve: {}", names(&table.unreadable)))
            }
            Role::Leading if !table.adopting.is_empty() => {
                Some(format!("mounts that are not served yet: {}", names(&table.adopting)))
            }
            Role::Leading => None,
        }
    }
}

/// See [`Supervisor::stop`](super::Supervisor::stop).
pub fn stop(shared: &Arc<Shared>, grace: Duration) {
    let deadline = Instant::now() + grace;
    shared.table.lock().stopping = true;
    if shared.table.lock().role == Role::Leading {
        // Should nobody continue, nothing that was written is lost.
        shared.flush();
        loop {
            let volumes: Vec<String> = shared.table.lock().clients.keys().cloned().collect();
            if volumes.is_empty() || (shared.link().keeps(&volumes) && shared.link().yielded().is_ok()) {
                shared.leave();
                break;
            }
            let now = Instant::now();
            if now >= deadline {
                end_mounts(shared);
                break;
            }
            shared.link().wait(LOCK_POLL.max(deadline - now).min(IDLE_POLL));
        }
    }
    shared.link().close();
}

/// Has all clients write everything out and end, with their mounts.
fn end_mounts(shared: &Shared) {
    let mut table = shared.table.lock();
    for (volume, entry) in &mut table.clients {
        tracing::warn!(
            volume,
            "nobody keeps the volume's mount; it ends, and pods that use it must be restarted"
        );
        entry.state = ClientState::Ending;
        if let Some(control) = entry.control.take() {
            control.end();
        }
    }
    let deadline = Instant::now() + END_TIMEOUT;
    while !table.clients.is_empty() && !shared.changed.wait_until(&mut table, deadline).timed_out() {}
    for (volume, entry) in &table.clients {
        tracing::error!(volume, process = ?entry.process, "a client did not stop within its timeout");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holders_word_decides_and_only_if_it_has_everything() {
        let turn = |yours| Some(Turn { yours, others: 1 });
        assert_eq!(step(Role::Waiting, false, turn(true), true), Step::Lead);
        assert_eq!(step(Role::Waiting, false, turn(false), true), Step::Wait);
        assert_eq!(step(Role::Leading, false, turn(true), true), Step::Wait);
        assert_eq!(step(Role::Leading, false, turn(false), true), Step::Yield);
        assert_eq!(step(Role::Leading, false, turn(false), false), Step::Wait, "a mount would be lost");
        for role in [Role::Waiting, Role::Leading, Role::Leaving] {
            assert_eq!(step(role, false, None, true), Step::Wait, "without a holder all stays as it is");
            assert_eq!(step(role, true, turn(true), true), Step::Wait, "who ends begins nothing");
        }
    }

    #[test]
    fn one_mount_host_at_a_time_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let first = try_lock(folder.path()).unwrap().unwrap();
        assert!(try_lock(folder.path()).unwrap().is_none());
        drop(first);
        assert!(try_lock(folder.path()).unwrap().is_some());
    }
}
