//! The invariants between records: for tests, simulation and fsck.
//!
//! Each subject (an inode, an entry, a segment, a chunk, …) is checked by itself, by looking its counterparts up. So a
//! whole store is walked in one pass a family with the memory of one subject: the references to one chunk at most
//! (one a block). And what was found can be looked at again alone: a repair does that before it changes anything.

mod chunks;
mod finding;
mod locks;
mod names;
mod replicas;
mod segments;

use std::ops::ControlFlow;

pub(crate) use self::chunks::{dead_of, uses_of};
pub use self::finding::{Finding, Kind, PHASE_CHUNKS, Subject};
pub(crate) use self::names::{entries_of, lists_of, mapped_of, names_of};
pub use self::replicas::{Held, judge};
use crate::ids::{ChunkId, InodeId, ROOT, SegmentIndex, SessionId};
use crate::keys;
use crate::limits::NAME_BYTES_MAX;
use crate::locks::LockClass;
use crate::records::{InodeRecord, OrphanRecord, Record, SessionRecord, Superblock};
use crate::store::{Family, Read, StoreError, prefix_end};
use crate::txn::load;

/// Directories that a path is followed up through.
const PATH_DEPTH_MAX: usize = 256;

/// What a walk tells while it goes on.
#[derive(Debug)]
pub enum Seen {
    /// One more record of a kind was looked at.
    Looked(&'static str),
    /// Something is wrong.
    Found(Finding),
}

/// Is told what a walk sees; `Break` ends it.
pub type Watch<'a> = dyn FnMut(Seen) -> ControlFlow<()> + 'a;

/// What one subject is checked into.
pub(crate) type Found = Vec<Finding>;

/// The sums that the superblock keeps: what it says, and what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Inodes of the live tree.
    pub inodes: u64,
    /// Bytes charged.
    pub bytes_used: u64,
    /// Bytes promised.
    pub bytes_reserved: u64,
    /// Bytes of inline values.
    pub inline_bytes: u64,
}

impl Totals {
    /// What the superblock says.
    #[must_use]
    pub fn said(superblock: &Superblock) -> Totals {
        Totals {
            inodes: superblock.inodes_used,
            bytes_used: superblock.bytes_used,
            bytes_reserved: superblock.bytes_reserved,
            inline_bytes: superblock.inline_bytes,
        }
    }
}

/// Checks a store; returns what is wrong, in words. Empty: nothing.
///
/// # Errors
/// If the store fails.
pub fn check(store: &dyn Read) -> Result<Vec<String>, StoreError> {
    Ok(findings(store)?.into_iter().map(|finding| finding.words).collect())
}

/// Checks a store; returns what is wrong.
///
/// # Errors
/// If the store fails.
pub fn findings(store: &dyn Read) -> Result<Vec<Finding>, StoreError> {
    let mut found = Vec::new();
    walk(store, &mut |seen| {
        if let Seen::Found(finding) = seen {
            found.push(finding);
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Checks a whole store; returns the sums of what there is, unless the walk was ended early.
///
/// # Errors
/// If the store fails. A record that can't be read is a finding.
pub fn walk(store: &dyn Read, watch: &mut Watch<'_>) -> Result<Option<Totals>, StoreError> {
    let superblock = match load::<Superblock>(store, Family::System, &keys::superblock()) {
        Ok(Some(superblock)) => superblock,
        Ok(None) => {
            let _ = watch(Seen::Found(Finding::new(
                Kind::NoSuperblock,
                Subject::Volume,
                "the superblock is missing",
            )));
            return Ok(None);
        }
        Err(error) => {
            let _ = watch(Seen::Found(Finding::new(Kind::UnreadableRecord, Subject::Volume, error)));
            return Ok(None);
        }
    };
    let mut totals = Totals::default();
    for pass in PASSES {
        let mut failed = None;
        let mut ended = false;
        let mut last = None;
        store.scan(pass.family, &(pass.prefix)(), &prefix_end(&(pass.prefix)()), &mut |key, value| {
            let Some(subject) = (pass.subject)(key) else { return ControlFlow::Continue(()) };
            if pass.once {
                // Many records about one subject.
                if last.as_ref() == Some(&subject) {
                    return ControlFlow::Continue(());
                }
                last = Some(subject.clone());
            }
            let found =
                match sum(store, pass.name, &subject, value, &mut totals).and_then(|()| match &subject {
                    Subject::Chunk(chunk) if pass.once => chunks::gone(store, *chunk),
                    subject => again(store, &superblock, subject),
                }) {
                    Ok(found) => found,
                    Err(error @ (StoreError::Damaged(_) | StoreError::NewerFormat { .. })) => {
                        vec![Finding::new(Kind::UnreadableRecord, subject, error)]
                    }
                    Err(error) => {
                        failed = Some(error);
                        return ControlFlow::Break(());
                    }
                };
            let seen = std::iter::once(Seen::Looked(pass.name)).chain(found.into_iter().map(Seen::Found));
            for seen in seen {
                if watch(seen).is_break() {
                    ended = true;
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if ended {
            return Ok(None);
        }
    }
    let said = Totals::said(&superblock);
    if said != totals {
        let words = format!("the superblock records {said:?}, the volume has {totals:?}");
        let _ = watch(Seen::Found(Finding::new(Kind::VolumeTotals, Subject::Volume, words)));
    }
    Ok(Some(totals))
}

/// One pass over a range of keys.
struct Pass {
    name: &'static str,
    family: Family,
    prefix: fn() -> Vec<u8>,
    subject: fn(&[u8]) -> Option<Subject>,
    /// Neighbouring records may have the same subject: it is looked at once.
    once: bool,
}

const PASSES: &[Pass] = &[
    Pass {
        name: "inodes",
        once: false,
        family: Family::Inodes,
        prefix: Vec::new,
        subject: |key| Some(Subject::Inode(ino(key, 0)?)),
    },
    Pass {
        name: "names",
        once: false,
        family: Family::Names,
        prefix: || b"e".to_vec(),
        subject: |key| Some(Subject::Entry(ino(key, 1)?, number(key, 9)?)),
    },
    Pass {
        name: "parents",
        once: false,
        family: Family::Names,
        prefix: || b"p".to_vec(),
        subject: |key| Some(Subject::Parent(ino(key, 1)?, ino(key, 9)?, key.get(17..)?.to_vec())),
    },
    Pass {
        name: "segments",
        once: false,
        family: Family::Extents,
        prefix: Vec::new,
        subject: |key| Some(Subject::Segment(ino(key, 0)?, SegmentIndex(number(key, 8)?))),
    },
    Pass {
        name: "inline",
        once: false,
        family: Family::Inline,
        prefix: Vec::new,
        subject: |key| Some(Subject::Inline(ino(key, 0)?, SegmentIndex(number(key, 8)?), number(key, 16)?)),
    },
    Pass {
        name: "chunks",
        once: false,
        family: Family::System,
        prefix: keys::chunks,
        subject: |key| Some(Subject::Chunk(ChunkId(number(key, 1)?))),
    },
    Pass {
        name: "references",
        once: false,
        family: Family::System,
        prefix: keys::every_back_reference,
        subject: |key| {
            Some(Subject::Reference(ChunkId(number(key, 1)?), ino(key, 9)?, SegmentIndex(number(key, 17)?)))
        },
    },
    // The chunk of each dead range: a chunk that exists was looked at before, one that doesn't is found here.
    Pass {
        name: "dead",
        once: true,
        family: Family::System,
        prefix: keys::all_dead_ranges,
        subject: |key| Some(Subject::Chunk(ChunkId(number(key, 1)?))),
    },
    Pass {
        name: "orphans",
        once: false,
        family: Family::System,
        prefix: keys::orphans,
        subject: |key| Some(Subject::Orphan(ino(key, 1)?)),
    },
    Pass {
        name: "sessions",
        once: false,
        family: Family::System,
        prefix: keys::sessions,
        subject: |_| Some(Subject::Volume),
    },
    Pass {
        name: "locks",
        once: false,
        family: Family::System,
        prefix: || keys::all_locks(LockClass::Record),
        subject: |key| lock(LockClass::Record, key),
    },
    Pass {
        name: "locks",
        once: false,
        family: Family::System,
        prefix: || keys::all_locks(LockClass::Flock),
        subject: |key| lock(LockClass::Flock, key),
    },
    Pass {
        name: "locked",
        once: false,
        family: Family::System,
        prefix: keys::every_locked,
        subject: |key| Some(Subject::Locked(SessionId(number(key, 1)?), ino(key, 9)?)),
    },
];

fn number(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

fn ino(key: &[u8], at: usize) -> Option<InodeId> {
    number(key, at).map(InodeId)
}

fn lock(class: LockClass, key: &[u8]) -> Option<Subject> {
    Some(Subject::Lock(class, ino(key, 1)?, SessionId(number(key, 9)?), number(key, 17)?))
}

/// Adds a record to the sums.
fn sum(
    store: &dyn Read,
    pass: &str,
    subject: &Subject,
    value: &[u8],
    totals: &mut Totals,
) -> Result<(), StoreError> {
    match subject {
        Subject::Inode(ino) => {
            let orphan: Option<OrphanRecord> = load(store, Family::System, &keys::orphan(*ino))?;
            if !orphan.is_some_and(|orphan| orphan.purging) {
                totals.inodes += 1;
                let charged = InodeRecord::decode(value)?.charged();
                totals.bytes_used = totals.bytes_used.saturating_add(charged);
            }
        }
        Subject::Inline(..) => totals.inline_bytes += value.len() as u64,
        Subject::Volume if pass == "sessions" => {
            let reserved = SessionRecord::decode(value)?.bytes_reserved;
            totals.bytes_reserved = totals.bytes_reserved.saturating_add(reserved);
        }
        _ => {}
    }
    Ok(())
}

/// Checks one subject. The volume's sums are not among what can be looked at alone.
///
/// # Errors
/// If the store fails or a record that is needed can't be read.
pub fn again(store: &dyn Read, superblock: &Superblock, subject: &Subject) -> Result<Found, StoreError> {
    match subject {
        Subject::Volume | Subject::Replica(..) => Ok(Vec::new()),
        Subject::Inode(ino) => names::inode(store, *ino),
        Subject::Entry(directory, cookie) => names::entry(store, *directory, *cookie),
        Subject::Parent(ino, directory, name) => {
            names::parent(store, superblock.hash_key, *ino, *directory, name)
        }
        Subject::Orphan(ino) => names::orphan(store, *ino),
        Subject::Segment(ino, segment) => segments::segment(store, *ino, *segment),
        Subject::Inline(ino, segment, id) => segments::inline(store, *ino, *segment, *id),
        Subject::Chunk(chunk) => chunks::chunk(store, *chunk),
        Subject::Reference(chunk, ino, segment) => chunks::reference(store, *chunk, *ino, *segment),
        Subject::Lock(class, ino, session, owner) => locks::lock(store, *class, *ino, *session, *owner),
        Subject::Locked(session, ino) => locks::locked(store, *session, *ino),
    }
}

/// A path of an inode, for people: by its first name and those of the directories above.
///
/// # Errors
/// If the store fails.
pub fn path_of(store: &dyn Read, ino: InodeId) -> Result<String, StoreError> {
    let mut names: Vec<String> = Vec::new();
    let mut at = ino;
    while at != ROOT {
        let mut above = None;
        let prefix = keys::parents(at);
        store.scan(Family::Names, &prefix, &prefix_end(&prefix), &mut |key, _| {
            above = keys::parent_of(key).map(|(parent, name)| (parent, name.to_vec()));
            ControlFlow::Break(())
        })?;
        match above {
            Some((parent, name)) if names.len() < PATH_DEPTH_MAX && name.len() <= NAME_BYTES_MAX => {
                names.push(String::from_utf8_lossy(&name).into_owned());
                at = parent;
            }
            _ => {
                names.push(format!("(inode {at})"));
                names.reverse();
                return Ok(names.join("/"));
            }
        }
    }
    names.reverse();
    Ok(format!("/{}", names.join("/")))
}

/// All keys and values with a prefix: for ranges that belong to one subject.
pub(crate) fn each(
    store: &dyn Read,
    family: Family,
    prefix: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut failed = None;
    store.scan(family, prefix, &prefix_end(prefix), &mut |key, value| match visit(key, value) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), Err)
}
