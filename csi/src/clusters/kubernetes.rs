//! FileSystemClusters on the API server.

use std::time::Duration;

use atoll_crds::Quantity;
use atoll_crds::names::{MANAGER_CSI, VolumeHandle, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::{Client, Error};
use serde_json::json;

use super::{Clusters, CreateError, ResizeError};
use crate::error::Pending;

/// How often a cluster that is waited for is looked at.
const POLL: Duration = Duration::from_millis(500);
/// Clusters that the API server is asked for at a time.
const LIST_PAGE: u32 = 500;
/// How often a list begins again whose pages the API server no longer has.
const LIST_ATTEMPTS: u32 = 3;

/// The FileSystemClusters of one namespace.
#[derive(Clone)]
pub struct KubernetesClusters {
    client: Client,
    api: Api<FileSystemCluster>,
    namespace: String,
}

impl KubernetesClusters {
    /// Those of a namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> KubernetesClusters {
        let api = Api::namespaced(client.clone(), namespace);
        KubernetesClusters { client, api, namespace: namespace.to_owned() }
    }

    async fn list_pages(&self) -> Result<Vec<FileSystemCluster>, Error> {
        let made = format!("{}={}", labels::MANAGED_BY, labels::MANAGED_BY_CSI);
        let mut parameters = ListParams::default().labels(&made).limit(LIST_PAGE);
        let mut found = Vec::new();
        loop {
            let page = self.api.list(&parameters).await?;
            found.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => return Ok(found),
            }
        }
    }
}

impl Clusters for KubernetesClusters {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    async fn get(&self, name: &str) -> Result<Option<FileSystemCluster>, Pending> {
        self.api.get_opt(name).await.map_err(|error| unavailable("reading", name, &error))
    }

    async fn find(&self, handle: &VolumeHandle) -> Result<Option<FileSystemCluster>, Pending> {
        let api: Api<FileSystemCluster> = Api::namespaced(self.client.clone(), handle.namespace());
        api.get_opt(handle.name()).await.map_err(|error| unavailable("reading", &handle.to_string(), &error))
    }

    async fn list(&self) -> Result<Vec<FileSystemCluster>, Pending> {
        let mut attempts = 1;
        loop {
            match self.list_pages().await {
                // The state that the pages are of has expired.
                Err(Error::Api(status)) if status.code == 410 && attempts < LIST_ATTEMPTS => attempts += 1,
                Err(error) => {
                    return Err(Pending::Unavailable(format!("listing FileSystemClusters: {error}")));
                }
                Ok(found) => return Ok(found),
            }
        }
    }

    async fn create(&self, cluster: &FileSystemCluster) -> Result<FileSystemCluster, CreateError> {
        let parameters = PostParams { field_manager: Some(MANAGER_CSI.to_owned()), ..PostParams::default() };
        self.api.create(&parameters, cluster).await.map_err(|error| match &error {
            Error::Api(status) if status.code == 409 => CreateError::Exists,
            Error::Api(status) if is_refused(status.code, &status.message) => {
                CreateError::Refused(status.message.clone())
            }
            _ => CreateError::Pending(unavailable("making", cluster.name_str(), &error)),
        })
    }

    async fn resize(&self, cluster: &FileSystemCluster, bytes: u64) -> Result<(), ResizeError> {
        let name = cluster.name_str();
        let patch = json!({
            "metadata": { "uid": cluster.metadata.uid, "resourceVersion": cluster.metadata.resource_version },
            "spec": { "capacity": Quantity::from_bytes(bytes) },
        });
        let parameters =
            PatchParams { field_manager: Some(MANAGER_CSI.to_owned()), ..PatchParams::default() };
        match self.api.patch(name, &parameters, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            // It has changed: the next look shows how.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(Error::Api(status)) if is_refused(status.code, &status.message) => {
                Err(ResizeError::Refused(status.message))
            }
            Err(error) => Err(ResizeError::Pending(unavailable("resizing", name, &error))),
        }
    }

    async fn confirm_deletion(&self, name: &str, id: &str) -> Result<(), Pending> {
        let patch = json!({ "spec": { "deletionConfirmation": id } });
        let parameters =
            PatchParams { field_manager: Some(MANAGER_CSI.to_owned()), ..PatchParams::default() };
        match self.api.patch(name, &parameters, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(unavailable("confirming the deletion of", name, &error)),
        }
    }

    async fn delete(&self, name: &str, uid: &str) -> Result<(), Pending> {
        let parameters = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match self.api.delete(name, &parameters).await {
            Ok(_) => Ok(()),
            // Gone, or another one of that name: the next look shows which.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(unavailable("deleting", name, &error)),
        }
    }

    async fn changed(&self, _name: &str, at_most: Duration) {
        tokio::time::sleep(POLL.min(at_most)).await;
    }
}

fn unavailable(doing: &str, name: &str, error: &Error) -> Pending {
    Pending::Unavailable(format!("{doing} FileSystemCluster {name}: {error}"))
}

/// Whether what was asked for is refused by a rule of the schema, or of somebody's admission policy or quota: asking again is of no
/// use. A right that we lack is one that an administrator may be about to give us: the authorizer's words
/// (`k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go`) tell it from what admission refuses with the same code.
fn is_refused(code: u16, message: &str) -> bool {
    match code {
        400 | 422 => true,
        403 => !(message.contains("User \"") && message.contains("\" cannot ")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_refused;

    #[test]
    fn a_right_that_is_missing_is_no_refusal() {
        let of = |what: &str| format!("filesystemclusters.atoll.dev \"pvc-1\" is forbidden: {what}");
        let right = "User \"system:serviceaccount:atoll-system:atoll-csi\" cannot patch resource \
                     \"filesystemclusters\" in API group \"atoll.dev\" in the namespace \"atoll-volumes\"";
        assert!(!is_refused(403, &of(right)));
        assert!(is_refused(
            403,
            &of("exceeded quota: volumes, requested: count/filesystemclusters.atoll.dev=1")
        ));
        assert!(is_refused(403, "admission webhook \"policy.example.com\" denied the request: too large"));
        assert!(is_refused(422, "FileSystemCluster.atoll.dev \"pvc-1\" is invalid: spec.capacity"));
        assert!(!is_refused(500, "etcd is away") && !is_refused(409, "changed"));
    }
}
