//! One replica of a chunk: one file.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_core::ids::{ChunkId, ClusterId, Generation};
use atoll_proto::checksum::block_checksum;
use parking_lot::{Mutex, RwLock};

use crate::disk::{Disk, DiskFile, is_no_space, read_exact_at};

pub use self::bitmap::{Bitmap, runs};
pub use self::error::ChunkError;
pub use self::header::{BLOCK, CAPACITY_BYTES_MAX, Geometry, Header, HeaderError, Layout, Writer};
use self::header::{SLOT_BYTES, SLOTS};
pub use self::read::{Blocks, Checked, Verified};
pub use self::write::Written;

mod bitmap;
mod error;
mod header;
mod read;
mod seal;
#[cfg(test)]
mod tests;
mod trim;
mod write;

/// How far ahead of its writer a [`Layout::Small`] chunk is filled with zeroes (bytes). Filling the whole chunk
/// at once would make its first write wait for 64 MiB, and take them even for a volume of a few files.
const FILL_BYTES: u64 = 4 << 20;

/// Bytes read at a time when a tail is checked after a restart.
const RECOVERY_READ_BLOCKS: u32 = 256;

/// One replica of a chunk.
///
/// # The file
///
/// ```text
/// 0       header slot A   4 KiB: what the replica is, generation, writer, seal, bitmap of trimmed blocks, CRC
/// 4 KiB   header slot B   the same; the valid one with the higher sequence number holds
/// 8 KiB   checksums       one u32 per block: CRC-32C over (chunk, block number, bytes); 0 = never written
/// 72 KiB  data            (for a capacity of 64 MiB) up to the last block written, or cut at the seal
/// ```
///
/// All of it is in *one* file, so that one `fdatasync` covers data and checksums. The header comes first since
/// a chunk grows at its end; the checksums have a fixed place, so that no write ever moves anything.
///
/// A CRC that happens to be 0 is stored as 1 (and 1 stands for both), to leave 0 for "never written".
///
/// # Why a crash can't hurt
///
/// The disk is trusted to write a 512-byte sector whole or not at all, and to keep what was synced.
///
/// - **Blocks.** A block is written once; a second write of it is taken only if its checksum is the same. So
///   what was synced is never rewritten with something else, and a page of the checksum table that is torn
///   while later blocks' checksums are written holds the same bytes for the earlier ones in both versions.
///   What was written and not synced may be there, gone or torn after a cut, in any order. Nobody refers to
///   it (an extent is committed after the sync), and a reader who asks is told by the checksum.
/// - **The tail after a restart.** Before the first write or sync of an unsealed chunk in a new process, every
///   block that has a checksum is read and verified ([`ChunkFile::sync_covers`]): a sync is only
///   acknowledged if all bytes up to the length that the writer names are there and whole. Otherwise the
///   writer is told so and goes on in another chunk; else it would take for durable what a cut had taken
///   between its write and its sync.
/// - **Header.** It is written into the slot that doesn't hold, then synced, before anything relies on it. A torn
///   slot fails its CRC and the other, older one holds; it is older by exactly the change that was not yet
///   acknowledged.
/// - **Trim.** The bitmap is durable before the first byte is given back, so that a hole is always known as one
///   (`GONE`) and never served as zeroes. If the cut comes between, the blocks keep their space until the
///   next scrub punches them again.
/// - **Seal.** The sealed header and all data are durable before the tail is cut; a tail left over by a crash is
///   cut when the file is opened.
/// - **Creation.** The file is made under a temporary name, with both slots written and synced, then renamed,
///   and the folder is synced, all before the first write is taken. So a chunk file without a valid header is a
///   damaged one and never a new one.
///
/// # Failed syncs
///
/// After a failed `fdatasync` Linux takes the pages for clean, and the next one succeeds without having written
/// anything. So a replica whose sync failed is *suspect*: it takes no further write or sync, in this process
/// (`failed`) and, if the disk still takes that note, for ever (the header's flag). What was synced before is
/// still read, under its checksums.
///
/// # Locks
///
/// `order` serialises writers, seal and trim, and is held across their I/O; `header` shows the last *durable*
/// header and is held for a moment only, so that readers never wait for a writer; `syncing` makes the
/// `fdatasync`s of a file follow one another, since of two at once only one would be told of an error.
pub struct ChunkFile {
    chunk: ChunkId,
    geometry: Geometry,
    file: Arc<dyn DiskFile>,
    header: RwLock<Header>,
    order: Mutex<Order>,
    syncing: Mutex<()>,
    failed: AtomicBool,
}

/// What writers, seal and trim share.
struct Order {
    /// Sequence number of the slot that holds.
    sequence: u64,
    /// Where the file ended when last looked at (bytes): up to there a small chunk is filled.
    filled_bytes: u64,
    /// What is known of the written blocks. `None` until it is needed.
    tail: Option<Tail>,
}

/// The written blocks of an unsealed chunk.
struct Tail {
    /// Blocks that were written by this process, or verified by it.
    written: Bitmap,
    /// One past the last block that has a checksum.
    end: u32,
    /// Whether an earlier process wrote here: then a sync must show that nothing is missing.
    recovered: bool,
}

/// What a replica tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkInfo {
    /// The newest generation it heard of.
    pub generation: Generation,
    /// Its sole writer.
    pub writer: Writer,
    /// How it is laid out.
    pub layout: Layout,
    /// Data bytes it may hold.
    pub capacity_bytes: u64,
    /// Its length if it is sealed, bytes.
    pub sealed: Option<u64>,
    /// The end of the last block that was written, bytes.
    pub written_bytes: u64,
    /// Blocks given back.
    pub trimmed_blocks: u32,
    /// Whether a failed disk operation closed it for writing.
    pub suspect: bool,
}

impl ChunkFile {
    /// Makes the file of a new replica, durable in itself; its name is the caller's to make durable.
    pub fn create(disk: &dyn Disk, path: &str, header: Header) -> Result<Self, ChunkError> {
        let file = disk.create(path)?;
        let geometry = header.geometry;
        let mut slots = header.encode(1);
        slots.extend(header.encode(0));
        file.write_at(&slots, 0)?;
        file.set_len(geometry.data_at(0))?;
        let tail = Tail { written: Bitmap::new(geometry.blocks()), end: 0, recovered: false };
        let order = Order { sequence: 1, filled_bytes: geometry.data_at(0), tail: Some(tail) };
        let this = Self::assemble(file, header, order);
        this.sync()?;
        Ok(this)
    }

    /// Opens the file of a replica that `create` made.
    ///
    /// `ours`: this process made it and has written all that is in it, so nothing of it was lost (it was only
    /// closed meanwhile); else its tail is verified before it is written to.
    pub fn open(
        disk: &dyn Disk,
        path: &str,
        cluster: ClusterId,
        chunk: ChunkId,
        ours: bool,
    ) -> Result<Self, ChunkError> {
        let file = match disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ChunkError::NotFound),
            other => other?,
        };
        let (header, sequence) = read_header(&*file)?;
        if header.cluster != cluster {
            return Err(ChunkError::Damaged(format!("it belongs to cluster {}", header.cluster)));
        }
        if header.chunk != chunk {
            return Err(ChunkError::Damaged(format!("it is a replica of chunk {}", header.chunk)));
        }
        let mut filled_bytes = file.len()?;
        if let Some(length) = header.sealed {
            let end = header.geometry.data_at(blocks_of(length));
            if filled_bytes > end {
                file.set_len(end)?;
                filled_bytes = end;
            }
        }
        let sealed = header.sealed.is_some();
        let this = Self::assemble(file, header, Order { sequence, filled_bytes, tail: None });
        if ours && !sealed {
            let table = this.read_table(0..this.geometry.blocks())?;
            let mut written = Bitmap::new(this.geometry.blocks());
            (0..)
                .zip(&table)
                .filter(|(_, sum)| **sum != 0)
                .for_each(|(block, _)| written.insert(block..block + 1));
            this.order.lock().tail = Some(Tail { written, end: table_end(&table) as u32, recovered: false });
        }
        Ok(this)
    }

    fn assemble(file: Arc<dyn DiskFile>, header: Header, order: Order) -> Self {
        Self {
            chunk: header.chunk,
            geometry: header.geometry,
            failed: AtomicBool::new(header.suspect),
            file,
            header: RwLock::new(header),
            order: Mutex::new(order),
            syncing: Mutex::new(()),
        }
    }

    /// The chunk this is a replica of.
    pub fn chunk(&self) -> ChunkId {
        self.chunk
    }

    /// Data bytes it may hold.
    pub fn capacity(&self) -> u64 {
        self.geometry.capacity()
    }

    /// Whether the replica is sealed.
    pub fn is_sealed(&self) -> bool {
        self.header.read().sealed.is_some()
    }

    /// Whether a failed disk operation closed it for writing.
    pub fn is_suspect(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// What the replica is and how far it goes.
    pub fn info(&self) -> Result<ChunkInfo, ChunkError> {
        let order = self.order.lock();
        let header = self.header.read().clone();
        let written_bytes = match (header.sealed, &order.tail) {
            (Some(length), _) => length,
            (None, Some(tail)) => u64::from(tail.end) * BLOCK,
            (None, None) => table_end(&self.read_table(0..self.geometry.blocks())?) * BLOCK,
        };
        Ok(ChunkInfo {
            generation: header.generation,
            writer: header.writer,
            layout: header.layout,
            capacity_bytes: self.geometry.capacity(),
            sealed: header.sealed,
            written_bytes,
            trimmed_blocks: header.trimmed.count(),
            suspect: self.is_suspect(),
        })
    }

    /// Makes everything that was written before this call durable. Blocks for one `fdatasync`.
    pub fn sync(&self) -> Result<(), ChunkError> {
        let _one_at_a_time = self.syncing.lock();
        if self.is_suspect() {
            return Err(ChunkError::Suspect);
        }
        if atoll_faults::planted("storage-sync-skipped") {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| {
            self.failed.store(true, Ordering::Release);
            self.note_suspect();
            ChunkError::Io(error)
        })
    }

    /// Writes the flag that keeps a replica closed after a restart, if the disk takes it. Its failure changes
    /// nothing: the replica is closed for as long as this process lives.
    fn note_suspect(&self) {
        // `try_lock`: whoever holds `order` may be the caller, in the middle of a header's sync.
        let Some(mut order) = self.order.try_lock() else { return };
        let mut header = self.header.read().clone();
        header.suspect = true;
        let sequence = order.sequence + 1;
        let written = self.file.write_at(&header.encode(sequence), slot_at(sequence));
        if written.and_then(|()| self.file.sync_data()).is_ok() {
            order.sequence = sequence;
            *self.header.write() = header;
        }
    }

    /// Replaces the header, durably; what `header` shows changes only then.
    fn store_header(&self, order: &mut Order, header: Header) -> Result<(), ChunkError> {
        if self.is_suspect() {
            return Err(ChunkError::Suspect);
        }
        let sequence = order.sequence + 1;
        let written = self.file.write_at(&header.encode(sequence), slot_at(sequence));
        match written {
            Err(error) if is_no_space(&error) => return Err(ChunkError::NoSpace),
            Err(error) => {
                // Half a slot may be on its way to the disk. The other slot holds; nothing more is risked.
                self.failed.store(true, Ordering::Release);
                return Err(ChunkError::Io(error));
            }
            Ok(()) => {}
        }
        self.sync()?;
        order.sequence = sequence;
        *self.header.write() = header;
        Ok(())
    }

    /// The stored checksums of a range of blocks; 0 = never written. What lies past the file's end is 0.
    fn read_table(&self, blocks: Range<u32>) -> Result<Vec<u32>, ChunkError> {
        let mut bytes = vec![0; blocks.len() * 4];
        let read = self.file.read_at(&mut bytes, self.geometry.checksum_at(blocks.start))?;
        bytes[read..].fill(0);
        Ok(decode_table(&bytes))
    }

    /// The blocks that a byte range touches. The range begins at a block and isn't empty.
    fn block_range(&self, offset: u64, length: u64) -> Result<Range<u32>, ChunkError> {
        let end = offset.checked_add(length).filter(|end| *end <= self.geometry.capacity());
        match end {
            Some(end) if offset.is_multiple_of(BLOCK) && length > 0 => {
                Ok((offset / BLOCK) as u32..end.div_ceil(BLOCK) as u32)
            }
            _ => Err(ChunkError::BadRange { offset, length, capacity: self.geometry.capacity() }),
        }
    }

    /// What is known of the written blocks, found out by reading them if this process doesn't know yet.
    fn tail<'a>(&self, order: &'a mut Order) -> Result<&'a mut Tail, ChunkError> {
        let tail = match order.tail.take() {
            Some(tail) => tail,
            None => self.recover_tail()?,
        };
        Ok(order.tail.insert(tail))
    }

    fn recover_tail(&self) -> Result<Tail, ChunkError> {
        let table = self.read_table(0..self.geometry.blocks())?;
        let end = table_end(&table) as u32;
        let mut written = Bitmap::new(self.geometry.blocks());
        let mut data = vec![0; (RECOVERY_READ_BLOCKS as u64 * BLOCK) as usize];
        for first in (0..end).step_by(RECOVERY_READ_BLOCKS as usize) {
            let blocks = first..end.min(first + RECOVERY_READ_BLOCKS);
            let data = &mut data[..blocks.len() * BLOCK as usize];
            let read = self.file.read_at(data, self.geometry.data_at(first))?;
            data[read..].fill(0);
            for (block, bytes) in blocks.zip(data.chunks_exact(BLOCK as usize)) {
                let sum = table[block as usize];
                if sum != 0 && stored(block_checksum(self.chunk, block.into(), bytes)) == sum {
                    written.insert(block..block + 1);
                }
            }
        }
        Ok(Tail { written, end, recovered: true })
    }
}

/// Reads the header that holds.
fn read_header(file: &dyn DiskFile) -> Result<(Header, u64), ChunkError> {
    let mut slots = vec![0; (SLOTS * SLOT_BYTES) as usize];
    match read_exact_at(file, &mut slots, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(ChunkError::Damaged("it is too short for a chunk file".to_owned()));
        }
        other => other?,
    }
    let (a, b) = slots.split_at(SLOT_BYTES as usize);
    match (Header::decode(a), Header::decode(b)) {
        (Ok(a), Ok(b)) => Ok(if a.1 > b.1 { a } else { b }),
        (Ok(one), Err(HeaderError::Version(version))) | (Err(HeaderError::Version(version)), Ok(one)) => {
            drop(one);
            Err(ChunkError::Damaged(HeaderError::Version(version).to_string()))
        }
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        (Err(error), Err(_)) => Err(ChunkError::Damaged(error.to_string())),
    }
}

fn slot_at(sequence: u64) -> u64 {
    // Sequence 1 is in slot A and 0 in slot B, so each number has its slot.
    (sequence + 1) % SLOTS * SLOT_BYTES
}

/// The form in which a checksum is stored.
fn stored(checksum: u32) -> u32 {
    checksum.max(1)
}

fn decode_table(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn table_end(table: &[u32]) -> u64 {
    table.iter().rposition(|sum| *sum != 0).map_or(0, |last| last as u64 + 1)
}

fn blocks_of(bytes: u64) -> u32 {
    bytes.div_ceil(BLOCK) as u32
}

/// Bytes that [`zeroes`] can give at once.
const ZEROES_BYTES: usize = 64 << 10;

fn zeroes(bytes: usize) -> IoSlice<'static> {
    static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];
    IoSlice::new(&ZEROES[..bytes])
}
