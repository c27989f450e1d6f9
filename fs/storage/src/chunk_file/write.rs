//! Writing to a replica: append-only, by one writer, verified before it is written.

use std::io::IoSlice;
use std::ops::Range;

use atoll_core::ids::Generation;
use atoll_proto::checksum::{ChecksumError, verify};

use super::{
    BLOCK, ChunkError, ChunkFile, FILL_BYTES, Header, Layout, Order, Writer, ZEROES_BYTES, blocks_of, stored,
    zeroes,
};

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The bytes are in the file, not yet durable.
    New,
    /// All of it was there already, with the same checksums.
    Again,
}

impl ChunkFile {
    /// Writes whole blocks (the last one is filled up with zeroes) at a place that its sole writer chose.
    ///
    /// The rule is that a block never changes: one that was written takes only the same bytes again, which a
    /// writer sends when it got no answer. Blocks that weren't written are taken in any order, since the
    /// requests of one writer may overtake one another; a gap that it leaves is read as missing. Anybody but
    /// the writer, an older process of its session and an older set of replicas are refused, and a newer one is
    /// noted durably before its bytes are taken.
    pub fn write(
        &self,
        generation: Generation,
        writer: Writer,
        offset: u64,
        data: &[u8],
        checksums: &[u32],
    ) -> Result<Written, ChunkError> {
        let blocks = self.block_range(offset, data.len() as u64)?;
        self.verify_received(&blocks, data, checksums)?;
        let mut order = self.order.lock();
        // Nobody else changes the header while `order` is held, but it isn't copied: its bitmap is long.
        let (known, layout, sealed) = {
            let header = self.header.read();
            let known = (header.generation, header.writer);
            if generation < header.generation {
                return Err(ChunkError::StaleGeneration { current: header.generation });
            }
            if writer.session != header.writer.session || writer.incarnation < header.writer.incarnation {
                let Writer { session, incarnation } = header.writer;
                return Err(ChunkError::OtherWriter { session, incarnation });
            }
            if let Some(block) = header.trimmed.within(blocks.clone()).next() {
                return Err(ChunkError::Gone(vec![block.into()]));
            }
            (known, header.layout, header.sealed)
        };
        if let Some(length) = sealed {
            return match self.differing(&blocks, checksums)? {
                Differing { unwritten: false, first_other: None } if blocks.end <= blocks_of(length) => {
                    Ok(Written::Again)
                }
                _ => Err(ChunkError::Sealed { length }),
            };
        }
        if self.is_suspect() {
            return Err(ChunkError::Suspect);
        }
        if known != (generation, writer) {
            let header = Header { generation, writer, ..self.header.read().clone() };
            self.store_header(&mut order, header)?;
        }
        let tail = self.tail(&mut order)?;
        if blocks.start < tail.end {
            // Below the high-water mark: a repetition, or a request that was overtaken.
            let found = self.differing(&blocks, checksums)?;
            if let Some(block) = found.first_other {
                return Err(ChunkError::Overwrite { block: block.into() });
            }
            if !found.unwritten && tail.written.contains_all(blocks.clone()) {
                return Ok(Written::Again);
            }
        }
        self.put(&mut order, layout, blocks, data, checksums)?;
        Ok(Written::New)
    }

    /// Writes blocks of a replica that is being copied from a peer, which nobody else knows yet.
    pub(crate) fn fill(&self, offset: u64, data: &[u8], checksums: &[u32]) -> Result<(), ChunkError> {
        let blocks = self.block_range(offset, data.len() as u64)?;
        self.verify_received(&blocks, data, checksums)?;
        let mut order = self.order.lock();
        self.tail(&mut order)?;
        self.put(&mut order, Layout::Stream, blocks, data, checksums)
    }

    fn verify_received(&self, blocks: &Range<u32>, data: &[u8], checksums: &[u32]) -> Result<(), ChunkError> {
        verify(self.chunk, blocks.start.into(), data, checksums).map_err(|error| match error {
            ChecksumError::Corrupt { blocks, .. } => ChunkError::BadChecksums(blocks),
            ChecksumError::Count { .. } => ChunkError::BadChecksums(blocks.clone().map(u64::from).collect()),
        })
    }

    /// Compares what is to be written with what was.
    fn differing(&self, blocks: &Range<u32>, checksums: &[u32]) -> Result<Differing, ChunkError> {
        let mut found = Differing { unwritten: false, first_other: None };
        for ((block, old), new) in blocks.clone().zip(self.read_table(blocks.clone())?).zip(checksums) {
            match old {
                0 => found.unwritten = true,
                old if old != stored(*new) && found.first_other.is_none() => found.first_other = Some(block),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Data first, then checksums, then the note in memory: whoever sees the checksum sees the data.
    fn put(
        &self,
        order: &mut Order,
        layout: Layout,
        blocks: Range<u32>,
        data: &[u8],
        checksums: &[u32],
    ) -> Result<(), ChunkError> {
        let end_bytes = self.geometry.data_at(blocks.end);
        if layout == Layout::Small && order.filled_bytes < end_bytes {
            self.fill_ahead(order, end_bytes)?;
        }
        let padding = data.len().next_multiple_of(BLOCK as usize) - data.len();
        let parts = [IoSlice::new(data), zeroes(padding)];
        self.file.write_vectored_at(&parts, self.geometry.data_at(blocks.start))?;
        let sums: Vec<u8> = checksums.iter().flat_map(|sum| stored(*sum).to_le_bytes()).collect();
        self.file.write_at(&sums, self.geometry.checksum_at(blocks.start))?;
        order.filled_bytes = order.filled_bytes.max(end_bytes);
        if let Some(tail) = &mut order.tail {
            tail.end = tail.end.max(blocks.end);
            tail.written.insert(blocks);
        }
        Ok(())
    }

    /// Writes zeroes up to the next multiple of [`FILL_BYTES`] after `end_bytes`. They become durable with the
    /// sync of the data that is then written over them; from then on, syncs below that mark change nothing but
    /// data.
    fn fill_ahead(&self, order: &mut Order, end_bytes: u64) -> Result<(), ChunkError> {
        let start = self.geometry.data_at(0);
        let limit = self.geometry.data_at(self.geometry.blocks());
        let target = (start + (end_bytes - start).next_multiple_of(FILL_BYTES)).min(limit);
        while order.filled_bytes < target {
            let bytes = ((target - order.filled_bytes) as usize).min(FILL_BYTES as usize);
            let mut parts = vec![zeroes(ZEROES_BYTES); bytes / ZEROES_BYTES];
            parts.push(zeroes(bytes % ZEROES_BYTES));
            self.file.write_vectored_at(&parts, order.filled_bytes)?;
            order.filled_bytes += bytes as u64;
        }
        Ok(())
    }
}

/// How what is to be written compares with what was.
struct Differing {
    /// Some block wasn't written yet.
    unwritten: bool,
    /// The first block that was written with another checksum.
    first_other: Option<u32>,
}
