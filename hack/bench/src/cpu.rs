//! Who used how much CPU: the workload, the servers, the kernel's own threads, and everybody else.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// `PF_KTHREAD` of the kernel's `sched.h`, in the flags of /proc/PID/stat.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// All clocks at one moment.
#[derive(Clone, Debug, Default)]
pub struct Clocks {
    own: Duration,
    servers: Duration,
    kernel: HashMap<i32, Duration>,
    machine: Machine,
}

/// What happened on the CPUs between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// This process and the programs that it ran and waited for, in user and kernel mode.
    pub own: Duration,
    /// All threads of the target's servers, in user and kernel mode.
    pub servers: Duration,
    /// Threads of the kernel (write-back, journal, block layer): the whole machine's.
    pub kernel: Duration,
    /// Everything that ran on the machine, these three included. Counted in ticks of 10 ms.
    pub busy: Duration,
    /// Time in which the hypervisor ran something else.
    pub stolen: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Machine {
    busy: Duration,
    stolen: Duration,
}

impl Clocks {
    /// Reads all clocks. Servers that ended count nothing.
    pub fn now(servers: &[i32]) -> Self {
        Self {
            own: usage(libc::RUSAGE_SELF) + usage(libc::RUSAGE_CHILDREN),
            servers: servers.iter().filter_map(|pid| process(*pid)).sum(),
            kernel: kernel_threads().into_iter().filter_map(|pid| Some((pid, process(pid)?))).collect(),
            machine: machine(&fs::read_to_string("/proc/stat").unwrap_or_default()),
        }
    }

    /// What was used from `earlier` until now.
    pub fn since(&self, earlier: &Clocks) -> Used {
        // A kernel thread that is new has done all its work since.
        let kernel = self
            .kernel
            .iter()
            .map(|(pid, now)| now.saturating_sub(earlier.kernel.get(pid).copied().unwrap_or_default()));
        Used {
            own: self.own.saturating_sub(earlier.own),
            servers: self.servers.saturating_sub(earlier.servers),
            kernel: kernel.sum(),
            busy: self.machine.busy.saturating_sub(earlier.machine.busy),
            stolen: self.machine.stolen.saturating_sub(earlier.machine.stolen),
        }
    }
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Used) {
        self.own += other.own;
        self.servers += other.servers;
        self.kernel += other.kernel;
        self.busy += other.busy;
        self.stolen += other.stolen;
    }
}

impl Used {
    /// What ran on the machine and had nothing to do with the measurement.
    pub fn others(&self) -> Duration {
        self.busy.saturating_sub(self.own + self.servers + self.kernel)
    }
}

fn usage(who: libc::c_int) -> Duration {
    // SAFETY: rusage is plain numbers, for which zeroes are valid, and getrusage writes one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &raw mut usage);
        usage
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// CPU time of a process with all its threads, those that ended too; to the nanosecond, while /proc/PID/stat has
/// the same in ticks of 10 ms.
pub fn process(pid: i32) -> Option<Duration> {
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls write to the variable they are given and keep no pointer.
    let ok = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) == 0 && libc::clock_gettime(clock, &raw mut time) == 0
    };
    ok.then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// The kernel's threads, as far as they are visible from here (in a container they may not be).
fn kernel_threads() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        flags(&stat).is_some_and(|flags| flags & KERNEL_THREAD != 0)
    })
    .collect()
}

/// The flags of a line of /proc/PID/stat. The name in parentheses may hold anything.
fn flags(stat: &str) -> Option<u64> {
    stat[stat.rfind(')')? + 1..].split_whitespace().nth(6)?.parse().ok()
}

fn machine(stat: &str) -> Machine {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let tick = |i: usize| ticks.get(i).copied().unwrap_or(0);
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    let time = |ticks: u64| Duration::from_millis(ticks * 10);
    Machine { busy: time(tick(0) + tick(1) + tick(2) + tick(5) + tick(6)), stolen: time(tick(7)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_this_process_is_counted_as_its_own_and_as_a_server() {
        let me = std::process::id() as i32;
        let before = Clocks::now(&[me]);
        let mut sum = 0u64;
        while Clocks::now(&[me]).since(&before).servers < Duration::from_millis(30) {
            sum = std::hint::black_box(sum + 1);
        }
        // Other tests of this process run programs, which count as its own and not as the server's.
        let used = Clocks::now(&[me]).since(&before);
        assert!(used.own >= Duration::from_millis(20), "{used:?}");
        assert_eq!(process(i32::MAX - 1), None);
    }

    #[test]
    fn lines_of_proc_are_understood() {
        assert_eq!(flags("12 (a) b) (c) S 2 0 0 0 -1 69238880 0"), Some(69_238_880));
        assert_eq!(flags("nonsense"), None);
        let machine = machine("cpu  100 10 50 900 5 1 2 7 0 0\ncpu0 1 1");
        assert_eq!(machine.busy, Duration::from_millis(1630));
        assert_eq!(machine.stolen, Duration::from_millis(70));
    }
}
