//! Replicas with blocks that don't have their checksum. What is good in such a replica may be all that is left of it, so it is
//! taken out (and deleted, and made anew by the repair) only when another one was read from end to end and is whole. Until
//! then readers take each block from where it is good.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::commands::Op;
use atoll_core::error::FsError;
use atoll_core::ids::{ChunkId, ServerId};
use atoll_core::query;
use atoll_core::records::ChunkRecord;
use atoll_proto::metadata::MetadataError;
use atoll_proto::storage::Scrub;
use atoll_proto::{Address, ConnectOptions, Connection};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::node::{Node, store_error};

/// Replicas that are remembered; with more, those are found again when they are read again.
const SUSPECTS_MAX: usize = 1 << 16;
/// How long reading one replica may take.
const SCRUB_DEADLINE: Duration = Duration::from_secs(600);
/// The pause before a chunk whose other replicas couldn't be reached is looked at again, and before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// Replicas that are said to be bad.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    all: Mutex<BTreeSet<(ChunkId, ServerId)>>,
    more: Notify,
}

impl Suspects {
    /// These, too.
    pub(crate) fn add(&self, replicas: impl IntoIterator<Item = (ChunkId, ServerId)>) {
        let mut all = self.all.lock();
        for replica in replicas {
            if all.len() < SUSPECTS_MAX {
                all.insert(replica);
                self.more.notify_one();
            }
        }
    }

    /// None any more.
    pub(crate) fn clear(&self) {
        self.all.lock().clear();
    }

    /// Those of one chunk.
    async fn next(&self) -> (ChunkId, BTreeSet<ServerId>) {
        loop {
            let more = self.more.notified();
            let first = self.all.lock().first().copied();
            if let Some((chunk, _)) = first {
                return (chunk, self.take(chunk));
            }
            more.await;
        }
    }

    fn take(&self, chunk: ChunkId) -> BTreeSet<ServerId> {
        let mut all = self.all.lock();
        let of_chunk = (chunk, ServerId(0))..=(chunk, ServerId(u64::MAX));
        let servers: BTreeSet<ServerId> = all.range(of_chunk).map(|(_, server)| *server).collect();
        all.retain(|(other, _)| *other != chunk);
        servers
    }
}

/// What reading the other replicas of a chunk has shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Others {
    /// One of them is whole.
    Whole,
    /// None of them is.
    Bad,
    /// None of those that could be read; this one couldn't, and why.
    Away(ServerId, String),
}

/// Reads replicas of a chunk until one is found to be whole.
pub(crate) async fn read_others(
    node: &Node,
    chunk: ChunkId,
    record: &ChunkRecord,
    bad: &BTreeSet<ServerId>,
) -> Result<Others, MetadataError> {
    let mut others = Others::Bad;
    for server in record.replicas.iter().copied().filter(|server| !bad.contains(server)) {
        let known = node.office.servers.lock().record(server).map(|record| record.address.clone());
        let read = async {
            let address = known.ok_or("it is not known")?;
            let address: Address = address.parse().map_err(|error| format!("{address}: {error}"))?;
            let options = ConnectOptions::new(node.identity.clone());
            let connection = Connection::connect(&address, &options).await.map_err(|e| e.to_string())?;
            let scrub = connection.call_within::<Scrub>(&Scrub { chunk }, (), SCRUB_DEADLINE).await;
            scrub.map(|(reply, _)| reply).map_err(|error| error.to_string())
        };
        match read.await {
            // All that is in use has to be among what was found good.
            Ok(reply) if reply.bad.is_empty() && reply.blocks >= record.live_blocks => {
                return Ok(Others::Whole);
            }
            Ok(_) => {}
            Err(reason) => others = Others::Away(server, reason),
        }
    }
    Ok(others)
}

/// Takes out what is bad, chunk by chunk.
pub(super) async fn run(node: Arc<Node>) {
    loop {
        let (chunk, bad) = node.office.suspects.next().await;
        if node.lead().is_err() {
            // The next leader hears of them from the servers' inventories.
            continue;
        }
        match look(&node, chunk, &bad).await {
            Ok(true) => {}
            Ok(false) => again(&node, chunk, bad).await,
            Err(MetadataError::NotLeader { .. } | MetadataError::LeadershipLost) => {}
            Err(error) => {
                tracing::warn!(%chunk, %error, "a bad replica could not be taken out, it is tried again");
                again(&node, chunk, bad).await;
            }
        }
    }
}

async fn again(node: &Node, chunk: ChunkId, bad: BTreeSet<ServerId>) {
    tokio::time::sleep(PAUSE).await;
    node.office.suspects.add(bad.into_iter().map(|server| (chunk, server)));
}

/// Whether nothing is left to be done for this chunk.
async fn look(node: &Node, chunk: ChunkId, bad: &BTreeSet<ServerId>) -> Result<bool, MetadataError> {
    let record = query::chunk(&*node.machine.store(), chunk).map_err(|error| store_error(&error))?;
    let Some(record) = record.filter(|record| record.sealed) else { return Ok(true) };
    if !record.replicas.iter().any(|server| bad.contains(server)) {
        return Ok(true);
    }
    let servers: Vec<String> = bad.iter().map(ServerId::to_string).collect();
    let servers = servers.join(", ");
    match read_others(node, chunk, &record, bad).await? {
        Others::Whole => {
            let left: Vec<ServerId> =
                record.replicas.iter().copied().filter(|server| !bad.contains(server)).collect();
            tracing::warn!(%chunk, servers, left = left.len(), "a replica is bad: it is taken out");
            let op = Op::SetReplicas { chunk, generation: record.generation, replicas: left };
            match node.propose(op).await?.into_result() {
                Ok(_) => Ok(true),
                // It was changed meanwhile.
                Err(FsError::StaleChunk) => Ok(false),
                Err(error) => Err(MetadataError::Fs(error)),
            }
        }
        Others::Bad => {
            tracing::error!(%chunk, servers, "no replica is whole: what is good is read from all of them");
            Ok(true)
        }
        Others::Away(server, reason) => {
            tracing::info!(%chunk, %server, reason, "whether another replica is whole can't be told yet");
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn suspects_come_by_chunk_and_once() {
        let suspects = Suspects::default();
        let replica = |chunk, server| (ChunkId(chunk), ServerId(server));
        suspects.add([replica(2, 7), replica(1, 8), replica(2, 9), replica(2, 7)]);
        assert_eq!(suspects.next().await, (ChunkId(1), BTreeSet::from([ServerId(8)])));
        assert_eq!(suspects.next().await, (ChunkId(2), BTreeSet::from([ServerId(7), ServerId(9)])));
        let none = tokio::time::timeout(Duration::from_millis(20), suspects.next()).await;
        assert!(none.is_err());
    }
}
