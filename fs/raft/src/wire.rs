//! Requests between members, as bytes.
//!
//! A request is a version byte, the member it is meant for (8 bytes, little-endian), and a body by
//! kind; an answer is a byte that says whether it is one, and a body or the reason. Bodies are
//! postcard, except those with much payload, whose payload follows as it is, so that it's not
//! copied when it's read. The structures are our own: a change inside openraft can't change them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::log_store::LogEntry;
use crate::record::Kind;
use crate::types::{LogPosition, MemberId};
use crate::vote::VoteRecord;

/// Kinds of requests.
pub(crate) mod kind {
    pub(crate) const VOTE: u16 = 1;
    pub(crate) const PRE_VOTE: u16 = 2;
    pub(crate) const APPEND: u16 = 3;
    pub(crate) const TRANSFER_LEADER: u16 = 4;
    pub(crate) const SNAPSHOT_BEGIN: u16 = 5;
    pub(crate) const SNAPSHOT_CHUNK: u16 = 6;
    pub(crate) const SNAPSHOT_END: u16 = 7;
    pub(crate) const THERE: u16 = 8;
}

const VERSION: u8 = 1;
const ANSWER: u8 = 0;
const REFUSAL: u8 = 1;

/// The bytes make no sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteRequest {
    pub(crate) vote: VoteRecord,
    pub(crate) last: Option<LogPosition>,
    pub(crate) leadership_transfer: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteAnswer {
    pub(crate) vote: VoteRecord,
    pub(crate) granted: bool,
    pub(crate) last: Option<LogPosition>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AppendRequest {
    pub(crate) vote: VoteRecord,
    pub(crate) previous: Option<LogPosition>,
    pub(crate) committed: Option<LogPosition>,
    pub(crate) entries: Vec<LogEntry>,
}

#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: VoteRecord,
    previous: Option<LogPosition>,
    committed: Option<LogPosition>,
    entries: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AppendAnswer {
    Success,
    Partial(Option<LogPosition>),
    Conflict,
    HigherVote(VoteRecord),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransferRequest {
    pub(crate) leader: VoteRecord,
    pub(crate) to: MemberId,
    pub(crate) last: Option<LogPosition>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotBegin {
    pub(crate) id: u64,
    pub(crate) term: u64,
    pub(crate) files: Vec<(String, u64)>,
}

/// The answer to [`SnapshotBegin`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotThere {
    /// Fingerprints of the first chunks of each file, as far as it is there.
    pub(crate) fingerprints: Vec<Vec<u64>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SnapshotChunk {
    pub(crate) id: u64,
    pub(crate) file: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotEnd {
    pub(crate) id: u64,
    pub(crate) vote: VoteRecord,
    pub(crate) position: Option<LogPosition>,
    pub(crate) membership: Vec<u8>,
}

fn start(to: MemberId, room: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(room + 9);
    bytes.put_u8(VERSION);
    bytes.put_u64_le(to);
    bytes
}

fn put(bytes: BytesMut, body: &impl Serialize) -> BytesMut {
    postcard::to_extend(body, bytes).unwrap_or_else(|e| {
        // Numbers, strings and collections of known length into a growing buffer.
        unreachable!("a request can always be encoded: {e}")
    })
}

/// A request with a body of postcard.
pub(crate) fn request(to: MemberId, body: &impl Serialize) -> Bytes {
    put(start(to, 64), body).freeze()
}

/// Reads the start of a request: for whom it is, and the body.
pub(crate) fn open_request(mut bytes: Bytes) -> Result<(MemberId, Bytes), Malformed> {
    if bytes.len() < 9 || bytes.get_u8() != VERSION {
        return Err(Malformed);
    }
    Ok((bytes.get_u64_le(), bytes))
}

/// Reads a body of postcard.
pub(crate) fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    postcard::from_bytes(bytes).map_err(|_| Malformed)
}

/// An answer.
pub(crate) fn answer(body: &impl Serialize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(64);
    bytes.put_u8(ANSWER);
    put(bytes, body).freeze()
}

/// A refusal, for a reason.
pub(crate) fn refusal(reason: &str) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + reason.len());
    bytes.put_u8(REFUSAL);
    bytes.put_slice(reason.as_bytes());
    bytes.freeze()
}

/// Reads an answer; a refusal's reason as an error.
pub(crate) fn open_answer<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&ANSWER, rest)) => body(rest).map_err(|_| "a malformed reply".into()),
        Some((&REFUSAL, reason)) => Err(String::from_utf8_lossy(reason).into_owned()),
        _ => Err("a malformed reply".into()),
    }
}

/// Bytes before the payload of an entry: kind, term, index, length.
const ENTRY_HEAD_BYTES: usize = 1 + 8 + 8 + 4;

impl AppendRequest {
    pub(crate) fn encode(&self, to: MemberId) -> Bytes {
        let payload: usize = self.entries.iter().map(|e| e.payload.len() + ENTRY_HEAD_BYTES).sum();
        let head = AppendHead {
            vote: self.vote,
            previous: self.previous,
            committed: self.committed,
            entries: self.entries.len() as u32,
        };
        let mut bytes = put(start(to, 128 + payload), &head);
        for entry in &self.entries {
            bytes.put_u8(entry.kind as u8);
            bytes.put_u64_le(entry.position.term);
            bytes.put_u64_le(entry.position.index);
            bytes.put_u32_le(entry.payload.len() as u32);
            bytes.put_slice(&entry.payload);
        }
        bytes.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        let (head, rest) = postcard::take_from_bytes::<AppendHead>(&bytes).map_err(|_| Malformed)?;
        let taken = bytes.len() - rest.len();
        bytes.advance(taken);
        let mut entries = Vec::with_capacity((head.entries as usize).min(4096));
        for _ in 0..head.entries {
            if bytes.len() < ENTRY_HEAD_BYTES {
                return Err(Malformed);
            }
            let kind = match bytes.get_u8() {
                1 => Kind::Blank,
                2 => Kind::Normal,
                3 => Kind::Membership,
                _ => return Err(Malformed),
            };
            let position = LogPosition { term: bytes.get_u64_le(), index: bytes.get_u64_le() };
            let len = bytes.get_u32_le() as usize;
            if bytes.len() < len {
                return Err(Malformed);
            }
            entries.push(LogEntry { position, kind, payload: bytes.split_to(len) });
        }
        if !bytes.is_empty() {
            return Err(Malformed);
        }
        Ok(Self { vote: head.vote, previous: head.previous, committed: head.committed, entries })
    }
}

impl SnapshotChunk {
    pub(crate) fn encode(&self, to: MemberId) -> Bytes {
        let mut bytes = start(to, 24 + self.bytes.len());
        bytes.put_u64_le(self.id);
        bytes.put_u32_le(self.file);
        bytes.put_u64_le(self.offset);
        bytes.put_u32_le(crc_fast::crc32_iscsi(&self.bytes));
        bytes.put_slice(&self.bytes);
        bytes.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        if bytes.len() < 24 {
            return Err(Malformed);
        }
        let (id, file, offset) = (bytes.get_u64_le(), bytes.get_u32_le(), bytes.get_u64_le());
        if bytes.get_u32_le() != crc_fast::crc32_iscsi(&bytes) {
            return Err(Malformed);
        }
        Ok(Self { id, file, offset, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> AppendRequest {
        let entry = |index, kind, payload: &'static [u8]| LogEntry {
            position: LogPosition { term: 3, index },
            kind,
            payload: Bytes::from_static(payload),
        };
        AppendRequest {
            vote: VoteRecord { term: 3, node: 1, committed: true },
            previous: Some(LogPosition { term: 2, index: 4 }),
            committed: None,
            entries: vec![
                entry(5, Kind::Blank, b""),
                entry(6, Kind::Normal, b"command"),
                entry(7, Kind::Membership, b"mm"),
            ],
        }
    }

    #[test]
    fn requests_survive_and_their_pieces_do_not() {
        let request = sample();
        let (to, bytes) = open_request(request.encode(42)).unwrap();
        assert_eq!(to, 42);
        assert_eq!(AppendRequest::decode(bytes.clone()).unwrap(), request);
        for cut in 0..bytes.len() {
            assert_eq!(AppendRequest::decode(bytes.slice(..cut)), Err(Malformed), "{cut}");
        }
        let chunk = SnapshotChunk { id: 7, file: 1, offset: 99, bytes: Bytes::from_static(b"content") };
        let (_, bytes) = open_request(chunk.encode(1)).unwrap();
        assert_eq!(SnapshotChunk::decode(bytes.clone()).unwrap(), chunk);
        let mut flipped = bytes.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(SnapshotChunk::decode(flipped.into()), Err(Malformed));
        assert_eq!(open_request(Bytes::from_static(b"\x02123456789")), Err(Malformed));
    }

    #[test]
    fn answers_and_refusals() {
        let sent = AppendAnswer::Partial(Some(LogPosition { term: 1, index: 2 }));
        assert_eq!(open_answer::<AppendAnswer>(&answer(&sent)), Ok(sent));
        assert_eq!(open_answer::<AppendAnswer>(&refusal("no room")), Err("no room".into()));
        assert!(open_answer::<AppendAnswer>(b"").is_err());
        assert!(open_answer::<AppendAnswer>(b"\x00").is_err());
    }
}
