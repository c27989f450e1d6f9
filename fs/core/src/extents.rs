//! The map from ranges of a file to places, segment by segment.
//!
//! Every change goes through `remap`, which keeps five things true at once: pieces don't overlap; chunks
//! know how many of their blocks are referred to; back references exist from each chunk to the segments that
//! use it; inline values live as long as a piece needs them; the inode knows how many bytes are mapped.

use crate::chunks::{self, Blocks};
use crate::error::FsError;
use crate::ids::{InodeId, SegmentIndex};
use crate::keys;
use crate::limits::{PENDING_TRUNCATIONS_MAX, SEGMENT_BYTES, SEGMENTS_FREED_PER_COMMAND};
use crate::records::{InodeRecord, PendingTruncation, Piece, Place, Record, SegmentRecord};
use crate::store::{Family, Read};
use crate::txn::{OpResult, Txn, take_number};
use crate::volume;

/// The segment that holds byte `offset`.
#[must_use]
pub fn segment_of(offset: u64) -> SegmentIndex {
    SegmentIndex(offset / SEGMENT_BYTES)
}

/// Cuts the range of bytes `start..end` of a file into its parts by segment: the segment, and the part's first
/// byte and end within it.
pub fn split(start: u64, end: u64) -> impl Iterator<Item = (SegmentIndex, u32, u32)> {
    let mut at = start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let segment = segment_of(at);
        let base = segment.0 * SEGMENT_BYTES;
        let part_end = end.min(base.saturating_add(SEGMENT_BYTES));
        let part = (segment, (at - base) as u32, (part_end - base) as u32);
        at = part_end;
        Some(part)
    })
}

/// `pieces` without the range `start..end`; what sticks out on either side stays.
#[must_use]
pub fn cut(pieces: &[Piece], start: u32, end: u32) -> Vec<Piece> {
    let mut left = Vec::with_capacity(pieces.len() + 1);
    for piece in pieces {
        if piece.end() <= start || piece.start >= end {
            left.push(*piece);
            continue;
        }
        if piece.start < start {
            left.push(Piece { length: start - piece.start, ..*piece });
        }
        if piece.end() > end {
            left.push(Piece {
                start: end,
                length: piece.end() - end,
                place: piece.place.advance(u64::from(end - piece.start)),
                ..*piece
            });
        }
    }
    left
}

/// Sorts pieces, and joins neighbours that continue each other.
fn tidy(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.sort_unstable_by_key(|piece| piece.start);
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if let Some(last) = joined.last_mut()
            && last.end() == piece.start
            && last.birth == piece.birth
            && last.shared == piece.shared
            && last.place.advance(u64::from(last.length)) == piece.place
        {
            last.length = last.length.saturating_add(piece.length);
        } else {
            joined.push(piece);
        }
    }
    joined
}

/// Bytes that pieces map.
pub(crate) fn mapped(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.length)).sum()
}

/// Loads a segment. What a truncation cut off and the purge has not reached is freed now, since new pieces are
/// about to take its place.
fn load_for_change(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &mut InodeRecord,
    segment: SegmentIndex,
) -> OpResult<Vec<Piece>> {
    let Some(found) = txn.load::<SegmentRecord>(Family::Extents, &keys::segment(ino, segment))? else {
        return Ok(Vec::new());
    };
    if !record.is_cut_off(segment, found.epoch) {
        return Ok(found.pieces);
    }
    free_segment(txn, ino, record, segment, &found)?;
    Ok(Vec::new())
}

/// Frees all of a segment and removes its record. Takes its bytes off the inode's count, unless the
/// truncation that cut it off has done so.
pub(crate) fn free_segment(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &mut InodeRecord,
    segment: SegmentIndex,
    found: &SegmentRecord,
) -> OpResult<()> {
    let counted = record
        .truncations
        .iter()
        .filter(|cut| segment >= cut.from && found.epoch < cut.epoch)
        .all(|cut| cut.counted);
    account(txn, ino, segment, &found.pieces, &[], Blocks::Counted)?;
    if counted {
        record.mapped = record.mapped.saturating_sub(mapped(&found.pieces));
    }
    txn.delete(Family::Extents, keys::segment(ino, segment));
    txn.delete(Family::System, keys::migration(ino, segment));
    Ok(())
}

/// Replaces what is mapped at `start..end` of a segment by `new` pieces, which lie within that range.
pub(crate) fn remap(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &mut InodeRecord,
    segment: SegmentIndex,
    range: (u32, u32),
    new: &[Piece],
) -> OpResult<()> {
    replace(txn, ino, record, segment, range, new, Blocks::Counted)
}

/// As [`remap`], for pieces whose chunks' blocks other segments refer to already: they are in use as it is.
pub(crate) fn remap_shared(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &mut InodeRecord,
    segment: SegmentIndex,
    range: (u32, u32),
    new: &[Piece],
) -> OpResult<()> {
    replace(txn, ino, record, segment, range, new, Blocks::InUse)
}

/// Notes that other segments refer to the chunks' bytes of a range, too.
pub(crate) fn share(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &InodeRecord,
    segment: SegmentIndex,
    (start, end): (u32, u32),
) -> OpResult<()> {
    let key = keys::segment(ino, segment);
    let Some(mut found) = txn.load::<SegmentRecord>(Family::Extents, &key)? else { return Ok(()) };
    if record.is_cut_off(segment, found.epoch) {
        return Ok(());
    }
    let inside: Vec<Piece> =
        found.pieces.iter().copied().filter(|piece| piece.end() > start && piece.start < end).collect();
    let blocks = chunks::blocks_of(&inside);
    let mut changed = false;
    // Pieces that lie in the same blocks too: the last one of them to go must not take a block along.
    for piece in &mut found.pieces {
        let meets = chunks::blocks_of(std::slice::from_ref(piece))
            .into_iter()
            .any(|(chunk, own)| blocks.get(&chunk).is_some_and(|shared| own.without(shared) != own));
        if meets && !piece.shared {
            piece.shared = true;
            changed = true;
        }
    }
    if changed {
        txn.put(Family::Extents, key, &found);
    }
    Ok(())
}

fn replace(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &mut InodeRecord,
    segment: SegmentIndex,
    range: (u32, u32),
    new: &[Piece],
    blocks: Blocks,
) -> OpResult<()> {
    let before = load_for_change(txn, ino, record, segment)?;
    let mut after = cut(&before, range.0, range.1);
    after.extend_from_slice(new);
    let after = tidy(after);
    account(txn, ino, segment, &before, &after, blocks)?;
    record.mapped = record.mapped.saturating_add(mapped(&after)).saturating_sub(mapped(&before));
    let key = keys::segment(ino, segment);
    if after.is_empty() {
        txn.delete(Family::Extents, key);
        txn.delete(Family::System, keys::migration(ino, segment));
    } else {
        txn.put(Family::Extents, key, &SegmentRecord { epoch: record.truncate_epoch, pieces: after });
    }
    Ok(())
}

/// Brings chunks, back references and inline values from `before` to `after`.
fn account(
    txn: &mut Txn<'_>,
    ino: InodeId,
    segment: SegmentIndex,
    before: &[Piece],
    after: &[Piece],
    blocks: Blocks,
) -> OpResult<()> {
    for piece in before {
        if let Place::Inline { id, .. } = piece.place {
            let kept =
                after.iter().any(|p| matches!(p.place, Place::Inline { id: other, .. } if other == id));
            let key = keys::inline(ino, segment, id);
            // Two pieces may be cut from one value: the first one met removes it.
            if !kept && let Some(value) = txn.get(Family::Inline, &key)? {
                let volume = txn.volume_mut()?;
                volume.inline_bytes = volume.inline_bytes.saturating_sub(value.len() as u64);
                txn.delete(Family::Inline, key);
            }
        }
    }
    chunks::account(txn, (ino, segment), before, after, blocks)
}

/// Stores an inline value and returns its id.
pub(crate) fn put_inline(
    txn: &mut Txn<'_>,
    ino: InodeId,
    segment: SegmentIndex,
    bytes: &[u8],
) -> OpResult<u64> {
    let volume = txn.volume_mut()?;
    let id = take_number(&mut volume.next_inline)?;
    volume.inline_bytes = volume.inline_bytes.saturating_add(bytes.len() as u64);
    txn.put_bytes(Family::Inline, keys::inline(ino, segment, id), bytes.to_vec());
    Ok(id)
}

/// Marks or unmarks the segment for the background move of inline pieces into a chunk: files above the inline
/// limit keep none for long.
pub(crate) fn mark_for_migration(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &InodeRecord,
    segment: SegmentIndex,
) -> OpResult<()> {
    let limit = u64::from(txn.volume()?.config.inline_file_bytes);
    let found: Option<SegmentRecord> = txn.load(Family::Extents, &keys::segment(ino, segment))?;
    let has_inline = found.is_some_and(|found| {
        !record.is_cut_off(segment, found.epoch)
            && found.pieces.iter().any(|piece| matches!(piece.place, Place::Inline { .. }))
    });
    let key = keys::migration(ino, segment);
    let marked = txn.get(Family::System, &key)?.is_some();
    match (has_inline && record.size > limit, marked) {
        (true, false) => txn.mark(key),
        (false, true) => txn.delete(Family::System, key),
        _ => {}
    }
    Ok(())
}

/// Sets the size of a file. What is beyond is freed: at once up to a bound, else by the background purge.
pub(crate) fn resize(txn: &mut Txn<'_>, ino: InodeId, record: &mut InodeRecord, size: u64) -> OpResult<()> {
    let charged = record.charged();
    // Also when the size stays or grows: fallocate may have mapped bytes beyond the end.
    if size <= record.size {
        let inside = (size % SEGMENT_BYTES) as u32;
        let first_whole = SegmentIndex(size.div_ceil(SEGMENT_BYTES));
        if inside != 0 {
            let boundary = segment_of(size);
            if txn.get(Family::Extents, &keys::segment(ino, boundary))?.is_some() {
                remap(txn, ino, record, boundary, (inside, SEGMENT_BYTES as u32), &[])?;
            }
        }
        let beyond = txn.segments_from(ino, first_whole, SEGMENTS_FREED_PER_COMMAND + 1)?;
        if beyond.len() > SEGMENTS_FREED_PER_COMMAND {
            if record.truncations.len() >= PENDING_TRUNCATIONS_MAX {
                return Err(FsError::TryAgain.into());
            }
            let all = size == 0;
            // Without a next epoch nothing can be told to be cut off.
            record.truncate_epoch = record.truncate_epoch.checked_add(1).ok_or(FsError::Io)?;
            if all {
                // Nothing is left, whatever the segments hold.
                record.mapped = 0;
                for cut in &mut record.truncations {
                    cut.counted = false;
                }
            }
            let epoch = record.truncate_epoch;
            record.truncations.push(PendingTruncation { from: first_whole, epoch, counted: !all });
            txn.mark(keys::truncation(ino));
            if inside != 0 {
                restamp(txn, ino, record, segment_of(size))?;
            }
        } else {
            for (segment, value) in beyond {
                free_segment(txn, ino, record, segment, &SegmentRecord::decode(&value)?)?;
            }
        }
    }
    let crosses = record.size <= u64::from(txn.volume()?.config.inline_file_bytes);
    record.size = size;
    if crosses {
        mark_for_migration(txn, ino, record, SegmentIndex(0))?;
    }
    volume::charge(txn, charged, record.charged(), None)
}

/// Gives a segment the inode's current truncate epoch.
fn restamp(txn: &mut Txn<'_>, ino: InodeId, record: &InodeRecord, segment: SegmentIndex) -> OpResult<()> {
    let key = keys::segment(ino, segment);
    if let Some(mut found) = txn.load::<SegmentRecord>(Family::Extents, &key)?
        && !record.is_cut_off(segment, found.epoch)
    {
        found.epoch = record.truncate_epoch;
        txn.put(Family::Extents, key, &found);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChunkId;

    fn piece(start: u32, length: u32, offset: u64) -> Piece {
        let place = Place::Chunk { chunk: ChunkId(1), offset };
        Piece { start, length, place, birth: 0, shared: false }
    }

    #[test]
    fn a_range_is_split_at_segment_boundaries() {
        let parts: Vec<_> = split(SEGMENT_BYTES - 10, 2 * SEGMENT_BYTES + 5).collect();
        let segment = SEGMENT_BYTES as u32;
        assert_eq!(
            parts,
            [
                (SegmentIndex(0), segment - 10, segment),
                (SegmentIndex(1), 0, segment),
                (SegmentIndex(2), 0, 5)
            ]
        );
        assert_eq!(split(7, 7).count(), 0);
    }

    #[test]
    fn a_cut_in_the_middle_leaves_both_ends_in_their_places() {
        let left = cut(&[piece(0, 100, 4096)], 30, 40);
        assert_eq!(left, [piece(0, 30, 4096), piece(40, 60, 4096 + 40)]);
        assert_eq!(cut(&[piece(0, 100, 0)], 0, 100), []);
        assert_eq!(cut(&[piece(0, 10, 0)], 10, 20), [piece(0, 10, 0)]);
    }

    #[test]
    fn neighbours_that_continue_each_other_are_joined() {
        assert_eq!(tidy(vec![piece(10, 10, 10), piece(0, 10, 0)]), [piece(0, 20, 0)]);
        assert_eq!(tidy(vec![piece(0, 10, 0), piece(10, 10, 11)]).len(), 2);
    }
}
