//! Frames: what the two ends of a connection exchange once the handshake is done.
//!
//! ```text
//! 0      4     6     8            16         20        24
//! ├──────┼─────┼─────┼────────────┼──────────┼─────────┼── meta ──┬── body ──┤
//! │total │kind │type │ request id │ meta len │ crc32c  │ postcard │ raw bytes│
//! │ u32  │ u16 │ u16 │    u64     │   u32    │  u32    │          │          │
//! ```
//!
//! All integers are little-endian; `total` counts the whole frame, header included. The CRC-32C covers the
//! header's first 20 bytes and `meta`. It does not cover `body`: chunk data carries the checksums of its
//! blocks in `meta`, so a second pass over it would buy nothing.
//!
//! A frame that breaks a rule ends its connection: after that nobody can say where the next one begins.

use bytes::{Buf, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use serde::Serialize;

use crate::buffers::{self, Buffer};
use crate::secure::{Source, TAG_BYTES};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 24;
/// The longest `meta` of a frame, in bytes: a page of a directory, a batch of journal operations with their
/// inline data, a batch of log entries.
pub const META_BYTES_MAX: usize = 2 << 20;
/// The longest `body` of a frame, in bytes. Longer reads and writes are cut into several calls.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// The longest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + META_BYTES_MAX + BODY_BYTES_MAX;

/// Bytes that one read from the socket may bring in; small frames are cut out of this buffer without copying.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// With less than this many bytes left, the read buffer is replaced.
const READ_ROOM_BYTES_MIN: usize = 8 << 10;
/// Bodies up to this many bytes stay in the read buffer; a longer one gets memory of its own ([`buffers`]), into which
/// the rest of it is read directly. (A small slice that is kept for long keeps the whole buffer, so what is
/// kept should be copied by who keeps it.)
const SHARED_BODY_BYTES_MAX: usize = 16 << 10;

/// What a frame is for; the header's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameType {
    /// A request that gets a reply or an error with the same request id.
    Request = 1,
    /// The answer to a request.
    Reply = 2,
    /// The refusal of a request: `meta` is a [`Status`](crate::status::Status). With request id 0 it is about the connection,
    /// which is then closed.
    Error = 3,
    /// A request that gets no answer.
    OneWay = 4,
    /// From the server to the client, unasked and without an answer (a recall, for example).
    Push = 5,
    /// Are you there? Answered with a [`FrameType::Pong`].
    Ping = 6,
    /// I'm here.
    Pong = 7,
    /// The server closes the connection; requests that it hasn't answered were not carried out.
    Goodbye = 8,
}

impl FrameType {
    fn from_wire(value: u16) -> Option<FrameType> {
        Some(match value {
            1 => FrameType::Request,
            2 => FrameType::Reply,
            3 => FrameType::Error,
            4 => FrameType::OneWay,
            5 => FrameType::Push,
            6 => FrameType::Ping,
            7 => FrameType::Pong,
            8 => FrameType::Goodbye,
            _ => return None,
        })
    }
}

/// A peer sent something that is not a frame, or a frame ends too early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The socket failed.
    #[error("reading failed: {0}")]
    Io(#[from] std::io::Error),
    /// The connection ended in the middle of a frame.
    #[error("the connection ended {have} bytes into a frame")]
    Torn {
        /// Bytes of the frame that had come.
        have: usize,
    },
    /// A length is beyond its limit.
    #[error("a frame's {what} of {bytes} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Which length.
        what: &'static str,
        /// What it says.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The lengths in the header contradict each other.
    #[error("a frame of {total} bytes can't have {meta} bytes of metadata")]
    Lengths {
        /// The whole frame.
        total: usize,
        /// Its meta.
        meta: usize,
    },
    /// The checksum over header and meta is wrong.
    #[error("a frame's header and metadata have a wrong checksum ({found:08x}, expected {expected:08x})")]
    Checksum {
        /// As computed here.
        found: u32,
        /// As in the header.
        expected: u32,
    },
    /// The header's `type` is none that this protocol version has.
    #[error("a frame has the unknown type {0}")]
    UnknownType(u16),
    /// The frame's type makes no sense in this direction.
    #[error("a {0:?} frame isn't allowed here")]
    Unexpected(FrameType),
    /// The message inside can't be encoded or decoded.
    #[error("message of kind {kind:#06x}: {reason}")]
    Message {
        /// The message's kind.
        kind: u16,
        /// What the codec says.
        reason: String,
    },
}

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub frame_type: FrameType,
    /// The message's kind: which type `meta` encodes.
    pub kind: u16,
    /// Chosen by the caller, repeated in the answer.
    pub request_id: u64,
    /// The encoded message.
    pub meta: Bytes,
    /// Raw bytes.
    pub body: Bytes,
}

impl Frame {
    /// Bytes on the wire.
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.meta.len() + self.body.len()
    }
}

/// The bytes after a message: none, one piece or several, written as they are.
#[derive(Debug, Clone, Default)]
pub enum Body {
    /// No bytes.
    #[default]
    Empty,
    /// One piece.
    One(Bytes),
    /// Several pieces that the receiver gets as one.
    Many(Vec<Bytes>),
}

impl Body {
    /// How many bytes in all.
    pub fn len(&self) -> usize {
        match self {
            Body::Empty => 0,
            Body::One(piece) => piece.len(),
            Body::Many(pieces) => pieces.iter().map(Bytes::len).sum(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As one piece: several are copied.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Body::Empty => Bytes::new(),
            Body::One(piece) => piece,
            Body::Many(pieces) => {
                let mut all = buffers::take(pieces.iter().map(Bytes::len).sum());
                let mut rest = all.as_mut();
                for piece in pieces {
                    let (now, later) = rest.split_at_mut(piece.len());
                    now.copy_from_slice(&piece);
                    rest = later;
                }
                all.freeze()
            }
        }
    }
}

impl From<()> for Body {
    fn from((): ()) -> Body {
        Body::Empty
    }
}

impl From<Bytes> for Body {
    fn from(piece: Bytes) -> Body {
        if piece.is_empty() { Body::Empty } else { Body::One(piece) }
    }
}

impl From<BytesMut> for Body {
    fn from(piece: BytesMut) -> Body {
        piece.freeze().into()
    }
}

impl From<Vec<u8>> for Body {
    fn from(piece: Vec<u8>) -> Body {
        Bytes::from(piece).into()
    }
}

impl From<Vec<Bytes>> for Body {
    fn from(mut pieces: Vec<Bytes>) -> Body {
        match pieces.len() {
            0 => Body::Empty,
            1 => pieces.remove(0).into(),
            _ => Body::Many(pieces),
        }
    }
}

/// A frame to be written: header and meta in one piece, and the body's pieces.
#[derive(Debug)]
pub struct OutFrame {
    /// Header and meta.
    pub head: Bytes,
    /// The body.
    pub body: Body,
}

impl OutFrame {
    /// A frame around a message that is encoded already.
    pub fn raw(
        frame_type: FrameType,
        kind: u16,
        request_id: u64,
        meta: &[u8],
        body: Body,
    ) -> Result<OutFrame, FrameError> {
        let mut head = Vec::with_capacity(HEADER_BYTES + meta.len());
        head.resize(HEADER_BYTES, 0);
        head.extend_from_slice(meta);
        OutFrame::finish(frame_type, kind, request_id, head, body)
    }

    /// A frame around `message`, encoded straight into the frame's head.
    pub fn encode<M: Serialize + ?Sized>(
        frame_type: FrameType,
        kind: u16,
        request_id: u64,
        message: &M,
        body: Body,
    ) -> Result<OutFrame, FrameError> {
        let mut head = Vec::with_capacity(HEADER_BYTES + 104);
        head.resize(HEADER_BYTES, 0);
        let head = postcard::to_extend(message, head)
            .map_err(|error| FrameError::Message { kind, reason: error.to_string() })?;
        OutFrame::finish(frame_type, kind, request_id, head, body)
    }

    fn finish(
        frame_type: FrameType,
        kind: u16,
        request_id: u64,
        mut head: Vec<u8>,
        body: Body,
    ) -> Result<OutFrame, FrameError> {
        let meta_bytes = head.len() - HEADER_BYTES;
        let body_bytes = body.len();
        check_lengths(meta_bytes, body_bytes)?;
        let total = head.len() + body_bytes;
        head[0..4].copy_from_slice(&(total as u32).to_le_bytes());
        head[4..6].copy_from_slice(&kind.to_le_bytes());
        head[6..8].copy_from_slice(&(frame_type as u16).to_le_bytes());
        head[8..16].copy_from_slice(&request_id.to_le_bytes());
        head[16..20].copy_from_slice(&(meta_bytes as u32).to_le_bytes());
        let crc = head_checksum(&head);
        head[20..24].copy_from_slice(&crc.to_le_bytes());
        Ok(OutFrame { head: head.into(), body })
    }

    /// Bytes on the wire.
    pub fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

pub(crate) fn check_lengths(meta: usize, body: usize) -> Result<(), FrameError> {
    if meta > META_BYTES_MAX {
        return Err(FrameError::TooLong { what: "meta", bytes: meta, limit: META_BYTES_MAX });
    }
    if body > BODY_BYTES_MAX {
        return Err(FrameError::TooLong { what: "body", bytes: body, limit: BODY_BYTES_MAX });
    }
    Ok(())
}

/// The checksum of a head (header and meta), without the four bytes where it is stored.
fn head_checksum(head: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&head[..HEADER_BYTES - 4]);
    digest.update(&head[HEADER_BYTES..]);
    digest.finalize() as u32
}

/// Reads frames from a connection.
///
/// Reading is split in two, so that the owner can act between "all that has come is handled" and "wait for
/// more": [`FrameReader::buffered`] never waits, [`FrameReader::fill`] does nothing else.
pub struct FrameReader {
    source: Source,
    buffer: BytesMut,
    partial: Option<Partial>,
}

/// A frame whose long body is still coming in.
struct Partial {
    frame: Frame,
    /// With room for a tag behind the body.
    body: Buffer,
    have: usize,
    need: usize,
}

impl FrameReader {
    /// A reader of what comes after the handshake.
    pub fn new(source: Source) -> FrameReader {
        FrameReader { source, buffer: BytesMut::new(), partial: None }
    }

    /// The next frame, waiting for it; `None` when the peer closed the connection between two frames.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next frame if all of it has come.
    pub fn buffered(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(mut partial) = self.partial.take() {
            if partial.have < partial.need {
                self.partial = Some(partial);
                return Ok(None);
            }
            partial.body.truncate(partial.need);
            return Ok(Some(Frame { body: partial.body.freeze(), ..partial.frame }));
        }
        let Some(header) = Header::parse(&self.buffer)? else { return Ok(None) };
        let head_bytes = HEADER_BYTES + header.meta_bytes;
        if self.buffer.len() < head_bytes {
            return Ok(None);
        }
        let found = head_checksum(&self.buffer[..head_bytes]);
        if found != header.checksum {
            return Err(FrameError::Checksum { found, expected: header.checksum });
        }
        let frame_type =
            FrameType::from_wire(header.frame_type).ok_or(FrameError::UnknownType(header.frame_type))?;
        if header.body_bytes <= SHARED_BODY_BYTES_MAX && self.buffer.len() < head_bytes + header.body_bytes {
            return Ok(None);
        }
        let mut meta = self.buffer.split_to(head_bytes).freeze();
        meta.advance(HEADER_BYTES);
        let mut frame =
            Frame { frame_type, kind: header.kind, request_id: header.request_id, meta, body: Bytes::new() };
        if header.body_bytes == 0 {
            return Ok(Some(frame));
        }
        if header.body_bytes <= SHARED_BODY_BYTES_MAX {
            frame.body = self.buffer.split_to(header.body_bytes).freeze();
            return Ok(Some(frame));
        }
        let mut body = buffers::take(header.body_bytes + TAG_BYTES);
        let here = header.body_bytes.min(self.buffer.len());
        body.as_mut()[..here].copy_from_slice(&self.buffer[..here]);
        self.buffer.advance(here);
        self.partial = Some(Partial { frame, body, have: here, need: header.body_bytes });
        if here == header.body_bytes { self.buffered() } else { Ok(None) }
    }

    /// Reads and forgets until the peer closes or the connection fails. Who closes a socket with unread bytes in it
    /// makes the system throw away what it has sent last; this is for last words that are to arrive.
    pub async fn discard(&mut self) {
        self.partial = None;
        loop {
            self.buffer.clear();
            self.buffer.reserve(READ_BUFFER_BYTES);
            if !matches!(self.source.read(&mut self.buffer, READ_BUFFER_BYTES).await, Ok(1..)) {
                return;
            }
        }
    }

    /// Waits for more bytes; `false` when the peer closed the connection between two frames.
    pub async fn fill(&mut self) -> Result<bool, FrameError> {
        let read = match &mut self.partial {
            Some(partial) => {
                let missing = partial.need - partial.have;
                let read = self.source.read_into(&mut partial.body.as_mut()[partial.have..], missing).await?;
                partial.have += read;
                read
            }
            None => {
                let wanted = Header::parse(&self.buffer)?.map_or(0, |header| {
                    let in_buffer =
                        if header.body_bytes <= SHARED_BODY_BYTES_MAX { header.body_bytes } else { 0 };
                    (HEADER_BYTES + header.meta_bytes + in_buffer).saturating_sub(self.buffer.len())
                });
                let room = self.buffer.capacity() - self.buffer.len();
                if room < wanted.max(READ_ROOM_BYTES_MIN) {
                    self.buffer.reserve(wanted.max(READ_BUFFER_BYTES));
                }
                let room = self.buffer.capacity() - self.buffer.len();
                self.source.read(&mut self.buffer, room).await?
            }
        };
        if read > 0 {
            return Ok(true);
        }
        match &self.partial {
            None if self.buffer.is_empty() => Ok(false),
            None => Err(FrameError::Torn { have: self.buffer.len() }),
            Some(partial) => {
                Err(FrameError::Torn { have: HEADER_BYTES + partial.frame.meta.len() + partial.have })
            }
        }
    }
}

struct Header {
    kind: u16,
    frame_type: u16,
    request_id: u64,
    meta_bytes: usize,
    body_bytes: usize,
    checksum: u32,
}

impl Header {
    /// The header at the beginning of `buffer`, its lengths checked, if all of it is there.
    fn parse(mut buffer: &[u8]) -> Result<Option<Header>, FrameError> {
        if buffer.len() < HEADER_BYTES {
            return Ok(None);
        }
        let total = buffer.get_u32_le() as usize;
        let kind = buffer.get_u16_le();
        let frame_type = buffer.get_u16_le();
        let request_id = buffer.get_u64_le();
        let meta_bytes = buffer.get_u32_le() as usize;
        let checksum = buffer.get_u32_le();
        if total > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { what: "length", bytes: total, limit: FRAME_BYTES_MAX });
        }
        let Some(body_bytes) = total.checked_sub(HEADER_BYTES).and_then(|rest| rest.checked_sub(meta_bytes))
        else {
            return Err(FrameError::Lengths { total, meta: meta_bytes });
        };
        check_lengths(meta_bytes, body_bytes)?;
        Ok(Some(Header { kind, frame_type, request_id, meta_bytes, body_bytes, checksum }))
    }
}
