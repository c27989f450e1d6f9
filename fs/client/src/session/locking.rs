//! Changes of what the session has locked: sent to one leader after the other until their outcome is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_core::locks::LockChange;
use atoll_proto::metadata::{Answer, FileExtents, LockAnswer, Query, kind};
use atoll_proto::queries;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::Inner;
use super::leader::Refusal;
use crate::metadata::ClientError;

/// How long a change waits, at a time, for a leader to be told what the session holds.
const UNTOLD_POLL: Duration = Duration::from_millis(200);
/// Changes that are sent at a time; further ones wait. A new leader keeps each for a while, and heartbeats must get through.
const CHANGES_IN_FLIGHT_MAX: usize = 64;

/// Whose turn it is to change an inode's locks: one after another, in the order in which they came, also if nobody waits for
/// one any more.
pub(super) struct Turns {
    inodes: Mutex<HashMap<InodeId, Arc<tokio::sync::Mutex<()>>>>,
    places: Semaphore,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns { inodes: Mutex::default(), places: Semaphore::new(CHANGES_IN_FLIGHT_MAX) }
    }
}

impl Turns {
    fn of(&self, ino: InodeId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.inodes.lock().entry(ino).or_default())
    }

    /// `turn` is over; if nobody waits for the next one there is nothing to remember.
    fn over(&self, ino: InodeId, turn: Arc<tokio::sync::Mutex<()>>) {
        let mut turns = self.inodes.lock();
        drop(turn);
        if turns.get(&ino).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&ino);
        }
    }
}

impl Inner {
    /// Changes what the session has locked. For who takes a lock: the file as of then, if that could be told.
    pub(super) async fn change_locks(
        &self,
        change: LockChange,
        known_change: Option<u64>,
        segments: u32,
    ) -> Result<Option<FileExtents>, ClientError> {
        let turn = self.lock_turns.of(change.ino());
        let one = turn.lock().await;
        let place = self.lock_turns.places.acquire().await.map_err(|_| ClientError::Stopped)?;
        let changed = self.change_locks_in_turn(change, known_change, segments).await;
        drop((one, place));
        self.lock_turns.over(change.ino(), turn);
        changed
    }

    async fn change_locks_in_turn(
        &self,
        change: LockChange,
        known_change: Option<u64>,
        segments: u32,
    ) -> Result<Option<FileExtents>, ClientError> {
        // Who is let in next finds what was done under the lock, or who did it is told that it is lost.
        self.journal_committed(self.journal_end()).await?;
        let number = self.held_locks.lock().begin(change);
        loop {
            let current = self.current().await?;
            let stamp = self.held_locks.lock().stamp();
            let Some(stamp) = stamp else {
                self.until_told().await;
                continue;
            };
            let (term, floor) = (stamp.term, stamp.floor);
            let asked = queries::ChangeLocks { term, number, floor, change, known_change, segments };
            // The same bytes as an `AskRequest`.
            let message = postcard::to_allocvec(&(current.id, &Query::from(asked)));
            let message = Bytes::from(message.map_err(|_| FsError::InvalidArgument)?);
            let answer = tokio::select! {
                answer = self.service.call(kind::ASK, &message) => answer,
                () = self.token.cancelled() => return Err(ClientError::Stopped),
            };
            let (is_done, result) = match answer {
                Ok(reply) => match postcard::from_bytes(&reply) {
                    Ok(Answer::LocksChanged(LockAnswer::Done(file))) => (true, Ok(file.map(|file| *file))),
                    Ok(Answer::LocksChanged(LockAnswer::Refused(error))) => (false, Err(error.into())),
                    Ok(Answer::LocksChanged(LockAnswer::Untold(term))) => {
                        self.held_locks.lock().is_unknown_to(term);
                        continue;
                    }
                    other => {
                        tracing::error!(?other, "the reply to a lock request can't be decoded");
                        (false, Err(FsError::Io.into()))
                    }
                },
                Err(Refusal::Fs(FsError::SessionExpired)) => {
                    self.replaced(current.id).await?;
                    continue;
                }
                Err(Refusal::Fs(error)) => (false, Err(error.into())),
                Err(refusal) => {
                    tracing::error!(%refusal, "a lock request was refused: this is a bug, please report it");
                    (false, Err(FsError::Io.into()))
                }
            };
            if self.held_locks.lock().answered(number, stamp, is_done) {
                return result;
            }
            // Another leader knows by now that this session doesn't know it.
        }
    }

    /// Has the leader told what the session holds, and waits for that.
    async fn until_told(&self) {
        let told = self.locks_told.notified();
        tokio::pin!(told);
        told.as_mut().enable();
        if self.held_locks.lock().stamp().is_none() {
            self.kick.notify_one();
            let _ = tokio::time::timeout(UNTOLD_POLL, told).await;
        }
    }
}
