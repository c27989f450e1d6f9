//! A mount outlives the mount host and the holder, whichever goes, and in whichever way: processes are killed and replaced while
//! programs use their mount, and no call fails.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod node_support;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use node_support::programs::{Programs, is_theirs};
use node_support::{Machine, wait_until};

/// Kills of one run.
const KILLS: u32 = 12;

#[test]
fn no_call_fails_while_mount_host_and_holder_are_killed() {
    if is_theirs() {
        return;
    }
    let machine = Machine::start();
    let mut holder = machine.holder();
    let mut host = machine.mount_host("a");
    machine.stage();
    let rounds = machine.path("rounds");
    let mut programs =
        Programs::start("no_call_fails_while_mount_host_and_holder_are_killed", &machine.place(), rounds);
    for round in 0..KILLS {
        machine.settled("a");
        programs.continue_();
        thread::sleep(Duration::from_millis(u64::from(round) * 97 % 300));
        let client = machine.client("a");
        match round % 3 {
            0 => {
                host.kill();
                wait_until("its client ends with it", || !machine.runs(client));
                host = machine.mount_host("a");
            }
            1 => {
                holder.kill();
                holder = machine.holder();
                continue;
            }
            // One after the other, as soon as what is left has everything.
            _ => {
                host.kill();
                host = machine.mount_host("a");
                machine.settled("a");
                holder.kill();
                holder = machine.holder();
            }
        }
        machine.settled("a");
        assert!(!machine.runs(client), "two processes serve one mount");
    }
    machine.settled("a");
    programs.end();
    machine.unstage();
    machine.forgotten();
    holder.end();
    host.end();
}

#[test]
fn no_call_fails_while_everything_is_upgraded() {
    if is_theirs() {
        return;
    }
    let machine = Machine::start();
    let mut holder = machine.holder();
    let mut old = machine.mount_host("a");
    machine.stage();
    let rounds = machine.path("rounds");
    let mut programs =
        Programs::start("no_call_fails_while_everything_is_upgraded", &machine.place(), rounds);

    // As the DaemonSet does it: the new one takes over while the old one is there.
    let mut new = machine.mount_host("b");
    machine.settled("b");
    programs.continue_();
    old.end();
    programs.continue_();

    // A holder that is asked to end does so while a mount host has everything.
    holder.end();
    let mut holder = machine.holder();
    machine.settled("b");
    programs.continue_();

    // A version that doesn't work takes nothing away from one that does.
    let mut broken = machine.mount_host_with("a", Path::new("/bin/false"));
    wait_until("the broken one has tried", || {
        fs::read_to_string(machine.path("mount-host.log"))
            .unwrap()
            .contains("leaving the mounts to another one")
    });
    machine.settled("b");
    programs.continue_();
    broken.kill();

    // Without another one there, as when its pod is deleted: the programs wait until there is one.
    new.end();
    assert_eq!(machine.held(), Some(true));
    let mut last = machine.mount_host("a");
    machine.settled("a");
    programs.continue_();

    // Ended while nobody else has anything: the holder waits for the next mount host.
    last.kill();
    holder.ask_to_end();
    let mut last = machine.mount_host("a");
    assert!(holder.ended().success());
    let mut holder = machine.holder();
    machine.settled("a");
    programs.end();
    machine.unstage();
    machine.forgotten();
    last.end();
    holder.end();
}

#[test]
fn no_call_fails_while_a_client_gets_nothing_done() {
    if is_theirs() {
        return;
    }
    let machine = Machine::start();
    let mut holder = machine.holder();
    let mut host = machine.mount_host("a");
    machine.stage();
    machine.settled("a");
    let rounds = machine.path("rounds");
    let programs =
        Programs::start("no_call_fails_while_a_client_gets_nothing_done", &machine.place(), rounds);
    let client = machine.client("a");
    machine.stop(client);
    wait_until("another client serves", || machine.client("a") != client);
    programs.end();
    machine.unstage();
    host.end();
    holder.end();
}

#[test]
fn without_both_the_mount_is_dead_and_the_next_pod_has_it_again() {
    let machine = Machine::start();
    let mut holder = machine.holder();
    let mut host = machine.mount_host("a");
    machine.stage();
    machine.publish("pod-1");
    machine.settled("a");
    let file = machine.place().join("file");
    fs::write(&file, b"synced").unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    holder.kill();
    host.kill();
    // Nobody hangs.
    wait_until("the mount is dead", || {
        fs::metadata(&file).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    });

    let mut holder = machine.holder();
    let mut host = machine.mount_host("a");
    machine.publish("pod-2");
    assert_eq!(fs::read(machine.path("pod-2").join("file")).unwrap(), b"synced");
    let dead = fs::metadata(machine.path("pod-1").join("file")).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN), "pods that were there have to be restarted");
    machine.unpublish("pod-1");
    machine.unpublish("pod-2");
    machine.unstage();
    machine.forgotten();
    host.end();
    holder.end();
}

#[test]
fn unstage_waits_for_whoever_continues() {
    let machine = Machine::start();
    let _holder = machine.holder();
    let mut host = machine.mount_host("a");
    machine.stage();
    machine.settled("a");
    fs::write(machine.place().join("file"), b"not synced").unwrap();
    host.kill();
    // The mount goes while nobody serves it; what was written is in the arena.
    let unstaged = thread::scope(|scope| {
        let unstaging = scope.spawn(|| machine.unstage());
        thread::sleep(Duration::from_millis(500));
        let is_early = unstaging.is_finished();
        let host = machine.mount_host("a");
        unstaging.join().unwrap();
        (is_early, host)
    });
    assert!(!unstaged.0, "nobody had written it out");
    machine.stage();
    assert_eq!(fs::read(machine.place().join("file")).unwrap(), b"not synced");
    machine.unstage();
}
