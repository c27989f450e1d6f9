//! Locks, copies, access control lists, files without a name: over records in memory, from several mounts.

use atoll_core::records::VolumeConfig;

use super::*;
use crate::testing::{LocalMetadata, MemCluster};
use crate::vfs::{Interrupt, LockKind};

const TIMEOUT: Duration = Duration::from_secs(60);
const RDWR: u32 = libc::O_RDWR as u32;

type Mount = Arc<Client<LocalMetadata>>;
type Open = (InodeId, u64);

fn cluster() -> MemCluster {
    MemCluster::new(VolumeConfig { copies: 1, copies_min: 1, ..VolumeConfig::default() })
}

fn me() -> Caller {
    Caller { uid: 1000, gid: 100, ..Caller::default() }
}

fn name(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn create(fs: &Mount, file: &str) -> Open {
    let (entry, opened) = fs.create(&me(), ROOT, name(file), 0o644, RDWR).await.unwrap();
    (entry.attributes.ino, opened.handle)
}

async fn open(fs: &Mount, ino: InodeId) -> Open {
    (ino, fs.open(&me(), ino, RDWR).await.unwrap().handle)
}

async fn write(fs: &Mount, (ino, handle): Open, offset: u64, data: &[u8]) {
    let (data, length) = (Bytes::copy_from_slice(data), data.len() as u32);
    assert_eq!(fs.write(&me(), ino, handle, offset, data, WriteFlags::default()).await, Ok(length));
}

async fn read(fs: &Mount, (ino, handle): Open, offset: u64, size: u32) -> Vec<u8> {
    fs.read(&me(), ino, handle, offset, size, true).await.unwrap().concat()
}

async fn close(fs: &Mount, (ino, handle): Open, owner: u64) {
    fs.flush(&me(), ino, handle, owner).await.unwrap();
    fs.release(&me(), ino, handle, None, false).await.unwrap();
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> i32 {
    result.expect_err("this must fail").0
}

fn check(cluster: &MemCluster) {
    let mut volume = cluster.volume.lock();
    volume.purge();
    assert_eq!(volume.problems(), Vec::<String>::new());
}

fn range(kind: LockKind, start: u64, end: u64) -> FileLock {
    FileLock { kind, start, end, pid: 77 }
}

async fn lock(fs: &Mount, (ino, handle): Open, owner: u64, lock: FileLock) -> Result<()> {
    fs.setlk(&me(), ino, handle, owner, lock, false, false).await
}

#[tokio::test]
async fn record_locks_hold_between_mounts_and_go_with_their_process() {
    let cluster = cluster();
    let (here, there) = (cluster.mount(|_| {}).unwrap(), cluster.mount(|_| {}).unwrap());
    let a = create(&here, "file").await;
    let b = open(&there, a.0).await;
    let write = |start, end| range(LockKind::Write, start, end);
    lock(&here, a, 1, write(0, 99)).await.unwrap();
    assert_eq!(errno(lock(&there, b, 1, write(50, 150)).await), libc::EAGAIN);
    lock(&there, b, 1, write(100, 150)).await.unwrap();
    let found = there.getlk(&me(), b.0, b.1, 1, write(0, 1000)).await.unwrap();
    assert_eq!(found, FileLock { pid: 0, ..write(0, 99) });
    let own = here.getlk(&me(), a.0, a.1, 2, write(0, 10)).await.unwrap();
    assert_eq!(own, write(0, 99), "a process of the same mount has a number");
    let free = here.getlk(&me(), a.0, a.1, 1, write(0, 10)).await.unwrap();
    assert_eq!(free.kind, LockKind::Unlock);
    lock(&here, a, 1, range(LockKind::Unlock, 10, 19)).await.unwrap();
    lock(&there, b, 1, write(10, 19)).await.unwrap();
    assert_eq!(errno(lock(&there, b, 1, write(9, 9)).await), libc::EAGAIN);
    // Another process closes the file: nothing happens to these. Then the one that has them.
    here.flush(&me(), a.0, a.1, 2).await.unwrap();
    assert_eq!(errno(lock(&there, b, 1, write(9, 9)).await), libc::EAGAIN);
    here.flush(&me(), a.0, a.1, 1).await.unwrap();
    lock(&there, b, 1, write(0, i64::MAX as u64)).await.unwrap();
    close(&there, b, 1).await;
    let before = here.metadata().requests().0;
    close(&here, a, 1).await;
    assert_eq!(here.metadata().requests().0, before, "nothing to let go of costs nothing");
    check(&cluster);
}

#[tokio::test]
async fn flock_is_apart_from_record_locks_and_goes_with_its_handle() {
    let cluster = cluster();
    let (here, there) = (cluster.mount(|_| {}).unwrap(), cluster.mount(|_| {}).unwrap());
    let a = create(&here, "file").await;
    let b = open(&there, a.0).await;
    let flock = async |fs: &Mount, open: Open, owner, kind| {
        fs.setlk(&me(), open.0, open.1, owner, range(kind, 0, i64::MAX as u64), true, false).await
    };
    lock(&here, a, 1, range(LockKind::Write, 0, 10)).await.unwrap();
    flock(&there, b, 9, LockKind::Read).await.unwrap();
    flock(&here, a, 9, LockKind::Read).await.unwrap();
    assert_eq!(errno(flock(&here, a, 9, LockKind::Write).await), libc::EAGAIN);
    // As flock(2) has it, the shared lock went when it was to become an exclusive one.
    flock(&there, b, 9, LockKind::Write).await.unwrap();
    // Closing by the process leaves it, closing the open file doesn't.
    there.flush(&me(), b.0, b.1, 9).await.unwrap();
    assert_eq!(errno(flock(&here, a, 9, LockKind::Read).await), libc::EAGAIN);
    there.release(&me(), b.0, b.1, Some(9), true).await.unwrap();
    flock(&here, a, 9, LockKind::Write).await.unwrap();
    // An open file's record lock is told by nothing but the handle.
    let c = open(&here, a.0).await;
    lock(&here, c, 50, range(LockKind::Write, 100, 110)).await.unwrap();
    here.release(&me(), c.0, c.1, None, false).await.unwrap();
    lock(&here, a, 1, range(LockKind::Write, 100, 110)).await.unwrap();
    close(&here, a, 1).await;
    check(&cluster);
}

#[tokio::test]
async fn a_blocked_lock_is_had_when_it_is_free_and_a_signal_ends_the_wait() {
    let cluster = cluster();
    let (here, there) = (cluster.mount(|_| {}).unwrap(), cluster.mount(|_| {}).unwrap());
    let a = create(&here, "file").await;
    let b = open(&there, a.0).await;
    let write = range(LockKind::Write, 0, 9);
    lock(&here, a, 1, write).await.unwrap();
    let wait = |owner, caller: Caller| {
        let there = Arc::clone(&there);
        tokio::spawn(async move { there.setlk(&caller, b.0, b.1, owner, write, false, true).await })
    };
    let (interrupt, signal) = Interrupt::new();
    let interrupted = wait(1, Caller { interrupt, ..me() });
    let blocked = wait(2, me());
    // Nothing else waits for them.
    super::posix_tests::write(&there, b, 0, b"meanwhile").await;
    signal.notify_one();
    assert_eq!(errno(tokio::time::timeout(TIMEOUT, interrupted).await.unwrap().unwrap()), libc::EINTR);
    assert!(!blocked.is_finished());
    lock(&here, a, 1, range(LockKind::Unlock, 0, 9)).await.unwrap();
    tokio::time::timeout(TIMEOUT, blocked).await.unwrap().unwrap().unwrap();
    assert_eq!(errno(lock(&here, a, 1, write).await), libc::EAGAIN);
    close(&there, b, 2).await;
    lock(&here, a, 1, write).await.unwrap();
    close(&here, a, 1).await;
    check(&cluster);
}

#[tokio::test]
async fn processes_that_wait_for_one_another_are_told() {
    let cluster = cluster();
    let (here, there) = (cluster.mount(|_| {}).unwrap(), cluster.mount(|_| {}).unwrap());
    let a = create(&here, "file").await;
    let b = open(&there, a.0).await;
    let at = |byte| range(LockKind::Write, byte, byte);
    lock(&here, a, 1, at(1)).await.unwrap();
    lock(&there, b, 1, at(2)).await.unwrap();
    let wait = |mount: &Mount, open: Open, byte| {
        let mount = Arc::clone(mount);
        tokio::spawn(async move { mount.setlk(&me(), open.0, open.1, 1, at(byte), false, true).await })
    };
    let (mut first, mut second) = (wait(&here, a, 2), wait(&there, b, 1));
    // Whichever is told of the circle gets nothing; the other one gets what that one lets go of.
    let is_first = tokio::time::timeout(TIMEOUT, async {
        tokio::select! {
            told = &mut first => { assert_eq!(errno(told.unwrap()), libc::EDEADLK); true }
            told = &mut second => { assert_eq!(errno(told.unwrap()), libc::EDEADLK); false }
        }
    });
    let (loser, other) = match is_first.await.unwrap() {
        true => ((&here, a), second),
        false => ((&there, b), first),
    };
    close(loser.0, loser.1, 1).await;
    tokio::time::timeout(TIMEOUT, other).await.unwrap().unwrap().unwrap();
    close(&here, a, 1).await;
    check(&cluster);
}

#[tokio::test]
async fn who_has_the_lock_sees_what_others_wrote_under_it() {
    let cluster = cluster();
    let (here, there) = (cluster.mount(|_| {}).unwrap(), cluster.mount(|_| {}).unwrap());
    let a = create(&here, "file").await;
    let b = open(&there, a.0).await;
    let write_lock = range(LockKind::Write, 0, 0);
    for round in 0..6u8 {
        let (fs, open) = if round % 2 == 0 { (&here, a) } else { (&there, b) };
        lock(fs, open, 1, write_lock).await.unwrap();
        let seen = read(fs, open, 0, 100).await;
        assert_eq!(seen, (0..round).collect::<Vec<u8>>());
        write(fs, open, u64::from(round), &[round]).await;
        lock(fs, open, 1, range(LockKind::Unlock, 0, 0)).await.unwrap();
    }
    close(&here, a, 1).await;
    close(&there, b, 1).await;
    check(&cluster);
}

#[tokio::test]
async fn a_lost_session_takes_its_locks_along_and_their_handles_say_so() {
    let cluster = cluster();
    let (here, there) = (cluster.mount(|_| {}).unwrap(), cluster.mount(|_| {}).unwrap());
    let a = create(&here, "file").await;
    let other = open(&here, a.0).await;
    let b = open(&there, a.0).await;
    let write_lock = range(LockKind::Write, 0, 9);
    lock(&here, a, 1, write_lock).await.unwrap();
    here.metadata().lose_session();
    lock(&there, b, 1, write_lock).await.unwrap();
    assert_eq!(errno(here.read(&me(), a.0, a.1, 0, 10, true).await), libc::EIO);
    assert_eq!(errno(lock(&here, a, 1, write_lock).await), libc::EIO);
    assert_eq!(read(&here, other, 0, 10).await, b"");
    assert_eq!(errno(lock(&here, other, 1, write_lock).await), libc::EAGAIN);
    close(&there, b, 1).await;
    lock(&here, other, 1, write_lock).await.unwrap();
    check(&cluster);
}

#[tokio::test]
async fn a_copy_shares_bytes_until_one_of_both_is_changed() {
    let cluster = cluster();
    let fs = cluster.mount(|_| {}).unwrap();
    let (a, b) = (create(&fs, "a").await, create(&fs, "b").await);
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at / 11) as u8).collect();
    for (at, part) in content.chunks(1 << 20).enumerate() {
        write(&fs, a, (at as u64) << 20, part).await;
    }
    write(&fs, b, 0, b"begin").await;
    let before = fs.data().counters();
    let copied = fs.copy_file_range(&me(), (a.0, a.1, 7), (b.0, b.1, 5), 10_000_000).await;
    assert_eq!(copied, Ok(2_999_993));
    let expected = [b"begin", &content[7..]].concat();
    assert_eq!(fs.getattr(&me(), b.0, None).await.unwrap().attributes.size, expected.len() as u64);
    let after = fs.data().counters();
    assert_eq!(after.chunk_bytes_read, before.chunk_bytes_read, "no byte was read");
    assert!(read(&fs, b, 0, 4 << 20).await == expected);
    write(&fs, a, 100_000, b"changed").await;
    fs.fsync(&me(), a.0, a.1, false).await.unwrap();
    assert!(read(&fs, b, 0, 4 << 20).await == expected);
    check(&cluster);
    close(&fs, a, 1).await;
    fs.unlink(&me(), ROOT, name("a")).await.unwrap();
    check(&cluster);
    assert!(read(&fs, b, 0, 4 << 20).await == expected);
    // Onto itself, past the end, over itself.
    let onto = fs.copy_file_range(&me(), (b.0, b.1, 0), (b.0, b.1, 10), 100).await;
    assert_eq!(errno(onto), libc::EINVAL);
    assert_eq!(fs.copy_file_range(&me(), (b.0, b.1, 1 << 30), (b.0, b.1, 0), 100).await, Ok(0));
    assert_eq!(fs.copy_file_range(&me(), (b.0, b.1, 0), (b.0, b.1, 1 << 40), 5).await, Ok(5));
    assert_eq!(read(&fs, b, 1 << 40, 100).await, b"begin");
    close(&fs, b, 1).await;
    fs.unlink(&me(), ROOT, name("b")).await.unwrap();
    check(&cluster);
    assert_eq!(cluster.volume.lock().volume().bytes_used, 0);
}

#[tokio::test]
async fn inline_bytes_are_copied_within_their_budget_only() {
    let config =
        VolumeConfig { copies: 1, copies_min: 1, inline_budget_bytes: 3000, ..VolumeConfig::default() };
    let cluster = MemCluster::new(config);
    let fs = cluster.mount(|_| {}).unwrap();
    let (a, b, c) = (create(&fs, "a").await, create(&fs, "b").await, create(&fs, "c").await);
    write(&fs, a, 0, &[7; 2000]).await;
    fs.fsync(&me(), a.0, a.1, false).await.unwrap();
    assert_eq!(fs.copy_file_range(&me(), (a.0, a.1, 0), (b.0, b.1, 0), 2000).await, Ok(2000));
    // The kernel then reads and writes instead.
    let refused = fs.copy_file_range(&me(), (a.0, a.1, 0), (c.0, c.1, 0), 2000).await;
    assert_eq!(errno(refused), libc::EOPNOTSUPP);
    assert_eq!(read(&fs, b, 0, 4096).await, [7; 2000]);
    assert_eq!(read(&fs, c, 0, 4096).await, []);
    check(&cluster);
}

#[tokio::test]
async fn a_file_without_a_name_lives_until_it_is_closed_or_named() {
    let cluster = cluster();
    let fs = cluster.mount(|_| {}).unwrap();
    let unnamed = async |flags: i32| {
        let (entry, opened) = fs.tmpfile(&me(), ROOT, 0o640, RDWR | flags as u32).await.unwrap();
        assert_eq!((entry.attributes.nlink, entry.attributes.mode), (0, 0o100_640));
        (entry.attributes.ino, opened.handle)
    };
    let a = unnamed(0).await;
    write(&fs, a, 0, b"content").await;
    cluster.volume.lock().purge();
    assert_eq!(read(&fs, a, 0, 100).await, b"content");
    assert_eq!(fs.link(&me(), a.0, ROOT, name("named")).await.unwrap().attributes.nlink, 1);
    close(&fs, a, 1).await;
    check(&cluster);
    assert_eq!(fs.lookup(&me(), ROOT, name("named")).await.unwrap().attributes.size, 7);
    let b = unnamed(libc::O_EXCL).await;
    assert_eq!(errno(fs.link(&me(), b.0, ROOT, name("never")).await), libc::ENOENT);
    close(&fs, b, 1).await;
    check(&cluster);
    assert_eq!(errno(fs.getattr(&me(), b.0, None).await), libc::ENOENT);
}

#[tokio::test]
async fn flags_of_an_open_file_that_change_are_those_of_each_write() {
    let cluster = cluster();
    let fs = cluster.mount(|_| {}).unwrap();
    let a = create(&fs, "file").await;
    write(&fs, a, 0, b"one").await;
    let append = WriteFlags::new(libc::O_RDWR as u32 | libc::O_APPEND as u32, false, false, false);
    fs.write(&me(), a.0, a.1, 0, name("two"), append).await.unwrap();
    let sync = WriteFlags::new(libc::O_RDWR as u32 | libc::O_DSYNC as u32, false, false, false);
    assert!(sync.sync && !sync.append);
    fs.write(&me(), a.0, a.1, 0, name("O"), sync).await.unwrap();
    assert!(!fs.data().has_dirty(a.0));
    assert_eq!(read(&fs, a, 0, 100).await, b"Onetwo");
}

#[tokio::test]
async fn two_mounts_append_without_losing_anything() {
    let cluster = cluster();
    let (here, there) = (cluster.mount(|_| {}).unwrap(), cluster.mount(|_| {}).unwrap());
    let a = create(&here, "log").await;
    let b = open(&there, a.0).await;
    let append = WriteFlags { append: true, ..WriteFlags::default() };
    let many = async |fs: &Mount, open: Open, byte: u8| {
        for _ in 0..50 {
            let line = Bytes::from([vec![byte; 99], vec![b'\n']].concat());
            assert_eq!(fs.write(&me(), open.0, open.1, 0, line, append).await, Ok(100));
        }
    };
    tokio::join!(many(&here, a, b'a'), many(&there, b, b'b'));
    close(&here, a, 1).await;
    close(&there, b, 1).await;
    let reader = open(&here, a.0).await;
    let content = read(&here, reader, 0, 1 << 20).await;
    let lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), 100);
    assert!(lines.iter().all(|line| line.len() == 100 && line[..99].iter().all(|byte| *byte == line[0])));
    check(&cluster);
}

#[tokio::test]
async fn access_control_lists_reach_the_records_and_their_absence_costs_nothing() {
    let cluster = cluster();
    let fs = cluster.mount(|_| {}).unwrap();
    let a = create(&fs, "file").await;
    let access = || Bytes::from_static(atoll_core::acl::ACCESS_NAME);
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, allowed, id) in
        [(1u16, 6u16, u32::MAX), (2, 7, 1001), (4, 4, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]
    {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&allowed.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    let list = Bytes::from(list);
    fs.getattr(&me(), a.0, None).await.unwrap();
    let before = fs.metadata().requests();
    assert_eq!(errno(fs.getxattr(&me(), a.0, access()).await), libc::ENODATA);
    assert_eq!(fs.metadata().requests(), before);
    fs.setxattr(&me(), a.0, access(), list.clone(), 0, false).await.unwrap();
    assert_eq!(fs.getattr(&me(), a.0, None).await.unwrap().attributes.mode, 0o100_670);
    assert_eq!(fs.getxattr(&me(), a.0, access()).await, Ok(list));
    assert_eq!(fs.listxattr(&me(), a.0).await, Ok(name("system.posix_acl_access\0")));
    fs.removexattr(&me(), a.0, access()).await.unwrap();
    assert_eq!(fs.removexattr(&me(), a.0, access()).await, Ok(()));
    assert_eq!(errno(fs.getxattr(&me(), a.0, access()).await), libc::ENODATA);
    let default = Bytes::from_static(atoll_core::acl::DEFAULT_NAME);
    assert_eq!(
        errno(fs.setxattr(&me(), a.0, default, Bytes::from_static(b"x"), 0, false).await),
        libc::EINVAL
    );
}

#[tokio::test]
async fn reading_moves_the_access_time_for_others_too() {
    let cluster = cluster();
    let (here, there) = (cluster.mount(|_| {}).unwrap(), cluster.mount(|_| {}).unwrap());
    let a = create(&here, "file").await;
    write(&here, a, 0, b"content").await;
    here.fsync(&me(), a.0, a.1, false).await.unwrap();
    let before = here.getattr(&me(), a.0, None).await.unwrap().attributes;
    assert_eq!(read(&here, a, 0, 100).await, b"content");
    let after = here.getattr(&me(), a.0, None).await.unwrap().attributes;
    assert!(after.atime > before.ctime);
    assert_eq!(Attributes { atime: before.atime, ..after.clone() }, before, "reading is no change");
    close(&here, a, 1).await;
    here.stop().await.unwrap();
    assert_eq!(there.getattr(&me(), a.0, None).await.unwrap().attributes.atime, after.atime);
}

#[tokio::test]
async fn capabilities_go_with_the_write_and_come_back_after_it() {
    let cluster = cluster();
    let (here, there) = (cluster.mount(|_| {}).unwrap(), cluster.mount(|_| {}).unwrap());
    let capability = || name("security.capability");
    let a = create(&here, "file").await;
    write(&here, a, 0, b"program").await;
    here.fsync(&me(), a.0, a.1, false).await.unwrap();
    let grant = async |fs: &Mount| {
        fs.setxattr(&me(), a.0, capability(), name("all"), 0, false).await.unwrap();
        fs.setxattr(&me(), a.0, name("user.other"), name("1"), 0, false).await.unwrap();
    };
    let granted = async |fs: &Mount| {
        let found = fs.getxattr(&me(), a.0, capability()).await.is_ok();
        let names = fs.listxattr(&me(), a.0).await.unwrap();
        let all = &b"security.capability\0user.other\0"[..];
        assert_eq!(names, if found { all } else { &b"user.other\0"[..] });
        found
    };
    // Set elsewhere, so that this kernel hasn't looked for it before it wrote.
    grant(&there).await;
    write(&here, a, 0, b"P").await;
    assert!(!granted(&here).await, "it is buffered here");
    here.fsync(&me(), a.0, a.1, false).await.unwrap();
    assert!(!granted(&here).await && !granted(&there).await);
    // What was written before it was set doesn't take it away.
    write(&here, a, 0, b"p").await;
    grant(&here).await;
    assert!(granted(&here).await);
    here.fsync(&me(), a.0, a.1, false).await.unwrap();
    assert!(granted(&here).await && granted(&there).await);
    // A page of a mapping does neither.
    let mapped = WriteFlags { from_cache: true, ..WriteFlags::default() };
    here.write(&me(), a.0, a.1, 0, name("x"), mapped).await.unwrap();
    assert!(granted(&here).await);
    here.fsync(&me(), a.0, a.1, false).await.unwrap();
    assert!(granted(&there).await);
    let append = WriteFlags { append: true, ..WriteFlags::default() };
    let b = create(&here, "other").await;
    write(&here, b, 0, b"other").await;
    for what in ["append", "truncate", "O_TRUNC", "fallocate", "copy", "chown"] {
        grant(&there).await;
        let truncate = AttributeChanges { size: Some(5), ..AttributeChanges::default() };
        let chown = AttributeChanges { uid: Some(7), ..AttributeChanges::default() };
        match what {
            "append" => {
                here.write(&me(), a.0, a.1, 0, name("x"), append).await.unwrap();
            }
            "truncate" => {
                here.setattr(&me(), a.0, None, truncate).await.unwrap();
            }
            "O_TRUNC" => {
                here.open(&me(), a.0, (libc::O_RDWR | libc::O_TRUNC) as u32).await.unwrap();
            }
            "fallocate" => here.fallocate(&me(), a.0, a.1, 0, 10, 0).await.unwrap(),
            "copy" => {
                here.copy_file_range(&me(), (b.0, b.1, 0), (a.0, a.1, 0), 5).await.unwrap();
            }
            _ => {
                here.setattr(&me(), a.0, None, chown).await.unwrap();
            }
        }
        assert!(!granted(&here).await && !granted(&there).await, "{what}");
    }
    check(&cluster);
}
