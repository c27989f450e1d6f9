//! Records that say what can't be, and any commands on them: each command has an outcome. A member that panicked, or
//! stopped, would do so again whenever it applied that entry, and so would all others.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use atoll_core::attributes::{AttributeChanges, KillPriv, Timestamp};
use atoll_core::check::{Kind, Subject, check};
use atoll_core::commands::{
    ClientOp, Command, FallocateMode, INTERNAL, NewPiece, NewPlace, Op, TaskDone, XattrMode, ops,
};
use atoll_core::error::FsError;
use atoll_core::ids::{
    ChunkId, ClusterId, Generation, InodeId, ROOT, SegmentIndex, ServerId, SessionId, SlotId,
};
use atoll_core::keys;
use atoll_core::locks::{LockClass, LockMode, LockRange, LockRecord, LockRequest, LockScope};
use atoll_core::namespace::{Txn, execute};
use atoll_core::query;
use atoll_core::records::{
    ChunkKind, ChunkRecord, DeadRecord, EntryRecord, InodeRecord, OrphanRecord, Record, SegmentRecord,
    ServerRecord, SessionRecord, SlotRecord, Superblock, TaskRecord, VolumeConfig,
};
use atoll_core::seek::{Seek, seek};
use atoll_core::store::{Family, MemStore, Read, prefix_end};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const SESSION: SessionId = SessionId(1);
const EXTREMES: [u64; 14] = [
    0,
    1,
    4095,
    1 << 20,
    (1 << 20) - 1,
    u8::MAX as u64,
    u16::MAX as u64,
    i32::MAX as u64,
    u32::MAX as u64,
    u32::MAX as u64 - 1,
    i64::MAX as u64,
    i64::MAX as u64 - 4095,
    u64::MAX - 4095,
    u64::MAX,
];

fn extreme(rng: &mut StdRng) -> u64 {
    EXTREMES[rng.random_range(0..EXTREMES.len())]
}

struct Volume {
    store: MemStore,
    sequence: u64,
    clock: i64,
}

impl Volume {
    fn new() -> Volume {
        let mut volume = Volume { store: MemStore::default(), sequence: 0, clock: 0 };
        let config = VolumeConfig { copies: 1, copies_min: 1, ..VolumeConfig::default() };
        volume.run(INTERNAL, Op::from(ops::Bootstrap { cluster: ClusterId(7), hash_key: (1, 2), config }));
        for server in 1..=2 {
            let op = Op::from(ops::PutServer {
                server: ServerId(server),
                address: String::new(),
                labels: BTreeMap::new(),
            });
            volume.run(INTERNAL, op);
        }
        let op = Op::from(ops::OpenSession { client: "test".into(), incarnation: 1, supersedes: None });
        volume.run(INTERNAL, op);
        volume
    }

    fn run(&mut self, session: SessionId, op: Op) {
        self.clock += 1;
        if session != INTERNAL {
            let slot =
                query::load::<SlotRecord>(&self.store, Family::System, &keys::slot(session, SlotId(1)));
            self.sequence = slot.ok().flatten().map_or(0, |slot| slot.sequence).wrapping_add(1);
        }
        let time = Timestamp { seconds: self.clock, nanos: 0 };
        let command = Command { session, slot: SlotId(1), sequence: self.sequence, time, expect: None, op };
        let mut txn = Txn::open(&self.store).unwrap();
        execute(&mut txn, &command).expect("a record is no reason to stop");
        let writes = txn.into_writes();
        self.store.write(writes);
    }

    fn all(&self) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        for family in Family::ALL {
            let visit = &mut |key: &[u8], value: &[u8]| {
                all.push((family, key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            };
            self.store.scan(family, &[], &prefix_end(&[]), visit).unwrap();
        }
        all
    }
}

/// What of a record may be changed: its numbers, its flags, and some of its lists.
fn gather<'a>(value: &'a mut Value, leaves: &mut Vec<&'a mut Value>, rng: &mut StdRng) {
    if value.is_array() && rng.random_bool(0.1) {
        leaves.push(value);
        return;
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| gather(item, leaves, rng)),
        Value::Object(fields) => fields.values_mut().for_each(|field| gather(field, leaves, rng)),
        Value::Null | Value::String(_) => {}
        leaf => leaves.push(leaf),
    }
}

/// Changes one of them.
fn bend(rng: &mut StdRng, value: &mut Value) {
    let mut leaves = Vec::new();
    gather(value, &mut leaves, rng);
    if leaves.is_empty() {
        return;
    }
    let chosen = rng.random_range(0..leaves.len());
    match &mut *leaves[chosen] {
        Value::Bool(flag) => *flag = !*flag,
        Value::Array(items) => match rng.random_range(0..3) {
            0 => items.clear(),
            1 => items.reverse(),
            _ => {
                let last = items.last().cloned();
                items.extend(last);
            }
        },
        number => *number = if rng.random_bool(0.1) { i64::MIN.into() } else { extreme(rng).into() },
    }
}

fn bent<R: Record>(rng: &mut StdRng, stored: &[u8]) -> Option<Vec<u8>> {
    let record = R::decode(stored).ok()?;
    let whole = serde_json::to_value(&record).unwrap();
    // A number that doesn't fit into the field is no record.
    (0..20).find_map(|_| {
        let mut value = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            bend(rng, &mut value);
        }
        serde_json::from_value::<R>(value).ok().map(|record| record.encode())
    })
}

fn damage(rng: &mut StdRng, volume: &mut Volume) {
    let all = volume.all();
    let (family, mut key, stored) = all[rng.random_range(0..all.len())].clone();
    let starts = |prefix: Vec<u8>| key.starts_with(&prefix);
    let is_superblock = key == keys::superblock() && family == Family::System;
    let damaged = match family {
        _ if rng.random_bool(0.05) && !is_superblock => Some(stored[..stored.len() / 2].to_vec()),
        Family::Inodes => bent::<InodeRecord>(rng, &stored),
        Family::Names => bent::<EntryRecord>(rng, &stored),
        Family::Extents => bent::<SegmentRecord>(rng, &stored),
        Family::Inline => Some(vec![1; rng.random_range(0..stored.len() + 1)]),
        Family::Xattrs => Some(vec![2; rng.random_range(0..64)]),
        Family::System if is_superblock => bent::<Superblock>(rng, &stored),
        Family::System if starts(keys::chunks()) => bent::<ChunkRecord>(rng, &stored),
        Family::System if starts(keys::sessions()) => bent::<SessionRecord>(rng, &stored),
        Family::System if starts(keys::servers()) => bent::<ServerRecord>(rng, &stored),
        Family::System if starts(keys::orphans()) => bent::<OrphanRecord>(rng, &stored),
        Family::System if starts(keys::all_tasks()) => bent::<TaskRecord>(rng, &stored),
        Family::System => bent::<SlotRecord>(rng, &stored)
            .filter(|_| starts(keys::slots(SESSION)))
            .or_else(|| bent::<DeadRecord>(rng, &stored).filter(|_| starts(keys::all_dead_ranges())))
            .or_else(|| bent::<LockRecord>(rng, &stored)),
    };
    let damaged = match rng.random_range(0..10) {
        0 if !is_superblock => None,
        _ => Some(damaged.unwrap_or(stored)),
    };
    // Beside what was there.
    if rng.random_bool(0.1) && key.len() >= 8 && !is_superblock {
        let at = key.len() - 8;
        key[at..].copy_from_slice(&extreme(rng).to_be_bytes());
    }
    volume.store.write([(family, key, damaged)]);
}

fn ino(rng: &mut StdRng) -> InodeId {
    match rng.random_range(0..20) {
        0 => InodeId(extreme(rng)),
        1..4 => ROOT,
        _ => InodeId(rng.random_range(16..26)),
    }
}

fn name(rng: &mut StdRng) -> Bytes {
    Bytes::from(format!("n{}", rng.random_range(0..8)))
}

fn number(rng: &mut StdRng, most: u64) -> u64 {
    if rng.random_bool(0.1) { extreme(rng) } else { rng.random_range(0..most) }
}

fn place(rng: &mut StdRng, store: &MemStore, length: u64) -> NewPlace {
    let chunk = ChunkId(rng.random_range(1..5));
    match query::chunk(store, chunk).ok().flatten() {
        Some(record) if rng.random_bool(0.7) => {
            let offset = if rng.random_bool(0.1) { extreme(rng) } else { record.committed } / 4096;
            NewPlace::Chunk { chunk, generation: record.generation, offset: offset.saturating_mul(4096) }
        }
        _ => NewPlace::Inline(vec![7; length.min(8192) as usize].into()),
    }
}

fn subject(rng: &mut StdRng) -> Subject {
    let (ino, other) = (ino(rng), ino(rng));
    let segment = SegmentIndex(number(rng, 3));
    let chunk = ChunkId(number(rng, 5));
    match rng.random_range(0..11) {
        0 => Subject::Volume,
        1 => Subject::Inode(ino),
        2 => {
            let hash = keys::name_hash((1, 2), &name(rng));
            Subject::Entry(ino, keys::cookie(hash, 0))
        }
        3 => Subject::Parent(ino, other, name(rng).to_vec()),
        4 => Subject::Segment(ino, segment),
        5 => Subject::Inline(ino, segment, number(rng, 20)),
        6 => Subject::Reference(chunk, ino, segment),
        7 => Subject::Orphan(ino),
        8 => Subject::Lock(LockClass::Record, ino, SESSION, number(rng, 3)),
        9 => Subject::Locked(SESSION, ino),
        _ => Subject::Chunk(chunk),
    }
}

fn clients(rng: &mut StdRng, store: &MemStore) -> Op {
    let (one, other) = (ino(rng), ino(rng));
    match rng.random_range(0..24) {
        0..4 => Op::from(ops::Create {
            parent: one,
            name: name(rng),
            ino: rng.random_bool(0.2).then_some(other),
            mode: if rng.random_bool(0.4) { 0o040_755 } else { 0o100_644 },
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            umask: 0,
        }),
        4 => Op::from(ops::Tmpfile { parent: one, mode: 0o600, uid: 0, gid: 0, umask: 0, linkable: true }),
        5 => Op::from(ops::Link { ino: one, parent: other, name: name(rng) }),
        6 | 7 => Op::from(ops::Unlink { parent: one, name: name(rng), directory: rng.random_bool(0.3) }),
        8 | 9 => Op::from(ops::Rename {
            parent: one,
            name: name(rng),
            new_parent: other,
            new_name: name(rng),
            flags: [0, 0, 1, 2, 4][rng.random_range(0..5)],
            whiteout: (0, 0),
        }),
        10 => {
            let size = Some(number(rng, 5 << 20));
            Op::from(ops::SetAttr {
                ino: one,
                changes: AttributeChanges { size, ..AttributeChanges::default() },
            })
        }
        11 | 12 => {
            let pieces = (0..rng.random_range(1..4)).map(|_| {
                let length = number(rng, 8192);
                NewPiece { offset: number(rng, 3 << 20), length, place: place(rng, store, length) }
            });
            let (pieces, reservation) = (pieces.collect(), 0);
            let mtime = Timestamp::default();
            Op::from(ops::Write {
                ino: one,
                pieces,
                mtime,
                kill_priv: KillPriv::SETID | KillPriv::SGID | KillPriv::CAPABILITY,
                reservation,
            })
        }
        13 => {
            let length = number(rng, 8192);
            let (data, reservation) = (place(rng, store, length), number(rng, 8192));
            Op::from(ops::Append { ino: one, data, length, kill_priv: KillPriv::NONE, reservation })
        }
        14 => Op::from(ops::Fallocate {
            ino: one,
            offset: number(rng, 3 << 20),
            length: rng.random_range(0..2 << 20),
            mode: [FallocateMode::Allocate, FallocateMode::Punch, FallocateMode::Zero]
                [rng.random_range(0..3)],
            keep_size: rng.random_bool(0.5),
            kill_priv: KillPriv::NONE,
        }),
        15 => Op::from(ops::SetXattr {
            ino: one,
            name: "user.a".into(),
            value: "b".into(),
            mode: XattrMode::Set,
        }),
        16 => Op::from(ops::RemoveXattr { ino: one, name: "user.a".into() }),
        17 => Op::from(ops::CopyFileRange {
            from: one,
            offset: number(rng, 3 << 20),
            to: other,
            to_offset: number(rng, 3 << 20),
            length: number(rng, 3 << 20),
            kill_priv: KillPriv::NONE,
        }),
        18 => Op::from(ops::SetLock(LockRequest {
            ino: one,
            class: LockClass::Record,
            owner: rng.random_range(0..3),
            handle: 1,
            pid: 1,
            mode: [None, Some(LockMode::Shared), Some(LockMode::Exclusive)][rng.random_range(0..3)],
            range: LockRange { start: rng.random_range(0..50), end: rng.random_range(50..100) },
        })),
        19 => Op::from(ops::ReleaseLocks { ino: one, scope: LockScope::Handle(1) }),
        20 => {
            Op::from(ops::CreateChunk { kind: ChunkKind::Small, incarnation: 1, replicas: vec![ServerId(1)] })
        }
        21 => {
            let (chunk, generation) = (ChunkId(rng.random_range(1..5)), Generation(rng.random_range(1..3)));
            Op::from(ops::ShrinkChunk { chunk, generation, without: vec![ServerId(2)] })
        }
        22 => Op::from(ops::Reserve { bytes: number(rng, 4).saturating_mul(4096), bytes_min: 0 }),
        _ => Op::from(ops::Unreserve { bytes: number(rng, 8192) }),
    }
}

fn services(rng: &mut StdRng, store: &MemStore) -> Op {
    let ino = ino(rng);
    let chunk = ChunkId(rng.random_range(1..5));
    match rng.random_range(0..14) {
        0..2 => Op::from(ops::PurgeOrphan { ino, segments_max: 2 }),
        2 => Op::from(ops::PurgeTruncated { ino, segments_max: 2 }),
        3 => Op::from(ops::SweepChunk { chunk }),
        4 => Op::from(ops::SealChunk { chunk }),
        5 => {
            let ranges = vec![(number(rng, 5), number(rng, 5))];
            let done = vec![TaskDone::Sealed(chunk, Generation(1)), TaskDone::Trimmed(chunk, ranges)];
            Op::from(ops::TasksDone { server: ServerId(1), done })
        }
        6 => Op::from(ops::DeleteStray { server: ServerId(2), chunks: vec![chunk] }),
        7 => {
            let segment = SegmentIndex(number(rng, 3));
            let found = query::load::<SegmentRecord>(store, Family::Extents, &keys::segment(ino, segment))
                .ok()
                .flatten();
            let expected = found.map_or_else(Vec::new, |found| found.pieces);
            Op::from(ops::Relocate { ino, segment, expected, chunk, generation: Generation(1), offset: 0 })
        }
        8 => {
            let generation =
                query::chunk(store, chunk).ok().flatten().map_or(Generation(1), |it| it.generation);
            Op::from(ops::SetReplicas { chunk, generation, replicas: vec![ServerId(rng.random_range(1..3))] })
        }
        9 if rng.random_bool(0.1) => Op::from(ops::ExpireSession { session: SESSION }),
        _ => {
            let kind = Kind::ALL[rng.random_range(0..Kind::ALL.len())];
            Op::from(ops::Fsck { kind, subject: subject(rng) })
        }
    }
}

fn step(rng: &mut StdRng, volume: &mut Volume) {
    let (session, op) = match rng.random_bool(0.7) {
        true => (SESSION, clients(rng, &volume.store)),
        false => (INTERNAL, services(rng, &volume.store)),
    };
    let shown = format!("{op:?}");
    if catch_unwind(AssertUnwindSafe(|| volume.run(session, op))).is_err() {
        panic!("at {shown}");
    }
}

/// What a server answers with.
fn look(volume: &Volume) {
    let _ = check(&volume.store);
    for ino in (16..26).map(InodeId) {
        let Ok(record) = query::inode(&volume.store, ino) else { continue };
        let _ = record.attributes(ino);
        for kind in [Seek::Data, Seek::Hole] {
            let _ = seek(&volume.store, ino, &record, 0, kind);
        }
        let found = query::segments(&volume.store, ino, &record, SegmentIndex(0), 100);
        for (segment, pieces) in found.unwrap_or_default() {
            for piece in pieces {
                let _ = query::inline_bytes(&volume.store, ino, segment, &piece);
            }
        }
        let _ = query::read_directory(&volume.store, ino, 0, |_| false);
    }
}

#[test]
fn any_command_on_any_damaged_record_has_an_outcome() {
    let seeds = std::env::var("DAMAGED_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(300);
    for seed in 0..seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut volume = Volume::new();
        let course = catch_unwind(AssertUnwindSafe(|| {
            (0..60).for_each(|_| step(&mut rng, &mut volume));
            for _ in 0..30 {
                damage(&mut rng, &mut volume);
                step(&mut rng, &mut volume);
                step(&mut rng, &mut volume);
            }
            look(&volume);
        }));
        assert!(course.is_ok(), "seed {seed}");
    }
}

#[test]
fn a_number_that_is_not_an_entrys_own_is_refused() {
    let mut volume = Volume::new();
    let create = |name: &str, ino: Option<u64>| {
        Op::Client(ClientOp::Create(ops::Create {
            parent: ROOT,
            name: Bytes::copy_from_slice(name.as_bytes()),
            ino: ino.map(InodeId),
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            umask: 0,
        }))
    };
    volume.run(SESSION, create("a", None));
    volume.run(SESSION, create("b", None));
    let before = volume.all();
    // The root, one that is kept for later uses, live ones, one that comes next, none at all.
    for (number, ino) in [1, 2, 16, 17, 18, u64::MAX].into_iter().enumerate() {
        let mut txn = Txn::open(&volume.store).unwrap();
        let command = Command {
            session: INTERNAL,
            slot: SlotId(0),
            sequence: 0,
            time: Timestamp::default(),
            expect: None,
            op: create(&format!("c{number}"), Some(ino)),
        };
        let outcome = execute(&mut txn, &command).unwrap();
        assert_eq!(outcome.into_result(), Err(FsError::InvalidArgument), "{ino}");
        volume.store.write(txn.into_writes());
    }
    assert_eq!(volume.all(), before, "nothing was changed");
    assert_eq!(check(&volume.store).unwrap(), Vec::<String>::new());
}
