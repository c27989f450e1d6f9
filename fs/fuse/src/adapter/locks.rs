//! Locks.

use atoll_client::vfs::Vfs;

use super::{answer, answer_done, inode};
use crate::request::LockRequest;
use crate::session::Call;

pub(super) async fn getlk<V: Vfs>(filesystem: &V, call: Call, request: LockRequest) {
    let LockRequest { handle, owner, lock, .. } = request;
    let result = filesystem.getlk(&call.caller(0), inode(&call), handle, owner, lock).await;
    answer(call, result, |call, lock| call.lock(&lock));
}

pub(super) async fn setlk<V: Vfs>(filesystem: &V, call: Call, request: LockRequest, wait: bool) {
    let LockRequest { handle, owner, lock, flock } = request;
    let inode = inode(&call);
    let result = filesystem.setlk(&call.caller(0), inode, handle, owner, lock, flock, wait).await;
    answer_done(call, result);
}
