//! Paths of a node, and what to do about what is mounted there. Pure: the facts come from the mount table, which is all
//! that the node plugin remembers.
//!
//! | what is at the staging path | Stage | Unstage |
//! | --- | --- | --- |
//! | nothing | mount | done |
//! | our volume, which answers | done, if it is mounted as asked for | unmount, unless it is still published |
//! | our volume, which nobody serves | detach and mount | detach |
//! | our volume, which is silent | come again | unmount; the deadline decides |
//! | anything else | refuse | refuse |

use std::path::{Path, PathBuf};

use atoll_core::ids::ClusterId;
use atoll_fuse::device::mountinfo::Mount;
use atoll_fuse::device::{FILESYSTEM_TYPE, source_name};

use crate::access::Access;
use crate::error::{CsiError, Pending};
use crate::mount_flags::MountFlags;

/// Bytes of a path at most, by the system.
const PATH_BYTES_MAX: usize = 4095;

/// An absolute path without `.` and `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodePath(PathBuf);

impl NodePath {
    /// Parses the field of this name.
    ///
    /// # Errors
    /// [`CsiError::Missing`] or [`CsiError::Invalid`].
    pub fn parse(field: &'static str, text: &str) -> Result<NodePath, CsiError> {
        if text.is_empty() {
            return Err(CsiError::Missing(field));
        }
        let plain = text.split('/').skip(1).all(|part| part != "." && part != "..");
        if !text.starts_with('/') || !plain || text.len() > PATH_BYTES_MAX || text.contains('\0') {
            return Err(CsiError::Invalid(format!("{field} isn't an absolute path: '{text}'")));
        }
        // Doubled and closing slashes go.
        Ok(NodePath(Path::new(text).components().collect()))
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path, where one is kept.
    #[must_use]
    pub fn to_path_buf(&self) -> PathBuf {
        self.0.clone()
    }
}

impl std::fmt::Display for NodePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// What a volume's mount is called in the mount table: its cluster and its handle, so that the table says which volume a
/// mount is.
#[must_use]
pub fn source(cluster: ClusterId, volume: &str) -> String {
    format!("{}:{volume}", source_name(cluster))
}

/// Whether a mount is this volume, of whichever cluster.
#[must_use]
pub fn is_volume(mount: &Mount, volume: &str) -> bool {
    mount.filesystem == FILESYSTEM_TYPE
        && mount.source.strip_suffix(volume).is_some_and(|rest| rest.ends_with(':'))
}

/// The uppermost mount at a path.
#[must_use]
pub fn uppermost<'a>(table: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    table.iter().rfind(|mount| mount.path == path)
}

/// Whether somebody serves a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// `ENOTCONN`: no process has its device open any more.
    Dead,
    /// No answer in time.
    Silent,
}

/// What Stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing: it is done.
    Done,
    /// Mount.
    Mount,
    /// Detach the dead mount, then mount.
    Replace,
}

/// Decides about a staging path. `found` is the uppermost mount there, `liveness` what it answered. On a node without SELinux a
/// context means nothing.
///
/// # Errors
/// See the module's table.
pub fn plan_stage(
    found: Option<&Mount>,
    liveness: Liveness,
    source: &str,
    flags: &MountFlags,
    has_selinux: bool,
) -> Result<Stage, CsiError> {
    let Some(found) = found else { return Ok(Stage::Mount) };
    if found.filesystem != FILESYSTEM_TYPE || found.source != source {
        return Err(occupied(found));
    }
    match liveness {
        Liveness::Dead => Ok(Stage::Replace),
        Liveness::Silent => Err(silent(found)),
        Liveness::Alive => match differences(found, flags, has_selinux) {
            none if none.is_empty() => Ok(Stage::Done),
            differences => Err(CsiError::Exists(format!(
                "{} is already staged on this node, {}: all pods that use it here have to end before it can be mounted in \
                 another way",
                found.path.display(),
                differences.join(", ")
            ))),
        },
    }
}

/// In what a mount isn't what the flags ask for, as far as the mount table tells: how it is mounted.
fn differences(found: &Mount, flags: &MountFlags, has_selinux: bool) -> Vec<String> {
    let mut differences = Vec::new();
    for (wanted, set, unset) in [
        (flags.read_only, "ro", "read-write"),
        (flags.nosuid, "nosuid", "suid"),
        (flags.nodev, "nodev", "dev"),
        (flags.noexec, "noexec", "exec"),
        (flags.noatime, "noatime", "relatime"),
    ] {
        let is = found.has_option(set);
        if is != wanted {
            differences.push(if is { set } else { unset }.to_owned());
        }
    }
    let (is, wanted) = (found.context(), flags.context.as_deref());
    if has_selinux && is != wanted {
        differences.push(is.map_or("without a context".to_owned(), |is| format!("context={is}")));
    }
    differences
}

/// What Unstage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unstage {
    /// Nothing is mounted; its client may still be ending.
    Done,
    /// Unmount.
    Unmount,
    /// Detach what nobody serves.
    Detach,
}

/// Decides about a staging path that has to be free.
///
/// # Errors
/// [`Pending::NotYet`] while it is published somewhere on this node; [`CsiError::Precondition`] if something else is there.
pub fn plan_unstage(
    table: &[Mount],
    staging: &Path,
    volume: &str,
    liveness: Liveness,
) -> Result<Unstage, CsiError> {
    let Some(found) = uppermost(table, staging) else { return Ok(Unstage::Done) };
    if !is_volume(found, volume) {
        return Err(occupied(found));
    }
    if liveness == Liveness::Dead {
        return Ok(Unstage::Detach);
    }
    match binds(table, found).find(|bind| bind.path != staging) {
        None => Ok(Unstage::Unmount),
        Some(bind) => {
            Err(Pending::NotYet(format!("volume {volume} is still published at {}", bind.path.display()))
                .into())
        }
    }
}

/// What Publish does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// Nothing: it is done.
    Done,
    /// Bind.
    Bind,
    /// Detach what is left of a dead mount of this volume, then bind.
    Rebind,
}

/// Decides about a target path; `staged` is the volume's living mount. The table of the specification ("NodePublishVolume,
/// second call"), with one addition: what a dead mount of the volume left at the target is replaced.
///
/// # Errors
/// [`CsiError::Exists`] for other arguments at the same target, [`CsiError::Precondition`] for a second target of a volume
/// that may have one, or when something else is mounted there.
pub fn plan_publish(
    table: &[Mount],
    staged: &Mount,
    target: &Path,
    volume: &str,
    access: Access,
    read_only: bool,
) -> Result<Publish, CsiError> {
    let found = uppermost(table, target);
    if let Some(found) = found.filter(|found| found.device == staged.device) {
        if found.read_only != read_only {
            return Err(CsiError::Exists(format!(
                "{} is already published, {}",
                target.display(),
                if read_only { "read-write" } else { "read-only" }
            )));
        }
        return Ok(Publish::Done);
    }
    if let Some(other) = binds(table, staged).find(|bind| bind.path != staged.path && bind.path != target)
        && access == Access::SingleWriter
    {
        return Err(CsiError::Precondition(format!(
            "volume {volume} can be published only once and is published at {}",
            other.path.display()
        )));
    }
    match found {
        None => Ok(Publish::Bind),
        // Not the living mount's device: an earlier one of this volume.
        Some(found) if is_volume(found, volume) => Ok(Publish::Rebind),
        Some(found) => Err(occupied(found)),
    }
}

/// What Unpublish does with what is at the target; called again until nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpublish {
    /// Nothing is mounted: the folder can go.
    RemoveFolder,
    /// Unmount the uppermost.
    Unmount,
}

/// Decides about a target that has to be free.
///
/// # Errors
/// [`CsiError::Precondition`] if something that isn't the volume is mounted there.
pub fn plan_unpublish(table: &[Mount], target: &Path, volume: &str) -> Result<Unpublish, CsiError> {
    match uppermost(table, target) {
        None => Ok(Unpublish::RemoveFolder),
        Some(found) if is_volume(found, volume) => Ok(Unpublish::Unmount),
        Some(found) => Err(occupied(found)),
    }
}

/// All mounts of the same filesystem.
fn binds<'a>(table: &'a [Mount], mount: &Mount) -> impl Iterator<Item = &'a Mount> {
    let device = mount.device;
    table.iter().filter(move |other| other.device == device)
}

fn occupied(found: &Mount) -> CsiError {
    CsiError::Precondition(format!(
        "something else is mounted at {} ({} from {}): unmount it first",
        found.path.display(),
        found.filesystem,
        found.source
    ))
}

fn silent(found: &Mount) -> CsiError {
    Pending::NotYet(format!(
        "the mount at {} doesn't respond; is the volume's cluster reachable from this node?",
        found.path.display()
    ))
    .into()
}

#[cfg(test)]
mod tests;
