//! Who waits for which request's INTERRUPT. One cell per slot; the way of a request that is not interrupted takes no
//! lock that anybody else wants, and allocates nothing.
//!
//! With more than one reader, an INTERRUPT can be decoded before the request that it names: both were read, in
//! order, by different threads. Such an INTERRUPT is remembered for the next [`EARLY_MAX`] of its kind; one that
//! came after its request was answered is remembered just as well, and falls out of the list unused (numbers
//! are never given twice).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use atoll_client::vfs::Interrupt;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::abi::{UNIQUE_INTERRUPT, UNIQUE_RESEND};

/// INTERRUPTs that are remembered without their request. The oldest is dropped: its request then waits on.
const EARLY_MAX: usize = 256;

/// The name of a request, however often the kernel sends it.
pub(crate) fn base_unique(unique: u64) -> u64 {
    unique & !(UNIQUE_RESEND | UNIQUE_INTERRUPT)
}

/// All slots' cells.
pub(crate) struct Interrupts {
    cells: Box<[Cell]>,
    /// Slots from this one on were never used: the lowest free one is taken next, so looking through those before it is to look
    /// through as many requests as there were at the same time at most.
    used: AtomicU32,
    early: Mutex<VecDeque<u64>>,
    early_count: AtomicUsize,
}

#[derive(Default)]
struct Cell {
    /// The request that occupies the slot; 0 when it is free.
    unique: AtomicU64,
    /// Made when it is asked for first, and used again by the slot's next requests unless it fired.
    token: Mutex<Option<Token>>,
}

struct Token {
    interrupt: Interrupt,
    notify: Arc<Notify>,
    fired: bool,
}

impl Token {
    fn new() -> Token {
        let (interrupt, notify) = Interrupt::new();
        Token { interrupt, notify, fired: false }
    }
}

impl Interrupts {
    pub fn new(slots: u32) -> Interrupts {
        Interrupts {
            cells: (0..slots).map(|_| Cell::default()).collect(),
            used: AtomicU32::new(0),
            early: Mutex::default(),
            early_count: AtomicUsize::new(0),
        }
    }

    /// A request begins in a slot. To be called before it is handled.
    pub fn begin(&self, slot: u32, unique: u64) {
        let unique = base_unique(unique);
        let cell = &self.cells[slot as usize];
        // Sequentially consistent, here and in `interrupt`: of two threads that each write and then read what the other one
        // writes, at least one sees what the other wrote.
        if slot >= self.used.load(Ordering::Relaxed) {
            self.used.fetch_max(slot + 1, Ordering::SeqCst);
        }
        cell.unique.store(unique, Ordering::SeqCst);
        if self.early_count.load(Ordering::SeqCst) != 0 {
            let mut early = self.early.lock();
            if let Some(at) = early.iter().position(|remembered| *remembered == unique) {
                early.remove(at);
                self.early_count.store(early.len(), Ordering::SeqCst);
                drop(early);
                cell.fire(unique);
            }
        }
    }

    /// The slot's request is answered.
    pub fn end(&self, slot: u32) {
        let cell = &self.cells[slot as usize];
        cell.unique.store(0, Ordering::SeqCst);
        let mut token = cell.token.lock();
        // Somebody else still has it, or it fired: the slot's next request gets a fresh one.
        if token.as_ref().is_some_and(|token| token.fired || Arc::strong_count(&token.notify) != 2) {
            *token = None;
        }
    }

    /// What the slot's request waits on. Only the slot's holder may ask.
    pub fn token(&self, slot: u32) -> Interrupt {
        let mut token = self.cells[slot as usize].token.lock();
        token.get_or_insert_with(Token::new).interrupt.clone()
    }

    /// An INTERRUPT for request `unique` came.
    pub fn interrupt(&self, unique: u64) {
        let unique = base_unique(unique);
        if unique == 0 || self.fire(unique) {
            return;
        }
        {
            let mut early = self.early.lock();
            if early.len() >= EARLY_MAX {
                early.pop_front();
            }
            early.push_back(unique);
            self.early_count.store(early.len(), Ordering::SeqCst);
        }
        // The request may have begun after the search above and before it could see that something is remembered.
        self.fire(unique);
    }

    /// The slot that is busy with request `unique`, if any.
    pub fn slot_of(&self, unique: u64) -> Option<u32> {
        let unique = base_unique(unique);
        let slot = self.used().iter().position(|cell| cell.unique.load(Ordering::SeqCst) == unique)?;
        Some(slot as u32)
    }

    /// Slots that are busy with a request.
    pub fn under_way(&self) -> u32 {
        self.used().iter().filter(|cell| cell.unique.load(Ordering::Relaxed) != 0).count() as u32
    }

    /// The cells of all slots that were ever used.
    fn used(&self) -> &[Cell] {
        &self.cells[..self.used.load(Ordering::SeqCst) as usize]
    }

    fn fire(&self, unique: u64) -> bool {
        self.slot_of(unique).is_some_and(|slot| self.cells[slot as usize].fire(unique))
    }
}

impl Cell {
    /// Fires the token (which remembers it until it is waited for), unless the slot went to another request
    /// meanwhile: `end` changes the number first and then wants the lock, so it sees what was fired here.
    fn fire(&self, unique: u64) -> bool {
        let mut token = self.token.lock();
        if self.unique.load(Ordering::SeqCst) != unique {
            return false;
        }
        let token = token.get_or_insert_with(Token::new);
        token.fired = true;
        token.notify.notify_one();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn fired(interrupt: &Interrupt) -> bool {
        let waiting = pin!(interrupt.interrupted());
        matches!(waiting.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()))
    }

    #[test]
    fn an_interrupt_reaches_its_request_alone() {
        let interrupts = Interrupts::new(4);
        interrupts.begin(1, 10);
        interrupts.begin(2, 12);
        let (one, two) = (interrupts.token(1), interrupts.token(2));
        interrupts.interrupt(12);
        assert!(!fired(&one) && fired(&two));
    }

    #[test]
    fn an_interrupt_may_overtake_its_request() {
        let interrupts = Interrupts::new(4);
        interrupts.interrupt(10);
        interrupts.begin(0, 8);
        assert!(!fired(&interrupts.token(0)));
        interrupts.begin(1, 10);
        assert!(fired(&interrupts.token(1)));
        interrupts.end(1);
        interrupts.begin(1, 14);
        assert!(!fired(&interrupts.token(1)), "once only");
    }

    #[test]
    fn a_resent_request_is_still_the_same() {
        let interrupts = Interrupts::new(4);
        interrupts.begin(1, 10 | UNIQUE_RESEND);
        assert_eq!(interrupts.slot_of(10), Some(1));
        interrupts.interrupt(10 | UNIQUE_RESEND);
        assert!(fired(&interrupts.token(1)));
    }

    #[test]
    fn memory_of_early_interrupts_is_bounded() {
        let interrupts = Interrupts::new(1);
        for unique in 1..=EARLY_MAX as u64 + 10 {
            interrupts.interrupt(unique * 2);
        }
        assert_eq!(interrupts.early.lock().len(), EARLY_MAX);
        interrupts.begin(0, 2);
        assert!(!fired(&interrupts.token(0)), "the oldest is forgotten");
    }

    #[test]
    fn what_fired_unheard_does_not_reach_the_next_request() {
        let interrupts = Interrupts::new(1);
        interrupts.begin(0, 2);
        interrupts.interrupt(2);
        interrupts.end(0);
        interrupts.begin(0, 4);
        assert!(!fired(&interrupts.token(0)));
    }
}
