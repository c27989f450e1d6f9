//! A mount host's way to the holder: one connection, which is made again for as long as the process runs.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::SOCKET;
use super::protocol::{FromHolder, ToHolder};
use super::record::Borrowed;
use crate::mount_host::packet::PacketSocket;

/// How often a holder that isn't there is searched for.
const CONNECT_POLL: Duration = Duration::from_millis(100);
/// How long the holder may take to read or answer a message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether this mount host is to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// It is.
    pub yours: bool,
    /// How many others there are.
    pub others: usize,
}

/// A mount that the holder gave.
#[derive(Debug)]
pub struct Given {
    /// The volume's handle.
    pub volume: String,
    /// Its record (see [`record`](super::record)).
    pub record: String,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// What a mount host has that the holder is to keep.
pub trait Owner: Send + Sync {
    /// The volumes with a mount.
    fn volumes(&self) -> Vec<String>;
    /// Calls `keep` with a volume's mount if it still has one.
    fn with(&self, volume: &str, keep: &mut dyn FnMut(Borrowed<'_>) -> io::Result<()>) -> io::Result<()>;
}

#[derive(Default)]
struct State {
    socket: Option<Arc<PacketSocket>>,
    /// This mount host leads: a holder that is new is told so, and given the mounts.
    leading: bool,
    turn: Option<Turn>,
    /// What the holder of this connection keeps, and what it doesn't take.
    kept: HashSet<String>,
    refused: Vec<(String, String)>,
    /// What it has sent since it was asked for all mounts, and how many that were when it is done.
    given: Vec<Given>,
    taken: Option<usize>,
    /// It knows that this mount host leads no more.
    left: bool,
    /// Volumes that a holder was not told to forget yet.
    unsaid: Vec<String>,
    /// The process ends.
    closed: bool,
}

/// The way to the holder.
pub struct Link {
    socket: PathBuf,
    started_ms: u64,
    owner: Arc<dyn Owner>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Link {
    /// Searches for a holder in a directory, again and again, in a thread of its own.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(folder: &Path, started_ms: u64, owner: Arc<dyn Owner>) -> io::Result<Arc<Link>> {
        let link = Arc::new(Link {
            socket: folder.join(SOCKET),
            started_ms,
            owner,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let reading = Arc::clone(&link);
        std::thread::Builder::new().name("holder".to_owned()).spawn(move || reading.run())?;
        Ok(link)
    }

    /// Whether there is a holder.
    pub fn is_connected(&self) -> bool {
        self.state.lock().socket.is_some()
    }

    /// Waits until there is a holder, for at most `limit`; says whether there is one.
    pub fn await_connected(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        while state.socket.is_none() && !self.changed.wait_until(&mut state, deadline).timed_out() {}
        state.socket.is_some()
    }

    /// Whether this mount host is to lead; `None` while there is no holder that says so.
    pub fn turn(&self) -> Option<Turn> {
        self.state.lock().turn
    }

    /// Waits until something is heard from the holder, for at most `limit`.
    pub fn wait(&self, limit: Duration) {
        let mut state = self.state.lock();
        self.changed.wait_for(&mut state, limit);
    }

    /// Whether the holder keeps the mounts of all these volumes.
    pub fn keeps(&self, volumes: &[String]) -> bool {
        let state = self.state.lock();
        state.socket.is_some() && volumes.iter().all(|volume| state.kept.contains(volume))
    }

    /// Has a volume's mount kept, and waits until it is.
    ///
    /// # Errors
    /// There is no holder, or it doesn't take it.
    pub fn keep(&self, mount: Borrowed<'_>) -> io::Result<()> {
        let volume = mount.start.volume.clone();
        let mut state = self.state.lock();
        let socket = state.socket.clone();
        self.send_keep(&mut state, mount)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if state.kept.contains(&volume) {
                return Ok(());
            }
            if let Some(at) = state.refused.iter().position(|(refused, _)| *refused == volume) {
                let (_, message) = state.refused.swap_remove(at);
                return Err(io::Error::other(message));
            }
            let is_same = match (&socket, &state.socket) {
                (Some(then), Some(now)) => Arc::ptr_eq(then, now),
                _ => false,
            };
            if !is_same {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "the holder is gone"));
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the holder doesn't answer"));
            }
        }
    }

    fn send_keep(&self, state: &mut State, mount: Borrowed<'_>) -> io::Result<()> {
        let socket = state.socket.as_ref();
        let socket =
            socket.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "there is no holder"))?;
        let descriptors = mount.descriptors();
        let message = ToHolder::Keep {
            volume: mount.start.volume.clone(),
            record: mount.record()?,
            descriptors: descriptors.len(),
        };
        socket.send_with(&message, &descriptors)?;
        state.kept.remove(&mount.start.volume);
        state.refused.retain(|(volume, _)| *volume != mount.start.volume);
        Ok(())
    }

    /// Has the holder close a volume's descriptors; one that isn't connected hears of it when it is.
    pub fn forget(&self, volume: &str) {
        let mut state = self.state.lock();
        state.kept.remove(volume);
        let message = ToHolder::Forget { volume: volume.to_owned() };
        if state.socket.as_ref().is_none_or(|socket| socket.send(&message).is_err()) {
            state.unsaid.push(volume.to_owned());
        }
    }

    /// Asks for all mounts. With `lead` this mount host leads from then on; it has the lock.
    ///
    /// # Errors
    /// There is no holder, or it is gone before it has sent all.
    pub fn take(&self, lead: bool) -> io::Result<Vec<Given>> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the holder is gone");
        let mut state = self.state.lock();
        let socket = state.socket.clone().ok_or_else(gone)?;
        state.given.clear();
        state.taken = None;
        socket.send(&ToHolder::Take { lead })?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if state.socket.as_ref().is_none_or(|now| !Arc::ptr_eq(now, &socket)) {
                return Err(gone());
            }
            if let Some(mounts) = state.taken.take() {
                let given = std::mem::take(&mut state.given);
                if given.len() != mounts {
                    socket.disconnect();
                    return Err(io::Error::other(format!("{} of {mounts} mounts arrived", given.len())));
                }
                if lead {
                    state.leading = true;
                    state.kept = given.iter().map(|given| given.volume.clone()).collect();
                }
                return Ok(given);
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                socket.disconnect();
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// This mount host leads from now on, though there is no holder that could be told: the next one is.
    pub fn lead_alone(&self) {
        let mut state = self.state.lock();
        state.leading = true;
        if let Some(socket) = &state.socket {
            socket.disconnect();
        }
    }

    /// Says that this mount host leads no more, and waits until the holder knows.
    ///
    /// # Errors
    /// There is no holder, or it is gone before it has answered: then this mount host still leads.
    pub fn yielded(&self) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the holder is gone");
        let mut state = self.state.lock();
        let socket = state.socket.clone().ok_or_else(gone)?;
        state.left = false;
        socket.send(&ToHolder::Yielded)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if state.socket.as_ref().is_none_or(|now| !Arc::ptr_eq(now, &socket)) {
                return Err(gone());
            }
            if state.left {
                state.leading = false;
                return Ok(());
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                // What it has understood isn't known: the next connection says how it is.
                socket.disconnect();
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Says that this mount host can't serve the mounts.
    pub fn unfit(&self) {
        self.say(&self.state.lock(), &ToHolder::Unfit);
    }

    /// Disconnects for good.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        if let Some(socket) = &state.socket {
            socket.disconnect();
        }
        self.changed.notify_all();
    }

    fn say(&self, state: &State, message: &ToHolder) {
        if let Some(socket) = &state.socket
            && socket.send(message).is_err()
        {
            // What can't be said is said by the next connection.
            socket.disconnect();
        }
    }

    fn run(self: &Arc<Self>) {
        loop {
            if self.state.lock().closed {
                return;
            }
            match self.connect() {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    if let Err(error) = self.serve(&socket) {
                        tracing::warn!(%error, "the connection to the holder has ended");
                    }
                    let mut state = self.state.lock();
                    let unsaid = std::mem::take(&mut state.unsaid);
                    let (leading, closed) = (state.leading, state.closed);
                    *state = State { leading, unsaid, closed, ..State::default() };
                    self.changed.notify_all();
                }
                Err(error) => tracing::debug!(%error, "there is no holder"),
            }
            let mut state = self.state.lock();
            if !state.closed {
                self.changed.wait_for(&mut state, CONNECT_POLL);
            }
        }
    }

    fn connect(&self) -> io::Result<PacketSocket> {
        let socket = PacketSocket::connect(&self.socket)?;
        let uid = socket.peer_uid()?;
        if uid != nix::unistd::getuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {uid} listens on the holder's socket"),
            ));
        }
        socket.set_send_timeout(ANSWER_TIMEOUT)?;
        Ok(socket)
    }

    fn serve(self: &Arc<Self>, socket: &Arc<PacketSocket>) -> io::Result<()> {
        let leading = {
            let mut state = self.state.lock();
            socket.send(&ToHolder::Hello { started_ms: self.started_ms, leading: state.leading })?;
            // Before any mount is given: a volume may have another one by now.
            for volume in std::mem::take(&mut state.unsaid) {
                socket.send(&ToHolder::Forget { volume })?;
            }
            state.socket = Some(Arc::clone(socket));
            self.changed.notify_all();
            state.leading
        };
        tracing::info!(leading, "connected to the holder");
        if leading {
            // Beside reading: the holder answers each.
            let (giving, socket) = (Arc::clone(self), Arc::clone(socket));
            std::thread::Builder::new().name("give".to_owned()).spawn(move || giving.give(&socket))?;
        }
        loop {
            let (message, descriptors) = match socket.receive_with() {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                received => received?,
            };
            let mut state = self.state.lock();
            match message {
                FromHolder::Turn { yours, others } => state.turn = Some(Turn { yours, others }),
                FromHolder::Kept { volume } => drop(state.kept.insert(volume)),
                FromHolder::Refused { volume, message } => {
                    tracing::error!(volume, message, "the holder doesn't keep a mount");
                    state.refused.push((volume, message));
                }
                FromHolder::Mount { volume, record, descriptors: sent } if sent == descriptors.len() => {
                    state.given.push(Given { volume, record, descriptors });
                }
                FromHolder::Mount { volume, .. } => {
                    tracing::error!(
                        volume,
                        "descriptors of a mount are missing; is the process out of them?"
                    );
                }
                FromHolder::Taken { mounts } => state.taken = Some(mounts),
                FromHolder::Left => state.left = true,
                FromHolder::Has { .. } | FromHolder::Unknown => {}
            }
            self.changed.notify_all();
        }
    }

    /// Gives a new holder what the one before it had.
    fn give(&self, socket: &Arc<PacketSocket>) {
        for volume in self.owner.volumes() {
            let mut state = self.state.lock();
            if state.socket.as_ref().is_none_or(|now| !Arc::ptr_eq(now, socket)) {
                return;
            }
            // Under the lock: what is forgotten meanwhile is forgotten after this.
            let given = self.owner.with(&volume, &mut |mount| self.send_keep(&mut state, mount));
            if let Err(error) = given {
                tracing::warn!(volume, %error, "a mount can't be given to the holder");
                socket.disconnect();
                return;
            }
        }
    }
}

/// Asks the holder of a directory whether it keeps a volume's mount; `None` if there is no holder.
///
/// # Errors
/// It doesn't answer.
pub fn has(folder: &Path, volume: &str) -> io::Result<Option<bool>> {
    let socket = match PacketSocket::connect(&folder.join(SOCKET)) {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if socket.peer_uid()? != nix::unistd::getuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    socket.send(&ToHolder::Has { volume: volume.to_owned() })?;
    match socket.receive(Instant::now() + ANSWER_TIMEOUT)? {
        FromHolder::Has { held } => Ok(Some(held)),
        _ => Err(io::Error::other("the holder is of another version")),
    }
}
