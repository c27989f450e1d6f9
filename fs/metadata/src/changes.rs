//! What apply has just written that background work has to look at.
//!
//! The records themselves are the truth and are scanned once when a member comes to lead; from then on the
//! workers are told the keys, so that looking for work costs nothing where there is none.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use atoll_core::ids::ServerId;
use atoll_core::keys;
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::records::{ChunkRecord, Record};
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::lock::Mutex;
use crate::store::records::Written;

/// Keys of one kind that wait in memory; beyond it they are scanned for.
const KEYS_MAX: usize = 16_384;
/// Keys that one scan brings.
const SCAN_KEYS_MAX: usize = 4096;

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Work {
    /// Inodes without a name.
    Orphans = 0,
    /// Inodes with pending truncations.
    Truncations = 1,
    /// Segments with inline pieces to be moved.
    Migrations = 2,
    /// Sealed chunks with blocks that are neither in use nor recorded as dead.
    Sweeps = 3,
    /// Sealed chunks of which little is in use.
    Compactions = 4,
    /// Sealed chunks with fewer replicas than wanted, by their own records.
    Repairs = 5,
}

impl Work {
    const ALL: [Work; 6] =
        [Work::Orphans, Work::Truncations, Work::Migrations, Work::Sweeps, Work::Compactions, Work::Repairs];
    /// Those that are found among the chunks: one scan looks for all of them.
    const OF_CHUNKS: [Work; 3] = [Work::Sweeps, Work::Compactions, Work::Repairs];

    /// Those that a scan for this one can look for, too.
    fn family(self) -> &'static [Work] {
        match self {
            Work::Orphans => &[Work::Orphans],
            Work::Truncations => &[Work::Truncations],
            Work::Migrations => &[Work::Migrations],
            Work::Sweeps | Work::Compactions | Work::Repairs => &Work::OF_CHUNKS,
        }
    }

    /// The range of keys in the system family where such work is found.
    fn range(self) -> Vec<u8> {
        match self {
            Work::Orphans => keys::orphans(),
            Work::Truncations => keys::truncations(),
            Work::Migrations => keys::migrations(),
            Work::Sweeps | Work::Compactions | Work::Repairs => keys::chunks(),
        }
    }

    /// Whether a record of that range is such work.
    fn wants(self, value: &[u8]) -> bool {
        match self {
            Work::Orphans | Work::Truncations | Work::Migrations => true,
            Work::Sweeps => ChunkRecord::decode(value).is_ok_and(|chunk| needs_sweep(&chunk)),
            Work::Compactions => ChunkRecord::decode(value).is_ok_and(|chunk| is_mostly_dead(&chunk)),
            Work::Repairs => ChunkRecord::decode(value).is_ok_and(|chunk| is_short(&chunk)),
        }
    }
}

/// A sealed chunk has fewer replicas than wanted, wherever these are.
#[must_use]
pub fn is_short(chunk: &ChunkRecord) -> bool {
    chunk.sealed && chunk.replicas.len() < usize::from(chunk.copies)
}

/// A sealed chunk has committed blocks that no extent refers to and nobody recorded as dead.
#[must_use]
pub fn needs_sweep(chunk: &ChunkRecord) -> bool {
    let sealed = chunk.sealed || atoll_faults::planted("seal-ignored");
    sealed && chunk.live_blocks + chunk.dead_blocks < chunk.committed.div_ceil(BLOCK_BYTES)
}

/// Less than half of a sealed chunk is in use, and it was filled enough for that to matter.
#[must_use]
pub fn is_mostly_dead(chunk: &ChunkRecord) -> bool {
    let blocks = chunk.committed.div_ceil(BLOCK_BYTES);
    chunk.sealed && !needs_sweep(chunk) && chunk.live_blocks > 0 && chunk.live_blocks * 2 < blocks
}

#[derive(Default)]
struct Queue {
    keys: BTreeSet<Vec<u8>>,
    /// Those that a worker is at, see [`Taken`].
    taken: BTreeSet<Vec<u8>>,
    /// Not all keys are in memory: those after this one are to be scanned for.
    scan_after: Option<Vec<u8>>,
    /// Those from this one on are being scanned for: what is found is in `keys` only when the scan has ended.
    scanning: Option<Vec<u8>>,
}

impl Queue {
    /// Whether a scan may still bring something.
    fn may_find_more(&self) -> bool {
        self.scan_after.is_some() || self.scanning.is_some()
    }

    /// Whether a scan may still bring this key.
    fn may_find(&self, key: &[u8]) -> bool {
        [&self.scan_after, &self.scanning].into_iter().flatten().any(|after| after.as_slice() <= key)
    }
}

/// The way from apply to the leader that this member is, if it is one: nobody collects anything otherwise.
#[derive(Default)]
pub struct ChangeFeed(Mutex<Option<Arc<Changes>>>);

impl ChangeFeed {
    /// What is written from now on is told to these, and to no earlier leader's. What was written before they scan for.
    pub fn begin(&self, changes: Arc<Changes>) {
        *self.0.lock() = Some(changes);
    }

    /// This member doesn't lead any more.
    pub fn end(&self) {
        *self.0.lock() = None;
    }

    /// Told by apply what it has written. Not what it is about to write: who looks at a key whose record isn't there
    /// yet takes it for done with, and nobody comes back to it.
    pub fn note(&self, written: &Written<'_>) {
        let changes = self.0.lock().clone();
        if let Some(changes) = changes {
            changes.note(written);
        }
    }
}

/// The keys that wait, by kind of work, of the leader of one term.
pub struct Changes {
    queues: Mutex<[Queue; Work::ALL.len()]>,
    /// Who waits for one kind of work isn't woken by others.
    wake: [Notify; Work::ALL.len()],
    orders: Mutex<Orders>,
}

/// Storage servers for which orders may be recorded.
#[derive(Default)]
struct Orders {
    /// Those for which some were written since they were looked for.
    written: BTreeSet<ServerId>,
    /// Those for which they were looked for under this leader.
    known: BTreeSet<ServerId>,
}

impl Default for Changes {
    /// Of a leader that has only just begun: all work there is has to be found.
    fn default() -> Changes {
        let queues = Work::ALL.map(|work| Queue { scan_after: Some(work.range()), ..Queue::default() });
        Changes { queues: Mutex::new(queues), wake: Default::default(), orders: Mutex::default() }
    }
}

impl Changes {
    fn note(&self, written: &Written<'_>) {
        let mut queues = self.queues.lock();
        let mut woke = [false; Work::ALL.len()];
        for (family, key, value) in written.writes() {
            let (Family::System, Some(value)) = (family, value) else { continue };
            let works: &[Work] = match key.first() {
                Some(b'o') => &[Work::Orphans],
                Some(b't') => &[Work::Truncations],
                Some(b'i') => &[Work::Migrations],
                Some(b'c') => &Work::OF_CHUNKS,
                Some(b'q') => {
                    self.orders.lock().written.extend(keys::first_number(key).map(ServerId));
                    continue;
                }
                _ => continue,
            };
            for work in works {
                let is_busy = !queues[*work as usize].taken.is_empty();
                if is_busy && *work == Work::Orphans && atoll_faults::planted("orphan-forgotten") {
                    continue;
                }
                if work.wants(value) {
                    insert(&mut queues[*work as usize], *work, key);
                    woke[*work as usize] = true;
                }
            }
        }
        drop(queues);
        for (wake, woke) in self.wake.iter().zip(woke) {
            if woke {
                wake.notify_waiters();
            }
        }
    }

    fn wake(&self, work: Work) {
        self.wake[work as usize].notify_waiters();
    }

    /// Whether orders for this server may be recorded. The caller looks, and says when it has found
    /// [some](Self::has_orders).
    pub fn may_have_orders(&self, server: ServerId) -> bool {
        let mut orders = self.orders.lock();
        let was_written = orders.written.remove(&server);
        orders.known.insert(server) || was_written
    }

    /// There are orders for this server: they are to be looked at again.
    pub fn has_orders(&self, server: ServerId) {
        self.orders.lock().written.insert(server);
    }

    /// Puts a key back that has to be looked at again.
    pub fn again(&self, work: Work, key: &[u8]) {
        insert(&mut self.queues.lock()[work as usize], work, key);
        self.wake(work);
    }

    /// Has the records scanned again for such work: some was put aside that may be done now.
    pub fn look_again(&self, work: Work) {
        self.queues.lock()[work as usize].scan_after = Some(work.range());
        self.wake(work);
    }

    /// Up to `limit` keys of work, for a worker to be at.
    ///
    /// # Errors
    /// If the store fails.
    pub fn take(self: &Arc<Self>, work: Work, limit: usize, from: &dyn Read) -> Result<Taken, StoreError> {
        let mut taken = Taken { changes: Arc::clone(self), work, keys: Vec::new() };
        let start = {
            let mut queues = self.queues.lock();
            let queue = &mut queues[work as usize];
            let start = match queue.keys.is_empty() && queue.scanning.is_none() {
                true => queue.scan_after.take(),
                false => None,
            };
            start.map(|start| {
                // Whoever is to be scanned for from the same place on, as all are when a leader begins, is found with it.
                let mut works = vec![work];
                for other in work.family() {
                    let queue = &mut queues[*other as usize];
                    let has_room = queue.keys.len() + SCAN_KEYS_MAX <= KEYS_MAX;
                    if *other != work && has_room && queue.scan_after.as_ref() == Some(&start) {
                        queue.scan_after = None;
                        works.push(*other);
                    }
                }
                for work in &works {
                    queues[*work as usize].scanning = Some(start.clone());
                }
                (works, start)
            })
        };
        if let Some((works, start)) = start
            && let Err(error) = self.scan(&works, &start, from)
        {
            for work in works {
                {
                    let queue = &mut self.queues.lock()[work as usize];
                    (queue.scan_after, queue.scanning) = (Some(work.range()), None);
                }
                self.wake(work);
            }
            return Err(error);
        }
        let queue = &mut self.queues.lock()[work as usize];
        while taken.keys.len() < limit
            && let Some(key) = queue.keys.pop_first()
        {
            queue.taken.insert(key.clone());
            taken.keys.push(key);
        }
        Ok(taken)
    }

    /// Scans a while for several kinds of work in the same range.
    fn scan(&self, works: &[Work], start: &[u8], from: &dyn Read) -> Result<(), StoreError> {
        let mut found = vec![Vec::new(); works.len()];
        let mut seen = 0;
        let mut next: Option<Vec<u8>> = None;
        let Some(first) = works.first() else { return Ok(()) };
        from.scan(Family::System, start, &prefix_end(&first.range()), &mut |key, value| {
            if seen == SCAN_KEYS_MAX {
                next = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            seen += 1;
            for (work, found) in works.iter().zip(&mut found) {
                if work.wants(value) {
                    found.push(key.to_vec());
                }
            }
            ControlFlow::Continue(())
        })?;
        let mut queues = self.queues.lock();
        for (work, found) in works.iter().zip(found) {
            let queue = &mut queues[*work as usize];
            queue.scanning = None;
            queue.keys.extend(found);
            // A note that found no room meanwhile wants a scan from the start, which covers this one's rest.
            if queue.scan_after.is_none() {
                queue.scan_after = next.clone();
            }
        }
        drop(queues);
        for work in works {
            self.wake(*work);
        }
        Ok(())
    }

    fn settle(&self, work: Work, keys: &[Vec<u8>]) {
        let queue = &mut self.queues.lock()[work as usize];
        for key in keys {
            queue.taken.remove(key);
        }
    }

    /// Whether there is, or may be, such work that nobody is at.
    #[must_use]
    pub fn has(&self, work: Work) -> bool {
        let queue = &self.queues.lock()[work as usize];
        !queue.keys.is_empty() || queue.may_find_more()
    }

    /// Whether there is, or may be, such work, or a worker is at some.
    #[must_use]
    pub fn is_pending(&self, work: Work) -> bool {
        let queue = &self.queues.lock()[work as usize];
        !queue.keys.is_empty() || !queue.taken.is_empty() || queue.may_find_more()
    }

    /// Whether this key waits, may be found by a scan that is due, or is one that a worker is at.
    #[must_use]
    pub fn knows(&self, work: Work, key: &[u8]) -> bool {
        let queue = &self.queues.lock()[work as usize];
        queue.may_find(key) || queue.keys.contains(key) || queue.taken.contains(key)
    }

    /// Keys that wait in memory.
    #[must_use]
    pub fn waiting(&self, work: Work) -> usize {
        self.queues.lock()[work as usize].keys.len()
    }

    /// Is done when there may be new work of this kind since it was asked for.
    pub fn woken(&self, work: Work) -> Notified<'_> {
        self.wake[work as usize].notified()
    }
}

/// Keys that a worker is at. Those that it isn't [`done`](Self::done) with when it drops this wait again: what is given
/// up halfway isn't forgotten.
pub struct Taken {
    changes: Arc<Changes>,
    work: Work,
    keys: Vec<Vec<u8>>,
}

impl Taken {
    /// The keys, in order.
    #[must_use]
    pub fn keys(&self) -> &[Vec<u8>] {
        &self.keys
    }

    /// There is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// All is done but for the keys that `left` says yes to, which wait again.
    pub fn done_but(mut self, mut left: impl FnMut(&[u8]) -> bool) {
        let (left, done) = std::mem::take(&mut self.keys).into_iter().partition(|key| left(key));
        self.keys = left;
        self.changes.settle(self.work, &done);
    }

    /// All is done, or somebody else sees to it from here on.
    pub fn done(mut self) -> Vec<Vec<u8>> {
        let keys = std::mem::take(&mut self.keys);
        self.changes.settle(self.work, &keys);
        keys
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        {
            let queue = &mut self.changes.queues.lock()[self.work as usize];
            for key in &self.keys {
                queue.taken.remove(key);
                insert(queue, self.work, key);
            }
        }
        self.changes.wake(self.work);
    }
}

fn insert(queue: &mut Queue, work: Work, key: &[u8]) {
    if queue.keys.len() < KEYS_MAX {
        queue.keys.insert(key.to_vec());
    } else {
        queue.scan_after = Some(work.range());
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::ids::{ChunkId, Generation, InodeId, SessionId};
    use atoll_core::records::ChunkKind;
    use atoll_core::store::{MemStore, Write};

    use super::*;

    fn orphan(number: u64) -> Write {
        (Family::System, keys::orphan(InodeId(number)), Some(vec![1]))
    }

    fn key(number: u64) -> Vec<u8> {
        keys::orphan(InodeId(number))
    }

    fn note(changes: &Changes, writes: &[Write]) {
        changes.note(&Written::for_tests(writes));
    }

    /// Of a member that leads, once all that was there has been looked at.
    fn leading(store: &MemStore) -> Arc<Changes> {
        let changes = Arc::new(Changes::default());
        while changes.has(Work::Orphans) {
            changes.take(Work::Orphans, 1, store).unwrap().done();
        }
        changes
    }

    #[test]
    fn a_new_leader_finds_what_is_there_and_is_told_what_comes() {
        let mut store = MemStore::default();
        store.write((0..5000).map(orphan));
        let changes = Arc::new(Changes::default());
        assert!(changes.knows(Work::Orphans, &key(4999)), "it is scanned for");
        let mut found = BTreeSet::new();
        while changes.has(Work::Orphans) {
            found.extend(changes.take(Work::Orphans, 1000, &store).unwrap().done());
        }
        assert_eq!(found.len(), 5000);
        note(&changes, &[orphan(7), orphan(7), (Family::System, key(8), None)]);
        assert_eq!(changes.take(Work::Orphans, 10, &store).unwrap().done(), [key(7)]);
        assert!(!changes.has(Work::Orphans));
    }

    #[test]
    fn more_than_fits_is_scanned_for_later() {
        let mut store = MemStore::default();
        let changes = leading(&store);
        let count = KEYS_MAX as u64 + 100;
        let writes: Vec<Write> = (0..count).map(orphan).collect();
        store.write(writes.clone());
        note(&changes, &writes);
        let mut found = BTreeSet::new();
        while changes.has(Work::Orphans) {
            let keys = changes.take(Work::Orphans, 500, &store).unwrap().done();
            store.write(keys.iter().map(|key| (Family::System, key.clone(), None)));
            found.extend(keys);
        }
        assert_eq!(found.len() as u64, count);
    }

    #[test]
    fn what_a_worker_gives_up_halfway_waits_again() {
        let store = MemStore::default();
        let changes = leading(&store);
        note(&changes, &[orphan(1), orphan(2), orphan(3)]);
        let taken = changes.take(Work::Orphans, 10, &store).unwrap();
        assert!(!changes.has(Work::Orphans) && changes.knows(Work::Orphans, &key(2)));
        assert!(changes.is_pending(Work::Orphans));
        drop(taken);
        let taken = changes.take(Work::Orphans, 10, &store).unwrap();
        assert_eq!(taken.keys().len(), 3);
        taken.done_but(|left| left == key(2));
        assert_eq!(changes.take(Work::Orphans, 10, &store).unwrap().done(), [key(2)]);
        assert!(!changes.is_pending(Work::Orphans) && !changes.knows(Work::Orphans, &key(2)));
    }

    #[test]
    fn a_leader_is_told_what_is_written_in_its_term_and_what_it_leaves_the_next_one_finds() {
        let mut store = MemStore::default();
        let feed = ChangeFeed::default();
        let write = |orphan: Write| feed.note(&Written::for_tests(&[orphan]));
        write(orphan(1));
        let first = leading(&store);
        feed.begin(first.clone());
        store.write([orphan(2)]);
        write(orphan(2));
        let taken = first.take(Work::Orphans, 10, &store).unwrap();
        assert_eq!(taken.keys(), [key(2)]);
        feed.end();
        write(orphan(3));
        let second = leading(&MemStore::default());
        feed.begin(second.clone());
        write(orphan(4));
        // What is left of the earlier term goes where it came from.
        drop(taken);
        assert_eq!(first.take(Work::Orphans, 10, &store).unwrap().done(), [key(2)]);
        assert_eq!(second.take(Work::Orphans, 10, &store).unwrap().done(), [key(4)]);
        assert_eq!(Arc::new(Changes::default()).take(Work::Orphans, 10, &store).unwrap().done(), [key(2)]);
    }

    /// A store that counts the records that are looked at.
    struct Counted {
        store: MemStore,
        seen: std::cell::Cell<usize>,
    }

    impl Read for Counted {
        fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.store.get(family, key)
        }

        fn scan(
            &self,
            family: Family,
            start: &[u8],
            end: &[u8],
            visit: &mut atoll_core::store::Visit<'_>,
        ) -> Result<(), StoreError> {
            self.store.scan(family, start, end, &mut |key, value| {
                self.seen.set(self.seen.get() + 1);
                visit(key, value)
            })
        }
    }

    fn chunk(number: u64, sealed: bool, replicas: u64, live: u64) -> Write {
        let record = ChunkRecord {
            generation: Generation(1),
            writer: SessionId(1),
            incarnation: 1,
            replicas: (1..=replicas).map(ServerId).collect(),
            copies: 3,
            kind: ChunkKind::Stream,
            capacity: 64 << 20,
            committed: 8 * BLOCK_BYTES,
            sealed,
            live_blocks: live,
            dead_blocks: 8 - live,
        };
        (Family::System, keys::chunk(ChunkId(number)), Some(record.encode()))
    }

    #[test]
    fn a_new_leader_looks_at_each_chunk_once_for_all_that_there_is_to_do_to_it() {
        let mut store = MemStore::default();
        let chunks = 2 * SCAN_KEYS_MAX as u64 + 10;
        store.write((0..chunks).map(|number| chunk(number, true, 3, 8)));
        store.write([chunk(1, true, 2, 8), chunk(5000, true, 3, 2), chunk(chunks, false, 1, 8)]);
        let store = Counted { store, seen: Default::default() };
        let changes = Arc::new(Changes::default());
        let mut found = Vec::new();
        for work in [Work::Compactions, Work::Sweeps, Work::Repairs] {
            while changes.has(work) {
                found.extend(
                    changes.take(work, 10, &store).unwrap().done().into_iter().map(|key| (work, key)),
                );
            }
        }
        let key = |number| keys::chunk(ChunkId(number));
        assert_eq!(found, [(Work::Compactions, key(5000)), (Work::Repairs, key(1))]);
        // The last of a step is looked at again with the next one.
        assert_eq!(store.seen.get(), chunks as usize + 1 + 2);
    }

    #[test]
    fn a_chunk_that_is_short_of_replicas_is_named() {
        let store = MemStore::default();
        let changes = Arc::new(Changes::default());
        while changes.has(Work::Repairs) {
            changes.take(Work::Repairs, 1, &store).unwrap().done();
        }
        note(&changes, &[chunk(1, true, 3, 8), chunk(2, true, 1, 8), chunk(3, false, 1, 8)]);
        assert_eq!(changes.take(Work::Repairs, 10, &store).unwrap().done(), [keys::chunk(ChunkId(2))]);
        assert!(!changes.has(Work::Repairs));
    }

    #[test]
    fn orders_are_looked_for_once_and_after_each_that_was_written() {
        let changes = Changes::default();
        let (one, two) = (ServerId(1), ServerId(2));
        assert!(changes.may_have_orders(one) && changes.may_have_orders(two), "of the terms before");
        assert!(!changes.may_have_orders(one) && !changes.may_have_orders(two));
        note(&changes, &[(Family::System, keys::task(two, ChunkId(7)), Some(vec![1]))]);
        assert!(!changes.may_have_orders(one) && changes.may_have_orders(two));
        assert!(!changes.may_have_orders(two));
        changes.has_orders(two);
        assert!(changes.may_have_orders(two));
        note(&changes, &[(Family::System, keys::task(two, ChunkId(7)), None)]);
        assert!(!changes.may_have_orders(two), "it was carried out");
    }

    /// A store in which somebody asks for the work while it is scanned.
    struct Watched<'a> {
        store: MemStore,
        changes: &'a Changes,
    }

    impl Read for Watched<'_> {
        fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.store.get(family, key)
        }

        fn scan(
            &self,
            family: Family,
            start: &[u8],
            end: &[u8],
            visit: &mut atoll_core::store::Visit<'_>,
        ) -> Result<(), StoreError> {
            assert!(self.changes.has(Work::Orphans));
            assert!(self.changes.is_pending(Work::Orphans));
            assert!(self.changes.knows(Work::Orphans, &key(1)));
            self.store.scan(family, start, end, visit)
        }
    }

    #[test]
    fn what_is_being_scanned_for_is_pending() {
        let mut store = MemStore::default();
        store.write([orphan(1)]);
        let changes = Arc::new(Changes::default());
        let store = Watched { store, changes: &changes };
        let found = changes.take(Work::Orphans, 10, &store).unwrap();
        assert_eq!(found.done(), [key(1)]);
        assert!(!changes.has(Work::Orphans) && !changes.is_pending(Work::Orphans));
        assert!(!changes.knows(Work::Orphans, &key(1)));
    }

    /// A store that fails once.
    struct Failing;

    impl Read for Failing {
        fn get(&self, _: Family, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Err(StoreError::Backend("no".into()))
        }

        fn scan(
            &self,
            _: Family,
            _: &[u8],
            _: &[u8],
            _: &mut atoll_core::store::Visit<'_>,
        ) -> Result<(), StoreError> {
            Err(StoreError::Backend("no".into()))
        }
    }

    #[test]
    fn a_scan_that_failed_is_made_again() {
        let changes = Arc::new(Changes::default());
        assert!(changes.take(Work::Orphans, 10, &Failing).is_err());
        assert!(changes.has(Work::Orphans));
    }
}
