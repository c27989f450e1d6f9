use std::os::fd::AsFd;
use std::time::Duration;

use super::*;

fn small() -> Arc<Arena> {
    Arena::create(ArenaConfig { op_slots: 4, data_bytes: 1 << 20 }).unwrap()
}

/// What a successor finds if the process dies now: nothing that the process still has runs its destructors.
fn die_and_adopt(arena: &Arc<Arena>) -> Adopted {
    let adopted = Arena::adopt(arena.fd().try_clone_to_owned().unwrap()).unwrap();
    adopted.arena.take_responsibility();
    adopted
}

#[test]
fn what_an_adopter_drops_that_fails_stays_for_the_next_one() {
    let arena = small();
    let block = arena.store(InodeId(7), 0, b"data").unwrap();
    let (outcome, handle) =
        (arena.note_outcome(1, b"one").unwrap(), arena.note_handle(2, 0, InodeId(7), 0).unwrap());
    let adopt = || Arena::adopt(arena.fd().try_clone_to_owned().unwrap()).unwrap();
    for _ in 0..2 {
        let adopted = adopt();
        assert_eq!((adopted.data.len(), adopted.outcomes.len(), adopted.handles.len()), (1, 1, 1));
        drop(adopted.arena.adopt_outcome(&adopted.outcomes[0]));
        drop(adopted.arena.adopt_handle(&adopted.handles[0]));
    }
    let adopted = adopt();
    adopted.arena.take_responsibility();
    drop(adopted.arena.adopt_outcome(&adopted.outcomes[0]));
    drop(adopted.arena.adopt_handle(&adopted.handles[0]));
    drop(adopted);
    let adopted = adopt();
    assert_eq!((adopted.data.len(), adopted.outcomes.len(), adopted.handles.len()), (0, 0, 0));
    std::mem::forget((block, outcome, handle));
}

#[test]
fn a_successor_finds_data_and_operations_in_order() {
    let arena = small();
    let first = arena.store(InodeId(7), 100, b"first").unwrap();
    let gone = arena.store(InodeId(7), 105, b"committed").unwrap();
    let mut second = arena.store_growing(InodeId(8), 0, b"sec", 9000).unwrap();
    drop(gone);
    let third = arena.store(InodeId(7), 100, &[9; 10_000]).unwrap();
    assert_eq!(second.append(b"ond"), 3);
    arena.record_op(SlotId(1), SessionId(5), 1, Origin::default(), b"one").unwrap();
    arena.clear_op(SlotId(1), SessionId(5), 1);
    arena.record_op(SlotId(1), SessionId(5), 2, Origin::default(), b"two").unwrap();
    arena.record_op(SlotId(2), SessionId(5), 1, Origin::default(), &[3; OP_BYTES_MAX]).unwrap();
    arena.clear_op(SlotId(2), SessionId(5), 1);

    let adopted = die_and_adopt(&arena);
    assert_eq!(adopted.damaged, 0);
    let found: Vec<(u64, u64, &[u8])> =
        adopted.data.iter().map(|block| (block.ino().0, block.offset(), block.bytes())).collect();
    assert_eq!(found, [(7, 100, b"first".as_slice()), (8, 0, b"second"), (7, 100, &[9; 10_000])]);
    assert_eq!(
        adopted.ops,
        [
            OpRecord {
                slot: SlotId(1),
                session: SessionId(5),
                sequence: 2,
                origin: Origin::default(),
                pending: Some(b"two".to_vec())
            },
            OpRecord {
                slot: SlotId(2),
                session: SessionId(5),
                sequence: 1,
                origin: Origin::default(),
                pending: None
            },
        ]
    );
    assert_eq!(adopted.arena.usage().bytes_used, arena.usage().bytes_used);
    let fourth = adopted.arena.store(InodeId(9), 0, b"after").unwrap();
    assert!(adopted.data.iter().all(|block| block.order() < fourth.order()));
    std::mem::forget((first, second, third));
}

#[test]
fn data_that_was_not_written_to_its_end_is_not_there() {
    let arena = small();
    let whole = arena.store(InodeId(7), 0, b"whole").unwrap();
    let mut torn = arena.store_growing(InodeId(7), 5, b"torn", 4096).unwrap();
    // The process dies inside of `append`: bytes are there, the record isn't.
    // SAFETY: nobody else looks.
    unsafe { arena.memory.write(arena.layout.unit(torn.run.start) + 4, b"append") };
    let adopted = die_and_adopt(&arena);
    assert_eq!(adopted.data[1].bytes(), b"torn");
    assert_eq!(adopted.damaged, 0);
    drop(adopted);

    let arena = small();
    let block = arena.store(InodeId(7), 0, b"damaged").unwrap();
    // SAFETY: nobody else looks.
    unsafe { arena.memory.write(arena.layout.unit(block.run.start), b"D") };
    let adopted = die_and_adopt(&arena);
    assert_eq!((adopted.data.len(), adopted.damaged), (0, 1));
    assert_eq!(adopted.arena.usage().bytes_used, 0);
    torn.append(b"x");
    std::mem::forget((whole, torn, block));
}

#[test]
fn what_is_no_arena_is_not_adopted() {
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(Arena::adopt(file.into()), Err(ArenaError::Memory(_))));
    let memory = Memory::create(8192).unwrap();
    let error = Arena::adopt(memory.fd().as_fd().try_clone_to_owned().unwrap()).unwrap_err();
    assert!(matches!(error, ArenaError::Foreign(_)), "{error}");
    assert!(matches!(Arena::create(ArenaConfig { op_slots: 4, data_bytes: 17 }), Err(ArenaError::Size(_))));
}

fn resident_bytes(arena: &Arena) -> u64 {
    nix::sys::stat::fstat(arena.fd()).unwrap().st_blocks as u64 * 512
}

#[test]
fn memory_of_freed_blocks_is_given_back() {
    let all = IDLE_BYTES_MAX as u64 + (16 << 20);
    let arena = Arena::create(ArenaConfig { op_slots: 2, data_bytes: all }).unwrap();
    let blocks: Vec<DataBlock> = (0..all >> 20)
        .map(|number| arena.store(InodeId(1), number << 20, &vec![1; DATA_BLOCK_BYTES_MAX]).unwrap())
        .collect();
    assert!(matches!(arena.store(InodeId(1), 0, b"x"), Err(ArenaFull)));
    assert!(resident_bytes(&arena) >= all);
    drop(blocks);
    let usage = arena.usage();
    assert_eq!(usage.bytes_used, 0);
    assert!(usage.bytes_idle <= IDLE_BYTES_MAX as u64);
    assert!(resident_bytes(&arena) < (IDLE_BYTES_MAX as u64) + (2 << 20));
    arena.trim();
    assert_eq!(arena.usage().bytes_idle, 0);
    assert!(resident_bytes(&arena) < 2 << 20);
}

#[tokio::test]
async fn who_finds_no_room_waits_until_a_block_is_dropped() {
    let arena = small();
    let block = arena.store(InodeId(1), 0, &vec![1; 1 << 20]).unwrap();
    let waiting = {
        let arena = Arc::clone(&arena);
        tokio::spawn(async move { arena.store_when_free(InodeId(2), 0, b"late", 4).await.len() })
    };
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(block);
    let stored = tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
    assert_eq!(stored, 4);
}

#[test]
fn a_fragmented_arena_takes_what_fits() {
    let arena = small();
    let mut blocks: Vec<DataBlock> =
        (0..256).map(|number| arena.store(InodeId(1), number, &[1; UNIT_BYTES]).unwrap()).collect();
    let mut keep = false;
    blocks.retain(|_| {
        keep = !keep;
        keep
    });
    let block = arena.store(InodeId(1), 0, &[2; 3 * UNIT_BYTES]).unwrap();
    assert_eq!(block.len(), UNIT_BYTES);
    assert_eq!(block.room(), 0);
}

#[test]
fn a_successor_finds_the_session_outcomes_and_what_is_open() {
    let arena = small();
    let (session, incarnation) = (SessionId(5), 77);
    arena.note_session(SessionRecord { session, incarnation, takeovers: 0 });
    arena.note_session(SessionRecord { session, incarnation, takeovers: 1 });
    let origin = Origin { request: 12, order: 34 };
    arena.record_op(SlotId(1), session, 1, origin, b"one").unwrap();
    let kept = (arena.note_outcome(8, b"eight").unwrap(), arena.note_outcome(10, b"ten").unwrap());
    assert!(arena.note_outcome(12, &[0; layout::OUTCOME_BYTES]).is_none(), "too long");
    let handles: Vec<HandleRoom> = (1..=5)
        .map(|number| arena.note_handle(number, 3, InodeId(number + 100), number + 200).unwrap())
        .collect();
    handles[3].set_flags(4, 7);
    let mut handles = handles.into_iter();
    drop(handles.next());

    let adopted = die_and_adopt(&arena);
    assert_eq!(adopted.damaged, 0);
    assert_eq!(adopted.session, Some(SessionRecord { session, incarnation, takeovers: 1 }));
    assert_eq!(adopted.ops[0].origin, origin);
    let found: Vec<(u64, &[u8])> =
        adopted.outcomes.iter().map(|record| (record.request, &record.outcome[..])).collect();
    assert_eq!(found, [(8, &b"eight"[..]), (10, b"ten")]);
    let found: Vec<(u64, u8, u64, u64)> = adopted
        .handles
        .iter()
        .map(|handle| (handle.number, handle.flags, handle.ino.0, handle.request))
        .collect();
    assert_eq!(found, [(2, 3, 102, 202), (3, 3, 103, 203), (4, 7, 104, 204), (5, 3, 105, 205)]);
    // Each is found where it was, and the room of the closed one is used again.
    let rooms: Vec<HandleRoom> =
        adopted.handles.iter().map(|record| adopted.arena.adopt_handle(record)).collect();
    let again = adopted.arena.note_handle(6, 0, InodeId(1), 0).unwrap();
    drop(rooms);
    let left = die_and_adopt(&adopted.arena).handles;
    assert_eq!(left.iter().map(|record| (record.room, record.number)).collect::<Vec<_>>(), [(0, 6)]);
    std::mem::forget((kept, handles, again));
}

#[test]
fn a_copy_is_what_there_was() {
    let arena = small();
    let block = arena.store(InodeId(7), 100, b"before").unwrap();
    let copy = arena.copy().unwrap();
    drop(block);
    let adopted = Arena::adopt(copy).unwrap();
    assert_eq!(adopted.data[0].bytes(), b"before");
    assert!(die_and_adopt(&arena).data.is_empty());
}

#[test]
fn an_outcome_stays_until_its_request_is_answered_whoever_answers() {
    let arena = small();
    let outcomes = |arena: &Arc<Arena>| die_and_adopt(arena).outcomes;
    let (one, two) = (arena.note_outcome(1, b"one").unwrap(), arena.note_outcome(2, b"two").unwrap());
    let adopted = die_and_adopt(&arena);
    let inherited: Vec<OutcomeRoom> =
        adopted.outcomes.iter().map(|record| adopted.arena.adopt_outcome(record)).collect();
    // What comes later takes no place of theirs, however much that is.
    for request in 3..1000 {
        drop(adopted.arena.note_outcome(request, b"answered").unwrap());
    }
    let held: Vec<OutcomeRoom> =
        std::iter::from_fn(|| adopted.arena.note_outcome(1000, b"unanswered")).collect();
    assert_eq!(held.len(), layout::OUTCOMES as usize - 2);
    drop(held);
    let found: Vec<u64> = outcomes(&adopted.arena).iter().map(|record| record.request).collect();
    assert_eq!(found, [1, 2]);
    drop(inherited);
    assert_eq!(outcomes(&adopted.arena), []);
    std::mem::forget((one, two));
}
