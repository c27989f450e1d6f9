use super::replies::LATELY;
use super::*;
use crate::testing::file_attributes;

const FILE: InodeId = InodeId(5);

fn now() -> Instant {
    Instant::now()
}

fn file(change: u64, size: u64) -> Attributes {
    file_attributes(FILE, change, size)
}

fn read(pages: &Pages, size: u64, range: Range<u64>) -> Fill<'_> {
    let fill = pages.read(FILE, range, now());
    fill.knows(size);
    fill
}

fn opened(attributes: &Attributes) -> Pages {
    let pages = Pages::default();
    assert_eq!(pages.current(attributes), None, "it was never read");
    pages
}

/// Tells a size that is asked for now.
fn tell(pages: &Pages, size: u64, thread: u32, now: Instant) -> Tell {
    pages.tell(FILE, size, (thread, pages.epoch()), now)
}

#[test]
fn pages_are_kept_if_only_this_client_changed_the_file() {
    let pages = opened(&file(1, 10));
    assert_eq!(pages.current(&file(1, 10)), None);
    read(&pages, 10, 0..4096).answered(10, now());
    pages.own_change(&file(2, 10));
    assert_eq!(pages.current(&file(2, 10)), None);
    // Somebody else's change came in between.
    pages.own_change(&file(4, 20));
    let stale = pages.current(&file(4, 20)).unwrap();
    assert_eq!(stale.range, 0..EVERYTHING);
    pages.gone(&stale);
    assert_eq!(pages.current(&file(4, 20)), None);
    read(&pages, 20, 0..4096).answered(20, now());
    pages.forget(FILE);
    assert_eq!(pages.current(&file(5, 20)), None, "with the inode the kernel has forgotten its pages");
}

#[test]
fn pages_are_wrong_until_they_are_gone() {
    let pages = opened(&file(1, 10));
    read(&pages, 10, 0..4096).answered(10, now());
    let first = pages.current(&file(2, 10)).unwrap();
    // Another one that opens, or has the lock, while the first one waits must not read what is there still.
    let second = pages.current(&file(2, 10)).unwrap();
    pages.gone(&first);
    assert_eq!(pages.current(&file(2, 10)), None);
    pages.gone(&second);
    assert_eq!(pages.current(&file(2, 10)), None);
}

#[test]
fn an_answer_that_comes_late_does_not_make_pages_right() {
    let pages = opened(&file(1, 10));
    read(&pages, 10, 0..4096).answered(10, now());
    let old = pages.current(&file(2, 10)).unwrap();
    let new = pages.current(&file(3, 10)).unwrap();
    pages.gone(&new);
    pages.gone(&old);
    assert_eq!(pages.current(&file(3, 10)), None);
}

#[test]
fn a_file_without_pages_has_none_to_drop() {
    let pages = opened(&file(1, 10));
    assert_eq!(pages.current(&file(7, 10)), None);
    assert_eq!(pages.told(FILE, 5000), None);
    assert_eq!(pages.bypassed(FILE, 0..100, false, false), None);
    pages.made(&file(1, 0));
    assert_eq!(pages.bypassed(FILE, 0..100, false, false), None);
    // The kernel may be about to take up that it is empty, when a page has been read since.
    assert_eq!(pages.told(FILE, 0), None);
    assert_eq!(pages.bypassed(FILE, 0..100, false, false), None);
    assert!(pages.bypassed(FILE, 100..200, true, false).is_some());
}

#[test]
fn the_page_at_the_old_end_goes_before_a_larger_size_is_told() {
    let pages = opened(&file(1, 5000));
    read(&pages, 5000, 0..8192).answered(5000, now());
    assert_eq!(pages.told(FILE, 5000), None);
    assert!(pages.would_grow(FILE, 5001, now()));
    let first = pages.told(FILE, 9000).unwrap();
    assert_eq!(first.range, 5000..EVERYTHING);
    // Told again while the first one waits: it has to wait, too.
    let second = pages.told(FILE, 9000).unwrap();
    pages.gone(&first);
    assert_eq!(pages.told(FILE, 9000), None);
    pages.gone(&second);
    assert_eq!(pages.told(FILE, 9000), None);
    assert_eq!(
        pages.told(FILE, 20_000),
        None,
        "there is no page from 4096 on: whoever follows a file sees it grow"
    );
}

#[test]
fn an_answer_that_is_taken_up_late_cuts_off_what_was_read_since() {
    let pages = opened(&file(1, 100));
    read(&pages, 100, 0..4096).answered(100, now());
    let stale = pages.told(FILE, 200).unwrap();
    pages.gone(&stale);
    // Asked and answered after the invalidation, and not taken up yet.
    assert_eq!(pages.told(FILE, 200), None);
    assert_eq!(pages.told(FILE, 300), None);
    read(&pages, 300, 0..4096).answered(300, now());
    // Now it is, and the page ends at 200.
    assert_eq!(pages.told(FILE, 300).unwrap().range, 200..EVERYTHING);
}

#[test]
fn a_larger_size_waits_for_those_that_may_cut_pages_off_yet() {
    let (pages, now) = (opened(&file(1, 100)), now());
    let late = now + Duration::from_secs(1);
    let later = late + Duration::from_secs(1);
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    assert_eq!(tell(&pages, 200, 2, now), Tell::Later);
    assert!(pages.would_grow(FILE, 200, now));
    // It has gone on.
    assert_eq!(tell(&pages, 200, 1, now), Tell::Now);
    // Its page is being read, so it waits.
    let fill = pages.read(FILE, 0..4096, now);
    fill.knows(200);
    assert_eq!(tell(&pages, 300, 3, late), Tell::Later);
    fill.answered(200, late);
    assert_eq!(tell(&pages, 300, 3, late), Tell::Later);
    let Tell::Without(stale) = tell(&pages, 300, 3, later) else { panic!("it ends at 200") };
    assert_eq!(stale.range, 200..EVERYTHING);
    // That makes its answer void: nobody cuts anything off at 300.
    pages.gone(&stale);
    assert_eq!(tell(&pages, 400, 4, later), Tell::Now);
}

#[test]
fn what_is_read_while_a_cut_is_pending_may_be_cut_off() {
    let (pages, now) = (opened(&file(1, 100)), now());
    read(&pages, 100, 0..4096).answered(100, now);
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    // It waits for the page, which goes, and then for the one that is read next.
    let mut stale = pages.current(&file(2, 200)).unwrap();
    pages.dropped(&mut stale, now);
    pages.gone(&stale);
    read(&pages, 200, 0..4096).answered(200, now);
    assert_eq!(tell(&pages, 200, 2, now), Tell::Later);
    let Tell::Without(stale) = tell(&pages, 200, 1, now) else { panic!("it has gone on") };
    assert_eq!(stale.range, 100..EVERYTHING);
    pages.gone(&stale);
    assert_eq!(tell(&pages, 200, 1, now), Tell::Now);
}

#[test]
fn a_cut_that_is_over_says_nothing_of_what_is_read_later() {
    // Whether that is noticed before the READ, or only afterwards, and whether somebody may have found the old page before it
    // was dropped.
    for (noticed, gone) in [(true, true), (false, true), (true, false), (false, false)] {
        let (pages, now) = (opened(&file(1, 100)), now());
        let late = now + CUT_WITHIN;
        read(&pages, 100, 0..4096).answered(100, now);
        assert_eq!(tell(&pages, 100, 0, now), Tell::Now);
        let mut stale = pages.current(&file(2, 200)).unwrap();
        pages.dropped(&mut stale, now);
        if gone {
            pages.gone(&stale);
        }
        assert!(!noticed || !pages.may_be_cut_before(FILE, 200, late));
        let fill = pages.read(FILE, 0..4096, late);
        fill.knows(200);
        fill.answered(200, late);
        pages.gone(&stale);
        // Who has the lock would be told this in vain, and go by the size of before.
        assert_eq!(pages.settle(FILE, 200, pages.epoch(), late), Tell::Now);
        assert_eq!(tell(&pages, 200, 0, late), Tell::Now);
    }
}

#[test]
fn a_size_that_is_told_without_a_page_says_nothing_of_what_is_read_later() {
    // Somebody hears of 100 and reads when it is 200 by then. Who has been granted a lock must not be told that in vain.
    let (pages, now) = (opened(&file(1, 100)), now());
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    assert_eq!(pages.current(&file(2, 200)), None);
    let late = now + CUT_WITHIN;
    let Tell::Void(mut stale) = pages.settle(FILE, 200, pages.epoch(), late) else { panic!("1 may be late") };
    pages.dropped(&mut stale, now);
    let asked = pages.epoch();
    read(&pages, 200, 0..4096).answered(200, late);
    assert_eq!(pages.tell(FILE, 200, (2, asked), late), Tell::Now);
}

#[test]
fn a_size_that_is_void_says_nothing_of_what_is_read_later() {
    let (pages, now) = (opened(&file(1, 100)), now());
    read(&pages, 100, 0..4096).answered(100, now);
    let asked = pages.epoch();
    let Tell::Without(mut stale) = pages.tell(FILE, 200, (1, asked), now) else { panic!("it ends at 100") };
    pages.dropped(&mut stale, now);
    pages.gone(&stale);
    assert_eq!(pages.tell(FILE, 200, (1, asked), now), Tell::Now, "it isn't taken up");
    read(&pages, 300, 0..4096).answered(300, now);
    assert_eq!(tell(&pages, 300, 2, now), Tell::Now);
}

#[test]
fn others_make_a_file_shorter_and_longer_again() {
    let (pages, now) = (opened(&file(1, 0)), now());
    pages.written(FILE, 0..300, 1, now).visible();
    // What the kernel knows from its own write cuts nothing off.
    assert_eq!(tell(&pages, 300, 2, now), Tell::Now);
    assert!(!pages.may_be_cut_before(FILE, 301, now));
    assert_eq!(tell(&pages, 100, 2, now), Tell::Now);
    assert!(pages.may_be_cut_before(FILE, 200, now));
}

#[test]
fn what_is_written_while_a_cut_is_pending_may_be_cut_off() {
    let (pages, now) = (opened(&file(1, 100)), now());
    read(&pages, 100, 0..4096).answered(100, now);
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    let written = pages.written(FILE, 100..200, 2, now);
    assert!(written.may_be_cut(now));
    // Over, and the page with it.
    pages.written(FILE, 0..1, 1, now);
    assert!(!written.may_be_cut(now));
    let stale = written.visible();
    assert_eq!((stale.len(), &stale[0].range), (1, &(0..4096)));
    // What ends before that isn't cut off, nor what the same thread writes that was told.
    assert!(pages.written(FILE, 50..100, 2, now).visible().is_empty());
    assert!(pages.written(FILE, 100..200, 1, now).visible().is_empty());
    assert!(!pages.written(FILE, 100..200, 2, now + LATE_MAX).visible().is_empty());
    assert!(pages.written(FILE, 100..200, 2, now + LATE_MAX * 2).visible().is_empty());
    // Without a page that was filled, the one that is written is locked until it is answered.
    assert!(pages.written(FILE, 9000..9001, 2, now).visible().is_empty());
}

#[test]
fn what_is_read_without_a_write_that_is_known_ends_where_it_did() {
    let (pages, now) = (opened(&file(1, 100)), now());
    read(&pages, 100, 0..4096).answered(100, now);
    let written = pages.written(FILE, 100..101, 2, now);
    // The page goes, and is read again while the WRITE isn't visible.
    read(&pages, 100, 0..4096).answered(100, now);
    written.joins(&(100..101));
    // Another thread hears of the new size before the WRITE is answered.
    let Tell::Without(stale) = tell(&pages, 101, 1, now) else { panic!("the page lacks a byte") };
    assert_eq!(stale.range, 100..EVERYTHING);
    drop(stale);
    assert_eq!(written.visible().len(), 1);
}

#[test]
fn a_size_is_not_told_early_because_a_write_made_it() {
    let (pages, now) = (opened(&file(1, 100)), now());
    read(&pages, 100, 0..4096).answered(100, now);
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    let written = pages.written(FILE, 100..101, 2, now);
    written.joins(&(100..101));
    // The first thread may yet cut the byte off that the second one has written.
    assert_eq!(tell(&pages, 101, 3, now), Tell::Later);
    assert!(written.may_be_cut(now));
    assert!(!written.may_be_cut(now + CUT_WITHIN));
    for stale in written.visible() {
        pages.gone(&stale);
    }
    assert_eq!(tell(&pages, 101, 3, now + CUT_WITHIN), Tell::Now);
}

#[test]
fn a_size_that_was_told_before_the_file_was_opened_is_remembered() {
    let (pages, now) = (Pages::default(), now());
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    assert_eq!(pages.current(&file(2, 200)), None);
    assert!(pages.may_be_cut_before(FILE, 200, now));
    assert!(!pages.may_be_cut_before(FILE, 200, now + CUT_WITHIN));
    // Not of any number of files, and not for long.
    let pages = Pages::default();
    for number in 0..=STRANGERS_MAX as u64 {
        let _ = pages.tell(InodeId(1000 + number), 100, (1, 0), now);
    }
    assert_eq!(pages.0.lock().strangers.len(), STRANGERS_MAX);
    let _ = tell(&pages, 100, 1, now + CUT_WITHIN);
    assert_eq!(pages.0.lock().strangers.len(), 1);
}

#[test]
fn one_invalidation_is_enough_for_all_that_ask_meanwhile() {
    let (pages, now) = (opened(&file(1, 100)), now());
    read(&pages, 100, 0..4096).answered(100, now);
    let asked = pages.epoch();
    let Tell::Without(mut stale) = tell(&pages, 200, 1, now) else { panic!("a page ends at 100") };
    pages.dropped(&mut stale, now);
    // The kernel takes up neither of these answers, so no other one has to wait for them.
    for thread in [1, 2] {
        assert_eq!(pages.tell(FILE, 100, (thread, asked), now), Tell::Now);
    }
    assert!(!pages.may_be_cut_before(FILE, 200, now));
    // This one it takes up: when nobody is served with the old page any more.
    assert_eq!(tell(&pages, 200, 3, now), Tell::Later);
    pages.gone(&stale);
    assert_eq!(tell(&pages, 200, 3, now), Tell::Now);
    // An answer that can't be made void is waited for.
    assert_eq!(pages.tell(FILE, 200, (4, NEVER_VOID), now), Tell::Now);
    assert!(pages.may_be_cut_before(FILE, 201, now));
}

#[test]
fn who_gets_a_lock_asks_for_the_size_when_nothing_makes_the_answer_void() {
    let (pages, now) = (opened(&file(1, 100)), now());
    read(&pages, 100, 0..4096).answered(100, now);
    let settle = |epoch, now| pages.settle(FILE, 200, epoch, now);
    // A thread may cut the page off yet.
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    assert_eq!(settle(pages.epoch(), now), Tell::Later);
    // Another one has begun to invalidate; or has given it up.
    let Tell::Without(stale) = tell(&pages, 200, 1, now) else { panic!("a page ends at 100") };
    let epoch = pages.epoch();
    assert_eq!(settle(epoch, now), Tell::Later);
    assert!(matches!(settle(epoch - 1, now), Tell::Without(_)));
    drop(stale);
    let Tell::Without(mut stale) = settle(epoch, now) else { panic!("it is still there") };
    pages.dropped(&mut stale, now);
    // Who asks next waits for those who have found the page. The lock doesn't.
    assert_eq!(settle(pages.epoch(), now), Tell::Now);
    assert_eq!(tell(&pages, 200, 1, now), Tell::Later);
    pages.gone(&stale);
    assert_eq!(tell(&pages, 200, 1, now), Tell::Now);
    // The kernel has made it longer, and somebody else shorter: it may not take up that it is.
    pages.grown(FILE, 300, 7, now);
    assert_eq!(settle(pages.epoch(), now), Tell::Later);
    assert_eq!(settle(pages.epoch(), now + CUT_WITHIN), Tell::Now);
}

#[test]
fn who_gets_a_lock_is_told_the_size_after_older_replies_are_void() {
    let (pages, now) = (opened(&file(1, 100)), now());
    let late = now + CUT_WITHIN * 100;
    // Nothing was read, so there is no page to drop; and the thread has stood still since, for longer than any that cuts.
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    assert_eq!(pages.current(&file(2, 200)), None);
    let Tell::Void(mut stale) = pages.settle(FILE, 200, pages.epoch(), late) else {
        panic!("it is told 100")
    };
    assert!(matches!(pages.settle(FILE, 200, pages.epoch(), late), Tell::Later), "it isn't done yet");
    pages.dropped(&mut stale, now);
    assert_eq!(pages.settle(FILE, 200, pages.epoch(), late), Tell::Now);
    // Who is told the same, or asks for something else.
    assert_eq!(tell(&pages, 200, 1, late), Tell::Now);
    assert_eq!(pages.settle(FILE, 200, pages.epoch(), late), Tell::Now);
    assert!(matches!(pages.settle(FILE, 8192, pages.epoch(), late + CUT_WITHIN), Tell::Void(_)));
    drop(pages.written(FILE, 0..1, 1, late));
    assert_eq!(pages.settle(FILE, 8192, pages.epoch(), late + CUT_WITHIN), Tell::Now);
}

#[test]
fn who_opens_a_file_whose_size_the_kernel_may_not_know_does_without_pages() {
    let (pages, now) = (opened(&file(1, 100)), now());
    assert!(!pages.may_be_behind(FILE, 100, 1, now), "nothing was ever made void");
    assert!(!pages.may_be_behind(InodeId(FILE.0 + 1), 100, 1, now));
    // Somebody else may leave an older size; who opens it itself has processed what it was told.
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    assert!(pages.may_be_behind(FILE, 200, 2, now) && !pages.may_be_behind(FILE, 100, 2, now));
    assert!(!pages.may_be_behind(FILE, 200, 1, now));
    assert_eq!(tell(&pages, 100, 1, now), Tell::Now);
    // What it was told was void.
    let Tell::Void(mut stale) = pages.settle(FILE, 200, pages.epoch(), now + CUT_WITHIN) else {
        panic!("100")
    };
    pages.dropped(&mut stale, now);
    drop(stale);
    assert!(pages.may_be_behind(FILE, 200, 1, now));
    assert_eq!(tell(&pages, 200, 1, now), Tell::Now);
    assert!(
        pages.may_be_behind(FILE, 200, 1, now),
        "the kernel may have asked before that, and the client heard of it after"
    );
    assert!(!pages.may_be_behind(FILE, 200, 2, now + LATELY));
    // One that is under way may be through with it already.
    let later = now + LATELY;
    assert_eq!(tell(&pages, 200, 2, later), Tell::Now);
    let stale = pages.bypassed(FILE, 0..50, true, false);
    assert!(stale.is_none(), "there is no page");
    let Tell::Void(stale) = pages.settle(FILE, 300, pages.epoch(), later + CUT_WITHIN) else { panic!("200") };
    assert!(pages.may_be_behind(FILE, 300, 1, later));
    // But what it has written itself it knows, once the writer goes on.
    pages.grown(FILE, 300, 7, later);
    assert!(pages.may_be_behind(FILE, 300, 1, later));
    pages.gone_on(FILE, 7, later);
    assert!(!pages.may_be_behind(FILE, 300, 1, later));
    drop(stale);
}

#[test]
fn an_answer_that_was_overtaken_drops_nothing() {
    let pages = opened(&file(1, 10));
    read(&pages, 10, 0..4096).answered(10, now());
    pages.gone(&pages.current(&file(3, 10)).unwrap());
    assert_eq!(pages.current(&file(2, 10)), None);
    assert_eq!(pages.current(&file(3, 10)), None);
}

#[test]
fn the_kernel_is_not_told_what_it_knows_from_its_own_writes() {
    let (pages, now) = (opened(&file(1, 100)), now());
    assert_eq!(tell(&pages, 50, 1, now), Tell::Now);
    assert!(pages.may_be_cut_before(FILE, 200, now));
    pages.grown(FILE, 200, 7, now);
    assert!(matches!(tell(&pages, 200, 2, now), Tell::Void(_)));
    assert_eq!(tell(&pages, 200, 2, now + CUT_WITHIN), Tell::Now);
    assert_eq!(tell(&pages, 201, 3, now), Tell::Later);
    // Somebody else has made it shorter since.
    assert!(matches!(tell(&pages, 150, 3, now), Tell::Void(_)));
    assert_eq!(tell(&pages, 200, 3, now), Tell::Later);
}

#[test]
fn a_page_that_is_read_while_others_are_dropped_stays_suspect() {
    let pages = opened(&file(1, 100));
    read(&pages, 100, 0..4096).answered(100, now());
    let stale = pages.told(FILE, 200).unwrap();
    read(&pages, 200, 0..4096).answered(200, now());
    pages.gone(&stale);
    assert_eq!(pages.told(FILE, 200), None);
    assert_eq!(pages.told(FILE, 300).unwrap().range, 200..EVERYTHING);
}

#[test]
fn a_read_under_way_is_waited_for_before_a_larger_size_is_told() {
    let pages = opened(&file(1, 100));
    let fill = read(&pages, 100, 0..4096);
    let stale = pages.bypassed(FILE, 100..200, false, false).unwrap();
    assert_eq!(stale.range, 100..EVERYTHING);
    // The kernel waits for it, so it is answered before the pages are gone, and goes with them.
    fill.answered(100, now());
    pages.gone(&stale);
    assert_eq!(pages.told(FILE, 200), None);
    // One that lies within the file has no end in it.
    let pages = opened(&file(1, 10_000));
    let _fill = read(&pages, 10_000, 0..4096);
    assert_eq!(pages.told(FILE, 20_000), None);
    // But it may be answered as of a size that the file had in between.
    pages.learn(FILE, 50);
    assert_eq!(pages.told(FILE, 60).unwrap().range, 50..EVERYTHING);
}

#[test]
fn a_size_is_not_told_while_nobody_knows_of_which_size_a_read_will_be_answered() {
    let pages = opened(&file(1, 100));
    let fill = pages.read(FILE, 0..4096, now());
    // Whoever answers it may have looked already, and stand still since.
    assert_eq!(pages.told(FILE, 200).unwrap().range, 0..EVERYTHING);
    fill.knows(100);
    assert_eq!(pages.told(FILE, 300).unwrap().range, 100..EVERYTHING);
    drop(fill);
    let fill = pages.read(FILE, 0..4096, now());
    pages.learn(FILE, 50);
    fill.knows(300);
    assert!(pages.would_grow(FILE, 60, now()), "it may be answered as of what was learnt in between");
}

#[test]
fn what_bypasses_the_pages_drops_what_it_replaces() {
    let pages = opened(&file(1, 10_000));
    read(&pages, 10_000, 0..8192).answered(8192, now());
    assert_eq!(pages.bypassed(FILE, 100..200, false, false).unwrap().range, 100..200);
    assert_eq!(pages.bypassed(FILE, 100..200, true, true), None);
    // But for the page at the end, if the file grows.
    read(&pages, 10_000, 8192..12_288).answered(10_000, now());
    assert_eq!(pages.bypassed(FILE, 10_000..10_001, true, true).unwrap().range, 10_000..EVERYTHING);
}

#[test]
fn a_page_that_is_cut_off_ends_there() {
    let pages = opened(&file(1, 10_000));
    read(&pages, 10_000, 0..8192).answered(8192, now());
    pages.cut(FILE, 50);
    assert_eq!(pages.told(FILE, 60).unwrap().range, 50..EVERYTHING);
    let pages = opened(&file(1, 10_000));
    read(&pages, 10_000, 0..8192).answered(8192, now());
    pages.learn(FILE, 10_000);
    assert_eq!(pages.told(FILE, 50), None);
    assert_eq!(pages.told(FILE, 60).unwrap().range, 50..EVERYTHING);
}

#[test]
fn writing_through_the_pages_makes_them_whole() {
    let pages = opened(&file(1, 100));
    let write = |range: Range<u64>| pages.written(FILE, range.clone(), 0, now()).joins(&range);
    read(&pages, 100, 0..4096).answered(100, now());
    assert_eq!(pages.gap(FILE, 100), None);
    write(100..300);
    assert_eq!(pages.told(FILE, 300), None);
    assert!(pages.would_grow(FILE, 301, now()));
    // Not behind a gap that somebody else may have filled.
    let stale = pages.gap(FILE, 400).unwrap();
    assert_eq!(stale.range, 300..400);
    write(400..500);
    assert!(pages.would_grow(FILE, 500, now()));
    // The page that ended there is gone: what is read in the gap from now on is what there is.
    pages.gone(&stale);
    write(400..500);
    assert_eq!(pages.gap(FILE, 500), None, "nor is it asked for again");
    assert!(!pages.would_grow(FILE, 500, now()) && pages.would_grow(FILE, 501, now()));
}

#[test]
fn remembers_a_bounded_number_of_files_and_all_that_are_open() {
    let pages = Pages::default();
    for number in 0..=FILES_MAX as u64 {
        pages.made(&Attributes { ino: InodeId(number), ..file(1, 0) });
    }
    pages.bound(|ino| ino.0 < 100);
    let forgotten = {
        let all = pages.0.lock();
        assert!(all.files.len() <= FILES_MAX);
        assert!((0..100).all(|number| all.files.contains_key(&InodeId(number))));
        (0..=FILES_MAX as u64).map(InodeId).find(|ino| !all.files.contains_key(ino)).unwrap()
    };
    assert!(pages.current(&Attributes { ino: forgotten, ..file(1, 0) }).is_some(), "it may have pages");
}

#[test]
fn a_page_that_comes_back_without_a_write_that_is_under_way_goes() {
    let pages = opened(&file(1, 10_000));
    read(&pages, 10_000, 0..8192).answered(8192, now());
    let write = pages.written(FILE, 100..5000, 0, now());
    let stale = pages.current(&file(2, 10_000)).unwrap();
    pages.gone(&stale);
    // Answered while the WRITE was under way, which went through the page that was there before.
    read(&pages, 10_000, 4096..8192).answered(8192, now());
    let ranges = |stale: Vec<Stale>| {
        stale.into_iter().map(|stale| (stale.range.start, stale.range.end)).collect::<Vec<_>>()
    };
    assert_eq!(ranges(write.visible()), [(4096, 8192)]);
    // The other way round: the READ was on its way when the WRITE came.
    let fill = read(&pages, 10_000, 0..4096);
    let write = pages.written(FILE, 0..1, 0, now());
    let elsewhere = pages.written(FILE, 12_288..12_300, 0, now());
    fill.answered(4096, now());
    assert_eq!(ranges(write.visible()), [(0, 4096)]);
    assert_eq!(ranges(elsewhere.visible()), []);
    // It was sent before a READ that was answered first, but came to be known after that.
    let answered = now();
    read(&pages, 10_000, 8192..12_288).answered(10_000, answered);
    let late = |after| pages.written(FILE, 8192..8200, 0, answered + after);
    assert_eq!(ranges(late(Duration::ZERO).visible()), [(8192, 12_288)]);
    assert_eq!(ranges(late(LATE_MAX + Duration::from_secs(1)).visible()), []);
}

#[test]
fn a_page_is_dropped_once_however_often_it_came_back() {
    let pages = opened(&file(1, 10_000));
    let answered = now();
    read(&pages, 10_000, 0..4096).answered(4096, answered);
    pages.gone(&pages.current(&file(2, 10_000)).unwrap());
    for _ in 0..3 {
        read(&pages, 10_000, 0..8192).answered(8192, answered);
    }
    let first = pages.written(FILE, 0..10, 0, answered).visible();
    assert_eq!(first.iter().map(|stale| stale.range.end).collect::<Vec<_>>(), [4096]);
    read(&pages, 10_000, 0..4096).answered(4096, answered);
    pages.gone(&first[0]);
    // One that was read while it was dropped may be there still; the others aren't, but for the page that stayed.
    assert_eq!(pages.written(FILE, 0..10, 0, answered).visible().len(), 1);
    pages.gone(&pages.all(FILE).unwrap());
    assert_eq!(pages.written(FILE, 0..8192, 0, answered).visible(), []);
}

#[test]
fn a_file_that_others_leave_alone_costs_no_drops() {
    let pages = opened(&file(1, 10_000));
    read(&pages, 10_000, 0..8192).answered(8192, now());
    assert_eq!(pages.written(FILE, 0..100, 0, now()).visible(), []);
}

#[test]
fn pages_that_were_written_through_and_lost_are_wrong() {
    let pages = opened(&file(1, 100));
    read(&pages, 100, 0..4096).answered(100, now());
    drop(pages.written(FILE, 0..100, 0, now()));
    pages.lost(FILE);
    let stale = pages.current(&file(1, 100)).unwrap();
    pages.gone(&stale);
    assert_eq!(pages.current(&file(1, 100)), None);
}
