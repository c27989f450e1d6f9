//! Names in a folder that all clients share are linearizable (Herlihy and Wing 1990): each making, removing and looking up
//! of a name, with the answer it got, took effect at one moment between its beginning and its end.
//!
//! Names have nothing to do with each other here, so each is checked by itself. The search is that of Wing and Gong (1993)
//! with what was tried before remembered (Lowe 2017): of the operations that began before any other one that is left has
//! ended, one is the next.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use atoll_core::ids::InodeId;

use crate::client::{Event, NameOp, What};

/// An operation on a name.
struct Operation {
    began: Duration,
    ended: Duration,
    op: NameOp,
}

/// A file that was made, of which its maker wasn't told the number: whoever finds it tells that.
const UNKNOWN: InodeId = InodeId(0);

/// What the name means after the operation, if its answer is right.
fn after(state: Option<InodeId>, op: &NameOp) -> Option<Option<InodeId>> {
    match (op, state) {
        (NameOp::Made(Some(ino)), None) => Some(Some(*ino)),
        (NameOp::MadeInLost, None) => Some(Some(UNKNOWN)),
        (NameOp::Found(Some(ino)), Some(UNKNOWN)) => Some(Some(*ino)),
        (NameOp::Made(None), Some(_)) | (NameOp::Removed(false), None) => Some(state),
        (NameOp::Removed(true), Some(_)) => Some(None),
        (NameOp::Found(found), state) if *found == state => Some(state),
        _ => None,
    }
}

/// Checks a history. At first there is no name.
///
/// # Errors
/// What is wrong.
pub fn check(events: &[Event]) -> Result<(), String> {
    let mut names: BTreeMap<usize, Vec<Operation>> = BTreeMap::new();
    for event in events {
        if let What::Name(name, op) = &event.what {
            let operation = Operation { began: event.began, ended: event.ended, op: op.clone() };
            names.entry(*name).or_default().push(operation);
        }
    }
    for (name, mut operations) in names {
        operations.sort_by_key(|operation| operation.began);
        if !can_be_ordered(&operations) {
            let shown: Vec<String> = operations
                .iter()
                .map(|operation| {
                    format!("{:?} to {:?}: {:?}", operation.began, operation.ended, operation.op)
                })
                .collect();
            return Err(format!("name {name} has no order of its operations:\n  {}", shown.join("\n  ")));
        }
    }
    Ok(())
}

fn can_be_ordered(operations: &[Operation]) -> bool {
    // What took effect, and what the name means then.
    let mut tried: HashSet<(Vec<bool>, Option<InodeId>)> = HashSet::new();
    let mut open = vec![(vec![false; operations.len()], None)];
    while let Some((done, state)) = open.pop() {
        let left = || operations.iter().enumerate().filter(|(number, _)| !done[*number]);
        let Some(first_end) = left().map(|(_, operation)| operation.ended).min() else { return true };
        for (number, operation) in left().filter(|(_, operation)| operation.began <= first_end) {
            if let Some(state) = after(state, &operation.op) {
                let mut done = done.clone();
                done[number] = true;
                if tried.insert((done.clone(), state)) {
                    open.push((done, state));
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants;

    fn event(began: u64, ended: u64, op: NameOp) -> Event {
        invariants::testing::event(0, began, ended, What::Name(1, op))
    }

    fn made(ino: u64) -> NameOp {
        NameOp::Made(Some(InodeId(ino)))
    }

    fn found(ino: u64) -> NameOp {
        NameOp::Found(Some(InodeId(ino)))
    }

    #[test]
    fn what_can_be_put_in_order_is_fine() {
        let events = [
            event(1, 10, made(7)),
            event(2, 3, NameOp::Found(None)),
            event(4, 5, found(7)),
            event(4, 6, NameOp::Made(None)),
            event(11, 20, NameOp::Removed(true)),
            event(12, 19, made(8)),
            event(13, 14, NameOp::Removed(false)),
            event(21, 22, found(8)),
        ];
        assert_eq!(check(&events), Ok(()));
    }

    #[test]
    fn a_file_whose_maker_was_not_told_of_it_is_made_once() {
        let made = || event(1, 10, NameOp::MadeInLost);
        let removed = || event(4, 5, NameOp::Removed(true));
        assert_eq!(
            check(&[made(), event(2, 3, found(7)), removed(), event(11, 12, NameOp::Found(None))]),
            Ok(())
        );
        assert!(check(&[made(), event(2, 3, found(7)), event(4, 5, found(8))]).is_err());
        assert!(check(&[made(), removed(), event(6, 7, NameOp::Removed(true))]).is_err());
    }

    #[test]
    fn what_happened_twice_or_never_is_found() {
        // A second time: it was made, and said not to be.
        assert!(check(&[event(1, 2, NameOp::Made(None)), event(3, 4, found(7))]).is_err());
        // Lost.
        assert!(check(&[event(1, 2, made(7)), event(3, 4, NameOp::Found(None))]).is_err());
        // Removed twice.
        let twice =
            [event(1, 2, made(7)), event(3, 9, NameOp::Removed(true)), event(4, 8, NameOp::Removed(true))];
        assert!(check(&twice).is_err());
        // Back in time.
        let back = [
            event(1, 2, made(7)),
            event(3, 20, NameOp::Removed(true)),
            event(4, 5, NameOp::Found(None)),
            event(6, 7, found(7)),
        ];
        assert!(check(&back).is_err());
    }
}
