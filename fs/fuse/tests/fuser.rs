//! The second transport under a real kernel. Needs root and `/dev/fuse`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use atoll_fuse::device::{self, Device};
use atoll_fuse::fuser_transport::FuserSession;
use atoll_fuse::session::InitOptions;
use support::folder::Folder;
use support::{Mounted, cvt};
use tokio::runtime::Runtime;

#[test]
fn the_same_filesystem_over_fuser() {
    let runtime = Runtime::new().expect("runtime");
    let backing = tempfile::tempdir().expect("backing");
    let mounted = Mounted::volume();
    let kept = std::os::fd::AsFd::as_fd(&mounted.device).try_clone_to_owned().expect("dup");
    let folder = Arc::new(Folder::new(backing.path()));
    let options = InitOptions::default();
    let session =
        FuserSession::start(Device::from_fd(kept), 2, true, options, Arc::clone(&folder), runtime.handle())
            .expect("starts");
    runtime.block_on(session.ready()).expect("ready");

    let path = |name: &str| mounted.path.join(name);
    fs::create_dir(path("dir")).expect("mkdir");
    let big: Vec<u8> = (0..2_500_000u32).map(|i| (i % 251) as u8).collect();
    fs::write(path("dir/big"), &big).expect("write");
    assert!(fs::read(path("dir/big")).expect("read") == big);
    fs::rename(path("dir/big"), path("renamed")).expect("rename");
    fs::hard_link(path("renamed"), path("second")).expect("link");
    let metadata = fs::metadata(path("second")).expect("stat");
    assert_eq!((metadata.nlink(), metadata.len()), (2, big.len() as u64));
    std::os::unix::fs::symlink("renamed", path("symlink")).expect("symlink");
    assert_eq!(fs::read_link(path("symlink")).expect("readlink"), PathBuf::from("renamed"));
    fs::remove_file(path("second")).expect("unlink");
    fs::remove_dir(path("dir")).expect("rmdir");

    for number in 0..600 {
        fs::write(backing.path().join(format!("a-file-with-a-rather-long-name-{number:04}")), b"")
            .expect("write");
    }
    let mut listed = 0;
    for entry in fs::read_dir(&mounted.path).expect("opendir") {
        assert_ne!(entry.expect("readdir").metadata().expect("stat").ino(), 0);
        listed += 1;
    }
    assert_eq!(listed, 602);
    assert!(folder.forgotten.load(Ordering::Relaxed) > 0, "lookups that didn't fit are taken back");

    let one = File::open(path("renamed")).expect("open");
    let other = File::open(path("renamed")).expect("open");
    // SAFETY: open descriptors.
    unsafe {
        assert_eq!(cvt(i64::from(libc::flock(one.as_raw_fd(), libc::LOCK_EX))), Ok(0));
        let taken = libc::flock(other.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB);
        assert_eq!(cvt(i64::from(taken)), Err(libc::EAGAIN), "by the kernel, on this node");
    }
    drop((one, other));

    device::unmount(&mounted.path, false).expect("unmounts");
    runtime.block_on(session.ended()).expect("ends with the mount");
}
