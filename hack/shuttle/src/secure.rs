//! What an outbox writes to.

use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use crate::frame::OutFrame;

/// Room for a frame.
#[derive(Debug)]
pub struct FramePermit;

/// A socket that takes nothing the first time when the last frame that was added has an odd number.
#[derive(Debug)]
pub struct Sink {
    waiting: Vec<OutFrame>,
    is_slow: bool,
    written: Arc<Mutex<Vec<OutFrame>>>,
}

impl Sink {
    /// One that writes to there.
    #[must_use]
    pub fn new(written: Arc<Mutex<Vec<OutFrame>>>) -> Sink {
        Sink { waiting: Vec::new(), is_slow: false, written }
    }

    pub(crate) fn add(&mut self, frame: OutFrame, _: Option<FramePermit>) {
        self.is_slow = frame.number % 2 == 1;
        self.waiting.push(frame);
    }

    pub(crate) fn poll_write_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        shuttle::thread::yield_now();
        if std::mem::replace(&mut self.is_slow, false) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.written.lock().map_err(|_| io::ErrorKind::Other)?.append(&mut self.waiting);
        Poll::Ready(Ok(()))
    }
}
