//! What servers use while nobody asks them for anything.

use std::time::{Duration, Instant};

use crate::cpu;
use crate::stop;
use crate::target::{self, Target};

/// What was just started has things to do of its own.
const SETTLE: Duration = Duration::from_secs(10);
/// How often a signal is looked for.
const STEP: Duration = Duration::from_millis(200);

/// What one target's servers used.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    /// CPU of all of them, as a share of one core.
    pub cores: f64,
    /// Memory of all of them at the end, in bytes (Pss).
    pub memory: Option<u64>,
}

/// Watches the servers of all targets for so long, all at once: each is counted by itself. Nothing, for targets without
/// servers, and for no time.
pub fn watch(targets: &[Target], time: Duration) -> Vec<Option<Rest>> {
    if time.is_zero() || !sleep(SETTLE.min(time)) {
        return vec![None; targets.len()];
    }
    let clocks = || targets.iter().map(|target| used(&target.pids)).collect::<Vec<_>>();
    let (began, before) = (Instant::now(), clocks());
    if !sleep(time) {
        return vec![None; targets.len()];
    }
    let (after, seconds) = (clocks(), began.elapsed().as_secs_f64());
    let rest = |((target, before), after): ((&Target, Option<Duration>), Option<Duration>)| {
        let cores = after?.saturating_sub(before?).as_secs_f64() / seconds;
        Some(Rest { cores, memory: target::memory(&target.pids) })
    };
    targets.iter().zip(before).zip(after).map(rest).collect()
}

/// CPU of all of them until now; `None` if there is none, or one has ended.
fn used(pids: &[i32]) -> Option<Duration> {
    if pids.is_empty() { None } else { pids.iter().map(|pid| cpu::process(*pid)).sum() }
}

/// False if a signal came first.
fn sleep(time: Duration) -> bool {
    let end = Instant::now() + time;
    while !stop::wanted() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(STEP));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn only_targets_with_servers_have_a_rest() {
        let target = |pids: Vec<i32>| Target {
            name: "t".to_owned(),
            folder: "/".into(),
            mount: target::Mount::of(Path::new("/")).unwrap(),
            pids,
            disposable: false,
            started: Vec::new(),
            against: None,
        };
        let me = std::process::id() as i32;
        let targets = [target(vec![me]), target(Vec::new()), target(vec![me, i32::MAX - 1])];
        let found = watch(&targets, Duration::from_millis(1));
        assert!(found[0].is_some_and(|rest| rest.memory.is_some_and(|bytes| bytes > 0)));
        assert!(found[1].is_none() && found[2].is_none());
        assert!(watch(&targets, Duration::ZERO).iter().all(Option::is_none));
    }
}
