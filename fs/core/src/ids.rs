//! Identifiers, as types that can't be mistaken for one another.
//!
//! Numbers that a human reads (servers, members, sessions) print in hexadecimal; numbers that programs
//! see as plain integers (inodes) print in decimal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $fmt:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $fmt, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $fmt, ")"), self.0)
            }
        }
    };
}

id!(
    /// A file, directory or other inode of the volume; also FUSE's node id. The root is 1.
    InodeId, u64, "{}"
);
id!(
    /// An append-only replicated container of file data. Never used twice within a cluster.
    ChunkId, u64, "{:016x}"
);
id!(
    /// A storage server: random, written to its disk when it joins.
    ServerId, u64, "{:016x}"
);
id!(
    /// A metadata server: random, written to its disk when it joins.
    MemberId, u64, "{:016x}"
);
id!(
    /// One mounted client, as the metadata service knows it. Given out in order, never used twice.
    SessionId, u64, "{:x}"
);
id!(
    /// Counts the changes of a chunk's replica set. An extent commit names the generation that it wrote to.
    Generation, u32, "{}"
);
id!(
    /// A segment of a file: `offset / SEGMENT_BYTES`.
    SegmentIndex, u64, "{}"
);
id!(
    /// Names one operation slot of a session. Slot 0 is the journal.
    SlotId, u32, "{}"
);
id!(
    /// The cluster (one volume): random, made once at bootstrap.
    ClusterId, u128, "{:032x}"
);

/// The root directory.
pub const ROOT: InodeId = InodeId(1);

impl FromStr for ClusterId {
    type Err = std::num::ParseIntError;

    /// Reads the 32 hexadecimal digits that `Display` writes; dashes (as in a UUID) are allowed.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        u128::from_str_radix(&digits, 16).map(ClusterId)
    }
}

impl FromStr for ServerId {
    type Err = std::num::ParseIntError;

    /// Reads the hexadecimal digits that `Display` writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(ServerId)
    }
}

impl FromStr for MemberId {
    type Err = std::num::ParseIntError;

    /// Reads the hexadecimal digits that `Display` writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(MemberId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_survives_printing() {
        let id = ClusterId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(id.to_string().parse::<ClusterId>(), Ok(id));
        assert_eq!("01234567-89ab-cdef-0011-223344556677".parse::<ClusterId>(), Ok(id));
        assert!("not an id".parse::<ClusterId>().is_err());
    }
}
