//! Handles of all kinds on one file at once, on one mount and on three: each byte that is read was written.
//!
//! Short as a part of all tests; asked for alone (`make test-coherence`) `ATOLL_SECONDS` says how long each case takes.
//! A failure prints its seed, which `ATOLL_SEED` sets: it brings the same operations, at whatever moments the machine
//! has for them.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod coherence_support;
mod common;

use std::path::PathBuf;
use std::time::Duration;

use coherence_support::{appends, attributes, counters, overwrites};
use common::Cluster;
use common::processes::Processes;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

fn how_long() -> Duration {
    Duration::from_secs(setting("ATOLL_SECONDS", 4))
}

fn seed() -> u64 {
    let seed = setting("ATOLL_SEED", u64::from(std::process::id()));
    println!("seed {seed}");
    seed
}

fn mounts(cluster: &mut Processes, count: usize) -> Vec<PathBuf> {
    (0..count).map(|number| cluster.mount(&format!("mount-{number}"))).collect()
}

#[test]
fn handles_of_a_local_file_show_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    appends::run(&[folder.path().to_owned()], seed(), how_long() / 3);
    overwrites::run(&[folder.path().to_owned()], seed(), how_long() / 3);
    counters::run(&[folder.path().to_owned()], seed(), how_long() / 3);
    attributes::run(folder.path(), seed(), how_long() / 3);
}

#[test]
fn appends_are_followed_on_one_mount_by_handles_of_all_kinds() {
    let mut cluster = Processes::start(1, 1);
    let mounts = mounts(&mut cluster, 1);
    appends::run(&mounts, seed(), how_long());
}

#[test]
fn appends_are_followed_on_three_mounts_by_handles_of_all_kinds() {
    let mut cluster = Processes::start(1, 1);
    let mounts = mounts(&mut cluster, 3);
    appends::run(&mounts, seed(), how_long());
}

#[test]
fn overwrites_are_read_on_one_mount_by_handles_of_all_kinds() {
    let mut cluster = Processes::start(1, 1);
    let mounts = mounts(&mut cluster, 1);
    overwrites::run(&mounts, seed(), how_long());
}

#[test]
fn overwrites_are_read_on_three_mounts_by_handles_of_all_kinds() {
    let mut cluster = Processes::start(1, 1);
    let mounts = mounts(&mut cluster, 3);
    overwrites::run(&mounts, seed(), how_long());
}

#[test]
fn names_and_attributes_that_the_kernel_keeps_are_those_of_the_volume() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "1Gi"]);
    attributes::run(&cluster.path(""), seed(), how_long() * 2);
}

#[test]
fn names_and_attributes_that_the_kernel_asks_for_are_those_of_the_volume() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "1Gi", "--shared"]);
    attributes::run(&cluster.path(""), seed(), how_long());
}

#[test]
fn handles_show_what_was_written_to_a_volume_for_one_mount() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "1Gi"]);
    let folder = [cluster.path("")];
    appends::run(&folder, seed(), how_long());
    overwrites::run(&folder, seed(), how_long());
    counters::run(&folder, seed(), how_long());
}

#[test]
fn counts_under_locks_are_not_lost_while_others_read() {
    let mut cluster = Processes::start_group(3, 3, 3, false);
    let mounts = mounts(&mut cluster, 3);
    counters::run(&mounts, seed(), how_long());
}
