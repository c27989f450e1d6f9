//! Waiting for room on a full disk.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How often it is looked whether there is room. RocksDB goes on by itself within a few seconds after there is.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Whether the system says that a disk, or what one may use of it, is full.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What is to be written to a full disk waits here for as long as it takes: it is committed already, so a member that gave
/// up would have to stop, and somebody would have to start it again once the disk is larger.
#[derive(Debug, Default)]
pub struct WaitForRoom {
    waiting: AtomicUsize,
    given_up: AtomicBool,
}

impl WaitForRoom {
    /// Repeats what fails for want of room, which must leave nothing behind when it does. Blocks.
    ///
    /// # Errors
    /// Other errors of `attempt`, and each error after [`give_up`](Self::give_up).
    pub fn until<T, E: std::fmt::Display>(
        &self,
        is_full: impl Fn(&E) -> bool,
        mut attempt: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        match attempt() {
            // A simulation's only thread can't wait for what others do.
            Err(error)
                if is_full(&error)
                    && !self.given_up.load(Ordering::Acquire)
                    && !atoll_blocking::is_simulated() =>
            {
                tracing::error!(
                    %error,
                    "the metadata disk is full: this metadata server waits for free space; enlarge the disk"
                );
            }
            result => return result,
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let result = atoll_blocking::in_place(|| {
            loop {
                std::thread::sleep(POLL_INTERVAL);
                match attempt() {
                    Err(error) if is_full(&error) && !self.given_up.load(Ordering::Acquire) => {}
                    result => break result,
                }
            }
        });
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        if result.is_ok() {
            tracing::info!("the metadata disk has free space again: this metadata server continues");
        }
        result
    }

    /// Whether something waits.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Nothing waits any more, now and later.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }
}
