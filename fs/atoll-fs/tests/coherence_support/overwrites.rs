//! A file whose cells are written in every way there is: each read is explained by operations that were made, or were
//! under way.
//!
//! A cell is 8 bytes that carry a number which is used once. On one mount a cell is a register: a read gives what was
//! written last, or what is written meanwhile. Between mounts there is close-to-open coherence: a read may give what
//! was written earlier, but nothing that never was.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{ALIGNMENT, Aligned, Mapping, Random, memory_file, open, read_at, run_all};

const CELL_BYTES: usize = 8;
/// The file is at most so long, in cells: some pages that others share, and some that come and go at its end.
const CELLS: usize = 6 * CELLS_A_PAGE;
const CELLS_A_PAGE: usize = ALIGNMENT / CELL_BYTES;
/// The file is never cut off below this (cells): what is mapped lies there.
const CELLS_MIN: usize = 3 * CELLS_A_PAGE;
/// Mappings store in this page alone, and nothing goes past the kernel's pages there, neither direct writes nor copies
/// nor holes: it writes a page of a mapping out as a whole, with what was there before.
const MAPPED_PAGE: usize = 1;
/// Cells of one write that isn't direct.
const RUN_CELLS_MAX: u64 = 700;

/// A moment, in nanoseconds since the beginning.
type Moment = u64;

/// An operation that gave cells a content: numbers from `first` on, or zeroes.
#[derive(Clone, Copy)]
struct Change {
    what: &'static str,
    cells: (usize, usize),
    /// The number of the first cell; `None`: zeroes.
    first: Option<u64>,
    begun: Moment,
    ended: Moment,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Change { what, cells, begun, ended, .. } = self;
        write!(out, "{what} of cells {cells:?} from {begun} to {ended} ns")
    }
}

struct Look {
    by: &'static str,
    mount: usize,
    first: usize,
    /// Cells as they were read; a cell that wasn't there is zero.
    cells: Vec<u64>,
    begun: Moment,
    ended: Moment,
}

struct Shared {
    start: Instant,
    end: Instant,
    stop: AtomicBool,
    numbers: AtomicU64,
}

impl Shared {
    fn now(&self) -> Moment {
        self.start.elapsed().as_nanos() as u64
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && Instant::now() < self.end
    }

    /// Bytes for so many cells, and the first one's number.
    fn cells(&self, count: usize) -> (Vec<u8>, u64) {
        let first = self.numbers.fetch_add(count as u64, Ordering::Relaxed);
        ((first..first + count as u64).flat_map(|number| stamp(number).to_le_bytes()).collect(), first)
    }
}

/// No byte of a cell is NUL, and a cell that is torn between two is none of either.
fn stamp(number: u64) -> u64 {
    let spread = (0..4).map(|byte| (1 + (number >> (6 * byte) & 0x3f)) << (8 * byte)).sum::<u64>();
    spread << 32 | (spread ^ 0x8080_8080)
}

struct Writer {
    file: File,
    direct: File,
    source: File,
    mapping: Mapping,
    memory: Aligned,
    made: Vec<Change>,
    random: Random,
}

impl Writer {
    fn new(path: &Path, source: &Path, random: Random) -> Self {
        let file = open(path, true, true, 0);
        Writer {
            mapping: Mapping::new(&file, CELLS_MIN * CELL_BYTES, true),
            direct: open(path, true, true, libc::O_DIRECT),
            source: open(source, true, true, 0),
            file,
            memory: Aligned::new(2 * ALIGNMENT),
            made: Vec::new(),
            random,
        }
    }

    /// One operation of a kind that the random numbers choose.
    fn step(&mut self, shared: &Shared) -> std::io::Result<()> {
        let choice = self.random.below(100);
        let start = self.random.below(CELLS as u64 - 1) as usize;
        let count = (self.random.below(RUN_CELLS_MAX) as usize + 1).min(CELLS - start);
        // What isn't a write leaves the mapped page alone.
        let (start, count) = match choice {
            70..90 => {
                let start = start.max((MAPPED_PAGE + 1) * CELLS_A_PAGE);
                (start, count.min(CELLS - start))
            }
            _ => (start, count),
        };
        let bytes_at = (start * CELL_BYTES) as u64;
        let begun = shared.now();
        let (what, cells, first) = match choice {
            0..40 => {
                let (bytes, first) = shared.cells(count);
                self.file.write_all_at(&bytes, bytes_at)?;
                ("write", (start, start + count), Some(first))
            }
            40..55 => {
                let page = [0, 2, 3, 4][self.random.below(4) as usize];
                let pages = if page >= 3 { 2 } else { 1 };
                let (bytes, first) = shared.cells(pages * CELLS_A_PAGE);
                let memory = self.memory.slice(bytes.len());
                memory.copy_from_slice(&bytes);
                self.direct.write_all_at(memory, (page * ALIGNMENT) as u64)?;
                ("direct write", (page * CELLS_A_PAGE, (page + pages) * CELLS_A_PAGE), Some(first))
            }
            55..70 => {
                let at = MAPPED_PAGE * CELLS_A_PAGE + self.random.below(CELLS_A_PAGE as u64 - 4) as usize;
                let (bytes, first) = shared.cells(4);
                self.mapping.store(at * CELL_BYTES, &bytes);
                ("store", (at, at + 4), Some(first))
            }
            70..80 => {
                let (bytes, first) = shared.cells(count);
                self.source.write_all_at(&bytes, 0)?;
                let mut done = 0;
                while done < bytes.len() {
                    let (mut from, mut to) = (done as i64, bytes_at as i64 + done as i64);
                    // SAFETY: open descriptors, and two numbers that outlive the call.
                    let copied = unsafe {
                        let (from, to) = (&raw mut from, &raw mut to);
                        let (source, file) = (self.source.as_raw_fd(), self.file.as_raw_fd());
                        libc::copy_file_range(source, from, file, to, bytes.len() - done, 0)
                    };
                    match copied {
                        0 => return Err(std::io::Error::other("copy_file_range copied nothing")),
                        1.. => done += copied as usize,
                        _ => return Err(std::io::Error::last_os_error()),
                    }
                }
                ("copy", (start, start + count), Some(first))
            }
            80..90 => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let length = (count * CELL_BYTES) as i64;
                // SAFETY: an open descriptor and numbers.
                let done = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, bytes_at as i64, length) };
                if done != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                ("punch", (start, start + count), None)
            }
            _ => {
                let size = CELLS_MIN + self.random.below((CELLS - CELLS_MIN) as u64) as usize;
                self.file.set_len((size * CELL_BYTES) as u64)?;
                ("truncation", (size, CELLS), None)
            }
        };
        self.made.push(Change { what, cells, first, begun, ended: shared.now() });
        Ok(())
    }
}

fn look(path: &Path, by: &'static str, mount: usize, shared: &Shared, mut random: Random) -> Vec<Look> {
    let mut looks = Vec::new();
    let mut file = open(path, true, false, 0);
    let mapping = Mapping::new(&file, CELLS_MIN * CELL_BYTES, false);
    let mut memory = Aligned::new(CELLS * CELL_BYTES);
    let through = memory_file();
    while shared.goes_on() {
        match by {
            "fresh" => file = open(path, true, false, 0),
            "direct" => file = open(path, true, false, libc::O_DIRECT),
            _ => {}
        }
        let first = match by {
            "direct" => random.below(6) as usize * CELLS_A_PAGE,
            "mapped" => random.below(CELLS_MIN as u64 - 1) as usize,
            _ => random.below(CELLS as u64 - 1) as usize,
        };
        let most = if by == "mapped" { CELLS_MIN } else { CELLS } - first;
        let count = match by {
            "direct" => most.min(2 * CELLS_A_PAGE),
            _ => most.min(random.below(1000) as usize + 1),
        };
        let begun = shared.now();
        let bytes = memory.slice(count * CELL_BYTES);
        let length = match by {
            "mapped" => mapping.load(first * CELL_BYTES, bytes, &through),
            _ => read_at(&file, bytes, (first * CELL_BYTES) as u64),
        };
        let ended = shared.now();
        bytes[length..].fill(0);
        let cells = bytes.chunks_exact(CELL_BYTES).map(|cell| u64::from_le_bytes(cell.try_into().unwrap()));
        looks.push(Look { by, mount, first, cells: cells.collect(), begun, ended });
        std::thread::sleep(Duration::from_micros(random.below(3000)));
    }
    looks
}

/// What happened to one cell.
#[derive(Default)]
struct Cell {
    /// In the order in which they ended, each with what it left.
    changes: Vec<(Change, u64)>,
    /// The latest beginning of each one and those before it.
    last_begun: Vec<Moment>,
}

impl Cell {
    /// The latest beginning of what had ended before this moment: what had ended before that is over.
    fn over_before(&self, moment: Moment) -> Moment {
        let ended = self.changes.partition_point(|(change, _)| change.ended < moment);
        ended.checked_sub(1).map_or(0, |last| self.last_begun[last])
    }

    /// What a read may give.
    fn candidates(&self, look: &Look, is_register: bool) -> Vec<u64> {
        let over = if is_register { self.over_before(look.begun) } else { 0 };
        let may = |change: &Change| change.begun <= look.ended && change.ended >= over;
        self.changes.iter().filter(|(change, _)| may(change)).map(|(_, value)| *value).collect()
    }
}

fn by_cell(changes: &[Change]) -> Vec<Cell> {
    let mut cells: Vec<Cell> = (0..CELLS).map(|_| Cell::default()).collect();
    let mut changes = changes.to_vec();
    changes.sort_by_key(|change| change.ended);
    for change in changes {
        for (at, cell) in cells[change.cells.0..change.cells.1].iter_mut().enumerate() {
            let value = change.first.map_or(0, |first| stamp(first + at as u64));
            cell.changes.push((change, value));
            cell.last_begun.push(change.begun.max(cell.last_begun.last().copied().unwrap_or(0)));
        }
    }
    cells
}

fn explain(looks: &[Look], changes: &[Change], is_register: bool) -> Result<(), String> {
    let cells = by_cell(changes);
    let written = cells.iter().enumerate().flat_map(|(at, cell)| {
        cell.changes
            .iter()
            .filter(|(_, value)| *value != 0)
            .map(move |(change, value)| ((at, *value), *change))
    });
    let written: HashMap<(usize, u64), Change> = written.collect();
    for look in looks {
        for (at, value) in look.cells.iter().enumerate() {
            let number = look.first + at;
            let cell = &cells[number];
            // Nearly always it is a write that may be read.
            let by = written.get(&(number, *value));
            let over = if is_register { cell.over_before(look.begun) } else { 0 };
            if by.is_some_and(|change| change.begun <= look.ended && change.ended >= over) {
                continue;
            }
            let may = cell.candidates(look, is_register);
            // A cell that is read while it is written may be torn: each of its bytes is one's or the other's.
            let byte = |value: u64, at: usize| value >> (8 * at) & 0xff;
            let torn = || (0..CELL_BYTES).all(|at| may.iter().any(|one| byte(*one, at) == byte(*value, at)));
            if may.contains(value) || torn() {
                continue;
            }
            let before = cell.changes.iter().rev().filter(|(change, _)| change.begun <= look.ended);
            return Err(format!(
                "{} on mount {} read cell {number} (byte {}) as {value:#x}, of {by:?}, between {} and {} ns; \
                 before that: {:?}",
                look.by,
                look.mount,
                number * CELL_BYTES,
                look.begun,
                look.ended,
                before.map(|(change, _)| change).take(4).collect::<Vec<_>>(),
            ));
        }
    }
    Ok(())
}

/// Changes a file on all of these mounts of one volume, and reads it on all of them.
pub fn run(mounts: &[PathBuf], seed: u64, how_long: Duration) {
    const NAME: &str = "overwritten";
    let path = mounts[0].join(NAME);
    let shared = Arc::new(Shared {
        start: Instant::now(),
        end: Instant::now() + how_long,
        stop: AtomicBool::new(false),
        numbers: AtomicU64::new(1),
    });
    let (bytes, first) = shared.cells(CELLS);
    fs::write(&path, bytes).unwrap();
    let made =
        Change { what: "beginning", cells: (0, CELLS), first: Some(first), begun: 0, ended: shared.now() };
    let changes = Arc::new(parking_lot::Mutex::new(vec![made]));
    let looks = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut random = Random::new(seed);
    let mut jobs: Vec<Box<dyn FnOnce() -> Result<(), String> + Send>> = Vec::new();
    for (mount, folder) in mounts.iter().enumerate() {
        for by in ["kept", "fresh", "direct", "mapped"] {
            let (shared, looks, path) = (Arc::clone(&shared), Arc::clone(&looks), folder.join(NAME));
            let random = Random::new(random.below(u64::MAX));
            jobs.push(Box::new(move || {
                let mut seen = look(&path, by, mount, &shared, random);
                looks.lock().append(&mut seen);
                Ok(())
            }));
        }
        for number in 0..2 {
            let (shared, changes, path) = (Arc::clone(&shared), Arc::clone(&changes), folder.join(NAME));
            let source = folder.join(format!("source-{mount}-{number}"));
            let random = Random::new(random.below(u64::MAX));
            jobs.push(Box::new(move || {
                fs::write(&source, b"").unwrap();
                let mut writer = Writer::new(&path, &source, random);
                let mut done = Ok(());
                while done.is_ok() && shared.goes_on() {
                    done = writer.step(&shared).map_err(|error| format!("mount {mount}: {error}"));
                    std::thread::sleep(Duration::from_micros(writer.random.below(4000)));
                }
                if done.is_err() {
                    shared.stop.store(true, Ordering::Relaxed);
                }
                changes.lock().append(&mut writer.made);
                drop(writer);
                fs::remove_file(&source).unwrap();
                done
            }));
        }
    }
    run_all(jobs, seed);
    let (changes, looks) = (changes.lock(), looks.lock());
    assert!(changes.len() > 20 && looks.len() > 20, "{} changes, {} looks", changes.len(), looks.len());
    if let Err(what) = explain(&looks, &changes, mounts.len() == 1) {
        panic!("seed {seed}: {what}");
    }
    fs::remove_file(&path).unwrap();
}
