//! Repair: a storage server stays away, comes back early, is evacuated and forgotten

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use common::processes::Processes;
use common::wait_until;

const FILES: u64 = 24;
const FILE_BYTES: usize = 3 << 20;

fn content(number: u64) -> Vec<u8> {
    (0..FILE_BYTES).map(|at| (at as u64 * 7 + number * 13 + at as u64 / 4096) as u8).collect()
}

fn write(folder: &Path) {
    for number in 0..FILES {
        let mut file = File::create(folder.join(format!("file-{number}"))).unwrap();
        file.write_all(&content(number)).unwrap();
        file.sync_all().unwrap();
    }
}

fn check(folder: &Path) {
    for number in 0..FILES {
        assert!(fs::read(folder.join(format!("file-{number}"))).unwrap() == content(number), "file {number}");
    }
}

/// A storage server in a status, by the number of its process.
fn server(cluster: &Processes, number: usize) -> serde_json::Value {
    let status = cluster.status();
    let servers = status["storage"].as_array().cloned().unwrap_or_default();
    let at = |server: &&serde_json::Value| server["address"] == cluster.storage[number].1.as_str();
    servers.iter().find(at).cloned().unwrap_or_default()
}

fn copied(cluster: &Processes) -> u64 {
    cluster.status()["repair"]["chunksCopied"].as_u64().unwrap_or(0)
}

fn is_whole(cluster: &Processes) -> bool {
    let status = cluster.status();
    status["chunks"]["short"] == 0 && status["repair"]["copying"] == 0 && status["repair"]["chunksLeft"] == 0
}

#[test]
fn a_server_that_stays_away_is_replaced_and_one_that_comes_back_costs_nothing() {
    let mut cluster = Processes::start_all(1, 4, 2, false, &["--repair-after", "10"]);
    let mount = cluster.mount("mnt");
    write(&mount);
    // What is open is its writer's business: the end of the session seals it.
    cluster.unmount(&mount);
    let victim = (0..4).find(|number| !cluster.chunk_files(*number).is_empty()).unwrap();

    // Away for a moment.
    Processes::kill(&mut cluster.storage[victim].0);
    std::thread::sleep(Duration::from_secs(4));
    cluster.start_storage(victim);
    wait_until("it is back", || cluster.alive_servers() == 4);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(copied(&cluster), 0, "it came back early, and something was copied");

    // Away for longer than it is waited for.
    let held = cluster.chunk_files(victim).len() as u64;
    Processes::kill(&mut cluster.storage[victim].0);
    wait_until("it is noticed", || cluster.status()["chunks"]["short"].as_u64() > Some(0));
    wait_until("its replicas are made anew", || is_whole(&cluster) && copied(&cluster) >= held);
    let mount = cluster.mount("mnt");
    check(&mount);

    // It comes back after all: what it has is of no use any more, and goes.
    cluster.start_storage(victim);
    wait_until("its old replicas are gone", || cluster.chunk_files(victim).is_empty());
    check(&mount);
    assert!(is_whole(&cluster));
}

#[test]
fn an_evacuated_server_is_emptied_while_it_serves_and_may_be_forgotten() {
    let mut cluster = Processes::start_all(1, 3, 2, false, &[]);
    // The chunk that is open is of the evacuated server too: its writer goes on in another one.
    let mount = cluster.mount("mnt");
    write(&mount);
    let victim = (0..3).find(|number| !cluster.chunk_files(*number).is_empty()).unwrap();
    let id = server(&cluster, victim)["server"].as_str().unwrap().to_owned();

    let early = cluster.admin(&["forget"], &[&id]);
    assert!(!early.status.success() && common::text(&early).contains("evacuate"), "{}", common::text(&early));
    let unknown = cluster.admin(&["evacuate"], &["00000000000000ff"]);
    assert!(common::text(&unknown).contains("there is no storage server"), "{}", common::text(&unknown));
    let evacuated = cluster.admin(&["evacuate"], &[&id]);
    assert!(evacuated.status.success(), "{}", common::text(&evacuated));
    let began = Instant::now();
    wait_until("it has nothing any more", || {
        check(&mount);
        server(&cluster, victim)["chunks"] == 0 && is_whole(&cluster)
    });
    println!("evacuated in {:?}", began.elapsed());
    let early = cluster.admin(&["forget"], &[&id]);
    assert!(!early.status.success() && common::text(&early).contains("stop it"), "{}", common::text(&early));
    Processes::kill(&mut cluster.storage[victim].0);
    wait_until("it is forgotten", || cluster.admin(&["forget"], &[&id]).status.success());
    wait_until("it is not missed", || {
        let status = cluster.status();
        status["storage"].as_array().is_some_and(|servers| servers.len() == 2) && status["healthy"] == true
    });
    check(&mount);
    write(&mount);
    check(&mount);
}
