use tokio::sync::Semaphore;

use super::*;

const REQUEST: u64 = 128 << 10;
const BIG: u64 = 1 << 30;

fn ahead(start: u64, end: u64, budget: &Arc<Semaphore>) -> Arc<Ahead> {
    let permit = Arc::clone(budget).try_acquire_many_owned(1).unwrap();
    Arc::new(Ahead::new(ChunkId(1), start, end, end, permit))
}

#[test]
fn the_window_grows_with_the_stream_and_ends_with_the_file() {
    let mut reads = Readahead::default();
    let (mut at, mut to, mut largest) = (0, 0, 0);
    while at < 64 << 20 {
        if let Some((from, end)) = reads.observe(at, REQUEST, 64 << 20) {
            assert!(from >= to && from >= at + REQUEST && end <= 64 << 20, "{from} to {end}");
            to = end;
            largest = largest.max(end - at - REQUEST);
            reads.planned(end, Vec::new());
        }
        at += REQUEST;
    }
    assert_eq!(to, 64 << 20);
    assert_eq!(largest, WINDOW_BYTES_MAX);
}

#[test]
fn jumps_are_no_stream_and_end_one() {
    let mut reads = Readahead::default();
    for at in [70, 3, 900, 41, 12, 500] {
        assert_eq!(reads.observe(at << 20, 4096, BIG), None);
    }
    let budget = Arc::new(Semaphore::new(10));
    assert_eq!(
        reads.observe((500 << 20) + 4096, REQUEST, BIG).map(|(from, _)| from),
        Some((500 << 20) + 4096 + REQUEST)
    );
    reads.planned((501 << 20) + 4096, vec![ahead(0, 1 << 20, &budget)]);
    assert_eq!(budget.available_permits(), 9);
    assert_eq!(reads.observe(5 << 20, 4096, BIG), None);
    assert_eq!(budget.available_permits(), 10);
}

#[test]
fn a_small_first_read_is_no_stream_a_large_one_is() {
    assert_eq!(Readahead::default().observe(0, 4096, BIG), None);
    assert!(Readahead::default().observe(0, REQUEST, BIG).is_some());
    assert_eq!(Readahead::default().observe(0, REQUEST, REQUEST), None, "there is no more");
}

#[test]
fn what_was_used_up_or_nobody_wants_goes() {
    let budget = Arc::new(Semaphore::new(10));
    let mut reads = Readahead::default();
    reads.planned(3000, vec![ahead(0, 1000, &budget), ahead(2000, 3000, &budget)]);
    assert!(matches!(reads.find(ChunkId(1), 0, 600), Found::Ahead(_, 600)));
    assert!(matches!(reads.find(ChunkId(1), 600, 1500), Found::Ahead(_, 1000)));
    assert!(matches!(reads.find(ChunkId(1), 600, 1500), Found::Nothing(1500)), "it was used up");
    assert!(matches!(reads.find(ChunkId(1), 1500, 2500), Found::Nothing(2000)));
    assert!(matches!(reads.find(ChunkId(2), 2000, 2500), Found::Nothing(2500)));
    assert_eq!(budget.available_permits(), 9);
    reads.expire(Instant::now() + UNUSED_AFTER);
    assert!(reads.is_empty());
    assert_eq!(budget.available_permits(), 10);
}
