//! Commands of the log, carried out one after the other: what a client sends gets there, and a panic would end every member.

use atoll_core::attributes::Timestamp;
use atoll_core::check::{Seen, walk};
use atoll_core::commands::{Command, INTERNAL, Op, ops};
use atoll_core::ids::{ClusterId, InodeId, ROOT, ServerId, SessionId, SlotId};
use atoll_core::namespace::{Txn, execute};
use atoll_core::records::VolumeConfig;
use atoll_core::store::MemStore;
use bytes::Bytes;

/// Commands of one input.
const COMMANDS_MAX: usize = 64;

fn internal(op: Op) -> Command {
    Command { session: INTERNAL, slot: SlotId(0), sequence: 0, time: Timestamp::default(), expect: None, op }
}

/// A volume with a session, a storage server and a file.
fn volume() -> MemStore {
    let mut store = MemStore::default();
    let begin = [
        internal(Op::from(ops::Bootstrap {
            cluster: ClusterId(7),
            hash_key: (1, 2),
            config: VolumeConfig::default(),
        })),
        internal(Op::from(ops::PutServer {
            server: ServerId(1),
            address: "a:1".into(),
            labels: Default::default(),
        })),
        internal(Op::from(ops::OpenSession { client: "fuzz".into(), incarnation: 1, supersedes: None })),
        asked(1, create(b"file")),
    ];
    carry_out(&mut store, &begin);
    store
}

fn asked(sequence: u64, op: Op) -> Command {
    Command { session: SessionId(1), slot: SlotId(1), sequence, ..internal(op) }
}

fn create(name: &'static [u8]) -> Op {
    Op::from(ops::Create {
        parent: ROOT,
        name: Bytes::from_static(name),
        ino: None,
        mode: 0o100_644,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Bytes::new(),
        umask: 0,
    })
}

fn carry_out(store: &mut MemStore, commands: &[Command]) {
    let Ok(mut txn) = Txn::open(store) else { return };
    for command in commands {
        if execute(&mut txn, command).is_err() {
            return;
        }
    }
    let writes = txn.into_writes();
    store.write(writes);
}

pub(crate) fn read(data: &[u8]) -> bool {
    let (mut rest, mut commands) = (data, Vec::new());
    while !rest.is_empty()
        && commands.len() < COMMANDS_MAX
        && let Ok((command, left)) = postcard::take_from_bytes::<Command>(rest)
    {
        commands.push(command);
        rest = left;
    }
    if commands.is_empty() {
        return false;
    }
    let mut store = volume();
    carry_out(&mut store, &commands);
    // Goes through what they have left.
    let _ = walk(&store, &mut |seen| {
        if let Seen::Found(finding) = seen {
            assert!(!finding.words.is_empty());
        }
        std::ops::ControlFlow::Continue(())
    });
    true
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let file = InodeId(16);
    let seeds: Vec<Vec<Command>> = vec![
        vec![asked(2, create(b"other"))],
        vec![
            asked(
                2,
                Op::from(ops::Rename {
                    parent: ROOT,
                    name: Bytes::from_static(b"file"),
                    new_parent: ROOT,
                    new_name: Bytes::from_static(b"new"),
                    flags: 0,
                    whiteout: (0, 0),
                }),
            ),
            asked(
                3,
                Op::from(ops::Unlink { parent: ROOT, name: Bytes::from_static(b"new"), directory: false }),
            ),
            internal(Op::from(ops::PurgeOrphan { ino: file, segments_max: 4 })),
        ],
        vec![
            asked(
                2,
                Op::from(ops::CreateChunk {
                    kind: atoll_core::records::ChunkKind::Stream,
                    incarnation: 1,
                    replicas: vec![ServerId(1)],
                }),
            ),
            asked(3, Op::from(ops::Reserve { bytes: 1 << 20, bytes_min: 4096 })),
        ],
    ];
    let encoded = |commands: Vec<Command>| {
        commands.iter().flat_map(|command| postcard::to_stdvec(command).unwrap_or_default()).collect()
    };
    seeds.into_iter().map(encoded).collect()
}
