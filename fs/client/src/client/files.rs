//! Open files: their content.

use std::sync::Arc;

use atoll_core::attributes::{AttributeChanges, Attributes, FileKind, KillPriv};
use atoll_core::commands::{AllocateMode, Op, Outcome};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SegmentIndex};
use atoll_core::seek::{Seek, Sought};
use atoll_proto::metadata::{Answer, Query};
use bytes::Bytes;

use super::atimes::note_read;
use super::handles::{FileHandle, Handle, OpenFile};
use super::identity::{CAP_FSETID, Identity, killed_by_content};
use super::{Append, Client, check_name, inode_of, unexpected};
use crate::data::Extents;
use crate::metadata::{ClientError, Metadata};
use crate::vfs::{Caller, Entry, Errno, Opened, Result, SeekKind, WriteFlags};

/// Segments whose places come along with an open.
const OPEN_SEGMENTS: u32 = 4;
/// Attempts to make or open a file that somebody else makes and removes.
const CREATE_ATTEMPTS_MAX: u32 = 8;
/// Attempts to make a file without a name.
const UNNAMED_ATTEMPTS_MAX: u32 = 4;

/// One WRITE.
pub struct WriteRequest {
    pub offset: u64,
    pub data: Bytes,
    pub flags: WriteFlags,
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

    /// `kill_priv`: what the file loses if this truncates it.
    pub(super) async fn open_file(&self, ino: InodeId, flags: u32, kill_priv: KillPriv) -> Result<Opened> {
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
            let changes = AttributeChanges { size: Some(0), kill_priv, ..AttributeChanges::default() };
            self.resize(ino, 0, changes).await?;
        }
        Ok(opening.finish(flags, keep_cache))
    }

    /// Makes and opens a file. The service is told in the background that it is open: until then only somebody
    /// who learnt of the file from its maker could remove it, and the maker hasn't even been answered. `None`: the name
    /// is there by now, and what has it is for the kernel to open, when it has looked again.
    pub(super) async fn create_file(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        mode: u32,
        flags: u32,
    ) -> Result<Option<(Entry, Opened)>> {
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
            umask: caller.umask,
        };
        let mut attempts = 0;
        let attributes = loop {
            match self.metadata.mutate(op.clone()).await {
                Ok(outcome) => break inode_of(outcome)?,
                Err(ClientError::Fs(FsError::Exists)) if flags & libc::O_EXCL as u32 == 0 => {
                    match self.open_existing(caller, parent, name.clone(), flags).await {
                        // Somebody else has removed it by now.
                        Err(Errno(libc::ENOENT | libc::ESTALE)) if attempts < CREATE_ATTEMPTS_MAX => {
                            attempts += 1
                        }
                        opened => return opened,
                    }
                }
                Err(error) => return Err(error.into()),
            }
        };
        let opening = Opening::new(self, attributes.ino);
        self.metadata.opened(attributes.ino);
        self.handles.learn(&attributes);
        self.data.install_map(attributes.ino, &Extents::of_new_file(attributes.clone()));
        self.pages.opened(&attributes, 0);
        let entry = self.entry(attributes).await;
        Ok(Some((entry, opening.finish(flags, false))))
    }

    /// Somebody else has made the file since the kernel looked.
    async fn open_existing(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        flags: u32,
    ) -> Result<Option<(Entry, Opened)>> {
        let found = self.look_up(parent, name).await?;
        match found.attributes.kind() {
            FileKind::File => {}
            FileKind::Directory => return Err(FsError::IsDirectory.into()),
            _ => return Ok(None),
        }
        let kill_priv = match flags & libc::O_TRUNC as u32 {
            0 => KillPriv::NONE,
            _ => killed_by_content(caller, Self::clears_setid(caller), Some(&found.attributes)),
        };
        let opened = self.open_file(found.attributes.ino, flags, kill_priv).await?;
        let attributes = self.known(found.attributes.ino).await?;
        Ok(Some((self.entry(attributes).await, opened)))
    }

    pub(super) async fn read_file(
        &self,
        ino: InodeId,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<Bytes>> {
        let handle = self.handle(handle)?;
        let known = self.known(ino).await?;
        let read = self.data.read(ino, offset, size, known.size).await?;
        if handle.is_none_or(|handle| handle.flags & libc::O_NOATIME as u32 == 0) {
            note_read(&self.atimes, &self.metadata, &known);
        }
        Ok(read)
    }

    pub(super) async fn write_file(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: u64,
        write: WriteRequest,
    ) -> Result<u32> {
        self.handle(handle)?;
        let WriteRequest { offset, data, flags } = write;
        let guesses = atoll_mutants::makes("append-guessed");
        let appends = flags.append && self.options.append == Append::Shared && !guesses;
        if appends && !flags.from_cache && !data.is_empty() {
            let length = data.len() as u32;
            let kill_priv = self.killed(caller, ino, flags.kill_priv).await?;
            let (start, _) = self.data.append(ino, data, kill_priv).await?;
            self.pages.written(ino, start + u64::from(length));
            if start != offset {
                self.drop_pages_later(ino, offset.min(start));
            }
            return Ok(length);
        }
        let known = self.known(ino).await?;
        let offset = if guesses && flags.append { known.size } else { offset };
        self.pages.written(ino, offset.saturating_add(data.len() as u64));
        // Whose store it was that made a page dirty isn't known by now; as elsewhere, it takes nothing away.
        let kill_priv = match flags.from_cache && !flags.kill_priv {
            true => KillPriv::NONE,
            false => killed_by_content(caller, flags.kill_priv, Some(&known)),
        };
        let written = self.data.write(ino, offset, data, &known, kill_priv).await?;
        // Pages of a mapping are made durable by msync.
        if flags.sync && !flags.from_cache {
            self.data.flush(ino).await?;
        }
        Ok(written)
    }

    /// The kernel has put bytes into its pages that went elsewhere (a file that became `O_APPEND` after it was
    /// opened). It holds these pages until it is answered, so this must not be waited for.
    fn drop_pages_later(&self, ino: InodeId, offset: u64) {
        if let Some(notifier) = self.notifier.read().clone() {
            tokio::spawn(async move { notifier.invalidate(ino, offset, u64::MAX).await });
        }
    }

    /// Makes and opens a file without a name.
    pub(super) async fn create_unnamed(
        &self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let Caller { uid, gid, umask, .. } = *caller;
        let linkable = flags & libc::O_EXCL as u32 == 0;
        for _ in 0..UNNAMED_ATTEMPTS_MAX {
            let op = Op::CreateUnnamed { parent, mode: mode & 0o7777, uid, gid, umask, linkable };
            let attributes = inode_of(self.metadata.mutate(op).await?)?;
            let opening = Opening::new(self, attributes.ino);
            match self.metadata.ask(Query::Open { ino: attributes.ino, segments: 0 }).await {
                Ok(_) => {}
                // A new leader took it for one that nobody holds, before it could be told.
                Err(ClientError::Fs(FsError::Stale)) => continue,
                Err(error) => return Err(error.into()),
            }
            self.handles.learn(&attributes);
            self.data.install_map(attributes.ino, &Extents::of_new_file(attributes.clone()));
            self.pages.opened(&attributes, 0);
            let entry = self.entry(attributes).await;
            return Ok((entry, opening.finish(flags, false)));
        }
        Err(FsError::Io.into())
    }

    /// Brings what is known of a file, here and in the kernel, up to what the service says now.
    pub(super) async fn revalidate(&self, ino: InodeId) -> Result<()> {
        let query = Query::Extents { ino, first: SegmentIndex(0), segments: OPEN_SEGMENTS };
        let answer = self.metadata.ask(query).await?;
        let extents = Extents::from_answer(SegmentIndex(0), answer).ok_or_else(unexpected)?;
        let attributes = extents.attributes.clone();
        self.handles.learn(&attributes);
        self.data.install_map(ino, &extents);
        let mut current = attributes.clone();
        self.data.overlay(ino, &mut current);
        if !self.pages.opened(&attributes, current.size) {
            let notifier = self.notifier.read().clone();
            if let Some(notifier) = notifier {
                notifier.invalidate(ino, 0, u64::MAX).await;
            }
        }
        Ok(())
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
        if atoll_mutants::makes("fsync-returns-early") {
            return Ok(());
        }
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

    /// Whether what the caller does to a file's content clears its set-id bits.
    fn clears_setid(caller: &Caller) -> bool {
        !Identity::of(caller).is_some_and(|who| who.has(CAP_FSETID))
    }

    /// What a file loses by what the caller does to its content. The file is asked for only if that matters.
    pub(super) async fn killed(
        &self,
        caller: &Caller,
        ino: InodeId,
        loses_setid: bool,
    ) -> std::result::Result<KillPriv, ClientError> {
        let known = if loses_setid { Some(self.known(ino).await?) } else { None };
        Ok(killed_by_content(caller, loses_setid, known.as_ref()))
    }

    pub(super) async fn allocate(
        &self,
        caller: &Caller,
        (ino, handle): (InodeId, u64),
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
        let end = offset.checked_add(length).ok_or(FsError::FileTooLarge)?;
        let kill_priv = self.killed(caller, ino, Self::clears_setid(caller)).await?;
        self.settle(ino).await?;
        let mut at = offset;
        while at < end {
            let op = Op::Allocate { ino, offset: at, length: end - at, mode, keep_size, kill_priv };
            match self.metadata.mutate(op).await? {
                Outcome::Allocated(until, attributes) if until > at => {
                    at = until;
                    self.data.invalidate(ino);
                    self.pages.written(ino, attributes.size);
                }
                _ => return Err(unexpected().into()),
            }
        }
        Ok(())
    }

    /// The next data or hole.
    pub(super) async fn seek(&self, ino: InodeId, offset: u64, kind: SeekKind) -> Result<u64> {
        self.settle(ino).await?;
        let kind = match kind {
            SeekKind::Data => Seek::Data,
            SeekKind::Hole => Seek::Hole,
        };
        let mut at = offset;
        loop {
            match self.metadata.ask(Query::Seek { ino, offset: at, kind }).await? {
                Answer::Sought(Sought::Found(found)) => return Ok(found),
                Answer::Sought(Sought::Nothing) => return Err(Errno(libc::ENXIO)),
                Answer::Sought(Sought::Continue(next)) if next > at => at = next,
                _ => return Err(unexpected().into()),
            }
        }
    }

    /// Copies within the map: nothing is read, and both files refer to the same bytes.
    pub(super) async fn copy_range(
        &self,
        caller: &Caller,
        (from, from_handle, offset): (InodeId, u64, u64),
        (to, to_handle, to_offset): (InodeId, u64, u64),
        length: u64,
    ) -> Result<u64> {
        self.handle(from_handle)?;
        self.handle(to_handle)?;
        self.settle(from).await?;
        self.settle(to).await?;
        let kill_priv = self.killed(caller, to, Self::clears_setid(caller)).await?;
        let (mut copied, mut asked_for_room) = (0, false);
        while copied < length {
            let op = Op::CopyRange {
                from,
                offset: offset.saturating_add(copied),
                to,
                to_offset: to_offset.saturating_add(copied),
                length: length - copied,
                kill_priv,
            };
            match self.metadata.mutate(op).await {
                Ok(Outcome::Copied(0, _)) => break,
                Ok(Outcome::Copied(bytes, attributes)) => {
                    copied += bytes;
                    self.data.invalidate(to);
                    self.handles.learn(&attributes);
                    self.pages.written(to, attributes.size);
                }
                Ok(_) => return Err(unexpected().into()),
                Err(_) if copied > 0 => break,
                Err(ClientError::Fs(FsError::NoSpace)) if !asked_for_room => {
                    // What this mount has set aside for later writes counts as used.
                    self.data.flush_all().await?;
                    self.data.return_reservation().await;
                    asked_for_room = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(copied)
    }
}
