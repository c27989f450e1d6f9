//! A disk in memory, for tests and simulations, that loses power: what was not synced survives in part.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;

use crate::disk::{Disk, DiskFile};

#[derive(Debug, Default)]
struct Content {
    durable: Arc<Vec<u8>>,
    now: Arc<Vec<u8>>,
    pending: Vec<(usize, Written)>,
}

/// What was written and isn't synced.
#[derive(Debug)]
enum Written {
    Bytes(Vec<u8>),
    /// So many: log segments begin as nothing else, and a simulation makes many.
    Zeroes(usize),
}

impl Written {
    fn of(parts: &[&[u8]]) -> Written {
        if parts.iter().all(|part| part.iter().all(|byte| *byte == 0)) {
            return Written::Zeroes(parts.iter().map(|part| part.len()).sum());
        }
        Written::Bytes(parts.concat())
    }

    fn apply(&self, to: &mut Vec<u8>, offset: usize) {
        match self {
            Written::Bytes(bytes) => write(to, offset, bytes),
            // Memory that was never touched is zeroes already.
            Written::Zeroes(count) if to.is_empty() => *to = vec![0; offset + count],
            Written::Zeroes(count) => {
                let end = to.len().min(offset + count);
                if offset < end {
                    to[offset..end].fill(0);
                }
                if to.len() < offset + count {
                    to.resize(offset + count, 0);
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(PathBuf, u64),
    Remove(PathBuf),
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    files: HashMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Each a set of changes that happen together.
    pending_names: Vec<Vec<NameChange>>,
    /// Changes until the power goes.
    left: u64,
    /// Syncing does nothing.
    lies: bool,
    /// Bytes that may be reserved.
    room: Option<u64>,
}

/// See the module. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: u64,
}

fn gone() -> io::Error {
    io::Error::other("the power is gone")
}

fn write(to: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if to.len() < offset + bytes.len() {
        to.resize(offset + bytes.len(), 0);
    }
    to[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn apply_names(names: &mut BTreeMap<PathBuf, u64>, changes: &[NameChange]) {
    for change in changes {
        match change {
            NameChange::Set(path, id) => {
                names.insert(path.clone(), *id);
            }
            NameChange::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

impl SimDisk {
    /// A new disk whose power goes after `left` changes; if it `lies`, syncing does nothing.
    #[must_use]
    pub fn new(left: u64, lies: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner { left, lies, ..Inner::default() })))
    }

    /// Sets how many bytes can still be reserved.
    pub fn set_room(&self, room: Option<u64>) {
        self.0.lock().room = room;
    }

    /// Nothing is written from now on: every change fails.
    pub fn cut_power(&self) {
        self.0.lock().left = 0;
    }

    /// What the disk holds when the power is back: everything that was synced, and of the rest
    /// some writes in part and the first few changes of names.
    #[must_use]
    pub fn after_power_cut(&self, rng: &mut StdRng, left: u64) -> Self {
        let mut inner = self.0.lock();
        inner.left = 0;
        let mut names = inner.durable_names.clone();
        let survived = rng.random_range(0..=inner.pending_names.len());
        for changes in &inner.pending_names[..survived] {
            apply_names(&mut names, changes);
        }
        let mut files = HashMap::new();
        for (id, content) in &inner.files {
            let mut durable = content.durable.clone();
            let lost = rng.random_range(0..3);
            for (offset, pending) in &content.pending {
                // All, nothing, or pieces of it.
                let piece = [8, 64, 512][rng.random_range(0..3)];
                let zeroes;
                let pending = match pending {
                    Written::Bytes(bytes) => bytes,
                    Written::Zeroes(count) => {
                        zeroes = vec![0; *count];
                        &zeroes
                    }
                };
                for (i, part) in pending.chunks(piece).enumerate() {
                    let keep = match lost {
                        0 => true,
                        1 => false,
                        _ => rng.random_bool(0.5),
                    };
                    if keep {
                        write(Arc::make_mut(&mut durable), offset + i * piece, part);
                    }
                }
            }
            files.insert(*id, Content { now: durable.clone(), durable, pending: Vec::new() });
        }
        Self(Arc::new(Mutex::new(Inner {
            next_id: inner.next_id,
            files,
            durable_names: names.clone(),
            names,
            pending_names: Vec::new(),
            left,
            lies: inner.lies,
            room: None,
        })))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.0.lock();
        if inner.left == 0 {
            return Err(gone());
        }
        inner.left -= 1;
        change(&mut inner)
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.change(|inner| {
            inner.next_id += 1;
            let id = inner.next_id;
            inner.files.insert(id, Content::default());
            let changes = vec![NameChange::Set(path.to_owned(), id)];
            apply_names(&mut inner.names, &changes);
            inner.pending_names.push(changes);
            Ok(id)
        })?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.0.lock();
        let id = *inner.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|inner| {
            let id = *inner.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            let changes = vec![NameChange::Remove(from.to_owned()), NameChange::Set(to.to_owned(), id)];
            apply_names(&mut inner.names, &changes);
            inner.pending_names.push(changes);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|inner| {
            let changes = vec![NameChange::Remove(path.to_owned())];
            apply_names(&mut inner.names, &changes);
            inner.pending_names.push(changes);
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.0.lock();
        Ok(inner
            .names
            .keys()
            .filter(|path| path.parent() == Some(dir))
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.change(|inner| {
            if !inner.lies {
                inner.pending_names.clear();
                inner.durable_names = inner.names.clone();
            }
            Ok(())
        })
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.disk.0.lock();
        let now = &inner.files[&self.id].now;
        let from = now.len().min(offset as usize);
        let n = buf.len().min(now.len() - from);
        buf[..n].copy_from_slice(&now[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let written = Written::of(parts);
        let mut inner = self.disk.0.lock();
        if inner.left == 0 {
            return Err(gone());
        }
        inner.left -= 1;
        // The write during which the power goes may come through in part.
        let last = inner.left == 0;
        let content = inner.files.get_mut(&self.id).ok_or_else(gone)?;
        written.apply(Arc::make_mut(&mut content.now), offset as usize);
        content.pending.push((offset as usize, written));
        if last { Err(gone()) } else { Ok(()) }
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        if let Some(room) = &mut inner.room {
            *room = room.checked_sub(len).ok_or(io::ErrorKind::StorageFull)?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change(|inner| {
            if !inner.lies {
                let content = inner.files.get_mut(&self.id).ok_or_else(gone)?;
                let durable = Arc::make_mut(&mut content.durable);
                for (offset, written) in content.pending.drain(..) {
                    written.apply(durable, offset);
                }
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().files[&self.id].now.len() as u64)
    }
}
