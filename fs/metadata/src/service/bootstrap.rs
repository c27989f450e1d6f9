//! The making of the volume.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_core::commands::{Op, Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::query;
use atoll_proto::metadata::{BootstrapRequest, MetadataError};

use super::members::raft_error;
use crate::clock;
use crate::membership::MEMBERS_MAX;
use crate::node::{Node, query_error};

/// How long a new group may take to find its leader.
const LEADER_WAIT_MAX: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LEADER_POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Node {
    /// Bootstraps the group, with this member alone or with those that the request names, and makes the volume. To do it
    /// again for the same cluster changes nothing.
    pub(crate) async fn bootstrap(&self, request: BootstrapRequest) -> Result<(), MetadataError> {
        if request.cluster != self.cluster {
            return Err(MetadataError::Fs(FsError::WrongCluster));
        }
        if self.consensus.status().members.is_empty() {
            if request.members.len() > MEMBERS_MAX {
                return Err(MetadataError::Refused(format!(
                    "a group has at most {MEMBERS_MAX} members, and {} were named: name fewer",
                    request.members.len()
                )));
            }
            let mut members: BTreeMap<u64, String> =
                request.members.iter().map(|(member, address)| (member.0, address.clone())).collect();
            if members.is_empty() {
                members.insert(self.member.0, self.address.clone());
            }
            self.consensus.bootstrap(members).await.map_err(raft_error)?;
        }
        let give_up = clock::since_boot() + LEADER_WAIT_MAX;
        let leader = loop {
            match self.lead() {
                Ok(leader) => break leader,
                Err(MetadataError::NotLeader { leader: None }) if clock::since_boot() < give_up => {
                    tokio::time::sleep(LEADER_POLL_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        };
        let op = Op::from(ops::Bootstrap {
            cluster: request.cluster,
            hash_key: (rand::random(), rand::random()),
            config: request.config,
        });
        match leader.propose(op).await? {
            Outcome::Refused(error) => Err(MetadataError::Fs(error)),
            _ => query::superblock(&*self.machine.store()).map(|_| ()).map_err(query_error),
        }
    }
}
