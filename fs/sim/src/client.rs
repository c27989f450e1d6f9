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

use crate::network::Network;
use crate::nodes::{FileSystem, Mount, client_name, some_time};
use crate::seam;

/// Names in a client's folder.
const NAMES: usize = 6;
/// Names that all clients make and remove.
const SHARED_NAMES: usize = 2;
/// Bytes of a file at most.
const FILE_BYTES_MAX: usize = 1_200_000;
/// The name of the attribute that all clients set and get.
const REGISTER: &[u8] = b"user.register";
/// Bytes of its value.
const REGISTER_BYTES_MAX: usize = 30_000;
/// Bytes of one record in the file that all append to.
pub const RECORD_BYTES: usize = 16;

/// Something in the shared folder, with when it began and ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which client.
    pub client: usize,
    /// When it was asked.
    pub began: Duration,
    /// When it was answered.
    pub ended: Duration,
    /// What.
    pub what: What,
}

/// See [`Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The register was given this value; each value is given once.
    Set(u64),
    /// The register had this value.
    Get(u64),
    /// A record was appended.
    Append([u8; RECORD_BYTES]),
    /// Something was done with one of the names in the shared folder.
    Name(usize, NameOp),
}

/// What was done with a name, and what the answer was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameOp {
    /// A file was made; or not, since there was one.
    Made(Option<InodeId>),
    /// It was removed; or there was none.
    Removed(bool),
    /// This is what was found.
    Found(Option<InodeId>),
}

/// The shared folder.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// The file with the register.
    pub register: InodeId,
    /// The file that all append to.
    pub log: InodeId,
    /// The folder in which all make and remove the same names.
    pub folder: InodeId,
}

#[derive(Clone, Debug)]
struct FileModel {
    ino: InodeId,
    content: Vec<u8>,
    links: u32,
    /// What it was when it was last synced or closed, and what was done to it since, in order.
    synced: Vec<u8>,
    since: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl Change {
    /// Carries out as much of it as `bytes` of data.
    fn apply(&self, content: &mut Vec<u8>, bytes: usize) {
        match self {
            Change::Truncate(size) => content.resize(*size, 0),
            Change::Write(offset, data) => {
                let data = &data[..bytes.min(data.len())];
                if content.len() < offset + data.len() {
                    content.resize(offset + data.len(), 0);
                }
                content[*offset..offset + data.len()].copy_from_slice(data);
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Change::Truncate(_) => 0,
            Change::Write(_, data) => data.len(),
        }
    }
}

impl FileModel {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.content, usize::MAX);
        self.since.push(change);
    }

    fn settle(&mut self) {
        self.synced.clone_from(&self.content);
        self.since.clear();
    }

    /// Its mount was killed, and this is what another one finds: everything that was synced, and of the rest the
    /// first so many changes, the last of them perhaps in part.
    fn survives_as(&self, found: &[u8]) -> bool {
        let mut content = self.synced.clone();
        if content == found {
            return true;
        }
        for change in &self.since {
            // How much of a write there is shows in where it first differs from what was there before.
            let mut whole = content.clone();
            change.apply(&mut whole, usize::MAX);
            if whole == found {
                return true;
            }
            if let Change::Write(offset, data) = change {
                let same = data.iter().zip(found.iter().skip(*offset)).take_while(|(a, b)| a == b).count();
                let mut part = content.clone();
                change.apply(&mut part, same);
                if part == found && same <= change.bytes() {
                    return true;
                }
            }
            content = whole;
        }
        false
    }
}

/// A client: its mount, its folder, its expectations.
pub struct SimClient {
    number: usize,
    /// The mount.
    pub mount: Mount,
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

/// Makes the shared folder's files.
pub async fn make_shared(files: &FileSystem) -> Checked<Shared> {
    let caller = Caller::default();
    let mut made = Vec::new();
    for name in ["register", "log"] {
        let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
        let name = Bytes::from_static(name.as_bytes());
        let (entry, opened) =
            files.create(&caller, ROOT, name, 0o100_644, flags).await.map_err(|e| errno("create", e))?;
        let ino = entry.attributes.ino;
        files.release(&caller, ino, opened.handle, None, false).await.map_err(|e| errno("release", e))?;
        made.push(ino);
    }
    let zero = Bytes::copy_from_slice(&0u64.to_le_bytes());
    let set = files.setxattr(&caller, made[0], Bytes::from_static(REGISTER), zero, 0, false);
    set.await.map_err(|e| errno("setxattr", e))?;
    let folder = files.mkdir(&caller, ROOT, Bytes::from_static(b"shared"), 0o777).await;
    let folder = folder.map_err(|e| errno("mkdir", e))?.attributes.ino;
    Ok(Shared { register: made[0], log: made[1], folder })
}

fn shared_name(number: usize) -> Bytes {
    Bytes::from(format!("n{number}"))
}

async fn find_shared(files: &FileSystem, folder: InodeId, name: Bytes) -> Checked<Option<InodeId>> {
    match files.lookup(&Caller::default(), folder, name).await {
        Ok(found) => Ok(Some(found.attributes.ino)),
        Err(Errno(libc::ENOENT)) => Ok(None),
        Err(error) => Err(errno("lookup of a shared name", error)),
    }
}

/// What the shared names mean in the end.
pub async fn shared_names(files: &FileSystem, folder: InodeId) -> Checked<Vec<Event>> {
    let mut events = Vec::new();
    for number in 0..SHARED_NAMES {
        let began = seam::elapsed();
        let found = find_shared(files, folder, shared_name(number)).await?;
        let what = What::Name(number, NameOp::Found(found));
        events.push(Event { client: usize::MAX, began, ended: seam::elapsed(), what });
    }
    Ok(events)
}

/// Reads a whole file.
pub async fn read_file(files: &FileSystem, ino: InodeId) -> Checked<Vec<u8>> {
    let caller = Caller::default();
    let opened = files.open(&caller, ino, libc::O_RDONLY as u32).await.map_err(|e| errno("open", e))?;
    let mut content = Vec::new();
    loop {
        let read = files.read(&caller, ino, opened.handle, content.len() as u64, 128 << 10);
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
            15..=44 => self.write(&name, random).await,
            45..=54 => self.read(&name).await,
            55..=61 => self.rename(&name, &format!("f{}", random.random_range(0..NAMES))).await,
            62..=67 => self.unlink(&name).await,
            68..=71 => self.link(&name, &format!("f{}", random.random_range(0..NAMES))).await,
            72..=76 => self.truncate(&name, random).await,
            77..=82 => self.set().await,
            83..=87 => self.get().await,
            88..=91 => self.name(random).await,
            92 if self.counter.is_multiple_of(3) => self.die().await,
            _ => self.append().await,
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

    fn note(&self, began: Duration, what: What) {
        let event = Event { client: self.number, began, ended: seam::elapsed(), what };
        self.events.borrow_mut().push(event);
    }

    fn next_value(&mut self) -> u64 {
        self.counter += 1;
        ((self.number as u64 + 1) << 32) | self.counter
    }

    async fn set(&mut self) -> Checked<()> {
        let (value, began) = (self.next_value(), seam::elapsed());
        // Large ones fill the log, so that it is dropped, and who was away needs a snapshot.
        let mut bytes = value.to_le_bytes().to_vec();
        bytes.resize(8 + (value as usize * 7919) % REGISTER_BYTES_MAX, 7);
        let bytes = Bytes::from(bytes);
        let register = Bytes::from_static(REGISTER);
        let files = &self.mount.files;
        let asked = files.setxattr(&self.caller, self.shared.register, register, bytes, 0, false);
        asked.await.map_err(|e| errno("setxattr", e))?;
        self.note(began, What::Set(value));
        Ok(())
    }

    async fn get(&mut self) -> Checked<()> {
        let began = seam::elapsed();
        let register = Bytes::from_static(REGISTER);
        let asked = self.mount.files.getxattr(&self.caller, self.shared.register, register).await;
        let bytes = asked.map_err(|e| errno("getxattr", e))?;
        let value = bytes.first_chunk::<8>().ok_or("the register is torn")?;
        self.note(began, What::Get(u64::from_le_bytes(*value)));
        Ok(())
    }

    /// Does something with a name that others use, too: makes it, looks it up or removes it.
    async fn name(&mut self, random: &mut StdRng) -> Checked<()> {
        let number = random.random_range(0..SHARED_NAMES);
        let name = shared_name(number);
        let (files, caller, folder) = (&self.mount.files, &self.caller, self.shared.folder);
        let began = seam::elapsed();
        let op = match random.random_range(0..3) {
            0 => {
                let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
                match files.create(caller, folder, name, 0o100_644, flags).await {
                    Ok((entry, opened)) => {
                        let ino = entry.attributes.ino;
                        let released = files.release(caller, ino, opened.handle, None, false).await;
                        released.map_err(|e| errno("release", e))?;
                        NameOp::Made(Some(ino))
                    }
                    Err(Errno(libc::EEXIST)) => NameOp::Made(None),
                    Err(error) => return Err(errno("create of a shared name", error)),
                }
            }
            1 => match files.unlink(caller, folder, name).await {
                Ok(()) => NameOp::Removed(true),
                Err(Errno(libc::ENOENT)) => NameOp::Removed(false),
                Err(error) => return Err(errno("unlink of a shared name", error)),
            },
            _ => NameOp::Found(find_shared(files, folder, name).await?),
        };
        self.note(began, What::Name(number, op));
        Ok(())
    }

    async fn append(&mut self) -> Checked<()> {
        let value = self.next_value();
        let mut record = [0; RECORD_BYTES];
        record[..8].copy_from_slice(&value.to_le_bytes());
        record[8..].copy_from_slice(&(!value).to_le_bytes());
        let began = seam::elapsed();
        let (files, log) = (&self.mount.files, self.shared.log);
        let flags = (libc::O_WRONLY | libc::O_APPEND) as u32;
        let opened = files.open(&self.caller, log, flags).await.map_err(|e| errno("open", e))?;
        let how = WriteFlags { append: true, ..WriteFlags::default() };
        let data = Bytes::copy_from_slice(&record);
        let (lost, mut full) = (self.lost(), self.full.get());
        let written = files.write(&self.caller, log, opened.handle, 0, data, how).await;
        let released = files.release(&self.caller, log, opened.handle, None, false).await;
        released.map_err(|e| errno("release", e))?;
        full |= self.full.get();
        match written {
            Err(Errno(libc::ENOSPC)) if full => {}
            Ok(_) => self.note(began, What::Append(record)),
            // It is not there, and won't be.
            Err(Errno(libc::EIO)) if self.lost() != lost => {}
            Err(error) => return Err(errno("append", error)),
        }
        Ok(())
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
