//! The way to a cluster's metadata servers, over the same protocol and with the same proof of the key as its mounts.
//!
//! Servers are asked side by side and each question has a deadline, so that one that swallows packets costs no more than it
//! would if it were the only one.

use std::time::{Duration, Instant};

use atoll_core::ids::ClusterId;
use atoll_core::records::VolumeConfig;
use atoll_proto::admin::{
    ChangeMembers, ChangeServer, MemberIdentity, MembersChange, RaiseFeatureLevel, ResizeVolume,
    TransferLeader, WhoRequest,
};
use atoll_proto::client::{ConnectOptions, Connection};
use atoll_proto::handshake::{Encryption, Identity, Role};
use atoll_proto::metadata::{BootstrapRequest, ClusterStatus, MetadataError, StatusRequest};
use atoll_proto::rpc::Rpc;
use atoll_proto::transport::Address;
use atoll_proto::{ClusterKey, ConnectError, RpcError};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use crate::error::Error;
use crate::observe::MetadataFact;

/// How long one that led when it was asked last is asked alone.
const ALONE_WAIT: Duration = Duration::from_millis(300);
/// How long a server may take to prove that it knows the key.
const CONNECT_DEADLINE: Duration = Duration::from_secs(4);
/// How long a status may take, connecting included: a reconcile waits for it.
const STATUS_DEADLINE: Duration = Duration::from_secs(4);
/// How long making a volume may take: an election is part of it.
const BOOTSTRAP_DEADLINE: Duration = Duration::from_secs(30);
/// How long a change of the group may take before it is asked for again: a joiner receives all records.
const CHANGE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a transfer of leadership may take: the successor catches up first.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(15);
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

/// Single metadata servers, as they are asked. Tests have others than those on the network.
pub trait Servers: Send + Sync {
    /// How the cluster is, as the server at `address` knows it.
    fn status<'a>(&'a self, access: &'a Access, address: &'a str) -> Asked<'a, ClusterStatus>;
    /// Who it is.
    fn who<'a>(&'a self, access: &'a Access, address: &'a str) -> Asked<'a, MemberIdentity>;
    /// Has it make the volume.
    fn bootstrap<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        config: &'a VolumeConfig,
    ) -> Asked<'a, ()>;
    /// Has it change the group.
    fn change_members<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        change: &'a MembersChange,
    ) -> Asked<'a, ()>;
    /// Has it drain a storage server, use it again, or forget it.
    fn change_server<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        change: ChangeServer,
    ) -> Asked<'a, ()>;
    /// Has it change what the volume may hold.
    fn resize<'a>(&'a self, access: &'a Access, address: &'a str, size: ResizeVolume) -> Asked<'a, ()>;
    /// Has it let another member lead.
    fn transfer_leader<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        request: TransferLeader,
    ) -> Asked<'a, ()>;
    /// Has it raise the feature level.
    fn raise_level<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        request: RaiseFeatureLevel,
    ) -> Asked<'a, ()>;
}

/// What a server says, or why it says nothing.
pub type Asked<'a, T> = BoxFuture<'a, Result<T, AskError>>;

/// The servers on the network.
pub struct Network;

impl Servers for Network {
    fn status<'a>(&'a self, access: &'a Access, address: &'a str) -> Asked<'a, ClusterStatus> {
        Box::pin(ask::<StatusRequest>(access, address, StatusRequest, STATUS_DEADLINE))
    }

    fn who<'a>(&'a self, access: &'a Access, address: &'a str) -> Asked<'a, MemberIdentity> {
        Box::pin(ask::<WhoRequest>(access, address, WhoRequest, STATUS_DEADLINE))
    }

    fn bootstrap<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        config: &'a VolumeConfig,
    ) -> Asked<'a, ()> {
        let request =
            BootstrapRequest { cluster: access.cluster, config: config.clone(), members: Vec::new() };
        Box::pin(ask::<BootstrapRequest>(access, address, request, BOOTSTRAP_DEADLINE))
    }

    fn change_members<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        change: &'a MembersChange,
    ) -> Asked<'a, ()> {
        let request = ChangeMembers { change: change.clone() };
        Box::pin(ask::<ChangeMembers>(access, address, request, CHANGE_DEADLINE))
    }

    fn change_server<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        change: ChangeServer,
    ) -> Asked<'a, ()> {
        Box::pin(ask::<ChangeServer>(access, address, change, STATUS_DEADLINE))
    }

    fn resize<'a>(&'a self, access: &'a Access, address: &'a str, size: ResizeVolume) -> Asked<'a, ()> {
        Box::pin(ask::<ResizeVolume>(access, address, size, STATUS_DEADLINE))
    }

    fn transfer_leader<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        request: TransferLeader,
    ) -> Asked<'a, ()> {
        Box::pin(async move {
            ask::<TransferLeader>(access, address, request, TRANSFER_DEADLINE).await.map(|_| ())
        })
    }

    fn raise_level<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        request: RaiseFeatureLevel,
    ) -> Asked<'a, ()> {
        Box::pin(ask::<RaiseFeatureLevel>(access, address, request, STATUS_DEADLINE))
    }
}

/// What a cluster says, and which of its servers led.
#[derive(Debug)]
pub struct Said {
    /// How it is.
    pub fact: MetadataFact,
    /// The address of the one that leads.
    pub leader: Option<String>,
}

/// Asks how the cluster is: the leader, if one of the servers is it. Who led the last time is asked first.
pub async fn status(servers: &dyn Servers, access: &Access, addresses: &[String], led: Option<&str>) -> Said {
    if addresses.is_empty() {
        return Said { fact: MetadataFact::NotAsked, leader: None };
    }
    let (first, rest): (Vec<&str>, Vec<&str>) =
        addresses.iter().take(ASKED_MAX).map(String::as_str).partition(|address| Some(*address) == led);
    let put = |address| async move { (address, servers.status(access, address).await) };
    let mut asked: FuturesUnordered<_> = first.into_iter().map(put).collect();
    let mut rest = Some(rest);
    let mut alone = std::pin::pin!(tokio::time::sleep(ALONE_WAIT));
    let (mut reasons, mut follower) = (Vec::new(), None);
    loop {
        if asked.is_empty() {
            match rest.take() {
                Some(rest) => asked.extend(rest.into_iter().map(put)),
                None => break,
            }
        }
        let (address, answer) = tokio::select! {
            Some(answer) = asked.next() => answer,
            () = &mut alone, if rest.is_some() => {
                asked.extend(rest.take().into_iter().flatten().map(put));
                continue;
            }
            else => continue,
        };
        match answer {
            Ok(status) if status.is_leader => {
                let fact = MetadataFact::Answers(Box::new(status));
                return Said { fact, leader: Some(address.to_owned()) };
            }
            // One that waits to be added knows nothing.
            Ok(status) if status.cluster.is_none() && follower.is_some() => {}
            Ok(status) => follower = Some(status),
            Err(why) => reasons.push(why.to_string()),
        }
    }
    reasons.sort();
    let fact = match follower {
        Some(status) => MetadataFact::Answers(Box::new(status)),
        None => MetadataFact::Unreachable(reasons.join("; ")),
    };
    Said { fact, leader: None }
}

/// Makes the volume, with the server at `address` as the first member of the group. To do it again changes nothing; to ask
/// another server would make a second group.
///
/// # Errors
/// If it doesn't.
pub async fn bootstrap(
    servers: &dyn Servers,
    access: &Access,
    address: &str,
    config: &VolumeConfig,
) -> Result<(), Error> {
    servers
        .bootstrap(access, address, config)
        .await
        .map_err(|why| Error::Metadata { doing: "bootstrap the volume", reason: why.to_string() })
}

/// Changes the group of metadata servers. To ask again goes on with the change. Who led the last time is asked first.
///
/// # Errors
/// If the leader refuses, or isn't among the servers, or it takes too long.
pub async fn change_members(
    servers: &dyn Servers,
    access: &Access,
    addresses: &[String],
    led: Option<&str>,
    change: &MembersChange,
) -> Result<(), Error> {
    ask_leader(addresses, led, |address| servers.change_members(access, address, change))
        .await
        .map_err(|reason| Error::Metadata { doing: "change the group of metadata servers", reason })
}

/// Drains a storage server, uses it again, or forgets it. To ask again changes nothing. Who led the last time is asked first.
///
/// # Errors
/// If the leader refuses, or isn't among the servers, or it takes too long.
pub async fn change_server(
    servers: &dyn Servers,
    access: &Access,
    addresses: &[String],
    led: Option<&str>,
    change: ChangeServer,
) -> Result<(), Error> {
    ask_leader(addresses, led, |address| servers.change_server(access, address, change))
        .await
        .map_err(|reason| Error::Metadata { doing: "drain or forget a storage server", reason })
}

/// Changes what the volume may hold. To ask again changes nothing. Who led the last time is asked first.
///
/// # Errors
/// If the leader refuses, or isn't among the servers, or it takes too long.
pub async fn resize(
    servers: &dyn Servers,
    access: &Access,
    addresses: &[String],
    led: Option<&str>,
    size: ResizeVolume,
) -> Result<(), Error> {
    ask_leader(addresses, led, |address| servers.resize(access, address, size))
        .await
        .map_err(|reason| Error::Metadata { doing: "resize the volume", reason })
}

/// Has another metadata server lead. Who led the last time is asked first.
///
/// # Errors
/// If the leader refuses, or isn't among the servers, or it takes too long.
pub async fn transfer_leader(
    servers: &dyn Servers,
    access: &Access,
    addresses: &[String],
    led: Option<&str>,
    request: TransferLeader,
) -> Result<(), Error> {
    ask_leader(addresses, led, |address| servers.transfer_leader(access, address, request))
        .await
        .map_err(|reason| Error::Metadata { doing: "transfer leadership", reason })
}

/// Raises the volume's feature level. To ask again changes nothing. Who led the last time is asked first.
///
/// # Errors
/// If the leader refuses, or isn't among the servers, or it takes too long.
pub async fn raise_level(
    servers: &dyn Servers,
    access: &Access,
    addresses: &[String],
    led: Option<&str>,
    request: RaiseFeatureLevel,
) -> Result<(), Error> {
    ask_leader(addresses, led, |address| servers.raise_level(access, address, request))
        .await
        .map_err(|reason| Error::Metadata { doing: "raise the feature level", reason })
}

/// Asks one after the other, until the leader has answered.
async fn ask_leader<'a>(
    addresses: &'a [String],
    led: Option<&str>,
    ask: impl Fn(&'a str) -> Asked<'a, ()>,
) -> Result<(), String> {
    let mut ordered: Vec<&str> = addresses.iter().take(ASKED_MAX).map(String::as_str).collect();
    ordered.sort_by_key(|address| Some(*address) != led);
    let mut reasons = Vec::new();
    for address in ordered {
        match ask(address).await {
            Ok(()) => return Ok(()),
            Err(AskError::Refused { error: MetadataError::NotLeader { .. }, .. }) => {}
            Err(why) => reasons.push(why.to_string()),
        }
    }
    Err(if reasons.is_empty() { "none of them is the leader".to_owned() } else { reasons.join("; ") })
}

/// Why one server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The address is none.
    #[error("{0}")]
    Address(#[from] atoll_proto::transport::AddressError),
    /// Nobody is there, or somebody who doesn't know the key.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// Nobody proves in time that it knows the key.
    #[error("{address} doesn't respond")]
    Silent {
        /// Who.
        address: String,
    },
    /// It refuses.
    #[error("{address}: {error}")]
    Refused {
        /// Who.
        address: String,
        /// Why.
        error: MetadataError,
    },
    /// It doesn't answer this question.
    #[error("{address}: {error}")]
    Call {
        /// Who.
        address: String,
        /// Why.
        error: RpcError,
    },
}

async fn ask<R: Rpc>(
    access: &Access,
    address: &str,
    request: R::Request,
    deadline: Duration,
) -> Result<R::Reply, AskError> {
    let began = Instant::now();
    let identity = Identity {
        cluster: access.cluster,
        role: Role::Admin,
        key: access.key.clone(),
        encryption: access.encryption,
    };
    let parsed: Address = address.parse()?;
    let options = ConnectOptions::new(identity);
    let connecting = Connection::connect(&parsed, &options);
    let Ok(connection) = tokio::time::timeout(CONNECT_DEADLINE, connecting).await else {
        return Err(AskError::Silent { address: address.to_owned() });
    };
    let left = deadline.saturating_sub(began.elapsed());
    match connection?.call_within::<R>(&request, (), left).await {
        Ok((reply, _)) => Ok(reply),
        Err(error) => Err(match error.typed::<MetadataError>() {
            Some(error) => AskError::Refused { address: address.to_owned(), error },
            None => AskError::Call { address: address.to_owned(), error },
        }),
    }
}

#[cfg(test)]
mod tests;
