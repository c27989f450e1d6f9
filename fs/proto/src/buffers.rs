//! Memory for long bodies, used again and again.
//!
//! A megabyte of new memory costs as much as copying a megabyte: the system clears each page when it is touched first.
//! So what a body was received or read into goes back to a pool of the process when nobody needs it any more. Such memory
//! holds what was in it before: only what was filled anew is ever shown.

use bytes::Bytes;
use parking_lot::Mutex;

/// Lengths that are kept (bytes), each twice the one before, so that not much of one is wasted. A little more than a power of
/// two, for the blocks around what was asked for and an encrypted record's tag.
const LENGTHS: [usize; CLASSES] = {
    let mut lengths = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        lengths[class] = (BUFFER_BYTES_MIN << class) + AROUND_BYTES;
        class += 1;
    }
    lengths
};
const CLASSES: usize = 6;
const BUFFER_BYTES_MIN: usize = 32 << 10;
const AROUND_BYTES: usize = 12 << 10;
/// Shorter ones come from the allocator, which has them at hand.
const POOLED_BYTES_MIN: usize = BUFFER_BYTES_MIN / 2;
/// Bytes that are kept while nobody uses them; what comes back beyond is freed.
pub const IDLE_BYTES_MAX: usize = 16 << 20;

static POOL: Pool = Pool::new();

/// Memory of `length` bytes. What is in it is unspecified: zeroes, or anything that was in such memory before.
pub fn take(length: usize) -> Buffer {
    POOL.take(length)
}

/// Frees what nobody uses: for a process that rests.
pub fn give_back() {
    POOL.give_back();
}

#[derive(Debug)]
struct Pool {
    idle: Mutex<Idle>,
}

#[derive(Debug)]
struct Idle {
    /// By class; what was used last is used next, since it is in the processor's cache.
    buffers: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

impl Pool {
    const fn new() -> Pool {
        Pool { idle: Mutex::new(Idle { buffers: [const { Vec::new() }; CLASSES], bytes: 0 }) }
    }

    fn take(&'static self, length: usize) -> Buffer {
        let class = LENGTHS.iter().position(|kept| length <= *kept).filter(|_| length > POOLED_BYTES_MIN);
        let Some(class) = class else { return Buffer { memory: vec![0; length], length, home: None } };
        let kept = {
            let mut idle = self.idle.lock();
            let kept = idle.buffers[class].pop();
            idle.bytes -= kept.as_ref().map_or(0, Vec::len);
            kept
        };
        let memory = kept.unwrap_or_else(|| vec![0; LENGTHS[class]]);
        Buffer { memory, length, home: Some((self, class)) }
    }

    fn take_back(&self, memory: Vec<u8>, class: usize) {
        let mut idle = self.idle.lock();
        if idle.bytes + memory.len() <= IDLE_BYTES_MAX {
            idle.bytes += memory.len();
            idle.buffers[class].push(memory);
        }
    }

    fn give_back(&self) {
        let freed = {
            let mut idle = self.idle.lock();
            idle.bytes = 0;
            std::mem::replace(&mut idle.buffers, [const { Vec::new() }; CLASSES])
        };
        drop(freed);
    }
}

/// Memory to be filled. It goes back to where it came from when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    length: usize,
    home: Option<(&'static Pool, usize)>,
}

impl Buffer {
    /// How long it is.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is none of it.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Leaves the first `length` bytes of it.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// The bytes as they are now, for good. The memory goes back when the last of them is dropped.
    pub fn freeze(self) -> Bytes {
        if self.home.is_some() { Bytes::from_owner(self) } else { self.into_unpooled() }
    }

    fn into_unpooled(mut self) -> Bytes {
        let mut bytes = Bytes::from(std::mem::take(&mut self.memory));
        bytes.truncate(self.length);
        bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((pool, class)) = self.home.take() {
            pool.take_back(std::mem::take(&mut self.memory), class);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> &'static Pool {
        Box::leak(Box::new(Pool::new()))
    }

    #[test]
    fn what_was_used_is_used_again() {
        let pool = pool();
        let mut first = pool.take(1 << 20);
        assert_eq!(first.as_ref(), vec![0; 1 << 20]);
        first.as_mut().fill(7);
        let at = first.as_ref().as_ptr();
        let shown = first.freeze();
        let slice = shown.slice(10..20);
        drop(shown);
        assert_ne!(pool.take(1 << 20).as_ref().as_ptr(), at, "somebody still looks at it");
        assert_eq!(slice, [7; 10][..]);
        drop(slice);
        assert_eq!(pool.take((1 << 20) - 5000).as_ref().as_ptr(), at);
    }

    #[test]
    fn only_what_was_asked_for_is_shown() {
        let pool = pool();
        for length in
            [0, 1, 5000, POOLED_BYTES_MIN, POOLED_BYTES_MIN + 1, 100_000, LENGTHS[CLASSES - 1], 4 << 20]
        {
            let mut buffer = pool.take(length);
            assert_eq!((buffer.len(), buffer.as_ref().len()), (length, length));
            buffer.as_mut().fill(9);
            buffer.truncate(length / 2);
            assert_eq!(buffer.freeze(), vec![9; length / 2]);
        }
    }

    #[test]
    fn a_buffer_is_less_than_three_times_what_it_is_for() {
        let pool = pool();
        for length in POOLED_BYTES_MIN + 1..=LENGTHS[CLASSES - 1] {
            if !length.is_multiple_of(997) {
                continue;
            }
            let buffer = pool.take(length);
            assert!(buffer.memory.len() < 3 * length, "{length}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_can_be_freed() {
        let pool = pool();
        let many: Vec<Buffer> = (0..100).map(|at| pool.take((20 << 10) << (at % 6))).collect();
        drop(many);
        let kept = |pool: &Pool| -> usize { pool.idle.lock().buffers.iter().flatten().map(Vec::len).sum() };
        assert!(kept(pool) <= IDLE_BYTES_MAX && kept(pool) > IDLE_BYTES_MAX / 2, "{}", kept(pool));
        assert_eq!(kept(pool), pool.idle.lock().bytes);
        let held = pool.take(1 << 20);
        assert_eq!(kept(pool), pool.idle.lock().bytes);
        pool.give_back();
        assert_eq!(kept(pool), 0);
        drop(held);
        assert_eq!(kept(pool), pool.idle.lock().bytes);
    }
}
