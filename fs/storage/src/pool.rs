//! The blocking threads that do the disk's work.
//!
//! Calls to a disk block, so they run on tokio's blocking threads; how many at once is bounded here, in lanes, so that
//! reads don't wait behind a queue of syncs and nothing in the background takes the place of a request.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Reads that run at once; more wait.
pub const READ_THREADS_MAX: usize = 8;
/// Writes, syncs and other changes that run at once; more wait.
pub const WRITE_THREADS_MAX: usize = 8;
/// Scrubs, orders and inventories that run at once; more wait.
pub const BACKGROUND_THREADS_MAX: usize = 2;

/// Which bound a job counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A reader waits for it.
    Read,
    /// A writer waits for it.
    Write,
    /// Nobody waits for it.
    Background,
}

/// Bounded access to the blocking threads. Clones share the bounds.
#[derive(Debug, Clone)]
pub struct IoPool {
    read: Arc<Semaphore>,
    write: Arc<Semaphore>,
    background: Arc<Semaphore>,
}

/// A job's place in its lane; a job that starts another hands it on.
pub type Place = OwnedSemaphorePermit;

/// The process is shutting down, or a job panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server is shutting down")]
pub struct PoolClosed;

impl Default for IoPool {
    fn default() -> Self {
        Self {
            read: Arc::new(Semaphore::new(READ_THREADS_MAX)),
            write: Arc::new(Semaphore::new(WRITE_THREADS_MAX)),
            background: Arc::new(Semaphore::new(BACKGROUND_THREADS_MAX)),
        }
    }
}

impl IoPool {
    /// Runs a job when there is a place for it, and waits for its result. The job runs to its end even if nobody
    /// waits any more.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce(Place) -> T + Send + 'static,
    ) -> Result<T, PoolClosed> {
        let semaphore = match lane {
            Lane::Read => &self.read,
            Lane::Write => &self.write,
            Lane::Background => &self.background,
        };
        let place = semaphore.clone().acquire_owned().await.map_err(|_| PoolClosed)?;
        atoll_blocking::spawn(move || job(place)).await.map_err(|_| PoolClosed)
    }

    /// From within a job: goes on with another one in the same place, without waiting for it.
    pub fn go_on(place: Place, job: impl FnOnce() + Send + 'static) {
        atoll_blocking::spawn(move || {
            job();
            drop(place);
        });
    }
}
