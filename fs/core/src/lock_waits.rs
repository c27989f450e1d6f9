//! Who waits for which lock, as the leader knows it. Waiting is done before a lock is asked for again; a new leader is told of
//! it anew.
//!
//! Every session tells all its waits at once, again and again; what it doesn't tell any more is over. Pure: the
//! time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{InodeId, SessionId};
use crate::lock_table::LockTable;
use crate::locks::{Holder, LockClass, LockMode, LockRange};

/// A session's waits are forgotten when they were not told anew for so long.
pub const WAITS_LIFETIME: Duration = Duration::from_secs(8);
/// Who was told that a lock may be free is expected to take it within this time; who came later and would be in
/// the way waits for that.
pub const TURN: Duration = Duration::from_millis(500);
/// Owners that the search for a deadlock looks at.
const SEARCH_MAX: usize = 1024;

/// A wait for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The session's name for it.
    pub id: u64,
    /// Of which inode.
    pub ino: InodeId,
    /// Its class.
    pub class: LockClass,
    /// Who waits.
    pub owner: u64,
    /// For what.
    pub mode: LockMode,
    /// For which bytes.
    pub range: LockRange,
    /// A process waits, which nothing else can let go on: a circle of such waits is a deadlock. (Several threads
    /// may use one open file, so a wait for its own locks is none.)
    pub is_process: bool,
}

/// What a session is told of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Nothing is in the way now: try.
    Free,
    /// It would wait for itself: give up.
    Deadlock,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    session: SessionId,
    wait: Wait,
    /// When it was told that nothing is in the way.
    told: Option<Duration>,
}

impl Known {
    fn holder(&self) -> Holder {
        Holder { session: self.session, owner: self.wait.owner }
    }
}

/// The waits of one session.
#[derive(Debug, Default)]
struct Waiting {
    /// Their places in the order of arrival, by their ids.
    orders: BTreeMap<u64, u64>,
    heard: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub struct LockWaits {
    /// By order of arrival.
    waits: BTreeMap<u64, Known>,
    arrived: u64,
    sessions: BTreeMap<SessionId, Waiting>,
    inodes: BTreeMap<(LockClass, InodeId), BTreeSet<u64>>,
}

impl LockWaits {
    /// These are the waits of a session now.
    pub fn tell(&mut self, session: SessionId, waits: &[Wait], now: Duration) {
        let ids: BTreeSet<u64> = waits.iter().map(|wait| wait.id).collect();
        let known = self.sessions.entry(session).or_default();
        known.heard = now;
        let over: Vec<u64> =
            known.orders.iter().filter(|(id, _)| !ids.contains(id)).map(|(_, order)| *order).collect();
        let new: Vec<Wait> =
            waits.iter().filter(|wait| !known.orders.contains_key(&wait.id)).copied().collect();
        for order in over {
            self.forget(order);
        }
        for wait in new {
            self.arrived += 1;
            self.waits.insert(self.arrived, Known { session, wait, told: None });
            self.inodes.entry((wait.class, wait.ino)).or_default().insert(self.arrived);
            self.sessions.entry(session).or_default().orders.insert(wait.id, self.arrived);
        }
        if waits.is_empty() {
            self.sessions.remove(&session);
        }
    }

    fn forget(&mut self, order: u64) {
        let Some(Known { session, wait, .. }) = self.waits.remove(&order) else { return };
        if let Some(known) = self.sessions.get_mut(&session) {
            known.orders.remove(&wait.id);
        }
        let of = (wait.class, wait.ino);
        if let Some(orders) = self.inodes.get_mut(&of) {
            orders.remove(&order);
            if orders.is_empty() {
                self.inodes.remove(&of);
            }
        }
    }

    /// A session has ended.
    pub fn ended(&mut self, session: SessionId) {
        self.tell(session, &[], Duration::ZERO);
    }

    /// Waits of sessions that fell silent are over.
    pub fn expire(&mut self, now: Duration) {
        let silent: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, known)| now.saturating_sub(known.heard) > WAITS_LIFETIME)
            .map(|(session, _)| *session)
            .collect();
        for session in silent {
            self.ended(session);
        }
    }

    /// The sessions that wait for a lock of this inode.
    #[must_use]
    pub fn waiting_for(&self, ino: InodeId) -> BTreeSet<SessionId> {
        let orders = LockClass::ALL.into_iter().filter_map(|class| self.inodes.get(&(class, ino))).flatten();
        orders.filter_map(|order| self.waits.get(order)).map(|known| known.session).collect()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waits.len()
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    /// What there is to tell a session of its waits. A wait that would never end is forgotten with this, so that
    /// only one of a circle is told.
    pub fn verdicts(&mut self, session: SessionId, locks: &LockTable, now: Duration) -> Vec<(u64, Verdict)> {
        let Some(own) = self.sessions.get(&session) else { return Vec::new() };
        let mut orders: Vec<u64> = own.orders.values().copied().collect();
        orders.sort_unstable();
        let mut verdicts = Vec::new();
        for order in orders {
            let Some(known) = self.waits.get(&order).copied() else { continue };
            if self.is_free(order, &known, locks, now) {
                if let Some(known) = self.waits.get_mut(&order) {
                    known.told = Some(now);
                }
                verdicts.push((known.wait.id, Verdict::Free));
            } else if known.wait.is_process && self.is_circle(&known, locks) {
                self.forget(order);
                verdicts.push((known.wait.id, Verdict::Deadlock));
            }
        }
        verdicts
    }

    fn is_free(&self, order: u64, known: &Known, locks: &LockTable, now: Duration) -> bool {
        let wait = &known.wait;
        let of = (wait.class, wait.ino);
        let free = locks.in_the_way(of, known.holder(), wait.range, wait.mode).next().is_none();
        // Whoever came before and has just been told to try goes first, instead of all at once.
        let earlier = self.inodes.get(&of).into_iter().flat_map(|orders| orders.range(..order));
        let turn_of_another = earlier.filter_map(|order| self.waits.get(order)).any(|earlier| {
            earlier.told.is_some_and(|told| now.saturating_sub(told) < TURN)
                && earlier.holder() != known.holder()
                && earlier.wait.range.overlaps(&wait.range)
                && (earlier.wait.mode == LockMode::Exclusive || wait.mode == LockMode::Exclusive)
        });
        free && !turn_of_another
    }

    /// Whether the wait is for somebody who waits, perhaps by way of others, for whoever waits here.
    fn is_circle(&self, from: &Known, locks: &LockTable) -> bool {
        let goal = from.holder();
        let mut seen = BTreeSet::new();
        let mut next = vec![*from];
        while let Some(known) = next.pop() {
            let wait = known.wait;
            for (holder, _) in locks.in_the_way((wait.class, wait.ino), known.holder(), wait.range, wait.mode)
            {
                if holder == goal {
                    return true;
                }
                if seen.len() < SEARCH_MAX && seen.insert(holder) {
                    let own = self.sessions.get(&holder.session).map(|known| known.orders.values());
                    let waits = own.into_iter().flatten().filter_map(|order| self.waits.get(order));
                    next.extend(waits.filter(|other| {
                        other.wait.is_process
                            && other.wait.class == LockClass::Record
                            && other.holder() == holder
                    }));
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::HeldLock;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const C: SessionId = SessionId(3);

    fn wait(id: u64, ino: u64, mode: LockMode) -> Wait {
        Wait {
            id,
            ino: InodeId(ino),
            class: LockClass::Record,
            owner: 1,
            mode,
            range: LockRange::ALL,
            is_process: true,
        }
    }

    fn hold(locks: &mut LockTable, session: SessionId, ino: u64, mode: Option<LockMode>) {
        let held = mode.map(|mode| HeldLock { range: LockRange::ALL, mode, handle: 1, pid: 1 });
        let holder = Holder { session, owner: 1 };
        locks.put((LockClass::Record, InodeId(ino)), holder, held.into_iter().collect());
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn who_came_first_is_told_first_and_the_next_when_that_one_had_its_turn() {
        let mut locks = LockTable::default();
        hold(&mut locks, C, 5, Some(LockMode::Exclusive));
        let mut waits = LockWaits::default();
        waits.tell(A, &[wait(1, 5, LockMode::Exclusive)], at(0));
        waits.tell(B, &[wait(1, 5, LockMode::Exclusive)], at(1));
        assert_eq!(waits.verdicts(A, &locks, at(2)), []);
        hold(&mut locks, C, 5, None);
        assert_eq!(waits.verdicts(A, &locks, at(10)), [(1, Verdict::Free)]);
        assert_eq!(waits.verdicts(B, &locks, at(11)), []);
        // A never took it.
        assert_eq!(waits.verdicts(B, &locks, at(600)), [(1, Verdict::Free)]);
    }

    #[test]
    fn readers_are_told_together() {
        let locks = LockTable::default();
        let mut waits = LockWaits::default();
        waits.tell(A, &[wait(1, 5, LockMode::Shared)], at(0));
        waits.tell(B, &[wait(1, 5, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(A, &locks, at(1)).len(), 1);
        assert_eq!(waits.verdicts(B, &locks, at(1)).len(), 1);
    }

    #[test]
    fn one_of_a_circle_is_told_and_the_others_go_on_waiting() {
        let mut locks = LockTable::default();
        for (session, ino) in [(A, 5), (B, 6), (C, 7)] {
            hold(&mut locks, session, ino, Some(LockMode::Exclusive));
        }
        let mut waits = LockWaits::default();
        waits.tell(A, &[wait(1, 6, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(A, &locks, at(0)), []);
        waits.tell(B, &[wait(1, 7, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(B, &locks, at(0)), []);
        waits.tell(C, &[wait(9, 5, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(C, &locks, at(0)), [(9, Verdict::Deadlock)]);
        assert_eq!(waits.verdicts(A, &locks, at(0)), []);
        assert_eq!(waits.verdicts(B, &locks, at(0)), []);
    }

    #[test]
    fn two_readers_that_both_want_to_write_are_a_circle() {
        let mut locks = LockTable::default();
        hold(&mut locks, A, 5, Some(LockMode::Shared));
        hold(&mut locks, B, 5, Some(LockMode::Shared));
        let mut waits = LockWaits::default();
        waits.tell(A, &[wait(1, 5, LockMode::Exclusive)], at(0));
        assert_eq!(waits.verdicts(A, &locks, at(0)), []);
        waits.tell(B, &[wait(1, 5, LockMode::Exclusive)], at(0));
        assert_eq!(waits.verdicts(B, &locks, at(0)), [(1, Verdict::Deadlock)]);
    }

    #[test]
    fn open_files_are_not_searched_for_circles() {
        let mut locks = LockTable::default();
        hold(&mut locks, A, 5, Some(LockMode::Exclusive));
        hold(&mut locks, B, 6, Some(LockMode::Exclusive));
        let mut waits = LockWaits::default();
        waits.tell(A, &[Wait { is_process: false, ..wait(1, 6, LockMode::Shared) }], at(0));
        waits.tell(B, &[wait(1, 5, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(B, &locks, at(0)), []);
        assert_eq!(waits.verdicts(A, &locks, at(0)), []);
    }

    #[test]
    fn silent_and_ended_sessions_wait_no_more() {
        let mut waits = LockWaits::default();
        waits.tell(A, &[wait(1, 5, LockMode::Shared)], at(0));
        waits.tell(B, &[wait(1, 5, LockMode::Shared), wait(2, 6, LockMode::Shared)], at(5000));
        waits.expire(at(9000));
        assert_eq!(waits.len(), 2);
        waits.tell(B, &[wait(2, 6, LockMode::Shared)], at(9000));
        assert_eq!(waits.len(), 1);
        assert_eq!(waits.waiting_for(InodeId(5)), BTreeSet::new());
        assert_eq!(waits.waiting_for(InodeId(6)), BTreeSet::from([B]));
        waits.ended(B);
        assert!(waits.is_empty() && waits.inodes.is_empty() && waits.sessions.is_empty());
    }
}
