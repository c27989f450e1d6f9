//! Storage servers in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use atoll_core::ids::{ChunkId, Generation, ServerId};
use atoll_core::limits::BLOCK_BYTES;
use atoll_proto::storage::{ReadChunk, ReadChunkReply, StorageError, WriteChunk};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::storage_pool::{Storage, StorageFailure};

type Blocks = BTreeMap<u64, (Bytes, u32)>;

/// Servers that keep everything and never fail. (Nothing is ever trimmed or deleted.)
#[derive(Default)]
pub struct MemStorage(Mutex<HashMap<(ServerId, ChunkId), Blocks>>);

impl MemStorage {
    /// Empty.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn put(&self, server: ServerId, request: &WriteChunk, data: &Bytes) {
        let mut chunks = self.0.lock();
        let blocks = chunks.entry((server, request.chunk)).or_default();
        let first = request.offset / BLOCK_BYTES;
        for (at, sum) in request.checksums.iter().enumerate() {
            let start = at * BLOCK_BYTES as usize;
            let mut block = data[start..data.len().min(start + BLOCK_BYTES as usize)].to_vec();
            block.resize(BLOCK_BYTES as usize, 0);
            blocks.insert(first + at as u64, (block.into(), *sum));
        }
    }

    fn get(&self, server: ServerId, request: &ReadChunk) -> Result<(ReadChunkReply, Bytes), StorageFailure> {
        let chunks = self.0.lock();
        let missing = || StorageFailure::Refused(StorageError::NoSuchChunk);
        let blocks = chunks.get(&(server, request.chunk)).ok_or_else(missing)?;
        let first = request.offset / BLOCK_BYTES;
        let end = (request.offset + u64::from(request.length)).div_ceil(BLOCK_BYTES);
        let (mut body, mut checksums) = (Vec::new(), Vec::new());
        for number in first..end {
            let (bytes, sum) = blocks.get(&number).ok_or_else(missing)?;
            body.extend_from_slice(bytes);
            checksums.push(*sum);
        }
        Ok((ReadChunkReply { offset: first * BLOCK_BYTES, checksums }, body.into()))
    }
}

impl Storage for MemStorage {
    fn write<'a>(
        &'a self,
        server: ServerId,
        request: &'a WriteChunk,
        body: Vec<Bytes>,
        _deadline: Duration,
    ) -> BoxFuture<'a, Result<(), StorageFailure>> {
        async move {
            self.put(server, request, &body.concat().into());
            Ok(())
        }
        .boxed()
    }

    fn sync(
        &self,
        _server: ServerId,
        _chunk: ChunkId,
        _generation: Generation,
        _deadline: Duration,
    ) -> BoxFuture<'_, Result<(), StorageFailure>> {
        std::future::ready(Ok(())).boxed()
    }

    fn read(
        &self,
        server: ServerId,
        request: ReadChunk,
        _deadline: Duration,
    ) -> BoxFuture<'_, Result<(ReadChunkReply, Bytes), StorageFailure>> {
        std::future::ready(self.get(server, &request)).boxed()
    }

    fn suspect(&self, _server: ServerId) {}

    fn failing(&self) -> Vec<ServerId> {
        Vec::new()
    }

    fn failing_for(&self, _server: ServerId) -> Option<Duration> {
        None
    }

    fn distance(&self, _server: ServerId) -> u32 {
        0
    }
}
