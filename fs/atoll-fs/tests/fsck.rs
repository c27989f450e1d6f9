//! `atoll-fs fsck` with real processes: quiet while writers work, every kind of damage by its name, exit codes.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_core::ids::{ChunkId, InodeId, MemberId, SegmentIndex, ServerId};
use atoll_core::keys;
use atoll_core::query::{find_entry, load};
use atoll_core::records::{ChunkRecord, DeadRecord, InodeRecord, Place, Record, SegmentRecord, Superblock};
use atoll_core::store::{Family, Read};
use atoll_metadata::store::folder::Folder;
use atoll_metadata::store::rocks::Rocks;
use common::processes::Processes;
use common::{detach_all, text, wait_until};

fn content(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
}

fn fsck(cluster: &Processes, arguments: &[&str]) -> Output {
    cluster.command("fsck").args(arguments).output().unwrap()
}

/// The lines of `--json` that have `member`.
fn lines(output: &Output, member: &str) -> Vec<serde_json::Value> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|line| line.get(member).is_some())
        .collect()
}

fn names(output: &Output) -> BTreeSet<String> {
    lines(output, "finding").iter().map(|line| line["finding"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn nothing_in_progress_is_taken_for_damage() {
    let mut cluster = Processes::start(2, 2);
    let mount = cluster.mount("mnt");
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3u8)
        .map(|writer| {
            let (folder, stop) = (mount.join(format!("writer-{writer}")), Arc::clone(&stop));
            std::thread::spawn(move || {
                fs::create_dir(&folder).unwrap();
                let mut count = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    let bytes = [100, 9_000, 70_000, 2_000_000][count as usize % 4];
                    let path = folder.join(format!("file-{}", count % 16));
                    let mut file = File::create(&path).unwrap();
                    file.write_all(&content(bytes, writer)).unwrap();
                    if count.is_multiple_of(3) {
                        file.sync_all().unwrap();
                    }
                    if count % 5 == 1 {
                        fs::rename(&path, folder.join("renamed")).unwrap();
                    } else if count % 5 == 3 {
                        fs::remove_file(&path).unwrap();
                    }
                    count += 1;
                }
                count
            })
        })
        .collect();
    for _ in 0..12 {
        let output = fsck(&cluster, &[]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.join().unwrap() > 16, "the writers worked");
    }
    let output = fsck(&cluster, &["--json", "--repair", "all"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(lines(&output, "done")[0]["done"]["clean"], true);
}

#[test]
fn wrong_flags_and_servers_that_are_away_have_codes_of_their_own() {
    let mut cluster = Processes::start(1, 1);
    let output = fsck(&cluster, &["--repair", "everything"]);
    assert!(output.status.code() == Some(16) && text(&output).contains("link-count"), "{}", text(&output));
    let output = fsck(&cluster, &["--no-such-flag"]);
    assert_eq!(output.status.code(), Some(16), "{}", text(&output));
    assert_eq!(fsck(&cluster, &[]).status.code(), Some(0));
    Processes::kill(&mut cluster.metadata[0].0);
    let output = fsck(&cluster, &[]);
    assert_eq!(output.status.code(), Some(8), "{}", text(&output));
}

#[test]
fn replicas_are_what_the_records_say() {
    let mut cluster = Processes::start(3, 3);
    let mount = cluster.mount("mnt");
    fs::write(mount.join("big"), content(5_000_000, 7)).unwrap();
    File::open(mount.join("big")).unwrap().sync_all().unwrap();
    unmount(&mut cluster);
    // The session ends, and its chunks are sealed with it.
    wait_until("clean", || fsck(&cluster, &["--data"]).status.code() == Some(0));
    // One flipped bit in the data, which only reading finds.
    Processes::kill(&mut cluster.storage[0].0);
    let files = cluster.chunk_files(0);
    assert!(!files.is_empty(), "the file is in a chunk");
    for path in files {
        let mut bytes = fs::read(&path).unwrap();
        bytes[700_000] ^= 4;
        fs::write(&path, bytes).unwrap();
    }
    let output = fsck(&cluster, &["--json"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(names(&output).contains("replicas-unchecked"), "{}", text(&output));
    cluster.start_storage(0);
    wait_until("it is back", || fsck(&cluster, &[]).status.code() == Some(0));
    let output = fsck(&cluster, &["--json", "--data"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(names(&output).contains("replica-bad"), "{}", text(&output));
}

/// The records of a member that doesn't run.
struct Records {
    rocks: Rocks,
    hash_key: (u64, u64),
}

impl Records {
    fn open(cluster: &Processes) -> Records {
        let path = cluster.folder.path().join("metadata");
        let folder = Folder::open(&path, cluster.id.parse().unwrap(), MemberId(0)).unwrap();
        let rocks = Rocks::open(&folder.current_state().unwrap(), 8 << 20).unwrap();
        let superblock: Superblock = load(&rocks, Family::System, &keys::superblock()).unwrap().unwrap();
        Records { rocks, hash_key: superblock.hash_key }
    }

    fn put(&self, family: Family, key: Vec<u8>, record: &impl Record) {
        self.rocks.write(&[(family, key, Some(record.encode()))]).unwrap();
    }

    fn delete(&self, family: Family, key: Vec<u8>) {
        assert!(self.rocks.get(family, &key).unwrap().is_some(), "there is something to delete");
        self.rocks.write(&[(family, key, None)]).unwrap();
    }

    fn change<R: Record>(&self, family: Family, key: Vec<u8>, change: impl FnOnce(&mut R)) {
        let mut record: R = load(&self.rocks, family, &key).unwrap().expect("the record is there");
        change(&mut record);
        self.put(family, key, &record);
    }

    fn inode(&self, ino: InodeId, change: impl FnOnce(&mut InodeRecord)) {
        self.change(Family::Inodes, keys::inode(ino), change);
    }

    fn drop_name(&self, parent: InodeId, name: &str) {
        let found = find_entry(&self.rocks, self.hash_key, parent, name.as_bytes()).unwrap().unwrap();
        self.delete(Family::Names, found.key);
    }

    /// The first piece of a file.
    fn place(&self, ino: InodeId) -> Place {
        let key = keys::segment(ino, SegmentIndex(0));
        load::<SegmentRecord>(&self.rocks, Family::Extents, &key).unwrap().unwrap().pieces[0].place
    }
}

fn unmount(cluster: &mut Processes) {
    detach_all(cluster.folder.path());
    for (mut child, _) in cluster.mounts.drain(..) {
        child.wait().unwrap();
    }
}

/// Stops the metadata server as an administrator does: everything is in its store then.
fn stop(cluster: &mut Processes) {
    let mut child = cluster.metadata[0].0.take().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    child.wait().unwrap();
}

#[test]
fn each_kind_of_damage_is_found_by_its_name_and_repaired() {
    let mut cluster = Processes::start(2, 2);
    let mount = cluster.mount("mnt");
    fs::create_dir(mount.join("folder")).unwrap();
    let small: Vec<String> = (0..10).map(|number| format!("small-{number}")).collect();
    for (number, name) in small.iter().enumerate() {
        fs::write(mount.join("folder").join(name), content(1000, number as u8)).unwrap();
    }
    fs::write(mount.join("big"), content(3_000_000, 99)).unwrap();
    let number = |path: &Path| InodeId(fs::metadata(path).unwrap().ino());
    let folder = number(&mount.join("folder"));
    let big = number(&mount.join("big"));
    let inodes: Vec<InodeId> = small.iter().map(|name| number(&mount.join("folder").join(name))).collect();
    for path in small.iter().map(|name| mount.join("folder").join(name)).chain([mount.join("big")]) {
        File::open(path).unwrap().sync_all().unwrap();
    }
    unmount(&mut cluster);
    wait_until("clean before", || fsck(&cluster, &[]).status.code() == Some(0));
    stop(&mut cluster);

    let records = Records::open(&cluster);
    let mut expected = BTreeSet::new();
    let mut damage = |name: &str| {
        expected.insert(name.to_owned());
    };
    damage("link-count");
    records.inode(inodes[0], |record| record.nlink = 5);
    damage("parent-missing");
    records.delete(Family::Names, keys::parent(inodes[1], folder, b"small-1"));
    damage("name-missing");
    records.drop_name(folder, "small-2");
    damage("directory-counts");
    damage("inode-without-name");
    records.drop_name(folder, "small-3");
    records.delete(Family::Names, keys::parent(inodes[3], folder, b"small-3"));
    damage("mapped-bytes");
    records.inode(inodes[4], |record| record.mapped = 1);
    damage("acl-flag");
    records.inode(inodes[5], |record| record.default_acl = true);
    damage("entry-without-inode");
    damage("segment-without-inode");
    records.delete(Family::Inodes, keys::inode(inodes[6]));
    damage("inline-missing");
    let Place::Inline { id, .. } = records.place(inodes[7]) else { panic!("a small file is inline") };
    records.delete(Family::Inline, keys::inline(inodes[7], SegmentIndex(0), id));
    damage("inline-unused");
    let key = keys::inline(inodes[8], SegmentIndex(0), 1 << 40);
    records.rocks.write(&[(Family::Inline, key, Some(b"whose?".to_vec()))]).unwrap();
    let Place::Chunk { chunk, .. } = records.place(big) else { panic!("a big file is in a chunk") };
    damage("reference-missing");
    records.delete(Family::System, keys::back_reference(chunk, big, SegmentIndex(0)));
    damage("reference-stale");
    records.put(
        Family::System,
        keys::back_reference(chunk, inodes[9], SegmentIndex(0)),
        &atoll_core::records::Marker,
    );
    damage("live-blocks");
    records.change(Family::System, keys::chunk(chunk), |record: &mut ChunkRecord| record.live_blocks += 3);
    damage("dead-in-use");
    damage("trim-order");
    let dead = DeadRecord { blocks: 1, waiting: vec![ServerId(1)] };
    // Of the file's second segment: the reference to the first one is missing, so nothing is known to be in use there.
    let Place::Chunk { chunk: second, offset } = ({
        let key = keys::segment(big, SegmentIndex(1));
        load::<SegmentRecord>(&records.rocks, Family::Extents, &key).unwrap().unwrap().pieces[0].place
    }) else {
        panic!("a big file is in a chunk")
    };
    let replica = load::<ChunkRecord>(&records.rocks, Family::System, &keys::chunk(second)).unwrap().unwrap();
    let dead_in_use = DeadRecord { waiting: vec![replica.replicas[0]], ..dead.clone() };
    records.put(Family::System, keys::dead(second, offset / 4096), &dead_in_use);
    damage("dead-without-chunk");
    records.put(Family::System, keys::dead(ChunkId(1 << 40), 0), &dead);
    damage("volume-totals");
    records
        .change(Family::System, keys::superblock(), |volume: &mut Superblock| volume.bytes_used += 1 << 20);
    records.rocks.flush().unwrap();
    drop(records);
    cluster.start_metadata(0);
    wait_until("it serves again", || cluster.alive_servers() == 2);

    let output = fsck(&cluster, &["--json"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    let found = names(&output);
    assert!(expected.is_subset(&found), "not found: {:?}", expected.difference(&found).collect::<Vec<_>>());
    assert!(text(&output).contains("/folder/small-7"), "{}", text(&output));

    let output = fsck(&cluster, &["--repair", "all"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let output = fsck(&cluster, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    let mount = cluster.mount("again");
    assert!(fs::read(mount.join("big")).unwrap() == content(3_000_000, 99));
    for (number, name) in small.iter().enumerate() {
        let path = match number {
            3 => mount.join("lost+found").join(format!("#{}", inodes[3])),
            _ => mount.join("folder").join(name),
        };
        match number {
            7 => assert_eq!(fs::read(path).unwrap_err().raw_os_error(), Some(libc::EIO)),
            _ => assert!(fs::read(&path).unwrap() == content(1000, number as u8), "{}", path.display()),
        }
    }
    let rescued =
        fs::read_dir(mount.join("lost+found")).unwrap().map(|entry| fs::read(entry.unwrap().path()));
    assert!(rescued.into_iter().any(|content| content.unwrap() == b"whose?"));
}
