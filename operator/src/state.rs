//! How a cluster is, in words: the conditions, from what was seen and what keeps the plan from going on. Pure.

use atoll_crds::names::Component;
use atoll_crds::v1alpha1::{ConditionType, Phase, Reason};

use crate::observe::{MetadataFact, Observed, is_ready};
use crate::plan::{Plan, is_made, outdated, pending};
use crate::trouble::troubles;
use crate::validate::{Problem, Wanted};

/// Problems that one message names.
const NAMED_MAX: usize = 3;

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
    /// The operator is on its way.
    pub progressing: Verdict,
    /// Something is worse than it should be.
    pub degraded: Verdict,
    /// The volume or a disk is smaller than specified; only of a volume that was made.
    pub expansion: Option<Verdict>,
    /// Its deletion waits; only of one that is being deleted.
    pub deletion_blocked: Option<Verdict>,
    /// In one word.
    pub phase: Phase,
}

/// Judges.
pub fn assess(seen: &Observed, wanted: &Result<Wanted, Problem>, plan: &Plan) -> Assessment {
    if seen.cluster.is_terminating() {
        return deleting(plan);
    }
    let ready = ready(seen, wanted, plan);
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
    Assessment { ready, progressing, degraded, expansion, deletion_blocked: None, phase }
}

fn deleting(plan: &Plan) -> Assessment {
    let problem = plan
        .problem
        .clone()
        .unwrap_or_else(|| Problem::new(Reason::Deleting, "the cluster is being deleted"));
    let blocked = problem.reason.blocks_deletion();
    let ready_reason = if blocked { Reason::DeletionBlocked } else { problem.reason };
    Assessment {
        ready: Verdict::new(false, ready_reason, problem.message.clone()),
        progressing: Verdict::of(true, &problem),
        degraded: Verdict::new(false, Reason::Deleting, "the cluster is being deleted"),
        expansion: None,
        deletion_blocked: Some(Verdict::of(blocked, &problem)),
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
        Some(Phase::Creating | Phase::Blocked | Phase::Paused | Phase::Deleting) | None => {
            seen.cluster.condition(ConditionType::Ready).is_some_and(|ready| ready.status == "True")
        }
    }
}

fn ready(seen: &Observed, wanted: &Result<Wanted, Problem>, plan: &Plan) -> Verdict {
    if let Some(answer) = seen.answer().filter(|_| answers_for(seen)) {
        let copies = usize::from(answer.copies.max(1));
        // A new volume begins with all its copies; later one may be away.
        let needed = if was_ready(seen) { copies.saturating_sub(1).max(1) } else { copies };
        let alive = answer.servers.iter().filter(|server| server.alive).count();
        if alive < needed {
            let why = cause(seen, wanted).map(|found| format!(": {}", found.message)).unwrap_or_default();
            let message = format!("{alive} storage servers are available, and {needed} are required{why}");
            return Verdict::new(false, Reason::StorageUnavailable, message);
        }
        if answer.leader.is_none() {
            return Verdict::new(false, Reason::MetadataUnreachable, "the metadata servers have no leader");
        }
        // Nor does it begin with fewer metadata servers than it shall have.
        if let Ok(wanted) = wanted
            && !was_ready(seen)
            && let Some(message) = lacks_members(seen, wanted)
        {
            return Verdict::new(false, Reason::Bootstrapping, message);
        }
        return Verdict::new(true, Reason::Serving, "the volume can be mounted and used");
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
    if !was_ready(seen) {
        // Usable from now on; that pods are a moment behind their servers is progress.
        problems.retain(|problem| problem.reason != Reason::PodsStarting);
    }
    if let Some(answer) = seen.answer() {
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
    if !plan.actions.is_empty() {
        return Verdict::new(true, Reason::Applying, "objects are being created or changed");
    }
    let old: usize = Component::ALL.into_iter().map(|component| outdated(seen, component).len()).sum();
    if old > 0 {
        let message =
            format!("{old} pods are still to be re-created, one at a time, while all others are ready");
        return Verdict::new(true, Reason::Applying, message);
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
