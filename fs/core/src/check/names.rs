//! Names, parents, link counts, orphans, flags.

use super::{Finding, Found, Kind, Subject, each};
use crate::acl::{ACCESS_NAME, DEFAULT_NAME};
use crate::attributes::FileKind;
use crate::ids::{InodeId, ROOT};
use crate::keys;
use crate::records::{EntryRecord, InodeRecord, OrphanRecord, Record, SegmentRecord};
use crate::store::{Family, Read, StoreError};
use crate::txn::{find_entry, load};

/// How many names an inode has by its own records.
pub(crate) fn names_of(store: &dyn Read, ino: InodeId) -> Result<u32, StoreError> {
    let mut names = 0;
    each(store, Family::Names, &keys::parents(ino), |_, _| {
        names += 1;
        Ok(())
    })?;
    Ok(names)
}

/// Entries of a directory, and how many of them are directories.
pub(crate) fn entries_of(store: &dyn Read, directory: InodeId) -> Result<(u64, u32), StoreError> {
    let (mut entries, mut below) = (0, 0);
    each(store, Family::Names, &keys::entries(directory), |_, value| {
        if let EntryRecord::Entry { kind, .. } = EntryRecord::decode(value)? {
            entries += 1;
            below += u32::from(kind == FileKind::Directory);
        }
        Ok(())
    })?;
    Ok((entries, below))
}

/// Bytes that an inode's segments map.
pub(crate) fn mapped_of(store: &dyn Read, ino: InodeId, record: &InodeRecord) -> Result<u64, StoreError> {
    let mut mapped = 0;
    each(store, Family::Extents, &keys::inode(ino), |key, value| {
        let segment = keys::segment_of(key).unwrap_or_default();
        let found = SegmentRecord::decode(value)?;
        let mut cuts = record.truncations.iter().filter(|cut| segment >= cut.from && found.epoch < cut.epoch);
        if cuts.all(|cut| cut.counted) {
            mapped += found.pieces.iter().map(|piece| u64::from(piece.length)).sum::<u64>();
        }
        Ok(())
    })?;
    Ok(mapped)
}

/// Whether an inode has an access control list of its own, and one that is inherited.
pub(crate) fn lists_of(store: &dyn Read, ino: InodeId) -> Result<(bool, bool), StoreError> {
    Ok((
        store.get(Family::Xattrs, &keys::xattr(ino, ACCESS_NAME))?.is_some(),
        store.get(Family::Xattrs, &keys::xattr(ino, DEFAULT_NAME))?.is_some(),
    ))
}

pub(super) fn inode(store: &dyn Read, ino: InodeId) -> Result<Found, StoreError> {
    let mut found = Found::new();
    let Some(record) = load::<InodeRecord>(store, Family::Inodes, &keys::inode(ino))? else {
        return Ok(found);
    };
    let mut wrong = |kind, words: String| found.push(Finding::new(kind, Subject::Inode(ino), words));
    let orphan: Option<OrphanRecord> = load(store, Family::System, &keys::orphan(ino))?;
    let names = names_of(store, ino)?;
    if ino != ROOT && names == 0 && orphan.is_none() {
        wrong(
            Kind::InodeWithoutName,
            format!("inode {ino} has no name, records {} links, and isn't marked as unlinked", record.nlink),
        );
    } else if orphan.is_some() && names > 0 {
        wrong(Kind::OrphanWithName, format!("inode {ino} has {names} names and is marked as unlinked"));
    }
    if record.is_directory() {
        let (entries, below) = entries_of(store, ino)?;
        let links = if names > 0 || ino == ROOT { 2 + below } else { 0 };
        let lost = names == 0 && ino != ROOT && orphan.is_none();
        if record.entries != entries || (record.nlink != links && !lost) {
            wrong(
                Kind::DirectoryCounts,
                format!(
                    "directory {ino} records {} entries and {} links and has {entries} and {links}",
                    record.entries, record.nlink
                ),
            );
        }
    } else if record.nlink != names && (names > 0 || orphan.is_some()) {
        wrong(Kind::LinkCount, format!("inode {ino} records {} links and has {names} names", record.nlink));
    }
    let lists = lists_of(store, ino)?;
    if lists != (record.access_acl, record.default_acl) {
        wrong(
            Kind::AclFlag,
            format!(
                "inode {ino} records {:?} of its access control lists (own, inherited), which are {lists:?}",
                (record.access_acl, record.default_acl)
            ),
        );
    }
    if !orphan.is_some_and(|orphan| orphan.purging) {
        let mapped = mapped_of(store, ino, &record)?;
        if mapped != record.mapped {
            wrong(
                Kind::MappedBytes,
                format!("inode {ino} records {} mapped bytes and has {mapped}", record.mapped),
            );
        }
    }
    Ok(found)
}

pub(super) fn entry(store: &dyn Read, directory: InodeId, cookie: u64) -> Result<Found, StoreError> {
    let mut found = Found::new();
    let Some(EntryRecord::Entry { name, ino, kind, .. }) =
        load(store, Family::Names, &keys::entry_at(directory, cookie))?
    else {
        return Ok(found);
    };
    let mut wrong =
        |kind, words: String| found.push(Finding::new(kind, Subject::Entry(directory, cookie), words));
    let shown = String::from_utf8_lossy(&name);
    let above: Option<InodeRecord> = load(store, Family::Inodes, &keys::inode(directory))?;
    if !above.as_ref().is_some_and(InodeRecord::is_directory) {
        wrong(
            Kind::NamesWithoutDirectory,
            format!("{shown:?} is in inode {directory}, which isn't a directory"),
        );
    }
    if store.get(Family::Names, &keys::parent(ino, directory, &name))?.is_none() {
        wrong(
            Kind::ParentMissing,
            format!("{shown:?} in directory {directory} names inode {ino}, which lacks that name"),
        );
    }
    match load::<InodeRecord>(store, Family::Inodes, &keys::inode(ino))? {
        None => wrong(
            Kind::EntryWithoutInode,
            format!("{shown:?} in directory {directory} names inode {ino}, which doesn't exist"),
        ),
        Some(record) => {
            if record.kind() != kind {
                wrong(
                    Kind::EntryKind,
                    format!(
                        "{shown:?} in directory {directory}: the entry's type is {kind:?}, the inode's {:?}",
                        record.kind()
                    ),
                );
            }
            if record.is_directory() && record.parent != directory {
                wrong(
                    Kind::DirectoryParent,
                    format!("directory {ino} is in {directory} and records {} as its parent", record.parent),
                );
            }
        }
    }
    Ok(found)
}

pub(super) fn parent(
    store: &dyn Read,
    hash_key: (u64, u64),
    ino: InodeId,
    directory: InodeId,
    name: &[u8],
) -> Result<Found, StoreError> {
    let there = store.get(Family::Names, &keys::parent(ino, directory, name))?.is_some();
    let named = find_entry(store, hash_key, directory, name)?.is_some_and(|entry| entry.ino == ino);
    if !there || named {
        return Ok(Found::new());
    }
    let shown = String::from_utf8_lossy(name);
    let words =
        format!("inode {ino} records the name {shown:?} in directory {directory}, which doesn't have it");
    Ok(vec![Finding::new(Kind::NameMissing, Subject::Parent(ino, directory, name.to_vec()), words)])
}

pub(super) fn orphan(store: &dyn Read, ino: InodeId) -> Result<Found, StoreError> {
    if store.get(Family::System, &keys::orphan(ino))?.is_none()
        || store.get(Family::Inodes, &keys::inode(ino))?.is_some()
    {
        return Ok(Found::new());
    }
    let words = format!("inode {ino} is marked as unlinked and doesn't exist");
    Ok(vec![Finding::new(Kind::OrphanWithoutInode, Subject::Orphan(ino), words)])
}
