//! What is carried out here comes out as it does where all records are: random operations on both.

use atoll_core::attributes::{AttributeChanges, FileKind, KillPriv, Timestamp};
use atoll_core::commands::{
    ClientOp, Command, Context, INTERNAL, NewPiece, NewPlace, Op, Outcome, RENAME_EXCHANGE, RENAME_NOREPLACE,
    XattrMode, ops, projection,
};
use atoll_core::ids::{ClusterId, ROOT, SlotId, journaled_inode};
use atoll_core::keys;
use atoll_core::namespace::{Txn, execute};
use atoll_core::query::{self, OpError};
use atoll_core::records::{EntryRecord, InodeRecord, Record};
use atoll_core::store::{MemStore, prefix_end};
use atoll_proto::metadata::InodeRecords;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ops::{can_be_journaled, scope};
use super::*;

/// All records, and what a client knows of them.
struct Twins {
    store: MemStore,
    keeping: Keeping,
    sequence: u64,
    clock: i64,
    here: usize,
    elsewhere: usize,
    inodes: Vec<InodeId>,
}

impl Twins {
    fn new(bytes_max: usize) -> Twins {
        let mut store = MemStore::default();
        let mut run = |op: Op| {
            let time = Timestamp { seconds: 1, nanos: 0 };
            let command = Command { session: INTERNAL, slot: SlotId(0), sequence: 0, time, expect: None, op };
            let mut txn = Txn::open(&store).unwrap();
            let outcome = execute(&mut txn, &command).unwrap();
            let writes = txn.into_writes();
            store.write(writes);
            outcome
        };
        let config = VolumeConfig { exclusive: true, ..VolumeConfig::default() };
        run(Op::from(ops::Bootstrap { cluster: ClusterId(7), hash_key: (1, 2), config }));
        let opened =
            run(Op::from(ops::OpenSession { client: "a:b".into(), incarnation: 1, supersedes: None }));
        let Outcome::Session(id, _) = opened else { panic!("no session") };
        let superblock = query::superblock(&store).unwrap().encode();
        let keeping = Keeping {
            current: Current { id, epoch: 1 },
            next: 1,
            queue: VecDeque::new(),
            bytes: 0,
            cache: Cache::new(superblock, bytes_max),
            refused: HashMap::new(),
        };
        Twins { store, keeping, sequence: 0, clock: 1, here: 0, elsewhere: 0, inodes: vec![ROOT] }
    }

    fn run(&mut self, slot: u32, sequence: u64, expect: Option<u64>, op: ClientOp) -> Outcome {
        let time = Timestamp { seconds: self.clock, nanos: 0 };
        let session = self.keeping.current.id;
        let command = Command { session, slot: SlotId(slot), sequence, time, expect, op: Op::from(op) };
        let mut txn = Txn::open(&self.store).unwrap();
        let outcome = execute(&mut txn, &command).unwrap();
        let writes = txn.into_writes();
        self.store.write(writes);
        outcome
    }

    /// Carries it out here if that can be, and where all records are.
    fn carry_out(&mut self, op: ClientOp) {
        self.clock += 1;
        let now = Timestamp { seconds: self.clock, nanos: 0 };
        let session = self.keeping.current.id;
        let number = journaled_inode(session, self.keeping.next).unwrap();
        let journaled = match &op {
            ClientOp::Create(op) => {
                self.keeping.cache.begin_inode(number);
                ClientOp::from(ops::Create { ino: Some(number), ..op.clone() })
            }
            op => op.clone(),
        };
        let context = Context { session, now, journaled: Some(number) };
        let done = match can_be_journaled(&op) {
            true => self.keeping.carry_out(&journaled, &context, &HashMap::new()),
            false => None,
        };
        let outcome = match done {
            Some(done) => {
                self.here += 1;
                self.keeping.cache.write(done.writes);
                let sequence = self.keeping.next;
                self.keeping.next += 1;
                let expect = Some(projection(&done.outcome));
                let outcome = self.run(0, sequence, expect, journaled.clone());
                assert_eq!(outcome, done.outcome, "{journaled:?}");
                outcome
            }
            None => {
                self.elsewhere += 1;
                self.keeping.cache.end_inode(number);
                self.sequence += 1;
                let outcome = self.run(1, self.sequence, None, op.clone());
                if !matches!(outcome, Outcome::Refused(_)) {
                    self.keeping.follow(op.clone(), scope(&op), &outcome, now);
                }
                outcome
            }
        };
        if let (ClientOp::Create(_), Outcome::Inode(made)) = (&op, &outcome) {
            self.inodes.push(made.ino);
        }
    }

    fn pairs(&self, family: Family, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let mut found = Vec::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            std::ops::ControlFlow::Continue(())
        };
        self.store.scan(family, prefix, &prefix_end(prefix), visit).unwrap();
        found
    }

    /// Asks for everything about an inode.
    fn adopt(&mut self, ino: InodeId) {
        let Some(inode) = self.store.get(Family::Inodes, &keys::inode(ino)).unwrap() else { return };
        let entries = self.pairs(Family::Names, &keys::entries(ino));
        let child = |value: &Bytes| match EntryRecord::decode(value).unwrap() {
            EntryRecord::Entry { ino, .. } => {
                Some((ino, self.store.get(Family::Inodes, &keys::inode(ino)).unwrap().unwrap().into()))
            }
            EntryRecord::Removed => None,
        };
        let children = entries.iter().filter_map(|(_, value)| child(value)).collect();
        let xattrs = Some(self.pairs(Family::Xattrs, &keys::inode(ino)));
        let records = InodeRecords { inode: inode.into(), xattrs, entries, children, next: None };
        self.keeping.cache.learn(ino, vec![records]);
    }

    /// A directory that can be listed here is listed as where all records are, page by page.
    fn check_listing(&self, ino: InodeId) {
        for (plus, bytes_max) in [(false, 100), (true, 100), (true, u32::MAX)] {
            let mut cookie = 0;
            loop {
                let page = |from: &dyn Read| query::directory_page(from, ino, cookie, plus, bytes_max);
                let here = page(&self.keeping.cache);
                if matches!(here, Err(OpError::Store(StoreError::NotCached))) {
                    return;
                }
                let Ok(here) = here else {
                    assert!(page(&self.store).is_err(), "{ino}");
                    return;
                };
                assert_eq!(here, page(&self.store).unwrap(), "{ino} after {cookie}");
                match here.entries.last() {
                    Some(last) if !here.end => cookie = last.cookie,
                    _ => break,
                }
            }
        }
    }

    /// What is known is so.
    fn check(&self) {
        let cache = &self.keeping.cache;
        for ino in self.inodes.iter().copied().filter(|ino| cache.knows(*ino)) {
            let stored = self.store.get(Family::Inodes, &keys::inode(ino)).unwrap();
            let stored = InodeRecord::decode(&stored.expect("an inode that is gone is known")).unwrap();
            let known = cache.inode(ino).unwrap();
            assert_eq!(known.attributes(ino), stored.attributes(ino));
            assert_eq!((known.entries, known.parent), (stored.entries, stored.parent));
            self.check_listing(ino);
            for (family, prefix) in [(Family::Names, keys::entries(ino)), (Family::Xattrs, keys::inode(ino))]
            {
                let mut found = Vec::new();
                let visit = &mut |key: &[u8], value: &[u8]| {
                    found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                    std::ops::ControlFlow::Continue(())
                };
                if cache.scan(family, &prefix, &prefix_end(&prefix), visit).is_ok() {
                    assert_eq!(found, self.pairs(family, &prefix), "{family:?} of {ino}");
                }
            }
        }
    }
}

fn random_op(random: &mut StdRng, inodes: &[InodeId]) -> ClientOp {
    let name = |random: &mut StdRng| Bytes::from(format!("n{}", random.random_range(0..12)));
    let ino = |random: &mut StdRng| inodes[random.random_range(0..inodes.len())];
    let (mut parent, mut new_parent) = (ino(random), ino(random));
    for parent in [&mut parent, &mut new_parent] {
        if random.random_bool(0.6) {
            *parent = ROOT;
        }
    }
    match random.random_range(0..12) {
        0..=3 => {
            let (kind, target) = match random.random_range(0..5) {
                0 | 1 => (FileKind::Directory, Bytes::new()),
                2 => (FileKind::Symlink, Bytes::from_static(b"somewhere")),
                _ => (FileKind::File, Bytes::new()),
            };
            let (mode, umask) = (kind.mode_bits() | 0o2775, 0o022);
            let name = name(random);
            ops::Create { parent, name, ino: None, mode, uid: 1, gid: 2, rdev: 0, target, umask }.into()
        }
        4 => ops::Unlink { parent, name: name(random), directory: random.random() }.into(),
        5 => {
            let flags = [0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE][random.random_range(0..5)];
            let (name, new_name) = (name(random), name(random));
            ops::Rename { parent, name, new_parent, new_name, flags, whiteout: (0, 0) }.into()
        }
        6 => ops::Link { ino: ino(random), parent, name: name(random) }.into(),
        7 => {
            let size = random.random_bool(0.4).then(|| random.random_range(0..9000));
            let mode = random.random_bool(0.5).then(|| random.random_range(0..0o7777));
            let changes = AttributeChanges { size, mode, ..AttributeChanges::default() };
            ops::SetAttr { ino: ino(random), changes }.into()
        }
        8 => {
            let value = Bytes::from(vec![7; random.random_range(0..50)]);
            let mode = [XattrMode::Set, XattrMode::Create, XattrMode::Replace][random.random_range(0..3)];
            let name = Bytes::from(format!("user.x{}", random.random_range(0..3)));
            ops::SetXattr { ino: ino(random), name, value, mode }.into()
        }
        9 => {
            let name = Bytes::from(format!("user.x{}", random.random_range(0..3)));
            ops::RemoveXattr { ino: ino(random), name }.into()
        }
        10 => {
            // Read, write and execute for the owner, a user, the mask, and others.
            let mut value = vec![2, 0, 0, 0];
            for (tag, permissions, id) in
                [(1_u16, 7_u16, u32::MAX), (2, 5, 77), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 1, u32::MAX)]
            {
                value.extend_from_slice(&tag.to_le_bytes());
                value.extend_from_slice(&permissions.to_le_bytes());
                value.extend_from_slice(&id.to_le_bytes());
            }
            let value = random.random_bool(0.7).then(|| Bytes::from(value));
            ops::SetAcl { ino: ino(random), default: random.random(), value, kill_sgid: false }.into()
        }
        _ => {
            let length = random.random_range(1..3000);
            let place = NewPlace::Inline(Bytes::from(vec![9; length]));
            let pieces =
                vec![NewPiece { offset: random.random_range(0..6000), length: length as u64, place }];
            let mtime = Timestamp { seconds: 1, nanos: random.random_range(0..1000) };
            let kill_priv = if random.random() { KillPriv::ALL } else { KillPriv::NONE };
            ops::Write { ino: ino(random), pieces, mtime, kill_priv, reservation: 0 }.into()
        }
    }
}

#[test]
fn what_is_carried_out_here_comes_out_as_it_does_where_all_records_are() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        // Some forget most of what they know.
        let mut twins = Twins::new(if seed % 3 == 0 { 4000 } else { 1 << 20 });
        for step in 0..300 {
            if step % 10 == 5 {
                let store = &twins.store;
                let exists = |ino: &InodeId| store.get(Family::Inodes, &keys::inode(*ino)).unwrap().is_some();
                twins.inodes.retain(exists);
                let ino = twins.inodes[random.random_range(0..twins.inodes.len())];
                if !twins.keeping.cache.knows(ino) || twins.keeping.find(ino, b"x").is_err() {
                    twins.adopt(if random.random() { ino } else { ROOT });
                }
            }
            let op = random_op(&mut random, &twins.inodes);
            twins.carry_out(op);
            twins.check();
        }
        let Twins { here, elsewhere, .. } = twins;
        assert!(here > 0 && (seed % 3 == 0 || here > 40), "{here} here, {elsewhere} elsewhere");
    }
}

#[test]
fn what_is_known_is_bounded_in_bytes() {
    let mut twins = Twins::new(20_000);
    twins.adopt(ROOT);
    for number in 0..2000 {
        let name = Bytes::from(format!("name {number}"));
        let (mode, target) = (FileKind::Directory.mode_bits() | 0o755, Bytes::new());
        let op =
            ops::Create { parent: ROOT, name, ino: None, mode, uid: 0, gid: 0, rdev: 0, target, umask: 0 };
        twins.carry_out(op.into());
        assert!(twins.keeping.cache.bytes() <= 20_000);
    }
    assert!(twins.here > 50, "{} here", twins.here);
    twins.keeping.cache.forget_all();
    assert_eq!((twins.keeping.cache.bytes(), twins.keeping.cache.len()), (0, 0));
}
