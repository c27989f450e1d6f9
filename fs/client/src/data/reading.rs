//! Reading: what is dirty over what is committed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use atoll_core::attributes::Attributes;
use atoll_core::error::FsError;
use atoll_core::extents;
use atoll_core::ids::{ChunkId, InodeId, SegmentIndex};
use atoll_core::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use atoll_proto::queries;
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::time::Instant;

use super::Shared;
use super::file::FileState;
use crate::metadata::{ClientError, Metadata};
use crate::read::chunk_reader::ReadError;
use crate::read::map::{Extents, Source, Span, Unknown};
use crate::read::readahead::{AHEAD_REQUEST_BYTES_MAX, Ahead, BUDGET_UNIT_BYTES, Found};

/// Segments that are asked for when a map is unknown: 32 MiB of a file.
const MAP_SEGMENTS: u32 = 32;
/// How often a map is asked for because the bytes weren't where the last one said.
const MAP_ATTEMPTS_MAX: u32 = 3;
/// Answers that are older than a commit of our own before commits are held back for the next one.
const STALE_ANSWERS_MAX: u32 = 2;
/// Maps are shrunk to this part of their limit (eighths), so that it isn't done for every new one.
const MAP_SHRINK_EIGHTHS: usize = 6;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

fn zeroes(length: u64, parts: &mut Vec<Bytes>) {
    let mut left = length as usize;
    while left > 0 {
        let now = left.min(ZEROES.len());
        parts.push(Bytes::from_static(&ZEROES[..now]));
        left -= now;
    }
}

/// A part of what was asked for: at hand, or to be looked up.
enum Part {
    Dirty(Bytes),
    Committed(u64, u64),
}

impl<M: Metadata> Shared<M> {
    /// See [`DataPath::read`](super::DataPath::read).
    pub async fn read(
        self: &Arc<Self>,
        ino: InodeId,
        offset: u64,
        size: u32,
        known: &Attributes,
    ) -> Result<Vec<Bytes>, ClientError> {
        let file = self.file(ino);
        let mut attempt = 0;
        loop {
            let (parts, end, change) = {
                let mut inner = file.inner.lock();
                inner.learn(known);
                let change = inner.attributes.as_ref().map_or(0, |attributes| attributes.change);
                let end = offset.saturating_add(u64::from(size)).min(inner.size());
                if offset >= end {
                    return Ok(Vec::new());
                }
                (layers(inner.dirty.overlay(offset, end), offset, end), end, change)
            };
            match self.gather(&file, parts, change, attempt > 0).await {
                Ok(mut bytes) => {
                    // Its end may have been cut off since; nobody wrote what a newer map has there.
                    let inner = file.inner.lock();
                    if inner.attributes.is_some() && inner.size() < end {
                        shorten(&mut bytes, inner.size().saturating_sub(offset));
                    }
                    drop(inner);
                    self.look_ahead(&file, offset, end - offset, known.size);
                    return Ok(bytes);
                }
                Err(ReadError::Client(error)) => return Err(error),
                Err(ReadError::Gone) if attempt < MAP_ATTEMPTS_MAX => attempt += 1,
                Err(ReadError::Lost) if attempt == 0 => attempt = MAP_ATTEMPTS_MAX,
                Err(error) => {
                    tracing::error!(%ino, offset, size, %error, "a read failed");
                    return Err(FsError::Io.into());
                }
            }
        }
    }

    async fn gather(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        parts: Vec<Part>,
        change: u64,
        afresh: bool,
    ) -> Result<Vec<Bytes>, ReadError> {
        let mut bytes = Vec::with_capacity(parts.len());
        let mut afresh = afresh;
        for part in parts {
            match part {
                Part::Dirty(dirty) => bytes.push(dirty),
                Part::Committed(start, end) => {
                    let spans = self.spans(file, start, end, change, std::mem::take(&mut afresh)).await?;
                    if let [span] = spans.as_slice() {
                        // Boxed: this future is a part of that of every request.
                        bytes.extend(Box::pin(self.read_span(file, span)).await?);
                        continue;
                    }
                    // All chunks at once: a read that spans several pieces waits for the slowest one only.
                    let read = try_join_all(spans.iter().map(|span| self.read_span(file, span))).await?;
                    bytes.extend(read.into_iter().flatten());
                }
            }
        }
        Ok(bytes)
    }

    async fn read_span(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        span: &Span,
    ) -> Result<Vec<Bytes>, ReadError> {
        let mut parts = Vec::new();
        match &span.source {
            Source::Zero => zeroes(span.length, &mut parts),
            Source::Inline(bytes) => parts.push(bytes.clone()),
            Source::Lost => return Err(ReadError::Lost),
            Source::Chunk { chunk, offset } => {
                let (mut at, end) = (*offset, offset + span.length);
                while at < end {
                    let (bytes, next) = self.read_chunk(file, *chunk, at, end).await?;
                    parts.push(bytes);
                    at = next;
                }
            }
        }
        Ok(parts)
    }

    /// The beginning of a range of a chunk, and where it ends: from what was read ahead, or else from a server.
    async fn read_chunk(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        chunk: ChunkId,
        start: u64,
        end: u64,
    ) -> Result<(Bytes, u64), ReadError> {
        let found = file.inner.lock().readahead.find(chunk, start, end);
        match found {
            Found::Ahead(ahead, stop) => match self.fetch_ahead(&ahead).await {
                Ok(bytes) => {
                    let from = (start - ahead.start) as usize;
                    Ok((bytes.slice(from..from + (stop - start) as usize), stop))
                }
                Err(error) => {
                    file.inner.lock().readahead.drop_failed(&ahead);
                    Err(error)
                }
            },
            Found::Nothing(stop) => {
                let stop = stop.min(start + AHEAD_REQUEST_BYTES_MAX);
                Ok((self.reader.read(chunk, start, stop - start).await?, stop))
            }
        }
    }

    async fn fetch_ahead(&self, ahead: &Ahead) -> Result<Bytes, ReadError> {
        let fetch = || self.reader.read(ahead.chunk, ahead.start, ahead.end - ahead.start);
        ahead.bytes.get_or_init(fetch).await.clone()
    }

    /// Where the committed bytes of a range are. `change`: the value of the file's change counter at which its size was
    /// looked at; an older map has a hole where the file has grown since. `afresh`: what is known turned out to be wrong.
    async fn spans(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        start: u64,
        end: u64,
        change: u64,
        afresh: bool,
    ) -> Result<Vec<Span>, ClientError> {
        let mut missing = if afresh { Some(Unknown(extents::segment_of(start))) } else { None };
        let mut afresh = afresh;
        let mut stale = 0;
        loop {
            if missing.is_none() {
                let inner = file.inner.lock();
                match inner.map.lookup(start, end) {
                    Ok(spans) if inner.map.is_at(change) => return Ok(spans),
                    Ok(_) => missing = Some(Unknown(extents::segment_of(start))),
                    Err(unknown) => missing = Some(unknown),
                }
            }
            let Some(Unknown(first)) = missing.take() else { continue };
            let wanted = (end.div_ceil(SEGMENT_BYTES) - first.0).min(u64::from(u32::MAX)) as u32;
            if self.ask_map(file, first, wanted.max(MAP_SEGMENTS), afresh, stale >= STALE_ANSWERS_MAX).await?
            {
                afresh = false;
            } else {
                stale += 1;
            }
        }
    }

    /// Asks for a part of the map. False if the answer was older than a commit of our own that went through in
    /// the meantime. `hold_commits`: keep commits of this file back until the answer is there.
    async fn ask_map(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        first: SegmentIndex,
        segments: u32,
        afresh: bool,
        hold_commits: bool,
    ) -> Result<bool, ClientError> {
        let _held = if hold_commits { Some(file.commit_stage.lock().await) } else { None };
        let answer = self.metadata.ask(queries::Extents { ino: file.ino, first, segments }).await?;
        let extents = Extents::new(first, answer);
        if extents.covered == 0 {
            tracing::error!(
                ino = %file.ino,
                "a reply with extents covers nothing: this is a bug, please report it"
            );
            return Err(FsError::Io.into());
        }
        self.reader.learn(&extents.chunks);
        let taken = {
            let mut inner = file.inner.lock();
            if hold_commits {
                // It holds all that was committed from here, whatever was thought to be newer.
                inner.attributes = Some(extents.attributes.clone());
                inner.map.clear();
            }
            inner.install(&extents, afresh)
        };
        self.bound_maps();
        Ok(taken)
    }

    /// Plans what to read ahead after a read, and begins with it.
    fn look_ahead(self: &Arc<Self>, file: &Arc<FileState>, offset: u64, length: u64, known_size: u64) {
        let wanted = {
            let mut inner = file.inner.lock();
            let size = inner.attributes.as_ref().map_or(known_size, |attributes| attributes.size);
            inner.readahead.observe(offset, length, size)
        };
        let Some((from, to)) = wanted else { return };
        let (shared, file) = (Arc::clone(self), Arc::clone(file));
        tokio::spawn(async move {
            let (planned, ahead) = match shared.spans(&file, from, to, 0, false).await {
                Ok(spans) => shared.plan(&spans),
                Err(_) => (from, Vec::new()),
            };
            file.inner.lock().readahead.planned(planned, ahead.clone());
            shared.table.reads_ahead(file.ino);
            shared.work.notify_one();
            for range in ahead {
                let (shared, file) = (Arc::clone(&shared), Arc::clone(&file));
                tokio::spawn(async move {
                    // Errors are met again, and told, by whoever wants the bytes.
                    if shared.fetch_ahead(&range).await.is_err() {
                        file.inner.lock().readahead.drop_failed(&range);
                    }
                });
            }
        });
    }

    /// Cuts spans into requests, as far as the budget goes; returns up to where in the file.
    fn plan(&self, spans: &[Span]) -> (u64, Vec<Arc<Ahead>>) {
        let mut requests = Vec::new();
        let mut planned = spans.first().map_or(0, |span| span.offset);
        for span in spans {
            let Source::Chunk { chunk, offset } = span.source else {
                planned = span.offset + span.length;
                continue;
            };
            let step = self.plan_span(chunk, offset, span, &mut requests);
            match step {
                ControlFlow::Continue(end) => planned = end,
                ControlFlow::Break(end) => return (end.max(planned), requests),
            }
        }
        (planned, requests)
    }

    fn plan_span(
        &self,
        chunk: ChunkId,
        offset: u64,
        span: &Span,
        requests: &mut Vec<Arc<Ahead>>,
    ) -> ControlFlow<u64, u64> {
        let (mut at, end) = (offset, offset + span.length);
        while at < end {
            let start = at / BLOCK_BYTES * BLOCK_BYTES;
            let stop = (start + AHEAD_REQUEST_BYTES_MAX).min(end);
            let permits = (stop - start).div_ceil(BUDGET_UNIT_BYTES) as u32;
            let Ok(budget) = Arc::clone(&self.readahead_budget).try_acquire_many_owned(permits) else {
                return ControlFlow::Break(span.offset + (at - offset));
            };
            let file_end = span.offset + (stop - offset);
            requests.push(Arc::new(Ahead::new(chunk, start, stop, file_end, budget)));
            at = stop;
        }
        ControlFlow::Continue(span.offset + span.length)
    }

    /// Lets go of what was read ahead and not asked for. True if there is still some.
    pub fn expire_readahead(&self, now: Instant) -> bool {
        let all = (self.config.readahead_bytes_max / BUDGET_UNIT_BYTES) as usize;
        if self.readahead_budget.available_permits() == all {
            return false;
        }
        self.table.expire_readahead(now);
        true
    }

    /// Keeps the memory of all maps within its limit: those go that were used least recently.
    pub fn bound_maps(&self) {
        let mut total = self.table.map_bytes();
        if total <= self.config.map_bytes_max {
            return;
        }
        let mut files = self.table.all();
        files.sort_by_cached_key(|file| file.last_use.load(Ordering::Relaxed));
        for file in files {
            if total <= self.config.map_bytes_max / 8 * MAP_SHRINK_EIGHTHS {
                break;
            }
            let mut inner = file.inner.lock();
            total = total.saturating_sub(inner.map.cost_bytes());
            inner.map.clear();
        }
    }
}

/// Leaves the first `length` bytes.
fn shorten(parts: &mut Vec<Bytes>, length: u64) {
    let mut left = length as usize;
    parts.retain_mut(|part| {
        part.truncate(left);
        left -= part.len();
        !part.is_empty()
    });
}

/// Cuts a range into what is dirty and the gaps between.
fn layers(dirty: Vec<(u64, Bytes)>, start: u64, end: u64) -> Vec<Part> {
    let mut parts = Vec::with_capacity(dirty.len() * 2 + 1);
    let mut at = start;
    for (offset, bytes) in dirty {
        if offset > at {
            parts.push(Part::Committed(at, offset));
        }
        at = offset + bytes.len() as u64;
        parts.push(Part::Dirty(bytes));
    }
    if at < end {
        parts.push(Part::Committed(at, end));
    }
    parts
}
