//! The slots of a session: each carries one mutation at a time, numbered in sequence. With an operation's slot
//! and sequence the service knows a repetition from a new one, however often either is sent.

use std::sync::Arc;

use atoll_core::ids::SlotId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Clone, Copy, Debug, Default)]
struct Last {
    /// Counts sessions; in a new one every slot begins anew.
    epoch: u64,
    sequence: u64,
}

#[derive(Debug)]
struct Table {
    free: Vec<SlotId>,
    last: Vec<Last>,
}

/// Slots 1 to N. (Slot 0 is the journal's.)
#[derive(Debug)]
pub struct Slots {
    table: Mutex<Table>,
    permits: Arc<Semaphore>,
}

impl Slots {
    /// `count` slots.
    #[must_use]
    pub fn new(count: u32) -> Arc<Self> {
        let table = Table {
            // Taken from the end: the lowest first.
            free: (1..=count).rev().map(SlotId).collect(),
            last: vec![Last::default(); count as usize + 1],
        };
        Arc::new(Slots { table: Mutex::new(table), permits: Arc::new(Semaphore::new(count as usize)) })
    }

    /// A predecessor of this process used the slot up to this number, in the session with this epoch. `is_lost`: what became
    /// of that operation will never be known, and nobody may use the slot again. Before anybody takes one.
    pub fn inherit(&self, id: SlotId, epoch: u64, sequence: u64, is_lost: bool) {
        let mut table = self.table.lock();
        if let Some(last) = table.last.get_mut(id.0 as usize) {
            *last = Last { epoch, sequence };
        }
        if is_lost && let Some(at) = table.free.iter().position(|free| *free == id) {
            table.free.swap_remove(at);
            self.permits.forget_permits(1);
        }
    }

    /// A slot that is not in use; waits while all are. `None` once the slots were closed.
    pub async fn take(self: &Arc<Self>) -> Option<Slot> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        let id = self.table.lock().free.pop()?;
        Some(Slot { slots: Arc::clone(self), id, permit: Some(permit) })
    }

    /// Nobody gets a slot any more.
    pub fn close(&self) {
        self.permits.close();
    }
}

/// A slot in use; dropping it lets the next operation have it.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    id: SlotId,
    permit: Option<OwnedSemaphorePermit>,
}

impl Slot {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// The sequence number of the next operation, in the session with this epoch.
    pub fn next(&self, epoch: u64) -> u64 {
        let mut table = self.slots.table.lock();
        let last = &mut table.last[self.id.0 as usize];
        if last.epoch != epoch {
            *last = Last { epoch, sequence: 0 };
        }
        last.sequence += 1;
        last.sequence
    }

    /// The service did not even look at the operation: its number is free again.
    pub fn take_back(&self, epoch: u64) {
        let mut table = self.slots.table.lock();
        let last = &mut table.last[self.id.0 as usize];
        if last.epoch == epoch {
            last.sequence = last.sequence.saturating_sub(1);
        }
    }

    /// What became of the slot's operation will never be known: nobody may use it again in this process.
    pub fn retire(mut self) {
        if let Some(permit) = self.permit.take() {
            permit.forget();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The permit goes after the slot is in the list, else who gets it finds the list empty.
        if self.permit.is_some() {
            self.slots.table.lock().free.push(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_counts_on_and_begins_anew_in_a_new_session() {
        let slots = Slots::new(2);
        let one = slots.take().await.unwrap();
        let two = slots.take().await.unwrap();
        assert_eq!((one.id(), two.id()), (SlotId(1), SlotId(2)));
        assert_eq!((one.next(1), one.next(1), two.next(1)), (1, 2, 1));
        drop(one);
        let again = slots.take().await.unwrap();
        assert_eq!(again.id(), SlotId(1));
        assert_eq!(again.next(1), 3);
        again.take_back(1);
        assert_eq!(again.next(1), 3);
        assert_eq!(again.next(2), 1);
        again.take_back(1);
        assert_eq!(again.next(2), 2);
    }

    #[tokio::test]
    async fn a_successor_counts_on() {
        let slots = Slots::new(3);
        slots.inherit(SlotId(1), 1, 7, false);
        slots.inherit(SlotId(2), 1, 9, true);
        slots.inherit(SlotId(4), 1, 9, true);
        let one = slots.take().await.unwrap();
        assert_eq!((one.id(), one.next(1)), (SlotId(1), 8));
        let three = slots.take().await.unwrap();
        assert_eq!((three.id(), three.next(1)), (SlotId(3), 1));
        assert_eq!(slots.permits.available_permits(), 0);
    }

    #[tokio::test]
    async fn who_finds_no_slot_waits_and_a_retired_one_never_comes_back() {
        let slots = Slots::new(2);
        let one = slots.take().await.unwrap();
        slots.take().await.unwrap().retire();
        let waiting = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.take().await.map(|slot| slot.id()) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(one);
        assert_eq!(waiting.await.unwrap(), Some(SlotId(1)));
        assert_eq!(slots.table.lock().free, [SlotId(1)]);
        slots.close();
        assert!(slots.take().await.is_none());
    }
}
