//! The data path: written bytes into the cluster, and bytes out of it.
//!
//! What is written is buffered in the arena against reserved quota, flushed in order (data, sync, commit) when
//! there is much of it, when it is old, or when somebody asks. Reads see what is dirty over what is committed.
//! There is no decision about names or attributes here, and no knowledge of the kernel.

mod behind;
pub mod file;
mod reading;
mod table;
mod writing;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use atoll_core::attributes::{self, Attributes, KillPriv, TimeChange};
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_core::limits::{BLOCK_BYTES, FILE_BYTES_MAX};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::behind::Closed;
pub use self::file::ErrorMark;
pub use self::table::Growth;
use self::table::Table;
use crate::arena::{Arena, DataBlock};
use crate::metadata::{ClientError, Metadata};
use crate::read::chunk_reader::{ChunkReader, ReadCounters};
pub use crate::read::map::Extents;
use crate::read::readahead::BUDGET_UNIT_BYTES;
use crate::storage_pool::Storage;
use crate::write::chunk_writer::{self, ChunkWriters, WriteCounters};
use crate::write::reservation::Reservation;

/// How often the background task looks while there is something to look at.
const TICK: Duration = Duration::from_millis(500);
/// Ticks without anything to do after which it sleeps until something is written or read.
const IDLE_TICKS_MAX: u32 = 10;
/// Ticks with little in the arena after which the memory of its freed blocks is given back.
const QUIET_TICKS_MAX: u32 = 20;
/// That little (bytes).
const QUIET_BYTES_MAX: u64 = 4 << 20;

/// Limits of the data path.
#[derive(Clone, Debug)]
pub struct DataConfig {
    /// What was written is on its way after this long.
    pub write_behind_age: Duration,
    /// A file that wasn't written for this long is flushed.
    pub write_idle_age: Duration,
    /// From this many bytes on a file is flushed while it is being written.
    pub stream_flush_bytes: u64,
    /// Bytes of one file in the buffer; a writer of more waits.
    pub dirty_file_bytes_max: u64,
    /// Bytes that are read ahead, of all files together.
    pub readahead_bytes_max: u64,
    /// Memory of all files' extent maps (bytes, estimated).
    pub map_bytes_max: usize,
    /// When a read gives up on storage servers that are away; never, if `None`.
    pub timeout: Option<Duration>,
}

impl DataConfig {
    /// The usual limits for an arena of `arena_bytes`.
    #[must_use]
    pub fn for_arena(arena_bytes: u64) -> Self {
        DataConfig {
            write_behind_age: Duration::from_secs(5),
            write_idle_age: Duration::from_secs(1),
            stream_flush_bytes: (4 << 20).min(arena_bytes / 8),
            dirty_file_bytes_max: arena_bytes / 2,
            readahead_bytes_max: 32 << 20,
            map_bytes_max: 16 << 20,
            timeout: None,
        }
    }
}

/// Why a file is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Somebody waits for it.
    Asked,
    /// There is much: whole segments, as they fill.
    Much,
    /// It has been there for long enough.
    Old,
}

/// What the tasks of the data path share.
pub(crate) struct Shared<M> {
    pub metadata: Arc<M>,
    pub arena: Arc<Arena>,
    pub config: DataConfig,
    pub reservation: Reservation<M>,
    pub writers: Arc<ChunkWriters<M>>,
    pub reader: ChunkReader<M>,
    /// Permits of [`BUDGET_UNIT_BYTES`] for what is read ahead.
    pub readahead_budget: Arc<Semaphore>,
    pub table: Table,
    pub closed: Closed,
    /// Something was written or read ahead: the background task has to look again.
    pub work: Notify,
    /// Goes on with what was begun and nobody waits for any more.
    pub runtime: Handle,
    /// Counts uses of files, to know which was used least recently.
    pub uses: AtomicU64,
}

/// What the data path has done, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataCounters {
    /// Bytes that wait for their commit.
    pub dirty_bytes: u64,
    /// Bytes of quota held for what will be written.
    pub reserved_bytes: u64,
    /// Bytes written to chunks, each replica counted once.
    pub chunk_bytes_written: u64,
    /// Bytes read from chunks.
    pub chunk_bytes_read: u64,
    /// Chunks opened.
    pub chunks_opened: u64,
    /// Chunks given up because of a replica.
    pub chunks_failed: u64,
    /// Replicas that answered with bytes that don't have their checksum.
    pub bad_replicas: u64,
    /// Reads that another replica had to serve.
    pub failovers: u64,
}

/// See the module.
pub struct DataPath<M: Metadata> {
    shared: Arc<Shared<M>>,
    stop: CancellationToken,
}

impl<M: Metadata> Drop for DataPath<M> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl<M: Metadata> DataPath<M> {
    /// Begins. Needs a tokio runtime.
    #[must_use]
    pub fn new(metadata: Arc<M>, storage: Arc<dyn Storage>, arena: Arc<Arena>, config: DataConfig) -> Self {
        let (writers, seals) = ChunkWriters::new(Arc::clone(&metadata), Arc::clone(&storage));
        tokio::spawn(chunk_writer::seal_all(Arc::clone(&metadata), seals));
        let permits = (config.readahead_bytes_max / BUDGET_UNIT_BYTES) as usize;
        let shared = Arc::new(Shared {
            reservation: Reservation::new(Arc::clone(&metadata)),
            reader: ChunkReader::new(Arc::clone(&metadata), storage, config.timeout),
            readahead_budget: Arc::new(Semaphore::new(permits)),
            table: Table::default(),
            closed: Closed::default(),
            work: Notify::new(),
            uses: AtomicU64::new(0),
            runtime: Handle::current(),
            metadata,
            arena,
            config,
            writers,
        });
        let stop = CancellationToken::new();
        tokio::spawn(background(Arc::clone(&shared), stop.clone()));
        DataPath { shared, stop }
    }

    /// Takes over what a dead predecessor had accepted and not committed: it is dirty here from now on. `reserved`: bytes of
    /// quota that its session had reserved.
    ///
    /// # Errors
    /// If the volume has no room for it (it had: another session may have taken it).
    pub async fn adopt(&self, blocks: Vec<DataBlock>, reserved: u64) -> Result<(), ClientError> {
        self.shared.reservation.inherit(reserved);
        self.shared.adopt(blocks).await
    }

    /// What a dead predecessor had accepted is lost with its session: its files have an error, which handles that were open
    /// before this are told.
    pub fn lose(&self, blocks: &[DataBlock]) {
        for block in blocks {
            let file = self.shared.file(block.ino());
            let mut inner = file.inner.lock();
            if inner.errors.is_empty() {
                inner.errors.note(ClientError::SessionLost);
            }
            drop(inner);
            self.shared.metadata.lost(block.ino());
            block.retire();
        }
    }

    /// Accepts `data` at `offset`; it is visible to reads at once and durable after a flush. Returns how many
    /// bytes were accepted: fewer only if the volume is full after them. `attributes`: of the file, as the
    /// caller knows them. Waits while the buffer is full.
    ///
    /// # Errors
    /// `NoSpace` if the volume is full, `FileTooLarge`.
    pub async fn write(
        &self,
        ino: InodeId,
        offset: u64,
        data: Bytes,
        attributes: &Attributes,
        kill_priv: KillPriv,
    ) -> Result<u32, ClientError> {
        self.shared.write(ino, offset, &data, attributes, kill_priv).await
    }

    /// Appends `data` where the file ends when this takes effect, whoever else appends; durable when it returns.
    /// At most [`COMMIT_INLINE_BYTES_MAX`](atoll_core::limits::COMMIT_INLINE_BYTES_MAX) bytes. Returns where it
    /// went, and the attributes afterwards.
    ///
    /// # Errors
    /// What the service refuses it for.
    pub async fn append(
        &self,
        ino: InodeId,
        data: Bytes,
        kill_priv: KillPriv,
    ) -> Result<(u64, Attributes), ClientError> {
        self.shared.append(ino, data, kill_priv).await
    }

    /// Reads up to `size` bytes at `offset`, fewer at the end of the file. `known` are the file's attributes as the
    /// caller knows them; what is dirty here, or committed and newer, counts.
    ///
    /// # Errors
    /// `Io` if bytes are lost in all copies. Servers that are away are waited for.
    pub async fn read(
        &self,
        ino: InodeId,
        offset: u64,
        size: u32,
        known: &Attributes,
    ) -> Result<Vec<Bytes>, ClientError> {
        self.shared.read(ino, offset, size, known).await
    }

    /// The file's size with what is dirty here; `known` are its attributes as the caller knows them.
    #[must_use]
    pub fn size(&self, ino: InodeId, known: &Attributes) -> u64 {
        let Some(file) = self.shared.table.find(ino) else { return known.size };
        let mut inner = file.inner.lock();
        inner.learn(known);
        inner.size()
    }

    /// True if a range has bytes behind the end that is known, and before what is written here, that nobody wrote here:
    /// others may have appended them.
    pub fn has_gap(&self, ino: InodeId, range: Range<u64>, known: &Attributes) -> bool {
        let Some(file) = self.shared.table.find(ino) else { return false };
        let mut inner = file.inner.lock();
        inner.learn(known);
        let committed = inner.attributes.as_ref().map_or(0, |attributes| attributes.size);
        inner.dirty.has_gap(range.start.max(committed), range.end)
    }

    /// Makes durable what was written to the file up to now. Errors of data that was lost before are not among
    /// what this returns: ask [`take_error`](Self::take_error) too.
    ///
    /// # Errors
    /// Of data that this flush lost, or that it can't flush now.
    pub async fn flush(&self, ino: InodeId) -> Result<(), ClientError> {
        self.shared.flush(ino).await
    }

    /// Completes when nothing that was written to the file up to now can be committed any more: it is, or it is lost.
    pub fn committed(&self, ino: InodeId) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        async move {
            while shared.flush(ino).await == Err(ClientError::TimedOut) {
                tokio::time::sleep(TICK).await;
            }
        }
    }

    /// Makes durable what was written to all files up to now.
    ///
    /// # Errors
    /// The first that one of them met.
    pub async fn flush_all(&self) -> Result<(), ClientError> {
        self.shared.flush_all().await
    }

    /// Where a handle that is opened now stands among the file's errors.
    #[must_use]
    pub fn error_mark(&self, ino: InodeId) -> ErrorMark {
        self.shared.table.find(ino).map_or_else(ErrorMark::default, |file| file.inner.lock().errors.mark())
    }

    /// An error that the handle with this mark hasn't been told of; each is told once to each handle.
    ///
    /// # Errors
    /// That one.
    pub fn take_error(&self, ino: InodeId, mark: &mut ErrorMark) -> Result<(), ClientError> {
        self.shared.table.find(ino).map_or(Ok(()), |file| file.inner.lock().errors.since(mark))
    }

    /// Brings attributes up to date with what was committed and written here.
    pub fn overlay(&self, ino: InodeId, shown: &mut Attributes) {
        let Some(file) = self.shared.table.find(ino) else { return };
        let mut inner = file.inner.lock();
        inner.learn(shown);
        if let Some(newer) = inner.attributes.as_ref().filter(|known| known.change > shown.change) {
            *shown = newer.clone();
        }
        if inner.dirty.is_clean() || inner.dirty.bytes() == 0 {
            return;
        }
        let dirty = &inner.dirty;
        shown.size = shown.size.max(dirty.end());
        // An estimate until the commit: how much of it is new is known there only.
        shown.allocated = shown.allocated.max(dirty.bytes().next_multiple_of(4096));
        // Whoever sets a time flushes first, or has what is dirty leave it (`change_before_commit`). The commit will set the same.
        shown.ctime = attributes::ctime_of_write(shown.mtime, shown.ctime, dirty.mtime());
        shown.mtime = dirty.mtime();
        shown.mode = dirty.kill_priv().applied_to(shown.mode);
    }

    /// What the file loses when what is written is committed; the kernel must not find it any more.
    #[must_use]
    pub fn kill_priv(&self, ino: InodeId) -> KillPriv {
        self.shared.table.find(ino).map_or(KillPriv::NONE, |file| file.inner.lock().dirty.kill_priv())
    }

    /// True if something of the file waits for its commit.
    #[must_use]
    pub fn has_dirty(&self, ino: InodeId) -> bool {
        self.shared.table.find(ino).is_some_and(|file| !file.inner.lock().dirty.is_clean())
    }

    /// The file is closed. What is dirty of it is committed soon, together with that of other files. False if it is better
    /// flushed now: it is small enough for the journal.
    pub fn close_behind(&self, ino: InodeId) -> bool {
        self.shared.close_behind(ino)
    }

    /// The file has no name any more, and nobody has it open: nobody wants what is dirty of it.
    pub fn removed(&self, ino: InodeId) {
        self.shared.removed(ino);
    }

    /// Carries out a change of attributes that what is dirty must not undo when it is committed later. `mtime`: what it sets
    /// that to. `change` is told what the file loses by what is dirty, and takes it away first. `None`: that isn't possible, and
    /// nothing was done: flush first.
    pub async fn change_before_commit<F>(
        &self,
        ino: InodeId,
        mtime: Option<TimeChange>,
        change: impl FnOnce(KillPriv) -> F,
    ) -> Option<Result<Box<Attributes>, ClientError>>
    where
        F: Future<Output = Result<Box<Attributes>, ClientError>>,
    {
        self.shared.change_before_commit(ino, mtime, change).await
    }

    /// To be awaited before the file's size is set (or anything else is done to its content or attributes that
    /// a later commit of older writes would disturb): flushes it.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub async fn before_truncate(&self, ino: InodeId, size: u64) -> Result<(), ClientError> {
        tracing::trace!(%ino, size, "flushing before a truncation");
        self.shared.flush(ino).await
    }

    /// The file's size was set: `attributes` is the outcome.
    pub fn after_truncate(&self, ino: InodeId, attributes: &Attributes) {
        let Some(file) = self.shared.table.find(ino) else { return };
        let mut inner = file.inner.lock();
        if inner.dirty.truncate(attributes.size) {
            tracing::debug!(%ino, "buffered writes beyond a truncation are dropped");
        }
        inner.map.truncate(attributes);
        inner.readahead.clear();
        inner.learn(attributes);
    }

    /// Attributes were changed without touching the content (`chmod` and the like): what is known of the
    /// content stays good. `attributes` is the outcome.
    pub fn after_change(&self, ino: InodeId, attributes: &Attributes) {
        let Some(file) = self.shared.table.find(ino) else { return };
        let mut inner = file.inner.lock();
        inner.map.commit(&[], attributes);
        inner.learn(attributes);
    }

    /// The content was changed other than by writing (`fallocate`, `copy_file_range`); `attributes` is the outcome.
    pub fn learn(&self, ino: InodeId, attributes: &Attributes) {
        if let Some(file) = self.shared.table.find(ino) {
            file.inner.lock().learn(attributes);
        }
    }

    /// The newest attributes that are known of the file from commits and answers.
    #[must_use]
    pub fn attributes(&self, ino: InodeId) -> Option<Attributes> {
        self.shared.table.find(ino).and_then(|file| file.inner.lock().attributes.clone())
    }

    /// Takes in what came with an answer to open or create.
    pub fn install_map(&self, ino: InodeId, extents: &Extents) {
        self.shared.reader.learn(&extents.chunks);
        let file = self.shared.file(ino);
        file.inner.lock().install(extents, false);
        self.shared.bound_maps();
    }

    /// The value of the change counter that what is known of the file's committed content is right for; `None` if nothing is
    /// known, or less than of the attributes.
    #[must_use]
    pub fn content_as_of(&self, ino: InodeId) -> Option<u64> {
        let file = self.shared.table.find(ino)?;
        let inner = file.inner.lock();
        let known = inner.attributes.as_ref()?.change;
        inner.map.is_at(known).then_some(known)
    }

    /// Forgets what is known of the file's committed content: somebody else has changed it.
    pub fn invalidate(&self, ino: InodeId) {
        let Some(file) = self.shared.table.find(ino) else { return };
        let mut inner = file.inner.lock();
        inner.map.clear();
        inner.attributes = None;
        inner.readahead.clear();
    }

    /// Nobody has the file open and the kernel has forgotten it. What is dirty is still flushed.
    pub fn forget(&self, ino: InodeId) {
        self.shared.table.forget(ino);
    }

    /// Changes of these files that counted as committed are lost: they have an error, and what is known of them here doesn't
    /// hold.
    pub fn lose_changes(&self, inodes: impl IntoIterator<Item = InodeId>) {
        for file in inodes.into_iter().filter_map(|ino| self.shared.table.find(ino)) {
            let mut inner = file.inner.lock();
            inner.map.clear();
            inner.attributes = None;
            inner.readahead.clear();
            inner.errors.note(ClientError::SessionLost);
            drop(inner);
            self.shared.metadata.lost(file.ino);
        }
    }

    /// The session is lost: what wasn't committed is gone, and every file it was written to has an error.
    pub fn on_session_lost(&self) {
        self.shared.on_session_lost();
    }

    /// Gives back quota that is reserved and not used: another session needs it.
    pub async fn return_reservation(&self) {
        if let Err(error) = self.shared.reservation.return_unused().await {
            tracing::debug!(%error, "unused quota reservations can't be released now");
        }
    }

    /// Something that reserves nothing found no room: commits what is buffered, gives back what is reserved here, and
    /// asks for `bytes`, for which other sessions have to give back what they don't use. They are free for whoever
    /// comes next then.
    ///
    /// # Errors
    /// When the service can't be asked. That there is no room is none: less may do.
    pub async fn make_room(&self, bytes: u64) -> Result<(), ClientError> {
        if let Err(error) = self.flush_all().await {
            tracing::debug!(%error, "flushing to free quota failed");
        }
        self.return_reservation().await;
        let reservation = &self.shared.reservation;
        let bytes = bytes.min(FILE_BYTES_MAX).next_multiple_of(BLOCK_BYTES);
        match reservation.take(bytes).await {
            Ok(()) => reservation.give_back(bytes),
            Err(ClientError::Fs(FsError::NoSpace)) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.return_reservation().await;
        Ok(())
    }

    /// False if nothing is buffered of any file.
    #[must_use]
    pub fn has_dirty_files(&self) -> bool {
        self.shared.table.has_dirty()
    }

    /// What commits of all that is buffered will take.
    #[must_use]
    pub fn uncommitted_growth(&self) -> Growth {
        self.shared.table.uncommitted_growth()
    }

    /// What was done since the start.
    #[must_use]
    pub fn counters(&self) -> DataCounters {
        use std::sync::atomic::Ordering::Relaxed;
        let write: &WriteCounters = self.shared.writers.counters();
        let read: &ReadCounters = self.shared.reader.counters();
        DataCounters {
            dirty_bytes: self.shared.table.dirty_bytes(),
            reserved_bytes: self.shared.reservation.available(),
            chunk_bytes_written: write.bytes.load(Relaxed),
            chunk_bytes_read: read.bytes.load(Relaxed),
            chunks_opened: write.chunks_opened.load(Relaxed),
            chunks_failed: write.chunks_failed.load(Relaxed),
            bad_replicas: read.bad_replicas.load(Relaxed),
            failovers: read.failovers.load(Relaxed),
        }
    }

    /// The end: flushes everything, seals the chunks and gives reservations back.
    ///
    /// # Errors
    /// Of the flush; then what is dirty is still in the arena.
    pub async fn close(&self) -> Result<(), ClientError> {
        self.shared.flush_all().await?;
        self.shared.writers.retire_all();
        self.shared.reservation.return_unused().await
    }
}

/// Write-behind, and letting go of what isn't used.
async fn background<M: Metadata>(shared: Arc<Shared<M>>, stop: CancellationToken) {
    let (mut idle_ticks, mut quiet_ticks) = (0, 0);
    loop {
        let waits = async {
            if idle_ticks >= IDLE_TICKS_MAX {
                shared.work.notified().await;
            } else {
                tokio::time::sleep(TICK).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = waits => {}
        }
        let busy = shared.tick(Instant::now()).await;
        idle_ticks = if busy { 0 } else { (idle_ticks + 1).min(IDLE_TICKS_MAX) };
        quiet_ticks = if shared.arena.usage().bytes_used <= QUIET_BYTES_MAX { quiet_ticks + 1 } else { 0 };
        if idle_ticks == IDLE_TICKS_MAX || quiet_ticks == QUIET_TICKS_MAX {
            quiet_ticks = 0;
            shared.arena.trim();
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
