//! `kubectl atoll events`: what was said of a volume, in whichever namespace: of its FileSystemCluster, StatefulSets, servers, disks,
//! claim and PersistentVolume, and of pods that can't mount it.

use std::collections::BTreeMap;

use atoll_crds::names::{Component, DATA_VOLUME, workload};
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;

use crate::cli::EventsArgs;
use crate::exit::Failure;
use crate::find;
use crate::output::{self, Row, age, missing};
use crate::status::now_seconds;
use crate::view::claim_of;
use crate::why::facts::{claims_of, when};

/// What kubelet and the node plugin say of a pod's volumes.
const OF_MOUNTS: [&str; 4] = ["FailedMount", "FailedAttachVolume", "VolumeMountLost", "VolumeNotResponding"];
/// The namespace in which Events of objects without one are.
const NAMESPACE_DEFAULT: &str = "default";

/// An Event. The field names are a contract with programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// Seconds since it was last seen.
    pub age_seconds: i64,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The reason.
    pub reason: String,
    /// Namespace of the object.
    pub namespace: String,
    /// The object: `Kind/name`.
    pub object: String,
    /// The volume that it is about: namespace and name of the FileSystemCluster.
    pub volume: String,
    /// How often.
    pub count: i32,
    /// The message.
    pub message: String,
    /// Name of the Event.
    pub name: String,
}

/// Lists them, the latest last.
///
/// # Errors
/// If the clusters or the Events can't be read.
pub async fn run(client: Client, namespace: &str, args: &EventsArgs) -> Result<(), Failure> {
    let clusters = find::chosen(&client, namespace, &args.selection).await?;
    let mut places: BTreeMap<String, (Vec<Event>, Vec<Pod>)> = BTreeMap::new();
    for cluster in &clusters {
        let claim = claim_of(cluster).map(|claim| claim.namespace);
        for (place, has_users) in [
            (Some(cluster.namespace_str().to_owned()), false),
            (Some(NAMESPACE_DEFAULT.to_owned()), false),
            (claim, true),
        ] {
            let Some(place) = place.filter(|place| !places.contains_key(place)) else { continue };
            let found = read(&client, &place, has_users).await;
            places.insert(place, found);
        }
    }
    let mut rows: Vec<Said> =
        clusters.iter().flat_map(|cluster| told(cluster, &places, now_seconds())).collect();
    rows.retain(|said| !args.warnings || said.kind == "Warning");
    rows.sort_by_key(|said| -said.age_seconds);
    let listing = &args.selection.listing;
    output::listing(&rows, listing.output, &format!("no Events of volumes{}", listing.place(namespace)))
}

async fn read(client: &Client, place: &str, has_users: bool) -> (Vec<Event>, Vec<Pod>) {
    let events: Api<Event> = Api::namespaced(client.clone(), place);
    let events = match events.list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(error) => {
            eprintln!("note: the Events of namespace {place} are not shown: {error}");
            Vec::new()
        }
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), place);
    let pods = if has_users { pods.list(&ListParams::default()).await.ok() } else { None };
    (events, pods.map_or_else(Vec::new, |list| list.items))
}

/// What was said of a cluster. `places` are the Events and the users' pods of each namespace.
fn told(
    cluster: &FileSystemCluster,
    places: &BTreeMap<String, (Vec<Event>, Vec<Pod>)>,
    now: i64,
) -> Vec<Said> {
    let volume = format!("{}/{}", cluster.namespace_str(), cluster.name_str());
    let of_place = |(place, (events, pods)): (&String, &(Vec<Event>, Vec<Pod>))| {
        let matching = events.iter().filter(|event| concerns(cluster, place, event, pods));
        matching.map(|event| said(event, &volume, now)).collect::<Vec<_>>()
    };
    places.iter().flat_map(of_place).collect()
}

fn said(event: &Event, volume: &str, now: i64) -> Said {
    let object = &event.involved_object;
    let count = event.count.or_else(|| event.series.as_ref().and_then(|series| series.count));
    Said {
        age_seconds: now - when(event),
        kind: event.type_.clone().unwrap_or_default(),
        reason: event.reason.clone().unwrap_or_default(),
        namespace: object.namespace.clone().unwrap_or_default(),
        object: format!(
            "{}/{}",
            object.kind.as_deref().unwrap_or_default(),
            object.name.as_deref().unwrap_or_default()
        ),
        volume: volume.to_owned(),
        count: count.unwrap_or(1),
        message: event.message.clone().unwrap_or_default().trim().replace('\n', " "),
        name: event.name_any(),
    }
}

/// Whether an Event of namespace `place` is about a cluster. `pods` are those of that namespace.
fn concerns(cluster: &FileSystemCluster, place: &str, event: &Event, pods: &[Pod]) -> bool {
    let object = &event.involved_object;
    let (kind, name) =
        (object.kind.as_deref().unwrap_or_default(), object.name.as_deref().unwrap_or_default());
    let claim = claim_of(cluster);
    let volume = claim.as_ref().and_then(|claim| claim.volume.as_deref());
    if kind == "PersistentVolume" {
        return volume == Some(name);
    }
    if let Some(claim) = claim.as_ref().filter(|claim| claim.namespace == place) {
        if kind == "PersistentVolumeClaim" && name == claim.name {
            return true;
        }
        let is_of_mount = event.reason.as_deref().is_some_and(|reason| OF_MOUNTS.contains(&reason));
        if kind == "Pod" && is_of_mount {
            let uses = |pod: &Pod| pod.name_any() == name && claims_of(pod).contains(&claim.name);
            // The message names the volume also when the pod is gone.
            let is_named = event.message.as_deref().is_some_and(|message| {
                volume.is_some_and(|volume| message.contains(&format!("\"{volume}\"")))
            });
            return is_named || pods.iter().any(uses);
        }
    }
    if place != cluster.namespace_str() {
        return false;
    }
    let cluster = cluster.name_str();
    let is_numbered = |name: &str, prefix: &str| {
        name.strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut workloads = Component::ALL.into_iter().map(|component| workload(cluster, component));
    match kind {
        "FileSystemCluster" => name == cluster,
        "Pod" => workloads.any(|prefix| is_numbered(name, &prefix)),
        "PersistentVolumeClaim" => {
            workloads.any(|prefix| is_numbered(name, &format!("{DATA_VOLUME}-{prefix}")))
        }
        _ => workloads.any(|prefix| name == prefix),
    }
}

impl Row for Said {
    const HEADER: &'static [&'static str] = &["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"];
    const WIDE: &'static [&'static str] = &["COUNT", "NAMESPACE", "VOLUME"];

    fn cells(&self) -> Vec<String> {
        let object = if self.object == "/" { missing() } else { self.object.clone() };
        vec![age(self.age_seconds), self.kind.clone(), self.reason.clone(), object, self.message.clone()]
    }

    fn wide_cells(&self) -> Vec<String> {
        vec![self.count.to_string(), self.namespace.clone(), self.volume.clone()]
    }

    fn resource(&self) -> String {
        format!("event/{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster() -> FileSystemCluster {
        serde_json::from_value(json!({
            "apiVersion": "atoll.dev/v1alpha1", "kind": "FileSystemCluster",
            "metadata": {
                "namespace": "atoll-volumes", "name": "a",
                "labels": { "atoll.dev/pvc-namespace": "web" },
                "annotations": { "atoll.dev/pvc-name": "data", "atoll.dev/pv-name": "pvc-1" },
            },
            "spec": { "capacity": "1Gi" },
        }))
        .expect("a cluster")
    }

    fn event(kind: &str, name: &str, reason: &str, message: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": { "name": "e" }, "involvedObject": { "kind": kind, "name": name },
            "reason": reason, "message": message, "type": "Warning", "lastTimestamp": "1970-01-01T00:01:00Z",
        }))
        .expect("an event")
    }

    #[test]
    fn the_events_of_a_volume_are_those_of_all_its_objects_and_of_no_other() {
        let pods: Vec<Pod> = vec![
            serde_json::from_value(json!({
                "metadata": { "name": "app" },
                "spec": { "containers": [], "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] },
            }))
            .expect("a pod"),
        ];
        let is = |place: &str, kind: &str, name: &str, reason: &str, message: &str| {
            concerns(&cluster(), place, &event(kind, name, reason, message), &pods)
        };
        let volumes = "atoll-volumes";
        for (place, kind, name) in [
            (volumes, "FileSystemCluster", "a"),
            (volumes, "StatefulSet", "a-metadata"),
            (volumes, "PodDisruptionBudget", "a-storage"),
            (volumes, "Pod", "a-storage-10"),
            (volumes, "PersistentVolumeClaim", "data-a-storage-1"),
            ("web", "PersistentVolumeClaim", "data"),
            ("default", "PersistentVolume", "pvc-1"),
        ] {
            assert!(is(place, kind, name, "r", ""), "{place} {kind} {name}");
        }
        // Another volume whose name begins as this one's, and other namespaces.
        for (place, kind, name) in [
            (volumes, "FileSystemCluster", "a-metadata"),
            (volumes, "Pod", "a-metadata-metadata-0"),
            (volumes, "Pod", "a-metadata-"),
            (volumes, "PersistentVolumeClaim", "data"),
            ("web", "Pod", "a-storage-1"),
            ("default", "PersistentVolume", "pvc-2"),
        ] {
            assert!(!is(place, kind, name, "r", ""), "{place} {kind} {name}");
        }
        assert!(is("web", "Pod", "app", "FailedMount", ""));
        assert!(!is("web", "Pod", "app", "BackOff", ""));
        assert!(is(
            "web",
            "Pod",
            "gone",
            "FailedMount",
            "MountVolume.MountDevice failed for volume \"pvc-1\""
        ));
        assert!(!is("web", "Pod", "gone", "FailedMount", "for volume \"pvc-12\""));
    }

    #[test]
    fn an_event_is_one_line_with_its_age() {
        let places = BTreeMap::from([(
            "atoll-volumes".to_owned(),
            (vec![event("FileSystemCluster", "a", "NodeNotReady", "one\ntwo")], Vec::new()),
        )]);
        let found = told(&cluster(), &places, 200);
        let cells = ["2m", "Warning", "NodeNotReady", "FileSystemCluster/a", "one two"];
        assert_eq!((found.len(), found[0].cells()), (1, cells.map(str::to_owned).to_vec()));
        assert_eq!(found[0].wide_cells(), ["1", "", "atoll-volumes/a"]);
    }
}
