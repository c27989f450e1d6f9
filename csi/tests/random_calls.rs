//! The node's calls in random order: several volumes, two calls at once, callers that give up, drivers that are killed in the middle,
//! and clients, mount hosts and holders that are. A model says what has to be true; in the end nothing is left of any volume.
//!
//! `ATOLL_CALLS` is the number of calls, `ATOLL_SEED` what decides about them.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod node_support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use node_support::calls::{Call, Driver};
use node_support::{Machine, seed, wait_until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::Code;

/// Calls of one run unless told otherwise.
const CALLS: u32 = 60;
const VOLUMES: usize = 3;
const TARGETS: usize = 2;

/// Whether something is mounted, as far as answers have said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Mounted,
    Free,
    Unknown,
}

use Known::{Free, Mounted, Unknown};

/// What the answers have said about a volume.
struct Volume {
    handle: String,
    staging: (PathBuf, Known),
    targets: Vec<(PathBuf, Known)>,
}

impl Volume {
    fn new(machine: &Machine, number: usize) -> Volume {
        let target = |target| (machine.path(&format!("target-{number}-{target}")), Free);
        Volume {
            handle: format!("v1/test/volume-{number}"),
            staging: (machine.path(&format!("staging-{number}")), Free),
            targets: (0..TARGETS).map(target).collect(),
        }
    }

    /// Takes in what a call was answered; `None`: nobody waited for it.
    fn learn(&mut self, call: &Call, answer: Option<Code>) {
        let may_be = |known: &mut Known, to: Known| *known = if *known == to { to } else { Unknown };
        match (call, answer) {
            (_, Some(code)) if !matches!(code, Code::Ok | Code::Aborted | Code::Unavailable) => {
                panic!("{} {call:?}: {code}", self.handle)
            }
            (Call::Stage, Some(Code::Ok)) => self.staging.1 = Mounted,
            (Call::Stage, _) => may_be(&mut self.staging.1, Mounted),
            (Call::Publish(target), Some(Code::Ok)) => {
                (self.staging.1, self.targets[*target].1) = (Mounted, Mounted);
            }
            // A volume that isn't staged is staged first.
            (Call::Publish(target), _) => {
                may_be(&mut self.staging.1, Mounted);
                may_be(&mut self.targets[*target].1, Mounted);
            }
            (Call::Unpublish(target), Some(Code::Ok)) => {
                self.targets[*target].1 = Free;
                assert!(!self.targets[*target].0.exists(), "{}: the target is left", self.handle);
            }
            (Call::Unpublish(target), _) => may_be(&mut self.targets[*target].1, Free),
            (Call::Unstage, Some(Code::Ok)) => {
                self.staging.1 = Free;
                for (path, known) in &mut self.targets {
                    assert_ne!(*known, Mounted, "unstaged while it is published at {}", path.display());
                    *known = Free;
                }
            }
            (Call::Unstage, _) => may_be(&mut self.staging.1, Free),
        }
    }

    fn forget(&mut self) {
        self.staging.1 = Unknown;
        self.targets.iter_mut().for_each(|target| target.1 = Unknown);
    }

    /// Compares what is known with what is.
    fn check(&self, machine: &Machine) {
        let mounts = machine.mounts();
        for (path, known) in self.targets.iter().chain([&self.staging]) {
            let is = mounts.iter().any(|mount| mount == path.to_str().unwrap());
            match known {
                Mounted => {
                    assert!(is, "{} isn't mounted", path.display());
                    fs::write(path.join("used"), self.handle.as_bytes()).unwrap();
                }
                Free => assert!(!is, "{} is mounted", path.display()),
                Unknown => {}
            }
        }
    }
}

#[test]
fn nothing_is_left_of_volumes_in_whichever_order_they_are_used() {
    let calls = std::env::var("ATOLL_CALLS").map_or(CALLS, |calls| calls.parse().unwrap());
    let seed = seed();
    eprintln!("{calls} calls, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let machine = Machine::start();
    let mut holder = machine.holder();
    let mut host = machine.mount_host("a");
    let mut volumes: Vec<Volume> = (0..VOLUMES).map(|number| Volume::new(&machine, number)).collect();
    let mut driver = Driver::start(&machine);
    for number in 0..calls {
        let at = random.random_range(0..VOLUMES);
        let volume = &mut volumes[at];
        let target = random.random_range(0..TARGETS);
        let mut any = || match random.random_range(0..7) {
            0 | 1 => Call::Stage,
            2 | 3 => Call::Publish(target),
            4 | 5 => Call::Unpublish(target),
            _ => Call::Unstage,
        };
        let (call, other) = (any(), any());
        let (handle, staging) = (volume.handle.clone(), volume.staging.0.clone());
        let targets: Vec<PathBuf> = volume.targets.iter().map(|(path, _)| path.clone()).collect();
        let request = |call: Call| call.request(&machine, &handle, &staging, &targets);
        let patience = Duration::from_millis(random.random_range(0..200));
        match random.random_range(0..12) {
            // The caller gives up.
            0..3 => {
                let answer = driver.call(request(call), Some(patience));
                volume.learn(&call, answer);
            }
            // A caller that has lost its memory.
            3 => {
                let codes = driver.both(request(call), request(other));
                assert!(
                    codes.iter().all(|code| matches!(code, Code::Ok | Code::Aborted | Code::Unavailable)),
                    "{codes:?}"
                );
                volume.forget();
            }
            4 => {
                driver.call(request(call), Some(patience));
                driver = driver.killed(&machine);
                volume.forget();
            }
            5 => match random.random_range(0..3) {
                0 => machine.clients("a").into_iter().take(1).for_each(|client| {
                    eprintln!("{number}: kill client {client}");
                    machine.kill(client);
                }),
                1 => {
                    // The holder has everything, and gives it to the next one.
                    machine.leads("a");
                    eprintln!("{number}: kill the mount host");
                    host.kill();
                    host = machine.mount_host("a");
                }
                _ => {
                    // Whoever has the mounts has given them on before that.
                    machine.leads("a");
                    eprintln!("{number}: kill the holder");
                    holder.kill();
                    holder = machine.holder();
                    machine.leads("a");
                }
            },
            _ => {
                let answer = driver.call(request(call), None);
                eprintln!("{number}: {handle} {call:?}: {answer:?}");
                volume.learn(&call, answer);
                volume.check(&machine);
            }
        }
    }
    for volume in &mut volumes {
        let targets: Vec<PathBuf> = volume.targets.iter().map(|(path, _)| path.clone()).collect();
        let all = (0..TARGETS).map(Call::Unpublish).chain([Call::Unstage]);
        for call in all {
            driver.until_ok(|| call.request(&machine, &volume.handle, &volume.staging.0, &targets));
            volume.learn(&call, Some(Code::Ok));
        }
        volume.check(&machine);
        wait_until("the holder has let go of it", || machine.held_volume(&volume.handle) == Some(false));
    }
    assert_eq!(machine.mounts(), [] as [String; 0]);
    assert_eq!(machine.clients("a"), [] as [u32; 0]);
    host.end();
    holder.end();
}
