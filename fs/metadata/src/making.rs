//! Files that are being made and whose makers hold them open from the start. Their numbers are known only when their
//! entries are applied, and then another client may already have removed them: until their makers are among the holders
//! nobody can say of a number that such a file may have got that nobody holds it.

use std::collections::BTreeSet;

use atoll_core::ids::InodeId;
use parking_lot::Mutex;

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

    /// The lowest number that a file may get, or have, that is being made.
    #[must_use]
    pub fn from(&self) -> Option<InodeId> {
        self.0.lock().from.first().map(|(from, _)| *from)
    }
}

impl Drop for BeingMade<'_> {
    fn drop(&mut self) {
        self.making.0.lock().from.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_open_from_the_lowest_that_may_be_handed_out() {
        let making = Making::default();
        assert_eq!(making.from(), None);
        let first = making.begin(InodeId(20));
        let second = making.begin(InodeId(20));
        let third = making.begin(InodeId(25));
        drop(first);
        assert_eq!(making.from(), Some(InodeId(20)));
        drop(second);
        assert_eq!(making.from(), Some(InodeId(25)));
        drop(third);
        assert_eq!(making.from(), None);
    }
}
