//! A volume is upgraded, taken back, upgraded again and made one of the new release for good, while a pod writes and checks all
//! the time.

use atoll_crds::names::{NAMESPACE_SYSTEM, NAMESPACE_VOLUMES};
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster};
use futures::FutureExt;

use super::Promise;
use super::killed_pods::{LOAD, ends_well, progress};
use super::stuck_upgrade::{VERSION, configure, runs, servers, wait};
use crate::cluster::Cluster;
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "upgrade",
    says: "a volume goes to the next release and back under load without an error, and no way back is left once its level was raised",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

/// The images of this release and of the one that stands for the next (`hack/ship.sh --next`).
const IMAGE: &str = "ghcr.io/atoll-dev/atoll";
const IMAGE_NEXT: &str = "ghcr.io/atoll-dev/atoll-next";

/// The version that stands for the next release, as `hack/images/build` names it.
fn next() -> Outcome<String> {
    let mut parts = VERSION.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => Ok(format!("{major}.{}.0", minor + 1)),
        _ => Err(Failure::new(format!("{VERSION} is no version"))),
    }
}

async fn prove(cluster: &Cluster) -> Outcome {
    let next = next()?;
    let objects = claim("volume", "atoll", "ReadWriteMany", "2Gi") + &pod("load", "volume", None, Some(LOAD));
    cluster.apply(&objects).await?;
    cluster.wait_running("load").await?;
    let (name, _) = cluster.volume_of("volume").await?;
    progress(cluster).await?;
    let before = servers(cluster, &name).await?;

    operator(cluster, &format!("{IMAGE_NEXT}:{next}")).await?;
    let images = format!("ATOLL_IMAGES={VERSION}={IMAGE}:{VERSION}");
    configure(cluster, &[&images, &format!("ATOLL_IMAGE={IMAGE_NEXT}:{next}")]).await?;
    let outcome = up_and_down(cluster, &name, &next, &before).await;
    operator(cluster, &format!("{IMAGE}:{VERSION}")).await?;
    configure(cluster, &["ATOLL_IMAGES-", "ATOLL_IMAGE-"]).await?;
    outcome
}

async fn up_and_down(
    cluster: &Cluster,
    name: &str,
    next: &str,
    before: &std::collections::BTreeMap<String, String>,
) -> Outcome {
    // The operator alone changes nothing.
    progress(cluster).await?;
    ensure(servers(cluster, name).await? == *before, || "the operator's upgrade re-created pods".into())?;

    for version in [next, VERSION, next] {
        let said = cluster.plugin(&["upgrade", "pvc/volume", "--to", version]).await?;
        ensure(said.contains(&format!("{name} runs {version}")), || {
            format!("kubectl atoll upgrade says '{said}'")
        })?;
        wait(cluster, name, &format!("runs {version}"), |found| runs(found, version)).await?;
        progress(cluster).await?;
    }
    let now = servers(cluster, name).await?;
    let kept = now.iter().filter(|(pod, uid)| before.get(*pod) == Some(uid)).count();
    ensure(kept == 0, || format!("{kept} pods are still the first ones"))?;
    // The mount is one of this release, and keeps the level where it is.
    let waiting = wait(cluster, name, "says what keeps its feature level", |found| {
        reason(found) == Some("FeatureLevelWaiting")
    })
    .await?;
    let level = waiting.status.as_ref().and_then(|status| status.feature_level);
    ensure(level == Some(1), || format!("the level is {level:?} while a mount doesn't know it"))?;
    // Other mounts of this release are still to come.
    keep_level(cluster, name, "1").await?;
    ends_well(cluster).await?;
    keep_level(cluster, name, "null").await?;

    // Nobody mounts it any more: the level is raised, and the release before is out of reach.
    wait(cluster, name, "has the new feature level", |found| {
        found.status.as_ref().is_some_and(|status| status.feature_level == Some(2))
    })
    .await?;
    let back = cluster.plugin(&["upgrade", "pvc/volume", "--to", VERSION]).await;
    let refusal = back.err().map(|error| error.to_string()).unwrap_or_default();
    ensure(refusal.contains("can't read the disks any more"), || {
        format!("kubectl atoll upgrade to the release before says '{refusal}'")
    })?;
    let refused = |found: &FileSystemCluster| reason(found) == Some("VersionRefused");
    wait(cluster, name, "refuses the release before", refused).await?;
    ensure(servers(cluster, name).await? == now, || "a refused version re-created pods".into())
}

/// Why the version is as it is.
fn reason(found: &FileSystemCluster) -> Option<&str> {
    found.condition(ConditionType::UpgradeBlocked).map(|blocked| blocked.reason.as_str())
}

/// The highest feature level that the volume is raised to; `null`: as high as everybody knows.
async fn keep_level(cluster: &Cluster, name: &str, level: &str) -> Outcome {
    let patch = format!(r#"{{"spec": {{"featureLevelMax": {level}}}}}"#);
    let arguments = ["patch", "fsc", name, "--type", "merge", "--patch", patch.as_str()];
    cluster.kubectl(&[&["--namespace", NAMESPACE_VOLUMES], &arguments[..]].concat(), "").await.map(|_| ())
}

/// Has the operator run from an image.
async fn operator(cluster: &Cluster, image: &str) -> Outcome {
    let container = format!("operator={image}");
    let arguments =
        ["--namespace", NAMESPACE_SYSTEM, "set", "image", "deployment/atoll-operator", container.as_str()];
    cluster.kubectl(&arguments, "").await.map(|_| ())
}
