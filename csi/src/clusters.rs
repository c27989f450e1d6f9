//! Where volumes are: FileSystemClusters. The custom resource is the RPC; the driver keeps nothing itself.

mod kubernetes;
#[cfg(test)]
pub mod memory;

use std::time::Duration;

use atoll_crds::names::VolumeHandle;
use atoll_crds::v1alpha1::FileSystemCluster;

use crate::error::Pending;

pub use kubernetes::KubernetesClusters;

/// The store of FileSystemClusters in the namespace of volumes.
pub trait Clusters: Send + Sync + 'static {
    /// The namespace.
    fn namespace(&self) -> &str;

    /// One of them as it is now.
    fn get(&self, name: &str) -> impl Future<Output = Result<Option<FileSystemCluster>, Pending>> + Send;

    /// The one that a handle names, in whichever namespace: a volume that was made by hand is in another one.
    fn find(
        &self,
        handle: &VolumeHandle,
    ) -> impl Future<Output = Result<Option<FileSystemCluster>, Pending>> + Send;

    /// All that were made for claims, as they are now.
    fn list(&self) -> impl Future<Output = Result<Vec<FileSystemCluster>, Pending>> + Send;

    /// Makes one.
    fn create(
        &self,
        cluster: &FileSystemCluster,
    ) -> impl Future<Output = Result<FileSystemCluster, CreateError>> + Send;

    /// Has one ask for another size (bytes), as it was seen: one that has changed meanwhile is left as it is.
    fn resize(
        &self,
        cluster: &FileSystemCluster,
        bytes: u64,
    ) -> impl Future<Output = Result<(), ResizeError>> + Send;

    /// Writes the word without which data is kept: the cluster's id.
    fn confirm_deletion(&self, name: &str, id: &str) -> impl Future<Output = Result<(), Pending>> + Send;

    /// Deletes the one with this uid and no other. Success if it does not exist.
    fn delete(&self, name: &str, uid: &str) -> impl Future<Output = Result<(), Pending>> + Send;

    /// Waits until one may have changed, at most this long.
    fn changed(&self, name: &str, at_most: Duration) -> impl Future<Output = ()> + Send;
}

/// Why a cluster isn't made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// There is one of that name.
    Exists,
    /// The API server won't have it, and won't later. Nothing was made.
    Refused(String),
    /// Nobody knows whether it was made.
    Pending(Pending),
}

/// Why a cluster doesn't ask for another size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResizeError {
    /// The API server won't have it, and won't later.
    Refused(String),
    /// Nobody knows whether it does.
    Pending(Pending),
}
