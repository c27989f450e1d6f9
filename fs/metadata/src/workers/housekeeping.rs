//! What has to be looked at by the clock: sessions that fell silent, the store's flushes.

use std::sync::Arc;
use std::time::Duration;

use atoll_core::commands::{Op, ServiceOp, ops};
use atoll_core::ids::SessionId;
use atoll_core::keys;
use atoll_core::records::SessionRecord;
use atoll_proto::metadata::MetadataError;

use super::failed;
use crate::clock;
use crate::leader::Leader;
use crate::node::{Node, collect};
use crate::reads::Lane;
use crate::store::records::Records;

/// This process was stopped, or its machine starved or asleep, if a look comes later than it was due by more than this.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Looks between looks at what changes slowly.
const MEASURE_TICKS: u64 = 5;
const FORGET_TICKS: u64 = 60;
/// Seconds after which an ended session's slots are of no use to a successor any more.
const FORGET_AFTER_S: i64 = 3600;
/// Sessions that are forgotten with one step.
const FORGET_PER_STEP: usize = 64;
/// Bytes of log that are not yet in the store's files, above which these are written even under load…
const FLUSH_BYTES: u64 = 8 << 20;
/// …and above which they are written as soon as nothing has been applied for a while. What isn't is replayed
/// after a crash: a restart must not take longer the more there is.
const FLUSH_IDLE_BYTES: u64 = 256 << 10;
const FLUSH_IDLE_TICKS: u64 = 2;

/// Runs for as long as the server does.
pub(super) async fn run(node: Arc<Node>) {
    let mut idle = Idle::default();
    let (mut last, mut position) = (clock::since_boot(), None);
    for tick in 0_u64.. {
        let rests = idle.is_over() && node.rests(last) && !node.has_grown(&mut position);
        let due =
            last + clock::until_next(if rests { node.seconds_at_rest() } else { 1 }, node.member.0, last);
        if rests {
            node.until_grown(&mut position, node.seconds_at_rest()).await;
        } else {
            node.next_second().await;
        }
        let now = clock::since_boot();
        let gap = now.saturating_sub(last);
        if now.saturating_sub(due) > LATE_MAX {
            tracing::warn!(
                gap_ms = gap.as_millis() as u64,
                "this process did not run for a while (paused, or out of CPU time); timeouts are extended by \
                 that"
            );
            if let Some(leader) = node.leading() {
                leader.sessions.lock().forgive(gap);
                leader.servers.lock().forgive(gap);
            }
        }
        last = now;
        // Without asking whether it leads still: what is proposed says so.
        if let Some(leader) = node.leading()
            && let Err(error) = expire(&node, &leader).await
        {
            failed("expiring sessions", &error).await;
        }
        if idle.wants_flush(&node) {
            flush(&node).await;
        }
        if rests || tick % MEASURE_TICKS == 0 {
            node.measure();
        }
        if tick % FORGET_TICKS == FORGET_TICKS - 1
            && let Some(leader) = node.leading()
            && let Err(error) = forget(&node, &leader).await
        {
            failed("removing the records of ended sessions", &error).await;
        }
    }
}

/// Ends sessions that were silent for their lifetime.
async fn expire(node: &Node, leader: &Leader) -> Result<(), MetadataError> {
    let expired = leader.sessions.lock().expired(clock::since_boot());
    for session in expired {
        tracing::warn!(%session, "a session sent no heartbeat for its lifetime and expired");
        leader.propose(Op::from(ops::ExpireSession { session })).await?;
        node.metrics.work("expired_sessions", 1);
        node.session_ended(session);
    }
    Ok(())
}

/// Forgets sessions that ended long ago and that nobody has superseded.
async fn forget(node: &Node, leader: &Leader) -> Result<(), MetadataError> {
    let all = |records: &Records| collect::<SessionRecord>(records, &keys::sessions());
    let sessions = node.read(Lane::Background, all).await?;
    let old = clock::now().seconds - FORGET_AFTER_S;
    let ops: Vec<Op> = sessions
        .into_iter()
        .filter(|(_, record)| record.ended.is_some_and(|ended| ended.seconds < old))
        .take(FORGET_PER_STEP)
        .map(|(session, _)| {
            Op::Service(ServiceOp::ForgetSession(ops::ForgetSession { session: SessionId(session) }))
        })
        .collect();
    leader.propose_all(ops).await.map(|_| ())
}

/// Notices when nothing is applied for a while.
#[derive(Default)]
struct Idle {
    applied: u64,
    ticks: u64,
}

impl Idle {
    /// Nothing was applied for so long that there is nothing to flush, either.
    fn is_over(&self) -> bool {
        self.ticks > FLUSH_IDLE_TICKS
    }

    fn wants_flush(&mut self, node: &Node) -> bool {
        let raft = node.consensus.status();
        let applied = raft.applied.map_or(0, |position| position.index);
        if applied == self.applied {
            self.ticks += 1;
        } else {
            self.applied = applied;
            self.ticks = 0;
        }
        let unflushed = raft.unflushed_log_bytes;
        unflushed > FLUSH_BYTES || (unflushed > FLUSH_IDLE_BYTES && self.ticks == FLUSH_IDLE_TICKS)
    }
}

async fn flush(node: &Node) {
    if let Err(error) = node.consensus.flush().await {
        tracing::error!(%error, "the metadata store can't be flushed; retrying");
    }
}
