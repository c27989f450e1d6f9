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

mod churn;
mod model;
mod shared;
mod takeover;

use model::{Change, FileModel};
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
    names: BTreeMap<String, usize>,
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
    ) -> Checked<SimClient> {
        let caller = Caller::default();
        let name = Bytes::from(format!("client-{number}"));
        let made = mount.files.mkdir(&caller, ROOT, name, 0o755).await.map_err(|e| errno("mkdir", e))?;
        let folder = made.attributes.ino;
        Ok(SimClient {
            number,
            kernel: Kernel::new(&mount.files),
            mount,
            caller,
            folder,
            names: BTreeMap::new(),
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
        for (name, &file) in &self.names {
            let model = &mut self.files[file];
            let found = read_file(&self.mount.files, model.ino).await?;
            if !model.survives_as(&found) {
                return Err(format!(
                    "{name} has {} bytes {when}, which are not what was synced ({} bytes) and the first of {} changes since",
                    found.len(),
                    model.synced.len(),
                    model.since.len()
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
        let excused =
            matches!(answer, Err(Errno(libc::EIO))) && self.has_lost() && !self.files[file].since.is_empty();
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
            92 => self.be_taken_over().await,
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
        if let Some((entry, opened)) = Self::expect(&what, asked, expected)? {
            let ino = entry.attributes.ino;
            let released = self.mount.files.release(&self.caller, ino, opened.handle, None, false).await;
            released.map_err(|e| errno("release", e))?;
            self.names.insert(name.to_owned(), self.files.len());
            let (content, synced, since) = (Vec::new(), Vec::new(), Vec::new());
            self.files.push(FileModel { ino, content, links: 1, synced, since });
        }
        Ok(())
    }

    async fn write(&mut self, name: &str, random: &mut StdRng) -> Checked<()> {
        let Some(&file) = self.names.get(name) else { return self.create(name).await };
        let ino = self.files[file].ino;
        let opened = self.mount.files.open(&self.caller, ino, libc::O_RDWR as u32).await;
        let handle = opened.map_err(|e| errno("open", e))?.handle;
        // What was lost before it was open is none of this handle's business.
        self.look_again().await?;
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
            self.files[file].settle();
        }
        if random.random_bool(0.5) {
            let closed = self.mount.files.flush(&self.caller, ino, handle, 1).await;
            if self.is_excused(file, &closed) {
                return Ok(());
            }
            closed.map_err(|e| errno("close", e))?;
            self.files[file].settle();
        }
        Ok(())
    }

    async fn read(&mut self, name: &str) -> Checked<()> {
        let found = self.mount.files.lookup(&self.caller, self.folder, self.bytes(name)).await;
        let known = self.names.get(name);
        let expected = known.is_none().then_some(libc::ENOENT);
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
        if self.names.get(from).is_some_and(|&file| self.is_excused(file, &asked)) {
            return Ok(());
        }
        if Self::expect(&format!("rename of {from} to {to}"), asked, expected)?.is_some() {
            let same = self.names.get(from) == self.names.get(to);
            // Two names of one file: rename(2) does nothing.
            if !same
                && let Some(file) = self.names.remove(from)
                && let Some(replaced) = self.names.insert(to.to_owned(), file)
            {
                self.files[replaced].links -= 1;
            }
        }
        Ok(())
    }

    async fn unlink(&mut self, name: &str) -> Checked<()> {
        let expected = (!self.names.contains_key(name)).then_some(libc::ENOENT);
        let asked = self.mount.files.unlink(&self.caller, self.folder, self.bytes(name)).await;
        if Self::expect(&format!("unlink of {name}"), asked, expected)?.is_some()
            && let Some(file) = self.names.remove(name)
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
        if self.is_excused(file, &asked) {
            return Ok(());
        }
        if Self::expect(&format!("link of {from} to {to}"), asked, expected)?.is_some() {
            self.files[file].links += 1;
            self.names.insert(to.to_owned(), file);
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
        if had_changes && self.is_excused(file, &asked) {
            return Ok(());
        }
        Self::expect(&format!("truncation of {name} to {size}"), asked, None).map(drop)
    }

    /// Writes everything out; what it doesn't say to be lost is there.
    pub async fn stop(&mut self) -> Checked<()> {
        self.look_again().await?;
        match self.mount.files.stop().await {
            Err(ClientError::SessionLost) if self.has_lost() => Ok(()),
            stopped => stopped.map_err(|error| format!("the end of a client: {error}")),
        }
    }

    /// The whole folder as another mount sees it is what this client made of it.
    pub async fn check(&self, files: &FileSystem) -> Checked<()> {
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
