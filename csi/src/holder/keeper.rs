//! The holder's process: a table of descriptors, and a thread for each connection. It never looks into what it keeps, and
//! touches none of the memory, so that what clients do is not counted as its own.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use parking_lot::{Condvar, Mutex};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use thiserror::Error;

use super::protocol::{FromHolder, ToHolder};
use super::seats::{Seat, Seats};
use super::{LOCK, SOCKET};

use crate::mount_host::packet::{PacketListener, PacketSocket, listen};

/// How long a mount host may take to read what it is sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether an earlier holder has ended.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// Permissions of the directory: nobody but root reaches the socket, whatever else is on the node.
const FOLDER_MODE: u32 = 0o700;

/// Why the holder doesn't start.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// Its directory, lock or socket can't be had.
    #[error("{path}: {error}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A mount as it is kept.
struct Kept {
    record: String,
    descriptors: Vec<OwnedFd>,
}

/// A mount host's connection.
struct Peer {
    socket: Arc<PacketSocket>,
    /// What it was told last.
    told: Option<FromHolder>,
}

#[derive(Default)]
struct State {
    mounts: BTreeMap<String, Kept>,
    seats: Seats,
    peers: HashMap<u64, Peer>,
    connections: u64,
    /// The process ends: the leader continues with what it has.
    ending: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    socket: PathBuf,
    /// Held until the process ends.
    _lock: Flock<File>,
}

/// A running holder.
#[derive(Clone)]
pub struct Keeper(Arc<Shared>);

impl Keeper {
    /// Waits until no other holder has the directory, listens, and serves in threads of its own until the process ends.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub fn start(folder: &Path) -> Result<Keeper, KeeperError> {
        let failed = |error| KeeperError::Folder { path: folder.to_owned(), error };
        fs::create_dir_all(folder).map_err(failed)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(FOLDER_MODE)).map_err(failed)?;
        let lock = lock(&folder.join(LOCK)).map_err(failed)?;
        let socket = folder.join(SOCKET);
        let listener = listen(&socket).map_err(failed)?;
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, changed, socket, _lock: lock });
        let accepting = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || accept(&accepting, &listener))
            .map_err(failed)?;
        Ok(Keeper(shared))
    }

    /// Makes the figures part of a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Mounts(self.clone())));
    }

    /// The volumes whose mounts are kept.
    #[must_use]
    pub fn volumes(&self) -> Vec<String> {
        self.0.state.lock().mounts.keys().cloned().collect()
    }

    /// Waits until a mount host has all mounts as well, or there are none, for at most `grace`: with this process they would
    /// end otherwise. Returns how many end.
    #[must_use]
    pub fn stop(&self, grace: Duration) -> usize {
        let deadline = Instant::now() + grace;
        let mut state = self.0.state.lock();
        let mut said = false;
        loop {
            if state.mounts.is_empty() || state.seats.has_leader() {
                break;
            }
            if !std::mem::replace(&mut said, true) {
                let mounts = state.mounts.len();
                tracing::warn!(
                    mounts,
                    "no mount host has the mounts; waiting for one, since they would end with this process"
                );
            }
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.ending = true;
        let lost = if state.seats.has_leader() { 0 } else { state.mounts.len() };
        drop(state);
        let _ = fs::remove_file(&self.0.socket);
        lost
    }
}

struct Mounts(Keeper);

impl std::fmt::Debug for Mounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mounts")
    }
}

impl Collector for Mounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauge = ConstGauge::new(self.0.0.state.lock().mounts.len() as f64);
        let help = "Mounts whose descriptors are kept";
        gauge.encode(encoder.encode_descriptor("holder_mounts", help, None, gauge.metric_type())?)
    }
}

/// Takes the lock on a file, however long another process has it.
fn lock(path: &Path) -> io::Result<Flock<File>> {
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    let mut said = false;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::info!("waiting until the holder before this one has ended");
                }
                file = back;
                std::thread::sleep(LOCK_POLL);
            }
            Err((_, error)) => return Err(error.into()),
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &PacketListener) {
    loop {
        let started = listener.accept().and_then(|peer| {
            let serving = Arc::clone(shared);
            std::thread::Builder::new().name("mount-host".to_owned()).spawn(move || serving.serve(peer))
        });
        if let Err(error) = started {
            tracing::error!(%error, "a connection can't be served");
            // Out of descriptors, most likely: not to be made worse by turning round.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Shared {
    fn serve(&self, peer: PacketSocket) {
        match peer.peer_uid() {
            Ok(uid) if uid == nix::unistd::getuid().as_raw() => {}
            who => {
                tracing::warn!(?who, "another user connected");
                return;
            }
        }
        let _ = peer.set_send_timeout(SEND_TIMEOUT);
        let socket = Arc::new(peer);
        let number = {
            let mut state = self.state.lock();
            state.connections += 1;
            state.connections
        };
        loop {
            let served = match socket.receive_with() {
                Ok((message, descriptors)) => self.answer(number, &socket, message, descriptors),
                // Nothing that it can know.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => socket.send(&FromHolder::Unknown),
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                if error.kind() != io::ErrorKind::UnexpectedEof {
                    tracing::warn!(number, %error, "a connection ends");
                }
                break;
            }
        }
        let mut state = self.state.lock();
        state.peers.remove(&number);
        if let Some(seat) = state.seats.0.remove(&number) {
            tracing::info!(number, was_leading = seat.leading, "a mount host has left");
        }
        self.tell(&mut state);
    }

    fn answer(
        &self,
        number: u64,
        socket: &Arc<PacketSocket>,
        message: ToHolder,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let mut state = self.state.lock();
        match message {
            ToHolder::Hello { started_ms, leading } => {
                tracing::info!(number, started_ms, leading, "a mount host is there");
                state.seats.0.insert(number, Seat { started_ms, leading, unfit: false });
                state.peers.insert(number, Peer { socket: Arc::clone(socket), told: None });
                self.tell(&mut state);
            }
            ToHolder::Keep { volume, record, descriptors: sent } => {
                // The kernel drops what this process has no numbers for.
                if sent != descriptors.len() {
                    drop(state);
                    let message = format!("{} of {sent} descriptors arrived", descriptors.len());
                    tracing::error!(volume, message, "a mount isn't kept");
                    return socket.send(&FromHolder::Refused { volume, message });
                }
                let replaced = state.mounts.insert(volume.clone(), Kept { record, descriptors });
                drop(state);
                drop(replaced);
                tracing::debug!(volume, "a mount is kept");
                return socket.send(&FromHolder::Kept { volume });
            }
            ToHolder::Forget { volume } => {
                let forgotten = state.mounts.remove(&volume);
                self.changed.notify_all();
                drop(state);
                // Closing the last descriptor of a mount ends it.
                drop(forgotten);
            }
            ToHolder::Take { lead } => {
                let copies = state.mounts.iter().map(|(volume, kept)| Ok((volume.clone(), copy(kept)?)));
                let copies: Vec<(String, Kept)> = copies.collect::<io::Result<_>>()?;
                drop(state);
                for (volume, kept) in &copies {
                    send(socket, volume, kept)?;
                }
                socket.send(&FromHolder::Taken { mounts: copies.len() })?;
                if lead {
                    let mut state = self.state.lock();
                    if let Some(seat) = state.seats.0.get_mut(&number) {
                        seat.leading = true;
                    }
                    self.tell(&mut state);
                    tracing::info!(number, mounts = copies.len(), "a mount host leads");
                }
            }
            ToHolder::Yielded => {
                if state.ending {
                    // It has to keep what it has.
                    return Err(io::Error::other("the holder ends"));
                }
                if let Some(seat) = state.seats.0.get_mut(&number) {
                    seat.leading = false;
                }
                tracing::info!(number, "a mount host leads no more");
                self.tell(&mut state);
                drop(state);
                return socket.send(&FromHolder::Left);
            }
            ToHolder::Unfit => {
                if let Some(seat) = state.seats.0.get_mut(&number) {
                    seat.unfit = true;
                }
                tracing::warn!(number, "a mount host can't serve the mounts");
                self.tell(&mut state);
            }
            ToHolder::Has { volume } => {
                let held = state.mounts.contains_key(&volume);
                drop(state);
                return socket.send(&FromHolder::Has { held });
            }
            ToHolder::Unknown => {
                drop(state);
                return socket.send(&FromHolder::Unknown);
            }
        }
        Ok(())
    }

    /// Tells each mount host whether it is to lead, if that has changed.
    fn tell(&self, state: &mut State) {
        let turn = state.seats.turn();
        let others = state.seats.0.len().saturating_sub(1);
        for (number, peer) in &mut state.peers {
            let said = FromHolder::Turn { yours: turn == Some(*number), others };
            if peer.told.as_ref() == Some(&said) {
                continue;
            }
            match peer.socket.send_at_once(&said) {
                Ok(()) => peer.told = Some(said),
                // It reads nothing, or is gone; its own thread removes it.
                Err(_) => peer.socket.disconnect(),
            }
        }
        self.changed.notify_all();
    }
}

fn copy(kept: &Kept) -> io::Result<Kept> {
    let descriptors = kept.descriptors.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
    Ok(Kept { record: kept.record.clone(), descriptors })
}

fn send(socket: &PacketSocket, volume: &str, kept: &Kept) -> io::Result<()> {
    let message = FromHolder::Mount {
        volume: volume.to_owned(),
        record: kept.record.clone(),
        descriptors: kept.descriptors.len(),
    };
    let descriptors: Vec<_> = kept.descriptors.iter().map(AsFd::as_fd).collect();
    socket.send_with(&message, &descriptors)
}

#[cfg(test)]
mod tests;
