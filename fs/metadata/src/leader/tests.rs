//! With a group that has one member and elects it, or somebody else, when the test says so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use atoll_core::attributes::Timestamp;
use atoll_core::commands::ops;
use atoll_core::ids::{ChunkId, ClusterId, Generation, InodeId};
use atoll_proto::metadata::MutateRequest;
use atoll_proto::{ClusterKey, Encryption, Identity, Role};
use atoll_raft::{PeerError, ProposeError, RaftError, RaftStatus};
use bytes::Bytes;
use futures::{FutureExt, poll};
use tokio::sync::{oneshot, watch};

use super::*;
use crate::changes::{ChangeFeed, Work};
use crate::metrics::Metrics;
use crate::node::LeadersPlace;
use crate::peers::Members;
use crate::proposer::Log;
use crate::reads::Reads;
use crate::state_machine::{self, Machine};
use crate::store::folder::Folder;
use crate::store::records::Backend;

const ME: MemberId = MemberId(1);
const OTHER: (u64, &str) = (2, "other:1");
const SESSION: SessionId = SessionId(3);

/// Keeps each entry until it is let through, and then says that all was done.
#[derive(Default)]
struct Group {
    leadership: Mutex<Leadership>,
    changes: watch::Sender<Leadership>,
    entries: Mutex<Vec<Option<oneshot::Sender<()>>>>,
}

impl Group {
    fn elects_me(&self, term: u64) {
        self.changes_to(Leadership { term, is_leader: true, leader: Some((ME.0, "me:1".to_owned())) });
    }

    fn elects_other(&self, term: u64) {
        let leader = Some((OTHER.0, OTHER.1.to_owned()));
        self.changes_to(Leadership { term, is_leader: false, leader });
    }

    fn changes_to(&self, leadership: Leadership) {
        *self.leadership.lock() = leadership.clone();
        self.changes.send_replace(leadership);
    }

    fn lease_lapses(&self) {
        self.leadership.lock().is_leader = false;
    }

    async fn has_entries(&self, count: usize) {
        while self.entries.lock().len() < count {
            tokio::task::yield_now().await;
        }
    }

    fn lets_through(&self, entry: usize) {
        self.entries.lock()[entry].take().unwrap().send(()).unwrap();
    }
}

impl Log for Group {
    fn propose(&self, _: u64, _: Bytes) -> BoxFuture<'static, Result<Bytes, ProposeError>> {
        let (go, gone) = oneshot::channel();
        self.entries.lock().push(Some(go));
        async move {
            let _ = gone.await;
            Ok(state_machine::encode_outcomes(&[Outcome::Done]))
        }
        .boxed()
    }
}

impl Consensus for Group {
    fn leadership(&self) -> Leadership {
        self.leadership.lock().clone()
    }

    fn is_asked(&self, _: bool) -> bool {
        false
    }

    fn renew_lease(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.changes.subscribe()
    }

    fn status(&self) -> RaftStatus {
        unreachable!("nobody asks for the status here")
    }

    fn bootstrap(&self, _: BTreeMap<u64, String>) -> BoxFuture<'_, Result<(), RaftError>> {
        unreachable!("nobody changes the group here")
    }

    fn add_learner(&self, _: u64, _: String) -> BoxFuture<'_, Result<(), RaftError>> {
        unreachable!("nobody changes the group here")
    }

    fn change_voters(&self, _: BTreeSet<u64>) -> BoxFuture<'_, Result<(), RaftError>> {
        unreachable!("nobody changes the group here")
    }

    fn remove_learner(&self, _: u64) -> BoxFuture<'_, Result<(), RaftError>> {
        unreachable!("nobody changes the group here")
    }

    fn transfer_leader(&self, _: u64) -> BoxFuture<'_, Result<(), RaftError>> {
        unreachable!("nobody changes the group here")
    }

    fn handle_peer(&self, _: u16, _: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        unreachable!("there is no peer here")
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), RaftError>> {
        unreachable!("nobody flushes here")
    }
}

fn start(dir: &Path) -> (Arc<Node>, Arc<Group>) {
    let group = Arc::new(Group::default());
    let consensus: Arc<dyn Consensus> = group.clone();
    let (proposer, _) = Proposer::start(consensus.clone(), Metrics::default());
    let changes = Arc::new(ChangeFeed::default());
    let folder = Arc::new(Folder::open(dir, ClusterId(7), ME).unwrap());
    let machine = Machine::open(folder, &Backend::default(), changes.clone(), Metrics::default()).unwrap();
    let identity = Identity {
        cluster: ClusterId(7),
        role: Role::Metadata(ME),
        key: ClusterKey::new([7; 32]),
        encryption: Encryption::default(),
    };
    let node = Node {
        cluster: ClusterId(7),
        member: ME,
        address: "me:1".to_owned(),
        session_lifetime: Duration::from_secs(15),
        repair_after: Duration::from_secs(300),
        repair_bytes_per_second: 0,
        machine: Arc::new(machine),
        consensus,
        proposer,
        changes,
        reads: Reads::default(),
        members: Arc::new(Members::new(identity.clone())),
        place: LeadersPlace::default(),
        feature_level: AtomicU32::new(1),
        disk_low: AtomicBool::new(false),
        asked: AtomicU64::default(),
        metrics: Metrics::default(),
        identity,
        stopping: CancellationToken::new(),
    };
    (Arc::new(node), group)
}

fn server() -> ServerRecord {
    let address = "server:1".to_owned();
    ServerRecord { address, labels: BTreeMap::new(), joined: Timestamp::default(), draining: false }
}

fn request() -> MutateRequest {
    let op = ops::RemoveXattr { ino: InodeId(1), name: b"user.x".to_vec().into() }.into();
    let command = Command {
        session: SESSION,
        slot: SlotId(0),
        sequence: 1,
        time: Timestamp::default(),
        expect: None,
        op,
    };
    MutateRequest { command, opens: false }
}

fn in_flight(leader: &Leader) -> Option<usize> {
    leader.in_flight.lock().as_ref().map(HashMap::len)
}

/// Leaves something in everything that a leader has.
fn work_with(leader: &Leader) {
    let now = clock::since_boot();
    leader.sessions.lock().opened(SESSION, now);
    leader.servers.lock().registered(ServerId(4), server(), 1, (100, 1), now).unwrap();
    assert!(leader.tasks.lock().copy(ServerId(4), ChunkId(5), Generation(1), 4096, Vec::new()));
    leader.repair.lock().found(4096);
    leader.repair.lock().passed();
    leader.suspects.add([(ChunkId(5), ServerId(4))]);
    leader.changes.again(Work::Orphans, &keys::orphan(InodeId(6)));
    leader.locks.lock().question(SESSION, &[], now);
    leader.full.lock().insert(MemberId(2));
    leader.group_low.store(true, Ordering::Relaxed);
}

fn assert_nothing_in(leader: &Leader) {
    assert!(leader.sessions.lock().is_empty());
    assert_eq!(leader.servers.lock().record(ServerId(4)), None);
    assert_eq!(leader.repair_status(), RepairStatus::default());
    assert!(leader.suspects.is_empty() && leader.changes.waiting(Work::Orphans) == 0);
    assert!(leader.locks.lock().is_empty());
    assert!(leader.full.lock().is_empty());
    assert!(!leader.group_low.load(Ordering::Relaxed));
    assert_eq!(in_flight(leader), Some(0));
}

#[tokio::test]
async fn a_term_begins_with_nothing_of_an_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let (node, group) = start(dir.path());
    group.elects_me(5);
    let first = node.lead().unwrap();
    work_with(&first);
    // Elected again before it was noticed that another one led in between…
    group.elects_me(7);
    let second = node.lead().unwrap();
    assert_eq!(second.term, 7);
    assert_nothing_in(&second);
    work_with(&second);
    // …and after that was noticed.
    group.elects_other(8);
    node.step_down_if_over();
    assert!(node.leading().is_none());
    group.elects_me(9);
    assert_nothing_in(&node.lead().unwrap());
}

#[tokio::test]
async fn who_does_not_lead_gets_no_leaders_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (node, group) = start(dir.path());
    let led_by = |leader: Option<(u64, &str)>| MetadataError::NotLeader {
        leader: leader.map(|(member, address)| (MemberId(member), address.to_owned())),
    };
    assert_eq!(node.lead().err(), Some(led_by(None)));
    group.elects_me(5);
    let leader = node.lead().unwrap();
    // A lease that has lapsed for a moment leaves all as it is.
    group.lease_lapses();
    assert_eq!(node.lead().err(), Some(led_by(None)));
    assert_eq!(leader.confirm(), Err(led_by(None)));
    node.step_down_if_over();
    group.elects_me(5);
    assert!(Arc::ptr_eq(&node.lead().unwrap(), &leader) && leader.confirm().is_ok());
    group.elects_other(6);
    assert_eq!(node.lead().err(), Some(led_by(Some(OTHER))));
    assert_eq!(leader.confirm(), Err(led_by(Some(OTHER))));
    node.step_down_if_over();
    assert!(leader.ended().now_or_never().is_some(), "whoever waits in it goes away");
    // What was decided from a memory that is over isn't proposed, not even once this member leads again.
    let op = Op::from(ops::ExpireSession { session: SESSION });
    assert_eq!(leader.propose(op.clone()).await, Err(led_by(Some(OTHER))));
    group.elects_me(7);
    assert!(leader.propose(op.clone()).await.is_err() && leader.propose_all(vec![op]).await.is_err());
    assert!(group.entries.lock().is_empty());
}

#[tokio::test]
async fn a_task_of_an_older_term_changes_nothing_in_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (node, group) = start(dir.path());
    let send = |node: &Arc<Node>| {
        let node = node.clone();
        node.leading().unwrap().sessions.lock().opened(SESSION, clock::since_boot());
        tokio::spawn(async move { node.mutate(request()).await })
    };
    group.elects_me(5);
    let first = node.lead().unwrap();
    let sent = send(&node);
    group.has_entries(1).await;
    group.elects_me(7);
    let second = node.lead().unwrap();
    let sent_again = send(&node);
    group.has_entries(2).await;
    assert_eq!((in_flight(&first), in_flight(&second)), (None, Some(1)));
    group.lets_through(0);
    assert!(sent.await.unwrap().is_ok());
    assert_eq!(in_flight(&second), Some(1), "what is sent a third time joins the second");
    group.lets_through(1);
    assert!(sent_again.await.unwrap().is_ok());
    assert_eq!(in_flight(&second), Some(0));
}

#[tokio::test]
async fn what_was_given_up_halfway_does_not_keep_a_leaders_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (node, group) = start(dir.path());
    group.elects_me(5);
    let leader = node.lead().unwrap();
    leader.sessions.lock().opened(SESSION, clock::since_boot());
    {
        let mut given_up = Box::pin(node.mutate(request()));
        assert!(poll!(&mut given_up).is_pending());
    }
    assert_eq!(in_flight(&leader), Some(1), "who sends it again goes on with it");
    let kept = Arc::downgrade(&leader);
    drop(leader);
    assert!(kept.upgrade().is_some());
    group.elects_other(6);
    node.step_down_if_over();
    assert!(kept.upgrade().is_none());
}
