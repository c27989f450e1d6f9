//! Operations on names.

use atoll_core::attributes::FileKind;
use atoll_core::commands::{RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Renamed, ops};
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_proto::queries;
use bytes::Bytes;

use super::{Client, check_name};
use crate::metadata::{ClientError, Metadata};
use crate::rights::Right;
use crate::vfs::{Caller, Entry, Result};

impl<M: Metadata> Client<M> {
    pub(super) async fn do_lookup(&self, caller: &Caller, parent: InodeId, name: Bytes) -> Result<Entry> {
        check_name(&name)?;
        let asked = self.asking();
        if self.right(parent) != Right::None && self.complete.has_not(parent, &name) {
            return Err(FsError::NotFound.into());
        }
        let attributes = self.metadata.ask(queries::Lookup { parent, name }).await?;
        Ok(self.entry(caller, attributes, asked).await)
    }

    pub(super) async fn do_readlink(&self, ino: InodeId) -> Result<Bytes> {
        Ok(self.metadata.ask(queries::ReadLink { ino }).await?)
    }

    /// Makes an inode of any kind and its name.
    pub(super) async fn do_mknod(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        mode: u32,
        rdev: u32,
        target: Bytes,
    ) -> Result<Entry> {
        check_name(&name)?;
        // mknod(2): without a type it is a file.
        let mode = match FileKind::of_mode(mode) {
            None if mode & atoll_core::attributes::S_IFMT == 0 => FileKind::File.mode_bits() | mode,
            _ => mode,
        };
        let Caller { uid, gid, umask, .. } = *caller;
        let op = ops::Create { parent, name, ino: None, mode, uid, gid, rdev, target, umask };
        let attributes = self.metadata.mutate(op).await?;
        self.void_kept(caller, [parent]).await;
        Ok(self.entry(caller, *attributes, self.done()).await)
    }

    pub(super) async fn do_unlink(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Bytes,
        directory: bool,
    ) -> Result<()> {
        check_name(&name)?;
        let removed = self.metadata.mutate(ops::Unlink { parent, name, directory }).await?;
        self.changed(&removed);
        let ino = removed.ino;
        if removed.nlink == 0 {
            self.note_removed(*removed);
        }
        self.void_kept(caller, [parent, ino]).await;
        Ok(())
    }

    pub(super) async fn do_rename(
        &self,
        caller: &Caller,
        (parent, name): (InodeId, Bytes),
        (new_parent, new_name): (InodeId, Bytes),
        flags: u32,
    ) -> Result<()> {
        check_name(&name)?;
        check_name(&new_name)?;
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT) != 0 {
            return Err(FsError::InvalidArgument.into());
        }
        // Else a file that is written and renamed over another could be empty after a crash.
        self.settle_name(parent, &name).await?;
        if flags & RENAME_EXCHANGE != 0 {
            self.settle_name(new_parent, &new_name).await?;
        }
        // Who renames is told only where it makes something.
        let whiteout = (caller.uid, caller.gid);
        let op = ops::Rename { parent, name, new_parent, new_name, flags, whiteout };
        let Renamed { moved, replaced } = self.metadata.mutate(op).await?;
        self.changed(&moved);
        self.void_kept(caller, [parent, new_parent, moved.ino]).await;
        if let Some(replaced) = replaced {
            self.changed(&replaced);
            self.void_kept(caller, [replaced.ino]).await;
            if replaced.nlink == 0 {
                self.note_removed(*replaced);
            }
        }
        Ok(())
    }

    /// Commits what is buffered of the file with this name, if there is such a file.
    async fn settle_name(&self, parent: InodeId, name: &Bytes) -> std::result::Result<(), ClientError> {
        if !self.data.has_dirty_files() {
            return Ok(());
        }
        match self.metadata.ask(queries::Lookup { parent, name: name.clone() }).await {
            Ok(attributes) => self.settle(attributes.ino).await,
            // The rename itself will say it.
            Err(ClientError::Fs(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn do_link(
        &self,
        caller: &Caller,
        ino: InodeId,
        parent: InodeId,
        name: Bytes,
    ) -> Result<Entry> {
        check_name(&name)?;
        self.settle(ino).await?;
        let attributes = self.metadata.mutate(ops::Link { ino, parent, name }).await?;
        self.changed(&attributes);
        self.void_kept(caller, [parent, ino]).await;
        Ok(self.entry(caller, *attributes, self.done()).await)
    }
}
