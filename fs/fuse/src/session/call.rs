//! One request under way, and the ways to answer it.

use std::io::IoSlice;
use std::sync::Arc;

use atoll_client::vfs::{
    AttributeReply, Caller, DirEntry, Entry, Errno, FileLock, Interrupt, Opened, StatFs,
};
use bytes::Bytes;

use super::core::{Address, BufferHold, Core};
use super::interrupt::base_unique;
use crate::abi::Pod;
use crate::abi::input::FileLock as RawLock;
use crate::abi::opcode;
use crate::abi::output::*;
use crate::reply::{self, DirectoryBuffer};
use crate::request::{self, Header, Malformed, Operation, lock_kind_to_raw};

/// Data from this size on is lent to the filesystem out of the request memory; smaller data is copied.
const LEND_BYTES_MIN: usize = 64 << 10;

/// A request of the kernel that waits for its answer. Every call must be answered; one that is dropped is answered
/// `EIO`.
pub struct Call {
    core: Arc<Core>,
    header: Header,
    slot: u32,
    device: u32,
    buffer: Option<Arc<BufferHold>>,
    answered: bool,
}

impl Call {
    /// Takes over a slot (and what buffer it has) whose request begins now.
    pub(super) fn new(
        core: Arc<Core>,
        header: Header,
        slot: u32,
        device: u32,
        buffer: Option<Arc<BufferHold>>,
    ) -> Call {
        core.interrupts.begin(slot, header.unique);
        Call { core, header, slot, device, buffer, answered: false }
    }

    /// Who asks, and about what.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What is asked.
    ///
    /// # Errors
    /// The message is malformed; answer with [`Malformed::errno`].
    pub fn operation(&self) -> Result<Operation<'_>, Malformed> {
        let buffer = self.buffer.as_ref().map(|hold| hold.buffer);
        // SAFETY: this call holds slot and buffer until it is dropped, which ends the borrow; the mark is cleared
        // only by what consumes the call.
        let message = unsafe { self.core.memory.message(self.slot, buffer, self.header.len as usize) };
        request::parse(message, self.core.negotiated().flags).map(|(_, operation)| operation)
    }

    /// Who asks, in the filesystem's terms.
    pub fn caller(&self, umask: u32) -> Caller {
        let Header { uid, gid, pid, unique, .. } = self.header;
        Caller { uid, gid, pid, umask, interrupt: self.interrupt(), request: base_unique(unique) }
    }

    /// Fires when the caller gets a signal.
    pub fn interrupt(&self) -> Interrupt {
        self.core.interrupts.token(self.slot)
    }

    /// Data of this call's message as a value that may outlive the call. Large data isn't copied but lent, as long as
    /// enough of the request memory is free; who keeps it keeps a buffer from being used again.
    pub fn lend(&self, data: &[u8]) -> Bytes {
        match &self.buffer {
            Some(hold) if data.len() >= LEND_BYTES_MIN && self.core.pool.may_lend(hold.keep) => {
                let owner = Lent { _hold: Arc::clone(hold), start: data.as_ptr(), len: data.len() };
                let place = self.core.memory.payload_ptr(hold.buffer) as usize;
                let end = place + crate::slots::layout::PAYLOAD_BYTES_MAX;
                let start = data.as_ptr() as usize;
                if start >= place && start + data.len() <= end {
                    return Bytes::from_owner(owner);
                }
                Bytes::copy_from_slice(data)
            }
            _ => Bytes::copy_from_slice(data),
        }
    }

    /// Answers with an errno.
    pub fn error(self, errno: Errno) {
        tracing::trace!(
            request = opcode::name(self.header.opcode),
            unique = self.header.unique,
            errno = errno.0
        );
        self.finish(errno.0, &[]);
    }

    /// Answers that it is done, where there is nothing to tell.
    pub fn done(self) {
        self.finish(0, &[]);
    }

    /// Answers with data that is gathered from several places.
    pub fn data(self, parts: &[Bytes]) {
        if let [one] = parts {
            return self.finish(0, &[IoSlice::new(one)]);
        }
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        self.finish(0, &slices);
    }

    /// Answers with bytes.
    pub fn bytes(self, bytes: &[u8]) {
        self.finish(0, &[IoSlice::new(bytes)]);
    }

    /// Answers LOOKUP and what makes an inode; `node`: what the kernel is to call it.
    pub fn entry(self, entry: &Entry, node: u64) {
        self.pod(&reply::entry(entry, node));
    }

    /// Answers GETATTR and SETATTR.
    pub fn attributes(self, attributes: &AttributeReply) {
        self.pod(&reply::attributes(attributes));
    }

    /// Answers STATX, and is passed around.
    pub(crate) fn statx_owned(self, attributes: AttributeReply) {
        self.statx(&attributes);
    }

    /// Answers GETATTR, and is passed around.
    pub(crate) fn attributes_owned(self, attributes: AttributeReply) {
        self.attributes(&attributes);
    }

    /// Answers STATX.
    pub fn statx(self, attributes: &AttributeReply) {
        self.pod(&reply::statx(attributes));
    }

    /// Answers OPEN and OPENDIR.
    pub fn opened(self, opened: &Opened) {
        let opened = reply::opened(opened, self.core.negotiated().flags);
        self.pod(&opened);
    }

    /// Answers CREATE and TMPFILE.
    pub fn created(self, entry: &Entry, opened: &Opened) {
        let open = reply::opened(opened, self.core.negotiated().flags);
        self.pod(&CreateOut { entry: reply::entry(entry, entry.attributes.ino.0), open });
    }

    /// Answers WRITE (and COPY_FILE_RANGE in its old form) with the bytes written.
    pub fn written(self, bytes: u32) {
        self.pod(&WriteOut { size: bytes, padding: 0 });
    }

    /// Answers COPY_FILE_RANGE in its form with 64 bits.
    pub fn copied(self, bytes: u64) {
        self.pod(&CopyFileRangeOut { bytes_copied: bytes });
    }

    /// Answers STATFS.
    pub fn statfs(self, statfs: &StatFs) {
        self.pod(&reply::statfs(statfs));
    }

    /// Answers GETXATTR and LISTXATTR: the length alone if `size` is 0, and `ERANGE` when the value is longer than it.
    pub fn xattr(self, value: &[u8], size: u32) {
        if size == 0 {
            self.pod(&GetxattrOut { size: value.len() as u32, padding: 0 });
        } else if value.len() > size as usize {
            self.error(Errno(libc::ERANGE));
        } else {
            self.bytes(value);
        }
    }

    /// Answers GETLK.
    pub fn lock(self, lock: &FileLock) {
        let kind = lock_kind_to_raw(lock.kind);
        self.pod(&LkOut { lk: RawLock { start: lock.start, end: lock.end, kind, pid: lock.pid } });
    }

    /// Answers LSEEK.
    pub fn offset(self, offset: u64) {
        self.pod(&LseekOut { offset });
    }

    /// Answers READDIR and READDIRPLUS with what fits into `size` bytes. Returns how many of the entries did. `node` says
    /// what the kernel is to call what it finds in a node by a name.
    pub fn directory(
        self,
        entries: &[DirEntry],
        size: u32,
        plus: bool,
        node: impl Fn(u64, &[u8], &Entry) -> u64,
    ) -> usize {
        let mut buffer = DirectoryBuffer::new(size as usize);
        let node = |name: &[u8], entry: &Entry| node(self.header.nodeid, name, entry);
        let fit = entries.iter().take_while(|entry| buffer.push(entry, plus, node)).count();
        self.bytes(buffer.bytes());
        fit
    }

    fn pod<T: Pod>(self, value: &T) {
        self.finish(0, &[IoSlice::new(value.as_bytes())]);
    }

    /// A reply without a body on which the kernel and INIT's versions agree; for INIT alone.
    pub(super) fn init(self, reply: &InitOut) {
        self.pod(reply);
    }

    fn finish(mut self, error: i32, body: &[IoSlice<'_>]) {
        self.answered = true;
        let address = Address { device: self.device, unique: self.header.unique };
        self.core.answer(self.slot, address, error, body);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            let (request, unique) = (opcode::name(self.header.opcode), self.header.unique);
            tracing::error!(request, unique, "a request was dropped without a reply");
            let address = Address { device: self.device, unique };
            self.core.answer(self.slot, address, libc::EIO, &[]);
        }
    }
}

/// A part of a buffer, lent.
struct Lent {
    _hold: Arc<BufferHold>,
    start: *const u8,
    len: usize,
}

// SAFETY: the buffer is taken for as long as the hold lives, and nobody writes to a taken buffer after its request
// was read; the mapping lives as long as the core, which the hold keeps.
unsafe impl Send for Lent {}
// SAFETY: as above; the bytes are only read.
unsafe impl Sync for Lent {}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: see `Send`; `lend` checked that the range lies inside the buffer's payload.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}
