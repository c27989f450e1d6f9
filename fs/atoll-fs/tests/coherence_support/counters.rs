//! Numbers in one page that threads on all mounts count on, each number under a lock of its own, while others read them without one:
//! nobody counts from a value that another one has counted from, and who has written reads that back.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Random, open, run_all};

const NUMBERS: u64 = 2;
const DIGITS: usize = 20;

type Job = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// Who counted from each value of each number.
type Counts = Arc<Mutex<BTreeMap<(u64, u64), String>>>;
/// What each number was at least when its lock was let go of last.
type Done = Arc<[AtomicU64; NUMBERS as usize]>;

fn set_lock(file: &File, number: u64, kind: i32) {
    let lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: (number * DIGITS as u64) as i64,
        l_len: DIGITS as i64,
        l_pid: 0,
    };
    // SAFETY: an open file and a lock of its own.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &lock) };
    assert_eq!(done, 0, "a lock: {}", std::io::Error::last_os_error());
}

fn value(file: &File, number: u64) -> Result<u64, String> {
    let mut digits = [0; DIGITS];
    file.read_exact_at(&mut digits, number * DIGITS as u64).map_err(|error| format!("a read: {error}"))?;
    let text = String::from_utf8_lossy(&digits);
    text.parse().map_err(|_| format!("number {number} reads {text:?}"))
}

fn count(
    who: String,
    path: PathBuf,
    number: u64,
    (counts, done): (Counts, Done),
    until: Instant,
    seed: u64,
) -> Job {
    Box::new(move || {
        let (file, mut random) = (open(&path, true, true, 0), Random::new(seed));
        while Instant::now() < until {
            set_lock(&file, number, libc::F_WRLCK);
            let before = value(&file, number)?;
            let digits = format!("{:0DIGITS$}", before + 1);
            file.write_all_at(digits.as_bytes(), number * DIGITS as u64).expect("a write");
            let after = value(&file, number)?;
            let other = counts.lock().insert((number, before), who.clone());
            set_lock(&file, number, libc::F_UNLCK);
            done[number as usize].fetch_max(after, Ordering::SeqCst);
            if after != before + 1 {
                return Err(format!("{who} wrote {} in number {number} and read {after} back", before + 1));
            }
            if let Some(other) = other {
                return Err(format!("{other} and {who} both counted from {before} on number {number}"));
            }
            std::thread::sleep(Duration::from_micros(random.below(2000)));
        }
        Ok(())
    })
}

/// Opens and reads, and finds what was counted before.
fn look(path: PathBuf, done: Done, until: Instant, seed: u64) -> Job {
    Box::new(move || {
        let (kept, mut random) = (open(&path, true, false, 0), Random::new(seed));
        while Instant::now() < until {
            let before: Vec<u64> = done.iter().map(|done| done.load(Ordering::SeqCst)).collect();
            let file = open(&path, true, false, 0);
            for number in 0..NUMBERS {
                let (found, least) = (value(&file, number)?, before[number as usize]);
                if found < least {
                    return Err(format!("number {number} was {least} and reads {found}"));
                }
                value(&kept, number)?;
            }
            drop(file);
            std::thread::sleep(Duration::from_micros(random.below(3000)));
        }
        Ok(())
    })
}

pub fn run(mounts: &[PathBuf], seed: u64, time: Duration) {
    let path = |mount: usize| mounts[mount].join("counters");
    std::fs::write(path(0), "0".repeat(DIGITS * NUMBERS as usize)).expect("the first zeroes");
    let (counts, done, until) = (Counts::default(), Done::default(), Instant::now() + time);
    let mut jobs: Vec<Job> = Vec::new();
    for mount in 0..mounts.len() {
        for number in 0..NUMBERS {
            let who = format!("mount {mount}, counter {number}");
            let seed = seed ^ (jobs.len() as u64 + 1) << 32;
            jobs.push(count(who, path(mount), number, (Arc::clone(&counts), Arc::clone(&done)), until, seed));
        }
        jobs.push(look(path(mount), Arc::clone(&done), until, seed ^ (jobs.len() as u64 + 1) << 32));
    }
    run_all(jobs, seed);
    let counts = counts.lock();
    for number in 0..NUMBERS {
        let counted = counts.range((number, 0)..(number + 1, 0)).count() as u64;
        assert!(counted > 0, "nobody has counted on number {number}");
        for mount in 0..mounts.len() {
            let found = value(&open(&path(mount), true, false, 0), number);
            assert_eq!(found, Ok(counted), "seed {seed}: number {number} on mount {mount}");
        }
    }
}
