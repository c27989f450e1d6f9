//! The seam between the chunk store and the disk.
//!
//! Everything that the store does to its folder goes through [`Disk`] and [`DiskFile`]; nothing else in this
//! crate opens a file. [`real::RealDisk`] is a folder of the machine, [`faulty::FaultyDisk`] a disk in memory
//! that loses power, fills up, flips bits and answers `EIO` when a test says so.
//!
//! Paths are relative to the disk's root and use `/`. All calls block: they're made from blocking threads.

use std::io::{self, IoSlice};
use std::sync::Arc;

pub mod faulty;
pub mod real;

/// What one entry of a folder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The entry's name within its folder. Names that aren't UTF-8 come lossily converted: they are foreign
    /// anyway, and only ever shown.
    pub name: String,
    /// Whether it is a folder.
    pub is_dir: bool,
}

/// Space on the filesystem that holds the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the filesystem, bytes.
    pub capacity_bytes: u64,
    /// What an unprivileged process may still take, bytes.
    pub free_bytes: u64,
}

/// Keeps a folder to one process until it is dropped.
pub trait DiskLock: Send + Sync {}

/// A folder on a disk.
///
/// Errors are plain [`io::Error`]s of the operating system; [`is_no_space`] tells the one that callers treat
/// differently.
pub trait Disk: Send + Sync + 'static {
    /// Opens an existing file for reading and writing. `NotFound` if it isn't there.
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a file that must not exist yet, or empties one that does.
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file within the disk, replacing what `to` was. Durable once both folders were synced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. `NotFound` if it isn't there.
    fn unlink(&self, path: &str) -> io::Result<()>;

    /// Makes a folder; one that exists already is fine.
    fn create_dir(&self, path: &str) -> io::Result<()>;

    /// Makes the names in a folder durable; the root is the empty path.
    fn sync_dir(&self, path: &str) -> io::Result<()>;

    /// The entries of a folder, in no order.
    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>>;

    /// Size and free space.
    fn space(&self) -> io::Result<Space>;

    /// Takes the lock file `path` for this process. `WouldBlock` if another holder has it.
    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>>;

    /// How to name this disk in messages.
    fn describe(&self) -> String;
}

/// An open file. It stays usable after its name was removed or renamed.
pub trait DiskFile: Send + Sync {
    /// Reads until `buf` is full or the file ends; returns how many bytes were read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As [`Self::read_at`], if that needs no waiting for the disk; `None` if it does, or if nobody can tell.
    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>>;

    /// Writes all of `bufs`, one after the other, at `offset`. After an error any part may have been written.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_vectored_at(&[IoSlice::new(buf)], offset)
    }

    /// Makes everything written before this call durable (and the length that is needed to read it back).
    /// After an error nothing is known about what is on the disk, and a second call would prove nothing.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Takes space for a range without writing it; the file grows to the range's end.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Gives a range's space back; it then reads as zeroes. The file's length stays.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Drops what is cached of a range, so that the next read comes from the disk. A hint.
    fn forget_cached(&self, offset: u64, len: u64);

    /// The file's length, bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// What the file occupies on the disk, bytes.
    fn allocated(&self) -> io::Result<u64>;
}

/// Whether an error means that the disk (or a quota on it) is full.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC) | Some(libc::EDQUOT))
}

/// The folder part of a path, empty for the root.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Reads exactly `buf.len()` bytes; a file that ends before is `UnexpectedEof`.
pub(crate) fn read_exact_at(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let wanted = buf.len();
    match file.read_at(buf, offset)? {
        n if n == wanted => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
