//! The leader's clock, as this process knows it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use atoll_core::attributes::Timestamp;

/// A round trip that took longer says too little about the leader's clock.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(200);
/// If no short round trip came for so long, a long one has to do.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(60);
const NANOS_PER_SECOND: i64 = 1_000_000_000;
/// A correction backwards by up to this (nanoseconds) is hidden.
const BACKWARDS_MAX: i64 = NANOS_PER_SECOND;

/// Since boot, suspended time included: no step of the wall clock disturbs it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the structure that it is given.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    // Every kernel since 2.6.39 has this clock; without it the zero makes times wrong until the next heartbeat.
    if done != 0 { Duration::ZERO } else { Duration::new(time.tv_sec as u64, time.tv_nsec as u32) }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds since 1970 (good until 2262, and this is about now).
fn to_nanos(time: Timestamp) -> i64 {
    time.seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(i64::from(time.nanos))
}

fn from_nanos(nanos: i64) -> Timestamp {
    Timestamp {
        seconds: nanos.div_euclid(NANOS_PER_SECOND),
        nanos: nanos.rem_euclid(NANOS_PER_SECOND) as u32,
    }
}

/// The offset of the leader's clock to the time since boot, and the last time that was given out.
#[derive(Debug)]
pub struct Clock {
    /// Nanoseconds to add to the time since boot.
    offset: AtomicI64,
    /// When (nanoseconds since boot) the offset was measured by a short round trip; 0: never.
    measured: AtomicI64,
    last: AtomicI64,
}

impl Clock {
    /// Before anything was heard of a leader: this machine's own clock.
    #[must_use]
    pub fn new(wall: Duration, boot: Duration) -> Self {
        Clock {
            offset: AtomicI64::new(nanos(wall).saturating_sub(nanos(boot))),
            measured: AtomicI64::new(0),
            last: AtomicI64::new(i64::MIN),
        }
    }

    /// The leader said that it was `leader` while a request was under way from `sent` to `received` (since boot).
    pub fn sample(&self, leader: Timestamp, sent: Duration, received: Duration) {
        let measured = self.measured.load(Ordering::Relaxed);
        let fresh = measured != 0 && nanos(received).saturating_sub(measured) < nanos(SAMPLE_AGE_MAX);
        let short = received.saturating_sub(sent) <= ROUND_TRIP_MAX;
        if !short && fresh {
            return;
        }
        let middle = nanos(sent / 2 + received / 2);
        self.offset.store(to_nanos(leader).saturating_sub(middle), Ordering::Relaxed);
        if short {
            self.measured.store(nanos(received).max(1), Ordering::Relaxed);
        }
    }

    /// The leader's time at `boot`; later than any that was given out before, so that the order in which this
    /// client does things shows in their times even when the offset is corrected backwards by a little. (After a
    /// large correction the old times were wrong, and to wait until they are reached would make all further
    /// ones wrong.)
    #[must_use]
    pub fn at(&self, boot: Duration) -> Timestamp {
        let now = nanos(boot).saturating_add(self.offset.load(Ordering::Relaxed));
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let wrong = last.saturating_sub(now) > BACKWARDS_MAX;
            let next = if wrong { now } else { now.max(last.saturating_add(1)) };
            match self.last.compare_exchange_weak(last, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return from_nanos(next),
                Err(seen) => last = seen,
            }
        }
    }

    /// The leader's time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.at(since_boot())
    }
}

impl Default for Clock {
    #[expect(clippy::disallowed_methods, reason = "a first guess, until the leader has said its time")]
    fn default() -> Self {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Clock::new(wall, since_boot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn takes_the_leaders_time_and_hides_small_corrections_backwards() {
        let clock = Clock::new(ms(1_000_000), ms(1000));
        assert_eq!(clock.at(ms(1000)).millis(), 1_000_000);
        clock.sample(Timestamp { seconds: 2000, nanos: 0 }, ms(1000), ms(1100));
        assert_eq!(clock.at(ms(1050)).millis(), 2_000_000);
        clock.sample(Timestamp { seconds: 1999, nanos: 500_000_000 }, ms(1100), ms(1200));
        let before = clock.at(ms(1150));
        let after = clock.at(ms(1150));
        assert_eq!(before.millis(), 2_000_000);
        assert_eq!(before.next(), after);
        // This machine's clock, or an earlier leader's, was wrong altogether.
        clock.sample(Timestamp { seconds: 500, nanos: 0 }, ms(1200), ms(1300));
        assert_eq!(clock.at(ms(1250)).millis(), 500_000);
    }

    #[test]
    fn a_long_round_trip_counts_only_when_there_was_no_short_one_for_long() {
        let clock = Clock::new(ms(0), ms(0));
        clock.sample(Timestamp { seconds: 100, nanos: 0 }, ms(0), ms(0));
        clock.sample(Timestamp { seconds: 900, nanos: 0 }, ms(10_000), ms(11_000));
        assert_eq!(clock.at(ms(11_000)).seconds, 111);
        clock.sample(Timestamp { seconds: 900, nanos: 0 }, ms(100_000), ms(102_000));
        assert_eq!(clock.at(ms(102_000)).seconds, 901);
    }
}
