//! For how long the kernel may keep what it is told.

use std::time::Duration;

use atoll_core::attributes::{Attributes, FileKind};
use atoll_core::ids::InodeId;
use tokio::time::Instant;

use super::pages::{NEVER_VOID, Tell};
use super::{CUT_POLL, Client};
use crate::metadata::Metadata;
use crate::rights::{self, Right};
use crate::vfs::{Caller, Entry};

/// When the kernel has asked for something, or this client has.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// See [`Pages::epoch`](super::pages::Pages::epoch).
    pub epoch: u64,
    /// See [`Kept::number`](super::kept::Kept::number).
    pub change: u64,
}

impl<M: Metadata> Client<M> {
    pub(super) async fn entry(&self, caller: &Caller, attributes: Attributes, asked: Asked) -> Entry {
        let attributes = self.told(caller, attributes, asked.epoch).await;
        Entry {
            generation: 0,
            attribute_ttl: self.keep_for(caller, &attributes, asked),
            entry_ttl: self.right(attributes.ino).keep_for(),
            attributes,
        }
    }

    /// What the kernel is told of an inode that the service described: with what is buffered here. Before it
    /// hears of a larger size the page at the old end goes, or an open reader would see zeroes there. `asked`: when it asked
    /// ([`Pages::epoch`]).
    pub(super) async fn told(&self, caller: &Caller, attributes: Attributes, asked: u64) -> Attributes {
        let mut attributes = self.seen(attributes);
        while attributes.kind() == FileKind::File {
            match self.pages.tell(attributes.ino, attributes.size, (caller.pid, asked), Instant::now()) {
                Tell::Now => break,
                Tell::Later => tokio::time::sleep(CUT_POLL).await,
                Tell::Void(stale) => {
                    self.void(stale).await;
                    break;
                }
                Tell::Without(stale) => {
                    if !self.drop_end(stale).await {
                        break;
                    }
                }
            }
            attributes = self.seen(attributes);
        }
        attributes
    }

    pub(super) fn right(&self, ino: InodeId) -> Right {
        rights::of(&self.metadata.config(), self.metadata.valid_for(), ino)
    }

    /// For how long the kernel may keep attributes that its thread is about to be told.
    pub(super) fn keep_for(&self, caller: &Caller, attributes: &Attributes, asked: Asked) -> Duration {
        let keep_for = self.right(attributes.ino).keep_for();
        let may_keep = !keep_for.is_zero()
            && !self.changes_unseen(attributes)
            && self.kept.tell(attributes.ino, caller.pid, asked.change, Instant::now());
        if may_keep { keep_for } else { Duration::ZERO }
    }

    /// A file's attributes may yet change without the kernel noticing: by the commit of what is buffered (times, and the
    /// space that it takes), or by a write that clears set-id bits.
    pub(super) fn changes_unseen(&self, attributes: &Attributes) -> bool {
        const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
        attributes.kind() == FileKind::File
            && (attributes.mode & SET_ID != 0 || self.data.has_dirty(attributes.ino))
    }

    /// When something is asked, as far as its answer is concerned.
    pub(super) fn asking(&self) -> Asked {
        Asked { epoch: self.pages.epoch(), change: self.kept.number() }
    }

    /// Of the reply to a change that is done: the kernel takes it up whatever happens meanwhile.
    pub(super) fn done(&self) -> Asked {
        Asked { epoch: NEVER_VOID, change: self.kept.number() }
    }

    /// Before the caller hears that it has changed these inodes in a way that the kernel only marks their attributes as
    /// invalid for: no thread may make older ones valid again.
    pub(super) async fn void_kept<const N: usize>(&self, caller: &Caller, inodes: [InodeId; N]) {
        let Some(notifier) = self.notifier.read().clone() else { return };
        for ino in inodes {
            if self.right(ino) != Right::None && self.kept.changed(ino, caller.pid, Instant::now()) {
                notifier.void(ino).await;
            }
        }
    }
}
