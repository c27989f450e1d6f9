//! A limit of bytes a second.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// For so long at most a thread sleeps without asking whether it is to go on.
const BLOCK_MAX: Duration = Duration::from_millis(100);

/// Lets through so many bytes a second, shared by all who ask.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes a second; 0: as many as come.
    rate: u64,
    /// When all that was let through has had its time.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, free_at: Mutex::new(None) }
    }

    /// How long to wait before `bytes` may go.
    pub(crate) fn reserve(&self, bytes: u64, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let mut free_at = self.free_at.lock();
        let begin = free_at.map_or(now, |at| at.max(now));
        let takes = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        *free_at = Some(begin + Duration::from_nanos(u64::try_from(takes).unwrap_or(u64::MAX)));
        begin - now
    }

    /// Waits until `bytes` may go.
    pub(crate) async fn wait(&self, bytes: u64) {
        let wait = self.reserve(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// The same on a thread that may block, for as long as `goes_on`; whether it still does.
    pub(crate) fn block(&self, bytes: u64, goes_on: impl Fn() -> bool) -> bool {
        let mut wait = self.reserve(bytes, Instant::now());
        while goes_on() && !wait.is_zero() {
            let slice = wait.min(BLOCK_MAX);
            std::thread::sleep(slice);
            wait -= slice;
        }
        goes_on()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_through_as_much_as_it_says() {
        let (pace, start) = (Pace::new(1000), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(pace.reserve(500, start), Duration::ZERO);
        assert_eq!(pace.reserve(500, start), Duration::from_millis(500));
        assert_eq!(pace.reserve(500, at(700)), Duration::from_millis(300));
        // What wasn't used is not saved up.
        assert_eq!(pace.reserve(5000, at(60_000)), Duration::ZERO);
        assert_eq!(pace.reserve(1, at(60_000)), Duration::from_secs(5));
        let unlimited = Pace::new(0);
        assert!((0..100).all(|_| unlimited.reserve(u64::MAX, start).is_zero()));
    }
}
