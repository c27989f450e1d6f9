//! One look at one cluster, and what follows from it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_core::ids::ClusterId;
use atoll_crds::v1alpha1::{FileSystemCluster, FileSystemClusterStatus, Phase, Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::runtime::controller::Action as Next;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use rand::Rng;
use tracing::Instrument;

use crate::apply::{Changed, carry_out, write_status};
use crate::context::{Context, Repeated};
use crate::error::{Error, Kind, change};
use crate::events::{event, transitions};
use crate::gather::{access, ask, observe};
use crate::keys::{KnownKey, is_at_rest};
use crate::observe::Observed;
use crate::plan::{Action, CONFIRMATION_LIFETIME, Fate, fate, held, missing, plan, sized};
use crate::report;
use crate::state::{Assessment, assess};
use crate::validate::{Problem, validate};

/// How soon a cluster is looked at again after something was done.
const AFTER_ACTION: Duration = Duration::from_millis(300);
/// The same changes are made so often without a growing pause in between.
const REPEATED_AT_ONCE_MAX: u32 = 5;
/// While it is being made or deleted: storage servers register without anybody telling the API server.
const WHILE_MOVING: Duration = Duration::from_secs(2);
/// While somebody has to do something.
const WHILE_BLOCKED: Duration = Duration::from_secs(15);
/// At rest: use and mounts are asked for this often.
const AT_REST: Duration = Duration::from_secs(30);

/// Observe, validate, plan, apply, report.
///
/// # Errors
/// Whatever kept it from its end; it is begun again after a pause.
pub async fn reconcile(cluster: Arc<FileSystemCluster>, context: Arc<Context>) -> Result<Next, Error> {
    let started = Instant::now();
    let key = ObjectRef::from_obj(&*cluster);
    let silent = context.memory.lock().await.get(&key).map_or(0, |memory| memory.silent);
    // Those that can't be reached wait for each other, and nobody else waits for them.
    let place = if silent > 0 {
        let Some(place) = context.doubtful() else { return Ok(Next::requeue(jittered(WHILE_MOVING))) };
        Some(place)
    } else {
        None
    };
    // See docs/tracing.md.
    let span = tracing::debug_span!(
        target: "atoll::trace",
        "reconcile",
        namespace = key.namespace.as_deref().unwrap_or_default(),
        name = key.name
    );
    let result = look_and_act(cluster, &context, &key).instrument(span).await;
    drop(place);
    let mut memory = context.memory.lock().await;
    let remembered = memory.entry(key).or_default();
    match &result {
        Ok(_) => remembered.failures = 0,
        Err(_) => remembered.failures = remembered.failures.saturating_add(1),
    }
    drop(memory);
    context.metrics.reconciled(started.elapsed(), result.as_ref().err());
    result
}

async fn look_and_act(
    cluster: Arc<FileSystemCluster>,
    context: &Context,
    key: &ObjectRef<FileSystemCluster>,
) -> Result<Next, Error> {
    let turn = context.turn().await;
    let mut seen = observe(context, cluster).await?;
    drop(turn);
    ask(context, &mut seen).await;
    let silent = context.memory.lock().await.get(key).map_or(0, |memory| memory.silent);
    let images = context.images.with(seen.running_image());
    let wanted = validate(&seen.cluster, &images).map(|wanted| held(sized(wanted, &seen), &seen));
    let mut plan = plan(&seen, &wanted, ClusterId(rand::rng().random()));
    let what = digest(&plan.actions);
    let remembered = context.memory.lock().await.get(key).and_then(|memory| memory.repeated);
    let left = remembered.and_then(|repeated| left_of_pause(&repeated, what));
    let due: &[Action] = if left.is_some() { &[] } else { &plan.actions };
    for event in farewell(&seen, due) {
        publish(context, &seen, &event).await;
    }
    let outcome = carry_out(context, &seen, wanted.as_ref().ok(), due).await;
    if left.is_none()
        && let Ok(changed) = &outcome
    {
        remember(context, key, what, changed).await;
        for object in &changed.contested {
            let note = format!(
                "an admission webhook changes what the operator applies, which it leaves as it is: {object}"
            );
            publish(context, &seen, &event(EventType::Warning, "ChangedByWebhook", note)).await;
        }
    }
    if let Err(error) = &outcome
        && error.kind() == Kind::Refused
    {
        let message =
            format!("{error}: check the operator's RBAC rights, resource quotas and admission policies");
        plan.problem = Some(Problem::new(Reason::ApiRefused, message));
    }
    let assessment = assess(&seen, &wanted, &plan);
    keep_key(context, key, &seen, is_at_rest(&seen, &plan, assessment.phase)).await;
    let resource_changed = outcome.as_ref().is_ok_and(|changed| changed.resource);
    if !resource_changed {
        let now = Time(Timestamp::now());
        let status = report::status(&seen, &wanted, &assessment, now);
        write_if_changed(context, &seen, status, key).await?;
    }
    let changed = outcome?;
    let grows =
        assessment.expansion.as_ref().is_some_and(|found| found.holds && !found.reason.needs_somebody());
    // Servers come back a moment after their pods, and mounts without any.
    let rolls = seen.cluster.status.as_ref().is_some_and(|status| status.rollout.is_some());
    let moves = grows || rolls || servers_move(&assessment);
    let next = pause(changed.anything, moves, assessment.phase, silent);
    // Whether it is an election or more shows soon.
    let next = if seen.leaderless_for.is_some() { next.min(unheard_pause(silent)) } else { next };
    let next = left.map_or(next, |left| next.min(left));
    Ok(Next::requeue(jittered(next)))
}

/// Remembers what was done, to see whether it is done again and again.
async fn remember(context: &Context, key: &ObjectRef<FileSystemCluster>, what: u64, changed: &Changed) {
    let mut memory = context.memory.lock().await;
    let repeated = &mut memory.entry(key.clone()).or_default().repeated;
    let before = repeated.filter(|before| before.what == what);
    let times = before.map_or(0, |before| before.times.saturating_add(1));
    *repeated = changed.anything.then(|| Repeated { what, times, at: Instant::now() });
}

/// Remembers the Secret, and that it needn't be read for a while if the cluster is at rest.
async fn keep_key(context: &Context, key: &ObjectRef<FileSystemCluster>, seen: &Observed, at_rest: bool) {
    let mut memory = context.memory.lock().await;
    let remembered = &mut memory.entry(key.clone()).or_default().key;
    match &mut *remembered {
        Some(known) if at_rest && seen.secret.is_some() => {
            known.rest(context.caches.clusters.len(), rand::rng().random());
        }
        Some(known) => known.wake(),
        None => {}
    }
    // One that was read now, and is the right one.
    let is_new = seen.secret.as_ref() != remembered.as_ref().map(KnownKey::secret);
    if let (Some(secret), true, Some(_)) = (&seen.secret, is_new, access(seen)) {
        *remembered = Some(KnownKey::new(secret.clone()));
    }
}

/// Servers come or go, and nobody but the leader says how far that is.
fn servers_move(assessment: &Assessment) -> bool {
    let reasons = [Reason::ReplacingServer, Reason::DrainingServers, Reason::RemovingServers];
    assessment.progressing.holds && reasons.contains(&assessment.progressing.reason)
}

/// When to look again, without anybody waking us. `silent`: so many times in a row its servers said nothing.
fn pause(acted: bool, moves: bool, phase: Phase, silent: u32) -> Duration {
    if acted {
        return AFTER_ACTION;
    }
    if moves {
        return unheard_pause(silent);
    }
    match phase {
        Phase::Creating | Phase::Deleting | Phase::Unavailable => unheard_pause(silent),
        Phase::Blocked | Phase::Degraded => WHILE_BLOCKED,
        Phase::Ready | Phase::Paused | Phase::Unknown => AT_REST,
    }
}

/// A pod that changes wakes us; only a network that is mended says nothing.
fn unheard_pause(silent: u32) -> Duration {
    (WHILE_MOVING * 2_u32.saturating_pow(silent.min(10))).min(WHILE_BLOCKED)
}

/// Which changes these are.
fn digest(actions: &[Action]) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{actions:?}").hash(&mut hasher);
    hasher.finish()
}

/// What was done several times over, and is due again, is undone by somebody else: it is done ever more rarely, whoever wakes us.
fn left_of_pause(repeated: &Repeated, what: u64) -> Option<Duration> {
    let times = repeated.times.checked_sub(REPEATED_AT_ONCE_MAX)?;
    let pause = (AFTER_ACTION * 2_u32.saturating_pow(times.min(10))).min(AT_REST);
    pause.checked_sub(repeated.at.elapsed()).filter(|left| repeated.what == what && !left.is_zero())
}

/// Clusters that were made together aren't all looked at together for ever.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.9..1.1))
}

async fn write_if_changed(
    context: &Context,
    seen: &Observed,
    status: FileSystemClusterStatus,
    key: &ObjectRef<FileSystemCluster>,
) -> Result<(), Error> {
    let before = seen.cluster.status.clone().unwrap_or_default();
    let written = context.memory.lock().await.get(key).and_then(|memory| memory.written);
    let status = report::settle(&before, status, written.map(|at| at.elapsed()));
    if status == before {
        return Ok(());
    }
    let events = transitions(&before, &status);
    write_status(context, &seen.cluster, status).await?;
    context.memory.lock().await.entry(key.clone()).or_default().written = Some(Instant::now());
    for event in events {
        publish(context, seen, &event).await;
    }
    Ok(())
}

/// What is said of actions that nobody asked for just then: of a resource that goes, whether its data stays.
fn farewell(seen: &Observed, actions: &[Action]) -> Vec<Event> {
    if let [Action::SetClusterId { id, adopted: true }] = actions {
        let missing = missing(seen);
        let (kind, lacks) = if missing.is_empty() {
            (EventType::Normal, String::new())
        } else {
            (EventType::Warning, format!("; these are missing: {}", missing.join(", ")))
        };
        let note = format!("the disks of cluster {id} are used again, {} of them{lacks}", seen.pvcs.len());
        return vec![event(kind, "Adopted", note)];
    }
    if let [Action::SetClusterId { adopted: false, .. }] = actions
        && !seen.elsewhere.is_empty()
    {
        let note = format!(
            "a new volume is created, though disks of an earlier one of this name are kept in {}: they can be used in their \
             own namespace only (kubectl atoll orphans)",
            seen.elsewhere.join(", ")
        );
        return vec![event(EventType::Warning, "DisksElsewhere", note)];
    }
    if let Some(Action::RestoreSecret(_)) = actions.first() {
        let note = "the Secret with the cluster's key was deleted, and is created again with the same key";
        return vec![event(EventType::Warning, "KeyRestored", note.to_owned())];
    }
    if actions.contains(&Action::WithdrawConfirmation) {
        let note = format!(
            "spec.deletionConfirmation was removed, since the resource was not deleted within {} minutes of it: to delete \
             the data, use kubectl atoll delete, or set it again and delete the resource",
            CONFIRMATION_LIFETIME.as_secs() / 60
        );
        return vec![event(EventType::Warning, "ConfirmationWithdrawn", note)];
    }
    if !actions.contains(&Action::RemoveFinalizer) {
        let discarded = actions.iter().filter_map(|action| match action {
            Action::DiscardDisk { pvc, why } => {
                Some(format!("PVC {pvc} is deleted, and no data with it: {why}"))
            }
            _ => None,
        });
        return discarded.map(|note| event(EventType::Normal, "DiskDiscarded", note)).collect();
    }
    let id = seen.cluster.cluster_id().unwrap_or_default();
    let note = if seen.namespace_terminating {
        "the namespace is being deleted, and the PVCs with it".to_owned()
    } else if seen.crd_terminating {
        "the CustomResourceDefinition is being deleted: pods, disks and key are kept; kubectl atoll adopt creates the \
         resource again"
            .to_owned()
    } else {
        match fate(seen) {
            Fate::Delete => "all objects and all data of the cluster are deleted".to_owned(),
            Fate::Discard => {
                "the volume was never created, and what had been created for it is deleted".to_owned()
            }
            Fate::Keep => format!(
                "the PVCs and the Secret of cluster {id} are kept, since spec.deletionConfirmation was not \
                 its id; a FileSystemCluster of the same name adopts them (kubectl atoll adopt)"
            ),
        }
    };
    vec![event(EventType::Normal, "Deleted", note)]
}

/// An Event that can't be written is no reason to stop.
async fn publish(context: &Context, seen: &Observed, event: &Event) {
    let reference = seen.cluster.object_ref(&());
    if let Err(error) = change("write an Event", context.recorder.publish(event, &reference)).await {
        tracing::warn!(%error, reason = event.reason, "an Event could not be written");
    }
}

/// What to do after a failure.
pub fn after_failure(cluster: Arc<FileSystemCluster>, error: &Error, context: Arc<Context>) -> Next {
    let key = ObjectRef::from_obj(&*cluster);
    // Nobody holds this for long, and the pause may be wrong by one step.
    let failures =
        context.memory.try_lock().ok().and_then(|memory| memory.get(&key).map(|found| found.failures));
    let pause = error.pause(failures.unwrap_or(1));
    if error.kind() == Kind::Stale {
        tracing::debug!(cluster = %key, %error, "the observed state is outdated; reconciling again");
    } else {
        tracing::warn!(
            cluster = %key, %error, retry_in_ms = pause.as_millis() as u64,
            "reconciling a cluster failed; retrying"
        );
    }
    Next::requeue(pause.mul_f64(rand::rng().random_range(0.8..1.2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, ID};

    fn notes(seen: &Observed, actions: &[Action]) -> Vec<String> {
        let text = |event: Event| format!("{}: {}", event.reason, event.note.unwrap_or_default());
        farewell(seen, actions).into_iter().map(text).collect()
    }

    #[test]
    fn it_is_said_which_disks_are_used_again_and_which_are_missing() {
        let mut seen = testing::running();
        let adopts = [Action::SetClusterId { id: ID, adopted: true }];
        let creates = [Action::SetClusterId { id: ID, adopted: false }];
        assert_eq!(notes(&seen, &creates), Vec::<String>::new());
        seen.elsewhere = vec!["old".into()];
        assert!(notes(&seen, &creates)[0].contains("kept in old"), "{:?}", notes(&seen, &creates));
        let said = notes(&seen, &adopts);
        assert!(said[0].starts_with("Adopted: ") && said[0].ends_with("6 of them"), "{said:?}");
        seen.pvcs.remove("data-db-storage-1");
        let said = notes(&seen, &adopts);
        assert!(said[0].ends_with("5 of them; these are missing: data-db-storage-1"), "{said:?}");
    }

    #[test]
    fn what_somebody_undoes_again_and_again_is_done_ever_more_rarely() {
        let repeated = |times| Repeated { what: 1, times, at: Instant::now() };
        assert_eq!(left_of_pause(&repeated(REPEATED_AT_ONCE_MAX - 1), 1), None);
        assert!(left_of_pause(&repeated(REPEATED_AT_ONCE_MAX), 1).is_some_and(|left| left <= AFTER_ACTION));
        let long = left_of_pause(&repeated(u32::MAX), 1).expect("a pause");
        assert!(long <= AT_REST && long > AT_REST / 2, "{long:?}");
        // Anything else is due at once.
        assert_eq!(left_of_pause(&repeated(u32::MAX), 2), None);
        let delete = |name: &str| [Action::Delete(crate::plan::Kind::Service, name.into())];
        assert_ne!(digest(&delete("a")), digest(&delete("b")));
        assert_eq!(digest(&delete("a")), digest(&delete("a")));
    }

    #[test]
    fn it_is_said_of_a_resource_that_goes_what_stays() {
        let mut seen = testing::running();
        testing::deleted(&mut seen);
        let goes = [Action::RemoveFinalizer];
        assert!(notes(&seen, &goes)[0].contains("are kept"), "{:?}", notes(&seen, &goes));
        testing::change(&mut seen, |cluster| cluster.spec.deletion_confirmation = Some(ID.to_string()));
        assert!(notes(&seen, &goes)[0].contains("all data"), "{:?}", notes(&seen, &goes));
        seen.crd_terminating = true;
        assert!(notes(&seen, &goes)[0].contains("kubectl atoll adopt"), "{:?}", notes(&seen, &goes));
        assert!(notes(&seen, &[Action::WithdrawConfirmation])[0].contains("10 minutes"));
    }
}
