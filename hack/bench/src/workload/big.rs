//! One folder of many files.

use std::fs::{self, File};
use std::path::PathBuf;

use super::measure::{Bench, Leaves, Measured, go_on, parallel};
use super::small::{each, remove_tree};
use crate::fault::{Context, Fault};
use crate::histogram::Histogram;

/// Threads that fill the folder before anything is measured: servers that batch are done sooner.
const FILLERS: usize = 8;

/// A folder of empty files with numbers for names. Their numbers have no gap.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    files: usize,
}

impl Folder {
    fn file(&self, number: usize) -> PathBuf {
        self.path.join(format!("entry-{number:07}"))
    }

    fn make(&self, number: usize) -> Result<(), Fault> {
        let path = self.file(number);
        File::options().write(true).create_new(true).open(&path).doing("create", &path).map(drop)
    }
}

/// Makes further files in the full folder.
pub fn create(bench: &mut Bench) -> Result<Measured, Fault> {
    let mut folder = prepare(bench)?;
    let first = folder.files;
    bench.state.big = None;
    let measured = bench.measure(bench.plan.slice, Leaves::Dirty, |pace| {
        each(usize::MAX, pace, |number| folder.make(first + number))
    })?;
    folder.files += measured.units as usize;
    bench.state.big = Some(folder);
    Ok(measured)
}

/// Lists the full folder with the attributes of each entry, as far as time allows, from empty caches.
pub fn list(bench: &mut Bench) -> Result<Measured, Fault> {
    let folder = prepare(bench)?;
    bench.chill(std::iter::empty())?;
    bench.measure(bench.plan.pass_max, Leaves::Clean, |pace| {
        let mut found = 0;
        let mut entries = fs::read_dir(&folder.path).doing("opendir", &folder.path)?;
        while pace.go(found)? {
            let Some(entry) = entries.next() else {
                let wrong = format!("{found} entries instead of {}", folder.files);
                return if found == folder.files as u64 {
                    Ok((found, Histogram::default()))
                } else {
                    Err(Fault::Wrong(wrong))
                };
            };
            let entry = entry.doing("readdir", &folder.path)?;
            entry.metadata().doing("stat", &entry.path())?;
            found += 1;
        }
        Ok((found, Histogram::default()))
    })
}

/// Removes the newest files of the full folder.
pub fn unlink(bench: &mut Bench) -> Result<Measured, Fault> {
    let mut folder = prepare(bench)?;
    let count = folder.files;
    bench.state.big = None;
    let measured = bench.measure(bench.plan.slice, Leaves::Dirty, |pace| {
        each(count, pace, |number| {
            let path = folder.file(count - 1 - number);
            fs::remove_file(&path).doing("unlink", &path)
        })
    })?;
    folder.files -= measured.units as usize;
    bench.state.big = Some(folder);
    Ok(measured)
}

/// The folder, with as many files as the plan says or more.
pub fn prepare(bench: &mut Bench) -> Result<Folder, Fault> {
    let mut folder = match bench.state.big.take() {
        Some(folder) => folder,
        None => {
            let folder = Folder { path: bench.target.folder.join("big"), files: 0 };
            remove_tree(&folder.path)?;
            fs::create_dir(&folder.path).doing("mkdir", &folder.path)?;
            folder
        }
    };
    let (first, count) = (folder.files, bench.plan.big_files.saturating_sub(folder.files));
    parallel(FILLERS, |thread, _| {
        let mut done = 0;
        for number in (thread..count).step_by(FILLERS) {
            go_on()?;
            folder.make(first + number)?;
            done += 1;
        }
        Ok(done)
    })?;
    folder.files += count;
    bench.state.big = Some(folder.clone());
    Ok(folder)
}
