//! Which names there are in directories that were made here: until the session ends nobody else makes one in them on a volume
//! for this mount alone, so what isn't among them doesn't exist. The kernel looks each name up before it makes something of
//! it. Pure.
//!
//! A name is there from when it may be: before the change that makes it is sent. One that is there and doesn't exist only
//! costs a question. What becomes of a change that is given up isn't known, so such a directory isn't known any more.

use std::collections::{HashMap, HashSet};

use atoll_core::attributes::FileKind;
use atoll_core::commands::{ClientOp, Outcome, RENAME_EXCHANGE, RENAME_WHITEOUT};
use atoll_core::ids::{InodeId, ROOT};
use bytes::Bytes;
use parking_lot::Mutex;

/// Names in all directories. A directory that has more alone isn't known any more; with one more in all none is.
const NAMES_MAX: usize = 1 << 16;
/// A repair puts files there that have lost their names.
const LOST_AND_FOUND: &[u8] = b"lost+found";

#[derive(Debug, Default)]
struct Table {
    directories: HashMap<InodeId, HashSet<Box<[u8]>>>,
    /// Names in all of them.
    names: usize,
    /// Sessions that were lost.
    lost: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Complete(Mutex<Table>);

/// A change of names that is under way. Directories that it concerns aren't known any more if it is given up.
#[derive(Debug)]
pub struct Renaming<'a> {
    complete: &'a Complete,
    directories: [Option<InodeId>; 2],
    /// A name that was added, and is there only if this succeeds.
    adds: Option<(InodeId, Bytes)>,
    /// One that goes if it does.
    removes: Option<(InodeId, Bytes)>,
    /// It makes a directory, of which all names will be known.
    makes: bool,
    /// Sessions that were lost when it began.
    lost: u64,
}

impl Complete {
    /// True if it is known that there is no such name.
    #[must_use]
    pub fn has_not(&self, directory: InodeId, name: &[u8]) -> bool {
        let is_name = name != b"." && name != b"..";
        is_name && self.0.lock().directories.get(&directory).is_some_and(|names| !names.contains(name))
    }

    /// A change begins.
    pub fn begin(&self, op: &ClientOp) -> Renaming<'_> {
        let (directories, lost) = ([None; 2], self.0.lock().lost);
        let mut renaming =
            Renaming { complete: self, directories, adds: None, removes: None, makes: false, lost };
        match op {
            ClientOp::Create(op) => {
                renaming.directories[0] = Some(op.parent);
                renaming.adds = Some((op.parent, op.name.clone()));
                renaming.makes = FileKind::of_mode(op.mode) == Some(FileKind::Directory)
                    && !(op.parent == ROOT && &op.name[..] == LOST_AND_FOUND);
            }
            ClientOp::Link(op) => {
                renaming.directories[0] = Some(op.parent);
                renaming.adds = Some((op.parent, op.name.clone()));
            }
            ClientOp::Unlink(op) => {
                renaming.directories[0] = Some(op.parent);
                renaming.removes = Some((op.parent, op.name.clone()));
            }
            ClientOp::Rename(op) => {
                renaming.directories = [Some(op.parent), Some(op.new_parent)];
                renaming.adds = Some((op.new_parent, op.new_name.clone()));
                let is_itself = op.parent == op.new_parent && op.name == op.new_name;
                if op.flags & (RENAME_EXCHANGE | RENAME_WHITEOUT) == 0 && !is_itself {
                    renaming.removes = Some((op.parent, op.name.clone()));
                }
            }
            _ => {}
        }
        if let Some((directory, name)) = renaming.adds.take()
            && self.0.lock().add(directory, &name)
        {
            renaming.adds = Some((directory, name));
        }
        renaming
    }

    /// The session is lost: somebody else may have had the volume.
    pub fn session_lost(&self) {
        let mut table = self.0.lock();
        *table = Table { lost: table.lost + 1, ..Table::default() };
    }
}

impl Table {
    /// True if the directory is known and the name is new.
    fn add(&mut self, directory: InodeId, name: &[u8]) -> bool {
        if self.names >= NAMES_MAX && self.directories.contains_key(&directory) {
            *self = Table { lost: self.lost, ..Table::default() };
        }
        let Some(names) = self.directories.get_mut(&directory) else { return false };
        let is_new = names.insert(name.into());
        self.names += usize::from(is_new);
        is_new
    }

    fn remove(&mut self, directory: InodeId, name: &[u8]) {
        if let Some(names) = self.directories.get_mut(&directory) {
            self.names -= usize::from(names.remove(name));
        }
    }

    fn forget(&mut self, directory: InodeId) {
        if let Some(names) = self.directories.remove(&directory) {
            self.names -= names.len();
        }
    }
}

impl Renaming<'_> {
    /// It is done, with this outcome.
    pub fn done(mut self, outcome: &Outcome) {
        let mut table = self.complete.0.lock();
        if self.lost != table.lost {
            return;
        }
        if let Some((directory, name)) = &self.removes
            && !self.is_of_two_names(outcome)
        {
            table.remove(*directory, name);
        }
        self.directories = [None; 2];
        let described = match outcome {
            Outcome::Inode(attributes) => [Some(attributes), None],
            Outcome::Replaced(moved, replaced) => [Some(moved), Some(replaced)],
            _ => [None; 2],
        };
        for attributes in described.into_iter().flatten() {
            if attributes.nlink == 0 {
                table.forget(attributes.ino);
            } else if self.makes {
                table.directories.insert(attributes.ino, HashSet::new());
            }
        }
    }

    /// True if a file with several names may have been renamed to one that it has: then both stay (rename(2)).
    fn is_of_two_names(&self, outcome: &Outcome) -> bool {
        let is_rename = self.directories[1].is_some();
        is_rename
            && matches!(outcome, Outcome::Inode(moved) if moved.nlink > 1 && moved.kind() != FileKind::Directory)
    }

    /// It was refused, and has changed nothing; `exists`: since there is such a name.
    pub fn refused(mut self, exists: bool) {
        self.directories = [None; 2];
        if let Some((directory, name)) = &self.adds {
            let mut table = self.complete.0.lock();
            match exists {
                false => table.remove(*directory, name),
                // Whoever made it, all names aren't known here.
                true => table.forget(*directory),
            }
        }
    }
}

impl Drop for Renaming<'_> {
    fn drop(&mut self) {
        let mut table = self.complete.0.lock();
        self.directories.into_iter().flatten().for_each(|directory| table.forget(directory));
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::attributes::Attributes;
    use atoll_core::commands::ops;

    use super::*;
    use crate::testing::file_attributes;

    const DIRECTORY: InodeId = InodeId(20);
    const FILE: InodeId = InodeId(21);

    fn create(parent: InodeId, name: &'static str, mode: u32) -> ClientOp {
        let name = Bytes::from_static(name.as_bytes());
        let target = Bytes::new();
        ClientOp::from(ops::Create {
            parent,
            name,
            ino: None,
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            target,
            umask: 0,
        })
    }

    fn inode(ino: InodeId, nlink: u32) -> Outcome {
        Outcome::Inode(Box::new(Attributes { nlink, ..file_attributes(ino, 1, 0) }))
    }

    fn unlink(parent: InodeId, name: &'static str) -> ClientOp {
        ClientOp::from(ops::Unlink { parent, name: Bytes::from_static(name.as_bytes()), directory: false })
    }

    fn rename(name: &'static str, new_name: &'static str, flags: u32) -> ClientOp {
        let [name, new_name] = [name, new_name].map(|name| Bytes::from_static(name.as_bytes()));
        let (parent, new_parent, whiteout) = (DIRECTORY, DIRECTORY, (0, 0));
        ClientOp::from(ops::Rename { parent, name, new_parent, new_name, flags, whiteout })
    }

    fn known() -> Complete {
        let complete = Complete::default();
        complete.begin(&create(ROOT, "d", 0o40755)).done(&inode(DIRECTORY, 2));
        complete
    }

    #[test]
    fn names_of_a_directory_that_was_made_here_are_known() {
        let complete = known();
        assert!(!complete.has_not(ROOT, b"x") && complete.has_not(DIRECTORY, b"a"));
        assert!(!complete.has_not(DIRECTORY, b".") && !complete.has_not(DIRECTORY, b".."));
        let making = complete.begin(&create(DIRECTORY, "a", 0o100_644));
        assert!(!complete.has_not(DIRECTORY, b"a"), "it may be there already");
        making.done(&inode(FILE, 1));
        assert!(!complete.has_not(DIRECTORY, b"a") && complete.has_not(DIRECTORY, b"b"));
        complete.begin(&rename("a", "b", 0)).done(&inode(FILE, 1));
        assert!(complete.has_not(DIRECTORY, b"a") && !complete.has_not(DIRECTORY, b"b"));
        complete.begin(&rename("b", "b2", 0)).done(&inode(FILE, 2));
        assert!(!complete.has_not(DIRECTORY, b"b"), "both may be names of one file");
        complete.begin(&rename("b", "c", RENAME_WHITEOUT)).done(&inode(FILE, 1));
        assert!(!complete.has_not(DIRECTORY, b"b") && !complete.has_not(DIRECTORY, b"c"));
        complete.begin(&unlink(DIRECTORY, "b")).done(&inode(FILE, 0));
        assert!(complete.has_not(DIRECTORY, b"b"));
        complete.begin(&unlink(ROOT, "d")).done(&inode(DIRECTORY, 0));
        assert!(!complete.has_not(DIRECTORY, b"x"), "who still has it open asks");
        assert_eq!(complete.0.lock().names, 0);
    }

    #[test]
    fn what_was_refused_changes_nothing_and_what_was_given_up_anything() {
        let complete = known();
        complete.begin(&create(DIRECTORY, "a", 0o100_644)).refused(false);
        assert!(complete.has_not(DIRECTORY, b"a"));
        complete.begin(&create(DIRECTORY, "a", 0o100_644)).done(&inode(FILE, 1));
        // There is one.
        complete.begin(&create(DIRECTORY, "a", 0o100_644)).refused(true);
        complete.begin(&unlink(DIRECTORY, "a")).refused(false);
        assert!(!complete.has_not(DIRECTORY, b"a") && complete.has_not(DIRECTORY, b"b"));
        drop(complete.begin(&unlink(DIRECTORY, "a")));
        assert!(!complete.has_not(DIRECTORY, b"b"));
        let complete = known();
        complete.begin(&create(DIRECTORY, "a", 0o100_644)).refused(true);
        assert!(!complete.has_not(DIRECTORY, b"b"), "somebody else has made it");
        let complete = known();
        let making = complete.begin(&create(ROOT, "e", 0o40755));
        complete.session_lost();
        making.done(&inode(FILE, 2));
        assert!(!complete.has_not(DIRECTORY, b"b") && !complete.has_not(FILE, b"b"));
        let found = Complete::default();
        found.begin(&create(ROOT, "lost+found", 0o40700)).done(&inode(DIRECTORY, 2));
        assert!(!found.has_not(DIRECTORY, b"b"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let complete = known();
        for number in 0..=NAMES_MAX {
            assert!(complete.0.lock().add(DIRECTORY, number.to_string().as_bytes()) || number == NAMES_MAX);
        }
        assert!(!complete.has_not(DIRECTORY, b"x"));
        assert_eq!(complete.0.lock().names, 0);
    }
}
