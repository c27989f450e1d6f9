//! Chunks, back references, dead ranges, tasks to trim.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Found, Kind, Subject, each};
use crate::chunks::blocks_of;
use crate::ids::{ChunkId, InodeId, SegmentIndex, ServerId};
use crate::intervals::Intervals;
use crate::keys;
use crate::limits::BLOCK_BYTES;
use crate::records::{ChunkRecord, DeadRecord, Piece, Place, Record, SegmentRecord, TaskRecord};
use crate::store::{Family, Read, StoreError};
use crate::txn::load;

/// What refers to a chunk, by its back references.
#[derive(Default)]
pub(crate) struct Uses {
    /// Blocks that are referred to.
    pub(crate) live: Intervals,
    /// Segments that refer to it.
    pub(crate) segments: Vec<(InodeId, SegmentIndex)>,
    /// Segments that refer to each block.
    counts: BTreeMap<u64, u32>,
}

impl Uses {
    /// True if the piece has bytes of the chunk in a block that another segment refers to as well.
    pub(crate) fn is_shared(&self, chunk: ChunkId, piece: &Piece) -> bool {
        let blocks = blocks_of(std::slice::from_ref(piece));
        blocks.get(&chunk).is_some_and(|blocks| {
            blocks.iter().any(|(first, end)| self.counts.range(first..end).any(|(_, count)| *count > 1))
        })
    }
}

/// Gathers what refers to a chunk.
pub(crate) fn uses_of(store: &dyn Read, chunk: ChunkId) -> Result<Uses, StoreError> {
    let mut uses = Uses::default();
    each(store, Family::System, &keys::back_references(chunk), |key, _| {
        let (Some(ino), Some(segment)) = (keys::second_number(key), keys::third_number(key)) else {
            return Ok(());
        };
        let at = (InodeId(ino), SegmentIndex(segment));
        let found: Option<SegmentRecord> = load(store, Family::Extents, &keys::segment(at.0, at.1))?;
        if let Some(blocks) = found.and_then(|found| blocks_of(&found.pieces).remove(&chunk)) {
            for (first, end) in blocks.iter() {
                for block in first..end {
                    *uses.counts.entry(block).or_default() += 1;
                }
            }
            uses.live.add_all(&blocks);
            uses.segments.push(at);
        }
        Ok(())
    })?;
    Ok(uses)
}

/// A chunk's dead ranges: first block and record.
pub(crate) fn dead_of(store: &dyn Read, chunk: ChunkId) -> Result<Vec<(u64, DeadRecord)>, StoreError> {
    let mut dead = Vec::new();
    each(store, Family::System, &keys::dead_ranges(chunk), |key, value| {
        dead.push((keys::second_number(key).unwrap_or_default(), DeadRecord::decode(value)?));
        Ok(())
    })?;
    Ok(dead)
}

pub(super) fn chunk(store: &dyn Read, chunk: ChunkId) -> Result<Found, StoreError> {
    let mut found = Found::new();
    let mut wrong = |kind, words: String| found.push(Finding::new(kind, Subject::Chunk(chunk), words));
    let dead = dead_of(store, chunk)?;
    let Some(record) = load::<ChunkRecord>(store, Family::System, &keys::chunk(chunk))? else {
        if !dead.is_empty() {
            wrong(Kind::DeadWithoutChunk, format!("dead ranges of chunk {chunk}, which doesn't exist"));
        }
        return Ok(found);
    };
    let uses = uses_of(store, chunk)?;
    let live = uses.live.total();
    if live != record.live_blocks {
        wrong(
            Kind::LiveBlocks,
            format!("chunk {chunk} records {} live blocks and has {live}", record.live_blocks),
        );
    }
    if uses.live.iter().any(|(_, end)| end > record.committed.div_ceil(BLOCK_BYTES)) {
        wrong(Kind::CommittedLength, format!("chunk {chunk} is referred to beyond its committed length"));
    }
    if record.sealed && live == 0 {
        wrong(
            Kind::ChunkUnused,
            format!("chunk {chunk} is sealed, nothing refers to it, and it still exists"),
        );
    }
    let mut waiting: BTreeSet<ServerId> = BTreeSet::new();
    for (first, range) in &dead {
        let mut blocks = Intervals::default();
        blocks.add(*first, first.saturating_add(range.blocks));
        if blocks.without(&uses.live) != blocks {
            wrong(
                Kind::DeadInUse,
                format!("chunk {chunk}: blocks {first}+{} are marked as dead and referred to", range.blocks),
            );
        }
        waiting.extend(range.waiting.iter().copied());
    }
    for server in &record.replicas {
        let task: Option<TaskRecord> = load(store, Family::System, &keys::task(*server, chunk))?;
        if waiting.contains(server) != task.is_some_and(|task| task.trim) {
            wrong(
                Kind::TrimOrder,
                format!(
                    "chunk {chunk}: server {server} has a trim pending without a task, or a task without a \
                     trim"
                ),
            );
        }
    }
    for (ino, segment) in &uses.segments {
        let pieces = load::<SegmentRecord>(store, Family::Extents, &keys::segment(*ino, *segment))?;
        let unmarked = pieces.is_some_and(|found| {
            found.pieces.iter().any(|piece| !piece.shared && uses.is_shared(chunk, piece))
        });
        if unmarked {
            wrong(
                Kind::SharedMark,
                format!(
                    "inode {ino}: extent page {segment} shares bytes with another without being marked as \
                     shared"
                ),
            );
        }
    }
    Ok(found)
}

/// The half of [`chunk`] that is about a chunk that doesn't exist.
pub(super) fn gone(store: &dyn Read, id: ChunkId) -> Result<Found, StoreError> {
    if store.get(Family::System, &keys::chunk(id))?.is_some() { Ok(Found::new()) } else { chunk(store, id) }
}

pub(super) fn reference(
    store: &dyn Read,
    chunk: ChunkId,
    ino: InodeId,
    segment: SegmentIndex,
) -> Result<Found, StoreError> {
    let record: Option<SegmentRecord> = load(store, Family::Extents, &keys::segment(ino, segment))?;
    let used = record.is_some_and(|record| {
        record.pieces.iter().any(|p| matches!(p.place, Place::Chunk { chunk: other, .. } if other == chunk))
    });
    if used || store.get(Family::System, &keys::back_reference(chunk, ino, segment))?.is_none() {
        return Ok(Found::new());
    }
    let words = format!(
        "chunk {chunk} has a back reference from extent page {segment} of inode {ino}, which doesn't refer \
         to it"
    );
    Ok(vec![Finding::new(Kind::ReferenceStale, Subject::Reference(chunk, ino, segment), words)])
}
