//! Which locks this session holds, as a new leader is to know it, and the changes of them that are under way. Pure.
//!
//! Each change has a number and is sent until its outcome is known: to the leader of one term after the other, and to each
//! only once that one has been told what the session holds. What it is told is fixed at one moment ([`HeldLocks::tell`]), and
//! from then on this leader's answers count and no older one's: what an older leader has granted since is held by nobody, and
//! is asked for again.
//!
//! While a change is under way nobody here knows whether a leader has carried it out, and if it lets go of something another
//! session may have that by now. So from the moment at which it begins, what it lets go of isn't held any more, as far as a
//! new leader is told; and what it takes isn't held before its outcome is known. So no two sessions ever tell a leader locks
//! that are in each other's way.

use std::collections::BTreeMap;

use atoll_core::ids::InodeId;
use atoll_core::lock_table::Claim;
use atoll_core::locks::{HeldLock, LockChange, LockClass, LockRequest};
use atoll_proto::metadata::LocksTold;

/// Locks named in one message.
pub const LOCKS_PER_MESSAGE_MAX: usize = 4096;

type Owner = (LockClass, u64);

/// With what a change is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The term of the leader that it is for.
    pub term: u64,
    /// The lowest number that is under way.
    pub floor: u64,
    /// What that leader knows.
    telling: u64,
}

#[derive(Debug)]
struct UnderWay {
    change: LockChange,
    /// What those owners of the inode's locks had before that it changes something for.
    before: BTreeMap<Owner, Vec<HeldLock>>,
    /// What the leader knew.
    telling: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct HeldLocks {
    inodes: BTreeMap<InodeId, BTreeMap<Owner, Vec<HeldLock>>>,
    under_way: BTreeMap<u64, UnderWay>,
    last: u64,
    /// Counts the times at which another leader, or one that was started again, was told what is held.
    telling: u64,
    /// The term of the leader whose answers count: it is being told, or has been told, what is held.
    term: u64,
    /// It has been told everything.
    is_told: bool,
}

impl HeldLocks {
    /// What a predecessor of this process has left: its locks as the leader has them, the number of its last change, and a
    /// number that is higher than how often it has told a leader.
    pub fn inherit(&mut self, claims: &[Claim], last: u64, telling: u64) {
        for Claim { ino, class, owner, lock } in claims {
            self.inodes.entry(*ino).or_default().entry((*class, *owner)).or_default().push(*lock);
        }
        (self.last, self.telling) = (last, telling);
    }

    /// A change begins; of one inode's locks there is one under way at a time. Returns its number.
    pub fn begin(&mut self, change: LockChange) -> u64 {
        self.last += 1;
        let owners = self.inodes.entry(change.ino()).or_default();
        let mut before = BTreeMap::new();
        for (&(class, owner), locks) in owners.iter_mut().filter(|(owner, _)| change.concerns(owner)) {
            let kept = change.at_least(class, owner, locks);
            before.insert((class, owner), std::mem::replace(locks, kept));
        }
        self.under_way.insert(self.last, UnderWay { change, before, telling: self.telling });
        self.tidy(change.ino());
        self.last
    }

    /// With what a change may be sent now. `None`: not before the leader has been told what is held.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        let floor = self.under_way.keys().next().copied().unwrap_or(self.last + 1);
        self.is_told.then_some(Stamp { term: self.term, floor, telling: self.telling })
    }

    /// The leader has answered that a change is done, or refused. False if the answer doesn't count: a newer leader has been
    /// told that it wasn't known, or the session is lost.
    #[must_use]
    pub fn answered(&mut self, number: u64, stamp: Stamp, is_done: bool) -> bool {
        let counts = stamp.telling == self.telling;
        if counts {
            self.settle(number, is_done);
        }
        counts
    }

    fn settle(&mut self, number: u64, is_done: bool) {
        let Some(UnderWay { change, mut before, telling }) = self.under_way.remove(&number) else {
            return;
        };
        let owners = self.inodes.entry(change.ino()).or_default();
        if is_done {
            if let LockChange::Set(LockRequest { class, owner, .. }) = change {
                before.entry((class, owner)).or_default();
            }
            for ((class, owner), locks) in before {
                owners.insert((class, owner), change.after(class, owner, &locks));
            }
        } else if telling == self.telling {
            owners.extend(before);
        }
        // Else a newer leader has been told less than there was before.
        self.tidy(change.ino());
    }

    fn tidy(&mut self, ino: InodeId) {
        if let Some(owners) = self.inodes.get_mut(&ino) {
            owners.retain(|_, locks| !locks.is_empty());
            if owners.is_empty() {
                self.inodes.remove(&ino);
            }
        }
    }

    /// The leader of this term knows what the session holds: it has seen it begin, or was told before.
    pub fn is_known_to(&mut self, term: u64) {
        self.telling += u64::from(term > self.term);
        if term >= self.term {
            self.term = term;
            self.is_told = true;
        }
    }

    /// The leader of this term doesn't know what the session holds.
    pub fn is_unknown_to(&mut self, term: u64) {
        if term >= self.term {
            self.is_told = false;
        }
    }

    /// The leader of this term wants to be told what is held: in messages, of which there is at least one. `None` if a leader
    /// of a later term has asked.
    pub fn tell(&mut self, term: u64) -> Option<Vec<LocksTold>> {
        if term < self.term {
            return None;
        }
        self.telling += 1;
        self.term = term;
        self.is_told = false;
        let all: Vec<Claim> = match atoll_faults::planted("lock-not-reclaimed") {
            true => Vec::new(),
            false => self.claims().collect(),
        };
        let telling = self.telling;
        let message = |(part, locks): (usize, &[Claim])| LocksTold {
            term,
            telling,
            part: part as u32,
            locks: locks.to_vec(),
        };
        match all.is_empty() {
            true => Some(vec![message((0, &[]))]),
            false => Some(all.chunks(LOCKS_PER_MESSAGE_MAX).enumerate().map(message).collect()),
        }
    }

    fn claims(&self) -> impl Iterator<Item = Claim> {
        self.inodes.iter().flat_map(|(ino, owners)| {
            owners.iter().flat_map(move |((class, owner), locks)| {
                locks.iter().map(move |lock| Claim { ino: *ino, class: *class, owner: *owner, lock: *lock })
            })
        })
    }

    /// The session is lost, and all locks with it. Changes that are under way go on in the next one.
    pub fn lost(&mut self) {
        self.inodes.clear();
        self.under_way.values_mut().for_each(|under_way| under_way.before.clear());
        self.telling += 1;
        (self.term, self.is_told) = (0, false);
    }
}

#[cfg(test)]
mod tests;
