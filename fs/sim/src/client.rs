//! What one client does, and what it expects of the filesystem.
//!
//! Each client has a folder of its own, where every answer is known: nobody else changes anything there, so whatever
//! happens to servers and network, an operation has exactly its effect, once, and every byte is there. In the
//! folder that all share, operations are written down with the times at which they began and ended, to be checked against each other.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use atoll_client::metadata::ClientError;
use atoll_client::vfs::{Caller, Errno, Vfs, WriteFlags};
use atoll_core::attributes::AttributeChanges;
use atoll_core::ids::{InodeId, ROOT};
use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

mod burst;
mod churn;
mod model;
mod shared;
mod takeover;

use model::{Change, FileModel, NameChange, Names, UNKNOWN_FILE};
pub use shared::{Event, NameOp, RECORD_BYTES, Shared, What, make_shared, shared_names};

use crate::kernel::Kernel;
use crate::network::Network;
use crate::nodes::{FileSystem, Mount, client_name, some_time};
use crate::seam;

/// Names in a client's folder.
const NAMES: usize = 6;
/// Bytes of a file at most.
const FILE_BYTES_MAX: usize = 1_200_000;

/// A client: its mount, its folder, its expectations.
pub struct SimClient {
    number: usize,
    /// The mount.
    pub mount: Mount,
    kernel: Kernel,
    caller: Caller,
    folder: InodeId,
    /// Names to files.
    names: Names,
    /// What they were since it is known to be committed what they are, the last of it now: a volume for one mount may lose what
    /// was done last, but never something and not what came after it.
    history: Vec<Names>,
    /// What was being done to them when a session was lost.
    limbo: Option<NameChange>,
    /// The volume is for this mount alone.
    exclusive: bool,
    files: Vec<FileModel>,
    shared: Shared,
    events: Rc<RefCell<Vec<Event>>>,
    network: Rc<Network>,
    members: usize,
    /// There may be no room for what is written.
    full: Rc<Cell<bool>>,
    deaths: u64,
    counter: u64,
    /// Sessions of this mount that were lost, as far as it was looked what that left of the files.
    lost_seen: u64,
}

type Checked<T> = Result<T, String>;

fn errno(what: &str, Errno(errno): Errno) -> String {
    format!("{what}: {}", std::io::Error::from_raw_os_error(errno))
}

/// Reads a whole file.
pub async fn read_file(files: &FileSystem, ino: InodeId) -> Checked<Vec<u8>> {
    let caller = Caller::default();
    let opened = files.open(&caller, ino, libc::O_RDONLY as u32).await.map_err(|e| errno("open", e))?;
    let mut content = Vec::new();
    loop {
        let read = files.read(&caller, ino, opened.handle, content.len() as u64, 128 << 10, true);
        let parts = read.await.map_err(|e| errno("read", e))?;
        let before = content.len();
        parts.iter().for_each(|part| content.extend_from_slice(part));
        if content.len() == before {
            break;
        }
    }
    files.release(&caller, ino, opened.handle, None, false).await.map_err(|e| errno("release", e))?;
    Ok(content)
}

impl SimClient {
    /// With a new folder of its own.
    pub async fn new(
        number: usize,
        mount: Mount,
        shared: Shared,
        events: Rc<RefCell<Vec<Event>>>,
        (network, members, full): (Rc<Network>, usize, Rc<Cell<bool>>),
        exclusive: bool,
    ) -> Checked<SimClient> {
        let caller = Caller::default();
        let name = Bytes::from(format!("client-{number}"));
        let made = mount.files.mkdir(&caller, ROOT, name, 0o755).await.map_err(|e| errno("mkdir", e))?;
        let folder = made.attributes.ino;
        if exclusive {
            let synced = mount.files.fsyncdir(&caller, ROOT, 0, false).await;
            synced.map_err(|e| errno("fsync of a directory", e))?;
        }
        Ok(SimClient {
            number,
            kernel: Kernel::new(&mount.files),
            mount,
            caller,
            folder,
            names: Names::new(),
            history: vec![Names::new()],
            limbo: None,
            exclusive,
            files: Vec::new(),
            shared,
            events,
            network,
            members,
            full,
            deaths: 0,
            counter: 0,
            lost_seen: 0,
        })
    }

    /// Its process is killed, and another one takes its place: names are as they were, files are what was synced and a part
    /// of the rest.
    async fn die(&mut self) -> Checked<()> {
        self.deaths += 1;
        let name = format!("{}x{}", client_name(self.number), self.deaths);
        if self.exclusive {
            // Before anything of what it has done last is sent.
            self.mount.die(&self.network)?;
        }
        let mount = Mount::connect(&name, self.members, &self.network).await?;
        self.kernel = Kernel::new(&mount.files);
        std::mem::replace(&mut self.mount, mount).kill(&self.network);
        self.lost_seen = 0;
        // What the dead one had sent may still be on its way until its session has ended.
        tokio::time::sleep(Duration::from_secs(12)).await;
        self.find("after its client was killed").await
    }

    /// Sessions of this mount that were lost.
    fn lost(&self) -> u64 {
        self.mount.files.metadata().status().sessions_lost
    }

    /// A session was lost that it wasn't looked at yet what it left of the files.
    fn has_lost(&self) -> bool {
        self.lost() != self.lost_seen
    }

    /// What was not committed is lost: what is left of each file is what was synced and the first of the rest.
    async fn find(&mut self, when: &str) -> Checked<()> {
        if self.exclusive {
            self.find_names(when).await?;
        }
        for (name, &file) in &self.names {
            let model = &mut self.files[file];
            let found = read_file(&self.mount.files, model.ino).await?;
            if !model.survives_as(&found) {
                return Err(format!(
                    "{name} has {} bytes {when}, which are not what was synced ({} bytes) and the first of these changes since: {}",
                    found.len(),
                    model.synced.len(),
                    model.changes()
                ));
            }
            if model.content != found {
                tracing::info!(
                    client = self.number,
                    name,
                    changes = model.since.len(),
                    "changes are lost {when}"
                );
            }
            model.content = found;
            model.settle();
        }
        Ok(())
    }

    /// Which names there are: all up to one moment of those that aren't known to be committed.
    async fn find_names(&mut self, when: &str) -> Checked<()> {
        let found = self.list(&self.mount.files).await?;
        let Some(names) = self.state_of(&found) else {
            return Err(format!("{when} there are the names {found:?}, which there never were"));
        };
        let limbo = self.limbo.take();
        if names != self.names {
            tracing::info!(client = self.number, ?limbo, "names are lost {when}");
        }
        self.names = names;
        for (name, file) in &mut self.names {
            if *file == UNKNOWN_FILE
                && let Some(ino) = found.get(name)
            {
                *file = self.files.len();
                self.files.push(FileModel::new(*ino));
            }
        }
        self.synced();
        for (number, file) in self.files.iter_mut().enumerate() {
            file.links = self.names.values().filter(|named| **named == number).count() as u32;
        }
        Ok(())
    }

    /// The names that there are, and what they name.
    async fn list(&self, files: &FileSystem) -> Checked<BTreeMap<String, InodeId>> {
        let mut found = BTreeMap::new();
        for number in 0..NAMES {
            let name = format!("f{number}");
            match files.lookup(&self.caller, self.folder, self.bytes(&name)).await {
                Ok(entry) => _ = found.insert(name, entry.attributes.ino),
                Err(Errno(libc::ENOENT)) => {}
                Err(error) => return Err(errno("lookup", error)),
            }
        }
        Ok(found)
    }

    /// When these were the names, if ever.
    fn state_of(&self, found: &BTreeMap<String, InodeId>) -> Option<Names> {
        let is_found = |names: &Names| {
            names.len() == found.len()
                && names.iter().all(|(name, file)| match found.get(name) {
                    None => false,
                    Some(_) if *file == UNKNOWN_FILE => true,
                    Some(ino) => self.files[*file].ino == *ino,
                })
        };
        let in_limbo = self.history.iter().filter_map(|names| {
            let mut names = names.clone();
            self.limbo.as_ref()?.apply(&mut names);
            Some(names)
        });
        self.history.iter().cloned().chain(in_limbo).find(is_found)
    }

    /// All that was done to names is committed.
    fn synced(&mut self) {
        self.history = vec![self.names.clone()];
    }

    /// A change of names is done. Whether it counts: with the session it may be lost.
    fn is_done(&mut self, change: NameChange) -> bool {
        if self.exclusive && self.has_lost() {
            self.limbo = Some(change);
            return false;
        }
        change.apply(&mut self.names);
        if self.exclusive {
            self.history.push(self.names.clone());
        } else {
            self.synced();
        }
        true
    }

    /// An operation on names has failed; whether that is right, since a session is lost.
    fn is_in_limbo(&mut self, change: NameChange) -> bool {
        let is_in_limbo = self.exclusive && self.has_lost();
        if is_in_limbo {
            self.limbo = Some(change);
        }
        is_in_limbo
    }

    /// After a lost session: finds out what is left.
    async fn look_again(&mut self) -> Checked<()> {
        while self.has_lost() {
            let lost = self.lost();
            match self.find("after its session was lost").await {
                // While it looked, another session was lost.
                _ if self.lost() != lost => {}
                Ok(()) => self.lost_seen = lost,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether `EIO` is right for this file: with a session something was lost that was written to it.
    fn is_excused(&self, file: usize, answer: &Result<impl Sized, Errno>) -> bool {
        let is_lost = self.exclusive || !self.files[file].since.is_empty();
        let is_error = matches!(answer, Err(Errno(libc::EIO))) || self.exclusive && answer.is_err();
        let excused = is_error && self.has_lost() && is_lost;
        if excused {
            tracing::info!(client = self.number, "the application is told what was lost");
        }
        excused
    }

    /// Does `count` random things, with pauses.
    pub async fn run(&mut self, random: &mut StdRng, count: usize) -> Checked<()> {
        for step in 0..count {
            let done = self.step(random).await;
            done.map_err(|error| {
                format!("client {}, step {step}, {:?}: {error}", self.number, seam::elapsed())
            })?;
            if random.random_ratio(1, 4) {
                tokio::time::sleep(some_time(random, 0, 300)).await;
            }
        }
        Ok(())
    }

    async fn step(&mut self, random: &mut StdRng) -> Checked<()> {
        self.look_again().await?;
        if self.exclusive && random.random_ratio(1, 8) {
            return self.burst(random).await;
        }
        let name = format!("f{}", random.random_range(0..NAMES));
        match random.random_range(0..100) {
            0..=14 => self.create(&name).await,
            15..=41 => self.write(&name, random).await,
            42..=44 => self.churn(random).await,
            45..=54 => self.read(&name).await,
            55..=61 => self.rename(&name, &format!("f{}", random.random_range(0..NAMES))).await,
            62..=67 => self.unlink(&name).await,
            68..=71 => self.link(&name, &format!("f{}", random.random_range(0..NAMES))).await,
            72..=76 => self.truncate(&name, random).await,
            77..=82 => self.set().await,
            83..=87 => self.get().await,
            88..=91 => self.name(random).await,
            92 if self.counter.is_multiple_of(3) => self.die().await,
            92 => {
                let locked = self.lock_one().await?;
                self.be_taken_over(locked).await
            }
            93 => self.watch(random).await,
            94..=96 => self.append(random).await,
            _ => self.count(random).await,
        }
    }

    fn bytes(&self, name: &str) -> Bytes {
        Bytes::copy_from_slice(name.as_bytes())
    }

    /// The answer has to be what is expected: success, or this error.
    fn expect<T>(what: &str, answer: Result<T, Errno>, expected: Option<i32>) -> Checked<Option<T>> {
        match (answer, expected) {
            (Ok(value), None) => Ok(Some(value)),
            (Err(Errno(found)), Some(expected)) if found == expected => Ok(None),
            (Ok(_), Some(expected)) => {
                Err(format!("{what} succeeded instead of: {}", std::io::Error::from_raw_os_error(expected)))
            }
            (Err(found), _) => Err(errno(what, found)),
        }
    }

    async fn create(&mut self, name: &str) -> Checked<()> {
        let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
        let expected = self.names.contains_key(name).then_some(libc::EEXIST);
        let asked =
            self.mount.files.create(&self.caller, self.folder, self.bytes(name), 0o100_644, flags).await;
        let what = format!("create {name}");
        if asked.is_err() && self.is_in_limbo(NameChange::Create(name.to_owned(), UNKNOWN_FILE)) {
            return Ok(());
        }
        if let Some((entry, opened)) = Self::expect(&what, asked, expected)? {
            let ino = entry.attributes.ino;
            let released = self.mount.files.release(&self.caller, ino, opened.handle, None, false).await;
            released.map_err(|e| errno("release", e))?;
            let file = self.files.len();
            self.files.push(FileModel::new(ino));
            self.is_done(NameChange::Create(name.to_owned(), file));
        }
        Ok(())
    }

    async fn write(&mut self, name: &str, random: &mut StdRng) -> Checked<()> {
        let Some(&file) = self.names.get(name) else { return self.create(name).await };
        let ino = self.files[file].ino;
        let opened = self.mount.files.open(&self.caller, ino, libc::O_RDWR as u32).await;
        if self.exclusive && opened.is_err() && self.has_lost() {
            return Ok(());
        }
        let handle = opened.map_err(|e| errno("open", e))?.handle;
        // What was lost before it was open is none of this handle's business.
        self.look_again().await?;
        if !self.names.values().any(|named| *named == file) {
            // It was lost itself.
            let released = self.mount.files.release(&self.caller, ino, handle, None, false).await;
            return released.map_err(|e| errno("release", e));
        }
        let written = self.write_through(name, file, handle, random).await;
        let released = self.mount.files.release(&self.caller, ino, handle, None, false).await;
        written?;
        released.map_err(|e| errno("release", e))
    }

    /// Writes through an open file, perhaps syncs it, perhaps closes it properly.
    async fn write_through(
        &mut self,
        name: &str,
        file: usize,
        handle: u64,
        random: &mut StdRng,
    ) -> Checked<()> {
        let ino = self.files[file].ino;
        for _ in 0..random.random_range(1..4) {
            let size = self.files[file].content.len();
            let offset = if random.random_bool(0.5) { size } else { random.random_range(0..=size + 5000) };
            let length = match random.random_range(0..24) {
                0..=10 => random.random_range(1..600),
                11..=20 => random.random_range(1..10_000),
                21 | 22 => random.random_range(1..100_000),
                _ => random.random_range(200_000..500_000),
            };
            if offset + length > FILE_BYTES_MAX {
                continue;
            }
            self.counter += 1;
            let tag = self.counter * 31 + self.number as u64;
            let data: Vec<u8> = (0..length).map(|at| (tag as usize + at / 7 + at) as u8).collect();
            let (bytes, how) = (Bytes::copy_from_slice(&data), WriteFlags::default());
            let (before, lost_before) = (self.files[file].since.is_empty(), self.lost());
            let mut full = self.full.get();
            let written = self.mount.files.write(&self.caller, ino, handle, offset as u64, bytes, how).await;
            full |= self.full.get();
            if full && matches!(written, Err(Errno(libc::ENOSPC))) {
                break;
            }
            let length = match written {
                Ok(part) if full && part > 0 => length.min(part as usize),
                _ => length,
            };
            self.files[file].change(Change::Write(offset, data[..length].to_vec()));
            // A write that began after the loss, and nothing was there to be lost, has nothing to complain of.
            let may_fail = !before || self.lost() != lost_before;
            if may_fail && self.is_excused(file, &written) {
                return Ok(());
            }
            let written = written.map_err(|e| errno("write", e))?;
            if written as usize != length {
                return Err(format!("{written} of {length} bytes were written to {name}"));
            }
        }
        if random.random_bool(0.5) {
            let synced = self.mount.files.fsync(&self.caller, ino, handle, false).await;
            if self.is_excused(file, &synced) {
                return Ok(());
            }
            synced.map_err(|e| errno("fsync", e))?;
            if !self.has_lost() {
                self.files[file].settle();
                self.synced();
            }
        }
        if random.random_bool(0.5) {
            let closed = self.mount.files.flush(&self.caller, ino, handle, 1).await;
            if self.is_excused(file, &closed) {
                return Ok(());
            }
            closed.map_err(|e| errno("close", e))?;
            // A mount that is alone commits it later.
            if !self.exclusive {
                self.files[file].settle();
            }
        }
        Ok(())
    }

    async fn read(&mut self, name: &str) -> Checked<()> {
        let found = self.mount.files.lookup(&self.caller, self.folder, self.bytes(name)).await;
        let known = self.names.get(name);
        let expected = known.is_none().then_some(libc::ENOENT);
        if self.exclusive && self.has_lost() {
            return self.look_again().await;
        }
        let found = Self::expect(&format!("lookup of {name}"), found, expected)?;
        let (Some(found), Some(&file)) = (found, known) else { return Ok(()) };
        let model = &self.files[file];
        let attributes = &found.attributes;
        if (attributes.ino, attributes.nlink) != (model.ino, model.links) {
            return Err(format!(
                "{name} is inode {} with {} names, expected {} with {}",
                attributes.ino, attributes.nlink, model.ino, model.links
            ));
        }
        let content = read_file(&self.mount.files, model.ino).await;
        if self.has_lost() {
            // It may have read a part before and a part after.
            return self.look_again().await;
        }
        same(name, &content?, &model.content)
    }

    async fn rename(&mut self, from: &str, to: &str) -> Checked<()> {
        let expected = (!self.names.contains_key(from)).then_some(libc::ENOENT);
        let (old, new) = (self.bytes(from), self.bytes(to));
        let asked = self.mount.files.rename(&self.caller, self.folder, old, self.folder, new, 0).await;
        // The data of a file goes first: if that is lost, the file keeps its name, or one that replaces another one by it
        // would have nothing to replace it with.
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        if asked.is_err() && self.is_in_limbo(change.clone()) {
            return Ok(());
        }
        if self.names.get(from).is_some_and(|&file| self.is_excused(file, &asked)) {
            return Ok(());
        }
        if Self::expect(&format!("rename of {from} to {to}"), asked, expected)?.is_some() {
            let replaced = self.names.get(to).copied().filter(|file| self.names.get(from) != Some(file));
            if self.is_done(change)
                && let Some(replaced) = replaced
            {
                self.files[replaced].links -= 1;
            }
        }
        Ok(())
    }

    async fn unlink(&mut self, name: &str) -> Checked<()> {
        let expected = (!self.names.contains_key(name)).then_some(libc::ENOENT);
        let asked = self.mount.files.unlink(&self.caller, self.folder, self.bytes(name)).await;
        let change = NameChange::Unlink(name.to_owned());
        if asked.is_err() && self.is_in_limbo(change.clone()) {
            return Ok(());
        }
        let file = self.names.get(name).copied();
        if Self::expect(&format!("unlink of {name}"), asked, expected)?.is_some()
            && self.is_done(change)
            && let Some(file) = file
        {
            self.files[file].links -= 1;
        }
        Ok(())
    }

    async fn link(&mut self, from: &str, to: &str) -> Checked<()> {
        let Some(&file) = self.names.get(from) else { return Ok(()) };
        let expected = self.names.contains_key(to).then_some(libc::EEXIST);
        let asked =
            self.mount.files.link(&self.caller, self.files[file].ino, self.folder, self.bytes(to)).await;
        let change = NameChange::Link(file, to.to_owned());
        if asked.is_err() && self.is_in_limbo(change.clone()) {
            return Ok(());
        }
        if self.is_excused(file, &asked) {
            return Ok(());
        }
        if Self::expect(&format!("link of {from} to {to}"), asked, expected)?.is_some()
            && self.is_done(change)
        {
            self.files[file].links += 1;
        }
        Ok(())
    }

    async fn truncate(&mut self, name: &str, random: &mut StdRng) -> Checked<()> {
        let Some(&file) = self.names.get(name) else { return Ok(()) };
        let size = random.random_range(0..=self.files[file].content.len() + 3000);
        let changes = AttributeChanges { size: Some(size as u64), ..AttributeChanges::default() };
        let asked = self.mount.files.setattr(&self.caller, self.files[file].ino, None, changes).await;
        let had_changes = !self.files[file].since.is_empty();
        self.files[file].change(Change::Truncate(size));
        if (had_changes || self.exclusive) && self.is_excused(file, &asked) {
            return Ok(());
        }
        Self::expect(&format!("truncation of {name} to {size}"), asked, None).map(drop)
    }

    /// Writes everything out; what it doesn't say to be lost is there.
    pub async fn stop(&mut self) -> Checked<()> {
        self.look_again().await?;
        match self.mount.files.stop().await {
            Err(ClientError::SessionLost) if self.has_lost() => Ok(()),
            Ok(()) if !self.has_lost() => {
                self.synced();
                Ok(())
            }
            stopped => stopped.map_err(|error| format!("the end of a client: {error}")),
        }
    }

    /// The whole folder as another mount sees it is what this client made of it.
    pub async fn check(&self, files: &FileSystem) -> Checked<()> {
        if self.exclusive && self.has_lost() {
            let found = self.list(files).await?;
            return match self.state_of(&found) {
                Some(_) => Ok(()),
                None => Err(format!("at the end there are the names {found:?}, which there never were")),
            };
        }
        for number in 0..NAMES {
            let name = format!("f{number}");
            let found = files.lookup(&self.caller, self.folder, self.bytes(&name)).await;
            let known = self.names.get(&name);
            let expected = known.is_none().then_some(libc::ENOENT);
            let what = format!("at the end, client {}: lookup of {name}", self.number);
            let found = Self::expect(&what, found, expected)?;
            if let (Some(found), Some(&file)) = (found, known) {
                let model = &self.files[file];
                if found.attributes.ino != model.ino || found.attributes.nlink != model.links {
                    return Err(format!("{what}: another file, or {} names", found.attributes.nlink));
                }
                let content =
                    read_file(files, model.ino).await.map_err(|error| format!("{what}: {error}"))?;
                match self.has_lost() {
                    true if model.survives_as(&content) => {}
                    true => return Err(format!("{what}: its session was lost, and more than that")),
                    false => same(&what, &content, &model.content)?,
                }
            }
        }
        Ok(())
    }
}

fn same(what: &str, found: &[u8], expected: &[u8]) -> Checked<()> {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b);
    Err(format!(
        "{what}: {} bytes instead of {}, the first difference at {:?}",
        found.len(),
        expected.len(),
        at.unwrap_or(found.len().min(expected.len()))
    ))
}
