//! A FUSE filesystem that passes everything on to a local folder, over `fuser`: what any filesystem in user space can
//! reach on this machine, for benchmarks to compare with. Not for production: `O_APPEND` across mounts, locks and
//! leases are the local filesystem's or nobody's.
//!
//! ```text
//! passthrough SOURCE MOUNTPOINT [--ttl-ms N] [--threads N] [--writeback] [--direct-io]
//! ```
//! It serves in the foreground until it is unmounted. Needs root.

mod fuse;
mod inodes;
mod local;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use fuser::{Config, MountOption, SessionACL};
use local::Passthrough;

struct Options {
    source: PathBuf,
    mountpoint: PathBuf,
    ttl: Duration,
    threads: usize,
    writeback: bool,
    direct_io: bool,
    /// Inodes that are held open; the others are opened again for each call.
    inodes_open_max: usize,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
        let mut options = Options {
            source: arguments.next()?.into(),
            mountpoint: arguments.next()?.into(),
            ttl: Duration::from_secs(1),
            threads: 2,
            writeback: false,
            direct_io: false,
            inodes_open_max: 0,
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--ttl-ms" => options.ttl = Duration::from_millis(arguments.next()?.parse().ok()?),
                "--threads" => options.threads = arguments.next()?.parse().ok()?,
                "--writeback" => options.writeback = true,
                "--direct-io" => options.direct_io = true,
                _ => return None,
            }
        }
        Some(options)
    }
}

fn run(options: &mut Options) -> io::Result<()> {
    // Inodes that the kernel knows are descriptors.
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure; the umask has no preconditions.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
        libc::umask(0);
    }
    // The rest is for open files.
    options.inodes_open_max = limit.rlim_cur as usize / 4 * 3;
    let filesystem = Passthrough::new(&options.source, options)?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(options.threads);
    config.clone_fd = true;
    config.mount_options = vec![
        MountOption::FSName("passthrough".to_owned()),
        MountOption::Subtype("passthrough".to_owned()),
        MountOption::DefaultPermissions,
    ];
    fuser::mount(filesystem, &options.mountpoint, &config)
}

fn main() -> ExitCode {
    let Some(mut options) = Options::parse(std::env::args().skip(1)) else {
        eprintln!(
            "usage: passthrough SOURCE MOUNTPOINT [--ttl-ms N] [--threads N] [--writeback] [--direct-io]"
        );
        return ExitCode::from(2);
    };
    match run(&mut options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("passthrough: {error}");
            ExitCode::FAILURE
        }
    }
}
