//! A handle to a server that outlives its connections.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::{CALL_DEADLINE, ConnectError, ConnectOptions, Connection};
use crate::frame::Body;
use crate::rpc::{Rpc, RpcError};
use crate::transport::Address;

/// The pause after a first failed attempt to connect; it doubles with every further one.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest pause between two attempts, unless [`ConnectOptions::pause_max`] says another one.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What is known about the way to a server.
#[derive(Debug, Clone)]
pub enum PeerState {
    /// Nobody needed it yet, or it was closed and nobody needed it since.
    Idle,
    /// An attempt is being made.
    Connecting,
    /// There is a connection.
    Connected,
    /// The last attempts failed.
    Failed {
        /// How many in a row.
        attempts: u32,
        /// Why the last one did.
        error: Arc<ConnectError>,
    },
}

/// A server at an address: connects when it is needed, again when the connection was lost, and shares one
/// connection among all who call. Clones share it.
#[derive(Clone)]
pub struct Peer {
    inner: Arc<Inner>,
}

struct Inner {
    address: Address,
    options: ConnectOptions,
    slot: Mutex<Slot>,
    state: watch::Sender<PeerState>,
}

struct Slot {
    connection: Option<Connection>,
    /// Attempts that failed in a row.
    failures: u32,
    /// No attempt before this.
    not_before: Option<Instant>,
    /// Somebody makes an attempt; its end is seen on this channel.
    attempt: Option<watch::Receiver<Option<Attempt>>>,
}

type Attempt = Result<Connection, Arc<ConnectError>>;

impl Peer {
    /// The server at `address`. Nothing happens until it is needed.
    pub fn new(address: Address, options: ConnectOptions) -> Peer {
        let slot = Slot { connection: None, failures: 0, not_before: None, attempt: None };
        let (state, _) = watch::channel(PeerState::Idle);
        Peer { inner: Arc::new(Inner { address, options, slot: Mutex::new(slot), state }) }
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.inner.address
    }

    /// What is known about the way to it.
    pub fn state(&self) -> PeerState {
        let lost = matches!(&*self.inner.state.borrow(), PeerState::Connected) && self.connected().is_none();
        if lost { PeerState::Idle } else { self.inner.state.borrow().clone() }
    }

    /// The connection, if there is one now.
    pub fn connected(&self) -> Option<Connection> {
        self.inner.slot.lock().connection.clone().filter(|connection| !connection.is_closed())
    }

    /// The connection, made if need be. After a failure this waits for its turn before it tries again, so
    /// call it under a deadline.
    pub async fn connection(&self) -> Result<Connection, Arc<ConnectError>> {
        let mut attempt = {
            let mut slot = self.inner.slot.lock();
            if let Some(connection) = slot.connection.as_ref().filter(|connection| !connection.is_closed()) {
                return Ok(connection.clone());
            }
            match &slot.attempt {
                Some(attempt) => attempt.clone(),
                None => self.begin(&mut slot),
            }
        };
        // The attempt is a task of its own: it goes on when the caller's deadline is over, else a server
        // that takes long to answer would never be reached by callers in a hurry.
        match attempt.wait_for(Option::is_some).await {
            Ok(done) => match &*done {
                Some(result) => result.clone(),
                None => Err(self.ended()),
            },
            Err(_) => Err(self.ended()),
        }
    }

    fn ended(&self) -> Arc<ConnectError> {
        let source = std::io::Error::other("the connection attempt was cancelled: this process is stopping");
        Arc::new(ConnectError::Dial { address: self.inner.address.to_string(), source })
    }

    fn begin(&self, slot: &mut Slot) -> watch::Receiver<Option<Attempt>> {
        let (done, receiver) = watch::channel(None);
        slot.attempt = Some(receiver.clone());
        let not_before = slot.not_before;
        let peer = self.clone();
        tokio::spawn(async move {
            if let Some(not_before) = not_before {
                tokio::time::sleep_until(not_before).await;
            }
            peer.inner.state.send_replace(PeerState::Connecting);
            let result =
                Connection::connect(&peer.inner.address, &peer.inner.options).await.map_err(Arc::new);
            peer.note(&result);
            done.send_replace(Some(result));
        });
        receiver
    }

    fn note(&self, result: &Attempt) {
        let mut slot = self.inner.slot.lock();
        slot.attempt = None;
        match result {
            Ok(connection) => {
                slot.connection = Some(connection.clone());
                slot.failures = 0;
                // One that is lost at once again must not be dialled in a tight loop.
                slot.not_before = Some(Instant::now() + BACKOFF_MIN);
                self.inner.state.send_replace(PeerState::Connected);
            }
            Err(error) => {
                slot.connection = None;
                slot.failures += 1;
                slot.not_before = Some(
                    Instant::now() + backoff(slot.failures, self.inner.options.pause_max, rand::random()),
                );
                tracing::debug!(address = %self.inner.address, attempts = slot.failures, %error, "can't connect");
                self.inner
                    .state
                    .send_replace(PeerState::Failed { attempts: slot.failures, error: error.clone() });
            }
        }
    }

    /// Calls with a typed message, within [`CALL_DEADLINE`], which includes connecting.
    pub async fn call<R: Rpc>(
        &self,
        request: &R::Request,
        body: impl Into<Body>,
    ) -> Result<(R::Reply, Bytes), RpcError> {
        self.call_within::<R>(request, body, CALL_DEADLINE).await
    }

    /// Calls with a typed message, within `deadline`, which includes connecting. One that couldn't connect
    /// was not sent.
    pub async fn call_within<R: Rpc>(
        &self,
        request: &R::Request,
        body: impl Into<Body>,
        deadline: Duration,
    ) -> Result<(R::Reply, Bytes), RpcError> {
        let started = Instant::now();
        let connection = match self.connected() {
            Some(connection) => connection,
            None => match tokio::time::timeout(deadline, self.connection()).await {
                Ok(connected) => connected.map_err(RpcError::not_sent)?,
                Err(_) => return Err(RpcError::not_sent(self.why_not(deadline))),
            },
        };
        let left = deadline.saturating_sub(started.elapsed());
        connection.call_within::<R>(request, body, left).await
    }

    fn why_not(&self, deadline: Duration) -> String {
        match self.state() {
            PeerState::Failed { error, .. } => error.to_string(),
            _ => format!("no connection to {} within {} ms", self.inner.address, deadline.as_millis()),
        }
    }

    /// Lets go of the connection; calls in flight end. The next call connects again.
    pub fn disconnect(&self) {
        let connection = self.inner.slot.lock().connection.take();
        if let Some(connection) = connection {
            self.inner.state.send_replace(PeerState::Idle);
            connection.abort();
        }
    }
}

/// The pause after so many failures in a row; `random` spreads those who lost the same server at the same
/// moment over half of it.
fn backoff(failures: u32, longest: Duration, random: u32) -> Duration {
    let doubled = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let pause = doubled.min(longest);
    pause / 2 + pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_spread() {
        assert_eq!(backoff(1, BACKOFF_MAX, 0), BACKOFF_MIN / 2);
        assert_eq!(backoff(1, BACKOFF_MAX, u32::MAX), BACKOFF_MIN);
        assert_eq!(backoff(3, BACKOFF_MAX, u32::MAX), BACKOFF_MIN * 4);
        assert_eq!(backoff(40, BACKOFF_MAX, u32::MAX), BACKOFF_MAX);
        assert_eq!(backoff(u32::MAX, BACKOFF_MAX, 0), BACKOFF_MAX / 2);
    }
}
