//! Committing data, and moving it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::attributes::{Attributes, FileKind, KillPriv, Timestamp, ctime_of_write};
use crate::chunks;
use crate::commands::{Appended, Context, INTERNAL, Mutation, NewPiece, NewPlace};
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

/// Commits written data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// The file.
    pub ino: InodeId,
    /// The data, by offset, without overlap.
    pub pieces: Vec<NewPiece>,
    /// When it was written.
    pub mtime: Timestamp,
    /// What the file loses by it.
    pub kill_priv: KillPriv,
    /// Bytes of the session's reservation that this uses up.
    pub reservation: u64,
}

impl Mutation for Write {
    type Outcome = Box<Attributes>;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Box<Attributes>> {
        let Write { ino, ref pieces, mtime, kill_priv, reservation } = *self;
        let record = put_pieces(txn, context, ino, pieces, mtime, kill_priv, reservation)?;
        Ok(Box::new(record.attributes(ino)))
    }
}

/// Appends at the end of the file as it is when this takes effect.
///
/// The offset is chosen here, where the order of all appends is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// The file.
    pub ino: InodeId,
    /// The bytes.
    pub data: NewPlace,
    /// How many.
    pub length: u64,
    /// What the file loses by it.
    pub kill_priv: KillPriv,
    /// Bytes of the session's reservation that this uses up.
    pub reservation: u64,
}

impl Mutation for Append {
    type Outcome = Appended;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Appended> {
        let Append { ino, ref data, length, kill_priv, reservation } = *self;
        let offset = txn.inode(ino)?.size;
        let piece = NewPiece { offset, length, place: data.clone() };
        let record = put_pieces(txn, context, ino, &[piece], context.now, kill_priv, reservation)?;
        Ok(Appended { offset, attributes: Box::new(record.attributes(ino)) })
    }
}

fn put_pieces(
    txn: &mut Txn<'_>,
    context: &Context,
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
        put_piece(txn, context.session, ino, &mut record, piece)?;
        record.size = record.size.max(piece.offset + piece.length);
    }
    mark_inline(txn, ino, &record, pieces, old_size)?;
    match context.journaled {
        None => volume::charge(txn, charged, record.charged(), Some((context.session, reservation)))?,
        // The client has it against a promise.
        Some(_) => volume::charge_promised(txn, charged, record.charged(), (context.session, reservation))?,
    }
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

/// Moves a range that is still where `expected` says to a new place; no times change.
///
/// Compare and swap: if the segment still holds exactly the `expected` pieces, they are in the chunk from now
/// on. No times change and no lease is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relocate {
    /// The file.
    pub ino: InodeId,
    /// The segment.
    pub segment: SegmentIndex,
    /// The pieces as they were read.
    pub expected: Vec<Piece>,
    /// Where their bytes are now: one run from the start of the first to the end of the last.
    pub chunk: ChunkId,
    /// The generation of that chunk.
    pub generation: Generation,
    /// First byte in that chunk.
    pub offset: u64,
}

impl Mutation for Relocate {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<()> {
        let Relocate { ino, segment, ref expected, chunk, generation, offset } = *self;
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
        let changed = inside != *expected || touched != inside.len();
        if changed && !atoll_faults::planted("move-unchecked") {
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
        Ok(())
    }
}
