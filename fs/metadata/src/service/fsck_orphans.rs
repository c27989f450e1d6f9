//! Unlinked files that nobody holds open: they are freed within moments, so one that stays was forgotten. Who holds what is
//! in the leader's memory, so no record shows it; what looks forgotten is looked at again after a while.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
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
use crate::node::{Node, store_error};

/// What looks forgotten must still do so after this time, and again after it.
const LOOK_AGAIN: Duration = Duration::from_millis(1500);
const LOOKS_AGAIN: u32 = 2;
/// Files that are looked at again, at most: where more are forgotten, the next check finds them.
const SUSPECTS_MAX: usize = 10_000;
/// How long a repair waits for what it had looked at again to be gone, and how often it looks.
const FREED_WITHIN: Duration = Duration::from_secs(30);
const FREED_LOOK_EVERY: Duration = Duration::from_millis(100);

/// Finds those that nobody will free.
pub(super) async fn look(node: &Node) -> Result<Vec<Finding>, MetadataError> {
    node.lead()?;
    let mut suspects = suspects(node).map_err(|error| store_error(&error))?;
    for _ in 0..LOOKS_AGAIN {
        if suspects.is_empty() {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        node.lead()?;
        suspects = still(node, suspects, is_forgotten)?;
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
    found: &[Finding],
    asked: &BTreeSet<Kind>,
) -> Result<BTreeSet<(Kind, Subject)>, MetadataError> {
    if !asked.contains(&Kind::OrphanForgotten) {
        return Ok(BTreeSet::new());
    }
    let all: Vec<InodeId> = found.iter().filter_map(|finding| finding.subject.inode()).collect();
    for ino in &all {
        node.changes.again(Work::Orphans, &keys::orphan(*ino));
    }
    let give_up = clock::since_boot() + FREED_WITHIN;
    let mut left = all.clone();
    while !left.is_empty() && clock::since_boot() < give_up {
        tokio::time::sleep(FREED_LOOK_EVERY).await;
        node.lead()?;
        left = still(node, left, is_unlinked)?;
    }
    let subject = |ino| (Kind::OrphanForgotten, Subject::Orphan(ino));
    Ok(all.into_iter().filter(|ino| !left.contains(ino)).map(subject).collect())
}

fn suspects(node: &Node) -> Result<Vec<InodeId>, StoreError> {
    let store = node.machine.store();
    let snapshot = store.snapshot();
    let mut found = Vec::new();
    let mut failed = None;
    let prefix = keys::orphans();
    snapshot.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, _| {
        let Some(ino) = keys::first_number(key).map(InodeId) else { return ControlFlow::Continue(()) };
        match is_forgotten(node, &snapshot, ino) {
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
fn still(
    node: &Node,
    inodes: Vec<InodeId>,
    is: fn(&Node, &dyn Read, InodeId) -> Result<bool, StoreError>,
) -> Result<Vec<InodeId>, MetadataError> {
    let store = node.machine.store();
    let mut left = Vec::with_capacity(inodes.len());
    for ino in inodes {
        if is(node, &*store, ino).map_err(|error| store_error(&error))? {
            left.push(ino);
        }
    }
    Ok(left)
}

fn is_forgotten(node: &Node, records: &dyn Read, ino: InodeId) -> Result<bool, StoreError> {
    let is_known = node.changes.knows(Work::Orphans, &keys::orphan(ino));
    Ok(!is_known && node.office.sessions.lock().is_left(ino) && is_unlinked(node, records, ino)?)
}

/// Marks that contradict their inodes are findings of the walk.
fn is_unlinked(_: &Node, records: &dyn Read, ino: InodeId) -> Result<bool, StoreError> {
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
