//! Chunks: who writes them, who holds them, what of them is in use, and what servers have to do about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::commands::{Context, CreatedChunk, INTERNAL, Mutation, TaskDone};
use crate::error::FsError;
use crate::ids::{ChunkId, Generation, InodeId, SegmentIndex, ServerId, SessionId};
use crate::intervals::Intervals;
use crate::keys;
use crate::limits::{BLOCK_BYTES, COPIES_MAX};
use crate::records::{
    ChunkKind, ChunkRecord, DeadRecord, Piece, Place, Record, SegmentRecord, TaskRecord, in_blocks,
};
use crate::store::{Family, Read};
use crate::txn::{OpResult, Txn, take_number};

/// Back references and dead ranges of one chunk at most: one a block.
const PER_CHUNK_MAX: usize = 1 << 20;

/// The blocks of `chunk` that pieces refer to, by chunk. Extents begin at a block, but what a later overwrite
/// leaves of them may begin and end anywhere: a block that is touched is in use.
pub(crate) fn blocks_of(pieces: &[Piece]) -> BTreeMap<ChunkId, Intervals> {
    let mut blocks: BTreeMap<ChunkId, Intervals> = BTreeMap::new();
    for piece in pieces {
        if let Place::Chunk { chunk, offset } = piece.place {
            let first = offset / BLOCK_BYTES;
            let end = offset.saturating_add(u64::from(piece.length)).div_ceil(BLOCK_BYTES);
            blocks.entry(chunk).or_default().add(first, end);
        }
    }
    blocks
}

/// What other segments refer to of `chunk`.
fn other_references(
    txn: &Txn<'_>,
    chunk: ChunkId,
    except: Option<(InodeId, SegmentIndex)>,
) -> OpResult<Intervals> {
    let mut blocks = Intervals::default();
    for (key, _) in txn.collect_prefix(Family::System, &keys::back_references(chunk), PER_CHUNK_MAX)? {
        let (Some(ino), Some(segment)) = (keys::second_number(&key), keys::third_number(&key)) else {
            continue;
        };
        let at = (InodeId(ino), SegmentIndex(segment));
        if Some(at) == except {
            continue;
        }
        if let Some(found) = txn.load::<SegmentRecord>(Family::Extents, &keys::segment(at.0, at.1))?
            && let Some(here) = blocks_of(&found.pieces).get(&chunk)
        {
            blocks.add_all(here);
        }
    }
    Ok(blocks)
}

/// How the blocks that a segment newly refers to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocks {
    /// They come into use, unless they are shared and others refer to them.
    Counted,
    /// Others are known to refer to them: nothing changes.
    InUse,
}

/// Brings chunks and back references from what a segment refers to `before` to what it does `after`.
pub(crate) fn account(
    txn: &mut Txn<'_>,
    at: (InodeId, SegmentIndex),
    before: &[Piece],
    after: &[Piece],
    blocks: Blocks,
) -> OpResult<()> {
    let was = blocks_of(before);
    let is = blocks_of(after);
    let chunks: std::collections::BTreeSet<ChunkId> = was.keys().chain(is.keys()).copied().collect();
    for chunk in chunks {
        let none = Intervals::default();
        let (was_here, is_here) = (was.get(&chunk).unwrap_or(&none), is.get(&chunk).unwrap_or(&none));
        let reference = keys::back_reference(chunk, at.0, at.1);
        match (was_here.is_empty(), is_here.is_empty()) {
            (true, false) => txn.mark(reference),
            (false, true) => txn.delete(Family::System, reference),
            _ => {}
        }
        let mut dead = was_here.without(is_here);
        let mut new = match blocks {
            Blocks::Counted => is_here.without(was_here),
            Blocks::InUse => Intervals::default(),
        };
        if dead.is_empty() && new.is_empty() {
            continue;
        }
        let shared = before.iter().chain(after).any(|piece| {
            piece.shared && matches!(piece.place, Place::Chunk { chunk: other, .. } if other == chunk)
        });
        if shared {
            let others = other_references(txn, chunk, Some(at))?;
            dead = dead.without(&others);
            new = new.without(&others);
        }
        let Some(mut record) = txn.chunk(chunk)? else { continue };
        record.live_blocks = record.live_blocks.saturating_add(new.total()).saturating_sub(dead.total());
        bury(txn, chunk, &mut record, &dead)?;
        finish(txn, chunk, &record)?;
    }
    Ok(())
}

/// Records ranges as dead and tells the replicas' servers to trim them.
fn bury(txn: &mut Txn<'_>, chunk: ChunkId, record: &mut ChunkRecord, dead: &Intervals) -> OpResult<()> {
    if dead.is_empty() {
        return Ok(());
    }
    record.dead_blocks = record.dead_blocks.saturating_add(dead.total());
    if record.sealed && record.live_blocks == 0 {
        return Ok(());
    }
    for (first, end) in dead.iter() {
        let waiting = record.replicas.clone();
        txn.put(Family::System, keys::dead(chunk, first), &DeadRecord { blocks: end - first, waiting });
    }
    for server in record.replicas.clone() {
        txn.task(server, chunk, |task| task.trim = true)?;
    }
    Ok(())
}

/// Stores a chunk's record; a sealed one that nothing refers to goes altogether.
fn finish(txn: &mut Txn<'_>, chunk: ChunkId, record: &ChunkRecord) -> OpResult<()> {
    if !(record.sealed && record.live_blocks == 0) {
        txn.put_chunk(chunk, record);
        return Ok(());
    }
    for (key, _) in txn.collect_prefix(Family::System, &keys::dead_ranges(chunk), PER_CHUNK_MAX)? {
        txn.delete(Family::System, key);
    }
    txn.delete(Family::System, keys::chunk(chunk));
    for server in &record.replicas {
        txn.task(*server, chunk, |task| *task = TaskRecord { delete: true, ..TaskRecord::default() })?;
    }
    Ok(())
}

/// Makes a chunk for the session to write. A client sends in `replicas` the servers that don't answer it; the leader
/// replaces them by those that are to be written, and avoids the client's if there are enough others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateChunk {
    /// What for.
    pub kind: ChunkKind,
    /// The writing process.
    pub incarnation: u64,
    /// Servers that get a replica.
    pub replicas: Vec<ServerId>,
}

impl Mutation for CreateChunk {
    type Outcome = CreatedChunk;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<CreatedChunk> {
        let session = context.session;
        let CreateChunk { kind, incarnation, ref replicas } = *self;
        let volume = txn.volume()?;
        let distinct: std::collections::BTreeSet<_> = replicas.iter().collect();
        if replicas.len() < usize::from(volume.config.copies_min)
            || replicas.is_empty()
            || replicas.len() > usize::from(COPIES_MAX)
            || distinct.len() != replicas.len()
        {
            return Err(FsError::NoServers.into());
        }
        for server in replicas {
            if txn.get(Family::System, &keys::server(*server))?.is_none() {
                return Err(FsError::NoServers.into());
            }
        }
        let volume = txn.volume_mut()?;
        let chunk = ChunkId(take_number(&mut volume.next_chunk)?);
        let record = ChunkRecord {
            generation: Generation(1),
            writer: session,
            incarnation,
            replicas: replicas.to_vec(),
            copies: volume.config.copies,
            kind,
            capacity: volume.config.chunk_bytes,
            committed: 0,
            sealed: false,
            live_blocks: 0,
            dead_blocks: 0,
        };
        txn.put_chunk(chunk, &record);
        txn.mark(keys::written(session, chunk));
        Ok(CreatedChunk { chunk, record: Box::new(record) })
    }
}

/// Checks that `session` may refer to `length` bytes at `offset` of a chunk that it writes, and counts them as
/// committed.
pub(crate) fn commit(
    txn: &mut Txn<'_>,
    session: SessionId,
    (chunk, generation, offset): (ChunkId, Generation, u64),
    length: u64,
) -> OpResult<()> {
    if offset % BLOCK_BYTES != 0 {
        return Err(FsError::InvalidArgument.into());
    }
    let mut record = txn.chunk(chunk)?.ok_or(FsError::StaleChunk)?;
    let end = offset.checked_add(length).ok_or(FsError::StaleChunk)?;
    if record.sealed || record.generation != generation || record.writer != session || end > record.capacity {
        return Err(FsError::StaleChunk.into());
    }
    if end > record.committed {
        record.committed = end;
        txn.put_chunk(chunk, &record);
    }
    Ok(())
}

/// No more writes to a chunk; its length is what was committed.
///
/// No more writes: the length is what was committed, without asking the replicas; what is beyond is cut there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealChunk {
    /// The chunk.
    pub chunk: ChunkId,
}

impl Mutation for SealChunk {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<()> {
        let session = context.session;
        let chunk = self.chunk;
        let Some(record) = txn.chunk(chunk)? else { return Ok(()) };
        if session != INTERNAL && record.writer != session {
            return Err(FsError::StaleChunk.into());
        }
        seal_record(txn, chunk, record)?;
        Ok(())
    }
}

fn seal_record(txn: &mut Txn<'_>, chunk: ChunkId, mut record: ChunkRecord) -> OpResult<()> {
    txn.delete(Family::System, keys::written(record.writer, chunk));
    if record.sealed {
        return Ok(());
    }
    record.sealed = true;
    let (generation, length) = (record.generation, in_blocks(record.committed));
    for server in &record.replicas {
        txn.task(*server, chunk, |task| task.seal = Some((generation, length)))?;
    }
    finish(txn, chunk, &record)
}

/// Seals every chunk that `session` writes.
pub(crate) fn seal_all(txn: &mut Txn<'_>, session: SessionId) -> OpResult<()> {
    for (key, _) in txn.collect_prefix(Family::System, &keys::written_by(session), PER_CHUNK_MAX)? {
        let chunk = keys::second_number(&key).map(ChunkId);
        txn.delete(Family::System, key);
        if let Some(chunk) = chunk
            && let Some(record) = txn.chunk(chunk)?
        {
            seal_record(txn, chunk, record)?;
        }
    }
    Ok(())
}

/// Takes servers that are gone out of an open chunk's replicas (generation + 1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShrinkChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its generation as the session knows it.
    pub generation: Generation,
    /// Servers to take out.
    pub without: Vec<ServerId>,
}

impl Mutation for ShrinkChunk {
    type Outcome = CreatedChunk;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<CreatedChunk> {
        let session = context.session;
        let ShrinkChunk { chunk, generation, ref without } = *self;
        let record = txn.chunk(chunk)?.ok_or(FsError::StaleChunk)?;
        if record.sealed || record.writer != session || record.generation != generation {
            return Err(FsError::StaleChunk.into());
        }
        let left: Vec<ServerId> = record.replicas.iter().copied().filter(|s| !without.contains(s)).collect();
        if left.len() < usize::from(txn.volume()?.config.copies_min.max(1)) {
            return Err(FsError::NoServers.into());
        }
        replace_replicas(txn, chunk, record, left)
    }
}

/// The generation is raised and lost replicas are taken out of a sealed chunk, or new ones added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReplicas {
    /// Which.
    pub chunk: ChunkId,
    /// Its generation as the leader read it.
    pub generation: Generation,
    /// The new set.
    pub replicas: Vec<ServerId>,
}

impl Mutation for SetReplicas {
    type Outcome = CreatedChunk;

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<CreatedChunk> {
        let SetReplicas { chunk, generation, ref replicas } = *self;
        let record = txn.chunk(chunk)?.ok_or(FsError::StaleChunk)?;
        if record.generation != generation || !record.sealed {
            return Err(FsError::StaleChunk.into());
        }
        if replicas.is_empty() {
            return Err(FsError::InvalidArgument.into());
        }
        replace_replicas(txn, chunk, record, replicas.to_vec())
    }
}

fn replace_replicas(
    txn: &mut Txn<'_>,
    chunk: ChunkId,
    mut record: ChunkRecord,
    replicas: Vec<ServerId>,
) -> OpResult<CreatedChunk> {
    let gone: Vec<ServerId> = record.replicas.iter().copied().filter(|s| !replicas.contains(s)).collect();
    let new: Vec<ServerId> = replicas.iter().copied().filter(|s| !record.replicas.contains(s)).collect();
    for server in &gone {
        // Should it come back, what it holds is of an old generation.
        txn.task(*server, chunk, |task| *task = TaskRecord { delete: true, ..TaskRecord::default() })?;
    }
    let mut trims = false;
    for (key, value) in txn.collect_prefix(Family::System, &keys::dead_ranges(chunk), PER_CHUNK_MAX)? {
        let mut dead = DeadRecord::decode(&value)?;
        dead.waiting.retain(|server| !gone.contains(server));
        dead.waiting.extend(&new);
        if dead.waiting.is_empty() {
            txn.delete(Family::System, key);
        } else {
            trims = true;
            txn.put(Family::System, key, &dead);
        }
    }
    for server in &new {
        txn.task(*server, chunk, |task| *task = TaskRecord { trim: trims, ..TaskRecord::default() })?;
    }
    record.generation = Generation(record.generation.0.checked_add(1).ok_or(FsError::StaleChunk)?);
    record.replicas = replicas;
    if record.sealed {
        let (generation, length) = (record.generation, in_blocks(record.committed));
        for server in &record.replicas {
            txn.task(*server, chunk, |task| task.seal = Some((generation, length)))?;
        }
    }
    txn.put_chunk(chunk, &record);
    Ok(CreatedChunk { chunk, record: Box::new(record) })
}

/// Records as dead what no extent of a sealed chunk refers to.
///
/// Records as dead what no extent of a sealed chunk refers to: bytes that were written and never committed.
/// Ranges that were trimmed before are named again; to trim twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepChunk {
    /// Which.
    pub chunk: ChunkId,
}

impl Mutation for SweepChunk {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<()> {
        sweep(txn, self.chunk)
    }
}

/// See [`SweepChunk`].
pub(crate) fn sweep(txn: &mut Txn<'_>, chunk: ChunkId) -> OpResult<()> {
    let Some(mut record) = txn.chunk(chunk)? else { return Ok(()) };
    if !record.sealed && !atoll_faults::planted("seal-ignored") {
        return Err(FsError::InvalidArgument.into());
    }
    let live = other_references(txn, chunk, None)?;
    let blocks = record.committed.div_ceil(BLOCK_BYTES);
    let mut garbage = Intervals::default();
    garbage.add(0, blocks);
    let garbage = garbage.without(&live);
    for (key, _) in txn.collect_prefix(Family::System, &keys::dead_ranges(chunk), PER_CHUNK_MAX)? {
        txn.delete(Family::System, key);
    }
    record.live_blocks = live.total();
    record.dead_blocks = 0;
    bury(txn, chunk, &mut record, &garbage)?;
    finish(txn, chunk, &record)?;
    Ok(())
}

/// A server has carried out tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TasksDone {
    /// Which server.
    pub server: ServerId,
    /// What it has done.
    pub done: Vec<TaskDone>,
}

impl Mutation for TasksDone {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<()> {
        let TasksDone { server, ref done } = *self;
        for item in done {
            match item {
                TaskDone::Deleted(chunk) => {
                    let key = keys::task(server, *chunk);
                    if txn.load::<TaskRecord>(Family::System, &key)?.is_some_and(|task| task.delete) {
                        txn.delete(Family::System, key);
                    }
                }
                TaskDone::Sealed(chunk, generation) => txn.task(server, *chunk, |task| {
                    if task.seal.is_some_and(|(wanted, _)| wanted == *generation) {
                        task.seal = None;
                    }
                })?,
                TaskDone::Trimmed(chunk, ranges) => trimmed(txn, server, *chunk, ranges)?,
            }
        }
        Ok(())
    }
}

fn trimmed(txn: &mut Txn<'_>, server: ServerId, chunk: ChunkId, ranges: &[(u64, u64)]) -> OpResult<()> {
    for (first, blocks) in ranges {
        let key = keys::dead(chunk, *first);
        let Some(mut dead) = txn.load::<DeadRecord>(Family::System, &key)? else { continue };
        if dead.blocks != *blocks {
            // A sweep has drawn the range anew since.
            continue;
        }
        dead.waiting.retain(|waiting| *waiting != server);
        if dead.waiting.is_empty() {
            txn.delete(Family::System, key);
        } else {
            txn.put(Family::System, key, &dead);
        }
    }
    let mut more = false;
    for (_, value) in txn.collect_prefix(Family::System, &keys::dead_ranges(chunk), PER_CHUNK_MAX)? {
        more |= DeadRecord::decode(&value)?.waiting.contains(&server);
    }
    txn.task(server, chunk, |task| task.trim = more)
}

/// A server holds a replica that no record knows: it is to delete it.
///
/// A server holds replicas that no record places there. Chunk ids are never used twice, so a chunk that has
/// no record, or whose record names other servers, will not come back to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteStray {
    /// Which server.
    pub server: ServerId,
    /// The chunks.
    pub chunks: Vec<ChunkId>,
}

impl Mutation for DeleteStray {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<()> {
        let DeleteStray { server, ref chunks } = *self;
        for chunk in chunks {
            let wanted = txn.chunk(*chunk)?.is_some_and(|record| record.replicas.contains(&server));
            let known = chunk.0 < txn.volume()?.next_chunk;
            if !wanted && known {
                txn.task(server, *chunk, |task| {
                    *task = TaskRecord { delete: true, ..TaskRecord::default() }
                })?;
            }
        }
        Ok(())
    }
}
