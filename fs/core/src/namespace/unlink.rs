//! Removing names: `unlink` and `rmdir`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::attributes::{Attributes, Timestamp};
use crate::commands::{Context, Mutation};
use crate::error::FsError;
use crate::ids::InodeId;
use crate::keys;
use crate::namespace::check_name;
use crate::namespace::create::touch_directory;
use crate::records::{InodeRecord, OrphanRecord};
use crate::store::Family;
use crate::txn::{OpResult, Txn, change_time};

/// Removes a name: of a directory if `directory`, else of anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlink {
    /// The directory.
    pub parent: InodeId,
    /// The name.
    pub name: Bytes,
    /// `rmdir` rather than `unlink`.
    pub directory: bool,
}

impl Mutation for Unlink {
    type Outcome = Box<Attributes>;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Box<Attributes>> {
        let now = context.now;
        let Unlink { parent, ref name, directory: directory_wanted } = *self;
        check_name(name)?;
        let mut directory = txn.directory(parent)?;
        let found = txn.find(parent, name)?.ok_or(FsError::NotFound)?;
        let mut record = txn.inode(found.ino)?;
        match (directory_wanted, record.is_directory()) {
            (true, false) => return Err(FsError::NotDirectory.into()),
            (false, true) => return Err(FsError::IsDirectory.into()),
            (true, true) if record.entries > 0 => return Err(FsError::NotEmpty.into()),
            _ => {}
        }
        txn.remove_entry(parent, name, &found)?;
        directory.entries = directory.entries.saturating_sub(1);
        if record.is_directory() {
            directory.nlink = directory.nlink.saturating_sub(1);
        }
        let changed = change_time(now, &directory);
        touch_directory(&mut directory, changed);
        txn.put_inode(parent, &directory);
        drop_link(txn, now, found.ino, &mut record)?;
        Ok(Box::new(record.attributes(found.ino)))
    }
}

/// Takes one link from an inode; without a name left it becomes an orphan, which goes (and stops counting
/// against the quota) when no session holds it open.
pub(super) fn drop_link(
    txn: &mut Txn<'_>,
    now: Timestamp,
    ino: InodeId,
    record: &mut InodeRecord,
) -> OpResult<()> {
    record.nlink = if record.is_directory() { 0 } else { record.nlink.saturating_sub(1) };
    record.ctime = change_time(now, record);
    record.count_change();
    if record.nlink == 0 {
        let orphan = OrphanRecord { since: now, purging: false, linkable: false };
        txn.put(Family::System, keys::orphan(ino), &orphan);
    }
    txn.put_inode(ino, record);
    Ok(())
}
