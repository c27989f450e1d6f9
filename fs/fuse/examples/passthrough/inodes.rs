//! The inodes that the kernel knows. Each is held open while there are descriptors for it; from then on a new one is
//! remembered by its handle and opened again for each call, which costs a little more and needs root.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fuser::{Errno, INodeNo};
use parking_lot::RwLock;

use crate::local::{Result, check};

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 16;
/// Bytes of a handle (`MAX_HANDLE_SZ`).
const HANDLE_BYTES: usize = 128;

/// What the kernel calls `struct file_handle`.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_BYTES],
}

impl Handle {
    fn of(fd: RawFd) -> Result<Handle> {
        let mut handle = Handle { bytes: HANDLE_BYTES as u32, kind: 0, handle: [0; HANDLE_BYTES] };
        let (mut mount, flags) = (0i32, libc::AT_EMPTY_PATH);
        // SAFETY: an empty path with AT_EMPTY_PATH is the descriptor itself; both results have room.
        let result = unsafe {
            let (handle, mount) = (&raw mut handle, &raw mut mount);
            libc::syscall(libc::SYS_name_to_handle_at, fd, c"".as_ptr(), handle, mount, flags)
        };
        check(result as i32).map(|_| handle)
    }

    /// Opens it by `O_PATH`; `anchor` is any folder of its filesystem.
    fn open(&self, anchor: &OwnedFd) -> Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        // SAFETY: a handle that the kernel made; the descriptor is owned at once.
        unsafe {
            let handle = std::ptr::from_ref(self);
            let fd = libc::syscall(libc::SYS_open_by_handle_at, anchor.as_raw_fd(), handle, flags);
            check(fd as i32).map(|fd| OwnedFd::from_raw_fd(fd))
        }
    }
}

/// How an inode is reached.
enum Way {
    Open(Arc<OwnedFd>),
    Handle(Box<Handle>),
}

struct Known {
    way: Way,
    lookups: AtomicU64,
}

/// All of them, by number.
pub struct Inodes {
    root: Arc<OwnedFd>,
    /// The root once more, not by `O_PATH`: handles are opened in its filesystem.
    anchor: OwnedFd,
    shards: [RwLock<HashMap<u64, Known>>; SHARDS],
    /// How many are held open.
    open: AtomicUsize,
    open_max: usize,
}

impl Inodes {
    /// Holds at most so many open.
    pub fn new(source: &Path, open_max: usize) -> io::Result<Inodes> {
        let path = CString::new(source.as_os_str().as_bytes())?;
        let open = |flags: i32| {
            // SAFETY: a valid path; the descriptor is owned at once.
            unsafe {
                let fd = libc::open(path.as_ptr(), flags | libc::O_DIRECTORY | libc::O_CLOEXEC);
                if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
            }
        };
        Ok(Inodes {
            root: Arc::new(open(libc::O_PATH)?),
            anchor: open(libc::O_RDONLY)?,
            shards: std::array::from_fn(|_| RwLock::default()),
            open: AtomicUsize::new(0),
            open_max,
        })
    }

    fn shard(&self, ino: u64) -> &RwLock<HashMap<u64, Known>> {
        &self.shards[ino as usize % SHARDS]
    }

    /// A descriptor of one that the kernel knows.
    pub fn find(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        if ino == INodeNo::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        match &self.shard(ino.0).read().get(&ino.0).ok_or(Errno::ESTALE)?.way {
            Way::Open(fd) => Ok(Arc::clone(fd)),
            Way::Handle(handle) => handle.open(&self.anchor).map(Arc::new),
        }
    }

    /// The kernel has learnt of one, or once more of one that it knew.
    pub fn learn(&self, ino: u64, fd: OwnedFd) -> Result<()> {
        let known = |table: &HashMap<u64, Known>| {
            let inode = table.get(&ino);
            inode.map(|inode| inode.lookups.fetch_add(1, Ordering::Relaxed)).is_some()
        };
        let shard = self.shard(ino);
        if known(&shard.read()) {
            return Ok(());
        }
        let mut table = shard.write();
        if !known(&table) {
            let way = if self.open.fetch_add(1, Ordering::Relaxed) < self.open_max {
                Way::Open(Arc::new(fd))
            } else {
                self.open.fetch_sub(1, Ordering::Relaxed);
                Way::Handle(Box::new(Handle::of(fd.as_raw_fd())?))
            };
            table.insert(ino, Known { way, lookups: AtomicU64::new(1) });
        }
        Ok(())
    }

    /// The kernel has forgotten so many of its lookups.
    pub fn forget(&self, ino: u64, lookups: u64) {
        if ino == INodeNo::ROOT.0 {
            return;
        }
        let mut table = self.shard(ino).write();
        if let Some(inode) = table.get(&ino)
            && inode.lookups.fetch_sub(lookups, Ordering::Relaxed) == lookups
            && let Some(Known { way: Way::Open(_), .. }) = table.remove(&ino)
        {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
