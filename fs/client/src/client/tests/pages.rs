//! What the kernel's pages are told.

use super::*;

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
    assert_eq!(dropped.take(), [(ino, 0, u64::MAX)], "the kernel may still hear that the file is empty");
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
