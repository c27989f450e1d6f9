//! What the kernel may hold in its pages of each file, as far as this client knows. Pure.
//!
//! The kernel serves what it holds without asking, so what we let it hold is served by us. Two things make a page
//! wrong, and each has a rule here:
//!
//! - *The file has changed elsewhere.* Pages are right at one value of the file's change counter. They are kept over an
//!   open, and over the taking of a lock, only while the counter is still that one, or has moved by changes that went
//!   through these pages. Else they are dropped, and only when they are gone are they taken for right again.
//! - *The file has grown behind a page's back.* A page that the end of the file lay in when it was read has zeroes
//!   behind that end. Before the kernel hears of a larger size (of whatever made it: an append or a direct write of
//!   this mount, another mount) the pages from that end on are dropped, and those waited for that are being read. A READ
//!   that begins afterwards is answered with the larger file.
//!
//! An invalidation takes effect at some moment between its begin and its end. So nothing is taken for gone before its
//! end, and what was read meanwhile stays suspect: whoever comes along in between invalidates, and waits, too.
//!
//! Source: fs/fuse/file.c and inode.c of Linux 6.18 (`fuse_direct_write_iter` grows the size and leaves the pages,
//! `fuse_reverse_inval_inode` waits for pages that are being read).

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use atoll_core::attributes::Attributes;
use atoll_core::ids::InodeId;
use parking_lot::Mutex;

/// Files that are remembered. Of others the kernel drops its pages when they are opened; those that are open are
/// remembered whatever their number.
const FILES_MAX: usize = 1 << 16;
/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;
/// Epochs of one file whose ends are told apart.
const EPOCHS_MAX: usize = 8;
/// Where a range ends that has no end.
const EVERYTHING: u64 = u64::MAX;

/// A READ that fills pages and isn't answered.
#[derive(Clone, Copy, Debug)]
struct Reading {
    id: u64,
    epoch: u64,
    /// The byte after the last one that it asks for.
    end: u64,
    /// The smallest size that the file has had since it began: it may be answered as of that.
    size_min: u64,
}

#[derive(Debug, Default)]
struct File {
    /// The change counter at which the kernel's pages are right; `None`: not known.
    change: Option<u64>,
    /// The size that was learnt last.
    size: u64,
    /// The kernel holds no page from here on, a page's beginning.
    clean_from: u64,
    /// The last thing that may have put bytes into pages.
    last_fill: u64,
    /// Where the file ended when pages were filled, and where the kernel was told that it ends; by epoch, the smallest.
    short: BTreeMap<u64, u64>,
    reading: Vec<Reading>,
}

/// All files, and two counters that go on when a file is forgotten and comes back.
#[derive(Debug, Default)]
struct Table {
    files: HashMap<InodeId, File>,
    /// Counts what may put bytes into pages.
    fills: u64,
    /// Counts invalidations: each begins an epoch, and what began before it is gone when it is over.
    epoch: u64,
}

/// What is to be invalidated. The pages stay suspect until [`Pages::gone`] is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "pages stay suspect until it is told that they are gone"]
pub struct Stale {
    ino: InodeId,
    /// Bytes of the file; the end is `u64::MAX` for everything that follows.
    pub range: Range<u64>,
    epoch: u64,
    fill: u64,
    /// If these are all pages: the counter that they are right at afterwards.
    change: Option<u64>,
}

impl Stale {
    /// The file.
    #[must_use]
    pub fn ino(&self) -> InodeId {
        self.ino
    }

    /// True if everything that follows is to go.
    #[must_use]
    pub fn has_no_end(&self) -> bool {
        self.range.end == EVERYTHING
    }
}

/// Whether the kernel's pages of a file are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    /// They are, or there are none.
    Right,
    /// Nothing is known of this file: there are none unless it was open before.
    Unknown(Stale),
    /// They aren't.
    Wrong(Stale),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Pages(Mutex<Table>);

/// A READ that fills pages: under way until this is dropped.
pub struct Fill<'a> {
    pages: &'a Pages,
    ino: InodeId,
    reading: Reading,
}

impl Fill<'_> {
    /// The READ is about to be answered with the bytes up to `end`; the file ended there if that is less than was asked
    /// for.
    pub fn answered(self, end: u64) {
        if end < self.reading.end
            && let Some(file) = self.pages.0.lock().files.get_mut(&self.ino)
        {
            file.note_short(self.reading.epoch, end);
        }
    }
}

impl Drop for Fill<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.pages.0.lock().files.get_mut(&self.ino) {
            file.reading.retain(|reading| reading.id != self.reading.id);
        }
    }
}

impl File {
    /// The smallest end of file that a page was filled at, or is being filled at.
    fn shortest(&self) -> Option<u64> {
        let reading = self.reading.iter().filter(|reading| reading.size_min < reading.end);
        reading.map(|reading| reading.size_min).chain(self.short.values().copied()).min()
    }

    /// The kernel may hold a page that has bytes behind this place.
    fn has_from(&self, start: u64) -> bool {
        start / PAGE_BYTES * PAGE_BYTES < self.clean_from
    }

    fn note_short(&mut self, epoch: u64, end: u64) {
        let short = self.short.entry(epoch).or_insert(end);
        *short = end.min(*short);
        while self.short.len() > EPOCHS_MAX
            && let Some((_, first)) = self.short.pop_first()
            && let Some(mut next) = self.short.first_entry()
        {
            // It stays suspect for longer than it has to.
            *next.get_mut() = first.min(*next.get());
        }
    }

    fn learn(&mut self, size: u64) {
        self.size = size;
        for reading in &mut self.reading {
            reading.size_min = reading.size_min.min(size);
        }
    }
}

impl Table {
    fn stale(&mut self, ino: InodeId, range: Range<u64>, change: Option<u64>) -> Stale {
        self.epoch += 1;
        Stale { ino, range, epoch: self.epoch, fill: self.fills, change }
    }

    /// Something is about to put bytes into pages of this file, up to `end`.
    fn fill(&mut self, ino: InodeId, end: u64) -> &mut File {
        self.fills += 1;
        let file = self.files.entry(ino).or_default();
        file.clean_from = file.clean_from.max(end.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES));
        file.last_fill = self.fills;
        file
    }
}

impl Pages {
    /// The file is being opened, or has to be as these attributes say. If the kernel's pages aren't, they are to be
    /// dropped first.
    pub fn current(&self, attributes: &Attributes) -> Current {
        let mut all = self.0.lock();
        let change = Some(attributes.change);
        let Some(file) = all.files.get_mut(&attributes.ino) else {
            all.files.insert(attributes.ino, File::default());
            return Current::Unknown(all.stale(attributes.ino, 0..EVERYTHING, change));
        };
        if file.change == change {
            return Current::Right;
        }
        if file.clean_from == 0 && file.change.is_some() {
            file.change = change;
            return Current::Right;
        }
        Current::Wrong(all.stale(attributes.ino, 0..EVERYTHING, change))
    }

    /// This client has made the file: there are no pages.
    pub fn made(&self, attributes: &Attributes) {
        let file = File { change: Some(attributes.change), ..File::default() };
        self.0.lock().files.insert(attributes.ino, file);
    }

    /// Makes room if too many files are remembered; those that `is_open` says yes to stay.
    pub fn bound(&self, is_open: impl Fn(InodeId) -> bool) {
        let mut all = self.0.lock();
        if all.files.len() <= FILES_MAX {
            return;
        }
        // Half of them, whichever: who is wrong about one only reads it again.
        let mut keep = false;
        all.files.retain(|ino, _| {
            keep = !keep;
            keep || is_open(*ino)
        });
    }

    /// A READ that fills pages begins. `size`: of the file, as it is known now.
    pub fn read(&self, ino: InodeId, size: u64, range: Range<u64>) -> Fill<'_> {
        let mut all = self.0.lock();
        let epoch = all.epoch;
        let file = all.fill(ino, range.end);
        let reading = Reading { id: file.last_fill, epoch, end: range.end, size_min: size };
        file.reading.push(reading);
        Fill { pages: self, ino, reading }
    }

    /// The kernel writes these bytes through its pages.
    pub fn written(&self, ino: InodeId, range: Range<u64>) {
        let mut all = self.0.lock();
        let file = all.fill(ino, range.end);
        file.size = file.size.max(range.end);
        for short in file.short.values_mut().filter(|short| range.start <= **short) {
            // A page that goes on where it ended is whole up to there.
            *short = range.end.max(*short);
        }
    }

    /// These bytes were written past the kernel's pages, and whoever reads from now on gets them. What to drop before
    /// the kernel hears that it is done. `is_watched`: others have the file open, so a page may be read at any moment; and
    /// then an answer of before that the kernel takes up late cuts it off, unless there was an invalidation.
    pub fn bypassed(&self, ino: InodeId, range: Range<u64>, is_watched: bool) -> Option<Stale> {
        let mut all = self.0.lock();
        let file = all.files.get_mut(&ino)?;
        file.size = file.size.max(range.end);
        let short = file.shortest().filter(|short| *short < range.end);
        let late = is_watched && short.is_some();
        let range = match short {
            Some(short) => short.min(range.start)..EVERYTHING,
            None => range,
        };
        (late || file.has_from(range.start)).then(|| all.stale(ino, range, None))
    }

    /// The file has this size now: what is answered from here on may be as of it.
    pub fn learn(&self, ino: InodeId, size: u64) {
        if let Some(file) = self.0.lock().files.get_mut(&ino) {
            file.learn(size);
        }
    }

    /// This client has changed the file, and the kernel knows the new content because it came from there.
    pub fn own_change(&self, attributes: &Attributes) {
        if let Some(file) = self.0.lock().files.get_mut(&attributes.ino)
            && file.change.is_some_and(|change| change.saturating_add(1) == attributes.change)
        {
            file.change = Some(attributes.change);
        }
    }

    /// The kernel cuts its pages off at this size when it is answered.
    pub fn cut(&self, ino: InodeId, size: u64) {
        let mut all = self.0.lock();
        let epoch = all.epoch;
        if let Some(file) = all.files.get_mut(&ino) {
            file.learn(size);
            file.note_short(epoch, size);
        }
    }

    /// The kernel is about to be told this size. What to drop first.
    ///
    /// When it takes an answer up it cuts its pages off at that size, whatever they hold by then: also what was read
    /// after a later growth. So each size that it was told is one at which pages may end. An answer to what it asked
    /// before an invalidation it doesn't take up any more.
    pub fn told(&self, ino: InodeId, size: u64) -> Option<Stale> {
        let mut all = self.0.lock();
        let file = all.files.get_mut(&ino)?;
        file.learn(size);
        let short = file.shortest().filter(|short| *short < size && file.has_from(*short));
        let stale = short.map(|short| all.stale(ino, short..EVERYTHING, None));
        let epoch = all.epoch;
        if let Some(file) = all.files.get_mut(&ino) {
            file.note_short(epoch, size);
        }
        stale
    }

    /// True if the kernel, told this size, would first have to drop a page.
    pub fn would_grow(&self, ino: InodeId, size: u64) -> bool {
        let all = self.0.lock();
        let Some(file) = all.files.get(&ino) else { return false };
        file.shortest().is_some_and(|short| short < size && file.has_from(short))
    }

    /// The pages are gone.
    pub fn gone(&self, stale: &Stale) {
        let mut all = self.0.lock();
        let Some(file) = all.files.get_mut(&stale.ino) else { return };
        if stale.range.end == EVERYTHING {
            // Later ones were read while it was under way, or since.
            file.short.retain(|epoch, short| *epoch >= stale.epoch || *short < stale.range.start);
            if file.last_fill <= stale.fill {
                file.clean_from = file.clean_from.min(stale.range.start / PAGE_BYTES * PAGE_BYTES);
            }
        }
        if let Some(change) = stale.change {
            // An older answer must not undo what a newer one, or an own change, has brought.
            if file.change.is_none_or(|known| known < change) {
                file.change = Some(change);
            }
        }
    }

    /// All pages of the file, if there may be any.
    pub fn all(&self, ino: InodeId) -> Option<Stale> {
        let mut all = self.0.lock();
        let filled = all.files.get(&ino).is_some_and(|file| file.clean_from > 0);
        filled.then(|| all.stale(ino, 0..EVERYTHING, None))
    }

    /// The kernel has forgotten the inode and its pages.
    pub fn forget(&self, ino: InodeId) {
        self.0.lock().files.remove(&ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(5);

    fn file(change: u64, size: u64) -> Attributes {
        Attributes {
            ino: FILE,
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

    fn opened(attributes: &Attributes) -> Pages {
        let pages = Pages::default();
        match pages.current(attributes) {
            Current::Unknown(stale) => pages.gone(&stale),
            other => panic!("{other:?}"),
        }
        pages
    }

    fn wrong(current: Current) -> Stale {
        match current {
            Current::Wrong(stale) => stale,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pages_are_kept_if_only_this_client_changed_the_file() {
        let pages = opened(&file(1, 10));
        assert_eq!(pages.current(&file(1, 10)), Current::Right);
        pages.read(FILE, 10, 0..4096).answered(10);
        pages.own_change(&file(2, 10));
        assert_eq!(pages.current(&file(2, 10)), Current::Right);
        // Somebody else's change came in between.
        pages.own_change(&file(4, 20));
        let stale = wrong(pages.current(&file(4, 20)));
        assert_eq!(stale.range, 0..EVERYTHING);
        pages.gone(&stale);
        assert_eq!(pages.current(&file(4, 20)), Current::Right);
        pages.forget(FILE);
        assert!(matches!(pages.current(&file(4, 20)), Current::Unknown(_)));
    }

    #[test]
    fn pages_are_wrong_until_they_are_gone() {
        let pages = opened(&file(1, 10));
        pages.read(FILE, 10, 0..4096).answered(10);
        let first = wrong(pages.current(&file(2, 10)));
        // Another one that opens, or has the lock, while the first one waits must not read what is there still.
        let second = wrong(pages.current(&file(2, 10)));
        pages.gone(&first);
        assert_eq!(pages.current(&file(2, 10)), Current::Right);
        pages.gone(&second);
        assert_eq!(pages.current(&file(2, 10)), Current::Right);
    }

    #[test]
    fn an_answer_that_comes_late_does_not_make_pages_right() {
        let pages = opened(&file(1, 10));
        pages.read(FILE, 10, 0..4096).answered(10);
        let old = wrong(pages.current(&file(2, 10)));
        let new = wrong(pages.current(&file(3, 10)));
        pages.gone(&new);
        pages.gone(&old);
        assert_eq!(pages.current(&file(3, 10)), Current::Right);
    }

    #[test]
    fn a_file_without_pages_has_none_to_drop() {
        let pages = opened(&file(1, 10));
        assert_eq!(pages.current(&file(7, 10)), Current::Right);
        assert_eq!(pages.told(FILE, 5000), None);
        assert_eq!(pages.bypassed(FILE, 0..100, false), None);
        pages.made(&file(1, 0));
        assert_eq!(pages.bypassed(FILE, 0..100, false), None);
        // The kernel may be about to take up that it is empty, when a page has been read since.
        assert_eq!(pages.told(FILE, 0), None);
        assert_eq!(pages.bypassed(FILE, 0..100, false), None);
        assert!(pages.bypassed(FILE, 100..200, true).is_some());
    }

    #[test]
    fn the_page_at_the_old_end_goes_before_a_larger_size_is_told() {
        let pages = opened(&file(1, 5000));
        pages.read(FILE, 5000, 0..8192).answered(5000);
        assert_eq!(pages.told(FILE, 5000), None);
        assert!(pages.would_grow(FILE, 5001));
        let first = pages.told(FILE, 9000).unwrap();
        assert_eq!(first.range, 5000..EVERYTHING);
        // Told again while the first one waits: it has to wait, too.
        let second = pages.told(FILE, 9000).unwrap();
        pages.gone(&first);
        assert_eq!(pages.told(FILE, 9000), None);
        pages.gone(&second);
        assert_eq!(pages.told(FILE, 9000), None);
        assert_eq!(
            pages.told(FILE, 20_000),
            None,
            "there is no page from 4096 on: whoever follows a file sees it grow"
        );
    }

    #[test]
    fn an_answer_that_is_taken_up_late_cuts_off_what_was_read_since() {
        let pages = opened(&file(1, 100));
        pages.read(FILE, 100, 0..4096).answered(100);
        let stale = pages.told(FILE, 200).unwrap();
        pages.gone(&stale);
        // Asked and answered after the invalidation, and not taken up yet.
        assert_eq!(pages.told(FILE, 200), None);
        assert_eq!(pages.told(FILE, 300), None);
        pages.read(FILE, 300, 0..4096).answered(300);
        // Now it is, and the page ends at 200.
        assert_eq!(pages.told(FILE, 300).unwrap().range, 200..EVERYTHING);
    }

    #[test]
    fn a_page_that_is_read_while_others_are_dropped_stays_suspect() {
        let pages = opened(&file(1, 100));
        pages.read(FILE, 100, 0..4096).answered(100);
        let stale = pages.told(FILE, 200).unwrap();
        pages.read(FILE, 200, 0..4096).answered(200);
        pages.gone(&stale);
        assert_eq!(pages.told(FILE, 200), None);
        assert_eq!(pages.told(FILE, 300).unwrap().range, 200..EVERYTHING);
    }

    #[test]
    fn a_read_under_way_is_waited_for_before_a_larger_size_is_told() {
        let pages = opened(&file(1, 100));
        let fill = pages.read(FILE, 100, 0..4096);
        let stale = pages.bypassed(FILE, 100..200, false).unwrap();
        assert_eq!(stale.range, 100..EVERYTHING);
        // The kernel waits for it, so it is answered before the pages are gone, and goes with them.
        fill.answered(100);
        pages.gone(&stale);
        assert_eq!(pages.told(FILE, 200), None);
        // One that lies within the file has no end in it.
        let pages = opened(&file(1, 10_000));
        let _fill = pages.read(FILE, 10_000, 0..4096);
        assert_eq!(pages.told(FILE, 20_000), None);
        // But it may be answered as of a size that the file had in between.
        pages.learn(FILE, 50);
        assert_eq!(pages.told(FILE, 60).unwrap().range, 50..EVERYTHING);
    }

    #[test]
    fn what_bypasses_the_pages_drops_what_it_replaces() {
        let pages = opened(&file(1, 10_000));
        pages.read(FILE, 10_000, 0..8192).answered(8192);
        assert_eq!(pages.bypassed(FILE, 100..200, false).unwrap().range, 100..200);
    }

    #[test]
    fn a_page_that_is_cut_off_ends_there() {
        let pages = opened(&file(1, 10_000));
        pages.read(FILE, 10_000, 0..8192).answered(8192);
        pages.cut(FILE, 50);
        assert_eq!(pages.told(FILE, 60).unwrap().range, 50..EVERYTHING);
        let pages = opened(&file(1, 10_000));
        pages.read(FILE, 10_000, 0..8192).answered(8192);
        pages.learn(FILE, 10_000);
        assert_eq!(pages.told(FILE, 50), None);
        assert_eq!(pages.told(FILE, 60).unwrap().range, 50..EVERYTHING);
    }

    #[test]
    fn writing_through_the_pages_makes_them_whole() {
        let pages = opened(&file(1, 100));
        pages.read(FILE, 100, 0..4096).answered(100);
        pages.written(FILE, 100..300);
        assert_eq!(pages.told(FILE, 300), None);
        assert!(pages.would_grow(FILE, 301));
        // Not behind a gap that somebody else may have filled.
        pages.written(FILE, 400..500);
        assert_eq!(pages.told(FILE, 500).unwrap().range, 300..EVERYTHING);
    }

    #[test]
    fn remembers_a_bounded_number_of_files_and_all_that_are_open() {
        let pages = Pages::default();
        for number in 0..=FILES_MAX as u64 {
            pages.made(&Attributes { ino: InodeId(number), ..file(1, 0) });
        }
        pages.bound(|ino| ino.0 < 100);
        let all = pages.0.lock();
        assert!(all.files.len() <= FILES_MAX);
        assert!((0..100).all(|number| all.files.contains_key(&InodeId(number))));
    }
}
