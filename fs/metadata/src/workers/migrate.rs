//! Inline bytes of files that are too big for them move into chunks, and segments of too many pieces are
//! written anew as few.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_core::ids::{InodeId, SegmentIndex};
use atoll_core::limits::SEGMENT_PIECES_SOFT_MAX;
use atoll_core::query;
use atoll_core::records::{Piece, Place};
use atoll_core::{error::FsError, keys};

use super::mover::{self, BATCH_BYTES_MAX, MoveError, Run, runs};
use super::{GATHER, PAUSE, leader, take};
use crate::changes::Work;
use crate::leader::Leader;
use crate::node::{Node, query_error, store_error};
use crate::reads::Lane;
use crate::store::records::Records;

/// A segment that was left alone for so long is moved: what is overwritten again and again (a database's log)
/// would be moved in vain.
const REST: Duration = Duration::from_secs(2);
/// One that never rests is moved after so long.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Segments that wait to be moved; the records remember the others.
const SEGMENTS_WAITING_MAX: usize = 8192;
/// Segments that one step looks at.
const SEGMENTS_PER_STEP: usize = 64;
/// After nothing could be moved (no server, for example) this waits.
const FAILED_PAUSE: Duration = Duration::from_secs(2);

/// When a segment's marker was seen first and last.
type Seen = (Instant, Instant);

/// Runs for as long as the server does.
pub(super) async fn run(node: Arc<Node>) {
    loop {
        let leader = leader(&node).await;
        migrate(&node, &leader).await;
    }
}

/// Moves what is to be moved until this leadership is over.
async fn migrate(node: &Node, leader: &Leader) {
    let mut waiting: BTreeMap<Vec<u8>, Seen> = BTreeMap::new();
    loop {
        if waiting.is_empty() {
            mover::wait_for(leader, Work::Migrations).await;
        }
        tokio::time::sleep(if waiting.is_empty() { GATHER } else { PAUSE }).await;
        if leader.is_over() {
            return;
        }
        if leader.confirm_unasked().await.is_err() {
            continue;
        }
        collect(node, leader, &mut waiting).await;
        leader.mover.lock().await.seal_if_idle(node, leader).await;
        let hurry = inline_is_scarce(node);
        let now = Instant::now();
        let ripe: Vec<Vec<u8>> = waiting
            .iter()
            .filter(|(_, seen)| hurry || is_ripe(**seen, now))
            .map(|(key, _)| key.clone())
            .take(SEGMENTS_PER_STEP)
            .collect();
        if ripe.is_empty() {
            continue;
        }
        if let Err(error) = step(node, leader, &ripe).await {
            tracing::debug!(%error, "inline data could not be moved to chunks yet; retrying");
            tokio::time::sleep(FAILED_PAUSE).await;
            continue;
        }
        for key in &ripe {
            waiting.remove(key);
        }
    }
}

fn is_ripe((first, last): Seen, now: Instant) -> bool {
    now.duration_since(last) >= REST || now.duration_since(first) >= WAIT_MAX
}

async fn collect(node: &Node, leader: &Leader, waiting: &mut BTreeMap<Vec<u8>, Seen>) {
    let now = Instant::now();
    while waiting.len() < SEGMENTS_WAITING_MAX {
        let limit = SEGMENTS_WAITING_MAX - waiting.len();
        match take(node, leader, Work::Migrations, limit).await {
            Ok(taken) if taken.is_empty() => return,
            Ok(taken) => {
                for key in taken.done() {
                    waiting.entry(key).or_insert((now, now)).1 = now;
                }
            }
            Err(error) => {
                tracing::error!(%error, "searching for inline data to move failed; retrying");
                return;
            }
        }
    }
}

fn inline_is_scarce(node: &Node) -> bool {
    query::superblock(&*node.machine.store())
        .is_ok_and(|volume| volume.inline_bytes > volume.config.inline_budget_bytes / 2)
}

async fn step(node: &Node, leader: &Leader, keys: &[Vec<u8>]) -> Result<(), MoveError> {
    let mut batch: Vec<Run> = Vec::new();
    let mut bytes = 0;
    for key in keys {
        let (Some(ino), Some(segment)) = (keys::first_number(key), keys::second_number(key)) else {
            continue;
        };
        let (records, ino, segment) = (node.machine.store(), InodeId(ino), SegmentIndex(segment));
        let found = node.reads.run(Lane::Background, move || find(&records, ino, segment)).await?;
        for run in found? {
            if bytes + run.stored_bytes() > BATCH_BYTES_MAX && !batch.is_empty() {
                relocate(node, leader, std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            bytes += run.stored_bytes();
            batch.push(run);
        }
    }
    if !batch.is_empty() {
        relocate(node, leader, batch).await?;
    }
    Ok(())
}

async fn relocate(node: &Node, leader: &Leader, batch: Vec<Run>) -> Result<(), MoveError> {
    let bytes = leader.mover.lock().await.relocate(node, leader, batch).await?;
    node.metrics.work("migrated_bytes", bytes);
    Ok(())
}

/// What of a segment is to be moved.
fn find(store: &Records, ino: InodeId, segment: SegmentIndex) -> Result<Vec<Run>, MoveError> {
    let records = store.snapshot();
    let record = match query::inode(&records, ino) {
        Ok(record) => record,
        Err(query::OpError::Refused(FsError::Stale)) => return Ok(Vec::new()),
        Err(error) => return Err(query_error(error).into()),
    };
    let limit = u64::from(query::superblock(&records).map_err(query_error)?.config.inline_file_bytes);
    // One without a name may get one (`O_TMPFILE`, then linkat), and then nobody marks its bytes again.
    if record.size <= limit || query::is_purging(&records, ino).map_err(|error| store_error(&error))? {
        return Ok(Vec::new());
    }
    let found = query::segments(&records, ino, &record, segment, 1).map_err(|error| store_error(&error))?;
    Ok(found.into_iter().flat_map(|(segment, pieces)| plan(ino, segment, &pieces)).collect())
}

/// Inline pieces; of a segment with too many pieces everything that holds bytes.
fn plan(ino: InodeId, segment: SegmentIndex, pieces: &[Piece]) -> Vec<Run> {
    let crowded = pieces.len() > SEGMENT_PIECES_SOFT_MAX;
    runs(ino, segment, pieces, |piece| match piece.place {
        Place::Inline { .. } => true,
        Place::Chunk { .. } => crowded,
        Place::Unwritten | Place::Lost => false,
    })
}

#[cfg(test)]
mod tests {
    use atoll_core::ids::ChunkId;

    use super::*;

    fn pieces(count: u32) -> Vec<Piece> {
        (0..count)
            .map(|number| {
                let place = if number % 2 == 0 {
                    Place::Inline { id: u64::from(number), skip: 0 }
                } else {
                    Place::Chunk { chunk: ChunkId(1), offset: u64::from(number) * 4096 }
                };
                Piece { start: number * 100, length: 100, place, birth: 1, shared: false }
            })
            .collect()
    }

    #[test]
    fn inline_pieces_move_and_a_crowded_segment_becomes_one_piece() {
        assert_eq!(plan(InodeId(1), SegmentIndex(0), &pieces(10)).len(), 5);
        let crowded = plan(InodeId(1), SegmentIndex(0), &pieces(100));
        assert_eq!(crowded.len(), 1);
        assert_eq!(crowded[0].stored_bytes(), 12_288);
    }

    #[test]
    fn what_is_written_again_and_again_waits_but_not_for_ever() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!is_ripe((start, at(5)), at(6)));
        assert!(is_ripe((start, at(5)), at(7)));
        assert!(is_ripe((start, at(30)), at(30)));
    }
}
