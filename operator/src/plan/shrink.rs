//! Servers that the spec doesn't ask for any more go, the highest number first and one at a time.
//!
//! Storage servers are drained: what is on them goes to the others while it can be read and written. A metadata server leaves
//! the group. Only then its pod goes, then its record, then its disk. Each step is seen before the next one is made, so a larger
//! number in between calls off what is left of it: a server that is drained is used again, and one that has left the group joins
//! with a new disk.
//!
//! Where the spec names no number of storage servers it asks for those that there are ([`super::growth`]).

use atoll_core::commands::ServerChange;
use atoll_core::ids::MemberId;
use atoll_crds::Quantity;
use atoll_crds::names::{Component, annotations, labels};
use atoll_crds::v1alpha1::Reason;
use atoll_proto::admin::MembersChange;
use atoll_proto::metadata::{ClusterStatus, MemberStatus, ServerStatus};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

use super::heal::{self, change, eta};
use super::servers::{Place, asked, chunks_naming, ours, replicas_now, staying, there};
use super::{Action, is_made};
use crate::disk::{self, Disk};
use crate::observe::{Observed, is_heard, label};
use crate::validate::{Problem, Wanted, holds_with_room};

/// Servers that a message names.
const NAMED_MAX: usize = 3;

/// What shall be for now: those that have to go first are there until they may.
pub fn held(mut wanted: Wanted, seen: &Observed) -> Wanted {
    for workload in wanted.workloads.values_mut() {
        workload.replicas_asked = workload.replicas;
    }
    if !is_made(seen) {
        return wanted;
    }
    for component in Component::ALL {
        let held = held_replicas(seen, &wanted, component);
        if let Some(workload) = wanted.workloads.get_mut(&component) {
            workload.replicas = u8::try_from(held).unwrap_or(u8::MAX);
        }
    }
    wanted
}

fn held_replicas(seen: &Observed, wanted: &Wanted, component: Component) -> u32 {
    let (there, asked) = (there(seen, component), asked(wanted, component));
    if there <= asked {
        return asked;
    }
    if component == Component::Storage && refused(seen, wanted).is_some() {
        return there;
    }
    let Some(answer) = ours(seen) else {
        // Nobody says who may go; who was let go before stays away.
        return replicas_now(seen, component).map_or(there, |now| now.clamp(asked, there));
    };
    let last = Place { component, ordinal: there - 1 };
    if is_free(seen, answer, last) { last.ordinal } else { there }
}

/// Nothing depends on the server of a place any more.
fn is_free(seen: &Observed, answer: &ClusterStatus, place: Place) -> bool {
    match place.component {
        Component::Metadata => place.member(seen, answer).is_none(),
        Component::Storage => {
            // Who gets no chunks any more: it is drained, or isn't there at all.
            let rests =
                |server: &ServerStatus| server.draining || (!server.alive && place.pod(seen).is_none());
            let servers = place.storage_servers(seen, answer);
            servers.iter().all(|server| rests(server) && chunks_naming(answer, server.server) == Some(0))
        }
    }
}

/// The next steps by which servers go, or are used again.
pub fn next(seen: &Observed, wanted: &Wanted) -> Vec<Action> {
    if !is_made(seen) {
        return Vec::new();
    }
    let Some(answer) = ours(seen) else { return Vec::new() };
    let mut actions = storage(seen, wanted, answer);
    actions.extend(metadata(seen, wanted, answer));
    for component in Component::ALL {
        actions.extend(left_over(seen, wanted, answer, component));
    }
    actions
}

fn storage(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus) -> Vec<Action> {
    let asked = asked(wanted, Component::Storage);
    let refused = refused(seen, wanted).is_some();
    let mut actions = Vec::new();
    for place in Place::all(Component::Storage, there(seen, Component::Storage)) {
        let leaves = place.ordinal >= asked;
        let gone = place.pod(seen).is_none()
            && replicas_now(seen, Component::Storage).is_some_and(|now| now <= place.ordinal);
        for server in place.storage_servers(seen, answer) {
            let empty = chunks_naming(answer, server.server) == Some(0);
            if leaves && !refused {
                if server.draining && empty && gone && !server.alive {
                    actions.push(change(server, ServerChange::Forget));
                } else if !server.draining && stay(seen, wanted, answer).is_ok() {
                    actions.push(change(server, ServerChange::Drain));
                }
            } else if server.draining && server.alive && !heal::is_ailing(seen, place) {
                actions.push(change(server, ServerChange::Undrain));
            }
        }
    }
    actions
}

/// Those that stay are there, and as many as copies; none of their pods is just being made anew.
fn stay(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus) -> Result<(), String> {
    // Else nobody would say when a server is empty, and pods of the next version would wait for that.
    if answer.chunks_by_replicas.is_empty() {
        return Err("waits until all metadata servers run this version".to_owned());
    }
    for place in Place::all(Component::Storage, asked(wanted, Component::Storage)) {
        let works = staying(answer).any(|server| server.address == place.address(seen));
        if !works || !place.is_ready(seen) || heal::is_ailing(seen, place) {
            return Err(format!("waits until {} is back", place.pod_name(seen)));
        }
    }
    Ok(())
}

/// One member at a time leaves the group, the highest first; the disk says so before, and the leader that a majority is there.
fn metadata(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus) -> Vec<Action> {
    let asked = asked(wanted, Component::Metadata);
    if let Some((place, member)) = leaving(seen, answer, asked).next() {
        let marked = place.pvc(seen).is_none_or(|pvc| left_as(pvc) == Some(member.member));
        if !marked {
            return vec![Action::MarkRemoved { pvc: place.pvc_name(seen), member: Some(member.member) }];
        }
        if members_stay(seen, answer, asked).is_err() {
            return Vec::new();
        }
        return vec![Action::ChangeMembers(MembersChange::Remove { member: member.member })];
    }
    let mut actions = Vec::new();
    for place in Place::all(Component::Metadata, asked) {
        let Some(pvc) = place.pvc(seen).filter(|pvc| pvc.metadata.deletion_timestamp.is_none()) else {
            continue;
        };
        let Some(left) = left_as(pvc) else { continue };
        let name = place.pvc_name(seen);
        if answer.members.iter().any(|member| member.member == left) {
            // It was called off before it began.
            actions.push(Action::MarkRemoved { pvc: name, member: None });
        } else {
            // Who has left never comes back as who it was: its disk is of no use to anybody.
            let why = format!("metadata server {left} has left the group");
            actions.push(Action::DiscardDisk { pvc: name, why });
            let evicted = place.pod(seen).filter(|pod| pod.metadata.deletion_timestamp.is_none());
            actions.extend(evicted.and_then(|pod| {
                let (name, uid) = (pod.metadata.name.clone()?, pod.metadata.uid.clone()?);
                Some(Action::EvictPod { name, uid, forced: false })
            }));
        }
    }
    actions
}

/// Members that are to leave, the highest first.
fn leaving<'a>(
    seen: &Observed,
    answer: &'a ClusterStatus,
    asked: u32,
) -> impl Iterator<Item = (Place, &'a MemberStatus)> {
    let places: Vec<Place> = Place::all(Component::Metadata, there(seen, Component::Metadata)).collect();
    let found: Vec<(Place, &MemberStatus)> = places
        .into_iter()
        .rev()
        .filter(|place| place.ordinal >= asked)
        .filter_map(|place| Some((place, place.member(seen, answer)?)))
        .collect();
    found.into_iter()
}

/// Those that stay are all members, and heard; none of their pods is just being made anew.
fn members_stay(seen: &Observed, answer: &ClusterStatus, asked: u32) -> Result<(), String> {
    for place in Place::all(Component::Metadata, asked) {
        let works = place.member(seen, answer).is_some_and(|member| member.voter && is_heard(member));
        if !works || !place.is_ready(seen) {
            return Err(format!("waits until {} is back", place.pod_name(seen)));
        }
    }
    Ok(())
}

/// The member that had this disk and has left, or is about to.
fn left_as(pvc: &PersistentVolumeClaim) -> Option<MemberId> {
    pvc.metadata.annotations.as_ref()?.get(annotations::REMOVED_MEMBER)?.parse().ok()
}

/// Disks beyond those that there shall be, of servers that are known to nobody any more.
fn left_over(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus, component: Component) -> Vec<Action> {
    let Some(now) = replicas_now(seen, component) else { return Vec::new() };
    let from = now.max(asked(wanted, component));
    let mut actions = Vec::new();
    for pvc in seen.pvcs_of(component) {
        let name = pvc.name_any();
        let Some(ordinal) = disk::ordinal(&name).filter(|ordinal| *ordinal >= from) else { continue };
        let place = Place { component, ordinal };
        let known = match component {
            Component::Metadata => place.member(seen, answer).is_some(),
            Component::Storage => !place.storage_servers(seen, answer).is_empty(),
        };
        let ours = label(&pvc.metadata, labels::CLUSTER_ID) == seen.cluster.cluster_id();
        let going = pvc.metadata.deletion_timestamp.is_some();
        if known || going || !ours || place.pod(seen).is_some() || is_strange(component, pvc) {
            continue;
        }
        actions.push(if disk::is_unbound(pvc) {
            Action::DiscardClaim(name)
        } else {
            let why = format!("{} was removed, as spec.{component}.replicas asks for", place.pod_name(seen));
            Action::DiscardDisk { pvc: name, why }
        });
    }
    actions
}

/// The disk of a member that left the group by other means than this: its records may be wanted.
fn is_strange(component: Component, pvc: &PersistentVolumeClaim) -> bool {
    component == Component::Metadata
        && label(&pvc.metadata, labels::MEMBER_ID).is_some()
        && left_as(pvc).is_none()
}

/// Why servers that the spec doesn't ask for are still there; none if there are none.
pub fn pending(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    let problems = problems(seen, wanted);
    let first = problems.first()?.reason;
    let messages: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
    Some(Problem::new(first, messages.join("; ")))
}

/// What is being removed, as long as it goes on by itself.
pub fn under_way(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    problems(seen, wanted).into_iter().find(|problem| !problem.reason.needs_somebody())
}

fn problems(seen: &Observed, wanted: &Wanted) -> Vec<Problem> {
    if !is_made(seen) {
        return Vec::new();
    }
    let mut problems: Vec<Problem> = Vec::new();
    problems.extend(refused(seen, wanted));
    let storage = problems.is_empty() && there(seen, Component::Storage) > asked(wanted, Component::Storage);
    let metadata = there(seen, Component::Metadata) > asked(wanted, Component::Metadata);
    let Some(answer) = ours(seen) else {
        let message = "servers are removed once the metadata servers' leader responds";
        let waits = (storage || metadata).then(|| Problem::new(Reason::RemovingServers, message));
        return problems.into_iter().chain(waits).take(1).collect();
    };
    if storage {
        problems.push(draining(seen, wanted, answer));
    }
    if metadata {
        problems.push(departing(seen, wanted, answer));
    }
    problems
}

fn draining(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus) -> Problem {
    let asked = asked(wanted, Component::Storage);
    let leaves = |server: &&ServerStatus| {
        Place::all(Component::Storage, there(seen, Component::Storage))
            .any(|place| place.ordinal >= asked && place.address(seen) == server.address)
    };
    let chunks = |server: &&ServerStatus| chunks_naming(answer, server.server).unwrap_or(server.chunks);
    let full: Vec<&ServerStatus> =
        answer.servers.iter().filter(leaves).filter(|server| chunks(server) > 0).collect();
    if full.is_empty() {
        let message = format!("the storage servers beyond the {asked} that are specified are being removed");
        return Problem::new(Reason::RemovingServers, message);
    }
    let left: u64 = full.iter().map(chunks).sum();
    let named: Vec<&str> =
        full.iter().take(NAMED_MAX).filter_map(|server| server.address.split('.').next()).collect();
    let how = match stay(seen, wanted, answer) {
        Ok(()) => format!("{left} replicas are still to be copied to the others{}", eta(answer)),
        Err(waits) => format!("{left} replicas are still to be copied; this {waits}"),
    };
    let message = format!("{} are drained before they are removed: {how}", named.join(", "));
    Problem::new(Reason::DrainingServers, message)
}

fn departing(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus) -> Problem {
    let asked = asked(wanted, Component::Metadata);
    let left = leaving(seen, answer, asked).count();
    if left == 0 {
        let strange = seen.pvcs_of(Component::Metadata).find(|pvc| {
            let beyond = disk::ordinal(&pvc.name_any()).is_some_and(|ordinal| ordinal >= asked);
            beyond && is_strange(Component::Metadata, pvc)
        });
        return match strange {
            Some(pvc) => {
                let message = format!(
                    "PVC {} has the records of a metadata server that isn't a member any more and that the operator didn't \
                     remove: delete the PVC if they aren't needed any more",
                    pvc.name_any()
                );
                Problem::new(Reason::ShrinkBlocked, message)
            }
            None => {
                let message =
                    format!("the metadata servers beyond the {asked} that are specified are being removed");
                Problem::new(Reason::RemovingServers, message)
            }
        };
    }
    let how =
        members_stay(seen, answer, asked).err().map(|waits| format!("; this {waits}")).unwrap_or_default();
    let message = format!("{left} metadata servers are to leave the group, one at a time{how}");
    Problem::new(Reason::RemovingServers, message)
}

/// Why the storage servers that the spec asks for aren't enough.
fn refused(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    let workload = wanted.workload(Component::Storage);
    let asked = asked(wanted, Component::Storage);
    if !workload.replicas_are_fixed || there(seen, Component::Storage) <= asked {
        return None;
    }
    let mut disks: Vec<Disk<'_>> =
        seen.pvcs_of(Component::Storage).filter_map(|pvc| Disk::of(pvc, &seen.classes)).collect();
    disks.sort_by_key(|disk| disk.ordinal);
    let sizes: Vec<u64> = disks.iter().map(|disk| disk.has_once_mounted(seen)).collect();
    let few = disks.iter().filter(|disk| disk.ordinal < asked).count();
    // One that is being replaced is waited for, and counts as the others do.
    if few < asked as usize {
        return None;
    }
    let granted = ours(seen).map_or(0, |answer| answer.volume.bytes_total);
    let capacity = granted.max(wanted.volume.bytes_total);
    let holds = |count: usize| {
        let whole = workload.size_asked.is_some();
        holds_with_room(&sizes[..count], wanted.volume.copies, capacity, whole)
    };
    if holds(few) {
        return None;
    }
    let least = (few..=sizes.len()).find(|count| holds(*count)).unwrap_or(sizes.len());
    let message = format!(
        "spec.storage.replicas is {asked}, and the disks of {asked} storage servers are too small for {} copies of {}: set it to \
         {least}, or lower spec.capacity first; until then all storage servers are used",
        wanted.volume.copies,
        Quantity::from_bytes(capacity)
    );
    Some(Problem::new(Reason::ShrinkBlocked, message))
}

#[cfg(test)]
mod tests;
