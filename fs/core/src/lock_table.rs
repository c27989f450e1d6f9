//! The locks of all sessions, as the leader has them in its memory.
//!
//! A change is a message with a number of its session's. It may be sent again, and what was sent before may arrive after it,
//! so each takes effect once, and never after a later one about the same inode:
//!
//! - Of one inode's locks a session has one change under way at a time, so their numbers grow. One with a lower number than
//!   the newest known is late and changes nothing; the newest is answered as before.
//! - Each message names the lowest number that is still under way (`floor`). All below it are over, so what is kept to
//!   recognize late ones is no more than what is under way.
//!
//! A new leader has an empty table, and nobody's numbers: it accepts only messages that name its own term, and a session names
//! that once it has told this leader what it holds ([`claim`](LockTable::claim), [`adopt`](LockTable::adopt)). So messages to
//! an older leader are never carried out by a newer one. Until all sessions have told, a lock that isn't known to be held may
//! be one that is: nothing is granted then ([`Changed::Unknown`]).
//!
//! Pure. Who calls it knows which sessions are alive.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::FsError;
use crate::ids::{InodeId, SessionId};
use crate::limits::{LOCK_OWNERS_PER_INODE_MAX, LOCKS_PER_OWNER_MAX, LOCKS_PER_SESSION_MAX};
use crate::locks::{
    HeldLock, Holder, LockChange, LockClass, LockMode, LockRange, LockRequest, conflicts, with,
};

/// A lock that a session says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Of which inode.
    pub ino: InodeId,
    /// Its class.
    pub class: LockClass,
    /// The session's name for who has it.
    pub owner: u64,
    /// The lock.
    pub lock: HeldLock,
}

/// What a change has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is done, now or before.
    Done,
    /// It is refused, now or before.
    Refused(FsError),
    /// Another session may have the lock, and hasn't said so yet. The number isn't used.
    Unknown,
}

/// What a session has claimed isn't what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHeld {
    /// Another session has a lock that is in the way.
    #[error("another session has a lock on inode {0} that conflicts with one that this session claims")]
    Conflict(InodeId),
    /// A part of what it claims hasn't come here.
    #[error("a part of what the session claims is missing")]
    Incomplete,
    /// More than a session can hold.
    #[error("the session claims more locks than it can hold")]
    TooMany,
}

#[derive(Debug, Default)]
struct Session {
    /// Where it has locks.
    inodes: BTreeSet<InodeId>,
    /// How many ranges, on all of them.
    ranges: usize,
    /// Changes with lower numbers are over.
    floor: u64,
    /// The newest change of each inode, of those that may not be over.
    newest: BTreeMap<InodeId, u64>,
    /// What they led to.
    answers: BTreeMap<u64, (InodeId, Result<(), FsError>)>,
    /// What it has claimed so far.
    claims: Vec<Claim>,
    /// Which of its tellings that belongs to, and how many parts of it have come.
    telling: (u64, u32),
}

impl Session {
    fn raise(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        while let Some(oldest) = self.answers.first_entry()
            && *oldest.key() < self.floor
        {
            let (number, (ino, _)) = oldest.remove_entry();
            if self.newest.get(&ino) == Some(&number) {
                self.newest.remove(&ino);
            }
        }
    }

    /// What a change was answered with, if it isn't new.
    fn answer(&self, number: u64, ino: InodeId) -> Option<Changed> {
        let late = Some(Changed::Refused(FsError::BadSequence));
        if number < self.floor {
            return late;
        }
        match self.newest.get(&ino) {
            Some(newest) if number < *newest => late,
            Some(newest) if number == *newest => match self.answers.get(newest) {
                Some((_, Ok(()))) => Some(Changed::Done),
                Some((_, Err(error))) => Some(Changed::Refused(*error)),
                None => late,
            },
            _ => None,
        }
    }

    fn note(&mut self, number: u64, ino: InodeId, answer: Result<(), FsError>) {
        if let Some(before) = self.newest.insert(ino, number) {
            self.answers.remove(&before);
        }
        self.answers.insert(number, (ino, answer));
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct LockTable {
    inodes: BTreeMap<(LockClass, InodeId), BTreeMap<Holder, Vec<HeldLock>>>,
    sessions: BTreeMap<SessionId, Session>,
}

impl LockTable {
    /// The locks that are in the way of one.
    pub fn in_the_way(
        &self,
        (class, ino): (LockClass, InodeId),
        asking: Holder,
        range: LockRange,
        mode: LockMode,
    ) -> impl Iterator<Item = (Holder, HeldLock)> {
        let owners = self.inodes.get(&(class, ino)).into_iter().flatten();
        owners.filter(move |(holder, _)| **holder != asking).flat_map(move |(holder, locks)| {
            let conflicting = move |lock: &&HeldLock| conflicts(lock, &range, mode);
            locks.iter().filter(conflicting).map(move |lock| (*holder, *lock))
        })
    }

    /// The lock with the lowest range that is in the way of one.
    #[must_use]
    pub fn first_in_the_way(&self, session: SessionId, request: &LockRequest) -> Option<(Holder, HeldLock)> {
        let asking = Holder { session, owner: request.owner };
        self.in_the_way((request.class, request.ino), asking, request.range, request.mode?)
            .min_by_key(|(_, lock)| lock.range.start)
    }

    /// What an owner has of an inode.
    #[must_use]
    pub fn of(&self, (class, ino): (LockClass, InodeId), holder: Holder) -> &[HeldLock] {
        self.inodes.get(&(class, ino)).and_then(|owners| owners.get(&holder)).map_or(&[], Vec::as_slice)
    }

    /// How many ranges are locked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.values().map(|session| session.ranges).sum()
    }

    /// Nothing is locked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// Carries a change out. `all_told`: every session that is alive has told this leader what it holds. What takes no lock
    /// is in nobody's way, and done in any case.
    pub fn change(
        &mut self,
        session: SessionId,
        (number, floor): (u64, u64),
        change: &LockChange,
        all_told: bool,
    ) -> Changed {
        let ino = change.ino();
        let known = self.sessions.entry(session).or_default();
        known.raise(floor);
        if let Some(answer) = known.answer(number, ino) {
            return answer;
        }
        if let LockChange::Set(request) = change
            && change.takes()
            && !all_told
            && request.range.is_sound()
            && self.first_in_the_way(session, request).is_none()
        {
            return Changed::Unknown;
        }
        let done = self.carry_out(session, change);
        self.sessions.entry(session).or_default().note(number, ino, done);
        match done {
            Ok(()) => Changed::Done,
            Err(error) => Changed::Refused(error),
        }
    }

    fn carry_out(&mut self, session: SessionId, change: &LockChange) -> Result<(), FsError> {
        let LockChange::Set(request) = change else {
            self.release(session, change);
            return Ok(());
        };
        let LockRequest { ino, class, owner, range, .. } = *request;
        if !range.is_sound() {
            return Err(FsError::InvalidArgument);
        }
        let (of, holder) = ((class, ino), Holder { session, owner });
        let before = self.of(of, holder);
        if change.takes() {
            if self.first_in_the_way(session, request).is_some() {
                return Err(FsError::Locked);
            }
            let owners = self.inodes.get(&of).map_or(0, BTreeMap::len);
            if before.is_empty() && owners >= LOCK_OWNERS_PER_INODE_MAX {
                return Err(FsError::NoLocks);
            }
        }
        let after = change.after(class, owner, before);
        let ranges = self.sessions.get(&session).map_or(0, |known| known.ranges);
        let is_more = after.len() > before.len();
        if after.len() > LOCKS_PER_OWNER_MAX
            || is_more && ranges + after.len() - before.len() > LOCKS_PER_SESSION_MAX
        {
            return Err(FsError::NoLocks);
        }
        self.put(of, holder, after);
        Ok(())
    }

    /// What a release, or any other change that takes nothing, lets go of.
    pub fn release(&mut self, session: SessionId, change: &LockChange) {
        let ino = change.ino();
        for class in LockClass::ALL {
            for owner in self.owners(session, (class, ino)) {
                let holder = Holder { session, owner };
                let before = self.of((class, ino), holder);
                let after = change.at_least(class, owner, before);
                if after != before {
                    self.put((class, ino), holder, after);
                }
            }
        }
    }

    fn owners(&self, session: SessionId, of: (LockClass, InodeId)) -> Vec<u64> {
        let (first, last) = (Holder { session, owner: 0 }, Holder { session, owner: u64::MAX });
        let owners = self.inodes.get(&of).into_iter().flat_map(|owners| owners.range(first..=last));
        owners.map(|(holder, _)| holder.owner).collect()
    }

    /// An owner has these locks of an inode now, whatever it had and whoever else has some.
    pub fn put(&mut self, of: (LockClass, InodeId), holder: Holder, locks: Vec<HeldLock>) {
        let (class, ino) = of;
        let ranges = locks.len();
        let owners = self.inodes.entry(of).or_default();
        let before = match locks.is_empty() {
            true => owners.remove(&holder),
            false => owners.insert(holder, locks),
        };
        if owners.is_empty() {
            self.inodes.remove(&of);
        }
        let others = LockClass::ALL.into_iter().any(|other| {
            (other != class || ranges == 0) && !self.owners(holder.session, (other, ino)).is_empty()
        });
        let known = self.sessions.entry(holder.session).or_default();
        known.ranges = known.ranges - before.map_or(0, |before| before.len()) + ranges;
        match ranges > 0 || others {
            true => known.inodes.insert(ino),
            false => known.inodes.remove(&ino),
        };
    }

    /// A session that hasn't told this leader what it holds tells a part of it. It may begin anew, with a higher number.
    ///
    /// # Errors
    /// If a part is missing (another leader has got it, or this one before it was started again), or that is more than a
    /// session can hold.
    pub fn claim(
        &mut self,
        session: SessionId,
        (telling, part): (u64, u32),
        claims: &[Claim],
    ) -> Result<(), NotHeld> {
        let known = self.sessions.entry(session).or_default();
        if part == 0 && telling > known.telling.0 {
            known.claims.clear();
            known.telling = (telling, 0);
        }
        if telling != known.telling.0 || part > known.telling.1 {
            return Err(NotHeld::Incomplete);
        }
        // Else it comes again.
        if part == known.telling.1 {
            known.telling.1 += 1;
            known.claims.extend_from_slice(claims);
        }
        // A release that is under way may make two of one.
        if known.claims.len() > 2 * LOCKS_PER_SESSION_MAX { Err(NotHeld::TooMany) } else { Ok(()) }
    }

    /// What the session has claimed is all that it holds.
    ///
    /// # Errors
    /// If another session has a lock that is in the way. That can't be unless one of both is wrong about what it was
    /// granted; nothing is changed then.
    pub fn adopt(&mut self, session: SessionId) -> Result<(), NotHeld> {
        let claims = std::mem::take(&mut self.sessions.entry(session).or_default().claims);
        for claim in &claims {
            let Claim { ino, class, owner, lock: HeldLock { range, mode, .. } } = *claim;
            let mut others = self.in_the_way((class, ino), Holder { session, owner }, range, mode);
            if others.any(|(holder, _)| holder.session != session) {
                return Err(NotHeld::Conflict(ino));
            }
        }
        self.let_go(session);
        for Claim { ino, class, owner, lock } in claims {
            let holder = Holder { session, owner };
            let locks = with(self.of((class, ino), holder), lock.range, Some(lock));
            self.put((class, ino), holder, locks);
        }
        Ok(())
    }

    /// What the session has claimed isn't asked any more: it has told this leader before what it holds.
    pub fn forget_claims(&mut self, session: SessionId) {
        if let Some(known) = self.sessions.get_mut(&session) {
            known.claims = Vec::new();
        }
    }

    /// What the session has locked, and the number of its last change that is known: a process that succeeds its own
    /// counts on from there.
    #[must_use]
    pub fn held(&self, session: SessionId) -> (Vec<Claim>, u64) {
        let Some(known) = self.sessions.get(&session) else { return (Vec::new(), 0) };
        let mut held = Vec::new();
        for ino in &known.inodes {
            for class in LockClass::ALL {
                for owner in self.owners(session, (class, *ino)) {
                    let locks = self.of((class, *ino), Holder { session, owner });
                    held.extend(locks.iter().map(|lock| Claim { ino: *ino, class, owner, lock: *lock }));
                }
            }
        }
        let last = known.answers.keys().next_back().copied().unwrap_or(0);
        (held, last.max(known.floor))
    }

    /// A session has ended: all of its locks go. Returns the inodes that had some.
    pub fn ended(&mut self, session: SessionId) -> Vec<InodeId> {
        let freed = self.let_go(session);
        self.sessions.remove(&session);
        freed
    }

    fn let_go(&mut self, session: SessionId) -> Vec<InodeId> {
        let Some(known) = self.sessions.get_mut(&session) else { return Vec::new() };
        let inodes = std::mem::take(&mut known.inodes);
        known.ranges = 0;
        for ino in &inodes {
            for class in LockClass::ALL {
                let of = (class, *ino);
                for owner in self.owners(session, of) {
                    let Some(owners) = self.inodes.get_mut(&of) else { continue };
                    owners.remove(&Holder { session, owner });
                    if owners.is_empty() {
                        self.inodes.remove(&of);
                    }
                }
            }
        }
        inodes.into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
