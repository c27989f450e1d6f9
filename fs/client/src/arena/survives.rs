//! What of a process survives it in the arena, besides data and operations: its session, outcomes that the kernel may not
//! have been told, and what is open.
//!
//! A successor does every request again that was not answered. What such a request has done already must not be done
//! twice (a second `mkdir` would say `EEXIST`): an operation's record names the request that it came from, and its
//! outcome stays here until the request was answered. (The kernel numbers requests in ascending order, so a number
//! means one request for as long as the mount lives.)

use std::collections::HashSet;
use std::sync::Arc;

use atoll_core::ids::{InodeId, SessionId};
use parking_lot::Mutex;

use super::layout::{HANDLE_BYTES, OUTCOME_BYTES, PAIR_BYTES, Record, SESSION_AT, State, crc};
use super::{Arena, ArenaError};

/// Set in the word of a handle that is open.
const OPEN: u64 = 1 << 63;
/// Bits of the word that the handle's user has.
const FLAGS_MASK: u64 = 0xff;

/// What an operation came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The kernel's request; 0: none, or it doesn't matter if it is done again.
    pub request: u64,
    /// The last order of the data that it commits; 0: it commits none that is in the arena.
    pub order: u64,
}

/// The session of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id.
    pub session: SessionId,
    /// Names the process towards chunks.
    pub incarnation: u64,
    /// How often the mount was taken over.
    pub takeovers: u64,
}

/// The outcome of an operation, as an adopter finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomeRecord {
    /// Where it is recorded.
    pub room: u32,
    /// The kernel's request that the operation came from.
    pub request: u64,
    /// The encoded outcome.
    pub outcome: Vec<u8>,
}

/// An open handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandleRecord {
    /// Where it is recorded.
    pub room: u32,
    /// Its number, less than 2^55.
    pub number: u64,
    /// What it may do.
    pub flags: u8,
    /// The file.
    pub ino: InodeId,
    /// The kernel's request that opened it.
    pub request: u64,
}

/// Which places for outcomes are free.
#[derive(Debug)]
pub(super) struct OutcomeRooms(Mutex<Vec<u32>>);

impl OutcomeRooms {
    pub fn new(count: u32) -> OutcomeRooms {
        OutcomeRooms(Mutex::new((0..count).rev().collect()))
    }
}

/// Which places for handles are free: all from `next` on, and those in the list.
#[derive(Debug)]
pub(super) struct HandleRooms(Mutex<Rooms>);

#[derive(Debug)]
struct Rooms {
    free: Vec<u32>,
    next: u32,
    count: u32,
}

impl HandleRooms {
    pub fn new(count: u32) -> HandleRooms {
        HandleRooms(Mutex::new(Rooms { free: Vec::new(), next: 0, count }))
    }
}

/// An outcome's place. What is recorded there goes when this is dropped: its request is answered.
#[derive(Debug)]
pub struct OutcomeRoom {
    arena: Arc<Arena>,
    number: u32,
}

impl Drop for OutcomeRoom {
    fn drop(&mut self) {
        let at = self.arena.layout.outcome(self.number);
        self.arena.put_dropped(|| self.arena.put_record(at, Record::default()));
        self.arena.outcomes.0.lock().push(self.number);
    }
}

/// A handle's place. What is recorded there goes when this is dropped.
#[derive(Debug)]
pub struct HandleRoom {
    arena: Arc<Arena>,
    number: u32,
}

impl HandleRoom {
    /// Records what is open.
    fn put(&self, word: u64, ino: InodeId, request: u64) {
        let at = self.arena.layout.handle(self.number);
        let mut bytes = [0; HANDLE_BYTES - 8];
        bytes[..8].copy_from_slice(&ino.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&request.to_le_bytes());
        // SAFETY: the place is this value's alone.
        unsafe { self.arena.memory.write(at + 8, &bytes) };
        // The word says that the rest counts.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        // SAFETY: as above.
        unsafe { self.arena.memory.write(at, &word.to_le_bytes()) };
    }

    /// Replaces what the handle may do.
    pub fn set_flags(&self, number: u64, flags: u8) {
        let at = self.arena.layout.handle(self.number);
        // SAFETY: the place is this value's alone.
        unsafe { self.arena.memory.write(at, &word(number, flags).to_le_bytes()) };
    }
}

impl Drop for HandleRoom {
    fn drop(&mut self) {
        let at = self.arena.layout.handle(self.number);
        // SAFETY: the place is this value's alone.
        self.arena.put_dropped(|| unsafe { self.arena.memory.write(at, &[0; 8]) });
        self.arena.handles.0.lock().free.push(self.number);
    }
}

fn word(number: u64, flags: u8) -> u64 {
    OPEN | number << 8 | u64::from(flags)
}

impl Arena {
    /// Notes the session of this process.
    pub fn note_session(&self, session: SessionRecord) {
        let SessionRecord { session, incarnation, takeovers } = session;
        let record =
            Record { a: session.0, b: incarnation, c: takeovers, state: State::Full, ..Record::default() };
        self.put_record(SESSION_AT, record);
    }

    /// Notes the outcome of an operation that came from this request of the kernel's, to be kept until the request is
    /// answered. `None`: there is no room for it.
    #[must_use]
    pub fn note_outcome(self: &Arc<Self>, request: u64, outcome: &[u8]) -> Option<OutcomeRoom> {
        if outcome.len() > OUTCOME_BYTES - PAIR_BYTES {
            return None;
        }
        let number = self.outcomes.0.lock().pop()?;
        let room = OutcomeRoom { arena: Arc::clone(self), number };
        let at = self.layout.outcome(number);
        // SAFETY: the place is this room's alone.
        unsafe { self.memory.write(at + PAIR_BYTES, outcome) };
        let (length, crc) = (outcome.len() as u32, crc(outcome));
        self.put_record(at, Record { a: request, length, crc, state: State::Full, ..Record::default() });
        Some(room)
    }

    /// The place of an outcome that a predecessor recorded. To be called once for each.
    #[must_use]
    pub fn adopt_outcome(self: &Arc<Self>, record: &OutcomeRecord) -> OutcomeRoom {
        OutcomeRoom { arena: Arc::clone(self), number: record.room }
    }

    /// Records a handle. `None`: there are too many.
    #[must_use]
    pub fn note_handle(
        self: &Arc<Self>,
        number: u64,
        flags: u8,
        ino: InodeId,
        request: u64,
    ) -> Option<HandleRoom> {
        let free = {
            let mut rooms = self.handles.0.lock();
            match rooms.free.pop() {
                Some(free) => free,
                None if rooms.next < rooms.count => {
                    rooms.next += 1;
                    rooms.next - 1
                }
                None => return None,
            }
        };
        let room = HandleRoom { arena: Arc::clone(self), number: free };
        room.put(word(number, flags), ino, request);
        Some(room)
    }

    /// The place of a handle that a predecessor recorded. To be called once for each.
    #[must_use]
    pub fn adopt_handle(self: &Arc<Self>, record: &HandleRecord) -> HandleRoom {
        HandleRoom { arena: Arc::clone(self), number: record.room }
    }

    pub(super) fn read_session(&self) -> Result<Option<SessionRecord>, ArenaError> {
        let record = Record::current(&self.memory.read(SESSION_AT, PAIR_BYTES)?);
        let found = record.state == State::Full;
        Ok(found.then_some(SessionRecord {
            session: SessionId(record.a),
            incarnation: record.b,
            takeovers: record.c,
        }))
    }

    pub(super) fn read_outcomes(&self) -> Result<(Vec<OutcomeRecord>, usize), ArenaError> {
        let count = self.layout.outcomes;
        let all = self.memory.read(self.layout.outcome(0), count as usize * OUTCOME_BYTES)?;
        let (mut outcomes, mut damaged) = (Vec::new(), 0);
        for (room, bytes) in (0..).zip(all.chunks_exact(OUTCOME_BYTES)) {
            let record = Record::current(bytes);
            if record.state != State::Full {
                continue;
            }
            let outcome = bytes[PAIR_BYTES..].get(..record.length as usize);
            match outcome.filter(|outcome| crc(outcome) == record.crc) {
                Some(outcome) => {
                    outcomes.push(OutcomeRecord { room, request: record.a, outcome: outcome.to_vec() });
                }
                None => damaged += 1,
            }
        }
        let taken: HashSet<u32> = outcomes.iter().map(|record| record.room).collect();
        self.outcomes.0.lock().retain(|room| !taken.contains(room));
        Ok((outcomes, damaged))
    }

    pub(super) fn read_handles(&self) -> Result<Vec<HandleRecord>, ArenaError> {
        let (start, end) = (self.layout.handle(0), self.layout.handle(self.layout.handles));
        let mut found = Vec::new();
        for range in self.memory.touched(start..end)? {
            let bytes = self.memory.read(range.start, range.len())?;
            for (at, record) in bytes.chunks_exact(HANDLE_BYTES).enumerate() {
                let number = |at: usize| {
                    let mut number = [0; 8];
                    number.copy_from_slice(&record[at..at + 8]);
                    u64::from_le_bytes(number)
                };
                let word = number(0);
                if word & OPEN != 0 {
                    found.push(HandleRecord {
                        room: ((range.start - start) / HANDLE_BYTES + at) as u32,
                        number: (word & !OPEN) >> 8,
                        flags: (word & FLAGS_MASK) as u8,
                        ino: InodeId(number(8)),
                        request: number(16),
                    });
                }
            }
        }
        let mut rooms = self.handles.0.lock();
        rooms.next = found.iter().map(|record| record.room + 1).max().unwrap_or(0);
        let taken: HashSet<u32> = found.iter().map(|record| record.room).collect();
        rooms.free = (0..rooms.next).rev().filter(|room| !taken.contains(room)).collect();
        Ok(found)
    }
}
