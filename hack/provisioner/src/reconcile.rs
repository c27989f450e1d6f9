//! Carries decisions out: reads the objects, asks `decide`, acts on disks and objects.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;

use crate::decide::{self, ClaimPlan, FINALIZER, Storage, VolumePlan};
use crate::disk::Disks;
use crate::error::Error;
use crate::object;
use crate::quantity::quantity;

/// Between two tries of what failed.
const RETRY: Duration = Duration::from_secs(2);

struct Context {
    client: Client,
    disks: Disks,
    recorder: Recorder,
}

/// Serves claims and volumes until a signal ends it.
pub async fn serve(client: Client, disks: Disks) -> Result<(), Error> {
    let reporter = Reporter { controller: decide::PROVISIONER.to_owned(), instance: None };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client: client.clone(),
        disks,
    });
    context.sweep().await?;

    let claims =
        Controller::new(Api::<PersistentVolumeClaim>::all(client.clone()), watcher::Config::default())
            .watches(Api::<PersistentVolume>::all(client.clone()), watcher::Config::default(), |volume| {
                let claim = volume.spec.and_then(|spec| spec.claim_ref)?;
                Some(ObjectRef::new(&claim.name?).within(&claim.namespace?))
            })
            .shutdown_on_signal()
            .run(claim, |claim, error, _| retry(&claim.name_any(), error), context.clone())
            .for_each(async |_| ());
    let volumes = Controller::new(Api::<PersistentVolume>::all(client), watcher::Config::default())
        .shutdown_on_signal()
        .run(volume, |volume, error, _| retry(&volume.name_any(), error), context)
        .for_each(async |_| ());
    tracing::info!("serving {}", decide::PROVISIONER);
    futures::join!(claims, volumes);
    Ok(())
}

fn retry(name: &str, error: &Error) -> Action {
    match error {
        // Somebody else changed it first: what is new is read at the next try.
        Error::Api(kube::Error::Api(status)) if status.code == 409 => tracing::debug!("{name}: {error}"),
        _ => tracing::warn!("{name}: {error}"),
    }
    Action::requeue(RETRY)
}

async fn claim(claim: Arc<PersistentVolumeClaim>, context: Arc<Context>) -> Result<Action, Error> {
    let class_name = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
    let (mut class, mut volume) = (None, None);
    if let Some(name) = decide::bound_to(&claim) {
        volume = Api::<PersistentVolume>::all(context.client.clone()).get_opt(name).await?;
    } else if !class_name.is_empty() {
        class = Api::<StorageClass>::all(context.client.clone()).get_opt(&class_name).await?;
    }
    let powered = |node: &str| context.disks.power(node).is_some();
    match decide::claim(&claim, class.as_ref(), volume.as_ref(), powered) {
        ClaimPlan::Nothing => {}
        ClaimPlan::Refuse(why) => context.tell(&claim, EventType::Warning, "ProvisioningFailed", why).await?,
        ClaimPlan::Reschedule(why) => {
            context.tell(&claim, EventType::Warning, "ProvisioningFailed", why).await?;
            let patch = json!({"metadata": {"annotations": {decide::SELECTED_NODE: null}}});
            context
                .claims(&claim)
                .patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch))
                .await?;
        }
        ClaimPlan::Provision(storage) => {
            context.on_disk(&storage, Disks::create).await?;
            let policy = class.as_ref().and_then(|class| class.reclaim_policy.as_deref()).unwrap_or("Delete");
            let options = class.as_ref().and_then(|class| class.mount_options.clone()).unwrap_or_default();
            let object = object::volume(&storage, &claim, &class_name, policy, &options);
            let volumes = Api::<PersistentVolume>::all(context.client.clone());
            match volumes.create(&PostParams::default(), &object).await {
                // Made before, by a run that ended before it saw the answer.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                result => drop(result?),
            }
            tracing::info!("{}: {storage:?}", claim.name_any());
            let note = format!("made {} ({})", storage.volume, storage.kind.name());
            context.tell(&claim, EventType::Normal, "ProvisioningSucceeded", note).await?;
        }
        ClaimPlan::Expand(storage) => {
            context.on_disk(&storage, Disks::expand).await?;
            let patch = json!({"spec": {"capacity": {"storage": quantity(storage.bytes)}}});
            Api::<PersistentVolume>::all(context.client.clone())
                .patch(&storage.volume, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            context.resized(&claim, storage.bytes).await?;
            tracing::info!("{}: grown to {} bytes", claim.name_any(), storage.bytes);
        }
        ClaimPlan::Resized(bytes) => context.resized(&claim, bytes).await?,
    }
    Ok(Action::await_change())
}

async fn volume(volume: Arc<PersistentVolume>, context: Arc<Context>) -> Result<Action, Error> {
    match decide::volume(&volume) {
        VolumePlan::Nothing => {}
        VolumePlan::Delete(storage) => {
            context.on_disk(&storage, Disks::delete).await?;
            context.forget(&volume).await?;
            tracing::info!("{}: deleted", volume.name_any());
        }
        VolumePlan::Forget => context.forget(&volume).await?,
    }
    Ok(Action::await_change())
}

/// What isn't there any more need not be changed.
fn missing_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => Ok(result.map(drop)?),
    }
}

impl Context {
    fn claims(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default())
    }

    /// Runs one of the disks' operations where it may block.
    async fn on_disk(
        &self,
        storage: &Storage,
        operation: fn(&Disks, &Storage) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (disks, storage) = (self.disks.clone(), storage.clone());
        tokio::task::spawn_blocking(move || operation(&disks, &storage)).await?
    }

    async fn tell(
        &self,
        claim: &PersistentVolumeClaim,
        kind: EventType,
        reason: &str,
        note: String,
    ) -> Result<(), Error> {
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Provisioning".to_owned(),
            secondary: None,
        };
        Ok(self.recorder.publish(&event, &claim.object_ref(&())).await?)
    }

    async fn resized(&self, claim: &PersistentVolumeClaim, bytes: u64) -> Result<(), Error> {
        let patch = json!({"status": {"capacity": {"storage": quantity(bytes)}}});
        self.claims(claim)
            .patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Deletes a volume's object, whose storage is gone or not ours any more.
    async fn forget(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let name = volume.name_any();
        if volume.metadata.deletion_timestamp.is_none() {
            let same = Preconditions { uid: volume.uid(), resource_version: None };
            missing_is_fine(volumes.delete(&name, &DeleteParams::default().preconditions(same)).await)?;
        }
        // As it is now: others take their finalizers away at the same time, and must not find them back.
        let Some(now) = volumes.get_opt(&name).await?.filter(|now| now.uid() == volume.uid()) else {
            return Ok(());
        };
        let kept: Vec<&String> = now.finalizers().iter().filter(|name| *name != FINALIZER).collect();
        let patch = json!({"metadata": {"resourceVersion": now.resource_version(), "finalizers": kept}});
        missing_is_fine(volumes.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    /// Deletes what an earlier run made and had no time to write an object for.
    async fn sweep(&self) -> Result<(), Error> {
        // The disks first: what is made later is not in the list.
        let stored = self.disks.all()?;
        let volumes = Api::<PersistentVolume>::all(self.client.clone()).list(&ListParams::default()).await?;
        let claims =
            Api::<PersistentVolumeClaim>::all(self.client.clone()).list(&ListParams::default()).await?;
        for storage in stored {
            let known = volumes.iter().any(|volume| volume.name_any() == storage.volume)
                || claims
                    .iter()
                    .any(|claim| claim.uid().is_some_and(|uid| storage.volume == format!("pvc-{uid}")));
            if storage.volume.starts_with("pvc-") && !known {
                tracing::info!("{}: nobody's, deleted", storage.volume);
                if let Err(error) = self.on_disk(&storage, Disks::delete).await {
                    tracing::warn!("{}: {error}", storage.volume);
                }
            }
        }
        Ok(())
    }
}
