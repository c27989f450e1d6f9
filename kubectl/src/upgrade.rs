//! `kubectl atoll upgrade`: has the servers of a volume run another version, and shows how far that is.
//!
//! Everything is decided by the operator. Here `spec.version` is set, and what the status says of it is passed on.

use std::time::{Duration, Instant};

use atoll_crds::names::MANAGER_KUBECTL;
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster, Reason};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::cli::UpgradeArgs;
use crate::exit::{Code, Failure};
use crate::find::{self, Target};
use crate::output;
use crate::view;

/// How often it is looked how far the upgrade is.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long the same thing has to be in its way until it counts: right after a change the status may still be about what was before.
const STUCK_MIN: Duration = Duration::from_secs(5);
/// Reasons for which the operator doesn't let pods run a version.
const REFUSALS: [Reason; 2] = [Reason::VersionRefused, Reason::UnknownVersion];

/// How far it is.
#[derive(Clone, Debug, PartialEq)]
enum Progress {
    /// There is nothing to wait for, as said here.
    Done(String),
    /// It continues.
    Continues(String),
    /// It doesn't continue by itself.
    Stuck(Code, String),
}

/// Sets the version, and follows until the pods run it.
///
/// # Errors
/// If the volume isn't there, the version is refused or doesn't work, or it takes too long.
pub async fn run(client: Client, namespace: &str, args: &UpgradeArgs) -> Result<(), Failure> {
    let cluster = find::one(&client, namespace, &Target::parse(&args.target)?).await?;
    let (name, api) = (cluster.name_str(), Api::namespaced(client, cluster.namespace_str()));
    if args.unpin {
        set_version(&api, &cluster, Value::Null).await?;
        return output::text(&format!("{name} {}\n", unpinned(&cluster)));
    }
    if let Some(version) = &args.to {
        set_version(&api, &cluster, json!(version)).await?;
        if args.no_wait {
            let text =
                format!("{name} is to run {version}; how far it is: kubectl atoll upgrade {}\n", args.target);
            return output::text(&text);
        }
    }
    follow(&api, &cluster, args).await
}

/// What becomes of a volume whose version is named no longer.
fn unpinned(cluster: &FileSystemCluster) -> String {
    let status = cluster.status.as_ref();
    let at = status.and_then(|status| status.target_version.as_deref().or(status.version.as_deref()));
    match at {
        Some(version) => format!("keeps {version} until the operator's policy upgrades it"),
        None => "runs the operator's version once it is created".to_owned(),
    }
}

async fn set_version(
    api: &Api<FileSystemCluster>,
    cluster: &FileSystemCluster,
    version: Value,
) -> Result<(), Failure> {
    // This very cluster, and not one that has taken its name meanwhile.
    let patch = Patch::Merge(json!({ "metadata": { "uid": cluster.uid() }, "spec": { "version": version } }));
    let params = PatchParams { field_manager: Some(MANAGER_KUBECTL.to_owned()), ..PatchParams::default() };
    api.patch(cluster.name_str(), &params, &patch).await.map(|_| ()).map_err(Failure::api("set spec.version"))
}

async fn follow(
    api: &Api<FileSystemCluster>,
    cluster: &FileSystemCluster,
    args: &UpgradeArgs,
) -> Result<(), Failure> {
    let (name, started) = (cluster.name_str(), Instant::now());
    let patience = Duration::from_secs(args.timeout);
    let mut last: Option<(Progress, Instant)> = None;
    loop {
        let found = api.get_opt(name).await.map_err(Failure::api("read how far the upgrade is"))?;
        let Some(found) = found.filter(|found| found.uid() == cluster.uid()) else {
            return Err(Failure::new(Code::NotFound, format_args!("{name} was deleted")));
        };
        let now = progress(&found);
        let since = last.take().filter(|(before, _)| *before == now).map(|(_, since)| since);
        let is_news = since.is_none();
        let since = since.unwrap_or_else(Instant::now);
        match &now {
            Progress::Done(text) => return output::text(&format!("{name} {text}\n")),
            Progress::Stuck(code, text) if since.elapsed() >= STUCK_MIN => {
                return Err(Failure::new(*code, text));
            }
            Progress::Continues(text) if is_news => eprintln!("{text}"),
            Progress::Stuck(..) | Progress::Continues(_) => {}
        }
        if started.elapsed() >= patience {
            let (Progress::Done(text) | Progress::Continues(text) | Progress::Stuck(_, text)) = &now;
            let message = format!(
                "the upgrade of {name} isn't done after {} s, and continues: {text}; how far it is: kubectl atoll upgrade {}",
                patience.as_secs(),
                args.target
            );
            return Err(Failure::new(Code::Failed, message));
        }
        last = Some((now, since));
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// How far the pods are from the version that they are to run.
fn progress(cluster: &FileSystemCluster) -> Progress {
    let name = cluster.name_str();
    if cluster.is_terminating() {
        return Progress::Stuck(Code::Failed, format!("{name} is being deleted"));
    }
    let status = cluster.status.clone().unwrap_or_default();
    if status.observed_generation.is_none() || status.observed_generation < cluster.metadata.generation {
        let text =
            "the operator has not observed the change yet: does it run? (kubectl -n atoll-system get pods)";
        return Progress::Continues(text.to_owned());
    }
    let condition = |kind, holds| cluster.condition(kind).filter(move |found| found.status == holds);
    let blocked = condition(ConditionType::UpgradeBlocked, "True");
    if let Some(refused) = blocked.filter(|found| REFUSALS.iter().any(|it| it.as_str() == found.reason)) {
        return Progress::Stuck(Code::Refused, refused.message.clone());
    }
    let is_pinned = cluster.spec.version.is_none() || cluster.spec.version == status.target_version;
    let version = status.version.as_deref().filter(|_| status.version == status.target_version);
    if let Some(version) = version.filter(|_| is_pinned && status.rollout.is_none()) {
        // What else there is to say: the feature level, or a policy that has another version for later.
        let said = view::upgrade(cluster).map(|said| format!("; {said}")).unwrap_or_default();
        return Progress::Done(format!("runs {version}{said}"));
    }
    if cluster.spec.paused {
        let text = format!(
            "the operator is paused for {name} and changes nothing until spec.paused is false: kubectl -n {} patch fsc {name} \
             --type merge -p '{{\"spec\": {{\"paused\": false}}}}'",
            cluster.namespace_str()
        );
        return Progress::Stuck(Code::Failed, text);
    }
    let stalled = condition(ConditionType::Stalled, "True");
    if let Some(problem) = blocked.or(stalled) {
        return Progress::Stuck(Code::Unhealthy, problem.message.clone());
    }
    let said = view::upgrade(cluster);
    Progress::Continues(said.unwrap_or_else(|| "the operator begins with it".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume whose pods run `version`, and are to run `target`.
    fn cluster(version: &str, target: &str) -> FileSystemCluster {
        serde_json::from_value(json!({
            "apiVersion": "atoll.dev/v1alpha1", "kind": "FileSystemCluster",
            "metadata": { "namespace": "ns", "name": "db", "generation": 2 },
            "spec": { "capacity": "1Gi", "version": target },
            "status": { "observedGeneration": 2, "version": version, "targetVersion": target },
        }))
        .expect("a cluster")
    }

    fn says(mut cluster: FileSystemCluster, kind: &str, status: &str, reason: &str) -> FileSystemCluster {
        let condition = serde_json::from_value(json!({
            "type": kind, "status": status, "reason": reason, "message": "because",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }));
        cluster.status.get_or_insert_default().conditions.push(condition.expect("a condition"));
        cluster
    }

    fn rolls(mut cluster: FileSystemCluster) -> FileSystemCluster {
        let rollout = json!({ "updated": 2, "pods": 6, "summary": "2/6" });
        cluster.status.get_or_insert_default().rollout =
            Some(serde_json::from_value(rollout).expect("a rollout"));
        cluster
    }

    #[test]
    fn it_is_done_when_all_pods_run_the_version() {
        assert_eq!(progress(&cluster("0.2.0", "0.2.0")), Progress::Done("runs 0.2.0".into()));
        let waits = says(cluster("0.2.0", "0.2.0"), "UpgradeBlocked", "False", "FeatureLevelWaiting");
        assert_eq!(progress(&waits), Progress::Done("runs 0.2.0; because".into()));
        // The last pod is still to come back.
        assert!(matches!(progress(&rolls(cluster("0.2.0", "0.2.0"))), Progress::Continues(_)));
        let mut unseen = cluster("0.2.0", "0.2.0");
        unseen.metadata.generation = Some(3);
        assert!(
            matches!(progress(&unseen), Progress::Continues(text) if text.contains("not observed")),
            "the status is about what was before"
        );
        let mut new = cluster("0.2.0", "0.2.0");
        new.status = None;
        assert!(matches!(progress(&new), Progress::Continues(_)));
        // The operator hasn't taken it over yet.
        let mut asked = cluster("0.1.0", "0.1.0");
        asked.spec.version = Some("0.2.0".into());
        assert!(matches!(progress(&asked), Progress::Continues(_)));
    }

    #[test]
    fn it_is_said_how_far_it_is() {
        let seen = rolls(cluster("0.1.0", "0.2.0"));
        assert_eq!(progress(&seen), Progress::Continues("0.1.0 -> 0.2.0: 2/6 pods are done".into()));
        let seen = says(seen, "UpgradeBlocked", "False", "RollingOut");
        assert_eq!(progress(&seen), Progress::Continues("0.1.0 -> 0.2.0: because".into()));
        // A policy has something for later, and nothing is in progress.
        let mut seen = says(cluster("0.1.0", "0.1.0"), "UpgradeBlocked", "False", "UpgradeWaiting");
        seen.spec.version = None;
        assert_eq!(progress(&seen), Progress::Done("runs 0.1.0; because".into()));
    }

    #[test]
    fn what_does_not_continue_by_itself_ends_with_the_reason() {
        let stuck = |code| Progress::Stuck(code, "because".into());
        for reason in REFUSALS {
            let mut seen = says(cluster("0.1.0", "0.1.0"), "UpgradeBlocked", "True", reason.as_str());
            seen.spec.version = Some("9.0.0".into());
            assert_eq!(progress(&seen), stuck(Code::Refused));
        }
        let going = || rolls(cluster("0.1.0", "0.2.0"));
        let seen = says(going(), "UpgradeBlocked", "True", "ImageUnavailable");
        assert_eq!(progress(&seen), stuck(Code::Unhealthy));
        assert_eq!(progress(&says(going(), "Stalled", "True", "ReplacementBlocked")), stuck(Code::Unhealthy));
        let mut paused = going();
        paused.spec.paused = true;
        assert!(matches!(progress(&paused), Progress::Stuck(Code::Failed, text) if text.contains("paused")));
        // Whatever else is wrong, this one runs the version.
        let seen = says(cluster("0.2.0", "0.2.0"), "Stalled", "True", "ReplacementBlocked");
        assert!(matches!(progress(&seen), Progress::Done(_)));
    }

    #[test]
    fn a_volume_whose_version_is_named_no_longer_keeps_it() {
        assert!(unpinned(&cluster("0.1.0", "0.2.0")).contains("keeps 0.2.0"));
        let mut new = cluster("0.1.0", "0.2.0");
        new.status = None;
        assert!(unpinned(&new).contains("once it is created"));
    }
}
