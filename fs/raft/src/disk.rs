//! The seam between the log and the operating system's files, so that tests can put a disk under
//! it that forgets what was not synced.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Files by path. A change of names is durable after [`sync_dir`](Self::sync_dir), a change of
/// content after [`DiskFile::sync`].
pub(crate) trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Makes (or empties) a file, open for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, replacing what has that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names of the files in a folder.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes earlier changes of names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub(crate) trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Reads at `offset` until `buf` is full or the file ends; bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all `parts`, one after the other, at `offset`.
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;
    /// Reserves room for `len` bytes, so that a full disk is found out now; where the filesystem
    /// can't, writing will find out.
    fn reserve(&self, len: u64) -> io::Result<()>;
    /// Makes content and size durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;
}

/// The real thing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RealDisk {
    /// `false` only to prove that the power-cut test can fail.
    pub(crate) sync: bool,
}

#[derive(Debug)]
struct RealFile {
    file: File,
    sync: bool,
}

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(RealFile { file, sync: self.sync }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile { file, sync: self.sync }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.sync { File::open(dir)?.sync_all() } else { Ok(()) }
    }
}

/// Most buffers that one `pwritev` takes on Linux (`IOV_MAX`).
const IOVECS_MAX: usize = 1024;

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
        if let [one] = parts {
            return self.file.write_all_at(one, offset);
        }
        let mut parts: Vec<libc::iovec> = parts
            .iter()
            .filter(|part| !part.is_empty())
            .map(|part| libc::iovec { iov_base: part.as_ptr() as *mut libc::c_void, iov_len: part.len() })
            .collect();
        let mut rest = parts.as_mut_slice();
        while !rest.is_empty() {
            let count = rest.len().min(IOVECS_MAX);
            // SAFETY: each iovec points into one of the caller's slices, which outlive the call
            // and are only read by it.
            let n = unsafe {
                libc::pwritev(
                    self.file.as_raw_fd(),
                    rest.as_ptr(),
                    count as libc::c_int,
                    offset as libc::off_t,
                )
            };
            if n < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += n as u64;
            let mut n = n as usize;
            while n > 0 {
                let first = &mut rest[0];
                if n >= first.iov_len {
                    n -= first.iov_len;
                    rest = &mut rest[1..];
                } else {
                    // SAFETY: `n` is less than the length of the slice that it points into.
                    first.iov_base = unsafe { first.iov_base.cast::<u8>().add(n) }.cast();
                    first.iov_len -= n;
                    n = 0;
                }
            }
        }
        Ok(())
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        // SAFETY: a plain system call on a descriptor that we own.
        let failed = unsafe { libc::fallocate(self.file.as_raw_fd(), 0, 0, len as libc::off_t) };
        if failed == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINTR) => Ok(()),
            _ => Err(error),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.sync { self.file.sync_data() } else { Ok(()) }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_many_parts_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk { sync: true }.create(&dir.path().join("f")).unwrap();
        let parts: Vec<Vec<u8>> = (0..3000u32).map(|i| vec![i as u8; (i % 7) as usize]).collect();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        file.write_at(&slices, 10).unwrap();
        file.sync().unwrap();
        let expected = parts.concat();
        assert_eq!(file.len().unwrap(), 10 + expected.len() as u64);
        let mut read = vec![0; expected.len() + 5];
        assert_eq!(file.read_at(&mut read, 10).unwrap(), expected.len());
        assert_eq!(read[..expected.len()], expected);
    }
}
