//! Giving back the space of dead ranges.

use std::ops::Range;

use super::{BLOCK, ChunkError, ChunkFile, blocks_of, table_end};

impl ChunkFile {
    /// Gives back the whole blocks in these byte ranges (offset, length): marks them durably, then punches them.
    /// Returns the bytes that weren't marked before. The same again punches again, and is otherwise nothing.
    ///
    /// A failed punch isn't an error: the blocks are gone for every reader, and the next scrub gives back their
    /// space.
    pub fn trim(&self, ranges: &[Range<u64>]) -> Result<u64, ChunkError> {
        let mut order = self.order.lock();
        let mut header = self.header.read().clone();
        let limit = match (header.sealed, &order.tail) {
            (Some(length), _) => blocks_of(length),
            (None, Some(tail)) => tail.end,
            (None, None) => table_end(&self.read_table(0..self.geometry.blocks())?) as u32,
        };
        let mut blocks = Vec::new();
        for range in ranges {
            // A block that is dead only in part is kept.
            let run =
                range.start.div_ceil(BLOCK) as u32..(range.end.min(self.geometry.capacity()) / BLOCK) as u32;
            // The last block of a sealed chunk counts as whole when the range reaches the chunk's end.
            let reaches_end = header.sealed.is_some_and(|length| range.end >= length);
            let more = u32::from(atoll_faults::planted("trim-too-much"));
            let end = if reaches_end { limit } else { (run.end + more).min(limit) };
            if run.start < end {
                blocks.push(run.start..end);
            }
        }
        let before = header.trimmed.count();
        blocks.iter().for_each(|run| header.trimmed.insert(run.clone()));
        let new = header.trimmed.count() - before;
        if new > 0 {
            self.store_header(&mut order, header)?;
        }
        for run in blocks {
            self.punch(run);
        }
        Ok(u64::from(new) * BLOCK)
    }

    /// Punches all trimmed blocks again: a crash may have come between the mark and the hole.
    pub fn punch_trimmed(&self) {
        let runs = self.header.read().trimmed.runs();
        runs.into_iter().for_each(|run| self.punch(run));
    }

    fn punch(&self, blocks: Range<u32>) {
        let at = self.geometry.data_at(blocks.start);
        if let Err(error) = self.file.punch(at, blocks.len() as u64 * BLOCK) {
            tracing::warn!(
                chunk = %self.chunk, ?blocks, %error,
                "the space of trimmed blocks could not be freed; the next scrub retries"
            );
        }
    }

    /// Marks blocks of a replica that is being copied from a peer, where they were trimmed already.
    pub(crate) fn mark_trimmed(&self, blocks: &[u64]) -> Result<(), ChunkError> {
        let mut order = self.order.lock();
        let mut header = self.header.read().clone();
        for block in blocks {
            let block = u32::try_from(*block).ok().filter(|block| *block < self.geometry.blocks());
            let Some(block) = block else {
                return Err(ChunkError::Damaged("a peer trimmed blocks past the chunk's end".to_owned()));
            };
            header.trimmed.insert(block..block + 1);
        }
        self.store_header(&mut order, header)
    }
}
