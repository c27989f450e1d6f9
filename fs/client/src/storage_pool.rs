//! The storage servers as the data path sees them ([`Storage`]), and the connections to them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_core::ids::{ChunkId, Generation, ServerId, SessionId};
use atoll_proto::metadata::ServerInfo;
use atoll_proto::queries;
use atoll_proto::storage::{ReadChunk, ReadChunkReply, StorageError, SyncChunk, WriteChunk};
use atoll_proto::{Address, ConnectOptions, Identity, Peer, Role, RpcError};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{Instrument, Span};

use crate::metadata::Metadata;

/// The list of servers isn't asked for more often than this because of a server that it doesn't know.
const REFRESH_PERIOD_MIN: Duration = Duration::from_millis(200);
/// A failure this long ago says nothing any more: the server is tried again.
const FAILURE_MEMORY: Duration = Duration::from_secs(10);
/// How often a server whose connection is gone is dialled while it counts as failing, and for how long it is waited for.
const CONNECT_AGAIN: Duration = Duration::from_millis(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the metadata service may take to name the servers before a call is given up.
const REFRESH_DEADLINE: Duration = Duration::from_secs(10);
/// Connections to servers at most; the ones that were used least recently are closed.
pub const PEERS_MAX: usize = 1024;

/// Why a storage server did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageFailure {
    /// It refused.
    #[error("{0}")]
    Refused(StorageError),
    /// It can't be reached, or doesn't answer. What was sent may still have an effect.
    #[error("{0}")]
    Unreachable(String),
    /// What it answered makes no sense.
    #[error("{0}")]
    Broken(String),
}

/// Calls to storage servers. The seam at which tests put delay, loss and damage in.
pub trait Storage: Send + Sync + 'static {
    /// Writes `body`, in pieces, to a replica; with `sync`, durably.
    fn write<'a>(
        &'a self,
        server: ServerId,
        request: &'a WriteChunk,
        body: Vec<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<(), StorageFailure>>;

    /// Makes durable what was written to a replica.
    fn sync(
        &self,
        server: ServerId,
        chunk: ChunkId,
        generation: Generation,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<(), StorageFailure>>;

    /// Reads from a replica; the answer isn't verified yet.
    fn read(
        &self,
        server: ServerId,
        request: ReadChunk,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<(ReadChunkReply, Bytes), StorageFailure>>;

    /// Notes that the server let somebody wait for too long.
    fn suspect(&self, server: ServerId);

    /// For how long the server hasn't answered anything; `None` if its last answer came, or nobody asked it for a
    /// while.
    fn failing_for(&self, server: ServerId) -> Option<Duration>;

    /// The servers for which [`failing_for`](Self::failing_for) says something.
    fn failing(&self) -> Vec<ServerId>;

    /// How far away the server is: 0 is the nearest.
    fn distance(&self, server: ServerId) -> u32;

    /// Whether [`failing_for`](Self::failing_for) says something of the server, and its distance.
    fn standing(&self, server: ServerId) -> (bool, u32) {
        (self.failing_for(server).is_some(), self.distance(server))
    }
}

/// How servers are reached.
#[derive(Clone)]
pub struct PoolConfig {
    /// The cluster, its key and the policy of encryption; the role is always that of the current session.
    pub identity: Identity,
    /// Where this client is (`host`, `zone`, …), to read from what is near.
    pub labels: BTreeMap<String, String>,
    /// Servers in this very process, reached without a socket.
    pub local: HashMap<ServerId, Address>,
}

/// The labels that say where something is, from the nearest to the widest.
const PLACE_LABELS: [&str; 3] = ["host", "zone", "region"];

/// Connections to the storage servers that the metadata service names.
pub struct StoragePool<M> {
    inner: Arc<Inner<M>>,
}

struct Inner<M> {
    metadata: Arc<M>,
    config: PoolConfig,
    servers: Mutex<Servers>,
    refreshing: tokio::sync::Mutex<()>,
    /// A task refreshes the list while calls go on with the old one.
    refreshing_behind: AtomicBool,
    uses: AtomicU64,
}

#[derive(Default)]
struct Servers {
    /// What `servers_version` was when the list was asked for.
    version: Option<u64>,
    asked: Option<Instant>,
    known: HashMap<ServerId, Server>,
}

struct Server {
    info: ServerInfo,
    distance: u32,
    /// With the session as which it connects.
    peer: Option<(SessionId, Peer)>,
    last_use: u64,
    failing: Option<Failing>,
    /// A task finds out when it can be reached again.
    awaited: bool,
}

/// A server that doesn't answer.
#[derive(Clone, Copy)]
struct Failing {
    since: Instant,
    last: Instant,
    /// How many answers had come over the connection when it failed, if there was one.
    answers: Option<u64>,
}

impl Server {
    /// Since when it fails. An answer ends that, be it a late one to a call that was given up: nobody may ask a server
    /// again that is avoided. A ping says nothing: it is answered while the disk hangs.
    fn failing_since(&self) -> Option<Instant> {
        let failing = self.failing.as_ref()?;
        let fails = failing.last.elapsed() < FAILURE_MEMORY
            && self.answers().is_none_or(|answers| failing.answers == Some(answers));
        fails.then_some(failing.since)
    }

    fn answers(&self) -> Option<u64> {
        let (_, peer) = self.peer.as_ref()?;
        peer.connected().map(|connection| connection.answers())
    }

    fn failed(&mut self) {
        let last = Instant::now();
        let since = self.failing_since().unwrap_or(last);
        self.failing = Some(Failing { since, last, answers: self.answers() });
    }
}

impl<M: Metadata> StoragePool<M> {
    /// No connection is made before it is needed.
    #[must_use]
    pub fn new(metadata: Arc<M>, config: PoolConfig) -> Self {
        let inner = Inner {
            metadata,
            config,
            servers: Mutex::default(),
            refreshing: tokio::sync::Mutex::new(()),
            refreshing_behind: AtomicBool::new(false),
            uses: AtomicU64::new(0),
        };
        StoragePool { inner: Arc::new(inner) }
    }

    async fn peer(&self, server: ServerId) -> Result<Peer, StorageFailure> {
        let (known, current) = self.inner.known_peer(server)?;
        if let Some(peer) = known {
            if !current && !self.inner.refreshing_behind.swap(true, Ordering::AcqRel) {
                // The list has changed, most likely by another server: this one needs not wait for it.
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move {
                    inner.refresh(server).await;
                    inner.refreshing_behind.store(false, Ordering::Release);
                });
            }
            return Ok(peer);
        }
        if tokio::time::timeout(REFRESH_DEADLINE, self.inner.refresh(server)).await.is_err() {
            return Err(StorageFailure::Unreachable(
                "the metadata servers don't report the storage servers".into(),
            ));
        }
        let (known, _) = self.inner.known_peer(server)?;
        known.ok_or_else(|| StorageFailure::Unreachable(format!("storage server {server} is unknown")))
    }
}

impl<M: Metadata> Inner<M> {
    /// The way to a server, if it is known, and whether the list that knows it is the newest.
    fn known_peer(&self, server: ServerId) -> Result<(Option<Peer>, bool), StorageFailure> {
        let mut servers = self.servers.lock();
        let current = servers.version == Some(self.metadata.servers_version());
        let Some(found) = servers.known.get_mut(&server) else { return Ok((None, current)) };
        found.last_use = self.uses.fetch_add(1, Ordering::Relaxed);
        let session = self.metadata.session();
        if let Some((_, peer)) = found.peer.as_ref().filter(|(connected_as, _)| *connected_as == session) {
            return Ok((Some(peer.clone()), current));
        }
        let address =
            match self.config.local.get(&server) {
                Some(local) => local.clone(),
                None => found.info.address.parse().map_err(|error| {
                    StorageFailure::Unreachable(format!("storage server {server}: {error}"))
                })?,
            };
        let identity = Identity { role: Role::Client(session), ..self.config.identity.clone() };
        let options = ConnectOptions::new(identity).expecting(Role::Storage(server));
        let peer = Peer::new(address, options.with_pauses_up_to(2 * CONNECT_AGAIN));
        found.peer = Some((session, peer.clone()));
        close_least_used(&mut servers);
        Ok((Some(peer), current))
    }

    /// Asks for the servers again, because the list has changed or doesn't have `wanted`.
    async fn refresh(&self, wanted: ServerId) {
        let _one = self.refreshing.lock().await;
        let version = self.metadata.servers_version();
        {
            let mut servers = self.servers.lock();
            let current = servers.version == Some(version);
            if current && servers.known.contains_key(&wanted) {
                return;
            }
            if current && servers.asked.is_some_and(|asked| asked.elapsed() < REFRESH_PERIOD_MIN) {
                return;
            }
            servers.asked = Some(Instant::now());
        }
        match self.metadata.ask(queries::Servers).await {
            Ok(list) => self.take_in(list, version),
            Err(error) => tracing::warn!(%error, "the list of storage servers can't be fetched; retrying"),
        }
    }

    fn take_in(&self, list: Vec<ServerInfo>, version: u64) {
        let mut servers = self.servers.lock();
        servers.version = Some(version);
        let mut before = std::mem::take(&mut servers.known);
        for info in list {
            let old = before.remove(&info.server);
            let distance = self.distance_of(&info);
            let new = match old {
                Some(old) if old.info.address == info.address => Server { info, distance, ..old },
                Some(old) => Server { info, distance, peer: None, failing: None, ..old },
                None => Server { info, distance, peer: None, last_use: 0, failing: None, awaited: false },
            };
            servers.known.insert(new.info.server, new);
        }
    }

    fn distance_of(&self, info: &ServerInfo) -> u32 {
        if self.config.local.contains_key(&info.server) {
            return 0;
        }
        let near = PLACE_LABELS.iter().position(|label| {
            let ours = self.config.labels.get(*label);
            ours.is_some() && ours == info.labels.get(*label)
        });
        near.unwrap_or(PLACE_LABELS.len()) as u32 + 1
    }

    fn note<T>(self: &Arc<Self>, server: ServerId, result: Result<T, RpcError>) -> Result<T, StorageFailure> {
        let result = result.map_err(|error| failure(server, &error));
        let mut servers = self.servers.lock();
        if let Some(found) = servers.known.get_mut(&server) {
            match &result {
                Err(StorageFailure::Unreachable(_)) => {
                    found.failed();
                    if !found.awaited && found.answers().is_none() {
                        found.awaited = true;
                        tokio::spawn(Arc::clone(self).wait_for(server));
                    }
                }
                _ => found.failing = None,
            }
        }
        result
    }

    /// Connects to a server whose connection is gone, as soon as it is there again: a new connection ends that it counts as
    /// failing, and nobody else asks a server that is avoided.
    async fn wait_for(self: Arc<Self>, server: ServerId) {
        loop {
            tokio::time::sleep(CONNECT_AGAIN).await;
            let peer = {
                let mut servers = self.servers.lock();
                let Some(found) = servers.known.get_mut(&server) else { return };
                match &found.peer {
                    Some((_, peer)) if found.failing_since().is_some() => peer.clone(),
                    _ => {
                        found.awaited = false;
                        return;
                    }
                }
            };
            let _ = tokio::time::timeout(CONNECT_TIMEOUT, peer.connection()).await;
        }
    }
}

fn close_least_used(servers: &mut Servers) {
    let open = servers.known.values().filter(|server| server.peer.is_some()).count();
    if open <= PEERS_MAX {
        return;
    }
    let least = servers.known.values_mut().filter(|server| server.peer.is_some()).min_by_key(|s| s.last_use);
    if let Some(least) = least {
        least.peer = None;
    }
}

fn failure(server: ServerId, error: &RpcError) -> StorageFailure {
    if let Some(refusal) = error.typed::<StorageError>() {
        return StorageFailure::Refused(refusal);
    }
    if error.is_transport() || error.is_safe_to_retry() {
        return StorageFailure::Unreachable(format!("storage server {server}: {error}"));
    }
    StorageFailure::Broken(format!("storage server {server}: {error}"))
}

/// See docs/tracing.md.
fn span(op: &'static str, server: ServerId, chunk: ChunkId, generation: Generation) -> Span {
    tracing::debug_span!(
        target: "atoll::trace", "storage", op, %server, %chunk, generation = generation.0
    )
}

impl<M: Metadata> Storage for StoragePool<M> {
    fn write<'a>(
        &'a self,
        server: ServerId,
        request: &'a WriteChunk,
        body: Vec<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<(), StorageFailure>> {
        async move {
            let peer = self.peer(server).await?;
            let (reply, _) =
                self.inner.note(server, peer.call_within::<WriteChunk>(request, body, deadline).await)?;
            if request.sync && !reply.durable {
                return Err(StorageFailure::Broken(format!("storage server {server} did not sync a write")));
            }
            Ok(())
        }
        .instrument(span("write", server, request.chunk, request.generation))
        .boxed()
    }

    fn sync(
        &self,
        server: ServerId,
        chunk: ChunkId,
        generation: Generation,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<(), StorageFailure>> {
        async move {
            let peer = self.peer(server).await?;
            let request = SyncChunk { chunk, generation };
            self.inner.note(server, peer.call_within::<SyncChunk>(&request, (), deadline).await)?;
            Ok(())
        }
        .instrument(span("sync", server, chunk, generation))
        .boxed()
    }

    fn read(
        &self,
        server: ServerId,
        request: ReadChunk,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<(ReadChunkReply, Bytes), StorageFailure>> {
        let span = span("read", server, request.chunk, request.generation);
        async move {
            let peer = self.peer(server).await?;
            self.inner.note(server, peer.call_within::<ReadChunk>(&request, (), deadline).await)
        }
        .instrument(span)
        .boxed()
    }

    fn suspect(&self, server: ServerId) {
        if let Some(found) = self.inner.servers.lock().known.get_mut(&server) {
            found.failed();
        }
    }

    fn failing_for(&self, server: ServerId) -> Option<Duration> {
        let servers = self.inner.servers.lock();
        servers.known.get(&server)?.failing_since().map(|since| since.elapsed())
    }

    fn failing(&self) -> Vec<ServerId> {
        let servers = self.inner.servers.lock();
        let fails = servers.known.iter().filter(|(_, server)| server.failing_since().is_some());
        let mut failing: Vec<ServerId> = fails.map(|(server, _)| *server).collect();
        // Hash maps have no order, and simulated worlds must have the same course each time.
        failing.sort_unstable();
        failing
    }

    fn distance(&self, server: ServerId) -> u32 {
        self.standing(server).1
    }

    fn standing(&self, server: ServerId) -> (bool, u32) {
        match self.inner.servers.lock().known.get(&server) {
            Some(found) => (found.failing_since().is_some(), found.distance),
            None if self.inner.config.local.contains_key(&server) => (false, 0),
            None => (false, PLACE_LABELS.len() as u32 + 1),
        }
    }
}

#[cfg(test)]
mod tests;
