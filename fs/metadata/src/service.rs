//! What other processes ask of a metadata server. Each kind of message has its place below; this is the table.

mod ask;
mod bootstrap;
mod feature_level;
pub(crate) mod fsck;
mod fsck_orphans;
mod fsck_replicas;
mod journal;
mod locks;
mod members;
mod mutate;
mod resize;
mod servers;
mod session;
mod status;
mod storage;

use std::sync::Arc;
use std::time::Instant;

use atoll_core::encode::USUAL_BYTES;
use atoll_core::ids::{ServerId, SessionId};
use atoll_proto::admin::{
    ChangeMembers, ChangeServer, RaiseFeatureLevel, ResizeVolume, TransferLeader, WhoRequest,
};
use atoll_proto::fsck::FsckRequest;
use atoll_proto::metadata::{MetadataError, ReclaimRequest, SessionHeartbeat, kind};
use atoll_proto::registration::{Heartbeat, Register};
use atoll_proto::{Body, Handler, PeerInfo, Request, Response, Role, Rpc, Status, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::node::Node;
use crate::reads::Lane;
use crate::rejoin::asks_for_itself;

/// Answers requests.
pub struct Service {
    node: Arc<Node>,
}

impl Service {
    /// For this server.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Service {
        Service { node }
    }

    async fn answer(&self, peer: &PeerInfo, request: Request) -> Result<Response, Status> {
        let node = &self.node;
        let role = peer.remote.role;
        node.refuse_below_level(&peer.remote)?;
        if request.kind != kind::RAFT {
            let by_heartbeat = is_heartbeat(request.kind);
            if !by_heartbeat {
                node.note_asked();
            }
            if node.consensus.is_asked(by_heartbeat) {
                node.consensus.renew_lease().await;
            }
        }
        match request.kind {
            kind::MUTATE => reply(node.mutate(decode(&request)?).await),
            kind::ASK => reply(node.ask(decode(&request)?).await),
            kind::SESSION_HEARTBEAT => {
                let heartbeat: SessionHeartbeat = decode(&request)?;
                let answer = node.session_heartbeat(&heartbeat);
                self.knows(heartbeat.session, peer);
                reply(answer)
            }
            kind::RECLAIM => {
                let told: ReclaimRequest = decode(&request)?;
                let answer = node.reclaim(&told).await;
                self.knows(told.session, peer);
                reply(answer)
            }
            kind::JOURNAL => reply(node.journal(decode(&request)?).await),
            kind::CLOSE => reply(node.close(&decode(&request)?)),
            kind::BOOTSTRAP => {
                allow(matches!(role, Role::Admin), role)?;
                reply(node.bootstrap(decode(&request)?).await)
            }
            kind::STATUS => {
                let asked = node.clone();
                let status = node.reads.run(Lane::Background, move || asked.status()).await;
                reply(status.and_then(|status| status))
            }
            WhoRequest::KIND => reply(Ok(node.who())),
            ChangeMembers::KIND => {
                let change: ChangeMembers = decode(&request)?;
                allow(matches!(role, Role::Admin) || asks_for_itself(role, &change.change), role)?;
                reply(node.change_members(change).await)
            }
            ChangeServer::KIND => {
                allow(matches!(role, Role::Admin), role)?;
                reply(node.change_server(decode(&request)?).await)
            }
            ResizeVolume::KIND => {
                allow(matches!(role, Role::Admin), role)?;
                reply(node.resize_volume(decode(&request)?).await)
            }
            RaiseFeatureLevel::KIND => {
                allow(matches!(role, Role::Admin), role)?;
                reply(node.raise_feature_level(decode(&request)?).await)
            }
            TransferLeader::KIND => {
                allow(matches!(role, Role::Admin), role)?;
                reply(node.transfer_leadership(decode(&request)?).await)
            }
            FsckRequest::KIND => {
                allow(matches!(role, Role::Admin), role)?;
                reply(fsck::answer(node, decode(&request)?))
            }
            kind::RAFT => {
                allow(matches!(role, Role::Metadata(_)), role)?;
                let kind: u16 = decode(&request)?;
                match node.consensus.handle_peer(kind, request.body).await {
                    Ok(payload) => Ok(Response { meta: Default::default(), body: Body::from(payload) }),
                    Err(error) => Err(Status::bad_request(error.to_string())),
                }
            }
            Register::KIND => {
                let register = request.decode::<Register>()?;
                allow(role == Role::Storage(register.server), role)?;
                let server = register.server;
                let answer = node.register(register).await?;
                self.came_over(server, peer);
                Response::to::<Register>(&answer, ())
            }
            Heartbeat::KIND => {
                let heartbeat = request.decode::<Heartbeat>()?;
                allow(role == Role::Storage(heartbeat.server), role)?;
                let server = heartbeat.server;
                let answer = node.storage_heartbeat(heartbeat).await?;
                self.came_over(server, peer);
                Response::to::<Heartbeat>(&answer, ())
            }
            other => Err(Status::unknown_kind(other)),
        }
    }

    /// What a storage server said came over this connection.
    fn came_over(&self, server: ServerId, peer: &PeerInfo) {
        if let Some(leader) = self.node.leading() {
            leader.servers.lock().came_over(server, peer.connection, peer.remote.feature_level);
        }
    }

    /// What a session said came from a client that knows its peer's feature level.
    fn knows(&self, session: SessionId, peer: &PeerInfo) {
        if let Some(leader) = self.node.leading() {
            leader.sessions.lock().knows(session, peer.remote.feature_level);
        }
    }
}

impl Handler for Service {
    async fn handle(&self, peer: &PeerInfo, request: Request) -> Result<Response, Status> {
        let started = Instant::now();
        let name = name_of(request.kind);
        let result = self.answer(peer, request).await;
        self.node.metrics.request(name, started.elapsed(), result.is_err());
        result
    }

    fn disconnected(&self, peer: &PeerInfo) {
        if let Role::Storage(server) = peer.remote.role
            && let Some(leader) = self.node.leading()
        {
            leader.servers.lock().parted(server, peer.connection);
        }
    }
}

/// Requests that come whether there is anything to ask or not.
fn is_heartbeat(kind: u16) -> bool {
    matches!(kind, kind::SESSION_HEARTBEAT | Heartbeat::KIND)
}

fn name_of(kind: u16) -> &'static str {
    match kind {
        kind::MUTATE => "mutate",
        kind::ASK => "ask",
        kind::SESSION_HEARTBEAT => "session_heartbeat",
        kind::RECLAIM => "reclaim",
        kind::CLOSE => "close",
        kind::JOURNAL => "journal",
        kind::BOOTSTRAP => "bootstrap",
        kind::STATUS => "status",
        WhoRequest::KIND => "who",
        ChangeMembers::KIND => "change_members",
        TransferLeader::KIND => "transfer_leader",
        ChangeServer::KIND => "change_server",
        ResizeVolume::KIND => "resize_volume",
        RaiseFeatureLevel::KIND => "raise_feature_level",
        FsckRequest::KIND => "fsck",
        kind::RAFT => "raft",
        Register::KIND => "register",
        Heartbeat::KIND => "storage_heartbeat",
        _ => "unknown",
    }
}

fn allow(allowed: bool, role: Role) -> Result<(), Status> {
    if allowed {
        Ok(())
    } else {
        Err(Status::new(StatusCode::Forbidden, format!("{role} isn't allowed to send this request")))
    }
}

fn decode<T: DeserializeOwned>(request: &Request) -> Result<T, Status> {
    postcard::from_bytes(&request.meta).map_err(|error| {
        Status::bad_request(format!("message {:#06x} can't be decoded: {error}", request.kind))
    })
}

fn reply<T: Serialize>(result: Result<T, MetadataError>) -> Result<Response, Status> {
    let value = result.map_err(|error| Status::service(&error))?;
    let meta = postcard::to_extend(&value, Vec::with_capacity(USUAL_BYTES))
        .map_err(|error| Status::internal(format!("the reply can't be encoded: {error}")))?;
    Ok(Response { meta: meta.into(), body: Body::Empty })
}
