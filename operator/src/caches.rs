//! What the API server tells unasked: one watch a kind, whose objects are kept, and whose changes wake the clusters
//! that they belong to. At rest a reconcile asks the API server nothing. An object that can't be read is named, and keeps no
//! other from being seen (`unreadable`).

use std::fmt::Debug;
use std::future::ready;

use atoll_crds::names::{DRIVER_NAME, VolumeHandle, labels};
use atoll_crds::v1alpha1::{FileSystemCluster, Reason};
use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    Container, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::events::{EventType, Recorder};
use kube::runtime::reflector::store::Store;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::call;
use crate::events::event;
use crate::unreadable::{Fault, Sieve, Sieved, Unreadable};
use crate::watches::Merged;

/// The label that every object of a cluster carries.
const OF_CLUSTERS: &str = labels::CLUSTER;

/// Objects of a kind that can't be read and whose Event waits to be written.
const UNREADABLE_TOLD_MAX: usize = 64;

/// A cluster that has to be looked at.
pub type Wake = ObjectRef<FileSystemCluster>;

/// Everything that is watched.
#[derive(Clone)]
pub struct Caches {
    /// The resources.
    pub clusters: Store<FileSystemCluster>,
    /// StatefulSets of clusters.
    pub statefulsets: Store<StatefulSet>,
    /// Services of clusters.
    pub services: Store<Service>,
    /// PodDisruptionBudgets of clusters.
    pub budgets: Store<PodDisruptionBudget>,
    /// PVCs of clusters.
    pub pvcs: Store<PersistentVolumeClaim>,
    /// Pods of clusters.
    pub pods: Store<Pod>,
    /// All PersistentVolumes: which name clusters, and on which nodes disks are.
    pub volumes: Store<PersistentVolume>,
    /// All nodes.
    pub nodes: Store<Node>,
    /// All StorageClasses.
    pub classes: Store<StorageClass>,
    /// What of all these can't be read.
    pub unreadable: Unreadable,
}

impl Caches {
    /// Starts the watches in `tasks`; clusters to be looked at go to `wakes`, Events to `recorder`. `namespaces`: those that are
    /// watched; none: all of them.
    pub fn start(
        client: &Client,
        namespaces: &[String],
        recorder: &Recorder,
        wakes: &mpsc::UnboundedSender<Wake>,
        tasks: &mut JoinSet<()>,
    ) -> Caches {
        let labelled = || Config::default().labels(OF_CLUSTERS);
        let unreadable = Unreadable::default();
        let mut watch = Watch { recorder, unreadable: &unreadable, wakes, tasks };
        let places = Places { client, namespaces };
        Caches {
            clusters: watch.kind(
                places.watched(),
                Config::default(),
                all,
                |cluster| Some(itself(cluster)),
                |it| Some(itself(it)),
            ),
            statefulsets: watch.kind(places.watched(), labelled(), all, owner_of, owner_of),
            services: watch.kind(places.watched(), labelled(), all, owner_of, owner_of),
            budgets: watch.kind(places.watched(), labelled(), all, owner_of, owner_of),
            pvcs: watch.kind(places.watched(), labelled(), all, owner_of, owner_of),
            pods: watch.kind(places.watched(), labelled(), of_pod, owner_of, owner_of),
            volumes: watch.kind(places.all(), Config::default(), all, cluster_of, |_| None),
            // What depends on these asks again by itself.
            nodes: watch.kind(places.all(), Config::default(), of_node, |_: &Node| None, |_| None),
            classes: watch.kind(places.all(), Config::default(), all, |_: &StorageClass| None, |_| None),
            unreadable,
        }
    }

    /// Waits until everything was seen once. `false`: a watch has ended.
    pub async fn ready(&self) -> bool {
        let waits = [
            self.clusters.wait_until_ready().await.is_ok(),
            self.statefulsets.wait_until_ready().await.is_ok(),
            self.services.wait_until_ready().await.is_ok(),
            self.budgets.wait_until_ready().await.is_ok(),
            self.pvcs.wait_until_ready().await.is_ok(),
            self.pods.wait_until_ready().await.is_ok(),
            self.volumes.wait_until_ready().await.is_ok(),
            self.nodes.wait_until_ready().await.is_ok(),
            self.classes.wait_until_ready().await.is_ok(),
        ];
        waits.into_iter().all(|ready| ready)
    }
}

/// Everything of an object is kept.
fn all<K>(_: &mut K) {}

/// Of a pod what decisions depend on: where it is, how it is, and what its containers run. The rest is in its template, and takes
/// more room than everything else that is watched.
fn of_pod(pod: &mut Pod) {
    let Some(spec) = pod.spec.take() else { return };
    let container = |container: Container| Container {
        name: container.name,
        image: container.image,
        resources: container.resources,
        ..Container::default()
    };
    pod.spec = Some(PodSpec {
        node_name: spec.node_name,
        containers: spec.containers.into_iter().map(container).collect(),
        ..PodSpec::default()
    });
}

/// Of a node no list of images and volumes, which grow with what runs on it.
fn of_node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        (status.images, status.volumes_attached, status.volumes_in_use) = (None, None, None);
    }
}

/// The cluster that a resource, readable or not, is.
fn itself<K: ResourceExt>(cluster: &K) -> Wake {
    ObjectRef::new(&cluster.name_any()).within(&cluster.namespace().unwrap_or_default())
}

/// The cluster that an object belongs to.
pub fn owner_of<K: ResourceExt>(object: &K) -> Option<Wake> {
    let name = object.labels().get(OF_CLUSTERS)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

/// The cluster that a PersistentVolume names, if it is one of ours.
pub fn cluster_of(volume: &PersistentVolume) -> Option<Wake> {
    let source = volume.spec.as_ref()?.csi.as_ref().filter(|source| source.driver == DRIVER_NAME)?;
    let handle: VolumeHandle = source.volume_handle.parse().ok()?;
    Some(ObjectRef::new(handle.name()).within(handle.namespace()))
}

/// Where objects are watched.
struct Places<'a> {
    client: &'a Client,
    namespaces: &'a [String],
}

impl Places<'_> {
    /// Everywhere.
    fn all<K: Resource<DynamicType = ()>>(&self) -> Vec<Api<DeserializeGuard<K>>> {
        vec![Api::all(self.client.clone())]
    }

    /// In the namespaces that are watched.
    fn watched<K>(&self) -> Vec<Api<DeserializeGuard<K>>>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        if self.namespaces.is_empty() {
            return self.all();
        }
        self.namespaces.iter().map(|namespace| Api::namespaced(self.client.clone(), namespace)).collect()
    }
}

struct Watch<'a> {
    recorder: &'a Recorder,
    unreadable: &'a Unreadable,
    wakes: &'a mpsc::UnboundedSender<Wake>,
    tasks: &'a mut JoinSet<()>,
}

impl Watch<'_> {
    /// `slim` takes out what nobody looks at; `of` says which cluster an object belongs to; `of_unreadable` says it of one that
    /// has nothing but metadata.
    fn kind<K>(
        &mut self,
        apis: Vec<Api<DeserializeGuard<K>>>,
        config: Config,
        slim: fn(&mut K),
        of: impl Fn(&K) -> Option<Wake> + Send + 'static,
        of_unreadable: fn(&DeserializeGuard<K>) -> Option<Wake>,
    ) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (store, writer) = reflector::store();
        let (wakes, known) = (self.wakes.clone(), store.clone());
        let mut sieve = Sieve::new(self.unreadable.clone());
        // What finds no room here is in the log all the same.
        let (news, told) = mpsc::channel(UNREADABLE_TOLD_MAX);
        self.tasks.spawn(tell(self.recorder.clone(), told));
        self.tasks.spawn(async move {
            // What others wrote last into an object is of no interest, and takes more room than the rest.
            let slim = move |object: &mut DeserializeGuard<K>| {
                object.meta_mut().managed_fields = None;
                if let Ok(object) = &mut object.0 {
                    slim(object);
                }
            };
            let mut merged = Merged::new(apis.len());
            let watches = apis.into_iter().enumerate().map(|(part, api)| {
                let seen = watcher(api, config.clone()).modify(slim).default_backoff();
                seen.map(move |event| (part, event)).boxed()
            });
            let seen = stream::select_all(watches).flat_map(move |(part, event)| {
                stream::iter(match event {
                    Ok(event) => merged.take(part, event).into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(error)],
                })
            });
            let woken = wakes.clone();
            let readable = seen.filter_map(move |event| {
                ready(match event {
                    Ok(event) => match sieve.sift(event, of_unreadable) {
                        Sieved::Event(event) => Some(Ok(event)),
                        Sieved::Unreadable { fault, is_news, changed } => {
                            wake(&woken, fault.cluster.clone());
                            let before = changed.then(|| known.get(&reference(&fault))).flatten();
                            if is_news {
                                tracing::error!(
                                    kind = fault.place.kind, namespace = fault.place.namespace,
                                    name = fault.place.name, error = fault.error,
                                    "an object can't be read by this version of the operator, and is left alone"
                                );
                                let _ = news.try_send(*fault);
                            }
                            before.map(|before| Ok(Event::Delete(K::clone(&before))))
                        }
                    },
                    Err(error) => Some(Err(error)),
                })
            });
            let mut events = std::pin::pin!(reflector::reflector(writer, readable));
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                        wake(&wakes, of(&object));
                    }
                    Ok(Event::Init | Event::InitDone) => {}
                    Err(error) => tracing::warn!(
                        kind = %K::kind(&()),
                        %error,
                        "a watch was interrupted; it starts again"
                    ),
                }
            }
        });
        store
    }
}

/// Writes Events of resources that can't be read, which have no conditions; what belongs to one that can is in its conditions.
async fn tell(recorder: Recorder, mut told: mpsc::Receiver<Fault>) {
    while let Some(fault) = told.recv().await {
        if fault.place.kind != FileSystemCluster::kind(&()) {
            continue;
        }
        let note = format!(
            "this version of the operator can't read the resource and leaves its cluster as it is ({}): correct it, or run \
             the version that wrote it",
            fault.error
        );
        let event = event(EventType::Warning, Reason::ObjectUnreadable.as_str(), note);
        let resource = reference::<FileSystemCluster>(&fault).into();
        if let Err(error) = call("write an Event", recorder.publish(&event, &resource)).await {
            tracing::warn!(%error, reason = event.reason, "an Event could not be written");
        }
    }
    std::future::pending().await
}

fn reference<K: Resource<DynamicType = ()>>(fault: &Fault) -> ObjectRef<K> {
    let reference = ObjectRef::new(&fault.place.name);
    match &fault.place.namespace {
        Some(namespace) => reference.within(namespace),
        None => reference,
    }
}

fn wake(wakes: &mpsc::UnboundedSender<Wake>, cluster: Option<Wake>) {
    if let Some(cluster) = cluster {
        // Nobody listens any more only while the process ends.
        let _ = wakes.send(cluster);
    }
}

#[cfg(test)]
mod tests {
    use atoll_crds::names::Component;
    use k8s_openapi::api::core::v1::PodTemplateSpec;

    use super::*;
    use crate::testing::{self, ID};

    #[test]
    fn of_a_pod_is_kept_what_decisions_depend_on() {
        let set =
            crate::build::statefulset::statefulset(&testing::wanted("1Gi"), Component::Storage, ID, None);
        let PodTemplateSpec { metadata, spec } = set.spec.expect("a spec").template;
        let mut pod = Pod { spec, metadata: metadata.expect("metadata"), ..testing::pod("db-storage-0") };
        pod.spec.as_mut().expect("a spec").node_name = Some("one".into());
        let whole = pod.clone();
        of_pod(&mut pod);
        assert_eq!((&pod.metadata, &pod.status), (&whole.metadata, &whole.status));
        let (kept, whole) = (pod.spec.expect("kept"), whole.spec.expect("a spec"));
        assert_eq!(kept.node_name, whole.node_name);
        let of = |spec: &PodSpec| (spec.containers[0].image.clone(), spec.containers[0].resources.clone());
        assert_eq!(of(&kept), of(&whole));
        assert!(kept.volumes.is_none() && kept.containers[0].env.is_none());
    }
}
