//! Is this a place to mount on?

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atoll_core::ids::ClusterId;
use atoll_fuse::device::{self, MountError};

use crate::exit::{Code, Context, Failure};

/// How long a killed process may take until its mount is dead.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
const ENDING_POLL: Duration = Duration::from_millis(20);

/// What was found at a mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An empty folder: mount here.
    Free,
    /// A mount of this very cluster that answers.
    OursAlive,
}

/// Looks at the place for a mount of `cluster`. A dead mount of the same cluster, which a killed process left
/// behind, is detached.
///
/// # Errors
/// If something else is mounted there, or it is no empty folder.
pub fn prepare(path: &Path, cluster: ClusterId, create: bool) -> Result<(PathBuf, Found), Failure> {
    let path = absolute(path)?;
    let source = device::source_name(cluster);
    if let Some(mount) = device::find_mount(&path).context("mount table")? {
        if mount.source != source {
            return Err(Failure::refused(format_args!(
                "{} is already mounted ({} from {}): unmount it first, or choose another mount point",
                path.display(),
                mount.filesystem,
                mount.source
            )));
        }
        if !detach_dead(&path, &source)? {
            return Ok((path, Found::OursAlive));
        }
    }
    match fs::metadata(&path) {
        Ok(found) if !found.is_dir() => Err(Failure::refused(format_args!(
            "{} isn't a directory: name an empty directory",
            path.display()
        ))),
        Ok(_) => {
            let mut entries = fs::read_dir(&path)
                .map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
            if entries.next().is_some() {
                return Err(Failure::refused(format_args!(
                    "{} isn't empty, and a mount would hide its content: name an empty directory",
                    path.display()
                )));
            }
            Ok((path, Found::Free))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
            fs::create_dir_all(&path)
                .map_err(|error| Failure::failed(format_args!("can't create {}: {error}", path.display())))?;
            Ok((path, Found::Free))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::new(
            Code::NotFound,
            format_args!("{} doesn't exist: create the directory first", path.display()),
        )),
        Err(error) => Err(Failure::failed(format_args!("{}: {error}", path.display()))),
    }
}

/// Detaches every dead mount of `source` at the path: several may lie on top of one another after several crashes.
/// A process that was killed this very moment may still be ending, so one that seems to live is looked at again for a
/// while. False if it does live.
///
/// # Errors
/// If the mount table can't be read, or something else is mounted there.
pub fn detach_dead(path: &Path, source: &str) -> Result<bool, Failure> {
    let began = Instant::now();
    loop {
        match device::detach_dead(path, source) {
            Ok(true) => {
                tracing::warn!(path = %path.display(), "detached a dead mount of an earlier process");
            }
            Ok(false) => return Ok(true),
            Err(MountError::Alive { .. }) if began.elapsed() < ENDING_TIMEOUT => {
                std::thread::sleep(ENDING_POLL)
            }
            Err(MountError::Alive { .. }) => return Ok(false),
            Err(error) => return Err(Failure::failed(error)),
        }
    }
}

/// The path from the root, with links in its parents resolved. The last part is left alone: to look at it could
/// hang on a dead mount.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path).context(path.display())?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path) };
    Ok(fs::canonicalize(parent).unwrap_or_else(|_| parent.to_owned()).join(name))
}
