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

    /// Appends at most `max` bytes (at least one) to `into`, which has room for them (and for a tag more, if nothing is to be
    /// copied twice). Returns how many; 0 when the peer closed.
    pub async fn read(&mut self, into: &mut BytesMut, max: usize) -> io::Result<usize> {
        let Some(sealed) = &mut self.sealed else {
            return self.io.read_buf(&mut into.limit(max)).await;
        };
        if sealed.plain.is_empty() {
            let Some(record) = sealed.record(&mut self.io).await? else { return Ok(0) };
            if fits(record, max, into.capacity() - into.len()) {
                let start = into.len();
                into.resize(start + record, 0);
                let bytes = sealed.open(record, &mut into[start..])?;
                into.truncate(start + bytes);
                return Ok(bytes);
            }
            if !sealed.next_into_plain(&mut self.io).await? {
                return Ok(0);
            }
        }
        let now = max.min(sealed.plain.len());
        into.extend_from_slice(&sealed.plain[..now]);
        sealed.plain.advance(now);
        Ok(now)
    }

    /// Fills the beginning of `into`: at most `max` bytes of it, at least one. With room for a tag behind them nothing is
    /// copied twice. Returns how many; 0 when the peer closed.
    pub async fn read_into(&mut self, into: &mut [u8], max: usize) -> io::Result<usize> {
        let Some(sealed) = &mut self.sealed else {
            return self.io.read(&mut into[..max]).await;
        };
        if sealed.plain.is_empty() {
            let Some(record) = sealed.record(&mut self.io).await? else { return Ok(0) };
            if fits(record, max, into.len()) {
                return sealed.open(record, into);
            }
            if !sealed.next_into_plain(&mut self.io).await? {
                return Ok(0);
            }
        }
        let now = max.min(sealed.plain.len());
        into[..now].copy_from_slice(&sealed.plain[..now]);
        sealed.plain.advance(now);
        Ok(now)
    }
}

/// Whether a record that isn't empty can be opened in place where at most `max` bytes are wanted and `room` is.
fn fits(record: usize, max: usize, room: usize) -> bool {
    (TAG_BYTES + 1..=max + TAG_BYTES).contains(&record) && record <= room
}

impl SealedSource {
    /// Waits until all of the next record has come: the length of what is sealed in it. `None` when the peer closed.
    async fn record(&mut self, io: &mut BoxRead) -> io::Result<Option<usize>> {
        loop {
            let missing = match self.raw.get(..2) {
                None => 2 + RECORD_BYTES_MAX,
                Some(length) => {
                    let bytes = usize::from(u16::from_le_bytes([length[0], length[1]]));
                    if bytes < TAG_BYTES {
                        return Err(broken("an encrypted record is too short"));
                    }
                    if self.raw.len() >= 2 + bytes {
                        return Ok(Some(bytes));
                    }
                    2 + bytes - self.raw.len()
                }
            };
            self.raw.reserve(missing.max(CIPHER_READ_BYTES));
            if io.read_buf(&mut self.raw).await? == 0 {
                return if self.raw.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Opens the next record, which has come, into the beginning of `target`; that has room for all of it, tag included,
    /// since it is opened in place. Returns how many bytes were in it.
    fn open(&mut self, record: usize, target: &mut [u8]) -> io::Result<usize> {
        self.cipher
            .read_message(self.nonce, &self.raw[2..2 + record], &mut target[..record])
            .map_err(|_| broken("an encrypted record doesn't verify: it was damaged or tampered with"))?;
        self.nonce += 1;
        self.raw.advance(2 + record);
        Ok(record - TAG_BYTES)
    }

    /// Opens the next record that isn't empty into `self.plain`, which is; false when the peer closed.
    async fn next_into_plain(&mut self, io: &mut BoxRead) -> io::Result<bool> {
        let mut plain = std::mem::take(&mut self.plain);
        while plain.is_empty() {
            let Some(record) = self.record(io).await? else { return Ok(false) };
            plain.resize(record, 0);
            let bytes = self.open(record, &mut plain)?;
            plain.truncate(bytes);
        }
        self.plain = plain;
        Ok(true)
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
