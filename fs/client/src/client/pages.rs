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
//!   The kernel itself cuts pages off at each size that it takes up, and may be late with that: see [`cuts`].
//!
//! An invalidation takes effect at some moment between its begin and its end. So nothing is taken for gone before its
//! end, and what was read meanwhile stays suspect: whoever comes along in between invalidates, and waits, too.
//!
//! A WRITE through a page that is filled leaves the page unlocked, so the page can be dropped before the WRITE is here, and
//! a READ can bring it back without those bytes. Such a page goes before the WRITE is answered.
//!
//! Source: fs/fuse/file.c and inode.c of Linux 6.18 (`fuse_direct_write_iter` grows the size and leaves the pages,
//! `fuse_reverse_inval_inode` waits for pages that are being read, `fuse_fill_write_pages` unlocks those that are filled).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use atoll_core::attributes::Attributes;
use atoll_core::ids::InodeId;
use parking_lot::Mutex;
use tokio::time::Instant;

use cuts::{CUT_WITHIN, Cuts};
use replies::Replies;
use under_way::{Fill, Reading, Writing, Written};

mod cuts;
mod known;
mod replies;
mod under_way;

/// Files that are remembered. Of others the pages are dropped when they are opened; those that are open are remembered
/// whatever their number.
const FILES_MAX: usize = 1 << 16;
/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;
/// Epochs of one file whose ends are told apart.
const EPOCHS_MAX: usize = 8;
/// Sizes of files that aren't remembered, told lately.
const STRANGERS_MAX: usize = 1 << 12;
/// How much later a WRITE may be known here than a READ that the kernel sent after it, on a machine that isn't starved.
const LATE_MAX: Duration = Duration::from_millis(100);
/// READs of a file that are remembered for that.
const REFILLS_MAX: usize = 64;
/// When something was asked for (see [`Pages::epoch`]) whose answer the kernel takes up whatever was invalidated since.
pub const NEVER_VOID: u64 = u64::MAX;
/// Where a range ends that has no end.
const EVERYTHING: u64 = u64::MAX;

#[derive(Debug, Default)]
struct File {
    /// The change counter at which the kernel's pages are right; `None`: not known.
    change: Option<u64>,
    /// The size that was learnt last.
    size: u64,
    /// The kernel holds no page from here on, a page's beginning.
    clean_from: u64,
    /// The inode has no page from here on: there may be one that was dropped, and that somebody has found before.
    empty_from: u64,
    /// The last thing that may have put bytes into pages.
    last_fill: u64,
    /// Where the file ended when pages were filled, and where the kernel was told that it ends; by epoch, the smallest.
    short: BTreeMap<u64, u64>,
    reading: Vec<Reading>,
    writing: Vec<Writing>,
    /// Where the file ends for the kernel by writes that came from there and are about to be answered, at least.
    own_end: u64,
    /// The same of writes whose replies it has processed.
    known_end: u64,
    /// The thread that may not have processed the last one of them.
    grown_by: u32,
    /// When it grew so past the pages last.
    grown: Option<Instant>,
    /// Pages may be cut off at these sizes yet.
    cuts: Cuts,
    /// Threads may take these sizes up yet.
    replies: Replies,
    /// Invalidations that may be under way yet, by epoch.
    under_way: Vec<(u64, Weak<()>)>,
    /// The last one that is over: the kernel doesn't take up what it asked for before that.
    voided: u64,
    /// When that was.
    voided_at: Option<Instant>,
    /// Those that are over, but for who has found a page before: epoch and first byte, up to the end of the file.
    leaving: Vec<(u64, u64)>,
    /// Pages were dropped because somebody else changed the file.
    was_dropped: bool,
    /// READs that were answered since, the last one first; pages of theirs may be there.
    refills: VecDeque<Refill>,
}

/// A READ that was answered.
#[derive(Debug)]
struct Refill {
    id: u64,
    range: Range<u64>,
    answered: Instant,
}

/// All files, and two counters that go on when a file is forgotten and comes back.
#[derive(Debug, Default)]
struct Table {
    files: HashMap<InodeId, File>,
    /// Counts what may put bytes into pages.
    fills: u64,
    /// Counts invalidations: each begins an epoch, and what began before it is gone when it is over.
    epoch: u64,
    /// There may be pages of files that aren't remembered: some were, until there were too many.
    may_have_others: bool,
    /// Sizes that the kernel was told of files that aren't remembered: who opens one next may be cut off there.
    strangers: VecDeque<(InodeId, u64, (u32, u64), Instant)>,
    /// Files that are remembered, if more than the usual number is open.
    files_max: usize,
}

/// What is to be invalidated. The pages stay suspect until [`Pages::gone`] is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "pages stay invalid until they are reported as dropped"]
pub struct Stale {
    ino: InodeId,
    /// Bytes of the file; the end is `u64::MAX` for everything that follows.
    pub range: Range<u64>,
    epoch: u64,
    fill: u64,
    /// If these are all pages: the counter that they are right at afterwards.
    change: Option<u64>,
    /// Held until it is over, or given up.
    under_way: Option<Arc<()>>,
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

/// What has to happen before the kernel is told a size.
#[derive(Debug, PartialEq, Eq)]
pub enum Tell {
    /// Nothing.
    Now,
    /// Threads of the kernel have to go on first: to be asked again after a moment.
    Later,
    /// The kernel must not take the answer up: it may not have seen to the size yet that its own write left, and would cut
    /// pages off. Without pages.
    Void(Stale),
    /// This has to be dropped. By the time that it is gone the answer is void, if it can be.
    Without(Stale),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Pages(Mutex<Table>);

/// The pages that both ranges have bytes in.
fn common_pages(one: &Range<u64>, other: &Range<u64>) -> Option<Range<u64>> {
    let first = |range: &Range<u64>| range.start / PAGE_BYTES;
    let end = |range: &Range<u64>| range.end.div_ceil(PAGE_BYTES);
    let (from, to) = (first(one).max(first(other)), end(one).min(end(other)));
    (from < to).then(|| from * PAGE_BYTES..to.saturating_mul(PAGE_BYTES))
}

/// Where the page begins that has this byte.
fn page_of(byte: u64) -> u64 {
    byte / PAGE_BYTES * PAGE_BYTES
}

impl File {
    /// What is known of a file that may have any pages.
    fn unknown() -> File {
        File {
            clean_from: EVERYTHING,
            empty_from: EVERYTHING,
            short: BTreeMap::from([(0, 0)]),
            ..File::default()
        }
    }

    /// The smallest end of file that a page was filled at, or is being filled at.
    fn shortest(&self) -> Option<u64> {
        let reading = self.reading.iter().filter(|reading| reading.size_min() < reading.end);
        reading.map(Reading::size_min).chain(self.short.values().copied()).min()
    }

    /// Pages that were filled at a smaller size than this may be there, and no invalidation of them is over.
    fn is_short_of(&self, size: u64) -> bool {
        let is_leaving = |(epoch, short): (&u64, &u64)| {
            self.leaving.iter().any(|(left, start)| epoch < left && start <= short)
        };
        let reading = self.reading.iter().filter(|reading| reading.size_min() < reading.end);
        let ends = self.short.iter().filter(|end| !is_leaving(*end)).map(|(_, short)| *short);
        let mut ends = reading.map(Reading::size_min).chain(ends);
        ends.any(|short| short < size && self.has_from(short))
    }

    /// The same, and who has found one of them before may be about to look how large the file is.
    fn is_leaving(&self, size: u64) -> bool {
        !self.is_short_of(size) && self.shortest().is_some_and(|short| short < size && self.has_from(short))
    }

    /// The kernel may hold a page that has bytes behind this place.
    fn has_from(&self, start: u64) -> bool {
        page_of(start) < self.clean_from
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

    /// All pages were dropped, and are right at this change from now on.
    fn dropped(&mut self, change: Option<u64>) {
        let Some(change) = change else { return };
        self.was_dropped = true;
        // An older answer must not undo what a newer one, or an own change, has brought.
        if self.change.is_none_or(|known| known < change) {
            self.change = Some(change);
        }
    }

    /// These are no pages of the inode any more. What was read since may be.
    fn emptied(&mut self, stale: &Stale) {
        if stale.range.end == EVERYTHING && self.last_fill <= stale.fill {
            self.empty_from = self.empty_from.min(page_of(stale.range.start));
        }
    }

    /// The kernel's thread asks for something.
    fn gone_on(&mut self, thread: u32, now: Instant) {
        self.cuts.gone_on(thread, now);
        self.replies.gone_on(thread);
        if thread != 0 && thread == self.grown_by {
            self.known_end = self.own_end;
        }
    }

    fn may_be_cut_before(&mut self, size: u64, epoch: u64, now: Instant) -> bool {
        if atoll_faults::planted("cut-late") {
            return false;
        }
        let reading = self.reading.iter().map(|reading| (reading.began, reading.start..reading.end));
        let may_be = self.cuts.are_before(size, reading, now);
        self.note_cuts(epoch);
        may_be
    }

    /// What was read while a cut was pending may have been cut off; where the inode has no page, nothing was.
    fn note_cuts(&mut self, epoch: u64) {
        if let Some(size) = self.cuts.over()
            && page_of(size) < self.empty_from
            && !atoll_faults::planted("cut-forgotten")
        {
            self.note_short(epoch, size);
        }
    }

    /// Its own write made the file larger so lately that the kernel may not have seen to that yet.
    fn grew_lately(&self, now: Instant) -> bool {
        self.grown.is_some_and(|grown| now.duration_since(grown) < CUT_WITHIN)
    }

    fn learn(&mut self, size: u64) {
        self.size = size;
        for reading in &mut self.reading {
            reading.learnt_min = reading.learnt_min.min(size);
        }
    }
}

impl Table {
    fn stale(&mut self, ino: InodeId, range: Range<u64>, change: Option<u64>) -> Stale {
        self.epoch += 1;
        let under_way = Arc::new(());
        if let Some(file) = self.files.get_mut(&ino) {
            file.under_way.retain(|(_, under_way)| under_way.strong_count() > 0);
            file.under_way.push((self.epoch, Arc::downgrade(&under_way)));
        }
        Stale { ino, range, epoch: self.epoch, fill: self.fills, change, under_way: Some(under_way) }
    }

    /// What has to be dropped before the kernel hears of this size.
    fn too_short(&mut self, ino: InodeId, size: u64) -> Option<Stale> {
        if atoll_faults::planted("growth-over-old-pages") {
            return None;
        }
        let file = self.files.get_mut(&ino)?;
        file.learn(size);
        file.own_cut(size);
        let short = file.shortest().filter(|short| *short < size && file.has_from(*short))?;
        Some(self.stale(ino, short..EVERYTHING, None))
    }

    /// The kernel is about to hear of this size, and cuts pages off there: whichever it has by then, or only those that it
    /// has now.
    fn hears(&mut self, ino: InodeId, size: u64, by_then: bool) {
        let epoch = self.epoch;
        if let Some(file) = self.files.get_mut(&ino)
            && (by_then || page_of(size) < file.empty_from)
            && !atoll_faults::planted("growth-over-old-pages")
        {
            file.note_short(epoch, size);
        }
    }

    /// The file; if it isn't remembered it may have any pages, or has none.
    fn find(&mut self, ino: InodeId) -> &mut File {
        let make = if self.may_have_others { File::unknown } else { File::default };
        let strangers = &self.strangers;
        self.files.entry(ino).or_insert_with(|| {
            let mut file = make();
            for (_, size, (thread, asked), told) in strangers.iter().filter(|(stranger, ..)| *stranger == ino)
            {
                file.cuts.told(*size, *thread, *told);
                file.replies.told(*size, (*thread, *asked), 0, *told);
            }
            file
        })
    }

    /// The kernel's thread is told this size of a file that isn't remembered.
    fn told_of_stranger(&mut self, ino: InodeId, size: u64, asked: (u32, u64), now: Instant) {
        let is_over =
            |(.., told): &(InodeId, u64, (u32, u64), Instant)| now.duration_since(*told) >= CUT_WITHIN;
        while self.strangers.len() >= STRANGERS_MAX || self.strangers.front().is_some_and(is_over) {
            self.strangers.pop_front();
        }
        self.strangers.push_back((ino, size, asked, now));
    }

    /// Something is about to put bytes into pages of this file, up to `end`.
    fn fill(&mut self, ino: InodeId, end: u64) -> &mut File {
        self.fills += 1;
        let fills = self.fills;
        let file = self.find(ino);
        let end = end.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES);
        (file.clean_from, file.empty_from) = (file.clean_from.max(end), file.empty_from.max(end));
        file.last_fill = fills;
        file
    }
}

impl Pages {
    /// The file is being opened, or has to be as these attributes say. The kernel's pages that aren't: to be dropped
    /// first.
    pub fn current(&self, attributes: &Attributes) -> Option<Stale> {
        let mut all = self.0.lock();
        let change = Some(attributes.change);
        let file = all.find(attributes.ino);
        if file.clean_from == 0 {
            file.change = change;
        }
        // An answer that was overtaken by a newer one is no reason to drop what that one brought.
        if file.change >= change {
            return None;
        }
        if atoll_faults::planted("pages-right-early") {
            file.change = change;
        }
        Some(all.stale(attributes.ino, 0..EVERYTHING, change))
    }

    /// This client has made the file: there are no pages.
    pub fn made(&self, attributes: &Attributes) {
        let file = File { change: Some(attributes.change), ..File::default() };
        self.0.lock().files.insert(attributes.ino, file);
    }

    /// Makes room if too many files are remembered; those that `is_open` says yes to stay.
    pub fn bound(&self, is_open: impl Fn(InodeId) -> bool) {
        let mut all = self.0.lock();
        if all.files.len() <= all.files_max.max(FILES_MAX) {
            return;
        }
        // Half of them, whichever: who is wrong about one only reads it again.
        let mut keep = false;
        all.files.retain(|ino, _| {
            keep = !keep;
            keep || is_open(*ino)
        });
        all.may_have_others = true;
        // If most of them are open, not each further one is a reason to look at all.
        all.files_max = all.files.len() * 2;
    }

    /// A READ that fills pages begins, before it is looked up how large the file is.
    pub fn read(&self, ino: InodeId, range: Range<u64>, now: Instant) -> Fill<'_> {
        let mut all = self.0.lock();
        let epoch = all.epoch;
        // What is over by now can't cut off what is read from here on.
        all.find(ino).may_be_cut_before(0, epoch, now);
        let file = all.fill(ino, range.end);
        for writing in &mut file.writing {
            writing.overtaken.extend(common_pages(&writing.range, &range));
        }
        let reading = Reading {
            id: file.last_fill,
            began: now,
            epoch,
            start: range.start,
            end: range.end,
            size: None,
            learnt_min: u64::MAX,
        };
        file.reading.push(reading);
        Fill { pages: self, ino, reading }
    }

    /// The kernel writes these bytes through its pages.
    pub fn written(&self, ino: InodeId, range: Range<u64>, thread: u32, now: Instant) -> Written<'_> {
        let mut all = self.0.lock();
        let has_page = all.find(ino).has_from(range.start);
        let file = all.fill(ino, range.end);
        file.gone_on(thread, now);
        let id = file.last_fill;
        // A READ that is under way has its pages locked: this WRITE went through others, which were dropped since. One that
        // is over may have been sent after it.
        let under_way = file.reading.iter().map(|reading| reading.start..reading.end);
        let over = file.refills.iter().take_while(|refill| now.duration_since(refill.answered) < LATE_MAX);
        let reads = under_way.chain(over.map(|refill| refill.range.clone()));
        let overtaken = reads.filter_map(|read| common_pages(&read, &range)).collect();
        file.writing.push(Writing { id, range: range.clone(), has_page, thread, began: now, overtaken });
        file.size = file.size.max(range.end);
        Written { pages: self, ino, id }
    }

    /// The kernel writes through its pages from `offset` on, and they may end before that, where others may have appended:
    /// what to drop before it hears that the file is larger.
    pub fn gap(&self, ino: InodeId, offset: u64) -> Option<Stale> {
        let mut all = self.0.lock();
        let file = all.files.get_mut(&ino)?;
        let short = file.shortest().filter(|short| *short < offset && file.has_from(*short))?;
        Some(all.stale(ino, short..offset, None))
    }

    /// These bytes were written past the kernel's pages, and whoever reads from now on gets them. What to drop before
    /// the kernel hears that it is done. `is_watched`: others have the file open, so a page may be read at any moment; and
    /// then an answer of before that the kernel takes up late cuts it off, unless there was an invalidation. `drops_own`: the
    /// kernel drops the pages of these bytes itself before its caller goes on (`generic_file_direct_write` in mm/filemap.c).
    pub fn bypassed(
        &self,
        ino: InodeId,
        range: Range<u64>,
        is_watched: bool,
        drops_own: bool,
    ) -> Option<Stale> {
        if atoll_faults::planted("growth-over-old-pages") {
            return None;
        }
        let mut all = self.0.lock();
        let file = all.files.get_mut(&ino)?;
        file.size = file.size.max(range.end);
        let short = file.shortest().filter(|short| *short < range.end);
        let Some(short) = short else {
            let is_left = !drops_own && file.has_from(range.start);
            return is_left.then(|| all.stale(ino, range, None));
        };
        // It hears of the size before it drops them.
        let range = short.min(range.start)..EVERYTHING;
        (is_watched || file.has_from(range.start)).then(|| all.stale(ino, range, None))
    }

    /// The file has this size now: what is answered from here on may be as of it.
    pub fn learn(&self, ino: InodeId, size: u64) {
        if let Some(file) = self.0.lock().files.get_mut(&ino) {
            file.learn(size);
        }
    }

    /// This client has changed the file, and the kernel knows the new content because it came from there.
    pub fn own_change(&self, attributes: &Attributes) {
        self.own_changes(attributes.change, attributes);
    }

    /// The same of several changes in a row, from the one with this number on.
    pub fn own_changes(&self, first: u64, last: &Attributes) {
        if let Some(file) = self.0.lock().files.get_mut(&last.ino)
            && file.change.is_some_and(|change| change.saturating_add(1) == first)
        {
            file.change = Some(last.change);
        }
    }

    /// The kernel cuts its pages off at this size when it is answered.
    pub fn cut(&self, ino: InodeId, size: u64) {
        let mut all = self.0.lock();
        let epoch = all.epoch;
        if let Some(file) = all.files.get_mut(&ino) {
            file.learn(size);
            file.own_cut(size);
            file.note_short(epoch, size);
        }
    }

    /// What is asked from now on is asked after invalidations up to this one have begun.
    pub fn epoch(&self) -> u64 {
        self.0.lock().epoch
    }

    /// The kernel's thread is about to be told this size; it asked for it then (see [`Pages::epoch`]).
    pub fn tell(&self, ino: InodeId, size: u64, (thread, asked): (u32, u64), now: Instant) -> Tell {
        let mut all = self.0.lock();
        let epoch = all.epoch;
        let Some(file) = all.files.get_mut(&ino) else {
            all.told_of_stranger(ino, size, (thread, asked), now);
            return Tell::Now;
        };
        file.gone_on(thread, now);
        file.note_cuts(epoch);
        if asked < file.voided {
            return Tell::Now;
        }
        if size > file.own_end && file.may_be_cut_before(size, epoch, now) || file.is_leaving(size) {
            return Tell::Later;
        }
        let own_end = file.own_end;
        if let Some(stale) = all.too_short(ino, size) {
            return Tell::Without(stale);
        }
        // One that is read later is seen to by `cuts`. To take it for short would be to drop it before the next size is told,
        // which makes that void.
        all.hears(ino, size, false);
        let Some(file) = all.files.get_mut(&ino) else { return Tell::Now };
        file.replies.told(size, (thread, asked), file.voided, now);
        // No page is cut in two there.
        if size.is_multiple_of(PAGE_BYTES) {
            return Tell::Now;
        }
        if size <= own_end && asked != NEVER_VOID && file.grew_lately(now) {
            return Tell::Void(all.stale(ino, EVERYTHING..EVERYTHING, None));
        }
        if size != own_end || asked == NEVER_VOID {
            file.cuts.told(size, thread, now);
        }
        Tell::Now
    }

    /// Somebody is about to hear that a lock is theirs, of a file that has this size now, and asks for the size next: what
    /// has to happen first, so that nothing makes that answer void, or cuts pages off afterwards. `epoch`: that of when it
    /// had the lock; what others invalidate later is of what they find later.
    pub fn settle(&self, ino: InodeId, size: u64, epoch: u64, now: Instant) -> Tell {
        let mut all = self.0.lock();
        let current = all.epoch;
        let Some(file) = all.files.get_mut(&ino) else { return Tell::Now };
        file.learn(size);
        let is_under_way = |(began, under_way): &(u64, Weak<()>)| {
            *began <= epoch && under_way.strong_count() > 0 && !atoll_faults::planted("pages-right-early")
        };
        if size > file.own_end && file.may_be_cut_before(size, current, now)
            || size < file.own_end && file.grew_lately(now)
            || file.under_way.iter().any(is_under_way)
        {
            return Tell::Later;
        }
        if let Some(short) = file.shortest().filter(|_| file.is_short_of(size)) {
            return Tell::Without(all.stale(ino, short..EVERYTHING, None));
        }
        match file.replies.may_replace(size, file.voided) && !atoll_faults::planted("old-reply-late") {
            true => Tell::Void(all.stale(ino, EVERYTHING..EVERYTHING, None)),
            false => Tell::Now,
        }
    }

    /// True if the kernel may yet cut pages off before this place.
    pub fn may_be_cut_before(&self, ino: InodeId, place: u64, now: Instant) -> bool {
        let mut all = self.0.lock();
        let epoch = all.epoch;
        all.files.get_mut(&ino).is_some_and(|file| file.may_be_cut_before(place, epoch, now))
    }

    /// The kernel hears of this size. What to drop first.
    ///
    /// When it takes an answer up it cuts its pages off at that size, whatever they hold by then: also what was read
    /// after a later growth. So each size that it was told is one at which pages may end. An answer to what it asked
    /// before an invalidation it doesn't take up any more.
    pub fn told(&self, ino: InodeId, size: u64) -> Option<Stale> {
        let mut all = self.0.lock();
        let stale = all.too_short(ino, size);
        all.hears(ino, size, true);
        stale
    }

    /// True if something would have to happen before the kernel can be told this size.
    pub fn would_grow(&self, ino: InodeId, size: u64, now: Instant) -> bool {
        let mut all = self.0.lock();
        let epoch = all.epoch;
        let Some(file) = all.files.get_mut(&ino) else { return false };
        let is_short = file.shortest().is_some_and(|short| short < size && file.has_from(short));
        is_short || size > file.own_end && file.may_be_cut_before(size, epoch, now)
    }

    /// They are gone, as far as what comes next is concerned: who has found one of them before may still be served with it,
    /// up to the size that the kernel knows by then.
    pub fn dropped(&self, stale: &mut Stale, now: Instant) {
        stale.under_way = None;
        if let Some(file) = self.0.lock().files.get_mut(&stale.ino) {
            file.voided = file.voided.max(stale.epoch);
            file.voided_at = Some(now);
            file.dropped(stale.change);
            file.emptied(stale);
            if stale.range.end == EVERYTHING && stale.range.start < EVERYTHING {
                file.leaving.push((stale.epoch, stale.range.start));
            }
        }
    }

    /// The pages are gone.
    pub fn gone(&self, stale: &Stale) {
        let mut all = self.0.lock();
        let Some(file) = all.files.get_mut(&stale.ino) else { return };
        file.leaving.retain(|(epoch, _)| *epoch != stale.epoch);
        if stale.range.end == EVERYTHING {
            // Later ones were read while it was under way, or since.
            file.short.retain(|epoch, short| *epoch >= stale.epoch || *short < stale.range.start);
            file.emptied(stale);
            if file.last_fill <= stale.fill {
                file.clean_from = file.clean_from.min(page_of(stale.range.start));
            }
        } else {
            // None of the pages that there were ends within it any more.
            let ended = file.short.range_mut(..stale.epoch).map(|(_, short)| short);
            ended.filter(|short| stale.range.contains(*short)).for_each(|short| *short = stale.range.end);
        }
        let range = &stale.range;
        file.refills.retain(|refill| {
            refill.id > stale.fill || refill.range.start < range.start || range.end < refill.range.end
        });
        file.dropped(stale.change);
    }

    /// All pages of the file, if there may be any.
    pub fn all(&self, ino: InodeId) -> Option<Stale> {
        let mut all = self.0.lock();
        let filled = all.files.get(&ino).is_some_and(|file| file.clean_from > 0);
        filled.then(|| all.stale(ino, 0..EVERYTHING, None))
    }

    /// What went through the kernel's pages was lost: they aren't right any more, at whichever change.
    pub fn lost(&self, ino: InodeId) {
        if let Some(file) = self.0.lock().files.get_mut(&ino) {
            file.change = None;
        }
    }

    /// The kernel has forgotten the inode and its pages.
    pub fn forget(&self, ino: InodeId) {
        self.0.lock().files.remove(&ino);
    }
}

#[cfg(test)]
mod tests;
