//! Sealed chunks with fewer replicas than wanted get new ones, copied by the servers themselves. What is done to which
//! is decided in [`crate::repair`].
//!
//! There is no index from servers to chunks (it would cost every write); the records of the chunks are walked
//! slowly, a page at a time. A pass over a million chunks takes some minutes, which is what a server is waited
//! for anyway.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::commands::{Op, ops};
use atoll_core::ids::ChunkId;
use atoll_core::keys;
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::records::{ChunkRecord, Record};
use atoll_core::store::{Family, Read, StoreError, prefix_end};

use super::{failed, leader};
use crate::clock;
use crate::leader::Leader;
use crate::node::Node;
use crate::reads::Lane;
use crate::repair::{self, Budget};

/// Chunk records that one step looks at.
const CHUNKS_PER_STEP: usize = 4096;
/// The pause between two steps of a pass, and after one.
const STEP_PAUSE: Duration = Duration::from_millis(500);
const PASS_PAUSE: Duration = Duration::from_secs(1);
/// Chunks that one server copies at the same time.
const COPIES_PER_SERVER_MAX: usize = 4;
/// Chunks that are being repaired after one step, so that a step's decisions are carried out before the next.
const REPAIRS_PER_STEP: usize = 64;

/// What a pass over the chunks carries from step to step.
struct Pass {
    budget: Budget,
    /// Nothing was found to repair so far.
    sound: bool,
    /// Nothing was found in the whole pass before: replicas may be moved for balance.
    may_balance: bool,
}

/// Runs for as long as the server does.
pub(super) async fn run(node: Arc<Node>) {
    loop {
        let leader = leader(&node).await;
        passes(&node, &leader).await;
    }
}

/// Goes through the chunks, again and again, until this leadership is over.
async fn passes(node: &Node, leader: &Leader) {
    let budget = Budget::new(node.repair_bytes_per_second);
    let mut pass = Pass { budget, sound: true, may_balance: false };
    let mut from = keys::chunks();
    loop {
        tokio::time::sleep(if from == keys::chunks() { PASS_PAUSE } else { STEP_PAUSE }).await;
        if leader.is_over() {
            return;
        }
        if leader.confirm().is_err() {
            from = keys::chunks();
            (pass.sound, pass.may_balance) = (true, false);
            continue;
        }
        let start = from.clone();
        match node.read(Lane::Background, move |records| page(records, &start)).await {
            Ok((page, next)) => {
                from = next;
                let to_seal = step(node, leader, page, &mut pass);
                let seals = to_seal.into_iter().map(|chunk| Op::from(ops::SealChunk { chunk })).collect();
                if let Err(error) = leader.propose_all(seals).await {
                    failed("sealing chunks on lost or draining storage servers", &error).await;
                }
            }
            Err(error) => tracing::error!(%error, "searching for chunks to repair failed; retrying"),
        }
        if from == keys::chunks() {
            leader.repair.lock().passed();
            (pass.may_balance, pass.sound) = (pass.sound, true);
        }
    }
}

/// Some chunks, and where those after them begin.
type Page = (Vec<(ChunkId, ChunkRecord)>, Vec<u8>);

/// A page of chunks, from a key on.
fn page(records: &dyn Read, from: &[u8]) -> Result<Page, StoreError> {
    let mut page = Vec::new();
    let mut next = keys::chunks();
    records.scan(Family::System, from, &prefix_end(&keys::chunks()), &mut |key, value| {
        if page.len() == CHUNKS_PER_STEP {
            next = key.to_vec();
            return ControlFlow::Break(());
        }
        if let (Some(number), Ok(record)) = (keys::first_number(key), ChunkRecord::decode(value)) {
            page.push((ChunkId(number), record));
        }
        ControlFlow::Continue(())
    })?;
    Ok((page, next))
}

/// Looks at a page of chunks; which open ones are to be sealed.
fn step(node: &Node, leader: &Leader, page: Vec<(ChunkId, ChunkRecord)>, pass: &mut Pass) -> Vec<ChunkId> {
    let now = clock::since_boot();
    let servers = leader.servers.lock();
    let mut tasks = leader.tasks.lock();
    let mut progress = leader.repair.lock();
    let (mut begun, mut to_seal) = (0, Vec::new());
    for (chunk, record) in page {
        if !record.sealed {
            if repair::is_to_be_sealed(&record, &servers, now) {
                to_seal.push(chunk);
                pass.sound = false;
            }
            continue;
        }
        let length = record.committed.next_multiple_of(BLOCK_BYTES);
        let lacks = repair::lacks(&record, &servers, now);
        if lacks > 0 {
            pass.sound = false;
            progress.found(length * lacks as u64);
        }
        if begun == REPAIRS_PER_STEP || tasks.is_copied(chunk) {
            continue;
        }
        let seed = u64::from(node.member.0 as u32) ^ chunk.0;
        let copy = match lacks {
            0 if pass.may_balance => repair::balance(&record, &servers, now),
            0 => None,
            _ => repair::decide(&record, &servers, now, seed),
        };
        let Some(copy) = copy else { continue };
        if tasks.copies_of(copy.target) >= COPIES_PER_SERVER_MAX || !pass.budget.take(length, now) {
            continue;
        }
        if tasks.copy(copy.target, chunk, record.generation, length, copy.from) {
            tracing::info!(%chunk, server = %copy.target, "a chunk gets an additional replica");
            begun += 1;
        }
    }
    node.metrics.work("repairs", begun as u64);
    to_seal
}
