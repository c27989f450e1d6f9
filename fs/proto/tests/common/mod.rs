//! A small server for the tests of connections.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use atoll_core::ids::{ClusterId, MemberId, SessionId};
use atoll_proto::server::serve_within;
use atoll_proto::{
    Address, Body, ClusterKey, ConnectOptions, Connection, Encryption, Handler, Identity, Listener, PeerInfo,
    Request, Response, Role, Rpc, ServerOptions, Status,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A bound against hanging for ever, not an expectation.
pub const HANG: Duration = Duration::from_secs(60);

macro_rules! rpc {
    ($name:ident, $kind:literal, $request:ty, $reply:ty) => {
        pub struct $name;
        impl Rpc for $name {
            const KIND: u16 = $kind;
            type Request = $request;
            type Reply = $reply;
        }
    };
}

// Answers the number; the body comes back reversed in order of its halves.
rpc!(Echo, 0xf01, u64, u64);
// Answers after some milliseconds.
rpc!(Sleep, 0xf02, u64, u64);
// Answers with so many bytes.
rpc!(Fetch, 0xf03, u32, ());
// Refuses.
rpc!(Fail, 0xf04, String, ());
// Answers when the server's gate is opened.
rpc!(Gate, 0xf05, (), ());
// One-way: counted.
rpc!(Note, 0xf06, u64, ());
// Has the server push so many notes.
rpc!(PushMe, 0xf07, u64, ());

// Panics, at once or (true) after a turn.
rpc!(Panic, 0xf08, bool, ());

#[derive(Default)]
pub struct TestServer {
    pub gate: Notify,
    pub waiting: AtomicUsize,
    pub started: AtomicUsize,
    pub notes: AtomicUsize,
    pub connected: AtomicUsize,
    pub disconnected: AtomicUsize,
}

impl Handler for TestServer {
    async fn handle(&self, peer: &PeerInfo, request: Request) -> Result<Response, Status> {
        self.started.fetch_add(1, Ordering::SeqCst);
        match request.kind {
            Echo::KIND => {
                let number = request.decode::<Echo>()?;
                let middle = request.body.len() / 2;
                let halves = vec![request.body.slice(middle..), request.body.slice(..middle)];
                Response::to::<Echo>(&number, halves)
            }
            Sleep::KIND => {
                let ms = request.decode::<Sleep>()?;
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Response::to::<Sleep>(&ms, ())
            }
            Fetch::KIND => {
                let bytes = request.decode::<Fetch>()?;
                Response::to::<Fetch>(&(), vec![7u8; bytes as usize])
            }
            Fail::KIND => Err(Status::unavailable(request.decode::<Fail>()?)),
            Gate::KIND => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                self.gate.notified().await;
                Response::to::<Gate>(&(), ())
            }
            Note::KIND => {
                self.notes.fetch_add(1, Ordering::SeqCst);
                Ok(Response::default())
            }
            PushMe::KIND => {
                for number in 0..request.decode::<PushMe>()? {
                    peer.pusher()
                        .push::<Note>(&number, Body::Empty)
                        .map_err(|error| Status::internal(error.to_string()))?;
                }
                Response::to::<PushMe>(&(), ())
            }
            Panic::KIND => {
                if request.decode::<Panic>()? {
                    tokio::task::yield_now().await;
                }
                panic!("a bug, on purpose");
            }
            other => Err(Status::unknown_kind(other)),
        }
    }

    fn reply_bytes(&self, request: &Request) -> usize {
        if request.kind == Fetch::KIND {
            request.decode::<Fetch>().map_or(0, |bytes| bytes as usize)
        } else {
            0
        }
    }

    fn connected(&self, _peer: &PeerInfo) -> Result<(), Status> {
        self.connected.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn disconnected(&self, _peer: &PeerInfo) {
        self.disconnected.fetch_add(1, Ordering::SeqCst);
    }
}

pub fn key(byte: u8) -> ClusterKey {
    ClusterKey::new([byte; 32])
}

pub fn server_identity(encryption: Encryption) -> Identity {
    Identity { cluster: ClusterId(0xc1), role: Role::Metadata(MemberId(7)), key: key(1), encryption }
}

pub fn client_identity(encryption: Encryption) -> Identity {
    Identity { cluster: ClusterId(0xc1), role: Role::Client(SessionId(42)), key: key(1), encryption }
}

pub fn options() -> ConnectOptions {
    ConnectOptions::new(client_identity(Encryption::Accepted))
}

pub struct Running {
    pub server: Arc<TestServer>,
    pub address: Address,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<()>,
}

impl Running {
    pub fn start(
        listener: Listener,
        address: Address,
        encryption: Encryption,
        limits: ServerOptions,
    ) -> Running {
        let server = Arc::new(TestServer::default());
        let shutdown = CancellationToken::new();
        let serving =
            serve_within(listener, server_identity(encryption), server.clone(), limits, shutdown.clone());
        Running { server, address, shutdown, task: tokio::spawn(serving) }
    }

    pub async fn tcp() -> Running {
        Running::tcp_with(Encryption::Off, ServerOptions::default()).await
    }

    pub async fn tcp_with(encryption: Encryption, limits: ServerOptions) -> Running {
        let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".into())).await.expect("a free port");
        let address = Address::Tcp(listener.local_address());
        Running::start(listener, address, encryption, limits)
    }

    pub fn memory(encryption: Encryption) -> Running {
        let (listener, address) = atoll_proto::transport::memory("test");
        Running::start(listener, address, encryption, ServerOptions::default())
    }

    pub async fn connect(&self) -> Connection {
        Connection::connect(&self.address, &options()).await.expect("connects")
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(HANG, self.task).await.expect("the server stops").expect("without a panic");
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(HANG, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}
