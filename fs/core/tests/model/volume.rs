//! The volume under test: the real operations on the ordered map, and the bytes of its chunks beside it.

use std::collections::BTreeMap;

use atoll_core::attributes::Timestamp;
use atoll_core::check::check;
use atoll_core::commands::{Command, INTERNAL, NewPlace, Op, Outcome, TaskDone, ops};
use atoll_core::ids::{ChunkId, ClusterId, InodeId, SegmentIndex, ServerId, SessionId, SlotId};
use atoll_core::keys;
use atoll_core::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use atoll_core::namespace::{Txn, execute};
use atoll_core::query;
use atoll_core::records::{
    ChunkKind, ChunkRecord, DeadRecord, OrphanRecord, Place, Record, TaskRecord, VolumeConfig,
};
use atoll_core::store::{Family, MemStore, Read, prefix_end};

/// The volume under test, with chunk bytes kept beside it.
pub struct Volume {
    pub store: MemStore,
    pub session: SessionId,
    pub sequence: u64,
    pub clock: i64,
    pub chunks: BTreeMap<ChunkId, Vec<u8>>,
    pub open: Option<(ChunkId, ChunkRecord, u64)>,
}

impl Volume {
    pub fn new(config: VolumeConfig) -> Self {
        let mut volume = Volume {
            store: MemStore::default(),
            session: INTERNAL,
            sequence: 0,
            clock: 1_000,
            chunks: BTreeMap::new(),
            open: None,
        };
        let op = Op::from(ops::Bootstrap { cluster: ClusterId(7), hash_key: (1, 2), config });
        assert_eq!(volume.internal(op), Outcome::Done);
        for server in 1..=3 {
            let op = Op::from(ops::PutServer {
                server: ServerId(server),
                address: String::new(),
                labels: BTreeMap::new(),
            });
            assert_eq!(volume.internal(op), Outcome::Done);
        }
        let op = Op::from(ops::OpenSession { client: "test".into(), incarnation: 1, supersedes: None });
        let Outcome::Session(session, _) = volume.internal(op) else { panic!("no session") };
        volume.session = session;
        volume
    }

    pub fn run(&mut self, command: &Command) -> Outcome {
        let mut txn = Txn::open(&self.store).unwrap();
        let outcome = execute(&mut txn, command).unwrap();
        let writes = txn.into_writes();
        self.store.write(writes);
        outcome
    }

    pub fn command(&mut self, session: SessionId, op: Op) -> Command {
        self.clock += 1;
        let time = Timestamp { seconds: self.clock, nanos: 0 };
        if session != INTERNAL {
            self.sequence += 1;
        }
        Command { session, slot: SlotId(1), sequence: self.sequence, time, expect: None, op }
    }

    pub fn internal(&mut self, op: Op) -> Outcome {
        let command = self.command(INTERNAL, op);
        self.run(&command)
    }

    /// Runs a client's operation, and then the same command again: the outcome must be the same and nothing
    /// may change.
    pub fn client(&mut self, op: Op) -> Outcome {
        let command = self.command(self.session, op);
        let outcome = self.run(&command);
        assert_eq!(self.run(&command), outcome, "a repeated command has another outcome: {command:?}");
        outcome
    }

    /// A place for `data` in a chunk.
    pub fn store_in_chunk(&mut self, data: &[u8]) -> NewPlace {
        let full = self.open.as_ref().is_none_or(|(_, record, at)| at + data.len() as u64 > record.capacity);
        if full {
            if let Some((chunk, ..)) = self.open.take() {
                assert_eq!(self.client(Op::from(ops::SealChunk { chunk })), Outcome::Done);
            }
            let replicas = vec![ServerId(1), ServerId(2)];
            let op = Op::from(ops::CreateChunk { kind: ChunkKind::Small, incarnation: 1, replicas });
            let Outcome::Chunk(chunk, record) = self.client(op) else { panic!("no chunk") };
            self.chunks.insert(chunk, vec![0; record.capacity as usize]);
            self.open = Some((chunk, *record, 0));
        }
        let (chunk, record, at) = self.open.as_mut().unwrap();
        let offset = *at;
        self.chunks.get_mut(chunk).unwrap()[offset as usize..offset as usize + data.len()]
            .copy_from_slice(data);
        *at = (offset + data.len() as u64).next_multiple_of(BLOCK_BYTES);
        NewPlace::Chunk { chunk: *chunk, generation: record.generation, offset }
    }

    pub fn read(&self, ino: InodeId) -> Vec<u8> {
        let record = query::inode(&self.store, ino).unwrap();
        let mut content = vec![0; record.size as usize];
        for (segment, pieces) in
            query::segments(&self.store, ino, &record, SegmentIndex(0), u64::MAX).unwrap()
        {
            for piece in pieces {
                let start = (segment.0 * SEGMENT_BYTES) as usize + piece.start as usize;
                let bytes = match piece.place {
                    Place::Inline { .. } => {
                        query::inline_bytes(&self.store, ino, segment, &piece).unwrap().unwrap().to_vec()
                    }
                    Place::Chunk { chunk, offset } => {
                        self.chunks[&chunk][offset as usize..][..piece.length as usize].to_vec()
                    }
                    Place::Unwritten => vec![0; piece.length as usize],
                    Place::Lost => panic!("lost"),
                };
                for (at, byte) in bytes.into_iter().enumerate() {
                    if start + at < content.len() {
                        content[start + at] = byte;
                    }
                }
            }
        }
        content
    }

    /// What the background workers do: purge, trim (the trimmed bytes are destroyed), sweep, migrate.
    pub fn background(&mut self) {
        for (key, value) in self.prefix(&keys::orphans()) {
            let _ = OrphanRecord::decode(&value).unwrap();
            let ino = InodeId(keys::first_number(&key).unwrap());
            while self.internal(Op::from(ops::PurgeOrphan { ino, segments_max: 3 })) == Outcome::More(true) {}
        }
        for (key, _) in self.prefix(&keys::truncations()) {
            let ino = InodeId(keys::first_number(&key).unwrap());
            while self.internal(Op::from(ops::PurgeTruncated { ino, segments_max: 3 })) == Outcome::More(true)
            {
            }
        }
        for (key, value) in self.prefix(&keys::every_task()) {
            let (server, chunk) = (keys::first_number(&key).unwrap(), keys::second_number(&key).unwrap());
            let (server, chunk) = (ServerId(server), ChunkId(chunk));
            let task = TaskRecord::decode(&value).unwrap();
            let mut done = Vec::new();
            if task.delete {
                done.push(TaskDone::Deleted(chunk));
            }
            if let Some((generation, _)) = task.seal {
                done.push(TaskDone::Sealed(chunk, generation));
            }
            if task.trim {
                let mut ranges = Vec::new();
                for (key, value) in self.prefix(&keys::dead_ranges(chunk)) {
                    let first = keys::second_number(&key).unwrap();
                    let dead = DeadRecord::decode(&value).unwrap();
                    let range =
                        (first * BLOCK_BYTES) as usize..((first + dead.blocks) * BLOCK_BYTES) as usize;
                    self.chunks.get_mut(&chunk).unwrap()[range].fill(0xdd);
                    ranges.push((first, dead.blocks));
                }
                done.push(TaskDone::Trimmed(chunk, ranges));
            }
            assert_eq!(self.internal(Op::from(ops::TasksDone { server, done })), Outcome::Done);
        }
    }

    pub fn prefix(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        self.store
            .scan(Family::System, prefix, &prefix_end(prefix), &mut |key, value| {
                found.push((key.to_vec(), value.to_vec()));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        found
    }

    pub fn check(&self) {
        let wrong = check(&self.store).unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
