//! A real server for the tests of its parts, alone in its group.

use std::path::Path;

use atoll_core::commands::{Command, Op, Outcome};
use atoll_core::ids::{ClusterId, SessionId, SlotId};
use atoll_core::records::VolumeConfig;
use atoll_proto::{Address, ClusterKey};
use prometheus_client::registry::Registry;

use crate::node::Node;
use crate::{MetadataConfig, MetadataServer, RunningMetadata, clock};

/// Starts one in `dir`, and bootstraps a volume with one copy if there is none.
pub(crate) async fn start(dir: &Path) -> RunningMetadata {
    let address = Address::Tcp("127.0.0.1:0".into());
    let config = MetadataConfig {
        ballast_bytes: 0,
        ..MetadataConfig::new(dir, address, ClusterId(7), ClusterKey::new([7; 32]))
    };
    let server = MetadataServer::start(config, &mut Registry::default()).await.unwrap();
    let volume = VolumeConfig { copies: 1, copies_min: 1, ..VolumeConfig::default() };
    server.bootstrap(volume).await.unwrap();
    server
}

/// Has a command carried out as it is, past everything that the leader decides about it.
pub(crate) async fn run(node: &Node, session: SessionId, sequence: u64, op: Op) -> Outcome {
    let command = Command { session, slot: SlotId(1), sequence, time: clock::now(), expect: None, op };
    node.lead().unwrap().propose_command(&command).await.unwrap()
}
