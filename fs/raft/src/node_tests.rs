//! Tests of whole nodes: one alone, and three in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use crate::error::{LogError, PeerError, ProposeError, RaftError};
use crate::node::RaftNode;
use crate::test_support::{HANG, Hub, Link, ListMachine, eventually};
use crate::types::{LogPosition, MemberId, NoPeers, RaftConfig, Role, StateMachine};
use crate::vote::VoteRecord;
use crate::wire::{self, kind};

fn config(member: MemberId, dir: &Path) -> RaftConfig {
    RaftConfig {
        segment_bytes: 64 << 10,
        flush_log_bytes: 256 << 10,
        keep_log_bytes: 0,
        heartbeat: Duration::from_millis(100),
        election: (Duration::from_millis(600), Duration::from_millis(1000)),
        ..RaftConfig::new(member, dir.join("log"))
    }
}

/// Long enough that nothing in a test waits for an election by timeout.
fn patient(member: MemberId, dir: &Path) -> RaftConfig {
    let election = (Duration::from_secs(600), Duration::from_secs(900));
    RaftConfig { election, ..config(member, dir) }
}

fn command(i: usize) -> Bytes {
    Bytes::from(format!("command {i}"))
}

fn alone(member: MemberId) -> BTreeMap<MemberId, String> {
    BTreeMap::from([(member, format!("member-{member}"))])
}

async fn open(config: RaftConfig, dir: &Path) -> (RaftNode, Arc<ListMachine>) {
    let machine = ListMachine::open(&dir.join("state"));
    let node = RaftNode::open(config, machine.clone(), Arc::new(NoPeers)).await.unwrap();
    (node, machine)
}

async fn ready(node: &RaftNode) {
    let mut leadership = node.watch_leadership();
    let ready = leadership.wait_for(|l| l.is_leader);
    tokio::time::timeout(HANG, ready).await.expect("leads in the end").unwrap();
    assert!(node.leadership().is_leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_carries_out_commands_and_restarts_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (node, machine) = open(patient(7, dir.path()), dir.path()).await;
    assert!(!node.leadership().is_leader);
    assert!(matches!(node.propose(command(0)).await, Err(ProposeError::NotLeader { leader: None })));
    let others = BTreeMap::from([(8, "member-8".into())]);
    assert!(matches!(node.bootstrap(others).await, Err(RaftError::NotAMember { member: 7 })));
    node.bootstrap(alone(7)).await.unwrap();
    ready(&node).await;
    assert_eq!(node.leadership().leader, Some((7, "member-7".into())));
    for i in 0..10 {
        assert_eq!(node.propose(command(i)).await.unwrap(), format!("did command {i}"));
    }
    // Many at once, each with its own answer.
    let node = Arc::new(node);
    let many: Vec<_> = (10..500)
        .map(|i| {
            let node = node.clone();
            tokio::spawn(async move { (i, node.propose(command(i)).await.unwrap()) })
        })
        .collect();
    for one in many {
        let (i, answer) = one.await.unwrap();
        assert_eq!(answer, format!("did command {i}"));
    }
    let mut expected = machine.commands();
    assert_eq!(expected.len(), 500);
    eventually("the status shows it", || {
        let status = node.status();
        status.applied == status.last_log
    })
    .await;
    let status = node.status();
    assert_eq!((status.role, status.failure, status.refusing), (Role::Leader, None, None));
    assert_eq!(status.members.len(), 1);
    node.shutdown().await;
    node.shutdown().await;
    assert!(matches!(node.propose(command(0)).await, Err(ProposeError::Stopped(_))));
    assert_eq!(machine.flushed(), machine.applied().position, "flushed at the end");
    assert_eq!(node.status().role, Role::Stopped);
    drop(node);

    let (node, machine) = open(patient(7, dir.path()), dir.path()).await;
    // Does nothing the second time.
    node.bootstrap(alone(7)).await.unwrap();
    ready(&node).await;
    assert_eq!(machine.commands(), expected);
    assert!(node.leadership().term > 1);
    node.propose(command(500)).await.unwrap();
    expected.push(command(500));
    assert_eq!(machine.commands(), expected);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_carried_out_in_the_order_of_their_first_polls() {
    let dir = tempfile::tempdir().unwrap();
    let (node, machine) = open(patient(1, dir.path()), dir.path()).await;
    node.bootstrap(alone(1)).await.unwrap();
    ready(&node).await;
    // More than may be under way, in bytes, and more than is accepted without a flush.
    let commands: Vec<Bytes> = (0..200u32)
        .map(|i| [&i.to_le_bytes()[..], &vec![0; (i as usize * 7919) % 8000]].concat().into())
        .collect();
    let all = futures::future::join_all(commands.iter().map(|c| node.propose(c.clone()))).await;
    assert!(all.iter().all(Result::is_ok));
    assert!(machine.commands() == commands);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_in_one_term_is_not_entered_in_another() {
    let dir = tempfile::tempdir().unwrap();
    let (node, machine) = open(patient(1, dir.path()), dir.path()).await;
    node.bootstrap(alone(1)).await.unwrap();
    ready(&node).await;
    let term = node.leadership().term;
    node.propose_in(term, command(0)).await.unwrap();
    for other in [term - 1, term + 1] {
        let refused = node.propose_in(other, command(1)).await;
        assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    }
    node.propose_in(term, command(2)).await.unwrap();
    assert_eq!(machine.commands(), [command(0), command(2)]);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_dropped_also_if_somebody_else_flushes_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _machine) = open(patient(1, dir.path()), dir.path()).await;
    node.bootstrap(alone(1)).await.unwrap();
    ready(&node).await;
    // Never so much at once that a flush would be due.
    for _ in 0..100 {
        for _ in 0..4 {
            node.propose(Bytes::from(vec![1; 8000])).await.unwrap();
        }
        node.flush().await.unwrap();
    }
    eventually("of 3 MB of log only the last segments are left", || node.status().log_file_bytes < 1 << 20)
        .await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_state_machine_stops_the_node_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (node, machine) = open(patient(1, dir.path()), dir.path()).await;
    node.bootstrap(alone(1)).await.unwrap();
    ready(&node).await;
    machine.apply_fails.store(true, Ordering::Relaxed);
    let failed = node.propose(command(0)).await;
    assert!(
        matches!(&failed, Err(ProposeError::Stopped(why)) if why.contains("it can't be done")),
        "{failed:?}"
    );
    let mut leadership = node.watch_leadership();
    let gone = leadership.wait_for(|l| !l.is_leader);
    tokio::time::timeout(HANG, gone).await.expect("it is told").unwrap();
    assert!(!node.leadership().is_leader);
    let status = node.status();
    assert_eq!(status.role, Role::Stopped);
    assert!(status.failure.is_some_and(|why| why.contains("it can't be done")));
    node.shutdown().await;
}

/// The process dies without a word: what was answered is there, though nothing was flushed.
#[test]
fn what_was_answered_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for life in 0..4 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (node, machine) = open(patient(1, dir.path()), dir.path()).await;
            node.bootstrap(alone(1)).await.unwrap();
            ready(&node).await;
            assert_eq!(machine.commands(), expected, "life {life}");
            for i in 0..50 {
                node.propose(command(life * 50 + i)).await.unwrap();
                expected.push(command(life * 50 + i));
            }
            assert_eq!(machine.flushes.load(Ordering::Relaxed), 0);
        });
        runtime.shutdown_background();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_flushed_and_dropped_by_size() {
    let dir = tempfile::tempdir().unwrap();
    let (node, machine) = open(patient(1, dir.path()), dir.path()).await;
    node.bootstrap(alone(1)).await.unwrap();
    ready(&node).await;
    let payload = Bytes::from(vec![9; 8 << 10]);
    for _ in 0..512 {
        node.propose(payload.clone()).await.unwrap();
    }
    assert!(machine.flushes.load(Ordering::Relaxed) >= 8, "4 MiB of log, a flush at each 128 KiB");
    eventually("old log goes", || node.status().log_file_bytes < 1 << 20).await;
    // The last of it may be on its way still: up to the whole limit is accepted before that.
    eventually("it is flushed", || node.status().unflushed_log_bytes < 256 << 10).await;
    assert!(node.status().purged.is_some());

    // While the state can't be flushed, only so much is accepted, and then it's said why.
    *machine.broken.lock() = Some("the disk is full".into());
    let mut refused = None;
    for _ in 0..200 {
        if let Err(error) = node.propose(payload.clone()).await {
            refused = Some(error);
            break;
        }
    }
    match refused {
        Some(ProposeError::Storage(why)) => assert!(why.contains("the disk is full"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(node.status().refusing.is_some());
    assert!(node.leadership().is_leader, "and reads go on");
    *machine.broken.lock() = None;
    node.flush().await.unwrap();
    node.propose(payload.clone()).await.unwrap();

    let giant = Bytes::from(vec![1; (64 << 10) / 8 + 1]);
    assert!(matches!(node.propose(giant).await, Err(ProposeError::TooLarge { max: 8192, .. })));
    let count = machine.commands().len();
    node.shutdown().await;
    drop(node);
    let (node, machine) = open(patient(1, dir.path()), dir.path()).await;
    ready(&node).await;
    assert_eq!(machine.commands().len(), count);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_folders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (node, machine) = open(patient(1, dir.path()), dir.path()).await;
    node.bootstrap(alone(1)).await.unwrap();
    ready(&node).await;
    let again = RaftNode::open(patient(1, dir.path()), machine.clone(), Arc::new(NoPeers)).await;
    assert!(matches!(again, Err(RaftError::InUse { .. })));
    let payload = Bytes::from(vec![9; 8 << 10]);
    for _ in 0..100 {
        node.propose(payload.clone()).await.unwrap();
    }
    eventually("some log is dropped", || node.status().purged.is_some()).await;
    node.shutdown().await;
    drop(node);
    // Another member's disk.
    let other = RaftNode::open(patient(2, dir.path()), machine.clone(), Arc::new(NoPeers)).await;
    assert!(matches!(other, Err(RaftError::Log(LogError::OtherMember { .. }))));
    // A state that was put back, or lost.
    let empty = ListMachine::open(&dir.path().join("other"));
    let old = RaftNode::open(patient(1, dir.path()), empty, Arc::new(NoPeers)).await;
    assert!(matches!(old, Err(RaftError::StateBehindLog { state: None, .. })));
    // Nothing tells that there was anything but who asks.
    let gone = dir.path().join("gone");
    let known = RaftConfig { has_voted: true, ..patient(1, &gone) };
    let lost = RaftNode::open(known, ListMachine::open(&gone), Arc::new(NoPeers)).await;
    assert!(matches!(lost, Err(RaftError::VoteMissing { .. })));
    let bad = RaftConfig { segment_bytes: 5000, ..patient(1, dir.path()) };
    assert!(matches!(RaftNode::open(bad, machine, Arc::new(NoPeers)).await, Err(RaftError::Config(_))));
}

struct Trio {
    dir: TempDir,
    hub: Arc<Hub>,
    machines: BTreeMap<MemberId, Arc<ListMachine>>,
    nodes: BTreeMap<MemberId, Arc<RaftNode>>,
}

impl Trio {
    async fn found(members: std::ops::RangeInclusive<MemberId>) -> Self {
        let mut trio = Self {
            dir: tempfile::tempdir().unwrap(),
            hub: Arc::default(),
            machines: BTreeMap::new(),
            nodes: BTreeMap::new(),
        };
        for member in members.clone() {
            trio.start(member).await;
        }
        let names: BTreeMap<_, _> = members.map(|m| (m, format!("member-{m}"))).collect();
        let first = trio.nodes.values().next().unwrap();
        first.bootstrap(names).await.unwrap();
        trio
    }

    fn member_dir(&self, member: MemberId) -> PathBuf {
        self.dir.path().join(member.to_string())
    }

    async fn start(&mut self, member: MemberId) {
        let dir = self.member_dir(member);
        let machine = ListMachine::open(&dir.join("state"));
        let link = Link { hub: self.hub.clone(), from: member };
        let node = RaftNode::open(config(member, &dir), machine.clone(), Arc::new(link)).await.unwrap();
        let node = Arc::new(node);
        self.hub.put(member, node.clone());
        self.machines.insert(member, machine);
        self.nodes.insert(member, node);
    }

    async fn stop(&mut self, member: MemberId) {
        self.hub.remove(member);
        let node = self.nodes.remove(&member).unwrap();
        node.shutdown().await;
    }

    /// The node that leads and may answer reads, among those that aren't cut off.
    async fn leader(&self, except: Option<MemberId>) -> (MemberId, Arc<RaftNode>) {
        let mut found = None;
        eventually("a leader", || {
            found = self
                .nodes
                .iter()
                .find(|(member, node)| Some(**member) != except && node.leadership().is_leader)
                .map(|(member, node)| (*member, node.clone()));
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Proposes until it's done, wherever the leader is.
    async fn propose(&self, command: Bytes, except: Option<MemberId>) {
        for _ in 0..100 {
            let (_, leader) = self.leader(except).await;
            if leader.propose(command.clone()).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no success");
    }

    async fn all_agree(&self) {
        let (_, leader) = self.leader(None).await;
        let target = leader.status().last_log;
        eventually("all have applied all", || self.machines.values().all(|m| m.applied().position >= target))
            .await;
        let mut lists = self.machines.values().map(|m| m.commands());
        let first = lists.next().unwrap();
        for other in lists {
            assert!(other == first, "{} and {} commands, or others", first.len(), other.len());
        }
    }

    async fn shutdown(mut self) {
        for member in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop(member).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_survive_the_loss_of_their_leader() {
    let mut trio = Trio::found(1..=3).await;
    let mut count = 0;
    for _ in 0..50 {
        trio.propose(command(count), None).await;
        count += 1;
    }
    let (old, _) = trio.leader(None).await;
    let term = trio.nodes[&old].leadership().term;
    trio.stop(old).await;
    trio.machines.remove(&old);
    for _ in 0..50 {
        trio.propose(command(count), None).await;
        count += 1;
    }
    let (new, node) = trio.leader(None).await;
    assert!(new != old && node.leadership().term > term);
    // Somebody who follows says who leads.
    let (_, follower) = trio.nodes.iter().find(|(m, _)| **m != new).unwrap();
    match follower.propose(command(0)).await {
        Err(ProposeError::NotLeader { leader: Some((leader, addr)) }) => {
            assert_eq!((leader, addr), (new, format!("member-{new}")));
        }
        other => panic!("{other:?}"),
    }
    trio.start(old).await;
    trio.propose(command(count), None).await;
    trio.all_agree().await;
    let (_, node) = trio.leader(None).await;
    let status = node.status();
    assert_eq!(status.members.len(), 3);
    assert!(status.members.values().all(|m| m.voter));
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_answers_no_reads_and_its_leftovers_go() {
    let trio = Trio::found(1..=3).await;
    for i in 0..10 {
        trio.propose(command(i), None).await;
    }
    let (old, node) = trio.leader(None).await;
    trio.hub.cut(old, true);
    // It may still accept it, but never commits it.
    let lost = tokio::spawn({
        let node = node.clone();
        async move { node.propose(Bytes::from_static(b"lost")).await }
    });
    eventually("its lease ends", || !node.leadership().is_leader).await;
    trio.propose(command(10), Some(old)).await;
    assert!(!node.leadership().is_leader);
    trio.hub.cut(old, false);
    trio.propose(command(11), Some(old)).await;
    let lost = tokio::time::timeout(HANG, lost).await.expect("an answer").unwrap();
    assert!(lost.is_err(), "{lost:?}");
    trio.all_agree().await;
    let expected: Vec<Bytes> = (0..12).map(command).collect();
    assert_eq!(trio.machines[&old].commands(), expected);
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_uses_lapses_and_is_renewed_for_who_asks() {
    let trio = Trio::found(1..=3).await;
    trio.propose(command(0), None).await;
    let (leader, node) = trio.leader(None).await;
    let term = node.leadership().term;
    for _ in 0..2 {
        eventually("its lease lapses", || node.is_asked(true)).await;
        assert!(!node.leadership().is_leader);
        let renewed = async {
            while !node.leadership().is_leader {
                node.renew_lease().await;
            }
        };
        tokio::time::timeout(HANG, renewed).await.expect("it is renewed");
    }
    assert_eq!(node.leadership().term, term, "nobody took its silence for its death");
    // Who asks has a heartbeat sent, too.
    eventually("its lease lapses", || node.is_asked(true)).await;
    node.is_asked(false);
    eventually("it is renewed", || node.leadership().is_leader).await;

    // Cut off it can't be renewed, and another one is elected.
    eventually("its lease lapses", || node.is_asked(true)).await;
    trio.hub.cut(leader, true);
    node.renew_lease().await;
    assert!(!node.leadership().is_leader);
    trio.propose(command(1), Some(leader)).await;
    trio.hub.cut(leader, false);
    trio.all_agree().await;
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lags_gets_a_snapshot_and_a_new_one_too() {
    let mut trio = Trio::found(1..=3).await;
    trio.propose(command(0), None).await;
    let (leader, _) = trio.leader(None).await;
    let lagging = if leader == 3 { 2 } else { 3 };
    trio.stop(lagging).await;
    let payload = Bytes::from(vec![5; 8 << 10]);
    let missed = trio.machines[&lagging].applied().position.unwrap().index;
    let mut sent = 0;
    loop {
        trio.propose(payload.clone(), Some(lagging)).await;
        sent += 1;
        let (_, node) = trio.leader(Some(lagging)).await;
        if sent > 100 && node.status().purged.is_some_and(|p| p.index > missed + 50) {
            break;
        }
        assert!(sent < 2000, "the log is dropped in the end");
    }
    trio.start(lagging).await;
    let behind = trio.machines[&lagging].clone();
    eventually("it gets a snapshot", || behind.installs.load(Ordering::Relaxed) > 0).await;
    for i in 0..10 {
        trio.propose(command(i), None).await;
    }
    trio.all_agree().await;
    // Restarted after that, it goes on from there.
    trio.stop(lagging).await;
    trio.start(lagging).await;
    trio.propose(command(10), None).await;
    trio.all_agree().await;

    // A new, empty member.
    trio.start(9).await;
    let (_, node) = trio.leader(None).await;
    node.add_learner(9, "member-9".into()).await.unwrap();
    assert!(trio.machines[&9].installs.load(Ordering::Relaxed) > 0);
    let (leader, node) = trio.leader(None).await;
    let voters: BTreeSet<MemberId> = [leader, 9, if leader == 1 { 2 } else { 1 }].into();
    node.change_membership(voters.clone(), false).await.unwrap();
    let status = node.status();
    assert_eq!(status.members.keys().copied().collect::<BTreeSet<_>>(), voters);
    let removed = (1..=3).find(|m| !voters.contains(m)).unwrap();
    trio.stop(removed).await;
    trio.machines.remove(&removed);
    trio.propose(command(11), None).await;
    trio.all_agree().await;
    // Nothing is left behind of the transfers.
    for member in voters {
        let dir = trio.member_dir(member).join("log");
        let left = std::fs::read_dir(dir).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("incoming")
        });
        assert_eq!(left.count(), 0);
    }
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_broke_off_goes_on_where_it_was() {
    let mut trio = Trio::found(1..=3).await;
    // All different, so that no part of the state is like another one.
    let mut random = 1u64;
    let mut payload = || -> Bytes {
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random.to_le_bytes()
        };
        (0..1000).flat_map(|_| next()).collect()
    };
    for _ in 0..700 {
        trio.propose(payload(), None).await;
    }
    let (leader, node) = trio.leader(None).await;
    let lagging = if leader == 3 { 2 } else { 3 };
    trio.stop(lagging).await;
    let missed = trio.machines[&lagging].applied().position.unwrap().index;
    let mut sent = 0;
    while node.status().purged.is_none_or(|purged| purged.index <= missed + 50) {
        trio.propose(payload(), Some(lagging)).await;
        sent += 1;
        assert!(sent < 2000, "the log is dropped in the end");
    }
    *trio.hub.chunks_max.lock() = Some(3);
    trio.start(lagging).await;
    eventually("a part comes", || trio.hub.chunks.load(Ordering::SeqCst) == 3).await;
    let mut chunks = 0;
    eventually("the leader says how far it is", || {
        let progress = node.status().members[&lagging].snapshot;
        chunks = progress.map_or(0, |progress| progress.total_bytes.div_ceil(1 << 20));
        chunks > 0
    })
    .await;
    assert!(chunks > 5);
    // Not even a restart makes it begin anew.
    trio.stop(lagging).await;
    trio.start(lagging).await;
    *trio.hub.chunks_max.lock() = None;
    let behind = trio.machines[&lagging].clone();
    eventually("it gets the rest", || behind.installs.load(Ordering::Relaxed) > 0).await;
    trio.propose(command(1), None).await;
    trio.all_agree().await;
    // Unless the machine was so slow that somebody else leads, or everything took a minute.
    if trio.leader(None).await.0 == leader && trio.machines[&leader].checkpoints.load(Ordering::Relaxed) == 1
    {
        assert_eq!(trio.hub.chunks.load(Ordering::SeqCst), chunks, "what was there was sent again");
    }
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_can_be_given_away() {
    let trio = Trio::found(1..=3).await;
    trio.propose(command(0), None).await;
    let (old, node) = trio.leader(None).await;
    let to = old % 3 + 1;
    assert!(matches!(node.transfer_leader(99).await, Err(RaftError::Membership(_))));
    node.transfer_leader(to).await.unwrap();
    assert!(!node.leadership().is_leader);
    let (new, _) = trio.leader(None).await;
    assert_eq!(new, to);
    trio.propose(command(1), None).await;
    assert!(matches!(node.transfer_leader(to).await, Err(RaftError::NotLeader { .. })));
    trio.all_agree().await;
    trio.shutdown().await;
}

/// A member that was restarted doesn't know what it has promised: it votes only after a lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_member_keeps_out_of_elections_for_a_lease() {
    let mut trio = Trio::found(1..=3).await;
    trio.propose(command(0), None).await;
    trio.all_agree().await;
    let ask = |node: Arc<RaftNode>, member, request_kind| async move {
        let request = wire::VoteRequest {
            vote: VoteRecord { term: 1_000, node: 2, committed: false },
            last: Some(LogPosition { term: 1_000, index: 1_000 }),
            leadership_transfer: true,
        };
        let answer = node.handle_peer(request_kind, wire::request(member, &request)).await.unwrap();
        wire::open_answer::<wire::VoteAnswer>(&answer)
    };
    // It would vote (a transfer of leadership overrides the leader's lease)…
    for member in 1..=3 {
        trio.hub.cut(member, true);
    }
    let answer = ask(trio.nodes[&1].clone(), 1, kind::VOTE).await.unwrap();
    assert!(answer.granted);
    // … but not just after a restart.
    trio.stop(1).await;
    trio.start(1).await;
    for request_kind in [kind::VOTE, kind::PRE_VOTE] {
        let refused = ask(trio.nodes[&1].clone(), 1, request_kind).await.unwrap_err();
        assert!(refused.contains("restarted a moment ago"), "{refused}");
    }
    // Requests for somebody else, and nonsense.
    let wrong = ask(trio.nodes[&1].clone(), 2, kind::VOTE).await.unwrap_err();
    assert!(wrong.contains("the request was for 2"), "{wrong}");
    let nonsense = trio.nodes[&1].handle_peer(kind::APPEND, Bytes::from_static(b"x")).await;
    assert!(matches!(nonsense, Err(PeerError::Malformed { kind: kind::APPEND })));
    for member in 1..=3 {
        trio.hub.cut(member, false);
    }
    trio.propose(command(1), None).await;
    trio.all_agree().await;
    trio.shutdown().await;
}
