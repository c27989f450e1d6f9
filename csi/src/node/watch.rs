//! Tells pods, by Events, that their volume's mount has ended or doesn't respond: nobody else would say so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_crds::names::VolumeHandle;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, PostParams};

use super::Node;
use crate::lost_mounts::{self, Device, Looks, Notice};
use crate::mounter;
use crate::target_path::Liveness;

/// How often the mounts are looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// What the Events say that they come from.
const COMPONENT: &str = "atoll-csi-node";

/// The watch over a node's mounts.
pub struct Watch {
    node: Arc<Node>,
    client: kube::Client,
    kubelet: PathBuf,
    looks: Looks,
}

impl Watch {
    /// Watches a node's mounts. `kubelet` is its directory.
    #[must_use]
    pub fn new(node: Arc<Node>, client: kube::Client, kubelet: PathBuf) -> Watch {
        Watch { node, client, kubelet, looks: Looks::default() }
    }

    /// Watches until the process ends.
    pub async fn run(mut self) {
        loop {
            if let Err(error) = self.look().await {
                tracing::warn!(error, "the node's mounts can't be checked; trying again");
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let table = mounter::table().map_err(|error| error.to_string())?;
        // Of those that are served nothing has to be asked.
        let served = self.node.finder.serving().await.unwrap_or_default();
        let mut answers = BTreeMap::new();
        let mut volumes = BTreeMap::new();
        for (device, mount) in lost_mounts::unserved(&table, &served) {
            // What is gone from the tree, or has something else wrong with it, pods see themselves.
            let liveness = mounter::liveness_of("watch", &mount.path).await.unwrap_or(Liveness::Alive);
            answers.insert(device, (liveness, lost_mounts::pods(&table, &self.kubelet, device)));
            volumes.extend(lost_mounts::volume(mount).map(|volume| (device, volume)));
        }
        let notices = self.looks.take(&answers);
        if notices.is_empty() {
            return Ok(());
        }
        let pods = self.pods().await;
        for notice in notices {
            let (device, kind, uid) = &notice;
            let told = match (&pods, volumes.get(device)) {
                (Ok(pods), Some(volume)) => match pods.get(uid) {
                    Some(pod) => {
                        self.tell(pod, *device, *kind, volume).await.map_err(|error| error.to_string())
                    }
                    // It is gone, or was never here.
                    None => Ok(()),
                },
                (Err(error), _) => Err(error.to_string()),
                (_, None) => Ok(()),
            };
            if let Err(error) = told {
                self.looks.untold(&notice);
                tracing::warn!(pod = notice.2, error, "a pod can't be told about its volume; trying again");
            }
        }
        Ok(())
    }

    /// The pods of this node, by uid.
    async fn pods(&self) -> Result<BTreeMap<String, Pod>, kube::Error> {
        let api: Api<Pod> = Api::all(self.client.clone());
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.node.name));
        let pods = api.list(&here).await?.items;
        Ok(pods.into_iter().filter_map(|pod| Some((pod.metadata.uid.clone()?, pod))).collect())
    }

    async fn tell(
        &self,
        pod: &Pod,
        device: Device,
        notice: Notice,
        volume: &VolumeHandle,
    ) -> Result<(), kube::Error> {
        let event = event(pod, &self.node.name, device, notice, volume);
        let api: Api<Event> =
            Api::namespaced(self.client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => tracing::warn!(
                pod = pod.metadata.name, namespace = pod.metadata.namespace, %volume,
                reason = notice.reason(), "told a pod about its volume"
            ),
            // Before this process was restarted.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The Event; its name is the same for the same mount, so that a pod is told once whichever process does it.
fn event(pod: &Pod, node: &str, device: Device, notice: Notice, volume: &VolumeHandle) -> Event {
    let now = Time(Timestamp::now());
    let meta = &pod.metadata;
    let (name, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
    let kind = notice.reason().to_lowercase();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{kind}.{}", event_id(&uid, device, volume))),
            namespace: meta.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(name),
            namespace: meta.namespace.clone(),
            uid: Some(uid),
            ..ObjectReference::default()
        },
        reason: Some(notice.reason().to_owned()),
        message: Some(notice.message(volume)),
        type_: Some("Warning".to_owned()),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..Event::default()
    }
}

fn event_id(uid: &str, device: Device, volume: &VolumeHandle) -> String {
    use std::hash::{Hash, Hasher};
    let mut hasher = siphasher::sip::SipHasher13::new();
    (uid, device, volume.to_string()).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_its_pod_and_says_what_to_do() {
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some("web-0".to_owned()),
                namespace: Some("shop".to_owned()),
                uid: Some("uid-1".to_owned()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        };
        let volume = "v1/atoll-volumes/pvc-1".parse().unwrap();
        let lost = event(&pod, "node-1", (0, 40), Notice::Lost, &volume);
        assert_eq!(lost.involved_object.uid.as_deref(), Some("uid-1"));
        assert_eq!(lost.metadata.namespace.as_deref(), Some("shop"));
        assert!(lost.message.as_ref().unwrap().contains("deleted and created again"));
        let again = event(&pod, "node-1", (0, 40), Notice::Lost, &volume);
        assert_eq!(again.metadata.name, lost.metadata.name, "it is told once");
        let other = event(&pod, "node-1", (0, 41), Notice::Lost, &volume);
        assert_ne!(other.metadata.name, lost.metadata.name, "but of each mount");
    }
}
