//! Locks: taken, released and waited for in the leader's memory.
//!
//! A lock is registered before the leader confirms that it still leads, and only then the answer is sent: whoever has been
//! answered was granted it by the leader. What this leader grants and can't confirm is of no consequence: the session sends
//! the same request to the next leader, or to this one again, which then knows it.

use std::sync::Arc;
use std::time::Duration;

use atoll_core::commands::{ClientOp, Command, Op, Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{SegmentIndex, SessionId};
use atoll_core::lock_table::Changed;
use atoll_core::lock_waits::Wait;
use atoll_core::locks::{HeldLock, Holder, LockChange, LockMode, LockRequest};
use atoll_core::query;
use atoll_proto::metadata::{Answer, FileExtents, LockAnswer, MetadataError};
use atoll_proto::queries;

use super::ask::{self, SEGMENTS_HERE_MAX};
use super::session::EXPIRED;
use crate::clock;
use crate::leader::Leader;
use crate::node::{Node, query_error};

/// How long a question about waits is left unanswered when there is nothing to tell, and one for a lock while not all sessions
/// have told what they hold. The client asks again; it takes a member that says nothing for longer than a few seconds for
/// dead.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often the waits are looked at without being told of a change: somebody had its turn and didn't use it.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Waits of one session.
const WAITS_MAX: usize = 1 << 16;

impl Node {
    /// Changes what a session has locked.
    pub(crate) async fn change_locks(
        self: &Arc<Self>,
        session: SessionId,
        asked: &queries::ChangeLocks,
    ) -> Result<Answer, MetadataError> {
        let leader = self.lead()?;
        let took_lock = asked.change.takes();
        if took_lock {
            query::inode(&*self.machine.store(), asked.change.ino()).map_err(query_error)?;
        }
        let began = clock::since_boot();
        let answer = loop {
            leader.not_over()?;
            let told = leader.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            match change_now(&leader, session, asked)? {
                Some(answer) => break answer,
                None => wait_for_claims(began, told).await?,
            }
        };
        let answer = match answer {
            // Read after it was registered: whoever had the lock before has committed what it wrote under it.
            LockAnswer::Done(_) if took_lock => LockAnswer::Done(self.file_as_of_now(asked).map(Box::new)),
            answer => answer,
        };
        leader.confirm()?;
        Ok(Answer::LocksChanged(answer))
    }

    /// The file, as who has just locked it has to know it. `None`: it has to ask for it.
    fn file_as_of_now(&self, asked: &queries::ChangeLocks) -> Option<FileExtents> {
        let ino = asked.change.ino();
        let store = self.machine.store();
        let records = store.snapshot();
        let attributes = query::inode(&records, ino).ok()?.attributes(ino);
        if asked.known_change == Some(attributes.change) {
            return Some(FileExtents { attributes, segments: Vec::new(), covered: 0, chunks: Vec::new() });
        }
        ask::extents(&records, ino, SegmentIndex(0), asked.segments.min(SEGMENTS_HERE_MAX)).ok()
    }

    /// The lock with the lowest range that is in the way of one.
    pub(crate) async fn test_lock(
        &self,
        session: SessionId,
        request: &LockRequest,
    ) -> Result<Option<(Holder, HeldLock)>, MetadataError> {
        let leader = self.lead()?;
        let began = clock::since_boot();
        loop {
            leader.not_over()?;
            let told = leader.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            let (found, all_told) = {
                let locks = leader.locks.lock();
                let mut sessions = leader.sessions.lock();
                sessions.heard(session, clock::since_boot()).map_err(|_| EXPIRED)?;
                (locks.table.first_in_the_way(session, request), sessions.all_reclaimed())
            };
            if found.is_some() || all_told || request.mode.is_none() {
                leader.confirm()?;
                return Ok(found);
            }
            wait_for_claims(began, told).await?;
        }
    }

    /// Answers when there is something to tell of what the session waits for.
    pub(crate) async fn await_locks(
        &self,
        session: SessionId,
        waits: &[Wait],
    ) -> Result<Answer, MetadataError> {
        let leader = self.lead()?;
        let began = clock::since_boot();
        if waits.len() > WAITS_MAX {
            return Err(MetadataError::Fs(FsError::NoLocks));
        }
        let question = {
            let mut locks = leader.locks.lock();
            leader.sessions.lock().heard(session, began).map_err(|_| EXPIRED)?;
            locks.question(session, waits, began)
        };
        loop {
            // The next leader is told of the waits anew.
            leader.not_over()?;
            let now = clock::since_boot();
            let (newest, verdicts) = {
                let mut locks = leader.locks.lock();
                let newest = locks.is_newest(session, &question);
                // Nothing is free before all have told what they hold.
                match newest && leader.sessions.lock().all_reclaimed() {
                    true => (newest, locks.verdicts(session, now)),
                    false => (newest, Vec::new()),
                }
            };
            let waited = now.saturating_sub(began);
            if !verdicts.is_empty() || waits.is_empty() || !newest || waited >= TIMEOUT {
                leader.confirm()?;
                return Ok(Answer::Locks(verdicts));
            }
            let _ = tokio::time::timeout(POLL_INTERVAL.min(TIMEOUT - waited), question.notified()).await;
        }
    }

    /// Mutations take no locks any more: those who send such ones belong to an earlier build. The slot isn't used.
    pub(crate) fn refuse_locked(&self, command: &Command) -> Result<(), MetadataError> {
        match command.op {
            Op::Client(ClientOp::SetLock(ops::SetLock(LockRequest { mode: Some(_), .. }))) => {
                Err(MetadataError::Fs(FsError::NoLocks))
            }
            _ => Ok(()),
        }
    }

    /// After a command: what it has let go of in the records goes from the leader's memory, too.
    pub(crate) fn note_locks(&self, session: SessionId, op: &Op, outcome: &Outcome) {
        let change = match op {
            Op::Client(ClientOp::SetLock(ops::SetLock(request))) => LockChange::Set(*request),
            Op::Client(ClientOp::ReleaseLocks(release)) => LockChange::Release(*release),
            _ => return,
        };
        if *outcome == Outcome::Done
            && !change.takes()
            && let Some(leader) = self.leading()
        {
            let mut locks = leader.locks.lock();
            locks.table.release(session, &change);
            locks.wake(change.ino());
        }
    }
}

/// Changes the table; `None` while another session may have the lock that is asked for.
fn change_now(
    leader: &Leader,
    session: SessionId,
    asked: &queries::ChangeLocks,
) -> Result<Option<LockAnswer>, MetadataError> {
    let mut locks = leader.locks.lock();
    let all_told = {
        // While the locks are held: what is added for a session that ends now is removed with it after this.
        let mut sessions = leader.sessions.lock();
        sessions.heard(session, clock::since_boot()).map_err(|_| EXPIRED)?;
        if asked.term != leader.term || sessions.must_reclaim(session) {
            return Ok(Some(LockAnswer::Untold(leader.term)));
        }
        sessions.all_reclaimed() || atoll_faults::planted("lock-granted-untold")
    };
    let numbers = (asked.number, asked.floor);
    Ok(match locks.table.change(session, numbers, &asked.change, all_told) {
        Changed::Done => {
            let keeps_others_out =
                matches!(asked.change, LockChange::Set(LockRequest { mode: Some(LockMode::Exclusive), .. }));
            if !keeps_others_out {
                locks.wake(asked.change.ino());
            }
            Some(LockAnswer::Done(None))
        }
        Changed::Refused(error) => Some(LockAnswer::Refused(error)),
        Changed::Unknown => None,
    })
}

/// Waits until another session has told what it holds, in time.
async fn wait_for_claims(
    began: Duration,
    told: impl std::future::Future<Output = ()>,
) -> Result<(), MetadataError> {
    let waited = clock::since_boot().saturating_sub(began);
    if waited >= TIMEOUT {
        return Err(MetadataError::Fs(FsError::TryAgain));
    }
    let _ = tokio::time::timeout(TIMEOUT - waited, told).await;
    Ok(())
}
