//! How the cluster is, for people and for the operator.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use atoll_core::ids::{MemberId, ServerId, SessionId};
use atoll_core::keys;
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::query;
use atoll_core::records::SessionRecord;
use atoll_core::store::{Read, StoreError};
use atoll_proto::metadata::{ClusterStatus, MemberStatus, MetadataError, ServerStatus, SessionStatus};
use atoll_raft::RaftStatus;

use crate::clock;
use crate::counts::Counted;
use crate::leader::Leader;
use crate::membership::HEARD_WITHIN;
use crate::node::{Node, collect, store_error};
use crate::repair;
use crate::servers::Health;

impl Node {
    /// How the cluster is, as this member knows it; sessions and storage servers only the leader knows.
    pub(crate) fn status(&self) -> Result<ClusterStatus, MetadataError> {
        let leads = self.lead().is_ok();
        let leader = self.leading();
        let raft = self.consensus.status();
        let leadership = self.consensus.leadership();
        let store = self.machine.store();
        let records = store.snapshot();
        let volume = query::superblock(&records).ok();
        let mut status = ClusterStatus {
            cluster: volume.as_ref().map(|volume| volume.cluster),
            member: self.member,
            is_leader: leads,
            leader: leadership.leader.map(|(member, address)| (MemberId(member), address)),
            term: leadership.term,
            applied: raft.applied.map_or(0, |position| position.index),
            members: members(&raft, self.member, leads),
            ..ClusterStatus::default()
        };
        if let Some(volume) = &volume {
            status.volume = volume.volume_use();
            status.copies = volume.config.copies;
            status.inline_bytes = volume.inline_bytes;
            status.inline_budget_bytes = volume.config.inline_budget_bytes;
            status.feature_level = volume.feature_level;
        }
        if leads {
            status.repair = leader.as_ref().map(|leader| leader.repair_status()).unwrap_or_default();
            Self::group_problems(&mut status);
            if let Some(leader) = &leader {
                let known = self.known_level(leader);
                (status.feature_level_max, status.behind) = (known.level, known.behind);
            }
        }
        self.servers_and_problems(&mut status, leader.as_deref(), leads, &raft);
        let counted = self.machine.counts().map_err(|error| store_error(&error))?;
        let moving = show(&counted, leader.as_deref(), &mut status);
        if leads {
            let sessions = leader.map(|leader| sessions_of(&records, &leader)).transpose();
            status.sessions = sessions.map_err(|error| store_error(&error))?.unwrap_or_default();
        }
        let lacking = status.chunks_short.saturating_sub(moving);
        if lacking > 0 && leads {
            status.problems.push(format!(
                "{lacking} chunks have fewer replicas than desired: start or add storage servers"
            ));
        }
        Ok(status)
    }

    /// What is wrong with the group, as its leader sees it.
    fn group_problems(status: &mut ClusterStatus) {
        let silent_ms = HEARD_WITHIN.as_millis() as u64;
        let silent = |member: &&MemberStatus| member.silent_ms.is_none_or(|ms| ms > silent_ms);
        let others = status.members.iter().filter(|member| member.member != status.member);
        let words: Vec<String> = others
            .filter(silent)
            .map(|member| {
                format!(
                    "metadata server {} at {} doesn't respond: start it; if its disk is gone, replace it by \
                     a new one (atoll-fs admin members replace)",
                    member.member, member.address
                )
            })
            .collect();
        status.problems.extend(words);
        if let Some(member) = status.members.iter().find(|member| !member.voter) {
            status.problems.push(format!(
                "metadata server {} at {} receives the Raft log but has no vote: add it again, or remove it",
                member.member, member.address
            ));
        }
    }

    fn servers_and_problems(
        &self,
        status: &mut ClusterStatus,
        leader: Option<&Leader>,
        leads: bool,
        raft: &RaftStatus,
    ) {
        let now = clock::since_boot();
        let servers = leader.map(|leader| leader.servers.lock().clone()).unwrap_or_default();
        for (server, record, health, report, silent) in servers.all(now) {
            status.servers.push(ServerStatus {
                server,
                address: record.address.clone(),
                alive: health == Health::Alive,
                draining: record.draining,
                capacity: report.capacity,
                used: report.used,
                free: report.free,
                chunks: report.chunks,
                silent_ms: silent.as_millis() as u64,
                stored: 0,
            });
            if health != Health::Alive {
                status.problems.push(format!(
                    "storage server {server} at {} has not sent a heartbeat for {} s: start it, or replace \
                     it",
                    record.address,
                    silent.as_secs()
                ));
            }
            if report.disk_errors > 0 {
                status.problems.push(format!(
                    "the disk of storage server {server} at {} had {} errors: replace it",
                    record.address, report.disk_errors
                ));
            }
        }
        if status.cluster.is_none() {
            status.problems.push("the cluster isn't bootstrapped: run atoll-fs bootstrap".into());
        } else if leads && status.servers.len() < usize::from(status.copies) {
            status.problems.push(format!(
                "{} storage servers for {} copies: add {} more",
                status.servers.len(),
                status.copies,
                usize::from(status.copies) - status.servers.len()
            ));
        }
        let mut full = leader.map(|leader| leader.full.lock().clone()).unwrap_or_default();
        if self.disk_low.load(Ordering::Relaxed) {
            full.insert(self.member);
        }
        for member in full {
            status.problems.push(format!(
                "the disk of metadata server {member} is full: enlarge the disk, or delete files"
            ));
        }
        if self.machine.waits_for_room() {
            status.problems.push(format!(
                "metadata server {} waits for free space on its disk and continues by itself once there is \
                 some: enlarge the disk",
                self.member
            ));
        }
        if let Some(reason) = &raft.refusing {
            status.problems.push(format!("metadata server {} refuses changes: {reason}", self.member));
        }
        if let Some(damage) = self.machine.damage() {
            status.problems.push(format!(
                "data on the disk of metadata server {} is damaged ({damage}): replace the disk if this \
                 happens again",
                self.member
            ));
        }
        if let Some(failure) = &raft.failure {
            status.problems.push(format!("metadata server {} has stopped: {failure}", self.member));
        }
    }
}

/// Shows what was counted. Returns how many of the chunks that are short only move away from servers that are drained: they
/// have all their replicas, and nothing is wrong with them.
fn show(counted: &Counted, leader: Option<&Leader>, status: &mut ClusterStatus) -> u64 {
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    let now = clock::since_boot();
    let servers = leader.map(|leader| leader.servers.lock().clone()).unwrap_or_default();
    let is_heard = |server: &&ServerId| servers.health(**server, now) == Some(Health::Alive);
    let stays = |server: &&ServerId| servers.record(**server).is_some_and(|record| !record.draining);
    let mut stored: HashMap<ServerId, u64> = HashMap::new();
    let mut naming: BTreeMap<ServerId, u64> = BTreeMap::new();
    let mut by_replicas = vec![0; usize::from(status.copies) + 1];
    let mut moving = 0;
    for (kind, of_kind) in &counted.chunks {
        let chunks = number(of_kind.chunks);
        status.chunks += chunks;
        let heard = kind.replicas.iter().filter(is_heard).count();
        if kind.sealed && repair::lacking(kind.copies, &kind.replicas, &servers, now) > 0 {
            status.chunks_short += chunks;
            moving += if heard >= usize::from(kind.copies) { chunks } else { 0 };
        }
        let staying = kind.replicas.iter().filter(is_heard).filter(stays).count();
        if by_replicas.len() <= staying {
            by_replicas.resize(staying + 1, 0);
        }
        by_replicas[staying] += chunks;
        for server in &kind.replicas {
            *stored.entry(*server).or_default() += number(of_kind.live_blocks) * BLOCK_BYTES;
            *naming.entry(*server).or_default() += chunks;
        }
    }
    if leader.is_some() {
        status.chunks_by_replicas = by_replicas;
        status.chunks_naming = naming.into_iter().filter(|(_, chunks)| *chunks > 0).collect();
    }
    for server in &mut status.servers {
        server.stored = stored.get(&server.server).copied().unwrap_or(0);
    }
    status.orphans = number(counted.orphans);
    moving
}

fn sessions_of(records: &dyn Read, leader: &Leader) -> Result<Vec<SessionStatus>, StoreError> {
    let recorded = collect::<SessionRecord>(records, &keys::sessions())?;
    let sessions = leader.sessions.lock();
    Ok(recorded
        .into_iter()
        .filter_map(|(id, record)| {
            let session = SessionId(id);
            let open_files = sessions.open_files(session)? as u64;
            Some(SessionStatus {
                session,
                client: record.client,
                opened: record.opened,
                open_files,
                bytes_reserved: record.bytes_reserved,
            })
        })
        .collect())
}

/// The members; how far they are only their leader knows.
fn members(raft: &RaftStatus, me: MemberId, leads: bool) -> Vec<MemberStatus> {
    let last = raft.last_log.map_or(0, |position| position.index + 1);
    raft.members
        .iter()
        .map(|(id, peer)| {
            let is_me = MemberId(*id) == me;
            let has = peer.matched.map_or(0, |position| position.index + 1);
            MemberStatus {
                member: MemberId(*id),
                address: peer.addr.clone(),
                voter: peer.voter,
                lag: leads.then(|| if is_me { 0 } else { last.saturating_sub(has) }),
                silent_ms: match (leads, is_me) {
                    (false, _) => None,
                    (true, true) => Some(0),
                    (true, false) => peer.last_ack.map(|ack| ack.as_millis() as u64),
                },
                snapshot: peer.snapshot.map(|progress| (progress.done_bytes, progress.total_bytes)),
            }
        })
        .collect()
}
