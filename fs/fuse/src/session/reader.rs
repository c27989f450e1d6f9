//! A thread that reads requests and begins to serve them.
//!
//! A request's future is polled once on this very thread: what can be answered from memory costs no hop to another
//! thread and no allocation (the future's place is used again). What has to wait goes to the runtime once it is woken
//! ([`Parked`]), and the thread reads on.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_client::vfs::Errno;
use tokio::runtime::Handle;

use super::call::Call;
use super::core::{Address, BufferHold, Core};
use super::init::{Answer, negotiate};
use super::parked::Parked;
use super::{End, Handler, InitOptions, State};
use crate::abi::output::InitOut;
use crate::abi::{KERNEL_MINOR_VERSION, KERNEL_VERSION, Pod, opcode};
use crate::notify::Notifier;
use crate::request::{self, Header, Operation};
use crate::slots::layout::{PAYLOAD_BYTES_MAX, PREFIX_BYTES};
use crate::slots::{Large, Unfinished};

/// How long redone requests have for their answers before the kernel is asked to send again what it still waits for.
const RESEND_GRACE: Duration = Duration::from_millis(500);
/// How often that is looked at.
const RESEND_POLL: Duration = Duration::from_millis(5);

/// A reader and what it needs.
pub(super) struct Reader<H, F> {
    pub core: Arc<Core>,
    pub handler: Arc<H>,
    /// [`Handler::handle`], whose future's type has no other name.
    pub handle: fn(Arc<H>, Call) -> F,
    pub runtime: Handle,
    pub options: InitOptions,
    /// Which descriptor it reads.
    pub device: u32,
}

impl<H: Handler, F: Future<Output = ()> + Send + 'static> Reader<H, F> {
    /// Reads until the mount is gone or the session stops.
    ///
    /// The first one gets what the predecessor left `unfinished`, and a notifier (`resume`) if the kernel can be asked
    /// to send again what is missing there.
    pub fn run(self, unfinished: Vec<Unfinished>, resume: Option<Notifier>) {
        let begins = self.device == 0 || self.wait_for_init();
        let end = if begins { self.read_all(unfinished, resume) } else { End::Stopped };
        tracing::debug!(device = self.device, ?end, "a reader thread ended");
        self.core.reader_ended(end);
    }

    /// Readers of clones wait for INIT: before it is answered there is nothing else to read, and only one may.
    fn wait_for_init(&self) -> bool {
        let mut state = self.core.state.subscribe();
        let begun = self.runtime.block_on(state.wait_for(|state| !matches!(state, State::Starting)));
        matches!(begun.as_deref(), Ok(State::Ready(_)))
    }

    fn read_all(&self, unfinished: Vec<Unfinished>, resume: Option<Notifier>) -> End {
        let _runtime = self.runtime.enter();
        let mut place = Place { room: None, parked: None };
        self.redo(unfinished, &mut place);
        if let Some(notifier) = resume {
            self.runtime.spawn(resend(Arc::clone(&self.core), notifier));
        }
        let (pool, memory) = (&self.core.pool, &self.core.memory);
        let Some(mut slot) = pool.take_slot() else { return End::Stopped };
        let Some(mut buffer) = pool.take_buffer(memory) else {
            self.core.release(slot);
            return End::Stopped;
        };
        let end = loop {
            let len = match self.read(slot, buffer) {
                Ok(len) => len,
                Err(end) => break end,
            };
            // SAFETY: this thread holds the slot and the buffer, and has no slice of them.
            let large = unsafe { memory.make_contiguous(slot, len) };
            let request = if large { self.keep(slot, buffer, len) } else { Some((len, None)) };
            let buffer_gone = matches!(request, Some((_, Some(_))));
            if let Some((len, kept)) = request {
                self.dispatch(slot, self.device, len, kept, &mut place);
            }
            // The request has the slot now, and has given it back if it was answered at once.
            match pool.take_slot() {
                Some(next) => slot = next,
                None => {
                    if !buffer_gone {
                        pool.free_buffer(memory, buffer);
                    }
                    return End::Stopped;
                }
            }
            if buffer_gone {
                match pool.take_buffer(memory) {
                    Some(next) => buffer = next,
                    None => {
                        self.core.release(slot);
                        return End::Stopped;
                    }
                }
            }
        };
        self.core.release(slot);
        pool.free_buffer(memory, buffer);
        end
    }

    /// Sees to it that a request of `len` bytes, which don't fit into its slot, leaves this reader able to read on: it
    /// keeps its buffer as one of those that may, or does without. Its length and its buffer, unless it is over already.
    fn keep(&self, slot: u32, buffer: u32, len: usize) -> Option<(usize, Option<Arc<BufferHold>>)> {
        let core = &self.core;
        // SAFETY: this thread holds slot and buffer; the slice is gone before the request is given on or changed.
        let message = unsafe { core.memory.message(slot, Some(buffer), len) };
        let large = Large::of(message);
        let header = request::parse_header(message).ok();
        let address = header.map(|header| Address { device: self.device, unique: header.unique });
        if large == Large::Forgets
            && let Some(header) = &header
        {
            self.without_reply(message, header);
            core.release(slot);
            return None;
        }
        if address.is_some_and(|address| core.sent_again(address)) {
            core.release(slot);
            return None;
        }
        let keep = large.keep();
        if core.pool.keep(keep) {
            if large == Large::Other {
                core.pool.drop_rest(&core.memory, buffer, len);
            }
            return Some((len, Some(Arc::new(BufferHold { core: Arc::clone(core), buffer, keep }))));
        }
        match large {
            Large::Write | Large::Append => {
                tracing::debug!(
                    len,
                    ?large,
                    "too many large WRITEs wait; this one is answered with a short write"
                );
                // SAFETY: this thread holds slot and buffer, the message is such a WRITE, and no slice of it is used
                // from here on.
                Some((unsafe { core.memory.shorten_write(slot, buffer) }, None))
            }
            Large::WriteBack | Large::Forgets | Large::Other => {
                match address {
                    Some(address) => core.answer(slot, address, libc::ENOMEM, &[]),
                    None => core.release(slot),
                }
                None
            }
        }
    }

    /// Reads one message; its length in bytes.
    fn read(&self, slot: u32, buffer: u32) -> Result<usize, End> {
        let memory = &self.core.memory;
        let header = memory.slot(slot);
        header.device.store(self.device, Ordering::Relaxed);
        header.buffer.store(buffer + 1, Ordering::Release);
        let places = [
            libc::iovec { iov_base: memory.request_ptr(slot).cast(), iov_len: PREFIX_BYTES },
            libc::iovec { iov_base: memory.payload_ptr(buffer).cast(), iov_len: PAYLOAD_BYTES_MAX },
        ];
        let descriptor = self.core.devices[self.device as usize].as_raw_fd();
        loop {
            if self.core.stopping.load(Ordering::Acquire) {
                return Err(End::Stopped);
            }
            // SAFETY: this thread holds slot and buffer, both places lie inside them, and no slice of them exists.
            let len = unsafe { libc::readv(descriptor, places.as_ptr(), places.len() as i32) };
            if len > 0 {
                return Ok(len as usize);
            }
            if len == 0 {
                // Only a socket (a test's kernel) has an end.
                return Err(End::Unmounted);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // A signal; a request that was aborted while it was read; nothing to read after all.
                Some(libc::EINTR | libc::ENOENT | libc::EAGAIN) => {}
                Some(libc::ENODEV) => return Err(End::Unmounted),
                Some(libc::ECONNABORTED) => return Err(End::Aborted),
                _ => {
                    tracing::error!(%error, device = self.device, "reading a request from the kernel failed");
                    return Err(End::Failed(error.raw_os_error().unwrap_or(libc::EIO)));
                }
            }
        }
    }

    /// Serves what a predecessor read and did not answer. All of it was set aside before any reader began.
    fn redo(&self, unfinished: Vec<Unfinished>, place: &mut Place<F>) {
        if !unfinished.is_empty() {
            tracing::info!(
                requests = unfinished.len(),
                "handling requests that the previous process left unanswered"
            );
        }
        for Unfinished { slot, device, len, buffer } in unfinished {
            let hold = buffer
                .map(|(buffer, keep)| Arc::new(BufferHold { core: Arc::clone(&self.core), buffer, keep }));
            self.dispatch(slot, device, len, hold, place);
        }
    }

    /// Begins to serve the request in `slot`, which is freed by whoever answers it.
    fn dispatch(
        &self,
        slot: u32,
        device: u32,
        len: usize,
        hold: Option<Arc<BufferHold>>,
        place: &mut Place<F>,
    ) {
        let core = &self.core;
        // SAFETY: this thread holds the slot and `hold` holds the buffer; the slice is gone before they are given on.
        let message = unsafe { core.memory.message(slot, hold.as_ref().map(|hold| hold.buffer), len) };
        let header = match request::parse_header(message) {
            Ok(header) => header,
            Err(problem) => {
                tracing::error!(%problem, "a request of the kernel is malformed");
                // Its number stands where every request has it, if it is long enough for one.
                match crate::abi::input::InHeader::read_from(message) {
                    Some(raw) => {
                        let address = Address { device, unique: raw.unique };
                        core.answer(slot, address, problem.errno(), &[]);
                    }
                    None => core.release(slot),
                }
                return;
            }
        };
        match header.opcode {
            opcode::INIT => return self.init(message.to_vec(), header, slot, device),
            opcode::INTERRUPT | opcode::FORGET | opcode::BATCH_FORGET => {
                self.without_reply(message, &header);
                return core.release(slot);
            }
            opcode::DESTROY => {
                self.handler.destroyed();
                return Call::new(Arc::clone(core), header, slot, device, hold).done();
            }
            _ => {}
        }
        if core.sent_again(Address { device, unique: header.unique }) {
            return core.release(slot);
        }
        let call = Call::new(Arc::clone(core), header, slot, device, hold);
        if header.opcode == opcode::SETLKW && core.pool.slots_taken() > core.memory.layout().slots / 4 * 3 {
            // A blocked lock may wait for ever: the rest is for requests that end, the unlock among them.
            return call.error(Errno(libc::ENOLCK));
        }
        self.serve(call, place);
    }

    /// Does what a request asks that has no reply.
    fn without_reply(&self, message: &[u8], header: &Header) {
        match request::parse(message, self.core.negotiated().flags) {
            Ok((_, Operation::Interrupt { unique })) => self.core.interrupts.interrupt(unique),
            Ok((_, Operation::Forget { lookups })) => self.handler.forget(header.nodeid, lookups),
            Ok((_, Operation::BatchForget(list))) => {
                list.iter().for_each(|one| self.handler.forget(one.nodeid, one.lookups));
            }
            Ok(_) => {}
            Err(problem) => {
                tracing::error!(%problem, request = opcode::name(header.opcode), "a malformed request is ignored")
            }
        }
    }

    /// Polls the handler's future once, here, and leaves it to the runtime when it can go on if it isn't done then.
    fn serve(&self, call: Call, place: &mut Place<F>) {
        let future = place.put((self.handle)(Arc::clone(&self.handler), call));
        let parked = place.parked.take().unwrap_or_else(|| Parked::new(self.runtime.clone()));
        match catch_unwind(AssertUnwindSafe(|| parked.poll(future))) {
            Ok(Some(done)) => {
                self.core.counters.at_once.fetch_add(1, Ordering::Relaxed);
                place.room = Some(empty(done));
                place.parked = parked.again();
            }
            Ok(None) => {
                self.core.counters.waited.fetch_add(1, Ordering::Relaxed);
            }
            // The request was answered EIO when the future's call was dropped on the way.
            Err(_) => tracing::error!("the handler of a request panicked: this is a bug, please report it"),
        }
    }

    fn init(&self, message: Vec<u8>, header: Header, slot: u32, device: u32) {
        let core = &self.core;
        let call = Call::new(Arc::clone(core), header, slot, device, None);
        let kernel = match request::parse(&message, crate::InitFlags::EMPTY) {
            Ok((_, Operation::Init(kernel))) => kernel,
            Ok(_) => return call.error(Errno(libc::EIO)),
            Err(problem) => return call.error(Errno(problem.errno())),
        };
        match negotiate(&kernel, &self.options) {
            Ok(Answer::Agreed(negotiated)) => {
                tracing::info!(kernel = ?kernel, ?negotiated, "the kernel initialized the mount");
                // A predecessor may have got as far as here: what it recorded is what the kernel was told.
                let negotiated = core.memory.negotiated().unwrap_or(negotiated);
                core.memory.set_negotiated(&negotiated);
                let _ = core.negotiated.set(negotiated);
                self.handler.ready(&negotiated);
                call.init(&negotiated.reply());
                core.state.send_if_modified(|state| {
                    let starting = matches!(state, State::Starting);
                    if starting {
                        *state = State::Ready(negotiated);
                    }
                    starting
                });
            }
            Ok(Answer::TellVersion) => {
                let version =
                    InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..InitOut::default() };
                call.init(&version);
            }
            Err(problem) => {
                tracing::error!(%problem, "this kernel isn't supported");
                call.error(Errno(libc::EPROTO));
                core.state.send_replace(State::Ended(End::Failed(libc::EPROTO)));
            }
        }
    }
}

/// Asks for what was lost between the kernel's queue and the request memory (a request whose read was killed half way).
/// Requests that are still under way come a second time and are recognised. They get a moment to be answered first,
/// since an answer under the old number that crosses the second copy is one that has to be worked out again.
async fn resend(core: Arc<Core>, notifier: Notifier) {
    let deadline = tokio::time::Instant::now() + RESEND_GRACE;
    while core.interrupts.under_way() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(RESEND_POLL).await;
    }
    if let Err(error) = notifier.resend().await {
        tracing::warn!(%error, "the kernel can't resend unanswered requests");
    }
}

/// Room for one future and what wakes it, used again and again.
struct Place<F> {
    room: Option<Box<MaybeUninit<F>>>,
    parked: Option<Arc<Parked<F>>>,
}

impl<F> Place<F> {
    fn put(&mut self, future: F) -> Pin<Box<F>> {
        let room = self.room.take().unwrap_or_else(Box::new_uninit);
        Box::into_pin(Box::write(room, future))
    }
}

/// Drops a future where it is, and keeps its room.
fn empty<F>(future: Pin<Box<F>>) -> Box<MaybeUninit<F>> {
    // SAFETY: the future is not moved: it is dropped in place, and its memory used only as raw room afterwards.
    unsafe {
        let raw = Box::into_raw(Pin::into_inner_unchecked(future));
        std::ptr::drop_in_place(raw);
        Box::from_raw(raw.cast::<MaybeUninit<F>>())
    }
}
