//! Moves bytes of files into chunks that the metadata service writes itself: reads them where they are, writes
//! them to all replicas of a chunk, synced, and then has the map point there, if it is still as it was read.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use atoll_core::commands::{INTERNAL, Op, Outcome, ServiceOp, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{ChunkId, Generation, InodeId, SegmentIndex, ServerId};
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::query;
use atoll_core::records::{ChunkKind, Piece, Place, Superblock};
use atoll_proto::metadata::MetadataError;
use atoll_proto::storage::{ChunkLayout, ReadChunk, WriteChunk, Writer};
use atoll_proto::{Address, ConnectOptions, Peer, Role, checksum};
use bytes::{Bytes, BytesMut};

use crate::admission::{self, Facts};
use crate::changes::Work;
use crate::clock;
use crate::leader::Leader;
use crate::node::{Node, query_error, store_error};
use crate::reads::Lane;

/// Bytes of runs (in whole blocks) that are read, written and committed together; a run alone may have as many.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;
/// How long one read or write may take.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// A chunk that was not written to for so long is sealed.
const IDLE_SEAL_AFTER: Duration = Duration::from_secs(30);

/// Why bytes were not moved. All of these are tried again later.
#[derive(Debug, thiserror::Error)]
pub(super) enum MoveError {
    /// The metadata service.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// No replica could be read.
    #[error("chunk {chunk} can't be read: {reason}")]
    Read {
        /// The chunk.
        chunk: ChunkId,
        /// What the last server said.
        reason: String,
    },
    /// Not every replica was written.
    #[error("chunk {chunk} can't be written: {reason}")]
    Write {
        /// The chunk.
        chunk: ChunkId,
        /// What one server said.
        reason: String,
    },
    /// No chunk can be made.
    #[error("no chunk can be written to: {0}")]
    NoChunk(FsError),
}

/// Adjacent pieces of one segment that are to be moved as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The file.
    pub ino: InodeId,
    /// The segment.
    pub segment: SegmentIndex,
    /// The pieces, each beginning where the one before ends.
    pub pieces: Vec<Piece>,
}

impl Run {
    /// Bytes of the run.
    fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.length as usize).sum()
    }

    /// Bytes that it takes in a chunk: whole blocks.
    pub(super) fn stored_bytes(&self) -> usize {
        self.bytes().next_multiple_of(BLOCK_BYTES as usize)
    }
}

/// Cuts out of a segment the runs of adjacent pieces that `wanted` names.
pub(super) fn runs(
    ino: InodeId,
    segment: SegmentIndex,
    pieces: &[Piece],
    wanted: impl Fn(&Piece) -> bool,
) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for piece in pieces.iter().filter(|piece| wanted(piece)) {
        match runs.last_mut() {
            Some(run) if run.pieces.last().is_some_and(|last| last.end() == piece.start) => {
                run.pieces.push(*piece)
            }
            _ => runs.push(Run { ino, segment, pieces: vec![*piece] }),
        }
    }
    runs
}

struct OpenChunk {
    chunk: ChunkId,
    generation: Generation,
    replicas: Vec<ServerId>,
    incarnation: u64,
    /// Where the next run goes.
    offset: u64,
    capacity: u64,
    used: Instant,
}

/// Waits until there may be such work, or something to [seal](Mover::seal_if_idle), or this leadership is over.
pub(super) async fn wait_for(leader: &Leader, work: Work) {
    loop {
        let woken = leader.changes.woken(work);
        if leader.changes.has(work) || leader.is_over() {
            return;
        }
        let seals_in = leader.mover.lock().await.seals_in();
        let seal = async {
            match seals_in {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = woken => {}
            () = leader.ended() => return,
            () = seal => return,
        }
    }
}

/// The one writer of the metadata service's own chunks, whatever it moves bytes for, in the term of one leader.
#[derive(Default)]
pub(crate) struct Mover {
    peers: HashMap<ServerId, (String, Peer)>,
    open: Option<OpenChunk>,
    /// The chunks of earlier leaders are sealed, and one of this leader's whose sealing failed.
    has_sealed: bool,
}

impl Mover {
    /// Moves runs, at most [`BATCH_BYTES_MAX`] together. Those whose segment has changed meanwhile stay where
    /// they are. Returns how many bytes moved.
    pub(super) async fn relocate(
        &mut self,
        node: &Node,
        leader: &Leader,
        runs: Vec<Run>,
    ) -> Result<u64, MoveError> {
        leader.confirm_unasked().await?;
        self.seal_leftovers(node, leader).await?;
        let mut parts = Vec::with_capacity(runs.len());
        let mut found = Vec::with_capacity(runs.len());
        for run in runs {
            if let Some(part) = self.read_run(node, leader, &run).await? {
                parts.push(part);
                found.push(run);
            }
        }
        let runs = found;
        if runs.is_empty() {
            return Ok(0);
        }
        let places = self.write(node, leader, &parts).await?;
        let moved = runs.iter().map(|run| run.bytes() as u64).collect::<Vec<_>>();
        let ops = runs
            .into_iter()
            .zip(places)
            .map(|(run, (chunk, generation, offset))| {
                Op::Service(ServiceOp::Relocate(ops::Relocate {
                    ino: run.ino,
                    segment: run.segment,
                    expected: run.pieces,
                    chunk,
                    generation,
                    offset,
                }))
            })
            .collect();
        let mut bytes = 0;
        for (outcome, length) in leader.propose_all(ops).await?.into_iter().zip(moved) {
            match outcome {
                Outcome::Refused(FsError::StaleChunk) => self.open = None,
                Outcome::Refused(_) => {}
                _ => bytes += length,
            }
        }
        Ok(bytes)
    }

    /// The bytes of a run; `None` if some of them are no longer where the segment said.
    async fn read_run(
        &mut self,
        node: &Node,
        leader: &Leader,
        run: &Run,
    ) -> Result<Option<Bytes>, MoveError> {
        let mut bytes = BytesMut::with_capacity(run.bytes());
        for piece in &run.pieces {
            match piece.place {
                Place::Inline { .. } => {
                    let found = query::inline_bytes(&*node.machine.store(), run.ino, run.segment, piece);
                    match found {
                        Ok(Some(part)) => bytes.extend_from_slice(&part),
                        // Overwritten since the segment was read.
                        Ok(None) | Err(_) => return Ok(None),
                    }
                }
                Place::Chunk { chunk, offset } => {
                    let part = self.read_chunk(node, leader, chunk, offset, piece.length).await?;
                    bytes.extend_from_slice(&part);
                }
                Place::Unwritten | Place::Lost => return Ok(None),
            }
        }
        Ok(Some(bytes.freeze()))
    }

    async fn read_chunk(
        &mut self,
        node: &Node,
        leader: &Leader,
        chunk: ChunkId,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, MoveError> {
        let record = query::chunk(&*node.machine.store(), chunk).map_err(|error| store_error(&error))?;
        let mut reason = "it has no record".to_owned();
        let Some(record) = record else { return Err(MoveError::Read { chunk, reason }) };
        let generation = record.generation;
        let request = ReadChunk { chunk, generation, offset, length, reader_verifies: false };
        for server in record.replicas {
            match self.read_replica(node, leader, server, &request).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => reason = error,
            }
        }
        Err(MoveError::Read { chunk, reason })
    }

    async fn read_replica(
        &mut self,
        node: &Node,
        leader: &Leader,
        server: ServerId,
        request: &ReadChunk,
    ) -> Result<Bytes, String> {
        let peer = self.peer(node, leader, server)?;
        let connection = tokio::time::timeout(CALL_DEADLINE, peer.connection())
            .await
            .map_err(|_| "no connection in time".to_owned())?
            .map_err(|error| error.to_string())?;
        let (reply, body) = connection
            .call_within::<ReadChunk>(request, (), CALL_DEADLINE)
            .await
            .map_err(|error| error.to_string())?;
        checksum::verify(request.chunk, reply.offset / BLOCK_BYTES, &body, &reply.checksums)
            .map_err(|error| error.to_string())?;
        let skip = request.offset.checked_sub(reply.offset).ok_or("the reply begins too late")? as usize;
        let end = skip + request.length as usize;
        if body.len() < end {
            return Err("the reply is too short".into());
        }
        Ok(body.slice(skip..end))
    }

    /// Writes the parts to the open chunk, each at a block's beginning, and returns where they are.
    async fn write(
        &mut self,
        node: &Node,
        leader: &Leader,
        parts: &[Bytes],
    ) -> Result<Vec<(ChunkId, Generation, u64)>, MoveError> {
        let total: u64 = parts.iter().map(|part| (part.len() as u64).next_multiple_of(BLOCK_BYTES)).sum();
        if self.open.as_ref().is_none_or(|open| open.offset + total > open.capacity) {
            self.seal_open(leader).await?;
            self.open = Some(create_chunk(node, leader).await?);
        }
        let Some(open) = &mut self.open else { return Err(MoveError::NoChunk(FsError::NoServers)) };
        let start = open.offset;
        let (chunk, generation) = (open.chunk, open.generation);
        let mut body = BytesMut::with_capacity(total as usize);
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            places.push((chunk, generation, start + body.len() as u64));
            body.extend_from_slice(part);
            body.resize(body.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        }
        open.offset += total;
        open.used = Instant::now();
        let body = body.freeze();
        let request = WriteChunk {
            chunk,
            generation,
            writer: Writer { session: INTERNAL, incarnation: open.incarnation },
            offset: start,
            length: body.len() as u32,
            checksums: checksum::checksums(chunk, start / BLOCK_BYTES, &body),
            create: (start == 0).then_some(ChunkLayout::Stream),
            sync: true,
        };
        let mut writes = Vec::new();
        for server in open.replicas.clone() {
            writes.push((server, self.peer(node, leader, server)));
        }
        let all = writes.into_iter().map(|(server, peer)| {
            let (request, body) = (&request, body.clone());
            async move {
                let connection = tokio::time::timeout(CALL_DEADLINE, peer?.connection())
                    .await
                    .map_err(|_| format!("no connection to server {server} in time"))?
                    .map_err(|error| error.to_string())?;
                connection
                    .call_within::<WriteChunk>(request, body, CALL_DEADLINE)
                    .await
                    .map_err(|error| format!("server {server}: {error}"))
            }
        });
        if let Err(reason) = futures::future::try_join_all(all).await {
            // The chunk ends here; the next attempt gets other servers.
            self.seal_open(leader).await?;
            return Err(MoveError::Write { chunk, reason });
        }
        Ok(places)
    }

    async fn seal_open(&mut self, leader: &Leader) -> Result<(), MoveError> {
        if let Some(open) = self.open.take()
            && let Err(error) = leader.propose(Op::from(ops::SealChunk { chunk: open.chunk })).await
        {
            // It is among what is left over then.
            self.has_sealed = false;
            return Err(error.into());
        }
        Ok(())
    }

    /// Seals the chunk if nothing was written to it for a while, and those of earlier leaders.
    pub(super) async fn seal_if_idle(&mut self, node: &Node, leader: &Leader) {
        if leader.confirm_unasked().await.is_ok()
            && let Err(error) = self.seal_leftovers(node, leader).await
        {
            tracing::debug!(%error, "chunks of earlier leaders aren't sealed yet");
        }
        if self.open.as_ref().is_some_and(|open| open.used.elapsed() > IDLE_SEAL_AFTER)
            && let Err(error) = self.seal_open(leader).await
        {
            tracing::debug!(%error, "an idle chunk isn't sealed yet");
        }
    }

    /// When there is something to seal, if nothing is moved until then.
    fn seals_in(&self) -> Option<Duration> {
        if !self.has_sealed {
            return Some(Duration::ZERO);
        }
        self.open.as_ref().map(|open| IDLE_SEAL_AFTER.saturating_sub(open.used.elapsed()))
    }

    /// Chunks that an earlier leader (or this member, when it led before) was writing.
    async fn seal_leftovers(&mut self, node: &Node, leader: &Leader) -> Result<(), MoveError> {
        if self.has_sealed {
            return Ok(());
        }
        self.open = None;
        leader.propose_all(node.seals_of(Lane::Background, INTERNAL).await?).await?;
        self.has_sealed = true;
        Ok(())
    }

    fn peer(&mut self, node: &Node, leader: &Leader, server: ServerId) -> Result<Peer, String> {
        let address = leader
            .servers
            .lock()
            .record(server)
            .map(|record| record.address.clone())
            .ok_or_else(|| format!("server {server} is unknown"))?;
        if let Some((known, peer)) = self.peers.get(&server)
            && *known == address
        {
            return Ok(peer.clone());
        }
        let parsed: Address = address.parse().map_err(|error| format!("{error}"))?;
        let options = ConnectOptions::new(node.identity.clone()).expecting(Role::Storage(server));
        let peer = Peer::new(parsed, options);
        self.peers.insert(server, (address, peer.clone()));
        Ok(peer)
    }
}

async fn create_chunk(node: &Node, leader: &Leader) -> Result<OpenChunk, MoveError> {
    let volume: Superblock = query::superblock(&*node.machine.store()).map_err(query_error)?;
    let now = clock::since_boot();
    let facts = Facts {
        candidates: {
            let needed = usize::from(volume.config.copies_min);
            leader.servers.lock().candidates(needed, now)
        },
        room: None,
        disk_low: false,
        seed: rand::random(),
    };
    let incarnation = leader.term;
    let op = Op::from(ops::CreateChunk {
        kind: ChunkKind::Stream,
        incarnation,
        replicas: admission::choose(&volume, &facts, &[]),
    });
    match leader.propose(op).await? {
        Outcome::Chunk(chunk, record) => Ok(OpenChunk {
            chunk,
            generation: record.generation,
            replicas: record.replicas,
            incarnation,
            offset: 0,
            capacity: record.capacity,
            used: Instant::now(),
        }),
        Outcome::Refused(error) => Err(MoveError::NoChunk(error)),
        _ => Err(MoveError::NoChunk(FsError::Io)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: u32, length: u32, place: Place) -> Piece {
        Piece { start, length, place, birth: 1, shared: false }
    }

    #[test]
    fn adjacent_pieces_become_one_run() {
        let inline = |id| Place::Inline { id, skip: 0 };
        let chunk = Place::Chunk { chunk: ChunkId(3), offset: 0 };
        let pieces = [
            piece(0, 10, inline(1)),
            piece(10, 5, inline(2)),
            piece(15, 5, chunk),
            piece(20, 5, inline(3)),
            piece(30, 5, inline(4)),
        ];
        let found = runs(InodeId(1), SegmentIndex(0), &pieces, |p| matches!(p.place, Place::Inline { .. }));
        let starts: Vec<Vec<u32>> =
            found.iter().map(|run| run.pieces.iter().map(|p| p.start).collect()).collect();
        assert_eq!(starts, [vec![0, 10], vec![20], vec![30]]);
        assert_eq!(found[0].bytes(), 15);
        let all = runs(InodeId(1), SegmentIndex(0), &pieces, |_| true);
        assert_eq!(all.len(), 2, "a hole ends a run");
    }
}
