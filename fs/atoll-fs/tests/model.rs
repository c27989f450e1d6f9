//! Random operations through a mount and on a local folder: everything that can be seen must be equal.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod model_support;

use common::Cluster;
use model_support::{Options, run_seed};

/// Runs seeds, or the one that ATOLL_SEED names.
fn run(test: &str, cluster: &Cluster, seeds: u64, options: &Options) {
    if let Ok(seed) = std::env::var("ATOLL_SEED") {
        run_seed(cluster, seed.parse().expect("ATOLL_SEED is a number"), options);
        return;
    }
    let seeds = std::env::var("ATOLL_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(seeds);
    for seed in 0..seeds {
        let attempt = std::panic::AssertUnwindSafe(|| run_seed(cluster, seed, options));
        if let Err(panic) = std::panic::catch_unwind(attempt) {
            eprintln!("replay: ATOLL_SEED={seed} make test-model (test {test})");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_mount_behaves_as_a_local_folder() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "4Gi"]);
    run(
        "a_mount_behaves_as_a_local_folder",
        &cluster,
        8,
        &Options { operations: 5_000, kills: 0, all: true },
    );
}

#[test]
fn a_mount_that_others_may_have_too_behaves_as_a_local_folder() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "4Gi", "--shared"]);
    run(
        "a_mount_that_others_may_have_too_behaves_as_a_local_folder",
        &cluster,
        4,
        &Options { operations: 5_000, kills: 0, all: true },
    );
}

#[test]
fn a_mount_behaves_as_a_local_folder_when_everything_is_killed_in_between() {
    let cluster = Cluster::start(&["--copies", "3", "--capacity", "4Gi"]);
    run(
        "a_mount_behaves_as_a_local_folder_when_everything_is_killed_in_between",
        &cluster,
        3,
        &Options { operations: 1_500, kills: 3, all: true },
    );
}

#[test]
fn the_second_transport_behaves_as_a_local_folder() {
    let cluster = Cluster::start(&["--copies", "1", "--capacity", "4Gi", "--transport", "fuser"]);
    run(
        "the_second_transport_behaves_as_a_local_folder",
        &cluster,
        3,
        &Options { operations: 3_000, kills: 0, all: false },
    );
}
