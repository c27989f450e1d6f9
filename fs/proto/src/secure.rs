//! The two halves of a connection after the handshake: bytes as they are, or in Noise records.
//!
//! A record is a u16 (little-endian) with the length of what follows, at most 65535 bytes: ciphertext and
//! its tag. Records have nothing to do with frames: many small frames share one, a long one takes many.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use snow::StatelessTransportState;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;

use crate::frame::{Body, OutFrame};

/// The reading half of a stream.
pub type BoxRead = Box<dyn AsyncRead + Send + Sync + Unpin>;
/// The writing half of a stream.
pub type BoxWrite = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// The longest Noise message, in bytes.
const RECORD_BYTES_MAX: usize = 65535;
/// The authentication tag of a Noise message, in bytes.
pub(crate) const TAG_BYTES: usize = 16;
/// The most plaintext that one record holds, in bytes.
const RECORD_PLAIN_BYTES_MAX: usize = RECORD_BYTES_MAX - TAG_BYTES;
/// Ciphertext that is read ahead, in bytes.
const CIPHER_READ_BYTES: usize = 128 << 10;
/// Ciphertext that is made ahead of the socket, in bytes.
const CIPHER_AHEAD_BYTES_MAX: usize = 256 << 10;
/// Slices of one vectored write.
const WRITE_SLICES_MAX: usize = 64;

/// The keys of an encrypted connection, shared by its two halves. Each half counts its own nonce.
pub type Cipher = Arc<StatelessTransportState>;

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The reading half of a connection.
pub struct Source {
    io: BoxRead,
    sealed: Option<SealedSource>,
}

struct SealedSource {
    cipher: Cipher,
    nonce: u64,
    raw: BytesMut,
    plain: BytesMut,
}

impl Source {
    /// Bytes as they come.
    pub fn plain(io: BoxRead) -> Source {
        Source { io, sealed: None }
    }

    /// Bytes out of Noise records; `nonce` is the number of the first record.
    pub fn sealed(io: BoxRead, cipher: Cipher, nonce: u64) -> Source {
        Source {
            io,
            sealed: Some(SealedSource { cipher, nonce, raw: BytesMut::new(), plain: BytesMut::new() }),
        }
    }

    /// Appends at most `max` bytes (at least one) to `into`, which has room for them (and for a tag
    /// more, if nothing is to be copied twice). Returns how many; 0 when the peer closed.
    pub async fn read(&mut self, into: &mut BytesMut, max: usize) -> io::Result<usize> {
        let Some(sealed) = &mut self.sealed else {
            return self.io.read_buf(&mut into.limit(max)).await;
        };
        loop {
            if !sealed.plain.is_empty() {
                let now = max.min(sealed.plain.len());
                into.extend_from_slice(&sealed.plain[..now]);
                sealed.plain.advance(now);
                return Ok(now);
            }
            match sealed.open(into, max)? {
                Opened::Some(0) => {}
                Opened::Some(bytes) => return Ok(bytes),
                Opened::NeedMore(room) => {
                    sealed.raw.reserve(room.max(CIPHER_READ_BYTES));
                    if self.io.read_buf(&mut sealed.raw).await? == 0 {
                        return if sealed.raw.is_empty() {
                            Ok(0)
                        } else {
                            Err(io::ErrorKind::UnexpectedEof.into())
                        };
                    }
                }
            }
        }
    }
}

enum Opened {
    Some(usize),
    NeedMore(usize),
}

impl SealedSource {
    /// Opens the next record if all of it has come: into `into` if it has room, else into `self.plain`.
    fn open(&mut self, into: &mut BytesMut, max: usize) -> io::Result<Opened> {
        if self.raw.len() < 2 {
            return Ok(Opened::NeedMore(2 + RECORD_BYTES_MAX));
        }
        let bytes = usize::from(u16::from_le_bytes([self.raw[0], self.raw[1]]));
        if self.raw.len() < 2 + bytes {
            return Ok(Opened::NeedMore(2 + bytes - self.raw.len()));
        }
        let plain_bytes =
            bytes.checked_sub(TAG_BYTES).ok_or_else(|| broken("an encrypted record is too short"))?;
        // Opening happens in place, so it needs room for the tag too.
        let direct = plain_bytes <= max && into.capacity() - into.len() >= bytes;
        let target = if direct { &mut *into } else { &mut self.plain };
        let start = target.len();
        target.resize(start + bytes, 0);
        self.cipher
            .read_message(self.nonce, &self.raw[2..2 + bytes], &mut target[start..])
            .map_err(|_| broken("an encrypted record doesn't verify: it was damaged or tampered with"))?;
        target.truncate(start + plain_bytes);
        self.nonce += 1;
        self.raw.advance(2 + bytes);
        Ok(Opened::Some(if direct { plain_bytes } else { 0 }))
    }
}

/// The writing half of a connection, with what is still to be written.
pub struct Sink {
    io: BoxWrite,
    wire: VecDeque<Piece>,
    wire_bytes: usize,
    sealed: Option<SealedSink>,
}

struct SealedSink {
    cipher: Cipher,
    nonce: u64,
    plain: VecDeque<Piece>,
    scratch: Vec<u8>,
}

/// Bytes to be written, and what is let go of when they are.
struct Piece {
    bytes: Bytes,
    permit: Option<FramePermit>,
}

/// Held until a frame was written: its shares of a connection's bounds.
#[derive(Debug)]
pub struct FramePermit {
    /// Of the bound on requests.
    pub request: OwnedSemaphorePermit,
    /// Of the bound on bytes.
    pub bytes: OwnedSemaphorePermit,
}

impl Sink {
    /// Bytes as they are.
    pub fn plain(io: BoxWrite) -> Sink {
        Sink { io, wire: VecDeque::new(), wire_bytes: 0, sealed: None }
    }

    /// Bytes in Noise records; `nonce` is the number of the first record.
    pub fn sealed(io: BoxWrite, cipher: Cipher, nonce: u64) -> Sink {
        let sealed = SealedSink { cipher, nonce, plain: VecDeque::new(), scratch: Vec::new() };
        Sink { sealed: Some(sealed), ..Sink::plain(io) }
    }

    /// Adds a frame to what is to be written.
    pub fn add(&mut self, frame: OutFrame, permit: Option<FramePermit>) {
        let (queue, counted) = match &mut self.sealed {
            Some(sealed) => (&mut sealed.plain, None),
            None => (&mut self.wire, Some(&mut self.wire_bytes)),
        };
        if let Some(counted) = counted {
            *counted += frame.bytes();
        }
        queue.push_back(Piece { bytes: frame.head, permit: None });
        match frame.body {
            Body::Empty => {}
            Body::One(bytes) if bytes.is_empty() => {}
            Body::One(bytes) => queue.push_back(Piece { bytes, permit: None }),
            Body::Many(pieces) => {
                queue.extend(
                    pieces.into_iter().filter(|p| !p.is_empty()).map(|bytes| Piece { bytes, permit: None }),
                );
            }
        }
        if let Some(last) = queue.back_mut() {
            last.permit = permit;
        }
    }

    /// Writes all that was added; ready when nothing is left.
    pub fn poll_write_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.seal()?;
            if self.wire.is_empty() {
                return Pin::new(&mut self.io).poll_flush(cx);
            }
            let written = {
                let mut slices = [io::IoSlice::new(&[]); WRITE_SLICES_MAX];
                let mut used = 0;
                for (slot, piece) in slices.iter_mut().zip(&self.wire) {
                    *slot = io::IoSlice::new(&piece.bytes);
                    used += 1;
                }
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..used]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written(written);
        }
    }

    /// Closes the writing direction once all is written.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn written(&mut self, mut bytes: usize) {
        self.wire_bytes -= bytes;
        while bytes > 0 {
            let Some(first) = self.wire.front_mut() else { return };
            if bytes < first.bytes.len() {
                first.bytes.advance(bytes);
                return;
            }
            bytes -= first.bytes.len();
            if let Some(piece) = self.wire.pop_front() {
                drop(piece.permit);
            }
        }
    }

    /// Turns plaintext into records, as long as there isn't enough ciphertext waiting.
    fn seal(&mut self) -> io::Result<()> {
        let Some(sealed) = &mut self.sealed else { return Ok(()) };
        while self.wire_bytes < CIPHER_AHEAD_BYTES_MAX && !sealed.plain.is_empty() {
            let record = sealed.record()?;
            self.wire_bytes += record.len();
            self.wire.push_back(Piece { bytes: record, permit: None });
        }
        Ok(())
    }
}

impl SealedSink {
    fn record(&mut self) -> io::Result<Bytes> {
        if let Some(first) = self.plain.front_mut()
            && first.bytes.len() > RECORD_PLAIN_BYTES_MAX
        {
            let plain = first.bytes.split_to(RECORD_PLAIN_BYTES_MAX);
            return self.seal(&plain);
        }
        let mut plain = std::mem::take(&mut self.scratch);
        plain.clear();
        while let Some(first) = self.plain.front_mut() {
            let now = first.bytes.len().min(RECORD_PLAIN_BYTES_MAX - plain.len());
            plain.extend_from_slice(&first.bytes[..now]);
            first.bytes.advance(now);
            if !first.bytes.is_empty() {
                break;
            }
            self.plain.pop_front();
        }
        let record = self.seal(&plain);
        self.scratch = plain;
        record
    }

    fn seal(&mut self, plain: &[u8]) -> io::Result<Bytes> {
        let sealed_bytes = plain.len() + TAG_BYTES;
        let mut record = vec![0; 2 + sealed_bytes];
        record[..2].copy_from_slice(&(sealed_bytes as u16).to_le_bytes());
        self.cipher
            .write_message(self.nonce, plain, &mut record[2..])
            .map_err(|_| broken("a record could not be encrypted"))?;
        self.nonce += 1;
        Ok(record.into())
    }
}
