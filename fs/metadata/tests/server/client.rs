//! What the tests use: a server in a temporary folder, and a client that speaks the messages and nothing more.

use std::path::Path;
use std::time::Duration;

use atoll_core::attributes::{Attributes, KillPriv, Timestamp};
use atoll_core::commands::{ClientOp, Command, NewPiece, NewPlace, Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{ClusterId, InodeId, ROOT, SessionId, SlotId};
use atoll_core::records::VolumeConfig;
use atoll_metadata::{MetadataConfig, MetadataServer, RunningMetadata};
use atoll_proto::metadata::{
    AskRequest, MetadataError, MutateRequest, SessionHeartbeat, SessionHeartbeatReply,
};
use atoll_proto::queries::{self, Answers, Question};
use atoll_proto::{
    Address, ClusterKey, ConnectOptions, Connection, Encryption, Identity, Role, Rpc, RpcError,
};
use bytes::Bytes;
use prometheus_client::registry::Registry;

pub const CLUSTER: ClusterId = ClusterId(0xa70);
/// Bound of everything that is waited for: long enough for a machine that does much else.
pub const HANG: Duration = Duration::from_secs(120);

pub fn key() -> ClusterKey {
    ClusterKey::new([7; 32])
}

pub fn identity(role: Role) -> Identity {
    Identity { cluster: CLUSTER, role, key: key(), encryption: Encryption::Accepted }
}

pub fn config(dir: &Path) -> MetadataConfig {
    MetadataConfig {
        ballast_bytes: 0,
        ..MetadataConfig::new(dir, Address::Tcp("127.0.0.1:0".into()), CLUSTER, key())
    }
}

pub fn volume() -> VolumeConfig {
    VolumeConfig { copies: 1, copies_min: 1, ..VolumeConfig::default() }
}

pub async fn start(config: MetadataConfig) -> RunningMetadata {
    let server = MetadataServer::start(config, &mut Registry::default()).await.unwrap();
    server.bootstrap(volume()).await.unwrap();
    server
}

pub async fn connect(address: &str, role: Role) -> Connection {
    let address: Address = address.parse().unwrap();
    Connection::connect(&address, &ConnectOptions::new(identity(role))).await.unwrap()
}

/// Waits until `done` says so.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let looked = tokio::time::timeout(HANG, async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(looked.await.is_ok(), "never: {what}");
}

/// The service's own error in a failed call.
pub fn refusal(error: &RpcError) -> MetadataError {
    error.typed().unwrap_or_else(|| panic!("not an error of the service: {error}"))
}

pub struct Client {
    pub connection: Connection,
    pub session: SessionId,
    pub sequence: u64,
}

impl Client {
    pub async fn open(server: &RunningMetadata) -> Client {
        let mut client = Client::without_session(server.address()).await;
        let op = ops::OpenSession { client: "test".into(), incarnation: 1, supersedes: None };
        let Outcome::Session(session, _) = client.run(op).await else { panic!("no session") };
        client.session = session;
        client.sequence = 0;
        client
    }

    pub async fn without_session(address: &str) -> Client {
        let connection = connect(address, Role::Client(SessionId(0))).await;
        Client { connection, session: SessionId(0), sequence: 0 }
    }

    pub async fn reconnect(&mut self, address: &str) {
        self.connection = connect(address, Role::Client(self.session)).await;
    }

    pub async fn call<R: Rpc>(&self, request: &R::Request) -> Result<R::Reply, RpcError> {
        self.connection.call_within::<R>(request, (), HANG).await.map(|(reply, _)| reply)
    }

    pub fn command(&mut self, op: impl Into<ClientOp>) -> Command<ClientOp> {
        self.sequence += 1;
        let time = Timestamp { seconds: 1_700_000_000 + self.sequence as i64, nanos: 0 };
        Command {
            session: self.session,
            slot: SlotId(1),
            sequence: self.sequence,
            time,
            expect: None,
            op: op.into(),
        }
    }

    pub async fn send(&self, command: &Command<ClientOp>) -> Result<Outcome, RpcError> {
        self.send_to_open(command, false).await
    }

    /// If the command makes a file, that is to be held open, or not.
    pub async fn send_to_open(&self, command: &Command<ClientOp>, opens: bool) -> Result<Outcome, RpcError> {
        let request = MutateRequest { command: command.clone(), opens };
        self.call::<MutateRequest>(&request).await.map(|reply| reply.outcome)
    }

    pub async fn run(&mut self, op: impl Into<ClientOp>) -> Outcome {
        let command = self.command(op);
        self.send(&command).await.unwrap()
    }

    pub async fn try_ask<Q: Question>(&self, question: Q) -> Result<Q::Answer, MetadataError> {
        let request = AskRequest { session: self.session, query: question.into() };
        let answer = self.call::<AskRequest>(&request).await.map_err(|error| refusal(&error))?;
        Ok(Q::Answer::from_answer(answer).expect("an answer to this question"))
    }

    pub async fn ask<Q: Question>(&self, question: Q) -> Q::Answer {
        self.try_ask(question).await.unwrap()
    }

    pub async fn beat(&self) -> Result<SessionHeartbeatReply, MetadataError> {
        let request = SessionHeartbeat { session: self.session, reclaimed_term: 0 };
        self.call::<SessionHeartbeat>(&request).await.map_err(|error| refusal(&error))
    }

    pub async fn create(&mut self, name: &str) -> InodeId {
        match self.run(create(name)).await {
            Outcome::Inode(attributes) => attributes.ino,
            other => panic!("{name} wasn't made: {other:?}"),
        }
    }

    pub async fn lookup(&self, name: &str) -> Result<Attributes, FsError> {
        let query = queries::Lookup { parent: ROOT, name: Bytes::copy_from_slice(name.as_bytes()) };
        match self.try_ask(query).await {
            Ok(attributes) => Ok(attributes),
            Err(MetadataError::Fs(error)) => Err(error),
            Err(other) => panic!("{other:?}"),
        }
    }
}

pub fn create(name: &str) -> ClientOp {
    ClientOp::from(ops::Create {
        parent: ROOT,
        name: Bytes::copy_from_slice(name.as_bytes()),
        ino: None,
        mode: 0o100_644,
        uid: 1,
        gid: 2,
        rdev: 0,
        target: Bytes::new(),
        umask: 0,
    })
}

pub fn unlink(name: &str) -> ClientOp {
    ClientOp::from(ops::Unlink {
        parent: ROOT,
        name: Bytes::copy_from_slice(name.as_bytes()),
        directory: false,
    })
}

pub fn write(ino: InodeId, offset: u64, length: u64, place: NewPlace) -> ClientOp {
    ClientOp::from(ops::Write {
        ino,
        pieces: vec![NewPiece { offset, length, place }],
        mtime: Timestamp { seconds: 1_700_000_000, nanos: 0 },
        kill_priv: KillPriv::NONE,
        reservation: 0,
    })
}

pub fn inline(bytes: Vec<u8>) -> NewPlace {
    NewPlace::Inline(bytes.into())
}
