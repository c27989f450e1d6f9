//! kill -9 of servers and mounts, one by one and all at once, under load and in the middle of fsyncs
//!
//! Writers keep a record, outside of the mount, of what was synced and what was begun. Servers that die start again
//! half a second later; a mount that died is mounted again. In between and at the end all that was synced must be
//! there, whole; what was only begun may be there, as a prefix; and fsck must find nothing.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "powercut_support/load.rs"]
mod load;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::processes::Processes;
use common::{atoll_fs, detach_all, kill_and_wait, text, wait_until};
use load::{Load, Record};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const MEMBERS: [&str; 3] = ["metadata", "metadata-1", "metadata-2"];
const STORAGE: [&str; 3] = ["storage-0", "storage-1", "storage-2"];
/// Kills between two looks at everything.
const KILLS_PER_ROUND: u64 = 4;
/// Rounds after which all files are removed.
const ROUNDS_OF_FILES: u64 = 6;

#[derive(Default, Debug)]
struct Count {
    kills: u64,
    within_syncs: u64,
    processes: u64,
    mounts: u64,
}

/// Who is killed together, in which order.
fn victims(random: &mut StdRng) -> Vec<&'static str> {
    let mut all: Vec<&str> = MEMBERS.iter().chain(&STORAGE).copied().collect();
    all.shuffle(random);
    match random.random_range(0..10) {
        0..3 => vec![MEMBERS[random.random_range(0..3)]],
        3..6 => vec![STORAGE[random.random_range(0..3)]],
        6 => all.into_iter().filter(|name| name.starts_with("metadata")).collect(),
        7 => all.into_iter().filter(|name| name.starts_with("storage")).collect(),
        _ => all,
    }
}

/// kill -9 of a server that is started again by itself; false if it isn't up again yet.
fn kill_server(folder: &Path, name: &str) -> bool {
    let pid = fs::read_to_string(folder.join(format!("{name}.pid"))).unwrap_or_default();
    let Ok(pid) = pid.trim().parse::<i32>() else { return false };
    // The number may be another process's by now.
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.starts_with(atoll_fs().as_bytes()) && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
}

fn kill_mount(cluster: &mut Processes) {
    let (mut child, _) = cluster.mounts.pop().expect("a mount");
    kill_and_wait(child.id() as i32);
    let _ = child.wait();
}

/// Waits for the moment, then kills.
fn strike(cluster: &mut Processes, load: &Load, random: &mut StdRng, mount_too: bool, count: &mut Count) {
    std::thread::sleep(Duration::from_millis(random.random_range(20..900)));
    let victims = victims(random);
    let within_a_sync = random.random_bool(0.5);
    if within_a_sync {
        wait_until("somebody syncs", || load.is_syncing());
    }
    count.within_syncs += u64::from(load.is_syncing());
    let mount_first = mount_too && random.random_bool(0.5);
    if mount_first {
        kill_mount(cluster);
    }
    for name in victims {
        count.processes += u64::from(kill_server(cluster.folder.path(), name));
    }
    if mount_too && !mount_first {
        kill_mount(cluster);
    }
    count.mounts += u64::from(mount_too);
    count.kills += 1;
}

#[test]
fn what_was_synced_survives_kills_of_everything_in_any_order() {
    let seed = std::env::var("ATOLL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let kills = std::env::var("ATOLL_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    println!("replay: ATOLL_SEED={seed} ATOLL_KILLS={kills} make test-crash");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Processes::start_group(3, 3, 3, true);
    let mut mount = cluster.mount("mnt");
    let mut record = Record::default();
    let mut count = Count::default();
    for round in 0u64.. {
        record.verify(&mount).unwrap_or_else(|lost| panic!("after {count:?}: {lost}"));
        if count.kills >= kills {
            break;
        }
        if round % ROUNDS_OF_FILES == ROUNDS_OF_FILES - 1 {
            record.begin_anew(&mount).expect("files are removed");
        }
        let load = record.start_load(&mount, random.random());
        let mount_dies = round % 3 == 1;
        for strike_number in 1..=KILLS_PER_ROUND {
            let last = strike_number == KILLS_PER_ROUND;
            strike(&mut cluster, &load, &mut random, mount_dies && last, &mut count);
        }
        if mount_dies {
            record = load.finish();
            detach_all(cluster.folder.path());
            mount = cluster.mount("mnt");
        } else {
            let before = load.synced();
            wait_until("the writers go on", || load.synced() >= before + 12);
            let (written, errors) = load.end();
            assert!(errors.is_empty(), "applications got errors after {count:?}: {errors:?}");
            record = written;
        }
    }
    println!("{count:?}");
    assert!(count.within_syncs * 4 >= count.kills, "too few of them within a sync: {count:?}");
    wait_until("all servers are well, and every chunk has its copies", || {
        cluster.alive_servers() == 3 && cluster.status()["chunks"]["short"] == 0
    });
    let check = cluster.command("fsck").output().unwrap();
    assert!(check.status.success(), "{}", text(&check));
}
