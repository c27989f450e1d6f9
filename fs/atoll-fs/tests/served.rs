//! Mounts that another process makes: the client is an unprivileged process that gets key and mount over a socket.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod served_support;

use std::fs;
use std::io;

use atoll_fuse::device;

use common::wait_until;
use served_support::{Servers, folder};

#[test]
fn an_unprivileged_process_serves_a_mount_that_another_one_made() {
    let servers = Servers::start(&[]);
    let place = folder(&servers, "mount");
    let mut client = servers.client("node-1", &servers.key());
    drop(client.mount(&servers, &place));
    let status = fs::read_to_string(format!("/proc/{}/status", client.child.id())).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000") && status.contains("Uid:\t65534"), "{status}");
    let environment = fs::read(format!("/proc/{}/environ", client.child.id())).unwrap();
    let line = fs::read(format!("/proc/{}/cmdline", client.child.id())).unwrap();
    let key = servers.key().trim_ascii().to_vec();
    assert!(![environment, line].iter().any(|place| place.windows(key.len()).any(|part| part == key)));
    fs::write(place.join("file"), b"written as root, served by nobody").unwrap();
    // Unmounting is the sign to write everything out and end.
    device::unmount(&place, false).unwrap();
    assert_eq!(client.exit_code(), Some(0));

    let mut again = servers.client("node-1", &servers.key());
    drop(again.mount(&servers, &place));
    assert_eq!(fs::read(place.join("file")).unwrap(), b"written as root, served by nobody");
    device::unmount(&place, false).unwrap();
}

#[test]
fn a_client_ends_with_who_controls_it_and_what_was_written_stays() {
    let servers = Servers::start(&[]);
    let place = folder(&servers, "mount");
    let mut client = servers.client("node-1", &servers.key());
    drop(client.mount(&servers, &place));
    fs::write(place.join("file"), b"not synced").unwrap();
    client.control = None;
    assert_eq!(client.exit_code(), Some(0));
    let dead = fs::metadata(&place).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(nix::libc::ENOTCONN));
    device::unmount(&place, true).unwrap();
    let mut next = servers.client("node-1", &servers.key());
    drop(next.mount(&servers, &place));
    assert_eq!(fs::read(place.join("file")).unwrap(), b"not synced");
    device::unmount(&place, false).unwrap();
    // Before there is a mount, too.
    let mut waiting = servers.client("node-2", &servers.key());
    assert_eq!(waiting.says(), "connected");
    waiting.control = None;
    assert_eq!(waiting.exit_code(), Some(1));
}

#[test]
fn a_client_that_serves_does_what_it_is_asked_for() {
    let servers = Servers::start(&[]);
    let place = folder(&servers, "mount");
    let mut client = servers.client("node-1", &servers.key());
    let kept = client.mount(&servers, &place);
    fs::write(place.join("file"), b"not synced").unwrap();
    client.send(b"a word of a later release");
    client.send(b"ping");
    assert_eq!(client.says(), "pong");
    client.send(b"flush");
    assert_eq!(client.says(), "flushed");
    // From then on nobody has to continue.
    client.kill();
    drop((kept, client));
    device::unmount(&place, true).unwrap();
    let mut next = servers.client("node-1", &servers.key());
    drop(next.mount(&servers, &place));
    assert_eq!(fs::read(place.join("file")).unwrap(), b"not synced");
    device::unmount(&place, false).unwrap();
}

#[test]
fn what_a_client_refuses_it_says_with_its_exit_code() {
    let servers = Servers::start(&[]);
    let mut wrong_key = servers.client("node-1", "77".repeat(32).as_bytes());
    let said = wrong_key.says();
    assert!(said.starts_with("failed 4 "), "{said}");
    assert_eq!(wrong_key.exit_code(), Some(4));
    let mut no_key = servers.client("node-1", b"short");
    let said = no_key.says();
    assert!(said.starts_with("failed 1 ") && !said.contains("short"), "{said}");
    assert_eq!(no_key.exit_code(), Some(1));
}

#[test]
fn a_volume_for_one_machine_is_refused_to_a_second_one_until_it_is_free() {
    let servers = Servers::start(&["--exclusive"]);
    let place = folder(&servers, "mount");
    let mut first = servers.client("node-1", &servers.key());
    drop(first.mount(&servers, &place));
    let mut second = servers.client("node-2", &servers.key());
    let said = second.says();
    assert!(said.starts_with("failed 7 ") && said.contains("'node-1'"), "{said}");
    assert_eq!(second.exit_code(), Some(7));
    fs::write(place.join("file"), b"undisturbed").unwrap();

    // The machine that has it begins again after a crash, at once.
    first.kill();
    wait_until("the mount is dead", || {
        fs::metadata(&place).err().and_then(|error: io::Error| error.raw_os_error())
            == Some(nix::libc::ENOTCONN)
    });
    device::unmount(&place, true).unwrap();
    let mut again = servers.client("node-1", &servers.key());
    drop(again.mount(&servers, &place));
    device::unmount(&place, false).unwrap();
    assert_eq!(again.exit_code(), Some(0));

    let mut second = servers.client("node-2", &servers.key());
    drop(second.mount(&servers, &place));
    device::unmount(&place, false).unwrap();
}
