//! Extended attributes, and access control lists, which are kept among them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::acl::{ACCESS_NAME, Acl, DEFAULT_NAME};
use crate::attributes::{Attributes, CAPABILITY_NAME, KillPriv, S_ISGID, Timestamp};
use crate::commands::{Context, Mutation, XattrMode};
use crate::error::FsError;
use crate::ids::InodeId;
use crate::keys;
use crate::limits::{XATTR_LIST_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::records::InodeRecord;
use crate::store::{Family, Read};
use crate::txn::{OpResult, Txn, change_time};

/// Sets an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetXattr {
    /// The inode.
    pub ino: InodeId,
    /// Its name.
    pub name: Bytes,
    /// Its value.
    pub value: Bytes,
    /// Whether it must or may exist.
    pub mode: XattrMode,
}

impl Mutation for SetXattr {
    type Outcome = Box<Attributes>;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Box<Attributes>> {
        let now = context.now;
        let SetXattr { ino, ref name, ref value, mode } = *self;
        check(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(FsError::AttributeTooLarge.into());
        }
        let mut record = txn.inode(ino)?;
        let exists = txn.get(Family::Xattrs, &keys::xattr(ino, name))?.is_some();
        match (mode, exists) {
            (XattrMode::Create, true) => return Err(FsError::Exists.into()),
            (XattrMode::Replace, false) => return Err(FsError::NoAttribute.into()),
            _ => {}
        }
        put(txn, ino, &mut record, name, value.to_vec())?;
        Ok(changed(txn, now, ino, record))
    }
}

/// Removes an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveXattr {
    /// The inode.
    pub ino: InodeId,
    /// Its name.
    pub name: Bytes,
}

impl Mutation for RemoveXattr {
    type Outcome = Box<Attributes>;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Box<Attributes>> {
        let now = context.now;
        let RemoveXattr { ino, ref name } = *self;
        check(name)?;
        let mut record = txn.inode(ino)?;
        if !take(txn, ino, &mut record, name)? {
            return Err(FsError::NoAttribute.into());
        }
        Ok(changed(txn, now, ino, record))
    }
}

/// Sets or removes an access control list. The permission bits follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAcl {
    /// The inode.
    pub ino: InodeId,
    /// The list that is inherited, not the directory's own.
    pub default: bool,
    /// The attribute's value; `None` removes it.
    pub value: Option<Bytes>,
    /// The caller isn't in the inode's group: the set-gid bit goes.
    pub kill_sgid: bool,
}

impl Mutation for SetAcl {
    type Outcome = Box<Attributes>;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Box<Attributes>> {
        let now = context.now;
        let SetAcl { ino, default, ref value, kill_sgid } = *self;
        let mut record = txn.inode(ino)?;
        let name = if default { DEFAULT_NAME } else { ACCESS_NAME };
        let acl = match value {
            Some(value) => Acl::parse(value).ok_or(FsError::InvalidArgument)?,
            None => None,
        };
        if default && !record.is_directory() && acl.is_some() {
            return Err(FsError::Denied.into());
        }
        match acl {
            Some(acl) => {
                if !default {
                    record.mode = acl.apply_to(record.mode);
                    // The kernel asks for this with lists that are inherited as well, which change no permission bits.
                    if kill_sgid {
                        record.mode &= !S_ISGID;
                    }
                }
                if default || !acl.is_minimal() {
                    put(txn, ino, &mut record, name, acl.encode().to_vec())?;
                } else {
                    // The permission bits say it all.
                    take(txn, ino, &mut record, name)?;
                }
            }
            None => {
                if !take(txn, ino, &mut record, name)? && value.is_none() {
                    return Err(FsError::NoAttribute.into());
                }
            }
        }
        Ok(changed(txn, now, ino, record))
    }
}

/// The access control list after a change of the permission bits.
pub(super) fn follow_mode(txn: &mut Txn<'_>, ino: InodeId, record: &InodeRecord) -> OpResult<()> {
    let key = keys::xattr(ino, ACCESS_NAME);
    if let Some(value) = txn.get(Family::Xattrs, &key)?
        && let Some(Some(acl)) = Acl::parse(&value)
    {
        txn.put_bytes(Family::Xattrs, key, acl.with_mode(record.mode).encode().to_vec());
    }
    Ok(())
}

/// Writes an attribute and keeps count of the names.
pub(super) fn put(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &mut InodeRecord,
    name: &[u8],
    value: Vec<u8>,
) -> OpResult<()> {
    let key = keys::xattr(ino, name);
    if txn.get(Family::Xattrs, &key)?.is_none() {
        let listed = record.xattr_list_bytes as usize + name.len() + 1;
        if listed > XATTR_LIST_BYTES_MAX {
            return Err(FsError::NoSpace.into());
        }
        record.xattr_list_bytes = listed as u32;
    }
    note(record, name, true);
    txn.put_bytes(Family::Xattrs, key, value);
    Ok(())
}

/// Takes away what the file loses by what is done to it. Only a file with extended attributes costs a look for the one.
pub(super) fn kill_priv(
    txn: &mut Txn<'_>,
    ino: InodeId,
    record: &mut InodeRecord,
    kill: KillPriv,
) -> OpResult<()> {
    record.mode = kill.applied_to(record.mode);
    if kill.contains(KillPriv::CAPABILITY) && record.xattr_list_bytes > 0 {
        take(txn, ino, record, CAPABILITY_NAME)?;
    }
    Ok(())
}

/// Removes an attribute; false if there is none.
fn take(txn: &mut Txn<'_>, ino: InodeId, record: &mut InodeRecord, name: &[u8]) -> OpResult<bool> {
    let key = keys::xattr(ino, name);
    if txn.get(Family::Xattrs, &key)?.is_none() {
        return Ok(false);
    }
    txn.delete(Family::Xattrs, key);
    record.xattr_list_bytes = record.xattr_list_bytes.saturating_sub(name.len() as u32 + 1);
    note(record, name, false);
    Ok(true)
}

fn note(record: &mut InodeRecord, name: &[u8], there: bool) {
    match name {
        ACCESS_NAME => record.access_acl = there,
        DEFAULT_NAME => record.default_acl = there,
        _ => {}
    }
}

fn changed(txn: &mut Txn<'_>, now: Timestamp, ino: InodeId, mut record: InodeRecord) -> Box<Attributes> {
    record.ctime = change_time(now, &record);
    record.count_change();
    txn.put_inode(ino, &record);
    Box::new(record.attributes(ino))
}

/// Access control lists come by an operation of their own.
fn check(name: &[u8]) -> OpResult<()> {
    if name.is_empty() || name.contains(&0) || name == ACCESS_NAME || name == DEFAULT_NAME {
        return Err(FsError::InvalidArgument.into());
    }
    if name.len() > XATTR_NAME_BYTES_MAX {
        return Err(FsError::NameTooLong.into());
    }
    Ok(())
}
