//! 4 KiB here and there in one file, and at its end.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::buffer::{Buffer, check, stamp};
use super::measure::{Bench, Leaves, Measured, Pace, parallel};
use super::sequential::{options, remove};
use crate::fault::{Context, Fault};
use crate::random::Random;

const BLOCK: usize = 4096;
/// Bytes of one write when the file is made.
const FILL: usize = 1 << 20;

/// Reads blocks for a slice of time.
pub fn read(bench: &mut Bench, threads: usize, direct: bool) -> Result<Measured, Fault> {
    let path = prepare(bench)?;
    if direct {
        warm(bench, &path)?;
    } else {
        bench.chill(std::iter::once(path.clone()))?;
    }
    let (blocks, seed) = (bench.plan.random_bytes / BLOCK as u64, bench.seed);
    bench.measure(bench.plan.slice, Leaves::Clean, |pace| {
        parallel(threads, |thread, latencies| {
            let file = options(direct).read(true).open(&path).doing("open", &path)?;
            if !direct {
                // Read-ahead would read what nobody asked for.
                // SAFETY: the descriptor is open; the call has no effect on memory of this process.
                unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
            }
            let mut random = Random::new(seed ^ (thread as u64 + 1));
            let mut buffer = Buffer::zeroed(BLOCK);
            let mut done = 0;
            while pace.go(done)? {
                let number = random.below(blocks);
                let began = Instant::now();
                file.read_exact_at(&mut buffer, number * BLOCK as u64).doing("read", &path)?;
                latencies.add(began.elapsed());
                check(&buffer, number)?;
                done += 1;
            }
            Ok(done)
        })
    })
}

/// Writes blocks for a slice of time, with an fsync after every so many and at the end.
pub fn write(
    bench: &mut Bench,
    threads: usize,
    direct: bool,
    sync_every: Option<u64>,
) -> Result<Measured, Fault> {
    let path = prepare(bench)?;
    warm(bench, &path)?;
    let (blocks, seed) = (bench.plan.random_bytes / BLOCK as u64, bench.seed);
    bench.measure(bench.plan.slice, Leaves::Clean, |pace| {
        parallel(threads, |thread, latencies| {
            let file = options(direct).write(true).open(&path).doing("open", &path)?;
            let mut random = Random::new(seed ^ (thread as u64 + 101));
            let mut buffer = Buffer::noise(BLOCK, seed);
            let mut done = 0;
            while pace.go(done)? {
                let number = random.below(blocks);
                stamp(&mut buffer, number);
                let began = Instant::now();
                file.write_all_at(&buffer, number * BLOCK as u64).doing("write", &path)?;
                done += 1;
                if sync_every.is_some_and(|every| done % every == 0) {
                    file.sync_all().doing("fsync", &path)?;
                }
                latencies.add(began.elapsed());
            }
            file.sync_all().doing("fsync", &path)?;
            Ok(done)
        })
    })
}

/// Appends blocks to a new file for each thread, each with an fsync.
pub fn append(bench: &mut Bench, threads: usize) -> Result<Measured, Fault> {
    let paths: Vec<_> = (0..threads).map(|n| bench.target.folder.join(format!("log{n}"))).collect();
    paths.iter().try_for_each(|path| remove(path))?;
    let seed = bench.seed;
    let measured = bench.measure(bench.plan.slice, Leaves::Clean, |pace| {
        parallel(threads, |thread, l| append_blocks(&paths[thread], seed, pace, l))
    })?;
    paths.iter().try_for_each(|path| remove(path))?;
    Ok(measured)
}

fn append_blocks(
    path: &Path,
    seed: u64,
    pace: Pace,
    latencies: &mut crate::histogram::Histogram,
) -> Result<u64, Fault> {
    let mut file = OpenOptions::new().append(true).create(true).open(path).doing("open", path)?;
    let block = Buffer::noise(BLOCK, seed);
    let mut done = 0;
    while pace.go(done)? {
        let began = Instant::now();
        file.write_all(&block).doing("write", path)?;
        file.sync_all().doing("fsync", path)?;
        latencies.add(began.elapsed());
        done += 1;
    }
    Ok(done)
}

/// Reads the file, so that it is in the caches of the kernel and of the servers.
fn warm(bench: &mut Bench, path: &Path) -> Result<(), Fault> {
    if bench.is_chilled("random") {
        let mut file = File::open(path).doing("open", path)?;
        std::io::copy(&mut file, &mut std::io::sink()).doing("read", path)?;
    }
    Ok(())
}

/// Makes the file, if it isn't there: each block knows its number.
fn prepare(bench: &mut Bench) -> Result<PathBuf, Fault> {
    let path = bench.target.folder.join("random");
    if bench.state.random {
        return Ok(path);
    }
    let mut noise = Buffer::noise(FILL, bench.seed);
    let mut file = File::create(&path).doing("open", &path)?;
    for number in 0..bench.plan.random_bytes / FILL as u64 {
        for (part, block) in noise.chunks_mut(BLOCK).enumerate() {
            stamp(block, number * (FILL / BLOCK) as u64 + part as u64);
        }
        file.write_all(&noise).doing("write", &path)?;
    }
    file.sync_all().doing("fsync", &path)?;
    bench.state.random = true;
    Ok(path)
}
