//! Open files: their content.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::attributes::{AttributeChanges, Attributes, FileKind, KillPriv};
use atoll_core::commands::{Allocated, Copied, FallocateMode, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SegmentIndex};
use atoll_core::seek::{Seek, Sought};
use atoll_proto::metadata::FileExtents;
use atoll_proto::queries;
use bytes::Bytes;
use tokio::time::Instant;

use super::atimes::note_read;
use super::handles::{FileHandle, Handle, OpenFile};
use super::identity::{CAP_FSETID, Identity, killed_by_content};
use super::pages::{Stale, Tell};
use super::{Append, CUT_POLL, Client, check_name};
use crate::data::Extents;
use crate::metadata::{ClientError, Made, Metadata, unexpected};
use crate::rights::Right;
use crate::vfs::{Caller, Entry, Errno, Opened, Result, SeekKind, WriteFlags};

/// Segments whose places come along with an open.
pub(super) const OPEN_SEGMENTS: u32 = 4;
/// Attempts to make or open a file that somebody else makes and removes.
const CREATE_ATTEMPTS_MAX: u32 = 8;
/// How long a WRITE waits at most for pages that are to be dropped before it is answered.
const UNLOCKED_WITHIN: Duration = Duration::from_millis(100);
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
    /// The handle goes past the kernel's pages.
    without_pages: bool,
}

impl<'a, M: Metadata> Opening<'a, M> {
    fn new(client: &'a Client<M>, ino: InodeId) -> Self {
        Opening { client, file: Some(client.handles.open(ino)), without_pages: false }
    }

    /// Of a file that was just made.
    fn of_new(client: &'a Client<M>, made: Made) -> (Self, Attributes) {
        let opening = Opening::new(client, made.attributes.ino);
        (opening, made.keep())
    }

    fn finish(mut self, flags: u32, keep_cache: bool) -> Opened {
        let Some(file) = self.file.take() else { return Opened::default() };
        let client = self.client;
        client.pages.bound(|ino| client.handles.file(ino).is_some());
        let appends = flags & libc::O_APPEND as u32 != 0 && flags & libc::O_ACCMODE as u32 != 0;
        let errors = client.data.error_mark(file.ino);
        // The kernel would put appended bytes where it thinks that the file ends. Who reads what is being appended to is
        // better off without pages, too: the last one would be dropped with each append, and a read stops where the
        // kernel thinks that the file ends.
        let direct_io =
            self.without_pages || client.options.append == Append::Shared && (appends || file.has_appender());
        let handle = client.handles.add_file(file, flags, direct_io, errors);
        let no_flush = flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
        Opened { handle, keep_cache, direct_io, no_flush, ..Opened::default() }
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
        match self.linked(ino) {
            None => self.handles.close(ino, || self.metadata.closed(ino)),
            Some(_) => self.handles.close(ino, || self.metadata.closed_for_now(ino)),
        }
        // Its last name may have gone meanwhile: then either it was closed before that, and who removed it has seen to this, or
        // that is known here by now.
        if self.linked(ino).is_none() {
            self.metadata.unlinked(ino);
        }
    }

    /// The attributes of a file that has a name, if they are known here and nobody else can change them.
    fn linked(&self, ino: InodeId) -> Option<Attributes> {
        match self.right(ino) {
            Right::None => None,
            Right::Exclusive(_) => self.data.attributes(ino).filter(|attributes| attributes.nlink > 0),
        }
    }

    /// The handle, if it can be used. One that isn't known is of a predecessor of this process: nothing that
    /// matters is lost with it.
    pub(super) fn handle(&self, handle: u64) -> Result<Option<Arc<FileHandle>>> {
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
    /// `thread`: the kernel's, if it has to have asked for the size before; without, it takes one up along with this.
    pub(super) async fn do_open(
        &self,
        ino: InodeId,
        thread: Option<u32>,
        flags: u32,
        kill_priv: KillPriv,
    ) -> Result<Opened> {
        let mut opening = Opening::new(self, ino);
        let attributes = match self.linked(ino) {
            Some(attributes) if self.metadata.open_again(ino) => attributes,
            _ => {
                let answer = self.metadata.ask(queries::Open { ino, segments: OPEN_SEGMENTS }).await?;
                let extents = Extents::new(SegmentIndex(0), answer);
                self.data.install_map(ino, &extents);
                extents.attributes
            }
        };
        self.handles.learn(&attributes);
        if flags & libc::O_TRUNC as u32 != 0 && attributes.kind() == FileKind::File {
            let changes = AttributeChanges { size: Some(0), kill_priv, ..AttributeChanges::default() };
            let attributes = self.resize(ino, 0, changes).await?;
            // The kernel drops all of its pages when it is answered, if it hasn't been.
            if self.handles.is_alone(ino) {
                self.pages.made(&attributes);
            }
            return Ok(opening.finish(flags, true));
        }
        // A read through the pages stops where the kernel thinks that the file ends, whatever it was told. Where nobody else
        // makes a file larger it knows.
        let size = self.data.size(ino, &attributes);
        opening.without_pages = self.right(ino) == Right::None
            && thread.is_some_and(|thread| self.pages.may_be_behind(ino, size, thread, Instant::now()));
        let keep_cache = match self.pages.current(&attributes) {
            None => true,
            Some(stale) => self.drop_pages(stale).await,
        };
        Ok(opening.finish(flags, keep_cache))
    }

    /// Makes and opens a file. `None`: the name is there by now, and what has it is for the kernel to open, when it has
    /// looked again.
    pub(super) async fn do_create(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        mode: u32,
        flags: u32,
    ) -> Result<Option<(Entry, Opened)>> {
        check_name(&name)?;
        let op = ops::Create {
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
        let made = loop {
            match self.metadata.make(op.clone().into()).await {
                Ok(made) => break made,
                Err(ClientError::Fs(FsError::Exists)) if flags & libc::O_EXCL as u32 == 0 => {
                    match self.open_existing(caller, parent, name.clone(), flags).await {
                        // Somebody else has removed it by now.
                        Err(Errno(libc::ENOENT | libc::ESTALE)) if attempts < CREATE_ATTEMPTS_MAX => {
                            attempts += 1
                        }
                        opened => return opened,
                    }
                }
                // Another mount has removed it, and it was freed before this one was among its holders. (Or its folder
                // is gone, which the last attempt says as well.)
                Err(ClientError::Fs(FsError::Stale)) if attempts < CREATE_ATTEMPTS_MAX => attempts += 1,
                Err(error) => return Err(error.into()),
            }
        };
        let (opening, attributes) = Opening::of_new(self, made);
        self.handles.learn(&attributes);
        self.data.install_map(attributes.ino, &Extents::of_new_file(attributes.clone()));
        self.pages.made(&attributes);
        self.void_kept(caller, [parent]).await;
        let entry = self.entry(caller, attributes, self.done()).await;
        Ok(Some((entry, opening.finish(flags, true))))
    }

    /// Somebody else has made the file since the kernel looked.
    async fn open_existing(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        flags: u32,
    ) -> Result<Option<(Entry, Opened)>> {
        let found = self.do_lookup(caller, parent, name).await?;
        match found.attributes.kind() {
            FileKind::File => {}
            FileKind::Directory => return Err(FsError::IsDirectory.into()),
            _ => return Ok(None),
        }
        let kill_priv = match flags & libc::O_TRUNC as u32 {
            0 => KillPriv::NONE,
            _ => killed_by_content(caller, Self::clears_setid(caller), Some(&found.attributes)),
        };
        let opened = self.do_open(found.attributes.ino, None, flags, kill_priv).await?;
        let attributes = self.known(found.attributes.ino).await?;
        let entry = self.entry(caller, attributes, self.done()).await;
        // The kernel takes this up whatever has become of the file by then.
        Ok(Some((Entry { attribute_ttl: Duration::ZERO, ..entry }, opened)))
    }

    pub(super) async fn do_read(
        &self,
        ino: InodeId,
        handle: u64,
        offset: u64,
        size: u32,
        fills_pages: bool,
    ) -> Result<Vec<Bytes>> {
        let handle = self.handle(handle)?;
        let wanted = offset..offset.saturating_add(u64::from(size));
        // Before it is looked at how large the file is: of a larger one the kernel hears only after this READ then.
        let fill = fills_pages.then(|| self.pages.read(ino, wanted.clone(), Instant::now()));
        let mut known = self.known(ino).await?;
        if self.data.has_gap(ino, wanted, &known) {
            known = self.inode(ino).await?;
            self.handles.learn(&known);
        }
        if let Some(fill) = &fill {
            fill.knows(self.data.size(ino, &known));
        }
        let read = self.data.read(ino, offset, size, &known).await?;
        if let Some(fill) = fill {
            let length: usize = read.iter().map(Bytes::len).sum();
            fill.answered(offset + length as u64, Instant::now());
        }
        if self.options.access_times && handle.is_none_or(|handle| handle.flags & libc::O_NOATIME as u32 == 0)
        {
            note_read(&self.atimes, &self.metadata, &known);
        }
        Ok(read)
    }

    pub(super) async fn do_write(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: u64,
        write: WriteRequest,
    ) -> Result<u32> {
        let handle = self.handle(handle)?;
        let WriteRequest { offset, data, flags } = write;
        let guesses = atoll_faults::planted("append-guessed");
        let appends = flags.append && self.options.append == Append::Shared && !guesses;
        let bypasses =
            !flags.from_cache && (flags.direct || handle.as_ref().is_some_and(|handle| handle.direct));
        if appends && !flags.from_cache && !data.is_empty() {
            let length = data.len() as u32;
            let kill_priv = self.killed(caller, ino, flags.kill_priv).await?;
            let (start, attributes) = self.data.append(ino, data, kill_priv).await?;
            let range = start..start + u64::from(length);
            if bypasses {
                // The kernel takes its own guess for the place.
                if start == offset {
                    self.pages.grown(ino, range.end, caller.pid, Instant::now());
                }
                self.bypassed(ino, handle.as_deref(), range, false).await;
                self.pages.own_change(&attributes);
            } else {
                let range = offset..offset + u64::from(length);
                let through = self.pages.written(ino, range.clone(), caller.pid, Instant::now());
                through.joins(&range);
                for stale in through.visible() {
                    self.drop_unlocked(stale).await;
                }
                match start == offset {
                    true => self.pages.own_change(&attributes),
                    false => self.drop_pages_later(ino, offset.min(start)),
                }
            }
            return Ok(length);
        }
        // Before anything is waited for: a READ that comes meanwhile is answered without this.
        let through = (!bypasses).then(|| {
            let end = offset.saturating_add(data.len() as u64);
            self.pages.written(ino, offset..end, caller.pid, Instant::now())
        });
        let known = self.known(ino).await?;
        let offset = if guesses && flags.append { known.size } else { offset };
        if let Some(through) = &through
            && !flags.from_cache
        {
            self.close_gap(ino, offset).await;
            through.joins(&(offset..offset.saturating_add(data.len() as u64)));
        }
        // Whose store it was that made a page dirty isn't known by now; as elsewhere, it takes nothing away.
        let kill_priv = match flags.from_cache && !flags.kill_priv {
            true => KillPriv::NONE,
            false => killed_by_content(caller, flags.kill_priv, Some(&known)),
        };
        let written = self.data.write(ino, offset, data, &known, kill_priv).await?;
        match through {
            None => {
                let range = offset..offset + u64::from(written);
                self.pages.grown(ino, range.end, caller.pid, Instant::now());
                let drops_own = flags.direct && handle.as_ref().is_some_and(|handle| !handle.direct);
                self.bypassed(ino, handle.as_deref(), range, drops_own).await;
            }
            // Nobody drops pages that are being written back.
            Some(_) if flags.from_cache => {}
            Some(through) => {
                while through.may_be_cut(Instant::now()) {
                    tokio::time::sleep(CUT_POLL).await;
                }
                for stale in through.visible() {
                    self.drop_unlocked(stale).await;
                }
            }
        }
        // Pages of a mapping are made durable by msync.
        if flags.sync && !flags.from_cache {
            self.data.flush(ino).await?;
            self.metadata.sync().await?;
        }
        Ok(written)
    }

    /// Bytes were written past the kernel's pages. Whoever reads a page now gets them; a page that was read before goes
    /// before the kernel hears of them, or it would be served with what was there until now, or with zeroes behind the
    /// old end.
    /// `drops_own`: as in [`Pages::bypassed`](super::pages::Pages::bypassed).
    async fn bypassed(&self, ino: InodeId, handle: Option<&FileHandle>, range: Range<u64>, drops_own: bool) {
        while self.pages.may_be_cut_before(ino, range.end, Instant::now()) {
            tokio::time::sleep(CUT_POLL).await;
        }
        let is_watched = self.handles.is_watched(ino, handle);
        if let Some(stale) = self.pages.bypassed(ino, range, is_watched, drops_own) {
            self.drop_end(stale).await;
        }
    }

    /// A WRITE through the pages is about to let the kernel know a larger end of the file. Others may have appended
    /// before that: the page at the old end would have zeroes in their place.
    async fn close_gap(&self, ino: InodeId, offset: u64) {
        if let Some(stale) = self.pages.gap(ino, offset) {
            self.drop_unlocked(stale).await;
        }
    }

    /// Drops pages before a WRITE is answered that goes through some of them. Those that the kernel has locked for that
    /// aren't filled: they aren't waited for.
    async fn drop_unlocked(&self, mut stale: Stale) {
        let Some(notifier) = self.notifier.read().clone() else { return };
        let pages = Arc::clone(&self.pages);
        let gone = tokio::spawn(async move {
            notifier.invalidate(stale.ino(), stale.range.start, stale.range.end - stale.range.start).await;
            pages.dropped(&mut stale, Instant::now());
            pages.gone(&stale);
        });
        let _ = tokio::time::timeout(UNLOCKED_WITHIN, gone).await;
    }

    /// The kernel has put bytes into its pages that went elsewhere (a file that became `O_APPEND` after it was
    /// opened). It holds these pages until it is answered, so this must not be waited for.
    fn drop_pages_later(&self, ino: InodeId, offset: u64) {
        if let Some(notifier) = self.notifier.read().clone() {
            tokio::spawn(async move { notifier.invalidate(ino, offset, u64::MAX).await });
        }
    }

    /// Makes and opens a file without a name.
    pub(super) async fn do_tmpfile(
        &self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let Caller { uid, gid, umask, .. } = *caller;
        let linkable = flags & libc::O_EXCL as u32 == 0;
        for _ in 0..UNNAMED_ATTEMPTS_MAX {
            let op = ops::Tmpfile { parent, mode: mode & 0o7777, uid, gid, umask, linkable };
            let made = match self.metadata.make(op.into()).await {
                Ok(made) => made,
                // With its session this mount's hold of it was lost, and it is gone.
                Err(ClientError::Fs(FsError::Stale)) => continue,
                Err(error) => return Err(error.into()),
            };
            let (opening, attributes) = Opening::of_new(self, made);
            self.handles.learn(&attributes);
            self.data.install_map(attributes.ino, &Extents::of_new_file(attributes.clone()));
            self.pages.made(&attributes);
            let entry = self.entry(caller, attributes, self.done()).await;
            return Ok((entry, opening.finish(flags, true)));
        }
        Err(FsError::Io.into())
    }

    /// Brings what is known of a file, here and in the kernel, up to what the service says, and sees to it that the kernel
    /// takes up the size that it is told next. `file`: what the service has said, if it has; without a map if what is known
    /// here is as of that.
    pub(super) async fn revalidate(&self, ino: InodeId, file: Option<FileExtents>) -> Result<()> {
        let answer = match file {
            Some(file) => file,
            None => {
                let query = queries::Extents { ino, first: SegmentIndex(0), segments: OPEN_SEGMENTS };
                self.metadata.ask(query).await?
            }
        };
        let extents = Extents::new(SegmentIndex(0), answer);
        let attributes = extents.attributes.clone();
        self.handles.learn(&attributes);
        match extents.covered {
            0 => self.data.learn(ino, &attributes),
            _ => self.data.install_map(ino, &extents),
        }
        let size = self.data.size(ino, &attributes);
        if let Some(stale) = self.pages.current(&attributes) {
            self.drop_pages(stale).await;
        }
        let epoch = self.pages.epoch();
        while !atoll_faults::planted("lock-unsettled") {
            match self.pages.settle(ino, size, epoch, Instant::now()) {
                Tell::Now => return Ok(()),
                Tell::Void(stale) => {
                    if !self.void(stale).await {
                        return Ok(());
                    }
                }
                Tell::Later => tokio::time::sleep(CUT_POLL).await,
                Tell::Without(stale) => {
                    if !self.drop_pages(stale).await {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// A descriptor is closed.
    pub(super) async fn do_flush(&self, ino: InodeId, handle: u64) -> Result<()> {
        let Some(handle) = self.handle(handle)? else {
            self.settle(ino).await?;
            return Ok(());
        };
        if !handle.can_write() {
            return Ok(());
        }
        // Where nobody else looks at it nobody waits for it.
        let flushed = match self.right(ino) != Right::None && self.data.close_behind(ino) {
            true => Ok(()),
            false => self.settle(ino).await,
        };
        self.told_error(&handle)?;
        Ok(flushed?)
    }

    /// An error of write-behind that this handle wasn't told of.
    fn told_error(&self, handle: &FileHandle) -> std::result::Result<(), ClientError> {
        let mut mark = handle.errors.lock();
        self.data.take_error(handle.file.ino, &mut mark)
    }

    pub(super) async fn do_fsync(&self, ino: InodeId, handle: u64) -> Result<()> {
        let handle = self.handle(handle)?;
        if atoll_faults::planted("fsync-returns-early") {
            return Ok(());
        }
        let flushed = self.data.flush(ino).await;
        if let Some(handle) = handle {
            self.told_error(&handle)?;
        }
        flushed?;
        Ok(self.metadata.sync().await?)
    }

    pub(super) fn do_release(&self, handle: u64) {
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

    pub(super) async fn do_fallocate(
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
            0 => FallocateMode::Allocate,
            PUNCH_HOLE if keep_size => FallocateMode::Punch,
            ZERO_RANGE => FallocateMode::Zero,
            _ => return Err(FsError::Unsupported.into()),
        };
        let end = offset.checked_add(length).ok_or(FsError::FileTooLarge)?;
        let kill_priv = self.killed(caller, ino, Self::clears_setid(caller)).await?;
        self.settle(ino).await?;
        let (mut at, mut asked_for_room) = (offset, false);
        let mut changes = None;
        while at < end {
            let op = ops::Fallocate { ino, offset: at, length: end - at, mode, keep_size, kill_priv };
            match self.metadata.mutate(op).await {
                Ok(Allocated { until, attributes }) if until > at => {
                    at = until;
                    self.data.learn(ino, &attributes);
                    changes = Some(in_a_row(changes, attributes));
                }
                Ok(_) => return Err(unexpected().into()),
                Err(ClientError::Fs(FsError::NoSpace)) if !asked_for_room => {
                    // What mounts have set aside for later writes is in the way.
                    self.data.make_room(end - at).await?;
                    asked_for_room = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.changed_past_pages(changes).await;
        Ok(())
    }

    /// All of a change was made, which the kernel makes in its pages when it hears of that: drops what it puts zeroes
    /// or other bytes in the place of. Had a part of it failed, the kernel would have kept its pages, which are wrong
    /// then.
    async fn changed_past_pages(&self, changes: Option<(u64, Box<Attributes>)>) {
        let Some((first, last)) = changes else { return };
        self.pages.own_changes(first, &last);
        while self.pages.may_be_cut_before(last.ino, last.size, Instant::now()) {
            tokio::time::sleep(CUT_POLL).await;
        }
        if let Some(stale) = self.pages.told(last.ino, last.size) {
            self.drop_end(stale).await;
        }
    }

    /// The next data or hole.
    pub(super) async fn do_lseek(&self, ino: InodeId, offset: u64, kind: SeekKind) -> Result<u64> {
        self.settle(ino).await?;
        let kind = match kind {
            SeekKind::Data => Seek::Data,
            SeekKind::Hole => Seek::Hole,
        };
        let mut at = offset;
        loop {
            match self.metadata.ask(queries::Lseek { ino, offset: at, kind }).await? {
                Sought::Found(found) => return Ok(found),
                Sought::Nothing => return Err(Errno(libc::ENXIO)),
                Sought::Continue(next) if next > at => at = next,
                Sought::Continue(_) => return Err(unexpected().into()),
            }
        }
    }

    /// Copies within the map: nothing is read, and both files refer to the same bytes.
    pub(super) async fn do_copy_file_range(
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
        let mut changes = None;
        while copied < length {
            let op = ops::CopyFileRange {
                from,
                offset: offset.saturating_add(copied),
                to,
                to_offset: to_offset.saturating_add(copied),
                length: length - copied,
                kill_priv,
            };
            match self.metadata.mutate(op).await {
                Ok(Copied { bytes: 0, .. }) => break,
                Ok(Copied { bytes, attributes }) => {
                    copied += bytes;
                    self.data.learn(to, &attributes);
                    changes = Some(in_a_row(changes, attributes));
                }
                Err(_) if copied > 0 => break,
                Err(ClientError::Fs(FsError::NoSpace)) if !asked_for_room => {
                    // What mounts have set aside for later writes is in the way.
                    let unused = self.metadata.volume().bytes_unused();
                    self.data.make_room(unused.min(length - copied)).await?;
                    asked_for_room = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.changed_past_pages(changes).await;
        Ok(copied)
    }
}

/// Changes of this client's to one file that follow each other, by the number of the first and what the last one left; if
/// somebody else's came in between, those since.
fn in_a_row(before: Option<(u64, Box<Attributes>)>, last: Box<Attributes>) -> (u64, Box<Attributes>) {
    match before {
        Some((first, before)) if before.change.saturating_add(1) == last.change => (first, last),
        _ => (last.change, last),
    }
}
