//! Every step of a cluster's life, as a table: what is seen, and what is to be done.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::testing::{self, FRESH, ID, MEMBER, MEMBERS};
use crate::validate::validate;

pub(in crate::plan) fn wanted(seen: &Observed) -> Result<Wanted, Problem> {
    validate(&seen.cluster, &testing::images()).map(|wanted| held(sized(wanted, seen), seen))
}

pub(in crate::plan) fn planned(seen: &Observed) -> Plan {
    plan(seen, &wanted(seen), FRESH)
}

/// The actions in one word each.
pub(in crate::plan) fn words(plan: &Plan) -> Vec<String> {
    let owned = |owned: &Owned| match owned {
        Owned::Service(found) => format!("Service {}", found.metadata.name.as_deref().unwrap_or_default()),
        Owned::StatefulSet(found) => {
            format!("StatefulSet {}", found.metadata.name.as_deref().unwrap_or_default())
        }
        Owned::Budget(found) => format!("Budget {}", found.metadata.name.as_deref().unwrap_or_default()),
    };
    plan.actions
        .iter()
        .map(|action| match action {
            Action::AddFinalizer => "add finalizer".to_owned(),
            Action::RemoveFinalizer => "remove finalizer".to_owned(),
            Action::SetClusterId { id, adopted: false } => format!("id {id}"),
            Action::SetClusterId { id, adopted: true } => format!("adopt {id}"),
            Action::MarkDisk { pvc, .. } => format!("mark {pvc}"),
            Action::MarkKey(name) => format!("mark {name}"),
            Action::WithdrawConfirmation => "withdraw confirmation".to_owned(),
            Action::CreateSecret(id) => format!("secret {id}"),
            Action::RestoreSecret(id) => format!("restore secret {id}"),
            Action::Apply(object) => format!("apply {}", owned(object)),
            Action::Bootstrap(id) => format!("bootstrap {id}"),
            Action::LabelMember { pvc, member } => format!("label {pvc} {member}"),
            Action::ChangeMembers(change) => format!("{change:?}"),
            Action::PinVersion(version) => format!("run {version}"),
            Action::TransferLeader(_) => "transfer leader".to_owned(),
            Action::RaiseFeatureLevel(raise) => format!("level {}", raise.level),
            Action::RestartPod { name, .. } => format!("restart {name}"),
            Action::ResizeDisk { pvc, size } => format!("resize {pvc} {size}"),
            Action::Recreate(name) => format!("recreate {name}"),
            Action::ResizeVolume(size) => format!("volume {}", Quantity::from_bytes(size.bytes_total)),
            Action::DiscardClaim(name) => format!("discard {name}"),
            Action::DiscardDisk { pvc, .. } => format!("discard {pvc}"),
            Action::EvictPod { name, forced: false, .. } => format!("evict {name}"),
            Action::EvictPod { name, forced: true, .. } => format!("evict {name} by force"),
            Action::MarkRemoved { pvc, member: Some(_) } => format!("{pvc} leaves"),
            Action::MarkRemoved { pvc, member: None } => format!("{pvc} stays"),
            Action::ChangeServer(change) => format!("{:?} {}", change.change, change.server.0),
            Action::Delete(kind, name) => format!("delete {kind:?} {name}"),
        })
        .collect()
}

pub(in crate::plan) fn does(seen: &Observed, expected: &[&str]) {
    let plan = planned(seen);
    assert_eq!(plan.problem, None, "{:?}", words(&plan));
    assert_eq!(words(&plan), expected);
}

/// The budgets of evictions have followed what is seen.
pub(in crate::plan) fn settled(seen: &mut Observed) {
    let wanted = wanted(seen).expect("valid");
    for component in Component::ALL {
        let away = eviction::max_unavailable(seen, &wanted, component);
        let Some(mut made) = budget(&wanted, component, away) else { continue };
        compare::stamp(&mut made, |object| &mut object.metadata);
        seen.budgets.insert(component, made);
    }
}

/// What is done once budgets have followed what is seen.
pub(in crate::plan) fn does_settled(seen: &Observed, expected: &[&str]) {
    let mut seen = seen.clone();
    settled(&mut seen);
    does(&seen, expected);
}

pub(super) fn refuses(seen: &Observed, reason: Reason, message: &str) {
    let plan = planned(seen);
    assert_eq!(words(&plan), Vec::<String>::new());
    let problem = plan.problem.expect("a problem");
    assert_eq!(problem.reason, reason, "{}", problem.message);
    assert!(problem.message.contains(message), "{}", problem.message);
}

#[test]
fn a_cluster_is_made_step_by_step_each_of_which_may_be_the_last_before_a_crash() {
    let mut seen = testing::observed("1Gi");
    does(&seen, &["add finalizer"]);
    testing::with_finalizer(&mut seen);
    does(&seen, &[&format!("id {FRESH}")]);
    testing::with_id(&mut seen, ID);
    does(&seen, &[&format!("secret {ID}")]);
    seen.secret = Some(testing::stored_secret(ID));
    // The storage servers come once the metadata server has an address.
    does(
        &seen,
        &[
            "apply Service db-metadata",
            "apply Service db-storage",
            "apply StatefulSet db-metadata",
            "apply Budget db-metadata",
            "apply Budget db-storage",
        ],
    );
    let applied = testing::applied();
    (seen.services, seen.budgets) = (applied.services.clone(), applied.budgets.clone());
    let set = applied.statefulsets[&Component::Metadata].clone();
    seen.statefulsets.insert(Component::Metadata, set);
    does(&seen, &[]);
    seen.pods.insert("db-metadata-0".into(), testing::pod("db-metadata-0"));
    does(&seen, &["apply StatefulSet db-storage"]);
    does(&testing::applied(), &[]);
    does(&testing::started(), &[&format!("bootstrap {ID}")]);

    let mut seen = testing::running();
    seen.pvcs
        .get_mut("data-db-metadata-0")
        .expect("disk")
        .metadata
        .labels
        .as_mut()
        .expect("labels")
        .remove(labels::MEMBER_ID);
    does(&seen, &[&format!("label data-db-metadata-0 {MEMBER}")]);
    does(&testing::running(), &[]);
}

#[test]
fn the_first_metadata_server_bootstraps_the_group_and_the_others_join_one_by_one() {
    // Whoever answers: only the first one may found it.
    let mut seen = testing::started();
    testing::answer(&mut seen).member = MEMBERS[1];
    seen.pods.remove("db-metadata-0");
    does(&seen, &[]);
    let mut seen = testing::running();
    testing::answer(&mut seen).members.truncate(1);
    let address = |ordinal| names::pod_address("ns", "db", Component::Metadata, ordinal);
    let add =
        |ordinal: u32| MembersChange::Add { member: MEMBERS[ordinal as usize], address: address(ordinal) };
    does(&seen, &["apply Budget db-metadata"]);
    testing::joins(&mut seen, 2, MEMBERS[2]);
    does(&seen, &[&format!("{:?}", add(2))]);
    testing::joins(&mut seen, 1, MEMBERS[1]);
    does(&seen, &[&format!("{:?}", add(1))]);
    // Its id is on its PVC before the next one comes.
    let mut seen = testing::running();
    testing::answer(&mut seen).members.truncate(2);
    let labels = &mut seen.pvcs.get_mut("data-db-metadata-1").expect("disk").metadata.labels;
    labels.as_mut().expect("labels").remove(labels::MEMBER_ID);
    testing::joins(&mut seen, 2, MEMBERS[2]);
    does(&seen, &[&format!("label data-db-metadata-1 {}", MEMBERS[1])]);
    // One that has belonged to a group may not come back as who it was.
    let mut seen = testing::running();
    testing::answer(&mut seen).members.truncate(2);
    testing::joins(&mut seen, 2, MEMBERS[2]);
    seen.joiners.get_mut(&2).expect("joiner").in_group = true;
    does(&seen, &["apply Budget db-metadata"]);
}

#[test]
fn a_metadata_server_with_a_new_disk_takes_the_place_of_the_one_before() {
    let mut seen = testing::running();
    let new = MemberId(0xd);
    testing::joins(&mut seen, 1, new);
    testing::answer(&mut seen).chunks_by_replicas = vec![1, 0, 0, 5];
    does(&seen, &[]);
    testing::answer(&mut seen).chunks_by_replicas = vec![0, 1, 0, 5];
    testing::answer(&mut seen).chunks_short = 1;
    let address = names::pod_address("ns", "db", Component::Metadata, 1);
    let replace = MembersChange::Replace { old: MEMBERS[1], new, address };
    does(&seen, &[&format!("{replace:?}")]);
    // A PVC is never said to be of somebody who is silent.
    let labels = &mut seen.pvcs.get_mut("data-db-metadata-1").expect("disk").metadata.labels;
    labels.as_mut().expect("labels").remove(labels::MEMBER_ID);
    testing::answer(&mut seen).members[1].silent_ms = Some(60_000);
    does(&seen, &[&format!("{replace:?}")]);
    seen.joiners.clear();
    testing::answer(&mut seen).members[1].member = new;
    testing::answer(&mut seen).members[1].silent_ms = Some(0);
    does(&seen, &[&format!("label data-db-metadata-1 {new}")]);
}

#[test]
fn nothing_is_begun_that_cannot_be_finished() {
    let mut seen = testing::observed("1Gi");
    testing::with_finalizer(&mut seen);
    seen.nodes_usable = 2;
    refuses(&seen, Reason::TooFewNodes, "3 nodes");
    // A node that goes away later is no reason to stop looking after a cluster.
    let mut seen = testing::running();
    seen.nodes_usable = 2;
    does(&seen, &[]);
    let mut seen = testing::observed("1Gi");
    testing::change(&mut seen, |cluster| cluster.spec.version = Some("9".into()));
    refuses(&seen, Reason::UnknownVersion, "9");
}

#[test]
fn what_is_as_it_shall_be_is_left_alone_and_what_is_not_is_set_right() {
    let mut seen = testing::running();
    let set = seen.statefulsets.get_mut(&Component::Storage).expect("set");
    set.spec.as_mut().expect("spec").replicas = Some(1);
    does(&seen, &["apply StatefulSet db-storage"]);
    let mut seen = testing::running();
    seen.services.remove(&Component::Storage);
    does(&seen, &["apply Service db-storage"]);
    // What others add is theirs.
    let mut seen = testing::running();
    let set = seen.statefulsets.get_mut(&Component::Storage).expect("set");
    set.metadata.annotations.get_or_insert_default().insert("someone/else".into(), "x".into());
    does(&seen, &[]);
    let mut seen = testing::running();
    testing::change(&mut seen, |cluster| cluster.spec.storage.replicas = Some(4));
    testing::mark_all(&mut seen);
    does(&seen, &["apply StatefulSet db-storage"]);
    testing::change(&mut seen, |cluster| cluster.spec.paused = true);
    refuses(&seen, Reason::Paused, "spec.paused");
}

#[test]
fn nothing_is_done_while_something_of_the_cluster_cannot_be_read() {
    let mut seen = testing::running();
    seen.pvcs.clear();
    seen.statefulsets.clear();
    seen.unreadable.push("PersistentVolumeClaim data-db-metadata-0 (invalid type)".into());
    refuses(&seen, Reason::ObjectUnreadable, "PersistentVolumeClaim data-db-metadata-0 (invalid type)");
    seen.unreadable.push("Pod db-metadata-0 (invalid type)".into());
    testing::change(&mut seen, |cluster| cluster.spec.deletion_confirmation = Some(ID.to_string()));
    testing::deleted(&mut seen);
    refuses(&seen, Reason::ObjectUnreadable, "and 1 more");
}

#[test]
fn what_a_webhook_makes_of_an_object_is_not_applied_again_and_again() {
    let mut seen = testing::running();
    let set = seen.statefulsets.get_mut(&Component::Storage).expect("set");
    let container = |set: &mut StatefulSet| {
        let pod = set.spec.as_mut().and_then(|spec| spec.template.spec.as_mut()).expect("a pod");
        pod.containers[0].image = Some("mirror.example/atoll".into());
    };
    container(set);
    let changed = set.clone();
    let plan = planned(&seen);
    let [Action::Apply(object)] = plan.actions.as_slice() else { panic!("{:?}", words(&plan)) };
    let Owned::StatefulSet(desired) = object else { panic!("{object:?}") };
    // That is what came back when it was applied.
    seen.contested.insert(object.brief(), compare::fingerprint(&**desired, &changed));
    does(&seen, &[]);
    // What somebody changes afterwards is set right, and so is what is desired from now on.
    let set = seen.statefulsets.get_mut(&Component::Storage).expect("set");
    set.spec.as_mut().expect("spec").replicas = Some(1);
    does(&seen, &["apply StatefulSet db-storage"]);
    seen.statefulsets.insert(Component::Storage, changed);
    testing::change(&mut seen, |cluster| cluster.spec.storage.replicas = Some(4));
    testing::mark_all(&mut seen);
    does(&seen, &["apply StatefulSet db-storage"]);
}

#[test]
fn nothing_is_forced_onto_what_belongs_to_somebody_else() {
    let mut seen = testing::running();
    let meta = &mut seen.services.get_mut(&Component::Metadata).expect("service").metadata;
    meta.owner_references = Some(vec![OwnerReference {
        kind: "Deployment".into(),
        name: "web".into(),
        uid: "other".into(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    refuses(&seen, Reason::NameConflict, "Deployment web");
    let meta = &mut seen.services.get_mut(&Component::Metadata).expect("service").metadata;
    (meta.owner_references, meta.labels) = (None, None);
    refuses(&seen, Reason::NameConflict, "another owner");
    // Nothing has an owner, so that no garbage collection acts before the operator has decided.
    let mut seen = testing::running();
    for set in seen.statefulsets.values_mut() {
        assert_eq!(set.metadata.owner_references, None);
        let owner = OwnerReference {
            kind: "FileSystemCluster".into(),
            name: "db".into(),
            uid: "uid-1".into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        set.metadata.owner_references = Some(vec![owner]);
        // An earlier release made it so, and its stamp is of that.
        set.metadata.annotations = None;
    }
    does(&seen, &["apply StatefulSet db-metadata", "apply StatefulSet db-storage"]);
    // Its garbage collection isn't done yet.
    for set in seen.statefulsets.values_mut() {
        set.metadata.owner_references.as_mut().expect("owner")[0].uid = "uid-0".into();
    }
    refuses(&seen, Reason::Applying, "being deleted");
    let mut seen = testing::running();
    for set in seen.statefulsets.values_mut() {
        set.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    }
    refuses(&seen, Reason::Applying, "being deleted");
}

#[test]
fn a_resource_of_the_same_name_takes_over_the_disks_and_the_key_that_were_kept() {
    let mut seen = testing::observed("1Gi");
    testing::with_finalizer(&mut seen);
    let kept = testing::running();
    (seen.pvcs, seen.secret) = (kept.pvcs.clone(), kept.secret.clone());
    does(&seen, &[&format!("adopt {ID}")]);
    // A node was lost with one of the copies: the others are there.
    seen.nodes_usable = 2;
    does(&seen, &[&format!("adopt {ID}")]);
    // With the id, but without the key, they can't be used.
    testing::with_id(&mut seen, ID);
    seen.secret = None;
    refuses(&seen, Reason::KeyMissing, "restore it");
    // This operator has read it before; another cluster's is of no use.
    seen.secret_before = Some(testing::stored_secret(ClusterId(8)));
    refuses(&seen, Reason::KeyMissing, "restore it");
    seen.secret_before = Some(testing::stored_secret(ID));
    does(&seen, &[&format!("restore secret {ID}")]);
    seen.secret = Some(testing::stored_secret(ClusterId(8)));
    refuses(&seen, Reason::KeyMissing, "of cluster 0000");
    seen.secret = Some(Default::default());
    refuses(&seen, Reason::NameConflict, "isn't a cluster key");
}

fn mark(meta: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) {
    meta.labels.get_or_insert_default().insert(labels::BOOTSTRAPPED.into(), "true".into());
}

/// A resource that finds the disks and the key of [`testing::running`].
fn adopting() -> Observed {
    let mut seen = testing::observed("1Gi");
    testing::with_finalizer(&mut seen);
    let kept = testing::running();
    (seen.pvcs, seen.secret) = (kept.pvcs.clone(), kept.secret.clone());
    // As they would be found by another resource of this name.
    testing::change(&mut seen, |cluster| cluster.metadata.uid = Some("uid-2".into()));
    seen
}

#[test]
fn an_adopted_volume_is_never_bootstrapped_again() {
    let without = |component: Component| {
        let mut seen = adopting();
        seen.pvcs.retain(|name, _| !name.contains(component.as_str()));
        seen
    };
    // The disks of the metadata servers are gone: new ones would be an empty volume with the old key.
    refuses(
        &without(Component::Metadata),
        Reason::ForeignData,
        "PVCs data-db-metadata-0, data-db-metadata-1",
    );
    // One is gone: the others know everything.
    let mut seen = adopting();
    assert_eq!(missing(&seen), Vec::<String>::new());
    seen.pvcs.remove("data-db-metadata-0");
    does(&seen, &[&format!("adopt {ID}")]);
    assert_eq!(missing(&seen), ["data-db-metadata-0"]);
    does(&without(Component::Storage), &[&format!("adopt {ID}")]);
    // The key alone is left.
    let mut seen = adopting();
    seen.pvcs.clear();
    refuses(&seen, Reason::ForeignData, "none of its disks");
    // A key that a user made is for a new volume.
    seen.secret.as_mut().expect("key").metadata.labels = None;
    does(&seen, &[&format!("id {ID}")]);
}

#[test]
fn kept_disks_are_compared_with_what_is_asked_for() {
    let mut seen = adopting();
    testing::change(&mut seen, |cluster| cluster.spec.copies = 2);
    refuses(&seen, Reason::AdoptionRefused, "spec.copies is 2, and the disks have 3");
    // Without a record the disks are counted, and the key says whether it encrypts.
    for pvc in seen.pvcs.values_mut() {
        pvc.metadata.annotations = None;
    }
    refuses(&seen, Reason::AdoptionRefused, "there are disks of 3 servers");
    testing::change(&mut seen, |cluster| {
        cluster.spec.copies = 3;
        cluster.spec.encryption = atoll_crds::v1alpha1::Encryption::Required;
    });
    refuses(&seen, Reason::AdoptionRefused, "spec.encryption is Required");
    testing::change(&mut seen, |cluster| cluster.spec.encryption = Default::default());
    does(&seen, &[&format!("adopt {ID}")]);
}

#[test]
fn all_disks_and_the_key_say_that_the_volume_was_made() {
    let mut seen = testing::running();
    for pvc in seen.pvcs.values_mut() {
        pvc.metadata.labels.as_mut().expect("labels").remove(labels::BOOTSTRAPPED);
    }
    seen.secret = Some(testing::stored_secret(ID));
    let disks = ["metadata", "storage"]
        .iter()
        .flat_map(|name| (0..3).map(move |n| format!("mark data-db-{name}-{n}")));
    let expected: Vec<String> = disks.chain(["mark db-key".to_owned()]).collect();
    does(&seen, &expected.iter().map(String::as_str).collect::<Vec<_>>());
    // What the volume is has changed: the disks are told, the key says nothing of it.
    let mut seen = testing::running();
    testing::change(&mut seen, |cluster| cluster.spec.version = Some(crate::config::VERSION.into()));
    does(&seen, &expected[..6].iter().map(String::as_str).collect::<Vec<_>>());
    // Nobody says so before it is true.
    does(&testing::started(), &[&format!("bootstrap {ID}")]);
}

#[test]
fn disks_of_others_are_never_used() {
    let mut seen = testing::observed("1Gi");
    testing::with_finalizer(&mut seen);
    for (ordinal, id) in [(0, ClusterId(1)), (1, ClusterId(2))] {
        let name = names::pvc("db", Component::Storage, ordinal);
        seen.pvcs.insert(name.clone(), testing::pvc(&name, Component::Storage, id));
    }
    refuses(&seen, Reason::ForeignData, "several clusters");
    testing::with_id(&mut seen, ClusterId(1));
    refuses(&seen, Reason::ForeignData, "data-db-storage-1");
    seen.pvcs.get_mut("data-db-storage-1").expect("disk").metadata.labels = None;
    refuses(&seen, Reason::NameConflict, "atoll.dev/cluster-id=");
    // Nor are the servers of a resource whose disks were deleted: theirs would be labelled as the old ones.
    let mut seen = testing::applied();
    testing::with_id(&mut seen, ClusterId(1));
    refuses(&seen, Reason::ForeignData, "delete statefulset db-metadata");
}

#[test]
fn a_volume_is_made_once() {
    // The id is on the PVC: an empty disk is a lost one.
    let mut seen = testing::started();
    testing::mark_member(&mut seen, 0, MEMBER);
    refuses(&seen, Reason::ForeignData, "no records");
    // The status says so.
    let mut seen = testing::started();
    testing::change(&mut seen, |cluster| cluster.status.get_or_insert_default().bootstrapped = true);
    refuses(&seen, Reason::ForeignData, "no records");
    // Or the id is that of disks that were there before.
    let mut seen = testing::started();
    testing::change(&mut seen, |cluster| cluster.status.get_or_insert_default().adopted = true);
    refuses(&seen, Reason::ForeignData, "no records");
    // Or the disk of a storage server, when nothing else is left that could say so; or the key.
    let mut seen = testing::started();
    mark(&mut seen.pvcs.get_mut("data-db-storage-2").expect("disk").metadata);
    refuses(&seen, Reason::ForeignData, "no records");
    let mut seen = testing::started();
    mark(&mut seen.secret.as_mut().expect("key").metadata);
    refuses(&seen, Reason::ForeignData, "no records");
    // The servers that have the records may still be starting.
    seen.pods.get_mut("db-metadata-1").expect("pod").status = None;
    refuses(&seen, Reason::MetadataUnreachable, "waits for those");
    // Another disk under the PVC.
    let mut seen = testing::running();
    testing::answer(&mut seen).members.truncate(1);
    testing::mark_member(&mut seen, 0, MemberId(0xd));
    refuses(&seen, Reason::ForeignData, "now has metadata server");
    let mut seen = testing::running();
    testing::answer(&mut seen).cluster = Some(ClusterId(9));
    refuses(&seen, Reason::ForeignData, "has data of cluster");
    // Nobody answers: nothing is known, nothing is done.
    let mut seen = testing::started();
    seen.metadata = MetadataFact::Unreachable("no route".into());
    does(&seen, &[]);
}

#[test]
fn without_the_word_data_stays() {
    let mut seen = unused();
    testing::deleted(&mut seen);
    let servers = ["delete StatefulSet db-metadata", "delete StatefulSet db-storage"];
    does(&seen, &servers);
    // A wrong word is none.
    testing::change(&mut seen, |cluster| cluster.spec.deletion_confirmation = Some(FRESH.to_string()));
    does(&seen, &servers);
    // Paused or invalid: it can be let go all the same.
    testing::change(&mut seen, |cluster| {
        (cluster.spec.paused, cluster.spec.version) = (true, Some("9".into()));
    });
    does(&seen, &servers);
    (seen.statefulsets, seen.metadata) = (Default::default(), MetadataFact::NotAsked);
    refuses(&seen, Reason::Deleting, "pods");
    seen.pods.clear();
    does(
        &seen,
        &[
            "delete Service db-metadata",
            "delete Service db-storage",
            "delete Budget db-metadata",
            "delete Budget db-storage",
        ],
    );
    (seen.services, seen.budgets) = Default::default();
    does(&seen, &["remove finalizer"]);
    testing::change(&mut seen, |cluster| cluster.metadata.finalizers = None);
    does(&seen, &[]);
}

/// Everything runs, and nobody has mounted it.
fn unused() -> Observed {
    let mut seen = testing::running();
    testing::answer(&mut seen).sessions.clear();
    seen
}

#[test]
fn a_volume_in_use_is_served_until_nobody_refers_to_it() {
    let mut seen = testing::running();
    seen.volumes = vec!["pvc-1 of claim web/data".into()];
    testing::deleted(&mut seen);
    refuses(&seen, Reason::Mounted, "node-1");
    // However it was deleted: what the garbage collector writes changes nothing.
    testing::change(&mut seen, |cluster| {
        cluster.metadata.finalizers.as_mut().expect("ours").push("foregroundDeletion".into());
    });
    refuses(&seen, Reason::Mounted, "node-1");
    testing::answer(&mut seen).sessions.clear();
    refuses(&seen, Reason::ReferencedByVolume, "pvc-1 of claim web/data");
    // The word is said while the PersistentVolume is still there.
    testing::change(&mut seen, |cluster| cluster.spec.deletion_confirmation = Some(ID.to_string()));
    assert_eq!(words(&planned(&seen)).len(), 2);
    testing::change(&mut seen, |cluster| cluster.spec.deletion_confirmation = None);
    seen.volumes.clear();
    assert_eq!(words(&planned(&seen)).len(), 2);
}

#[test]
fn only_the_leader_knows_who_has_mounted_a_volume() {
    let mut seen = unused();
    testing::deleted(&mut seen);
    testing::change(&mut seen, |cluster| cluster.spec.deletion_confirmation = Some(ID.to_string()));
    // An election: a follower answers, and knows of no session.
    testing::answer(&mut seen).is_leader = false;
    refuses(&seen, Reason::MountsUnknown, "election");
    // Something is between the operator and servers that work.
    seen.metadata = MetadataFact::Unreachable("timed out".into());
    refuses(&seen, Reason::MountsUnknown, "NetworkPolicies");
    // A majority that doesn't run serves nobody.
    seen.pods.get_mut("db-metadata-0").expect("pod").status = None;
    refuses(&seen, Reason::MountsUnknown, "2 of 3");
    seen.pods.remove("db-metadata-1");
    // It may come back, and its mounts with it.
    testing::change(&mut seen, |cluster| cluster.status.as_mut().expect("a status").client_count = 1);
    refuses(&seen, Reason::MountsUnknown, "1 of 3");
    testing::change(&mut seen, |cluster| cluster.status.as_mut().expect("a status").client_count = 0);
    does(&seen, &["delete StatefulSet db-metadata", "delete StatefulSet db-storage"]);
}

#[test]
fn a_confirmation_that_no_deletion_follows_is_withdrawn() {
    let mut seen = unused();
    testing::change(&mut seen, |cluster| cluster.spec.deletion_confirmation = Some(ID.to_string()));
    seen.confirmed_for = Some(CONFIRMATION_LIFETIME / 2);
    does(&seen, &[]);
    seen.confirmed_for = Some(CONFIRMATION_LIFETIME);
    does(&seen, &["withdraw confirmation"]);
    // Whatever else is wrong with the resource.
    testing::change(&mut seen, |cluster| cluster.spec.version = Some("9".into()));
    does(&seen, &["withdraw confirmation"]);
    // A deletion has begun, and may take as long as mounts stay.
    testing::deleted(&mut seen);
    does(&seen, &["delete StatefulSet db-metadata", "delete StatefulSet db-storage"]);
}

#[test]
fn the_key_of_a_volume_never_changes() {
    let mut seen = testing::running();
    assert_eq!(seen.secret.as_ref().expect("key").immutable, Some(true));
    // An earlier release left it open.
    seen.secret.as_mut().expect("key").immutable = None;
    does(&seen, &["mark db-key"]);
}

#[test]
fn with_the_word_mounts_go_first_then_pods_then_disks_then_the_key() {
    let mut seen = testing::running();
    testing::deleted(&mut seen);
    testing::change(&mut seen, |cluster| cluster.spec.deletion_confirmation = Some(ID.to_string()));
    refuses(&seen, Reason::Mounted, "node-1");
    testing::answer(&mut seen).sessions.clear();
    does(&seen, &["delete StatefulSet db-metadata", "delete StatefulSet db-storage"]);
    seen.statefulsets.clear();
    seen.metadata = MetadataFact::NotAsked;
    refuses(&seen, Reason::Deleting, "pods");
    seen.pods.clear();
    assert_eq!(words(&planned(&seen)).len(), 4);
    (seen.services, seen.budgets) = Default::default();
    let foreign = testing::pvc("data-db-storage-9", Component::Storage, ClusterId(1));
    seen.pvcs.insert("data-db-storage-9".into(), foreign);
    does(
        &seen,
        &[
            "delete PersistentVolumeClaim data-db-metadata-0",
            "delete PersistentVolumeClaim data-db-metadata-1",
            "delete PersistentVolumeClaim data-db-metadata-2",
            "delete PersistentVolumeClaim data-db-storage-0",
            "delete PersistentVolumeClaim data-db-storage-1",
            "delete PersistentVolumeClaim data-db-storage-2",
        ],
    );
    for pvc in seen.pvcs.values_mut() {
        pvc.metadata.deletion_timestamp.clone_from(&seen.cluster.metadata.deletion_timestamp);
    }
    refuses(&seen, Reason::Deleting, "data-db-metadata-0");
    seen.pvcs.retain(|name, _| name == "data-db-storage-9");
    does(&seen, &["delete Secret db-key"]);
    seen.secret = None;
    does(&seen, &["remove finalizer"]);
}

#[test]
fn what_was_never_made_leaves_nothing_behind() {
    // Its servers run, and nobody can have mounted what they would serve.
    let mut seen = testing::started();
    testing::deleted(&mut seen);
    does(&seen, &["delete StatefulSet db-metadata", "delete StatefulSet db-storage"]);
    let mut seen = half_made();
    assert_eq!(words(&planned(&seen)).len(), 6);
    seen = testing::observed("1Gi");
    testing::with_finalizer(&mut seen);
    testing::deleted(&mut seen);
    does(&seen, &["remove finalizer"]);
    // Nothing goes that an earlier resource, a snapshot or a person brought.
    seen = half_made();
    let restored = seen.pvcs.get_mut("data-db-storage-1").expect("disk");
    restored.spec.get_or_insert_default().data_source = Some(Default::default());
    let by_hand = seen.pvcs.get_mut("data-db-storage-2").expect("disk");
    by_hand.metadata.annotations = None;
    let goes = words(&planned(&seen));
    assert_eq!(goes.len(), 4, "{goes:?}");
    testing::change(&mut seen, |cluster| cluster.metadata.uid = Some("uid-2".into()));
    does(&seen, &["remove finalizer"]);
    // An adopted volume was made, though nothing else says so.
    testing::change(&mut seen, |cluster| {
        (cluster.metadata.uid, cluster.status.get_or_insert_default().adopted) = (Some("uid-1".into()), true);
    });
    does(&seen, &["remove finalizer"]);
    // Made, and the status doesn't know yet: the label does.
    seen = half_made();
    testing::mark_member(&mut seen, 0, MEMBER);
    does(&seen, &["remove finalizer"]);
}

/// A cluster that was deleted before its volume was made: its disks and its key are left.
fn half_made() -> Observed {
    let mut seen = testing::started();
    testing::deleted(&mut seen);
    (seen.statefulsets, seen.services, seen.budgets) = Default::default();
    seen.pods.clear();
    seen.metadata = MetadataFact::NotAsked;
    seen
}

#[test]
fn who_deletes_the_definition_or_the_namespace_says_nothing_about_data() {
    let mut seen = testing::running();
    testing::deleted(&mut seen);
    testing::change(&mut seen, |cluster| cluster.spec.deletion_confirmation = Some(ID.to_string()));
    // Mounted or not: the pods go on, since the resource owns nothing.
    seen.crd_terminating = true;
    does(&seen, &["remove finalizer"]);
    seen.namespace_terminating = true;
    does(&seen, &["remove finalizer"]);
}
