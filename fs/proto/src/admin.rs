//! What administrators ask of a metadata server about its group, about storage servers, and about the size of
//! the volume (kinds 0x112 to 0x117).
//!
//! A member is known by the random id that is on its disk: an address whose disk was replaced is another member, which
//! waits until it is added (design: members by random id; an empty disk only waits). Changes are made by the leader,
//! one at a time; to ask for one again that was made changes nothing.

use std::time::Duration;

use atoll_core::commands::ServerChange;
use atoll_core::ids::{ClusterId, MemberId, ServerId};
use serde::{Deserialize, Serialize};

use crate::client::{ConnectOptions, Connection};
use crate::rpc::rpcs;
use crate::transport::Address;

/// Asks the metadata server at an address who it is, within `patience`.
///
/// # Errors
/// Why it doesn't say so; the text names the address.
pub async fn who(
    address: &Address,
    options: &ConnectOptions,
    patience: Duration,
) -> Result<MemberIdentity, String> {
    let asked = async {
        let connection = Connection::connect(address, options).await.map_err(|error| error.to_string())?;
        let answer = connection.call_within::<WhoRequest>(&WhoRequest, (), patience).await;
        answer.map(|(who, _)| who).map_err(|error| format!("{address}: {error}"))
    };
    tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err(format!("{address} doesn't respond")))
}

/// Asks a server who it is. Any server answers, whether it leads or belongs to a group or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoRequest;

/// Who a metadata server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberIdentity {
    /// Its id, which is on its disk.
    pub member: MemberId,
    /// Where others reach it.
    pub address: String,
    /// The cluster that it was started for.
    pub cluster: ClusterId,
    /// It belongs to a group; otherwise it waits to be added or bootstrapped.
    pub in_group: bool,
    /// It leads now, and may answer.
    pub is_leader: bool,
    /// The leader, as far as it knows.
    pub leader: Option<(MemberId, String)>,
    /// Its term.
    pub term: u64,
    /// Its disk has so little room that it should not lead.
    pub disk_full: bool,
}

/// A change of the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembersChange {
    /// A further member, which has all of the log before it votes.
    Add {
        /// Its id, as it says itself ([`WhoRequest`]).
        member: MemberId,
        /// Where the others reach it.
        address: String,
    },
    /// A member leaves, for good: its disk can't come back.
    Remove {
        /// Which.
        member: MemberId,
    },
    /// A member takes the place of another one.
    Replace {
        /// Who leaves.
        old: MemberId,
        /// Who comes.
        new: MemberId,
        /// Where the others reach the new one.
        address: String,
    },
}

/// Asks the leader to change the group; the answer comes when it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeMembers {
    /// What.
    pub change: MembersChange,
}

/// Asks the leader to transfer leadership to another member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferLeader {
    /// To whom; `None`: to the one that has most of the log.
    pub to: Option<MemberId>,
}

/// Asks the leader to drain a storage server, to end its drain, or to forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeServer {
    /// Which.
    pub server: ServerId,
    /// What.
    pub change: ServerChange,
}

/// Asks the leader to change the size of the volume. Mounts show it with their next answer; nothing is restarted. To ask for
/// what is there changes nothing. A size below what is used is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeVolume {
    /// Bytes that files can use, in whole blocks.
    pub bytes_total: u64,
    /// Inodes that there can be.
    pub inodes_total: u64,
    /// Bytes of small files that the metadata servers keep themselves.
    pub inline_budget_bytes: u64,
}

/// Asks the leader to raise the feature level: the volume may then make use of what builds below it don't know, and those are
/// refused from then on. Refused unless every member, storage server and mount knows it. To ask for a level that is
/// reached changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaiseFeatureLevel {
    /// To which level.
    pub level: u32,
}

/// Message kinds.
pub mod kind {
    /// [`WhoRequest`](super::WhoRequest) → [`MemberIdentity`](super::MemberIdentity)
    pub const WHO: u16 = 0x112;
    /// [`ChangeMembers`](super::ChangeMembers) → `()`
    pub const CHANGE_MEMBERS: u16 = 0x113;
    /// [`TransferLeader`](super::TransferLeader) → the new leader's id
    pub const TRANSFER_LEADER: u16 = 0x114;
    /// [`ChangeServer`](super::ChangeServer) → `()`
    pub const CHANGE_SERVER: u16 = 0x115;
    /// [`ResizeVolume`](super::ResizeVolume) → `()`
    pub const RESIZE_VOLUME: u16 = 0x116;
    /// [`RaiseFeatureLevel`](super::RaiseFeatureLevel) → `()`
    pub const RAISE_FEATURE_LEVEL: u16 = 0x117;
}

rpcs! {
    WhoRequest => MemberIdentity, kind::WHO;
    ChangeMembers => (), kind::CHANGE_MEMBERS;
    TransferLeader => MemberId, kind::TRANSFER_LEADER;
    ChangeServer => (), kind::CHANGE_SERVER;
    ResizeVolume => (), kind::RESIZE_VOLUME;
    RaiseFeatureLevel => (), kind::RAISE_FEATURE_LEVEL;
}
