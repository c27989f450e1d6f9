//! `kubectl atoll fsck`: runs `atoll-fs fsck` in a pod beside the volume's servers, and shows what it says. The pod is a metadata
//! server's, with its image, key and settings, and without its disk.

use std::time::{Duration, Instant};

use atoll_crds::names::{self, Component, MANAGER_KUBECTL, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, LogParams, PostParams};
use kube::{Api, Client};

use crate::cli::FsckArgs;
use crate::exit::{Code, Failure};
use crate::find::{self, Target};
use crate::output;

/// How often it is checked whether the pod runs, or has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The component in the pod's labels: NetworkPolicies let it reach metadata servers, and no Service takes it for a server.
const COMPONENT: &str = "tool";
/// Reasons for which a container waits and doesn't start by itself.
const HOPELESS: [&str; 4] =
    ["ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"];

/// Checks a volume.
///
/// # Errors
/// If damage is left (after it was shown), or the check can't run.
pub async fn run(client: Client, namespace: &str, args: &FsckArgs) -> Result<(), Failure> {
    let cluster = find::one(&client, namespace, &Target::parse(&args.target)?).await?;
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let set_name = names::workload(name, Component::Metadata);
    let set = sets.get(&set_name).await.map_err(Failure::api("read the StatefulSet"))?;
    let pod =
        pod(&cluster, &set, &command(&cluster, args)).map_err(|error| Failure::new(Code::Failed, error))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod_name = pod.metadata.name.clone().unwrap_or_default();
    let timeout = Duration::from_secs(args.timeout);
    begin(&pods, &pod_name, &pod, timeout).await?;
    let shown = show(&pods, &pod_name, timeout).await;
    // Also when it failed: what is left would be taken for a check in progress.
    let code = match shown {
        Ok(()) => end(&pods, &pod_name).await,
        Err(failure) => Err(failure),
    };
    let removed = pods.delete(&pod_name, &DeleteParams::default()).await;
    if let Err(error) = removed {
        eprintln!("note: pod {namespace}/{pod_name} couldn't be deleted: {error}");
    }
    verdict(code?)
}

/// What `atoll-fs fsck` is called with.
fn command(cluster: &FileSystemCluster, args: &FsckArgs) -> Vec<String> {
    let address = names::metadata_address(cluster.namespace_str(), cluster.name_str());
    let mut command =
        vec!["/usr/bin/atoll-fs".to_owned(), "fsck".to_owned(), "--metadata".to_owned(), address];
    if !args.repair.is_empty() {
        command.extend(["--repair".to_owned(), args.repair.join(",")]);
    }
    command.extend(args.data.then(|| "--data".to_owned()));
    command.extend(args.json.then(|| "--json".to_owned()));
    command
}

/// A metadata server's pod without its disk, its probes and its place among the servers.
fn pod(cluster: &FileSystemCluster, set: &StatefulSet, command: &[String]) -> Result<Pod, String> {
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.clone());
    let mut spec: PodSpec = template.ok_or("the StatefulSet of the metadata servers has no pod template")?;
    let container = spec.containers.first_mut().ok_or("the metadata servers' pods have no container")?;
    container.command = Some(command.to_vec());
    container.args = None;
    (container.startup_probe, container.liveness_probe, container.readiness_probe) = (None, None, None);
    container.ports = None;
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.retain(|mount| mount.name != names::DATA_VOLUME);
    }
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| volume.name != names::DATA_VOLUME);
    }
    // It may run anywhere: that servers are kept apart is no matter of it.
    spec.topology_spread_constraints = None;
    spec.restart_policy = Some("Never".to_owned());
    let labels = [
        (labels::NAME.to_owned(), labels::NAME_VALUE.to_owned()),
        (labels::COMPONENT.to_owned(), COMPONENT.to_owned()),
        (labels::MANAGED_BY.to_owned(), MANAGER_KUBECTL.to_owned()),
    ];
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(format!("{}-fsck", cluster.name_str())),
            namespace: Some(cluster.namespace_str().to_owned()),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

/// Whether a pod that is there does what is asked, so that it can be followed.
fn is_same(there: &Pod, asked: &Pod) -> bool {
    let command = |pod: &Pod| pod.spec.as_ref()?.containers.first()?.command.clone();
    let phase = there.status.as_ref().and_then(|status| status.phase.as_deref());
    command(there) == command(asked)
        && matches!(phase, None | Some("Pending" | "Running"))
        && there.metadata.deletion_timestamp.is_none()
}

/// Creates the pod, or follows one that was left by an interrupted call.
async fn begin(pods: &Api<Pod>, name: &str, pod: &Pod, timeout: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    loop {
        let Some(there) = pods.get_opt(name).await.map_err(Failure::api("read the pod"))? else { break };
        if is_same(&there, pod) {
            eprintln!("pod {name} checks this volume already: following it");
            return Ok(());
        }
        let phase = there.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        if phase == "Running" && there.metadata.deletion_timestamp.is_none() {
            let message = format!(
                "pod {name} checks this volume with other flags: wait until it is done, or delete it"
            );
            return Err(Failure::new(Code::Refused, message));
        }
        if there.metadata.deletion_timestamp.is_none() {
            pods.delete(name, &DeleteParams::default()).await.map_err(Failure::api("delete the pod"))?;
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Code::Failed,
                format_args!("pod {name} of an earlier check doesn't end"),
            ));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let params = PostParams { field_manager: Some(MANAGER_KUBECTL.to_owned()), ..PostParams::default() };
    pods.create(&params, pod).await.map(|_| ()).map_err(Failure::api("create the pod that checks"))
}

/// Prints what the pod says, from its start to its end.
async fn show(pods: &Api<Pod>, name: &str, timeout: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    loop {
        let pod = pods.get(name).await.map_err(Failure::api("read the pod that checks"))?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("");
        if ["Running", "Succeeded", "Failed"].contains(&phase) {
            break;
        }
        let waits = waits_for(&pod);
        let is_hopeless = HOPELESS.iter().any(|reason| waits.starts_with(reason));
        if is_hopeless || Instant::now() >= deadline {
            return Err(Failure::new(Code::Failed, format_args!("pod {name} doesn't start: {waits}")));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let params = LogParams { follow: true, ..LogParams::default() };
    let stream = pods.log_stream(name, &params).await.map_err(Failure::api("read the pod's log"))?;
    let mut lines = stream.lines();
    loop {
        match lines.try_next().await {
            Ok(Some(line)) => output::text(&(line + "\n"))?,
            Ok(None) => return Ok(()),
            Err(error) => {
                return Err(Failure::new(
                    Code::Unreachable,
                    format_args!("the pod's log ended early: {error}; the same command follows it again"),
                ));
            }
        }
    }
}

/// What a pod that hasn't started waits for.
fn waits_for(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let container = status.and_then(|status| status.container_statuses.as_ref()?.first());
    let waiting = container.and_then(|container| container.state.as_ref()?.waiting.as_ref());
    if let Some(waiting) = waiting {
        let text = [waiting.reason.as_deref(), waiting.message.as_deref()];
        return text.into_iter().flatten().collect::<Vec<_>>().join(": ");
    }
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let unscheduled =
        conditions.into_iter().find(|found| found.type_ == "PodScheduled" && found.status == "False");
    unscheduled.and_then(|found| found.message.clone()).unwrap_or_else(|| "it has no node yet".to_owned())
}

/// The exit code of the check.
async fn end(pods: &Api<Pod>, name: &str) -> Result<i32, Failure> {
    // The log ends a moment before the state says so.
    const ENDS_WITHIN: Duration = Duration::from_secs(60);
    let deadline = Instant::now() + ENDS_WITHIN;
    loop {
        let pod = pods.get(name).await.map_err(Failure::api("read the pod that checks"))?;
        let status = pod.status.as_ref();
        let container = status.and_then(|status| status.container_statuses.as_ref()?.first());
        let ended = container.and_then(|container| container.state.as_ref()?.terminated.as_ref());
        if let Some(ended) = ended {
            return Ok(ended.exit_code);
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(Code::Failed, format_args!("pod {name} doesn't say how it ended")));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// From the exit codes of fsck(8) to those of this program.
fn verdict(code: i32) -> Result<(), Failure> {
    match code {
        0 | 1 => Ok(()),
        4 => Err(Failure::new(Code::Unhealthy, "")),
        8 => Err(Failure::new(Code::Failed, "the check failed: the state of the volume is unknown (above)")),
        16 => Err(Failure::new(Code::Failed, "wrong flags (above)")),
        other => Err(Failure::new(Code::Failed, format_args!("the check ended with exit code {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use atoll_crds::v1alpha1::FileSystemClusterSpec;
    use serde_json::json;

    use super::*;
    use crate::cli::{Cli, Command};

    fn cluster() -> FileSystemCluster {
        let mut cluster = FileSystemCluster::new("db", FileSystemClusterSpec::with_capacity("1Gi".into()));
        cluster.metadata.namespace = Some("ns".into());
        cluster
    }

    fn set() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": { "name": "db-metadata" },
            "spec": { "selector": {}, "serviceName": "db-metadata", "template": { "spec": {
                "securityContext": { "runAsNonRoot": true },
                "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "k", "whenUnsatisfiable": "DoNotSchedule" }],
                "volumes": [{ "name": "key", "secret": { "secretName": "db-key" } }],
                "containers": [{
                    "name": "metadata", "image": "i:1", "command": ["/usr/bin/atoll-fs", "metadata"],
                    "env": [{ "name": "ATOLL_CLUSTER", "value": "7" }], "readinessProbe": {}, "ports": [{ "containerPort": 1 }],
                    "volumeMounts": [{ "name": "data", "mountPath": "/d" }, { "name": "key", "mountPath": "/k" }],
                }],
            } } },
        }))
        .expect("a StatefulSet")
    }

    fn args(more: &[&str]) -> FsckArgs {
        use clap::Parser;
        let cli = Cli::parse_from(["kubectl-atoll", "fsck", "db"].iter().chain(more));
        match cli.command {
            Command::Fsck(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_pod_has_the_key_and_no_disk_and_is_no_server() {
        let command = command(&cluster(), &args(&["--data", "--repair", "link-count,volume-totals"]));
        assert_eq!(
            command.join(" "),
            "/usr/bin/atoll-fs fsck --metadata db-metadata.ns.svc:7400 --repair link-count,volume-totals --data"
        );
        let pod = pod(&cluster(), &set(), &command).expect("there is a template");
        let labels = pod.metadata.labels.as_ref().expect("labels");
        assert!(!labels.contains_key(names::labels::CLUSTER), "{labels:?}");
        assert_eq!(labels[names::labels::COMPONENT], "tool");
        let spec = pod.spec.as_ref().expect("spec");
        let container = &spec.containers[0];
        let mounts: Vec<_> =
            container.volume_mounts.iter().flatten().map(|mount| mount.name.as_str()).collect();
        assert_eq!((mounts, container.readiness_probe.is_some()), (vec!["key"], false));
        assert!(container.ports.is_none() && spec.topology_spread_constraints.is_none());
        assert_eq!(container.env.as_ref().expect("environment").len(), 1);
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        assert_eq!(spec.security_context.as_ref().expect("context").run_as_non_root, Some(true));
    }

    #[test]
    fn a_check_that_is_in_progress_is_followed_only_if_it_is_the_same() {
        let with = |more: &[&str], phase: Option<&str>| {
            let mut pod = pod(&cluster(), &set(), &command(&cluster(), &args(more))).expect("a pod");
            pod.status = serde_json::from_value(json!({ "phase": phase })).expect("a status");
            pod
        };
        let asked = with(&[], None);
        assert!(is_same(&with(&[], Some("Running")), &asked) && is_same(&with(&[], Some("Pending")), &asked));
        assert!(!is_same(&with(&[], Some("Succeeded")), &asked));
        assert!(!is_same(&with(&["--data"], Some("Running")), &asked));
    }

    #[test]
    fn exit_codes_are_those_of_this_program() {
        assert!(verdict(0).is_ok() && verdict(1).is_ok());
        let code = |code| verdict(code).expect_err("failed").code;
        assert_eq!(
            (code(4), code(8), code(16), code(137)),
            (Code::Unhealthy, Code::Failed, Code::Failed, Code::Failed)
        );
    }

    #[test]
    fn what_it_waits_for_is_said() {
        let of = |status| {
            let status = serde_json::from_value(status).expect("a status");
            waits_for(&Pod { status: Some(status), ..Pod::default() })
        };
        let waiting = json!({ "containerStatuses": [{
            "name": "c", "ready": false, "restartCount": 0, "image": "i", "imageID": "",
            "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no host" } },
        }] });
        assert_eq!(of(waiting), "ImagePullBackOff: no host");
        let unscheduled =
            json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "message": "no node" }] });
        assert_eq!((of(unscheduled), of(json!({}))), ("no node".into(), "it has no node yet".into()));
    }
}
