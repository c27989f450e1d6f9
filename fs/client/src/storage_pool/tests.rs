use std::sync::atomic::AtomicUsize;

use atoll_core::attributes::Timestamp;
use atoll_core::commands::{ClientOp, Outcome};
use atoll_core::ids::ClusterId;
use atoll_core::records::VolumeConfig;
use atoll_proto::metadata::{Answer, Query};
use atoll_proto::storage::{StorageRequest, WriteChunkReply};
use atoll_proto::{ClusterKey, Encryption, Handler, Listener, PeerInfo, Request, Response, Status};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::metadata::ClientError;

/// Names servers, and counts how often it is asked.
struct Names {
    servers: Mutex<Vec<ServerInfo>>,
    version: AtomicU64,
    asked: AtomicUsize,
    session: AtomicU64,
}

impl Metadata for Names {
    async fn execute(&self, _op: ClientOp) -> Result<Outcome, ClientError> {
        Err(ClientError::Stopped)
    }

    async fn query(&self, _query: Query) -> Result<Answer, ClientError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Answer::Servers(self.servers.lock().clone()))
    }

    fn session(&self) -> SessionId {
        SessionId(self.session.load(Ordering::Relaxed))
    }

    fn incarnation(&self) -> u64 {
        1
    }

    fn now(&self) -> Timestamp {
        Timestamp::default()
    }

    fn config(&self) -> Arc<VolumeConfig> {
        Arc::default()
    }

    fn inline_allowed(&self) -> bool {
        true
    }

    fn servers_version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }
}

/// A storage server of few words.
struct Terse;

impl Handler for Terse {
    async fn handle(&self, peer: &PeerInfo, request: Request) -> Result<Response, Status> {
        match StorageRequest::decode(&request)? {
            StorageRequest::Write(write) => {
                assert_eq!(peer.remote.role, Role::Client(write.writer.session));
                assert_eq!(request.body.len(), write.length as usize);
                // It takes a request to sync as a suggestion.
                Response::to::<WriteChunk>(&WriteChunkReply { durable: false }, ())
            }
            StorageRequest::Read(_) => Err(StorageError::Gone.into()),
            StorageRequest::Sync(sync) if sync.chunk == SLOW => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Response::to::<SyncChunk>(&(), ())
            }
            _ => Response::to::<SyncChunk>(&(), ()),
        }
    }
}

fn identity(role: Role) -> Identity {
    let (cluster, key) = (ClusterId(9), ClusterKey::new([4; 32]));
    Identity { cluster, role, key, encryption: Encryption::Off }
}

async fn serve(server: u64, stop: &CancellationToken) -> ServerInfo {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_address();
    let me = identity(Role::Storage(ServerId(server)));
    tokio::spawn(atoll_proto::serve(listener, me, Arc::new(Terse), stop.clone()));
    let labels = BTreeMap::from([("zone".to_owned(), format!("z{server}"))]);
    ServerInfo { server: ServerId(server), address, labels, alive: true }
}

fn write(session: u64, sync: bool) -> WriteChunk {
    WriteChunk {
        chunk: ChunkId(1),
        generation: Generation(1),
        writer: atoll_proto::storage::Writer { session: SessionId(session), incarnation: 1 },
        offset: 0,
        length: 6,
        checksums: vec![0],
        create: None,
        sync,
    }
}

const DEADLINE: Duration = Duration::from_secs(30);
/// A chunk that takes its time.
const SLOW: ChunkId = ChunkId(99);

#[tokio::test]
async fn a_server_fails_until_it_answers_be_it_late() {
    let stop = CancellationToken::new();
    let metadata = Arc::new(Names {
        servers: Mutex::new(vec![serve(1, &stop).await]),
        version: AtomicU64::new(1),
        asked: AtomicUsize::new(0),
        session: AtomicU64::new(7),
    });
    let identity = identity(Role::Client(SessionId(0)));
    let pool =
        StoragePool::new(metadata, PoolConfig { identity, labels: BTreeMap::new(), local: HashMap::new() });
    let one = ServerId(1);
    assert_eq!(pool.sync(one, ChunkId(1), Generation(1), DEADLINE).await, Ok(()));
    assert_eq!((pool.failing_for(one), pool.failing()), (None, vec![]));
    // A call that is given up, as writes are that wait for a straggler.
    let call = pool.sync(one, SLOW, Generation(1), DEADLINE);
    assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
    pool.suspect(one);
    assert!(pool.failing_for(one).is_some());
    assert_eq!(pool.failing(), [one]);
    // Its answer comes late, and nobody waits for it.
    let answered = async {
        while pool.failing_for(one).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(FAILURE_MEMORY / 2, answered).await.expect("it is still taken for silent");
    assert!(pool.failing().is_empty());
}

#[tokio::test]
async fn a_server_that_is_back_no_longer_fails_though_nobody_asks_it() {
    let stop = CancellationToken::new();
    let info = serve(1, &stop).await;
    let metadata = Arc::new(Names {
        servers: Mutex::new(vec![info.clone()]),
        version: AtomicU64::new(1),
        asked: AtomicUsize::new(0),
        session: AtomicU64::new(7),
    });
    let identity = identity(Role::Client(SessionId(0)));
    let config = PoolConfig { identity: identity.clone(), labels: BTreeMap::new(), local: HashMap::new() };
    let (pool, one) = (StoragePool::new(metadata, config), ServerId(1));
    assert_eq!(pool.sync(one, ChunkId(1), Generation(1), DEADLINE).await, Ok(()));
    stop.cancel();
    while pool.sync(one, ChunkId(1), Generation(1), Duration::from_millis(100)).await.is_ok() {}
    assert_eq!(pool.failing(), [one]);
    let listener = loop {
        match Listener::bind(&info.address.parse().unwrap()).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let me = Identity { role: Role::Storage(one), ..identity };
    let stop = CancellationToken::new();
    tokio::spawn(atoll_proto::serve(listener, me, Arc::new(Terse), stop.clone()));
    let back = async {
        while !pool.failing().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(FAILURE_MEMORY / 2, back).await.expect("it is still avoided");
    stop.cancel();
}

#[tokio::test]
async fn servers_are_found_by_their_ids_and_asked_as_the_current_session() {
    let stop = CancellationToken::new();
    let first = serve(1, &stop).await;
    let metadata = Arc::new(Names {
        servers: Mutex::new(vec![first]),
        version: AtomicU64::new(1),
        asked: AtomicUsize::new(0),
        session: AtomicU64::new(7),
    });
    let labels = BTreeMap::from([("zone".to_owned(), "z2".to_owned())]);
    let config = PoolConfig { identity: identity(Role::Client(SessionId(0))), labels, local: HashMap::new() };
    let pool = StoragePool::new(Arc::clone(&metadata), config);
    let body = || vec![Bytes::from_static(b"abc"), Bytes::from_static(b"def")];

    let (one, two) = (ServerId(1), ServerId(2));
    assert_eq!(pool.write(one, &write(7, false), body(), DEADLINE).await, Ok(()));
    assert_eq!(pool.write(one, &write(7, false), body(), DEADLINE).await, Ok(()));
    assert_eq!(metadata.asked.load(Ordering::Relaxed), 1);
    let unsynced = pool.write(one, &write(7, true), body(), DEADLINE).await;
    assert!(matches!(unsynced, Err(StorageFailure::Broken(_))), "{unsynced:?}");
    let request = ReadChunk {
        chunk: ChunkId(1),
        generation: Generation(1),
        offset: 0,
        length: 5,
        reader_verifies: true,
    };
    let gone = pool.read(one, request, DEADLINE).await;
    assert_eq!(gone, Err(StorageFailure::Refused(StorageError::Gone)));
    assert_eq!(pool.failing_for(one), None);

    // Another session, another connection.
    metadata.session.store(8, Ordering::Relaxed);
    assert_eq!(pool.write(one, &write(8, false), body(), DEADLINE).await, Ok(()));

    // A server that came later.
    let unknown = pool.sync(two, ChunkId(1), Generation(1), DEADLINE).await;
    assert!(matches!(unknown, Err(StorageFailure::Unreachable(_))), "{unknown:?}");
    let second = serve(2, &stop).await;
    metadata.servers.lock().push(second);
    metadata.version.store(2, Ordering::Relaxed);
    assert_eq!(pool.sync(two, ChunkId(1), Generation(1), DEADLINE).await, Ok(()));
    assert!(pool.distance(two) < pool.distance(one));

    // One that goes away.
    stop.cancel();
    metadata.servers.lock().retain(|info| info.server == one);
    let dead = loop {
        let result = pool.sync(one, ChunkId(1), Generation(1), Duration::from_millis(500)).await;
        if result.is_err() {
            break result;
        }
    };
    assert!(matches!(dead, Err(StorageFailure::Unreachable(_))), "{dead:?}");
    assert!(pool.failing_for(one).is_some());
}
