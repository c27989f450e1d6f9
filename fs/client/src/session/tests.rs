use atoll_core::attributes::KillPriv;
use atoll_core::ids::{MemberId, ROOT};
use atoll_proto::metadata::{
    AskRequest, CloseNotice, MetadataError, MutateReply, MutateRequest, ReclaimRequest, SessionHeartbeat,
    SessionHeartbeatReply,
};
use atoll_proto::queries;
use atoll_proto::{Handler, PeerInfo, Request, Response, Status as WireStatus};
use bytes::Bytes;
use futures::FutureExt;
use std::collections::HashMap;

use super::*;
use crate::arena::ArenaConfig;
use crate::testing::{CLUSTER, MemVolume};

const TIMEOUT: Duration = Duration::from_secs(60);

/// What the members of a pretended metadata service share, and how they misbehave.
#[derive(Default)]
struct Faults {
    /// Index of the member that leads.
    leader: AtomicU64,
    /// Carry the next mutation out, but don't answer it.
    swallow_outcome: AtomicBool,
    /// Don't look at the next mutation.
    refuse_mutation: AtomicBool,
    /// With that outcome the session is lost, and somebody else removes the file `a`.
    lose_with_outcome: AtomicBool,
    /// Requests of each kind that were looked at.
    seen: Mutex<HashMap<u16, u64>>,
    reclaim: AtomicBool,
    term: AtomicU64,
}

struct Member {
    index: u64,
    names: Arc<Mutex<Vec<String>>>,
    volume: Arc<Mutex<MemVolume>>,
    faults: Arc<Faults>,
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Response, WireStatus> {
    Ok(Response { meta: postcard::to_allocvec(value).unwrap().into(), ..Response::default() })
}

fn fs(error: FsError) -> WireStatus {
    WireStatus::service(&MetadataError::Fs(error))
}

impl Handler for Member {
    async fn handle(&self, _peer: &PeerInfo, request: Request) -> Result<Response, WireStatus> {
        *self.faults.seen.lock().entry(request.kind).or_default() += 1;
        let leader = self.faults.leader.load(Ordering::SeqCst);
        if leader != self.index {
            let name = self.names.lock().get(leader as usize).cloned();
            return Err(WireStatus::service(&MetadataError::NotLeader {
                leader: name.map(|name| (MemberId(leader), name)),
            }));
        }
        let mut volume = self.volume.lock();
        match request.kind {
            kind::MUTATE => {
                let request: MutateRequest = postcard::from_bytes(&request.meta).unwrap();
                if self.faults.refuse_mutation.swap(false, Ordering::SeqCst) {
                    return Err(fs(FsError::NotPermitted));
                }
                let session = request.command.session;
                let outcome = volume.execute_to_open(request.command.into(), request.opens);
                if self.faults.swallow_outcome.swap(false, Ordering::SeqCst) {
                    if self.faults.lose_with_outcome.load(Ordering::SeqCst) {
                        volume.expire(session);
                        assert!(matches!(volume.remove("a"), Outcome::Inode(_)));
                        volume.purge();
                    }
                    return Err(WireStatus::service(&MetadataError::LeadershipLost));
                }
                encode(&MutateReply { outcome, parents: Vec::new() })
            }
            kind::ASK => {
                let request: AskRequest = postcard::from_bytes(&request.meta).unwrap();
                encode(&volume.answer(request.session, request.query).map_err(fs)?)
            }
            kind::SESSION_HEARTBEAT => {
                let beat: SessionHeartbeat = postcard::from_bytes(&request.meta).unwrap();
                if !volume.is_alive(beat.session) {
                    return Err(fs(FsError::SessionExpired));
                }
                encode(&SessionHeartbeatReply {
                    now: Timestamp { seconds: 1_000_000, nanos: 0 },
                    lifetime_ms: 300,
                    term: self.faults.term.load(Ordering::SeqCst),
                    reclaim: self.faults.reclaim.swap(false, Ordering::SeqCst),
                    return_reservation: false,
                    inline_allowed: true,
                    volume: volume.volume(),
                    servers_version: 1,
                    members: Vec::new(),
                    config: volume.config(),
                })
            }
            kind::RECLAIM => {
                let request: ReclaimRequest = postcard::from_bytes(&request.meta).unwrap();
                volume.hold(request.session, &request.open, true);
                encode(&())
            }
            kind::CLOSE => {
                let notice: CloseNotice = postcard::from_bytes(&request.meta).unwrap();
                volume.hold(notice.session, &notice.closed, false);
                encode(&())
            }
            other => Err(WireStatus::unknown_kind(other)),
        }
    }
}

struct Cluster {
    volume: Arc<Mutex<MemVolume>>,
    faults: Arc<Faults>,
    addresses: Vec<Address>,
    key: ClusterKey,
    stop: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Cluster {
    fn start(members: u64) -> Cluster {
        let volume = Arc::new(Mutex::new(MemVolume::new(VolumeConfig::default())));
        let faults = Arc::new(Faults::default());
        let names = Arc::new(Mutex::new(Vec::new()));
        let key = ClusterKey::random();
        let stop = CancellationToken::new();
        let mut addresses = Vec::new();
        for index in 0..members {
            let (listener, address) = atoll_proto::transport::memory(format!("m{index}"));
            names.lock().push(address.to_string());
            addresses.push(address);
            let identity = Identity {
                cluster: CLUSTER,
                role: Role::Metadata(MemberId(index)),
                key: key.clone(),
                encryption: Encryption::default(),
            };
            let member = Member {
                index,
                names: Arc::clone(&names),
                volume: Arc::clone(&volume),
                faults: Arc::clone(&faults),
            };
            tokio::spawn(atoll_proto::serve(listener, identity, Arc::new(member), stop.clone()));
        }
        Cluster { volume, faults, addresses, key, stop }
    }

    fn options(&self) -> SessionOptions {
        SessionOptions {
            connect_timeout: TIMEOUT,
            ..SessionOptions::new(self.addresses.clone(), CLUSTER, self.key.clone(), "test".into())
        }
    }

    async fn client(&self) -> (MetadataClient, Arc<Arena>) {
        let arena = Arena::create(ArenaConfig { op_slots: 9, data_bytes: 1 << 20 }).unwrap();
        let client = MetadataClient::connect(self.options(), Arc::clone(&arena)).await.unwrap();
        (client, arena)
    }

    fn seen(&self, kind: u16) -> u64 {
        self.faults.seen.lock().get(&kind).copied().unwrap_or(0)
    }
}

fn mkdir(name: &str) -> ops::Create {
    ops::Create {
        parent: ROOT,
        name: Bytes::copy_from_slice(name.as_bytes()),
        ino: None,
        mode: 0o40755,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Bytes::new(),
        umask: 0,
    }
}

fn lookup(name: &str) -> queries::Lookup {
    queries::Lookup { parent: ROOT, name: Bytes::copy_from_slice(name.as_bytes()) }
}

/// Waits until something holds; fails if it never does.
async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.expect("this never happened");
}

#[tokio::test]
async fn finds_the_leader_and_follows_it() {
    let cluster = Cluster::start(3);
    cluster.faults.leader.store(2, Ordering::SeqCst);
    let (client, arena) = cluster.client().await;
    client.mutate(mkdir("a")).await.unwrap();
    assert_eq!(client.status().leader, Some("memory:m2".into()));
    cluster.faults.leader.store(0, Ordering::SeqCst);
    client.mutate(mkdir("b")).await.unwrap();
    assert!(client.ask(lookup("a")).await.is_ok());
    assert_eq!(client.ask(lookup("c")).await, Err(FsError::NotFound.into()));
    assert_eq!(client.mutate(mkdir("a")).await, Err(FsError::Exists.into()));
    assert_eq!(client.status().leader, Some("memory:m0".into()));
    assert_eq!(client.now().seconds, 1_000_000, "the leader's clock");
    let adopted = Arena::adopt(arena.fd().try_clone_to_owned().unwrap()).unwrap();
    assert!(adopted.ops.iter().all(|op| op.pending.is_none()), "{:?}", adopted.ops);
}

#[tokio::test]
async fn a_mutation_whose_answer_is_lost_takes_effect_once() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let before = cluster.seen(kind::MUTATE);
    cluster.faults.swallow_outcome.store(true, Ordering::SeqCst);
    // Were it carried out twice, the second time would answer that the name is taken.
    client.mutate(mkdir("a")).await.unwrap();
    assert_eq!(cluster.seen(kind::MUTATE), before + 2);
}

#[tokio::test]
async fn many_mutations_at_once_share_the_slots() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let all = (0..100).map(|number| {
        let client = client.clone();
        tokio::spawn(async move { client.mutate(mkdir(&format!("d{number}"))).await })
    });
    for done in futures::future::join_all(all).await {
        done.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_lost_session_is_replaced_and_nothing_happens_twice() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let told = Arc::new(AtomicU64::new(0));
    client.subscribe({
        let told = Arc::clone(&told);
        Box::new(move |event| {
            assert_eq!(event, Event::SessionLost { was_parted: false });
            told.fetch_add(1, Ordering::SeqCst);
        })
    });
    let first = client.session();
    client.inner.open_files.lock().open(InodeId(77));
    // Carried out in a session that is gone when the answer should come: the new session learns of it.
    cluster.faults.swallow_outcome.store(true, Ordering::SeqCst);
    let mutation = tokio::spawn({
        let client = client.clone();
        async move { client.mutate(mkdir("a")).await }
    });
    until(|| !cluster.faults.swallow_outcome.load(Ordering::SeqCst)).await;
    cluster.volume.lock().expire(first);
    mutation.await.unwrap().unwrap();
    client.mutate(mkdir("b")).await.unwrap();
    assert_eq!(client.mutate(ops::Unreserve { bytes: 4096 }).await.map(|_| ()), Ok(()));
    until(|| client.session() != first).await;
    until(|| told.load(Ordering::SeqCst) == 1).await;
    assert_eq!(client.status().sessions_lost, 1);
    until(|| cluster.volume.lock().open_files(client.session()) == Some(1)).await;
}

#[tokio::test]
async fn data_of_a_lost_session_is_not_written_again() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    client.mutate(mkdir("a")).await.unwrap();
    cluster.volume.lock().expire(client.session());
    assert_eq!(client.mutate(write_to_root(&client)).await, Err(ClientError::SessionLost));
    // A name is: to its application it only took longer.
    cluster.volume.lock().expire(client.session());
    client.mutate(mkdir("b")).await.unwrap();
}

/// Is refused with `IsDirectory` once the service gets it.
fn write_to_root(client: &MetadataClient) -> ops::Write {
    ops::Write {
        ino: ROOT,
        pieces: Vec::new(),
        mtime: client.now(),
        kill_priv: KillPriv::NONE,
        reservation: 0,
    }
}

#[tokio::test]
async fn who_ends_its_session_opens_no_other_one() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let first = client.session();
    client.inner.closing.store(true, Ordering::Release);
    cluster.volume.lock().expire(first);
    // What comes too late, and the heartbeat that finds out.
    assert_eq!(client.mutate(mkdir("a")).await.map(drop), Err(ClientError::Stopped));
    client.inner.kick.notify_one();
    until(|| *client.inner.state.borrow() == State::Stopped).await;
    assert_eq!(client.session(), first);
    assert_eq!(client.status().sessions_lost, 0);
}

#[tokio::test]
async fn data_that_waits_for_a_slot_is_not_written_in_the_next_session() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let first = client.session();
    let mut slots = Vec::new();
    while let Some(Some(slot)) = client.inner.slots.take().now_or_never() {
        slots.push(slot);
    }
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.mutate(write_to_root(&client)).await }
    });
    let name = tokio::spawn({
        let client = client.clone();
        async move { client.mutate(mkdir("a")).await }
    });
    tokio::task::yield_now().await;
    cluster.volume.lock().expire(first);
    client.inner.kick.notify_one();
    until(|| client.status().sessions_lost == 1).await;
    drop(slots);
    assert_eq!(waiting.await.unwrap(), Err(ClientError::SessionLost));
    name.await.unwrap().unwrap();
    // What is asked for in the new session is sent in it.
    assert_eq!(client.mutate(write_to_root(&client)).await, Err(FsError::IsDirectory.into()));
}

#[tokio::test]
async fn what_is_not_wanted_any_more_when_it_could_be_sent_is_not_sent() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let seen = cluster.seen(kind::MUTATE);
    let op = || write_to_root(&client).into();
    assert_eq!(client.execute_if(op(), Box::new(|| false)).await, Err(ClientError::SessionLost));
    assert_eq!(cluster.seen(kind::MUTATE), seen);
    assert_eq!(client.execute_if(op(), Box::new(|| true)).await, Err(FsError::IsDirectory.into()));
    assert_eq!(cluster.seen(kind::MUTATE), seen + 1);
}

#[tokio::test]
async fn a_new_leader_is_told_the_open_files_and_the_closed_ones_are_let_go() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let dir = client.mutate(mkdir("a")).await.unwrap();
    let session = client.session();
    client.ask(queries::Open { ino: dir.ino, segments: 0 }).await.unwrap();
    assert_eq!(cluster.volume.lock().open_files(session), Some(1));
    // A new leader has forgotten.
    cluster.volume.lock().hold(session, &[dir.ino], false);
    cluster.faults.term.store(7, Ordering::SeqCst);
    cluster.faults.reclaim.store(true, Ordering::SeqCst);
    until(|| cluster.volume.lock().open_files(session) == Some(1)).await;
    client.closed(dir.ino);
    until(|| cluster.volume.lock().open_files(session) == Some(0)).await;
    assert!(client.ask(queries::Open { ino: InodeId(12345), segments: 0 }).await.is_err());
    assert!(!client.inner.open_files.lock().is_open(InodeId(12345)));
}

fn create(name: &str) -> ops::Create {
    ops::Create { mode: 0o100_644, ..mkdir(name) }
}

#[tokio::test]
async fn a_file_is_held_by_who_makes_it_from_the_start() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let session = client.session();
    let made = client.make(create("a").into()).await.unwrap();
    assert_eq!(cluster.volume.lock().open_files(session), Some(1), "before anything else was told");
    let ino = made.attributes.ino;
    client.mutate(ops::Unlink { parent: ROOT, name: "a".into(), directory: false }).await.unwrap();
    cluster.volume.lock().purge();
    assert_eq!(made.keep().ino, ino);
    client.ask(queries::GetAttr { ino }).await.unwrap();
    client.closed(ino);
    until(|| cluster.volume.lock().open_files(session) == Some(0)).await;
    cluster.volume.lock().purge();
    assert_eq!(client.ask(queries::GetAttr { ino }).await, Err(FsError::Stale.into()));
    // What is made without being opened is not held.
    client.mutate(create("b")).await.unwrap();
    assert_eq!(cluster.volume.lock().open_files(session), Some(0));
}

#[tokio::test]
async fn a_file_whose_maker_has_gone_away_is_closed() {
    let cluster = Cluster::start(2);
    let (client, _arena) = cluster.client().await;
    let session = client.session();
    drop(client.make(create("a").into()).await.unwrap());
    until(|| cluster.volume.lock().open_files(session) == Some(0)).await;
    // Nobody leads: it is on its way when its maker is interrupted.
    cluster.faults.leader.store(5, Ordering::SeqCst);
    let making = tokio::spawn({
        let client = client.clone();
        async move { client.make(create("b").into()).await.map(drop) }
    });
    until(|| client.status().waiting.is_some()).await;
    making.abort();
    cluster.faults.leader.store(1, Ordering::SeqCst);
    let found = async {
        while client.ask(lookup("b")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, found).await.expect("it is made nevertheless");
    until(|| cluster.volume.lock().open_files(session) == Some(0)).await;
    assert!(!client.inner.open_files.lock().has_closed());
}

#[tokio::test]
async fn a_file_that_was_made_in_a_session_that_is_lost_is_held_by_the_next_one() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let first = client.session();
    cluster.faults.swallow_outcome.store(true, Ordering::SeqCst);
    let making = tokio::spawn({
        let client = client.clone();
        async move { client.make(create("a").into()).await.map(Made::keep) }
    });
    until(|| !cluster.faults.swallow_outcome.load(Ordering::SeqCst)).await;
    cluster.volume.lock().expire(first);
    making.await.unwrap().unwrap();
    assert_ne!(client.session(), first);
    assert_eq!(cluster.volume.lock().open_files(client.session()), Some(1));
}

#[tokio::test]
async fn a_file_that_was_made_in_a_lost_session_and_is_removed_by_others_is_not_made_again() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    cluster.faults.lose_with_outcome.store(true, Ordering::SeqCst);
    cluster.faults.swallow_outcome.store(true, Ordering::SeqCst);
    let made = client.make(create("a").into()).await;
    assert_eq!(made.map(Made::keep), Err(ClientError::SessionLost));
}

#[tokio::test]
async fn requests_wait_for_a_cluster_that_is_away_and_end_in_time_if_they_are_to() {
    let cluster = Cluster::start(2);
    let (patient, _arena) = cluster.client().await;
    let options = SessionOptions { timeout: Some(Duration::from_millis(300)), ..cluster.options() };
    let arena = Arena::create(ArenaConfig::default()).unwrap();
    let hasty = MetadataClient::connect(options, arena).await.unwrap();
    // Nobody leads.
    cluster.faults.leader.store(5, Ordering::SeqCst);
    let waiting = tokio::spawn({
        let patient = patient.clone();
        async move { patient.mutate(mkdir("late")).await }
    });
    assert_eq!(hasty.ask(lookup("late")).await, Err(ClientError::TimedOut));
    until(|| patient.status().waiting.is_some()).await;
    assert!(!waiting.is_finished());
    cluster.faults.leader.store(1, Ordering::SeqCst);
    waiting.await.unwrap().unwrap();
    assert!(patient.status().connected);
}

#[tokio::test]
async fn a_session_is_valid_for_less_than_its_lifetime_since_it_was_heard_of() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let at_most = Duration::from_millis(300 - 30);
    assert!(client.valid_for() <= at_most);
    until(|| !client.valid_for().is_zero()).await;
    // Heartbeats make it so again and again, until they aren't answered.
    let began = clock::since_boot();
    until(|| clock::since_boot() - began > at_most && !client.valid_for().is_zero()).await;
    cluster.stop.cancel();
    until(|| client.valid_for().is_zero()).await;
}

#[tokio::test]
async fn who_has_the_wrong_key_is_told_at_once() {
    let cluster = Cluster::start(2);
    let options = SessionOptions { key: ClusterKey::random(), ..cluster.options() };
    let arena = Arena::create(ArenaConfig::default()).unwrap();
    let error = MetadataClient::connect(options, arena).await.err().unwrap();
    assert!(matches!(&error, SessionError::Hopeless(_)), "{error}");
    assert!(error.to_string().contains("keys differ"), "{error}");
}

#[tokio::test]
async fn a_closed_client_ends_its_session_and_serves_nobody() {
    let cluster = Cluster::start(1);
    let (client, _arena) = cluster.client().await;
    let session = client.session();
    client.close().await;
    assert!(!cluster.volume.lock().is_alive(session));
    assert_eq!(client.mutate(mkdir("a")).await, Err(ClientError::Stopped));
    assert_eq!(client.ask(lookup("a")).await, Err(ClientError::Stopped));
}

/// What a successor finds if the process dies now.
fn die(client: MetadataClient, arena: &Arc<Arena>) -> crate::arena::Adopted {
    // Nothing that it still has runs: no goodbye.
    client.inner.token.cancel();
    std::mem::forget(client);
    Arena::adopt(arena.fd().try_clone_to_owned().unwrap()).unwrap()
}

async fn succeed(
    cluster: &Cluster,
    mut adopted: crate::arena::Adopted,
) -> (MetadataClient, Inherited, Arc<Arena>) {
    let predecessor = Predecessor::of(&mut adopted).unwrap();
    let arena = Arc::clone(&adopted.arena);
    let (client, inherited) =
        MetadataClient::succeed(cluster.options(), Arc::clone(&arena), predecessor).await.unwrap();
    (client, inherited, arena)
}

#[tokio::test]
async fn a_successor_goes_on_in_the_same_session_and_does_nothing_twice() {
    let cluster = Cluster::start(1);
    let (client, arena) = cluster.client().await;
    let session = client.session();
    client.mutate(mkdir("a")).await.unwrap();
    // Requests of the kernel's: one is answered by the service, and not yet to the kernel; the outcome of another one never
    // came; what a third one would do was never asked for.
    let answered = origin::serving(7, client.mutate(mkdir("b"))).await.unwrap();
    cluster.faults.swallow_outcome.store(true, Ordering::SeqCst);
    let lost = tokio::spawn({
        let client = client.clone();
        async move { origin::serving(9, client.mutate(mkdir("c"))).await }
    });
    until(|| !cluster.faults.swallow_outcome.load(Ordering::SeqCst)).await;
    lost.abort();
    let adopted = die(client, &arena);
    let pending = adopted.ops.iter().filter(|op| op.pending.is_some()).count();
    assert!(pending <= 1, "{:?}", adopted.ops);

    let (client, inherited, arena) = succeed(&cluster, adopted).await;
    assert_eq!(client.session(), session);
    assert!(!inherited.is_lost && inherited.locks_are_known);
    let again = origin::serving(7, client.mutate(mkdir("b"))).await;
    assert_eq!(again, Ok(answered), "what it has led to already");
    assert!(origin::serving(9, client.mutate(mkdir("c"))).await.is_ok());
    assert_eq!(
        client.mutate(mkdir("c")).await,
        Err(FsError::Exists.into()),
        "another request is another one"
    );
    assert!(origin::serving(11, client.mutate(mkdir("d"))).await.is_ok());
    for number in 0..100 {
        client.mutate(mkdir(&format!("e{number}"))).await.unwrap();
    }
    // Its number is free again, for a successor as well.
    cluster.faults.refuse_mutation.store(true, Ordering::SeqCst);
    assert_eq!(client.mutate(mkdir("refused")).await, Err(FsError::NotPermitted.into()));

    // One after the other.
    let adopted = die(client, &arena);
    assert_eq!(adopted.session.map(|session| session.takeovers), Some(1));
    let (client, _, _) = succeed(&cluster, adopted).await;
    assert_eq!((client.session(), client.takeovers()), (session, 2));
    assert!(client.mutate(mkdir("f")).await.is_ok());
}

#[tokio::test]
async fn a_successor_of_a_lost_session_says_so() {
    let cluster = Cluster::start(1);
    let (client, arena) = cluster.client().await;
    let session = client.session();
    let made = origin::serving(7, client.mutate(mkdir("a"))).await.unwrap();
    let adopted = die(client, &arena);
    cluster.volume.lock().expire(session);
    let (client, inherited, _) = succeed(&cluster, adopted).await;
    assert_ne!(client.session(), session);
    assert!(inherited.is_lost && !inherited.locks_are_known);
    assert_eq!(origin::serving(7, client.mutate(mkdir("a"))).await, Ok(made), "that took effect before");
    client.mutate(mkdir("b")).await.unwrap();
}
