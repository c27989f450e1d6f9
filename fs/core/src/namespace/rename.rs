//! renameat2(2).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::attributes::Timestamp;
use crate::commands::{Context, Mutation, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Renamed};
use crate::error::FsError;
use crate::ids::{InodeId, ROOT};
use crate::namespace::check_name;
use crate::namespace::create::{touch_directory, whiteout};
use crate::namespace::unlink::drop_link;
use crate::records::InodeRecord;
use crate::txn::{OpResult, Txn, change_time};

/// Directories between an inode and the root that a walk upwards passes at most; a longer way is a loop.
const DEPTH_MAX: u32 = 1 << 20;

type Place<'a> = (InodeId, &'a Bytes);

/// Renames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// From this directory.
    pub parent: InodeId,
    /// This name.
    pub name: Bytes,
    /// To this directory.
    pub new_parent: InodeId,
    /// This name.
    pub new_name: Bytes,
    /// [`RENAME_NOREPLACE`], [`RENAME_EXCHANGE`], [`RENAME_WHITEOUT`].
    pub flags: u32,
    /// Owner and group of what is left behind with [`RENAME_WHITEOUT`].
    pub whiteout: (u32, u32),
}

impl Mutation for Rename {
    type Outcome = Renamed;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Renamed> {
        let flags = self.flags;
        let (from, to) = ((self.parent, &self.name), (self.new_parent, &self.new_name));
        check_name(from.1)?;
        check_name(to.1)?;
        let exchanges = flags & RENAME_EXCHANGE != 0;
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT) != 0
            || exchanges && flags != RENAME_EXCHANGE
        {
            return Err(FsError::InvalidArgument.into());
        }
        txn.directory(from.0)?;
        txn.directory(to.0)?;
        if exchanges {
            exchange(txn, context.now, from, to)
        } else {
            replace(txn, context, from, to, flags, self.whiteout)
        }
    }
}

fn replace(
    txn: &mut Txn<'_>,
    context: &Context,
    from: Place<'_>,
    to: Place<'_>,
    flags: u32,
    left_to: (u32, u32),
) -> OpResult<Renamed> {
    let now = context.now;
    let source = txn.find(from.0, from.1)?.ok_or(FsError::NotFound)?;
    let target = txn.find(to.0, to.1)?;
    let mut moved = txn.inode(source.ino)?;
    let is_directory = moved.is_directory();
    if is_directory && from.0 != to.0 && is_below(txn, to.0, source.ino)? {
        return Err(FsError::InvalidArgument.into());
    }
    let mut gone = None;
    if let Some(target) = &target {
        if flags & RENAME_NOREPLACE != 0 {
            return Err(FsError::Exists.into());
        }
        if target.ino == source.ino {
            // Two names of one file: POSIX says to do nothing.
            return Ok(Renamed { moved: Box::new(moved.attributes(source.ino)), replaced: None });
        }
        let mut replaced = txn.inode(target.ino)?;
        match (is_directory, replaced.is_directory()) {
            (true, false) => return Err(FsError::NotDirectory.into()),
            (false, true) => return Err(FsError::IsDirectory.into()),
            (true, true) if replaced.entries > 0 => return Err(FsError::NotEmpty.into()),
            _ => {}
        }
        txn.remove_entry(to.0, to.1, target)?;
        drop_link(txn, now, target.ino, &mut replaced)?;
        gone = Some(Box::new(replaced.attributes(target.ino)));
        let mut directory = txn.inode(to.0)?;
        directory.entries = directory.entries.saturating_sub(1);
        directory.nlink = directory.nlink.saturating_sub(u32::from(replaced.is_directory()));
        txn.put_inode(to.0, &directory);
    }
    txn.remove_entry(from.0, from.1, &source)?;
    txn.insert_entry(to.0, to.1, source.ino, moved.kind())?;

    let mut directory = txn.inode(from.0)?;
    directory.entries = directory.entries.saturating_sub(1);
    directory.nlink = directory.nlink.saturating_sub(u32::from(is_directory));
    if flags & RENAME_WHITEOUT != 0 {
        whiteout(txn, context, from, &directory, left_to)?;
        directory.entries = directory.entries.saturating_add(1);
    }
    let changed = change_time(now, &directory);
    touch_directory(&mut directory, changed);
    txn.put_inode(from.0, &directory);
    let mut directory = txn.inode(to.0)?;
    directory.entries = directory.entries.saturating_add(1);
    directory.nlink = directory.nlink.saturating_add(u32::from(is_directory));
    let changed = if from.0 == to.0 { directory.ctime } else { change_time(now, &directory) };
    touch_directory(&mut directory, changed);
    txn.put_inode(to.0, &directory);

    if is_directory {
        moved.parent = to.0;
    }
    moved.ctime = change_time(now, &moved);
    moved.count_change();
    txn.put_inode(source.ino, &moved);
    let moved = Box::new(moved.attributes(source.ino));
    Ok(Renamed { moved, replaced: gone })
}

fn exchange(txn: &mut Txn<'_>, now: Timestamp, from: Place<'_>, to: Place<'_>) -> OpResult<Renamed> {
    let one = txn.find(from.0, from.1)?.ok_or(FsError::NotFound)?;
    let two = txn.find(to.0, to.1)?.ok_or(FsError::NotFound)?;
    let mut first = txn.inode(one.ino)?;
    if one.ino == two.ino {
        return Ok(Renamed { moved: Box::new(first.attributes(one.ino)), replaced: None });
    }
    let mut second = txn.inode(two.ino)?;
    if from.0 != to.0
        && ((first.is_directory() && is_below(txn, to.0, one.ino)?)
            || (second.is_directory() && is_below(txn, from.0, two.ino)?))
    {
        return Err(FsError::InvalidArgument.into());
    }
    txn.remove_entry(from.0, from.1, &one)?;
    txn.remove_entry(to.0, to.1, &two)?;
    txn.insert_entry(from.0, from.1, two.ino, second.kind())?;
    txn.insert_entry(to.0, to.1, one.ino, first.kind())?;
    for (ino, record, parent) in [(one.ino, &mut first, to.0), (two.ino, &mut second, from.0)] {
        if record.is_directory() {
            record.parent = parent;
        }
        record.ctime = change_time(now, record);
        record.count_change();
        txn.put_inode(ino, record);
    }
    // Read after the inodes were written: one of them may itself be a parent of the other's name.
    let mut directory = txn.inode(from.0)?;
    if from.0 != to.0 {
        swap_links(&mut directory, &first, &second);
    }
    let changed = change_time(now, &directory);
    touch_directory(&mut directory, changed);
    txn.put_inode(from.0, &directory);
    if from.0 != to.0 {
        let mut directory = txn.inode(to.0)?;
        swap_links(&mut directory, &second, &first);
        let changed = change_time(now, &directory);
        touch_directory(&mut directory, changed);
        txn.put_inode(to.0, &directory);
    }
    Ok(Renamed { moved: Box::new(first.attributes(one.ino)), replaced: None })
}

/// The links of a directory in which `new` takes the place of `old`.
fn swap_links(directory: &mut InodeRecord, old: &InodeRecord, new: &InodeRecord) {
    let links = directory.nlink.saturating_add(u32::from(new.is_directory()));
    directory.nlink = links.saturating_sub(u32::from(old.is_directory()));
}

/// True if `inner` is `outer` or somewhere below it.
fn is_below(txn: &Txn<'_>, inner: InodeId, outer: InodeId) -> OpResult<bool> {
    let mut at = inner;
    for _ in 0..DEPTH_MAX {
        if at == outer {
            return Ok(true);
        }
        if at == ROOT {
            return Ok(false);
        }
        at = txn.inode(at)?.parent;
    }
    Err(FsError::Io.into())
}
