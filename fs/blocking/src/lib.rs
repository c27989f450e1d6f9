//! Work that blocks: on tokio's threads for it, or, in a simulation, on the one thread that there is; and how fast work in the
//! background may go ([`Pace`]), and what goes on when nobody waits for it any more ([`Detach`]).
//!
//! A simulation has one thread for each of its worlds, virtual time, and the same course each time it gets the same
//! seed; a second thread would end all three. There blocking work becomes a task, which begins after a time
//! that the simulation says, as a disk's answers take theirs.

mod detach;
mod pace;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinHandle;

pub use detach::Detach;
pub use pace::Pace;

type Delay = Rc<dyn Fn() -> Duration>;

thread_local! {
    static DELAY: RefCell<Option<Delay>> = const { RefCell::new(None) };
}

/// While this lives, its thread is a simulation's.
#[derive(Debug)]
pub struct Simulated(PhantomData<*const ()>);

impl Drop for Simulated {
    fn drop(&mut self) {
        DELAY.with(|current| current.borrow_mut().take());
    }
}

/// Makes this thread a simulation's: blocking work that it starts runs on it, each after the time that `delay` says.
#[must_use]
pub fn simulate(delay: impl Fn() -> Duration + 'static) -> Simulated {
    DELAY.with(|current| *current.borrow_mut() = Some(Rc::new(delay)));
    Simulated(PhantomData)
}

/// In a simulation, how long the next piece of blocking work waits before it begins; `None` otherwise.
#[must_use]
pub fn simulated_delay() -> Option<Duration> {
    let delay = DELAY.with(|current| current.borrow().clone());
    delay.map(|delay| delay())
}

/// Whether this thread is a simulation's.
#[must_use]
pub fn is_simulated() -> bool {
    DELAY.with(|current| current.borrow().is_some())
}

/// Starts work that blocks. It runs to its end, whether anybody waits for it or not.
///
/// # Panics
/// Outside a tokio runtime.
#[expect(clippy::disallowed_methods, reason = "this is the seam")]
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match simulated_delay() {
        None => tokio::task::spawn_blocking(work),
        Some(delay) => tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            work()
        }),
    }
}

/// Blocks this thread for a while: if it is one that tokio's tasks run on, they go on elsewhere.
#[expect(clippy::disallowed_methods, reason = "this is the seam")]
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulation_has_one_thread_and_its_own_time() {
        let here = std::thread::current().id();
        let elsewhere = spawn(move || std::thread::current().id() != here).await;
        assert!(elsewhere.unwrap());
        let simulated = simulate(|| Duration::from_secs(3600));
        let before = tokio::time::Instant::now();
        assert!(spawn(move || std::thread::current().id() == here).await.unwrap());
        assert_eq!(before.elapsed(), Duration::from_secs(3600));
        drop(simulated);
        assert!(!is_simulated());
    }
}
