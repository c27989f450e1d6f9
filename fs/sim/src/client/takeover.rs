//! A client whose process is killed, and whose mount another one takes over.

use atoll_client::vfs::{Errno, FileLock, LockKind, Vfs};
use atoll_core::ids::InodeId;

use super::{Checked, Kernel, SimClient, errno, read_file};
use crate::nodes::{Mount, client_name};

/// An open file with a lock on it.
#[derive(Clone, Copy)]
pub(super) struct Locked {
    ino: InodeId,
    handle: u64,
}

fn whole_file() -> FileLock {
    FileLock { kind: LockKind::Write, start: 0, end: i64::MAX as u64, pid: 1 }
}

impl SimClient {
    /// Its process is killed, and another one takes the mount over: nothing is lost but with the session, and of a lock only if
    /// its holder is told.
    pub(super) async fn be_taken_over(&mut self, locked: Option<Locked>) -> Checked<()> {
        if self.has_lost() {
            // What was lost is looked at next.
            return Ok(());
        }
        self.deaths += 1;
        let name = format!("{}x{}", client_name(self.number), self.deaths);
        let left = self.mount.die(&self.network)?;
        let (mount, is_lost) = Mount::succeed(&name, self.members, &self.network, left).await?;
        self.kernel = Kernel::new(&mount.files);
        self.mount = mount;
        self.lost_seen = 0;
        if let Some(locked) = locked {
            self.is_locked_or_told(&locked).await?;
        }
        if is_lost {
            return self.find("after its session was lost while nobody had it").await;
        }
        let found = self.list(&self.mount.files).await?;
        let expected = self.names.iter().map(|(name, file)| (name.clone(), self.files[*file].ino)).collect();
        if found != expected && !self.has_lost() {
            return Err(format!("after a takeover there are the names {found:?}, not {expected:?}"));
        }
        for (name, &file) in &self.names {
            let model = &self.files[file];
            let found = read_file(&self.mount.files, model.ino).await?;
            // Unless the session was lost since: that is looked at next.
            if model.content != found && !self.has_lost() {
                let (has, is) = (found.len(), model.content.len());
                return Err(format!("{name} has {has} bytes after a takeover, which are not its {is} bytes"));
            }
        }
        Ok(())
    }

    /// Opens and locks a file of its own, if it has one.
    pub(super) async fn lock_one(&mut self) -> Checked<Option<Locked>> {
        let Some(&file) = self.names.values().next() else { return Ok(None) };
        let ino = self.files[file].ino;
        let opened = self.mount.files.open(&self.caller, ino, libc::O_RDWR as u32).await;
        let handle = opened.map_err(|e| errno("open", e))?.handle;
        let taken = self.mount.files.setlk(&self.caller, ino, handle, 1, whole_file(), true, false).await;
        match taken {
            Ok(()) => Ok(Some(Locked { ino, handle })),
            // What was written is lost with the session, or the lock can't be had yet.
            Err(_) if self.has_lost() => Ok(None),
            Err(error) => Err(errno("flock", error)),
        }
    }

    /// Either the lock keeps others out, or who has it gets errors. Then it is let go of.
    async fn is_locked_or_told(&self, locked: &Locked) -> Checked<()> {
        let (files, Locked { ino, handle }) = (&self.mount.files, *locked);
        let opened = files.open(&self.caller, ino, libc::O_RDWR as u32).await;
        let other = opened.map_err(|e| errno("open", e))?.handle;
        let taken = files.setlk(&self.caller, ino, other, 2, whole_file(), true, false).await;
        let read = files.read(&self.caller, ino, handle, 0, 10, true).await;
        let outcome = match (&taken, &read) {
            (Err(Errno(libc::EAGAIN)), Ok(_)) | (_, Err(Errno(libc::EIO))) => Ok(()),
            _ if self.has_lost() => Ok(()),
            (Ok(()), Ok(_)) => Err("a lock is lost, and its holder isn't told".to_owned()),
            (Err(error), Ok(_)) => Err(errno("flock by another one", *error)),
            (_, Err(error)) => Err(errno("read with a lock", *error)),
        };
        for handle in [handle, other] {
            let released = files.release(&self.caller, ino, handle, None, true).await;
            if let Err(error) = released
                && !self.has_lost()
                && error.0 != libc::EIO
            {
                return Err(errno("release", error));
            }
        }
        outcome
    }
}
