//! Reading a replica: nothing is used that doesn't have its checksum, which is verified here or by who reads.

use std::io;
use std::ops::Range;

use atoll_proto::buffers;
use atoll_proto::checksum::{block_checksum, checksums};
use bytes::Bytes;

use super::{BLOCK, ChunkError, ChunkFile, blocks_of, decode_table, runs, stored};

/// Blocks with the checksums that they should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// Whole blocks.
    pub data: Bytes,
    /// One checksum per block.
    pub checksums: Vec<u32>,
}

/// Who compares blocks with their checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// They are verified before they are given out.
    Here,
    /// Who reads them does it. If they turn out to be wrong it asks again, for such that are verified here: then this
    /// replica learns of it.
    ByReader,
}

/// What a check of a range of blocks found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Blocks that were read and verified.
    pub good_blocks: u64,
    /// Blocks that don't have their checksum, or couldn't be read.
    pub bad: Vec<u32>,
}

impl ChunkFile {
    /// Reads the blocks that a byte range touches. The range begins at a block; what is given back are whole
    /// blocks, since a checksum covers one.
    ///
    /// Blocks that were trimmed are `Gone`, never zeroes; ones that were never written are `Missing`; ones that
    /// don't have their checksum are `Corrupt`, and each error names all of them. What the reader verifies may be neither
    /// zeroes nor the bytes if it is trimmed meanwhile.
    pub fn read(&self, offset: u64, length: u64, verified: Verified) -> Result<Blocks, ChunkError> {
        let patient = |buf: &mut [u8], at| {
            let read = self.file.read_at(buf, at)?;
            // What lies past the file's end was never written.
            buf[read..].fill(0);
            Ok(true)
        };
        let read = self.read_by(patient, offset, length, verified)?;
        read.ok_or_else(|| ChunkError::Io(io::ErrorKind::WouldBlock.into()))
    }

    /// As [`Self::read`], if that needs no waiting for the disk; `None` if it does.
    pub fn read_cached(
        &self,
        offset: u64,
        length: u64,
        verified: Verified,
    ) -> Result<Option<Blocks>, ChunkError> {
        let cached = |buf: &mut [u8], at| Ok(self.file.read_cached_at(buf, at)? == Some(buf.len()));
        self.read_by(cached, offset, length, verified)
    }

    /// `fetch` fills a buffer from a place in the file, or says that it can't now.
    fn read_by(
        &self,
        fetch: impl Fn(&mut [u8], u64) -> io::Result<bool>,
        offset: u64,
        length: u64,
        verified: Verified,
    ) -> Result<Option<Blocks>, ChunkError> {
        let blocks = self.block_range(offset, length)?;
        let sealed = self.header.read().sealed;
        if let Some(length) = sealed
            && blocks.end > blocks_of(length)
        {
            let beyond = blocks_of(length).max(blocks.start)..blocks.end;
            return Err(ChunkError::Missing(beyond.map(u64::from).collect()));
        }
        self.expect_untrimmed(&blocks)?;
        let mut table = vec![0; blocks.len() * 4];
        if !fetch(&mut table, self.geometry.checksum_at(blocks.start))? {
            return Ok(None);
        }
        let table = decode_table(&table);
        let missing: Vec<u64> = numbers(blocks.clone().zip(&table).filter(|(_, sum)| **sum == 0));
        if !missing.is_empty() {
            return Err(ChunkError::Missing(missing));
        }
        let mut data = buffers::take(blocks.len() * BLOCK as usize);
        if !fetch(data.as_mut(), self.geometry.data_at(blocks.start))? {
            return Ok(None);
        }
        if verified == Verified::ByReader {
            let checksums = self.unambiguous(&blocks, table, data.as_ref());
            return Ok(Some(Blocks { data: data.freeze(), checksums }));
        }
        let sums = checksums(self.chunk, blocks.start.into(), data.as_ref());
        let bad: Vec<u64> = numbers(
            blocks.clone().zip(table.iter().zip(&sums)).filter(|(_, (old, new))| **old != stored(**new)),
        );
        if !bad.is_empty() {
            // A trim may have come in between and given back what was just read.
            self.expect_untrimmed(&blocks)?;
            if !atoll_faults::planted("read-unverified") {
                return Err(ChunkError::Corrupt(bad));
            }
        }
        Ok(Some(Blocks { data: data.freeze(), checksums: sums }))
    }

    /// The checksums that a table stands for. A 1 in it may stand for 0 as well: there the block says which, if it is
    /// whole; else neither is right.
    fn unambiguous(&self, blocks: &Range<u32>, mut table: Vec<u32>, data: &[u8]) -> Vec<u32> {
        for ((block, sum), bytes) in blocks.clone().zip(&mut table).zip(data.chunks(BLOCK as usize)) {
            if *sum == stored(0) && block_checksum(self.chunk, block.into(), bytes) == 0 {
                *sum = 0;
            }
        }
        table
    }

    /// Verifies the written blocks of a range, wherever they are; trimmed and unwritten ones are passed over.
    /// The disk is asked, not the cache. What it can't read as a piece is tried again block by block, so that one
    /// bad sector is one bad block. All of the range is held in memory at once: ask for a megabyte or so.
    pub fn check(&self, blocks: Range<u32>) -> Result<Checked, ChunkError> {
        let end = match self.header.read().sealed {
            Some(length) => blocks_of(length),
            None => self.geometry.blocks(),
        };
        let blocks = blocks.start..blocks.end.min(end);
        let mut found = Checked::default();
        if blocks.is_empty() {
            return Ok(found);
        }
        let table = self.read_table(blocks.clone())?;
        let trimmed = self.header.read().trimmed.clone();
        let written =
            blocks.clone().zip(&table).filter(|(block, sum)| **sum != 0 && !trimmed.contains(*block));
        self.file.forget_cached(self.geometry.data_at(blocks.start), blocks.len() as u64 * BLOCK);
        for run in runs(written.map(|(block, _)| block)) {
            let at = (run.start - blocks.start) as usize;
            self.check_run(run.clone(), &table[at..at + run.len()], &mut found);
        }
        if !found.bad.is_empty() {
            let header = self.header.read();
            found.bad.retain(|block| !header.trimmed.contains(*block));
        }
        Ok(found)
    }

    pub(super) fn check_run(&self, blocks: Range<u32>, table: &[u32], found: &mut Checked) {
        let mut data = buffers::take(blocks.len() * BLOCK as usize);
        match self.file.read_at(data.as_mut(), self.geometry.data_at(blocks.start)) {
            Ok(read) => data.as_mut()[read..].fill(0),
            Err(_) if blocks.len() > 1 => {
                for (block, sum) in blocks.zip(table) {
                    self.check_run(block..block + 1, std::slice::from_ref(sum), found);
                }
                return;
            }
            Err(_) => {
                found.bad.extend(blocks);
                return;
            }
        }
        let sums = checksums(self.chunk, blocks.start.into(), data.as_ref());
        for ((block, old), new) in blocks.zip(table).zip(sums) {
            if *old == stored(new) { found.good_blocks += 1 } else { found.bad.push(block) }
        }
    }

    fn expect_untrimmed(&self, blocks: &Range<u32>) -> Result<(), ChunkError> {
        let gone: Vec<u64> = self.header.read().trimmed.within(blocks.clone()).map(u64::from).collect();
        if gone.is_empty() { Ok(()) } else { Err(ChunkError::Gone(gone)) }
    }
}

fn numbers<T>(blocks: impl Iterator<Item = (u32, T)>) -> Vec<u64> {
    blocks.map(|(block, _)| u64::from(block)).collect()
}
