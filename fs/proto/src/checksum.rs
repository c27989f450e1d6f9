//! Checksums of a chunk's blocks.
//!
//! Every [`BLOCK_BYTES`] of a chunk have one checksum: CRC-32C over the chunk's id (u64, little-endian), the
//! block's number in the chunk (u64, little-endian) and the block's bytes, padded with zeroes to the whole
//! block. Because the seed is part of what is summed, a block that a disk or a program put in the wrong
//! place is as bad as a block with a flipped bit.
//!
//! The writing client computes them, every storage server checks them on receipt and in scrubs, and the
//! reading client checks them again.

use crc_fast::{CrcAlgorithm, Digest};

use atoll_core::ids::ChunkId;
use atoll_core::limits;

/// Bytes that one checksum covers, and the alignment of every extent in a chunk.
pub const BLOCK_BYTES: usize = limits::BLOCK_BYTES as usize;

static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// CRC-32C (Castagnoli) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
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

fn seeded(chunk: ChunkId, block: u64) -> Digest {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&seed(chunk, block));
    digest
}

/// The checksum of one block of a chunk. `data` is at most [`BLOCK_BYTES`] long; what is missing counts as
/// zeroes.
///
/// # Panics
/// If `data` is longer than a block: that is a mistake of the caller, never of a peer.
pub fn block_checksum(chunk: ChunkId, block: u64, data: &[u8]) -> u32 {
    assert!(data.len() <= BLOCK_BYTES, "a block has {BLOCK_BYTES} bytes, got {}", data.len());
    let mut digest = seeded(chunk, block);
    digest.update(data);
    digest.update(&ZEROES[data.len()..]);
    digest.finalize() as u32
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

/// As [`checksums`], of data that lies in several slices whose ends need not be at block boundaries.
pub fn checksums_of_parts<'a>(
    chunk: ChunkId,
    first_block: u64,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<u32> {
    let mut sums = Vec::new();
    let mut block = first_block;
    let mut filled = 0;
    let mut digest = seeded(chunk, block);
    for mut part in parts {
        while !part.is_empty() {
            if filled == 0 && part.len() >= BLOCK_BYTES {
                let (whole, rest) = part.split_at(BLOCK_BYTES);
                sums.push(block_checksum(chunk, block, whole));
                (block, part) = (block + 1, rest);
                digest = seeded(chunk, block);
                continue;
            }
            let (now, rest) = part.split_at(part.len().min(BLOCK_BYTES - filled));
            digest.update(now);
            filled += now.len();
            part = rest;
            if filled == BLOCK_BYTES {
                sums.push(digest.finalize() as u32);
                (block, filled) = (block + 1, 0);
                digest = seeded(chunk, block);
            }
        }
    }
    if filled > 0 {
        digest.update(&ZEROES[filled..]);
        sums.push(digest.finalize() as u32);
    }
    sums
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
    checksum ^ crc32c_combine(exchanged, 0, BLOCK_BYTES as u64)
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
            assert_eq!(checksums_of_parts(ChunkId(1), 8, parts), whole, "{cuts:?}");
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
