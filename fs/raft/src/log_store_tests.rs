//! Tests of the log on a real folder and on a disk that loses power.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, RealDisk};
use crate::error::LogError;
use crate::log_store::{CACHE_BYTES_MAX, LogConfig, LogEntry, LogStore};
use crate::record::Kind;
use crate::sim_disk::SimDisk;
use crate::types::LogPosition;
use crate::vote::VoteRecord;

/// A bound for things that must happen at all.
const HANG: Duration = Duration::from_secs(60);

fn pos(term: u64, index: u64) -> LogPosition {
    LogPosition { term, index }
}

fn entry(term: u64, index: u64, payload: impl Into<Bytes>) -> LogEntry {
    LogEntry { position: pos(term, index), kind: Kind::Normal, payload: payload.into() }
}

fn config(dir: &Path, segment_bytes: u32) -> LogConfig {
    LogConfig { dir: dir.to_owned(), member: 1, segment_bytes }
}

fn open(dir: &Path, segment_bytes: u32) -> Result<LogStore, LogError> {
    LogStore::open(&config(dir, segment_bytes), Arc::new(RealDisk { sync: true }))
}

fn append(store: &LogStore, entries: Vec<LogEntry>) -> Result<(), LogError> {
    let (done, result) = mpsc::channel();
    store.append(entries, Box::new(move |r| drop(done.send(r))))?;
    result.recv_timeout(HANG).expect("an answer")
}

fn wait(result: tokio::sync::oneshot::Receiver<Result<(), LogError>>) -> Result<(), LogError> {
    result.blocking_recv().expect("an answer")
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANG, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn segments(dir: &Path) -> Vec<String> {
    let mut names = RealDisk { sync: true }.list(dir).unwrap();
    names.retain(|name| name.ends_with(".log"));
    names.sort();
    names
}

#[test]
fn appends_reads_and_reopens_over_many_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let entries: Vec<LogEntry> = (0..500)
        .map(|i| {
            let mut payload = vec![0; rng.random_range(0..2000)];
            rng.fill(&mut payload[..]);
            entry(1 + i / 100, i, payload)
        })
        .collect();
    let store = open(dir.path(), 32 << 10).unwrap();
    assert_eq!(store.ends(), (None, None));
    for chunk in entries.chunks(7) {
        append(&store, chunk.to_vec()).unwrap();
    }
    assert_eq!(store.read(0, 500, usize::MAX).unwrap(), entries);
    store.close();
    assert!(segments(dir.path()).len() > 10);
    assert!(matches!(append(&store, vec![entry(5, 500, "x")]), Err(LogError::Closed)));

    let store = open(dir.path(), 32 << 10).unwrap();
    assert_eq!(store.ends(), (None, Some(entries[499].position)));
    assert_eq!(store.read_cached(0, 500, usize::MAX), None, "nothing is in memory yet");
    assert_eq!(store.read(0, 500, usize::MAX).unwrap(), entries);
    assert_eq!(store.read(3, 490, usize::MAX).unwrap(), entries[3..490]);
    let some = store.read(10, 500, 10_000).unwrap();
    assert!(!some.is_empty() && some.len() < 100);
    assert_eq!(some, entries[10..10 + some.len()]);
    assert_eq!(store.read(10, 500, 1).unwrap(), entries[10..11]);
    assert_eq!(store.read(498, 600, usize::MAX).unwrap(), entries[498..]);
    assert_eq!(store.read(500, 600, usize::MAX).unwrap(), []);
    append(&store, vec![entry(6, 500, "after")]).unwrap();
    // Partly from disk, partly from memory.
    assert_eq!(store.read(495, 501, usize::MAX).unwrap().len(), 6);
}

#[test]
fn segments_may_change_their_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut next = 0;
    for segment_bytes in [16 << 10, 128 << 10, 16 << 10, 64 << 10] {
        let store = open(dir.path(), segment_bytes).unwrap();
        for _ in 0..20 {
            append(&store, vec![entry(1, next, vec![next as u8; segment_bytes as usize / 8])]).unwrap();
            next += 1;
        }
        store.purge(pos(1, next - 10));
        let entries = store.read(0, next, usize::MAX).unwrap();
        assert!(entries.len() >= 9 && entries.iter().all(|e| e.payload[0] == e.position.index as u8));
        store.close();
    }
}

#[test]
fn refuses_gaps_and_giants() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 << 10).unwrap();
    append(&store, vec![entry(1, 0, "a")]).unwrap();
    assert!(matches!(append(&store, vec![entry(1, 2, "c")]), Err(LogError::NotConsecutive { .. })));
    assert!(matches!(append(&store, vec![entry(1, 0, "a")]), Err(LogError::NotConsecutive { .. })));
    let giant = vec![7; (64 << 10) / 8 + 1];
    assert!(matches!(append(&store, vec![entry(1, 1, giant)]), Err(LogError::EntryTooLarge { .. })));
    append(&store, vec![entry(1, 1, vec![7; (64 << 10) / 8])]).unwrap();
}

#[test]
fn truncates_durably() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 16 << 10).unwrap();
    for i in 0..100 {
        append(&store, vec![entry(1, i, vec![i as u8; 300])]).unwrap();
    }
    wait(store.truncate_after(Some(pos(1, 200)))).unwrap();
    assert_eq!(store.ends().1, Some(pos(1, 99)));
    wait(store.truncate_after(Some(pos(1, 20)))).unwrap();
    assert_eq!(store.ends().1, Some(pos(1, 20)));
    assert_eq!(store.read(15, 90, usize::MAX).unwrap().len(), 6);
    store.close();
    let store = open(dir.path(), 16 << 10).unwrap();
    assert_eq!(store.ends().1, Some(pos(1, 20)));
    append(&store, vec![entry(2, 21, "new")]).unwrap();
    assert_eq!(store.read(20, 90, usize::MAX).unwrap()[1], entry(2, 21, "new"));
    wait(store.truncate_after(None)).unwrap();
    assert_eq!(store.ends(), (None, None));
    append(&store, vec![entry(3, 0, "first")]).unwrap();
    store.close();
    let store = open(dir.path(), 16 << 10).unwrap();
    assert_eq!(store.read(0, 90, usize::MAX).unwrap(), [entry(3, 0, "first")]);
}

#[test]
fn purging_drops_files_and_uses_them_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 16 << 10).unwrap();
    let fill = |from: u64, to: u64| {
        for i in from..to {
            append(&store, vec![entry(1, i, vec![i as u8; 1000])]).unwrap();
        }
    };
    fill(0, 100);
    let full = segments(dir.path());
    assert!(full.len() > 6);
    assert!(store.purge(pos(1, 60)).is_none());
    assert_eq!(store.ends(), (Some(pos(1, 60)), Some(pos(1, 99))));
    eventually("old segments go", || segments(dir.path()).len() < full.len() - 2);
    assert_eq!(store.read(0, 100, usize::MAX).unwrap().len(), 39);
    fill(100, 200);
    assert!(store.purge(pos(1, 198)).is_none());
    fill(200, 230);
    assert_eq!(store.read(0, 300, usize::MAX).unwrap().len(), 31);
    store.close();
    let store = open(dir.path(), 16 << 10).unwrap();
    let (base, last) = store.ends();
    assert!(base.is_some_and(|b| b.index <= 198 && b.index > 150), "{base:?}");
    assert_eq!(last, Some(pos(1, 229)));
    let entries = store.read(0, 300, usize::MAX).unwrap();
    assert!(entries.iter().all(|e| e.payload == vec![e.position.index as u8; 1000]));
    assert_eq!(entries.len() as u64, 229 - base.unwrap().index);
    // An installed snapshot goes further than the log.
    wait(store.purge(pos(4, 1000)).unwrap()).unwrap();
    assert_eq!(store.ends(), (Some(pos(4, 1000)), Some(pos(4, 1000))));
    append(&store, vec![entry(4, 1001, "on")]).unwrap();
    store.close();
    let store = open(dir.path(), 16 << 10).unwrap();
    assert_eq!(store.ends(), (Some(pos(4, 1000)), Some(pos(4, 1001))));
    assert_eq!(store.read(0, 2000, usize::MAX).unwrap(), [entry(4, 1001, "on")]);
}

#[test]
fn a_reader_of_a_dropped_segment_gets_what_was_there_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path(), 16 << 10).unwrap());
    let stop = Arc::new(Mutex::new(false));
    let reader = std::thread::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        move || {
            let mut read = 0;
            while !*stop.lock() {
                let (base, _) = store.ends();
                let from = base.map_or(0, |b| b.index + 1);
                for e in store.read(from, from + 50, usize::MAX).unwrap() {
                    assert_eq!(e.payload, vec![e.position.index as u8; 1500]);
                    read += 1;
                }
            }
            read
        }
    });
    for i in 0..2000 {
        append(&store, vec![entry(1, i, vec![i as u8; 1500])]).unwrap();
        if i % 40 == 39 {
            store.purge(pos(1, i - 20));
        }
    }
    *stop.lock() = true;
    assert!(reader.join().unwrap() > 0);
}

#[test]
fn memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 16 << 20).unwrap();
    let payload = Bytes::from(vec![1; 100_000]);
    for i in 0..100 {
        append(&store, vec![entry(1, i, payload.clone())]).unwrap();
    }
    let kept = CACHE_BYTES_MAX as u64 / 100_000;
    assert!(store.read_cached(100 - kept, 100, usize::MAX).is_some());
    assert!(store.read_cached(98 - kept, 100, usize::MAX).is_none());
    assert_eq!(store.read(0, 100, usize::MAX).unwrap().len(), 100);
    assert_eq!(store.total_bytes(), 100 * 100_040);
    assert!(store.bytes_after(Some(49)).abs_diff(50 * 100_040) <= 2 << 20);
}

#[test]
fn votes_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 << 10).unwrap();
    assert_eq!(store.vote(), None);
    let vote = VoteRecord { term: 4, node: 9, committed: true };
    wait(store.save_vote(vote)).unwrap();
    assert_eq!(store.vote(), Some(vote));
    store.close();
    assert_eq!(open(dir.path(), 64 << 10).unwrap().vote(), Some(vote));
}

#[test]
fn a_full_disk_refuses_new_commands_and_loses_nothing() {
    let disk = SimDisk::new(u64::MAX, false);
    let store = LogStore::open(&config(Path::new("/log"), 16 << 10), Arc::new(disk.clone())).unwrap();
    append(&store, vec![entry(1, 0, "a")]).unwrap();
    assert!(store.refusal().is_none());
    disk.set_room(Some(0));
    let mut next = 1;
    while store.refusal().is_none() {
        append(&store, vec![entry(1, next, vec![1; 1000])]).unwrap();
        next += 1;
        assert!(next < 100);
        // The failure shows once the second segment is in use and the third can't be made.
        std::thread::sleep(Duration::from_millis(1));
    }
    let why = store.refusal().unwrap().to_string();
    assert!(why.contains("can't write /log/spare-new"), "{why}");
    // What was let in before is still written.
    for _ in 0..3 {
        append(&store, vec![entry(1, next, vec![1; 1000])]).unwrap();
        next += 1;
    }
    disk.set_room(None);
    eventually("it goes on when there is room", || store.refusal().is_none());
    append(&store, vec![entry(1, next, "z")]).unwrap();
    store.close();
    let store = LogStore::open(&config(Path::new("/log"), 16 << 10), Arc::new(disk)).unwrap();
    assert_eq!(store.ends().1, Some(pos(1, next)));
}

#[test]
fn after_a_failed_write_nothing_is_written() {
    let disk = SimDisk::new(u64::MAX, false);
    let store = LogStore::open(&config(Path::new("/log"), 16 << 10), Arc::new(disk.clone())).unwrap();
    append(&store, vec![entry(1, 0, "a")]).unwrap();
    disk.cut_power();
    assert!(matches!(append(&store, vec![entry(1, 1, "b")]), Err(LogError::Io { .. })));
    assert!(matches!(append(&store, vec![entry(1, 2, "c")]), Err(LogError::Io { .. })));
    assert!(wait(store.save_vote(VoteRecord { term: 1, node: 1, committed: false })).is_err());
}

/// What was done to the log, in order, one entry at a time.
#[derive(Clone, Debug)]
enum Op {
    Entry(LogEntry),
    Truncate(Option<LogPosition>),
    Jump(LogPosition),
}

/// The log as it should be.
#[derive(Clone, Debug, Default)]
struct Model {
    entries: BTreeMap<u64, LogEntry>,
    last: Option<LogPosition>,
    /// Entries up to this one may be gone.
    purged: Option<u64>,
}

impl Model {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Entry(entry) => {
                self.entries.insert(entry.position.index, entry.clone());
                self.last = Some(entry.position);
            }
            Op::Truncate(position) => {
                self.entries.split_off(&position.map_or(0, |p| p.index + 1));
                self.last = *position;
            }
            Op::Jump(position) => {
                self.entries.clear();
                self.last = Some(*position);
                self.purged = self.purged.max(Some(position.index));
            }
        }
    }

    fn agrees(&self, store: &LogStore, purged: Option<u64>) -> Result<(), String> {
        let (base, last) = store.ends();
        if last != self.last {
            return Err(format!("ends at {last:?}, not {:?}", self.last));
        }
        let base = base.map(|b| b.index);
        if base > purged.max(self.purged) {
            return Err(format!("begins after {base:?}, purged were {purged:?}"));
        }
        let found = store.read(0, u64::MAX, usize::MAX).map_err(|e| e.to_string())?;
        let expected: Vec<LogEntry> = match base {
            Some(base) => self.entries.range(base + 1..).map(|(_, e)| e.clone()).collect(),
            None => self.entries.values().cloned().collect(),
        };
        if found == expected {
            Ok(())
        } else {
            Err(format!("{} entries of {}, or others", found.len(), expected.len()))
        }
    }
}

/// One life of a disk with several power cuts. An error if something acknowledged is missing, or
/// something is there that never was.
fn crash_run(seed: u64, lies: bool) -> Result<u32, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = PathBuf::from("/log");
    let mut disk = SimDisk::new(rng.random_range(1..400), lies);
    let mut model = Model::default();
    let mut vote: Option<VoteRecord> = None;
    let mut purged: Option<u64> = None;
    let mut term = 1;
    let mut cuts = 0;
    for _ in 0..8 {
        // What was done in this life, and how much of it was acknowledged.
        let mut ops: Vec<Op> = Vec::new();
        let acknowledged = Arc::new(Mutex::new(0));
        let mut votes = vec![vote];
        let opened = LogStore::open(&config(&dir, 12 << 10), Arc::new(disk.clone()));
        if let Ok(store) = opened {
            let mut now = model.clone();
            now.agrees(&store, purged)?;
            // Dropping isn't durable: what is there may be less than was let go.
            loop {
                let ok = match rng.random_range(0..100) {
                    0..70 => {
                        let mut entries = Vec::new();
                        for _ in 0..rng.random_range(1..6) {
                            let next = now.last.map_or(0, |l| l.index + 1);
                            let payload: Vec<u8> = match rng.random_range(0..3) {
                                0 => vec![],
                                1 => vec![next as u8; 24],
                                _ => (0..rng.random_range(1..1400)).map(|_| rng.random()).collect(),
                            };
                            let kind = if payload.is_empty() { Kind::Blank } else { Kind::Normal };
                            let entry = LogEntry { kind, ..entry(term, next, payload) };
                            now.apply(&Op::Entry(entry.clone()));
                            ops.push(Op::Entry(entry.clone()));
                            entries.push(entry);
                        }
                        let (acknowledged, upto) = (acknowledged.clone(), ops.len());
                        let (sent, answer) = mpsc::channel();
                        let queued = store.append(
                            entries,
                            Box::new(move |result| {
                                if result.is_ok() {
                                    *acknowledged.lock() = upto;
                                }
                                let _ = sent.send(result);
                            }),
                        );
                        // Often several are under way.
                        queued.is_ok()
                            && (rng.random_bool(0.6) || answer.recv_timeout(HANG).expect("an answer").is_ok())
                    }
                    70..78 => {
                        let Some(last) = now.last else { continue };
                        let from = now.purged.max(purged).map_or(0, |p| p + 1);
                        if last.index < from {
                            continue;
                        }
                        let upto = rng.random_range(from..=last.index);
                        let position =
                            upto.checked_sub(1).and_then(|i| now.entries.get(&i)).map(|e| e.position);
                        if position.is_none() && upto > 0 {
                            continue;
                        }
                        term += 1;
                        let op = Op::Truncate(position);
                        now.apply(&op);
                        ops.push(op);
                        let ok = wait(store.truncate_after(position)).is_ok();
                        if ok {
                            *acknowledged.lock() = ops.len();
                        }
                        ok
                    }
                    78..94 => {
                        let Some(last) = now.last else { continue };
                        let upto = rng.random_range(last.index.saturating_sub(30)..=last.index);
                        if let Some(entry) = now.entries.get(&upto) {
                            store.purge(entry.position);
                            purged = purged.max(Some(upto));
                        }
                        true
                    }
                    94..96 => {
                        term += 1;
                        let next = now.last.map_or(0, |l| l.index + 1);
                        let position = pos(term, next + rng.random_range(0..50));
                        let op = Op::Jump(position);
                        now.apply(&op);
                        ops.push(op);
                        let ok = store.purge(position).is_none_or(|result| wait(result).is_ok());
                        if ok {
                            *acknowledged.lock() = ops.len();
                        }
                        ok
                    }
                    _ => {
                        term += 1;
                        let next = VoteRecord { term, node: rng.random_range(1..4), committed: rng.random() };
                        votes.push(Some(next));
                        let ok = wait(store.save_vote(next)).is_ok();
                        if ok {
                            votes = vec![Some(next)];
                        }
                        ok
                    }
                };
                if !ok {
                    break;
                }
                if rng.random_bool(0.002) {
                    disk.cut_power();
                }
            }
            store.close();
            cuts += 1;
        }
        // Now what is there is what was acknowledged, and perhaps some of what came after it.
        disk = disk.after_power_cut(&mut rng, u64::MAX);
        let store = LogStore::open(&config(&dir, 12 << 10), Arc::new(disk.clone()))
            .map_err(|e| format!("can't be opened: {e}"))?;
        if !votes.contains(&store.vote()) {
            return Err(format!("vote {:?} of {votes:?}", store.vote()));
        }
        vote = store.vote();
        let acknowledged = *acknowledged.lock();
        for op in &ops[..acknowledged] {
            model.apply(op);
        }
        let mut candidates = ops[acknowledged..].iter();
        let mut why = Vec::new();
        loop {
            match model.agrees(&store, purged) {
                Ok(()) => break,
                Err(error) => why.push(error),
            }
            match candidates.next() {
                Some(op) => model.apply(op),
                None => return Err(format!("none of the possible logs: {why:?}")),
            }
        }
        store.close();
        disk = disk.after_power_cut(&mut rng, 0);
        let left = rng.random_range(1..400);
        disk = disk.after_power_cut(&mut rng, left);
    }
    Ok(cuts)
}

#[test]
fn power_cuts_lose_nothing_acknowledged() {
    let seeds = std::env::var("ATOLL_RAFT_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150u64);
    let mut cuts = 0;
    for seed in 0..seeds {
        cuts += crash_run(seed, false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    assert!(cuts as u64 > seeds, "the power was cut in the middle of something");
}

/// The test above would notice a missing sync.
#[test]
fn a_disk_that_never_syncs_is_noticed() {
    assert!((0..20).any(|seed| crash_run(seed, true).is_err()));
}
