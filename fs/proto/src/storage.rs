//! The messages to storage servers (kinds 0x200 … 0x2ff).
//!
//! A storage server keeps replicas of chunks and decides nothing. Offsets and lengths are in bytes within the
//! chunk; blocks are numbered from the chunk's beginning. Chunk data travels in the body.

use atoll_core::ids::{ChunkId, Generation, ServerId, SessionId};
use serde::{Deserialize, Serialize};

use crate::rpc::{KINDS_STORAGE, Rpc};
use crate::server::Request;
use crate::status::Status;

/// Data bytes of one read or write; more is cut into several calls.
pub const IO_BYTES_MAX: u32 = 4 << 20;
/// Ranges in one [`TrimChunk`].
pub const TRIM_RANGES_MAX: usize = 4096;
/// Replicas in one page of an [`Inventory`].
pub const INVENTORY_PAGE_MAX: u32 = 4096;

/// How a chunk's file is laid out: what is best for how it will be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChunkLayout {
    /// Big sequential writes: the file grows as it is written.
    Stream,
    /// Small extents that are synced often: the file is preallocated and filled with zeroes, so that a sync has no
    /// metadata of the disk's filesystem to write.
    Small,
}

/// Who writes a chunk: one process of one session. A later process of the same session has a higher incarnation
/// and opens new chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Writer {
    /// The session.
    pub session: SessionId,
    /// Counts the processes that were this session's.
    pub incarnation: u64,
}

/// A range of bytes of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Where a replica can be copied from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CopySource {
    /// The server.
    pub server: ServerId,
    /// Its address, as [`Address`](crate::transport::Address) prints it.
    pub address: String,
}

/// Writes the body into a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation that the writer knows.
    pub generation: Generation,
    /// The chunk's sole writer.
    pub writer: Writer,
    /// Where the body goes; a multiple of the block size.
    pub offset: u64,
    /// Bytes in the body.
    pub length: u32,
    /// One checksum per block that the body touches (see [`crate::checksum`]); a partial last block is summed with zeroes
    /// after it.
    pub checksums: Vec<u32>,
    /// Makes the replica, if there is none, with this layout.
    pub create: Option<ChunkLayout>,
    /// Answer only when the bytes, and all before them, are on disk.
    pub sync: bool,
}

/// The answer to [`WriteChunk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteChunkReply {
    /// Whether the bytes are on disk.
    pub durable: bool,
}

/// Answers when all that was written to the chunk before is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation that the writer knows.
    pub generation: Generation,
}

/// Reads a range into the answer's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation that the reader knows.
    pub generation: Generation,
    /// Where the range begins. The answer begins with the block that holds it.
    pub offset: u64,
    /// How many bytes are wanted. The answer holds the whole blocks around them, as far as the chunk goes.
    pub length: u32,
    /// The reader compares the blocks with their checksums, so the server needs not; if one is wrong the reader asks again
    /// without this, so that the server finds it too. What came before this field reads over it, and doesn't send it: then
    /// it is `false`.
    pub reader_verifies: bool,
}

impl<'de> Deserialize<'de> for ReadChunk {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> serde::de::Visitor<'de> for Fields {
            type Value = ReadChunk;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a read")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut fields: A) -> Result<ReadChunk, A::Error> {
                let missing = |at| serde::de::Error::invalid_length(at, &"a read");
                Ok(ReadChunk {
                    chunk: fields.next_element()?.ok_or_else(|| missing(0))?,
                    generation: fields.next_element()?.ok_or_else(|| missing(1))?,
                    offset: fields.next_element()?.ok_or_else(|| missing(2))?,
                    length: fields.next_element()?.ok_or_else(|| missing(3))?,
                    // The message may end here.
                    reader_verifies: fields.next_element().ok().flatten().unwrap_or(false),
                })
            }
        }

        let names = &["chunk", "generation", "offset", "length", "reader_verifies"];
        deserializer.deserialize_struct("ReadChunk", names, Fields)
    }
}

/// The answer to [`ReadChunk`]: the body holds whole blocks, the chunk's last one perhaps partly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadChunkReply {
    /// Where the body begins in the chunk; a multiple of the block size.
    pub offset: u64,
    /// One checksum per block of the body: the one that it should have.
    pub checksums: Vec<u32>,
}

/// Ends a chunk at a length: what lies beyond is cut off, nothing is written to it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation from now on.
    pub generation: Generation,
    /// Its bytes, for ever.
    pub length: u64,
}

/// Removes a replica. One that isn't there is as good as removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteChunk {
    /// The chunk.
    pub chunk: ChunkId,
}

/// Gives the space of dead ranges back. They are marked durably first and answer [`StorageError::Gone`] from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrimChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// The dead ranges, block-aligned, at most [`TRIM_RANGES_MAX`].
    pub ranges: Vec<ChunkRange>,
}

/// Makes a replica of a sealed chunk from other servers' replicas. Answers when it is verified and on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation that the new replica gets.
    pub generation: Generation,
    /// The sealed length.
    pub length: u64,
    /// Where from: one after the other until every block was verified.
    pub from: Vec<CopySource>,
}

/// Lists replicas in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Only those after this one.
    pub after: Option<ChunkId>,
    /// At most so many, and at most [`INVENTORY_PAGE_MAX`].
    pub limit: u32,
}

/// One replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaInfo {
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation that the replica knows.
    pub generation: Generation,
    /// Bytes written, holes counted.
    pub length: u64,
    /// Whether it is sealed.
    pub sealed: bool,
    /// Whether the last scrub or read found a bad block that wasn't repaired since.
    pub bad: bool,
}

/// A page of the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryReply {
    /// Ascending.
    pub replicas: Vec<ReplicaInfo>,
    /// Whether there are more after the last.
    pub more: bool,
}

/// Reads and verifies all of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// The chunk.
    pub chunk: ChunkId,
}

/// The answer to [`Scrub`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReply {
    /// Blocks that were read.
    pub blocks: u64,
    /// Those that don't have their checksum, ascending.
    pub bad: Vec<u64>,
}

/// How is the server?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {}

/// The answer to [`ServerStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatusReply {
    /// Who it is.
    pub server: ServerId,
    /// Bytes that its disk has for it.
    pub capacity: u64,
    /// Bytes that it uses.
    pub used: u64,
    /// Bytes that are free on the disk.
    pub free: u64,
    /// Replicas that it keeps.
    pub chunks: u64,
    /// Failures of the disk since it started.
    pub disk_errors: u64,
    /// Blocks found without their checksum since it started.
    pub bad_blocks: u64,
    /// Since when it runs, in seconds.
    pub uptime_s: u64,
}

macro_rules! rpc {
    ($request:ty, $number:literal, $reply:ty) => {
        impl Rpc for $request {
            const KIND: u16 = KINDS_STORAGE + $number;
            type Request = $request;
            type Reply = $reply;
        }
    };
}

rpc!(WriteChunk, 0x01, WriteChunkReply);
rpc!(SyncChunk, 0x02, ());
rpc!(ReadChunk, 0x03, ReadChunkReply);
rpc!(SealChunk, 0x04, ());
rpc!(DeleteChunk, 0x05, ());
rpc!(TrimChunk, 0x06, ());
rpc!(CopyChunk, 0x07, ());
rpc!(Inventory, 0x08, InventoryReply);
rpc!(Scrub, 0x09, ScrubReply);
rpc!(ServerStatus, 0x0a, ServerStatusReply);

/// A request to a storage server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageRequest {
    /// See [`WriteChunk`].
    Write(WriteChunk),
    /// See [`SyncChunk`].
    Sync(SyncChunk),
    /// See [`ReadChunk`].
    Read(ReadChunk),
    /// See [`SealChunk`].
    Seal(SealChunk),
    /// See [`DeleteChunk`].
    Delete(DeleteChunk),
    /// See [`TrimChunk`].
    Trim(TrimChunk),
    /// See [`CopyChunk`].
    Copy(CopyChunk),
    /// See [`Inventory`].
    Inventory(Inventory),
    /// See [`Scrub`].
    Scrub(Scrub),
    /// See [`ServerStatus`].
    Status(ServerStatus),
}

impl StorageRequest {
    /// What a request asks for. The body stays with the request.
    pub fn decode(request: &Request) -> Result<StorageRequest, Status> {
        Ok(match request.kind {
            WriteChunk::KIND => StorageRequest::Write(request.decode::<WriteChunk>()?),
            SyncChunk::KIND => StorageRequest::Sync(request.decode::<SyncChunk>()?),
            ReadChunk::KIND => StorageRequest::Read(request.decode::<ReadChunk>()?),
            SealChunk::KIND => StorageRequest::Seal(request.decode::<SealChunk>()?),
            DeleteChunk::KIND => StorageRequest::Delete(request.decode::<DeleteChunk>()?),
            TrimChunk::KIND => StorageRequest::Trim(request.decode::<TrimChunk>()?),
            CopyChunk::KIND => StorageRequest::Copy(request.decode::<CopyChunk>()?),
            Inventory::KIND => StorageRequest::Inventory(request.decode::<Inventory>()?),
            Scrub::KIND => StorageRequest::Scrub(request.decode::<Scrub>()?),
            ServerStatus::KIND => StorageRequest::Status(request.decode::<ServerStatus>()?),
            other => return Err(Status::unknown_kind(other)),
        })
    }
}

/// Why a storage server refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// There is no replica of this chunk here.
    #[error("this server has no replica of the chunk")]
    NoSuchChunk,
    /// The caller names an older generation than the replica knows.
    #[error("the chunk is at generation {have} here")]
    StaleGeneration {
        /// The replica's.
        have: Generation,
    },
    /// The caller names a newer generation than the replica knows: the replica missed a change.
    #[error("the chunk is only at generation {have} here: this replica is outdated")]
    OutdatedReplica {
        /// The replica's.
        have: Generation,
    },
    /// The chunk belongs to another writer, or to a later process of the same session.
    #[error("the chunk belongs to session {}, incarnation {}", .have.session, .have.incarnation)]
    StaleWriter {
        /// The chunk's writer.
        have: Writer,
    },
    /// The range was written before with other bytes.
    #[error("the range was already written with other bytes; the chunk continues at {high_water}")]
    BelowHighWater {
        /// The end of what was written, in bytes.
        high_water: u64,
    },
    /// The range ends beyond the seal (or, for a read, the end of what was written).
    #[error("the range ends beyond the end of the chunk at {length}")]
    PastSeal {
        /// The chunk's length.
        length: u64,
    },
    /// The chunk isn't sealed, and only sealed chunks can be asked for this.
    #[error("the chunk isn't sealed")]
    NotSealed,
    /// The chunk was sealed at another length.
    #[error("the chunk is sealed at {length} bytes")]
    SealMismatch {
        /// The length that the seal has here.
        length: u64,
    },
    /// Blocks don't have their checksums: on receipt the body's, else the disk's.
    #[error("{} have wrong checksums", some_blocks(blocks))]
    Corrupt {
        /// Block numbers within the chunk, ascending.
        blocks: Vec<u64>,
    },
    /// Part of the range was trimmed: fetch the file's map again.
    #[error("part of the range was trimmed")]
    Gone,
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
    /// The disk failed.
    #[error("the disk failed: {0}")]
    DiskFailed(String),
    /// Offset, length or a range isn't a multiple of the block size.
    #[error("{0} bytes is not a multiple of the block size")]
    NotAligned(u64),
    /// A field contradicts another, or is beyond a limit.
    #[error("the request is invalid: {0}")]
    Invalid(String),
    /// The chunk couldn't be copied from any of the sources.
    #[error("no source has an intact replica: {0}")]
    NoGoodSource(String),
}

/// Blocks in words: the first ones, and how many there are, since a damaged replica may have thousands.
#[must_use]
pub fn some_blocks(blocks: &[u64]) -> String {
    const NAMED_MAX: usize = 8;
    let (named, rest) = blocks.split_at(blocks.len().min(NAMED_MAX));
    match rest.len() {
        0 => format!("blocks {named:?}"),
        more => format!("blocks {named:?} and {more} more"),
    }
}

impl From<StorageError> for Status {
    fn from(error: StorageError) -> Status {
        Status::service(&error)
    }
}
