//! Versions, as a table: what is asked for, and what becomes of it.

use super::*;
use crate::plan::tests::does;
use crate::testing::versions::NEXT_LEVEL;
use crate::testing::{self, ID};
use crate::validate::validate;

const OLD: &str = "0.0.9";

/// A cluster whose pods run a version, of an operator that has images of some.
fn runs(version: &str) -> Observed {
    let mut seen = testing::running();
    testing::change(&mut seen, |cluster| {
        let status = cluster.status.get_or_insert_default();
        status.target_version = Some(version.into());
    });
    seen.upgrade.versions =
        vec![OLD.into(), VERSION.into(), "0.0.8".into(), "99.0.0".into(), "nightly".into()];
    seen
}

fn asks(mut seen: Observed, version: &str) -> Observed {
    testing::change(&mut seen, |cluster| cluster.spec.version = Some(version.into()));
    testing::mark_all(&mut seen);
    seen
}

fn intended(seen: &Observed) -> Intent {
    let running = seen.running_image().or(Some((OLD.to_owned(), "r/a:0.0.9".to_owned())));
    let wanted = validate(&seen.cluster, &testing::images().with(running)).expect("valid");
    intent(seen, &wanted)
}

fn refuses(seen: &Observed, reason: Reason, text: &str) {
    let Intent::Refuse(problem) = intended(seen) else { panic!("{:?}", intended(seen)) };
    assert_eq!(problem.reason, reason);
    assert!(problem.message.contains(text), "{}", problem.message);
}

#[test]
fn pods_run_what_they_are_told_to_whatever_the_operator_is() {
    assert_eq!(intended(&runs(OLD)), Intent::Stay);
    assert_eq!(intended(&runs(VERSION)), Intent::Stay);
    assert_eq!(intended(&asks(runs(VERSION), VERSION)), Intent::Stay);
    assert_eq!(intended(&asks(runs(OLD), VERSION)), Intent::Move(VERSION.into()));
    // And back, as long as nothing has been made use of.
    assert_eq!(intended(&asks(runs(VERSION), OLD)), Intent::Move(OLD.into()));
    does(&asks(runs(VERSION), OLD), &[&format!("run {OLD}")]);
    // Whoever names a version may mean it as the remedy.
    let mut seen = asks(runs(OLD), VERSION);
    testing::answer(&mut seen).problems.push("it is slow".into());
    assert_eq!(intended(&seen), Intent::Move(VERSION.into()));
}

#[test]
fn the_policy_begins_nothing_in_a_cluster_that_is_not_well() {
    let mut seen = runs(OLD);
    seen.upgrade.offer = Offer::Now(VERSION.into());
    assert_eq!(intended(&seen), Intent::Move(VERSION.into()));
    testing::answer(&mut seen).servers[0].alive = false;
    assert!(matches!(intended(&seen), Intent::Wait(why) if why.message.contains("2 of 3 storage servers")));
    seen.upgrade.offer = Offer::Wait("at night".into());
    assert!(matches!(intended(&seen), Intent::Wait(why) if why.message == "at night"));
}

#[test]
fn versions_that_can_not_be_are_refused_and_the_pods_stay() {
    refuses(&asks(runs(VERSION), "0.7.0"), Reason::UnknownVersion, "nightly");
    refuses(&asks(runs(VERSION), "99.0.0"), Reason::VersionRefused, "upgrade the operator first");
    assert_eq!(intended(&asks(runs(VERSION), "nightly")), Intent::Move("nightly".into()));
    does(&asks(runs(VERSION), "0.7.0"), &[]);
    let mut far = asks(runs(OLD), VERSION);
    testing::change(&mut far, |cluster| {
        cluster.status.get_or_insert_default().target_version = Some("5.0.0".into());
    });
    far.upgrade.versions.push("5.2.0".into());
    assert!(skips_a_release("5.0.0", "5.2.0"));
}

#[test]
fn an_earlier_version_is_refused_once_the_level_was_raised_with_a_later_one() {
    let mut seen = asks(runs(VERSION), OLD);
    testing::change(&mut seen, |cluster| {
        let status = cluster.status.get_or_insert_default();
        (status.min_version, status.feature_level) = (Some(VERSION.into()), Some(2));
    });
    refuses(&seen, Reason::VersionRefused, "can't read the disks any more");
    // The status wasn't written since, and the operator is another one.
    let mut seen = asks(runs(VERSION), OLD);
    testing::answer(&mut seen).feature_level = 2;
    refuses(&seen, Reason::VersionRefused, "can't read the disks any more");
    // A patch of the same release can.
    assert_eq!(min_version(&seen, VERSION).as_deref(), Some(VERSION));
    testing::answer(&mut seen).feature_level = 1;
    assert_eq!(min_version(&seen, VERSION), None);
}

#[test]
fn the_level_is_raised_when_all_know_it_and_all_is_well() {
    let below = NEXT_LEVEL - 1;
    let mut seen = runs(VERSION);
    let answer = testing::answer(&mut seen);
    (answer.feature_level, answer.feature_level_max) = (NEXT_LEVEL, NEXT_LEVEL);
    does(&seen, &[]);
    assert_eq!(level_waits(&seen), None);
    // An operator of the release before raises nothing that it doesn't know.
    testing::answer(&mut seen).feature_level = below;
    seen.upgrade.feature_level = below;
    does(&seen, &[]);
    seen.upgrade.feature_level = NEXT_LEVEL;
    let raise = format!("level {NEXT_LEVEL}");
    does(&seen, &[&raise]);
    testing::change(&mut seen, |cluster| cluster.spec.feature_level_max = Some(below));
    testing::mark_all(&mut seen);
    does(&seen, &[]);
    testing::change(&mut seen, |cluster| cluster.spec.feature_level_max = None);
    testing::mark_all(&mut seen);
    let answer = testing::answer(&mut seen);
    (answer.feature_level_max, answer.behind) = (below, vec!["the mount on node-1".into()]);
    does(&seen, &[]);
    assert!(level_waits(&seen).expect("waits").message.contains("the mount on node-1"));
}

#[test]
fn an_operator_that_was_upgraded_knows_the_image_that_pods_run() {
    let mut seen = testing::running();
    assert_eq!(seen.running_image(), None, "nobody has said which version it is");
    testing::change(&mut seen, |cluster| {
        cluster.status.get_or_insert_default().version = Some(OLD.into());
    });
    for set in seen.statefulsets.values_mut() {
        let template = &mut set.spec.as_mut().expect("spec").template;
        template.spec.as_mut().expect("pod").containers[0].image = Some("r/a:old".into());
    }
    // The template says another version: its image is no image of this one.
    assert_eq!(seen.running_image(), None);
    for set in seen.statefulsets.values_mut() {
        set.spec.as_mut().expect("spec").template.metadata.as_mut().expect("meta").annotations = None;
    }
    assert_eq!(seen.running_image(), Some((OLD.into(), "r/a:old".into())));
    let wanted = validate(&seen.cluster, &testing::images().with(seen.running_image())).expect("valid");
    assert_eq!((wanted.version.as_str(), wanted.image.as_str()), (OLD, "r/a:old"));
    let lost = validate(&seen.cluster, &testing::images()).expect_err("no image");
    assert!(lost.message.contains("which the pods run"), "{}", lost.message);
    assert_eq!(seen.cluster_id(), Some(ID));
}
