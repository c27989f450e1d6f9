//! Where things are in the memory that requests are read into. Another process, maybe of another release,
//! adopts this memory: changes raise [`VERSION`].
//!
//! ```text
//! 0           header page: magic, version, counts, what INIT negotiated
//! 4096        slots:   one request each:  [64 bytes SlotHeader][request, 8128 bytes]
//! …           buffers: one payload each:  [4016 bytes unused][80 bytes prefix][payload, page-aligned]
//! ```
//!
//! A request is read by one `readv` into the first 80 bytes of a slot (exactly what precedes a WRITE's data)
//! and a buffer. So only requests that are really large touch a buffer's pages, and a WRITE's data is aligned
//! to a page. What fits is then copied up behind the slot's first 80 bytes, and the buffer is free for the next
//! request; what doesn't keeps its buffer, and the 80 bytes are copied to the prefix, in front of the payload.
//! Either way the message is contiguous, and at every instant in between a successor finds all of it.
//!
//! A request may wait for as long as the cluster is away, so those that keep a buffer are counted, each kind apart from
//! the others ([`Shares`]), and each reader always has one more to read into: however many wait, INTERRUPT and what is
//! answered from memory get through.

use std::sync::atomic::AtomicU32;

use crate::abi::input::{InHeader, WriteIn};
use crate::session::READERS_MAX;

/// First bytes of the memory.
pub const MAGIC: [u8; 8] = *b"atollreq";
/// Version of this layout.
pub const VERSION: u32 = 1;

/// Bytes of a page, the unit of everything here.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of the header page.
pub const HEADER_BYTES: usize = PAGE_BYTES;
/// Bytes from one slot to the next.
pub const SLOT_BYTES: usize = 2 * PAGE_BYTES;
/// Bytes of a slot in front of its request.
pub const SLOT_HEADER_BYTES: usize = size_of::<SlotHeader>();
/// The largest request that a slot holds by itself: a symbolic link with the longest name and target fits.
pub const SLOT_REQUEST_BYTES_MAX: usize = SLOT_BYTES - SLOT_HEADER_BYTES;
/// The bytes of a request that are read into the slot at first; the rest goes to the buffer.
pub const PREFIX_BYTES: usize = size_of::<InHeader>() + size_of::<WriteIn>();
/// The largest payload: `max_write`, and the size of the largest reply to READ.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Bytes from one buffer to the next: the prefix has the end of a page of its own.
pub const BUFFER_BYTES: usize = PAGE_BYTES + PAYLOAD_BYTES_MAX;

/// Requests that may be unanswered at a time, unless told otherwise. More wait in the kernel. They are many, since a
/// blocked lock holds one for as long as it blocks.
pub const SLOTS_DEFAULT: u32 = 4096;
/// Large WRITEs of applications that keep a buffer of 1 MiB until they are answered, at most: what of the request memory
/// may wait for a cluster that is away. WRITEs beyond are shortened to [`SHORT_WRITE_BYTES`].
pub const WAITING_BUFFERS_MAX: u32 = 128;
/// The same of files that are open with `O_APPEND`: others leave them whole, however many wait.
pub const APPEND_BUFFERS_MAX: u32 = 128;
/// Large requests that aren't WRITEs, and can't be shortened (an extended attribute of up to 64 KiB, whose buffer keeps
/// no more than that). Beyond they are refused.
pub const OTHER_BUFFERS_MAX: u32 = 128;
/// Buffers for pages that the kernel writes back: as many as it sends at a time (`max_background`), since these can't be
/// shortened.
pub const WRITE_BACK_BUFFERS: u32 = 256;
/// What applications' requests keep, at most.
const REQUEST_BUFFERS_MAX: u32 = WAITING_BUFFERS_MAX + APPEND_BUFFERS_MAX + OTHER_BUFFERS_MAX;
/// Buffers unless told otherwise. They take address space alone until they are needed: at the worst, when the cluster is
/// away, 128 + 128 + 256 + 16 MiB and 128 times 72 KiB (and the slots 32 MiB).
pub const BUFFERS_DEFAULT: u32 = REQUEST_BUFFERS_MAX + WRITE_BACK_BUFFERS + READERS_MAX as u32;
/// What is left of a WRITE that gets no buffer, in bytes: one page, for which its slot has room.
pub const SHORT_WRITE_BYTES: usize = PAGE_BYTES;
/// Slots and buffers that a memory may have; above it, a memory that is offered for adoption is refused.
pub const COUNT_MAX: u32 = 1 << 16;

/// The memory's first page.
#[repr(C)]
pub struct MemoryHeader {
    pub magic: [u8; 8],
    pub version: u32,
    pub slots: u32,
    pub buffers: u32,
    /// 1 once `negotiated` is valid. It is set before INIT is answered.
    pub ready: AtomicU32,
    pub negotiated: [AtomicU32; 10],
}

/// In front of each slot's request. The request's own first word, its length, is not 0 while it is unanswered.
#[repr(C)]
pub struct SlotHeader {
    /// Which device descriptor of the bundle it was read from, and must be answered on.
    pub device: AtomicU32,
    /// The buffer that has what doesn't fit (index + 1); 0 when the slot has it all.
    pub buffer: AtomicU32,
    pub spare: [AtomicU32; 14],
}

/// How many slots and buffers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Requests that may be unanswered at a time.
    pub slots: u32,
    /// Buffers of large requests.
    pub buffers: u32,
}

/// How many buffers requests may keep, by what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// WRITEs of applications, which wait as long as they have to.
    pub waiting: u32,
    /// Those that append.
    pub append: u32,
    /// Other requests of applications.
    pub other: u32,
    /// Pages that the kernel writes back.
    pub write_back: u32,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout { slots: SLOTS_DEFAULT, buffers: BUFFERS_DEFAULT }
    }
}

impl Layout {
    /// All bytes.
    pub fn total_bytes(self) -> usize {
        HEADER_BYTES + self.slots as usize * SLOT_BYTES + self.buffers as usize * BUFFER_BYTES
    }

    /// What is left for requests when each of so many readers has a buffer of its own. In a memory of another size than
    /// ours (another release's) what write-back doesn't need is shared, and half of it where it doesn't suffice.
    pub fn shares(self, readers: u32) -> Shares {
        let left = self.buffers.saturating_sub(readers);
        let half = left.div_ceil(2).min(WAITING_BUFFERS_MAX);
        let requests = left.saturating_sub(WRITE_BACK_BUFFERS).max(half).min(REQUEST_BUFFERS_MAX);
        let waiting = requests.div_ceil(3);
        let append = (requests - waiting).div_ceil(2);
        Shares { waiting, append, other: requests - waiting - append, write_back: left - requests }
    }

    /// Where a slot begins.
    pub fn slot_offset(self, slot: u32) -> usize {
        debug_assert!(slot < self.slots);
        HEADER_BYTES + slot as usize * SLOT_BYTES
    }

    /// Where a buffer begins (its unused part).
    pub fn buffer_offset(self, buffer: u32) -> usize {
        debug_assert!(buffer < self.buffers);
        HEADER_BYTES + self.slots as usize * SLOT_BYTES + buffer as usize * BUFFER_BYTES
    }

    /// Where a buffer's payload begins.
    pub fn payload_offset(self, buffer: u32) -> usize {
        self.buffer_offset(buffer) + PAGE_BYTES
    }

    /// Where a buffer's prefix begins.
    pub fn prefix_offset(self, buffer: u32) -> usize {
        self.payload_offset(buffer) - PREFIX_BYTES
    }
}

const _: () = {
    assert!(size_of::<SlotHeader>() == 64);
    assert!(size_of::<MemoryHeader>() <= HEADER_BYTES);
    assert!(PREFIX_BYTES == 80);
    assert!(PREFIX_BYTES + SHORT_WRITE_BYTES <= SLOT_REQUEST_BYTES_MAX);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_payloads_are_on_page_boundaries() {
        let layout = Layout { slots: 3, buffers: 2 };
        assert_eq!(layout.slot_offset(0), HEADER_BYTES);
        assert_eq!(layout.slot_offset(2) + SLOT_BYTES, layout.buffer_offset(0));
        assert_eq!(layout.buffer_offset(1) + BUFFER_BYTES, layout.total_bytes());
        assert_eq!(layout.payload_offset(1) % PAGE_BYTES, 0);
        assert_eq!(layout.prefix_offset(1) + PREFIX_BYTES, layout.payload_offset(1));
    }

    #[test]
    fn readers_have_buffers_that_no_request_may_keep() {
        for readers in [1, 2, READERS_MAX as u32] {
            let shares = Layout::default().shares(readers);
            assert_eq!(shares.waiting, WAITING_BUFFERS_MAX);
            assert_eq!((shares.append, shares.other), (APPEND_BUFFERS_MAX, OTHER_BUFFERS_MAX));
            let background = u32::from(crate::session::InitOptions::default().max_background);
            assert!(shares.write_back >= background, "write-back is never refused: {shares:?}");
            for buffers in 1..700 {
                let shares = Layout { slots: 1, buffers }.shares(readers);
                let Shares { waiting, append, other, write_back } = shares;
                assert_eq!(waiting + append + other + write_back, buffers.saturating_sub(readers));
                let has_others = buffers >= WAITING_BUFFERS_MAX + WRITE_BACK_BUFFERS + readers;
                assert!(!has_others || write_back >= background, "{buffers} buffers: {shares:?}");
                assert!(!has_others || append > 0 && other > 0, "{buffers} buffers: {shares:?}");
            }
        }
    }
}
