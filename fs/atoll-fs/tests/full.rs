//! Full disks: writes are refused, nothing else breaks, and room gets them going again.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::processes::Processes;
use common::wait_until;

const MIB: u64 = 1 << 20;
/// Bytes of a file.
const FILE_BYTES: usize = 8 << 20;
/// More files than any disk here holds.
const FILES_MAX: u64 = 100;

fn content(number: u64) -> Vec<u8> {
    (0..FILE_BYTES).map(|at| (at as u64 * 3 + number * 17 + at as u64 / 4096) as u8).collect()
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("file-{number}"))
}

/// Writes a file and syncs it.
fn write(folder: &Path, number: u64) -> io::Result<()> {
    let mut file = File::create(path(folder, number))?;
    file.write_all(&content(number))?;
    file.sync_all()
}

/// Writes files until there is no room; how many are whole.
fn fill(folder: &Path, from: u64) -> u64 {
    for number in from..FILES_MAX {
        if let Err(error) = write(folder, number) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "file {number}: {error}");
            fs::remove_file(path(folder, number)).unwrap();
            return number;
        }
    }
    panic!("{FILES_MAX} files found room");
}

fn check(folder: &Path, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        assert!(fs::read(path(folder, number)).unwrap() == content(number), "file {number}");
    }
}

/// Takes all room of a disk but `left` bytes, as something else on it would.
fn occupy(disk: &Path, left: u64) {
    let found = nix::sys::statvfs::statvfs(disk).unwrap();
    let free = found.blocks_available() * found.fragment_size();
    let file = File::options().create(true).append(true).open(disk.join("occupied")).unwrap();
    let from = file.metadata().unwrap().len() as i64;
    let bytes = free.saturating_sub(left) as i64;
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), from, bytes).unwrap();
}

fn fsck(cluster: &Processes) {
    let output = cluster.command("fsck").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn full_storage_disks_refuse_writes_and_room_gets_them_going_again() {
    let mut cluster = Processes::start_on((1, None), (3, Some(256)), 3, false, &[]);
    let mount = cluster.mount("mnt");
    let files = fill(&mount, 0);
    assert!(files >= 96 * MIB / FILE_BYTES as u64, "only {files} files found room");

    // Everything else goes on, and what was synced is there.
    fs::create_dir(mount.join("folder")).unwrap();
    fs::rename(path(&mount, 0), mount.join("folder/moved")).unwrap();
    fs::rename(mount.join("folder/moved"), path(&mount, 0)).unwrap();
    let other = cluster.mount("other");
    check(&other, 0..files);
    for number in 0..3 {
        Processes::kill(&mut cluster.storage[number].0);
        cluster.start_storage(number);
    }
    wait_until("the servers are there again", || cluster.alive_servers() == 3);
    check(&other, 0..files);
    let error = write(&mount, files).expect_err("the disks are full");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));

    // Deleting makes room for as much.
    for number in 0..files / 2 {
        fs::remove_file(path(&mount, number)).unwrap();
    }
    fs::remove_file(path(&mount, files)).unwrap();
    for number in 0..files / 2 - 1 {
        write(&mount, number).unwrap_or_else(|error| panic!("file {number}: {error}"));
    }
    check(&other, (0..files / 2 - 1).chain(files / 2..files));

    // So do larger disks.
    let files = fill(&mount, files);
    for number in 0..3 {
        cluster.disk(&format!("storage-{number}"), 512);
    }
    wait_until("there is room again", || write(&mount, files).is_ok());
    write(&mount, files + 1).unwrap();
    check(&other, files..files + 2);
    fsck(&cluster);
}

#[test]
fn writes_go_on_while_one_disk_is_full() {
    let mut cluster = Processes::start_on((1, None), (4, Some(512)), 2, false, &[]);
    let mount = cluster.mount("mnt");
    write(&mount, 0).unwrap();
    occupy(&cluster.folder.path().join("storage-1"), 0);
    // A chunk that is open on it fails on the way.
    for number in 1..20 {
        write(&mount, number).unwrap_or_else(|error| panic!("file {number}: {error}"));
    }
    let other = cluster.mount("other");
    check(&other, 0..20);
    for number in 0..10 {
        fs::remove_file(path(&mount, number)).unwrap();
    }
    fs::remove_file(cluster.folder.path().join("storage-1/occupied")).unwrap();
    for number in 0..10 {
        write(&mount, number).unwrap();
    }
    check(&other, 0..20);
    fsck(&cluster);
}

#[test]
fn a_full_metadata_disk_refuses_what_grows_and_room_gets_it_going_again() {
    let mut cluster = Processes::start_on((1, Some(512)), (2, None), 2, false, &[]);
    let mount = cluster.mount("mnt");
    for number in 0..4 {
        write(&mount, number).unwrap();
    }
    let disk = cluster.folder.path().join("metadata");
    for left in [8 * MIB, 0] {
        occupy(&disk, left);
        wait_until("the leader has noticed", || {
            let made = File::create(mount.join("new"));
            let _ = fs::remove_file(mount.join("new"));
            made.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC))
        });
        let error = fs::create_dir(mount.join("folder")).expect_err("no room");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let file = File::options().write(true).open(path(&mount, 1)).unwrap();
        file.write_all_at(&content(1)[..5000], 0).unwrap();
        check(&mount, 0..4);
        fs::rename(path(&mount, 0), mount.join("moved")).unwrap();
        fs::rename(mount.join("moved"), path(&mount, 0)).unwrap();
        fs::remove_file(path(&mount, 3)).unwrap();
        std::thread::sleep(Duration::from_secs(5));
        fs::remove_file(disk.join("occupied")).unwrap();
        wait_until("there is room again", || write(&mount, 3).is_ok());
        check(&mount, 0..4);
        // The ballast is taken again, too.
        wait_until("the ballast is there", || disk.join("ballast").exists());
    }
    fsck(&cluster);
}

fn metadata_disk(cluster: &Processes, number: usize) -> PathBuf {
    cluster.folder.path().join(Processes::metadata_name(number))
}

/// Waits until a member leads that is none of these.
fn leader_but(cluster: &Processes, others: &[usize]) -> usize {
    let mut leader = None;
    wait_until("one with room leads", || {
        leader = cluster.leader().filter(|leader| !others.contains(leader));
        leader.is_some()
    });
    leader.unwrap()
}

/// Sets an attribute of a folder so large that it takes room on the metadata disks.
fn grow(folder: &Path, number: u64) -> io::Result<()> {
    let name = std::ffi::CString::new(format!("user.{}", number % 16)).unwrap();
    let path = std::ffi::CString::new(folder.to_str().unwrap()).unwrap();
    let value: Vec<u8> = (0..3750_u64)
        .flat_map(|at| (at + number).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    // SAFETY: the strings end with NUL, and the value is as long as it is said to be.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Attributes are set until the disk of a member would be full several times if it took them.
fn grow_much(folder: &Path) {
    for number in 0..200 * MIB / 30_000 {
        grow(folder, number).unwrap_or_else(|error| panic!("attribute {number}: {error}"));
    }
}

#[test]
fn of_three_metadata_disks_one_may_be_full_and_others_go_on() {
    let mut cluster = Processes::start_on((3, Some(512)), (2, None), 2, false, &[]);
    let mount = cluster.mount("mnt");
    write(&mount, 0).unwrap();
    let folder = mount.join("folder");
    fs::create_dir(&folder).unwrap();

    // The leader's disk: somebody else leads, and what grows goes on there.
    let first = leader_but(&cluster, &[]);
    occupy(&metadata_disk(&cluster, first), 24 * MIB);
    let second = leader_but(&cluster, &[first]);
    occupy(&metadata_disk(&cluster, first), 0);
    grow_much(&folder);
    fs::create_dir(mount.join("made")).unwrap();
    let problems = cluster.status()["problems"].to_string();
    assert!(problems.contains("is full"), "{problems}");

    // With a second one what grows could not be committed: it is refused, and the rest goes on.
    occupy(&metadata_disk(&cluster, second), 24 * MIB);
    wait_until("what grows is refused", || {
        grow(&folder, 0).is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC))
    });
    let third = leader_but(&cluster, &[first, second]);
    fs::rename(path(&mount, 0), mount.join("moved")).unwrap();
    fs::rename(mount.join("moved"), path(&mount, 0)).unwrap();
    fs::remove_dir(mount.join("made")).unwrap();
    let other = cluster.mount("other");
    check(&other, 0..1);

    // Room on one is enough, and the others catch up when they have some.
    fs::remove_file(metadata_disk(&cluster, second).join("occupied")).unwrap();
    wait_until("there is room again", || write(&mount, 1).is_ok());
    grow_much(&folder);
    fs::remove_file(metadata_disk(&cluster, first).join("occupied")).unwrap();
    wait_until("all members are well", || {
        let members = cluster.status()["metadata"]["members"].as_array().cloned().unwrap_or_default();
        members.len() == 3 && members.iter().all(|member| member["lag"].as_u64().is_some_and(|lag| lag < 50))
    });
    wait_until("nothing is wrong any more", || {
        cluster.status()["problems"].as_array().is_some_and(Vec::is_empty)
    });
    for number in [third, first, second] {
        Processes::kill(&mut cluster.metadata[number].0);
        cluster.start_metadata(number);
        wait_until("somebody leads", || cluster.leader().is_some());
    }
    check(&mount, 0..2);
    fsck(&cluster);
}
