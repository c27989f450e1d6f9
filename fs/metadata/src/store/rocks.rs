//! The records on disk: RocksDB, one column family for each [`Family`].
//!
//! RocksDB's own log is off. What makes a change durable is the Raft log; the position up to which it was
//! applied is written in the same atomic batch as the changes, and all families are flushed as one. So
//! after a crash the store is exactly the state at some applied position, and the Raft log has what comes after.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

use atoll_core::store::{Family, Read, StoreError, Visit, Write};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, DBRawIterator, DEFAULT_COLUMN_FAMILY_NAME, Env, ErrorKind, FlushOptions, LogLevel,
    Options, ReadOptions, Snapshot, WriteBatch, WriteBufferManager, WriteOptions,
};

/// Bytes of all families' memtables together; above it they are flushed.
pub const MEMTABLE_BYTES_MAX: usize = 12 << 20;
/// Bytes of one family's memtable; above it all are flushed.
const FAMILY_MEMTABLE_BYTES_MAX: usize = 6 << 20;
/// Bytes of blocks, indexes and filters that are kept in memory at least, and, unless said otherwise, at most.
const BLOCK_CACHE_BYTES_MIN: u64 = 8 << 20;
const BLOCK_CACHE_BYTES_MAX: u64 = 128 << 20;
/// The part of the memory that this process may use which the cache has, within these bounds.
const BLOCK_CACHE_DIVISOR: u64 = 32;
/// Bytes of blocks that are kept while a copy is read.
const VERIFY_CACHE_BYTES: usize = 1 << 20;
/// Table files that are held open.
const OPEN_FILES_MAX: i32 = 256;
/// Bytes that a memtable takes from the allocator at a time: small, since there are several memtables and
/// most of them are small most of the time.
const ARENA_BLOCK_BYTES: usize = 64 << 10;
/// Bytes of a table file.
const TABLE_BYTES: u64 = 16 << 20;
/// Bytes of a file of inline values.
const BLOB_FILE_BYTES: u64 = 64 << 20;
/// Inline values of at least this many bytes live in files of their own kind, which compaction doesn't copy.
const BLOB_BYTES_MIN: u64 = 256;
/// Bytes of RocksDB's own log of what it does, per file; it keeps two.
const INFO_LOG_BYTES_MAX: usize = 1 << 20;

/// Bytes read ahead when all of a copy is looked at.
const VERIFY_READAHEAD_BYTES: usize = 1 << 20;

/// An open RocksDB.
pub struct Rocks {
    db: DB,
    cache: Cache,
    // Dropped after the database, which uses it.
    memory: WriteBufferManager,
    /// What was found damaged since it was opened.
    damage: OnceLock<String>,
}

/// Sizes, for metrics (bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RocksSizes {
    /// Memtables, those that are being flushed included.
    pub memtables: u64,
    /// Block cache in use.
    pub cache: u64,
    /// Table files that are part of the state.
    pub tables: u64,
}

fn failed(error: rocksdb::Error) -> StoreError {
    let kind = error.kind();
    let reason = error.into_string();
    // To RocksDB a file that is gone is an error of the system's. Only its own files are meant: a folder that was to be
    // written to may be missing for other reasons.
    let gone = reason.contains("No such file or directory")
        && [".sst", ".blob", "/MANIFEST-"].iter().any(|file| reason.contains(file));
    if kind == ErrorKind::Corruption || gone {
        StoreError::Corrupt(reason)
    } else {
        StoreError::Backend(reason)
    }
}

/// Bytes of blocks, indexes and filters that are kept in memory, unless said otherwise: the more files there are the more a
/// lookup needs, so it is a share of what there is.
#[must_use]
pub fn block_cache_bytes() -> u64 {
    share(memory_limit(Path::new("/")))
}

/// The cache's share of so many bytes of memory.
fn share(memory: Option<u64>) -> u64 {
    memory.map_or(0, |bytes| bytes / BLOCK_CACHE_DIVISOR).clamp(BLOCK_CACHE_BYTES_MIN, BLOCK_CACHE_BYTES_MAX)
}

/// Bytes of memory that this process may use: what its control groups allow, or what the machine has. `root`: where the
/// system's files are.
fn memory_limit(root: &Path) -> Option<u64> {
    let machine = std::fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    });
    // In a container its own group is the root.
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let limits = Path::new(own).ancestors().filter_map(|group| {
        let file = root.join("sys/fs/cgroup").join(group).join("memory.max");
        std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()
    });
    limits.chain(machine).min()
}

/// Whether the disk is full.
#[must_use]
pub fn is_no_space(error: &StoreError) -> bool {
    let full = ["No space left", "Disk quota exceeded"];
    matches!(error, StoreError::Backend(reason) if full.iter().any(|text| reason.contains(text)))
}

fn family_options(family: Family, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(8 << 10);
    table.set_format_version(6);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(true);
    table.set_optimize_filters_for_memory(true);
    // Indexes and filters of a big store don't fit into memory: they are cut into blocks and cached like data.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(4 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);

    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(FAMILY_MEMTABLE_BYTES_MAX);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_target_file_size_base(TABLE_BYTES);
    options.set_max_bytes_for_level_base(4 * TABLE_BYTES);
    options.set_level_compaction_dynamic_level_bytes(true);
    if family == Family::Inline {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN);
        options.set_blob_file_size(BLOB_FILE_BYTES);
        options.set_blob_compression_type(DBCompressionType::Lz4);
        options.set_enable_blob_gc(true);
        options.set_blob_gc_age_cutoff(0.5);
        options.set_blob_gc_force_threshold(0.5);
    }
    options
}

impl Rocks {
    /// Opens the store in `dir`, or makes it. So many bytes of what is read are kept in memory.
    ///
    /// # Errors
    /// If RocksDB can't open it.
    pub fn open(dir: &Path, block_cache_bytes: u64) -> Result<Rocks, StoreError> {
        let cache = Cache::new_lru_cache(usize::try_from(block_cache_bytes).unwrap_or(usize::MAX));
        let memory = WriteBufferManager::new_write_buffer_manager(MEMTABLE_BYTES_MAX, false);
        let mut env = Env::new().map_err(failed)?;
        env.set_low_priority_background_threads(1);
        env.set_high_priority_background_threads(1);

        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_env(&env);
        options.set_atomic_flush(true);
        options.set_write_buffer_manager(&memory);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_max_background_jobs(2);
        options.set_bytes_per_sync(1 << 20);
        // Opening must not take longer the more there is.
        options.set_skip_stats_update_on_db_open(true);
        options.set_max_manifest_file_size(4 << 20);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_log_level(LogLevel::Warn);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(INFO_LOG_BYTES_MAX);

        // RocksDB always has this one; nothing is in it. After the disk was full RocksDB goes on only when the largest
        // memtable that any family may have finds room, which would be its default of 64 MiB.
        let mut unused = Options::default();
        unused.set_write_buffer_size(FAMILY_MEMTABLE_BYTES_MAX);
        let unused = ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, unused);
        let families = Family::ALL
            .into_iter()
            .map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache)));
        let db = DB::open_cf_descriptors(&options, dir, families.chain([unused])).map_err(failed)?;
        Ok(Rocks { db, cache, memory, damage: OnceLock::new() })
    }

    /// Reads every record in `dir`, so that each block's checksum is looked at. What is there stays as it is. `read` is
    /// told every now and then how many bytes those were since the last time; it may wait, and may end it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a block is not what was written; if RocksDB can't read.
    pub fn verify(dir: &Path, read: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<(), StoreError> {
        let cache = Cache::new_lru_cache(VERIFY_CACHE_BYTES);
        let mut options = Options::default();
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_skip_stats_update_on_db_open(true);
        let families = Family::ALL
            .into_iter()
            .map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache)));
        let db = DB::open_cf_descriptors_read_only(&options, dir, families, false).map_err(failed)?;
        for family in Family::ALL {
            let Some(family) = db.cf_handle(family.name()) else {
                return Err(StoreError::Corrupt(format!("the column family {} is missing", family.name())));
            };
            let mut options = ReadOptions::default();
            options.fill_cache(false);
            options.set_readahead_size(VERIFY_READAHEAD_BYTES);
            let (mut bytes, mut goes_on) = (0, ControlFlow::Continue(()));
            Rocks::visit(db.raw_iterator_cf_opt(family, options), &[], &mut |key, value| {
                bytes += (key.len() + value.len()) as u64;
                if bytes >= VERIFY_READAHEAD_BYTES as u64 {
                    goes_on = read(std::mem::take(&mut bytes));
                }
                goes_on
            })
            .map_err(failed)?;
            if goes_on.is_break() {
                break;
            }
        }
        drop(db);
        // RocksDB says there what it has done, which is no part of the copy.
        let _ = std::fs::remove_file(dir.join("LOG"));
        Ok(())
    }

    /// What was found damaged since it was opened, if anything.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    /// As [`failed`], and takes note of damage.
    fn failed(&self, error: rocksdb::Error) -> StoreError {
        let error = failed(error);
        self.note(&error);
        error
    }

    fn note(&self, error: &StoreError) {
        if matches!(error, StoreError::Corrupt(_)) && self.damage.set(error.to_string()).is_ok() {
            tracing::error!(%error, "the metadata store of this server is damaged");
        }
    }

    fn family(&self, family: Family) -> Result<&ColumnFamily, StoreError> {
        self.db
            .cf_handle(family.name())
            .ok_or_else(|| StoreError::Backend(format!("the column family {} is missing", family.name())))
    }

    /// Carries a batch out, whole or not at all. It is durable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// If RocksDB refuses; on a full disk ([`is_no_space`]) it can be tried again.
    pub fn write(&self, writes: &[Write]) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for (family, key, value) in writes {
            let family = self.family(*family)?;
            match value {
                Some(value) => batch.put_cf(family, key, value),
                None => batch.delete_cf(family, key),
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(batch, &options).map_err(|error| self.failed(error))
    }

    /// Makes everything durable that was written before, all families at the same point.
    ///
    /// # Errors
    /// If RocksDB can't write.
    pub fn flush(&self) -> Result<(), StoreError> {
        let families =
            Family::ALL.into_iter().map(|family| self.family(family)).collect::<Result<Vec<_>, _>>()?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_cfs_opt(&families, &options).map_err(|error| self.failed(error))
    }

    /// Makes a copy of the state as files in `dir`, which must not exist. Table files are linked, not copied,
    /// where the filesystem can; so what is damaged would be damaged in the copy.
    ///
    /// # Errors
    /// If RocksDB can't write.
    pub fn checkpoint(&self, dir: &Path) -> Result<(), StoreError> {
        // A checkpoint alone would have every family at a point of its own.
        self.flush()?;
        Checkpoint::new(&self.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(dir))
            .map_err(|error| self.failed(error))
    }

    /// Reads every block of a [`checkpoint`](Self::checkpoint) of these records, as [`verify`](Self::verify) does. What it
    /// finds is damage of these records, since the files are the same.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a block is not what was written; if RocksDB can't read.
    pub fn verify_checkpoint(
        &self,
        dir: &Path,
        read: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        Rocks::verify(dir, read).inspect_err(|error| self.note(error))
    }

    /// The records as they are now, unchanged by later writes.
    #[must_use]
    pub fn snapshot(&self) -> RocksSnapshot<'_> {
        RocksSnapshot { store: self, snapshot: self.db.snapshot() }
    }

    /// How much memory and disk it uses.
    #[must_use]
    pub fn sizes(&self) -> RocksSizes {
        let mut tables = 0;
        for family in Family::ALL {
            for property in ["rocksdb.live-sst-files-size", "rocksdb.live-blob-file-size"] {
                let size = self
                    .family(family)
                    .ok()
                    .and_then(|family| self.db.property_int_value_cf(family, property).ok().flatten());
                tables += size.unwrap_or(0);
            }
        }
        RocksSizes { memtables: self.memory.get_usage() as u64, cache: self.cache.get_usage() as u64, tables }
    }

    fn visit(
        mut iterator: DBRawIterator<'_>,
        from: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<(), rocksdb::Error> {
        iterator.seek(from);
        while let Some((key, value)) = iterator.item() {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
            iterator.next();
        }
        iterator.status()
    }
}

fn up_to(to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    options
}

impl Read for Rocks {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(self.family(family)?, key).map_err(|error| self.failed(error))
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        Rocks::visit(self.db.raw_iterator_cf_opt(self.family(family)?, up_to(to)), from, visit)
            .map_err(|error| self.failed(error))
    }
}

/// A view of a [`Rocks`] that later writes don't change. Cheap to make; old values are kept while it lives.
pub struct RocksSnapshot<'a> {
    store: &'a Rocks,
    snapshot: Snapshot<'a>,
}

impl Read for RocksSnapshot<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.snapshot.get_cf(self.store.family(family)?, key).map_err(|error| self.store.failed(error))
    }

    fn get_many(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        let family = self.store.family(family)?;
        let found = self.store.db.batched_multi_get_cf_opt(family, keys, false, &options);
        found
            .into_iter()
            .map(|value| match value {
                Ok(value) => Ok(value.map(|value| value.to_vec())),
                Err(error) => Err(self.store.failed(error)),
            })
            .collect()
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        Rocks::visit(self.snapshot.raw_iterator_cf_opt(self.store.family(family)?, up_to(to)), from, visit)
            .map_err(|error| self.store.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::store::{MemStore, Overlay, prefix_end};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Every record of `store`, family by family.
    fn dump(store: &dyn Read) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        for family in Family::ALL {
            store
                .scan(family, &[], &prefix_end(&[]), &mut |key, value| {
                    all.push((family, key.to_vec(), value.to_vec()));
                    ControlFlow::Continue(())
                })
                .unwrap();
        }
        all
    }

    fn random_batch(random: &mut StdRng) -> Vec<Write> {
        (0..random.random_range(1..20))
            .map(|_| {
                let family = Family::ALL[random.random_range(0..Family::ALL.len())];
                let key = vec![random.random_range(0..4u8), random.random_range(0..16u8)];
                let value = random.random_bool(0.7).then(|| vec![7; random.random_range(0..600)]);
                (family, key, value)
            })
            .collect()
    }

    #[test]
    fn it_behaves_like_the_ordered_map() {
        let dir = tempfile::tempdir().unwrap();
        let rocks = Rocks::open(dir.path(), BLOCK_CACHE_BYTES_MIN).unwrap();
        let mut memory = MemStore::default();
        let mut random = StdRng::seed_from_u64(7);
        for round in 0..300 {
            let batch = random_batch(&mut random);
            rocks.write(&batch).unwrap();
            memory.write(batch);
            if round % 50 == 0 {
                rocks.flush().unwrap();
            }
            let (from, to) = (vec![random.random_range(0..4u8)], vec![random.random_range(0..5u8), 3]);
            for family in Family::ALL {
                let mut seen = [Vec::new(), Vec::new()];
                for (seen, store) in seen.iter_mut().zip([&rocks as &dyn Read, &memory]) {
                    let limit = round % 7;
                    store
                        .scan(family, &from, &to, &mut |key, _| {
                            seen.push(key.to_vec());
                            if seen.len() > limit {
                                ControlFlow::Break(())
                            } else {
                                ControlFlow::Continue(())
                            }
                        })
                        .unwrap();
                }
                assert_eq!(seen[0], seen[1]);
                assert_eq!(rocks.get(family, &from).unwrap(), memory.get(family, &from).unwrap());
            }
        }
        assert_eq!(dump(&rocks), dump(&memory));
        drop(rocks);
        assert_eq!(dump(&Rocks::open(dir.path(), BLOCK_CACHE_BYTES_MIN).unwrap()), dump(&memory));
    }

    #[test]
    fn a_snapshot_does_not_change_and_carries_an_overlay() {
        let dir = tempfile::tempdir().unwrap();
        let rocks = Rocks::open(dir.path(), BLOCK_CACHE_BYTES_MIN).unwrap();
        rocks.write(&[(Family::Names, b"a".to_vec(), Some(b"1".to_vec()))]).unwrap();
        let snapshot = rocks.snapshot();
        rocks
            .write(&[(Family::Names, b"a".to_vec(), None), (Family::Names, b"b".to_vec(), Some(vec![2]))])
            .unwrap();
        assert_eq!(snapshot.get(Family::Names, b"a").unwrap(), Some(b"1".to_vec()));
        let keys = [b"b".to_vec(), b"a".to_vec(), b"b".to_vec()];
        assert_eq!(snapshot.get_many(Family::Names, &keys).unwrap(), [None, Some(b"1".to_vec()), None]);
        let mut overlay = Overlay::new(&snapshot);
        overlay.put(Family::Names, b"c".to_vec(), Some(vec![3]));
        assert_eq!(dump(&overlay).len(), 2);
        assert_eq!(dump(&rocks).len(), 1);
    }

    #[test]
    fn damage_is_found_and_not_handed_on() {
        let dir = tempfile::tempdir().unwrap();
        let rocks = Rocks::open(&dir.path().join("a"), BLOCK_CACHE_BYTES_MIN).unwrap();
        let mut random = StdRng::seed_from_u64(3);
        for number in 0..6000u32 {
            let value: Vec<u8> = (0..300).map(|_| random.random()).collect();
            rocks.write(&[(Family::Names, number.to_be_bytes().to_vec(), Some(value))]).unwrap();
        }
        let good = dir.path().join("good");
        rocks.checkpoint(&good).unwrap();
        let mut told = 0;
        let mut read = |bytes| {
            told += bytes;
            ControlFlow::Continue(())
        };
        rocks.verify_checkpoint(&good, &mut read).unwrap();
        assert!(told > 0, "nobody could make it slower");
        let mut times = 0;
        let mut once = |_| {
            times += 1;
            ControlFlow::Break(())
        };
        rocks.verify_checkpoint(&good, &mut once).unwrap();
        assert_eq!(times, 1);
        assert_eq!(rocks.damage(), None);
        let tables: Vec<_> = std::fs::read_dir(dir.path().join("a"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
            .collect();
        let table = tables.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(table).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x55; 64], table.metadata().unwrap().len() / 2)
            .unwrap();
        let bad = dir.path().join("bad");
        rocks.checkpoint(&bad).unwrap();
        let error = rocks.verify_checkpoint(&bad, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
        assert!(rocks.damage().is_some());
    }

    #[test]
    fn a_checkpoint_holds_all_families() {
        let dir = tempfile::tempdir().unwrap();
        let rocks = Rocks::open(&dir.path().join("a"), BLOCK_CACHE_BYTES_MIN).unwrap();
        for family in Family::ALL {
            rocks.write(&[(family, b"k".to_vec(), Some(vec![9; 1000]))]).unwrap();
        }
        rocks.checkpoint(&dir.path().join("b")).unwrap();
        let copy = Rocks::open(&dir.path().join("b"), BLOCK_CACHE_BYTES_MIN).unwrap();
        assert_eq!(dump(&copy), dump(&rocks));
        assert_eq!(dump(&copy).len(), Family::ALL.len());
    }

    #[test]
    fn the_cache_has_a_share_of_the_memory_that_the_process_may_use() {
        assert_eq!(share(None), BLOCK_CACHE_BYTES_MIN);
        assert_eq!(share(Some(64 << 20)), BLOCK_CACHE_BYTES_MIN);
        assert_eq!(share(Some(1 << 30)), 32 << 20);
        assert_eq!(share(Some(1 << 40)), BLOCK_CACHE_BYTES_MAX);
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(memory_limit(dir.path()), None);
        put("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  5 kB\n");
        assert_eq!(memory_limit(dir.path()), Some(16 << 30));
        put("proc/self/cgroup", "0::/pods/one\n");
        put("sys/fs/cgroup/pods/one/memory.max", "max\n");
        assert_eq!(memory_limit(dir.path()), Some(16 << 30));
        put("sys/fs/cgroup/pods/memory.max", "1073741824\n");
        assert_eq!(memory_limit(dir.path()), Some(1 << 30), "of all pods together");
        put("proc/self/cgroup", "0::/\n");
        put("sys/fs/cgroup/memory.max", "536870912\n");
        assert_eq!(memory_limit(dir.path()), Some(512 << 20), "in a container");
    }
}
