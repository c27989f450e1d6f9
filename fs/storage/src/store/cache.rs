//! Open replicas, at most so many.

use std::collections::HashMap;
use std::sync::Arc;

use atoll_core::ids::ChunkId;
use parking_lot::Mutex;

use super::OpenChunk;

/// The open replicas.
pub(super) struct Cache {
    slots: Mutex<Slots>,
    limit: usize,
}

#[derive(Default)]
struct Slots {
    open: HashMap<ChunkId, Slot>,
    /// Counts the uses; the slot with the lowest number was used longest ago.
    clock: u64,
}

struct Slot {
    chunk: Arc<OpenChunk>,
    used: u64,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { slots: Mutex::default(), limit }
    }

    pub(super) fn find(&self, id: ChunkId) -> Option<Arc<OpenChunk>> {
        let mut slots = self.slots.lock();
        slots.clock += 1;
        let clock = slots.clock;
        let slot = slots.open.get_mut(&id)?;
        slot.used = clock;
        Some(slot.chunk.clone())
    }

    /// Keeps a replica open, and closes the one that was used longest ago if there are too many. Only replicas that
    /// nobody is using are closed (so there may be more than the limit while all are in use), and sealed
    /// ones first: an open chunk that is written to again has to be read through. A suspect one is never closed:
    /// if its disk didn't take the note, this process is all that knows.
    pub(super) fn keep(&self, id: ChunkId, chunk: Arc<OpenChunk>) {
        let mut slots = self.slots.lock();
        slots.clock += 1;
        let used = slots.clock;
        slots.open.insert(id, Slot { chunk, used });
        while slots.open.len() > self.limit {
            let idle = slots.open.iter().filter(|(other, slot)| {
                **other != id && Arc::strong_count(&slot.chunk) == 1 && !slot.chunk.file.is_suspect()
            });
            let oldest =
                idle.min_by_key(|(_, slot)| (!slot.chunk.file.is_sealed(), slot.used)).map(|(id, _)| *id);
            let Some(oldest) = oldest else { break };
            slots.open.remove(&oldest);
        }
    }

    pub(super) fn forget(&self, id: ChunkId) {
        self.slots.lock().open.remove(&id);
    }

    pub(super) fn len(&self) -> usize {
        self.slots.lock().open.len()
    }

    /// All that are open now.
    pub(super) fn all(&self) -> Vec<Arc<OpenChunk>> {
        self.slots.lock().open.values().map(|slot| slot.chunk.clone()).collect()
    }
}
