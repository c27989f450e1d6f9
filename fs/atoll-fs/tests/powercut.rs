//! Power cuts: the data lies on a disk that forgets, at the cut, a random part of what wasn't flushed.
//!
//! `kill -9` leaves the page cache as it is, so it can't tell a missing fsync. Here the data folder is on ext4, on a
//! loop device, over a file that a small FUSE filesystem serves: it remembers what was written since the last
//! flush, and at the cut keeps a random part of that and refuses everything later.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod powercut_support;

use common::processes::Processes;
use powercut_support::load::Record;
use powercut_support::rig::{Machine, Rig};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Runs cuts under load until one loses something or `cuts` have passed; says what was lost.
fn cut_repeatedly(cuts: u64, seed: u64, flags: &[&str]) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = Rig::new(flags);
    let mut record = Record::default();
    for cut in 1..=cuts {
        rig.power_on().map_err(|error| format!("after cut {}: {error}", cut - 1))?;
        record.verify(&rig.mountpoint).map_err(|error| format!("after cut {}: {error}", cut - 1))?;
        let load = record.start_load(&rig.mountpoint, rng.random());
        std::thread::sleep(std::time::Duration::from_millis(rng.random_range(30..900)));
        rig.cut(rng.random());
        record = load.finish();
    }
    rig.power_on().map_err(|error| format!("after the last cut: {error}"))?;
    record.verify(&rig.mountpoint).map_err(|error| format!("after the last cut: {error}"))
}

#[test]
fn what_was_synced_survives_power_cuts_and_the_rest_is_a_prefix() {
    let seed = std::env::var("ATOLL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let cuts = std::env::var("ATOLL_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    if let Err(lost) = cut_repeatedly(cuts, seed, &["--copies", "2"]) {
        panic!("{lost}\nreplay: ATOLL_SEED={seed} ATOLL_CUTS={cuts} make test-powercut");
    }
}

/// Three metadata servers and three storage servers, a process each, all on the machine that goes dark.
#[test]
fn what_was_synced_survives_power_cuts_of_a_whole_group() {
    let seed = std::env::var("ATOLL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let cuts: u64 = std::env::var("ATOLL_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut machine = Machine::new();
    machine.power_on();
    let mut cluster = Processes::start_at(&machine.ext4(), 3, 3, 3);
    let mut record = Record::default();
    for cut in 0..=cuts {
        let mount = cluster.mount("mnt");
        if let Err(lost) = record.verify(&mount) {
            panic!("after cut {cut}: {lost}\nreplay: ATOLL_SEED={seed} ATOLL_CUTS={cuts} make test-powercut");
        }
        if cut == cuts {
            break;
        }
        let load = record.start_load(&mount, rng.random());
        std::thread::sleep(std::time::Duration::from_millis(rng.random_range(100..1500)));
        machine.cut(rng.random(), || cluster.die());
        record = load.finish();
        machine.power_on();
        cluster.start_again();
    }
    let fsck = cluster.command("fsck").output().unwrap();
    assert!(fsck.status.success(), "{}", common::text(&fsck));
    drop(cluster);
}

#[test]
fn a_build_without_syncs_is_found_out() {
    let lost = cut_repeatedly(10, 7, &["--copies", "2", "--unsafe-no-sync"]);
    let lost =
        lost.expect_err("ten power cuts without a single sync went unnoticed: this test proves nothing");
    println!("found out, as it should be: {lost}");
}
