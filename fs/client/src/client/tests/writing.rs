//! What is written, allocated and made durable.

use super::*;

#[tokio::test]
async fn ranges_are_allocated_punched_zeroed_and_found() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let open = create(&fs, "file").await;
    let (ino, handle) = open;
    write(&fs, open, 0, &[1; 40_000]).await;
    let allocate =
        async |offset, length, mode: i32| fs.fallocate(&me(), ino, handle, offset, length, mode as u32).await;
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    allocate(8192, 8192, libc::FALLOC_FL_PUNCH_HOLE | keep).await.unwrap();
    allocate(20_480, 4096, libc::FALLOC_FL_ZERO_RANGE).await.unwrap();
    allocate(100_000, 4096, keep).await.unwrap();
    assert_eq!(stat(&fs, ino).await.size, 40_000);
    let mut expected = vec![1; 40_000];
    expected[8192..16_384].fill(0);
    expected[20_480..24_576].fill(0);
    assert_eq!(read(&fs, open, 0, 1 << 20).await, expected);
    let seek = async |offset, kind| fs.lseek(&me(), ino, handle, offset, kind).await;
    assert_eq!(seek(0, SeekKind::Hole).await, Ok(8192));
    assert_eq!(seek(8192, SeekKind::Data).await, Ok(16_384));
    assert_eq!(seek(30_000, SeekKind::Hole).await, Ok(40_000));
    assert_eq!(errno(seek(40_000, SeekKind::Data).await), libc::ENXIO);
    allocate(0, 3 << 20, 0).await.unwrap();
    assert_eq!(stat(&fs, ino).await.size, 3 << 20);
    assert_eq!(errno(seek(1 << 20, SeekKind::Data).await), libc::ENXIO);
    assert_eq!(errno(allocate(0, 1, libc::FALLOC_FL_COLLAPSE_RANGE).await), libc::EOPNOTSUPP);
    assert_eq!(errno(allocate(0, 1, libc::FALLOC_FL_PUNCH_HOLE).await), libc::EOPNOTSUPP);
    close(&fs, open).await;
    check(&cluster);
}

#[tokio::test]
async fn appends_of_several_mounts_do_not_overwrite_each_other() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    put(&here, "log", b"").await;
    let flags = libc::O_WRONLY as u32 | libc::O_APPEND as u32;
    let one = open(&here, "log", flags).await;
    let two = open(&there, "log", flags).await;
    let opened = here.open(&me(), one.0, flags).await.unwrap();
    assert!(opened.direct_io);
    // Each kernel takes the offset from its own idea of the size.
    write_as(&here, one, 0, b"a1", flags).await;
    write_as(&there, two, 0, b"b1", flags).await;
    write_as(&here, one, 2, b"a2", flags).await;
    close(&here, one).await;
    close(&there, two).await;
    assert_eq!(get(&here, "log").await, b"a1b1a2");

    let alone = cluster.mount(|options| options.append = Append::Exclusive).unwrap();
    let open = open(&alone, "log", flags).await;
    write_as(&alone, open, 6, b"a3", flags).await;
    assert_eq!(stat(&alone, open.0).await.size, 8);
    assert_eq!(get(&here, "log").await, b"a1b1a2", "it is buffered");
    close(&alone, open).await;
    assert_eq!(get(&here, "log").await, b"a1b1a2a3");
    check(&cluster);
}

#[tokio::test]
async fn synchronous_writes_and_fsync_commit_before_they_return() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    let (entry, opened) =
        here.create(&me(), ROOT, name("db"), 0o644, RDWR | libc::O_DSYNC as u32).await.unwrap();
    let sync = (entry.attributes.ino, opened.handle);
    write_as(&here, sync, 0, b"page", RDWR | libc::O_DSYNC as u32).await;
    assert_eq!(get(&there, "db").await, b"page");
    let lazy = open(&here, "db", RDWR).await;
    write(&here, lazy, 4, b"log").await;
    assert_eq!(get(&there, "db").await, b"page");
    here.fsync(&me(), lazy.0, lazy.1, true).await.unwrap();
    assert_eq!(get(&there, "db").await, b"pagelog");
    // A mapping's pages wait for msync, even those that came through a synchronous descriptor.
    here.write(&me(), sync.0, sync.1, 7, name("!"), WriteFlags { from_cache: true, ..WriteFlags::default() })
        .await
        .unwrap();
    assert_eq!(get(&there, "db").await, b"pagelog");
    here.stop().await.unwrap();
    assert_eq!(get(&there, "db").await, b"pagelog!");
}
