//! Events: one for each transition, none for what goes on.

use atoll_crds::v1alpha1::{ConditionType, FileSystemClusterStatus, Phase, Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};

/// Characters of a note at most (the API server takes a kilobyte).
const NOTE_CHARS_MAX: usize = 900;

/// What has changed between two statuses, as Events tell it.
pub fn transitions(before: &FileSystemClusterStatus, after: &FileSystemClusterStatus) -> Vec<Event> {
    let mut events = Vec::new();
    let of = |status: &FileSystemClusterStatus, kind: ConditionType| {
        status.conditions.iter().find(|found| found.type_ == kind.as_str()).cloned()
    };
    // The one thing that is said of a resource that goes, and whenever there is another reason.
    if let Some(is) = of(after, ConditionType::DeletionBlocked).filter(|is| is.status == "True") {
        let was = of(before, ConditionType::DeletionBlocked);
        if was.is_none_or(|was| (was.status, was.reason) != (is.status, is.reason)) {
            events.push(event(EventType::Warning, ConditionType::DeletionBlocked.as_str(), is.message));
        }
    }
    if before.phase == Some(Phase::Deleting) {
        return events;
    }
    if after.bootstrapped && !before.bootstrapped {
        let id = after.cluster_id.as_deref().unwrap_or_default();
        events.push(event(
            EventType::Normal,
            "VolumeMade",
            format!("the volume of cluster {id} was created"),
        ));
    }
    let ready = (of(before, ConditionType::Ready), of(after, ConditionType::Ready));
    if let (was, Some(is)) = ready {
        let was_true = was.as_ref().is_some_and(|was| was.status == "True");
        match (was_true, is.status == "True") {
            (false, true) => events.push(event(EventType::Normal, "Ready", is.message)),
            (true, false) if after.phase != Some(Phase::Deleting) => {
                events.push(event(EventType::Warning, &is.reason, is.message));
            }
            _ => {}
        }
    }
    if let (was, Some(is)) = (of(before, ConditionType::Degraded), of(after, ConditionType::Degraded)) {
        let was_so = was.as_ref().is_some_and(|was| was.status == "True");
        let reason_changed = was.as_ref().is_some_and(|was| was.reason != is.reason);
        let told = events.iter().any(|event| event.reason == is.reason);
        match (was_so, is.status == "True") {
            (false, true) if !told => events.push(event(EventType::Warning, &is.reason, is.message)),
            (true, true) if reason_changed && !told => {
                events.push(event(EventType::Warning, &is.reason, is.message));
            }
            (true, false) if after.phase == Some(Phase::Ready) => {
                events.push(event(EventType::Normal, "Recovered", is.message));
            }
            _ => {}
        }
    }
    events.extend(expansion(before, after, of));
    events.extend(removal(before, after, of));
    events.extend(versions(before, after, of));
    events
}

/// What is said of pods that get another version.
fn versions(
    before: &FileSystemClusterStatus,
    after: &FileSystemClusterStatus,
    of: impl Fn(&FileSystemClusterStatus, ConditionType) -> Option<Condition> + Copy,
) -> Vec<Event> {
    let mut events = Vec::new();
    let kind = ConditionType::UpgradeBlocked;
    let words = |found: &Condition| (found.status.clone(), found.reason.clone());
    if let Some(is) = of(after, kind).filter(|is| is.status == "True")
        && of(before, kind).is_none_or(|was| words(&was) != words(&is))
    {
        events.push(event(EventType::Warning, kind.as_str(), is.message));
    }
    if let (Some(was), Some(is)) = (&before.version, &after.version)
        && was != is
    {
        events.push(event(
            EventType::Normal,
            "VersionChanged",
            format!("all pods ran {was} or later, and run {is} now"),
        ));
    }
    if let (Some(was), Some(is)) = (before.feature_level, after.feature_level)
        && was < is
    {
        let floor = after.min_version.as_deref().unwrap_or_default();
        let note =
            format!("the volume's feature level is {is}: versions before {floor} can't be run any more");
        events.push(event(EventType::Normal, "FeatureLevelRaised", note));
    }
    events
}

/// What is said of a volume that gets another size.
fn expansion(
    before: &FileSystemClusterStatus,
    after: &FileSystemClusterStatus,
    of: impl Fn(&FileSystemClusterStatus, ConditionType) -> Option<Condition> + Copy,
) -> Vec<Event> {
    let mut events = Vec::new();
    let kind = ConditionType::ExpansionPending;
    let words = |found: &Condition| (found.status.clone(), found.reason.clone());
    if let Some(is) = of(after, kind).filter(|is| is.status == "True")
        && of(before, kind).is_none_or(|was| words(&was) != words(&is))
    {
        let passes = [Reason::ResizingDisks, Reason::AddingServers, Reason::ResizingVolume];
        let passes = passes.iter().any(|reason| reason.as_str() == is.reason);
        let severity = if passes { EventType::Normal } else { EventType::Warning };
        events.push(event(severity, &is.reason, is.message));
    }
    if let (Some(was), Some(is)) = (&before.capacity, &after.capacity)
        && was.bytes() != is.bytes()
    {
        events.push(event(
            EventType::Normal,
            "VolumeResized",
            format!("the volume had {was}, and has {is} now"),
        ));
    }
    events
}

/// What is said of servers that go.
fn removal(
    before: &FileSystemClusterStatus,
    after: &FileSystemClusterStatus,
    of: impl Fn(&FileSystemClusterStatus, ConditionType) -> Option<Condition>,
) -> Option<Event> {
    let kind = ConditionType::Progressing;
    let is = of(after, kind)?;
    let severity = match &is.reason {
        reason if reason == Reason::ShrinkBlocked.as_str() => EventType::Warning,
        reason if reason == Reason::DrainingServers.as_str() => EventType::Normal,
        _ => return None,
    };
    let is_news = of(before, kind).is_none_or(|was| was.reason != is.reason);
    is_news.then(|| event(severity, &is.reason, is.message))
}

/// One Event.
pub fn event(kind: EventType, reason: &str, note: String) -> Event {
    Event {
        type_: kind,
        reason: reason.to_owned(),
        note: Some(note.chars().take(NOTE_CHARS_MAX).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use atoll_crds::v1alpha1::conditions;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn status(ready: bool, degraded: Option<Reason>) -> FileSystemClusterStatus {
        let mut status = FileSystemClusterStatus { bootstrapped: ready, ..Default::default() };
        let now = || Time(Timestamp::UNIX_EPOCH);
        let words = (if ready { Reason::Serving } else { Reason::MetadataUnreachable }, "r");
        conditions::set(&mut status.conditions, ConditionType::Ready, ready, words, None, now());
        let words = (degraded.unwrap_or(Reason::AsSpecified), "d");
        conditions::set(
            &mut status.conditions,
            ConditionType::Degraded,
            degraded.is_some(),
            words,
            None,
            now(),
        );
        status.phase = Some(if ready { Phase::Ready } else { Phase::Unavailable });
        status
    }

    fn reasons(before: &FileSystemClusterStatus, after: &FileSystemClusterStatus) -> Vec<String> {
        transitions(before, after).into_iter().map(|event| event.reason).collect()
    }

    #[test]
    fn events_tell_of_transitions_alone() {
        let (new, well) = (FileSystemClusterStatus::default(), status(true, None));
        assert_eq!(reasons(&new, &well), ["VolumeMade", "Ready"]);
        assert_eq!(reasons(&well, &well), Vec::<String>::new());
        let ill = status(true, Some(Reason::Unhealthy));
        assert_eq!(reasons(&well, &ill), ["Unhealthy"]);
        assert_eq!(reasons(&ill, &ill), Vec::<String>::new());
        assert_eq!(reasons(&ill, &status(true, Some(Reason::PodsFailing))), ["PodsFailing"]);
        assert_eq!(reasons(&ill, &well), ["Recovered"]);
        let mut small = well.clone();
        small.capacity = Some("1Gi".into());
        assert_eq!(reasons(&well, &small), Vec::<String>::new());
        let mut grows = small.clone();
        let now = Time(Timestamp::UNIX_EPOCH);
        let kind = ConditionType::ExpansionPending;
        conditions::set(&mut grows.conditions, kind, true, (Reason::ResizingDisks, "g"), None, now.clone());
        assert_eq!(reasons(&small, &grows), ["ResizingDisks"]);
        assert_eq!(reasons(&grows, &grows), Vec::<String>::new());
        let mut large = small.clone();
        large.capacity = Some("2Gi".into());
        conditions::set(&mut large.conditions, kind, false, (Reason::AsSpecified, ""), None, now);
        assert_eq!(reasons(&grows, &large), ["VolumeResized"]);
        let mut drains = well.clone();
        let now = Time(Timestamp::UNIX_EPOCH);
        let kind = ConditionType::Progressing;
        conditions::set(
            &mut drains.conditions,
            kind,
            true,
            (Reason::DrainingServers, "d"),
            None,
            now.clone(),
        );
        assert_eq!(reasons(&well, &drains), ["DrainingServers"]);
        assert_eq!(reasons(&drains, &drains), Vec::<String>::new());
        let mut stuck = drains.clone();
        conditions::set(&mut stuck.conditions, kind, false, (Reason::ShrinkBlocked, "s"), None, now);
        assert_eq!(reasons(&drains, &stuck), ["ShrinkBlocked"]);
        assert_eq!(reasons(&stuck, &well), Vec::<String>::new());
        let mut blocked = well.clone();
        blocked.phase = Some(Phase::Deleting);
        let now = Time(Timestamp::UNIX_EPOCH);
        let kind = ConditionType::DeletionBlocked;
        conditions::set(&mut blocked.conditions, kind, true, (Reason::Mounted, "m"), None, now.clone());
        assert_eq!(reasons(&well, &blocked), ["DeletionBlocked"]);
        assert_eq!(reasons(&blocked, &blocked), Vec::<String>::new());
        let mut other = blocked.clone();
        conditions::set(&mut other.conditions, kind, true, (Reason::ReferencedByVolume, "v"), None, now);
        assert_eq!(reasons(&blocked, &other), ["DeletionBlocked"]);
        let mut down = status(false, Some(Reason::MetadataUnreachable));
        down.bootstrapped = true;
        assert_eq!(reasons(&well, &down), ["MetadataUnreachable"]);
    }
}
