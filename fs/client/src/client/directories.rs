//! Reading directories.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

use atoll_core::attributes::FileKind;
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_proto::metadata::{DirectoryEntry, DirectoryPage};
use atoll_proto::queries;
use bytes::Bytes;
use tokio::time::Instant;

use super::handles::Handle;
use super::{Asked, Client};
use crate::metadata::{ClientError, Metadata};
use crate::rights::Right;
use crate::vfs::{Caller, DirEntry, Opened, Result};

/// Bytes of names and attributes that are asked for at a time.
const BATCH_BYTES: u32 = 64 << 10;
/// Cookie of `.`.
const COOKIE_DOT: u64 = 1;
/// Cookie of `..`. Those of real entries are larger.
const COOKIE_DOT_DOT: u64 = 2;
/// Bytes of a directory entry in the kernel's format, without its name.
const DIRENT_BYTES: usize = 24;
/// Bytes of what is before it with attributes.
const ENTRY_BYTES: usize = 128;

/// What an open directory has in stock: entries that follow one another, not returned yet.
#[derive(Debug)]
pub struct Listing {
    ino: InodeId,
    parent: InodeId,
    /// The cookie after which the stock begins.
    after: u64,
    stock: VecDeque<DirectoryEntry>,
    plus: bool,
    /// Nothing follows the stock.
    end: bool,
    /// When it was asked for: see [`Kept::number`](super::kept::Kept::number).
    change: u64,
    /// Losses of changes that this handle was told of, or that came before it.
    losses: u64,
}

impl Listing {
    /// Nothing in stock. `losses`: see [`Client::losses`](super::Client).
    pub fn new(ino: InodeId, losses: u64) -> Self {
        Listing {
            ino,
            parent: ino,
            after: u64::MAX,
            stock: VecDeque::new(),
            plus: false,
            end: false,
            change: 0,
            losses,
        }
    }

    /// Drops what comes up to `cookie`. False if the stock doesn't continue there, or not with what is wanted.
    fn seek(&mut self, cookie: u64, plus: bool) -> bool {
        if plus && !self.plus || cookie < self.after {
            return false;
        }
        while self.after < cookie {
            match self.stock.pop_front() {
                Some(entry) if entry.cookie <= cookie => self.after = entry.cookie,
                // It is behind the stock, or between two entries because one was removed: ask.
                _ => return false,
            }
        }
        true
    }
}

/// Bytes that an entry takes in the reply.
fn reply_bytes(name: &[u8], plus: bool) -> usize {
    let dirent = (DIRENT_BYTES + name.len()).next_multiple_of(8);
    if plus { ENTRY_BYTES + dirent } else { dirent }
}

impl<M: Metadata> Client<M> {
    pub(super) fn do_opendir(&self, ino: InodeId) -> Opened {
        let losses = self.losses.load(Ordering::Acquire);
        Opened { handle: self.handles.add_directory(Listing::new(ino, losses)), ..Opened::default() }
    }

    /// Inodes whose changes are lost, which who syncs a directory is told, too.
    pub(super) fn lost_changes(&self) -> BTreeSet<InodeId> {
        let lost = self.metadata.take_lost();
        if !lost.is_empty() {
            self.losses.fetch_add(1, Ordering::AcqRel);
        }
        lost
    }

    /// Changes that were done are committed. If some were lost, each handle is told so once, as with a file's data.
    pub(super) async fn do_fsyncdir(&self, handle: u64) -> Result<()> {
        self.metadata.sync().await?;
        let Some(Handle::Directory(listing)) = self.handles.find(handle) else { return Ok(()) };
        let losses = self.losses.load(Ordering::Acquire);
        match std::mem::replace(&mut listing.lock().await.losses, losses) == losses {
            true => Ok(()),
            false => Err(ClientError::SessionLost.into()),
        }
    }

    /// Entries after `cookie`, as many as fit.
    pub(super) async fn do_readdir(
        &self,
        caller: &Caller,
        ino: InodeId,
        handle: u64,
        cookie: u64,
        bytes: u32,
        plus: bool,
    ) -> Result<Vec<DirEntry>> {
        let epoch = self.pages.epoch();
        let listing = match self.handles.find(handle) {
            Some(Handle::Directory(listing)) => listing,
            Some(Handle::File(_)) => return Err(FsError::NotDirectory.into()),
            // Of a predecessor of this process: nothing is lost but the stock.
            None => std::sync::Arc::new(tokio::sync::Mutex::new(Listing::new(ino, 0))),
        };
        let mut listing = listing.lock().await;
        let mut entries = Vec::new();
        let mut left = bytes as usize;
        // The first entries are known once something was asked.
        let mut after = if cookie <= COOKIE_DOT_DOT { 0 } else { cookie };
        if cookie == 0 || !listing.seek(after, plus) {
            self.restock(&mut listing, after, plus).await?;
        }
        let dots = [(&b"."[..], listing.ino, COOKIE_DOT), (b"..", listing.parent, COOKIE_DOT_DOT)];
        for (name, ino, dot_cookie) in dots {
            if dot_cookie > cookie {
                let size = reply_bytes(name, plus);
                if size > left {
                    return Ok(entries);
                }
                left -= size;
                entries.push(DirEntry {
                    name: Bytes::from_static(name),
                    ino,
                    kind: FileKind::Directory,
                    cookie: dot_cookie,
                    entry: None,
                });
            }
        }
        loop {
            let Some(next) = listing.stock.front() else {
                if listing.end || !entries.is_empty() {
                    return Ok(entries);
                }
                self.restock(&mut listing, after, plus).await?;
                continue;
            };
            let size = reply_bytes(&next.name, plus);
            if size > left {
                return Ok(entries);
            }
            left -= size;
            let Some(next) = listing.stock.pop_front() else { return Ok(entries) };
            after = next.cookie;
            listing.after = after;
            let asked = Asked { epoch, change: listing.change };
            entries.push(self.directory_entry((caller, asked), listing.ino, next, plus).await);
        }
    }

    async fn restock(&self, listing: &mut Listing, after: u64, plus: bool) -> Result<()> {
        let query = queries::ReadDir { ino: listing.ino, cookie: after, bytes_max: BATCH_BYTES, plus };
        let change = self.kept.number();
        let DirectoryPage { parent, entries, end } = self.metadata.ask(query).await?;
        // A service that has nothing and more to come would be asked for ever.
        let end = end || entries.is_empty();
        *listing = Listing {
            parent,
            after,
            stock: entries.into(),
            plus,
            end,
            change,
            ..Listing::new(listing.ino, listing.losses)
        };
        Ok(())
    }

    async fn directory_entry(
        &self,
        (caller, asked): (&Caller, Asked),
        directory: InodeId,
        listed: DirectoryEntry,
        plus: bool,
    ) -> DirEntry {
        let attributes = listed.attributes.filter(|attributes| {
            // The kernel would have to drop a page first, or it is open and what the listing said of it may be older than
            // what its users know: it asks again if it wants to know.
            plus && self.handles.file(attributes.ino).is_none()
                && !self.pages.would_grow(attributes.ino, attributes.size, Instant::now())
                // A name that is kept must still be there.
                && (self.right(directory) == Right::None || self.kept.is_unchanged(directory, asked.change))
        });
        let entry = match attributes {
            Some(attributes) => Some(self.entry(caller, attributes, asked).await),
            None => None,
        };
        DirEntry { name: listed.name, ino: listed.ino, kind: listed.kind, cookie: listed.cookie, entry }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(cookies: &[u64]) -> Listing {
        let entry = |cookie: &u64| DirectoryEntry {
            name: Bytes::from_static(b"x"),
            ino: InodeId(*cookie),
            kind: FileKind::File,
            cookie: *cookie,
            attributes: None,
        };
        Listing { after: 0, stock: cookies.iter().map(entry).collect(), ..Listing::new(InodeId(1), 0) }
    }

    #[test]
    fn the_stock_serves_what_follows_and_nothing_else() {
        let mut stock = listing(&[10, 20, 30]);
        assert!(stock.seek(0, false) && stock.seek(10, false));
        assert_eq!(stock.stock.len(), 2);
        assert!(!stock.seek(0, false), "it went back");
        assert!(stock.seek(20, false));
        assert!(!stock.seek(20, true), "attributes are wanted now");
        assert!(!stock.seek(25, false), "an entry that was removed meanwhile");
        assert!(!Listing::new(InodeId(1), 0).seek(0, false));
    }

    #[test]
    fn sizes_are_those_of_the_kernels_format() {
        assert_eq!(reply_bytes(b"abc", false), 32);
        assert_eq!(reply_bytes(b"12345678", false), 32);
        assert_eq!(reply_bytes(b"123456789", true), 168);
    }
}
