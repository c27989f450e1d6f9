//! Making an inode and its name: `open(O_CREAT)`, `mkdir`, `mknod`, `symlink`.

use bytes::Bytes;

use crate::attributes::{FileKind, S_ISGID, Timestamp};
use crate::commands::{Op, Outcome};
use crate::error::FsError;
use crate::ids::InodeId;
use crate::limits::SYMLINK_BYTES_MAX;
use crate::namespace::check_name;
use crate::records::InodeRecord;
use crate::txn::{OpResult, Txn, change_time};

pub(super) fn create(txn: &mut Txn<'_>, now: Timestamp, op: &Op) -> OpResult<Outcome> {
    let Op::Create { parent, name, ino, mode, uid, gid, rdev, target } = op else {
        return Err(FsError::InvalidArgument.into());
    };
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
    let volume = txn.volume_mut()?;
    if volume.inodes_used >= volume.config.inodes_total {
        return Err(FsError::NoSpace.into());
    }
    volume.inodes_used += 1;
    let ino = match ino {
        Some(chosen) if chosen.0 < volume.next_inode => *chosen,
        Some(_) => return Err(FsError::InvalidArgument.into()),
        None => {
            let next = InodeId(volume.next_inode);
            volume.next_inode += 1;
            next
        }
    };
    let birth = volume.epoch;

    let mut mode = *mode & (crate::attributes::S_IFMT | 0o7777);
    let mut group = *gid;
    if directory.mode & S_ISGID != 0 {
        group = directory.gid;
        if kind == FileKind::Directory {
            mode |= S_ISGID;
        }
    }
    let is_directory = kind == FileKind::Directory;
    let record = InodeRecord {
        mode,
        nlink: if is_directory { 2 } else { 1 },
        uid: *uid,
        gid: group,
        rdev: if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) { *rdev } else { 0 },
        size: target.len() as u64,
        mapped: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        change: 1,
        birth,
        parent: if is_directory { *parent } else { InodeId(0) },
        entries: 0,
        target: Bytes::clone(target),
        xattr_list_bytes: 0,
        truncate_epoch: 0,
        truncations: Vec::new(),
    };
    txn.put_inode(ino, &record);
    txn.insert_entry(*parent, name, ino, kind)?;

    let changed = change_time(now, &directory);
    directory.entries += 1;
    directory.nlink += u32::from(is_directory);
    touch_directory(&mut directory, changed);
    txn.put_inode(*parent, &directory);
    Ok(Outcome::Inode(Box::new(record.attributes(ino))))
}

/// A directory's times after one of its entries changed.
pub(super) fn touch_directory(directory: &mut InodeRecord, at: Timestamp) {
    directory.mtime = at;
    directory.ctime = at;
    directory.change += 1;
}
