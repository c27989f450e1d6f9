//! The same filesystem over the `fuser` crate: a second opinion in tests, and the fallback if our own session fails on
//! some kernel (`--transport fuser`).
//!
//! What it can't do, and our own session can:
//! - **Locks**: `fuser` doesn't say whether a lock is flock(2)'s or a record lock. Record locks are the cluster's; flock(2)
//!   is left to the kernel, and holds on this node only.
//! - **Interrupts** don't reach us: a signal doesn't end a wait for a lock. A wait is given up after
//!   [`LOCK_WAIT_MAX`] with `EINTR`, as if a signal had come, and everything else waits until it is done.
//! - **Take-over**: the session begins with INIT, so the mount dies with its process.
//! - `O_TMPFILE` (`EOPNOTSUPP`), the time of birth in statx(2), expire-only notifications, supplementary groups of
//!   those who make files in set-gid directories, clearing of set-id bits together with a change of ACL.
//! - Set-id bits are cleared by the kernel with a change of mode of its own, not in one step with the write.
//! - One timeout for a new file's name and attributes: the shorter of the two.
//! - WRITE's data is copied once more, and every request is handed to the runtime.

mod convert;
mod filesystem;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use atoll_client::vfs::Vfs;
use fuser::{Config, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::device::Device;
use crate::session::InitOptions;
use filesystem::FuserFilesystem;

/// How long a lock is waited for.
pub const LOCK_WAIT_MAX: Duration = Duration::from_secs(30);

/// A session of `fuser`. It ends with the mount, and only with it: unmount to stop it.
pub struct FuserSession {
    state: watch::Receiver<State>,
}

#[derive(Clone, Debug)]
enum State {
    Starting,
    Ready,
    Ended(Option<Arc<io::Error>>),
}

impl FuserSession {
    /// Serves a device that was just mounted, with so many threads. `default_permissions` says how it was mounted.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start<V: Vfs>(
        device: Device,
        threads: usize,
        default_permissions: bool,
        options: InitOptions,
        filesystem: Arc<V>,
        runtime: &Handle,
    ) -> io::Result<FuserSession> {
        let (sender, state) = watch::channel(State::Starting);
        let options = InitOptions { allow_idmap: options.allow_idmap && default_permissions, ..options };
        let served = FuserFilesystem::new(filesystem, runtime.clone(), options);
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads.max(1));
        config.clone_fd = true;
        std::thread::Builder::new().name("fuser".to_owned()).spawn(move || {
            let session = fuser::Session::from_fd(served, device.into_fd(), SessionACL::All, config);
            let ended = session.and_then(|session| {
                sender.send_replace(State::Ready);
                session.run()
            });
            sender.send_replace(State::Ended(ended.err().map(Arc::new)));
        })?;
        Ok(FuserSession { state })
    }

    /// Waits until INIT is answered.
    ///
    /// # Errors
    /// If it never will be.
    pub async fn ready(&self) -> io::Result<()> {
        let mut state = self.state.clone();
        let state = state.wait_for(|state| !matches!(state, State::Starting)).await;
        match state.as_deref() {
            Ok(State::Ready | State::Ended(None)) => Ok(()),
            Ok(State::Ended(Some(error))) => Err(copy(error)),
            Ok(State::Starting) | Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits until the mount is gone.
    ///
    /// # Errors
    /// What ended it, if that was something else.
    pub async fn ended(&self) -> io::Result<()> {
        self.watch().await
    }

    /// As [`ended`](Self::ended), for a task of its own.
    pub fn watch(&self) -> impl Future<Output = io::Result<()>> + Send + use<> {
        let mut state = self.state.clone();
        async move {
            let state = state.wait_for(|state| matches!(state, State::Ended(_))).await;
            match state.as_deref() {
                Ok(State::Ended(Some(error))) => Err(copy(error)),
                _ => Ok(()),
            }
        }
    }
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
