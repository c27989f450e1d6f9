//! One record of a log segment, as bytes.

use crate::types::LogPosition;

/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 40;
/// Records begin at multiples of this.
pub(crate) const ALIGN: usize = 8;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// An entry without content.
    Blank = 1,
    /// An entry with a command.
    Normal = 2,
    /// An entry with a membership.
    Membership = 3,
    /// A mark: the log goes on after its position, which is the log's end here (the first record
    /// of a segment, and the first one after each opening).
    Continue = 16,
    /// A mark: entries after its position are void.
    Truncate = 17,
    /// A mark: entries up to its position are elsewhere (in an installed snapshot), and the log
    /// goes on after it.
    Jump = 18,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Blank,
            2 => Self::Normal,
            3 => Self::Membership,
            16 => Self::Continue,
            17 => Self::Truncate,
            18 => Self::Jump,
            _ => return None,
        })
    }

    pub(crate) fn is_entry(self) -> bool {
        matches!(self, Self::Blank | Self::Normal | Self::Membership)
    }
}

/// The header of a record. On disk, little-endian:
///
/// | bytes | field |
/// | --- | --- |
/// | 0..4 | CRC-32C of the segment's sequence number, bytes 4..40 and the payload |
/// | 4..8 | CRC of the record before it in this segment (of the segment's header, for the first) |
/// | 8..12 | length of the payload |
/// | 12 | kind |
/// | 13 | 1 if the position is one (a mark on an empty log has none) |
/// | 14..16 | zero |
/// | 16..20 | offset in the segment of the first record of its batch |
/// | 20..24 | zero |
/// | 24..32 | term |
/// | 32..40 | index |
///
/// The payload follows, then zeroes up to a multiple of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) crc: u32,
    pub(crate) prev_crc: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) kind: Kind,
    pub(crate) position: Option<LogPosition>,
    pub(crate) batch_start: u32,
}

/// Bytes that a record with such a payload takes.
pub(crate) fn record_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(ALIGN)
}

fn crc(sequence: u64, header: &[u8], payload: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    let mut start = [0; 8 + HEADER_BYTES - 4];
    start[..8].copy_from_slice(&sequence.to_le_bytes());
    start[8..].copy_from_slice(&header[4..HEADER_BYTES]);
    digest.update(&start);
    if !payload.is_empty() {
        digest.update(payload);
    }
    digest.finalize() as u32
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

/// Builds the header of a record and returns it with its CRC.
pub(crate) fn encode_header(
    sequence: u64,
    prev_crc: u32,
    batch_start: u32,
    kind: Kind,
    position: Option<LogPosition>,
    payload: &[u8],
) -> ([u8; HEADER_BYTES], u32) {
    let mut bytes = [0; HEADER_BYTES];
    bytes[4..8].copy_from_slice(&prev_crc.to_le_bytes());
    bytes[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes[12] = kind as u8;
    bytes[16..20].copy_from_slice(&batch_start.to_le_bytes());
    if let Some(position) = position {
        bytes[13] = 1;
        bytes[24..32].copy_from_slice(&position.term.to_le_bytes());
        bytes[32..40].copy_from_slice(&position.index.to_le_bytes());
    }
    let crc = crc(sequence, &bytes, payload);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    (bytes, crc)
}

/// Reads the header of the record at `at` without checking its CRC: `None` if it can't be one, or
/// if the record doesn't end within `segment_bytes`.
pub(crate) fn decode_header(bytes: &[u8], at: usize, segment_bytes: usize) -> Option<Header> {
    let header = bytes.get(at..at + HEADER_BYTES)?;
    let kind = Kind::from_byte(header[12])?;
    if header[14..16] != [0; 2] || header[20..24] != [0; 4] {
        return None;
    }
    let term = u64_at(header, 24);
    let index = u64_at(header, 32);
    let position = match header[13] {
        0 if term == 0 && index == 0 && !kind.is_entry() => None,
        // Nothing could come after the last number that there is.
        1 if index < u64::MAX => Some(LogPosition { term, index }),
        _ => return None,
    };
    let payload_bytes = u32_at(header, 8);
    if at.checked_add(record_bytes(payload_bytes as usize))? > segment_bytes {
        return None;
    }
    Some(Header {
        crc: u32_at(header, 0),
        prev_crc: u32_at(header, 4),
        payload_bytes,
        kind,
        position,
        batch_start: u32_at(header, 16),
    })
}

/// Reads and checks the record at `at` in a whole segment (or in a part of one that contains the
/// whole record): `None` if there is no intact record of this segment there.
pub(crate) fn decode(bytes: &[u8], at: usize, sequence: u64) -> Option<(Header, &[u8])> {
    let header = decode_header(bytes, at, bytes.len())?;
    let start = at + HEADER_BYTES;
    let payload = &bytes[start..start + header.payload_bytes as usize];
    (crc(sequence, &bytes[at..at + HEADER_BYTES], payload) == header.crc).then_some((header, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let position = Some(LogPosition { term: 3, index: 9 });
        let payload = b"some payload of a record";
        let (header, crc) = encode_header(7, 0xdead_beef, 4096, Kind::Normal, position, payload);
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(payload);
        bytes.resize(record_bytes(payload.len()), 0);
        let (decoded, read) = decode(&bytes, 0, 7).unwrap();
        assert_eq!((decoded.crc, decoded.position, read), (crc, position, &payload[..]));
        assert!(decode(&bytes, 0, 8).is_none(), "a record of another use of the file");
        for bit in 0..(HEADER_BYTES + payload.len()) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes, 0, 7).is_none(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], 0, 7).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn no_record_has_the_last_index_that_there_is() {
        let read = |index| {
            let position = Some(LogPosition { term: 1, index });
            let (header, _) = encode_header(7, 0, 4096, Kind::Continue, position, b"");
            decode(&header, 0, 7).map(|(header, _)| header.position)
        };
        assert_eq!(read(u64::MAX - 1), Some(Some(LogPosition { term: 1, index: u64::MAX - 1 })));
        assert_eq!(read(u64::MAX), None);
    }

    #[test]
    fn zeroes_are_no_record() {
        assert!(decode(&[0; 4096], 0, 1).is_none());
    }
}
