//! The folder of a storage server.
//!
//! ```text
//! atoll-storage.json      whose folder this is (store/identity.rs)
//! lock                    held by the process that serves it
//! ballast                 space that is given up when the disk is full (store/ballast.rs)
//! tmp/                    replicas in the making; emptied at start
//! chunks/<xx>/<id>.chunk  one file per replica, in 256 folders by the last two digits of the chunk's id
//! ```
//!
//! Nothing here decides anything: a replica is what its file says, and what the metadata service doesn't know is
//! deleted on its order. There are no tombstones for deleted chunks: an id is never used twice, so a late write that
//! makes a deleted replica again makes garbage that no extent refers to (its commit is refused), and the next
//! inventory gives it away.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atoll_core::ids::{ChunkId, Generation};
use atoll_proto::storage::some_blocks;
use parking_lot::{Mutex, RwLock};

use self::ballast::Ballast;
use self::cache::Cache;
use self::changes::Changes;
pub use self::error::StoreError;
pub use self::identity::{FOLDER_FORMAT, StoreIdentity};
use crate::chunk_file::{Bitmap, ChunkError, ChunkFile, Geometry, Header, Layout, Writer};
use crate::disk::{Disk, DiskLock, Space};
use crate::sync_group::SyncGroup;

mod ballast;
mod cache;
pub mod changes;
mod copy;
mod error;
mod identity;
#[cfg(test)]
mod tests;

pub use self::copy::CopyTarget;

const CHUNKS: &str = "chunks";
const TEMPORARY: &str = "tmp";
const SUFFIX: &str = ".chunk";

/// Replicas that are kept open: file descriptors, and 4 KiB of memory for each that is being written.
pub const OPEN_CHUNKS_MAX: usize = 256;
/// Locks that keep two callers from opening, making or deleting the same replica at once.
const STRIPES: usize = 64;

/// For how long a disk that has refused a write counts as full.
const FULL_MEMORY: Duration = Duration::from_secs(3);

/// How a folder is to be served.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The cluster it must belong to.
    pub cluster: atoll_core::ids::ClusterId,
    /// Space kept for deleting on a full disk, bytes; 0 for none.
    pub ballast_bytes: u64,
    /// Data bytes of the chunks that are made here.
    pub chunk_bytes: u64,
}

/// An open replica and those who wait for its sync.
pub struct OpenChunk {
    /// The file.
    pub file: ChunkFile,
    /// The callers that wait for a sync.
    pub syncs: SyncGroup,
}

impl OpenChunk {
    fn new(file: ChunkFile) -> Self {
        Self { file, syncs: SyncGroup::default() }
    }
}

/// What is known of a replica without asking its file.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Generation and length of a sealed one, once they were read: they change through this process alone.
    sealed: Option<(Generation, u64)>,
    /// Bad blocks were found.
    bad: bool,
    /// This process made it.
    ours: bool,
}

/// One line of the inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation that the replica knows.
    pub generation: Generation,
    /// Its length, bytes.
    pub length: u64,
    /// Whether it is sealed.
    pub sealed: bool,
    /// Whether it is known to be bad, as a whole or in part.
    pub bad: bool,
}

/// The folder, open. All calls block.
pub struct Store {
    disk: Arc<dyn Disk>,
    identity: StoreIdentity,
    geometry: Geometry,
    index: RwLock<BTreeMap<ChunkId, Known>>,
    cache: Cache,
    stripes: Vec<Mutex<()>>,
    ballast: Ballast,
    changes: Changes,
    disk_errors: AtomicU64,
    /// When a write last found no room.
    full: Mutex<Option<Instant>>,
    bad_blocks: AtomicU64,
    /// Numbers the temporary files of copies.
    copies: AtomicU64,
    _lock: Box<dyn DiskLock>,
}

impl Store {
    /// Opens a folder, or takes an empty one for this cluster. Reads the names of the replicas, not their
    /// contents.
    pub fn open(disk: Arc<dyn Disk>, options: &StoreOptions) -> Result<Self, StoreError> {
        let io = |doing| move |source| StoreError::Io { doing, source };
        let geometry = Geometry::new(options.chunk_bytes).ok_or_else(|| StoreError::Io {
            doing: "use this chunk size",
            source: io::Error::new(
                io::ErrorKind::InvalidInput,
                ChunkError::BadCapacity(options.chunk_bytes).to_string(),
            ),
        })?;
        let lock = disk.lock(identity::LOCK_FILE).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => StoreError::Locked { folder: disk.describe() },
            _ => StoreError::Io { doing: "lock the directory", source },
        })?;
        let identity = identity::claim(&*disk, options.cluster)?;
        disk.create_dir(TEMPORARY).map_err(io("create the directory for temporary files"))?;
        disk.create_dir(CHUNKS).map_err(io("create the directory for chunks"))?;
        disk.sync_dir("").map_err(io("sync the directory"))?;
        for entry in disk.list(TEMPORARY).map_err(io("list the temporary files"))? {
            let path = format!("{TEMPORARY}/{}", entry.name);
            disk.unlink(&path).map_err(io("remove a temporary file"))?;
        }
        let index = read_index(&*disk).map_err(io("list the chunks"))?;
        let ballast = Ballast::new(&*disk, options.ballast_bytes).unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "the ballast file can't be created: deletions may fail once the disk is full"
            );
            Ballast::none()
        });
        Ok(Self {
            identity,
            geometry,
            index: RwLock::new(index),
            cache: Cache::new(OPEN_CHUNKS_MAX),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            ballast,
            changes: Changes::default(),
            disk_errors: AtomicU64::new(0),
            full: Mutex::new(None),
            bad_blocks: AtomicU64::new(0),
            copies: AtomicU64::new(0),
            disk,
            _lock: lock,
        })
    }

    /// Whose folder it is.
    pub fn identity(&self) -> &StoreIdentity {
        &self.identity
    }

    /// News for the metadata service.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// How many replicas there are.
    pub fn len(&self) -> usize {
        self.index.read().len()
    }

    /// Whether there are no replicas.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many replicas are open.
    pub fn open_chunks(&self) -> usize {
        self.cache.len()
    }

    /// Disk errors since the start.
    pub fn disk_errors(&self) -> u64 {
        self.disk_errors.load(Ordering::Relaxed)
    }

    /// Blocks found bad since the start.
    pub fn bad_blocks(&self) -> u64 {
        self.bad_blocks.load(Ordering::Relaxed)
    }

    /// Size and free space of the disk; the ballast counts as used.
    pub fn space(&self) -> io::Result<Space> {
        self.disk.space()
    }

    /// Bytes that writers may still take: none for a while after the disk has refused some, whatever it says. It may be
    /// out of inodes, or keep its last blocks for itself.
    pub fn writable_bytes(&self, space: &Space) -> u64 {
        let full = self.full.lock().is_some_and(|refused| refused.elapsed() < FULL_MEMORY);
        if full { 0 } else { space.free_bytes }
    }

    /// Bytes of ballast held now.
    pub fn ballast_bytes(&self) -> u64 {
        self.ballast.held_bytes()
    }

    /// What is to be done now and then: takes the ballast again when there is room.
    pub fn tidy(&self) {
        if let Err(error) = self.ballast.restore(&*self.disk) {
            tracing::warn!(%error, "the ballast file could not be created again");
        }
    }

    /// The replica of a chunk, if it is open already. Doesn't block.
    pub fn chunk_if_open(&self, id: ChunkId) -> Option<Arc<OpenChunk>> {
        self.cache.find(id)
    }

    /// The replica of a chunk.
    pub fn chunk(&self, id: ChunkId) -> Result<Arc<OpenChunk>, ChunkError> {
        if let Some(open) = self.cache.find(id) {
            return Ok(open);
        }
        let _one_opener = self.stripe(id).lock();
        if let Some(open) = self.cache.find(id) {
            return Ok(open);
        }
        self.open_chunk(id)
    }

    /// The replica of a chunk, made if it isn't there.
    pub fn chunk_or_new(
        &self,
        id: ChunkId,
        layout: Layout,
        generation: Generation,
        writer: Writer,
    ) -> Result<Arc<OpenChunk>, ChunkError> {
        if let Some(open) = self.cache.find(id) {
            return Ok(open);
        }
        let _one_opener = self.stripe(id).lock();
        if let Some(open) = self.cache.find(id) {
            return Ok(open);
        }
        match self.open_chunk(id) {
            Err(ChunkError::NotFound) => {}
            other => return other,
        }
        let header = Header {
            cluster: self.identity.cluster,
            chunk: id,
            geometry: self.geometry,
            layout,
            generation,
            writer,
            sealed: None,
            suspect: false,
            trimmed: Bitmap::new(self.geometry.blocks()),
        };
        let file = self.noting(id, self.make(id, header))?;
        let open = Arc::new(OpenChunk::new(file));
        self.index.write().insert(id, Known { ours: true, ..Known::default() });
        self.cache.keep(id, open.clone());
        self.changes.present(id);
        Ok(open)
    }

    fn open_chunk(&self, id: ChunkId) -> Result<Arc<OpenChunk>, ChunkError> {
        let ours = self.index.read().get(&id).ok_or(ChunkError::NotFound)?.ours;
        let file = ChunkFile::open(&*self.disk, &path_of(id), self.identity.cluster, id, ours);
        let file = match file {
            Err(ChunkError::NotFound) => {
                // It was there at the start: somebody took it away behind our back.
                self.index.write().remove(&id);
                self.changes.removed(id);
                return Err(ChunkError::NotFound);
            }
            other => self.noting(id, other)?,
        };
        let open = Arc::new(OpenChunk::new(file));
        self.cache.keep(id, open.clone());
        Ok(open)
    }

    fn make(&self, id: ChunkId, header: Header) -> Result<ChunkFile, ChunkError> {
        let temporary = temporary_of(id);
        let file = ChunkFile::create(&*self.disk, &temporary, header)
            .and_then(|file| self.publish(&temporary, id).map(|()| file));
        if file.is_err()
            && let Err(error) = self.disk.unlink(&temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(
                %error, temporary,
                "the file of a failed replica could not be removed; the next start removes it"
            );
        }
        file
    }

    /// Gives a finished file its name, durably.
    fn publish(&self, temporary: &str, id: ChunkId) -> Result<(), ChunkError> {
        let path = path_of(id);
        let folder = crate::disk::parent(&path);
        match self.disk.rename(temporary, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.create_dir(folder)?;
                self.disk.sync_dir(CHUNKS)?;
                self.disk.rename(temporary, &path)?;
            }
            other => other?,
        }
        Ok(self.disk.sync_dir(folder)?)
    }

    /// Whether there is a replica of the chunk, whatever state it is in.
    #[must_use]
    pub fn has(&self, id: ChunkId) -> bool {
        self.index.read().contains_key(&id)
    }

    /// Seals a replica, also on a full disk. Returns the blocks below the length that aren't here.
    pub fn seal(&self, id: ChunkId, generation: Generation, length: u64) -> Result<Vec<u64>, ChunkError> {
        let open = self.chunk(id)?;
        let missing = self.noting(id, self.with_ballast(|| open.file.seal(generation, length)))?;
        let bad = self.index.write().get_mut(&id).is_some_and(|known| {
            known.sealed = None;
            known.bad
        });
        self.changes.present(id);
        if bad {
            // Said before, but replicas of a chunk that is being written can't be replaced: now this one can.
            self.changes.bad(id, &[]);
        }
        Ok(missing)
    }

    /// Trims ranges of bytes of a replica, also on a full disk. Returns the bytes that weren't trimmed before.
    pub fn trim(&self, id: ChunkId, ranges: &[Range<u64>]) -> Result<u64, ChunkError> {
        let open = self.chunk(id)?;
        self.noting(id, self.with_ballast(|| open.file.trim(ranges)))
    }

    /// Removes a replica, durably, also on a full disk. Whether there was one.
    pub fn delete(&self, id: ChunkId) -> Result<bool, ChunkError> {
        let _one_opener = self.stripe(id).lock();
        if !self.index.read().contains_key(&id) {
            return Ok(false);
        }
        self.cache.forget(id);
        let path = path_of(id);
        let removed = self.with_ballast(|| match self.disk.unlink(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        });
        self.noting(id, removed)?;
        self.index.write().remove(&id);
        self.changes.removed(id);
        self.noting(id, self.disk.sync_dir(crate::disk::parent(&path)).map_err(ChunkError::from))?;
        Ok(true)
    }

    /// Replicas in the order of their ids, from the one after `after` on, and whether there are more.
    pub fn list(&self, after: Option<ChunkId>, limit: usize) -> (Vec<Replica>, bool) {
        use std::ops::Bound;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut ids: Vec<ChunkId> =
            self.index.read().range((start, Bound::Unbounded)).take(limit + 1).map(|(id, _)| *id).collect();
        let more = ids.len() > limit;
        ids.truncate(limit);
        (ids.into_iter().filter_map(|id| self.replica(id)).collect(), more)
    }

    /// The ids of replicas from `from` on, at most so many.
    pub fn ids(&self, from: ChunkId, limit: usize) -> Vec<ChunkId> {
        self.index.read().range(from..).take(limit).map(|(id, _)| *id).collect()
    }

    /// The highest id.
    pub fn last_id(&self) -> Option<ChunkId> {
        self.index.read().last_key_value().map(|(id, _)| *id)
    }

    /// One line of the inventory. `None` if there is no such replica. One whose file can't be used is listed as
    /// bad.
    pub fn replica(&self, id: ChunkId) -> Option<Replica> {
        let known = *self.index.read().get(&id)?;
        if let Some((generation, length)) = known.sealed {
            return Some(Replica { chunk: id, generation, length, sealed: true, bad: known.bad });
        }
        // Not through the cache: an inventory would sweep it clean.
        let info = match self.cache.find(id) {
            Some(open) => open.file.info(),
            None => ChunkFile::open(&*self.disk, &path_of(id), self.identity.cluster, id, false)
                .and_then(|file| file.info()),
        };
        match info {
            Ok(info) => {
                if let (Some(length), Some(known)) = (info.sealed, self.index.write().get_mut(&id)) {
                    known.sealed = Some((info.generation, length));
                }
                Some(Replica {
                    chunk: id,
                    generation: info.generation,
                    length: info.sealed.unwrap_or(info.written_bytes),
                    sealed: info.sealed.is_some(),
                    bad: known.bad || info.suspect,
                })
            }
            Err(ChunkError::NotFound) => None,
            Err(error) => {
                let _ = self.noting::<()>(id, Err(error));
                Some(Replica { chunk: id, generation: Generation(0), length: 0, sealed: false, bad: true })
            }
        }
    }

    /// Blocks of a replica are bad; none named: all of it is. Counted and reported once per finding.
    pub fn note_bad(&self, id: ChunkId, blocks: &[u64]) {
        self.bad_blocks.fetch_add(blocks.len().max(1) as u64, Ordering::Relaxed);
        let first_time = match self.index.write().get_mut(&id) {
            Some(known) => !std::mem::replace(&mut known.bad, true),
            None => return,
        };
        if first_time {
            tracing::warn!(
                chunk = %id, blocks = some_blocks(blocks),
                "a replica has corrupt blocks; it is repaired from the other replicas"
            );
        }
        self.changes.bad(id, blocks);
    }

    /// Passes a result on, and takes note of what it says about the disk.
    pub fn noting<T>(&self, id: ChunkId, result: Result<T, ChunkError>) -> Result<T, ChunkError> {
        match &result {
            Err(ChunkError::Corrupt(blocks)) => self.note_bad(id, blocks),
            Err(ChunkError::Damaged(reason)) => {
                tracing::debug!(chunk = %id, reason, "a replica can't be used");
                self.note_bad(id, &[]);
            }
            Err(ChunkError::NoSpace) => *self.full.lock() = Some(Instant::now()),
            Err(ChunkError::Io(error)) => {
                self.disk_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(chunk = %id, %error, "an operation on the disk failed: check the disk");
            }
            _ => {}
        }
        result
    }

    /// Syncs every open replica that still takes writes: before the process ends.
    pub fn sync_all(&self) {
        for open in self.cache.all() {
            if !open.file.is_sealed() && !open.file.is_suspect() {
                let _ = self.noting(open.file.chunk(), open.file.sync());
            }
        }
    }

    /// Runs something that frees space; on a full disk it gets the ballast and runs again.
    fn with_ballast<T>(&self, run: impl Fn() -> Result<T, ChunkError>) -> Result<T, ChunkError> {
        match run() {
            Err(ChunkError::NoSpace) => {
                if !self.ballast.release(&*self.disk)? {
                    return Err(ChunkError::NoSpace);
                }
                tracing::warn!(
                    "the disk is full: the ballast file was released so that data can still be deleted; \
                     enlarge the disk"
                );
                run()
            }
            other => other,
        }
    }

    fn stripe(&self, id: ChunkId) -> &Mutex<()> {
        &self.stripes[id.0 as usize % STRIPES]
    }
}

fn path_of(id: ChunkId) -> String {
    format!("{CHUNKS}/{:02x}/{id}{SUFFIX}", id.0 as u8)
}

fn temporary_of(id: ChunkId) -> String {
    format!("{TEMPORARY}/{id}{SUFFIX}")
}

/// Which replicas are here: from their names alone.
fn read_index(disk: &dyn Disk) -> io::Result<BTreeMap<ChunkId, Known>> {
    let mut index = BTreeMap::new();
    for folder in disk.list(CHUNKS)? {
        let shard = format!("{CHUNKS}/{}", folder.name);
        if !folder.is_dir {
            tracing::warn!(
                name = shard,
                "the chunk directory has a file that is not Atoll's; it is left unchanged"
            );
            continue;
        }
        for entry in disk.list(&shard)? {
            let id = entry.name.strip_suffix(SUFFIX).and_then(|digits| u64::from_str_radix(digits, 16).ok());
            match id.map(ChunkId).filter(|id| path_of(*id) == format!("{shard}/{}", entry.name)) {
                Some(id) => {
                    index.insert(id, Known::default());
                }
                None => {
                    let name = format!("{shard}/{}", entry.name);
                    tracing::warn!(
                        name,
                        "the chunk directory has a file that is not Atoll's; it is left unchanged"
                    );
                }
            }
        }
    }
    Ok(index)
}
