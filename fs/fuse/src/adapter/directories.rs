//! Open directories.

use atoll_client::vfs::Vfs;

use super::nodes::Nodes;
use super::{answer, answer_done, inode};
use crate::session::Call;

pub(super) async fn opendir<V: Vfs>(filesystem: &V, call: Call, flags: u32) {
    let result = filesystem.opendir(&call.caller(0), inode(&call), flags).await;
    answer(call, result, |call, opened| call.opened(&opened));
}

/// Entries for which the reply has no room were looked up for nothing: these lookups are taken back.
pub(super) async fn readdir<V: Vfs>(
    filesystem: &V,
    nodes: &Nodes,
    call: Call,
    handle: u64,
    cookie: u64,
    size: u32,
    plus: bool,
) {
    let result = filesystem.readdir(&call.caller(0), inode(&call), handle, cookie, size, plus).await;
    answer(call, result, |call, entries| {
        let fit = call.directory(&entries, size, plus, |parent, name, entry| {
            nodes.found(parent, name, &entry.attributes)
        });
        for entry in entries[fit..].iter().filter_map(|unsent| unsent.entry.as_ref()) {
            filesystem.forget(entry.attributes.ino, 1);
        }
    });
}

pub(super) async fn releasedir<V: Vfs>(filesystem: &V, call: Call, handle: u64) {
    let result = filesystem.releasedir(&call.caller(0), inode(&call), handle).await;
    answer_done(call, result);
}

pub(super) async fn fsyncdir<V: Vfs>(filesystem: &V, call: Call, handle: u64, data_only: bool) {
    let result = filesystem.fsyncdir(&call.caller(0), inode(&call), handle, data_only).await;
    answer_done(call, result);
}
