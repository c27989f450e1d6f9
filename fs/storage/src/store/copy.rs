//! Making a replica from a peer's.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use atoll_core::ids::{ChunkId, Generation, SessionId};

use super::{Known, Store, TEMPORARY};
use crate::chunk_file::{BLOCK, Bitmap, ChunkError, ChunkFile, Header, Layout, Writer};

/// A replica in the making, under a temporary name; nobody reads it before it is finished.
pub struct CopyTarget {
    store: Arc<Store>,
    id: ChunkId,
    file: ChunkFile,
    temporary: String,
    generation: Generation,
    length: u64,
    trimmed: Vec<u64>,
    /// The file has its final name: nothing to clean up.
    finished: bool,
}

impl Store {
    /// Begins a copy of a sealed chunk. `None` if there is a good replica with that seal already: it only gets the
    /// generation.
    pub fn begin_copy(
        self: &Arc<Self>,
        id: ChunkId,
        generation: Generation,
        length: u64,
    ) -> Result<Option<CopyTarget>, ChunkError> {
        if length > self.geometry.capacity() {
            return Err(ChunkError::BadRange { offset: 0, length, capacity: self.geometry.capacity() });
        }
        let here = self.replica(id);
        if here.is_some_and(|replica| replica.sealed && replica.length == length && !replica.bad) {
            self.seal(id, generation, length)?;
            return Ok(None);
        }
        let header = Header {
            cluster: self.identity.cluster,
            chunk: id,
            geometry: self.geometry,
            layout: Layout::Stream,
            generation,
            // Sealed before anybody sees it: nobody ever writes it.
            writer: Writer { session: SessionId(0), incarnation: 0 },
            sealed: None,
            suspect: false,
            trimmed: Bitmap::new(self.geometry.blocks()),
        };
        // Two orders may ask for the same copy at once: each makes its own, and the later one stays.
        let number = self.copies.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("{TEMPORARY}/{id}.{number}.copy");
        let file = self.noting(id, ChunkFile::create(&*self.disk, &temporary, header))?;
        let store = self.clone();
        Ok(Some(CopyTarget {
            store,
            id,
            file,
            temporary,
            generation,
            length,
            trimmed: Vec::new(),
            finished: false,
        }))
    }
}

impl CopyTarget {
    /// Takes blocks from a peer; they are verified before they are written.
    pub fn fill(&mut self, offset: u64, data: &[u8], checksums: &[u32]) -> Result<(), ChunkError> {
        self.file.fill(offset, data, checksums)
    }

    /// Takes note that a block was trimmed where the copy comes from.
    pub fn trimmed(&mut self, block: u64) {
        self.trimmed.push(block);
    }

    /// Makes the copy a replica, durably, in place of one that was there.
    pub fn finish(mut self) -> Result<(), ChunkError> {
        let store = self.store.clone();
        let blocks = self.length.div_ceil(BLOCK);
        self.trimmed.retain(|block| *block < blocks);
        if !self.trimmed.is_empty() {
            store.noting(self.id, self.file.mark_trimmed(&self.trimmed))?;
        }
        store.noting(self.id, self.file.seal(self.generation, self.length).map(drop))?;
        let _one_opener = store.stripe(self.id).lock();
        let published = store.publish(&self.temporary, self.id);
        // Also after a failure, which may have come after the renaming. Whoever still reads the old file has its
        // blocks verified, as ever.
        store.cache.forget(self.id);
        store.noting(self.id, published)?;
        self.finished = true;
        store.index.write().insert(self.id, Known::default());
        store.changes.replaced(self.id);
        Ok(())
    }
}

impl Drop for CopyTarget {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.store.disk.unlink(&self.temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(
                %error, chunk = %self.id,
                "the file of an unfinished copy could not be removed; the next start removes it"
            );
        }
    }
}
