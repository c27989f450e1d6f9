//! fallocate(2).

use crate::attributes::{FileKind, Timestamp};
use crate::commands::{AllocateMode, Outcome};
use crate::error::FsError;
use crate::extents;
use crate::ids::InodeId;
use crate::keys;
use crate::limits::{FILE_BYTES_MAX, SEGMENT_BYTES};
use crate::records::{InodeRecord, Piece, Place, SegmentRecord};
use crate::store::Family;
use crate::txn::{OpResult, Txn, change_time};
use crate::volume;

/// Segments that one call may touch: the caller splits larger ranges (64 GiB).
const SEGMENTS_MAX: u64 = 1 << 16;

pub(super) fn allocate(
    txn: &mut Txn<'_>,
    now: Timestamp,
    ino: InodeId,
    offset: u64,
    length: u64,
    mode: AllocateMode,
    keep_size: bool,
) -> OpResult<Outcome> {
    let mut record = txn.inode(ino)?;
    match record.kind() {
        FileKind::File => {}
        FileKind::Directory => return Err(FsError::IsDirectory.into()),
        _ => return Err(FsError::InvalidArgument.into()),
    }
    let end = offset.checked_add(length).filter(|end| *end <= FILE_BYTES_MAX).ok_or(FsError::FileTooLarge)?;
    if length == 0 {
        return Err(FsError::InvalidArgument.into());
    }
    let charged = record.charged();
    match mode {
        AllocateMode::Punch => unmap(txn, ino, &mut record, offset, end)?,
        AllocateMode::Zero | AllocateMode::Allocate => {
            if end.div_ceil(SEGMENT_BYTES) - offset / SEGMENT_BYTES > SEGMENTS_MAX {
                return Err(FsError::NoSpace.into());
            }
            // Before a hundred thousand records are made for a range that has no room.
            let missing = length.saturating_sub(record.mapped);
            if missing > txn.volume()?.volume_use().bytes_free() {
                return Err(FsError::NoSpace.into());
            }
            for (segment, start, part_end) in extents::split(offset, end) {
                fill(txn, ino, &mut record, segment, (start, part_end), mode)?;
            }
        }
    }
    if !keep_size && mode != AllocateMode::Punch {
        record.size = record.size.max(end);
    }
    volume::charge(txn, charged, record.charged(), None)?;
    let changed = change_time(now, &record);
    record.mtime = changed;
    record.ctime = changed;
    record.change += 1;
    txn.put_inode(ino, &record);
    Ok(Outcome::Inode(Box::new(record.attributes(ino))))
}

/// Makes a range a hole, touching only segments that exist.
fn unmap(txn: &mut Txn<'_>, ino: InodeId, record: &mut InodeRecord, from: u64, end: u64) -> OpResult<()> {
    let last = extents::segment_of(end - 1);
    let found = txn.segments_from(ino, extents::segment_of(from), SEGMENTS_MAX as usize + 1)?;
    for (segment, _) in found.into_iter().take_while(|(segment, _)| *segment <= last) {
        let base = segment.0 * SEGMENT_BYTES;
        let start = from.saturating_sub(base).min(SEGMENT_BYTES) as u32;
        let stop = (end - base).min(SEGMENT_BYTES) as u32;
        extents::remap(txn, ino, record, segment, (start, stop), &[])?;
        extents::mark_for_migration(txn, ino, record, segment)?;
    }
    Ok(())
}

/// Makes a range of a segment allocated: all of it zero, or only its holes.
fn fill(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &mut InodeRecord,
    segment: crate::ids::SegmentIndex,
    (start, end): (u32, u32),
    mode: AllocateMode,
) -> OpResult<()> {
    let birth = txn.volume()?.epoch;
    let unwritten = |start: u32, end: u32| Piece {
        start,
        length: end - start,
        place: Place::Unwritten,
        birth,
        shared: false,
    };
    if mode == AllocateMode::Zero {
        extents::remap(txn, ino, record, segment, (start, end), &[unwritten(start, end)])?;
        return extents::mark_for_migration(txn, ino, record, segment);
    }
    let found: Option<SegmentRecord> = txn.load(Family::Extents, &keys::segment(ino, segment))?;
    let pieces = match found {
        Some(found) if !record.is_cut_off(segment, found.epoch) => found.pieces,
        _ => Vec::new(),
    };
    let mut at = start;
    for piece in pieces.iter().filter(|piece| piece.end() > start && piece.start < end) {
        if piece.start > at {
            extents::remap(txn, ino, record, segment, (at, piece.start), &[unwritten(at, piece.start)])?;
        }
        at = at.max(piece.end());
    }
    if at < end {
        extents::remap(txn, ino, record, segment, (at, end), &[unwritten(at, end)])?;
    }
    Ok(())
}
