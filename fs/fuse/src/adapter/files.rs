//! Open files.

use atoll_client::vfs::{Errno, SeekKind, Vfs, WriteFlags};
use atoll_core::attributes::{AttributeChanges, KillPriv};
use atoll_core::ids::InodeId;
use bytes::Bytes;

use super::{NARROW_COPY_BYTES_MAX, answer, answer_done, inode};
use crate::session::Call;

/// `kill_suid_sgid` comes with `O_TRUNC` from callers whose truncation clears these bits.
pub(super) async fn open<V: Vfs>(filesystem: &V, call: Call, flags: u32, kill_suid_sgid: bool) {
    let result = async {
        let (caller, inode) = (call.caller(0), inode(&call));
        let opened = filesystem.open(&caller, inode, flags).await?;
        if kill_suid_sgid {
            let changes = AttributeChanges { kill_priv: KillPriv::SETID, ..AttributeChanges::default() };
            filesystem.setattr(&caller, inode, Some(opened.handle), changes).await?;
        }
        Ok(opened)
    };
    let result = result.await;
    answer(call, result, |call, opened| call.opened(&opened));
}

/// That CREATE too may say that set-id bits are to be cleared is passed over: it means a file that was made by somebody
/// else in the meantime, and a new file keeps the bits that it is made with.
pub(super) async fn create<V: Vfs>(
    filesystem: &V,
    call: Call,
    name: Bytes,
    mode: u32,
    flags: u32,
    umask: u32,
) {
    let result = filesystem.create(&call.caller(umask), inode(&call), name, mode, flags).await;
    answer(call, result, |call, (entry, opened)| call.created(&entry, &opened));
}

pub(super) async fn tmpfile<V: Vfs>(filesystem: &V, call: Call, mode: u32, flags: u32, umask: u32) {
    let result = filesystem.tmpfile(&call.caller(umask), inode(&call), mode, flags).await;
    answer(call, result, |call, (entry, opened)| call.created(&entry, &opened));
}

pub(super) async fn read<V: Vfs>(
    filesystem: &V,
    call: Call,
    handle: u64,
    offset: u64,
    size: u32,
    fills_pages: bool,
) {
    let result = filesystem.read(&call.caller(0), inode(&call), handle, offset, size, fills_pages).await;
    answer(call, result, |call, parts| call.data(&parts));
}

pub(super) async fn write<V: Vfs>(
    filesystem: &V,
    call: Call,
    handle: u64,
    offset: u64,
    data: Bytes,
    flags: WriteFlags,
) {
    let inode = inode(&call);
    let result = filesystem.write(&call.caller(0), inode, handle, offset, data, flags).await;
    answer(call, result, Call::written);
}

pub(super) async fn flush<V: Vfs>(filesystem: &V, call: Call, handle: u64, lock_owner: u64) {
    let result = filesystem.flush(&call.caller(0), inode(&call), handle, lock_owner).await;
    answer_done(call, result);
}

pub(super) async fn release<V: Vfs>(
    filesystem: &V,
    call: Call,
    handle: u64,
    lock_owner: Option<u64>,
    flock: bool,
) {
    let result = filesystem.release(&call.caller(0), inode(&call), handle, lock_owner, flock).await;
    answer_done(call, result);
}

pub(super) async fn fsync<V: Vfs>(filesystem: &V, call: Call, handle: u64, data_only: bool) {
    let result = filesystem.fsync(&call.caller(0), inode(&call), handle, data_only).await;
    answer_done(call, result);
}

pub(super) async fn fallocate<V: Vfs>(
    filesystem: &V,
    call: Call,
    handle: u64,
    offset: u64,
    length: u64,
    mode: u32,
) {
    let result = filesystem.fallocate(&call.caller(0), inode(&call), handle, offset, length, mode).await;
    answer_done(call, result);
}

pub(super) async fn lseek<V: Vfs>(filesystem: &V, call: Call, handle: u64, offset: u64, whence: u32) {
    let kind = match whence as i32 {
        libc::SEEK_DATA => SeekKind::Data,
        libc::SEEK_HOLE => SeekKind::Hole,
        _ => return call.error(Errno(libc::EINVAL)),
    };
    let result = filesystem.lseek(&call.caller(0), inode(&call), handle, offset, kind).await;
    answer(call, result, Call::offset);
}

pub(super) async fn copy_file_range<V: Vfs>(
    filesystem: &V,
    call: Call,
    (handle, offset): (u64, u64),
    to: (InodeId, u64, u64),
    length: u64,
    flags: u64,
    wide: bool,
) {
    if flags != 0 {
        return call.error(Errno(libc::EINVAL));
    }
    let length = if wide { length } else { length.min(NARROW_COPY_BYTES_MAX) };
    let from = (inode(&call), handle, offset);
    let result = filesystem.copy_file_range(&call.caller(0), from, to, length).await;
    answer(call, result, |call, copied| match wide {
        true => call.copied(copied),
        false => call.written(copied as u32),
    });
}
