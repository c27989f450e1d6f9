//! How a volume gets another size while it is used.
//!
//! What may be written is the volume's quota. It is raised as soon as the disks have room for it. Where they haven't, the
//! disks grow if their class can expand them, and otherwise storage servers are added. No pod is restarted: the claims are
//! patched, and a StatefulSet, whose claim template can't be changed, is created anew around its running pods.
//!
//! Nothing of this depends on how the volume is otherwise: one that is full, degraded, or has a server away grows as well.

use std::collections::BTreeSet;

use atoll_crds::Quantity;
use atoll_crds::names::{self, Component, annotations, labels};
use atoll_crds::v1alpha1::Reason;
use atoll_proto::admin::ResizeVolume;
use atoll_proto::metadata::ClusterStatus;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::servers::ours;
use super::{Action, is_made};
use crate::build::statefulset::disk_of;
use crate::disk::{self, Disk};
use crate::observe::{Observed, label};
use crate::trouble::troubles;
use crate::validate::{
    Problem, SERVERS_MAX, Wanted, default_metadata_bytes, default_storage_bytes, holds_with_room,
    inline_budget,
};

/// Disks that a message names.
const NAMED_MAX: usize = 3;

/// What shall be of a volume that is there: its disks never get smaller, nor servers fewer, and both grow with its capacity
/// where the spec leaves that to the operator.
pub fn sized(mut wanted: Wanted, seen: &Observed) -> Wanted {
    if !is_made(seen) {
        return wanted;
    }
    let servers = servers(&wanted, seen);
    let metadata = size(&wanted, seen, Component::Metadata, servers);
    let storage = size(&wanted, seen, Component::Storage, servers);
    for (component, size) in [(Component::Metadata, metadata), (Component::Storage, storage)] {
        if let Some(workload) = wanted.workloads.get_mut(&component) {
            workload.disk.size = size;
        }
    }
    if let Some(workload) = wanted.workloads.get_mut(&Component::Storage) {
        workload.replicas = servers;
    }
    wanted
}

/// The next changes, if the volume or its disks don't have their size.
pub fn next(seen: &Observed, wanted: &Wanted) -> Vec<Action> {
    let Some(answer) = ours(seen) else { return Vec::new() };
    let mut actions = Vec::new();
    for component in Component::ALL {
        let of = Disks::of(seen, component);
        let workload = wanted.workload(component);
        let Some(target) = needed_size(wanted, seen, component, workload.replicas) else { continue };
        let before = of.template.as_ref().and_then(|size| size.bytes().ok());
        let due = of.disks.iter().filter(|disk| disk.ordinal < replicas(wanted, component));
        for disk in due.filter(|disk| must_change(disk, &target, before)) {
            actions.push(Action::ResizeDisk { pvc: disk.name.to_owned(), size: target.clone() });
        }
    }
    actions.extend(never_used(seen, wanted, answer));
    if !actions.is_empty() {
        return actions;
    }
    // The claims first, so that what they ask for says what the template is to be, wherever this ends.
    for component in Component::ALL {
        let of = Disks::of(seen, component);
        let target = wanted.workload(component).disk.size.bytes().ok();
        if let Some(template) = &of.template
            && template.bytes().ok() != target
        {
            return vec![Action::Recreate(names::workload(&wanted.name, component))];
        }
    }
    resize(seen, wanted, answer).map(Action::ResizeVolume).into_iter().collect()
}

/// Why the volume, or a disk, doesn't have the size that the spec asks for; none if it has, or isn't made yet.
pub fn pending(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    if !is_made(seen) {
        return None;
    }
    let grows = grows(seen, wanted);
    if let Some(problem) = too_small(seen, wanted) {
        return Some(problem);
    }
    if let Some(problem) = infeasible(seen, wanted, grows) {
        return Some(problem);
    }
    let resizing: Vec<String> = Component::ALL
        .into_iter()
        .flat_map(|component| lacking(seen, wanted, component))
        .map(|(disk, target)| progress(seen, &disk, &target))
        .collect();
    if !resizing.is_empty() {
        return Some(Problem::new(Reason::ResizingDisks, first(&resizing)));
    }
    if !grows {
        return not_expandable(seen, wanted);
    }
    let Some(answer) = ours(seen) else {
        let message = "the metadata servers' leader, which resizes the volume, doesn't respond";
        return Some(Problem::new(Reason::MetadataUnreachable, message));
    };
    let asked = Quantity::from_bytes(wanted.volume.bytes_total);
    if has_room(seen, wanted, answer) {
        let message = format!("the disks are large enough for {asked}: the volume is being resized");
        return Some(Problem::new(Reason::ResizingVolume, message));
    }
    let there = counted(seen, wanted, answer).len();
    let waits = troubles(seen, wanted).into_iter().next();
    let waits = waits.map(|problem| format!(": {}", problem.message)).unwrap_or_default();
    let message = format!(
        "{there} of the {} storage servers that {asked} needs have registered{waits}",
        wanted.workload(Component::Storage).replicas
    );
    Some(Problem::new(Reason::AddingServers, message))
}

/// The size that the volume has (bytes), as the metadata service says, or, if it doesn't answer, as it was written down.
fn granted(seen: &Observed) -> Option<u64> {
    let answer =
        seen.answer().filter(|answer| answer.cluster.is_some() && answer.cluster == seen.cluster_id());
    match answer {
        Some(answer) => Some(answer.volume.bytes_total),
        None => seen.cluster.status.as_ref()?.capacity.as_ref()?.bytes().ok(),
    }
}

/// The smallest disk of a component (bytes), once all that there are have one.
pub fn smallest_disk(seen: &Observed, component: Component) -> Option<u64> {
    Disks::of(seen, component).disks.iter().map(|disk| disk.has).min()
}

fn grows(seen: &Observed, wanted: &Wanted) -> bool {
    granted(seen).is_some_and(|granted| wanted.volume.bytes_total > granted)
}

fn replicas(wanted: &Wanted, component: Component) -> u32 {
    wanted.workload(component).replicas.into()
}

/// The disks of a component that are there.
struct Disks<'a> {
    /// Those that are bound, by their ordinals.
    disks: Vec<Disk<'a>>,
    /// The size in the StatefulSet's claim template.
    template: Option<Quantity>,
}

impl<'a> Disks<'a> {
    fn of(seen: &'a Observed, component: Component) -> Disks<'a> {
        let mut disks: Vec<Disk<'a>> =
            seen.pvcs_of(component).filter_map(|pvc| Disk::of(pvc, &seen.classes)).collect();
        disks.sort_by_key(|disk| disk.ordinal);
        let template = seen.statefulsets.get(&component).and_then(disk_of).map(|disk| disk.size);
        Disks { disks, template }
    }

    /// All of them can be expanded.
    fn can_expand(&self) -> bool {
        !self.disks.is_empty() && self.disks.iter().all(|disk| disk.expandable)
    }

    /// The size of a further disk if nothing grows: between what all ask for and what the largest has or is to get. So a
    /// template follows disks that were made larger, and goes back if it was raised in vain.
    fn settled(&self, otherwise: &Quantity) -> Quantity {
        let least = self.disks.iter().map(Disk::asked_in_earnest).min();
        let most = self.disks.iter().map(Disk::expected).max();
        let template = self.template.as_ref().and_then(|size| size.bytes().ok());
        match (template, least, most) {
            (Some(bytes), Some(least), _) if bytes < least => Quantity::from_bytes(least),
            (Some(bytes), _, Some(most)) if bytes > most => Quantity::from_bytes(most),
            (None, Some(least), _) => Quantity::from_bytes(least),
            _ => self.template.clone().unwrap_or_else(|| otherwise.clone()),
        }
    }
}

fn larger(one: Quantity, other: Quantity) -> Quantity {
    if other.bytes().unwrap_or(0) > one.bytes().unwrap_or(0) { other } else { one }
}

/// The size that the disks of a component have to have, if it isn't enough that they are there: the one that the spec names,
/// or what the capacity needs.
fn needed_size(wanted: &Wanted, seen: &Observed, component: Component, servers: u8) -> Option<Quantity> {
    let of = Disks::of(seen, component);
    if !of.can_expand() {
        return None;
    }
    if let Some(asked) = &wanted.workload(component).size_asked {
        return Some(asked.clone());
    }
    if !grows(seen, wanted) {
        return None;
    }
    let volume = &wanted.volume;
    let held = {
        let disks = Disks::of(seen, Component::Storage).disks;
        let have: Vec<u64> = disks.iter().map(|disk| disk.has_once_mounted(seen)).collect();
        holds(wanted, &have)
    };
    // Metadata servers' disks last: nothing may have grown in vain if the data can't be kept.
    let bytes = match (component, held) {
        (Component::Metadata, false) | (Component::Storage, true) => return None,
        (Component::Metadata, true) => default_metadata_bytes(volume.bytes_total),
        (Component::Storage, false) => default_storage_bytes(volume.bytes_total, volume.copies, servers),
    };
    Some(Quantity::from_bytes(bytes))
}

/// The size that a further disk of a component has to have.
fn size(wanted: &Wanted, seen: &Observed, component: Component, servers: u8) -> Quantity {
    let settled = Disks::of(seen, component).settled(&wanted.workload(component).disk.size);
    match needed_size(wanted, seen, component, servers) {
        Some(needed) => larger(settled, needed),
        None => settled,
    }
}

/// How many storage servers there shall be.
fn servers(wanted: &Wanted, seen: &Observed) -> u8 {
    let workload = wanted.workload(Component::Storage);
    if workload.replicas_are_fixed {
        return workload.replicas;
    }
    let used = used_servers(wanted, seen);
    let needed = needed_servers(wanted, seen, used).unwrap_or(used);
    let set = seen.statefulsets.get(&Component::Storage).and_then(|set| set.spec.as_ref()?.replicas);
    let set = set.and_then(|count| u8::try_from(count).ok()).unwrap_or(0);
    // Those beyond have no disk and never registered: they were asked for, and aren't needed any more. Who else has registered
    // the leader alone knows.
    if ours(seen).is_some() { needed } else { needed.max(set) }
}

/// One more than the highest ordinal that has a disk or has ever registered; at least as many as the spec asks for.
fn used_servers(wanted: &Wanted, seen: &Observed) -> u8 {
    let bound = Disks::of(seen, Component::Storage).disks.iter().map(|disk| disk.ordinal).max();
    let registered = ours(seen).and_then(|answer| registered(wanted, answer).into_iter().max());
    let highest = bound.max(registered).map_or(0, |ordinal| ordinal + 1);
    let highest = u8::try_from(highest.min(SERVERS_MAX.into())).unwrap_or(SERVERS_MAX);
    highest.max(wanted.workload(Component::Storage).replicas)
}

/// How many storage servers the capacity needs, if servers are what it grows by: at least `used`. None: more than there can be.
fn needed_servers(wanted: &Wanted, seen: &Observed, used: u8) -> Option<u8> {
    let of = Disks::of(seen, Component::Storage);
    let workload = wanted.workload(Component::Storage);
    let disks_grow = of.can_expand() && workload.size_asked.is_none();
    if !grows(seen, wanted) || disks_grow || of.disks.is_empty() {
        return Some(used);
    }
    let further = size(wanted, seen, Component::Storage, used).bytes().unwrap_or(0);
    // What an explicit size makes of the disks that are there.
    let mut sizes: Vec<u64> = of
        .disks
        .iter()
        .map(|disk| if disk.expandable && !disk.infeasible { disk.has.max(further) } else { disk.has })
        .collect();
    for count in used..=SERVERS_MAX {
        sizes.resize(sizes.len().max(count.into()), further);
        if holds(wanted, &sizes) {
            return Some(count);
        }
    }
    None
}

/// Ordinals of the storage servers that the service knows.
fn registered(wanted: &Wanted, answer: &ClusterStatus) -> BTreeSet<u32> {
    (0..u32::from(SERVERS_MAX))
        .filter(|ordinal| {
            let address = names::pod_address(&wanted.namespace, &wanted.name, Component::Storage, *ordinal);
            answer.servers.iter().any(|server| server.address == address)
        })
        .collect()
}

/// Whether disks of these sizes have room for the capacity.
fn holds(wanted: &Wanted, sizes: &[u64]) -> bool {
    let fixed = wanted.workload(Component::Storage).size_asked.is_some();
    holds_with_room(sizes, wanted.volume.copies, wanted.volume.bytes_total, fixed)
}

/// Sizes of the disks whose servers are there, or were, and come back.
fn counted(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus) -> Vec<u64> {
    let known = registered(wanted, answer);
    let disks = Disks::of(seen, Component::Storage).disks;
    let here = disks.into_iter().filter(|disk| known.contains(&disk.ordinal));
    here.map(|disk| disk.has_once_mounted(seen)).collect()
}

fn has_room(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus) -> bool {
    holds(wanted, &counted(seen, wanted, answer))
}

/// The volume's size, if it isn't what it can be.
fn resize(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus) -> Option<ResizeVolume> {
    let (is, asked) = (&answer.volume, wanted.volume.bytes_total);
    let may = if asked > is.bytes_total { has_room(seen, wanted, answer) } else { asked >= is.bytes_used };
    let (bytes_total, inodes_total) = if may && asked != is.bytes_total {
        (asked, wanted.volume.inodes_total.max(is.inodes_used))
    } else {
        (is.bytes_total, is.inodes_total)
    };
    let disk = smallest_disk(seen, Component::Metadata).map_or(0, inline_budget);
    let size =
        ResizeVolume { bytes_total, inodes_total, inline_budget_bytes: disk.max(answer.inline_budget_bytes) };
    let now = ResizeVolume {
        bytes_total: is.bytes_total,
        inodes_total: is.inodes_total,
        inline_budget_bytes: answer.inline_budget_bytes,
    };
    // A server before the budget was part of the answer knows no change of it either.
    let differs = size != now && (bytes_total != is.bytes_total || answer.inline_budget_bytes > 0);
    differs.then_some(size)
}

/// A claim has to ask for another size. It may ask for less than it did only if it got none of it: that is how an expansion
/// is called off that can't be had.
fn must_change(disk: &Disk<'_>, target: &Quantity, before: Option<u64>) -> bool {
    let Ok(target) = target.bytes() else { return false };
    if !disk.expandable || disk.going || target <= disk.has {
        return false;
    }
    let by_us = before == Some(disk.asked);
    target > disk.asked || (target < disk.asked && (disk.infeasible || by_us))
}

/// Claims of servers that were asked for and aren't needed any more: they never got a disk.
fn never_used(seen: &Observed, wanted: &Wanted, answer: &ClusterStatus) -> Vec<Action> {
    let known = registered(wanted, answer);
    let may_go = |pvc: &&PersistentVolumeClaim| {
        let name = pvc.metadata.name.as_deref().unwrap_or_default();
        let Some(ordinal) = disk::ordinal(name) else { return false };
        let made_for =
            pvc.metadata.annotations.as_ref().and_then(|found| found.get(annotations::CREATED_FOR));
        ordinal >= replicas(wanted, Component::Storage)
            && !known.contains(&ordinal)
            && !seen.pods.contains_key(&names::pod(&wanted.name, Component::Storage, ordinal))
            && disk::is_unbound(pvc)
            && pvc.metadata.deletion_timestamp.is_none()
            && label(&pvc.metadata, labels::CLUSTER_ID) == seen.cluster.cluster_id()
            && made_for.is_some_and(|uid| *uid == wanted.uid)
    };
    seen.pvcs_of(Component::Storage)
        .filter(may_go)
        .filter_map(|pvc| pvc.metadata.name.clone())
        .map(Action::DiscardClaim)
        .collect()
}

/// Disks that are to grow and haven't yet, with the size that they are to have.
fn lacking<'a>(seen: &'a Observed, wanted: &Wanted, component: Component) -> Vec<(Disk<'a>, Quantity)> {
    let workload = wanted.workload(component);
    let Some(target) = needed_size(wanted, seen, component, workload.replicas) else { return Vec::new() };
    let bytes = target.bytes().unwrap_or(0);
    let is_small = |disk: &Disk<'_>| {
        let counts = component == Component::Metadata || disk.has_once_mounted(seen) < bytes;
        disk.expandable && disk.has < bytes && counts && disk.ordinal < replicas(wanted, component)
    };
    Disks::of(seen, component).disks.into_iter().filter(is_small).map(|disk| (disk, target.clone())).collect()
}

/// How far the growth of a disk is.
fn progress(seen: &Observed, disk: &Disk<'_>, target: &Quantity) -> String {
    let (name, has) = (disk.name, Quantity::from_bytes(disk.has));
    if disk.waits_for_node {
        return format!(
            "PVC {name} has a volume of {target}, and its file system grows from {has} once its pod runs on a node"
        );
    }
    let said = seen.pvc_warnings.get(name).or(disk.error.as_ref());
    match said {
        Some(said) => format!("PVC {name} is being expanded from {has} to {target}: {said}"),
        None => format!(
            "PVC {name} is being expanded from {has} to {target} by the driver of class {}",
            disk.class
        ),
    }
}

/// The first few, and how many there are.
fn first(texts: &[String]) -> String {
    let more = texts.len().saturating_sub(NAMED_MAX);
    let named = texts[..texts.len().min(NAMED_MAX)].join("; ");
    if more > 0 { format!("{named}; and {more} more") } else { named }
}

/// The spec asks for less than files use.
fn too_small(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    let used = ours(seen)?.volume.bytes_used;
    (wanted.volume.bytes_total < used).then(|| {
        let message = format!(
            "spec.capacity is {}, and files use {used} bytes: delete files, or raise spec.capacity",
            Quantity::from_bytes(wanted.volume.bytes_total)
        );
        Problem::new(Reason::CapacityInUse, message)
    })
}

/// What can't be had, and what to ask for instead.
fn infeasible(seen: &Observed, wanted: &Wanted, grows: bool) -> Option<Problem> {
    let refused: Vec<String> = Component::ALL
        .into_iter()
        .flat_map(|component| lacking(seen, wanted, component))
        .filter(|(disk, _)| disk.infeasible)
        .map(|(disk, target)| {
            let said = seen.pvc_warnings.get(disk.name).or(disk.error.as_ref());
            let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
            format!("PVC {} can't be expanded to {target}{said}", disk.name)
        })
        .collect();
    if !refused.is_empty() {
        let message = format!(
            "{}: ask for less, down to what there is, or add servers with spec.storage.replicas",
            first(&refused)
        );
        return Some(Problem::new(Reason::ExpansionInfeasible, message));
    }
    let of = Disks::of(seen, Component::Storage);
    let workload = wanted.workload(Component::Storage);
    if !grows || of.disks.is_empty() || (of.can_expand() && workload.size_asked.is_none()) {
        return None;
    }
    let asked = Quantity::from_bytes(wanted.volume.bytes_total);
    let used = used_servers(wanted, seen);
    let needed = needed_servers(wanted, seen, used);
    let granted = Quantity::from_bytes(granted(seen).unwrap_or(0));
    let why = if workload.size_asked.is_some() && of.can_expand() {
        format!("{used} storage servers with disks of spec.storage.size are too small for {asked}")
    } else {
        let class = of.disks[0].class;
        format!(
            "{used} storage servers are too small for {asked}, and class {class} can't expand their disks"
        )
    };
    let message = match needed {
        None => format!(
            "{why}, and so are {SERVERS_MAX}, the most that there can be: lower spec.capacity, down to {granted}, or copy \
             the files into a volume with larger disks"
        ),
        Some(needed) if needed > workload.replicas && workload.replicas_are_fixed => format!(
            "{why}: raise spec.storage.replicas to {needed}, or lower spec.capacity, down to {granted}"
        ),
        Some(_) => return None,
    };
    Some(Problem::new(Reason::ExpansionInfeasible, message))
}

/// The spec names a size of disks that their class can't give them.
fn not_expandable(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    for component in Component::ALL {
        let of = Disks::of(seen, component);
        let workload = wanted.workload(component);
        let Some(asked) = &workload.size_asked else { continue };
        let small = of.disks.iter().find(|disk| !disk.expandable && disk.has < asked.bytes().unwrap_or(0));
        if let Some(disk) = small {
            let field = match component {
                Component::Metadata => "spec.metadata.storage.size",
                Component::Storage => "spec.storage.size",
            };
            let message = format!(
                "{field} is {asked}, and class {} can't expand PVC {}, which has {}: set allowVolumeExpansion in the \
                 StorageClass if its driver can expand volumes, or take {field} back",
                disk.class,
                disk.name,
                Quantity::from_bytes(disk.has)
            );
            return Some(Problem::new(Reason::NotExpandable, message));
        }
    }
    None
}

#[cfg(test)]
mod tests;
