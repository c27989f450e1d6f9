//! The way to a cluster's metadata servers, over the same protocol and with the same proof of the key as its mounts.

use std::time::Duration;

use atoll_core::ids::ClusterId;
use atoll_core::records::VolumeConfig;
use atoll_proto::admin::{ChangeMembers, MemberIdentity, MembersChange, ResizeVolume, WhoRequest};
use atoll_proto::client::{ConnectOptions, Connection};
use atoll_proto::handshake::{Encryption, Identity, Role};
use atoll_proto::metadata::{BootstrapRequest, MetadataError, StatusRequest};
use atoll_proto::rpc::Rpc;
use atoll_proto::transport::Address;
use atoll_proto::{ClusterKey, ConnectError, RpcError};

use crate::error::Error;
use crate::observe::MetadataFact;

/// How long a status may take: a reconcile waits for it.
const STATUS_DEADLINE: Duration = Duration::from_secs(4);
/// How long making a volume may take: an election is part of it.
const BOOTSTRAP_DEADLINE: Duration = Duration::from_secs(30);
/// How long a change of the group may take before it is asked for again: a joiner receives all records.
const CHANGE_DEADLINE: Duration = Duration::from_secs(30);
/// Servers that are asked in one attempt: those that there are, and leaders that they name.
const ASKED_MAX: usize = 8;

/// Who the operator is to a cluster.
#[derive(Clone, Debug)]
pub struct Access {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its key.
    pub key: ClusterKey,
    /// Whether it encrypts.
    pub encryption: Encryption,
}

/// Asks how the cluster is: the leader, if one of the servers is it.
pub async fn status(access: &Access, addresses: &[String]) -> MetadataFact {
    if addresses.is_empty() {
        return MetadataFact::NotAsked;
    }
    let mut reasons = Vec::new();
    let mut follower = None;
    for address in addresses.iter().take(ASKED_MAX) {
        match ask::<StatusRequest>(access, address, &StatusRequest, STATUS_DEADLINE).await {
            Ok(status) if status.is_leader => return MetadataFact::Answers(Box::new(status)),
            // One that waits to be added knows nothing.
            Ok(status) if status.cluster.is_none() && follower.is_some() => {}
            Ok(status) => follower = Some(status),
            Err(why) => reasons.push(why.to_string()),
        }
    }
    match follower {
        Some(status) => MetadataFact::Answers(Box::new(status)),
        None => MetadataFact::Unreachable(reasons.join("; ")),
    }
}

/// Makes the volume, with the server at `address` as the first member of the group. To do it again changes nothing; to ask
/// another server would make a second group.
///
/// # Errors
/// If it doesn't.
pub async fn bootstrap(access: &Access, address: &str, config: &VolumeConfig) -> Result<(), Error> {
    let request = BootstrapRequest { cluster: access.cluster, config: config.clone(), members: Vec::new() };
    ask::<BootstrapRequest>(access, address, &request, BOOTSTRAP_DEADLINE)
        .await
        .map_err(|why| Error::Metadata { doing: "bootstrap the volume", reason: why.to_string() })
}

/// Who the server at an address is.
///
/// # Errors
/// Why it doesn't say so.
pub async fn who(access: &Access, address: &str) -> Result<MemberIdentity, String> {
    ask::<WhoRequest>(access, address, &WhoRequest, STATUS_DEADLINE).await.map_err(|why| why.to_string())
}

/// Changes the group of metadata servers. To ask again goes on with the change.
///
/// # Errors
/// If the leader refuses, or isn't among the servers, or it takes too long.
pub async fn change_members(
    access: &Access,
    addresses: &[String],
    change: &MembersChange,
) -> Result<(), Error> {
    let request = ChangeMembers { change: change.clone() };
    ask_leader::<ChangeMembers>(access, addresses, &request, CHANGE_DEADLINE)
        .await
        .map_err(|reason| Error::Metadata { doing: "change the group of metadata servers", reason })
}

/// Changes what the volume may hold. To ask again changes nothing.
///
/// # Errors
/// If the leader refuses, or isn't among the servers, or it takes too long.
pub async fn resize(access: &Access, addresses: &[String], size: ResizeVolume) -> Result<(), Error> {
    ask_leader::<ResizeVolume>(access, addresses, &size, STATUS_DEADLINE)
        .await
        .map_err(|reason| Error::Metadata { doing: "resize the volume", reason })
}

/// Asks one after the other, until the leader has answered.
async fn ask_leader<R: Rpc<Reply = ()>>(
    access: &Access,
    addresses: &[String],
    request: &R::Request,
    deadline: Duration,
) -> Result<(), String> {
    let mut reasons = Vec::new();
    for address in addresses.iter().take(ASKED_MAX) {
        match ask::<R>(access, address, request, deadline).await {
            Ok(()) => return Ok(()),
            Err(AskError::Refused { error: MetadataError::NotLeader { .. }, .. }) => {}
            Err(why) => reasons.push(why.to_string()),
        }
    }
    Err(if reasons.is_empty() { "none of them is the leader".to_owned() } else { reasons.join("; ") })
}

/// Why one server gave no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0}")]
    Address(#[from] atoll_proto::transport::AddressError),
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{address}: {error}")]
    Refused { address: String, error: MetadataError },
    #[error("{address}: {error}")]
    Call { address: String, error: RpcError },
}

async fn ask<R: Rpc>(
    access: &Access,
    address: &str,
    request: &R::Request,
    deadline: Duration,
) -> Result<R::Reply, AskError> {
    let identity = Identity {
        cluster: access.cluster,
        role: Role::Admin,
        key: access.key.clone(),
        encryption: access.encryption,
    };
    let parsed: Address = address.parse()?;
    let connection = Connection::connect(&parsed, &ConnectOptions::new(identity)).await?;
    match connection.call_within::<R>(request, (), deadline).await {
        Ok((reply, _)) => Ok(reply),
        Err(error) => Err(match error.typed::<MetadataError>() {
            Some(error) => AskError::Refused { address: address.to_owned(), error },
            None => AskError::Call { address: address.to_owned(), error },
        }),
    }
}
