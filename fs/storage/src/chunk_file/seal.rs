//! Durability and the end of a chunk: what a sync may promise, and the seal.

use atoll_core::ids::Generation;

use super::{BLOCK, ChunkError, ChunkFile, Header, blocks_of};

impl ChunkFile {
    /// Whether a sync vouches for what its writer takes for written; to be asked before the sync.
    ///
    /// In the process that took the writes it does, once they were answered. If an earlier process took some of
    /// them, a power cut may have lost or torn what it didn't sync, and the writer doesn't know. Then the
    /// writer must say up to which length it means, and every block up to there must be there, verified,
    /// without a gap. `Behind` otherwise: the writer has to bring its data elsewhere.
    pub fn sync_covers(&self, generation: Generation, length_bytes: Option<u64>) -> Result<(), ChunkError> {
        let mut order = self.order.lock();
        let header = self.header.read().clone();
        if generation < header.generation {
            return Err(ChunkError::StaleGeneration { current: header.generation });
        }
        if let Some(sealed) = header.sealed {
            // What is below the seal was made durable by it.
            return match length_bytes {
                Some(length) if blocks_of(length) > blocks_of(sealed) => {
                    Err(ChunkError::Sealed { length: sealed })
                }
                _ => Ok(()),
            };
        }
        if self.is_suspect() {
            return Err(ChunkError::Suspect);
        }
        if order.tail.as_ref().is_some_and(|tail| !tail.recovered) {
            return Ok(());
        }
        let Some(length_bytes) = length_bytes else {
            return Err(ChunkError::Behind { whole_bytes: 0 });
        };
        let mut known = self.tail(&mut order)?.written.clone();
        header.trimmed.runs().into_iter().for_each(|run| known.insert(run));
        let whole = known.prefix();
        if blocks_of(length_bytes) <= whole {
            Ok(())
        } else {
            Err(ChunkError::Behind { whole_bytes: u64::from(whole) * BLOCK })
        }
    }

    /// Closes the chunk at `length_bytes` for ever, durably, data included, and cuts what is beyond. The same
    /// again is fine, a newer generation is noted; another length is refused. Returns the blocks below the length that aren't here: the
    /// replica is sealed all the same (a writer may have left gaps that nobody refers to), and who ordered the
    /// seal decides whether it counts.
    pub fn seal(&self, generation: Generation, length_bytes: u64) -> Result<Vec<u64>, ChunkError> {
        if length_bytes > self.geometry.capacity() {
            let capacity = self.geometry.capacity();
            return Err(ChunkError::BadRange { offset: 0, length: length_bytes, capacity });
        }
        let mut order = self.order.lock();
        let header = self.header.read().clone();
        let missing = self.missing(&header, length_bytes)?;
        match header.sealed {
            // A seal is repeated, with a newer generation when the set of replicas changes.
            Some(length) if length == length_bytes => {
                if generation > header.generation {
                    self.store_header(&mut order, Header { generation, ..header })?;
                }
                return Ok(missing);
            }
            Some(length) => return Err(ChunkError::Sealed { length }),
            None if generation < header.generation => {
                return Err(ChunkError::StaleGeneration { current: header.generation });
            }
            None => {}
        }
        self.store_header(&mut order, Header { generation, sealed: Some(length_bytes), ..header })?;
        order.tail = None;
        // The seal holds whether or not the cut succeeds: it is made good when the file is next opened.
        let end = self.geometry.data_at(blocks_of(length_bytes));
        if order.filled_bytes > end && self.file.set_len(end).is_ok() {
            order.filled_bytes = end;
        }
        Ok(missing)
    }

    fn missing(&self, header: &Header, length_bytes: u64) -> Result<Vec<u64>, ChunkError> {
        let blocks = 0..blocks_of(length_bytes);
        let table = self.read_table(blocks.clone())?;
        let missing = blocks.zip(table).filter(|(block, sum)| *sum == 0 && !header.trimmed.contains(*block));
        Ok(missing.map(|(block, _)| block.into()).collect())
    }
}
