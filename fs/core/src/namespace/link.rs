//! Hard links.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::attributes::Attributes;
use crate::commands::{Context, Mutation};
use crate::error::FsError;
use crate::ids::InodeId;
use crate::keys;
use crate::limits::LINKS_MAX;
use crate::namespace::check_name;
use crate::namespace::create::touch_directory;
use crate::records::OrphanRecord;
use crate::store::Family;
use crate::txn::{OpResult, Txn, change_time};

/// Makes a further name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// What to name.
    pub ino: InodeId,
    /// The directory.
    pub parent: InodeId,
    /// The name.
    pub name: Bytes,
}

impl Mutation for Link {
    type Outcome = Box<Attributes>;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Box<Attributes>> {
        let now = context.now;
        let Link { ino, parent, ref name } = *self;
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
        Ok(Box::new(record.attributes(ino)))
    }
}
