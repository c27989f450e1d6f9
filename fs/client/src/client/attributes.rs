//! `stat`, `chmod`, `chown`, `truncate`, `utimensat`, `statfs`.

use std::time::Duration;

use atoll_core::attributes::{
    AttributeChanges, Attributes, FileKind, KillPriv, TimeChange, VolumeUse, without_setid,
};
use atoll_core::commands::ops;
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, ROOT};
use atoll_core::limits::NAME_BYTES_MAX;
use atoll_proto::queries;

use super::identity::{CAP_FOWNER, CAP_FSETID, Identity, is_changing_owner, killed_by_group};
use super::{Asked, Client, ROOT_TIMEOUT};
use crate::metadata::{ClientError, Metadata};
use crate::rights::Right;
use crate::vfs::{AttributeReply, Caller, Result, StatFs};

/// Pauses while a change of size has to wait for what earlier ones left to be freed.
const RESIZE_BACKOFF_MIN: Duration = Duration::from_millis(10);
const RESIZE_BACKOFF_MAX: Duration = Duration::from_millis(200);
/// The volume's use comes from memory when the service doesn't say it for so long.
const USE_TIMEOUT: Duration = Duration::from_secs(1);
/// The kernel tells of a file's last close without waiting for the answer: who asks for the volume's use right after
/// it may overtake it by so much.
const RELEASE_MOMENT: Duration = Duration::from_millis(2);
/// How often the volume's use is asked for while what is buffered here changes.
const USE_ATTEMPTS_MAX: u32 = 40;
/// How often it is looked whether what is on its way is committed.
const COMMIT_POLL: Duration = Duration::from_millis(2);

impl<M: Metadata> Client<M> {
    pub(super) async fn do_getattr(
        &self,
        caller: &Caller,
        ino: InodeId,
        asked: Asked,
    ) -> Result<AttributeReply> {
        let attributes = match (self.described(ino), ino) {
            (Some(described), _) => described,
            (None, ROOT) => self.root_attributes().await?,
            (None, _) => self.inode_or_last_seen(ino).await?,
        };
        Ok(self.reply(caller, attributes, asked).await)
    }

    /// Attributes as they came with the last change, if nobody else can have changed them since.
    fn described(&self, ino: InodeId) -> Option<Attributes> {
        match self.right(ino) {
            Right::None => None,
            Right::Exclusive(_) => self.described.attributes(ino),
        }
    }

    async fn reply(&self, caller: &Caller, attributes: Attributes, asked: Asked) -> AttributeReply {
        let attributes = self.told(caller, attributes, asked.epoch).await;
        AttributeReply { ttl: self.keep_for(caller, &attributes, asked), attributes }
    }

    /// The root must always be found: whoever looks at the mount point (and everything does that walks the tree
    /// above it) would hang otherwise.
    async fn root_attributes(&self) -> std::result::Result<Attributes, ClientError> {
        let remembered = self.root.lock().clone();
        let Some(remembered) = remembered else { return self.inode(ROOT).await };
        if self.metadata.away_for().is_some_and(|away| away >= ROOT_TIMEOUT) {
            return Ok(remembered);
        }
        match tokio::time::timeout(ROOT_TIMEOUT, self.inode(ROOT)).await {
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

    pub(super) async fn do_setattr(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: Option<u64>,
        mut changes: AttributeChanges,
    ) -> Result<AttributeReply> {
        if let Some(attributes) = self.change_removed(ino, &changes).await {
            return Ok(self.reply(caller, attributes, self.done()).await);
        }
        changes.kill_priv |= self.killed_by_change(caller, ino, &changes).await?;
        if self.changes_nothing(ino, &changes).await? {
            return self.do_getattr(caller, ino, self.done()).await;
        }
        if changes.is_empty() {
            match self.chown_to_nobody(caller, ino).await? {
                Some(kill_priv) => changes.kill_priv = kill_priv,
                None => return self.do_getattr(caller, ino, self.done()).await,
            }
        }
        if let Some(handle) = handle {
            self.check_not_broken(handle)?;
        }
        if let Some(size) = changes.size {
            let attributes = self.resize(ino, size, changes).await?;
            // Until it is answered the kernel writes no page of a mapping out, so that pages must not be waited for. It
            // drops them itself.
            return Ok(AttributeReply { attributes: self.seen(attributes), ttl: Duration::ZERO });
        }
        if changes.mtime.is_some() {
            self.settle_mapped(ino).await;
        }
        let attributes = self.change_attributes(ino, changes).await?;
        self.changed(&attributes);
        Ok(self.reply(caller, attributes, self.done()).await)
    }

    async fn change_attributes(
        &self,
        ino: InodeId,
        changes: AttributeChanges,
    ) -> std::result::Result<Attributes, ClientError> {
        if self.right(ino) != Right::None && self.data.has_dirty(ino) {
            let change = |kills| {
                let kill_priv = changes.kill_priv | kills;
                let changes = AttributeChanges { kill_priv, ..changes.clone() };
                self.metadata.mutate(ops::SetAttr { ino, changes })
            };
            if let Some(changed) = self.data.change_before_commit(ino, changes.mtime, change).await {
                return Ok(*changed?);
            }
        }
        // A commit of what was written before would set the old times and clear bits again.
        self.settle(ino).await?;
        Ok(*self.metadata.mutate(ops::SetAttr { ino, changes }).await?)
    }

    /// Has the kernel write out what was stored through mappings: it does so whenever it likes, and a write says no
    /// more than when it comes, so the times of a file would be set anew after somebody has set them.
    async fn settle_mapped(&self, ino: InodeId) {
        if self.handles.may_be_mapped(ino)
            && let Some(stale) = self.pages.all(ino)
        {
            self.drop_pages(stale).await;
        }
    }

    /// Remembers an inode whose last name this mount removed.
    pub(super) fn note_removed(&self, attributes: Attributes) {
        self.metadata.unlinked(attributes.ino);
        if self.right(attributes.ino) != Right::None && self.handles.file(attributes.ino).is_none() {
            self.data.removed(attributes.ino);
        }
        let mut removed = self.removed.lock();
        if removed.len() >= super::REMOVED_MAX {
            // What the kernel hasn't forgotten by now is of use to almost nobody.
            removed.clear();
        }
        removed.insert(attributes.ino, attributes);
    }

    /// Changes what this mount removed and the cluster has forgotten: a directory that somebody still has open. It
    /// has no name to be found by, so nobody else can tell. `None`: the inode isn't one of those.
    async fn change_removed(&self, ino: InodeId, changes: &AttributeChanges) -> Option<Attributes> {
        let known = self.removed.lock().contains_key(&ino);
        if !known || !matches!(self.inode(ino).await, Err(ClientError::Fs(FsError::Stale))) {
            return None;
        }
        let now = self.metadata.now();
        let at = |change: TimeChange| match change {
            TimeChange::Now => now,
            TimeChange::To(time) => time,
        };
        let mut removed = self.removed.lock();
        let attributes = removed.get_mut(&ino)?;
        if let Some(mode) = changes.mode {
            attributes.mode = (attributes.mode & !0o7777) | (mode & 0o7777);
        }
        attributes.uid = changes.uid.unwrap_or(attributes.uid);
        attributes.gid = changes.gid.unwrap_or(attributes.gid);
        attributes.atime = changes.atime.map_or(attributes.atime, at);
        attributes.mtime = changes.mtime.map_or(attributes.mtime, at);
        attributes.ctime = now;
        Some(attributes.clone())
    }

    /// True if owner and mode are to become what they are already. That costs the cluster no entry in its log, and
    /// ctime stays: a pod's `fsGroup` sets what is set on every file of a volume, at every start.
    async fn changes_nothing(&self, ino: InodeId, changes: &AttributeChanges) -> Result<bool> {
        let others = changes.size.is_some() || changes.atime.is_some() || changes.mtime.is_some();
        if others || changes.is_empty() {
            return Ok(false);
        }
        // A commit of what is buffered will clear bits, and move ctime: elsewhere as well where others look.
        let is_dirty = self.data.has_dirty(ino);
        if is_dirty && self.right(ino) == Right::None {
            return Ok(false);
        }
        let attributes = self.inode(ino).await?;
        if is_dirty && self.data.kill_priv(ino).applied_to(attributes.mode) != attributes.mode {
            return Ok(false);
        }
        let mode = changes.mode.map_or(attributes.mode, |mode| (attributes.mode & !0o7777) | (mode & 0o7777));
        let clears = changes.mode.is_none()
            && attributes.kind() != FileKind::Directory
            && changes.kill_priv.applied_to(without_setid(attributes.mode)) != attributes.mode;
        Ok(mode == attributes.mode
            && !clears
            && changes.uid.is_none_or(|uid| uid == attributes.uid)
            && changes.gid.is_none_or(|gid| gid == attributes.gid))
    }

    /// A `chown` to -1 and -1 comes as a change of nothing. As every other one it clears the set-id bits of what
    /// isn't a directory (the result says which); if there are, that is for the owner only.
    /// The kernel announces a write to such a file in the same way, if it is a stranger's or takes capabilities away; the
    /// write itself clears the bits then, if it does, and there is nothing to do yet (`None`).
    pub(super) async fn chown_to_nobody(&self, caller: &Caller, ino: InodeId) -> Result<Option<KillPriv>> {
        let attributes = self.inode(ino).await?;
        if attributes.kind() == FileKind::Directory {
            return Ok(Some(KillPriv::NONE));
        }
        let who = Identity::of(caller);
        let mut kill_priv = KillPriv::SETID;
        if !who.is_some_and(|who| who.has(CAP_FSETID)) {
            kill_priv |= killed_by_group(caller, Some(&attributes));
        }
        if kill_priv.applied_to(attributes.mode) == attributes.mode {
            return Ok(Some(KillPriv::NONE));
        }
        let is_write = self.handles.has_writer(ino) && !is_changing_owner(caller.pid).await;
        match who {
            Some(who) if who.uid != attributes.uid && !who.has(CAP_FOWNER) => match is_write {
                true => Ok(None),
                false => Err(FsError::NotPermitted.into()),
            },
            Some(who) if is_write && who.has(CAP_FSETID) => Ok(None),
            _ => Ok(Some(kill_priv)),
        }
    }

    /// What an inode loses by a change of its size or its owner, besides what the change says already.
    async fn killed_by_change(
        &self,
        caller: &Caller,
        ino: InodeId,
        changes: &AttributeChanges,
    ) -> std::result::Result<KillPriv, ClientError> {
        let chown = changes.uid.is_some() || changes.gid.is_some();
        match chown {
            false if changes.kill_priv.contains(KillPriv::SETID) => self.killed(caller, ino, true).await,
            true if !Identity::of(caller).is_some_and(|who| who.has(CAP_FSETID)) => {
                let attributes = self.inode(ino).await?;
                Ok(KillPriv::CAPABILITY | killed_by_group(caller, Some(&attributes)))
            }
            false if changes.size.is_none() => Ok(KillPriv::NONE),
            _ => Ok(KillPriv::CAPABILITY),
        }
    }

    /// Sets a file's size (and whatever else is asked for).
    pub(super) async fn resize(
        &self,
        ino: InodeId,
        size: u64,
        changes: AttributeChanges,
    ) -> std::result::Result<Attributes, ClientError> {
        self.data.before_truncate(ino, size).await?;
        let mut pause = RESIZE_BACKOFF_MIN;
        let attributes = loop {
            match self.metadata.mutate(ops::SetAttr { ino, changes: changes.clone() }).await {
                // What earlier truncations cut off is still being freed.
                Err(ClientError::Fs(FsError::TryAgain)) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RESIZE_BACKOFF_MAX);
                }
                other => break *other?,
            }
        };
        if attributes.kind() == FileKind::File {
            self.data.after_truncate(ino, &attributes);
            self.pages.cut(ino, attributes.size);
        }
        Ok(attributes)
    }

    /// The volume's size and use, with what is buffered here. What sessions have set aside for what they may write is
    /// free: they give it back when somebody needs it.
    pub(super) async fn volume_use(&self) -> StatFs {
        let away = self.metadata.away_for().is_some_and(|away| away >= USE_TIMEOUT);
        let asked = match away {
            true => None,
            false => tokio::time::timeout(USE_TIMEOUT, self.use_by_now()).await.ok().flatten(),
        };
        let (volume, buffered) =
            asked.unwrap_or_else(|| (self.metadata.volume(), self.data.uncommitted_growth().bytes));
        let block = u64::from(self.options.block_bytes);
        StatFs {
            blocks: volume.bytes_total / block,
            blocks_free: volume.bytes_unused().saturating_sub(buffered) / block,
            inodes: volume.inodes_total,
            inodes_free: volume.inodes_free(),
            block_bytes: self.options.block_bytes,
            name_bytes_max: NAME_BYTES_MAX as u32,
        }
    }

    /// What the leader says of the volume, and the bytes that will count when what is buffered is committed. `None`
    /// if it says nothing.
    async fn use_by_now(&self) -> Option<(VolumeUse, u64)> {
        tokio::time::sleep(RELEASE_MOMENT).await;
        let mut attempts = 0;
        loop {
            let before = self.data.uncommitted_growth();
            let Ok(volume) = self.metadata.ask(queries::StatFs).await else { return None };
            let buffered = self.data.uncommitted_growth();
            attempts += 1;
            // What is committed meanwhile would count twice, or not at all: also what is committed already, if that isn't known
            // here yet.
            let is_settled = before == buffered && !before.is_on_its_way;
            if is_settled || attempts == USE_ATTEMPTS_MAX {
                return Some((volume, buffered.bytes));
            }
            if before.is_on_its_way {
                tokio::time::sleep(COMMIT_POLL).await;
            }
        }
    }
}
