//! Attributes, as the service described them along with what this client has changed: of files and directories, and of the
//! directories in which names were. After each change the kernel asks for them, and on a volume for this mount alone nobody
//! else has changed them since. Pure.
//!
//! Each change of an inode counts its change counter up, so of two descriptions the one with the higher counter is the
//! newer one, in whatever order the replies come. A change that came without a description ends what is known, and what was
//! asked for before it was known of is not taken up any more: it may be older.
//!
//! Who looks a name up while it is being made waits in the kernel for the directory's lock, and so finds attributes that are
//! as new as the name. Two things change without a count: access times, which this client tells, and the blocks of a file that
//! was cut off, which are freed by and by.

use std::collections::{HashMap, HashSet};

use atoll_core::attributes::Attributes;
use atoll_core::ids::InodeId;
use parking_lot::Mutex;

/// Inodes that are remembered. With one more all are forgotten.
const REMEMBERED_MAX: usize = 1 << 13;
/// When a change whose outcome isn't known may take effect: at any time.
const ANY_TIME: u64 = u64::MAX;

#[derive(Debug, Default)]
struct Table {
    /// Counts changes without a description.
    number: u64,
    inodes: HashMap<InodeId, Attributes>,
    /// When they were last changed without a description.
    undescribed: HashMap<InodeId, u64>,
    /// The same of all others, at most.
    forgotten: u64,
    /// Files that were made here and were given no attribute of the namespace `security`.
    bare: HashSet<InodeId>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Described(Mutex<Table>);

impl Described {
    /// What is asked for from now on is asked for after the changes up to this one.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.lock().number
    }

    /// The reply to a change that was asked for then describes an inode.
    pub fn learn(&self, attributes: &Attributes, asked: u64) {
        let mut table = self.0.lock();
        let ino = attributes.ino;
        if attributes.nlink == 0 {
            table.end(ino, None);
        }
        if asked < table.undescribed.get(&ino).copied().unwrap_or(table.forgotten) {
            return;
        }
        if table.inodes.len() >= REMEMBERED_MAX {
            table.inodes.clear();
        }
        let known = table.inodes.entry(ino).or_insert_with(|| attributes.clone());
        if known.change < attributes.change {
            *known = attributes.clone();
        }
    }

    /// The inode was changed, and there is no description of it.
    pub fn changed(&self, ino: InodeId) {
        self.0.lock().end(ino, None);
    }

    /// The inode may change at any time: nobody waits for the outcome any more, or it can't be known.
    pub fn may_change(&self, ino: InodeId) {
        self.0.lock().end(ino, Some(ANY_TIME));
    }

    /// What is known of an inode.
    #[must_use]
    pub fn attributes(&self, ino: InodeId) -> Option<Attributes> {
        self.0.lock().inodes.get(&ino).cloned()
    }

    /// The file was made by a change that was asked for then.
    pub fn made(&self, ino: InodeId, asked: u64) {
        let mut table = self.0.lock();
        if asked < table.forgotten {
            return;
        }
        if table.bare.len() >= REMEMBERED_MAX {
            table.bare.clear();
        }
        table.bare.insert(ino);
    }

    /// An attribute of it is about to be set.
    pub fn sets_attribute(&self, ino: InodeId) {
        self.0.lock().bare.remove(&ino);
    }

    /// True if it is known that it has no attribute of the namespace `security`.
    #[must_use]
    pub fn is_bare(&self, ino: InodeId) -> bool {
        self.0.lock().bare.contains(&ino)
    }

    /// Something was changed, and it isn't said what; or the session is lost, and somebody else may have had the volume.
    pub fn forget_all(&self) {
        let mut table = self.0.lock();
        let number = table.number + 1;
        *table = Table { number, forgotten: number, ..Table::default() };
    }
}

impl Table {
    fn end(&mut self, ino: InodeId, when: Option<u64>) {
        self.number += 1;
        self.inodes.remove(&ino);
        if self.undescribed.len() >= REMEMBERED_MAX {
            // Of those that may change at any time nothing is ever known again in this session; it is enough to remember
            // that of as many.
            self.undescribed.retain(|_, when| *when == ANY_TIME);
            let is_full = self.undescribed.len() >= REMEMBERED_MAX;
            self.forgotten = if is_full { ANY_TIME } else { self.forgotten.max(self.number) };
            self.inodes.clear();
            if is_full {
                return;
            }
        }
        let when = when.unwrap_or(self.number).max(self.undescribed.get(&ino).copied().unwrap_or(0));
        self.undescribed.insert(ino, when);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::file_attributes;

    const DIRECTORY: InodeId = InodeId(20);
    const OTHER: InodeId = InodeId(21);

    fn change(described: &Described) -> Option<u64> {
        described.attributes(DIRECTORY).map(|attributes| attributes.change)
    }

    #[test]
    fn the_newest_description_counts_in_whatever_order_they_come() {
        let described = Described::default();
        let asked = described.number();
        described.learn(&file_attributes(DIRECTORY, 8, 0), asked);
        described.learn(&file_attributes(DIRECTORY, 7, 0), asked);
        assert_eq!(change(&described), Some(8));
        described.learn(&file_attributes(DIRECTORY, 9, 0), asked);
        assert_eq!(change(&described), Some(9));
        assert!(described.attributes(OTHER).is_none());
        let removed = Attributes { nlink: 0, ..file_attributes(DIRECTORY, 10, 0) };
        described.learn(&removed, asked);
        assert_eq!(change(&described), None, "who still has it open asks");
    }

    #[test]
    fn what_was_asked_for_before_a_change_without_description_is_not_taken_up() {
        let described = Described::default();
        let asked = described.number();
        described.learn(&file_attributes(DIRECTORY, 8, 0), asked);
        described.changed(DIRECTORY);
        assert_eq!(change(&described), None);
        described.learn(&file_attributes(DIRECTORY, 9, 0), asked);
        assert_eq!(change(&described), None, "it may not have that change");
        described.learn(&file_attributes(DIRECTORY, 10, 0), described.number());
        assert_eq!(change(&described), Some(10));
        described.may_change(DIRECTORY);
        described.learn(&file_attributes(DIRECTORY, 11, 0), described.number());
        described.changed(DIRECTORY);
        described.learn(&file_attributes(DIRECTORY, 11, 0), described.number());
        assert_eq!(change(&described), None, "what nobody waits for takes effect at any time");
    }

    #[test]
    fn nothing_is_known_any_more_when_the_session_is_lost() {
        let described = Described::default();
        described.made(OTHER, described.number());
        described.learn(&file_attributes(DIRECTORY, 8, 0), 0);
        let asked = described.number();
        described.forget_all();
        assert!(change(&described).is_none() && !described.is_bare(OTHER));
        described.learn(&file_attributes(DIRECTORY, 9, 0), asked);
        described.made(OTHER, asked);
        assert!(change(&described).is_none() && !described.is_bare(OTHER), "replies to the session before");
        described.learn(&file_attributes(DIRECTORY, 9, 0), described.number());
        assert_eq!(change(&described), Some(9));
    }

    #[test]
    fn a_file_is_bare_until_an_attribute_is_set() {
        let described = Described::default();
        assert!(!described.is_bare(OTHER));
        described.made(OTHER, described.number());
        assert!(described.is_bare(OTHER));
        described.sets_attribute(OTHER);
        assert!(!described.is_bare(OTHER));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_wrong_for_that() {
        let described = Described::default();
        let asked = described.number();
        described.changed(DIRECTORY);
        for ino in 0..2 * REMEMBERED_MAX as u64 {
            described.changed(InodeId(100 + ino));
        }
        described.learn(&file_attributes(DIRECTORY, 9, 0), asked);
        assert_eq!(change(&described), None);
        for ino in 0..2 * REMEMBERED_MAX as u64 {
            described.learn(&file_attributes(InodeId(ino), 9, 0), described.number());
            described.made(InodeId(ino), described.number());
        }
        let table = described.0.lock();
        assert!(table.inodes.len() <= REMEMBERED_MAX && table.undescribed.len() <= REMEMBERED_MAX);
        assert!(table.bare.len() <= REMEMBERED_MAX);
    }
}
