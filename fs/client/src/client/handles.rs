//! Open files and directories. A handle is a small number; what it stands for can be found again by asking the
//! service, so a successor process needs none of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use atoll_core::attributes::Attributes;
use atoll_core::ids::InodeId;
use parking_lot::Mutex;

use super::directories::Listing;
use crate::data::ErrorMark;

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
}

impl FileHandle {
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
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
}

/// The handles of one mount.
#[derive(Default)]
pub struct Handles(Mutex<Table>);

impl Handles {
    /// The file is about to be opened. To be undone by [`close`](Self::close) or by removing the handle that is
    /// made of it.
    pub fn open(&self, ino: InodeId) -> Arc<OpenFile> {
        let mut table = self.0.lock();
        let counted =
            table.files.entry(ino).or_insert_with(|| Counted { count: 0, file: OpenFile::new(ino) });
        counted.count += 1;
        Arc::clone(&counted.file)
    }

    /// Undoes an [`open`](Self::open). `last` is called if that was the last one, before anybody can open the
    /// file anew.
    pub fn close(&self, ino: InodeId, last: impl FnOnce()) {
        let mut table = self.0.lock();
        let Some(counted) = table.files.get_mut(&ino) else { return };
        counted.count -= 1;
        if counted.count == 0 {
            table.files.remove(&ino);
            last();
        }
    }

    /// A handle of a file that was [`open`](Self::open)ed.
    pub fn add_file(&self, file: Arc<OpenFile>, flags: u32, direct: bool, errors: ErrorMark) -> u64 {
        file.count(flags, |counter| _ = counter.fetch_add(1, Ordering::Relaxed));
        file.direct.fetch_add(u32::from(direct), Ordering::Relaxed);
        file.handles.fetch_add(1, Ordering::Relaxed);
        let handle =
            FileHandle { file, flags, direct, errors: Mutex::new(errors), broken: AtomicBool::new(false) };
        self.add(Handle::File(Arc::new(handle)))
    }

    /// A handle of a directory.
    pub fn add_directory(&self, listing: Listing) -> u64 {
        self.add(Handle::Directory(Arc::new(tokio::sync::Mutex::new(listing))))
    }

    fn add(&self, handle: Handle) -> u64 {
        let mut table = self.0.lock();
        table.last += 1;
        let number = table.last;
        table.handles.insert(number, handle);
        number
    }

    /// What a handle stands for.
    pub fn find(&self, handle: u64) -> Option<Handle> {
        self.0.lock().handles.get(&handle).cloned()
    }

    /// The handle is closed.
    pub fn remove(&self, handle: u64) -> Option<Handle> {
        let removed = self.0.lock().handles.remove(&handle);
        if let Some(Handle::File(handle)) = &removed {
            handle.file.count(handle.flags, |counter| _ = counter.fetch_sub(1, Ordering::Relaxed));
            handle.file.direct.fetch_sub(u32::from(handle.direct), Ordering::Relaxed);
            handle.file.handles.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }

    /// The file, if it is open.
    pub fn file(&self, ino: InodeId) -> Option<Arc<OpenFile>> {
        self.0.lock().files.get(&ino).map(|counted| Arc::clone(&counted.file))
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
        self.0.lock().files.get(&ino).is_none_or(|counted| counted.count <= 1)
    }

    /// True if others than this handle may fill pages of the file: it is open elsewhere here, and not past the pages.
    pub fn is_watched(&self, ino: InodeId, handle: Option<&FileHandle>) -> bool {
        let table = self.0.lock();
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
        let table = self.0.lock();
        for number in lost {
            if let Some(Handle::File(handle)) = table.handles.get(number) {
                handle.broken.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The handles of all files that `is_lost` says yes to are broken.
    pub fn break_files(&self, is_lost: impl Fn(InodeId) -> bool) {
        for handle in self.0.lock().handles.values() {
            if let Handle::File(handle) = handle
                && is_lost(handle.file.ino)
            {
                handle.broken.store(true, Ordering::Relaxed);
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
