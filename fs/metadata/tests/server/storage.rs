//! Storage servers, played by the test: chunks are placed on them, tasks reach them, inline data moves to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_core::commands::{NewPlace, Outcome, ServerChange, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{ChunkId, InodeId, SegmentIndex, ServerId};
use atoll_core::records::{ChunkKind, ChunkRecord};
use atoll_metadata::RunningMetadata;
use atoll_proto::admin::ChangeServer;
use atoll_proto::metadata::{FileExtents, PieceData};
use atoll_proto::queries;
use atoll_proto::registration::{
    Heartbeat, HeartbeatReply, InventoryChanges, Register, RegistrationError, StorageTask, TaskDone,
};
use atoll_proto::storage::{
    ReadChunk, ReadChunkReply, ReplicaInfo, StorageError, StorageRequest, WriteChunk, WriteChunkReply,
};
use atoll_proto::{
    Address, Connection, Handler, Listener, PeerInfo, Request, Response, Role, RpcError, Status, checksum,
    serve,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::{CLUSTER, Client, config, connect, eventually, identity, inline, start, unlink, write};

/// Chunks in memory.
#[derive(Default)]
struct Disk {
    chunks: Mutex<BTreeMap<ChunkId, Vec<u8>>>,
    reads: AtomicU64,
}

impl Handler for Disk {
    async fn handle(&self, _: &PeerInfo, request: Request) -> Result<Response, Status> {
        match StorageRequest::decode(&request)? {
            StorageRequest::Write(write) => {
                checksum::verify(write.chunk, write.offset / 4096, &request.body, &write.checksums).unwrap();
                let mut chunks = self.chunks.lock();
                let chunk = chunks.entry(write.chunk).or_default();
                chunk.resize(write.offset as usize, 0);
                chunk.extend_from_slice(&request.body);
                Response::to::<WriteChunk>(&WriteChunkReply { durable: true }, ())
            }
            StorageRequest::Read(read) => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                let chunks = self.chunks.lock();
                let chunk = chunks.get(&read.chunk).ok_or(StorageError::NoSuchChunk)?;
                let start = read.offset / 4096 * 4096;
                let end =
                    (read.offset + u64::from(read.length)).next_multiple_of(4096).min(chunk.len() as u64);
                let body = Bytes::copy_from_slice(&chunk[start as usize..end as usize]);
                let checksums = checksum::checksums(read.chunk, start / 4096, &body);
                Response::to::<ReadChunk>(&ReadChunkReply { offset: start, checksums }, body)
            }
            other => panic!("{other:?}"),
        }
    }
}

struct Storage {
    id: ServerId,
    disk: Arc<Disk>,
    connection: Connection,
    sequence: u64,
    done: Vec<TaskDone>,
    ordered: Vec<StorageTask>,
    address: String,
    _serving: DropGuard,
}

impl Storage {
    async fn join(server: &RunningMetadata, number: u64) -> Storage {
        let id = ServerId(number);
        let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".into())).await.unwrap();
        let address = listener.local_address();
        let disk = Arc::new(Disk::default());
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, identity(Role::Storage(id)), disk.clone(), stop.clone()));
        let connection = connect(server.address(), Role::Storage(id)).await;
        let storage = Storage {
            id,
            disk,
            connection,
            sequence: 0,
            done: Vec::new(),
            ordered: Vec::new(),
            address,
            _serving: stop.drop_guard(),
        };
        storage.register(CLUSTER).await.unwrap();
        storage
    }

    async fn register(&self, cluster: atoll_core::ids::ClusterId) -> Result<(), RpcError> {
        let request = Register {
            server: self.id,
            cluster,
            address: self.address.clone(),
            labels: BTreeMap::new(),
            capacity: 1 << 40,
            used: 0,
            format_version: 1,
            incarnation: 1,
        };
        self.connection.call::<Register>(&request, ()).await.map(|_| ())
    }

    /// A heartbeat; what is ordered is reported as done with the next one.
    async fn beat(&mut self, changes: InventoryChanges) -> HeartbeatReply {
        self.sequence += 1;
        let request = Heartbeat {
            server: self.id,
            incarnation: 1,
            sequence: self.sequence,
            used: 0,
            free: 1 << 40,
            chunks: 0,
            disk_errors: 0,
            changes,
            done: std::mem::take(&mut self.done),
        };
        let reply = self.connection.call::<Heartbeat>(&request, ()).await.unwrap().0;
        for numbered in &reply.tasks {
            self.done.push(TaskDone { task: numbered.number, result: Ok(()) });
            self.ordered.push(numbered.task.clone());
        }
        reply
    }

    /// Heartbeats until `wanted` was ordered (and reported as done).
    async fn obey_until(&mut self, what: &str, wanted: impl Fn(&StorageTask) -> bool) -> StorageTask {
        let deadline = tokio::time::Instant::now() + crate::client::HANG;
        loop {
            assert!(tokio::time::Instant::now() < deadline, "never ordered: {what}");
            self.beat(InventoryChanges::default()).await;
            if let Some(at) = self.ordered.iter().position(&wanted) {
                self.beat(InventoryChanges::default()).await;
                return self.ordered.remove(at);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

async fn new_chunk(client: &mut Client) -> (ChunkId, ChunkRecord) {
    let op = ops::CreateChunk { kind: ChunkKind::Small, incarnation: 1, replicas: Vec::new() };
    match client.run(op).await {
        Outcome::Chunk(chunk, record) => (chunk, *record),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_placed_and_what_is_deleted_is_ordered_to_be_trimmed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let mut client = Client::open(&server).await;
    let op = ops::CreateChunk { kind: ChunkKind::Small, incarnation: 1, replicas: Vec::new() };
    let command = client.command(op);
    let refused = client.send(&command).await.unwrap();
    assert_eq!(refused, Outcome::Refused(FsError::NoServers));

    let mut storage = Storage::join(&server, 5).await;
    // Sent again, the refusal stands although there is a server now: the slot has it.
    assert_eq!(client.send(&command).await.unwrap(), refused);
    let (chunk, record) = new_chunk(&mut client).await;
    assert_eq!(record.replicas, [storage.id]);

    let mut files = Vec::new();
    for number in 0..3_u64 {
        let name = format!("f{number}");
        let ino = client.create(&name).await;
        let place = NewPlace::Chunk { chunk, generation: record.generation, offset: number * 8192 };
        assert!(matches!(client.run(write(ino, 0, 8000, place)).await, Outcome::Inode(_)));
        files.push(name);
    }
    assert!(matches!(client.run(unlink(&files[1])).await, Outcome::Inode(_)));
    let task = storage.obey_until("a trim", |task| matches!(task, StorageTask::Trim { .. })).await;
    let StorageTask::Trim { chunk: trimmed, ranges } = task else { panic!() };
    assert_eq!(trimmed, chunk);
    assert_eq!((ranges[0].offset, ranges[0].length), (8192, 8192));

    // A process that continues the session writes to chunks of its own.
    client.ask(queries::AdoptSession).await;
    let task = storage.obey_until("a seal", |task| matches!(task, StorageTask::Seal { .. })).await;
    assert!(matches!(task, StorageTask::Seal { length: 24576, .. }), "{task:?}");
    for name in [&files[0], &files[2]] {
        client.run(unlink(name)).await;
    }
    storage.obey_until("the removal", |task| *task == StorageTask::Delete { chunk }).await;
    assert!(storage.beat(InventoryChanges::default()).await.tasks.is_empty());
    eventually("no chunk is left", async || server.status().unwrap().chunks == 0).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_and_never_committed_is_found_after_the_seal() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let mut client = Client::open(&server).await;
    let mut storage = Storage::join(&server, 5).await;
    let (chunk, record) = new_chunk(&mut client).await;
    let ino = client.create("a").await;
    // The first three blocks were written, and nobody ever heard of them.
    let place = NewPlace::Chunk { chunk, generation: record.generation, offset: 3 * 4096 };
    client.run(write(ino, 0, 4096, place)).await;
    client.run(ops::SealChunk { chunk }).await;
    let task = storage.obey_until("a trim", |task| matches!(task, StorageTask::Trim { .. })).await;
    let StorageTask::Trim { ranges, .. } = task else { panic!() };
    assert_eq!(ranges.iter().map(|range| range.length).sum::<u64>(), 3 * 4096);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strays_are_removed_and_a_lost_replica_is_taken_out() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let server = atoll_metadata::MetadataServer::start(config, &mut Default::default()).await.unwrap();
    let volume = atoll_core::records::VolumeConfig { copies: 2, copies_min: 1, ..Default::default() };
    server.bootstrap(volume).await.unwrap();
    let mut client = Client::open(&server).await;
    let (mut first, mut second) = (Storage::join(&server, 5).await, Storage::join(&server, 6).await);
    let (chunk, record) = new_chunk(&mut client).await;
    assert_eq!(record.replicas.len(), 2);
    let ino = client.create("a").await;
    let place = NewPlace::Chunk { chunk, generation: record.generation, offset: 0 };
    client.run(write(ino, 0, 4096, place)).await;
    client.run(ops::SealChunk { chunk }).await;
    first.obey_until("a seal", |task| matches!(task, StorageTask::Seal { .. })).await;
    second.obey_until("a seal", |task| matches!(task, StorageTask::Seal { .. })).await;

    // The second one has lost the chunk and has another that was never this cluster's business; ids that were
    // never given out are left alone.
    let (stray, _) = new_chunk(&mut client).await;
    client.run(ops::SealChunk { chunk: stray }).await;
    let replica =
        |chunk| ReplicaInfo { chunk, generation: record.generation, length: 4096, sealed: true, bad: false };
    let inventory = InventoryChanges {
        present: vec![replica(stray), replica(ChunkId(1 << 40))],
        from: None,
        through: Some(ChunkId(1 << 40)),
        complete: true,
        ..InventoryChanges::default()
    };
    let reply = second.beat(inventory).await;
    assert!(!reply.full_inventory);
    let infos = client.ask(queries::Chunks { chunks: vec![chunk] }).await;
    assert_eq!(infos[0].replicas, [first.id]);
    assert!(infos[0].generation > record.generation);
    second.obey_until("the stray's removal", |task| *task == StorageTask::Delete { chunk: stray }).await;
    // The repair copies it back from the one that has it.
    let is_copy =
        |task: &StorageTask| matches!(task, StorageTask::Copy { chunk: copied, .. } if *copied == chunk);
    let heartbeats = tokio::spawn(async move {
        loop {
            first.beat(InventoryChanges::default()).await;
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
    });
    let StorageTask::Copy { from, .. } = second.obey_until("a copy", is_copy).await else { panic!() };
    assert_eq!(from.len(), 1);
    eventually("two replicas", async || {
        let infos = client.ask(queries::Chunks { chunks: vec![chunk] }).await;
        infos[0].replicas.len() == 2
    })
    .await;
    assert_eq!(server.status().unwrap().chunks_short, 0);
    // Its file is taken away; then the whole disk is empty.
    let removed = InventoryChanges { removed: vec![chunk], ..InventoryChanges::default() };
    let nothing = InventoryChanges { complete: true, ..InventoryChanges::default() };
    for lost in [removed, nothing] {
        second.beat(lost).await;
        let infos = client.ask(queries::Chunks { chunks: vec![chunk] }).await;
        assert_eq!(infos[0].replicas.len(), 1);
        second.obey_until("another copy", is_copy).await;
        eventually("two replicas again", async || {
            let infos = client.ask(queries::Chunks { chunks: vec![chunk] }).await;
            infos[0].replicas.len() == 2
        })
        .await;
    }
    heartbeats.abort();
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_how_many_replicas_chunks_have_without_a_server_that_is_drained() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let server = atoll_metadata::MetadataServer::start(config, &mut Default::default()).await.unwrap();
    let volume = atoll_core::records::VolumeConfig { copies: 2, copies_min: 1, ..Default::default() };
    server.bootstrap(volume).await.unwrap();
    let mut client = Client::open(&server).await;
    let (mut first, mut second) = (Storage::join(&server, 5).await, Storage::join(&server, 6).await);
    let (chunk, record) = new_chunk(&mut client).await;
    let ino = client.create("a").await;
    let place = NewPlace::Chunk { chunk, generation: record.generation, offset: 0 };
    client.run(write(ino, 0, 4096, place)).await;
    client.run(ops::SealChunk { chunk }).await;
    first.beat(InventoryChanges::default()).await;
    second.beat(InventoryChanges::default()).await;
    let status = server.status().unwrap();
    assert_eq!(
        (status.chunks_by_replicas, status.chunks_naming),
        (vec![0, 0, 1], vec![(first.id, 1), (second.id, 1)])
    );

    let admin = connect(server.address(), Role::Admin).await;
    let drain = ChangeServer { server: second.id, change: ServerChange::Drain };
    admin.call::<ChangeServer>(&drain, ()).await.unwrap();
    first.beat(InventoryChanges::default()).await;
    second.beat(InventoryChanges::default()).await;
    let status = server.status().unwrap();
    assert_eq!((status.chunks_by_replicas, status.chunks_short), (vec![0, 1, 0], 1));
    assert_eq!(status.chunks_naming, [(first.id, 1), (second.id, 1)]);
    // It has both of its replicas, and only moves.
    assert!(
        !status.problems.iter().any(|problem| problem.contains("fewer replicas")),
        "{:?}",
        status.problems
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_cluster_or_role_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let storage = Storage::join(&server, 5).await;
    let error = storage.register(atoll_core::ids::ClusterId(1)).await.unwrap_err();
    assert!(matches!(error.typed(), Some(RegistrationError::WrongCluster { .. })), "{error}");
    let other = connect(server.address(), Role::Storage(ServerId(9))).await;
    let beat = Heartbeat {
        server: ServerId(9),
        incarnation: 1,
        sequence: 1,
        used: 0,
        free: 0,
        chunks: 0,
        disk_errors: 0,
        changes: InventoryChanges::default(),
        done: Vec::new(),
    };
    let error = other.call::<Heartbeat>(&beat, ()).await.unwrap_err();
    assert_eq!(error.typed(), Some(RegistrationError::NotRegistered));
    let error = storage.connection.call::<Heartbeat>(&beat, ()).await.unwrap_err();
    assert!(error.to_string().contains("isn't allowed"), "{error}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inline_data_of_a_file_that_has_grown_moves_to_a_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let mut client = Client::open(&server).await;
    let mut storage = Storage::join(&server, 5).await;
    let disk = storage.disk.clone();
    let heartbeats = tokio::spawn(async move {
        loop {
            storage.beat(InventoryChanges::default()).await;
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
    });
    let ino = client.create("grows").await;
    let content: Vec<u8> = (0..40_000_u32).map(|number| (number % 251) as u8).collect();
    for part in [0..16_000_usize, 16_000..30_000, 30_000..40_000] {
        let (offset, length) = (part.start as u64, part.len() as u64);
        client.run(write(ino, offset, length, inline(content[part].to_vec()))).await;
    }
    let read = async |client: &Client| -> (Vec<u8>, bool) { read(client, &disk, ino).await };
    assert_eq!(read(&client).await, (content.clone(), true));
    eventually("the data has moved", async || !read(&client).await.1).await;
    assert_eq!(read(&client).await.0, content);
    let status = server.status().unwrap();
    assert_eq!(status.inline_bytes, 0);
    assert_eq!(status.chunks, 1);
    heartbeats.abort();
    server.shutdown().await;
}

/// The content of a file, and whether any of it is inline.
async fn read(client: &Client, disk: &Disk, ino: InodeId) -> (Vec<u8>, bool) {
    let query = queries::Extents { ino, first: SegmentIndex(0), segments: 1 };
    let FileExtents { attributes, segments, .. } = client.ask(query).await;
    let mut content = vec![0; attributes.size as usize];
    let mut any_inline = false;
    for piece in segments.into_iter().flat_map(|(_, pieces)| pieces) {
        let range = piece.start as usize..(piece.start + piece.length) as usize;
        match piece.data {
            PieceData::Inline(bytes) => {
                any_inline = true;
                content[range].copy_from_slice(&bytes);
            }
            PieceData::Chunk { chunk, offset } => {
                let chunks = disk.chunks.lock();
                let bytes = &chunks[&chunk][offset as usize..][..piece.length as usize];
                content[range].copy_from_slice(bytes);
            }
            other => panic!("{other:?}"),
        }
    }
    (content, any_inline)
}
