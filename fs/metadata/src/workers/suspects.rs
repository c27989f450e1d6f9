//! Replicas with blocks that don't have their checksum. What is good in such a replica may be all that is left of it, so it is
//! taken out (and deleted, and made anew by the repair) only when another one was read from end to end and is whole. Until
//! then readers take each block from where it is good. If none is whole, a further one is made of what is good in all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atoll_core::commands::{Op, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{ChunkId, ServerId};
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::query;
use atoll_core::records::ChunkRecord;
use atoll_proto::metadata::MetadataError;
use atoll_proto::storage::Scrub;
use atoll_proto::{Address, ConnectOptions, Connection};
use tokio::sync::Notify;

use super::{failed, leader};
use crate::clock;
use crate::leader::Leader;
use crate::lock::Mutex;
use crate::node::{Node, store_error};
use crate::repair;
use crate::servers::Health;

/// Replicas that are remembered; with more, those are found again when the next leader asks for whole inventories.
const SUSPECTS_MAX: usize = 1 << 16;
/// How long reading one replica may take.
pub(crate) const SCRUB_DEADLINE: Duration = Duration::from_secs(600);
/// The pause before what could not be settled is looked at again.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How often a replica is to be made of several bad ones: a block that is whole nowhere stays so, but a server may be away.
const MERGES_MAX: u32 = 6;

type Replicas = BTreeSet<(ChunkId, ServerId)>;

/// Replicas that are said to be bad.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    all: Mutex<Replicas>,
    /// Those that could not be settled: they are in nobody's way.
    later: Mutex<Replicas>,
    /// Chunks none of whose replicas is whole, and how often a further one was to be made of them.
    merges: Mutex<BTreeMap<ChunkId, u32>>,
    more: Notify,
}

impl Suspects {
    /// These, too.
    pub(crate) fn add(&self, replicas: impl IntoIterator<Item = (ChunkId, ServerId)>) {
        let mut all = self.all.lock();
        for replica in replicas {
            if all.len() == SUSPECTS_MAX {
                tracing::warn!(
                    at_most = SUSPECTS_MAX,
                    "more replicas are corrupt than are handled at a time; the others follow later"
                );
                return;
            }
            all.insert(replica);
            self.more.notify_one();
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.lock().is_empty() && self.later.lock().is_empty() && self.merges.lock().is_empty()
    }

    /// Those of one chunk; those that were put off come again when there are no others.
    async fn next(&self) -> (ChunkId, BTreeSet<ServerId>) {
        loop {
            let more = self.more.notified();
            let first = self.all.lock().first().copied();
            if let Some((chunk, _)) = first {
                return (chunk, self.take(chunk));
            }
            if tokio::time::timeout(AGAIN_AFTER, more).await.is_err() {
                self.all.lock().append(&mut self.later.lock());
            }
        }
    }

    fn take(&self, chunk: ChunkId) -> BTreeSet<ServerId> {
        let mut all = self.all.lock();
        let mut taken = all.split_off(&(chunk, ServerId(0)));
        all.append(&mut taken.split_off(&(ChunkId(chunk.0 + 1), ServerId(0))));
        taken.into_iter().map(|(_, server)| server).collect()
    }

    fn put_off(&self, chunk: ChunkId, servers: BTreeSet<ServerId>) {
        let mut later = self.later.lock();
        if later.len() < SUSPECTS_MAX {
            later.extend(servers.into_iter().map(|server| (chunk, server)));
        }
    }
}

/// What became of replicas that were to be taken out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TakenOut {
    /// They are out.
    Done,
    /// The chunk is gone, is still being written, or has no such replicas any more.
    Nothing,
    /// No other replica is whole; those that were read and are not.
    NoneWhole(BTreeSet<ServerId>),
    /// Not now, and why: replicas that could be whole can't be read, or the chunk changed meanwhile.
    NotNow(String),
}

/// Takes replicas out of a sealed chunk's record if another one, which is not `wrong` either, was read from end to end and is
/// whole.
pub(crate) async fn take_out(
    node: &Node,
    leader: &Leader,
    chunk: ChunkId,
    out: &BTreeSet<ServerId>,
    wrong: &BTreeSet<ServerId>,
) -> Result<TakenOut, MetadataError> {
    let record = query::chunk(&*node.machine.store(), chunk).map_err(|error| store_error(&error))?;
    let Some(record) = record.filter(|record| record.sealed) else { return Ok(TakenOut::Nothing) };
    let left: Vec<ServerId> =
        record.replicas.iter().copied().filter(|server| !out.contains(server)).collect();
    if left.len() == record.replicas.len() {
        return Ok(TakenOut::Nothing);
    }
    let (mut away, mut not_whole) = (None, BTreeSet::new());
    for server in left.iter().copied().filter(|server| !wrong.contains(server)) {
        match is_whole(node, leader, server, chunk, &record).await {
            Ok(true) => {
                let copies_left = left.len();
                let op = Op::from(ops::SetReplicas { chunk, generation: record.generation, replicas: left });
                return match leader.propose(op).await?.into_result() {
                    Ok(_) => {
                        tracing::warn!(
                            %chunk, servers = shown(out), copies_left,
                            "a corrupt replica was removed from the replica set; it is re-replicated"
                        );
                        Ok(TakenOut::Done)
                    }
                    Err(FsError::StaleChunk) => Ok(TakenOut::NotNow("the chunk has changed".into())),
                    Err(error) => Err(MetadataError::Fs(error)),
                };
            }
            Ok(false) => drop(not_whole.insert(server)),
            Err(reason) => away = Some(format!("storage server {server}: {reason}")),
        }
    }
    Ok(away.map_or(TakenOut::NoneWhole(not_whole), TakenOut::NotNow))
}

/// Has a further replica made of a chunk none of whose replicas is whole. What became of it, for people, when there is something
/// to say.
fn merge(node: &Node, leader: &Leader, chunk: ChunkId) -> Result<Option<&'static str>, MetadataError> {
    let record = query::chunk(&*node.machine.store(), chunk).map_err(|error| store_error(&error))?;
    let Some(record) = record.filter(|record| record.sealed) else { return Ok(None) };
    let now = clock::since_boot();
    let copy = repair::further(&record, &leader.servers.lock(), now, chunk.0);
    let mut tasks = leader.tasks.lock();
    if tasks.is_copied(chunk) {
        return Ok(None);
    }
    let mut merges = leader.suspects.merges.lock();
    if merges.len() >= SUSPECTS_MAX && !merges.contains_key(&chunk) {
        return Ok(None);
    }
    let tried = merges.get(&chunk).copied();
    let Some(copy) = copy else {
        merges.entry(chunk).or_default();
        return Ok(tried.is_none().then_some("no other storage server can take a replica: add one"));
    };
    let tries = merges.entry(chunk).or_default();
    if *tries >= MERGES_MAX {
        let told = std::mem::replace(tries, MERGES_MAX + 1) > MERGES_MAX;
        return Ok((!told).then_some(
            "some blocks are intact on no replica: atoll-fs fsck --data lists the files that lost data",
        ));
    }
    let length = record.committed.next_multiple_of(BLOCK_BYTES);
    if tasks.copy(copy.target, chunk, record.generation, length, copy.from) {
        *tries += 1;
        return Ok(Some("an additional replica is salvaged from the intact blocks of all of them"));
    }
    Ok(None)
}

/// Reads a replica. The error: it can't be read now, and why.
async fn is_whole(
    node: &Node,
    leader: &Leader,
    server: ServerId,
    chunk: ChunkId,
    record: &ChunkRecord,
) -> Result<bool, String> {
    let address = {
        let servers = leader.servers.lock();
        if servers.health(server, clock::since_boot()) != Some(Health::Alive) {
            return Err("it doesn't respond".into());
        }
        servers.record(server).map(|record| record.address.clone()).ok_or("it is unknown")?
    };
    let connection = connect(node, &address).await?;
    let scrub = connection.call_within::<Scrub>(&Scrub { chunk }, (), SCRUB_DEADLINE).await;
    let (reply, _) = scrub.map_err(|error| error.to_string())?;
    // All that is in use has to be among what was found good.
    Ok(reply.bad.is_empty() && reply.blocks >= record.live_blocks)
}

/// A connection to a storage server.
pub(crate) async fn connect(node: &Node, address: &str) -> Result<Connection, String> {
    let address: Address = address.parse().map_err(|error| format!("{address}: {error}"))?;
    let options = ConnectOptions::new(node.identity.clone());
    Connection::connect(&address, &options).await.map_err(|error| error.to_string())
}

fn shown(servers: &BTreeSet<ServerId>) -> String {
    servers.iter().map(ServerId::to_string).collect::<Vec<_>>().join(", ")
}

/// Takes out what is bad, chunk by chunk.
pub(super) async fn run(node: Arc<Node>) {
    loop {
        let leader = leader(&node).await;
        let (chunk, bad) = tokio::select! {
            next = leader.suspects.next() => next,
            () = leader.ended() => continue,
        };
        // A lease may lapse for a moment: with another leader, who hears of them from the inventories, they are forgotten.
        let result = match leader.confirm_unasked().await {
            Ok(()) => take_out(&node, &leader, chunk, &bad, &bad).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(TakenOut::Done | TakenOut::Nothing) => {
                leader.suspects.merges.lock().remove(&chunk);
            }
            Ok(TakenOut::NoneWhole(more)) => {
                let bad: BTreeSet<ServerId> = bad.into_iter().chain(more).collect();
                let servers = shown(&bad);
                leader.suspects.put_off(chunk, bad);
                match merge(&node, &leader, chunk) {
                    Ok(Some(what)) => {
                        tracing::error!(
                            %chunk, servers, what,
                            "no replica of a chunk is intact"
                        );
                    }
                    Ok(None) => {}
                    Err(error) => failed("salvaging a replica", &error).await,
                }
            }
            Ok(TakenOut::NotNow(reason)) => {
                tracing::info!(
                    %chunk, servers = shown(&bad), reason,
                    "a corrupt replica can't be removed yet"
                );
                leader.suspects.put_off(chunk, bad);
            }
            Err(error) => {
                leader.suspects.put_off(chunk, bad);
                failed("removing corrupt replicas", &error).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn suspects_come_by_chunk_and_once_and_what_is_put_off_is_in_nobodys_way() {
        let suspects = Suspects::default();
        let replica = |chunk, server| (ChunkId(chunk), ServerId(server));
        suspects.add([replica(2, 7), replica(1, 8), replica(2, 9), replica(2, 7)]);
        assert_eq!(suspects.next().await, (ChunkId(1), BTreeSet::from([ServerId(8)])));
        assert_eq!(suspects.next().await, (ChunkId(2), BTreeSet::from([ServerId(7), ServerId(9)])));
        suspects.put_off(ChunkId(1), BTreeSet::from([ServerId(8)]));
        suspects.add([replica(3, 7)]);
        assert_eq!(suspects.next().await, (ChunkId(3), BTreeSet::from([ServerId(7)])));
        let none = tokio::time::timeout(AGAIN_AFTER / 2, suspects.next()).await;
        assert!(none.is_err(), "at once again");
        assert_eq!(suspects.next().await, (ChunkId(1), BTreeSet::from([ServerId(8)])));
        let none = tokio::time::timeout(3 * AGAIN_AFTER, suspects.next()).await;
        assert!(none.is_err());
    }
}
