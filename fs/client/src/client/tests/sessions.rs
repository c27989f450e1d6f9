//! A cluster that is away, and sessions that end.

use super::*;

#[tokio::test]
async fn while_the_cluster_is_away_the_root_is_there_and_signals_end_what_waits() {
    let cluster = cluster();
    let fs = mount(&cluster);
    fs.warm_up().await.unwrap();
    fs.metadata().set_away(true);
    let waits = async {
        assert_eq!(stat(&fs, ROOT).await.ino, ROOT);
        fs.statfs(&me(), ROOT).await.unwrap();
        let (interrupt, signal) = Interrupt::new();
        let caller = Caller { interrupt, ..me() };
        let making = tokio::spawn({
            let (fs, caller) = (Arc::clone(&fs), caller.clone());
            async move { fs.mkdir(&caller, ROOT, name("d"), 0o755).await }
        });
        tokio::task::yield_now().await;
        assert!(!making.is_finished());
        signal.notify_one();
        assert_eq!(errno(making.await.unwrap()), libc::EINTR);
    };
    tokio::time::timeout(TIMEOUT, waits).await.expect("something hangs");
    fs.metadata().set_away(false);
    // A signal alone ends nothing.
    let (interrupt, signal) = Interrupt::new();
    signal.notify_one();
    fs.mkdir(&Caller { interrupt, ..me() }, ROOT, name("e"), 0o755).await.unwrap();
}

#[tokio::test]
async fn a_lost_session_breaks_the_handles_whose_data_is_lost_and_no_others() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let kept = create(&fs, "kept").await;
    write(&fs, kept, 0, b"kept").await;
    fs.fsync(&me(), kept.0, kept.1, false).await.unwrap();
    let lost = create(&fs, "lost").await;
    let other = open(&fs, "lost", RDWR).await;
    write(&fs, lost, 0, b"lost").await;
    fs.metadata().lose_session();
    for handle in [lost, other] {
        for _ in 0..2 {
            assert_eq!(errno(fs.read(&me(), handle.0, handle.1, 0, 10, true).await), libc::EIO);
            assert_eq!(errno(fs.fsync(&me(), handle.0, handle.1, false).await), libc::EIO);
            let write = fs.write(&me(), handle.0, handle.1, 0, name("x"), WriteFlags::default()).await;
            assert_eq!(errno(write), libc::EIO);
        }
        assert_eq!(errno(fs.flush(&me(), handle.0, handle.1, 0).await), libc::EIO);
        fs.release(&me(), handle.0, handle.1, None, false).await.unwrap();
    }
    assert_eq!(read(&fs, kept, 0, 10).await, b"kept");
    write(&fs, kept, 4, b"!").await;
    close(&fs, kept).await;
    assert_eq!(get(&fs, "kept").await, b"kept!");
    assert_eq!(get(&fs, "lost").await, b"");
    let again = open(&fs, "lost", RDWR).await;
    write(&fs, again, 0, b"again").await;
    close(&fs, again).await;
    assert_eq!(get(&fs, "lost").await, b"again");
    check(&cluster);
}

#[tokio::test]
async fn who_syncs_a_directory_is_told_once_that_changes_are_lost() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let (lost, kept) = (create(&fs, "lost").await, create(&fs, "kept").await);
    let before = fs.opendir(&me(), ROOT, 0).await.unwrap().handle;
    fs.fsyncdir(&me(), ROOT, before, false).await.unwrap();
    fs.metadata().lose_changes(lost.0);
    let after = fs.opendir(&me(), ROOT, 0).await.unwrap().handle;
    assert_eq!(errno(fs.fsyncdir(&me(), ROOT, before, false).await), libc::EIO);
    fs.fsyncdir(&me(), ROOT, before, false).await.unwrap();
    fs.fsyncdir(&me(), ROOT, after, false).await.unwrap();
    assert_eq!(errno(fs.fsync(&me(), lost.0, lost.1, false).await), libc::EIO);
    fs.fsync(&me(), kept.0, kept.1, false).await.unwrap();
}

#[tokio::test]
async fn where_the_kernel_keeps_locks_handles_are_lost_if_others_had_the_volume_meanwhile() {
    let config = VolumeConfig { copies: 1, copies_min: 1, exclusive: true, ..VolumeConfig::default() };
    let cluster = MemCluster::new(config);
    let fs = mount(&cluster);
    assert!(fs.keeps_locks_in_the_kernel() && !mount(&self::cluster()).keeps_locks_in_the_kernel());
    let a = create(&fs, "a").await;
    write(&fs, a, 0, b"data").await;
    fs.fsync(&me(), a.0, a.1, false).await.unwrap();
    // Nobody else can have had what this mount's processes lock.
    fs.metadata().lose_session_to(false);
    assert_eq!(read(&fs, a, 0, 10).await, b"data");
    fs.metadata().lose_session_to(true);
    assert_eq!(fs.read(&me(), a.0, a.1, 0, 10, true).await, Err(Errno(libc::EIO)));
    let again = fs.open(&me(), a.0, RDWR).await.unwrap();
    assert_eq!(read(&fs, (a.0, again.handle), 0, 10).await, b"data");
}
