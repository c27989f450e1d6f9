//! `kubectl atoll` reads by way of the API server alone what an administrator needs: causes, mounts, Events, metrics, a check of the
//! volume, a support bundle.

use atoll_crds::names::secret;
use futures::FutureExt;
use k8s_openapi::api::core::v1::Secret;

use super::Promise;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "diagnosis",
    says: "kubectl atoll why, clients, events, top, fsck and dump work by way of the API server alone",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

async fn prove(cluster: &Cluster) -> Outcome {
    let objects = claim("data", "atoll-single", "ReadWriteMany", "1Gi") + &pod("app", "data", None, None);
    cluster.apply(&(objects + &claim("lost", "no-such-class", "ReadWriteOnce", "1Gi"))).await?;
    cluster.wait_running("app").await?;
    cluster.shell("app", "head -c 3000000 /dev/urandom >/data/file; sync").await?;
    let (volume, resource) = cluster.volume_of("data").await?;

    // Nothing is wrong, and the exit code says so.
    contains(&cluster.plugin(&["why", "pod/app"]).await?, &["Nothing is wrong", &volume])?;
    let lost = cluster.plugin(&["why", "pvc/lost"]).await;
    contains(&format!("{:?}", lost.err()), &["ClassMissing", "no-such-class", "atoll-single"])?;

    cluster
        .eventually("the mount is listed with its pod", TIMEOUT, async || {
            let clients = cluster.plugin(&["clients", "data", "-o", "wide"]).await?;
            Ok(clients.contains("app").then_some(()))
        })
        .await?;
    contains(&cluster.plugin(&["events", "data"]).await?, &["VolumeMade", "PersistentVolumeClaim/data"])?;
    contains(&cluster.plugin(&["top", "data", "--interval", "1"]).await?, &[&volume, "(all)", "Gi"])?;
    let servers = cluster.plugin(&["top", "data", "--interval", "1", "--servers", "-o", "name"]).await?;
    contains(&servers, &[&format!("pod/{volume}-metadata-0"), &format!("pod/{volume}-storage-0")])?;

    // A second check finds no pod of the first one in its way.
    for _ in 0..2 {
        cluster.plugin(&["fsck", "data", "--data"]).await?;
    }
    let json = cluster.plugin(&["fsck", "data", "--json"]).await?;
    serde_json::from_str::<serde_json::Value>(json.lines().last().unwrap_or_default())
        .map_err(|error| Failure::new(format!("{json}: {error}")))?;

    bundle(cluster, resource.namespace_str(), &volume).await
}

/// The bundle has the volume and not its key.
async fn bundle(cluster: &Cluster, namespace: &str, volume: &str) -> Outcome {
    let directory = std::env::temp_dir().join(format!("atoll-e2e-dump-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("dump.tar.gz");
    let written = cluster.plugin(&["dump", "data", "--file", &file.display().to_string()]).await;
    let unpacked = written.and_then(|_| {
        let output = std::process::Command::new("tar").arg("-xzOf").arg(&file).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    });
    std::fs::remove_dir_all(&directory)?;
    let text = unpacked?;
    contains(
        &text,
        &[volume, "kind: FileSystemCluster", "atoll_metadata_request_seconds_count", "Kubernetes v"],
    )?;
    let keys = cluster.of::<Secret>(namespace).get(volume).await?;
    let key = keys.data.as_ref().and_then(|data| data.get(secret::KEY)).map(|key| key.0.clone());
    let key = String::from_utf8(key.unwrap_or_default()).unwrap_or_default();
    if key.is_empty() || text.contains(&key) {
        return Err(Failure::new("the bundle has the volume's key, or there is none"));
    }
    Ok(())
}

fn contains(text: &str, words: &[&str]) -> Outcome {
    for word in words {
        if !text.contains(word) {
            return Err(Failure::new(format!("'{word}' is missing in:\n{text}")));
        }
    }
    Ok(())
}
