//! Checksums of a chunk's blocks.
//!
//! Every [`BLOCK_BYTES`] of a chunk have one checksum: CRC-32C over the chunk's id (u64, little-endian), the
//! block's number in the chunk (u64, little-endian) and the block's bytes, padded with zeroes to the whole
//! block. Because the seed is part of what is summed, a block that a disk or a program put in the wrong
//! place is as bad as a block with a flipped bit.
//!
//! The writing client computes them, every storage server checks them on receipt and in scrubs, and the
//! reading client checks them again.
//!
//! The seed comes first, and CRC is linear: the CRC-32C of a block's bytes alone becomes its checksum at any place
//! ([`placed`]) without another look at the bytes. So a client computes it once, when the bytes come ([`Sums`]).

use crc_fast::{CrcAlgorithm, Digest};

use atoll_core::ids::ChunkId;
use atoll_core::limits;

/// Bytes that one checksum covers, and the alignment of every extent in a chunk.
pub const BLOCK_BYTES: usize = limits::BLOCK_BYTES as usize;

static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// From this length on (bytes) one library is quicker than the other: by half for a block that is in the processor's cache,
/// twice for one that isn't.
const LONG_BYTES: usize = 1024;

/// CRC-32C (Castagnoli) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    if bytes.len() < LONG_BYTES { crc_fast::crc32_iscsi(bytes) } else { crc32c::crc32c(bytes) }
}

/// CRC-32C of several slices, one after the other.
pub fn crc32c_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

/// CRC-32C of `a ‖ b`, given the CRC-32C of each and the length of `b` in bytes.
pub fn crc32c_combine(a: u32, b: u32, b_bytes: u64) -> u32 {
    crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, u64::from(a), u64::from(b), b_bytes) as u32
}

/// CRC-32C of `a ‖ bytes`, given that of `a`.
pub fn crc32c_append(a: u32, bytes: &[u8]) -> u32 {
    if bytes.len() >= LONG_BYTES {
        return crc32c::crc32c_append(a, bytes);
    }
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!a));
    digest.update(bytes);
    digest.finalize() as u32
}

/// CRC-32C of `a ‖ block`, given the CRC-32C of each, where `block` is a whole one: as [`crc32c_combine`], in four
/// look-ups.
pub fn crc32c_append_block(a: u32, block: u32) -> u32 {
    let [b0, b1, b2, b3] = a.to_le_bytes().map(usize::from);
    let [t0, t1, t2, t3] = &BEFORE_A_BLOCK;
    t0[b0] ^ t1[b1] ^ t2[b2] ^ t3[b3] ^ block
}

/// What a CRC becomes when something follows: where each of its 32 bits goes.
type Shift = [u32; 32];

const fn shifted(crc: u32, by: &Shift) -> u32 {
    let (mut sum, mut bit) = (0, 0);
    while bit < 32 {
        if (crc >> bit) & 1 == 1 {
            sum ^= by[bit];
        }
        bit += 1;
    }
    sum
}

/// When a whole block of zeroes follows: what happens when one byte of zeroes does, doubled as often as it takes.
const fn shift_of_a_block() -> Shift {
    let mut shift = [0; 32];
    let mut bit = 0;
    while bit < 32 {
        let (mut crc, mut step) = (1u32 << bit, 0);
        while step < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            step += 1;
        }
        shift[bit] = crc;
        bit += 1;
    }
    let mut bytes = 1;
    while bytes < BLOCK_BYTES {
        let half = shift;
        let mut bit = 0;
        while bit < 32 {
            shift[bit] = shifted(half[bit], &half);
            bit += 1;
        }
        bytes *= 2;
    }
    assert!(bytes == BLOCK_BYTES, "a block is a power of two long");
    shift
}

/// CRC-32C's polynomial, in reversed order of bits.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What a CRC becomes before a block, by each of its bytes.
static BEFORE_A_BLOCK: [[u32; 256]; 4] = {
    let shift = shift_of_a_block();
    let mut tables = [[0; 256]; 4];
    let mut byte = 0;
    while byte < 4 {
        let mut value = 0;
        while value < 256 {
            tables[byte][value] = shifted((value as u32) << (8 * byte), &shift);
            value += 1;
        }
        byte += 1;
    }
    tables
};

/// How many blocks `bytes` bytes take, the last one perhaps partly.
pub fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64)
}

fn seed(chunk: ChunkId, block: u64) -> [u8; 16] {
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&chunk.0.to_le_bytes());
    seed[8..].copy_from_slice(&block.to_le_bytes());
    seed
}

/// The checksum that a whole block has at a place, given the CRC-32C of its bytes alone.
pub fn placed(chunk: ChunkId, block: u64, crc: u32) -> u32 {
    crc32c_append_block(crc32c(&seed(chunk, block)), crc)
}

/// The checksum of one block of a chunk. `data` is at most [`BLOCK_BYTES`] long; what is missing counts as
/// zeroes.
///
/// # Panics
/// If `data` is longer than a block: that is a mistake of the caller, never of a peer.
pub fn block_checksum(chunk: ChunkId, block: u64, data: &[u8]) -> u32 {
    assert!(data.len() <= BLOCK_BYTES, "a block has {BLOCK_BYTES} bytes, got {}", data.len());
    let crc = crc32c(data);
    let padding = &ZEROES[data.len()..];
    placed(chunk, block, if padding.is_empty() { crc } else { crc32c_append(crc, padding) })
}

/// The checksum of a block of zeroes at this place: what a hole or a preallocated block has.
pub fn zero_block_checksum(chunk: ChunkId, block: u64) -> u32 {
    block_checksum(chunk, block, &[])
}

/// The checksums of consecutive blocks, the first of which is number `first_block`. The last block may be
/// partial.
pub fn checksums(chunk: ChunkId, first_block: u64, data: &[u8]) -> Vec<u32> {
    data.chunks(BLOCK_BYTES)
        .zip(first_block..)
        .map(|(part, block)| block_checksum(chunk, block, part))
        .collect()
}

/// As [`checksums`], of data that lies in several slices whose ends need not be at block boundaries. With each slice
/// comes the CRC-32C of its whole blocks, counted from its beginning, as far as they are known: none, or some, or all.
/// Where the slice's blocks are blocks of the chunk too, its bytes aren't looked at again.
pub fn checksums_of_parts<'a>(
    chunk: ChunkId,
    first_block: u64,
    parts: impl IntoIterator<Item = (&'a [u8], &'a [u32])>,
) -> Vec<u32> {
    let mut sums = Vec::new();
    let mut block = first_block;
    let (mut filled, mut crc) = (0, 0);
    for (mut part, mut known) in parts {
        if filled > 0 {
            known = &[];
        }
        while !part.is_empty() {
            let (now, rest) = part.split_at(part.len().min(BLOCK_BYTES - filled));
            crc = match known {
                [first, later @ ..] if now.len() == BLOCK_BYTES => {
                    known = later;
                    *first
                }
                _ if filled == 0 => crc32c(now),
                _ => crc32c_append(crc, now),
            };
            filled += now.len();
            part = rest;
            if filled == BLOCK_BYTES {
                sums.push(placed(chunk, block, crc));
                (block, filled) = (block + 1, 0);
            }
        }
    }
    if filled > 0 {
        sums.push(placed(chunk, block, crc32c_append(crc, &ZEROES[filled..])));
    }
    sums
}

/// The CRC-32C of data that comes piece by piece: of all of it, and of each whole block, in one pass.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    blocks: Vec<u32>,
    /// Of what comes after the last whole block.
    rest: u32,
    rest_bytes: usize,
    all: u32,
}

impl Sums {
    /// Of `data`.
    pub fn of(data: &[u8]) -> Sums {
        let mut sums = Sums { blocks: Vec::with_capacity(data.len() / BLOCK_BYTES), ..Sums::default() };
        sums.add(data);
        sums
    }

    /// Takes in what comes next.
    pub fn add(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(self.until_block_end()));
            if now.len() == BLOCK_BYTES {
                let block = crc32c(now);
                self.all = crc32c_append_block(self.all, block);
                self.blocks.push(block);
            } else {
                self.rest = crc32c_append(self.rest, now);
                self.rest_bytes += now.len();
                self.all = if self.blocks.is_empty() { self.rest } else { crc32c_append(self.all, now) };
                if self.rest_bytes == BLOCK_BYTES {
                    self.blocks.push(std::mem::take(&mut self.rest));
                    self.rest_bytes = 0;
                }
            }
            data = later;
        }
    }

    /// Bytes until the next block is whole: what is added in such pieces is looked at while it is at hand.
    pub fn until_block_end(&self) -> usize {
        BLOCK_BYTES - self.rest_bytes
    }

    /// Of each whole block.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Of everything.
    pub fn all(&self) -> u32 {
        self.all
    }
}

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumError {
    /// There aren't as many checksums as blocks.
    #[error("{blocks} blocks came with {checksums} checksums")]
    Count {
        /// Blocks in the data.
        blocks: u64,
        /// Checksums given.
        checksums: u64,
    },
    /// These blocks (numbers within the chunk, ascending) don't have the checksum they should have.
    #[error("{} of chunk {chunk:?} have wrong checksums", crate::storage::some_blocks(blocks))]
    Corrupt {
        /// The chunk.
        chunk: ChunkId,
        /// Block numbers within the chunk, ascending.
        blocks: Vec<u64>,
    },
}

/// Checks consecutive blocks against their checksums. All blocks are looked at, so that the error names
/// every bad one.
pub fn verify(chunk: ChunkId, first_block: u64, data: &[u8], expected: &[u32]) -> Result<(), ChecksumError> {
    let blocks = blocks_of(data.len() as u64);
    if blocks != expected.len() as u64 {
        return Err(ChecksumError::Count { blocks, checksums: expected.len() as u64 });
    }
    let bad: Vec<u64> = data
        .chunks(BLOCK_BYTES)
        .zip(expected)
        .zip(first_block..)
        .filter(|((part, sum), block)| block_checksum(chunk, *block, part) != **sum)
        .map(|(_, block)| block)
        .collect();
    if bad.is_empty() { Ok(()) } else { Err(ChecksumError::Corrupt { chunk, blocks: bad }) }
}

/// The checksum that a block has at another place, from the one it has where it is, without its bytes: the
/// seeds' contributions are exchanged (CRC is linear). For moving verified blocks between chunks: a
/// checksum that was wrong stays wrong.
pub fn reseed(checksum: u32, from: (ChunkId, u64), to: (ChunkId, u64)) -> u32 {
    let exchanged = crc32c(&seed(from.0, from.1)) ^ crc32c(&seed(to.0, to.1));
    checksum ^ crc32c_append_block(exchanged, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    /// CRC-32C one bit at a time: the definition, to hold the fast one against.
    fn slow_crc32c(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn crc32c_has_its_known_values() {
        // RFC 3720, appendix B.4, and the catalogue's check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c_parts([&b"1234"[..], b"", b"56789"]), 0xe306_9283);
        assert_eq!(crc32c_combine(crc32c(b"1234"), crc32c(b"56789"), 5), 0xe306_9283);
        // Both libraries.
        for length in [LONG_BYTES - 1, LONG_BYTES, LONG_BYTES + 1, BLOCK_BYTES, 10_000] {
            assert_eq!(crc32c(&bytes(length)), slow_crc32c(&bytes(length)), "{length} bytes");
        }
    }

    #[test]
    fn a_block_checksum_is_the_crc_of_seed_data_and_padding() {
        for len in [0, 1, 100, BLOCK_BYTES - 1, BLOCK_BYTES] {
            let data = bytes(len);
            let mut all = 0x0102_0304_0506_0708u64.to_le_bytes().to_vec();
            all.extend(77u64.to_le_bytes());
            all.extend(&data);
            all.resize(16 + BLOCK_BYTES, 0);
            assert_eq!(block_checksum(ChunkId(0x0102_0304_0506_0708), 77, &data), slow_crc32c(&all), "{len}");
        }
    }

    #[test]
    fn a_block_in_the_wrong_place_is_bad() {
        let data = bytes(2 * BLOCK_BYTES);
        let sums = checksums(ChunkId(5), 3, &data);
        assert_eq!(verify(ChunkId(5), 3, &data, &sums), Ok(()));
        let moved = verify(ChunkId(5), 4, &data, &sums);
        assert_eq!(moved, Err(ChecksumError::Corrupt { chunk: ChunkId(5), blocks: vec![4, 5] }));
        assert!(verify(ChunkId(6), 3, &data, &sums).is_err());
    }

    #[test]
    fn one_flipped_bit_names_its_block() {
        let mut data = bytes(4 * BLOCK_BYTES + 10);
        let sums = checksums(ChunkId(9), 100, &data);
        data[2 * BLOCK_BYTES + 17] ^= 4;
        let found = verify(ChunkId(9), 100, &data, &sums);
        assert_eq!(found, Err(ChecksumError::Corrupt { chunk: ChunkId(9), blocks: vec![102] }));
        let short = verify(ChunkId(9), 100, &data, &sums[..4]);
        assert_eq!(short, Err(ChecksumError::Count { blocks: 5, checksums: 4 }));
    }

    #[test]
    fn slices_sum_up_like_one_piece() {
        let data = bytes(5 * BLOCK_BYTES + 123);
        let whole = checksums(ChunkId(1), 8, &data);
        for cuts in [&[][..], &[1], &[BLOCK_BYTES], &[100, 5000, 5001, 12288, 20000], &[4095, 4097]] {
            let mut parts = Vec::new();
            let mut start = 0;
            for cut in cuts {
                parts.push(&data[start..*cut]);
                start = *cut;
            }
            parts.push(&data[start..]);
            let unknown = parts.iter().map(|part| (*part, &[][..]));
            assert_eq!(checksums_of_parts(ChunkId(1), 8, unknown), whole, "{cuts:?}");
            let sums: Vec<Sums> = parts.iter().map(|part| Sums::of(part)).collect();
            let known = parts.iter().zip(&sums).map(|(part, sums)| (*part, sums.blocks()));
            assert_eq!(checksums_of_parts(ChunkId(1), 8, known), whole, "{cuts:?}");
            let half = |sums: &Sums| sums.blocks()[..sums.blocks().len() / 2].to_vec();
            let some: Vec<Vec<u32>> = sums.iter().map(half).collect();
            let some = parts.iter().zip(&some).map(|(part, sums)| (*part, &sums[..]));
            assert_eq!(checksums_of_parts(ChunkId(1), 8, some), whole, "{cuts:?}");
        }
    }

    #[test]
    fn a_known_sum_is_believed() {
        let data = bytes(2 * BLOCK_BYTES);
        let sums = Sums::of(&data);
        let mut damaged = data.clone();
        damaged[BLOCK_BYTES] ^= 1;
        let of_damaged = checksums_of_parts(ChunkId(1), 8, [(&damaged[..], sums.blocks())]);
        // What was changed after it was summed is noticed by whoever verifies it.
        assert_eq!(of_damaged, checksums(ChunkId(1), 8, &data));
        assert!(verify(ChunkId(1), 8, &damaged, &of_damaged).is_err());
    }

    #[test]
    fn a_crc_goes_on() {
        for (a, b) in [(0, 0), (0, 5), (7, 0), (1, 1), (100, 4096), (4097, 12_345)] {
            let data = bytes(a + b);
            let (first, second) = data.split_at(a);
            assert_eq!(crc32c_append(crc32c(first), second), crc32c(&data), "{a} and {b} bytes");
        }
    }

    #[test]
    fn a_block_is_appended_by_its_crc() {
        for before in [0, 1, 16, 4096, 10_000] {
            let data = bytes(before + BLOCK_BYTES);
            let (a, block) = data.split_at(before);
            assert_eq!(crc32c_append_block(crc32c(a), crc32c(block)), slow_crc32c(&data), "{before} bytes");
        }
        // Each bit of what comes before.
        for bit in 0..32 {
            assert_eq!(crc32c_append_block(1 << bit, 77), crc32c_combine(1 << bit, 77, BLOCK_BYTES as u64));
        }
    }

    #[test]
    fn sums_are_those_of_the_whole_however_it_comes() {
        let mut state = 1u32;
        let mut random = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        for round in 0..200 {
            let data = bytes(random(5 * BLOCK_BYTES));
            let mut sums = Sums::default();
            let mut rest = &data[..];
            while !rest.is_empty() {
                // Short pieces, long ones, and such that end where a block does.
                let now = match random(4) {
                    0 => sums.until_block_end(),
                    1 => 1 + random(64),
                    _ => 1 + random(2 * BLOCK_BYTES),
                };
                let (piece, later) = rest.split_at(now.min(rest.len()));
                sums.add(piece);
                rest = later;
            }
            assert_eq!(sums.all(), crc32c(&data), "round {round}");
            let blocks: Vec<u32> = data.chunks_exact(BLOCK_BYTES).map(crc32c).collect();
            assert_eq!(sums.blocks(), blocks, "round {round}");
            assert_eq!(sums.until_block_end(), BLOCK_BYTES - data.len() % BLOCK_BYTES, "round {round}");
        }
    }

    #[test]
    fn reseeding_needs_no_bytes() {
        let data = bytes(BLOCK_BYTES);
        let (from, to) = ((ChunkId(7), 1), (ChunkId(900), 12345));
        let there = reseed(block_checksum(from.0, from.1, &data), from, to);
        assert_eq!(there, block_checksum(to.0, to.1, &data));
    }
}
