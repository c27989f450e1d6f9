//! The header of a chunk file, from a disk. Its checksum is made right first: a wrong one is refused before the rest is read.

use atoll_core::ids::{ChunkId, ClusterId, Generation, SessionId};
use atoll_storage::chunk_file::{Bitmap, Geometry, Header, Layout, Writer};

/// Bytes of a header, and those before its bitmap, the last four of which are the checksum.
const SLOT_BYTES: usize = 4096;
const FIXED_BYTES: usize = 256;

pub(crate) fn read(data: &[u8]) -> bool {
    // As it is: what is on a disk may be anything.
    let _ = Header::decode(data);
    let mut slot = data.to_vec();
    slot.resize(SLOT_BYTES, 0);
    let crc = super::crc32c(&[&slot[..FIXED_BYTES - 4], &slot[FIXED_BYTES..]]);
    slot[FIXED_BYTES - 4..FIXED_BYTES].copy_from_slice(&crc.to_le_bytes());
    let Ok((header, sequence)) = Header::decode(&slot) else { return false };
    let again = Header::decode(&header.encode(sequence));
    assert_eq!(again, Ok((header, sequence)), "a header is not what it was when it is read again");
    true
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let header = |capacity, layout, sealed| {
        Geometry::new(capacity).map(|geometry| Header {
            cluster: ClusterId(1),
            chunk: ChunkId(2),
            geometry,
            layout,
            generation: Generation(3),
            writer: Writer { session: SessionId(4), incarnation: 5 },
            sealed,
            suspect: false,
            trimmed: Bitmap::new(geometry.blocks()),
        })
    };
    let seeds = [header(64 << 20, Layout::Stream, Some(4096)), header(1 << 20, Layout::Small, None)];
    // The rest is zeroes, which reading adds.
    seeds.into_iter().flatten().map(|header| header.encode(7)[..FIXED_BYTES + 64].to_vec()).collect()
}
