//! Sealed chunks of which little is in use: what is moves to another chunk, and the old one goes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_core::ids::{ChunkId, InodeId, SegmentIndex};
use atoll_core::keys;
use atoll_core::query;
use atoll_core::records::Place;
use atoll_core::store::{Family, Read, StoreError, prefix_end};

use super::mover::{self, BATCH_BYTES_MAX, MoveError, Run, runs};
use super::{GATHER, leader, take};
use crate::changes::{Work, is_mostly_dead};
use crate::leader::Leader;
use crate::node::{Node, query_error, store_error};
use crate::reads::Lane;
use crate::store::records::Records;

/// A chunk that lost blocks within this time is left alone: perhaps it is about to lose all of them.
const REST: Duration = Duration::from_secs(10);
/// Chunks that wait in memory; others are found again by the next leader or the next change.
const CHUNKS_WAITING_MAX: usize = 4096;
/// Bytes a second that are moved.
const BYTES_PER_SECOND: u64 = 32 << 20;
/// Back references of one chunk that are looked at.
const REFERENCES_MAX: usize = 1 << 16;
/// After an attempt failed this waits.
const FAILED_PAUSE: Duration = Duration::from_secs(5);

/// Runs for as long as the server does.
pub(super) async fn run(node: Arc<Node>) {
    loop {
        let leader = leader(&node).await;
        compact_all(&node, &leader).await;
    }
}

/// Compacts what there is to compact until this leadership is over.
async fn compact_all(node: &Node, leader: &Leader) {
    let mut waiting: BTreeMap<ChunkId, Instant> = BTreeMap::new();
    loop {
        if waiting.is_empty() {
            mover::wait_for(leader, Work::Compactions).await;
        }
        tokio::time::sleep(GATHER).await;
        if leader.is_over() {
            return;
        }
        if leader.confirm_unasked().await.is_err() {
            continue;
        }
        let limit = CHUNKS_WAITING_MAX.saturating_sub(waiting.len());
        match take(node, leader, Work::Compactions, limit).await {
            Ok(taken) => {
                let keys = taken.done();
                let chunks = keys.iter().filter_map(|key| keys::first_number(key)).map(ChunkId);
                waiting.extend(chunks.map(|chunk| (chunk, Instant::now())));
            }
            Err(error) => tracing::error!(%error, "searching for chunks to compact failed; retrying"),
        }
        leader.mover.lock().await.seal_if_idle(node, leader).await;
        let ripe = waiting.iter().find(|(_, since)| since.elapsed() >= REST).map(|(chunk, _)| *chunk);
        let Some(chunk) = ripe else { continue };
        waiting.remove(&chunk);
        if let Err(error) = compact(node, leader, chunk).await {
            tracing::debug!(%chunk, %error, "a chunk could not be compacted yet; retrying");
            waiting.insert(chunk, Instant::now());
            tokio::time::sleep(FAILED_PAUSE).await;
        }
    }
}

async fn compact(node: &Node, leader: &Leader, chunk: ChunkId) -> Result<(), MoveError> {
    let store = node.machine.store();
    let record = query::chunk(&*store, chunk).map_err(|error| store_error(&error))?;
    if !record.is_some_and(|record| is_mostly_dead(&record)) {
        return Ok(());
    }
    let mut batch: Vec<Run> = Vec::new();
    let mut bytes = 0;
    for (ino, segment) in node.read(Lane::Background, move |records| references(records, chunk)).await? {
        let records = store.clone();
        let found = node.reads.run(Lane::Background, move || find(&records, chunk, ino, segment)).await?;
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
    node.metrics.work("compacted_chunks", 1);
    Ok(())
}

async fn relocate(node: &Node, leader: &Leader, batch: Vec<Run>) -> Result<(), MoveError> {
    let bytes = leader.mover.lock().await.relocate(node, leader, batch).await?;
    node.metrics.work("compacted_bytes", bytes);
    tokio::time::sleep(Duration::from_micros(bytes * 1_000_000 / BYTES_PER_SECOND)).await;
    Ok(())
}

/// The segments that may refer to the chunk.
fn references(records: &dyn Read, chunk: ChunkId) -> Result<Vec<(InodeId, SegmentIndex)>, StoreError> {
    let mut found = Vec::new();
    let prefix = keys::back_references(chunk);
    records.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, _| {
        if let (Some(ino), Some(segment)) = (keys::second_number(key), keys::third_number(key)) {
            found.push((InodeId(ino), SegmentIndex(segment)));
        }
        if found.len() >= REFERENCES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(found)
}

/// The runs of a segment that are in the chunk.
fn find(store: &Records, chunk: ChunkId, ino: InodeId, segment: SegmentIndex) -> Result<Vec<Run>, MoveError> {
    let records = store.snapshot();
    let record = match query::inode(&records, ino) {
        Ok(record) => record,
        Err(query::OpError::Refused(_)) => return Ok(Vec::new()),
        Err(error) => return Err(query_error(error).into()),
    };
    let found = query::segments(&records, ino, &record, segment, 1).map_err(|error| store_error(&error))?;
    let here = |place: Place| matches!(place, Place::Chunk { chunk: other, .. } if other == chunk);
    Ok(found
        .into_iter()
        .flat_map(|(segment, pieces)| runs(ino, segment, &pieces, |piece| here(piece.place)))
        .collect())
}
