//! Space: what is deleted or overwritten is given back, and a full volume says so at once.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use common::Cluster;

const MIB: u64 = 1 << 20;

/// Bytes that a folder takes on its disk.
fn on_disk(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().filter_map(Result::ok) {
            let Ok(found) = entry.metadata() else { continue };
            bytes += found.blocks() * 512;
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}

/// Waits until the storage folders take no more than 1.2 × live bytes × copies and 100 MiB a server.
fn wait_for_room(cluster: &Cluster, copies: u64, live: u64) {
    let allowed = live * copies * 12 / 10 + copies * 100 * MIB;
    let began = Instant::now();
    loop {
        let taken: u64 = (0..copies).map(|n| on_disk(&cluster.data.join(format!("storage-{n}")))).sum();
        if taken <= allowed {
            println!("{} MiB of {} MiB after {:?}", taken / MIB, allowed / MIB, began.elapsed());
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{} MiB are still taken, {} MiB are allowed for {} MiB of live data",
            taken / MIB,
            allowed / MIB,
            live / MIB
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn fill(path: &Path, bytes: u64, seed: u8) {
    let mut file = fs::File::create(path).unwrap();
    let block: Vec<u8> = (0..MIB).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    for _ in 0..bytes / MIB {
        file.write_all(&block).unwrap();
    }
    file.sync_all().unwrap();
}

#[test]
fn deleted_and_overwritten_bytes_are_given_back() {
    let cluster = Cluster::start(&["--copies", "2", "--capacity", "4Gi"]);
    fill(&cluster.path("keep"), 64 * MIB, 1);
    fill(&cluster.path("big"), 1024 * MIB, 2);
    fs::remove_file(cluster.path("big")).unwrap();
    wait_for_room(&cluster, 2, 64 * MIB);

    // Overwritten four times in place.
    fill(&cluster.path("again"), 256 * MIB, 0);
    let file = OpenOptions::new().write(true).open(cluster.path("again")).unwrap();
    for round in 1..=4u8 {
        let block = vec![round; MIB as usize];
        for at in 0..256 {
            file.write_all_at(&block, at * MIB).unwrap();
        }
        file.sync_all().unwrap();
    }
    drop(file);
    wait_for_room(&cluster, 2, 320 * MIB);

    // Small pieces all over: what is left of mostly dead chunks is moved together.
    fill(&cluster.path("holes"), 256 * MIB, 3);
    let file = OpenOptions::new().write(true).open(cluster.path("holes")).unwrap();
    for at in 0..256 {
        file.write_all_at(&vec![9; MIB as usize - 4096], at * MIB).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    wait_for_room(&cluster, 2, 576 * MIB);

    let mut content = Vec::new();
    fs::File::open(cluster.path("again")).unwrap().read_to_end(&mut content).unwrap();
    assert!(content.len() == 256 << 20 && content.iter().all(|byte| *byte == 4));
}

#[test]
fn a_full_volume_says_so_at_write_and_deleting_helps() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "64Mi"]);
    let mut file = fs::File::create(cluster.path("filler")).unwrap();
    let block = vec![1u8; 64 << 10];
    let mut written = 0u64;
    let error = loop {
        match file.write(&block) {
            Ok(n) => written += n as u64,
            Err(error) => break error,
        }
        assert!(written <= 64 * MIB, "more was accepted than the volume holds");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    assert!(written >= 60 * MIB, "full after {} MiB of 64", written / MIB);
    // What was accepted never fails late.
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(fs::metadata(cluster.path("filler")).unwrap().len(), written);

    // Overwriting is free on a full volume, new bytes are not, and names can still be removed.
    let file = OpenOptions::new().write(true).open(cluster.path("filler")).unwrap();
    file.write_all_at(&vec![2u8; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::remove_file(cluster.path("filler")).unwrap();
    common::wait_until("the room is back", || fs::write(cluster.path("next"), vec![3u8; 32 << 20]).is_ok());
    assert_eq!(fs::read(cluster.path("next")).unwrap(), vec![3u8; 32 << 20]);

    let statfs = nix::sys::statvfs::statvfs(&cluster.mountpoint).unwrap();
    assert_eq!(
        statfs.blocks() * statfs.fragment_size(),
        64 * MIB,
        "statfs doesn't show the volume's own size"
    );
}

#[test]
fn inodes_are_counted_exactly() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "8Mi"]);
    let total = nix::sys::statvfs::statvfs(&cluster.mountpoint).unwrap().files_free();
    let mut made = 0;
    let error = loop {
        match fs::File::create(cluster.path(&made.to_string())) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(made, total);
    fs::remove_file(cluster.path("0")).unwrap();
    common::wait_until("the inode is back", || fs::File::create(cluster.path("again")).is_ok());
}

#[test]
fn a_sparse_file_of_8_eib_costs_what_it_holds() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "64Mi"]);
    let last = i64::MAX as u64;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(cluster.path("far")).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 1 << 62).unwrap();
    file.write_all_at(b"end", last - 3).unwrap();
    let beyond = file.write_at(b"x", last).unwrap_err();
    assert_eq!(beyond.raw_os_error(), Some(libc::EINVAL), "{beyond}");
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), last);
    assert!(file.metadata().unwrap().blocks() * 512 <= MIB, "holes take room");

    // Everything is read by whoever opens it anew.
    drop(file);
    let file = options.create_new(false).open(cluster.path("far")).unwrap();
    let mut content = [1u8; 6];
    for (offset, expected) in [(0, b"begin\0"), (1 << 62, b"middle"), (1 << 61, b"\0\0\0\0\0\0")] {
        file.read_exact_at(&mut content, offset).unwrap();
        assert_eq!(&content, expected, "at {offset}");
    }
    let mut content = [0u8; 10];
    file.read_exact_at(&mut content, last - 10).unwrap();
    assert_eq!(&content, b"\0\0\0\0\0\0\0end");
    // SEEK_DATA finds what is far apart.
    // SAFETY: the file is open.
    let found = unsafe { libc::lseek(file.as_raw_fd(), 1 << 20, libc::SEEK_DATA) };
    assert!(found <= 1 << 62 && found > (1 << 62) - MIB as i64, "{found}");

    file.set_len(1 << 62).unwrap();
    file.set_len(last).unwrap();
    file.read_exact_at(&mut content, last - 10).unwrap();
    assert_eq!(content, [0; 10], "what was cut off is zeroes");
    fs::remove_file(cluster.path("far")).unwrap();
}
