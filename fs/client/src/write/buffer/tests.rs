use super::*;
use crate::arena::{Arena, ArenaConfig};
use crate::data::testing::Random;
use atoll_core::ids::InodeId;

const NOW: Timestamp = Timestamp { seconds: 7, nanos: 0 };

fn arena() -> Arc<Arena> {
    Arena::create(ArenaConfig { op_slots: 2, data_bytes: 4 << 20 }).unwrap()
}

fn write(arena: &Arc<Arena>, dirty: &mut DirtyFile, offset: u64, data: &[u8]) {
    let block = arena.store(InodeId(5), offset, data).unwrap();
    assert_eq!(block.len(), data.len());
    dirty.insert(block, Instant::now(), NOW, KillPriv::NONE);
}

fn put(model: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let end = offset as usize + data.len();
    model.resize(model.len().max(end), 0);
    model[offset as usize..end].copy_from_slice(data);
}

fn apply(model: &mut Vec<u8>, batch: &Batch) {
    for run in &batch.runs {
        put(model, run.offset, &run.contiguous());
    }
}

fn limits(ranges: usize) -> BatchLimits {
    BatchLimits { ranges, bytes: BATCH_BYTES_MAX, whole_segments: false }
}

#[test]
fn batches_of_any_size_are_prefixes_of_the_writes() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let (arena, mut dirty) = (arena(), DirtyFile::default());
        let (mut model, mut committed) = (Vec::new(), Vec::new());
        // What the file was after each write.
        let mut states = vec![Vec::new()];
        let mut reached = 0;
        let mut commit = |dirty: &mut DirtyFile, states: &[Vec<u8>], random: &mut Random| {
            let Some(batch) = dirty.next_batch(limits(1 + random.below(4) as usize)) else { return false };
            apply(&mut committed, &batch);
            let at = states[reached..].iter().position(|state| *state == committed);
            reached += at.unwrap_or_else(|| panic!("seed {seed}: a batch is no prefix"));
            if random.below(8) == 0 {
                // It isn't committed after all, and comes again.
                dirty.unbatch(&batch, Instant::now());
            } else {
                batch.retire();
                drop(dirty.settle(batch.cut));
            }
            true
        };
        for _ in 0..120 {
            let (offset, length) = (random.below(300), random.below(60) as usize + 1);
            let data = random.bytes(length);
            write(&arena, &mut dirty, offset, &data);
            put(&mut model, offset, &data);
            states.push(model.clone());
            if random.below(5) == 0 {
                commit(&mut dirty, &states, &mut random);
            }
        }
        while commit(&mut dirty, &states, &mut random) {}
        assert!(committed == model, "seed {seed}");
        assert_eq!((dirty.bytes(), dirty.fresh_bytes()), (0, 0));
        assert!(dirty.is_clean());
        assert_eq!(dirty.settled(), dirty.last_sequence());
        assert_eq!(arena.usage().bytes_used, 0);
    }
}

#[test]
fn bytes_that_are_overwritten_while_their_batch_is_on_its_way_stay_in_it() {
    let (arena, mut dirty) = (arena(), DirtyFile::default());
    write(&arena, &mut dirty, 0, b"old old old");
    let batch = dirty.next_batch(limits(10)).unwrap();
    write(&arena, &mut dirty, 4, b"new");
    assert_eq!(batch.runs[0].contiguous(), "old old old");
    let seen: Vec<u8> = dirty.overlay(0, 100).into_iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
    assert_eq!(seen, b"old new old");
    drop(dirty.settle(batch.cut));
    let left = dirty.overlay(0, 100);
    assert_eq!(left, [(4, Bytes::from_static(b"new"))]);
    let second = dirty.next_batch(limits(10)).unwrap();
    assert_eq!((second.base, second.runs.len(), second.bytes), (batch.cut, 1, 3));
}

#[test]
fn small_appends_share_a_block_until_somebody_looks_at_it() {
    let (arena, mut dirty) = (arena(), DirtyFile::default());
    let block = arena.store_growing(InodeId(5), 100, b"one", 4096).unwrap();
    dirty.insert(block, Instant::now(), NOW, KillPriv::NONE);
    assert_eq!(dirty.extend(103, b" two", Instant::now(), NOW, KillPriv::NONE), 4);
    assert_eq!(dirty.extend(108, b"gap", Instant::now(), NOW, KillPriv::NONE), 0);
    let shown = dirty.overlay(100, 107);
    assert_eq!(dirty.extend(107, b" three", Instant::now(), NOW, KillPriv::NONE), 0, "somebody looks");
    assert_eq!(shown[0].1, "one two");
    drop(shown);
    assert_eq!(dirty.extend(107, b" three", Instant::now(), NOW, KillPriv::NONE), 6);
    let batch = dirty.next_batch(limits(10)).unwrap();
    assert_eq!(batch.runs[0].contiguous(), "one two three");
    drop(dirty.settle(batch.cut));
    assert_eq!(dirty.extend(113, b"!", Instant::now(), NOW, KillPriv::NONE), 0, "it is on its way");
}

#[test]
fn a_stream_stops_at_the_last_whole_segment() {
    let (arena, mut dirty) = (arena(), DirtyFile::default());
    let part = SEGMENT_BYTES / 4;
    for at in 0..10 {
        write(&arena, &mut dirty, at * part, &vec![1; part as usize]);
    }
    let whole = BatchLimits { whole_segments: true, ..limits(100) };
    let batch = dirty.next_batch(whole).unwrap();
    assert_eq!((batch.end, batch.runs.len()), (2 * SEGMENT_BYTES, 2));
    let rest = dirty.next_batch(whole).unwrap();
    assert_eq!((rest.runs[0].offset, rest.bytes), (2 * SEGMENT_BYTES, 2 * part));
}

#[test]
fn every_dirty_byte_is_reserved_and_nothing_twice() {
    let (arena, mut dirty) = (arena(), DirtyFile::default());
    assert_eq!(dirty.reservation_wanted(10), 2 * BLOCK_BYTES);
    assert_eq!(dirty.claim(2 * BLOCK_BYTES, 10), 10);
    // A second writer at the same time counts too.
    assert_eq!(dirty.reservation_wanted(BLOCK_BYTES), BLOCK_BYTES);
    write(&arena, &mut dirty, 0, &[1; 10]);
    dirty.unclaim(10);
    assert_eq!(dirty.reservation_wanted(10), 0);
    // What isn't reserved isn't accepted.
    assert_eq!(dirty.claim(0, 3 * BLOCK_BYTES), 2 * BLOCK_BYTES - 10);
    dirty.unclaim(2 * BLOCK_BYTES - 10);
    let batch = dirty.next_batch(limits(10)).unwrap();
    assert_eq!(batch.reservation, BLOCK_BYTES);
    assert_eq!(dirty.take_unused_reservation(), BLOCK_BYTES);
    dirty.unbatch(&batch, Instant::now());
    assert_eq!(dirty.take_unused_reservation(), 0);
    assert_eq!(dirty.discard().1, BLOCK_BYTES);
    assert!(dirty.is_clean());
}

#[test]
fn too_many_joined_ranges_ask_for_a_flush_first() {
    let (arena, mut dirty) = (arena(), DirtyFile::default());
    for at in 0..RANGES_JOINED_MAX {
        assert!(!dirty.must_flush_before(0, 1), "after {at} writes");
        write(&arena, &mut dirty, at * 2, &[1]);
    }
    assert!(!dirty.must_flush_before(RANGES_JOINED_MAX * 2, 1), "nothing is overwritten there");
    assert!(dirty.must_flush_before(0, 1));
    assert!(!dirty.must_flush_before(RANGES_JOINED_MAX * 2 - 2, 1), "only the last one is");
}

#[test]
fn what_a_truncation_took_is_done_with() {
    let (arena, mut dirty) = (arena(), DirtyFile::default());
    write(&arena, &mut dirty, 0, &[1; 100]);
    write(&arena, &mut dirty, 500, &[2; 100]);
    assert!(dirty.truncate(50));
    assert_eq!((dirty.end(), dirty.bytes(), dirty.fresh_bytes()), (50, 50, 50));
    assert!(dirty.truncate(0));
    assert!(!dirty.truncate(0));
    assert!(dirty.next_batch(limits(10)).is_none());
    dirty.settle_vanished();
    assert_eq!(dirty.settled(), 2);
    assert_eq!(arena.usage().bytes_used, 0);
}
