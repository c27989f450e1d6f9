//! The answering half of the server: requests in, calls of the store, answers out. It decides nothing.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use atoll_core::ids::{ChunkId, Generation};
use atoll_proto::server::{Handler, PeerInfo, Request, Response};
use atoll_proto::storage::{
    self as wire, ChunkLayout, CopyChunk, DeleteChunk, INVENTORY_PAGE_MAX, IO_BYTES_MAX, Inventory,
    InventoryReply, ReadChunk, ReadChunkReply, ReplicaInfo, Scrub, ScrubReply, SealChunk, ServerStatus,
    ServerStatusReply, StorageError, StorageRequest, SyncChunk, TRIM_RANGES_MAX, TrimChunk, WriteChunk,
    WriteChunkReply,
};
use atoll_proto::{Identity, Role, Status, StatusCode};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tracing::{Instrument, Span, field};

use crate::chunk_file::{BLOCK, Blocks, ChunkError, Layout, Verified, Writer};
use crate::copier::Copier;
use crate::metrics::{Metrics, Outcome, Verb};
use crate::pool::{IoPool, Lane, Place, PoolClosed};
use crate::scrub::{self, SCRUB_PIECE_BLOCKS};
use crate::store::{OpenChunk, Replica, Store};
use crate::sync_group::Ticket;

/// Bytes of chunk data that are being read or written at once, over all connections; more wait.
pub const BYTES_IN_FLIGHT_MAX: usize = 64 << 20;

/// Reads up to this length are answered on the spot if they are cached (bytes): as long as a task may keep others
/// from running.
const INLINE_READ_BYTES_MAX: u32 = 64 << 10;

/// Answers requests.
pub struct StorageService {
    pub(crate) store: Arc<Store>,
    pub(crate) pool: IoPool,
    pub(crate) metrics: Metrics,
    pub(crate) copier: Copier,
    bytes: Semaphore,
    started: Instant,
}

impl StorageService {
    /// A service over a store; `identity` is how it shows itself to the peers that it copies from.
    pub fn new(
        store: Arc<Store>,
        pool: IoPool,
        metrics: Metrics,
        identity: Identity,
        copy_bytes_per_s: u64,
    ) -> Self {
        let copier = Copier::new(store.clone(), pool.clone(), metrics.clone(), identity, copy_bytes_per_s);
        Self {
            store,
            pool,
            metrics,
            copier,
            bytes: Semaphore::new(BYTES_IN_FLIGHT_MAX),
            started: Instant::now(),
        }
    }

    async fn write(&self, request: WriteChunk, body: Bytes) -> Result<Response, Status> {
        if body.len() != request.length as usize || request.length > IO_BYTES_MAX || body.is_empty() {
            let (said, came) = (request.length, body.len());
            return Err(
                StorageError::Invalid(format!("a write of {said} bytes has {came} bytes of data")).into()
            );
        }
        if !request.offset.is_multiple_of(BLOCK) {
            return Err(StorageError::NotAligned(request.offset).into());
        }
        let _bytes = self.bytes_in_flight(body.len()).await?;
        let (store, metrics, length) = (self.store.clone(), self.metrics.clone(), body.len());
        let sync = request.sync;
        let job = move |place| -> Result<(Arc<OpenChunk>, Option<Ticket>), StorageError> {
            let WriteChunk { chunk, generation, offset, checksums, .. } = request;
            let writer = Writer { session: request.writer.session, incarnation: request.writer.incarnation };
            let open = match request.create {
                Some(layout) => store.chunk_or_new(chunk, layout_of(layout), generation, writer),
                None => store.chunk(chunk),
            };
            let open = open.map_err(|error| wire_error(error, None))?;
            let written = store.noting(chunk, open.file.write(generation, writer, offset, &body, &checksums));
            written.map_err(|error| wire_error(error, Some(&open)))?;
            if !sync {
                return Ok((open, None));
            }
            let end = offset + body.len() as u64;
            open.file.sync_covers(generation, Some(end)).map_err(|error| wire_error(error, Some(&open)))?;
            let ticket = ask_and_lead(&store, &metrics, &open, place);
            Ok((open, Some(ticket)))
        };
        let (open, ticket) = self.pool.run(Lane::Write, job).await.map_err(closed)??;
        self.metrics.bytes_written.inc_by(length as u64);
        let durable = ticket.is_some();
        wait_for_sync(&open, ticket).await?;
        Response::to::<WriteChunk>(&WriteChunkReply { durable }, ())
    }

    async fn sync(&self, request: SyncChunk) -> Result<Response, Status> {
        let (store, metrics) = (self.store.clone(), self.metrics.clone());
        let job = move |place| -> Result<(Arc<OpenChunk>, Ticket), StorageError> {
            let open = store.chunk(request.chunk).map_err(|error| wire_error(error, None))?;
            let covers = open.file.sync_covers(request.generation, None);
            store.noting(request.chunk, covers).map_err(|error| wire_error(error, Some(&open)))?;
            let ticket = ask_and_lead(&store, &metrics, &open, place);
            Ok((open, ticket))
        };
        let (open, ticket) = self.pool.run(Lane::Write, job).await.map_err(closed)??;
        wait_for_sync(&open, Some(ticket)).await?;
        Response::to::<SyncChunk>(&(), ())
    }

    /// Serves any generation: what was committed never changes and is verified, here or by the reader, so that a replica
    /// that missed a change can only lack blocks, never have wrong ones.
    ///
    /// A reader that verifies gets the checksums that are stored, and nothing is computed here. If one doesn't fit it asks
    /// again as one that doesn't verify: so what is bad is found, and noted, here.
    ///
    /// A client asks for what the records refer to, and that was on disk before they did. If a sealed replica says that
    /// it was never written, then the replica is damaged (its table of checksums was zeroed), which nothing
    /// else can tell from a gap that the writer left. A server that copies asks for the gaps as well.
    async fn read(&self, request: ReadChunk, asks: Role) -> Result<Response, Status> {
        if request.length == 0 || request.length > IO_BYTES_MAX {
            return Err(StorageError::Invalid(format!("a read of {} bytes", request.length)).into());
        }
        let _bytes = self.bytes_in_flight(request.length as usize).await?;
        let offset = request.offset / BLOCK * BLOCK;
        let verified = if request.reader_verifies { Verified::ByReader } else { Verified::Here };
        // What is cached and short is read on the spot: a change of threads would cost more than the read. Whatever
        // is in the way is found again, and dealt with, on the patient way.
        if request.length <= INLINE_READ_BYTES_MAX
            && let Some(open) = self.store.chunk_if_open(request.chunk)
            && let Ok(Some(blocks)) =
                open.file.read_cached(offset, request.offset - offset + u64::from(request.length), verified)
        {
            return self.blocks_read(offset, blocks);
        }
        let store = self.store.clone();
        let job = move |_place| {
            let open = store.chunk(request.chunk).map_err(|error| wire_error(error, None))?;
            let end = request.offset.saturating_add(request.length.into());
            let read = read_available(&open, offset, end, verified);
            if let (Err(ChunkError::Missing(blocks)), Role::Client(_)) = (&read, asks)
                && open.file.is_sealed()
            {
                store.note_bad(request.chunk, blocks);
            }
            store.noting(request.chunk, read).map_err(|error| wire_error(error, Some(&open)))
        };
        let blocks: Blocks = self.pool.run(Lane::Read, job).await.map_err(closed)??;
        self.blocks_read(offset, blocks)
    }

    fn blocks_read(&self, offset: u64, blocks: Blocks) -> Result<Response, Status> {
        self.metrics.bytes_read.inc_by(blocks.data.len() as u64);
        Response::to::<ReadChunk>(&ReadChunkReply { offset, checksums: blocks.checksums }, blocks.data)
    }

    /// Seals a replica. What is missing below the length is left to the readers of it to report: a writer may
    /// have left gaps that nobody refers to.
    pub(crate) async fn seal(&self, request: SealChunk) -> Result<(), StorageError> {
        let store = self.store.clone();
        let SealChunk { chunk, generation, length } = request;
        let job = move |_place| store.seal(chunk, generation, length).map_err(seal_error);
        let missing = self
            .pool
            .run(Lane::Background, job)
            .await
            .map_err(|error| StorageError::DiskFailed(error.to_string()))??;
        if !missing.is_empty() {
            tracing::debug!(
                %chunk, length, missing = missing.len(),
                "a chunk was sealed with blocks that were never written here"
            );
        }
        Ok(())
    }

    pub(crate) async fn delete(&self, chunk: ChunkId) -> Result<(), StorageError> {
        let store = self.store.clone();
        self.in_background(move || store.delete(chunk)).await.map(drop)
    }

    pub(crate) async fn trim(
        &self,
        chunk: ChunkId,
        ranges: Vec<wire::ChunkRange>,
    ) -> Result<(), StorageError> {
        if ranges.len() > TRIM_RANGES_MAX {
            return Err(StorageError::Invalid(format!("a trim of {} ranges", ranges.len())));
        }
        let ranges: Vec<Range<u64>> =
            ranges.iter().map(|range| range.offset..range.offset.saturating_add(range.length)).collect();
        let store = self.store.clone();
        let bytes = self.in_background(move || store.trim(chunk, &ranges)).await?;
        self.metrics.trimmed_bytes.inc_by(bytes);
        Ok(())
    }

    pub(crate) async fn copy(&self, request: CopyChunk) -> Result<(), StorageError> {
        self.copier.copy(request).await
    }

    pub(crate) async fn scrub(&self, chunk: ChunkId) -> Result<ScrubReply, StorageError> {
        let store = self.store.clone();
        let open = self.in_background(move || store.chunk(chunk)).await?;
        let mut reply = ScrubReply { blocks: 0, bad: Vec::new() };
        let mut next = 0;
        loop {
            let (store, open) = (self.store.clone(), open.clone());
            let piece = self
                .in_background(move || scrub::check_piece(&store, &open, next..next + SCRUB_PIECE_BLOCKS))
                .await?;
            self.metrics.scrubbed_blocks.inc_by(piece.good_blocks);
            reply.blocks += piece.good_blocks + piece.bad.len() as u64;
            reply.bad.extend(piece.bad.iter().map(|block| u64::from(*block)));
            if piece.last {
                return Ok(reply);
            }
            next += SCRUB_PIECE_BLOCKS;
        }
    }

    async fn inventory(&self, request: Inventory) -> Result<Response, Status> {
        let (store, limit) = (self.store.clone(), request.limit.clamp(1, INVENTORY_PAGE_MAX) as usize);
        let job = move |_place| store.list(request.after, limit);
        let (replicas, more) = self.pool.run(Lane::Background, job).await.map_err(closed)?;
        let replicas = replicas.into_iter().map(replica_info).collect();
        Response::to::<Inventory>(&InventoryReply { replicas, more }, ())
    }

    async fn status(&self) -> Result<Response, Status> {
        let store = self.store.clone();
        let space = self.pool.run(Lane::Background, move |_place| store.space()).await.map_err(closed)?;
        let space = space.map_err(|error| StorageError::DiskFailed(error.to_string()))?;
        let reply = ServerStatusReply {
            server: self.store.identity().server,
            capacity: space.capacity_bytes,
            used: space.capacity_bytes.saturating_sub(space.free_bytes),
            free: space.free_bytes,
            chunks: self.store.len() as u64,
            disk_errors: self.store.disk_errors(),
            bad_blocks: self.store.bad_blocks(),
            uptime_s: self.started.elapsed().as_secs(),
        };
        Response::to::<ServerStatus>(&reply, ())
    }

    async fn in_background<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, ChunkError> + Send + 'static,
    ) -> Result<T, StorageError> {
        match self.pool.run(Lane::Background, move |_place| job()).await {
            Ok(result) => result.map_err(|error| wire_error(error, None)),
            Err(PoolClosed) => Err(StorageError::DiskFailed(PoolClosed.to_string())),
        }
    }

    async fn bytes_in_flight(&self, bytes: usize) -> Result<tokio::sync::SemaphorePermit<'_>, Status> {
        self.bytes.acquire_many(bytes as u32).await.map_err(|_| closed(PoolClosed))
    }

    async fn answer(&self, request: StorageRequest, body: Bytes, asks: Role) -> Result<Response, Status> {
        match request {
            StorageRequest::Write(request) => self.write(request, body).await,
            StorageRequest::Sync(request) => self.sync(request).await,
            StorageRequest::Read(request) => self.read(request, asks).await,
            StorageRequest::Seal(request) => {
                self.seal(request).await?;
                Response::to::<SealChunk>(&(), ())
            }
            StorageRequest::Delete(request) => {
                self.delete(request.chunk).await?;
                Response::to::<DeleteChunk>(&(), ())
            }
            StorageRequest::Trim(request) => {
                self.trim(request.chunk, request.ranges).await?;
                Response::to::<TrimChunk>(&(), ())
            }
            StorageRequest::Copy(request) => {
                self.copy(request).await?;
                Response::to::<CopyChunk>(&(), ())
            }
            StorageRequest::Inventory(request) => self.inventory(request).await,
            StorageRequest::Scrub(request) => Response::to::<Scrub>(&self.scrub(request.chunk).await?, ()),
            StorageRequest::Status(_) => self.status().await,
        }
    }
}

impl Handler for StorageService {
    async fn handle(&self, peer: &PeerInfo, request: Request) -> Result<Response, Status> {
        let decoded = StorageRequest::decode(&request);
        let verb = decoded.as_ref().map_or(Verb::Unknown, verb_of);
        let result = match decoded {
            Ok(_) if !may(peer.remote.role, verb) => Err(Status::new(
                StatusCode::Forbidden,
                format!("{} isn't allowed to send this request to a storage server", peer.remote.role),
            )),
            Ok(decoded) => {
                let span = span(verb, &decoded);
                self.answer(decoded, request.body, peer.remote.role).instrument(span).await
            }
            Err(status) => Err(status),
        };
        self.metrics.answered(verb, if result.is_ok() { Outcome::Ok } else { Outcome::Refused });
        result
    }

    fn reply_bytes(&self, request: &Request) -> usize {
        if request.kind != <ReadChunk as atoll_proto::Rpc>::KIND {
            return 0;
        }
        // The blocks around the range: one more at either end.
        request
            .decode::<ReadChunk>()
            .map_or(0, |read| read.length.min(IO_BYTES_MAX) as usize + 2 * BLOCK as usize)
    }
}

/// Who may ask for what: a client writes and reads; what ends or moves a replica follows from a committed entry, so
/// it comes from the metadata service (or an administrator).
fn may(role: Role, verb: Verb) -> bool {
    match verb {
        Verb::Write | Verb::Sync | Verb::Read | Verb::Status | Verb::Unknown => true,
        Verb::Seal | Verb::Delete | Verb::Trim | Verb::Copy | Verb::Inventory | Verb::Scrub => match role {
            Role::Metadata(_) | Role::Admin => true,
            Role::Storage(_) | Role::Client(_) => false,
        },
    }
}

/// See docs/tracing.md.
fn span(verb: Verb, request: &StorageRequest) -> Span {
    tracing::debug_span!(
        target: "atoll::trace",
        "storage",
        op = verb.name(),
        chunk = chunk_of(request).map(field::display),
        generation = generation_of(request).map(|generation| generation.0)
    )
}

fn chunk_of(request: &StorageRequest) -> Option<ChunkId> {
    match request {
        StorageRequest::Write(request) => Some(request.chunk),
        StorageRequest::Sync(request) => Some(request.chunk),
        StorageRequest::Read(request) => Some(request.chunk),
        StorageRequest::Seal(request) => Some(request.chunk),
        StorageRequest::Delete(request) => Some(request.chunk),
        StorageRequest::Trim(request) => Some(request.chunk),
        StorageRequest::Copy(request) => Some(request.chunk),
        StorageRequest::Scrub(request) => Some(request.chunk),
        StorageRequest::Inventory(_) | StorageRequest::Status(_) => None,
    }
}

/// Of requests of clients: the servers' own are about all of them, or name another one.
fn generation_of(request: &StorageRequest) -> Option<Generation> {
    match request {
        StorageRequest::Write(request) => Some(request.generation),
        StorageRequest::Sync(request) => Some(request.generation),
        StorageRequest::Read(request) => Some(request.generation),
        _ => None,
    }
}

fn verb_of(request: &StorageRequest) -> Verb {
    match request {
        StorageRequest::Write(_) => Verb::Write,
        StorageRequest::Sync(_) => Verb::Sync,
        StorageRequest::Read(_) => Verb::Read,
        StorageRequest::Seal(_) => Verb::Seal,
        StorageRequest::Delete(_) => Verb::Delete,
        StorageRequest::Trim(_) => Verb::Trim,
        StorageRequest::Copy(_) => Verb::Copy,
        StorageRequest::Inventory(_) => Verb::Inventory,
        StorageRequest::Scrub(_) => Verb::Scrub,
        StorageRequest::Status(_) => Verb::Status,
    }
}

/// Asks for a sync, and leads it if nobody does. The place goes on to the next sync if others asked meanwhile, so
/// that this caller is answered at once.
fn ask_and_lead(store: &Arc<Store>, metrics: &Metrics, open: &Arc<OpenChunk>, place: Place) -> Ticket {
    metrics.syncs_asked.inc();
    let ticket = open.syncs.ask();
    if matches!(ticket, Ticket::Lead(_)) && lead_once(store, metrics, open) {
        let (store, metrics, open) = (store.clone(), metrics.clone(), open.clone());
        IoPool::go_on(place, move || while lead_once(&store, &metrics, &open) {});
    }
    ticket
}

fn lead_once(store: &Store, metrics: &Metrics, open: &OpenChunk) -> bool {
    metrics.syncs_made.inc();
    open.syncs.lead(|| store.noting(open.file.chunk(), open.file.sync()))
}

async fn wait_for_sync(open: &OpenChunk, ticket: Option<Ticket>) -> Result<(), StorageError> {
    match ticket {
        Some(ticket) => {
            open.syncs.wait(ticket).await.map_err(|error| StorageError::DiskFailed(error.to_string()))
        }
        None => Ok(()),
    }
}

/// Reads as far as the chunk goes; past its end is an error only if nothing is left.
fn read_available(open: &OpenChunk, offset: u64, end: u64, verified: Verified) -> Result<Blocks, ChunkError> {
    let end = end.min(open.file.capacity());
    if offset >= end {
        return Err(ChunkError::Missing(vec![offset / BLOCK]));
    }
    match open.file.read(offset, end - offset, verified) {
        Err(ChunkError::Missing(blocks)) => match blocks.first() {
            Some(first) if *first > offset / BLOCK => {
                open.file.read(offset, first * BLOCK - offset, verified)
            }
            _ => Err(ChunkError::Missing(blocks)),
        },
        other => other,
    }
}

fn layout_of(layout: ChunkLayout) -> Layout {
    match layout {
        ChunkLayout::Small => Layout::Small,
        ChunkLayout::Stream => Layout::Stream,
    }
}

pub(crate) fn replica_info(replica: Replica) -> ReplicaInfo {
    let Replica { chunk, generation, length, sealed, bad } = replica;
    ReplicaInfo { chunk, generation, length, sealed, bad }
}

fn closed(error: PoolClosed) -> Status {
    Status::new(StatusCode::ShuttingDown, error.to_string())
}

/// The one place where errors of a replica become errors on the wire.
pub(crate) fn wire_error(error: ChunkError, open: Option<&OpenChunk>) -> StorageError {
    let info = || open.and_then(|open| open.file.info().ok());
    match error {
        ChunkError::NotFound => StorageError::NoSuchChunk,
        ChunkError::BadRange { offset, .. } if !offset.is_multiple_of(BLOCK) => {
            StorageError::NotAligned(offset)
        }
        ChunkError::BadRange { .. } | ChunkError::BadCapacity(_) => StorageError::Invalid(error.to_string()),
        ChunkError::BadChecksums(blocks) | ChunkError::Corrupt(blocks) => StorageError::Corrupt { blocks },
        ChunkError::StaleGeneration { current } => StorageError::StaleGeneration { have: current },
        ChunkError::OtherWriter { session, incarnation } => {
            StorageError::StaleWriter { have: wire::Writer { session, incarnation } }
        }
        ChunkError::Sealed { length } => StorageError::PastSeal { length },
        ChunkError::Overwrite { block } => {
            let high_water = info().map_or((block + 1) * BLOCK, |info| info.written_bytes);
            StorageError::BelowHighWater { high_water }
        }
        // It lacks what its writer takes for written: it can't follow any more.
        ChunkError::Behind { .. } => {
            StorageError::OutdatedReplica { have: info().map(|info| info.generation).unwrap_or_default() }
        }
        ChunkError::Missing(blocks) => {
            StorageError::PastSeal { length: blocks.first().map_or(0, |block| block * BLOCK) }
        }
        ChunkError::Gone(_) => StorageError::Gone,
        ChunkError::Damaged(_) => StorageError::Corrupt { blocks: Vec::new() },
        ChunkError::Suspect | ChunkError::Io(_) => StorageError::DiskFailed(error.to_string()),
        ChunkError::NoSpace => StorageError::DiskFull,
    }
}

/// As [`wire_error`], for a seal: the chunk is sealed otherwise.
fn seal_error(error: ChunkError) -> StorageError {
    match error {
        ChunkError::Sealed { length } => StorageError::SealMismatch { length },
        other => wire_error(other, None),
    }
}
