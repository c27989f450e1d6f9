//! Quota that this client holds for what it will buffer, so that a write that was accepted never fails for
//! want of space later. It is asked for in large pieces and handed out in small ones.

use std::sync::Arc;
use std::time::Duration;

use atoll_core::commands::ops;
use atoll_core::error::FsError;
use atoll_core::limits::BLOCK_BYTES;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metadata::{ClientError, Metadata};

/// Bytes that are asked for at a time; the service gives less when the volume is nearly full.
pub const RESERVE_BYTES: u64 = 32 << 20;
/// What wasn't needed for this long is given back.
pub const UNUSED_AFTER: Duration = Duration::from_secs(10);

/// See the module.
pub struct Reservation<M> {
    metadata: Arc<M>,
    pool: Mutex<Pool>,
    /// One request at a time: others wait for what it brings.
    asking: tokio::sync::Mutex<()>,
}

struct Pool {
    available: u64,
    last_used: Instant,
    /// Counts lost sessions: what was asked for before is worth nothing.
    epoch: u64,
}

impl<M: Metadata> Reservation<M> {
    /// Nothing reserved yet.
    #[must_use]
    pub fn new(metadata: Arc<M>) -> Self {
        let pool = Pool { available: 0, last_used: Instant::now(), epoch: 0 };
        Reservation { metadata, pool: Mutex::new(pool), asking: tokio::sync::Mutex::new(()) }
    }

    /// A predecessor of this process had reserved so much, which is this one's now.
    pub fn inherit(&self, bytes: u64) {
        self.pool.lock().available += bytes;
    }

    /// Bytes that are held and not handed out.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.pool.lock().available
    }

    fn take_available(&self, bytes: u64) -> bool {
        let mut pool = self.pool.lock();
        if pool.available < bytes {
            return false;
        }
        pool.available -= bytes;
        pool.last_used = Instant::now();
        true
    }

    /// Takes `bytes` (whole blocks), asking for more if need be.
    ///
    /// # Errors
    /// `NoSpace` if the volume has no room for them.
    pub async fn take(&self, bytes: u64) -> Result<(), ClientError> {
        if self.take_available(bytes) {
            return Ok(());
        }
        let _asking = self.asking.lock().await;
        loop {
            let (missing, epoch) = {
                let mut pool = self.pool.lock();
                if pool.available >= bytes {
                    pool.available -= bytes;
                    pool.last_used = Instant::now();
                    return Ok(());
                }
                (bytes - pool.available, pool.epoch)
            };
            let wanted = missing.max(RESERVE_BYTES).next_multiple_of(BLOCK_BYTES);
            let granted = self.metadata.mutate(ops::Reserve { bytes: wanted, bytes_min: missing }).await?;
            let mut pool = self.pool.lock();
            if pool.epoch == epoch {
                pool.available += granted;
            }
        }
    }

    /// Takes as many of `bytes` as there are, in whole blocks; at least one.
    ///
    /// # Errors
    /// `NoSpace` if there is not one block.
    pub async fn take_some(&self, bytes: u64) -> Result<u64, ClientError> {
        let mut bytes = bytes;
        loop {
            match self.take(bytes).await {
                Err(ClientError::Fs(FsError::NoSpace)) if bytes > BLOCK_BYTES => {
                    // Halving finds at least half of what is left with a few questions.
                    bytes = (bytes / 2).next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
                }
                other => return other.map(|()| bytes),
            }
        }
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.pool.lock().available += bytes;
        }
    }

    /// The session is lost, and with it what it had reserved.
    pub fn reset(&self) {
        let mut pool = self.pool.lock();
        pool.available = 0;
        pool.epoch += 1;
    }

    /// True if something is held that wasn't needed for [`UNUSED_AFTER`].
    #[must_use]
    pub fn is_idle(&self, now: Instant) -> bool {
        let pool = self.pool.lock();
        pool.available > 0 && now.saturating_duration_since(pool.last_used) >= UNUSED_AFTER
    }

    /// Gives everything that is not handed out back to the volume.
    ///
    /// # Errors
    /// If the service can't be told; then it is still held here.
    pub async fn return_unused(&self) -> Result<(), ClientError> {
        let _asking = self.asking.lock().await;
        let (bytes, epoch) = {
            let mut pool = self.pool.lock();
            (std::mem::take(&mut pool.available), pool.epoch)
        };
        if bytes == 0 {
            return Ok(());
        }
        let result = self.metadata.mutate(ops::Unreserve { bytes }).await;
        if result.is_err() {
            let mut pool = self.pool.lock();
            if pool.epoch == epoch {
                pool.available += bytes;
            }
        }
        result.map(drop)
    }
}
