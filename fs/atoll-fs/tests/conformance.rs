//! POSIX case by case, as root and as two other users: on the local filesystem first, then on a mount.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod conformance_support;

use std::path::Path;

use common::Cluster;
use conformance_support::harness::Cases;

/// Cases that there are at least.
const CASES_MIN: usize = 1500;

/// Runs every case in a folder; returns how many there were, and the failures.
fn run(root: &Path) -> (usize, Vec<String>) {
    let mut cases = Cases::new(root);
    conformance_support::paths::run(&mut cases);
    conformance_support::names::run(&mut cases);
    conformance_support::permissions::run(&mut cases);
    conformance_support::owners::run(&mut cases);
    conformance_support::files::run(&mut cases);
    conformance_support::ranges::run(&mut cases);
    conformance_support::times::run(&mut cases);
    conformance_support::xattrs::run(&mut cases);
    conformance_support::acls::run(&mut cases);
    conformance_support::locks::run(&mut cases);
    cases.finish()
}

/// A volume of which the kernel keeps nothing, because others may mount it, and one of which it keeps names and attributes.
const KINDS: [&[&str]; 2] =
    [&["--copies", "1", "--capacity", "4Gi", "--shared"], &["--copies", "1", "--capacity", "4Gi"]];

fn takes_away_what_the_local_filesystem_takes_away(flags: &[&str]) {
    let cluster = Cluster::start(flags);
    let tables = [cluster.folder().join("local"), cluster.path("mount")].map(|folder| {
        std::fs::create_dir(&folder).unwrap();
        conformance_support::privileges::table(&folder)
    });
    let [local, mount] = &tables;
    let differ = |(case, wanted): (&String, &_)| {
        let got = &mount[case];
        (got != wanted).then(|| format!("{case}: wanted {wanted:?}, got {got:?}"))
    };
    let differences: Vec<String> = local.iter().filter_map(differ).collect();
    assert!(
        differences.is_empty(),
        "{} of {} cases:\n{}",
        differences.len(),
        local.len(),
        differences.join("\n")
    );
    println!("{} cases", local.len());
}

fn every_case_holds(flags: &[&str]) {
    let cluster = Cluster::start(flags);
    let local = cluster.folder().join("local");
    std::fs::create_dir(&local).unwrap();
    let (count, failures) = run(&local);
    assert!(failures.is_empty(), "on the local filesystem, of {count} cases:\n{}", failures.join("\n"));
    let mount = cluster.path("conformance");
    std::fs::create_dir(&mount).unwrap();
    let (on_mount, failures) = run(&mount);
    assert!(failures.is_empty(), "on the mount, of {on_mount} cases:\n{}", failures.join("\n"));
    assert!(count >= CASES_MIN && on_mount == count, "{count} and {on_mount} cases");
    println!("{count} cases");
}

#[test]
fn what_a_change_takes_away_from_a_file_is_what_the_local_filesystem_takes_away() {
    KINDS.into_iter().for_each(takes_away_what_the_local_filesystem_takes_away);
}

#[test]
fn every_case_holds_on_the_local_filesystem_and_on_a_mount() {
    every_case_holds(KINDS[0]);
}

#[test]
fn every_case_holds_on_a_mount_whose_names_and_attributes_the_kernel_keeps() {
    every_case_holds(KINDS[1]);
}
