//! A mount that is cut off from the cluster by its network.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use common::processes::{Link, Processes};
use common::{text, wait_until};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn lock(file: &File, operation: i32) -> bool {
    // SAFETY: an open descriptor.
    unsafe { libc::flock(file.as_raw_fd(), operation) == 0 }
}

fn is_eio(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
}

/// Mends the link also when the test fails: what it has open can't be closed before.
struct Cut<'a>(&'a mut Link);

impl<'a> Cut<'a> {
    fn begin(link: &'a mut Link) -> Cut<'a> {
        link.cut();
        Cut(link)
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.0.mend();
    }
}

#[test]
fn a_mount_whose_network_is_gone_loses_what_it_had_not_committed_and_no_more() {
    let mut link = Link::new();
    let mut cluster = Processes::start_near(&link, 3, 2, 2);
    let near = cluster.mount("near");
    let back = cluster.go_to(link.far());
    let far = cluster.mount("far");
    back.map(|back| cluster.go_to(back));

    let large: Vec<u8> = (0..3_000_000u32).map(|at| (at / 5) as u8).collect();
    fs::write(near.join("large"), &large).unwrap();
    let [kept, lost, locked] = ["kept", "lost", "locked"].map(|name| open(&far.join(name)));
    for file in [&kept, &lost, &locked] {
        file.write_all_at(b"before", 0).unwrap();
        file.sync_all().unwrap();
    }
    assert!(lock(&locked, libc::LOCK_EX | libc::LOCK_NB));
    let theirs = open(&near.join("locked"));
    assert!(!lock(&theirs, libc::LOCK_EX | libc::LOCK_NB));

    lost.write_all_at(&[b'x'; 50_000], 0).unwrap();
    let cut = Cut::begin(&mut link);
    // The others go on, at once where the one that is cut off isn't in their way, and within its session's lifetime (5 s) where
    // it is.
    fs::write(near.join("meanwhile"), b"meanwhile").unwrap();
    fs::rename(near.join("kept"), near.join("moved")).unwrap();
    wait_until("its lock is free", || lock(&theirs, libc::LOCK_EX | libc::LOCK_NB));
    theirs.write_all_at(b"theirs", 0).unwrap();
    theirs.sync_all().unwrap();
    let found = fs::read(near.join("lost")).unwrap();
    // As a rule: what was written a moment ago was not on its way yet.
    let is_lost = found == b"before";
    assert!(is_lost || found == vec![b'x'; 50_000], "neither what was synced nor what was written");
    println!("what was not synced is {}", if is_lost { "lost" } else { "there" });

    // An application that waits is served when the network is back, and sees no error.
    let (answered, answer) = mpsc::channel();
    let path = far.join("waited");
    let waits = std::thread::spawn(move || answered.send(fs::write(&path, b"waited")));
    assert!(answer.recv_timeout(Duration::from_secs(3)).is_err(), "who answered?");
    drop(cut);
    answer.recv_timeout(Duration::from_secs(120)).expect("it goes on by itself").unwrap();
    waits.join().unwrap().unwrap();

    for _ in 0..2 {
        assert_eq!(is_eio(&lost.sync_all()), is_lost);
        assert_eq!(is_eio(&lost.write_all_at(b"before", 0)), is_lost);
        assert!(is_eio(&locked.write_all_at(b"mine", 0)), "the lock was another one's meanwhile");
    }
    kept.write_all_at(b"after.", 0).unwrap();
    kept.sync_all().unwrap();
    drop((lost, locked, theirs));
    assert_eq!(fs::read(near.join("moved")).unwrap(), b"after.");
    assert_eq!(fs::read(far.join("locked")).unwrap(), b"theirs");
    assert!(fs::read(far.join("lost")).unwrap().starts_with(b"before"));
    assert!(fs::read(far.join("large")).unwrap() == large);
    assert_eq!(fs::read(far.join("meanwhile")).unwrap(), b"meanwhile");
    let lost = open(&far.join("lost"));
    lost.write_all_at(b"behind", 0).unwrap();
    lost.sync_all().unwrap();
    assert!(fs::read(near.join("lost")).unwrap().starts_with(b"behind"));
    drop((kept, lost));

    cluster.unmount(&far);
    let check = cluster.command("fsck").output().unwrap();
    assert!(check.status.success(), "{}", text(&check));
    cluster.unmount(&near);
}
