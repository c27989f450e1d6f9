//! Secrets, remembered: they aren't watched, since whoever may watch them may read them all, and each of them read at every look is
//! most of what an operator at rest would ask of the API server.
//!
//! A look that finds anything else than a cluster at rest has the Secret read at the next one: pods that can't start without it
//! are seen to be not ready. One that is gone by then is created again from what is remembered: without its key the disks would
//! be of no use.

use std::time::Duration;

use atoll_crds::v1alpha1::{Phase, Reason};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::observe::{Observed, is_ready};
use crate::plan::Plan;

/// How often a Secret of a cluster at rest is read, for each cluster that there is: so all of them together are read ten times a
/// minute, however many they are.
const PERIOD_PER_CLUSTER: Duration = Duration::from_secs(6);

/// A Secret as it was read.
#[derive(Clone, Debug)]
pub struct KnownKey {
    secret: Secret,
    /// Until when it needn't be read again; `None`: the cluster isn't at rest.
    until: Option<Instant>,
}

impl KnownKey {
    /// One that was read just now.
    pub fn new(secret: Secret) -> KnownKey {
        KnownKey { secret, until: None }
    }

    /// What was read.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Its cluster is at rest, and the Secret needn't be read for a while. `clusters`: how many there are; `part`: a random number
    /// from 0 to 1, so that those that were read together aren't for ever.
    pub fn rest(&mut self, clusters: usize, part: f64) {
        let clusters = u32::try_from(clusters.max(1)).unwrap_or(u32::MAX);
        let period = PERIOD_PER_CLUSTER.saturating_mul(clusters).mul_f64(2.0 * part.clamp(0.0, 1.0));
        self.until.get_or_insert_with(|| Instant::now() + period);
    }

    /// It is read at the next look.
    pub fn wake(&mut self) {
        self.until = None;
    }

    /// The Secret of this name, as long as it needn't be read again.
    pub fn at_rest(&self, name: &str) -> Option<Secret> {
        let rests = self.until.is_some_and(|until| Instant::now() < until);
        self.earlier(name).filter(|_| rests)
    }

    /// The Secret of this name, as it was when it was read last.
    pub fn earlier(&self, name: &str) -> Option<Secret> {
        (self.secret.name_any() == name).then(|| self.secret.clone())
    }
}

/// The cluster needs nothing, and nothing of it waits for anything.
pub fn is_at_rest(seen: &Observed, plan: &Plan, phase: Phase) -> bool {
    let waits = plan.problem.as_ref().is_some_and(|problem| problem.reason != Reason::Paused);
    let serves = matches!(phase, Phase::Ready | Phase::Degraded | Phase::Paused);
    serves && !waits && plan.actions.is_empty() && seen.pods.values().all(is_ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Action;
    use crate::testing::{self, ID};
    use crate::validate::Problem;

    #[tokio::test(start_paused = true)]
    async fn a_secret_is_read_again_the_more_rarely_the_more_clusters_there_are() {
        let secret = testing::stored_secret(ID);
        let known = |clusters, part| {
            let mut known = KnownKey::new(secret.clone());
            known.rest(clusters, part);
            known
        };
        let (one, mut many, soon) = (known(1, 0.5), known(1000, 0.5), known(1000, 0.0));
        assert_eq!(one.at_rest("db-key"), Some(secret.clone()));
        assert_eq!((one.at_rest("other"), soon.at_rest("db-key")), (None, None));
        tokio::time::advance(PERIOD_PER_CLUSTER).await;
        assert_eq!((one.at_rest("db-key"), many.at_rest("db-key")), (None, Some(secret.clone())));
        // A look at it makes it no longer.
        many.rest(1000, 1.0);
        tokio::time::advance(PERIOD_PER_CLUSTER * 999).await;
        assert_eq!((many.at_rest("db-key"), many.earlier("db-key")), (None, Some(secret.clone())));
        many.wake();
        many.rest(1000, 1.0);
        assert_eq!(many.at_rest("db-key"), Some(secret.clone()));
        many.wake();
        assert_eq!(many.at_rest("db-key"), None);
    }

    #[test]
    fn a_cluster_that_does_something_or_waits_for_something_is_not_at_rest() {
        let mut seen = testing::running();
        let rests = |seen: &Observed, plan: &Plan, phase| is_at_rest(seen, plan, phase);
        let nothing = Plan::default();
        assert!(rests(&seen, &nothing, Phase::Ready) && rests(&seen, &nothing, Phase::Degraded));
        assert!(!rests(&seen, &nothing, Phase::Creating) && !rests(&seen, &nothing, Phase::Deleting));
        let acts = Plan { actions: vec![Action::AddFinalizer], problem: None };
        assert!(!rests(&seen, &acts, Phase::Ready));
        let problem = |reason| Plan { actions: Vec::new(), problem: Some(Problem::new(reason, "so")) };
        assert!(rests(&seen, &problem(Reason::Paused), Phase::Paused));
        assert!(!rests(&seen, &problem(Reason::KeyMissing), Phase::Degraded));
        let pod = seen.pods.get_mut("db-storage-1").expect("a pod");
        pod.status = None;
        assert!(!rests(&seen, &nothing, Phase::Ready), "it may wait for its key");
    }
}
