//! Which of the kernel's inodes stands for a directory.
//!
//! To the kernel a directory has one place. If a lookup finds it elsewhere, because another mount has moved it, the kernel
//! moves what it has to there; but it only tries to take the locks which that needs, and answers `ESTALE` when it doesn't get
//! them. A rename between directories has them itself: it could never find what was moved that way. So a directory that turns up
//! below another parent gets another node id, which is a new directory to the kernel that nothing has to be moved for.
//! The old one goes on meaning the same directory for who is in it, until the kernel forgets it.
//!
//! Who has a handle (`open_by_handle_at`, an NFS server) asks for "." of a node that the kernel has forgotten, which must be
//! that very node again, and for ".." of it. What is found that way has no place: the kernel puts it where it finds it by its
//! name then, and needs no locks for that.
//!
//! Everything else has its inode number as its node id: what isn't a directory may have many names.

use std::collections::HashMap;

use atoll_core::attributes::{Attributes, FileKind};
use atoll_core::ids::InodeId;
use parking_lot::Mutex;

/// Set in the node ids that are no inode numbers; below it comes the turn, and then the inode number.
const MOVED: u64 = 1 << 63;
/// Bits of the inode number in such a node id.
const INODE_BITS: u32 = 52;
/// Turns, after which node ids are used again.
const TURNS: u64 = 1 << (63 - INODE_BITS);

/// Where the kernel has a directory.
struct Place {
    parent: u64,
    name: Box<[u8]>,
    /// It is being renamed to this: it may be found there already.
    next: Option<(u64, Box<[u8]>)>,
    /// The kernel has it without a place: it was found by its handle.
    apart: bool,
    turn: u64,
    /// How often the kernel was told of the node.
    lookups: u64,
    /// The same of the nodes of earlier turns.
    earlier: u64,
}

/// No node: the kernel has a directory somewhere that isn't known.
const NOWHERE: u64 = 0;

#[derive(Default)]
struct Table {
    places: HashMap<InodeId, Place>,
    by_name: HashMap<(u64, Box<[u8]>), InodeId>,
}

/// The directories that the kernel knows.
#[derive(Default)]
pub(super) struct Nodes(Mutex<Table>);

/// The inode that a node id stands for.
pub(super) fn inode(node: u64) -> InodeId {
    InodeId(if node & MOVED == 0 { node } else { node & ((1 << INODE_BITS) - 1) })
}

fn node(ino: InodeId, turn: u64) -> u64 {
    if turn == 0 { ino.0 } else { MOVED | turn << INODE_BITS | ino.0 }
}

fn turn(node: u64) -> u64 {
    if node & MOVED == 0 { 0 } else { (node & !MOVED) >> INODE_BITS }
}

impl Table {
    fn put(&mut self, ino: InodeId, place: Place) {
        let key = (place.parent, place.name.clone());
        self.take(ino);
        if let Some(other) = self.by_name.insert(key, ino)
            && let Some(place) = self.places.get_mut(&other)
        {
            // It was moved away by somebody else; somebody here may still be in it.
            (place.parent, place.name) = (NOWHERE, Box::default());
        }
        self.places.insert(ino, place);
    }

    /// Where the kernel has it isn't known any more.
    fn lose(&mut self, ino: InodeId) {
        if let Some(place) = self.take(ino) {
            self.places.insert(ino, Place { parent: NOWHERE, name: Box::default(), apart: false, ..place });
        }
    }

    /// The node with which the kernel is told of a directory that it wants to have whatever its place. `asked`: it has
    /// forgotten this node, and wants that one.
    fn apart(&mut self, ino: InodeId, asked: Option<u64>) -> u64 {
        let known = self.places.get_mut(&ino);
        let present = known.as_ref().map_or(0, |place| place.turn);
        let turn = asked.map_or(present, turn);
        match known {
            Some(place) if turn != present && place.lookups > 0 => place.earlier += 1,
            Some(place) if asked.is_none() && place.lookups > 0 => place.lookups += 1,
            _ => {
                let (lookups, earlier) = known.map_or((0, 0), |place| (place.lookups, place.earlier));
                self.take(ino);
                let (parent, name, next) = (NOWHERE, Box::default(), None);
                let lookups = lookups + 1;
                self.places.insert(ino, Place { parent, name, next, apart: true, turn, lookups, earlier });
            }
        }
        node(ino, turn)
    }

    fn take(&mut self, ino: InodeId) -> Option<Place> {
        let place = self.places.remove(&ino)?;
        if place.parent != NOWHERE {
            self.by_name.remove(&(place.parent, place.name.clone()));
        }
        Some(place)
    }
}

impl Nodes {
    /// The node id with which the kernel is told of an inode that it asked for by a name.
    pub(super) fn found(&self, parent: u64, name: &[u8], attributes: &Attributes) -> u64 {
        let ino = attributes.ino;
        if attributes.kind() != FileKind::Directory || ino.0 >> INODE_BITS != 0 {
            return ino.0;
        }
        let mut table = self.0.lock();
        match name {
            b"." => return table.apart(ino, Some(parent)),
            b".." => return table.apart(ino, None),
            _ => {}
        }
        let (turn, lookups, earlier) = match table.places.get_mut(&ino) {
            Some(place)
                if place.next.as_ref().is_some_and(|(to, called)| *to == parent && **called == *name)
                    || place.parent == parent && *place.name == *name =>
            {
                place.lookups += 1;
                return node(ino, place.turn);
            }
            Some(place) if place.parent == parent || place.apart => {
                (place.turn, place.lookups + 1, place.earlier)
            }
            Some(place) => ((place.turn + 1) % TURNS, 1, place.earlier + place.lookups),
            None => (0, 1, 0),
        };
        table.put(ino, Place { parent, name: name.into(), next: None, apart: false, turn, lookups, earlier });
        node(ino, turn)
    }

    /// The kernel's request to move a name is about to be carried out.
    pub(super) fn renaming(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
    ) -> Renaming<'_> {
        let mut table = self.0.lock();
        let mut begin = |from: u64, name: &[u8], to: u64, called: &[u8]| {
            let ino = table.by_name.get(&(from, Box::from(name))).copied()?;
            let place = table.places.get_mut(&ino)?;
            place.next = Some((to, called.into()));
            Some((ino, place.turn))
        };
        let moved = begin(parent, name, new_parent, new_name);
        let other = begin(new_parent, new_name, parent, name);
        drop(table);
        Renaming { nodes: self, moved, other }
    }

    /// The kernel forgets that it was told of a node so often. It may have been told again meanwhile.
    pub(super) fn forget(&self, forgotten: u64, lookups: u64) {
        let ino = inode(forgotten);
        let mut table = self.0.lock();
        let Some(place) = table.places.get_mut(&ino) else { return };
        let is_present = node(ino, place.turn) == forgotten;
        let told = if is_present { &mut place.lookups } else { &mut place.earlier };
        *told = told.saturating_sub(lookups);
        match (place.lookups, place.earlier) {
            (0, 0) => drop(table.take(ino)),
            // Who is in one of the earlier ones still is.
            (0, _) => table.lose(ino),
            _ => {}
        }
    }
}

/// A request to move a name that is under way, and the directories that it moves.
pub(super) struct Renaming<'a> {
    nodes: &'a Nodes,
    moved: Option<(InodeId, u64)>,
    other: Option<(InodeId, u64)>,
}

impl Renaming<'_> {
    /// It is done: the kernel has moved what it has, too. `exchanged`: both names.
    ///
    /// What has turned up elsewhere meanwhile, because another mount was quicker, is another node there, and stays it: the
    /// kernel has moved the one that it had before. (If that was quite another directory, whose place this one has got since,
    /// the kernel has it elsewhere from here on than it is taken to: nothing that it says tells that.)
    pub(super) fn done(self, from: (u64, &[u8]), to: (u64, &[u8]), exchanged: bool) {
        let mut table = self.nodes.0.lock();
        let moves = |table: &Table, who: Option<(InodeId, u64)>| {
            who.filter(|(ino, turn)| table.places.get(ino).is_some_and(|place| place.turn == *turn))
        };
        let (moved, other) = (moves(&table, self.moved), moves(&table, self.other));
        // Both leave before one arrives.
        for (ino, _) in moved.into_iter().chain(other) {
            table.lose(ino);
        }
        // Without an exchange the other one is gone; or another mount has saved it, and where it is isn't known.
        for (arrives, (parent, name)) in [(moved, to), (other.filter(|_| exchanged), from)] {
            if let Some((ino, _)) = arrives
                && let Some(place) = table.take(ino)
            {
                table.put(ino, Place { parent, name: name.into(), next: None, apart: false, ..place });
            }
        }
    }
}

impl Drop for Renaming<'_> {
    fn drop(&mut self) {
        let mut table = self.nodes.0.lock();
        for (ino, _) in [self.moved, self.other].into_iter().flatten() {
            if let Some(place) = table.places.get_mut(&ino) {
                place.next = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::attributes::Timestamp;

    use super::*;

    fn some(ino: u64, kind: FileKind) -> Attributes {
        Attributes {
            ino: InodeId(ino),
            mode: kind.mode_bits() | 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            change: 1,
            acl: false,
        }
    }

    fn folder(ino: u64) -> Attributes {
        some(ino, FileKind::Directory)
    }

    #[test]
    fn a_directory_that_turns_up_below_another_parent_is_another_node() {
        let nodes = Nodes::default();
        assert_eq!(nodes.found(1, b"d", &folder(7)), 7);
        assert_eq!(nodes.found(1, b"renamed", &folder(7)), 7, "the kernel needs no locks for that");
        let moved = nodes.found(2, b"d", &folder(7));
        assert_ne!(moved, 7);
        assert_eq!(inode(moved), InodeId(7));
        assert_eq!(nodes.found(2, b"d", &folder(7)), moved);
        // What is below it, is below another node.
        assert_eq!(nodes.found(7, b"sub", &folder(8)), 8);
        assert_ne!(nodes.found(moved, b"sub", &folder(8)), 8);
        // The old one is forgotten without a consequence, the present one makes it be as at first.
        nodes.forget(moved, 1);
        assert_eq!(nodes.found(2, b"d", &folder(7)), moved, "it was told of it twice");
        nodes.forget(moved, 2);
        let again = nodes.found(2, b"d", &folder(7));
        assert!(again != moved && again != 7, "the first one is still known");
        nodes.forget(again, 1);
        nodes.forget(7, 2);
        assert_eq!(nodes.found(3, b"d", &folder(7)), 7);
    }

    #[test]
    fn a_directory_whose_name_another_one_has_by_now_keeps_its_turn() {
        let nodes = Nodes::default();
        nodes.found(1, b"d", &folder(7));
        assert_eq!(nodes.found(1, b"d", &folder(8)), 8);
        assert_ne!(nodes.found(1, b"e", &folder(7)), 7, "the kernel may have it anywhere");
        assert_eq!(nodes.found(1, b"d", &folder(8)), 8);
    }

    #[test]
    fn files_and_dots_have_their_numbers() {
        let nodes = Nodes::default();
        for parent in 1..5 {
            assert_eq!(nodes.found(parent, b"f", &some(9, FileKind::File)), 9);
            assert_eq!(nodes.found(9, b".", &some(9, FileKind::File)), 9);
        }
    }

    #[test]
    fn a_handle_leads_to_the_node_that_it_was_made_of() {
        let nodes = Nodes::default();
        nodes.found(1, b"d", &folder(7));
        let moved = nodes.found(2, b"d", &folder(7));
        nodes.forget(7, 1);
        nodes.forget(moved, 1);
        // Asked for by its handle, then by the name where it is: the kernel has no place for it yet.
        assert_eq!(nodes.found(moved, b".", &folder(7)), moved);
        assert_eq!(nodes.found(3, b"e", &folder(7)), moved);
        assert_ne!(nodes.found(4, b"d", &folder(7)), moved, "now it has");
        // Somebody is still in an earlier one.
        let nodes = Nodes::default();
        nodes.found(1, b"d", &folder(7));
        let moved = nodes.found(2, b"d", &folder(7));
        nodes.forget(moved, 1);
        assert_eq!(nodes.found(moved, b".", &folder(7)), moved);
        assert_eq!(nodes.found(2, b"d", &folder(7)), moved);
        // A handle of an earlier one while the kernel has the present one in its place, which stays.
        nodes.forget(7, 1);
        assert_eq!(nodes.found(7, b".", &folder(7)), 7);
        assert_eq!(nodes.found(2, b"d", &folder(7)), moved);
        // All of these lookups are accounted for.
        nodes.forget(7, 1);
        nodes.forget(moved, 3);
        assert_eq!(nodes.found(5, b"d", &folder(7)), 7);
    }

    #[test]
    fn what_is_above_a_handle_is_the_node_that_the_kernel_has() {
        let nodes = Nodes::default();
        nodes.found(1, b"up", &folder(6));
        let up = nodes.found(2, b"up", &folder(6));
        let below = nodes.found(up, b"d", &folder(7));
        nodes.forget(below, 1);
        assert_eq!(nodes.found(below, b".", &folder(7)), below);
        assert_eq!(nodes.found(below, b"..", &folder(6)), up);
        assert_eq!(nodes.found(up, b"d", &folder(7)), below);
        // It doesn't have it: what is found has no place until it is found by its name.
        nodes.forget(6, 1);
        nodes.forget(up, 2);
        assert_eq!(nodes.found(below, b"..", &folder(6)), 6);
        assert_eq!(nodes.found(2, b"up", &folder(6)), 6);
    }

    #[test]
    fn what_the_kernel_moves_itself_stays_what_it_is() {
        let nodes = Nodes::default();
        nodes.found(1, b"a", &folder(7));
        nodes.found(2, b"b", &folder(8));
        // Refused: nothing has moved. While it is under way it may be found at either place.
        let renaming = nodes.renaming(1, b"a", 2, b"c");
        assert_eq!(nodes.found(2, b"c", &folder(7)), 7);
        drop(renaming);
        assert_eq!(nodes.found(1, b"a", &folder(7)), 7);
        nodes.renaming(1, b"a", 2, b"c").done((1, b"a"), (2, b"c"), false);
        assert_eq!(nodes.found(2, b"c", &folder(7)), 7);
        nodes.found(3, b"x", &folder(9));
        nodes.renaming(2, b"c", 3, b"x").done((2, b"c"), (3, b"x"), true);
        assert_eq!((nodes.found(3, b"x", &folder(7)), nodes.found(2, b"c", &folder(9))), (7, 9));
        // Over another one, which is gone then.
        nodes.renaming(3, b"x", 2, b"b").done((3, b"x"), (2, b"b"), false);
        assert_eq!(nodes.found(2, b"b", &folder(7)), 7);
        assert_ne!(nodes.found(3, b"x", &folder(7)), 7, "somebody else has moved it back");
    }

    #[test]
    fn what_another_mount_moves_during_a_rename_is_where_it_was_found() {
        let nodes = Nodes::default();
        nodes.found(1, b"a", &folder(7));
        nodes.found(2, b"b", &folder(8));
        let renaming = nodes.renaming(1, b"a", 2, b"b");
        // It has been moved on, and is found there before the answer to the rename: the kernel has two of it then. What
        // was to be replaced had been moved away before.
        let moved = nodes.found(3, b"c", &folder(7));
        assert_ne!(moved, 7);
        renaming.done((1, b"a"), (2, b"b"), false);
        assert_eq!(nodes.found(3, b"c", &folder(7)), moved);
        assert_ne!(nodes.found(2, b"b", &folder(7)), moved, "that one is elsewhere");
        assert_ne!(nodes.found(4, b"d", &folder(8)), 8, "the kernel may still have it");
    }

    #[test]
    fn turns_are_used_again() {
        let nodes = Nodes::default();
        for round in 0..3 * TURNS {
            assert_eq!(inode(nodes.found(1 + round % 2, b"d", &folder(7))), InodeId(7));
        }
    }
}
