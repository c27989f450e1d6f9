//! How a cluster is, in words: the conditions, from what was seen and what keeps the plan from going on. Pure.

use std::time::Duration;

use atoll_crds::names::{Component, annotations};
use atoll_crds::v1alpha1::{ConditionType, Phase, Reason};
use atoll_proto::metadata::ClusterStatus;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;

use crate::observe::{MetadataFact, Observed, annotation, is_ready};
use crate::placement;
use crate::plan::{
    Action, Intent, Owned, Plan, chunks_below, intent, is_made, level_waits, outdated, pending, removal,
    replacement, unwell,
};
use crate::trouble::{pod_trouble, troubles};
use crate::validate::{Problem, Wanted};

/// Problems that one message names.
const NAMED_MAX: usize = 3;
/// How long a cluster that was ready stays so without its leader's word. An election takes a second or two.
const LEADERLESS_GRACE: Duration = Duration::from_secs(10);

/// A condition: whether, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It holds.
    pub holds: bool,
    /// In one word.
    pub reason: Reason,
    /// In a sentence.
    pub message: String,
}

impl Verdict {
    fn new(holds: bool, reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict { holds, reason, message: message.into() }
    }

    fn of(holds: bool, problem: &Problem) -> Verdict {
        Verdict::new(holds, problem.reason, problem.message.clone())
    }
}

/// How a cluster is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assessment {
    /// It can be used.
    pub ready: Verdict,
    /// All data can be read and written. `None`: nobody can tell, for the same reason as that it isn't ready.
    pub available: Option<Verdict>,
    /// The operator is on its way.
    pub progressing: Verdict,
    /// Something is worse than it should be.
    pub degraded: Verdict,
    /// The volume or a disk is smaller than specified; only of a volume that was made.
    pub expansion: Option<Verdict>,
    /// Another version was asked for, and can't be had; only of one for which one was asked.
    pub upgrade_blocked: Option<Verdict>,
    /// Copies share a node, or wait for one since they may not; only of one of which that is or was so.
    pub placement: Option<Verdict>,
    /// Its deletion waits; only of one that is being deleted.
    pub deletion_blocked: Option<Verdict>,
    /// An object of a derived name belongs to somebody else; only of one that has or had this conflict.
    pub name_conflict: Option<Verdict>,
    /// It doesn't go on by itself; only if that is so.
    pub stalled: Option<Verdict>,
    /// In one word.
    pub phase: Phase,
}

/// Judges.
pub fn assess(seen: &Observed, wanted: &Result<Wanted, Problem>, plan: &Plan) -> Assessment {
    if seen.cluster.is_terminating() {
        return deleting(seen, wanted, plan);
    }
    let ready = ready(seen, wanted, plan);
    let available = available(seen, &ready);
    let degraded = degraded(seen, wanted, plan, &ready);
    let expansion = expansion(seen, wanted);
    let progressing = progressing(seen, wanted, plan, &ready, expansion.as_ref());
    let made = seen.is_bootstrapped() || answers_for(seen);
    let blocked = plan.problem.as_ref().is_some_and(|problem| problem.reason.needs_somebody());
    let phase = if seen.cluster.spec.paused {
        Phase::Paused
    } else if ready.holds {
        if degraded.holds { Phase::Degraded } else { Phase::Ready }
    } else if blocked {
        Phase::Blocked
    } else if made && was_ready(seen) {
        Phase::Unavailable
    } else {
        Phase::Creating
    };
    let (name_conflict, stalled) = (name_conflict(seen, plan), stalled(seen, wanted, plan, &ready));
    Assessment {
        ready,
        available,
        progressing,
        degraded,
        expansion,
        upgrade_blocked: upgrade_blocked(seen, wanted),
        placement: placement(seen, wanted),
        deletion_blocked: None,
        name_conflict,
        stalled,
        phase,
    }
}

fn deleting(seen: &Observed, wanted: &Result<Wanted, Problem>, plan: &Plan) -> Assessment {
    let problem = plan
        .problem
        .clone()
        .unwrap_or_else(|| Problem::new(Reason::Deleting, "the cluster is being deleted"));
    let blocked = problem.reason.blocks_deletion();
    let ready_reason = if blocked { Reason::DeletionBlocked } else { problem.reason };
    Assessment {
        ready: Verdict::new(false, ready_reason, problem.message.clone()),
        // What waits for its users serves them meanwhile.
        available: available(seen, &ready(seen, wanted, plan)),
        progressing: Verdict::of(true, &problem),
        degraded: Verdict::new(false, Reason::Deleting, "the cluster is being deleted"),
        expansion: None,
        upgrade_blocked: None,
        placement: None,
        deletion_blocked: Some(Verdict::of(blocked, &problem)),
        name_conflict: name_conflict(seen, plan),
        stalled: problem.reason.needs_somebody().then(|| Verdict::of(true, &problem)),
        phase: Phase::Deleting,
    }
}

/// The metadata service answers, for this very cluster.
fn answers_for(seen: &Observed) -> bool {
    let found = seen.answer().and_then(|answer| answer.cluster);
    found.is_some() && found == seen.cluster_id()
}

fn was_ready(seen: &Observed) -> bool {
    let phase = seen.cluster.status.as_ref().and_then(|status| status.phase);
    match phase {
        Some(Phase::Ready | Phase::Degraded | Phase::Unavailable) => true,
        Some(Phase::Creating | Phase::Blocked | Phase::Paused | Phase::Deleting | Phase::Unknown) | None => {
            seen.cluster.condition(ConditionType::Ready).is_some_and(|ready| ready.status == "True")
        }
    }
}

/// Ready, as it was said last.
fn is_said_to_be_ready(seen: &Observed) -> bool {
    seen.cluster.condition(ConditionType::Ready).is_some_and(|ready| ready.status == "True")
}

/// A moment without the leader's word: an election, a transfer of leadership, a lost packet. It says nothing of the volume, whose
/// users wait for that moment as well.
fn is_between_leaders(seen: &Observed, wanted: &Result<Wanted, Problem>) -> bool {
    let Ok(wanted) = wanted else { return false };
    let members = usize::from(wanted.workload(Component::Metadata).replicas);
    let working = seen.pods_of(Component::Metadata).filter(|pod| is_ready(pod)).count();
    is_said_to_be_ready(seen)
        && working * 2 > members
        && seen.leaderless_for.is_some_and(|since| since < LEADERLESS_GRACE)
}

/// Whether all data can be used. `ready` is for what nobody knows of.
fn available(seen: &Observed, ready: &Verdict) -> Option<Verdict> {
    let leader = seen.answer().filter(|answer| answer.is_leader && answers_for(seen));
    match leader.and_then(endangered) {
        Some(_) => None,
        None if ready.holds || (leader.is_some() && ready.reason != Reason::StorageUnavailable) => {
            Some(Verdict::new(true, Reason::Serving, "all data can be read and written"))
        }
        None => Some(ready.clone()),
    }
}

/// As many storage servers are away as there are copies, and not all chunks have theirs elsewhere. Those count that were replaced
/// and aren't forgotten, so the leader's word of what is elsewhere comes first.
fn endangered(answer: &ClusterStatus) -> Option<Problem> {
    let copies = usize::from(answer.copies.max(1));
    let away: Vec<&str> = answer
        .servers
        .iter()
        .filter(|server| !server.alive)
        .map(|server| server.address.split('.').next().unwrap_or_default())
        .collect();
    if away.len() < copies || answer.chunks_short == 0 || chunks_below(answer, 1) == Some(0) {
        return None;
    }
    let message = format!(
        "{} of {} storage servers don't respond ({}), and {} chunks lack replicas: data with all {copies} copies on these \
         servers can't be read until one of them is back",
        away.len(),
        answer.servers.len(),
        away.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", "),
        answer.chunks_short
    );
    Some(Problem::new(Reason::DataUnavailable, message))
}

fn name_conflict(seen: &Observed, plan: &Plan) -> Option<Verdict> {
    match plan.problem.as_ref().filter(|problem| problem.reason == Reason::NameConflict) {
        Some(problem) => Some(Verdict::of(true, problem)),
        None => seen.cluster.condition(ConditionType::NameConflict).map(|_| {
            Verdict::new(false, Reason::AsSpecified, "no object of its name belongs to something else")
        }),
    }
}

/// Whether copies share a node, or wait for one since they may not.
fn placement(seen: &Observed, wanted: &Result<Wanted, Problem>) -> Option<Verdict> {
    let wanted = wanted.as_ref().ok()?;
    let found = placement::waiting(seen, wanted).or_else(|| placement::degraded(seen, wanted));
    let has_it = || seen.cluster.condition(ConditionType::PlacementDegraded).is_some();
    found.map(|problem| Verdict::of(true, &problem)).or_else(|| {
        has_it().then(|| Verdict::new(false, Reason::AsSpecified, "copies are on different nodes"))
    })
}

/// How it stands with a version that was asked for.
fn upgrade_blocked(seen: &Observed, wanted: &Result<Wanted, Problem>) -> Option<Verdict> {
    let wanted = wanted.as_ref().ok().filter(|_| seen.cluster_id().is_some())?;
    let found = match intent(seen, wanted) {
        Intent::Refuse(problem) => Some(Verdict::of(true, &problem)),
        Intent::Wait(problem) => Some(Verdict::of(false, &problem)),
        Intent::Stay | Intent::Move(_) => stuck(seen, wanted)
            .map(|problem| Verdict::of(true, &problem))
            .or_else(|| rolling(seen, wanted).map(|problem| Verdict::of(false, &problem)))
            .or_else(|| level_waits(seen).map(|problem| Verdict::of(false, &problem))),
    };
    let has_it = || seen.cluster.condition(ConditionType::UpgradeBlocked).is_some();
    found.or_else(|| {
        has_it().then(|| {
            Verdict::new(false, Reason::AsSpecified, format!("the pods run the version {}", wanted.version))
        })
    })
}

/// A pod that was made anew doesn't get ready, while others still run what was before.
fn stuck(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    // What pods do that were made from the template before says nothing of the version that is asked for now.
    let template = |set: &StatefulSet| set.spec.as_ref().and_then(|spec| spec.template.metadata.clone());
    let is_asked_for = |set: &StatefulSet| {
        template(set).is_some_and(|meta| annotation(&meta, annotations::VERSION) == Some(&wanted.version))
    };
    if !seen.statefulsets.values().all(is_asked_for) {
        return None;
    }
    let old: Vec<&Pod> = Component::ALL.into_iter().flat_map(|component| outdated(seen, component)).collect();
    let before = old.iter().find_map(|pod| annotation(&pod.metadata, annotations::VERSION));
    let before = before.or(seen.cluster.status.as_ref().and_then(|status| status.version.as_deref()));
    let is_old = |pod: &Pod| old.iter().any(|old| old.metadata.name == pod.metadata.name);
    let mut new = Component::ALL.into_iter().flat_map(|component| seen.pods_of(component));
    let problem = new
        .find_map(|pod| {
            let name = pod.metadata.name.as_deref()?;
            pod_trouble(name, pod).filter(|problem| problem.reason.needs_somebody() && !is_old(pod))
        })
        .filter(|_| !old.is_empty())?;
    let back = match before {
        Some(before) if before != wanted.version => format!("; to go back, set spec.version to {before}"),
        _ => String::new(),
    };
    let message =
        format!("{}; the other {} pods stay as they are until it is ready{back}", problem.message, old.len());
    Some(Problem::new(problem.reason, message))
}

/// Pods are still to be made anew.
fn rolling(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    let old: usize = Component::ALL.into_iter().map(|component| outdated(seen, component).len()).sum();
    let why = unwell(seen, wanted).map(|why| format!(" ({why})")).unwrap_or_default();
    (old > 0).then(|| {
        let message =
            format!("{old} pods are still to be re-created, one at a time, while all others are ready{why}");
        Problem::new(Reason::RollingOut, message)
    })
}

/// What doesn't pass by waiting. A pause is somebody's will.
fn stalled(
    seen: &Observed,
    wanted: &Result<Wanted, Problem>,
    plan: &Plan,
    ready: &Verdict,
) -> Option<Verdict> {
    let of_plan = plan.problem.clone();
    let of_servers = || {
        let wanted = wanted.as_ref().ok()?;
        let found = placement::waiting(seen, wanted).into_iter();
        let mut found = found.chain(replacement(seen, wanted)).chain(removal(seen, wanted));
        found.find(|problem| problem.reason.needs_somebody())
    };
    let of_pods = || cause(seen, wanted).filter(|_| !ready.holds);
    let problem = of_plan.or_else(of_servers).or_else(of_pods)?;
    (problem.reason.needs_somebody() && problem.reason != Reason::Paused).then(|| Verdict::of(true, &problem))
}

fn ready(seen: &Observed, wanted: &Result<Wanted, Problem>, plan: &Plan) -> Verdict {
    let serving = || Verdict::new(true, Reason::Serving, "the volume can be mounted and used");
    // Storage servers are known to the leader alone.
    if let Some(answer) = seen.answer().filter(|answer| answer.is_leader && answers_for(seen)) {
        let copies = usize::from(answer.copies.max(1));
        // A new volume begins with all its copies; later one may be away.
        let needed = if was_ready(seen) { copies.saturating_sub(1).max(1) } else { copies };
        let alive = answer.servers.iter().filter(|server| server.alive).count();
        if alive < needed {
            let why = cause(seen, wanted).map(|found| format!(": {}", found.message)).unwrap_or_default();
            let message = format!("{alive} storage servers are available, and {needed} are required{why}");
            return Verdict::new(false, Reason::StorageUnavailable, message);
        }
        if let Some(problem) = endangered(answer) {
            return Verdict::of(false, &problem);
        }
        // Nor does it begin with fewer metadata servers than it shall have.
        if let Ok(wanted) = wanted
            && !was_ready(seen)
            && let Some(message) = lacks_members(seen, wanted)
        {
            return Verdict::new(false, Reason::Bootstrapping, message);
        }
        return serving();
    }
    if is_between_leaders(seen, wanted) {
        return serving();
    }
    if let Some(problem) = &plan.problem {
        return Verdict::of(false, problem);
    }
    if let Some(problem) = cause(seen, wanted) {
        return Verdict::of(false, &problem);
    }
    match &seen.metadata {
        MetadataFact::Unreachable(why) => {
            let message = format!("the metadata servers don't respond: {why}");
            Verdict::new(false, Reason::MetadataUnreachable, message)
        }
        MetadataFact::Answers(_) if answers_for(seen) => Verdict::new(
            false,
            Reason::MetadataUnreachable,
            "the metadata servers have no leader that responds",
        ),
        MetadataFact::Answers(_) => Verdict::new(false, Reason::Bootstrapping, "the volume is being created"),
        MetadataFact::NotAsked => Verdict::new(false, Reason::Applying, "objects are being created"),
    }
}

/// Metadata servers are still to get into the group.
fn lacks_members(seen: &Observed, wanted: &Wanted) -> Option<String> {
    let wanted = usize::from(wanted.workload(Component::Metadata).replicas);
    let there = seen.answer()?.members.iter().filter(|member| member.voter).count();
    (there < wanted).then(|| format!("{there} of {wanted} metadata servers are members of the group"))
}

/// What keeps pods from working, the most telling first.
fn cause(seen: &Observed, wanted: &Result<Wanted, Problem>) -> Option<Problem> {
    troubles(seen, wanted.as_ref().ok()?).into_iter().next()
}

fn degraded(seen: &Observed, wanted: &Result<Wanted, Problem>, plan: &Plan, ready: &Verdict) -> Verdict {
    if let Some(problem) = plan.problem.as_ref().filter(|problem| problem.reason.needs_somebody()) {
        return Verdict::of(problem.reason != Reason::Paused, problem);
    }
    // A cluster that is being made isn't worse than it should be.
    if !was_ready(seen) && !ready.holds {
        let stuck = cause(seen, wanted).filter(|problem| problem.reason.needs_somebody());
        return match stuck {
            Some(problem) => Verdict::of(true, &problem),
            None => Verdict::new(false, Reason::AsSpecified, "the cluster is being created"),
        };
    }
    let mut problems: Vec<Problem> = wanted.as_ref().map(|wanted| troubles(seen, wanted)).unwrap_or_default();
    // What is done about it says more than what it does to pods.
    if let Ok(wanted) = wanted {
        problems.splice(0..0, placement::waiting(seen, wanted).into_iter().chain(replacement(seen, wanted)));
    }
    if !was_ready(seen) {
        // Usable from now on; that pods are a moment behind their servers is progress.
        problems.retain(|problem| problem.reason != Reason::PodsStarting);
    }
    // What a member says for itself while there is no leader is of a moment.
    if let Some(answer) = seen.answer().filter(|answer| answer.is_leader || !ready.holds) {
        problems.extend(answer.problems.iter().map(|text| Problem::new(Reason::Unhealthy, text.clone())));
    }
    if !ready.holds && problems.is_empty() {
        problems.push(Problem::new(ready.reason, ready.message.clone()));
    }
    match problems.first() {
        None => Verdict::new(false, Reason::AsSpecified, "all servers are available"),
        Some(first) => {
            let named: Vec<&str> =
                problems.iter().take(NAMED_MAX).map(|problem| problem.message.as_str()).collect();
            let more = problems.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            Verdict::new(true, first.reason, format!("{}{more}", named.join("; ")))
        }
    }
}

/// Whether the volume and its disks have the size that the spec asks for.
fn expansion(seen: &Observed, wanted: &Result<Wanted, Problem>) -> Option<Verdict> {
    let wanted = wanted.as_ref().ok().filter(|_| is_made(seen))?;
    Some(match pending(seen, wanted) {
        Some(problem) => Verdict::of(true, &problem),
        None => Verdict::new(false, Reason::AsSpecified, "the volume has the size that is specified"),
    })
}

fn progressing(
    seen: &Observed,
    wanted: &Result<Wanted, Problem>,
    plan: &Plan,
    ready: &Verdict,
    expansion: Option<&Verdict>,
) -> Verdict {
    if let Some(problem) = &plan.problem {
        return Verdict::of(!problem.reason.needs_somebody(), problem);
    }
    let Ok(wanted) = wanted else {
        return Verdict::new(false, Reason::InvalidSpec, "the spec is invalid");
    };
    if let Some(expansion) = expansion.filter(|found| found.holds && !found.reason.needs_somebody()) {
        return expansion.clone();
    }
    let moves = replacement(seen, wanted).or_else(|| removal(seen, wanted));
    if let Some(problem) = moves {
        return Verdict::of(!problem.reason.needs_somebody(), &problem);
    }
    // How many pods may be evicted follows the servers, and is no step towards anything.
    let is_step = |action: &Action| !matches!(action, Action::Apply(Owned::Budget(_)));
    if plan.actions.iter().any(is_step) {
        return Verdict::new(true, Reason::Applying, "objects are being created or changed");
    }
    if let Some(problem) = rolling(seen, wanted) {
        return Verdict::of(true, &problem);
    }
    for component in Component::ALL {
        let ready = seen.pods_of(component).filter(|pod| is_ready(pod)).count();
        let replicas = usize::from(wanted.workload(component).replicas);
        if ready < replicas {
            let message = format!("{ready} of {replicas} {component} pods are ready");
            return Verdict::new(true, Reason::PodsStarting, message);
        }
    }
    if !ready.holds {
        return Verdict::new(true, ready.reason, ready.message.clone());
    }
    if let Some(message) = lacks_members(seen, wanted) {
        return Verdict::new(true, Reason::Bootstrapping, message);
    }
    Verdict::new(false, Reason::AsSpecified, "everything is as specified")
}

#[cfg(test)]
mod tests;
