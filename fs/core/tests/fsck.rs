//! Each kind of damage: injected into the records of a small volume, found by its name, repaired, and nothing that
//! could be reached before has lost a byte by the repair.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use atoll_core::acl::ACCESS_NAME;
use atoll_core::attributes::{FileKind, KillPriv, Timestamp};
use atoll_core::check::{Finding, Kind, Subject, Totals, findings, walk};
use atoll_core::commands::{Command, INTERNAL, NewPiece, NewPlace, Op, Outcome, ServiceOp, ops};
use atoll_core::fsck::{Corrections, plan};
use atoll_core::ids::{
    ChunkId, ClusterId, Generation, InodeId, ROOT, SegmentIndex, ServerId, SessionId, SlotId,
};
use atoll_core::keys;
use atoll_core::locks::{LockClass, LockMode, LockRange, LockRequest};
use atoll_core::namespace::{Txn, execute};
use atoll_core::query;
use atoll_core::records::{
    ChunkKind, ChunkRecord, DeadRecord, EntryRecord, InodeRecord, Marker, OrphanRecord, Place, Record,
    SegmentRecord, SessionRecord, Superblock, VolumeConfig,
};
use atoll_core::store::{Family, MemStore, Read};
use bytes::Bytes;
use common::create;

const FILE: u32 = 0o100_644;
const DIRECTORY: u32 = 0o040_755;

struct Volume {
    store: MemStore,
    sequence: u64,
    session: SessionId,
    folder: InodeId,
    inline: InodeId,
    big: InodeId,
    copy: InodeId,
    chunk: ChunkId,
}

impl Volume {
    /// A folder with a small file that has a second name, and a big file, bytes of which a copy shares; a lock.
    fn new() -> Volume {
        let mut volume = Volume {
            store: MemStore::default(),
            sequence: 0,
            session: INTERNAL,
            folder: ROOT,
            inline: ROOT,
            big: ROOT,
            copy: ROOT,
            chunk: ChunkId(0),
        };
        let config = VolumeConfig::default();
        volume.run(Op::from(ops::Bootstrap { cluster: ClusterId(7), hash_key: (1, 2), config }));
        for server in 1..=3 {
            volume.run(Op::from(ops::PutServer {
                server: ServerId(server),
                address: String::new(),
                labels: BTreeMap::new(),
            }));
        }
        let opened = volume.run(Op::from(ops::OpenSession {
            client: "test".into(),
            incarnation: 1,
            supersedes: None,
        }));
        let Outcome::Session(session, _) = opened else { panic!("{opened:?}") };
        volume.session = session;
        volume.folder = volume.create(ROOT, "folder", DIRECTORY);
        volume.inline = volume.create(volume.folder, "small", FILE);
        volume.write(volume.inline, 5, NewPlace::Inline(Bytes::from_static(b"hello")));
        let name = Bytes::from_static(b"second");
        volume.run(Op::from(ops::Link { ino: volume.inline, parent: ROOT, name }));
        let replicas = vec![ServerId(1), ServerId(2), ServerId(3)];
        let made =
            volume.run(Op::from(ops::CreateChunk { kind: ChunkKind::Stream, incarnation: 1, replicas }));
        let Outcome::Chunk(chunk, _) = made else { panic!("{made:?}") };
        volume.chunk = chunk;
        volume.big = volume.create(volume.folder, "big", FILE);
        let place = NewPlace::Chunk { chunk, generation: Generation(1), offset: 0 };
        volume.write(volume.big, 64 << 10, place);
        volume.copy = volume.create(ROOT, "copy", FILE);
        volume.run(Op::from(ops::CopyFileRange {
            from: volume.big,
            offset: 0,
            to: volume.copy,
            to_offset: 0,
            length: 8 << 10,
            kill_priv: KillPriv::NONE,
        }));
        volume.run(Op::from(ops::SetLock(LockRequest {
            ino: volume.inline,
            class: LockClass::Record,
            owner: 1,
            handle: 10,
            pid: 7,
            mode: Some(LockMode::Exclusive),
            range: LockRange { start: 0, end: 9 },
        })));
        volume.run(Op::from(ops::Reserve { bytes: 8192, bytes_min: 8192 }));
        assert_eq!(findings(&volume.store).unwrap(), Vec::new());
        volume
    }

    fn run(&mut self, op: Op) -> Outcome {
        self.sequence += 1;
        let internal = matches!(op, Op::Service(ServiceOp::Fsck(_)) | Op::Service(ServiceOp::FsckTotals(_)));
        let session = if internal { INTERNAL } else { self.session };
        let time = Timestamp { seconds: 1000 + self.sequence as i64, nanos: 0 };
        // The first three commands of the service itself use no slots; the session's begin with 1.
        let sequence = match self.store.get(Family::System, &keys::slot(session, SlotId(1))).unwrap() {
            Some(slot) => atoll_core::records::SlotRecord::decode(&slot).unwrap().sequence + 1,
            None => 1,
        };
        let command = Command { session, slot: SlotId(1), sequence, time, expect: None, op };
        let mut txn = Txn::open(&self.store).unwrap();
        let outcome = execute(&mut txn, &command).unwrap();
        let writes = txn.into_writes();
        self.store.write(writes);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{command:?}: {outcome:?}");
        outcome
    }

    fn create(&mut self, parent: InodeId, name: &str, mode: u32) -> InodeId {
        let made = self.run(create(parent, name, mode, 0));
        match made {
            Outcome::Inode(attributes) => attributes.ino,
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, ino: InodeId, length: u64, place: NewPlace) {
        self.run(Op::from(ops::Write {
            ino,
            pieces: vec![NewPiece { offset: 0, length, place }],
            mtime: Timestamp::default(),
            kill_priv: KillPriv::NONE,
            reservation: 0,
        }));
    }

    fn put(&mut self, family: Family, key: Vec<u8>, record: &impl Record) {
        self.store.write([(family, key, Some(record.encode()))]);
    }

    fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.store.write([(family, key, None)]);
    }

    fn change<R: Record>(&mut self, family: Family, key: Vec<u8>, change: impl FnOnce(&mut R)) {
        let mut record = query::load::<R>(&self.store, family, &key).unwrap().expect("the record is there");
        change(&mut record);
        self.put(family, key, &record);
    }

    fn inode(&mut self, ino: InodeId, change: impl FnOnce(&mut InodeRecord)) {
        self.change(Family::Inodes, keys::inode(ino), change);
    }

    fn entry_key(&self, parent: InodeId, name: &[u8]) -> Vec<u8> {
        query::find_entry(&self.store, (1, 2), parent, name).unwrap().expect("the name is there").key
    }

    /// What can be read, by path: the places of all pieces, and inline bytes themselves.
    fn readable(&self) -> BTreeMap<String, Vec<String>> {
        let mut files = BTreeMap::new();
        self.read_below(ROOT, "", &mut files, 0);
        files
    }

    fn read_below(
        &self,
        directory: InodeId,
        path: &str,
        files: &mut BTreeMap<String, Vec<String>>,
        depth: u32,
    ) {
        assert!(depth < 10, "a loop");
        let prefix = keys::entries(directory);
        let mut entries = Vec::new();
        self.store
            .scan(Family::Names, &prefix, &atoll_core::store::prefix_end(&prefix), &mut |_, value| {
                if let Ok(EntryRecord::Entry { name, ino, .. }) = EntryRecord::decode(value) {
                    entries.push((String::from_utf8(name.to_vec()).unwrap(), ino));
                }
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        for (name, ino) in entries {
            let path = format!("{path}/{name}");
            let Some(record) =
                query::load::<InodeRecord>(&self.store, Family::Inodes, &keys::inode(ino)).unwrap()
            else {
                continue;
            };
            if record.is_directory() {
                self.read_below(ino, &path, files, depth + 1);
            } else {
                files.insert(path, self.pieces(ino));
            }
        }
    }

    fn pieces(&self, ino: InodeId) -> Vec<String> {
        let key = keys::segment(ino, SegmentIndex(0));
        let found: Option<SegmentRecord> = query::load(&self.store, Family::Extents, &key).unwrap();
        let pieces = found.unwrap_or_default().pieces;
        pieces
            .iter()
            .map(|piece| match piece.place {
                Place::Inline { id, skip } => {
                    let key = keys::inline(ino, SegmentIndex(0), id);
                    let value = self.store.get(Family::Inline, &key).unwrap().unwrap_or_default();
                    let value = value.get(skip as usize..).unwrap_or_default();
                    format!("{:?}", &value[..value.len().min(piece.length as usize)])
                }
                place => format!("{}+{} {place:?}", piece.start, piece.length),
            })
            .collect()
    }

    /// Repairs as the service does; returns the names of all that was repaired.
    fn repair(&mut self, asked: &BTreeSet<Kind>) -> BTreeSet<&'static str> {
        let mut repaired = BTreeSet::new();
        for _ in 0..16 {
            let found = findings(&self.store).unwrap();
            let todo: Vec<Finding> = plan(&found, asked, &BTreeSet::new()).into_iter().cloned().collect();
            if todo.is_empty() {
                return repaired;
            }
            for Finding { kind, subject, .. } in todo {
                let op = match kind {
                    Kind::VolumeTotals => FsckTotals::of(&self.store),
                    kind => Op::from(ops::Fsck { kind, subject }),
                };
                if self.run(op) == Outcome::More(true) {
                    repaired.insert(kind.name());
                }
            }
        }
        panic!("repairs without end: {:?}", findings(&self.store));
    }

    fn names(&self) -> BTreeSet<&'static str> {
        findings(&self.store).unwrap().into_iter().map(|finding| finding.kind.name()).collect()
    }
}

struct FsckTotals;

impl FsckTotals {
    fn of(store: &MemStore) -> Op {
        let superblock: Superblock =
            query::load(store, Family::System, &keys::superblock()).unwrap().unwrap();
        let is = walk(store, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().unwrap();
        Op::from(ops::FsckTotals(Corrections::between(&Totals::said(&superblock), &is)))
    }
}

fn all() -> BTreeSet<Kind> {
    Kind::ALL.iter().copied().collect()
}

/// Injects, expects the finding, repairs, expects a clean volume; returns what can be read before and after.
fn heals(
    kind: Kind,
    damage: impl FnOnce(&mut Volume),
) -> (BTreeMap<String, Vec<String>>, BTreeMap<String, Vec<String>>) {
    let mut volume = Volume::new();
    damage(&mut volume);
    assert!(volume.names().contains(kind.name()), "{}: found {:?}", kind.name(), findings(&volume.store));
    let before = volume.readable();
    let untouched = volume.store.clone();
    assert_eq!(volume.repair(&BTreeSet::new()), BTreeSet::new(), "what isn't asked for is left");
    assert_eq!(volume.readable(), before);
    volume.store = untouched;
    let repaired = volume.repair(&BTreeSet::from([kind]));
    assert_eq!(repaired, BTreeSet::from([kind.name()]));
    volume.repair(&all());
    assert_eq!(findings(&volume.store).unwrap(), Vec::new(), "after the repair of {}", kind.name());
    (before, volume.readable())
}

/// As [`heals`], for damage after whose repair everything is as it was.
fn heals_without_loss(kind: Kind, damage: impl FnOnce(&mut Volume)) {
    let (before, after) = heals(kind, damage);
    assert_eq!(lost_from(&before, &after), Vec::<String>::new(), "{}", kind.name());
}

/// Paths whose content is no longer what it was.
fn lost_from(before: &BTreeMap<String, Vec<String>>, after: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    before.iter().filter(|(path, pieces)| after.get(*path) != Some(*pieces)).map(|(p, _)| p.clone()).collect()
}

#[test]
fn a_lost_inode_is_made_anew_from_its_extents_under_its_old_name() {
    let (_, after) =
        heals(Kind::EntryWithoutInode, |volume| volume.delete(Family::Inodes, keys::inode(volume.big)));
    assert!(after["/folder/big"][0].starts_with("0+65536 Chunk"), "{after:?}");
    heals(Kind::SegmentWithoutInode, |volume| volume.delete(Family::Inodes, keys::inode(volume.big)));
}

#[test]
fn a_lost_directory_is_made_anew_with_all_that_is_in_it() {
    let (_, after) = heals(Kind::NamesWithoutDirectory, |volume| {
        volume.delete(Family::Inodes, keys::inode(volume.folder));
    });
    assert!(after.contains_key("/folder/small") && after.contains_key("/folder/big"), "{after:?}");
}

#[test]
fn names_in_a_file_are_found_and_what_they_name_is_kept() {
    heals_without_loss(Kind::NamesWithoutDirectory, |volume| {
        let lost = volume.create(ROOT, "lost", FILE);
        let name = Bytes::from_static(b"odd");
        let entry = EntryRecord::Entry { name, ino: lost, kind: FileKind::File, birth: 1 };
        let key = keys::entry(volume.big, keys::name_hash((1, 2), b"odd"), 0);
        volume.put(Family::Names, key, &entry);
        volume.put(Family::Names, keys::parent(lost, volume.big, b"odd"), &Marker);
        volume.inode(lost, |record| record.nlink = 2);
    });
}

#[test]
fn a_name_without_anything_behind_it_goes() {
    let (_, after) = heals(Kind::EntryWithoutInode, |volume| {
        let gone = volume.create(ROOT, "gone", FILE);
        volume.delete(Family::Inodes, keys::inode(gone));
    });
    assert!(!after.contains_key("/gone"));
}

#[test]
fn entries_and_what_they_name_agree_again() {
    heals_without_loss(Kind::EntryKind, |volume| {
        let key = volume.entry_key(ROOT, b"copy");
        volume.change(Family::Names, key, |entry| {
            if let EntryRecord::Entry { kind, .. } = entry {
                *kind = FileKind::Directory;
            }
        });
    });
    heals_without_loss(Kind::ParentMissing, |volume| {
        volume.delete(Family::Names, keys::parent(volume.copy, ROOT, b"copy"));
    });
    heals_without_loss(Kind::DirectoryParent, |volume| {
        let other = volume.create(ROOT, "other", DIRECTORY);
        volume.inode(volume.folder, |record| record.parent = other);
    });
}

#[test]
fn a_lost_name_is_put_back() {
    let (_, after) = heals(Kind::NameMissing, |volume| {
        let key = volume.entry_key(volume.folder, b"big");
        volume.delete(Family::Names, key);
    });
    assert!(after.contains_key("/folder/big"));
}

#[test]
fn what_has_no_name_at_all_goes_to_lost_and_found() {
    for directory in [false, true] {
        let (_, after) = heals(Kind::InodeWithoutName, |volume| {
            let (parent, ino, name): (_, _, &[u8]) = if directory {
                (ROOT, volume.folder, b"folder")
            } else {
                (volume.folder, volume.big, b"big")
            };
            let key = volume.entry_key(parent, name);
            volume.delete(Family::Names, key);
            volume.delete(Family::Names, keys::parent(ino, parent, name));
        });
        let found = after.keys().filter(|path| path.starts_with("/lost+found/#")).count();
        assert_eq!(found, if directory { 2 } else { 1 }, "{after:?}");
    }
}

#[test]
fn counts_are_made_right() {
    heals_without_loss(Kind::LinkCount, |volume| volume.inode(volume.inline, |record| record.nlink = 7));
    heals_without_loss(Kind::DirectoryCounts, |volume| {
        volume.inode(volume.folder, |record| record.entries = 9)
    });
    heals_without_loss(Kind::MappedBytes, |volume| volume.inode(volume.big, |record| record.mapped = 1));
    heals_without_loss(Kind::VolumeTotals, |volume| {
        volume.change(Family::System, keys::superblock(), |superblock: &mut Superblock| {
            superblock.bytes_used += 4096;
            superblock.inodes_used = 1;
            superblock.bytes_reserved = 0;
            superblock.inline_bytes = 99;
        });
    });
    heals_without_loss(Kind::AclFlag, |volume| volume.inode(volume.copy, |record| record.access_acl = true));
    assert_eq!(ACCESS_NAME, b"system.posix_acl_access");
}

#[test]
fn marks_of_unlinked_files_are_made_right() {
    heals_without_loss(Kind::OrphanWithoutInode, |volume| {
        let orphan = OrphanRecord { since: Timestamp::default(), purging: false, linkable: false };
        volume.put(Family::System, keys::orphan(InodeId(999)), &orphan);
    });
    for purging in [false, true] {
        heals_without_loss(Kind::OrphanWithName, |volume| {
            let orphan = OrphanRecord { since: Timestamp::default(), purging, linkable: false };
            volume.put(Family::System, keys::orphan(volume.copy), &orphan);
        });
    }
}

#[test]
fn bytes_that_are_gone_read_as_lost_and_the_rest_stays() {
    let (before, after) = heals(Kind::InlineMissing, |volume| {
        let key = keys::segment(volume.inline, SegmentIndex(0));
        let found: SegmentRecord = query::load(&volume.store, Family::Extents, &key).unwrap().unwrap();
        let Place::Inline { id, .. } = found.pieces[0].place else { panic!() };
        let key = keys::inline(volume.inline, SegmentIndex(0), id);
        volume.store.write([(Family::Inline, key, Some(b"hel".to_vec()))]);
    });
    assert_eq!(before["/second"], ["[104, 101, 108]"]);
    assert_eq!(after["/second"], ["[104, 101, 108]", "3+2 Lost"]);
    let (before, after) =
        heals(Kind::ChunkMissing, |volume| volume.delete(Family::System, keys::chunk(volume.chunk)));
    assert_eq!(lost_from(&before, &after), ["/copy", "/folder/big"]);
    assert!(after["/copy"].iter().all(|piece| piece.ends_with("Lost")), "{after:?}");
}

#[test]
fn inline_bytes_of_nobody_become_a_file() {
    let (_, after) = heals(Kind::InlineUnused, |volume| {
        let key = keys::inline(volume.big, SegmentIndex(0), 77);
        volume.store.write([(Family::Inline, key, Some(b"who".to_vec()))]);
    });
    let rescued = after.iter().find(|(path, _)| path.starts_with("/lost+found/#")).expect("it is there");
    assert_eq!(rescued.1[..], ["[119, 104, 111]"]);
}

#[test]
fn references_between_chunks_and_files_are_made_right() {
    heals_without_loss(Kind::ReferenceMissing, |volume| {
        volume.delete(Family::System, keys::back_reference(volume.chunk, volume.big, SegmentIndex(0)));
    });
    heals_without_loss(Kind::ReferenceStale, |volume| {
        volume.put(
            Family::System,
            keys::back_reference(volume.chunk, volume.inline, SegmentIndex(0)),
            &Marker,
        );
    });
    heals_without_loss(Kind::SharedMark, |volume| {
        let key = keys::segment(volume.copy, SegmentIndex(0));
        volume.change(Family::Extents, key, |found: &mut SegmentRecord| {
            found.pieces.iter_mut().for_each(|piece| piece.shared = false);
        });
    });
}

#[test]
fn a_chunk_is_never_taken_for_free_while_references_are_missing() {
    let mut volume = Volume::new();
    volume.run(Op::from(ops::SealChunk { chunk: volume.chunk }));
    for ino in [volume.big, volume.copy] {
        volume.delete(Family::System, keys::back_reference(volume.chunk, ino, SegmentIndex(0)));
    }
    let before = volume.readable();
    assert!(volume.names().contains("chunk-unused"), "that is what it looks like");
    let asked = BTreeSet::from([Kind::ChunkUnused, Kind::LiveBlocks]);
    assert_eq!(volume.repair(&asked), BTreeSet::new());
    volume.repair(&all());
    assert_eq!((volume.names(), volume.readable()), (BTreeSet::new(), before));
}

#[test]
fn a_chunks_own_books_are_made_right() {
    let change = |volume: &mut Volume, change: fn(&mut ChunkRecord)| {
        volume.change(Family::System, keys::chunk(volume.chunk), change);
    };
    heals_without_loss(Kind::LiveBlocks, |volume| change(volume, |record| record.live_blocks = 1));
    heals_without_loss(Kind::CommittedLength, |volume| change(volume, |record| record.committed = 4096));
    heals_without_loss(Kind::DeadInUse, |volume| {
        let dead = DeadRecord { blocks: 2, waiting: vec![ServerId(1)] };
        volume.put(Family::System, keys::dead(volume.chunk, 0), &dead);
    });
    heals_without_loss(Kind::TrimOrder, |volume| {
        let dead = DeadRecord { blocks: 2, waiting: vec![ServerId(1)] };
        volume.put(Family::System, keys::dead(volume.chunk, 500), &dead);
    });
    heals_without_loss(Kind::DeadWithoutChunk, |volume| {
        let dead = DeadRecord { blocks: 2, waiting: vec![ServerId(1)] };
        volume.put(Family::System, keys::dead(ChunkId(900), 0), &dead);
    });
    heals_without_loss(Kind::ChunkUnused, |volume| {
        let mut record: ChunkRecord =
            query::load(&volume.store, Family::System, &keys::chunk(volume.chunk)).unwrap().unwrap();
        (record.sealed, record.live_blocks, record.committed) = (true, 0, 4096);
        volume.put(Family::System, keys::chunk(ChunkId(800)), &record);
    });
}

#[test]
fn locks_of_the_dead_go_and_lists_are_made_right() {
    heals_without_loss(Kind::LockStale, |volume| {
        volume.change(Family::System, keys::session(volume.session), |session: &mut SessionRecord| {
            session.ended = Some(Timestamp::default());
        });
    });
    heals_without_loss(Kind::LockList, |volume| {
        volume.delete(Family::System, keys::locked(volume.session, volume.inline));
    });
    heals_without_loss(Kind::LockList, |volume| {
        volume.put(Family::System, keys::locked(volume.session, volume.big), &Marker);
    });
}

#[test]
fn what_can_only_be_shown_is_shown_and_stops_what_rests_on_it() {
    let mut volume = Volume::new();
    volume.store.write([(Family::Extents, keys::segment(volume.big, SegmentIndex(0)), Some(vec![1, 0xff]))]);
    assert!(volume.names().contains("unreadable-record"), "{:?}", findings(&volume.store));
    let repaired = volume.repair(&BTreeSet::from([Kind::LiveBlocks, Kind::ChunkUnused, Kind::SharedMark]));
    assert_eq!(repaired, BTreeSet::new());
    assert_eq!(
        findings(&MemStore::default()).unwrap().iter().map(|f| f.kind).collect::<Vec<_>>(),
        [Kind::NoSuperblock]
    );
}

#[test]
fn a_repair_looks_again_and_leaves_alone_what_is_right() {
    let mut volume = Volume::new();
    let before = volume.readable();
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::VolumeTotals) {
        for subject in [
            Subject::Inode(volume.big),
            Subject::Chunk(volume.chunk),
            Subject::Segment(volume.big, SegmentIndex(0)),
            Subject::Orphan(volume.big),
            Subject::Reference(volume.chunk, volume.big, SegmentIndex(0)),
        ] {
            assert_eq!(volume.run(Op::from(ops::Fsck { kind: *kind, subject })), Outcome::More(false));
        }
    }
    assert_eq!((volume.names(), volume.readable()), (BTreeSet::new(), before));
}
