//! One big file from its beginning to its end.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use super::buffer::{Buffer, check, stamp};
use super::measure::{Bench, Leaves, Measured, Pace};
use crate::fault::{Context, Fault};
use crate::histogram::Histogram;

/// Blocks that reads check, in bytes.
const BLOCK: usize = 1 << 20;

/// Writes a new file in calls of `call` bytes, then fsync. Leaves it for the reads if the calls are of 1 MiB.
pub fn write(bench: &mut Bench, call: usize, direct: bool) -> Result<Measured, Fault> {
    let kept = call == BLOCK && !direct;
    let path = bench.target.folder.join(if kept { "stream" } else { "stream.other" });
    if kept {
        bench.state.stream = None;
    }
    remove(&path)?;
    let bytes = bench.plan.stream_bytes;
    let noise = Buffer::noise(BLOCK, bench.seed);
    let measured = bench.measure(bench.plan.pass_max, Leaves::Clean, |pace| {
        fill(&path, bytes, call, direct, noise, Some(pace))
    })?;
    if kept {
        bench.state.stream = Some(measured.units);
    } else {
        remove(&path)?;
    }
    Ok(measured)
}

/// Reads the file, which is made if it isn't there.
pub fn read(bench: &mut Bench, cold: bool, direct: bool) -> Result<Measured, Fault> {
    let path = bench.target.folder.join("stream");
    if bench.state.stream.is_none() {
        let noise = Buffer::noise(BLOCK, bench.seed);
        remove(&path)?;
        let (bytes, _) = fill(&path, bench.plan.stream_bytes, BLOCK, false, noise, None)?;
        bench.state.stream = Some(bytes);
    }
    if cold {
        bench.chill(std::iter::once(path.clone()))?;
    } else if bench.is_chilled("stream") {
        drain(&path, false, None)?;
    }
    let measured =
        bench.measure(bench.plan.pass_max, Leaves::Clean, |pace| drain(&path, direct, Some(pace)))?;
    Ok(measured)
}

/// Removes a file if it is there.
pub fn remove(path: &Path) -> Result<(), Fault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).doing("unlink", path),
        _ => Ok(()),
    }
}

/// Opens with O_DIRECT, or without.
pub fn options(direct: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options
}

/// Writes a file of `bytes`, or less if its time is over; a number in each block. Returns the bytes.
pub fn fill(
    path: &Path,
    bytes: u64,
    call: usize,
    direct: bool,
    mut noise: Buffer,
    pace: Option<Pace>,
) -> Result<(u64, Histogram), Fault> {
    let mut latencies = Histogram::default();
    let mut file = options(direct).write(true).create(true).truncate(true).open(path).doing("open", path)?;
    let mut written = 0;
    for number in 0.. {
        if written >= bytes || !pace.map_or(Ok(true), |pace| pace.go(number))? {
            break;
        }
        stamp(&mut noise, number);
        for part in noise.chunks(call) {
            let began = Instant::now();
            file.write_all(part).doing("write", path)?;
            latencies.add(began.elapsed());
            written += part.len() as u64;
        }
    }
    file.sync_all().doing("fsync", path)?;
    Ok((written, latencies))
}

/// Reads a whole file, or as much as time allows, and checks its blocks. Returns the bytes.
pub fn drain(path: &Path, direct: bool, pace: Option<Pace>) -> Result<(u64, Histogram), Fault> {
    let mut latencies = Histogram::default();
    let mut buffer = Buffer::zeroed(BLOCK);
    let mut file: File = options(direct).read(true).open(path).doing("open", path)?;
    let mut total = 0;
    for number in 0.. {
        if !pace.map_or(Ok(true), |pace| pace.go(number))? {
            break;
        }
        let began = Instant::now();
        let mut have = 0;
        while have < BLOCK {
            match file.read(&mut buffer[have..]).doing("read", path)? {
                0 => break,
                got => have += got,
            }
        }
        if have == 0 {
            break;
        }
        latencies.add(began.elapsed());
        check(&buffer[..have], number)?;
        total += have as u64;
    }
    Ok((total, latencies))
}
