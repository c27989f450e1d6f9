//! `fs/fuse/src/slots/pool.rs`, and what it needs of the memory of requests.

#[path = "../../../fs/fuse/src/slots/pool.rs"]
#[expect(unreachable_pub, dead_code, reason = "it is a part of a crate, which has uses for all of it")]
mod source;

pub(crate) mod layout {
    /// So many buffers may be kept, for each reason.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Shares {
        pub(crate) waiting: u32,
        pub(crate) append: u32,
        pub(crate) other: u32,
        pub(crate) write_back: u32,
    }
}

/// Slots and buffers without bytes.
#[derive(Debug)]
pub struct RequestMemory(Layout);

/// How many.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Slots.
    pub slots: u32,
    /// Buffers.
    pub buffers: u32,
}

impl Layout {
    fn shares(self, readers: u32) -> layout::Shares {
        layout::Shares { waiting: 1, append: 1, other: 1, write_back: self.buffers - readers }
    }
}

impl RequestMemory {
    fn layout(&self) -> Layout {
        self.0
    }

    fn populate_buffer(&self, _: u32) {}
    fn drop_slot_pages(&self, _: u32) {}
    fn drop_buffer_pages(&self, _: u32) {}
    fn drop_buffer_pages_behind(&self, _: u32, _: usize) {}
}

/// The pool of a session whose requests are pages that the kernel writes back.
pub struct Pool {
    memory: RequestMemory,
    pool: source::Pool,
}

impl Pool {
    /// All free.
    #[must_use]
    pub fn new(layout: Layout, readers: u32) -> Pool {
        let memory = RequestMemory(layout);
        Pool { pool: source::Pool::new(&memory, readers), memory }
    }

    /// Waits for a slot; `None` once it is closed.
    #[must_use]
    pub fn take_slot(&self) -> Option<u32> {
        self.pool.take_slot()
    }

    /// Waits for a buffer; `None` once it is closed.
    #[must_use]
    pub fn take_buffer(&self) -> Option<u32> {
        self.pool.take_buffer(&self.memory)
    }

    /// Waits until the request may keep its buffer.
    #[must_use]
    pub fn keep(&self) -> bool {
        self.pool.keep(source::Keep::WriteBack)
    }

    /// The request is answered.
    pub fn give_back(&self, buffer: u32) {
        self.pool.give_back(&self.memory, buffer, source::Keep::WriteBack);
    }

    /// The slot is free again.
    pub fn free_slot(&self, slot: u32) {
        self.pool.free_slot(&self.memory, slot);
    }

    /// Slots that are taken.
    #[must_use]
    pub fn slots_taken(&self) -> u32 {
        self.pool.slots_taken()
    }

    /// Nobody waits any more.
    pub fn close(&self) {
        self.pool.close();
    }
}
