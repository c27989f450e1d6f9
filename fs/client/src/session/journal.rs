//! The journal: mutations that this client carries out itself, on a volume for one mount, and that follow to the service in
//! batches (decisions 1 to 5).
//!
//! While the session is valid nobody else changes anything, so an operation on records that are known here
//! ([`cache`]) has the outcome that it will have where all records are, and its caller is told at once. It is an entry of the
//! journal from before that: in the arena, where a successor of this process finds it, and in the queue of what is sent, with
//! what its caller was told. The service carries entries out in their order, each once.
//!
//! Everything else goes the other way, in a slot ([`Inner::carry_out`]), and keeps the order: it is sent when what was
//! carried out here before it is committed, and while it is under way nothing that it may concern is carried out here.
//!
//! What isn't committed when the session is lost is lost, as is what follows an entry that comes out otherwise than its
//! caller was told: files that it concerns have an error, and nothing that was known here counts any more.

mod cache;
mod commit;
mod here;
mod ops;
mod slot;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SessionId};
use atoll_core::records::VolumeConfig;
use atoll_core::store::{Family, Read, StoreError, Visit};
use atoll_proto::metadata::{Answer, AskRequest, JournalState, kind};
use atoll_proto::queries;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::leader::Refusal;
use super::{Current, Inner};
use crate::metadata::ClientError;
use cache::Cache;
pub(super) use commit::{commit, decode_entry};
pub(super) use ops::{depends_on_journal, inodes_of};

/// Entries that wait for their commit at most.
const ENTRIES_MAX: usize = 8192;
/// Bytes of records that are kept.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// Operations that are named in the log when they are lost.
const LOST_NAMED_MAX: usize = 20;

/// How the journal is, for `status` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStatus {
    /// It is kept: the volume is for this mount alone, and nothing has broken it.
    pub is_kept: bool,
    /// Entries that aren't committed.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Operations that were carried out here.
    pub carried_out: u64,
    /// Entries that were lost.
    pub lost: u64,
    /// Inodes that are known here.
    pub inodes: u64,
    /// Bytes that these take.
    pub inodes_bytes: u64,
}

/// An entry that isn't committed.
#[derive(Debug)]
struct Entry {
    sequence: u64,
    /// As it is sent.
    bytes: Vec<u8>,
    /// Bytes that it takes in the arena.
    room: usize,
    /// What it concerns.
    inodes: [Option<InodeId>; 3],
    /// For the log, if it is lost.
    what: &'static str,
    name: Bytes,
}

/// The journal of one session.
struct Keeping {
    current: Current,
    /// The next entry's number.
    next: u64,
    queue: VecDeque<Entry>,
    bytes: usize,
    cache: Cache,
    /// Directories that couldn't be taken in.
    refused: HashMap<InodeId, Refused>,
}

/// A directory couldn't be taken in.
#[derive(Clone, Copy)]
struct Refused {
    /// When.
    since: Duration,
    /// With so many answers at most.
    parts_max: usize,
}

#[derive(Default)]
struct State {
    keeping: Option<Keeping>,
    /// Changes of names that are under way in slots.
    renaming: u32,
    /// Inodes that are being changed in slots, and how often.
    busy: HashMap<InodeId, u32>,
    /// Changes in slots that were begun.
    begun: u64,
    /// Nothing is carried out here before that, by [`clock::since_boot`].
    paused_until: Duration,
    carried_out: u64,
    lost: u64,
    /// Inodes of which something is lost and nobody was told yet.
    lost_inodes: BTreeSet<InodeId>,
}

/// How far the journal is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    epoch: u64,
    committed: u64,
}

/// A place in the journal: everything up to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    epoch: u64,
    sequence: u64,
}

/// See the module.
pub(super) struct Journal {
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    /// There is something to send.
    work: Notify,
    /// So many wait for a commit.
    waiting: AtomicU32,
    /// Somebody does now.
    urgent: Notify,
}

/// Somebody waits for a commit, until this is dropped.
struct Waiting<'a>(&'a Journal);

impl Journal {
    fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.urgent.notify_one();
        Waiting(self)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Default for Journal {
    fn default() -> Journal {
        let progress = watch::channel(Progress::default()).0;
        Journal {
            state: Mutex::default(),
            progress,
            work: Notify::new(),
            waiting: AtomicU32::new(0),
            urgent: Notify::new(),
        }
    }
}

/// What is known, without what is being changed in slots.
struct View<'a> {
    cache: &'a Cache,
    busy: &'a HashMap<InodeId, u32>,
}

impl View<'_> {
    fn check(&self, family: Family, key: &[u8]) -> Result<(), StoreError> {
        if self.busy.is_empty() || family == Family::System {
            return Ok(());
        }
        let at = usize::from(family == Family::Names);
        let number = key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        let is_busy = number.is_some_and(|bytes| self.busy.contains_key(&InodeId(u64::from_be_bytes(bytes))));
        if is_busy { Err(StoreError::NotCached) } else { Ok(()) }
    }
}

impl Read for View<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.check(family, key)?;
        self.cache.get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.check(family, from)?;
        self.cache.scan(family, from, to, visit)
    }
}

impl Inner {
    /// The volume's configuration is another one.
    pub(super) fn journal_config(&self, config: &VolumeConfig) {
        if let Some(keeping) = &mut self.journal.state.lock().keeping {
            keeping.cache.change_superblock(|superblock| superblock.config = config.clone());
        }
    }

    /// Where the journal ends now; `None`: there is nothing in it.
    pub(super) fn journal_end(&self) -> Option<Position> {
        self.journal.state.lock().position()
    }

    /// Waits until everything up to there is committed.
    ///
    /// # Errors
    /// [`ClientError::SessionLost`] if some of it is lost.
    pub(super) async fn journal_committed(&self, until: Option<Position>) -> Result<(), ClientError> {
        let Some(Position { epoch, sequence }) = until else { return Ok(()) };
        let _waiting = self.journal.wait();
        let mut progress = self.journal.progress.subscribe();
        let settled = |progress: &Progress| progress.epoch != epoch || progress.committed >= sequence;
        let settled = async { progress.wait_for(settled).await.map(|progress| *progress) };
        tokio::select! {
            settled = settled => match settled {
                Ok(progress) if progress.epoch == epoch => Ok(()),
                Ok(_) => Err(ClientError::SessionLost),
                Err(_) => Err(ClientError::Stopped),
            },
            () = self.token.cancelled() => Err(ClientError::Stopped),
        }
    }

    /// A session has begun: its journal, too, if the volume is for this mount alone.
    pub(super) async fn begin_journal(&self, current: Current) -> Result<(), Refusal> {
        let is_exclusive = self.heard.read().config.exclusive;
        let state = if is_exclusive { self.journal_state(current.id).await? } else { None };
        let keeping = state.filter(|state| !state.is_broken).map(|state| {
            let next = state.applied + 1;
            self.arena.begin_journal(current.id, next);
            Keeping {
                current,
                next,
                queue: VecDeque::new(),
                bytes: 0,
                cache: Cache::new(state.superblock.to_vec(), CACHE_BYTES_MAX),
                refused: HashMap::new(),
            }
        });
        let committed = keeping.as_ref().map_or(0, |keeping| keeping.next - 1);
        self.journal.state.lock().keeping = keeping;
        self.journal.progress.send_replace(Progress { epoch: current.epoch, committed });
        Ok(())
    }

    /// What the journal begins with. `None`: this server doesn't know of journals.
    async fn journal_state(&self, session: SessionId) -> Result<Option<JournalState>, Refusal> {
        let request = AskRequest { session, query: queries::Journal.into() };
        let message = postcard::to_allocvec(&request).map_err(|error| Refusal::Garbled(error.to_string()))?;
        match self.service.call(kind::ASK, &Bytes::from(message)).await {
            Ok(reply) => match postcard::from_bytes(&reply) {
                Ok(Answer::Journal(state)) => Ok(Some(state)),
                _ => Ok(None),
            },
            Err(Refusal::Fs(FsError::Unsupported)) => Ok(None),
            Err(Refusal::Impossible(reason)) => {
                tracing::info!(
                    reason,
                    "the metadata server keeps no journals: every change waits for its commit"
                );
                Ok(None)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// The session is lost; entries up to `committed` are not. What became of the others nobody will ever see.
    pub(super) fn journal_lost(&self, committed: u64) {
        let mut state = self.journal.state.lock();
        let Some(mut keeping) = state.keeping.take() else { return };
        while keeping.queue.front().is_some_and(|entry| entry.sequence <= committed) {
            keeping.queue.pop_front();
        }
        state.lose(&keeping);
        drop(state);
        // Who waits for what is lost hears of it.
        self.journal.progress.send_modify(|progress| progress.epoch = u64::MAX);
    }

    /// Inodes of which something was lost since this was asked last.
    pub(super) fn take_lost(&self) -> BTreeSet<InodeId> {
        std::mem::take(&mut self.journal.state.lock().lost_inodes)
    }

    /// How the journal is.
    pub(super) fn journal_status(&self) -> JournalStatus {
        let state = self.journal.state.lock();
        let keeping = state.keeping.as_ref();
        JournalStatus {
            is_kept: keeping.is_some(),
            entries: keeping.map_or(0, |keeping| keeping.queue.len() as u64),
            bytes: keeping.map_or(0, |keeping| keeping.bytes as u64),
            carried_out: state.carried_out,
            lost: state.lost,
            inodes: keeping.map_or(0, |keeping| keeping.cache.len() as u64),
            inodes_bytes: keeping.map_or(0, |keeping| keeping.cache.bytes() as u64),
        }
    }
}

impl State {
    fn position(&self) -> Option<Position> {
        let keeping = self.keeping.as_ref()?;
        let last = keeping.queue.back()?;
        Some(Position { epoch: keeping.current.epoch, sequence: last.sequence })
    }

    fn lose(&mut self, keeping: &Keeping) {
        if keeping.queue.is_empty() {
            return;
        }
        self.lost += keeping.queue.len() as u64;
        self.lost_inodes.extend(keeping.queue.iter().flat_map(|entry| entry.inodes).flatten());
        for entry in keeping.queue.iter().take(LOST_NAMED_MAX) {
            let (operation, name) = (entry.what, String::from_utf8_lossy(&entry.name));
            let [directory, inode, _] = entry.inodes.map(|ino| ino.map(|ino| ino.0));
            tracing::error!(operation, ?directory, ?inode, %name, "an operation that was not committed is lost");
        }
        tracing::error!(
            operations = keeping.queue.len(),
            "operations that were not synced are lost; files that they concern return EIO until they are closed"
        );
    }
}

#[cfg(test)]
mod tests;
