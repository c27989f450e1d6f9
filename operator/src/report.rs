//! The status, from what was seen and judged. Pure; `apply` writes it, and only if it differs.

use std::time::Duration;

use atoll_crds::Quantity;
use atoll_crds::names::{Component, annotations};
use atoll_crds::v1alpha1::status::CLIENTS_LISTED_MAX;
use atoll_crds::v1alpha1::{
    ClientStatus, ConditionStatus, ConditionType, FileSystemClusterStatus, MemberStatus, MetadataStatus,
    RolloutStatus, ServerStatus, StorageStatus, UsageStatus, conditions,
};
use atoll_proto::metadata::ClusterStatus;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::observe::{Observed, annotation, is_ready};
use crate::plan::{min_version, outdated, smallest_disk};
use crate::state::{Assessment, Verdict};
use crate::validate::{Problem, Wanted};
use crate::version::oldest;

/// What follows live use is written at most this often…
pub const LIVE_PERIOD: Duration = Duration::from_secs(60);
/// …or when it changed by this part of the whole.
const LIVE_PART: i64 = 20;

/// The status as it shall be.
pub fn status(
    seen: &Observed,
    wanted: &Result<Wanted, Problem>,
    assessment: &Assessment,
    now: Time,
) -> FileSystemClusterStatus {
    let before = seen.cluster.status.clone().unwrap_or_default();
    let generation = seen.cluster.metadata.generation;
    let mut status = FileSystemClusterStatus {
        observed_generation: generation,
        phase: Some(assessment.phase),
        ..before.clone()
    };
    for kind in ConditionType::ALL {
        let verdict = match kind {
            ConditionType::Ready => Some(&assessment.ready),
            ConditionType::Available => {
                let (verdict, is_known) = match &assessment.available {
                    Some(verdict) => (verdict, true),
                    None => (&assessment.ready, false),
                };
                let known = if is_known { verdict.holds.into() } else { ConditionStatus::Unknown };
                let words = (verdict.reason, verdict.message.as_str());
                conditions::set(&mut status.conditions, kind, known, words, generation, now.clone());
                continue;
            }
            ConditionType::Progressing => Some(&assessment.progressing),
            ConditionType::Degraded => Some(&assessment.degraded),
            ConditionType::ExpansionPending => assessment.expansion.as_ref(),
            ConditionType::UpgradeBlocked => assessment.upgrade_blocked.as_ref(),
            ConditionType::PlacementDegraded => assessment.placement.as_ref(),
            ConditionType::DeletionBlocked => assessment.deletion_blocked.as_ref(),
            ConditionType::NameConflict => assessment.name_conflict.as_ref(),
            ConditionType::Reconciling => Some(&assessment.progressing).filter(|verdict| verdict.holds),
            ConditionType::Stalled => assessment.stalled.as_ref(),
        };
        let Some(Verdict { holds, reason, message }) = verdict else {
            conditions::clear(&mut status.conditions, kind);
            continue;
        };
        let words = (*reason, message.as_str());
        conditions::set(&mut status.conditions, kind, *holds, words, generation, now.clone());
    }
    if let Ok(wanted) = wanted {
        if status.cluster_id.is_some() {
            status.target_version = Some(wanted.version.clone());
        }
        status.version = running_version(seen, before.version.as_deref().or(Some(&wanted.version)));
        status.rollout = rollout(seen, wanted, before.rollout.is_some());
        status.metadata = Some(metadata(seen, wanted, before.metadata.as_ref()));
        status.storage = Some(storage(seen, wanted, before.storage.as_ref()));
    }
    if let Some(answer) = seen.answer() {
        let ours = answer.cluster.is_some() && answer.cluster == seen.cluster_id();
        status.bootstrapped |= ours;
        if ours && answer.feature_level > 0 {
            let at = status.target_version.as_deref().unwrap_or_default();
            status.min_version = min_version(seen, at);
            status.feature_level = Some(answer.feature_level);
        }
        if ours {
            status.capacity = Some(Quantity::from_bytes(answer.volume.bytes_total));
        }
        if ours && answer.is_leader {
            status.usage = Some(usage(answer));
            status.client_count = signed(answer.sessions.len() as u64);
            status.clients = clients(answer);
        }
    }
    status
}

/// The oldest version among the pods. `said`: what was known of those that don't say it.
fn running_version(seen: &Observed, said: Option<&str>) -> Option<String> {
    let of = |pod: &Pod| annotation(&pod.metadata, annotations::VERSION).or(said).map(str::to_owned);
    let versions: Vec<String> =
        Component::ALL.into_iter().flat_map(|component| seen.pods_of(component)).filter_map(of).collect();
    oldest(versions.iter().map(String::as_str)).or(said).map(str::to_owned)
}

/// How far pods are made anew. `goes_on`: it was going on.
fn rollout(seen: &Observed, wanted: &Wanted, goes_on: bool) -> Option<RolloutStatus> {
    let outdated: Vec<&Pod> =
        Component::ALL.into_iter().flat_map(|component| outdated(seen, component)).collect();
    let all = Component::ALL.into_iter().flat_map(|component| seen.pods_of(component));
    let is_old = |pod: &&Pod| outdated.iter().any(|old| old.metadata.name == pod.metadata.name);
    let updated = all.filter(|pod| is_ready(pod) && !is_old(pod)).count();
    let pods: usize =
        Component::ALL.into_iter().map(|component| usize::from(wanted.workload(component).replicas)).sum();
    let shown = !outdated.is_empty() || (goes_on && updated < pods);
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    shown.then(|| RolloutStatus {
        updated: number(updated),
        pods: number(pods),
        summary: format!("{updated}/{pods}"),
    })
}

fn ready_pods(seen: &Observed, component: Component) -> i32 {
    i32::try_from(seen.pods_of(component).filter(|pod| is_ready(pod)).count()).unwrap_or(i32::MAX)
}

fn disk_size(seen: &Observed, component: Component) -> Option<Quantity> {
    smallest_disk(seen, component).map(Quantity::from_bytes)
}

fn metadata(seen: &Observed, wanted: &Wanted, before: Option<&MetadataStatus>) -> MetadataStatus {
    let replicas = i32::from(wanted.workload(Component::Metadata).replicas);
    let ready = ready_pods(seen, Component::Metadata);
    let before = before.cloned().unwrap_or_default();
    let (leader, members) = match seen.answer() {
        Some(answer) => (
            answer.leader.as_ref().map(|(member, _)| member.to_string()),
            answer
                .members
                .iter()
                .map(|member| MemberStatus { id: member.member.to_string(), address: member.address.clone() })
                .collect(),
        ),
        None => (None, before.members),
    };
    let disk_size = disk_size(seen, Component::Metadata);
    MetadataStatus { replicas, ready, summary: format!("{ready}/{replicas}"), disk_size, leader, members }
}

fn storage(seen: &Observed, wanted: &Wanted, before: Option<&StorageStatus>) -> StorageStatus {
    let replicas = i32::from(wanted.workload(Component::Storage).replicas);
    let ready = ready_pods(seen, Component::Storage);
    let mut status = StorageStatus {
        replicas,
        ready,
        summary: format!("{ready}/{replicas}"),
        disk_size: disk_size(seen, Component::Storage),
        ..before.cloned().unwrap_or_default()
    };
    if let Some(answer) = seen.answer().filter(|answer| answer.is_leader) {
        status.chunks = signed(answer.chunks);
        status.chunks_short_of_copies = signed(answer.chunks_short);
        status.servers = answer
            .servers
            .iter()
            .map(|server| ServerStatus {
                id: server.server.to_string(),
                address: server.address.clone(),
                alive: server.alive,
                bytes_total: signed(server.capacity),
                bytes_used: signed(server.used),
                chunks: signed(server.chunks),
            })
            .collect();
        status.servers.sort_by(|one, other| one.address.cmp(&other.address));
    }
    status
}

fn usage(answer: &ClusterStatus) -> UsageStatus {
    UsageStatus {
        bytes_total: signed(answer.volume.bytes_total),
        bytes_used: signed(answer.volume.bytes_used),
        inodes_total: signed(answer.volume.inodes_total),
        inodes_used: signed(answer.volume.inodes_used),
        used: for_people(answer.volume.bytes_used),
    }
}

fn clients(answer: &ClusterStatus) -> Vec<ClientStatus> {
    let mut clients: Vec<ClientStatus> = answer
        .sessions
        .iter()
        .map(|session| ClientStatus {
            session: session.session.to_string(),
            name: session.client.clone(),
            open_files: signed(session.open_files),
        })
        .collect();
    clients.sort_by(|one, other| (&one.name, &one.session).cmp(&(&other.name, &other.session)));
    clients.truncate(CLIENTS_LISTED_MAX);
    clients
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn for_people(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "Ki", "Mi", "Gi", "Ti", "Pi"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes}B") } else { format!("{value:.1}{unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1}Ei")
}

/// Leaves what follows live use as it was, unless it is due or has changed much. `since` is how long ago such
/// values were written; none: not by this process.
pub fn settle(
    before: &FileSystemClusterStatus,
    mut after: FileSystemClusterStatus,
    since: Option<Duration>,
) -> FileSystemClusterStatus {
    if since.is_none_or(|since| since >= LIVE_PERIOD) || differs_much(before, &after) {
        return after;
    }
    after.usage.clone_from(&before.usage);
    if let (Some(after), Some(before)) = (&mut after.storage, &before.storage) {
        after.chunks = before.chunks;
        for server in &mut after.servers {
            if let Some(before) = before.servers.iter().find(|before| before.id == server.id) {
                (server.bytes_total, server.bytes_used) = (before.bytes_total, before.bytes_used);
                server.chunks = before.chunks;
            }
        }
    }
    for client in &mut after.clients {
        if let Some(before) = before.clients.iter().find(|before| before.session == client.session) {
            client.open_files = before.open_files;
        }
    }
    // Messages count seconds and chunks; one in other words is news.
    for condition in &mut after.conditions {
        let same = before.conditions.iter().find(|before| {
            before.type_ == condition.type_
                && before.status == condition.status
                && before.reason == condition.reason
                && before.observed_generation == condition.observed_generation
                && words(&before.message).eq(words(&condition.message))
        });
        if let Some(same) = same {
            condition.message.clone_from(&same.message);
        }
    }
    after
}

/// A message without its numbers.
fn words(message: &str) -> impl Iterator<Item = char> {
    message.chars().filter(|letter| !letter.is_ascii_digit())
}

/// What follows live use changed by a twentieth of what there is, or is seen for the first time.
fn differs_much(before: &FileSystemClusterStatus, after: &FileSystemClusterStatus) -> bool {
    match (&before.usage, &after.usage) {
        (None, None) => false,
        (None, Some(_)) | (Some(_), None) => true,
        (Some(before), Some(after)) => {
            let far = |one: i64, other: i64, total: i64| (one - other).abs() > (total / LIVE_PART).max(0);
            before.bytes_total != after.bytes_total
                || before.inodes_total != after.inodes_total
                || far(before.bytes_used, after.bytes_used, after.bytes_total)
                || far(before.inodes_used, after.inodes_used, after.inodes_total)
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::config::VERSION;
    use crate::plan::plan;
    use crate::state::assess;
    use crate::testing;

    fn report(seen: &Observed) -> FileSystemClusterStatus {
        let wanted = Ok(testing::wanted("1Gi"));
        let plan = plan(seen, &wanted, testing::FRESH);
        status(seen, &wanted, &assess(seen, &wanted, &plan), Time(Timestamp::UNIX_EPOCH))
    }

    #[test]
    fn the_status_says_what_there_is() {
        let seen = testing::running();
        let status = report(&seen);
        assert!(status.bootstrapped);
        assert_eq!(status.metadata.as_ref().expect("metadata").summary, "3/3");
        assert_eq!(status.storage.as_ref().expect("storage").summary, "3/3");
        assert_eq!(status.storage.as_ref().expect("storage").servers.len(), 3);
        assert_eq!(status.usage.as_ref().expect("usage").bytes_total, 1 << 30);
        assert_eq!((status.client_count, status.clients[0].name.as_str()), (1, "node-1"));
        assert_eq!(status.observed_generation, Some(1));
        let said: Vec<_> =
            status.conditions.iter().map(|found| (found.type_.as_str(), found.status.as_str())).collect();
        let expected = [
            ("Ready", "True"),
            ("Available", "True"),
            ("Progressing", "False"),
            ("Degraded", "False"),
            ("ExpansionPending", "False"),
        ];
        assert_eq!(said, expected);
        assert!(status.conditions.iter().all(|found| found.observed_generation == Some(1)));
        assert_eq!(status.capacity, Some("1Gi".into()));
    }

    #[test]
    fn the_version_is_that_of_the_oldest_pod_and_the_target_is_said_beside_it() {
        let mut seen = testing::running();
        let said = report(&seen);
        assert_eq!((said.version.as_deref(), said.rollout.clone()), (Some(VERSION), None));
        assert_eq!(said.target_version.as_deref(), Some(VERSION));
        testing::with_status(&mut seen, FileSystemClusterStatus { version: Some("0.0.9".into()), ..said });
        // Pods that say nothing run what was known.
        assert_eq!(report(&seen).version.as_deref(), Some("0.0.9"));
        let says = |seen: &mut Observed, version: &str| {
            for pod in seen.pods.values_mut() {
                pod.metadata.annotations =
                    Some([(annotations::VERSION.to_owned(), version.to_owned())].into_iter().collect());
            }
        };
        says(&mut seen, VERSION);
        assert_eq!(report(&seen).version.as_deref(), Some(VERSION));
        for set in seen.statefulsets.values_mut() {
            set.status.as_mut().expect("status").update_revision = Some("db-2".into());
        }
        let rollout = report(&seen).rollout.expect("pods are old");
        assert_eq!((rollout.updated, rollout.pods, rollout.summary.as_str()), (0, 6, "0/6"));
    }

    #[test]
    fn a_level_that_was_raised_is_written_with_the_version_below_which_there_is_no_way_back() {
        let mut seen = testing::running();
        testing::answer(&mut seen).feature_level = 1;
        let first = report(&seen);
        assert_eq!((first.feature_level, first.min_version.clone()), (Some(1), None));
        testing::with_status(&mut seen, first);
        testing::answer(&mut seen).feature_level = 2;
        let raised = report(&seen);
        assert_eq!((raised.feature_level, raised.min_version.as_deref()), (Some(2), Some(VERSION)));
        // A server that doesn't say it changes nothing.
        testing::with_status(&mut seen, raised.clone());
        testing::answer(&mut seen).feature_level = 0;
        assert_eq!(report(&seen).min_version, raised.min_version);
    }

    #[test]
    fn a_second_look_at_the_same_thing_changes_nothing() {
        let mut seen = testing::running();
        let first = report(&seen);
        testing::with_status(&mut seen, first.clone());
        assert_eq!(settle(&first, report(&seen), Some(Duration::from_secs(5))), first);
    }

    #[test]
    fn live_use_is_written_once_a_minute_or_when_it_changed_much() {
        let mut seen = testing::running();
        let first = report(&seen);
        testing::with_status(&mut seen, first.clone());
        testing::answer(&mut seen).volume.bytes_used += 1 << 20;
        testing::answer(&mut seen).sessions[0].open_files += 1;
        testing::answer(&mut seen).servers[0].used += 5;
        let soon = Some(Duration::from_secs(5));
        assert_eq!(settle(&first, report(&seen), soon), first);
        assert_ne!(settle(&first, report(&seen), Some(LIVE_PERIOD)), first);
        assert_ne!(settle(&first, report(&seen), None), first);
        testing::answer(&mut seen).volume.bytes_used += 100 << 20;
        assert_ne!(settle(&first, report(&seen), soon), first);
    }

    #[test]
    fn a_message_in_other_words_is_written_at_once_and_one_with_other_numbers_is_not() {
        let mut seen = testing::running();
        let first = report(&seen);
        let mut other = first.clone();
        let said = |status: &mut FileSystemClusterStatus, message: &str| {
            status.conditions[3].message = message.to_owned();
        };
        said(&mut other, "a server is away for 7 s");
        testing::with_status(&mut seen, other.clone());
        assert_eq!(settle(&other, report(&seen), Some(Duration::ZERO)), first);
        let mut later = other.clone();
        said(&mut later, "a server is away for 12 s");
        assert_eq!(settle(&other, later, Some(Duration::ZERO)), other);
    }

    #[test]
    fn mounts_and_transitions_are_written_at_once() {
        let mut seen = testing::running();
        let first = report(&seen);
        testing::with_status(&mut seen, first.clone());
        testing::answer(&mut seen).sessions.clear();
        let after = settle(&first, report(&seen), Some(Duration::ZERO));
        assert_eq!((after.client_count, after.clients.len()), (0, 0));
        testing::answer(&mut seen).servers[0].alive = false;
        let after = settle(&first, report(&seen), Some(Duration::ZERO));
        assert!(!after.storage.expect("storage").servers[0].alive);
    }

    #[test]
    fn a_follower_knows_nothing_of_use_and_mounts() {
        let mut seen = testing::running();
        let first = report(&seen);
        testing::with_status(&mut seen, first.clone());
        let answer = testing::answer(&mut seen);
        (answer.is_leader, answer.servers, answer.sessions) = (false, Vec::new(), Vec::new());
        let after = report(&seen);
        assert_eq!(after.usage, first.usage);
        assert_eq!(after.clients, first.clients);
        assert_eq!(after.storage.expect("storage").servers.len(), 3);
    }

    #[test]
    fn bytes_are_shown_for_people() {
        for (bytes, text) in
            [(0, "0B"), (1023, "1023B"), (1536, "1.5Ki"), (10 << 30, "10.0Gi"), (u64::MAX, "16.0Ei")]
        {
            assert_eq!(for_people(bytes), text);
        }
    }
}
