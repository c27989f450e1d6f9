//! Storage servers: they register, send heartbeats, say what they hold, and are told what to do.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use atoll_core::commands::{Op, Outcome, TaskDone, ops};
use atoll_core::ids::{ChunkId, ServerId};
use atoll_core::keys;
use atoll_core::query;
use atoll_core::records::{ChunkRecord, DeadRecord, Record, ServerRecord, TaskRecord};
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::Status;
use atoll_proto::metadata::MetadataError;
use atoll_proto::registration::{
    Heartbeat, HeartbeatReply, InventoryChanges, LABELS_MAX, NumberedTask, Register, RegisterReply,
    RegistrationError,
};
use atoll_proto::storage::TRIM_RANGES_MAX;

use crate::clock;
use crate::leader::Leader;
use crate::node::{Node, store_error};
use crate::reads::Lane;
use crate::repair;
use crate::servers::{HEARTBEAT_INTERVAL, Health, Refused, Report};
use crate::store::records::Records;
use crate::tasks::ChunkTasks;

/// The newest format of a storage server's disk that this program understands.
const STORAGE_FORMAT_MAX: u32 = 1;
/// Tasks that one heartbeat's reply is made from.
const CHUNKS_MAX: usize = 256;
/// Dead ranges that are recorded as trimmed with one command.
const DONE_RANGES_MAX: usize = 8192;

const INTERVAL_MS: u64 = HEARTBEAT_INTERVAL.as_millis() as u64;

fn refusal(error: MetadataError) -> Status {
    match error {
        MetadataError::NotLeader { leader } => {
            RegistrationError::NotLeader { leader: leader.map(|(_, address)| address) }.into()
        }
        other => Status::unavailable(other.to_string()),
    }
}

fn refused(refused: Refused) -> Status {
    match refused {
        Refused::NotRegistered => RegistrationError::NotRegistered.into(),
        Refused::Stale { have } => RegistrationError::StaleIncarnation { have }.into(),
    }
}

impl Node {
    /// A storage server says that it is there.
    pub(crate) async fn register(&self, request: Register) -> Result<RegisterReply, Status> {
        let leader = self.lead().map_err(refusal)?;
        if request.cluster != self.cluster {
            let (here, there) = (self.cluster, request.cluster);
            return Err(RegistrationError::WrongCluster { here, there }.into());
        }
        if request.format_version > STORAGE_FORMAT_MAX {
            let have = request.format_version;
            return Err(RegistrationError::Format { have, max: STORAGE_FORMAT_MAX }.into());
        }
        if request.labels.len() > LABELS_MAX {
            return Err(Status::bad_request(format!("more than {LABELS_MAX} labels")));
        }
        let op = Op::from(ops::PutServer {
            server: request.server,
            address: request.address,
            labels: request.labels,
        });
        let leader = match leader.propose(op).await.map_err(refusal)? {
            Outcome::Refused(error) => {
                return Err(Status::unavailable(format!("the server can't register now: {error}")));
            }
            _ => self.lead().map_err(refusal)?,
        };
        let record: ServerRecord =
            query::load(&*self.machine.store(), Family::System, &keys::server(request.server))
                .map_err(|error| refusal(store_error(&error)))?
                .ok_or_else(|| Status::unavailable("the server's record is missing"))?;
        let address = record.address.clone();
        leader
            .servers
            .lock()
            .registered(
                request.server,
                record,
                request.incarnation,
                (request.capacity, request.used),
                clock::since_boot(),
            )
            .map_err(refused)?;
        leader.tasks.lock().restarted(request.server);
        tracing::info!(server = %request.server, address, "a storage server registered");
        Ok(RegisterReply { heartbeat_interval_ms: INTERVAL_MS, full_inventory: true })
    }

    /// A storage server is alive: takes in what it tells, and tells it what to do.
    pub(crate) async fn storage_heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply, Status> {
        let leader = self.lead().map_err(refusal)?;
        let server = beat.server;
        let report = Report {
            capacity: 0,
            used: beat.used,
            free: beat.free,
            chunks: beat.chunks,
            disk_errors: beat.disk_errors,
        };
        let complete = beat.changes.complete;
        let full_inventory = leader
            .servers
            .lock()
            .heartbeat(server, beat.incarnation, report, complete, clock::since_boot())
            .map_err(refused)?;
        // Before what it has copied since is taken in: that may be the same chunks.
        let beat = Arc::new(beat);
        let removed = self.removed(&beat).await.map_err(refusal)?;
        self.take_reports(&leader, &beat).await.map_err(refusal)?;
        self.take_inventory(&leader, &beat, removed).await.map_err(refusal)?;
        let (tasks, idle) = self.tasks_for(&leader, server).await.map_err(refusal)?;
        if !idle.is_empty() {
            // A sweep can leave a task to trim for which nothing is left: done.
            let done = idle.into_iter().map(|chunk| TaskDone::Trimmed(chunk, Vec::new())).collect();
            leader.propose(Op::from(ops::TasksDone { server, done })).await.map_err(refusal)?;
        }
        leader.confirm().map_err(refusal)?;
        let now = clock::since_boot();
        let rests = tasks.is_empty() && !full_inventory && self.rests(now);
        let interval = leader.servers.lock().next_heartbeat(server, rests, now);
        let (heartbeat_interval_ms, members) = (interval.as_millis() as u64, self.all_addresses());
        Ok(HeartbeatReply { heartbeat_interval_ms, tasks, full_inventory, members })
    }

    async fn take_reports(&self, leader: &Leader, beat: &Heartbeat) -> Result<(), MetadataError> {
        let server = beat.server;
        let meaning = leader.tasks.lock().report(server, &beat.done);
        let mut ops = Vec::new();
        let (mut batch, mut ranges) = (Vec::new(), 0);
        for done in meaning.done {
            if let TaskDone::Trimmed(_, trimmed) = &done {
                ranges += trimmed.len();
            }
            batch.push(done);
            if ranges > DONE_RANGES_MAX {
                ops.push(Op::from(ops::TasksDone { server, done: std::mem::take(&mut batch) }));
                ranges = 0;
            }
        }
        if !batch.is_empty() {
            ops.push(Op::from(ops::TasksDone { server, done: batch }));
        }
        for (chunk, generation) in meaning.copied {
            ops.extend(self.with_replica(leader, chunk, generation, server)?);
        }
        for chunk in meaning.missing {
            ops.extend(self.without_replica(leader, chunk, server)?);
        }
        self.metrics.work("orders_done", ops.len() as u64);
        if !ops.is_empty() {
            leader.propose_all(ops).await?;
        }
        Ok(())
    }

    /// A copy is finished: the server holds the chunk from now on, unless the chunk has changed meanwhile.
    fn with_replica(
        &self,
        leader: &Leader,
        chunk: ChunkId,
        generation: atoll_core::ids::Generation,
        server: ServerId,
    ) -> Result<Option<Op>, MetadataError> {
        let record = query::chunk(&*self.machine.store(), chunk).map_err(|error| store_error(&error))?;
        Ok(match record {
            Some(record) if record.generation == generation && !record.replicas.contains(&server) => {
                // Should one of the others come back, it is told to delete.
                let now = clock::since_boot();
                let replicas = repair::kept(&record, server, &leader.servers.lock(), now);
                leader.repair.lock().copied(record.committed, now);
                self.metrics.work("copied_bytes", record.committed);
                tracing::info!(%chunk, %server, "a chunk got a new replica");
                Some(Op::from(ops::SetReplicas { chunk, generation, replicas }))
            }
            _ => Some(Op::from(ops::DeleteStray { server, chunks: vec![chunk] })),
        })
    }

    /// A replica is missing: it is taken out, if another is left, and made anew by the repair.
    fn without_replica(
        &self,
        leader: &Leader,
        chunk: ChunkId,
        server: ServerId,
    ) -> Result<Option<Op>, MetadataError> {
        let record = query::chunk(&*self.machine.store(), chunk).map_err(|error| store_error(&error))?;
        let Some(record) = record else { return Ok(None) };
        if !record.sealed || !record.replicas.contains(&server) {
            return Ok(None);
        }
        let left: Vec<ServerId> = record.replicas.iter().copied().filter(|other| *other != server).collect();
        let now = clock::since_boot();
        let alive = {
            let servers = leader.servers.lock();
            left.iter().filter(|other| servers.health(**other, now) == Some(Health::Alive)).count()
        };
        if alive == 0 {
            tracing::error!(
                %chunk, %server,
                "the only reachable replica of a chunk is missing: start the servers that have the others"
            );
            return Ok(None);
        }
        tracing::warn!(
            %chunk, %server, left = left.len(),
            "a replica is missing; it is removed from the replica set and re-replicated"
        );
        Ok(Some(Op::from(ops::SetReplicas { chunk, generation: record.generation, replicas: left })))
    }

    async fn take_inventory(
        &self,
        leader: &Arc<Leader>,
        beat: &Arc<Heartbeat>,
        removed: Vec<ChunkId>,
    ) -> Result<(), MetadataError> {
        let (server, changes) = (beat.server, &beat.changes);
        let Inspected { strays, missing, short } = match says_what_is_there(changes) {
            false => Inspected::default(),
            true => {
                let (leader, beat) = (leader.clone(), beat.clone());
                self.read(Lane::Request, move |records| inspect(records, &leader, &beat)).await?
            }
        };
        let mut ops = Vec::new();
        if !strays.is_empty() {
            tracing::info!(
                %server, count = strays.len(),
                "a storage server deletes replicas that no chunk record refers to"
            );
            self.metrics.work("strays", strays.len() as u64);
            ops.push(Op::from(ops::DeleteStray { server, chunks: strays }));
        }
        for chunk in missing.into_iter().chain(removed) {
            ops.extend(self.without_replica(leader, chunk, server)?);
        }
        // What is good in them may be all that is left of it. A new leader hears of them with the whole inventory.
        let known_bad = changes.present.iter().filter(|replica| replica.bad).map(|replica| replica.chunk);
        let bad = changes.bad.iter().map(|bad| bad.chunk).chain(known_bad).chain(short);
        leader.suspects.add(bad.map(|chunk| (chunk, server)));
        if !ops.is_empty() {
            leader.propose_all(ops).await?;
        }
        Ok(())
    }

    /// Chunks whose replicas are gone from the server though nobody ordered that.
    async fn removed(&self, beat: &Arc<Heartbeat>) -> Result<Vec<ChunkId>, MetadataError> {
        if beat.changes.removed.is_empty() {
            return Ok(Vec::new());
        }
        let beat = beat.clone();
        self.read(Lane::Request, move |records| removed(records, beat.server, &beat.changes)).await
    }

    /// What the server is to do now, and chunks of which it has nothing to trim though it was told so.
    async fn tasks_for(
        &self,
        leader: &Arc<Leader>,
        server: ServerId,
    ) -> Result<(Vec<NumberedTask>, Vec<ChunkId>), MetadataError> {
        // What servers say most of the time: that they are there. Then nothing has to be read.
        if !leader.changes.may_have_orders(server) {
            return Ok((leader.tasks.lock().issue(server, &[], clock::since_boot()), Vec::new()));
        }
        let led = leader.clone();
        let give_out = move |records: &Records| -> Result<_, StoreError> {
            let room = led.tasks.lock().room(server).min(CHUNKS_MAX);
            let (tasks, idle) = tasks(&records.snapshot(), server, room)?;
            let may_be_more = room == 0 || !tasks.is_empty();
            Ok((led.tasks.lock().issue(server, &tasks, clock::since_boot()), idle, may_be_more))
        };
        let given_out = self.read(Lane::Request, give_out).await;
        if given_out.as_ref().map_or(true, |(_, _, may_be_more)| *may_be_more) {
            leader.changes.has_orders(server);
        }
        given_out.map(|(tasks, idle, _)| (tasks, idle))
    }
}

/// What an inventory says, held against the records.
#[derive(Default)]
struct Inspected {
    strays: Vec<ChunkId>,
    missing: Vec<ChunkId>,
    short: Vec<ChunkId>,
}

/// Whether there is something to [`inspect`].
fn says_what_is_there(changes: &InventoryChanges) -> bool {
    changes.complete
        || changes.through.is_some()
        || !changes.present.is_empty()
        || !changes.scrubbed.is_empty()
}

fn inspect(records: &dyn Read, leader: &Leader, beat: &Heartbeat) -> Result<Inspected, StoreError> {
    Ok(Inspected {
        strays: strays(records, leader, beat.server, &beat.changes)?,
        missing: missing(records, beat.server, &beat.changes)?,
        short: short(records, &beat.changes)?,
    })
}

/// Replicas that no record places on the server.
fn strays(
    records: &dyn Read,
    leader: &Leader,
    server: ServerId,
    changes: &InventoryChanges,
) -> Result<Vec<ChunkId>, StoreError> {
    let mut strays = Vec::new();
    for replica in &changes.present {
        let chunk = replica.chunk;
        if query::chunk(records, chunk)?.is_some_and(|record| record.replicas.contains(&server))
            || leader.tasks.lock().is_copying(server, chunk)
        {
            continue;
        }
        let task: Option<TaskRecord> = query::load(records, Family::System, &keys::task(server, chunk))?;
        if !task.is_some_and(|task| task.delete) {
            strays.push(chunk);
        }
    }
    Ok(strays)
}

/// Chunks of whose blocks in use not all are there, though none is bad: what was zeroed looks to its server as if it had
/// never been written.
fn short(records: &dyn Read, changes: &InventoryChanges) -> Result<Vec<ChunkId>, StoreError> {
    let mut short = Vec::new();
    for scrubbed in &changes.scrubbed {
        let record = query::chunk(records, scrubbed.chunk)?;
        // Blocks are only ever trimmed after they are no longer in use.
        if record.is_some_and(|record| {
            record.sealed && record.generation == scrubbed.generation && scrubbed.blocks < record.live_blocks
        }) {
            short.push(scrubbed.chunk);
        }
    }
    Ok(short)
}

/// Chunks whose replicas are gone from the server though nobody ordered that.
fn removed(
    records: &dyn Read,
    server: ServerId,
    changes: &InventoryChanges,
) -> Result<Vec<ChunkId>, StoreError> {
    let mut removed = Vec::new();
    for chunk in &changes.removed {
        let task: Option<TaskRecord> = query::load(records, Family::System, &keys::task(server, *chunk))?;
        if !task.is_some_and(|task| task.delete)
            && query::chunk(records, *chunk)?.is_some_and(|record| record.replicas.contains(&server))
        {
            removed.push(*chunk);
        }
    }
    Ok(removed)
}

/// Sealed chunks that should be on the server and are not in its (page of the) full inventory. Open ones are
/// their writers' business.
fn missing(
    records: &dyn Read,
    server: ServerId,
    changes: &InventoryChanges,
) -> Result<Vec<ChunkId>, StoreError> {
    // The last page ends behind the last chunk there is, and may be empty: then the server has lost everything.
    let to = match changes.through {
        _ if changes.complete => prefix_end(&keys::chunks()),
        Some(through) => keys::chunk(ChunkId(through.0.saturating_add(1))),
        None => return Ok(Vec::new()),
    };
    let present: HashSet<ChunkId> = changes.present.iter().map(|replica| replica.chunk).collect();
    let from = keys::chunk(ChunkId(changes.from.map_or(0, |from| from.0.saturating_add(1))));
    let mut missing = Vec::new();
    records.scan(Family::System, &from, &to, &mut |key, value| {
        if let (Some(number), Ok(record)) = (keys::first_number(key), ChunkRecord::decode(value)) {
            let chunk = ChunkId(number);
            if record.sealed
                && record.committed > 0
                && record.replicas.contains(&server)
                && !present.contains(&chunk)
            {
                missing.push(chunk);
            }
        }
        ControlFlow::Continue(())
    })?;
    // What was sealed or copied while the page was on its way may be there already: a server that lacks it
    // says so when it is told to seal it. Here only what has no such order is taken as lost.
    let mut lost = Vec::new();
    for chunk in missing {
        let task: Option<TaskRecord> = query::load(records, Family::System, &keys::task(server, chunk))?;
        if task.is_none_or(|task| task.seal.is_none()) {
            lost.push(chunk);
        }
    }
    Ok(lost)
}

/// What the records say a server has to do, as far as there is room for it, and chunks of which it has nothing to trim though
/// it was told so.
fn tasks(
    records: &dyn Read,
    server: ServerId,
    room: usize,
) -> Result<(Vec<ChunkTasks>, Vec<ChunkId>), StoreError> {
    let mut tasks = Vec::new();
    let mut failed = None;
    let prefix = keys::tasks(server);
    records.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, value| {
        if tasks.len() >= room {
            return ControlFlow::Break(());
        }
        match (keys::second_number(key), TaskRecord::decode(value)) {
            (Some(chunk), Ok(task)) => {
                tasks.push(ChunkTasks { chunk: ChunkId(chunk), record: task, dead: Vec::new() })
            }
            (None, _) => {}
            (_, Err(error)) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mut idle = Vec::new();
    for task in &mut tasks {
        if task.record.trim && !task.record.delete {
            task.dead = dead_ranges(records, task.chunk, server)?;
            if task.dead.is_empty() {
                idle.push(task.chunk);
            }
        }
    }
    Ok((tasks, idle))
}

/// Dead ranges of a chunk that the server hasn't trimmed, as many as go into one order.
fn dead_ranges(records: &dyn Read, chunk: ChunkId, server: ServerId) -> Result<Vec<(u64, u64)>, StoreError> {
    let mut ranges = Vec::new();
    let mut failed = None;
    let prefix = keys::dead_ranges(chunk);
    records.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, value| {
        match (keys::second_number(key), DeadRecord::decode(value)) {
            (Some(first), Ok(dead)) if dead.waiting.contains(&server) => ranges.push((first, dead.blocks)),
            (_, Ok(_)) => {}
            (_, Err(error)) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        if ranges.len() >= TRIM_RANGES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    failed.map_or(Ok(ranges), Err)
}
