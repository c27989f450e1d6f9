//! Memory that O_DIRECT accepts, and blocks that know their place.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::fault::Fault;
use crate::random::Random;

const PAGE: usize = 4096;

/// Bytes at a page boundary.
pub struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

impl Buffer {
    /// `bytes` (not zero) of noise.
    pub fn noise(bytes: usize, seed: u64) -> Self {
        let mut buffer = Self::zeroed(bytes);
        Random::new(seed).fill(&mut buffer);
        buffer
    }

    /// `bytes` (not zero) of zeroes.
    #[expect(
        clippy::panic,
        reason = "a size beyond half of the address space is a mistake in the plan of a run"
    )]
    pub fn zeroed(bytes: usize) -> Self {
        assert!(bytes > 0, "a buffer needs a size");
        let layout =
            Layout::from_size_align(bytes, PAGE).unwrap_or_else(|error| panic!("{bytes} bytes: {error}"));
        // SAFETY: the layout's size isn't zero.
        let start = unsafe { alloc_zeroed(layout) };
        Self { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout and not freed before.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is ours, initialised, and as long as the layout says.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else refers to it while we are borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

/// Writes the number of a block into its first bytes.
pub fn stamp(block: &mut [u8], number: u64) {
    block[..8].copy_from_slice(&number.to_le_bytes());
}

/// Checks that a block is the one with this number: a benchmark of wrong data is worth nothing.
///
/// # Errors
/// If it is another one.
pub fn check(block: &[u8], number: u64) -> Result<(), Fault> {
    if block.get(..8) == Some(&number.to_le_bytes()[..]) {
        return Ok(());
    }
    let found = block.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    Err(Fault::Wrong(format!("block {number} begins with {found:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_know_their_place() {
        let mut buffer = Buffer::noise(8192, 1);
        assert_eq!(buffer.as_ptr() as usize % PAGE, 0);
        assert!(buffer[4096..].iter().any(|byte| *byte != buffer[0]));
        stamp(&mut buffer, 5);
        check(&buffer, 5).unwrap();
        check(&buffer, 6).unwrap_err();
        check(&[], 0).unwrap_err();
    }
}
