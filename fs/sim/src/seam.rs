//! Time and chance of a simulated world: what the C library says on its thread.
//!
//! The programs under test ask the system for the time (`clock_gettime`) and for random numbers (`getrandom`), some of
//! them deep inside libraries: keys of hash maps, the order in which `select!` polls, session ids. On a simulation's thread both
//! answer from the world: time is the runtime's virtual time, chance comes from the seed. So a seed has the same course each
//! time. On every other thread they are what they always are.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// What the clocks show when a world begins: since boot, and since 1970.
const BOOT: Duration = Duration::from_secs(1_000_000);
const WALL: Duration = Duration::from_secs(1_750_000_000);

thread_local! {
    static CHANCE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    /// What the runtime's clock showed first, once it has been asked.
    static BEGAN: Cell<Option<tokio::time::Instant>> = const { Cell::new(None) };
    /// The runtime's clock is being asked: it may ask back.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Makes this thread, which must have done nothing yet that needs chance, a world's.
pub fn enter(seed: u64) {
    CHANCE.with(|chance| *chance.borrow_mut() = Some(StdRng::seed_from_u64(seed ^ 0x5ea1)));
}

fn is_simulated() -> bool {
    CHANCE.try_with(|chance| chance.try_borrow().is_ok_and(|chance| chance.is_some())).unwrap_or(false)
}

/// How long the world has been there.
#[must_use]
pub fn elapsed() -> Duration {
    if ASKING.get() || tokio::runtime::Handle::try_current().is_err() {
        return Duration::ZERO;
    }
    ASKING.set(true);
    let now = tokio::time::Instant::now();
    let began = BEGAN.get().unwrap_or_else(|| {
        BEGAN.set(Some(now));
        now
    });
    ASKING.set(false);
    now.saturating_duration_since(began)
}

/// The C library's, for everything that is linked with this.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if !is_simulated() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    }
    let base =
        if clock == libc::CLOCK_REALTIME || clock == libc::CLOCK_REALTIME_COARSE { WALL } else { BOOT };
    let now = base + elapsed();
    // SAFETY: the caller gives a place for a timespec.
    unsafe {
        (*time).tv_sec = now.as_secs() as libc::time_t;
        (*time).tv_nsec = libc::c_long::from(now.subsec_nanos());
    }
    0
}

/// The C library's, for everything that is linked with this.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: usize, flags: libc::c_uint) -> isize {
    let filled = CHANCE.try_with(|chance| {
        let mut chance = chance.try_borrow_mut().ok()?;
        let chance = chance.as_mut()?;
        // SAFETY: the caller gives a place for `length` bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        chance.fill_bytes(bytes);
        Some(())
    });
    match filled {
        Ok(Some(())) => length as isize,
        // SAFETY: the caller's arguments, as they are.
        _ => unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize },
    }
}
