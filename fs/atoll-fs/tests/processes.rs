//! The same pieces as processes of their own: two mounts, servers that die and come back, damaged chunks.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::processes::Processes;
use common::{detach_all, text, wait_until};
use nix::sys::signal::Signal;

fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|at| (at as u8).wrapping_mul(17).wrapping_add((at >> 8) as u8) ^ seed).collect()
}

#[test]
fn two_mounts_agree_from_close_to_open() {
    let mut cluster = Processes::start(2, 2);
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    for (round, bytes) in [10usize, 5_000, 20_000, 3_000_000, 100, 0].into_iter().enumerate() {
        let (writer, reader) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        fs::write(writer.join("file"), pattern(bytes, round as u8)).unwrap();
        assert!(fs::read(reader.join("file")).unwrap() == pattern(bytes, round as u8), "round {round}");
        assert_eq!(fs::metadata(reader.join("file")).unwrap().len(), bytes as u64);
    }
    // Names are seen at once.
    fs::create_dir(one.join("folder")).unwrap();
    fs::rename(two.join("file"), two.join("folder/moved")).unwrap();
    assert!(one.join("folder/moved").exists() && !one.join("file").exists());
    // A file that one mount unlinks stays with the other that has it open.
    fs::write(one.join("open"), pattern(100_000, 1)).unwrap();
    let held = File::open(two.join("open")).unwrap();
    fs::remove_file(one.join("open")).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let mut content = vec![0; 100_000];
    held.read_exact_at(&mut content, 0).unwrap();
    assert!(content == pattern(100_000, 1));
    assert!(!two.join("open").exists());
    // Exclusive creation has one winner.
    let winners = (0..40).map(|at| {
        let race = |root: &Path| {
            let path = root.join(format!("race-{at}"));
            std::thread::spawn(move || OpenOptions::new().write(true).create_new(true).open(path).is_ok())
        };
        let (a, b) = (race(&one), race(&two));
        u32::from(a.join().unwrap()) + u32::from(b.join().unwrap())
    });
    assert!(winners.into_iter().all(|winners| winners == 1));
}

#[test]
fn servers_that_are_killed_under_load_give_no_error() {
    let mut cluster = Processes::start_with(3, 2, true);
    let mount = cluster.mount("mnt");
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3u8)
        .map(|writer| {
            let (mount, stop) = (mount.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut count = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    let bytes = [100, 9_000, 70_000, 2_000_000][count as usize % 4];
                    let path = mount.join(format!("file-{writer}-{count}"));
                    let mut file = File::create(&path).unwrap();
                    file.write_all(&pattern(bytes, writer)).unwrap();
                    file.sync_all().unwrap();
                    drop(file);
                    assert!(fs::read(&path).unwrap() == pattern(bytes, writer));
                    count += 1;
                }
                count
            })
        })
        .collect();
    let pause = || std::thread::sleep(std::time::Duration::from_millis(700));
    for round in 0..4 {
        pause();
        if round % 2 == 0 {
            cluster.kill_kept("metadata");
        } else {
            cluster.kill_kept(&format!("storage-{}", round % 3));
        }
        pause();
    }
    pause();
    pause();
    stop.store(true, Ordering::Relaxed);
    let counts: Vec<u32> =
        writers.into_iter().map(|writer| writer.join().expect("a writer saw an error")).collect();
    assert!(counts.iter().all(|count| *count > 0));
    for (writer, count) in counts.into_iter().enumerate() {
        for at in 0..count {
            let bytes = [100, 9_000, 70_000, 2_000_000][at as usize % 4];
            let content = fs::read(mount.join(format!("file-{writer}-{at}"))).unwrap();
            assert!(content == pattern(bytes, writer as u8), "file-{writer}-{at}");
        }
    }
}

/// More writers of a megabyte wait than there are buffers for requests; whatever needs no storage server goes on, and in
/// the end everything is there.
#[test]
fn many_large_writes_that_wait_hold_nobody_else_up() {
    const WRITERS: usize = 220;
    const MIB: usize = 1 << 20;
    let mut cluster = Processes::start(1, 1);
    let mount = cluster.mount("mnt");
    let files: Vec<File> =
        (0..WRITERS).map(|writer| File::create(mount.join(format!("file-{writer}"))).unwrap()).collect();
    cluster.signal_storage(0, Signal::SIGSTOP);
    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = files
        .into_iter()
        .enumerate()
        .map(|(writer, file)| {
            let written = Arc::clone(&written);
            std::thread::spawn(move || {
                file.write_all_at(&pattern(MIB, writer as u8), 0).unwrap();
                written.fetch_add(1, Ordering::Relaxed);
                file.sync_all().unwrap();
            })
        })
        .collect();
    // As many are taken as the mount may buffer; the others wait from then on.
    let mut before = u64::MAX;
    wait_until("no more is taken", || {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        std::mem::replace(&mut before, written.load(Ordering::Relaxed)) == written.load(Ordering::Relaxed)
    });
    let (answered, answers) = std::sync::mpsc::channel();
    let path = mount.clone();
    std::thread::spawn(move || {
        let small = path.join("small");
        let found = fs::metadata(&path).is_ok()
            && nix::sys::statvfs::statvfs(&path).is_ok()
            && fs::create_dir(&small).is_ok()
            && fs::read_dir(&path).is_ok_and(|entries| entries.count() == WRITERS + 1)
            && fs::remove_dir(&small).is_ok();
        let _ = answered.send(found);
    });
    let found = answers.recv_timeout(std::time::Duration::from_secs(10));
    let waiting = WRITERS as u64 - written.load(Ordering::Relaxed);
    cluster.signal_storage(0, Signal::SIGCONT);
    assert_eq!(found, Ok(true), "the mount stands still while {waiting} writes wait");
    assert!(waiting > 130, "only {waiting} writes waited");
    writers.into_iter().for_each(|writer| writer.join().expect("a writer saw an error"));
    for writer in 0..WRITERS {
        let content = fs::read(mount.join(format!("file-{writer}"))).unwrap();
        assert!(content == pattern(MIB, writer as u8), "file-{writer}");
    }
}

#[test]
fn a_storage_server_that_is_stopped_gives_no_error_and_its_copies_are_made_up_for() {
    const MIB: usize = 1 << 20;
    let block = |number: u64| pattern(MIB, number as u8);
    let mut cluster = Processes::start(3, 3);
    let mount = cluster.mount("mnt");
    let path = mount.join("file");
    let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = std::thread::spawn({
        let (path, written, stop) = (path.clone(), Arc::clone(&written), Arc::clone(&stop));
        move || {
            let file = File::create(&path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let number = written.load(Ordering::Relaxed);
                file.write_all_at(&block(number), (number % 32) * MIB as u64).unwrap();
                file.sync_all().unwrap();
                written.store(number + 1, Ordering::Relaxed);
            }
        }
    });
    for victim in 0..6 {
        let go_on = |what: &str| {
            let before = written.load(Ordering::Relaxed);
            wait_until(what, || written.load(Ordering::Relaxed) > before + 5 || writer.is_finished());
        };
        go_on("it is written");
        cluster.signal_storage(victim % 3, Signal::SIGSTOP);
        go_on("writing goes on without a server that is stopped");
        cluster.signal_storage(victim % 3, Signal::SIGCONT);
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer saw an error");
    wait_until("every chunk has three copies again", || {
        cluster.alive_servers() == 3 && cluster.status()["chunks"]["short"] == 0
    });
    let fsck = cluster.command("fsck").arg("--data").output().unwrap();
    assert!(fsck.status.success(), "{}", text(&fsck));
    cluster.unmount(&mount);
    let mount = cluster.mount("again");
    let content = fs::read(mount.join("file")).unwrap();
    let written = written.load(Ordering::Relaxed);
    for number in written.saturating_sub(32)..written {
        let at = (number % 32) as usize * MIB;
        assert!(content[at..at + MIB] == block(number), "write {number} of {written}");
    }
}

#[test]
fn a_damaged_missing_or_short_replica_goes_unnoticed_and_damage_everywhere_is_an_error() {
    let mut cluster = Processes::start(2, 2);
    let mount = cluster.mount("mnt");
    let content = pattern(5_000_000, 9);
    let mut file = File::create(mount.join("file")).unwrap();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let read_fresh = |path: &Path| {
        // Past the kernel's pages.
        let file = File::open(path).unwrap();
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let mut content = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).map(|()| content)
    };
    let damage = |files: &[PathBuf], how: fn(&File)| {
        assert!(!files.is_empty(), "no chunk file found");
        for path in files {
            how(&OpenOptions::new().read(true).write(true).open(path).unwrap());
        }
    };
    let flip_everything = |file: &File| {
        let length = file.metadata().unwrap().len();
        let mut block = vec![0; 4096];
        for at in (1 << 19..length / 4096 * 4096).step_by(4096) {
            if file.read_exact_at(&mut block, at).is_ok() && block.iter().any(|byte| *byte != 0) {
                block[100] ^= 4;
                file.write_all_at(&block, at).unwrap();
            }
        }
    };
    damage(&cluster.chunk_files(0), flip_everything);
    assert!(read_fresh(&mount.join("file")).unwrap() == content, "a flipped bit got through");
    damage(&cluster.chunk_files(0), |file| file.set_len(300_000).unwrap());
    assert!(read_fresh(&mount.join("file")).unwrap() == content, "a short replica got through");
    for path in cluster.chunk_files(0) {
        fs::remove_file(path).unwrap();
    }
    assert!(read_fresh(&mount.join("file")).unwrap() == content, "a missing replica got through");
    damage(&cluster.chunk_files(1), flip_everything);
    let error = read_fresh(&mount.join("file")).expect_err("damaged bytes were served");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    // Nothing else is disturbed.
    fs::write(mount.join("other"), pattern(1_000_000, 3)).unwrap();
    assert!(fs::read(mount.join("other")).unwrap() == pattern(1_000_000, 3));
}

#[test]
fn one_server_of_two_is_enough_to_go_on_writing() {
    let mut cluster = Processes::start(2, 2);
    let mount = cluster.mount("mnt");
    fs::write(mount.join("before"), pattern(1_000_000, 1)).unwrap();
    Processes::kill(&mut cluster.storage[0].0);
    let mut file = File::create(mount.join("during")).unwrap();
    file.write_all(&pattern(1_000_000, 2)).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(fs::read(mount.join("before")).unwrap() == pattern(1_000_000, 1));
    assert!(fs::read(mount.join("during")).unwrap() == pattern(1_000_000, 2));
    wait_until("status tells of the silent server", || {
        let status = cluster.status();
        status["healthy"] == false
            && status["problems"].as_array().is_some_and(|problems| !problems.is_empty())
    });
    cluster.start_storage(0);
    wait_until("the server is back", || cluster.alive_servers() == 2);
}

#[test]
fn sigterm_writes_everything_out() {
    let mut cluster = Processes::start(1, 1);
    let mount = cluster.mount("mnt");
    fs::write(mount.join("file"), pattern(2_000_000, 5)).unwrap();
    let mut open = File::create(mount.join("open")).unwrap();
    open.write_all(&pattern(300_000, 6)).unwrap();
    let (mut child, path) = cluster.mounts.pop().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "the mount ended with {status}");
    drop(open);
    detach_all(&path);
    let mount = cluster.mount("again");
    assert!(fs::read(mount.join("file")).unwrap() == pattern(2_000_000, 5));
    assert!(fs::read(mount.join("open")).unwrap() == pattern(300_000, 6));
}

#[test]
fn a_storage_folder_of_another_cluster_is_refused() {
    let folder = {
        let mut cluster = Processes::start(1, 1);
        Processes::kill(&mut cluster.storage[0].0);
        let folder = tempfile::tempdir().unwrap();
        common::run(
            "cp",
            &["-a", cluster.folder.path().join("storage-0").to_str().unwrap(), "."],
            folder.path(),
        );
        (folder, cluster.id.clone())
    };
    let (folder, id) = folder;
    let other = Processes::start(1, 1);
    let output = other
        .command("storage")
        .arg("--data")
        .arg(folder.path().join("storage-0"))
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.code() == Some(4) && said.contains(&id), "{said}");
}
