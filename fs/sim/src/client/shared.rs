//! What all clients do in common, written down with its times.

use std::time::Duration;

use atoll_client::vfs::{Caller, Errno, Vfs, WriteFlags};
use atoll_core::ids::{InodeId, ROOT};
use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::{Checked, SimClient, errno};
use crate::nodes::{FileSystem, some_time};
use crate::seam;

/// Names that all clients make and remove.
const SHARED_NAMES: usize = 2;
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

impl SimClient {
    fn note(&self, began: Duration, what: What) {
        let event = Event { client: self.number, began, ended: seam::elapsed(), what };
        self.events.borrow_mut().push(event);
    }

    fn next_value(&mut self) -> u64 {
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
        let asked = files.setxattr(&self.caller, self.shared.register, register, bytes, 0, false);
        asked.await.map_err(|e| errno("setxattr", e))?;
        self.note(began, What::Set(value));
        Ok(())
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

    pub(super) async fn append(&mut self) -> Checked<()> {
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
}
