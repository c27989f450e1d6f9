//! Hard links.

use bytes::Bytes;

use crate::attributes::Timestamp;
use crate::commands::Outcome;
use crate::error::FsError;
use crate::ids::InodeId;
use crate::keys;
use crate::limits::LINKS_MAX;
use crate::namespace::check_name;
use crate::namespace::create::touch_directory;
use crate::records::OrphanRecord;
use crate::store::Family;
use crate::txn::{OpResult, Txn, change_time};

pub(super) fn link(
    txn: &mut Txn<'_>,
    now: Timestamp,
    ino: InodeId,
    parent: InodeId,
    name: &Bytes,
) -> OpResult<Outcome> {
    check_name(name)?;
    let mut record = txn.inode(ino)?;
    if record.is_directory() {
        return Err(FsError::NotPermitted.into());
    }
    if record.nlink == 0 {
        // Its last name went while the caller looked: such a file gets none again. One that never had a name may.
        let orphan: Option<OrphanRecord> = txn.load(Family::System, &keys::orphan(ino))?;
        if !orphan.is_some_and(|orphan| orphan.linkable && !orphan.purging) {
            return Err(FsError::NotFound.into());
        }
        txn.delete(Family::System, keys::orphan(ino));
    }
    if record.nlink >= LINKS_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    let mut directory = txn.directory(parent)?;
    if txn.find(parent, name)?.is_some() {
        return Err(FsError::Exists.into());
    }
    txn.insert_entry(parent, name, ino, record.kind())?;
    record.nlink = record.nlink.saturating_add(1);
    record.ctime = change_time(now, &record);
    record.count_change();
    txn.put_inode(ino, &record);
    directory.entries = directory.entries.saturating_add(1);
    let changed = change_time(now, &directory);
    touch_directory(&mut directory, changed);
    txn.put_inode(parent, &directory);
    Ok(Outcome::Inode(Box::new(record.attributes(ino))))
}
