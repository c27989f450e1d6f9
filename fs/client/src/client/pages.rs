//! What the kernel may hold in its pages of each file, as far as this client knows. Pure.

use std::collections::HashMap;
use std::ops::Range;

use atoll_core::attributes::Attributes;
use atoll_core::ids::InodeId;
use parking_lot::Mutex;

/// Files that are remembered; of others the kernel drops its pages when they are opened.
const FILES_MAX: usize = 1 << 16;
/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

#[derive(Clone, Copy, Debug)]
struct Known {
    /// The change counter at which the kernel's pages are right.
    change: u64,
    /// The size that the kernel knows.
    size: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Pages(Mutex<HashMap<InodeId, Known>>);

impl Pages {
    /// The file is being opened; `size` is what the kernel will be told (what is buffered here counts). True if
    /// the kernel may keep its pages.
    pub fn opened(&self, attributes: &Attributes, size: u64) -> bool {
        let mut known = self.0.lock();
        let new = Known { change: attributes.change, size };
        let keep = known.get(&attributes.ino).is_some_and(|known| known.change == attributes.change);
        if known.len() >= FILES_MAX && !known.contains_key(&attributes.ino) {
            // Half of them, whichever: who is wrong about one only reads it again.
            let mut keep = false;
            known.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        known.insert(attributes.ino, new);
        keep
    }

    /// This client has changed the file, and the kernel knows the new content because it came from there.
    pub fn own_change(&self, attributes: &Attributes) {
        if let Some(known) = self.0.lock().get_mut(&attributes.ino)
            && known.change.saturating_add(1) == attributes.change
        {
            known.change = attributes.change;
        }
    }

    /// The kernel writes up to `end`: its own size grows.
    pub fn written(&self, ino: InodeId, end: u64) {
        if let Some(known) = self.0.lock().get_mut(&ino) {
            known.size = known.size.max(end);
        }
    }

    /// The kernel has set the size.
    pub fn resized(&self, ino: InodeId, size: u64) {
        if let Some(known) = self.0.lock().get_mut(&ino) {
            known.size = size;
        }
    }

    /// The kernel is about to be told this size. If somebody else has made the file longer, its page at the old
    /// end is wrong behind that: the range to drop first.
    pub fn told(&self, ino: InodeId, size: u64) -> Option<Range<u64>> {
        let mut all = self.0.lock();
        let known = all.get_mut(&ino)?;
        let old = std::mem::replace(&mut known.size, size);
        let start = old / PAGE_BYTES * PAGE_BYTES;
        (size > old && old > start).then_some(start..start + PAGE_BYTES)
    }

    /// True if the kernel, told this size, would first have to drop a page.
    pub fn would_grow(&self, ino: InodeId, size: u64) -> bool {
        self.0.lock().get(&ino).is_some_and(|known| size > known.size)
    }

    /// The kernel has forgotten the inode and its pages.
    pub fn forget(&self, ino: InodeId) {
        self.0.lock().remove(&ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(change: u64, size: u64) -> Attributes {
        Attributes {
            ino: InodeId(5),
            mode: 0o100_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            allocated: 0,
            atime: Default::default(),
            mtime: Default::default(),
            ctime: Default::default(),
            btime: Default::default(),
            change,
            acl: false,
        }
    }

    #[test]
    fn pages_are_kept_if_only_this_client_changed_the_file() {
        let pages = Pages::default();
        assert!(!pages.opened(&file(1, 0), 0));
        assert!(pages.opened(&file(1, 0), 0));
        pages.own_change(&file(2, 10));
        assert!(pages.opened(&file(2, 10), 10));
        // Somebody else's change came in between.
        pages.own_change(&file(4, 20));
        assert!(!pages.opened(&file(4, 20), 20));
        pages.forget(InodeId(5));
        assert!(!pages.opened(&file(4, 20), 20));
    }

    #[test]
    fn a_file_that_others_made_longer_loses_the_page_at_its_old_end() {
        let pages = Pages::default();
        assert_eq!(pages.told(InodeId(5), 100), None);
        pages.opened(&file(1, 5000), 5000);
        assert_eq!(pages.told(InodeId(5), 5000), None);
        assert_eq!(pages.told(InodeId(5), 9000), Some(4096..8192));
        pages.written(InodeId(5), 9500);
        assert_eq!(pages.told(InodeId(5), 9500), None);
        pages.resized(InodeId(5), 8192);
        assert!(pages.would_grow(InodeId(5), 8193) && !pages.would_grow(InodeId(5), 8192));
        assert_eq!(pages.told(InodeId(5), 100_000), None, "the old end is between two pages");
    }

    #[test]
    fn remembers_a_bounded_number_of_files() {
        let pages = Pages::default();
        for number in 0..=FILES_MAX as u64 {
            pages.opened(&Attributes { ino: InodeId(number), ..file(1, 0) }, 0);
        }
        assert!(pages.0.lock().len() <= FILES_MAX);
    }
}
