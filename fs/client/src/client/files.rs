//! Open files: their content.

use std::sync::Arc;

use atoll_core::attributes::{AttributeChanges, Attributes, FileKind};
use atoll_core::commands::{AllocateMode, Op};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SegmentIndex};
use atoll_core::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use atoll_proto::metadata::{Answer, PieceData, Query};
use bytes::Bytes;

use super::handles::{FileHandle, Handle, OpenFile};
use super::{Append, Client, check_name, inode_of, unexpected};
use crate::data::Extents;
use crate::metadata::{ClientError, Metadata};
use crate::vfs::{Caller, Entry, Errno, Opened, Result, SeekKind};

/// Segments whose places come along with an open.
const OPEN_SEGMENTS: u32 = 4;
/// Segments that one question of `lseek` covers.
const SEEK_SEGMENTS: u32 = 4096;

/// One WRITE.
pub struct WriteRequest {
    pub offset: u64,
    pub data: Bytes,
    /// Clear the set-id bits.
    pub kill_priv: bool,
    /// The kernel writes pages of a mapping.
    pub from_cache: bool,
}

/// A file that is being opened; counts as open until this is dropped, or for good once a handle is made of it.
struct Opening<'a, M: Metadata> {
    client: &'a Client<M>,
    file: Option<Arc<OpenFile>>,
}

impl<'a, M: Metadata> Opening<'a, M> {
    fn new(client: &'a Client<M>, ino: InodeId) -> Self {
        Opening { client, file: Some(client.handles.open(ino)) }
    }

    fn finish(mut self, flags: u32, keep_cache: bool) -> Opened {
        let Some(file) = self.file.take() else { return Opened::default() };
        let client = self.client;
        let appends = flags & libc::O_APPEND as u32 != 0 && flags & libc::O_ACCMODE as u32 != 0;
        let errors = client.data.error_mark(file.ino);
        Opened {
            handle: client.handles.add_file(file, flags, errors),
            keep_cache,
            // The kernel would put appended bytes where it thinks that the file ends.
            direct_io: appends && client.options.append == Append::Shared,
            ..Opened::default()
        }
    }
}

impl<M: Metadata> Drop for Opening<'_, M> {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.client.close(file.ino);
        }
    }
}

impl<M: Metadata> Client<M> {
    /// One handle less has the file open.
    fn close(&self, ino: InodeId) {
        // Under the table's lock: who opens the file right now tells the service so after this, not before.
        self.handles.close(ino, || self.metadata.closed(ino));
    }

    /// The handle, if it can be used. One that isn't known is of a predecessor of this process: nothing that
    /// matters is lost with it.
    fn handle(&self, handle: u64) -> Result<Option<Arc<FileHandle>>> {
        match self.handles.find(handle) {
            Some(Handle::File(handle)) if handle.is_broken() => Err(FsError::Io.into()),
            Some(Handle::File(handle)) => Ok(Some(handle)),
            Some(Handle::Directory(_)) => Err(Errno(libc::EBADF)),
            None => Ok(None),
        }
    }

    pub(super) fn check_not_broken(&self, handle: u64) -> Result<()> {
        self.handle(handle).map(|_| ())
    }

    /// Attributes of a file as they are known, asking only if nothing is.
    async fn known(&self, ino: InodeId) -> std::result::Result<Attributes, ClientError> {
        if let Some(known) = self.handles.file(ino).and_then(|file| file.attributes()) {
            return Ok(known);
        }
        let attributes = self.inode(ino).await?;
        self.handles.learn(&attributes);
        Ok(attributes)
    }

    pub(super) async fn open_file(&self, ino: InodeId, flags: u32) -> Result<Opened> {
        let opening = Opening::new(self, ino);
        let answer = self.metadata.ask(Query::Open { ino, segments: OPEN_SEGMENTS }).await?;
        let extents = Extents::from_answer(SegmentIndex(0), answer).ok_or_else(unexpected)?;
        let attributes = extents.attributes.clone();
        self.handles.learn(&attributes);
        self.data.install_map(ino, &extents);
        let mut current = attributes.clone();
        self.data.overlay(ino, &mut current);
        let keep_cache = self.pages.opened(&attributes, current.size);
        if flags & libc::O_TRUNC as u32 != 0 && attributes.kind() == FileKind::File {
            let changes = AttributeChanges { size: Some(0), ..AttributeChanges::default() };
            self.resize(ino, 0, changes).await?;
        }
        Ok(opening.finish(flags, keep_cache))
    }

    /// Makes and opens a file. The service is told in the background that it is open: until then only somebody
    /// who learnt of the file from its maker could remove it, and the maker hasn't even been answered.
    pub(super) async fn create_file(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        check_name(&name)?;
        let op = Op::Create {
            parent,
            name: name.clone(),
            ino: None,
            mode: FileKind::File.mode_bits() | (mode & 0o7777),
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
            target: Bytes::new(),
        };
        let attributes = match self.metadata.mutate(op).await {
            Ok(outcome) => inode_of(outcome)?,
            Err(ClientError::Fs(FsError::Exists)) if flags & libc::O_EXCL as u32 == 0 => {
                return self.open_existing(parent, name, flags).await;
            }
            Err(error) => return Err(error.into()),
        };
        let opening = Opening::new(self, attributes.ino);
        self.metadata.opened(attributes.ino);
        self.handles.learn(&attributes);
        self.data.install_map(attributes.ino, &Extents::of_new_file(attributes.clone()));
        self.pages.opened(&attributes, 0);
        let entry = self.entry(attributes).await;
        Ok((entry, opening.finish(flags, false)))
    }

    /// Somebody else has made the file since the kernel looked.
    async fn open_existing(&self, parent: InodeId, name: Bytes, flags: u32) -> Result<(Entry, Opened)> {
        let found = self.look_up(parent, name).await?;
        if found.attributes.kind() != FileKind::File {
            // The kernel looks again and does what is right for a link or a directory.
            return Err(FsError::Stale.into());
        }
        let opened = self.open_file(found.attributes.ino, flags).await?;
        let attributes = self.known(found.attributes.ino).await?;
        Ok((self.entry(attributes).await, opened))
    }

    pub(super) async fn read_file(
        &self,
        ino: InodeId,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<Bytes>> {
        self.handle(handle)?;
        let known = self.known(ino).await?;
        Ok(self.data.read(ino, offset, size, known.size).await?)
    }

    pub(super) async fn write_file(&self, ino: InodeId, handle: u64, write: WriteRequest) -> Result<u32> {
        let handle = self.handle(handle)?;
        let flags = handle.as_ref().map_or(0, |handle| handle.flags);
        let WriteRequest { offset, data, kill_priv, from_cache } = write;
        let appends = flags & libc::O_APPEND as u32 != 0 && self.options.append == Append::Shared;
        if appends && !from_cache && !data.is_empty() {
            let length = data.len() as u32;
            let (start, _) = self.data.append(ino, data, kill_priv).await?;
            self.pages.written(ino, start + u64::from(length));
            return Ok(length);
        }
        let known = self.known(ino).await?;
        self.pages.written(ino, offset.saturating_add(data.len() as u64));
        let written = self.data.write(ino, offset, data, &known, kill_priv).await?;
        // O_SYNC has the bit of O_DSYNC. Pages of a mapping are made durable by msync.
        if flags & libc::O_DSYNC as u32 != 0 && !from_cache {
            self.data.flush(ino).await?;
        }
        Ok(written)
    }

    /// A descriptor is closed.
    pub(super) async fn flush_file(&self, ino: InodeId, handle: u64) -> Result<()> {
        let Some(handle) = self.handle(handle)? else {
            self.settle(ino).await?;
            return Ok(());
        };
        if !handle.can_write() {
            return Ok(());
        }
        let flushed = self.settle(ino).await;
        self.told_error(&handle)?;
        Ok(flushed?)
    }

    /// An error of write-behind that this handle wasn't told of.
    fn told_error(&self, handle: &FileHandle) -> std::result::Result<(), ClientError> {
        let mut mark = handle.errors.lock();
        self.data.take_error(handle.file.ino, &mut mark)
    }

    pub(super) async fn sync_file(&self, ino: InodeId, handle: u64) -> Result<()> {
        let handle = self.handle(handle)?;
        let flushed = self.data.flush(ino).await;
        if let Some(handle) = handle {
            self.told_error(&handle)?;
        }
        Ok(flushed?)
    }

    pub(super) fn release_file(&self, handle: u64) {
        if let Some(Handle::File(handle)) = self.handles.remove(handle) {
            self.close(handle.file.ino);
        }
    }

    pub(super) async fn allocate(
        &self,
        ino: InodeId,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
        const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE as u32;
        const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;
        self.handle(handle)?;
        let keep_size = mode & KEEP_SIZE != 0;
        let mode = match mode & !KEEP_SIZE {
            0 => AllocateMode::Allocate,
            PUNCH_HOLE if keep_size => AllocateMode::Punch,
            ZERO_RANGE => AllocateMode::Zero,
            _ => return Err(FsError::Unsupported.into()),
        };
        self.settle(ino).await?;
        let op = Op::Allocate { ino, offset, length, mode, keep_size };
        let attributes = inode_of(self.metadata.mutate(op).await?)?;
        self.data.invalidate(ino);
        self.pages.written(ino, attributes.size);
        Ok(())
    }

    /// The next data or hole. What is allocated and never written counts as a hole, as on other filesystems.
    pub(super) async fn seek(&self, ino: InodeId, offset: u64, kind: SeekKind) -> Result<u64> {
        self.settle(ino).await?;
        let mut first = SegmentIndex(offset / SEGMENT_BYTES);
        let mut finder = Finder::new(offset, kind);
        loop {
            let query = Query::Extents { ino, first, segments: SEEK_SEGMENTS };
            let Answer::Extents { attributes, segments, covered, .. } = self.metadata.ask(query).await?
            else {
                return Err(unexpected().into());
            };
            if offset >= attributes.size {
                return Err(Errno(libc::ENXIO));
            }
            for (segment, pieces) in segments {
                let start = segment.0 * SEGMENT_BYTES;
                for piece in pieces {
                    let is_data = !matches!(piece.data, PieceData::Unwritten);
                    let piece = start + u64::from(piece.start)..start + u64::from(piece.start + piece.length);
                    if is_data && let Some(found) = finder.data(piece) {
                        return found_before(found, attributes.size, kind);
                    }
                }
            }
            first = SegmentIndex(first.0.saturating_add(u64::from(covered.max(1))));
            let covered_to = first.0.saturating_mul(SEGMENT_BYTES);
            if let Some(found) = finder.nothing_until(covered_to.min(attributes.size)) {
                return found_before(found, attributes.size, kind);
            }
            if covered_to >= attributes.size {
                return found_before(attributes.size, attributes.size, kind);
            }
        }
    }
}

/// Data must be before the end of the file; a hole is at the end at the latest.
fn found_before(found: u64, size: u64, kind: SeekKind) -> Result<u64> {
    match kind {
        SeekKind::Data if found >= size => Err(Errno(libc::ENXIO)),
        SeekKind::Data => Ok(found),
        SeekKind::Hole => Ok(found.min(size)),
    }
}

/// Looks for the first data or hole at or after an offset, in runs of data that come in order. Whole blocks are
/// data or hole.
struct Finder {
    at: u64,
    kind: SeekKind,
}

impl Finder {
    fn new(offset: u64, kind: SeekKind) -> Self {
        Finder { at: offset, kind }
    }

    fn data(&mut self, run: std::ops::Range<u64>) -> Option<u64> {
        let start = run.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = run.end.next_multiple_of(BLOCK_BYTES);
        match self.kind {
            SeekKind::Data => (end > self.at).then(|| start.max(self.at)),
            SeekKind::Hole if start > self.at => Some(self.at),
            SeekKind::Hole => {
                self.at = self.at.max(end);
                None
            }
        }
    }

    /// No data comes before `end` any more.
    fn nothing_until(&mut self, end: u64) -> Option<u64> {
        (self.kind == SeekKind::Hole && self.at < end).then_some(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(kind: SeekKind, offset: u64, runs: &[(u64, u64)], size: u64) -> Result<u64> {
        let mut finder = Finder::new(offset, kind);
        for (start, end) in runs {
            if let Some(found) = finder.data(*start..*end) {
                return found_before(found, size, kind);
            }
        }
        let found = finder.nothing_until(size).unwrap_or(size);
        found_before(found, size, kind)
    }

    #[test]
    fn finds_data_and_holes_in_whole_blocks() {
        let runs = [(0, 100), (9000, 9100), (12288, 20480)];
        let data = |offset| find(SeekKind::Data, offset, &runs, 30_000);
        let hole = |offset| find(SeekKind::Hole, offset, &runs, 30_000);
        assert_eq!(data(0), Ok(0));
        assert_eq!(data(50), Ok(50));
        assert_eq!(data(4096), Ok(8192));
        assert_eq!(data(12287), Ok(12287), "the block of 9000 ends where the next run begins");
        assert_eq!(data(20480), Err(Errno(libc::ENXIO)));
        assert_eq!(hole(0), Ok(4096));
        assert_eq!(hole(5000), Ok(5000));
        assert_eq!(hole(8192), Ok(20480), "blocks that touch are one run");
        assert_eq!(find(SeekKind::Hole, 0, &[(0, 100)], 100), Ok(100));
        assert_eq!(find(SeekKind::Hole, 0, &[], 100), Ok(0));
        assert_eq!(find(SeekKind::Data, 0, &[], 100), Err(Errno(libc::ENXIO)));
    }
}
