//! Carries out what the metadata service orders.

use std::collections::HashSet;
use std::sync::Arc;

use atoll_blocking::Pace;
use atoll_proto::registration::{NumberedOrder, ORDERS_MAX, Order, OrderDone};
use atoll_proto::storage::{CopyChunk, SealChunk, StorageError};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::service::StorageService;

/// Orders that wait; what is more is dropped, since an order is repeated until it was carried out.
const ORDERS_WAITING_MAX: usize = 2 * ORDERS_MAX;
/// Outcomes that wait for a heartbeat; the oldest are dropped (then the order comes again, and does no harm).
const OUTCOMES_WAITING_MAX: usize = 4 * ORDERS_MAX;
/// Deletes, trims and seals in a second: each is a few writes to the disk.
const QUICK_ORDERS_PER_S: u64 = 500;
/// Copies and scrubs at once.
const LONG_ORDERS_AT_ONCE: usize = 2;

/// The orders that wait or run, and what became of others.
pub(crate) struct Orders {
    quick: mpsc::Sender<NumberedOrder>,
    long: mpsc::Sender<NumberedOrder>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Numbers that wait or run: a repetition of them is nothing new.
    taken: HashSet<u64>,
    done: Vec<OrderDone>,
}

impl Orders {
    /// Starts the workers among `tasks`. They end with `stop`: quick orders that run are carried out, long ones are
    /// dropped (they come again, and an unfinished copy is cleaned up).
    pub(crate) fn start(
        service: Arc<StorageService>,
        stop: CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let pace = Arc::new(Pace::new(QUICK_ORDERS_PER_S));
        let (quick, quick_orders) = mpsc::channel(ORDERS_WAITING_MAX);
        let (long, long_orders) = mpsc::channel(ORDERS_WAITING_MAX);
        let worker = Worker { service, state: state.clone(), stop };
        tasks.spawn(worker.clone().work(Arc::new(tokio::sync::Mutex::new(quick_orders)), Some(pace)));
        let long_orders = Arc::new(tokio::sync::Mutex::new(long_orders));
        for _ in 0..LONG_ORDERS_AT_ONCE {
            tasks.spawn(worker.clone().work(long_orders.clone(), None));
        }
        Self { quick, long, state }
    }

    /// Takes orders, without waiting for them.
    pub(crate) fn take(&self, orders: Vec<NumberedOrder>) {
        for order in orders {
            let queue = match &order.order {
                Order::Copy { .. } | Order::Scrub { .. } => &self.long,
                _ => &self.quick,
            };
            let number = order.number;
            if !self.state.lock().taken.insert(number) {
                continue;
            }
            if queue.try_send(order).is_err() {
                self.state.lock().taken.remove(&number);
            }
        }
    }

    /// Outcomes that weren't reported yet, at most so many.
    pub(crate) fn outcomes(&self, limit: usize) -> Vec<OrderDone> {
        let mut state = self.state.lock();
        let count = state.done.len().min(limit);
        state.done.drain(..count).collect()
    }

    /// Puts back outcomes that weren't heard.
    pub(crate) fn put_back(&self, outcomes: Vec<OrderDone>) {
        let mut state = self.state.lock();
        let newer = std::mem::replace(&mut state.done, outcomes);
        state.done.extend(newer);
        state.bound();
    }
}

impl State {
    fn bound(&mut self) {
        let excess = self.done.len().saturating_sub(OUTCOMES_WAITING_MAX);
        self.done.drain(..excess);
    }
}

#[derive(Clone)]
struct Worker {
    service: Arc<StorageService>,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
}

impl Worker {
    async fn work(
        self,
        queue: Arc<tokio::sync::Mutex<mpsc::Receiver<NumberedOrder>>>,
        pace: Option<Arc<Pace>>,
    ) {
        loop {
            let next = async { queue.lock().await.recv().await };
            let order = tokio::select! {
                () = self.stop.cancelled() => return,
                order = next => order,
            };
            let Some(NumberedOrder { number, order }) = order else { return };
            if let Some(pace) = &pace {
                pace.take(1).await;
            }
            let result = tokio::select! {
                () = self.stop.cancelled(), if pace.is_none() => return,
                result = self.carry_out(order.clone()) => result,
            };
            if let Err(error) = &result {
                tracing::warn!(
                    task = ?order, %error,
                    "a task failed; the metadata servers issue it again if it is still needed"
                );
            }
            let mut state = self.state.lock();
            state.taken.remove(&number);
            state.done.push(OrderDone { order: number, result });
            state.bound();
        }
    }

    async fn carry_out(&self, order: Order) -> Result<(), StorageError> {
        match order {
            Order::Trim { chunk, ranges } => self.service.trim(chunk, ranges).await,
            Order::Delete { chunk } => self.service.delete(chunk).await,
            Order::Seal { chunk, generation, length } => {
                self.service.seal(SealChunk { chunk, generation, length }).await
            }
            Order::Copy { chunk, generation, length, from } => {
                self.service.copy(CopyChunk { chunk, generation, length, from }).await
            }
            // What it finds is reported with the news.
            Order::Scrub { chunk } => self.service.scrub(chunk).await.map(drop),
            other => Err(StorageError::Invalid(format!("this program doesn't know the task {other:?}"))),
        }
    }
}
