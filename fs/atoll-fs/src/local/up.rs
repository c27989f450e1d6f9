//! `atoll-fs local up`: starts the process that serves the cluster and waits until the mount is usable.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::cli::LocalUpArgs;
use crate::exit::{Code, Context, Failure, Outcome};
use crate::local::{serve, state};
use crate::mountpoint::{self, Found};
use crate::size::Size;

/// Lines of the log that are shown when the background process ended before its mount was usable.
const LOG_LINES_SHOWN: usize = 15;

pub fn up(args: LocalUpArgs) -> Outcome {
    let mount_path = mountpoint::absolute(&args.mountpoint)?;
    let data = match &args.data {
        Some(data) => mountpoint::absolute(data)?,
        None => state::default_data(&mount_path),
    };
    let capacity = args.capacity.map(|size| size.0);
    if let Some(bytes) = capacity
        && bytes < 1 << 20
    {
        return Err(Failure::new(
            Code::Failed,
            format_args!("--capacity {} is too small for a volume: the minimum is 1Mi", Size(bytes)),
        ));
    }
    let (folder, new) = state::open_or_create(&data, args.copies, capacity, args.shared)?;
    if let Some(running) = state::running(folder.id) {
        if running.mountpoint == mount_path {
            println!("already up: {} (process {})", mount_path.display(), running.pid);
            return Ok(());
        }
        return Err(Failure::refused(format_args!(
            "the cluster in {} is in use by process {} and mounted at {}: stop it with 'atoll-fs local down \
             {}'",
            data.display(),
            running.pid,
            running.mountpoint.display(),
            running.mountpoint.display()
        )));
    }
    let (mount_path, found) = mountpoint::prepare(&mount_path, folder.id, true)?;
    if found == Found::OursAlive {
        return Err(Failure::refused(format_args!(
            "{} is a mount of this cluster, served by another process: unmount it first",
            mount_path.display()
        )));
    }
    if args.foreground || args.ready_fd.is_some() {
        return serve::serve(&args, folder, mount_path);
    }
    let what = if new { "created a cluster" } else { "using the cluster" };
    eprintln!("{what} in {}; starting it …", data.display());
    in_background(&args, &folder, &mount_path)?;
    println!(
        "up: {} ({} copies, {}, data in {})",
        mount_path.display(),
        folder.cluster.copies,
        Size(folder.cluster.capacity),
        data.display()
    );
    Ok(())
}

/// Starts this program again as a process of its own session, and waits for its word over a pipe.
fn in_background(args: &LocalUpArgs, folder: &state::Folder, mount_path: &std::path::Path) -> Outcome {
    let log_path = folder.path.join("log");
    let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).context(log_path.display())?;
    let logged_before = log.metadata().map(|m| m.len()).unwrap_or(0);
    let (mut reader, writer) = std::io::pipe().context("pipe")?;
    let program = std::env::current_exe().context("own program")?;
    let mut child = Command::new(program);
    child.args(["local", "up"]).arg(mount_path).arg("--data").arg(&folder.path);
    child.args(["--transport", args.behaviour.transport.flag()]);
    child.args(["--readers", &args.behaviour.readers.to_string()]);
    child.args(["--buffer", &args.behaviour.buffer.0.to_string()]);
    if args.behaviour.noatime {
        child.arg("--noatime");
    }
    if let Some(timeout) = args.behaviour.timeout {
        child.args(["--timeout", &timeout.to_string()]);
    }
    if args.unsafe_no_sync {
        child.arg("--unsafe-no-sync");
    }
    child.args(["--ready-fd", &writer.as_raw_fd().to_string()]);
    child.stdin(Stdio::null()).stdout(log.try_clone().context("log")?).stderr(log);
    child.current_dir("/");
    let inherited = writer.as_raw_fd();
    // SAFETY: setsid and fcntl are async-signal-safe; the descriptor is open in the child, a copy of ours.
    unsafe {
        child.pre_exec(move || {
            if libc::setsid() < 0 || libc::fcntl(inherited, libc::F_SETFD, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = child.spawn().context("can't start the background process")?;
    drop(writer);
    let mut word = String::new();
    reader.read_to_string(&mut word).context("background process")?;
    if word == "ready\n" {
        return Ok(());
    }
    let status = child.wait().context("background process")?;
    let log = fs::read(&log_path).unwrap_or_default();
    let recent = String::from_utf8_lossy(log.get(logged_before as usize..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = recent.lines().collect();
    let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
    let code = match status.code() {
        Some(4) => Code::Refused,
        Some(5) => Code::Unreachable,
        _ => Code::Failed,
    };
    Err(Failure::new(
        code,
        format_args!("the cluster did not come up ({status}):\n{shown}\n(log: {})", log_path.display()),
    ))
}
