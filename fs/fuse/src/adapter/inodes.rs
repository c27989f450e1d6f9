//! Names, attributes and extended attributes.

use atoll_client::vfs::{AttributeReply, Vfs};
use atoll_core::ids::InodeId;
use bytes::Bytes;

use super::nodes::{self, Nodes};
use super::{answer, answer_done, inode};
use crate::request::SetAttributes;
use crate::session::Call;

pub(super) async fn lookup<V: Vfs>(filesystem: &V, nodes: &Nodes, call: Call, name: Bytes) {
    let result = filesystem.lookup(&call.caller(0), inode(&call), name.clone()).await;
    answer(call, result, |call, entry| {
        let node = nodes.found(call.header().nodeid, &name, &entry.attributes);
        call.entry(&entry, node);
    });
}

pub(super) async fn getattr<V: Vfs>(
    filesystem: &V,
    call: Call,
    handle: Option<u64>,
    reply: fn(Call, AttributeReply),
) {
    let result = filesystem.getattr(&call.caller(0), inode(&call), handle).await;
    answer(call, result, reply);
}

pub(super) async fn setattr<V: Vfs>(filesystem: &V, call: Call, change: SetAttributes) {
    let SetAttributes { changes, handle, .. } = change;
    let result = filesystem.setattr(&call.caller(0), inode(&call), handle, changes).await;
    answer(call, result, |call, attributes| call.attributes(&attributes));
}

pub(super) async fn statfs<V: Vfs>(filesystem: &V, call: Call) {
    let result = filesystem.statfs(&call.caller(0), inode(&call)).await;
    answer(call, result, |call, statfs| call.statfs(&statfs));
}

pub(super) async fn readlink<V: Vfs>(filesystem: &V, call: Call) {
    let result = filesystem.readlink(&call.caller(0), inode(&call)).await;
    answer(call, result, |call, target| call.bytes(&target));
}

pub(super) async fn symlink<V: Vfs>(filesystem: &V, call: Call, name: Bytes, target: Bytes) {
    let result = filesystem.symlink(&call.caller(0), inode(&call), name, target).await;
    answer(call, result, |call, entry| call.entry(&entry, entry.attributes.ino.0));
}

pub(super) async fn mknod<V: Vfs>(filesystem: &V, call: Call, name: Bytes, mode: u32, rdev: u32, umask: u32) {
    let result = filesystem.mknod(&call.caller(umask), inode(&call), name, mode, rdev).await;
    answer(call, result, |call, entry| call.entry(&entry, entry.attributes.ino.0));
}

pub(super) async fn mkdir<V: Vfs>(
    filesystem: &V,
    nodes: &Nodes,
    call: Call,
    name: Bytes,
    mode: u32,
    umask: u32,
) {
    let result = filesystem.mkdir(&call.caller(umask), inode(&call), name.clone(), mode).await;
    answer(call, result, |call, entry| {
        let node = nodes.found(call.header().nodeid, &name, &entry.attributes);
        call.entry(&entry, node);
    });
}

pub(super) async fn unlink<V: Vfs>(filesystem: &V, call: Call, name: Bytes) {
    let result = filesystem.unlink(&call.caller(0), inode(&call), name).await;
    answer_done(call, result);
}

pub(super) async fn rmdir<V: Vfs>(filesystem: &V, call: Call, name: Bytes) {
    let result = filesystem.rmdir(&call.caller(0), inode(&call), name).await;
    answer_done(call, result);
}

pub(super) async fn rename<V: Vfs>(
    filesystem: &V,
    nodes: &Nodes,
    call: Call,
    name: Bytes,
    (new_parent, new_name): (u64, Bytes),
    flags: u32,
) {
    let parent = call.header().nodeid;
    let renaming = nodes.renaming(parent, &name, new_parent, &new_name);
    let (old, new) = ((nodes::inode(parent), name.clone()), (nodes::inode(new_parent), new_name.clone()));
    let result = filesystem.rename(&call.caller(0), old.0, old.1, new.0, new.1, flags).await;
    if result.is_ok() {
        renaming.done((parent, &name), (new_parent, &new_name), flags & libc::RENAME_EXCHANGE != 0);
    }
    answer_done(call, result);
}

pub(super) async fn link<V: Vfs>(filesystem: &V, call: Call, target: InodeId, new_name: Bytes) {
    let result = filesystem.link(&call.caller(0), target, inode(&call), new_name).await;
    answer(call, result, |call, entry| call.entry(&entry, entry.attributes.ino.0));
}

pub(super) async fn setxattr<V: Vfs>(
    filesystem: &V,
    call: Call,
    name: Bytes,
    value: Bytes,
    flags: u32,
    kill_sgid: bool,
) {
    let inode = inode(&call);
    let result = filesystem.setxattr(&call.caller(0), inode, name, value, flags, kill_sgid).await;
    answer_done(call, result);
}

pub(super) async fn getxattr<V: Vfs>(filesystem: &V, call: Call, name: Bytes, size: u32) {
    let result = filesystem.getxattr(&call.caller(0), inode(&call), name).await;
    answer(call, result, |call, value| call.xattr(&value, size));
}

pub(super) async fn listxattr<V: Vfs>(filesystem: &V, call: Call, size: u32) {
    let result = filesystem.listxattr(&call.caller(0), inode(&call)).await;
    answer(call, result, |call, names| call.xattr(&names, size));
}

pub(super) async fn removexattr<V: Vfs>(filesystem: &V, call: Call, name: Bytes) {
    let result = filesystem.removexattr(&call.caller(0), inode(&call), name).await;
    answer_done(call, result);
}
