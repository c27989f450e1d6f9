//! Open files and directories. Those of files are recorded in the arena, so that a successor of this process knows what is
//! open; of a directory's handle nothing is lost but what it had in stock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use atoll_core::attributes::Attributes;
use atoll_core::ids::InodeId;
use parking_lot::Mutex;

use super::directories::Listing;
use crate::arena::{Arena, HandleRecord, HandleRoom};
use crate::data::ErrorMark;
use crate::origin;

/// Handles of one process are numbered from a multiple of this on: nothing that was closed under a predecessor has the number
/// of something that is open.
const NUMBERS_PER_PROCESS: u64 = 1 << 40;
/// Successors after which numbers are used again; a number has less than 56 bits.
const PROCESSES: u64 = 1 << 14;

/// What is recorded of a handle: how it was opened, …
const ACCESS: u8 = 0b11;
const APPENDS: u8 = 1 << 2;
const NO_ATIME: u8 = 1 << 3;
/// … that it goes past the kernel's pages, …
const DIRECT: u8 = 1 << 4;
/// … that what was written through it is lost, …
const BROKEN: u8 = 1 << 5;
/// … and that something was locked through it.
const LOCKED: u8 = 1 << 6;

/// A file that is open here, however often.
pub struct OpenFile {
    /// Which.
    pub ino: InodeId,
    /// The newest attributes that the service told; `None` until it did.
    attributes: Mutex<Option<Attributes>>,
    /// Its handles: some that …
    handles: AtomicU32,
    /// … write, …
    writers: AtomicU32,
    /// … that a mapping can be stored to through, …
    mappers: AtomicU32,
    /// … that append, …
    appenders: AtomicU32,
    /// … and that go past the kernel's pages.
    direct: AtomicU32,
}

impl OpenFile {
    fn new(ino: InodeId) -> Arc<Self> {
        Arc::new(OpenFile {
            ino,
            attributes: Mutex::default(),
            handles: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            mappers: AtomicU32::new(0),
            appenders: AtomicU32::new(0),
            direct: AtomicU32::new(0),
        })
    }

    /// True if a handle appends to it.
    pub fn has_appender(&self) -> bool {
        self.appenders.load(Ordering::Relaxed) > 0
    }

    /// Counts a handle with these flags of open(2).
    fn count(&self, flags: u32, count: impl Fn(&AtomicU32)) {
        let access = flags & libc::O_ACCMODE as u32;
        if access == libc::O_RDONLY as u32 {
            return;
        }
        count(&self.writers);
        if access == libc::O_RDWR as u32 {
            count(&self.mappers);
        }
        if flags & libc::O_APPEND as u32 != 0 {
            count(&self.appenders);
        }
    }

    /// The newest attributes that the service told.
    pub fn attributes(&self) -> Option<Attributes> {
        self.attributes.lock().clone()
    }

    /// Takes note of attributes unless newer ones are known. True if there was a change since those that were
    /// known.
    pub fn learn(&self, attributes: &Attributes) -> bool {
        let mut known = self.attributes.lock();
        let before = known.as_ref().map(|known| known.change);
        if before.is_none_or(|before| before <= attributes.change) {
            *known = Some(attributes.clone());
        }
        before.is_some_and(|before| before < attributes.change)
    }
}

/// A handle of a file.
pub struct FileHandle {
    /// The file.
    pub file: Arc<OpenFile>,
    /// As open(2).
    pub flags: u32,
    /// It goes past the kernel's pages.
    pub direct: bool,
    /// Errors of write-behind that this handle was told of.
    pub errors: Mutex<ErrorMark>,
    /// What was written through it (or to the same file) is lost: it answers `EIO` until it is closed.
    broken: AtomicBool,
    locked: AtomicBool,
    number: u64,
    /// Where it is recorded; `None` if there is no place for more.
    room: Option<HandleRoom>,
}

/// What is recorded of a handle that was opened with these flags of open(2).
fn recorded(flags: u32, direct: bool) -> u8 {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    (flags & libc::O_ACCMODE as u32) as u8
        | bit(flags & libc::O_APPEND as u32 != 0, APPENDS)
        | bit(flags & libc::O_NOATIME as u32 != 0, NO_ATIME)
        | bit(direct, DIRECT)
}

/// The flags of open(2) that are recorded.
fn opened_with(recorded: u8) -> u32 {
    let flag = |bit: u8, flag: i32| if recorded & bit != 0 { flag as u32 } else { 0 };
    u32::from(recorded & ACCESS) | flag(APPENDS, libc::O_APPEND) | flag(NO_ATIME, libc::O_NOATIME)
}

impl FileHandle {
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// It is one more of its file.
    fn count(&self) {
        self.file.count(self.flags, |counter| _ = counter.fetch_add(1, Ordering::Relaxed));
        self.file.direct.fetch_add(u32::from(self.direct), Ordering::Relaxed);
        self.file.handles.fetch_add(1, Ordering::Relaxed);
    }

    fn set(&self, what: &AtomicBool) {
        if !what.swap(true, Ordering::Relaxed)
            && let Some(room) = &self.room
        {
            let bit = |set: &AtomicBool, bit: u8| if set.load(Ordering::Relaxed) { bit } else { 0 };
            let flags =
                recorded(self.flags, self.direct) | bit(&self.broken, BROKEN) | bit(&self.locked, LOCKED);
            room.set_flags(self.number, flags);
        }
    }

    fn is_lost(&self) {
        self.set(&self.broken);
    }

    /// Something is locked through it.
    pub fn locks(&self) {
        self.set(&self.locked);
    }

    pub fn can_write(&self) -> bool {
        self.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
    }
}

/// What a handle stands for.
#[derive(Clone)]
pub enum Handle {
    File(Arc<FileHandle>),
    Directory(Arc<tokio::sync::Mutex<Listing>>),
}

struct Counted {
    count: u32,
    file: Arc<OpenFile>,
}

#[derive(Default)]
struct Table {
    last: u64,
    handles: HashMap<u64, Handle>,
    files: HashMap<InodeId, Counted>,
    /// Handles that a predecessor of this process made, by the kernel's requests for them: one that was not answered comes
    /// again, and gets another one.
    inherited: HashMap<u64, u64>,
}

impl Table {
    /// Undoes an [`open`](Handles::open); true if it was the last one.
    fn close(&mut self, ino: InodeId) -> bool {
        let Some(counted) = self.files.get_mut(&ino) else { return false };
        counted.count -= 1;
        let is_last = counted.count == 0;
        if is_last {
            self.files.remove(&ino);
        }
        is_last
    }

    fn open(&mut self, ino: InodeId) -> Arc<OpenFile> {
        let counted = self.files.entry(ino).or_insert_with(|| Counted { count: 0, file: OpenFile::new(ino) });
        counted.count += 1;
        Arc::clone(&counted.file)
    }

    fn remove(&mut self, handle: u64) -> Option<Handle> {
        let removed = self.handles.remove(&handle);
        if let Some(Handle::File(handle)) = &removed {
            handle.file.count(handle.flags, |counter| _ = counter.fetch_sub(1, Ordering::Relaxed));
            handle.file.direct.fetch_sub(u32::from(handle.direct), Ordering::Relaxed);
            handle.file.handles.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }
}

/// The handles of one mount.
#[derive(Default)]
pub struct Handles {
    table: Mutex<Table>,
    /// Where they are recorded.
    arena: Option<Arc<Arena>>,
}

impl Handles {
    /// None yet; they are recorded in the arena.
    pub fn recorded_in(arena: Arc<Arena>) -> Handles {
        Handles { arena: Some(arena), ..Handles::default() }
    }

    /// What was open when the process died that this one succeeds. `takeovers`: how often that has happened to the mount.
    /// `locks_are_lost`: what was locked isn't any more.
    pub fn succeed(&self, takeovers: u64, records: Vec<HandleRecord>, locks_are_lost: bool) {
        let Some(arena) = &self.arena else { return };
        let mut table = self.table.lock();
        table.last = takeovers % PROCESSES * NUMBERS_PER_PROCESS;
        for record in records {
            let HandleRecord { number, ino, request, .. } = record;
            let flags = opened_with(record.flags);
            let is = |bit: u8| record.flags & bit != 0;
            let handle = FileHandle {
                file: table.open(ino),
                flags,
                direct: is(DIRECT),
                errors: Mutex::default(),
                broken: AtomicBool::new(is(BROKEN)),
                locked: AtomicBool::new(is(LOCKED)),
                number,
                room: Some(arena.adopt_handle(&record)),
            };
            handle.count();
            if locks_are_lost && is(LOCKED) {
                handle.is_lost();
            }
            table.handles.insert(number, Handle::File(Arc::new(handle)));
            if request != 0 {
                table.inherited.insert(request, number);
            }
        }
    }

    /// The files that are open.
    pub fn files(&self) -> Vec<InodeId> {
        self.table.lock().files.keys().copied().collect()
    }

    /// The file is about to be opened. To be undone by [`close`](Self::close) or by removing the handle that is
    /// made of it.
    pub fn open(&self, ino: InodeId) -> Arc<OpenFile> {
        self.table.lock().open(ino)
    }

    /// Undoes an [`open`](Self::open). `last` is called if that was the last one, before anybody can open the
    /// file anew.
    pub fn close(&self, ino: InodeId, last: impl FnOnce()) {
        let mut table = self.table.lock();
        if table.close(ino) {
            last();
        }
    }

    /// A handle of a file that was [`open`](Self::open)ed.
    pub fn add_file(&self, file: Arc<OpenFile>, flags: u32, direct: bool, errors: ErrorMark) -> u64 {
        let mut table = self.table.lock();
        let request = origin::request();
        if let Some(before) = table.inherited.remove(&request)
            && let Some(Handle::File(before)) = table.remove(before)
        {
            // The kernel was never told of it.
            table.close(before.file.ino);
        }
        table.last += 1;
        let number = table.last;
        let note = |arena: &Arc<Arena>| arena.note_handle(number, recorded(flags, direct), file.ino, request);
        let handle = FileHandle {
            room: self.arena.as_ref().and_then(note),
            file,
            flags,
            direct,
            errors: Mutex::new(errors),
            broken: AtomicBool::new(false),
            locked: AtomicBool::new(false),
            number,
        };
        handle.count();
        table.handles.insert(number, Handle::File(Arc::new(handle)));
        number
    }

    /// A handle of a directory.
    pub fn add_directory(&self, listing: Listing) -> u64 {
        let mut table = self.table.lock();
        table.last += 1;
        let number = table.last;
        table.handles.insert(number, Handle::Directory(Arc::new(tokio::sync::Mutex::new(listing))));
        number
    }

    /// What a handle stands for.
    pub fn find(&self, handle: u64) -> Option<Handle> {
        self.table.lock().handles.get(&handle).cloned()
    }

    /// The handle is closed.
    pub fn remove(&self, handle: u64) -> Option<Handle> {
        self.table.lock().remove(handle)
    }

    /// The file, if it is open.
    pub fn file(&self, ino: InodeId) -> Option<Arc<OpenFile>> {
        self.table.lock().files.get(&ino).map(|counted| Arc::clone(&counted.file))
    }

    /// True if somebody has the file open; who is only about to open it may find that it is gone.
    pub fn has_handle(&self, ino: InodeId) -> bool {
        self.file(ino).is_some_and(|file| file.handles.load(Ordering::Relaxed) > 0)
    }

    /// True if somebody has the file open for writing.
    pub fn has_writer(&self, ino: InodeId) -> bool {
        self.file(ino).is_some_and(|file| file.writers.load(Ordering::Relaxed) > 0)
    }

    /// True if somebody may have stored to the file through a mapping.
    pub fn may_be_mapped(&self, ino: InodeId) -> bool {
        self.file(ino).is_some_and(|file| file.mappers.load(Ordering::Relaxed) > 0)
    }

    /// True if nobody but the opener has the file open, or opens it.
    pub fn is_alone(&self, ino: InodeId) -> bool {
        self.table.lock().files.get(&ino).is_none_or(|counted| counted.count <= 1)
    }

    /// True if others than this handle may fill pages of the file: it is open elsewhere here, and not past the pages.
    pub fn is_watched(&self, ino: InodeId, handle: Option<&FileHandle>) -> bool {
        let table = self.table.lock();
        let Some(counted) = table.files.get(&ino) else { return false };
        let own = u32::from(handle.is_some_and(|handle| !handle.direct));
        counted.count > counted.file.direct.load(Ordering::Relaxed) + own
    }

    /// Takes note of the attributes of a file, if it is open. True if it is and was changed since those that
    /// were known.
    pub fn learn(&self, attributes: &Attributes) -> bool {
        self.file(attributes.ino).is_some_and(|file| file.learn(attributes))
    }

    /// These handles are broken.
    pub fn break_handles(&self, lost: &std::collections::BTreeSet<u64>) {
        let table = self.table.lock();
        for number in lost {
            if let Some(Handle::File(handle)) = table.handles.get(number) {
                handle.is_lost();
            }
        }
    }

    /// The handles of all files that `is_lost` says yes to are broken.
    pub fn break_files(&self, is_lost: impl Fn(InodeId) -> bool) {
        for handle in self.table.lock().handles.values() {
            if let Handle::File(handle) = handle
                && is_lost(handle.file.ino)
            {
                handle.is_lost();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_closed_when_its_last_handle_is() {
        let handles = Handles::default();
        let file = handles.open(InodeId(5));
        let again = handles.open(InodeId(5));
        assert!(Arc::ptr_eq(&file, &again));
        let mut closed = 0;
        handles.close(InodeId(5), || closed += 1);
        assert_eq!(closed, 0);
        assert!(handles.file(InodeId(5)).is_some());
        handles.close(InodeId(5), || closed += 1);
        assert_eq!(closed, 1);
        assert!(handles.file(InodeId(5)).is_none());
    }

    #[test]
    fn what_handles_may_do_is_counted_while_they_are_open() {
        let handles = Handles::default();
        let ino = InodeId(5);
        let add = |flags: i32| handles.add_file(handles.open(ino), flags as u32, false, ErrorMark::default());
        let opening = handles.open(ino);
        assert!(!handles.has_handle(ino) && handles.file(ino).is_some());
        handles.close(opening.ino, || {});
        let reader = add(libc::O_RDONLY | libc::O_APPEND);
        assert!(handles.has_handle(ino));
        assert!(!handles.has_writer(ino) && handles.is_alone(ino));
        let (writer, both) = (add(libc::O_WRONLY | libc::O_APPEND), add(libc::O_RDWR));
        assert!(handles.has_writer(ino) && handles.may_be_mapped(ino) && !handles.is_alone(ino));
        assert!(handles.file(ino).is_some_and(|file| file.has_appender()));
        handles.remove(both);
        assert!(handles.has_writer(ino) && !handles.may_be_mapped(ino));
        handles.remove(writer);
        assert!(!handles.has_writer(ino));
        assert!(handles.file(ino).is_some_and(|file| !file.has_appender()));
        handles.remove(reader);
        assert!(!handles.has_handle(ino));
    }

    #[test]
    fn a_file_is_watched_by_who_may_fill_its_pages() {
        let handles = Handles::default();
        let ino = InodeId(5);
        let add = |direct| handles.add_file(handles.open(ino), 1, direct, ErrorMark::default());
        let file = |number| match handles.find(number) {
            Some(Handle::File(file)) => file,
            _ => panic!("not there"),
        };
        let first = add(true);
        add(true);
        assert!(!handles.is_watched(ino, Some(&file(first))));
        let reader = add(false);
        assert!(handles.is_watched(ino, Some(&file(first))));
        assert!(!handles.is_watched(ino, Some(&file(reader))) && handles.is_watched(ino, None));
    }

    #[test]
    fn a_successor_has_what_was_open_and_numbers_of_its_own() {
        let arena = Arena::create(crate::arena::ArenaConfig::default()).unwrap();
        let adopt = || Arena::adopt(arena.fd().try_clone_to_owned().unwrap()).unwrap();
        let before = Handles::recorded_in(Arc::clone(&arena));
        let (a, b) = (InodeId(5), InodeId(6));
        let add = |handles: &Handles, ino, flags: i32| {
            handles.add_file(handles.open(ino), flags as u32, false, ErrorMark::default())
        };
        let flags = libc::O_RDWR | libc::O_APPEND | libc::O_NOATIME;
        let (first, locked) = (add(&before, a, flags), add(&before, a, libc::O_RDONLY));
        let closed = add(&before, b, libc::O_WRONLY);
        let Some(Handle::File(handle)) = before.find(locked) else { panic!() };
        handle.locks();
        drop(before.remove(closed));

        let after = |locks_are_lost| {
            let adopted = adopt();
            let handles = Handles::recorded_in(Arc::clone(&adopted.arena));
            handles.succeed(1, adopted.handles, locks_are_lost);
            handles
        };
        let handles = after(false);
        let file = |handles: &Handles, number| match handles.find(number) {
            Some(Handle::File(file)) => file,
            _ => panic!("not there"),
        };
        assert_eq!(file(&handles, first).flags, flags as u32);
        assert!(handles.has_writer(a) && handles.may_be_mapped(a) && handles.find(closed).is_none());
        assert_eq!(handles.files(), [a]);
        assert!(!file(&handles, locked).is_broken());
        assert_eq!(add(&handles, b, libc::O_RDONLY), NUMBERS_PER_PROCESS + 1);
        // They are the successor's to close.
        handles.remove(first);
        handles.close(a, || panic!("the other one is open"));
        let mut closed = 0;
        handles.remove(locked);
        handles.close(a, || closed += 1);
        assert_eq!((closed, handles.has_handle(a)), (1, false));
        std::mem::forget((before, handle));
    }

    #[tokio::test]
    async fn who_asks_again_for_a_handle_gets_one_instead_of_it() {
        let arena = Arena::create(crate::arena::ArenaConfig::default()).unwrap();
        let before = Handles::recorded_in(Arc::clone(&arena));
        let ino = InodeId(5);
        let add = async |handles: &Handles, request| {
            let opening = async { handles.add_file(handles.open(ino), 0, false, ErrorMark::default()) };
            origin::serving(request, opening).await
        };
        let (answered, asked) = (add(&before, 7).await, add(&before, 8).await);
        let adopted = Arena::adopt(arena.fd().try_clone_to_owned().unwrap()).unwrap();
        let handles = Handles::recorded_in(Arc::clone(&adopted.arena));
        handles.succeed(1, adopted.handles, true);
        let again = add(&handles, 8).await;
        assert!(handles.find(asked).is_none() && handles.find(answered).is_some());
        let mut closed = 0;
        for number in [answered, again] {
            handles.remove(number);
            handles.close(ino, || closed += 1);
        }
        assert_eq!((closed, handles.files().len()), (1, 0));
        std::mem::forget(before);
    }

    #[test]
    fn only_handles_of_lost_files_break() {
        let handles = Handles::default();
        let lost = handles.add_file(handles.open(InodeId(5)), 0, false, ErrorMark::default());
        let kept = handles.add_file(handles.open(InodeId(6)), 0, false, ErrorMark::default());
        handles.break_files(|ino| ino == InodeId(5));
        let broken = |handle| match handles.find(handle) {
            Some(Handle::File(handle)) => handle.is_broken(),
            _ => panic!("not there"),
        };
        assert!(broken(lost) && !broken(kept));
        handles.remove(lost);
        assert!(handles.find(lost).is_none());
    }
}
