//! What can be wrong with an operation on a replica.

use std::io;

use atoll_core::ids::{Generation, SessionId};

use super::header::{BLOCK, CAPACITY_BYTES_MAX};
use crate::disk::is_no_space;

/// Why a replica refused, or failed at, an operation.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// There is no such replica here.
    #[error("this server has no replica of the chunk")]
    NotFound,
    /// The range is misaligned, empty or past the chunk's capacity.
    #[error("offset {offset} and length {length} are not a range of whole blocks within {capacity} bytes")]
    BadRange {
        /// Offset in the chunk, bytes.
        offset: u64,
        /// Length, bytes.
        length: u64,
        /// The chunk's capacity, bytes.
        capacity: u64,
    },
    /// A chunk can't have this capacity.
    #[error("a chunk's capacity is a multiple of {BLOCK} up to {CAPACITY_BYTES_MAX} bytes, not {0}")]
    BadCapacity(u64),
    /// What arrived isn't what the sender summed up.
    #[error("the checksums of blocks {0:?} don't match the received bytes")]
    BadChecksums(Vec<u64>),
    /// The request was made for an older set of replicas.
    #[error("the chunk is at generation {current}")]
    StaleGeneration {
        /// The generation that the replica knows.
        current: Generation,
    },
    /// The chunk has another writer.
    #[error("the chunk's writer is session {session}, incarnation {incarnation}")]
    OtherWriter {
        /// The session it belongs to.
        session: SessionId,
        /// The newest process of that session that wrote to it.
        incarnation: u64,
    },
    /// The chunk is sealed, and this isn't a repetition of what it holds.
    #[error("the chunk is sealed at {length} bytes")]
    Sealed {
        /// Its length, bytes.
        length: u64,
    },
    /// A block that was written would change.
    #[error("block {block} is written already, with other bytes")]
    Overwrite {
        /// The first such block.
        block: u64,
    },
    /// The replica doesn't have all that the writer takes for written; it was lost with a restart.
    #[error("the replica is complete only up to {whole_bytes} bytes")]
    Behind {
        /// Bytes from the chunk's start that are there without a gap.
        whole_bytes: u64,
    },
    /// These blocks were never written here.
    #[error("blocks {0:?} were never written here")]
    Missing(Vec<u64>),
    /// These blocks don't have the bytes they should have.
    #[error("blocks {0:?} are damaged")]
    Corrupt(Vec<u64>),
    /// The bytes of these blocks were given back; the map that refers to them is old.
    #[error("blocks {0:?} were trimmed")]
    Gone(Vec<u64>),
    /// The file can't be used at all.
    #[error("the replica can't be used: {0}")]
    Damaged(String),
    /// A failed sync left unknown what is on the disk; the replica takes no more writes.
    #[error("an earlier write to the disk failed; the replica is read-only")]
    Suspect,
    /// The disk is full.
    #[error("the disk is full")]
    NoSpace,
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for ChunkError {
    fn from(error: io::Error) -> Self {
        if is_no_space(&error) { Self::NoSpace } else { Self::Io(error) }
    }
}
