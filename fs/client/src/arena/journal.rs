//! The journal: what this process has done in the name of its session and told applications, and what isn't committed yet. A
//! ring of entries, each with its number, so that a successor finds those that are whole and in a row: one that was being
//! written when the process died was told nobody.

use atoll_core::ids::SessionId;

use super::layout::{JOURNAL_AT, PAIR_BYTES, Record, State, crc};
use super::survives::Origin;
use super::{Arena, ArenaError, ArenaFull};

/// Bytes before an entry: its length and checksum, then what the checksum covers: number, session, origin, length of the first
/// part.
const HEADER_BYTES: usize = 48;
/// Of which the checksum covers those from here on.
const SUMMED_FROM: usize = 8;

/// An entry, as an adopter finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalRecord {
    /// Its session.
    pub session: SessionId,
    /// Its number in the session's journal.
    pub sequence: u64,
    /// What it came from.
    pub origin: Origin,
    /// The encoded entry.
    pub entry: Vec<u8>,
    /// The encoded outcome, if the request that it came from must not be carried out once more.
    pub outcome: Vec<u8>,
}

/// Which part of the ring is in use.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Where the oldest entry is.
    start: usize,
    used: usize,
}

impl Arena {
    /// The session's journal is empty, and goes on with this number.
    pub fn begin_journal(&self, session: SessionId, next: u64) {
        *self.ring.lock() = Ring::default();
        self.put_journal(session, next, 0);
    }

    fn put_journal(&self, session: SessionId, first: u64, start: usize) {
        let record =
            Record { a: session.0, b: first, c: start as u64, state: State::Full, ..Record::default() };
        self.put_record(JOURNAL_AT, record);
    }

    /// Adds an entry, which has the number after the last one's; returns how many bytes it takes. One caller at a time.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn append_to_journal(
        &self,
        (session, sequence): (SessionId, u64),
        origin: Origin,
        entry: &[u8],
        outcome: &[u8],
    ) -> Result<usize, ArenaFull> {
        let mut ring = self.ring.lock();
        let length = HEADER_BYTES + entry.len() + outcome.len();
        let size = self.layout.journal_bytes as usize;
        // The next header must not look like one that is whole.
        if ring.used + length + HEADER_BYTES > size {
            return Err(ArenaFull);
        }
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for number in [sequence, session.0, origin.request, origin.order, entry.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(entry);
        bytes.extend_from_slice(outcome);
        let sum = crc(&bytes[SUMMED_FROM..]);
        bytes[4..SUMMED_FROM].copy_from_slice(&sum.to_le_bytes());
        let at = (ring.start + ring.used) % size;
        let (first, second) = bytes.split_at(length.min(size - at));
        // SAFETY: room that no entry in use has, and the ring is locked.
        unsafe {
            self.memory.write(self.layout.journal() + at, first);
            self.memory.write(self.layout.journal(), second);
        }
        // A successor that finds what comes after this finds the entry.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        ring.used += length;
        Ok(length)
    }

    /// The oldest entries are committed: `bytes` in all, and `next` is the number of the one after them.
    pub fn journal_committed(&self, session: SessionId, next: u64, bytes: usize) {
        let mut ring = self.ring.lock();
        let size = self.layout.journal_bytes as usize;
        ring.used -= bytes.min(ring.used);
        // From the start again, so that a journal that is mostly empty takes little memory.
        ring.start = if ring.used == 0 { 0 } else { (ring.start + bytes) % size };
        self.put_journal(session, next, ring.start);
    }

    pub(super) fn read_journal(&self) -> Result<Vec<JournalRecord>, ArenaError> {
        let head = Record::current(&self.memory.read(JOURNAL_AT, PAIR_BYTES)?);
        if head.state != State::Full {
            return Ok(Vec::new());
        }
        let size = self.layout.journal_bytes as usize;
        let mut ring = Vec::with_capacity(size);
        let start = (head.c as usize).min(size);
        ring.extend(self.memory.read(self.layout.journal() + start, size - start)?);
        ring.extend(self.memory.read(self.layout.journal(), start)?);
        let mut found = Vec::new();
        let mut at = 0;
        while let Some((record, length)) = read_entry(&ring[at..])
            && record.session.0 == head.a
            && record.sequence == head.b + found.len() as u64
        {
            found.push(record);
            at += length;
        }
        *self.ring.lock() = Ring { start, used: at };
        Ok(found)
    }
}

/// The entry that begins here, if there is a whole one, and its length.
fn read_entry(bytes: &[u8]) -> Option<(JournalRecord, usize)> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let head = number(0)?;
    let (length, sum) = ((head & u64::from(u32::MAX)) as usize, (head >> 32) as u32);
    let whole = bytes.get(..length).filter(|whole| whole.len() >= HEADER_BYTES)?;
    if crc(&whole[SUMMED_FROM..]) != sum {
        return None;
    }
    let payload = &whole[HEADER_BYTES..];
    let (entry, outcome) = payload.split_at_checked(number(40)? as usize)?;
    let record = JournalRecord {
        sequence: number(8)?,
        session: SessionId(number(16)?),
        origin: Origin { request: number(24)?, order: number(32)? },
        entry: entry.to_vec(),
        outcome: outcome.to_vec(),
    };
    Some((record, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::ArenaConfig;

    const SESSION: SessionId = SessionId(7);

    fn adopted(arena: &Arena) -> Vec<(u64, Vec<u8>)> {
        let adopted = Arena::adopt(arena.copy().unwrap()).unwrap();
        adopted.journal.into_iter().map(|record| (record.sequence, record.entry)).collect()
    }

    #[test]
    fn a_successor_finds_what_is_not_committed() {
        let arena = Arena::create(ArenaConfig::default()).unwrap();
        assert_eq!(adopted(&arena), []);
        arena.begin_journal(SESSION, 5);
        assert_eq!(adopted(&arena), []);
        let origin = Origin { request: 3, order: 4 };
        let first = arena.append_to_journal((SESSION, 5), origin, b"one", b"outcome").unwrap();
        arena.append_to_journal((SESSION, 6), Origin::default(), b"two", b"").unwrap();
        let found = Arena::adopt(arena.copy().unwrap()).unwrap().journal;
        let one = JournalRecord {
            session: SESSION,
            sequence: 5,
            origin,
            entry: b"one".to_vec(),
            outcome: b"outcome".to_vec(),
        };
        assert_eq!(found[0], one);
        assert_eq!(adopted(&arena), [(5, b"one".to_vec()), (6, b"two".to_vec())]);
        arena.journal_committed(SESSION, 6, first);
        assert_eq!(adopted(&arena), [(6, b"two".to_vec())]);
        arena.begin_journal(SessionId(8), 1);
        assert_eq!(adopted(&arena), [], "of another session");
    }

    #[test]
    fn the_ring_goes_round_and_is_never_overrun() {
        let arena = Arena::create(ArenaConfig::default()).unwrap();
        arena.begin_journal(SESSION, 1);
        let mut queue: std::collections::VecDeque<(u64, usize)> = std::collections::VecDeque::new();
        let mut next = 1;
        for round in 0..400_usize {
            let entry = vec![round as u8; 100_000 + round * 7];
            let added = arena.append_to_journal((SESSION, next), Origin::default(), &entry, b"");
            match added {
                Ok(length) => {
                    queue.push_back((next, length));
                    next += 1;
                }
                Err(ArenaFull) => {
                    assert!(queue.len() > 50);
                    let (oldest, length) = queue.pop_front().unwrap();
                    arena.journal_committed(SESSION, oldest + 1, length);
                }
            }
            if round % 97 == 0 {
                let found: Vec<u64> = adopted(&arena).into_iter().map(|(sequence, _)| sequence).collect();
                assert_eq!(found, queue.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>());
            }
        }
        let bytes = queue.iter().map(|(_, length)| length).sum();
        arena.journal_committed(SESSION, next, bytes);
        assert_eq!(arena.ring.lock().start, 0);
        assert_eq!(adopted(&arena), []);
    }

    #[test]
    fn an_entry_that_is_not_whole_is_none() {
        let arena = Arena::create(ArenaConfig::default()).unwrap();
        arena.begin_journal(SESSION, 1);
        for sequence in 1..=2 {
            arena.append_to_journal((SESSION, sequence), Origin::default(), b"entry", b"").unwrap();
        }
        let at = arena.layout.journal() + HEADER_BYTES + 5;
        for byte in 0..HEADER_BYTES + 5 {
            // SAFETY: nobody else uses this arena.
            let before = unsafe { arena.memory.slice(at + byte, 1) }[0];
            // SAFETY: as above.
            unsafe { arena.memory.write(at + byte, &[before ^ 0x40]) };
            assert_eq!(adopted(&arena).len(), 1, "byte {byte}");
            // SAFETY: as above.
            unsafe { arena.memory.write(at + byte, &[before]) };
        }
        assert_eq!(adopted(&arena).len(), 2);
    }
}
