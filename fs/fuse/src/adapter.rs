//! Request -> filesystem -> reply or errno, and nothing else: no decision about files is made here, only about which of
//! the kernel's inodes they are.

mod directories;
mod files;
mod inodes;
mod locks;
mod nodes;

use std::sync::Arc;

use atoll_client::vfs::{self, Errno, Vfs};
use atoll_core::ids::InodeId;

use nodes::Nodes;
use tracing::{Instrument, Span};

use crate::abi::opcode;
use crate::request::Operation;
use crate::session::{Call, Handler};

/// What one COPY_FILE_RANGE copies at most where its reply's count has 32 bits (1 GiB); the caller asks again.
pub(crate) const NARROW_COPY_BYTES_MAX: u64 = 1 << 30;

/// Serves a filesystem over our own session.
pub struct Adapter<V> {
    filesystem: Arc<V>,
    nodes: Nodes,
}

impl<V: Vfs> Adapter<V> {
    /// An adapter for a filesystem.
    pub fn new(filesystem: Arc<V>) -> Arc<Adapter<V>> {
        Arc::new(Adapter { filesystem, nodes: Nodes::default() })
    }
}

impl<V: Vfs> Handler for Adapter<V> {
    async fn handle(self: Arc<Self>, call: Call) {
        let span = span(&call);
        serve(&*self.filesystem, &self.nodes, call).instrument(span).await;
    }

    fn answered(&self, unique: u64) {
        self.filesystem.answered(unique);
    }

    fn forget(&self, nodeid: u64, lookups: u64) {
        self.nodes.forget(nodeid, lookups);
        self.filesystem.forget(nodes::inode(nodeid), lookups);
    }
}

/// See docs/tracing.md.
fn span(call: &Call) -> Span {
    let header = call.header();
    tracing::debug_span!(
        target: "atoll::trace",
        "fuse",
        op = opcode::name(header.opcode),
        unique = header.unique,
        ino = header.nodeid
    )
}

/// One arm for each request. Futures of the requests that are neither frequent nor quick are boxed: all arms share one
/// place in memory, which is written anew for every request.
async fn serve<V: Vfs>(filesystem: &V, nodes: &Nodes, call: Call) {
    let operation = match call.operation() {
        Ok(operation) => operation,
        Err(problem) => return call.error(Errno(problem.errno())),
    };
    match operation {
        Operation::Lookup { name } => {
            let name = bytes::Bytes::copy_from_slice(name);
            inodes::lookup(filesystem, nodes, call, name).await;
        }
        Operation::Getattr { handle } => {
            inodes::getattr(filesystem, call, handle, Call::attributes_owned).await
        }
        Operation::Statx { handle, .. } => inodes::getattr(filesystem, call, handle, Call::statx_owned).await,
        Operation::Read { handle, offset, size, lock_owner, .. } => {
            // Only direct reads say whose locks count.
            files::read(filesystem, call, handle, offset, size, lock_owner.is_none()).await;
        }
        Operation::Write { handle, offset, data, flags, kill_suid_sgid, from_cache, lock_owner } => {
            let data = call.lend(data);
            let flags = vfs::WriteFlags::new(flags, kill_suid_sgid, from_cache, lock_owner.is_some());
            files::write(filesystem, call, handle, offset, data, flags).await;
        }
        Operation::Statfs => inodes::statfs(filesystem, call).await,
        Operation::Flush { handle, lock_owner } => files::flush(filesystem, call, handle, lock_owner).await,
        Operation::Open { flags, kill_suid_sgid } => {
            files::open(filesystem, call, flags, kill_suid_sgid).await;
        }
        Operation::Release { handle, flush, flock_unlock, lock_owner, .. } => {
            let owner = (flush || flock_unlock).then_some(lock_owner);
            files::release(filesystem, call, handle, owner, flock_unlock).await;
        }
        _ => Box::pin(serve_rare(filesystem, nodes, call)).await,
    }
}

async fn serve_rare<V: Vfs>(filesystem: &V, nodes: &Nodes, call: Call) {
    let operation = match call.operation() {
        Ok(operation) => operation,
        Err(problem) => return call.error(Errno(problem.errno())),
    };
    let own = bytes::Bytes::copy_from_slice;
    match operation {
        Operation::Setattr(change) => inodes::setattr(filesystem, call, change).await,
        Operation::Readlink => inodes::readlink(filesystem, call).await,
        Operation::Symlink { name, target, .. } => {
            let (name, target) = (own(name), own(target));
            inodes::symlink(filesystem, call, name, target).await;
        }
        Operation::Mknod { name, mode, rdev, umask, .. } => {
            let name = own(name);
            inodes::mknod(filesystem, call, name, mode, rdev, umask).await;
        }
        Operation::Mkdir { name, mode, umask, .. } => {
            let name = own(name);
            inodes::mkdir(filesystem, nodes, call, name, mode, umask).await;
        }
        Operation::Unlink { name } => {
            let name = own(name);
            inodes::unlink(filesystem, call, name).await;
        }
        Operation::Rmdir { name } => {
            let name = own(name);
            inodes::rmdir(filesystem, call, name).await;
        }
        Operation::Rename { name, new_parent, new_name, flags } => {
            let (name, new_name) = (own(name), own(new_name));
            inodes::rename(filesystem, nodes, call, name, (new_parent, new_name), flags).await;
        }
        Operation::Link { target, new_name } => {
            let new_name = own(new_name);
            inodes::link(filesystem, call, nodes::inode(target), new_name).await;
        }
        Operation::Fsync { handle, datasync } => files::fsync(filesystem, call, handle, datasync).await,
        Operation::Create { name, flags, mode, umask, .. } => {
            let name = own(name);
            files::create(filesystem, call, name, mode, flags, umask).await;
        }
        Operation::Tmpfile { flags, mode, umask, .. } => {
            files::tmpfile(filesystem, call, mode, flags, umask).await;
        }
        Operation::Fallocate { handle, offset, length, mode } => {
            files::fallocate(filesystem, call, handle, offset, length, mode).await;
        }
        Operation::Lseek { handle, offset, whence } => {
            files::lseek(filesystem, call, handle, offset, whence).await;
        }
        Operation::CopyFileRange { handle, offset, to_inode, to_handle, to_offset, length, flags, wide } => {
            let to = (nodes::inode(to_inode), to_handle, to_offset);
            files::copy_file_range(filesystem, call, (handle, offset), to, length, flags, wide).await;
        }
        Operation::Opendir { flags } => directories::opendir(filesystem, call, flags).await,
        Operation::Readdir { handle, offset, size } => {
            directories::readdir(filesystem, nodes, call, handle, offset, size, false).await;
        }
        Operation::Readdirplus { handle, offset, size } => {
            directories::readdir(filesystem, nodes, call, handle, offset, size, true).await;
        }
        Operation::Releasedir { handle, .. } => directories::releasedir(filesystem, call, handle).await,
        Operation::Fsyncdir { handle, datasync } => {
            directories::fsyncdir(filesystem, call, handle, datasync).await;
        }
        Operation::Setxattr { name, value, flags, acl_kill_sgid } => {
            let (name, value) = (own(name), own(value));
            inodes::setxattr(filesystem, call, name, value, flags, acl_kill_sgid).await;
        }
        Operation::Getxattr { name, size } => {
            let name = own(name);
            inodes::getxattr(filesystem, call, name, size).await;
        }
        Operation::Listxattr { size } => inodes::listxattr(filesystem, call, size).await,
        Operation::Removexattr { name } => {
            let name = own(name);
            inodes::removexattr(filesystem, call, name).await;
        }
        Operation::Getlk(request) => locks::getlk(filesystem, call, request).await,
        Operation::Setlk { request, wait } => locks::setlk(filesystem, call, request, wait).await,
        // Not sent for a mount like ours; should it come, what is promised of sync(2) holds: the age bound.
        Operation::Syncfs => call.done(),
        Operation::Ioctl { .. } => call.error(Errno(libc::ENOTTY)),
        // ENOSYS tells the kernel never to ask again and to do without.
        Operation::Access { .. } | Operation::Bmap { .. } | Operation::Poll { .. } | Operation::Unknown => {
            call.error(Errno(libc::ENOSYS));
        }
        // `serve` has those that are frequent, the session those that begin and end it or have no reply.
        Operation::Lookup { .. }
        | Operation::Getattr { .. }
        | Operation::Statx { .. }
        | Operation::Read { .. }
        | Operation::Write { .. }
        | Operation::Statfs
        | Operation::Flush { .. }
        | Operation::Open { .. }
        | Operation::Release { .. }
        | Operation::Forget { .. }
        | Operation::BatchForget(_)
        | Operation::Init(_)
        | Operation::Interrupt { .. }
        | Operation::Destroy => call.error(Errno(libc::EIO)),
    }
}

/// Answers with the result's value or its errno.
fn answer<T>(call: Call, result: vfs::Result<T>, reply: impl FnOnce(Call, T)) {
    match result {
        Ok(value) => reply(call, value),
        Err(errno) => call.error(errno),
    }
}

fn answer_done(call: Call, result: vfs::Result<()>) {
    answer(call, result, |call, ()| call.done());
}

/// The inode that a request is about.
fn inode(call: &Call) -> InodeId {
    nodes::inode(call.header().nodeid)
}
