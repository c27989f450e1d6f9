//! Committing data, and moving it.

use bytes::Bytes;

use crate::attributes::{FileKind, KillPriv, Timestamp, ctime_of_write};
use crate::chunks;
use crate::commands::{INTERNAL, NewPiece, NewPlace, Outcome};
use crate::error::FsError;
use crate::extents;
use crate::ids::{ChunkId, Generation, InodeId, SegmentIndex, SessionId};
use crate::keys;
use crate::limits::{COMMIT_INLINE_BYTES_MAX, COMMIT_PIECES_MAX, FILE_BYTES_MAX, SEGMENT_BYTES};
use crate::namespace::xattr;
use crate::records::{InodeRecord, Piece, Place, SegmentRecord};
use crate::store::Family;
use crate::txn::{OpResult, Txn};
use crate::volume;

pub(super) fn write(
    txn: &mut Txn<'_>,
    session: SessionId,
    ino: InodeId,
    pieces: &[NewPiece],
    mtime: Timestamp,
    kill_priv: KillPriv,
    reservation: u64,
) -> OpResult<Outcome> {
    let record = put_pieces(txn, session, ino, pieces, mtime, kill_priv, reservation)?;
    Ok(Outcome::Inode(Box::new(record.attributes(ino))))
}

/// The offset is chosen here, where the order of all appends is known.
#[expect(clippy::too_many_arguments, reason = "the fields of one operation")]
pub(super) fn append(
    txn: &mut Txn<'_>,
    session: SessionId,
    now: Timestamp,
    ino: InodeId,
    data: &NewPlace,
    length: u64,
    kill_priv: KillPriv,
    reservation: u64,
) -> OpResult<Outcome> {
    let offset = txn.inode(ino)?.size;
    let piece = NewPiece { offset, length, place: data.clone() };
    let record = put_pieces(txn, session, ino, &[piece], now, kill_priv, reservation)?;
    Ok(Outcome::Appended(offset, Box::new(record.attributes(ino))))
}

fn put_pieces(
    txn: &mut Txn<'_>,
    session: SessionId,
    ino: InodeId,
    pieces: &[NewPiece],
    mtime: Timestamp,
    kill_priv: KillPriv,
    reservation: u64,
) -> OpResult<InodeRecord> {
    let mut record = txn.inode(ino)?;
    match record.kind() {
        FileKind::File => {}
        FileKind::Directory => return Err(FsError::IsDirectory.into()),
        _ => return Err(FsError::InvalidArgument.into()),
    }
    check_bounds(pieces)?;
    let charged = record.charged();
    let old_size = record.size;
    for piece in pieces {
        put_piece(txn, session, ino, &mut record, piece)?;
        record.size = record.size.max(piece.offset + piece.length);
    }
    mark_inline(txn, ino, &record, pieces, old_size)?;
    volume::charge(txn, charged, record.charged(), Some((session, reservation)))?;
    xattr::kill_priv(txn, ino, &mut record, kill_priv)?;
    // A commit comes some time after its write, whose time was shown already.
    record.ctime = ctime_of_write(record.mtime, record.ctime, mtime);
    record.mtime = mtime;
    record.count_change();
    txn.put_inode(ino, &record);
    Ok(record)
}

fn check_bounds(pieces: &[NewPiece]) -> OpResult<()> {
    let mut inline = 0;
    for piece in pieces {
        let end = piece.offset.checked_add(piece.length).ok_or(FsError::FileTooLarge)?;
        if end > FILE_BYTES_MAX {
            return Err(FsError::FileTooLarge.into());
        }
        if piece.length == 0 {
            return Err(FsError::InvalidArgument.into());
        }
        match &piece.place {
            NewPlace::Inline(bytes) if bytes.len() as u64 != piece.length => {
                return Err(FsError::InvalidArgument.into());
            }
            NewPlace::Inline(bytes) => inline += bytes.len() as u64,
            NewPlace::Chunk { .. } => {
                // A block of a chunk must not hold bytes of two segments: each segment frees its own.
                if extents::segment_of(piece.offset) != extents::segment_of(end - 1) {
                    return Err(FsError::InvalidArgument.into());
                }
            }
        }
    }
    if pieces.len() > COMMIT_PIECES_MAX || inline > COMMIT_INLINE_BYTES_MAX {
        return Err(FsError::InvalidArgument.into());
    }
    Ok(())
}

fn put_piece(
    txn: &mut Txn<'_>,
    session: SessionId,
    ino: InodeId,
    record: &mut InodeRecord,
    piece: &NewPiece,
) -> OpResult<()> {
    let birth = txn.volume()?.epoch;
    if let NewPlace::Chunk { chunk, generation, offset } = piece.place {
        chunks::commit(txn, session, (chunk, generation, offset), piece.length)?;
    }
    for (segment, start, end) in extents::split(piece.offset, piece.offset + piece.length) {
        let place = match &piece.place {
            NewPlace::Inline(bytes) => {
                let from = (segment.0 * SEGMENT_BYTES + u64::from(start) - piece.offset) as usize;
                let part: Bytes = bytes.slice(from..from + (end - start) as usize);
                Place::Inline { id: extents::put_inline(txn, ino, segment, &part)?, skip: 0 }
            }
            NewPlace::Chunk { chunk, offset, .. } => Place::Chunk { chunk: *chunk, offset: *offset },
        };
        let new = Piece { start, length: end - start, place, birth, shared: false };
        extents::remap(txn, ino, record, segment, (start, end), &[new])?;
    }
    Ok(())
}

/// Marks what has to move into a chunk: inline pieces of a file that is, or has become, too big for them.
fn mark_inline(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &InodeRecord,
    pieces: &[NewPiece],
    old_size: u64,
) -> OpResult<()> {
    let limit = u64::from(txn.volume()?.config.inline_file_bytes);
    if record.size <= limit {
        return Ok(());
    }
    let mut segments: std::collections::BTreeSet<SegmentIndex> = pieces
        .iter()
        .flat_map(|piece| extents::split(piece.offset, piece.offset + piece.length))
        .map(|(segment, _, _)| segment)
        .collect();
    if old_size <= limit && old_size > 0 {
        segments.insert(SegmentIndex(0));
    }
    for segment in segments {
        extents::mark_for_migration(txn, ino, record, segment)?;
    }
    Ok(())
}

/// Compare and swap: if the segment still holds exactly the `expected` pieces, they are in the chunk from now
/// on. No times change and no lease is needed.
pub(super) fn relocate(
    txn: &mut Txn<'_>,
    ino: InodeId,
    segment: SegmentIndex,
    expected: &[Piece],
    (chunk, generation, offset): (ChunkId, Generation, u64),
) -> OpResult<Outcome> {
    let mut record = txn.inode(ino).map_err(|_| FsError::Changed)?;
    let (Some(first), Some(last)) = (expected.first(), expected.last()) else {
        return Err(FsError::InvalidArgument.into());
    };
    let found: SegmentRecord =
        txn.load(Family::Extents, &keys::segment(ino, segment))?.ok_or(FsError::Changed)?;
    if record.is_cut_off(segment, found.epoch) {
        return Err(FsError::Changed.into());
    }
    let range = (first.start, last.end());
    let inside: Vec<Piece> =
        found.pieces.iter().copied().filter(|p| p.start >= range.0 && p.end() <= range.1).collect();
    let touched = found.pieces.iter().filter(|p| p.start < range.1 && p.end() > range.0).count();
    let changed = inside != expected || touched != inside.len();
    if changed && !atoll_mutants::makes("move-unchecked") {
        return Err(FsError::Changed.into());
    }
    if inside.windows(2).any(|pair| pair[0].end() != pair[1].start) {
        return Err(FsError::InvalidArgument.into());
    }
    let length = range.1.saturating_sub(range.0);
    if length == 0 {
        return Err(FsError::InvalidArgument.into());
    }
    chunks::commit(txn, INTERNAL, (chunk, generation, offset), u64::from(length))?;
    let birth = inside.iter().map(|piece| piece.birth).max().unwrap_or(0);
    let place = Place::Chunk { chunk, offset };
    let new = Piece { start: range.0, length, place, birth, shared: false };
    extents::remap(txn, ino, &mut record, segment, range, &[new])?;
    extents::mark_for_migration(txn, ino, &record, segment)?;
    txn.put_inode(ino, &record);
    Ok(Outcome::Done)
}
