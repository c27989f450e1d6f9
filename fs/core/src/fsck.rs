//! Repairs of what the check finds: compare and swap. Each looks at its subject again in the state that it is applied
//! to and does nothing if the damage is no longer there. None throws away bytes that could still be somebody's: what
//! lost its name goes to `lost+found`, what lost its bytes says so when it is read.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::attributes::{FileKind, Timestamp};
use crate::check::{self, Finding, Kind, PHASE_CHUNKS, Subject};
use crate::chunks;
use crate::commands::{Context, Mutation};
use crate::error::FsError;
use crate::ids::{ChunkId, InodeId, ROOT, SegmentIndex};
use crate::keys;
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use crate::locks::LockClass;
use crate::records::{EntryRecord, InodeRecord, Marker, OrphanRecord, Piece, Place, Record, SegmentRecord};
use crate::store::{Family, Read, StoreError};
use crate::txn::{FoundEntry, OpError, OpResult, Txn, take_number};

/// Where what lost its name gets one.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Names that are tried for an inode in `lost+found`.
const NAMES_TRIED: u32 = 64;

/// Corrections of the superblock's sums: what there is, less what it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corrections {
    /// Inodes.
    pub inodes: i64,
    /// Bytes charged.
    pub bytes_used: i64,
    /// Bytes promised.
    pub bytes_reserved: i64,
    /// Bytes of inline values.
    pub inline_bytes: i64,
}

impl Corrections {
    /// From what the superblock says and what there is.
    #[must_use]
    pub fn between(said: &check::Totals, is: &check::Totals) -> Corrections {
        let less = |is: u64, said: u64| is.wrapping_sub(said).cast_signed();
        Corrections {
            inodes: less(is.inodes, said.inodes),
            bytes_used: less(is.bytes_used, said.bytes_used),
            bytes_reserved: less(is.bytes_reserved, said.bytes_reserved),
            inline_bytes: less(is.inline_bytes, said.inline_bytes),
        }
    }
}

/// Corrects the volume's sums.
///
/// Corrects the sums. They were compared in an older state; what changed them since has changed both sides alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckTotals(pub Corrections);

impl Mutation for FsckTotals {
    type Outcome = bool;

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<bool> {
        let by = &self.0;
        let volume = txn.volume_mut()?;
        volume.inodes_used = volume.inodes_used.saturating_add_signed(by.inodes);
        volume.bytes_used = volume.bytes_used.saturating_add_signed(by.bytes_used);
        volume.bytes_reserved = volume.bytes_reserved.saturating_add_signed(by.bytes_reserved);
        volume.inline_bytes = volume.inline_bytes.saturating_add_signed(by.inline_bytes);
        Ok(true)
    }
}

/// Repairs what a check found, if it is still so.
///
/// Repairs one thing, if it is still damaged: true if it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fsck {
    /// What was found.
    pub kind: Kind,
    /// About what.
    pub subject: Subject,
}

impl Mutation for Fsck {
    type Outcome = bool;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<bool> {
        let now = context.now;
        let Fsck { kind, ref subject } = *self;
        let superblock = txn.volume()?.clone();
        let still = match check::again(txn, &superblock, subject) {
            Ok(found) => found.iter().any(|finding| finding.kind == kind),
            // A member whose apply fails stops; a record that can't be read is not worth that.
            Err(StoreError::Damaged(_) | StoreError::NewerFormat { .. }) => return Err(FsError::Io.into()),
            Err(error) => return Err(error.into()),
        };
        if !still {
            return Ok(false);
        }
        match mend(txn, now, kind, subject) {
            Ok(()) => Ok(true),
            Err(OpError::Store(StoreError::Damaged(_) | StoreError::NewerFormat { .. })) => {
                Err(FsError::Io.into())
            }
            Err(error) => Err(error),
        }
    }
}

/// The table of repairs.
fn mend(txn: &mut Txn<'_>, now: Timestamp, kind: Kind, subject: &Subject) -> OpResult<()> {
    match (kind, subject) {
        (Kind::EntryWithoutInode, Subject::Entry(directory, cookie)) => {
            entry_without_inode(txn, now, *directory, *cookie)
        }
        (Kind::SegmentWithoutInode, Subject::Segment(ino, _)) => recreate(txn, now, *ino, FileKind::File),
        (Kind::NamesWithoutDirectory, Subject::Entry(directory, cookie)) => {
            names_without_directory(txn, now, *directory, *cookie)
        }
        (Kind::EntryKind, Subject::Entry(directory, cookie)) => entry_kind(txn, *directory, *cookie),
        (Kind::DirectoryParent, Subject::Entry(directory, cookie)) => {
            let Some((_, ino)) = entry(txn, *directory, *cookie)? else { return Ok(()) };
            let mut record = txn.inode(ino)?;
            record.parent = *directory;
            txn.put_inode(ino, &record);
            Ok(())
        }
        (Kind::ParentMissing, Subject::Entry(directory, cookie)) => {
            let Some((name, ino)) = entry(txn, *directory, *cookie)? else { return Ok(()) };
            txn.put(Family::Names, keys::parent(ino, *directory, &name), &Marker);
            recount(txn, ino)
        }
        (Kind::NameMissing, Subject::Parent(ino, directory, name)) => {
            name_missing(txn, *ino, *directory, name)
        }
        (Kind::OrphanWithoutInode, Subject::Orphan(ino)) => {
            txn.delete(Family::System, keys::orphan(*ino));
            Ok(())
        }
        (Kind::OrphanWithName, Subject::Inode(ino)) => orphan_with_name(txn, *ino),
        (Kind::InodeWithoutName, Subject::Inode(ino)) => to_lost_and_found(txn, now, *ino),
        (Kind::LinkCount | Kind::DirectoryCounts, Subject::Inode(ino)) => recount(txn, *ino),
        (Kind::AclFlag, Subject::Inode(ino)) => {
            let mut record = txn.inode(*ino)?;
            (record.access_acl, record.default_acl) = check::lists_of(txn, *ino)?;
            txn.put_inode(*ino, &record);
            Ok(())
        }
        (Kind::MappedBytes, Subject::Inode(ino)) => {
            let mut record = txn.inode(*ino)?;
            record.mapped = check::mapped_of(txn, *ino, &record)?;
            txn.put_inode(*ino, &record);
            Ok(())
        }
        (Kind::InlineMissing | Kind::ChunkMissing, Subject::Segment(ino, segment)) => {
            lose(txn, *ino, *segment)
        }
        (Kind::InlineUnused, Subject::Inline(ino, segment, id)) => {
            rescue_inline(txn, now, *ino, *segment, *id)
        }
        (Kind::ReferenceMissing, Subject::Segment(ino, segment)) => {
            let Some(found) = segment_of(txn, *ino, *segment)? else { return Ok(()) };
            for chunk in chunks::blocks_of(&found.pieces).keys() {
                txn.mark(keys::back_reference(*chunk, *ino, *segment));
            }
            Ok(())
        }
        (Kind::ReferenceStale, Subject::Reference(chunk, ino, segment)) => {
            txn.delete(Family::System, keys::back_reference(*chunk, *ino, *segment));
            Ok(())
        }
        (Kind::LockStale, Subject::Lock(class, ino, session, owner)) => {
            txn.delete(Family::System, keys::lock(*class, *ino, *session, *owner));
            let mut others = false;
            for class in LockClass::ALL {
                let prefix = keys::locks_of_session(class, *ino, *session);
                others |= !txn.collect_prefix(Family::System, &prefix, 1)?.is_empty();
            }
            if !others {
                txn.delete(Family::System, keys::locked(*session, *ino));
            }
            Ok(())
        }
        (Kind::LockList, Subject::Lock(_, ino, session, _)) => {
            txn.mark(keys::locked(*session, *ino));
            Ok(())
        }
        (Kind::LockList, Subject::Locked(session, ino)) => {
            txn.delete(Family::System, keys::locked(*session, *ino));
            Ok(())
        }
        (_, Subject::Chunk(chunk)) => chunk_repair(txn, kind, *chunk),
        _ => Err(FsError::Unsupported.into()),
    }
}

/// Name and inode of the entry at a position.
fn entry(txn: &Txn<'_>, directory: InodeId, cookie: u64) -> OpResult<Option<(Bytes, InodeId)>> {
    Ok(match txn.load(Family::Names, &keys::entry_at(directory, cookie))? {
        Some(EntryRecord::Entry { name, ino, .. }) => Some((name, ino)),
        Some(EntryRecord::Removed) | None => None,
    })
}

fn segment_of(txn: &Txn<'_>, ino: InodeId, segment: SegmentIndex) -> OpResult<Option<SegmentRecord>> {
    txn.load(Family::Extents, &keys::segment(ino, segment))
}

/// Counts an inode's links, and a directory's entries, anew.
fn recount(txn: &mut Txn<'_>, ino: InodeId) -> OpResult<()> {
    let Some(before) = txn.load::<InodeRecord>(Family::Inodes, &keys::inode(ino))? else { return Ok(()) };
    let mut record = before.clone();
    let names = check::names_of(txn, ino)?;
    if record.is_directory() {
        let (entries, below) = check::entries_of(txn, ino)?;
        record.entries = entries;
        let orphan = txn.get(Family::System, &keys::orphan(ino))?.is_some();
        // One that lost its name and isn't unlinked waits for a new one: it must not look like an orphan.
        record.nlink = if names > 0 || ino == ROOT || !orphan { 2 + below } else { 0 };
    } else if names > 0 || txn.get(Family::System, &keys::orphan(ino))?.is_some() {
        record.nlink = names;
    }
    if record != before {
        record.count_change();
        txn.put_inode(ino, &record);
    }
    Ok(())
}

fn new_inode(txn: &Txn<'_>, now: Timestamp, kind: FileKind, parent: InodeId) -> OpResult<InodeRecord> {
    // Whose it was is not known: root's alone.
    let mode = kind.mode_bits() | if kind == FileKind::Directory { 0o700 } else { 0o600 };
    Ok(InodeRecord::new(mode, (0, 0), parent, txn.volume()?.epoch, now))
}

/// Makes an inode anew from what is left of it: its extents, its names, what is in it. The superblock is not told:
/// it still counts the one that was lost.
fn recreate(txn: &mut Txn<'_>, now: Timestamp, ino: InodeId, kind: FileKind) -> OpResult<()> {
    let parents = txn.collect_prefix(Family::Names, &keys::parents(ino), 1)?;
    let parent = parents.first().and_then(|(key, _)| keys::parent_of(key)).map_or(ROOT, |(parent, _)| parent);
    let mut record = new_inode(txn, now, kind, parent)?;
    record.mapped = check::mapped_of(txn, ino, &record)?;
    for (key, value) in txn.collect_prefix(Family::Extents, &keys::inode(ino), usize::MAX)? {
        let segment = keys::segment_of(&key).unwrap_or_default();
        let found = SegmentRecord::decode(&value)?;
        let end = found.pieces.last().map_or(0, Piece::end);
        record.size = record.size.max(segment.0.saturating_mul(SEGMENT_BYTES).saturating_add(u64::from(end)));
        record.truncate_epoch = record.truncate_epoch.max(found.epoch);
    }
    for (key, _) in txn.collect_prefix(Family::Xattrs, &keys::inode(ino), usize::MAX)? {
        record.xattr_list_bytes += keys::xattr_name_of(&key).map_or(0, |name| name.len() as u32 + 1);
    }
    (record.access_acl, record.default_acl) = check::lists_of(txn, ino)?;
    txn.delete(Family::System, keys::orphan(ino));
    txn.put_inode(ino, &record);
    recount(txn, ino)
}

fn entry_without_inode(txn: &mut Txn<'_>, now: Timestamp, directory: InodeId, cookie: u64) -> OpResult<()> {
    let key = keys::entry_at(directory, cookie);
    let Some(EntryRecord::Entry { name, ino, kind, .. }) = txn.load(Family::Names, &key)? else {
        return Ok(());
    };
    let left = match kind {
        FileKind::File => {
            !txn.collect_prefix(Family::Extents, &keys::inode(ino), 1)?.is_empty()
                || !txn.collect_prefix(Family::Xattrs, &keys::inode(ino), 1)?.is_empty()
        }
        FileKind::Directory => !txn.collect_prefix(Family::Names, &keys::entries(ino), 1)?.is_empty(),
        _ => false,
    };
    if left {
        return recreate(txn, now, ino, kind);
    }
    // Nothing is left but the name.
    drop_entry(txn, directory, cookie, &name, ino)
}

/// Removes a name.
fn drop_entry(txn: &mut Txn<'_>, directory: InodeId, cookie: u64, name: &[u8], ino: InodeId) -> OpResult<()> {
    let collision = (cookie & u64::from(keys::COLLISIONS_MAX - 1)) as u16;
    let found = FoundEntry { key: keys::entry_at(directory, cookie), collision, ino };
    txn.remove_entry(directory, name, &found)?;
    recount(txn, directory)?;
    recount(txn, ino)
}

fn names_without_directory(
    txn: &mut Txn<'_>,
    now: Timestamp,
    directory: InodeId,
    cookie: u64,
) -> OpResult<()> {
    if txn.get(Family::Inodes, &keys::inode(directory))?.is_none() {
        return recreate(txn, now, directory, FileKind::Directory);
    }
    // Something that holds no names: what they named is found without a name next, and gets one.
    match entry(txn, directory, cookie)? {
        Some((name, ino)) => drop_entry(txn, directory, cookie, &name, ino),
        None => Ok(()),
    }
}

fn entry_kind(txn: &mut Txn<'_>, directory: InodeId, cookie: u64) -> OpResult<()> {
    let key = keys::entry_at(directory, cookie);
    let Some(EntryRecord::Entry { name, ino, birth, .. }) = txn.load(Family::Names, &key)? else {
        return Ok(());
    };
    let kind = txn.inode(ino)?.kind();
    txn.put(Family::Names, key, &EntryRecord::Entry { name, ino, kind, birth });
    recount(txn, directory)
}

/// Puts a lost name back; where another has its place, the record of it goes.
fn name_missing(txn: &mut Txn<'_>, ino: InodeId, directory: InodeId, name: &[u8]) -> OpResult<()> {
    let record: Option<InodeRecord> = txn.load(Family::Inodes, &keys::inode(ino))?;
    let above: Option<InodeRecord> = txn.load(Family::Inodes, &keys::inode(directory))?;
    let orphan = txn.get(Family::System, &keys::orphan(ino))?.is_some();
    let free = txn.find(directory, name)?.is_none();
    match record {
        Some(record)
            if !orphan
                && free
                && above.is_some_and(|above| above.is_directory() && above.nlink > 0)
                && (!record.is_directory() || record.parent == directory) =>
        {
            txn.insert_entry(directory, &Bytes::copy_from_slice(name), ino, record.kind())?;
            recount(txn, directory)?;
        }
        None if !txn.collect_prefix(Family::Extents, &keys::inode(ino), 1)?.is_empty() => {
            // The file is to be made anew first; this name is what it was called.
            return Err(FsError::TryAgain.into());
        }
        _ => txn.delete(Family::Names, keys::parent(ino, directory, name)),
    }
    recount(txn, ino)
}

fn orphan_with_name(txn: &mut Txn<'_>, ino: InodeId) -> OpResult<()> {
    let key = keys::orphan(ino);
    let orphan: Option<OrphanRecord> = txn.load(Family::System, &key)?;
    txn.delete(Family::System, key);
    if orphan.is_some_and(|orphan| orphan.purging) {
        // It stopped counting when its bytes began to be freed.
        let mut record = txn.inode(ino)?;
        record.mapped = check::mapped_of(txn, ino, &record)?;
        txn.put_inode(ino, &record);
        let volume = txn.volume_mut()?;
        volume.inodes_used = volume.inodes_used.saturating_add(1);
        volume.bytes_used = volume.bytes_used.saturating_add(record.charged());
    }
    recount(txn, ino)
}

/// The directory for what lost its name; made if there is none.
fn lost_and_found(txn: &mut Txn<'_>, now: Timestamp) -> OpResult<InodeId> {
    if let Some(found) = txn.find(ROOT, LOST_AND_FOUND)? {
        return if txn.inode(found.ino)?.is_directory() {
            Ok(found.ino)
        } else {
            Err(FsError::NotDirectory.into())
        };
    }
    let record = new_inode(txn, now, FileKind::Directory, ROOT)?;
    let ino = next_inode(txn)?;
    txn.put_inode(ino, &record);
    txn.insert_entry(ROOT, &Bytes::from_static(LOST_AND_FOUND), ino, FileKind::Directory)?;
    recount(txn, ROOT)?;
    Ok(ino)
}

/// A number for a new inode; the quota doesn't stand in the way of a repair.
fn next_inode(txn: &mut Txn<'_>) -> OpResult<InodeId> {
    let volume = txn.volume_mut()?;
    let ino = InodeId(take_number(&mut volume.next_inode)?);
    volume.inodes_used = volume.inodes_used.saturating_add(1);
    Ok(ino)
}

fn to_lost_and_found(txn: &mut Txn<'_>, now: Timestamp, ino: InodeId) -> OpResult<()> {
    let directory = lost_and_found(txn, now)?;
    let mut record = txn.inode(ino)?;
    for attempt in 0..NAMES_TRIED {
        let name = if attempt == 0 { format!("#{ino}") } else { format!("#{ino}.{attempt}") };
        if txn.find(directory, name.as_bytes())?.is_some() {
            continue;
        }
        if record.is_directory() {
            record.parent = directory;
            txn.put_inode(ino, &record);
        }
        txn.insert_entry(directory, &Bytes::from(name), ino, record.kind())?;
        recount(txn, ino)?;
        return recount(txn, directory);
    }
    Err(FsError::Exists.into())
}

/// What a segment's pieces can't get any more is lost, and says so when it is read.
fn lose(txn: &mut Txn<'_>, ino: InodeId, segment: SegmentIndex) -> OpResult<()> {
    let Some(mut found) = segment_of(txn, ino, segment)? else { return Ok(()) };
    let mut gone = Vec::new();
    let mut pieces = Vec::with_capacity(found.pieces.len());
    for piece in &found.pieces {
        match piece.place {
            Place::Chunk { chunk, .. } if txn.chunk(chunk)?.is_none() => {
                gone.push(chunk);
                pieces.push(Piece { place: Place::Lost, shared: false, ..*piece });
            }
            Place::Inline { id, skip } => {
                let value = txn.get(Family::Inline, &keys::inline(ino, segment, id))?;
                let there = value.map_or(0, |value| value.len() as u64).saturating_sub(u64::from(skip));
                let kept = u64::from(piece.length).min(there) as u32;
                if kept > 0 {
                    pieces.push(Piece { length: kept, ..*piece });
                }
                if kept < piece.length {
                    pieces.push(Piece {
                        start: piece.start.saturating_add(kept),
                        length: piece.length - kept,
                        place: Place::Lost,
                        ..*piece
                    });
                }
            }
            _ => pieces.push(*piece),
        }
    }
    for chunk in gone {
        txn.delete(Family::System, keys::back_reference(chunk, ino, segment));
    }
    found.pieces = pieces;
    txn.put(Family::Extents, keys::segment(ino, segment), &found);
    Ok(())
}

/// Makes a file of bytes that no file refers to, rather than to throw them away.
fn rescue_inline(
    txn: &mut Txn<'_>,
    now: Timestamp,
    ino: InodeId,
    segment: SegmentIndex,
    id: u64,
) -> OpResult<()> {
    let key = keys::inline(ino, segment, id);
    let Some(value) = txn.get(Family::Inline, &key)? else { return Ok(()) };
    txn.delete(Family::Inline, key);
    let length = value.len().min(SEGMENT_BYTES as usize) as u32;
    if length == 0 {
        return Ok(());
    }
    let new = next_inode(txn)?;
    let mut record = new_inode(txn, now, FileKind::File, ROOT)?;
    (record.size, record.mapped) = (u64::from(length), u64::from(length));
    let piece = Piece {
        start: 0,
        length,
        place: Place::Inline { id, skip: 0 },
        birth: txn.volume()?.epoch,
        shared: false,
    };
    let found = SegmentRecord { epoch: 0, pieces: vec![piece] };
    txn.put_bytes(Family::Inline, keys::inline(new, SegmentIndex(0), id), value);
    txn.put(Family::Extents, keys::segment(new, SegmentIndex(0)), &found);
    txn.put_inode(new, &record);
    let charged = record.charged();
    let volume = txn.volume_mut()?;
    volume.bytes_used = volume.bytes_used.saturating_add(charged);
    to_lost_and_found(txn, now, new)
}

/// Repairs of chunks' own books.
fn chunk_repair(txn: &mut Txn<'_>, kind: Kind, chunk: ChunkId) -> OpResult<()> {
    if kind == Kind::DeadWithoutChunk {
        for (key, _) in txn.collect_prefix(Family::System, &keys::dead_ranges(chunk), usize::MAX)? {
            txn.delete(Family::System, key);
        }
        return Ok(());
    }
    let Some(mut record) = txn.chunk(chunk)? else { return Ok(()) };
    let uses = check::uses_of(txn, chunk)?;
    match kind {
        Kind::LiveBlocks => record.live_blocks = uses.live.total(),
        Kind::CommittedLength => {
            let end = uses.live.iter().map(|(_, end)| end).max().unwrap_or(0);
            record.committed = record.committed.max(end.saturating_mul(BLOCK_BYTES));
        }
        Kind::DeadInUse => {
            for (first, dead) in check::dead_of(txn, chunk)? {
                let mut range = crate::intervals::Intervals::default();
                range.add(first, first.saturating_add(dead.blocks));
                if range.without(&uses.live) != range {
                    // What of it is free is found again by a sweep.
                    txn.delete(Family::System, keys::dead(chunk, first));
                    record.dead_blocks = record.dead_blocks.saturating_sub(dead.blocks);
                }
            }
            trim_tasks(txn, chunk, &record.replicas)?;
        }
        Kind::TrimOrder => trim_tasks(txn, chunk, &record.replicas)?,
        Kind::SharedMark => {
            for (ino, segment) in &uses.segments {
                let Some(mut found) = segment_of(txn, *ino, *segment)? else { continue };
                for piece in &mut found.pieces {
                    piece.shared |= uses.is_shared(chunk, piece);
                }
                txn.put(Family::Extents, keys::segment(*ino, *segment), &found);
            }
        }
        Kind::ChunkUnused => return chunks::sweep(txn, chunk).map(|_| ()),
        _ => return Err(FsError::Unsupported.into()),
    }
    txn.put_chunk(chunk, &record);
    Ok(())
}

/// Tells the servers to trim that have to, and no others.
fn trim_tasks(txn: &mut Txn<'_>, chunk: ChunkId, replicas: &[crate::ids::ServerId]) -> OpResult<()> {
    let dead = check::dead_of(txn, chunk)?;
    for server in replicas {
        let trim = dead.iter().any(|(_, range)| range.waiting.contains(server));
        txn.task(*server, chunk, |task| task.trim = trim)?;
    }
    Ok(())
}

/// What a round of repairs does: of what was found and asked for, all that may be done in the earliest phase. Later
/// phases rest on it, so the store is checked again in between. `refused`: what was tried and could not be done.
#[must_use]
pub fn plan<'a>(
    found: &'a [Finding],
    asked: &BTreeSet<Kind>,
    refused: &BTreeSet<(Kind, Subject)>,
) -> Vec<&'a Finding> {
    let unknown_references = found.iter().any(|finding| finding.kind.hides_references());
    let may = |finding: &&Finding| {
        let phase = finding.kind.phase();
        phase > 0
            && asked.contains(&finding.kind)
            && !(phase >= PHASE_CHUNKS && unknown_references)
            && !refused.contains(&(finding.kind, finding.subject.clone()))
    };
    let phase = found.iter().filter(may).map(|finding| finding.kind.phase()).min();
    found.iter().filter(may).filter(|finding| Some(finding.kind.phase()) == phase).collect()
}
