//! The serving process is killed with -9 again and again while programs use the mount; none of their calls may fail.
//!
//! Three kinds of process, all of them this test's program: the test itself keeps the bundle (as the holder does) and has
//! no file of the mount open; *servers* inherit the bundle, serve, and are killed; the *load* uses the mount.
//! (A process that both keeps a bundle and has files of the mount open deadlocks when it forks: exec closes the files,
//! and each close is a request that nobody answers.)

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atoll_fuse::Layout;
use atoll_fuse::adapter::Adapter;
use atoll_fuse::bundle::Bundle;
use atoll_fuse::device::{Device, inherited};
use atoll_fuse::session::{InitOptions, Session};
use support::Mounted;
use support::folder::{Folder, PATIENT_OFFSET};

/// How often the server is killed.
const KILLS: u32 = 8;
/// How long each server lives.
const LIFETIME: Duration = Duration::from_millis(350);
/// Threads that use the mount.
const THREADS: usize = 6;
/// Bytes of each thread's file; writes of this size need a buffer, the small ones in between a slot.
const FILE_BYTES: usize = 300_000;
/// How long the load may take to end once it is told to.
const TIMEOUT: Duration = Duration::from_secs(60);

const DESCRIPTORS: &str = "ATOLL_TEST_DESCRIPTORS";
const BACKING: &str = "ATOLL_TEST_BACKING";
const MOUNT: &str = "ATOLL_TEST_MOUNT";
const RESEND: &str = "ATOLL_TEST_RESEND";
const STUCK: &str = "ATOLL_TEST_STUCK";
const STOP: &str = "ATOLL_TEST_STOP";
const WRITERS: &str = "ATOLL_TEST_WRITERS";
/// Writers of a megabyte each: more than may keep a buffer.
const WRITERS_COUNT: usize = 150;

/// Not a test: what a server process does. Returns at once where it isn't one.
#[test]
fn role_server() {
    let (Ok(descriptors), Ok(backing)) = (std::env::var(DESCRIPTORS), std::env::var(BACKING)) else { return };
    let mut descriptors: Vec<_> = descriptors
        .split(',')
        // SAFETY: inherited for this, and named to nobody else.
        .map(|number| unsafe { inherited(number.parse().expect("a number")) })
        .collect();
    let memory = descriptors.pop().expect("the request memory");
    let bundle = Bundle::from_parts(descriptors, memory, true);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let adapter = Adapter::new(Arc::new(Folder::new(Path::new(&backing))));
    let session = Session::start(bundle, InitOptions::default(), adapter, runtime.handle()).expect("starts");
    runtime.block_on(session.ended());
}

/// Not a test: what the process that uses the mount does. Prints how many rounds it made and how many calls failed.
#[test]
fn role_load() {
    let (Ok(mount), Ok(stop)) = (std::env::var(MOUNT), std::env::var(STOP)) else { return };
    let (rounds, failures) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let path = Path::new(&mount).join(format!("file-{thread}"));
            let (rounds, failures, stop) = (&rounds, &failures, Path::new(&stop));
            scope.spawn(move || {
                let mut round = 0u64;
                while !stop.exists() {
                    round += 1;
                    if let Err(problem) = one_round(&path, thread as u64, round) {
                        eprintln!("thread {thread}, round {round}: {problem}");
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
                rounds.fetch_add(round, Ordering::Relaxed);
            });
        }
    });
    println!("load: {} {}", rounds.into_inner(), failures.into_inner());
}

/// Not a test: a process with one call that takes very long.
#[test]
fn role_stuck() {
    let Ok(path) = std::env::var(STUCK) else { return };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("opens the patient file");
    let layout = std::alloc::Layout::from_size_align(4096, 4096).expect("layout");
    // SAFETY: a valid layout; zeroed memory is initialised. It is left to the end of the process.
    let page = unsafe { std::slice::from_raw_parts_mut(std::alloc::alloc_zeroed(layout), 4096) };
    file.read_exact_at(page, PATIENT_OFFSET).expect("reads in the end");
    assert!(page.iter().all(|byte| *byte == 7), "what was written there");
}

/// Not a test: a process whose threads all write a megabyte where it takes very long.
#[test]
fn role_writers() {
    let Ok(folder) = std::env::var(WRITERS) else { return };
    std::thread::scope(|scope| {
        for writer in 0..WRITERS_COUNT {
            let path = Path::new(&folder).join(format!("file-{writer}"));
            scope.spawn(move || {
                let file = OpenOptions::new().write(true).open(path).expect("opens");
                file.write_all_at(&megabyte(writer), PATIENT_OFFSET).expect("writes in the end");
            });
        }
    });
}

/// What a writer writes.
fn megabyte(writer: usize) -> Vec<u8> {
    (0..1 << 20).map(|i: usize| (i / 11 + writer * 3) as u8).collect()
}

/// Writes, reads back, looks at attributes and lists: nothing whose second execution would be seen.
fn one_round(path: &Path, thread: u64, round: u64) -> std::io::Result<()> {
    let wrong = |what: String| Err(std::io::Error::other(what));
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let large = round.is_multiple_of(16);
    let bytes = if large { FILE_BYTES } else { 100 + (round as usize * 37) % 9000 };
    let data: Vec<u8> = (0..bytes as u64).map(|i| (i ^ round ^ (thread << 4)) as u8).collect();
    file.write_all_at(&data, (round % 5) * 4096)?;
    let mut back = vec![0; bytes];
    file.read_exact_at(&mut back, (round % 5) * 4096)?;
    if back != data {
        return wrong("what was read is not what was written".into());
    }
    let metadata = fs::metadata(path)?;
    if metadata.size() < bytes as u64 || metadata.ino() == 0 {
        return wrong(format!("size {}", metadata.size()));
    }
    if round.is_multiple_of(8) {
        file.sync_data()?;
        let listed = fs::read_dir(path.parent().expect("parent"))?.count();
        if listed != THREADS {
            return wrong(format!("{listed} entries"));
        }
    }
    Ok(())
}

/// Starts this program again as one of the roles.
fn role(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
    command
}

fn serve(bundle: &Bundle, backing: &Path, resend: bool) -> Child {
    let descriptors: Vec<RawFd> =
        bundle.devices().chain([bundle.memory_fd()]).map(|descriptor| descriptor.as_raw_fd()).collect();
    let list: Vec<String> = descriptors.iter().map(ToString::to_string).collect();
    let mut command = role("role_server");
    command.env(DESCRIPTORS, list.join(",")).env(BACKING, backing).stdout(Stdio::null());
    if resend {
        command.env(RESEND, "1");
    }
    // SAFETY: fcntl is async-signal-safe, and the list was made before the fork.
    unsafe {
        command.pre_exec(move || {
            for descriptor in &descriptors {
                if libc::fcntl(*descriptor, libc::F_SETFD, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn().expect("server starts")
}

#[test]
fn no_call_fails_while_servers_are_killed() {
    kill_servers_under_load(true);
}

/// As on kernels before 6.9: the request memory is the only net.
#[test]
fn no_call_fails_without_the_kernels_help() {
    kill_servers_under_load(false);
}

fn kill_servers_under_load(resend: bool) {
    let backing = tempfile::tempdir().expect("backing");
    let outside = tempfile::tempdir().expect("outside");
    let stop: PathBuf = outside.path().join("stop");
    for thread in 0..THREADS {
        File::create_new(backing.path().join(format!("file-{thread}"))).expect("file");
    }
    let mounted = Mounted::volume();
    let device =
        Device::from_fd(std::os::fd::AsFd::as_fd(&mounted.device).try_clone_to_owned().expect("dup"));
    let bundle = Bundle::new(device, 2, Layout::default(), &mounted.options).expect("bundle");

    let mut server = serve(&bundle, backing.path(), resend);
    let mut load = role("role_load")
        .env(MOUNT, &mounted.path)
        .env(STOP, &stop)
        .stdout(Stdio::piped())
        .spawn()
        .expect("load starts");
    for _ in 0..KILLS {
        std::thread::sleep(LIFETIME);
        server.kill().expect("kills");
        server.wait().expect("reaps");
        server = serve(&bundle, backing.path(), resend);
    }
    std::thread::sleep(LIFETIME);
    File::create_new(&stop).expect("stop file");
    let deadline = Instant::now() + TIMEOUT;
    let status = loop {
        match load.try_wait().expect("waits") {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.is_none() {
        // Whoever waits for the mount is let go, so that the test can end.
        let waiting = atoll_fuse::device::waiting(mounted.connection);
        let _ = atoll_fuse::device::abort(mounted.connection);
        let _ = (load.kill(), load.wait(), server.kill(), server.wait());
        panic!("the load hangs; requests waiting in the kernel: {waiting:?}");
    }
    let output = load.wait_with_output().expect("output");
    let still_serving = server.try_wait().expect("waits").is_none();
    server.kill().expect("kills");
    server.wait().expect("reaps");
    assert!(still_serving, "the last server died by itself");

    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.split("load: ").nth(1)).unwrap_or_default().to_owned();
    let numbers: Vec<u64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
    let [rounds, failures] = numbers[..] else { panic!("the load said: {text}") };
    println!("{rounds} rounds, {failures} failures, {KILLS} kills");
    assert_eq!(failures, 0);
    assert!(rounds > 100, "only {rounds} rounds: the mount was hardly used");
}

/// A request outlives two servers. Each successor redoes it; the kernel, asked to, also sends it again, and the copy is
/// recognised as the one under way, which is then answered under its new number.
#[test]
fn a_request_under_way_outlives_its_servers() {
    let backing = tempfile::tempdir().expect("backing");
    File::create_new(backing.path().join("stuck"))
        .and_then(|file| file.write_all_at(&[7; 4096], PATIENT_OFFSET))
        .expect("file");
    let mounted = Mounted::volume();
    let device =
        Device::from_fd(std::os::fd::AsFd::as_fd(&mounted.device).try_clone_to_owned().expect("dup"));
    let bundle = Bundle::new(device, 2, Layout::default(), &mounted.options).expect("bundle");
    let mut server = serve(&bundle, backing.path(), true);
    let mut stuck = role("role_stuck")
        .env(STUCK, mounted.path.join("stuck"))
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    for _ in 0..2 {
        // Longer than a successor waits before it asks the kernel.
        std::thread::sleep(Duration::from_millis(1200));
        server.kill().expect("kills");
        server.wait().expect("reaps");
        server = serve(&bundle, backing.path(), true);
    }
    std::thread::sleep(Duration::from_millis(1200));
    let waiting = atoll_fuse::device::waiting(mounted.connection).expect("fusectl");
    let early = stuck.try_wait().expect("waits");
    File::create_new(backing.path().join("go")).expect("go");
    let deadline = Instant::now() + TIMEOUT;
    let status = loop {
        match stuck.try_wait().expect("waits") {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            status => break status,
        }
    };
    if status.is_none() {
        let _ = atoll_fuse::device::abort(mounted.connection);
        let _ = stuck.kill();
    }
    let _ = (stuck.wait(), server.kill(), server.wait());
    assert_eq!(early, None, "the call ended before it could");
    assert_eq!(waiting, 1, "one request, however often it was sent");
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

/// More large WRITEs than may keep a buffer outlive two servers: those that were shortened too are whole in the end.
#[test]
fn more_writes_than_buffers_outlive_their_servers() {
    let backing = tempfile::tempdir().expect("backing");
    for writer in 0..WRITERS_COUNT {
        File::create_new(backing.path().join(format!("file-{writer}"))).expect("file");
    }
    let mounted = Mounted::volume();
    let device =
        Device::from_fd(std::os::fd::AsFd::as_fd(&mounted.device).try_clone_to_owned().expect("dup"));
    let bundle = Bundle::new(device, 2, Layout::default(), &mounted.options).expect("bundle");
    let mut server = serve(&bundle, backing.path(), true);
    let mut writers =
        role("role_writers").env(WRITERS, &mounted.path).stdout(Stdio::null()).spawn().expect("starts");
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(1500));
        server.kill().expect("kills");
        server.wait().expect("reaps");
        server = serve(&bundle, backing.path(), true);
    }
    std::thread::sleep(Duration::from_millis(1500));
    let early = writers.try_wait().expect("waits");
    // Whoever can't be answered hangs in the kernel: asked from a thread, so that the test can end.
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = mounted.path.clone();
    std::thread::spawn(move || sender.send(fs::metadata(path).is_ok()));
    let root_found = receiver.recv_timeout(Duration::from_secs(20));
    File::create_new(backing.path().join("go")).expect("go");
    let deadline = Instant::now() + TIMEOUT;
    let status = loop {
        match writers.try_wait().expect("waits") {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            status => break status,
        }
    };
    if status.is_none() || root_found.is_err() {
        let _ = atoll_fuse::device::abort(mounted.connection);
        let _ = writers.kill();
    }
    let _ = (writers.wait(), server.kill(), server.wait());
    assert_eq!(early, None, "they ended before they could");
    assert_eq!(root_found, Ok(true), "the root is found while they wait");
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    for writer in 0..WRITERS_COUNT {
        let mut written = vec![0; 1 << 20];
        let file = File::open(backing.path().join(format!("file-{writer}"))).expect("opens");
        file.read_exact_at(&mut written, PATIENT_OFFSET).expect("reads");
        assert!(written == megabyte(writer), "writer {writer}");
    }
}
