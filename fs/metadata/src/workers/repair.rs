//! Sealed chunks with fewer replicas than wanted get new ones, copied by the servers themselves.
//!
//! There is no index from servers to chunks (it would cost every write); the records of the chunks are walked
//! slowly, a page at a time. A pass over a million chunks takes some minutes, which is what a server is waited
//! for anyway.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::ids::ChunkId;
use atoll_core::keys;
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::records::{ChunkRecord, Record};
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::storage::CopySource;

use crate::clock;
use crate::node::Node;
use crate::placement::{self, Candidate};
use crate::servers::{Health, Servers};

/// Chunk records that one step looks at.
const CHUNKS_PER_STEP: usize = 4096;
/// The pause between two steps of a pass, and after one.
const STEP_PAUSE: Duration = Duration::from_millis(500);
const PASS_PAUSE: Duration = Duration::from_secs(3);
/// Chunks that one server copies at the same time.
const COPIES_PER_SERVER_MAX: usize = 4;
/// Chunks that are being repaired after one step, so that a step's decisions are carried out before the next.
const REPAIRS_PER_STEP: usize = 64;

/// Runs for as long as the server does.
pub(super) async fn run(node: Arc<Node>) {
    let mut from = keys::chunks();
    loop {
        tokio::time::sleep(if from == keys::chunks() { PASS_PAUSE } else { STEP_PAUSE }).await;
        if node.lead().is_err() {
            from = keys::chunks();
            continue;
        }
        match step(&node, &from) {
            Ok(next) => from = next,
            Err(error) => tracing::error!(%error, "looking for chunks to repair failed"),
        }
    }
}

/// Looks at a page of chunks; where the next page begins.
fn step(node: &Node, from: &[u8]) -> Result<Vec<u8>, StoreError> {
    let mut page = Vec::new();
    let mut next = keys::chunks();
    node.machine.store().scan(Family::System, from, &prefix_end(&keys::chunks()), &mut |key, value| {
        if page.len() == CHUNKS_PER_STEP {
            next = key.to_vec();
            return ControlFlow::Break(());
        }
        if let (Some(number), Ok(record)) = (keys::first_number(key), ChunkRecord::decode(value)) {
            page.push((ChunkId(number), record));
        }
        ControlFlow::Continue(())
    })?;
    let now = clock::since_boot();
    let servers = node.office.servers.lock();
    let mut orders = node.office.orders.lock();
    let mut begun = 0;
    for (chunk, record) in page {
        if begun == REPAIRS_PER_STEP {
            break;
        }
        let Some(repair) = decide(&record, &servers, now, u64::from(node.member.0 as u32) ^ chunk.0) else {
            continue;
        };
        if orders.copies_of(repair.target) >= COPIES_PER_SERVER_MAX || orders.is_copying(repair.target, chunk)
        {
            continue;
        }
        let length = record.committed.next_multiple_of(BLOCK_BYTES);
        if orders.copy(repair.target, chunk, record.generation, length, repair.from) {
            tracing::info!(%chunk, server = %repair.target, "a chunk gets a further replica");
            begun += 1;
        }
    }
    node.metrics.work("repairs", begun as u64);
    Ok(next)
}

struct Repair {
    target: atoll_core::ids::ServerId,
    from: Vec<CopySource>,
}

/// Pure: whether a chunk needs another replica, and where it comes from and goes to.
fn decide(record: &ChunkRecord, servers: &Servers, now: Duration, seed: u64) -> Option<Repair> {
    if !record.sealed {
        return None;
    }
    let there: Vec<_> = record
        .replicas
        .iter()
        .copied()
        .filter(|server| servers.health(*server, now).is_some_and(|health| health != Health::Dead))
        .collect();
    if there.len() >= usize::from(record.copies) {
        return None;
    }
    let source = |server| {
        (servers.health(server, now) == Some(Health::Alive)).then(|| servers.record(server)).flatten()
    };
    let from: Vec<CopySource> = there
        .iter()
        .filter_map(|server| Some(CopySource { server: *server, address: source(*server)?.address.clone() }))
        .collect();
    if from.is_empty() {
        return None;
    }
    let taken: Vec<Candidate> = record
        .replicas
        .iter()
        .filter_map(|server| {
            let record = servers.record(*server)?;
            Some(Candidate { server: *server, labels: record.labels.clone(), free: 0 })
        })
        .collect();
    let candidates = servers.candidates(0, now);
    let target = *placement::place(&candidates, &taken, 1, record.capacity, seed).first()?;
    Some(Repair { target, from })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use atoll_core::ids::{Generation, ServerId, SessionId};
    use atoll_core::records::{ChunkKind, ServerRecord};

    use super::*;

    fn servers(count: u64) -> Servers {
        let mut table = Servers::begin(1, Duration::ZERO, []);
        for number in 1..=count {
            let record = ServerRecord {
                address: format!("s{number}:1"),
                labels: BTreeMap::new(),
                joined: Default::default(),
                draining: false,
            };
            table.registered(ServerId(number), record, 1, (1 << 40, 0), Duration::ZERO).unwrap();
        }
        table
    }

    fn chunk(replicas: &[u64]) -> ChunkRecord {
        ChunkRecord {
            generation: Generation(2),
            writer: SessionId(1),
            incarnation: 1,
            replicas: replicas.iter().map(|number| ServerId(*number)).collect(),
            copies: 3,
            kind: ChunkKind::Stream,
            capacity: 64 << 20,
            committed: 4096,
            sealed: true,
            live_blocks: 1,
            dead_blocks: 0,
        }
    }

    #[test]
    fn a_short_chunk_is_copied_to_a_server_that_has_none() {
        let table = servers(3);
        let repair = decide(&chunk(&[1, 2]), &table, Duration::ZERO, 7).unwrap();
        assert_eq!(repair.target, ServerId(3));
        let from: Vec<_> = repair.from.iter().map(|source| source.address.as_str()).collect();
        assert_eq!(from, ["s1:1", "s2:1"]);
        assert!(decide(&chunk(&[1, 2, 3]), &table, Duration::ZERO, 7).is_none());
        assert!(decide(&chunk(&[1, 2]), &servers(2), Duration::ZERO, 7).is_none(), "nowhere to go");
        let open = ChunkRecord { sealed: false, ..chunk(&[1]) };
        assert!(decide(&open, &table, Duration::ZERO, 7).is_none());
    }

    #[test]
    fn a_server_that_is_silent_for_a_moment_is_waited_for() {
        let mut table = servers(4);
        for server in [1, 2, 4] {
            let beat = crate::servers::Report { free: 1 << 40, ..Default::default() };
            table.heartbeat(ServerId(server), 1, beat, true, Duration::from_secs(1000)).unwrap();
        }
        assert!(decide(&chunk(&[1, 2, 3]), &table, Duration::from_secs(10), 7).is_none());
        let repair = decide(&chunk(&[1, 2, 3]), &table, Duration::from_secs(1000), 7).unwrap();
        assert_eq!(repair.target, ServerId(4));
    }
}
