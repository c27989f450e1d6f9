//! What fits into the volume.

use super::*;

#[tokio::test]
async fn a_full_volume_says_so_at_the_write() {
    let config = VolumeConfig { copies: 1, copies_min: 1, bytes_total: 1 << 20, ..VolumeConfig::default() };
    let cluster = MemCluster::new(config);
    let fs = mount(&cluster);
    let open = create(&fs, "file").await;
    let mut written = 0;
    let full = loop {
        let data = Bytes::from(vec![1; 128 << 10]);
        match fs.write(&me(), open.0, open.1, written, data, WriteFlags::default()).await {
            Ok(count) => written += u64::from(count),
            Err(error) => break error,
        }
    };
    assert_eq!(full, Errno(libc::ENOSPC));
    assert!(written >= 900 << 10, "{written}");
    close(&fs, open).await;
    let shown = fs.statfs(&me(), ROOT).await.unwrap();
    assert_eq!((shown.blocks, shown.block_bytes, shown.name_bytes_max), (256, 4096, 255));
    assert!(shown.blocks_free < 32, "{shown:?}");
    fs.unlink(&me(), ROOT, name("file")).await.unwrap();
    check(&cluster);
    assert_eq!(fs.metadata().volume().bytes_used, 0);
}

#[tokio::test]
async fn what_is_buffered_counts_as_used_and_what_is_set_aside_as_free() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let free = async || fs.statfs(&me(), ROOT).await.unwrap().blocks_free;
    let all = free().await;
    let open = create(&fs, "file").await;
    assert_eq!(free().await, all);
    let write = async |offset, length| {
        let data = Bytes::from(vec![1; length]);
        let written = fs.write(&me(), open.0, open.1, offset, data, WriteFlags::default()).await;
        assert_eq!(written.unwrap(), length as u32);
    };
    for (offset, length, blocks) in [(0, 5, 1), (5, 4000, 1), (4005, 100, 2), (10, 100, 2), (1 << 20, 1, 2)] {
        write(offset, length).await;
        assert_eq!(free().await, all - blocks, "{length} bytes at {offset}");
    }
    fs.fsync(&me(), open.0, open.1, false).await.unwrap();
    assert_eq!(free().await, all - 2);
    assert!(fs.metadata().volume().bytes_reserved > 0, "room is set aside, and is free");
    write(20, 5).await;
    assert_eq!(free().await, all - 2 - 1, "in a file with holes what is buffered counts as new");
    fs.metadata().set_away(true);
    assert_eq!(free().await, all - 2 - 1, "away, it is what was known last");
    fs.metadata().set_away(false);
    close(&fs, open).await;
    assert_eq!(free().await, all - 2);
}

#[tokio::test]
async fn what_is_set_aside_is_given_back_for_an_allocation() {
    let cluster = MemCluster::new(VolumeConfig { bytes_total: 64 << 20, ..VolumeConfig::default() });
    let fs = mount(&cluster);
    let open = create(&fs, "file").await;
    fs.write(&me(), open.0, open.1, 0, Bytes::from_static(b"x"), WriteFlags::default()).await.unwrap();
    assert!(fs.metadata().volume().bytes_reserved > 0);
    let free = fs.statfs(&me(), ROOT).await.unwrap().blocks_free * 4096;
    assert_eq!(free, (64 << 20) - 4096);
    let whole = fs.fallocate(&me(), open.0, open.1, 4096, free + 4096, 0).await;
    assert_eq!(whole, Err(Errno(libc::ENOSPC)));
    fs.fallocate(&me(), open.0, open.1, 4096, free, 0).await.unwrap();
    assert_eq!(fs.statfs(&me(), ROOT).await.unwrap().blocks_free, 0);
    close(&fs, open).await;
    check(&cluster);
}
