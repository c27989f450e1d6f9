//! Stored records: the first byte says of which kind the rest is.

use atoll_core::records::{
    ChunkRecord, DeadRecord, EntryRecord, InodeRecord, Marker, OrphanRecord, Record, SegmentRecord,
    ServerRecord, SessionRecord, SlotRecord, Superblock, TaskRecord,
};

type Read = fn(&[u8]) -> bool;

const KINDS: &[Read] = &[
    same_again::<ChunkRecord>,
    same_again::<DeadRecord>,
    same_again::<EntryRecord>,
    same_again::<InodeRecord>,
    same_again::<Marker>,
    same_again::<OrphanRecord>,
    same_again::<SegmentRecord>,
    same_again::<ServerRecord>,
    same_again::<SessionRecord>,
    same_again::<SlotRecord>,
    same_again::<Superblock>,
    same_again::<TaskRecord>,
];

pub(crate) fn read(data: &[u8]) -> bool {
    let Some((kind, record)) = data.split_first() else { return false };
    KINDS[usize::from(*kind) % KINDS.len()](record)
}

fn same_again<R: Record>(bytes: &[u8]) -> bool {
    let Ok(record) = R::decode(bytes) else { return false };
    let first = record.encode();
    let again = R::decode(&first).map(|record| record.encode()).ok();
    assert_eq!(again.as_ref(), Some(&first), "a {} is not what it was when it is read again", R::NAME);
    true
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // What the kinds have in common: a version, and then small numbers, lengths and choices, none of which is beyond 1.
    let bodies = [[0_u8; 96], [1; 96]];
    let all = (0..KINDS.len() as u8)
        .flat_map(|kind| bodies.iter().map(move |body| [&[kind, 1][..], body].concat()));
    all.filter(|seed| read(seed)).collect()
}
