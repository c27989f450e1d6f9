//! Attributes and extended attributes.

use super::*;

#[tokio::test]
async fn a_file_shows_what_is_buffered_and_keeps_the_times_that_are_set() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let open = create(&fs, "file").await;
    let before = stat(&fs, open.0).await;
    write(&fs, open, 5000, b"x").await;
    let dirty = stat(&fs, open.0).await;
    assert_eq!(dirty.size, 5001);
    assert!(dirty.mtime > before.mtime && dirty.ctime > before.ctime);
    assert_eq!(read(&fs, open, 4998, 10).await, b"\0\0x");
    let past = Timestamp { seconds: -1_000_000, nanos: 5 };
    let changes = AttributeChanges { mtime: Some(TimeChange::To(past)), ..AttributeChanges::default() };
    fs.setattr(&me(), open.0, Some(open.1), changes).await.unwrap();
    close(&fs, open).await;
    let after = stat(&fs, open.0).await;
    assert_eq!((after.mtime, after.size), (past, 5001));
    assert!(after.ctime > dirty.ctime);
    check(&cluster);
}

#[tokio::test]
async fn truncation_cuts_buffered_and_committed_data() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let open = create(&fs, "file").await;
    write(&fs, open, 0, &[7; 10_000]).await;
    let size = |size| AttributeChanges { size: Some(size), ..AttributeChanges::default() };
    assert_eq!(fs.setattr(&me(), open.0, None, size(100)).await.unwrap().attributes.size, 100);
    assert_eq!(fs.setattr(&me(), open.0, None, size(200)).await.unwrap().attributes.size, 200);
    let content = read(&fs, open, 0, 1000).await;
    assert_eq!(content, [vec![7; 100], vec![0; 100]].concat());
    write(&fs, open, 150, b"new").await;
    close(&fs, open).await;
    let open = self::open(&fs, "file", RDWR | libc::O_TRUNC as u32).await;
    assert_eq!(stat(&fs, open.0).await.size, 0);
    assert_eq!(read(&fs, open, 0, 1000).await, b"");
    close(&fs, open).await;
    let directory = fs.mkdir(&me(), ROOT, name("d"), 0o755).await.unwrap().attributes.ino;
    assert_eq!(errno(fs.setattr(&me(), directory, None, size(0)).await), libc::EISDIR);
    check(&cluster);
}

#[tokio::test]
async fn extended_attributes_keep_their_rules() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let ino = put(&fs, "file", b"").await;
    let set = async |key: &str, value: &str, flags: i32| {
        fs.setxattr(&me(), ino, name(key), name(value), flags as u32, false).await
    };
    set("user.a", "1", libc::XATTR_CREATE).await.unwrap();
    assert_eq!(errno(set("user.a", "2", libc::XATTR_CREATE).await), libc::EEXIST);
    assert_eq!(errno(set("user.b", "2", libc::XATTR_REPLACE).await), libc::ENODATA);
    set("user.a", "2", libc::XATTR_REPLACE).await.unwrap();
    assert_eq!(errno(set("user.a", "2", 3).await), libc::EINVAL);
    assert_eq!(errno(set("system.others", "x", 0).await), libc::EOPNOTSUPP);
    assert_eq!(fs.getxattr(&me(), ino, name("user.a")).await.unwrap(), name("2"));
    set("trusted.t", "", 0).await.unwrap();
    assert_eq!(fs.listxattr(&me(), ino).await.unwrap(), name("user.a\0"));
    assert_eq!(fs.listxattr(&Caller::default(), ino).await.unwrap(), name("trusted.t\0user.a\0"));
    fs.removexattr(&me(), ino, name("user.a")).await.unwrap();
    assert_eq!(errno(fs.getxattr(&me(), ino, name("user.a")).await), libc::ENODATA);
    assert_eq!(errno(fs.removexattr(&me(), ino, name("user.a")).await), libc::ENODATA);
}

#[tokio::test]
async fn a_setattr_that_asks_for_nothing_sets_ctime() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let ino = put(&fs, "file", b"x").await;
    let before = stat(&fs, ino).await;
    fs.setattr(&me(), ino, None, AttributeChanges::default()).await.unwrap();
    let after = stat(&fs, ino).await;
    assert!(after.ctime > before.ctime);
    assert_eq!(Attributes { ctime: before.ctime, change: before.change, ..after }, before);
}

#[tokio::test]
async fn a_chown_to_nobody_clears_set_id_bits_for_the_owner_only() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let ino = put(&fs, "file", b"x").await;
    let mode = AttributeChanges { mode: Some(0o6755), ..AttributeChanges::default() };
    fs.setattr(&me(), ino, None, mode).await.unwrap();
    let stranger = Caller { uid: 1001, ..Caller::default() };
    assert_eq!(errno(fs.setattr(&stranger, ino, None, AttributeChanges::default()).await), libc::EPERM);
    // Unless it may be the announcement of a write.
    let writer = open(&fs, "file", RDWR).await;
    fs.setattr(&stranger, ino, None, AttributeChanges::default()).await.unwrap();
    assert_eq!(stat(&fs, ino).await.mode, 0o106_755);
    close(&fs, writer).await;
    fs.setattr(&me(), ino, None, AttributeChanges::default()).await.unwrap();
    assert_eq!(stat(&fs, ino).await.mode, 0o100_755);
    fs.setattr(&stranger, ino, None, AttributeChanges::default()).await.unwrap();
}
