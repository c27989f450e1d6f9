//! The arena: what this process has taken responsibility for and the cluster does not have yet. Written data
//! that is not committed, and each mutation from before it is sent until its outcome is known, lie in one
//! memfd that another process can hold and a successor can adopt, so that the death of the process alone
//! loses nothing.

pub mod allocator;
mod journal;
pub mod layout;
pub mod memory;
mod survives;

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use atoll_core::attributes::{KillPriv, Timestamp};
use atoll_core::ids::{InodeId, SessionId, SlotId};
use atoll_proto::checksum::Sums;
use parking_lot::Mutex;
use tokio::sync::Notify;

use allocator::Allocator;
pub use journal::JournalRecord;
use journal::Ring;
pub(crate) use layout::packed_time;
use layout::{HEADER_BYTES, Layout, NOTED, PAGE_BYTES, PAIR_BYTES, RECORD_BYTES, Record, State, UNIT_BYTES};
use memory::Memory;
pub use survives::{HandleRecord, HandleRoom, Origin, OutcomeRecord, OutcomeRoom, SessionRecord};
use survives::{HandleRooms, OutcomeRooms};

/// Bytes of buffered data when nothing else is said. What is beyond waits.
pub const ARENA_BYTES_DEFAULT: u64 = 64 << 20;
/// The largest data area (bytes).
pub const ARENA_BYTES_MAX: u64 = 16 << 30;
/// Bytes of one data block at most.
pub const DATA_BLOCK_BYTES_MAX: usize = 1 << 20;
/// Operation slots of an arena when nothing else is said (slot 0 among them).
pub const OP_SLOTS_DEFAULT: u32 = 65;
/// Bytes of one encoded command: as much inline data as a commit may carry, and its description.
pub const OP_BYTES_MAX: usize = (1 << 20) + (256 << 10);
/// Memory of freed data blocks that is kept for the next ones (bytes); what is beyond is given back at once,
/// the rest by [`Arena::trim`] when nobody writes much. As much as a busy arena has: giving memory back and
/// taking it anew costs twice as much as all else that a written byte costs here.
pub const IDLE_BYTES_MAX: usize = 64 << 20;

/// How large an arena is.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Operation slots, slot 0 among them.
    pub op_slots: u32,
    /// Bytes of the data area.
    pub data_bytes: u64,
}

impl Default for ArenaConfig {
    fn default() -> Self {
        ArenaConfig { op_slots: OP_SLOTS_DEFAULT, data_bytes: ARENA_BYTES_DEFAULT }
    }
}

/// An arena can't be made or adopted.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The system refused the memory.
    #[error("can't get the memory for buffered data: {0}")]
    Memory(#[from] io::Error),
    /// What is to be adopted isn't an arena that this program can read.
    #[error("can't adopt the arena: {0}")]
    Foreign(String),
    /// A size out of bounds.
    #[error("invalid arena size: {0}")]
    Size(String),
}

/// There is no room now; some comes with the next blocks that are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free space for buffered data")]
pub struct ArenaFull;

/// An operation in a slot, as an adopter finds it.
#[derive(Clone, PartialEq, Eq)]
pub struct OpRecord {
    /// Which slot.
    pub slot: SlotId,
    /// The session it belongs to.
    pub session: SessionId,
    /// The slot's last sequence number.
    pub sequence: u64,
    /// What it came from.
    pub origin: Origin,
    /// The encoded command, if its outcome isn't known: it was sent, or was about to be.
    pub pending: Option<Vec<u8>>,
}

impl fmt::Debug for OpRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpRecord")
            .field("slot", &self.slot)
            .field("session", &self.session)
            .field("sequence", &self.sequence)
            .field("origin", &self.origin)
            .field("pending_bytes", &self.pending.as_ref().map(Vec::len))
            .finish()
    }
}

/// What a dead process left behind.
#[derive(Debug)]
pub struct Adopted {
    /// The arena, in use from here on.
    pub arena: Arc<Arena>,
    /// Its session, if it had one.
    pub session: Option<SessionRecord>,
    /// The slots that were ever used.
    pub ops: Vec<OpRecord>,
    /// Outcomes that the kernel may not have been told.
    pub outcomes: Vec<OutcomeRecord>,
    /// What is open.
    pub handles: Vec<HandleRecord>,
    /// What was done and may not be committed, in its order.
    pub journal: Vec<JournalRecord>,
    /// Data that isn't committed, in the order in which it was written.
    pub data: Vec<DataBlock>,
    /// Records whose bytes don't match their checksum. What they described is lost.
    pub damaged: usize,
}

/// How much of an arena is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaUse {
    /// Bytes that data blocks can take.
    pub bytes: u64,
    /// Bytes that they take (in whole units).
    pub bytes_used: u64,
    /// Bytes of memory behind freed blocks.
    pub bytes_idle: u64,
}

/// See the module.
pub struct Arena {
    memory: Memory,
    layout: Layout,
    // Held for a few hundred nanoseconds at a time, never across a wait.
    units: Mutex<Allocator>,
    next_order: AtomicU64,
    freed: Notify,
    outcomes: OutcomeRooms,
    handles: HandleRooms,
    ring: Mutex<Ring>,
    /// What is in the arena is a predecessor's yet: see [`Arena::take_responsibility`].
    is_predecessors: AtomicBool,
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("layout", &self.layout).field("use", &self.usage()).finish()
    }
}

impl Arena {
    /// A new, empty one.
    ///
    /// # Errors
    /// If the sizes are out of bounds or the system refuses the memory.
    pub fn create(config: ArenaConfig) -> Result<Arc<Self>, ArenaError> {
        if config.data_bytes < DATA_BLOCK_BYTES_MAX as u64 || config.data_bytes > ARENA_BYTES_MAX {
            return Err(ArenaError::Size(format!(
                "{} bytes; it must be from {DATA_BLOCK_BYTES_MAX} to {ARENA_BYTES_MAX}",
                config.data_bytes
            )));
        }
        let slots_max = atoll_core::limits::SESSION_SLOTS_MAX;
        if config.op_slots < 2 || config.op_slots > slots_max {
            return Err(ArenaError::Size(format!(
                "{} slots; it must be from 2 to {slots_max}",
                config.op_slots
            )));
        }
        let layout = Layout {
            op_slots: config.op_slots,
            op_bytes_max: OP_BYTES_MAX as u32,
            units: (config.data_bytes / UNIT_BYTES as u64) as u32,
            outcomes: layout::OUTCOMES,
            handles: layout::HANDLES,
            journal_bytes: layout::JOURNAL_BYTES,
        };
        let memory = Memory::create(layout.bytes())?;
        // SAFETY: nobody else knows of this memory yet.
        unsafe { memory.write(0, &layout.encode()) };
        Ok(Arc::new(Self::over(memory, layout)))
    }

    fn over(memory: Memory, layout: Layout) -> Self {
        Arena {
            memory,
            layout,
            units: Mutex::new(Allocator::new(layout.units as usize)),
            next_order: AtomicU64::new(1),
            freed: Notify::new(),
            outcomes: OutcomeRooms::new(layout.outcomes),
            handles: HandleRooms::new(layout.handles),
            ring: Mutex::default(),
            is_predecessors: AtomicBool::new(false),
        }
    }

    /// Takes over the arena of a process that is dead. (While it lives, both would write.)
    ///
    /// # Errors
    /// If it isn't an arena, or one of another format.
    pub fn adopt(fd: OwnedFd) -> Result<Adopted, ArenaError> {
        let memory = Memory::adopt(fd)?;
        if memory.size() < PAGE_BYTES {
            return Err(ArenaError::Foreign("the descriptor isn't an arena".into()));
        }
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&memory.read(0, HEADER_BYTES)?);
        let layout = Layout::decode(&header).map_err(ArenaError::Foreign)?;
        if layout.bytes() != memory.size() {
            return Err(ArenaError::Foreign("the arena's size doesn't fit its header".into()));
        }
        let arena = Arc::new(Self::over(memory, layout));
        let (ops, damaged_ops) = arena.read_ops()?;
        let (data, damaged_data) = arena.clone().read_data()?;
        let (outcomes, damaged_outcomes) = arena.read_outcomes()?;
        let (session, handles) = (arena.read_session()?, arena.read_handles()?);
        let journal = arena.read_journal()?;
        // Free runs may hold memory of the dead process's.
        let taken = arena.units.lock();
        let mut at = 0;
        while at < layout.units as usize {
            let start = (at..layout.units as usize).find(|unit| taken.is_free(*unit..unit + 1));
            let Some(start) = start else { break };
            let end = (start..layout.units as usize)
                .find(|unit| !taken.is_free(*unit..unit + 1))
                .unwrap_or(layout.units as usize);
            arena.memory.punch(layout.unit(start), (end - start) * UNIT_BYTES);
            at = end;
        }
        drop(taken);
        arena.leave_to_successor();
        let damaged = damaged_ops + damaged_data + damaged_outcomes;
        Ok(Adopted { arena, session, ops, outcomes, handles, journal, data, damaged })
    }

    fn read_ops(&self) -> Result<(Vec<OpRecord>, usize), ArenaError> {
        let mut ops = Vec::new();
        let mut damaged = 0;
        for slot in 0..self.layout.op_slots {
            let at = self.layout.op(slot);
            let record = Record::current(&self.memory.read(at, PAIR_BYTES)?);
            if record.version == 0 {
                continue;
            }
            let mut op = OpRecord {
                slot: SlotId(slot),
                session: SessionId(record.a),
                sequence: record.b,
                origin: Origin { request: record.c, order: record.d },
                pending: None,
            };
            if record.state == State::Full {
                let length = (record.length as usize).min(self.layout.op_bytes_max as usize);
                let bytes = self.memory.read(at + PAIR_BYTES, length)?;
                if layout::crc(&bytes) == record.crc {
                    op.pending = Some(bytes);
                } else {
                    damaged += 1;
                }
            }
            ops.push(op);
        }
        Ok((ops, damaged))
    }

    fn read_data(self: Arc<Self>) -> Result<(Vec<DataBlock>, usize), ArenaError> {
        let units = self.layout.units as usize;
        let index = self.memory.read(self.layout.index(0), units * PAIR_BYTES)?;
        let mut data = Vec::new();
        let mut damaged = 0;
        for unit in 0..units {
            let record = Record::current(&index[unit * PAIR_BYTES..]);
            if record.state != State::Full {
                continue;
            }
            let run = unit..unit + record.units as usize;
            let fits = run.end <= units && record.length as usize <= run.len() * UNIT_BYTES;
            if fits && self.units.lock().is_free(run.clone()) {
                let bytes = self.memory.read(self.layout.unit(unit), record.length as usize)?;
                let sums = Sums::of(&bytes);
                if sums.all() == record.crc {
                    self.units.lock().take(run.clone());
                    self.next_order.fetch_max(record.c + 1, Ordering::Relaxed);
                    let arena = Arc::clone(&self);
                    data.push(DataBlock {
                        arena,
                        run,
                        ino: InodeId(record.a),
                        offset: record.b,
                        order: record.c,
                        length: record.length as usize,
                        sums,
                        kills: AtomicU32::new(record.kills),
                        mtime: AtomicU64::new(record.d),
                    });
                    continue;
                }
            }
            damaged += 1;
            self.put_record(self.layout.index(unit), Record { state: State::Free, ..record });
        }
        data.sort_by_key(|block| block.order);
        Ok((data, damaged))
    }

    /// Everything that is in the arena is this process's from now on: what it drops is done with. Before that an adopter may fail
    /// (the cluster can't be reached) and drop all that it has found: that stays for the next one.
    pub fn take_responsibility(&self) {
        self.is_predecessors.store(false, Ordering::Release);
    }

    /// What is dropped from now on stays in the arena, for another process to adopt.
    pub fn leave_to_successor(&self) {
        self.is_predecessors.store(true, Ordering::Release);
    }

    /// Replaces the record of something that is dropped, unless it is left to another process.
    fn put_dropped(&self, put: impl FnOnce()) {
        if !self.is_predecessors.load(Ordering::Acquire) {
            put();
        }
    }

    /// A copy of the memory: what a successor would find if this process died now. For simulations, in which a process can't be
    /// killed without the others.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn copy(&self) -> Result<OwnedFd, ArenaError> {
        Ok(self.memory.copy()?)
    }

    /// The memory, for a process that is to keep or adopt it.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.memory.fd()
    }

    /// Operation slots, slot 0 among them.
    #[must_use]
    pub fn op_slots(&self) -> u32 {
        self.layout.op_slots
    }

    /// Replaces the current record of the pair at `at`. The caller owns that slot or run.
    fn put_record(&self, at: usize, record: Record) {
        // SAFETY: the pair belongs to a slot or run that only its owner writes, and this is the owner.
        let current = Record::current(unsafe { self.memory.slice(at, PAIR_BYTES) });
        let record = Record { version: current.version + 1, ..record };
        debug_assert_eq!(record.encode().len(), RECORD_BYTES);
        // What the record describes comes first, whatever the compiler thinks.
        std::sync::atomic::fence(Ordering::Release);
        // SAFETY: as above.
        unsafe { self.memory.write(at + Record::place(record.version), &record.encode()) };
        std::sync::atomic::fence(Ordering::Release);
    }

    /// Records an operation before it is sent. The caller owns the slot and has cleared it.
    ///
    /// # Errors
    /// If the command is longer than a slot holds (bytes).
    pub fn record_op(
        &self,
        slot: SlotId,
        session: SessionId,
        sequence: u64,
        origin: Origin,
        command: &[u8],
    ) -> Result<(), ArenaFull> {
        if slot.0 >= self.layout.op_slots || command.len() > self.layout.op_bytes_max as usize {
            return Err(ArenaFull);
        }
        let at = self.layout.op(slot.0);
        // SAFETY: the slot's owner is alone with it.
        unsafe { self.memory.write(at + PAIR_BYTES, command) };
        self.put_record(
            at,
            Record {
                a: session.0,
                b: sequence,
                c: origin.request,
                d: origin.order,
                length: command.len() as u32,
                crc: layout::crc(command),
                state: State::Full,
                ..Record::default()
            },
        );
        Ok(())
    }

    /// The operation's outcome is known. Its sequence number stays for a successor.
    pub fn clear_op(&self, slot: SlotId, session: SessionId, sequence: u64) {
        if slot.0 >= self.layout.op_slots {
            return;
        }
        let at = self.layout.op(slot.0);
        // SAFETY: the slot's owner is alone with it.
        let length = Record::current(unsafe { self.memory.slice(at, PAIR_BYTES) }).length as usize;
        self.put_record(at, Record { a: session.0, b: sequence, ..Record::default() });
        if PAIR_BYTES + length > PAGE_BYTES {
            self.memory
                .punch(at + PAGE_BYTES, (PAIR_BYTES + length).next_multiple_of(PAGE_BYTES) - PAGE_BYTES);
        }
    }

    /// Keeps data that an application wrote at `offset` of `ino` until the block is dropped. Takes as much of
    /// it as the longest free run holds, at most [`DATA_BLOCK_BYTES_MAX`]: look at [`DataBlock::len`] and
    /// store the rest again.
    ///
    /// # Errors
    /// If there is no room at all, or `data` is empty.
    pub fn store(self: &Arc<Self>, ino: InodeId, offset: u64, data: &[u8]) -> Result<DataBlock, ArenaFull> {
        self.store_growing(ino, offset, data, data.len())
    }

    /// As [`store`](Self::store), with room for `room` bytes in all, for what may come behind it
    /// ([`DataBlock::append`]).
    ///
    /// # Errors
    /// If there is no room at all, or `data` is empty.
    pub fn store_growing(
        self: &Arc<Self>,
        ino: InodeId,
        offset: u64,
        data: &[u8],
        room: usize,
    ) -> Result<DataBlock, ArenaFull> {
        if data.is_empty() {
            return Err(ArenaFull);
        }
        let wanted = room.max(data.len()).min(DATA_BLOCK_BYTES_MAX).div_ceil(UNIT_BYTES);
        let run = self.units.lock().allocate(wanted).ok_or(ArenaFull)?;
        let data = &data[..data.len().min(run.len() * UNIT_BYTES)];
        let mut block = DataBlock {
            order: self.next_order.fetch_add(1, Ordering::Relaxed),
            arena: Arc::clone(self),
            run,
            ino,
            offset,
            length: 0,
            sums: Sums::default(),
            kills: AtomicU32::new(0),
            mtime: AtomicU64::new(0),
        };
        block.put(data);
        Ok(block)
    }

    /// As [`store_growing`](Self::store_growing), but waits for room. It comes when blocks are dropped, so
    /// somebody has to be writing them out.
    pub async fn store_when_free(
        self: &Arc<Self>,
        ino: InodeId,
        offset: u64,
        data: &[u8],
        room: usize,
    ) -> DataBlock {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on nothing that is freed is missed.
            freed.as_mut().enable();
            match self.store_growing(ino, offset, data, room) {
                Ok(block) => return block,
                Err(ArenaFull) => freed.await,
            }
        }
    }

    /// How much is in use.
    #[must_use]
    pub fn usage(&self) -> ArenaUse {
        let units = self.units.lock();
        ArenaUse {
            bytes: u64::from(self.layout.units) * UNIT_BYTES as u64,
            bytes_used: (units.used() * UNIT_BYTES) as u64,
            bytes_idle: (units.idle_count() * UNIT_BYTES) as u64,
        }
    }

    /// Gives back the memory of all freed blocks. For when nothing was written for a while.
    pub fn trim(&self) {
        let mut from = 0;
        loop {
            // The lock is held while the memory goes: the run must not be given to somebody in between.
            let mut units = self.units.lock();
            let Some(run) = units.idle(from) else { return };
            self.memory.punch(self.layout.unit(run.start), run.len() * UNIT_BYTES);
            from = run.end;
            units.evicted(run);
        }
    }

    fn free(&self, run: Range<usize>) {
        let mut units = self.units.lock();
        units.free(run.clone());
        if units.idle_count() * UNIT_BYTES > IDLE_BYTES_MAX {
            self.memory.punch(self.layout.unit(run.start), run.len() * UNIT_BYTES);
            units.evicted(run);
        }
        drop(units);
        self.freed.notify_waiters();
    }
}

/// Data in the arena; dropping it gives the room back, so keep it until the data is committed.
pub struct DataBlock {
    arena: Arc<Arena>,
    run: Range<usize>,
    ino: InodeId,
    offset: u64,
    order: u64,
    length: usize,
    /// As the bytes came: whatever happens to them here, whoever gets them with these notices.
    sums: Sums,
    /// As they are recorded: see [`Record::kills`].
    kills: AtomicU32,
    /// See [`layout::packed_time`].
    mtime: AtomicU64,
}

impl DataBlock {
    /// The file.
    #[must_use]
    pub fn ino(&self) -> InodeId {
        self.ino
    }

    /// The offset in the file of its first byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Blocks that were stored later have higher numbers.
    #[must_use]
    pub fn order(&self) -> u64 {
        self.order
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never true: an empty block isn't made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes that can still be appended.
    #[must_use]
    pub fn room(&self) -> usize {
        self.run.len() * UNIT_BYTES - self.length
    }

    /// The data.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the run is this block's; `append`, the only writer, needs it exclusively.
        unsafe { self.arena.memory.slice(self.arena.layout.unit(self.run.start), self.length) }
    }

    /// What the file loses when this is committed: all that it could, if that wasn't noted before its process died.
    #[must_use]
    pub fn kills(&self) -> KillPriv {
        match self.kills.load(Ordering::Relaxed) {
            kills if kills & NOTED != 0 => KillPriv::from_bits(kills as u8),
            _ => KillPriv::ALL,
        }
    }

    /// When the last of it was written, or what somebody has set the file's mtime to since; `None`: that wasn't noted.
    #[must_use]
    pub fn mtime(&self) -> Option<Timestamp> {
        layout::unpacked_time(self.mtime.load(Ordering::Relaxed))
    }

    /// Notes what the file loses (too) when this is committed, and when it was written: at the latest with what is
    /// [appended](Self::append) next.
    pub fn note(&mut self, kills: KillPriv, mtime: Timestamp) {
        *self.mtime.get_mut() = layout::packed_time(mtime).unwrap_or(0);
        let noted = self.kills.get_mut();
        let all = *noted | NOTED | u32::from(kills.bits());
        if std::mem::replace(noted, all) != all {
            self.put_record(State::Full);
        }
    }

    /// The file's attributes were set after this was written: its commit leaves this mtime, and takes nothing more away than
    /// `kills`. Not to be called by two threads at once, nor when it is [retired](Self::retire).
    pub fn set_noted(&self, kills: KillPriv, mtime: Timestamp) {
        self.mtime.store(layout::packed_time(mtime).unwrap_or(0), Ordering::Relaxed);
        self.kills.store(NOTED | u32::from(kills.bits()), Ordering::Relaxed);
        self.put_record(State::Full);
    }

    /// Adds what was written directly behind it, as much as there is room for; returns how much that is.
    /// The order number stays, so this is only for a block that no newer one of the file overlaps there.
    pub fn append(&mut self, data: &[u8]) -> usize {
        let data = &data[..data.len().min(self.room())];
        if data.is_empty() {
            return 0;
        }
        self.put(data);
        data.len()
    }

    /// Copies data behind what is there; there is room for it.
    fn put(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            // Block by block, each summed while it is in the processor's cache.
            let (now, later) = data.split_at(data.len().min(self.sums.until_block_end()));
            let at = self.arena.layout.unit(self.run.start) + self.length;
            // SAFETY: within the run, behind what `bytes` shows.
            unsafe { self.arena.memory.write(at, now) };
            self.sums.add(now);
            self.length += now.len();
            data = later;
        }
        self.put_record(State::Full);
    }

    /// The CRC-32C of each whole block (of 4 KiB, counted from its beginning), as the bytes came.
    #[must_use]
    pub fn block_sums(&self) -> &[u32] {
        self.sums.blocks()
    }

    /// The data is committed: an adopter doesn't find it any more. The room comes back when this is dropped,
    /// which may be later, if somebody still looks at the bytes. Not to be called by two threads at once.
    pub fn retire(&self) {
        self.put_record(State::Free);
    }

    fn put_record(&self, state: State) {
        let record = Record {
            version: 0,
            a: self.ino.0,
            b: self.offset,
            c: self.order,
            d: self.mtime.load(Ordering::Relaxed),
            length: self.length as u32,
            crc: self.sums.all(),
            units: self.run.len() as u32,
            kills: self.kills.load(Ordering::Relaxed),
            state,
        };
        self.arena.put_record(self.arena.layout.index(self.run.start), record);
    }
}

impl AsRef<[u8]> for DataBlock {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl fmt::Debug for DataBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataBlock")
            .field("ino", &self.ino)
            .field("offset", &self.offset)
            .field("length", &self.length)
            .field("order", &self.order)
            .finish()
    }
}

impl Drop for DataBlock {
    fn drop(&mut self) {
        self.arena.put_dropped(|| self.put_record(State::Free));
        self.arena.free(self.run.clone());
    }
}

#[cfg(test)]
mod tests;
