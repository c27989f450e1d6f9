//! What all clients do in common, written down with its times.

use std::cell::Cell;
use std::time::Duration;

use atoll_client::vfs::{Caller, Errno, LockKind, Vfs, WriteFlags};
use atoll_core::ids::{InodeId, ROOT};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Checked, SimClient, errno};
use crate::nodes::{FileSystem, some_time};
use crate::seam;

/// Names that all clients make and remove.
const SHARED_NAMES: usize = 2;
/// The name of the attribute that all clients set and get.
const REGISTER: &[u8] = b"user.register";
/// Bytes of its value.
const REGISTER_BYTES_MAX: usize = 30_000;
/// Numbers in the counters' file.
const COUNTERS: usize = 2;
/// The number that all count on by making a file longer, under a lock on all of it.
const TALLY: usize = COUNTERS;
/// What they make it longer by.
const MARK: u8 = b'#';
/// Bytes that are read of it at once: more than it ever has.
const TALLY_BYTES_MAX: usize = 1 << 14;
/// Bytes of one of them.
const DIGITS: usize = 20;
/// The lock owner of those who take no lock.
const READER: u64 = 1000;
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
    /// Under its lock this counter had this value, and was given the next one.
    Count(usize, u64),
    /// Who opened the counters' file found this value of this one.
    Peek(usize, u64),
    /// Who opened the file that all append to, or had it open (`false`), found this in it.
    Follow(bool, Vec<u8>),
}

/// What was done with a name, and what the answer was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameOp {
    /// A file was made; or not, since there was one.
    Made(Option<InodeId>),
    /// A file was made in a session that was lost since, and others may have removed it by now.
    MadeInLost,
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
    /// The file with the numbers that all count on, each under a lock of its own.
    pub counter: InodeId,
    /// The file whose length is a number, see [`TALLY`].
    tally: InodeId,
}

/// Makes the shared folder's files.
pub async fn make_shared(files: &FileSystem) -> Checked<Shared> {
    let caller = Caller::default();
    let mut made = Vec::new();
    for name in ["register", "log", "counter", "tally"] {
        let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
        let bytes = Bytes::from_static(name.as_bytes());
        let (entry, opened) =
            files.create(&caller, ROOT, bytes, 0o100_644, flags).await.map_err(|e| errno("create", e))?;
        let ino = entry.attributes.ino;
        if name == "counter" {
            let zeroes = Bytes::from(digits(0).repeat(COUNTERS));
            let written = files.write(&caller, ino, opened.handle, 0, zeroes, WriteFlags::default()).await;
            written.map_err(|e| errno("write", e))?;
            files.flush(&caller, ino, opened.handle, 0).await.map_err(|e| errno("close", e))?;
        }
        files.release(&caller, ino, opened.handle, None, false).await.map_err(|e| errno("release", e))?;
        made.push(ino);
    }
    let zero = Bytes::copy_from_slice(&0u64.to_le_bytes());
    let set = files.setxattr(&caller, made[0], Bytes::from_static(REGISTER), zero, 0, false);
    set.await.map_err(|e| errno("setxattr", e))?;
    let folder = files.mkdir(&caller, ROOT, Bytes::from_static(b"shared"), 0o777).await;
    let folder = folder.map_err(|e| errno("mkdir", e))?.attributes.ino;
    Ok(Shared { register: made[0], log: made[1], counter: made[2], tally: made[3], folder })
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

impl SimClient {
    fn note(&self, began: Duration, what: What) {
        let event = Event { client: self.number, began, ended: seam::elapsed(), what };
        self.events.borrow_mut().push(event);
    }

    pub(super) fn next_value(&mut self) -> u64 {
        self.counter += 1;
        ((self.number as u64 + 1) << 32) | self.counter
    }

    pub(super) async fn set(&mut self) -> Checked<()> {
        let (value, began) = (self.next_value(), seam::elapsed());
        // Large ones fill the log, so that it is dropped, and who was away needs a snapshot.
        let mut bytes = value.to_le_bytes().to_vec();
        bytes.resize(8 + (value as usize * 7919) % REGISTER_BYTES_MAX, 7);
        let bytes = Bytes::from(bytes);
        let register = Bytes::from_static(REGISTER);
        let files = &self.mount.files;
        let lost = self.lost();
        let asked =
            files.setxattr(&self.caller, self.shared.register, register.clone(), bytes, 0, false).await;
        if self.settle_shared(lost).await? {
            asked.map_err(|e| errno("setxattr", e))?;
            self.note(began, What::Set(value));
            return Ok(());
        }
        // It may be lost: what is there says so.
        let found = files.getxattr(&self.caller, self.shared.register, register).await;
        let found = found.map_err(|e| errno("getxattr", e))?;
        if found.first_chunk::<8>() == Some(&value.to_le_bytes()) {
            self.note(began, What::Set(value));
        }
        Ok(())
    }

    /// On a volume for this mount alone, what is done may be lost with the session until it is synced. False if a session was
    /// lost since `lost` were.
    async fn settle_shared(&self, lost: u64) -> Checked<bool> {
        if !self.exclusive {
            return Ok(true);
        }
        let synced = self.mount.files.fsyncdir(&self.caller, self.shared.folder, 0, false).await;
        if self.lost() != lost {
            return Ok(false);
        }
        synced.map(|()| true).map_err(|error| errno("fsync of a directory", error))
    }

    pub(super) async fn get(&mut self) -> Checked<()> {
        let began = seam::elapsed();
        let register = Bytes::from_static(REGISTER);
        let asked = self.mount.files.getxattr(&self.caller, self.shared.register, register).await;
        let bytes = asked.map_err(|e| errno("getxattr", e))?;
        let value = bytes.first_chunk::<8>().ok_or("the register is torn")?;
        self.note(began, What::Get(u64::from_le_bytes(*value)));
        Ok(())
    }

    /// Looks at the register again and again, and changes nothing meanwhile: whoever changes something hears soon enough that
    /// another member leads.
    pub(super) async fn watch(&mut self, random: &mut StdRng) -> Checked<()> {
        for _ in 0..random.random_range(5..20) {
            self.get().await?;
            tokio::time::sleep(some_time(random, 50, 400)).await;
        }
        Ok(())
    }

    /// Does something with a name that others use, too: makes it, looks it up or removes it.
    pub(super) async fn name(&mut self, random: &mut StdRng) -> Checked<()> {
        let number = random.random_range(0..SHARED_NAMES);
        let name = shared_name(number);
        let (files, caller, folder) = (&self.mount.files, &self.caller, self.shared.folder);
        let (began, lost) = (seam::elapsed(), self.lost());
        let asked = match random.random_range(0..3) {
            0 => self.make_shared_name(name.clone(), lost).await,
            1 => match files.unlink(caller, folder, name.clone()).await {
                Ok(()) => Ok(NameOp::Removed(true)),
                Err(Errno(libc::ENOENT)) => Ok(NameOp::Removed(false)),
                Err(error) => Err(errno("unlink of a shared name", error)),
            },
            _ => find_shared(files, folder, name.clone()).await.map(NameOp::Found),
        };
        if self.settle_shared(lost).await? {
            self.note(began, What::Name(number, asked?));
            return Ok(());
        }
        // What was done may be lost with the session: what is there says so.
        let found = find_shared(files, folder, name).await?;
        let op = match asked {
            Ok(NameOp::Made(Some(ino))) if found != Some(ino) => return Ok(()),
            Ok(NameOp::Removed(true)) if found.is_some() => return Ok(()),
            // It was said to be lost and isn't, or the other way round.
            Ok(NameOp::MadeInLost) | Err(_) => {
                let op = found.map_or(NameOp::Removed(true), |ino| NameOp::Made(Some(ino)));
                let before = self.last_shared(number);
                match (before, found) {
                    (before, found) if before == found => return Ok(()),
                    _ => op,
                }
            }
            Ok(op) => op,
        };
        self.note(began, What::Name(number, op));
        Ok(())
    }

    /// What a name meant as of the last event about it.
    fn last_shared(&self, number: usize) -> Option<InodeId> {
        let events = self.events.borrow();
        let last = events.iter().rev().find_map(|event| match &event.what {
            What::Name(name, op) if *name == number => Some(op.clone()),
            _ => None,
        });
        match last {
            Some(NameOp::Made(Some(ino)) | NameOp::Found(Some(ino))) => Some(ino),
            _ => None,
        }
    }

    async fn make_shared_name(&self, name: Bytes, lost: u64) -> Checked<NameOp> {
        let (files, caller, folder) = (&self.mount.files, &self.caller, self.shared.folder);
        let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
        match files.create(caller, folder, name, 0o100_644, flags).await {
            Ok((entry, opened)) => {
                let ino = entry.attributes.ino;
                self.fill_shared((ino, opened.handle)).await?;
                let released = files.release(caller, ino, opened.handle, None, false).await;
                released.map_err(|e| errno("release", e))?;
                Ok(NameOp::Made(Some(ino)))
            }
            Err(Errno(libc::EEXIST)) => Ok(NameOp::Made(None)),
            Err(Errno(libc::EIO)) if self.lost() != lost => Ok(NameOp::MadeInLost),
            Err(error) => Err(errno("create of a shared name", error)),
        }
    }

    /// Who has made a file writes to it, whoever removes its name meanwhile.
    async fn fill_shared(&self, (ino, handle): (InodeId, u64)) -> Checked<()> {
        let (files, caller) = (&self.mount.files, &self.caller);
        let (lost, full) = (self.lost(), self.full.get());
        let data = Bytes::from_static(&[7; 3000]);
        let written = files.write(caller, ino, handle, 0, data, WriteFlags::default()).await;
        let synced = match written {
            Ok(_) => files.fsync(caller, ino, handle, false).await,
            Err(error) => Err(error),
        };
        match synced {
            Err(Errno(libc::ENOSPC)) if full || self.full.get() => Ok(()),
            synced => self.unless_lost("writing to a file whose name others may have removed", lost, synced),
        }
    }

    /// Appends, while others of this mount read what there is.
    pub(super) async fn append(&mut self, random: &mut StdRng) -> Checked<()> {
        let value = self.next_value();
        let done = Cell::new(false);
        let mut follower = || StdRng::seed_from_u64(random.random());
        let looking = [(1, follower()), (2, follower())];
        let looking = looking.map(|(thread, random)| self.follow(thread, random, &done));
        let appending = async {
            let appended = self.append_one(value).await;
            done.set(true);
            appended
        };
        futures::try_join!(futures::future::try_join_all(looking), appending).map(drop)
    }

    /// One of the threads that use this mount.
    pub(super) fn thread(&self, pid: u32) -> Caller {
        Caller { pid, ..self.caller.clone() }
    }

    async fn append_one(&self, value: u64) -> Checked<()> {
        let mut record = [0; RECORD_BYTES];
        record[..8].copy_from_slice(&value.to_le_bytes());
        record[8..].copy_from_slice(&(!value).to_le_bytes());
        let began = seam::elapsed();
        let (kernel, log, caller) = (&self.kernel, self.shared.log, &self.thread(3));
        let opened = kernel.open(caller, log, libc::O_WRONLY | libc::O_APPEND).await;
        let handle = opened.map_err(|e| errno("open", e))?.handle;
        let (lost, mut full) = (self.lost(), self.full.get());
        let written = kernel.append(caller, (log, handle), Bytes::copy_from_slice(&record)).await;
        let released = self.mount.files.release(caller, log, handle, None, false).await;
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

    /// Looks at the file that all append to until `done`, and once more: through a descriptor that stays open, and through new ones.
    async fn follow(&self, thread: u32, mut random: StdRng, done: &Cell<bool>) -> Checked<()> {
        let (log, caller) = (self.shared.log, &self.thread(thread));
        let open = async || self.kernel.open(caller, log, libc::O_RDONLY).await;
        let lost = self.lost();
        let followed = async {
            let kept = open().await?.handle;
            loop {
                let last = done.get();
                let began = seam::elapsed();
                let opens = random.random_bool(0.5);
                let handle = if opens { open().await?.handle } else { kept };
                let size = self.kernel.stat(caller, log).await?.attributes.size;
                let found = self.kernel.read(caller, (log, handle), 0, size as usize).await?;
                self.note(began, What::Follow(opens, found));
                if opens {
                    self.kernel.close(caller, (log, handle), READER).await?;
                }
                if last {
                    return self.kernel.close(caller, (log, kept), READER).await;
                }
                tokio::time::sleep(Duration::from_micros(random.random_range(0..3000))).await;
            }
        };
        self.unless_lost("following", lost, followed.await)
    }

    /// An error is right if a session was lost since.
    pub(super) fn unless_lost(&self, what: &str, lost: u64, result: Result<(), Errno>) -> Checked<()> {
        match result {
            Err(Errno(libc::EIO)) if self.lost() != lost => Ok(()),
            result => result.map_err(|error| errno(what, error)),
        }
    }

    /// Counts a few times on each number, under its lock, while others of this mount look at them without one.
    pub(super) async fn count(&mut self, random: &mut StdRng) -> Checked<()> {
        let mut others = StdRng::seed_from_u64(random.random());
        let running = Cell::new(TALLY + 1);
        let counting = (0..=TALLY).map(|counter| {
            let mut random = StdRng::seed_from_u64(random.random());
            let (client, running) = (&*self, &running);
            async move {
                let (lost, full) = (client.lost(), client.full.get());
                let counted = match counter {
                    TALLY => client.make_longer(&mut random).await,
                    _ => client.count_on(counter, &mut random).await,
                };
                running.set(running.get() - 1);
                match counted {
                    Err(Errno(libc::ENOSPC)) if full || client.full.get() => Ok(()),
                    counted => client.unless_lost("counting", lost, counted),
                }
            }
        });
        let counting = futures::future::try_join_all(counting);
        futures::try_join!(self.peek(&mut others, &running), counting).map(drop)
    }

    async fn count_on(&self, counter: usize, random: &mut StdRng) -> Result<(), Errno> {
        let (kernel, caller, ino) = (&self.kernel, &self.thread(6 + counter as u32), self.shared.counter);
        let owner = (self.number * COUNTERS + counter) as u64 + 1;
        let start = (counter * DIGITS) as u64;
        let range = start..start + DIGITS as u64;
        let file = (ino, kernel.open(caller, ino, libc::O_RDWR).await?.handle);
        let counted = async {
            for _ in 0..random.random_range(2..8) {
                let began = seam::elapsed();
                kernel.lock(caller, file, owner, range.clone(), LockKind::Write).await?;
                let value = number(&kernel.read(caller, file, start, DIGITS).await?)?;
                kernel.write(caller, file, start, &digits(value + 1)).await?;
                kernel.lock(caller, file, owner, range.clone(), LockKind::Unlock).await?;
                self.note(began, What::Count(counter, value));
                tokio::time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
            }
            Ok(())
        };
        let counted = counted.await;
        let closed = kernel.close(caller, file, owner).await;
        counted.and(closed)
    }

    /// The same with [`TALLY`], by a thread of its own.
    async fn make_longer(&self, random: &mut StdRng) -> Result<(), Errno> {
        let (kernel, caller, ino) = (&self.kernel, &self.thread(4), self.shared.tally);
        let owner = (READER + 1) * (self.number as u64 + 1);
        let range = 0..TALLY_BYTES_MAX as u64;
        let file = (ino, kernel.open(caller, ino, libc::O_RDWR).await?.handle);
        let counted = async {
            for _ in 0..random.random_range(2..8) {
                let began = seam::elapsed();
                kernel.lock(caller, file, owner, range.clone(), LockKind::Write).await?;
                let value = self.tally(caller, file).await?;
                kernel.write(caller, file, value, &[MARK]).await?;
                kernel.lock(caller, file, owner, range.clone(), LockKind::Unlock).await?;
                self.note(began, What::Count(TALLY, value));
                tokio::time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
            }
            Ok(())
        };
        let counted = counted.await;
        let closed = kernel.close(caller, file, owner).await;
        counted.and(closed)
    }

    async fn tally(&self, caller: &Caller, file: (InodeId, u64)) -> Result<u64, Errno> {
        let found = self.kernel.read(caller, file, 0, TALLY_BYTES_MAX).await?;
        match found.iter().all(|byte| *byte == MARK) {
            true => Ok(found.len() as u64),
            false => Err(Errno(libc::EBADMSG)),
        }
    }

    async fn peek(&self, random: &mut StdRng, running: &Cell<usize>) -> Checked<()> {
        let (kernel, caller, ino) = (&self.kernel, &self.thread(5), self.shared.counter);
        let lost = self.lost();
        let peeked = async {
            while running.get() > 0 {
                let began = seam::elapsed();
                let file = (ino, kernel.open(caller, ino, libc::O_RDONLY).await?.handle);
                let found = kernel.read(caller, file, 0, DIGITS * COUNTERS).await?;
                for (counter, digits) in found.chunks(DIGITS).enumerate() {
                    self.note(began, What::Peek(counter, number(digits)?));
                }
                kernel.close(caller, file, READER).await?;
                let began = seam::elapsed();
                let file =
                    (self.shared.tally, kernel.open(caller, self.shared.tally, libc::O_RDONLY).await?.handle);
                self.note(began, What::Peek(TALLY, self.tally(caller, file).await?));
                kernel.close(caller, file, READER).await?;
                tokio::time::sleep(Duration::from_micros(random.random_range(0..5000))).await;
            }
            Ok(())
        };
        self.unless_lost("looking at the counters", lost, peeked.await)
    }
}

/// A number as the counters' file has it.
fn digits(number: u64) -> [u8; DIGITS] {
    let mut digits = [b'0'; DIGITS];
    for (place, digit) in format!("{number:0DIGITS$}").bytes().enumerate() {
        digits[place] = digit;
    }
    digits
}

fn number(digits: &[u8]) -> Result<u64, Errno> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.len() == DIGITS);
    text.and_then(|text| text.parse().ok()).ok_or(Errno(libc::EBADMSG))
}
