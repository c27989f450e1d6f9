//! Extended attributes.

use bytes::Bytes;

use crate::attributes::Timestamp;
use crate::commands::{Outcome, XattrMode};
use crate::error::FsError;
use crate::ids::InodeId;
use crate::keys;
use crate::limits::{XATTR_LIST_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::store::{Family, Read};
use crate::txn::{OpResult, Txn, change_time};

pub(super) fn set(
    txn: &mut Txn<'_>,
    now: Timestamp,
    ino: InodeId,
    name: &Bytes,
    value: &Bytes,
    mode: XattrMode,
) -> OpResult<Outcome> {
    check(name)?;
    if value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(FsError::AttributeTooLarge.into());
    }
    let mut record = txn.inode(ino)?;
    let key = keys::xattr(ino, name);
    let exists = txn.get(Family::Xattrs, &key)?.is_some();
    match (mode, exists) {
        (XattrMode::Create, true) => return Err(FsError::Exists.into()),
        (XattrMode::Replace, false) => return Err(FsError::NoAttribute.into()),
        _ => {}
    }
    if !exists {
        let listed = record.xattr_list_bytes as usize + name.len() + 1;
        if listed > XATTR_LIST_BYTES_MAX {
            return Err(FsError::NoSpace.into());
        }
        record.xattr_list_bytes = listed as u32;
    }
    txn.put_bytes(Family::Xattrs, key, value.to_vec());
    record.ctime = change_time(now, &record);
    record.change += 1;
    txn.put_inode(ino, &record);
    Ok(Outcome::Inode(Box::new(record.attributes(ino))))
}

pub(super) fn remove(txn: &mut Txn<'_>, now: Timestamp, ino: InodeId, name: &Bytes) -> OpResult<Outcome> {
    check(name)?;
    let mut record = txn.inode(ino)?;
    let key = keys::xattr(ino, name);
    if txn.get(Family::Xattrs, &key)?.is_none() {
        return Err(FsError::NoAttribute.into());
    }
    txn.delete(Family::Xattrs, key);
    record.xattr_list_bytes = record.xattr_list_bytes.saturating_sub(name.len() as u32 + 1);
    record.ctime = change_time(now, &record);
    record.change += 1;
    txn.put_inode(ino, &record);
    Ok(Outcome::Inode(Box::new(record.attributes(ino))))
}

fn check(name: &[u8]) -> OpResult<()> {
    if name.is_empty() || name.contains(&0) {
        return Err(FsError::InvalidArgument.into());
    }
    if name.len() > XATTR_NAME_BYTES_MAX {
        return Err(FsError::NameTooLong.into());
    }
    Ok(())
}
