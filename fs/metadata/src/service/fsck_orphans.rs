//! Unlinked files that nobody holds open: they are freed within moments, so one that stays was forgotten. Who holds what is
//! in the leader's memory, so no record shows it; what looks forgotten is looked at again after a while.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::check::{Finding, Kind, Subject};
use atoll_core::ids::InodeId;
use atoll_core::keys;
use atoll_core::query::{self, OpError};
use atoll_core::records::OrphanRecord;
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::metadata::MetadataError;

use crate::changes::Work;
use crate::clock;
use crate::leader::Leader;
use crate::node::Node;
use crate::reads::Lane;
use crate::store::records::Records;

/// What looks forgotten must still do so after this time, and again after it.
const LOOK_AGAIN: Duration = Duration::from_millis(1500);
const LOOKS_AGAIN: u32 = 2;
/// Files that are looked at again, at most: where more are forgotten, the next check finds them.
const SUSPECTS_MAX: usize = 10_000;
/// How long a repair waits for what it had looked at again to be gone, and how often it looks.
const FREED_WITHIN: Duration = Duration::from_secs(30);
const FREED_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Finds those that nobody will free.
pub(super) async fn look(node: &Node, leader: &Arc<Leader>) -> Result<Vec<Finding>, MetadataError> {
    leader.confirm()?;
    let asked = leader.clone();
    let mut suspects = node.read(Lane::Background, move |records| suspects(records, &asked)).await?;
    for _ in 0..LOOKS_AGAIN {
        if suspects.is_empty() {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        leader.confirm()?;
        suspects = still(node, leader, suspects, is_forgotten).await?;
    }
    let finding = |ino| {
        let words = format!("unlinked file {ino} isn't open anywhere and isn't freed");
        Finding::new(Kind::OrphanForgotten, Subject::Orphan(ino), words)
    };
    Ok(suspects.into_iter().map(finding).collect())
}

/// Has them looked at again, if that was asked for, and waits until they are freed. Returns what was done.
pub(super) async fn repair(
    node: &Node,
    leader: &Arc<Leader>,
    found: &[Finding],
    asked: &BTreeSet<Kind>,
) -> Result<BTreeSet<(Kind, Subject)>, MetadataError> {
    if !asked.contains(&Kind::OrphanForgotten) {
        return Ok(BTreeSet::new());
    }
    let all: Vec<InodeId> = found.iter().filter_map(|finding| finding.subject.inode()).collect();
    for ino in &all {
        leader.changes.again(Work::Orphans, &keys::orphan(*ino));
    }
    let give_up = clock::since_boot() + FREED_WITHIN;
    let mut left = all.clone();
    while !left.is_empty() && clock::since_boot() < give_up {
        tokio::time::sleep(FREED_POLL_INTERVAL).await;
        leader.confirm()?;
        left = still(node, leader, left, |_, records, ino| is_unlinked(records, ino)).await?;
    }
    let subject = |ino| (Kind::OrphanForgotten, Subject::Orphan(ino));
    Ok(all.into_iter().filter(|ino| !left.contains(ino)).map(subject).collect())
}

fn suspects(records: &Records, leader: &Leader) -> Result<Vec<InodeId>, StoreError> {
    let snapshot = records.snapshot();
    let mut found = Vec::new();
    let mut failed = None;
    let prefix = keys::orphans();
    snapshot.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, _| {
        let Some(ino) = keys::first_number(key).map(InodeId) else { return ControlFlow::Continue(()) };
        match is_forgotten(leader, &snapshot, ino) {
            Ok(true) => found.push(ino),
            Ok(false) => {}
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        if found.len() < SUSPECTS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    failed.map_or(Ok(found), Err)
}

/// Those of which that is still true.
async fn still(
    node: &Node,
    leader: &Arc<Leader>,
    inodes: Vec<InodeId>,
    is: fn(&Leader, &dyn Read, InodeId) -> Result<bool, StoreError>,
) -> Result<Vec<InodeId>, MetadataError> {
    let leader = leader.clone();
    let look = move |records: &Records| -> Result<_, StoreError> {
        let mut left = Vec::with_capacity(inodes.len());
        for ino in inodes {
            if is(&leader, records, ino)? {
                left.push(ino);
            }
        }
        Ok(left)
    };
    node.read(Lane::Background, look).await
}

fn is_forgotten(leader: &Leader, records: &dyn Read, ino: InodeId) -> Result<bool, StoreError> {
    let is_known = leader.changes.knows(Work::Orphans, &keys::orphan(ino));
    Ok(!is_known && leader.sessions.lock().is_left(ino) && is_unlinked(records, ino)?)
}

/// Marks that contradict their inodes are findings of the walk.
fn is_unlinked(records: &dyn Read, ino: InodeId) -> Result<bool, StoreError> {
    match query::load::<OrphanRecord>(records, Family::System, &keys::orphan(ino)) {
        Ok(Some(_)) => {}
        Ok(None) | Err(StoreError::Damaged(_) | StoreError::NewerFormat { .. }) => return Ok(false),
        Err(error) => return Err(error),
    }
    match query::inode(records, ino) {
        Ok(record) => Ok(record.nlink == 0),
        Err(
            OpError::Refused(_) | OpError::Store(StoreError::Damaged(_) | StoreError::NewerFormat { .. }),
        ) => Ok(false),
        Err(OpError::Store(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests;
