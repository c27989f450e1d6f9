//! The system calls of mounting. Each runs in a thread of its own with a deadline, since any of them can hang on a mount
//! that nobody serves; none of them removes a folder that isn't empty.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_fuse::bundle::Bundle;
use atoll_fuse::device::mountinfo::{self, Mount};
use atoll_fuse::device::{self, Device, MountOptions};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;

use crate::error::{CsiError, Pending};
use crate::target_path::Liveness;

/// How long stat(2) on a mount may take until it counts as silent.
const STAT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long statvfs(2) may take: kubelet asks for it in a loop over all volumes.
const STATFS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long mount(2) and umount(2) may take; unmounting waits for what was written by mmap.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// Permissions of a folder that is mounted on: nobody writes into it while nothing is mounted.
const BARE_FOLDER_MODE: u32 = 0o000;

/// Use of a filesystem, as statvfs(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes: total, available, used.
    pub bytes: (u64, u64, u64),
    /// Inodes: total, available, used.
    pub inodes: (u64, u64, u64),
}

/// System calls that have not come back, by what and where they are.
static UNDER_WAY: Mutex<BTreeSet<(&'static str, PathBuf)>> = Mutex::new(BTreeSet::new());

/// A system call that has not come back.
struct UnderWay(&'static str, PathBuf);

impl UnderWay {
    /// `None` if there is one of this kind at this place already.
    fn enter(what: &'static str, path: &Path) -> Option<UnderWay> {
        let is_first = UNDER_WAY.lock().insert((what, path.to_owned()));
        is_first.then(|| UnderWay(what, path.to_owned()))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.lock().remove(&(self.0, std::mem::take(&mut self.1)));
    }
}

/// Runs a system call that may hang. It is left behind when it does: one of a kind at a place, however often it is tried again.
async fn in_time<T: Send + 'static>(
    what: &'static str,
    path: &Path,
    limit: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let under_way = UnderWay::enter(what, path)?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name(what.to_owned()).spawn(move || {
        let result = call();
        drop(under_way);
        let _ = sender.send(result);
    });
    if let Err(error) = thread {
        tracing::error!(what, path = %path.display(), %error, "no thread is to be had");
        return None;
    }
    tokio::time::timeout(limit, receiver).await.ok()?.ok()
}

fn late(what: &str, path: &Path) -> CsiError {
    Pending::NotYet(format!("{what} {}: no response within the timeout", path.display())).into()
}

fn failed(what: &str, path: &Path, error: &dyn std::fmt::Display) -> CsiError {
    CsiError::Internal(format!("{what} {}: {error}", path.display()))
}

/// The mount table.
///
/// # Errors
/// It can't be read.
pub fn table() -> Result<Vec<Mount>, CsiError> {
    let table = fs::read("/proc/self/mountinfo")
        .map_err(|error| CsiError::Internal(format!("mount table: {error}")))?;
    Ok(mountinfo::parse(&table).collect())
}

/// Whether somebody serves the mount at a path. One caller at a time of each `kind` asks; to others the mount is silent.
///
/// # Errors
/// stat(2) failed otherwise.
pub async fn liveness_of(kind: &'static str, path: &Path) -> Result<Liveness, CsiError> {
    let asked = path.to_owned();
    match in_time(kind, path, STAT_TIMEOUT, move || fs::metadata(asked).map(drop)).await {
        None => Ok(Liveness::Silent),
        Some(Ok(())) => Ok(Liveness::Alive),
        Some(Err(error)) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(Liveness::Dead),
        Some(Err(error)) => Err(failed("stat", path, &error)),
    }
}

/// Whether somebody serves the mount at a path, for the calls of a volume, which come one after the other.
///
/// # Errors
/// stat(2) failed otherwise.
pub async fn liveness(path: &Path) -> Result<Liveness, CsiError> {
    liveness_of("stat", path).await
}

/// Use of the filesystem at a path.
///
/// # Errors
/// [`Pending::NotYet`] if it hangs.
pub async fn usage(path: &Path) -> Result<Usage, CsiError> {
    let asked = path.to_owned();
    let found = in_time("statfs", path, STATFS_TIMEOUT, move || statvfs(&asked)).await;
    let found = found.ok_or_else(|| late("statfs", path))?.map_err(|error| failed("statfs", path, &error))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    let inodes = (found.files(), found.files_available(), found.files().saturating_sub(found.files_free()));
    let used = found.blocks().saturating_sub(found.blocks_free());
    Ok(Usage { bytes: (bytes(found.blocks()), bytes(found.blocks_available()), bytes(used)), inodes })
}

/// Makes the folder if it isn't there (its parent is) and makes sure that it is one, and empty: to mount over files would
/// hide them.
///
/// # Errors
/// [`CsiError::Precondition`] if it is something else or holds something.
pub fn prepare_folder(path: &Path) -> Result<(), CsiError> {
    match fs::DirBuilder::new().mode(BARE_FOLDER_MODE).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("creating directory", path, &error)),
    }
    let found = fs::symlink_metadata(path).map_err(|error| failed("stat", path, &error))?;
    if !found.is_dir() {
        return Err(CsiError::Precondition(format!("{} isn't a directory: move it away", path.display())));
    }
    let mut entries = fs::read_dir(path).map_err(|error| failed("reading directory", path, &error))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(CsiError::Precondition(format!(
            "directory {} isn't empty, and a mount would hide its content: move the content away",
            path.display()
        ))),
    }
}

/// Removes an empty folder; fine if there is none.
///
/// # Errors
/// [`CsiError::Precondition`] if it isn't empty: what is in it is somebody's.
pub fn remove_folder(path: &Path) -> Result<(), CsiError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            Err(CsiError::Precondition(format!(
                "directory {} isn't empty though nothing is mounted there: check its content and remove it \
                 yourself",
                path.display()
            )))
        }
        Err(error) => Err(failed("removing directory", path, &error)),
    }
}

/// Mounts a FUSE filesystem that nobody serves yet, with `readers` descriptors for whoever will.
///
/// # Errors
/// The system calls'. Nothing is mounted then.
pub async fn mount_device(path: &Path, options: MountOptions, readers: usize) -> Result<Bundle, CsiError> {
    let place = path.to_owned();
    let mounted = in_time("mount", path, MOUNT_TIMEOUT, move || {
        let device = Device::open().map_err(|error| failed("opening", Path::new("/dev/fuse"), &error))?;
        device.mount(&place, &options).map_err(|error| CsiError::Internal(error.to_string()))?;
        let layout = atoll_fuse::Layout::default();
        Bundle::new(device, readers, layout, &options).map_err(|error| {
            if let Err(error) = device::unmount(&place, true) {
                tracing::warn!(%error, "a failed mount could not be undone");
            }
            failed("preparing", &place, &error)
        })
    });
    mounted.await.ok_or_else(|| late("mounting", path))?
}

/// Binds a mount to a second place, read-only or as it is.
///
/// # Errors
/// The system calls'. Nothing is bound then.
pub async fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), CsiError> {
    let (source, target) = (from.to_owned(), to.to_owned());
    let bound = in_time("bind", to, MOUNT_TIMEOUT, move || -> Result<(), CsiError> {
        let nothing: Option<&str> = None;
        let change = |flags: MsFlags| mount(Some(&source), &target, nothing, flags, nothing);
        change(MsFlags::MS_BIND).map_err(|error| failed("binding to", &target, &error))?;
        if read_only {
            // A remount sets all flags of the mount anew, so those of the staged one are named again.
            let flags = kept_flags(&source)? | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            change(flags).map_err(|error| {
                if let Err(error) = device::unmount(&target, true) {
                    tracing::warn!(%error, "a failed mount could not be undone");
                }
                failed("making read-only", &target, &error)
            })?;
        }
        Ok(())
    });
    bound.await.ok_or_else(|| late("binding to", to))?
}

/// The flags of a mount that a remount has to repeat.
fn kept_flags(path: &Path) -> Result<MsFlags, CsiError> {
    use nix::sys::statvfs::FsFlags;
    let found = statvfs(path).map_err(|error| failed("statfs", path, &error))?.flags();
    let kept = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    Ok(kept.into_iter().filter(|(set, _)| found.contains(*set)).map(|(_, flag)| flag).collect())
}

/// Unmounts what is at a path; `detach` takes it out of the tree at once, which is for what nobody serves.
///
/// # Errors
/// [`Pending::NotYet`] if it is in use or hangs.
pub async fn unmount(path: &Path, detach: bool) -> Result<(), CsiError> {
    let place: PathBuf = path.to_owned();
    let result = in_time("unmount", path, MOUNT_TIMEOUT, move || device::unmount(&place, detach)).await;
    match result.ok_or_else(|| late("unmounting", path))? {
        Ok(()) => Ok(()),
        Err(device::MountError::System { error, .. }) => match error.raw_os_error() {
            Some(libc::EBUSY) => Err(Pending::NotYet(format!("{} is in use", path.display())).into()),
            // Not a mount any more: somebody else was quicker.
            Some(libc::EINVAL | libc::ENOENT) => Ok(()),
            _ => Err(failed("unmounting", path, &error)),
        },
        Err(error) => Err(CsiError::Internal(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_holds_something_is_neither_mounted_on_nor_removed() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("target");
        prepare_folder(&folder).unwrap();
        prepare_folder(&folder).unwrap();
        fs::write(folder.join("file"), b"somebody's").unwrap();
        assert!(matches!(prepare_folder(&folder), Err(CsiError::Precondition(_))));
        assert!(matches!(remove_folder(&folder), Err(CsiError::Precondition(_))));
        assert!(folder.join("file").exists());
        fs::remove_file(folder.join("file")).unwrap();
        remove_folder(&folder).unwrap();
        remove_folder(&folder).unwrap();
        fs::write(&folder, b"a file").unwrap();
        assert!(matches!(prepare_folder(&folder), Err(CsiError::Precondition(_))));
        fs::remove_file(&folder).unwrap();
        std::os::unix::fs::symlink("/", &folder).unwrap();
        assert!(matches!(prepare_folder(&folder), Err(CsiError::Precondition(_))), "a link leads elsewhere");
        assert!(prepare_folder(&place.path().join("no/parent")).is_err());
    }

    #[tokio::test]
    async fn a_call_that_hangs_is_left_behind_once() {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let place = Path::new("/hangs");
        let within = Duration::from_secs(60);
        assert_eq!(in_time("test", place, Duration::ZERO, move || wait.recv().is_ok()).await, None);
        for _ in 0..3 {
            assert_eq!(in_time("test", place, within, || 7).await, None, "there is one already");
        }
        assert_eq!(in_time("test", Path::new("/other"), within, || 7).await, Some(7));
        release.send(()).unwrap();
        while in_time("test", place, within, || 7).await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
