//! A whole cluster in one process: one metadata server, as many storage servers as copies, and the mount.

mod down;
mod serve;
pub mod state;
mod status;
mod up;

use std::path::{Path, PathBuf};

use crate::cli::LocalCommand;
use crate::exit::{Code, Failure, Outcome};
use crate::mountpoint::absolute;

/// Carries out a `local` command.
///
/// # Errors
/// With a message that says what to do.
pub fn run(command: LocalCommand) -> Outcome {
    match command {
        LocalCommand::Up(args) => up::up(args),
        LocalCommand::Down(args) => down::down(&args),
        LocalCommand::Status(args) => status::status(&args),
    }
}

/// The data folder that belongs to a mount point: the one that was named, the one of the process that serves
/// the mount, or the default one.
fn data_folder(mountpoint: &Path, named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return absolute(named);
    }
    let mount = atoll_fuse::device::find_mount(mountpoint).ok().flatten();
    if let Some(mount) = mount
        && let Some(id) = mount.source.strip_prefix("atoll:").and_then(|id| id.parse().ok())
        && let Some(running) = state::running(id)
    {
        return Ok(running.data);
    }
    Ok(state::default_data(mountpoint))
}

/// The cluster of a mount point, and the process that serves it if one does.
fn find(mountpoint: &Path, named: Option<&Path>) -> Result<(state::Folder, Option<state::Running>), Failure> {
    let mountpoint = absolute(mountpoint)?;
    let path = data_folder(&mountpoint, named)?;
    let folder = state::open(&path)?.ok_or_else(|| {
        Failure::new(
            Code::NotFound,
            format_args!(
                "there is no local cluster for {} (looked in {}): start one with 'atoll-fs local up', or \
                 name its directory with --data",
                mountpoint.display(),
                path.display()
            ),
        )
    })?;
    let running = state::running(folder.id);
    if let Some(running) = &running
        && running.mountpoint != mountpoint
    {
        return Err(Failure::new(
            Code::NotFound,
            format_args!(
                "the cluster in {} is mounted at {}, not at {}",
                path.display(),
                running.mountpoint.display(),
                mountpoint.display()
            ),
        ));
    }
    Ok((folder, running))
}
