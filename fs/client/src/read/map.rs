//! What is known of where a file's bytes are.
//!
//! A map is right for one value of the inode's change counter. Our own commits move it on; any other change
//! of the counter makes it unknown. Background moves don't count as changes: the bytes at an old place stay
//! right until they are trimmed, and then the storage server answers "gone" and the map is asked for again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use atoll_core::attributes::Attributes;
use atoll_core::commands::{NewPiece, NewPlace};
use atoll_core::extents;
use atoll_core::ids::{ChunkId, SegmentIndex};
use atoll_core::limits::SEGMENT_BYTES;
use atoll_proto::metadata::{ChunkInfo, FileExtents, MappedPiece, PieceData};
use bytes::Bytes;

/// Estimated memory of a segment and of a piece in a map (bytes).
const SEGMENT_COST_BYTES: usize = 64;
const PIECE_COST_BYTES: usize = 56;

/// An answer to a question for extents.
#[derive(Clone, Debug)]
pub struct Extents {
    /// The first segment that was asked for.
    pub first: SegmentIndex,
    /// The file's attributes.
    pub attributes: Attributes,
    /// Pieces by segment, in order; segments without pieces are left out.
    pub segments: Vec<(SegmentIndex, Vec<MappedPiece>)>,
    /// How many segments from `first` on are covered.
    pub covered: u32,
    /// The chunks that the pieces name.
    pub chunks: Vec<ChunkInfo>,
}

impl Extents {
    /// Those that were asked for from this segment on.
    #[must_use]
    pub fn new(first: SegmentIndex, answer: FileExtents) -> Self {
        let FileExtents { attributes, segments, covered, chunks } = answer;
        Extents { first, attributes, segments, covered, chunks }
    }

    /// What is known of a file that was just made: that it is empty.
    #[must_use]
    pub fn of_new_file(attributes: Attributes) -> Self {
        Extents { first: SegmentIndex(0), attributes, segments: Vec::new(), covered: 1, chunks: Vec::new() }
    }
}

/// Where a run of bytes comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Zeroes.
    Zero,
    /// Here.
    Inline(Bytes),
    /// In a chunk, from this byte on.
    Chunk {
        /// Which.
        chunk: ChunkId,
        /// First byte in it.
        offset: u64,
    },
    /// Lost in all copies.
    Lost,
}

/// A run of bytes of the file and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Where the bytes are.
    pub source: Source,
}

/// The map doesn't know this segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown(pub SegmentIndex);

/// Memory of all maps that share it (bytes, estimated).
#[derive(Clone, Debug, Default)]
pub struct MapMemory(Arc<AtomicUsize>);

impl MapMemory {
    /// Bytes at this moment.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// See the module.
#[derive(Default)]
pub struct FileMap {
    /// The change counter that it is right for; `None`: nothing is known.
    change: Option<u64>,
    segments: BTreeMap<SegmentIndex, Vec<MappedPiece>>,
    /// Segments from here on that aren't among `segments` are empty.
    empty_from: Option<u64>,
    cost_bytes: usize,
    memory: MapMemory,
}

impl Drop for FileMap {
    fn drop(&mut self) {
        self.clear();
    }
}

fn cost(pieces: &[MappedPiece]) -> usize {
    let inline: usize = pieces
        .iter()
        .map(|piece| match &piece.data {
            PieceData::Inline(bytes) => bytes.len(),
            _ => 0,
        })
        .sum();
    SEGMENT_COST_BYTES + pieces.len() * PIECE_COST_BYTES + inline
}

impl FileMap {
    /// Estimated memory in bytes.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }

    /// Nothing known; what will be counts for `memory`.
    #[must_use]
    pub fn new(memory: MapMemory) -> Self {
        let mut map = FileMap::default();
        map.memory = memory;
        map
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.change = None;
        self.segments.clear();
        self.empty_from = None;
        self.memory.0.fetch_sub(std::mem::take(&mut self.cost_bytes), Ordering::Relaxed);
    }

    /// True if it is right for this value of the change counter, or for a later one.
    #[must_use]
    pub fn is_at(&self, change: u64) -> bool {
        self.change.is_some_and(|known| known >= change)
    }

    /// The file is known to be as of `change`: a map that is right for an earlier one is of no use.
    pub fn outdate(&mut self, change: u64) {
        if self.change.is_some_and(|known| known < change) {
            self.clear();
        }
    }

    fn put(&mut self, segment: SegmentIndex, pieces: Vec<MappedPiece>) {
        self.take(segment);
        let cost = cost(&pieces);
        self.cost_bytes += cost;
        self.memory.0.fetch_add(cost, Ordering::Relaxed);
        self.segments.insert(segment, pieces);
    }

    fn take(&mut self, segment: SegmentIndex) -> Option<Vec<MappedPiece>> {
        let pieces = self.segments.remove(&segment)?;
        let cost = cost(&pieces);
        self.cost_bytes -= cost;
        self.memory.0.fetch_sub(cost, Ordering::Relaxed);
        Some(pieces)
    }

    /// Takes an answer in. False if it is older than what is known already. `afresh` replaces what is known
    /// even if the answer isn't newer: it turned out to be wrong.
    pub fn install(&mut self, extents: &Extents, afresh: bool) -> bool {
        let change = extents.attributes.change;
        if self.change.is_some_and(|known| known > change) {
            return false;
        }
        if afresh || self.change != Some(change) {
            self.clear();
            self.change = Some(change);
        }
        let covered = extents.first.0 + u64::from(extents.covered);
        let size_segments = extents.attributes.size.div_ceil(SEGMENT_BYTES);
        let mut given = extents.segments.iter().peekable();
        for segment in extents.first.0..covered.min(size_segments) {
            while given.next_if(|(index, _)| index.0 < segment).is_some() {}
            let pieces = given.next_if(|(index, _)| index.0 == segment).map(|(_, pieces)| pieces.clone());
            self.put(SegmentIndex(segment), pieces.unwrap_or_default());
        }
        // Beyond the end of the file there are at most preallocated ranges, which read as zeroes too.
        self.empty_from = Some(self.empty_from.map_or(size_segments, |known| known.min(size_segments)));
        true
    }

    /// Our own commit took effect: `attributes` is its outcome.
    pub fn commit(&mut self, pieces: &[NewPiece], attributes: &Attributes) {
        if self.advance(attributes.change) {
            for piece in pieces {
                for (segment, start, end) in extents::split(piece.offset, piece.offset + piece.length) {
                    let skip = segment.0 * SEGMENT_BYTES + u64::from(start) - piece.offset;
                    let data = match &piece.place {
                        // The bytes lie in the arena, which must not be kept full by what is committed.
                        NewPlace::Inline(bytes) => PieceData::Inline(Bytes::copy_from_slice(
                            &bytes[skip as usize..(skip + u64::from(end - start)) as usize],
                        )),
                        NewPlace::Chunk { chunk, offset, .. } => {
                            PieceData::Chunk { chunk: *chunk, offset: offset + skip }
                        }
                    };
                    self.replace(segment, start, end, Some(data));
                }
            }
        }
    }

    /// Our own truncation took effect.
    pub fn truncate(&mut self, attributes: &Attributes) {
        if !self.advance(attributes.change) {
            return;
        }
        let boundary = extents::segment_of(attributes.size);
        let inside = (attributes.size % SEGMENT_BYTES) as u32;
        let beyond: Vec<SegmentIndex> =
            self.segments.range(SegmentIndex(boundary.0 + 1)..).map(|(segment, _)| *segment).collect();
        for segment in beyond {
            self.take(segment);
        }
        self.replace(boundary, inside, SEGMENT_BYTES as u32, None);
        let end = attributes.size.div_ceil(SEGMENT_BYTES);
        self.empty_from = Some(self.empty_from.map_or(end, |known| known.min(end)));
    }

    /// Moves on to `change` if nothing else happened in between; else forgets everything and says false.
    fn advance(&mut self, change: u64) -> bool {
        match self.change {
            Some(known) if known + 1 == change => {
                self.change = Some(change);
                true
            }
            // An answer that came first has it already.
            Some(known) if known >= change => false,
            _ => {
                self.clear();
                false
            }
        }
    }

    fn replace(&mut self, segment: SegmentIndex, start: u32, end: u32, data: Option<PieceData>) {
        if start >= end {
            return;
        }
        let mut pieces = match self.take(segment) {
            Some(pieces) => cut(pieces, start, end),
            None if self.empty_from.is_some_and(|from| segment.0 >= from) => Vec::new(),
            None => return,
        };
        if let Some(data) = data {
            let at = pieces.partition_point(|piece| piece.start < start);
            let new = MappedPiece { start, length: end - start, data };
            match at.checked_sub(1).and_then(|before| pieces.get_mut(before)) {
                Some(before) if continues(before, &new) => before.length += new.length,
                _ => pieces.insert(at, new),
            }
        }
        self.put(segment, pieces);
    }

    /// Where the bytes of a range are.
    ///
    /// # Errors
    /// Which segment is not known.
    pub fn lookup(&self, start: u64, end: u64) -> Result<Vec<Span>, Unknown> {
        let mut spans: Vec<Span> = Vec::new();
        let Some(_) = self.change else { return Err(Unknown(extents::segment_of(start))) };
        for (segment, from, to) in extents::split(start, end) {
            let base = segment.0 * SEGMENT_BYTES;
            let none = Vec::new();
            let pieces = match self.segments.get(&segment) {
                Some(pieces) => pieces,
                None if self.empty_from.is_some_and(|empty| segment.0 >= empty) => &none,
                None => return Err(Unknown(segment)),
            };
            let mut at = from;
            let first = pieces.partition_point(|piece| piece.start + piece.length <= from);
            for piece in pieces[first..].iter().take_while(|piece| piece.start < to) {
                if piece.start > at {
                    push(&mut spans, base + u64::from(at), u64::from(piece.start - at), Source::Zero);
                    at = piece.start;
                }
                let stop = (piece.start + piece.length).min(to);
                let skip = at - piece.start;
                let source = match &piece.data {
                    PieceData::Inline(bytes) => {
                        Source::Inline(bytes.slice(skip as usize..(stop - piece.start) as usize))
                    }
                    PieceData::Chunk { chunk, offset } => {
                        Source::Chunk { chunk: *chunk, offset: offset + u64::from(skip) }
                    }
                    PieceData::Unwritten => Source::Zero,
                    PieceData::Lost => Source::Lost,
                };
                push(&mut spans, base + u64::from(at), u64::from(stop - at), source);
                at = stop;
            }
            if at < to {
                push(&mut spans, base + u64::from(at), u64::from(to - at), Source::Zero);
            }
        }
        Ok(spans)
    }
}

/// Appends a span, or makes the last one longer if it goes on where that ends.
fn push(spans: &mut Vec<Span>, offset: u64, length: u64, source: Source) {
    if let Some(last) = spans.last_mut() {
        let joins = match (&last.source, &source) {
            (Source::Zero, Source::Zero) => true,
            (Source::Chunk { chunk: a, offset: from }, Source::Chunk { chunk: b, offset: to }) => {
                a == b && from + last.length == *to
            }
            _ => false,
        };
        if joins && last.offset + last.length == offset {
            last.length += length;
            return;
        }
    }
    spans.push(Span { offset, length, source });
}

fn continues(before: &MappedPiece, new: &MappedPiece) -> bool {
    before.start + before.length == new.start
        && match (&before.data, &new.data) {
            (PieceData::Chunk { chunk: a, offset: from }, PieceData::Chunk { chunk: b, offset: to }) => {
                a == b && from + u64::from(before.length) == *to
            }
            _ => false,
        }
}

/// `pieces` without `start..end`.
fn cut(pieces: Vec<MappedPiece>, start: u32, end: u32) -> Vec<MappedPiece> {
    let mut left = Vec::with_capacity(pieces.len() + 1);
    for piece in pieces {
        let piece_end = piece.start + piece.length;
        if piece_end <= start || piece.start >= end {
            left.push(piece);
            continue;
        }
        if piece.start < start {
            left.push(part(&piece, piece.start, start));
        }
        if piece_end > end {
            left.push(part(&piece, end, piece_end));
        }
    }
    left
}

fn part(piece: &MappedPiece, start: u32, end: u32) -> MappedPiece {
    let skip = start - piece.start;
    let data = match &piece.data {
        PieceData::Inline(bytes) => {
            PieceData::Inline(bytes.slice(skip as usize..(end - piece.start) as usize))
        }
        PieceData::Chunk { chunk, offset } => {
            PieceData::Chunk { chunk: *chunk, offset: offset + u64::from(skip) }
        }
        PieceData::Unwritten => PieceData::Unwritten,
        PieceData::Lost => PieceData::Lost,
    };
    MappedPiece { start, length: end - start, data }
}

#[cfg(test)]
mod tests;
