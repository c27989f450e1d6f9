//! The way in for the fuzz targets (`hack/fuzz`): the log as it is read back from a disk, without a disk.

use std::path::Path;

use crate::record::{self, Kind};
use crate::segment::{self, Replay, SegmentHeader};
use crate::types::LogPosition;

const MEMBER: u64 = 1;
/// Segments of one input.
const SEGMENTS_MAX: usize = 3;
/// Bytes of records of one segment of it.
const RECORDS_BYTES_MAX: usize = 64 << 10;

/// Reads segments: a byte says how many, between which the rest is divided; each is its sequence number (8 bytes,
/// little-endian) and its records. Their checksums are made right first. True if they are a log.
///
/// # Panics
/// If an entry that was found can't be read: that would be a mistake here.
#[must_use]
pub fn read_log(data: &[u8]) -> bool {
    let path = Path::new("segment");
    // As it is: what is on a disk may be anything.
    let _ = Replay::default().read_segment(path, data, MEMBER);
    let Some((count, rest)) = data.split_first() else { return false };
    let count = 1 + usize::from(*count) % SEGMENTS_MAX;
    let mut replay = Replay::default();
    let mut segments = Vec::new();
    for part in rest.chunks(rest.len().div_ceil(count).max(1)) {
        let Some((sequence, records)) = part.split_first_chunk::<8>() else { return false };
        let records = &records[..records.len().min(RECORDS_BYTES_MAX)];
        let bytes = segment(u64::from_le_bytes(*sequence), records);
        if replay.read_segment(path, &bytes, MEMBER).is_err() {
            return false;
        }
        segments.push(bytes);
    }
    for (read, bytes) in replay.segments.iter().zip(&segments) {
        for offset in &read.index.offsets {
            let entry = record::decode(bytes, *offset as usize, read.header.sequence);
            assert!(entry.is_some_and(|(header, _)| header.kind.is_entry()), "an entry that isn't there");
        }
    }
    replay.last.is_some()
}

/// A segment of these records, each with the checksum that it should have.
fn segment(sequence: u64, records: &[u8]) -> Vec<u8> {
    let length =
        (segment::HEADER_BYTES as usize + records.len()).next_multiple_of(record::ALIGN) + record::ALIGN;
    let header = SegmentHeader { member: MEMBER, sequence, segment_bytes: length as u32 };
    let (mut bytes, mut chain) = header.encode();
    bytes.extend(records);
    bytes.resize(length, 0);
    let mut at = segment::HEADER_BYTES as usize;
    while let Some(header) = record::decode_header(&bytes, at, length) {
        let payload = at + record::HEADER_BYTES..at + record::HEADER_BYTES + header.payload_bytes as usize;
        let (right, crc) = record::encode_header(
            sequence,
            chain,
            header.batch_start,
            header.kind,
            header.position,
            &bytes[payload],
        );
        bytes[at..at + record::HEADER_BYTES].copy_from_slice(&right);
        at += record::record_bytes(header.payload_bytes as usize);
        chain = crc;
    }
    bytes
}

/// Logs as they are written, for [`read_log`].
#[must_use]
pub fn logs() -> Vec<Vec<u8>> {
    type Described<'a> = (Kind, Option<(u64, u64)>, &'a [u8]);
    let records = |all: &[Described<'_>]| {
        let mut bytes = Vec::new();
        for (kind, position, payload) in all {
            let position = position.map(|(term, index)| LogPosition { term, index });
            let (header, _) = record::encode_header(1, 0, segment::HEADER_BYTES, *kind, position, payload);
            bytes.extend(header);
            bytes.extend(*payload);
            bytes.resize(bytes.len().next_multiple_of(record::ALIGN), 0);
        }
        bytes
    };
    let first = records(&[
        (Kind::Continue, None, b""),
        (Kind::Membership, Some((0, 0)), b"members"),
        (Kind::Blank, Some((1, 1)), b""),
        (Kind::Normal, Some((1, 2)), b"command"),
    ]);
    let cut = records(&[
        (Kind::Continue, Some((1, 4)), b""),
        (Kind::Normal, Some((1, 5)), b"void"),
        (Kind::Truncate, Some((1, 4)), b""),
        (Kind::Normal, Some((2, 5)), b"command"),
        (Kind::Jump, Some((2, 9)), b""),
        (Kind::Normal, Some((2, 10)), b"x"),
    ]);
    let log = |records: Vec<u8>| [&[0][..], &1_u64.to_le_bytes(), &records].concat();
    vec![log(first), log(cut)]
}
