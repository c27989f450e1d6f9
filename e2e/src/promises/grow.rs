//! Volumes grow while a pod writes and checks all the time: on disks that can grow, by further storage servers where they
//! can't, and when they are full.

use std::collections::BTreeMap;

use atoll_crds::names::{Component, NAMESPACE_VOLUMES, labels};
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster, Reason};
use futures::FutureExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};

use super::Promise;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "grow",
    says: "a PVC grows under load, by its disks or by further servers, also when it is full, and no pod is restarted",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

/// Writes and checks numbered files until it is told to stop. While the volume is full it waits; no other error is its lot.
const LOAD: &str = "mkdir -p /data/load && cd /data/load
        i=0
        while ! test -e /tmp/stop; do
          i=$((i+1)); f=f$((i % 50))
          head -c 65536 /dev/urandom >/tmp/block
          until cp /tmp/block $f 2>/tmp/error && sync $f 2>>/tmp/error; do
            grep -q 'No space left' /tmp/error || { cat /tmp/error; exit 1; }
            sleep 0.1
          done
          cmp /tmp/block $f
        done
        echo $i";

/// Classes of volumes on disks that can grow, and on disks that can't.
const CLASSES: [(&str, &str); 2] = [("grow-network", "network"), ("grow-fixed", "local-fixed")];

async fn prove(cluster: &Cluster) -> Outcome {
    let mut classes = String::new();
    for (name, disks) in CLASSES {
        classes += &class(name, disks);
    }
    cluster.apply(&classes).await?;
    let proved = async {
        disks_grow(cluster).await?;
        servers_are_added(cluster).await?;
        what_cannot_be_had_is_taken_back(cluster).await
    }
    .await;
    let removed = cluster.kubectl(&["delete", "storageclass", CLASSES[0].0, CLASSES[1].0], "").await;
    proved.and(removed.map(drop))
}

fn class(name: &str, disks: &str) -> String {
    format!(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{ name: {name} }}
provisioner: csi.atoll.dev
allowVolumeExpansion: true
parameters:
  copies: '2'
  storageClass: {disks}
  metadataServers: '1'
  metadataStorageClass: {disks}
  csi.storage.k8s.io/node-stage-secret-name: ${{pv.name}}
  csi.storage.k8s.io/node-stage-secret-namespace: {NAMESPACE_VOLUMES}
  csi.storage.k8s.io/node-publish-secret-name: ${{pv.name}}
  csi.storage.k8s.io/node-publish-secret-namespace: {NAMESPACE_VOLUMES}
---
"
    )
}

/// From full to large: a pod that could not write can.
async fn disks_grow(cluster: &Cluster) -> Outcome {
    let objects = claim("network", "grow-network", "ReadWriteMany", "64Mi")
        + &pod("load", "network", None, Some(LOAD))
        + &pod("writer", "network", None, None);
    cluster.apply(&objects).await?;
    cluster.wait_running("load").await?;
    cluster.wait_running("writer").await?;
    let (name, _) = cluster.volume_of("network").await?;
    let before = servers(cluster, &name).await?;
    cluster
        .shell("writer", "! cat /dev/zero >/data/big 2>/tmp/why; grep -q 'No space left' /tmp/why")
        .await?;
    // The disks have room for this.
    expand(cluster, "network", "512Mi").await?;
    is_granted(cluster, "network", "writer", "512Mi").await?;
    for disk in disks(cluster, &name, Component::Storage).await? {
        ensure(disk.1 == "2Gi", || format!("a disk has {disk:?}"))?;
    }
    cluster.shell("writer", "head -c 300000000 /dev/zero >/data/more && sync /data/more").await?;
    expand(cluster, "network", "20Gi").await?;
    is_granted(cluster, "network", "writer", "20Gi").await?;

    let after = servers(cluster, &name).await?;
    ensure(before == after, || format!("pods were made anew: {before:?} became {after:?}"))?;
    for disk in disks(cluster, &name, Component::Storage).await? {
        ensure(disk.1 == "23Gi", || format!("a disk has {disk:?}"))?;
    }
    // A further disk would be as large.
    for set in cluster.of::<StatefulSet>(NAMESPACE_VOLUMES).list(&of(&name, Component::Storage)).await? {
        let template = set.spec.and_then(|spec| spec.volume_claim_templates).unwrap_or_default();
        let size = template.first().and_then(requested);
        ensure(size.as_deref() == Some("23Gi"), || format!("the claim template asks for {size:?}"))?;
    }
    end_of_load(cluster, "load").await
}

/// The disks stay as they are, and there are more of them.
async fn servers_are_added(cluster: &Cluster) -> Outcome {
    let objects = claim("fixed", "grow-fixed", "ReadWriteMany", "1Gi")
        + &pod("load-fixed", "fixed", None, Some(LOAD))
        + &pod("reader", "fixed", None, None);
    cluster.apply(&objects).await?;
    cluster.wait_running("load-fixed").await?;
    cluster.wait_running("reader").await?;
    let (name, _) = cluster.volume_of("fixed").await?;
    let before = servers(cluster, &name).await?;
    expand(cluster, "fixed", "3Gi").await?;
    is_granted(cluster, "fixed", "reader", "3Gi").await?;
    let after = servers(cluster, &name).await?;
    ensure(after.len() > before.len(), || format!("no server was added: {after:?}"))?;
    for (pod, uid) in &before {
        ensure(after.get(pod) == Some(uid), || format!("{pod} was made anew"))?;
    }
    end_of_load(cluster, "load-fixed").await
}

/// A size that can't be had is refused for good, and a smaller one can be asked for, as KEP-1790 has it.
async fn what_cannot_be_had_is_taken_back(cluster: &Cluster) -> Outcome {
    let (name, _) = cluster.volume_of("fixed").await?;
    expand(cluster, "fixed", "900Gi").await?;
    cluster
        .eventually("the claim says that it can't be had", TIMEOUT, async || {
            let found = cluster.here::<PersistentVolumeClaim>().get("fixed").await?;
            let states =
                found.status.and_then(|status| status.allocated_resource_statuses).unwrap_or_default();
            Ok(states.get("storage").filter(|state| *state == "ControllerResizeInfeasible").map(|_| ()))
        })
        .await?;
    let volumes = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES);
    let stuck = volumes.get(&name).await?;
    let reason = stuck.condition(ConditionType::ExpansionPending).map(|found| found.reason.clone());
    ensure(reason.as_deref() == Some(Reason::ExpansionInfeasible.as_str()), || {
        format!("the reason is {reason:?}")
    })?;
    ensure(stuck.is_ready(), || "the volume isn't usable meanwhile".to_owned())?;
    expand(cluster, "fixed", "3500Mi").await?;
    is_granted(cluster, "fixed", "reader", "3500Mi").await
}

async fn expand(cluster: &Cluster, name: &str, size: &str) -> Outcome {
    let patch = serde_json::json!({ "spec": { "resources": { "requests": { "storage": size } } } });
    let claims = cluster.here::<PersistentVolumeClaim>();
    claims.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// The claim and a mount say so, and the cluster that nothing is pending.
async fn is_granted(cluster: &Cluster, name: &str, pod: &str, size: &str) -> Outcome {
    let bytes = atoll_crds::Quantity::from(size).bytes().map_err(|error| Failure::new(error.to_string()))?;
    cluster
        .wait_for::<PersistentVolumeClaim>(name, &format!("has {size}"), |claim| {
            let capacity = claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get("storage"));
            capacity.is_some_and(|found| found.0 == size)
        })
        .await?;
    cluster
        .eventually(&format!("{pod} sees {size}"), TIMEOUT, async || {
            let shown = cluster.shell(pod, "df -B1 --output=size /data | tail -n 1").await?;
            Ok((shown.trim() == bytes.to_string()).then_some(()))
        })
        .await?;
    let (name, _) = cluster.volume_of(name).await?;
    let volumes = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES);
    cluster
        .eventually(&format!("{name} has all that it shall have"), TIMEOUT, async || {
            let found = volumes.get(&name).await?;
            let pending = found.condition(ConditionType::ExpansionPending).map(|found| found.status.clone());
            Ok((pending.as_deref() == Some("False")).then_some(()))
        })
        .await
}

fn of(name: &str, component: Component) -> kube::api::ListParams {
    let labels = format!("{}={name},{}={component}", labels::CLUSTER, labels::COMPONENT);
    kube::api::ListParams::default().labels(&labels)
}

/// The servers' pods, each with its uid and its restarts.
async fn servers(cluster: &Cluster, name: &str) -> Outcome<BTreeMap<String, (String, i32)>> {
    let pods = cluster.pods(NAMESPACE_VOLUMES, &format!("{}={name}", labels::CLUSTER)).await?;
    let restarts = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        statuses.map(|container| container.restart_count).sum()
    };
    Ok(pods.iter().map(|pod| (pod.name_any(), (pod.uid().unwrap_or_default(), restarts(pod)))).collect())
}

/// The disks of a component, each with its size.
async fn disks(cluster: &Cluster, name: &str, component: Component) -> Outcome<Vec<(String, String)>> {
    let claims = cluster.of::<PersistentVolumeClaim>(NAMESPACE_VOLUMES).list(&of(name, component)).await?;
    let size = |claim: &PersistentVolumeClaim| {
        let capacity =
            claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get("storage").cloned());
        capacity.map(|found| found.0).unwrap_or_default()
    };
    Ok(claims.iter().map(|claim| (claim.name_any(), size(claim))).collect())
}

fn requested(claim: &PersistentVolumeClaim) -> Option<String> {
    let resources = claim.spec.as_ref()?.resources.as_ref()?;
    Some(resources.requests.as_ref()?.get("storage")?.0.clone())
}

async fn end_of_load(cluster: &Cluster, pod: &str) -> Outcome {
    cluster.shell(pod, "touch /tmp/stop").await?;
    cluster.wait_done(pod).await
}
