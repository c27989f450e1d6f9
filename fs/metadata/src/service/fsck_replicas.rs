//! The replicas that storage servers really hold: asked for page by page, judged in the core, and looked at again after
//! a while, since chunks are sealed, moved and deleted meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use atoll_core::check::{Finding, Held, Kind, Subject, judge};
use atoll_core::ids::{ChunkId, ServerId};
use atoll_core::keys;
use atoll_core::query::load;
use atoll_core::records::{ChunkRecord, Record, ServerRecord, TaskRecord};
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::Connection;
use atoll_proto::metadata::MetadataError;
use atoll_proto::storage::{INVENTORY_PAGE_MAX, Inventory, ReplicaInfo, Scrub};

use crate::leader::Leader;
use crate::node::{Node, collect, store_error};
use crate::reads::Lane;
use crate::store::records::Records;
use crate::workers::suspects::{SCRUB_DEADLINE, TakenOut, connect, take_out};

/// What looks wrong must still do so after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(4);
/// Replicas of one server that are looked at again, at most: where more are wrong, all are.
const SUSPECTS_MAX: usize = 2_000;
/// How long a page of the inventory may take.
const PAGE_DEADLINE: Duration = Duration::from_secs(20);
/// The pause between two replicas that are read.
const SCRUB_PAUSE: Duration = Duration::from_millis(50);

/// Checks all servers' replicas; with `data` every block of the sealed ones.
pub(super) async fn look(node: &Node, data: bool) -> Result<Vec<Finding>, MetadataError> {
    let all = |records: &Records| collect::<ServerRecord>(records, &keys::servers());
    let servers = node.read(Lane::Background, all).await?;
    let mut found = Vec::new();
    for (server, record) in servers {
        let server = ServerId(server);
        if let Err(reason) = look_at(node, server, &record, data, &mut found).await? {
            let words = format!("the replicas on storage server {server} could not be checked: {reason}");
            found.push(Finding::new(Kind::ReplicasUnchecked, Subject::Replica(server, ChunkId(0)), words));
        }
    }
    Ok(found)
}

/// Checks one server. The inner error: it doesn't answer, and why.
async fn look_at(
    node: &Node,
    server: ServerId,
    record: &ServerRecord,
    data: bool,
    found: &mut Vec<Finding>,
) -> Result<Result<(), String>, MetadataError> {
    let connection = match connect(node, &record.address).await {
        Ok(connection) => connection,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut suspects: Vec<ChunkId> = Vec::new();
    let mut sealed: Vec<(ChunkId, u64)> = Vec::new();
    let mut after = None;
    loop {
        let page = match page(&connection, after, INVENTORY_PAGE_MAX).await {
            Ok(page) => page,
            Err(reason) => return Ok(Err(reason)),
        };
        let last = if page.1 { page.0.last().map(|replica| replica.chunk) } else { None };
        let held: BTreeMap<ChunkId, Held> = page.0.iter().map(held_of).collect();
        for (chunk, record, task) in
            node.read(Lane::Background, move |records| placed(records, server, after, last)).await?
        {
            if judge(&record, &task, held.get(&chunk)).is_some() && suspects.len() < SUSPECTS_MAX {
                suspects.push(chunk);
            } else if record.sealed && data {
                sealed.push((chunk, record.live_blocks));
            }
        }
        match last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    if !suspects.is_empty() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    for chunk in suspects {
        match again(node, &connection, server, chunk).await? {
            Ok(Some((kind, words))) => found.push(finding(server, chunk, kind, &words)),
            Ok(None) => {}
            Err(reason) => return Ok(Err(reason)),
        }
    }
    for (chunk, in_use) in sealed {
        tokio::time::sleep(SCRUB_PAUSE).await;
        let read = connection.call_within::<Scrub>(&Scrub { chunk }, (), SCRUB_DEADLINE).await;
        match read {
            // What is in use of a sealed chunk only becomes less.
            Ok((reply, _)) if reply.bad.is_empty() && reply.blocks >= in_use => {}
            Ok((reply, _)) if reply.bad.is_empty() => {
                let words = format!("has {} good blocks, {in_use} are in use", reply.blocks);
                found.push(finding(server, chunk, Kind::ReplicaShort, &words));
            }
            Ok((reply, _)) => {
                let words = format!("has {} blocks that don't have their checksum", reply.bad.len());
                found.push(finding(server, chunk, Kind::ReplicaBad, &words));
            }
            // It may have gone meanwhile.
            Err(error) => {
                if let Ok(Some((kind, words))) = again(node, &connection, server, chunk).await? {
                    found.push(finding(server, chunk, kind, &format!("{words} ({error})")));
                }
            }
        }
    }
    Ok(Ok(()))
}

/// Takes those out that were asked for, so that the repair makes them anew: what is wrong with a replica can't be mended in
/// place. One is only taken out if another one was read from end to end and is whole. Returns what was done.
pub(super) async fn repair(
    node: &Node,
    leader: &Leader,
    found: &[Finding],
    asked: &BTreeSet<Kind>,
) -> Result<BTreeSet<(Kind, Subject)>, MetadataError> {
    let mut chunks: BTreeMap<ChunkId, BTreeSet<ServerId>> = BTreeMap::new();
    for finding in found {
        if let Subject::Replica(server, chunk) = finding.subject
            && finding.kind != Kind::ReplicasUnchecked
        {
            chunks.entry(chunk).or_default().insert(server);
        }
    }
    let is_asked = |finding: &&Finding, chunk: ChunkId| {
        asked.contains(&finding.kind) && matches!(finding.subject, Subject::Replica(_, of) if of == chunk)
    };
    let mut done = BTreeSet::new();
    for (chunk, wrong) in chunks {
        let asked: Vec<&Finding> = found.iter().filter(|finding| is_asked(finding, chunk)).collect();
        let out: BTreeSet<ServerId> = asked
            .iter()
            .filter_map(|finding| match finding.subject {
                Subject::Replica(server, _) => Some(server),
                _ => None,
            })
            .collect();
        if take_out(node, leader, chunk, &out, &wrong).await? == TakenOut::Done {
            done.extend(asked.iter().map(|finding| (finding.kind, finding.subject.clone())));
        }
    }
    Ok(done)
}

fn finding(server: ServerId, chunk: ChunkId, kind: Kind, words: &str) -> Finding {
    Finding::new(
        kind,
        Subject::Replica(server, chunk),
        format!("storage server {server} {words} of chunk {chunk}"),
    )
}

async fn page(
    connection: &Connection,
    after: Option<ChunkId>,
    limit: u32,
) -> Result<(Vec<ReplicaInfo>, bool), String> {
    let request = Inventory { after, limit };
    let (reply, _) = connection
        .call_within::<Inventory>(&request, (), PAGE_DEADLINE)
        .await
        .map_err(|error| error.to_string())?;
    Ok((reply.replicas, reply.more))
}

fn held_of(replica: &ReplicaInfo) -> (ChunkId, Held) {
    let held = Held {
        generation: replica.generation,
        length: replica.length,
        sealed: replica.sealed,
        bad: replica.bad,
    };
    (replica.chunk, held)
}

/// The chunks after `after`, up to `last`, that the records place on a server, and its orders.
fn placed(
    records: &dyn Read,
    server: ServerId,
    after: Option<ChunkId>,
    last: Option<ChunkId>,
) -> Result<Vec<(ChunkId, ChunkRecord, TaskRecord)>, StoreError> {
    let from = after.map_or_else(keys::chunks, |after| keys::chunk(ChunkId(after.0 + 1)));
    let to = last.map_or_else(|| prefix_end(&keys::chunks()), |last| keys::chunk(ChunkId(last.0 + 1)));
    let mut found = Vec::new();
    let mut failed = None;
    records.scan(Family::System, &from, &to, &mut |key, value| {
        let one = || -> Result<_, StoreError> {
            let record = ChunkRecord::decode(value)?;
            let Some(chunk) = keys::first_number(key).map(ChunkId) else { return Ok(None) };
            if !record.replicas.contains(&server) {
                return Ok(None);
            }
            let task: Option<TaskRecord> = load(records, Family::System, &keys::task(server, chunk))?;
            Ok(Some((chunk, record, task.unwrap_or_default())))
        };
        match one() {
            Ok(one) => found.extend(one),
            // The walk over the records has said so.
            Err(StoreError::Damaged(_)) => {}
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(found), Err)
}

/// Looks at one replica again. It counts only if the records are the same before and after the server was asked.
async fn again(
    node: &Node,
    connection: &Connection,
    server: ServerId,
    chunk: ChunkId,
) -> Result<Result<Option<(Kind, String)>, String>, MetadataError> {
    let before = |chunk: ChunkId| {
        let after = ChunkId(chunk.0.saturating_sub(1));
        placed(&*node.machine.store(), server, Some(after), Some(chunk)).map_err(|error| store_error(&error))
    };
    let records = before(chunk)?;
    let held = match page(connection, Some(ChunkId(chunk.0.saturating_sub(1))), 1).await {
        Ok((replicas, _)) => replicas.iter().map(held_of).find(|(id, _)| *id == chunk).map(|(_, held)| held),
        Err(reason) => return Ok(Err(reason)),
    };
    let unchanged = before(chunk)? == records;
    Ok(Ok(match records.first() {
        Some((_, record, task)) if unchanged => judge(record, task, held.as_ref()),
        _ => None,
    }))
}
