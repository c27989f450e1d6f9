//! Snapshots as files: made for a member that lags, received from a leader.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::async_runtime::Instant;
use parking_lot::Mutex;

use crate::clock::BootInstant;
use crate::flush::{Flushing, LogHold};
use crate::group::{Group, GroupLogId, decode_stored_membership};
use crate::log_store::LogStore;
use crate::types::{AppliedState, StateMachine};

/// Bytes of a snapshot sent in one request.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// Files in a snapshot.
const FILES_MAX: usize = 1 << 20;
/// A checkpoint is used again for this long, so that a member that can't be reached doesn't cost
/// a checkpoint with each attempt.
const REUSE: Duration = Duration::from_secs(60);

const CHECKPOINT_PREFIX: &str = "checkpoint-";
const INCOMING_PREFIX: &str = "incoming-";

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
#[derive(Debug)]
pub(crate) struct Checkpoint {
    dir: OwnedDir,
    pub(crate) state: AppliedState,
    /// Paths under the folder, and sizes in bytes.
    pub(crate) files: Vec<(String, u64)>,
    made: BootInstant,
}

impl Checkpoint {
    /// Reads a part of a file. Blocks.
    pub(crate) fn read(&self, file: usize, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (name, _) = self.files.get(file).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; len];
        File::open(self.dir.path().join(name))?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

/// Makes checkpoints.
pub(crate) struct Snapshots {
    dir: PathBuf,
    store: Arc<LogStore>,
    count: AtomicU64,
    last: Mutex<Option<Arc<Checkpoint>>>,
}

impl Snapshots {
    pub(crate) fn new(dir: PathBuf, store: Arc<LogStore>) -> Arc<Self> {
        Arc::new(Self { dir, store, count: AtomicU64::new(0), last: Mutex::new(None) })
    }

    /// Removes what an earlier process has left behind. Blocks.
    pub(crate) fn clean(dir: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir()
                && (name.starts_with(CHECKPOINT_PREFIX) || name.starts_with(INCOMING_PREFIX))
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
        let recent = self
            .last
            .lock()
            .clone()
            .filter(|c| c.made.elapsed() < REUSE && c.state.position.map(|p| p.index) >= base);
        let checkpoint = match recent {
            Some(checkpoint) => checkpoint,
            None => {
                let number = self.count.fetch_add(1, Ordering::Relaxed);
                let dir = OwnedDir(self.dir.join(format!("{CHECKPOINT_PREFIX}{number}")));
                let made = atoll_blocking::spawn(move || -> io::Result<Checkpoint> {
                    let state = machine.checkpoint(dir.path()).map_err(io::Error::other)?;
                    let mut files = Vec::new();
                    list_files(dir.path(), "", &mut files)?;
                    Ok(Checkpoint { dir, state, files, made: BootInstant::now() })
                });
                let made = Arc::new(made.await.map_err(io::Error::other)??);
                self.keep(made.clone());
                made
            }
        };
        let meta = SnapshotMetaOf::<Group> {
            last_log_id: checkpoint.state.position.map(GroupLogId::from),
            last_membership: decode_stored_membership(checkpoint.state.membership.as_deref())?,
        };
        Ok(SnapshotOf::<Group, SnapshotData> { meta, snapshot: SnapshotData::Checkpoint(checkpoint, hold) })
    }

    fn keep(self: &Arc<Self>, checkpoint: Arc<Checkpoint>) {
        let this = self.clone();
        let made = checkpoint.made;
        *self.last.lock() = Some(checkpoint);
        tokio::spawn(async move {
            tokio::time::sleep(REUSE).await;
            let mut last = this.last.lock();
            if last.as_ref().is_some_and(|c| c.made == made) {
                *last = None;
            }
        });
    }

    /// Lets go of the checkpoint that is kept.
    pub(crate) fn forget(&self) {
        *self.last.lock() = None;
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

/// A snapshot that is being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Chosen by the sender.
    pub(crate) id: u64,
    /// Term of the sender.
    pub(crate) term: u64,
    dir: OwnedDir,
    files: Vec<IncomingFile>,
}

#[derive(Debug)]
struct IncomingFile {
    file: File,
    bytes: u64,
    /// Offsets of the chunks that are there.
    received: Mutex<BTreeSet<u64>>,
}

impl Incoming {
    /// Makes the files, empty. Blocks.
    pub(crate) fn begin(parent: &Path, id: u64, term: u64, files: &[(String, u64)]) -> io::Result<Self> {
        if files.len() > FILES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a snapshot of {} files, at most {FILES_MAX} can be", files.len()),
            ));
        }
        let dir = OwnedDir(parent.join(format!("{INCOMING_PREFIX}{id:016x}")));
        std::fs::create_dir_all(dir.path())?;
        let files = files
            .iter()
            .map(|(name, bytes)| {
                let relative = Path::new(name);
                let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
                if name.is_empty() || !relative.components().all(plain) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("a snapshot's file can't be named {name:?}"),
                    ));
                }
                let path = dir.path().join(relative);
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
                Ok(IncomingFile { file, bytes: *bytes, received: Mutex::default() })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { id, term, dir, files })
    }

    /// Writes a chunk; chunks come in any order. Blocks.
    pub(crate) fn write(&self, file: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let target = self.files.get(file).ok_or_else(|| bad(format!("no file {file} in this snapshot")))?;
        let expected = (target.bytes.saturating_sub(offset)).min(CHUNK_BYTES as u64);
        if !offset.is_multiple_of(CHUNK_BYTES as u64) || bytes.is_empty() || bytes.len() as u64 != expected {
            return Err(bad(format!("{} bytes at {offset} are no chunk of file {file}", bytes.len())));
        }
        target.file.write_all_at(bytes, offset)?;
        target.received.lock().insert(offset);
        Ok(())
    }

    /// Checks that all is there and makes it durable. Blocks.
    pub(crate) fn finish(self) -> io::Result<OwnedDir> {
        for (i, file) in self.files.iter().enumerate() {
            let chunks = file.bytes.div_ceil(CHUNK_BYTES as u64);
            let received = file.received.lock().len() as u64;
            if received != chunks {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("of file {i} of the snapshot there are {received} chunks of {chunks}"),
                ));
            }
            file.file.sync_all()?;
        }
        sync_dirs(self.dir.path())?;
        Ok(self.dir)
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
        let incoming = begin(1);
        incoming.write(1, 0, b"bbb").unwrap();
        incoming.write(0, CHUNK_BYTES as u64, &large[CHUNK_BYTES..]).unwrap();
        assert!(incoming.write(0, 5, b"x").is_err());
        assert!(incoming.write(1, 0, b"bb").is_err());
        assert!(incoming.write(3, 0, b"x").is_err());
        assert!(incoming.finish().unwrap_err().to_string().contains("1 chunks of 2"));

        let incoming = begin(2);
        incoming.write(0, CHUNK_BYTES as u64, &large[CHUNK_BYTES..]).unwrap();
        incoming.write(1, 0, b"bbb").unwrap();
        incoming.write(0, 0, &large[..CHUNK_BYTES]).unwrap();
        let dir = incoming.finish().unwrap();
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
    fn stays_in_its_folder() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["../x", "/etc/x", "a/../../x", ""] {
            let result = Incoming::begin(parent.path(), 1, 1, &[(name.into(), 1)]);
            assert!(result.is_err(), "{name}");
        }
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
