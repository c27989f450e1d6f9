//! Random commands against a model of a filesystem in plain collections; all invariants between the records
//! are checked along the way, and every refusal must leave no trace.

use std::collections::{BTreeMap, BTreeSet};

use atoll_core::attributes::{AttributeChanges, FileKind, Timestamp};
use atoll_core::check::check;
use atoll_core::commands::{
    AllocateMode, Command, INTERNAL, NewPiece, NewPlace, Op, OrderDone, Outcome, RENAME_EXCHANGE,
};
use atoll_core::error::FsError;
use atoll_core::extents::split;
use atoll_core::ids::{ChunkId, ClusterId, InodeId, ROOT, SegmentIndex, ServerId, SessionId, SlotId};
use atoll_core::keys;
use atoll_core::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use atoll_core::namespace::{Txn, execute};
use atoll_core::query;
use atoll_core::records::{
    ChunkKind, ChunkRecord, DeadRecord, OrderRecord, OrphanRecord, Place, Record, VolumeConfig,
};
use atoll_core::store::{Family, MemStore, Read, prefix_end};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The volume under test, with chunk bytes kept beside it.
struct Volume {
    store: MemStore,
    session: SessionId,
    sequence: u64,
    clock: i64,
    chunks: BTreeMap<ChunkId, Vec<u8>>,
    open: Option<(ChunkId, ChunkRecord, u64)>,
}

impl Volume {
    fn new(config: VolumeConfig) -> Self {
        let mut volume = Volume {
            store: MemStore::default(),
            session: INTERNAL,
            sequence: 0,
            clock: 1_000,
            chunks: BTreeMap::new(),
            open: None,
        };
        let op = Op::Bootstrap { cluster: ClusterId(7), hash_key: (1, 2), config };
        assert_eq!(volume.internal(op), Outcome::Done);
        for server in 1..=3 {
            let op =
                Op::PutServer { server: ServerId(server), address: String::new(), labels: BTreeMap::new() };
            assert_eq!(volume.internal(op), Outcome::Done);
        }
        let op = Op::OpenSession { client: "test".into(), incarnation: 1, supersedes: None };
        let Outcome::Session(session, _) = volume.internal(op) else { panic!("no session") };
        volume.session = session;
        volume
    }

    fn run(&mut self, command: &Command) -> Outcome {
        let mut txn = Txn::open(&self.store).unwrap();
        let outcome = execute(&mut txn, command).unwrap();
        let writes = txn.into_writes();
        self.store.write(writes);
        outcome
    }

    fn command(&mut self, session: SessionId, op: Op) -> Command {
        self.clock += 1;
        let time = Timestamp { seconds: self.clock, nanos: 0 };
        if session != INTERNAL {
            self.sequence += 1;
        }
        Command { session, slot: SlotId(1), sequence: self.sequence, time, expect: None, op }
    }

    fn internal(&mut self, op: Op) -> Outcome {
        let command = self.command(INTERNAL, op);
        self.run(&command)
    }

    /// Runs a client's operation, and then the same command again: the outcome must be the same and nothing
    /// may change.
    fn client(&mut self, op: Op) -> Outcome {
        let command = self.command(self.session, op);
        let outcome = self.run(&command);
        assert_eq!(self.run(&command), outcome, "a repeated command has another outcome: {command:?}");
        outcome
    }

    /// A place for `data` in a chunk.
    fn store_in_chunk(&mut self, data: &[u8]) -> NewPlace {
        let full = self.open.as_ref().is_none_or(|(_, record, at)| at + data.len() as u64 > record.capacity);
        if full {
            if let Some((chunk, ..)) = self.open.take() {
                assert_eq!(self.client(Op::SealChunk { chunk }), Outcome::Done);
            }
            let replicas = vec![ServerId(1), ServerId(2)];
            let op = Op::CreateChunk { kind: ChunkKind::Small, incarnation: 1, replicas };
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

    fn read(&self, ino: InodeId) -> Vec<u8> {
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
    fn background(&mut self) {
        for (key, value) in self.prefix(&keys::orphans()) {
            let _ = OrphanRecord::decode(&value).unwrap();
            let ino = InodeId(keys::first_number(&key).unwrap());
            while self.internal(Op::PurgeOrphan { ino, segments_max: 3 }) == Outcome::More(true) {}
        }
        for (key, _) in self.prefix(&keys::truncations()) {
            let ino = InodeId(keys::first_number(&key).unwrap());
            while self.internal(Op::PurgeTruncated { ino, segments_max: 3 }) == Outcome::More(true) {}
        }
        for (key, value) in self.prefix(&keys::every_order()) {
            let (server, chunk) = (keys::first_number(&key).unwrap(), keys::second_number(&key).unwrap());
            let (server, chunk) = (ServerId(server), ChunkId(chunk));
            let order = OrderRecord::decode(&value).unwrap();
            let mut done = Vec::new();
            if order.delete {
                done.push(OrderDone::Deleted(chunk));
            }
            if let Some((generation, _)) = order.seal {
                done.push(OrderDone::Sealed(chunk, generation));
            }
            if order.trim {
                let mut ranges = Vec::new();
                for (key, value) in self.prefix(&keys::dead_ranges(chunk)) {
                    let first = keys::second_number(&key).unwrap();
                    let dead = DeadRecord::decode(&value).unwrap();
                    let range =
                        (first * BLOCK_BYTES) as usize..((first + dead.blocks) * BLOCK_BYTES) as usize;
                    self.chunks.get_mut(&chunk).unwrap()[range].fill(0xdd);
                    ranges.push((first, dead.blocks));
                }
                done.push(OrderDone::Trimmed(chunk, ranges));
            }
            assert_eq!(self.internal(Op::OrdersDone { server, done }), Outcome::Done);
        }
    }

    fn prefix(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        self.store
            .scan(Family::System, prefix, &prefix_end(prefix), &mut |key, value| {
                found.push((key.to_vec(), value.to_vec()));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        found
    }

    fn check(&self) {
        let wrong = check(&self.store).unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[derive(Clone, Debug, Default)]
struct Node {
    directory: bool,
    content: Vec<u8>,
    entries: BTreeMap<Vec<u8>, InodeId>,
    links: u32,
}

#[derive(Default)]
struct Model {
    nodes: BTreeMap<InodeId, Node>,
}

impl Model {
    fn new() -> Self {
        let mut model = Model::default();
        model.nodes.insert(ROOT, Node { directory: true, links: 1, ..Node::default() });
        model
    }

    fn below(&self, inner: InodeId, outer: InodeId) -> bool {
        inner == outer
            || self.nodes[&outer]
                .entries
                .values()
                .any(|ino| self.nodes.get(ino).is_some_and(|node| node.directory) && self.below(inner, *ino))
    }

    fn drop_link(&mut self, ino: InodeId) {
        let node = self.nodes.get_mut(&ino).unwrap();
        node.links -= 1;
        if node.links == 0 {
            self.nodes.remove(&ino);
        }
    }

    fn unlink(&mut self, parent: InodeId, name: &[u8], directory: bool) -> Result<(), FsError> {
        let ino = *self.nodes[&parent].entries.get(name).ok_or(FsError::NotFound)?;
        match (directory, self.nodes[&ino].directory) {
            (true, false) => return Err(FsError::NotDirectory),
            (false, true) => return Err(FsError::IsDirectory),
            (true, true) if !self.nodes[&ino].entries.is_empty() => return Err(FsError::NotEmpty),
            _ => {}
        }
        self.nodes.get_mut(&parent).unwrap().entries.remove(name);
        self.drop_link(ino);
        Ok(())
    }

    fn rename(
        &mut self,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        exchange: bool,
    ) -> Result<(), FsError> {
        let source = *self.nodes[&from.0].entries.get(from.1).ok_or(FsError::NotFound)?;
        let target = self.nodes[&to.0].entries.get(to.1).copied();
        if exchange {
            let target = target.ok_or(FsError::NotFound)?;
            if source == target {
                return Ok(());
            }
            if from.0 != to.0
                && ((self.nodes[&source].directory && self.below(to.0, source))
                    || (self.nodes[&target].directory && self.below(from.0, target)))
            {
                return Err(FsError::InvalidArgument);
            }
            self.nodes.get_mut(&from.0).unwrap().entries.insert(from.1.to_vec(), target);
            self.nodes.get_mut(&to.0).unwrap().entries.insert(to.1.to_vec(), source);
            return Ok(());
        }
        let directory = self.nodes[&source].directory;
        if directory && from.0 != to.0 && self.below(to.0, source) {
            return Err(FsError::InvalidArgument);
        }
        if let Some(target) = target {
            if target == source {
                return Ok(());
            }
            match (directory, self.nodes[&target].directory) {
                (true, false) => return Err(FsError::NotDirectory),
                (false, true) => return Err(FsError::IsDirectory),
                (true, true) if !self.nodes[&target].entries.is_empty() => return Err(FsError::NotEmpty),
                _ => {}
            }
            self.drop_link(target);
        }
        self.nodes.get_mut(&from.0).unwrap().entries.remove(from.1);
        self.nodes.get_mut(&to.0).unwrap().entries.insert(to.1.to_vec(), source);
        Ok(())
    }
}

fn pick<T: Copy>(rng: &mut StdRng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

fn expect<T>(outcome: &Outcome, model: &Result<T, FsError>, what: &str) {
    match (outcome, model) {
        (Outcome::Refused(error), Err(wanted)) => assert_eq!(error, wanted, "{what}"),
        (Outcome::Refused(error), Ok(_)) => panic!("{what}: refused with {error}, the model allows it"),
        (outcome, Err(wanted)) => panic!("{what}: {outcome:?}, the model refuses with {wanted}"),
        _ => {}
    }
}

fn step(rng: &mut StdRng, volume: &mut Volume, model: &mut Model) {
    let directories: Vec<InodeId> =
        model.nodes.iter().filter(|(_, node)| node.directory).map(|(ino, _)| *ino).collect();
    let files: Vec<InodeId> =
        model.nodes.iter().filter(|(_, node)| !node.directory).map(|(ino, _)| *ino).collect();
    let names: [&[u8]; 6] = [b"a", b"b", b"c", b"d d", b"\xff\xfe", b"..."];
    let (parent, name) = (pick(rng, &directories), pick(rng, &names));
    let (parent2, name2) = (pick(rng, &directories), pick(rng, &names));
    let bytes = |name: &[u8]| Bytes::copy_from_slice(name);
    match rng.random_range(0..14) {
        0 | 1 => {
            let directory = rng.random_bool(0.4);
            let kind = if directory { FileKind::Directory } else { FileKind::File };
            let op = Op::Create {
                parent,
                name: bytes(name),
                ino: None,
                mode: kind.mode_bits() | 0o644,
                uid: 1,
                gid: 2,
                rdev: 0,
                target: Bytes::new(),
                umask: 0,
            };
            let exists = model.nodes[&parent].entries.contains_key(name);
            let outcome = volume.client(op);
            expect(&outcome, &if exists { Err(FsError::Exists) } else { Ok(()) }, "create");
            if let Outcome::Inode(attributes) = outcome {
                model.nodes.insert(attributes.ino, Node { directory, links: 1, ..Node::default() });
                model.nodes.get_mut(&parent).unwrap().entries.insert(name.to_vec(), attributes.ino);
            }
        }
        2 => {
            let directory = rng.random_bool(0.4);
            let outcome = volume.client(Op::Unlink { parent, name: bytes(name), directory });
            expect(&outcome, &model.unlink(parent, name, directory), "unlink");
        }
        3 => {
            let exchange = rng.random_bool(0.3);
            let flags = if exchange { RENAME_EXCHANGE } else { 0 };
            let op = Op::Rename {
                parent,
                name: bytes(name),
                new_parent: parent2,
                new_name: bytes(name2),
                flags,
                whiteout: (0, 0),
            };
            let outcome = volume.client(op);
            expect(&outcome, &model.rename((parent, name), (parent2, name2), exchange), "rename");
        }
        4 if !files.is_empty() => {
            let ino = pick(rng, &files);
            let exists = model.nodes[&parent].entries.contains_key(name);
            let outcome = volume.client(Op::Link { ino, parent, name: bytes(name) });
            expect(&outcome, &if exists { Err(FsError::Exists) } else { Ok(()) }, "link");
            if !exists {
                model.nodes.get_mut(&parent).unwrap().entries.insert(name.to_vec(), ino);
                model.nodes.get_mut(&ino).unwrap().links += 1;
            }
        }
        5 if !files.is_empty() => {
            let ino = pick(rng, &files);
            let size = random_offset(rng);
            let changes = AttributeChanges { size: Some(size), ..AttributeChanges::default() };
            let outcome = volume.client(Op::SetAttributes { ino, changes });
            expect(&outcome, &Ok(()), "truncate");
            model.nodes.get_mut(&ino).unwrap().content.resize(size as usize, 0);
        }
        6 if !files.is_empty() => {
            let ino = pick(rng, &files);
            let (offset, length) = (random_offset(rng), rng.random_range(1..9000));
            let mode = pick(rng, &[AllocateMode::Allocate, AllocateMode::Punch, AllocateMode::Zero]);
            let keep_size = mode == AllocateMode::Punch || rng.random_bool(0.5);
            let outcome =
                volume.client(Op::Allocate { ino, offset, length, mode, keep_size, kill_suidgid: true });
            expect(&outcome, &Ok(()), "allocate");
            let content = &mut model.nodes.get_mut(&ino).unwrap().content;
            let end = (offset + length) as usize;
            if !keep_size && content.len() < end {
                content.resize(end, 0);
            }
            if mode != AllocateMode::Allocate {
                let stop = end.min(content.len());
                if (offset as usize) < stop {
                    content[offset as usize..stop].fill(0);
                }
            }
        }
        7 => volume.background(),
        8 | 9 if !files.is_empty() => copy(rng, volume, model, &files),
        _ if !files.is_empty() => {
            let ino = pick(rng, &files);
            write(rng, volume, model, ino);
        }
        _ => {}
    }
}

fn random_offset(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..4) {
        0 => rng.random_range(0..20_000),
        1 => SEGMENT_BYTES - rng.random_range(0..6000),
        2 => SEGMENT_BYTES + rng.random_range(0..6000),
        _ => rng.random_range(0..3 * SEGMENT_BYTES),
    }
}

fn write(rng: &mut StdRng, volume: &mut Volume, model: &mut Model, ino: InodeId) {
    let append = rng.random_bool(0.2);
    let offset = if append { model.nodes[&ino].content.len() as u64 } else { random_offset(rng) };
    let length = rng.random_range(1..12_000usize);
    let mut data = vec![0u8; length];
    rng.fill(&mut data[..]);
    let reservation = if rng.random_bool(0.5) {
        let bytes = (length as u64 + BLOCK_BYTES).next_multiple_of(BLOCK_BYTES);
        assert_eq!(volume.client(Op::Reserve { bytes, bytes_min: bytes }), Outcome::Reserved(bytes));
        bytes
    } else {
        0
    };
    let outcome = if append {
        let data = NewPlace::Inline(Bytes::from(data.clone()));
        volume.client(Op::Append { ino, data, length: length as u64, kill_suidgid: false, reservation })
    } else {
        let mut pieces = Vec::new();
        if rng.random_bool(0.4) {
            let place = NewPlace::Inline(Bytes::from(data.clone()));
            pieces.push(NewPiece { offset, length: length as u64, place });
        } else {
            for (segment, start, end) in split(offset, offset + length as u64) {
                let at = segment.0 * SEGMENT_BYTES + u64::from(start);
                let part = &data[(at - offset) as usize..][..(end - start) as usize];
                let place = volume.store_in_chunk(part);
                pieces.push(NewPiece { offset: at, length: u64::from(end - start), place });
            }
        }
        // A chunk that filled up in between is sealed already: such a commit is refused as a whole.
        let mtime = Timestamp { seconds: volume.clock, nanos: 1 };
        let op = Op::Write { ino, pieces, mtime, kill_suidgid: true, reservation };
        volume.client(op)
    };
    if outcome == Outcome::Refused(FsError::StaleChunk) {
        return;
    }
    expect(&outcome, &Ok(()), "write");
    let content = &mut model.nodes.get_mut(&ino).unwrap().content;
    let end = offset as usize + length;
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset as usize..end].copy_from_slice(&data);
}

/// Both files refer to the same bytes afterwards; writing one must leave the other alone.
fn copy(rng: &mut StdRng, volume: &mut Volume, model: &mut Model, files: &[InodeId]) {
    let (from, to) = (pick(rng, files), pick(rng, files));
    let (offset, to_offset) = (random_offset(rng), random_offset(rng));
    let length = rng.random_range(1..2 * SEGMENT_BYTES);
    let source = &model.nodes[&from].content;
    let end = (offset + length).min(source.len() as u64);
    let data = source.get(offset as usize..end as usize).unwrap_or_default().to_vec();
    let copied = data.len() as u64;
    let overlaps = from == to && offset < to_offset + copied && to_offset < offset + copied;
    let op = Op::CopyRange { from, offset, to, to_offset, length, kill_suidgid: true };
    match volume.client(op) {
        Outcome::Copied(bytes, _) => assert!(bytes == copied && !(overlaps && copied > 0)),
        outcome => return expect(&outcome, &Err::<(), _>(FsError::InvalidArgument), "copy onto itself"),
    }
    if copied > 0 {
        let content = &mut model.nodes.get_mut(&to).unwrap().content;
        let end = (to_offset + copied) as usize;
        content.resize(content.len().max(end), 0);
        content[to_offset as usize..end].copy_from_slice(&data);
    }
}

fn compare(volume: &Volume, model: &Model) {
    let mut reached = BTreeSet::new();
    for (ino, node) in &model.nodes {
        reached.insert(*ino);
        if node.directory {
            let (_, entries, end) = query::read_directory(&volume.store, *ino, 0, |_| false).unwrap();
            assert!(end);
            let found: BTreeMap<Vec<u8>, InodeId> =
                entries.iter().map(|entry| (entry.name.to_vec(), entry.ino)).collect();
            assert_eq!(found, node.entries, "directory {ino}");
        } else {
            assert_eq!(query::inode(&volume.store, *ino).unwrap().nlink, node.links);
            assert!(volume.read(*ino) == node.content, "content of {ino} differs");
        }
    }
}

fn run_seed(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let config = VolumeConfig { chunk_bytes: 1 << 20, ..VolumeConfig::default() };
    let mut volume = Volume::new(config);
    let mut model = Model::new();
    for at in 0..400 {
        step(&mut rng, &mut volume, &mut model);
        if at % 20 == 0 {
            volume.check();
            compare(&volume, &model);
        }
    }
    volume.background();
    volume.background();
    volume.check();
    compare(&volume, &model);

    // All deleted, nothing may be left.
    assert_eq!(volume.client(Op::CloseSession), Outcome::Done);
    let op = Op::OpenSession { client: "again".into(), incarnation: 2, supersedes: None };
    let Outcome::Session(session, _) = volume.internal(op) else { panic!("no session") };
    (volume.session, volume.sequence) = (session, 0);
    remove_all(&mut volume, &model, ROOT);
    volume.background();
    volume.background();
    volume.check();
    assert_eq!(volume.store.len(Family::Inodes), 1);
    assert_eq!(volume.store.len(Family::Extents), 0);
    assert_eq!(volume.store.len(Family::Inline), 0);
    assert!(volume.prefix(&keys::chunks()).is_empty(), "a chunk is left that nothing refers to");
    assert!(volume.prefix(&keys::every_order()).is_empty());
    let superblock = query::superblock(&volume.store).unwrap();
    assert_eq!((superblock.bytes_used, superblock.bytes_reserved, superblock.inodes_used), (0, 0, 1));
}

fn remove_all(volume: &mut Volume, model: &Model, directory: InodeId) {
    for (name, ino) in &model.nodes[&directory].entries {
        let is_directory = model.nodes[ino].directory;
        if is_directory {
            remove_all(volume, model, *ino);
        }
        let op = Op::Unlink { parent: directory, name: Bytes::from(name.clone()), directory: is_directory };
        assert!(!matches!(volume.client(op), Outcome::Refused(_)));
    }
}

#[test]
fn random_commands_agree_with_a_model_and_keep_every_invariant() {
    // ATOLL_SEED replays one seed, ATOLL_SEEDS runs more.
    if let Ok(seed) = std::env::var("ATOLL_SEED") {
        return run_seed(seed.parse().expect("ATOLL_SEED is a number"));
    }
    let seeds = std::env::var("ATOLL_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    for seed in 0..seeds {
        let failed = std::panic::catch_unwind(|| run_seed(seed)).is_err();
        assert!(!failed, "replay: ATOLL_SEED={seed} cargo test -p atoll-core --test model");
    }
}

/// A file whose segments are more than one command frees: truncations leave work to the purge, and what it has
/// not reached yet must be as good as gone.
#[test]
fn a_big_truncation_is_complete_at_once_however_late_the_purge_comes() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut volume = Volume::new(VolumeConfig::default());
        let name = Bytes::from_static(b"big");
        let op = Op::Create {
            parent: ROOT,
            name: name.clone(),
            ino: None,
            mode: FileKind::File.mode_bits(),
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            umask: 0,
        };
        let Outcome::Inode(attributes) = volume.client(op) else { panic!("no file") };
        let ino = attributes.ino;
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        let mut size = 0u64;
        let segments = 200;
        for _ in 0..12 {
            match rng.random_range(0..3) {
                0 => {
                    for _ in 0..rng.random_range(1..300) {
                        let offset = rng.random_range(0..segments * 4) * SEGMENT_BYTES / 4;
                        let byte = rng.random();
                        let place = NewPlace::Inline(Bytes::copy_from_slice(&[byte]));
                        let pieces = vec![NewPiece { offset, length: 1, place }];
                        let mtime = Timestamp::default();
                        let op = Op::Write { ino, pieces, mtime, kill_suidgid: false, reservation: 0 };
                        expect(&volume.client(op), &Ok(()), "write");
                        model.insert(offset, byte);
                        size = size.max(offset + 1);
                    }
                }
                1 => {
                    let to =
                        if rng.random_bool(0.3) { 0 } else { rng.random_range(0..segments * SEGMENT_BYTES) };
                    let changes = AttributeChanges { size: Some(to), ..AttributeChanges::default() };
                    let outcome = volume.client(Op::SetAttributes { ino, changes });
                    if outcome != Outcome::Refused(FsError::TryAgain) {
                        size = to;
                        model.retain(|offset, _| *offset < to);
                    }
                }
                _ => {
                    for _ in 0..rng.random_range(0..4) {
                        volume.internal(Op::PurgeTruncated { ino, segments_max: 30 });
                    }
                }
            }
            volume.check();
            let record = query::inode(&volume.store, ino).unwrap();
            assert_eq!(record.size, size, "seed {seed}");
            let mut found = BTreeMap::new();
            for (segment, pieces) in
                query::segments(&volume.store, ino, &record, SegmentIndex(0), u64::MAX).unwrap()
            {
                for piece in pieces {
                    let bytes = query::inline_bytes(&volume.store, ino, segment, &piece).unwrap().unwrap();
                    for (at, byte) in bytes.iter().enumerate() {
                        found.insert(segment.0 * SEGMENT_BYTES + u64::from(piece.start) + at as u64, *byte);
                    }
                }
            }
            assert!(found == model, "seed {seed}: content differs");
        }
        assert!(!matches!(
            volume.client(Op::Unlink { parent: ROOT, name, directory: false }),
            Outcome::Refused(_)
        ));
        volume.background();
        volume.check();
        assert_eq!(volume.store.len(Family::Extents), 0);
        assert_eq!(query::superblock(&volume.store).unwrap().bytes_used, 0);
    }
}

/// What a lookup, a quota, a slot and a move promise, one by one.
mod promises {
    use super::*;

    fn create(name: &'static str) -> Op {
        Op::Create {
            parent: ROOT,
            name: Bytes::from_static(name.as_bytes()),
            ino: None,
            mode: FileKind::File.mode_bits() | 0o6755,
            uid: 5,
            gid: 6,
            rdev: 0,
            target: Bytes::new(),
            umask: 0,
        }
    }

    fn file(volume: &mut Volume, name: &'static str) -> InodeId {
        let Outcome::Inode(attributes) = volume.client(create(name)) else { panic!("no file") };
        attributes.ino
    }

    fn inline(ino: InodeId, offset: u64, bytes: &'static [u8], reservation: u64) -> Op {
        let piece = NewPiece { offset, length: bytes.len() as u64, place: NewPlace::Inline(bytes.into()) };
        let mtime = Timestamp::default();
        Op::Write { ino, pieces: vec![piece], mtime, kill_suidgid: true, reservation }
    }

    #[test]
    fn a_slot_answers_a_retry_and_refuses_anything_else_out_of_order() {
        let mut volume = Volume::new(VolumeConfig::default());
        let first = volume.command(volume.session, create("a"));
        let outcome = volume.run(&first);
        assert!(matches!(outcome, Outcome::Inode(_)));
        assert_eq!(volume.run(&first), outcome);
        let other = Command { op: create("b"), ..first.clone() };
        assert_eq!(volume.run(&other), Outcome::Refused(FsError::BadSequence));
        let skipped = Command { sequence: first.sequence + 2, ..other.clone() };
        assert_eq!(volume.run(&skipped), Outcome::Refused(FsError::BadSequence));
        let elsewhere = Command { slot: SlotId(2), sequence: 1, ..other };
        assert!(matches!(volume.run(&elsewhere), Outcome::Inode(_)));
        let stranger = Command { session: SessionId(99), ..first };
        assert_eq!(volume.run(&stranger), Outcome::Refused(FsError::SessionExpired));
    }

    #[test]
    fn a_refusal_is_remembered_as_well() {
        let mut volume = Volume::new(VolumeConfig::default());
        let unlink = Op::Unlink { parent: ROOT, name: Bytes::from_static(b"a"), directory: false };
        let early = volume.command(volume.session, unlink);
        assert_eq!(volume.run(&early), Outcome::Refused(FsError::NotFound));
        let later = Command { slot: SlotId(2), sequence: 1, ..volume.command(volume.session, create("a")) };
        assert!(matches!(volume.run(&later), Outcome::Inode(_)));
        assert_eq!(volume.run(&early), Outcome::Refused(FsError::NotFound));
    }

    #[test]
    fn a_journal_entry_with_another_outcome_than_told_breaks_the_journal() {
        let mut volume = Volume::new(VolumeConfig::default());
        let journal = |volume: &mut Volume, sequence, expect, op| {
            let command = volume.command(volume.session, op);
            volume.run(&Command { slot: SlotId(0), sequence, expect, ..command })
        };
        let told = Some(atoll_core::namespace::hash_of(&Outcome::Done));
        assert_eq!(journal(&mut volume, 1, told, create("a")), Outcome::Refused(FsError::JournalBroken));
        assert_eq!(journal(&mut volume, 2, None, create("b")), Outcome::Refused(FsError::JournalBroken));
        let (_, entries, _) = query::read_directory(&volume.store, ROOT, 0, |_| false).unwrap();
        assert!(entries.is_empty(), "a refused journal entry left a name behind");
        volume.check();
    }

    #[test]
    fn the_next_session_learns_what_became_of_the_last_operations() {
        let mut volume = Volume::new(VolumeConfig::default());
        let outcome = volume.client(create("a"));
        let (old, sequence) = (volume.session, volume.sequence);
        let op = Op::OpenSession { client: "next".into(), incarnation: 2, supersedes: Some(old) };
        let Outcome::Session(_, previous) = volume.internal(op) else { panic!("no session") };
        assert_eq!(previous, vec![(SlotId(1), sequence, outcome)]);
        assert_eq!(volume.client(create("b")), Outcome::Refused(FsError::SessionExpired));
    }

    #[test]
    fn quota_is_exact_and_a_reservation_never_fails_late() {
        let config =
            VolumeConfig { bytes_total: 3 * BLOCK_BYTES, inodes_total: 3, ..VolumeConfig::default() };
        let mut volume = Volume::new(config);
        let (one, two) = (file(&mut volume, "one"), file(&mut volume, "two"));
        assert_eq!(volume.client(create("three")), Outcome::Refused(FsError::NoSpace));
        let reserve = |bytes| Op::Reserve { bytes, bytes_min: bytes };
        assert_eq!(volume.client(reserve(2 * BLOCK_BYTES)), Outcome::Reserved(2 * BLOCK_BYTES));
        assert_eq!(volume.client(reserve(2 * BLOCK_BYTES)), Outcome::Refused(FsError::NoSpace));
        expect(&volume.client(inline(one, 0, b"x", 0)), &Ok(()), "the free block");
        expect(&volume.client(inline(two, 0, b"x", 0)), &Err::<(), _>(FsError::NoSpace), "nothing free");
        expect(&volume.client(inline(two, 0, b"x", BLOCK_BYTES)), &Ok(()), "promised");
        // Overwriting costs nothing, and a promise of one block pays for one.
        expect(&volume.client(inline(two, 0, b"yy", 0)), &Ok(()), "overwrite");
        expect(&volume.client(inline(two, BLOCK_BYTES, b"z", BLOCK_BYTES)), &Ok(()), "rest of the promise");
        let superblock = query::superblock(&volume.store).unwrap();
        assert_eq!((superblock.bytes_used, superblock.bytes_reserved), (3 * BLOCK_BYTES - BLOCK_BYTES, 0));
        volume.check();
    }

    #[test]
    fn a_write_clears_set_id_bits_and_a_chown_too() {
        let mut volume = Volume::new(VolumeConfig::default());
        let ino = file(&mut volume, "a");
        assert_eq!(query::inode(&volume.store, ino).unwrap().mode & 0o7777, 0o6755);
        volume.client(inline(ino, 0, b"x", 0));
        assert_eq!(query::inode(&volume.store, ino).unwrap().mode & 0o7777, 0o755);
        let again = AttributeChanges { mode: Some(0o6755), ..AttributeChanges::default() };
        volume.client(Op::SetAttributes { ino, changes: again });
        let chown = AttributeChanges { uid: Some(9), ..AttributeChanges::default() };
        volume.client(Op::SetAttributes { ino, changes: chown });
        let record = query::inode(&volume.store, ino).unwrap();
        assert_eq!((record.uid, record.mode & 0o7777), (9, 0o755));
    }

    #[test]
    fn a_move_gives_up_if_the_range_changed_in_between() {
        let mut volume = Volume::new(VolumeConfig { inline_file_bytes: 4, ..VolumeConfig::default() });
        let ino = file(&mut volume, "a");
        volume.client(inline(ino, 0, b"0123456789", 0));
        assert_eq!(volume.prefix(&keys::migrations()).len(), 1, "the segment isn't marked for the move");
        let record = query::inode(&volume.store, ino).unwrap();
        let segments = query::segments(&volume.store, ino, &record, SegmentIndex(0), 1).unwrap();
        let expected = segments[0].1.clone();
        let op = Op::CreateChunk {
            kind: ChunkKind::Small,
            incarnation: 1,
            replicas: vec![ServerId(1), ServerId(2)],
        };
        let Outcome::Chunk(chunk, chunk_record) = volume.internal(op) else { panic!("no chunk") };
        let generation = chunk_record.generation;
        let relocate = |offset| Op::Relocate {
            ino,
            segment: SegmentIndex(0),
            expected: expected.clone(),
            chunk,
            generation,
            offset,
        };
        volume.client(inline(ino, 3, b"X", 0));
        assert_eq!(volume.internal(relocate(0)), Outcome::Refused(FsError::Changed));
        let expected = query::segments(
            &volume.store,
            ino,
            &query::inode(&volume.store, ino).unwrap(),
            SegmentIndex(0),
            1,
        )
        .unwrap()[0]
            .1
            .clone();
        let content = volume.read(ino);
        volume.chunks.insert(chunk, content.clone());
        let op = Op::Relocate { ino, segment: SegmentIndex(0), expected, chunk, generation, offset: 0 };
        assert_eq!(volume.internal(op), Outcome::Done);
        assert_eq!(volume.read(ino), content);
        assert!(volume.prefix(&keys::migrations()).is_empty());
        volume.check();
    }

    #[test]
    fn an_evicted_writer_can_commit_nothing() {
        let mut volume = Volume::new(VolumeConfig { copies_min: 1, ..VolumeConfig::default() });
        let ino = file(&mut volume, "a");
        let place = volume.store_in_chunk(b"data");
        let write = Op::Write {
            ino,
            pieces: vec![NewPiece { offset: 0, length: 4, place }],
            mtime: Timestamp::default(),
            kill_suidgid: false,
            reservation: 0,
        };
        let (old, old_sequence) = (volume.session, volume.sequence);
        let op = Op::OpenSession { client: "other".into(), incarnation: 1, supersedes: None };
        let Outcome::Session(other, _) = volume.internal(op) else { panic!("no session") };
        (volume.session, volume.sequence) = (other, 0);
        assert_eq!(volume.client(write.clone()), Outcome::Refused(FsError::StaleChunk), "another's chunk");
        assert_eq!(volume.internal(Op::ExpireSession { session: old }), Outcome::Done);
        (volume.session, volume.sequence) = (old, old_sequence);
        assert_eq!(volume.client(write), Outcome::Refused(FsError::SessionExpired));
        assert_eq!(
            volume.client(Op::Bootstrap {
                cluster: ClusterId(1),
                hash_key: (0, 0),
                config: VolumeConfig::default()
            }),
            Outcome::Refused(FsError::SessionExpired)
        );
        volume.check();
    }

    #[test]
    fn a_refusal_by_the_leader_is_kept_for_the_retry_that_could_be_let_through() {
        let mut volume = Volume::new(VolumeConfig::default());
        let asked = volume.command(volume.session, create("a"));
        let request = atoll_core::namespace::request_hash(&asked.op);
        let refused = Command { op: Op::Refuse { error: FsError::NoSpace, request }, ..asked.clone() };
        assert_eq!(volume.run(&refused), Outcome::Refused(FsError::NoSpace));
        assert_eq!(volume.run(&asked), Outcome::Refused(FsError::NoSpace));
    }
}
