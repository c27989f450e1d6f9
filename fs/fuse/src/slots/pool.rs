//! Which slots and buffers are free.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::RequestMemory;
use super::layout::Shares;

/// Slots that keep their pages when they are freed.
const RESIDENT_SLOTS: u32 = 128;
/// Buffers that keep their pages (1 MiB each) when they are freed: one for each reader and a few for WRITEs.
const RESIDENT_BUFFERS: u32 = 4;
/// How long a reader waits for a request to give its buffer back, at most, and since the last one did before it came:
/// while requests are answered, readers that wait slow down who writes faster than the cluster takes it. They must read on
/// when none is, and also when others get each buffer that comes back.
const KEEP_TIMEOUT: Duration = Duration::from_millis(100);

/// Why a request keeps a buffer; each kind has its share ([`Shares`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// An application waits for its WRITE.
    Waiting,
    /// The same of a WRITE that appends.
    Append,
    /// An application waits for something else.
    Other,
    /// The kernel writes pages back.
    WriteBack,
}

/// The free list. Numbers are given out lowest first, so that few pages are ever touched.
pub(crate) struct Pool {
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    slots: Bitmap,
    buffers: Bitmap,
    /// Buffers whose pages are there.
    populated: Vec<bool>,
    shares: Shares,
    /// Buffers that requests keep, of each share.
    kept: Shares,
    /// When a share became full or got a buffer back.
    progress: Instant,
    closed: bool,
}

impl State {
    /// What is kept of a share, and how much may be.
    fn share(&mut self, keep: Keep) -> (&mut u32, u32) {
        match keep {
            Keep::Waiting => (&mut self.kept.waiting, self.shares.waiting),
            Keep::Append => (&mut self.kept.append, self.shares.append),
            Keep::Other => (&mut self.kept.other, self.shares.other),
            Keep::WriteBack => (&mut self.kept.write_back, self.shares.write_back),
        }
    }
}

impl Pool {
    /// All free, for so many readers.
    pub fn new(memory: &RequestMemory, readers: u32) -> Pool {
        let layout = memory.layout();
        Pool {
            state: Mutex::new(State {
                slots: Bitmap::all_free(layout.slots),
                buffers: Bitmap::all_free(layout.buffers),
                populated: vec![false; layout.buffers as usize],
                shares: layout.shares(readers),
                kept: Shares { waiting: 0, append: 0, other: 0, write_back: 0 },
                progress: Instant::now(),
                closed: false,
            }),
            freed: Condvar::new(),
        }
    }

    /// Takes a slot, waiting for one; `None` once the pool is closed.
    pub fn take_slot(&self) -> Option<u32> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            match state.slots.take_lowest() {
                Some(slot) => return Some(slot),
                None => self.freed.wait(&mut state),
            }
        }
    }

    /// Takes a buffer with all its pages, to read into; `None` once the pool is closed. There is one for each reader,
    /// whatever requests keep; it is waited for only while one is on its way back.
    pub fn take_buffer(&self, memory: &RequestMemory) -> Option<u32> {
        let mut state = self.state.lock();
        let buffer = loop {
            if state.closed {
                return None;
            }
            match state.buffers.take_lowest() {
                Some(buffer) => break buffer,
                None => self.freed.wait(&mut state),
            }
        };
        let populated = std::mem::replace(&mut state.populated[buffer as usize], true);
        drop(state);
        if !populated {
            memory.populate_buffer(buffer);
        }
        Some(buffer)
    }

    /// Takes this very slot, which a predecessor left unanswered. False if it is taken already.
    pub fn take_this_slot(&self, slot: u32) -> bool {
        self.state.lock().slots.take(slot)
    }

    /// Takes this very buffer for a request to keep, whether its share has room or not. False if it is taken already.
    pub fn take_this_buffer(&self, buffer: u32, keep: Keep) -> bool {
        let mut state = self.state.lock();
        let free = state.buffers.take(buffer);
        *state.share(keep).0 += u32::from(free);
        free
    }

    /// Whether more is kept of a share than may be: what a predecessor's readers had just read counts too.
    pub fn exceeds(&self, keep: Keep) -> bool {
        let mut state = self.state.lock();
        let (kept, max) = state.share(keep);
        *kept > max
    }

    /// The request that a reader has just read is to keep its buffer. False if its share has no room and none of it
    /// is given back in time. What the kernel writes back is waited for: its share is as large as what is sent.
    pub fn keep(&self, keep: Keep) -> bool {
        let arrived = Instant::now();
        let mut state = self.state.lock();
        loop {
            let (kept, max) = state.share(keep);
            if *kept < max {
                *kept += 1;
                if *kept == max {
                    state.progress = Instant::now();
                }
                return true;
            }
            if keep == Keep::WriteBack && !state.closed {
                self.freed.wait(&mut state);
                continue;
            }
            let deadline = reads_on_at(arrived, state.progress);
            if state.closed || Instant::now() >= deadline {
                return false;
            }
            self.freed.wait_until(&mut state, deadline);
        }
    }

    /// The request of `len` bytes that keeps a buffer needs no more of it.
    pub fn drop_rest(&self, memory: &RequestMemory, buffer: u32, len: usize) {
        memory.drop_buffer_pages_behind(buffer, len);
        self.state.lock().populated[buffer as usize] = false;
    }

    /// A request gives the buffer back that it kept.
    pub fn give_back(&self, memory: &RequestMemory, buffer: u32, keep: Keep) {
        {
            let mut state = self.state.lock();
            *state.share(keep).0 -= 1;
            state.progress = Instant::now();
        }
        self.free_buffer(memory, buffer);
    }

    /// Frees a slot. Its request has been answered and its mark cleared.
    pub fn free_slot(&self, memory: &RequestMemory, slot: u32) {
        if slot >= RESIDENT_SLOTS {
            memory.drop_slot_pages(slot);
        }
        self.state.lock().slots.free(slot);
        self.freed.notify_all();
    }

    /// Frees a reader's buffer.
    pub fn free_buffer(&self, memory: &RequestMemory, buffer: u32) {
        let resident = buffer < RESIDENT_BUFFERS;
        if !resident {
            memory.drop_buffer_pages(buffer);
        }
        let mut state = self.state.lock();
        state.populated[buffer as usize] &= resident;
        state.buffers.free(buffer);
        drop(state);
        // Readers may be waiting for a slot or for a buffer: one who waits for the other would swallow the call.
        self.freed.notify_all();
    }

    /// Whether at most half of a share is kept, so that some may be lent beyond their request's reply.
    pub fn may_lend(&self, keep: Keep) -> bool {
        let mut state = self.state.lock();
        let (kept, max) = state.share(keep);
        *kept * 2 <= max
    }

    /// Requests that hold a slot now.
    pub fn slots_taken(&self) -> u32 {
        let state = self.state.lock();
        state.slots.count - state.slots.free
    }

    /// Buffers that are taken now.
    #[cfg(test)]
    pub fn buffers_taken(&self) -> u32 {
        let state = self.state.lock();
        state.buffers.count - state.buffers.free
    }

    /// Wakes all who wait, with nothing.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.freed.notify_all();
    }
}

/// When a reader stops waiting for a buffer, whose request arrived at this moment; `progress`: the last time when one was
/// given back.
fn reads_on_at(arrived: Instant, progress: Instant) -> Instant {
    arrived.min(progress) + KEEP_TIMEOUT
}

/// A set of numbers; a set bit is free.
struct Bitmap {
    words: Vec<u64>,
    count: u32,
    free: u32,
    /// No word before this one has a free bit.
    hint: usize,
}

impl Bitmap {
    fn all_free(count: u32) -> Bitmap {
        let mut words = vec![u64::MAX; count.div_ceil(64) as usize];
        if let (Some(last), rest @ 1..) = (words.last_mut(), count % 64) {
            *last = (1 << rest) - 1;
        }
        Bitmap { words, count, free: count, hint: 0 }
    }

    fn take_lowest(&mut self) -> Option<u32> {
        for at in self.hint..self.words.len() {
            if self.words[at] != 0 {
                let bit = self.words[at].trailing_zeros();
                self.words[at] &= self.words[at] - 1;
                self.hint = at;
                self.free -= 1;
                return Some(at as u32 * 64 + bit);
            }
        }
        self.hint = self.words.len();
        None
    }

    fn take(&mut self, number: u32) -> bool {
        let (at, bit) = (number as usize / 64, 1u64 << (number % 64));
        let free = self.words[at] & bit != 0;
        self.words[at] &= !bit;
        self.free -= u32::from(free);
        free
    }

    fn free(&mut self, number: u32) {
        let (at, bit) = (number as usize / 64, 1u64 << (number % 64));
        assert!(number < self.count && self.words[at] & bit == 0, "freed twice, or never allocated");
        self.words[at] |= bit;
        self.hint = self.hint.min(at);
        self.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_waits_for_a_buffer_no_longer_however_many_are_given_back_to_others() {
        let arrived = Instant::now();
        let at = |millis| arrived + Duration::from_millis(millis);
        for millis in [0, 1, 99, 100, 5000] {
            assert_eq!(reads_on_at(arrived, at(millis)), arrived + KEEP_TIMEOUT);
        }
        let stalled = arrived - KEEP_TIMEOUT;
        assert_eq!(
            reads_on_at(arrived, stalled),
            arrived,
            "who comes when nothing has moved for long reads on"
        );
    }

    #[test]
    fn a_bitmap_gives_the_lowest_number_and_never_one_twice() {
        let mut bitmap = Bitmap::all_free(70);
        let all: Vec<u32> = std::iter::from_fn(|| bitmap.take_lowest()).collect();
        assert_eq!(all, (0..70).collect::<Vec<_>>());
        bitmap.free(68);
        bitmap.free(3);
        assert_eq!(bitmap.take_lowest(), Some(3));
        assert_eq!(bitmap.take_lowest(), Some(68));
        assert_eq!(bitmap.take_lowest(), None);
        bitmap.free(65);
        assert!(bitmap.take(65));
        assert!(!bitmap.take(65));
        assert_eq!(bitmap.free, 0);
    }
}
