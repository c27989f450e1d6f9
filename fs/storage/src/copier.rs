//! Makes a replica of a sealed chunk from its peers.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use atoll_blocking::Pace;
use atoll_proto::storage::{CopyChunk, CopySource, ReadChunk, ReadChunkReply, StorageError};
use atoll_proto::{Address, ConnectOptions, Connection, Identity, Role, RpcError};
use bytes::Bytes;

use crate::chunk_file::{BLOCK, ChunkError};
use crate::metrics::Metrics;
use crate::pool::{IoPool, Lane};
use crate::service::wire_error;
use crate::store::{CopyTarget, Store};

/// Blocks asked for at once: 1 MiB.
const PIECE_BLOCKS: u64 = 256;
/// How long a peer may take to answer one read.
const READ_DEADLINE: Duration = Duration::from_secs(20);

/// Copies chunks from peers.
pub(crate) struct Copier {
    store: Arc<Store>,
    pool: IoPool,
    metrics: Metrics,
    identity: Identity,
    pace: Pace,
}

/// A peer that has a replica.
struct Source {
    place: CopySource,
    connection: Option<Connection>,
    /// It can't be reached, or has no replica: not asked again.
    given_up: bool,
    /// It can't be reached, so nobody knows what it has.
    unreachable: bool,
}

/// What the sources say of a range that none of them gives.
#[derive(Default)]
struct Refusals {
    gone: bool,
    unwritten: bool,
    failed: Option<String>,
}

impl Copier {
    pub(crate) fn new(
        store: Arc<Store>,
        pool: IoPool,
        metrics: Metrics,
        identity: Identity,
        bytes_per_s: u64,
    ) -> Self {
        Self { store, pool, metrics, identity, pace: Pace::new(bytes_per_s) }
    }

    /// Copies piece by piece; every block is verified when it comes, and one that a source doesn't have whole is
    /// taken from another. Blocks that were trimmed at the sources are trimmed here, and such that were never
    /// written anywhere stay so. The replica appears when all of it is on disk.
    pub(crate) async fn copy(&self, request: CopyChunk) -> Result<(), StorageError> {
        let CopyChunk { chunk, generation, length, from } = request;
        let store = self.store.clone();
        let begun = self.job(move || store.begin_copy(chunk, generation, length)).await?;
        let Some(mut target) = begun else { return Ok(()) };
        let ours = self.store.identity().server;
        let mut sources: Vec<Source> = from
            .into_iter()
            .filter(|place| place.server != ours)
            .map(|place| Source { place, connection: None, given_up: false, unreachable: false })
            .collect();
        let blocks = length.div_ceil(BLOCK);
        for first in (0..blocks).step_by(PIECE_BLOCKS as usize) {
            let piece = first..blocks.min(first + PIECE_BLOCKS);
            self.pace.take((piece.end - piece.start) * BLOCK).await;
            target = self.copy_piece(&request_of(chunk, generation), piece, &mut sources, target).await?;
        }
        self.job(move || target.finish()).await
    }

    async fn copy_piece(
        &self,
        request: &ReadChunk,
        piece: Range<u64>,
        sources: &mut [Source],
        mut target: CopyTarget,
    ) -> Result<CopyTarget, StorageError> {
        // What no source gives as a whole is cut in halves, down to the block that is the trouble.
        let mut ranges = vec![piece];
        while let Some(range) = ranges.pop() {
            let mut refusals = Refusals::default();
            let mut filled = false;
            for source in sources.iter_mut().filter(|source| !source.given_up) {
                let request = ReadChunk {
                    offset: range.start * BLOCK,
                    length: ((range.end - range.start) * BLOCK) as u32,
                    ..request.clone()
                };
                let (reply, body) = match self.read(source, &request).await {
                    Ok(read) => read,
                    Err(error) => {
                        refusals.note(error);
                        continue;
                    }
                };
                if reply.offset != request.offset || body.len() != request.length as usize {
                    // The source's chunk ends before: what it lacks shows when the range is cut.
                    refusals.unwritten = true;
                    continue;
                }
                let offset = request.offset;
                let (back, result) = self
                    .job(move || {
                        let result = target.fill(offset, &body, &reply.checksums);
                        Ok((target, result))
                    })
                    .await?;
                target = back;
                match result {
                    Ok(()) => {
                        self.metrics.copied_bytes.inc_by(u64::from(request.length));
                        filled = true;
                        break;
                    }
                    Err(ChunkError::BadChecksums(blocks)) => {
                        refusals.failed =
                            Some(format!("{} sent corrupt blocks {blocks:?}", source.place.server));
                    }
                    Err(error) => return Err(wire_error(error, None)),
                }
            }
            if filled {
                continue;
            }
            if sources.iter().all(|source| source.given_up) {
                let reason = refusals.failed.unwrap_or_else(|| "none can be reached".to_owned());
                return Err(StorageError::NoGoodSource(reason));
            }
            if range.end - range.start > 1 {
                let middle = range.start + (range.end - range.start) / 2;
                ranges.push(middle..range.end);
                ranges.push(range.start..middle);
            } else if refusals.gone {
                target.trimmed(range.start);
            } else if let Some(reason) = refusals.failed {
                return Err(StorageError::NoGoodSource(format!("block {}: {reason}", range.start)));
            } else if let Some(source) = sources.iter().find(|source| source.unreachable) {
                let (block, server) = (range.start, source.place.server);
                return Err(StorageError::NoGoodSource(format!(
                    "block {block}: only storage server {server} may have it"
                )));
            }
            // Else every source says that it was never written.
        }
        Ok(target)
    }

    async fn read(
        &self,
        source: &mut Source,
        request: &ReadChunk,
    ) -> Result<(ReadChunkReply, Bytes), RpcError> {
        // A connection that was lost is made once more.
        for attempt in 0..2 {
            let connection = match source.connection.clone() {
                Some(connection) => connection,
                None => match self.connect(&source.place).await {
                    Ok(connection) => source.connection.insert(connection).clone(),
                    Err(reason) => {
                        (source.given_up, source.unreachable) = (true, true);
                        return Err(RpcError::NotSent { reason });
                    }
                },
            };
            match connection.call_within::<ReadChunk>(request, (), READ_DEADLINE).await {
                Err(error) if error.is_transport() => {
                    source.connection = None;
                    if attempt == 1 {
                        (source.given_up, source.unreachable) = (true, true);
                        return Err(error);
                    }
                }
                Err(error) => {
                    source.given_up = matches!(error.typed(), Some(StorageError::NoSuchChunk));
                    return Err(error);
                }
                Ok(read) => return Ok(read),
            }
        }
        Err(RpcError::NotSent { reason: "the connection was lost twice".to_owned() })
    }

    async fn connect(&self, place: &CopySource) -> Result<Connection, String> {
        let address: Address = place.address.parse().map_err(|error| format!("{error}"))?;
        let options = ConnectOptions::new(self.identity.clone()).expecting(Role::Storage(place.server));
        Connection::connect(&address, &options).await.map_err(|error| error.to_string())
    }

    async fn job<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, ChunkError> + Send + 'static,
    ) -> Result<T, StorageError> {
        match self.pool.run(Lane::Background, move |_place| job()).await {
            Ok(result) => result.map_err(|error| wire_error(error, None)),
            Err(closed) => Err(StorageError::DiskFailed(closed.to_string())),
        }
    }
}

impl Refusals {
    fn note(&mut self, error: RpcError) {
        match error.typed::<StorageError>() {
            Some(StorageError::Gone) => self.gone = true,
            Some(StorageError::PastSeal { .. }) => self.unwritten = true,
            _ => self.failed = Some(error.to_string()),
        }
    }
}

fn request_of(chunk: atoll_core::ids::ChunkId, generation: atoll_core::ids::Generation) -> ReadChunk {
    ReadChunk { chunk, generation, offset: 0, length: 0, reader_verifies: false }
}
