//! The frame of every measurement.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::small::Set;
use super::trees::Scratch;
use crate::cli::ColdMode;
use crate::cpu::{Clocks, Used, process};
use crate::fault::{Context, Fault};
use crate::histogram::Histogram;
use crate::plan::Plan;
use crate::stop;
use crate::target::Target;
use crate::watchdog;

/// Servers that used less than this in [`SETTLE_STEP`] are at rest.
const SETTLED: Duration = Duration::from_micros(600);
const SETTLE_STEP: Duration = Duration::from_millis(20);

/// How often caches were dropped. Those of all targets: what one target had in a cache is gone when another one is
/// measured cold.
static DROPS: AtomicU64 = AtomicU64::new(0);

/// One measurement on one target.
pub struct Bench<'a> {
    /// What is measured.
    pub target: &'a Target,
    /// How much work to do.
    pub plan: &'a Plan,
    /// What the work needs from the local filesystem.
    pub scratch: &'a Scratch,
    /// How to empty caches.
    pub cold: ColdMode,
    /// Seed of this round.
    pub seed: u64,
    /// What earlier workloads left in the target's folder.
    pub state: &'a mut State,
}

/// What is in the target's folder.
#[derive(Debug, Default)]
pub struct State {
    /// Bytes of the file for sequential reads.
    pub stream: Option<u64>,
    /// The file for random access is there.
    pub random: bool,
    /// Small files in one folder.
    pub one: Option<Set>,
    /// Small files in four folders.
    pub four: Option<Set>,
    /// The tree for tar is there.
    pub tree: bool,
    /// The clone of the repository is there.
    pub clone: bool,
    /// A folder of many files.
    pub big: Option<super::big::Folder>,
    /// Value of the counter of drops when a kind of file was last known to be in the caches.
    warm: HashMap<&'static str, u64>,
}

/// What one measurement found.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Work done, in the smallest unit: bytes, calls, files.
    pub units: u64,
    /// Time from the first to the last operation.
    pub wall: Duration,
    /// Durations of single operations; empty where there are none to speak of.
    pub latencies: Histogram,
    /// CPU used meanwhile.
    pub used: Used,
    /// CPU that the servers and the kernel used afterwards, until they were at rest again.
    pub after: Used,
}

/// Says how long a workload goes on.
#[derive(Clone, Copy)]
pub struct Pace {
    until: Instant,
}

impl Pace {
    /// True while there is time left, or nothing was done: on a machine so busy that the time was over before the
    /// work began, one operation is still a measurement.
    ///
    /// # Errors
    /// If the run is to end.
    pub fn go(&self, done: u64) -> Result<bool, Fault> {
        go_on()?;
        Ok(done == 0 || Instant::now() < self.until)
    }
}

/// To be called between two operations: whoever calls it doesn't hang.
///
/// # Errors
/// If the run is to end.
pub fn go_on() -> Result<(), Fault> {
    watchdog::is_alive();
    if stop::wanted() { Err(Fault::Interrupted) } else { Ok(()) }
}

/// Whether a workload leaves data behind that the kernel has yet to write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// Nothing, or it was synced.
    Clean,
    /// Dirty pages: they are written before the next measurement begins, so that it doesn't pay for them.
    Dirty,
}

impl Bench<'_> {
    /// Measures `work`, which has `limit` of time and returns how many units it did.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn measure(
        &self,
        limit: Duration,
        leaves: Leaves,
        work: impl FnOnce(Pace) -> Result<(u64, Histogram), Fault>,
    ) -> Result<Measured, Fault> {
        let before = Clocks::now(&self.target.pids);
        let began = Instant::now();
        let (units, latencies) = work(Pace { until: began + limit })?;
        let wall = began.elapsed();
        let done = Clocks::now(&self.target.pids);
        self.settle(leaves)?;
        let settled = Clocks::now(&self.target.pids);
        Ok(Measured { units, wall, latencies, used: done.since(&before), after: settled.since(&done) })
    }

    /// Waits until the servers have finished what they do in the background.
    fn settle(&self, leaves: Leaves) -> Result<(), Fault> {
        if leaves == Leaves::Dirty {
            // Servers on this machine keep their data beside the scratch folder, and FUSE passes no syncfs on.
            sync_filesystem(&self.scratch.folder)?;
        }
        let total = || self.target.pids.iter().filter_map(|pid| process(*pid)).sum::<Duration>();
        let began = Instant::now();
        let mut last = total();
        while !self.target.pids.is_empty() && began.elapsed() < self.plan.settle_max {
            std::thread::sleep(SETTLE_STEP);
            let now = total();
            if now.saturating_sub(last) < SETTLED {
                break;
            }
            last = now;
        }
        Ok(())
    }

    /// True if caches may have been emptied since this was last asked for this kind of file: it has to be read again
    /// before a measurement that isn't meant to be cold.
    pub fn is_chilled(&mut self, kind: &'static str) -> bool {
        let drops = DROPS.load(Ordering::Relaxed);
        self.state.warm.insert(kind, drops) != Some(drops)
    }

    /// Empties the caches, as far as allowed; of these files at least.
    ///
    /// # Errors
    /// If a file can't be opened, or the caches can't be dropped.
    pub fn chill(&self, files: impl Iterator<Item = std::path::PathBuf>) -> Result<(), Fault> {
        if self.cold == ColdMode::Drop {
            sync_filesystem(&self.target.folder)?;
            sync_filesystem(&self.scratch.folder)?;
            let path = std::path::Path::new("/proc/sys/vm/drop_caches");
            DROPS.fetch_add(1, Ordering::Relaxed);
            return std::fs::write(path, "3").doing("write", path);
        }
        DROPS.fetch_add(1, Ordering::Relaxed);
        for path in files {
            let file = File::open(&path).doing("open", &path)?;
            file.sync_data().doing("fdatasync", &path)?;
            // SAFETY: the descriptor is open; the call has no effect on memory of this process.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
        Ok(())
    }
}

fn sync_filesystem(folder: &std::path::Path) -> Result<(), Fault> {
    let file = File::open(folder).doing("open", folder)?;
    // SAFETY: the descriptor is open.
    let result = unsafe { libc::syncfs(file.as_raw_fd()) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).doing("syncfs", folder) }
}

/// Runs `work` in that many threads (in this one if it is one) and adds up what they did.
///
/// # Errors
/// The first error of any of them.
pub fn parallel<F>(threads: usize, work: F) -> Result<(u64, Histogram), Fault>
where
    F: Fn(usize, &mut Histogram) -> Result<u64, Fault> + Sync,
{
    let one = |thread: usize| {
        let mut latencies = Histogram::default();
        work(thread, &mut latencies).map(|units| (units, latencies))
    };
    if threads == 1 {
        return one(0);
    }
    let results: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut total = (0, Histogram::default());
    for result in results {
        let (units, latencies) = result?;
        total.0 += units;
        total.1.merge(&latencies);
    }
    Ok(total)
}
