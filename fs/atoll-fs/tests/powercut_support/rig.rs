//! The machine that loses power: the forgetful disk, a loop device, ext4, and a local cluster with its data there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fuser::BackgroundSession;
use nix::mount::{MntFlags, umount2};

use super::disk::{Disk, DiskFs, FILE};
use crate::common::{alive, atoll_fs, detach_all, kill_and_wait, require_fuse, run, text, wait_until};

/// Size of the disk: room for what a run writes, most of it a hole.
const DISK_BYTES: u64 = 3 << 30;

/// The machine.
pub struct Machine {
    folder: tempfile::TempDir,
    disk: Arc<Disk>,
    session: Option<BackgroundSession>,
    device: Option<String>,
    formatted: bool,
}

impl Machine {
    /// One that is off.
    pub fn new() -> Machine {
        require_fuse();
        let folder = tempfile::Builder::new().prefix("atoll-powercut-").tempdir().unwrap();
        for name in ["disk", "ext4"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let disk = Disk::new(DISK_BYTES);
        let session = fuser::spawn_mount(
            DiskFs(Arc::clone(&disk)),
            folder.path().join("disk"),
            &fuser::Config::default(),
        );
        Machine { folder, disk, session: Some(session.unwrap()), device: None, formatted: false }
    }

    /// Where its disk is mounted while it is on.
    pub fn ext4(&self) -> PathBuf {
        self.folder.path().join("ext4")
    }

    /// Mounts the disk (its journal is replayed).
    pub fn power_on(&mut self) {
        self.disk.power_on();
        let image = self.folder.path().join("disk").join(FILE);
        let device =
            run("losetup", &["--find", "--show", "--direct-io=on", image.to_str().unwrap()], Path::new("/"));
        let device = device.trim().to_owned();
        self.device = Some(device.clone());
        if !self.formatted {
            run(
                "mkfs.ext4",
                &["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", &device],
                Path::new("/"),
            );
            self.formatted = true;
        }
        run("mount", &["-t", "ext4", &device, self.ext4().to_str().unwrap()], Path::new("/"));
    }

    /// Cuts the power: first the disk, then every process, which `kill` does.
    pub fn cut(&mut self, seed: u64, kill: impl FnOnce()) {
        self.disk.cut(seed);
        kill();
        self.unmount();
    }

    fn unmount(&mut self) {
        let ext4 = self.ext4();
        if let Some(device) = self.device.take() {
            let attempt = || {
                let _ = umount2(&ext4, MntFlags::empty());
                let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
                !table.contains(ext4.to_str().unwrap())
            };
            if std::thread::panicking() {
                let _ = umount2(&ext4, MntFlags::MNT_DETACH);
            } else {
                wait_until("ext4 is unmounted", attempt);
            }
            let _ = Command::new("losetup").args(["-d", &device]).output();
            if !std::thread::panicking() {
                wait_until("the loop device is free", || {
                    let output = Command::new("losetup").arg(&device).output().unwrap();
                    !output.status.success()
                });
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.disk.power_on();
        self.unmount();
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
        detach_all(self.folder.path());
    }
}

/// A machine with a local cluster.
pub struct Rig {
    machine: Machine,
    /// Where the cluster is mounted.
    pub mountpoint: PathBuf,
    flags: Vec<String>,
}

impl Rig {
    /// A machine that is off; `flags` go to `local up`.
    pub fn new(flags: &[&str]) -> Rig {
        let machine = Machine::new();
        let mountpoint = machine.folder.path().join("mnt");
        Rig { machine, mountpoint, flags: flags.iter().map(|flag| (*flag).to_owned()).collect() }
    }

    /// Turns the machine on and starts the cluster.
    pub fn power_on(&mut self) -> Result<(), String> {
        self.machine.power_on();
        let output = Command::new(atoll_fs())
            .args(["local", "up"])
            .arg(&self.mountpoint)
            .arg("--data")
            .arg(self.machine.ext4().join("data"))
            .args(["--capacity", "1Gi"])
            .args(&self.flags)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("the cluster did not come up: {}", text(&output)))
        }
    }

    fn pid(&self) -> Option<i32> {
        for entry in fs::read_dir("/run/atoll").ok()?.filter_map(Result::ok) {
            let Ok(content) = fs::read(entry.path()) else { continue };
            let Ok(running) = serde_json::from_slice::<serde_json::Value>(&content) else { continue };
            if running["mountpoint"].as_str().map(Path::new) == Some(&self.mountpoint) {
                return running["pid"].as_i64().map(|pid| pid as i32).filter(|pid| alive(*pid));
            }
        }
        None
    }

    /// Cuts the power of the machine.
    pub fn cut(&mut self, seed: u64) {
        let pid = self.pid().expect("a running cluster");
        self.machine.cut(seed, || kill_and_wait(pid));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The machine's disk is unmounted after this: its parts are dropped later.
        self.machine.disk.power_on();
        if let Some(pid) = self.pid() {
            kill_and_wait(pid);
        }
        // The dead mount of the killed cluster.
        detach_all(&self.mountpoint);
    }
}
