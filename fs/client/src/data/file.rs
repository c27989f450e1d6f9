//! What the data path knows of one file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use atoll_core::attributes::Attributes;
use atoll_core::ids::InodeId;
use atoll_core::limits::BLOCK_BYTES;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::metadata::ClientError;
use crate::read::map::{Extents, FileMap, MapMemory};
use crate::read::readahead::Readahead;
use crate::write::buffer::DirtyFile;

/// How many errors of a file a handle has seen. Taken when it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorMark(u64);

/// The errors of data that was accepted and could not be kept. As the kernel's `errseq_t`: every handle is
/// told of an error once.
#[derive(Default)]
pub struct Errors {
    count: u64,
    last: Option<ClientError>,
}

impl Errors {
    /// Notes an error.
    pub fn note(&mut self, error: ClientError) {
        self.count += 1;
        self.last = Some(error);
    }

    /// Where a handle stands that has seen everything up to now.
    #[must_use]
    pub fn mark(&self) -> ErrorMark {
        ErrorMark(self.count)
    }

    /// The last error, if there was one since `mark`, which is moved on.
    pub fn since(&self, mark: &mut ErrorMark) -> Result<(), ClientError> {
        if mark.0 >= self.count {
            return Ok(());
        }
        mark.0 = self.count;
        self.last.clone().map_or(Ok(()), Err)
    }

    /// True if there was never one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What is read and changed together, for moments only. Dirty ranges go at the same moment at which the map
/// gets their places, so a reader that looks at both under this lock misses nothing.
#[derive(Default)]
pub struct Inner {
    /// What isn't committed.
    pub dirty: DirtyFile,
    /// Where what is committed lies.
    pub map: FileMap,
    /// The newest attributes that are known from commits and answers.
    pub attributes: Option<Attributes>,
    /// What is read ahead.
    pub readahead: Readahead,
    /// Errors that handles have to be told of.
    pub errors: Errors,
    /// The kernel has forgotten the inode: this goes as soon as it is clean.
    pub forgotten: bool,
}

impl Inner {
    /// Takes note of attributes if they are newer than what is known. A map that is older than they are goes: the size
    /// that counts and the places of the bytes are always as of one moment, or bytes that are new to the map would read
    /// as a hole.
    pub fn learn(&mut self, attributes: &Attributes) {
        if self.attributes.as_ref().is_none_or(|known| known.change < attributes.change) {
            self.attributes = Some(attributes.clone());
            self.map.outdate(attributes.change);
        }
    }

    /// Takes a part of the map in, unless a newer change than it knows of is known of here; says whether. `afresh`
    /// as in [`FileMap::install`].
    pub fn install(&mut self, extents: &Extents, afresh: bool) -> bool {
        self.learn(&extents.attributes);
        // Attributes are known of every commit; the map alone may know of fewer.
        let newest = self.attributes.as_ref().map_or(0, |attributes| attributes.change);
        newest <= extents.attributes.change && self.map.install(extents, afresh)
    }

    /// Bytes of quota that the commit of what is dirty will take. Exact for a file without holes; in one with holes,
    /// all that is dirty counts as new.
    #[must_use]
    pub fn uncommitted_growth(&self) -> u64 {
        let dirty = &self.dirty;
        let (size, allocated) =
            self.attributes.as_ref().map_or((0, 0), |known| (known.size, known.allocated));
        match allocated >= size.next_multiple_of(BLOCK_BYTES) {
            true => (size + dirty.bytes_from(size)).next_multiple_of(BLOCK_BYTES).saturating_sub(allocated),
            false => dirty.bytes().next_multiple_of(BLOCK_BYTES),
        }
    }

    /// The file's size with what is dirty.
    #[must_use]
    pub fn size(&self) -> u64 {
        let committed = self.attributes.as_ref().map_or(0, |attributes| attributes.size);
        committed.max(self.dirty.end())
    }
}

/// One file.
pub struct FileState {
    /// Which.
    pub ino: InodeId,
    /// Held for moments, never across a wait.
    pub inner: Mutex<Inner>,
    /// A batch holds this while its bytes are written to chunks …
    pub data_stage: tokio::sync::Mutex<()>,
    /// … and takes this before it lets go of that, for its sync and commit: batches of a file commit in order,
    /// while the bytes of the next one are on their way already.
    pub commit_stage: tokio::sync::Mutex<()>,
    /// Tasks that flush this file because there is much.
    pub flushers: AtomicU32,
    /// Fires when dirty bytes of this file became fewer.
    pub space: Notify,
    /// When it was last used: the data path's own count.
    pub last_use: AtomicU64,
}

impl FileState {
    /// Nothing is known. Its map counts for `memory`.
    #[must_use]
    pub fn new(ino: InodeId, memory: MapMemory) -> Arc<Self> {
        Arc::new(FileState {
            ino,
            inner: Mutex::new(Inner { map: FileMap::new(memory), ..Inner::default() }),
            data_stage: tokio::sync::Mutex::new(()),
            commit_stage: tokio::sync::Mutex::new(()),
            flushers: AtomicU32::new(0),
            space: Notify::new(),
            last_use: AtomicU64::new(0),
        })
    }
}
