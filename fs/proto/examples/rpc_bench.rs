//! What a call costs: both ends in one process, over loopback TCP, a Unix socket, and encrypted.
//!
//! `cargo run -p atoll-proto --example rpc_bench -- [seconds per line]`

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what goes wrong ends the measurement"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_core::ids::{ClusterId, MemberId, SessionId};
use atoll_proto::{
    Address, ClusterKey, ConnectOptions, Connection, Encryption, Handler, Identity, Listener, PeerInfo,
    Request, Response, Role, Rpc, Status, serve,
};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

macro_rules! rpc {
    ($name:ident, $kind:literal, $request:ty, $reply:ty) => {
        struct $name;
        impl Rpc for $name {
            const KIND: u16 = $kind;
            type Request = $request;
            type Reply = $reply;
        }
    };
}

// Answered at once.
rpc!(Ping, 0xf01, u64, u64);
// Answered after one turn of the scheduler, as by a handler that waits for something.
rpc!(LatePing, 0xf02, u64, u64);
rpc!(Read, 0xf03, u64, u64);
rpc!(Write, 0xf04, u64, u64);

const IO_BYTES: usize = 1 << 20;

struct Server {
    data: Bytes,
}

impl Handler for Server {
    async fn handle(&self, _peer: &PeerInfo, request: Request) -> Result<Response, Status> {
        match request.kind {
            Ping::KIND => Response::to::<Ping>(&request.decode::<Ping>()?, ()),
            LatePing::KIND => {
                tokio::task::yield_now().await;
                Response::to::<LatePing>(&request.decode::<LatePing>()?, ())
            }
            Read::KIND => Response::to::<Read>(&request.decode::<Read>()?, self.data.clone()),
            Write::KIND => Response::to::<Write>(&request.decode::<Write>()?, ()),
            other => Err(Status::unknown_kind(other)),
        }
    }
}

async fn measure<R>(what: &str, connection: &Connection, callers: usize, body: Bytes, time: Duration)
where
    R: Rpc<Request = u64, Reply = u64>,
{
    let cpu = cpu_time();
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (connection, body) = (connection.clone(), body.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                let mut moved = 0;
                while started.elapsed() < time {
                    let before = Instant::now();
                    let (_, answer) = connection.call::<R>(&7, body.clone()).await.expect("answers");
                    latencies.push(before.elapsed());
                    moved += answer.len() + body.len();
                }
                (latencies, moved)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    let mut moved = 0;
    for task in tasks {
        let (some, bytes) = task.await.expect("no panic");
        latencies.extend(some);
        moved += bytes;
    }
    let seconds = started.elapsed().as_secs_f64();
    latencies.sort();
    let per_call = (cpu_time() - cpu).as_secs_f64() * 1e6 / latencies.len() as f64;
    println!(
        "{what:24} x{callers:<3} {:>9.0} calls/s  {:>7.0} MB/s  p50 {:>8.1} us  p99 {:>8.1} us  {per_call:>6.1} us CPU a call",
        latencies.len() as f64 / seconds,
        moved as f64 / seconds / 1e6,
        latencies[latencies.len() / 2].as_secs_f64() * 1e6,
        latencies[latencies.len() * 99 / 100].as_secs_f64() * 1e6,
    );
}

/// What the machine gives without any protocol: 64 bytes there and back over a TCP connection.
async fn floor(time: Duration) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let mut near =
        tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
    let (mut far, _) = listener.accept().await.expect("accepts");
    near.set_nodelay(true).and(far.set_nodelay(true)).expect("can be set");
    let echo = tokio::spawn(async move {
        let mut buffer = [0; 64];
        while far.read_exact(&mut buffer).await.is_ok() && far.write_all(&buffer).await.is_ok() {}
    });
    let cpu = cpu_time();
    let started = Instant::now();
    let ping = tokio::spawn(async move {
        let mut latencies = Vec::new();
        let mut buffer = [0; 64];
        while started.elapsed() < time {
            let before = Instant::now();
            near.write_all(&buffer).await.expect("writes");
            near.read_exact(&mut buffer).await.expect("reads");
            latencies.push(before.elapsed());
        }
        latencies
    });
    let mut latencies = ping.await.expect("no panic");
    echo.await.expect("no panic");
    latencies.sort();
    println!(
        "{:24} x1   {:>9.0} calls/s  p50 {:>8.1} us  {:>6.1} us CPU a call",
        "tcp without a protocol",
        latencies.len() as f64 / started.elapsed().as_secs_f64(),
        latencies[latencies.len() / 2].as_secs_f64() * 1e6,
        (cpu_time() - cpu).as_secs_f64() * 1e6 / latencies.len() as f64,
    );
}

/// The processor time of this process so far (fields 14 and 15 of its stat, in hundredths of a second).
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<u64> = after_name.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
    Duration::from_millis(10 * (fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0)))
}

async fn run(name: &str, address: Address, encryption: Encryption, time: Duration) {
    let identity = |role| Identity { cluster: ClusterId(1), role, key: ClusterKey::new([9; 32]), encryption };
    let listener = Listener::bind(&address).await.expect("binds");
    let address: Address = listener.local_address().parse().expect("an address");
    let shutdown = CancellationToken::new();
    let server = Arc::new(Server { data: vec![5; IO_BYTES].into() });
    let serving =
        tokio::spawn(serve(listener, identity(Role::Metadata(MemberId(1))), server, shutdown.clone()));
    let options = ConnectOptions::new(identity(Role::Client(SessionId(1))));
    let connection = Connection::connect(&address, &options).await.expect("connects");
    for callers in [1, 8, 32] {
        measure::<Ping>(&format!("{name} ping"), &connection, callers, Bytes::new(), time).await;
    }
    for callers in [1, 8, 32] {
        measure::<LatePing>(&format!("{name} late ping"), &connection, callers, Bytes::new(), time).await;
    }
    let data = Bytes::from(vec![6; IO_BYTES]);
    for callers in [1, 4] {
        measure::<Read>(&format!("{name} read 1 MiB"), &connection, callers, Bytes::new(), time).await;
        measure::<Write>(&format!("{name} write 1 MiB"), &connection, callers, data.clone(), time).await;
    }
    drop(connection);
    shutdown.cancel();
    serving.await.expect("no panic");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let seconds: f64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    let tcp = || Address::Tcp("127.0.0.1:0".into());
    let folder = tempfile::tempdir().expect("a folder");
    floor(time).await;
    run("tcp", tcp(), Encryption::Off, time).await;
    run("unix", Address::Unix(folder.path().join("socket")), Encryption::Off, time).await;
    run("encrypted tcp", tcp(), Encryption::Required, time).await;
}
