//! A cluster in memory for tests: the real records and commands behind [`Metadata`], storage servers that can
//! be slow, silent, full, damaged or cut from power behind [`Storage`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_core::attributes::{Attributes, Timestamp};
use atoll_core::commands::{ClientOp, Command, INTERNAL, NewPlace, Op, Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{ChunkId, ClusterId, Generation, InodeId, ROOT, ServerId, SessionId, SlotId};
use atoll_core::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use atoll_core::namespace::{Txn, execute};
use atoll_core::query;
use atoll_core::records::{Place, VolumeConfig};
use atoll_core::store::MemStore;
use atoll_proto::checksum;
use atoll_proto::metadata::{Answer, ChunkInfo, FileExtents, MappedPiece, PieceData, Query};
use atoll_proto::queries;
use atoll_proto::storage::{ReadChunk, ReadChunkReply, StorageError, WriteChunk};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::metadata::{ClientError, Metadata};
use crate::storage_pool::{Storage, StorageFailure};

/// How a fake server behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    /// Connections are refused.
    Down,
    /// It takes everything and answers nothing.
    Silent,
    /// Its disk is full.
    Full,
    /// What it reads has a flipped bit.
    Corrupt,
    /// What it sends has one, the first time.
    CorruptOnTheWay,
}

#[derive(Clone)]
struct Block {
    bytes: Bytes,
    checksum: u32,
    synced: bool,
}

#[derive(Default)]
struct Server {
    mood: Mood,
    blocks: HashMap<ChunkId, BTreeMap<u64, Block>>,
    trimmed: HashSet<(ChunkId, u64)>,
    failing_since: Option<tokio::time::Instant>,
}

/// Storage servers 1 to `count`.
pub struct FakeStorage {
    servers: Mutex<BTreeMap<ServerId, Server>>,
    /// Every call takes this long.
    pub delay: Mutex<Duration>,
    pub reads: AtomicU64,
    /// Reads in which a server has found its own replica corrupt.
    pub found_corrupt: AtomicU64,
}

impl FakeStorage {
    pub fn new(count: u64) -> Arc<Self> {
        let servers = (1..=count).map(|id| (ServerId(id), Server::default())).collect();
        Arc::new(FakeStorage {
            servers: Mutex::new(servers),
            delay: Mutex::new(Duration::ZERO),
            reads: AtomicU64::new(0),
            found_corrupt: AtomicU64::new(0),
        })
    }

    pub fn set_mood(&self, server: u64, mood: Mood) {
        self.servers.lock().get_mut(&ServerId(server)).unwrap().mood = mood;
    }

    pub fn is_well(&self, server: ServerId) -> bool {
        self.servers.lock()[&server].mood == Mood::Well
    }

    /// Every server forgets what it hasn't synced.
    pub fn cut_power(&self) {
        for server in self.servers.lock().values_mut() {
            for blocks in server.blocks.values_mut() {
                blocks.retain(|_, block| block.synced);
            }
        }
    }

    /// Gives all blocks of a chunk back.
    pub fn trim(&self, chunk: ChunkId) {
        for server in self.servers.lock().values_mut() {
            let gone: Vec<u64> =
                server.blocks.remove(&chunk).into_iter().flatten().map(|(block, _)| block).collect();
            server.trimmed.extend(gone.into_iter().map(|block| (chunk, block)));
        }
    }

    /// The synced bytes of a range on one server; `None` if some aren't.
    pub fn durable(&self, server: ServerId, chunk: ChunkId, offset: u64, length: u64) -> Option<Vec<u8>> {
        let servers = self.servers.lock();
        let blocks = servers[&server].blocks.get(&chunk)?;
        let mut bytes = Vec::new();
        for number in offset / BLOCK_BYTES..(offset + length).div_ceil(BLOCK_BYTES) {
            let block = blocks.get(&number).filter(|block| block.synced)?;
            bytes.extend_from_slice(&block.bytes);
            bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        }
        let skip = (offset % BLOCK_BYTES) as usize;
        Some(bytes[skip..skip + length as usize].to_vec())
    }

    pub fn chunks(&self) -> Vec<ChunkId> {
        let servers = self.servers.lock();
        let all: std::collections::BTreeSet<_> =
            servers.values().flat_map(|s| s.blocks.keys().copied()).collect();
        all.into_iter().collect()
    }

    async fn enter(&self, server: ServerId) -> Result<Mood, StorageFailure> {
        let delay = *self.delay.lock();
        if delay.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(delay).await;
        }
        let mood = {
            let mut servers = self.servers.lock();
            let found = servers.get_mut(&server).unwrap();
            match found.mood {
                Mood::Down => {
                    found.failing_since.get_or_insert_with(tokio::time::Instant::now);
                }
                Mood::Silent => {}
                _ => found.failing_since = None,
            }
            found.mood
        };
        match mood {
            Mood::Down => Err(StorageFailure::Unreachable("refused".into())),
            Mood::Silent => std::future::pending().await,
            other => Ok(other),
        }
    }
}

impl Storage for FakeStorage {
    fn write<'a>(
        &'a self,
        server: ServerId,
        request: &'a WriteChunk,
        body: Vec<Bytes>,
        _deadline: Duration,
    ) -> BoxFuture<'a, Result<(), StorageFailure>> {
        async move {
            if self.enter(server).await? == Mood::Full {
                return Err(StorageFailure::Refused(StorageError::DiskFull));
            }
            let data = Bytes::from(body.concat());
            assert_eq!(data.len(), request.length as usize);
            assert_eq!(request.offset % BLOCK_BYTES, 0);
            let first = request.offset / BLOCK_BYTES;
            if let Err(wrong) = checksum::verify(request.chunk, first, &data, &request.checksums) {
                let blocks = match wrong {
                    checksum::ChecksumError::Corrupt { blocks, .. } => blocks,
                    checksum::ChecksumError::Count { .. } => panic!("{wrong}"),
                };
                return Err(StorageFailure::Refused(StorageError::Corrupt { blocks }));
            }
            let mut servers = self.servers.lock();
            let found = servers.get_mut(&server).unwrap();
            if request.create.is_none() && !found.blocks.contains_key(&request.chunk) {
                return Err(StorageFailure::Refused(StorageError::NoSuchChunk));
            }
            let blocks = found.blocks.entry(request.chunk).or_default();
            for (at, sum) in request.checksums.iter().enumerate() {
                let number = first + at as u64;
                let start = at * BLOCK_BYTES as usize;
                let bytes = data.slice(start..data.len().min(start + BLOCK_BYTES as usize));
                let block = Block { bytes, checksum: *sum, synced: request.sync };
                if let Some(old) = blocks.insert(number, block) {
                    assert_eq!(old.checksum, *sum, "a block of a chunk never changes");
                }
            }
            if request.sync {
                blocks.values_mut().for_each(|block| block.synced = true);
            }
            Ok(())
        }
        .boxed()
    }

    fn sync(
        &self,
        server: ServerId,
        chunk: ChunkId,
        _generation: Generation,
        _deadline: Duration,
    ) -> BoxFuture<'_, Result<(), StorageFailure>> {
        async move {
            self.enter(server).await?;
            let mut servers = self.servers.lock();
            match servers.get_mut(&server).unwrap().blocks.get_mut(&chunk) {
                Some(blocks) => blocks.values_mut().for_each(|block| block.synced = true),
                None => return Err(StorageFailure::Refused(StorageError::NoSuchChunk)),
            }
            Ok(())
        }
        .boxed()
    }

    fn read(
        &self,
        server: ServerId,
        request: ReadChunk,
        _deadline: Duration,
    ) -> BoxFuture<'_, Result<(ReadChunkReply, Bytes), StorageFailure>> {
        async move {
            let mood = self.enter(server).await?;
            self.reads.fetch_add(1, Ordering::Relaxed);
            let servers = self.servers.lock();
            let found = &servers[&server];
            let first = request.offset / BLOCK_BYTES;
            let end = (request.offset + u64::from(request.length)).div_ceil(BLOCK_BYTES);
            let (mut body, mut checksums) = (Vec::new(), Vec::new());
            for number in first..end {
                if found.trimmed.contains(&(request.chunk, number)) {
                    return Err(StorageFailure::Refused(StorageError::Gone));
                }
                let Some(block) = found.blocks.get(&request.chunk).and_then(|blocks| blocks.get(&number))
                else {
                    return Err(StorageFailure::Refused(StorageError::NoSuchChunk));
                };
                body.extend_from_slice(&block.bytes);
                body.resize(body.len().next_multiple_of(BLOCK_BYTES as usize), 0);
                checksums.push(block.checksum);
            }
            if mood == Mood::Corrupt {
                if !request.reader_verifies {
                    self.found_corrupt.fetch_add(1, Ordering::Relaxed);
                    return Err(StorageFailure::Refused(StorageError::Corrupt { blocks: vec![first] }));
                }
                body[7] ^= 1;
            }
            if mood == Mood::CorruptOnTheWay && request.reader_verifies {
                body[7] ^= 1;
            }
            Ok((ReadChunkReply { offset: first * BLOCK_BYTES, checksums }, body.into()))
        }
        .boxed()
    }

    fn suspect(&self, server: ServerId) {
        let mut servers = self.servers.lock();
        servers.get_mut(&server).unwrap().failing_since.get_or_insert_with(tokio::time::Instant::now);
    }

    fn failing_for(&self, server: ServerId) -> Option<Duration> {
        self.servers.lock()[&server].failing_since.map(|since| since.elapsed())
    }

    fn failing(&self) -> Vec<ServerId> {
        let servers = self.servers.lock();
        let mut failing: Vec<ServerId> = servers
            .iter()
            .filter(|(_, server)| server.failing_since.is_some())
            .map(|(server, _)| *server)
            .collect();
        failing.sort_unstable();
        failing
    }

    fn distance(&self, _server: ServerId) -> u32 {
        1
    }
}

/// The metadata service: real commands on records in memory.
pub struct FakeMetadata {
    pub store: Mutex<MemStore>,
    pub storage: Arc<FakeStorage>,
    sequences: Mutex<HashMap<SessionId, u64>>,
    session: Mutex<SessionId>,
    clock: AtomicU64,
    pub inline: AtomicBool,
    /// The leader doesn't know which servers are unwell.
    pub blind: AtomicBool,
    /// What each commit made of its file.
    pub history: Mutex<Vec<(InodeId, Vec<u8>)>>,
    pub keep_history: AtomicBool,
    pub commits: AtomicU64,
    pub delay: Mutex<Duration>,
}

impl FakeMetadata {
    pub fn new(storage: Arc<FakeStorage>, config: VolumeConfig) -> Arc<Self> {
        let metadata = FakeMetadata {
            store: Mutex::default(),
            storage,
            sequences: Mutex::default(),
            session: Mutex::new(SessionId(0)),
            clock: AtomicU64::new(1_000_000),
            inline: AtomicBool::new(true),
            blind: AtomicBool::new(false),
            history: Mutex::default(),
            keep_history: AtomicBool::new(false),
            commits: AtomicU64::new(0),
            delay: Mutex::new(Duration::ZERO),
        };
        metadata.internal(Op::from(ops::Bootstrap { cluster: ClusterId(1), hash_key: (1, 2), config }));
        for server in metadata.storage.servers.lock().keys() {
            let address = format!("server-{server}:1");
            metadata.internal(Op::from(ops::PutServer { server: *server, address, labels: BTreeMap::new() }));
        }
        metadata.new_session();
        Arc::new(metadata)
    }

    /// Begins a session; the one before it ends.
    pub fn new_session(&self) {
        let old = *self.session.lock();
        if old != SessionId(0) {
            self.internal(Op::from(ops::ExpireSession { session: old }));
        }
        match self.internal(Op::from(ops::OpenSession {
            client: "test".into(),
            incarnation: 1,
            supersedes: None,
        })) {
            Outcome::Session(session, _) => *self.session.lock() = session,
            other => panic!("{other:?}"),
        }
    }

    fn run(&self, session: SessionId, op: Op) -> Outcome {
        let mut store = self.store.lock();
        let mut sequences = self.sequences.lock();
        let sequence = sequences.entry(session).or_default();
        *sequence += 1;
        let command =
            Command { session, slot: SlotId(1), sequence: *sequence, time: self.now(), expect: None, op };
        let mut txn = Txn::open(&*store).unwrap();
        let outcome = execute(&mut txn, &command).unwrap();
        let writes = txn.into_writes();
        store.write(writes);
        outcome
    }

    pub fn internal(&self, op: Op) -> Outcome {
        self.run(INTERNAL, op)
    }

    /// Makes an empty file.
    pub fn create(&self, name: &str) -> Attributes {
        let op = Op::from(ops::Create {
            parent: ROOT,
            name: Bytes::copy_from_slice(name.as_bytes()),
            ino: None,
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            umask: 0,
        });
        match self.run(self.session(), op) {
            Outcome::Inode(attributes) => *attributes,
            other => panic!("{other:?}"),
        }
    }

    pub fn attributes(&self, ino: InodeId) -> Attributes {
        query::inode(&*self.store.lock(), ino).unwrap().attributes(ino)
    }

    /// The pieces of a file's segments.
    pub fn pieces(&self, ino: InodeId) -> Vec<Vec<atoll_core::records::Piece>> {
        let store = self.store.lock();
        let record = query::inode(&*store, ino).unwrap();
        let found =
            query::segments(&*store, ino, &record, atoll_core::ids::SegmentIndex(0), 1 << 20).unwrap();
        found.into_iter().map(|(_, pieces)| pieces).collect()
    }

    /// What a reader would find if all power went now.
    pub fn durable_content(&self, ino: InodeId) -> Vec<u8> {
        let store = self.store.lock();
        let record = query::inode(&*store, ino).unwrap();
        let mut content = vec![0; record.size as usize];
        let first = atoll_core::ids::SegmentIndex(0);
        for (segment, pieces) in query::segments(&*store, ino, &record, first, 1 << 20).unwrap() {
            for piece in pieces {
                let bytes = match piece.place {
                    Place::Inline { .. } => {
                        query::inline_bytes(&*store, ino, segment, &piece).unwrap().unwrap().to_vec()
                    }
                    Place::Chunk { chunk, offset } => {
                        let record = query::chunk(&*store, chunk).unwrap().unwrap();
                        let mut copies = record.replicas.iter().map(|server| {
                            self.storage.durable(*server, chunk, offset, piece.length.into()).unwrap_or_else(
                                || panic!("{server} lacks bytes of {chunk} that are committed"),
                            )
                        });
                        let bytes = copies.next().unwrap();
                        assert!(copies.all(|other| other == bytes));
                        bytes
                    }
                    Place::Unwritten | Place::Lost => continue,
                };
                let at = (segment.0 * SEGMENT_BYTES) as usize + piece.start as usize;
                let end = (at + bytes.len()).min(content.len());
                content[at..end].copy_from_slice(&bytes[..end - at]);
            }
        }
        content
    }

    fn replicas(&self) -> Vec<ServerId> {
        let config = self.config();
        let servers: Vec<ServerId> = self.storage.servers.lock().keys().copied().collect();
        let blind = self.blind.load(Ordering::Relaxed);
        let turn = self.clock.load(Ordering::Relaxed) as usize;
        let mut fit: Vec<ServerId> =
            servers.into_iter().filter(|server| blind || self.storage.is_well(*server)).collect();
        let count = fit.len().max(1);
        fit.rotate_left(turn % count);
        fit.truncate(usize::from(config.copies));
        fit
    }

    async fn wait(&self) {
        let delay = *self.delay.lock();
        if delay.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(delay).await;
        }
    }

    fn extents(
        &self,
        ino: InodeId,
        first: atoll_core::ids::SegmentIndex,
        segments: u32,
    ) -> Result<Answer, FsError> {
        let store = self.store.lock();
        let record = query::inode(&*store, ino).map_err(|_| FsError::Stale)?;
        let mut chunks: BTreeMap<ChunkId, ChunkInfo> = BTreeMap::new();
        let mut mapped = Vec::new();
        for (segment, pieces) in query::segments(&*store, ino, &record, first, segments.into()).unwrap() {
            let mut list = Vec::new();
            for piece in pieces {
                let data = match piece.place {
                    Place::Inline { .. } => PieceData::Inline(
                        query::inline_bytes(&*store, ino, segment, &piece).unwrap().unwrap(),
                    ),
                    Place::Chunk { chunk, offset } => {
                        let record = query::chunk(&*store, chunk).unwrap().unwrap();
                        let (generation, replicas) = (record.generation, record.replicas);
                        chunks.insert(chunk, ChunkInfo { chunk, generation, replicas });
                        PieceData::Chunk { chunk, offset }
                    }
                    Place::Unwritten => PieceData::Unwritten,
                    Place::Lost => PieceData::Lost,
                };
                list.push(MappedPiece { start: piece.start, length: piece.length, data });
            }
            mapped.push((segment, list));
        }
        Ok(Answer::Extents(FileExtents {
            attributes: record.attributes(ino),
            segments: mapped,
            covered: segments,
            chunks: chunks.into_values().collect(),
        }))
    }
}

impl Metadata for FakeMetadata {
    async fn execute(&self, op: ClientOp) -> Result<Outcome, ClientError> {
        let session = self.session();
        self.wait().await;
        let mut op = op;
        if let ClientOp::CreateChunk(ops::CreateChunk { replicas, .. }) = &mut op {
            *replicas = self.replicas();
            let full = |server: &Server| server.mood == Mood::Full;
            if replicas.is_empty() && self.storage.servers.lock().values().all(full) {
                return Err(FsError::NoSpace.into());
            }
        }
        let written = match &op {
            ClientOp::Write(ops::Write { ino, pieces, .. }) => {
                // Data before metadata: on all replicas, synced, before the commit that refers to it.
                for piece in pieces {
                    if let NewPlace::Chunk { chunk, offset, .. } = piece.place {
                        let record = query::chunk(&*self.store.lock(), chunk).unwrap();
                        for server in record.map(|record| record.replicas).unwrap_or_default() {
                            if self.storage.durable(server, chunk, offset, piece.length).is_none() {
                                // An error, which every flush passes on: a panic would only end a task.
                                eprintln!("a commit refers to bytes that {server} doesn't have on disk");
                                return Err(FsError::Io.into());
                            }
                        }
                    }
                }
                Some(*ino)
            }
            _ => None,
        };
        let outcome = self.run(session, op.into()).into_result()?;
        if let Some(ino) = written {
            self.commits.fetch_add(1, Ordering::Relaxed);
            if self.keep_history.load(Ordering::Relaxed) {
                let content = self.durable_content(ino);
                self.history.lock().push((ino, content));
            }
        }
        self.wait().await;
        Ok(outcome)
    }

    async fn query(&self, query: Query) -> Result<Answer, ClientError> {
        self.wait().await;
        let answer = match query {
            Query::Extents(queries::Extents { ino, first, segments }) => {
                self.extents(ino, first, segments)?
            }
            Query::Chunks(queries::Chunks { chunks }) => {
                let store = self.store.lock();
                let found = chunks.into_iter().filter_map(|chunk| {
                    let record = query::chunk(&*store, chunk).unwrap()?;
                    Some(ChunkInfo { chunk, generation: record.generation, replicas: record.replicas })
                });
                Answer::Chunks(found.collect())
            }
            other => panic!("{other:?}"),
        };
        self.wait().await;
        Ok(answer)
    }

    fn session(&self) -> SessionId {
        *self.session.lock()
    }

    fn incarnation(&self) -> u64 {
        1
    }

    fn now(&self) -> Timestamp {
        Timestamp { seconds: self.clock.fetch_add(1, Ordering::Relaxed) as i64, nanos: 0 }
    }

    fn config(&self) -> Arc<VolumeConfig> {
        Arc::new(query::superblock(&*self.store.lock()).unwrap().config)
    }

    fn inline_allowed(&self) -> bool {
        self.inline.load(Ordering::Relaxed)
    }

    fn servers_version(&self) -> u64 {
        1
    }
}

/// A small generator of numbers for tests that must be replayable.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let tag = self.next();
        (0..length).map(|at| (tag >> (at % 8 * 8)) as u8 ^ (at / 8) as u8 | 1).collect()
    }
}
