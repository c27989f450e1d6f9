//! What is refused, with a message that says what to do, and nothing lost.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::{Cluster, alive, atoll_fs, text, wait_until};

fn atoll(arguments: &[&str]) -> Output {
    Command::new(atoll_fs()).args(arguments).output().unwrap()
}

/// The command must fail with this exit code and say all of these words.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
}

#[test]
fn a_bad_mount_point_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = path("data");

    fs::write(path("file"), "content").unwrap();
    refused(&atoll(&["local", "up", &path("file"), "--data", &data]), 4, &["isn't a directory"]);

    fs::create_dir(path("full")).unwrap();
    fs::write(path("full/precious"), "content").unwrap();
    refused(&atoll(&["local", "up", &path("full"), "--data", &data]), 4, &["isn't empty"]);
    assert_eq!(fs::read_to_string(path("full/precious")).unwrap(), "content");

    fs::create_dir(path("taken")).unwrap();
    common::run("mount", &["-t", "tmpfs", "none", &path("taken")], folder.path());
    let output = atoll(&["local", "up", &path("taken"), "--data", &data]);
    common::detach_all(folder.path());
    refused(&output, 4, &["already mounted", "tmpfs"]);
}

#[test]
fn foreign_and_newer_data_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/thesis"), "years").unwrap();
    refused(&atoll(&["local", "up", &path("mnt"), "--data", &path("foreign")]), 4, &["--data"]);
    assert_eq!(fs::read_dir(path("foreign")).unwrap().count(), 1);

    fs::create_dir(path("newer")).unwrap();
    fs::write(path("newer/cluster.json"), r#"{"format":1000}"#).unwrap();
    refused(&atoll(&["local", "up", &path("mnt"), "--data", &path("newer")]), 4, &["newer"]);
}

#[test]
fn bad_flags_and_sizes_are_refused() {
    refused(&atoll(&["local", "up", "/nowhere/mnt", "--capacity", "lots"]), 2, &["10G"]);
    refused(&atoll(&["local", "up", "/nowhere/mnt", "--copies", "9"]), 2, &["--copies"]);
    refused(&atoll(&["local", "up", "/nowhere/mnt", "--no-such-flag"]), 2, &["--no-such-flag"]);
    refused(&atoll(&["mount", "/nowhere"]), 2, &["--cluster"]);
    let folder = tempfile::tempdir().unwrap();
    let mountpoint = folder.path().join("mnt").to_str().unwrap().to_owned();
    let data = folder.path().join("data").to_str().unwrap().to_owned();
    refused(&atoll(&["local", "up", &mountpoint, "--data", &data, "--capacity", "10"]), 1, &["too small"]);
    refused(&atoll(&["local", "down", &mountpoint, "--data", &data]), 3, &["local up"]);
    refused(&atoll(&["local", "status", &mountpoint, "--data", &data]), 3, &["local up"]);
}

#[test]
fn up_and_down_can_be_repeated_and_a_cluster_is_used_once() {
    let cluster = Cluster::start(&["--copies", "1"]);
    fs::write(cluster.path("file"), "content").unwrap();
    let again = cluster.try_up(&[]);
    assert!(again.status.success() && text(&again).contains("already up"), "{}", text(&again));
    let elsewhere = cluster.folder().join("other");
    let second =
        atoll(&["local", "up", elsewhere.to_str().unwrap(), "--data", cluster.data.to_str().unwrap()]);
    refused(&second, 4, &["in use"]);
    cluster.down();
    let down = cluster.try_down();
    assert!(down.status.success() && text(&down).contains("not running"), "{}", text(&down));
    refused(&cluster.try_up(&["--capacity", "77Gi"]), 4, &["--capacity"]);
    cluster.up();
    assert_eq!(fs::read_to_string(cluster.path("file")).unwrap(), "content");
}

#[test]
fn after_a_kill_the_next_up_detaches_its_own_dead_mount() {
    let cluster = Cluster::start(&["--copies", "1"]);
    fs::write(cluster.path("file"), "content").unwrap();
    let file = fs::File::open(cluster.path("file")).unwrap();
    file.sync_all().unwrap();
    for _ in 0..3 {
        cluster.kill();
        assert!(fs::metadata(&cluster.mountpoint).is_err(), "a dead mount answers");
        cluster.up();
        assert_eq!(fs::read_to_string(cluster.path("file")).unwrap(), "content");
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = table.lines().filter(|line| line.contains(cluster.mountpoint.to_str().unwrap())).count();
    assert_eq!(mounts, 1, "dead mounts pile up");
}

#[test]
fn down_stops_the_process_and_takes_the_mount_away() {
    let cluster = Cluster::start(&["--copies", "1"]);
    let pid = cluster.pid().unwrap();
    fs::write(cluster.path("unsynced"), vec![5; 3_000_000]).unwrap();
    cluster.down();
    assert!(!alive(pid));
    assert_eq!(fs::read_dir(&cluster.mountpoint).unwrap().count(), 0);
    cluster.up();
    assert_eq!(
        fs::read(cluster.path("unsynced")).unwrap(),
        vec![5; 3_000_000],
        "down lost what was buffered"
    );
}

#[test]
fn a_wrong_key_or_cluster_is_told_apart_from_no_answer() {
    let cluster = Cluster::start(&["--copies", "1"]);
    let running: serde_json::Value =
        serde_json::from_slice(&fs::read(format!("/run/atoll/{}.json", cluster.id().unwrap())).unwrap())
            .unwrap();
    let address = running["metadata"].as_str().unwrap();
    let id = cluster.id().unwrap();
    let key = cluster.data.join("key");
    let other_key = cluster.folder().join("other-key");
    let other_id = atoll(&["keygen", other_key.to_str().unwrap()]);
    assert!(other_id.status.success());
    let other_id = String::from_utf8(other_id.stdout).unwrap();
    refused(&atoll(&["keygen", other_key.to_str().unwrap()]), 4, &["exists"]);
    let status = |id: &str, key: &std::path::Path, address: &str| {
        atoll(&["status", "--cluster", id, "--key-file", key.to_str().unwrap(), "--metadata", address])
    };
    assert!(status(&id, &key, address).status.success());
    refused(&status(&id, &other_key, address), 4, &["key"]);
    refused(&status(other_id.trim(), &key, address), 4, &[id.as_str()]);
    refused(&status(&id, &key, "127.0.0.1:1"), 5, &["127.0.0.1:1"]);
    refused(&status(&id, &key, "nonsense"), 1, &["host:port"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let id = atoll(&["keygen", key.to_str().unwrap()]);
    let id = String::from_utf8(id.stdout).unwrap();
    let data = folder.path().join("data");
    let output = atoll(&[
        "metadata",
        "--cluster",
        id.trim(),
        "--key-file",
        key.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--listen",
        &address,
        "--http",
        "127.0.0.1:0",
    ]);
    refused(&output, 1, &[&address, "in use"]);
}

#[test]
fn metrics_and_health_are_served() {
    let cluster = Cluster::start(&["--copies", "2"]);
    fs::write(cluster.path("file"), vec![1; 100_000]).unwrap();
    let get = |path: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(cluster.http()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get("/healthz").starts_with("HTTP/1.1 200"));
    wait_until("ready", || get("/readyz").starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics");
    assert!(metrics.contains("atoll_") && metrics.trim_end().ends_with("# EOF"), "{metrics}");
}
