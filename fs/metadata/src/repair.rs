//! What repair does: which chunk gets a further replica where, which replicas stay then, how much at a time. Pure; the
//! time is an argument (since boot).
//!
//! A replica counts while its server isn't given up and isn't being drained. A chunk with fewer gets one more; when
//! it is there, replicas that don't count go. With nothing to repair, replicas move from the fullest disks to the
//! emptiest ones in the same way: a further one, then one fewer. All that is under way is in the records and in the
//! servers' tasks, so a new leader goes on from what it finds.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use atoll_core::ids::ServerId;
use atoll_core::records::ChunkRecord;
use atoll_proto::metadata::RepairStatus;
use atoll_proto::storage::CopySource;

use crate::placement::{self, Candidate, SPREAD_LABELS};
use crate::servers::{Health, Servers};

/// Disks whose shares in use differ by less, in thousandths, are left alone: moving costs more than it brings…
const IMBALANCE_PERMILLE: u64 = 100;
/// …and so are those that differ by no more than so many chunks: copies under way are not in the reports yet, and a
/// small disk would be overfilled and emptied again.
const IMBALANCE_CHUNKS: u64 = 8;
/// Speed is measured over so long.
const SPEED_WINDOW: Duration = Duration::from_secs(30);

/// A further replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Where it goes.
    pub target: ServerId,
    /// Where it may come from.
    pub from: Vec<CopySource>,
}

/// Whether a replica on this server counts as one of the copies that are wanted.
fn counts(servers: &Servers, server: ServerId, now: Duration) -> bool {
    servers.health(server, now).is_some_and(|health| health != Health::Dead)
        && servers.record(server).is_some_and(|record| !record.draining)
}

/// Replicas that a chunk lacks.
#[must_use]
pub fn lacks(record: &ChunkRecord, servers: &Servers, now: Duration) -> usize {
    let there = record.replicas.iter().filter(|server| counts(servers, **server, now)).count();
    usize::from(record.copies).saturating_sub(there)
}

/// Where a sealed chunk that lacks a replica gets one.
#[must_use]
pub fn decide(record: &ChunkRecord, servers: &Servers, now: Duration, seed: u64) -> Option<Copy> {
    if !record.sealed || lacks(record, servers, now) == 0 {
        return None;
    }
    further(record, servers, now, seed)
}

/// Where a sealed chunk gets a further replica, however many it has. Each block comes from a replica that has it whole, so the
/// new one is whole even if none of the others is.
#[must_use]
pub fn further(record: &ChunkRecord, servers: &Servers, now: Duration, seed: u64) -> Option<Copy> {
    let candidates = servers.candidates(0, now);
    let target = *placement::place(&candidates, &taken(record, servers), 1, record.capacity, seed).first()?;
    Some(Copy { target, from: sources(record, servers, now)? })
}

/// Whether an open chunk is to be sealed: only then it can be copied, and its writer takes another one that is placed
/// on servers that count.
#[must_use]
pub fn is_to_be_sealed(record: &ChunkRecord, servers: &Servers, now: Duration) -> bool {
    !record.sealed && record.replicas.iter().any(|server| !counts(servers, *server, now))
}

/// Where a replica of a sealed chunk that lacks none would better be: the emptiest disk, if the fullest of those that
/// have one is much fuller, and replicas are spread no worse then.
#[must_use]
pub fn balance(record: &ChunkRecord, servers: &Servers, now: Duration) -> Option<Copy> {
    if !record.sealed || lacks(record, servers, now) > 0 {
        return None;
    }
    let fullest = fullest(&record.replicas, servers)?;
    let target = servers
        .candidates(0, now)
        .into_iter()
        .filter(|candidate| !record.replicas.contains(&candidate.server) && candidate.free >= record.capacity)
        .min_by_key(|candidate| (servers.used_permille(candidate.server), candidate.server))?;
    let (full, empty) = (servers.used_permille(fullest)?, servers.used_permille(target.server)?);
    let fullest_free = servers.report(fullest)?.free;
    if full < empty + IMBALANCE_PERMILLE
        || target.free < fullest_free.saturating_add(record.capacity * IMBALANCE_CHUNKS)
    {
        return None;
    }
    let target = target.server;
    let moved: Vec<ServerId> =
        record.replicas.iter().map(|server| if *server == fullest { target } else { *server }).collect();
    if spread(&moved, servers) < spread(&record.replicas, servers) {
        return None;
    }
    Some(Copy { target, from: sources(record, servers, now)? })
}

/// The replicas of a chunk that stay when a further one is there: those that count, without the fullest ones that are
/// too many; others only while there are too few of them.
#[must_use]
pub fn kept(record: &ChunkRecord, new: ServerId, servers: &Servers, now: Duration) -> Vec<ServerId> {
    let wanted = usize::from(record.copies);
    let all: Vec<ServerId> = record.replicas.iter().copied().chain([new]).collect();
    let (mut stay, others): (Vec<ServerId>, Vec<ServerId>) =
        all.into_iter().partition(|server| *server == new || counts(servers, *server, now));
    while stay.len() > wanted {
        let old: Vec<ServerId> = stay.iter().copied().filter(|server| *server != new).collect();
        let Some(fullest) = fullest(&old, servers) else { break };
        stay.retain(|server| *server != fullest);
    }
    // A server that is being drained still serves what it has.
    let serving =
        |server: &ServerId| servers.health(*server, now).is_some_and(|health| health != Health::Dead);
    let missing = wanted.saturating_sub(stay.len());
    stay.extend(others.into_iter().filter(serving).take(missing));
    stay
}

fn fullest(replicas: &[ServerId], servers: &Servers) -> Option<ServerId> {
    replicas.iter().copied().max_by_key(|server| (servers.used_permille(*server), *server))
}

/// In how many zones, then on how many hosts replicas are.
fn spread(replicas: &[ServerId], servers: &Servers) -> Vec<usize> {
    let values = |label: &str| {
        let of = |server: &ServerId| servers.record(*server).and_then(|record| record.labels.get(label));
        replicas.iter().filter_map(of).collect::<BTreeSet<_>>().len()
    };
    SPREAD_LABELS.iter().map(|label| values(label)).collect()
}

fn sources(record: &ChunkRecord, servers: &Servers, now: Duration) -> Option<Vec<CopySource>> {
    let from: Vec<CopySource> = record
        .replicas
        .iter()
        .filter(|server| servers.health(**server, now) == Some(Health::Alive))
        .filter_map(|server| {
            Some(CopySource { server: *server, address: servers.record(*server)?.address.clone() })
        })
        .collect();
    (!from.is_empty()).then_some(from)
}

fn taken(record: &ChunkRecord, servers: &Servers) -> Vec<Candidate> {
    let of = |server: &ServerId| {
        let labels = servers.record(*server)?.labels.clone();
        Some(Candidate { server: *server, labels, free: 0 })
    };
    record.replicas.iter().filter_map(of).collect()
}

/// How many bytes a second may be copied, so that users' own requests come first.
#[derive(Debug)]
pub struct Budget {
    rate: u64,
    left: i64,
    at: Duration,
}

impl Budget {
    /// So many bytes a second; 0: as many as there are.
    #[must_use]
    pub fn new(rate: u64) -> Budget {
        Budget { rate, left: 0, at: Duration::ZERO }
    }

    /// Whether a copy of so many bytes may begin. A copy that is larger than what is left may: those after it wait.
    pub fn take(&mut self, bytes: u64, now: Duration) -> bool {
        if self.rate == 0 {
            return true;
        }
        let rate = i64::try_from(self.rate).unwrap_or(i64::MAX);
        let passed = i64::try_from(now.saturating_sub(self.at).as_millis()).unwrap_or(i64::MAX);
        self.at = now;
        self.left = self.left.saturating_add(rate.saturating_mul(passed.min(1000)) / 1000).min(rate);
        if self.left <= 0 {
            return false;
        }
        self.left = self.left.saturating_sub_unsigned(bytes);
        true
    }
}

/// How far repair is, in the leader's memory.
#[derive(Debug, Default)]
pub struct Progress {
    /// Of the last whole pass over the chunks.
    found: (u64, u64),
    /// Of the pass that is under way.
    finding: (u64, u64),
    copied: (u64, u64),
    recent: VecDeque<(Duration, u64)>,
}

impl Progress {
    /// A chunk lacks replicas of so many bytes in all.
    pub fn found(&mut self, bytes: u64) {
        self.finding.0 += 1;
        self.finding.1 += bytes;
    }

    /// The pass is over.
    pub fn passed(&mut self) {
        self.found = std::mem::take(&mut self.finding);
    }

    /// A replica of so many bytes is there.
    pub fn copied(&mut self, bytes: u64, now: Duration) {
        self.copied.0 += 1;
        self.copied.1 += bytes;
        self.found.0 = self.found.0.saturating_sub(1);
        self.found.1 = self.found.1.saturating_sub(bytes);
        self.recent.push_back((now, bytes));
        self.forget(now);
    }

    fn forget(&mut self, now: Duration) {
        while self.recent.front().is_some_and(|(at, _)| now.saturating_sub(*at) > SPEED_WINDOW) {
            self.recent.pop_front();
        }
    }

    /// For the status.
    pub fn status(&mut self, copying: u64, now: Duration) -> RepairStatus {
        self.forget(now);
        let since = self.recent.front().map_or(now, |(at, _)| *at);
        let seconds = now.saturating_sub(since).as_secs().max(1);
        let bytes_per_second = self.recent.iter().map(|(_, bytes)| bytes).sum::<u64>() / seconds;
        let (chunks_left, bytes_left) = self.found;
        RepairStatus {
            chunks_left,
            bytes_left,
            copying,
            chunks_copied: self.copied.0,
            bytes_copied: self.copied.1,
            bytes_per_second,
            eta_seconds: (bytes_per_second > 0).then(|| bytes_left / bytes_per_second),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use atoll_core::ids::{Generation, SessionId};
    use atoll_core::records::{ChunkKind, ServerRecord};

    use super::*;
    use crate::servers::{DEAD_AFTER, Report};

    const CAPACITY: u64 = 1 << 40;

    /// Servers 1 to `count`, each in a zone of its own, with this share of their disks in use (per cent).
    fn servers(used: &[u64]) -> Servers {
        let mut table = Servers::begin(1, Duration::ZERO, DEAD_AFTER, []);
        for (at, used) in used.iter().enumerate() {
            let number = at as u64 + 1;
            let record = ServerRecord {
                address: format!("s{number}:1"),
                labels: BTreeMap::from([("zone".to_owned(), format!("z{number}"))]),
                joined: Default::default(),
                draining: false,
            };
            let space = (CAPACITY, CAPACITY / 100 * used);
            table.registered(ServerId(number), record, 1, space, Duration::ZERO).unwrap();
        }
        table
    }

    fn drain(table: &mut Servers, number: u64) {
        let mut record = table.record(ServerId(number)).unwrap().clone();
        record.draining = true;
        table.set_record(ServerId(number), record);
    }

    fn chunk(replicas: &[u64]) -> ChunkRecord {
        ChunkRecord {
            generation: Generation(2),
            writer: SessionId(1),
            incarnation: 1,
            replicas: replicas.iter().map(|number| ServerId(*number)).collect(),
            copies: 3,
            kind: ChunkKind::Stream,
            capacity: 64 << 20,
            committed: 4096,
            sealed: true,
            live_blocks: 1,
            dead_blocks: 0,
        }
    }

    fn ids(numbers: &[u64]) -> Vec<ServerId> {
        numbers.iter().map(|number| ServerId(*number)).collect()
    }

    #[test]
    fn a_short_chunk_is_copied_to_a_server_that_has_none() {
        let table = servers(&[10; 3]);
        let copy = decide(&chunk(&[1, 2]), &table, Duration::ZERO, 7).unwrap();
        assert_eq!(copy.target, ServerId(3));
        let from: Vec<_> = copy.from.iter().map(|source| source.address.as_str()).collect();
        assert_eq!(from, ["s1:1", "s2:1"]);
        assert!(decide(&chunk(&[1, 2, 3]), &table, Duration::ZERO, 7).is_none());
        assert!(decide(&chunk(&[1, 2]), &servers(&[10; 2]), Duration::ZERO, 7).is_none(), "nowhere to go");
        let open = ChunkRecord { sealed: false, ..chunk(&[1]) };
        assert!(decide(&open, &table, Duration::ZERO, 7).is_none());
        assert!(!is_to_be_sealed(&open, &table, Duration::ZERO));
        assert_eq!(kept(&chunk(&[1, 2]), ServerId(3), &table, Duration::ZERO), ids(&[1, 2, 3]));
    }

    #[test]
    fn a_server_that_is_silent_for_a_moment_is_waited_for() {
        let mut table = servers(&[10; 4]);
        let late = DEAD_AFTER + Duration::from_secs(100);
        for server in [1, 2, 4] {
            let beat = Report { free: CAPACITY, ..Default::default() };
            table.heartbeat(ServerId(server), 1, beat, true, late).unwrap();
        }
        assert!(decide(&chunk(&[1, 2, 3]), &table, Duration::from_secs(10), 7).is_none());
        let copy = decide(&chunk(&[1, 2, 3]), &table, late, 7).unwrap();
        assert_eq!(copy.target, ServerId(4));
        assert_eq!(kept(&chunk(&[1, 2, 3]), ServerId(4), &table, late), ids(&[1, 2, 4]));
    }

    #[test]
    fn a_draining_server_serves_until_there_are_enough_others() {
        let mut table = servers(&[10; 5]);
        drain(&mut table, 1);
        drain(&mut table, 2);
        let record = chunk(&[1, 2, 3]);
        assert!(!is_to_be_sealed(&record, &table, Duration::ZERO), "it is");
        let open = ChunkRecord { sealed: false, ..record.clone() };
        assert!(is_to_be_sealed(&open, &table, Duration::ZERO), "its writer takes another one");
        assert_eq!(lacks(&record, &table, Duration::ZERO), 2);
        let copy = decide(&record, &table, Duration::ZERO, 7).unwrap();
        assert!(copy.target == ServerId(4) || copy.target == ServerId(5));
        assert_eq!(copy.from.len(), 3, "it may be copied from");
        assert_eq!(kept(&record, ServerId(4), &table, Duration::ZERO), ids(&[3, 4, 1]));
        assert_eq!(kept(&chunk(&[3, 4, 1]), ServerId(5), &table, Duration::ZERO), ids(&[3, 4, 5]));
    }

    #[test]
    fn replicas_move_from_full_disks_to_empty_ones_and_nothing_else() {
        let table = servers(&[60, 70, 50, 5]);
        let record = chunk(&[1, 2, 3]);
        let copy = balance(&record, &table, Duration::ZERO).unwrap();
        assert_eq!(copy.target, ServerId(4));
        assert_eq!(kept(&record, ServerId(4), &table, Duration::ZERO), ids(&[1, 3, 4]), "the fullest goes");
        assert!(balance(&record, &servers(&[14, 14, 14, 5]), Duration::ZERO).is_none(), "not worth it");
        assert!(balance(&chunk(&[1, 2]), &table, Duration::ZERO).is_none(), "repair comes first");
        // The empty server is in the zone of one that keeps its replica.
        let mut same_zone = servers(&[60, 70, 50, 5]);
        let mut in_zone_of_1 = same_zone.record(ServerId(4)).unwrap().clone();
        in_zone_of_1.labels.insert("zone".into(), "z1".into());
        same_zone.set_record(ServerId(4), in_zone_of_1);
        assert!(balance(&record, &same_zone, Duration::ZERO).is_none(), "a zone fewer");
    }

    #[test]
    fn a_budget_lets_through_what_it_has() {
        let at = |ms| Duration::from_secs(100) + Duration::from_millis(ms);
        let mut budget = Budget::new(100 << 20);
        assert!(budget.take(64 << 20, at(0)));
        assert!(budget.take(64 << 20, at(0)), "what is left is enough to begin");
        assert!(!budget.take(64 << 20, at(0)));
        assert!(!budget.take(64 << 20, at(200)), "still owed");
        assert!(budget.take(64 << 20, at(500)));
        assert!((0..100).all(|_| Budget::new(0).take(1 << 40, at(0))));
    }

    #[test]
    fn progress_has_a_speed_and_an_end() {
        let at = Duration::from_secs;
        let mut progress = Progress::default();
        for _ in 0..10 {
            progress.found(64 << 20);
        }
        progress.passed();
        progress.copied(64 << 20, at(100));
        progress.copied(64 << 20, at(102));
        let status = progress.status(3, at(102));
        assert_eq!((status.chunks_left, status.bytes_left, status.copying), (8, 512 << 20, 3));
        assert_eq!((status.bytes_per_second, status.eta_seconds), (64 << 20, Some(8)));
        let later = progress.status(0, at(200));
        assert_eq!((later.bytes_per_second, later.eta_seconds), (0, None));
        progress.passed();
        assert_eq!(progress.status(0, at(200)).chunks_left, 0);
    }
}
