//! How fast a metadata server makes files, how much memory it takes for that, and how long a restart takes.
//!
//! ```text
//! cargo run -p atoll-metadata --example load -- FOLDER FILES [crash]
//! ```
//!
//! Fills FOLDER up to FILES small files over the wire, prints what it did and what operations cost with so many files, and stops;
//! with `crash` it ends without stopping anything. Run it again with the same number: it makes nothing and shows how long
//! starting took, until it leads. With 10000, 100000 and 1000000 one after the other it shows what grows.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what goes wrong ends the measurement"
)]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use atoll_core::attributes::{KillPriv, Timestamp};
use atoll_core::commands::{ClientOp, Command, NewPiece, NewPlace, Outcome, ops};
use atoll_core::ids::{ClusterId, InodeId, ROOT, SessionId, SlotId};
use atoll_core::locks::{LockChange, LockClass, LockMode, LockRange, LockRequest};
use atoll_core::records::VolumeConfig;
use atoll_metadata::{MetadataConfig, MetadataServer};
use atoll_proto::metadata::{
    Answer, AskRequest, LockAnswer, MutateRequest, SessionHeartbeat, SessionHeartbeatReply,
};
use atoll_proto::queries;
use atoll_proto::{Address, ClusterKey, ConnectOptions, Connection, Encryption, Identity, Role, RpcError};

const CLUSTER: ClusterId = ClusterId(1);
const CLIENTS: u64 = 4;
const SLOTS: u64 = 16;
const FILES_PER_DIRECTORY: u64 = 1000;
const CONTENT: usize = 100;
/// Operations of each kind whose cost is measured.
const COSTS_OF: u64 = 2000;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, dir, files, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: load FOLDER FILES [crash]");
        return ExitCode::from(2);
    };
    let files: u64 = files.parse().expect("FILES is a number");
    let config = MetadataConfig::new(
        Path::new(dir),
        Address::Tcp("127.0.0.1:0".into()),
        CLUSTER,
        ClusterKey::new([1; 32]),
    );
    let began = Instant::now();
    let server = MetadataServer::start(config, &mut Default::default()).await.expect("starts");
    let opened = began.elapsed();
    server
        .bootstrap(VolumeConfig { copies: 1, copies_min: 1, ..Default::default() })
        .await
        .expect("bootstraps");
    println!("open {} ms, leads after {} ms, {}", opened.as_millis(), began.elapsed().as_millis(), memory());

    let have = server.status().expect("status").volume.inodes_used.saturating_sub(1);
    if have < files {
        let missing = files - have;
        let (began, cpu) = (Instant::now(), cpu_seconds());
        let each = missing.div_ceil(CLIENTS * SLOTS);
        let mut tasks = Vec::new();
        for _ in 0..CLIENTS {
            let client = Client::open(server.address()).await;
            for slot in 0..SLOTS {
                tasks.push(tokio::spawn(client.clone().fill(slot as u32 + 1, each)));
            }
        }
        for task in tasks {
            task.await.expect("a client ends");
        }
        let (took, cpu) = (began.elapsed(), cpu_seconds() - cpu);
        println!(
            "{missing} files (create and write {CONTENT} bytes) in {:.1} s: {:.0} files/s, {:.1} us CPU a file (client's included), {}",
            took.as_secs_f64(),
            missing as f64 / took.as_secs_f64(),
            cpu * 1e6 / missing as f64,
            memory(),
        );
    }
    costs(server.address(), have.max(files)).await;
    let began = Instant::now();
    let status = server.status().expect("status");
    let first = began.elapsed();
    let began = Instant::now();
    server.status().expect("status");
    println!("status: {:.1?}, then {:.1?} ({} chunks)", first, began.elapsed(), status.chunks);
    if rest.first().is_some_and(|word| word == "crash") {
        std::process::abort();
    }
    let began = Instant::now();
    server.shutdown().await;
    println!("stopped in {} ms", began.elapsed().as_millis());
    ExitCode::SUCCESS
}

/// Prints what an operation of each kind costs with so many files.
async fn costs(address: &str, files: u64) {
    let client = Client::open(address).await;
    let name = |what: &str, number: u64| bytes::Bytes::from(format!("{what}-{number}"));
    let directory = create(ROOT, format!("costs-{}", client.session), 0o040_755);
    let parent = made(client.run(1, 1, directory).await);
    let mut sequence = 1;
    let mut first = InodeId(u64::MAX);
    measure("create", files, async |number| {
        sequence += 1;
        let made = made(client.run(1, sequence, create(parent, format!("new-{number}"), 0o100_644)).await);
        first = first.min(made);
    })
    .await;
    measure("stat", files, async |number| {
        // Far from each other; some may be gone.
        let ino = InodeId(2 + number * 7919 % files);
        let request = AskRequest { session: client.session, query: queries::GetAttr { ino }.into() };
        match client.connection.call::<AskRequest>(&request, ()).await {
            Ok(_) | Err(RpcError::Refused(_)) => {}
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    // A new leader grants none before the sessions of the run before have told what they hold, or have expired.
    let any = queries::GetLk(LockRequest {
        ino: first,
        class: LockClass::Record,
        owner: 1,
        handle: 1,
        pid: 1,
        mode: Some(LockMode::Exclusive),
        range: LockRange::ALL,
    });
    let _ = client.granted(&AskRequest { session: client.session, query: any.into() }).await;
    let term = client.beat().await.term;
    let mut number = 0;
    measure("lock and unlock", files, async |file| {
        for mode in [Some(LockMode::Exclusive), None] {
            number += 1;
            let change = LockChange::Set(LockRequest {
                ino: InodeId(first.0 + file),
                class: LockClass::Record,
                owner: 1,
                handle: 1,
                pid: 1,
                mode,
                range: LockRange::ALL,
            });
            let (known_change, segments, floor) = (None, 0, number);
            let query = queries::ChangeLocks { term, number, floor, change, known_change, segments }.into();
            let request = AskRequest { session: client.session, query };
            let (answer, _) = client.granted(&request).await;
            assert!(matches!(answer, Answer::LocksChanged(LockAnswer::Done(_))), "{answer:?}");
        }
    })
    .await;
    measure("rename", files, async |number| {
        sequence += 1;
        let op = ops::Rename {
            parent,
            name: name("new", number),
            new_parent: parent,
            new_name: name("renamed", number),
            flags: 0,
            whiteout: (0, 0),
        };
        let outcome = client.run(1, sequence, ClientOp::from(op)).await;
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    })
    .await;
    measure("heartbeat", files, async |_| drop(client.beat().await)).await;
}

/// Does it often enough, and prints what one costs.
async fn measure(what: &str, files: u64, mut one: impl AsyncFnMut(u64)) {
    let (began, cpu) = (Instant::now(), cpu_seconds());
    for number in 0..COSTS_OF {
        one(number).await;
    }
    let each = |seconds: f64| seconds * 1e6 / COSTS_OF as f64;
    let (took, cpu) = (each(began.elapsed().as_secs_f64()), each(cpu_seconds() - cpu));
    println!("{what} with {files} files: {took:.0} us, {cpu:.0} us CPU (client's included)");
}

#[derive(Clone)]
struct Client {
    connection: Connection,
    session: SessionId,
}

impl Client {
    async fn open(address: &str) -> Client {
        let identity = Identity {
            cluster: CLUSTER,
            role: Role::Client(SessionId(0)),
            key: ClusterKey::new([1; 32]),
            encryption: Encryption::Off,
        };
        let address: Address = address.parse().expect("an address");
        let connection =
            Connection::connect(&address, &ConnectOptions::new(identity)).await.expect("connects");
        let mut client = Client { connection, session: SessionId(0) };
        let op = ops::OpenSession { client: "load".into(), incarnation: 1, supersedes: None };
        let Outcome::Session(session, _) = client.run(0, 0, op).await else { panic!("no session") };
        client.session = session;
        client
    }

    /// The answer to a question about locks, once the leader answers those.
    async fn granted(&self, request: &AskRequest) -> (Answer, bytes::Bytes) {
        loop {
            match self.connection.call::<AskRequest>(request, ()).await {
                Ok(answer) => return answer,
                Err(RpcError::Refused(_)) => {
                    self.beat().await;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn beat(&self) -> SessionHeartbeatReply {
        let beat = SessionHeartbeat { session: self.session, reclaimed_term: 0 };
        self.connection.call::<SessionHeartbeat>(&beat, ()).await.expect("an answer").0
    }

    async fn run(&self, slot: u32, sequence: u64, op: impl Into<ClientOp>) -> Outcome {
        let time = Timestamp { seconds: 1_700_000_000, nanos: 0 };
        let op = op.into();
        let command = Command { session: self.session, slot: SlotId(slot), sequence, time, expect: None, op };
        let request = MutateRequest { command, opens: false };
        let call = self.connection.call_within::<MutateRequest>(&request, (), Duration::from_secs(100));
        call.await.expect("an outcome").0.outcome
    }

    async fn fill(self, slot: u32, files: u64) {
        let mut sequence = 0;
        let mut parent = ROOT;
        for number in 0..files {
            if number % FILES_PER_DIRECTORY == 0 {
                sequence += 1;
                let name = format!("d-{}-{slot}-{number}", self.session);
                parent = made(self.run(slot, sequence, create(ROOT, name, 0o040_755)).await);
            }
            sequence += 1;
            let ino =
                made(self.run(slot, sequence, create(parent, format!("file-{number}"), 0o100_644)).await);
            sequence += 1;
            let place = NewPlace::Inline(vec![7; CONTENT].into());
            let op = ClientOp::from(ops::Write {
                ino,
                pieces: vec![NewPiece { offset: 0, length: CONTENT as u64, place }],
                mtime: Timestamp { seconds: 1_700_000_000, nanos: 0 },
                kill_priv: KillPriv::NONE,
                reservation: 0,
            });
            made(self.run(slot, sequence, op).await);
            if number % 5000 == 4999 {
                // Stays alive.
                let request = AskRequest { session: self.session, query: queries::GetAttr { ino }.into() };
                let (answer, _) = self.connection.call::<AskRequest>(&request, ()).await.expect("an answer");
                assert!(matches!(answer, Answer::Inode(_)));
            }
        }
    }
}

fn create(parent: InodeId, name: String, mode: u32) -> ClientOp {
    ClientOp::from(ops::Create {
        parent,
        name: name.into(),
        ino: None,
        mode,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Default::default(),
        umask: 0,
    })
}

fn made(outcome: Outcome) -> InodeId {
    match outcome {
        Outcome::Inode(attributes) => attributes.ino,
        other => panic!("{other:?}"),
    }
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0)
    };
    format!("{} MiB Pss ({} anonymous)", kib("Pss:") >> 10, kib("Pss_Anon:") >> 10)
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
