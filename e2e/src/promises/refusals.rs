//! A PVC that can't be provided says why, where its owner looks: in its events.

use futures::FutureExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::DeleteParams;

use super::Promise;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::Outcome;
use crate::workload::claim;

pub const PROMISE: Promise = Promise {
    name: "refusals",
    says: "a PVC with an unknown parameter, too many copies or a backing class of our own says why in an event",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

/// Parameters of a StorageClass, and a word of the event that has to come.
const CASES: [(&str, &str, &str); 3] = [
    ("unknown", "copeis: '3'", "copeis"),
    ("too-many", "copies: '5'", "nodes"),
    ("ourselves", "storageClass: atoll", "atoll"),
];

async fn prove(cluster: &Cluster) -> Outcome {
    let mut result = Ok(());
    for (name, parameters, word) in CASES {
        let class = format!("e2e-{name}");
        let outcome = refused(cluster, name, &class, parameters, word).await;
        cluster.delete::<PersistentVolumeClaim>(name).await?;
        cluster.wait_gone(&cluster.here::<PersistentVolumeClaim>(), name).await?;
        match cluster.everywhere::<StorageClass>().delete(&class, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
        result = result.and(outcome);
    }
    result
}

async fn refused(cluster: &Cluster, name: &str, class: &str, parameters: &str, word: &str) -> Outcome {
    let objects = format!(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{ name: {class} }}
provisioner: {driver}
parameters:
  {{ csi.storage.k8s.io/node-stage-secret-name: '${{pv.name}}',
    csi.storage.k8s.io/node-stage-secret-namespace: {namespace},
    csi.storage.k8s.io/node-publish-secret-name: '${{pv.name}}',
    csi.storage.k8s.io/node-publish-secret-namespace: {namespace}, {parameters} }}
---
",
        driver = atoll_crds::names::DRIVER_NAME,
        namespace = atoll_crds::names::NAMESPACE_VOLUMES,
    );
    cluster.apply(&(objects + &claim(name, class, "ReadWriteMany", "1Gi"))).await?;
    cluster
        .eventually(&format!("an event of {name} says '{word}'"), TIMEOUT, async || {
            let events = cluster.events_of(name).await?;
            let told = |event: &String| event.starts_with("ProvisioningFailed") && event.contains(word);
            Ok(events.iter().any(told).then_some(()))
        })
        .await
}
