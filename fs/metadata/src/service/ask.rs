//! Questions, answered from the records. Whether this member still led is asked after the answer was built.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::error::FsError;
use atoll_core::ids::{ChunkId, InodeId, SegmentIndex, SessionId};
use atoll_core::query::{self, OpError, OpResult};
use atoll_core::records::{Piece, Place};
use atoll_core::store::{Read, StoreError};
use atoll_proto::metadata::{
    Answer, AskRequest, ChunkInfo, FileExtents, MappedPiece, MetadataError, PieceData, Query, ServerInfo,
};
use atoll_proto::queries;
use atoll_proto::queries::{Answers, Question};

use crate::changes::Work;
use crate::clock;
use crate::leader::Leader;
use crate::node::{Node, query_error, store_error};
use crate::reads::Lane;
use crate::servers::Health;
use crate::service::journal;
use crate::sessions::OpenError;

/// Bytes of inline data in one answer; the rest is asked for again.
const ANSWER_INLINE_BYTES_MAX: usize = 1 << 20;
/// Pieces in one answer.
const ANSWER_PIECES_MAX: usize = 8192;
/// Segments in one answer.
const ANSWER_SEGMENTS_MAX: u32 = 4096;
/// Bytes of one answer about a directory.
const DIRECTORY_BYTES_MAX: u32 = 1 << 20;
/// Chunks that one question may name.
const CHUNKS_MAX: usize = 8192;
/// How long a question about the volume's use waits for what was deleted before it. Large files take longer to be freed;
/// they count no more after the first step.
const FREEING_TIMEOUT: Duration = Duration::from_millis(300);
/// How often it looks.
const FREEING_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Segments, and chunks, that are looked up without going to another thread for it.
pub(super) const SEGMENTS_HERE_MAX: u32 = 8;
const CHUNKS_HERE_MAX: usize = 64;

impl Node {
    /// Answers a question.
    pub(crate) async fn ask(self: &Arc<Self>, request: AskRequest) -> Result<Answer, MetadataError> {
        match request.query {
            Query::AwaitLocks(queries::AwaitLocks { waits }) => {
                self.await_locks(request.session, &waits).await
            }
            Query::Open(queries::Open { ino, .. }) => {
                if let Some(leader) = self.leading() {
                    leader.until_unlinked(ino).await;
                }
                self.ask_now(request).await
            }
            Query::ChangeLocks(asked) => self.change_locks(request.session, &asked).await,
            Query::AdoptSession(_) => self.adopt_session(request.session).await.map(Answers::into_answer),
            Query::GetLk(asked) => self.test_lock(request.session, &asked.0).await.map(Answers::into_answer),
            Query::StatFs(_) => {
                self.deleted_is_freed().await;
                self.ask_now(request).await
            }
            _ => self.ask_now(request).await,
        }
    }

    /// What was deleted stops counting when who frees it first looks at it, some milliseconds later. Who asks for the
    /// volume's use has it as of now.
    async fn deleted_is_freed(&self) {
        let give_up = clock::since_boot() + FREEING_TIMEOUT;
        let is_pending = |leader: Arc<Leader>| leader.changes.is_pending(Work::Orphans);
        while self.leading().is_some_and(is_pending) && clock::since_boot() < give_up {
            tokio::time::sleep(FREEING_POLL_INTERVAL).await;
        }
    }

    async fn ask_now(self: &Arc<Self>, request: AskRequest) -> Result<Answer, MetadataError> {
        let leader = self.lead()?;
        let anybody = matches!(request.query, Query::StatFs(_) | Query::Servers(_) | Query::Chunks(_));
        if !(anybody && request.session == SessionId(0)) {
            let heard = leader.sessions.lock().heard(request.session, clock::since_boot());
            heard.map_err(|_| MetadataError::Fs(FsError::SessionExpired))?;
        }
        let AskRequest { session, query } = request;
        let answer = if may_take_long(&query) {
            let (node, leader) = (self.clone(), leader.clone());
            self.reads.run(Lane::Request, move || node.answer(&leader, session, query)).await??
        } else {
            self.answer(&leader, session, query)?
        };
        leader.confirm()?;
        Ok(answer)
    }

    fn answer(&self, leader: &Leader, session: SessionId, query: Query) -> Result<Answer, MetadataError> {
        let store = self.machine.store();
        let records = store.snapshot();
        let answer = match query {
            Query::Lookup(asked) => {
                let found = query::superblock(&records)
                    .and_then(|volume| query::lookup(&records, volume.hash_key, asked.parent, &asked.name));
                answered(&asked, found)
            }
            Query::GetAttr(asked) => {
                let record = query::inode(&records, asked.ino);
                answered(&asked, record.map(|record| record.attributes(asked.ino)))
            }
            Query::ReadLink(asked) => answered(&asked, query::link_target(&records, asked.ino)),
            Query::ReadDir(asked) => {
                let bytes_max = asked.bytes_max.min(DIRECTORY_BYTES_MAX);
                let page = query::directory_page(&records, asked.ino, asked.cookie, asked.plus, bytes_max);
                answered(&asked, page)
            }
            Query::Open(asked) => {
                let queries::Open { ino, segments } = asked;
                let is_new = self.hold(leader, &records, session, ino)?;
                // Read after it was registered: what is unlinked from now on is kept.
                let records = store.snapshot();
                let found = extents(&records, ino, SegmentIndex(0), segments);
                // What the session has opened before it goes on holding.
                if found.is_err() && is_new {
                    self.let_go_of(leader, session, &[ino]);
                }
                answered(&asked, found)
            }
            Query::Extents(asked) => {
                answered(&asked, extents(&records, asked.ino, asked.first, asked.segments))
            }
            Query::GetXattr(asked) => answered(&asked, query::xattr(&records, asked.ino, &asked.name)),
            Query::ListXattr(asked) => answered(&asked, query::xattr_names(&records, asked.ino)),
            Query::StatFs(asked) => {
                answered(&asked, query::superblock(&records).map(|volume| volume.volume_use()))
            }
            Query::Chunks(asked) => {
                let chunks = asked.chunks.iter().copied().take(CHUNKS_MAX).collect();
                answered(&asked, chunk_infos(&records, chunks).map_err(OpError::Store))
            }
            Query::Servers(asked) => answered(&asked, Ok(server_infos(leader))),
            Query::Journal(asked) => answered(&asked, journal::state(&records, session)),
            Query::Records(asked) => answered(&asked, journal::records(&records, &asked)),
            Query::Lseek(asked) => {
                let found = query::inode(&records, asked.ino).and_then(|record| {
                    Ok(atoll_core::seek::seek(&records, asked.ino, &record, asked.offset, asked.kind)?)
                });
                answered(&asked, found)
            }
            // Answered before: locks aren't in the records, nor what is open.
            Query::GetLk(_) | Query::AwaitLocks(_) | Query::ChangeLocks(_) | Query::AdoptSession(_) => {
                Err(FsError::Unsupported.into())
            }
        };
        answer.map_err(query_error)
    }

    /// Whether the session didn't hold it before.
    pub(super) fn hold(
        &self,
        leader: &Leader,
        records: &dyn Read,
        session: SessionId,
        ino: InodeId,
    ) -> Result<bool, HoldError> {
        let purging = query::is_purging(records, ino).map_err(|error| store_error(&error))?;
        if purging {
            return Err(OpenError::Going.into());
        }
        Ok(leader.sessions.lock().hold(session, ino)?)
    }
}

/// Why a session can't hold an inode.
#[derive(Debug, thiserror::Error)]
pub(super) enum HoldError {
    #[error(transparent)]
    Refused(#[from] OpenError),
    #[error(transparent)]
    Failed(#[from] MetadataError),
}

impl From<HoldError> for MetadataError {
    fn from(error: HoldError) -> MetadataError {
        match error {
            HoldError::Failed(error) => error,
            HoldError::Refused(refused) => MetadataError::Fs(match refused {
                OpenError::Unknown => FsError::SessionExpired,
                OpenError::TooMany | OpenError::Unlinking => FsError::TryAgain,
                OpenError::Going => FsError::Stale,
            }),
        }
    }
}

/// The answer to this question: of the kind that it has.
fn answered<Q: Question>(_question: &Q, result: OpResult<Q::Answer>) -> OpResult<Answer> {
    result.map(Answers::into_answer)
}

/// Whether answering this goes through more than a few records.
fn may_take_long(query: &Query) -> bool {
    match query {
        Query::ReadDir(_) | Query::Lseek(_) | Query::Records(_) => true,
        Query::Open(queries::Open { segments, .. }) | Query::Extents(queries::Extents { segments, .. }) => {
            *segments > SEGMENTS_HERE_MAX
        }
        Query::Chunks(asked) => asked.chunks.len() > CHUNKS_HERE_MAX,
        Query::Lookup(_)
        | Query::GetAttr(_)
        | Query::ReadLink(_)
        | Query::GetXattr(_)
        | Query::ListXattr(_)
        | Query::StatFs(_)
        | Query::Servers(_)
        | Query::GetLk(_)
        | Query::AwaitLocks(_)
        | Query::ChangeLocks(_)
        | Query::AdoptSession(_)
        | Query::Journal(_) => false,
    }
}

fn server_infos(leader: &Leader) -> Vec<ServerInfo> {
    let servers = leader.servers.lock();
    servers
        .all(clock::since_boot())
        .map(|(server, record, health, _, _)| ServerInfo {
            server,
            address: record.address.clone(),
            labels: record.labels.clone(),
            alive: health == Health::Alive,
        })
        .collect()
}

pub(super) fn extents(
    records: &dyn Read,
    ino: InodeId,
    first: SegmentIndex,
    segments: u32,
) -> OpResult<FileExtents> {
    let record = &query::inode(records, ino)?;
    let wanted = segments.min(ANSWER_SEGMENTS_MAX);
    let mut found = Vec::new();
    let mut chunks = BTreeSet::new();
    let (mut inline, mut pieces, mut covered) = (0, 0, wanted);
    for (segment, stored) in query::segments(records, ino, record, first, u64::from(wanted))? {
        let mapped = stored
            .iter()
            .map(|piece| map_piece(records, ino, segment, piece))
            .collect::<Result<Vec<_>, StoreError>>()?;
        pieces += mapped.len();
        for piece in &mapped {
            match &piece.data {
                PieceData::Inline(bytes) => inline += bytes.len(),
                PieceData::Chunk { chunk, .. } => {
                    chunks.insert(*chunk);
                }
                PieceData::Unwritten | PieceData::Lost => {}
            }
        }
        if !found.is_empty() && (inline > ANSWER_INLINE_BYTES_MAX || pieces > ANSWER_PIECES_MAX) {
            covered = (segment.0 - first.0) as u32;
            break;
        }
        found.push((segment, mapped));
    }
    let chunks = chunk_infos(records, chunks)?;
    Ok(FileExtents { attributes: record.attributes(ino), segments: found, covered, chunks })
}

fn map_piece(
    records: &dyn Read,
    ino: InodeId,
    segment: SegmentIndex,
    piece: &Piece,
) -> Result<MappedPiece, StoreError> {
    let data = match piece.place {
        Place::Inline { .. } => match query::inline_bytes(records, ino, segment, piece)? {
            Some(bytes) => PieceData::Inline(bytes),
            None => PieceData::Lost,
        },
        Place::Chunk { chunk, offset } => PieceData::Chunk { chunk, offset },
        Place::Unwritten => PieceData::Unwritten,
        Place::Lost => PieceData::Lost,
    };
    Ok(MappedPiece { start: piece.start, length: piece.length, data })
}

fn chunk_infos(records: &dyn Read, chunks: BTreeSet<ChunkId>) -> Result<Vec<ChunkInfo>, StoreError> {
    let mut infos = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        if let Some(record) = query::chunk(records, chunk)? {
            infos.push(ChunkInfo { chunk, generation: record.generation, replicas: record.replicas });
        }
    }
    Ok(infos)
}
