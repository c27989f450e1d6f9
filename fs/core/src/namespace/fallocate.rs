//! fallocate(2).

use serde::{Deserialize, Serialize};

use crate::attributes::{FileKind, KillPriv};
use crate::commands::{Allocated, Context, FallocateMode, Mutation};
use crate::error::FsError;
use crate::extents;
use crate::ids::InodeId;
use crate::keys;
use crate::limits::{ALLOCATE_SEGMENTS_MAX, FILE_BYTES_MAX, SEGMENT_BYTES};
use crate::namespace::xattr;
use crate::records::{InodeRecord, Piece, Place, SegmentRecord};
use crate::store::Family;
use crate::txn::{OpResult, Txn, change_time};
use crate::volume;

/// fallocate(2). A part of it is done if it is much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallocate {
    /// The file.
    pub ino: InodeId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What to do.
    pub mode: FallocateMode,
    /// Don't change the size.
    pub keep_size: bool,
    /// What the file loses by it.
    pub kill_priv: KillPriv,
}

impl Mutation for Fallocate {
    type Outcome = Allocated;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Allocated> {
        let now = context.now;
        let Fallocate { ino, offset, length, mode, keep_size, kill_priv } = *self;
        let mut record = txn.inode(ino)?;
        match record.kind() {
            FileKind::File => {}
            FileKind::Directory => return Err(FsError::IsDirectory.into()),
            _ => return Err(FsError::InvalidArgument.into()),
        }
        let end =
            offset.checked_add(length).filter(|end| *end <= FILE_BYTES_MAX).ok_or(FsError::FileTooLarge)?;
        if length == 0 {
            return Err(FsError::InvalidArgument.into());
        }
        let charged = record.charged();
        let until = match mode {
            FallocateMode::Punch => unmap(txn, ino, &mut record, offset, end)?,
            FallocateMode::Zero | FallocateMode::Allocate => {
                // Before any record is made for a range that has no room, not halfway through it.
                let missing = length.saturating_sub(record.mapped);
                if missing > txn.volume()?.volume_use().bytes_free() {
                    return Err(FsError::NoSpace.into());
                }
                let last = extents::segment_of(offset).0.saturating_add(ALLOCATE_SEGMENTS_MAX);
                let until = end.min(last.saturating_mul(SEGMENT_BYTES));
                for (segment, start, part_end) in extents::split(offset, until) {
                    fill(txn, ino, &mut record, segment, (start, part_end), mode)?;
                }
                until
            }
        };
        if !keep_size && mode != FallocateMode::Punch {
            record.size = record.size.max(until);
        }
        volume::charge(txn, charged, record.charged(), None)?;
        xattr::kill_priv(txn, ino, &mut record, kill_priv)?;
        let changed = change_time(now, &record);
        record.mtime = changed;
        record.ctime = changed;
        record.count_change();
        txn.put_inode(ino, &record);
        Ok(Allocated { until, attributes: Box::new(record.attributes(ino)) })
    }
}

/// Makes a range a hole, touching only segments that exist, and not too many. Returns where it ended.
fn unmap(txn: &mut Txn<'_>, ino: InodeId, record: &mut InodeRecord, from: u64, end: u64) -> OpResult<u64> {
    let last = extents::segment_of(end - 1);
    let found = txn.segments_from(ino, extents::segment_of(from), ALLOCATE_SEGMENTS_MAX as usize + 1)?;
    for (at, (segment, _)) in found.into_iter().take_while(|(segment, _)| *segment <= last).enumerate() {
        if at as u64 == ALLOCATE_SEGMENTS_MAX {
            return Ok(segment.0 * SEGMENT_BYTES);
        }
        let base = segment.0 * SEGMENT_BYTES;
        let start = from.saturating_sub(base).min(SEGMENT_BYTES) as u32;
        let stop = (end - base).min(SEGMENT_BYTES) as u32;
        extents::remap(txn, ino, record, segment, (start, stop), &[])?;
        extents::mark_for_migration(txn, ino, record, segment)?;
    }
    Ok(end)
}

/// Makes a range of a segment allocated: all of it zero, or only its holes.
fn fill(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &mut InodeRecord,
    segment: crate::ids::SegmentIndex,
    (start, end): (u32, u32),
    mode: FallocateMode,
) -> OpResult<()> {
    let birth = txn.volume()?.epoch;
    let unwritten = |start: u32, end: u32| Piece {
        start,
        length: end - start,
        place: Place::Unwritten,
        birth,
        shared: false,
    };
    if mode == FallocateMode::Zero {
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
