//! How fast one member commits: one caller at a time, many callers, and what a restart costs.
//!
//! `cargo run -p atoll-raft --example throughput -- [folder] [seconds]`: the folder (by default
//! one in the system's folder for temporary files) should be on the disk that is asked about.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what goes wrong ends the measurement"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atoll_raft::{
    AppliedEntry, AppliedPayload, AppliedState, LogPosition, NoPeers, RaftConfig, RaftNode, StateMachine,
    StateMachineError,
};
use bytes::Bytes;
use parking_lot::Mutex;

/// Counts commands; durable in name only, which is all that the log asks for here.
#[derive(Default)]
struct Counter {
    applied: Mutex<AppliedState>,
    flushed: Mutex<Option<LogPosition>>,
    commands: AtomicU64,
}

impl StateMachine for Counter {
    fn applied(&self) -> AppliedState {
        self.applied.lock().clone()
    }

    fn apply(&self, entries: Vec<AppliedEntry>) -> Result<Vec<Bytes>, StateMachineError> {
        let mut applied = self.applied.lock();
        let mut results = Vec::with_capacity(entries.len());
        for entry in entries {
            applied.position = Some(entry.position);
            match entry.payload {
                AppliedPayload::Normal(_) => {
                    let count = self.commands.fetch_add(1, Ordering::Relaxed) + 1;
                    results.push(Bytes::copy_from_slice(&count.to_le_bytes()));
                }
                AppliedPayload::Blank => {}
                AppliedPayload::Membership(membership) => applied.membership = Some(membership),
            }
        }
        Ok(results)
    }

    fn flush(&self) -> Result<Option<LogPosition>, StateMachineError> {
        let position = self.applied.lock().position;
        *self.flushed.lock() = position;
        Ok(position)
    }

    fn flushed(&self) -> Option<LogPosition> {
        *self.flushed.lock()
    }

    fn checkpoint(&self, _dir: &Path) -> Result<AppliedState, StateMachineError> {
        Err(StateMachineError::new("there is nobody to send it to"))
    }

    fn verify(
        &self,
        _dir: &Path,
        _pace: &mut dyn FnMut(u64) -> Result<(), StateMachineError>,
    ) -> Result<(), StateMachineError> {
        Err(StateMachineError::new("there is nobody to send it to"))
    }

    fn install(&self, _dir: &Path) -> Result<(), StateMachineError> {
        Err(StateMachineError::new("there is nobody to get it from"))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "processor time is none of the clocks that lifetimes and records go by"
)]
fn cpu() -> Duration {
    let mut usage = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `usage` is a valid timespec for the call to fill in.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut usage) };
    Duration::new(usage.tv_sec as u64, usage.tv_nsec as u32)
}

/// What the disk alone can do: records of this size, one sync each, over a file of zeroes.
fn disk_alone(folder: &Path, bytes: usize, time: Duration) {
    use std::os::unix::fs::FileExt;
    const FILE_BYTES: usize = 16 << 20;
    let path = folder.join("disk-alone");
    let file = std::fs::File::create_new(&path).expect("a file");
    file.write_all_at(&vec![0; FILE_BYTES], 0).expect("room");
    file.sync_all().expect("a sync");
    let record = vec![7; bytes];
    let (end, cpu_before) = (Instant::now() + time, cpu());
    let mut times = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        let offset = times.len() * bytes % (FILE_BYTES - bytes);
        file.write_all_at(&record, offset as u64).expect("a write");
        file.sync_data().expect("a sync");
        times.push(start.elapsed());
    }
    let cpu = cpu() - cpu_before;
    times.sort_unstable();
    println!(
        "the disk alone, {bytes} bytes: {:8.0}/s, p50 {:6} us, p99 {:7} us, {:5.1} us of CPU each",
        times.len() as f64 / time.as_secs_f64(),
        times[times.len() / 2].as_micros(),
        times[times.len() * 99 / 100].as_micros(),
        cpu.as_secs_f64() * 1e6 / times.len() as f64,
    );
}

async fn ready(node: &RaftNode) {
    let mut leadership = node.watch_leadership();
    leadership.wait_for(|l| l.is_leader).await.expect("the node runs");
}

async fn measure(node: &Arc<RaftNode>, callers: usize, bytes: usize, time: Duration) {
    let end = Instant::now() + time;
    let (start, cpu_before) = (Instant::now(), cpu());
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move {
                let payload = Bytes::from(vec![7; bytes]);
                let mut times = Vec::new();
                while Instant::now() < end {
                    let start = Instant::now();
                    node.propose(payload.clone()).await.expect("a commit");
                    times.push(start.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("a caller"));
    }
    let wall = start.elapsed();
    let cpu = cpu() - cpu_before;
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_micros();
    println!(
        "{callers:4} callers, {bytes:7} bytes: {:8.0}/s, p50 {:6} us, p99 {:7} us, {:5.1} us of CPU each, {:6.1} MB/s",
        times.len() as f64 / wall.as_secs_f64(),
        at(0.5),
        at(0.99),
        cpu.as_secs_f64() * 1e6 / times.len() as f64,
        (times.len() * bytes) as f64 / wall.as_secs_f64() / 1e6,
    );
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(2);
    let dir = folder.join(format!("atoll-raft-throughput-{}", std::process::id()));
    let time = Duration::from_secs(seconds);
    let machine = Arc::new(Counter::default());
    let config = RaftConfig::new(1, &dir);

    let start = Instant::now();
    let node = RaftNode::open(config.clone(), machine.clone(), Arc::new(NoPeers)).await.expect("a node");
    node.bootstrap(BTreeMap::from([(1, "here".into())])).await.expect("a group");
    ready(&node).await;
    println!("made and leading after {:?}", start.elapsed());
    let node = Arc::new(node);
    disk_alone(&dir, 256, time);
    for (callers, bytes) in
        [(1, 256), (4, 256), (16, 256), (64, 256), (512, 256), (1, 8192), (64, 8192), (8, 1 << 20)]
    {
        measure(&node, callers, bytes, time).await;
    }
    let status = node.status();
    println!(
        "log files {} MiB, unflushed {} KiB",
        status.log_file_bytes >> 20,
        status.unflushed_log_bytes >> 10
    );
    let start = Instant::now();
    node.shutdown().await;
    println!("stopped in {:?}", start.elapsed());
    drop(node);

    let start = Instant::now();
    let node = RaftNode::open(config, machine, Arc::new(NoPeers)).await.expect("a node");
    ready(&node).await;
    println!("restarted and leading after {:?}", start.elapsed());
    node.shutdown().await;
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        eprintln!("can't remove {}: {error}", dir.display());
    }
}
