//! Gives back the memory that a burst of work left behind.
//!
//! The C library keeps what was freed, in an arena for each of several threads: after a big copy a process that does
//! nothing would go on holding three times of what it uses (mallopt(3), malloc_trim(3)).

use std::time::Duration;

/// How often it is looked whether there is rest.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// A process rests when it uses less than this share of one processor: heartbeats and the like.
const RESTING_PERCENT: u32 = 5;

/// Whether there is something to be given back.
#[derive(Debug, Default)]
struct Trimmer {
    worked: bool,
}

impl Trimmer {
    /// Takes how much processor time the last interval cost; true once, when rest begins after work.
    fn look(&mut self, used: Duration, interval: Duration) -> bool {
        if used >= interval * RESTING_PERCENT / 100 {
            self.worked = true;
            return false;
        }
        std::mem::take(&mut self.worked)
    }
}

/// Starts the thread that looks. It ends with the process.
pub fn give_back_when_resting() {
    let started = std::thread::Builder::new().name("memory".into()).spawn(|| {
        let mut trimmer = Trimmer { worked: true };
        let mut before = processor_time();
        loop {
            std::thread::sleep(POLL_INTERVAL);
            let now = processor_time();
            if trimmer.look(now.saturating_sub(before), POLL_INTERVAL) {
                trim();
            }
            before = processor_time();
        }
    });
    if let Err(error) = started {
        tracing::warn!(
            "freed memory isn't returned to the system, since a thread could not be started: {error}"
        );
    }
}

/// Processor time of this process so far.
#[expect(
    clippy::disallowed_methods,
    reason = "processor time is none of the clocks that lifetimes and records go by"
)]
fn processor_time() -> Duration {
    // SAFETY: an all-zero timespec is valid, and the call writes nothing else.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time);
        time
    };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// What is kept for the next burst, and then what the C library keeps.
fn trim() {
    atoll_proto::buffers::give_back();
    trim_allocator();
}

#[cfg(target_env = "gnu")]
fn trim_allocator() {
    // SAFETY: it only gives back pages that nobody has allocated.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim_allocator() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_when_rest_begins() {
        let (much, little) = (Duration::from_secs(1), Duration::from_millis(20));
        let mut trimmer = Trimmer::default();
        let looks: Vec<bool> = [little, much, much, little, little, much, little]
            .map(|used| trimmer.look(used, POLL_INTERVAL))
            .to_vec();
        assert_eq!(looks, [false, false, false, true, false, false, true]);
    }

    #[test]
    fn processor_time_goes_forward() {
        let before = processor_time();
        let mut sum = 0u64;
        for at in 0..2_000_000u64 {
            sum = std::hint::black_box(sum ^ at);
        }
        assert!(processor_time() > before);
    }
}
