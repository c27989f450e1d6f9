//! A request's future between its first poll, on the thread that read the request, and the moment when it can go on.
//!
//! Most requests wait for exactly one answer of a server. Were the future handed to the runtime at once, a worker would be
//! woken only to poll it a second time and leave its waker. Instead the first poll leaves a waker that does the handing over:
//! the future is spawned by whoever wakes it, which is a worker of the runtime as a rule, where that wakes nobody.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;

/// See the module.
pub(super) struct Parked<F> {
    state: Mutex<State<F>>,
    runtime: Handle,
}

enum State<F> {
    /// The first poll is not over; whether the future was woken meanwhile.
    Polled { woken: bool },
    /// It waits to be woken.
    Waiting(Pin<Box<F>>),
    /// The runtime has it, or it is done.
    Gone,
}

impl<F: Future<Output = ()> + Send + 'static> Parked<F> {
    pub fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Parked { state: Mutex::new(State::Polled { woken: false }), runtime })
    }

    /// Polls the future here. If it isn't done it stays, and the runtime has it from the moment when it is woken.
    ///
    /// Returns the future if it is done, so that its place can be used again.
    pub fn poll(self: &Arc<Self>, mut future: Pin<Box<F>>) -> Option<Pin<Box<F>>> {
        let waker = Waker::from(Arc::clone(self));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            *self.state.lock() = State::Gone;
            return Some(future);
        }
        let mut state = self.state.lock();
        if matches!(*state, State::Polled { woken: true }) {
            *state = State::Gone;
            drop(state);
            self.runtime.spawn(future);
        } else {
            *state = State::Waiting(future);
        }
        None
    }

    /// The same one for another future, if nobody has a waker of it left.
    pub fn again(mut self: Arc<Self>) -> Option<Arc<Self>> {
        *Arc::get_mut(&mut self)?.state.get_mut() = State::Polled { woken: false };
        Some(self)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Wake for Parked<F> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Gone) {
            State::Polled { .. } => *state = State::Polled { woken: true },
            State::Waiting(future) => {
                drop(state);
                self.runtime.spawn(future);
            }
            State::Gone => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    async fn nothing() {}

    #[test]
    fn what_is_done_at_once_never_reaches_the_runtime() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let parked = Parked::new(runtime.handle().clone());
        let done = parked.poll(Box::pin(nothing()));
        assert!(done.is_some());
        let parked = parked.again().expect("nobody has a waker");
        let metrics = runtime.metrics();
        assert_eq!(metrics.num_alive_tasks(), 0);
        // It can be used again, as often as its futures are done at once.
        assert!(parked.poll(Box::pin(nothing())).is_some());
    }

    #[test]
    fn what_yields_goes_on_and_what_waits_is_no_task_until_it_is_woken() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _entered = runtime.enter();
        let (done, is_done) = std::sync::mpsc::channel();
        let yields = {
            let done = done.clone();
            async move {
                tokio::task::yield_now().await;
                done.send("yielded").unwrap();
            }
        };
        assert!(Parked::new(runtime.handle().clone()).poll(Box::pin(yields)).is_none());
        assert_eq!(is_done.recv_timeout(Duration::from_secs(30)), Ok("yielded"));
        // It is a task until its last poll is over, which is after it has sent.
        let yielded = std::time::Instant::now();
        while runtime.metrics().num_alive_tasks() > 0 {
            assert!(yielded.elapsed() < Duration::from_secs(30), "its task goes on");
            std::thread::sleep(Duration::from_millis(1));
        }

        let (answer, answered) = oneshot::channel::<()>();
        let waits = async move {
            answered.await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            done.send("answered").unwrap();
        };
        assert!(Parked::new(runtime.handle().clone()).poll(Box::pin(waits)).is_none());
        assert_eq!(runtime.metrics().num_alive_tasks(), 0);
        answer.send(()).unwrap();
        assert_eq!(is_done.recv_timeout(Duration::from_secs(30)), Ok("answered"));
    }

    #[test]
    fn no_wake_is_lost_whenever_it_comes() {
        const ROUNDS: u32 = 20_000;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let finished = Arc::new(AtomicU32::new(0));
        let (answers, to_answer) = std::sync::mpsc::channel::<oneshot::Sender<()>>();
        let answerer = std::thread::spawn(move || {
            for (number, answer) in to_answer.into_iter().enumerate() {
                for _ in 0..number % 64 {
                    std::hint::spin_loop();
                }
                let _ = answer.send(());
            }
        });
        for round in 0..ROUNDS {
            let (answer, answered) = oneshot::channel();
            answers.send(answer).unwrap();
            for _ in 0..round % 48 {
                std::hint::spin_loop();
            }
            let finished = Arc::clone(&finished);
            let request = Box::pin(async move {
                answered.await.unwrap();
                finished.fetch_add(1, Ordering::Relaxed);
            });
            let _ = Parked::new(runtime.handle().clone()).poll(request);
        }
        drop(answers);
        answerer.join().unwrap();
        let begun = std::time::Instant::now();
        while finished.load(Ordering::Relaxed) < ROUNDS {
            assert!(begun.elapsed() < Duration::from_secs(60), "a wake was lost: {finished:?} of {ROUNDS}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
