//! A folder's size costs nothing: each operation touches as many records in a big one as in a small one.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;

use atoll_core::attributes::Timestamp;
use atoll_core::commands::{Command, INTERNAL, Op, Outcome, ops};
use atoll_core::ids::{ClusterId, InodeId, ROOT, ServerId, SessionId, SlotId};
use atoll_core::namespace::{Txn, execute};
use atoll_core::query;
use atoll_core::records::VolumeConfig;
use atoll_core::store::{Family, MemStore, Read, StoreError, Visit};
use bytes::Bytes;
use common::create;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
/// Entries of the small and of the big folder.
const SMALL: usize = 100;
const BIG: usize = 100_000;

/// A store that counts the records that are asked for and visited.
struct Counting<'a> {
    store: &'a MemStore,
    touched: Cell<u64>,
}

impl Read for Counting<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.touched.set(self.touched.get() + 1);
        self.store.get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.touched.set(self.touched.get() + 1);
        self.store.scan(family, from, to, &mut |key, value| {
            self.touched.set(self.touched.get() + 1);
            visit(key, value)
        })
    }
}

struct Volume {
    store: MemStore,
    session: SessionId,
    sequence: u64,
}

impl Volume {
    fn new() -> Self {
        let mut volume = Volume { store: MemStore::default(), session: INTERNAL, sequence: 0 };
        let config = VolumeConfig { inodes_total: 1 << 30, ..VolumeConfig::default() };
        volume.run(Op::from(ops::Bootstrap { cluster: ClusterId(7), hash_key: (1, 2), config }));
        volume.run(Op::from(ops::PutServer {
            server: ServerId(1),
            address: String::new(),
            labels: BTreeMap::new(),
        }));
        let op = Op::from(ops::OpenSession { client: "test".into(), incarnation: 1, supersedes: None });
        let (Outcome::Session(session, _), _) = volume.run(op) else { panic!("no session") };
        (volume.session, volume.sequence) = (session, 0);
        volume
    }

    /// Carries an operation out; how many records it touched.
    fn run(&mut self, op: Op) -> (Outcome, u64) {
        self.sequence += 1;
        let time = Timestamp { seconds: 1000, nanos: 0 };
        let command = Command {
            session: self.session,
            slot: SlotId(1),
            sequence: self.sequence,
            time,
            expect: None,
            op,
        };
        let counting = Counting { store: &self.store, touched: Cell::new(0) };
        let mut txn = Txn::open(&counting).unwrap();
        let outcome = execute(&mut txn, &command).unwrap();
        let writes = txn.into_writes();
        let touched = counting.touched.get() + writes.len() as u64;
        self.store.write(writes);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?} to {command:?}");
        (outcome, touched)
    }

    fn create(&mut self, parent: InodeId, name: &str, mode: u32) -> (InodeId, u64) {
        let op = create(parent, name, mode, 0);
        match self.run(op) {
            (Outcome::Inode(attributes), touched) => (attributes.ino, touched),
            (other, _) => panic!("{other:?}"),
        }
    }

    /// What it costs to make, look up, list a part of, rename and remove one of `entries`.
    fn costs(&mut self, folder: &str, entries: usize) -> [u64; 5] {
        let (parent, _) = self.create(ROOT, folder, DIRECTORY);
        for at in 0..entries {
            self.create(parent, &format!("entry-{at}"), FILE);
        }
        let (_, create) = self.create(parent, "one more", FILE);

        let counting = Counting { store: &self.store, touched: Cell::new(0) };
        let hash_key = query::superblock(&counting).unwrap().hash_key;
        query::lookup(&counting, hash_key, parent, b"one more").unwrap();
        let lookup = counting.touched.replace(0);
        let (_, first, _) = query::read_directory(&counting, parent, 0, |_| true).unwrap();
        let mut seen = 0;
        query::read_directory(&counting, parent, first[0].cookie, |_| {
            seen += 1;
            seen == 50
        })
        .unwrap();
        let list = counting.touched.get();

        let name = |text: &'static str| Bytes::from_static(text.as_bytes());
        let (_, rename) = self.run(Op::from(ops::Rename {
            parent,
            name: name("one more"),
            new_parent: parent,
            new_name: name("another"),
            flags: 0,
            whiteout: (0, 0),
        }));
        let (_, unlink) = self.run(Op::from(ops::Unlink { parent, name: name("another"), directory: false }));
        [create, lookup, list, rename, unlink]
    }
}

#[test]
fn an_entry_costs_the_same_in_a_folder_of_any_size() {
    let mut volume = Volume::new();
    let small = volume.costs("small", SMALL);
    let big = volume.costs("big", BIG);
    assert_eq!(small, big, "records touched to create, look up, list 50, rename, unlink");
    let all = |_: &query::Listed| false;
    let big = query::lookup(&volume.store, query::superblock(&volume.store).unwrap().hash_key, ROOT, b"big");
    let (_, listed, end) = query::read_directory(&volume.store, big.unwrap().ino, 0, all).unwrap();
    assert!(end && listed.len() == BIG);
}
