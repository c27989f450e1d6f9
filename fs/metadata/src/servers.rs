//! The leader's table of storage servers: who is heard of and how much room each has.
//!
//! What servers there are is in the records; this is what heartbeats say, in the leader's memory. Pure: the
//! time is an argument (since boot).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use atoll_core::ids::ServerId;
use atoll_core::records::ServerRecord;

use crate::placement::Candidate;

/// A server whose heartbeat is overdue for longer gets no new chunks and is not counted as alive.
const OVERDUE_MAX: Duration = Duration::from_secs(2);
/// A server that was silent for no longer still gets new chunks where there are too few others.
pub const TRIED_UNTIL: Duration = Duration::from_secs(10);
/// A server that was silent for longer is given up, unless said otherwise: its replicas are made anew elsewhere.
pub const DEAD_AFTER: Duration = Duration::from_secs(300);
/// How often a server says that it is alive, …
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// … and where nobody asks for anything: at the leader's times that are multiples of this, so that all servers, and the
/// leader's own heartbeats, wake a machine once. A new leader hears of a server half as long after that at most, if the one before it
/// still runs.
pub const HEARTBEAT_INTERVAL_AT_REST: Duration = Duration::from_secs(2);
/// Heartbeats of which one at least comes before a server is given up, whatever its interval.
const HEARTBEATS_BEFORE_DEATH: u32 = 4;

/// What a server last said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes its disk has for it.
    pub capacity: u64,
    /// Bytes it uses.
    pub used: u64,
    /// Bytes free on its disk.
    pub free: u64,
    /// Replicas on it.
    pub chunks: u64,
    /// Failures of its disk since it started.
    pub disk_errors: u64,
}

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Heard of.
    Alive,
    /// Silent for a moment.
    Suspect,
    /// Silent for so long that it is given up.
    Dead,
}

#[derive(Clone, Debug)]
struct Entry {
    record: ServerRecord,
    incarnation: u64,
    /// When it was told to be heard of next, after each time.
    interval: Duration,
    /// When it was last heard of; for a server that this leader hasn't heard of, when it came to lead.
    heard: Duration,
    /// It has spoken to this leader.
    spoke: bool,
    report: Report,
    /// All of its inventory was seen by this leader.
    inventoried: bool,
    was_alive: bool,
    /// The connection that it last spoke over.
    connection: Option<u64>,
    /// The highest feature level that it knows; 0: not known yet.
    feature_level: u32,
    /// That connection has ended: its process has too, most likely.
    parted: bool,
    /// What [`Servers::committed`] had counted when `report` came.
    committed: u64,
}

impl Entry {
    /// Bytes free on its disk, as far as anybody can know: whatever was committed since it spoke may lie there.
    fn free(&self, committed: u64) -> u64 {
        self.report.free.saturating_sub(committed - self.committed)
    }
}

/// The table.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    entries: BTreeMap<ServerId, Entry>,
    version: u64,
    /// A server that was silent for longer is given up.
    dead_after: Duration,
    /// Bytes of extents that were committed under this leader.
    committed: u64,
}

/// A heartbeat is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It has to register first.
    NotRegistered,
    /// A later process of the same disk has registered.
    Stale {
        /// That one's incarnation.
        have: u64,
    },
}

impl Servers {
    /// This member leads from `now` on; `known` are the recorded servers. `term` makes the versions of one
    /// leader differ from those of another.
    #[must_use]
    pub fn begin(
        term: u64,
        now: Duration,
        dead_after: Duration,
        known: impl IntoIterator<Item = (ServerId, ServerRecord)>,
    ) -> Servers {
        let entries = known
            .into_iter()
            .map(|(server, record)| {
                let entry = Entry {
                    record,
                    incarnation: 0,
                    interval: HEARTBEAT_INTERVAL_AT_REST,
                    heard: now,
                    spoke: false,
                    report: Report::default(),
                    inventoried: false,
                    was_alive: false,
                    connection: None,
                    feature_level: 0,
                    parted: false,
                    committed: 0,
                };
                (server, entry)
            })
            .collect();
        Servers { entries, version: term << 24, dead_after, committed: 0 }
    }

    /// A server has registered and its record is stored.
    ///
    /// # Errors
    /// If a later process of it has.
    pub fn registered(
        &mut self,
        server: ServerId,
        record: ServerRecord,
        incarnation: u64,
        (capacity, used): (u64, u64),
        now: Duration,
    ) -> Result<(), Refused> {
        if let Some(have) = self.entries.get(&server).map(|entry| entry.incarnation)
            && have > incarnation
        {
            return Err(Refused::Stale { have });
        }
        self.version += 1;
        let report = Report { capacity, used, free: capacity.saturating_sub(used), ..Report::default() };
        self.entries.insert(
            server,
            Entry {
                record,
                incarnation,
                interval: HEARTBEAT_INTERVAL,
                heard: now,
                spoke: true,
                report,
                inventoried: false,
                was_alive: true,
                connection: None,
                feature_level: 0,
                parted: false,
                committed: self.committed,
            },
        );
        Ok(())
    }

    /// A heartbeat. Returns whether the whole inventory is wanted.
    ///
    /// # Errors
    /// If this process of the server isn't registered.
    pub fn heartbeat(
        &mut self,
        server: ServerId,
        incarnation: u64,
        report: Report,
        inventoried: bool,
        now: Duration,
    ) -> Result<bool, Refused> {
        let entry = self.entries.get_mut(&server).ok_or(Refused::NotRegistered)?;
        if entry.incarnation > incarnation {
            return Err(Refused::Stale { have: entry.incarnation });
        }
        if entry.incarnation < incarnation {
            return Err(Refused::NotRegistered);
        }
        entry.heard = now;
        entry.spoke = true;
        entry.inventoried |= inventoried;
        let capacity = entry.report.capacity.max(report.used.saturating_add(report.free));
        entry.report = Report { capacity, ..report };
        entry.committed = self.committed;
        Ok(!entry.inventoried)
    }

    /// When a server that was heard of `now` is to be heard of next; `rests`: nobody asks for anything, and there is nothing for
    /// it to do.
    pub fn next_heartbeat(&mut self, server: ServerId, rests: bool, now: Duration) -> Duration {
        let longest = (self.dead_after / HEARTBEATS_BEFORE_DEATH).max(HEARTBEAT_INTERVAL);
        let interval = match rests {
            true => until_multiple(now, HEARTBEAT_INTERVAL_AT_REST).min(longest),
            false => HEARTBEAT_INTERVAL,
        };
        if let Some(entry) = self.entries.get_mut(&server) {
            entry.interval = interval;
        }
        interval
    }

    /// Extents of so many bytes are being committed: their bytes are on disks whose servers have not said so yet.
    pub fn committed(&mut self, bytes: u64) {
        self.committed += bytes;
    }

    /// The highest feature level that each server knows; 0: it hasn't spoken to this leader.
    pub fn feature_levels(&self) -> impl Iterator<Item = (&str, u32)> {
        self.entries.values().map(|entry| (entry.record.address.as_str(), entry.feature_level))
    }

    /// What it said came over this connection, from a process that knows this feature level.
    pub fn came_over(&mut self, server: ServerId, connection: u64, feature_level: u32) {
        if let Some(entry) = self.entries.get_mut(&server) {
            entry.connection = Some(connection);
            entry.feature_level = feature_level;
            entry.parted = false;
        }
    }

    /// A connection of a server has ended. If it is the one that it last spoke over, the server is suspected at once: a
    /// process that is killed ends its connections, one that is only slow doesn't.
    pub fn parted(&mut self, server: ServerId, connection: u64) {
        if let Some(entry) = self.entries.get_mut(&server)
            && entry.connection == Some(connection)
        {
            entry.parted = true;
        }
    }

    /// This process stood still for `gap`: it couldn't have heard anybody meanwhile.
    pub fn forgive(&mut self, gap: Duration) {
        for entry in self.entries.values_mut() {
            entry.heard += gap;
        }
    }

    /// Counts changes of who is alive and where; call it now and then.
    pub fn version(&mut self, now: Duration) -> u64 {
        let dead_after = self.dead_after;
        for entry in self.entries.values_mut() {
            let alive = health(entry, now, dead_after) == Health::Alive;
            if entry.was_alive != alive {
                entry.was_alive = alive;
                self.version += 1;
            }
        }
        self.version
    }

    /// How a server is; `None` if it isn't one of the cluster's.
    #[must_use]
    pub fn health(&self, server: ServerId, now: Duration) -> Option<Health> {
        self.entries.get(&server).map(|entry| health(entry, now, self.dead_after))
    }

    /// The record of a server.
    #[must_use]
    pub fn record(&self, server: ServerId) -> Option<&ServerRecord> {
        self.entries.get(&server).map(|entry| &entry.record)
    }

    /// A server's record has changed.
    pub fn set_record(&mut self, server: ServerId, record: ServerRecord) {
        if let Some(entry) = self.entries.get_mut(&server) {
            entry.record = record;
            self.version += 1;
        }
    }

    /// A server is none of the cluster's any more.
    pub fn forget(&mut self, server: ServerId) {
        self.entries.remove(&server);
        self.version += 1;
    }

    /// What a server last said.
    #[must_use]
    pub fn report(&self, server: ServerId) -> Option<&Report> {
        self.entries.get(&server).map(|entry| &entry.report)
    }

    /// How full a server's disk is, in thousandths; `None` if it hasn't said.
    #[must_use]
    pub fn used_permille(&self, server: ServerId) -> Option<u64> {
        let report = self.report(server)?;
        let used = u128::from(report.capacity.saturating_sub(report.free)) * 1000;
        used.checked_div(u128::from(report.capacity)).map(|share| share as u64)
    }

    /// All servers: record, health, last report, and how long it is silent.
    pub fn all(
        &self,
        now: Duration,
    ) -> impl Iterator<Item = (ServerId, &ServerRecord, Health, &Report, Duration)> {
        self.entries.iter().map(move |(server, entry)| {
            (
                *server,
                &entry.record,
                health(entry, now, self.dead_after),
                &entry.report,
                now.saturating_sub(entry.heard),
            )
        })
    }

    /// The servers that are heard of.
    #[must_use]
    pub fn alive(&self, now: Duration) -> Vec<ServerId> {
        let alive = |entry: &Entry| health(entry, now, self.dead_after) == Health::Alive;
        self.entries.iter().filter(|(_, entry)| alive(entry)).map(|(server, _)| *server).collect()
    }

    /// Servers as placement sees them: those that are alive; if these are fewer than `needed`, those too that were
    /// silent only for a moment, since on a starved machine that is no sign of anything.
    #[must_use]
    pub fn candidates(&self, needed: usize, now: Duration) -> Vec<Candidate> {
        let those = |wanted: &dyn Fn(&Entry) -> bool| -> Vec<Candidate> {
            self.entries
                .iter()
                .filter(|(_, entry)| entry.spoke && !entry.record.draining && wanted(entry))
                .map(|(server, entry)| Candidate {
                    server: *server,
                    labels: entry.record.labels.clone(),
                    free: entry.free(self.committed),
                })
                .collect()
        };
        let alive = those(&|entry| health(entry, now, self.dead_after) == Health::Alive);
        if alive.len() >= needed {
            return alive;
        }
        those(&|entry| now.saturating_sub(entry.heard) <= TRIED_UNTIL)
    }

    /// Bytes of data of which `copies` replicas on different servers still find room; `None` while some server
    /// has not spoken to this leader, so that nobody can say.
    ///
    /// The last `chunk_bytes` of a disk aren't counted: no chunk begins there (see [`placement::place`]), and who was
    /// promised room has to find a chunk for it.
    ///
    /// [`placement::place`]: crate::placement::place
    #[must_use]
    pub fn room(&self, copies: u8, chunk_bytes: u64, now: Duration) -> Option<u64> {
        if self.entries.is_empty() {
            return None;
        }
        if self
            .entries
            .values()
            .any(|entry| !entry.spoke && health(entry, now, self.dead_after) != Health::Dead)
        {
            return None;
        }
        let free = self
            .entries
            .values()
            .filter(|entry| health(entry, now, self.dead_after) != Health::Dead && !entry.record.draining)
            .map(|entry| entry.free(self.committed).saturating_sub(chunk_bytes))
            .collect();
        Some(room_of(free, usize::from(copies)))
    }

    /// Addresses by server.
    #[must_use]
    pub fn addresses(&self) -> HashMap<ServerId, String> {
        self.entries.iter().map(|(server, entry)| (*server, entry.record.address.clone())).collect()
    }
}

fn health(entry: &Entry, now: Duration, dead_after: Duration) -> Health {
    let silent = now.saturating_sub(entry.heard);
    if silent > dead_after {
        Health::Dead
    } else if silent > entry.interval + OVERDUE_MAX || !entry.spoke || entry.parted {
        Health::Suspect
    } else {
        Health::Alive
    }
}

/// The time until a multiple of `interval` that isn't nearer than half of it.
fn until_multiple(now: Duration, interval: Duration) -> Duration {
    let past = Duration::from_nanos((now.as_nanos() % interval.as_nanos()) as u64);
    let left = interval - past;
    if left < interval / 2 { left + interval } else { left }
}

/// The most data `d` so that `copies` replicas of it, no two on one disk, fit: a disk holds at most all of it,
/// so the sum of `min(free, d)` must be `copies * d`.
fn room_of(mut free: Vec<u64>, copies: usize) -> u64 {
    free.sort_unstable();
    let mut copies = copies.max(1).min(free.len());
    // A disk that is larger than what the others allow holds one replica of everything; the rest is shared by
    // the others.
    while copies > 0 {
        let Some(largest) = free.pop() else { return 0 };
        let rest: u64 = free.iter().fold(largest, |sum, bytes| sum.saturating_add(*bytes));
        let even = rest / copies as u64;
        if largest <= even || copies == 1 {
            return if copies == 1 { rest } else { even };
        }
        copies -= 1;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(address: &str) -> ServerRecord {
        ServerRecord {
            address: address.into(),
            labels: BTreeMap::new(),
            joined: Default::default(),
            draining: false,
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1000 + seconds)
    }

    #[test]
    fn room_is_bounded_by_what_fits_on_different_disks() {
        assert_eq!(room_of(vec![100, 100, 100], 3), 100);
        assert_eq!(room_of(vec![100, 100, 100], 1), 300);
        assert_eq!(room_of(vec![1000, 10, 10], 2), 20);
        assert_eq!(room_of(vec![1000, 1000, 10], 2), 1005);
        assert_eq!(room_of(vec![50], 3), 50);
        assert_eq!(room_of(vec![], 3), 0);
    }

    #[test]
    fn a_server_is_suspected_then_given_up_and_the_version_tells() {
        let one = ServerId(1);
        let mut table = Servers::begin(2, at(0), DEAD_AFTER, [(one, record("a:1"))]);
        assert_eq!(table.health(one, at(1)), Some(Health::Suspect), "not heard of yet");
        assert_eq!(table.room(1, 10, at(1)), None);
        assert_eq!(table.heartbeat(one, 5, Report::default(), false, at(1)), Err(Refused::NotRegistered));
        table.registered(one, record("a:2"), 5, (100, 40), at(1)).unwrap();
        let version = table.version(at(1));
        assert_eq!(table.health(one, at(3)), Some(Health::Alive));
        assert_eq!(table.room(1, 10, at(3)), Some(50));
        assert_eq!(table.candidates(1, at(3)).len(), 1);
        assert_eq!(table.health(one, at(6)), Some(Health::Suspect));
        assert_eq!(table.candidates(1, at(6)).len(), 1, "there is no other");
        assert!(table.candidates(0, at(6)).is_empty());
        assert!(table.candidates(1, at(12)).is_empty());
        assert_ne!(table.version(at(6)), version);
        assert_eq!(table.health(one, at(400)), Some(Health::Dead));
    }

    #[test]
    fn a_server_is_suspected_when_it_is_overdue_however_rarely_it_is_to_be_heard_of() {
        let one = ServerId(1);
        let mut table = Servers::begin(1, at(0), DEAD_AFTER, []);
        table.registered(one, record("a:1"), 5, (0, 0), at(1)).unwrap();
        assert_eq!(table.next_heartbeat(one, false, at(1)), HEARTBEAT_INTERVAL);
        assert_eq!(table.health(one, at(5)), Some(Health::Suspect));
        let ms = Duration::from_millis;
        // All at the same moment, and none at once.
        for (now, interval) in [(0, 2000), (100, 1900), (999, 1001), (1001, 2999), (1999, 2001)] {
            assert_eq!(table.next_heartbeat(one, true, at(2) + ms(now)), ms(interval), "{now}");
        }
        assert_eq!(table.health(one, at(1) + ms(4001)), Some(Health::Alive));
        assert_eq!(table.health(one, at(1) + ms(4002)), Some(Health::Suspect));
        // A server that is given up soon is to be heard of often.
        let mut table = Servers::begin(1, at(0), ms(6000), []);
        assert_eq!(table.next_heartbeat(one, true, at(0)), ms(1500));
        let mut table = Servers::begin(1, at(0), ms(100), []);
        assert_eq!(table.next_heartbeat(one, true, at(0)), HEARTBEAT_INTERVAL);
    }

    #[test]
    fn what_is_committed_takes_room_until_the_server_says_how_much_is_left() {
        let one = ServerId(1);
        let mut table = Servers::begin(1, at(0), DEAD_AFTER, []);
        table.committed(1000);
        table.registered(one, record("a:1"), 5, (100, 0), at(0)).unwrap();
        assert_eq!(table.room(1, 10, at(0)), Some(90));
        table.committed(30);
        assert_eq!(table.room(1, 10, at(0)), Some(60));
        assert_eq!(table.candidates(1, at(0))[0].free, 70);
        table.committed(1000);
        assert_eq!(table.room(1, 10, at(0)), Some(0));
        let report = Report { used: 40, free: 60, ..Report::default() };
        table.heartbeat(one, 5, report, true, at(1)).unwrap();
        assert_eq!(table.room(1, 10, at(1)), Some(50));
    }

    #[test]
    fn a_server_whose_connection_ends_is_suspected_at_once() {
        let one = ServerId(1);
        let mut table = Servers::begin(1, at(0), DEAD_AFTER, []);
        table.registered(one, record("a:1"), 5, (0, 0), at(0)).unwrap();
        table.came_over(one, 7, 1);
        table.parted(one, 6);
        assert_eq!(table.health(one, at(1)), Some(Health::Alive), "an earlier connection");
        table.parted(one, 7);
        assert_eq!(table.health(one, at(1)), Some(Health::Suspect));
        assert!(table.candidates(0, at(1)).is_empty());
        assert_eq!(table.candidates(1, at(1)).len(), 1, "there is no other");
        // It connects again.
        table.heartbeat(one, 5, Report::default(), false, at(2)).unwrap();
        table.came_over(one, 8, 2);
        assert_eq!(table.feature_levels().collect::<Vec<_>>(), [("a:1", 2)]);
        assert_eq!(table.health(one, at(2)), Some(Health::Alive));
    }

    #[test]
    fn the_past_of_a_server_is_refused() {
        let one = ServerId(1);
        let mut table = Servers::begin(1, at(0), DEAD_AFTER, []);
        table.registered(one, record("a:1"), 5, (0, 0), at(0)).unwrap();
        assert_eq!(table.registered(one, record("a:1"), 4, (0, 0), at(0)), Err(Refused::Stale { have: 5 }));
        assert_eq!(table.heartbeat(one, 4, Report::default(), false, at(1)), Err(Refused::Stale { have: 5 }));
        assert_eq!(table.heartbeat(one, 5, Report::default(), false, at(1)), Ok(true));
        assert_eq!(table.heartbeat(one, 5, Report::default(), true, at(1)), Ok(false));
    }
}
