//! What to do next, from what is and what shall be. Pure.
//!
//! A plan holds what can be done *now*: whatever depends on the outcome of an action comes in a later plan, made from
//! what is seen then. So each action may be the last one before a crash; DESIGN.md goes through them.

mod adoption;
mod deletion;
mod eviction;
mod growth;
mod heal;
mod marks;
mod roll;
mod servers;
mod shrink;
mod upgrade;

pub use adoption::missing;
pub use deletion::{Fate, fate};
pub use growth::{pending, sized, smallest_disk};
pub use heal::pending as replacement;
pub use marks::is_made;
pub use roll::{outdated, unwell};
pub use servers::chunks_below;
pub use shrink::{held, pending as removal};
pub use upgrade::{Intent, intent, level_waits, min_version};

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_core::ids::{ClusterId, MemberId};
use atoll_crds::Quantity;
use atoll_crds::names::{self, Component, labels};
use atoll_crds::v1alpha1::Reason;
use atoll_proto::admin::{ChangeServer, MembersChange, RaiseFeatureLevel, ResizeVolume, TransferLeader};
use atoll_proto::metadata::{ClusterStatus, MemberStatus};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use serde::Serialize;

use crate::build::{budget::budget, compare, secret, service::service, statefulset::statefulset};
use crate::observe::{MetadataFact, Observed, Ownership, is_heard, is_ready, label, pod_ip};
use crate::validate::{Problem, Wanted, check_surroundings};

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Keep the resource until its deletion is done.
    AddFinalizer,
    /// Let it go.
    RemoveFinalizer,
    /// Write the cluster's id into the status, before anything carries it.
    SetClusterId {
        /// The id.
        id: ClusterId,
        /// It is that of disks that were there before.
        adopted: bool,
    },
    /// Make the Secret with a new key.
    CreateSecret(ClusterId),
    /// Make the Secret again, with the key that it had when it was read last.
    RestoreSecret(ClusterId),
    /// Take the confirmation of a deletion out of the spec: no deletion followed it.
    WithdrawConfirmation,
    /// Make or change an object that goes with the resource.
    Apply(Owned),
    /// Make the volume.
    Bootstrap(ClusterId),
    /// Write a metadata server's id onto its PVC: from now on nobody bootstraps.
    LabelMember {
        /// The PVC.
        pvc: String,
        /// The server.
        member: MemberId,
    },
    /// Write onto a PVC that its volume was made, and what it is.
    MarkDisk {
        /// The PVC.
        pvc: String,
        /// What the volume is.
        record: String,
    },
    /// Write onto the Secret that the volume was made.
    MarkKey(String),
    /// Let a metadata server into the group.
    ChangeMembers(MembersChange),
    /// Have the pods run this version from now on.
    PinVersion(String),
    /// Have another metadata server lead.
    TransferLeader(TransferLeader),
    /// Let the volume have what earlier versions don't know.
    RaiseFeatureLevel(RaiseFeatureLevel),
    /// Have a pod made anew from its template.
    RestartPod {
        /// Its name.
        name: String,
        /// Its uid: only this very pod.
        uid: String,
    },
    /// Have a disk grow, or ask for less than it was asked for in vain.
    ResizeDisk {
        /// Its PVC.
        pvc: String,
        /// The size that it is to have.
        size: Quantity,
    },
    /// Delete a StatefulSet and leave its pods as they are: it is created anew, with another claim template.
    Recreate(String),
    /// Change what the volume may hold.
    ResizeVolume(ResizeVolume),
    /// Delete a PVC that never had a disk, as it was seen.
    DiscardClaim(String),
    /// Delete the PVC of a server that is replaced or removed, as it was seen.
    DiscardDisk {
        /// The PVC.
        pvc: String,
        /// Why nothing depends on it.
        why: String,
    },
    /// Have a pod go whose server is replaced.
    EvictPod {
        /// Its name.
        name: String,
        /// Its uid: only this very pod.
        uid: String,
        /// Its node is gone, and nobody would say that it has ended.
        forced: bool,
    },
    /// Write onto a PVC that its metadata server is removed from the group for good, or that it isn't.
    MarkRemoved {
        /// The PVC.
        pvc: String,
        /// The server.
        member: Option<MemberId>,
    },
    /// Drain a storage server, use it again, or forget it.
    ChangeServer(ChangeServer),
    /// Delete an object of this kind.
    Delete(Kind, String),
}

/// An object that goes with the resource, at its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Owned {
    /// A Service.
    Service(Box<Service>),
    /// A StatefulSet.
    StatefulSet(Box<StatefulSet>),
    /// A PodDisruptionBudget.
    Budget(Box<PodDisruptionBudget>),
}

impl Owned {
    /// For a message: `Service db-storage`.
    pub fn brief(&self) -> String {
        let (kind, meta) = match self {
            Owned::Service(found) => ("Service", &found.metadata),
            Owned::StatefulSet(found) => ("StatefulSet", &found.metadata),
            Owned::Budget(found) => ("PodDisruptionBudget", &found.metadata),
        };
        format!("{kind} {}", meta.name.as_deref().unwrap_or_default())
    }
}

/// Kinds of objects that the operator deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// StatefulSets.
    StatefulSet,
    /// Services.
    Service,
    /// PodDisruptionBudgets.
    Budget,
    /// Pods that no StatefulSet deletes.
    Pod,
    /// PVCs: data.
    PersistentVolumeClaim,
    /// The key.
    Secret,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order; the first failure ends it.
    pub actions: Vec<Action>,
    /// What keeps the rest from being done.
    pub problem: Option<Problem>,
}

impl Plan {
    fn just(action: Action) -> Plan {
        Plan { actions: vec![action], problem: None }
    }

    fn blocked(problem: Problem) -> Plan {
        Plan { actions: Vec::new(), problem: Some(problem) }
    }
}

/// How long a confirmation holds. Who says it deletes the resource next: a program that was interrupted in between, or a
/// manifest that was left as it is, must not make a later deletion by somebody else one of data.
pub const CONFIRMATION_LIFETIME: Duration = Duration::from_secs(600);

/// The next steps. `fresh` is an id that no cluster has.
pub fn plan(seen: &Observed, wanted: &Result<Wanted, Problem>, fresh: ClusterId) -> Plan {
    if let Some(problem) = unreadable(seen) {
        return Plan::blocked(problem);
    }
    if seen.cluster.is_terminating() {
        let mut plan = deletion::plan(seen);
        let serves = plan.problem.as_ref().is_some_and(|problem| problem.reason.blocks_deletion());
        if let (true, false, Ok(wanted)) = (serves, seen.cluster.spec.paused, wanted) {
            // What keeps it from that is no news while it is the deletion that somebody waits for.
            plan.actions = upkeep(seen, wanted).unwrap_or_default();
        }
        return plan;
    }
    if seen.cluster.spec.paused {
        let message = "spec.paused is true: the operator changes nothing; set it to false to resume";
        return Plan::blocked(Problem::new(Reason::Paused, message));
    }
    if seen.confirmed_for.is_some_and(|since| since >= CONFIRMATION_LIFETIME) {
        return Plan::just(Action::WithdrawConfirmation);
    }
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(problem) => return Plan::blocked(problem.clone()),
    };
    if !has_finalizer(seen) {
        return Plan::just(Action::AddFinalizer);
    }
    match steps(seen, wanted, fresh) {
        Ok(actions) => Plan { actions, problem: None },
        Err(problem) => Plan::blocked(problem),
    }
}

/// What can't be read looks as if it weren't there, and nothing may follow from that.
fn unreadable(seen: &Observed) -> Option<Problem> {
    let first = seen.unreadable.first()?;
    let more = seen.unreadable.len() - 1;
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let message = format!(
        "this version of the operator can't read the {first}{more}, and changes nothing until it can: correct or delete \
         it, or run the version that wrote it"
    );
    Some(Problem::new(Reason::ObjectUnreadable, message))
}

/// The finalizer is on the resource.
pub fn has_finalizer(seen: &Observed) -> bool {
    seen.cluster.metadata.finalizers.iter().flatten().any(|found| found == names::FINALIZER)
}

fn steps(seen: &Observed, wanted: &Wanted, fresh: ClusterId) -> Result<Vec<Action>, Problem> {
    refuse_others_objects(seen)?;
    let Some(id) = seen.cluster_id() else {
        // Before there is anything that could be left behind. What a volume that is there needs it has, or has lost.
        let found = adoption::find(seen, wanted)?;
        if !found.is_some_and(|found| found.adopted) {
            check_surroundings(wanted, seen)?;
        }
        let (id, adopted) = found.map_or((fresh, false), |found| (found.id, found.adopted));
        return Ok(vec![Action::SetClusterId { id, adopted }]);
    };
    refuse_others_disks(seen, id)?;
    refuse_others_sets(seen, id)?;
    if !is_made(seen) {
        check_surroundings(wanted, seen)?;
    }
    if let Some(action) = key(seen, wanted, id)? {
        // The pods can't start without it, so nothing else is due.
        return Ok(vec![action]);
    }
    if let Intent::Move(version) = intent(seen, wanted) {
        return Ok(vec![Action::PinVersion(version)]);
    }
    let mut actions = applies(seen, wanted, id);
    actions.retain(|action| !is_contested(seen, action));
    actions.extend(bootstrap(seen, wanted, id)?);
    if actions.is_empty() {
        actions.extend(heal::next(seen, wanted));
    }
    if actions.is_empty() {
        actions.extend(growth::next(seen, wanted));
    }
    if actions.is_empty() {
        actions.extend(shrink::next(seen, wanted));
    }
    if actions.is_empty() {
        actions.extend(roll::next(seen, wanted));
    }
    if actions.is_empty() {
        actions.extend(upgrade::raise(seen, wanted));
    }
    if actions.is_empty() {
        actions.extend(eviction::next(seen, wanted));
    }
    Ok(actions)
}

/// What a volume needs that is to be deleted and is still in use: its objects, its members, its servers' disks. It neither grows
/// nor shrinks nor gets another version any more.
fn upkeep(seen: &Observed, wanted: &Wanted) -> Result<Vec<Action>, Problem> {
    let Some(id) = seen.cluster_id() else { return Ok(Vec::new()) };
    refuse_others_objects(seen)?;
    refuse_others_disks(seen, id)?;
    refuse_others_sets(seen, id)?;
    if let Some(action) = key(seen, wanted, id)? {
        return Ok(vec![action]);
    }
    let mut actions = applies(seen, wanted, id);
    actions.retain(|action| !is_contested(seen, action));
    actions.extend(bootstrap(seen, wanted, id)?);
    if actions.is_empty() {
        actions.extend(heal::next(seen, wanted));
    }
    Ok(actions)
}

/// Nothing is forced onto an object that belongs to somebody else.
fn refuse_others_objects(seen: &Observed) -> Result<(), Problem> {
    let sets = seen.statefulsets.values().map(|found| ("StatefulSet", &found.metadata));
    let services = seen.services.values().map(|found| ("Service", &found.metadata));
    let budgets = seen.budgets.values().map(|found| ("PodDisruptionBudget", &found.metadata));
    for (kind, meta) in sets.chain(services).chain(budgets) {
        let name = meta.name.as_deref().unwrap_or_default();
        match seen.ownership(meta) {
            Ownership::Ours => {}
            Ownership::Going => {
                let message = format!("the {kind} {name} is being deleted; afterwards it is created again");
                return Err(Problem::new(Reason::Applying, message));
            }
            Ownership::Foreign(owner) => {
                let message = format!(
                    "the {kind} {name} belongs to {owner}: delete or rename it, or give this FileSystemCluster another \
                     name"
                );
                return Err(Problem::new(Reason::NameConflict, message));
            }
        }
    }
    Ok(())
}

/// The disks that the pods will use are this cluster's.
fn refuse_others_disks(seen: &Observed, id: ClusterId) -> Result<(), Problem> {
    for pvc in seen.pvcs.values() {
        let name = pvc.metadata.name.as_deref().unwrap_or_default();
        match label(&pvc.metadata, labels::CLUSTER_ID) {
            Some(found) if found.parse() == Ok(id) => {}
            Some(found) => {
                let message = format!(
                    "the PVC {name} has data of cluster {found}, and this one is {id}: delete the PVC if \
                     that data isn't needed any more, or give this FileSystemCluster another name"
                );
                return Err(Problem::new(Reason::ForeignData, message));
            }
            None => {
                let message = format!(
                    "the PVC {name} exists and isn't labelled as this cluster's: delete it, or, if it is \
                     this cluster's disk, label it {}={id}",
                    labels::CLUSTER_ID
                );
                return Err(Problem::new(Reason::NameConflict, message));
            }
        }
    }
    Ok(())
}

/// A StatefulSet may be older than the resource, and what its disks are labelled with can't be changed.
fn refuse_others_sets(seen: &Observed, id: ClusterId) -> Result<(), Problem> {
    for set in seen.statefulsets.values() {
        let templates = set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_ref());
        let of = templates.and_then(|found| label(&found.first()?.metadata, labels::CLUSTER_ID));
        if let Some(of) = of.filter(|of| of.parse() != Ok(id)) {
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let message = format!(
                "the StatefulSet {name} was created for cluster {of}, and this one is {id}: delete it (kubectl -n {} delete \
                 statefulset {name}); its PVCs stay",
                seen.cluster.namespace_str()
            );
            return Err(Problem::new(Reason::ForeignData, message));
        }
    }
    Ok(())
}

/// What is to be done for the Secret to be there. Once there are disks a new key would lock them for good.
fn key(seen: &Observed, wanted: &Wanted, id: ClusterId) -> Result<Option<Action>, Problem> {
    let name = &wanted.secret;
    let Some(found) = &seen.secret else {
        if seen.pvcs.is_empty() && seen.statefulsets.is_empty() {
            return Ok(Some(Action::CreateSecret(id)));
        }
        let before = seen.secret_before.as_ref().and_then(|found| secret::read(found).ok());
        if before.is_some_and(|before| before.cluster == id) {
            return Ok(Some(Action::RestoreSecret(id)));
        }
        let message = format!(
            "the Secret {name} with the cluster's key is missing, and without it the disks can't be used: \
             restore it (its '{}' is {id})",
            names::secret::CLUSTER
        );
        return Err(Problem::new(Reason::KeyMissing, message));
    };
    match secret::read(found) {
        Ok(read) if read.cluster == id => Ok(None),
        Ok(read) => {
            let message = format!(
                "the Secret {name} has the key of cluster {}, and this one is {id}: restore the right \
                 Secret, or name another one in spec.clientSecretName of a new FileSystemCluster",
                read.cluster
            );
            Err(Problem::new(Reason::KeyMissing, message))
        }
        Err(what) => {
            let message = format!(
                "the Secret {name} isn't a cluster key ({what}): delete or rename it, or name another one in \
                 spec.clientSecretName of a new FileSystemCluster"
            );
            Err(Problem::new(Reason::NameConflict, message))
        }
    }
}

/// The objects that aren't as they shall be.
fn applies(seen: &Observed, wanted: &Wanted, id: ClusterId) -> Vec<Action> {
    let mut actions = Vec::new();
    for component in Component::ALL {
        let mut object = service(wanted, component);
        compare::stamp(&mut object, |object| &mut object.metadata);
        if !seen.services.get(&component).is_some_and(|seen| compare::is_as_wanted(&object, seen)) {
            actions.push(Action::Apply(Owned::Service(Box::new(object))));
        }
    }
    for component in Component::ALL {
        let existing = seen.statefulsets.get(&component);
        // Storage servers look the metadata servers up by name as they start, and DNS servers remember for half a
        // minute that a name doesn't exist.
        let too_early = component == Component::Storage
            && existing.is_none()
            && !seen.pods_of(Component::Metadata).any(|pod| pod_ip(pod).is_some());
        if too_early {
            continue;
        }
        let mut object = statefulset(wanted, component, id, existing);
        compare::stamp(&mut object, |object| &mut object.metadata);
        if !existing.is_some_and(|seen| compare::is_as_wanted(&object, seen)) {
            actions.push(Action::Apply(Owned::StatefulSet(Box::new(object))));
        }
    }
    for component in Component::ALL {
        let away = eviction::before(seen, component).unwrap_or(1);
        match (budget(wanted, component, away), seen.budgets.get(&component)) {
            (Some(mut object), existing) => {
                compare::stamp(&mut object, |object| &mut object.metadata);
                if !existing.is_some_and(|seen| compare::is_as_wanted(&object, seen)) {
                    actions.push(Action::Apply(Owned::Budget(Box::new(object))));
                }
            }
            (None, Some(_)) => {
                actions.push(Action::Delete(Kind::Budget, names::workload(&wanted.name, component)));
            }
            (None, None) => {}
        }
    }
    actions
}

/// The object is as an admission webhook made it of this very content: to apply that again changes nothing.
fn is_contested(seen: &Observed, action: &Action) -> bool {
    fn of<K: Serialize + ResourceExt>(wanted: &K, found: &BTreeMap<Component, K>) -> Option<u64> {
        let found = found.values().find(|found| found.name_any() == wanted.name_any())?;
        Some(compare::fingerprint(wanted, found))
    }
    let Action::Apply(object) = action else { return false };
    let now = match object {
        Owned::Service(wanted) => of(&**wanted, &seen.services),
        Owned::StatefulSet(wanted) => of(&**wanted, &seen.statefulsets),
        Owned::Budget(wanted) => of(&**wanted, &seen.budgets),
    };
    now.is_some() && now == seen.contested.get(&object.brief()).copied()
}

/// The steps by which a volume is made, once and never again (D34), and by which further metadata servers get into the group.
/// The first one bootstraps the group alone, whatever others there are: so there is only one that can.
fn bootstrap(seen: &Observed, wanted: &Wanted, id: ClusterId) -> Result<Vec<Action>, Problem> {
    let pvc_name = names::pvc(&wanted.name, Component::Metadata, 0);
    let MetadataFact::Answers(answer) = &seen.metadata else { return Ok(Vec::new()) };
    match answer.cluster {
        Some(found) if found != id => {
            let message = format!(
                "the metadata server's disk has data of cluster {found}, and this one is {id}: restore its \
                 disk"
            );
            Err(Problem::new(Reason::ForeignData, message))
        }
        Some(_) => {
            let mut actions = marks::due(seen);
            match label_members(seen, wanted, answer)? {
                Some(action) => actions.push(action),
                None => actions.extend(next_joiner(seen, answer)),
            }
            Ok(actions)
        }
        None if is_made(seen) => Err(records_missing(seen, wanted)),
        None => {
            let pod = seen.pods.get(&names::pod(&wanted.name, Component::Metadata, 0));
            let first_is_there =
                seen.pvcs.contains_key(&pvc_name) && pod.is_some_and(|pod| pod_ip(pod).is_some());
            Ok(first_is_there.then_some(Action::Bootstrap(id)).into_iter().collect())
        }
    }
}

/// The volume was made, and who answers has an empty disk.
fn records_missing(seen: &Observed, wanted: &Wanted) -> Problem {
    let disks = adoption::metadata_disks(wanted);
    let replicas = usize::from(wanted.workload(Component::Metadata).replicas);
    let ready = seen.pods_of(Component::Metadata).filter(|pod| is_ready(pod)).count();
    if ready < replicas {
        let message = format!(
            "only a metadata server with an empty disk responds; it waits for those that have the volume's records \
             ({disks})"
        );
        return Problem::new(Reason::MetadataUnreachable, message);
    }
    let message = format!(
        "the volume was created, and the disks of its metadata servers ({disks}) have no records of it: restore at least a \
         majority of them from a backup; the volume isn't bootstrapped again, since that would hide the loss"
    );
    Problem::new(Reason::ForeignData, message)
}

/// The members' ids belong onto their PVCs, the first one's before there are others.
fn label_members(
    seen: &Observed,
    wanted: &Wanted,
    answer: &ClusterStatus,
) -> Result<Option<Action>, Problem> {
    let alone = answer.members.len() <= 1;
    for (ordinal, address) in seen.metadata_addresses(wanted.workload(Component::Metadata).replicas) {
        let pvc_name = names::pvc(&wanted.name, Component::Metadata, ordinal);
        let Some(pvc) = seen.pvcs.get(&pvc_name) else { continue };
        let is_this = |member: &&MemberStatus| is_heard(member) && member.address == address;
        let Some(member) = answer.members.iter().find(is_this) else { continue };
        let recorded = label(&pvc.metadata, labels::MEMBER_ID).and_then(|id| id.parse::<MemberId>().ok());
        match recorded {
            Some(recorded) if recorded == member.member => {}
            Some(recorded) if alone => {
                let message = format!(
                    "the PVC {pvc_name} was the disk of metadata server {recorded}, and now has metadata \
                     server {}: restore the disk",
                    member.member
                );
                return Err(Problem::new(Reason::ForeignData, message));
            }
            // Nobody yet, or one whose place was taken.
            _ => return Ok(Some(Action::LabelMember { pvc: pvc_name, member: member.member })),
        }
    }
    Ok(None)
}

/// One metadata server that waits with an empty disk gets into the group, in the place of the one that was there before if
/// there was one. The leader looks after the rest: that a majority is there, and that the joiner is new.
fn next_joiner(seen: &Observed, answer: &ClusterStatus) -> Option<Action> {
    let (ordinal, joiner) = seen.joiners.iter().find(|(_, joiner)| !joiner.in_group)?;
    let replicas = seen.cluster.spec.metadata_replicas();
    let (_, address) = seen.metadata_addresses(replicas).find(|(number, _)| number == ordinal)?;
    let change = match answer.members.iter().find(|member| member.address == address) {
        // Where chunks can't be read, what the records say of them is needed most.
        Some(_) if chunks_below(answer, 1).unwrap_or(answer.chunks_short) > 0 => return None,
        Some(old) => MembersChange::Replace { old: old.member, new: joiner.member, address },
        None => MembersChange::Add { member: joiner.member, address },
    };
    Some(Action::ChangeMembers(change))
}

#[cfg(test)]
mod tests;
