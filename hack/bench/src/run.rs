//! Rounds of workloads on targets.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::cli::Cli;
use crate::cpu::Used;
use crate::fault::Fault;
use crate::histogram::Histogram;
use crate::plan::Plan;
use crate::rest::{self, Rest};
use crate::target::{self, Target};
use crate::watchdog::Watchdog;
use crate::workload::{self, Bench, Measured, Scratch, State, Workload};

/// One measurement.
#[derive(Clone, Debug)]
pub struct Sample {
    /// In which round.
    pub round: u32,
    /// Work done, in the smallest unit.
    pub units: u64,
    /// How long it took.
    pub wall: Duration,
    /// CPU used meanwhile.
    pub used: Used,
    /// CPU used afterwards by what was left to do.
    pub after: Used,
}

/// All measurements of one workload on one target.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// One for each round that succeeded.
    pub samples: Vec<Sample>,
    /// Durations of single operations of all rounds.
    pub latencies: Histogram,
}

/// All measurements.
#[derive(Debug, Default)]
pub struct Run {
    /// By workload, then by target, both in the order in which they were given.
    pub cells: Vec<Vec<Cell>>,
    /// Rounds that were completed.
    pub rounds: u32,
    /// How long it took.
    pub wall: Duration,
    /// What used the CPUs during all measurements together.
    pub used: Used,
    /// The time of all measurements together.
    pub measured: Duration,
    /// What didn't work, for people.
    pub failures: Vec<String>,
    /// What each target's servers used before anything was done.
    pub rest: Vec<Option<Rest>>,
    /// Memory of each target's servers at the end, in bytes.
    pub memory: Vec<Option<u64>>,
    /// Somebody ended it early.
    pub interrupted: bool,
}

impl Run {
    /// Goes through the rounds. Targets take turns in each workload, and another one begins in each round, so that
    /// whatever else the machine does meets all of them.
    pub fn all(
        cli: &Cli,
        plan: &Plan,
        scratch: &Scratch,
        targets: &[Target],
        chosen: &[&Workload],
        watchdog: &Watchdog,
    ) -> Self {
        let mut run =
            Run { cells: vec![vec![Cell::default(); targets.len()]; chosen.len()], ..Run::default() };
        if !plan.rest.is_zero() {
            progress("watching servers that nobody asks for anything");
        }
        run.rest = rest::watch(targets, plan.rest);
        let mut states: Vec<State> = targets.iter().map(|_| State::default()).collect();
        let mut dead = vec![false; targets.len()];
        let began = Instant::now();
        // Before the first round, whose time says how long the others will last.
        for (target, state) in targets.iter().zip(&mut states) {
            progress(&format!("{:3} s, making many files: {}", began.elapsed().as_secs(), target.name));
            let _watch = watchdog.watch(target, "making many files");
            let mut bench = Bench { target, plan, scratch, cold: cli.cold, seed: cli.seed, state };
            match workload::prepare(chosen, &mut bench) {
                // The rounds begin with a look at that.
                Ok(()) | Err(Fault::Interrupted) => {}
                Err(fault) => run.failures.push(format!("making many files on {}: {fault}", target.name)),
            }
        }
        let mut longest = Duration::ZERO;
        'rounds: for round in 0..plan.rounds {
            if round > 0 && began.elapsed() + longest > plan.budget {
                break;
            }
            let start = Instant::now();
            for (row, workload) in chosen.iter().enumerate() {
                progress(&format!(
                    "{:3} s, round {} of {}: {}",
                    began.elapsed().as_secs(),
                    round + 1,
                    plan.rounds,
                    workload.name
                ));
                for turn in 0..targets.len() {
                    let column = (turn + round as usize) % targets.len();
                    if dead[column] {
                        continue;
                    }
                    let target = &targets[column];
                    let watch = watchdog.watch(target, workload.name);
                    let seed = cli.seed.wrapping_mul(1000) + u64::from(round);
                    let state = &mut states[column];
                    let result =
                        workload.run(&mut Bench { target, plan, scratch, cold: cli.cold, seed, state });
                    drop(watch);
                    match result {
                        Ok(measured) => run.add(row, column, round, measured),
                        Err(Fault::Interrupted) => {
                            run.interrupted = true;
                            break 'rounds;
                        }
                        Err(fault) => {
                            run.failures.push(format!("{} on {}: {fault}", workload.name, target.name));
                            // Whatever is there is made anew.
                            states[column] = State::default();
                            dead[column] = fault.is_disconnect()
                                || std::fs::metadata(&target.folder)
                                    .is_err_and(|e| crate::fault::is_disconnect(&e));
                        }
                    }
                }
            }
            run.rounds += 1;
            longest = longest.max(start.elapsed());
        }
        progress("");
        eprintln!("bench: {} rounds in {} s", run.rounds, began.elapsed().as_secs());
        run.wall = began.elapsed();
        run.memory = targets.iter().map(|target| target::memory(&target.pids)).collect();
        run
    }

    fn add(&mut self, row: usize, column: usize, round: u32, measured: Measured) {
        self.used += measured.used;
        self.measured += measured.wall;
        let cell = &mut self.cells[row][column];
        cell.latencies.merge(&measured.latencies);
        let Measured { units, wall, used, after, .. } = measured;
        cell.samples.push(Sample { round, units, wall, used, after });
    }
}

/// Says how far the run is, in one line that is written over; nothing if nobody looks.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}
