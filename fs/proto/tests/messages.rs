//! Messages survive the wire, their numbers differ, and nonsense is refused.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use atoll_core::attributes::{Attributes, Timestamp};
use atoll_core::commands::{ClientOp, Command, Outcome, ops};
use atoll_core::ids::{ChunkId, ClusterId, Generation, ROOT, ServerId, SessionId, SlotId};
use atoll_proto::registration::*;
use atoll_proto::storage::*;
use atoll_proto::{Request, Rpc, Status, StatusCode, metadata};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn survives<R: Rpc>(request: &R::Request, reply: &R::Reply)
where
    R::Request: PartialEq + Debug,
    R::Reply: PartialEq + Debug,
{
    let sent = Request {
        kind: R::KIND,
        meta: postcard::to_allocvec(request).expect("encodes").into(),
        body: Bytes::new(),
    };
    assert_eq!(&sent.decode::<R>().expect("decodes"), request);
    let bytes = postcard::to_allocvec(reply).expect("encodes");
    assert_eq!(&postcard::from_bytes::<R::Reply>(&bytes).expect("decodes"), reply);
}

const CHUNK: ChunkId = ChunkId(u64::MAX - 3);
const GENERATION: Generation = Generation(9);

#[test]
fn storage_messages_survive() {
    let writer = Writer { session: SessionId(77), incarnation: 3 };
    let write = WriteChunk {
        chunk: CHUNK,
        generation: GENERATION,
        writer,
        offset: 64 << 20,
        length: 5000,
        checksums: vec![1, u32::MAX],
        create: Some(ChunkLayout::Small),
        sync: true,
    };
    survives::<WriteChunk>(&write, &WriteChunkReply { durable: true });
    survives::<SyncChunk>(&SyncChunk { chunk: CHUNK, generation: GENERATION }, &());
    let read =
        ReadChunk { chunk: CHUNK, generation: GENERATION, offset: 5, length: 7, reader_verifies: true };
    survives::<ReadChunk>(&read, &ReadChunkReply { offset: 0, checksums: vec![5] });
    survives::<SealChunk>(&SealChunk { chunk: CHUNK, generation: GENERATION, length: 1 << 26 }, &());
    survives::<DeleteChunk>(&DeleteChunk { chunk: CHUNK }, &());
    let ranges = vec![ChunkRange { offset: 4096, length: 8192 }];
    survives::<TrimChunk>(&TrimChunk { chunk: CHUNK, ranges }, &());
    let from = vec![CopySource { server: ServerId(4), address: "a:1".into() }];
    survives::<CopyChunk>(&CopyChunk { chunk: CHUNK, generation: GENERATION, length: 10, from }, &());
    let replica = ReplicaInfo { chunk: CHUNK, generation: GENERATION, length: 10, sealed: true, bad: false };
    let page = InventoryReply { replicas: vec![replica], more: true };
    survives::<Inventory>(&Inventory { after: Some(CHUNK), limit: 100 }, &page);
    survives::<Scrub>(&Scrub { chunk: CHUNK }, &ScrubReply { blocks: 16384, bad: vec![3] });
}

#[test]
fn a_mutation_is_understood_with_and_without_what_came_later() {
    let command = Command {
        session: SessionId(3),
        slot: SlotId(1),
        sequence: 9,
        time: Timestamp::default(),
        expect: None,
        op: ClientOp::from(ops::Unreserve { bytes: 4096 }),
    };
    let attributes = Attributes {
        ino: ROOT,
        mode: 0o40755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: Timestamp::default(),
        change: 7,
        acl: false,
    };
    let reply =
        metadata::MutateReply { outcome: Outcome::Done, parents: vec![attributes.clone(), attributes] };
    // As who doesn't know the field sends and reads it.
    let old = postcard::to_allocvec(&Outcome::Done).unwrap();
    let read: metadata::MutateReply = postcard::from_bytes(&old).unwrap();
    assert_eq!(read, metadata::MutateReply { outcome: Outcome::Done, parents: Vec::new() });
    assert_eq!(
        postcard::from_bytes::<Outcome>(&postcard::to_allocvec(&reply).unwrap()).unwrap(),
        Outcome::Done
    );
    for opens in [false, true] {
        let request = metadata::MutateRequest { command: command.clone(), opens };
        survives::<metadata::MutateRequest>(&request, &reply);
    }
    // As who doesn't know the field sends and reads it.
    let old = postcard::to_allocvec(&command).unwrap();
    let read: metadata::MutateRequest = postcard::from_bytes(&old).unwrap();
    assert_eq!(read, metadata::MutateRequest { command: command.clone(), opens: false });
    let new =
        postcard::to_allocvec(&metadata::MutateRequest { command: command.clone(), opens: true }).unwrap();
    assert_eq!(postcard::from_bytes::<Command<ClientOp>>(&new).unwrap(), command);
}

#[test]
fn registration_messages_survive() {
    let register = Register {
        server: ServerId(5),
        cluster: ClusterId(u128::MAX),
        address: "storage-0:7001".into(),
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        capacity: 1 << 40,
        used: 1,
        format_version: 1,
        incarnation: 2,
    };
    survives::<Register>(&register, &RegisterReply { heartbeat_interval_ms: 1000, full_inventory: true });
    let heartbeat = Heartbeat {
        server: ServerId(5),
        incarnation: 2,
        sequence: 1,
        used: 1,
        free: 2,
        chunks: 3,
        disk_errors: 0,
        changes: InventoryChanges {
            bad: vec![BadReplica { chunk: CHUNK, generation: GENERATION, blocks: vec![1] }],
            removed: vec![CHUNK],
            scrubbed: vec![ScrubbedReplica { chunk: CHUNK, generation: GENERATION, blocks: 7 }],
            complete: true,
            ..InventoryChanges::default()
        },
        done: vec![TaskDone { task: 4, result: Err(StorageError::StaleGeneration { have: GENERATION }) }],
    };
    let tasks = vec![
        NumberedTask { number: 1, task: StorageTask::Delete { chunk: CHUNK } },
        NumberedTask { number: 2, task: StorageTask::Scrub { chunk: CHUNK } },
    ];
    let reply = HeartbeatReply {
        heartbeat_interval_ms: 1000,
        tasks,
        full_inventory: false,
        members: vec!["m:1".into()],
    };
    survives::<Heartbeat>(&heartbeat, &reply);
}

#[test]
fn every_message_has_a_number_of_its_own() {
    let kinds = [
        WriteChunk::KIND,
        SyncChunk::KIND,
        ReadChunk::KIND,
        SealChunk::KIND,
        DeleteChunk::KIND,
        TrimChunk::KIND,
        CopyChunk::KIND,
        Inventory::KIND,
        Scrub::KIND,
        ServerStatus::KIND,
        Register::KIND,
        Heartbeat::KIND,
        metadata::kind::MUTATE,
        metadata::kind::ASK,
        metadata::kind::SESSION_HEARTBEAT,
        metadata::kind::RECLAIM,
        metadata::kind::CLOSE,
        metadata::kind::BOOTSTRAP,
        metadata::kind::STATUS,
        metadata::kind::RAFT,
    ];
    assert_eq!(kinds.iter().collect::<BTreeSet<_>>().len(), kinds.len());
}

#[test]
fn a_read_is_understood_with_and_without_what_came_later() {
    let read = ReadChunk {
        chunk: ChunkId(300),
        generation: Generation(1),
        offset: 4096,
        length: 8192,
        reader_verifies: true,
    };
    let new = postcard::to_allocvec(&read).expect("encodes");
    // As who doesn't know the field sends it, and reads it.
    let old: ReadChunk = postcard::from_bytes(&new[..new.len() - 1]).expect("the older form");
    assert_eq!(old, ReadChunk { reader_verifies: false, ..read });
    let known: (ChunkId, Generation, u64, u32) = postcard::from_bytes(&new).expect("the rest is read over");
    assert_eq!(known, (ChunkId(300), Generation(1), 4096, 8192));
    for cut in 0..new.len() - 1 {
        assert!(postcard::from_bytes::<ReadChunk>(&new[..cut]).is_err(), "{cut} bytes are no message");
    }
}

/// The encoding of a message is part of the protocol: a change of it is a new protocol version.
#[test]
fn the_encoding_does_not_change_by_accident() {
    let read = ReadChunk {
        chunk: ChunkId(300),
        generation: Generation(1),
        offset: 4096,
        length: 8192,
        reader_verifies: true,
    };
    assert_eq!(postcard::to_allocvec(&read).expect("encodes"), [0xac, 2, 1, 0x80, 0x20, 0x80, 0x40, 1]);
    let errors = [StorageError::NoSuchChunk, StorageError::Gone, StorageError::DiskFull];
    let numbers = errors.map(|error| postcard::to_allocvec(&error).expect("encodes"));
    assert_eq!(numbers, [[0], [9], [10]]);
    let status = Status::service(&StorageError::Gone);
    assert_eq!(status.typed::<StorageError>(), Some(StorageError::Gone));
    assert_eq!(postcard::to_allocvec(&status.code).expect("encodes"), [0]);
}

#[test]
fn random_bytes_are_refused_and_never_panic() {
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..20_000 {
        let kind = 0x200 + random.random_range(0..12);
        let meta: Vec<u8> = (0..random.random_range(0..40)).map(|_| random.random()).collect();
        let request = Request { kind, meta: meta.into(), body: Bytes::new() };
        if let Err(status) = StorageRequest::decode(&request) {
            assert!(matches!(status.code, StatusCode::BadRequest | StatusCode::UnknownKind), "{status}");
        }
        let _ = request.decode::<Heartbeat>();
        let _ = request.decode::<Register>();
    }
}
