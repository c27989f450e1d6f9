//! Who this member is, and changes of the group. What a change takes is decided in [`crate::membership`].

use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_core::ids::MemberId;
use atoll_proto::admin::{ChangeMembers, MemberIdentity, MembersChange, TransferLeader, WhoRequest};
use atoll_proto::metadata::MetadataError;
use atoll_proto::{Address, ConnectOptions, Connection, Role};
use atoll_raft::RaftError;

use crate::clock;
use crate::membership::{Group, HEARD_WITHIN, Step};
use crate::node::Node;

/// How long a joiner may take to receive the log, or a snapshot of everything.
const LEARN_MAX: Duration = Duration::from_secs(570);
/// How often it is looked whether they were heard.
const HEARD_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a joiner may take to say who it is.
const JOINER_TIMEOUT: Duration = Duration::from_secs(5);

impl Node {
    /// Who this member is.
    pub(crate) fn who(&self) -> MemberIdentity {
        let leadership = self.consensus.leadership();
        MemberIdentity {
            member: self.member,
            address: self.address.clone(),
            cluster: self.cluster,
            in_group: !self.consensus.status().members.is_empty(),
            is_leader: leadership.is_leader,
            leader: leadership.leader.map(|(member, address)| (MemberId(member), address)),
            term: leadership.term,
            disk_full: self.disk_low.load(Ordering::Relaxed),
        }
    }

    /// Changes the group. Whoever asks again goes on where it stopped.
    pub(crate) async fn change_members(&self, request: ChangeMembers) -> Result<(), MetadataError> {
        let leader = self.lead()?;
        let Ok(_one) = leader.membership.try_lock() else {
            return Err(MetadataError::Refused(
                "another membership change is in progress: wait until it is done, then try again".into(),
            ));
        };
        let steps = self.steps(&request.change).await?;
        tracing::info!(change = ?request.change, ?steps, "changing the members of the group");
        for step in steps {
            leader.not_over()?;
            self.step(step).await?;
        }
        Ok(())
    }

    /// What the change takes. A leader that has only just been elected has heard nobody yet, and waits a moment for them.
    async fn steps(&self, change: &MembersChange) -> Result<Vec<Step>, MetadataError> {
        let give_up = clock::since_boot() + HEARD_WITHIN;
        loop {
            let group = Group::of(&self.consensus.status());
            match group.steps(change) {
                Ok(steps) => return Ok(steps),
                Err(_) if group.has_unheard() && clock::since_boot() < give_up => {
                    tokio::time::sleep(HEARD_POLL_INTERVAL).await;
                }
                Err(reason) => return Err(MetadataError::Refused(reason)),
            }
        }
    }

    async fn step(&self, step: Step) -> Result<(), MetadataError> {
        match step {
            Step::Learn(member, address) => self.learn(member, address).await,
            Step::Vote(voters) => {
                let voters = voters.into_iter().map(|member| member.0).collect();
                self.consensus.change_voters(voters).await.map_err(raft_error)
            }
            Step::Forget(member) => self.consensus.remove_learner(member.0).await.map_err(raft_error),
            Step::Transfer(to) => {
                let address = self.address_of(to);
                self.consensus.transfer_leader(to.0).await.map_err(raft_error)?;
                // Who asked goes on with the change there.
                Err(MetadataError::NotLeader { leader: address.map(|address| (to, address)) })
            }
        }
    }

    /// Gives a joiner the log; one that doesn't get it is no member afterwards.
    async fn learn(&self, member: MemberId, address: String) -> Result<(), MetadataError> {
        let known = self.consensus.status().members.contains_key(&member.0);
        if !known {
            self.look_at_joiner(member, &address).await.map_err(MetadataError::Refused)?;
        }
        match tokio::time::timeout(LEARN_MAX, self.consensus.add_learner(member.0, address.clone())).await {
            Ok(result) => result.map_err(raft_error),
            Err(_) => {
                self.consensus.remove_learner(member.0).await.map_err(raft_error)?;
                Err(MetadataError::Refused(format!(
                    "{member} at {address} did not receive the Raft log within {} s: check its log messages, \
                     then try again",
                    LEARN_MAX.as_secs()
                )))
            }
        }
    }

    /// Checks that the joiner is there, is who it is said to be, and is new.
    async fn look_at_joiner(&self, member: MemberId, address: &str) -> Result<(), String> {
        let parsed: Address = address.parse().map_err(|error| format!("{error}"))?;
        let options = ConnectOptions::new(self.identity.clone()).expecting(Role::Metadata(member));
        let connecting = tokio::time::timeout(JOINER_TIMEOUT, Connection::connect(&parsed, &options));
        let connection = connecting
            .await
            .map_err(|_| format!("{address} doesn't respond: start the metadata server there"))?
            .map_err(|error| format!("{member} can't be reached: {error}"))?;
        let (level, needed) = (connection.remote().feature_level, self.feature_level.load(Ordering::Relaxed));
        if level < needed {
            return Err(format!(
                "the volume has feature level {needed}, and {member} at {address} knows {level}: run a newer version of it"
            ));
        }
        let (who, _) = connection
            .call_within::<WhoRequest>(&WhoRequest, (), JOINER_TIMEOUT)
            .await
            .map_err(|error| format!("{member} at {address} doesn't report its identity: {error}"))?;
        if who.in_group {
            return Err(format!(
                "{member} at {address} belonged to a group before and can't join again: empty its data \
                 directory and restart it, so that it becomes a new member, then add that one"
            ));
        }
        Ok(())
    }

    /// Transfers leadership to another member; returns which.
    pub(crate) async fn transfer_leadership(
        &self,
        request: TransferLeader,
    ) -> Result<MemberId, MetadataError> {
        self.lead()?;
        let group = Group::of(&self.consensus.status());
        let to = match request.to {
            Some(to) if to == self.member => return Ok(to),
            Some(to) if !group.is_heard(to) => {
                return Err(MetadataError::Refused(format!(
                    "{to} doesn't respond or isn't a member, so it can't become the leader"
                )));
            }
            Some(to) => to,
            None => group.successor(None).ok_or_else(|| {
                MetadataError::Refused("no other member can become the leader: start or add one".into())
            })?,
        };
        self.consensus.transfer_leader(to.0).await.map_err(raft_error)?;
        Ok(to)
    }

    /// Where the members are, if there are several.
    pub(crate) fn all_addresses(&self) -> Vec<String> {
        let members = self.consensus.status().members;
        if members.len() < 2 {
            return Vec::new();
        }
        members.into_values().map(|member| member.addr).collect()
    }

    fn address_of(&self, member: MemberId) -> Option<String> {
        self.consensus.status().members.get(&member.0).map(|peer| peer.addr.clone())
    }
}

/// What a refused change means to who asked for it.
pub(super) fn raft_error(error: RaftError) -> MetadataError {
    match error {
        RaftError::NotLeader { leader } => {
            MetadataError::NotLeader { leader: leader.map(|(member, address)| (MemberId(member), address)) }
        }
        RaftError::Membership(_) | RaftError::NotAMember { .. } | RaftError::TimedOut { .. } => {
            MetadataError::Refused(error.to_string())
        }
        error => MetadataError::Failed(error.to_string()),
    }
}
