//! Whether this node leads, and may answer reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::{Instant, WatchReceiver};
use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;

use crate::clock::BootInstant;
use crate::flush::Flushing;
use crate::group::{Group, Raft};
use crate::types::{Leadership, MemberId};

/// The part of a lease that is not used, for clocks that run at different speeds.
const LEASE_MARGIN_DIVISOR: u32 = 10;

type Metrics = WatchReceiverOf<Group, RaftMetrics<Group>>;

/// What leadership is judged by; shared with the task that watches it.
pub(crate) struct View {
    pub(crate) member: MemberId,
    pub(crate) metrics: Metrics,
    pub(crate) lease: Duration,
    /// The term in which this node gave leadership away: then its followers may elect another
    /// leader at once, whatever this node's lease says.
    pub(crate) given_away_term: AtomicU64,
}

impl View {
    pub(crate) fn leadership(&self) -> Leadership {
        let metrics = self.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let term = metrics.current_term;
        let leader = metrics.current_leader.map(|id| {
            let addr = membership.get_node(&id).map_or_else(String::new, |node| node.addr.clone());
            (id, addr)
        });
        let is_leader = self.may_answer(&metrics);
        Leadership { term, is_leader, leader }
    }

    /// The term in which this node leads and may answer reads; `None` if it may not.
    pub(crate) fn leading_term(&self) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        self.may_answer(&metrics).then_some(metrics.current_term)
    }

    fn may_answer(&self, metrics: &RaftMetrics<Group>) -> bool {
        self.leads(metrics) && (self.is_alone(metrics) || self.has_lease(metrics))
    }

    /// Whether this node may answer reads while its lease lasts.
    fn leads(&self, metrics: &RaftMetrics<Group>) -> bool {
        let term = metrics.current_term;
        metrics.state == ServerState::Leader
            && metrics.running_state.is_ok()
            && metrics.current_leader == Some(self.member)
            // What earlier leaders have committed is committed here by the first entry of this
            // term at the latest.
            && metrics.last_applied.is_some_and(|applied| applied.leader_id.term == term)
            && self.given_away_term.load(Ordering::Acquire) != term
            // A leader that was removed gives leadership away by itself.
            && self.is_voter(metrics)
    }

    fn is_voter(&self, metrics: &RaftMetrics<Group>) -> bool {
        let membership = metrics.committed_membership_config.membership();
        membership.get_joint_config().iter().any(|voters| voters.contains(&self.member))
    }

    fn is_alone(&self, metrics: &RaftMetrics<Group>) -> bool {
        let mut configs = metrics.membership_config.membership().get_joint_config().iter();
        configs.all(|voters| voters.len() == 1 && voters.contains(&self.member))
    }

    /// Whether nothing but a lease is missing for this node to answer reads.
    pub(crate) fn lacks_lease(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        self.leads(&metrics) && !self.is_alone(&metrics) && !self.has_lease(&metrics)
    }

    fn has_lease(&self, metrics: &RaftMetrics<Group>) -> bool {
        let lease = self.lease - self.lease / LEASE_MARGIN_DIVISOR;
        atoll_faults::planted("stale-leader-serves")
            || metrics.last_quorum_acked.is_some_and(|acked| BootInstant::now() < acked.into_inner() + lease)
    }
}

/// Starts the task that tells about changes of leadership, and keeps account of whether there
/// are followers.
pub(crate) fn watch_leadership(
    raft: &Raft,
    view: Arc<View>,
    flushing: Arc<Flushing>,
) -> watch::Receiver<Leadership> {
    let (tell, leadership) = watch::channel(view.leadership());
    // Changes with roles and memberships only; the other one changes with every command.
    let mut roles = raft.server_metrics();
    let mut all = raft.metrics();
    tokio::spawn(async move {
        loop {
            let now = view.leadership();
            let waits_for_first_entry = {
                let metrics = view.metrics.borrow_watched();
                let others = metrics.membership_config.nodes().any(|(id, _)| *id != view.member);
                flushing.set_followers(others);
                metrics.state == ServerState::Leader
                    && metrics.running_state.is_ok()
                    && metrics.last_applied.is_none_or(|a| a.leader_id.term != metrics.current_term)
            };
            tell.send_if_modified(|told| {
                let changed = *told != now;
                *told = now;
                changed
            });
            let changed = if waits_for_first_entry { all.changed().await } else { roles.changed().await };
            if changed.is_err() {
                break;
            }
        }
        // The core is gone, for whatever reason.
        tell.send_modify(|told| {
            told.is_leader = false;
            told.leader = None;
        });
    });
    leadership
}
