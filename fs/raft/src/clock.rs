//! Time that doesn't stop: `CLOCK_BOOTTIME`, for the leases.
//!
//! A leader's lease says "nobody else was elected before this instant". A process that is
//! stopped, or a machine that is suspended, must find its lease expired when it goes on, so the
//! clock has to run on meanwhile; `CLOCK_MONOTONIC`, behind [`std::time::Instant`], stands still
//! during a suspend. openraft compares instants of its runtime only, so giving it a runtime whose
//! instant is [`BootInstant`] puts all of its leases on this clock. Sleeping is tokio's: a timer
//! that fires late costs time, never safety.

use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::{AsyncRuntime, Instant};
// The wrapped runtime lives in a crate of its own; its re-export here is marked for removal in
// a later release, and saves a second exactly pinned dependency until then.
#[allow(deprecated)]
use openraft::TokioRuntime;

/// An instant of `CLOCK_BOOTTIME`, in nanoseconds since the machine started (signed, so that
/// subtracting a lease soon after the start doesn't overflow).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(i64);

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl Instant for BootInstant {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now() -> Self {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is a valid timespec for the call to fill in.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
        assert_eq!(failed, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
        Self(now.tv_sec * 1_000_000_000 + now.tv_nsec)
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(nanos(rhs)))
    }
}

impl AddAssign<Duration> for BootInstant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Duration> for BootInstant {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(rhs)))
    }
}

impl SubAssign<Duration> for BootInstant {
    fn sub_assign(&mut self, rhs: Duration) {
        *self = *self - rhs;
    }
}

impl Sub for BootInstant {
    type Output = Duration;
    /// Zero if `rhs` is later.
    fn sub(self, rhs: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(rhs.0)).unwrap_or(0))
    }
}

#[allow(deprecated)]
type Tokio = TokioRuntime;

/// tokio, with [`BootInstant`] as its clock.
#[derive(Debug)]
pub struct BootRuntime(Tokio);

impl AsyncRuntime for BootRuntime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = BootInstant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Tokio as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        Tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep(deadline - BootInstant::now())
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout(deadline - BootInstant::now(), future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Tokio::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_and_orders() {
        let a = BootInstant(5);
        assert_eq!(a - Duration::from_secs(100) + Duration::from_secs(100), a);
        assert_eq!(a - (a + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!((a + Duration::from_millis(3)) - a, Duration::from_millis(3));
        assert!(BootInstant::now() <= BootInstant::now());
    }

    #[test]
    fn passes_the_runtime_suite() {
        openraft::testing::runtime::Suite::<BootRuntime>::test_all();
    }
}
