//! The records of all members are the same, and hold what `atoll_core::check` asks of them: names, parents, links, extents,
//! back references, chunks, quota. At rest nothing leaks: no orphan, no reservation, no task.

use std::ops::ControlFlow;

use atoll_core::check::check as problems;
use atoll_core::commands::INTERNAL;
use atoll_core::keys;
use atoll_core::records::{Record, SessionRecord};
use atoll_core::store::{Family, Read, StoreError, prefix_end};

/// What of the records belongs to the member alone: position, membership, format.
const OWN: &[u8] = b"A";

type Dump = Vec<(Family, Vec<u8>, Vec<u8>)>;

fn dump(records: &dyn Read) -> Result<Dump, StoreError> {
    let mut all = Vec::new();
    for family in Family::ALL {
        records.scan(family, &[], &prefix_end(&[]), &mut |key, value| {
            if family != Family::System || !key.starts_with(OWN) {
                all.push((family, key.to_vec(), value.to_vec()));
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(all)
}

fn count(records: &dyn Read, prefix: &[u8]) -> Result<usize, StoreError> {
    let mut found = 0;
    records.scan(Family::System, prefix, &prefix_end(prefix), &mut |_, _| {
        found += 1;
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Work that is left, but for so many sessions: at rest there is none. The chunk that the metadata service writes itself is
/// sealed only when it was idle for long, which is waited for if `all` is wanted.
///
/// # Errors
/// If the records can't be read.
pub fn leftovers(records: &dyn Read, expected: usize, all: bool) -> Result<Vec<String>, StoreError> {
    let mut left = Vec::new();
    let kinds = [
        ("orphans", keys::orphans()),
        ("truncations", keys::truncations()),
        ("tasks", keys::all_tasks()),
        ("open chunks", keys::all_written()),
    ];
    for (what, prefix) in kinds {
        let mut count = count(records, &prefix)?;
        if what == "open chunks" && !all {
            count -= self::count(records, &keys::written_by(INTERNAL))?;
        }
        if count > 0 {
            left.push(format!("{count} {what}"));
        }
    }
    let mut sessions = 0;
    let prefix = keys::sessions();
    records.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |_, value| {
        // Those that have ended still answer for what they did.
        sessions += usize::from(SessionRecord::decode(value).is_ok_and(|session| session.ended.is_none()));
        ControlFlow::Continue(())
    })?;
    if sessions != expected {
        left.push(format!("{sessions} sessions"));
    }
    Ok(left)
}

/// Checks the records of all members, all of which have applied everything.
///
/// # Errors
/// What is wrong.
pub fn check(members: &[&dyn Read]) -> Result<(), String> {
    let failed = |error: StoreError| error.to_string();
    let mut first: Option<Dump> = None;
    for (number, records) in members.iter().enumerate() {
        let found = problems(*records).map_err(failed)?;
        if !found.is_empty() {
            return Err(format!("member {number}: {}", found.join("; ")));
        }
        let all = dump(*records).map_err(failed)?;
        match &first {
            None => first = Some(all),
            Some(first) => {
                if let Some(at) = (0..first.len().max(all.len())).find(|at| first.get(*at) != all.get(*at)) {
                    return Err(format!(
                        "the records of member {number} differ from those of member 0: {:?} instead of {:?}",
                        all.get(at),
                        first.get(at)
                    ));
                }
            }
        }
    }
    Ok(())
}
