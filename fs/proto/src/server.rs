//! The answering side of connections.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{ConnectOptions, Push};
use crate::direct;
use crate::frame::{
    BODY_BYTES_MAX, Body, Frame, FrameError, FrameReader, FrameType, OutFrame, check_lengths,
};
use crate::handshake::{self, Established, HandshakeError, Identity, Remote};
use crate::outbox::Outbox;
use crate::rpc::Rpc;
use crate::secure::FramePermit;
use crate::status::{Status, StatusCode};
use crate::transport::{Listener, Stream};
use crate::version::{FEATURE_LEVEL, PROTOCOL_MAX};

/// Connections of a server, those in their handshake included; a further one is told to come back later.
pub const CONNECTIONS_MAX: usize = 4096;
/// Connections that are told so at the same time; a further one is closed without a word.
const REFUSALS_MAX: usize = 64;
/// Requests of one connection that are being worked on or whose answers aren't written yet; while there are so
/// many, nothing more is read from it.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 512;
/// Bytes of those requests and of the answers that they announce (see [`Handler::reply_bytes`]); while there
/// are so many, nothing more is read.
pub const REQUEST_BYTES_IN_FLIGHT_MAX: usize = 64 << 20;
/// Pushed bytes that wait to be written to one client; a client that lets more pile up loses its connection.
pub const PUSH_BYTES_WAITING_MAX: usize = 4 << 20;
/// How long a server that shuts down waits for the requests that it works on.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);
/// How long the last answers of a closing connection may take to be written.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(2);
/// A client says something at least every few seconds; one that is silent for so many periods is gone.
const SILENCE_PERIOD: Duration = Duration::from_secs(10);
const SILENT_PERIODS_MAX: u32 = 6;
/// The pause after the system couldn't accept a connection (no descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bounds of a server, by default this module's constants, and how it is reached.
#[derive(Debug, Clone, Copy)]
pub struct ServerOptions {
    /// Connections.
    pub connections: usize,
    /// Requests of one connection that are being worked on.
    pub requests_in_flight: usize,
    /// Bytes of those requests and their announced answers.
    pub request_bytes_in_flight: usize,
    /// Callers in this process reach the handler without a socket.
    pub in_process: bool,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            connections: CONNECTIONS_MAX,
            requests_in_flight: REQUESTS_IN_FLIGHT_MAX,
            request_bytes_in_flight: REQUEST_BYTES_IN_FLIGHT_MAX,
            in_process: false,
        }
    }
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The message's kind.
    pub kind: u16,
    /// The encoded message.
    pub meta: Bytes,
    /// Raw bytes. Short ones share memory with other messages: what is kept for long should be copied.
    pub body: Bytes,
}

impl Request {
    /// The message, if it is of the type `R`.
    pub fn decode<R: Rpc>(&self) -> Result<R::Request, Status> {
        postcard::from_bytes(&self.meta).map_err(|error| {
            Status::bad_request(format!("message {:#06x} can't be decoded: {error}", R::KIND))
        })
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// The encoded message.
    pub meta: Bytes,
    /// Raw bytes, written as they are.
    pub body: Body,
}

impl Response {
    /// The answer to an `R`.
    pub fn to<R: Rpc>(reply: &R::Reply, body: impl Into<Body>) -> Result<Response, Status> {
        let meta = postcard::to_allocvec(reply).map_err(|error| {
            Status::internal(format!("the reply to {:#06x} can't be encoded: {error}", R::KIND))
        })?;
        Ok(Response { meta: meta.into(), body: body.into() })
    }
}

/// What a server does with requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. It is polled once by the task that reads the connection and goes on in a task of its own
    /// if it isn't ready then: what takes long without waiting belongs in `spawn_blocking`. It runs to its end
    /// even if the connection is lost.
    fn handle(
        &self,
        peer: &PeerInfo,
        request: Request,
    ) -> impl Future<Output = Result<Response, Status>> + Send;

    /// How many bytes the answer's body will have, so that they count in the connection's bound before they are
    /// read from a disk. Called before [`Handler::handle`], must be cheap.
    fn reply_bytes(&self, request: &Request) -> usize {
        let _ = request;
        0
    }

    /// A peer has proven the key and will send requests. A refusal closes the connection.
    fn connected(&self, peer: &PeerInfo) -> Result<(), Status> {
        let _ = peer;
        Ok(())
    }

    /// A connection that was accepted by [`Handler::connected`] is gone. Requests of it may still be worked on.
    fn disconnected(&self, peer: &PeerInfo) {
        let _ = peer;
    }
}

/// The peer of one connection.
#[derive(Clone)]
pub struct PeerInfo {
    /// What the handshake found out.
    pub remote: Remote,
    /// Counts this server's connections.
    pub connection: u64,
    pusher: Pusher,
}

impl PeerInfo {
    /// Sends messages to the client that no request asked for.
    pub fn pusher(&self) -> &Pusher {
        &self.pusher
    }
}

impl std::fmt::Debug for PeerInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerInfo")
            .field("remote", &self.remote)
            .field("connection", &self.connection)
            .finish()
    }
}

/// Sends messages to a client that no request asked for. Clones share the connection and don't keep it open.
#[derive(Clone)]
pub struct Pusher {
    way: PushWay,
    token: CancellationToken,
}

#[derive(Clone)]
enum PushWay {
    Socket(Arc<Outbox>),
    /// Where a caller in this process wants them, if it does.
    Direct(Option<mpsc::Sender<Push>>),
}

/// A push can't be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The connection is closed.
    #[error("the connection is closed")]
    Closed,
    /// The client doesn't read; its connection was closed for that.
    #[error("the client reads its messages too slowly ({bytes} bytes wait): its connection is closed")]
    Stuck {
        /// Bytes that wait.
        bytes: usize,
    },
    /// The message is beyond a limit.
    #[error("the message can't be sent: {0}")]
    Unsendable(String),
}

impl Pusher {
    /// Queues a message. `Ok` doesn't say that it arrives.
    pub fn push<R: Rpc>(&self, message: &R::Request, body: impl Into<Body>) -> Result<(), PushError> {
        let unsendable = |error: &dyn std::fmt::Display| PushError::Unsendable(error.to_string());
        let outbox = match &self.way {
            PushWay::Socket(outbox) => outbox,
            PushWay::Direct(pushes) => {
                let meta = postcard::to_allocvec(message).map_err(|error| unsendable(&error))?;
                return self.push_here(pushes.as_ref(), R::KIND, meta.into(), body.into());
            }
        };
        let frame = OutFrame::encode(FrameType::Push, R::KIND, 0, message, body.into());
        let frame = frame.map_err(|error| unsendable(&error))?;
        let bytes = outbox.queued_bytes();
        if bytes > PUSH_BYTES_WAITING_MAX {
            self.token.cancel();
            return Err(PushError::Stuck { bytes });
        }
        outbox.queue(frame, None).map_err(|_| PushError::Closed)?;
        outbox.wake();
        Ok(())
    }

    fn push_here(
        &self,
        pushes: Option<&mpsc::Sender<Push>>,
        kind: u16,
        meta: Bytes,
        body: Body,
    ) -> Result<(), PushError> {
        check_lengths(meta.len(), body.len()).map_err(|error| PushError::Unsendable(error.to_string()))?;
        if self.token.is_cancelled() {
            return Err(PushError::Closed);
        }
        let Some(pushes) = pushes else { return Ok(()) };
        let bytes = meta.len() + body.len();
        match pushes.try_send(Push { kind, meta, body: body.into_bytes() }) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(PushError::Closed),
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.token.cancel();
                Err(PushError::Stuck { bytes })
            }
        }
    }

    /// Closes the connection.
    pub fn close(&self) {
        self.token.cancel();
    }

    /// Whether the connection is closed.
    pub fn is_closed(&self) -> bool {
        self.token.is_cancelled()
    }
}

/// Serves connections until `shutdown`, with the default bounds. Then nothing new is accepted or read, what is
/// being worked on is finished within [`SHUTDOWN_DEADLINE`], and this returns.
pub async fn serve<H: Handler>(
    listener: Listener,
    identity: Identity,
    handler: Arc<H>,
    shutdown: CancellationToken,
) {
    serve_within(listener, identity, handler, ServerOptions::default(), shutdown).await;
}

/// As [`serve`], with bounds of one's own.
pub async fn serve_within<H: Handler>(
    mut listener: Listener,
    identity: Identity,
    handler: Arc<H>,
    limits: ServerOptions,
    shutdown: CancellationToken,
) {
    let server = Arc::new(Server {
        identity,
        handler,
        limits,
        next_connection: AtomicU64::new(1),
        work: TaskTracker::new(),
        shutdown: shutdown.clone(),
        stopped: CancellationToken::new(),
    });
    let registered = limits.in_process.then(|| direct::register(listener.local_address(), &server));
    let places = Arc::new(Semaphore::new(limits.connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let (place, busy) = match places.clone().try_acquire_owned() {
                    Ok(place) => (Ok(place), false),
                    Err(_) => (refusals.clone().try_acquire_owned(), true),
                };
                let Ok(place) = place else { continue };
                connections.spawn(server.clone().serve_stream(stream, busy, place));
            }
            Err(error) => {
                tracing::warn!(
                    listener = %listener.local_address(), %error,
                    "a connection could not be accepted"
                );
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(registered);
    drop(listener);
    connections.close();
    connections.wait().await;
    // What lost its connection may still be worked on.
    server.work.close();
    if tokio::time::timeout(SHUTDOWN_DEADLINE, server.work.wait()).await.is_err() {
        tracing::warn!(
            requests = server.work.len(),
            "requests whose connections had ended were unfinished at the shutdown"
        );
    }
    server.stopped.cancel();
}

impl<H: Handler> direct::InProcess for Server<H> {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn connect(&self, options: &ConnectOptions, token: &CancellationToken) -> Result<PeerInfo, Status> {
        let peer = PeerInfo {
            remote: Remote {
                role: options.identity.role,
                address: "this process".to_owned(),
                protocol: PROTOCOL_MAX,
                feature_level: FEATURE_LEVEL,
                encrypted: false,
            },
            connection: self.next_connection.fetch_add(1, Ordering::Relaxed),
            pusher: Pusher { way: PushWay::Direct(options.pushes.clone()), token: token.clone() },
        };
        self.handler.connected(&peer)?;
        Ok(peer)
    }

    fn disconnect(&self, peer: &PeerInfo) {
        self.handler.disconnected(peer);
    }

    fn answer(&self, peer: Arc<PeerInfo>, request: Request) -> direct::Answering {
        let handler = Arc::clone(&self.handler);
        Box::pin(self.work.track_future(async move { handled(&*handler, &peer, request).await }))
    }

    fn stopping(&self) -> &CancellationToken {
        &self.shutdown
    }

    fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }
}

/// The handler's answer. A panic is a bug in it. It costs this request, not the connection with all its others.
async fn handled(handler: &impl Handler, peer: &PeerInfo, request: Request) -> Result<Response, Status> {
    let kind = request.kind;
    let handled = AssertUnwindSafe(handler.handle(peer, request)).catch_unwind().await;
    handled.unwrap_or_else(|_| {
        tracing::error!(
            kind, peer = %peer.remote.role,
            "the handler of a request panicked: this is a bug, please report it"
        );
        Err(Status::internal("the server has a bug: its log has the details"))
    })
}

struct Server<H> {
    identity: Identity,
    handler: Arc<H>,
    limits: ServerOptions,
    next_connection: AtomicU64,
    work: TaskTracker,
    shutdown: CancellationToken,
    /// Cancelled when nothing is waited for any more.
    stopped: CancellationToken,
}

impl<H: Handler> Server<H> {
    async fn serve_stream(self: Arc<Self>, stream: Stream, busy: bool, _place: OwnedSemaphorePermit) {
        let address = stream.remote.clone();
        let established = tokio::select! {
            established = handshake::accept(stream, &self.identity, busy) => established,
            () = self.shutdown.cancelled() => return,
        };
        match established {
            Ok(established) => self.serve_connection(established).await,
            // A probe that only looks whether the port is open.
            Err(HandshakeError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                tracing::debug!(address, "a connection was closed before the handshake");
            }
            Err(error) => tracing::warn!(address, %error, "a connection was refused"),
        }
    }

    async fn serve_connection(&self, established: Established) {
        let Established { source, sink, remote } = established;
        let outbox = Arc::new(Outbox::new(sink));
        let token = CancellationToken::new();
        let peer = Arc::new(PeerInfo {
            remote,
            connection: self.next_connection.fetch_add(1, Ordering::Relaxed),
            pusher: Pusher { way: PushWay::Socket(outbox.clone()), token: token.clone() },
        });
        let connection = Conn {
            handler: self.handler.clone(),
            work: self.work.clone(),
            requests: Arc::new(Semaphore::new(self.limits.requests_in_flight)),
            bytes: Arc::new(Semaphore::new(self.limits.request_bytes_in_flight)),
            limits: self.limits,
            peer: peer.clone(),
            outbox: outbox.clone(),
            heard: AtomicBool::new(true),
        };
        tracing::debug!(peer = %peer.remote.role, address = %peer.remote.address, "connected");
        let mut reader = FrameReader::new(source);
        let mut writer = pin!(outbox.run().fuse());
        let admitted = self.handler.connected(&peer);
        let welcome = admitted.is_ok();
        let end = match admitted {
            Err(status) => End::Refused(status),
            Ok(()) => tokio::select! {
                end = connection.read(&mut reader) => end,
                ended = &mut writer => End::Lost(format!("writing failed: {:?}", ended.err())),
                () = connection.watch_silence() => End::Lost("the peer doesn't respond".into()),
                () = token.cancelled() => End::Lost("this process closed it".into()),
                () = self.shutdown.cancelled() => End::Shutdown,
            },
        };
        tokio::select! {
            () = connection.say_farewell(&end, &mut reader) => {}
            _ = &mut writer => {}
        }
        if welcome {
            self.handler.disconnected(&peer);
        }
        outbox.close();
        token.cancel();
        let (role, address) = (peer.remote.role, &peer.remote.address);
        match end {
            End::Violation(error) => tracing::warn!(peer = %role, address, %error, "connection closed"),
            End::Refused(status) => tracing::warn!(peer = %role, address, %status, "connection refused"),
            End::Lost(reason) => tracing::debug!(peer = %role, address, reason, "connection lost"),
            End::Closed | End::Shutdown => tracing::debug!(peer = %role, address, "disconnected"),
        }
    }
}

/// Why a connection ends.
enum End {
    /// The peer closed it between two frames.
    Closed,
    /// It failed, or one side gave it up.
    Lost(String),
    /// The peer broke the protocol.
    Violation(FrameError),
    /// The handler doesn't want this peer.
    Refused(Status),
    /// The server shuts down.
    Shutdown,
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> End {
        match error {
            FrameError::Io(_) | FrameError::Torn { .. } => End::Lost(error.to_string()),
            violation => End::Violation(violation),
        }
    }
}

/// One connection.
struct Conn<H> {
    handler: Arc<H>,
    work: TaskTracker,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    limits: ServerOptions,
    peer: Arc<PeerInfo>,
    outbox: Arc<Outbox>,
    heard: AtomicBool,
}

impl<H: Handler> Conn<H> {
    async fn read(&self, reader: &mut FrameReader) -> End {
        loop {
            match reader.buffered() {
                Ok(Some(frame)) => {
                    if let Err(error) = self.take(frame).await {
                        return error.into();
                    }
                }
                Ok(None) => {
                    // All that has come is handled: what was answered on the spot goes out together.
                    if let Err(error) = self.outbox.flush() {
                        return End::Lost(format!("writing failed: {error}"));
                    }
                    match reader.fill().await {
                        Ok(true) => self.heard.store(true, Ordering::Relaxed),
                        Ok(false) => return End::Closed,
                        Err(error) => return error.into(),
                    }
                }
                Err(error) => return error.into(),
            }
        }
    }

    async fn take(&self, frame: Frame) -> Result<(), FrameError> {
        match frame.frame_type {
            FrameType::Request | FrameType::OneWay => {
                self.start(frame).await;
                Ok(())
            }
            FrameType::Ping => {
                let _ = self.outbox.queue(OutFrame::raw(FrameType::Pong, 0, 0, &[], Body::Empty)?, None);
                Ok(())
            }
            FrameType::Pong => Ok(()),
            other => Err(FrameError::Unexpected(other)),
        }
    }

    async fn start(&self, frame: Frame) {
        let Frame { frame_type, kind, request_id, meta, body } = frame;
        let request = Request { kind, meta, body };
        let permit = self.permit(&request).await;
        let (handler, peer, outbox) = (self.handler.clone(), self.peer.clone(), self.outbox.clone());
        let mut work = Box::pin(async move {
            let result = handled(&*handler, &peer, request).await;
            match (frame_type, result) {
                (FrameType::OneWay, Ok(_)) => {}
                (FrameType::OneWay, Err(status)) => {
                    tracing::debug!(kind, %status, peer = %peer.remote.role, "a one-way message was refused");
                }
                (_, result) => {
                    match answer(kind, request_id, result) {
                        // When the connection is gone nobody wants the answer.
                        Ok(frame) => drop(outbox.queue(frame, Some(permit))),
                        Err(error) => tracing::error!(kind, %error, "an error reply can't be sent"),
                    }
                }
            }
        });
        if futures::poll!(&mut work).is_ready() {
            // It goes out with what else is answered before the connection has to wait for more.
            return;
        }
        let (outbox, peer) = (self.outbox.clone(), self.peer.clone());
        let (requests, all) = (self.requests.clone(), self.limits.requests_in_flight);
        self.work.spawn(async move {
            work.await;
            // The answer in the outbox still has its permit.
            let alone = requests.available_permits() + 1 == all;
            if !alone {
                outbox.wake();
            } else if let Err(error) = outbox.flush() {
                tracing::debug!(peer = %peer.remote.role, %error, "a reply could not be sent");
                peer.pusher.close();
            }
        });
    }

    /// Waits until the request has its place in the connection's bounds: while it waits nothing is read.
    async fn permit(&self, request: &Request) -> FramePermit {
        let expected =
            request.meta.len() + request.body.len() + self.handler.reply_bytes(request).min(BODY_BYTES_MAX);
        let bytes = expected.min(self.limits.request_bytes_in_flight) as u32;
        if let (Ok(request), Ok(bytes)) =
            (self.requests.clone().try_acquire_owned(), self.bytes.clone().try_acquire_many_owned(bytes))
        {
            return FramePermit { request, bytes };
        }
        // What is answered already must go out, or nothing would ever become free.
        self.outbox.wake();
        let request = self.requests.clone().acquire_owned();
        let both = async { (request.await, self.bytes.clone().acquire_many_owned(bytes).await) };
        let mut both = pin!(both);
        loop {
            match tokio::time::timeout(SILENCE_PERIOD / 2, &mut both).await {
                Ok((Ok(request), Ok(bytes))) => {
                    self.heard.store(true, Ordering::Relaxed);
                    return FramePermit { request, bytes };
                }
                // These semaphores are never closed.
                Ok(_) => std::future::pending().await,
                // It isn't the peer that is silent: we don't listen.
                Err(_) => self.heard.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Counts turns of its own instead of comparing times, as the client does.
    async fn watch_silence(&self) {
        let mut ticks = tokio::time::interval(SILENCE_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0;
        while silent <= SILENT_PERIODS_MAX {
            ticks.tick().await;
            silent = if self.heard.swap(false, Ordering::Relaxed) { 0 } else { silent + 1 };
        }
    }

    /// The last words of a connection. A shutdown waits for what is being worked on, and says so when
    /// nothing was left: then the peer knows that what it has no answer for was not carried out.
    async fn say_farewell(&self, end: &End, reader: &mut FrameReader) {
        let last = match end {
            End::Closed | End::Lost(_) => return,
            End::Violation(error) => error_frame(0, 0, &Status::new(StatusCode::Protocol, error.to_string())),
            End::Refused(status) => error_frame(0, 0, status),
            End::Shutdown => {
                if !self.finished_within(SHUTDOWN_DEADLINE).await {
                    tracing::warn!(peer = %self.peer.remote.role, "requests were unfinished at the end of the shutdown");
                    return;
                }
                OutFrame::raw(FrameType::Goodbye, 0, 0, &[], Body::Empty)
            }
        };
        let heard = async {
            if let Ok(frame) = last
                && self.outbox.queue(frame, None).is_ok()
            {
                self.outbox.drained().await;
                reader.discard().await;
            }
        };
        if tokio::time::timeout(FAREWELL_DEADLINE, heard).await.is_err() {
            tracing::debug!(
                peer = %self.peer.remote.role,
                "the peer did not close the connection after its last message"
            );
        }
    }

    /// Waits until every request is answered and its answer written.
    async fn finished_within(&self, deadline: Duration) -> bool {
        self.outbox.wake();
        let all = self.requests.acquire_many(self.limits.requests_in_flight as u32);
        tokio::time::timeout(deadline, all).await.is_ok()
    }
}

fn error_frame(kind: u16, request_id: u64, status: &Status) -> Result<OutFrame, FrameError> {
    OutFrame::encode(FrameType::Error, kind, request_id, status, Body::Empty)
}

/// The frame that answers a request. An answer beyond the limits becomes an error that says so.
fn answer(kind: u16, request_id: u64, result: Result<Response, Status>) -> Result<OutFrame, FrameError> {
    let frame = match result {
        Ok(response) => OutFrame::raw(FrameType::Reply, kind, request_id, &response.meta, response.body),
        Err(status) => error_frame(kind, request_id, &status),
    };
    frame.or_else(|error| {
        error_frame(kind, request_id, &Status::internal(format!("the reply can't be sent: {error}")))
    })
}
