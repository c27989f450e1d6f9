//! openraft's requests to other members, over the transport that was brought.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use futures::{StreamExt, TryStreamExt, stream};
use openraft::alias::SnapshotOf;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RPCTypes};
use serde::de::DeserializeOwned;

use crate::group::{Group, GroupLogId, GroupVote, encode_stored_membership, to_log_entry};
use crate::snapshot::{CHUNK_BYTES, Checkpoint, SnapshotData};
use crate::types::{LogPosition, MemberId, PeerTransport};
use crate::vote::VoteRecord;
use crate::wire::{self, kind};

/// Chunks of a snapshot on their way to one member: a bound on memory, times [`CHUNK_BYTES`].
const CHUNKS_IN_FLIGHT_MAX: usize = 4;
/// A chunk that isn't answered within this time ends the attempt.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Installing a snapshot may take this long.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Makes clients to the other members.
pub(crate) struct Network {
    pub(crate) member: MemberId,
    pub(crate) transport: Arc<dyn PeerTransport>,
    /// An append with entries waits for the other member's disk: it has this long, however short
    /// the interval of heartbeats is.
    pub(crate) append_timeout: Duration,
}

impl RaftNetworkFactory<Group> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: MemberId, node: &BasicNode) -> Peer {
        Peer {
            member: self.member,
            target,
            addr: node.addr.clone(),
            transport: self.transport.clone(),
            append_timeout: self.append_timeout,
        }
    }
}

/// One other member.
pub(crate) struct Peer {
    member: MemberId,
    target: MemberId,
    addr: String,
    transport: Arc<dyn PeerTransport>,
    append_timeout: Duration,
}

impl Peer {
    async fn call<T: DeserializeOwned>(
        &self,
        action: RPCTypes,
        kind: u16,
        request: Bytes,
        timeout: Duration,
    ) -> Result<T, RPCError<Group>> {
        let call = self.transport.call(self.target, &self.addr, kind, request);
        let answer = match tokio::time::timeout(timeout, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Unreachable::new(&error).into()),
            Err(_) => {
                return Err(Timeout { action, id: self.member, target: self.target, timeout }.into());
            }
        };
        // A refusal is for a reason that passes with time: asking again at once is no use.
        wire::open_answer(&answer).map_err(|reason| Unreachable::from_string(reason).into())
    }

    async fn ask_vote(
        &self,
        kind: u16,
        request: VoteRequest<Group>,
        option: RPCOption,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        let body = wire::VoteRequest {
            vote: VoteRecord::from(&request.vote),
            last: request.last_log_id.map(LogPosition::from),
            leadership_transfer: request.leadership_transfer,
        };
        let bytes = wire::request(self.target, &body);
        let answer: wire::VoteAnswer = self.call(RPCTypes::Vote, kind, bytes, option.hard_ttl()).await?;
        Ok(VoteResponse {
            vote: GroupVote::from(answer.vote),
            vote_granted: answer.granted,
            last_log_id: answer.last.map(GroupLogId::from),
        })
    }

    async fn send_snapshot(
        &self,
        vote: GroupVote,
        snapshot: SnapshotOf<Group, SnapshotData>,
    ) -> Result<SnapshotResponse<Group>, RPCError<Group>> {
        let SnapshotData::Checkpoint(checkpoint, _hold) = &snapshot.snapshot else {
            return Err(NetworkError::from_string("this snapshot has no files").into());
        };
        // Unique among the transfers that a member may hear of.
        let id = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), self.member);
        let vote = VoteRecord::from(&vote);
        let action = RPCTypes::InstallSnapshot;
        let begin = wire::SnapshotBegin { id, term: vote.term, files: checkpoint.files.clone() };
        let bytes = wire::request(self.target, &begin);
        let () = self.call(action, kind::SNAPSHOT_BEGIN, bytes, CHUNK_TIMEOUT).await?;

        let sizes: Vec<u64> = checkpoint.files.iter().map(|(_, bytes)| *bytes).collect();
        let chunks = sizes.into_iter().enumerate().flat_map(|(file, bytes)| {
            (0..bytes.div_ceil(CHUNK_BYTES as u64)).map(move |chunk| {
                let offset = chunk * CHUNK_BYTES as u64;
                (file, offset, (bytes - offset).min(CHUNK_BYTES as u64) as usize)
            })
        });
        let sends = chunks.map(|(file, offset, len)| {
            let checkpoint = checkpoint.clone();
            self.send_chunk(checkpoint, id, file, offset, len)
        });
        stream::iter(sends).buffer_unordered(CHUNKS_IN_FLIGHT_MAX).try_collect::<()>().await?;

        let end = wire::SnapshotEnd {
            id,
            vote,
            position: snapshot.meta.last_log_id.map(LogPosition::from),
            membership: encode_stored_membership(&snapshot.meta.last_membership),
        };
        let bytes = wire::request(self.target, &end);
        let vote: VoteRecord = self.call(action, kind::SNAPSHOT_END, bytes, INSTALL_TIMEOUT).await?;
        Ok(SnapshotResponse::new(vote.into()))
    }

    async fn send_chunk(
        &self,
        checkpoint: Arc<Checkpoint>,
        id: u64,
        file: usize,
        offset: u64,
        len: usize,
    ) -> Result<(), RPCError<Group>> {
        let bytes = atoll_blocking::spawn(move || checkpoint.read(file, offset, len))
            .await
            .map_err(|e| NetworkError::new(&e))?
            .map_err(|e| NetworkError::new(&e))?;
        let chunk = wire::SnapshotChunk { id, file: file as u32, offset, bytes: bytes.into() };
        let request = chunk.encode(self.target);
        self.call(RPCTypes::InstallSnapshot, kind::SNAPSHOT_CHUNK, request, CHUNK_TIMEOUT).await
    }
}

impl RaftNetworkV2<Group> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Group>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Group>, RPCError<Group>> {
        let timeout = if request.entries.is_empty() { option.hard_ttl() } else { self.append_timeout };
        let request = wire::AppendRequest {
            vote: VoteRecord::from(&request.vote),
            previous: request.prev_log_id.map(LogPosition::from),
            committed: request.leader_commit.map(LogPosition::from),
            entries: request.entries.into_iter().map(to_log_entry).collect(),
        };
        let bytes = request.encode(self.target);
        let answer = self.call(RPCTypes::AppendEntries, kind::APPEND, bytes, timeout).await?;
        Ok(match answer {
            wire::AppendAnswer::Success => AppendEntriesResponse::Success,
            wire::AppendAnswer::Partial(upto) => {
                AppendEntriesResponse::PartialSuccess(upto.map(GroupLogId::from))
            }
            wire::AppendAnswer::Conflict => AppendEntriesResponse::Conflict,
            wire::AppendAnswer::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Group>,
        option: RPCOption,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        self.ask_vote(kind::VOTE, request, option).await
    }

    // Without this a pre-vote would count as granted.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<Group>,
        option: RPCOption,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        self.ask_vote(kind::PRE_VOTE, request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: GroupVote,
        snapshot: SnapshotOf<Group, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Group>, StreamingError<Group>> {
        let send = std::pin::pin!(self.send_snapshot(vote, snapshot));
        let cancel = std::pin::pin!(cancel);
        match select(send, cancel).await {
            Either::Left((result, _)) => Ok(result?),
            Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Group>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Group>, RPCError<Group>> {
        let body = wire::TransferRequest {
            leader: VoteRecord::from(request.from_leader()),
            to: *request.to_node_id(),
            last: request.last_log_id().copied().map(LogPosition::from),
        };
        let bytes = wire::request(self.target, &body);
        let () = self.call(RPCTypes::TransferLeader, kind::TRANSFER_LEADER, bytes, option.hard_ttl()).await?;
        Ok(Ok(()))
    }
}
