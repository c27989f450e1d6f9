//! What `stat` shows, and how it may be changed.

use serde::{Deserialize, Serialize};

use crate::ids::InodeId;

/// Mask of the file type bits in `mode` (`S_IFMT`).
pub const S_IFMT: u32 = 0o170_000;
/// Set-user-id bit.
pub const S_ISUID: u32 = 0o4000;
/// Set-group-id bit.
pub const S_ISGID: u32 = 0o2000;
/// Execute permission of the group.
pub const S_IXGRP: u32 = 0o010;

/// The extended attribute that holds a program's capabilities.
pub const CAPABILITY_NAME: &[u8] = b"security.capability";

/// A point in time: seconds since 1970 (negative before) and nanoseconds, as `struct timespec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds within the second, 0 to 999,999,999.
    pub nanos: u32,
}

impl Timestamp {
    /// The instant one nanosecond later.
    #[must_use]
    pub fn next(self) -> Self {
        if self.nanos >= 999_999_999 {
            Timestamp { seconds: self.seconds.saturating_add(1), nanos: 0 }
        } else {
            Timestamp { seconds: self.seconds, nanos: self.nanos + 1 }
        }
    }

    /// Milliseconds since the epoch, for displays.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.seconds.saturating_mul(1000).saturating_add(i64::from(self.nanos / 1_000_000))
    }
}

/// The type of an inode; the numbers are those of `d_type` and of `mode >> 12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A socket.
    Socket,
}

impl FileKind {
    /// The kind that the type bits of `mode` name, if they name one.
    #[must_use]
    pub fn of_mode(mode: u32) -> Option<Self> {
        match (mode & S_IFMT) >> 12 {
            1 => Some(Self::Fifo),
            2 => Some(Self::CharDevice),
            4 => Some(Self::Directory),
            6 => Some(Self::BlockDevice),
            8 => Some(Self::File),
            10 => Some(Self::Symlink),
            12 => Some(Self::Socket),
            _ => None,
        }
    }

    /// The value of `d_type` in a directory entry.
    #[must_use]
    pub fn d_type(self) -> u32 {
        match self {
            Self::Fifo => 1,
            Self::CharDevice => 2,
            Self::Directory => 4,
            Self::BlockDevice => 6,
            Self::File => 8,
            Self::Symlink => 10,
            Self::Socket => 12,
        }
    }

    /// The type bits of `mode`.
    #[must_use]
    pub fn mode_bits(self) -> u32 {
        self.d_type() << 12
    }
}

/// The attributes of an inode (`struct statx`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// The inode's number.
    pub ino: InodeId,
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links; of a directory: 2 and one for each subdirectory.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as the kernel's `new_encode_dev` has it.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Mapped bytes (data and preallocated ranges), rounded up to blocks; `st_blocks` is this / 512.
    pub allocated: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// Grows with every change of content or attributes.
    pub change: u64,
    /// Its access control list says more than `mode`.
    pub acl: bool,
}

impl Attributes {
    /// The inode's type. Records hold only modes that name one.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        FileKind::of_mode(self.mode).unwrap_or(FileKind::File)
    }
}

/// How one time changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeChange {
    /// The time of the command (`UTIME_NOW`).
    Now,
    /// This time.
    To(Timestamp),
}

/// A change of attributes (`chmod`, `chown`, `truncate`, `utimensat`); what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeChanges {
    /// New permission bits (type bits are ignored).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size in bytes.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<TimeChange>,
    /// New modification time.
    pub mtime: Option<TimeChange>,
    /// What goes because of who changes what.
    pub kill_priv: KillPriv,
}

impl AttributeChanges {
    /// True if nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a file loses when its content or its owner changes, because it lent somebody's power to whoever ran it. Which of
/// these go is decided where the caller is known; a set of them is one byte in the log, where 1 has always been
/// [`SETID`](Self::SETID).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KillPriv(u8);

impl KillPriv {
    /// Nothing.
    pub const NONE: KillPriv = KillPriv(0);
    /// Set-user-id, and set-group-id where the group may execute.
    pub const SETID: KillPriv = KillPriv(1);
    /// Set-group-id, whether the group may execute or not: the caller isn't in the group.
    pub const SGID: KillPriv = KillPriv(2);
    /// `security.capability`.
    pub const CAPABILITY: KillPriv = KillPriv(4);

    /// Everything.
    pub const ALL: KillPriv = KillPriv(7);

    /// The set as a number; see [`from_bits`](Self::from_bits).
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The set of a number.
    #[must_use]
    pub fn from_bits(bits: u8) -> KillPriv {
        KillPriv(bits & Self::ALL.0)
    }

    /// Whether all of `other` go.
    #[must_use]
    pub fn contains(self, other: KillPriv) -> bool {
        self.0 & other.0 == other.0
    }

    /// `mode` without the bits that go.
    #[must_use]
    pub fn applied_to(self, mode: u32) -> u32 {
        let mode = if self.contains(Self::SETID) { without_setid(mode) } else { mode };
        if self.contains(Self::SGID) { mode & !S_ISGID } else { mode }
    }
}

impl std::ops::BitOr for KillPriv {
    type Output = KillPriv;

    fn bitor(self, other: KillPriv) -> KillPriv {
        KillPriv(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for KillPriv {
    fn bitor_assign(&mut self, other: KillPriv) {
        *self = *self | other;
    }
}

/// `mode` without the set-id bits that a write by an unprivileged user clears.
#[must_use]
pub fn without_setid(mode: u32) -> u32 {
    let mut mode = mode & !S_ISUID;
    if mode & S_IXGRP != 0 {
        mode &= !S_ISGID;
    }
    mode
}

/// The ctime of a file with these times whose content was written at `written`: what a client shows while it buffers
/// the write, and what the commit sets, so that a time which was shown stays. It moves on past a change that came in
/// between (of an attribute, of another name), but for further commits of the same write.
#[must_use]
pub fn ctime_of_write(mtime: Timestamp, ctime: Timestamp, written: Timestamp) -> Timestamp {
    match mtime == written {
        true => ctime.max(written),
        false => written.max(ctime.next()),
    }
}

/// What `statvfs` shows: the volume's own size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// Capacity in bytes.
    pub bytes_total: u64,
    /// Bytes charged to the live tree.
    pub bytes_used: u64,
    /// Bytes promised to sessions for data that they buffer.
    pub bytes_reserved: u64,
    /// Inodes that may exist.
    pub inodes_total: u64,
    /// Inodes that exist.
    pub inodes_used: u64,
}

impl VolumeUse {
    /// Bytes neither used nor promised.
    #[must_use]
    pub fn bytes_free(&self) -> u64 {
        self.bytes_total.saturating_sub(self.bytes_used).saturating_sub(self.bytes_reserved)
    }

    /// Bytes that are not used, whether they are promised or not.
    #[must_use]
    pub fn bytes_unused(&self) -> u64 {
        self.bytes_total.saturating_sub(self.bytes_used)
    }

    /// Inodes that may still be made.
    #[must_use]
    pub fn inodes_free(&self) -> u64 {
        self.inodes_total.saturating_sub(self.inodes_used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_killed_is_one_byte_in_the_log_where_a_bool_was() {
        for (was, is) in [(false, KillPriv::NONE), (true, KillPriv::SETID)] {
            assert_eq!(postcard::to_stdvec(&was), postcard::to_stdvec(&is));
        }
        let all = KillPriv::SETID | KillPriv::SGID | KillPriv::CAPABILITY;
        assert_eq!(postcard::from_bytes::<KillPriv>(&postcard::to_stdvec(&all).unwrap()), Ok(all));
    }

    #[test]
    fn set_gid_goes_without_group_execution_only_for_who_is_not_in_the_group() {
        let of = |kill: KillPriv| [0o6777, 0o6767, 0o2777, 0o2767, 0o1777].map(|mode| kill.applied_to(mode));
        assert_eq!(of(KillPriv::NONE | KillPriv::CAPABILITY), [0o6777, 0o6767, 0o2777, 0o2767, 0o1777]);
        assert_eq!(of(KillPriv::SETID), [0o777, 0o2767, 0o777, 0o2767, 0o1777]);
        assert_eq!(of(KillPriv::SETID | KillPriv::SGID), [0o777, 0o767, 0o777, 0o767, 0o1777]);
    }
}
