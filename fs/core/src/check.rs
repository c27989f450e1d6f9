//! The invariants between records, checked over a whole store: for tests, simulation and fsck.
//!
//! Reads everything, so it is for small stores or for tools that have time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::acl::{ACCESS_NAME, DEFAULT_NAME};
use crate::chunks::blocks_of;
use crate::ids::{ChunkId, InodeId, ROOT, SegmentIndex, ServerId, SessionId};
use crate::intervals::Intervals;
use crate::keys;
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use crate::locks::{Holder, LockClass, LockRecord, conflicts};
use crate::records::{
    ChunkRecord, DeadRecord, EntryRecord, InodeRecord, OrderRecord, OrphanRecord, Place, Record,
    SegmentRecord, SessionRecord, Superblock,
};
use crate::store::{Family, Read, StoreError, prefix_end};

/// All that is checked, gathered in one pass over each family.
#[derive(Default)]
struct Everything {
    inodes: BTreeMap<InodeId, InodeRecord>,
    entries: BTreeMap<InodeId, Vec<(Vec<u8>, InodeId, crate::attributes::FileKind)>>,
    parents: BTreeSet<(InodeId, InodeId, Vec<u8>)>,
    segments: BTreeMap<(InodeId, SegmentIndex), SegmentRecord>,
    inline: BTreeMap<Vec<u8>, u64>,
    /// Whether there is an access control list: inode, default or own.
    acls: BTreeMap<(InodeId, bool), bool>,
    chunks: BTreeMap<ChunkId, ChunkRecord>,
    references: BTreeSet<(ChunkId, InodeId, SegmentIndex)>,
    dead: BTreeMap<ChunkId, Vec<(u64, DeadRecord)>>,
    orders: BTreeMap<(ServerId, ChunkId), OrderRecord>,
    orphans: BTreeMap<InodeId, OrphanRecord>,
    sessions: BTreeMap<SessionId, SessionRecord>,
    locks: BTreeMap<(LockClass, InodeId), BTreeMap<Holder, LockRecord>>,
    locked: BTreeSet<(SessionId, InodeId)>,
}

/// Checks a store; returns what is wrong, in words. Empty: nothing.
///
/// # Errors
/// If the store fails or a record can't be read.
pub fn check(store: &dyn Read) -> Result<Vec<String>, StoreError> {
    let mut wrong = Vec::new();
    let Some(superblock) = store.get(Family::System, &keys::superblock())? else {
        return Ok(vec!["there is no superblock".into()]);
    };
    let superblock = Superblock::decode(&superblock)?;
    let all = gather(store)?;
    names(&all, &mut wrong);
    extents(&all, &mut wrong);
    chunks(&all, &mut wrong);
    shared(&all, &mut wrong);
    locks(&all, &mut wrong);
    totals(&superblock, &all, &mut wrong);
    Ok(wrong)
}

/// Calls `visit` for all records of a family with a prefix; an error of one ends the scan.
fn each(
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

fn number(key: &[u8], at: usize) -> Result<u64, StoreError> {
    key.get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or_else(|| StoreError::Damaged("a key is too short".into()))
}

fn gather(store: &dyn Read) -> Result<Everything, StoreError> {
    let mut all = Everything::default();
    each(store, Family::Inodes, &[], |key, value| {
        all.inodes.insert(InodeId(number(key, 0)?), InodeRecord::decode(value)?);
        Ok(())
    })?;
    each(store, Family::Names, b"e", |key, value| {
        if let EntryRecord::Entry { name, ino, kind, .. } = EntryRecord::decode(value)? {
            all.entries.entry(InodeId(number(key, 1)?)).or_default().push((name.to_vec(), ino, kind));
        }
        Ok(())
    })?;
    each(store, Family::Names, b"p", |key, _| {
        all.parents.insert((InodeId(number(key, 1)?), InodeId(number(key, 9)?), key[17..].to_vec()));
        Ok(())
    })?;
    each(store, Family::Extents, &[], |key, value| {
        let at = (InodeId(number(key, 0)?), SegmentIndex(number(key, 8)?));
        all.segments.insert(at, SegmentRecord::decode(value)?);
        Ok(())
    })?;
    each(store, Family::Inline, &[], |key, value| {
        all.inline.insert(key.to_vec(), value.len() as u64);
        Ok(())
    })?;
    for (ino, record) in &all.inodes {
        for (default, says) in [(false, record.access_acl), (true, record.default_acl)] {
            if says {
                all.acls.insert((*ino, default), false);
            }
        }
    }
    each(store, Family::Xattrs, &[], |key, _| {
        let ino = InodeId(number(key, 0)?);
        match keys::xattr_name_of(key) {
            Some(ACCESS_NAME) => all.acls.insert((ino, false), true),
            Some(DEFAULT_NAME) => all.acls.insert((ino, true), true),
            _ => None,
        };
        Ok(())
    })?;
    gather_system(store, &mut all)?;
    Ok(all)
}

fn gather_system(store: &dyn Read, all: &mut Everything) -> Result<(), StoreError> {
    each(store, Family::System, &keys::chunks(), |key, value| {
        all.chunks.insert(ChunkId(number(key, 1)?), ChunkRecord::decode(value)?);
        Ok(())
    })?;
    each(store, Family::System, &keys::every_back_reference(), |key, _| {
        all.references.insert((
            ChunkId(number(key, 1)?),
            InodeId(number(key, 9)?),
            SegmentIndex(number(key, 17)?),
        ));
        Ok(())
    })?;
    each(store, Family::System, &keys::all_dead_ranges(), |key, value| {
        let dead = (number(key, 9)?, DeadRecord::decode(value)?);
        all.dead.entry(ChunkId(number(key, 1)?)).or_default().push(dead);
        Ok(())
    })?;
    each(store, Family::System, &keys::every_order(), |key, value| {
        let at = (ServerId(number(key, 1)?), ChunkId(number(key, 9)?));
        all.orders.insert(at, OrderRecord::decode(value)?);
        Ok(())
    })?;
    each(store, Family::System, &keys::orphans(), |key, value| {
        all.orphans.insert(InodeId(number(key, 1)?), OrphanRecord::decode(value)?);
        Ok(())
    })?;
    each(store, Family::System, &keys::sessions(), |key, value| {
        all.sessions.insert(SessionId(number(key, 1)?), SessionRecord::decode(value)?);
        Ok(())
    })?;
    each(store, Family::System, &keys::every_locked(), |key, _| {
        all.locked.insert((SessionId(number(key, 1)?), InodeId(number(key, 9)?)));
        Ok(())
    })?;
    for class in LockClass::ALL {
        each(store, Family::System, &keys::all_locks(class), |key, value| {
            let holder = Holder { session: SessionId(number(key, 9)?), owner: number(key, 17)? };
            let locks = all.locks.entry((class, InodeId(number(key, 1)?))).or_default();
            locks.insert(holder, LockRecord::decode(value)?);
            Ok(())
        })?;
    }
    Ok(())
}

/// Names, parents, link counts, orphans.
fn names(all: &Everything, wrong: &mut Vec<String>) {
    let mut links: BTreeMap<InodeId, u32> = BTreeMap::new();
    let mut parents = BTreeSet::new();
    for (directory, entries) in &all.entries {
        if !all.inodes.get(directory).is_some_and(InodeRecord::is_directory) {
            wrong.push(format!("entries of {directory}, which is no directory"));
        }
        for (name, ino, kind) in entries {
            let shown = String::from_utf8_lossy(name);
            match all.inodes.get(ino) {
                None => wrong.push(format!("{shown:?} in {directory} names {ino}, which doesn't exist")),
                Some(record) => {
                    if record.kind() != *kind {
                        wrong.push(format!(
                            "{shown:?} in {directory}: kind is {kind:?}, inode says {:?}",
                            record.kind()
                        ));
                    }
                    if record.is_directory() && record.parent != *directory {
                        wrong.push(format!(
                            "directory {ino} is in {directory}, says it is in {}",
                            record.parent
                        ));
                    }
                }
            }
            *links.entry(*ino).or_default() += 1;
            parents.insert((*ino, *directory, name.clone()));
        }
    }
    if parents != all.parents {
        let odd: Vec<_> = parents.symmetric_difference(&all.parents).take(3).collect();
        wrong.push(format!("entries and parent records differ: {odd:?}"));
    }
    for (ino, record) in &all.inodes {
        let named = links.get(ino).copied().unwrap_or(0);
        if record.is_directory() {
            let entries = all.entries.get(ino).map_or(&[][..], Vec::as_slice);
            let below =
                entries.iter().filter(|(_, _, kind)| *kind == crate::attributes::FileKind::Directory).count();
            let alive = named > 0 || *ino == ROOT;
            let expected = if alive { 2 + below as u32 } else { 0 };
            if record.nlink != expected {
                wrong.push(format!("directory {ino} has {} links, should have {expected}", record.nlink));
            }
            if record.entries != entries.len() as u64 {
                wrong.push(format!(
                    "directory {ino} counts {} entries, has {}",
                    record.entries,
                    entries.len()
                ));
            }
        } else if record.nlink != named {
            wrong.push(format!("inode {ino} has {} links, {named} names", record.nlink));
        }
        if (record.nlink == 0) != all.orphans.contains_key(ino) {
            wrong.push(format!(
                "inode {ino} has {} links; orphan: {}",
                record.nlink,
                all.orphans.contains_key(ino)
            ));
        }
    }
    for ((ino, default), there) in &all.acls {
        let record = all.inodes.get(ino);
        let says = record.is_some_and(|r| if *default { r.default_acl } else { r.access_acl });
        if *there != says {
            wrong.push(format!("inode {ino} says {says} of an access control list, which is {there}"));
        }
    }
    for ino in all.orphans.keys().filter(|ino| !all.inodes.contains_key(ino)) {
        wrong.push(format!("orphan {ino} doesn't exist"));
    }
}

/// Segments, pieces, inline values, mapped bytes.
fn extents(all: &Everything, wrong: &mut Vec<String>) {
    let mut mapped: BTreeMap<InodeId, u64> = BTreeMap::new();
    let mut inline = BTreeSet::new();
    for ((ino, segment), found) in &all.segments {
        let Some(record) = all.inodes.get(ino) else {
            wrong.push(format!("segment {segment} of inode {ino}, which doesn't exist"));
            continue;
        };
        if found.pieces.is_empty() {
            wrong.push(format!("inode {ino}: segment {segment} is empty"));
        }
        if found.pieces.windows(2).any(|pair| pair[0].end() > pair[1].start)
            || found.pieces.iter().any(|p| p.length == 0 || u64::from(p.end()) > SEGMENT_BYTES)
        {
            wrong.push(format!(
                "inode {ino}: pieces of segment {segment} overlap or stick out: {:?}",
                found.pieces
            ));
        }
        let cuts: Vec<_> =
            record.truncations.iter().filter(|cut| *segment >= cut.from && found.epoch < cut.epoch).collect();
        if cuts.iter().all(|cut| cut.counted) {
            *mapped.entry(*ino).or_default() += found.pieces.iter().map(|p| u64::from(p.length)).sum::<u64>();
        }
        for piece in &found.pieces {
            if let Place::Inline { id, skip } = piece.place {
                let key = keys::inline(*ino, *segment, id);
                match all.inline.get(&key) {
                    Some(length) if u64::from(skip + piece.length) <= *length => {}
                    _ => wrong.push(format!(
                        "inode {ino}: inline value {id} of segment {segment} is missing or short"
                    )),
                }
                inline.insert(key);
            }
        }
    }
    let unused = all.inline.keys().filter(|key| !inline.contains(*key)).count();
    if unused > 0 {
        wrong.push(format!("{unused} inline values that no piece refers to"));
    }
    for (ino, record) in &all.inodes {
        let purging = all.orphans.get(ino).is_some_and(|orphan| orphan.purging);
        let found = mapped.get(ino).copied().unwrap_or(0);
        if !purging && record.mapped != found {
            wrong.push(format!("inode {ino} says {} bytes are mapped, {found} are", record.mapped));
        }
    }
}

/// Chunks, back references, dead ranges, orders.
fn chunks(all: &Everything, wrong: &mut Vec<String>) {
    let mut live: BTreeMap<ChunkId, Intervals> = BTreeMap::new();
    let mut references = BTreeSet::new();
    for ((ino, segment), found) in &all.segments {
        for (chunk, blocks) in blocks_of(&found.pieces) {
            live.entry(chunk).or_default().add_all(&blocks);
            references.insert((chunk, *ino, *segment));
        }
    }
    if references != all.references {
        let odd: Vec<_> = references.symmetric_difference(&all.references).take(3).collect();
        wrong.push(format!("extents and back references differ: {odd:?}"));
    }
    for chunk in live.keys().filter(|chunk| !all.chunks.contains_key(chunk)) {
        wrong.push(format!("chunk {chunk} is referred to and doesn't exist"));
    }
    for (chunk, record) in &all.chunks {
        let here = live.remove(chunk).unwrap_or_default();
        if here.total() != record.live_blocks {
            wrong.push(format!(
                "chunk {chunk} counts {} live blocks, has {}",
                record.live_blocks,
                here.total()
            ));
        }
        if here.iter().any(|(_, end)| end > record.committed.div_ceil(BLOCK_BYTES)) {
            wrong.push(format!("chunk {chunk} is referred to beyond its committed length"));
        }
        if record.sealed && record.live_blocks == 0 {
            wrong.push(format!("chunk {chunk} is sealed, nothing refers to it, and it still exists"));
        }
        let mut waiting = BTreeSet::new();
        for (first, dead) in all.dead.get(chunk).map_or(&[][..], Vec::as_slice) {
            let mut range = Intervals::default();
            range.add(*first, first + dead.blocks);
            if range.without(&here) != range {
                wrong.push(format!("chunk {chunk}: blocks {first}+{} are dead and referred to", dead.blocks));
            }
            waiting.extend(dead.waiting.iter().copied());
        }
        for server in &record.replicas {
            let trim = all.orders.get(&(*server, *chunk)).is_some_and(|order| order.trim);
            if waiting.contains(server) != trim {
                wrong.push(format!(
                    "chunk {chunk}: server {server} waits for a trim and has no order, or the reverse"
                ));
            }
        }
    }
    for chunk in all.dead.keys().filter(|chunk| !all.chunks.contains_key(chunk)) {
        wrong.push(format!("dead ranges of chunk {chunk}, which doesn't exist"));
    }
}

/// Blocks that several segments refer to are marked as shared in all of them.
fn shared(all: &Everything, wrong: &mut Vec<String>) {
    let mut every: BTreeMap<ChunkId, Intervals> = BTreeMap::new();
    let mut unshared: BTreeMap<ChunkId, Intervals> = BTreeMap::new();
    let meet = |known: &BTreeMap<ChunkId, Intervals>, chunk: &ChunkId, blocks: &Intervals| {
        known.get(chunk).is_some_and(|known| blocks.without(known) != *blocks)
    };
    for ((ino, segment), found) in &all.segments {
        let own: Vec<_> = found.pieces.iter().copied().filter(|piece| !piece.shared).collect();
        let (here, own) = (blocks_of(&found.pieces), blocks_of(&own));
        if here.iter().any(|(chunk, blocks)| meet(&unshared, chunk, blocks))
            || own.iter().any(|(chunk, blocks)| meet(&every, chunk, blocks))
        {
            wrong.push(format!(
                "inode {ino}: segment {segment} refers to bytes of another without being marked"
            ));
        }
        for (to, from) in [(&mut every, &here), (&mut unshared, &own)] {
            for (chunk, blocks) in from {
                to.entry(*chunk).or_default().add_all(blocks);
            }
        }
    }
}

/// Locks: of sessions that are alive and inodes that exist, none in the way of another.
fn locks(all: &Everything, wrong: &mut Vec<String>) {
    let mut locked = BTreeSet::new();
    for ((class, ino), holders) in &all.locks {
        if !all.inodes.contains_key(ino) {
            wrong.push(format!("locks on {ino}, which doesn't exist"));
        }
        for (holder, record) in holders {
            locked.insert((holder.session, *ino));
            let session = holder.session;
            if all.sessions.get(&session).is_none_or(|session| session.ended.is_some()) {
                wrong.push(format!("session {session} has locks on {ino} and isn't alive"));
            }
            let ranges: Vec<_> = record.locks.iter().map(|lock| lock.range).collect();
            if ranges.is_empty()
                || ranges.iter().any(|range| !range.is_sound())
                || ranges.windows(2).any(|pair| pair[0].end >= pair[1].start)
            {
                wrong.push(format!("locks of session {session} on {ino} are none, or overlap"));
            }
            let others = holders.iter().filter(|(other, _)| *other != holder);
            for held in others.flat_map(|(_, other)| &other.locks) {
                if record.locks.iter().any(|lock| conflicts(held, &lock.range, lock.mode)) {
                    wrong.push(format!("{class:?} locks on {ino} are in the way of one another"));
                }
            }
        }
    }
    if locked != all.locked {
        let odd: Vec<_> = locked.symmetric_difference(&all.locked).take(3).collect();
        wrong.push(format!("locks and sessions' lists of them differ: {odd:?}"));
    }
}

/// The superblock's sums.
fn totals(superblock: &Superblock, all: &Everything, wrong: &mut Vec<String>) {
    let counted = |ino: &InodeId| !all.orphans.get(ino).is_some_and(|orphan| orphan.purging);
    let sums = [
        ("inodes", superblock.inodes_used, all.inodes.keys().filter(|ino| counted(ino)).count() as u64),
        (
            "bytes used",
            superblock.bytes_used,
            all.inodes.iter().filter(|(ino, _)| counted(ino)).map(|(_, record)| record.charged()).sum(),
        ),
        ("bytes reserved", superblock.bytes_reserved, all.sessions.values().map(|s| s.bytes_reserved).sum()),
        ("inline bytes", superblock.inline_bytes, all.inline.values().sum()),
    ];
    for (what, says, is) in sums {
        if says != is {
            wrong.push(format!("the superblock says {says} {what}, there are {is}"));
        }
    }
}
