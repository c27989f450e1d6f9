//! The feature level of the volume: what it may make use of, and who is too old for it.

use std::sync::atomic::Ordering;

use atoll_core::commands::{Op, Outcome, ops};
use atoll_core::ids::MemberId;
use atoll_core::keys;
use atoll_core::limits::FEATURE_LEVEL;
use atoll_core::query;
use atoll_core::records::SessionRecord;
use atoll_core::store::Family;
use atoll_proto::admin::RaiseFeatureLevel;
use atoll_proto::metadata::MetadataError;
use atoll_proto::{Remote, Role, Status, StatusCode};

use crate::leader::Leader;
use crate::node::{Node, query_error};

/// Peers that a message names.
const NAMED_MAX: usize = 8;

/// The highest level that all know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The level; 0: some haven't said.
    pub level: u32,
    /// Who knows less than the leader, or hasn't said, each in words.
    pub behind: Vec<String>,
}

impl Node {
    /// Raises the feature level, if all know it. To ask for a level that is reached changes nothing.
    pub(crate) async fn raise_feature_level(&self, request: RaiseFeatureLevel) -> Result<(), MetadataError> {
        let leader = self.lead()?;
        let level = request.level;
        let volume = query::superblock(&*self.machine.store()).map_err(query_error)?;
        if volume.feature_level >= level {
            return Ok(());
        }
        if level > FEATURE_LEVEL {
            return Err(MetadataError::Refused(format!(
                "the leader knows feature levels up to {FEATURE_LEVEL}: upgrade all metadata servers first"
            )));
        }
        // One at a time, and no member comes meanwhile.
        let Ok(_one) = leader.membership.try_lock() else {
            return Err(MetadataError::Refused(
                "the members of the group are being changed: wait until it is done, then try again".into(),
            ));
        };
        // Whoever connects from now on is refused, so nobody comes between the look and the entry.
        let before = self.feature_level.fetch_max(level, Ordering::SeqCst);
        let known = self.known_level(&leader);
        let raised = if known.level < level {
            let named: Vec<String> = known.behind.into_iter().take(NAMED_MAX).collect();
            Err(MetadataError::Refused(format!(
                "not all servers and mounts know feature level {level}: upgrade or restart {}",
                named.join(", ")
            )))
        } else {
            match leader.propose(Op::from(ops::RaiseFeatureLevel { level })).await {
                Ok(Outcome::Refused(error)) => Err(MetadataError::Fs(error)),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            }
        };
        // Of an entry whose outcome isn't known the level stays: a peer is refused for longer, never served by mistake.
        if matches!(raised, Err(MetadataError::Refused(_) | MetadataError::Fs(_))) {
            self.feature_level.store(before, Ordering::SeqCst);
        }
        if raised.is_ok() {
            tracing::info!(level, "the volume's feature level was raised");
        }
        raised
    }

    /// What all know, as far as this leader has heard.
    pub(crate) fn known_level(&self, leader: &Leader) -> Known {
        let members = self.consensus.status().members;
        let others = members.iter().filter(|(member, _)| **member != self.member.0);
        let mut said: Vec<(String, u32)> = others
            .map(|(member, peer)| {
                (format!("metadata server {}", peer.addr), self.members.feature_level(MemberId(*member)))
            })
            .collect();
        let servers = leader.servers.lock();
        said.extend(
            servers.feature_levels().map(|(address, level)| (format!("storage server {address}"), level)),
        );
        drop(servers);
        let sessions: Vec<_> = leader.sessions.lock().feature_levels().collect();
        for (session, level) in sessions {
            let record =
                query::load::<SessionRecord>(&*self.machine.store(), Family::System, &keys::session(session));
            let client = record.ok().flatten().map_or_else(|| session.to_string(), |record| record.client);
            said.push((format!("the mount on {client}"), level));
        }
        known(said)
    }

    /// Refuses who knows less than the volume may have. Administrators may ask with any program.
    pub(super) fn refuse_below_level(&self, peer: &Remote) -> Result<(), Status> {
        let level = self.feature_level.load(Ordering::Relaxed);
        if peer.feature_level >= level || matches!(peer.role, Role::Admin) {
            return Ok(());
        }
        Err(Status::new(
            StatusCode::Forbidden,
            format!(
                "the volume has feature level {level}, and {} knows {}: run a newer version of it",
                peer.role, peer.feature_level
            ),
        ))
    }
}

fn known(mut said: Vec<(String, u32)>) -> Known {
    said.retain(|(_, level)| *level < FEATURE_LEVEL);
    said.sort();
    let level = said.iter().map(|(_, level)| *level).min().unwrap_or(FEATURE_LEVEL);
    Known { level, behind: said.into_iter().map(|(who, _)| who).collect() }
}

#[cfg(test)]
mod tests {
    use atoll_core::commands::ops;
    use atoll_core::ids::{ClusterId, SessionId};
    use atoll_proto::metadata::StatusRequest;
    use atoll_proto::{Address, ClusterKey, ConnectOptions, Connection, Encryption, Identity};

    use super::*;
    use crate::server::StartError;
    use crate::test_server::{run, start};
    use crate::{MetadataConfig, MetadataServer};

    async fn ask(address: &str, role: Role) -> Result<u32, String> {
        let key = ClusterKey::new([7; 32]);
        let identity = Identity { cluster: ClusterId(7), role, key, encryption: Encryption::Accepted };
        let address: Address = address.parse().unwrap();
        let connection = Connection::connect(&address, &ConnectOptions::new(identity)).await.unwrap();
        let said = connection.call::<StatusRequest>(&StatusRequest, ()).await;
        said.map(|(status, _)| status.feature_level).map_err(|error| error.to_string())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_level_that_not_all_know_is_refused_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let server = start(folder.path()).await;
        let node = server.node();
        let raise = |level| node.raise_feature_level(RaiseFeatureLevel { level });
        assert_eq!(raise(1).await, Ok(()));
        assert!(matches!(raise(FEATURE_LEVEL + 1).await, Err(MetadataError::Refused(_))));
        // A mount that has said nothing yet.
        let open = ops::OpenSession { client: "node-7".into(), incarnation: 1, supersedes: None };
        run(node, SessionId(0), 1, Op::from(open)).await;
        let leader = node.lead().unwrap();
        leader.sessions.lock().opened(SessionId(1), crate::clock::since_boot());
        let known = node.known_level(&leader);
        assert_eq!(known, Known { level: 0, behind: vec!["the mount on node-7".into()] });
        leader.sessions.lock().knows(SessionId(1), FEATURE_LEVEL);
        assert_eq!(node.known_level(&leader).level, FEATURE_LEVEL);
        let status = node.status().unwrap();
        assert_eq!((status.feature_level, status.feature_level_max), (1, FEATURE_LEVEL));
        drop(leader);
        server.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_does_not_know_the_level_is_refused_but_an_administrator() {
        let folder = tempfile::tempdir().unwrap();
        let server = start(folder.path()).await;
        let client = Role::Client(SessionId(1));
        assert_eq!(ask(server.address(), client).await, Ok(1));
        let newer = FEATURE_LEVEL + 1;
        let raise = Op::from(ops::RaiseFeatureLevel { level: newer });
        assert_eq!(run(server.node(), SessionId(0), 1, raise).await, Outcome::Done);
        server.node().feature_level.store(newer, Ordering::SeqCst);
        let refused = ask(server.address(), client).await.unwrap_err();
        assert!(refused.contains("run a newer version"), "{refused}");
        assert_eq!(ask(server.address(), Role::Admin).await, Ok(newer));
        server.shutdown().await;
        // Nor does such a program start on such a disk.
        let address = Address::Tcp("127.0.0.1:0".into());
        let config = MetadataConfig::new(folder.path(), address, ClusterId(7), ClusterKey::new([7; 32]));
        let Err(error) = MetadataServer::start(config, &mut Default::default()).await else {
            panic!("it starts")
        };
        assert!(matches!(error, StartError::NewerLevel { found, .. } if found == newer), "{error}");
    }

    #[test]
    fn the_level_is_what_all_know_and_nobody_may_be_silent() {
        let said = |levels: &[u32]| {
            known(levels.iter().enumerate().map(|(number, level)| (format!("m{number}"), *level)).collect())
        };
        assert_eq!(said(&[]), Known { level: FEATURE_LEVEL, behind: Vec::new() });
        assert_eq!(said(&[FEATURE_LEVEL + 1, FEATURE_LEVEL]).level, FEATURE_LEVEL);
        let below = said(&[FEATURE_LEVEL, FEATURE_LEVEL - 1]);
        assert_eq!(below, Known { level: FEATURE_LEVEL - 1, behind: vec!["m1".into()] });
        assert_eq!(said(&[FEATURE_LEVEL, 0, FEATURE_LEVEL]).level, 0);
    }
}
