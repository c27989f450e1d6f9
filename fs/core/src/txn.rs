//! A batch of commands in the making: typed access to the records, on top of a store.

use std::ops::ControlFlow;

use crate::attributes::Timestamp;
use crate::error::FsError;
use crate::ids::{ChunkId, InodeId, SegmentIndex, ServerId};
use crate::keys;
use crate::records::{ChunkRecord, EntryRecord, InodeRecord, Marker, Record, Superblock, TaskRecord};
use crate::store::{Family, Overlay, Read, StoreError, Visit, Write, prefix_end};

/// Why an operation did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// It is refused: an outcome.
    #[error("{0}")]
    Refused(#[from] FsError),
    /// The store failed: no outcome.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// What the operations return.
pub type OpResult<T> = Result<T, OpError>;

/// A batch of commands on top of a store.
pub struct Txn<'a> {
    overlay: Overlay<'a>,
    superblock: Option<Superblock>,
    /// The superblock as the current command found it.
    superblock_before: Option<Superblock>,
    superblock_changed: bool,
}

impl Read for Txn<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.overlay.get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.overlay.scan(family, from, to, visit)
    }
}

/// Reads one record.
///
/// # Errors
/// If the store fails or the record is damaged.
pub fn load<R: Record>(from: &dyn Read, family: Family, key: &[u8]) -> Result<Option<R>, StoreError> {
    from.get(family, key)?.map(|bytes| R::decode(&bytes)).transpose()
}

/// An entry of a directory, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundEntry {
    /// Its key in the names family.
    pub key: Vec<u8>,
    /// Its collision index.
    pub collision: u16,
    /// What it names.
    pub ino: InodeId,
}

/// Finds `name` in `parent`.
///
/// # Errors
/// If the store fails.
pub fn find_entry(
    from: &dyn Read,
    hash_key: (u64, u64),
    parent: InodeId,
    name: &[u8],
) -> Result<Option<FoundEntry>, StoreError> {
    let hash = keys::name_hash(hash_key, name);
    let first = keys::entry(parent, hash, 0);
    let Some(bytes) = from.get(Family::Names, &first)? else { return Ok(None) };
    if let EntryRecord::Entry { name: found, ino, .. } = EntryRecord::decode(&bytes)?
        && found == name
    {
        return Ok(Some(FoundEntry { key: first, collision: 0, ino }));
    }
    let mut result = Ok(None);
    let end = keys::entry_at(parent, keys::cookie(hash, keys::COLLISIONS_MAX - 1) + 1);
    let start = keys::entry(parent, hash, 1);
    from.scan(Family::Names, &start, &end, &mut |key, value| match EntryRecord::decode(value) {
        Ok(EntryRecord::Entry { name: found, ino, .. }) if found == name => {
            let collision = (keys::cookie_of(key).unwrap_or(0) & u64::from(keys::COLLISIONS_MAX - 1)) as u16;
            result = Ok(Some(FoundEntry { key: key.to_vec(), collision, ino }));
            ControlFlow::Break(())
        }
        Ok(_) => ControlFlow::Continue(()),
        Err(error) => {
            result = Err(error);
            ControlFlow::Break(())
        }
    })?;
    result
}

impl<'a> Txn<'a> {
    /// Begins a batch.
    ///
    /// # Errors
    /// If the store fails.
    pub fn open(base: &'a dyn Read) -> Result<Self, StoreError> {
        let superblock: Option<Superblock> = load(base, Family::System, &keys::superblock())?;
        Ok(Txn {
            overlay: Overlay::new(base),
            superblock_before: superblock.clone(),
            superblock,
            superblock_changed: false,
        })
    }

    /// The volume's record, if it was bootstrapped.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        self.superblock.as_ref()
    }

    /// The volume's record.
    pub(crate) fn volume(&self) -> OpResult<&Superblock> {
        self.superblock.as_ref().ok_or(OpError::Refused(FsError::WrongCluster))
    }

    /// The volume's record, to be changed.
    pub(crate) fn volume_mut(&mut self) -> OpResult<&mut Superblock> {
        self.superblock_changed = true;
        self.superblock.as_mut().ok_or(OpError::Refused(FsError::WrongCluster))
    }

    pub(crate) fn set_superblock(&mut self, superblock: Superblock) {
        self.superblock_changed = true;
        self.superblock = Some(superblock);
    }

    /// What the current command wrote stays.
    pub(crate) fn keep(&mut self) {
        self.overlay.keep();
        if self.superblock_before != self.superblock {
            self.superblock_before.clone_from(&self.superblock);
        }
    }

    /// What the current command wrote is taken back.
    pub(crate) fn undo(&mut self) {
        self.overlay.undo();
        self.superblock.clone_from(&self.superblock_before);
    }

    /// All writes of the batch, to be carried out atomically.
    #[must_use]
    pub fn into_writes(mut self) -> Vec<Write> {
        if self.superblock_changed
            && let Some(superblock) = &self.superblock
        {
            self.overlay.put(Family::System, keys::superblock(), Some(superblock.encode()));
        }
        self.overlay.into_writes()
    }

    pub(crate) fn put(&mut self, family: Family, key: Vec<u8>, record: &impl Record) {
        self.overlay.put(family, key, Some(record.encode()));
    }

    pub(crate) fn put_bytes(&mut self, family: Family, key: Vec<u8>, value: Vec<u8>) {
        self.overlay.put(family, key, Some(value));
    }

    pub(crate) fn mark(&mut self, key: Vec<u8>) {
        self.put(Family::System, key, &Marker);
    }

    pub(crate) fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.overlay.put(family, key, None);
    }

    pub(crate) fn load<R: Record>(&self, family: Family, key: &[u8]) -> OpResult<Option<R>> {
        Ok(load(self, family, key)?)
    }

    /// All records of a range; for ranges that are known to be short, or with a `limit`.
    pub(crate) fn collect(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> OpResult<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut found = Vec::new();
        self.scan(family, from, to, &mut |key, value| {
            if found.len() == limit {
                return ControlFlow::Break(());
            }
            found.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// All records whose keys begin with `prefix`, up to `limit`.
    pub(crate) fn collect_prefix(
        &self,
        family: Family,
        prefix: &[u8],
        limit: usize,
    ) -> OpResult<Vec<(Vec<u8>, Vec<u8>)>> {
        self.collect(family, prefix, &prefix_end(prefix), limit)
    }

    /// An inode that must exist; `Stale` if it doesn't.
    pub(crate) fn inode(&self, ino: InodeId) -> OpResult<InodeRecord> {
        self.load(Family::Inodes, &keys::inode(ino))?.ok_or(OpError::Refused(FsError::Stale))
    }

    /// A directory that must exist and have a name; `NotFound` if it was removed, as POSIX has it for names in one.
    pub(crate) fn directory(&self, ino: InodeId) -> OpResult<InodeRecord> {
        let record: InodeRecord =
            self.load(Family::Inodes, &keys::inode(ino))?.ok_or(OpError::Refused(FsError::NotFound))?;
        if !record.is_directory() {
            return Err(FsError::NotDirectory.into());
        }
        if record.nlink == 0 {
            return Err(FsError::NotFound.into());
        }
        Ok(record)
    }

    pub(crate) fn put_inode(&mut self, ino: InodeId, record: &InodeRecord) {
        self.put(Family::Inodes, keys::inode(ino), record);
    }

    pub(crate) fn find(&self, parent: InodeId, name: &[u8]) -> OpResult<Option<FoundEntry>> {
        let hash_key = self.volume()?.hash_key;
        Ok(find_entry(self, hash_key, parent, name)?)
    }

    /// Writes an entry that must not exist, and its parent record.
    pub(crate) fn insert_entry(
        &mut self,
        parent: InodeId,
        name: &bytes::Bytes,
        ino: InodeId,
        kind: crate::attributes::FileKind,
    ) -> OpResult<()> {
        let (hash_key, birth) = (self.volume()?.hash_key, self.volume()?.epoch);
        let hash = keys::name_hash(hash_key, name);
        let mut collision = 0u16;
        loop {
            let key = keys::entry(parent, hash, collision);
            match self.load::<EntryRecord>(Family::Names, &key)? {
                None | Some(EntryRecord::Removed) => {
                    self.put(
                        Family::Names,
                        key,
                        &EntryRecord::Entry { name: name.clone(), ino, kind, birth },
                    );
                    self.put(Family::Names, keys::parent(ino, parent, name), &Marker);
                    return Ok(());
                }
                Some(EntryRecord::Entry { .. }) => {
                    collision += 1;
                    if collision == keys::COLLISIONS_MAX {
                        return Err(FsError::NoSpace.into());
                    }
                }
            }
        }
    }

    /// Removes an entry that was found, and its parent record.
    pub(crate) fn remove_entry(&mut self, parent: InodeId, name: &[u8], found: &FoundEntry) -> OpResult<()> {
        let hash = keys::name_hash(self.volume()?.hash_key, name);
        // Collision indexes have no order to keep, but while a name with the same hash remains, index 0 must
        // not be empty: lookups end there.
        let next = keys::entry(parent, hash, 1);
        let end = keys::entry_at(parent, keys::cookie(hash, keys::COLLISIONS_MAX - 1) + 1);
        let others = self.collect(Family::Names, &next, &end, 2)?;
        if found.collision == 0 {
            if others.is_empty() {
                self.delete(Family::Names, found.key.clone());
            } else {
                self.put(Family::Names, found.key.clone(), &EntryRecord::Removed);
            }
        } else {
            self.delete(Family::Names, found.key.clone());
            let first = keys::entry(parent, hash, 0);
            if others.len() == 1
                && self.load::<EntryRecord>(Family::Names, &first)? == Some(EntryRecord::Removed)
            {
                self.delete(Family::Names, first);
            }
        }
        self.delete(Family::Names, keys::parent(found.ino, parent, name));
        Ok(())
    }

    pub(crate) fn chunk(&self, chunk: ChunkId) -> OpResult<Option<ChunkRecord>> {
        self.load(Family::System, &keys::chunk(chunk))
    }

    pub(crate) fn put_chunk(&mut self, chunk: ChunkId, record: &ChunkRecord) {
        self.put(Family::System, keys::chunk(chunk), record);
    }

    /// Changes what a server has to do to its replica of `chunk`.
    pub(crate) fn task(
        &mut self,
        server: ServerId,
        chunk: ChunkId,
        change: impl FnOnce(&mut TaskRecord),
    ) -> OpResult<()> {
        let key = keys::task(server, chunk);
        let mut task: TaskRecord = self.load(Family::System, &key)?.unwrap_or_default();
        change(&mut task);
        if task == TaskRecord::default() {
            self.delete(Family::System, key);
        } else {
            self.put(Family::System, key, &task);
        }
        Ok(())
    }

    /// Segments of `ino` from `from` on, up to `limit`.
    pub(crate) fn segments_from(
        &self,
        ino: InodeId,
        from: SegmentIndex,
        limit: usize,
    ) -> OpResult<Vec<(SegmentIndex, Vec<u8>)>> {
        let end = prefix_end(&keys::inode(ino));
        let found = self.collect(Family::Extents, &keys::segment(ino, from), &end, limit)?;
        Ok(found.into_iter().filter_map(|(key, value)| Some((keys::segment_of(&key)?, value))).collect())
    }
}

/// The next number of a counter that hands out each once; `Io` if there is none left, which only damage brings about.
pub(crate) fn take_number(next: &mut u64) -> OpResult<u64> {
    let number = *next;
    *next = number.checked_add(1).ok_or(FsError::Io)?;
    Ok(number)
}

/// The time of a change to an inode: never before its last one, so that ctime orders changes even if a
/// client's clock is behind.
pub(crate) fn change_time(now: Timestamp, record: &InodeRecord) -> Timestamp {
    now.max(record.ctime.next())
}
