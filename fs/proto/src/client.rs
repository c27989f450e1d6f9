//! The calling side of a connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::direct::Direct;
use crate::frame::{Body, Frame, FrameError, FrameReader, FrameType, OutFrame};
use crate::handshake::{self, Established, HandshakeError, Identity, Remote, Role};
use crate::outbox::Outbox;
use crate::peer::BACKOFF_MAX;
use crate::rpc::{Rpc, RpcError};
use crate::status::Status;
use crate::transport::{Address, Stream};

/// Requests of one connection without an answer; a further one waits.
pub const CALLS_IN_FLIGHT_MAX: usize = 256;
/// Bytes of requests of one connection without an answer; a further one waits. Fewer than a server takes, so
/// that a server never has to stop reading from a client that keeps to the rules.
pub const CALL_BYTES_IN_FLIGHT_MAX: usize = 32 << 20;
/// How long a call may take when nothing else is said.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// How long the dialling (before the handshake) may take.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// After this long without a word from the server it is asked whether it is there.
pub const KEEPALIVE_PERIOD: Duration = Duration::from_secs(5);
/// After this many periods without a word the connection is given up.
pub const KEEPALIVE_SILENT_PERIODS_MAX: u32 = 4;
/// Pushes that wait for the client; a connection whose client doesn't take them is closed. The size for
/// [`push_channel`].
pub const PUSHES_WAITING_MAX: usize = 4096;
/// Frames at least this long (bytes) are written by the caller itself: they fill a write of their own.
const WRITE_AT_ONCE_BYTES: usize = 64 << 10;

/// A message from the server that no request asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The message's kind.
    pub kind: u16,
    /// The encoded message.
    pub meta: Bytes,
    /// Raw bytes.
    pub body: Bytes,
}

impl Push {
    /// The message, if it is of the type `R`'s request.
    pub fn decode<R: Rpc>(&self) -> Result<R::Request, FrameError> {
        if self.kind != R::KIND {
            return Err(FrameError::Message {
                kind: self.kind,
                reason: format!("expected {:#06x}", R::KIND),
            });
        }
        postcard::from_bytes(&self.meta)
            .map_err(|error| FrameError::Message { kind: self.kind, reason: error.to_string() })
    }
}

/// A channel for pushes of the size that this crate means.
pub fn push_channel() -> (mpsc::Sender<Push>, mpsc::Receiver<Push>) {
    mpsc::channel(PUSHES_WAITING_MAX)
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Who we are.
    pub identity: Identity,
    /// Who must answer; without it any member of the cluster may.
    pub expect: Option<Role>,
    /// Where pushes go; without it they are dropped.
    pub pushes: Option<mpsc::Sender<Push>>,
    /// The longest pause of a [`Peer`](crate::Peer) between two attempts.
    pub pause_max: Duration,
}

impl ConnectOptions {
    /// As this identity, to anybody of the cluster, without pushes.
    pub fn new(identity: Identity) -> ConnectOptions {
        ConnectOptions { identity, expect: None, pushes: None, pause_max: BACKOFF_MAX }
    }

    /// Only to this member.
    pub fn expecting(mut self, role: Role) -> ConnectOptions {
        self.expect = Some(role);
        self
    }

    /// With pushes going to `pushes`.
    pub fn with_pushes(mut self, pushes: mpsc::Sender<Push>) -> ConnectOptions {
        self.pushes = Some(pushes);
        self
    }

    /// Tries again after no more than `pause`.
    pub fn with_pauses_up_to(mut self, pause: Duration) -> ConnectOptions {
        self.pause_max = pause;
        self
    }
}

/// A connection couldn't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody answers there, or the name isn't known.
    #[error("can't reach {address}: {source}")]
    Dial {
        /// The address.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nobody answered in time.
    #[error("can't reach {address}: no response within {} s", DIAL_DEADLINE.as_secs())]
    DialDeadline {
        /// The address.
        address: String,
    },
    /// Somebody answered, but there was no agreement.
    #[error("{address}: {source}")]
    Handshake {
        /// The address.
        address: String,
        /// What is wrong.
        source: HandshakeError,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The encoded message.
    pub meta: Bytes,
    /// Raw bytes.
    pub body: Bytes,
}

/// A connection to a server: many calls at once, answered in any order. Clones share it; it closes when the
/// last one is dropped.
#[derive(Clone)]
pub struct Connection {
    way: Way,
}

#[derive(Clone)]
enum Way {
    Socket(Arc<Handle>),
    /// The server is in this process.
    Direct(Arc<Direct>),
}

struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.token.cancel();
    }
}

struct Shared {
    remote: Remote,
    outbox: Outbox,
    calls: Mutex<Calls>,
    in_flight: Semaphore,
    in_flight_bytes: Semaphore,
    token: CancellationToken,
    /// Something came since the keepalive looked last.
    heard: AtomicBool,
    /// Answers that came, also to calls that were given up.
    answers: AtomicU64,
}

struct Calls {
    waiting: HashMap<u64, oneshot::Sender<Result<Reply, RpcError>>>,
    next_id: u64,
    /// Why the connection is closed, once it is.
    closed: Option<String>,
}

impl Connection {
    /// Connects to `address`.
    pub async fn connect(address: &Address, options: &ConnectOptions) -> Result<Connection, ConnectError> {
        if let Some(direct) = Direct::connect(address, options) {
            return Ok(Connection { way: Way::Direct(direct) });
        }
        let stream = match tokio::time::timeout(DIAL_DEADLINE, address.dial_from(options.identity.role)).await
        {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(ConnectError::Dial { address: address.to_string(), source }),
            Err(_) => return Err(ConnectError::DialDeadline { address: address.to_string() }),
        };
        Connection::over(stream, options)
            .await
            .map_err(|source| ConnectError::Handshake { address: address.to_string(), source })
    }

    /// Speaks over a stream that is open already.
    pub async fn over(stream: Stream, options: &ConnectOptions) -> Result<Connection, HandshakeError> {
        let Established { source, sink, remote } =
            handshake::connect(stream, &options.identity, options.expect).await?;
        let shared = Arc::new(Shared {
            remote,
            outbox: Outbox::new(sink),
            calls: Mutex::new(Calls { waiting: HashMap::new(), next_id: 1, closed: None }),
            in_flight: Semaphore::new(CALLS_IN_FLIGHT_MAX),
            in_flight_bytes: Semaphore::new(CALL_BYTES_IN_FLIGHT_MAX),
            token: CancellationToken::new(),
            heard: AtomicBool::new(true),
            answers: AtomicU64::new(0),
        });
        tokio::spawn(shared.clone().run(FrameReader::new(source), options.pushes.clone()));
        Ok(Connection { way: Way::Socket(Arc::new(Handle { shared })) })
    }

    /// Who is at the other end.
    pub fn remote(&self) -> &Remote {
        match &self.way {
            Way::Socket(handle) => &handle.shared.remote,
            Way::Direct(direct) => direct.remote(),
        }
    }

    /// How many answers have come, those to calls that were given up among them.
    pub fn answers(&self) -> u64 {
        match &self.way {
            Way::Socket(handle) => handle.shared.answers.load(Ordering::Relaxed),
            Way::Direct(direct) => direct.answers.load(Ordering::Relaxed),
        }
    }

    /// Why the connection is closed, if it is.
    pub fn closed_reason(&self) -> Option<String> {
        match &self.way {
            Way::Socket(handle) => handle.shared.calls.lock().closed.clone(),
            Way::Direct(direct) => direct.closed_reason(),
        }
    }

    /// Whether the connection is closed.
    pub fn is_closed(&self) -> bool {
        match &self.way {
            Way::Socket(handle) => handle.shared.calls.lock().closed.is_some(),
            Way::Direct(direct) => direct.is_closed(),
        }
    }

    /// Waits until the connection is closed, by whichever side.
    pub async fn closed(&self) {
        match &self.way {
            Way::Socket(handle) => handle.shared.token.cancelled().await,
            Way::Direct(direct) => direct.closed().await,
        }
    }

    /// Writes what is queued (one-way messages, for example), for at most `deadline`, and closes.
    pub async fn close(self, deadline: Duration) {
        let shared = match &self.way {
            Way::Socket(handle) => &handle.shared,
            // What was sent has begun.
            Way::Direct(direct) => return direct.abort(),
        };
        if tokio::time::timeout(deadline, shared.outbox.drained()).await.is_err() {
            tracing::debug!(remote = %shared.remote.address, "closing with unsent messages");
        }
        shared.token.cancel();
    }

    /// Closes at once; calls in flight end with an unknown outcome.
    pub fn abort(&self) {
        match &self.way {
            Way::Socket(handle) => handle.shared.token.cancel(),
            Way::Direct(direct) => direct.abort(),
        }
    }

    /// Calls with a typed message, within [`CALL_DEADLINE`].
    pub async fn call<R: Rpc>(
        &self,
        request: &R::Request,
        body: impl Into<Body>,
    ) -> Result<(R::Reply, Bytes), RpcError> {
        self.call_within::<R>(request, body, CALL_DEADLINE).await
    }

    /// Calls with a typed message, within `deadline`.
    pub async fn call_within<R: Rpc>(
        &self,
        request: &R::Request,
        body: impl Into<Body>,
        deadline: Duration,
    ) -> Result<(R::Reply, Bytes), RpcError> {
        let body = body.into();
        let call = async |sent: &mut bool| match &self.way {
            Way::Socket(handle) => {
                let encode = |id| OutFrame::encode(FrameType::Request, R::KIND, id, request, body);
                handle.shared.exchange(encode, sent).await
            }
            Way::Direct(direct) => direct.exchange(R::KIND, encode(R::KIND, request)?, body, sent).await,
        };
        let reply = in_time(call, deadline).await?;
        match postcard::from_bytes(&reply.meta) {
            Ok(message) => Ok((message, reply.body)),
            Err(error) => Err(RpcError::BadReply { kind: R::KIND, reason: error.to_string() }),
        }
    }

    /// Calls with a message that is encoded already.
    pub async fn call_raw(
        &self,
        kind: u16,
        meta: Bytes,
        body: impl Into<Body>,
        deadline: Duration,
    ) -> Result<Reply, RpcError> {
        let body = body.into();
        let call = async |sent: &mut bool| match &self.way {
            Way::Socket(handle) => {
                let encode = |id| OutFrame::raw(FrameType::Request, kind, id, &meta, body);
                handle.shared.exchange(encode, sent).await
            }
            Way::Direct(direct) => direct.exchange(kind, meta, body, sent).await,
        };
        in_time(call, deadline).await
    }

    /// Sends a message that gets no answer. `Ok` says that it is queued, not that it arrives.
    pub fn send<R: Rpc>(&self, request: &R::Request, body: impl Into<Body>) -> Result<(), RpcError> {
        match &self.way {
            Way::Socket(handle) => handle.shared.send(R::KIND, request, body.into()),
            Way::Direct(direct) => direct.send(R::KIND, encode(R::KIND, request)?, body.into()),
        }
    }
}

fn encode<M: Serialize>(kind: u16, message: &M) -> Result<Bytes, RpcError> {
    postcard::to_allocvec(message)
        .map(Bytes::from)
        .map_err(|error| RpcError::unsendable(FrameError::Message { kind, reason: error.to_string() }))
}

/// The call's answer within `deadline`. The call says whether it was sent.
async fn in_time(
    call: impl AsyncFnOnce(&mut bool) -> Result<Reply, RpcError>,
    deadline: Duration,
) -> Result<Reply, RpcError> {
    let mut sent = false;
    match tokio::time::timeout(deadline, call(&mut sent)).await {
        Ok(result) => result,
        Err(_) => Err(RpcError::deadline(deadline, sent)),
    }
}

/// Removes a call that is given up or done from the table.
struct Waiting<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.calls.lock().waiting.remove(&self.id);
    }
}

impl Shared {
    fn send<M: Serialize>(&self, kind: u16, message: &M, body: Body) -> Result<(), RpcError> {
        let frame =
            OutFrame::encode(FrameType::OneWay, kind, 0, message, body).map_err(RpcError::unsendable)?;
        if self.outbox.queued_bytes() + frame.bytes() > CALL_BYTES_IN_FLIGHT_MAX {
            return Err(RpcError::not_sent("the server doesn't read what is queued already"));
        }
        self.outbox.queue(frame, None).map_err(|_| self.not_sent())?;
        self.outbox.wake();
        Ok(())
    }

    async fn exchange(
        &self,
        encode: impl FnOnce(u64) -> Result<OutFrame, FrameError>,
        sent: &mut bool,
    ) -> Result<Reply, RpcError> {
        let alone = self.in_flight.available_permits() == CALLS_IN_FLIGHT_MAX;
        let _call = self.permit(&self.in_flight, 1).await?;
        let (id, answer) = self.register()?;
        let waiting = Waiting { shared: self, id };
        let frame = encode(id).map_err(RpcError::unsendable)?;
        let bytes = frame.bytes();
        let _bytes = self.permit(&self.in_flight_bytes, bytes as u32).await?;
        self.outbox.queue(frame, None).map_err(|_| self.not_sent())?;
        *sent = true;
        if alone || bytes >= WRITE_AT_ONCE_BYTES {
            if let Err(error) = self.outbox.flush() {
                self.close(&format!("writing failed: {error}"), false);
            }
        } else {
            self.outbox.wake();
        }
        let result = answer.await;
        std::mem::forget(waiting);
        result.unwrap_or_else(|_| {
            Err(RpcError::OutcomeUnknown { reason: "the connection's task ended".into() })
        })
    }

    async fn permit<'a>(&self, of: &'a Semaphore, count: u32) -> Result<SemaphorePermit<'a>, RpcError> {
        match of.try_acquire_many(count) {
            Ok(permit) => Ok(permit),
            Err(_) => of.acquire_many(count).await.map_err(|_| self.not_sent()),
        }
    }

    fn register(&self) -> Result<(u64, oneshot::Receiver<Result<Reply, RpcError>>), RpcError> {
        let (answer, receiver) = oneshot::channel();
        let mut calls = self.calls.lock();
        if let Some(reason) = &calls.closed {
            return Err(RpcError::not_sent(reason));
        }
        let id = calls.next_id;
        calls.next_id += 1;
        calls.waiting.insert(id, answer);
        Ok((id, receiver))
    }

    fn not_sent(&self) -> RpcError {
        let closed = self.calls.lock().closed.clone();
        RpcError::not_sent(closed.as_deref().unwrap_or("the connection is closed"))
    }

    async fn run(self: Arc<Self>, mut reader: FrameReader, pushes: Option<mpsc::Sender<Push>>) {
        let writer = async { format!("writing failed: {:?}", self.outbox.run().await.err()) };
        let (reason, carried_out) = tokio::select! {
            reason = self.read(&mut reader, pushes) => reason,
            reason = writer => (reason, true),
            reason = self.keep_alive() => (reason, true),
            () = self.token.cancelled() => ("this process closed it".to_string(), true),
        };
        self.close(&reason, !carried_out);
    }

    /// Hands out what comes; returns why it ended and whether unanswered requests may have been carried out.
    async fn read(&self, reader: &mut FrameReader, pushes: Option<mpsc::Sender<Push>>) -> (String, bool) {
        loop {
            let frame = match reader.buffered() {
                Ok(Some(frame)) => frame,
                Ok(None) => match reader.fill().await {
                    Ok(true) => {
                        self.heard.store(true, Ordering::Relaxed);
                        continue;
                    }
                    Ok(false) => return ("the server closed the connection".into(), true),
                    Err(error) => return (error.to_string(), true),
                },
                Err(error) => return (error.to_string(), true),
            };
            match frame.frame_type {
                FrameType::Reply => {
                    self.answer(frame.request_id, Ok(Reply { meta: frame.meta, body: frame.body }))
                }
                FrameType::Error => {
                    let status = read_status(&frame);
                    if frame.request_id == 0 {
                        return (format!("the server closed the connection: {status}"), true);
                    }
                    self.answer(frame.request_id, Err(RpcError::Refused(status)));
                }
                FrameType::Push => {
                    let push = Push { kind: frame.kind, meta: frame.meta, body: frame.body };
                    if let Some(pushes) = &pushes
                        && let Err(mpsc::error::TrySendError::Full(_)) = pushes.try_send(push)
                    {
                        return ("this client reads the server's messages too slowly".into(), true);
                    }
                }
                FrameType::Ping => self.control(FrameType::Pong),
                FrameType::Pong => {}
                FrameType::Goodbye => return ("the server is shutting down".into(), false),
                other @ (FrameType::Request | FrameType::OneWay) => {
                    return (FrameError::Unexpected(other).to_string(), true);
                }
            }
        }
    }

    fn answer(&self, id: u64, result: Result<Reply, RpcError>) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        // A call that was given up has no entry, and its answer is of no use to anybody.
        let waiting = self.calls.lock().waiting.remove(&id);
        if let Some(waiting) = waiting {
            let _ = waiting.send(result);
        }
    }

    fn control(&self, frame_type: FrameType) {
        if let Ok(frame) = OutFrame::raw(frame_type, 0, 0, &[], Body::Empty)
            && self.outbox.queue(frame, None).is_ok()
        {
            self.outbox.wake();
        }
    }

    /// Counts turns of its own instead of comparing times, so that a process that was stopped for a while
    /// doesn't blame the server.
    async fn keep_alive(&self) -> String {
        let mut ticks = tokio::time::interval(KEEPALIVE_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0;
        loop {
            ticks.tick().await;
            if self.heard.swap(false, Ordering::Relaxed) {
                silent = 0;
                continue;
            }
            silent += 1;
            if silent > KEEPALIVE_SILENT_PERIODS_MAX {
                return format!("the server did not respond for {} s", (KEEPALIVE_PERIOD * silent).as_secs());
            }
            self.control(FrameType::Ping);
        }
    }

    /// Ends all calls. `not_carried_out` says that the server promised to have done none of them.
    fn close(&self, reason: &str, not_carried_out: bool) {
        let waiting = {
            let mut calls = self.calls.lock();
            if calls.closed.is_none() {
                calls.closed = Some(reason.to_string());
                tracing::debug!(remote = %self.remote.address, peer = %self.remote.role, reason, "connection closed");
            }
            std::mem::take(&mut calls.waiting)
        };
        self.outbox.close();
        self.in_flight.close();
        self.in_flight_bytes.close();
        for (_, waiting) in waiting {
            let reason = reason.to_string();
            let error = if not_carried_out {
                RpcError::NotSent { reason }
            } else {
                RpcError::OutcomeUnknown { reason }
            };
            let _ = waiting.send(Err(error));
        }
        self.token.cancel();
    }
}

fn read_status(frame: &Frame) -> Status {
    postcard::from_bytes(&frame.meta)
        .unwrap_or_else(|error| Status::internal(format!("the server's refusal can't be read: {error}")))
}
