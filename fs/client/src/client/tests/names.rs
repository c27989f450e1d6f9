//! Names and directories.

use super::*;

#[tokio::test]
async fn a_file_that_is_renamed_or_linked_has_its_data() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    put(&here, "old", b"old").await;
    let open = create(&here, "temporary").await;
    write(&here, open, 0, b"new").await;
    here.rename(&me(), ROOT, name("temporary"), ROOT, name("old"), 0).await.unwrap();
    assert_eq!(get(&there, "old").await, b"new");
    write(&here, open, 3, b"er").await;
    let linked = here.link(&me(), open.0, ROOT, name("linked")).await.unwrap();
    assert_eq!(linked.attributes.nlink, 2);
    assert_eq!(get(&there, "linked").await, b"newer");
    close(&here, open).await;
    put(&here, "other", b"other").await;
    here.rename(&me(), ROOT, name("other"), ROOT, name("old"), 2).await.unwrap();
    assert_eq!((get(&there, "other").await, get(&there, "old").await), (b"newer".into(), b"other".into()));
    let taken = here.rename(&me(), ROOT, name("other"), ROOT, name("old"), 1).await;
    assert_eq!(errno(taken), libc::EEXIST);
    assert_eq!(errno(here.rename(&me(), ROOT, name("other"), ROOT, name("old"), 8).await), libc::EINVAL);
    check(&cluster);
}

#[tokio::test]
async fn a_directory_that_a_rename_replaced_is_known_until_it_is_forgotten() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let open = fs.mkdir(&me(), ROOT, name("open"), 0o755).await.unwrap().attributes.ino;
    let other = fs.mkdir(&me(), ROOT, name("other"), 0o755).await.unwrap().attributes.ino;
    fs.rename(&me(), ROOT, name("other"), ROOT, name("open"), 0).await.unwrap();
    cluster.volume.lock().purge();
    assert_eq!(stat(&fs, open).await.nlink, 0);
    assert_eq!(stat(&fs, other).await.nlink, 2);
    fs.forget(open, 1);
    assert_eq!(errno(fs.getattr(&me(), open, None).await), libc::ENOENT);
}

/// Every request about a directory or a file that another mount has removed, without a name and with one.
#[tokio::test]
async fn what_another_mount_has_removed_is_missing_and_never_stale() {
    let cluster = cluster();
    let (here, there) = (mount(&cluster), mount(&cluster));
    let folder = here.mkdir(&me(), ROOT, name("folder"), 0o755).await.unwrap().attributes.ino;
    let file = here.mknod(&me(), ROOT, name("file"), libc::S_IFREG | 0o600, 0).await.unwrap().attributes.ino;
    let link = here.symlink(&me(), ROOT, name("link"), name("target")).await.unwrap().attributes.ino;
    here.mkdir(&me(), ROOT, name("other"), 0o755).await.unwrap();
    let listing = here.opendir(&me(), folder, 0).await.unwrap().handle;
    there.rmdir(&me(), ROOT, name("folder")).await.unwrap();
    there.unlink(&me(), ROOT, name("file")).await.unwrap();
    there.unlink(&me(), ROOT, name("link")).await.unwrap();
    cluster.volume.lock().purge();
    let (me, x) = (me(), || name("x"));
    let chmod = AttributeChanges { mode: Some(0o700), ..AttributeChanges::default() };
    let chown = AttributeChanges { uid: Some(1), ..AttributeChanges::default() };
    let truncate = AttributeChanges { size: Some(1), ..AttributeChanges::default() };
    let acl = || name("system.posix_acl_access");
    let missing = [
        ("lookup", here.lookup(&me, folder, x()).await.err()),
        ("create", here.create(&me, folder, x(), 0o600, RDWR).await.err()),
        ("tmpfile", here.tmpfile(&me, folder, 0o600, RDWR).await.err()),
        ("mknod", here.mknod(&me, folder, x(), libc::S_IFIFO | 0o600, 0).await.err()),
        ("mkdir", here.mkdir(&me, folder, x(), 0o700).await.err()),
        ("symlink", here.symlink(&me, folder, x(), x()).await.err()),
        ("unlink", here.unlink(&me, folder, x()).await.err()),
        ("rmdir", here.rmdir(&me, folder, x()).await.err()),
        ("rename from", here.rename(&me, folder, x(), ROOT, x(), 0).await.err()),
        ("rename to", here.rename(&me, ROOT, name("other"), folder, x(), 0).await.err()),
        ("link to", here.link(&me, folder, ROOT, x()).await.err()),
        ("link of", here.link(&me, file, ROOT, x()).await.err()),
        ("open", here.open(&me, file, RDWR).await.err()),
        ("open O_TRUNC", here.open(&me, file, RDWR | libc::O_TRUNC as u32).await.err()),
        ("readdir", here.readdir(&me, folder, listing, 0, 4096, false).await.err()),
        ("getattr", here.getattr(&me, file, None).await.err()),
        ("chmod", here.setattr(&me, file, None, chmod).await.err()),
        ("chown", here.setattr(&me, file, None, chown).await.err()),
        ("truncate", here.setattr(&me, file, None, truncate).await.err()),
        ("readlink", here.readlink(&me, link).await.err()),
        ("setxattr", here.setxattr(&me, file, name("user.x"), x(), 0, false).await.err()),
        ("setxattr of a list", here.setxattr(&me, file, acl(), Bytes::new(), 0, false).await.err()),
        ("getxattr", here.getxattr(&me, file, name("user.x")).await.err()),
        ("listxattr", here.listxattr(&me, file).await.err()),
        ("removexattr", here.removexattr(&me, file, name("user.x")).await.err()),
    ];
    for (what, error) in missing {
        assert_eq!(error.map(|errno| errno.0), Some(libc::ENOENT), "{what}");
    }
    // A descriptor of what is gone is another matter: on a local filesystem the file would be there.
    let write = WriteFlags { append: true, ..WriteFlags::default() };
    let failed = [
        ("read", here.read(&me, file, 99, 0, 10, true).await.err()),
        ("append", here.write(&me, file, 99, 0, x(), write).await.err()),
        ("fallocate", here.fallocate(&me, file, 99, 0, 10, 0).await.err()),
        ("lseek", here.lseek(&me, file, 99, 0, SeekKind::Data).await.err()),
        ("copy", here.copy_file_range(&me, (file, 99, 0), (file, 99, 100), 10).await.err()),
    ];
    for (what, error) in failed {
        assert_eq!(error.map(|errno| errno.0), Some(libc::EIO), "{what}");
    }
}

async fn list(fs: &Mount, handle: u64, mut cookie: u64, bytes: u32, plus: bool) -> Vec<DirEntry> {
    let mut all = Vec::new();
    loop {
        let some = fs.readdir(&me(), ROOT, handle, cookie, bytes, plus).await.unwrap();
        let Some(last) = some.last() else { return all };
        cookie = last.cookie;
        all.extend(some);
    }
}

#[tokio::test]
async fn a_directory_is_listed_whole_in_pieces_of_any_size() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let mut expected = vec![".".to_string(), "..".to_string()];
    for number in 0..1500 {
        let file = format!("a rather long name of a file {number}");
        fs.mknod(&me(), ROOT, name(&file), 0o100_600, 0).await.unwrap();
        expected.push(file);
    }
    expected.sort();
    let handle = fs.opendir(&me(), ROOT, 0).await.unwrap().handle;
    for (bytes, plus) in [(4096, false), (300, true), (1 << 20, true), (1 << 20, false)] {
        let listed = list(&fs, handle, 0, bytes, plus).await;
        let mut names: Vec<String> =
            listed.iter().map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()).collect();
        names.sort();
        assert_eq!(names, expected, "{bytes} bytes");
        assert!(listed.iter().skip(2).all(|entry| entry.entry.is_some() == plus));
        assert_eq!((listed[0].cookie, listed[1].cookie), (1, 2));
        // From the middle, and after the entry there is gone.
        let at = listed[700].cookie;
        let rest = list(&fs, handle, at, bytes, plus).await;
        assert_eq!(rest[..], listed[701..]);
    }
    let listed = list(&fs, handle, 0, 4096, false).await;
    fs.unlink(&me(), ROOT, listed[700].name.clone()).await.unwrap();
    let rest = list(&fs, handle, listed[700].cookie, 4096, false).await;
    assert_eq!(rest[..], listed[701..]);
    // A successor of this process knows no handle, and needs none.
    assert_eq!(list(&fs, 4711, listed[700].cookie, 4096, false).await[..], listed[701..]);
    fs.releasedir(&me(), ROOT, handle).await.unwrap();
}

#[tokio::test]
async fn names_that_are_too_long_are_refused_without_asking() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let before = fs.metadata().requests();
    let long = name(&"x".repeat(256));
    assert_eq!(errno(fs.lookup(&me(), ROOT, long.clone()).await), libc::ENAMETOOLONG);
    assert_eq!(errno(fs.create(&me(), ROOT, long.clone(), 0o644, RDWR).await), libc::ENAMETOOLONG);
    assert_eq!(errno(fs.mkdir(&me(), ROOT, long.clone(), 0o755).await), libc::ENAMETOOLONG);
    assert_eq!(errno(fs.unlink(&me(), ROOT, long.clone()).await), libc::ENAMETOOLONG);
    assert_eq!(errno(fs.rename(&me(), ROOT, name("a"), ROOT, long, 0).await), libc::ENAMETOOLONG);
    assert_eq!(fs.metadata().requests(), before);
    let longest = name(&"x".repeat(255));
    fs.mkdir(&me(), ROOT, longest.clone(), 0o1755).await.unwrap();
    assert_eq!(fs.lookup(&me(), ROOT, longest).await.unwrap().attributes.mode, 0o41755);
}
