//! `kubectl atoll unsafe-recovery`: one metadata server goes on alone when a majority of them is lost for good.
//!
//! In a pod the server can't be stopped while its disk is there, so a pod of its own does it: the operator is paused, the
//! servers are stopped, the one that is left becomes the only member, the disks of the others are deleted so that none of
//! them ever comes back, and the operator adds new ones. Nothing is deleted before the one that is left is known to work. Every step can be done again, so an interrupted recovery is
//! finished by the same command.

use std::time::{Duration, Instant};

use atoll_crds::names::annotations::PAUSED_BEFORE_RECOVERY;
use atoll_crds::names::{self, Component, MANAGER_KUBECTL};
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cli::RecoveryArgs;
use crate::confirm;
use crate::exit::{Code, Failure};
use crate::find::{self, Target};
use crate::output;

/// How often it is checked whether a step is done.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Recovers.
///
/// # Errors
/// If most metadata servers run, the word wasn't given, or a step fails.
pub async fn run(client: Client, namespace: &str, args: &RecoveryArgs) -> Result<(), Failure> {
    let cluster = find::one(&client, namespace, &Target::parse(&args.target)?).await?;
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let set_name = names::workload(name, Component::Metadata);
    let set = sets.get(&set_name).await.map_err(Failure::api("read the StatefulSet"))?;
    if let Some(refusal) = refusal(&cluster, &set, args.member) {
        return Err(Failure::new(Code::Refused, refusal));
    }
    let recovery =
        recovery_pod(&cluster, &set, args.member).map_err(|error| Failure::new(Code::Failed, error))?;
    if !args.yes {
        confirm::ask(&consequence(&cluster, args.member), cluster.name_str())?;
    }
    let clusters: Api<FileSystemCluster> = Api::namespaced(client.clone(), namespace);
    pause(&clusters, &cluster).await?;
    if let Err(failure) = recover(client, &cluster, &recovery, args).await {
        return Err(while_paused(failure, &cluster));
    }
    let paused = was_paused(&cluster);
    patch(&clusters, name, resumed(paused), "resume the operator")
        .await
        .map_err(|failure| while_paused(failure, &cluster))?;
    let operator = if paused {
        "spec.paused was true before and still is: set it to false, and the operator adds the others"
    } else {
        "the operator adds the others"
    };
    output::text(&format!(
        "metadata server {} is the only member now; {operator}. Check the files: atoll-fs fsck\n",
        args.member
    ))
}

/// Pauses the operator, and remembers in the same change whether it was paused before.
async fn pause(clusters: &Api<FileSystemCluster>, cluster: &FileSystemCluster) -> Result<(), Failure> {
    patch(clusters, cluster.name_str(), paused(cluster), "pause the operator").await
}

/// What pauses the operator.
fn paused(cluster: &FileSystemCluster) -> Value {
    json!({
        "metadata": { "annotations": { PAUSED_BEFORE_RECOVERY: was_paused(cluster).to_string() } },
        "spec": { "paused": true },
    })
}

/// What lets it go on, unless somebody had paused it.
fn resumed(was_paused: bool) -> Value {
    json!({ "metadata": { "annotations": { PAUSED_BEFORE_RECOVERY: Value::Null } }, "spec": { "paused": was_paused } })
}

/// Whether somebody had paused the operator before a recovery began.
fn was_paused(cluster: &FileSystemCluster) -> bool {
    let said = cluster.metadata.annotations.as_ref().and_then(|found| found.get(PAUSED_BEFORE_RECOVERY));
    cluster.spec.paused && said.is_none_or(|said| said == "true")
}

fn while_paused(failure: Failure, cluster: &FileSystemCluster) -> Failure {
    Failure::new(failure.code, format!("{}; {}", failure.message, still_paused(cluster)))
}

/// What has to be known after a failure.
fn still_paused(cluster: &FileSystemCluster) -> String {
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    let patch = if was_paused(cluster) {
        String::new()
    } else {
        format!(
            "; to call it off: kubectl -n {namespace} patch fsc {name} --type merge -p '{{\"spec\":{{\"paused\":false}}}}'"
        )
    };
    format!("the operator is paused for {namespace}/{name} until this command has succeeded{patch}")
}

/// Makes one the only member, and starts all of them.
async fn recover(
    client: Client,
    cluster: &FileSystemCluster,
    recovery: &Pod,
    args: &RecoveryArgs,
) -> Result<(), Failure> {
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let set_name = names::workload(name, Component::Metadata);
    let patience = Duration::from_secs(args.timeout);
    patch(&sets, &set_name, json!({ "spec": { "replicas": 0 } }), "stop the metadata servers").await?;
    // Those of lost nodes may never end; this one has to.
    wait_gone(&pods, &names::pod(name, Component::Metadata, args.member), patience).await?;
    let recovery_name = recovery.metadata.name.clone().unwrap_or_default();
    delete(&pods, &recovery_name).await?;
    wait_gone(&pods, &recovery_name, patience).await?;
    let params = PostParams { field_manager: Some(MANAGER_KUBECTL.to_owned()), ..PostParams::default() };
    pods.create(&params, recovery).await.map_err(Failure::api("create the pod that recovers"))?;
    wait_done(&pods, &recovery_name, patience).await?;
    delete(&pods, &recovery_name).await?;
    wait_gone(&pods, &recovery_name, patience).await?;
    // Not before: if it can't be recovered, another one may be, from one of these disks.
    let disks: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    for disk in lost_disks(cluster, args.member) {
        delete(&disks, &disk).await?;
    }
    // As many as before: the operator sets them to what the spec says.
    let replicas = cluster.spec.metadata_replicas();
    patch(&sets, &set_name, json!({ "spec": { "replicas": replicas } }), "start the metadata servers").await
}

/// Why there is nothing to recover.
fn refusal(cluster: &FileSystemCluster, set: &StatefulSet, member: u32) -> Option<String> {
    let replicas = cluster.spec.metadata_replicas();
    if member >= u32::from(replicas) {
        return Some(format!("there is no metadata server {member}: choose one of 0 to {}", replicas - 1));
    }
    if replicas == 1 {
        return Some(
            "there is one metadata server only: if its disk is lost, restore it from a backup".to_owned(),
        );
    }
    if cluster.is_terminating() {
        return Some(format!("{} is being deleted", cluster.name_str()));
    }
    let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let leader = cluster.status.as_ref().and_then(|status| status.metadata.as_ref()?.leader.as_ref());
    (ready * 2 > i32::from(replicas) && leader.is_some() && cluster.is_ready()).then(|| {
        format!(
            "{ready} of {replicas} metadata servers run and have a leader: nothing is lost that they can't recover. \
             Whether they still have one the operator says within seconds: if they haven't, try again then"
        )
    })
}

/// The disks of all other metadata servers.
fn lost_disks(cluster: &FileSystemCluster, member: u32) -> Vec<String> {
    let all = 0..u32::from(cluster.spec.metadata_replicas());
    all.filter(|other| *other != member)
        .map(|other| names::pvc(cluster.name_str(), Component::Metadata, other))
        .collect()
}

/// The pod of a metadata server, with the same disk, that makes it the only member and ends.
fn recovery_pod(cluster: &FileSystemCluster, set: &StatefulSet, member: u32) -> Result<Pod, String> {
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.clone());
    let mut spec: PodSpec = template.ok_or("the StatefulSet of the metadata servers has no pod template")?;
    let container = spec.containers.first_mut().ok_or("the metadata servers' pods have no container")?;
    let address = names::pod_address(namespace, name, Component::Metadata, member);
    let command =
        ["/usr/bin/atoll-fs", "admin", "unsafe-recovery", "--address", &address, "--the-others-are-gone"];
    container.command = Some(command.map(str::to_owned).to_vec());
    container.args = None;
    (container.startup_probe, container.liveness_probe, container.readiness_probe) = (None, None, None);
    container.ports = None;
    spec.restart_policy = Some("Never".to_owned());
    spec.volumes.get_or_insert_default().push(Volume {
        name: names::DATA_VOLUME.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: names::pvc(name, Component::Metadata, member),
            read_only: None,
        }),
        ..Volume::default()
    });
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(format!("{name}-recovery")),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

fn consequence(cluster: &FileSystemCluster, member: u32) -> String {
    format!(
        "Metadata server {member} of {} becomes the only one, and the disks of all others are deleted permanently: {}. \
         What only they had is lost.",
        cluster.name_str(),
        lost_disks(cluster, member).join(", ")
    )
}

async fn patch<K>(api: &Api<K>, name: &str, patch: Value, doing: &str) -> Result<(), Failure>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let params = PatchParams { field_manager: Some(MANAGER_KUBECTL.to_owned()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Merge(patch)).await.map(|_| ()).map_err(Failure::api(doing))
}

/// Deletes an object; that it isn't there is as good.
async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), Failure>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Failure::api(format_args!("delete {name}"))(error)),
    }
}

async fn wait_gone(pods: &Api<Pod>, name: &str, patience: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    while pods.get_opt(name).await.map_err(Failure::api("read the pod"))?.is_some() {
        if Instant::now() >= deadline {
            let message = format!("pod {name} doesn't end: check its node, then run this command again");
            return Err(Failure::new(Code::Failed, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// The pod has done its work.
async fn wait_done(pods: &Api<Pod>, name: &str, patience: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    loop {
        let pod = pods.get(name).await.map_err(Failure::api("read the pod that recovers"))?;
        let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
        if phase == "Succeeded" {
            return Ok(());
        }
        if phase == "Failed" || Instant::now() >= deadline {
            let log = pods.logs(name, &LogParams::default()).await.unwrap_or_default();
            let message = format!(
                "pod {name} is {phase} and has not recovered the metadata server (its log: {}): correct what it says, then \
                 run this command again",
                log.trim()
            );
            return Err(Failure::new(Code::Failed, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use atoll_crds::v1alpha1::FileSystemClusterSpec;

    use super::*;

    fn cluster() -> FileSystemCluster {
        let mut cluster = FileSystemCluster::new("db", FileSystemClusterSpec::with_capacity("1Gi".into()));
        cluster.metadata.namespace = Some("ns".into());
        cluster
    }

    fn set() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": { "name": "db-metadata" },
            "spec": {
                "selector": {}, "serviceName": "db-metadata",
                "template": { "spec": {
                    "securityContext": { "fsGroup": 65532 },
                    "containers": [{
                        "name": "metadata", "image": "i:1", "command": ["/usr/bin/atoll-fs", "metadata"],
                        "env": [{ "name": "ATOLL_CLUSTER", "value": "7" }],
                        "readinessProbe": { "periodSeconds": 1 },
                        "volumeMounts": [{ "name": "data", "mountPath": "/var/lib/atoll" }],
                    }],
                } },
            },
            "status": { "replicas": 3, "readyReplicas": 1 },
        }))
        .expect("a StatefulSet")
    }

    #[test]
    fn the_pod_is_a_metadata_servers_with_its_disk_and_another_command() {
        let pod = recovery_pod(&cluster(), &set(), 1).expect("there is a template");
        let spec = pod.spec.expect("spec");
        let container = &spec.containers[0];
        let command = container.command.clone().expect("command").join(" ");
        assert!(
            command.contains("unsafe-recovery --address db-metadata-1.db-metadata.ns.svc:7400"),
            "{command}"
        );
        assert_eq!((container.image.as_deref(), container.readiness_probe.is_some()), (Some("i:1"), false));
        assert_eq!(container.env.as_ref().expect("environment").len(), 1);
        let volume = &spec.volumes.expect("volumes")[0];
        let claim = volume.persistent_volume_claim.as_ref().expect("a PVC");
        assert_eq!((volume.name.as_str(), claim.claim_name.as_str()), ("data", "data-db-metadata-1"));
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        assert_eq!(spec.security_context.expect("context").fs_group, Some(65532));
        // Its labels would make it one of the servers, by whose Service the others find it.
        assert_eq!(pod.metadata.labels, None);
    }

    #[test]
    fn a_pause_that_was_there_before_stays_however_often_a_recovery_is_begun() {
        for before in [false, true] {
            let mut cluster = cluster();
            cluster.spec.paused = before;
            for _ in 0..2 {
                let patch = paused(&cluster);
                assert_eq!(patch["spec"]["paused"], true);
                let said = patch["metadata"]["annotations"][PAUSED_BEFORE_RECOVERY]
                    .as_str()
                    .expect("a text")
                    .to_owned();
                cluster.spec.paused = true;
                cluster.metadata.annotations = Some([(PAUSED_BEFORE_RECOVERY.to_owned(), said)].into());
            }
            assert_eq!(resumed(was_paused(&cluster))["spec"]["paused"], before);
            assert_eq!(still_paused(&cluster).contains("to call it off"), !before);
        }
    }

    #[test]
    fn only_a_lost_majority_is_recovered() {
        assert_eq!(refusal(&cluster(), &set(), 1), None);
        assert!(refusal(&cluster(), &set(), 3).expect("refused").contains("0 to 2"));
        let mut single = cluster();
        single.spec.metadata.replicas = Some(1);
        assert!(refusal(&single, &set(), 0).expect("refused").contains("backup"));
        assert_eq!(lost_disks(&cluster(), 1), ["data-db-metadata-0", "data-db-metadata-2"]);
        // They run, and lead.
        let mut well = cluster();
        well.status = serde_json::from_value(json!({
            "metadata": { "replicas": 3, "ready": 3, "summary": "3/3", "leader": "a" },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Serving", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        }))
        .expect("a status");
        let mut set = set();
        set.status.as_mut().expect("status").ready_replicas = Some(2);
        assert!(refusal(&well, &set, 1).expect("refused").contains("2 of 3"));
        // New servers with empty disks are ready too, and have no leader.
        well.status.as_mut().expect("status").metadata.as_mut().expect("metadata").leader = None;
        assert_eq!(refusal(&well, &set, 1), None);
    }
}
