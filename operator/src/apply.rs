//! Does: carries a plan out, one action after the other. It decides nothing.

use std::fmt::Debug;

use atoll_crds::names::{self, annotations, labels};
use atoll_crds::v1alpha1::{FileSystemCluster, FileSystemClusterStatus};
use atoll_proto::ClusterKey;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::build;
use crate::context::Context;
use crate::error::Error;
use crate::gather;
use crate::metadata;
use crate::observe::{Observed, label};
use crate::plan::{Action, Kind, Owned};
use crate::validate::Wanted;

/// What carrying out a plan has changed about the resource itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// It has a new version: what was seen of it is out of date.
    pub resource: bool,
    /// Something was changed.
    pub anything: bool,
}

/// Carries out the actions in order.
///
/// # Errors
/// The first failure; what comes after it wasn't tried.
pub async fn carry_out(
    context: &Context,
    seen: &Observed,
    wanted: Option<&Wanted>,
    actions: &[Action],
) -> Result<Changed, Error> {
    let mut changed = Changed::default();
    for action in actions {
        let doing =
            Doing { context, seen, namespace: seen.cluster.namespace_str(), name: seen.cluster.name_str() };
        doing.act(wanted, action).await?;
        context.metrics.acted(action);
        changed.anything = true;
        changed.resource |= matches!(
            action,
            Action::AddFinalizer
                | Action::RemoveFinalizer
                | Action::WithdrawConfirmation
                | Action::SetClusterId { .. }
        );
        tracing::info!(
            namespace = doing.namespace, cluster = doing.name, action = %brief(action),
            "changed the cluster's objects"
        );
    }
    Ok(changed)
}

/// An action for the log: no object's whole content.
fn brief(action: &Action) -> String {
    match action {
        Action::Apply(object) => format!("apply {}", object.brief()),
        Action::MarkDisk { pvc, .. } => format!("mark the PVC {pvc}"),
        other => format!("{other:?}"),
    }
}

impl Owned {
    fn brief(&self) -> String {
        let (kind, meta) = match self {
            Owned::Service(found) => ("Service", &found.metadata),
            Owned::StatefulSet(found) => ("StatefulSet", &found.metadata),
            Owned::Budget(found) => ("PodDisruptionBudget", &found.metadata),
        };
        format!("{kind} {}", meta.name.as_deref().unwrap_or_default())
    }
}

struct Doing<'a> {
    context: &'a Context,
    seen: &'a Observed,
    namespace: &'a str,
    name: &'a str,
}

impl Doing<'_> {
    async fn act(&self, wanted: Option<&Wanted>, action: &Action) -> Result<(), Error> {
        match action {
            Action::AddFinalizer => {
                let mut finalizers = self.seen.cluster.finalizers().to_vec();
                finalizers.push(names::FINALIZER.to_owned());
                self.patch_cluster(json!({ "finalizers": finalizers })).await
            }
            Action::RemoveFinalizer => {
                let mut finalizers = self.seen.cluster.finalizers().to_vec();
                finalizers.retain(|found| found != names::FINALIZER);
                self.patch_cluster(json!({ "finalizers": finalizers })).await
            }
            Action::WithdrawConfirmation => self.withdraw_confirmation().await,
            Action::SetClusterId { id, adopted } => self.set_cluster_id(&id.to_string(), *adopted).await,
            Action::CreateSecret(id) => {
                let Some(wanted) = wanted else { return Ok(()) };
                let secret = build::secret::secret(wanted, *id, &ClusterKey::random());
                // Made, never replaced: one that is there by now is looked at the next time.
                self.api::<Secret>()
                    .create(&by_operator(), &secret)
                    .await
                    .map(|_| ())
                    .map_err(Error::api(format!("create the Secret {}", wanted.secret)))
            }
            Action::Apply(Owned::Service(object)) => {
                self.apply(&**object, self.seen.services.values().any(|found| same(found, &**object))).await
            }
            Action::Apply(Owned::StatefulSet(object)) => {
                self.apply(&**object, self.seen.statefulsets.values().any(|found| same(found, &**object)))
                    .await
            }
            Action::Apply(Owned::Budget(object)) => {
                self.apply(&**object, self.seen.budgets.values().any(|found| same(found, &**object))).await
            }
            Action::Bootstrap(_) => {
                let (Some(wanted), Some(access)) = (wanted, gather::access(self.seen)) else { return Ok(()) };
                let addresses = gather::metadata_addresses(self.seen);
                let Some(first) = addresses.get(&0) else { return Ok(()) };
                metadata::bootstrap(&access, first, &wanted.volume).await
            }
            Action::ChangeMembers(change) => {
                let Some(access) = gather::access(self.seen) else { return Ok(()) };
                let addresses: Vec<String> = gather::metadata_addresses(self.seen).into_values().collect();
                metadata::change_members(&access, &addresses, change).await
            }
            Action::LabelMember { pvc, member } => {
                let labels = json!({ "labels": { labels::MEMBER_ID: member.to_string() } });
                self.patch_meta::<PersistentVolumeClaim>(pvc, labels).await
            }
            Action::MarkDisk { pvc, record } => {
                let marks = json!({
                    "labels": { labels::BOOTSTRAPPED: "true" },
                    "annotations": { annotations::VOLUME: record },
                });
                self.patch_meta::<PersistentVolumeClaim>(pvc, marks).await
            }
            Action::MarkKey(name) => {
                // Nothing of it ever changes, and what was immutable once stays so.
                let patch = Patch::Merge(json!({
                    "metadata": { "labels": { labels::BOOTSTRAPPED: "true" } },
                    "immutable": true,
                }));
                self.api::<Secret>()
                    .patch(name, &PatchParams::default(), &patch)
                    .await
                    .map(|_| ())
                    .map_err(Error::api(format!("change the Secret {name}")))
            }
            Action::RestartPod { name, uid } => self.restart(name, uid).await,
            Action::ResizeDisk { pvc, size } => self.resize_disk(pvc, size.as_str()).await,
            Action::Recreate(name) => {
                let found = self.seen.statefulsets.values().find(|found| found.name_any() == *name);
                let uid = found.and_then(ResourceExt::uid);
                let params = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Orphan),
                    ..DeleteParams::default()
                };
                self.delete_this::<StatefulSet>(name, uid, params).await
            }
            Action::ResizeVolume(size) => {
                let Some(access) = gather::access(self.seen) else { return Ok(()) };
                let addresses: Vec<String> = gather::metadata_addresses(self.seen).into_values().collect();
                metadata::resize(&access, &addresses, *size).await
            }
            Action::DiscardClaim(name) => self.discard_claim(name).await,
            Action::Delete(kind, name) => self.delete(*kind, name).await,
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.context.client.clone(), self.namespace)
    }

    /// Changes the resource as it was seen, or fails as stale.
    async fn patch_cluster(&self, mut metadata: Value) -> Result<(), Error> {
        metadata["resourceVersion"] = json!(self.seen.cluster.resource_version());
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        self.api::<FileSystemCluster>()
            .patch(self.name, &PatchParams::default(), &patch)
            .await
            .map(|_| ())
            .map_err(Error::api("change the resource's finalizers"))
    }

    async fn withdraw_confirmation(&self) -> Result<(), Error> {
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": self.seen.cluster.resource_version() },
            "spec": { "deletionConfirmation": null },
        }));
        self.api::<FileSystemCluster>()
            .patch(self.name, &PatchParams::default(), &patch)
            .await
            .map(|_| ())
            .map_err(Error::api("withdraw the confirmation of a deletion"))
    }

    async fn set_cluster_id(&self, id: &str, adopted: bool) -> Result<(), Error> {
        // Two operators can't choose two ids: the second one's version is out of date.
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": self.seen.cluster.resource_version() },
            "status": { "clusterId": id, "adopted": adopted },
        }));
        self.api::<FileSystemCluster>()
            .patch_status(self.name, &PatchParams::default(), &patch)
            .await
            .map(|_| ())
            .map_err(Error::api("write the cluster's id into the status"))
    }

    async fn apply<K>(&self, object: &K, exists: bool) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        // Only what was seen to be ours is changed against others' will.
        let params = PatchParams::apply(names::MANAGER_OPERATOR);
        let params = if exists { params.force() } else { params };
        let name = object.name_any();
        self.api::<K>()
            .patch(&name, &params, &Patch::Apply(object))
            .await
            .map(|_| ())
            .map_err(Error::api(format!("apply the {} {name}", K::kind(&()))))
    }

    async fn patch_meta<K>(&self, name: &str, metadata: Value) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        self.api::<K>()
            .patch(name, &PatchParams::default(), &patch)
            .await
            .map(|_| ())
            .map_err(Error::api(format!("change the {} {name}", K::kind(&()))))
    }

    async fn resize_disk(&self, name: &str, size: &str) -> Result<(), Error> {
        let patch = Patch::Merge(json!({ "spec": { "resources": { "requests": { "storage": size } } } }));
        self.api::<PersistentVolumeClaim>()
            .patch(name, &PatchParams::default(), &patch)
            .await
            .map(|_| ())
            .map_err(Error::api(format!("expand the PersistentVolumeClaim {name} to {size}")))
    }

    /// One that was bound since it was seen stays.
    async fn discard_claim(&self, name: &str) -> Result<(), Error> {
        let Some(seen) = self.seen.pvcs.get(name) else { return Ok(()) };
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: seen.uid(), resource_version: seen.resource_version() });
        match self.api::<PersistentVolumeClaim>().delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(Error::api(format!("delete the PersistentVolumeClaim {name}"))(error)),
        }
    }

    async fn restart(&self, name: &str, uid: &str) -> Result<(), Error> {
        let Some(now) = gather::pod_now(self.context, self.namespace, name).await? else { return Ok(()) };
        if now.uid().as_deref() != Some(uid) || now.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        self.delete_this::<Pod>(name, Some(uid.to_owned()), DeleteParams::default()).await
    }

    async fn delete(&self, kind: Kind, name: &str) -> Result<(), Error> {
        match kind {
            Kind::StatefulSet => {
                let found = self.seen.statefulsets.values().find(|found| found.name_any() == name);
                let uid = found.and_then(ResourceExt::uid);
                self.delete_this::<StatefulSet>(name, uid, DeleteParams::background()).await
            }
            Kind::Service => {
                let found = self.seen.services.values().find(|found| found.name_any() == name);
                let uid = found.and_then(ResourceExt::uid);
                self.delete_this::<Service>(name, uid, DeleteParams::default()).await
            }
            Kind::Budget => {
                let found = self.seen.budgets.values().find(|found| found.name_any() == name);
                let uid = found.and_then(ResourceExt::uid);
                self.delete_this::<PodDisruptionBudget>(name, uid, DeleteParams::default()).await
            }
            Kind::Pod => {
                let uid = self.seen.pods.get(name).and_then(ResourceExt::uid);
                self.delete_this::<Pod>(name, uid, DeleteParams::default()).await
            }
            Kind::PersistentVolumeClaim => {
                self.still_deleting().await?;
                let uid = self.seen.pvcs.get(name).and_then(ResourceExt::uid);
                self.delete_this::<PersistentVolumeClaim>(name, uid, DeleteParams::default()).await
            }
            Kind::Secret => {
                self.still_deleting().await?;
                let found = gather::secret_now(self.context, self.namespace, name).await?;
                let ours = found.filter(|found| {
                    label(&found.metadata, labels::CLUSTER_ID) == self.seen.cluster.cluster_id()
                });
                let Some(found) = ours else { return Ok(()) };
                self.delete_this::<Secret>(name, found.uid(), DeleteParams::default()).await
            }
        }
    }

    /// Data is about to die: the word is asked for once more, of the API server itself.
    async fn still_deleting(&self) -> Result<(), Error> {
        let doing = "read the resource again before its data is deleted";
        let now = self.api::<FileSystemCluster>().get(self.name).await.map_err(Error::api(doing))?;
        let same = now.uid() == self.seen.cluster.uid()
            && now.metadata.deletion_timestamp.is_some()
            && now.spec.deletion_confirmation == self.seen.cluster.spec.deletion_confirmation
            && now.cluster_id() == self.seen.cluster.cluster_id();
        if same {
            return Ok(());
        }
        let status = kube::core::Status {
            code: 409,
            message: "the resource has changed meanwhile".to_owned(),
            ..Default::default()
        };
        Err(Error::api(doing)(kube::Error::Api(Box::new(status))))
    }

    /// Deletes this very object and none that has taken its name.
    async fn delete_this<K>(&self, name: &str, uid: Option<String>, params: DeleteParams) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let params = params.preconditions(Preconditions { uid, resource_version: None });
        match self.api::<K>().delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(Error::api(format!("delete the {} {name}", K::kind(&())))(error)),
        }
    }
}

fn by_operator() -> PostParams {
    PostParams { field_manager: Some(names::MANAGER_OPERATOR.to_owned()), ..PostParams::default() }
}

fn same<K: ResourceExt>(one: &K, other: &K) -> bool {
    one.name_any() == other.name_any()
}

/// Writes the status of the resource as it was seen, or fails as stale.
///
/// # Errors
/// If the API server refuses.
pub async fn write_status(
    context: &Context,
    cluster: &FileSystemCluster,
    status: FileSystemClusterStatus,
) -> Result<(), Error> {
    let api: Api<FileSystemCluster> = Api::namespaced(context.client.clone(), cluster.namespace_str());
    let changed = FileSystemCluster { status: Some(status), ..cluster.clone() };
    api.replace_status(cluster.name_str(), &by_operator(), &changed)
        .await
        .map(|_| ())
        .map_err(Error::api("write the status"))
}
