//! Connections of Go clients that name a socket's path as the request's `:authority`.
//!
//! kubelet dials a plugin's registration socket by its bare path, and gRPC for Go then sends that path, percent-encoded, as
//! `:authority`. That is no authority by the letter of the law, and the HTTP library here refuses the request
//! (`PROTOCOL_ERROR`). Nobody looks at that field on a socket, so on the way in its value is replaced by one that is
//! legal. Frames of other types pass as they are; of a header block only the bounds of its fields are read.
//!
//! The new value is shorter than any other, so the decoder's table never runs out of room before the encoder's does, and
//! what the encoder refers to by number is still there.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// The client's first bytes on a connection.
const PREFACE_BYTES: usize = 24;
/// Bytes of a frame's header.
const FRAME_HEADER_BYTES: usize = 9;
/// The type of a frame that begins a request.
const HEADERS: u8 = 1;
/// A frame's flag: its block of headers is complete.
const END_HEADERS: u8 = 0x4;
/// A frame's flag: padding follows.
const PADDED: u8 = 0x8;
/// A frame's flag: a priority comes first.
const PRIORITY: u8 = 0x20;
/// The number of `:authority` in the static table of names.
const AUTHORITY: usize = 1;
/// What is put in its place.
const LEGAL: &[u8] = b"a";
/// Bytes that are read at once.
const READ_BYTES: usize = 4096;

/// A connection whose requests have a legal `:authority`.
#[derive(Debug)]
pub struct AnyAuthority<S> {
    stream: S,
    filter: Filter,
}

impl<S> AnyAuthority<S> {
    /// Wraps a connection that was just accepted.
    pub fn new(stream: S) -> AnyAuthority<S> {
        AnyAuthority { stream, filter: Filter::default() }
    }
}

/// What has come and was not passed on, and where in the protocol it is.
#[derive(Debug)]
struct Filter {
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes that pass without being looked at.
    pass: usize,
}

impl Default for Filter {
    fn default() -> Filter {
        Filter { input: Vec::new(), output: Vec::new(), pass: PREFACE_BYTES }
    }
}

impl Filter {
    fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        while self.step() {}
    }

    /// Takes the next piece, if it is there as a whole.
    fn step(&mut self) -> bool {
        if self.pass > 0 {
            let count = self.pass.min(self.input.len());
            self.output.extend(self.input.drain(..count));
            self.pass -= count;
            return count > 0;
        }
        let Some((header, payload)) = self.input.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return false;
        };
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        if header[3] != HEADERS {
            self.pass = FRAME_HEADER_BYTES + length;
            return true;
        }
        let Some(payload) = payload.get(..length) else { return false };
        match legal_headers(header[4], payload) {
            Some((flags, payload)) => {
                self.output.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
                self.output.extend_from_slice(&[HEADERS, flags]);
                self.output.extend_from_slice(&header[5..]);
                self.output.extend_from_slice(&payload);
            }
            // The library says what is wrong with it.
            None => self.output.extend_from_slice(&self.input[..FRAME_HEADER_BYTES + length]),
        }
        self.input.drain(..FRAME_HEADER_BYTES + length);
        true
    }
}

/// The flags and payload of a HEADERS frame with another authority, without padding.
fn legal_headers(flags: u8, payload: &[u8]) -> Option<(u8, Vec<u8>)> {
    if flags & END_HEADERS == 0 {
        return None;
    }
    let (padding, rest) = match flags & PADDED {
        0 => (0, payload),
        _ => payload.split_first().map(|(padding, rest)| (usize::from(*padding), rest))?,
    };
    let rest = rest.get(..rest.len().checked_sub(padding)?)?;
    let (priority, block) = rest.split_at_checked(if flags & PRIORITY == 0 { 0 } else { 5 })?;
    let mut new = priority.to_vec();
    legal_block(block, &mut new)?;
    Some((flags & !PADDED, new))
}

/// Copies a block of headers (RFC 7541), with another value for `:authority`.
fn legal_block(mut block: &[u8], new: &mut Vec<u8>) -> Option<()> {
    while let Some(first) = block.first() {
        let (prefix_bits, literal) = match first {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            _ => (4, true),
        };
        let (index, mut used) = integer(block, prefix_bits)?;
        if literal {
            if index == 0 {
                used += string(block.get(used..)?)?;
            }
            let name_end = used;
            used += string(block.get(used..)?)?;
            let is_empty = block[name_end] & 0x7f == 0;
            if index == AUTHORITY && !is_empty {
                new.extend_from_slice(&block[..name_end]);
                new.push(LEGAL.len() as u8);
                new.extend_from_slice(LEGAL);
                block = block.get(used..)?;
                continue;
            }
        }
        new.extend_from_slice(block.get(..used)?);
        block = block.get(used..)?;
    }
    Some(())
}

/// An integer whose first bits are the last ones of a byte; and how many bytes it takes.
fn integer(bytes: &[u8], prefix_bits: u32) -> Option<(usize, usize)> {
    let most = (1_usize << prefix_bits) - 1;
    let first = usize::from(*bytes.first()?) & most;
    if first < most {
        return Some((first, 1));
    }
    let mut value = most;
    for (at, byte) in bytes.iter().enumerate().skip(1).take(4) {
        value += usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

/// How many bytes a string takes, its length included.
fn string(bytes: &[u8]) -> Option<usize> {
    let (length, used) = integer(bytes, 7)?;
    (bytes.len() >= used + length).then_some(used + length)
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.filter.output.is_empty() {
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.filter.push(read.filled());
        }
        let count = this.filter.output.len().min(buffer.remaining());
        buffer.put_slice(&this.filter.output[..count]);
        this.filter.output.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S> Connected for AnyAuthority<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
pub mod testing {
    //! Requests as kubelet sends them.

    /// A frame.
    pub fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
        frame.extend_from_slice(payload);
        frame
    }

    /// A block of headers: method POST, scheme http, a path and an authority (both kept in the table), a content type.
    pub fn block(path: &str, authority: &str) -> Vec<u8> {
        let mut block = vec![0x83, 0x86];
        for (index, value) in [(0x44, path), (0x41, authority), (0x5f, "application/grpc")] {
            block.push(index);
            block.push(value.len() as u8);
            block.extend_from_slice(value.as_bytes());
        }
        block.extend_from_slice(b"\x40\x02te\x08trailers");
        block
    }

    /// A whole connection with one call whose message is empty.
    pub fn call(path: &str, authority: &str) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(1, 0x4, 1, &block(path, authority)));
        bytes.extend(frame(0, 0x1, 1, &[0; 5]));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{block, call, frame};
    use super::*;

    fn filtered(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut filter = Filter::default();
        for piece in bytes.chunks(piece) {
            filter.push(piece);
        }
        assert!(filter.input.is_empty(), "everything was passed on");
        filter.output
    }

    #[test]
    fn a_path_as_authority_becomes_legal_however_the_bytes_arrive() {
        let given = call("/p.S/M", "%2Fvar%2Flib%2Fkubelet%2Fx-reg.sock");
        let expected = call("/p.S/M", "a");
        for piece in [1, 7, 64, given.len()] {
            assert_eq!(filtered(&given, piece), expected, "{piece}");
        }
    }

    #[test]
    fn padding_goes_and_priorities_and_long_values_stay() {
        let path = "x".repeat(100);
        let mut payload = vec![3, 0, 0, 0, 0, 16];
        payload.extend(block(&path, "%2Fa"));
        payload.extend([0; 3]);
        let (flags, new) = legal_headers(END_HEADERS | PADDED | PRIORITY, &payload).unwrap();
        assert_eq!(flags, END_HEADERS | PRIORITY);
        assert_eq!(new[5..], block(&path, "a"));
        // A value of 300 bytes: its length takes more than one byte.
        let mut long = vec![0x41, 0x7f, 173, 1];
        long.extend([b'%'; 300]);
        let mut new = Vec::new();
        legal_block(&long, &mut new).unwrap();
        assert_eq!(new, [0x41, 1, b'a']);
    }

    #[test]
    fn what_is_not_understood_passes_as_it_is() {
        for payload in [&[0x41, 9, b'%'][..], &[0x41], &[0x7f, 0xff, 0xff, 0xff, 0xff], &[0xff]] {
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            bytes.extend(frame(1, END_HEADERS, 1, payload));
            assert_eq!(filtered(&bytes, 5), bytes, "{payload:?}");
        }
        let unfinished = frame(1, 0, 1, &block("/p", "%2F"));
        assert_eq!(legal_headers(0, &unfinished[FRAME_HEADER_BYTES..]), None);
    }
}
