//! A local cluster for a test: started as a user would, and taken away whatever happens.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod processes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The program under test: `ATOLL_PROGRAM` says where it is, or else it is the one that cargo has compiled for the tests.
pub fn atoll_fs() -> &'static str {
    PROGRAM.get_or_init(|| std::env::var("ATOLL_PROGRAM").unwrap_or_else(|_| compiled()))
}

static PROGRAM: OnceLock<String> = OnceLock::new();

fn compiled() -> String {
    env!("CARGO_BIN_EXE_atoll-fs").to_owned()
}

/// From now on the program under test is the one that cargo has compiled: it counts what the one that is shipped doesn't.
pub fn use_compiled() {
    assert_eq!(PROGRAM.get_or_init(compiled), &compiled(), "before anything is started");
}

/// How long anything may take before a test gives up: a bound on hanging, nothing else.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Tests that mount need root and a FUSE device, which the machines they are made for have.
pub fn require_fuse() {
    assert!(
        nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists(),
        "these tests mount filesystems: run them as root on a machine with /dev/fuse"
    );
}

/// A local cluster in a temporary folder.
pub struct Cluster {
    folder: tempfile::TempDir,
    pub mountpoint: PathBuf,
    pub data: PathBuf,
    flags: Vec<String>,
}

impl Cluster {
    /// Starts one with these further flags of `local up`.
    pub fn start(flags: &[&str]) -> Cluster {
        require_fuse();
        let folder = tempfile::Builder::new().prefix("atoll-test-").tempdir().unwrap();
        let mountpoint = folder.path().join("mnt");
        let data = folder.path().join("data");
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let cluster = Cluster { folder, mountpoint, data, flags };
        cluster.up();
        cluster
    }

    /// The temporary folder, for what a test needs beside the mount.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Path below the mount point.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// `local up`, which must succeed.
    pub fn up(&self) {
        let output = self.try_up(&[]);
        assert!(output.status.success(), "local up failed: {}{}", text(&output), self.log());
    }

    /// `local up` with further flags.
    pub fn try_up(&self, flags: &[&str]) -> Output {
        Command::new(atoll_fs())
            .args(["local", "up"])
            .arg(&self.mountpoint)
            .arg("--data")
            .arg(&self.data)
            .args(&self.flags)
            .args(flags)
            .output()
            .unwrap()
    }

    /// `local down`.
    pub fn try_down(&self) -> Output {
        Command::new(atoll_fs())
            .args(["local", "down"])
            .arg(&self.mountpoint)
            .arg("--data")
            .arg(&self.data)
            .output()
            .unwrap()
    }

    /// `local down`, which must succeed.
    pub fn down(&self) {
        let output = self.try_down();
        assert!(output.status.success(), "local down failed: {}{}", text(&output), self.log());
    }

    /// The cluster's id.
    pub fn id(&self) -> Option<String> {
        let content = fs::read_to_string(self.data.join("cluster.json")).ok()?;
        let value: serde_json::Value = serde_json::from_str(&content).ok()?;
        value["cluster"].as_str().map(str::to_owned)
    }

    fn running(&self) -> Option<serde_json::Value> {
        let content = fs::read_to_string(format!("/run/atoll/{}.json", self.id()?)).ok()?;
        serde_json::from_str(&content).ok()
    }

    /// The process that serves it.
    pub fn pid(&self) -> Option<i32> {
        self.running()?["pid"].as_i64().map(|pid| pid as i32).filter(|pid| alive(*pid))
    }

    /// Address of its metrics.
    pub fn http(&self) -> String {
        self.running().expect("running")["http"].as_str().expect("address").to_owned()
    }

    /// Kills the process with -9 and waits until it is gone.
    pub fn kill(&self) {
        let pid = self.pid().expect("a process to kill");
        kill_and_wait(pid);
    }

    /// `local status -o json`
    pub fn status(&self) -> serde_json::Value {
        let output = Command::new(atoll_fs())
            .args(["local", "status", "-o", "json"])
            .arg(&self.mountpoint)
            .arg("--data")
            .arg(&self.data)
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("status: {error}: {}", text(&output)))
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.data.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("\n--- log ---\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let graceful = self.pid().is_some() && !std::thread::panicking();
        if graceful {
            let _ = self.try_down();
        }
        if let Some(pid) = self.pid() {
            kill_and_wait(pid);
        }
        detach_all(self.folder.path());
        if let Some(id) = self.id() {
            let _ = fs::remove_file(format!("/run/atoll/{id}.json"));
            let _ = fs::remove_dir_all(format!("/run/atoll/{id}"));
        }
    }
}

/// Takes away every mount below a folder, without asking the mounts themselves.
pub fn detach_all(folder: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|path| Path::new(path).starts_with(folder))
        .collect();
    points.reverse();
    for point in points {
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// True while the process exists and is no zombie.
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat[stat.rfind(')').unwrap_or(0)..].starts_with(") Z"))
}

/// kill -9, and waits until the process is gone.
pub fn kill_and_wait(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    wait_until("the killed process is gone", || !alive(pid));
}

/// Waits for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < TIMEOUT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a command printed.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
