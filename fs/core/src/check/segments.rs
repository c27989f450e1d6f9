//! Segments, pieces, inline values.

use super::{Finding, Found, Kind, Subject};
use crate::chunks::blocks_of;
use crate::ids::{InodeId, SegmentIndex};
use crate::keys;
use crate::limits::SEGMENT_BYTES;
use crate::records::{Piece, Place, SegmentRecord};
use crate::store::{Family, Read, StoreError};
use crate::txn::load;

/// Whether the bytes of an inline piece are there.
pub(crate) fn inline_is_there(
    store: &dyn Read,
    ino: InodeId,
    segment: SegmentIndex,
    piece: &Piece,
) -> Result<bool, StoreError> {
    let Place::Inline { id, skip } = piece.place else { return Ok(true) };
    let value = store.get(Family::Inline, &keys::inline(ino, segment, id))?;
    Ok(value.is_some_and(|value| u64::from(skip) + u64::from(piece.length) <= value.len() as u64))
}

pub(super) fn segment(store: &dyn Read, ino: InodeId, segment: SegmentIndex) -> Result<Found, StoreError> {
    let mut found = Found::new();
    let Some(record) = load::<SegmentRecord>(store, Family::Extents, &keys::segment(ino, segment))? else {
        return Ok(found);
    };
    let mut wrong =
        |kind, words: String| found.push(Finding::new(kind, Subject::Segment(ino, segment), words));
    if store.get(Family::Inodes, &keys::inode(ino))?.is_none() {
        wrong(
            Kind::SegmentWithoutInode,
            format!("extent page {segment} of inode {ino}, which doesn't exist"),
        );
    }
    let pieces = &record.pieces;
    if pieces.is_empty()
        || pieces.windows(2).any(|pair| pair[0].end() > pair[1].start)
        || pieces.iter().any(|piece| {
            piece.length == 0 || u64::from(piece.start) + u64::from(piece.length) > SEGMENT_BYTES
        })
    {
        wrong(
            Kind::SegmentShape,
            format!("inode {ino}: the extents of page {segment} are empty, overlap or exceed it: {pieces:?}"),
        );
        return Ok(found);
    }
    for piece in pieces {
        if !inline_is_there(store, ino, segment, piece)? {
            wrong(
                Kind::InlineMissing,
                format!(
                    "inode {ino}: the inline value of bytes {}+{} of extent page {segment} is missing or \
                     short",
                    piece.start, piece.length
                ),
            );
        }
    }
    for chunk in blocks_of(pieces).keys() {
        if store.get(Family::System, &keys::chunk(*chunk))?.is_none() {
            wrong(
                Kind::ChunkMissing,
                format!("inode {ino}: extent page {segment} refers to chunk {chunk}, which doesn't exist"),
            );
        }
        if store.get(Family::System, &keys::back_reference(*chunk, ino, segment))?.is_none() {
            wrong(
                Kind::ReferenceMissing,
                format!(
                    "inode {ino}: extent page {segment} refers to chunk {chunk}, which has no back reference"
                ),
            );
        }
    }
    Ok(found)
}

pub(super) fn inline(
    store: &dyn Read,
    ino: InodeId,
    segment: SegmentIndex,
    id: u64,
) -> Result<Found, StoreError> {
    let record: Option<SegmentRecord> = load(store, Family::Extents, &keys::segment(ino, segment))?;
    let used = record.is_some_and(|record| {
        record.pieces.iter().any(|p| matches!(p.place, Place::Inline { id: other, .. } if other == id))
    });
    if used || store.get(Family::Inline, &keys::inline(ino, segment, id))?.is_none() {
        return Ok(Found::new());
    }
    let words = format!("inode {ino}: no extent refers to inline value {id} of page {segment}");
    Ok(vec![Finding::new(Kind::InlineUnused, Subject::Inline(ino, segment, id), words)])
}
