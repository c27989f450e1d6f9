//! Does: carries a plan out, one action after the other. It decides nothing.

use std::fmt::Debug;
use std::time::Instant;

use atoll_crds::names::{self, annotations, labels};
use atoll_crds::v1alpha1::{FileSystemCluster, FileSystemClusterStatus};
use atoll_proto::ClusterKey;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::build::{self, compare};
use crate::context::Context;
use crate::error::{Error, call, change};
use crate::gather;
use crate::metadata;
use crate::observe::{Observed, label};
use crate::plan::{Action, Kind, Owned};
use crate::validate::Wanted;

/// What carrying out a plan has changed about the resource itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// It has a new version: what was seen of it is out of date.
    pub resource: bool,
    /// Something was changed.
    pub anything: bool,
    /// What an admission webhook has made something else of, each with the first field.
    pub contested: Vec<String>,
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
        if !context.leadership.holds() {
            return Err(Error::NotLeading);
        }
        // The cluster's own servers may take their time, in which others are worked on.
        let turn = if action.is_of_servers() { None } else { context.turn().await };
        let contested = doing.act(wanted, action).await?;
        drop(turn);
        changed.contested.extend(contested);
        context.metrics.acted(action);
        changed.anything = true;
        changed.resource |= matches!(
            action,
            Action::AddFinalizer
                | Action::RemoveFinalizer
                | Action::WithdrawConfirmation
                | Action::SetClusterId { .. }
                | Action::PinVersion(_)
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

impl Action {
    /// It is the cluster's own servers that do it.
    fn is_of_servers(&self) -> bool {
        matches!(
            self,
            Action::Bootstrap(_)
                | Action::ChangeMembers(_)
                | Action::ChangeServer(_)
                | Action::ResizeVolume(_)
                | Action::TransferLeader(_)
                | Action::RaiseFeatureLevel(_)
        )
    }
}

struct Doing<'a> {
    context: &'a Context,
    seen: &'a Observed,
    namespace: &'a str,
    name: &'a str,
}

impl Doing<'_> {
    /// Carries out one action. The answer is what a webhook has made of it, if that is news.
    async fn act(&self, wanted: Option<&Wanted>, action: &Action) -> Result<Option<String>, Error> {
        let Action::Apply(object) = action else {
            return self.act_alone(wanted, action).await.map(|()| None);
        };
        let (seen, name) = (self.seen, object.brief());
        match object {
            Owned::Service(wanted) => self.apply(&**wanted, &name, seen.services.values()).await,
            Owned::StatefulSet(wanted) => self.apply(&**wanted, &name, seen.statefulsets.values()).await,
            Owned::Budget(wanted) => self.apply(&**wanted, &name, seen.budgets.values()).await,
        }
    }

    async fn act_alone(&self, wanted: Option<&Wanted>, action: &Action) -> Result<(), Error> {
        match action {
            Action::Apply(_) => Ok(()),
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
            Action::SetClusterId { id, adopted } => {
                // A new volume's pods run what they were told first, also if a newer operator takes over meanwhile.
                let version = wanted.map(|wanted| wanted.version.as_str());
                let status =
                    json!({ "clusterId": id.to_string(), "adopted": adopted, "targetVersion": version });
                self.patch_status("write the cluster's id into the status", status).await
            }
            Action::PinVersion(version) => {
                let status = json!({ "targetVersion": version });
                self.patch_status("write the version that the pods are to run into the status", status).await
            }
            Action::CreateSecret(id) => {
                let Some(wanted) = wanted else { return Ok(()) };
                let secret = build::secret::secret(wanted, *id, &ClusterKey::random());
                // Made, never replaced: one that is there by now is looked at the next time.
                let doing = format!("create the Secret {}", wanted.secret);
                change(doing, self.api::<Secret>().create(&by_operator(), &secret)).await.map(|_| ())
            }
            Action::RestoreSecret(id) => {
                let known =
                    self.seen.secret_before.as_ref().and_then(|found| build::secret::read(found).ok());
                let (Some(wanted), Some(known)) = (wanted, known) else { return Ok(()) };
                let secret = build::secret::secret(wanted, *id, &known.key);
                let doing = format!("create the Secret {} again", wanted.secret);
                change(doing, self.api::<Secret>().create(&by_operator(), &secret)).await.map(|_| ())
            }
            Action::Bootstrap(_) => {
                let (Some(wanted), Some(access)) = (wanted, gather::access(self.seen)) else { return Ok(()) };
                let addresses = gather::metadata_addresses(self.seen);
                let Some(first) = addresses.get(&0) else { return Ok(()) };
                metadata::bootstrap(&*self.context.servers, &access, first, &wanted.volume).await
            }
            Action::ChangeMembers(change) => {
                let Some(access) = gather::access(self.seen) else { return Ok(()) };
                let addresses: Vec<String> = gather::metadata_addresses(self.seen).into_values().collect();
                let led = self.led().await;
                let servers = &*self.context.servers;
                metadata::change_members(servers, &access, &addresses, led.as_deref(), change).await
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
                let params = PatchParams::default();
                let secrets = self.api::<Secret>();
                let patching = secrets.patch(name, &params, &patch);
                change(format!("change the Secret {name}"), patching).await.map(|_| ())
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
                let led = self.led().await;
                metadata::resize(&*self.context.servers, &access, &addresses, led.as_deref(), *size).await
            }
            Action::DiscardClaim(name) | Action::DiscardDisk { pvc: name, .. } => {
                self.discard_claim(name).await
            }
            Action::EvictPod { name, uid, forced } => {
                let params =
                    if *forced { DeleteParams::default().grace_period(0) } else { DeleteParams::default() };
                self.delete_this::<Pod>(name, Some(uid.clone()), params).await
            }
            Action::MarkRemoved { pvc, member } => {
                let mark = json!({ "annotations": { annotations::REMOVED_MEMBER: member.map(|member| member.to_string()) } });
                self.patch_meta::<PersistentVolumeClaim>(pvc, mark).await
            }
            Action::ChangeServer(change) => {
                let Some(access) = gather::access(self.seen) else { return Ok(()) };
                let addresses: Vec<String> = gather::metadata_addresses(self.seen).into_values().collect();
                let led = self.led().await;
                let servers = &*self.context.servers;
                metadata::change_server(servers, &access, &addresses, led.as_deref(), *change).await
            }
            Action::TransferLeader(request) => {
                let Some(access) = gather::access(self.seen) else { return Ok(()) };
                let addresses: Vec<String> = gather::metadata_addresses(self.seen).into_values().collect();
                let led = self.led().await;
                metadata::transfer_leader(
                    &*self.context.servers,
                    &access,
                    &addresses,
                    led.as_deref(),
                    *request,
                )
                .await
            }
            Action::RaiseFeatureLevel(request) => {
                let Some(access) = gather::access(self.seen) else { return Ok(()) };
                let addresses: Vec<String> = gather::metadata_addresses(self.seen).into_values().collect();
                let led = self.led().await;
                metadata::raise_level(&*self.context.servers, &access, &addresses, led.as_deref(), *request)
                    .await
            }
            Action::Delete(kind, name) => self.delete(*kind, name).await,
        }
    }

    /// The metadata server that led the last time.
    async fn led(&self) -> Option<String> {
        let key = ObjectRef::from_obj(&*self.seen.cluster);
        self.context.memory.lock().await.get(&key).and_then(|memory| memory.led.clone())
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
        let (clusters, params) = (self.api::<FileSystemCluster>(), PatchParams::default());
        let patching = clusters.patch(self.name, &params, &patch);
        change("change the resource's finalizers", patching).await.map(|_| ())
    }

    async fn withdraw_confirmation(&self) -> Result<(), Error> {
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": self.seen.cluster.resource_version() },
            "spec": { "deletionConfirmation": null },
        }));
        let (clusters, params) = (self.api::<FileSystemCluster>(), PatchParams::default());
        let patching = clusters.patch(self.name, &params, &patch);
        change("withdraw the confirmation of a deletion", patching).await.map(|_| ())
    }

    async fn patch_status(&self, doing: &'static str, status: Value) -> Result<(), Error> {
        // Two operators can't choose two ids: the second one's version is out of date.
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": self.seen.cluster.resource_version() },
            "status": status,
        }));
        let (clusters, params) = (self.api::<FileSystemCluster>(), PatchParams::default());
        let patching = clusters.patch_status(self.name, &params, &patch);
        change(doing, patching).await.map(|_| ())
    }

    async fn apply<'s, K>(
        &self,
        object: &K,
        brief: &str,
        mut seen: impl Iterator<Item = &'s K>,
    ) -> Result<Option<String>, Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned
            + 's,
    {
        // Only what was seen to be ours is changed against others' will.
        let params = PatchParams::apply(names::MANAGER_OPERATOR);
        let params = if seen.any(|found| same(found, object)) { params.force() } else { params };
        let (name, doing) = (object.name_any(), format!("apply the {brief}"));
        let found = change(doing, self.api::<K>().patch(&name, &params, &Patch::Apply(object))).await?;
        let difference = compare::difference(object, &found);
        let mut memory = self.context.memory.lock().await;
        let contested = &mut memory.entry(ObjectRef::from_obj(&*self.seen.cluster)).or_default().contested;
        let Some(field) = difference else {
            contested.remove(brief);
            return Ok(None);
        };
        let before =
            contested.insert(brief.to_owned(), (compare::fingerprint(object, &found), Instant::now()));
        tracing::warn!(
            namespace = self.namespace,
            cluster = self.name,
            object = brief,
            field,
            "an admission webhook changes what is applied; it is left as the webhook made it"
        );
        Ok(before.is_none().then(|| format!("{brief} ({field})")))
    }

    async fn patch_meta<K>(&self, name: &str, metadata: Value) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let doing = format!("change the {} {name}", K::kind(&()));
        change(doing, self.api::<K>().patch(name, &PatchParams::default(), &patch)).await.map(|_| ())
    }

    async fn resize_disk(&self, name: &str, size: &str) -> Result<(), Error> {
        let patch = Patch::Merge(json!({ "spec": { "resources": { "requests": { "storage": size } } } }));
        let (claims, params) = (self.api::<PersistentVolumeClaim>(), PatchParams::default());
        let doing = format!("expand the PersistentVolumeClaim {name} to {size}");
        change(doing, claims.patch(name, &params, &patch)).await.map(|_| ())
    }

    /// One that was bound since it was seen stays.
    async fn discard_claim(&self, name: &str) -> Result<(), Error> {
        let Some(seen) = self.seen.pvcs.get(name) else { return Ok(()) };
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: seen.uid(), resource_version: seen.resource_version() });
        let claims = self.api::<PersistentVolumeClaim>();
        let doing = format!("delete the PersistentVolumeClaim {name}");
        match change(doing, claims.delete(name, &params)).await {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
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
        let now = call(doing, self.api::<FileSystemCluster>().get(self.name)).await?;
        let same = now.uid() == self.seen.cluster.uid()
            && now.metadata.deletion_timestamp.is_some()
            && now.spec.deletion_confirmation == self.seen.cluster.spec.deletion_confirmation
            && now.cluster_id() == self.seen.cluster.cluster_id();
        if same { Ok(()) } else { Err(Error::Stale { doing: "delete its data" }) }
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
        let doing = format!("delete the {} {name}", K::kind(&()));
        match change(doing, self.api::<K>().delete(name, &params)).await {
            Err(error) if error.is_missing() => Ok(()),
            done => done.map(|_| ()),
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
    if !context.leadership.holds() {
        return Err(Error::NotLeading);
    }
    let _turn = context.turn().await;
    let api: Api<FileSystemCluster> = Api::namespaced(context.client.clone(), cluster.namespace_str());
    let changed = FileSystemCluster { status: Some(status), ..cluster.clone() };
    let params = by_operator();
    change("write the status", api.replace_status(cluster.name_str(), &params, &changed)).await.map(|_| ())
}
