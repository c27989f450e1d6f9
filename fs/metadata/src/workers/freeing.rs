//! Freeing what nothing refers to any more: unlinked files, what truncations cut off, garbage in sealed chunks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::commands::{Op, Outcome, ops};
use atoll_core::ids::{ChunkId, InodeId};
use atoll_core::keys;
use atoll_core::store::{Family, Read};

use super::{failed, next};
use crate::changes::Work;
use crate::leader::Leader;
use crate::node::Node;
use crate::reads::Lane;

/// Inodes that one step is about.
const INODES_PER_STEP: usize = 256;
/// Segments of one inode that one command frees.
const SEGMENTS_PER_COMMAND: u32 = 64;
/// Chunks that one step sweeps.
const SWEEPS_PER_STEP: usize = 16;
/// How long a step waits for more.
const GATHER: Duration = Duration::from_millis(20);
const GATHER_SWEEPS: Duration = Duration::from_millis(200);

/// Frees inodes that have no name and that no session holds open.
pub(super) async fn orphans(node: Arc<Node>) {
    loop {
        let (leader, taken) = next(&node, Work::Orphans, INODES_PER_STEP, GATHER).await;
        let (deciding, led, keys) = (node.clone(), leader.clone(), taken.keys().to_vec());
        let decided = node.reads.run(Lane::Background, move || decide(&deciding, &led, &keys)).await;
        let Ok(Decided { inodes, later }) = decided else { continue };
        if inodes.is_empty() {
            taken.done_but(|key| later.contains(key));
            continue;
        }
        let ops = inodes
            .iter()
            .map(|ino| Op::from(ops::PurgeOrphan { ino: *ino, segments_max: SEGMENTS_PER_COMMAND }))
            .collect();
        let result = leader.propose_all(ops).await;
        {
            // From here on the records say what is being freed.
            let mut sessions = leader.sessions.lock();
            for ino in &inodes {
                sessions.not_going(*ino);
            }
        }
        match result {
            Ok(outcomes) => {
                node.metrics.work("orphans", inodes.len() as u64);
                let more = inodes.iter().zip(outcomes).filter(|(_, outcome)| *outcome == Outcome::More(true));
                let more: BTreeSet<Vec<u8>> = more.map(|(ino, _)| keys::orphan(*ino)).collect();
                taken.done_but(|key| more.contains(key) || later.contains(key));
            }
            Err(error) => {
                drop(taken);
                failed("freeing unlinked files", &error).await;
            }
        }
    }
}

/// What becomes of inodes that are said to have no name.
struct Decided {
    /// They are freed: nobody holds them, and nobody can any more.
    inodes: Vec<InodeId>,
    /// Keys of those of which nobody can say yet who holds them.
    later: BTreeSet<Vec<u8>>,
}

/// The others have got a name, or are held: whoever lets go of them last has them looked at again.
fn decide(node: &Node, leader: &Leader, taken: &[Vec<u8>]) -> Decided {
    let mut decided = Decided { inodes: Vec::new(), later: BTreeSet::new() };
    let store = node.machine.store();
    // Since it was noted it may have got a name (`O_TMPFILE`, then linkat). Nobody who opens it by that name
    // may be refused, not even for a moment.
    let nameless =
        |ino| store.get(Family::System, &keys::orphan(ino)).map_or(true, |record| record.is_some());
    for key in taken {
        let Some(ino) = keys::first_number(key).map(InodeId) else { continue };
        // Before the sessions are asked: who makes a file is among them when it is no more among these.
        let may_be_made = leader.making.may_be(ino);
        let mut sessions = leader.sessions.lock();
        if may_be_made {
            decided.later.insert(key.clone());
        } else if sessions.begin_going(ino) {
            // Who holds it no more has linked it before, if at all: the records know.
            if nameless(ino) {
                decided.inodes.push(ino);
            } else {
                sessions.not_going(ino);
            }
        }
    }
    decided
}

/// Frees what truncations cut off.
pub(super) async fn truncations(node: Arc<Node>) {
    loop {
        let (leader, taken) = next(&node, Work::Truncations, INODES_PER_STEP, GATHER).await;
        let inodes: Vec<InodeId> =
            taken.keys().iter().filter_map(|key| keys::first_number(key).map(InodeId)).collect();
        let ops = inodes
            .iter()
            .map(|ino| Op::from(ops::PurgeTruncated { ino: *ino, segments_max: SEGMENTS_PER_COMMAND }))
            .collect();
        match leader.propose_all(ops).await {
            Ok(outcomes) => {
                node.metrics.work("truncations", inodes.len() as u64);
                let more = inodes.iter().zip(outcomes).filter(|(_, outcome)| *outcome == Outcome::More(true));
                let more: BTreeSet<Vec<u8>> = more.map(|(ino, _)| keys::truncation(*ino)).collect();
                taken.done_but(|key| more.contains(key));
            }
            Err(error) => {
                drop(taken);
                failed("freeing truncated ranges", &error).await;
            }
        }
    }
}

/// Finds what was written to sealed chunks and never committed.
pub(super) async fn sweeps(node: Arc<Node>) {
    loop {
        let (leader, taken) = next(&node, Work::Sweeps, SWEEPS_PER_STEP, GATHER_SWEEPS).await;
        let ops: Vec<Op> = taken
            .keys()
            .iter()
            .filter_map(|key| keys::first_number(key))
            .map(|chunk| Op::from(ops::SweepChunk { chunk: ChunkId(chunk) }))
            .collect();
        let count = ops.len() as u64;
        match leader.propose_all(ops).await {
            Ok(_) => {
                taken.done();
                node.metrics.work("sweeps", count);
            }
            Err(error) => {
                drop(taken);
                failed("sweeping chunks", &error).await;
            }
        }
    }
}
