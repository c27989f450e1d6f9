//! Histories of three mounts while servers are killed: registers, appends, locks and names, each against its rule
//!
//! - A file's time of modification is a register: its history must be linearizable.
//! - Appends of all mounts to one file: each that was acknowledged is there once, whole, in its writer's order.
//! - A counter in a file under a lock: nothing read is ever counted from twice.
//! - Of all who make the same name exactly one succeeds.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use common::processes::Processes;
use common::{text, wait_until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const MOUNTS: usize = 3;
/// Bytes of one append: its writer, its number, and the same again, over and over.
const APPEND_BYTES: usize = 512;
const SERVERS: [&str; 6] = ["metadata", "metadata-1", "metadata-2", "storage-0", "storage-1", "storage-2"];

/// One call on a register: what it wrote or read, and between which moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    wrote: bool,
    value: u64,
    start: u64,
    end: u64,
}

/// Whether a history of a register in which no value is written twice is linearizable; if not, the two values whose
/// calls can't be put in an order (Gibbons and Korach, Testing Shared Memories, 1997, section 4.1: zones).
fn linearizable(history: &[Call]) -> Result<(), (u64, u64)> {
    // By value: the earliest end and the latest start of all calls that wrote or read it.
    let mut zones: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut writes: HashMap<u64, u64> = HashMap::new();
    for call in history {
        let zone = zones.entry(call.value).or_insert((u64::MAX, 0));
        *zone = (zone.0.min(call.end), zone.1.max(call.start));
        if call.wrote {
            writes.insert(call.value, call.start);
        }
    }
    for call in history.iter().filter(|call| !call.wrote) {
        // A value that was read before anybody began to write it.
        if writes.get(&call.value).is_none_or(|write| call.end < *write) {
            return Err((call.value, call.value));
        }
    }
    let mut forward: Vec<(u64, u64, u64)> = Vec::new();
    let mut backward: Vec<(u64, u64, u64)> = Vec::new();
    for (value, (first_end, last_start)) in zones {
        if first_end < last_start {
            forward.push((first_end, last_start, value));
        } else {
            backward.push((last_start, first_end, value));
        }
    }
    forward.sort_unstable();
    for pair in forward.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err((pair[0].2, pair[1].2));
        }
    }
    for (from, to, value) in backward {
        let at = forward.partition_point(|zone| zone.0 < from);
        if let Some(around) = at.checked_sub(1).and_then(|at| forward.get(at))
            && to < around.1
        {
            return Err((around.2, value));
        }
    }
    Ok(())
}

#[test]
fn the_checker_tells_histories_apart() {
    let write = |value, start, end| Call { wrote: true, value, start, end };
    let read = |value, start, end| Call { wrote: false, value, start, end };
    let first = write(1, 0, 1);
    assert_eq!(linearizable(&[first, write(2, 2, 8), read(1, 3, 4), read(2, 5, 6), read(2, 9, 10)]), Ok(()));
    assert!(linearizable(&[first, write(2, 2, 3), read(1, 4, 5)]).is_err(), "an old value");
    assert!(linearizable(&[first, write(2, 2, 8), read(2, 3, 4), read(1, 5, 6)]).is_err(), "back again");
    assert!(linearizable(&[first, read(2, 2, 3), write(2, 4, 5)]).is_err(), "before it was written");
    assert!(linearizable(&[first, read(3, 2, 3)]).is_err(), "never written");
}

struct Clock(Instant);

impl Clock {
    fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Sets and reads the time of modification of one file. Values are seconds, of which nobody writes the same twice.
fn register(path: &Path, mount: usize, clock: &Clock, stop: &AtomicBool) -> io::Result<Vec<Call>> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut history = Vec::new();
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let wrote = number.is_multiple_of(3);
        let mut value = 1_000_000 + number * MOUNTS as u64 + mount as u64;
        let start = clock.now();
        if wrote {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(value);
            file.set_times(FileTimes::new().set_modified(time))?;
        } else {
            value = fs::metadata(path)?.mtime() as u64;
        }
        history.push(Call { wrote, value, start, end: clock.now() });
    }
    Ok(history)
}

fn append_of(mount: usize, number: u64) -> Vec<u8> {
    (mount as u64).to_le_bytes().into_iter().chain(number.to_le_bytes()).cycle().take(APPEND_BYTES).collect()
}

/// Appends to one file; how many appends were acknowledged.
fn appends(path: &Path, mount: usize, stop: &AtomicBool) -> io::Result<u64> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        file.write_all(&append_of(mount, number))?;
        number += 1;
        if number.is_multiple_of(7) {
            file.sync_all()?;
        }
    }
    file.sync_all()?;
    Ok(number)
}

/// Adds one to the number in a file, under a lock; the numbers that were found.
fn counter(path: &Path, stop: &AtomicBool) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        file.lock()?;
        let mut number = [0; 8];
        file.read_exact_at(&mut number, 0)?;
        let number = u64::from_le_bytes(number);
        file.write_all_at(&(number + 1).to_le_bytes(), 0)?;
        file.unlock()?;
        found.push(number);
    }
    Ok(found)
}

/// Makes the folders 0, 1, 2, … that the others make as well; the ones that were new.
fn names(folder: &Path, stop: &AtomicBool) -> io::Result<Vec<u64>> {
    let mut made = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match fs::create_dir(folder.join(number.to_string())) {
            Ok(()) => made.push(number),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(made)
}

fn spawn<T: Send + 'static>(
    paths: &[PathBuf],
    name: &str,
    run: impl Fn(&Path, usize) -> io::Result<T> + Clone + Send + 'static,
) -> Vec<JoinHandle<io::Result<T>>> {
    let spawn = |(mount, path): (usize, &PathBuf)| {
        let (path, run) = (path.join(name), run.clone());
        std::thread::spawn(move || run(&path, mount))
    };
    paths.iter().enumerate().map(spawn).collect()
}

fn ends<T>(threads: Vec<JoinHandle<io::Result<T>>>) -> Vec<T> {
    threads
        .into_iter()
        .map(|thread| thread.join().unwrap().expect("an error reached an application"))
        .collect()
}

#[test]
fn histories_of_three_mounts_hold_while_servers_are_killed() {
    let seed = std::env::var("ATOLL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let kills: u64 = std::env::var("ATOLL_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    println!("replay: ATOLL_SEED={seed} ATOLL_KILLS={kills} make test-history");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Processes::start_group(3, 3, 3, true);
    let mounts: Vec<PathBuf> = (0..MOUNTS).map(|number| cluster.mount(&format!("mnt-{number}"))).collect();
    fs::write(mounts[0].join("register"), "").unwrap();
    fs::write(mounts[0].join("appends"), "").unwrap();
    fs::write(mounts[0].join("counter"), [0; 8]).unwrap();
    fs::create_dir(mounts[0].join("names")).unwrap();
    // The register begins with a value that somebody wrote.
    let clock = Arc::new(Clock(Instant::now()));
    let begin = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    File::options().write(true).open(mounts[0].join("register")).unwrap().set_times(begin).unwrap();
    let first = Call { wrote: true, value: 1, start: 0, end: clock.now() };

    let stop = Arc::new(AtomicBool::new(false));
    let flag = || Arc::clone(&stop);
    let registers = spawn(&mounts, "register", {
        let (stop, clock) = (flag(), Arc::clone(&clock));
        move |path, mount| register(path, mount, &clock, &stop)
    });
    let appenders = spawn(&mounts, "appends", {
        let stop = flag();
        move |path, mount| appends(path, mount, &stop)
    });
    let counters = spawn(&mounts, "counter", {
        let stop = flag();
        move |path, _| counter(path, &stop)
    });
    let makers = spawn(&mounts, "names", {
        let stop = flag();
        move |path, _| names(path, &stop)
    });
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(random.random_range(300..2500)));
        let victim = SERVERS[random.random_range(0..SERVERS.len())];
        cluster.kill_kept(victim);
    }
    wait_until("all servers are well", || cluster.alive_servers() == 3);
    stop.store(true, Ordering::Relaxed);

    let mut history: Vec<Call> = ends(registers).into_iter().flatten().collect();
    let calls = history.len();
    history.push(first);
    assert_eq!(linearizable(&history), Ok(()), "of {calls} calls");

    let acknowledged = ends(appenders);
    let mut content = Vec::new();
    File::open(mounts[1].join("appends")).unwrap().read_to_end(&mut content).unwrap();
    let mut next = [0u64; MOUNTS];
    let (appended, rest) = content.as_chunks::<APPEND_BYTES>();
    assert!(rest.is_empty(), "{} bytes too many", rest.len());
    for found in appended {
        let mount = found[0] as usize;
        assert!(mount < MOUNTS && found[..] == append_of(mount, next[mount])[..], "append {next:?} differs");
        next[mount] += 1;
    }
    assert_eq!(next[..], acknowledged[..], "appends that are there, and that were acknowledged");

    let found: Vec<u64> = ends(counters).into_iter().flatten().collect();
    let different: HashSet<u64> = found.iter().copied().collect();
    assert_eq!(different.len(), found.len(), "two counted from the same number");
    let last = u64::from_le_bytes(fs::read(mounts[2].join("counter")).unwrap().try_into().unwrap());
    assert_eq!(last, found.len() as u64);

    let made: Vec<u64> = ends(makers).into_iter().flatten().collect();
    let different: HashSet<u64> = made.iter().copied().collect();
    assert_eq!(different.len(), made.len(), "a name was made twice");
    assert_eq!(fs::read_dir(mounts[0].join("names")).unwrap().count(), made.len());

    println!(
        "{calls} calls on the register, {} appends, {} counts, {} names",
        appended.len(),
        last,
        made.len()
    );
    let check = cluster.command("fsck").output().unwrap();
    assert!(check.status.success(), "{}", text(&check));
}
