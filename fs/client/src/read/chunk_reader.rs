//! Reading from chunks: from the nearest replica, verified, and from another one if that fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_core::ids::{ChunkId, ServerId};
use atoll_core::limits::BLOCK_BYTES;
use atoll_proto::checksum::{self, ChecksumError};
use atoll_proto::metadata::ChunkInfo;
use atoll_proto::queries;
use atoll_proto::storage::{IO_BYTES_MAX, ReadChunk, StorageError};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metadata::{ClientError, Metadata};
use crate::storage_pool::{Storage, StorageFailure};

/// Replica sets that are remembered. Beyond this all are forgotten and asked for again as they are needed.
pub const CHUNKS_KNOWN_MAX: usize = 65_536;
/// After this long without an answer another replica is asked as well.
pub const HEDGE_AFTER: Duration = Duration::from_millis(500);
/// How long one replica may take to answer.
pub const READ_DEADLINE: Duration = Duration::from_secs(10);
/// Pauses between rounds through all replicas, from the first to the longest.
const RETRY_BACKOFF_MIN: Duration = Duration::from_millis(50);
const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Blocks that share a preference among equally near replicas: 4 MiB, so that a stream uses all of them and a
/// small read finds what another one has brought into the server's cache.
const SPREAD_BLOCKS: u64 = 1024;

/// Why bytes of a chunk can't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The map that named them is old.
    #[error("the extent has moved")]
    Gone,
    /// No replica has them.
    #[error("no replica has the bytes intact")]
    Lost,
    /// The cluster.
    #[error("{0}")]
    Client(#[from] ClientError),
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct ReadCounters {
    /// Replicas that answered with bytes that don't have their checksum.
    pub bad_replicas: AtomicU64,
    /// Reads that another replica had to serve.
    pub failovers: AtomicU64,
    /// Bytes read from storage servers.
    pub bytes: AtomicU64,
}

/// See the module.
pub struct ChunkReader<M> {
    metadata: Arc<M>,
    storage: Arc<dyn Storage>,
    chunks: Mutex<HashMap<ChunkId, Arc<ChunkInfo>>>,
    timeout: Option<Duration>,
    counters: ReadCounters,
}

/// A range of a chunk: its first block's first byte, the end of its last block, the end of what is needed.
type BlockRange = (u64, u64, u64);

/// How one replica's answer was.
enum Attempt {
    Good(Bytes),
    /// The range was trimmed.
    Gone,
    /// This replica doesn't have it, and won't by being asked again.
    Bad,
    /// This replica may have it later.
    Away,
}

impl<M: Metadata> ChunkReader<M> {
    /// `timeout`: when to give up on servers that are away; never, if `None`.
    #[must_use]
    pub fn new(metadata: Arc<M>, storage: Arc<dyn Storage>, timeout: Option<Duration>) -> Self {
        let chunks = Mutex::default();
        ChunkReader { metadata, storage, chunks, timeout, counters: ReadCounters::default() }
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> &ReadCounters {
        &self.counters
    }

    /// Remembers replica sets that came with an answer.
    pub fn learn(&self, infos: &[ChunkInfo]) {
        if infos.is_empty() {
            return;
        }
        let mut chunks = self.chunks.lock();
        if chunks.len() + infos.len() > CHUNKS_KNOWN_MAX {
            chunks.clear();
        }
        for info in infos {
            match chunks.get(&info.chunk) {
                Some(known) if known.generation > info.generation || **known == *info => {}
                _ => {
                    chunks.insert(info.chunk, Arc::new(info.clone()));
                }
            }
        }
    }

    async fn replicas(&self, chunk: ChunkId, afresh: bool) -> Result<Arc<ChunkInfo>, ReadError> {
        if !afresh && let Some(known) = self.chunks.lock().get(&chunk) {
            return Ok(Arc::clone(known));
        }
        let found = self.metadata.ask(queries::Chunks { chunks: vec![chunk] }).await?;
        let Some(info) = found.into_iter().find(|info| info.chunk == chunk) else {
            self.chunks.lock().remove(&chunk);
            return Err(ReadError::Gone);
        };
        let info = Arc::new(info);
        self.chunks.lock().insert(chunk, Arc::clone(&info));
        Ok(info)
    }

    /// Reads a range of a chunk, at most [`IO_BYTES_MAX`] less two blocks.
    ///
    /// # Errors
    /// See [`ReadError`]. Servers that are away are waited for.
    pub async fn read(&self, chunk: ChunkId, offset: u64, length: u64) -> Result<Bytes, ReadError> {
        let started = Instant::now();
        let start = offset / BLOCK_BYTES * BLOCK_BYTES;
        let end = (offset + length).next_multiple_of(BLOCK_BYTES);
        debug_assert!(end - start <= u64::from(IO_BYTES_MAX));
        let mut pause = RETRY_BACKOFF_MIN;
        let mut info = self.replicas(chunk, false).await?;
        let mut asked_again = false;
        loop {
            match self.round(&info, (start, end, offset + length)).await {
                Attempt::Good(blocks) => {
                    self.counters.bytes.fetch_add(blocks.len() as u64, Ordering::Relaxed);
                    return Ok(blocks.slice((offset - start) as usize..(offset - start + length) as usize));
                }
                Attempt::Gone => return Err(ReadError::Gone),
                Attempt::Bad if asked_again => return Err(ReadError::Lost),
                Attempt::Bad => asked_again = true,
                Attempt::Away => {
                    if self.timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
                        return Err(ClientError::TimedOut.into());
                    }
                    tracing::warn!(
                        %chunk,
                        "no replica of a chunk can be reached; reads wait until a storage server responds"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_BACKOFF_MAX);
                }
            }
            // The chunk may have other replicas by now.
            info = self.replicas(chunk, true).await?;
        }
    }

    /// Asks one replica after the other; the next one too when the one before takes long.
    async fn round(&self, info: &ChunkInfo, range: BlockRange) -> Attempt {
        let order = self.order(info, range.0);
        let Some((first, others)) = order.split_first() else { return Attempt::Bad };
        // Nearly always one is asked and answers: that takes no collection of futures.
        let first = self.attempt(*first, info, range);
        tokio::pin!(first);
        if others.is_empty() {
            return first.await;
        }
        let early = tokio::time::timeout(HEDGE_AFTER, first.as_mut()).await;
        let mut worst = Attempt::Bad;
        let mut asked: FuturesUnordered<BoxFuture<'_, Attempt>> = FuturesUnordered::new();
        match early {
            Ok(Attempt::Good(blocks)) => return Attempt::Good(blocks),
            Ok(Attempt::Gone) => return Attempt::Gone,
            Ok(Attempt::Away) => worst = Attempt::Away,
            Ok(Attempt::Bad) => {}
            Err(_) => asked.push(Box::pin(first)),
        }
        let mut next = others.iter();
        loop {
            // Here none has answered in time, or all that have don't have it.
            if let Some(server) = next.next() {
                self.counters.failovers.fetch_add(1, Ordering::Relaxed);
                asked.push(Box::pin(self.attempt(*server, info, range)));
            }
            loop {
                let answer = if next.len() > 0 {
                    match tokio::time::timeout(HEDGE_AFTER, asked.next()).await {
                        Ok(answer) => answer,
                        Err(_) => break,
                    }
                } else {
                    asked.next().await
                };
                match answer {
                    Some(Attempt::Good(blocks)) => return Attempt::Good(blocks),
                    Some(Attempt::Gone) => return Attempt::Gone,
                    Some(Attempt::Away) => worst = Attempt::Away,
                    Some(Attempt::Bad) => {}
                    None if next.len() == 0 => return worst,
                    None => break,
                }
            }
        }
    }

    /// The nearest first; of equally near ones each serves its share; those that don't answer come last.
    fn order(&self, info: &ChunkInfo, start: u64) -> Vec<ServerId> {
        let share = info.chunk.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (start / BLOCK_BYTES / SPREAD_BLOCKS);
        let mut order: Vec<(bool, u32, u64, ServerId)> = info
            .replicas
            .iter()
            .map(|server| {
                let (failing, distance) = self.storage.standing(*server);
                let mixed = (server.0 ^ share).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 16;
                (failing, distance, mixed, *server)
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(.., server)| server).collect()
    }

    /// What is read is verified here, once. If it is wrong the server is asked again and told to look itself: what it
    /// finds on its disk it reports, so that the replica is repaired; what happened on the way is right the second time.
    async fn attempt(&self, server: ServerId, info: &ChunkInfo, range: BlockRange) -> Attempt {
        match self.attempt_once(server, info, range, true).await {
            Ok(attempt) => attempt,
            Err(wrong) => {
                tracing::warn!(
                    %server, chunk = %info.chunk, %wrong,
                    "a replica's reply doesn't verify; asking the storage server to verify it"
                );
                match self.attempt_once(server, info, range, false).await {
                    Ok(attempt) => attempt,
                    Err(wrong) => self.bad(server, info.chunk, &wrong.to_string()),
                }
            }
        }
    }

    /// `Err`: what came doesn't have its checksums.
    async fn attempt_once(
        &self,
        server: ServerId,
        info: &ChunkInfo,
        (start, end, needed): BlockRange,
        reader_verifies: bool,
    ) -> Result<Attempt, ChecksumError> {
        let (chunk, generation) = (info.chunk, info.generation);
        let length = (end - start) as u32;
        let request = ReadChunk { chunk, generation, offset: start, length, reader_verifies };
        let (reply, body) = match self.storage.read(server, request, READ_DEADLINE).await {
            Ok(answer) => answer,
            Err(failure) => return Ok(self.judge(server, chunk, &failure)),
        };
        // The chunk's last block may come without its padding.
        if reply.offset != start || (body.len() as u64) < needed - start {
            return Ok(self.bad(server, chunk, "its reply has another range"));
        }
        let body = body.slice(..body.len().min((end - start) as usize));
        let blocks = checksum::blocks_of(body.len() as u64) as usize;
        let sums = reply.checksums.get(..blocks).unwrap_or(&reply.checksums);
        match checksum::verify(chunk, start / BLOCK_BYTES, &body, sums) {
            Err(wrong) if !atoll_faults::planted("read-unverified") => Err(wrong),
            _ => Ok(Attempt::Good(body)),
        }
    }

    fn bad(&self, server: ServerId, chunk: ChunkId, why: &str) -> Attempt {
        self.counters.bad_replicas.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%server, %chunk, why, "a replica is corrupt; reading another one");
        Attempt::Bad
    }

    fn judge(&self, server: ServerId, chunk: ChunkId, failure: &StorageFailure) -> Attempt {
        match failure {
            StorageFailure::Refused(StorageError::Gone) => Attempt::Gone,
            StorageFailure::Refused(StorageError::Corrupt { .. }) => {
                self.bad(server, chunk, &failure.to_string())
            }
            StorageFailure::Refused(refusal) => {
                tracing::warn!(%server, %chunk, %refusal, "a replica can't be read; trying another one");
                Attempt::Bad
            }
            StorageFailure::Unreachable(why) => {
                tracing::debug!(%server, %chunk, why, "a replica can't be reached; trying another one");
                Attempt::Away
            }
            StorageFailure::Broken(why) => self.bad(server, chunk, why),
        }
    }
}
