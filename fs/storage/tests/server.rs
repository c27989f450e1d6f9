//! The server as its peers see it: over connections, with a metadata service that the test plays.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::ids::{ChunkId, ClusterId, Generation, MemberId, ServerId, SessionId};
use atoll_proto::checksum::{ChecksumError, checksums, verify};
use atoll_proto::registration::{
    Heartbeat, HeartbeatReply, NumberedTask, Register, RegisterReply, RegistrationError, StorageTask,
    TaskDone,
};
use atoll_proto::storage::{
    ChunkLayout, ChunkRange, CopyChunk, CopySource, DeleteChunk, Inventory, ReadChunk, Scrub, SealChunk,
    ServerStatus, StorageError, SyncChunk, TrimChunk, WriteChunk, Writer,
};
use atoll_proto::{
    Address, ClusterKey, ConnectOptions, Connection, Encryption, Handler, Identity, Listener, PeerInfo,
    Request, Response, Role, Rpc, RpcError, Status, StatusCode, serve,
};
use atoll_storage::disk::faulty::{Fault, FaultyDisk, Op};
use atoll_storage::{StartError, StorageConfig, StorageHandle, StorageServer};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

const CLUSTER: ClusterId = ClusterId(77);
const GENERATION: Generation = Generation(1);
const WRITER: Writer = Writer { session: SessionId(4), incarnation: 1 };
const BLOCK: u64 = 4096;
/// Nothing here takes nearly as long; a test that hangs ends with this.
const HANG: Duration = Duration::from_secs(60);

fn key() -> ClusterKey {
    ClusterKey::new([7; 32])
}

fn identity(role: Role) -> Identity {
    Identity { cluster: CLUSTER, role, key: key(), encryption: Encryption::default() }
}

fn localhost() -> Address {
    Address::Tcp("127.0.0.1:0".to_owned())
}

fn config(metadata: Vec<Address>) -> StorageConfig {
    StorageConfig { metadata, ballast_bytes: 0, ..StorageConfig::new("", localhost(), CLUSTER, key()) }
}

async fn start_on(disk: &FaultyDisk, metadata: Vec<Address>) -> StorageHandle {
    let listener = Listener::bind(&localhost()).await.unwrap();
    StorageServer::start_on(config(metadata), Arc::new(disk.clone()), listener).await.unwrap()
}

async fn connect(server: &StorageHandle, role: Role) -> Connection {
    let options = ConnectOptions::new(identity(role)).expecting(Role::Storage(server.server()));
    Connection::connect(&server.address().parse().unwrap(), &options).await.unwrap()
}

async fn client(server: &StorageHandle) -> Connection {
    connect(server, Role::Client(WRITER.session)).await
}

async fn metadata_of(server: &StorageHandle) -> Connection {
    connect(server, Role::Metadata(MemberId(1))).await
}

fn write_request(chunk: u64, offset: u64, data: &[u8], sync: bool) -> WriteChunk {
    WriteChunk {
        chunk: ChunkId(chunk),
        generation: GENERATION,
        writer: WRITER,
        offset,
        length: data.len() as u32,
        checksums: checksums(ChunkId(chunk), offset / BLOCK, data),
        create: Some(ChunkLayout::Stream),
        sync,
    }
}

async fn write(
    connection: &Connection,
    chunk: u64,
    offset: u64,
    data: &[u8],
    sync: bool,
) -> Result<bool, RpcError> {
    let request = write_request(chunk, offset, data, sync);
    connection.call::<WriteChunk>(&request, data.to_vec()).await.map(|(reply, _)| reply.durable)
}

async fn read(
    connection: &Connection,
    chunk: u64,
    offset: u64,
    length: u32,
) -> Result<(u64, Vec<u8>), RpcError> {
    let request =
        ReadChunk { chunk: ChunkId(chunk), generation: GENERATION, offset, length, reader_verifies: false };
    let (reply, body) = connection.call::<ReadChunk>(&request, ()).await?;
    assert_eq!(reply.checksums, checksums(ChunkId(chunk), reply.offset / BLOCK, &body));
    Ok((reply.offset, body.to_vec()))
}

fn refusal<T: std::fmt::Debug>(result: Result<T, RpcError>) -> StorageError {
    let error = result.unwrap_err();
    error.typed().unwrap_or_else(|| panic!("no typed error: {error}"))
}

/// Waits for something that other tasks bring about.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(HANG, wait).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_of_a_chunk() {
    let disk = FaultyDisk::new(1, 64 << 20);
    let server = start_on(&disk, Vec::new()).await;
    let (client, metadata) = (client(&server).await, metadata_of(&server).await);
    let data: Vec<u8> = (0..10 * BLOCK).map(|n| (n % 251) as u8).collect();

    assert!(!write(&client, 5, 0, &data[..5 * BLOCK as usize], false).await.unwrap());
    assert!(write(&client, 5, 5 * BLOCK, &data[5 * BLOCK as usize..], true).await.unwrap());
    client.call::<SyncChunk>(&SyncChunk { chunk: ChunkId(5), generation: GENERATION }, ()).await.unwrap();
    // Whole blocks around what is asked for, as far as the chunk goes.
    let (offset, got) = read(&client, 5, 5000, 100).await.unwrap();
    assert_eq!((offset, &got[..]), (BLOCK, &data[BLOCK as usize..2 * BLOCK as usize]));
    let (_, got) = read(&client, 5, 8 * BLOCK, 1 << 20).await.unwrap();
    assert_eq!(got, data[8 * BLOCK as usize..]);
    assert_eq!(refusal(read(&client, 5, 10 * BLOCK, 1).await), StorageError::PastSeal { length: 10 * BLOCK });
    assert_eq!(refusal(read(&client, 6, 0, 1).await), StorageError::NoSuchChunk);

    let seal = SealChunk { chunk: ChunkId(5), generation: Generation(2), length: 8 * BLOCK };
    metadata.call::<SealChunk>(&seal, ()).await.unwrap();
    let other = SealChunk { length: BLOCK, ..seal };
    assert_eq!(
        refusal(metadata.call::<SealChunk>(&other, ()).await),
        StorageError::SealMismatch { length: 8 * BLOCK }
    );
    assert_eq!(
        refusal(write(&client, 5, 10 * BLOCK, &data[..BLOCK as usize], true).await),
        StorageError::StaleGeneration { have: Generation(2) }
    );
    let trim = TrimChunk { chunk: ChunkId(5), ranges: vec![ChunkRange { offset: 0, length: 2 * BLOCK }] };
    metadata.call::<TrimChunk>(&trim, ()).await.unwrap();
    assert_eq!(refusal(read(&client, 5, 0, 3 * BLOCK as u32).await), StorageError::Gone);
    assert_eq!(
        read(&client, 5, 2 * BLOCK, 1 << 20).await.unwrap().1,
        data[2 * BLOCK as usize..8 * BLOCK as usize]
    );

    let (scrubbed, _) = metadata.call::<Scrub>(&Scrub { chunk: ChunkId(5) }, ()).await.unwrap();
    assert_eq!((scrubbed.blocks, scrubbed.bad), (6, vec![]));
    let (inventory, _) = metadata.call::<Inventory>(&Inventory { after: None, limit: 9 }, ()).await.unwrap();
    let replica = inventory.replicas[0];
    assert_eq!(
        (replica.chunk, replica.length, replica.sealed, replica.bad),
        (ChunkId(5), 8 * BLOCK, true, false)
    );
    let (status, _) = client.call::<ServerStatus>(&ServerStatus {}, ()).await.unwrap();
    assert_eq!((status.server, status.chunks, status.capacity), (server.server(), 1, 64 << 20));

    for _ in 0..2 {
        metadata.call::<DeleteChunk>(&DeleteChunk { chunk: ChunkId(5) }, ()).await.unwrap();
    }
    assert_eq!(refusal(read(&client, 5, 2 * BLOCK, 1).await), StorageError::NoSuchChunk);
    let mut registry = Registry::default();
    server.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("direction=\"Written\"} 40960"), "{text}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senseless_and_forbidden_requests_change_nothing() {
    let disk = FaultyDisk::new(1, 64 << 20);
    let server = start_on(&disk, Vec::new()).await;
    let client = client(&server).await;
    let data = vec![1; BLOCK as usize];

    let short = write_request(1, 0, &data, true);
    let result = client.call::<WriteChunk>(&short, data[1..].to_vec()).await;
    assert!(matches!(refusal(result), StorageError::Invalid(_)));
    let result = client.call::<WriteChunk>(&write_request(1, 0, &[], true), ()).await;
    assert!(matches!(refusal(result), StorageError::Invalid(_)));
    let askew = WriteChunk { offset: 1, ..write_request(1, 0, &data, true) };
    assert_eq!(refusal(client.call::<WriteChunk>(&askew, data.clone()).await), StorageError::NotAligned(1));
    let nowhere = WriteChunk { create: None, ..write_request(1, 0, &data, true) };
    assert_eq!(refusal(client.call::<WriteChunk>(&nowhere, data.clone()).await), StorageError::NoSuchChunk);
    let mut damaged = data.clone();
    damaged[9] ^= 1;
    let result = client.call::<WriteChunk>(&write_request(1, 0, &data, true), damaged).await;
    assert_eq!(refusal(result), StorageError::Corrupt { blocks: vec![0] });
    assert!(matches!(refusal(read(&client, 1, u64::MAX, 1).await), StorageError::PastSeal { .. }));

    write(&client, 1, 0, &data, true).await.unwrap();
    let forbidden = client.call::<DeleteChunk>(&DeleteChunk { chunk: ChunkId(1) }, ()).await;
    assert!(
        matches!(forbidden, Err(RpcError::Refused(Status { code: StatusCode::Forbidden, .. }))),
        "{forbidden:?}"
    );
    let other = vec![2; BLOCK as usize];
    assert_eq!(
        refusal(write(&client, 1, 0, &other, true).await),
        StorageError::BelowHighWater { high_water: BLOCK }
    );
    let stranger = WriteChunk {
        writer: Writer { session: SessionId(9), incarnation: 1 },
        ..write_request(1, BLOCK, &data, true)
    };
    assert_eq!(
        refusal(client.call::<WriteChunk>(&stranger, data.clone()).await),
        StorageError::StaleWriter { have: WRITER }
    );
    assert_eq!(read(&client, 1, 0, 1).await.unwrap().1, data);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_replica_that_lacks_what_a_client_reads_is_bad() {
    let disk = FaultyDisk::new(1, 64 << 20);
    let server = start_on(&disk, Vec::new()).await;
    let (client, metadata) = (client(&server).await, metadata_of(&server).await);
    let peer = connect(&server, Role::Storage(ServerId(9))).await;
    let block = vec![7; BLOCK as usize];
    write(&client, 5, 0, &block, true).await.unwrap();
    write(&client, 5, 2 * BLOCK, &block, true).await.unwrap();
    let is_bad = async || {
        let inventory = Inventory { after: None, limit: 10 };
        metadata.call::<Inventory>(&inventory, ()).await.unwrap().0.replicas[0].bad
    };
    // What is being written may be on its way.
    refusal(read(&client, 5, BLOCK, 100).await);
    let seal = SealChunk { chunk: ChunkId(5), generation: Generation(2), length: 3 * BLOCK };
    metadata.call::<SealChunk>(&seal, ()).await.unwrap();
    // Who copies asks for gaps as well.
    refusal(read(&peer, 5, BLOCK, 100).await);
    assert!(!is_bad().await);
    refusal(read(&client, 5, BLOCK, 100).await);
    assert!(is_bad().await);
}

/// A reader that verifies gets the bytes as they are, and tells by asking again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_a_reader_finds_is_found_here_when_it_asks_again() {
    let disk = FaultyDisk::new(1, 64 << 20);
    let server = start_on(&disk, Vec::new()).await;
    let client = client(&server).await;
    let data: Vec<u8> = (0..4 * BLOCK).map(|n| (n % 251) as u8).collect();
    assert!(write(&client, 5, 0, &data, true).await.unwrap());
    let path = "chunks/05/0000000000000005.chunk";
    let end = disk.contents(path).unwrap().len() as u64;
    disk.flip_bit(path, end - BLOCK - 1, 0);

    let (offset, length) = (BLOCK, 3 * BLOCK as u32);
    let request =
        ReadChunk { chunk: ChunkId(5), generation: GENERATION, offset, length, reader_verifies: true };
    let (reply, body) = client.call::<ReadChunk>(&request, ()).await.unwrap();
    let wrong = verify(ChunkId(5), 1, &body, &reply.checksums);
    assert_eq!(wrong, Err(ChecksumError::Corrupt { chunk: ChunkId(5), blocks: vec![2] }));
    let bad_blocks = async || client.call::<ServerStatus>(&ServerStatus {}, ()).await.unwrap().0.bad_blocks;
    assert_eq!(bad_blocks().await, 0);
    let refused = refusal(read(&client, 5, BLOCK, 3 * BLOCK as u32).await);
    assert_eq!(refused, StorageError::Corrupt { blocks: vec![2] });
    assert_eq!(bad_blocks().await, 1);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_syncs_share_few() {
    let folder = tempfile::tempdir().unwrap();
    let config = StorageConfig { data_dir: folder.path().join("data"), ..config(Vec::new()) };
    let server = StorageServer::start(config).await.unwrap();
    let client = client(&server).await;
    let data = vec![3; BLOCK as usize];
    let writes = (0..200u64).map(|block| {
        let (client, data) = (client.clone(), data.clone());
        tokio::spawn(async move { write(&client, 1, block * BLOCK, &data, true).await.unwrap() })
    });
    for write in writes.collect::<Vec<_>>() {
        assert!(write.await.unwrap());
    }
    let mut registry = Registry::default();
    server.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let count = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    };
    assert_eq!(count("atoll_storage_syncs_asked_total"), 200);
    assert!(count("atoll_storage_syncs_made_total") < 200, "{text}");
    assert_eq!(read(&client, 1, 0, 200 * BLOCK as u32).await.unwrap().1, data.repeat(200));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_syncs_survive_a_power_cut() {
    for seed in 0..30 {
        let disk = FaultyDisk::new(seed, 256 << 20);
        let server = start_on(&disk, Vec::new()).await;
        let connection = client(&server).await;
        disk.power_off_after(20 + seed * 3);
        let mut durable = Vec::new();
        for n in 0..40u64 {
            let (chunk, data) = (n % 3 + 1, vec![n as u8 + 1; 2 * BLOCK as usize]);
            let offset = n / 3 * 2 * BLOCK;
            if write(&connection, chunk, offset, &data, true).await.is_ok() {
                durable.push((chunk, offset, data));
            }
        }
        server.shutdown().await;
        assert!(disk.is_off());
        disk.power_on();
        let server = start_on(&disk, Vec::new()).await;
        let connection = client(&server).await;
        for (chunk, offset, data) in durable {
            assert_eq!(
                read(&connection, chunk, offset, data.len() as u32).await.unwrap().1,
                data,
                "seed {seed}"
            );
        }
        // What the server was told before it restarted it doesn't vouch for, unless all of it is there.
        let sync = SyncChunk { chunk: ChunkId(1), generation: GENERATION };
        match refusal(connection.call::<SyncChunk>(&sync, ()).await) {
            StorageError::OutdatedReplica { .. } | StorageError::NoSuchChunk => {}
            other => panic!("seed {seed}: {other}"),
        }
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_is_told_to_all_who_wait_for_it() {
    let disk = FaultyDisk::new(1, 64 << 20);
    let server = start_on(&disk, Vec::new()).await;
    let client = client(&server).await;
    let data = vec![1; BLOCK as usize];
    write(&client, 1, 0, &data, true).await.unwrap();
    disk.fail(Fault { op: Op::Sync, path_contains: "0000000001".into(), errno: libc::EIO, times: 1 });
    for n in 1..4 {
        assert!(matches!(
            refusal(write(&client, 1, n * BLOCK, &data, true).await),
            StorageError::DiskFailed(_)
        ));
    }
    assert_eq!(read(&client, 1, 0, 1).await.unwrap().1, data);
    // The disk itself goes on: other chunks can be written.
    write(&client, 2, 0, &data, true).await.unwrap();
    disk.set_capacity(0);
    assert_eq!(refusal(write(&client, 2, BLOCK, &data, true).await), StorageError::DiskFull);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_copied_from_whoever_has_good_blocks() {
    let disks = [FaultyDisk::new(1, 64 << 20), FaultyDisk::new(2, 64 << 20), FaultyDisk::new(3, 64 << 20)];
    let mut servers = Vec::new();
    for disk in &disks {
        servers.push(start_on(disk, Vec::new()).await);
    }
    let blocks = 600;
    let data: Vec<u8> = (0..blocks * BLOCK).map(|n| (n / 3 % 253) as u8).collect();
    for server in &servers[..2] {
        let client = client(server).await;
        for (offset, part) in (0..).step_by(1 << 20).zip(data.chunks(1 << 20)) {
            write(&client, 9, offset, part, true).await.unwrap();
        }
        let metadata = metadata_of(server).await;
        let seal = SealChunk { chunk: ChunkId(9), generation: Generation(2), length: blocks * BLOCK };
        metadata.call::<SealChunk>(&seal, ()).await.unwrap();
        let trim = TrimChunk { chunk: ChunkId(9), ranges: vec![ChunkRange { offset: BLOCK, length: BLOCK }] };
        metadata.call::<TrimChunk>(&trim, ()).await.unwrap();
    }
    // Each source is damaged elsewhere.
    let path = "chunks/09/0000000000000009.chunk";
    let start = disks[0].contents(path).unwrap().len() as u64 - blocks * BLOCK;
    disks[0].flip_bit(path, start + 300 * BLOCK + 5, 1);
    disks[1].flip_bit(path, start + 301 * BLOCK + 5, 1);

    let metadata = metadata_of(&servers[2]).await;
    let from = |index: usize| CopySource {
        server: servers[index].server(),
        address: servers[index].address().to_owned(),
    };
    let nobody = CopySource { server: ServerId(1), address: "127.0.0.1:1".to_owned() };
    let copy = CopyChunk {
        chunk: ChunkId(9),
        generation: Generation(3),
        length: blocks * BLOCK,
        from: vec![nobody.clone(), from(0), from(1)],
    };
    metadata.call::<CopyChunk>(&copy, ()).await.unwrap();
    let client = client(&servers[2]).await;
    assert_eq!(read(&client, 9, 0, BLOCK as u32).await.unwrap().1, data[..BLOCK as usize]);
    assert_eq!(refusal(read(&client, 9, BLOCK, 1).await), StorageError::Gone);
    let (_, got) = read(&client, 9, 2 * BLOCK, 4 << 20).await.unwrap();
    assert_eq!(got, data[2 * BLOCK as usize..]);
    let (scrubbed, _) = metadata.call::<Scrub>(&Scrub { chunk: ChunkId(9) }, ()).await.unwrap();
    assert_eq!((scrubbed.blocks, scrubbed.bad), (blocks - 1, vec![]));

    // The same block damaged at all sources, or none that answers: no replica, and an error that says so.
    metadata.call::<DeleteChunk>(&DeleteChunk { chunk: ChunkId(9) }, ()).await.unwrap();
    disks[1].flip_bit(path, start + 300 * BLOCK + 5, 1);
    for from in [vec![from(0), from(1)], vec![nobody], vec![]] {
        let result = metadata.call::<CopyChunk>(&CopyChunk { from, ..copy.clone() }, ()).await;
        assert!(matches!(refusal(result), StorageError::NoGoodSource(_)));
    }
    assert_eq!(refusal(read(&client, 9, 0, 1).await), StorageError::NoSuchChunk);
    for server in servers {
        server.shutdown().await;
    }
}

#[tokio::test]
async fn errors_at_the_start_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("precious"), "data").unwrap();
    let here = StorageConfig { data_dir: folder.path().to_owned(), ..config(Vec::new()) };
    let error = StorageServer::start(here.clone()).await.err().unwrap();
    assert!(
        error.to_string().contains("precious") && error.to_string().contains("empty directory"),
        "{error}"
    );
    std::fs::remove_file(folder.path().join("precious")).unwrap();

    let everywhere = StorageConfig { listen: Address::Tcp("0.0.0.0:0".to_owned()), ..here.clone() };
    assert!(matches!(StorageServer::start(everywhere).await, Err(StartError::NoAddress { .. })));

    let server = StorageServer::start(here.clone()).await.unwrap();
    let error = StorageServer::start(here.clone()).await.err().unwrap();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    let taken = StorageConfig { listen: server.address().parse().unwrap(), ..here.clone() };
    assert!(matches!(StorageServer::start(taken).await, Err(StartError::Bind(_))));
    let stranger = Identity { key: ClusterKey::new([8; 32]), ..identity(Role::Admin) };
    let address = server.address().parse().unwrap();
    assert!(Connection::connect(&address, &ConnectOptions::new(stranger)).await.is_err(), "wrong key");
    let id = server.server();
    server.shutdown().await;

    let not_a_folder = StorageConfig { data_dir: folder.path().join("lock").join("x"), ..here.clone() };
    assert!(matches!(StorageServer::start(not_a_folder).await, Err(StartError::Folder { .. })));
    let again = StorageServer::start(here).await.unwrap();
    assert_eq!((again.server(), again.incarnation()), (id, 2));
    again.shutdown().await;
}

/// A metadata service that says what the test tells it to.
#[derive(Default)]
struct Metadata {
    leader: Option<String>,
    follower: bool,
    registered: Mutex<Vec<Register>>,
    heartbeats: Mutex<Vec<Heartbeat>>,
    tasks: Mutex<VecDeque<Vec<NumberedTask>>>,
    forget: Mutex<bool>,
}

impl Handler for Metadata {
    async fn handle(&self, _peer: &PeerInfo, request: Request) -> Result<Response, Status> {
        if self.follower {
            return Err(RegistrationError::NotLeader { leader: self.leader.clone() }.into());
        }
        match request.kind {
            Register::KIND => {
                self.registered.lock().push(request.decode::<Register>()?);
                Response::to::<Register>(
                    &RegisterReply { heartbeat_interval_ms: 50, full_inventory: true },
                    (),
                )
            }
            Heartbeat::KIND => {
                if std::mem::take(&mut *self.forget.lock()) {
                    return Err(RegistrationError::NotRegistered.into());
                }
                self.heartbeats.lock().push(request.decode::<Heartbeat>()?);
                let tasks = self.tasks.lock().pop_front().unwrap_or_default();
                let reply = HeartbeatReply {
                    heartbeat_interval_ms: 50,
                    tasks,
                    full_inventory: false,
                    members: Vec::new(),
                };
                Response::to::<Heartbeat>(&reply, ())
            }
            other => Err(Status::unknown_kind(other)),
        }
    }
}

impl Metadata {
    async fn serve(self) -> (Arc<Self>, Address, CancellationToken) {
        let (this, stop) = (Arc::new(self), CancellationToken::new());
        let listener = Listener::bind(&localhost()).await.unwrap();
        let address = listener.local_address().parse().unwrap();
        let role = Role::Metadata(MemberId(1));
        tokio::spawn(serve(listener, identity(role), this.clone(), stop.clone()));
        (this, address, stop)
    }

    fn saw(&self, what: impl Fn(&Heartbeat) -> bool) -> bool {
        self.heartbeats.lock().iter().any(what)
    }

    fn done(&self) -> Vec<TaskDone> {
        self.heartbeats.lock().iter().flat_map(|heartbeat| heartbeat.done.clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_finds_the_leader_tells_its_news_and_carries_out_orders() {
    let disk = FaultyDisk::new(1, 64 << 20);
    let data = vec![1; 8 * BLOCK as usize];
    {
        let server = start_on(&disk, Vec::new()).await;
        let client = client(&server).await;
        for chunk in 1..=3 {
            write(&client, chunk, 0, &data, true).await.unwrap();
        }
        server.shutdown().await;
    }
    let (leader, leader_address, stop_leader) = Metadata::default().serve().await;
    let follower =
        Metadata { follower: true, leader: Some(leader_address.to_string()), ..Metadata::default() };
    let (_follower, follower_address, stop_follower) = follower.serve().await;

    let server = start_on(&disk, vec![follower_address]).await;
    until("registration", || !leader.registered.lock().is_empty()).await;
    let register = leader.registered.lock()[0].clone();
    assert_eq!((register.server, register.cluster, register.incarnation), (server.server(), CLUSTER, 2));
    assert_eq!(register.address, server.address());
    until("the inventory", || leader.saw(|heartbeat| heartbeat.changes.complete)).await;
    let inventory = leader.heartbeats.lock().iter().find(|h| h.changes.complete).unwrap().changes.clone();
    assert_eq!(inventory.present.iter().map(|replica| replica.chunk.0).collect::<Vec<_>>(), vec![1, 2, 3]);
    assert_eq!((inventory.from, inventory.through), (None, Some(ChunkId(3))));
    let registered = server.registration();
    assert!(server.is_registered() && registered());

    let task = |number, task| NumberedTask { number, task };
    let tasks = vec![
        task(1, StorageTask::Seal { chunk: ChunkId(1), generation: Generation(2), length: 8 * BLOCK }),
        task(2, StorageTask::Seal { chunk: ChunkId(2), generation: Generation(2), length: 4 * BLOCK }),
        task(3, StorageTask::Delete { chunk: ChunkId(3) }),
        task(4, StorageTask::Delete { chunk: ChunkId(99) }),
        task(5, StorageTask::Seal { chunk: ChunkId(98), generation: Generation(2), length: 0 }),
    ];
    leader.tasks.lock().push_back(tasks.clone());
    // Told again before it was done.
    leader.tasks.lock().push_back(tasks);
    until("the outcomes", || leader.done().len() >= 5).await;
    let done = leader.done();
    let result = |number| done.iter().find(|done| done.task == number).unwrap().result.clone();
    for number in 1..=4 {
        assert_eq!(result(number), Ok(()));
    }
    assert_eq!(result(5), Err(StorageError::NoSuchChunk));
    let gone = |heartbeat: &Heartbeat| heartbeat.changes.removed.contains(&ChunkId(3));
    until("the news of the removal", || leader.saw(gone)).await;
    let sealed = |h: &Heartbeat| {
        h.changes.present.iter().any(|r| r.chunk == ChunkId(2) && r.sealed && r.length == 4 * BLOCK)
    };
    until("the news of the seal", || leader.saw(sealed)).await;

    let trim = vec![ChunkRange { offset: 0, length: BLOCK }];
    leader.tasks.lock().push_back(vec![task(6, StorageTask::Trim { chunk: ChunkId(1), ranges: trim })]);
    until("the trim", || leader.done().iter().any(|done| done.task == 6 && done.result.is_ok())).await;
    let client = client(&server).await;
    assert_eq!(refusal(read(&client, 1, 0, 1).await), StorageError::Gone);

    // A reader finds damage: the metadata service hears of it.
    let path = "chunks/02/0000000000000002.chunk";
    disk.flip_bit(path, disk.contents(path).unwrap().len() as u64 - 1, 0);
    assert_eq!(
        refusal(read(&client, 2, 0, 4 * BLOCK as u32).await),
        StorageError::Corrupt { blocks: vec![3] }
    );
    until("the damage", || {
        leader.saw(|heartbeat| {
            heartbeat.changes.bad.iter().any(|bad| bad.chunk == ChunkId(2) && bad.blocks == [3])
        })
    })
    .await;

    // The leader forgets it, then goes away: it comes back by itself.
    *leader.forget.lock() = true;
    until("the second registration", || leader.registered.lock().len() >= 2).await;
    stop_leader.cancel();
    until("the loss", || !registered()).await;
    assert_eq!(
        read(&client, 1, BLOCK, 1).await.unwrap().1,
        data[..BLOCK as usize],
        "it serves without metadata too"
    );
    server.shutdown().await;
    stop_follower.cancel();
}
