//! How far the kernel knows a file: what it has written itself, and what it may have missed.

use atoll_core::ids::InodeId;
use tokio::time::Instant;

use super::replies::LATELY;
use super::{File, Pages};

impl File {
    /// The thread has written up to there, and is about to hear that it is done.
    pub(super) fn own_write(&mut self, end: u64, thread: u32) {
        if end > self.own_end {
            (self.own_end, self.grown_by) = (end, thread);
        }
        self.replies.written(thread);
    }

    /// The file was made shorter.
    pub(super) fn own_cut(&mut self, size: u64) {
        self.own_end = self.own_end.min(size);
        self.known_end = self.known_end.min(size);
    }
}

impl Pages {
    /// The kernel's thread wrote past its pages, and knows from that where the file ends, once it has processed the reply.
    pub fn grown(&self, ino: InodeId, end: u64, thread: u32, now: Instant) {
        if let Some(file) = self.0.lock().files.get_mut(&ino)
            && end > file.own_end
        {
            file.own_write(end, thread);
            file.grown = Some(now);
        }
    }

    /// True if the kernel may know less of the file than the thread that opens it has to find: what it asked for when it
    /// looked the file up may have been made void, or another thread may yet leave an older size. When it asked isn't known
    /// here: the request may have waited, and the kernel has counted what it makes void from when it made the request. So each
    /// invalidation of the last second counts, and each that is under way.
    pub fn may_be_behind(&self, ino: InodeId, size: u64, thread: u32, now: Instant) -> bool {
        let mut all = self.0.lock();
        let Some(file) = all.files.get_mut(&ino) else { return false };
        file.gone_on(thread, now);
        let was_voided = file.voided_at.is_some_and(|voided| now.duration_since(voided) < LATELY)
            || file.under_way.iter().any(|(_, under_way)| under_way.strong_count() > 0);
        // What it has written itself it knows.
        was_voided && size > file.known_end || file.replies.may_lately_replace(size, thread, file.voided, now)
    }

    /// The kernel's thread asks for something else of the file, so it has processed what it was told of it.
    pub fn gone_on(&self, ino: InodeId, thread: u32, now: Instant) {
        if let Some(file) = self.0.lock().files.get_mut(&ino) {
            file.gone_on(thread, now);
        }
    }
}
