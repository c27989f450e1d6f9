//! Writers that keep a record, outside the mount, of what they were promised.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes of one entry of a log file: its number, repeated.
const ENTRY_BYTES: usize = 512;

/// What must be there after the cut.
#[derive(Default, Debug, Clone)]
pub struct Record {
    /// Round, so that each load uses names of its own.
    round: u64,
    /// Files whose content was synced, with a hash of it. Nothing writes them later.
    synced: BTreeMap<String, (usize, u64)>,
    /// Files that were replaced by rename: the last content that was synced, and all that were under way.
    replaced: BTreeMap<String, (u64, u64)>,
    /// Log files, written entry by entry: entries that were synced, entries that were written.
    logs: BTreeMap<String, (u64, u64)>,
    /// Folders in which files 0, 1, 2, … were made: how many were synced, how many were made.
    sequences: BTreeMap<String, (u64, u64)>,
    /// Files overwritten in place in blocks, each with a counter: by block, the last synced and the last written.
    blocks: BTreeMap<String, Vec<(u64, u64)>>,
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::Hasher;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn entry(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(ENTRY_BYTES / 8)
}

/// What writers and those who disturb them know of each other.
#[derive(Default)]
pub struct Watch {
    stop: AtomicBool,
    /// Writers that are within a sync now.
    syncing: AtomicU64,
    /// Syncs that have returned.
    synced: AtomicU64,
}

impl Watch {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn sync(&self, file: &File, sync: fn(&File) -> io::Result<()>) -> io::Result<()> {
        self.syncing.fetch_add(1, Ordering::SeqCst);
        let result = sync(file);
        self.syncing.fetch_sub(1, Ordering::SeqCst);
        self.synced.fetch_add(1, Ordering::SeqCst);
        result
    }

    fn sync_all(&self, file: &File) -> io::Result<()> {
        self.sync(file, File::sync_all)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.sync(file, File::sync_data)
    }
}

/// A load under way.
pub struct Load {
    watch: Arc<Watch>,
    threads: Vec<std::thread::JoinHandle<(Record, io::Result<()>)>>,
    record: Record,
}

impl Load {
    /// Whether a writer is within a sync at this moment.
    pub fn is_syncing(&self) -> bool {
        self.watch.syncing.load(Ordering::SeqCst) > 0
    }

    /// Syncs that have returned.
    pub fn synced(&self) -> u64 {
        self.watch.synced.load(Ordering::SeqCst)
    }

    /// Waits for the writers, whose mount is dead by now: that is the error that ends each.
    pub fn finish(self) -> Record {
        self.end().0
    }

    /// Ends the writers. Their record, and the errors that they got.
    pub fn end(self) -> (Record, Vec<io::Error>) {
        self.watch.stop.store(true, Ordering::Relaxed);
        let mut record = self.record;
        let mut errors = Vec::new();
        for thread in self.threads {
            let (part, result) = thread.join().unwrap();
            errors.extend(result.err());
            record.synced.extend(part.synced);
            record.replaced.extend(part.replaced);
            record.logs.extend(part.logs);
            record.sequences.extend(part.sequences);
            record.blocks.extend(part.blocks);
        }
        (record, errors)
    }
}

type Writer = fn(&Path, u64, &mut StdRng, &mut Record, &Watch) -> io::Result<()>;

impl Record {
    /// Starts the writers; each goes on until its mount fails or the load is finished.
    pub fn start_load(&self, mountpoint: &Path, seed: u64) -> Load {
        let mut record = self.clone();
        record.round += 1;
        let round = record.round;
        let watch = Arc::new(Watch::default());
        let writers: [Writer; 6] =
            [synced_files, synced_files, replaced_file, log_file, sequence, overwritten_blocks];
        let threads = writers
            .into_iter()
            .enumerate()
            .map(|(number, writer)| {
                let (root, watch) = (mountpoint.to_owned(), Arc::clone(&watch));
                std::thread::spawn(move || {
                    let mut rng = StdRng::seed_from_u64(seed ^ number as u64);
                    let mut record = Record::default();
                    let result = writer(&root, round * 10 + number as u64, &mut rng, &mut record, &watch);
                    (record, result)
                })
            })
            .collect();
        Load { watch, threads, record }
    }

    /// Removes all files and begins anew, so that what has to be verified stays little.
    pub fn begin_anew(&mut self, mountpoint: &Path) -> io::Result<()> {
        for entry in fs::read_dir(mountpoint)? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        *self = Record { round: self.round, ..Record::default() };
        Ok(())
    }

    /// Checks everything that was promised.
    pub fn verify(&self, mountpoint: &Path) -> Result<(), String> {
        let read = |name: &str| -> Result<Vec<u8>, String> {
            let mut content = Vec::new();
            File::open(mountpoint.join(name))
                .and_then(|mut file| file.read_to_end(&mut content))
                .map_err(|error| format!("{name}: {error}"))?;
            Ok(content)
        };
        for (name, (length, wanted)) in &self.synced {
            let content = read(name)?;
            if content.len() != *length || hash(&content) != *wanted {
                return Err(format!(
                    "{name} was synced with {length} bytes and has other content ({} bytes)",
                    content.len()
                ));
            }
        }
        for (name, (synced, written)) in &self.replaced {
            let found = number_of(&read(name)?).ok_or_else(|| format!("{name} is torn or empty"))?;
            if found < *synced || found > *written {
                return Err(format!("{name} holds version {found}, version {synced} was synced"));
            }
        }
        for (name, (synced, written)) in &self.logs {
            if *written == 0 && !mountpoint.join(name).exists() {
                continue;
            }
            let content =
                read(name).or_else(|error| if *synced == 0 { Ok(Vec::new()) } else { Err(error) })?;
            let entries = (content.len() / ENTRY_BYTES) as u64;
            if entries < *synced || entries > *written {
                return Err(format!("{name} has {entries} entries, {synced} were synced, {written} written"));
            }
            for at in 0..entries {
                if content[at as usize * ENTRY_BYTES..][..ENTRY_BYTES] != entry(at)[..] {
                    return Err(format!("{name}: entry {at} of {entries} isn't what was written: no prefix"));
                }
            }
        }
        for (name, (synced, made)) in &self.sequences {
            let found = match fs::read_dir(mountpoint.join(name)) {
                Ok(entries) => entries.count() as u64,
                Err(_) if *synced == 0 => 0,
                Err(error) => return Err(format!("{name}: {error}")),
            };
            if found < *synced || found > *made {
                return Err(format!("{name} has {found} files, {synced} were synced, {made} made"));
            }
            for at in 0..found {
                if !mountpoint.join(name).join(at.to_string()).exists() {
                    return Err(format!("{name}: file {at} of {found} is missing: no prefix"));
                }
            }
        }
        for (name, blocks) in &self.blocks {
            if blocks.iter().all(|(synced, _)| *synced == 0) {
                continue;
            }
            let content = read(name)?;
            for (at, (synced, written)) in blocks.iter().enumerate() {
                let Some(block) = content.get(at * 4096..(at + 1) * 4096) else {
                    if *synced == 0 {
                        continue;
                    }
                    return Err(format!("{name}: block {at} was synced and is missing"));
                };
                let found = number_of(block).ok_or_else(|| format!("{name}: block {at} is torn"))?;
                if found < *synced || found > *written {
                    return Err(format!("{name}: block {at} holds {found}, {synced} was synced"));
                }
            }
        }
        Ok(())
    }
}

/// The number that all eight-byte words of a buffer hold.
fn number_of(bytes: &[u8]) -> Option<u64> {
    let first = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes.len().is_multiple_of(8) && bytes.chunks(8).all(|word| word == first.to_le_bytes()))
        .then_some(first)
}

fn synced_files(
    root: &Path,
    id: u64,
    rng: &mut StdRng,
    record: &mut Record,
    watch: &Watch,
) -> io::Result<()> {
    for at in 0.. {
        if watch.stopped() {
            break;
        }
        let name = format!("synced-{id}-{at}");
        let length = [10, 3000, 16_384, 16_385, 100_000, 1_500_000][rng.random_range(0..6)];
        let mut content = vec![0; length];
        rng.fill(&mut content[..]);
        let mut file = File::create(root.join(&name))?;
        file.write_all(&content)?;
        if rng.random_bool(0.5) {
            watch.sync_all(&file)?;
        } else {
            watch.sync_data(&file)?;
        }
        record.synced.insert(name, (length, hash(&content)));
    }
    Ok(())
}

fn replaced_file(
    root: &Path,
    id: u64,
    rng: &mut StdRng,
    record: &mut Record,
    watch: &Watch,
) -> io::Result<()> {
    let name = format!("replaced-{id}");
    let temporary: PathBuf = root.join(format!("replaced-{id}.tmp"));
    for version in 1u64.. {
        if watch.stopped() {
            break;
        }
        let words = [8, 2048, 20_000][rng.random_range(0..3)];
        let mut file = File::create(&temporary)?;
        file.write_all(&version.to_le_bytes().repeat(words))?;
        let synced = rng.random_bool(0.5);
        if synced {
            watch.sync_all(&file)?;
        }
        drop(file);
        // Before the first rename there is nothing to find.
        if version > 1 {
            record.replaced.get_mut(&name).unwrap().1 = version;
        }
        fs::rename(&temporary, root.join(&name))?;
        if version == 1 {
            watch.sync_all(&File::open(root)?)?;
            record.replaced.insert(name.clone(), (1, 1));
        } else if synced {
            watch.sync_all(&File::open(root)?)?;
            record.replaced.get_mut(&name).unwrap().0 = version;
        }
    }
    Ok(())
}

fn log_file(root: &Path, id: u64, rng: &mut StdRng, record: &mut Record, watch: &Watch) -> io::Result<()> {
    let name = format!("log-{id}");
    record.logs.insert(name.clone(), (0, 0));
    let mut file = File::create(root.join(&name))?;
    for at in 0u64.. {
        if watch.stopped() {
            break;
        }
        record.logs.get_mut(&name).unwrap().1 = at + 1;
        file.write_all(&entry(at))?;
        if rng.random_range(0..40) == 0 {
            watch.sync_data(&file)?;
            record.logs.get_mut(&name).unwrap().0 = at + 1;
        }
    }
    Ok(())
}

fn sequence(root: &Path, id: u64, rng: &mut StdRng, record: &mut Record, watch: &Watch) -> io::Result<()> {
    let name = format!("sequence-{id}");
    record.sequences.insert(name.clone(), (0, 0));
    let folder = root.join(&name);
    fs::create_dir(&folder)?;
    for at in 0u64.. {
        if watch.stopped() {
            break;
        }
        record.sequences.get_mut(&name).unwrap().1 = at + 1;
        File::create(folder.join(at.to_string()))?;
        if rng.random_range(0..20) == 0 {
            watch.sync_all(&File::open(&folder)?)?;
            record.sequences.get_mut(&name).unwrap().0 = at + 1;
        }
    }
    Ok(())
}

fn overwritten_blocks(
    root: &Path,
    id: u64,
    rng: &mut StdRng,
    record: &mut Record,
    watch: &Watch,
) -> io::Result<()> {
    let name = format!("blocks-{id}");
    let file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(root.join(&name))?;
    record.blocks.insert(name.clone(), vec![(0, 0); 64]);
    let mut counter = 0u64;
    while !watch.stopped() {
        for _ in 0..rng.random_range(1..6) {
            counter += 1;
            let at = rng.random_range(0..64);
            record.blocks.get_mut(&name).unwrap()[at].1 = counter;
            file.write_all_at(&counter.to_le_bytes().repeat(512), at as u64 * 4096)?;
        }
        watch.sync_data(&file)?;
        for block in record.blocks.get_mut(&name).unwrap() {
            block.0 = block.1;
        }
    }
    Ok(())
}
