//! One operator of several works: the holder of a Lease. Whoever loses it ends its process, so that nobody half leads.
//!
//! A candidate judges a lease by its own clock, from when it saw the lease change last; the clocks of two nodes are
//! never compared. Writes name the version that was read, so that two can't take it at once.
//!
//! The holder counts from when it *began* its last successful renewal, so a candidate, which can see that renewal only later,
//! waits longer than the holder works. Nothing changes that sum: pauses and calls end when the holder's time does.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{Error, Kind, within};

/// The Lease's name.
const NAME: &str = "atoll-operator";
/// A lease that isn't renewed for this long may be taken.
pub const LIFETIME: Duration = Duration::from_secs(15);
/// A holder that began its last successful renewal so long ago has stopped. What it had sent before that has the rest of the
/// lifetime to arrive.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often the holder renews, and a candidate looks.
const PERIOD: Duration = Duration::from_secs(3);
/// How long one look at the lease, with its renewal, may take.
const CALL_DEADLINE: Duration = Duration::from_secs(4);

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none: make it.
    Create,
    /// It is free, or its holder is gone.
    Take,
    /// It is ours.
    Renew,
    /// Somebody holds it.
    Wait,
}

/// Pure: `unchanged` is for how long this candidate has seen the lease as it is.
fn step(spec: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> Step {
    let Some(spec) = spec else { return Step::Create };
    let lifetime = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    match spec.holder_identity.as_deref() {
        None | Some("") => Step::Take,
        Some(holder) if holder == me => Step::Renew,
        Some(_) if unchanged >= lifetime.map_or(LIFETIME, Duration::from_secs) => Step::Take,
        Some(_) => Step::Wait,
    }
}

/// Pure: the lease's content after a step.
fn content(before: Option<&LeaseSpec>, me: &str, step: Step, now: Timestamp) -> LeaseSpec {
    let mut spec = before.cloned().unwrap_or_default();
    if step != Step::Renew {
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
    }
    spec.holder_identity = Some(me.to_owned());
    spec.lease_duration_seconds = i32::try_from(LIFETIME.as_secs()).ok();
    spec.renew_time = Some(MicroTime(now));
    spec
}

/// Pure: how long the holder pauses before its next renewal, and how long that may take, so that neither goes beyond its time.
/// `None`: its time is over. `since` is since when it began its last successful one.
fn next_renewal(since: Duration) -> Option<(Duration, Duration)> {
    let left = RENEW_DEADLINE.checked_sub(since).filter(|left| !left.is_zero())?;
    let pause = PERIOD.min(left);
    Some((pause, CALL_DEADLINE.min(left.saturating_sub(pause))))
}

/// Whether this operator may act just now. It is asked before each change: a process that was stopped for a while goes on
/// where it was, and the lease may be somebody else's by then.
#[derive(Clone, Debug)]
pub struct Leadership(Option<Arc<Mutex<Option<Instant>>>>);

impl Leadership {
    /// That of the only operator there is.
    pub fn always() -> Leadership {
        Leadership(None)
    }

    /// It may act.
    pub fn holds(&self) -> bool {
        let Some(renewed) = &self.0 else { return true };
        renewed.lock().is_some_and(|renewed| renewed.elapsed() < RENEW_DEADLINE)
    }
}

/// A candidate for the lease.
pub struct Candidate {
    api: Api<Lease>,
    me: String,
    /// When its last successful renewal began.
    renewed: Arc<Mutex<Option<Instant>>>,
    /// The lease as it was seen last, and since when it is like that.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// A candidate of this name.
    pub fn new(client: Client, namespace: &str, me: String) -> Candidate {
        Candidate { api: Api::namespaced(client, namespace), me, renewed: Arc::default(), seen: None }
    }

    /// Tells whether it may act.
    pub fn leadership(&self) -> Leadership {
        Leadership(Some(Arc::clone(&self.renewed)))
    }

    /// Waits until the lease is ours.
    pub async fn acquire(&mut self) {
        tracing::info!(me = self.me, "waiting for the leader election lease");
        loop {
            match self.try_within(CALL_DEADLINE).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if error.kind() == Kind::Stale => {}
                Err(error) => tracing::warn!(%error, "the leader election lease can't be read"),
            }
            tokio::time::sleep(PERIOD).await;
        }
        tracing::info!(me = self.me, "this operator holds the leader election lease and starts to work");
    }

    /// Renews the lease; returns when it is lost, and before anybody else may have it.
    pub async fn keep(&mut self) {
        loop {
            let since = self.renewed.lock().map_or(Duration::MAX, |renewed| renewed.elapsed());
            let Some((pause, deadline)) = next_renewal(since) else { break };
            tokio::time::sleep(pause).await;
            match self.try_within(deadline).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::error!(me = self.me, "another operator took the leader election lease");
                    return;
                }
                Err(error) => tracing::warn!(%error, "the leader election lease could not be renewed"),
            }
        }
        tracing::error!(me = self.me, "the leader election lease is lost, because it could not be renewed");
    }

    /// Lets the next one begin at once.
    pub async fn release(&mut self) {
        *self.renewed.lock() = None;
        let free = async {
            let Some(mut lease) = self.api.get_opt(NAME).await? else { return Ok(()) };
            if lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) != Some(&self.me) {
                return Ok(());
            }
            lease.spec.get_or_insert_default().holder_identity = Some(String::new());
            self.api.replace(NAME, &PostParams::default(), &lease).await.map(|_| ())
        };
        if let Err(error) = within(CALL_DEADLINE, "release the lease", free).await {
            tracing::warn!(%error, "the leader election lease could not be released; it expires by itself");
        }
    }

    /// Looks once and does what can be done. Whether the lease is ours now.
    async fn try_within(&mut self, deadline: Duration) -> Result<bool, Error> {
        let began = Instant::now();
        let ours = within(deadline, "renew the leader election lease", self.attempt()).await?;
        *self.renewed.lock() = ours.then_some(began);
        Ok(ours)
    }

    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(NAME).await?;
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let unchanged = self.unchanged(spec.as_ref());
        let step = step(spec.as_ref(), &self.me, unchanged);
        if step == Step::Wait {
            return Ok(false);
        }
        let after = content(spec.as_ref(), &self.me, step, Timestamp::now());
        let params = PostParams::default();
        match found {
            None => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(after) };
                self.api.create(&params, &lease).await?;
            }
            Some(mut lease) => {
                lease.spec = Some(after);
                self.api.replace(NAME, &params, &lease).await?;
            }
        }
        Ok(true)
    }

    fn unchanged(&mut self, spec: Option<&LeaseSpec>) -> Duration {
        let now = Instant::now();
        match (&self.seen, spec) {
            (Some((seen, since)), Some(spec)) if seen == spec => now.duration_since(*since),
            (_, Some(spec)) => {
                self.seen = Some((spec.clone(), now));
                Duration::ZERO
            }
            (_, None) => {
                self.seen = None;
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str) -> LeaseSpec {
        content(None, by, Step::Create, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_lease_is_taken_only_when_it_is_free_or_its_holder_is_gone() {
        let long = LIFETIME + Duration::from_secs(1);
        for (spec, unchanged, expected) in [
            (None, Duration::ZERO, Step::Create),
            (Some(held("me")), Duration::ZERO, Step::Renew),
            (Some(held("other")), Duration::ZERO, Step::Wait),
            (Some(held("other")), LIFETIME - Duration::from_millis(1), Step::Wait),
            (Some(held("other")), long, Step::Take),
            (Some(held("")), Duration::ZERO, Step::Take),
            (Some(LeaseSpec::default()), Duration::ZERO, Step::Take),
        ] {
            assert_eq!(step(spec.as_ref(), "me", unchanged), expected, "{spec:?}");
        }
        // Its holder said how long it lasts.
        let slow = LeaseSpec { lease_duration_seconds: Some(60), ..held("other") };
        assert_eq!(step(Some(&slow), "me", long), Step::Wait);
    }

    #[test]
    fn a_lease_counts_its_holders_and_a_renewal_is_none() {
        let later = Timestamp::from_second(100).expect("time");
        let first = held("a");
        assert_eq!(first.lease_transitions, Some(0));
        let renewed = content(Some(&first), "a", Step::Renew, later);
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(0), &first.acquire_time));
        assert_eq!(renewed.renew_time, Some(MicroTime(later)));
        let taken = content(Some(&renewed), "b", Step::Take, later);
        assert_eq!((taken.lease_transitions, taken.holder_identity.as_deref()), (Some(1), Some("b")));
    }

    #[test]
    fn a_holder_stops_before_anybody_may_take_its_lease_however_its_attempts_end() {
        // Each attempt fails after any part of the time that it may take.
        for part in [0, 1, 50, 99, 100] {
            let (mut since, mut attempts) = (Duration::ZERO, 0);
            while let Some((pause, deadline)) = next_renewal(since) {
                since += pause + deadline * part / 100;
                attempts += 1;
                assert!(attempts < 10, "{since:?}");
            }
            // What was sent at the last moment has time to arrive before there is another holder.
            assert!(since <= RENEW_DEADLINE, "{since:?}");
            assert!(RENEW_DEADLINE + CALL_DEADLINE < LIFETIME);
            assert!(attempts >= 2, "one failure is no reason to give up");
        }
        assert_eq!(next_renewal(Duration::MAX), None);
    }

    #[test]
    fn who_has_not_renewed_in_time_may_not_act() {
        let renewed = Arc::new(Mutex::new(None));
        let leadership = Leadership(Some(Arc::clone(&renewed)));
        assert!(!leadership.holds());
        *renewed.lock() = Some(Instant::now());
        assert!(leadership.holds());
        *renewed.lock() = Instant::now().checked_sub(RENEW_DEADLINE);
        assert!(!leadership.holds());
        assert!(Leadership::always().holds());
    }
}
