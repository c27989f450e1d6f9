//! `atoll-sim`: runs worlds, says which don't hold, and how to see one again.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use atoll_sim::world;
use clap::Parser;

/// Runs simulated worlds.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many worlds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The seed of the first.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// How many at a time; as many as there are processors unless said otherwise.
    #[arg(long)]
    jobs: Option<usize>,
    /// No new world is begun after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Plant each fault, one after the other, until a world shows it.
    #[cfg(feature = "planted-faults")]
    #[arg(long)]
    planted_faults: bool,
    /// Plant this fault in every world.
    #[cfg(feature = "planted-faults")]
    #[arg(long)]
    plant: Option<String>,
    /// Say what happens in each world.
    #[arg(long, short)]
    verbose: bool,
}

/// Runs one world in a process of its own, which is this one's copy: libraries count things in places that a process has once
/// (tokio the seeds of its runtimes), and every world has to find them as they were.
#[expect(
    clippy::disallowed_methods,
    reason = "the child of a fork must not run what its parent's main has still to do"
)]
fn fork(seed: u64, arguments: &Arguments, fault: Option<&str>) -> libc::pid_t {
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child != 0 {
        assert!(child > 0, "no process for a world: {}", std::io::Error::last_os_error());
        return child;
    }
    #[cfg(feature = "planted-faults")]
    if let Some(fault) = fault
        && let Err(error) = atoll_faults::plant(fault)
    {
        println!("{error}");
        std::process::exit(2);
    }
    #[cfg(not(feature = "planted-faults"))]
    let _ = fault;
    let code = match world::run(seed) {
        Ok(report) => {
            if arguments.verbose {
                println!(
                    "seed {seed}: {:016x}, {:?}, {} shared operations, {} extents; {}",
                    report.fingerprint,
                    report.time,
                    report.shared_operations,
                    report.extents,
                    report.faults.join(", ")
                );
            }
            0
        }
        Err(problem) => {
            println!("seed {seed}: {problem}\n  again: make sim FIRST={seed} SEEDS=1");
            1
        }
    };
    std::process::exit(code)
}

/// Waits for one of the children, which are known by process with their seeds; whether its world held.
fn reap(running: &mut HashMap<libc::pid_t, u64>) -> bool {
    let mut status = 0;
    loop {
        // SAFETY: a place for the status.
        let child = unsafe { libc::waitpid(-1, &mut status, 0) };
        if child > 0 {
            let seed = running.remove(&child).unwrap_or_default();
            if libc::WIFSIGNALED(status) {
                let signal = libc::WTERMSIG(status);
                println!("seed {seed}: killed by signal {signal}\n  again: make sim FIRST={seed} SEEDS=1");
            }
            return status == 0;
        }
        let error = std::io::Error::last_os_error();
        assert_eq!(error.kind(), std::io::ErrorKind::Interrupted, "waiting for a world: {error}");
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    // Libraries compute tables when they are first used: once for all, here.
    if let Err(problem) = world::run(0) {
        println!("seed 0: {problem}");
        return ExitCode::FAILURE;
    }
    #[cfg(feature = "planted-faults")]
    if arguments.planted_faults {
        let (mut found, mut worlds) = (0, 0);
        for (fault, what) in atoll_faults::ALL {
            println!("{fault}: {what}");
            let (done, failed) = run(&arguments, Some(fault), true);
            worlds += done;
            if failed > 0 {
                found += 1;
                println!("  found within {done} worlds");
            } else {
                println!("  NOT FOUND in {done} worlds");
            }
        }
        println!("{found} of {} planted faults found, {worlds} worlds", atoll_faults::ALL.len());
        return if found == atoll_faults::ALL.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let began = Instant::now();
    #[cfg(feature = "planted-faults")]
    let fault = arguments.plant.as_deref();
    #[cfg(not(feature = "planted-faults"))]
    let fault = None;
    let (done, failed) = run(&arguments, fault, false);
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{done} worlds from seed {}, {failed} failed, {seconds:.1} s ({:.0} a minute)",
        arguments.first,
        done as f64 * 60.0 / seconds.max(0.001)
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the worlds; how many, and how many did not hold. With `until_failed`, none is begun after the first that doesn't.
fn run(arguments: &Arguments, fault: Option<&str>, until_failed: bool) -> (u64, u64) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.unwrap_or(processors).max(1);
    let began = Instant::now();
    let in_time = || arguments.seconds.is_none_or(|seconds| began.elapsed() < Duration::from_secs(seconds));
    let (mut running, mut done, mut failed) = (HashMap::new(), 0u64, 0u64);
    let mut seeds = arguments.first..arguments.first.saturating_add(arguments.seeds);
    loop {
        while running.len() < jobs && in_time() && !(until_failed && failed > 0) {
            let Some(seed) = seeds.next() else { break };
            running.insert(fork(seed, arguments, fault), seed);
        }
        if running.is_empty() {
            break;
        }
        failed += u64::from(!reap(&mut running));
        done += 1;
    }
    (done, failed)
}
