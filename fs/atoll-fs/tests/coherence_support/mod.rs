//! What both kinds of load share.

pub mod appends;
pub mod attributes;
pub mod counters;
pub mod overwrites;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Direct I/O wants places and memory that are multiples of this.
pub const ALIGNMENT: usize = 4096;

/// xorshift64*.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }
}

pub fn open(path: &Path, read: bool, write: bool, flags: i32) -> File {
    let mut options = OpenOptions::new();
    options.read(read).write(write).custom_flags(flags);
    options.open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Memory that direct I/O takes.
pub struct Aligned(Vec<u8>, usize);

impl Aligned {
    pub fn new(bytes: usize) -> Self {
        let memory = vec![0; bytes + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        Aligned(memory, skip)
    }

    pub fn slice(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.0[self.1..self.1 + bytes]
    }
}

/// A file in memory.
pub fn memory_file() -> File {
    use std::os::fd::FromRawFd;
    // SAFETY: a new descriptor, which nobody else closes.
    unsafe {
        let descriptor = libc::memfd_create(c"looks".as_ptr(), libc::MFD_CLOEXEC);
        assert!(descriptor >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        File::from_raw_fd(descriptor)
    }
}

/// Reads what there is, as far as the buffer goes.
pub fn read_at(file: &File, into: &mut [u8], offset: u64) -> usize {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) => panic!("read of {} bytes at {offset}: {error}", into.len()),
        }
        // The place of a direct read has to stay a multiple of a block.
        if done % ALIGNMENT != 0 {
            break;
        }
    }
    done
}

/// A shared mapping of the first bytes of a file.
pub struct Mapping {
    start: *mut u8,
    bytes: usize,
}

impl Mapping {
    pub fn new(file: &File, bytes: usize, write: bool) -> Self {
        let access = if write { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping, wherever the kernel puts it, of an open file.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert!(start != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Mapping { start: start.cast(), bytes }
    }

    /// Loads what there is: behind the end of the file as this kernel knows it there is nothing, and a load would end
    /// the process. So the kernel loads, and says how far it came.
    pub fn load(&self, offset: usize, into: &mut [u8], through: &File) -> usize {
        assert!(offset + into.len() <= self.bytes);
        let mut done = 0;
        while done < into.len() {
            let step = (into.len() - done).min(ALIGNMENT - (offset + done) % ALIGNMENT);
            // SAFETY: inside the mapping; the kernel answers for pages that it has none for.
            let written = unsafe {
                libc::pwrite(through.as_raw_fd(), self.start.add(offset + done).cast(), step, done as i64)
            };
            if written <= 0 {
                break;
            }
            done += written as usize;
        }
        through.read_exact_at(&mut into[..done], 0).expect("what was written to memory");
        done
    }

    pub fn store(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= self.bytes);
        for (at, byte) in from.iter().enumerate() {
            // SAFETY: as for loads; it was mapped for writing.
            unsafe { self.start.add(offset + at).write_volatile(*byte) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, which nobody refers to any more.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// Threads that end together: at the end of the time, or when one of them has failed.
pub fn run_all(jobs: Vec<Box<dyn FnOnce() -> Result<(), String> + Send>>, seed: u64) {
    let threads: Vec<_> = jobs.into_iter().map(std::thread::spawn).collect();
    let mut wrong = Vec::new();
    for thread in threads {
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(what)) => wrong.push(what),
            Err(_) => wrong.push("a thread panicked (see above)".to_owned()),
        }
    }
    assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
}
