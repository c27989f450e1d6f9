//! Numbers in one page that threads on all mounts count on, each number under a lock of its own, while others read them without one:
//! nobody counts from a value that another one has counted from, and who has written reads that back. One more number is the length
//! of a file of its own, so that the size that a mount knows has to be right, too.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Random, open, run_all};

const NUMBERS: u64 = 3;
/// The number that is a length.
const LENGTH: u64 = NUMBERS - 1;
const DIGITS: usize = 20;
/// What the file consists of whose length counts, and bytes that are read of it at once: more than it ever has.
const MARK: u8 = b'#';
const LENGTH_MAX: usize = 1 << 20;

type Job = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// Who counted from each value of each number.
type Counts = Arc<Mutex<BTreeMap<(u64, u64), String>>>;
/// What each number was at least when its lock was let go of last.
type Done = Arc<[AtomicU64; NUMBERS as usize]>;

/// The files with the numbers, open.
struct Numbers {
    digits: File,
    length: File,
}

impl Numbers {
    fn open(folder: &Path, writes: bool) -> Numbers {
        let open = |name| open(&folder.join(name), true, writes, 0);
        Numbers { digits: open("counters"), length: open("length") }
    }

    fn set_lock(&self, number: u64, kind: i32) {
        let (file, start, length) = match number {
            LENGTH => (&self.length, 0, 0),
            _ => (&self.digits, number * DIGITS as u64, DIGITS),
        };
        let lock = libc::flock {
            l_type: kind as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: start as i64,
            l_len: length as i64,
            l_pid: 0,
        };
        // SAFETY: an open file and a lock of its own.
        let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &lock) };
        assert_eq!(done, 0, "a lock: {}", std::io::Error::last_os_error());
    }

    fn value(&self, number: u64) -> Result<u64, String> {
        if number == LENGTH {
            let mut marks = vec![0; LENGTH_MAX];
            let length = self.length.read_at(&mut marks, 0).map_err(|error| format!("a read: {error}"))?;
            return match marks[..length].iter().position(|byte| *byte != MARK) {
                Some(wrong) => Err(format!("byte {wrong} of {length} is {}", marks[wrong])),
                None => Ok(length as u64),
            };
        }
        let mut digits = [0; DIGITS];
        let read = self.digits.read_exact_at(&mut digits, number * DIGITS as u64);
        read.map_err(|error| format!("a read: {error}"))?;
        let text = String::from_utf8_lossy(&digits);
        text.parse().map_err(|_| format!("number {number} reads {text:?}"))
    }

    /// Counts on from this value.
    fn set_after(&self, number: u64, before: u64) {
        let written = match number {
            LENGTH => self.length.write_all_at(&[MARK], before),
            _ => {
                let digits = format!("{:0DIGITS$}", before + 1);
                self.digits.write_all_at(digits.as_bytes(), number * DIGITS as u64)
            }
        };
        written.expect("a write");
    }
}

fn count(
    who: String,
    folder: PathBuf,
    number: u64,
    (counts, done): (Counts, Done),
    until: Instant,
    seed: u64,
) -> Job {
    Box::new(move || {
        let (numbers, mut random) = (Numbers::open(&folder, true), Random::new(seed));
        while Instant::now() < until {
            numbers.set_lock(number, libc::F_WRLCK);
            let before = numbers.value(number)?;
            numbers.set_after(number, before);
            let after = numbers.value(number)?;
            let other = counts.lock().insert((number, before), who.clone());
            numbers.set_lock(number, libc::F_UNLCK);
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
fn look(folder: PathBuf, done: Done, until: Instant, seed: u64) -> Job {
    Box::new(move || {
        let (kept, mut random) = (Numbers::open(&folder, false), Random::new(seed));
        while Instant::now() < until {
            let before: Vec<u64> = done.iter().map(|done| done.load(Ordering::SeqCst)).collect();
            let opened = Numbers::open(&folder, false);
            for number in 0..NUMBERS {
                let (found, least) = (opened.value(number)?, before[number as usize]);
                if found < least {
                    return Err(format!("number {number} was {least} and reads {found}"));
                }
                kept.value(number)?;
            }
            drop(opened);
            std::thread::sleep(Duration::from_micros(random.below(3000)));
        }
        Ok(())
    })
}

pub fn run(mounts: &[PathBuf], seed: u64, time: Duration) {
    std::fs::write(mounts[0].join("counters"), "0".repeat(DIGITS * LENGTH as usize))
        .expect("the first zeroes");
    std::fs::write(mounts[0].join("length"), "").expect("an empty file");
    let (counts, done, until) = (Counts::default(), Done::default(), Instant::now() + time);
    let mut jobs: Vec<Job> = Vec::new();
    for (mount, folder) in mounts.iter().enumerate() {
        for number in 0..NUMBERS {
            let who = format!("mount {mount}, counter {number}");
            let seed = seed ^ (jobs.len() as u64 + 1) << 32;
            let shared = (Arc::clone(&counts), Arc::clone(&done));
            jobs.push(count(who, folder.clone(), number, shared, until, seed));
        }
        let seed = seed ^ (jobs.len() as u64 + 1) << 32;
        jobs.push(look(folder.clone(), Arc::clone(&done), until, seed));
    }
    run_all(jobs, seed);
    let counts = counts.lock();
    for number in 0..NUMBERS {
        let counted = counts.range((number, 0)..(number + 1, 0)).count() as u64;
        assert!(counted > 0, "nobody has counted on number {number}");
        for (mount, folder) in mounts.iter().enumerate() {
            let found = Numbers::open(folder, false).value(number);
            assert_eq!(found, Ok(counted), "seed {seed}: number {number} on mount {mount}");
        }
    }
}
