//! A member whose disk has damaged its records or its log is made anew from the others.
//!
//! It never hands on what it has, and never comes back with less than it had acknowledged: its folder becomes the one of
//! another member ([`Folder::replace_member`]), which asks the leader for the damaged one's place, receives everything, and
//! votes only then. Nothing is touched before another member leads, so a group whose members are all damaged at once
//! (by a mistake in a new version, say) keeps what it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::ids::MemberId;
use atoll_proto::admin::{self, ChangeMembers, MemberIdentity, MembersChange};
use atoll_proto::metadata::MetadataError;
use atoll_proto::{Address, ConnectOptions, Connection, Identity, Role};

use crate::node::Node;
use crate::store::folder::Folder;

/// How long a damaged member that can't start looks for another one that leads: longer than an election.
const LEADER_WAIT: Duration = Duration::from_secs(60);
/// How long a member may take to say who it is.
const WHO_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the change of the group may take: all records are received before it is done.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(600);
/// Pauses between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How often it is looked whether there are members, until some are known.
const FIRST_MEMBERS_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The other members of a group, as they were last known.
pub(crate) struct Others {
    identity: Identity,
    members: BTreeMap<MemberId, String>,
}

impl Others {
    /// Those of whom `folder` knows. `identity` is that of the asking member.
    pub(crate) fn of(folder: &Folder, identity: Identity) -> Others {
        let mut members = folder.members();
        members.remove(&folder.member());
        for old in folder.replaces() {
            members.remove(old);
        }
        Others { identity, members }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The one that leads now, if one does.
    pub(crate) async fn leader(&self) -> Option<MemberIdentity> {
        let asked = self.members.values().map(|address| self.who(address));
        let answers = futures::future::join_all(asked).await;
        let mut leading: Vec<MemberIdentity> =
            answers.into_iter().flatten().filter(|who| who.is_leader).collect();
        leading.sort_by_key(|who| who.term);
        leading.pop()
    }

    async fn who(&self, address: &str) -> Option<MemberIdentity> {
        let address: Address = address.parse().ok()?;
        let options = ConnectOptions::new(self.identity.clone());
        let answer = admin::who(&address, &options, WHO_TIMEOUT).await;
        answer.ok().filter(|who| who.cluster == self.identity.cluster)
    }

    async fn connect(&self, address: &str) -> Option<Connection> {
        let address: Address = address.parse().ok()?;
        let options = ConnectOptions::new(self.identity.clone());
        let connecting = tokio::time::timeout(WHO_TIMEOUT, Connection::connect(&address, &options));
        connecting.await.ok()?.ok()
    }

    /// Waits until another member leads; for [`LEADER_WAIT`] at most.
    pub(crate) async fn wait_for_leader(&self) -> Option<MemberIdentity> {
        let waiting = async {
            loop {
                if let Some(leader) = self.leader().await {
                    return leader;
                }
                tokio::time::sleep(PAUSE_MIN).await;
            }
        };
        tokio::time::timeout(LEADER_WAIT, waiting).await.ok()
    }

    /// Where they are, for people.
    pub(crate) fn shown(&self) -> String {
        let members: Vec<String> =
            self.members.iter().map(|(member, address)| format!("{member} at {address}")).collect();
        members.join(", ")
    }
}

/// Whether `node` votes, for good.
fn votes(node: &Node) -> bool {
    let status = node.consensus.status();
    !status.membership_changing && status.members.get(&node.member.0).is_some_and(|me| me.voter)
}

/// Takes the place of the member that this folder was before, as often as it takes.
pub(crate) async fn rejoin(node: Arc<Node>, folder: Arc<Folder>) {
    let mut pause = PAUSE_MIN;
    let mut last_reason = String::new();
    while !votes(&node) {
        if let Err(reason) = ask_for_place(&node, &folder).await
            && reason != last_reason
        {
            tracing::warn!(reason, "this metadata server has not joined the group yet; retrying");
            last_reason = reason;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    let done = atoll_blocking::spawn(move || folder.rejoined()).await;
    match done {
        Ok(Ok(())) => {
            tracing::info!(
                member = %node.member,
                "this metadata server was rebuilt from the other members"
            );
        }
        Ok(Err(error)) => {
            tracing::warn!(
                %error,
                "this metadata server was rebuilt from the other members, but the damaged data could not be \
                 removed; the next start removes it"
            );
        }
        Err(_) => {}
    }
}

async fn ask_for_place(node: &Node, folder: &Folder) -> Result<(), String> {
    let others = Others::of(folder, node.identity.clone());
    let Some(leader) = others.leader().await else {
        return Err(format!("none of the other members is the leader ({})", others.shown()));
    };
    let Some(connection) = others.connect(&leader.address).await else {
        return Err(format!("the leader at {} can't be reached", leader.address));
    };
    let mut reasons = Vec::new();
    for old in folder.replaces() {
        let change = MembersChange::Replace { old: *old, new: node.member, address: node.address.clone() };
        let request = ChangeMembers { change };
        match connection.call_within::<ChangeMembers>(&request, (), CHANGE_TIMEOUT).await {
            Ok(_) => return Ok(()),
            Err(error) => {
                let refused = error.typed::<MetadataError>().map(|refused| refused.to_string());
                reasons.push(refused.unwrap_or_else(|| error.to_string()));
            }
        }
    }
    Err(format!("the leader at {} refuses: {}", leader.address, reasons.join("; ")))
}

/// Keeps what the folder knows of the members true. A member that finds itself there later knows that it has voted: so
/// nothing is written before an entry was applied, which comes after this member's vote is on its disk.
pub(crate) async fn note_members(node: Arc<Node>, folder: Arc<Folder>) {
    let mut known = folder.members();
    loop {
        let status = node.consensus.status();
        let voters = status.members.into_iter().filter(|(_, peer)| peer.voter);
        let members: BTreeMap<MemberId, String> =
            voters.map(|(member, peer)| (MemberId(member), peer.addr)).collect();
        if status.applied.is_some() && !members.is_empty() && members != known {
            let (folder, new) = (folder.clone(), members.clone());
            match atoll_blocking::spawn(move || folder.write_members(&new)).await {
                Ok(Ok(())) => known = members,
                Ok(Err(error)) => {
                    tracing::warn!(
                        %error,
                        "the list of members can't be written to the data directory"
                    );
                }
                Err(_) => return,
            }
        }
        match known.is_empty() {
            true => tokio::time::sleep(FIRST_MEMBERS_POLL_INTERVAL).await,
            false => node.next_second().await,
        }
    }
}

/// Whether a member may ask for this change itself: its own place in the group, instead of who it was before.
pub(crate) fn asks_for_itself(role: Role, change: &MembersChange) -> bool {
    matches!((role, change), (Role::Metadata(member), MembersChange::Replace { new, .. }) if member == *new)
}
