//! Many things in a row, none of which waits: a mount that is alone carries them out itself, and has committed few of them when
//! something happens to it.

use atoll_client::vfs::{Vfs, WriteFlags};
use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::{Change, Checked, NAMES, SimClient, errno};

impl SimClient {
    /// Does them, and then perhaps dies.
    pub(super) async fn burst(&mut self, random: &mut StdRng) -> Checked<()> {
        for _ in 0..random.random_range(3..30) {
            let [name, other] = [(); 2].map(|()| format!("f{}", random.random_range(0..NAMES)));
            match random.random_range(0..8) {
                0 | 1 => self.create(&name).await?,
                2 => self.unlink(&name).await?,
                3 | 4 => self.rename(&name, &other).await?,
                5 => self.link(&name, &other).await?,
                _ => self.write_little(&name, random).await?,
            }
            if self.has_lost() {
                // What was lost is looked at next.
                return Ok(());
            }
        }
        match random.random_range(0..8) {
            0 => {
                let synced = self.mount.files.fsyncdir(&self.caller, self.folder, 0, false).await;
                if self.has_lost() {
                    return Ok(());
                }
                synced.map_err(|error| errno("fsync of a directory", error))?;
                self.synced();
                self.die().await
            }
            1 => self.die().await,
            2 | 3 => self.be_taken_over(None).await,
            _ => self.list_folder().await,
        }
    }

    /// What a listing has right after them is what was done.
    async fn list_folder(&mut self) -> Checked<()> {
        let (files, caller) = (&self.mount.files, &self.caller);
        let listed = async {
            let handle = files.opendir(caller, self.folder, 0).await?.handle;
            let listed = files.readdir(caller, self.folder, handle, 0, 64 << 10, false).await;
            files.releasedir(caller, self.folder, handle).await?;
            listed
        };
        let listed = listed.await;
        if self.has_lost() {
            return Ok(());
        }
        let listed = listed.map_err(|error| errno("readdir", error))?;
        let names = listed.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned());
        let mut names: Vec<String> = names.filter(|name| name != "." && name != "..").collect();
        names.sort_unstable();
        match names.iter().eq(self.names.keys()) {
            true => Ok(()),
            false => Err(format!("a listing has the names {names:?}, not {:?}", self.names.keys())),
        }
    }

    /// Writes a little, and closes the file; sometimes it syncs it.
    async fn write_little(&mut self, name: &str, random: &mut StdRng) -> Checked<()> {
        let Some(&file) = self.names.get(name) else { return self.create(name).await };
        let (ino, caller) = (self.files[file].ino, self.caller.clone());
        let opened = self.mount.files.open(&caller, ino, libc::O_RDWR as u32).await;
        if opened.is_err() && self.has_lost() {
            return Ok(());
        }
        let handle = opened.map_err(|error| errno("open", error))?.handle;
        if self.has_lost() {
            // What was lost before it was open is none of this handle's business.
            let released = self.mount.files.release(&caller, ino, handle, None, false).await;
            return released.map_err(|error| errno("release", error));
        }
        let (lost, full) = (self.lost(), self.full.get());
        let offset = random.random_range(0..=self.files[file].content.len().min(4000));
        self.counter += 1;
        let data = vec![self.counter as u8; random.random_range(1..600)];
        let bytes = Bytes::copy_from_slice(&data);
        let written =
            self.mount.files.write(&caller, ino, handle, offset as u64, bytes, WriteFlags::default()).await;
        // What a full volume has no room for isn't written.
        let part = written.as_ref().map_or(data.len(), |part| *part as usize);
        if written.is_ok() || self.has_lost() {
            self.files[file].change(Change::Write(offset, data[..part].to_vec()));
        }
        let done = async {
            written?;
            self.mount.files.flush(&caller, ino, handle, 1).await?;
            if random.random_ratio(1, 4) {
                self.mount.files.fsync(&caller, ino, handle, false).await?;
                return Ok(true);
            }
            Ok(false)
        };
        let done = done.await;
        let released = self.mount.files.release(&caller, ino, handle, None, false).await;
        match done {
            _ if self.lost() != lost => Ok(()),
            Err(atoll_client::vfs::Errno(libc::ENOSPC)) if full || self.full.get() => Ok(()),
            Err(error) => Err(errno("write", error)),
            Ok(is_synced) => {
                if is_synced {
                    self.files[file].settle();
                    self.synced();
                }
                released.map_err(|error| errno("release", error))
            }
        }
    }
}
