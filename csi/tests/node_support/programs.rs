//! Programs on a mount, in a process of their own: who has files open on a mount that nobody serves can't start processes, since
//! exec(2) closes them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::wait_until;

/// Where the programs find their mount, and where they say how much they have done.
const PLACE: &str = "ATOLL_TEST_PLACE";
const ROUNDS: &str = "ATOLL_TEST_ROUNDS";
/// Bytes of a line of the log.
const LINE_BYTES: usize = 24;

/// What the programs share.
struct Run {
    place: PathBuf,
    stop: AtomicBool,
    rounds: AtomicU64,
}

impl Run {
    /// Does something again and again until the end, with the number of the round.
    fn repeat(&self, mut round: impl FnMut(u64)) -> u64 {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            round(number);
            number += 1;
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        number
    }

    fn own(&self, name: &str) -> PathBuf {
        let path = self.place.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

/// Calls that would fail if they were carried out twice.
fn names(run: &Run) {
    let own = run.own("names");
    run.repeat(|number| {
        let directory = own.join(format!("d{number}"));
        fs::create_dir(&directory).unwrap();
        let (a, b) = (directory.join("a"), directory.join("b"));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&a).unwrap();
        file.write_all(&[number as u8; 3000]).unwrap();
        drop(file);
        fs::rename(&a, &b).unwrap();
        assert_eq!(fs::read(&b).unwrap(), [number as u8; 3000]);
        fs::remove_file(b).unwrap();
        fs::remove_dir(&directory).unwrap();
    });
    assert_eq!(fs::read_dir(own).unwrap().count(), 0);
}

fn line(number: u64) -> String {
    format!("{number:>width$}\n", width = LINE_BYTES - 1)
}

/// Lines that are appended once each.
fn log(run: &Run) {
    let path = run.own("log").join("log");
    let mut file = OpenOptions::new().append(true).create_new(true).open(&path).unwrap();
    let lines = run.repeat(|number| {
        assert_eq!(file.write(line(number).as_bytes()).unwrap(), LINE_BYTES);
        if number % 16 == 0 {
            file.sync_all().unwrap();
        }
    });
    let expected: String = (0..lines).map(line).collect();
    assert!(fs::read_to_string(&path).unwrap() == expected, "lines are missing or there twice");
}

/// Blocks that are overwritten, and read as they were written last.
fn blocks(run: &Run) {
    let path = run.own("blocks").join("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let mut written: BTreeMap<u64, u64> = BTreeMap::new();
    let check = |file: &File, at: u64, number: u64| {
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, at * 4096).unwrap();
        assert!(block.chunks(8).all(|word| word == number.to_le_bytes()), "block {at} isn't number {number}");
    };
    run.repeat(|number| {
        let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        let block: Vec<u8> = number.to_le_bytes().iter().copied().cycle().take(4096).collect();
        file.write_all_at(&block, at * 4096).unwrap();
        written.insert(at, number);
        check(&file, at, number);
        match number % 32 {
            7 => file.sync_data().unwrap(),
            // A handle of its own.
            23 => written.iter().for_each(|(at, number)| check(&File::open(&path).unwrap(), *at, *number)),
            _ => {}
        }
    });
}

/// A lock that is held all the time keeps others out.
fn locks(run: &Run) {
    let path = run.own("locks").join("file");
    let holder = File::create_new(&path).unwrap();
    let flock = |file: &File, how| {
        // SAFETY: no memory is passed.
        match unsafe { libc::flock(file.as_raw_fd(), how) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        }
    };
    flock(&holder, libc::LOCK_EX).unwrap();
    let other = File::open(&path).unwrap();
    run.repeat(|number| {
        assert_eq!(flock(&other, libc::LOCK_EX | libc::LOCK_NB), Err(libc::EWOULDBLOCK), "try {number}");
    });
}

/// The programs, until their standard input ends.
fn run(place: PathBuf, rounds: &Path) {
    let run = Arc::new(Run { place, stop: AtomicBool::new(false), rounds: AtomicU64::new(0) });
    let programs: Vec<thread::JoinHandle<()>> = [names, log, blocks, locks]
        .map(|program: fn(&Run)| {
            let run = Arc::clone(&run);
            thread::spawn(move || {
                // The others end, too.
                let guard = StopAll(&run.stop);
                program(&run);
                std::mem::forget(guard);
            })
        })
        .into();
    let waiting = Arc::clone(&run);
    thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        waiting.stop.store(true, Ordering::Relaxed);
    });
    while !run.stop.load(Ordering::Relaxed) {
        fs::write(rounds, run.rounds.load(Ordering::Relaxed).to_string()).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    let failed = programs.into_iter().filter_map(|program| program.join().err()).count();
    assert_eq!(failed, 0, "programs failed");
}

struct StopAll<'a>(&'a AtomicBool);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs the programs if this is their process: a test calls this first, with nothing else done.
pub fn is_theirs() -> bool {
    match (std::env::var_os(PLACE), std::env::var_os(ROUNDS)) {
        (Some(place), Some(rounds)) => {
            run(place.into(), Path::new(&rounds));
            true
        }
        _ => false,
    }
}

/// The process of the programs; it ends with this.
pub struct Programs {
    process: Child,
    rounds: PathBuf,
}

impl Programs {
    /// `test`: who asks for it; the process does the same, and is told its place.
    pub fn start(test: &str, place: &Path, rounds: PathBuf) -> Programs {
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(PLACE, place)
            .env(ROUNDS, &rounds)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut programs = Programs { process, rounds };
        programs.continue_();
        programs
    }

    fn rounds(&mut self) -> u64 {
        assert_eq!(self.process.try_wait().unwrap(), None, "the programs have failed");
        fs::read_to_string(&self.rounds).ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(0)
    }

    /// Waits until each has done something more.
    pub fn continue_(&mut self) {
        let before = self.rounds();
        wait_until("the programs continue", || self.rounds() > before + 50);
    }

    /// Ends them; each has checked everything then.
    pub fn end(mut self) {
        self.continue_();
        drop(self.process.stdin.take());
        let process = &mut self.process;
        wait_until("the programs end", || process.try_wait().unwrap().is_some());
        assert!(process.wait().unwrap().success(), "the programs have failed");
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
