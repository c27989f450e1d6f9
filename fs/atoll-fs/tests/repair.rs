//! Repair: a storage server stays away, comes back early, is drained and forgotten

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::processes::Processes;
use common::wait_until;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

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

/// Flips one bit in each block that holds something, headers and tables of checksums (the first 512 KiB) left alone.
fn flip(file: &File) {
    let length = file.metadata().unwrap().len();
    let mut block = vec![0; 4096];
    for at in (1 << 19..length / 4096 * 4096).step_by(4096) {
        if file.read_exact_at(&mut block, at).is_ok() && block.iter().any(|byte| *byte != 0) {
            block[100] ^= 4;
            file.write_all_at(&block, at).unwrap();
        }
    }
}

fn shorten(file: &File) {
    file.set_len(600_000).unwrap();
}

fn zero(file: &File) {
    let length = file.metadata().unwrap().len();
    file.set_len(0).unwrap();
    file.set_len(length).unwrap();
}

/// Damages all that a server has.
fn damage(cluster: &Processes, server: usize, how: fn(&File)) {
    for path in cluster.chunk_files(server) {
        how(&OpenOptions::new().read(true).write(true).open(path).unwrap());
    }
}

#[test]
fn damage_on_one_server_goes_unnoticed_and_is_healed() {
    let mut cluster = Processes::start_all(1, 3, 2, false, &[]);
    let mount = cluster.mount("mnt");
    write(&mount);
    // The end of the session seals what it wrote.
    cluster.unmount(&mount);
    let victim = |cluster: &Processes, first: usize| {
        (first..first + 3).map(|at| at % 3).find(|at| !cluster.chunk_files(*at).is_empty()).unwrap()
    };
    let reading_heals = |cluster: &mut Processes, name: &str| {
        let before = copied(cluster);
        let mount = cluster.mount("mnt");
        wait_until(&format!("{name} replicas that were read are made anew"), || {
            // Past the kernel's pages: each round asks the servers.
            for number in 0..FILES {
                let file = File::open(mount.join(format!("file-{number}"))).unwrap();
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            }
            check(&mount);
            copied(cluster) > before && is_whole(cluster)
        });
        cluster.unmount(&mount);
    };
    let nothing_is_bad = |cluster: &Processes| {
        let output = cluster.command("fsck").arg("--data").output().unwrap();
        output.status.code() == Some(0) && is_whole(cluster)
    };
    for (number, (name, how)) in
        [("flipped", flip as fn(&File)), ("shortened", shorten)].into_iter().enumerate()
    {
        damage(&cluster, victim(&cluster, number), how);
        reading_heals(&mut cluster, name);
        // Replicas that no reader chose are found by reading all of them.
        wait_until(&format!("all {name} replicas are made anew"), || nothing_is_bad(&cluster));
    }
    // Files that are deleted are missed when the server starts again.
    let server = victim(&cluster, 0);
    let (before, files) = (copied(&cluster), cluster.chunk_files(server));
    Processes::kill(&mut cluster.storage[server].0);
    files.iter().for_each(|path| fs::remove_file(path).unwrap());
    cluster.start_storage(server);
    wait_until("deleted replicas are made anew", || {
        copied(&cluster) >= before + files.len() as u64 && nothing_is_bad(&cluster)
    });
    // What was zeroed under a running server looks to that server as if it had never been written. Who reads knows better…
    damage(&cluster, victim(&cluster, 1), zero);
    reading_heals(&mut cluster, "zeroed");
    // …of what is read. So does the check, which says so, and does what it is asked to.
    wait_until("nothing is wrong", || {
        cluster.command("fsck").args(["--data", "--repair", "replica-short"]).output().unwrap();
        nothing_is_bad(&cluster)
    });
    let server = victim(&cluster, 2);
    let (before, damaged) = (copied(&cluster), cluster.chunk_files(server).len() as u64);
    damage(&cluster, server, zero);
    let output = cluster.command("fsck").arg("--data").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", common::text(&output));
    assert!(common::text(&output).contains("replica-short"), "{}", common::text(&output));
    let output = cluster.command("fsck").args(["--data", "--repair", "replica-short"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", common::text(&output));
    wait_until("what was taken out is made anew", || {
        copied(&cluster) >= before + damaged && nothing_is_bad(&cluster)
    });
    let mount = cluster.mount("mnt");
    check(&mount);
}

#[test]
fn what_was_zeroed_and_nobody_reads_is_found_by_the_scrub() {
    let mut cluster = Processes::start_all(1, 3, 2, false, &[]);
    cluster.storage_flags = &["--scrub-rate", "1Gi", "--scrub-pause", "1"];
    for number in 0..3 {
        Processes::kill(&mut cluster.storage[number].0);
        cluster.start_storage(number);
    }
    wait_until("the servers are back", || cluster.alive_servers() == 3);
    let mount = cluster.mount("mnt");
    write(&mount);
    cluster.unmount(&mount);
    let server = (0..3).find(|number| !cluster.chunk_files(*number).is_empty()).unwrap();
    let (before, damaged) = (copied(&cluster), cluster.chunk_files(server).len() as u64);
    damage(&cluster, server, zero);
    wait_until("what was zeroed is made anew", || copied(&cluster) >= before + damaged && is_whole(&cluster));
    let output = cluster.command("fsck").arg("--data").output().unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
    let mount = cluster.mount("mnt");
    check(&mount);
}

#[test]
fn what_is_good_in_two_bad_replicas_is_kept_and_put_together() {
    let mut cluster = Processes::start(2, 2);
    let mount = cluster.mount("mnt");
    write(&mount);
    cluster.unmount(&mount);
    // Each server has what the other one has not.
    for server in 0..2 {
        for path in cluster.chunk_files(server) {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let mut block = [0; 4096];
            let at = (1 + server as u64) << 20;
            file.read_exact_at(&mut block, at).unwrap();
            block[77] ^= 1;
            file.write_all_at(&block, at).unwrap();
        }
    }
    let held: Vec<usize> = (0..2).map(|server| cluster.chunk_files(server).len()).collect();
    assert!(held[0] > 0);
    for arguments in [&["--data"][..], &["--data", "--repair", "replica-bad"]] {
        let output = cluster.command("fsck").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", common::text(&output));
        assert!(common::text(&output).contains("replica-bad"), "{}", common::text(&output));
    }
    // The servers have said so as well, and had time to be told to delete.
    std::thread::sleep(Duration::from_secs(5));
    let mount = cluster.mount("mnt");
    check(&mount);
    let now: Vec<usize> = (0..2).map(|server| cluster.chunk_files(server).len()).collect();
    assert_eq!(now, held, "the only good copy of something was thrown away");

    // Where a further replica has room, it is made of what is good in both.
    cluster.add_storage(2048);
    wait_until("all replicas are whole", || {
        cluster.command("fsck").arg("--data").output().unwrap().status.success() && is_whole(&cluster)
    });
    check(&mount);
}

#[test]
fn a_server_that_is_added_gets_its_share() {
    const DISK_MIB: u64 = 2048;
    let mut cluster = Processes::start_on((1, None), (1, Some(DISK_MIB)), 1, false, &[]);
    let mount = cluster.mount("mnt");
    for round in 0..12 {
        let folder = mount.join(format!("round-{round}"));
        fs::create_dir(&folder).unwrap();
        write(&folder);
    }
    cluster.unmount(&mount);
    let all = cluster.chunk_files(0).len();
    let mount = cluster.mount("mnt");
    let new = cluster.add_storage(DISK_MIB);
    wait_until("the new server has its share", || {
        check(&mount.join("round-3"));
        cluster.chunk_files(new).len() * 5 >= all && is_whole(&cluster)
    });
    // What was copied is deleted where it was, and it comes to rest.
    wait_until("what was moved is there once", || {
        cluster.chunk_files(0).len() + cluster.chunk_files(new).len() == all && is_whole(&cluster)
    });
    let rested = copied(&cluster);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(copied(&cluster), rested, "it moves things to and fro");
    for round in 0..12 {
        check(&mount.join(format!("round-{round}")));
    }
    cluster.unmount(&mount);
    let output = cluster.command("fsck").arg("--data").output().unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
}

#[test]
fn a_drained_server_is_emptied_while_it_serves_and_may_be_forgotten() {
    let mut cluster = Processes::start_all(1, 3, 2, false, &[]);
    // The chunk that is open is of the drained server, too: its writer continues in another one.
    let mount = cluster.mount("mnt");
    write(&mount);
    let victim = (0..3).find(|number| !cluster.chunk_files(*number).is_empty()).unwrap();
    let id = server(&cluster, victim)["server"].as_str().unwrap().to_owned();

    let early = cluster.admin(&["forget"], &[&id]);
    assert!(!early.status.success() && common::text(&early).contains("drain"), "{}", common::text(&early));
    let unknown = cluster.admin(&["drain"], &["00000000000000ff"]);
    assert!(
        common::text(&unknown).contains("storage server 00000000000000ff doesn't exist"),
        "{}",
        common::text(&unknown)
    );
    let drained = cluster.admin(&["drain"], &[&id]);
    assert!(drained.status.success(), "{}", common::text(&drained));
    let began = Instant::now();
    wait_until("it has nothing any more", || {
        check(&mount);
        server(&cluster, victim)["chunks"] == 0 && is_whole(&cluster)
    });
    println!("drained in {:?}", began.elapsed());
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
