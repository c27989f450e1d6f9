//! Freeing what has no name any more, in steps of bounded size.

use serde::{Deserialize, Serialize};

use crate::commands::{Context, Mutation};
use crate::error::FsError;
use crate::extents;
use crate::ids::{InodeId, SegmentIndex};
use crate::keys;
use crate::locks;
use crate::records::{InodeRecord, OrphanRecord, Record, SegmentRecord};
use crate::store::Family;
use crate::txn::{OpResult, Txn};
use crate::volume;

/// Extended attributes that one step removes.
const XATTRS_PER_STEP: usize = 256;

/// Frees some of an orphan that nobody holds open; the last call removes it.
///
/// Frees up to `segments_max` segments of an orphan that no session holds open. With the first step its bytes
/// and its inode stop counting against the quota; the last one removes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeOrphan {
    /// Which.
    pub ino: InodeId,
    /// Segments to free at most.
    pub segments_max: u32,
}

impl Mutation for PurgeOrphan {
    type Outcome = bool;

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<bool> {
        let (ino, segments_max) = (self.ino, self.segments_max as usize);
        let key = keys::orphan(ino);
        let Some(mut orphan) = txn.load::<OrphanRecord>(Family::System, &key)? else {
            return Ok(false);
        };
        let Some(mut record) = txn.load::<InodeRecord>(Family::Inodes, &keys::inode(ino))? else {
            txn.delete(Family::System, key);
            return Ok(false);
        };
        if record.nlink > 0 {
            return Err(FsError::InvalidArgument.into());
        }
        let mapped = (!orphan.purging && record.truncations.is_empty()).then_some(record.mapped);
        if !orphan.purging {
            orphan.purging = true;
            txn.put(Family::System, key.clone(), &orphan);
            volume::charge(txn, record.charged(), 0, None)?;
            let volume = txn.volume_mut()?;
            volume.inodes_used = volume.inodes_used.saturating_sub(1);
            record.mapped = 0;
            record.truncations.clear();
            txn.delete(Family::System, keys::truncation(ino));
            txn.put_inode(ino, &record);
        }
        let (segments, more) = segments_of(txn, ino, mapped, segments_max.max(1))?;
        for (segment, found) in &segments {
            extents::free_segment(txn, ino, &mut record, *segment, found)?;
        }
        let xattrs = match record.xattr_list_bytes {
            0 => Vec::new(),
            _ => txn.collect_prefix(Family::Xattrs, &keys::inode(ino), XATTRS_PER_STEP)?,
        };
        let more = more || xattrs.len() == XATTRS_PER_STEP;
        for (key, _) in xattrs {
            txn.delete(Family::Xattrs, key);
        }
        if !more {
            locks::forget_inode(txn, ino)?;
            txn.delete(Family::System, key);
            txn.delete(Family::Inodes, keys::inode(ino));
        }
        Ok(more)
    }
}

/// At most `limit` of an inode's segments, and whether there may be more. `mapped`: the bytes that all of them map, if
/// that is known. It says of most files that the first one is all there is, so that no range has to be searched.
fn segments_of(
    txn: &Txn<'_>,
    ino: InodeId,
    mapped: Option<u64>,
    limit: usize,
) -> OpResult<(Vec<(SegmentIndex, SegmentRecord)>, bool)> {
    const FIRST: SegmentIndex = SegmentIndex(0);
    if mapped == Some(0) {
        return Ok((Vec::new(), false));
    }
    if let Some(mapped) = mapped
        && let Some(first) = txn.load::<SegmentRecord>(Family::Extents, &keys::segment(ino, FIRST))?
        && extents::mapped(&first.pieces) == mapped
    {
        return Ok((vec![(FIRST, first)], false));
    }
    let mut found = Vec::new();
    for (segment, value) in txn.segments_from(ino, FIRST, limit)? {
        found.push((segment, SegmentRecord::decode(&value)?));
    }
    let more = found.len() == limit;
    Ok((found, more))
}

/// Frees some of what truncations of an inode cut off.
///
/// Frees up to `segments_max` segments that truncations cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeTruncated {
    /// Which.
    pub ino: InodeId,
    /// Segments to free at most.
    pub segments_max: u32,
}

impl Mutation for PurgeTruncated {
    type Outcome = bool;

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<bool> {
        let (ino, segments_max) = (self.ino, self.segments_max as usize);
        let limit = segments_max.max(1);
        let marker = keys::truncation(ino);
        let Some(mut record) = txn.load::<InodeRecord>(Family::Inodes, &keys::inode(ino))? else {
            txn.delete(Family::System, marker);
            return Ok(false);
        };
        let charged = record.charged();
        if let Some(cut) = record.truncations.first().copied() {
            let found = txn.segments_from(ino, cut.from, limit)?;
            for (segment, value) in &found {
                let stored = SegmentRecord::decode(value)?;
                if record.is_cut_off(*segment, stored.epoch) {
                    extents::free_segment(txn, ino, &mut record, *segment, &stored)?;
                }
            }
            match found.last() {
                // All up to here is freed, so the rule need not cover it any more.
                Some((last, _)) if found.len() == limit => {
                    record.truncations[0].from = SegmentIndex(last.0.saturating_add(1))
                }
                _ => {
                    record.truncations.remove(0);
                }
            }
        }
        let more = !record.truncations.is_empty();
        if !more {
            txn.delete(Family::System, marker);
        }
        volume::charge(txn, charged, record.charged(), None)?;
        txn.put_inode(ino, &record);
        Ok(more)
    }
}
