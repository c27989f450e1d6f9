//! The two clocks of this crate: one that never stops, for lifetimes, and the calendar's, for records.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_core::attributes::Timestamp;

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

/// The calendar's time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub fn now() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
        Err(_) => Timestamp::default(),
    }
}
