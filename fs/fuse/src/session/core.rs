//! What all threads and requests of a session share.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::interrupt::{Interrupts, base_unique};
use super::{End, Negotiated, State};
use crate::abi::output::OutHeader;
use crate::abi::{Pod, UNIQUE_RESEND};
use crate::slots::{Keep, Pool, RequestMemory};

/// Slices of a reply that are gathered without allocating.
const SLICES_INLINE: usize = 16;

/// How many requests a session has begun to serve, by whether another thread was needed for them.
#[derive(Debug, Default)]
pub struct RequestCounters {
    pub(super) at_once: AtomicU64,
    pub(super) waited: AtomicU64,
}

impl RequestCounters {
    /// Requests that the thread that read them has answered.
    #[must_use]
    pub fn at_once(&self) -> u64 {
        self.at_once.load(Ordering::Relaxed)
    }

    /// Requests that had to wait for something, and were given to other threads.
    #[must_use]
    pub fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }
}

/// The shared part of a session.
pub(crate) struct Core {
    pub memory: RequestMemory,
    pub pool: Pool,
    pub interrupts: Interrupts,
    /// The device and its clones. A request is answered on the descriptor that it was read from.
    pub devices: Vec<OwnedFd>,
    pub negotiated: OnceLock<Negotiated>,
    pub stopping: AtomicBool,
    pub counters: Arc<RequestCounters>,
    pub state: watch::Sender<State>,
    readers_left: AtomicUsize,
    /// Requests under way that the kernel has sent again, under another number or to another descriptor.
    rebound: Mutex<HashMap<u64, Address>>,
    /// Is told the number of each request whose reply the kernel has taken.
    answered: OnceLock<Box<dyn Fn(u64) + Send + Sync>>,
}

/// Where a reply goes.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    pub device: u32,
    pub unique: u64,
}

impl Core {
    pub fn new(memory: RequestMemory, devices: Vec<OwnedFd>) -> Core {
        let negotiated = OnceLock::new();
        let mut state = State::Starting;
        if let Some(known) = memory.negotiated() {
            state = State::Ready(known);
            let _ = negotiated.set(known);
        }
        Core {
            pool: Pool::new(&memory, devices.len() as u32),
            interrupts: Interrupts::new(memory.layout().slots),
            readers_left: AtomicUsize::new(devices.len()),
            memory,
            devices,
            negotiated,
            stopping: AtomicBool::new(false),
            counters: Arc::default(),
            state: watch::Sender::new(state),
            rebound: Mutex::default(),
            answered: OnceLock::new(),
        }
    }

    /// What was negotiated; nothing at all before INIT.
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated.get().copied().unwrap_or_default()
    }

    /// A reader is done. The last one ends the session.
    pub fn reader_ended(&self, end: End) {
        if self.readers_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.state.send_replace(State::Ended(end));
        }
    }

    /// Whether a request came a second time (bit 63 of its number is set) whose first one is still under way: its reply
    /// goes to the new address then, and the new request is to be dropped.
    pub fn sent_again(&self, address: Address) -> bool {
        if address.unique & UNIQUE_RESEND == 0 {
            return false;
        }
        let mut rebound = self.rebound.lock();
        let under_way = self.interrupts.slot_of(address.unique).is_some();
        if under_way {
            rebound.insert(base_unique(address.unique), address);
        }
        under_way
    }

    /// Writes a reply; `error` is 0 or an errno. Whatever happens, the request is over afterwards, and its slot may
    /// be used again.
    pub fn answer(&self, slot: u32, address: Address, error: i32, body: &[IoSlice<'_>]) {
        match self.write(address, error, body) {
            Ok(()) => self.answered(address.unique),
            // The kernel doesn't know the number: the request was sent again under another one, or it is the second
            // reply to a request that the predecessor had answered.
            Err(problem) if problem.raw_os_error() == Some(libc::ENOENT) => {
                let mut rebound = self.rebound.lock();
                match rebound.remove(&base_unique(address.unique)) {
                    Some(again) => {
                        drop(rebound);
                        match self.write(again, error, body) {
                            Ok(()) => self.answered(again.unique),
                            Err(problem) => tracing::debug!(
                                unique = again.unique, %problem,
                                "the kernel refused the reply to a resent request"
                            ),
                        }
                    }
                    // Under the lock, so that a copy that comes now is either seen above or served as a new request.
                    None => self.interrupts.end(slot),
                }
            }
            Err(problem) => {
                let gone = matches!(problem.raw_os_error(), Some(libc::ENODEV | libc::ECONNABORTED));
                if !gone {
                    tracing::error!(unique = address.unique, %problem, "the kernel refused a reply");
                    if let Err(again) = self.write(address, libc::EIO, &[]) {
                        tracing::debug!(
                            unique = address.unique, problem = %again,
                            "the kernel refused the error reply, too"
                        );
                    }
                }
            }
        }
        self.release(slot);
    }

    /// Tells `told` the number of each request whose reply the kernel takes from now on.
    pub fn tell_answered(&self, told: Box<dyn Fn(u64) + Send + Sync>) {
        let _ = self.answered.set(told);
    }

    fn answered(&self, unique: u64) {
        if let Some(told) = self.answered.get() {
            told(base_unique(unique));
        }
    }

    /// A request needs no reply any more: its slot is free.
    pub fn release(&self, slot: u32) {
        self.memory.unanswered(slot).store(0, Ordering::Release);
        self.interrupts.end(slot);
        self.pool.free_slot(&self.memory, slot);
    }

    /// Writes a reply or, with number 0, a notification, whose code is in `error`'s place and not negated.
    fn write(&self, address: Address, error: i32, body: &[IoSlice<'_>]) -> io::Result<()> {
        let device = &self.devices[address.device as usize];
        write_message(device, address.unique, -error, body)
    }

    /// Writes a notification to the main descriptor. May block: see `notify`.
    pub fn write_notification(&self, code: i32, body: &[IoSlice<'_>]) -> io::Result<()> {
        write_message(&self.devices[0], 0, code, body)
    }
}

fn write_message(device: &OwnedFd, unique: u64, error: i32, body: &[IoSlice<'_>]) -> io::Result<()> {
    let body_bytes: usize = body.iter().map(|slice| slice.len()).sum();
    let header = OutHeader { len: (size_of::<OutHeader>() + body_bytes) as u32, error, unique };
    let mut inline = [IoSlice::new(&[]); SLICES_INLINE + 1];
    let mut many;
    let slices = if body.len() <= SLICES_INLINE {
        inline[0] = IoSlice::new(header.as_bytes());
        inline[1..=body.len()].copy_from_slice(body);
        &inline[..=body.len()]
    } else {
        // The kernel takes so many slices in one call; more are joined, since a message is one call.
        const SLICES_MAX: usize = 1024;
        if body.len() >= SLICES_MAX {
            let joined: Vec<u8> = body.iter().flat_map(|slice| slice.iter().copied()).collect();
            return write_message(device, unique, error, &[IoSlice::new(&joined)]);
        }
        many = Vec::with_capacity(body.len() + 1);
        many.push(IoSlice::new(header.as_bytes()));
        many.extend_from_slice(body);
        &many[..]
    };
    loop {
        // SAFETY: `IoSlice` has the layout of `iovec`; header and body outlive the call.
        let written =
            unsafe { libc::writev(device.as_raw_fd(), slices.as_ptr().cast(), slices.len() as i32) };
        if written >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Keeps a buffer of the request memory for a request, and what else refers to its data.
pub(crate) struct BufferHold {
    pub core: Arc<Core>,
    pub buffer: u32,
    pub keep: Keep,
}

impl Drop for BufferHold {
    fn drop(&mut self) {
        self.core.pool.give_back(&self.core.memory, self.buffer, self.keep);
    }
}
