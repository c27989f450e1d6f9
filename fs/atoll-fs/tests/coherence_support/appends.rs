//! A file that only grows: whatever is read is what the file has there in the end, and what was answered is there.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{ALIGNMENT, Aligned, Mapping, Random, memory_file, open, read_at, run_all};

/// Bytes of one append at most.
const RECORD_BYTES_MAX: u64 = 5000;
/// Bytes of one look at most.
const LOOK_BYTES_MAX: usize = 64 << 10;
const APPENDERS: usize = 2;

/// What a look found, to be compared with the file in the end.
struct Look {
    by: &'static str,
    mount: usize,
    offset: u64,
    bytes: Vec<u8>,
}

struct Shared {
    stop: AtomicBool,
    end: Instant,
    /// Bytes of all appends that were answered.
    answered: AtomicU64,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && Instant::now() < self.end
    }
}

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A descriptor that is kept, through the kernel's pages.
    Kept,
    /// Opened for each look.
    Fresh,
    /// Opened for each look, past the kernel's pages.
    Direct,
    /// Mapped, as long as it is at that moment.
    Mapped,
}

/// The bytes of an append: none of them is NUL, and where one is says which it is.
fn record(writer: usize, number: u64, length: u64) -> Vec<u8> {
    let start = format!("<{writer}.{number}.");
    let mut bytes = start.into_bytes();
    let mut at = 0u64;
    while (bytes.len() as u64) < length {
        at += 1;
        bytes.push(1 + ((number * 31 + writer as u64 * 7 + at) % 250) as u8);
    }
    bytes
}

fn append(file: &mut File, shared: &Shared, writer: usize, mut random: Random) -> Result<(), String> {
    for number in 0.. {
        if !shared.goes_on() {
            break;
        }
        let bytes = record(writer, number, random.below(RECORD_BYTES_MAX) + 1);
        let written = file.write(&bytes).map_err(|error| format!("append: {error}"))?;
        if written != bytes.len() {
            return Err(format!("{written} of {} bytes were appended", bytes.len()));
        }
        shared.answered.fetch_add(written as u64, Ordering::SeqCst);
        std::thread::sleep(Duration::from_micros(random.below(2000)));
    }
    Ok(())
}

fn follow(
    path: &Path,
    kind: Kind,
    mount: usize,
    alone: bool,
    shared: &Shared,
    looks: &mut Vec<Look>,
    mut random: Random,
) -> Result<(), String> {
    let by = match kind {
        Kind::Kept => "kept",
        Kind::Fresh => "fresh",
        Kind::Direct => "direct",
        Kind::Mapped => "mapped",
    };
    let mut kept = open(path, true, false, 0);
    let mut memory = Aligned::new(LOOK_BYTES_MAX);
    let through = memory_file();
    let mut at = 0;
    while shared.goes_on() {
        let answered = shared.answered.load(Ordering::SeqCst);
        match kind {
            Kind::Fresh | Kind::Mapped => kept = open(path, true, false, 0),
            Kind::Direct => kept = open(path, true, false, libc::O_DIRECT),
            // What has been open for long and what was opened a moment ago.
            Kind::Kept if random.below(200) == 0 => kept = open(path, true, false, 0),
            Kind::Kept => {}
        }
        let size = kept.metadata().map_err(|error| format!("fstat: {error}"))?.size();
        if size < answered {
            return Err(format!("{by} on mount {mount}: {answered} bytes were answered, fstat says {size}"));
        }
        // Mostly the end, sometimes anywhere.
        let mut offset = if random.below(4) > 0 { at } else { random.below(at + 1) };
        if kind == Kind::Direct {
            offset = offset / ALIGNMENT as u64 * ALIGNMENT as u64;
        }
        let wanted = if random.below(2) == 0 { LOOK_BYTES_MAX } else { ALIGNMENT };
        let bytes = memory.slice(wanted);
        let length = if kind == Kind::Mapped {
            let length = (size.saturating_sub(offset) as usize).min(wanted);
            match length {
                0 => 0,
                _ => Mapping::new(&kept, size as usize, false).load(
                    offset as usize,
                    &mut bytes[..length],
                    &through,
                ),
            }
        } else {
            read_at(&kept, bytes, offset)
        };
        // Who opens a file sees what was answered before, and so does everybody on the same mount.
        let must = answered.saturating_sub(offset).min(wanted as u64) as usize;
        if length < must && (alone || matches!(kind, Kind::Fresh | Kind::Direct)) {
            return Err(format!(
                "{by} on mount {mount}: {length} bytes at {offset}, {answered} bytes of the file were answered"
            ));
        }
        let bytes = &bytes[..length];
        if let Some(nul) = bytes.iter().position(|byte| *byte == 0) {
            return Err(format!(
                "{by} on mount {mount}: a NUL byte at {} of {length} bytes from {offset}, {answered} answered",
                offset + nul as u64
            ));
        }
        looks.push(Look { by, mount, offset, bytes: bytes.to_vec() });
        at = at.max(offset + length as u64);
        std::thread::sleep(Duration::from_micros(random.below(1500)));
    }
    Ok(())
}

/// Appends to a file on all of these mounts of one volume, and reads it on all of them.
pub fn run(mounts: &[PathBuf], seed: u64, how_long: Duration) {
    const NAME: &str = "appended";
    let first = mounts[0].join(NAME);
    fs::write(&first, b"").unwrap();
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        end: Instant::now() + how_long,
        answered: AtomicU64::new(0),
    });
    let looks = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut jobs: Vec<Box<dyn FnOnce() -> Result<(), String> + Send>> = Vec::new();
    let mut random = Random::new(seed);
    for (mount, folder) in mounts.iter().enumerate() {
        for kind in [Kind::Kept, Kind::Kept, Kind::Fresh, Kind::Direct, Kind::Mapped] {
            let (shared, looks, path) = (Arc::clone(&shared), Arc::clone(&looks), folder.join(NAME));
            let (random, alone) = (Random::new(random.below(u64::MAX)), mounts.len() == 1);
            jobs.push(Box::new(move || {
                let mut seen = Vec::new();
                let done = follow(&path, kind, mount, alone, &shared, &mut seen, random);
                if done.is_err() {
                    shared.stop.store(true, Ordering::Relaxed);
                }
                looks.lock().append(&mut seen);
                done
            }));
        }
        for number in 0..APPENDERS {
            let (shared, path) = (Arc::clone(&shared), folder.join(NAME));
            let random = Random::new(random.below(u64::MAX));
            jobs.push(Box::new(move || {
                // Some readers have it open already, through the kernel's pages.
                std::thread::sleep(Duration::from_millis(50));
                let mut file = open(&path, number == 1, true, libc::O_APPEND);
                let done = append(&mut file, &shared, mount * APPENDERS + number, random);
                if done.is_err() {
                    shared.stop.store(true, Ordering::Relaxed);
                }
                done
            }));
        }
    }
    run_all(jobs, seed);
    let content = fs::read(&first).unwrap();
    assert_eq!(content.len() as u64, shared.answered.load(Ordering::SeqCst), "seed {seed}");
    let looks = std::mem::take(&mut *looks.lock());
    assert!(looks.iter().any(|look| !look.bytes.is_empty()), "nothing was read");
    for look in &looks {
        let start = look.offset as usize;
        let found = content.get(start..start + look.bytes.len());
        if found != Some(&look.bytes[..]) {
            let differs = found
                .and_then(|found| found.iter().zip(&look.bytes).position(|(a, b)| a != b))
                .unwrap_or_default();
            panic!(
                "seed {seed}: {} on mount {} read {} bytes at {start} that the file never had, from {} on",
                look.by,
                look.mount,
                look.bytes.len(),
                start + differs
            );
        }
    }
    fs::remove_file(&first).unwrap();
}
