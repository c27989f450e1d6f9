use atoll_core::error::FsError;
use atoll_core::ids::SessionId;
use atoll_core::lock_table::{Changed, LockTable};
use atoll_core::locks::{LockMode, LockRange, LockScope, ReleaseLocks, conflicts};
use proptest::prelude::*;

use super::*;

const A: InodeId = InodeId(5);
const B: InodeId = InodeId(6);
const X: Option<LockMode> = Some(LockMode::Exclusive);
const S: Option<LockMode> = Some(LockMode::Shared);

fn request(ino: InodeId, owner: u64, mode: Option<LockMode>, start: u64, end: u64) -> LockRequest {
    let range = LockRange { start, end };
    LockRequest { ino, class: LockClass::Record, owner, handle: owner, pid: 7, mode, range }
}

fn set(ino: InodeId, mode: Option<LockMode>) -> LockChange {
    LockChange::Set(request(ino, 1, mode, 0, 9))
}

fn told(held: &mut HeldLocks, term: u64) -> Vec<Option<LockMode>> {
    let told = held.tell(term).unwrap();
    held.is_known_to(term);
    told.iter().flat_map(|told| &told.locks).map(|claim| Some(claim.lock.mode)).collect()
}

fn told_without_answer(held: &mut HeldLocks, term: u64) -> usize {
    held.tell(term).unwrap().len()
}

#[test]
fn nothing_is_sent_before_the_leader_was_told() {
    let mut held = HeldLocks::default();
    let number = held.begin(set(A, X));
    assert_eq!(held.stamp(), None);
    held.is_known_to(3);
    let first = held.stamp().unwrap();
    assert_eq!((first.term, first.floor), (3, number));
    assert_eq!(told_without_answer(&mut held, 4), 1);
    assert_eq!(held.stamp(), None);
    assert_eq!(held.tell(3), None, "an older leader's question comes late");
    held.is_known_to(3);
    assert_eq!(held.stamp(), None);
    held.is_known_to(4);
    let later = held.begin(set(B, X));
    assert!(!held.answered(number, first, true), "the leader before this granted it");
    let second = held.stamp().unwrap();
    assert!(held.answered(number, second, true));
    assert_eq!(held.stamp().unwrap().floor, later);
    held.is_unknown_to(3);
    assert!(held.stamp().is_some());
    held.is_unknown_to(5);
    assert_eq!(held.stamp(), None);
    assert!(held.answered(later, second, false), "the newer leader hasn't been told anything yet");
    held.is_known_to(5);
    assert_eq!(held.stamp().unwrap().floor, later + 1);
}

#[test]
fn what_is_let_go_of_is_not_claimed_and_what_is_taken_not_before_it_is_known() {
    let mut held = HeldLocks::default();
    held.is_known_to(1);
    let take = held.begin(set(A, X));
    assert_eq!(told(&mut held, 2), []);
    let second = held.stamp().unwrap();
    assert!(held.answered(take, second, true));
    assert_eq!(told(&mut held, 3), [X]);
    let downgrade = held.begin(set(A, S));
    let third = held.stamp().unwrap();
    assert!(held.answered(downgrade, third, false));
    assert_eq!(told(&mut held, 4), [X], "it was refused, so it is as it was");
    let unlock = held.begin(set(A, None));
    assert_eq!(told(&mut held, 5), []);
    let fifth = held.stamp().unwrap();
    assert!(held.answered(unlock, fifth, false));
    assert_eq!(told(&mut held, 6), [], "the leader of the fifth term didn't hear of it");
}

#[test]
fn all_is_claimed_in_bounded_messages_and_nothing_after_the_session() {
    let mut held = HeldLocks::default();
    held.is_known_to(1);
    for ino in 0..LOCKS_PER_MESSAGE_MAX as u64 + 1 {
        let number = held.begin(set(InodeId(ino), X));
        let stamp = held.stamp().unwrap();
        assert!(held.answered(number, stamp, true));
    }
    let messages = held.tell(2).unwrap();
    let lengths: Vec<_> = messages.iter().map(|told| told.locks.len()).collect();
    assert_eq!(lengths, [LOCKS_PER_MESSAGE_MAX, 1]);
    held.is_known_to(2);
    let unlock = held.begin(set(A, None));
    let stamp = held.stamp().unwrap();
    held.lost();
    assert_eq!(held.stamp(), None);
    held.is_known_to(2);
    assert!(!held.answered(unlock, stamp, true), "that was about the session before");
    let stamp = held.stamp().unwrap();
    assert!(held.answered(unlock, stamp, false), "it goes on");
    assert_eq!(told(&mut held, 3), []);
}

/// What happens in a group whose leaders come and go, with answers and requests that get lost, come late, or twice.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A session begins a change, if none of this inode is under way.
    Begin(usize, LockChange),
    /// One of its changes under way is sent to the leader; its answer is under way, too.
    Send(usize, usize),
    /// One of all requests that were ever sent arrives (again).
    Arrive(usize),
    /// One of all answers arrives (again).
    Answer(usize),
    /// Another leader.
    Elect,
    /// The same, which has lost its memory, and what was sent to it.
    Restart,
    /// A session is asked by the leader to tell it everything, and does.
    Tell(usize),
}

const SESSIONS: usize = 3;

fn changes() -> impl Strategy<Value = LockChange> {
    let ino = prop_oneof![Just(A), Just(B)];
    prop_oneof![
        8 => (ino.clone(), 0u64..2, 0usize..3, 0u64..6, 0u64..6).prop_map(|(ino, owner, mode, a, b)| {
            LockChange::Set(request(ino, owner, [None, S, X][mode], a.min(b), a.max(b)))
        }),
        1 => (ino, 0u64..2).prop_map(|(ino, handle)| {
            LockChange::Release(ReleaseLocks { ino, scope: LockScope::Handle(handle) })
        }),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..SESSIONS, changes()).prop_map(|(session, change)| Event::Begin(session, change)),
        6 => (0..SESSIONS, 0usize..4).prop_map(|(session, which)| Event::Send(session, which)),
        4 => (0usize..200).prop_map(Event::Arrive),
        8 => (0usize..200).prop_map(Event::Answer),
        1 => Just(Event::Elect),
        1 => Just(Event::Restart),
        3 => (0..SESSIONS).prop_map(Event::Tell),
    ]
}

#[derive(Clone, Copy)]
struct Sent {
    session: usize,
    number: u64,
    stamp: Stamp,
    change: LockChange,
}

struct Group {
    term: u64,
    table: LockTable,
    has_told: [bool; SESSIONS],
    sessions: [HeldLocks; SESSIONS],
    sent: Vec<Sent>,
    answers: Vec<(Sent, Changed)>,
}

impl Group {
    fn arrive(&mut self, sent: Sent) {
        if sent.stamp.term != self.term || !self.has_told[sent.session] {
            return;
        }
        let all_told = self.has_told.iter().all(|told| *told);
        let session = SessionId(sent.session as u64);
        match self.table.change(session, (sent.number, sent.stamp.floor), &sent.change, all_told) {
            Changed::Unknown => {}
            answer => self.answers.push((sent, answer)),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Begin(session, change) => {
                let held = &mut self.sessions[session];
                if held.under_way.values().all(|under_way| under_way.change.ino() != change.ino()) {
                    held.begin(change);
                }
            }
            Event::Send(session, which) => {
                let held = &self.sessions[session];
                let Some(stamp) = held.stamp() else { return };
                let Some((number, under_way)) = held.under_way.iter().nth(which) else { return };
                let sent = Sent { session, number: *number, stamp, change: under_way.change };
                self.sent.push(sent);
                self.arrive(sent);
            }
            Event::Arrive(which) if !self.sent.is_empty() => self.arrive(self.sent[which % self.sent.len()]),
            Event::Answer(which) if !self.answers.is_empty() => {
                // The newest ones first, or most are late.
                let (sent, answer) = &self.answers[self.answers.len() - 1 - which % self.answers.len()];
                let late = *answer == Changed::Refused(FsError::BadSequence);
                let held = &mut self.sessions[sent.session];
                if held.under_way.contains_key(&sent.number) {
                    assert!(!late, "it is under way and would never end");
                    let _ = held.answered(sent.number, sent.stamp, *answer == Changed::Done);
                }
            }
            Event::Elect | Event::Restart => {
                match event {
                    Event::Restart => self.sent.clear(),
                    _ => self.term += 1,
                }
                self.table = LockTable::default();
                self.has_told = [false; SESSIONS];
            }
            Event::Tell(session) if !self.has_told[session] => {
                let messages = self.sessions[session].tell(self.term).expect("nobody leads in a later term");
                for LocksTold { telling, part, locks, .. } in messages {
                    self.table.claim(SessionId(session as u64), (telling, part), &locks).unwrap();
                }
                self.table.adopt(SessionId(session as u64)).expect("two sessions claim what conflicts");
                self.has_told[session] = true;
                self.sessions[session].is_known_to(self.term);
            }
            Event::Arrive(_) | Event::Answer(_) | Event::Tell(_) => {}
        }
    }

    /// Nobody takes a lock for its own that is in the way of another's.
    fn check(&self) {
        for (session, held) in self.sessions.iter().enumerate() {
            for other in &self.sessions[session + 1..] {
                for claim in held.claims() {
                    let conflicting = other.claims().find(|theirs| {
                        theirs.ino == claim.ino && conflicts(&theirs.lock, &claim.lock.range, claim.lock.mode)
                    });
                    assert_eq!(conflicting, None, "in the way of {claim:?} in the term {}", self.term);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_two_sessions_have_a_lock_whatever_gets_lost_or_comes_late(
        events in proptest::collection::vec(events(), 1..150),
    ) {
        let mut group = Group {
            term: 1,
            table: LockTable::default(),
            has_told: [true; SESSIONS],
            sessions: Default::default(),
            sent: Vec::new(),
            answers: Vec::new(),
        };
        group.sessions.iter_mut().for_each(|held| held.is_known_to(1));
        for event in events {
            group.happen(event);
            group.check();
        }
        // Once all have told, and everything has arrived, sessions hold what the leader says that they do.
        for session in 0..SESSIONS {
            group.happen(Event::Tell(session));
        }
        for session in 0..SESSIONS {
            while !group.sessions[session].under_way.is_empty() {
                group.happen(Event::Send(session, 0));
                group.happen(Event::Answer(0));
            }
        }
        for (session, held) in group.sessions.iter().enumerate() {
            let mut ranges = 0;
            for claim in held.claims() {
                let holder = atoll_core::locks::Holder { session: SessionId(session as u64), owner: claim.owner };
                prop_assert!(group.table.of((claim.class, claim.ino), holder).contains(&claim.lock));
                ranges += 1;
            }
            group.table.ended(SessionId(session as u64));
            prop_assert!(ranges > 0 || held.claims().next().is_none());
        }
        prop_assert!(group.table.is_empty());
    }
}
