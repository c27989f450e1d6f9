//! The chunks that this process writes: one for small extents, one for each big stream.
//!
//! Bytes go to all replicas at once. A replica that refuses or doesn't answer costs the chunk, not the write:
//! the chunk takes no more, what was not committed is written again into another one, and the old one is
//! sealed once the last commit that names it is through.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use atoll_core::commands::{CreatedChunk, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{ChunkId, Generation, InodeId, ServerId, SessionId};
use atoll_core::limits::{BLOCK_BYTES, CHUNK_BYTES, COPIES_MAX};
use atoll_core::records::{ChunkKind, ChunkRecord};
use atoll_proto::checksum;
use atoll_proto::metadata::ChunkInfo;
use atoll_proto::storage::{ChunkLayout, StorageError, WriteChunk, Writer};
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::metadata::{ClientError, Metadata};
use crate::storage_pool::{Storage, StorageFailure};
use crate::write::buffer::Part;

/// Stream chunks that are open at the same time. More streams share them.
pub const STREAM_CHUNKS_MAX: usize = 4;
/// A stream chunk whose stream was silent for this long goes to the next stream.
pub const STREAM_IDLE_AFTER: Duration = Duration::from_secs(2);
/// Bytes that are left in a stream's chunk when the next one is opened, so that the stream doesn't wait for it.
pub const OPEN_AHEAD_BYTES: u64 = 24 << 20;
/// Once another replica has answered, one may take this long before the chunk is given up.
pub const STRAGGLER_AFTER: Duration = Duration::from_millis(500);
/// If no replica answers at all, the servers (or this machine) are slow, and other servers would hardly be
/// faster: only after this long.
pub const UNANSWERED_AFTER: Duration = Duration::from_secs(5);
/// The patience above doubles with each attempt, up to this.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// A server that has answered nothing for this long is taken out of a new chunk's replicas, even if only
/// one is left then.
pub const SUSPECTED_AFTER: Duration = Duration::from_secs(3);
/// One that has just let a write wait is taken out at once if so many are left: a stall of a moment costs a
/// copy that is made up for in the background, but never leaves bytes on a single disk.
pub const COPIES_LEFT_MIN: usize = 2;
/// How long writes wait while the storage servers' disks are full, before they fail: something may just have been
/// deleted.
pub const FULL_WAIT_MAX: Duration = Duration::from_secs(10);
/// Pauses while there are too few storage servers for a new chunk.
const OPEN_BACKOFF_MIN: Duration = Duration::from_millis(50);
const OPEN_BACKOFF_MAX: Duration = Duration::from_millis(400);
/// Chunks that wait to be sealed. One that finds no place stays open until the session ends.
pub const SEALS_WAITING_MAX: usize = 1024;
/// How often a seal is tried.
const SEAL_ATTEMPTS_MAX: u32 = 10;

static ZEROES: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// What a chunk is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Small extents.
    Small,
    /// The stream of this file.
    Stream(InodeId),
}

/// Why a chunk takes no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("storage server {server}: {why}")]
pub struct ChunkFailure {
    /// Which replica's server.
    pub server: ServerId,
    /// What it did.
    pub why: String,
}

/// A chunk that this process writes.
#[derive(Debug)]
pub struct OpenChunk {
    /// Which.
    pub chunk: ChunkId,
    /// Its generation when it was opened; it never changes while it is written.
    pub generation: Generation,
    /// Servers of its replicas.
    pub replicas: Vec<ServerId>,
    writer: Writer,
    kind: ChunkKind,
    capacity: u64,
    /// One bit for each replica that is known to exist.
    made: AtomicU32,
    state: Mutex<State>,
    seals: mpsc::Sender<ChunkId>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Places given out whose commit isn't through.
    users: u32,
    retired: bool,
    sealing: bool,
}

impl OpenChunk {
    /// Room for an extent, if there is: the offset, a multiple of the block size.
    fn allocate(self: &Arc<Self>, bytes: u64) -> Option<Placement> {
        let mut state = self.state.lock();
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        if state.retired || state.next + bytes > self.capacity {
            return None;
        }
        let offset = state.next;
        state.next += bytes;
        state.users += 1;
        Some(Placement { chunk: Arc::clone(self), offset })
    }

    fn left(&self) -> u64 {
        let state = self.state.lock();
        if state.retired { 0 } else { self.capacity - state.next }
    }

    /// No more extents. It is sealed when the last of those given out is done with.
    pub fn retire(&self) {
        let mut state = self.state.lock();
        state.retired = true;
        self.seal_if_done(&mut state);
    }

    fn seal_if_done(&self, state: &mut State) {
        if state.retired && state.users == 0 && !state.sealing {
            state.sealing = true;
            if self.seals.try_send(self.chunk).is_err() {
                tracing::warn!(
                    chunk = %self.chunk,
                    "a chunk could not be released; it stays open until the session ends"
                );
            }
        }
    }

    /// For readers.
    #[must_use]
    pub fn info(&self) -> ChunkInfo {
        ChunkInfo { chunk: self.chunk, generation: self.generation, replicas: self.replicas.clone() }
    }
}

/// Room in a chunk. While it lives the chunk isn't sealed by this process.
#[derive(Debug)]
pub struct Placement {
    chunk: Arc<OpenChunk>,
    /// First byte in the chunk.
    pub offset: u64,
}

impl Placement {
    /// The chunk.
    #[must_use]
    pub fn chunk(&self) -> &Arc<OpenChunk> {
        &self.chunk
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        let mut state = self.chunk.state.lock();
        state.users -= 1;
        self.chunk.seal_if_done(&mut state);
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct WriteCounters {
    /// Chunks opened.
    pub chunks_opened: AtomicU64,
    /// Chunks given up before they were full.
    pub chunks_failed: AtomicU64,
    /// Bytes written to chunks, each replica counted once.
    pub bytes: AtomicU64,
}

/// See the module.
pub struct ChunkWriters<M> {
    metadata: Arc<M>,
    storage: Arc<dyn Storage>,
    open: Mutex<Open>,
    /// One chunk of a kind is opened at a time; who waits finds it open.
    opening: [tokio::sync::Mutex<()>; 2],
    full: Mutex<Option<Full>>,
    seals: mpsc::Sender<ChunkId>,
    counters: WriteCounters,
}

/// No chunk can be opened, because disks are full.
#[derive(Clone, Copy)]
struct Full {
    since: Instant,
    /// When it was last found so.
    seen: Instant,
}

#[derive(Default)]
struct Open {
    small: Option<Arc<OpenChunk>>,
    streams: Vec<Stream>,
    /// Opened ahead, by kind.
    spare: [Option<Arc<OpenChunk>>; 2],
    opening_ahead: [bool; 2],
}

struct Stream {
    owner: InodeId,
    chunk: Arc<OpenChunk>,
    last_use: Instant,
}

fn index(kind: ChunkKind) -> usize {
    match kind {
        ChunkKind::Small => 0,
        ChunkKind::Stream => 1,
    }
}

impl<M: Metadata> ChunkWriters<M> {
    /// Chunks that are to be sealed go to the receiver that comes with it: run [`seal_all`] on it.
    #[must_use]
    pub fn new(metadata: Arc<M>, storage: Arc<dyn Storage>) -> (Arc<Self>, mpsc::Receiver<ChunkId>) {
        let (seals, receiver) = mpsc::channel(SEALS_WAITING_MAX);
        let writers = ChunkWriters {
            metadata,
            storage,
            open: Mutex::default(),
            opening: Default::default(),
            full: Mutex::new(None),
            seals,
            counters: WriteCounters::default(),
        };
        (Arc::new(writers), receiver)
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> &WriteCounters {
        &self.counters
    }

    /// Finds room for an extent of `bytes` (at most a segment), opening a chunk if need be.
    ///
    /// # Errors
    /// `NoSpace` if the servers' disks stay full for [`FULL_WAIT_MAX`]; the session's. Too few servers are waited for.
    pub async fn place(self: &Arc<Self>, purpose: Purpose, bytes: u64) -> Result<Placement, ClientError> {
        loop {
            if let Some(placement) = self.place_now(purpose, bytes) {
                return Ok(placement);
            }
            let kind = kind_of(purpose);
            let _opening = self.opening[index(kind)].lock().await;
            if let Some(placement) = self.place_now(purpose, bytes) {
                return Ok(placement);
            }
            let chunk = self.open_chunk(kind).await?;
            self.put(purpose, chunk);
        }
    }

    fn place_now(self: &Arc<Self>, purpose: Purpose, bytes: u64) -> Option<Placement> {
        let mut open = self.open.lock();
        let session = self.metadata.session();
        let found = match purpose {
            Purpose::Small => open.small.clone(),
            Purpose::Stream(ino) => open.stream_of(ino),
        };
        if let Some(chunk) = found.filter(|chunk| chunk.writer.session == session)
            && let Some(placement) = chunk.allocate(bytes)
        {
            if chunk.left() < OPEN_AHEAD_BYTES {
                self.open_ahead(&mut open, chunk.kind);
            }
            return Some(placement);
        }
        // Full, failed, or of a lost session: the one that was opened ahead takes its place.
        let kind = kind_of(purpose);
        let spare = open.spare[index(kind)].take().filter(|chunk| chunk.writer.session == session)?;
        drop(open);
        self.put(purpose, Arc::clone(&spare));
        spare.allocate(bytes)
    }

    fn put(&self, purpose: Purpose, chunk: Arc<OpenChunk>) {
        let mut open = self.open.lock();
        let replaced = match purpose {
            Purpose::Small => open.small.replace(chunk),
            Purpose::Stream(ino) => {
                let last_use = Instant::now();
                match open.streams.iter_mut().find(|stream| stream.owner == ino) {
                    Some(stream) => {
                        stream.last_use = last_use;
                        Some(std::mem::replace(&mut stream.chunk, chunk))
                    }
                    None => {
                        open.streams.push(Stream { owner: ino, chunk, last_use });
                        None
                    }
                }
            }
        };
        if let Some(replaced) = replaced {
            replaced.retire();
        }
    }

    /// Opens the next chunk while the current one still has room.
    fn open_ahead(self: &Arc<Self>, open: &mut Open, kind: ChunkKind) {
        let at = index(kind);
        if open.spare[at].is_some() || open.opening_ahead[at] || kind == ChunkKind::Small {
            return;
        }
        open.opening_ahead[at] = true;
        let writers = Arc::clone(self);
        tokio::spawn(async move {
            let opened = writers.open_chunk(kind).await;
            let mut open = writers.open.lock();
            open.opening_ahead[at] = false;
            match opened {
                Ok(chunk) => open.spare[at] = Some(chunk),
                Err(error) => tracing::debug!(%error, "no chunk could be opened in advance"),
            }
        });
    }

    async fn open_chunk(&self, kind: ChunkKind) -> Result<Arc<OpenChunk>, ClientError> {
        let mut pause = OPEN_BACKOFF_MIN;
        loop {
            let session = self.metadata.session();
            let incarnation = self.metadata.incarnation();
            // The leader avoids servers that it doesn't hear of, and these, if there are enough others.
            let create = ops::CreateChunk { kind, incarnation, replicas: self.storage.failing() };
            match self.metadata.mutate(create).await {
                Ok(CreatedChunk { chunk, record }) => {
                    *self.full.lock() = None;
                    let (chunk, record) = self.without_suspects(chunk, *record).await?;
                    self.counters.chunks_opened.fetch_add(1, Ordering::Relaxed);
                    return Ok(Arc::new(self.opened(chunk, &record, Writer { session, incarnation })));
                }
                Err(ClientError::Fs(FsError::NoServers | FsError::TryAgain)) => {
                    if pause == OPEN_BACKOFF_MIN {
                        tracing::warn!(
                            "too few storage servers for a new chunk: writes wait; start or add storage \
                             servers"
                        );
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(OPEN_BACKOFF_MAX);
                }
                Err(ClientError::Fs(FsError::NoSpace)) => {
                    if self.full_for(Instant::now()) >= FULL_WAIT_MAX {
                        return Err(FsError::NoSpace.into());
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(OPEN_BACKOFF_MAX);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// For how long no chunk could be opened because disks are full, as somebody finds once more. All writers wait at the
    /// same time, not one after the other.
    fn full_for(&self, now: Instant) -> Duration {
        let mut full = self.full.lock();
        let since = match *full {
            Some(Full { since, seen }) if now.duration_since(seen) < FULL_WAIT_MAX => since,
            _ => {
                tracing::warn!(
                    "the disks of the storage servers are full: writes wait and then fail with ENOSPC; add \
                     storage servers, or delete files"
                );
                now
            }
        };
        *full = Some(Full { since, seen: now });
        now.duration_since(since)
    }

    fn opened(&self, chunk: ChunkId, record: &ChunkRecord, writer: Writer) -> OpenChunk {
        OpenChunk {
            chunk,
            generation: record.generation,
            replicas: record.replicas.clone(),
            writer,
            kind: record.kind,
            // Servers make no larger replicas, whatever the volume is configured to.
            capacity: record.capacity.min(CHUNK_BYTES),
            made: AtomicU32::new(0),
            state: Mutex::default(),
            seals: self.seals.clone(),
        }
    }

    /// Takes servers out that don't answer this client, if enough others are left.
    async fn without_suspects(
        &self,
        chunk: ChunkId,
        record: ChunkRecord,
    ) -> Result<(ChunkId, ChunkRecord), ClientError> {
        let without = suspects(&record.replicas, |server| self.storage.failing_for(server));
        if without.is_empty() {
            return Ok((chunk, record));
        }
        tracing::warn!(
            %chunk, ?without,
            "writes to a chunk continue without storage servers that don't respond"
        );
        let shrink = ops::ShrinkChunk { chunk, generation: record.generation, without };
        match self.metadata.mutate(shrink).await {
            Ok(CreatedChunk { record, .. }) => Ok((chunk, *record)),
            // Fewer would be too few: they have to be waited for.
            Err(ClientError::Fs(FsError::NoServers)) => Ok((chunk, record)),
            Err(error) => Err(error),
        }
    }

    /// Takes a chunk out of use after a failure.
    pub fn give_up(&self, chunk: &Arc<OpenChunk>, why: &str) {
        let failed = !chunk.state.lock().retired;
        if failed {
            self.counters.chunks_failed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                chunk = %chunk.chunk, why,
                "a chunk can't be written any further; writes continue in a new chunk"
            );
        }
        chunk.retire();
        let mut open = self.open.lock();
        if open.small.as_ref().is_some_and(|small| Arc::ptr_eq(small, chunk)) {
            open.small = None;
        }
        open.streams.retain(|stream| !Arc::ptr_eq(&stream.chunk, chunk));
        // What was opened ahead may lie on the same servers as the chunk that failed.
        if failed && let Some(spare) = open.spare[index(chunk.kind)].take() {
            drop(open);
            spare.retire();
        }
    }

    /// The session is lost: its chunks are sealed by the service.
    pub fn reset(&self) {
        let lost = std::mem::take(&mut *self.open.lock());
        let spares = lost.spare.into_iter().flatten();
        for chunk in lost.small.into_iter().chain(lost.streams.into_iter().map(|s| s.chunk)).chain(spares) {
            let mut state = chunk.state.lock();
            state.retired = true;
            state.sealing = true;
        }
    }

    /// Retires all chunks: for the end of the process, or when nothing was written for long.
    pub fn retire_all(&self) {
        let done = std::mem::take(&mut *self.open.lock());
        let spares = done.spare.into_iter().flatten();
        for chunk in done.small.into_iter().chain(done.streams.into_iter().map(|s| s.chunk)).chain(spares) {
            chunk.retire();
        }
    }

    /// Writes the bytes of extents that lie next to each other in a chunk to all replicas: `parts` are whole
    /// blocks but for the last, see [`padding`]. With `sync`, durably.
    ///
    /// # Errors
    /// Which replica failed: the bytes have to go elsewhere. All refuse bytes that were changed in memory after they
    /// were summed ([`Part::is_intact`]).
    pub async fn write(
        &self,
        chunk: &Arc<OpenChunk>,
        offset: u64,
        parts: Vec<Part>,
        sync: bool,
        attempt: u32,
    ) -> Result<(), ChunkFailure> {
        let length: u64 = parts.iter().map(|part| part.bytes().len() as u64).sum();
        let summed = parts.iter().map(|part| (&part.bytes()[..], part.block_sums()));
        let checksums = checksum::checksums_of_parts(chunk.chunk, offset / BLOCK_BYTES, summed);
        let layout = match chunk.kind {
            ChunkKind::Small => ChunkLayout::Small,
            ChunkKind::Stream => ChunkLayout::Stream,
        };
        let again = WriteChunk {
            chunk: chunk.chunk,
            generation: chunk.generation,
            writer: chunk.writer,
            offset,
            length: length as u32,
            checksums,
            create: None,
            sync,
        };
        let made = chunk.made.load(Ordering::Relaxed);
        let first =
            (made != all_of(&chunk.replicas)).then(|| WriteChunk { create: Some(layout), ..again.clone() });
        let (again, first) = (&again, first.as_ref());
        self.fan_out(chunk, attempt, |at, server| {
            // A replica that was made once and isn't there any more is a lost one, not a new one.
            let request = first.filter(|_| made & (1 << at) == 0).unwrap_or(again);
            let body = parts.iter().map(|part| part.bytes().clone()).collect();
            self.storage.write(server, request, body, TIMEOUT_MAX)
        })
        .await?;
        chunk.made.store(all_of(&chunk.replicas), Ordering::Relaxed);
        self.counters.bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Makes what was written to a chunk durable on all replicas.
    ///
    /// # Errors
    /// Which replica failed: what isn't committed has to be written elsewhere.
    pub async fn sync(&self, chunk: &Arc<OpenChunk>, attempt: u32) -> Result<(), ChunkFailure> {
        self.fan_out(chunk, attempt, |_, server| {
            self.storage.sync(server, chunk.chunk, chunk.generation, TIMEOUT_MAX)
        })
        .await
    }

    /// Calls all replicas and waits for all answers; patiently, as long as none is there, and no longer than
    /// [`STRAGGLER_AFTER`] for the rest.
    async fn fan_out<F>(
        &self,
        chunk: &OpenChunk,
        attempt: u32,
        call: impl Fn(usize, ServerId) -> F,
    ) -> Result<(), ChunkFailure>
    where
        F: Future<Output = Result<(), StorageFailure>> + Send,
    {
        let patience = |first: Duration| (first * (1 << attempt.min(6))).min(TIMEOUT_MAX);
        let mut calls: FuturesUnordered<_> = chunk
            .replicas
            .iter()
            .enumerate()
            .map(|(at, server)| call(at, *server).map(move |result| (*server, result)))
            .collect();
        let mut silent = chunk.replicas.clone();
        let last = Instant::now() + patience(UNANSWERED_AFTER);
        let mut deadline = last;
        loop {
            match tokio::time::timeout_at(deadline, calls.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some((server, Ok(())))) => {
                    silent.retain(|other| *other != server);
                    deadline = last.min(Instant::now() + patience(STRAGGLER_AFTER));
                }
                Ok(Some((server, Err(_)))) if atoll_faults::planted("replica-missing-ignored") => {
                    silent.retain(|other| *other != server);
                }
                Ok(Some((server, Err(failure)))) => return Err(failed(server, &failure)),
                Err(_) => {
                    for server in &silent {
                        self.storage.suspect(*server);
                    }
                    let server = silent.first().copied().unwrap_or_default();
                    return Err(ChunkFailure { server, why: "no reply within the timeout".into() });
                }
            }
        }
    }
}

impl Open {
    fn stream_of(&mut self, ino: InodeId) -> Option<Arc<OpenChunk>> {
        let now = Instant::now();
        let at = match self.streams.iter().position(|stream| stream.owner == ino) {
            Some(at) => at,
            None => {
                let idle = |stream: &Stream| now.duration_since(stream.last_use) >= STREAM_IDLE_AFTER;
                let full = self.streams.len() >= STREAM_CHUNKS_MAX;
                let oldest = self
                    .streams
                    .iter()
                    .enumerate()
                    .min_by_key(|(_, stream)| stream.last_use)
                    .map(|(at, _)| at)?;
                if !full && !idle(&self.streams[oldest]) {
                    return None;
                }
                oldest
            }
        };
        self.streams[at].owner = ino;
        self.streams[at].last_use = now;
        Some(Arc::clone(&self.streams[at].chunk))
    }
}

fn kind_of(purpose: Purpose) -> ChunkKind {
    match purpose {
        Purpose::Small => ChunkKind::Small,
        Purpose::Stream(_) => ChunkKind::Stream,
    }
}

/// Which of these servers a new chunk goes on without, by how long they haven't answered.
fn suspects(replicas: &[ServerId], failing_for: impl Fn(ServerId) -> Option<Duration>) -> Vec<ServerId> {
    let failing = |least: Duration| -> Vec<ServerId> {
        let fails = |server: &ServerId| failing_for(*server).is_some_and(|time| time >= least);
        replicas.iter().copied().filter(fails).collect()
    };
    let all = failing(Duration::ZERO);
    if all.len() + COPIES_LEFT_MIN <= replicas.len() { all } else { failing(SUSPECTED_AFTER) }
}

fn all_of(replicas: &[ServerId]) -> u32 {
    debug_assert!(replicas.len() <= COPIES_MAX as usize);
    (1 << replicas.len()) - 1
}

fn failed(server: ServerId, failure: &StorageFailure) -> ChunkFailure {
    let why = match failure {
        StorageFailure::Refused(StorageError::DiskFull) => "its disk is full".into(),
        other => other.to_string(),
    };
    ChunkFailure { server, why }
}

/// Zeroes that fill up the last block of an extent of `bytes`; `None` if it is whole.
#[must_use]
pub fn padding(bytes: u64) -> Option<Part> {
    let missing = (bytes.next_multiple_of(BLOCK_BYTES) - bytes) as usize;
    (missing > 0).then(|| Bytes::from_static(&ZEROES[..missing]).into())
}

/// Seals the chunks that come, one after the other, until all senders are gone.
pub async fn seal_all<M: Metadata>(metadata: Arc<M>, mut chunks: mpsc::Receiver<ChunkId>) {
    while let Some(chunk) = chunks.recv().await {
        let session = metadata.session();
        for attempt in 0..SEAL_ATTEMPTS_MAX {
            match seal(&*metadata, session, chunk).await {
                Ok(()) => break,
                Err(error) if attempt + 1 == SEAL_ATTEMPTS_MAX => {
                    tracing::warn!(
                        %chunk, %error,
                        "a chunk could not be released; it stays open until the session ends"
                    );
                }
                Err(_) => tokio::time::sleep(OPEN_BACKOFF_MIN * (1 << attempt)).await,
            }
        }
    }
}

async fn seal<M: Metadata>(metadata: &M, session: SessionId, chunk: ChunkId) -> Result<(), ClientError> {
    if metadata.session() != session {
        // It was a lost session's: the service has sealed it.
        return Ok(());
    }
    match metadata.mutate(ops::SealChunk { chunk }).await {
        Ok(()) | Err(ClientError::Fs(_) | ClientError::SessionLost | ClientError::Stopped) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_of_a_moment_never_leaves_a_single_copy() {
        let [a, b, c] = [1, 2, 3].map(ServerId);
        let moment = Some(Duration::from_millis(1));
        let only = |failing: ServerId, time| move |server| (server == failing).then_some(time).flatten();
        assert_eq!(suspects(&[a, b, c], |_| None), []);
        assert_eq!(suspects(&[a, b, c], only(b, moment)), [b]);
        assert_eq!(suspects(&[a, b], only(b, moment)), []);
        assert_eq!(suspects(&[a, b], only(b, Some(SUSPECTED_AFTER))), [b]);
        let two = |server| if server == a { Some(SUSPECTED_AFTER) } else { moment.filter(|_| server == b) };
        assert_eq!(suspects(&[a, b, c], two), [a]);
    }
}
