//! What is shown of a cluster, from its resource and its pods. Pure. The field names are a contract with programs.

use atoll_crds::names::{annotations, labels};
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster, Phase, Reason};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde::Serialize;

use crate::output::{age, size, table};

/// Width of the bar that shows how full a volume is, in characters.
const BAR: i64 = 30;
/// A volume is worth a word from here on (per cent).
const FULL_PERCENT: i64 = 85;
/// Reasons by which the version of a volume changes, or may, and nothing is wrong.
const UPGRADING: [Reason; 3] = [Reason::RollingOut, Reason::UpgradeWaiting, Reason::FeatureLevelWaiting];
/// Reasons of an expansion that doesn't come to be by waiting.
const STUCK: [Reason; 3] = [Reason::ExpansionInfeasible, Reason::NotExpandable, Reason::CapacityInUse];

/// Everything about one volume.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Namespace of the FileSystemCluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The claim that it was made for.
    pub claim: Option<Claim>,
    /// The cluster's id.
    pub cluster_id: Option<String>,
    /// `Ready`, `Degraded`, …
    pub phase: String,
    /// Nothing is wrong.
    pub healthy: bool,
    /// How it is, in a sentence.
    pub health: String,
    /// What was asked for.
    pub capacity: String,
    /// What the volume, or a disk, waits for until it has the size that was asked for.
    pub expansion: Option<String>,
    /// How far servers are that are removed.
    pub removal: Option<String>,
    /// Copies of every byte.
    pub copies: u8,
    /// Copies that share a node, or that wait for one since they may not.
    pub placement: Option<String>,
    /// Version that the pods run.
    pub version: Option<String>,
    /// Version that the pods are to run.
    pub target_version: Option<String>,
    /// How far the pods are from that version, or what another one waits for.
    pub upgrade: Option<String>,
    /// Seconds since it was made.
    pub age_seconds: Option<i64>,
    /// How full it is, as far as that is known.
    pub usage: Option<Usage>,
    /// `ready/wanted`.
    pub metadata: Option<String>,
    /// `ready/wanted`.
    pub storage: Option<String>,
    /// Chunks with fewer copies than wanted.
    pub chunks_short_of_copies: i64,
    /// The pods; none if they may not be read.
    pub pods: Vec<PodView>,
    /// The mounts.
    pub mounts: Vec<Mount>,
    /// How many mounts there are; not all may be listed.
    pub mount_count: i64,
    /// What is wrong and what to do.
    pub problems: Vec<String>,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The PersistentVolume.
    pub volume: Option<String>,
}

/// How full a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Bytes that there may be.
    pub bytes_total: i64,
    /// Bytes that there are.
    pub bytes_used: i64,
    /// Files and folders that there may be.
    pub inodes_total: i64,
    /// Files and folders that there are.
    pub inodes_used: i64,
    /// Of the bytes.
    pub percent: i64,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub node: Option<String>,
    /// It serves.
    pub ready: bool,
    /// `Running`, `Pending`, `CrashLoopBackOff`, …
    pub state: String,
    /// How often its server ended.
    pub restarts: i32,
    /// Bytes in use on its disk, for storage servers; others may share the disk.
    pub disk_used: Option<i64>,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Where.
    pub name: String,
    /// Its session.
    pub session: String,
    /// Files it holds open.
    pub open_files: i64,
}

/// Puts it together. `now` is seconds since 1970.
pub fn view(cluster: &FileSystemCluster, pods: &[Pod], now: i64) -> View {
    let status = cluster.status.clone().unwrap_or_default();
    let usage = status.usage.as_ref().map(|usage| Usage {
        bytes_total: usage.bytes_total,
        bytes_used: usage.bytes_used,
        inodes_total: usage.inodes_total,
        inodes_used: usage.inodes_used,
        percent: percent(usage.bytes_used, usage.bytes_total),
    });
    let claim = claim_of(cluster);
    let problems = problems(cluster, usage.as_ref());
    let phase = status.phase;
    let healthy = phase == Some(Phase::Ready) && problems.is_empty();
    let mut pod_views: Vec<PodView> = pods.iter().map(|pod| pod_view(pod, cluster)).collect();
    pod_views.sort_by(|one, other| one.name.cmp(&other.name));
    View {
        namespace: cluster.namespace_str().to_owned(),
        name: cluster.name_str().to_owned(),
        claim,
        cluster_id: status.cluster_id.clone(),
        phase: phase.map_or("Unknown", |phase| phase.as_str()).to_owned(),
        healthy,
        health: health(cluster, phase),
        capacity: cluster.spec.capacity.to_string(),
        expansion: expansion(cluster).map(|pending| pending.message.clone()),
        removal: removal(cluster).map(|progress| progress.message.clone()),
        copies: cluster.spec.copies,
        placement: placement(cluster).map(|degraded| degraded.message.clone()),
        version: status.version.clone(),
        target_version: status.target_version.clone(),
        upgrade: upgrade(cluster),
        age_seconds: cluster.metadata.creation_timestamp.as_ref().map(|time| now - time.0.as_second()),
        usage,
        metadata: status.metadata.as_ref().map(|found| found.summary.clone()),
        storage: status.storage.as_ref().map(|found| found.summary.clone()),
        chunks_short_of_copies: status.storage.as_ref().map_or(0, |found| found.chunks_short_of_copies),
        pods: pod_views,
        mounts: status
            .clients
            .iter()
            .map(|client| Mount {
                name: client.name.clone(),
                session: client.session.clone(),
                open_files: client.open_files,
            })
            .collect(),
        mount_count: status.client_count,
        problems,
    }
}

/// The claim that a cluster was made for.
pub fn claim_of(cluster: &FileSystemCluster) -> Option<Claim> {
    Some(Claim {
        namespace: cluster.labels().get(labels::PVC_NAMESPACE)?.clone(),
        name: cluster.annotations().get(annotations::PVC_NAME)?.clone(),
        volume: cluster.annotations().get(annotations::PV_NAME).cloned(),
    })
}

fn health(cluster: &FileSystemCluster, phase: Option<Phase>) -> String {
    let text = match phase {
        None => {
            "the operator has not reported its status yet: does it run? (kubectl -n atoll-system get pods)"
        }
        Some(Phase::Ready) => "healthy",
        Some(Phase::Creating) => "is being created",
        Some(Phase::Degraded) => "usable, but degraded",
        Some(Phase::Unavailable) => "not usable now; programs that use it wait",
        Some(Phase::Blocked) => "blocked until the problem below is fixed",
        Some(Phase::Paused) => "the operator is paused for this volume (spec.paused)",
        Some(Phase::Deleting) => "is being deleted",
        Some(Phase::Unknown) => "in a state that only a newer version of this program knows",
    };
    let behind = cluster.status.as_ref().is_some_and(|status| {
        status.observed_generation.is_some() && status.observed_generation < cluster.metadata.generation
    });
    if behind {
        format!("{text} (the operator has not observed the latest change of the spec yet)")
    } else {
        text.to_owned()
    }
}

/// What is wrong, each only once.
fn problems(cluster: &FileSystemCluster, usage: Option<&Usage>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let wrong = [(ConditionType::Ready, "False"), (ConditionType::Degraded, "True")];
    for (kind, bad) in wrong {
        if let Some(condition) = cluster.condition(kind).filter(|condition| condition.status == bad)
            && !found.iter().any(|text| text.contains(&condition.message))
        {
            found.push(format!("{}: {}", condition.reason, condition.message));
        }
    }
    let stuck =
        expansion(cluster).filter(|pending| STUCK.iter().any(|reason| reason.as_str() == pending.reason));
    found.extend(stuck.map(|pending| format!("{}: {}", pending.reason, pending.message)));
    let blocked = cluster.condition(ConditionType::UpgradeBlocked).filter(|blocked| blocked.status == "True");
    if let Some(blocked) = blocked.filter(|blocked| !found.iter().any(|text| text.contains(&blocked.message)))
    {
        found.push(format!("{}: {}", blocked.reason, blocked.message));
    }
    let stalled = cluster.condition(ConditionType::Stalled).filter(|stalled| stalled.status == "True");
    if let Some(stalled) = stalled.filter(|stalled| stalled.reason == Reason::ShrinkBlocked.as_str()) {
        found.push(format!("{}: {}", stalled.reason, stalled.message));
    }
    if let Some(usage) = usage.filter(|usage| usage.percent >= FULL_PERCENT) {
        let what = format!("Full: {} % of the space is in use", usage.percent);
        found.push(format!("{what}: delete files, or {}", larger(cluster)));
    }
    if let Some(usage) = usage {
        let percent = percent(usage.inodes_used, usage.inodes_total);
        if percent >= FULL_PERCENT {
            let what = format!("Full: {percent} % of the possible number of files exist");
            found.push(format!("{what}: delete files, or {}", larger(cluster)));
        }
    }
    found
}

/// The condition that says why the volume doesn't have its size, while it hasn't.
fn expansion(cluster: &FileSystemCluster) -> Option<&Condition> {
    cluster.condition(ConditionType::ExpansionPending).filter(|pending| pending.status == "True")
}

/// The condition that says how far servers are that the spec doesn't ask for any more, while they are there.
fn removal(cluster: &FileSystemCluster) -> Option<&Condition> {
    let progress = cluster.condition(ConditionType::Progressing).filter(|found| found.status == "True")?;
    let reasons = [Reason::DrainingServers, Reason::RemovingServers];
    Some(progress).filter(|found| reasons.iter().any(|reason| reason.as_str() == found.reason))
}

/// The condition that says which copies share a node or wait for one, while some do.
fn placement(cluster: &FileSystemCluster) -> Option<&Condition> {
    cluster.condition(ConditionType::PlacementDegraded).filter(|degraded| degraded.status == "True")
}

/// How far the pods are from the version that they are to run, or what another one waits for.
pub fn upgrade(cluster: &FileSystemCluster) -> Option<String> {
    let status = cluster.status.as_ref()?;
    let moves = match (&status.version, &status.target_version) {
        (Some(version), Some(target)) if version != target => Some(format!("{version} -> {target}")),
        _ => None,
    };
    let blocked = cluster.condition(ConditionType::UpgradeBlocked).filter(|blocked| {
        blocked.status == "False" && UPGRADING.iter().any(|reason| reason.as_str() == blocked.reason)
    });
    let pods = || status.rollout.as_ref().map(|rollout| format!("{} pods are done", rollout.summary));
    let said = blocked.map(|blocked| blocked.message.clone()).or_else(pods);
    let parts: Vec<String> = moves.into_iter().chain(said).collect();
    (!parts.is_empty()).then(|| parts.join(": "))
}

/// How a volume gets larger.
fn larger(cluster: &FileSystemCluster) -> String {
    match claim_of(cluster) {
        Some(claim) => format!(
            "expand the volume: raise spec.resources.requests.storage of its claim (kubectl -n {} edit pvc {})",
            claim.namespace, claim.name
        ),
        None => format!(
            "expand the volume: raise spec.capacity (kubectl -n {} edit fsc {})",
            cluster.namespace_str(),
            cluster.name_str()
        ),
    }
}

fn percent(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * 100 / i128::from(whole.max(1))).unwrap_or(100)
}

fn pod_view(pod: &Pod, cluster: &FileSystemCluster) -> PodView {
    let name = pod.name_any();
    let status = pod.status.as_ref();
    let container = status.and_then(|status| status.container_statuses.as_ref()?.first().cloned());
    let waiting =
        container.as_ref().and_then(|container| container.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let phase = status.and_then(|status| status.phase.clone());
    let state = if pod.metadata.deletion_timestamp.is_some() {
        "Terminating".to_owned()
    } else {
        waiting.or(phase).unwrap_or_else(|| "Unknown".to_owned())
    };
    let ready = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let servers = cluster.status.as_ref().and_then(|status| status.storage.as_ref());
    let prefix = format!("{name}.");
    let disk_used = servers.and_then(|storage| {
        storage
            .servers
            .iter()
            .find(|server| server.address.starts_with(&prefix))
            .map(|server| server.bytes_used)
    });
    PodView {
        ready: ready.into_iter().any(|found| found.type_ == "Ready" && found.status == "True"),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        state,
        restarts: container.map_or(0, |container| container.restart_count),
        disk_used,
        name,
    }
}

/// One screen.
pub fn screen(view: &View) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut line = |label: &str, value: String| lines.push((label.to_owned(), value));
    line("Volume", format!("{}/{}   {}: {}", view.namespace, view.name, view.phase, view.health));
    if let Some(claim) = &view.claim {
        let volume = claim.volume.as_deref().map(|name| format!("   PV {name}")).unwrap_or_default();
        line("Claim", format!("{}/{}{volume}", claim.namespace, claim.name));
    }
    if let Some(id) = &view.cluster_id {
        let version =
            view.version.as_deref().map(|version| format!("   version {version}")).unwrap_or_default();
        let age = view.age_seconds.map(|seconds| format!("   age {}", age(seconds))).unwrap_or_default();
        line("Cluster", format!("{id}{version}{age}"));
    }
    match &view.usage {
        Some(usage) => {
            let filled = usage.percent.clamp(0, 100) * BAR / 100;
            let bar: String = (0..BAR).map(|at| if at < filled { '#' } else { '.' }).collect();
            line(
                "Space",
                format!(
                    "[{bar}] {} %   {} of {}",
                    usage.percent,
                    size(usage.bytes_used),
                    size(usage.bytes_total)
                ),
            );
            line("Files", format!("{} of {}", usage.inodes_used, usage.inodes_total));
        }
        None => line("Space", format!("{} requested", view.capacity)),
    }
    if let Some(pending) = &view.expansion {
        line("Expansion", format!("{} requested: {pending}", view.capacity));
    }
    if let Some(progress) = &view.upgrade {
        line("Upgrade", progress.clone());
    }
    if let Some(progress) = &view.removal {
        line("Removal", progress.clone());
    }
    let short = if view.chunks_short_of_copies > 0 {
        format!("   {} chunks have fewer copies", view.chunks_short_of_copies)
    } else {
        String::new()
    };
    line("Copies", format!("{}{short}", view.copies));
    if let Some(degraded) = &view.placement {
        line("Placement", degraded.clone());
    }
    let unknown = || "-".to_owned();
    line(
        "Servers",
        format!(
            "metadata {}   storage {}",
            view.metadata.clone().unwrap_or_else(unknown),
            view.storage.clone().unwrap_or_else(unknown)
        ),
    );
    let mut text: String = lines.iter().map(|(label, value)| format!("{label:<9} {value}\n")).collect();
    if !view.pods.is_empty() {
        let rows = view.pods.iter().map(|pod| {
            vec![
                pod.name.clone(),
                if pod.ready { "yes" } else { "no" }.to_owned(),
                pod.state.clone(),
                pod.restarts.to_string(),
                pod.node.clone().unwrap_or_else(|| "-".to_owned()),
                pod.disk_used.map_or_else(|| "-".to_owned(), size),
            ]
        });
        text += "\n";
        text +=
            &indented(&table(&["POD", "READY", "STATE", "RESTARTS", "NODE", "DISK USED"], rows.collect()));
    }
    text += "\n";
    if view.mounts.is_empty() {
        text += "Mounts    none\n";
    } else {
        let rows = view
            .mounts
            .iter()
            .map(|mount| vec![mount.name.clone(), mount.session.clone(), mount.open_files.to_string()]);
        text += &indented(&table(&["MOUNTED ON", "SESSION", "OPEN FILES"], rows.collect()));
        let more = view.mount_count - i64::try_from(view.mounts.len()).unwrap_or(i64::MAX);
        if more > 0 {
            text += &format!("  … and {more} more\n");
        }
    }
    if !view.problems.is_empty() {
        text += "\nProblems:\n";
        for problem in &view.problems {
            text += &format!("  * {problem}\n");
        }
    }
    text
}

/// What `-o wide` adds: all conditions, and the servers with their ids.
pub fn details(cluster: &FileSystemCluster) -> String {
    let Some(status) = &cluster.status else { return String::new() };
    let mut text = String::new();
    if !status.conditions.is_empty() {
        let rows = status.conditions.iter().map(|found| {
            vec![found.type_.clone(), found.status.clone(), found.reason.clone(), found.message.clone()]
        });
        text += "\n";
        text += &indented(&table(&["CONDITION", "STATUS", "REASON", "MESSAGE"], rows.collect()));
    }
    let leader = status.metadata.as_ref().and_then(|metadata| metadata.leader.clone());
    let members = status.metadata.iter().flat_map(|metadata| &metadata.members).map(|member| {
        let role = if leader.as_ref() == Some(&member.id) { "leader" } else { "member" };
        vec!["metadata".to_owned(), member.id.clone(), member.address.clone(), role.to_owned()]
    });
    let servers = status.storage.iter().flat_map(|storage| &storage.servers).map(|server| {
        let state = if server.alive { "alive" } else { "not alive" };
        let used = format!("{state}, {} of {}", size(server.bytes_used), size(server.bytes_total));
        vec!["storage".to_owned(), server.id.clone(), server.address.clone(), used]
    });
    let rows: Vec<Vec<String>> = members.chain(servers).collect();
    if !rows.is_empty() {
        text += "\n";
        text += &indented(&table(&["SERVER", "ID", "ADDRESS", "STATE"], rows));
    }
    text
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests;
