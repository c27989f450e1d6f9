//! The files that the data path knows something of.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use atoll_core::ids::InodeId;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::file::FileState;
use crate::read::map::MapMemory;

/// Files that are known at the same time. Beyond this clean ones that nobody uses are forgotten.
pub const FILES_MAX: usize = 16_384;
/// Files that are new between two looks at all of them, while all are in use.
const NEW_BETWEEN_LOOKS: usize = FILES_MAX / 8;

/// See the module.
#[derive(Default)]
pub struct Table {
    files: Mutex<Files>,
    maps: MapMemory,
}

/// What commits will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Bytes of quota.
    pub bytes: u64,
    /// A part of it is being committed: whether it is already isn't known.
    pub is_on_its_way: bool,
}

#[derive(Default)]
struct Files {
    all: HashMap<InodeId, Arc<FileState>>,
    /// Those that aren't clean.
    dirty: HashMap<InodeId, Arc<FileState>>,
    /// Those that something was read ahead of, and may still be.
    ahead: HashSet<InodeId>,
    /// At how many files all are looked at next; less than [`FILES_MAX`]: not earlier than at that.
    look_at: usize,
}

impl Table {
    /// The file, if it is known.
    #[must_use]
    pub fn find(&self, ino: InodeId) -> Option<Arc<FileState>> {
        self.files.lock().all.get(&ino).cloned()
    }

    /// The file; a new one if it isn't known.
    #[must_use]
    pub fn file(&self, ino: InodeId) -> Arc<FileState> {
        let mut files = self.files.lock();
        if let Some(file) = files.all.get(&ino) {
            return Arc::clone(file);
        }
        if files.all.len() >= FILES_MAX.max(files.look_at) {
            files.prune();
            files.look_at = files.all.len() + NEW_BETWEEN_LOOKS;
        }
        let file = FileState::new(ino, self.maps.clone());
        files.all.insert(ino, Arc::clone(&file));
        file
    }

    /// The file has something dirty. Returns whether that is new.
    pub fn mark_dirty(&self, file: &Arc<FileState>) -> bool {
        let mut files = self.files.lock();
        // A forgotten file that is written again is known again.
        files.all.entry(file.ino).or_insert_with(|| Arc::clone(file));
        files.dirty.insert(file.ino, Arc::clone(file)).is_none()
    }

    /// Looks whether the file is clean by now.
    pub fn mark_clean(&self, file: &Arc<FileState>) {
        let mut files = self.files.lock();
        let inner = file.inner.lock();
        if inner.dirty.is_clean() {
            files.dirty.remove(&file.ino);
            if inner.forgotten && inner.errors.is_empty() {
                files.all.remove(&file.ino);
            }
        }
    }

    /// False if none is dirty.
    #[must_use]
    pub fn has_dirty(&self) -> bool {
        !self.files.lock().dirty.is_empty()
    }

    /// Something is read ahead of this file.
    pub fn reads_ahead(&self, ino: InodeId) {
        self.files.lock().ahead.insert(ino);
    }

    /// Lets go of what was read ahead of any file and not asked for by now.
    pub fn expire_readahead(&self, now: Instant) {
        let Files { all, ahead, .. } = &mut *self.files.lock();
        ahead.retain(|ino| {
            all.get(ino).is_some_and(|file| {
                let readahead = &mut file.inner.lock().readahead;
                readahead.expire(now);
                !readahead.is_empty()
            })
        });
    }

    /// All that are dirty.
    #[must_use]
    pub fn dirty(&self) -> Vec<Arc<FileState>> {
        self.files.lock().dirty.values().cloned().collect()
    }

    /// All that are known.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<FileState>> {
        self.files.lock().all.values().cloned().collect()
    }

    /// Memory of all maps (bytes, estimated).
    #[must_use]
    pub fn map_bytes(&self) -> usize {
        self.maps.bytes()
    }

    /// Bytes that are dirty in all files.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty().iter().map(|file| file.inner.lock().dirty.bytes()).sum()
    }

    /// What commits of all that is dirty will take.
    #[must_use]
    pub fn uncommitted_growth(&self) -> Growth {
        let mut growth = Growth::default();
        for file in self.dirty() {
            let inner = file.inner.lock();
            growth.bytes += inner.uncommitted_growth();
            growth.is_on_its_way |= inner.dirty.is_on_its_way();
        }
        growth
    }

    /// Forgets a file, at once or as soon as it is clean.
    pub fn forget(&self, ino: InodeId) {
        let mut files = self.files.lock();
        let Some(file) = files.all.get(&ino) else { return };
        let mut inner = file.inner.lock();
        inner.forgotten = true;
        let clean = inner.dirty.is_clean();
        drop(inner);
        // Whoever else holds it is about to write or read it.
        if clean && Arc::strong_count(file) == 1 {
            files.all.remove(&ino);
        }
    }
}

impl Files {
    /// Forgets what nobody holds, is clean and has no errors to tell.
    fn prune(&mut self) {
        self.all.retain(|_, file| {
            let inner = file.inner.lock();
            let needed = !inner.dirty.is_clean() || !inner.errors.is_empty() || !inner.readahead.is_empty();
            drop(inner);
            needed || Arc::strong_count(file) > 1
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_use_are_looked_at_now_and_then_and_forgotten_when_they_are_not() {
        let table = Table::default();
        let known = || table.all().len();
        let held: Vec<_> = (0..FILES_MAX as u64).map(|number| table.file(InodeId(number))).collect();
        let mut numbers = (FILES_MAX as u64..).map(InodeId);
        let mut other = || drop(table.file(numbers.next().unwrap()));
        other();
        assert_eq!(known(), FILES_MAX + 1, "all were looked at, and none could go");
        drop(held);
        (1..NEW_BETWEEN_LOOKS).for_each(|_| other());
        assert_eq!(known(), FILES_MAX + NEW_BETWEEN_LOOKS, "they aren't looked at for each new one");
        other();
        assert_eq!(known(), 1);
    }
}
