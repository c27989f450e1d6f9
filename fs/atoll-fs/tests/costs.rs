//! What each operation costs on a mount that nobody else uses: requests of the kernel, questions to and changes by the metadata
//! servers, entries of the log, requests to storage servers. From counters, so that a hop that comes back is noticed
//! whatever machine this runs on.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Sub;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::{Cluster, use_compiled, wait_until};

/// Times that each operation is done. What the mount and the servers do besides, for themselves, is less than half of that.
const TIMES: u64 = 64;
/// Of these so many are done between two looks at what was allocated.
const GROUP: u64 = 8;
/// Nothing is under way any more if no counter moves for so long.
const QUIET: Duration = Duration::from_millis(150);

/// What was counted, of all that happened or for each operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    /// Requests of the kernel, …
    requests: u64,
    /// … those of them that another thread than the reader's was needed for.
    waited: u64,
    /// Questions to the leader.
    asked: u64,
    /// Changes that the leader was asked for.
    changes: u64,
    /// Entries of the log.
    entries: u64,
    /// Requests to storage servers.
    chunks: u64,
    /// How often memory was allocated, by the mount and by the servers; at most, where it says what is expected.
    allocations: u64,
}

impl Sub for Cost {
    type Output = Cost;

    fn sub(self, before: Cost) -> Cost {
        self.both(before, |after, before| after - before)
    }
}

impl Cost {
    fn both(self, other: Cost, of: impl Fn(u64, u64) -> u64) -> Cost {
        Cost {
            requests: of(self.requests, other.requests),
            waited: of(self.waited, other.waited),
            asked: of(self.asked, other.asked),
            changes: of(self.changes, other.changes),
            entries: of(self.entries, other.entries),
            chunks: of(self.chunks, other.chunks),
            allocations: of(self.allocations, other.allocations),
        }
    }

    /// Of each of so many operations, to the nearest.
    fn each(self, times: u64) -> Cost {
        self.both(self, |all, _| (all + times / 2) / times)
    }

    /// What the cluster has counted until now.
    fn now(cluster: &Cluster) -> Cost {
        let text = get(cluster, "/metrics");
        let sum = |name: &str, label: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
            let values = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
            values.map(|value| value as u64).sum::<u64>()
        };
        let waited = sum("atoll_mount_requests_total", "waited");
        Cost {
            requests: sum("atoll_mount_requests_total", "at_once") + waited,
            waited,
            asked: sum("atoll_metadata_request_seconds_count", "\"ask\""),
            changes: sum("atoll_metadata_request_seconds_count", "\"mutate\""),
            entries: sum("atoll_metadata_batch_commands_count", ""),
            chunks: sum("atoll_storage_requests_total", ""),
            allocations: 0,
        }
    }

    /// What it has counted when nothing is under way any more.
    fn at_rest(cluster: &Cluster) -> Cost {
        let mut last = Cost::now(cluster);
        wait_until("nothing is under way", || {
            std::thread::sleep(QUIET);
            let now = Cost::now(cluster);
            std::mem::replace(&mut last, now) == now
        });
        last
    }
}

/// Does it for each number, and says what each cost.
fn cost(cluster: &Cluster, mut operation: impl FnMut(u64)) -> Cost {
    // What is done for the first time may cost more.
    operation(TIMES);
    let before = Cost::at_rest(cluster);
    // Timers allocate, too, and the longer it takes the more: the group that had least of it counts. To ask is no
    // part of it.
    let mut fewest = u64::MAX;
    for group in 0..TIMES / GROUP {
        let begun = allocations(cluster);
        let before = allocations(cluster);
        (group * GROUP..(group + 1) * GROUP).for_each(&mut operation);
        let asking = before - begun;
        fewest = fewest.min((allocations(cluster) - before).saturating_sub(asking));
    }
    let each = (Cost::at_rest(cluster) - before).each(TIMES);
    Cost { allocations: fewest / GROUP, ..each }
}

/// What the process that serves the mount says of this.
fn get(cluster: &Cluster, what: &str) -> String {
    let mut stream = std::net::TcpStream::connect(cluster.http()).unwrap();
    write!(stream, "GET {what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn allocations(cluster: &Cluster) -> u64 {
    get(cluster, "/allocations").lines().last().unwrap().parse().unwrap()
}

fn lock(file: &File, kind: i32) {
    let lock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 1, l_pid: 0 };
    // SAFETY: the descriptor is open, and the lock lives until the call returns.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLKW, &raw const lock) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// As it is written below: requests, those that waited, asked, changes, entries, chunks; and allocations.
const fn costs(counts: [u64; 6], allocations: u64) -> Cost {
    let [requests, waited, asked, changes, entries, chunks] = counts;
    Cost { requests, waited, asked, changes, entries, chunks, allocations }
}

#[test]
fn each_operation_costs_what_it_did() {
    use_compiled();
    let cluster = Cluster::start(&["--shared"]);
    let path = |name: &str, number: u64| cluster.path(&format!("{name}-{number}"));
    let block = vec![7; 4096];
    let mut wrong = Vec::new();
    let mut check = |name: &str, expected: Cost, found: Cost| check(&mut wrong, name, expected, found);

    // Attributes of the folder before each look into it, and again before each change of it; then what is to be done. What the
    // kernel may keep is what a lease allows, and there is none.
    let found = cost(&cluster, |n| fs::create_dir(path("folder", n)).unwrap());
    check("mkdir", costs([4, 1, 3, 1, 1, 0], 170), found);
    let found = cost(&cluster, |n| drop(File::create_new(path("empty", n)).unwrap()));
    check("create", costs([7, 1, 4, 1, 1, 0], 195), found);
    // Its content is in the record.
    let found = cost(&cluster, |n| fs::write(path("small", n), &block).unwrap());
    check("create, write 4 KiB, close", costs([9, 2, 5, 2, 2, 0], 380), found);
    let found = cost(&cluster, |n| assert!(fs::metadata(path("small", n)).unwrap().is_file()));
    check("stat", costs([3, 0, 3, 0, 0, 0], 38), found);
    let found = cost(&cluster, |n| assert_eq!(fs::read(path("small", n)).unwrap(), block));
    check("open, read 4 KiB, close", costs([8, 0, 6, 0, 0, 0], 88), found);
    let file = OpenOptions::new().read(true).write(true).open(path("small", 0)).unwrap();
    let found = cost(&cluster, |_| {
        file.write_all_at(&block, 0).unwrap();
        file.sync_data().unwrap();
    });
    check("overwrite 4 KiB, fsync", costs([2, 1, 0, 1, 1, 0], 178), found);
    // No commit: locks are in the leader's memory, and in this process.
    let found = cost(&cluster, |_| {
        lock(&file, libc::F_WRLCK);
        lock(&file, libc::F_UNLCK);
    });
    check("lock, unlock", costs([2, 0, 2, 0, 0, 0], 65), found);
    let found = cost(&cluster, |n| fs::rename(path("empty", n), path("renamed", n)).unwrap());
    check("rename", costs([7, 1, 6, 1, 1, 0], 242), found);
    // One entry frees what it held, too.
    let found = cost(&cluster, |n| fs::remove_file(path("renamed", n)).unwrap());
    check("unlink of an empty file", costs([4, 1, 3, 1, 1, 0], 212), found);
    let found = cost(&cluster, |n| fs::remove_file(path("small", n)).unwrap());
    check("unlink of a small file", costs([4, 1, 3, 1, 1, 0], 222), found);
    let found = cost(&cluster, |n| fs::remove_dir(path("folder", n)).unwrap());
    check("rmdir", costs([4, 1, 3, 1, 1, 0], 214), found);

    is_as_meant(&wrong);
}

/// What the kernel and the mount may keep costs nothing.
#[test]
fn each_operation_on_a_volume_for_one_mount_costs_what_it_did() {
    use_compiled();
    let cluster = Cluster::start(&[]);
    // All names in it are known here.
    fs::create_dir(cluster.path("made")).unwrap();
    let path = |name: &str, number: u64| cluster.path(&format!("made/{name}-{number}"));
    let block = vec![7; 4096];
    let mut wrong = Vec::new();
    // How many of what is carried out here share an entry is a matter of speed.
    let mut check = |name: &str, expected: Cost, found: Cost| {
        check(&mut wrong, name, expected, Cost { entries: 0, ..found });
    };

    let found = cost(&cluster, |n| fs::write(path("small", n), &block).unwrap());
    check("create, write 4 KiB, close", costs([7, 0, 0, 0, 0, 0], 280), found);
    let found = cost(&cluster, |n| assert!(fs::metadata(path("small", n)).unwrap().is_file()));
    check("stat", costs([1, 0, 0, 0, 0, 0], 4), found);
    let found = cost(&cluster, |n| assert_eq!(fs::read(path("small", n)).unwrap(), block));
    check("open, read 4 KiB, close", costs([2, 0, 0, 0, 0, 0], 4), found);
    let found = cost(&cluster, |n| fs::create_dir(path("folder", n)).unwrap());
    check("mkdir", costs([3, 0, 0, 0, 0, 0], 120), found);
    let found = cost(&cluster, |n| fs::rename(path("small", n), path("renamed", n)).unwrap());
    check("rename", costs([3, 0, 0, 0, 0, 0], 150), found);
    let found = cost(&cluster, |n| fs::remove_file(path("renamed", n)).unwrap());
    check("unlink of a small file", costs([2, 0, 0, 0, 0, 0], 110), found);
    is_as_meant(&wrong);
}

fn check(wrong: &mut Vec<String>, name: &str, expected: Cost, found: Cost) {
    println!("{name:28} {found:?}");
    let is_much = found.allocations > expected.allocations;
    if is_much || (Cost { allocations: expected.allocations, ..found }) != expected {
        wrong.push(format!("{name}: expected {expected:?}, found {found:?}"));
    }
}

fn is_as_meant(wrong: &[String]) {
    assert!(wrong.is_empty(), "if it is meant, and worth it, change what is expected:\n{}", wrong.join("\n"));
}
