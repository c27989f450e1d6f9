//! `atoll-fs local down`.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::LocalDownArgs;
use crate::exit::{Code, Context, Failure, Outcome};
use crate::local::{find, state};
use crate::mountpoint;

/// How long to wait for the process to write everything out and end.
const TIMEOUT: Duration = Duration::from_secs(120);

pub fn down(args: &LocalDownArgs) -> Outcome {
    let (folder, running) = find(&args.mountpoint, args.data.as_deref())?;
    let Some(running) = running else {
        // Nothing runs; a dead mount may be left.
        let path = mountpoint::absolute(&args.mountpoint)?;
        let source = atoll_fuse::device::source_name(folder.id);
        while atoll_fuse::device::detach_dead(&path, &source)
            .map_err(|error| Failure::failed(error.to_string()))?
        {}
        println!("not running: {}", path.display());
        return Ok(());
    };
    let pid = Pid::from_raw(running.pid as i32);
    kill(pid, Signal::SIGTERM).context("can't stop the process")?;
    let began = Instant::now();
    let mut told = false;
    while state::start_of(running.pid) == Some(running.started) {
        if began.elapsed() > TIMEOUT {
            return Err(Failure::new(
                Code::Unreachable,
                format_args!(
                    "process {} is still writing out after {} s; its log is {}",
                    running.pid,
                    TIMEOUT.as_secs(),
                    folder.path.join("log").display()
                ),
            ));
        }
        if !told && began.elapsed() > Duration::from_secs(2) {
            eprintln!("waiting for process {} to write everything out …", running.pid);
            told = true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if state::running(folder.id).is_none() {
        state::withdraw(folder.id);
    }
    let path = &running.mountpoint;
    if let Some(mount) = atoll_fuse::device::find_mount(path).context("mount table")?
        && mount.source == atoll_fuse::device::source_name(folder.id)
    {
        return Err(Failure::failed(format_args!(
            "stopped, but {} is still mounted, because a process uses it; it is unmounted when that process \
             ends",
            path.display()
        )));
    }
    println!("down: {} (the data is kept in {})", path.display(), folder.path.display());
    Ok(())
}
