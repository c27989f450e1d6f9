//! Telling the kernel what it must no longer keep.
//!
//! A notification is a write to the device that can wait inside the kernel: one about an entry takes the parent's inode
//! lock, which a lookup, create or rename holds *while it waits for our answer*; one about data waits for pages that
//! are being read *from us*, and writes dirty pages of mappings *to us*. Sent from a thread that also serves requests,
//! each of these can wait for itself. So notifications have threads of their own, and callers wait for the outcome
//! without holding anything that serving a request needs.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::InitFlags;
use crate::abi::Pod;
use crate::abi::flags::EXPIRE_ONLY;
use crate::abi::opcode::notify;
use crate::abi::output::*;
use crate::session::core::Core;

/// Notifications that wait for a thread. More make their senders wait.
const QUEUE_MAX: usize = 1024;
/// Threads: one that waits for an inode must not hold up what is about another.
const THREADS: usize = 4;
/// Data of one STORE, bytes.
pub const STORE_BYTES_MAX: usize = 1 << 20;

/// Sends notifications. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    queue: mpsc::Sender<Job>,
    core: Arc<Core>,
}

struct Job {
    notification: Notification,
    done: oneshot::Sender<io::Result<()>>,
}

enum Notification {
    InvalInode { inode: u64, offset: i64, length: i64 },
    InvalEntry { parent: u64, name: Bytes, flags: u32 },
    Delete { parent: u64, child: u64, name: Bytes },
    Store { inode: u64, offset: u64, data: Bytes },
    Resend,
}

impl Notifier {
    /// Starts the threads. They end when the last notifier is dropped.
    pub(crate) fn start(core: Arc<Core>) -> io::Result<Notifier> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..THREADS {
            let (core, jobs) = (Arc::clone(&core), Arc::clone(&jobs));
            std::thread::Builder::new()
                .name(format!("fuse-notify-{number}"))
                .spawn(move || send_all(&core, &jobs))?;
        }
        Ok(Notifier { queue, core })
    }

    /// Drops the inode's attributes, and its pages in `length` bytes from `offset` (0: all that follow; a negative
    /// offset: none). Dirty pages are written to us before this returns, pages that are being read are waited for.
    ///
    /// # Errors
    /// The kernel's; an inode that it doesn't know is none.
    pub async fn inval_inode(&self, inode: u64, offset: i64, length: i64) -> io::Result<()> {
        self.send(Notification::InvalInode { inode, offset, length }).await
    }

    /// Drops a name, and unmounts what is mounted below it: to be avoided in favour of
    /// [`expire_entry`](Self::expire_entry).
    ///
    /// # Errors
    /// The kernel's; a name that it doesn't know is none.
    pub async fn inval_entry(&self, parent: u64, name: Bytes) -> io::Result<()> {
        self.send(Notification::InvalEntry { parent, name, flags: 0 }).await
    }

    /// Makes the kernel look a name up again when it is used next.
    ///
    /// # Errors
    /// `Unsupported` if the kernel can't (before 6.2); otherwise the kernel's. A name that it doesn't know is none.
    pub async fn expire_entry(&self, parent: u64, name: Bytes) -> io::Result<()> {
        if !self.core.negotiated().has(InitFlags::HAS_EXPIRE_ONLY) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.send(Notification::InvalEntry { parent, name, flags: EXPIRE_ONLY }).await
    }

    /// Drops a name that was removed, and tells those who watch the directory.
    ///
    /// # Errors
    /// The kernel's; a name that it doesn't know is none.
    pub async fn delete(&self, parent: u64, child: u64, name: Bytes) -> io::Result<()> {
        self.send(Notification::Delete { parent, child, name }).await
    }

    /// Puts data into the inode's pages. At most [`STORE_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// `InvalidInput` for more; otherwise the kernel's. An inode that it doesn't know is none.
    pub async fn store(&self, inode: u64, offset: u64, data: Bytes) -> io::Result<()> {
        if data.len() > STORE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.send(Notification::Store { inode, offset, data }).await
    }

    /// Makes the kernel send all unanswered requests again. The predecessor that read them must be dead.
    pub(crate) async fn resend(&self) -> io::Result<()> {
        self.send(Notification::Resend).await
    }

    async fn send(&self, notification: Notification) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.queue.send(Job { notification, done }).await.map_err(|_| gone())?;
        match outcome.await.map_err(|_| gone())? {
            // It doesn't know what we want it to forget.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

fn send_all(core: &Core, jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // The lock is held while waiting for a job, and given up before the job is done.
        let Some(job) = jobs.lock().blocking_recv() else { return };
        // Nobody waits any more if the caller was dropped; the kernel has been told all the same.
        let _ = job.done.send(write(core, &job.notification));
    }
}

fn write(core: &Core, notification: &Notification) -> io::Result<()> {
    let send = |code: i32, parts: &[&[u8]]| {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        core.write_notification(code, &slices)
    };
    match notification {
        Notification::InvalInode { inode, offset, length } => {
            let out = NotifyInvalInode { ino: *inode, off: *offset, len: *length };
            send(notify::INVAL_INODE, &[out.as_bytes()])
        }
        Notification::InvalEntry { parent, name, flags } => {
            let out = NotifyInvalEntry { parent: *parent, namelen: name.len() as u32, flags: *flags };
            send(notify::INVAL_ENTRY, &[out.as_bytes(), name, b"\0"])
        }
        Notification::Delete { parent, child, name } => {
            let namelen = name.len() as u32;
            let out = NotifyDelete { parent: *parent, child: *child, namelen, padding: 0 };
            send(notify::DELETE, &[out.as_bytes(), name, b"\0"])
        }
        Notification::Store { inode, offset, data } => {
            let size = data.len() as u32;
            let out = NotifyStore { nodeid: *inode, offset: *offset, size, padding: 0 };
            send(notify::STORE, &[out.as_bytes(), data])
        }
        Notification::Resend => send(notify::RESEND, &[]),
    }
}
