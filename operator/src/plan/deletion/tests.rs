//! What is done for a volume whose deletion waits.

use super::*;
use crate::plan::tests::{planned, words};
use crate::testing;

/// It is to be deleted, and mounted on one node.
fn blocked() -> Observed {
    let mut seen = testing::running();
    testing::deleted(&mut seen);
    seen
}

/// Its deletion waits for the mount, and meanwhile this is done.
fn does_meanwhile(seen: &Observed, expected: &[&str]) {
    let plan = planned(seen);
    assert_eq!(plan.problem.as_ref().map(|problem| problem.reason), Some(Reason::Mounted));
    assert_eq!(words(&plan), expected);
}

#[test]
fn a_volume_that_is_still_used_is_kept_whole() {
    let mut seen = blocked();
    does_meanwhile(&seen, &[]);
    seen.services.remove(&Component::Storage);
    does_meanwhile(&seen, &["apply Service db-storage"]);
    // Somebody deleted a disk: its server is replaced.
    let mut seen = blocked();
    let pvc = seen.pvcs.get_mut("data-db-storage-1").expect("a disk");
    pvc.metadata.deletion_timestamp = Some(testing::moment());
    does_meanwhile(&seen, &["Drain 1"]);
    // It is paused, and nothing but its deletion goes on.
    testing::change(&mut seen, |cluster| cluster.spec.paused = true);
    does_meanwhile(&seen, &[]);
}

#[test]
fn a_volume_that_goes_is_neither_upgraded_nor_made_larger() {
    let mut seen = blocked();
    testing::change(&mut seen, |cluster| cluster.spec.capacity = "3Gi".into());
    testing::mark_all(&mut seen);
    does_meanwhile(&seen, &[]);
    let waiting = seen.pods.get_mut("db-storage-1").expect("a pod");
    waiting.metadata.labels = None;
    does_meanwhile(&seen, &[]);
}

#[test]
fn once_nobody_uses_it_nothing_is_made_any_more() {
    let mut seen = blocked();
    testing::answer(&mut seen).sessions.clear();
    seen.services.remove(&Component::Storage);
    let plan = planned(&seen);
    assert_eq!(
        (words(&plan), plan.problem),
        (
            vec!["delete StatefulSet db-metadata".to_owned(), "delete StatefulSet db-storage".to_owned(),],
            None
        )
    );
}
