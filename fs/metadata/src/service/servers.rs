//! What administrators want of storage servers.

use std::ops::ControlFlow;

use atoll_core::commands::{Op, Outcome, ServerChange, ops};
use atoll_core::error::FsError;
use atoll_core::ids::ServerId;
use atoll_core::keys;
use atoll_core::query;
use atoll_core::records::{ChunkRecord, Record, ServerRecord};
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::admin::ChangeServer;
use atoll_proto::metadata::MetadataError;

use crate::clock;
use crate::node::{Node, store_error};
use crate::reads::Lane;
use crate::servers::Health;

impl Node {
    /// Drains a storage server, ends its drain, or forgets it.
    pub(crate) async fn change_server(&self, request: ChangeServer) -> Result<(), MetadataError> {
        let leader = self.lead()?;
        let ChangeServer { server, change } = request;
        if change == ServerChange::Forget {
            let health = leader.servers.lock().health(server, clock::since_boot());
            if health == Some(Health::Alive) {
                // It would register again within a second.
                return Err(MetadataError::Refused(format!(
                    "storage server {server} is still running: drain it (atoll-fs admin drain), stop it, \
                     then forget it"
                )));
            }
            let chunks = self.read(Lane::Background, move |records| chunks_on(records, server)).await?;
            if chunks > 0 {
                return Err(MetadataError::Refused(format!(
                    "storage server {server} still has replicas of {chunks} chunks: drain it (atoll-fs admin \
                     drain) and wait until it has none"
                )));
            }
        }
        match leader.propose(Op::from(ops::ChangeServer { server, change })).await? {
            Outcome::Refused(FsError::NotFound) => {
                Err(MetadataError::Refused(format!("storage server {server} doesn't exist")))
            }
            Outcome::Refused(FsError::TryAgain) => Err(MetadataError::Refused(format!(
                "storage server {server} is in use: drain it (atoll-fs admin drain) before you forget it"
            ))),
            Outcome::Refused(error) => Err(MetadataError::Fs(error)),
            _ => self.look_at_server(server).map_err(|error| store_error(&error)),
        }
    }

    /// Takes a server's record into the leader's memory.
    fn look_at_server(&self, server: ServerId) -> Result<(), StoreError> {
        let record: Option<ServerRecord> =
            query::load(&*self.machine.store(), Family::System, &keys::server(server))?;
        let Some(leader) = self.leading() else { return Ok(()) };
        let mut servers = leader.servers.lock();
        match record {
            Some(record) => servers.set_record(server, record),
            None => servers.forget(server),
        }
        Ok(())
    }
}

/// How many chunks name a server.
fn chunks_on(records: &dyn Read, server: ServerId) -> Result<u64, StoreError> {
    let (mut chunks, mut failed) = (0, None);
    let prefix = keys::chunks();
    records.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |_, value| {
        match ChunkRecord::decode(value) {
            Ok(record) => chunks += u64::from(record.replicas.contains(&server)),
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(chunks), Err)
}
