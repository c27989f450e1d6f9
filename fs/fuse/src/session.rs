//! A session with the kernel: reader threads, requests under way, and what a successor needs to go on.
//!
//! ```text
//! kernel ── /dev/fuse ──▶ reader 0 ─┐                                  ┌─ answered at once: writev
//!        ── clone ──────▶ reader 1 ─┴▶ slot ▶ Call ▶ Handler ▶ future ─┤
//!                                                                      └─ has to wait: spawned on the runtime
//! ```

mod call;
pub(crate) mod core;
mod init;
mod interrupt;
mod parked;
mod reader;

use std::future::Future;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::watch;

pub use call::Call;
pub use core::RequestCounters;
pub use init::{InitOptions, KernelTooOld, Negotiated};

use crate::InitFlags;
use crate::bundle::Bundle;
use crate::notify::Notifier;
use crate::slots::{AdoptError, RequestMemory};
use core::Core;
use reader::Reader;

/// Readers of one session at most: more than there are processors make nothing faster.
pub const READERS_MAX: usize = 16;
/// Readers unless told otherwise.
pub const READERS_DEFAULT: usize = 2;
/// How often a reader that is to stop is signalled again: the signal is lost if it comes just before the read.
const STOP_SIGNAL_INTERVAL: Duration = Duration::from_millis(2);

/// What serves the requests.
pub trait Handler: Send + Sync + 'static {
    /// Serves a request and answers it. The future is polled once on the reader's thread, inside the runtime's context,
    /// and must not block it.
    fn handle(self: Arc<Self>, call: Call) -> impl Future<Output = ()> + Send + 'static;

    /// The kernel forgets lookups of an inode. Never waits.
    fn forget(&self, nodeid: u64, lookups: u64);

    /// The kernel has taken the reply to the request with this number (without the bit that says that it was sent again).
    /// Never waits.
    fn answered(&self, unique: u64) {
        let _ = unique;
    }

    /// INIT was negotiated (not called for a successor). No request came yet.
    fn ready(&self, negotiated: &Negotiated) {
        let _ = negotiated;
    }

    /// The mount is gone. Not sent for every unmount: a lazy one or an abort has none.
    fn destroyed(&self) {}
}

/// Why a session doesn't begin.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The request memory of a predecessor can't be used.
    #[error("request memory of the previous process: {0}")]
    Adopt(#[from] AdoptError),
    /// A thread can't be started, or a descriptor not be had.
    #[error("session: {0}")]
    Io(#[from] io::Error),
    /// There is nothing to resume: INIT was never negotiated on this mount.
    #[error("nothing to resume: the mount never had a session")]
    NothingToResume,
    /// The session was over before it began.
    #[error("session ended: {0:?}")]
    Ended(End),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The filesystem was unmounted.
    Unmounted,
    /// Somebody aborted the connection: every request fails with ENOTCONN from now on.
    Aborted,
    /// [`Session::stop`] was called; the mount is still there and waits for a successor.
    Stopped,
    /// Reading failed with this errno.
    Failed(i32),
}

/// Where a session stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    Starting,
    Ready(Negotiated),
    Ended(End),
}

/// A running session. Dropping it stops the readers and leaves the mount as it is.
pub struct Session {
    core: Arc<Core>,
    readers: Vec<JoinHandle<()>>,
    notifier: Notifier,
    state: watch::Receiver<State>,
}

impl Session {
    /// Begins to serve a mount, whatever was done on it before: negotiates INIT if that is still due, or else
    /// resumes (see [`resume`](Self::resume)). One reader is started for each descriptor of the bundle.
    ///
    /// The device must be mounted already. Of all processes that have the bundle only one may serve it at a time.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn start<H: Handler>(
        bundle: Bundle,
        options: InitOptions,
        handler: Arc<H>,
        runtime: &Handle,
    ) -> Result<Session, SessionError> {
        start(bundle, options, handler, H::handle, runtime)
    }

    /// Goes on where a predecessor (which is dead by now) stopped: does again what it read and did not answer, then
    /// asks the kernel, if it can, to send again whatever else is unanswered.
    ///
    /// # Errors
    /// [`SessionError::NothingToResume`] if INIT was never negotiated; the others as for [`start`](Self::start).
    pub fn resume<H: Handler>(
        bundle: Bundle,
        handler: Arc<H>,
        runtime: &Handle,
    ) -> Result<Session, SessionError> {
        if bundle.memory()?.negotiated().is_none() {
            return Err(SessionError::NothingToResume);
        }
        Session::start(bundle, InitOptions::default(), handler, runtime)
    }

    /// Waits until INIT is answered (at once, for a successor).
    ///
    /// # Errors
    /// [`SessionError::Ended`] if it never will be.
    pub async fn ready(&self) -> Result<Negotiated, SessionError> {
        let mut state = self.state.clone();
        let state = state.wait_for(|state| !matches!(state, State::Starting)).await;
        match state.as_deref() {
            Ok(State::Ready(negotiated)) => Ok(*negotiated),
            Ok(State::Ended(end)) => Err(SessionError::Ended(*end)),
            Ok(State::Starting) | Err(_) => Err(SessionError::Ended(End::Stopped)),
        }
    }

    /// Waits until the session is over.
    pub async fn ended(&self) -> End {
        self.watch().await
    }

    /// As [`ended`](Self::ended), for a task of its own.
    pub fn watch(&self) -> impl Future<Output = End> + Send + use<> {
        let mut state = self.state.clone();
        async move {
            let state = state.wait_for(|state| matches!(state, State::Ended(_))).await;
            match state.as_deref() {
                Ok(State::Ended(end)) => *end,
                _ => End::Stopped,
            }
        }
    }

    /// The way to tell the kernel what it must no longer keep.
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Requests that were read and are not answered yet.
    pub fn requests_under_way(&self) -> u32 {
        self.core.interrupts.under_way()
    }

    /// What it counts, also after its end.
    #[must_use]
    pub fn counters(&self) -> Arc<RequestCounters> {
        Arc::clone(&self.core.counters)
    }

    /// Reads no more requests, for a successor to read them. Those under way are still answered.
    /// Returns when all readers have ended, which takes milliseconds.
    pub fn stop(&mut self) {
        self.core.stopping.store(true, Ordering::Release);
        self.core.pool.close();
        for reader in self.readers.drain(..) {
            while !reader.is_finished() {
                // SAFETY: the thread isn't joined yet, so its id is valid; the signal's handler does nothing.
                unsafe { libc::pthread_kill(reader.as_pthread_t(), stop_signal()) };
                std::thread::sleep(STOP_SIGNAL_INTERVAL);
            }
            if reader.join().is_err() {
                tracing::error!("a thread that reads requests panicked: this is a bug, please report it");
            }
        }
    }

    /// Stops reading and waits until what is under way is answered, for at most `patience`. What isn't then is for
    /// the successor to redo. Returns how many requests that are.
    pub async fn drain(&mut self, patience: Duration) -> u32 {
        self.stop();
        let deadline = tokio::time::Instant::now() + patience;
        while self.requests_under_way() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(STOP_SIGNAL_INTERVAL).await;
        }
        self.requests_under_way()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start<H: Handler, F: Future<Output = ()> + Send + 'static>(
    bundle: Bundle,
    options: InitOptions,
    handler: Arc<H>,
    handle: fn(Arc<H>, Call) -> F,
    runtime: &Handle,
) -> Result<Session, SessionError> {
    install_stop_signal()?;
    let memory: RequestMemory = bundle.memory()?;
    let options = InitOptions { allow_idmap: options.allow_idmap && bundle.default_permissions(), ..options };
    let mut devices = bundle.into_devices();
    devices.truncate(READERS_MAX);
    let core = Arc::new(Core::new(memory, devices));
    // The handler may have a notifier, and that the core.
    let told = Arc::downgrade(&handler);
    core.tell_answered(Box::new(move |unique| {
        if let Some(handler) = told.upgrade() {
            handler.answered(unique);
        }
    }));
    let mut unfinished = core.memory.unfinished(&core.pool, core.devices.len());
    let state = core.state.subscribe();
    let notifier = Notifier::start(Arc::clone(&core))?;
    let can_resend = core.negotiated().has(InitFlags::HAS_RESEND);
    let mut resume = can_resend.then(|| notifier.clone());
    let mut session = Session { core, readers: Vec::new(), notifier, state };
    for device in 0..session.core.devices.len() as u32 {
        let reader = Reader {
            core: Arc::clone(&session.core),
            handler: Arc::clone(&handler),
            handle,
            runtime: runtime.clone(),
            options: options.clone(),
            device,
        };
        let (unfinished, resume) = (std::mem::take(&mut unfinished), resume.take());
        let name = format!("fuse-{device}");
        let thread = std::thread::Builder::new().name(name).spawn(move || reader.run(unfinished, resume))?;
        session.readers.push(thread);
    }
    Ok(session)
}

/// The signal that ends a blocking read. Nobody else in this process may use it.
fn stop_signal() -> i32 {
    libc::SIGRTMIN() + 9
}

/// A handler that does nothing, installed without SA_RESTART: the read then returns EINTR.
fn install_stop_signal() -> io::Result<()> {
    extern "C" fn nothing(_: i32) {}
    static INSTALL: Once = Once::new();
    let mut result = 0;
    INSTALL.call_once(|| {
        // SAFETY: a zeroed `sigaction` is valid; the handler is async-signal-safe (it does nothing).
        result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
            libc::sigaction(stop_signal(), &action, std::ptr::null_mut())
        };
    });
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
