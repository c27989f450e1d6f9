use atoll_core::ids::{ClusterId, SessionId};
use atoll_proto::checksum::checksums;

use super::*;
use crate::chunk_file::{BLOCK, Verified};
use crate::disk::faulty::{Fault, FaultyDisk, Op};
use crate::disk::real::RealDisk;

const CLUSTER: ClusterId = ClusterId(0xabc);
const WRITER: Writer = Writer { session: SessionId(1), incarnation: 1 };
const GENERATION: Generation = Generation(1);
const MIB: u64 = 1 << 20;

fn options() -> StoreOptions {
    StoreOptions { cluster: CLUSTER, ballast_bytes: 0, chunk_bytes: MIB }
}

fn open(disk: &FaultyDisk) -> Store {
    Store::open(Arc::new(disk.clone()), &options()).unwrap()
}

fn data(fill: u8, blocks: u64) -> Vec<u8> {
    vec![fill; (blocks * BLOCK) as usize]
}

fn put(store: &Store, id: u64, block: u64, data: &[u8]) -> Result<(), ChunkError> {
    let id = ChunkId(id);
    let open = store.chunk_or_new(id, Layout::Stream, GENERATION, WRITER)?;
    open.file.write(GENERATION, WRITER, block * BLOCK, data, &checksums(id, block, data))?;
    open.file.sync()
}

fn get(store: &Store, id: u64, block: u64, blocks: u64) -> Result<Vec<u8>, ChunkError> {
    let read = store.chunk(ChunkId(id))?.file.read(block * BLOCK, blocks * BLOCK, Verified::Here)?;
    Ok(read.data.to_vec())
}

#[test]
fn a_folder_keeps_its_identity_and_counts_its_starts() {
    let disk = FaultyDisk::new(1, 64 * MIB);
    let first = open(&disk).identity().clone();
    assert_eq!((first.cluster, first.incarnation), (CLUSTER, 1));
    disk.power_on();
    let second = open(&disk).identity().clone();
    assert_eq!((second.server, second.incarnation), (first.server, 2));
}

#[test]
fn a_folder_that_isnt_ours_is_left_alone() {
    let disk = FaultyDisk::new(1, 64 * MIB);
    disk.create_dir("lost+found").unwrap();
    drop(open(&disk));

    let other = StoreOptions { cluster: ClusterId(9), ..options() };
    let refused = Store::open(Arc::new(disk.clone()), &other).err().unwrap();
    assert!(matches!(&refused, StoreError::OtherCluster { found: CLUSTER, .. }), "{refused}");
    assert!(refused.to_string().contains(&CLUSTER.to_string()), "{refused}");

    for foreign in ["passwords.txt", "chunks"] {
        let disk = FaultyDisk::new(1, 64 * MIB);
        if foreign == "chunks" {
            disk.create_dir("chunks").unwrap();
        } else {
            disk.create(foreign).unwrap();
        }
        let refused = Store::open(Arc::new(disk.clone()), &options()).err().unwrap();
        assert!(matches!(&refused, StoreError::Foreign { found, .. } if found == foreign), "{refused}");
        assert!(disk.contents("atoll-storage.json").is_none());
    }

    let disk = FaultyDisk::new(1, 64 * MIB);
    let file = disk.create("atoll-storage.json").unwrap();
    file.write_at(b"{\"format\": 7, \"of the future\": true}", 0).unwrap();
    let refused = Store::open(Arc::new(disk.clone()), &options()).err().unwrap();
    assert!(matches!(refused, StoreError::Newer { found: 7, .. }), "{refused}");
    file.set_len(0).unwrap();
    let refused = Store::open(Arc::new(disk.clone()), &options()).err().unwrap();
    assert!(matches!(refused, StoreError::BadIdentity { .. }), "{refused}");
    assert_eq!(disk.contents("atoll-storage.json").unwrap(), b"", "left alone");
}

#[test]
fn one_process_per_folder() {
    let disk = FaultyDisk::new(1, 64 * MIB);
    let store = open(&disk);
    assert!(matches!(Store::open(Arc::new(disk.clone()), &options()), Err(StoreError::Locked { .. })));
    drop(store);
    open(&disk);
}

#[test]
fn joining_survives_a_cut_at_any_call() {
    for seed in 0..200 {
        let disk = FaultyDisk::new(seed, 64 * MIB);
        disk.power_off_after(seed % 25);
        let first = Store::open(Arc::new(disk.clone()), &options()).ok().map(|store| store.identity().server);
        disk.power_on();
        let again = open(&disk);
        if let Some(first) = first {
            assert_eq!(again.identity().server, first, "seed {seed}: it answered as this server");
        }
    }
}

#[test]
fn chunks_come_back_after_a_restart_and_strangers_are_ignored() {
    let disk = FaultyDisk::new(1, 64 * MIB);
    let store = open(&disk);
    put(&store, 0x1_02, 0, &data(1, 2)).unwrap();
    put(&store, 0x2_02, 0, &data(2, 2)).unwrap();
    store.seal(ChunkId(0x2_02), Generation(2), BLOCK).unwrap();
    drop(store);
    disk.create("chunks/02/notes.txt").unwrap();
    // In the wrong folder.
    disk.create("chunks/02/0000000000000003.chunk").unwrap();
    disk.create("tmp/left.copy").unwrap();
    let store = open(&disk);
    assert_eq!(store.len(), 2);
    assert_eq!(get(&store, 0x1_02, 0, 2).unwrap(), data(1, 2));
    assert!(!disk.files().iter().any(|path| path.starts_with("tmp/")), "temporary files are removed");
    let (replicas, more) = store.list(None, 10);
    assert!(!more);
    assert_eq!(
        replicas,
        vec![
            Replica {
                chunk: ChunkId(0x1_02),
                generation: GENERATION,
                length: 2 * BLOCK,
                sealed: false,
                bad: false
            },
            Replica {
                chunk: ChunkId(0x2_02),
                generation: Generation(2),
                length: BLOCK,
                sealed: true,
                bad: false
            },
        ]
    );
    let (page, more) = store.list(None, 1);
    assert!(more && page[0].chunk == ChunkId(0x1_02));
    let (page, more) = store.list(Some(page[0].chunk), 1);
    assert!(!more && page[0].chunk == ChunkId(0x2_02));
}

#[test]
fn creating_and_deleting_survive_a_cut_at_any_call() {
    for seed in 0..400 {
        let disk = FaultyDisk::new(seed, 64 * MIB);
        let store = open(&disk);
        put(&store, 1, 0, &data(1, 1)).unwrap();
        disk.power_off_after(seed % 40);
        let made = put(&store, 2, 0, &data(2, 1)).is_ok();
        let deleted = store.delete(ChunkId(1)).is_ok();
        let made_again = put(&store, 1, 0, &data(3, 1)).is_ok();
        drop(store);
        disk.power_on();
        let store = open(&disk);
        match get(&store, 2, 0, 1) {
            Ok(read) => assert_eq!(read, data(2, 1), "seed {seed}"),
            Err(error) => assert!(!made, "seed {seed}: {error}"),
        }
        match get(&store, 1, 0, 1) {
            Ok(read) if read == data(3, 1) => {}
            Ok(read) => assert!(!deleted && read == data(1, 1), "seed {seed}"),
            Err(ChunkError::NotFound | ChunkError::Missing(_) | ChunkError::Corrupt(_)) => {
                assert!(!made_again, "seed {seed}");
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
}

#[test]
fn deleting_twice_is_deleting_once() {
    let disk = FaultyDisk::new(1, 64 * MIB);
    let store = open(&disk);
    put(&store, 1, 0, &data(1, 8)).unwrap();
    let free = store.space().unwrap().free_bytes;
    assert!(store.delete(ChunkId(1)).unwrap());
    assert!(!store.delete(ChunkId(1)).unwrap());
    assert!(store.space().unwrap().free_bytes > free);
    assert!(matches!(get(&store, 1, 0, 1), Err(ChunkError::NotFound)));
    let news = store.changes().take(10);
    assert_eq!((news.present.len(), news.removed.len()), (0, 1));
}

#[test]
fn the_ballast_keeps_deleting_possible_on_a_full_disk() {
    let disk = FaultyDisk::new(1, 8 * MIB);
    let with_ballast = StoreOptions { ballast_bytes: MIB, ..options() };
    let store = Store::open(Arc::new(disk.clone()), &with_ballast).unwrap();
    assert_eq!(store.ballast_bytes(), MIB);
    let mut chunk = 1;
    let error = loop {
        match put(&store, chunk, 0, &data(1, 60)) {
            Ok(()) => chunk += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ChunkError::NoSpace), "{error}");
    assert_eq!(store.ballast_bytes(), MIB, "writers don't get it");
    // A filesystem that needs space to free some.
    disk.fail(Fault { op: Op::Unlink, path_contains: "chunks/".into(), errno: libc::ENOSPC, times: 1 });
    assert!(store.delete(ChunkId(1)).unwrap());
    assert_eq!(store.ballast_bytes(), 0);
    store.tidy();
    assert_eq!(store.ballast_bytes(), 0, "not while there is less than twice as much");
    for id in 2..8 {
        assert!(store.delete(ChunkId(id)).unwrap());
    }
    store.tidy();
    assert_eq!(store.ballast_bytes(), MIB);
    drop(store);
    let none = Store::open(Arc::new(disk.clone()), &options()).unwrap();
    assert_eq!((none.ballast_bytes(), disk.contents("ballast")), (0, None));
}

#[test]
fn damage_found_while_a_chunk_was_open_is_reported_again_when_it_is_sealed() {
    let disk = FaultyDisk::new(1, 64 * MIB);
    let store = open(&disk);
    put(&store, 1, 0, &data(1, 4)).unwrap();
    let path = path_of(ChunkId(1));
    disk.flip_bit(&path, disk.contents(&path).unwrap().len() as u64 - 1, 0);
    let read = store.chunk(ChunkId(1)).unwrap().file.read(0, 4 * BLOCK, Verified::Here);
    store.noting(ChunkId(1), read).unwrap_err();
    assert!(store.changes().take(10).bad.contains_key(&ChunkId(1)));
    assert!(store.changes().take(10).bad.is_empty());
    store.seal(ChunkId(1), Generation(2), 4 * BLOCK).unwrap();
    assert!(store.changes().take(10).bad[&ChunkId(1)].is_empty(), "as a whole");
}

#[test]
fn damage_is_reported() {
    let disk = FaultyDisk::new(1, 64 * MIB);
    let store = open(&disk);
    put(&store, 1, 0, &data(1, 4)).unwrap();
    put(&store, 2, 0, &data(1, 4)).unwrap();
    let path = path_of(ChunkId(1));
    let length = disk.contents(&path).unwrap().len() as u64;
    disk.flip_bit(&path, length - 1, 0);
    let open_chunk = store.chunk(ChunkId(1)).unwrap();
    let read = store.noting(ChunkId(1), open_chunk.file.read(0, 4 * BLOCK, Verified::Here));
    assert!(matches!(read, Err(ChunkError::Corrupt(blocks)) if blocks == [3]));
    // The other one's file is destroyed.
    drop(open_chunk);
    drop(store);
    for slot in [0, 4096] {
        disk.flip_bit(&path_of(ChunkId(2)), slot, 0);
    }
    let store = open(&disk);
    assert!(matches!(store.chunk(ChunkId(2)), Err(ChunkError::Damaged(_))));
    let (replicas, _) = store.list(None, 10);
    assert_eq!(replicas.iter().map(|replica| replica.bad).collect::<Vec<_>>(), [false, true]);
    let news = store.changes().take(10);
    assert!(news.bad[&ChunkId(2)].is_empty(), "as a whole");
    // It can be replaced in place, by what a peer has.
    let store = Arc::new(store);
    let mut target = store.begin_copy(ChunkId(2), Generation(3), 4 * BLOCK).unwrap().unwrap();
    let copy = data(1, 4);
    target.fill(0, &copy, &checksums(ChunkId(2), 0, &copy)).unwrap();
    target.finish().unwrap();
    assert_eq!(get(&store, 2, 0, 4).unwrap(), copy);
    let replica = store.replica(ChunkId(2)).unwrap();
    assert_eq!((replica.sealed, replica.bad, replica.generation), (true, false, Generation(3)));
    let news = store.changes().take(10);
    assert!(news.bad.is_empty() && news.present.contains(&ChunkId(2)));
    // Again: there is nothing to do but to note the generation.
    assert!(store.begin_copy(ChunkId(2), Generation(4), 4 * BLOCK).unwrap().is_none());
    assert_eq!(store.replica(ChunkId(2)).unwrap().generation, Generation(4));
}

#[test]
fn a_copy_has_its_blocks_verified_and_leaves_nothing_behind_when_it_fails() {
    let disk = FaultyDisk::new(1, 64 * MIB);
    let store = Arc::new(open(&disk));
    let copy = data(7, 2);
    let mut target = store.begin_copy(ChunkId(1), GENERATION, 2 * BLOCK).unwrap().unwrap();
    let elsewhere = checksums(ChunkId(2), 0, &copy);
    assert!(matches!(target.fill(0, &copy, &elsewhere), Err(ChunkError::BadChecksums(_))));
    drop(target);
    assert!(matches!(get(&store, 1, 0, 1), Err(ChunkError::NotFound)));
    assert!(!disk.files().iter().any(|path| path.ends_with(".copy")));
    let mut target = store.begin_copy(ChunkId(1), GENERATION, 2 * BLOCK).unwrap().unwrap();
    target.fill(BLOCK, &copy[..BLOCK as usize], &checksums(ChunkId(1), 1, &copy[..BLOCK as usize])).unwrap();
    target.trimmed(0);
    target.finish().unwrap();
    assert!(matches!(get(&store, 1, 0, 1), Err(ChunkError::Gone(_))));
    assert_eq!(get(&store, 1, 1, 1).unwrap(), data(7, 1));
}

#[test]
fn open_files_are_bounded_and_a_suspect_one_is_remembered() {
    let disk = FaultyDisk::new(1, 4096 * MIB);
    let store = open(&disk);
    put(&store, 1, 0, &data(1, 1)).unwrap();
    // Its sync fails, and so does the note of that.
    disk.fail(Fault { op: Op::Sync, path_contains: path_of(ChunkId(1)).clone(), errno: libc::EIO, times: 2 });
    disk.fail(Fault { op: Op::Sync, path_contains: temporary_of(ChunkId(1)), errno: libc::EIO, times: 2 });
    assert!(put(&store, 1, 1, &data(1, 1)).is_err());
    for id in 2..OPEN_CHUNKS_MAX as u64 + 50 {
        put(&store, id, 0, &data(1, 1)).unwrap();
    }
    assert_eq!(store.open_chunks(), OPEN_CHUNKS_MAX);
    assert!(matches!(put(&store, 1, 2, &data(1, 1)), Err(ChunkError::Suspect)));
    assert_eq!(get(&store, 2, 0, 1).unwrap(), data(1, 1), "one that was closed is opened again");
}

#[test]
fn space_comes_back_on_a_real_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new(folder.path(), true).unwrap());
    let with_ballast = StoreOptions { ballast_bytes: MIB, chunk_bytes: 16 * MIB, ..options() };
    let store = Store::open(disk, &with_ballast).unwrap();
    let used = || disk_usage(folder.path());
    let empty = used();
    assert!(empty >= MIB, "the ballast takes its space: {empty}");
    for id in 1..=3 {
        for block in (0..2048).step_by(256) {
            put(&store, id, block, &data(id as u8, 256)).unwrap();
        }
    }
    let full = used();
    assert!(full >= empty + 24 * MIB, "{empty} -> {full}");
    store.seal(ChunkId(1), GENERATION, 8 * MIB).unwrap();
    assert_eq!(store.trim(ChunkId(1), std::slice::from_ref(&(0..4 * MIB))).unwrap(), 4 * MIB);
    store.delete(ChunkId(2)).unwrap();
    // Cut at the seal.
    store.seal(ChunkId(3), GENERATION, MIB).unwrap();
    let after = used();
    assert!(after <= full - 18 * MIB, "{full} -> {after}");
    assert!(matches!(get(&store, 1, 0, 1), Err(ChunkError::Gone(_))));
    assert_eq!(get(&store, 1, 1024, 256).unwrap(), data(1, 256));
    drop(store);
    let again = Store::open(Arc::new(RealDisk::new(folder.path(), true).unwrap()), &with_ballast).unwrap();
    assert_eq!((again.len(), again.identity().incarnation), (2, 2));
    assert_eq!(get(&again, 3, 0, 256).unwrap(), data(3, 256));
}

fn disk_usage(folder: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        bytes += if metadata.is_dir() { disk_usage(&entry.path()) } else { metadata.blocks() * 512 };
    }
    bytes
}
