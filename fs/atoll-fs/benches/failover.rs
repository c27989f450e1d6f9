//! How long applications wait when a server dies or stops: `make bench-failover`.
//!
//! Three metadata servers, three storage servers, three copies, separate processes; an application on the mount makes
//! small files and syncs each, another one rewrites and syncs a megabyte. A server is killed (or stopped) again and
//! again; a pause is the longest time in the seconds after it in which an application finished nothing.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what goes wrong ends the measurement"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::processes::Processes;
use common::wait_until;
use nix::sys::signal::Signal;

/// A server stays away for so long, and so long after it something counts as its doing.
const AWAY: Duration = Duration::from_secs(6);

/// What is done to whom.
#[derive(Clone, Copy)]
enum Blow {
    LeaderKilled,
    LeaderStopped,
    StorageKilled,
    StorageStopped,
}

const BLOWS: [(Blow, &str); 4] = [
    (Blow::LeaderKilled, "leader killed"),
    (Blow::LeaderStopped, "leader stopped"),
    (Blow::StorageKilled, "storage server killed"),
    (Blow::StorageStopped, "storage server stopped"),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, kind, folder, record] = &arguments[..]
        && flag == "--load"
    {
        let error = load(kind, Path::new(folder), Path::new(record)).expect_err("it goes on for ever");
        eprintln!("{kind}: {error}");
        return ExitCode::FAILURE;
    }
    let kills: usize = std::env::var("ATOLL_KILLS").map_or(20, |kills| kills.parse().expect("a number"));
    let mut cluster = Processes::start_group(3, 3, 3, false);
    let mount = cluster.mount("mnt");
    let loads = [Load::start(&cluster, &mount, "small"), Load::start(&cluster, &mount, "stream")];
    println!("{kills} of each; milliseconds that an application finished nothing, median / maximum");
    println!("{:<24}{:>22}{:>22}", "", "small files, fsync", "1 MiB writes, fsync");
    for (blow, name) in BLOWS {
        let mut pauses: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
        for round in 0..kills {
            let began = now();
            strike(&mut cluster, blow, round);
            for (pauses, load) in pauses.iter_mut().zip(&loads) {
                load.goes_on();
                pauses.push(load.longest_pause_ms(began, began + AWAY.as_nanos() as u64));
            }
        }
        let [small, stream] = pauses.map(summary);
        println!("{name:<24}{small:>22}{stream:>22}");
    }
    drop(loads);
    let check = cluster.command("fsck").output().expect("fsck runs");
    assert!(check.status.success(), "fsck: {}", common::text(&check));
    ExitCode::SUCCESS
}

/// Lets it happen, waits, and makes it good again.
fn strike(cluster: &mut Processes, blow: Blow, round: usize) {
    match blow {
        Blow::LeaderKilled | Blow::LeaderStopped => {
            let leader = leader(cluster);
            if matches!(blow, Blow::LeaderKilled) {
                Processes::kill(&mut cluster.metadata[leader].0);
                std::thread::sleep(AWAY);
                cluster.start_metadata(leader);
            } else {
                cluster.signal_metadata(leader, Signal::SIGSTOP);
                std::thread::sleep(AWAY);
                cluster.signal_metadata(leader, Signal::SIGCONT);
            }
        }
        Blow::StorageKilled => {
            Processes::kill(&mut cluster.storage[round % 3].0);
            std::thread::sleep(AWAY);
            cluster.start_storage(round % 3);
        }
        Blow::StorageStopped => {
            cluster.signal_storage(round % 3, Signal::SIGSTOP);
            std::thread::sleep(AWAY);
            cluster.signal_storage(round % 3, Signal::SIGCONT);
        }
    }
    wait_until("all servers are well", || {
        let status = cluster.status();
        let members = status["metadata"]["members"].as_array().cloned().unwrap_or_default();
        let is_well = |member: &serde_json::Value| {
            member["lag"].as_u64().is_some_and(|lag| lag < 200)
                && member["silentMs"].as_u64().is_some_and(|ms| ms < 2000)
        };
        members.len() == 3 && members.iter().all(is_well) && cluster.alive_servers() == 3
    });
}

fn leader(cluster: &Processes) -> usize {
    let mut found = None;
    wait_until("there is a leader", || {
        found = cluster.leader();
        found.is_some()
    });
    found.expect("waited for")
}

fn summary(mut pauses: Vec<u64>) -> String {
    pauses.sort_unstable();
    format!("{} / {}", pauses[pauses.len() / 2], pauses[pauses.len() - 1])
}

/// Nanoseconds of a clock that all processes share.
#[expect(
    clippy::disallowed_methods,
    reason = "it is the one that shows the same to a process and to its child"
)]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos() as u64
}

/// An application in a process of its own: what it has open is not open here, where servers are started. It notes
/// outside of the mount when it has finished something.
struct Load {
    process: Child,
    record: PathBuf,
}

impl Load {
    fn start(cluster: &Processes, mount: &Path, kind: &str) -> Load {
        let record = cluster.folder.path().join(format!("{kind}.record"));
        let folder = mount.join(kind);
        fs::create_dir(&folder).expect("a folder");
        let process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--load", kind])
            .args([&folder, &record])
            .stdin(Stdio::null())
            .spawn()
            .expect("an application");
        let load = Load { process, record };
        load.goes_on();
        load
    }

    fn finished(&self) -> Vec<u64> {
        let record = fs::read(&self.record).unwrap_or_default();
        record.as_chunks::<8>().0.iter().map(|time| u64::from_le_bytes(*time)).collect()
    }

    fn goes_on(&self) {
        let before = self.finished().len();
        wait_until("the application goes on", || self.finished().len() > before + 3);
    }

    fn longest_pause_ms(&self, from: u64, to: u64) -> u64 {
        let finished = self.finished();
        let pauses = finished.windows(2).filter(|pair| pair[1] >= from && pair[0] < to);
        pauses.map(|pair| (pair[1] - pair[0]) / 1_000_000).max().unwrap_or(0)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn load(kind: &str, folder: &Path, record: &Path) -> std::io::Result<()> {
    let mut record = OpenOptions::new().create(true).append(true).open(record)?;
    let mut number = 0u64;
    let stream = if kind == "stream" { Some(File::create(folder.join("stream"))?) } else { None };
    loop {
        match &stream {
            Some(stream) => {
                stream.write_all_at(&vec![number as u8; 1 << 20], (number % 64) << 20)?;
                stream.sync_all()?;
            }
            None => {
                let mut file = File::create(folder.join(format!("file-{}", number % 1000)))?;
                file.write_all(&[number as u8; 5000])?;
                file.sync_all()?;
            }
        }
        record.write_all(&now().to_le_bytes())?;
        number += 1;
    }
}
