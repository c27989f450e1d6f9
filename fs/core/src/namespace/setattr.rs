//! `chmod`, `chown`, `truncate`, `utimensat`.

use serde::{Deserialize, Serialize};

use crate::attributes::{
    AttributeChanges, Attributes, FileKind, S_IFMT, TimeChange, Timestamp, without_setid,
};
use crate::commands::{Context, Mutation};
use crate::error::FsError;
use crate::extents;
use crate::ids::InodeId;
use crate::keys;
use crate::limits::{FILE_BYTES_MAX, TOUCHED_INODES_MAX};
use crate::namespace::xattr;
use crate::records::InodeRecord;
use crate::store::Family;
use crate::txn::{OpResult, Txn, change_time};

/// Changes attributes; with a size it truncates or extends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// The inode.
    pub ino: InodeId,
    /// The changes.
    pub changes: AttributeChanges,
}

impl Mutation for SetAttr {
    type Outcome = Box<Attributes>;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Box<Attributes>> {
        let now = context.now;
        let SetAttr { ino, ref changes } = *self;
        let mut record = txn.inode(ino)?;
        if let Some(size) = changes.size {
            match record.kind() {
                FileKind::File => {}
                FileKind::Directory => return Err(FsError::IsDirectory.into()),
                _ => return Err(FsError::InvalidArgument.into()),
            }
            if size > FILE_BYTES_MAX {
                return Err(FsError::FileTooLarge.into());
            }
            extents::resize(txn, ino, &mut record, size)?;
        }
        let changed = change_time(now, &record);
        if changes.size.is_some() {
            record.mtime = changed;
        }
        if (changes.uid.is_some() || changes.gid.is_some()) && !record.is_directory() {
            // chown(2): an executable that changes hands loses its set-id bits.
            record.mode = without_setid(record.mode);
        }
        if !record.is_directory() {
            xattr::kill_priv(txn, ino, &mut record, changes.kill_priv)?;
        }
        if let Some(mode) = changes.mode {
            record.mode = (record.mode & S_IFMT) | (mode & 0o7777);
            if record.access_acl {
                xattr::follow_mode(txn, ino, &record)?;
            }
        }
        record.uid = changes.uid.unwrap_or(record.uid);
        record.gid = changes.gid.unwrap_or(record.gid);
        let at = |change: TimeChange| match change {
            TimeChange::Now => now,
            TimeChange::To(time) => time,
        };
        record.atime = changes.atime.map_or(record.atime, at);
        record.mtime = changes.mtime.map_or(record.mtime, at);
        record.ctime = changed;
        record.count_change();
        txn.put_inode(ino, &record);
        Ok(Box::new(record.attributes(ino)))
    }
}

/// Sets access times, which is no change: ctime and the change counter stay.
///
/// Notes when files were read. Nothing but their access times changes; those that are gone are passed over, and those
/// that were changed since: whoever did may have set the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// Which, and when they were read; a time before the known one changes nothing.
    pub times: Vec<(InodeId, Timestamp)>,
}

impl Mutation for Touch {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<()> {
        let Touch { times } = self;
        if times.len() > TOUCHED_INODES_MAX {
            return Err(FsError::InvalidArgument.into());
        }
        for (ino, time) in times {
            if let Some(mut record) = txn.load::<InodeRecord>(Family::Inodes, &keys::inode(*ino))?
                && record.atime < *time
                && record.ctime < *time
            {
                record.atime = *time;
                txn.put_inode(*ino, &record);
            }
        }
        Ok(())
    }
}
