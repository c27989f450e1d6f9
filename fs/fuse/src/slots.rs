//! The memory that requests are read into: a memfd that another process can hold, so that a successor of this
//! one finds every request that was read and not answered.
//!
//! A slot is *unanswered* while the first word of its request (the length, which the kernel writes) is not 0. It
//! is set to 0 after the reply was written. A request whose reply was written while its slot wasn't cleared yet
//! is carried out twice, and its second reply is refused by the kernel; exactly-once is the business of what
//! the request names (session, slot, sequence), not of this memory.
//!
//! Memory stays small when idle: slots and buffers are taken lowest number first, and those beyond a resident
//! few give their pages back when they are freed.

pub(crate) mod layout;
mod pool;

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, mmap, munmap};
use nix::unistd::{Whence, lseek};
use thiserror::Error;

pub use layout::Layout;
use layout::*;
pub(crate) use pool::{Keep, Pool};

use crate::abi::input::{InHeader, WriteIn};
use crate::abi::{Pod, flags, opcode};
use crate::session::Negotiated;

/// Why a memory can't be adopted.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// It can't be looked at or mapped.
    #[error("request memory can't be mapped")]
    Io(#[from] io::Error),
    /// It isn't a request memory, or one of another version.
    #[error("unknown version of the request memory")]
    Foreign,
    /// Its size isn't what its header says, or it can still be resized (and so could kill who uses it).
    #[error("request memory is damaged or not sealed")]
    Damaged,
}

/// The mapped memory. Who holds a slot's or buffer's number alone reads and writes it.
pub struct RequestMemory {
    file: OwnedFd,
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the mapping lives as long as the value; access to its parts is given out by number (see `Pool`), and
// all shared words are atomics.
unsafe impl Send for RequestMemory {}
// SAFETY: as above.
unsafe impl Sync for RequestMemory {}

impl RequestMemory {
    /// Makes an empty memory. Only address space is taken until requests come.
    ///
    /// # Errors
    /// When the kernel has no memory, descriptors or address space.
    pub fn create(layout: Layout) -> io::Result<RequestMemory> {
        assert!(layout.slots > 0 && layout.slots <= COUNT_MAX, "slots out of bounds");
        assert!(layout.buffers > 0 && layout.buffers <= COUNT_MAX, "buffers out of bounds");
        let file = memfd_create(c"atoll-requests", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(file);
        file.set_len(layout.total_bytes() as u64)?;
        let file = OwnedFd::from(file);
        // Nobody who holds the descriptor may truncate it: touching the mapping would then be SIGBUS.
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
        let memory = RequestMemory::map(file, layout)?;
        // SAFETY: the header page is mapped and nobody else knows of it yet.
        unsafe {
            let header = memory.base.as_ptr().cast::<MemoryHeader>();
            (&raw mut (*header).version).write(VERSION);
            (&raw mut (*header).slots).write(layout.slots);
            (&raw mut (*header).buffers).write(layout.buffers);
            (&raw mut (*header).magic).write(MAGIC);
        }
        Ok(memory)
    }

    /// Maps a memory that a predecessor made.
    ///
    /// # Errors
    /// See [`AdoptError`].
    pub fn adopt(file: OwnedFd) -> Result<RequestMemory, AdoptError> {
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(io::Error::from)?;
        let needed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        if !SealFlag::from_bits_retain(seals).contains(needed) {
            return Err(AdoptError::Damaged);
        }
        let file = File::from(file);
        let bytes = file.metadata()?.len() as usize;
        if bytes < HEADER_BYTES {
            return Err(AdoptError::Damaged);
        }
        let mut head = [0u8; size_of::<MemoryHeader>()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0)?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..8] != MAGIC || word(8) != VERSION {
            return Err(AdoptError::Foreign);
        }
        let layout = Layout { slots: word(12), buffers: word(16) };
        let counts = 1..=COUNT_MAX;
        if !counts.contains(&layout.slots)
            || !counts.contains(&layout.buffers)
            || layout.total_bytes() != bytes
        {
            return Err(AdoptError::Damaged);
        }
        Ok(RequestMemory::map(file.into(), layout)?)
    }

    fn map(file: OwnedFd, layout: Layout) -> io::Result<RequestMemory> {
        let bytes = NonZeroUsize::new(layout.total_bytes()).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh shared mapping of a file of that size; it is unmapped when the value is dropped.
        let base = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
                &file,
                0,
            )?
        };
        Ok(RequestMemory { file, base: base.cast(), layout })
    }

    /// The descriptor, to be kept by another process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How many slots and buffers it has.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// What INIT negotiated, if it came to that.
    pub fn negotiated(&self) -> Option<Negotiated> {
        let header = self.header();
        if header.ready.load(Ordering::Acquire) != 1 {
            return None;
        }
        Some(Negotiated::from_words(std::array::from_fn(|i| header.negotiated[i].load(Ordering::Relaxed))))
    }

    /// Records what INIT negotiated. To be called before INIT is answered.
    pub(crate) fn set_negotiated(&self, negotiated: &Negotiated) {
        let header = self.header();
        for (word, value) in header.negotiated.iter().zip(negotiated.to_words()) {
            word.store(value, Ordering::Relaxed);
        }
        header.ready.store(1, Ordering::Release);
    }

    fn header(&self) -> &MemoryHeader {
        // SAFETY: the page is mapped for the life of `self`, aligned, and only its atomics change after `create`.
        unsafe { self.base.cast::<MemoryHeader>().as_ref() }
    }

    /// A slot's header.
    pub(crate) fn slot(&self, slot: u32) -> &SlotHeader {
        // SAFETY: inside the mapping (the layout's offsets are), aligned to 8192 bytes, all atomics.
        unsafe { &*self.at(self.layout.slot_offset(slot)).cast::<SlotHeader>() }
    }

    /// The mark of an unanswered request: the length that the kernel wrote, in bytes.
    pub(crate) fn unanswered(&self, slot: u32) -> &AtomicU32 {
        // SAFETY: inside the mapping, aligned to 64 bytes, and an `AtomicU32` may alias the kernel's word: the
        // kernel writes it only inside a `readv` by the slot's holder.
        unsafe { &*self.request_ptr(slot).cast::<AtomicU32>() }
    }

    /// Where a slot's request begins.
    pub(crate) fn request_ptr(&self, slot: u32) -> *mut u8 {
        self.at(self.layout.slot_offset(slot) + SLOT_HEADER_BYTES)
    }

    /// Where a buffer's payload begins.
    pub(crate) fn payload_ptr(&self, buffer: u32) -> *mut u8 {
        self.at(self.layout.payload_offset(buffer))
    }

    fn prefix_ptr(&self, buffer: u32) -> *mut u8 {
        self.at(self.layout.prefix_offset(buffer))
    }

    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.layout.total_bytes());
        // SAFETY: the offset lies inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Brings a request of `len` bytes, of which what exceeds the prefix is in the slot's buffer, into one piece.
    /// Returns whether the buffer is still needed.
    ///
    /// # Safety
    /// The caller holds the slot and the buffer that the slot names, and no slice of them exists.
    pub(crate) unsafe fn make_contiguous(&self, slot: u32, len: usize) -> bool {
        let header = self.slot(slot);
        let Some(buffer) = header.buffer.load(Ordering::Relaxed).checked_sub(1) else { return false };
        if len <= PREFIX_BYTES {
            header.buffer.store(0, Ordering::Release);
            false
        } else if len <= SLOT_REQUEST_BYTES_MAX {
            // SAFETY: both ranges are inside the mapping and apart; the caller holds them.
            unsafe {
                let tail = self.request_ptr(slot).add(PREFIX_BYTES);
                tail.copy_from_nonoverlapping(self.payload_ptr(buffer), len - PREFIX_BYTES);
            }
            // Only now may the buffer be used again: a successor that comes before this finds the tail there.
            header.buffer.store(0, Ordering::Release);
            false
        } else {
            // SAFETY: as above. The slot's own copy of the prefix stays, so nothing is ever missing.
            unsafe { self.prefix_ptr(buffer).copy_from_nonoverlapping(self.request_ptr(slot), PREFIX_BYTES) };
            true
        }
    }

    /// The request of `len` bytes that was made contiguous, in `buffer` or in the slot.
    ///
    /// # Safety
    /// The caller holds slot and buffer for as long as the slice lives, and nothing writes to them meanwhile but the
    /// unanswered mark, which is cleared after the last use of the slice.
    pub(crate) unsafe fn message(&self, slot: u32, buffer: Option<u32>, len: usize) -> &[u8] {
        let (start, max) = match buffer {
            Some(buffer) => (self.prefix_ptr(buffer), PREFIX_BYTES + PAYLOAD_BYTES_MAX),
            None => (self.request_ptr(slot), SLOT_REQUEST_BYTES_MAX),
        };
        assert!(len <= max, "request longer than its slot");
        // SAFETY: the range is inside the mapping, initialised (a memfd begins as zeroes), and held by the caller.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Makes a WRITE of its first [`SHORT_WRITE_BYTES`], which fit into its slot: its buffer isn't needed any more. The
    /// kernel tells its caller so, who goes on with the rest, as after any short write. Returns the message's length.
    ///
    /// # Safety
    /// As for [`make_contiguous`](Self::make_contiguous), which said that the buffer is needed; the message is a
    /// [`Large::Write`] or a [`Large::Append`].
    pub(crate) unsafe fn shorten_write(&self, slot: u32, buffer: u32) -> usize {
        let len = PREFIX_BYTES + SHORT_WRITE_BYTES;
        let size_at = size_of::<InHeader>() + std::mem::offset_of!(WriteIn, size);
        // SAFETY: both ranges are inside the mapping and apart, and the caller holds them; the size is a word of the
        // slot, aligned to 8 bytes, that nobody else writes.
        unsafe {
            let tail = self.request_ptr(slot).add(PREFIX_BYTES);
            tail.copy_from_nonoverlapping(self.payload_ptr(buffer), SHORT_WRITE_BYTES);
            let size = &*self.request_ptr(slot).add(size_at).cast::<AtomicU32>();
            size.store(SHORT_WRITE_BYTES as u32, Ordering::Release);
        }
        // In this order a successor finds a whole message after each step: first a WRITE with more data than it says,
        // then one whose buffer has what is in the slot as well.
        self.unanswered(slot).store(len as u32, Ordering::Release);
        self.slot(slot).buffer.store(0, Ordering::Release);
        len
    }

    /// Sets aside, in a fresh pool, everything that the predecessor left unanswered. A slot that makes no sense (which
    /// only damage explains) is emptied, and its request never answered but by being sent again.
    pub(crate) fn unfinished(&self, pool: &Pool, devices: usize) -> Vec<Unfinished> {
        let mut found = Vec::new();
        let mut next = Some(0);
        while let Some(slot) = next.and_then(|slot| self.used_slot_from(slot)) {
            next = Some(slot + 1);
            let len = self.unanswered(slot).load(Ordering::Acquire) as usize;
            if len == 0 {
                continue;
            }
            let header = self.slot(slot);
            let device = header.device.load(Ordering::Relaxed);
            let named = header.buffer.load(Ordering::Relaxed).checked_sub(1);
            let sound = (size_of::<InHeader>()..=PREFIX_BYTES + PAYLOAD_BYTES_MAX).contains(&len)
                && (device as usize) < devices
                && named.is_none_or(|buffer| buffer < self.layout.buffers)
                && (named.is_some() || len <= SLOT_REQUEST_BYTES_MAX);
            // SAFETY: the pool is fresh: nobody has a slot or a buffer yet. A buffer is given to one slot only, below.
            let kept = sound && unsafe { self.make_contiguous(slot, len) };
            let buffer = named.filter(|_| kept);
            // SAFETY: as above; the slice is gone before anything is written.
            let large = buffer.map(|buffer| Large::of(unsafe { self.message(slot, Some(buffer), len) }));
            let keep = large.map_or(Keep::Waiting, Large::keep);
            if sound && buffer.is_none_or(|buffer| pool.take_this_buffer(buffer, keep)) {
                pool.take_this_slot(slot);
                let (mut len, mut buffer) = (len, buffer.map(|buffer| (buffer, keep)));
                // What the predecessor's readers held in their hands may be too much.
                if let (Some((taken, _)), Some(Large::Write | Large::Append)) = (buffer, large)
                    && pool.exceeds(keep)
                {
                    // SAFETY: as above.
                    len = unsafe { self.shorten_write(slot, taken) };
                    pool.give_back(self, taken, keep);
                    buffer = None;
                }
                found.push(Unfinished { slot, device, len, buffer });
            } else {
                tracing::error!(slot, len, device, "a request slot of the previous process is invalid");
                self.unanswered(slot).store(0, Ordering::Release);
            }
        }
        found
    }

    /// The first slot from `slot` on that was ever used. The others have no pages, and looking at one would make it.
    fn used_slot_from(&self, slot: u32) -> Option<u32> {
        if slot >= self.layout.slots {
            return None;
        }
        let offset = self.layout.slot_offset(slot);
        match lseek(&self.file, offset as i64, Whence::SeekData) {
            Ok(data) => {
                let used = (data as usize).saturating_sub(HEADER_BYTES) / SLOT_BYTES;
                Some(slot.max(used as u32)).filter(|slot| *slot < self.layout.slots)
            }
            Err(Errno::ENXIO) => None,
            // A kernel that can't tell: each is looked at.
            Err(_) => Some(slot),
        }
    }

    /// Makes sure that all pages of a buffer are there before the kernel is asked to fill it. If they weren't and the
    /// process were killed inside the read, the kernel could not copy, and would fail the request.
    pub(crate) fn populate_buffer(&self, buffer: u32) {
        let start = self.layout.prefix_offset(buffer) / PAGE_BYTES * PAGE_BYTES;
        let bytes = self.layout.buffer_offset(buffer) + BUFFER_BYTES - start;
        // SAFETY: the range lies inside the mapping.
        let populated = unsafe {
            let address = NonNull::new_unchecked(self.at(start)).cast();
            nix::sys::mman::madvise(address, bytes, MmapAdvise::MADV_POPULATE_WRITE)
        };
        if populated.is_err() {
            // Kernels before 5.14 can't populate; the pages then come one by one as they are filled, which is as
            // good but for the rare kill named above.
            tracing::debug!(buffer, "the pages of a request buffer could not be populated");
        }
    }

    /// Gives a slot's pages back. Its unanswered mark is 0 already, and stays so.
    pub(crate) fn drop_slot_pages(&self, slot: u32) {
        self.punch(self.layout.slot_offset(slot), SLOT_BYTES);
    }

    /// Gives those pages of a buffer back that the request of `len` bytes in it doesn't need.
    pub(crate) fn drop_buffer_pages_behind(&self, buffer: u32, len: usize) {
        let end = self.layout.prefix_offset(buffer) + len;
        let (from, buffer_end) =
            (end.next_multiple_of(PAGE_BYTES), self.layout.buffer_offset(buffer) + BUFFER_BYTES);
        if from < buffer_end {
            self.punch(from, buffer_end - from);
        }
    }

    /// Gives a buffer's pages back.
    pub(crate) fn drop_buffer_pages(&self, buffer: u32) {
        self.punch(self.layout.buffer_offset(buffer), BUFFER_BYTES);
    }

    fn punch(&self, offset: usize, bytes: usize) {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let Err(error) = fallocate(&self.file, mode, offset as i64, bytes as i64) {
            tracing::debug!(%error, "pages of the request memory could not be freed");
        }
    }

    /// Bytes of memory that the requests use now.
    ///
    /// # Errors
    /// When the descriptor can't be looked at.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        Ok(nix::sys::stat::fstat(&self.file)?.st_blocks as u64 * 512)
    }
}

/// What a request that is too large for its slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Large {
    /// An application's WRITE, which may be shortened.
    Write,
    /// The same with `O_APPEND`, whose rest would be another append.
    Append,
    /// A WRITE of the kernel's pages: it takes no answer for them but that all are written.
    WriteBack,
    /// BATCH_FORGET, which is done when it is read.
    Forgets,
    /// Anything else.
    Other,
}

impl Large {
    /// What `message` is.
    pub fn of(message: &[u8]) -> Large {
        let Some(header) = InHeader::read_from(message) else { return Large::Other };
        match (header.opcode, WriteIn::read_from(&message[size_of::<InHeader>()..])) {
            (opcode::WRITE, Some(write)) if write.write_flags & flags::WRITE_CACHE != 0 => Large::WriteBack,
            // Its data must be where it says: what precedes it has the size of a prefix, and nothing follows.
            (opcode::WRITE, Some(write))
                if header.total_extlen == 0 && PREFIX_BYTES + write.size as usize == message.len() =>
            {
                if write.flags & libc::O_APPEND as u32 != 0 { Large::Append } else { Large::Write }
            }
            (opcode::BATCH_FORGET, _) => Large::Forgets,
            _ => Large::Other,
        }
    }

    /// What it keeps its buffer as.
    pub fn keep(self) -> Keep {
        match self {
            Large::Write => Keep::Waiting,
            Large::Append => Keep::Append,
            Large::WriteBack => Keep::WriteBack,
            Large::Forgets | Large::Other => Keep::Other,
        }
    }
}

/// A request that a predecessor read and did not answer; slot and buffer are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unfinished {
    pub slot: u32,
    /// The descriptor that it was read from.
    pub device: u32,
    /// Bytes of the message.
    pub len: usize,
    /// Where the message is, unless it fits into the slot, and what as.
    pub buffer: Option<(u32, Keep)>,
}

impl Drop for RequestMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nobody borrows from it any more.
        if let Err(error) = unsafe { munmap(self.base.cast(), self.layout.total_bytes()) } {
            tracing::warn!(%error, "the request memory could not be unmapped");
        }
    }
}

#[cfg(test)]
mod tests;
