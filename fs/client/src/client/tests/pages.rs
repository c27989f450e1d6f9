//! What the kernel's pages are told.

use super::*;
use crate::vfs::LockKind;

#[tokio::test]
async fn the_kernel_keeps_its_pages_unless_somebody_else_changed_the_file() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    let (dropped_here, dropped_there) = (Dropped::on(&here), Dropped::on(&there));
    let ino = put(&here, "file", b"one").await;
    // Whether pages are kept: dropped before the answer, or by the kernel when it is answered.
    let reopen = async |fs: &Mount, dropped: &Dropped| {
        let opened = fs.open(&me(), ino, RDWR).await.unwrap();
        fs.release(&me(), ino, opened.handle, None, false).await.unwrap();
        let all = dropped.take();
        assert!(all.iter().all(|one| *one == (ino, 0, u64::MAX)), "{all:?}");
        opened.keep_cache && all.is_empty()
    };
    assert!(reopen(&here, &dropped_here).await, "it has written every byte itself");
    assert!(reopen(&there, &dropped_there).await, "there are none");
    let open = self::open(&there, "file", RDWR).await;
    write(&there, open, 0, b"two").await;
    close(&there, open).await;
    assert!(reopen(&there, &dropped_there).await);
    assert!(!reopen(&here, &dropped_here).await);
    assert!(reopen(&here, &dropped_here).await);
    here.forget(ino, 1);
    assert!(reopen(&here, &dropped_here).await, "there are none any more");
}

#[tokio::test]
async fn an_open_reader_loses_the_page_at_the_old_end_of_a_file_that_others_extend() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    let dropped = Dropped::on(&here);
    let ino = put(&here, "log", &[1; 5000]).await;
    let reader = open(&here, "log", RDWR).await;
    stat(&here, ino).await;
    read(&here, reader, 0, 8192).await;
    write(&here, reader, 5000, b"own").await;
    assert_eq!(stat(&here, ino).await.size, 5003);
    here.flush(&me(), ino, reader.1, 0).await.unwrap();
    assert_eq!(dropped.take(), []);
    let writer = open(&there, "log", RDWR).await;
    write(&there, writer, 5003, &[2; 5000]).await;
    close(&there, writer).await;
    let plus = here.readdir(&me(), ROOT, 0, 0, 4096, true).await.unwrap();
    assert!(plus.iter().all(|entry| entry.entry.is_none()), "not told without dropping the page first");
    assert_eq!(stat(&here, ino).await.size, 10_003);
    assert_eq!(dropped.take(), [(ino, 5003, u64::MAX - 5003)]);
    assert_eq!(read(&here, reader, 5000, 4).await, b"own\x02");
}

#[tokio::test]
async fn what_goes_past_the_pages_drops_what_it_makes_wrong_before_it_is_answered() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let dropped = Dropped::on(&fs);
    let ino = put(&fs, "log", b"").await;
    let appends = libc::O_WRONLY as u32 | libc::O_APPEND as u32;
    let log = open(&fs, "log", appends).await;
    write_as(&fs, log, 0, &[1; 100], appends).await;
    assert_eq!(dropped.take(), [], "nobody has read anything");
    let reader = open(&fs, "log", RDWR).await;
    assert_eq!(read(&fs, reader, 0, 4096).await, [1; 100]);
    dropped.take();
    write_as(&fs, log, 100, &[2; 50], appends).await;
    assert_eq!(dropped.take(), [(ino, 100, u64::MAX - 100)]);
    read(&fs, reader, 0, 4096).await;
    write_as(&fs, log, 150, &[2; 50], appends).await;
    assert_eq!(dropped.take(), [(ino, 150, u64::MAX - 150)]);
    read(&fs, reader, 0, 4096).await;
    // The same of a direct write, of what it replaces and of what it adds.
    let direct = WriteFlags { direct: true, ..WriteFlags::default() };
    fs.write(&me(), ino, reader.1, 0, name("xx"), direct).await.unwrap();
    assert_eq!(dropped.take(), [(ino, 0, 2)]);
    read(&fs, reader, 0, 4096).await;
    fs.write(&me(), ino, reader.1, 300, name("xx"), direct).await.unwrap();
    assert_eq!(dropped.take(), [(ino, 200, u64::MAX - 200)]);
    // Whoever opens the file while it is being appended to does without pages.
    let opened = fs.open(&me(), ino, libc::O_RDONLY as u32).await.unwrap();
    assert!(opened.direct_io);
    close(&fs, log).await;
    assert!(!fs.open(&me(), ino, libc::O_RDONLY as u32).await.unwrap().direct_io);
}

/// Another mount appends to a file whose only page this one has.
async fn appended_elsewhere() -> (MemCluster, (Mount, Arc<Dropped>), (InodeId, u64)) {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    put(&there, "file", &[1; 100]).await;
    let (dropped, ours) = (Dropped::on(&here), open(&here, "file", RDWR).await);
    assert_eq!(read(&here, ours, 0, 4096).await, [1; 100]);
    let theirs = open(&there, "file", RDWR).await;
    write(&there, theirs, 100, &[2; 100]).await;
    close(&there, theirs).await;
    dropped.take();
    (cluster, (here, dropped), ours)
}

async fn set_lock(fs: &Mount, caller: &Caller, (ino, handle): (InodeId, u64), kind: LockKind) -> Result<()> {
    let lock = FileLock { kind, start: 0, end: 9, pid: 1 };
    fs.setlk(caller, ino, handle, 1, lock, false, false).await
}

#[tokio::test]
async fn growth_behind_what_others_appended_drops_the_page_at_the_end_before() {
    let (_cluster, (fs, dropped), file) = appended_elsewhere().await;
    write(&fs, file, 8192, b"x").await;
    assert_eq!(dropped.take(), [(file.0, 100, 8092)]);
    let (_cluster, (fs, dropped), file) = appended_elsewhere().await;
    write(&fs, file, 150, b"x").await;
    assert_eq!(dropped.take(), [(file.0, 100, 50)], "in the same page");
    let (_cluster, (fs, dropped), file) = appended_elsewhere().await;
    fs.fallocate(&me(), file.0, file.1, 0, 8192, 0).await.unwrap();
    assert_eq!(dropped.take(), [(file.0, 100, u64::MAX - 100)]);
    let (_cluster, (fs, dropped), file) = appended_elsewhere().await;
    let from = (file.0, file.1, 0);
    assert_eq!(fs.copy_file_range(&me(), from, (file.0, file.1, 8192), 50).await, Ok(50));
    assert_eq!(dropped.take(), [(file.0, 100, u64::MAX - 100)]);
    // Once is enough: what is read in the gap from then on is what there is.
    let (_cluster, (fs, dropped), file) = appended_elsewhere().await;
    write(&fs, file, 8192, b"x").await;
    write(&fs, file, 8193, b"x").await;
    assert_eq!(dropped.take(), [(file.0, 100, 8092)]);
}

#[tokio::test]
async fn what_others_appended_is_read_from_a_gap_before_what_is_written_here() {
    for at in [150, 8192] {
        let (_cluster, (fs, _dropped), file) = appended_elsewhere().await;
        write(&fs, file, at, b"x").await;
        let mut expected = vec![0; at.max(199) as usize + 1];
        expected[..100].fill(1);
        expected[100..200].fill(2);
        expected[at as usize] = b'x';
        // As the kernel asks, page by page.
        let mut bytes = read(&fs, file, 0, 4096).await;
        bytes.extend(read(&fs, file, 4096, 8192).await);
        assert!(bytes == expected, "written at {at}");
    }
}

#[tokio::test]
async fn what_was_lost_is_not_read_by_who_opens_or_locks_the_file() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let dropped = Dropped::on(&fs);
    put(&fs, "file", b"old").await;
    let file = open(&fs, "file", RDWR).await;
    read(&fs, file, 0, 4096).await;
    write(&fs, file, 0, b"new").await;
    fs.metadata().lose_session();
    assert_eq!(fs.fsync(&me(), file.0, file.1, false).await, Err(Errno(libc::EIO)));
    dropped.take();
    let again = open(&fs, "file", RDWR).await;
    assert_eq!(dropped.take(), [(file.0, 0, u64::MAX)], "the kernel has what was lost");
    assert_eq!(read(&fs, again, 0, 4096).await, b"old");
}

#[tokio::test]
async fn a_change_of_which_a_part_failed_leaves_no_pages_that_count_as_right() {
    let cluster = MemCluster::new(VolumeConfig { bytes_total: 8 << 30, ..VolumeConfig::default() });
    let fs = mount(&cluster);
    let dropped = Dropped::on(&fs);
    put(&fs, "file", &[1; 8192]).await;
    let file = open(&fs, "file", RDWR).await;
    read(&fs, file, 0, 8192).await;
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    fs.fallocate(&me(), file.0, file.1, 0, 4096, punch).await.unwrap();
    open(&fs, "file", RDWR).await;
    assert_eq!(dropped.take(), [], "the kernel has punched its pages, too");
    let zero = libc::FALLOC_FL_ZERO_RANGE as u32;
    fs.metadata().refuse_mutations_after(1);
    let failed = fs.fallocate(&me(), file.0, file.1, 4096, 4 << 30, zero).await;
    assert_eq!(failed, Err(Errno(libc::EIO)));
    assert_eq!(read(&fs, file, 4096, 1).await, [0], "the first step was taken");
    assert_eq!(dropped.take(), []);
    open(&fs, "file", RDWR).await;
    assert_eq!(dropped.take(), [(file.0, 0, u64::MAX)], "the kernel has kept its pages");
}

#[tokio::test(start_paused = true)]
async fn a_lock_stays_until_what_was_written_under_it_is_committed() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    put(&here, "file", b"0").await;
    let file = open(&here, "file", RDWR).await;
    let theirs = open(&there, "file", RDWR).await;
    set_lock(&here, &me(), file, LockKind::Write).await.unwrap();
    write(&here, file, 0, b"1").await;
    here.metadata().set_away(true);
    let (interrupt, signal) = Interrupt::new();
    signal.notify_one();
    let interrupted = Caller { interrupt, ..me() };
    assert_eq!(set_lock(&here, &interrupted, file, LockKind::Unlock).await, Err(Errno(libc::EINTR)));
    here.metadata().set_away(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    if set_lock(&there, &me(), theirs, LockKind::Write).await.is_ok() {
        assert_eq!(read(&there, theirs, 0, 1).await, b"1", "it has the lock, and not what was written");
    }
    set_lock(&here, &me(), file, LockKind::Unlock).await.unwrap();
    set_lock(&there, &me(), theirs, LockKind::Write).await.unwrap();
    assert_eq!(read(&there, theirs, 0, 1).await, b"1");
}

/// What sqlite does for a transaction with a rollback journal: each call is one question, and none is a mutation.
#[tokio::test(start_paused = true)]
async fn a_lock_and_its_release_are_a_question_each() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    put(&here, "file", b"0").await;
    let (ino, handle) = open(&here, "file", RDWR).await;
    let theirs = open(&there, "file", RDWR).await;
    let requests_since = |(mutations, questions): (u64, u64)| {
        let (mutations_now, questions_now) = here.metadata().requests();
        (mutations_now - mutations, questions_now - questions)
    };
    let (pending, reserved, shared) = ((0, 0), (1, 1), (2, 511));
    let calls = [
        (LockKind::Read, pending),
        (LockKind::Read, shared),
        (LockKind::Unlock, pending),
        (LockKind::Write, reserved),
        (LockKind::Write, pending),
        (LockKind::Write, shared),
        (LockKind::Read, shared),
        (LockKind::Unlock, (0, 1)),
        (LockKind::Unlock, (0, 511)),
    ];
    for changed in [false, true] {
        if changed {
            write(&there, theirs, 0, b"1").await;
            there.fsync(&me(), theirs.0, theirs.1, false).await.unwrap();
        }
        let before = here.metadata().requests();
        for (kind, (start, end)) in calls {
            let lock = FileLock { kind, start, end, pid: 1 };
            here.setlk(&me(), ino, handle, 1, lock, false, false).await.unwrap();
        }
        assert_eq!(requests_since(before), (0, calls.len() as u64), "changed by another mount: {changed}");
        let before = here.metadata().requests();
        let found = read(&here, (ino, handle), 0, 1).await;
        assert_eq!(found, if changed { b"1" } else { b"0" });
        assert_eq!(requests_since(before), (0, 0), "the locks brought what is read");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_told_that_a_lock_failed_has_none() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    put(&here, "file", b"0").await;
    let file = open(&here, "file", RDWR).await;
    let theirs = open(&there, "file", RDWR).await;
    // The lock is taken, and the file can neither be told along with that nor be asked about.
    here.metadata().refuse_questions(true);
    assert_eq!(set_lock(&here, &me(), file, LockKind::Write).await, Err(Errno(libc::EIO)));
    here.metadata().refuse_questions(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    set_lock(&there, &me(), theirs, LockKind::Write).await.unwrap();
}
