//! What is left to write-behind on a volume for this mount alone: nobody else looks at a file that is closed, so nobody waits
//! for its data. It is committed together with that of other files, so that these share syncs and log entries.

use std::collections::HashMap;
use std::sync::Arc;

use atoll_core::attributes::{Attributes, KillPriv, TimeChange, Timestamp};
use atoll_core::ids::InodeId;
use futures::{StreamExt, stream};
use parking_lot::Mutex;

use super::file::FileState;
use super::writing::FLUSH_ALL_AT_ONCE;
use super::{Shared, Why};
use crate::arena::packed_time;
use crate::metadata::{ClientError, Metadata};
use crate::write::buffer::DirtyFile;
use crate::write::flush::{Way, way};

/// Closed files are flushed at once when they have so many bytes, …
const CLOSED_BYTES_MAX: u64 = 4 << 20;
/// … or are so many; else with the next tick.
const CLOSED_FILES_MAX: usize = 128;

/// Files that were closed and have something dirty.
#[derive(Default)]
pub(crate) struct Closed(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// Each with the bytes that were dirty when it was closed last.
    files: HashMap<InodeId, (Arc<FileState>, u64)>,
    /// Of all of them.
    bytes: u64,
    /// A task flushes some.
    is_flushing: bool,
}

impl Waiting {
    fn is_much(&self) -> bool {
        self.bytes >= CLOSED_BYTES_MAX || self.files.len() >= CLOSED_FILES_MAX
    }

    fn add(&mut self, file: Arc<FileState>, bytes: u64) {
        self.remove(file.ino);
        self.bytes += bytes;
        self.files.insert(file.ino, (file, bytes));
    }

    fn remove(&mut self, ino: InodeId) {
        if let Some((_, bytes)) = self.files.remove(&ino) {
            self.bytes -= bytes;
        }
    }

    fn take(&mut self) -> Vec<Arc<FileState>> {
        self.bytes = 0;
        self.files.drain().map(|(_, (file, _))| file).collect()
    }
}

impl<M: Metadata> Shared<M> {
    /// See [`DataPath::close_behind`](super::DataPath::close_behind).
    pub fn close_behind(self: &Arc<Self>, ino: InodeId) -> bool {
        let Some(file) = self.table.find(ino) else { return true };
        let inline_allowed = self.metadata.inline_allowed();
        let inline_file_bytes = u64::from(self.metadata.config().inline_file_bytes);
        let bytes = {
            let inner = file.inner.lock();
            if inner.dirty.is_clean() {
                return true;
            }
            let bytes = inner.dirty.bytes();
            if way(bytes, inner.size(), true, inline_allowed, inline_file_bytes) == Way::Inline {
                return false;
            }
            bytes
        };
        let is_much = {
            let mut waiting = self.closed.0.lock();
            waiting.add(file, bytes);
            waiting.is_much()
        };
        if is_much {
            self.flush_closed();
        }
        true
    }

    /// Begins to flush files that are closed, if that isn't under way.
    pub(super) fn flush_closed(self: &Arc<Self>) {
        let files = {
            let mut waiting = self.closed.0.lock();
            if waiting.is_flushing || waiting.files.is_empty() {
                return;
            }
            waiting.is_flushing = true;
            waiting.take()
        };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let mut files = files;
            loop {
                stream::iter(files)
                    .for_each_concurrent(FLUSH_ALL_AT_ONCE, |file| shared.flush_one(file))
                    .await;
                let mut waiting = shared.closed.0.lock();
                if !waiting.is_much() {
                    waiting.is_flushing = false;
                    return;
                }
                files = waiting.take();
            }
        });
    }

    async fn flush_one(self: &Arc<Self>, file: Arc<FileState>) {
        let target = file.inner.lock().dirty.last_sequence();
        while file.inner.lock().dirty.settled() < target {
            if let Err(error) = self.flush_batch(&file, Why::Old).await {
                // It is dirty still, and is tried again when it is old.
                tracing::warn!(ino = %file.ino, %error, "buffered data can't be written now; retrying");
                return;
            }
        }
    }

    /// See [`DataPath::removed`](super::DataPath::removed).
    pub fn removed(self: &Arc<Self>, ino: InodeId) {
        let Some(file) = self.table.find(ino) else { return };
        self.closed.0.lock().remove(ino);
        // What is on its way is refused.
        let (Ok(_data), Ok(_commit)) = (file.data_stage.try_lock(), file.commit_stage.try_lock()) else {
            return;
        };
        let (blocks, reserved) = file.inner.lock().dirty.discard_unless_claimed();
        blocks.iter().for_each(|block| block.retire());
        drop(blocks);
        self.reservation.give_back(reserved);
        self.settled(&file);
    }

    /// See [`DataPath::change_before_commit`](super::DataPath::change_before_commit).
    pub async fn change_before_commit<F>(
        &self,
        ino: InodeId,
        mtime: Option<TimeChange>,
        change: impl FnOnce(KillPriv) -> F,
    ) -> Option<Result<Box<Attributes>, ClientError>>
    where
        F: Future<Output = Result<Box<Attributes>, ClientError>>,
    {
        let set_to = match mtime {
            Some(TimeChange::To(time)) => Some(time),
            Some(TimeChange::Now) | None => None,
        };
        // A ctime that is as late as that would be what the commit leaves; and a successor has to know of it.
        if set_to.is_some_and(|time| time > self.metadata.now() || packed_time(time).is_none()) {
            return None;
        }
        let file = self.table.find(ino)?;
        // Nothing of it is on its way meanwhile.
        let (_data, _commit) = (file.data_stage.lock().await, file.commit_stage.lock().await);
        let (before, noted) = {
            let mut inner = file.inner.lock();
            let (kills, before) = (inner.dirty.kill_priv(), inner.dirty.mtime());
            // The time before it is done: a process that succeeds this one does it again, if it wasn't. What the content's
            // change takes away afterwards: twice does no harm to what nobody has set in between.
            if let Some(time) = set_to {
                inner.dirty.set_noted(kills, time);
            }
            ((kills, before), Noted::of(&inner.dirty))
        };
        let result = change(before.0).await;
        let mut inner = file.inner.lock();
        // Unless it was written meanwhile.
        if Noted::of(&inner.dirty) == noted {
            match &result {
                Ok(attributes) if mtime.is_some() => inner.dirty.set_noted(KillPriv::NONE, attributes.mtime),
                Ok(_) => inner.dirty.set_noted(KillPriv::NONE, before.1),
                Err(_) => inner.dirty.set_noted(before.0, before.1),
            }
        }
        drop(inner);
        Some(result)
    }
}

/// As of which writes something is.
#[derive(PartialEq, Eq)]
struct Noted {
    sequence: u64,
    bytes: u64,
    mtime: Timestamp,
}

impl Noted {
    fn of(dirty: &DirtyFile) -> Noted {
        Noted { sequence: dirty.last_sequence(), bytes: dirty.bytes(), mtime: dirty.mtime() }
    }
}
