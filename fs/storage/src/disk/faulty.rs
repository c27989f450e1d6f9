//! A disk in memory that behaves as badly as real ones may.
//!
//! - **Power cuts.** What was written since the last `sync_data` of a file survives a cut in part: each 4 KiB page
//!   of each write stays, goes or is torn between its 512-byte sectors, by a seeded draw; a length, a hole and an
//!   allocation stay or go. A sector is written whole or not at all, as every disk promises.
//!   Names are journaled as on ext4 and XFS: of those that weren't synced, a random prefix survives. Syncing a
//!   file says nothing about its name (harsher than ext4, as POSIX allows).
//! - **A failed sync loses data for good**: the pages count as clean afterwards although they never reached the
//!   disk, and the next sync succeeds; that is how Linux behaves.
//! - **Full**: a capacity in bytes; holes are free.
//! - **Errors** of chosen calls on chosen files, and **flipped bits**.
//!
//! All draws come from one seed, and nothing here reads a clock: the same calls give the same disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, IoSlice};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::content::{Content, FileOp, PAGE};
use super::{DirEntry, Disk, DiskFile, DiskLock, Space, parent};

mod content;
#[cfg(test)]
mod tests;

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Open,
    Create,
    Rename,
    Unlink,
    SyncDir,
    Read,
    Write,
    Sync,
    SetLen,
    Allocate,
    Punch,
}

/// A failure to come.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The call that fails.
    pub op: Op,
    /// Only on paths that contain this text.
    pub path_contains: String,
    /// The error it gives, as an errno.
    pub errno: i32,
    /// How many calls fail before the disk is well again.
    pub times: u32,
}

/// The disk; clones are the same disk.
#[derive(Clone)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    names: BTreeMap<String, Node>,
    durable_names: BTreeMap<String, Node>,
    journal: Vec<NameOp>,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    used_pages: u64,
    capacity_bytes: u64,
    rng: StdRng,
    faults: Vec<Fault>,
    locks: HashSet<String>,
    /// Counts the cuts: a file that was opened before one is dead.
    epoch: u64,
    /// Changing calls until the power goes.
    fuse: Option<u64>,
    off: bool,
    syncs_work: bool,
    syncs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

enum NameOp {
    Link { path: String, node: Node },
    Unlink { path: String },
    Rename { from: String, to: String, inode: u64 },
}

#[derive(Default)]
struct Inode {
    live: Content,
    durable: Content,
    pending: Vec<FileOp>,
    handles: u64,
}

impl FaultyDisk {
    /// An empty disk of `capacity_bytes` whose draws come from `seed`.
    pub fn new(seed: u64, capacity_bytes: u64) -> Self {
        let root = BTreeMap::from([(String::new(), Node::Dir)]);
        let state = State {
            names: root.clone(),
            durable_names: root,
            journal: Vec::new(),
            inodes: HashMap::new(),
            next_inode: 1,
            used_pages: 0,
            capacity_bytes,
            rng: StdRng::seed_from_u64(seed),
            faults: Vec::new(),
            locks: HashSet::new(),
            epoch: 0,
            fuse: None,
            off: false,
            syncs_work: true,
            syncs: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Makes every sync a lie from now on: to show that a test of power cuts can fail.
    pub fn leave_syncs_out(&self) {
        self.state.lock().syncs_work = false;
    }

    /// Adds a failure to come.
    pub fn fail(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Takes back all failures to come.
    pub fn heal(&self) {
        self.state.lock().faults.clear();
    }

    /// Cuts the power after so many more changing calls; from then on every call is `EIO` until
    /// [`Self::power_on`].
    pub fn power_off_after(&self, changes: u64) {
        self.state.lock().fuse = Some(changes);
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.state.lock().off
    }

    /// Cuts the power (if it isn't off already) and turns it on again: what wasn't synced is lost in part, open
    /// files and locks are dead.
    pub fn power_on(&self) {
        self.state.lock().lose_power();
    }

    /// Changes the disk's size.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity_bytes = bytes;
    }

    /// Flips one bit of a file, on the disk and in the cache.
    ///
    /// # Panics
    /// If the file isn't there or has no such byte: the test is wrong.
    #[expect(clippy::panic, reason = "only tests have this disk")]
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u8) {
        let mut state = self.state.lock();
        let Some(Node::File(inode)) = state.names.get(path).copied() else { panic!("no file {path}") };
        let Some(inode) = state.inodes.get_mut(&inode) else { panic!("no inode for {path}") };
        assert!(offset < inode.live.len, "{path} has no byte {offset}");
        for content in [&mut inode.live, &mut inode.durable] {
            let page = content.pages.entry(offset / PAGE as u64).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[offset as usize % PAGE] ^= 1 << bit;
        }
    }

    /// What a file holds, without going through the store. `None` if it isn't there.
    pub fn contents(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let Some(Node::File(inode)) = state.names.get(path) else { return None };
        let content = &state.inodes[inode].live;
        let mut all = vec![0; content.len as usize];
        content.read(&mut all, 0);
        Some(all)
    }

    /// The paths of all files.
    pub fn files(&self) -> Vec<String> {
        let state = self.state.lock();
        state
            .names
            .iter()
            .filter(|(_, node)| matches!(node, Node::File(_)))
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// How many syncs of files were made, failed ones included.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    fn handle(&self, state: &mut State, path: &str, inode: u64) -> Arc<dyn DiskFile> {
        if let Some(inode) = state.inodes.get_mut(&inode) {
            inode.handles += 1;
        }
        Arc::new(FaultyFile { disk: self.clone(), path: path.to_owned(), inode, epoch: state.epoch })
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.enter(Op::Open, path)?;
        match state.names.get(path).copied() {
            Some(Node::File(inode)) => Ok(self.handle(&mut state, path, inode)),
            Some(Node::Dir) => Err(io::Error::from_raw_os_error(libc::EISDIR)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.enter(Op::Create, path)?;
        state.expect_dir(parent(path))?;
        let inode = match state.names.get(path).copied() {
            Some(Node::Dir) => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            Some(Node::File(inode)) => {
                state.change(inode, FileOp::SetLen(0))?;
                inode
            }
            None => {
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.link(path, Node::File(inode));
                inode
            }
        };
        Ok(self.handle(&mut state, path, inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.enter(Op::Rename, from)?;
        state.expect_dir(parent(to))?;
        let Some(Node::File(inode)) = state.names.remove(from) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        state.names.insert(to.to_owned(), Node::File(inode));
        state.journal.push(NameOp::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        state.collect();
        Ok(())
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.enter(Op::Unlink, path)?;
        match state.names.get(path) {
            Some(Node::File(_)) => {}
            Some(Node::Dir) => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        state.names.remove(path);
        state.journal.push(NameOp::Unlink { path: path.to_owned() });
        state.collect();
        Ok(())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.enter(Op::Create, path)?;
        state.expect_dir(parent(path))?;
        match state.names.get(path) {
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            None => {
                state.link(path, Node::Dir);
                Ok(())
            }
        }
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.enter(Op::SyncDir, path)?;
        if state.syncs_work {
            state.sync_names(path);
        }
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        let state = self.state.lock();
        if state.off {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.expect_dir(path)?;
        let entries = state.names.iter().filter(|(name, _)| !name.is_empty() && parent(name) == path);
        Ok(entries
            .map(|(name, node)| DirEntry {
                name: name.rsplit('/').next().unwrap_or(name).to_owned(),
                is_dir: *node == Node::Dir,
            })
            .collect())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state.lock();
        let used = state.used_pages * PAGE as u64;
        Ok(Space {
            capacity_bytes: state.capacity_bytes,
            free_bytes: state.capacity_bytes.saturating_sub(used),
        })
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.state.lock();
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let epoch = state.epoch;
        Ok(Box::new(FaultyLock { disk: self.clone(), path: path.to_owned(), epoch }))
    }

    fn describe(&self) -> String {
        "a disk in memory".to_owned()
    }
}

struct FaultyLock {
    disk: FaultyDisk,
    path: String,
    epoch: u64,
}

impl DiskLock for FaultyLock {}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if state.epoch == self.epoch {
            state.locks.remove(&self.path);
        }
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    path: String,
    inode: u64,
    epoch: u64,
}

impl FaultyFile {
    fn change(&self, op: Op, change: FileOp) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.enter_file(op, self)?;
        state.change(self.inode, change)
    }
}

impl Drop for FaultyFile {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if state.epoch != self.epoch {
            return;
        }
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            inode.handles -= 1;
        }
        state.collect();
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state.lock();
        state.enter_file(Op::Read, self)?;
        Ok(state.inodes[&self.inode].live.read(buf, offset))
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.read_at(buf, offset).map(Some)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(());
        }
        self.change(Op::Write, FileOp::write(offset, bufs))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.syncs += 1;
        let result = state.enter_file(Op::Sync, self);
        if !state.syncs_work || state.off {
            return result;
        }
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            let pending = std::mem::take(&mut inode.pending);
            if result.is_ok() {
                pending.iter().for_each(|op| inode.durable.apply(op));
            }
        }
        result
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen, FileOp::SetLen(len))
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Op::Allocate, FileOp::Allocate { offset, len })
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Op::Punch, FileOp::Punch { offset, len })
    }

    fn forget_cached(&self, _offset: u64, _len: u64) {}

    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.state.lock();
        state.enter_file(Op::Read, self)?;
        Ok(state.inodes[&self.inode].live.len)
    }

    fn allocated(&self) -> io::Result<u64> {
        let mut state = self.disk.state.lock();
        state.enter_file(Op::Read, self)?;
        Ok((state.inodes[&self.inode].live.pages.len() * PAGE) as u64)
    }
}

impl State {
    /// What every call goes through: the power, the fuse and the faults.
    fn enter(&mut self, op: Op, path: &str) -> io::Result<()> {
        if !self.off && op != Op::Read && op != Op::Open {
            match &mut self.fuse {
                Some(0) => self.off = true,
                Some(left) => *left -= 1,
                None => {}
            }
        }
        if self.off {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let fault =
            self.faults.iter_mut().find(|f| f.op == op && f.times > 0 && path.contains(&f.path_contains));
        match fault {
            Some(fault) => {
                fault.times -= 1;
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            None => Ok(()),
        }
    }

    fn enter_file(&mut self, op: Op, file: &FaultyFile) -> io::Result<()> {
        if file.epoch != self.epoch {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.enter(op, &file.path)
    }

    fn expect_dir(&self, path: &str) -> io::Result<()> {
        match self.names.get(path) {
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn link(&mut self, path: &str, node: Node) {
        self.names.insert(path.to_owned(), node);
        self.journal.push(NameOp::Link { path: path.to_owned(), node });
    }

    fn change(&mut self, inode: u64, op: FileOp) -> io::Result<()> {
        let Some(inode) = self.inodes.get_mut(&inode) else {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        };
        let needed = inode.live.pages_missing(&op);
        if (self.used_pages + needed) * PAGE as u64 > self.capacity_bytes {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let before = inode.live.pages.len() as u64;
        inode.live.apply(&op);
        self.used_pages = self.used_pages + inode.live.pages.len() as u64 - before;
        inode.pending.push(op);
        Ok(())
    }

    fn sync_names(&mut self, folder: &str) {
        let last = self.journal.iter().rposition(|op| match op {
            NameOp::Link { path, .. } | NameOp::Unlink { path } => parent(path) == folder,
            NameOp::Rename { from, to, .. } => parent(from) == folder || parent(to) == folder,
        });
        if let Some(last) = last {
            self.commit_names(last + 1);
        }
    }

    fn commit_names(&mut self, count: usize) {
        for op in self.journal.drain(..count) {
            match op {
                NameOp::Link { path, node } => {
                    self.durable_names.insert(path, node);
                }
                NameOp::Unlink { path } => {
                    self.durable_names.remove(&path);
                }
                NameOp::Rename { from, to, inode } => {
                    self.durable_names.remove(&from);
                    self.durable_names.insert(to, Node::File(inode));
                }
            }
        }
        self.collect();
    }

    /// Drops the files that no name, no journal entry's past and no handle leads to.
    fn collect(&mut self) {
        let mut live: HashSet<u64> = HashSet::new();
        for node in self.names.values().chain(self.durable_names.values()) {
            if let Node::File(inode) = node {
                live.insert(*inode);
            }
        }
        for op in &self.journal {
            match op {
                NameOp::Link { node: Node::File(inode), .. } | NameOp::Rename { inode, .. } => {
                    live.insert(*inode);
                }
                _ => {}
            }
        }
        self.inodes.retain(|id, inode| inode.handles > 0 || live.contains(id));
        // Space is given back when the live name goes, as a filesystem does, though a cut may bring the file back.
        let named: HashSet<u64> = self
            .names
            .values()
            .filter_map(|n| if let Node::File(inode) = n { Some(*inode) } else { None })
            .collect();
        self.used_pages = self
            .inodes
            .iter()
            .filter(|(id, inode)| inode.handles > 0 || named.contains(id))
            .map(|(_, inode)| inode.live.pages.len() as u64)
            .sum();
    }

    fn lose_power(&mut self) {
        let survivors =
            if self.journal.is_empty() { 0 } else { self.rng.random_range(0..=self.journal.len()) };
        self.commit_names(survivors);
        self.journal.clear();
        self.names = self.durable_names.clone();
        self.epoch += 1;
        self.fuse = None;
        self.off = false;
        self.locks.clear();
        let mut ids: Vec<u64> = self.inodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(inode) = self.inodes.get_mut(&id) else { continue };
            for op in std::mem::take(&mut inode.pending) {
                inode.durable.apply_in_part(&op, &mut self.rng);
            }
            inode.live = inode.durable.clone();
            inode.handles = 0;
        }
        self.collect();
    }
}
