//! Snapshots as files: made for a member that lags, received from a leader.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_blocking::Pace;
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::async_runtime::Instant;
use parking_lot::{Mutex, RwLock};
use tokio::sync::OnceCell;

use crate::clock::BootInstant;
use crate::flush::{Flushing, LogHold};
use crate::group::{Group, GroupLogId, decode_stored_membership};
use crate::log_store::LogStore;
use crate::types::{AppliedState, MemberId, SnapshotProgress, StateMachine, StateMachineError};

/// Bytes of a snapshot sent in one request.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// Files in a snapshot.
const FILES_MAX: usize = 1 << 20;
/// A checkpoint is kept for so long after it was made or a member has got something of it: an attempt that failed goes on
/// with the same files, and a member that can't be reached doesn't cost a checkpoint with each attempt.
const REUSE: Duration = Duration::from_secs(60);
/// How often it is looked whether a checkpoint is still used.
const REUSE_CHECK: Duration = Duration::from_secs(5);
/// What was received of a snapshot is kept for so long, in case the leader goes on with it.
/// Reading through a large checkpoint, which the leader does in between, takes as long.
pub(crate) const INCOMING_KEPT: Duration = Duration::from_secs(3600);

const CHECKPOINT_PREFIX: &str = "checkpoint-";
const RECEIVED_PREFIX: &str = "received-";
/// What is being received, or was when the transfer broke off.
const INCOMING: &str = "incoming";

/// The data of a snapshot, as openraft carries it around.
pub(crate) enum SnapshotData {
    /// Only its position matters.
    Position,
    /// Files to send, and the log kept for what comes after them.
    Checkpoint(Arc<Checkpoint>, LogHold),
    /// Files that were received.
    Received(OwnedDir),
}

/// A folder that is removed with this.
#[derive(Debug)]
pub(crate) struct OwnedDir(PathBuf);

impl OwnedDir {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for OwnedDir {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("can't remove {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

/// A checkpoint of the state machine.
pub(crate) struct Checkpoint {
    dir: OwnedDir,
    pub(crate) state: AppliedState,
    /// Paths under the folder, and sizes in bytes.
    pub(crate) files: Vec<(String, u64)>,
    machine: Arc<dyn StateMachine>,
    verified: OnceCell<()>,
    used: Mutex<BootInstant>,
    /// The node stops, and has no more use for it.
    abandoned: Arc<AtomicBool>,
}

impl Checkpoint {
    /// Makes sure, once, that all of it is what was written; reads no faster than `pace` lets it.
    pub(crate) async fn verify(self: &Arc<Self>, pace: &Arc<Pace>) -> io::Result<()> {
        let verify = async || {
            let (this, pace) = (self.clone(), pace.clone());
            let verified = atoll_blocking::spawn(move || {
                let goes_on = || !this.abandoned.load(Ordering::Acquire);
                this.machine.verify(this.dir.path(), &mut |bytes| match pace.block(bytes, goes_on) {
                    true => Ok(()),
                    false => Err(StateMachineError::new("this metadata server is stopping")),
                })
            });
            verified.await.map_err(io::Error::other)?.map_err(io::Error::other)
        };
        self.verified.get_or_try_init(verify).await.copied()
    }

    /// A member gets something of it.
    pub(crate) fn touch(&self) {
        *self.used.lock() = BootInstant::now();
    }

    fn is_fresh(&self) -> bool {
        self.used.lock().elapsed() < REUSE
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Reads a part of a file. Blocks.
    pub(crate) fn read(&self, file: usize, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (name, _) = self.files.get(file).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; len];
        File::open(self.dir.path().join(name))?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

/// The checkpoint that may be used again, and the log that is kept for what comes after it.
struct Kept {
    checkpoint: Arc<Checkpoint>,
    _hold: LogHold,
}

/// Makes checkpoints.
pub(crate) struct Snapshots {
    dir: PathBuf,
    store: Arc<LogStore>,
    count: AtomicU64,
    last: Mutex<Option<Kept>>,
    stopped: Arc<AtomicBool>,
}

impl Snapshots {
    pub(crate) fn new(dir: PathBuf, store: Arc<LogStore>) -> Arc<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        Arc::new(Self { dir, store, count: AtomicU64::new(0), last: Mutex::new(None), stopped })
    }

    /// Removes what an earlier process has left behind, but for what it was receiving. Blocks.
    pub(crate) fn clean(dir: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir()
                && (name.starts_with(CHECKPOINT_PREFIX) || name.starts_with(RECEIVED_PREFIX))
            {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// A checkpoint to send: a new one, or a recent one whose successors are still in the log.
    pub(crate) async fn checkpoint(
        self: &Arc<Self>,
        machine: Arc<dyn StateMachine>,
        flushing: &Arc<Flushing>,
    ) -> io::Result<SnapshotOf<Group, SnapshotData>> {
        let hold = flushing.hold_log();
        let base = self.store.ends().0.map(|b| b.index);
        let recent = self.last.lock().as_ref().map(|kept| kept.checkpoint.clone());
        let recent = recent.filter(|c| c.is_fresh() && c.state.position.map(|p| p.index) >= base);
        let checkpoint = match recent {
            Some(checkpoint) => checkpoint,
            None => {
                let number = self.count.fetch_add(1, Ordering::Relaxed);
                let dir = OwnedDir(self.dir.join(format!("{CHECKPOINT_PREFIX}{number}")));
                let abandoned = self.stopped.clone();
                let made = atoll_blocking::spawn(move || -> io::Result<Checkpoint> {
                    let state = machine.checkpoint(dir.path()).map_err(io::Error::other)?;
                    let mut files = Vec::new();
                    list_files(dir.path(), "", &mut files)?;
                    let (verified, used) = (OnceCell::new(), Mutex::new(BootInstant::now()));
                    Ok(Checkpoint { dir, state, files, machine, verified, used, abandoned })
                });
                let made = Arc::new(made.await.map_err(io::Error::other)??);
                self.keep(made.clone(), flushing.hold_log());
                made
            }
        };
        let meta = SnapshotMetaOf::<Group> {
            last_log_id: checkpoint.state.position.map(GroupLogId::from),
            last_membership: decode_stored_membership(checkpoint.state.membership.as_deref())?,
        };
        Ok(SnapshotOf::<Group, SnapshotData> { meta, snapshot: SnapshotData::Checkpoint(checkpoint, hold) })
    }

    fn keep(self: &Arc<Self>, checkpoint: Arc<Checkpoint>, hold: LogHold) {
        let (this, kept) = (Arc::downgrade(self), Arc::downgrade(&checkpoint));
        *self.last.lock() = Some(Kept { checkpoint, _hold: hold });
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REUSE_CHECK).await;
                let Some(this) = this.upgrade() else { return };
                let mut last = this.last.lock();
                match last.as_ref().filter(|last| Arc::as_ptr(&last.checkpoint) == kept.as_ptr()) {
                    // While it is being sent, it is held there, too.
                    Some(last) if last.checkpoint.is_fresh() || Arc::strong_count(&last.checkpoint) > 1 => {}
                    Some(_) => {
                        *last = None;
                        return;
                    }
                    None => return,
                }
            }
        });
    }

    /// Lets go of this checkpoint: it is not what was written.
    pub(crate) fn give_up(&self, checkpoint: &Arc<Checkpoint>) {
        let mut last = self.last.lock();
        if last.as_ref().is_some_and(|kept| Arc::ptr_eq(&kept.checkpoint, checkpoint)) {
            *last = None;
        }
    }

    /// Lets go of the checkpoint that is kept, for good.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        *self.last.lock() = None;
    }
}

/// How far the snapshots are that are being sent.
#[derive(Debug, Default)]
pub(crate) struct Sending(Mutex<BTreeMap<MemberId, SnapshotProgress>>);

impl Sending {
    /// Begins to keep account of one, until the answer is dropped.
    pub(crate) fn begin(self: &Arc<Self>, to: MemberId, bytes: u64) -> SendingOne {
        self.0.lock().insert(to, SnapshotProgress { done_bytes: 0, total_bytes: bytes });
        SendingOne { to, all: self.clone() }
    }

    pub(crate) fn to(&self, member: MemberId) -> Option<SnapshotProgress> {
        self.0.lock().get(&member).copied()
    }
}

/// Account of one snapshot.
pub(crate) struct SendingOne {
    to: MemberId,
    all: Arc<Sending>,
}

impl SendingOne {
    /// So many bytes more are there.
    pub(crate) fn done(&self, bytes: u64) {
        if let Some(progress) = self.all.0.lock().get_mut(&self.to) {
            progress.done_bytes += bytes;
        }
    }
}

impl Drop for SendingOne {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.to);
    }
}

fn list_files(dir: &Path, prefix: &str, files: &mut Vec<(String, u64)>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|name| {
            io::Error::new(io::ErrorKind::InvalidData, format!("a snapshot's file is named {name:?}"))
        })?;
        let name = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.push((name, entry.metadata()?.len()));
        }
    }
    Ok(())
}

/// What tells whether a chunk is there already. Both ends compute it of their own files, so that what a crash has torn,
/// or a newer checkpoint has changed under the same name, is sent again.
pub(crate) fn fingerprint(chunk: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, chunk)
}

/// A snapshot that is being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Chosen by the sender.
    pub(crate) id: u64,
    /// Term of the sender.
    pub(crate) term: u64,
    dir: PathBuf,
    files: Vec<IncomingFile>,
    /// Nothing is written any more: the files belong to another transfer.
    closed: RwLock<bool>,
}

#[derive(Debug)]
struct IncomingFile {
    file: File,
    bytes: u64,
    /// Offsets of the chunks that are there.
    received: Mutex<BTreeSet<u64>>,
}

impl IncomingFile {
    fn chunks(&self) -> u64 {
        self.bytes.div_ceil(CHUNK_BYTES as u64)
    }

    /// Finds out what an earlier transfer has left here: the fingerprints of the first chunks.
    fn fingerprints(&self) -> io::Result<Vec<u64>> {
        let len = self.file.metadata()?.len();
        if len > self.bytes {
            self.file.set_len(self.bytes)?;
        }
        let mut found = Vec::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        for number in 0..self.chunks() {
            let offset = number * CHUNK_BYTES as u64;
            let bytes = (self.bytes - offset).min(CHUNK_BYTES as u64);
            if offset + bytes > len {
                break;
            }
            let chunk = &mut chunk[..bytes as usize];
            self.file.read_exact_at(chunk, offset)?;
            found.push(fingerprint(chunk));
            self.received.lock().insert(offset);
        }
        Ok(found)
    }
}

impl Incoming {
    /// Makes the files, or goes on with those that are there; if these are no good, begins anew. Returns also the fingerprints
    /// of the first chunks of each file: those that the sender has, too, need not be sent; all others must be. Blocks.
    pub(crate) fn begin(
        parent: &Path,
        id: u64,
        term: u64,
        files: &[(String, u64)],
    ) -> io::Result<(Self, Vec<Vec<u64>>)> {
        Self::go_on(parent, id, term, files).or_else(|error| {
            if error.kind() == io::ErrorKind::InvalidInput || !Self::is_left(parent) {
                return Err(error);
            }
            tracing::warn!(
                "the received part of a snapshot can't be continued; the snapshot is sent again from the \
                 start: {error}"
            );
            Self::remove_left(parent)?;
            Self::go_on(parent, id, term, files)
        })
    }

    fn go_on(
        parent: &Path,
        id: u64,
        term: u64,
        files: &[(String, u64)],
    ) -> io::Result<(Self, Vec<Vec<u64>>)> {
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        if files.len() > FILES_MAX {
            return Err(bad(format!(
                "a snapshot of {} files: at most {FILES_MAX} are possible",
                files.len()
            )));
        }
        for (name, _) in files {
            let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
            if name.is_empty() || !Path::new(name).components().all(plain) {
                return Err(bad(format!("a snapshot's file can't be named {name:?}")));
            }
        }
        let dir = parent.join(INCOMING);
        std::fs::create_dir_all(&dir)?;
        let mut left = Vec::new();
        list_files(&dir, "", &mut left)?;
        let wanted: HashSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        for (name, _) in left.iter().filter(|(name, _)| !wanted.contains(name.as_str())) {
            std::fs::remove_file(dir.join(name))?;
        }
        let mut incoming = Vec::with_capacity(files.len());
        let mut there = Vec::with_capacity(files.len());
        for (name, bytes) in files {
            let path = dir.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let file = IncomingFile { file, bytes: *bytes, received: Mutex::default() };
            there.push(file.fingerprints()?);
            incoming.push(file);
        }
        Ok((Self { id, term, dir, files: incoming, closed: RwLock::new(false) }, there))
    }

    /// Writes a chunk; chunks come in any order. Blocks.
    pub(crate) fn write(&self, file: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let target = self.files.get(file).ok_or_else(|| bad(format!("no file {file} in this snapshot")))?;
        let expected = (target.bytes.saturating_sub(offset)).min(CHUNK_BYTES as u64);
        if !offset.is_multiple_of(CHUNK_BYTES as u64) || bytes.is_empty() || bytes.len() as u64 != expected {
            return Err(bad(format!("{} bytes at {offset} are not a chunk of file {file}", bytes.len())));
        }
        let closed = self.closed.read();
        if *closed {
            return Err(bad("this transfer already ended".into()));
        }
        target.file.write_all_at(bytes, offset)?;
        let completes = {
            let mut received = target.received.lock();
            received.insert(offset) && received.len() as u64 == target.chunks()
        };
        if completes {
            // Not all at the end, which would keep the disk from everybody else.
            target.file.sync_data()?;
        }
        Ok(())
    }

    /// Nothing is written after this. Blocks until what is being written is.
    pub(crate) fn close(&self) {
        *self.closed.write() = true;
    }

    /// Checks that all is there and makes it durable. Blocks.
    pub(crate) fn finish(&self) -> io::Result<OwnedDir> {
        self.close();
        for (i, file) in self.files.iter().enumerate() {
            let chunks = file.chunks();
            let received = file.received.lock().len() as u64;
            if received != chunks {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("file {i} of the snapshot has only {received} of {chunks} chunks"),
                ));
            }
            file.file.sync_all()?;
        }
        sync_dirs(&self.dir)?;
        // Under its own name, since the next one may come while this one is being installed.
        let received = OwnedDir(self.dir.with_file_name(format!("{RECEIVED_PREFIX}{:016x}", self.id)));
        std::fs::rename(&self.dir, received.path())?;
        Ok(received)
    }

    /// Whether something is there of a transfer that broke off. Blocks.
    pub(crate) fn is_left(parent: &Path) -> bool {
        parent.join(INCOMING).exists()
    }

    /// Removes what is there of a transfer that broke off. Blocks.
    pub(crate) fn remove_left(parent: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(parent.join(INCOMING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn sync_dirs(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_dirs(&entry.path())?;
        }
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receives_in_any_order_and_only_whole() {
        let parent = tempfile::tempdir().unwrap();
        let large = vec![7u8; CHUNK_BYTES + 10];
        let files = [("a".into(), large.len() as u64), ("sub/b".into(), 3), ("sub/empty".into(), 0)];
        let begin = |id| Incoming::begin(parent.path(), id, 1, &files).unwrap();
        let (incoming, there) = begin(1);
        assert_eq!(there, vec![Vec::<u64>::new(); 3]);
        incoming.write(1, 0, b"bbb").unwrap();
        incoming.write(0, CHUNK_BYTES as u64, &large[CHUNK_BYTES..]).unwrap();
        assert!(incoming.write(0, 5, b"x").is_err());
        assert!(incoming.write(1, 0, b"bb").is_err());
        assert!(incoming.write(3, 0, b"x").is_err());
        assert!(incoming.finish().unwrap_err().to_string().contains("1 of 2 chunks"));
        Incoming::remove_left(parent.path()).unwrap();

        let (incoming, _) = begin(2);
        incoming.write(0, CHUNK_BYTES as u64, &large[CHUNK_BYTES..]).unwrap();
        incoming.write(1, 0, b"bbb").unwrap();
        incoming.write(0, 0, &large[..CHUNK_BYTES]).unwrap();
        let dir = incoming.finish().unwrap();
        assert!(!Incoming::is_left(parent.path()));
        assert!(incoming.write(1, 0, b"ccc").is_err(), "it belongs to the state machine now");
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), large);
        assert_eq!(std::fs::read(dir.path().join("sub/b")).unwrap(), b"bbb");
        assert_eq!(std::fs::read(dir.path().join("sub/empty")).unwrap(), b"");
        let mut listed = Vec::new();
        list_files(dir.path(), "", &mut listed).unwrap();
        listed.sort();
        assert_eq!(listed, files);
        drop(dir);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn goes_on_with_what_an_earlier_transfer_has_left() {
        let parent = tempfile::tempdir().unwrap();
        let mib = CHUNK_BYTES as u64;
        let chunk = |byte: u8| vec![byte; CHUNK_BYTES];
        let files = [("a".into(), 3 * mib), ("b".into(), 2), ("gone".into(), 5)];
        let (first, _) = Incoming::begin(parent.path(), 1, 1, &files).unwrap();
        first.write(0, 0, &chunk(1)).unwrap();
        first.write(0, 2 * mib, &chunk(3)).unwrap();
        first.write(1, 0, b"bb").unwrap();
        first.close();
        assert!(first.write(0, mib, &chunk(9)).is_err(), "a straggler changes files of the next transfer");
        drop(first);

        // The next one is of another checkpoint: one file is gone, one is new, one is shorter.
        let files = [("a".into(), 3 * mib), ("new/c".into(), 1), ("b".into(), 1)];
        let (second, there) = Incoming::begin(parent.path(), 2, 1, &files).unwrap();
        let hole = fingerprint(&chunk(0));
        assert_eq!(there[0], [fingerprint(&chunk(1)), hole, fingerprint(&chunk(3))]);
        assert_eq!(there[1], Vec::<u64>::new());
        assert_eq!(there[2], [fingerprint(b"b")]);
        // What differs is sent.
        second.write(0, mib, &chunk(2)).unwrap();
        second.write(1, 0, b"c").unwrap();
        let dir = second.finish().unwrap();
        let a = std::fs::read(dir.path().join("a")).unwrap();
        assert_eq!([a[0], a[CHUNK_BYTES], a[2 * CHUNK_BYTES]], [1, 2, 3]);
        assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), b"b");
        assert!(!dir.path().join("gone").exists());
        drop(dir);

        // A folder where a file has to be: nothing of it is of use.
        let (third, _) =
            Incoming::begin(parent.path(), 3, 1, &[("sub/b".into(), 1), ("c".into(), 1)]).unwrap();
        third.write(1, 0, b"x").unwrap();
        third.close();
        let (fourth, there) =
            Incoming::begin(parent.path(), 4, 1, &[("sub".into(), 1), ("c".into(), 1)]).unwrap();
        assert_eq!(there, vec![Vec::<u64>::new(); 2]);
        fourth.write(0, 0, b"y").unwrap();
        fourth.write(1, 0, b"z").unwrap();
        assert_eq!(std::fs::read(fourth.finish().unwrap().path().join("sub")).unwrap(), b"y");
    }

    #[test]
    fn stays_in_its_folder() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["../x", "/etc/x", "a/../../x", ""] {
            let result = Incoming::begin(parent.path(), 1, 1, &[(name.into(), 1)]);
            assert!(result.is_err(), "{name}");
        }
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
