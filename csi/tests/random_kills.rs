//! Clients, mount hosts, holders and node plugins are killed at random, alone and in pairs, while programs use a mount: no call
//! fails, and nothing that was written is lost.
//!
//! `ATOLL_KILLS` is the number of kills (a few; `make kills` has 100), `ATOLL_SEED` what decides about them.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod node_support;

use std::thread;
use std::time::Duration;

use node_support::programs::{Programs, is_theirs};
use node_support::{Machine, Process, seed, wait_until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Kills of one run unless told otherwise.
const KILLS: u32 = 8;

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Client,
    MountHost,
    Holder,
    /// In the middle of a call.
    NodePlugin,
}

use Victim::{Client, Holder, MountHost, NodePlugin};

/// Alone and in pairs; but for mount host and holder, without which there is no mount any more.
const KINDS: [&[Victim]; 9] = [
    &[Client],
    &[MountHost],
    &[Holder],
    &[NodePlugin],
    &[Client, MountHost],
    &[Client, Holder],
    &[Client, NodePlugin],
    &[MountHost, NodePlugin],
    &[NodePlugin, Holder],
];

#[test]
fn no_call_fails_whatever_is_killed() {
    if is_theirs() {
        return;
    }
    let kills = std::env::var("ATOLL_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let seed = seed();
    eprintln!("{kills} kills, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let machine = Machine::start();
    let mut holder = machine.holder();
    let mut host = machine.mount_host("a");
    machine.stage();
    machine.settled("a");
    let rounds = machine.path("rounds");
    let mut programs = Programs::start("no_call_fails_whatever_is_killed", &machine.place(), rounds);
    for kill in 0..kills {
        // Each kind comes in any run that is long enough.
        let kind = KINDS[(kill as usize + random.random_range(0..2) * KINDS.len() / 2) % KINDS.len()];
        eprintln!("kill {kill}: {kind:?}");
        thread::sleep(Duration::from_millis(random.random_range(0..400)));
        let client = machine.client("a");
        thread::scope(|scope| {
            for victim in kind {
                match victim {
                    Client => machine.kill(client),
                    MountHost => host.kill(),
                    Holder => holder.kill(),
                    NodePlugin => {
                        let patience = Duration::from_millis(random.random_range(0..50));
                        let machine = &machine;
                        scope.spawn(move || machine.publish_and_die("pod", patience));
                    }
                }
            }
        });
        let again = |is_gone: bool, process: &mut Process, start: &dyn Fn() -> Process| {
            if is_gone {
                *process = start();
            }
        };
        again(kind.contains(&MountHost), &mut host, &|| machine.mount_host("a"));
        again(kind.contains(&Holder), &mut holder, &|| machine.holder());
        machine.settled("a");
        if kind.contains(&Client) || kind.contains(&MountHost) {
            wait_until("the client before is gone", || !machine.runs(client));
        }
        // Another node plugin does what the one before has not done.
        machine.publish("pod");
        assert_eq!(machine.read_dir("pod"), machine.read_dir("staging"), "it is the same volume");
        machine.unpublish("pod");
        programs.continue_();
    }
    programs.end();
    machine.unstage();
    machine.forgotten();
    assert_eq!(machine.mounts(), [] as [String; 0]);
    host.end();
    holder.end();
}
