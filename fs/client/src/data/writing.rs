//! Accepting writes, and the background work that they cause.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use atoll_core::attributes::{Attributes, KillPriv};
use atoll_core::commands::{Appended, NewPiece, NewPlace, ops};
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_core::limits::{
    BLOCK_BYTES, COMMIT_INLINE_BYTES_MAX, FILE_BYTES_MAX, INLINE_WRITE_BYTES_MAX, SEGMENT_BYTES,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::file::{ErrorMark, FileState};
use super::{Shared, Why};
use crate::arena::DataBlock;
use crate::metadata::{ClientError, Metadata};
use crate::origin;
use crate::write::buffer::Part;
use crate::write::chunk_writer::{Purpose, padding};

/// Writes up to this size (bytes) get a block with room for more of their kind behind them.
const SMALL_WRITE_BYTES_MAX: usize = 16 << 10;
/// Room of such a block (bytes).
const GROWING_BLOCK_BYTES: usize = 64 << 10;
/// Files that are flushed at the same time because somebody asked for all of them.
pub(super) const FLUSH_ALL_AT_ONCE: usize = 16;
/// Attempts to bring an appended run into a chunk.
const APPEND_ATTEMPTS_MAX: u32 = 8;

/// Bytes set aside for a write that isn't in the buffer yet.
struct Claim<'a> {
    file: &'a FileState,
    bytes: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.file.inner.lock().dirty.unclaim(self.bytes);
    }
}

impl<M: Metadata> Shared<M> {
    /// The state of a file.
    pub fn file(&self, ino: InodeId) -> Arc<FileState> {
        let file = self.table.file(ino);
        file.last_use.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        file
    }

    /// See [`DataPath::write`](super::DataPath::write).
    pub async fn write(
        self: &Arc<Self>,
        ino: InodeId,
        offset: u64,
        data: &[u8],
        attributes: &Attributes,
        kill_priv: KillPriv,
    ) -> Result<u32, ClientError> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX);
        if end.is_none() {
            return Err(FsError::FileTooLarge.into());
        }
        let file = self.file(ino);
        let lost = {
            let mut inner = file.inner.lock();
            inner.forgotten = false;
            if inner.attributes.is_none() {
                inner.attributes = Some(attributes.clone());
            }
            inner.errors.mark()
        };
        let mut done = 0;
        while done < data.len() {
            match self.write_some(&file, offset + done as u64, &data[done..], (kill_priv, lost)).await {
                Ok(accepted) => done += accepted,
                // What fits is written; the next write tells that the rest didn't.
                Err(ClientError::Fs(FsError::NoSpace)) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let fresh = file.inner.lock().dirty.fresh_bytes();
        if fresh >= self.config.stream_flush_bytes {
            self.flush_behind(&file, Why::Much);
        }
        Ok(done as u32)
    }

    /// Accepts a part of a write, within one segment. `lost`: what of the file was lost when the write began; what waits while
    /// more is lost comes after that and isn't accepted, or there would be a later write without an earlier one.
    async fn write_some(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        offset: u64,
        data: &[u8],
        (kill_priv, lost): (KillPriv, ErrorMark),
    ) -> Result<usize, ClientError> {
        let in_segment = (SEGMENT_BYTES - offset % SEGMENT_BYTES).min(data.len() as u64);
        self.wait_for_room(file, offset, in_segment).await?;
        let claim = match self.claim(file, in_segment).await {
            Err(ClientError::Fs(FsError::NoSpace)) => {
                return self.overwrite(file, offset, &data[..in_segment as usize], kill_priv).await;
            }
            other => other?,
        };
        let data = &data[..claim.bytes as usize];
        let mtime = self.metadata.now();
        let extended = {
            let mut inner = file.inner.lock();
            inner.errors.since(&mut { lost })?;
            inner.dirty.extend(offset, data, Instant::now(), mtime, kill_priv)
        };
        if extended > 0 {
            return Ok(extended);
        }
        let room = if data.len() <= SMALL_WRITE_BYTES_MAX && self.appends(file, offset) {
            GROWING_BLOCK_BYTES.min((SEGMENT_BYTES - offset % SEGMENT_BYTES) as usize)
        } else {
            data.len()
        };
        let block = match self.arena.store_growing(file.ino, offset, data, room) {
            Ok(block) => block,
            Err(_) => {
                self.flush_everything_behind();
                self.arena.store_when_free(file.ino, offset, data, room).await
            }
        };
        let stored = block.len();
        {
            let mut inner = file.inner.lock();
            inner.errors.since(&mut { lost })?;
            inner.dirty.insert(block, Instant::now(), mtime, kill_priv);
        }
        drop(claim);
        if self.table.mark_dirty(file) {
            self.work.notify_one();
        }
        Ok(stored)
    }

    /// There is no quota to buffer a write against. If it only replaces what the file has already it needs none: it
    /// is committed at once, within one segment, so that the refusal, if there is one, comes here and not later.
    async fn overwrite(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        offset: u64,
        data: &[u8],
        kill_priv: KillPriv,
    ) -> Result<usize, ClientError> {
        let size = file.inner.lock().attributes.as_ref().map_or(0, |attributes| attributes.size);
        let length = size.saturating_sub(offset).min(data.len() as u64);
        if length == 0 {
            return Err(FsError::NoSpace.into());
        }
        // What was written before comes before it.
        self.flush_file(file).await?;
        let data = Bytes::copy_from_slice(&data[..length as usize]);
        let mtime = self.metadata.now();
        let _order = file.commit_stage.lock().await;
        let mut attempt = 0;
        loop {
            let placement = self.writers.place(Purpose::Small, length).await?;
            let chunk = Arc::clone(placement.chunk());
            let parts: Vec<Part> = std::iter::once(data.clone().into()).chain(padding(length)).collect();
            if let Err(failure) = self.writers.write(&chunk, placement.offset, parts, true, attempt).await {
                self.writers.give_up(&chunk, &failure.to_string());
                tokio::time::sleep(super::TICK / 10).await;
                attempt += 1;
                continue;
            }
            let place = NewPlace::Chunk {
                chunk: chunk.chunk,
                generation: chunk.generation,
                offset: placement.offset,
            };
            let piece = NewPiece { offset, length, place };
            let pieces = vec![piece.clone()];
            let op = ops::Write { ino: file.ino, pieces, mtime, kill_priv, reservation: 0 };
            match self.metadata.mutate(op).await {
                Ok(attributes) => {
                    self.reader.learn(&[chunk.info()]);
                    let mut inner = file.inner.lock();
                    inner.map.commit(std::slice::from_ref(&piece), &attributes);
                    inner.learn(&attributes);
                    return Ok(length as usize);
                }
                Err(ClientError::Fs(FsError::StaleChunk)) => {
                    self.writers.give_up(&chunk, "a write to it was refused");
                    attempt += 1;
                }
                Err(ClientError::Fs(FsError::TryAgain)) => tokio::time::sleep(super::TICK / 10).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// True if a write goes on where the file's dirty bytes end: more of its kind will follow.
    fn appends(&self, file: &FileState, offset: u64) -> bool {
        let inner = file.inner.lock();
        offset > 0 && inner.dirty.end() == offset
    }

    /// Back-pressure: waits until the file has room in the buffer.
    async fn wait_for_room(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        offset: u64,
        length: u64,
    ) -> Result<(), ClientError> {
        loop {
            let space = file.space.notified();
            tokio::pin!(space);
            space.as_mut().enable();
            let target = {
                let inner = file.inner.lock();
                if inner.dirty.must_flush_before(offset, length) {
                    Some(inner.dirty.last_sequence())
                } else if inner.dirty.bytes() + length > self.config.dirty_file_bytes_max
                    && inner.dirty.bytes() > 0
                {
                    None
                } else {
                    return Ok(());
                }
            };
            match target {
                Some(target) => self.flush_to(file, target).await?,
                None => {
                    self.flush_behind(file, Why::Much);
                    // A flusher that just ended, or that failed, fires nothing more: look again after a while.
                    let _ = tokio::time::timeout(super::TICK, space).await;
                }
            }
        }
    }

    /// Reserves quota for `wanted` bytes; for fewer, if there isn't more.
    async fn claim<'a>(self: &Arc<Self>, file: &'a FileState, wanted: u64) -> Result<Claim<'a>, ClientError> {
        let missing = file.inner.lock().dirty.reservation_wanted(wanted);
        let mut granted = 0;
        if missing > 0 {
            granted = match self.reservation.take(missing).await {
                Ok(()) => missing,
                Err(ClientError::Fs(FsError::NoSpace)) => self.last_resort(missing).await?,
                Err(error) => return Err(error),
            };
        }
        let claimed = file.inner.lock().dirty.claim(granted, wanted);
        if claimed == 0 {
            return Err(FsError::NoSpace.into());
        }
        Ok(Claim { file, bytes: claimed })
    }

    /// The volume seems full. What is dirty may have more reserved than it needs: commit it, then take what
    /// there is.
    async fn last_resort(self: &Arc<Self>, missing: u64) -> Result<u64, ClientError> {
        if let Err(error) = self.flush_all().await {
            tracing::debug!(%error, "flushing to free quota failed");
        }
        match self.reservation.take_some(missing).await {
            Ok(granted) => Ok(granted),
            // One block may be left of what the file has reserved already.
            Err(ClientError::Fs(FsError::NoSpace)) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// See [`DataPath::append`](super::DataPath::append).
    pub async fn append(
        self: &Arc<Self>,
        ino: InodeId,
        data: Bytes,
        kill_priv: KillPriv,
    ) -> Result<(u64, Attributes), ClientError> {
        if data.len() as u64 > COMMIT_INLINE_BYTES_MAX || data.is_empty() {
            return Err(FsError::InvalidArgument.into());
        }
        // What this process wrote before comes before it.
        self.flush(ino).await?;
        let file = self.file(ino);
        let length = data.len() as u64;
        let reservation = length.next_multiple_of(BLOCK_BYTES);
        match self.reservation.take(reservation).await {
            Err(ClientError::Fs(FsError::NoSpace)) => {
                self.flush_all().await?;
                self.reservation.take(reservation).await?;
            }
            other => other?,
        }
        let (shared, state) = (Arc::clone(self), Arc::clone(&file));
        // In a task of its own: whoever waits may go away, and the reservation must be accounted for.
        let sent = async move {
            let result = shared.send_append(&state, data, kill_priv, reservation).await;
            if result.is_err() {
                shared.reservation.give_back(reservation);
            }
            result
        };
        // What is appended once is not appended again when the request comes again.
        let sent = tokio::spawn(origin::serving(origin::request(), sent));
        match sent.await {
            Ok(result) => result,
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Err(_) => Err(ClientError::Stopped),
        }
    }

    async fn send_append(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        data: Bytes,
        kill_priv: KillPriv,
        reservation: u64,
    ) -> Result<(u64, Attributes), ClientError> {
        let length = data.len() as u64;
        let _order = file.commit_stage.lock().await;
        let (mut attempt, mut inline_refused) = (0, false);
        loop {
            // An extent in a chunk lies within one segment, and where this will lie is not known for certain: the
            // service refuses a wrong guess, and then it travels inside the commit.
            let size = file.inner.lock().attributes.as_ref().map(|attributes| attributes.size);
            let fits = size.is_some_and(|size| size % SEGMENT_BYTES + length <= SEGMENT_BYTES);
            let inline =
                length <= INLINE_WRITE_BYTES_MAX && self.metadata.inline_allowed() && !inline_refused;
            let placement = if fits && !inline && attempt < APPEND_ATTEMPTS_MAX {
                let placement = self.writers.place(Purpose::Small, length).await?;
                let parts: Vec<Part> = std::iter::once(data.clone().into()).chain(padding(length)).collect();
                let chunk = Arc::clone(placement.chunk());
                if let Err(failure) = self.writers.write(&chunk, placement.offset, parts, true, attempt).await
                {
                    self.writers.give_up(&chunk, &failure.to_string());
                    attempt += 1;
                    continue;
                }
                Some(placement)
            } else {
                None
            };
            let place = match &placement {
                Some(placement) => NewPlace::Chunk {
                    chunk: placement.chunk().chunk,
                    generation: placement.chunk().generation,
                    offset: placement.offset,
                },
                None => NewPlace::Inline(data.clone()),
            };
            let op = ops::Append { ino: file.ino, data: place.clone(), length, kill_priv, reservation };
            match self.metadata.mutate(op).await {
                Ok(Appended { offset, attributes }) => {
                    let piece = NewPiece { offset, length, place };
                    if let Some(placement) = &placement {
                        self.reader.learn(&[placement.chunk().info()]);
                    }
                    let mut inner = file.inner.lock();
                    inner.map.commit(std::slice::from_ref(&piece), &attributes);
                    inner.learn(&attributes);
                    return Ok((offset, *attributes));
                }
                Err(ClientError::Fs(FsError::InvalidArgument)) if placement.is_some() => {
                    // Others have appended in between: it would cross into the next segment.
                    attempt = APPEND_ATTEMPTS_MAX;
                }
                Err(ClientError::Fs(FsError::StaleChunk)) => {
                    if let Some(placement) = &placement {
                        self.writers.give_up(placement.chunk(), "an append to it was refused");
                    }
                    attempt += 1;
                }
                Err(ClientError::Fs(FsError::InlineBudget)) if !inline_refused => inline_refused = true,
                // What is inline is being moved to chunks: there will be room.
                Err(ClientError::Fs(FsError::TryAgain | FsError::InlineBudget)) => {
                    tokio::time::sleep(super::TICK / 10).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// See [`DataPath::flush`](super::DataPath::flush).
    pub async fn flush(self: &Arc<Self>, ino: InodeId) -> Result<(), ClientError> {
        let Some(file) = self.table.find(ino) else { return Ok(()) };
        self.flush_file(&file).await
    }

    async fn flush_file(self: &Arc<Self>, file: &Arc<FileState>) -> Result<(), ClientError> {
        let (target, mut mark) = {
            let inner = file.inner.lock();
            (inner.dirty.last_sequence(), inner.errors.mark())
        };
        self.flush_to(file, target).await?;
        file.inner.lock().errors.since(&mut mark)
    }

    /// See [`DataPath::flush_all`](super::DataPath::flush_all).
    pub async fn flush_all(self: &Arc<Self>) -> Result<(), ClientError> {
        let mut results = stream::iter(self.table.dirty())
            .map(|file| async move { self.flush_file(&file).await })
            .buffer_unordered(FLUSH_ALL_AT_ONCE);
        let mut first = Ok(());
        while let Some(result) = results.next().await {
            // A file that is gone was removed after it was closed. Nobody has it open who would have to be told.
            first = first.and(result.or_else(|error| match error {
                ClientError::Fs(FsError::Stale) => Ok(()),
                error => Err(error),
            }));
        }
        first
    }

    /// The arena is full: every file with something in it is flushed, without waiting.
    fn flush_everything_behind(self: &Arc<Self>) {
        for file in self.table.dirty() {
            self.flush_behind(&file, Why::Old);
        }
    }

    /// A batch of the file is done with.
    pub fn settled(&self, file: &Arc<FileState>) {
        let unused = file.inner.lock().dirty.take_unused_reservation();
        self.reservation.give_back(unused);
        file.space.notify_waiters();
        self.table.mark_clean(file);
        self.bound_maps();
    }

    /// See [`DataPath::adopt`](super::DataPath::adopt).
    pub async fn adopt(self: &Arc<Self>, blocks: Vec<DataBlock>) -> Result<(), ClientError> {
        for block in blocks {
            let file = self.file(block.ino());
            let length = block.len() as u64;
            let claim = self.claim(&file, length).await?;
            let (kill_priv, mtime) = (block.kills(), block.mtime().unwrap_or_else(|| self.metadata.now()));
            file.inner.lock().dirty.insert(block, Instant::now(), mtime, kill_priv);
            drop(claim);
            self.table.mark_dirty(&file);
        }
        self.work.notify_one();
        Ok(())
    }

    /// See [`DataPath::on_session_lost`](super::DataPath::on_session_lost).
    pub fn on_session_lost(self: &Arc<Self>) {
        self.reservation.reset();
        self.writers.reset();
        for file in self.table.all() {
            let blocks = {
                let mut inner = file.inner.lock();
                inner.map.clear();
                inner.attributes = None;
                inner.readahead.clear();
                if inner.dirty.bytes() > 0 {
                    inner.errors.note(ClientError::SessionLost);
                    self.metadata.lost(file.ino);
                }
                inner.dirty.discard().0
            };
            blocks.iter().for_each(|block| block.retire());
            drop(blocks);
            file.space.notify_waiters();
            self.table.mark_clean(&file);
        }
    }

    /// One look at what has to be done by itself. True if there was something.
    pub async fn tick(self: &Arc<Self>, now: Instant) -> bool {
        self.flush_closed();
        let dirty = self.table.dirty();
        let mut busy = !dirty.is_empty();
        for file in dirty {
            let due = {
                let inner = file.inner.lock();
                let age = |since: Option<Instant>| since.map(|since| now.saturating_duration_since(since));
                age(inner.dirty.oldest()).is_some_and(|age| age >= self.config.write_behind_age)
                    || age(inner.dirty.newest()).is_some_and(|age| age >= self.config.write_idle_age)
            };
            if due {
                self.flush_behind(&file, Why::Old);
            } else {
                self.table.mark_clean(&file);
            }
        }
        if self.reservation.available() > 0 {
            busy = true;
            if self.reservation.is_idle(now)
                && let Err(error) = self.reservation.return_unused().await
            {
                tracing::debug!(%error, "unused quota reservations can't be released now");
            }
        }
        busy | self.expire_readahead(now)
    }
}
