//! Sizes that the kernel is told, at which it may cut pages off later than one would think. Pure.
//!
//! A thread that takes an answer up sets the inode's size first, if nothing has made the answer void, and cuts the pages
//! off afterwards, without a lock around both (`fuse_change_attributes` in fs/fuse/inode.c of Linux 6.18). If it stands
//! still in between it zeroes what a page was filled with since, whatever else was answered and dropped meanwhile. So a
//! larger size has to wait until that thread is done: when it asks for something else, or else when it would have had the
//! time on a machine that isn't starved. A page that is being read from us it waits for, and so do we.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use super::PAGE_BYTES;

/// How long a thread takes at most from being told a size to having cut the pages off, on a machine that isn't starved.
pub const CUT_WITHIN: Duration = Duration::from_millis(50);
/// Those of one file that are told apart, and those that are over.
const CUTS_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    size: u64,
    /// The thread, 0 if it isn't known.
    thread: u32,
    /// It has begun to cut by then: a READ that begins later doesn't hold it up, or one reader after the other would for ever.
    begun_by: Instant,
    until: Instant,
    /// It may have waited for a page that was being read, and goes on only now.
    was_held: bool,
}

impl Cut {
    /// A READ of these bytes, which began then, may have had its page locked when it came.
    fn is_held_by(&self, began: Instant, bytes: &Range<u64>) -> bool {
        let page = self.size / PAGE_BYTES * PAGE_BYTES;
        began < self.begun_by && bytes.start < page + PAGE_BYTES && page < bytes.end
    }
}

/// Of one file.
#[derive(Debug, Default)]
pub struct Cuts {
    all: Vec<Cut>,
    /// Those that are over, and when that was known, the last one last.
    ended: VecDeque<(Cut, Instant)>,
    /// The smallest of those that are over by now, if it wasn't asked for yet.
    over: Option<u64>,
}

impl Cuts {
    /// A thread is told this size, and nothing has made that void.
    pub fn told(&mut self, size: u64, thread: u32, now: Instant) {
        // Which are over is found out when it matters: a READ that is under way may hold one up for long.
        if self.all.len() >= CUTS_MAX {
            let first = self.all.remove(0);
            if let Some(next) = self.all.first_mut() {
                // Whose it is isn't known any more.
                *next = Cut {
                    size: first.size.min(next.size),
                    thread: 0,
                    begun_by: first.begun_by.max(next.begun_by),
                    until: first.until.max(next.until),
                    was_held: first.was_held || next.was_held,
                };
            }
        }
        let until = now + CUT_WITHIN;
        self.all.push(Cut { size, thread, begun_by: until, until, was_held: false });
    }

    /// The thread has gone on since.
    pub fn gone_on(&mut self, thread: u32, now: Instant) {
        if thread != 0 {
            self.end(|cut| cut.thread == thread, now);
        }
    }

    /// A READ of these bytes, which began then, is over.
    pub fn released(&mut self, began: Instant, bytes: &Range<u64>) {
        for cut in self.all.iter_mut().filter(|cut| cut.is_held_by(began, bytes)) {
            cut.was_held = true;
        }
    }

    /// True if pages may yet be cut off before `size`. `reading`: the READs that are under way, when they began and
    /// of which bytes.
    pub fn are_before(
        &mut self,
        size: u64,
        reading: impl Iterator<Item = (Instant, Range<u64>)> + Clone,
        now: Instant,
    ) -> bool {
        for cut in &mut self.all {
            if std::mem::take(&mut cut.was_held)
                || reading.clone().any(|(began, bytes)| cut.is_held_by(began, &bytes))
            {
                cut.until = now + CUT_WITHIN;
            }
        }
        self.end(|cut| cut.until <= now, now);
        self.all.iter().any(|cut| cut.size < size)
    }

    fn end(&mut self, is_over: impl Fn(&Cut) -> bool, now: Instant) {
        for cut in self.all.extract_if(.., |cut| is_over(cut)) {
            self.over = Some(self.over.map_or(cut.size, |over| over.min(cut.size)));
            self.ended.push_back((cut, now));
        }
        while self.ended.len() > CUTS_MAX
            && let Some((first, _)) = self.ended.pop_front()
            && let Some((next, _)) = self.ended.front_mut()
        {
            (next.size, next.thread) = (next.size.min(first.size), 0);
        }
    }

    /// The smallest size below `end` at which another thread may have cut a page off since then.
    pub fn since(&self, then: Instant, end: u64, thread: u32) -> Option<u64> {
        let ended = self.ended.iter().filter(|(_, ended)| then <= *ended).map(|(cut, _)| cut);
        let others = self.all.iter().chain(ended).filter(|cut| cut.thread == 0 || cut.thread != thread);
        others.map(|cut| cut.size).filter(|size| *size < end).min()
    }

    /// Pages that were read until now may end here, also those that were read after other pages had been dropped: the
    /// thread waits for whichever page has that place, and cuts that one off.
    pub fn over(&mut self) -> Option<u64> {
        self.over.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_waited_for_until_it_goes_on_or_had_the_time() {
        let (mut cuts, now) = (Cuts::default(), Instant::now());
        cuts.told(100, 1, now);
        cuts.told(100, 2, now);
        let are_before = |cuts: &mut Cuts, size, now| cuts.are_before(size, [].into_iter(), now);
        assert!(are_before(&mut cuts, 101, now) && !are_before(&mut cuts, 100, now));
        cuts.gone_on(1, now);
        assert!(are_before(&mut cuts, 101, now));
        cuts.gone_on(2, now);
        assert!(!are_before(&mut cuts, 101, now));
        cuts.told(100, 0, now);
        cuts.gone_on(0, now);
        assert!(are_before(&mut cuts, 101, now), "nobody knows who it was");
        assert!(!are_before(&mut cuts, 101, now + CUT_WITHIN));
        assert!(cuts.all.is_empty());
        assert_eq!((cuts.over(), cuts.over()), (Some(100), None));
    }

    #[test]
    fn a_read_holds_a_thread_up() {
        let (mut cuts, now) = (Cuts::default(), Instant::now());
        cuts.told(100, 1, now);
        let began = now + CUT_WITHIN / 2;
        let reading = [(began, 0..4096)].into_iter();
        let late = now + CUT_WITHIN * 4;
        assert!(cuts.are_before(101, reading.clone(), late));
        cuts.released(began, &(0..4096));
        assert!(cuts.are_before(101, [].into_iter(), late + CUT_WITHIN * 2));
        assert!(!cuts.are_before(101, [].into_iter(), late + CUT_WITHIN * 3));
        // One that began later doesn't.
        cuts.told(100, 1, now);
        cuts.released(now + CUT_WITHIN, &(0..4096));
        assert!(!cuts.are_before(101, [(now + CUT_WITHIN, 0..4096)].into_iter(), now + CUT_WITHIN));
    }

    #[test]
    fn readers_of_other_pages_and_later_ones_hold_nobody_up() {
        let (mut cuts, now) = (Cuts::default(), Instant::now());
        cuts.told(100, 1, now);
        assert!(!cuts.are_before(101, [(now, 4096..8192)].into_iter(), now + CUT_WITHIN));
        // A READ held it up for a moment; that others follow it without a gap is no reason to wait for ever.
        cuts.told(100, 1, now);
        assert!(cuts.are_before(101, [(now, 0..4096)].into_iter(), now + CUT_WITHIN * 2));
        cuts.released(now, &(0..4096));
        let next = [(now + CUT_WITHIN * 2, 0..4096)].into_iter();
        assert!(cuts.are_before(101, next.clone(), now + CUT_WITHIN * 2));
        assert!(!cuts.are_before(101, next, now + CUT_WITHIN * 3));
    }

    #[test]
    fn a_thread_that_a_read_holds_up_for_long_is_not_forgotten() {
        let (mut cuts, now) = (Cuts::default(), Instant::now());
        cuts.told(100, 1, now);
        // Meanwhile its page is being read, and others are told the same.
        cuts.told(100, 2, now + CUT_WITHIN * 2);
        cuts.gone_on(2, now);
        cuts.released(now, &(0..4096));
        assert!(cuts.are_before(101, [].into_iter(), now + CUT_WITHIN * 3));
    }

    #[test]
    fn a_write_may_have_been_cut_off_by_other_threads() {
        let (mut cuts, now) = (Cuts::default(), Instant::now());
        cuts.told(100, 1, now);
        assert_eq!((cuts.since(now, 101, 1), cuts.since(now, 100, 2)), (None, None));
        assert_eq!(cuts.since(now, 101, 2), Some(100));
        cuts.gone_on(1, now);
        assert_eq!(cuts.since(now, 101, 2), Some(100));
        assert_eq!(cuts.since(now + CUT_WITHIN, 101, 2), None);
        // Of many the first ones' threads aren't known any more.
        for thread in 1..=CUTS_MAX as u32 {
            cuts.told(200, thread, now);
            cuts.gone_on(thread, now);
        }
        assert_eq!((cuts.since(now, 101, 1), cuts.ended.len()), (Some(100), CUTS_MAX));
    }

    #[test]
    fn a_bounded_number_is_told_apart_and_none_forgotten() {
        let (mut cuts, now) = (Cuts::default(), Instant::now());
        for thread in 1..100 {
            cuts.told(u64::from(thread), thread, now);
        }
        assert_eq!(cuts.all.len(), CUTS_MAX);
        assert!(cuts.are_before(2, [].into_iter(), now));
    }
}
