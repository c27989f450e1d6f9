//! Background work of the leader. Each kind has a task of its own; what there is to do comes from
//! [`Changes`](crate::changes::Changes), what was decided goes through the log like everything else.

mod compact;
mod freeing;
mod housekeeping;
mod leading;
mod migrate;
pub(crate) mod mover;
mod repair;
mod room;
pub(crate) mod suspects;

use std::sync::Arc;
use std::time::Duration;

use atoll_proto::metadata::MetadataError;
use tokio_util::task::TaskTracker;

use crate::changes::{Taken, Work};
use crate::leader::Leader;
use crate::node::Node;
use crate::reads::Lane;
use crate::store::ballast::Ballast;

/// How long a worker that failed, or whose member doesn't lead, waits before it looks again.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a worker gathers what there is to do before it does it.
const GATHER: Duration = Duration::from_secs(1);

/// Starts all workers; they end when the node is stopping.
pub fn start(node: &Arc<Node>, ballast: Ballast, tasks: &TaskTracker) {
    tasks.spawn(until_stopped(node.clone(), leading::run(node.clone())));
    tasks.spawn(until_stopped(node.clone(), housekeeping::run(node.clone())));
    tasks.spawn(until_stopped(node.clone(), room::look(node.clone(), ballast)));
    tasks.spawn(until_stopped(node.clone(), room::ask_others(node.clone())));
    tasks.spawn(until_stopped(node.clone(), freeing::orphans(node.clone())));
    tasks.spawn(until_stopped(node.clone(), freeing::truncations(node.clone())));
    tasks.spawn(until_stopped(node.clone(), freeing::sweeps(node.clone())));
    tasks.spawn(until_stopped(node.clone(), migrate::run(node.clone())));
    tasks.spawn(until_stopped(node.clone(), compact::run(node.clone())));
    tasks.spawn(until_stopped(node.clone(), repair::run(node.clone())));
    tasks.spawn(until_stopped(node.clone(), suspects::run(node.clone())));
}

async fn until_stopped(node: Arc<Node>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = node.stopping.cancelled() => {}
        () = work => {}
    }
}

/// The leader's memory, once this member leads.
async fn leader(node: &Node) -> Arc<Leader> {
    loop {
        let became_leader = node.became_leader();
        if let Ok(leader) = node.lead_unasked().await {
            return leader;
        }
        match node.leading() {
            // Its lease has lapsed for a moment, or its time is over, which is about to be noticed.
            Some(_) => tokio::time::sleep(PAUSE).await,
            None => became_leader.await,
        }
    }
}

/// Up to `limit` keys of work, when this member leads and there is some; `gather`: how long to wait for more,
/// so that a burst becomes few entries.
async fn next(node: &Node, work: Work, limit: usize, gather: Duration) -> (Arc<Leader>, Taken) {
    loop {
        let leader = leader(node).await;
        let woken = leader.changes.woken(work);
        if leader.changes.has(work) {
            tokio::time::sleep(gather).await;
            if leader.confirm_unasked().await.is_ok() {
                match take(node, &leader, work, limit).await {
                    Ok(taken) if taken.is_empty() => continue,
                    Ok(taken) => return (leader.clone(), taken),
                    Err(error) => {
                        tracing::error!(
                            %error, ?work,
                            "reading the queue of background work failed; retrying"
                        );
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        tokio::select! {
            () = woken => {}
            () = leader.ended() => {}
        }
    }
}

/// Up to `limit` keys of work; the records may be scanned for them.
async fn take(node: &Node, leader: &Leader, work: Work, limit: usize) -> Result<Taken, MetadataError> {
    let changes = leader.changes.clone();
    node.read(Lane::Background, move |records| changes.take(work, limit, records)).await
}

/// Logs why background work stopped for a moment, and waits that moment.
async fn failed(what: &'static str, error: &MetadataError) {
    match error {
        MetadataError::NotLeader { .. } | MetadataError::LeadershipLost => {}
        error => tracing::warn!(%error, what, "background work failed; retrying"),
    }
    tokio::time::sleep(PAUSE).await;
}
