//! Which version the pods are to run, and from when on the volume may have what only that version knows.

use atoll_crds::v1alpha1::Reason;
use atoll_proto::admin::RaiseFeatureLevel;

use super::{Action, is_made, roll};
use crate::config::VERSION;
use crate::observe::Observed;
use crate::policy::Offer;
use crate::validate::{Problem, Wanted};
use crate::version::{is_later, is_of_earlier_release, skips_a_release};

/// What becomes of the version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// The pods are to run what they are told to run.
    Stay,
    /// They are to run this version from now on.
    Move(String),
    /// Another one was asked for, and has to wait.
    Wait(Problem),
    /// Another one was asked for, and can't be.
    Refuse(Problem),
}

/// What is asked for, and whether it may be. `wanted` has the version that the pods are told to run.
pub fn intent(seen: &Observed, wanted: &Wanted) -> Intent {
    let at = wanted.version.as_str();
    let asked = match (&seen.cluster.spec.version, &seen.upgrade.offer) {
        (Some(asked), _) => asked,
        (None, Offer::Now(version)) => version,
        (None, Offer::Wait(why)) => return Intent::Wait(Problem::new(Reason::UpgradeWaiting, why.clone())),
        (None, Offer::Nothing) => return Intent::Stay,
    };
    if asked == at {
        return Intent::Stay;
    }
    if let Some(refusal) = refusal(seen, at, asked) {
        return Intent::Refuse(refusal);
    }
    // By itself nothing begins in a cluster that isn't well. Whoever names a version may mean it as the remedy, and pods that
    // work are left alone until all is well.
    if seen.cluster.spec.version.is_none()
        && let Some(why) = roll::unwell(seen, wanted)
    {
        let message = format!("the upgrade to {asked} waits until the cluster is healthy: {why}");
        return Intent::Wait(Problem::new(Reason::UpgradeWaiting, message));
    }
    Intent::Move(asked.clone())
}

/// Why pods that run `at` may not be told to run `asked`.
fn refusal(seen: &Observed, at: &str, asked: &str) -> Option<Problem> {
    let refused = |message: String| Some(Problem::new(Reason::VersionRefused, message));
    if !seen.upgrade.versions.iter().any(|known| known == asked) {
        let message = format!(
            "spec.version: this operator has no image of {asked}, only of {}; choose one of them, or upgrade the operator; the \
             pods stay at {at}",
            seen.upgrade.versions.join(", ")
        );
        return Some(Problem::new(Reason::UnknownVersion, message));
    }
    if is_later(asked, VERSION) {
        return refused(format!(
            "spec.version: {asked} is later than the operator, which has {VERSION} and doesn't know what later versions need: \
             upgrade the operator first; the pods stay at {at}"
        ));
    }
    if !is_made(seen) {
        return None;
    }
    if let Some(floor) = min_version(seen, at).filter(|floor| is_of_earlier_release(asked, floor)) {
        return refused(format!(
            "spec.version: {asked} can't read the disks any more, since the volume's feature level was raised with {floor}: \
             choose {floor} or a later version; the pods stay at {at}"
        ));
    }
    if skips_a_release(at, asked) {
        return refused(format!(
            "spec.version: servers of {at} and {asked} don't understand each other, since there is a release between them: \
             upgrade to that one first; the pods stay at {at}"
        ));
    }
    None
}

/// The oldest version that can read the disks, as far as it is known. A level that was raised since the status was written was
/// raised with the version that the pods are told to run.
pub fn min_version(seen: &Observed, at: &str) -> Option<String> {
    let status = seen.cluster.status.as_ref();
    let recorded = status.and_then(|status| status.feature_level).unwrap_or(1);
    let has = seen.answer().map_or(0, |answer| answer.feature_level);
    if has > recorded.max(1) {
        return Some(at.to_owned());
    }
    status.and_then(|status| status.min_version.clone())
}

/// The level that is due, if nothing else is: all pods run the version, all are well, and everybody knows it.
pub fn raise(seen: &Observed, wanted: &Wanted) -> Option<Action> {
    let level = level_due(seen)?;
    let answer = seen.answer().filter(|answer| answer.is_leader)?;
    let known = answer.feature_level_max >= level;
    let settled = intent(seen, wanted) == Intent::Stay && roll::unwell(seen, wanted).is_none();
    (known && settled).then_some(Action::RaiseFeatureLevel(RaiseFeatureLevel { level }))
}

/// The level above the volume's that it may have. An operator raises none that it doesn't know itself.
fn level_due(seen: &Observed) -> Option<u32> {
    let answer = seen.answer().filter(|answer| answer.cluster.is_some() && answer.feature_level > 0)?;
    let limit = seen.cluster.spec.feature_level_max.unwrap_or(u32::MAX);
    let level =
        seen.upgrade.feature_level.min(limit).min(answer.feature_level_max.max(answer.feature_level + 1));
    (level > answer.feature_level).then_some(level)
}

/// Who keeps the level from being raised, once all pods run the version.
pub fn level_waits(seen: &Observed) -> Option<Problem> {
    let level = level_due(seen)?;
    let answer = seen.answer().filter(|answer| answer.is_leader && answer.feature_level_max < level)?;
    let message = format!(
        "feature level {level} is raised, and earlier versions are out of reach, once everybody knows it; these are still to be \
         upgraded or restarted: {}",
        answer.behind.join(", ")
    );
    (!answer.behind.is_empty()).then(|| Problem::new(Reason::FeatureLevelWaiting, message))
}

#[cfg(test)]
mod tests;
