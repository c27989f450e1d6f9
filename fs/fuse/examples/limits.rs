//! How fast FUSE is on this machine when the filesystem behind it costs nothing: operations and bytes per second over
//! our own session and over `fuser`. Needs root.
//!
//! ```text
//! limits [own|fuser] [SECONDS_PER_MEASUREMENT]
//! ```

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atoll_client::vfs::*;
use atoll_core::attributes::{AttributeChanges, Attributes, Timestamp};
use atoll_core::ids::{ClusterId, InodeId, ROOT};
use atoll_fuse::Layout;
use atoll_fuse::adapter::Adapter;
use atoll_fuse::bundle::Bundle;
use atoll_fuse::device::{self, Device, MountOptions};
use atoll_fuse::fuser_transport::FuserSession;
use atoll_fuse::session::{InitOptions, Session};
use bytes::Bytes;

/// Bytes of every file: any offset of a measurement lies inside.
const FILE_BYTES: u64 = 1 << 40;

/// Every name is a file of zeroes that swallows what is written.
struct Nothing {
    zeroes: Bytes,
}

fn attributes(ino: InodeId) -> Attributes {
    let mode = if ino == ROOT { 0o040_755 } else { 0o100_644 };
    Attributes {
        ino,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: FILE_BYTES,
        allocated: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: Timestamp::default(),
        change: 0,
        acl: false,
    }
}

fn entry(ino: InodeId) -> Entry {
    let ttl = Duration::from_secs(60);
    Entry { attributes: attributes(ino), generation: 0, attribute_ttl: Duration::ZERO, entry_ttl: ttl }
}

const NO: Errno = Errno(libc::ENOSYS);

#[rustfmt::skip]
impl Vfs for Nothing {
    async fn lookup(&self, _: &Caller, _: InodeId, name: Bytes) -> Result<Entry> {
        Ok(entry(InodeId(u64::from(name[0]) + 2)))
    }
    async fn getattr(&self, _: &Caller, ino: InodeId, _: Option<u64>) -> Result<AttributeReply> {
        Ok(AttributeReply { attributes: attributes(ino), ttl: Duration::ZERO })
    }
    async fn setattr(&self, _: &Caller, ino: InodeId, _: Option<u64>, _: AttributeChanges) -> Result<AttributeReply> {
        Ok(AttributeReply { attributes: attributes(ino), ttl: Duration::ZERO })
    }
    async fn open(&self, _: &Caller, _: InodeId, _: u32) -> Result<Opened> {
        Ok(Opened { direct_io: true, parallel_direct_writes: true, ..Opened::default() })
    }
    async fn read(&self, _: &Caller, _: InodeId, _: u64, _: u64, size: u32, _: bool) -> Result<Vec<Bytes>> {
        Ok(vec![self.zeroes.slice(..size as usize)])
    }
    async fn write(&self, _: &Caller, _: InodeId, _: u64, _: u64, data: Bytes, _: WriteFlags) -> Result<u32> {
        Ok(data.len() as u32)
    }
    async fn flush(&self, _: &Caller, _: InodeId, _: u64, _: u64) -> Result<()> { Ok(()) }
    async fn release(&self, _: &Caller, _: InodeId, _: u64, _: Option<u64>, _: bool) -> Result<()> { Ok(()) }
    async fn fsync(&self, _: &Caller, _: InodeId, _: u64, _: bool) -> Result<()> { Ok(()) }
    async fn opendir(&self, _: &Caller, _: InodeId, _: u32) -> Result<Opened> { Ok(Opened::default()) }
    async fn releasedir(&self, _: &Caller, _: InodeId, _: u64) -> Result<()> { Ok(()) }
    async fn statfs(&self, _: &Caller, _: InodeId) -> Result<StatFs> { Ok(StatFs::default()) }

    async fn readlink(&self, _: &Caller, _: InodeId) -> Result<Bytes> { Err(NO) }
    async fn symlink(&self, _: &Caller, _: InodeId, _: Bytes, _: Bytes) -> Result<Entry> { Err(NO) }
    async fn mknod(&self, _: &Caller, _: InodeId, _: Bytes, _: u32, _: u32) -> Result<Entry> { Err(NO) }
    async fn mkdir(&self, _: &Caller, _: InodeId, _: Bytes, _: u32) -> Result<Entry> { Err(NO) }
    async fn unlink(&self, _: &Caller, _: InodeId, _: Bytes) -> Result<()> { Err(NO) }
    async fn rmdir(&self, _: &Caller, _: InodeId, _: Bytes) -> Result<()> { Err(NO) }
    async fn rename(&self, _: &Caller, _: InodeId, _: Bytes, _: InodeId, _: Bytes, _: u32) -> Result<()> { Err(NO) }
    async fn link(&self, _: &Caller, _: InodeId, _: InodeId, _: Bytes) -> Result<Entry> { Err(NO) }
    async fn create(&self, _: &Caller, _: InodeId, _: Bytes, _: u32, _: u32) -> Result<(Entry, Opened)> { Err(NO) }
    async fn tmpfile(&self, _: &Caller, _: InodeId, _: u32, _: u32) -> Result<(Entry, Opened)> { Err(NO) }
    async fn readdir(&self, _: &Caller, _: InodeId, _: u64, _: u64, _: u32, _: bool) -> Result<Vec<DirEntry>> { Ok(vec![]) }
    async fn fsyncdir(&self, _: &Caller, _: InodeId, _: u64, _: bool) -> Result<()> { Err(NO) }
    async fn setxattr(&self, _: &Caller, _: InodeId, _: Bytes, _: Bytes, _: u32, _: bool) -> Result<()> { Err(NO) }
    async fn getxattr(&self, _: &Caller, _: InodeId, _: Bytes) -> Result<Bytes> { Err(NO) }
    async fn listxattr(&self, _: &Caller, _: InodeId) -> Result<Bytes> { Err(NO) }
    async fn removexattr(&self, _: &Caller, _: InodeId, _: Bytes) -> Result<()> { Err(NO) }
    async fn getlk(&self, _: &Caller, _: InodeId, _: u64, _: u64, _: FileLock) -> Result<FileLock> { Err(NO) }
    async fn setlk(&self, _: &Caller, _: InodeId, _: u64, _: u64, _: FileLock, _: bool, _: bool) -> Result<()> { Err(NO) }
    async fn fallocate(&self, _: &Caller, _: InodeId, _: u64, _: u64, _: u64, _: u32) -> Result<()> { Err(NO) }
    async fn lseek(&self, _: &Caller, _: InodeId, _: u64, _: u64, _: SeekKind) -> Result<u64> { Err(NO) }
    async fn copy_file_range(&self, _: &Caller, _: (InodeId, u64, u64), _: (InodeId, u64, u64), _: u64) -> Result<u64> { Err(NO) }
    fn forget(&self, _: InodeId, _: u64) {}
}

/// Runs `operation` in so many threads for a while; returns operations per second.
fn measure(
    path: &Path,
    threads: usize,
    period: Duration,
    operation: impl Fn(&File, &mut [u8]) + Sync,
) -> f64 {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (stop, count, operation) = (&stop, &count, &operation);
            let file = path.join(char::from(b'a' + thread as u8).to_string());
            scope.spawn(move || {
                let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(file);
                let Ok(file) = file else { return };
                let mut buffer = vec![1u8; 1 << 20];
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    operation(&file, &mut buffer);
                    done += 1;
                }
                count.fetch_add(done, Ordering::Relaxed);
            });
        }
        std::thread::sleep(period);
        stop.store(true, Ordering::Relaxed);
    });
    count.into_inner() as f64 / began.elapsed().as_secs_f64()
}

fn measure_all(path: &Path, period: Duration) {
    for threads in [1, 4] {
        let stats = measure(path, threads, period, |file, _| drop(file.metadata()));
        println!("fstat        x{threads}: {stats:10.0} /s");
        for (name, bytes) in [("4 KiB", 4096), ("1 MiB", 1 << 20)] {
            let read = measure(path, threads, period, |file, buffer| {
                drop(file.read_at(&mut buffer[..bytes], 0));
            });
            let write = measure(path, threads, period, |file, buffer| {
                drop(file.write_at(&buffer[..bytes], 0));
            });
            let gb = bytes as f64 / 1e9;
            println!(
                "read  {name}  x{threads}: {read:10.0} /s {:6.2} GB/s   write: {write:10.0} /s {:6.2} GB/s",
                read * gb,
                write * gb
            );
        }
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let transport = arguments.next().unwrap_or_else(|| "own".to_owned());
    let seconds: f64 = arguments.next().map_or(Ok(1.0), |text| text.parse())?;
    let period = Duration::from_secs_f64(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let folder = std::env::temp_dir().join(format!("atoll-limits-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let options = MountOptions::new(ClusterId(0));
    let opened = Device::open()?;
    opened.mount(&folder, &options)?;
    let filesystem = Arc::new(Nothing { zeroes: Bytes::from(vec![0; 1 << 20]) });
    println!("transport {transport}, {seconds} s each");
    if transport == "fuser" {
        let init = InitOptions::default();
        let session = FuserSession::start(opened, 2, true, init, filesystem, runtime.handle())?;
        runtime.block_on(session.ready())?;
        measure_all(&folder, period);
    } else {
        let bundle = Bundle::new(opened, 2, Layout::default(), &options)?;
        let adapter = Adapter::new(filesystem);
        let session = Session::start(bundle, InitOptions::default(), adapter, runtime.handle())?;
        runtime.block_on(session.ready())?;
        measure_all(&folder, period);
    }
    device::unmount(&folder, true)?;
    std::fs::remove_dir(&folder)?;
    Ok(())
}
