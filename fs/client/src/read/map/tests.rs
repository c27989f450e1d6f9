use atoll_core::ids::{Generation, InodeId};

use super::*;
use crate::testing::file_attributes;

fn attributes(change: u64, size: u64) -> Attributes {
    file_attributes(InodeId(3), change, size)
}

fn in_chunk(start: u32, length: u32, offset: u64) -> MappedPiece {
    MappedPiece { start, length, data: PieceData::Chunk { chunk: ChunkId(1), offset } }
}

fn extents(change: u64, size: u64, segments: Vec<(SegmentIndex, Vec<MappedPiece>)>, covered: u32) -> Extents {
    Extents {
        first: SegmentIndex(0),
        attributes: attributes(change, size),
        segments,
        covered,
        chunks: Vec::new(),
    }
}

fn new_piece(offset: u64, length: u64, at: u64) -> NewPiece {
    let place = NewPlace::Chunk { chunk: ChunkId(2), generation: Generation(1), offset: at };
    NewPiece { offset, length, place }
}

fn chunk_span(offset: u64, length: u64, chunk: u64, at: u64) -> Span {
    Span { offset, length, source: Source::Chunk { chunk: ChunkId(chunk), offset: at } }
}

fn zero_span(offset: u64, length: u64) -> Span {
    Span { offset, length, source: Source::Zero }
}

#[test]
fn holes_and_what_is_beyond_the_end_are_zeroes() {
    let mut map = FileMap::default();
    assert_eq!(map.lookup(0, 10), Err(Unknown(SegmentIndex(0))));
    let pieces = vec![in_chunk(100, 50, 4096), in_chunk(150, 50, 4146)];
    assert!(map.install(&extents(5, 1000, vec![(SegmentIndex(0), pieces)], 1), false));
    assert_eq!(
        map.lookup(50, 300),
        Ok(vec![zero_span(50, 50), chunk_span(100, 100, 1, 4096), zero_span(200, 100)])
    );
    assert_eq!(map.lookup(120, 130), Ok(vec![chunk_span(120, 10, 1, 4116)]));
    assert_eq!(
        map.lookup(5 * SEGMENT_BYTES, 5 * SEGMENT_BYTES + 1),
        Ok(vec![zero_span(5 * SEGMENT_BYTES, 1)])
    );
}

#[test]
fn only_what_an_answer_covers_is_known() {
    let mut map = FileMap::default();
    let size = 10 * SEGMENT_BYTES;
    assert!(map.install(&extents(5, size, vec![(SegmentIndex(1), vec![in_chunk(0, 9, 0)])], 3), false));
    assert!(map.lookup(0, 3 * SEGMENT_BYTES).is_ok());
    assert_eq!(map.lookup(0, 3 * SEGMENT_BYTES + 1), Err(Unknown(SegmentIndex(3))));
    assert!(map.lookup(size, size + 1).is_ok());
}

#[test]
fn our_commits_move_it_on_and_others_make_it_unknown() {
    let mut map = FileMap::default();
    assert!(map.install(&extents(5, 100, vec![(SegmentIndex(0), vec![in_chunk(0, 100, 0)])], 1), false));
    map.commit(
        &[new_piece(40, 20, 8192), new_piece(SEGMENT_BYTES, 10, 12288)],
        &attributes(6, SEGMENT_BYTES + 10),
    );
    assert_eq!(
        map.lookup(0, 101),
        Ok(vec![
            chunk_span(0, 40, 1, 0),
            chunk_span(40, 20, 2, 8192),
            chunk_span(60, 40, 1, 60),
            zero_span(100, 1)
        ])
    );
    assert_eq!(
        map.lookup(SEGMENT_BYTES, SEGMENT_BYTES + 10),
        Ok(vec![chunk_span(SEGMENT_BYTES, 10, 2, 12288)])
    );
    // An answer from before it is refused; one that has it already makes the commit's own news old.
    assert!(!map.install(&extents(5, 100, Vec::new(), 1), false));
    assert!(map.install(&extents(7, 100, vec![(SegmentIndex(0), vec![in_chunk(0, 100, 0)])], 1), false));
    map.commit(&[new_piece(0, 100, 0)], &attributes(7, 100));
    assert_eq!(map.lookup(0, 100), Ok(vec![chunk_span(0, 100, 1, 0)]));
    // Somebody else's change lies between.
    map.commit(&[new_piece(0, 100, 0)], &attributes(9, 100));
    assert!(map.lookup(0, 1).is_err());
}

#[test]
fn a_truncation_cuts_and_what_grows_back_is_zeroes() {
    let mut map = FileMap::default();
    let size = 3 * SEGMENT_BYTES;
    let whole = |at: u64| (SegmentIndex(at), vec![in_chunk(0, SEGMENT_BYTES as u32, at * SEGMENT_BYTES)]);
    assert!(map.install(&extents(1, size, vec![whole(0), whole(1), whole(2)], 3), false));
    map.truncate(&attributes(2, SEGMENT_BYTES + 100));
    map.truncate(&attributes(3, size));
    assert_eq!(
        map.lookup(0, size),
        Ok(vec![
            chunk_span(0, SEGMENT_BYTES + 100, 1, 0),
            zero_span(SEGMENT_BYTES + 100, size - SEGMENT_BYTES - 100)
        ])
    );
}

#[test]
fn its_memory_is_counted() {
    let memory = MapMemory::default();
    let mut map = FileMap::new(memory.clone());
    let inline = MappedPiece { start: 0, length: 5000, data: PieceData::Inline(vec![1; 5000].into()) };
    assert!(map.install(&extents(1, 5000, vec![(SegmentIndex(0), vec![inline])], 1), false));
    assert!(memory.bytes() > 5000);
    assert_eq!(memory.bytes(), map.cost_bytes());
    let place = NewPlace::Inline(Bytes::from_static(b"12345"));
    map.commit(&[NewPiece { offset: 0, length: 5, place }], &attributes(2, 5000));
    assert_eq!(memory.bytes(), map.cost_bytes());
    assert!(map.install(&extents(2, 0, Vec::new(), 1), true));
    assert_eq!(memory.bytes(), 0);
    map.commit(&[new_piece(0, 10, 0)], &attributes(3, 10));
    assert!(memory.bytes() > 0);
    drop(map);
    assert_eq!(memory.bytes(), 0);
}
