//! What the kernel sends. Field for field `linux/fuse.h`, whose comments are the reference.

#![allow(missing_docs)]

use super::abi;

abi! {
    /// Begins every request. `total_extlen` counts extensions at the request's end in units of 8 bytes.
    struct InHeader { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16, }
    struct InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11], }
    /// INIT of kernels before 5.17, which have no `flags2`.
    struct InitInShort { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    struct ForgetIn { nlookup: u64, }
    struct ForgetOne { nodeid: u64, nlookup: u64, }
    struct BatchForgetIn { count: u32, dummy: u32, }
    struct GetattrIn { getattr_flags: u32, dummy: u32, fh: u64, }
    struct StatxIn { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
    struct SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: i64, mtime: i64, ctime: i64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    struct MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32, }
    struct MkdirIn { mode: u32, umask: u32, }
    struct RenameIn { newdir: u64, }
    struct Rename2In { newdir: u64, flags: u32, padding: u32, }
    struct LinkIn { oldnodeid: u64, }
    struct OpenIn { flags: u32, open_flags: u32, }
    struct CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    struct ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    struct FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    struct ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    struct WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    struct FsyncIn { fh: u64, fsync_flags: u32, padding: u32, }
    struct SetxattrIn { size: u32, flags: u32, setxattr_flags: u32, padding: u32, }
    /// SETXATTR without `SETXATTR_EXT`.
    struct SetxattrInShort { size: u32, flags: u32, }
    struct GetxattrIn { size: u32, padding: u32, }
    struct FileLock { start: u64, end: u64, kind: u32, pid: u32, }
    struct LkIn { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32, }
    struct AccessIn { mask: u32, padding: u32, }
    struct InterruptIn { unique: u64, }
    struct BmapIn { block: u64, blocksize: u32, padding: u32, }
    struct IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
    struct PollIn { fh: u64, kh: u64, flags: u32, events: u32, }
    struct FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    struct LseekIn { fh: u64, offset: u64, whence: u32, padding: u32, }
    struct CopyFileRangeIn { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64, }
    struct SyncfsIn { padding: u64, }
    /// Begins each extension. `kind` up to 31 is a count of security labels (`fuse_secctx_header`).
    struct ExtHeader { size: u32, kind: u32, }
    struct SecctxIn { size: u32, padding: u32, }
}
