//! Continues for a process that is dead: what is open, locked and buffered is this client's from then on, before it serves the
//! first request.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use atoll_core::ids::InodeId;

use super::Client;
use crate::arena::{Arena, DataBlock, HandleRecord};
use crate::metadata::{ClientError, Metadata};
use crate::session::{Committed, Inherited};

/// What a dead process has left.
#[derive(Debug)]
pub struct Succession {
    /// What its session has.
    pub inherited: Inherited,
    /// What is open.
    pub handles: Vec<HandleRecord>,
    /// What was written, oldest first.
    pub data: Vec<DataBlock>,
    /// How often the mount was taken over.
    pub takeovers: u64,
}

impl<M: Metadata> Client<M> {
    /// Takes it over. To be called once, before anything is served.
    ///
    /// # Errors
    /// If the volume has no room for what was written: another session may have taken what was reserved for it.
    pub async fn succeed(&self, arena: &Arc<Arena>, succession: Succession) -> Result<(), ClientError> {
        let Succession { inherited, handles, data, takeovers } = succession;
        let Inherited { is_lost, was_parted, committed, locks, locks_are_known, bytes_reserved, lost } =
            inherited;
        self.handles.succeed(takeovers, handles, is_lost || !locks_are_known);
        self.pages.succeed(self.handles.files());
        self.locks.inherit(&locks);
        let locks_are_lost = was_parted && self.keeps_locks_in_the_kernel();
        self.handles.break_files(|ino| locks_are_lost || lost.contains(&ino));
        let mut data = uncommitted(arena, data, &committed);
        if atoll_faults::planted("successor-forgets-data") {
            data.clear();
        }
        self.data.lose_changes(lost);
        if is_lost {
            let lost: BTreeSet<InodeId> = data.iter().map(DataBlock::ino).collect();
            self.data.lose(&data);
            self.handles.break_files(|ino| lost.contains(&ino));
            return Ok(());
        }
        self.data.adopt(data, bytes_reserved).await
    }
}

/// What of these blocks isn't committed, in their order.
fn uncommitted(arena: &Arc<Arena>, blocks: Vec<DataBlock>, committed: &[Committed]) -> Vec<DataBlock> {
    let mut left = Vec::with_capacity(blocks.len());
    for block in blocks {
        let is_in = |committed: &&Committed| committed.ino == block.ino() && block.order() <= committed.order;
        let ranges: Vec<Range<u64>> =
            committed.iter().filter(is_in).flat_map(|committed| committed.ranges.iter().cloned()).collect();
        let whole = block.offset()..block.offset() + block.len() as u64;
        let rest = without(whole.clone(), &ranges);
        let parts = if rest == [whole] { None } else { parts_of(arena, &block, &rest) };
        match parts {
            Some(parts) => {
                left.extend(parts);
                block.retire();
            }
            // All of it is committed once more if there is no room for a part of it.
            None => left.push(block),
        }
    }
    left
}

/// Parts of a block as blocks of their own. `None`: there is no room for them.
fn parts_of(arena: &Arc<Arena>, block: &DataBlock, parts: &[Range<u64>]) -> Option<Vec<DataBlock>> {
    let mut stored = Vec::new();
    for part in parts {
        let mut at = part.start;
        while at < part.end {
            let bytes = &block.bytes()[(at - block.offset()) as usize..(part.end - block.offset()) as usize];
            let mut one = arena.store(block.ino(), at, bytes).ok()?;
            one.note(block.kills(), block.mtime().unwrap_or_default());
            at += one.len() as u64;
            stored.push(one);
        }
    }
    Some(stored)
}

/// The parts of a range that are in none of the others.
fn without(range: Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut others: Vec<&Range<u64>> = others.iter().collect();
    others.sort_by_key(|other| other.start);
    let mut left = Vec::new();
    let mut at = range.start;
    for other in others {
        if other.start > at {
            left.push(at..other.start.min(range.end));
        }
        at = at.max(other.end);
        if at >= range.end {
            break;
        }
    }
    if at < range.end {
        left.push(at..range.end);
    }
    left.retain(|part| part.start < part.end);
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::ArenaConfig;

    #[test]
    fn what_is_in_no_other_range_is_left() {
        let left = |others: &[(u64, u64)]| -> Vec<(u64, u64)> {
            let others: Vec<Range<u64>> = others.iter().map(|(start, end)| *start..*end).collect();
            without(5..10, &others).into_iter().map(|part| (part.start, part.end)).collect()
        };
        assert_eq!(left(&[]), [(5, 10)]);
        assert_eq!(left(&[(0, 5), (10, 20)]), [(5, 10)]);
        assert_eq!(left(&[(0, 20)]), []);
        assert_eq!(left(&[(8, 9), (6, 7)]), [(5, 6), (7, 8), (9, 10)]);
        assert_eq!(left(&[(0, 6), (5, 8)]), [(8, 10)]);
        assert_eq!(left(&[(7, 30)]), [(5, 7)]);
    }

    #[test]
    fn data_that_is_committed_is_not_committed_again() {
        let arena = Arena::create(ArenaConfig::default()).unwrap();
        let (a, b) = (InodeId(5), InodeId(6));
        let blocks = vec![
            arena.store(a, 0, b"committed").unwrap(),
            arena.store(b, 0, b"another file").unwrap(),
            arena.store(a, 9, b"half of it").unwrap(),
            arena.store(a, 0, b"newer").unwrap(),
        ];
        let order = blocks[2].order();
        let committed = [Committed { ino: a, ranges: vec![0..9, 9..13], order }];
        let left = uncommitted(&arena, blocks, &committed);
        let found: Vec<(u64, u64, &[u8])> =
            left.iter().map(|block| (block.ino().0, block.offset(), block.bytes())).collect();
        assert_eq!(found, [(6, 0, &b"another file"[..]), (5, 13, b" of it"), (5, 0, b"newer")]);
    }
}
