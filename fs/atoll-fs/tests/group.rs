//! Three metadata servers: the leader dies or stops under load, members come, go and are replaced

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::processes::Processes;
use common::wait_until;
use nix::sys::signal::Signal;

/// Writes, syncs, renames and removes files until it is told to stop. Any error ends it.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<()>>,
}

fn content(round: u64) -> Vec<u8> {
    let length = 1 + (round * 7919) % 40_000;
    (0..length).map(|at| (at * 31 + round) as u8).collect()
}

fn round(folder: &Path, round: u64) -> std::io::Result<()> {
    let temporary = folder.join("temporary");
    let mut file = File::create(&temporary)?;
    file.write_all(&content(round))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, folder.join(format!("file-{round}")))?;
    if round % 5 == 4 {
        fs::remove_file(folder.join(format!("file-{}", round - 2)))?;
    }
    Ok(())
}

impl Load {
    fn start(folder: PathBuf) -> Load {
        fs::create_dir(&folder).unwrap();
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (stop, rounds) = (stop.clone(), rounds.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    round(&folder, rounds.load(Ordering::Relaxed))?;
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        Load { stop, rounds, thread }
    }

    /// Waits until it has gone on.
    fn goes_on(&self, after: &str) {
        let before = self.rounds.load(Ordering::Relaxed);
        wait_until(&format!("the load goes on after {after}"), || {
            assert!(!self.thread.is_finished(), "the load ended with an error after {after}");
            self.rounds.load(Ordering::Relaxed) >= before + 3
        });
    }

    /// Ends it; how many rounds it made.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().expect("an error reached the application");
        self.rounds.load(Ordering::Relaxed)
    }
}

/// Every file of a load is as it was written, and each that was removed is gone.
fn check(folder: &Path, rounds: u64) {
    for round in 0..rounds {
        let file = folder.join(format!("file-{round}"));
        let removed = round % 5 == 2 && round + 2 < rounds;
        match fs::read(&file) {
            Ok(found) => assert!(!removed && found == content(round), "{} differs", file.display()),
            Err(error) => assert!(removed, "{}: {error}", file.display()),
        }
    }
}

fn leader(cluster: &Processes) -> usize {
    let mut found = None;
    wait_until("there is a leader", || {
        found = cluster.leader();
        found.is_some()
    });
    found.unwrap()
}

/// Waits until so many members vote, are heard of, and have the whole log.
fn wait_for_members(cluster: &Processes, count: usize) {
    wait_until(&format!("{count} members are well"), || {
        let status = cluster.status();
        let members = status["metadata"]["members"].as_array().cloned().unwrap_or_default();
        members.len() == count
            && members.iter().all(|member| {
                member["voter"] == true
                    && member["lag"].as_u64().is_some_and(|lag| lag < 50)
                    && member["silentMs"].as_u64().is_some_and(|ms| ms < 3000)
            })
    });
}

/// The id of the voting member that a server is; `None` while it is none.
fn member_of(cluster: &Processes, number: usize) -> Option<String> {
    let status = cluster.status();
    let members = status["metadata"]["members"].as_array().cloned().unwrap_or_default();
    let at = |member: &&serde_json::Value| {
        member["voter"] == true && member["address"] == cluster.metadata[number].1.as_str()
    };
    Some(members.iter().find(at)?["member"].as_str()?.to_owned())
}

fn member_at(cluster: &Processes, number: usize) -> String {
    member_of(cluster, number).expect("a member")
}

/// The folder of a metadata server.
fn folder_of(cluster: &Processes, number: usize) -> PathBuf {
    cluster.folder.path().join(Processes::metadata_name(number))
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", common::text(output));
}

fn refused(output: &Output, words: &str) {
    assert!(!output.status.success(), "it was not refused: {}", common::text(output));
    assert!(common::text(output).contains(words), "no '{words}' in: {}", common::text(output));
}

#[test]
fn a_leader_that_dies_or_stops_under_load_gives_no_error() {
    let mut cluster = Processes::start_group(3, 2, 2, false);
    let mount = cluster.mount("mnt");
    wait_for_members(&cluster, 3);
    let load = Load::start(mount.join("load"));
    load.goes_on("the start");
    for turn in 0..3 {
        let victim = leader(&cluster);
        Processes::kill(&mut cluster.metadata[victim].0);
        load.goes_on("kill -9 of the leader");
        cluster.start_metadata(victim);
        wait_for_members(&cluster, 3);
        // It wakes up and believes that it leads; nobody may be answered from what it knows.
        let victim = leader(&cluster);
        cluster.signal_metadata(victim, Signal::SIGSTOP);
        load.goes_on("the leader was stopped");
        let made = mount.join(format!("made-meanwhile-{turn}"));
        fs::write(&made, b"new").unwrap();
        cluster.signal_metadata(victim, Signal::SIGCONT);
        for _ in 0..50 {
            assert!(made.exists(), "a leader of yesterday has answered");
        }
        wait_for_members(&cluster, 3);
    }
    let victim = leader(&cluster);
    succeeds(&cluster.admin(&["transfer-leader"], &[]));
    load.goes_on("the leader transferred leadership");
    assert_ne!(leader(&cluster), victim);
    let rounds = load.end();
    check(&mount.join("load"), rounds);
    // All of it is on each member: two of them at a time are enough.
    for down in 0..3 {
        Processes::kill(&mut cluster.metadata[down].0);
        check(&mount.join("load"), rounds);
        cluster.start_metadata(down);
        wait_for_members(&cluster, 3);
    }
}

#[test]
fn members_come_go_and_are_replaced_under_load() {
    let mut cluster = Processes::start_group(1, 1, 1, false);
    let mount = cluster.mount("mnt");
    let load = Load::start(mount.join("load"));
    let (second, third) = (cluster.add_metadata(), cluster.add_metadata());
    for number in [second, third] {
        let address = cluster.metadata[number].1.clone();
        wait_until("the new server answers", || {
            let added = cluster.admin(&["members", "add"], &[&address]);
            added.status.success() || {
                assert!(common::text(&added).contains("respond"), "{}", common::text(&added));
                false
            }
        });
        load.goes_on("a member was added");
    }
    wait_for_members(&cluster, 3);
    let address = cluster.metadata[second].1.clone();
    succeeds(&cluster.admin(&["members", "add"], &[&address]));

    // A disk is gone: at the same address there is another member, which waits.
    let old = member_at(&cluster, third);
    Processes::kill(&mut cluster.metadata[third].0);
    fs::remove_dir_all(cluster.folder.path().join("metadata-2")).unwrap();
    cluster.start_metadata(third);
    let address = cluster.metadata[third].1.clone();
    wait_until("the empty server answers", || {
        let output = cluster.admin(&["members", "add"], &[&address]);
        !output.status.success() && common::text(&output).contains("replace it by")
    });
    load.goes_on("a disk was lost");
    succeeds(&cluster.admin(&["members", "replace"], &[&old, &address]));
    load.goes_on("a member was replaced");
    wait_for_members(&cluster, 3);
    assert_ne!(member_at(&cluster, third), old);

    // The leader leaves: another one leads, and what is left is enough.
    let victim = leader(&cluster);
    let member = member_at(&cluster, victim);
    succeeds(&cluster.admin(&["members", "remove"], &[&member]));
    load.goes_on("the leader was removed");
    wait_for_members(&cluster, 2);
    let gone = cluster.metadata[victim].1.clone();
    refused(&cluster.admin(&["members", "add"], &[&gone]), "empty its data directory");
    Processes::kill(&mut cluster.metadata[victim].0);

    refused(&cluster.admin(&["members", "remove"], &["nonsense"]), "not a member id");
    let other = (0..3).find(|number| *number != victim && *number != leader(&cluster)).unwrap();
    let leading = member_at(&cluster, leader(&cluster));
    // A server that is started while a file is open would wait for itself (see `common::processes`).
    let rounds = load.end();
    Processes::kill(&mut cluster.metadata[other].0);
    // Alone it has no majority, and so nothing can be changed.
    let output = cluster.admin(&["members", "remove"], &[&leading]);
    assert!(!output.status.success(), "{}", common::text(&output));
    cluster.start_metadata(other);
    check(&mount.join("load"), rounds);
    let load = Load::start(mount.join("more"));
    load.goes_on("a majority was missing");
    let rounds = load.end();
    check(&mount.join("more"), rounds);
}

#[test]
fn a_member_that_is_left_goes_on_alone_when_it_is_told_to() {
    let mut cluster = Processes::start_group(3, 1, 1, false);
    let mount = cluster.mount("mnt");
    wait_for_members(&cluster, 3);
    let load = Load::start(mount.join("load"));
    load.goes_on("the start");
    let rounds = load.end();
    // Everything is on the one that will be left.
    wait_until("all members have everything", || {
        let status = cluster.status();
        status["metadata"]["members"]
            .as_array()
            .is_some_and(|all| all.iter().all(|member| member["lag"] == 0))
    });
    let alone = |cluster: &Processes, flags: &[&str]| {
        let mut command = std::process::Command::new(common::atoll_fs());
        command.args([
            "admin",
            "unsafe-recovery",
            "--cluster",
            &cluster.id,
            "--address",
            &cluster.metadata[0].1,
        ]);
        command.arg("--data").arg(cluster.folder.path().join("metadata")).args(flags);
        command.output().unwrap()
    };
    refused(&alone(&cluster, &[]), "--the-others-are-gone");
    refused(&alone(&cluster, &["--the-others-are-gone"]), "in use");
    for number in 0..3 {
        Processes::kill(&mut cluster.metadata[number].0);
    }
    for lost in ["metadata-1", "metadata-2"] {
        fs::remove_dir_all(cluster.folder.path().join(lost)).unwrap();
    }
    succeeds(&alone(&cluster, &["--the-others-are-gone"]));
    cluster.start_metadata(0);
    check(&mount.join("load"), rounds);
    wait_for_members(&cluster, 1);
    // And then it is a group again.
    for number in [1, 2] {
        cluster.start_metadata(number);
        let address = cluster.metadata[number].1.clone();
        wait_until("it is added", || cluster.admin(&["members", "add"], &[&address]).status.success());
    }
    wait_for_members(&cluster, 3);
    let load = Load::start(mount.join("more"));
    load.goes_on("two members were added");
    let leading = leader(&cluster);
    Processes::kill(&mut cluster.metadata[leading].0);
    load.goes_on("the leader was killed");
    let rounds = load.end();
    check(&mount.join("more"), rounds);
}

/// Files below a folder whose names end so.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().filter_map(Result::ok) {
        if entry.path().is_dir() {
            found.extend(files(&entry.path(), ending));
        } else if entry.file_name().to_string_lossy().ends_with(ending) {
            found.push(entry.path());
        }
    }
    found
}

/// Other bytes in the middle of each of these files.
fn scribble(paths: &[PathBuf]) {
    assert!(!paths.is_empty(), "nothing to damage");
    for path in paths {
        // It may just have been compacted away.
        let Ok(file) = File::options().write(true).open(path) else { continue };
        let length = file.metadata().unwrap().len();
        // All of it: in a small table the records are a small part, and what is not a record is in memory already.
        file.write_all_at(&vec![0x5a; length as usize], 0).unwrap();
        file.sync_all().unwrap();
    }
}

#[test]
fn a_member_with_a_damaged_disk_is_made_anew_from_the_others() {
    // Whoever reads a record reads it from the disk: what is damaged there is whole in memory.
    let mut cluster = Processes::start_all(3, 1, 1, false, &["--block-cache", "0"]);
    let mount = cluster.mount("mnt");
    wait_for_members(&cluster, 3);
    let load = Load::start(mount.join("load"));
    load.goes_on("the start");
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("its log has other bytes", |folder| {
            let mut logs = files(&folder.join("raft"), ".log");
            logs.sort();
            // Not the last of what was written: that could be what a crash has torn.
            File::options().write(true).open(&logs[0]).unwrap().write_all_at(&[0x5a; 2000], 5000).unwrap();
        }),
        ("a segment of its log begins with zeroes", |folder| {
            let mut logs = files(&folder.join("raft"), ".log");
            logs.sort();
            File::options().write(true).open(&logs[0]).unwrap().write_all_at(&[0; 4096], 0).unwrap();
        }),
        ("its log is gone", |folder| fs::remove_dir_all(folder.join("raft")).unwrap()),
        ("its records have other bytes", |folder| {
            for table in files(folder, ".sst") {
                let length = fs::metadata(&table).unwrap().len();
                fs::write(&table, vec![0x5a; length as usize]).unwrap();
            }
        }),
    ];
    let made_anew = |cluster: &Processes, number: usize, old: &str, what: &str| {
        wait_for_members(cluster, 3);
        assert_ne!(member_at(cluster, number), old, "{what}: it came back as who it was");
        load.goes_on(what);
        let folder = folder_of(cluster, number);
        wait_until("nothing is kept of what was damaged", || {
            let names = fs::read_dir(&folder).unwrap().filter_map(Result::ok);
            names.into_iter().all(|entry| !entry.file_name().to_string_lossy().starts_with("damaged"))
        });
    };
    for number in 0..3 {
        wait_until("each member knows of the others", || {
            let known = fs::read_to_string(folder_of(&cluster, number).join("members")).unwrap_or_default();
            known.lines().count() == 3
        });
    }
    for (turn, (what, damage)) in damages.into_iter().enumerate() {
        let victim = turn % 3;
        let old = member_at(&cluster, victim);
        let folder = folder_of(&cluster, victim);
        Processes::kill(&mut cluster.metadata[victim].0);
        load.goes_on("a member was killed");
        damage(&folder);
        cluster.start_metadata(victim);
        wait_until(&format!("another member takes its place: {what}"), || {
            member_of(&cluster, victim).is_some_and(|member| member != old)
        });
        made_anew(&cluster, victim, &old, what);
    }

    // While it leads. Whoever reads all of it finds out.
    let victim = leader(&cluster);
    let old = member_at(&cluster, victim);
    let folder = folder_of(&cluster, victim);
    scribble(&files(&folder, ".sst"));
    let mut scribbled = Instant::now();
    wait_until("the leader is replaced by a new member", || {
        // What was being compacted just then is whole in its new place.
        if scribbled.elapsed() > Duration::from_secs(15) {
            scribble(&files(&folder, ".sst"));
            scribbled = Instant::now();
        }
        let _ = cluster.command("fsck").output().unwrap();
        load.goes_on("the leader's records were damaged");
        member_of(&cluster, victim).is_some_and(|member| member != old)
    });
    made_anew(&cluster, victim, &old, "the leader's records were damaged");

    let rounds = load.end();
    check(&mount.join("load"), rounds);
    for down in 0..3 {
        Processes::kill(&mut cluster.metadata[down].0);
        check(&mount.join("load"), rounds);
        let fsck = cluster.command("fsck").output().unwrap();
        assert!(fsck.status.success(), "{}", common::text(&fsck));
        cluster.start_metadata(down);
        wait_for_members(&cluster, 3);
    }
}

#[test]
fn a_member_that_is_alone_refuses_a_damaged_disk_and_says_what_helps() {
    let mut cluster = Processes::start_group(1, 1, 1, false);
    let mount = cluster.mount("mnt");
    fs::write(mount.join("file"), b"kept").unwrap();
    cluster.unmount(&mount);
    Processes::kill(&mut cluster.metadata[0].0);
    let folder = folder_of(&cluster, 0);
    fs::remove_file(folder.join("raft/vote")).unwrap();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = (names(), fs::read(folder.join("identity")).unwrap());
    let mut command = cluster.command("metadata");
    command.arg("--data").arg(&folder).args(["--listen", &cluster.metadata[0].1, "--http", "127.0.0.1:0"]);
    refused(&command.output().unwrap(), "unsafe-recovery");
    assert_eq!((names(), fs::read(folder.join("identity")).unwrap()), before, "something was changed");
    let mut command = std::process::Command::new(common::atoll_fs());
    command.args(["admin", "unsafe-recovery", "--the-others-are-gone", "--cluster", &cluster.id]);
    command.args(["--address", &cluster.metadata[0].1]).arg("--data").arg(&folder);
    succeeds(&command.output().unwrap());
    cluster.start_metadata(0);
    let mount = cluster.mount("again");
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"kept");
}
