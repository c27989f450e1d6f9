//! The disk seam on a folder of this machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DirEntry, Disk, DiskFile, DiskLock, Space};

/// Buffers given to one `pwritev`; the kernel takes up to 1024.
const IOVECS_MAX: usize = 1024;

/// Files are for the server's own user alone: they hold the bytes of everybody's files.
const FILE_MODE: u32 = 0o600;

/// A folder of this machine.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
    sync: bool,
}

impl RealDisk {
    /// Uses `root`, making the folder (and what is above it) if it isn't there.
    ///
    /// `sync = false` leaves every `fdatasync` and `fsync` out. **That loses acknowledged data when the power
    /// fails.** It is there for one purpose: to show that the test that cuts the power can fail.
    pub fn new(root: &Path, sync: bool) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        Ok(Self { root, sync })
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn wrap(&self, file: File) -> Arc<dyn DiskFile> {
        Arc::new(RealFile { file, sync: self.sync })
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path(path))?;
        Ok(self.wrap(file))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(self.path(path))?;
        Ok(self.wrap(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        match fs::create_dir(self.path(path)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        if !self.sync {
            return Ok(());
        }
        File::open(self.path(path))?.sync_all()
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        fs::read_dir(self.path(path))?
            .map(|entry| {
                let entry = entry?;
                let is_dir = entry.file_type()?.is_dir();
                Ok(DirEntry { name: entry.file_name().to_string_lossy().into_owned(), is_dir })
            })
            .collect()
    }

    fn space(&self) -> io::Result<Space> {
        let path = std::ffi::CString::new(self.root.as_os_str().as_bytes())?;
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the path is a NUL-terminated string and the buffer is big enough for one statvfs.
        let result = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
        check(result as i64)?;
        // SAFETY: statvfs succeeded, so it filled the buffer.
        let stat = unsafe { stat.assume_init() };
        let unit = stat.f_frsize;
        Ok(Space { capacity_bytes: stat.f_blocks * unit, free_bytes: stat.f_bavail * unit })
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(self.path(path))?;
        // flock belongs to the open file description: it goes with the process however that ends, and a second
        // opener in the same process is refused too.
        // SAFETY: the descriptor is open for as long as `file` lives.
        let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        check(result as i64)?;
        Ok(Box::new(RealLock { _file: file }))
    }

    fn describe(&self) -> String {
        self.root.display().to_string()
    }
}

struct RealLock {
    _file: File,
}

impl DiskLock for RealLock {}

struct RealFile {
    file: File,
    sync: bool,
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let wanted = buf.len();
        let part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: wanted };
        // SAFETY: the one iovec describes `buf`, which is ours for the length of the call.
        let result = unsafe {
            libc::preadv2(self.file.as_raw_fd(), &part, 1, offset as libc::off_t, libc::RWF_NOWAIT)
        };
        match check(result as i64) {
            Ok(read) if read as usize == wanted => Ok(Some(wanted)),
            // A short read is the file's end or the end of what is cached: the patient way tells which.
            Ok(_) => Ok(None),
            Err(error) => match error.raw_os_error() {
                // Not cached; interrupted; or a filesystem that can't tell.
                Some(libc::EAGAIN | libc::EINTR | libc::EOPNOTSUPP) => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut offset = offset;
        // Where the next write starts: the buffer, and how much of it is written already.
        let (mut index, mut skip) = (0, 0);
        while index < bufs.len() {
            if skip == bufs[index].len() {
                (index, skip) = (index + 1, 0);
                continue;
            }
            let written = if skip > 0 {
                self.file.write_at(&bufs[index][skip..], offset)
            } else {
                pwritev(&self.file, &bufs[index..bufs.len().min(index + IOVECS_MAX)], offset)
            };
            let mut written = match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            offset += written as u64;
            while written > 0 {
                let step = written.min(bufs[index].len() - skip);
                written -= step;
                skip += step;
                if skip == bufs[index].len() {
                    (index, skip) = (index + 1, 0);
                }
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.sync { self.file.sync_data() } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        fallocate(&self.file, 0, offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        fallocate(&self.file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    fn forget_cached(&self, offset: u64, len: u64) {
        // Only clean pages go, so nothing can be lost, and an error changes nothing.
        // SAFETY: the descriptor is open for as long as `self.file` lives.
        unsafe {
            libc::posix_fadvise(
                self.file.as_raw_fd(),
                offset as libc::off_t,
                len as libc::off_t,
                libc::POSIX_FADV_DONTNEED,
            );
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        // st_blocks counts units of 512 bytes whatever the filesystem's block size.
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

fn pwritev(file: &File, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
    // SAFETY: IoSlice has the layout of iovec (std guarantees it), and the slices outlive the call.
    let result = unsafe {
        libc::pwritev(
            file.as_raw_fd(),
            bufs.as_ptr().cast::<libc::iovec>(),
            bufs.len() as libc::c_int,
            offset as libc::off_t,
        )
    };
    check(result as i64).map(|n| n as usize)
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open for as long as `file` lives.
        let result =
            unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) };
        match check(result as i64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectored_writes_land_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(folder.path(), true).unwrap();
        let file = disk.create("a").unwrap();
        let (one, two) = (vec![1u8; 5000], vec![2u8; 3000]);
        file.write_vectored_at(&[IoSlice::new(&one), IoSlice::new(&[]), IoSlice::new(&two)], 10).unwrap();
        let mut back = vec![9u8; 9000];
        assert_eq!(file.read_at(&mut back, 0).unwrap(), 8010);
        assert!(back[..10].iter().all(|b| *b == 0));
        assert!(back[10..5010].iter().all(|b| *b == 1));
        assert!(back[5010..8010].iter().all(|b| *b == 2));
    }

    #[test]
    fn what_was_just_written_is_read_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(folder.path(), true).unwrap();
        let file = disk.create("a").unwrap();
        file.write_at(&[3; 8192], 0).unwrap();
        let mut back = vec![0; 8192];
        // A filesystem that can't tell says so, one that can has all of it.
        if let Some(read) = file.read_cached_at(&mut back, 0).unwrap() {
            assert_eq!((read, back), (8192, vec![3; 8192]));
        }
        assert_eq!(file.read_cached_at(&mut [0; 100], 8150).unwrap(), None, "the end is for the patient way");
    }

    #[test]
    fn more_buffers_than_one_call_takes() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(folder.path(), true).unwrap();
        let file = disk.create("a").unwrap();
        let parts: Vec<[u8; 3]> = (0..3000u32).map(|i| [i as u8, (i >> 8) as u8, 7]).collect();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        file.write_vectored_at(&slices, 0).unwrap();
        let mut back = vec![0u8; 9000];
        assert_eq!(file.read_at(&mut back, 0).unwrap(), 9000);
        assert_eq!(back, parts.concat());
    }

    #[test]
    fn punching_gives_space_back() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(folder.path(), true).unwrap();
        let file = disk.create("a").unwrap();
        file.write_at(&vec![7u8; 1 << 20], 0).unwrap();
        file.sync_data().unwrap();
        let before = file.allocated().unwrap();
        file.punch(0, 1 << 19).unwrap();
        assert!(file.allocated().unwrap() <= before - (1 << 18), "{before} -> {}", file.allocated().unwrap());
        assert_eq!(file.len().unwrap(), 1 << 20);
    }

    #[test]
    fn one_holder_of_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(folder.path(), true).unwrap();
        let held = disk.lock("lock").unwrap();
        assert_eq!(disk.lock("lock").err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        disk.lock("lock").unwrap();
    }
}
