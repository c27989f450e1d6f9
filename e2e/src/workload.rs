//! Pods that use a volume, and the YAML of what a user applies.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome};

/// The image with real programs; its tag is the project's version.
pub fn image() -> String {
    format!("ghcr.io/atoll-dev/workload:{}", env!("CARGO_PKG_VERSION"))
}

/// Where a pod's volume is.
pub const MOUNT: &str = "/data";

/// Writes and reads numbered files until it is told to stop; the sums of all that it has written are checked at the end.
pub const LOAD_CHECKED: &str = "mkdir -p /data/load && cd /data/load
        i=0
        while ! test -e /tmp/stop; do
          i=$((i+1)); f=f$((i % 100))
          head -c $((i % 20 * 16384 + 1)) /dev/urandom >/tmp/block
          cp /tmp/block $f && sync $f && cmp /tmp/block $f
          sha256sum $f >/tmp/sum.$f
        done
        cat /tmp/sum.* | sha256sum -c --quiet
        echo $i";

/// A PVC.
pub fn claim(name: &str, class: &str, mode: &str, size: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{ name: {name} }}
spec:
  accessModes: [{mode}]
  storageClassName: {class}
  resources: {{ requests: {{ storage: {size} }} }}
---
"
    )
}

/// A pod with a claim at [`MOUNT`], on a node if one is named; it runs `script`, or waits to be told what to do.
pub fn pod(name: &str, claim: &str, node: Option<&str>, script: Option<&str>) -> String {
    let selector = node
        .map(|node| format!("\n  nodeSelector: {{ kubernetes.io/hostname: {node} }}"))
        .unwrap_or_default();
    let script = script.unwrap_or("exec sleep infinity").replace('\n', "\n        ");
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{ name: {name} }}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1{selector}
  containers:
  - name: main
    image: {image}
    command:
    - sh
    - -euc
    - |
        {script}
    volumeMounts: [{{ name: data, mountPath: {MOUNT} }}]
  volumes:
  - name: data
    persistentVolumeClaim: {{ claimName: {claim} }}
---
",
        image = image()
    )
}

impl Cluster {
    /// Waits until a pod runs.
    pub async fn wait_running(&self, name: &str) -> Outcome<Pod> {
        self.wait_for::<Pod>(name, "runs", |pod| {
            phase(pod) == "Running"
                && pod
                    .status
                    .iter()
                    .flat_map(|status| status.container_statuses.iter().flatten())
                    .all(|container| container.ready)
        })
        .await
    }

    /// Waits until a pod has done its work.
    ///
    /// # Errors
    /// If it failed; with the end of its log.
    pub async fn wait_done(&self, name: &str) -> Outcome {
        let ended = |pod: &Pod| matches!(phase(pod), "Succeeded" | "Failed");
        let pod = self.wait_for::<Pod>(name, "has ended", ended).await?;
        if phase(&pod) == "Succeeded" {
            return Ok(());
        }
        let log = self.kubectl(&["logs", name, "--tail=20"], "").await?;
        Err(Failure::new(format!("pod {name} failed: {log}")))
    }

    /// Deletes a pod of this namespace and waits until it is gone.
    pub async fn delete_pod(&self, name: &str) -> Outcome {
        self.delete::<Pod>(name).await?;
        self.wait_gone(&self.here::<Pod>(), name).await
    }

    /// Pods of a namespace with these labels, as `key=value,…`.
    pub async fn pods(&self, namespace: &str, labels: &str) -> Outcome<Vec<Pod>> {
        let pods: Api<Pod> = self.of(namespace);
        let list = pods.list(&ListParams::default().labels(labels)).await?;
        Ok(list.items)
    }

    /// Kills a pod's processes with `kill -9` and waits until its containers run again.
    pub async fn kill_and_wait(&self, pod: &Pod) -> Outcome {
        let before = restarts(pod);
        crate::processes::kill_9(pod)?;
        let namespace = pod.namespace().unwrap_or_default();
        let pods: Api<Pod> = self.of(&namespace);
        let name = pod.name_any();
        self.eventually(&format!("{name} runs again"), TIMEOUT, async || {
            let found = pods.get_opt(&name).await?;
            Ok(found.filter(|pod| restarts(pod) > before && is_ready(pod)).map(|_| ()))
        })
        .await
    }
}

/// `Pending`, `Running`, `Succeeded`, `Failed`.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Its condition `Ready`.
pub fn is_ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// How often its containers were started again.
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|container| container.restart_count).sum()
}
