//! The memory below the arena: a sealed memfd, mapped.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, lseek};

/// A mapped memfd whose size never changes.
#[derive(Debug)]
pub struct Memory {
    fd: OwnedFd,
    base: NonNull<libc::c_void>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value until it is dropped; who may touch which bytes is the business of
// its users, who say so at each access.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW
}

fn new_memfd(bytes: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create("atoll-arena", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::ftruncate(&fd, bytes as libc::off_t)?;
    // Who else holds the descriptor can't pull the memory from under our mapping (SIGBUS).
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals() | SealFlag::F_SEAL_SEAL))?;
    Ok(fd)
}

impl Memory {
    /// New memory, all zeroes; none of it is there before it is touched.
    ///
    /// # Errors
    /// The system's.
    pub fn create(bytes: usize) -> io::Result<Self> {
        Self::map(new_memfd(bytes)?, bytes)
    }

    /// A copy of all bytes as they are now.
    ///
    /// # Errors
    /// The system's.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        let copy = new_memfd(self.bytes)?;
        for range in self.touched(0..self.bytes)? {
            let bytes = self.read(range.start, range.len())?;
            let mut done = 0;
            while done < bytes.len() {
                done += pwrite(&copy, &bytes[done..], (range.start + done) as libc::off_t)?;
            }
        }
        Ok(copy)
    }

    /// Memory that another process made.
    ///
    /// # Errors
    /// The system's, or if it isn't sealed against changes of its size.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let found = SealFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
        if !found.contains(seals()) {
            return Err(io::Error::other("the arena's memory is not sealed"));
        }
        let bytes = fstat(&fd)?.st_size as usize;
        Self::map(fd, bytes)
    }

    fn map(fd: OwnedFd, bytes: usize) -> io::Result<Self> {
        let length = std::num::NonZeroUsize::new(bytes).ok_or_else(|| io::Error::other("an empty arena"))?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &fd, 0)?
        };
        Ok(Memory { fd, base, bytes })
    }

    /// Bytes of it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// The descriptor, for whoever is to keep or adopt it.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn at(&self, at: usize, length: usize) -> *mut u8 {
        assert!(at.checked_add(length).is_some_and(|end| end <= self.bytes), "outside of the arena");
        // SAFETY: within the mapping, as just checked.
        unsafe { self.base.cast::<u8>().as_ptr().add(at) }
    }

    /// Writes bytes.
    ///
    /// # Safety
    /// Nobody else reads or writes these bytes at the same time.
    pub unsafe fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.at(at, bytes.len());
        // SAFETY: within the mapping; `bytes` can't overlap it mutably, and the caller is alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Shows bytes.
    ///
    /// # Safety
    /// Nobody writes these bytes for as long as the result lives.
    #[must_use]
    pub unsafe fn slice(&self, at: usize, length: usize) -> &[u8] {
        // SAFETY: within the mapping, and unchanged by the caller's word.
        unsafe { std::slice::from_raw_parts(self.at(at, length), length) }
    }

    /// Copies bytes out without making memory of what was never touched.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, at: usize, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            match pread(&self.fd, &mut bytes[done..], (at + done) as libc::off_t)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(bytes)
    }

    /// The parts of a range, which begins and ends at a page, that were ever touched; the rest is zeroes.
    ///
    /// # Errors
    /// The system's.
    pub fn touched(&self, range: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let start = match lseek(&self.fd, at as libc::off_t, Whence::SeekData) {
                Ok(start) => start as usize,
                Err(Errno::ENXIO) => break,
                Err(error) => return Err(error.into()),
            };
            if start >= range.end {
                break;
            }
            let end = (lseek(&self.fd, start as libc::off_t, Whence::SeekHole)? as usize).min(range.end);
            found.push(start..end);
            at = end;
        }
        Ok(found)
    }

    /// Gives whole pages back; they read as zeroes. A failure costs memory and nothing else.
    pub fn punch(&self, at: usize, length: usize) {
        if length == 0 {
            return;
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let Err(error) = fallocate(&self.fd, flags, at as libc::off_t, length as libc::off_t) {
            tracing::debug!(fd = self.fd.as_raw_fd(), %error, "memory of the arena can't be freed");
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        if let Err(error) = unsafe { munmap(self.base, self.bytes) } {
            tracing::debug!(%error, "the arena can't be unmapped");
        }
    }
}
