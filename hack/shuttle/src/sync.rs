//! `tokio::sync::Notify`, on shuttle's mutex, as its documentation has it: `notify_waiters` reaches every `Notified` that was
//! made before, polled or not; `notify_one` one that waits, or the next one that would.

use std::future::Future;
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use shuttle::sync::{Mutex, MutexGuard};

/// As `tokio::sync::Notify`.
#[derive(Debug, Default)]
pub struct Notify(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Calls of `notify_waiters`.
    rounds: u64,
    /// A call of `notify_one` that found nobody.
    permit: bool,
    next: u64,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    waker: Option<Waker>,
    chosen: bool,
}

impl Notify {
    /// One that nobody waits for.
    #[must_use]
    pub fn new() -> Notify {
        Notify::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes who waits now.
    pub fn notify_waiters(&self) {
        let woken: Vec<Waker> = {
            let mut state = self.state();
            state.rounds += 1;
            std::mem::take(&mut state.waiting).into_iter().filter_map(|waiting| waiting.waker).collect()
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// Wakes one who waits, now or next.
    pub fn notify_one(&self) {
        let woken = {
            let mut state = self.state();
            match state.waiting.iter_mut().find(|waiting| !waiting.chosen) {
                Some(first) => {
                    first.chosen = true;
                    first.waker.take()
                }
                None => {
                    state.permit = true;
                    None
                }
            }
        };
        if let Some(waker) = woken {
            waker.wake();
        }
    }

    /// Is done when it is notified.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, since: self.state().rounds, number: None }
    }
}

/// As `tokio::sync::futures::Notified`.
#[derive(Debug)]
pub struct Notified<'a> {
    notify: &'a Notify,
    since: u64,
    number: Option<u64>,
}

impl Notified<'_> {
    /// Waits from now on; true if it is notified already.
    pub fn enable(mut self: Pin<&mut Self>) -> bool {
        self.register(None)
    }

    fn register(&mut self, waker: Option<&Waker>) -> bool {
        let mut state = self.notify.state();
        if state.rounds != self.since {
            return true;
        }
        let place = self.number.and_then(|number| state.waiting.iter().position(|one| one.number == number));
        match place {
            Some(at) if state.waiting[at].chosen => {
                state.waiting.remove(at);
                true
            }
            Some(at) => {
                state.waiting[at].waker = waker.cloned();
                false
            }
            None if std::mem::take(&mut state.permit) => true,
            None => {
                let number = state.next;
                state.next += 1;
                state.waiting.push(Waiting { number, waker: waker.cloned(), chosen: false });
                self.number = Some(number);
                false
            }
        }
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.register(Some(cx.waker())) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let was_chosen = {
            let mut state = self.notify.state();
            let place = state.waiting.iter().position(|one| one.number == number);
            place.is_some_and(|at| state.waiting.remove(at).chosen)
        };
        // It is somebody else's, then.
        if was_chosen {
            self.notify.notify_one();
        }
    }
}
