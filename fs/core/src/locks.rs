//! File locks: what they keep others from, and how a change of one is made.
//!
//! A lock belongs to a session and goes with it. Which there are is in the leader's memory
//! ([`lock_table`](crate::lock_table)), and who waits for one, too ([`lock_waits`](crate::lock_waits)).
//!
//! Earlier builds kept locks in records, one for each owner and inode, and changed them by entries of the log ([`SetLock`],
//! [`ReleaseLocks`]). Such entries are applied as they were then, or members that replay them would differ from those that
//! have applied them. Nobody takes a lock in that way any more. What is left in the records are locks of sessions that
//! belong to mounts of such a build: a leader reads them into its table when its term begins, so they keep others away
//! until these sessions release them or end, and the records go with that.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::commands::{Context, Mutation};
use crate::error::FsError;
use crate::ids::{InodeId, SessionId};
use crate::keys;
use crate::limits::{LOCK_OWNERS_PER_INODE_MAX, LOCKS_PER_OWNER_MAX};
use crate::records::Record;
use crate::store::{Family, Read, StoreError, prefix_end};
use crate::txn::{OpResult, Txn};

/// The last byte of a lock that reaches to the end of the file, however far that is.
pub const TO_THE_END: u64 = i64::MAX as u64;

/// Locks of different classes have nothing to do with one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockClass {
    /// `fcntl` locks of byte ranges, of processes and of open files (`F_OFD_SETLK`) alike.
    Record,
    /// flock(2).
    Flock,
}

impl LockClass {
    /// Both.
    pub const ALL: [LockClass; 2] = [LockClass::Record, LockClass::Flock];
}

/// What a lock keeps others from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockMode {
    /// Exclusive locks of others.
    Shared,
    /// All locks of others.
    Exclusive,
}

/// Who holds a lock: a process or an open file of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The session.
    pub session: SessionId,
    /// The session's own name for the process or the open file.
    pub owner: u64,
}

/// A range of bytes that is, or is to be, locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte; [`TO_THE_END`] at most.
    pub end: u64,
}

impl LockRange {
    /// The whole file, as `flock` has it.
    pub const ALL: LockRange = LockRange { start: 0, end: TO_THE_END };

    /// Whether both have a byte in common.
    #[must_use]
    pub fn overlaps(&self, other: &LockRange) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Whether the range makes sense.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.start <= self.end && self.end <= TO_THE_END
    }
}

/// A lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLock {
    /// What it covers.
    pub range: LockRange,
    /// What it keeps others from.
    pub mode: LockMode,
    /// The open file that it was taken through: it goes when that is closed.
    pub handle: u64,
    /// The process that took it, for `F_GETLK`.
    pub pid: u32,
}

/// The locks of one owner on one inode, by range; they don't overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    /// The locks.
    pub locks: Vec<HeldLock>,
}

impl Record for LockRecord {
    const NAME: &'static str = "locks";
}

/// `locks` after `range` was set to `new` (`None`: unlocked): what was there is cut, and neighbours that are alike
/// are joined.
#[must_use]
pub fn with(locks: &[HeldLock], range: LockRange, new: Option<HeldLock>) -> Vec<HeldLock> {
    let mut after = Vec::with_capacity(locks.len() + 2);
    for lock in locks {
        if !lock.range.overlaps(&range) {
            after.push(*lock);
            continue;
        }
        if lock.range.start < range.start {
            after.push(HeldLock { range: LockRange { end: range.start - 1, ..lock.range }, ..*lock });
        }
        if lock.range.end > range.end {
            after.push(HeldLock { range: LockRange { start: range.end + 1, ..lock.range }, ..*lock });
        }
    }
    after.extend(new.map(|new| HeldLock { range, ..new }));
    after.sort_unstable_by_key(|lock| lock.range.start);
    let mut joined: Vec<HeldLock> = Vec::with_capacity(after.len());
    for lock in after {
        match joined.last_mut() {
            Some(last)
                if last.range.end.checked_add(1) == Some(lock.range.start)
                    && (last.mode, last.handle, last.pid) == (lock.mode, lock.handle, lock.pid) =>
            {
                last.range.end = lock.range.end;
            }
            _ => joined.push(lock),
        }
    }
    joined
}

/// Whether a lock keeps somebody else from `range` in `mode`.
#[must_use]
pub fn conflicts(held: &HeldLock, range: &LockRange, mode: LockMode) -> bool {
    held.range.overlaps(range) && (held.mode == LockMode::Exclusive || mode == LockMode::Exclusive)
}

/// Visits the recorded locks that are in the way of one.
fn in_the_way(
    from: &dyn Read,
    ino: InodeId,
    class: LockClass,
    asking: Holder,
    range: &LockRange,
    mode: LockMode,
    visit: &mut dyn FnMut(Holder, HeldLock) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let prefix = keys::locks_of_inode(class, ino);
    let mut failed = None;
    from.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, value| {
        let (Some(session), Some(owner)) = (keys::second_number(key), keys::third_number(key)) else {
            return ControlFlow::Continue(());
        };
        let holder = Holder { session: SessionId(session), owner };
        if holder == asking {
            return ControlFlow::Continue(());
        }
        match LockRecord::decode(value) {
            Ok(record) => {
                for lock in record.locks.iter().filter(|held| conflicts(held, range, mode)) {
                    if visit(holder, *lock).is_break() {
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// A lock to be taken (or, without a mode, let go of).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRequest {
    /// Of which inode.
    pub ino: InodeId,
    /// Its class.
    pub class: LockClass,
    /// The session's name for who takes it.
    pub owner: u64,
    /// The open file that it is taken through.
    pub handle: u64,
    /// The process, for `F_GETLK`.
    pub pid: u32,
    /// `None`: unlock.
    pub mode: Option<LockMode>,
    /// The bytes.
    pub range: LockRange,
}

/// Which locks of a session on an inode are let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockScope {
    /// All of this class that this owner has.
    Owner(LockClass, u64),
    /// All that were taken through this open file.
    Handle(u64),
}

impl LockRequest {
    /// The lock that it asks for, if it isn't an unlock.
    #[must_use]
    pub fn lock(&self) -> Option<HeldLock> {
        let LockRequest { range, handle, pid, .. } = *self;
        self.mode.map(|mode| HeldLock { range, mode, handle, pid })
    }
}

/// A change of what a session has locked of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockChange {
    /// Takes a lock, or lets go of a range.
    Set(LockRequest),
    /// Lets go of the locks that a process or an open file has.
    Release(ReleaseLocks),
}

impl LockChange {
    /// The inode.
    #[must_use]
    pub fn ino(&self) -> InodeId {
        match self {
            LockChange::Set(request) => request.ino,
            LockChange::Release(release) => release.ino,
        }
    }

    /// Whether it takes a lock.
    #[must_use]
    pub fn takes(&self) -> bool {
        matches!(self, LockChange::Set(LockRequest { mode: Some(_), .. }))
    }

    /// False if what an owner has of the inode stays as it is, whatever that is.
    #[must_use]
    pub fn concerns(&self, owner: &(LockClass, u64)) -> bool {
        match self {
            LockChange::Set(request) => (request.class, request.owner) == *owner,
            LockChange::Release(ReleaseLocks { scope: LockScope::Owner(class, number), .. }) => {
                (*class, *number) == *owner
            }
            LockChange::Release(ReleaseLocks { scope: LockScope::Handle(_), .. }) => true,
        }
    }

    /// What an owner with these locks on the inode has once this is done.
    #[must_use]
    pub fn after(&self, class: LockClass, owner: u64, before: &[HeldLock]) -> Vec<HeldLock> {
        match self {
            LockChange::Set(request) if (request.class, request.owner) == (class, owner) => {
                with(before, request.range, request.lock())
            }
            LockChange::Release(ReleaseLocks { scope: LockScope::Owner(of, released), .. })
                if (*of, *released) == (class, owner) =>
            {
                Vec::new()
            }
            LockChange::Release(ReleaseLocks { scope: LockScope::Handle(handle), .. }) => {
                before.iter().filter(|lock| lock.handle != *handle).copied().collect()
            }
            _ => before.to_vec(),
        }
    }

    /// What an owner with these locks on the inode has for certain while it isn't known whether this is done: nothing
    /// that others may have been given since if it is.
    #[must_use]
    pub fn at_least(&self, class: LockClass, owner: u64, before: &[HeldLock]) -> Vec<HeldLock> {
        let LockChange::Set(request @ LockRequest { mode: Some(mode), range, .. }) = self else {
            return self.after(class, owner, before);
        };
        if *mode == LockMode::Exclusive || (request.class, request.owner) != (class, owner) {
            return before.to_vec();
        }
        before.iter().filter(|lock| lock.range.overlaps(range)).fold(before.to_vec(), |kept, lock| {
            let (start, end) = (lock.range.start.max(range.start), lock.range.end.min(range.end));
            let shared = HeldLock { mode: LockMode::Shared, ..*lock };
            with(&kept, LockRange { start, end }, Some(shared))
        })
    }
}

/// Takes or lets go of a lock, as earlier builds did it: see the module.
///
/// Takes a lock, or is refused with `Locked`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLock(pub LockRequest);

impl Mutation for SetLock {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<()> {
        let session = context.session;
        let LockRequest { ino, class, owner, mode, range, .. } = self.0;
        if !range.is_sound() {
            return Err(FsError::InvalidArgument.into());
        }
        let key = keys::lock(class, ino, session, owner);
        let known: Option<LockRecord> = txn.load(Family::System, &key)?;
        if let Some(mode) = mode {
            txn.inode(ino)?;
            let asking = Holder { session, owner };
            let mut blocked = false;
            in_the_way(txn, ino, class, asking, &range, mode, &mut |_, _| {
                blocked = true;
                ControlFlow::Break(())
            })?;
            if blocked {
                return Err(FsError::Locked.into());
            }
            if known.is_none() {
                let owners = keys::locks_of_inode(class, ino);
                if txn.collect_prefix(Family::System, &owners, LOCK_OWNERS_PER_INODE_MAX)?.len()
                    >= LOCK_OWNERS_PER_INODE_MAX
                {
                    return Err(FsError::NoLocks.into());
                }
            }
        } else if known.is_none() {
            return Ok(());
        }
        let locks = with(&known.unwrap_or_default().locks, range, self.0.lock());
        if locks.len() > LOCKS_PER_OWNER_MAX {
            return Err(FsError::NoLocks.into());
        }
        store(txn, class, ino, Holder { session, owner }, locks)?;
        Ok(())
    }
}

/// Writes what an owner has left, and keeps the session's list of locked inodes right.
fn store(
    txn: &mut Txn<'_>,
    class: LockClass,
    ino: InodeId,
    holder: Holder,
    locks: Vec<HeldLock>,
) -> OpResult<()> {
    let key = keys::lock(class, ino, holder.session, holder.owner);
    let marker = keys::locked(holder.session, ino);
    if !locks.is_empty() {
        txn.put(Family::System, key, &LockRecord { locks });
        if txn.get(Family::System, &marker)?.is_none() {
            txn.mark(marker);
        }
        return Ok(());
    }
    txn.delete(Family::System, key);
    for class in LockClass::ALL {
        let others = keys::locks_of_session(class, ino, holder.session);
        if !txn.collect_prefix(Family::System, &others, 1)?.is_empty() {
            return Ok(());
        }
    }
    txn.delete(Family::System, marker);
    Ok(())
}

/// Lets go of the locks that a process or an open file has on an inode. As a mutation, of those that are in records: see the
/// module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseLocks {
    /// The inode.
    pub ino: InodeId,
    /// Which of the session's locks on it.
    pub scope: LockScope,
}

impl Mutation for ReleaseLocks {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<()> {
        let session = context.session;
        let ReleaseLocks { ino, scope } = *self;
        match scope {
            LockScope::Owner(class, owner) => {
                store(txn, class, ino, Holder { session, owner }, Vec::new())?;
            }
            LockScope::Handle(handle) => {
                for class in LockClass::ALL {
                    let prefix = keys::locks_of_session(class, ino, session);
                    for (key, value) in
                        txn.collect_prefix(Family::System, &prefix, LOCK_OWNERS_PER_INODE_MAX)?
                    {
                        let Some(owner) = keys::third_number(&key) else { continue };
                        let before = LockRecord::decode(&value)?.locks;
                        let left: Vec<HeldLock> =
                            before.iter().filter(|lock| lock.handle != handle).copied().collect();
                        if left.len() != before.len() {
                            store(txn, class, ino, Holder { session, owner }, left)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// A session has ended: all of its locks go.
pub(crate) fn release_all(txn: &mut Txn<'_>, session: SessionId) -> OpResult<()> {
    for (marker, _) in txn.collect_prefix(Family::System, &keys::locked_by(session), usize::MAX)? {
        if let Some(ino) = keys::second_number(&marker).map(InodeId) {
            for class in LockClass::ALL {
                let prefix = keys::locks_of_session(class, ino, session);
                for (key, _) in txn.collect_prefix(Family::System, &prefix, usize::MAX)? {
                    txn.delete(Family::System, key);
                }
            }
        }
        txn.delete(Family::System, marker);
    }
    Ok(())
}

/// An inode is removed: locks that are left of it go too.
pub(crate) fn forget_inode(txn: &mut Txn<'_>, ino: InodeId) -> OpResult<()> {
    for class in LockClass::ALL {
        let prefix = keys::locks_of_inode(class, ino);
        for (key, _) in txn.collect_prefix(Family::System, &prefix, usize::MAX)? {
            if let Some(session) = keys::second_number(&key) {
                txn.delete(Family::System, keys::locked(SessionId(session), ino));
            }
            txn.delete(Family::System, key);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lock(start: u64, end: u64, mode: LockMode) -> HeldLock {
        HeldLock { range: LockRange { start, end }, mode, handle: 1, pid: 7 }
    }

    #[test]
    fn a_lock_is_split_by_an_unlock_and_joined_by_a_lock() {
        let all = [lock(0, TO_THE_END, LockMode::Exclusive)];
        let split = with(&all, LockRange { start: 10, end: 19 }, None);
        assert_eq!(split, [lock(0, 9, LockMode::Exclusive), lock(20, TO_THE_END, LockMode::Exclusive)]);
        let again = lock(10, 19, LockMode::Exclusive);
        assert_eq!(with(&split, again.range, Some(again)), all);
        let shared = lock(5, 30, LockMode::Shared);
        let mixed = with(&all, shared.range, Some(shared));
        assert_eq!(mixed.len(), 3);
        assert_eq!(mixed[1], shared);
        let end = LockRange { start: TO_THE_END, end: TO_THE_END };
        assert_eq!(with(&all, end, None), [lock(0, TO_THE_END - 1, LockMode::Exclusive)]);
    }

    #[test]
    fn locks_through_different_open_files_stay_apart() {
        let other = HeldLock { handle: 2, ..lock(10, 19, LockMode::Shared) };
        let both = with(&[lock(0, 9, LockMode::Shared)], other.range, Some(other));
        assert_eq!(both.len(), 2);
    }

    #[test]
    fn shared_locks_get_along() {
        let shared = lock(0, 9, LockMode::Shared);
        let range = LockRange { start: 9, end: 12 };
        assert!(!conflicts(&shared, &range, LockMode::Shared));
        assert!(conflicts(&shared, &range, LockMode::Exclusive));
        assert!(!conflicts(&shared, &LockRange { start: 10, end: 12 }, LockMode::Exclusive));
        assert!(conflicts(&lock(0, 9, LockMode::Exclusive), &range, LockMode::Shared));
    }

    #[test]
    fn what_may_be_done_takes_nothing_that_is_still_had_for_certain() {
        let request = |mode, start, end| LockRequest {
            ino: InodeId(5),
            class: LockClass::Record,
            owner: 1,
            handle: 2,
            pid: 8,
            mode,
            range: LockRange { start, end },
        };
        let before = [lock(0, 9, LockMode::Exclusive), lock(20, 29, LockMode::Shared)];
        let at_least = |change: &LockChange, owner| change.at_least(LockClass::Record, owner, &before);
        let unlock = LockChange::Set(request(None, 5, 24));
        assert_eq!(at_least(&unlock, 1), [lock(0, 4, LockMode::Exclusive), lock(25, 29, LockMode::Shared)]);
        assert_eq!(at_least(&unlock, 2), before, "another owner's");
        let upgrade = LockChange::Set(request(Some(LockMode::Exclusive), 0, 40));
        assert_eq!(at_least(&upgrade, 1), before);
        let downgrade = LockChange::Set(request(Some(LockMode::Shared), 5, 40));
        let shared =
            [lock(0, 4, LockMode::Exclusive), lock(5, 9, LockMode::Shared), lock(20, 29, LockMode::Shared)];
        assert_eq!(at_least(&downgrade, 1), shared);
        assert_eq!(at_least(&downgrade, 2), before);
        let release = |scope| LockChange::Release(ReleaseLocks { ino: InodeId(5), scope });
        assert_eq!(at_least(&release(LockScope::Handle(1)), 1), []);
        assert_eq!(at_least(&release(LockScope::Handle(2)), 1), before);
        assert_eq!(at_least(&release(LockScope::Owner(LockClass::Record, 1)), 1), []);
        assert_eq!(at_least(&release(LockScope::Owner(LockClass::Flock, 1)), 1), before);
    }

    proptest! {
        #[test]
        fn ranges_behave_as_a_table_of_bytes(
            steps in proptest::collection::vec((0u64..24, 0u64..24, 0u8..3), 0..20),
        ) {
            let mut bytes = [None; 24];
            let mut locks = Vec::new();
            for (a, b, what) in steps {
                let range = LockRange { start: a.min(b), end: a.max(b) };
                let mode = [None, Some(LockMode::Shared), Some(LockMode::Exclusive)][what as usize];
                bytes[range.start as usize..=range.end as usize].fill(mode);
                locks = with(&locks, range, mode.map(|mode| lock(0, 0, mode)));
                for (at, expected) in bytes.iter().enumerate() {
                    let at = at as u64;
                    let found = locks.iter().find(|lock| (lock.range.start..=lock.range.end).contains(&at));
                    prop_assert_eq!(found.map(|lock| lock.mode), *expected);
                }
                for pair in locks.windows(2) {
                    prop_assert!(pair[0].range.end < pair[1].range.start);
                    prop_assert!(pair[0].range.end + 1 < pair[1].range.start || pair[0].mode != pair[1].mode);
                }
            }
        }
    }
}
