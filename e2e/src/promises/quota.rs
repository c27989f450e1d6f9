//! Pods that a ResourceQuota doesn't allow: the resource says so, with the quota's words, and goes on once it is allowed.

use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster};
use futures::FutureExt;
use k8s_openapi::api::core::v1::ResourceQuota;

use super::Promise;
use super::static_volume::delete_with_data;
use crate::cluster::Cluster;
use crate::failure::{Outcome, ensure};

pub const PROMISE: Promise = Promise {
    name: "quota",
    says: "a FileSystemCluster whose pods a quota doesn't allow says so, and is created once they are allowed",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

const NAME: &str = "refused";
const QUOTA: &str = "no-pods";
const OBJECTS: &str = "apiVersion: v1
kind: ResourceQuota
metadata: { name: no-pods }
spec: { hard: { pods: '0' } }
---
apiVersion: atoll.dev/v1alpha1
kind: FileSystemCluster
metadata: { name: refused }
spec: { capacity: 1Gi, copies: 1 }
";

async fn prove(cluster: &Cluster) -> Outcome {
    cluster.apply(OBJECTS).await?;
    let refused = |found: &FileSystemCluster| {
        let stalled = found.condition(ConditionType::Stalled);
        stalled.is_some_and(|stalled| stalled.status == "True" && stalled.reason == "PodsRefused")
    };
    let waiting =
        cluster.wait_for::<FileSystemCluster>(NAME, "says that its pods are refused", refused).await?;
    let message = |kind| waiting.condition(kind).map(|found| found.message.clone()).unwrap_or_default();
    for kind in [ConditionType::Ready, ConditionType::Stalled, ConditionType::Degraded] {
        let says = message(kind);
        ensure(says.contains("exceeded quota: no-pods"), || format!("{} says '{says}'", kind.as_str()))?;
    }
    cluster.delete::<ResourceQuota>(QUOTA).await?;
    let made = cluster.wait_for::<FileSystemCluster>(NAME, "is Ready", FileSystemCluster::is_ready).await?;
    let left = made.condition(ConditionType::Stalled);
    ensure(left.is_none(), || format!("it is ready and stalled: {left:?}"))?;
    delete_with_data(cluster, &made).await?;
    cluster.wait_gone(&cluster.here::<FileSystemCluster>(), NAME).await
}
