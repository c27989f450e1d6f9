//! Servers of this very process, called without a socket.
//!
//! `atoll-fs local` has its servers and its mount in one process. There a call is a call: the handler's future is polled by
//! whoever calls, bytes are handed over as they are, and no thread is woken for a question that is answered from memory.
//! What a caller may rely on is the same as over a socket: requests begin in the order in which they are made, run to their
//! end even if nobody waits for them any more, and are bounded in number and bytes.
//!
//! A server says that it can be reached so ([`ServerOptions::in_process`](crate::ServerOptions::in_process)); then
//! [`Connection::connect`](crate::Connection::connect) to its address needs no handshake, if both are of one cluster and know
//! its key. In all other cases the socket is dialled, and says what is wrong.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::task::{Context, Waker};

use atoll_blocking::Detach;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::client::{CALL_BYTES_IN_FLIGHT_MAX, CALLS_IN_FLIGHT_MAX, ConnectOptions, Reply};
use crate::frame::{Body, check_lengths};
use crate::handshake::{Identity, Remote};
use crate::rpc::RpcError;
use crate::server::{PeerInfo, Request, Response};
use crate::status::Status;
use crate::transport::Address;

/// What a handler answers, once it does.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Result<Response, Status>> + Send>>;

/// A server that can be called from within its process.
pub(crate) trait InProcess: Send + Sync {
    /// Who it is.
    fn identity(&self) -> &Identity;

    /// A new connection: what the handler will know about who calls, or that it doesn't want it.
    fn connect(&self, options: &ConnectOptions, token: &CancellationToken) -> Result<PeerInfo, Status>;

    /// The end of one.
    fn disconnect(&self, peer: &PeerInfo);

    /// The handler's answer. A server that stops waits for it.
    fn answer(&self, peer: Arc<PeerInfo>, request: Request) -> Answering;

    /// Cancelled when the server begins to stop: nothing new is begun.
    fn stopping(&self) -> &CancellationToken;

    /// Cancelled when it has stopped: what is not answered by then isn't waited for.
    fn stopped(&self) -> &CancellationToken;
}

static SERVERS: LazyLock<Mutex<HashMap<String, Weak<dyn InProcess>>>> = LazyLock::new(Mutex::default);

/// While this lives the server is found at its address.
pub(crate) struct Registered {
    address: String,
    server: Weak<dyn InProcess>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut servers = SERVERS.lock();
        // Another one may listen there by now.
        if servers.get(&self.address).is_some_and(|server| Weak::ptr_eq(server, &self.server)) {
            servers.remove(&self.address);
        }
    }
}

/// Lets `server`, which listens at `address`, be found.
pub(crate) fn register(address: String, server: &Arc<impl InProcess + 'static>) -> Registered {
    let server: Weak<dyn InProcess> = Arc::downgrade(server) as Weak<dyn InProcess>;
    SERVERS.lock().insert(address.clone(), Weak::clone(&server));
    Registered { address, server }
}

/// A connection within the process.
pub(crate) struct Direct {
    /// Whoever has connections doesn't keep a server that has stopped.
    server: Weak<dyn InProcess>,
    stopping: CancellationToken,
    peer: Arc<PeerInfo>,
    remote: Remote,
    in_flight: Arc<Semaphore>,
    in_flight_bytes: Arc<Semaphore>,
    runtime: Handle,
    /// Cancelled when either side closes it, or the server has stopped.
    token: CancellationToken,
    pub answers: AtomicU64,
}

impl Drop for Direct {
    fn drop(&mut self) {
        if let Some(server) = self.server.upgrade() {
            server.disconnect(&self.peer);
        }
    }
}

impl Direct {
    /// To the server of this process that listens there, if there is one and it is the one that is expected.
    pub fn connect(address: &Address, options: &ConnectOptions) -> Option<Arc<Direct>> {
        let server = SERVERS.lock().get(&address.to_string())?.upgrade()?;
        let identity = server.identity();
        let is_right = identity.cluster == options.identity.cluster
            && identity.key == options.identity.key
            && options.expect.is_none_or(|role| role == identity.role)
            && !server.stopping().is_cancelled();
        if !is_right {
            return None;
        }
        let token = server.stopped().child_token();
        let peer = Arc::new(server.connect(options, &token).ok()?);
        Some(Arc::new(Direct {
            remote: Remote { role: identity.role, address: address.to_string(), ..peer.remote.clone() },
            stopping: server.stopping().clone(),
            server: Arc::downgrade(&server),
            peer,
            in_flight: Arc::new(Semaphore::new(CALLS_IN_FLIGHT_MAX)),
            in_flight_bytes: Arc::new(Semaphore::new(CALL_BYTES_IN_FLIGHT_MAX)),
            runtime: Handle::current(),
            token,
            answers: AtomicU64::new(0),
        }))
    }

    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Why it is closed, if it is.
    pub fn closed_reason(&self) -> Option<String> {
        if self.stopping.is_cancelled() {
            return Some("the server is stopping".to_owned());
        }
        self.token.is_cancelled().then(|| "this process closed it".to_owned())
    }

    /// Whether it is.
    pub fn is_closed(&self) -> bool {
        self.stopping.is_cancelled() || self.token.is_cancelled()
    }

    /// Waits until nothing can be sent any more.
    pub async fn closed(&self) {
        tokio::select! {
            () = self.token.cancelled() => {}
            () = self.stopping.cancelled() => {}
        }
    }

    /// Closes it: calls in flight end with an unknown outcome.
    pub fn abort(&self) {
        self.token.cancel();
    }

    fn not_sent(&self) -> RpcError {
        RpcError::not_sent(self.closed_reason().as_deref().unwrap_or("the connection is closed"))
    }

    /// The server, unless nothing can be sent any more.
    fn server(&self) -> Result<Arc<dyn InProcess>, RpcError> {
        if self.is_closed() {
            return Err(self.not_sent());
        }
        self.server.upgrade().ok_or_else(|| self.not_sent())
    }

    /// `count` permits, once they are free and the connection isn't closed before.
    async fn permits(&self, of: &Arc<Semaphore>, count: usize) -> Result<OwnedSemaphorePermit, RpcError> {
        // What is free needs no look at whether it closes meanwhile.
        if let Ok(permits) = Arc::clone(of).try_acquire_many_owned(count as u32) {
            return Ok(permits);
        }
        tokio::select! {
            biased;
            () = self.closed() => Err(self.not_sent()),
            permits = Arc::clone(of).acquire_many_owned(count as u32) => permits.map_err(|_| self.not_sent()),
        }
    }

    /// The same for who can't wait.
    fn permits_now(&self, of: &Arc<Semaphore>, count: usize) -> Result<OwnedSemaphorePermit, RpcError> {
        Arc::clone(of)
            .try_acquire_many_owned(count as u32)
            .map_err(|_| RpcError::not_sent("too much waits for the server"))
    }

    /// Calls. `sent` says whether it was begun.
    pub async fn exchange(
        &self,
        kind: u16,
        meta: Bytes,
        body: Body,
        sent: &mut bool,
    ) -> Result<Reply, RpcError> {
        check_lengths(meta.len(), body.len()).map_err(RpcError::unsendable)?;
        let call = self.permits(&self.in_flight, 1).await?;
        let bytes = self.permits(&self.in_flight_bytes, meta.len() + body.len()).await?;
        let server = self.server()?;
        *sent = true;
        let request = Request { kind, meta, body: body.into_bytes() };
        let answer = server.answer(Arc::clone(&self.peer), request);
        // They belong to the work: it may go on when its caller has given up.
        let work = async move {
            let _permits = (call, bytes);
            answer.await
        };
        let answer = Detach::new(work, self.runtime.clone());
        drop(server);
        let answer = tokio::select! {
            biased;
            answer = answer => answer,
            () = self.token.cancelled() => {
                return Err(RpcError::OutcomeUnknown { reason: "the connection was closed".into() });
            }
        };
        self.answers.fetch_add(1, Ordering::Relaxed);
        let Response { meta, body } = answer.map_err(RpcError::Refused)?;
        check_lengths(meta.len(), body.len()).map_err(|error| {
            RpcError::Refused(Status::internal(format!("the reply can't be sent: {error}")))
        })?;
        Ok(Reply { meta, body: body.into_bytes() })
    }

    /// Sends a message that gets no answer: it has begun when this returns. Counts as calls do until its handler ends.
    pub fn send(&self, kind: u16, meta: Bytes, body: Body) -> Result<(), RpcError> {
        check_lengths(meta.len(), body.len()).map_err(RpcError::unsendable)?;
        let server = self.server()?;
        let message = self.permits_now(&self.in_flight, 1)?;
        let bytes = self.permits_now(&self.in_flight_bytes, meta.len() + body.len())?;
        let request = Request { kind, meta, body: body.into_bytes() };
        let answer = server.answer(Arc::clone(&self.peer), request);
        let mut work = Box::pin(async move {
            let _permits = (message, bytes);
            if let Err(status) = answer.await {
                tracing::debug!(kind, %status, "a one-way message was refused");
            }
        });
        // The runtime polls again before it waits, so whatever would wake this first poll's waker is not missed.
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(work);
        }
        Ok(())
    }
}
