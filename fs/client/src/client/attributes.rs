//! `stat`, `chmod`, `chown`, `truncate`, `utimensat`, `statfs`.

use std::time::Duration;

use atoll_core::attributes::{AttributeChanges, Attributes, FileKind};
use atoll_core::commands::Op;
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, ROOT};
use atoll_core::limits::NAME_BYTES_MAX;

use super::{Client, ROOT_PATIENCE, inode_of};
use crate::metadata::{ClientError, Metadata};
use crate::vfs::{AttributeReply, Result, StatFs};

impl<M: Metadata> Client<M> {
    pub(super) async fn attributes(&self, ino: InodeId) -> Result<AttributeReply> {
        let attributes = match ino {
            ROOT => self.root_attributes().await?,
            _ => self.inode_or_last_seen(ino).await?,
        };
        Ok(self.reply(attributes).await)
    }

    async fn reply(&self, attributes: Attributes) -> AttributeReply {
        AttributeReply { attributes: self.told(attributes).await, ttl: Duration::ZERO }
    }

    /// The root must always be found: whoever looks at the mount point (and everything does that walks the tree
    /// above it) would hang otherwise.
    async fn root_attributes(&self) -> std::result::Result<Attributes, ClientError> {
        let remembered = self.root.lock().clone();
        let Some(remembered) = remembered else { return self.inode(ROOT).await };
        if self.metadata.away_for().is_some_and(|away| away >= ROOT_PATIENCE) {
            return Ok(remembered);
        }
        match tokio::time::timeout(ROOT_PATIENCE, self.inode(ROOT)).await {
            Ok(Err(ClientError::TimedOut)) | Err(_) => Ok(remembered),
            Ok(answer) => answer,
        }
    }

    /// Attributes of an inode. One that this mount removed and that is gone by now still has its last ones for
    /// who refers to it without having it open (a working directory, an `O_PATH` descriptor).
    async fn inode_or_last_seen(&self, ino: InodeId) -> std::result::Result<Attributes, ClientError> {
        match self.inode(ino).await {
            Err(ClientError::Fs(FsError::Stale)) => {
                self.removed.lock().get(&ino).cloned().ok_or(FsError::Stale.into())
            }
            answer => answer,
        }
    }

    pub(super) async fn change_attributes(
        &self,
        ino: InodeId,
        handle: Option<u64>,
        changes: AttributeChanges,
    ) -> Result<AttributeReply> {
        if changes.is_empty() {
            return self.attributes(ino).await;
        }
        if let Some(handle) = handle {
            self.check_not_broken(handle)?;
        }
        let attributes = match changes.size {
            Some(size) => self.resize(ino, size, changes).await?,
            None => {
                // A commit of what was written before would set the old times and clear bits again.
                self.settle(ino).await?;
                let op = Op::SetAttributes { ino, changes };
                let attributes = inode_of(self.metadata.mutate(op).await?)?;
                self.changed(&attributes);
                attributes
            }
        };
        Ok(self.reply(attributes).await)
    }

    /// Sets a file's size (and whatever else is asked for).
    pub(super) async fn resize(
        &self,
        ino: InodeId,
        size: u64,
        changes: AttributeChanges,
    ) -> std::result::Result<Attributes, ClientError> {
        self.data.before_truncate(ino, size).await?;
        let attributes = inode_of(self.metadata.mutate(Op::SetAttributes { ino, changes }).await?)?;
        if attributes.kind() == FileKind::File {
            self.data.after_truncate(ino, &attributes);
            self.pages.resized(ino, attributes.size);
        }
        Ok(attributes)
    }

    /// The volume's size and use, from memory.
    pub(super) fn volume_use(&self) -> StatFs {
        let volume = self.metadata.volume();
        let block = u64::from(self.options.block_bytes);
        StatFs {
            blocks: volume.bytes_total / block,
            blocks_free: volume.bytes_free() / block,
            inodes: volume.inodes_total,
            inodes_free: volume.inodes_free(),
            block_bytes: self.options.block_bytes,
            name_bytes_max: NAME_BYTES_MAX as u32,
        }
    }
}
