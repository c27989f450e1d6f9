//! The way to the other members of the group: one connection to each.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use atoll_core::ids::MemberId;
use atoll_proto::admin::{MemberIdentity, WhoRequest};
use atoll_proto::metadata::kind;
use atoll_proto::{Address, ConnectOptions, Identity, Peer, Role};
use atoll_raft::PeerTransport;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::lock::Mutex;

/// The longest that a request may take; Raft gives up earlier itself.
const PEER_DEADLINE: Duration = Duration::from_secs(660);
/// How long a member may take to say how it is.
const WHO_TIMEOUT: Duration = Duration::from_secs(1);

/// The way to the other members: one connection each.
pub(crate) struct Members {
    identity: Identity,
    peers: Mutex<HashMap<u64, (String, Peer)>>,
}

impl Members {
    /// How this member introduces itself to the others.
    pub(crate) fn new(identity: Identity) -> Members {
        Members { identity, peers: Mutex::default() }
    }

    /// Asks a member how it is; `None` if it doesn't say so in time.
    pub(crate) async fn who(&self, member: MemberId, address: &str) -> Option<MemberIdentity> {
        let peer = self.peer(member.0, address).ok()?;
        let asked = async { peer.connection().await.ok()?.call::<WhoRequest>(&WhoRequest, ()).await.ok() };
        tokio::time::timeout(WHO_TIMEOUT, asked).await.ok().flatten().map(|(who, _)| who)
    }

    /// The highest feature level that a member knows; 0: there is no connection to it.
    pub(crate) fn feature_level(&self, member: MemberId) -> u32 {
        let peer = self.peers.lock().get(&member.0).map(|(_, peer)| peer.clone());
        peer.and_then(|peer| peer.connected()).map_or(0, |connection| connection.remote().feature_level)
    }

    fn peer(&self, member: u64, address: &str) -> io::Result<Peer> {
        let mut peers = self.peers.lock();
        if let Some((known, peer)) = peers.get(&member)
            && known == address
        {
            return Ok(peer.clone());
        }
        let parsed: Address = address.parse().map_err(io::Error::other)?;
        let options = ConnectOptions::new(self.identity.clone()).expecting(Role::Metadata(MemberId(member)));
        let peer = Peer::new(parsed, options);
        peers.insert(member, (address.to_owned(), peer.clone()));
        Ok(peer)
    }
}

impl PeerTransport for Members {
    fn call<'a>(
        &'a self,
        to: u64,
        addr: &'a str,
        kind: u16,
        payload: Bytes,
    ) -> BoxFuture<'a, io::Result<Bytes>> {
        async move {
            let connection = self.peer(to, addr)?.connection().await.map_err(io::Error::other)?;
            let meta = postcard::to_stdvec(&kind).map_err(io::Error::other)?;
            let reply = connection
                .call_raw(kind::RAFT, meta.into(), payload, PEER_DEADLINE)
                .await
                .map_err(io::Error::other)?;
            Ok(reply.body)
        }
        .boxed()
    }
}
