//! Requests from other members.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::async_runtime::Instant;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use parking_lot::Mutex;

use crate::clock::BootInstant;
use crate::error::PeerError;
use crate::flush::Flushing;
use crate::group::{Group, GroupLogId, GroupVote, Raft, decode_stored_membership, from_log_entry};
use crate::log_store::LogStore;
use crate::pulse::Pulse;
use crate::snapshot::{INCOMING_KEPT, Incoming, SnapshotData};
use crate::types::{LogPosition, MemberId};
use crate::vote::VoteRecord;
use crate::wire::{self, Malformed, kind};

/// Why a request was not carried out; the sender tries again later.
enum Refused {
    Malformed,
    Because(String),
}

impl From<Malformed> for Refused {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

fn because(error: impl std::fmt::Display) -> Refused {
    Refused::Because(error.to_string())
}

/// Answers the other members.
pub(crate) struct PeerService {
    pub(crate) member: MemberId,
    pub(crate) dir: PathBuf,
    pub(crate) raft: Raft,
    pub(crate) store: Arc<LogStore>,
    pub(crate) flushing: Arc<Flushing>,
    /// Until then this member takes part in no election: before it was restarted it may have
    /// promised a leader not to.
    pub(crate) quiet_until: BootInstant,
    pub(crate) receiving: Arc<Receiving>,
    pub(crate) pulse: Arc<Pulse>,
}

/// The snapshot that is being received.
#[derive(Debug, Default)]
pub(crate) struct Receiving {
    current: Mutex<Option<Arc<Incoming>>>,
    /// Something came last at this instant; `None`: never.
    last: Mutex<Option<BootInstant>>,
    /// Held while a transfer begins or what is left of one is removed.
    changing: tokio::sync::Mutex<()>,
}

impl Receiving {
    /// Removes what a broken transfer has left, once nobody has gone on with it for long; until the node stops.
    pub(crate) fn start_cleaning(self: &Arc<Self>, dir: PathBuf) {
        *self.last.lock() = Some(BootInstant::now());
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(INCOMING_KEPT / 4).await;
                let Some(this) = this.upgrade() else { return };
                let _changing = this.changing.lock().await;
                if this.last.lock().is_some_and(|last| last.elapsed() < INCOMING_KEPT) {
                    continue;
                }
                let current = this.current.lock().take();
                let dir = dir.clone();
                let removed = atoll_blocking::spawn(move || {
                    if let Some(current) = current {
                        current.close();
                    }
                    if !Incoming::is_left(&dir) {
                        return Ok(());
                    }
                    tracing::info!(
                        "an unfinished snapshot was not continued by its sender; the received part is \
                         removed"
                    );
                    Incoming::remove_left(&dir)
                });
                if let Ok(Err(error)) = removed.await {
                    tracing::warn!("can't remove the received part of an unfinished snapshot: {error}");
                }
            }
        });
    }

    /// Takes nothing more. What is returned is to be closed: something may still be written to it.
    pub(crate) fn stop(&self) -> Option<Arc<Incoming>> {
        self.current.lock().take()
    }

    fn touch(&self) {
        *self.last.lock() = Some(BootInstant::now());
    }
}

impl PeerService {
    /// Carries out a request and returns the answer, which may be a refusal.
    pub(crate) async fn handle(&self, request_kind: u16, payload: Bytes) -> Result<Bytes, PeerError> {
        let answer = match wire::open_request(payload) {
            Ok((to, _)) if to != self.member => {
                Err(Refused::Because(format!("this is member {}, the request was for {to}", self.member)))
            }
            Ok((_, body)) => self.carry_out(request_kind, body).await,
            Err(Malformed) => Err(Refused::Malformed),
        };
        match answer {
            Ok(answer) => Ok(answer),
            Err(Refused::Because(reason)) => Ok(wire::refusal(&reason)),
            Err(Refused::Malformed) => Err(PeerError::Malformed { kind: request_kind }),
        }
    }

    async fn carry_out(&self, request_kind: u16, body: Bytes) -> Result<Bytes, Refused> {
        match request_kind {
            kind::VOTE | kind::PRE_VOTE => self.vote(request_kind, wire::body(&body)?).await,
            kind::APPEND => self.append(wire::AppendRequest::decode(body)?).await,
            kind::TRANSFER_LEADER => self.transfer_leader(wire::body(&body)?).await,
            kind::SNAPSHOT_BEGIN => self.snapshot_begin(wire::body(&body)?).await,
            kind::SNAPSHOT_CHUNK => self.snapshot_chunk(wire::SnapshotChunk::decode(body)?).await,
            kind::SNAPSHOT_END => self.snapshot_end(wire::body(&body)?).await,
            kind::THERE => Ok(wire::answer(&())),
            _ => Err(Refused::Malformed),
        }
    }

    async fn vote(&self, request_kind: u16, request: wire::VoteRequest) -> Result<Bytes, Refused> {
        if BootInstant::now() < self.quiet_until {
            return Err(Refused::Because(
                "restarted a moment ago; doesn't take part in elections yet".into(),
            ));
        }
        let request = VoteRequest::<Group> {
            vote: request.vote.into(),
            last_log_id: request.last.map(GroupLogId::from),
            leadership_transfer: request.leadership_transfer,
        };
        let answer = if request_kind == kind::VOTE {
            self.raft.vote(request).await
        } else {
            self.raft.pre_vote(request).await
        };
        let answer = answer.map_err(because)?;
        Ok(wire::answer(&wire::VoteAnswer {
            vote: VoteRecord::from(&answer.vote),
            granted: answer.vote_granted,
            last: answer.last_log_id.map(LogPosition::from),
        }))
    }

    async fn append(&self, request: wire::AppendRequest) -> Result<Bytes, Refused> {
        if !request.entries.is_empty() {
            if let Some(why) = self.store.refusal() {
                return Err(because(why));
            }
            self.flushing.admit().await.map_err(because)?;
        }
        let max = self.store.payload_bytes_max();
        if let Some(giant) = request.entries.iter().find(|e| e.payload.len() > max) {
            // Appending it would stop this member; refusing leaves it lagging, and says why.
            return Err(Refused::Because(format!(
                "entry {} has {} bytes, and this member's log takes at most {max}: its segments are too \
                 small",
                giant.position,
                giant.payload.len()
            )));
        }
        let entries: Result<Vec<_>, _> = request.entries.into_iter().map(from_log_entry).collect();
        let request = AppendEntriesRequest::<Group> {
            vote: request.vote.into(),
            prev_log_id: request.previous.map(GroupLogId::from),
            leader_commit: request.committed.map(GroupLogId::from),
            entries: entries.map_err(because)?,
        };
        let answer = self.raft.append_entries(request).await.map_err(because)?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.pulse.heard();
        }
        Ok(wire::answer(&match answer {
            AppendEntriesResponse::Success => wire::AppendAnswer::Success,
            AppendEntriesResponse::PartialSuccess(upto) => {
                wire::AppendAnswer::Partial(upto.map(LogPosition::from))
            }
            AppendEntriesResponse::Conflict => wire::AppendAnswer::Conflict,
            AppendEntriesResponse::HigherVote(vote) => {
                wire::AppendAnswer::HigherVote(VoteRecord::from(&vote))
            }
        }))
    }

    async fn transfer_leader(&self, request: wire::TransferRequest) -> Result<Bytes, Refused> {
        let request = TransferLeaderRequest::<Group>::new(
            GroupVote::from(request.leader),
            request.to,
            request.last.map(GroupLogId::from),
        );
        self.raft.handle_transfer_leader(request).await.map_err(because)?.map_err(because)?;
        Ok(wire::answer(&()))
    }

    async fn snapshot_begin(&self, request: wire::SnapshotBegin) -> Result<Bytes, Refused> {
        let receiving = &self.receiving;
        let _changing = receiving.changing.lock().await;
        let replaced = {
            let mut current = receiving.current.lock();
            if current.as_ref().is_some_and(|i| i.term > request.term) {
                return Err(Refused::Because("a newer leader is sending a snapshot".into()));
            }
            current.take()
        };
        receiving.touch();
        let dir = self.dir.clone();
        let begun = atoll_blocking::spawn(move || {
            if let Some(replaced) = replaced {
                // What it has written stays, and counts if it fits.
                replaced.close();
            }
            Incoming::begin(&dir, request.id, request.term, &request.files)
        });
        let (incoming, fingerprints) = begun.await.map_err(because)?.map_err(because)?;
        *receiving.current.lock() = Some(Arc::new(incoming));
        receiving.touch();
        Ok(wire::answer(&wire::SnapshotThere { fingerprints }))
    }

    fn incoming(&self, id: u64) -> Result<Arc<Incoming>, Refused> {
        let incoming = self.receiving.current.lock();
        let incoming = incoming.as_ref().filter(|incoming| incoming.id == id);
        incoming.cloned().ok_or_else(|| Refused::Because("no such snapshot is being received".into()))
    }

    async fn snapshot_chunk(&self, chunk: wire::SnapshotChunk) -> Result<Bytes, Refused> {
        let incoming = self.incoming(chunk.id)?;
        atoll_blocking::spawn(move || incoming.write(chunk.file as usize, chunk.offset, &chunk.bytes))
            .await
            .map_err(because)?
            .map_err(because)?;
        self.receiving.touch();
        Ok(wire::answer(&()))
    }

    async fn snapshot_end(&self, request: wire::SnapshotEnd) -> Result<Bytes, Refused> {
        let dir = {
            let _changing = self.receiving.changing.lock().await;
            let incoming = self.incoming(request.id)?;
            self.receiving.current.lock().take();
            atoll_blocking::spawn(move || incoming.finish()).await.map_err(because)?.map_err(because)?
        };
        let last_membership = decode_stored_membership(Some(&request.membership)).map_err(because)?;
        let snapshot = SnapshotOf::<Group, SnapshotData> {
            meta: SnapshotMetaOf::<Group> {
                last_log_id: request.position.map(GroupLogId::from),
                last_membership,
            },
            snapshot: SnapshotData::Received(dir),
        };
        let answer = self
            .raft
            .install_full_snapshot(GroupVote::from(request.vote), snapshot)
            .await
            .map_err(because)?;
        Ok(wire::answer(&VoteRecord::from(&answer.vote)))
    }
}
