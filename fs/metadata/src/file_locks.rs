//! Locks of files and who waits for them, in the leader's memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::ids::{InodeId, SessionId};
use atoll_core::keys;
use atoll_core::lock_table::LockTable;
use atoll_core::lock_waits::{LockWaits, Verdict, Wait};
use atoll_core::locks::{Holder, LockClass, LockRecord};
use atoll_core::records::Record;
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use tokio::sync::Notify;

/// A session's question about its waits: it is woken when there may be something to tell, or when it is over.
pub(crate) type Question = Arc<Notify>;

/// See the module.
#[derive(Default)]
pub(crate) struct FileLocks {
    /// Who has locked what.
    pub(crate) table: LockTable,
    waits: LockWaits,
    /// The newest question of each session about its waits; older ones are over.
    questions: BTreeMap<SessionId, Question>,
}

impl FileLocks {
    /// With what mounts of earlier builds have in records: see [`locks`](atoll_core::locks). Their sessions don't tell it.
    ///
    /// # Errors
    /// If they can't be read.
    pub(crate) fn from_records(records: &dyn Read, alive: &[SessionId]) -> Result<FileLocks, StoreError> {
        let mut locks = FileLocks::default();
        for class in LockClass::ALL {
            let prefix = keys::all_locks(class);
            let mut failed = None;
            records.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, value| {
                let numbers = (keys::first_number(key), keys::second_number(key), keys::third_number(key));
                let (Some(ino), Some(session), Some(owner)) = numbers else {
                    return ControlFlow::Continue(());
                };
                let holder = Holder { session: SessionId(session), owner };
                match LockRecord::decode(value) {
                    Ok(record) if alive.contains(&holder.session) => {
                        locks.table.put((class, InodeId(ino)), holder, record.locks);
                        ControlFlow::Continue(())
                    }
                    Ok(_) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(locks)
    }

    /// Nobody has locked anything, and nobody waits.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty() && self.waits.is_empty() && self.questions.is_empty()
    }

    /// A session asks about its waits, which are these. The question that it has asked before is over.
    pub(crate) fn question(&mut self, session: SessionId, waits: &[Wait], now: Duration) -> Question {
        let question = Question::default();
        if let Some(older) = self.questions.insert(session, question.clone()) {
            older.notify_one();
        }
        self.waits.expire(now);
        self.waits.tell(session, waits, now);
        question
    }

    /// Whether this is the newest question of the session.
    pub(crate) fn is_newest(&self, session: SessionId, question: &Question) -> bool {
        self.questions.get(&session).is_some_and(|newest| Arc::ptr_eq(newest, question))
    }

    /// What there is to tell a session of its waits.
    pub(crate) fn verdicts(&mut self, session: SessionId, now: Duration) -> Vec<(u64, Verdict)> {
        self.waits.verdicts(session, &self.table, now)
    }

    /// A lock of this inode was let go of, or may have been: whoever waits for one looks again.
    pub(crate) fn wake(&self, ino: InodeId) {
        for session in self.waits.waiting_for(ino) {
            if let Some(question) = self.questions.get(&session) {
                question.notify_one();
            }
        }
    }

    /// Whoever waits looks again.
    pub(crate) fn wake_all(&self) {
        self.questions.values().for_each(|question| question.notify_one());
    }

    /// A session has ended: its locks go, and it waits for nothing.
    pub(crate) fn ended(&mut self, session: SessionId) {
        self.waits.ended(session);
        if let Some(question) = self.questions.remove(&session) {
            question.notify_one();
        }
        if atoll_faults::planted("lock-kept") {
            return;
        }
        for ino in self.table.ended(session) {
            self.wake(ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::locks::{HeldLock, LockMode, LockRange};
    use atoll_core::store::MemStore;

    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const INO: InodeId = InodeId(9);

    fn wait(id: u64, ino: InodeId) -> Wait {
        let (class, mode, range) = (LockClass::Flock, LockMode::Shared, LockRange::ALL);
        Wait { id, ino, class, owner: 1, mode, range, is_process: false }
    }

    fn woken(question: &Question) -> bool {
        use futures::FutureExt;
        question.notified().now_or_never().is_some()
    }

    #[test]
    fn locks_that_are_recorded_are_had_by_sessions_that_are_alive() {
        let mut store = MemStore::default();
        let held = HeldLock { range: LockRange::ALL, mode: LockMode::Exclusive, handle: 1, pid: 1 };
        for (class, session) in [(LockClass::Record, A), (LockClass::Flock, B)] {
            let record = LockRecord { locks: vec![held] };
            store.write([(Family::System, keys::lock(class, INO, session, 5), Some(record.encode()))]);
        }
        let locks = FileLocks::from_records(&store, &[A]).unwrap();
        let holder = |session| Holder { session, owner: 5 };
        assert_eq!(locks.table.of((LockClass::Record, INO), holder(A)), [held]);
        assert_eq!(locks.table.len(), 1);
    }

    #[test]
    fn only_who_waits_for_a_lock_of_the_inode_is_woken() {
        let mut locks = FileLocks::default();
        let here = locks.question(A, &[wait(1, INO)], Duration::ZERO);
        let elsewhere = locks.question(B, &[wait(1, InodeId(10))], Duration::ZERO);
        locks.wake(INO);
        assert!(woken(&here) && !woken(&elsewhere));
        let newer = locks.question(B, &[wait(1, InodeId(10)), wait(2, INO)], Duration::ZERO);
        assert!(woken(&elsewhere) && !locks.is_newest(B, &elsewhere) && locks.is_newest(B, &newer));
        locks.ended(A);
        assert!(woken(&here));
        locks.wake(INO);
        assert!(woken(&newer) && !woken(&here));
    }
}
