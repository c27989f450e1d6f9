//! The leader's table of sessions: who is alive, and who holds which file open.
//!
//! It lives in the leader's memory only. A new leader knows the sessions from their records and gives each a
//! full lifetime; what they hold open, and what they have locked, they tell again (reclaim). Until every known session has
//! done so or has expired, nobody can say that a file is held by no one, so nothing unlinked is freed and no lock granted.
//!
//! Pure: the time is an argument (since boot).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use atoll_core::ids::{InodeId, SessionId};

/// Files that one session may hold open; a client that wants more is told to try again.
pub const OPEN_FILES_MAX: usize = 1 << 20;

/// One session that is alive.
#[derive(Debug)]
struct Entry {
    heard: Duration,
    /// The highest feature level that its client knows; 0: not known yet.
    feature_level: u32,
    /// It has told this leader what it holds open.
    reclaimed: bool,
    /// What it has told so far in a reclaim of several messages.
    reclaiming: HashSet<InodeId>,
    open: HashSet<InodeId>,
    /// It is to give back what it has reserved and doesn't use.
    return_reservation: bool,
}

/// The table. The default is that of a member that doesn't lead.
#[derive(Debug, Default)]
pub struct Sessions {
    term: u64,
    lifetime: Duration,
    entries: HashMap<SessionId, Entry>,
    /// How many of them haven't told this leader what they hold.
    untold: usize,
    /// How many sessions hold an inode.
    holders: HashMap<InodeId, u32>,
    /// Inodes without a name that were left alone because somebody holds them.
    awaited: HashSet<InodeId>,
    /// Inodes whose freeing is under way: nobody may hold them any more.
    going: HashSet<InodeId>,
    /// Inodes whose last name is being removed in the entry that frees them: who wants to hold them waits.
    unlinking: HashSet<InodeId>,
}

/// The session isn't known to the leader: it has expired, or never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown session")]
pub struct Unknown;

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// See [`Unknown`].
    #[error("unknown session")]
    Unknown,
    /// See [`OPEN_FILES_MAX`].
    #[error("the session has {OPEN_FILES_MAX} files open, which is the limit")]
    TooMany,
    /// The inode has no name and is being freed.
    #[error("the inode is being freed")]
    Going,
    /// The last name of the inode is being removed; it may stay, if that is refused.
    #[error("the inode is being unlinked")]
    Unlinking,
}

impl Sessions {
    /// This member leads from `now` on; `known` are the recorded sessions that haven't ended.
    #[must_use]
    pub fn begin(
        term: u64,
        lifetime: Duration,
        now: Duration,
        known: impl IntoIterator<Item = SessionId>,
    ) -> Sessions {
        let mut table = Sessions { term, lifetime, ..Sessions::default() };
        for session in known {
            table.insert(session, now, false);
        }
        table
    }

    fn insert(&mut self, session: SessionId, now: Duration, reclaimed: bool) {
        self.untold += usize::from(!reclaimed);
        self.entries.insert(
            session,
            Entry {
                heard: now,
                feature_level: 0,
                reclaimed,
                reclaiming: HashSet::new(),
                open: HashSet::new(),
                return_reservation: false,
            },
        );
    }

    /// A session was made: it holds nothing yet.
    pub fn opened(&mut self, session: SessionId, now: Duration) {
        if !self.entries.contains_key(&session) {
            self.insert(session, now, true);
        }
    }

    /// A session has ended; what it held is let go. Returns the inodes without a name that nobody holds any more: they have
    /// to be looked at again.
    #[must_use]
    pub fn ended(&mut self, session: SessionId) -> Vec<InodeId> {
        let entry = self.entries.remove(&session);
        self.untold -= usize::from(entry.as_ref().is_some_and(|entry| !entry.reclaimed));
        let held = entry.map_or_else(HashSet::new, |entry| entry.open);
        let mut let_go: Vec<InodeId> = held.into_iter().filter(|ino| self.let_go_of(*ino)).collect();
        let_go.sort();
        let_go
    }

    /// The session's client knows this feature level.
    pub fn knows(&mut self, session: SessionId, feature_level: u32) {
        if let Some(entry) = self.entries.get_mut(&session) {
            entry.feature_level = feature_level;
        }
    }

    /// The highest feature level that each session's client knows; 0: it hasn't spoken to this leader.
    pub fn feature_levels(&self) -> impl Iterator<Item = (SessionId, u32)> {
        self.entries.iter().map(|(session, entry)| (*session, entry.feature_level))
    }

    /// All sessions that are alive but one.
    #[must_use]
    pub fn others(&self, session: SessionId) -> Vec<SessionId> {
        self.entries.keys().copied().filter(|other| *other != session).collect()
    }

    /// Something came from the session.
    ///
    /// # Errors
    /// If it isn't known.
    pub fn heard(&mut self, session: SessionId, now: Duration) -> Result<(), Unknown> {
        let entry = self.entries.get_mut(&session).ok_or(Unknown)?;
        entry.heard = entry.heard.max(now);
        Ok(())
    }

    /// The session holds `ino` open from now on; whether it didn't before.
    ///
    /// # Errors
    /// If it isn't known, or holds too many.
    pub fn hold(&mut self, session: SessionId, ino: InodeId) -> Result<bool, OpenError> {
        if self.going.contains(&ino) {
            return Err(OpenError::Going);
        }
        if self.unlinking.contains(&ino) {
            return Err(OpenError::Unlinking);
        }
        let entry = self.entries.get_mut(&session).ok_or(OpenError::Unknown)?;
        if entry.open.len() >= OPEN_FILES_MAX && !entry.open.contains(&ino) {
            return Err(OpenError::TooMany);
        }
        let is_new = entry.open.insert(ino);
        if is_new {
            *self.holders.entry(ino).or_default() += 1;
        }
        Ok(is_new)
    }

    /// The session holds `ino` no more. True if it has no name and nobody holds it any more: it has to be looked at again.
    #[must_use]
    pub fn release(&mut self, session: SessionId, ino: InodeId) -> bool {
        let Some(entry) = self.entries.get_mut(&session) else { return false };
        entry.reclaiming.remove(&ino);
        entry.open.remove(&ino) && self.let_go_of(ino)
    }

    /// True if nobody holds it any more and somebody waited for that.
    fn let_go_of(&mut self, ino: InodeId) -> bool {
        let Some(count) = self.holders.get_mut(&ino) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.holders.remove(&ino);
        self.awaited.remove(&ino)
    }

    /// The session tells (part of) what it holds open.
    ///
    /// # Errors
    /// If it isn't known, or holds too many.
    pub fn reclaim(&mut self, session: SessionId, open: &[InodeId], more: bool) -> Result<(), OpenError> {
        let entry = self.entries.get_mut(&session).ok_or(OpenError::Unknown)?;
        if entry.reclaiming.len() + open.len() > OPEN_FILES_MAX {
            return Err(OpenError::TooMany);
        }
        entry.reclaiming.extend(open);
        if !more {
            self.untold -= usize::from(!std::mem::replace(&mut entry.reclaimed, true));
            // What it opened meanwhile stays: the message may have been made before.
            for ino in std::mem::take(&mut entry.reclaiming) {
                if entry.open.insert(ino) {
                    *self.holders.entry(ino).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    /// Whether this leader still has to be told what the session holds. One that it saw begin has told it
    /// everything.
    #[must_use]
    pub fn must_reclaim(&self, session: SessionId) -> bool {
        self.entries.get(&session).is_some_and(|entry| !entry.reclaimed)
    }

    /// The term in which this member leads.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Whether nobody holds `ino`, for certain. If somebody does it is remembered, and whoever lets go of it last is told.
    /// If somebody may who hasn't spoken yet, all have to be looked at again when [all have](Self::all_reclaimed).
    pub fn is_free(&mut self, ino: InodeId) -> bool {
        if self.holders.contains_key(&ino) {
            self.awaited.insert(ino);
            return false;
        }
        self.all_reclaimed()
    }

    /// If nobody holds `ino` (see [`is_free`](Self::is_free)), nobody can any more until
    /// [`not_going`](Self::not_going).
    pub fn begin_going(&mut self, ino: InodeId) -> bool {
        let free = self.is_free(ino);
        if free {
            self.going.insert(ino);
        }
        free
    }

    /// The freeing has come to its end, or didn't begin.
    pub fn not_going(&mut self, ino: InodeId) {
        self.going.remove(&ino);
    }

    /// If nobody holds `ino`, for certain, nobody can until [`unlinked`](Self::unlinked).
    pub fn begin_unlinking(&mut self, ino: InodeId) -> bool {
        self.is_left(ino) && self.unlinking.insert(ino)
    }

    /// Its name was removed, or wasn't.
    pub fn unlinked(&mut self, ino: InodeId) {
        self.unlinking.remove(&ino);
    }

    /// Whether its last name is being removed.
    #[must_use]
    pub fn is_unlinking(&self, ino: InodeId) -> bool {
        self.unlinking.contains(&ino)
    }

    /// Every session has told this leader what it holds.
    #[must_use]
    pub fn all_reclaimed(&self) -> bool {
        self.untold == 0
    }

    /// Whether nobody holds `ino` and nobody is freeing it, as far as anybody can say; remembers nothing.
    #[must_use]
    pub fn is_left(&self, ino: InodeId) -> bool {
        self.all_reclaimed() && !self.holders.contains_key(&ino) && !self.going.contains(&ino)
    }

    /// Sessions that were silent for their lifetime.
    #[must_use]
    pub fn expired(&self, now: Duration) -> Vec<SessionId> {
        let mut found: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| now.saturating_sub(entry.heard) > self.lifetime)
            .map(|(session, _)| *session)
            .collect();
        found.sort();
        found
    }

    /// This process stood still for `gap`: it couldn't have heard anybody meanwhile.
    pub fn forgive(&mut self, gap: Duration) {
        for entry in self.entries.values_mut() {
            entry.heard += gap;
        }
    }

    /// Asks all sessions but `except` to give back what they don't use of their reservations.
    pub fn recall_reservations(&mut self, except: SessionId) {
        for (session, entry) in &mut self.entries {
            entry.return_reservation |= *session != except;
        }
    }

    /// Whether the session is to give back its reservation; says so once.
    pub fn take_recall(&mut self, session: SessionId) -> bool {
        self.entries.get_mut(&session).is_some_and(|entry| std::mem::take(&mut entry.return_reservation))
    }

    /// The files that a session holds open.
    #[must_use]
    pub fn held(&self, session: SessionId) -> Vec<InodeId> {
        self.entries.get(&session).map_or_else(Vec::new, |entry| entry.open.iter().copied().collect())
    }

    /// How many files a session holds open; `None` if it isn't alive.
    #[must_use]
    pub fn open_files(&self, session: SessionId) -> Option<usize> {
        self.entries.get(&session).map(|entry| entry.open.len())
    }

    /// Sessions that are alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No session is alive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How long a session lives without a word.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(15);
    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(77);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1000 + seconds)
    }

    #[test]
    fn a_session_lives_for_a_lifetime_after_its_last_word() {
        let mut table = Sessions::begin(3, LIFE, at(0), [A, B]);
        table.heard(A, at(10)).unwrap();
        assert_eq!(table.expired(at(15)), []);
        assert_eq!(table.expired(at(16)), [B]);
        assert!(table.ended(B).is_empty());
        assert_eq!(table.heard(B, at(17)), Err(Unknown));
        assert_eq!(table.expired(at(26)), [A]);
    }

    #[test]
    fn a_leader_that_stood_still_does_not_blame_the_sessions() {
        let mut table = Sessions::begin(3, LIFE, at(0), [A]);
        table.forgive(Duration::from_secs(60));
        assert_eq!(table.expired(at(60)), []);
        assert_eq!(table.expired(at(76)), [A]);
    }

    #[test]
    fn nothing_is_free_before_all_have_reclaimed_or_are_gone() {
        let mut table = Sessions::begin(3, LIFE, at(0), [A, B]);
        assert!(!table.is_free(FILE));
        assert!(table.must_reclaim(A));
        table.reclaim(A, &[FILE], true).unwrap();
        table.reclaim(A, &[], false).unwrap();
        assert!(!table.must_reclaim(A));
        assert!(!table.is_free(InodeId(78)), "B has not spoken");
        assert!(table.ended(B).is_empty());
        assert!(table.is_free(InodeId(78)) && table.is_left(InodeId(78)));
        assert!(!table.is_free(FILE) && !table.is_left(FILE), "A holds it");
        assert!(table.release(A, FILE), "it was waited for");
        assert!(table.is_free(FILE));
    }

    #[test]
    fn what_two_hold_is_free_when_both_let_go() {
        let mut table = Sessions::begin(1, LIFE, at(0), []);
        table.opened(A, at(0));
        table.opened(B, at(0));
        assert_eq!(table.hold(A, FILE), Ok(true));
        assert_eq!(table.hold(A, FILE), Ok(false));
        assert_eq!(table.hold(B, FILE), Ok(true));
        assert!(!table.is_free(FILE));
        assert!(!table.release(A, FILE), "B holds it");
        assert_eq!(table.ended(B), [FILE]);
        assert!(!table.must_reclaim(A), "this leader saw it begin");
    }

    #[test]
    fn what_is_being_freed_can_not_be_opened() {
        let mut table = Sessions::begin(3, LIFE, at(0), []);
        table.opened(A, at(0));
        table.hold(A, FILE).unwrap();
        assert!(!table.begin_going(FILE));
        assert!(table.release(A, FILE));
        assert!(table.begin_going(FILE));
        assert!(!table.is_left(FILE), "somebody is at it");
        assert_eq!(table.hold(A, FILE), Err(OpenError::Going));
        table.not_going(FILE);
        table.hold(A, FILE).unwrap();
    }

    #[test]
    fn what_is_being_unlinked_can_be_opened_when_that_is_over() {
        let mut table = Sessions::begin(3, LIFE, at(0), [B]);
        table.opened(A, at(0));
        assert!(!table.begin_unlinking(FILE), "B has not said what it holds");
        table.reclaim(B, &[], false).unwrap();
        table.hold(A, FILE).unwrap();
        assert!(!table.begin_unlinking(FILE), "A holds it");
        assert!(!table.release(A, FILE), "it has a name: nobody waited for that");
        assert!(table.begin_unlinking(FILE) && table.is_unlinking(FILE));
        assert!(!table.begin_unlinking(FILE), "somebody is at it");
        assert_eq!(table.hold(A, FILE), Err(OpenError::Unlinking));
        table.unlinked(FILE);
        assert_eq!(table.hold(A, FILE), Ok(true));
    }

    #[test]
    fn a_close_that_overtakes_the_reclaim_wins() {
        let mut table = Sessions::begin(3, LIFE, at(0), [A]);
        table.reclaim(A, &[FILE], true).unwrap();
        assert!(!table.release(A, FILE));
        table.reclaim(A, &[], false).unwrap();
        assert!(table.is_free(FILE));
    }

    #[test]
    fn a_recall_is_told_once_and_not_to_who_asked() {
        let mut table = Sessions::begin(1, LIFE, at(0), [A, B]);
        table.recall_reservations(A);
        assert!(!table.take_recall(A));
        assert!(table.take_recall(B));
        assert!(!table.take_recall(B));
    }
}
