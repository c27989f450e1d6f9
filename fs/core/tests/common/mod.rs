//! What several test programs send.

use atoll_core::commands::{Op, ops};
use atoll_core::ids::InodeId;
use bytes::Bytes;

/// Makes a file or a folder of user 1000 and group 100; `mode` has its type.
pub fn create(parent: InodeId, name: &str, mode: u32, umask: u32) -> Op {
    Op::from(ops::Create {
        parent,
        name: Bytes::copy_from_slice(name.as_bytes()),
        ino: None,
        mode,
        uid: 1000,
        gid: 100,
        rdev: 0,
        target: Bytes::new(),
        umask,
    })
}
