//! The FUSE device and its mounts: open, mount, clone, find, detach, abort. Nothing here serves a request.

pub mod mountinfo;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;

use atoll_core::ids::ClusterId;
use mountinfo::Mount;

/// The device.
const DEVICE: &str = "/dev/fuse";
/// The filesystem type that mounts show: `fuse.` and our subtype.
pub const FILESYSTEM_TYPE: &str = "fuse.atoll";
/// Where the kernel lists its FUSE connections, once `fusectl` is mounted there.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// How long stat(2) on an old mount may take before the mount counts as alive but slow.
const STAT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a mount of a cluster's volume is called (`fsname`, the first column of `df`).
pub fn source_name(cluster: ClusterId) -> String {
    format!("atoll:{cluster}")
}

/// How a filesystem is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What is mounted, as it appears in the mount table: see [`source_name`].
    pub source: String,
    /// Users other than the one who mounts may use it.
    pub allow_other: bool,
    /// The kernel checks permissions. Without it every access is allowed that the server allows.
    pub default_permissions: bool,
    /// Set-id bits mean nothing.
    pub nosuid: bool,
    /// Device nodes mean nothing.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Nothing can be changed.
    pub read_only: bool,
    /// Shown in the mount table as such. Access times are the server's, who has to leave them as they are.
    pub noatime: bool,
    /// The SELinux context of all files. Left out on a machine without SELinux, as mount(8) does.
    pub context: Option<String>,
    /// Bytes of one READ at most; 0 leaves it to the kernel (the pages of one request).
    pub max_read: u32,
}

impl MountOptions {
    /// The options of a cluster's volume: for all users, permissions checked by the kernel.
    pub fn new(cluster: ClusterId) -> MountOptions {
        MountOptions {
            source: source_name(cluster),
            allow_other: true,
            default_permissions: true,
            nosuid: false,
            nodev: false,
            noexec: false,
            read_only: false,
            noatime: false,
            context: None,
            max_read: 0,
        }
    }

    fn flags(&self) -> MsFlags {
        [
            (self.nosuid, MsFlags::MS_NOSUID),
            (self.nodev, MsFlags::MS_NODEV),
            (self.noexec, MsFlags::MS_NOEXEC),
            (self.read_only, MsFlags::MS_RDONLY),
            (self.noatime, MsFlags::MS_NOATIME),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(MsFlags::empty(), |all, (_, flag)| all | flag)
    }

    /// The text that mount(2) hands to the filesystem. `fuse.atoll` carries the subtype itself.
    fn data(&self, device: BorrowedFd<'_>) -> String {
        let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
        // `rootmode` is checked against nothing but the type of the mount point: a directory.
        let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
        if self.allow_other {
            data.push_str(",allow_other");
        }
        if self.default_permissions {
            data.push_str(",default_permissions");
        }
        if self.max_read > 0 {
            data.push_str(&format!(",max_read={}", self.max_read));
        }
        // The kernel's security module takes it out again, before the filesystem sees the rest.
        if let Some(context) = self.context.as_ref().filter(|_| has_selinux()) {
            data.push_str(&format!(",context=\"{context}\""));
        }
        data
    }
}

/// Whether SELinux is on: only then does the kernel know its filesystem.
pub fn has_selinux() -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().next_back() == Some("selinuxfs"))
}

/// Why a mount can't be made or taken away.
#[derive(Debug, Error)]
pub enum MountError {
    /// The system call's error.
    #[error("{what} {path}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        error: io::Error,
    },
    /// Something that isn't a dead mount of this cluster is mounted there.
    #[error("{path} is already a mount of {source_name} ({filesystem})")]
    Occupied {
        /// Where.
        path: PathBuf,
        /// What is mounted.
        source_name: String,
        /// Its type.
        filesystem: String,
    },
    /// This cluster's volume is mounted there and somebody serves it.
    #[error("{path} is already a working mount of this volume")]
    Alive {
        /// Where.
        path: PathBuf,
    },
}

impl MountError {
    fn system(what: &'static str, path: &Path, error: impl Into<io::Error>) -> MountError {
        MountError::System { what, path: path.to_owned(), error: error.into() }
    }
}

/// An open FUSE device. It can be kept by a process that never serves it, and must be before it is mounted if the mount
/// is to survive the death of the process that mounts.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    /// Opens the device.
    ///
    /// # Errors
    /// No such device, or no permission.
    pub fn open() -> io::Result<Device> {
        Ok(Device(OpenOptions::new().read(true).write(true).open(DEVICE)?.into()))
    }

    /// An open descriptor that was received from another process.
    pub fn from_fd(descriptor: OwnedFd) -> Device {
        Device(descriptor)
    }

    /// The descriptor itself.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Mounts it. The kernel sends INIT at once; programs that use the mount wait until somebody serves it.
    /// Needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// The system call's.
    pub fn mount(&self, path: &Path, options: &MountOptions) -> Result<(), MountError> {
        let data = options.data(self.0.as_fd());
        mount(
            Some(options.source.as_str()),
            path,
            Some(FILESYSTEM_TYPE),
            options.flags(),
            Some(data.as_str()),
        )
        .map_err(|error| MountError::system("mount", path, error))
    }

    /// Another descriptor of the same mount, with a list of its own of requests that were read from it. The device
    /// must be mounted. When the last copy of a clone is closed its unanswered requests fail, so clones are kept
    /// wherever the device is.
    ///
    /// # Errors
    /// `EINVAL` or `EPERM` (by kernel version) if the device isn't mounted; otherwise the system calls'.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        /// `_IOR(229, 0, uint32_t)`
        const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;
        let clone = Device::open()?.0;
        let source = self.0.as_raw_fd() as u32;
        // SAFETY: the ioctl reads one u32, which outlives the call.
        let result = unsafe { libc::ioctl(clone.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const source) };
        if result == 0 { Ok(clone) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Unmounts. With `lazily` it is out of the tree at once and ends when nobody uses it any more.
///
/// # Errors
/// `EBUSY` if it is in use; otherwise the system call's.
pub fn unmount(path: &Path, lazily: bool) -> Result<(), MountError> {
    let detach = if lazily { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    umount2(path, detach | MntFlags::UMOUNT_NOFOLLOW)
        .map_err(|error| MountError::system("unmount", path, error))
}

/// The uppermost mount on exactly this path, if any. Never touches the path itself, which may hang.
///
/// # Errors
/// The mount table can't be read.
pub fn find_mount(path: &Path) -> io::Result<Option<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(mountinfo::parse(&table).rfind(|mount| mount.path == path))
}

/// All mounts of our type.
///
/// # Errors
/// The mount table can't be read.
pub fn our_mounts() -> io::Result<Vec<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(mountinfo::parse(&table).filter(|mount| mount.filesystem == FILESYSTEM_TYPE).collect())
}

/// Makes `path` ready to be mounted on: detaches a dead mount of the same source, and nothing else. A mount is dead when
/// stat(2) says `ENOTCONN`: no process has its device open any more. Returns whether there was one.
///
/// # Errors
/// [`MountError::Occupied`] and [`MountError::Alive`] when the mount there has to stay.
pub fn detach_dead(path: &Path, source: &str) -> Result<bool, MountError> {
    let found = find_mount(path).map_err(|error| MountError::system("look up", path, error))?;
    let Some(found) = found else { return Ok(false) };
    if found.filesystem != FILESYSTEM_TYPE || found.source != source {
        let (path, source_name, filesystem) = (path.to_owned(), found.source, found.filesystem);
        return Err(MountError::Occupied { path, source_name, filesystem });
    }
    match stat_with_patience(path) {
        Some(Err(error)) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            unmount(path, true)?;
            Ok(true)
        }
        _ => Err(MountError::Alive { path: path.to_owned() }),
    }
}

/// stat(2) in a thread of its own: on a mount that is open but not served it waits for ever. `None` if it does; the
/// thread is left behind then, and ends with the mount.
fn stat_with_patience(path: &Path) -> Option<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        let _ = sender.send(std::fs::metadata(&path).map(drop));
    });
    receiver.recv_timeout(STAT_TIMEOUT).ok()
}

/// Aborts a connection: all its requests, waiting and future, fail with `ENOTCONN`. The way out of a mount that nobody can
/// or will serve any more. `connection` is [`Mount::connection`].
///
/// # Errors
/// `NotFound` if there is no such connection (or no `fusectl`, see [`mount_fusectl`]).
pub fn abort(connection: u32) -> io::Result<()> {
    std::fs::write(format!("{CONNECTIONS}/{connection}/abort"), b"1")
}

/// Requests of a connection that wait for an answer, queued ones included.
///
/// # Errors
/// As [`abort`].
pub fn waiting(connection: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("{CONNECTIONS}/{connection}/waiting"))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Mounts the control filesystem if it isn't.
///
/// # Errors
/// The system call's.
pub fn mount_fusectl() -> io::Result<()> {
    if find_mount(Path::new(CONNECTIONS))?.is_some() {
        return Ok(());
    }
    let nothing: Option<&str> = None;
    match mount(Some("fusectl"), CONNECTIONS, Some("fusectl"), MsFlags::empty(), nothing) {
        // Somebody else was quicker.
        Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How far the kernel reads ahead on our mounts (KiB), instead of 128: so much is one request, and a request costs the waking
/// of two threads whatever its size. With 1 MiB its requests overtake one another further than a client's own read-ahead takes
/// for a stream, and sequential reads are slower by half.
pub const READ_AHEAD_KIB: u32 = 512;

/// Has the kernel read ahead as far as [`READ_AHEAD_KIB`] on what is mounted there and was served already: INIT can only
/// lower it. Without the right to do so (root's, and a /sys that can be written) it stays as it is.
pub fn read_ahead(path: &Path) {
    let set = find_mount(path).and_then(|found| match found {
        Some(mount) => set_read_ahead(&mount, READ_AHEAD_KIB),
        None => Err(io::ErrorKind::NotFound.into()),
    });
    if let Err(error) = set {
        tracing::debug!(path = %path.display(), %error, "the kernel's read-ahead stays as it is");
    }
}

fn set_read_ahead(mount: &Mount, kib: u32) -> io::Result<()> {
    let (major, minor) = mount.device;
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
}

/// Duplicates a descriptor that is only borrowed.
pub(crate) fn duplicate(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    descriptor.try_clone_to_owned()
}

/// Takes descriptors by number, as a process inherits them.
///
/// # Safety
/// The descriptor is open, and nobody else in this process owns it.
pub unsafe fn inherited(number: i32) -> OwnedFd {
    // SAFETY: promised by the caller.
    let descriptor = unsafe { File::from_raw_fd(number) };
    descriptor.into()
}

#[cfg(test)]
mod tests;
