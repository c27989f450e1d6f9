//! Frames as bytes: what is read from what was written, and what damage is noticed.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use atoll_proto::Body;
use atoll_proto::frame::{
    BODY_BYTES_MAX, FRAME_BYTES_MAX, Frame, FrameError, FrameReader, FrameType, HEADER_BYTES, META_BYTES_MAX,
    OutFrame,
};
use atoll_proto::secure::{Sink, Source};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

fn to_bytes(frame: &OutFrame) -> Vec<u8> {
    let mut bytes = frame.head.to_vec();
    match &frame.body {
        Body::Empty => {}
        Body::One(piece) => bytes.extend(piece),
        Body::Many(pieces) => pieces.iter().for_each(|piece| bytes.extend(piece)),
    }
    bytes
}

fn sample(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 253) as u8).collect()
}

fn frame(id: u64, meta: usize, body: usize) -> OutFrame {
    OutFrame::raw(FrameType::Request, 0x777, id, &sample(meta), sample(body).into())
        .expect("within the limits")
}

/// Gives what it has in pieces of random sizes, as a network does.
struct Dribble {
    bytes: Vec<u8>,
    at: usize,
    random: StdRng,
    piece_max: usize,
}

impl AsyncRead for Dribble {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let left = self.bytes.len() - self.at;
        let piece_max = self.piece_max;
        let now = self.random.random_range(1..=piece_max).min(left).min(into.remaining());
        let at = self.at;
        into.put_slice(&self.bytes[at..at + now]);
        self.at += now;
        Poll::Ready(Ok(()))
    }
}

fn dribbled(bytes: Vec<u8>, seed: u64, piece_max: usize) -> FrameReader {
    let random = StdRng::seed_from_u64(seed);
    FrameReader::new(Source::plain(Box::new(Dribble { bytes, at: 0, random, piece_max })))
}

async fn read_one(bytes: Vec<u8>) -> Result<Option<Frame>, FrameError> {
    FrameReader::new(Source::plain(Box::new(Cursor::new(bytes)))).next().await
}

#[tokio::test]
async fn frames_survive_being_cut_anywhere() {
    let shapes = [
        (0, 0),
        (10, 0),
        (0, 10),
        (100, 16 << 10),
        (5, (16 << 10) + 1),
        (70_000, 3),
        (300, 1 << 20),
        (9, 9),
        (0, 65_536),
    ];
    for (seed, piece_max) in [(1, 7), (2, 100), (3, 5000), (4, 70_000), (5, 1 << 22)] {
        let mut bytes = Vec::new();
        for (id, (meta, body)) in shapes.iter().enumerate() {
            bytes.extend(to_bytes(&frame(id as u64, *meta, *body)));
        }
        let mut reader = dribbled(bytes, seed, piece_max);
        for (id, (meta, body)) in shapes.iter().enumerate() {
            let got = reader.next().await.expect("reads").expect("a frame");
            assert_eq!((got.request_id, got.kind, got.frame_type), (id as u64, 0x777, FrameType::Request));
            assert!(
                got.meta == sample(*meta) && got.body == sample(*body),
                "frame {id} with pieces of {piece_max}"
            );
        }
        assert!(reader.next().await.expect("a clean end").is_none());
    }
}

#[tokio::test]
async fn an_end_inside_a_frame_is_no_clean_end() {
    let whole = to_bytes(&frame(1, 100, 40_000));
    for keep in
        [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 50, HEADER_BYTES + 100, 30_000, whole.len() - 1]
    {
        let error = read_one(whole[..keep].to_vec()).await.expect_err("torn");
        assert!(matches!(error, FrameError::Torn { have } if have == keep), "{keep}: {error}");
    }
}

#[tokio::test]
async fn every_flipped_bit_of_header_and_meta_is_noticed() {
    let whole = to_bytes(&frame(0x0123_4567_89ab_cdef, 20, 0));
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        // A length that grew makes the reader wait for more, which then doesn't come.
        let error = read_one(damaged).await.expect_err("noticed");
        let fits = matches!(
            error,
            FrameError::Checksum { .. }
                | FrameError::Torn { .. }
                | FrameError::TooLong { .. }
                | FrameError::Lengths { .. }
        );
        assert!(fits, "bit {bit}: {error}");
    }
}

#[tokio::test]
async fn lengths_beyond_the_limits_are_refused_before_memory_is_taken() {
    let mut header = to_bytes(&frame(1, 0, 0));
    header[0..4].copy_from_slice(&((FRAME_BYTES_MAX + 1) as u32).to_le_bytes());
    assert!(matches!(read_one(header.clone()).await, Err(FrameError::TooLong { what: "length", .. })));

    header[0..4].copy_from_slice(&((HEADER_BYTES + META_BYTES_MAX + 1) as u32).to_le_bytes());
    header[16..20].copy_from_slice(&((META_BYTES_MAX + 1) as u32).to_le_bytes());
    assert!(matches!(read_one(header.clone()).await, Err(FrameError::TooLong { what: "meta", .. })));

    header[0..4].copy_from_slice(&((HEADER_BYTES + BODY_BYTES_MAX + 1) as u32).to_le_bytes());
    header[16..20].copy_from_slice(&0u32.to_le_bytes());
    assert!(matches!(read_one(header.clone()).await, Err(FrameError::TooLong { what: "body", .. })));

    header[0..4].copy_from_slice(&30u32.to_le_bytes());
    header[16..20].copy_from_slice(&7u32.to_le_bytes());
    assert!(matches!(read_one(header.clone()).await, Err(FrameError::Lengths { total: 30, meta: 7 })));

    header[0..4].copy_from_slice(&3u32.to_le_bytes());
    assert!(matches!(read_one(header).await, Err(FrameError::Lengths { total: 3, .. })));

    let long = OutFrame::raw(FrameType::Request, 1, 1, &vec![0; META_BYTES_MAX + 1], Body::Empty);
    assert!(matches!(long, Err(FrameError::TooLong { what: "meta", .. })));
    let long = OutFrame::raw(FrameType::Request, 1, 1, &[], vec![0; BODY_BYTES_MAX + 1].into());
    assert!(matches!(long, Err(FrameError::TooLong { what: "body", .. })));
}

/// Takes what it is given in pieces of random sizes, and sometimes nothing for a turn.
struct Trickle {
    taken: Arc<Mutex<Vec<u8>>>,
    random: StdRng,
}

impl AsyncWrite for Trickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.as_mut().poll_write_vectored(cx, &[std::io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        if self.random.random_bool(0.3) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let all: usize = slices.iter().map(|slice| slice.len()).sum();
        let now = self.random.random_range(1..=3000).min(all);
        let mut left = now;
        for slice in slices {
            let part = left.min(slice.len());
            self.taken.lock().extend_from_slice(&slice[..part]);
            left -= part;
        }
        Poll::Ready(Ok(now))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn what_a_slow_socket_takes_is_what_was_to_be_written() {
    for seed in 0..10 {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let trickle = Trickle { taken: taken.clone(), random: StdRng::seed_from_u64(seed) };
        let mut sink = Sink::plain(Box::new(trickle));
        let mut expected = Vec::new();
        for round in 0..5 {
            for id in 0..100 {
                let pieces =
                    vec![Bytes::from(sample(id * 3)), Bytes::new(), Bytes::from(sample(id * 50 % 7000))];
                let body = if id % 2 == 0 { Body::Many(pieces) } else { Body::One(Bytes::new()) };
                let frame =
                    OutFrame::raw(FrameType::Reply, round, id as u64, &sample(id), body).expect("fits");
                expected.extend(to_bytes(&frame));
                sink.add(frame, None);
            }
            std::future::poll_fn(|cx| sink.poll_write_all(cx)).await.expect("writes");
        }
        assert!(*taken.lock() == expected, "seed {seed}");
    }
}

#[tokio::test]
async fn random_bytes_never_panic_the_reader() {
    let mut random = StdRng::seed_from_u64(11);
    for round in 0..3000 {
        let mut bytes: Vec<u8> = (0..random.random_range(0..200)).map(|_| random.random()).collect();
        if round % 2 == 0 && bytes.len() >= HEADER_BYTES {
            // Lengths that are plausible get further in.
            let total = random.random_range(0..300u32);
            bytes[0..4].copy_from_slice(&total.to_le_bytes());
            bytes[16..20].copy_from_slice(&random.random_range(0..=total).to_le_bytes());
        }
        let mut reader = dribbled(bytes, round, 50);
        while let Ok(Some(_)) = reader.next().await {}
    }
}
