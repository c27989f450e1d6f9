//! When this member acts though nothing has come: a leader's heartbeats, a follower's elections.
//!
//! openraft looks 25 times a second whether one of them is due, in each member of each group: that was most of what a volume
//! at rest cost. So its ticks run only where an election may be due. Here is when that is, and a leader's heartbeats are sent
//! from here.
//!
//! Heartbeats are frequent while the log grows, rarer while the leader is only asked, and rarer than the lease is long where
//! nobody asks: the lease lapses then, and is [renewed](Pulse::want) by a heartbeat before the next one who asks is answered. A
//! follower doesn't know what its leader is asked, but sees how often it is heard, and waits for several times as long before
//! it stands for election.
//!
//! Nothing of this is what makes leases safe: leases are openraft's, and go by what was sent and acknowledged
//! ([`crate::clock`]). Whatever is late here costs time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
/// Where nobody has asked for [`REST_AFTER`], either, intervals grow up to this one, …
const UNUSED_MAX: Duration = Duration::from_secs(2);
/// … each by a quarter of the longest one lately: so a follower has seen one that is nearly as long.
const GROWTH: (u32, u32) = (5, 4);
/// A follower waits for so many of the longest interval that it has seen lately: one heartbeat may be lost, and the next one be
/// late.
const INTERVALS_OF_SILENCE: u32 = 3;
/// How long that interval counts for a leader, …
const LATELY_SENT: Duration = UNUSED_MAX;
/// … and for a follower, which hears from the leader again within [`UNUSED_MAX`] of when that has counted on it.
const LATELY_HEARD: Duration = Duration::from_secs(4);

/// When heartbeats are due.
struct Beats {
    interval: Duration,
    at_rest: Duration,
    unused: Duration,
    sent: Intervals,
    /// How long after the last one the next one was due.
    pause: Duration,
    last_log: Option<u64>,
    /// When the log was seen to grow last.
    grew: BootInstant,
    /// When somebody had asked last.
    used: BootInstant,
}

impl Beats {
    fn new(config: &RaftConfig, now: BootInstant) -> Self {
        let at_rest = (config.election.1 * AT_REST_FIFTHS / 5).min(AT_REST_MAX).max(config.heartbeat);
        let (interval, unused) = (config.heartbeat, UNUSED_MAX.max(at_rest));
        let sent = Intervals { last: Some(now), longest: None };
        Self { interval, at_rest, unused, sent, pause: interval, last_log: None, grew: now, used: now }
    }

    /// A heartbeat is sent `now`. How long after it the next one is due, where the log ends with entry `last_log`, a majority
    /// has acknowledged what was sent at `acked`, and somebody has asked since the last one if `is_used`.
    fn next(
        &mut self,
        last_log: Option<u64>,
        acked: Option<BootInstant>,
        is_used: bool,
        now: BootInstant,
    ) -> Duration {
        if self.last_log != last_log {
            (self.last_log, self.grew) = (last_log, now);
        }
        if is_used {
            self.used = now;
        }
        self.sent.note(now, LATELY_SENT);
        let heard = acked.is_some_and(|acked| now - acked <= self.pause + self.interval);
        self.pause = if now - self.grew < REST_AFTER || !heard {
            self.interval
        } else if now - self.used < REST_AFTER {
            self.at_rest
        } else {
            let (by, of) = GROWTH;
            (self.sent.longest() * by / of).clamp(self.at_rest, self.unused)
        };
        self.pause
    }

    /// True if the lease may lapse before the next one.
    fn lets_lapse(&self) -> bool {
        self.pause > self.at_rest
    }
}

/// When heartbeats were sent, or heard.
#[derive(Debug, Default)]
struct Intervals {
    last: Option<BootInstant>,
    /// The longest interval lately, and when it ended.
    longest: Option<(Duration, BootInstant)>,
}

impl Intervals {
    fn note(&mut self, now: BootInstant, lately: Duration) {
        if let Some(last) = self.last.replace(now) {
            let interval = now - last;
            if self.longest.is_none_or(|(longest, at)| interval >= longest || now - at > lately) {
                self.longest = Some((interval, now));
            }
        }
    }

    fn longest(&self) -> Duration {
        self.longest.map_or(Duration::ZERO, |(interval, _)| interval)
    }

    /// How long silence says nothing to who has heard them, for a lease of this length.
    fn patience(&self, lease: Duration) -> Duration {
        lease.max(self.longest().min(UNUSED_MAX) * INTERVALS_OF_SILENCE)
    }
}

/// What a member has heard from leaders, and a leader is asked.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    heard: Mutex<Intervals>,
    /// Fires when a leader was heard.
    news: Notify,
    /// Somebody has asked this leader since its last heartbeat.
    used: AtomicBool,
    /// This leader's lease may lapse, because nobody asks.
    lapses: AtomicBool,
    /// Fires when a heartbeat is wanted before the next one is due.
    wanted: Notify,
}

impl Pulse {
    /// A leader's request has come, and this member follows that leader.
    pub(crate) fn heard(&self) {
        self.heard.lock().note(BootInstant::now(), LATELY_HEARD);
        self.news.notify_waiters();
    }

    /// Somebody asks this leader. Cheap: called for each request.
    pub(crate) fn asked(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            if self.lapses() {
                self.want();
            }
        }
    }

    /// True if this leader lets its lease lapse where nobody asks.
    pub(crate) fn lapses(&self) -> bool {
        self.lapses.load(Ordering::Relaxed)
    }

    /// Has a heartbeat sent now.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// How much longer an election can't be due, with leases of this length.
    fn quiet_for(&self, lease: Duration, now: BootInstant) -> Option<Duration> {
        let heard = self.heard.lock();
        let left = heard.last? + heard.patience(lease) - now;
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
                    let goes_on = self.lead(raft, config, others, &mut roles).await;
                    self.lapses.store(false, Ordering::Relaxed);
                    goes_on
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

    /// Sends the leader's heartbeats until its role or the membership changes; false: the node has stopped.
    async fn lead(&self, raft: &Raft, config: &RaftConfig, others: bool, roles: &mut Roles) -> bool {
        if !others {
            return roles.changed().await.is_ok();
        }
        let metrics = raft.metrics();
        let mut beats = Beats::new(config, BootInstant::now());
        loop {
            if raft.trigger().heartbeat().await.is_err() {
                return false;
            }
            let is_used = self.used.swap(false, Ordering::Relaxed);
            let pause = {
                let now = metrics.borrow_watched();
                let acked = now.last_quorum_acked.map(|acked| acked.into_inner());
                beats.next(now.last_log_index, acked, is_used, BootInstant::now())
            };
            self.lapses.store(beats.lets_lapse(), Ordering::Relaxed);
            tokio::select! {
                changed = roles.changed() => return changed.is_ok(),
                () = tokio::time::sleep(pause) => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    /// Lets openraft look for an election when a leader was silent for longer than is usual. Until the role changes; false:
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
        let mut next = |last_log, at: Duration| beats.next(last_log, Some(began + at), true, began + at);
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
        assert_eq!(beats.next(None, None, true, began + REST_AFTER), OFTEN);
        // Sent with the last heartbeat and the one before.
        let now = began + REST_AFTER * 2;
        assert_eq!(beats.next(None, Some(now - OFTEN), true, now), RARELY);
        assert_eq!(beats.next(None, Some(now - RARELY), true, now), RARELY);
        assert_eq!(beats.next(None, Some(now - RARELY * 2), true, now), OFTEN);
    }

    #[test]
    fn where_nobody_asks_each_heartbeat_comes_a_little_later_than_the_one_before_up_to_a_bound() {
        let mut now = BootInstant::now();
        let mut beats = Beats::new(&config(), now);
        let mut heard = Intervals::default();
        heard.note(now, LATELY_HEARD);
        let mut pauses = Vec::new();
        while pauses.last() != Some(&UNUSED_MAX) {
            let pause = beats.next(None, Some(now), false, now);
            // One is lost, and the next one is as late as it may be: no reason to stand for election.
            let (by, of) = GROWTH;
            assert!(
                pause + (pause * by / of).min(UNUSED_MAX) < heard.patience(LEASE),
                "{pauses:?}, {pause:?}"
            );
            pauses.push(pause);
            now += pause;
            heard.note(now, LATELY_HEARD);
        }
        assert!(pauses.is_sorted() && pauses[0] == OFTEN && beats.lets_lapse(), "{pauses:?}");
        assert_eq!(heard.patience(LEASE), UNUSED_MAX * INTERVALS_OF_SILENCE);
        // Heartbeats of storage servers are answered in between.
        for after in [UNUSED_MAX / 3, UNUSED_MAX / 2, UNUSED_MAX] {
            now += after;
            heard.note(now, LATELY_HEARD);
            assert_eq!(beats.next(None, Some(now), false, now), UNUSED_MAX);
            assert!(UNUSED_MAX * 2 < heard.patience(LEASE));
        }
        // Somebody asks.
        assert_eq!(beats.next(None, Some(now), true, now), RARELY);
        assert!(!beats.lets_lapse());
        now += REST_AFTER;
        assert!(beats.next(None, Some(now), false, now) > RARELY);
        assert_eq!(beats.next(Some(1), Some(now), false, now), OFTEN);
    }

    #[test]
    fn a_leader_that_was_silent_for_long_at_a_time_is_waited_for_longer_for_a_while() {
        let (mut heard, began) = (Intervals::default(), BootInstant::now());
        let note = |heard: &mut Intervals, at| heard.note(at, LATELY_HEARD);
        assert_eq!(heard.patience(LEASE), LEASE);
        note(&mut heard, began);
        note(&mut heard, began + UNUSED_MAX);
        assert_eq!(heard.patience(LEASE), UNUSED_MAX * INTERVALS_OF_SILENCE);
        // A burst, and then it may be silent again for as long.
        let mut at = began + UNUSED_MAX;
        for _ in 0..100 {
            at += OFTEN / 10;
            note(&mut heard, at);
        }
        assert_eq!(heard.patience(LEASE), UNUSED_MAX * INTERVALS_OF_SILENCE);
        // It is heard often.
        note(&mut heard, at + LATELY_HEARD);
        note(&mut heard, at + LATELY_HEARD * 2 + OFTEN);
        note(&mut heard, at + LATELY_HEARD * 3 + OFTEN * 3);
        assert_eq!(
            heard.patience(LEASE),
            UNUSED_MAX * INTERVALS_OF_SILENCE,
            "no longer than a leader ever is"
        );
        let mut at = at + LATELY_HEARD * 3 + OFTEN * 3;
        for _ in 0..50 {
            at += OFTEN;
            note(&mut heard, at);
        }
        assert_eq!(heard.patience(LEASE), LEASE);
    }

    #[test]
    fn who_asks_has_a_heartbeat_sent_only_where_the_lease_may_lapse() {
        use futures::FutureExt;
        let pulse = Pulse::default();
        pulse.asked();
        assert!(pulse.wanted.notified().now_or_never().is_none());
        pulse.used.store(false, Ordering::Relaxed);
        pulse.lapses.store(true, Ordering::Relaxed);
        pulse.asked();
        assert!(pulse.wanted.notified().now_or_never().is_some());
        pulse.asked();
        assert!(pulse.wanted.notified().now_or_never().is_none(), "it was asked already");
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
        let heard = pulse.heard.lock().last.expect("a moment ago");
        assert_eq!(pulse.quiet_for(LEASE, heard + LEASE / 4), Some(LEASE * 3 / 4));
        assert_eq!(pulse.quiet_for(LEASE, heard + LEASE), None);
    }
}
