//! Sealed chunks with fewer replicas than wanted get new ones, copied by the servers themselves. What is done to which
//! is decided in [`crate::repair`].
//!
//! Chunks that are short by their own records are named by [`Changes`](crate::changes::Changes). There is no index from
//! servers to chunks (it would cost every write): when a server is given up or is to be drained, the records of all chunks
//! are walked slowly, a page at a time, until nothing is left to repair. A pass over a million chunks takes some minutes, which
//! is what a server is waited for anyway. At rest nothing is walked, but for a pass a day.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::commands::{Op, ops};
use atoll_core::ids::ChunkId;
use atoll_core::keys;
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::query;
use atoll_core::records::{ChunkRecord, Record};
use atoll_core::store::{Family, Read, StoreError, prefix_end};

use super::{failed, leader, take};
use crate::changes;
use crate::clock;
use crate::leader::Leader;
use crate::node::Node;
use crate::reads::Lane;
use crate::repair::{self, Budget, PassKind, Passes};

/// Chunk records that one step looks at.
const CHUNKS_PER_STEP: usize = 4096;
/// The pause between two steps of a pass.
const STEP_PAUSE: Duration = Duration::from_millis(500);
/// Chunks that are named at the same time; with more, all are looked at instead.
const NAMED_MAX: usize = 1024;
/// Chunks that one server copies at the same time.
const COPIES_PER_SERVER_MAX: usize = 4;
/// Chunks that are being repaired after one step, so that a step's decisions are carried out before the next.
const REPAIRS_PER_STEP: usize = 64;

/// What is carried from step to step.
struct Work {
    budget: Budget,
    passes: Passes,
    pass: Option<Pass>,
}

/// A pass over all chunks that is under way.
struct Pass {
    kind: PassKind,
    from: Vec<u8>,
    /// Nothing was found to repair so far.
    sound: bool,
    /// Something was begun.
    works: bool,
}

impl Pass {
    fn new(kind: PassKind) -> Pass {
        Pass { kind, from: keys::chunks(), sound: true, works: false }
    }
}

/// What was found in some chunks.
#[derive(Default)]
struct Found {
    /// Open ones that are to be sealed.
    to_seal: Vec<ChunkId>,
    /// Sealed ones that lack replicas of so many bytes.
    short: BTreeMap<ChunkId, u64>,
    /// Copies that were begun.
    begun: usize,
}

/// Runs for as long as the server does.
pub(super) async fn run(node: Arc<Node>) {
    loop {
        let leader = leader(&node).await;
        repair_all(&node, &leader).await;
    }
}

/// Repairs what there is to repair, until this leadership is over.
async fn repair_all(node: &Node, leader: &Leader) {
    let budget = Budget::new(node.repair_bytes_per_second);
    let mut work = Work { budget, passes: Passes::new(clock::since_boot()), pass: None };
    loop {
        match &work.pass {
            Some(pass) if pass.from != keys::chunks() => tokio::time::sleep(STEP_PAUSE).await,
            pass => {
                let works = pass.is_some() || leader.changes.has(changes::Work::Repairs);
                let rests = !works && work.passes.rests() && leader.tasks.lock().copies() == 0;
                let seconds =
                    if rests && node.rests(clock::since_boot()) { node.seconds_at_rest() } else { 1 };
                node.next_of_seconds(seconds).await;
            }
        }
        if leader.is_over() {
            return;
        }
        if work.pass.is_none() {
            let begins = work.passes.begins(&leader.servers.lock(), clock::since_boot());
            work.pass = begins.map(Pass::new);
        }
        if work.pass.is_none() && !leader.changes.has(changes::Work::Repairs) {
            continue;
        }
        if leader.confirm_unasked().await.is_err() {
            work.pass = work.pass.map(|pass| Pass::new(pass.kind));
            continue;
        }
        named(node, leader, &mut work).await;
        if let Some(pass) = work.pass.take() {
            work.pass = go_on(node, leader, &mut work, pass).await;
        }
    }
}

/// Looks at the chunks that are named.
async fn named(node: &Node, leader: &Leader, work: &mut Work) {
    if !leader.changes.has(changes::Work::Repairs) {
        return;
    }
    let taken = match take(node, leader, changes::Work::Repairs, NAMED_MAX).await {
        Ok(taken) => taken,
        Err(error) => return failed("searching for chunks to repair", &error).await,
    };
    if taken.keys().len() == NAMED_MAX {
        taken.done();
        leader.repair.lock().named(0, 0);
        work.passes.wanted();
        return;
    }
    let keys = taken.keys().to_vec();
    let records = match node.read(Lane::Background, move |records| those(records, &keys)).await {
        Ok(records) => records,
        Err(error) => return failed("reading the records of chunks to repair", &error).await,
    };
    let found = look_at(node, leader, records, PassKind { may_balance: false }, &mut work.budget);
    leader.repair.lock().named(found.short.len() as u64, found.short.values().sum());
    let short: BTreeSet<Vec<u8>> = found.short.into_keys().map(keys::chunk).collect();
    taken.done_but(|key| short.contains(key));
}

/// Goes on with a pass; what is left of it.
async fn go_on(node: &Node, leader: &Leader, work: &mut Work, mut pass: Pass) -> Option<Pass> {
    let start = pass.from.clone();
    let (page, next) = match node.read(Lane::Background, move |records| page(records, &start)).await {
        Ok(read) => read,
        Err(error) => {
            failed("searching for chunks to repair", &error).await;
            return Some(pass);
        }
    };
    let found = look_at(node, leader, page, pass.kind, &mut work.budget);
    {
        let mut progress = leader.repair.lock();
        for bytes in found.short.values() {
            progress.found(*bytes);
        }
    }
    pass.sound &= found.short.is_empty() && found.to_seal.is_empty();
    pass.works |= found.begun > 0;
    let seals = found.to_seal.into_iter().map(|chunk| Op::from(ops::SealChunk { chunk })).collect();
    if let Err(error) = leader.propose_all(seals).await {
        failed("sealing chunks on lost or draining storage servers", &error).await;
    }
    pass.from = next;
    if pass.from != keys::chunks() {
        return Some(pass);
    }
    leader.repair.lock().passed();
    let works = pass.works || leader.tasks.lock().copies() > 0;
    work.passes.ended(pass.kind, pass.sound, works, clock::since_boot());
    None
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

/// The chunks with these keys, as far as there are such.
fn those(records: &dyn Read, keys: &[Vec<u8>]) -> Result<Vec<(ChunkId, ChunkRecord)>, StoreError> {
    let mut found = Vec::new();
    for chunk in keys.iter().filter_map(|key| keys::first_number(key)).map(ChunkId) {
        found.extend(query::chunk(records, chunk)?.map(|record| (chunk, record)));
    }
    Ok(found)
}

/// Looks at some chunks, and has copied what is to be copied.
fn look_at(
    node: &Node,
    leader: &Leader,
    chunks: Vec<(ChunkId, ChunkRecord)>,
    kind: PassKind,
    budget: &mut Budget,
) -> Found {
    let now = clock::since_boot();
    let servers = leader.servers.lock();
    let mut tasks = leader.tasks.lock();
    let mut found = Found::default();
    for (chunk, record) in chunks {
        if !record.sealed {
            if repair::is_to_be_sealed(&record, &servers, now) {
                found.to_seal.push(chunk);
            }
            continue;
        }
        let length = record.committed.next_multiple_of(BLOCK_BYTES);
        let lacks = repair::lacks(&record, &servers, now);
        if lacks > 0 {
            found.short.insert(chunk, length * lacks as u64);
        }
        if found.begun == REPAIRS_PER_STEP || tasks.is_copied(chunk) {
            continue;
        }
        let seed = u64::from(node.member.0 as u32) ^ chunk.0;
        let copy = match lacks {
            0 if kind.may_balance => repair::balance(&record, &servers, now),
            0 => None,
            _ => repair::decide(&record, &servers, now, seed),
        };
        let Some(copy) = copy else { continue };
        if tasks.copies_of(copy.target) >= COPIES_PER_SERVER_MAX || !budget.take(length, now) {
            continue;
        }
        if tasks.copy(copy.target, chunk, record.generation, length, copy.from) {
            tracing::info!(%chunk, server = %copy.target, "a chunk gets an additional replica");
            found.begun += 1;
        }
    }
    node.metrics.work("repairs", found.begun as u64);
    found
}
