//! The places where threads meet outside any other lock, for [shuttle], which runs them in many orders, chosen at random: the
//! sources of other crates, word for word, with its locks in the place of the real ones. `tests` is what this crate is for.
//!
//! What the sources name as `parking_lot` and `tokio` is this crate. (There are crates of shuttle's for that; they have no
//! `Condvar`, and bring a hundred others.)
//!
//! [shuttle]: https://docs.rs/shuttle

// The sources' own tests are their crates'.
#![cfg(not(test))]

extern crate self as parking_lot;
extern crate self as tokio;

mod locks;
pub mod sync;
pub mod task;

pub use locks::{Condvar, Mutex, MutexGuard};

/// As `tokio::pin!`.
#[macro_export]
macro_rules! pin {
    ($future:ident) => {
        let mut $future = ::std::pin::pin!($future);
    };
}

pub mod frame;
pub mod secure;
pub mod slots;

#[path = "../../../fs/proto/src/outbox.rs"]
mod outbox_source;

/// `fs/storage/src/sync_group.rs`.
#[path = "../../../fs/storage/src/sync_group.rs"]
pub mod sync_group;

/// `fs/proto/src/outbox.rs`: it is its crate's own.
pub mod outbox {
    use std::io;

    use crate::frame::OutFrame;
    use crate::outbox_source as source;
    use crate::secure::Sink;

    /// The outbox.
    pub struct Outbox(source::Outbox);

    impl Outbox {
        /// One that writes to `sink`.
        #[must_use]
        pub fn new(sink: Sink) -> Outbox {
            Outbox(source::Outbox::new(sink))
        }

        /// Queues a frame; false if it is closed.
        pub fn queue(&self, frame: OutFrame) -> bool {
            self.0.queue(frame, None).is_ok()
        }

        /// Has the writer task write.
        pub fn wake(&self) {
            self.0.wake();
        }

        /// Writes what goes at once.
        ///
        /// # Errors
        /// If writing fails.
        pub fn flush(&self) -> io::Result<()> {
            self.0.flush()
        }

        /// The writer task.
        ///
        /// # Errors
        /// If writing fails.
        pub async fn run(&self) -> io::Result<()> {
            self.0.run().await
        }

        /// Waits until all is written.
        pub async fn drained(&self) {
            self.0.drained().await;
        }

        /// Bytes that wait.
        #[must_use]
        pub fn queued_bytes(&self) -> usize {
            self.0.queued_bytes()
        }

        /// Refuses everything from now on.
        pub fn close(&self) {
            self.0.close();
        }
    }
}
