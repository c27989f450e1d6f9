//! Locks: of sessions that are alive and inodes that exist, none in the way of another.

use super::{Finding, Found, Kind, Subject, each};
use crate::ids::{InodeId, SessionId};
use crate::keys;
use crate::locks::{LockClass, LockRecord, conflicts};
use crate::records::{Record, SessionRecord};
use crate::store::{Family, Read, StoreError};
use crate::txn::load;

pub(super) fn lock(
    store: &dyn Read,
    class: LockClass,
    ino: InodeId,
    session: SessionId,
    owner: u64,
) -> Result<Found, StoreError> {
    let mut found = Found::new();
    let key = keys::lock(class, ino, session, owner);
    let Some(record) = load::<LockRecord>(store, Family::System, &key)? else { return Ok(found) };
    let subject = Subject::Lock(class, ino, session, owner);
    let mut wrong = |kind, words: String| found.push(Finding::new(kind, subject.clone(), words));
    let holder: Option<SessionRecord> = load(store, Family::System, &keys::session(session))?;
    if holder.is_none_or(|holder| holder.ended.is_some()) {
        wrong(Kind::LockStale, format!("session {session} has locks on inode {ino} and has ended"));
    } else if store.get(Family::Inodes, &keys::inode(ino))?.is_none() {
        wrong(Kind::LockStale, format!("locks on inode {ino}, which doesn't exist"));
    }
    if store.get(Family::System, &keys::locked(session, ino))?.is_none() {
        wrong(
            Kind::LockList,
            format!("session {session} has locks on inode {ino} that its list of locks lacks"),
        );
    }
    let ranges: Vec<_> = record.locks.iter().map(|lock| lock.range).collect();
    let unsound = ranges.is_empty()
        || ranges.iter().any(|range| !range.is_sound())
        || ranges.windows(2).any(|pair| pair[0].end >= pair[1].start);
    let mut in_the_way = false;
    each(store, Family::System, &keys::locks_of_inode(class, ino), |other, value| {
        if other != key {
            let others = LockRecord::decode(value)?;
            in_the_way |= others
                .locks
                .iter()
                .any(|held| record.locks.iter().any(|lock| conflicts(held, &lock.range, lock.mode)));
        }
        Ok(())
    })?;
    if unsound || in_the_way {
        wrong(
            Kind::LockConflict,
            format!(
                "{class:?} locks of session {session} on inode {ino} are empty, overlap or conflict with \
                 another session's"
            ),
        );
    }
    Ok(found)
}

pub(super) fn locked(store: &dyn Read, session: SessionId, ino: InodeId) -> Result<Found, StoreError> {
    let mut held = store.get(Family::System, &keys::locked(session, ino))?.is_none();
    for class in LockClass::ALL {
        each(store, Family::System, &keys::locks_of_session(class, ino, session), |_, _| {
            held = true;
            Ok(())
        })?;
    }
    if held {
        return Ok(Found::new());
    }
    let words = format!("session {session} lists locks on inode {ino} and has none");
    Ok(vec![Finding::new(Kind::LockList, Subject::Locked(session, ino), words)])
}
