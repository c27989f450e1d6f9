//! Thousands of small files.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::buffer::{Buffer, check, stamp};
use super::measure::{Bench, Leaves, Measured, Pace, parallel};
use crate::fault::{Context, Fault};
use crate::histogram::Histogram;
use crate::random::Random;

/// Sizes of the files in bytes.
const SMALLEST: u64 = 1 << 10;
const LARGEST: u64 = 8 << 10;

/// Files in as many folders as threads work on them.
#[derive(Clone, Debug)]
pub struct Set {
    /// Without the number of the folder.
    root: PathBuf,
    /// Files in each folder, which are numbered.
    counts: Vec<usize>,
    /// First letter of their names.
    letter: char,
}

impl Set {
    fn folder(&self, thread: usize) -> PathBuf {
        PathBuf::from(format!("{}{thread}", self.root.display()))
    }

    fn file(&self, thread: usize, number: usize) -> PathBuf {
        self.folder(thread).join(format!("{}{number:06}", self.letter))
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.counts
            .iter()
            .enumerate()
            .flat_map(move |(thread, count)| (0..*count).map(move |number| self.file(thread, number)))
    }
}

/// The size of a file, which its number decides.
fn size(number: usize) -> usize {
    (SMALLEST + Random::new(number as u64).below(LARGEST - SMALLEST + 1)) as usize
}

fn slot<'a>(bench: &'a mut Bench, threads: usize) -> &'a mut Option<Set> {
    if threads == 1 { &mut bench.state.one } else { &mut bench.state.four }
}

/// Makes a new set.
pub fn create(bench: &mut Bench, threads: usize) -> Result<Measured, Fault> {
    let set = empty(bench, threads)?;
    fill(bench, set, threads, true)
}

/// Makes files with an fsync each, and removes them.
pub fn create_synced(bench: &mut Bench, threads: usize) -> Result<Measured, Fault> {
    let seed = bench.seed;
    in_new_folders(bench, "synced", threads, Leaves::Clean, |folder, pace| {
        let mut noise = Buffer::noise(LARGEST as usize, seed);
        each(usize::MAX, pace, |number| make(&folder.join(format!("f{number:06}")), number, &mut noise, true))
    })
}

/// Makes folders, and removes them.
pub fn make_folders(bench: &mut Bench, threads: usize) -> Result<Measured, Fault> {
    in_new_folders(bench, "folders", threads, Leaves::Dirty, |folder, pace| {
        each(usize::MAX, pace, |number| {
            let path = folder.join(format!("d{number:06}"));
            fs::create_dir(&path).doing("mkdir", &path)
        })
    })
}

/// Measures work that each thread does in a new folder of its own, which is removed afterwards.
fn in_new_folders(
    bench: &mut Bench,
    name: &str,
    threads: usize,
    leaves: Leaves,
    work: impl Fn(&Path, Pace) -> Result<(u64, Histogram), Fault> + Sync,
) -> Result<Measured, Fault> {
    let folders: Vec<_> = (0..threads).map(|n| bench.target.folder.join(format!("{name}{n}"))).collect();
    for folder in &folders {
        remove_tree(folder)?;
        fs::create_dir(folder).doing("mkdir", folder)?;
    }
    let measured = bench.measure(bench.plan.slice, leaves, |pace| {
        parallel(threads, |thread, latencies| {
            let (done, mine) = work(&folders[thread], pace)?;
            latencies.merge(&mine);
            Ok(done)
        })
    })?;
    folders.iter().try_for_each(|folder| remove_tree(folder))?;
    Ok(measured)
}

/// Asks for attributes, in random order.
pub fn stat(bench: &mut Bench, threads: usize, cold: bool) -> Result<Measured, Fault> {
    let set = temper(bench, threads, cold)?;
    in_random_order(bench, &set, threads, cold, |path, number, _| {
        let found = fs::symlink_metadata(path).doing("stat", path)?.len();
        if found == size(number) as u64 {
            Ok(())
        } else {
            Err(Fault::Wrong(format!("{found} bytes in {number}")))
        }
    })
}

/// Opens, reads and closes, in random order.
pub fn read(bench: &mut Bench, threads: usize, cold: bool) -> Result<Measured, Fault> {
    let set = temper(bench, threads, cold)?;
    in_random_order(bench, &set, threads, cold, |path, number, buffer| {
        let mut file = File::open(path).doing("open", path)?;
        let mut have = 0;
        loop {
            match file.read(&mut buffer[have..]).doing("read", path)? {
                0 => break,
                got => have += got,
            }
        }
        if have != size(number) {
            return Err(Fault::Wrong(format!("{have} bytes in file {number}")));
        }
        check(&buffer[..have], number as u64)
    })
}

/// Lists the folder again and again; `with_stat` asks for each entry's attributes too.
pub fn list(bench: &mut Bench, with_stat: bool) -> Result<Measured, Fault> {
    let set = temper(bench, 1, false)?;
    let folder = set.folder(0);
    bench.measure(bench.plan.slice, Leaves::Clean, |pace| {
        let mut entries = 0;
        while pace.go(entries)? {
            let mut found = 0;
            for entry in fs::read_dir(&folder).doing("opendir", &folder)? {
                let entry = entry.doing("readdir", &folder)?;
                if with_stat {
                    entry.metadata().doing("stat", &entry.path())?;
                }
                found += 1;
            }
            if found != set.counts[0] {
                return Err(Fault::Wrong(format!("{found} entries instead of {}", set.counts[0])));
            }
            entries += found as u64;
        }
        Ok((entries, Histogram::default()))
    })
}

/// Gives each file another name.
pub fn rename(bench: &mut Bench, threads: usize) -> Result<Measured, Fault> {
    let old = temper(bench, threads, false)?;
    let mut new = old.clone();
    new.letter = if old.letter == 'f' { 'g' } else { 'f' };
    let count: usize = old.counts.iter().sum();
    // Left empty if the work is cut off half-way: what remains is made anew then.
    *slot(bench, threads) = None;
    let measured = bench.measure(bench.plan.pass_max, Leaves::Dirty, |pace| {
        parallel(threads, |thread, latencies| {
            let (done, mine) = each(old.counts[thread], pace, |number| {
                let (from, to) = (old.file(thread, number), new.file(thread, number));
                fs::rename(&from, &to).doing("rename", &from)
            })?;
            latencies.merge(&mine);
            Ok(done)
        })
    })?;
    if measured.units == count as u64 {
        *slot(bench, threads) = Some(new);
    }
    Ok(measured)
}

/// Unlinks a whole set.
pub fn unlink(bench: &mut Bench, threads: usize) -> Result<Measured, Fault> {
    let set = temper(bench, threads, false)?;
    *slot(bench, threads) = None;
    bench.measure(bench.plan.pass_max, Leaves::Dirty, |pace| {
        parallel(threads, |thread, latencies| {
            let (done, mine) = each(set.counts[thread], pace, |number| {
                let path = set.file(thread, number);
                fs::remove_file(&path).doing("unlink", &path)
            })?;
            latencies.merge(&mine);
            Ok(done)
        })
    })
}

/// An empty set; an old one is removed.
fn empty(bench: &mut Bench, threads: usize) -> Result<Set, Fault> {
    *slot(bench, threads) = None;
    let root = bench.target.folder.join(if threads == 1 { "small" } else { "parallel" });
    let set = Set { root, counts: vec![0; threads], letter: 'f' };
    for thread in 0..threads {
        let folder = set.folder(thread);
        remove_tree(&folder)?;
        fs::create_dir(&folder).doing("mkdir", &folder)?;
    }
    Ok(set)
}

/// Fills a set; unless `limited`, to the last file.
fn fill(bench: &mut Bench, mut set: Set, threads: usize, limited: bool) -> Result<Measured, Fault> {
    let (count, seed) = (bench.plan.files / threads, bench.seed);
    let limit = if limited { bench.plan.pass_max } else { bench.plan.pass_max * 20 };
    let counts: Vec<_> = (0..threads).map(|_| std::sync::atomic::AtomicUsize::new(0)).collect();
    let measured = bench.measure(limit, Leaves::Dirty, |pace| {
        parallel(threads, |thread, latencies| {
            let mut noise = Buffer::noise(LARGEST as usize, seed);
            let (done, mine) =
                each(count, pace, |number| make(&set.file(thread, number), number, &mut noise, false))?;
            latencies.merge(&mine);
            counts[thread].store(done as usize, std::sync::atomic::Ordering::Relaxed);
            Ok(done)
        })
    })?;
    set.counts = counts.into_iter().map(std::sync::atomic::AtomicUsize::into_inner).collect();
    *slot(bench, threads) = Some(set);
    Ok(measured)
}

fn prepare(bench: &mut Bench, threads: usize) -> Result<Set, Fault> {
    if let Some(set) = slot(bench, threads).clone().filter(|set| set.counts.iter().all(|count| *count > 0)) {
        return Ok(set);
    }
    let set = empty(bench, threads)?;
    fill(bench, set, threads, false)?;
    slot(bench, threads).clone().ok_or_else(|| Fault::Wrong("no files".to_owned()))
}

/// The set, in the caches or not.
fn temper(bench: &mut Bench, threads: usize, cold: bool) -> Result<Set, Fault> {
    let set = prepare(bench, threads)?;
    if cold {
        bench.chill(set.files())?;
    } else if bench.is_chilled(if threads == 1 { "one" } else { "four" }) {
        for path in set.files() {
            fs::read(&path).doing("read", &path)?;
        }
    }
    Ok(set)
}

/// Makes one file of the size that belongs to its number.
fn make(path: &Path, number: usize, noise: &mut Buffer, synced: bool) -> Result<(), Fault> {
    stamp(noise, number as u64);
    let mut file = File::options().write(true).create_new(true).open(path).doing("create", path)?;
    file.write_all(&noise[..size(number)]).doing("write", path)?;
    if synced {
        file.sync_all().doing("fsync", path)?;
    }
    Ok(())
}

/// Does something once for each number, as far as time allows.
pub fn each(
    count: usize,
    pace: Pace,
    mut work: impl FnMut(usize) -> Result<(), Fault>,
) -> Result<(u64, Histogram), Fault> {
    let mut latencies = Histogram::default();
    let mut done = 0;
    for number in 0..count {
        if !pace.go(done)? {
            break;
        }
        let began = Instant::now();
        work(number)?;
        latencies.add(began.elapsed());
        done += 1;
    }
    Ok((done, latencies))
}

/// Does something with files picked at random for a slice of time; once with each if the caches are cold.
fn in_random_order(
    bench: &Bench,
    set: &Set,
    threads: usize,
    once: bool,
    work: impl Fn(&Path, usize, &mut [u8]) -> Result<(), Fault> + Sync,
) -> Result<Measured, Fault> {
    let seed = bench.seed;
    // Names are made before the clock starts.
    let orders: Vec<Vec<(PathBuf, usize)>> = (0..threads)
        .map(|thread| {
            let mut order: Vec<_> = (0..set.counts[thread]).map(|n| (set.file(thread, n), n)).collect();
            let mut random = Random::new(seed ^ (thread as u64 + 11));
            for i in (1..order.len()).rev() {
                order.swap(i, random.below(i as u64 + 1) as usize);
            }
            order
        })
        .collect();
    bench.measure(bench.plan.slice, Leaves::Clean, |pace| {
        parallel(threads, |thread, latencies| {
            let mut buffer = vec![0; LARGEST as usize + 1];
            let mut done = 0;
            loop {
                for (path, number) in &orders[thread] {
                    if !pace.go(done)? {
                        return Ok(done);
                    }
                    let began = Instant::now();
                    work(path, *number, &mut buffer)?;
                    latencies.add(began.elapsed());
                    done += 1;
                }
                if once {
                    return Ok(done);
                }
            }
        })
    })
}

/// Removes a folder with everything in it, if it is there.
pub fn remove_tree(path: &Path) -> Result<(), Fault> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).doing("rm -r", path),
        _ => Ok(()),
    }
}
