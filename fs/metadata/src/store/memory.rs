//! The records of a simulated server: an ordered map, and what of it is on a disk that loses power.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_core::store::{Family, MemStore, Read, StoreError, Visit, Write, prefix_end};
use parking_lot::Mutex;

/// The file of a copy.
const FILE: &str = "records";

/// What is durable of the records of one server, by folder. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimulatedRecords(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    durable: BTreeMap<PathBuf, Arc<MemStore>>,
    /// The server that had it is dead: what it still does has no effect.
    off: bool,
}

impl SimulatedRecords {
    /// The power goes: what is durable, for the next server on this disk.
    #[must_use]
    pub fn after_power_cut(&self) -> SimulatedRecords {
        let mut disk = self.0.lock();
        disk.off = true;
        SimulatedRecords(Arc::new(Mutex::new(Disk { durable: disk.durable.clone(), off: false })))
    }

    fn store(&self, dir: &Path, records: Arc<MemStore>) -> Result<(), StoreError> {
        let mut disk = self.0.lock();
        if disk.off {
            return Err(StoreError::Backend("the power is gone".into()));
        }
        disk.durable.insert(name_of(dir), records);
        Ok(())
    }
}

/// A server's folder may be another one after a crash; the state's name in it isn't.
fn name_of(dir: &Path) -> PathBuf {
    dir.file_name().map(PathBuf::from).unwrap_or_default()
}

/// Open records in memory.
pub struct Memory {
    disk: SimulatedRecords,
    dir: PathBuf,
    now: Mutex<Arc<MemStore>>,
}

/// A view that later writes don't change.
pub type MemorySnapshot = Arc<MemStore>;

impl Memory {
    /// What is durable at `dir`, or what was copied there, or nothing yet.
    pub(super) fn open(disk: &SimulatedRecords, dir: &Path) -> Result<Memory, StoreError> {
        let known = disk.0.lock().durable.get(&name_of(dir)).cloned();
        let (known, is_copy) = match (known, std::fs::read(dir.join(FILE))) {
            (None, Ok(copy)) => (Arc::new(decode(&copy)?), true),
            (known, _) => (known.unwrap_or_default(), false),
        };
        if is_copy {
            disk.store(dir, known.clone())?;
        }
        Ok(Memory { disk: disk.clone(), dir: dir.to_owned(), now: Mutex::new(known) })
    }

    pub(super) fn write(&self, writes: &[Write]) -> Result<(), StoreError> {
        Arc::make_mut(&mut *self.now.lock()).write(writes.iter().cloned());
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<(), StoreError> {
        let now = self.now.lock().clone();
        self.disk.store(&self.dir, now)
    }

    pub(super) fn checkpoint(&self, dir: &Path) -> Result<(), StoreError> {
        self.flush()?;
        let failed = |error: std::io::Error| StoreError::Backend(error.to_string());
        let now = self.snapshot();
        std::fs::create_dir(dir).map_err(failed)?;
        std::fs::write(dir.join(FILE), encode(&now)?).map_err(failed)
    }

    pub(super) fn verify_checkpoint(
        &self,
        dir: &Path,
        read: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let bytes = std::fs::read(dir.join(FILE)).map_err(|error| StoreError::Backend(error.to_string()))?;
        let _ = read(bytes.len() as u64);
        decode(&bytes).map(drop)
    }

    pub(super) fn snapshot(&self) -> MemorySnapshot {
        self.now.lock().clone()
    }
}

impl Read for Memory {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.now.lock().get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.snapshot().scan(family, from, to, visit)
    }
}

type Copied = Vec<(u8, Vec<u8>, Vec<u8>)>;

fn encode(records: &MemStore) -> Result<Vec<u8>, StoreError> {
    let mut all: Copied = Vec::new();
    for (number, family) in Family::ALL.into_iter().enumerate() {
        records.scan(family, &[], &prefix_end(&[]), &mut |key, value| {
            all.push((number as u8, key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
    }
    postcard::to_stdvec(&all).map_err(|error| StoreError::Backend(error.to_string()))
}

fn decode(bytes: &[u8]) -> Result<MemStore, StoreError> {
    let all: Copied = postcard::from_bytes(bytes).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let mut records = MemStore::default();
    records.write(
        all.into_iter().map(|(number, key, value)| (Family::ALL[usize::from(number)], key, Some(value))),
    );
    Ok(records)
}
