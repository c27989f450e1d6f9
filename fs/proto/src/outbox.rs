//! What waits to be written to a connection, and the two ways in which it gets there.
//!
//! Frames are queued; whoever finds nobody writing may write them itself, on the spot ([`Outbox::flush`]),
//! which saves a single call the way through another task. What doesn't go out at once, and what is
//! queued for company ([`Outbox::wake`]), is written by the connection's writer task, many frames in one
//! vectored write.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::frame::OutFrame;
use crate::secure::{FramePermit, Sink};

/// The queue and, while nobody writes, the connection's writing half.
pub(crate) struct Outbox {
    state: Mutex<State>,
    wake: Notify,
    emptied: Notify,
}

struct State {
    queue: VecDeque<(OutFrame, Option<FramePermit>)>,
    queued_bytes: usize,
    /// Absent while somebody writes.
    sink: Option<Box<Sink>>,
    /// The sink has bytes that the socket didn't take yet.
    unfinished: bool,
    closed: bool,
}

/// The connection is closed: nothing can be sent any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

impl Outbox {
    pub(crate) fn new(sink: Sink) -> Outbox {
        let state = State {
            queue: VecDeque::new(),
            queued_bytes: 0,
            sink: Some(Box::new(sink)),
            unfinished: false,
            closed: false,
        };
        Outbox { state: Mutex::new(state), wake: Notify::new(), emptied: Notify::new() }
    }

    /// Queues a frame. It goes out with the next [`Outbox::flush`] or [`Outbox::wake`].
    pub(crate) fn queue(&self, frame: OutFrame, permit: Option<FramePermit>) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Closed);
        }
        state.queued_bytes += frame.bytes();
        state.queue.push_back((frame, permit));
        Ok(())
    }

    /// Bytes that are queued and that nobody began to write.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.state.lock().queued_bytes
    }

    /// Has the writer task write what is queued.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Writes what is queued as far as the socket takes it at once, unless somebody else is writing. What is
    /// left is the writer task's.
    pub(crate) fn flush(&self) -> io::Result<()> {
        while let Some(mut sink) = self.take() {
            let mut cx = Context::from_waker(Waker::noop());
            let written = sink.poll_write_all(&mut cx);
            let more = self.put_back(sink, written.is_pending());
            match written {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    self.wake();
                    return Ok(());
                }
            }
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// The writer task: runs until writing fails or the connection is closed from outside.
    pub(crate) async fn run(&self) -> io::Result<()> {
        loop {
            self.wake.notified().await;
            // Others that run now may have frames too: one turn later they go out together.
            tokio::task::yield_now().await;
            while let Some(mut sink) = self.take() {
                let written = poll_fn(|cx| sink.poll_write_all(cx)).await;
                let more = self.put_back(sink, false);
                written?;
                if !more {
                    break;
                }
            }
        }
    }

    /// The sink with all that is queued, if there is something to write and nobody writes.
    fn take(&self) -> Option<Box<Sink>> {
        let mut state = self.state.lock();
        if state.queue.is_empty() && !state.unfinished {
            return None;
        }
        let mut sink = state.sink.take()?;
        state.unfinished = true;
        for (frame, permit) in state.queue.drain(..) {
            sink.add(frame, permit);
        }
        state.queued_bytes = 0;
        Some(sink)
    }

    /// Returns whether more was queued meanwhile.
    fn put_back(&self, sink: Box<Sink>, unfinished: bool) -> bool {
        let mut state = self.state.lock();
        state.unfinished = unfinished;
        if state.closed {
            state.queue.clear();
            return false;
        }
        state.sink = Some(sink);
        let more = !state.queue.is_empty();
        if !more && !unfinished {
            self.emptied.notify_waiters();
        }
        more
    }

    /// Waits until all that was queued is written, or the connection is closed.
    pub(crate) async fn drained(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            {
                let state = self.state.lock();
                if state.closed || (state.queue.is_empty() && !state.unfinished) {
                    return;
                }
            }
            self.wake();
            emptied.await;
        }
    }

    /// Refuses everything from now on and lets go of the writing half, which closes its direction.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.queue.clear();
        state.sink = None;
        self.emptied.notify_waiters();
    }
}
