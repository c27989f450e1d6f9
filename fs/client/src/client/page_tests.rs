//! What the kernel may have in its pages, and what it has to drop: over records in memory, with a kernel that only takes
//! note of what it is told.

use atoll_core::records::VolumeConfig;
use futures::FutureExt;

use super::*;
use crate::testing::{LocalMetadata, MemCluster};
use crate::vfs::{Errno, Interrupt, LockKind};

const RDWR: u32 = libc::O_RDWR as u32;

type Mount = Arc<Client<LocalMetadata>>;
type Open = (InodeId, u64);

#[derive(Default)]
struct Dropped(Mutex<Vec<(u64, u64)>>);

impl Notifier for Dropped {
    fn invalidate(&self, _ino: InodeId, offset: u64, length: u64) -> BoxFuture<'_, ()> {
        self.0.lock().push((offset, offset.saturating_add(length)));
        std::future::ready(()).boxed()
    }
}

impl Dropped {
    fn take(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut *self.0.lock())
    }
}

fn cluster() -> MemCluster {
    MemCluster::new(VolumeConfig { copies: 1, copies_min: 1, ..VolumeConfig::default() })
}

fn mount(cluster: &MemCluster) -> (Mount, Arc<Dropped>) {
    let (mount, dropped) = (cluster.mount(|_| {}).unwrap(), Arc::new(Dropped::default()));
    mount.set_notifier(Arc::clone(&dropped) as Arc<dyn Notifier>);
    (mount, dropped)
}

fn me() -> Caller {
    Caller { uid: 1000, gid: 100, ..Caller::default() }
}

async fn create(fs: &Mount, content: &[u8]) -> Open {
    let name = Bytes::from_static(b"file");
    let (entry, opened) = fs.create(&me(), ROOT, name, 0o644, RDWR).await.unwrap();
    let open = (entry.attributes.ino, opened.handle);
    write(fs, open, 0, content).await;
    fs.flush(&me(), open.0, open.1, 0).await.unwrap();
    open
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

async fn set_lock(fs: &Mount, caller: &Caller, (ino, handle): Open, kind: LockKind) -> Result<()> {
    let lock = FileLock { kind, start: 0, end: 9, pid: 1 };
    fs.setlk(caller, ino, handle, 1, lock, false, false).await
}

/// Another mount appends to a file whose only page this one has.
async fn appended_elsewhere() -> (MemCluster, (Mount, Arc<Dropped>), Open) {
    let cluster = cluster();
    let (there, _) = mount(&cluster);
    let theirs = create(&there, &[1; 100]).await;
    let here = mount(&cluster);
    let ours = open(&here.0, theirs.0).await;
    assert_eq!(read(&here.0, ours, 0, 4096).await, [1; 100]);
    write(&there, theirs, 100, &[2; 100]).await;
    there.flush(&me(), theirs.0, theirs.1, 0).await.unwrap();
    here.1.take();
    (cluster, here, ours)
}

#[tokio::test]
async fn growth_behind_what_others_appended_drops_the_page_at_the_end_before() {
    let (_cluster, (fs, dropped), file) = appended_elsewhere().await;
    write(&fs, file, 8192, b"x").await;
    assert_eq!(dropped.take(), [(100, 8192)]);
    let (_cluster, (fs, dropped), file) = appended_elsewhere().await;
    write(&fs, file, 150, b"x").await;
    assert_eq!(dropped.take(), [(100, 150)], "in the same page");
    let (_cluster, (fs, dropped), file) = appended_elsewhere().await;
    fs.fallocate(&me(), file.0, file.1, 0, 8192, 0).await.unwrap();
    assert_eq!(dropped.take(), [(100, u64::MAX)]);
    let (_cluster, (fs, dropped), file) = appended_elsewhere().await;
    let from = (file.0, file.1, 0);
    assert_eq!(fs.copy_file_range(&me(), from, (file.0, file.1, 8192), 50).await, Ok(50));
    assert_eq!(dropped.take(), [(100, u64::MAX)]);
    // Nobody has: zeroes are right.
    let cluster = cluster();
    let (fs, dropped) = mount(&cluster);
    let file = create(&fs, &[1; 100]).await;
    read(&fs, file, 0, 4096).await;
    write(&fs, file, 8192, b"x").await;
    assert_eq!(dropped.take(), []);
}

#[tokio::test]
async fn what_was_lost_is_not_read_by_who_opens_or_locks_the_file() {
    let cluster = cluster();
    let (fs, dropped) = mount(&cluster);
    let file = create(&fs, b"old").await;
    read(&fs, file, 0, 4096).await;
    write(&fs, file, 0, b"new").await;
    fs.metadata().lose_session();
    assert_eq!(fs.fsync(&me(), file.0, file.1, false).await, Err(Errno(libc::EIO)));
    dropped.take();
    let again = open(&fs, file.0).await;
    assert_eq!(dropped.take(), [(0, u64::MAX)], "the kernel has what was lost");
    assert_eq!(read(&fs, again, 0, 4096).await, b"old");
}

#[tokio::test]
async fn a_change_of_which_a_part_failed_leaves_no_pages_that_count_as_right() {
    let cluster = MemCluster::new(VolumeConfig { bytes_total: 8 << 30, ..VolumeConfig::default() });
    let (fs, dropped) = mount(&cluster);
    let file = create(&fs, &[1; 8192]).await;
    read(&fs, file, 0, 8192).await;
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    fs.fallocate(&me(), file.0, file.1, 0, 4096, punch).await.unwrap();
    open(&fs, file.0).await;
    assert_eq!(dropped.take(), [], "the kernel has punched its pages, too");
    let zero = libc::FALLOC_FL_ZERO_RANGE as u32;
    fs.metadata().refuse_mutations_after(1);
    let failed = fs.fallocate(&me(), file.0, file.1, 4096, 4 << 30, zero).await;
    assert_eq!(failed, Err(Errno(libc::EIO)));
    assert_eq!(read(&fs, file, 4096, 1).await, [0], "the first step was taken");
    assert_eq!(dropped.take(), []);
    open(&fs, file.0).await;
    assert_eq!(dropped.take(), [(0, u64::MAX)], "the kernel has kept its pages");
}

#[tokio::test(start_paused = true)]
async fn a_lock_stays_until_what_was_written_under_it_is_committed() {
    let cluster = cluster();
    let ((here, _), (there, _)) = (mount(&cluster), mount(&cluster));
    let file = create(&here, b"0").await;
    let theirs = open(&there, file.0).await;
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

#[tokio::test(start_paused = true)]
async fn who_is_told_that_a_lock_failed_has_none() {
    let cluster = cluster();
    let ((here, _), (there, _)) = (mount(&cluster), mount(&cluster));
    let file = create(&here, b"0").await;
    let theirs = open(&there, file.0).await;
    // The lock is taken, and then the file can't be asked about.
    here.metadata().refuse_questions(true);
    assert_eq!(set_lock(&here, &me(), file, LockKind::Write).await, Err(Errno(libc::EIO)));
    here.metadata().refuse_questions(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    set_lock(&there, &me(), theirs, LockKind::Write).await.unwrap();
}
