//! A cluster in memory, for tests: the real commands on an ordered map, without Raft, disk or wire.

mod locks;
mod removal;
mod storage;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_core::attributes::{Attributes, FileKind, Timestamp, VolumeUse};
use atoll_core::commands::{ClientOp, Command, INTERNAL, Op, Outcome, ServiceOp, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{ChunkId, ClusterId, InodeId, SegmentIndex, ServerId, SessionId, SlotId};
use atoll_core::lock_table::LockTable;
use atoll_core::lock_waits::LockWaits;
use atoll_core::locks::LockChange;
use atoll_core::namespace::execute;
use atoll_core::query::{self, OpError};
use atoll_core::records::{Place, Record, ServerRecord, Superblock, VolumeConfig};
use atoll_core::seek;
use atoll_core::store::{Family, MemStore, Read, prefix_end};
use atoll_core::txn::Txn;
use atoll_core::{check, keys};
use atoll_proto::metadata::{Answer, ChunkInfo, FileExtents, MappedPiece, PieceData, Query, ServerInfo};
use atoll_proto::queries;
use parking_lot::Mutex;

use crate::arena::{Arena, ArenaConfig, ArenaError};
use crate::client::{Client, ClientOptions};
use crate::metadata::{ClientError, Event, Hook, Made, Metadata};
use crate::session::clock::Clock;
pub use storage::MemStorage;

/// The cluster that a [`MemVolume`] is.
pub const CLUSTER: ClusterId = ClusterId(0xa701);
/// Segments that one background step frees.
const PURGE_SEGMENTS: u32 = 64;
/// How often a wait for a lock looks.
const WAIT_POLL: Duration = Duration::from_millis(2);

/// What a file is like, as far as the client's pure parts look at it.
#[must_use]
pub fn file_attributes(ino: InodeId, change: u64, size: u64) -> Attributes {
    let time = Timestamp::default();
    Attributes {
        ino,
        mode: FileKind::File.mode_bits() | 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size,
        allocated: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        change,
        acl: false,
    }
}

/// A volume's records in memory, and what a leader knows of its sessions.
#[derive(Debug)]
pub struct MemVolume {
    store: MemStore,
    open: HashMap<SessionId, HashSet<InodeId>>,
    servers: Vec<ServerId>,
    locks: LockTable,
    waits: LockWaits,
}

fn refused(error: OpError) -> FsError {
    match error {
        OpError::Refused(error) => error,
        OpError::Store(error) => {
            tracing::error!(%error, "the records in memory");
            FsError::Io
        }
    }
}

impl MemVolume {
    /// A bootstrapped volume.
    ///
    /// # Panics
    /// If the configuration makes no sense.
    #[must_use]
    pub fn new(config: VolumeConfig) -> Self {
        let mut volume = MemVolume {
            store: MemStore::default(),
            open: HashMap::new(),
            servers: Vec::new(),
            locks: LockTable::default(),
            waits: LockWaits::default(),
        };
        let outcome =
            volume.internal(Op::from(ops::Bootstrap { cluster: CLUSTER, hash_key: (1, 2), config }));
        assert!(outcome.clone().into_result().is_ok(), "{outcome:?}");
        volume
    }

    /// A storage server joins; new chunks get replicas on it.
    pub fn add_server(&mut self, server: ServerId, address: &str) {
        self.internal(Op::from(ops::PutServer {
            server,
            address: address.into(),
            labels: Default::default(),
        }));
        self.servers.push(server);
    }

    fn internal(&mut self, op: Op) -> Outcome {
        let time = Clock::default().now();
        let command = Command { session: INTERNAL, slot: SlotId(0), sequence: 0, time, expect: None, op };
        self.execute(command)
    }

    /// Carries a command out.
    ///
    /// # Panics
    /// If a record is damaged: a test wants to know.
    pub fn execute(&mut self, mut command: Command) -> Outcome {
        if let Op::Client(ClientOp::CreateChunk(ops::CreateChunk { replicas, .. })) = &mut command.op {
            // What a leader does before it proposes the command.
            replicas.clone_from(&self.servers);
        }
        let mut txn = Txn::open(&self.store).expect("the store is in memory");
        let outcome = execute(&mut txn, &command).expect("the records are whole");
        let writes = txn.into_writes();
        self.store.write(writes);
        match &command.op {
            Op::Client(ClientOp::CloseSession(_)) => self.ended(command.session),
            Op::Service(ServiceOp::ExpireSession(ops::ExpireSession { session })) => self.ended(*session),
            _ => {}
        }
        if let Outcome::Session(session, _) = outcome {
            self.open.insert(session, HashSet::new());
            if let Op::Client(ClientOp::OpenSession(ops::OpenSession { supersedes: Some(old), .. })) =
                command.op
            {
                self.ended(old);
            }
        }
        outcome
    }

    /// Carries a command out; if it makes a file that is to be opened, the session holds it from the start.
    pub fn execute_to_open(&mut self, command: Command, opens: bool) -> Outcome {
        let session = command.session;
        let outcome = self.execute(command);
        if let Outcome::Inode(made) = &outcome
            && opens
        {
            if !self.is_alive(session) {
                return Outcome::Refused(FsError::SessionExpired);
            }
            self.hold(session, &[made.ino], true);
        }
        outcome
    }

    fn ended(&mut self, session: SessionId) {
        self.open.remove(&session);
        self.locks.ended(session);
        self.waits.ended(session);
    }

    /// True if the session is alive.
    #[must_use]
    pub fn is_alive(&self, session: SessionId) -> bool {
        self.open.contains_key(&session)
    }

    /// Ends a session as if it had been silent for its lifetime.
    pub fn expire(&mut self, session: SessionId) {
        self.internal(Op::from(ops::ExpireSession { session }));
    }

    /// The session holds these open (or holds them no more).
    pub fn hold(&mut self, session: SessionId, files: &[InodeId], open: bool) {
        let Some(held) = self.open.get_mut(&session) else { return };
        for ino in files {
            if open {
                held.insert(*ino)
            } else {
                held.remove(ino)
            };
        }
    }

    /// How many files the session holds open.
    #[must_use]
    pub fn open_files(&self, session: SessionId) -> Option<usize> {
        self.open.get(&session).map(HashSet::len)
    }

    fn numbers(&self, prefix: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        let scan = self.store.scan(Family::System, prefix, &prefix_end(prefix), &mut |key, _| {
            found.extend(keys::first_number(key));
            std::ops::ControlFlow::Continue(())
        });
        scan.expect("the store is in memory");
        found
    }

    /// What is wrong with the records, in words.
    ///
    /// # Panics
    /// If a record can't be read.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        check::check(&self.store).expect("the records are whole")
    }

    fn superblock(&self) -> Superblock {
        query::superblock(&self.store).expect("bootstrapped")
    }

    /// Use of the volume.
    #[must_use]
    pub fn volume(&self) -> VolumeUse {
        self.superblock().volume_use()
    }

    /// Whether new small data may travel inside commits.
    #[must_use]
    pub fn inline_allowed(&self) -> bool {
        let superblock = self.superblock();
        superblock.inline_bytes < superblock.config.inline_budget_bytes
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> VolumeConfig {
        self.superblock().config
    }

    /// Answers a question.
    ///
    /// # Errors
    /// What it is refused with.
    pub fn answer(&mut self, session: SessionId, question: Query) -> Result<Answer, FsError> {
        if !self.is_alive(session) {
            return Err(FsError::SessionExpired);
        }
        let store = &self.store;
        match question {
            Query::Lookup(queries::Lookup { parent, name }) => {
                let hash_key = self.superblock().hash_key;
                query::lookup(store, hash_key, parent, &name).map(Answer::Inode).map_err(refused)
            }
            Query::GetAttr(queries::GetAttr { ino }) => {
                let record = query::inode(store, ino).map_err(refused)?;
                Ok(Answer::Inode(record.attributes(ino)))
            }
            Query::ReadLink(queries::ReadLink { ino }) => {
                let record = query::inode(store, ino).map_err(refused)?;
                match record.target.is_empty() {
                    true => Err(FsError::InvalidArgument),
                    false => Ok(Answer::Bytes(record.target)),
                }
            }
            Query::ReadDir(queries::ReadDir { ino, cookie, bytes_max, plus }) => {
                query::directory_page(store, ino, cookie, plus, bytes_max)
                    .map(Answer::Directory)
                    .map_err(refused)
            }
            Query::Open(queries::Open { ino, segments }) => {
                if query::is_purging(store, ino).map_err(|error| refused(error.into()))? {
                    return Err(FsError::Stale);
                }
                let answer = self.extents(ino, SegmentIndex(0), segments)?;
                self.hold(session, &[ino], true);
                Ok(Answer::Extents(answer))
            }
            Query::Extents(queries::Extents { ino, first, segments }) => {
                self.extents(ino, first, segments).map(Answer::Extents)
            }
            Query::GetXattr(queries::GetXattr { ino, name }) => {
                query::xattr(store, ino, &name).map(Answer::Bytes).map_err(refused)
            }
            Query::ListXattr(queries::ListXattr { ino }) => {
                query::xattr_names(store, ino).map(Answer::Bytes).map_err(refused)
            }
            Query::StatFs(_) => Ok(Answer::Volume(self.volume())),
            Query::Chunks(queries::Chunks { chunks }) => Ok(Answer::Chunks(self.chunks(&chunks)?)),
            Query::Servers(_) => self.servers(),
            Query::Lseek(queries::Lseek { ino, offset, kind }) => {
                let record = query::inode(store, ino).map_err(refused)?;
                let sought = seek::seek(store, ino, &record, offset, kind);
                sought.map(Answer::Sought).map_err(|error| refused(error.into()))
            }
            Query::GetLk(queries::GetLk(request)) => {
                Ok(Answer::Lock(self.locks.first_in_the_way(session, &request)))
            }
            Query::AwaitLocks(queries::AwaitLocks { waits }) => {
                let now = crate::session::clock::since_boot();
                self.waits.tell(session, &waits, now);
                Ok(Answer::Locks(self.waits.verdicts(session, &self.locks, now)))
            }
            Query::ChangeLocks(asked) => self.change_locks(session, &asked).map(Answer::LocksChanged),
            Query::AdoptSession(_) => Ok(Answer::Session(self.adopt_session(session))),
            Query::Journal(_) | Query::Records(_) => Err(FsError::Unsupported),
        }
    }

    fn extents(&self, ino: InodeId, first: SegmentIndex, count: u32) -> Result<FileExtents, FsError> {
        let store = &self.store;
        let failed = |error| refused(OpError::Store(error));
        let record = query::inode(store, ino).map_err(refused)?;
        let mut segments = Vec::new();
        let mut used = Vec::new();
        for (segment, pieces) in
            query::segments(store, ino, &record, first, u64::from(count)).map_err(failed)?
        {
            let mut mapped = Vec::new();
            for piece in pieces {
                let data = match piece.place {
                    Place::Inline { .. } => {
                        let bytes = query::inline_bytes(store, ino, segment, &piece).map_err(failed)?;
                        PieceData::Inline(bytes.unwrap_or_default())
                    }
                    Place::Chunk { chunk, offset } => {
                        used.push(chunk);
                        PieceData::Chunk { chunk, offset }
                    }
                    Place::Unwritten => PieceData::Unwritten,
                    Place::Lost => PieceData::Lost,
                };
                mapped.push(MappedPiece { start: piece.start, length: piece.length, data });
            }
            segments.push((segment, mapped));
        }
        used.sort();
        used.dedup();
        Ok(FileExtents {
            attributes: record.attributes(ino),
            segments,
            covered: count,
            chunks: self.chunks(&used)?,
        })
    }

    fn chunks(&self, wanted: &[ChunkId]) -> Result<Vec<ChunkInfo>, FsError> {
        let mut found = Vec::new();
        for chunk in wanted {
            let record = query::chunk(&self.store, *chunk).map_err(|error| refused(error.into()))?;
            found.extend(record.map(|record| ChunkInfo {
                chunk: *chunk,
                generation: record.generation,
                replicas: record.replicas,
            }));
        }
        Ok(found)
    }

    fn servers(&self) -> Result<Answer, FsError> {
        let mut servers = Vec::new();
        let prefix = keys::servers();
        let scan = self.store.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, value| {
            if let (Some(id), Ok(record)) = (keys::first_number(key), ServerRecord::decode(value)) {
                servers.push(ServerInfo {
                    server: ServerId(id),
                    address: record.address,
                    labels: record.labels,
                    alive: true,
                });
            }
            std::ops::ControlFlow::Continue(())
        });
        scan.map_err(|error| refused(error.into()))?;
        Ok(Answer::Servers(servers))
    }
}

/// A volume and storage servers in memory, that any number of clients can mount.
#[derive(Clone)]
pub struct MemCluster {
    /// The records.
    pub volume: Arc<Mutex<MemVolume>>,
    /// The data.
    pub storage: Arc<MemStorage>,
}

impl MemCluster {
    /// With this configuration and as many servers as it wants copies.
    #[must_use]
    pub fn new(config: VolumeConfig) -> Self {
        let copies = u64::from(config.copies);
        let mut volume = MemVolume::new(config);
        for server in 1..=copies {
            volume.add_server(ServerId(server), &format!("server-{server}:1"));
        }
        MemCluster { volume: Arc::new(Mutex::new(volume)), storage: MemStorage::new() }
    }

    /// One more mount of it. Needs a tokio runtime.
    ///
    /// # Errors
    /// If there is no memory for its arena.
    pub fn mount(
        &self,
        options: impl FnOnce(&mut ClientOptions),
    ) -> Result<Arc<Client<LocalMetadata>>, ArenaError> {
        let config = ArenaConfig::default();
        let arena = Arena::create(config)?;
        let mut settings = ClientOptions::for_arena(config.data_bytes);
        options(&mut settings);
        let metadata = LocalMetadata::new(Arc::clone(&self.volume));
        let storage = Arc::clone(&self.storage);
        Ok(Client::new(metadata, |_| storage, arena, settings))
    }
}

/// The metadata service as one client sees it, in this process. Several can share a volume.
pub struct LocalMetadata {
    volume: Arc<Mutex<MemVolume>>,
    session: AtomicU64,
    sequence: AtomicU64,
    lock_changes: AtomicU64,
    clock: Clock,
    hooks: Mutex<Vec<Hook>>,
    /// Mutations and questions are answered only while this is false.
    away: AtomicBool,
    /// Questions are answered with an error.
    refuses_questions: AtomicBool,
    /// Mutations that are carried out before all further ones are answered with an error.
    mutations_left: AtomicU64,
    returned: tokio::sync::Notify,
    mutations: AtomicU64,
    questions: AtomicU64,
    /// Files that are removed and freed before they are held, see [`remove_made`](Self::remove_made).
    removed_made: AtomicU64,
    /// Inodes with changes that are lost, see [`lose_changes`](Self::lose_changes).
    lost: Mutex<BTreeSet<InodeId>>,
}

impl LocalMetadata {
    /// A client's view of a volume: begins a session.
    #[must_use]
    pub fn new(volume: Arc<Mutex<MemVolume>>) -> Arc<Self> {
        let local = LocalMetadata {
            session: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            lock_changes: AtomicU64::new(0),
            clock: Clock::default(),
            hooks: Mutex::default(),
            away: AtomicBool::new(false),
            refuses_questions: AtomicBool::new(false),
            mutations_left: AtomicU64::new(u64::MAX),
            returned: tokio::sync::Notify::new(),
            mutations: AtomicU64::new(0),
            questions: AtomicU64::new(0),
            removed_made: AtomicU64::new(0),
            lost: Mutex::default(),
            volume,
        };
        local.begin(None);
        Arc::new(local)
    }

    fn begin(&self, supersedes: Option<SessionId>) {
        let command = Command {
            session: SessionId(0),
            slot: SlotId(0),
            sequence: 0,
            time: self.clock.now(),
            expect: None,
            op: Op::from(ops::OpenSession { client: "test".into(), incarnation: 1, supersedes }),
        };
        if let Outcome::Session(session, _) = self.volume.lock().execute(command) {
            self.session.store(session.0, Ordering::Relaxed);
            self.sequence.store(0, Ordering::Relaxed);
        }
    }

    /// The volume behind it.
    #[must_use]
    pub fn volume_records(&self) -> &Arc<Mutex<MemVolume>> {
        &self.volume
    }

    /// The cluster goes away (requests wait) or comes back.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
        self.returned.notify_waiters();
    }

    /// Questions are answered with an error from now on, or with what there is.
    pub fn refuse_questions(&self, refuse: bool) {
        self.refuses_questions.store(refuse, Ordering::SeqCst);
    }

    /// After `count` mutations all are answered with an error.
    pub fn refuse_mutations_after(&self, count: u64) {
        self.mutations_left.store(count, Ordering::SeqCst);
    }

    /// The next so many files that are made by a name to be opened are removed by somebody else, and freed, before they
    /// count as open.
    pub fn remove_made(&self, files: u64) {
        self.removed_made.store(files, Ordering::Relaxed);
    }

    /// The session is lost and a new one begins.
    pub fn lose_session(&self) {
        self.lose_session_to(false);
    }

    /// The same; others may have had a session before the new one.
    pub fn lose_session_to(&self, was_parted: bool) {
        let old = SessionId(self.session.load(Ordering::Relaxed));
        self.volume.lock().expire(old);
        for hook in self.hooks.lock().iter() {
            hook(Event::SessionLost { was_parted });
        }
        self.begin(Some(old));
    }

    /// Changes of this inode that were done are lost, though the session isn't.
    pub fn lose_changes(&self, ino: InodeId) {
        self.lost.lock().insert(ino);
        self.hooks.lock().iter().for_each(|hook| hook(Event::JournalLost));
    }

    /// Mutations and questions up to now.
    #[must_use]
    pub fn requests(&self) -> (u64, u64) {
        (self.mutations.load(Ordering::Relaxed), self.questions.load(Ordering::Relaxed))
    }

    fn execute(&self, op: Op, opens: bool) -> Outcome {
        self.mutations.fetch_add(1, Ordering::Relaxed);
        let left = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
        if self.mutations_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_err() {
            return Outcome::Refused(FsError::Io);
        }
        let mut volume = self.volume.lock();
        let command = Command {
            session: self.session(),
            slot: SlotId(1),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            time: self.clock.now(),
            expect: None,
            op,
        };
        volume.execute_to_open(command, opens)
    }

    async fn reach(&self) {
        loop {
            let returned = self.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();
            if !self.away.load(Ordering::SeqCst) {
                return;
            }
            returned.await;
        }
    }
}

impl Metadata for LocalMetadata {
    async fn execute(&self, op: ClientOp) -> Result<Outcome, ClientError> {
        self.reach().await;
        Ok(self.execute(op.into(), false).into_result()?)
    }

    async fn make(&self, op: ClientOp) -> Result<Made, ClientError> {
        self.reach().await;
        let less_one = |files: u64| files.checked_sub(1);
        if let ClientOp::Create(ops::Create { parent, name, .. }) = &op
            && self.removed_made.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one).is_ok()
        {
            let removed = Op::from(ops::Unlink { parent: *parent, name: name.clone(), directory: false });
            self.execute(op.into(), false).into_result()?;
            self.execute(removed, false).into_result()?;
            self.volume.lock().purge();
            return Err(FsError::Stale.into());
        }
        match self.execute(op.into(), true).into_result()? {
            Outcome::Inode(attributes) => {
                let (volume, session, ino) = (Arc::clone(&self.volume), self.session(), attributes.ino);
                Ok(Made::new(*attributes, move |kept| {
                    if !kept {
                        volume.lock().hold(session, &[ino], false);
                    }
                }))
            }
            _ => Err(FsError::Io.into()),
        }
    }

    async fn query(&self, query: Query) -> Result<Answer, ClientError> {
        self.reach().await;
        if self.refuses_questions.load(Ordering::SeqCst) {
            return Err(FsError::Io.into());
        }
        self.questions.fetch_add(1, Ordering::Relaxed);
        // A leader answers a question about waits when there is something to tell.
        while let Query::AwaitLocks(queries::AwaitLocks { waits }) = &query {
            let answer = self.volume.lock().answer(self.session(), query.clone())?;
            if waits.is_empty() || !matches!(&answer, Answer::Locks(verdicts) if verdicts.is_empty()) {
                return Ok(answer);
            }
            tokio::time::sleep(WAIT_POLL).await;
        }
        Ok(self.volume.lock().answer(self.session(), query)?)
    }

    async fn change_locks(
        &self,
        change: LockChange,
        known_change: Option<u64>,
        segments: u32,
    ) -> Result<Option<FileExtents>, ClientError> {
        self.send_lock(change, known_change, segments).await
    }

    fn session(&self) -> SessionId {
        SessionId(self.session.load(Ordering::Relaxed))
    }

    fn incarnation(&self) -> u64 {
        1
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn config(&self) -> Arc<VolumeConfig> {
        Arc::new(self.volume.lock().config())
    }

    fn inline_allowed(&self) -> bool {
        self.volume.lock().inline_allowed()
    }

    fn servers_version(&self) -> u64 {
        1
    }

    fn volume(&self) -> VolumeUse {
        self.volume.lock().volume()
    }

    fn valid_for(&self) -> Duration {
        match self.away.load(Ordering::SeqCst) {
            true => Duration::ZERO,
            false => Duration::from_secs(10),
        }
    }

    fn away_for(&self) -> Option<Duration> {
        self.away.load(Ordering::SeqCst).then_some(Duration::from_secs(3600))
    }

    fn closed(&self, ino: InodeId) {
        self.volume.lock().hold(self.session(), &[ino], false);
    }

    fn take_lost(&self) -> BTreeSet<InodeId> {
        std::mem::take(&mut self.lost.lock())
    }

    fn subscribe(&self, hook: Hook) {
        self.hooks.lock().push(hook);
    }
}
