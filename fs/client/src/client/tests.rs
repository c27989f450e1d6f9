//! The whole filesystem over records in memory, as its callers see it.

mod attributes;
mod keeping;
mod names;
mod opening;
mod pages;
mod sessions;
mod space;
mod writing;

use atoll_core::attributes::{TimeChange, Timestamp};
use atoll_core::records::VolumeConfig;
use futures::FutureExt;

use super::*;
use crate::testing::{LocalMetadata, MemCluster};
use crate::vfs::{Errno, Interrupt};

const TIMEOUT: Duration = Duration::from_secs(60);
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
    Caller { uid: 1000, gid: 100, pid: 7, ..Caller::default() }
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

    fn void(&self, _ino: InodeId) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}
