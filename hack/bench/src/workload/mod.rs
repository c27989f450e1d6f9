//! What is measured. A workload prepares what it needs, then does its work between two looks at the clocks.

mod big;
mod buffer;
mod measure;
mod programs;
mod random;
mod sequential;
mod small;
mod sqlite;
mod trees;

pub use measure::{Bench, Measured, State};
pub use trees::Scratch;

use crate::fault::Fault;

/// What a workload counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as MiB.
    Bytes,
    /// Reads, writes, calls.
    Operations,
    /// Files and folders.
    Files,
    /// Transactions of a database.
    Transactions,
}

impl Unit {
    /// How many of what is counted make one unit of the tables.
    pub fn size(self) -> f64 {
        if self == Unit::Bytes { f64::from(1 << 20) } else { 1.0 }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Bytes => "MiB",
            Unit::Operations => "op",
            Unit::Files => "file",
            Unit::Transactions => "txn",
        }
    }
}

/// One kind of work.
pub struct Workload {
    /// Its name on the command line and in tables.
    pub name: &'static str,
    /// The group that `--only` knows it by, too.
    pub group: &'static str,
    /// What it does.
    pub what: &'static str,
    /// What it counts.
    pub unit: Unit,
    run: fn(&mut Bench) -> Result<Measured, Fault>,
}

/// Makes what takes longer than all measurements of a round.
///
/// # Errors
/// What the filesystem answered.
pub fn prepare(chosen: &[&Workload], bench: &mut Bench) -> Result<(), Fault> {
    if chosen.iter().any(|workload| workload.group == "big") { big::prepare(bench).map(drop) } else { Ok(()) }
}

impl Workload {
    /// Does the work once.
    ///
    /// # Errors
    /// What the filesystem or a program answered; data that isn't what was written.
    pub fn run(&self, bench: &mut Bench) -> Result<Measured, Fault> {
        (self.run)(bench)
    }
}

macro_rules! workloads {
    ($($group:literal { $($name:literal $unit:ident $what:literal => $run:expr;)* })*) => {
        /// All of them, in the order in which they run: some use what others leave.
        pub const ALL: &[Workload] = &[$($(
            Workload { name: $name, group: $group, what: $what, unit: Unit::$unit, run: $run },
        )*)*];
    };
}

workloads! {
    "sequential" {
        "seq-write" Bytes "write a new file, 1 MiB a call, then fsync" => |b| sequential::write(b, 1 << 20, false);
        "seq-write-4k" Bytes "the same, 4 KiB a call" => |b| sequential::write(b, 4 << 10, false);
        "seq-write-direct" Bytes "the same, 1 MiB a call, O_DIRECT" => |b| sequential::write(b, 1 << 20, true);
        "seq-read-cold" Bytes "read that file, 1 MiB a call, caches empty" => |b| sequential::read(b, true, false);
        "seq-read-warm" Bytes "read it again" => |b| sequential::read(b, false, false);
        "seq-read-direct" Bytes "read it, 1 MiB a call, O_DIRECT" => |b| sequential::read(b, false, true);
    }
    "random" {
        "rand-read-cold" Operations "read 4 KiB at random places, caches empty at the start" => |b| random::read(b, 1, false);
        "rand-read-direct" Operations "the same, O_DIRECT" => |b| random::read(b, 1, true);
        "rand-read-direct-4t" Operations "the same, 4 threads" => |b| random::read(b, 4, true);
        "rand-write-fsync" Operations "write 4 KiB at a random place, fsync, again" => |b| random::write(b, 1, false, Some(1));
        "rand-write-fsync-4t" Operations "the same, 4 threads" => |b| random::write(b, 4, false, Some(1));
        "rand-write-fsync64" Operations "the same, fsync after every 64 writes" => |b| random::write(b, 1, false, Some(64));
        "rand-write-direct" Operations "write 4 KiB at random places, O_DIRECT, one fsync at the end" => |b| random::write(b, 1, true, None);
        "rand-write-direct-4t" Operations "the same, 4 threads" => |b| random::write(b, 4, true, None);
        "append-fsync" Operations "append 4 KiB, fsync, again" => |b| random::append(b, 1);
        "append-fsync-4t" Operations "the same, 4 threads, a file each" => |b| random::append(b, 4);
    }
    "small" {
        "create" Files "make files of 1 to 8 KiB in one folder: open, write, close" => |b| small::create(b, 1);
        "create-fsync" Files "the same with fsync before close" => |b| small::create_synced(b, 1);
        "mkdir" Files "make folders in one folder" => |b| small::make_folders(b, 1);
        "stat" Operations "stat them in random order" => |b| small::stat(b, 1, false);
        "open-read" Operations "open, read, close them in random order" => |b| small::read(b, 1, false);
        "readdir" Files "list the folder" => |b| small::list(b, false);
        "readdir-stat" Files "list it and stat every entry, like ls -l" => |b| small::list(b, true);
        "rename" Operations "rename each file in its folder" => |b| small::rename(b, 1);
        "stat-cold" Operations "stat them, caches empty at the start" => |b| small::stat(b, 1, true);
        "open-read-cold" Operations "open, read, close, caches empty at the start" => |b| small::read(b, 1, true);
        "unlink" Operations "unlink them" => |b| small::unlink(b, 1);
    }
    "parallel" {
        "create-4t" Files "create with 4 threads, each in a folder of its own" => |b| small::create(b, 4);
        "create-fsync-4t" Files "create with fsync before close, 4 threads" => |b| small::create_synced(b, 4);
        "mkdir-4t" Files "make folders with 4 threads" => |b| small::make_folders(b, 4);
        "stat-4t" Operations "stat with 4 threads" => |b| small::stat(b, 4, false);
        "open-read-4t" Operations "open, read, close with 4 threads" => |b| small::read(b, 4, false);
        "rename-4t" Operations "rename with 4 threads" => |b| small::rename(b, 4);
        "unlink-4t" Operations "unlink with 4 threads" => |b| small::unlink(b, 4);
    }
    "big" {
        "big-create" Files "make empty files in a folder that has 50,000 (--quick: 2000)" => big::create;
        "big-list-cold" Files "list that folder and stat every entry, like ls -l, caches empty" => big::list;
        "big-unlink" Operations "unlink files of that folder" => big::unlink;
    }
    "real" {
        "tar-x" Files "tar x of a source tree" => trees::tar_extract;
        "tar-c-cold" Files "read that tree with tar c, caches empty" => trees::tar_create;
        "find-cold" Files "find in that tree by size, caches empty (files and folders)" => trees::find;
        "rm-r" Files "rm -r of that tree" => trees::remove;
        "git-clone" Files "git clone of a generated repository (files of the work tree)" => trees::git_clone;
        "git-status-cold" Files "git status of that clone, caches empty" => trees::git_status;
        "sqlite" Transactions "sqlite3, an insert and an update each, rollback journal, synchronous=FULL" => |b| sqlite::transactions(b, "DELETE");
        "sqlite-wal" Transactions "the same with a write-ahead log" => |b| sqlite::transactions(b, "WAL");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ColdMode;
    use crate::plan::Plan;
    use crate::target::{Mount, Target};
    use std::time::Duration;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ALL.iter().flat_map(|w| [w.name]).chain(["small", "random"]).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn every_workload_runs_alone_and_leaves_no_more_than_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("source");
        std::fs::create_dir_all(tree.join("deep/er")).unwrap();
        for n in 0..20 {
            std::fs::write(tree.join(format!("deep/er/file{n}")), vec![b'x'; n * 100]).unwrap();
        }
        let plan = Plan {
            stream_bytes: 3 << 20,
            random_bytes: 1 << 20,
            slice: Duration::from_millis(3),
            files: 20,
            git_files: 12,
            git_commits: 3,
            big_files: 30,
            settle_max: Duration::ZERO,
            ..Plan::quick()
        };
        let scratch = Scratch::make(&folder.path().join("scratch"), &plan, Some(&tree)).unwrap();
        assert_eq!((scratch.tree_files, scratch.git_files), (20, 12));
        for workload in ALL {
            // A folder of its own each time: what it needs from others it has to make itself.
            let target = Target {
                name: "t".to_owned(),
                folder: folder.path().join(workload.name),
                mount: Mount::of(folder.path()).unwrap(),
                pids: Vec::new(),
                disposable: false,
                started: Vec::new(),
                against: None,
            };
            std::fs::create_dir(&target.folder).unwrap();
            let mut state = State::default();
            // Emptying the caches of the whole machine is nothing for a unit test.
            let cold = ColdMode::Advise;
            let mut bench =
                Bench { target: &target, plan: &plan, scratch: &scratch, cold, seed: 7, state: &mut state };
            for _ in 0..2 {
                match workload.run(&mut bench) {
                    Ok(measured) => {
                        assert!(measured.units > 0, "{}", workload.name);
                        assert!(measured.wall > Duration::ZERO, "{}", workload.name);
                    }
                    // tmpfs before Linux 6.6.
                    Err(Fault::Io { error, .. }) if error.raw_os_error() == Some(libc::EINVAL) => {}
                    Err(error) => panic!("{}: {error}", workload.name),
                }
            }
        }
    }
}
