//! `kubectl atoll delete`: the deliberate word without which no data dies.

use std::time::{Duration, Instant};

use atoll_crds::names::MANAGER_KUBECTL;
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster, Phase};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::cli::DeleteArgs;
use crate::confirm;
use crate::exit::{Code, Failure};
use crate::find::{self, Target};
use crate::output::{self, size};
use crate::view::claim_of;

/// How often it is looked whether the cluster is gone.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Deletes a cluster.
///
/// # Errors
/// If it isn't there, belongs to a claim, the word wasn't given, or it doesn't go in time.
pub async fn run(client: Client, namespace: &str, args: &DeleteArgs) -> Result<(), Failure> {
    let target = match Target::parse(&args.target)? {
        Target::Either(name) | Target::Cluster(name) => Target::Cluster(name),
        Target::Pvc(name) => {
            let message = format!("delete the claim itself: kubectl -n {namespace} delete pvc {name}");
            return Err(Failure::new(Code::Refused, message));
        }
    };
    let cluster = find::one(&client, namespace, &target).await?;
    if let Some(refusal) = refusal(&cluster, has_volume(&client, &cluster).await?) {
        return Err(Failure::new(Code::Refused, refusal));
    }
    if !args.yes {
        confirm::ask(&warning(&cluster, args.keep_data), cluster.name_str())?;
    }
    let api: Api<FileSystemCluster> = Api::namespaced(client, cluster.namespace_str());
    if let (Some(id), false) = (cluster.cluster_id(), args.keep_data) {
        say_the_word(&api, &cluster, id).await?;
    }
    // This very cluster, and not one that has taken its name meanwhile.
    let this = Preconditions { uid: cluster.uid(), resource_version: None };
    api.delete(cluster.name_str(), &DeleteParams::default().preconditions(this))
        .await
        .map_err(Failure::api("delete the FileSystemCluster"))?;
    if args.no_wait {
        return output::text(&format!("{} is being deleted\n", cluster.name_str()));
    }
    wait(&api, &cluster, Duration::from_secs(args.timeout)).await
}

/// The PersistentVolume that the cluster was made for is still there.
async fn has_volume(client: &Client, cluster: &FileSystemCluster) -> Result<bool, Failure> {
    let Some(volume) = claim_of(cluster).and_then(|claim| claim.volume) else { return Ok(true) };
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let found = volumes.get_opt(&volume).await.map_err(Failure::api("read the PersistentVolume"))?;
    Ok(found.is_some())
}

/// A cluster that was made for a claim goes with it. If its volume is gone, nobody else deletes it any more.
fn refusal(cluster: &FileSystemCluster, has_volume: bool) -> Option<String> {
    let claim = claim_of(cluster).filter(|_| has_volume)?;
    Some(format!(
        "{} was created for the PersistentVolumeClaim {}: delete that (kubectl -n {} delete pvc {})",
        cluster.name_str(),
        claim.name,
        claim.namespace,
        claim.name
    ))
}

/// What is about to happen.
fn warning(cluster: &FileSystemCluster, keep_data: bool) -> String {
    let status = cluster.status.clone().unwrap_or_default();
    let used = status.usage.map_or_else(|| "an unknown amount of".to_owned(), |usage| size(usage.bytes_used));
    let mounts = match status.client_count {
        0 => String::new(),
        count => format!(" It is mounted {count} times."),
    };
    if keep_data {
        format!(
            "The servers of {} are stopped once nobody uses it; its disks and its key are kept (kubectl atoll orphans).{mounts}",
            cluster.name_str()
        )
    } else {
        format!("All data of {} ({used} in use) is deleted permanently.{mounts}", cluster.name_str())
    }
}

async fn say_the_word(
    api: &Api<FileSystemCluster>,
    cluster: &FileSystemCluster,
    id: &str,
) -> Result<(), Failure> {
    let patch = Patch::Merge(json!({
        "metadata": { "uid": cluster.uid() },
        "spec": { "deletionConfirmation": id },
    }));
    let params = PatchParams { field_manager: Some(MANAGER_KUBECTL.to_owned()), ..PatchParams::default() };
    api.patch(cluster.name_str(), &params, &patch)
        .await
        .map(|_| ())
        .map_err(Failure::api("confirm the deletion"))
}

async fn wait(
    api: &Api<FileSystemCluster>,
    cluster: &FileSystemCluster,
    patience: Duration,
) -> Result<(), Failure> {
    let (name, started) = (cluster.name_str(), Instant::now());
    let mut told = String::new();
    loop {
        let found = api.get_opt(name).await.map_err(Failure::api("check whether it is deleted"))?;
        let Some(found) = found.filter(|found| found.uid() == cluster.uid()) else {
            return output::text(&format!("{name} is deleted\n"));
        };
        let deleting = found.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Deleting));
        let ready = found.condition(ConditionType::Ready).filter(|_| deleting);
        let why = ready.map(|ready| ready.message.clone()).unwrap_or_default();
        if why != told {
            eprintln!("{why}");
            told.clone_from(&why);
        }
        if started.elapsed() >= patience {
            let message = format!("{name} isn't deleted after {} s: {why}", patience.as_secs());
            return Err(Failure::new(Code::Failed, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use atoll_crds::names::{annotations, labels};
    use atoll_crds::v1alpha1::FileSystemClusterSpec;

    use super::*;

    #[test]
    fn a_cluster_of_a_claim_goes_with_the_claim() {
        let mut cluster = FileSystemCluster::new("db", FileSystemClusterSpec::with_capacity("1Gi".into()));
        assert_eq!(refusal(&cluster, true), None);
        cluster.labels_mut().insert(labels::PVC_NAMESPACE.into(), "web".into());
        cluster.annotations_mut().insert(annotations::PVC_NAME.into(), "data".into());
        assert!(refusal(&cluster, true).expect("refused").contains("kubectl -n web delete pvc data"));
        assert_eq!(refusal(&cluster, false), None);
    }

    #[test]
    fn it_is_said_what_dies_and_what_stays() {
        let cluster = FileSystemCluster::new("db", FileSystemClusterSpec::with_capacity("1Gi".into()));
        assert!(warning(&cluster, false).contains("permanently"));
        assert!(warning(&cluster, true).contains("are kept"));
    }
}
