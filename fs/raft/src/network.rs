//! openraft's requests to other members, over the transport that was brought.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use atoll_blocking::Pace;
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
use crate::snapshot::{CHUNK_BYTES, Checkpoint, Sending, SendingOne, SnapshotData, Snapshots, fingerprint};
use crate::types::{LogPosition, MemberId, PeerTransport};
use crate::vote::VoteRecord;
use crate::wire::{self, kind};

/// Chunks of a snapshot on their way to one member: a bound on memory, times [`CHUNK_BYTES`].
const CHUNKS_IN_FLIGHT_MAX: usize = 4;
/// A chunk that isn't answered within this time ends the attempt.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// The other member may take this long to find out what it has of a snapshot.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a member may take to say that it is there, and how often it is asked.
const THERE_TIMEOUT: Duration = Duration::from_secs(3);
const THERE_PAUSE: Duration = Duration::from_millis(500);
/// Installing a snapshot may take this long.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Makes clients to the other members.
pub(crate) struct Network {
    pub(crate) member: MemberId,
    pub(crate) transport: Arc<dyn PeerTransport>,
    /// An append with entries waits for the other member's disk: it has this long, however short
    /// the interval of heartbeats is.
    pub(crate) append_timeout: Duration,
    pub(crate) snapshots: Arc<Snapshots>,
    /// Shared by all who send snapshots.
    pub(crate) pace: Arc<Pace>,
    pub(crate) sending: Arc<Sending>,
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
            snapshots: self.snapshots.clone(),
            pace: self.pace.clone(),
            sending: self.sending.clone(),
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
    snapshots: Arc<Snapshots>,
    pace: Arc<Pace>,
    sending: Arc<Sending>,
}

/// A chunk of a snapshot.
struct Chunk {
    file: usize,
    offset: u64,
    len: usize,
    /// Fingerprint of what the other member has there.
    there: Option<u64>,
}

fn chunks_of(files: &[(String, u64)], there: &[Vec<u64>]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (file, (_, bytes)) in files.iter().enumerate() {
        for number in 0..bytes.div_ceil(CHUNK_BYTES as u64) {
            let offset = number * CHUNK_BYTES as u64;
            let len = (bytes - offset).min(CHUNK_BYTES as u64) as usize;
            let there = there.get(file).and_then(|there| there.get(number as usize)).copied();
            chunks.push(Chunk { file, offset, len, there });
        }
    }
    chunks
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
        let progress = self.sending.begin(self.target, checkpoint.bytes());
        let begin = wire::SnapshotBegin { id, term: vote.term, files: checkpoint.files.clone() };
        let bytes = wire::request(self.target, &begin);
        let there: wire::SnapshotThere =
            self.call(action, kind::SNAPSHOT_BEGIN, bytes, BEGIN_TIMEOUT).await?;

        // Only now: a member that is away doesn't cost that much.
        if let Err(error) = checkpoint.verify(&self.pace).await {
            self.snapshots.give_up(checkpoint);
            return Err(NetworkError::new(&error).into());
        }
        checkpoint.touch();
        let chunks = chunks_of(&checkpoint.files, &there.fingerprints);
        let sends = chunks.into_iter().map(|chunk| self.send_chunk(checkpoint.clone(), id, chunk, &progress));
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

    /// Waits until the other member answers.
    async fn wait_until_there(&self) {
        let asks = wire::request(self.target, &());
        loop {
            let there = self.call::<()>(RPCTypes::InstallSnapshot, kind::THERE, asks.clone(), THERE_TIMEOUT);
            if there.await.is_ok() {
                return;
            }
            tokio::time::sleep(THERE_PAUSE).await;
        }
    }

    /// Sends a chunk, unless the other member has it.
    async fn send_chunk(
        &self,
        checkpoint: Arc<Checkpoint>,
        id: u64,
        chunk: Chunk,
        progress: &SendingOne,
    ) -> Result<(), RPCError<Group>> {
        let Chunk { file, offset, len, there } = chunk;
        let reads = checkpoint.clone();
        let read = move || {
            let bytes = reads.read(file, offset, len)?;
            let is_there = there.is_some_and(|there| there == fingerprint(&bytes));
            Ok((!is_there).then_some(bytes))
        };
        let bytes: io::Result<Option<Vec<u8>>> =
            atoll_blocking::spawn(read).await.map_err(|e| NetworkError::new(&e))?;
        if let Some(bytes) = bytes.map_err(|e| NetworkError::new(&e))? {
            self.pace.take(len as u64).await;
            let chunk = wire::SnapshotChunk { id, file: file as u32, offset, bytes: bytes.into() };
            let request = chunk.encode(self.target);
            let kind = kind::SNAPSHOT_CHUNK;
            let () = self.call(RPCTypes::InstallSnapshot, kind, request, CHUNK_TIMEOUT).await?;
        }
        checkpoint.touch();
        progress.done(len as u64);
        Ok(())
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
        let send = std::pin::pin!(async {
            let sent = self.send_snapshot(vote, snapshot).await;
            if sent.is_err() {
                // openraft would take another snapshot at once, and with it the log would be kept for a member that is
                // away, maybe for long.
                self.wait_until_there().await;
            }
            sent
        });
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
