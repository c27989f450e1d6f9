//! What a leader has in its memory of locks.

use std::sync::atomic::Ordering;

use atoll_core::error::FsError;
use atoll_core::ids::{SegmentIndex, SessionId};
use atoll_core::lock_table::Changed;
use atoll_core::locks::LockChange;
use atoll_core::query;
use atoll_proto::metadata::{FileExtents, LockAnswer, SessionState};
use atoll_proto::queries::ChangeLocks;

use super::{LocalMetadata, MemVolume, refused};
use crate::metadata::{ClientError, Metadata, unexpected};

impl MemVolume {
    /// Changes what a session has locked.
    ///
    /// # Errors
    /// If the inode doesn't exist, or the session doesn't.
    pub fn change_locks(&mut self, session: SessionId, asked: &ChangeLocks) -> Result<LockAnswer, FsError> {
        if !self.is_alive(session) {
            return Err(FsError::SessionExpired);
        }
        let ino = asked.change.ino();
        if asked.change.takes() {
            query::inode(&self.store, ino).map_err(refused)?;
        }
        match self.locks.change(session, (asked.number, asked.floor), &asked.change, true) {
            Changed::Done if asked.change.takes() => {
                let mut file = self.extents(ino, SegmentIndex(0), asked.segments)?;
                if asked.known_change == Some(file.attributes.change) {
                    file.segments = Vec::new();
                    file.covered = 0;
                }
                Ok(LockAnswer::Done(Some(Box::new(file))))
            }
            Changed::Done => Ok(LockAnswer::Done(None)),
            Changed::Refused(error) => Ok(LockAnswer::Refused(error)),
            Changed::Unknown => Err(FsError::TryAgain),
        }
    }
}

impl MemVolume {
    /// Another process has the session from now on.
    pub(super) fn adopt_session(&mut self, session: SessionId) -> SessionState {
        let open = self.open.get(&session).into_iter().flatten().copied().collect();
        let (locks, last_change) = self.locks.held(session);
        SessionState { open, locks, last_change, is_told: true, bytes_reserved: 0 }
    }
}

impl LocalMetadata {
    pub(super) async fn send_lock(
        &self,
        change: LockChange,
        known_change: Option<u64>,
        segments: u32,
    ) -> Result<Option<FileExtents>, ClientError> {
        self.reach().await;
        self.questions.fetch_add(1, Ordering::Relaxed);
        // Nothing gets lost here, so nothing comes again.
        let number = self.lock_changes.fetch_add(1, Ordering::Relaxed) + 1;
        let asked = ChangeLocks { term: 1, number, floor: 0, change, known_change, segments };
        let answer = self.volume.lock().change_locks(self.session(), &asked)?;
        match answer {
            LockAnswer::Done(_) if self.refuses_questions.load(Ordering::SeqCst) => Ok(None),
            LockAnswer::Done(file) => Ok(file.map(|file| *file)),
            LockAnswer::Refused(error) => Err(error.into()),
            LockAnswer::Untold(_) => Err(unexpected()),
        }
    }
}
