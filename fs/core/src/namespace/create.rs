//! Making an inode: `open(O_CREAT)`, `mkdir`, `mknod`, `symlink`, and `O_TMPFILE`, which gives it no name.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::acl::{ACCESS_NAME, Acl, DEFAULT_NAME};
use crate::attributes::{Attributes, FileKind, S_IFMT, S_ISGID, Timestamp};
use crate::commands::{Context, Mutation};
use crate::error::FsError;
use crate::ids::InodeId;
use crate::keys;
use crate::limits::SYMLINK_BYTES_MAX;
use crate::namespace::check_name;
use crate::namespace::xattr;
use crate::records::{InodeRecord, OrphanRecord};
use crate::store::{Family, Read};
use crate::txn::{OpResult, Txn, change_time, take_number};

/// What is to be made.
struct New<'a> {
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    target: &'a Bytes,
    umask: u32,
}

/// Makes an inode of any kind and its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// The directory.
    pub parent: InodeId,
    /// The name.
    pub name: Bytes,
    /// Its number, which entries of a journal have ([`journaled_inode`](crate::ids::journaled_inode)); `None`: the next free
    /// one.
    pub ino: Option<InodeId>,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory passes on its own.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Target of a symbolic link.
    pub target: Bytes,
    /// Permission bits that are taken away, unless the directory has a list that is inherited instead.
    pub umask: u32,
}

impl Mutation for Create {
    type Outcome = Box<Attributes>;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Box<Attributes>> {
        let now = context.now;
        let Create { parent, name, ino, mode, uid, gid, rdev, target, umask } = self;
        check_name(name)?;
        let kind = FileKind::of_mode(*mode).ok_or(FsError::InvalidArgument)?;
        if target.len() > SYMLINK_BYTES_MAX {
            return Err(FsError::NameTooLong.into());
        }
        if (kind == FileKind::Symlink) == target.is_empty() {
            // A link must point somewhere (ENOENT, as symlink(2) has it for an empty target), nothing else may.
            return Err(if target.is_empty() { FsError::NotFound } else { FsError::InvalidArgument }.into());
        }
        let mut directory = txn.directory(*parent)?;
        if txn.find(*parent, name)?.is_some() {
            return Err(FsError::Exists.into());
        }
        let ino = number(txn, context, *ino)?;
        let new = New { mode: *mode, uid: *uid, gid: *gid, rdev: *rdev, target, umask: *umask };
        let record = make(txn, now, ino, (*parent, &directory), &new)?;
        txn.put_inode(ino, &record);
        txn.insert_entry(*parent, name, ino, kind)?;

        let changed = change_time(now, &directory);
        directory.entries = directory.entries.saturating_add(1);
        directory.nlink = directory.nlink.saturating_add(u32::from(kind == FileKind::Directory));
        touch_directory(&mut directory, changed);
        txn.put_inode(*parent, &directory);
        Ok(Box::new(record.attributes(ino)))
    }
}

/// Makes a file without a name (`O_TMPFILE`): an orphan that may get one.
///
/// Makes a file that no name leads to. It is an orphan from the start, and goes when its maker closes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfile {
    /// The directory that it would be in: what it inherits comes from there.
    pub parent: InodeId,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory passes on its own.
    pub gid: u32,
    /// As in [`Create`].
    pub umask: u32,
    /// It may get a name (no `O_EXCL`).
    pub linkable: bool,
}

impl Mutation for Tmpfile {
    type Outcome = Box<Attributes>;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Box<Attributes>> {
        let now = context.now;
        let Tmpfile { parent, mode, uid, gid, umask, linkable } = self;
        let directory = txn.directory(*parent)?;
        let ino = number(txn, context, None)?;
        let mode = FileKind::File.mode_bits() | (mode & 0o7777);
        let new = New { mode, uid: *uid, gid: *gid, rdev: 0, target: &Bytes::new(), umask: *umask };
        let mut record = make(txn, now, ino, (*parent, &directory), &new)?;
        record.nlink = 0;
        txn.put_inode(ino, &record);
        let orphan = OrphanRecord { since: now, purging: false, linkable: *linkable };
        txn.put(Family::System, keys::orphan(ino), &orphan);
        Ok(Box::new(record.attributes(ino)))
    }
}

/// Leaves a whiteout: the device that overlay filesystems take for "nothing here".
pub(super) fn whiteout(
    txn: &mut Txn<'_>,
    context: &Context,
    (parent, name): (InodeId, &Bytes),
    directory: &InodeRecord,
    (uid, gid): (u32, u32),
) -> OpResult<()> {
    let ino = number(txn, context, None)?;
    let mode = FileKind::CharDevice.mode_bits();
    let new = New { mode, uid, gid, rdev: 0, target: &Bytes::new(), umask: 0 };
    let record = make(txn, context.now, ino, (parent, directory), &new)?;
    txn.put_inode(ino, &record);
    txn.insert_entry(parent, name, ino, FileKind::CharDevice)
}

/// A number for a new inode, which counts from now on.
fn number(txn: &mut Txn<'_>, context: &Context, chosen: Option<InodeId>) -> OpResult<InodeId> {
    let volume = txn.volume()?;
    // A journal is bounded, and its client has seen to it that there was room.
    if context.journaled.is_none() && volume.inodes_used >= volume.config.inodes_total {
        return Err(FsError::NoSpace.into());
    }
    if chosen.is_some() && chosen != context.journaled {
        return Err(FsError::InvalidArgument.into());
    }
    let volume = txn.volume_mut()?;
    let ino = match chosen {
        Some(chosen) => chosen,
        None => InodeId(take_number(&mut volume.next_inode)?),
    };
    volume.inodes_used = volume.inodes_used.saturating_add(1);
    Ok(ino)
}

/// The record of a new inode with one link (a directory: two), and the access control lists that it inherits.
fn make(
    txn: &mut Txn<'_>,
    now: Timestamp,
    ino: InodeId,
    (parent, directory): (InodeId, &InodeRecord),
    new: &New<'_>,
) -> OpResult<InodeRecord> {
    let kind = FileKind::of_mode(new.mode).ok_or(FsError::InvalidArgument)?;
    let is_directory = kind == FileKind::Directory;
    let mut mode = new.mode & (S_IFMT | 0o7777);
    let mut group = new.gid;
    if directory.mode & S_ISGID != 0 {
        group = directory.gid;
        if is_directory {
            mode |= S_ISGID;
        }
    }
    let inherited = match directory.default_acl && kind != FileKind::Symlink {
        true => txn
            .get(Family::Xattrs, &keys::xattr(parent, DEFAULT_NAME))?
            .and_then(|value| Some((Acl::parse(&value)??, value))),
        false => None,
    };
    let mut lists: Vec<(&[u8], Vec<u8>)> = Vec::new();
    match inherited {
        Some((default, value)) => {
            let (own, masked) = default.inherit(mode);
            mode = masked;
            if !own.is_minimal() {
                lists.push((ACCESS_NAME, own.encode().to_vec()));
            }
            if is_directory {
                lists.push((DEFAULT_NAME, value));
            }
        }
        None if kind != FileKind::Symlink => mode &= !(new.umask & 0o777),
        None => {}
    }
    let mut record = InodeRecord::new(mode, (new.uid, group), parent, txn.volume()?.epoch, now);
    if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
        record.rdev = new.rdev;
    }
    record.size = new.target.len() as u64;
    record.target = Bytes::clone(new.target);
    for (name, value) in lists {
        xattr::put(txn, ino, &mut record, name, value)?;
    }
    Ok(record)
}

/// A directory's times after one of its entries changed.
pub(super) fn touch_directory(directory: &mut InodeRecord, at: Timestamp) {
    directory.mtime = at;
    directory.ctime = at;
    directory.count_change();
}
