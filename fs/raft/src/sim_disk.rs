//! A disk in memory, for tests and simulations, that loses power: what was not synced survives in part.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;

use crate::disk::{Disk, DiskFile};

#[derive(Clone, Debug, Default)]
struct Content {
    durable: Vec<u8>,
    now: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
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
            let mut bytes = content.durable.clone();
            let lost = rng.random_range(0..3);
            for (offset, pending) in &content.pending {
                // All, nothing, or pieces of it.
                let piece = [8, 64, 512][rng.random_range(0..3)];
                for (i, part) in pending.chunks(piece).enumerate() {
                    let keep = match lost {
                        0 => true,
                        1 => false,
                        _ => rng.random_bool(0.5),
                    };
                    if keep {
                        write(&mut bytes, offset + i * piece, part);
                    }
                }
            }
            files.insert(*id, Content { durable: bytes.clone(), now: bytes, pending: Vec::new() });
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
        let bytes = parts.concat();
        let mut inner = self.disk.0.lock();
        if inner.left == 0 {
            return Err(gone());
        }
        inner.left -= 1;
        // The write during which the power goes may come through in part.
        let last = inner.left == 0;
        let content = inner.files.get_mut(&self.id).ok_or_else(gone)?;
        write(&mut content.now, offset as usize, &bytes);
        content.pending.push((offset as usize, bytes));
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
                for (offset, bytes) in content.pending.drain(..) {
                    write(&mut content.durable, offset, &bytes);
                }
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().files[&self.id].now.len() as u64)
    }
}
