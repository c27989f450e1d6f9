//! READs and WRITEs of the kernel's that are under way through its pages. Pure.

use std::ops::Range;

use atoll_core::ids::InodeId;
use tokio::time::Instant;

use super::{LATE_MAX, Pages, REFILLS_MAX, Refill, Stale, common_pages};

/// A READ that fills pages and isn't answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) id: u64,
    pub(super) began: Instant,
    pub(super) epoch: u64,
    /// The first byte that it asks for, …
    pub(super) start: u64,
    /// … and the one after the last.
    pub(super) end: u64,
    /// The size of the file as far as whoever answers it knows, at least; `None` until that is known.
    pub(super) size: Option<u64>,
    /// The smallest size that was learnt since it began: it may be answered as of that, too.
    pub(super) learnt_min: u64,
}

impl Reading {
    /// Where the file may end for whoever answers it.
    pub(super) fn size_min(&self) -> u64 {
        self.size.map_or(0, |size| size.min(self.learnt_min))
    }
}

/// A WRITE through the pages whose bytes no READ is answered with yet.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) id: u64,
    pub(super) range: Range<u64>,
    /// The kernel may have put its bytes into a page that was filled.
    pub(super) has_page: bool,
    /// The thread, 0 if it isn't known.
    pub(super) thread: u32,
    pub(super) began: Instant,
    /// Pages that are being filled, or were, without its bytes.
    pub(super) overtaken: Vec<Range<u64>>,
}

/// A READ that fills pages: under way until this is dropped.
pub struct Fill<'a> {
    pub(super) pages: &'a Pages,
    pub(super) ino: InodeId,
    pub(super) reading: Reading,
}

impl Fill<'_> {
    /// It is answered as of a file of this size, or of a later one. Asked for after the READ was begun here: the kernel
    /// hears of no other size in between without waiting for it.
    pub fn knows(&self, size: u64) {
        if let Some(file) = self.pages.0.lock().files.get_mut(&self.ino)
            && let Some(reading) = file.reading.iter_mut().find(|reading| reading.id == self.reading.id)
        {
            reading.size = Some(size);
        }
    }

    /// The READ is about to be answered with the bytes up to `end`; the file ended there if that is less than was asked
    /// for.
    pub fn answered(self, end: u64, now: Instant) {
        let mut all = self.pages.0.lock();
        let Some(file) = all.files.get_mut(&self.ino) else { return };
        if end < self.reading.end {
            file.note_short(self.reading.epoch, end);
        }
        if file.was_dropped {
            file.refills.truncate(REFILLS_MAX - 1);
            let Reading { id, start, end, .. } = self.reading;
            file.refills.push_front(Refill { id, range: start..end, answered: now });
        }
    }
}

impl Drop for Fill<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.pages.0.lock().files.get_mut(&self.ino) {
            file.reading.retain(|reading| reading.id != self.reading.id);
            let Reading { began, start, end, .. } = self.reading;
            file.cuts.released(began, &(start..end));
        }
    }
}

/// A WRITE through the pages: under way until this is dropped.
pub struct Written<'a> {
    pub(super) pages: &'a Pages,
    pub(super) ino: InodeId,
    pub(super) id: u64,
}

impl Written<'_> {
    /// Nothing lies between where the pages ended and these bytes, but what is right. Not if a page was read without these
    /// bytes meanwhile: it ends where it did until it is dropped.
    pub fn joins(&self, range: &Range<u64>) {
        if let Some(file) = self.pages.0.lock().files.get_mut(&self.ino) {
            let is_this = |writing: &Writing| writing.id == self.id;
            if file.writing.iter().any(|writing| is_this(writing) && !writing.overtaken.is_empty()) {
                return;
            }
            for short in file.short.values_mut().filter(|short| range.start <= **short) {
                // A page that goes on where it ended is whole up to there.
                *short = range.end.max(*short);
            }
        }
    }

    /// True if the kernel may yet cut these bytes off in its pages: when it is answered it must be done with that.
    pub fn may_be_cut(&self, now: Instant) -> bool {
        let mut all = self.pages.0.lock();
        let epoch = all.epoch;
        let Some(file) = all.files.get_mut(&self.ino) else { return false };
        let end = file.writing.iter().find(|writing| writing.id == self.id && writing.has_page);
        let end = end.map(|writing| writing.range.end);
        end.is_some_and(|end| file.may_be_cut_before(end, epoch, now)) && !atoll_faults::planted("write-cut")
    }

    /// READs are answered with its bytes from now on. What to drop before it is answered itself, if the kernel hasn't
    /// locked it for this WRITE: then it isn't filled.
    pub fn visible(self) -> Vec<Stale> {
        let mut all = self.pages.0.lock();
        let overtaken = all.files.get_mut(&self.ino).and_then(|file| {
            let is_this = |writing: &&mut Writing| writing.id == self.id;
            let writing = file.writing.iter_mut().find(is_this)?;
            let (end, thread) = (writing.range.end, writing.thread);
            // Not before: until now another thread that hears of this size may be served with a page without these bytes.
            file.own_write(end, thread);
            let writing = file.writing.iter_mut().find(is_this)?;
            let mut overtaken = std::mem::take(&mut writing.overtaken);
            // It may have been cut off before it was known here, too.
            let since = writing.began.checked_sub(LATE_MAX).unwrap_or(writing.began);
            if writing.has_page
                && let Some(cut) = file.cuts.since(since, writing.range.end, writing.thread)
                && !atoll_faults::planted("write-cut")
            {
                overtaken.extend(common_pages(&writing.range, &(cut..cut + 1)));
            }
            Some(overtaken)
        });
        let mut overtaken = overtaken.unwrap_or_default();
        overtaken.sort_unstable_by_key(|range| range.start);
        overtaken.dedup_by(|range, before| {
            let joins = range.start <= before.end;
            if joins {
                before.end = before.end.max(range.end);
            }
            joins
        });
        overtaken.into_iter().map(|range| all.stale(self.ino, range, None)).collect()
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.pages.0.lock().files.get_mut(&self.ino) {
            file.writing.retain(|writing| writing.id != self.id);
        }
    }
}
