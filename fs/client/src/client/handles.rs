//! Open files and directories. A handle is a small number; what it stands for can be found again by asking the
//! service, so a successor process needs none of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
}

impl OpenFile {
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
        let counted = table.files.entry(ino).or_insert_with(|| Counted {
            count: 0,
            file: Arc::new(OpenFile { ino, attributes: Mutex::default() }),
        });
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
    pub fn add_file(&self, file: Arc<OpenFile>, flags: u32, errors: ErrorMark) -> u64 {
        let handle = FileHandle { file, flags, errors: Mutex::new(errors), broken: AtomicBool::new(false) };
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
        self.0.lock().handles.remove(&handle)
    }

    /// The file, if it is open.
    pub fn file(&self, ino: InodeId) -> Option<Arc<OpenFile>> {
        self.0.lock().files.get(&ino).map(|counted| Arc::clone(&counted.file))
    }

    /// True if somebody has the file open for writing.
    pub fn has_writer(&self, ino: InodeId) -> bool {
        let is_writer = |handle: &Handle| match handle {
            Handle::File(handle) => handle.file.ino == ino && handle.can_write(),
            Handle::Directory(_) => false,
        };
        self.0.lock().handles.values().any(is_writer)
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
    fn only_handles_of_lost_files_break() {
        let handles = Handles::default();
        let lost = handles.add_file(handles.open(InodeId(5)), 0, ErrorMark::default());
        let kept = handles.add_file(handles.open(InodeId(6)), 0, ErrorMark::default());
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
