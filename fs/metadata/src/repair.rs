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
/// All chunks are looked at at least so often, whatever happens.
const PASS_EVERY: Duration = Duration::from_secs(24 * 3600);
/// While some server doesn't count: a chunk may have been placed there just before that was known.
const PASS_EVERY_WITHOUT_ONE: Duration = Duration::from_secs(600);
/// Disks that are uneven and that nothing could be done about are looked at again after this.
const BALANCE_EVERY: Duration = Duration::from_secs(600);
/// Bounds of the pause after a pass that found something and could begin nothing; it doubles.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);
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
    lacking(record.copies, &record.replicas, servers, now)
}

/// Replicas that a chunk lacks of which `copies` are wanted and that has these.
#[must_use]
pub fn lacking(copies: u8, replicas: &[ServerId], servers: &Servers, now: Duration) -> usize {
    let there = replicas.iter().filter(|server| counts(servers, **server, now)).count();
    usize::from(copies).saturating_sub(there)
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

/// Whether some disk is so much fuller than another one that [`balance`] may move replicas.
#[must_use]
pub fn is_uneven(servers: &Servers, now: Duration) -> bool {
    let share = |server: &ServerId| servers.used_permille(*server);
    let candidates = servers.candidates(0, now);
    let emptiest = candidates.iter().filter_map(|candidate| share(&candidate.server)).min();
    let fullest = servers.all(now).filter_map(|(server, ..)| share(&server)).max();
    emptiest.zip(fullest).is_some_and(|(emptiest, fullest)| fullest >= emptiest + IMBALANCE_PERMILLE)
}

/// The servers there are, and whether replicas on them count.
pub type Standing = Vec<(ServerId, bool)>;

/// See [`Standing`].
#[must_use]
pub fn standing(servers: &Servers, now: Duration) -> Standing {
    servers.all(now).map(|(server, ..)| (server, counts(servers, server, now))).collect()
}

/// When all chunks are looked at. Chunks that are short by their own records are named one by one; which ones lack a replica
/// because of its server only looking at all of them tells.
#[derive(Debug)]
pub struct Passes {
    standing: Option<Standing>,
    /// Nothing was left to repair after the last pass.
    sound: bool,
    /// One is to begin as soon as possible.
    wanted: bool,
    next: Duration,
    next_balance: Duration,
    /// The pause after the next pass that could begin nothing.
    pause: Duration,
}

/// A pass over all chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassKind {
    /// Replicas may be moved for balance.
    pub may_balance: bool,
}

impl Passes {
    /// Of a leader that begins at `now`.
    #[must_use]
    pub fn new(now: Duration) -> Passes {
        let next = now + PASS_EVERY;
        Passes { standing: None, sound: true, wanted: false, next, next_balance: now, pause: PAUSE_MIN }
    }

    /// Whether a pass is to begin.
    pub fn begins(&mut self, servers: &Servers, now: Duration) -> Option<PassKind> {
        let standing = standing(servers, now);
        if self.standing.as_ref() != Some(&standing) {
            // Nothing lacks a replica because of its server when a leader begins with all of them.
            let is_news = self.standing.is_some() || standing.iter().any(|(_, counts)| !counts);
            self.standing = Some(standing);
            self.pause = PAUSE_MIN;
            self.wanted |= is_news;
        }
        if std::mem::take(&mut self.wanted) || now >= self.next {
            return Some(PassKind { may_balance: false });
        }
        (self.sound && now >= self.next_balance && is_uneven(servers, now))
            .then_some(PassKind { may_balance: true })
    }

    /// A pass has come to its end. `sound`: it found nothing to repair; `works`: it has begun something, or something that was
    /// begun earlier is under way.
    pub fn ended(&mut self, kind: PassKind, sound: bool, works: bool, now: Duration) {
        self.sound = sound;
        if kind.may_balance {
            self.next_balance = if works { now } else { now + BALANCE_EVERY };
        }
        match (sound, works) {
            (true, _) => {
                let all_count = self.standing.iter().flatten().all(|(_, counts)| *counts);
                let every = if all_count { PASS_EVERY } else { PASS_EVERY_WITHOUT_ONE };
                (self.next, self.pause) = (now + every, PAUSE_MIN);
            }
            (false, true) => (self.next, self.pause) = (now, PAUSE_MIN),
            (false, false) => {
                self.next = now + self.pause;
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Whether nothing is to be done before something happens.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.sound && !self.wanted
    }

    /// All chunks are to be looked at as soon as possible: more are named than are looked at one by one.
    pub fn wanted(&mut self) {
        self.wanted = true;
    }
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
    /// Of the chunks that are named one by one.
    named: (u64, u64),
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

    /// So many chunks that are named lack replicas of so many bytes in all.
    pub fn named(&mut self, chunks: u64, bytes: u64) {
        self.named = (chunks, bytes);
    }

    /// A replica of so many bytes is there.
    pub fn copied(&mut self, bytes: u64, now: Duration) {
        self.copied.0 += 1;
        self.copied.1 += bytes;
        for left in [&mut self.found, &mut self.named] {
            left.0 = left.0.saturating_sub(1);
            left.1 = left.1.saturating_sub(bytes);
        }
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
        // What is named is found by a pass, too.
        let (chunks_left, bytes_left) = self.found.max(self.named);
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

    #[test]
    fn chunks_are_walked_when_a_server_stops_counting_or_counts_again_and_until_nothing_is_left() {
        let mut table = servers(&[10, 10, 10, 10]);
        let pass = PassKind { may_balance: false };
        let repairs = Some(pass);
        let at = Duration::from_secs;
        let all_alive = |table: &mut Servers, seconds| {
            for number in 1..=4 {
                table
                    .heartbeat(
                        ServerId(number),
                        1,
                        table.report(ServerId(number)).unwrap().clone(),
                        true,
                        at(seconds),
                    )
                    .unwrap();
            }
        };
        all_alive(&mut table, 0);
        let mut passes = Passes::new(at(0));
        assert_eq!(passes.begins(&table, at(0)), None, "a leader begins, and all are there");
        drain(&mut table, 2);
        let kind = passes.begins(&table, at(1));
        assert_eq!(kind, repairs);
        // It has begun something; then it could begin nothing, for longer and longer; then nothing was left.
        passes.ended(pass, false, true, at(5));
        assert_eq!(passes.begins(&table, at(5)), repairs);
        for (begun, pause) in [(6, 1), (7, 2), (9, 4), (13, 8), (21, 10), (31, 10)] {
            passes.ended(pass, false, false, at(begun));
            assert_eq!(
                passes.begins(&table, at(begun) + Duration::from_secs(pause) - Duration::from_millis(1)),
                None
            );
            assert_eq!(passes.begins(&table, at(begun + pause)), repairs);
        }
        passes.ended(pass, true, false, at(41));
        let absent = 41 + PASS_EVERY_WITHOUT_ONE.as_secs();
        all_alive(&mut table, absent);
        assert_eq!(passes.begins(&table, at(absent - 1)), None);
        assert_eq!(passes.begins(&table, at(absent)), repairs, "while one is drained");
        passes.ended(pass, true, false, at(absent));
        table.set_record(ServerId(2), table.record(ServerId(1)).unwrap().clone());
        assert_eq!(passes.begins(&table, at(absent)), repairs, "it is drained no more");
        passes.ended(pass, true, false, at(absent));
        all_alive(&mut table, 86_000);
        assert_eq!(passes.begins(&table, at(86_000)), None);
        passes.wanted();
        assert_eq!(passes.begins(&table, at(86_000)), repairs, "somebody wants it");
        passes.ended(pass, true, false, at(86_003));
        let day_later = 86_003 + PASS_EVERY.as_secs();
        all_alive(&mut table, day_later);
        assert_eq!(passes.begins(&table, at(day_later - 1)), None);
        assert_eq!(passes.begins(&table, at(day_later)), repairs, "whatever happens");
    }

    #[test]
    fn a_leader_that_begins_without_one_of_the_servers_walks_all_chunks() {
        let mut table = servers(&[10, 10, 10]);
        drain(&mut table, 3);
        let mut passes = Passes::new(Duration::ZERO);
        assert_eq!(passes.begins(&table, Duration::ZERO), Some(PassKind { may_balance: false }));
    }

    #[test]
    fn uneven_disks_are_balanced_while_that_moves_something() {
        let even = servers(&[10, 15, 12]);
        let mut passes = Passes::new(Duration::ZERO);
        assert_eq!(passes.begins(&even, Duration::ZERO), None);
        let uneven = servers(&[10, 35, 12]);
        let pass = PassKind { may_balance: true };
        let balance = Some(pass);
        assert_eq!(passes.begins(&uneven, Duration::ZERO), balance);
        passes.ended(pass, true, true, Duration::ZERO);
        assert_eq!(passes.begins(&uneven, Duration::ZERO), balance);
        passes.ended(pass, true, false, Duration::ZERO);
        assert_eq!(passes.begins(&uneven, Duration::from_secs(2)), None, "nothing can be done about it now");
        let repairs = PassKind { may_balance: false };
        passes.ended(repairs, false, true, Duration::ZERO);
        assert_eq!(passes.begins(&uneven, Duration::ZERO), Some(repairs), "repair comes first");
    }
}
