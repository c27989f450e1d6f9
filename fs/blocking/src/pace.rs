//! Keeps background work to a rate.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// For so long at most a thread sleeps without asking whether it is to go on.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Work that may be done at once after a pause, as a fraction of a second's.
const BURST: Duration = Duration::from_millis(250);

/// A rate in bytes per second, shared by all who work under it.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    /// When what was taken so far is worked off at this rate.
    due: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most so many bytes per second; 0 means no limit.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, due: Mutex::new(None) }
    }

    /// Waits until `bytes` more are in order.
    pub async fn take(&self, bytes: u64) {
        let wait = self.wait_for(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// The same on a thread that may block, for as long as `goes_on` says so; whether it still does.
    pub fn block(&self, bytes: u64, goes_on: impl Fn() -> bool) -> bool {
        let mut wait = self.wait_for(bytes, Instant::now());
        // A simulation's only thread can't wait for its own time.
        while goes_on() && !wait.is_zero() && !crate::is_simulated() {
            let part = wait.min(SLEEP_MAX);
            std::thread::sleep(part);
            wait -= part;
        }
        goes_on()
    }

    fn wait_for(&self, bytes: u64, now: Instant) -> Duration {
        if self.bytes_per_s == 0 {
            return Duration::ZERO;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let mut due = self.due.lock();
        let start = due.unwrap_or(now).max(now);
        *due = Some(start + takes);
        (start + takes).saturating_duration_since(now + BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_for_a_seconds_work_after_the_burst() {
        let pace = Pace::new(1000);
        let now = Instant::now();
        assert_eq!(pace.wait_for(250, now), Duration::ZERO);
        assert_eq!(pace.wait_for(1000, now), Duration::from_secs(1));
        assert_eq!(pace.wait_for(1000, now), Duration::from_secs(2));
        // A pause gives no more than the burst.
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.wait_for(1250, later), Duration::from_secs(1));
        assert_eq!(Pace::new(0).wait_for(u64::MAX, now), Duration::ZERO);
    }
}
