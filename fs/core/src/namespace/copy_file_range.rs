//! copy_file_range(2): the second file refers to the bytes of the first one. Nothing is read or written but
//! records; only inline bytes, which are small, are copied.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::attributes::{FileKind, KillPriv};
use crate::commands::{Context, Copied, Mutation};
use crate::error::FsError;
use crate::extents;
use crate::ids::{InodeId, SegmentIndex};
use crate::limits::{
    COMMIT_INLINE_BYTES_MAX, COPY_BYTES_MAX, COPY_PIECES_MAX, FILE_BYTES_MAX, SEGMENT_BYTES,
};
use crate::namespace::xattr;
use crate::query;
use crate::records::{InodeRecord, Piece, Place};
use crate::store::StoreError;
use crate::txn::{OpResult, Txn, change_time};
use crate::volume;

/// What a run of bytes of the source is, for the copy.
enum Source {
    /// Zeroes: they become a hole.
    Nothing,
    Inline(Bytes),
    Shared(Place, u64),
}

/// A run of the source: its first byte there, its length, and what it is.
struct Run {
    offset: u64,
    length: u64,
    source: Source,
}

/// copy_file_range(2), within the map: both files refer to the same bytes from then on. Copies a part if it is
/// much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFileRange {
    /// From this file,
    pub from: InodeId,
    /// from this byte on,
    pub offset: u64,
    /// to this file,
    pub to: InodeId,
    /// to this byte,
    pub to_offset: u64,
    /// so many.
    pub length: u64,
    /// What the second file loses by it.
    pub kill_priv: KillPriv,
}

impl Mutation for CopyFileRange {
    type Outcome = Copied;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Copied> {
        let now = context.now;
        let CopyFileRange { from, offset, to, to_offset, length, kill_priv } = *self;
        let source = txn.inode(from)?;
        let mut target = txn.inode(to)?;
        for record in [&source, &target] {
            match record.kind() {
                FileKind::File => {}
                FileKind::Directory => return Err(FsError::IsDirectory.into()),
                _ => return Err(FsError::InvalidArgument.into()),
            }
        }
        let wanted = length.min(source.size.min(FILE_BYTES_MAX).saturating_sub(offset));
        if wanted == 0 {
            return Ok(Copied { bytes: 0, attributes: Box::new(target.attributes(to)) });
        }
        to_offset.checked_add(wanted).filter(|end| *end <= FILE_BYTES_MAX).ok_or(FsError::FileTooLarge)?;
        if from == to && offset < to_offset + wanted && to_offset < offset + wanted {
            return Err(FsError::InvalidArgument.into());
        }
        let runs = runs(txn, from, &source, offset, offset + wanted.min(COPY_BYTES_MAX))?;
        let copied: u64 = runs.iter().map(|run| run.length).sum();
        let charged = target.charged();
        let old_size = target.size;
        for (segment, start, end) in extents::split(offset, offset + copied) {
            extents::share(txn, from, &source, segment, (start, end))?;
        }
        for (segment, start, end) in extents::split(to_offset, to_offset + copied) {
            let base = segment.0 * SEGMENT_BYTES;
            // The part of the source that comes to lie here.
            let first = base + u64::from(start) - to_offset + offset;
            let new = pieces(txn, to, segment, (start, first), u64::from(end - start), &runs)?;
            extents::remap_shared(txn, to, &mut target, segment, (start, end), &new)?;
        }
        target.size = target.size.max(to_offset + copied);
        mark_inline(txn, to, &target, to_offset, copied, old_size)?;
        volume::charge(txn, charged, target.charged(), None)?;
        xattr::kill_priv(txn, to, &mut target, kill_priv)?;
        let changed = change_time(now, &target);
        target.mtime = changed;
        target.ctime = changed;
        target.count_change();
        txn.put_inode(to, &target);
        Ok(Copied { bytes: copied, attributes: Box::new(target.attributes(to)) })
    }
}

/// What is at a range of the source, without gaps; less than asked for if it is much, if bytes are lost, or if they
/// are inline and the budget for those is used up: the caller then copies by reading and writing.
fn runs(txn: &Txn<'_>, ino: InodeId, record: &InodeRecord, offset: u64, end: u64) -> OpResult<Vec<Run>> {
    let volume = txn.volume()?;
    let inline_allowed = volume.inline_bytes < volume.config.inline_budget_bytes;
    let first = extents::segment_of(offset);
    let count = extents::segment_of(end - 1).0 - first.0 + 1;
    let mut runs: Vec<Run> = Vec::new();
    let mut at = offset;
    let mut inline = 0;
    'all: for (segment, stored) in query::segments(txn, ino, record, first, count)? {
        let base = segment.0 * SEGMENT_BYTES;
        for piece in &stored {
            let (start, stop) = (base + u64::from(piece.start), base + u64::from(piece.end()));
            // Pieces don't overlap, if nothing is damaged.
            let (from, mut to) = (start.max(offset).max(at), stop.min(end));
            if from >= to {
                continue;
            }
            if runs.len() + 2 > COPY_PIECES_MAX {
                break 'all;
            }
            let skip = from - start;
            let source = match piece.place {
                Place::Lost => return what_was_found(runs, at, from, FsError::Io),
                Place::Inline { .. } if !inline_allowed => {
                    return what_was_found(runs, at, from, FsError::Unsupported);
                }
                Place::Unwritten => continue,
                Place::Inline { .. } => {
                    let left = COMMIT_INLINE_BYTES_MAX - inline;
                    if left == 0 {
                        break 'all;
                    }
                    to = to.min(from + left);
                    inline += to - from;
                    match query::inline_bytes(txn, ino, segment, piece) {
                        Ok(Some(bytes)) => {
                            Source::Inline(bytes.slice(skip as usize..(skip + to - from) as usize))
                        }
                        Ok(None) | Err(StoreError::Damaged(_)) => {
                            return what_was_found(runs, at, from, FsError::Io);
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Place::Chunk { .. } => Source::Shared(piece.place.advance(skip), piece.birth),
            };
            if from > at {
                runs.push(Run { offset: at, length: from - at, source: Source::Nothing });
            }
            runs.push(Run { offset: from, length: to - from, source });
            at = to;
            if to < stop.min(end) {
                return Ok(runs);
            }
        }
    }
    let full = runs.len() + 2 > COPY_PIECES_MAX || inline == COMMIT_INLINE_BYTES_MAX;
    if at < end && !full {
        runs.push(Run { offset: at, length: end - at, source: Source::Nothing });
    }
    Ok(runs)
}

/// The runs up to `from`, where the copy has to end, with the hole before it; the reason if there are none.
fn what_was_found(mut runs: Vec<Run>, at: u64, from: u64, reason: FsError) -> OpResult<Vec<Run>> {
    if from > at {
        runs.push(Run { offset: at, length: from - at, source: Source::Nothing });
    }
    if runs.is_empty() { Err(reason.into()) } else { Ok(runs) }
}

/// The pieces of one segment of the target: `length` bytes from `start` of the segment on, which are those from
/// `first` of the source on.
fn pieces(
    txn: &mut Txn<'_>,
    to: InodeId,
    segment: SegmentIndex,
    (start, first): (u32, u64),
    length: u64,
    runs: &[Run],
) -> OpResult<Vec<Piece>> {
    let epoch = txn.volume()?.epoch;
    let end = first + length;
    let from = runs.partition_point(|run| run.offset + run.length <= first);
    let mut pieces = Vec::new();
    for run in runs[from..].iter().take_while(|run| run.offset < end) {
        let (run_start, run_end) = (run.offset.max(first), (run.offset + run.length).min(end));
        let skip = run_start - run.offset;
        let length = (run_end - run_start) as u32;
        let (place, birth, shared) = match &run.source {
            Source::Nothing => continue,
            Source::Inline(bytes) => {
                let part = bytes.slice(skip as usize..skip as usize + length as usize);
                let id = extents::put_inline(txn, to, segment, &part)?;
                (Place::Inline { id, skip: 0 }, epoch, false)
            }
            Source::Shared(place, birth) => (place.advance(skip), *birth, true),
        };
        pieces.push(Piece { start: start + (run_start - first) as u32, length, place, birth, shared });
    }
    Ok(pieces)
}

/// Marks what has to move into a chunk: inline pieces of a file that is, or has become, too big for them.
fn mark_inline(
    txn: &mut Txn<'_>,
    to: InodeId,
    target: &InodeRecord,
    offset: u64,
    length: u64,
    old_size: u64,
) -> OpResult<()> {
    let limit = u64::from(txn.volume()?.config.inline_file_bytes);
    if target.size <= limit {
        return Ok(());
    }
    if old_size <= limit && old_size > 0 {
        extents::mark_for_migration(txn, to, target, SegmentIndex(0))?;
    }
    for (segment, _, _) in extents::split(offset, offset + length) {
        extents::mark_for_migration(txn, to, target, segment)?;
    }
    Ok(())
}
