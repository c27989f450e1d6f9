//! What the tests with real mounts share: a filesystem over a local folder that keeps no state which a successor
//! couldn't rebuild, and a mount that is taken away however the test ends.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod folder;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use atoll_core::ids::ClusterId;
use atoll_fuse::device::{self, Device, MountOptions};

/// A test that takes longer hangs: its connection is aborted, so that everything that waits for it fails.
const HANG: Duration = Duration::from_secs(120);

/// A mounted device. Dropping it unmounts and aborts.
pub struct Mounted {
    pub device: Device,
    pub path: PathBuf,
    pub options: MountOptions,
    pub connection: u32,
    _folder: tempfile::TempDir,
    watchdog: Option<mpsc::Sender<()>>,
}

impl Mounted {
    pub fn new(options: MountOptions) -> Mounted {
        device::mount_fusectl().expect("fusectl");
        let device = Device::open().expect("device");
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().to_owned();
        device.mount(&path, &options).expect("mounts");
        let connection = device::find_mount(&path).expect("table").expect("mounted").connection();
        let (watchdog, alive) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if alive.recv_timeout(HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the test hangs: aborting connection {connection}");
                let _ = device::abort(connection);
            }
        });
        Mounted { device, path, options, connection, _folder: folder, watchdog: Some(watchdog) }
    }

    pub fn volume() -> Mounted {
        Mounted::new(MountOptions::new(ClusterId(7)))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = device::unmount(&self.path, true);
        let _ = device::abort(self.connection);
        drop(self.watchdog.take());
    }
}

/// A path as the system calls want it.
pub fn c_path(path: &Path) -> std::ffi::CString {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

/// A system call's result, or its errno.
pub fn cvt(result: i64) -> Result<i64, i32> {
    if result >= 0 { Ok(result) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}
