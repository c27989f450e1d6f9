//! What the API server tells unasked: one watch a kind, whose objects are kept, and whose changes wake the clusters
//! that they belong to. At rest a reconcile asks the API server nothing.

use std::fmt::Debug;
use std::hash::Hash;

use atoll_crds::names::{DRIVER_NAME, VolumeHandle, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::reflector::store::Store;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{self, Config};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The label that every object of a cluster carries.
const OF_CLUSTERS: &str = labels::CLUSTER;

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
    /// All PersistentVolumes; of those that aren't ours nothing but the metadata.
    pub volumes: Store<PersistentVolume>,
    /// All nodes.
    pub nodes: Store<Node>,
    /// All StorageClasses.
    pub classes: Store<StorageClass>,
}

impl Caches {
    /// Starts the watches in `tasks`; clusters to be looked at go to `wakes`.
    pub fn start(client: &Client, wakes: &mpsc::UnboundedSender<Wake>, tasks: &mut JoinSet<()>) -> Caches {
        let labelled = || Config::default().labels(OF_CLUSTERS);
        let mut watch = Watch { client, wakes, tasks };
        Caches {
            clusters: watch
                .kind(Config::default(), |cluster: &FileSystemCluster| Some(ObjectRef::from_obj(cluster))),
            statefulsets: watch.kind(labelled(), owner_of),
            services: watch.kind(labelled(), owner_of),
            budgets: watch.kind(labelled(), owner_of),
            pvcs: watch.kind(labelled(), owner_of),
            pods: watch.kind(labelled(), owner_of),
            volumes: watch.kind(Config::default(), cluster_of),
            // What depends on these asks again by itself.
            nodes: watch.kind(Config::default(), |_: &Node| None),
            classes: watch.kind(Config::default(), |_: &StorageClass| None),
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

/// The cluster that an object belongs to.
fn owner_of<K: ResourceExt>(object: &K) -> Option<Wake> {
    let name = object.labels().get(OF_CLUSTERS)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

/// The cluster that a PersistentVolume names, if it is one of ours.
pub fn cluster_of(volume: &PersistentVolume) -> Option<Wake> {
    let source = volume.spec.as_ref()?.csi.as_ref().filter(|source| source.driver == DRIVER_NAME)?;
    let handle: VolumeHandle = source.volume_handle.parse().ok()?;
    Some(ObjectRef::new(handle.name()).within(handle.namespace()))
}

struct Watch<'a> {
    client: &'a Client,
    wakes: &'a mpsc::UnboundedSender<Wake>,
    tasks: &'a mut JoinSet<()>,
}

impl Watch<'_> {
    fn kind<K>(&mut self, config: Config, of: impl Fn(&K) -> Option<Wake> + Send + 'static) -> Store<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
    {
        let (store, writer) = reflector::store();
        let api: Api<K> = Api::all(self.client.clone());
        let wakes = self.wakes.clone();
        self.tasks.spawn(async move {
            // What others wrote last into an object is of no interest, and takes more room than the rest.
            let slim = watch::watcher(api, config)
                .modify(|object: &mut K| object.meta_mut().managed_fields = None)
                .default_backoff();
            let mut events = std::pin::pin!(reflector::reflector(writer, slim));
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                        wake(&wakes, of(&object));
                    }
                    Ok(watcher::Event::Delete(object)) => wake(&wakes, of(&object)),
                    Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                    Err(error) => tracing::warn!(
                        kind = %K::kind(&K::DynamicType::default()),
                        %error,
                        "a watch was interrupted; it starts again"
                    ),
                }
            }
        });
        store
    }
}

fn wake(wakes: &mpsc::UnboundedSender<Wake>, cluster: Option<Wake>) {
    if let Some(cluster) = cluster {
        // Nobody listens any more only while the process ends.
        let _ = wakes.send(cluster);
    }
}
