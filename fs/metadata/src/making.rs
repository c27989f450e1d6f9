//! Files that are being made and whose makers hold them open from the start. Their numbers are known only when their
//! entries are applied, and then another client may already have removed them: until their makers are among the holders
//! nobody can say of a number that such a file may have got that nobody holds it.

use std::collections::BTreeSet;

use atoll_core::ids::{InodeId, is_journaled};

use crate::lock::Mutex;

/// The files that are being made. Each is known by the number from which on its own is: the next one to be handed out when
/// it was begun.
#[derive(Debug, Default)]
pub struct Making(Mutex<Running>);

#[derive(Debug, Default)]
struct Running {
    begun: u64,
    from: BTreeSet<(InodeId, u64)>,
}

/// A file that is being made, until this is dropped.
#[must_use]
#[derive(Debug)]
pub struct BeingMade<'a> {
    making: &'a Making,
    key: (InodeId, u64),
}

impl Making {
    /// A file is about to be made; its number will be `next` or higher.
    pub fn begin(&self, next: InodeId) -> BeingMade<'_> {
        let mut running = self.0.lock();
        running.begun += 1;
        let key = (next, running.begun);
        running.from.insert(key);
        BeingMade { making: self, key }
    }

    /// Whether `ino` may be the number of a file that is being made. (Entries of journals have chosen theirs before.)
    #[must_use]
    pub fn may_be(&self, ino: InodeId) -> bool {
        !is_journaled(ino) && self.0.lock().from.first().is_some_and(|(from, _)| ino >= *from)
    }
}

impl Drop for BeingMade<'_> {
    fn drop(&mut self) {
        self.making.0.lock().from.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::ids::{SessionId, journaled_inode};

    use super::*;

    #[test]
    fn numbers_are_open_from_the_lowest_that_may_be_handed_out() {
        let making = Making::default();
        let may_be = |number| making.may_be(InodeId(number));
        assert!(!may_be(19) && !may_be(1 << 50));
        let first = making.begin(InodeId(20));
        let second = making.begin(InodeId(20));
        let third = making.begin(InodeId(25));
        drop(first);
        assert!(!may_be(19) && may_be(20) && may_be(1 << 50));
        assert!(!making.may_be(journaled_inode(SessionId(1), 1).unwrap()), "its number was not handed out");
        drop(second);
        assert!(!may_be(24) && may_be(25));
        drop(third);
        assert!(!may_be(19) && !may_be(1 << 50));
    }
}
