//! When this member acts though nothing has come: a leader's heartbeats, a follower's elections.
//!
//! openraft looks 25 times a second whether one of them is due, in each member of each group: that was most of what a volume
//! at rest cost. So its ticks run only where an election may be due. Here is when that is, and a leader's heartbeats are sent
//! from here.
//!
//! Nothing of this is what makes leases safe: leases are openraft's, and go by what was sent and acknowledged
//! ([`crate::clock`]). Whatever is late here costs time.

use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::{Instant, WatchReceiver};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::BootInstant;
use crate::group::{Group, Raft};
use crate::types::RaftConfig;

/// How long nothing has been added to the log when heartbeats become rare.
const REST_AFTER: Duration = Duration::from_secs(2);
/// At rest heartbeats come at intervals of so many fifths of a lease: if one is lost, the next one is still in time.
const AT_REST_FIFTHS: u32 = 2;
/// They are never rarer than this: what is shown of a member that doesn't answer goes by them, too.
const AT_REST_MAX: Duration = Duration::from_secs(1);

/// When heartbeats are due.
struct Beats {
    interval: Duration,
    at_rest: Duration,
    last_log: Option<u64>,
    /// When the log was seen to grow last.
    grew: BootInstant,
}

impl Beats {
    fn new(config: &RaftConfig, now: BootInstant) -> Self {
        let at_rest = (config.election.1 * AT_REST_FIFTHS / 5).min(AT_REST_MAX);
        Self { interval: config.heartbeat, at_rest: at_rest.max(config.heartbeat), last_log: None, grew: now }
    }

    /// How long after a heartbeat the next one is due, where the log ends with entry `last_log` and a majority has
    /// acknowledged what was sent at `acked`.
    fn next(&mut self, last_log: Option<u64>, acked: Option<BootInstant>, now: BootInstant) -> Duration {
        if self.last_log != last_log {
            (self.last_log, self.grew) = (last_log, now);
        }
        let heard = acked.is_some_and(|acked| now - acked <= self.at_rest + self.interval);
        let rests = now - self.grew >= REST_AFTER && heard;
        if rests { self.at_rest } else { self.interval }
    }
}

/// What a member has heard from leaders.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    heard: Mutex<Option<BootInstant>>,
    /// Fires when a leader was heard.
    news: Notify,
}

impl Pulse {
    /// A leader's request has come, and this member follows that leader.
    pub(crate) fn heard(&self) {
        *self.heard.lock() = Some(BootInstant::now());
        self.news.notify_waiters();
    }

    /// How much longer an election can't be due, for this time after a leader was heard.
    fn quiet_for(&self, after: Duration, now: BootInstant) -> Option<Duration> {
        let left = (*self.heard.lock())? + after - now;
        (!left.is_zero()).then_some(left)
    }

    /// Starts the task that keeps the pulse, until the node stops.
    pub(crate) fn start(self: &Arc<Self>, raft: Raft, config: &RaftConfig) {
        let (this, config) = (self.clone(), config.clone());
        tokio::spawn(async move { this.keep(&raft, &config).await });
    }

    async fn keep(&self, raft: &Raft, config: &RaftConfig) {
        let mut roles = raft.server_metrics();
        loop {
            let (role, others) = {
                let now = roles.borrow_and_update();
                let nodes = now.membership_config.membership().nodes();
                (now.state, nodes.map(|(id, _)| *id).any(|id| id != config.member))
            };
            let goes_on = match role {
                ServerState::Shutdown => false,
                ServerState::Leader => {
                    raft.runtime_config().tick(false);
                    lead(raft, config, others, &mut roles).await
                }
                ServerState::Candidate => {
                    raft.runtime_config().tick(true);
                    roles.changed().await.is_ok()
                }
                ServerState::Follower | ServerState::Learner => self.follow(raft, config, &mut roles).await,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Lets openraft look for an election when a leader was silent for longer than its lease. Until the role changes; false:
    /// the node has stopped.
    async fn follow(&self, raft: &Raft, config: &RaftConfig, roles: &mut Roles) -> bool {
        loop {
            let news = self.news.notified();
            let quiet = self.quiet_for(config.election.1, BootInstant::now());
            raft.runtime_config().tick(quiet.is_none());
            let something = async {
                match quiet {
                    Some(quiet) => tokio::time::sleep(quiet).await,
                    None => news.await,
                }
            };
            tokio::select! {
                changed = roles.changed() => return changed.is_ok(),
                () = something => {}
            }
        }
    }
}

/// Lets this member stand for election once it may; at once if nobody else could be asked.
pub(crate) fn start_elections(raft: &Raft, quiet_until: BootInstant, alone: bool) {
    let raft = raft.clone();
    let quiet = quiet_until - BootInstant::now();
    let start = async move {
        raft.runtime_config().elect(true);
        if alone && let Err(error) = raft.trigger().elect(false).await {
            tracing::debug!("an election could not be started: {error}");
        }
    };
    tokio::spawn(async move {
        tokio::time::sleep(quiet).await;
        start.await;
    });
}

type Roles = WatchReceiverOf<Group, openraft::metrics::RaftServerMetrics<Group>>;

/// Sends the leader's heartbeats until its role or the membership changes; false: the node has stopped.
async fn lead(raft: &Raft, config: &RaftConfig, others: bool, roles: &mut Roles) -> bool {
    if !others {
        return roles.changed().await.is_ok();
    }
    let metrics = raft.metrics();
    let mut beats = Beats::new(config, BootInstant::now());
    loop {
        if raft.trigger().heartbeat().await.is_err() {
            return false;
        }
        let pause = {
            let now = metrics.borrow_watched();
            let acked = now.last_quorum_acked.map(|acked| acked.into_inner());
            beats.next(now.last_log_index, acked, BootInstant::now())
        };
        tokio::select! {
            changed = roles.changed() => return changed.is_ok(),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(1000);
    const OFTEN: Duration = Duration::from_millis(100);
    const RARELY: Duration = Duration::from_millis(400);

    fn config() -> RaftConfig {
        RaftConfig { heartbeat: OFTEN, election: (LEASE / 2, LEASE), ..RaftConfig::new(1, "") }
    }

    #[test]
    fn heartbeats_are_rare_once_nothing_was_added_for_a_while_and_frequent_when_something_is() {
        let began = BootInstant::now();
        let mut beats = Beats::new(&config(), began);
        let mut next = |last_log, at: Duration| beats.next(last_log, Some(began + at), began + at);
        assert_eq!(next(Some(1), Duration::ZERO), OFTEN);
        assert_eq!(next(Some(2), REST_AFTER / 2), OFTEN);
        assert_eq!(next(Some(2), REST_AFTER), OFTEN, "it grew since");
        assert_eq!(next(Some(2), REST_AFTER * 3 / 2), RARELY);
        assert_eq!(next(Some(2), REST_AFTER * 100), RARELY);
        assert_eq!(next(Some(3), REST_AFTER * 100), OFTEN);
    }

    #[test]
    fn a_leader_that_no_majority_answers_asks_often() {
        let began = BootInstant::now();
        let mut beats = Beats::new(&config(), began);
        assert_eq!(beats.next(None, None, began + REST_AFTER), OFTEN);
        // Sent with the last heartbeat and the one before.
        let now = began + REST_AFTER * 2;
        assert_eq!(beats.next(None, Some(now - RARELY), now), RARELY);
        assert_eq!(beats.next(None, Some(now - RARELY * 2), now), OFTEN);
    }

    #[test]
    fn rare_heartbeats_keep_a_lease_though_one_is_lost_and_never_are_more_frequent_than_others() {
        let beats = |heartbeat, lease| {
            let config = RaftConfig { heartbeat, election: (lease / 2, lease), ..RaftConfig::new(1, "") };
            Beats::new(&config, BootInstant::now()).at_rest
        };
        let config = RaftConfig::new(1, "");
        assert!(beats(config.heartbeat, config.election.1) * 2 < config.election.1);
        assert_eq!(beats(LEASE, LEASE), LEASE);
        assert_eq!(beats(OFTEN, LEASE * 1000), AT_REST_MAX);
    }

    #[test]
    fn a_leader_that_was_heard_is_waited_for() {
        let pulse = Pulse::default();
        let now = BootInstant::now();
        assert_eq!(pulse.quiet_for(LEASE, now), None, "none was heard yet");
        pulse.heard();
        let heard = pulse.heard.lock().expect("a moment ago");
        assert_eq!(pulse.quiet_for(LEASE, heard + LEASE / 4), Some(LEASE * 3 / 4));
        assert_eq!(pulse.quiet_for(LEASE, heard + LEASE), None);
    }
}
