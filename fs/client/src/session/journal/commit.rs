//! Commits the journal: sends it in batches, one at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_core::commands::Outcome;
use atoll_core::encode::{self, USUAL_BYTES};
use atoll_core::error::FsError;
use atoll_core::ids::{SessionId, SlotId};
use atoll_proto::metadata::{JournalEntry, JournalReply, kind};
use bytes::Bytes;

use super::{Journal, Progress};
use crate::arena::JournalRecord;
use crate::metadata::Event;
use crate::session::leader::Refusal;
use crate::session::{Current, Inner, clock};

/// Entries of one batch, …
const BATCH_ENTRIES_MAX: usize = 512;
/// … and bytes, beyond which no further one is added.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// What nobody waits for is gathered for so long: of a file that is made, written and synced all goes in one batch.
const GATHER: Duration = Duration::from_millis(1);
/// Nothing is carried out here for so long after the metadata servers have said that their disks have little room.
const DISK_LOW_PAUSE: Duration = Duration::from_secs(5);

impl Inner {
    /// Sends what a predecessor of this process has left in its journal. Returns what of it is committed data.
    pub(in crate::session) async fn send_inherited(
        &self,
        session: SessionId,
        records: &[JournalRecord],
    ) -> Result<(), Refusal> {
        let mut rest = records;
        while let Some(first) = rest.first() {
            let mut bytes = 0;
            let count = rest
                .iter()
                .take(BATCH_ENTRIES_MAX)
                .take_while(|record| {
                    let fits = bytes <= BATCH_BYTES_MAX;
                    bytes += record.entry.len();
                    fits
                })
                .count();
            let (batch, later) = rest.split_at(count);
            let entries: Vec<&[u8]> = batch.iter().map(|record| &record.entry[..]).collect();
            let reply = self.send_batch(session, first.sequence, &entries).await?;
            if let Some(error) = reply.refused {
                return Err(Refusal::Fs(error));
            }
            rest = later;
        }
        Ok(())
    }

    async fn send_batch(
        &self,
        session: SessionId,
        first: u64,
        entries: &[&[u8]],
    ) -> Result<JournalReply, Refusal> {
        // The same bytes as a `JournalBatch`.
        let bytes = entries.iter().map(|entry| entry.len()).sum::<usize>() + USUAL_BYTES;
        let mut message = encode::append(Vec::with_capacity(bytes), &(session, first, entries.len()));
        entries.iter().for_each(|entry| message.extend_from_slice(entry));
        let reply = self.service.call(kind::JOURNAL, &Bytes::from(message)).await?;
        postcard::from_bytes(&reply).map_err(|error| Refusal::Garbled(error.to_string()))
    }
}

/// What is sent next.
struct Batch {
    current: Current,
    first: u64,
    entries: Vec<Vec<u8>>,
}

impl Journal {
    /// Waits for more, unless somebody waits for what there is, or it is much.
    async fn gather(&self) {
        let is_much = self.state.lock().keeping.as_ref().is_none_or(|keeping| {
            keeping.queue.len() >= BATCH_ENTRIES_MAX / 2 || keeping.bytes >= BATCH_BYTES_MAX
        });
        if is_much || self.waiting.load(Ordering::SeqCst) > 0 {
            return;
        }
        let _ = tokio::time::timeout(GATHER, self.urgent.notified()).await;
    }

    fn next_batch(&self) -> Option<Batch> {
        let state = self.state.lock();
        let keeping = state.keeping.as_ref()?;
        let first = keeping.queue.front()?.sequence;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in keeping.queue.iter().take(BATCH_ENTRIES_MAX) {
            if bytes > BATCH_BYTES_MAX {
                break;
            }
            bytes += entry.bytes.len();
            entries.push(entry.bytes.clone());
        }
        if atoll_faults::planted("journal-reordered") && entries.len() > 1 {
            entries.swap(0, 1);
        }
        Some(Batch { current: keeping.current, first, entries })
    }
}

impl Inner {
    /// Entries up to `committed` are committed.
    fn entries_committed(&self, current: Current, committed: u64) {
        let mut state = self.journal.state.lock();
        let Some(keeping) = state.keeping.as_mut().filter(|keeping| keeping.current == current) else {
            return;
        };
        let mut room = 0;
        while keeping.queue.front().is_some_and(|entry| entry.sequence <= committed) {
            if let Some(entry) = keeping.queue.pop_front() {
                room += entry.room;
                keeping.bytes -= entry.bytes.len();
            }
        }
        self.arena.journal_committed(current.id, committed + 1, room);
        drop(state);
        self.journal.progress.send_replace(Progress { epoch: current.epoch, committed });
    }

    /// An entry came out otherwise than its caller was told, or can't be sent: it and what follows are lost, and no journal is
    /// kept any more in this session.
    fn journal_broken(&self, current: Current, reason: &dyn std::fmt::Display) {
        let mut state = self.journal.state.lock();
        let Some(keeping) = state.keeping.take_if(|keeping| keeping.current == current) else { return };
        tracing::error!(%reason, "the journal can't be committed: every change waits for its commit from now on");
        state.lose(&keeping);
        drop(state);
        self.arena.begin_journal(current.id, keeping.next);
        self.journal.progress.send_modify(|progress| progress.epoch = u64::MAX);
        self.tell(Event::JournalLost);
    }
}

/// The task that commits the journal.
pub(in crate::session) async fn commit(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.token.cancelled() => return,
            () = inner.journal.work.notified() => {}
        }
        loop {
            inner.journal.gather().await;
            let Some(Batch { current, first, entries }) = inner.journal.next_batch() else { break };
            let entries: Vec<&[u8]> = entries.iter().map(|entry| &entry[..]).collect();
            let sent = tokio::select! {
                sent = inner.send_batch(current.id, first, &entries) => sent,
                () = inner.token.cancelled() => return,
            };
            match sent {
                Ok(JournalReply { applied, refused, disk_low, inline_allowed }) => {
                    if !inline_allowed {
                        // Until a heartbeat says otherwise.
                        inner.heard.write().inline_allowed = false;
                    }
                    if disk_low {
                        let until = clock::since_boot() + DISK_LOW_PAUSE;
                        inner.journal.state.lock().paused_until = until;
                    }
                    if applied >= first {
                        inner.entries_committed(current, applied);
                    }
                    match refused {
                        None => {}
                        Some(FsError::SessionExpired) => inner.session_found_lost(current).await,
                        Some(error) => inner.journal_broken(current, &error),
                    }
                }
                Err(Refusal::Fs(FsError::SessionExpired)) => inner.session_found_lost(current).await,
                Err(refusal) => inner.journal_broken(current, &refusal),
            }
        }
    }
}

impl Inner {
    async fn session_found_lost(&self, current: Current) {
        // What isn't committed ends with it.
        if self.replaced(current.id).await.is_err() {
            self.token.cancelled().await;
        }
        self.journal.work.notify_one();
    }

    /// Of the slots' last outcomes of a session that is lost: how far its journal was carried out.
    pub(in crate::session) fn committed_of(outcomes: &[(SlotId, u64, Outcome)]) -> u64 {
        outcomes.iter().find(|(slot, ..)| *slot == SlotId(0)).map_or(0, |(_, sequence, _)| *sequence)
    }
}

/// What an entry of a predecessor's journal was.
pub(in crate::session) fn decode_entry(record: &JournalRecord) -> Option<JournalEntry> {
    match postcard::from_bytes(&record.entry) {
        Ok(entry) => Some(entry),
        Err(error) => {
            tracing::error!(%error, "an entry of the previous process's journal can't be decoded");
            None
        }
    }
}
