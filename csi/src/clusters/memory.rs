//! FileSystemClusters in memory, which become ready and go when the test says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_crds::Quantity;
use atoll_crds::names::VolumeHandle;
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster, FileSystemClusterStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

use super::{Clusters, CreateError, ResizeError};
use crate::error::Pending;

/// A cluster's name, and the word that was given for its data.
type Deletion = (String, Option<String>);

/// What happens to clusters by themselves.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// New ones get an id and are ready.
    pub ready: bool,
    /// What the Ready condition of those that aren't says.
    pub message: String,
    /// Its reason.
    pub reason: String,
    /// Deleted ones stay, terminating.
    pub stuck: bool,
    /// Every call fails.
    pub away: bool,
    /// New ones, and other sizes, are refused with this.
    pub refused: Option<String>,
    /// Sizes are what is asked for at once.
    pub grows: bool,
}

/// The store.
#[derive(Clone, Default)]
pub struct MemoryClusters {
    /// What happens by itself.
    pub behaviour: Arc<Mutex<Behaviour>>,
    /// What is there.
    pub clusters: Arc<Mutex<BTreeMap<String, FileSystemCluster>>>,
    /// What was made by hand in other namespaces, by handle.
    pub elsewhere: Arc<Mutex<BTreeMap<String, FileSystemCluster>>>,
    /// What was deleted, with its confirmation.
    pub deleted: Arc<Mutex<Vec<Deletion>>>,
}

impl MemoryClusters {
    /// A store in which all goes well.
    pub fn ready() -> MemoryClusters {
        let store = MemoryClusters::default();
        store.behaviour.lock().ready = true;
        store
    }

    fn here(&self) -> Result<(), Pending> {
        match self.behaviour.lock().away {
            true => Err(Pending::Unavailable("no API server".to_owned())),
            false => Ok(()),
        }
    }

    /// Sets a cluster's Ready condition.
    pub fn set_ready(&self, name: &str, ready: bool, message: &str) {
        if let Some(cluster) = self.clusters.lock().get_mut(name) {
            cluster.status = Some(status(ready, "Test", message));
        }
    }
}

fn status(ready: bool, reason: &str, message: &str) -> FileSystemClusterStatus {
    FileSystemClusterStatus {
        cluster_id: ready.then(|| "0123456789abcdef0123456789abcdef".to_owned()),
        conditions: vec![Condition {
            type_: ConditionType::Ready.as_str().to_owned(),
            status: if ready { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        }],
        ..FileSystemClusterStatus::default()
    }
}

impl Clusters for MemoryClusters {
    fn namespace(&self) -> &str {
        "atoll-volumes"
    }

    async fn get(&self, name: &str) -> Result<Option<FileSystemCluster>, Pending> {
        self.here()?;
        Ok(self.clusters.lock().get(name).cloned())
    }

    async fn find(&self, handle: &VolumeHandle) -> Result<Option<FileSystemCluster>, Pending> {
        if handle.namespace() == self.namespace() {
            return self.get(handle.name()).await;
        }
        self.here()?;
        Ok(self.elsewhere.lock().get(&handle.to_string()).cloned())
    }

    async fn list(&self) -> Result<Vec<FileSystemCluster>, Pending> {
        self.here()?;
        Ok(self.clusters.lock().values().cloned().collect())
    }

    async fn create(&self, cluster: &FileSystemCluster) -> Result<FileSystemCluster, CreateError> {
        self.here().map_err(CreateError::Pending)?;
        let behaviour = self.behaviour.lock().clone();
        if let Some(refused) = behaviour.refused {
            return Err(CreateError::Refused(refused));
        }
        let mut clusters = self.clusters.lock();
        if clusters.contains_key(cluster.name_str()) {
            return Err(CreateError::Exists);
        }
        let mut made = cluster.clone();
        made.metadata.uid = Some(format!("uid-{}", cluster.name_str()));
        made.status = Some(status(behaviour.ready, &behaviour.reason, &behaviour.message));
        clusters.insert(cluster.name_str().to_owned(), made.clone());
        Ok(made)
    }

    async fn resize(&self, cluster: &FileSystemCluster, bytes: u64) -> Result<(), ResizeError> {
        self.here().map_err(ResizeError::Pending)?;
        let behaviour = self.behaviour.lock().clone();
        if let Some(refused) = behaviour.refused {
            return Err(ResizeError::Refused(refused));
        }
        if let Some(found) = self.clusters.lock().get_mut(cluster.name_str()) {
            found.spec.capacity = Quantity::from_bytes(bytes);
            if behaviour.grows {
                found.status.get_or_insert_default().capacity = Some(Quantity::from_bytes(bytes));
            }
        }
        Ok(())
    }

    async fn confirm_deletion(&self, name: &str, id: &str) -> Result<(), Pending> {
        self.here()?;
        if let Some(cluster) = self.clusters.lock().get_mut(name) {
            cluster.spec.deletion_confirmation = Some(id.to_owned());
        }
        Ok(())
    }

    async fn delete(&self, name: &str, uid: &str) -> Result<(), Pending> {
        self.here()?;
        let stuck = self.behaviour.lock().stuck;
        let mut clusters = self.clusters.lock();
        let Some(cluster) =
            clusters.get_mut(name).filter(|cluster| cluster.metadata.uid.as_deref() == Some(uid))
        else {
            return Ok(());
        };
        if stuck {
            cluster.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        } else {
            let confirmation = cluster.spec.deletion_confirmation.clone();
            clusters.remove(name);
            self.deleted.lock().push((name.to_owned(), confirmation));
        }
        Ok(())
    }

    async fn changed(&self, _name: &str, at_most: Duration) {
        tokio::time::sleep(at_most.min(Duration::from_millis(1))).await;
    }
}
