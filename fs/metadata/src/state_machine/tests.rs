//! Whatever happens, the store is the state at some applied position, and what comes after can be applied again.

use std::fs;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_core::attributes::{AttributeChanges, KillPriv, Timestamp};
use atoll_core::commands::{INTERNAL, NewPiece, NewPlace, Op, XattrMode, ops};
use atoll_core::ids::{ClusterId, InodeId, MemberId, ROOT, ServerId, SessionId, SlotId};
use atoll_core::records::VolumeConfig;
use atoll_core::store::{MemStore, prefix_end};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::changes::{Changes, Work};

const CLUSTER: ClusterId = ClusterId(7);

fn machine(dir: &Path) -> Machine {
    let folder = Arc::new(Folder::open(dir, CLUSTER, MemberId(1)).unwrap());
    Machine::open(folder, &Backend::default(), Arc::default(), Metrics::default()).unwrap()
}

/// All records but the server's own.
fn dump(store: &dyn Read) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    for family in Family::ALL {
        store
            .scan(family, &[], &prefix_end(&[]), &mut |key, value| {
                if !(family == Family::System && key.first() == Some(&b'A')) {
                    all.push((family, key.to_vec(), value.to_vec()));
                }
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    all
}

fn command(session: SessionId, sequence: u64, number: u64, op: Op) -> Command {
    let time = Timestamp { seconds: 1_000_000 + number as i64, nanos: 0 };
    Command { session, slot: SlotId(1), sequence, time, expect: None, op }
}

fn name(random: &mut StdRng) -> Bytes {
    format!("n{}", random.random_range(0..12)).into_bytes().into()
}

fn some_inode(random: &mut StdRng) -> InodeId {
    if random.random_bool(0.3) { ROOT } else { InodeId(random.random_range(16..28)) }
}

fn random_op(random: &mut StdRng) -> Op {
    let ino = some_inode(random);
    match random.random_range(0..10) {
        0..4 => Op::from(ops::Create {
            parent: ino,
            name: name(random),
            ino: None,
            mode: if random.random_bool(0.4) { 0o040_755 } else { 0o100_644 },
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            umask: 0,
        }),
        4 => Op::from(ops::Unlink { parent: ino, name: name(random), directory: random.random_bool(0.3) }),
        5 => Op::from(ops::Rename {
            parent: ino,
            name: name(random),
            new_parent: some_inode(random),
            new_name: name(random),
            flags: 0,
            whiteout: (0, 0),
        }),
        6 => {
            let size = Some(random.random_range(0..3_000_000));
            Op::from(ops::SetAttr { ino, changes: AttributeChanges { size, ..AttributeChanges::default() } })
        }
        7 => Op::from(ops::SetXattr {
            ino,
            name: name(random),
            value: vec![3; 40].into(),
            mode: XattrMode::Set,
        }),
        _ => {
            let length = random.random_range(1..5000);
            let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
            let piece = NewPiece {
                offset: random.random_range(0..2_000_000),
                length: length as u64,
                place: NewPlace::Inline(bytes.into()),
            };
            Op::from(ops::Write {
                ino,
                pieces: vec![piece],
                mtime: Timestamp::default(),
                kill_priv: KillPriv::NONE,
                reservation: 0,
            })
        }
    }
}

/// Entries of random commands: the volume is made, a session begins, and things happen.
fn random_entries(seed: u64, count: u64) -> Vec<AppliedEntry> {
    let mut random = StdRng::seed_from_u64(seed);
    let session = SessionId(1);
    let mut sequence = 0;
    (0..count)
        .map(|index| {
            let commands = match index {
                // These become entries without commands.
                _ if matches!(index % 17, 5 | 9) => Vec::new(),
                0 => vec![
                    Op::from(ops::Bootstrap {
                        cluster: CLUSTER,
                        hash_key: (1, 2),
                        config: VolumeConfig::default(),
                    }),
                    Op::from(ops::PutServer {
                        server: ServerId(1),
                        address: "a:1".into(),
                        labels: Default::default(),
                    }),
                    Op::from(ops::OpenSession { client: "test".into(), incarnation: 1, supersedes: None }),
                ]
                .into_iter()
                .map(|op| command(INTERNAL, 0, 0, op))
                .collect(),
                _ => (0..random.random_range(1..6))
                    .map(|_| {
                        if random.random_bool(0.1) {
                            let op =
                                Op::from(ops::PurgeOrphan { ino: some_inode(&mut random), segments_max: 2 });
                            return command(INTERNAL, 0, index, op);
                        }
                        sequence += 1;
                        command(session, sequence, index, random_op(&mut random))
                    })
                    .collect::<Vec<Command>>(),
            };
            let mut batch = Batch::default();
            for command in &commands {
                batch.add(1, &append_command(Vec::new(), command));
            }
            let payload = match index % 17 {
                5 => AppliedPayload::Blank,
                9 => AppliedPayload::Membership(vec![index as u8]),
                _ => AppliedPayload::Normal(batch.finish()),
            };
            AppliedEntry { position: LogPosition { term: 1 + index / 40, index }, payload }
        })
        .collect()
}

/// What the entries make of the ordered map, and the outcomes.
fn reference(entries: &[AppliedEntry]) -> (MemStore, Vec<Vec<Outcome>>) {
    let mut store = MemStore::default();
    let mut outcomes = Vec::new();
    for entry in entries {
        let AppliedPayload::Normal(bytes) = &entry.payload else { continue };
        let mut txn = Txn::open(&store).unwrap();
        let commands = decode_batch(bytes).unwrap();
        outcomes.push(commands.iter().map(|command| execute(&mut txn, command).unwrap()).collect());
        let writes = txn.into_writes();
        store.write(writes);
    }
    (store, outcomes)
}

/// What a crash leaves on disk: the files as they are.
fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The copy of a machine that crashes now. RocksDB may be tidying its files up: then the copy is made again.
fn crash(dir: &Path) -> (tempfile::TempDir, Machine) {
    for _ in 0..50 {
        let copy = tempfile::tempdir().unwrap();
        if copy_files(dir, copy.path()).is_ok() {
            let folder = Arc::new(Folder::open(copy.path(), CLUSTER, MemberId(1)).unwrap());
            if let Ok(machine) =
                Machine::open(folder, &Backend::default(), Arc::default(), Metrics::default())
            {
                return (copy, machine);
            }
        }
    }
    panic!("no consistent copy");
}

#[test]
fn rocksdb_and_the_ordered_map_agree_on_records_and_outcomes() {
    for seed in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path());
        let entries = random_entries(seed, 120);
        let (expected, outcomes) = reference(&entries);
        let mut results = Vec::new();
        for call in entries.chunks(3) {
            results.extend(machine.apply(call.to_vec()).unwrap());
        }
        let results: Vec<_> = results.iter().map(|bytes| decode_outcomes(bytes).unwrap()).collect();
        assert_eq!(results, outcomes, "seed {seed}");
        assert_eq!(dump(&*machine.store()), dump(&expected), "seed {seed}");
        assert!(outcomes.iter().flatten().filter(|o| !matches!(o, Outcome::Refused(_))).count() > 60);
    }
}

#[test]
fn after_a_crash_at_any_point_the_rest_is_applied_again() {
    let dir = tempfile::tempdir().unwrap();
    let machine = machine(dir.path());
    let entries = random_entries(11, 150);
    let (expected, _) = reference(&entries);
    let mut random = StdRng::seed_from_u64(5);
    let mut at = 0;
    let mut replayed = 0;
    while at < entries.len() {
        let call = random.random_range(1..12).min(entries.len() - at);
        machine.apply(entries[at..at + call].to_vec()).unwrap();
        at += call;
        if random.random_bool(0.3) {
            assert_eq!(machine.flush().unwrap(), Some(entries[at - 1].position));
        }
        let flushed = machine.flushed();
        if random.random_bool(0.5) {
            let (_copy, after) = crash(dir.path());
            let applied = after.applied();
            assert!(applied.position >= flushed, "what was flushed is there");
            assert_eq!(after.flushed(), applied.position);
            let next = applied.position.map_or(0, |position| position.index as usize + 1);
            replayed += entries.len() - next;
            let membership = entries[..next].iter().rev().find_map(|entry| match &entry.payload {
                AppliedPayload::Membership(bytes) => Some(bytes.clone()),
                _ => None,
            });
            assert_eq!(applied.membership, membership);
            after.apply(entries[next..].to_vec()).unwrap();
            assert_eq!(dump(&*after.store()), dump(&expected));
        }
    }
    assert!(replayed > 0);
}

#[test]
fn a_checkpoint_installed_elsewhere_is_the_same_state() {
    let (from, to, copies) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = machine(from.path());
    let entries = random_entries(3, 80);
    leader.apply(entries[..60].to_vec()).unwrap();
    let checkpoint = copies.path().join("checkpoint");
    let state = leader.checkpoint(&checkpoint).unwrap();
    assert_eq!(state.position, Some(entries[59].position));
    // Goes on while the copy is sent.
    leader.apply(entries[60..].to_vec()).unwrap();

    let follower = machine(to.path());
    follower.apply(random_entries(99, 10)).unwrap();
    let old_reader = follower.store();
    follower.install(&checkpoint).unwrap();
    assert_eq!(follower.applied(), state);
    assert_eq!(follower.flushed(), state.position);
    drop(old_reader);
    follower.apply(entries[60..].to_vec()).unwrap();
    assert_eq!(dump(&*follower.store()), dump(&*leader.store()));
    follower.flush().unwrap();
    drop(follower);
    let again = machine(to.path());
    assert_eq!(dump(&*again.store()), dump(&*leader.store()));
}

#[test]
fn what_can_not_be_understood_or_was_applied_already_stops_the_member() {
    let dir = tempfile::tempdir().unwrap();
    let machine = machine(dir.path());
    let entries = random_entries(1, 3);
    machine.apply(entries.clone()).unwrap();
    let before = dump(&*machine.store());
    let error = machine.apply(entries[1..].to_vec()).unwrap_err();
    assert!(error.to_string().contains("comes after"), "{error}");
    let position = LogPosition { term: 9, index: 50 };
    for (bytes, expected) in
        [(vec![9, 0], "format 9"), (vec![1, 200, 200], "can't be decoded"), (vec![], "no format")]
    {
        let payload = AppliedPayload::Normal(bytes.into());
        let error = machine.apply(vec![AppliedEntry { position, payload }]).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert_eq!(dump(&*machine.store()), before);
}

#[test]
fn whoever_is_told_of_a_change_finds_it_in_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Arc::new(Folder::open(dir.path(), CLUSTER, MemberId(1)).unwrap());
    let feed = Arc::new(ChangeFeed::default());
    let machine = Machine::open(folder, &Backend::default(), Arc::clone(&feed), Metrics::default()).unwrap();
    machine.apply(random_entries(1, 1)).unwrap();
    let changes = Arc::new(Changes::default());
    feed.begin(Arc::clone(&changes));
    while changes.has(Work::Orphans) {
        changes.take(Work::Orphans, 100, &*machine.store()).unwrap().done();
    }
    let applied = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut found = 0;
            while !applied.load(Ordering::Relaxed) || changes.has(Work::Orphans) {
                let store = machine.store();
                for key in changes.take(Work::Orphans, 100, &*store).unwrap().done() {
                    let record = store.get(Family::System, &key).unwrap();
                    assert!(record.is_some(), "the worker was told of a record that isn't there yet");
                    found += 1;
                }
            }
            found
        });
        for index in 1..=5000 {
            let op = Op::from(ops::Tmpfile {
                parent: ROOT,
                mode: 0o600,
                uid: 0,
                gid: 0,
                umask: 0,
                linkable: true,
            });
            let mut batch = Batch::default();
            batch.add(1, &append_command(Vec::new(), &command(INTERNAL, 0, index, op)));
            let position = LogPosition { term: 1, index };
            let payload = AppliedPayload::Normal(batch.finish());
            machine.apply(vec![AppliedEntry { position, payload }]).unwrap();
        }
        applied.store(true, Ordering::Relaxed);
        assert_eq!(worker.join().unwrap(), 5000);
    });
}

#[test]
fn a_store_of_a_newer_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let newer = machine(dir.path());
    newer.store().write(&[(Family::System, VERSION_KEY.to_vec(), Some(vec![9]))]).unwrap();
    newer.flush().unwrap();
    drop(newer);
    let folder = Arc::new(Folder::open(dir.path(), CLUSTER, MemberId(1)).unwrap());
    let error = Machine::open(folder, &Backend::default(), Arc::default(), Metrics::default()).err().unwrap();
    assert!(error.to_string().contains("format 9"), "{error}");
}

/// A small disk of its own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: u64) -> SmallDisk {
        let dir = tempfile::tempdir().unwrap();
        let path = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        // SAFETY: all strings end with NUL.
        let mounted = unsafe {
            libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast())
        };
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
        SmallDisk(dir)
    }

    fn occupied(&self) -> std::path::PathBuf {
        self.0.path().join("occupied")
    }

    /// Takes all room that there is now, as something else on the disk would.
    fn occupy(&self) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.occupied()).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = std::ffi::CString::new(self.0.path().to_str().unwrap()).unwrap();
        // SAFETY: the path ends with NUL.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Entries that need room: extended attributes of the root, in sets that replace each other.
fn large_entries(first: u64, count: u64) -> Vec<AppliedEntry> {
    (first..first + count)
        .map(|index| {
            let value: Vec<u8> = StdRng::seed_from_u64(index).random_iter().take(30_000).collect();
            let name = format!("user.{}", index % 16).into_bytes().into();
            let op = Op::from(ops::SetXattr { ino: ROOT, name, value: value.into(), mode: XattrMode::Set });
            let mut batch = Batch::default();
            batch.add(1, &append_command(Vec::new(), &command(INTERNAL, 0, index, op)));
            let payload = AppliedPayload::Normal(batch.finish());
            AppliedEntry { position: LogPosition { term: 1, index }, payload }
        })
        .collect()
}

#[test]
fn what_is_committed_waits_for_room_and_goes_on_when_there_is_some() {
    let disk = SmallDisk::new(48 << 20);
    let machine = Arc::new(machine(&disk.0.path().join("member")));
    machine.apply(random_entries(0, 1)).unwrap();
    // More than stays in memory, call by call.
    let apply = |machine: Arc<Machine>, first: u64, calls: u64| {
        std::thread::spawn(move || {
            (0..calls).try_for_each(|call| machine.apply(large_entries(first + call * 16, 16)).map(drop))
        })
    };
    let until_it_waits = || {
        for _ in 0..6000 {
            if machine.waits_for_room() {
                return;
            }
            // A compaction that ends removes what it has read.
            disk.occupy();
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("it never waits");
    };

    disk.occupy();
    let applying = apply(machine.clone(), 1, 60);
    until_it_waits();
    assert!(!applying.is_finished());
    fs::remove_file(disk.occupied()).unwrap();
    applying.join().unwrap().unwrap();
    assert!(!machine.waits_for_room());
    assert_eq!(machine.applied().position.unwrap().index, 960);
    machine.flush().unwrap();

    // Whoever stops doesn't wait until then.
    disk.occupy();
    let applying = apply(machine.clone(), 961, 240);
    until_it_waits();
    machine.stop_waiting();
    applying.join().unwrap().unwrap_err();
}
