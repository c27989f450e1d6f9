//! Freeing what nothing refers to any more: unlinked files, what truncations cut off, garbage in sealed chunks.

use std::sync::Arc;
use std::time::Duration;

use atoll_core::commands::{Op, Outcome};
use atoll_core::ids::{ChunkId, InodeId};
use atoll_core::keys;
use atoll_core::store::{Family, Read};

use super::{failed, next};
use crate::changes::Work;
use crate::node::Node;

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
        let keys = next(&node, Work::Orphans, INODES_PER_STEP, GATHER).await;
        let inodes: Vec<InodeId> = {
            // Files that are just being made without a name are held from the moment that this is free.
            let _unnamed = node.office.unnamed.write().await;
            let mut sessions = node.office.sessions.lock();
            let store = node.machine.store();
            // Since it was noted it may have got a name (`O_TMPFILE`, then linkat). Nobody who opens it by that name
            // may be refused, not even for a moment.
            let nameless =
                |ino| store.get(Family::System, &keys::orphan(ino)).map_or(true, |record| record.is_some());
            let mut inodes = Vec::new();
            for ino in keys.iter().filter_map(|key| keys::first_number(key).map(InodeId)) {
                if sessions.begin_going(ino) {
                    // Who holds it no more has linked it before, if at all: the records know.
                    if nameless(ino) {
                        inodes.push(ino);
                    } else {
                        sessions.not_going(ino);
                    }
                }
            }
            inodes
        };
        if inodes.is_empty() {
            node.changes.done(Work::Orphans);
            continue;
        }
        let ops = inodes
            .iter()
            .map(|ino| Op::PurgeOrphan { ino: *ino, segments_max: SEGMENTS_PER_COMMAND })
            .collect();
        let result = node.propose_all(ops).await;
        {
            // From here on the records say what is being freed.
            let mut sessions = node.office.sessions.lock();
            for ino in &inodes {
                sessions.not_going(*ino);
            }
        }
        match result {
            Ok(outcomes) => {
                node.metrics.work("orphans", inodes.len() as u64);
                for (ino, outcome) in inodes.iter().zip(outcomes) {
                    if outcome == Outcome::More(true) {
                        node.changes.again(Work::Orphans, &keys::orphan(*ino));
                    }
                }
            }
            Err(error) => {
                for ino in &inodes {
                    node.changes.again(Work::Orphans, &keys::orphan(*ino));
                }
                failed("freeing unlinked files", &error).await;
            }
        }
        node.changes.done(Work::Orphans);
    }
}

/// Frees what truncations cut off.
pub(super) async fn truncations(node: Arc<Node>) {
    loop {
        let keys = next(&node, Work::Truncations, INODES_PER_STEP, GATHER).await;
        let inodes: Vec<InodeId> =
            keys.iter().filter_map(|key| keys::first_number(key).map(InodeId)).collect();
        let ops = inodes
            .iter()
            .map(|ino| Op::PurgeTruncated { ino: *ino, segments_max: SEGMENTS_PER_COMMAND })
            .collect();
        match node.propose_all(ops).await {
            Ok(outcomes) => {
                node.metrics.work("truncations", inodes.len() as u64);
                for (ino, outcome) in inodes.iter().zip(outcomes) {
                    if outcome == Outcome::More(true) {
                        node.changes.again(Work::Truncations, &keys::truncation(*ino));
                    }
                }
            }
            Err(error) => {
                for key in &keys {
                    node.changes.again(Work::Truncations, key);
                }
                failed("freeing truncated ranges", &error).await;
            }
        }
        node.changes.done(Work::Truncations);
    }
}

/// Finds what was written to sealed chunks and never committed.
pub(super) async fn sweeps(node: Arc<Node>) {
    loop {
        let keys = next(&node, Work::Sweeps, SWEEPS_PER_STEP, GATHER_SWEEPS).await;
        let ops: Vec<Op> = keys
            .iter()
            .filter_map(|key| keys::first_number(key))
            .map(|chunk| Op::SweepChunk { chunk: ChunkId(chunk) })
            .collect();
        let count = ops.len() as u64;
        match node.propose_all(ops).await {
            Ok(_) => node.metrics.work("sweeps", count),
            Err(error) => {
                for key in &keys {
                    node.changes.again(Work::Sweeps, key);
                }
                failed("sweeping chunks", &error).await;
            }
        }
    }
}
