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

/// Set in the numbers of inodes that were made by entries of a journal; the service's own counter never comes so far.
const JOURNALED: u64 = 1 << 60;
/// Bits of the journal's sequence number in them.
const SEQUENCE_BITS: u32 = 32;
/// Sessions below this have inode numbers for their journals.
const JOURNALING_SESSIONS: u64 = 1 << (60 - SEQUENCE_BITS);

/// The number of the inode that this entry of the session's journal makes, if it makes one. Sessions are numbered once, and so
/// are a journal's entries: no two inodes ever have the same number, and nobody has to hand it out. `None`: the session, or
/// its journal, has come too far to have numbers of its own.
#[must_use]
pub fn journaled_inode(session: SessionId, sequence: u64) -> Option<InodeId> {
    let fits = session.0 < JOURNALING_SESSIONS && sequence < 1 << SEQUENCE_BITS;
    fits.then_some(InodeId(JOURNALED | session.0 << SEQUENCE_BITS | sequence))
}

/// Whether the inode was made by an entry of a journal.
#[must_use]
pub fn is_journaled(ino: InodeId) -> bool {
    ino.0 & JOURNALED != 0
}

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
    fn entries_of_journals_have_inode_numbers_of_their_own() {
        let number = |session, sequence| journaled_inode(SessionId(session), sequence).map(|ino| ino.0);
        assert_eq!(number(1, 1), Some(0x1000_0001_0000_0001));
        let last = number(JOURNALING_SESSIONS - 1, u64::from(u32::MAX)).unwrap();
        // What stacks filesystems uses the highest bits for its own ends.
        assert_eq!(last.leading_zeros(), 3);
        assert!(number(1, u64::from(u32::MAX)) < number(2, 0));
        assert_eq!((number(JOURNALING_SESSIONS, 1), number(1, 1 << 32)), (None, None));
    }

    #[test]
    fn a_cluster_id_survives_printing() {
        let id = ClusterId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(id.to_string().parse::<ClusterId>(), Ok(id));
        assert_eq!("01234567-89ab-cdef-0011-223344556677".parse::<ClusterId>(), Ok(id));
        assert!("not an id".parse::<ClusterId>().is_err());
    }
}
