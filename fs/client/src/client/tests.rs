//! The whole filesystem over records in memory, as its callers see it.

use atoll_core::attributes::{TimeChange, Timestamp};
use atoll_core::records::VolumeConfig;
use futures::FutureExt;

use super::*;
use crate::testing::{LocalMetadata, MemCluster};
use crate::vfs::{Errno, Interrupt};

const PATIENCE: Duration = Duration::from_secs(60);
const RDWR: u32 = libc::O_RDWR as u32;
const RDONLY: u32 = libc::O_RDONLY as u32;

type Mount = Arc<Client<LocalMetadata>>;

fn cluster() -> MemCluster {
    MemCluster::new(VolumeConfig { copies: 1, copies_min: 1, ..VolumeConfig::default() })
}

fn mount(cluster: &MemCluster) -> Mount {
    cluster.mount(|_| {}).unwrap()
}

fn me() -> Caller {
    Caller { uid: 1000, gid: 100, ..Caller::default() }
}

fn name(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn create(fs: &Mount, file: &str) -> (InodeId, u64) {
    let (entry, opened) = fs.create(&me(), ROOT, name(file), 0o644, RDWR).await.unwrap();
    (entry.attributes.ino, opened.handle)
}

async fn write(fs: &Mount, open: (InodeId, u64), offset: u64, data: &[u8]) {
    write_as(fs, open, offset, data, 0).await;
}

/// `flags`: those of the open file, which come with each WRITE.
async fn write_as(fs: &Mount, (ino, handle): (InodeId, u64), offset: u64, data: &[u8], flags: u32) {
    let data = Bytes::copy_from_slice(data);
    let length = data.len() as u32;
    let flags = WriteFlags::new(flags, false, false, false);
    assert_eq!(fs.write(&me(), ino, handle, offset, data, flags).await, Ok(length));
}

async fn read(fs: &Mount, (ino, handle): (InodeId, u64), offset: u64, size: u32) -> Vec<u8> {
    fs.read(&me(), ino, handle, offset, size, true).await.unwrap().concat()
}

async fn close(fs: &Mount, (ino, handle): (InodeId, u64)) {
    fs.flush(&me(), ino, handle, 0).await.unwrap();
    fs.release(&me(), ino, handle, None, false).await.unwrap();
}

async fn put(fs: &Mount, file: &str, data: &[u8]) -> InodeId {
    let open = create(fs, file).await;
    write(fs, open, 0, data).await;
    close(fs, open).await;
    open.0
}

async fn open(fs: &Mount, file: &str, flags: u32) -> (InodeId, u64) {
    let ino = fs.lookup(&me(), ROOT, name(file)).await.unwrap().attributes.ino;
    (ino, fs.open(&me(), ino, flags).await.unwrap().handle)
}

async fn get(fs: &Mount, file: &str) -> Vec<u8> {
    let open = open(fs, file, RDONLY).await;
    let content = read(fs, open, 0, 1 << 20).await;
    close(fs, open).await;
    content
}

async fn stat(fs: &Mount, ino: InodeId) -> Attributes {
    fs.getattr(&me(), ino, None).await.unwrap().attributes
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> i32 {
    result.expect_err("this must fail").0
}

/// Nothing is wrong with the records, now that everything is at rest.
fn check(cluster: &MemCluster) {
    let mut volume = cluster.volume.lock();
    volume.purge();
    assert_eq!(volume.problems(), Vec::<String>::new());
}

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
    let reader = super::tests::open(&there, "large", RDONLY).await;
    assert_eq!(read(&there, reader, 1_000_000, 1 << 20).await, large[1_000_000..1_000_000 + (1 << 20)]);
    assert_eq!(read(&there, reader, 2_999_990, 100).await, large[2_999_990..]);
    assert_eq!(read(&there, reader, 3_000_000, 100).await, b"");
    close(&there, reader).await;
    let attributes = stat(&there, small).await;
    assert_eq!((attributes.uid, attributes.gid, attributes.mode), (1000, 100, 0o100_644));
    check(&cluster);
}

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
async fn who_has_a_file_open_hears_that_its_data_is_lost_with_it() {
    for synced in [true, false] {
        let cluster = cluster();
        let (here, there) = (mount(&cluster), mount(&cluster));
        let (first, second) = (create(&here, "a").await, super::tests::open(&here, "a", RDWR).await);
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

#[derive(Default)]
struct Dropped(Mutex<Vec<(InodeId, u64, u64)>>);

impl Dropped {
    fn on(fs: &Mount) -> Arc<Dropped> {
        let dropped = Arc::new(Dropped::default());
        fs.set_notifier(Arc::clone(&dropped) as Arc<dyn Notifier>);
        dropped
    }

    fn take(&self) -> Vec<(InodeId, u64, u64)> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Notifier for Dropped {
    fn invalidate(&self, ino: InodeId, offset: u64, length: u64) -> BoxFuture<'_, ()> {
        self.0.lock().push((ino, offset, length));
        std::future::ready(()).boxed()
    }
}

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
    tokio::time::timeout(PATIENCE, waits).await.expect("something hangs");
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
