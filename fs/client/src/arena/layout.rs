//! The arena's bytes: where what is, and how a successor tells what is whole.
//!
//! ```text
//! header (one page)   magic, version, sizes, CRC-32C; the session, and where its journal begins: two state records each
//! op slots            each: two state records of 64 bytes, then room for one encoded command
//! outcomes            each: two state records, then room for one encoded outcome
//! handles             32 bytes each: what is open
//! journal             a ring of entries
//! index               one pair of state records for each unit of the data area
//! data area           units of 4 KiB; a data block is a run of them, described by its first unit's records
//! ```
//!
//! Nothing is a pointer: all places are slot and unit numbers. All numbers are little-endian.
//!
//! **A state record comes in pairs** and a change writes the older one of the pair: it has a version one
//! higher and a checksum. A process can die between any two instructions; what it wrote before is there (the
//! memory is shared and the machine lives on), so a successor finds either the new record whole, or takes the
//! old one. Bytes are written before the record that describes them, into room that no current record
//! describes, and the record carries their checksum.

use atoll_core::attributes::Timestamp;
use crc_fast::CrcAlgorithm;

/// First bytes of an arena.
pub const MAGIC: [u8; 8] = *b"ATLarena";
/// The format that this program writes, and the only one that it adopts.
pub const VERSION: u32 = 3;
/// Bytes of the header and alignment of all areas.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a unit of the data area.
pub const UNIT_BYTES: usize = 4096;
/// Bytes of one state record.
pub const RECORD_BYTES: usize = 64;
/// Bytes of a pair of them.
pub const PAIR_BYTES: usize = 2 * RECORD_BYTES;

/// Where the session's pair of records is, in the header's page.
pub const SESSION_AT: usize = 1024;
/// Where the journal's pair of records is, in the header's page.
pub const JOURNAL_AT: usize = 2048;
/// Bytes of the journal: what was done and isn't committed.
pub const JOURNAL_BYTES: u32 = 8 << 20;
/// Outcomes of operations whose requests may not be answered yet.
pub const OUTCOMES: u32 = 256;
/// Bytes of one of them.
pub const OUTCOME_BYTES: usize = 512;
/// Handles that a successor finds; further ones are lost with the process.
pub const HANDLES: u32 = 1 << 20;
/// Bytes of one.
pub const HANDLE_BYTES: usize = 32;

/// In a record's `kills`: it was noted. Programs that didn't left 0 there.
pub const NOTED: u32 = 1 << 8;

/// The sizes of an arena, from which all places follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Op slots.
    pub op_slots: u32,
    /// Bytes that an encoded command may have.
    pub op_bytes_max: u32,
    /// Units of the data area.
    pub units: u32,
    /// Outcomes.
    pub outcomes: u32,
    /// Handles.
    pub handles: u32,
    /// Bytes of the journal, in whole pages.
    pub journal_bytes: u32,
}

/// Bytes of an encoded header: magic, nine numbers, CRC.
pub const HEADER_BYTES: usize = 48;
/// Of which the CRC is of these.
const SUMMED_BYTES: usize = HEADER_BYTES - 4;

impl Layout {
    /// From one op slot to the next (bytes).
    #[must_use]
    pub fn op_stride(&self) -> usize {
        (PAIR_BYTES + self.op_bytes_max as usize).next_multiple_of(PAGE_BYTES)
    }

    /// Where an op slot begins.
    #[must_use]
    pub fn op(&self, slot: u32) -> usize {
        PAGE_BYTES + slot as usize * self.op_stride()
    }

    /// Where an outcome begins.
    #[must_use]
    pub fn outcome(&self, number: u32) -> usize {
        self.op(self.op_slots) + number as usize * OUTCOME_BYTES
    }

    /// Where a handle begins.
    #[must_use]
    pub fn handle(&self, number: u32) -> usize {
        self.outcome(self.outcomes).next_multiple_of(PAGE_BYTES) + number as usize * HANDLE_BYTES
    }

    /// Where the journal begins.
    #[must_use]
    pub fn journal(&self) -> usize {
        self.handle(self.handles).next_multiple_of(PAGE_BYTES)
    }

    /// Where the index record pair of a unit begins.
    #[must_use]
    pub fn index(&self, unit: usize) -> usize {
        self.journal() + self.journal_bytes as usize + unit * PAIR_BYTES
    }

    /// Where a unit begins.
    #[must_use]
    pub fn unit(&self, unit: usize) -> usize {
        self.index(self.units as usize).next_multiple_of(PAGE_BYTES) + unit * UNIT_BYTES
    }

    /// Bytes of the whole arena.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.unit(self.units as usize)
    }

    /// The header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        let numbers = [
            VERSION,
            self.op_slots,
            self.op_bytes_max,
            self.units,
            UNIT_BYTES as u32,
            RECORD_BYTES as u32,
            self.outcomes,
            self.handles,
            self.journal_bytes,
        ];
        for (at, number) in numbers.iter().enumerate() {
            header[8 + at * 4..12 + at * 4].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc(&header[..SUMMED_BYTES]);
        header[SUMMED_BYTES..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// Reads a header; `Err` says what is wrong with it.
    ///
    /// # Errors
    /// If it isn't the header of an arena of this format.
    pub fn decode(header: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let number = |at: usize| u32_at(header, 8 + at * 4);
        if header[..8] != MAGIC {
            return Err("the descriptor isn't an arena".into());
        }
        if number(0) != VERSION {
            return Err(format!("the arena has format {}, this program reads format {VERSION}", number(0)));
        }
        if crc(&header[..SUMMED_BYTES]) != u32_at(header, SUMMED_BYTES) {
            return Err("the arena's header is damaged".into());
        }
        if number(4) != UNIT_BYTES as u32 || number(5) != RECORD_BYTES as u32 {
            return Err("the arena has other block sizes than this program".into());
        }
        let [op_slots, op_bytes_max, units, outcomes, handles, journal_bytes] =
            [1, 2, 3, 6, 7, 8].map(number);
        Ok(Layout { op_slots, op_bytes_max, units, outcomes, handles, journal_bytes })
    }
}

/// What is at a slot or unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    #[default]
    Free,
    /// An operation that was or may have been sent and has no outcome yet, or data that is not committed.
    Full,
}

/// A state record, decoded. What `a`, `b`, `c` mean is its user's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Higher than that of the other record of the pair, if this is the current one.
    pub version: u64,
    /// Op, session: session. Data: inode. Outcome: the kernel's request.
    pub a: u64,
    /// Op: sequence. Data: offset in the file. Session: incarnation.
    pub b: u64,
    /// Data: order. Op: the kernel's request. Session: how often it was taken over.
    pub c: u64,
    /// Op: the last order of the data that it commits. Data: the file's mtime by it, see [`packed_time`]; 0 if nobody has
    /// noted it.
    pub d: u64,
    /// Bytes.
    pub length: u32,
    /// Of the bytes.
    pub crc: u32,
    /// Data: units of the run.
    pub units: u32,
    /// Data: what the file loses when it is committed, as a number with [`NOTED`] in it; 0 if nobody has noted it.
    pub kills: u32,
    /// Whether there is anything.
    pub state: State,
}

impl Record {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        for (at, number) in [self.version, self.a, self.b, self.c].iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        let state = match self.state {
            State::Free => 1,
            State::Full => 2,
        };
        for (at, number) in [self.length, self.crc, self.units, state, self.kills].iter().enumerate() {
            bytes[32 + at * 4..36 + at * 4].copy_from_slice(&number.to_le_bytes());
        }
        bytes[52..60].copy_from_slice(&self.d.to_le_bytes());
        let crc = crc(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the stored form; `None` if it was never written or not to its end.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if u64_at(bytes, 0) == 0 || crc(&bytes[..60]) != u32_at(bytes, 60) {
            return None;
        }
        Some(Record {
            version: u64_at(bytes, 0),
            a: u64_at(bytes, 8),
            b: u64_at(bytes, 16),
            c: u64_at(bytes, 24),
            d: u64_at(bytes, 52),
            length: u32_at(bytes, 32),
            crc: u32_at(bytes, 36),
            units: u32_at(bytes, 40),
            state: match u32_at(bytes, 44) {
                1 => State::Free,
                2 => State::Full,
                _ => return None,
            },
            kills: u32_at(bytes, 48),
        })
    }

    /// The current record of a pair; a default one if neither was written.
    #[must_use]
    pub fn current(pair: &[u8]) -> Record {
        let first = Record::decode(&pair[..RECORD_BYTES]).unwrap_or_default();
        let second = Record::decode(&pair[RECORD_BYTES..PAIR_BYTES]).unwrap_or_default();
        if second.version > first.version { second } else { first }
    }

    /// Where in the pair the record of this version goes: never where the one before it is.
    #[must_use]
    pub fn place(version: u64) -> usize {
        (version % 2) as usize * RECORD_BYTES
    }
}

/// Bits of a packed time that are its nanoseconds; those above are its seconds.
const NANOS_BITS: u32 = 30;
/// What is added to the seconds of a packed time.
const SECONDS_BIAS: i64 = 1 << 33;

/// A time in 64 bits, never 0; `None` if it is further from 1970 than 272 years.
#[must_use]
pub fn packed_time(time: Timestamp) -> Option<u64> {
    let seconds = time.seconds.checked_add(SECONDS_BIAS)?;
    let fits = (1..2 * SECONDS_BIAS).contains(&seconds);
    fits.then(|| (seconds as u64) << NANOS_BITS | u64::from(time.nanos))
}

/// What was packed; `None` of 0.
#[must_use]
pub fn unpacked_time(packed: u64) -> Option<Timestamp> {
    let nanos = (packed & ((1 << NANOS_BITS) - 1)) as u32;
    (packed != 0).then(|| Timestamp { seconds: (packed >> NANOS_BITS) as i64 - SECONDS_BIAS, nanos })
}

/// CRC-32C.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Layout = Layout {
        op_slots: 3,
        op_bytes_max: 5000,
        units: 100,
        outcomes: 9,
        handles: 130,
        journal_bytes: 8192,
    };

    #[test]
    fn areas_follow_one_another_without_overlap() {
        let layout = SMALL;
        const { assert!(SESSION_AT >= HEADER_BYTES && SESSION_AT + PAIR_BYTES <= JOURNAL_AT) };
        assert!(JOURNAL_AT + PAIR_BYTES <= layout.op(0));
        assert_eq!(layout.op(0), 4096);
        assert_eq!(layout.op(1) - layout.op(0), 8192);
        assert_eq!(layout.outcome(0), layout.op(3));
        assert!(layout.handle(0) >= layout.outcome(9) && layout.journal() >= layout.handle(130));
        assert_eq!(layout.index(0), layout.journal() + 8192);
        assert!(layout.unit(0) >= layout.index(100));
        assert_eq!(layout.unit(0) % PAGE_BYTES, 0);
        assert_eq!(layout.bytes(), layout.unit(0) + 100 * UNIT_BYTES);
        assert_eq!(Layout::decode(&layout.encode()), Ok(layout));
    }

    #[test]
    fn a_header_that_is_not_ours_is_refused() {
        let header = SMALL.encode();
        for at in 0..header.len() {
            let mut damaged = header;
            damaged[at] ^= 1;
            assert!(Layout::decode(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn times_are_packed_without_loss() {
        for seconds in [-SECONDS_BIAS + 1, -1, 0, 1, 1_800_000_000, SECONDS_BIAS - 1] {
            for nanos in [0, 1, 999_999_999] {
                let time = Timestamp { seconds, nanos };
                assert_eq!(unpacked_time(packed_time(time).unwrap()), Some(time));
            }
        }
        for seconds in [i64::MIN, -SECONDS_BIAS, SECONDS_BIAS, i64::MAX] {
            assert_eq!(packed_time(Timestamp { seconds, nanos: 0 }), None);
        }
        assert_eq!(unpacked_time(0), None);
    }

    #[test]
    fn a_torn_record_leaves_the_one_before() {
        let old = Record {
            version: 4,
            a: 1,
            b: 2,
            c: 3,
            d: 9,
            length: 5,
            crc: 6,
            units: 7,
            kills: 8,
            state: State::Full,
        };
        let new = Record { version: 5, state: State::Free, ..old };
        for torn in 0..=RECORD_BYTES {
            let mut pair = [0u8; PAIR_BYTES];
            pair[Record::place(4)..][..RECORD_BYTES].copy_from_slice(&old.encode());
            pair[Record::place(5)..][..torn].copy_from_slice(&new.encode()[..torn]);
            let expected = if torn == RECORD_BYTES { new } else { old };
            assert_eq!(Record::current(&pair), expected, "{torn} bytes written");
        }
        assert_eq!(Record::current(&[0; PAIR_BYTES]), Record::default());
    }
}
