//! Who waits for which lock, as the leader knows it. Waiting is done before a lock is proposed: a wait is in no
//! record, and a new leader is told of it anew.
//!
//! Every session tells all its waits at once, again and again; what it doesn't tell any more is over. Pure: the
//! time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{InodeId, SessionId};
use crate::locks::{self, Holder, LockClass, LockMode, LockRange};
use crate::store::{Read, StoreError};

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

/// See the module.
#[derive(Debug, Default)]
pub struct LockWaits {
    /// By order of arrival.
    waits: BTreeMap<u64, Known>,
    arrived: u64,
    heard: BTreeMap<SessionId, Duration>,
}

impl LockWaits {
    /// These are the waits of a session now.
    pub fn tell(&mut self, session: SessionId, waits: &[Wait], now: Duration) {
        let ids: BTreeSet<u64> = waits.iter().map(|wait| wait.id).collect();
        let mut known = BTreeSet::new();
        self.waits.retain(|_, waiting| {
            if waiting.session != session {
                return true;
            }
            known.insert(waiting.wait.id);
            ids.contains(&waiting.wait.id)
        });
        for wait in waits.iter().filter(|wait| !known.contains(&wait.id)) {
            self.arrived += 1;
            self.waits.insert(self.arrived, Known { session, wait: *wait, told: None });
        }
        if waits.is_empty() {
            self.heard.remove(&session);
        } else {
            self.heard.insert(session, now);
        }
    }

    /// A session has ended.
    pub fn ended(&mut self, session: SessionId) {
        self.tell(session, &[], Duration::ZERO);
    }

    /// Waits of sessions that fell silent are over.
    pub fn expire(&mut self, now: Duration) {
        let silent: Vec<SessionId> = self
            .heard
            .iter()
            .filter(|(_, heard)| now.saturating_sub(**heard) > WAITS_LIFETIME)
            .map(|(session, _)| *session)
            .collect();
        for session in silent {
            self.ended(session);
        }
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
    ///
    /// # Errors
    /// If the store fails.
    pub fn verdicts(
        &mut self,
        session: SessionId,
        records: &dyn Read,
        now: Duration,
    ) -> Result<Vec<(u64, Verdict)>, StoreError> {
        let own: Vec<(u64, Known)> = self
            .waits
            .iter()
            .filter(|(_, known)| known.session == session)
            .map(|(order, known)| (*order, *known))
            .collect();
        let mut verdicts = Vec::new();
        for (order, known) in own {
            if self.is_free(order, &known, records, now)? {
                if let Some(known) = self.waits.get_mut(&order) {
                    known.told = Some(now);
                }
                verdicts.push((known.wait.id, Verdict::Free));
            } else if known.wait.is_process && self.is_circle(&known, records)? {
                self.waits.remove(&order);
                verdicts.push((known.wait.id, Verdict::Deadlock));
            }
        }
        Ok(verdicts)
    }

    fn is_free(
        &self,
        order: u64,
        known: &Known,
        records: &dyn Read,
        now: Duration,
    ) -> Result<bool, StoreError> {
        let wait = &known.wait;
        let mut free = true;
        locks::in_the_way(
            records,
            wait.ino,
            wait.class,
            known.holder(),
            &wait.range,
            wait.mode,
            &mut |_, _| {
                free = false;
                ControlFlow::Break(())
            },
        )?;
        // Whoever came before and has just been told to try goes first, instead of all at once.
        let turn_of_another = self.waits.range(..order).any(|(_, earlier)| {
            earlier.told.is_some_and(|told| now.saturating_sub(told) < TURN)
                && earlier.wait.ino == wait.ino
                && earlier.wait.class == wait.class
                && earlier.holder() != known.holder()
                && earlier.wait.range.overlaps(&wait.range)
                && (earlier.wait.mode == LockMode::Exclusive || wait.mode == LockMode::Exclusive)
        });
        Ok(free && !turn_of_another)
    }

    /// Whether the wait is for somebody who waits, perhaps by way of others, for whoever waits here.
    fn is_circle(&self, from: &Known, records: &dyn Read) -> Result<bool, StoreError> {
        let goal = from.holder();
        let mut seen = BTreeSet::new();
        let mut next = vec![*from];
        while let Some(known) = next.pop() {
            let wait = known.wait;
            let mut holders = Vec::new();
            locks::in_the_way(
                records,
                wait.ino,
                wait.class,
                known.holder(),
                &wait.range,
                wait.mode,
                &mut |holder, _| {
                    holders.push(holder);
                    ControlFlow::Continue(())
                },
            )?;
            for holder in holders {
                if holder == goal {
                    return Ok(true);
                }
                if seen.len() < SEARCH_MAX && seen.insert(holder) {
                    let waits = self.waits.values().filter(|other| {
                        other.wait.is_process
                            && other.wait.class == LockClass::Record
                            && other.holder() == holder
                    });
                    next.extend(waits);
                }
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;
    use crate::locks::{HeldLock, LockRecord};
    use crate::records::Record;
    use crate::store::{Family, MemStore};

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

    fn hold(store: &mut MemStore, session: SessionId, ino: u64, mode: Option<LockMode>) {
        let key = keys::lock(LockClass::Record, InodeId(ino), session, 1);
        let value = mode.map(|mode| {
            let lock = HeldLock { range: LockRange::ALL, mode, handle: 1, pid: 1 };
            LockRecord { locks: vec![lock] }.encode()
        });
        store.write([(Family::System, key, value)]);
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn who_came_first_is_told_first_and_the_next_when_that_one_had_its_turn() {
        let mut store = MemStore::default();
        hold(&mut store, C, 5, Some(LockMode::Exclusive));
        let mut waits = LockWaits::default();
        waits.tell(A, &[wait(1, 5, LockMode::Exclusive)], at(0));
        waits.tell(B, &[wait(1, 5, LockMode::Exclusive)], at(1));
        assert_eq!(waits.verdicts(A, &store, at(2)).unwrap(), []);
        hold(&mut store, C, 5, None);
        assert_eq!(waits.verdicts(A, &store, at(10)).unwrap(), [(1, Verdict::Free)]);
        assert_eq!(waits.verdicts(B, &store, at(11)).unwrap(), []);
        // A never took it.
        assert_eq!(waits.verdicts(B, &store, at(600)).unwrap(), [(1, Verdict::Free)]);
    }

    #[test]
    fn readers_are_told_together() {
        let store = MemStore::default();
        let mut waits = LockWaits::default();
        waits.tell(A, &[wait(1, 5, LockMode::Shared)], at(0));
        waits.tell(B, &[wait(1, 5, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(A, &store, at(1)).unwrap().len(), 1);
        assert_eq!(waits.verdicts(B, &store, at(1)).unwrap().len(), 1);
    }

    #[test]
    fn one_of_a_circle_is_told_and_the_others_go_on_waiting() {
        let mut store = MemStore::default();
        for (session, ino) in [(A, 5), (B, 6), (C, 7)] {
            hold(&mut store, session, ino, Some(LockMode::Exclusive));
        }
        let mut waits = LockWaits::default();
        waits.tell(A, &[wait(1, 6, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(A, &store, at(0)).unwrap(), []);
        waits.tell(B, &[wait(1, 7, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(B, &store, at(0)).unwrap(), []);
        waits.tell(C, &[wait(9, 5, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(C, &store, at(0)).unwrap(), [(9, Verdict::Deadlock)]);
        assert_eq!(waits.verdicts(A, &store, at(0)).unwrap(), []);
        assert_eq!(waits.verdicts(B, &store, at(0)).unwrap(), []);
    }

    #[test]
    fn two_readers_that_both_want_to_write_are_a_circle() {
        let mut store = MemStore::default();
        hold(&mut store, A, 5, Some(LockMode::Shared));
        hold(&mut store, B, 5, Some(LockMode::Shared));
        let mut waits = LockWaits::default();
        waits.tell(A, &[wait(1, 5, LockMode::Exclusive)], at(0));
        assert_eq!(waits.verdicts(A, &store, at(0)).unwrap(), []);
        waits.tell(B, &[wait(1, 5, LockMode::Exclusive)], at(0));
        assert_eq!(waits.verdicts(B, &store, at(0)).unwrap(), [(1, Verdict::Deadlock)]);
    }

    #[test]
    fn open_files_are_not_searched_for_circles() {
        let mut store = MemStore::default();
        hold(&mut store, A, 5, Some(LockMode::Exclusive));
        hold(&mut store, B, 6, Some(LockMode::Exclusive));
        let mut waits = LockWaits::default();
        waits.tell(A, &[Wait { is_process: false, ..wait(1, 6, LockMode::Shared) }], at(0));
        waits.tell(B, &[wait(1, 5, LockMode::Shared)], at(0));
        assert_eq!(waits.verdicts(B, &store, at(0)).unwrap(), []);
        assert_eq!(waits.verdicts(A, &store, at(0)).unwrap(), []);
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
        waits.ended(B);
        assert!(waits.is_empty());
    }
}
