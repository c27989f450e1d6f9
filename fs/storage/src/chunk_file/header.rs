//! The header of a chunk file: what the replica knows of itself.

use atoll_core::ids::{ChunkId, ClusterId, Generation, SessionId};
use atoll_proto::checksum::crc32c_parts;

use super::bitmap::Bitmap;

/// Bytes of one block: the unit of checksums, trimming and alignment.
pub const BLOCK: u64 = atoll_core::limits::BLOCK_BYTES;
/// Bytes of one header slot.
pub const SLOT_BYTES: u64 = 4096;
/// Header slots in a file.
pub const SLOTS: u64 = 2;
/// Bytes of a slot before the bitmap of trimmed blocks.
const FIXED_BYTES: usize = 256;
/// The largest chunk whose bitmap fits into a slot (bytes): 120 MiB.
pub const CAPACITY_BYTES_MAX: u64 = (SLOT_BYTES - FIXED_BYTES as u64) * 8 * BLOCK;

/// Version of the file format that this build writes.
pub const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"ATOLLCHK";
const FLAG_SEALED: u8 = 1;
const FLAG_SUSPECT: u8 = 2;
/// Where the checksum lies within the fixed part: last, over everything else of the slot.
const CRC_AT: usize = FIXED_BYTES - 4;

/// Where things are in a file for chunks of one capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    capacity: u64,
}

impl Geometry {
    /// For chunks of `capacity_bytes` of data. `None` unless that is a whole number of blocks, at least one,
    /// at most [`CAPACITY_BYTES_MAX`].
    pub fn new(capacity_bytes: u64) -> Option<Self> {
        let valid =
            (BLOCK..=CAPACITY_BYTES_MAX).contains(&capacity_bytes) && capacity_bytes.is_multiple_of(BLOCK);
        valid.then_some(Self { capacity: capacity_bytes })
    }

    /// Data bytes in a full chunk.
    pub fn capacity(self) -> u64 {
        self.capacity
    }

    /// Blocks in a full chunk.
    pub fn blocks(self) -> u32 {
        (self.capacity / BLOCK) as u32
    }

    /// Where the checksum of a block is, in the file.
    pub fn checksum_at(self, block: u32) -> u64 {
        SLOTS * SLOT_BYTES + u64::from(block) * 4
    }

    /// Where the bytes of a block are, in the file; also the length of a file that ends before this block.
    pub fn data_at(self, block: u32) -> u64 {
        let table = (u64::from(self.blocks()) * 4).next_multiple_of(BLOCK);
        SLOTS * SLOT_BYTES + table + u64::from(block) * BLOCK
    }
}

/// How a chunk is laid out on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// For many small extents, each synced: written over zeroes that are on the disk already, so that a sync
    /// changes no metadata of the filesystem below.
    Small,
    /// For long streams: the file grows as it is written.
    Stream,
}

/// The process that may write a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// The session that the chunk was given to.
    pub session: SessionId,
    /// Counts the client processes of that session.
    pub incarnation: u64,
}

/// The header of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The chunk it is a replica of.
    pub chunk: ChunkId,
    /// Where things are.
    pub geometry: Geometry,
    /// How it is laid out.
    pub layout: Layout,
    /// The newest generation of the chunk that this replica heard of.
    pub generation: Generation,
    /// Its sole writer.
    pub writer: Writer,
    /// Length at which it was sealed, bytes; a sealed replica is never written again.
    pub sealed: Option<u64>,
    /// A write to the disk failed in a way that leaves unknown what is on it: never written again.
    pub suspect: bool,
    /// Blocks whose bytes were given back.
    pub trimmed: Bitmap,
}

/// Why a slot holds no header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The slot doesn't begin as a chunk header does.
    #[error("it isn't a chunk file")]
    Magic,
    /// A newer release wrote it.
    #[error("it has format version {0}, this program reads version {FORMAT_VERSION}")]
    Version(u32),
    /// The slot is torn or damaged.
    #[error("its header is damaged")]
    Checksum,
    /// The header is whole but makes no sense.
    #[error("its header is invalid: {0}")]
    Value(&'static str),
}

impl Header {
    /// The bytes of a slot, numbered `sequence`: of two valid slots the higher number holds.
    pub fn encode(&self, sequence: u64) -> Vec<u8> {
        let mut slot = vec![0; SLOT_BYTES as usize];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            slot[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&FORMAT_VERSION.to_le_bytes());
        put(&[match self.layout {
            Layout::Small => 1,
            Layout::Stream => 2,
        }]);
        let sealed = if self.sealed.is_some() { FLAG_SEALED } else { 0 };
        put(&[sealed | if self.suspect { FLAG_SUSPECT } else { 0 }]);
        put(&[0; 2]);
        put(&sequence.to_le_bytes());
        put(&self.cluster.0.to_le_bytes());
        put(&self.chunk.0.to_le_bytes());
        put(&self.geometry.capacity.to_le_bytes());
        put(&self.sealed.unwrap_or(0).to_le_bytes());
        put(&self.writer.session.0.to_le_bytes());
        put(&self.writer.incarnation.to_le_bytes());
        put(&self.generation.0.to_le_bytes());
        self.trimmed.write_to(&mut slot[FIXED_BYTES..][..self.geometry.blocks().div_ceil(8) as usize]);
        let crc = slot_crc(&slot);
        slot[CRC_AT..FIXED_BYTES].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    /// Reads a slot; also gives its sequence number.
    pub fn decode(slot: &[u8]) -> Result<(Self, u64), HeaderError> {
        if slot.len() < SLOT_BYTES as usize || slot[..8] != MAGIC {
            return Err(HeaderError::Magic);
        }
        // Every format keeps magic, version and checksum where they are, so that damage isn't taken for a newer
        // version.
        if slot_crc(slot) != u32::from_le_bytes(take(slot, &mut { CRC_AT })) {
            return Err(HeaderError::Checksum);
        }
        let mut at = 8;
        let version = u32::from_le_bytes(take(slot, &mut at));
        if version != FORMAT_VERSION {
            return Err(HeaderError::Version(version));
        }
        let [kind, flags, _, _] = take(slot, &mut at);
        let layout = match kind {
            1 => Layout::Small,
            2 => Layout::Stream,
            _ => return Err(HeaderError::Value("unknown layout")),
        };
        if flags & !(FLAG_SEALED | FLAG_SUSPECT) != 0 {
            return Err(HeaderError::Value("unknown flag"));
        }
        let sequence = u64::from_le_bytes(take(slot, &mut at));
        let cluster = ClusterId(u128::from_le_bytes(take(slot, &mut at)));
        let chunk = ChunkId(u64::from_le_bytes(take(slot, &mut at)));
        let capacity = u64::from_le_bytes(take(slot, &mut at));
        let geometry = Geometry::new(capacity).ok_or(HeaderError::Value("impossible capacity"))?;
        let length = u64::from_le_bytes(take(slot, &mut at));
        if length > capacity {
            return Err(HeaderError::Value("sealed past its capacity"));
        }
        let session = SessionId(u64::from_le_bytes(take(slot, &mut at)));
        let incarnation = u64::from_le_bytes(take(slot, &mut at));
        let generation = Generation(u32::from_le_bytes(take(slot, &mut at)));
        let header = Self {
            cluster,
            chunk,
            geometry,
            layout,
            generation,
            writer: Writer { session, incarnation },
            sealed: (flags & FLAG_SEALED != 0).then_some(length),
            suspect: flags & FLAG_SUSPECT != 0,
            trimmed: Bitmap::read_from(geometry.blocks(), &slot[FIXED_BYTES..]),
        };
        Ok((header, sequence))
    }
}

fn take<const N: usize>(slot: &[u8], at: &mut usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&slot[*at..*at + N]);
    *at += N;
    bytes
}

fn slot_crc(slot: &[u8]) -> u32 {
    crc32c_parts([&slot[..CRC_AT], &slot[FIXED_BYTES..SLOT_BYTES as usize]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let geometry = Geometry::new(64 << 20).unwrap();
        let mut trimmed = Bitmap::new(geometry.blocks());
        trimmed.insert(3..77);
        trimmed.insert(16383..16384);
        Header {
            cluster: ClusterId(0x1111_2222_3333_4444_5555_6666_7777_8888),
            chunk: ChunkId(42),
            geometry,
            layout: Layout::Small,
            generation: Generation(7),
            writer: Writer { session: SessionId(9), incarnation: 2 },
            sealed: Some(8192),
            suspect: true,
            trimmed,
        }
    }

    #[test]
    fn survives_its_bytes() {
        let open = Header { sealed: None, suspect: false, layout: Layout::Stream, ..header() };
        for header in [header(), open] {
            assert_eq!(Header::decode(&header.encode(99)), Ok((header, 99)));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let slot = header().encode(1);
        for byte in 0..slot.len() {
            let mut bad = slot.clone();
            bad[byte] ^= 1 << (byte % 8);
            assert!(Header::decode(&bad).is_err(), "byte {byte}");
        }
    }

    #[test]
    fn a_newer_format_says_so() {
        let mut slot = header().encode(1);
        slot[8] = 9;
        let crc = slot_crc(&slot);
        slot[CRC_AT..FIXED_BYTES].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&slot), Err(HeaderError::Version(9)));
        assert_eq!(Header::decode(&vec![0; SLOT_BYTES as usize]), Err(HeaderError::Magic));
    }

    #[test]
    fn the_places_dont_overlap() {
        for capacity in [BLOCK, 3 * BLOCK, 64 << 20, CAPACITY_BYTES_MAX] {
            let geometry = Geometry::new(capacity).unwrap();
            assert_eq!(geometry.checksum_at(0), 2 * SLOT_BYTES);
            assert!(geometry.checksum_at(geometry.blocks()) <= geometry.data_at(0));
            assert_eq!(geometry.data_at(0) % BLOCK, 0);
        }
        for capacity in [0, 100, BLOCK + 1, CAPACITY_BYTES_MAX + BLOCK] {
            assert_eq!(Geometry::new(capacity), None);
        }
    }
}
