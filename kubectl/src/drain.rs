//! `kubectl atoll drain`: moves everything off storage servers, by what the operator offers for it. Either a server gets a new disk
//! (its claim is deleted, and the operator lets it go once its replicas are elsewhere), or the servers with the highest numbers are
//! removed (`spec.storage.replicas`).

use std::time::{Duration, Instant};

use atoll_crds::names::{self, Component, MANAGER_KUBECTL, labels};
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster, Reason};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::cli::DrainArgs;
use crate::confirm;
use crate::exit::{Code, Failure};
use crate::find::{self, Target};
use crate::output;
use crate::why::facts::is_ready;

/// How often it is checked how far it is.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Drains.
///
/// # Errors
/// If something could be lost, the confirmation wasn't given, or it doesn't end in time.
pub async fn run(client: Client, namespace: &str, args: &DrainArgs) -> Result<(), Failure> {
    let cluster = find::one(&client, namespace, &Target::parse(&args.target)?).await?;
    let refused = |message: String| Failure::new(Code::Refused, message);
    match (args.server, args.replicas) {
        (Some(server), _) => replace(&client, &cluster, server, args).await,
        (None, Some(replicas)) => {
            if let Some(refusal) = replicas_refusal(&cluster, replicas) {
                return Err(refused(refusal));
            }
            shrink(&client, &cluster, replicas, args).await
        }
        (None, None) => Err(Failure::new(Code::Failed, "name --server or --replicas")),
    }
}

/// Why nothing may be drained now.
fn refusal(cluster: &FileSystemCluster) -> Option<String> {
    let name = cluster.name_str();
    if cluster.is_terminating() {
        return Some(format!("{name} is being deleted"));
    }
    if cluster.spec.paused {
        return Some(format!(
            "the operator is paused for {name} (spec.paused), and would not drain anything"
        ));
    }
    if !cluster.is_ready() {
        let why = cluster.condition(ConditionType::Ready).map(|ready| ready.message.clone());
        let why = why.unwrap_or_else(|| "the operator has reported nothing yet".to_owned());
        return Some(format!("{name} isn't ready: {why}"));
    }
    None
}

/// How many storage servers there are to be: more than the spec says where the operator has added some.
fn servers(cluster: &FileSystemCluster) -> u32 {
    let reported = cluster.status.as_ref().and_then(|status| status.storage.as_ref());
    let reported = reported.map_or(0, |storage| u32::try_from(storage.replicas).unwrap_or(0));
    reported.max(cluster.spec.storage_replicas().into())
}

/// Why a server's disk may not go.
fn server_refusal(cluster: &FileSystemCluster, server: u32) -> Option<String> {
    if let Some(refusal) = refusal(cluster) {
        return Some(refusal);
    }
    let (name, replicas) = (cluster.name_str(), servers(cluster));
    if server >= replicas {
        return Some(format!("there is no storage server {server}: choose one of 0 to {}", replicas - 1));
    }
    let copies = u32::from(cluster.spec.copies);
    // With fewer the operator wouldn't let it go, and a claim's deletion can't be called off.
    if replicas - 1 < copies.saturating_sub(1).max(1) {
        return Some(format!(
            "the {} other storage servers are too few for {copies} copies: raise spec.storage.replicas to {} first",
            replicas - 1,
            replicas + 1
        ));
    }
    let storage = cluster.status.as_ref().and_then(|status| status.storage.as_ref())?;
    if let Some(away) = storage.servers.iter().find(|other| !other.alive) {
        return Some(format!("storage server {} is away: drain another one when it is back", away.address));
    }
    (storage.chunks_short_of_copies > 0).then(|| {
        format!(
            "{} chunks of {name} have fewer copies than desired: wait until repair has restored them (kubectl atoll status)",
            storage.chunks_short_of_copies
        )
    })
}

/// Why the servers may not become as few.
fn replicas_refusal(cluster: &FileSystemCluster, replicas: u8) -> Option<String> {
    if let Some(refusal) = refusal(cluster) {
        return Some(refusal);
    }
    let (copies, before) = (cluster.spec.copies, cluster.spec.storage_replicas());
    // There the number is what the volume began with, and the operator would keep all servers.
    if cluster.labels().get(labels::MANAGED_BY).is_some_and(|manager| manager == labels::MANAGED_BY_CSI) {
        return Some(
            "the storage servers of a claim's volume don't get fewer; --server gives one of them a new disk"
                .to_owned(),
        );
    }
    if replicas < copies {
        return Some(format!("{copies} copies need at least {copies} storage servers"));
    }
    // Repeated, it follows a drain that is in progress.
    (replicas > before).then(|| {
        format!(
            "there are {before} storage servers: to add some, raise spec.storage.replicas (docs/growing.md)"
        )
    })
}

/// What is said before a disk goes.
fn consequence(cluster: &FileSystemCluster, server: u32) -> String {
    let name = cluster.name_str();
    let (replicas, copies) = (servers(cluster), u32::from(cluster.spec.copies));
    let fewer = if replicas - 1 < copies {
        format!(
            " There are {} other storage servers: until the new disk is filled, what is stored has {} of {copies} copies.",
            replicas - 1,
            replicas - 1
        )
    } else {
        String::new()
    };
    format!(
        "Storage server {server} of {name} is drained, and its disk {} is deleted once its replicas are on the others. It \
         then gets a new disk.{fewer} This can't be called off.",
        names::pvc(name, Component::Storage, server)
    )
}

async fn replace(
    client: &Client,
    cluster: &FileSystemCluster,
    server: u32,
    args: &DrainArgs,
) -> Result<(), Failure> {
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    let disks: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let disk_name = names::pvc(name, Component::Storage, server);
    let refusal = server_refusal(cluster, server);
    if server >= servers(cluster) {
        return Err(Failure::new(Code::Refused, refusal.unwrap_or_default()));
    }
    let disk = disks.get(&disk_name).await.map_err(Failure::api("read the PersistentVolumeClaim"))?;
    // Repeated, it follows a drain that is in progress: nothing that could be refused is done any more.
    if disk.metadata.deletion_timestamp.is_none() {
        if let Some(refusal) = refusal {
            return Err(Failure::new(Code::Refused, refusal));
        }
        if !args.yes {
            confirm::ask(&consequence(cluster, server), name)?;
        }
        let this = Preconditions { uid: disk.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
        disks.delete(&disk_name, &params).await.map_err(Failure::api("delete the PersistentVolumeClaim"))?;
    }
    if args.no_wait {
        return output::text(&format!("{disk_name} goes once its replicas are elsewhere\n"));
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod_name = names::pod(name, Component::Storage, server);
    let old = disk.metadata.uid.clone();
    follow(client, cluster, args, |now| {
        let (disks, pods, pod_name) = (disks.clone(), pods.clone(), pod_name.clone());
        let (disk_name, old) = (disk_name.clone(), old.clone());
        async move {
            let disk = disks.get_opt(&disk_name).await.ok().flatten();
            let is_new = disk.is_some_and(|disk| disk.uid() != old);
            let pod = pods.get_opt(&pod_name).await.ok().flatten();
            is_new && pod.as_ref().is_some_and(is_ready) && !is_degraded(&now)
        }
    })
    .await?;
    output::text(&format!("storage server {server} of {name} has a new disk\n"))
}

async fn shrink(
    client: &Client,
    cluster: &FileSystemCluster,
    replicas: u8,
    args: &DrainArgs,
) -> Result<(), Failure> {
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    if cluster.spec.storage_replicas() != replicas {
        if !args.yes {
            let text = format!(
                "Storage servers {replicas} to {} of {name} are drained and removed with their disks. Raising \
                 spec.storage.replicas again calls it off for those that are still there.",
                cluster.spec.storage_replicas() - 1
            );
            confirm::ask(&text, name)?;
        }
        let clusters: Api<FileSystemCluster> = Api::namespaced(client.clone(), namespace);
        let params =
            PatchParams { field_manager: Some(MANAGER_KUBECTL.to_owned()), ..PatchParams::default() };
        let patch = json!({ "spec": { "storage": { "replicas": replicas } } });
        clusters
            .patch(name, &params, &Patch::Merge(patch))
            .await
            .map_err(Failure::api("change the FileSystemCluster"))?;
    }
    if args.no_wait {
        return output::text(&format!("storage servers from {replicas} on are being drained\n"));
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    // The next one to go is the last one to be gone.
    let last = names::pod(name, Component::Storage, replicas.into());
    follow(client, cluster, args, |now| {
        let (pods, last) = (pods.clone(), last.clone());
        async move {
            let gone = matches!(pods.get_opt(&last).await, Ok(None));
            let storage = now.status.as_ref().and_then(|status| status.storage.as_ref());
            let is_so = storage.is_some_and(|storage| storage.replicas == i32::from(replicas));
            gone && is_so && observed(&now) && progress(&now).is_none()
        }
    })
    .await?;
    output::text(&format!("{name} has {replicas} storage servers\n"))
}

/// Says how far it is until it is done, or can't be.
async fn follow<F: Future<Output = bool>>(
    client: &Client,
    cluster: &FileSystemCluster,
    args: &DrainArgs,
    is_done: impl Fn(FileSystemCluster) -> F,
) -> Result<(), Failure> {
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    let clusters: Api<FileSystemCluster> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let mut told = None;
    loop {
        let now = clusters.get(name).await.map_err(Failure::api("read the FileSystemCluster"))?;
        let news = progress(&now);
        if news.is_some() && news != told {
            eprintln!("{}", news.as_deref().unwrap_or_default());
            told = news;
        }
        if let Some(blocked) = blocked(&now) {
            return Err(Failure::new(Code::Unhealthy, blocked));
        }
        if is_done(now).await {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Code::Failed,
                format_args!(
                    "not done within {} s; it continues: follow it with the same command",
                    args.timeout
                ),
            ));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The operator has seen the spec as it is.
fn observed(cluster: &FileSystemCluster) -> bool {
    let seen = cluster.status.as_ref().and_then(|status| status.observed_generation);
    seen.is_some() && seen >= cluster.metadata.generation
}

fn is_degraded(cluster: &FileSystemCluster) -> bool {
    cluster.condition(ConditionType::Degraded).is_some_and(|degraded| degraded.status == "True")
}

/// What the operator does about it.
fn progress(cluster: &FileSystemCluster) -> Option<String> {
    let reasons = [Reason::DrainingServers, Reason::RemovingServers, Reason::ReplacingServer];
    [ConditionType::Progressing, ConditionType::Degraded].into_iter().find_map(|kind| {
        let found = cluster.condition(kind).filter(|found| found.status == "True")?;
        reasons.iter().any(|reason| reason.as_str() == found.reason).then(|| found.message.clone())
    })
}

/// Why it doesn't go on by itself.
fn blocked(cluster: &FileSystemCluster) -> Option<String> {
    let reasons = [Reason::ShrinkBlocked, Reason::ReplacementBlocked];
    [ConditionType::Stalled, ConditionType::Degraded].into_iter().find_map(|kind| {
        let found = cluster.condition(kind).filter(|found| found.status == "True" && observed(cluster))?;
        reasons
            .iter()
            .any(|reason| reason.as_str() == found.reason)
            .then(|| format!("{}: {}", found.reason, found.message))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn cluster(copies: u8, replicas: u8, change: impl FnOnce(&mut Value)) -> FileSystemCluster {
        let mut value = json!({
            "apiVersion": "atoll.dev/v1alpha1", "kind": "FileSystemCluster",
            "metadata": { "namespace": "ns", "name": "db", "generation": 2 },
            "spec": { "capacity": "1Gi", "copies": copies, "storage": { "replicas": replicas } },
            "status": {
                "observedGeneration": 2,
                "storage": { "replicas": replicas, "ready": replicas, "summary": "", "chunksShortOfCopies": 0, "servers": [] },
                "conditions": [condition("Ready", "True", "Serving", "fine")],
            },
        });
        change(&mut value);
        serde_json::from_value(value).expect("a cluster")
    }

    fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    }

    #[test]
    fn a_disk_goes_only_when_its_replicas_can_be_elsewhere() {
        let of = |copies, replicas| server_refusal(&cluster(copies, replicas, |_| {}), 0);
        assert_eq!((of(3, 3), of(3, 4), of(2, 2), of(1, 2)), (None, None, None, None));
        assert!(of(1, 1).expect("refused").contains("raise spec.storage.replicas to 2"));
        assert!(server_refusal(&cluster(3, 3, |_| {}), 3).expect("refused").contains("0 to 2"));
        assert!(consequence(&cluster(3, 3, |_| {}), 1).contains("2 of 3 copies"));
        assert!(!consequence(&cluster(3, 4, |_| {}), 1).contains("copies"));
        assert!(consequence(&cluster(3, 4, |_| {}), 1).contains("data-db-storage-1"));
    }

    #[test]
    fn a_volume_that_lacks_something_already_is_not_drained() {
        let refused = |change: &dyn Fn(&mut Value)| {
            server_refusal(&cluster(3, 4, |value| change(value)), 0).expect("refused")
        };
        let away = refused(&|value| {
            value["status"]["storage"]["servers"] = json!([{
                "id": "1", "address": "db-storage-2", "alive": false, "bytesTotal": 1, "bytesUsed": 1, "chunks": 1,
            }]);
        });
        assert!(away.contains("db-storage-2 is away"), "{away}");
        let short = refused(&|value| value["status"]["storage"]["chunksShortOfCopies"] = json!(5));
        assert!(short.contains("5 chunks"), "{short}");
        let paused = refused(&|value| value["spec"]["paused"] = json!(true));
        assert!(paused.contains("paused"), "{paused}");
        let ill = refused(&|value| {
            value["status"]["conditions"] = json!([condition("Ready", "False", "Unhealthy", "no leader")]);
        });
        assert!(ill.contains("no leader"), "{ill}");
        let dying = refused(&|value| value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
        assert!(dying.contains("being deleted"), "{dying}");
    }

    #[test]
    fn servers_become_no_fewer_than_copies_and_not_more() {
        let of = |replicas| replicas_refusal(&cluster(3, 5, |_| {}), replicas);
        assert_eq!((of(4), of(3), of(5)), (None, None, None));
        assert!(of(2).expect("refused").contains("at least 3"));
        assert!(of(6).expect("refused").contains("growing"));
        let mut of_claim = cluster(3, 5, |_| {});
        of_claim.labels_mut().insert(labels::MANAGED_BY.into(), labels::MANAGED_BY_CSI.into());
        assert!(replicas_refusal(&of_claim, 4).expect("refused").contains("--server"));
        // Where the operator has added servers, they are there.
        let grown = cluster(1, 1, |value| value["status"]["storage"]["replicas"] = json!(3));
        assert_eq!(server_refusal(&grown, 2), None);
    }

    #[test]
    fn it_is_said_how_far_it_is_and_why_it_does_not_continue() {
        let with = |kind: &str, status: &str, reason: &str| {
            cluster(3, 4, |value| {
                value["status"]["conditions"] = json!([condition(kind, status, reason, "message")]);
            })
        };
        assert_eq!(progress(&with("Progressing", "True", "DrainingServers")).as_deref(), Some("message"));
        assert_eq!(progress(&with("Degraded", "True", "ReplacingServer")).as_deref(), Some("message"));
        assert_eq!(progress(&with("Progressing", "True", "RollingOut")), None);
        let stalled = with("Stalled", "True", "ShrinkBlocked");
        assert_eq!(blocked(&stalled).as_deref(), Some("ShrinkBlocked: message"));
        assert_eq!(blocked(&with("Degraded", "True", "ReplacingServer")), None);
        // What was said of an earlier spec is no answer to this one.
        let mut earlier = stalled;
        earlier.metadata.generation = Some(3);
        assert_eq!(blocked(&earlier), None);
    }
}
