//! Servers whose disk, PVC or node is gone for good are replaced, one at a time: a new disk gets the old one's place.
//!
//! What is gone can't be told from what is away, so only three things count: a node that doesn't exist any more or is marked as
//! out of service, a PVC that was deleted, a PVC whose volume is lost. And a disk is let go only once nothing depends on it: the
//! other metadata servers are a majority, and each chunk has the copies elsewhere that there can be.
//!
//! A storage server that is replaced is drained, so that no copy on it counts any more, and forgotten once no chunk names it. A
//! new disk has another server's id at the same address: who is silent there has been replaced.

use atoll_core::commands::ServerChange;
use atoll_crds::names::Component;
use atoll_crds::v1alpha1::Reason;
use atoll_proto::admin::ChangeServer;
use atoll_proto::metadata::{ClusterStatus, ServerStatus};
use k8s_openapi::api::core::v1::Pod;

use super::servers::{Place, asked, chunks_below, chunks_naming, ours, staying, there};
use super::{Action, is_made};
use crate::disk;
use crate::nodes::{MISSING_MIN, NodeState};
use crate::observe::{Observed, is_heard};
use crate::validate::{Problem, Wanted};

/// Parts of a message.
const NAMED_MAX: usize = 3;

/// What a server has lost.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ailment {
    /// Its PVC was deleted, and goes with its pod.
    Going,
    /// Its disk, for this reason.
    Lost(String),
    /// A node for a disk that was never there.
    Unbindable,
    /// The node of its pod; the disk can be used elsewhere.
    Stranded,
}

/// What is done, and what is said.
#[derive(Debug, Default)]
struct Healing {
    actions: Vec<Action>,
    problems: Vec<Problem>,
}

/// The next steps by which what is gone is replaced.
pub fn next(seen: &Observed, wanted: &Wanted) -> Vec<Action> {
    decide(seen, wanted).actions
}

/// What is being replaced, or why it can't be and what to do.
pub fn pending(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    let mut problems = decide(seen, wanted).problems;
    problems.sort_by_key(|problem| !problem.reason.needs_somebody());
    let first = problems.first()?.reason;
    let more = problems.len().saturating_sub(NAMED_MAX);
    let named: Vec<&str> = problems.iter().take(NAMED_MAX).map(|found| found.message.as_str()).collect();
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Some(Problem::new(first, format!("{}{more}", named.join("; "))))
}

/// The disk of a place is gone, or goes.
pub fn is_ailing(seen: &Observed, place: Place) -> bool {
    matches!(ailment(seen, place), Some(Ailment::Going | Ailment::Lost(_)))
}

fn decide(seen: &Observed, wanted: &Wanted) -> Healing {
    let mut healing = Healing::default();
    for component in Component::ALL {
        for place in Place::all(component, there(seen, component).max(asked(wanted, component))) {
            without_data(seen, place, &mut healing);
        }
    }
    if !is_made(seen) || !healing.actions.is_empty() {
        return healing;
    }
    waits_for_nodes(seen, wanted, &mut healing);
    let gone: Vec<(Place, Ailment)> = Component::ALL
        .into_iter()
        .flat_map(|component| Place::all(component, asked(wanted, component)))
        .filter_map(|place| Some((place, ailment(seen, place)?)))
        .filter(|(_, ailment)| matches!(ailment, Ailment::Going | Ailment::Lost(_)))
        .collect();
    let Some(answer) = ours(seen) else {
        healing
            .problems
            .extend(gone.first().map(|(place, ailment)| leaderless(seen, wanted, *place, ailment)));
        return healing;
    };
    for (place, _) in gone.iter().filter(|(place, _)| place.component == Component::Storage) {
        drain(seen, answer, *place, &mut healing.actions);
    }
    replaced(seen, answer, &mut healing);
    replace(seen, wanted, answer, &gone, &mut healing);
    healing
}

fn ailment(seen: &Observed, place: Place) -> Option<Ailment> {
    let name = place.pvc_name(seen);
    let stranded = || {
        let pod = place.pod(seen).filter(|_| !place.is_ready(seen))?;
        seen.nodes.of_pod(pod).filter(|(_, state)| state.is_gone()).map(|_| Ailment::Stranded)
    };
    let Some(pvc) = place.pvc(seen) else { return stranded() };
    if pvc.metadata.deletion_timestamp.is_some() {
        return Some(Ailment::Going);
    }
    if pvc.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
        return Some(Ailment::Lost(format!("the PersistentVolume of PVC {name} doesn't exist any more")));
    }
    match seen.nodes.away(&name).filter(|(_, state)| state.is_gone()) {
        Some(_) if disk::is_unbound(pvc) => Some(Ailment::Unbindable),
        Some((node, state)) => {
            Some(Ailment::Lost(format!("node {node}, where PVC {name} is, {}", state.words())))
        }
        None => stranded(),
    }
}

/// What needs no thought, since no disk is let go that ever held anything, or that anybody else has a say in.
fn without_data(seen: &Observed, place: Place, healing: &mut Healing) {
    let pod = place.pod(seen);
    match ailment(seen, place) {
        Some(Ailment::Unbindable) => {
            healing.actions.push(Action::DiscardClaim(place.pvc_name(seen)));
            healing.actions.extend(pod.and_then(|pod| evict(seen, pod)));
        }
        // The pod can't come to its end there. Where its disk was deleted as well, somebody has said what shall be.
        Some(Ailment::Stranded) => healing.actions.extend(pod.and_then(|pod| evict(seen, pod))),
        Some(Ailment::Going)
            if pod.and_then(|pod| seen.nodes.of_pod(pod)).is_some_and(|(_, state)| state.is_gone()) =>
        {
            healing.actions.extend(pod.and_then(|pod| evict(seen, pod)));
        }
        Some(Ailment::Going | Ailment::Lost(_)) => {}
        // Its disk went while it waited for a node: it gets a new one with a new pod.
        None if place.pvc(seen).is_none() => {
            let waits = pod.filter(|pod| lacks_claim(pod, &place.pvc_name(seen)));
            healing.actions.extend(waits.and_then(|pod| evict(seen, pod)));
        }
        None => {}
    }
    if !healing.actions.is_empty() && healing.problems.is_empty() {
        let message = format!("{} is re-created, since its node is gone", place.pod_name(seen));
        healing.problems.push(Problem::new(Reason::ReplacingServer, message));
    }
}

/// The scheduler says that a pod waits for a claim that isn't there. Whoever creates the pod creates its claim, and nobody else.
fn lacks_claim(pod: &Pod, claim: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    conditions.into_iter().filter(|found| found.type_ == "PodScheduled" && found.status == "False").any(
        |found| {
            let said = found.message.as_deref().unwrap_or_default();
            said.contains(&format!("persistentvolumeclaim \"{claim}\" not found"))
        },
    )
}

/// Has a pod go. On a node that is gone nobody would say that it has ended.
fn evict(seen: &Observed, pod: &Pod) -> Option<Action> {
    let forced = seen.nodes.of_pod(pod).is_some_and(|(_, state)| state.is_gone());
    if pod.metadata.deletion_timestamp.is_some() && !forced {
        return None;
    }
    Some(Action::EvictPod { name: pod.metadata.name.clone()?, uid: pod.metadata.uid.clone()?, forced })
}

/// Nodes that may come back are waited for; who knows that they don't can say so.
fn waits_for_nodes(seen: &Observed, wanted: &Wanted, healing: &mut Healing) {
    for component in Component::ALL {
        for place in Place::all(component, asked(wanted, component)) {
            let pod = place.pod(seen);
            if place.is_ready(seen) {
                continue;
            }
            let of_disk = seen.nodes.away(&place.pvc_name(seen));
            let of_pod =
                pod.and_then(|pod| seen.nodes.of_pod(pod)).filter(|(_, state)| *state != NodeState::Ready);
            let Some((node, state)) = of_disk.or(of_pod).filter(|(_, state)| !state.is_gone()) else {
                continue;
            };
            let name = place.pod_name(seen);
            let message = match state {
                NodeState::Missing(_) => format!(
                    "node {node} of {name} doesn't exist any more: {name} is replaced if it doesn't come back within {} s",
                    MISSING_MIN.as_secs()
                ),
                NodeState::Ready | NodeState::NotReady | NodeState::OutOfService => format!(
                    "node {node} of {name} {}, and is waited for: if it doesn't come back, delete it (kubectl delete node \
                     {node}), or taint it once it is off (kubectl taint node {node} \
                     node.kubernetes.io/out-of-service=lost:NoExecute), and {name} is replaced",
                    state.words()
                ),
            };
            healing.problems.push(Problem::new(Reason::NodeNotReady, message));
        }
    }
}

/// Without the leader nobody knows which copies there are.
fn leaderless(seen: &Observed, wanted: &Wanted, place: Place, ailment: &Ailment) -> Problem {
    let members = asked(wanted, Component::Metadata);
    let lost = Place::all(Component::Metadata, members).filter(|place| is_ailing(seen, *place)).count();
    let (pod, why) = (place.pod_name(seen), because(seen, place, ailment));
    if lost * 2 >= members as usize {
        let message = format!(
            "{why}, and {lost} of {members} metadata servers are lost: without a majority nothing can be replaced. Bring their \
             nodes or disks back; if they are lost for good, use kubectl atoll unsafe-recovery"
        );
        return Problem::new(Reason::ReplacementBlocked, message);
    }
    let message = format!("{why}: {pod} is replaced once the metadata servers' leader responds");
    Problem::new(Reason::ReplacingServer, message)
}

fn because(seen: &Observed, place: Place, ailment: &Ailment) -> String {
    match ailment {
        Ailment::Lost(why) => why.clone(),
        Ailment::Going | Ailment::Unbindable | Ailment::Stranded => {
            format!("PVC {} was deleted", place.pvc_name(seen))
        }
    }
}

/// From now on no copy there counts, and each is made elsewhere. One that is alive goes on serving meanwhile.
fn drain(seen: &Observed, answer: &ClusterStatus, place: Place, actions: &mut Vec<Action>) {
    for server in place.storage_servers(seen, answer).into_iter().filter(|server| !server.draining) {
        // Writers would find nowhere to write to.
        if !server.alive || others(answer, server) >= copies_min(answer) {
            actions.push(change(server, ServerChange::Drain));
        }
    }
}

/// Servers whose place another one has taken: forgotten, once no chunk names them.
fn replaced(seen: &Observed, answer: &ClusterStatus, healing: &mut Healing) {
    for server in answer.servers.iter().filter(|server| !server.alive) {
        let taken = answer.servers.iter().any(|other| other.alive && other.address == server.address);
        let place = Place::all(Component::Storage, there(seen, Component::Storage))
            .find(|place| place.address(seen) == server.address);
        let (true, Some(place)) = (taken, place) else { continue };
        if !server.draining {
            healing.actions.push(change(server, ServerChange::Drain));
        }
        match chunks_naming(answer, server.server) {
            Some(0) if server.draining => healing.actions.push(change(server, ServerChange::Forget)),
            Some(0) => {}
            Some(chunks) => {
                let lost = chunks_below(answer, 1).unwrap_or(0);
                let pod = place.pod_name(seen);
                healing.problems.push(if lost > 0 {
                    let message = format!(
                        "{pod} has a new disk, and {lost} chunks have no replica on any disk that is there: what files have \
                         in them can't be read; atoll-fs fsck --data names these chunks"
                    );
                    Problem::new(Reason::ReplacementBlocked, message)
                } else {
                    let eta = eta(answer);
                    let message = format!("{pod} has a new disk: {chunks} chunks of its old one are being copied{eta}");
                    Problem::new(Reason::ReplacingServer, message)
                });
            }
            None => healing.problems.push(too_old()),
        }
    }
}

/// Lets one disk go, if it may.
fn replace(
    seen: &Observed,
    wanted: &Wanted,
    answer: &ClusterStatus,
    gone: &[(Place, Ailment)],
    healing: &mut Healing,
) {
    // What is silent anyway first: nothing changes for anybody.
    let mut ordered: Vec<&(Place, Ailment)> = gone.iter().collect();
    ordered.sort_by_key(|(place, _)| (place.is_ready(seen), *place));
    for (place, ailment) in ordered {
        let (pod, why) = (place.pod_name(seen), because(seen, *place, ailment));
        if let Err(Problem { reason, message }) = may_go(seen, wanted, answer, *place, gone) {
            healing.problems.push(Problem::new(reason, format!("{why}: {message}")));
            continue;
        }
        let message = format!("{why}: {pod} is being replaced");
        healing.problems.push(Problem::new(Reason::ReplacingServer, message));
        // What these change is seen first.
        if healing.actions.is_empty() {
            if let Ailment::Lost(_) = ailment {
                healing.actions.push(Action::DiscardDisk { pvc: place.pvc_name(seen), why });
            }
            healing.actions.extend(place.pod(seen).and_then(|pod| evict(seen, pod)));
        }
        // One at a time.
        return;
    }
}

/// Whether nothing depends on the disk of a place.
fn may_go(
    seen: &Observed,
    wanted: &Wanted,
    answer: &ClusterStatus,
    place: Place,
    gone: &[(Place, Ailment)],
) -> Result<(), Problem> {
    if let Some(other) = comes_back(seen, wanted, answer, gone) {
        let message = format!("{} waits until {other} is back", place.pod_name(seen));
        return Err(Problem::new(Reason::ReplacingServer, message));
    }
    match place.component {
        Component::Metadata => member_may_go(seen, answer, place),
        Component::Storage => server_may_go(seen, answer, place),
    }
}

/// One that has lost nothing and isn't there, or whose place was taken a moment ago: one at a time.
fn comes_back(
    seen: &Observed,
    wanted: &Wanted,
    answer: &ClusterStatus,
    gone: &[(Place, Ailment)],
) -> Option<String> {
    let is_back = |place: &Place| {
        place.is_ready(seen)
            && match place.component {
                Component::Storage => place.storage_servers(seen, answer).iter().any(|server| server.alive),
                Component::Metadata => place.member(seen, answer).is_some_and(is_heard),
            }
    };
    Component::ALL
        .into_iter()
        .flat_map(|component| Place::all(component, asked(wanted, component)))
        .filter(|place| !gone.iter().any(|(other, _)| other == place))
        .find(|place| !is_back(place))
        .map(|place| place.pod_name(seen))
}

/// The others are a majority, and have all that was ever committed.
fn member_may_go(seen: &Observed, answer: &ClusterStatus, place: Place) -> Result<(), Problem> {
    let pod = place.pod_name(seen);
    let Some(this) = place.member(seen, answer) else { return Ok(()) };
    let others = answer.members.iter().filter(|member| member.member != this.member);
    let heard = others.filter(|member| member.voter && is_heard(member)).count();
    if answer.members.len() == 1 {
        let message = format!(
            "{pod} is the only metadata server, so its disk has the only records of the volume: set spec.metadata.replicas to \
             3, and it is replaced once the others are there"
        );
        return Err(Problem::new(Reason::ReplacementBlocked, message));
    }
    if heard * 2 <= answer.members.len() {
        let message = format!(
            "{pod} is replaced once a majority of the metadata servers responds without it; {heard} of {} do",
            answer.members.len()
        );
        return Err(Problem::new(Reason::ReplacingServer, message));
    }
    unread(answer, &pod)
}

/// Where chunks can't be read, what the records say of them is needed most.
fn unread(answer: &ClusterStatus, pod: &str) -> Result<(), Problem> {
    match chunks_below(answer, 1).unwrap_or(answer.chunks_short) {
        0 => Ok(()),
        chunks => {
            let message = format!("{pod} is replaced once all chunks can be read; {chunks} can't be");
            Err(Problem::new(Reason::ReplacingServer, message))
        }
    }
}

/// Each chunk has its copies elsewhere, as many as there can be, and writers find servers enough.
fn server_may_go(seen: &Observed, answer: &ClusterStatus, place: Place) -> Result<(), Problem> {
    let pod = place.pod_name(seen);
    let servers = place.storage_servers(seen, answer);
    let others = servers.first().map_or_else(|| staying(answer).count(), |server| others(answer, server));
    if servers.iter().any(|server| server.alive) && others < copies_min(answer) {
        let message = format!(
            "{pod} is needed: only {others} other storage servers are available for {} copies; add one with \
             spec.storage.replicas",
            answer.copies
        );
        return Err(Problem::new(Reason::ReplacementBlocked, message));
    }
    let needed = others.min(answer.copies.into()).max(1);
    match (chunks_below(answer, 1), chunks_below(answer, needed)) {
        (Some(_), Some(0)) => Ok(()),
        (Some(only), Some(_)) if only > 0 && !servers.iter().any(|server| server.alive) => {
            let pvc = place.pvc_name(seen);
            let message = format!(
                "{only} chunks have no replica anywhere else, so {pod} isn't replaced: bring the node or the disk back; if it \
                 is lost for good, and with it what files have in these chunks, delete the PVC (kubectl -n {} delete pvc {pvc})",
                seen.cluster.namespace_str()
            );
            Err(Problem::new(Reason::ReplacementBlocked, message))
        }
        (Some(_), Some(chunks)) => {
            let message = format!(
                "{pod} is replaced once {chunks} chunks have more replicas on the other storage servers{}",
                eta(answer)
            );
            Err(Problem::new(Reason::ReplacingServer, message))
        }
        _ => Err(too_old()),
    }
}

fn too_old() -> Problem {
    let message = "the metadata servers' version doesn't say which chunks have replicas where: storage servers are replaced \
                   once all metadata servers run this version";
    Problem::new(Reason::ReplacingServer, message)
}

fn others(answer: &ClusterStatus, server: &ServerStatus) -> usize {
    staying(answer).filter(|other| other.address != server.address).count()
}

/// Storage servers with fewer of which writers wait.
fn copies_min(answer: &ClusterStatus) -> usize {
    usize::from(answer.copies.saturating_sub(1).max(1))
}

/// How long repair takes.
pub fn eta(answer: &ClusterStatus) -> String {
    answer.repair.eta_seconds.map(|seconds| format!(", for another {seconds} s")).unwrap_or_default()
}

/// A change of a storage server.
pub fn change(server: &ServerStatus, change: ServerChange) -> Action {
    Action::ChangeServer(ChangeServer { server: server.server, change })
}

#[cfg(test)]
mod tests;
