//! The log's format on disk, and how it is read back.

use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::LogError;
use crate::record::{self, ALIGN, Header, Kind};
use crate::types::{LogPosition, MemberId};

/// Version of segments that this program writes and reads.
pub(crate) const FORMAT: u32 = 1;
/// Bytes of a segment's header; the first record begins here.
pub(crate) const HEADER_BYTES: u32 = 4096;
const MAGIC: [u8; 8] = *b"ATOLLLOG";
const HEADER_USED_BYTES: usize = 40;

/// A segment file: a header, then records, packed at multiples of 8 bytes, in a file whose full
/// size was written with zeroes before its first use.
///
/// # Why so
///
/// *Full size, written with zeroes*: an `fdatasync` after overwriting written blocks has nothing
/// of the filesystem's own to write (58 instead of 104 us on the machine where this was chosen).
///
/// *Packed, not padded to 4 KiB*: a block that is written again carries its old bytes unchanged,
/// so whatever mix of old and new bytes a power cut leaves there, the acknowledged records in it
/// are whole (this fails only on a device that turns bytes to garbage that it was told to
/// overwrite with themselves). Padding every batch would use the 64 MiB of log between two flushes
/// of the state machine up ten times as fast.
///
/// *Recycled*: a segment that is no longer needed becomes a later one, which spares the zeroes. Its
/// old records can't be taken for new ones: each use of a file has a sequence number of its own,
/// which the CRC of every record includes, and which a file gets in a new header, durable before
/// the file takes its new name.
///
/// # The argument
///
/// One thread writes. It writes a *batch* (one `pwritev`), makes it durable (one `fdatasync`),
/// acknowledges it, and only then writes the next one. So at any moment at most the last batch is
/// neither whole nor acknowledged, and each record says where its batch begins.
///
/// Reading goes from record to record until the first one, at X, that isn't intact or doesn't name
/// the CRC of the record before it.
///
/// 1. *If an intact record further on belongs to a batch that begins after X*, or a later segment
///    begins with a record that goes on after another entry than the last one found, then
///    the batch at X had been made durable: X is damage, and the log is refused. Nothing else on
///    disk looks like that: see 3.
/// 2. *Otherwise* X is where the log ends, or lies in the last batch, which was not acknowledged.
///    The tail is cut: by writing over it, beginning at X. (Damage to nothing but the last batch
///    can't be told from a torn one. The group's other members, and the state machine's flush, are
///    what helps then.)
/// 3. *What the cut leaves behind does no harm.* Records of the torn batch behind X begin no
///    later than X, so they never count as evidence for 1. They are not read
///    either: the first batch after each opening begins with a `Continue` mark that holds a random
///    number, and each record names the CRC of the one before it, so a left-over record never
///    follows a new one.
/// 4. *Truncating* (a follower's entries that its leader doesn't have) is a `Truncate` mark, and
///    dropping entries for an installed snapshot is a `Jump` mark, both appended like entries.
///    Nothing is ever written before the log's end, so 1 to 3 hold for them too.
/// 5. *The next segment* is made ready (header, durable, name durable) in the background; its
///    first batch begins with a `Continue` mark. Without an intact first record a segment is
///    unused, or its first batch was torn and not acknowledged. It is written only after all that
///    went into the segments before it is durable.
/// 6. *Dropping* old entries drops whole segments, oldest first, each rename made durable before
///    the next, so what is left is always a row of consecutive sequence numbers, whose first
///    record says after which entry it goes on.
///
/// The header, little-endian: magic (8 bytes), format version (4), CRC-32C of the header's 40
/// bytes with this field zero (4), member (8), sequence number (8), size of the file (4), zero (4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) member: MemberId,
    pub(crate) sequence: u64,
    pub(crate) segment_bytes: u32,
}

impl SegmentHeader {
    /// The header's block and its CRC, which the segment's first record names.
    pub(crate) fn encode(&self) -> (Vec<u8>, u32) {
        let mut bytes = vec![0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.member.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.segment_bytes.to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&bytes[..HEADER_USED_BYTES]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// Reads the header of the segment at `path`, which must belong to `member`.
    pub(crate) fn decode(path: &Path, bytes: &[u8], member: MemberId) -> Result<(Self, u32), LogError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if bytes.len() < HEADER_BYTES as usize || bytes[..8] != MAGIC {
            return Err(LogError::Foreign { path: path.to_owned(), what: "log segment" });
        }
        // The version comes before the CRC: a newer version may have changed what that covers.
        let format = word(8);
        if format > FORMAT {
            return Err(LogError::NewerFormat { path: path.to_owned(), found: format, known: FORMAT });
        }
        let crc = word(12);
        let mut covered = [0; HEADER_USED_BYTES];
        covered.copy_from_slice(&bytes[..HEADER_USED_BYTES]);
        covered[12..16].fill(0);
        if crc != crc_fast::crc32_iscsi(&covered) {
            return Err(LogError::damaged(path, 0, "the segment's header has a wrong checksum"));
        }
        let header = Self { member: long(16), sequence: long(24), segment_bytes: word(32) };
        if header.member != member {
            return Err(LogError::OtherMember {
                path: path.to_owned(),
                found: header.member,
                expected: member,
            });
        }
        Ok((header, crc))
    }
}

/// Where a segment's entries are in its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentIndex {
    /// Index of the entry at `offsets[0]`.
    pub(crate) first: u64,
    /// Offsets of the records of consecutive entries.
    pub(crate) offsets: Vec<u32>,
}

impl SegmentIndex {
    /// Index after the last entry.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.offsets.len() as u64
    }

    pub(crate) fn push(&mut self, index: u64, offset: u32) {
        if self.offsets.is_empty() {
            self.first = index;
        }
        self.offsets.push(offset);
    }

    /// Drops the entries from `index` on.
    pub(crate) fn cut(&mut self, index: u64) {
        self.offsets.truncate(usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX));
    }

    pub(crate) fn offset_of(&self, index: u64) -> Option<u32> {
        self.offsets.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }
}

/// A segment read back, with the intact part of it.
#[derive(Clone, Debug)]
pub(crate) struct ReplayedSegment {
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    pub(crate) index: SegmentIndex,
    /// Where the next record would be written.
    pub(crate) end: u32,
    /// CRC that the next record has to name.
    pub(crate) chain: u32,
    /// No intact first record: never used, or its first batch was torn.
    pub(crate) empty: bool,
}

/// The whole log, being read back segment by segment.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) segments: Vec<ReplayedSegment>,
    /// The last entry that is no longer in the log.
    pub(crate) base: Option<LogPosition>,
    /// The last entry.
    pub(crate) last: Option<LogPosition>,
    /// Bytes of log by position.
    pub(crate) account: Account,
}

impl Replay {
    /// Reads the next segment: `bytes` is the whole file. Segments come in order of their sequence
    /// numbers.
    pub(crate) fn read_segment(
        &mut self,
        path: &Path,
        bytes: &[u8],
        member: MemberId,
    ) -> Result<(), LogError> {
        let (header, header_crc) = SegmentHeader::decode(path, bytes, member)?;
        if bytes.len() < header.segment_bytes as usize || header.segment_bytes <= HEADER_BYTES {
            return Err(LogError::damaged(
                path,
                bytes.len() as u64,
                format!("the file ends, it should have {} bytes", header.segment_bytes),
            ));
        }
        if let Some(before) = self.segments.last()
            && before.header.sequence.checked_add(1) != Some(header.sequence)
        {
            return Err(LogError::damaged(
                path,
                0,
                format!(
                    "it doesn't follow log segment {:016x}: those in between are missing",
                    before.header.sequence
                ),
            ));
        }
        let bytes = &bytes[..header.segment_bytes as usize];
        let mut segment = ReplayedSegment {
            path: path.to_owned(),
            header,
            index: SegmentIndex::default(),
            end: HEADER_BYTES,
            chain: header_crc,
            empty: true,
        };
        while let Some((record, _)) = record::decode(bytes, segment.end as usize, header.sequence) {
            if record.prev_crc != segment.chain {
                break;
            }
            if segment.empty && self.segments.iter().any(|before| before.empty) {
                return Err(LogError::damaged(path, 0, "it is in use, but a segment before it is empty"));
            }
            self.take(path, &mut segment, &record)?;
            segment.chain = record.crc;
            segment.end += record::record_bytes(record.payload_bytes as usize) as u32;
            segment.empty = false;
        }
        check_tail(path, bytes, header.sequence, segment.end)?;
        if atoll_faults::planted("log-tail-dropped") {
            self.drop_tail(&mut segment);
        }
        self.segments.push(segment);
        Ok(())
    }

    fn take(&mut self, path: &Path, segment: &mut ReplayedSegment, record: &Header) -> Result<(), LogError> {
        let at = segment.end;
        let damaged = |detail: String| Err(LogError::damaged(path, u64::from(at), detail));
        match (record.kind, record.position) {
            (Kind::Continue, position) => {
                if self.segments.is_empty() && segment.empty {
                    (self.base, self.last) = (position, position);
                } else if position != self.last {
                    return damaged(format!(
                        "the log continues after {}, but ends after {} before that: entries or segments in \
                         between are lost",
                        shown(position),
                        shown(self.last)
                    ));
                }
            }
            (Kind::Truncate, position) => {
                let next = position.map_or(0, |p| p.index + 1);
                for index in self.segments.iter_mut().map(|s| &mut s.index).chain([&mut segment.index]) {
                    index.cut(next);
                }
                self.last = position;
                self.account.truncate(position);
                // The segments with what was kept may have been dropped since.
                if self.base.is_some_and(|base| base.index >= next) {
                    self.base = position;
                }
            }
            (Kind::Jump, position) => {
                for index in self.segments.iter_mut().map(|s| &mut s.index).chain([&mut segment.index]) {
                    index.offsets.clear();
                }
                (self.base, self.last) = (position, position);
                if let Some(position) = position {
                    self.account.jump(position);
                }
            }
            (_, None) => return damaged("an entry without a position".into()),
            (_, Some(position)) => {
                let next = self.last.map_or(0, |last| last.index + 1);
                if position.index != next || self.last.is_some_and(|last| position.term < last.term) {
                    return damaged(format!("entry {position} follows {}", shown(self.last)));
                }
                segment.index.push(position.index, at);
                self.last = Some(position);
                self.account.add(position, record::record_bytes(record.payload_bytes as usize) as u64);
            }
        }
        Ok(())
    }
}

impl Replay {
    /// A mistake, made on purpose: the last entry counts for nothing.
    fn drop_tail(&mut self, segment: &mut ReplayedSegment) {
        if segment.index.offsets.len() > 1
            && let Some(last) = self.last
        {
            segment.index.offsets.pop();
            self.last = Some(LogPosition { term: last.term, index: last.index - 1 });
        }
    }
}

fn shown(position: Option<LogPosition>) -> String {
    position.map_or_else(|| "nothing".into(), |position| position.to_string())
}

/// Point 1 of the argument: nothing behind `end` may show that what is at `end` was acknowledged.
fn check_tail(path: &Path, bytes: &[u8], sequence: u64, end: u32) -> Result<(), LogError> {
    let mut at = end as usize;
    while at + record::HEADER_BYTES <= bytes.len() {
        if let Some(header) = record::decode_header(bytes, at, bytes.len())
            && header.batch_start > end
            && header.batch_start as usize <= at
            && record::decode(bytes, at, sequence).is_some()
        {
            return Err(LogError::damaged(
                path,
                u64::from(end),
                format!("an unreadable record, while the one at {at} was written after it"),
            ));
        }
        at += ALIGN;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{encode_header, record_bytes};

    const SIZE: u32 = 4096 + 4096;

    /// Kind, term and index, payload.
    type Record<'a> = (Kind, Option<(u64, u64)>, &'a [u8]);

    /// Builds a segment by hand, batch by batch.
    struct Build {
        sequence: u64,
        bytes: Vec<u8>,
        at: usize,
        chain: u32,
    }

    impl Build {
        fn new(sequence: u64) -> Self {
            let (mut bytes, chain) = SegmentHeader { member: 1, sequence, segment_bytes: SIZE }.encode();
            bytes.resize(SIZE as usize, 0);
            Self { sequence, bytes, at: HEADER_BYTES as usize, chain }
        }

        fn batch(&mut self, records: &[Record<'_>]) -> &mut Self {
            let start = self.at as u32;
            for (kind, position, payload) in records {
                let position = position.map(|(term, index)| LogPosition { term, index });
                let (header, crc) = encode_header(self.sequence, self.chain, start, *kind, position, payload);
                self.bytes[self.at..self.at + 40].copy_from_slice(&header);
                self.bytes[self.at + 40..self.at + 40 + payload.len()].copy_from_slice(payload);
                self.at += record_bytes(payload.len());
                self.chain = crc;
            }
            self
        }
    }

    fn read(segments: &[&Build]) -> Result<Replay, LogError> {
        let mut replay = Replay::default();
        for segment in segments {
            let path = PathBuf::from(format!("{:016x}.log", segment.sequence));
            replay.read_segment(&path, &segment.bytes, 1)?;
        }
        Ok(replay)
    }

    fn pos(term: u64, index: u64) -> Option<LogPosition> {
        Some(LogPosition { term, index })
    }

    fn three_batches() -> (Build, [usize; 4]) {
        let mut b = Build::new(1);
        let mut ends = [b.at; 4];
        b.batch(&[(Kind::Continue, None, b"nonce123"), (Kind::Membership, Some((0, 0)), b"members")]);
        ends[1] = b.at;
        b.batch(&[(Kind::Blank, Some((1, 1)), b""), (Kind::Normal, Some((1, 2)), b"two")]);
        ends[2] = b.at;
        b.batch(&[(Kind::Normal, Some((1, 3)), b"three"), (Kind::Normal, Some((1, 4)), b"fourfour four")]);
        ends[3] = b.at;
        (b, ends)
    }

    #[test]
    fn reads_what_was_written() {
        let (b, ends) = three_batches();
        let replay = read(&[&b]).unwrap();
        assert_eq!((replay.base, replay.last), (None, pos(1, 4)));
        let segment = &replay.segments[0];
        assert_eq!((segment.index.first, segment.index.end()), (0, 5));
        assert_eq!((segment.end as usize, segment.chain, segment.empty), (ends[3], b.chain, false));
    }

    /// Cut at every byte of the last batch: the batches before it are all there, and of the last
    /// one a prefix.
    #[test]
    fn a_torn_tail_is_cut_at_every_byte() {
        let (b, ends) = three_batches();
        for cut in ends[2]..ends[3] {
            let mut torn = Build { bytes: b.bytes.clone(), ..Build::new(1) };
            torn.bytes[cut..].fill(0);
            let replay = read(&[&torn]).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            let last = replay.last.unwrap().index;
            let fourth = ends[2] + record_bytes(5);
            // Zeroes at the very end of the padding change nothing.
            let whole = if cut >= fourth + 40 + 13 {
                4
            } else if cut >= ends[2] + 40 + 5 {
                3
            } else {
                2
            };
            assert_eq!(last, whole, "cut at {cut}");
        }
    }

    /// Pieces of the last batch in any combination of 8-byte words: never more than a prefix of
    /// it, never an error.
    #[test]
    fn a_last_batch_written_in_pieces_is_a_prefix() {
        let (b, ends) = three_batches();
        let words = (ends[3] - ends[2]) / 8;
        for missing in 0..words {
            let mut torn = Build { bytes: b.bytes.clone(), ..Build::new(1) };
            torn.bytes[ends[2] + missing * 8..][..8].fill(0);
            let replay = read(&[&torn]).unwrap();
            assert!((2..=4).contains(&replay.last.unwrap().index));
        }
    }

    #[test]
    fn a_flipped_bit_before_the_last_batch_is_damage() {
        let (b, ends) = three_batches();
        for byte in HEADER_BYTES as usize..ends[2] {
            let mut flipped = Build { bytes: b.bytes.clone(), ..Build::new(1) };
            flipped.bytes[byte] ^= 0x10;
            match read(&[&flipped]) {
                Err(LogError::Damaged { .. }) => {}
                // Padding behind a payload isn't covered, and means nothing.
                Ok(replay) => assert_eq!(replay.last, pos(1, 4), "byte {byte}"),
                Err(other) => panic!("byte {byte}: {other}"),
            }
        }
    }

    #[test]
    fn left_overs_of_a_torn_batch_never_come_back() {
        let (b, ends) = three_batches();
        // The first record of the last batch was lost, its second one wasn't.
        let mut torn = Build { bytes: b.bytes.clone(), ..Build::new(1) };
        torn.bytes[ends[2]..ends[2] + record_bytes(5)].fill(0);
        let replay = read(&[&torn]).unwrap();
        assert_eq!(replay.last, pos(1, 2));
        // Writing goes on there, with a record of exactly the lost one's size and content.
        (torn.at, torn.chain) = (replay.segments[0].end as usize, replay.segments[0].chain);
        torn.batch(&[(Kind::Normal, Some((2, 3)), b"three")]);
        assert_eq!(torn.at, ends[2] + record_bytes(5));
        assert_eq!(read(&[&torn]).unwrap().last, pos(2, 3));
    }

    #[test]
    fn truncating_and_jumping() {
        let (mut b, _) = three_batches();
        b.batch(&[(Kind::Truncate, Some((1, 2)), b"")]);
        let replay = read(&[&b]).unwrap();
        assert_eq!((replay.base, replay.last), (None, pos(1, 2)));
        assert_eq!(replay.segments[0].index.end(), 3);
        b.batch(&[(Kind::Normal, Some((2, 3)), b"other three")]);
        assert_eq!(read(&[&b]).unwrap().last, pos(2, 3));
        b.batch(&[(Kind::Jump, Some((2, 50)), b"")]);
        let replay = read(&[&b]).unwrap();
        assert_eq!((replay.base, replay.last), (pos(2, 50), pos(2, 50)));
        b.batch(&[(Kind::Blank, Some((3, 51)), b"")]);
        let replay = read(&[&b]).unwrap();
        assert_eq!((replay.base, replay.last), (pos(2, 50), pos(3, 51)));
        assert_eq!((replay.segments[0].index.first, replay.segments[0].index.end()), (51, 52));
    }

    #[test]
    fn segments_follow_each_other() {
        let (first, _) = three_batches();
        let mut second = Build::new(2);
        let unused = Build::new(3);
        let replay = read(&[&first, &second, &unused]).unwrap();
        assert_eq!(replay.segments.iter().map(|s| s.empty).collect::<Vec<_>>(), [false, true, true]);
        second.batch(&[(Kind::Continue, Some((1, 4)), b"nonce456"), (Kind::Blank, Some((1, 5)), b"")]);
        let replay = read(&[&first, &second, &unused]).unwrap();
        assert_eq!(replay.last, pos(1, 5));
        // The older segment may be dropped.
        let replay = read(&[&second, &unused]).unwrap();
        assert_eq!((replay.base, replay.last), (pos(1, 4), pos(1, 5)));
        // But not from the middle, and not in part.
        assert!(matches!(read(&[&first, &unused]), Err(LogError::Damaged { .. })));
        let (mut short, ends) = three_batches();
        short.bytes[ends[2]..].fill(0);
        assert!(matches!(read(&[&short, &second]), Err(LogError::Damaged { .. })));
        // A truncation below what the dropped segment held.
        second.batch(&[(Kind::Truncate, Some((1, 2)), b""), (Kind::Blank, Some((2, 3)), b"")]);
        let replay = read(&[&first, &second]).unwrap();
        assert_eq!((replay.base, replay.last), (None, pos(2, 3)));
        assert_eq!(replay.segments[0].index.end(), 3);
        let replay = read(&[&second]).unwrap();
        assert_eq!((replay.base, replay.last), (pos(1, 2), pos(2, 3)));
    }

    #[test]
    fn refuses_what_is_not_ours() {
        let (b, _) = three_batches();
        let read = |bytes: &[u8], member| Replay::default().read_segment(Path::new("x"), bytes, member);
        assert!(matches!(read(&b.bytes, 2), Err(LogError::OtherMember { found: 1, expected: 2, .. })));
        assert!(matches!(read(b"something else", 1), Err(LogError::Foreign { .. })));
        let mut newer = b.bytes.clone();
        newer[8] = 2;
        let error = read(&newer, 1).unwrap_err();
        assert!(
            error.to_string().contains("format version 2, this program reads versions up to 1"),
            "{error}"
        );
        let mut damaged = b.bytes.clone();
        damaged[25] ^= 1;
        assert!(matches!(read(&damaged, 1), Err(LogError::Damaged { offset: 0, .. })));
        assert!(matches!(read(&b.bytes[..5000], 1), Err(LogError::Damaged { .. })));
    }
}
