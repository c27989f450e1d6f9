//! Which attributes and names the kernel may keep, where this client has the right to let it. Pure.
//!
//! The kernel knows of each change that goes through it, and forgets, or updates, what it has kept of the inodes that are
//! concerned. Two things it doesn't see:
//!
//! - *A reply that is older than the change.* A question is on its way, or its answer is, while something else changes the
//!   inode. So a reply to what was asked before the last change may not be kept. What a listing has in stock is such a reply,
//!   too: it is asked for in advance.
//! - *A reply that is processed late.* A thread that was given the right to keep attributes may be preempted before it has
//!   processed them. Where a change makes the kernel count `attr_version` up, such a reply is void; where it only marks the
//!   attributes as invalid (`fuse_dir_changed`, `fuse_update_ctime` in fs/fuse/dir.c of Linux 6.18: of a directory in which
//!   a name has changed, of what was linked or renamed, or has other extended attributes) the late reply makes them valid
//!   again. Whoever changes something there makes it void first ([`Kept::changed`] says whether).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use atoll_core::ids::InodeId;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Changed inodes that are remembered. What was asked before the oldest of them may not be kept.
const CHANGES_MAX: usize = 1 << 14;
/// How long a thread takes at most to process a reply, generously.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Threads of one inode that are told apart.
const THREADS_MAX: usize = 4;

/// A thread that was allowed to keep something, and when.
type Told = (u32, Instant);

#[derive(Debug, Default)]
struct Table {
    /// Counts changes.
    number: u64,
    /// The last change of each inode.
    changed: HashMap<InodeId, u64>,
    /// The same in their order; those that have changed again are there more than once.
    order: VecDeque<(u64, InodeId)>,
    /// The last change that isn't remembered.
    forgotten: u64,
    /// Who was lately told what of an inode.
    told: HashMap<InodeId, Vec<Told>>,
    told_order: VecDeque<(Instant, InodeId)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Table>);

impl Table {
    fn is_unchanged(&self, ino: InodeId, asked: u64) -> bool {
        asked >= self.forgotten && self.changed.get(&ino).is_none_or(|changed| *changed <= asked)
    }

    /// Forgets who was told something so long ago that it has been processed.
    fn forget_old(&mut self, now: Instant) {
        while let Some((when, ino)) = self.told_order.front().copied()
            && now.duration_since(when) >= LATE_MAX
        {
            self.told_order.pop_front();
            if let Some(told) = self.told.get_mut(&ino) {
                told.retain(|(_, when)| now.duration_since(*when) < LATE_MAX);
                if told.is_empty() {
                    self.told.remove(&ino);
                }
            }
        }
    }
}

impl Kept {
    /// What is asked from now on is asked after the changes up to this one.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.lock().number
    }

    /// True if the inode hasn't changed through this client since then ([`Kept::number`]).
    #[must_use]
    pub fn is_unchanged(&self, ino: InodeId, asked: u64) -> bool {
        self.0.lock().is_unchanged(ino, asked)
    }

    /// True if the thread (0: not known) may keep what it is about to be told of the inode, which was asked for then.
    #[must_use]
    pub fn tell(&self, ino: InodeId, thread: u32, asked: u64, now: Instant) -> bool {
        let mut table = self.0.lock();
        if !table.is_unchanged(ino, asked) {
            return false;
        }
        table.forget_old(now);
        let told = table.told.entry(ino).or_default();
        told.retain(|(known, _)| *known != thread);
        if told.len() == THREADS_MAX {
            // Whose they are isn't known any more.
            *told = vec![(0, now)];
        }
        told.push((thread, now));
        table.told_order.push_back((now, ino));
        true
    }

    /// These inodes were changed.
    pub fn note(&self, inodes: impl IntoIterator<Item = InodeId>) {
        let mut table = self.0.lock();
        table.number += 1;
        let number = table.number;
        for ino in inodes {
            table.changed.insert(ino, number);
            table.order.push_back((number, ino));
        }
        while table.order.len() > CHANGES_MAX
            && let Some((number, ino)) = table.order.pop_front()
        {
            if table.changed.get(&ino) == Some(&number) {
                table.changed.remove(&ino);
            }
            table.forgotten = number;
        }
    }

    /// The thread is about to hear that it has changed the inode ([noted](Kept::note) before): true if another one may yet
    /// process an older reply, so that has to be made void before.
    #[must_use]
    pub fn changed(&self, ino: InodeId, thread: u32, now: Instant) -> bool {
        let mut table = self.0.lock();
        table.forget_old(now);
        let told = table.told.remove(&ino);
        told.is_some_and(|told| told.iter().any(|(other, _)| thread == 0 || *other != thread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: InodeId = InodeId(20);
    const OTHER: InodeId = InodeId(21);

    #[test]
    fn what_was_asked_before_a_change_is_not_kept() {
        let (kept, now) = (Kept::default(), Instant::now());
        let asked = kept.number();
        assert!(kept.tell(DIRECTORY, 1, asked, now));
        kept.note([DIRECTORY]);
        assert!(!kept.tell(DIRECTORY, 1, asked, now) && kept.tell(OTHER, 1, asked, now));
        assert!(kept.tell(DIRECTORY, 1, kept.number(), now));
    }

    #[test]
    fn what_another_thread_was_told_is_made_void_before_a_change_is_answered() {
        let (kept, now) = (Kept::default(), Instant::now());
        assert!(!kept.changed(DIRECTORY, 1, now), "nobody was told anything");
        assert!(kept.tell(DIRECTORY, 1, 0, now));
        assert!(!kept.changed(DIRECTORY, 1, now), "it has processed what it was told itself");
        assert!(kept.tell(DIRECTORY, 2, 0, now) && kept.tell(DIRECTORY, 1, 0, now));
        assert!(kept.changed(DIRECTORY, 1, now) && !kept.changed(DIRECTORY, 1, now), "it is void by now");
        assert!(kept.tell(DIRECTORY, 1, 0, now));
        assert!(kept.changed(DIRECTORY, 0, now), "nobody knows who it is");
        assert!(kept.tell(DIRECTORY, 2, 0, now));
        assert!(!kept.changed(DIRECTORY, 1, now + LATE_MAX));
        for thread in 1..10 {
            assert!(kept.tell(DIRECTORY, thread, 0, now));
        }
        assert!(kept.changed(DIRECTORY, 9, now));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_kept_for_that() {
        let (kept, now) = (Kept::default(), Instant::now());
        let asked = kept.number();
        kept.note([DIRECTORY]);
        for ino in 0..CHANGES_MAX as u64 {
            kept.note([InodeId(100 + ino)]);
        }
        assert!(!kept.is_unchanged(DIRECTORY, asked) && !kept.is_unchanged(OTHER, asked));
        assert!(kept.is_unchanged(DIRECTORY, kept.number()));
        assert_eq!(kept.0.lock().changed.len(), CHANGES_MAX);
        for ino in 0..100 {
            assert!(kept.tell(InodeId(ino), 1, kept.number(), now));
        }
        assert!(kept.tell(DIRECTORY, 1, kept.number(), now + LATE_MAX));
        assert_eq!(kept.0.lock().told.len(), 1);
    }
}
