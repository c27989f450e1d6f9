//! Every limit of the filesystem, with its unit.

/// Bytes in one block: the unit of checksums, of placement in a chunk and of quota.
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes of a file that one segment record maps.
pub const SEGMENT_BYTES: u64 = 1 << 20;
/// Data bytes a chunk holds at most.
pub const CHUNK_BYTES: u64 = 64 << 20;
/// A file up to this size lives in the metadata service (bytes).
pub const INLINE_FILE_BYTES_MAX: u64 = 16 << 10;
/// A synchronous overwrite up to this size travels inside its commit (bytes).
pub const INLINE_WRITE_BYTES_MAX: u64 = 16 << 10;
/// Bytes in a name (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes in a symbolic link's target (`PATH_MAX` less the terminating NUL).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Hard links to one inode, and subdirectories are not counted against it.
pub const LINKS_MAX: u32 = 65_000;
/// Bytes in an extended attribute's name (`XATTR_NAME_MAX`).
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Bytes in an extended attribute's value (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Bytes of all attribute names of an inode together (`XATTR_LIST_MAX`).
pub const XATTR_LIST_BYTES_MAX: usize = 64 << 10;
/// The largest offset a file can have (`off_t` is signed).
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Pieces in one segment above which it is rewritten in the background.
pub const SEGMENT_PIECES_SOFT_MAX: usize = 64;
/// Segments that one command frees itself; what is beyond is freed by the background purge.
pub const SEGMENTS_FREED_PER_COMMAND: usize = 64;
/// Truncations of one inode that may wait for the background purge at the same time.
pub const PENDING_TRUNCATIONS_MAX: usize = 8;
/// Bytes of data in one commit (inline data of all its pieces).
pub const COMMIT_INLINE_BYTES_MAX: u64 = 1 << 20;
/// Pieces in one commit of extents.
pub const COMMIT_PIECES_MAX: usize = 1024;
/// Segments that one `fallocate` command touches; more need several.
pub const ALLOCATE_SEGMENTS_MAX: u64 = 1024;
/// Bytes that one command copies within the map; more need several.
pub const COPY_BYTES_MAX: u64 = 256 << 20;
/// Pieces that one command copies within the map.
pub const COPY_PIECES_MAX: usize = 16 << 10;
/// Ranges that one process or open file may have locked of one inode.
pub const LOCKS_PER_OWNER_MAX: usize = 16 << 10;
/// Processes and open files that may have locks of one class on one inode.
pub const LOCK_OWNERS_PER_INODE_MAX: usize = 16 << 10;
/// Locked ranges of one session; they are in the leader's memory.
pub const LOCKS_PER_SESSION_MAX: usize = 256 << 10;
/// Inodes whose access times one command sets.
pub const TOUCHED_INODES_MAX: usize = 1024;
/// Operation slots of one session, slot 0 (the journal) included.
pub const SESSION_SLOTS_MAX: u32 = 256;
/// Sessions of one cluster, the dead ones that wait for their successor included.
pub const SESSIONS_MAX: usize = 10_000;
/// Replicas of a chunk.
pub const COPIES_MAX: u8 = 5;

/// The highest feature level that this build knows: what a volume may make use of once all its servers and mounts know it.
/// A build with the feature `next-release` stands for the release after this one, so that an upgrade can be tried.
pub const FEATURE_LEVEL: u32 = if cfg!(feature = "next-release") { 2 } else { 1 };
/// The feature level that every volume begins with, whatever made it: applying an entry depends on no build.
pub const FEATURE_LEVEL_FIRST: u32 = 1;
