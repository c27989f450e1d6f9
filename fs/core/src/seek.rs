//! `SEEK_DATA` and `SEEK_HOLE`: what comes next in a file's map. Costs what exists, not how far apart it is.

use std::ops::{ControlFlow, Range};

use serde::{Deserialize, Serialize};

use crate::extents;
use crate::ids::InodeId;
use crate::keys;
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use crate::records::{InodeRecord, Place, Record, SegmentRecord, in_blocks};
use crate::store::{Family, Read, StoreError, prefix_end};

/// Segments that one question looks at.
const SEGMENTS_MAX: usize = 16 << 10;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seek {
    /// Data. What is allocated and never written isn't any, as on other filesystems.
    Data,
    /// A hole; there is one at the end of the file.
    Hole,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sought {
    /// It begins here.
    Found(u64),
    /// There is none before the end of the file.
    Nothing,
    /// Nothing up to here; ask again from here on.
    Continue(u64),
}

/// Looks for the first data or hole at or after an offset, in runs of data that come in order. Whole blocks are
/// data or hole.
struct Finder {
    at: u64,
    kind: Seek,
}

impl Finder {
    fn data(&mut self, run: &Range<u64>) -> Option<u64> {
        let start = run.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = in_blocks(run.end);
        match self.kind {
            Seek::Data => (end > self.at).then(|| start.max(self.at)),
            Seek::Hole if start > self.at => Some(self.at),
            Seek::Hole => {
                self.at = self.at.max(end);
                None
            }
        }
    }
}

/// The next data or hole of a file at or after `offset`.
///
/// # Errors
/// If the store fails.
pub fn seek(
    from: &dyn Read,
    ino: InodeId,
    record: &InodeRecord,
    offset: u64,
    kind: Seek,
) -> Result<Sought, StoreError> {
    if offset >= record.size {
        return Ok(Sought::Nothing);
    }
    let mut finder = Finder { at: offset, kind };
    let (mut found, mut failed, mut looked, mut more) = (None, None, 0, None);
    let start = keys::segment(ino, extents::segment_of(offset));
    let end = prefix_end(&keys::inode(ino));
    from.scan(Family::Extents, &start, &end, &mut |key, value| {
        let Some(segment) = keys::segment_of(key) else { return ControlFlow::Continue(()) };
        let base = segment.0.saturating_mul(SEGMENT_BYTES);
        if looked == SEGMENTS_MAX {
            more = Some(base);
            return ControlFlow::Break(());
        }
        looked += 1;
        let stored = match SegmentRecord::decode(value) {
            Ok(stored) if !record.is_cut_off(segment, stored.epoch) => stored,
            Ok(_) => return ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        };
        for piece in stored.pieces.iter().filter(|piece| piece.place != Place::Unwritten) {
            let run =
                base.saturating_add(u64::from(piece.start))..base.saturating_add(u64::from(piece.end()));
            found = finder.data(&run);
            if found.is_some() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    Ok(match (found, more, kind) {
        (Some(at), _, Seek::Data) if at >= record.size => Sought::Nothing,
        (Some(at), _, _) => Sought::Found(at.min(record.size)),
        (None, Some(base), Seek::Data) => Sought::Continue(base),
        (None, Some(base), Seek::Hole) if finder.at < base => Sought::Found(finder.at.min(record.size)),
        (None, Some(_), Seek::Hole) => Sought::Continue(finder.at),
        (None, None, Seek::Data) => Sought::Nothing,
        (None, None, Seek::Hole) => Sought::Found(finder.at.min(record.size)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(kind: Seek, offset: u64, runs: &[(u64, u64)], size: u64) -> Option<u64> {
        let mut finder = Finder { at: offset, kind };
        for (start, end) in runs {
            if let Some(found) = finder.data(&(*start..*end)) {
                return Some(found);
            }
        }
        (kind == Seek::Hole).then(|| finder.at.min(size))
    }

    #[test]
    fn finds_data_and_holes_in_whole_blocks() {
        let runs = [(0, 100), (9000, 9100), (12288, 20480)];
        let data = |offset| find(Seek::Data, offset, &runs, 30_000);
        let hole = |offset| find(Seek::Hole, offset, &runs, 30_000);
        assert_eq!(data(0), Some(0));
        assert_eq!(data(50), Some(50));
        assert_eq!(data(4096), Some(8192));
        assert_eq!(data(12287), Some(12287), "the block of 9000 ends where the next run begins");
        assert_eq!(data(20480), None);
        assert_eq!(hole(0), Some(4096));
        assert_eq!(hole(5000), Some(5000));
        assert_eq!(hole(8192), Some(20480), "blocks that touch are one run");
        assert_eq!(find(Seek::Hole, 0, &[(0, 100)], 100), Some(100));
        assert_eq!(find(Seek::Hole, 0, &[], 100), Some(0));
        assert_eq!(find(Seek::Data, 0, &[], 100), None);
    }

    #[test]
    fn a_map_of_any_extent_is_one_look() {
        use crate::ids::{ChunkId, SegmentIndex};
        use crate::records::Piece;
        use crate::store::MemStore;
        let mut store = MemStore::default();
        let ino = InodeId(20);
        let far = (i64::MAX as u64) / SEGMENT_BYTES - 1;
        for segment in [0, far] {
            let place = Place::Chunk { chunk: ChunkId(1), offset: 0 };
            let piece = Piece { start: 0, length: 4096, place, birth: 1, shared: false };
            let value = SegmentRecord { epoch: 0, pieces: vec![piece] }.encode();
            store.write([(Family::Extents, keys::segment(ino, SegmentIndex(segment)), Some(value))]);
        }
        let record = InodeRecord { size: i64::MAX as u64, ..crate::query::tests_inode() };
        let look = |offset, kind| seek(&store, ino, &record, offset, kind).unwrap();
        assert_eq!(look(4096, Seek::Data), Sought::Found(far * SEGMENT_BYTES));
        assert_eq!(look(0, Seek::Hole), Sought::Found(4096));
        assert_eq!(look(far * SEGMENT_BYTES, Seek::Hole), Sought::Found(far * SEGMENT_BYTES + 4096));
        assert_eq!(look(far * SEGMENT_BYTES + 4096, Seek::Data), Sought::Nothing);
    }
}
