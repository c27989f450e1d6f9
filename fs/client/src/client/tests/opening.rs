//! Opening, making, closing and holding files.

use super::*;

#[tokio::test]
async fn what_is_closed_on_one_mount_is_seen_when_it_is_opened_on_another() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    let small = put(&here, "small", b"hello").await;
    let large: Vec<u8> = (0..3_000_000u32).map(|number| (number / 7) as u8).collect();
    let open = create(&here, "large").await;
    for (at, part) in large.chunks(1 << 20).enumerate() {
        write(&here, open, (at as u64) << 20, part).await;
    }
    close(&here, open).await;
    assert_eq!(get(&there, "small").await, b"hello");
    let reader = super::open(&there, "large", RDONLY).await;
    assert_eq!(read(&there, reader, 1_000_000, 1 << 20).await, large[1_000_000..1_000_000 + (1 << 20)]);
    assert_eq!(read(&there, reader, 2_999_990, 100).await, large[2_999_990..]);
    assert_eq!(read(&there, reader, 3_000_000, 100).await, b"");
    close(&there, reader).await;
    let attributes = stat(&there, small).await;
    assert_eq!((attributes.uid, attributes.gid, attributes.mode), (1000, 100, 0o100_644));
    check(&cluster);
}

#[tokio::test]
async fn an_unlinked_file_lives_until_it_is_closed() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    let open = create(&here, "file").await;
    write(&here, open, 0, b"still here").await;
    here.fsync(&me(), open.0, open.1, false).await.unwrap();
    there.unlink(&me(), ROOT, name("file")).await.unwrap();
    cluster.volume.lock().purge();
    assert_eq!(stat(&here, open.0).await.nlink, 0);
    assert_eq!(read(&here, open, 0, 100).await, b"still here");
    write(&here, open, 0, b"STILL").await;
    close(&here, open).await;
    check(&cluster);
    assert_eq!(errno(here.getattr(&me(), open.0, None).await), libc::ENOENT);
    // Who removed it may still ask what it was, until the kernel forgets it.
    assert_eq!(stat(&there, open.0).await.nlink, 0);
    there.forget(open.0, 1);
    assert_eq!(errno(there.getattr(&me(), open.0, None).await), libc::ENOENT);
    assert_eq!(here.metadata().volume().inodes_used, 1);
}

#[tokio::test]
async fn a_file_that_others_remove_while_it_is_made_stays_for_its_maker() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    let open = create(&here, "made").await;
    there.unlink(&me(), ROOT, name("made")).await.unwrap();
    cluster.volume.lock().purge();
    write(&here, open, 0, b"hello").await;
    assert_eq!(here.fsync(&me(), open.0, open.1, false).await, Ok(()));
    assert_eq!(read(&here, open, 0, 10).await, b"hello");
    close(&here, open).await;
    check(&cluster);
    // mknod doesn't open.
    let made = here.mknod(&me(), ROOT, name("node"), 0o100_600, 0).await.unwrap().attributes.ino;
    there.unlink(&me(), ROOT, name("node")).await.unwrap();
    cluster.volume.lock().purge();
    assert!(here.open(&me(), made, RDWR).await.is_err());
}

#[tokio::test]
async fn a_file_that_is_gone_before_it_is_held_is_made_again() {
    let cluster = cluster();
    let fs = mount(&cluster);
    fs.metadata().remove_made(1);
    let open = create(&fs, "made").await;
    write(&fs, open, 0, b"hello").await;
    close(&fs, open).await;
    assert_eq!(get(&fs, "made").await, b"hello");
    // Not for ever.
    fs.metadata().remove_made(u64::MAX);
    let never = fs.create(&me(), ROOT, name("never"), 0o644, RDWR).await;
    assert_eq!(errno(never.map(|_| ())), libc::ENOENT);
    check(&cluster);
}

#[tokio::test]
async fn who_has_a_file_open_hears_that_its_data_is_lost_with_it() {
    for synced in [true, false] {
        let cluster = cluster();
        let (here, there) = (mount(&cluster), mount(&cluster));
        let (first, second) = (create(&here, "a").await, super::open(&here, "a", RDWR).await);
        write(&here, first, 0, b"never kept").await;
        // Whatever made the service forget that it is open.
        let session = here.metadata.session();
        cluster.volume.lock().hold(session, &[first.0], false);
        there.unlink(&me(), ROOT, name("a")).await.unwrap();
        cluster.volume.lock().purge();
        for (ino, handle) in [first, second] {
            let told = match synced {
                true => here.fsync(&me(), ino, handle, false).await,
                false => here.flush(&me(), ino, handle, 0).await,
            };
            assert_eq!(errno(told), libc::EIO);
        }
        // Each is told once.
        assert_eq!(here.flush(&me(), first.0, first.1, 0).await, Ok(()));
    }
}

#[tokio::test]
async fn create_opens_what_is_there_unless_it_is_to_be_new() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let ino = put(&fs, "file", b"content").await;
    let (entry, opened) = fs.create(&me(), ROOT, name("file"), 0o600, RDWR).await.unwrap();
    assert_eq!((entry.attributes.ino, entry.attributes.size), (ino, 7));
    close(&fs, (ino, opened.handle)).await;
    let exclusive = RDWR | libc::O_EXCL as u32;
    assert_eq!(errno(fs.create(&me(), ROOT, name("file"), 0o600, exclusive).await), libc::EEXIST);
    let truncating = RDWR | libc::O_TRUNC as u32;
    let (entry, opened) = fs.create(&me(), ROOT, name("file"), 0o600, truncating).await.unwrap();
    assert_eq!(entry.attributes.size, 0);
    close(&fs, (ino, opened.handle)).await;
    fs.symlink(&me(), ROOT, name("link"), name("file")).await.unwrap();
    // The kernel is to look again, once.
    assert_eq!(errno(fs.create(&me(), ROOT, name("link"), 0o600, RDWR).await), libc::ESTALE);
    assert_eq!(errno(fs.create(&me(), ROOT, name("link"), 0o600, RDWR).await), libc::ENOENT);
    fs.mkdir(&me(), ROOT, name("folder"), 0o700).await.unwrap();
    assert_eq!(errno(fs.create(&me(), ROOT, name("folder"), 0o600, RDWR).await), libc::EISDIR);
    let link = fs.lookup(&me(), ROOT, name("link")).await.unwrap().attributes;
    assert_eq!((link.mode, fs.readlink(&me(), link.ino).await.unwrap()), (0o120_777, name("file")));
    assert_eq!(errno(fs.readlink(&me(), ino).await), libc::EINVAL);
    check(&cluster);
}

#[tokio::test]
async fn files_are_told_open_and_closed() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let session = fs.metadata().session();
    let count = || cluster.volume.lock().open_files(session).unwrap();
    let first = create(&fs, "file").await;
    assert_eq!(count(), 1);
    let second = open(&fs, "file", RDONLY).await;
    close(&fs, first).await;
    assert_eq!(count(), 1);
    close(&fs, second).await;
    assert_eq!(count(), 0);
    assert_eq!(errno(fs.open(&me(), InodeId(4711), RDONLY).await), libc::ENOENT);
    assert!(fs.handles.file(InodeId(4711)).is_none());
}

#[tokio::test]
async fn requests_that_are_dropped_in_the_middle_leave_no_handle_behind() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let ino = put(&fs, "file", b"x").await;
    fs.metadata().set_away(true);
    let caller = me();
    let opening = Box::pin(fs.open(&caller, ino, RDONLY));
    assert!(futures::poll!(opening).is_pending(), "nobody answers");
    assert!(fs.handles.file(ino).is_none());
}
