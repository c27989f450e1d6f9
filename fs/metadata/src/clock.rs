//! The two clocks of this crate: one that never stops, for lifetimes, and the calendar's, for records.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_core::attributes::Timestamp;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Time since the machine started, suspension included (`CLOCK_BOOTTIME`): a session must not live longer
/// because the leader was stopped or its machine slept.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub fn since_boot() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the call to fill in; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// How long it is from `now` to the next whole second, of those that are multiples of `seconds`, of a clock that is `phase`
/// milliseconds late.
///
/// What a server looks at once a second it looks at then, so that a thread is woken once for all of it. Servers have
/// different phases: those of many volumes on one machine aren't all woken at the same moment.
#[must_use]
pub fn until_next(seconds: u32, phase: u64, now: Duration) -> Duration {
    let phase = Duration::from_millis(phase % 1000).as_nanos();
    let interval = NANOS_PER_SECOND * u128::from(seconds.max(1));
    let past = (now.as_nanos() + interval - phase) % interval;
    Duration::from_nanos((interval - past) as u64)
}

/// The calendar's time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub fn now() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
        Err(_) => Timestamp::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_waits_for_the_next_second_waits_for_the_same_moment() {
        let ms = Duration::from_millis;
        for phase in [0, 1, 250, 999, 1250] {
            let first = ms(5000) + until_next(1, phase, ms(5000));
            assert_eq!(first.subsec_millis() as u64, phase % 1000);
            for now in [ms(5001), ms(5300), ms(5999)] {
                let next = now + until_next(1, phase, now);
                assert!(next > now && next <= now + ms(1000));
                assert_eq!(next.subsec_nanos(), first.subsec_nanos());
            }
        }
        assert_eq!(until_next(1, 250, ms(7250)), ms(1000), "never at once");
        assert_eq!(until_next(5, 250, ms(7250)), ms(3000));
        assert_eq!(until_next(5, 250, ms(10_250)), ms(5000), "never at once");
        assert_eq!(until_next(0, 250, ms(7000)), ms(250));
    }
}
