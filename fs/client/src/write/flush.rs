//! From the buffer into the cluster, in order: bytes onto all replicas, durable, then the commit that refers
//! to them.
//!
//! A batch goes on when who waits for it goes away. Two batches of a file overlap: while one
//! syncs and commits, the next one's bytes are sent. One file never waits for another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_blocking::Detach;
use atoll_core::attributes::Attributes;
use atoll_core::commands::{NewPiece, NewPlace, Reply, ops};
use atoll_core::error::FsError;
use atoll_core::ids::SessionId;
use atoll_core::limits::{BLOCK_BYTES, COMMIT_INLINE_BYTES_MAX, COMMIT_PIECES_MAX, INLINE_WRITE_BYTES_MAX};
use atoll_proto::metadata::ChunkInfo;
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::buffer::{Batch, BatchLimits, Part, Run};
use super::chunk_writer::{OpenChunk, Placement, Purpose, padding};
use crate::data::file::FileState;
use crate::data::{Shared, Why};
use crate::metadata::{ClientError, Metadata, unexpected};
use crate::origin;

/// Batches up to this size (bytes) go to the chunk of small extents.
pub const SMALL_EXTENT_BYTES_MAX: u64 = 256 << 10;
/// Bytes of one write to a storage server; extents that lie next to each other in a chunk share one.
pub const WRITE_BYTES_MAX: u64 = 1 << 20;
/// Writes of one batch on their way at the same time.
const WRITES_IN_FLIGHT: usize = 8;
/// Pauses between attempts of a batch, from the second attempt on.
const RETRY_BACKOFF_MIN: Duration = Duration::from_millis(20);
const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Tasks that flush one file because there is much: one sends while the other one commits.
const FLUSHERS_MAX: u32 = 2;
/// How often a commit that finds no room tries to reserve some.
const RESERVE_ATTEMPTS_MAX: u32 = 3;

/// How bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Inside the commit.
    Inline,
    /// In the chunk of small extents.
    Small,
    /// In the file's stream.
    Stream,
}

/// Decides how a batch travels. `size`: of the file once it is committed; `asked`: an application waits for it.
#[must_use]
pub fn way(bytes: u64, size: u64, asked: bool, inline_allowed: bool, inline_file_bytes: u64) -> Way {
    let small_file = size <= inline_file_bytes && bytes <= COMMIT_INLINE_BYTES_MAX;
    let small_and_urgent = asked && bytes <= INLINE_WRITE_BYTES_MAX;
    if inline_allowed && (small_file || small_and_urgent) {
        Way::Inline
    } else if bytes <= SMALL_EXTENT_BYTES_MAX {
        Way::Small
    } else {
        Way::Stream
    }
}

/// Where a run is on its way.
enum Stage {
    /// In the buffer only.
    Buffered,
    /// It will travel inside the commit.
    Inline,
    /// All replicas have it in memory.
    Written(Placement),
    /// All replicas have it on disk.
    Durable(Placement),
}

struct Item {
    run: Run,
    stage: Stage,
}

/// A batch on its way.
struct Work {
    items: Vec<Item>,
    purpose: Purpose,
    session: SessionId,
    /// Failed attempts so far: patience and pauses grow with them.
    attempts: u32,
    /// A single write syncs along.
    sync_along: bool,
}

impl Work {
    /// What lies in `chunk` and isn't durable has to go elsewhere.
    fn take_back(&mut self, chunk: &Arc<OpenChunk>) {
        for item in &mut self.items {
            if matches!(&item.stage, Stage::Written(placement) if Arc::ptr_eq(placement.chunk(), chunk)) {
                item.stage = Stage::Buffered;
            }
        }
    }

    /// Whether the bytes that are to be written are still those that the application wrote.
    fn is_intact(&self) -> bool {
        let buffered = self.items.iter().filter(|item| matches!(item.stage, Stage::Buffered));
        buffered.flat_map(|item| &item.run.parts).all(Part::is_intact)
    }

    fn unsynced(&self) -> Vec<Arc<OpenChunk>> {
        let mut chunks: Vec<Arc<OpenChunk>> = Vec::new();
        for item in &self.items {
            if let Stage::Written(placement) = &item.stage
                && !chunks.iter().any(|chunk| Arc::ptr_eq(chunk, placement.chunk()))
            {
                chunks.push(Arc::clone(placement.chunk()));
            }
        }
        chunks
    }

    /// For readers of what is about to be committed.
    fn chunks(&self) -> Vec<ChunkInfo> {
        let mut infos: Vec<ChunkInfo> = Vec::new();
        for item in &self.items {
            if let Stage::Durable(placement) = &item.stage
                && infos.last().is_none_or(|last| last.chunk != placement.chunk().chunk)
            {
                infos.push(placement.chunk().info());
            }
        }
        infos
    }

    fn all_to_chunks(&mut self, give_up: impl Fn(&Arc<OpenChunk>)) {
        for item in &mut self.items {
            if let Stage::Written(placement) | Stage::Durable(placement) = &item.stage {
                give_up(placement.chunk());
            }
            item.stage = Stage::Buffered;
        }
    }
}

/// Extents that lie next to each other in a chunk: one write.
struct Transfer {
    chunk: Arc<OpenChunk>,
    offset: u64,
    bytes: u64,
    parts: Vec<Part>,
    items: Vec<(usize, Placement)>,
}

/// A task that flushes a file behind its writers.
struct Running(Arc<FileState>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.flushers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What follows a refused commit.
enum Next {
    /// Send it again, as it is.
    Again,
    /// Write the bytes to new chunks first.
    Rewrite,
    /// Find more room first.
    Reserve,
    /// The bytes can't be kept.
    Lost(ClientError),
    /// Not now: they stay in the buffer.
    Later(ClientError),
}

fn judge(error: ClientError) -> Next {
    match error {
        ClientError::Fs(FsError::StaleChunk | FsError::InlineBudget) => Next::Rewrite,
        ClientError::Fs(FsError::TryAgain | FsError::NoServers) => Next::Again,
        ClientError::Fs(FsError::NoSpace) => Next::Reserve,
        ClientError::Fs(FsError::SessionExpired | FsError::JournalBroken) | ClientError::SessionLost => {
            Next::Lost(ClientError::SessionLost)
        }
        ClientError::Fs(_) => Next::Lost(error),
        ClientError::TimedOut | ClientError::Stopped => Next::Later(error),
    }
}

/// Of writing to chunks: there is no more room to be had by asking again.
fn judge_writing(error: ClientError) -> Next {
    match error {
        ClientError::Fs(FsError::NoSpace) => Next::Lost(error),
        other => judge(other),
    }
}

fn pause(attempts: u32) -> Duration {
    (RETRY_BACKOFF_MIN * (1 << attempts.min(10))).min(RETRY_BACKOFF_MAX)
}

impl<M: Metadata> Shared<M> {
    /// Flushes all writes of a file up to the number `target`.
    ///
    /// # Errors
    /// If that isn't possible now. Data that was lost for good is among the file's errors.
    pub async fn flush_to(self: &Arc<Self>, file: &Arc<FileState>, target: u64) -> Result<(), ClientError> {
        while file.inner.lock().dirty.settled() < target {
            let (shared, state) = (Arc::clone(self), Arc::clone(file));
            // Here, since a small file may need nobody; but who waits may go away.
            let batch = async move { shared.flush_batch(&state, Why::Asked).await };
            Detach::new(batch, self.runtime.clone()).await?;
        }
        Ok(())
    }

    /// Starts flushing a file if it isn't being flushed: much is there, or it is old.
    pub fn flush_behind(self: &Arc<Self>, file: &Arc<FileState>, why: Why) {
        let limit = if why == Why::Much { FLUSHERS_MAX } else { 1 };
        let begun = file.flushers.fetch_update(Ordering::AcqRel, Ordering::Acquire, |running| {
            (running < limit).then_some(running + 1)
        });
        if begun.is_err() {
            return;
        }
        let (shared, state) = (Arc::clone(self), Arc::clone(file));
        let running = Running(Arc::clone(file));
        tokio::spawn(async move {
            let _running = running;
            let target = state.inner.lock().dirty.last_sequence();
            loop {
                if let Err(error) = shared.flush_batch(&state, why).await {
                    tracing::warn!(ino = %state.ino, %error, "buffered data can't be written now; retrying");
                    break;
                }
                let inner = state.inner.lock();
                let goes_on = match why {
                    Why::Much => inner.dirty.fresh_bytes() >= shared.config.stream_flush_bytes,
                    Why::Asked | Why::Old => inner.dirty.settled() < target,
                };
                if !goes_on {
                    break;
                }
            }
        });
    }

    /// Brings the next batch of a file into the cluster. `Ok` also if its data was lost for good: then that is
    /// among the file's errors.
    pub(crate) async fn flush_batch(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        why: Why,
    ) -> Result<(), ClientError> {
        let data_stage = file.data_stage.lock().await;
        let session = self.metadata.session();
        let (batch, size) = {
            let mut inner = file.inner.lock();
            let batch = inner.dirty.next_batch(BatchLimits::of_commit(why == Why::Much));
            let committed = inner.attributes.as_ref().map_or(0, |attributes| attributes.size);
            (batch, committed)
        };
        let Some(batch) = batch else {
            // What there is is on its way: wait until it has arrived. While this holds both stages nothing is
            // on its way, so writes whose bytes a truncation took are done with too.
            let _arrived = file.commit_stage.lock().await;
            file.inner.lock().dirty.settle_vanished();
            return Ok(());
        };
        let config = self.metadata.config();
        let size = size.max(batch.end);
        let inline_file_bytes = u64::from(config.inline_file_bytes);
        let way =
            way(batch.bytes, size, why == Why::Asked, self.metadata.inline_allowed(), inline_file_bytes);
        let purpose = match way {
            Way::Inline | Way::Small => Purpose::Small,
            Way::Stream => Purpose::Stream(file.ino),
        };
        let stage = || if way == Way::Inline { Stage::Inline } else { Stage::Buffered };
        let items = batch.runs.iter().map(|run| Item { run: run.clone(), stage: stage() }).collect();
        let mut work = Work { items, purpose, session, attempts: 0, sync_along: true };

        let written = self.write_out(&mut work).await;
        let commit_stage = file.commit_stage.lock().await;
        drop(data_stage);
        let result = match written {
            _ if self.metadata.session() != session => Err(Next::Lost(ClientError::SessionLost)),
            Ok(()) if file.inner.lock().dirty.settled() != batch.base => {
                // The batch before this one could not be committed; this one must not overtake it.
                Err(Next::Later(ClientError::TimedOut))
            }
            Ok(()) => self.commit(file, &batch, &mut work).await,
            Err(error) => Err(judge_writing(error)),
        };
        drop(work);
        let result = match result {
            Ok(()) => Ok(()),
            Err(Next::Lost(error)) => {
                self.lose(file, &batch, session, error);
                Ok(())
            }
            Err(Next::Later(error)) => {
                file.inner.lock().dirty.unbatch(&batch, Instant::now());
                Err(error)
            }
            Err(Next::Again | Next::Rewrite | Next::Reserve) => {
                // Waiting for servers, which `write_out` does itself, is all that these mean there.
                file.inner.lock().dirty.unbatch(&batch, Instant::now());
                Err(ClientError::TimedOut)
            }
        };
        drop(commit_stage);
        result
    }

    /// Writes everything that is only buffered to chunks, until all replicas have it.
    async fn write_out(self: &Arc<Self>, work: &mut Work) -> Result<(), ClientError> {
        loop {
            if self.metadata.session() != work.session {
                return Err(ClientError::SessionLost);
            }
            let transfers = self.place(work).await?;
            if transfers.is_empty() {
                return Ok(());
            }
            let sync = work.sync_along && transfers.len() == 1;
            let attempt = work.attempts;
            let mut results = stream::iter(transfers)
                .map(|transfer| async move {
                    let Transfer { chunk, offset, parts, items, .. } = transfer;
                    let syncs = sync && !atoll_faults::planted("commit-before-durable");
                    let result = self.writers.write(&chunk, offset, parts, syncs, attempt).await;
                    (chunk, items, result)
                })
                .buffer_unordered(WRITES_IN_FLIGHT);
            let mut failures: Vec<Arc<OpenChunk>> = Vec::new();
            while let Some((chunk, items, result)) = results.next().await {
                match result {
                    Ok(()) => {
                        for (at, placement) in items {
                            work.items[at].stage =
                                if sync { Stage::Durable(placement) } else { Stage::Written(placement) };
                        }
                    }
                    Err(failure) => {
                        self.writers.give_up(&chunk, &failure.to_string());
                        failures.push(chunk);
                    }
                }
            }
            drop(results);
            if failures.is_empty() {
                return Ok(());
            }
            for chunk in failures {
                work.take_back(&chunk);
            }
            if !work.is_intact() {
                // No server takes them, and none may: the application never wrote this.
                tracing::error!("buffered data was damaged in this machine's memory");
                return Err(FsError::Io.into());
            }
            self.wait_after_failure(work).await;
        }
    }

    /// The first time it goes on at once: it was one server, and others are there.
    async fn wait_after_failure(&self, work: &mut Work) {
        if work.attempts > 0 {
            tokio::time::sleep(pause(work.attempts)).await;
        }
        work.attempts += 1;
    }

    /// Finds room for what is only buffered.
    async fn place(self: &Arc<Self>, work: &Work) -> Result<Vec<Transfer>, ClientError> {
        let mut transfers: Vec<Transfer> = Vec::new();
        for (at, item) in work.items.iter().enumerate() {
            if !matches!(item.stage, Stage::Buffered) {
                continue;
            }
            let length = item.run.length;
            let placement = self.writers.place(work.purpose, length).await?;
            let room = length.next_multiple_of(BLOCK_BYTES);
            let joins = transfers.last().is_some_and(|last| {
                Arc::ptr_eq(&last.chunk, placement.chunk())
                    && last.offset + last.bytes == placement.offset
                    && last.bytes + room <= WRITE_BYTES_MAX
            });
            if !joins {
                transfers.push(Transfer {
                    chunk: Arc::clone(placement.chunk()),
                    offset: placement.offset,
                    bytes: 0,
                    parts: Vec::new(),
                    items: Vec::new(),
                });
            }
            if let Some(transfer) = transfers.last_mut() {
                transfer.parts.extend(item.run.parts.iter().cloned());
                transfer.parts.extend(padding(length));
                transfer.bytes += room;
                transfer.items.push((at, placement));
            }
        }
        Ok(transfers)
    }

    /// Syncs what isn't durable, then commits; starts over as often as it takes.
    async fn commit(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        batch: &Batch,
        work: &mut Work,
    ) -> Result<(), Next> {
        let mut reserve_attempts = 0;
        let mut reservation = batch.reservation;
        loop {
            self.make_durable(work).await.map_err(judge_writing)?;
            if self.metadata.session() != work.session {
                return Err(Next::Lost(ClientError::SessionLost));
            }
            let pieces: Vec<NewPiece> = work.items.iter().filter_map(new_piece).collect();
            self.reader.learn(&work.chunks());
            match judge_result(self.send_commit(file, batch, pieces, reservation).await) {
                Ok(()) => return Ok(()),
                Err(Next::Again) => {
                    tokio::time::sleep(pause(work.attempts)).await;
                    work.attempts += 1;
                }
                Err(Next::Rewrite) => {
                    work.all_to_chunks(|chunk| self.writers.give_up(chunk, "a commit to it was refused"));
                    self.wait_after_failure(work).await;
                }
                Err(Next::Reserve) => {
                    reserve_attempts += 1;
                    if reserve_attempts > RESERVE_ATTEMPTS_MAX {
                        self.reservation.give_back(reservation - batch.reservation);
                        return Err(Next::Lost(FsError::NoSpace.into()));
                    }
                    let more = batch.bytes.next_multiple_of(BLOCK_BYTES);
                    match self.reservation.take(more).await {
                        Ok(()) => reservation += more,
                        Err(ClientError::Fs(_)) => tokio::time::sleep(pause(work.attempts)).await,
                        Err(error) => return Err(judge(error)),
                    }
                    work.attempts += 1;
                }
                Err(other) => return Err(other),
            }
        }
    }

    async fn make_durable(self: &Arc<Self>, work: &mut Work) -> Result<(), ClientError> {
        loop {
            self.write_out(work).await?;
            let chunks = work.unsynced();
            let attempt = work.attempts;
            let results =
                futures::future::join_all(chunks.iter().map(|chunk| self.writers.sync(chunk, attempt)));
            let mut failed = false;
            for (chunk, result) in chunks.iter().zip(results.await) {
                match result {
                    Ok(()) => {
                        for item in &mut work.items {
                            item.stage = match std::mem::replace(&mut item.stage, Stage::Buffered) {
                                Stage::Written(placement) if Arc::ptr_eq(placement.chunk(), chunk) => {
                                    Stage::Durable(placement)
                                }
                                other => other,
                            };
                        }
                    }
                    Err(failure) => {
                        failed = true;
                        self.writers.give_up(chunk, &failure.to_string());
                        work.take_back(chunk);
                    }
                }
            }
            if !failed {
                return Ok(());
            }
            self.wait_after_failure(work).await;
        }
    }

    /// One Raft entry; several only if a batch has more pieces than one may have, which the buffer prevents
    /// wherever it would break the order.
    async fn send_commit(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        batch: &Batch,
        pieces: Vec<NewPiece>,
        reservation: u64,
    ) -> Result<(), ClientError> {
        let mut reservation = reservation;
        let count = pieces.len().div_ceil(COMMIT_PIECES_MAX);
        for (at, part) in pieces.chunks(COMMIT_PIECES_MAX).enumerate() {
            let op = ops::Write {
                ino: file.ino,
                pieces: part.to_vec(),
                mtime: batch.mtime,
                kill_priv: batch.kill_priv,
                reservation: std::mem::take(&mut reservation),
            };
            // Until it is sent it may wait for longer than its session lives: what was lost with that is written by nobody.
            let wanted = {
                let (file, base) = (Arc::clone(file), batch.base);
                move || file.inner.lock().dirty.settled() == base
            };
            let commit = self.metadata.execute_if(op.into(), Box::new(wanted));
            let outcome = origin::committing(batch.last_order(), commit).await?;
            let attributes = Box::<Attributes>::from_outcome(outcome).ok_or_else(unexpected)?;
            let last = at + 1 == count;
            let blocks = {
                let mut inner = file.inner.lock();
                inner.map.commit(part, &attributes);
                inner.learn(&attributes);
                let cut = match atoll_faults::planted("settles-too-much") {
                    true => inner.dirty.last_sequence(),
                    false => batch.cut,
                };
                if last { inner.dirty.settle(cut) } else { Vec::new() }
            };
            if last {
                batch.retire();
            }
            drop(blocks);
        }
        self.settled(file);
        Ok(())
    }

    /// The data of a batch can't be kept: whoever has the file open is told.
    fn lose(self: &Arc<Self>, file: &Arc<FileState>, batch: &Batch, session: SessionId, error: ClientError) {
        // Who has a file open keeps it. So it was removed after it was closed, and nobody wants its data; or this mount's
        // hold of it was lost, and then whoever has it open has lost what it wrote.
        let is_gone = error == ClientError::Fs(FsError::Stale);
        let is_open = self.metadata.is_open(file.ino);
        let blocks = {
            let mut inner = file.inner.lock();
            if inner.dirty.settled() >= batch.cut {
                // Given up already, with everything else of the session.
                return;
            }
            inner.errors.note(if is_gone && is_open { FsError::Io.into() } else { error.clone() });
            inner.dirty.settle(batch.cut)
        };
        self.metadata.lost(file.ino);
        if !is_gone {
            tracing::error!(
                ino = %file.ino, bytes = batch.bytes, %error,
                "buffered data is lost; the file's open handles return EIO"
            );
        } else if is_open {
            tracing::warn!(
                ino = %file.ino, bytes = batch.bytes,
                "buffered data is lost, because the file was removed while it was open"
            );
        } else {
            tracing::debug!(
                ino = %file.ino, bytes = batch.bytes,
                "buffered data of a removed file is dropped"
            );
        }
        batch.retire();
        drop(blocks);
        // Reservations die with their session.
        if self.metadata.session() == session {
            self.reservation.give_back(batch.reservation);
        }
        self.settled(file);
    }
}

fn judge_result(result: Result<(), ClientError>) -> Result<(), Next> {
    result.map_err(judge)
}

fn new_piece(item: &Item) -> Option<NewPiece> {
    let place = match &item.stage {
        Stage::Inline => NewPlace::Inline(item.run.contiguous()),
        Stage::Durable(placement) => NewPlace::Chunk {
            chunk: placement.chunk().chunk,
            generation: placement.chunk().generation,
            offset: placement.offset,
        },
        Stage::Buffered | Stage::Written(_) => return None,
    };
    Some(NewPiece { offset: item.run.offset, length: item.run.length, place })
}
