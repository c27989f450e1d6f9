//! The records, wherever they are: in RocksDB, or, in a simulation, in an ordered map.

use std::ops::ControlFlow;
use std::path::Path;

use atoll_core::store::{Family, Read, StoreError, Visit, Write};

#[cfg(feature = "simulation")]
use super::memory::{Memory, MemorySnapshot, SimulatedRecords};
use super::rocks::{Rocks, RocksSizes, RocksSnapshot, block_cache_bytes};

/// Where the records of a server are kept.
#[derive(Clone, Debug)]
pub enum Backend {
    /// On disk.
    Rocks {
        /// Bytes of what is read that are kept in memory.
        cache_bytes: u64,
    },
    /// In memory that outlives the server.
    #[cfg(feature = "simulation")]
    Simulated(SimulatedRecords),
}

impl Default for Backend {
    fn default() -> Backend {
        Backend::Rocks { cache_bytes: block_cache_bytes() }
    }
}

/// Open records.
pub enum Records {
    /// On disk.
    Rocks(Rocks),
    /// In memory.
    #[cfg(feature = "simulation")]
    Memory(Memory),
}

/// A batch that was carried out. Only [`Records::write`] makes one, so who is told of changes is told of what is there.
#[derive(Debug)]
pub struct Written<'a>(&'a [Write]);

impl<'a> Written<'a> {
    /// What was written.
    #[must_use]
    pub fn writes(&self) -> &'a [Write] {
        self.0
    }

    /// As if these had been written.
    #[cfg(test)]
    pub(crate) fn for_tests(writes: &'a [Write]) -> Written<'a> {
        Written(writes)
    }
}

/// Calls the same for each kind.
macro_rules! each {
    ($records:expr, $this:ident => $call:expr) => {
        match $records {
            Records::Rocks($this) => $call,
            #[cfg(feature = "simulation")]
            Records::Memory($this) => $call,
        }
    };
}

impl Records {
    /// Opens the records in `dir`, or makes some.
    ///
    /// # Errors
    /// If they can't be opened.
    pub fn open(backend: &Backend, dir: &Path) -> Result<Records, StoreError> {
        match backend {
            Backend::Rocks { cache_bytes } => Rocks::open(dir, *cache_bytes).map(Records::Rocks),
            #[cfg(feature = "simulation")]
            Backend::Simulated(disk) => Memory::open(disk, dir).map(Records::Memory),
        }
    }

    /// Carries a batch out, whole or not at all. It is durable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write<'a>(&self, writes: &'a [Write]) -> Result<Written<'a>, StoreError> {
        each!(self, this => this.write(writes))?;
        Ok(Written(writes))
    }

    /// Makes everything durable that was written before, all families at the same point.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn flush(&self) -> Result<(), StoreError> {
        each!(self, this => this.flush())
    }

    /// Makes a copy as files in `dir`, which must not exist.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn checkpoint(&self, dir: &Path) -> Result<(), StoreError> {
        each!(self, this => this.checkpoint(dir))
    }

    /// Reads all of the [`checkpoint`](Self::checkpoint) in `dir`, and tells `read` how many bytes those were since the
    /// last time; `read` may wait, and may end it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if it is not what was written, which is noted as damage of these records; if the disk
    /// refuses.
    pub fn verify(&self, dir: &Path, read: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<(), StoreError> {
        each!(self, this => this.verify_checkpoint(dir, read))
    }

    /// The records as they are now, unchanged by later writes.
    #[must_use]
    pub fn snapshot(&self) -> RecordsSnapshot<'_> {
        match self {
            Records::Rocks(rocks) => RecordsSnapshot::Rocks(rocks.snapshot()),
            #[cfg(feature = "simulation")]
            Records::Memory(memory) => RecordsSnapshot::Memory(memory.snapshot()),
        }
    }

    /// What was found damaged since they were opened, if anything.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        match self {
            Records::Rocks(rocks) => rocks.damage(),
            #[cfg(feature = "simulation")]
            Records::Memory(_) => None,
        }
    }

    /// How much memory and disk they use.
    #[must_use]
    pub fn sizes(&self) -> RocksSizes {
        match self {
            Records::Rocks(rocks) => rocks.sizes(),
            #[cfg(feature = "simulation")]
            Records::Memory(_) => RocksSizes::default(),
        }
    }
}

impl Read for Records {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        each!(self, this => this.get(family, key))
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        each!(self, this => this.scan(family, from, to, visit))
    }
}

/// A view of [`Records`] that later writes don't change.
pub enum RecordsSnapshot<'a> {
    /// On disk.
    Rocks(RocksSnapshot<'a>),
    /// In memory.
    #[cfg(feature = "simulation")]
    Memory(MemorySnapshot),
}

impl Read for RecordsSnapshot<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self {
            RecordsSnapshot::Rocks(snapshot) => snapshot.get(family, key),
            #[cfg(feature = "simulation")]
            RecordsSnapshot::Memory(snapshot) => snapshot.get(family, key),
        }
    }

    fn get_many(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        match self {
            RecordsSnapshot::Rocks(snapshot) => snapshot.get_many(family, keys),
            #[cfg(feature = "simulation")]
            RecordsSnapshot::Memory(snapshot) => snapshot.get_many(family, keys),
        }
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        match self {
            RecordsSnapshot::Rocks(snapshot) => snapshot.scan(family, from, to, visit),
            #[cfg(feature = "simulation")]
            RecordsSnapshot::Memory(snapshot) => snapshot.scan(family, from, to, visit),
        }
    }
}
