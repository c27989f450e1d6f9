//! Decisions by tables, and the calls against a store in memory that misbehaves when told.

use std::sync::Arc;
use std::time::Duration;

use atoll_crds::v1alpha1::{FileSystemClusterStatus, conditions};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::*;
use crate::access::testing::capability;
use crate::clusters::memory::{Behaviour, MemoryClusters};
use crate::csi::volume_capability::access_mode::Mode;
use crate::csi::{
    ControllerExpandVolumeRequest, ControllerListVolumeHealthRequest, ListVolumesRequest,
    ListVolumesResponse, ValidateVolumeCapabilitiesRequest, VolumeContentSource,
};
use crate::rpc::Rpcs;

const NAMESPACE: &str = "atoll-volumes";
const NO_WAIT: Duration = Duration::ZERO;
const GIB: i64 = 1 << 30;

fn request(name: &str, required: i64, mode: Mode) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: required, limit_bytes: 0 }),
        volume_capabilities: vec![capability(mode, &[])],
        ..CreateVolumeRequest::default()
    }
}

fn shared(name: &str) -> CreateVolumeRequest {
    request(name, 5 * GIB, Mode::MultiNodeMultiWriter)
}

fn service(store: &MemoryClusters) -> ControllerService<MemoryClusters> {
    ControllerService::new(Arc::new(store.clone()), Arc::new(Rpcs::default()))
}

#[test]
fn sizes_are_exactly_what_was_asked_for() {
    let range = |required_bytes, limit_bytes| capacity(Some(&CapacityRange { required_bytes, limit_bytes }));
    assert_eq!(capacity(None), Ok(CAPACITY_BYTES_DEFAULT));
    assert_eq!(range(0, GIB), Ok(1 << 30));
    assert_eq!(range(GIB, GIB), Ok(1 << 30));
    assert_eq!(range(1_234_567_890, 0), Ok(1_234_567_890), "not rounded");
    assert_eq!(range(1, 0), Ok(CAPACITY_BYTES_MIN), "never less than can be had");
    assert!(matches!(range(1, 1000), Err(CsiError::OutOfRange(_))));
    assert!(matches!(range(i64::MAX, 0), Err(CsiError::OutOfRange(_))));
    assert!(matches!(range(2 * GIB, GIB), Err(CsiError::Invalid(_))));
    assert!(matches!(range(-1, 0), Err(CsiError::Invalid(_))));
}

#[test]
fn a_request_becomes_a_cluster() {
    let mut request = request("pvc-1234", 5 * GIB, Mode::SingleNodeMultiWriter);
    request.parameters = HashMap::from([
        ("copies".to_owned(), "1".to_owned()),
        ("csi.storage.k8s.io/pvc/name".to_owned(), "data".to_owned()),
        ("csi.storage.k8s.io/pvc/namespace".to_owned(), "shop".to_owned()),
        ("csi.storage.k8s.io/pv/name".to_owned(), "pvc-1234".to_owned()),
    ]);
    let wanted = Wanted::parse(&request, NAMESPACE).unwrap();
    assert_eq!(wanted.handle.to_string(), "v1/atoll-volumes/pvc-1234");
    let spec = &wanted.cluster.spec;
    assert_eq!((spec.capacity.as_str(), spec.copies, spec.access), ("5Gi", 1, Access::Exclusive));
    assert_eq!(
        spec.client_secret_name.as_deref(),
        Some("pvc-1234"),
        "as the template of a StorageClass names it"
    );
    let labels = wanted.cluster.metadata.labels.clone().unwrap();
    assert_eq!(labels.get(labels::PVC_NAMESPACE).map(String::as_str), Some("shop"));
    // Names of PVC and PV don't make another request of it.
    request.parameters.retain(|name, _| name == "copies");
    let again = Wanted::parse(&request, NAMESPACE).unwrap();
    let now = Timestamp::UNIX_EPOCH;
    assert_eq!(judge(Some(&wanted.cluster), &again, now), judge(Some(&wanted.cluster), &wanted, now));
}

#[test]
fn what_can_t_ever_be_is_refused_before_anything_is_made() {
    type Change = fn(&mut CreateVolumeRequest);
    let changes: [(Change, &str); 7] = [
        (|r| r.name = String::new(), "name"),
        (|r| r.name = "a\u{1}".to_owned(), "control"),
        (|r| r.volume_capabilities.clear(), "volume_capabilities"),
        (|r| r.volume_capabilities = vec![capability(Mode::MultiNodeMultiWriter, &["sync"])], "sync"),
        (|r| drop(r.parameters.insert("replica".to_owned(), "3".to_owned())), "replica"),
        (|r| drop(r.mutable_parameters.insert("iops".to_owned(), "3".to_owned())), "iops"),
        (|r| r.volume_content_source = Some(VolumeContentSource::default()), "dataSource"),
    ];
    for (change, word) in changes {
        let mut request = shared("pvc-1");
        change(&mut request);
        let error = Wanted::parse(&request, NAMESPACE).unwrap_err();
        assert!(matches!(error, CsiError::Invalid(_) | CsiError::Missing(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn the_same_call_any_number_of_times_is_one_volume() {
    let store = MemoryClusters::ready();
    let service = service(&store);
    let first = service.create(shared("CSI Volume"), NO_WAIT).await.unwrap();
    for _ in 0..3 {
        assert_eq!(service.create(shared("CSI Volume"), NO_WAIT).await.unwrap(), first);
    }
    assert_eq!((store.clusters.lock().len(), first.capacity_bytes), (1, 5 * GIB));
    let other_size =
        service.create(request("CSI Volume", 6 * GIB, Mode::MultiNodeMultiWriter), NO_WAIT).await;
    let other_use = service.create(request("CSI Volume", 5 * GIB, Mode::SingleNodeWriter), NO_WAIT).await;
    let mut parameters = shared("CSI Volume");
    parameters.parameters.insert("copies".to_owned(), "2".to_owned());
    let other_parameters = service.create(parameters, NO_WAIT).await;
    for other in [other_size, other_use, other_parameters] {
        assert!(matches!(other, Err(CsiError::Exists(_))), "{other:?}");
    }
    for _ in 0..2 {
        service.remove(&first.volume_id, NO_WAIT).await.unwrap();
    }
    assert!(store.clusters.lock().is_empty());
    let confirmed = store.deleted.lock()[0].1.clone();
    assert_eq!(confirmed.as_deref(), Some("0123456789abcdef0123456789abcdef"), "the word that data may go");
}

#[tokio::test]
async fn a_cluster_of_that_name_that_somebody_else_made_is_left_alone() {
    let store = MemoryClusters::ready();
    let mut foreign = Wanted::parse(&shared("pvc-1"), NAMESPACE).unwrap().cluster;
    foreign.metadata.annotations = None;
    store.clusters.lock().insert("pvc-1".to_owned(), foreign);
    let refused = service(&store).create(shared("pvc-1"), NO_WAIT).await;
    assert!(matches!(refused, Err(CsiError::Exists(_))), "{refused:?}");
}

/// While a cluster comes up every answer has to mean "it may still come to be", or external-provisioner forgets it.
#[tokio::test]
async fn a_volume_that_is_never_ready_is_never_refused_for_good_and_can_be_deleted() {
    let store = MemoryClusters::default();
    store.behaviour.lock().message = "3 copies need 3 nodes and there is 1".to_owned();
    let service = service(&store);
    for _ in 0..2 {
        let slow = service.create(shared("pvc-1"), NO_WAIT).await.unwrap_err();
        assert!(
            matches!(&slow, CsiError::Pending(Pending::NotYet(why)) if why.contains("3 nodes")),
            "{slow}"
        );
    }
    store.behaviour.lock().away = true;
    let away = service.create(shared("pvc-1"), NO_WAIT).await.unwrap_err();
    assert!(matches!(away, CsiError::Pending(Pending::Unavailable(_))), "{away}");
    let away = service.remove("v1/atoll-volumes/pvc-1", NO_WAIT).await.unwrap_err();
    assert!(matches!(away, CsiError::Pending(Pending::Unavailable(_))), "{away}");
    store.behaviour.lock().away = false;
    service.remove("v1/atoll-volumes/pvc-1", NO_WAIT).await.unwrap();
    assert!(store.clusters.lock().is_empty());
    assert_eq!(store.deleted.lock()[0].1, None, "it never had an id, so there is no data to speak of");
}

#[tokio::test]
async fn a_volume_that_can_t_be_made_leaves_nothing_and_is_refused_with_the_reason() {
    let store = MemoryClusters::default();
    *store.behaviour.lock() = Behaviour {
        reason: "TooFewNodes".to_owned(),
        message: "3 copies need 3 nodes and there is 1".to_owned(),
        ..Behaviour::default()
    };
    let service = service(&store);
    let refused = service.create(shared("pvc-1"), Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(&refused, CsiError::Exhausted(why) if why.contains("3 nodes")), "{refused}");
    assert!(store.clusters.lock().is_empty());
    // Its end takes longer than the call: nothing final may be said yet.
    store.behaviour.lock().stuck = true;
    let slow = service.create(shared("pvc-1"), NO_WAIT).await.unwrap_err();
    assert!(matches!(slow, CsiError::Pending(Pending::NotYet(_))), "{slow}");
}

#[test]
fn a_cluster_is_given_up_only_without_data() {
    let wanted = Wanted::parse(&shared("pvc-1"), NAMESPACE).unwrap();
    let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(TIMEOUT_SECONDS + 1);
    let late = FileSystemCluster {
        metadata: ObjectMeta {
            creation_timestamp: Some(Time(Timestamp::UNIX_EPOCH)),
            ..wanted.cluster.metadata.clone()
        },
        ..wanted.cluster.clone()
    };
    assert!(matches!(judge(Some(&late), &wanted, now), Ok(Step::GiveUp(_))));
    let soon = now - SignedDuration::from_secs(2);
    assert!(matches!(judge(Some(&late), &wanted, soon), Ok(Step::Wait(_))));
    // Somebody may have used it; or it adopts disks of which nobody knows yet what they hold.
    for (bootstrapped, adopted) in [(true, false), (false, true)] {
        let status = FileSystemClusterStatus { bootstrapped, adopted, ..FileSystemClusterStatus::default() };
        let made = FileSystemCluster { status: Some(status), ..late.clone() };
        assert!(matches!(judge(Some(&made), &wanted, now), Ok(Step::Wait(_))), "{made:?}");
    }
}

#[tokio::test]
async fn a_call_waits_for_its_cluster() {
    let store = MemoryClusters::default();
    let service = Arc::new(service(&store));
    let waiting = tokio::spawn({
        let service = Arc::clone(&service);
        async move { service.create(shared("pvc-1"), Duration::from_secs(60)).await }
    });
    while store.clusters.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    let meanwhile = service.create(shared("pvc-1"), NO_WAIT).await;
    assert!(matches!(meanwhile, Err(CsiError::Pending(Pending::Busy(_)))), "{meanwhile:?}");
    store.set_ready("pvc-1", true, "");
    assert_eq!(waiting.await.unwrap().unwrap().volume_id, "v1/atoll-volumes/pvc-1");
}

#[tokio::test]
async fn a_refused_resource_is_refused_with_the_reason_and_none_is_there() {
    let store = MemoryClusters::ready();
    store.behaviour.lock().refused = Some("metadata.replicas other than 1 isn't honoured".to_owned());
    let refused = service(&store).create(shared("pvc-1"), NO_WAIT).await;
    assert_eq!(refused, Err(CsiError::Invalid("metadata.replicas other than 1 isn't honoured".to_owned())));
}

#[tokio::test]
async fn deletion_is_done_when_all_is_gone_and_not_before() {
    let store = MemoryClusters::ready();
    let service = service(&store);
    service.create(shared("pvc-1"), NO_WAIT).await.unwrap();
    store.behaviour.lock().stuck = true;
    let waits = service.remove("v1/atoll-volumes/pvc-1", NO_WAIT).await;
    assert!(matches!(waits, Err(CsiError::Pending(Pending::NotYet(_)))), "{waits:?}");
    let again = service.create(shared("pvc-1"), NO_WAIT).await;
    assert!(matches!(again, Err(CsiError::Pending(Pending::NotYet(_)))), "no new one meanwhile: {again:?}");
    store.clusters.lock().clear();
    service.remove("v1/atoll-volumes/pvc-1", NO_WAIT).await.unwrap();
    assert_eq!(service.remove("", NO_WAIT).await, Err(CsiError::Missing("volume_id")));
    service.remove("reallyfakevolumeid", NO_WAIT).await.unwrap();
    let by_hand = service.remove("v1/shop/database", NO_WAIT).await;
    assert!(matches!(by_hand, Err(CsiError::Precondition(_))), "{by_hand:?}");
}

#[tokio::test]
async fn capabilities_are_confirmed_only_if_all_can_be_had() {
    let store = MemoryClusters::ready();
    let service = service(&store);
    service.create(request("pvc-1", GIB, Mode::SingleNodeMultiWriter), NO_WAIT).await.unwrap();
    let ask = |id: &str, modes: &[Mode]| ValidateVolumeCapabilitiesRequest {
        volume_id: id.to_owned(),
        volume_capabilities: modes.iter().map(|mode| capability(*mode, &[])).collect(),
        volume_context: HashMap::from([("k".to_owned(), "v".to_owned())]),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let id = "v1/atoll-volumes/pvc-1";
    let good = service.validate(ask(id, &[Mode::SingleNodeWriter])).await.unwrap();
    assert_eq!(good.confirmed.unwrap().volume_context.len(), 1);
    let bad = service.validate(ask(id, &[Mode::SingleNodeWriter, Mode::MultiNodeMultiWriter])).await.unwrap();
    assert!(bad.confirmed.is_none() && bad.message.contains("one node"), "{bad:?}");
    let unknown = service.validate(ask("fake-vol-id", &[Mode::SingleNodeWriter])).await;
    assert!(matches!(unknown, Err(CsiError::NotFound(_))), "{unknown:?}");
    assert!(matches!(service.validate(ask(id, &[])).await, Err(CsiError::Missing(_))));
    assert!(matches!(service.validate(ask("", &[Mode::SingleNodeWriter])).await, Err(CsiError::Missing(_))));
}

fn expand(id: &str, required_bytes: i64, limit_bytes: i64) -> ControllerExpandVolumeRequest {
    ControllerExpandVolumeRequest {
        volume_id: id.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
        ..ControllerExpandVolumeRequest::default()
    }
}

/// A cluster that asks for a size, has another, and says why.
fn grown(asks: &str, has: Option<&str>, pending: Option<Reason>) -> FileSystemCluster {
    let mut cluster = Wanted::parse(&shared("pvc-1"), NAMESPACE).unwrap().cluster;
    cluster.spec.capacity = asks.into();
    cluster.metadata.generation = Some(2);
    let status = cluster.status.get_or_insert_default();
    status.capacity = has.map(Into::into);
    let words = (pending.unwrap_or(Reason::AsSpecified), "because of the disks");
    let (kind, now) = (ConditionType::ExpansionPending, Time(Timestamp::UNIX_EPOCH));
    conditions::set(&mut status.conditions, kind, pending.is_some(), words, Some(2), now);
    cluster
}

#[test]
fn a_volume_grows_to_what_is_asked_for_and_never_shrinks() {
    let judged = |cluster: &FileSystemCluster, required: u64| {
        growth(cluster, Expansion { required: required << 30, limit: u64::MAX })
    };
    let gib = |count: u64| count << 30;
    let waits = |step: Result<Growth, CsiError>, words: &str| {
        assert!(matches!(&step, Ok(Growth::Wait(Pending::NotYet(why))) if why.contains(words)), "{step:?}");
    };
    assert_eq!(judged(&grown("5Gi", Some("5Gi"), None), 5), Ok(Growth::Done(gib(5))));
    assert_eq!(judged(&grown("5Gi", Some("5Gi"), None), 3), Ok(Growth::Done(gib(5))), "it stays as it is");
    assert_eq!(judged(&grown("5Gi", Some("5Gi"), None), 6), Ok(Growth::Ask(gib(6))));
    waits(judged(&grown("6Gi", Some("5Gi"), Some(Reason::ResizingDisks)), 6), "because of the disks");
    waits(judged(&grown("6Gi", None, None), 6), "not reported its size");
    assert_eq!(judged(&grown("6Gi", Some("6Gi"), None), 6), Ok(Growth::Done(gib(6))));
    // Sizes are whole blocks, and claims have what they asked for.
    let odd = Expansion { required: gib(5) + 5, limit: u64::MAX };
    assert_eq!(growth(&grown("5368709125", Some("5Gi"), None), odd), Ok(Growth::Done(gib(5) + 5)));
    let limited = Expansion { required: gib(1), limit: gib(4) };
    assert!(matches!(growth(&grown("5Gi", Some("5Gi"), None), limited), Err(CsiError::OutOfRange(_))));
    let mut going = grown("5Gi", Some("5Gi"), None);
    going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    waits(judged(&going, 6), "being deleted");
}

/// As KEP-1790 has it: after `OUT_OF_RANGE` the claim may ask for less, and gets it.
#[test]
fn what_can_t_be_had_is_said_and_taken_back() {
    let judged = |cluster: &FileSystemCluster, required: u64| {
        growth(cluster, Expansion { required: required << 30, limit: u64::MAX })
    };
    for reason in [Reason::ExpansionInfeasible, Reason::NotExpandable] {
        let stuck = grown("900Gi", Some("5Gi"), Some(reason));
        let refused = judged(&stuck, 900).unwrap_err();
        assert!(
            matches!(&refused, CsiError::OutOfRange(why) if why.contains("because of the disks")),
            "{refused}"
        );
        assert_eq!(judged(&stuck, 6), Ok(Growth::Ask(6 << 30)));
        assert_eq!(judged(&stuck, 5), Ok(Growth::Ask(5 << 30)), "down to what there is");
        // What was said of another size says nothing of this one.
        let mut asked = grown("6Gi", Some("5Gi"), Some(reason));
        asked.metadata.generation = Some(3);
        assert!(matches!(judged(&asked, 6), Ok(Growth::Wait(_))));
    }
    // One that is on its way is left on it.
    let moving = grown("900Gi", Some("5Gi"), Some(Reason::AddingServers));
    assert_eq!(judged(&moving, 5), Ok(Growth::Done(5 << 30)));
}

#[tokio::test]
async fn an_expansion_is_done_once_the_volume_has_the_size() {
    let store = MemoryClusters::ready();
    let service = service(&store);
    let id = service.create(shared("pvc-1"), NO_WAIT).await.unwrap().volume_id;
    let set = |has: &str| {
        let mut clusters = store.clusters.lock();
        let status = clusters.get_mut("pvc-1").unwrap().status.get_or_insert_default();
        status.capacity = Some(has.into());
    };
    set("5Gi");
    let slow = service.expand(expand(&id, 7 * GIB, 0), NO_WAIT).await;
    assert!(matches!(slow, Err(CsiError::Pending(Pending::NotYet(_)))), "{slow:?}");
    assert_eq!(store.clusters.lock()["pvc-1"].spec.capacity.as_str(), "7Gi");
    set("7Gi");
    for _ in 0..2 {
        assert_eq!(service.expand(expand(&id, 7 * GIB, 0), NO_WAIT).await, Ok(7 << 30));
    }
    store.behaviour.lock().grows = true;
    assert_eq!(service.expand(expand(&id, 9 * GIB, 9 * GIB), NO_WAIT).await, Ok(9 << 30));
    store.behaviour.lock().refused = Some("capacity can't be less than what files use".to_owned());
    let refused = service.expand(expand(&id, 10 * GIB, 0), NO_WAIT).await;
    assert!(matches!(&refused, Err(CsiError::OutOfRange(why)) if why.contains("files use")), "{refused:?}");
    // The same volume may still be asked for as it was at first.
    assert_eq!(service.create(shared("pvc-1"), NO_WAIT).await.unwrap().volume_id, id);

    let nobody = service.expand(expand("v1/atoll-volumes/pvc-2", GIB, 0), NO_WAIT).await;
    assert!(matches!(nobody, Err(CsiError::NotFound(_))), "{nobody:?}");
    let fake = service.expand(expand("reallyfakevolumeid", GIB, 0), NO_WAIT).await;
    assert!(matches!(fake, Err(CsiError::NotFound(_))), "{fake:?}");
    assert_eq!(service.expand(expand("", GIB, 0), NO_WAIT).await, Err(CsiError::Missing("volume_id")));
    let mut without = expand(&id, 0, 0);
    assert_eq!(service.expand(without.clone(), NO_WAIT).await, Err(CsiError::Missing("capacity_range")));
    without.capacity_range = None;
    assert_eq!(service.expand(without, NO_WAIT).await, Err(CsiError::Missing("capacity_range")));
    let large = service.expand(expand(&id, i64::MAX, 0), NO_WAIT).await;
    assert!(matches!(large, Err(CsiError::OutOfRange(_))), "{large:?}");
    let by_hand = service.expand(expand("v1/shop/database", GIB, 0), NO_WAIT).await;
    assert!(matches!(&by_hand, Err(CsiError::Invalid(why)) if why.contains("spec.capacity")), "{by_hand:?}");
}

#[tokio::test]
async fn volumes_are_listed_from_when_they_are_made_until_they_are_gone() {
    let store = MemoryClusters::ready();
    let service = service(&store);
    let list = |max_entries, starting_token: &str| {
        let starting_token = starting_token.to_owned();
        service.list(ListVolumesRequest { max_entries, starting_token })
    };
    let ids = |response: &ListVolumesResponse| -> Vec<String> {
        response.entries.iter().map(|entry| entry.volume.as_ref().unwrap().volume_id.clone()).collect()
    };
    assert!(list(0, "").await.unwrap().entries.is_empty());
    for name in ["pvc-2", "pvc-1", "pvc-3"] {
        service.create(shared(name), NO_WAIT).await.unwrap();
    }
    let first = list(2, "").await.unwrap();
    assert_eq!(ids(&first), ["v1/atoll-volumes/pvc-1", "v1/atoll-volumes/pvc-2"]);
    assert_eq!(first.entries[0].volume.as_ref().unwrap().capacity_bytes, 5 * GIB);
    let second = list(2, &first.next_token).await.unwrap();
    assert_eq!((ids(&second), second.next_token.as_str()), (vec!["v1/atoll-volumes/pvc-3".to_owned()], ""));
    // One that is being made is no volume yet.
    store.behaviour.lock().ready = false;
    service.create(shared("pvc-4"), NO_WAIT).await.unwrap_err();
    assert_eq!(list(0, "").await.unwrap().entries.len(), 3);
    let unmade = service.volume("v1/atoll-volumes/pvc-4").await;
    assert!(matches!(unmade, Err(CsiError::NotFound(_))), "{unmade:?}");
    service.remove("v1/atoll-volumes/pvc-2", NO_WAIT).await.unwrap();
    assert_eq!(list(0, "").await.unwrap().entries.len(), 2);
    assert!(matches!(list(0, "invalid-token").await, Err(CsiError::Pending(Pending::Restart(_)))));
    store.behaviour.lock().away = true;
    assert!(matches!(list(0, "").await, Err(CsiError::Pending(Pending::Unavailable(_)))));
}

#[tokio::test]
async fn only_ill_volumes_are_in_the_list_of_health() {
    let store = MemoryClusters::ready();
    let service = service(&store);
    for name in ["pvc-1", "pvc-2"] {
        service.create(shared(name), NO_WAIT).await.unwrap();
    }
    let all = ControllerListVolumeHealthRequest::default();
    assert!(service.list_health(all.clone()).await.unwrap().entries.is_empty());
    if let Some(cluster) = store.clusters.lock().get_mut("pvc-2") {
        let status = cluster.status.get_or_insert_default();
        let (kind, now) = (ConditionType::Available, Time(Timestamp::UNIX_EPOCH));
        let words = (Reason::MetadataUnreachable, "no metadata server answers");
        conditions::set(&mut status.conditions, kind, false, words, None, now);
    }
    let ill = service.list_health(all).await.unwrap().entries;
    assert_eq!(ill.iter().map(|health| &*health.volume_id).collect::<Vec<_>>(), ["v1/atoll-volumes/pvc-2"]);
    assert_eq!(service.health("v1/atoll-volumes/pvc-2").await.unwrap(), ill[0]);
    assert!(service.health("v1/atoll-volumes/pvc-1").await.unwrap().health_statuses.is_empty());
    assert!(matches!(service.health("v1/atoll-volumes/pvc-9").await, Err(CsiError::NotFound(_))));
    assert!(matches!(service.health("").await, Err(CsiError::Missing("volume_id"))));
}

#[tokio::test]
async fn a_volume_that_was_made_by_hand_is_known_by_its_handle() {
    let store = MemoryClusters::ready();
    let service = service(&store);
    let mut cluster = Wanted::parse(&request("db", GIB, Mode::SingleNodeWriter), "shop").unwrap().cluster;
    let status = cluster.status.get_or_insert_default();
    status.cluster_id = Some("0123456789abcdef0123456789abcdef".to_owned());
    store.elsewhere.lock().insert("v1/shop/db".to_owned(), cluster);
    let ask = |id: &str, mode| ValidateVolumeCapabilitiesRequest {
        volume_id: id.to_owned(),
        volume_capabilities: vec![capability(mode, &[])],
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let fits = service.validate(ask("v1/shop/db", Mode::SingleNodeWriter)).await.unwrap();
    assert!(fits.confirmed.is_some(), "{}", fits.message);
    let shared = service.validate(ask("v1/shop/db", Mode::MultiNodeMultiWriter)).await.unwrap();
    assert!(shared.confirmed.is_none() && shared.message.contains("Exclusive"), "{}", shared.message);
    let unknown = service.validate(ask("v1/shop/other", Mode::SingleNodeWriter)).await;
    assert!(matches!(unknown, Err(CsiError::NotFound(_))), "{unknown:?}");
    let volume = service.volume("v1/shop/db").await.unwrap();
    assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), ("v1/shop/db", GIB));
    assert!(
        service.list(ListVolumesRequest::default()).await.unwrap().entries.is_empty(),
        "not made for a claim"
    );
}
