//! Space: what is deleted or overwritten is given back, and a full volume says so at once.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use common::Cluster;
use common::processes::Processes;

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

/// Bytes and inodes in use, as `df` shows them.
fn in_use(mountpoint: &Path) -> (u64, u64) {
    let shown = nix::sys::statvfs::statvfs(mountpoint).unwrap();
    ((shown.blocks() - shown.blocks_free()) * shown.fragment_size(), shown.files() - shown.files_free())
}

fn allocate(file: &fs::File, bytes: u64) -> i32 {
    // SAFETY: an open descriptor.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as i64) };
    if done == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) }
}

/// What another mount did shows within 5 s.
fn soon(mountpoint: &Path, wanted: (u64, u64)) {
    let began = Instant::now();
    while in_use(mountpoint) != wanted {
        assert!(began.elapsed() < Duration::from_secs(5), "{:?} instead of {wanted:?}", in_use(mountpoint));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_this_mount_does_shows_in_df_at_once_and_exactly() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "256Mi"]);
    let mountpoint = &cluster.mountpoint;
    let (bytes, inodes) = in_use(mountpoint);
    let expect = |what: &str, more_bytes: u64, more_inodes: u64| {
        assert_eq!(in_use(mountpoint), (bytes + more_bytes, inodes + more_inodes), "{what}");
    };
    for round in 0..10 {
        expect("nothing is there", 0, 0);
        fs::write(cluster.path("a"), "hi\n").unwrap();
        expect("a small file", 4096, 1);
        fs::write(cluster.path("b"), vec![round; 3_000_005]).unwrap();
        expect("a large one", 4096 + 3_002_368, 2);
        fs::OpenOptions::new().write(true).open(cluster.path("b")).unwrap().set_len(MIB + 1).unwrap();
        expect("truncated", 4096 + MIB + 4096, 2);
        fs::remove_file(cluster.path("b")).unwrap();
        expect("removed", 4096, 1);

        let mut open = fs::File::create(cluster.path("c")).unwrap();
        open.write_all(&[round; 100_000]).unwrap();
        expect("buffered", 4096 + 102_400, 2);
        open.write_all(&[round; 2_400]).unwrap();
        expect("buffered in the last block", 4096 + 102_400, 2);
        open.write_all_at(&[round; 5_000], 50_000).unwrap();
        expect("overwritten", 4096 + 102_400, 2);
        open.sync_all().unwrap();
        expect("committed", 4096 + 102_400, 2);
        fs::remove_file(cluster.path("c")).unwrap();
        expect("removed while it is open", 4096 + 102_400, 2);
        drop(open);
        expect("and closed", 4096, 1);

        let file = fs::File::create(cluster.path("d")).unwrap();
        assert_eq!(allocate(&file, 10 * MIB), 0);
        expect("allocated", 4096 + 10 * MIB, 2);
        drop(file);
        fs::create_dir(cluster.path("folder")).unwrap();
        expect("a folder", 4096 + 10 * MIB, 3);
        fs::remove_file(cluster.path("d")).unwrap();
        fs::remove_dir(cluster.path("folder")).unwrap();
        fs::remove_file(cluster.path("a")).unwrap();
    }
    for number in 0..200 {
        fs::write(cluster.path(&format!("many-{number}")), "x").unwrap();
    }
    expect("many", 200 * 4096, 200);
    for number in 0..200 {
        fs::remove_file(cluster.path(&format!("many-{number}"))).unwrap();
    }
    expect("all gone", 0, 0);

    // Each server says what is stored on it, and what its disk has.
    fs::write(cluster.path("stored"), vec![1; 4 << 20]).unwrap();
    fs::File::open(cluster.path("stored")).unwrap().sync_all().unwrap();
    let status = cluster.status();
    let server = &status["storage"][0];
    assert_eq!(server["stored"].as_u64(), Some(4 * MIB), "{server}");
    let disk = |field: &str| server[field].as_u64().unwrap();
    assert!(disk("diskFree") + disk("diskUsed") <= disk("diskCapacity"), "{server}");
}

#[test]
fn all_that_df_says_is_free_can_be_allocated_whatever_mounts_have_set_aside() {
    let mut cluster = Processes::start(1, 1);
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    for round in 0..3 {
        // Each mount sets room aside for more than that.
        fs::write(one.join("a"), [round; 5]).unwrap();
        fs::write(two.join("b"), [round; 5]).unwrap();
        let open = fs::File::create(one.join("open")).unwrap();
        open.write_all_at(&[round; 5], 0).unwrap();
        assert_eq!(in_use(&one), (3 * 4096, 4));
        soon(&two, (3 * 4096, 4));
        let shown = nix::sys::statvfs::statvfs(&one).unwrap();
        let free = shown.blocks_available() * shown.fragment_size();
        let file = fs::File::create(one.join("all")).unwrap();
        assert_eq!(allocate(&file, free), 0, "{free} bytes are free");
        let shown = nix::sys::statvfs::statvfs(&one).unwrap();
        assert_eq!(shown.blocks_available(), 0);
        let full = fs::write(two.join("more"), [1; 5000]).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        fs::remove_file(two.join("more")).unwrap();
        // Nothing of what was promised is lost.
        open.sync_all().unwrap();
        drop((file, open));
        fs::remove_file(two.join("all")).unwrap();
        fs::remove_file(one.join("open")).unwrap();
        soon(&one, (8192, 3));
        fs::write(one.join("c"), vec![1; 100_000]).unwrap();
        soon(&two, (8192 + 102_400, 4));
        fs::remove_file(one.join("c")).unwrap();
        soon(&two, (8192, 3));
    }
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

#[test]
fn a_volume_is_resized_while_it_is_used() {
    let mut cluster = Processes::start(1, 1);
    let mount = cluster.mount("mount");
    let total = || nix::sys::statvfs::statvfs(&mount).map(|volume| volume.blocks() * volume.fragment_size());
    let resize = |arguments: &[&str]| {
        let output = cluster.admin(&["resize"], arguments);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(resize(&["--capacity", "8Mi"]).0);
    common::wait_until("the mount shows it", || total().is_ok_and(|bytes| bytes == 8 * MIB));
    let full = fill_up(&mount.join("file"));
    assert_eq!(full.raw_os_error(), Some(nix::libc::ENOSPC));

    let (is_done, message) = resize(&["--capacity", "4Mi"]);
    assert!(!is_done && message.contains("delete files, or choose a larger size"), "{message}");
    assert!(resize(&["--capacity", "64Mi", "--inodes", "20000"]).0);
    common::wait_until("the mount shows it", || total().is_ok_and(|bytes| bytes == 64 * MIB));
    fill(&mount.join("more"), 16 * MIB, 7);
    assert_eq!(cluster.status()["volume"]["inodesTotal"], 20000);
    let (is_done, message) = resize(&[]);
    assert!(!is_done && message.contains("--capacity") && message.contains("--inodes"), "{message}");
}

/// Writes and syncs until there is an error, which it returns.
fn fill_up(path: &Path) -> std::io::Error {
    let mut file = fs::File::create(path).unwrap();
    loop {
        if let Err(error) = file.write_all(&[9; MIB as usize]).and_then(|()| file.sync_all()) {
            return error;
        }
    }
}
