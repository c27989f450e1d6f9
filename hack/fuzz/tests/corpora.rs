//! Every target, through what is known of it: seeds, the corpus in the repository, and mutations of both.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use atoll_fuzz::{TARGETS, Target};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Mutations of each target's inputs. The corpora are what `make fuzz` has found with coverage; this is for each commit.
const MUTATIONS: u32 = 4_000;

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let crate_folder = std::env::var("CARGO_MANIFEST_DIR").expect("run this with cargo test");
    let folder = Path::new(&crate_folder).join("corpora").join(target.name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn mutated(random: &mut StdRng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = inputs[random.random_range(0..inputs.len())].clone();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.random()),
            4 => {
                let width = random.random_range(1..=8).min(bytes.len() - at);
                bytes[at..at + width].fill(if random.random() { 0xff } else { 0 });
            }
            _ => {
                let other = &inputs[random.random_range(0..inputs.len())];
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
        }
    }
    bytes
}

#[test]
fn seeds_make_sense() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}", target.name);
        for (number, seed) in seeds.iter().enumerate() {
            assert!((target.read)(seed), "seed {number} of {} is refused", target.name);
        }
    }
}

#[test]
fn whatever_the_bytes_are_they_are_read_or_refused() {
    for target in TARGETS {
        let mut inputs = (target.seeds)();
        inputs.extend(corpus(target));
        for input in &inputs {
            (target.read)(input);
        }
        (target.read)(&[]);
        let mut random = StdRng::seed_from_u64(1);
        for number in 0..MUTATIONS {
            let input = mutated(&mut random, &inputs);
            let read = std::panic::catch_unwind(|| (target.read)(&input));
            assert!(read.is_ok(), "mutation {number} of {}: {}", target.name, hex(&input));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
