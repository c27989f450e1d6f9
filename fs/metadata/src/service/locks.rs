//! Waiting for locks: before they are proposed, in the leader's memory.

use std::time::Duration;

use atoll_core::commands::{ClientOp, Command, Op, Outcome, ServiceOp, ops};
use atoll_core::error::FsError;
use atoll_core::ids::SessionId;
use atoll_core::lock_waits::Wait;
use atoll_core::locks::{self, Holder};
use atoll_proto::metadata::{Answer, MetadataError};

use crate::clock;
use crate::leader::Leader;
use crate::node::{Node, store_error};

/// How long a question about waits is left unanswered when there is nothing to tell. The client asks again; it
/// takes a member that says nothing for longer than a few seconds for dead.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often the waits are looked at without being told of a change: somebody had its turn and didn't use it.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Waits of one session.
const WAITS_MAX: usize = 1 << 16;

impl Node {
    /// Answers when there is something to tell of what the session waits for.
    pub(crate) async fn await_locks(
        &self,
        session: SessionId,
        waits: &[Wait],
    ) -> Result<Answer, MetadataError> {
        let leader = self.lead()?;
        let began = clock::since_boot();
        let heard = leader.sessions.lock().heard(session, began);
        heard.map_err(|_| MetadataError::Fs(FsError::SessionExpired))?;
        if waits.len() > WAITS_MAX {
            return Err(MetadataError::Fs(FsError::NoLocks));
        }
        let number = {
            let mut questions = leader.lock_questions.lock();
            let number = questions.entry(session).or_default();
            *number += 1;
            *number
        };
        {
            let mut known = leader.lock_waits.lock();
            known.expire(began);
            known.tell(session, waits, began);
        }
        loop {
            // The next leader is told of the waits anew.
            leader.not_over()?;
            let changed = leader.locks_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = clock::since_boot();
            let newest = leader.lock_questions.lock().get(&session) == Some(&number);
            let verdicts = match newest {
                true => {
                    let store = self.machine.store();
                    let mut known = leader.lock_waits.lock();
                    known.verdicts(session, &*store, now).map_err(|error| store_error(&error))?
                }
                false => Vec::new(),
            };
            let waited = now.saturating_sub(began);
            if !verdicts.is_empty() || waits.is_empty() || !newest || waited >= TIMEOUT {
                leader.confirm()?;
                return Ok(Answer::Locks(verdicts));
            }
            let _ = tokio::time::timeout(POLL_INTERVAL.min(TIMEOUT - waited), changed).await;
        }
    }

    /// A lock that is known to be in the way costs no entry in the log. The slot isn't used.
    pub(crate) fn refuse_locked(&self, command: &Command) -> Result<(), MetadataError> {
        let Op::Client(ClientOp::SetLock(ops::SetLock(request))) = &command.op else { return Ok(()) };
        let Some(mode) = request.mode else { return Ok(()) };
        let asking = Holder { session: command.session, owner: request.owner };
        let store = self.machine.store();
        let found =
            locks::first_in_the_way(&*store, request.ino, request.class, asking, &request.range, mode);
        match found.map_err(|error| store_error(&error))? {
            Some(_) => Err(MetadataError::Fs(FsError::Locked)),
            None => Ok(()),
        }
    }

    /// After a command: whoever waits for a lock that it let go of looks again.
    pub(crate) fn note_locks(&self, op: &Op, outcome: &Outcome) {
        let lets_go = match op {
            Op::Client(ClientOp::SetLock(_)) | Op::Client(ClientOp::ReleaseLocks(_)) => {
                *outcome == Outcome::Done
            }
            Op::Client(ClientOp::CloseSession(_))
            | Op::Client(ClientOp::OpenSession(_))
            | Op::Service(ServiceOp::ExpireSession(_)) => true,
            _ => false,
        };
        if lets_go && let Some(leader) = self.leading() {
            leader.locks_changed.notify_waiters();
        }
    }

    /// A session has ended: it waits for nothing.
    pub(crate) fn waits_ended(&self, leader: &Leader, session: SessionId) {
        leader.lock_waits.lock().ended(session);
        leader.lock_questions.lock().remove(&session);
        leader.locks_changed.notify_waiters();
    }
}
