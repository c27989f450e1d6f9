use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::locks::{LockScope, ReleaseLocks};

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const FILE: InodeId = InodeId(5);
const BYTES: u64 = 12;

fn request(owner: u64, mode: Option<LockMode>, start: u64, end: u64) -> LockRequest {
    let range = LockRange { start, end };
    LockRequest { ino: FILE, class: LockClass::Record, owner, handle: owner, pid: 7, mode, range }
}

fn set(owner: u64, mode: Option<LockMode>, start: u64, end: u64) -> LockChange {
    LockChange::Set(request(owner, mode, start, end))
}

fn claim(owner: u64, mode: LockMode, start: u64, end: u64) -> Claim {
    let lock = request(owner, Some(mode), start, end).lock().unwrap();
    Claim { ino: FILE, class: LockClass::Record, owner, lock }
}

const X: Option<LockMode> = Some(LockMode::Exclusive);
const S: Option<LockMode> = Some(LockMode::Shared);
const LOCKED: Changed = Changed::Refused(FsError::Locked);
const LATE: Changed = Changed::Refused(FsError::BadSequence);

#[test]
fn what_comes_late_or_twice_undoes_nothing() {
    let mut table = LockTable::default();
    let (lock, unlock) = (set(1, X, 0, 9), set(1, None, 0, 9));
    assert_eq!(table.change(A, (1, 1), &lock, true), Changed::Done);
    assert_eq!(table.change(A, (1, 1), &lock, true), Changed::Done);
    assert_eq!(table.change(A, (2, 2), &unlock, true), Changed::Done);
    assert_eq!(table.change(A, (1, 1), &lock, true), LATE, "it would take what nobody lets go of");
    assert_eq!(table.change(B, (1, 1), &lock, true), Changed::Done);
    assert_eq!(table.change(A, (3, 3), &lock, true), LOCKED);
    assert_eq!(table.change(B, (2, 2), &unlock, true), Changed::Done);
    assert_eq!(table.change(A, (3, 3), &lock, true), LOCKED, "as it was answered");
    assert_eq!(table.change(A, (4, 4), &lock, true), Changed::Done);
    assert_eq!(table.change(A, (2, 2), &unlock, true), LATE, "it would let go of what was taken later");
    assert_eq!(table.len(), 1);
}

#[test]
fn a_successor_is_told_what_is_locked_and_counts_on() {
    let mut table = LockTable::default();
    table.change(A, (1, 1), &set(1, X, 0, 9), true);
    table.change(A, (2, 2), &set(2, S, 20, 29), true);
    table.change(B, (7, 7), &set(1, X, 40, 49), true);
    let own = vec![claim(1, LockMode::Exclusive, 0, 9), claim(2, LockMode::Shared, 20, 29)];
    assert_eq!(table.held(A), (own, 2));
    assert_eq!(table.held(SessionId(9)), (Vec::new(), 0));
    // With that number it lets go of what it was told of.
    assert_eq!(table.change(A, (3, 3), &set(1, None, 0, 9), true), Changed::Done);
    assert_eq!(table.held(A).0.len(), 1);
}

#[test]
fn what_is_under_way_elsewhere_keeps_nothing_back_and_is_remembered() {
    let mut table = LockTable::default();
    let other = |change: LockChange| match change {
        LockChange::Set(request) => LockChange::Set(LockRequest { ino: InodeId(6), ..request }),
        LockChange::Release(_) => unreachable!(),
    };
    let (lock, unlock) = (set(1, X, 0, 9), set(1, None, 0, 9));
    // Number 1, about the other inode, is under way for long.
    assert_eq!(table.change(A, (2, 1), &lock, true), Changed::Done);
    assert_eq!(table.change(A, (3, 1), &unlock, true), Changed::Done);
    assert_eq!(table.change(A, (1, 1), &other(lock), true), Changed::Done);
    assert_eq!(table.change(A, (2, 1), &lock, true), LATE);
    assert_eq!(table.change(A, (4, 4), &other(unlock), true), Changed::Done);
    assert!(table.is_empty());
    assert_eq!(table.sessions[&A].answers.len(), 1, "only what may come again is remembered");
}

#[test]
fn nothing_is_granted_before_all_have_told_what_they_hold() {
    let mut table = LockTable::default();
    table.claim(A, (1, 0), &[claim(1, LockMode::Exclusive, 0, 4)]).unwrap();
    assert_eq!(table.change(B, (1, 1), &set(1, X, 0, 9), false), Changed::Unknown);
    table
        .claim(A, (1, 1), &[claim(1, LockMode::Exclusive, 5, 9), claim(2, LockMode::Shared, 20, 29)])
        .unwrap();
    table.adopt(A).unwrap();
    assert_eq!(table.len(), 2, "parts of one lock are one");
    assert_eq!(table.change(B, (1, 1), &set(1, X, 9, 9), false), LOCKED, "that is known already");
    assert_eq!(table.change(B, (2, 2), &set(1, S, 10, 10), false), Changed::Unknown);
    assert_eq!(table.change(A, (7, 7), &set(1, None, 0, 9), false), Changed::Done);
    assert_eq!(table.change(B, (2, 2), &set(1, S, 10, 10), true), Changed::Done);
    assert_eq!(table.change(B, (3, 3), &set(1, X, 0, 10), true), Changed::Done);
}

#[test]
fn a_claim_that_another_sessions_lock_is_in_the_way_of_changes_nothing() {
    let mut table = LockTable::default();
    let mut telling = 0;
    let mut tell = |table: &mut LockTable, session, claims: &[Claim]| {
        telling += 1;
        table.claim(session, (telling, 0), claims).and_then(|()| table.adopt(session))
    };
    let held = [claim(1, LockMode::Exclusive, 0, 4), claim(2, LockMode::Shared, 5, 9)];
    assert_eq!(tell(&mut table, A, &held), Ok(()));
    assert_eq!(tell(&mut table, B, &[claim(1, LockMode::Shared, 5, 9)]), Ok(()));
    let conflicting = [claim(1, LockMode::Shared, 4, 5)];
    assert_eq!(tell(&mut table, B, &conflicting), Err(NotHeld::Conflict(FILE)));
    assert_eq!(table.of((LockClass::Record, FILE), Holder { session: B, owner: 1 })[0].range.start, 5);
    assert_eq!(table.ended(A), [FILE]);
    assert_eq!(tell(&mut table, B, &conflicting), Ok(()));
    assert_eq!(table.len(), 1);
}

#[test]
fn claims_count_once_all_parts_have_come() {
    let mut table = LockTable::default();
    let part = |start| [claim(1, LockMode::Exclusive, start, start + 1)];
    assert_eq!(
        table.claim(A, (3, 1), &part(4)),
        Err(NotHeld::Incomplete),
        "the first was for another leader"
    );
    table.claim(A, (3, 0), &part(0)).unwrap();
    table.claim(A, (4, 0), &part(8)).unwrap();
    assert_eq!(table.claim(A, (3, 1), &part(4)), Err(NotHeld::Incomplete), "it has begun anew");
    table.claim(A, (4, 0), &part(8)).unwrap();
    table.claim(A, (4, 1), &part(12)).unwrap();
    table.adopt(A).unwrap();
    assert_eq!(table.len(), 2);
    let many = vec![part(0)[0]; 2 * LOCKS_PER_SESSION_MAX + 1];
    assert_eq!(table.claim(B, (1, 0), &many), Err(NotHeld::TooMany));
}

#[test]
fn limits_are_told_from_conflicts() {
    let mut table = LockTable::default();
    let mut number = 0;
    let mut change = |table: &mut LockTable, change| {
        number += 1;
        table.change(A, (number, number), &change, true)
    };
    assert_eq!(change(&mut table, set(0, X, 9, 5)), Changed::Refused(FsError::InvalidArgument));
    let beyond = crate::locks::TO_THE_END + 1;
    assert_eq!(change(&mut table, set(0, X, 0, beyond)), Changed::Refused(FsError::InvalidArgument));
    let held = |range: u64| request(0, S, 4 * range, 4 * range + 2).lock().unwrap();
    let (of, holder) = ((LockClass::Record, FILE), |owner| Holder { session: A, owner });
    table.put(of, holder(0), (0..LOCKS_PER_OWNER_MAX as u64).map(held).collect());
    let full = Changed::Refused(FsError::NoLocks);
    let end = 4 * LOCKS_PER_OWNER_MAX as u64;
    assert_eq!(change(&mut table, set(0, S, end, end)), full);
    assert_eq!(change(&mut table, set(0, None, 1, 1)), full, "an unlock that makes two of one");
    assert_eq!(change(&mut table, set(0, S, 3, 3)), Changed::Done, "two became one");
    for owner in 1..LOCK_OWNERS_PER_INODE_MAX as u64 {
        table.put(of, holder(owner), vec![held(0)]);
    }
    assert_eq!(change(&mut table, set(1 << 40, S, 0, 0)), full);
    table.ended(A);
    assert!(table.is_empty() && table.sessions.is_empty());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Set(SessionId, u64, Option<LockMode>, u64, u64),
    Owner(SessionId, u64),
    Handle(SessionId, u64),
    Ended(SessionId),
}

fn steps() -> impl Strategy<Value = Step> {
    let session = (1u64..=3).prop_map(SessionId);
    let set =
        (session.clone(), 0u64..2, 0u8..3, 0..BYTES, 0..BYTES).prop_map(|(session, owner, mode, a, b)| {
            Step::Set(session, owner, [None, S, X][usize::from(mode)], a.min(b), a.max(b))
        });
    prop_oneof![
        12 => set,
        1 => (session.clone(), 0u64..2).prop_map(|(session, owner)| Step::Owner(session, owner)),
        1 => (session.clone(), 0u64..2).prop_map(|(session, owner)| Step::Handle(session, owner)),
        1 => session.prop_map(Step::Ended),
    ]
}

fn change_of(step: Step) -> Option<(SessionId, LockChange)> {
    let release = |session, scope| Some((session, LockChange::Release(ReleaseLocks { ino: FILE, scope })));
    match step {
        Step::Set(session, owner, mode, start, end) => Some((session, set(owner, mode, start, end))),
        Step::Owner(session, owner) => release(session, LockScope::Owner(LockClass::Record, owner)),
        // `request` takes an owner's locks through the handle of the same number.
        Step::Handle(session, handle) => release(session, LockScope::Handle(handle)),
        Step::Ended(_) => None,
    }
}

/// Each byte with who has it locked and how.
type Model = BTreeMap<(SessionId, u64), [Option<LockMode>; BYTES as usize]>;

fn model_of(table: &LockTable) -> Model {
    let mut model = Model::new();
    for (holder, locks) in table.inodes.get(&(LockClass::Record, FILE)).into_iter().flatten() {
        let bytes = model.entry((holder.session, holder.owner)).or_insert([None; BYTES as usize]);
        for lock in locks {
            for byte in lock.range.start..=lock.range.end {
                bytes[byte as usize] = Some(lock.mode);
            }
        }
    }
    model
}

proptest! {
    #[test]
    fn it_is_a_table_of_bytes_in_which_nobody_is_in_anothers_way(
        steps in proptest::collection::vec(steps(), 0..60),
    ) {
        let (mut table, mut model, mut number) = (LockTable::default(), Model::new(), 0);
        for step in steps {
            number += 1;
            let changed = change_of(step).map(|(session, change)| {
                table.change(session, (number, number), &change, true)
            });
            match step {
                Step::Set(session, owner, mode, start, end) => {
                    let range = start as usize..=end as usize;
                    let blocked = mode.is_some() && model.iter().any(|(other, bytes)| {
                        *other != (session, owner)
                            && bytes[range.clone()].iter().flatten().any(|held| *held == LockMode::Exclusive || mode == X)
                    });
                    prop_assert_eq!(changed, Some(if blocked { LOCKED } else { Changed::Done }));
                    if !blocked {
                        model.entry((session, owner)).or_insert([None; BYTES as usize])[range].fill(mode);
                    }
                }
                Step::Owner(session, owner) | Step::Handle(session, owner) => {
                    model.remove(&(session, owner));
                }
                Step::Ended(session) => {
                    table.ended(session);
                    model.retain(|(other, _), _| *other != session);
                }
            }
            model.retain(|_, bytes| bytes.iter().any(Option::is_some));
            prop_assert_eq!(model_of(&table), model.clone());
            for (session, known) in &table.sessions {
                let held = model.keys().any(|(other, _)| other == session);
                prop_assert_eq!(known.inodes.contains(&FILE), held);
                let ranges: usize =
                    (0..2).map(|owner| table.of((LockClass::Record, FILE), Holder { session: *session, owner }).len()).sum();
                prop_assert_eq!(known.ranges, ranges);
                // What a process that continues the session would be told.
                let (claims, last) = table.held(*session);
                prop_assert_eq!(claims.len(), ranges);
                prop_assert!(last <= number);
            }
        }
    }

    /// Each message comes once in order, and besides that any number of times, whenever that is.
    #[test]
    fn messages_that_come_again_change_nothing(
        steps in proptest::collection::vec(steps(), 1..40),
        again in proptest::collection::vec((0usize..40, 0usize..40), 0..60),
    ) {
        let (mut once, mut often) = (LockTable::default(), LockTable::default());
        let mut sent: Vec<(SessionId, u64, LockChange)> = Vec::new();
        for (at, step) in steps.into_iter().enumerate() {
            let Some((session, change)) = change_of(step) else { continue };
            let number = at as u64 + 1;
            let answer = once.change(session, (number, number), &change, true);
            prop_assert_eq!(often.change(session, (number, number), &change, true), answer.clone());
            sent.push((session, number, change));
            prop_assert_eq!(often.change(session, (number, number), &change, true), answer);
            for (_, which) in again.iter().filter(|(when, _)| *when == at) {
                let (session, number, change) = sent[which % sent.len()];
                often.change(session, (number, number), &change, true);
            }
            prop_assert_eq!(model_of(&often), model_of(&once));
        }
    }
}
