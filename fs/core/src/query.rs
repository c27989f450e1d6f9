//! Reading the records, without changing any.

use std::ops::ControlFlow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::attributes::{Attributes, FileKind};
use crate::error::FsError;
use crate::ids::{ChunkId, InodeId, SegmentIndex};
use crate::keys;
use crate::records::{
    ChunkRecord, EntryRecord, InodeRecord, OrphanRecord, Piece, Place, Record, SegmentRecord, Superblock,
};
use crate::store::{Family, Read, StoreError, prefix_end};
pub use crate::txn::{OpError, OpResult, find_entry, load};

/// Bytes of a directory entry in a message, without its name, …
const ENTRY_BYTES: u32 = 24;
/// … and of its attributes, about.
const ATTRIBUTES_BYTES: u32 = 100;

/// The volume's record; `WrongCluster` if it isn't bootstrapped.
///
/// # Errors
/// If it doesn't exist or the store fails.
pub fn superblock(from: &dyn Read) -> OpResult<Superblock> {
    load(from, Family::System, &keys::superblock())?.ok_or(OpError::Refused(FsError::WrongCluster))
}

/// An inode's record; `Stale` if there is none.
///
/// # Errors
/// If it doesn't exist or the store fails.
pub fn inode(from: &dyn Read, ino: InodeId) -> OpResult<InodeRecord> {
    load(from, Family::Inodes, &keys::inode(ino))?.ok_or(OpError::Refused(FsError::Stale))
}

/// The records of many inodes; `None` for one that there is none of.
///
/// # Errors
/// If the store fails.
pub fn inodes(
    from: &dyn Read,
    numbers: impl IntoIterator<Item = InodeId>,
) -> Result<Vec<Option<InodeRecord>>, StoreError> {
    let keys: Vec<_> = numbers.into_iter().map(keys::inode).collect();
    let found = from.get_many(Family::Inodes, &keys)?;
    found.into_iter().map(|bytes| bytes.map(|bytes| InodeRecord::decode(&bytes)).transpose()).collect()
}

/// True if the inode has no name and is being freed: it can't be opened any more.
///
/// # Errors
/// If the store fails.
pub fn is_purging(from: &dyn Read, ino: InodeId) -> Result<bool, StoreError> {
    Ok(load::<OrphanRecord>(from, Family::System, &keys::orphan(ino))?.is_some_and(|orphan| orphan.purging))
}

/// The inode that `name` names in `parent`; `.` and `..` too.
///
/// # Errors
/// `NotFound`, `NotDirectory`, or if the store fails.
pub fn lookup(from: &dyn Read, hash_key: (u64, u64), parent: InodeId, name: &[u8]) -> OpResult<Attributes> {
    if name.len() > crate::limits::NAME_BYTES_MAX {
        return Err(FsError::NameTooLong.into());
    }
    // The common case needs no look at the directory: its entry says enough.
    if name != b"."
        && name != b".."
        && let Some(found) = find_entry(from, hash_key, parent, name)?
    {
        return Ok(inode(from, found.ino)?.attributes(found.ino));
    }
    let directory = inode(from, parent)?;
    if !directory.is_directory() {
        return Err(FsError::NotDirectory.into());
    }
    match name {
        b"." => Ok(directory.attributes(parent)),
        b".." => Ok(inode(from, directory.parent)?.attributes(directory.parent)),
        _ => Err(FsError::NotFound.into()),
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its position.
    pub cookie: u64,
    /// Its name.
    pub name: Bytes,
    /// What it names.
    pub ino: InodeId,
    /// The type of that.
    pub kind: FileKind,
}

/// Entries of a directory after `cookie`, until `enough` says so (it is asked after each entry).
///
/// # Errors
/// `Stale`, `NotDirectory`, or if the store fails.
pub fn read_directory(
    from: &dyn Read,
    ino: InodeId,
    cookie: u64,
    mut enough: impl FnMut(&Listed) -> bool,
) -> OpResult<(InodeId, Vec<Listed>, bool)> {
    let directory = inode(from, ino)?;
    if !directory.is_directory() {
        return Err(FsError::NotDirectory.into());
    }
    let mut entries = Vec::new();
    let mut failed = None;
    let mut end = true;
    let start = keys::entry_at(ino, cookie.saturating_add(1));
    from.scan(Family::Names, &start, &prefix_end(&keys::entries(ino)), &mut |key, value| {
        match (keys::cookie_of(key), EntryRecord::decode(value)) {
            (Some(cookie), Ok(EntryRecord::Entry { name, ino, kind, .. })) => {
                entries.push(Listed { cookie, name, ino, kind });
                if enough(&entries[entries.len() - 1]) {
                    end = false;
                    return ControlFlow::Break(());
                }
            }
            (_, Ok(_)) => {}
            (_, Err(error)) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok((directory.parent, entries, end)),
    }
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: Bytes,
    /// What it names.
    pub ino: InodeId,
    /// The type of that.
    pub kind: FileKind,
    /// Its own position; the next question asks for what comes after it.
    pub cookie: u64,
    /// Attributes, if asked for.
    pub attributes: Option<Attributes>,
}

/// A part of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryPage {
    /// The directory's own parent.
    pub parent: InodeId,
    /// Entries, by cookie.
    pub entries: Vec<DirectoryEntry>,
    /// There are no more.
    pub end: bool,
}

/// A part of a directory that takes about so many bytes in a message: at least an entry, if there is one after `cookie`. With
/// `plus` each entry has its inode's attributes; `None` if there is no such inode.
///
/// # Errors
/// `Stale`, `NotDirectory`, or if the store fails.
pub fn directory_page(
    from: &dyn Read,
    ino: InodeId,
    cookie: u64,
    plus: bool,
    bytes_max: u32,
) -> OpResult<DirectoryPage> {
    let each = ENTRY_BYTES + if plus { ATTRIBUTES_BYTES } else { 0 };
    let mut bytes = 0;
    let (parent, listed, end) = read_directory(from, ino, cookie, |entry| {
        bytes += each + entry.name.len() as u32;
        bytes >= bytes_max
    })?;
    let mut records = match plus {
        true => inodes(from, listed.iter().map(|entry| entry.ino))?,
        false => Vec::new(),
    }
    .into_iter();
    let entries = listed
        .into_iter()
        .map(|entry| DirectoryEntry {
            attributes: records.next().flatten().map(|record| record.attributes(entry.ino)),
            name: entry.name,
            ino: entry.ino,
            kind: entry.kind,
            cookie: entry.cookie,
        })
        .collect();
    Ok(DirectoryPage { parent, entries, end })
}

/// Where a symbolic link leads.
///
/// # Errors
/// `Stale`, `InvalidArgument` if it is another kind of file, or if the store fails.
pub fn link_target(from: &dyn Read, ino: InodeId) -> OpResult<Bytes> {
    let record = inode(from, ino)?;
    match record.kind() {
        FileKind::Symlink => Ok(record.target),
        _ => Err(FsError::InvalidArgument.into()),
    }
}

/// The pieces of up to `count` segments from `first` on, as they are in the records; segments that a
/// truncation cut off are left out.
///
/// # Errors
/// If the store fails.
pub fn segments(
    from: &dyn Read,
    ino: InodeId,
    record: &InodeRecord,
    first: SegmentIndex,
    count: u64,
) -> Result<Vec<(SegmentIndex, Vec<Piece>)>, StoreError> {
    let mut found = Vec::new();
    let mut failed = None;
    let end = match first.0.checked_add(count) {
        Some(end) => keys::segment(ino, SegmentIndex(end)),
        None => prefix_end(&keys::inode(ino)),
    };
    from.scan(Family::Extents, &keys::segment(ino, first), &end, &mut |key, value| match (
        keys::segment_of(key),
        SegmentRecord::decode(value),
    ) {
        (Some(segment), Ok(stored)) => {
            if !record.is_cut_off(segment, stored.epoch) {
                found.push((segment, stored.pieces));
            }
            ControlFlow::Continue(())
        }
        (None, _) => ControlFlow::Continue(()),
        (_, Err(error)) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(found), Err)
}

/// The bytes of a piece that is inline; `None` for others.
///
/// # Errors
/// If the value is missing or too short, or the store fails.
pub fn inline_bytes(
    from: &dyn Read,
    ino: InodeId,
    segment: SegmentIndex,
    piece: &Piece,
) -> Result<Option<Bytes>, StoreError> {
    let Place::Inline { id, skip } = piece.place else { return Ok(None) };
    let value = from.get(Family::Inline, &keys::inline(ino, segment, id))?.map(Bytes::from);
    let (start, end) = (skip as usize, skip as usize + piece.length as usize);
    match value {
        Some(value) if value.len() >= end => Ok(Some(value.slice(start..end))),
        _ => Err(StoreError::Damaged(format!(
            "inline bytes of inode {ino}, extent page {segment} are missing"
        ))),
    }
}

/// A chunk's record.
///
/// # Errors
/// If the store fails.
pub fn chunk(from: &dyn Read, chunk: ChunkId) -> Result<Option<ChunkRecord>, StoreError> {
    load(from, Family::System, &keys::chunk(chunk))
}

/// Value of an extended attribute.
///
/// # Errors
/// `NoAttribute`, `Stale`, or if the store fails.
pub fn xattr(from: &dyn Read, ino: InodeId, name: &[u8]) -> OpResult<Bytes> {
    match from.get(Family::Xattrs, &keys::xattr(ino, name))? {
        Some(value) => Ok(value.into()),
        None => {
            inode(from, ino)?;
            Err(FsError::NoAttribute.into())
        }
    }
}

/// Names of the extended attributes of an inode, each ended by NUL.
///
/// # Errors
/// `Stale`, or if the store fails.
pub fn xattr_names(from: &dyn Read, ino: InodeId) -> OpResult<Bytes> {
    let mut names = Vec::new();
    if inode(from, ino)?.xattr_list_bytes > 0 {
        let prefix = keys::inode(ino);
        from.scan(Family::Xattrs, &prefix, &prefix_end(&prefix), &mut |key, _| {
            if let Some(name) = keys::xattr_name_of(key) {
                names.extend_from_slice(name);
                names.push(0);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(names.into())
}

/// A file's record, for tests.
#[cfg(test)]
pub(crate) fn tests_inode() -> InodeRecord {
    InodeRecord::new(FileKind::File.mode_bits() | 0o644, (0, 0), InodeId(0), 1, Default::default())
}
