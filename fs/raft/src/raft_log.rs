//! The log as openraft wants it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::error::LogError;
use crate::group::{Entry, Group, GroupLogId, GroupVote, from_log_entry, to_log_entry};
use crate::log_store::{LogEntry, LogStore};
use crate::types::{LogPosition, StateMachine};
use crate::vote::VoteRecord;

/// Entries sent to a follower at once, or read at once for being applied, in bytes; at least one
/// entry.
const RUN_BYTES_MAX: usize = 1 << 20;

/// Handle to the log of one node.
#[derive(Clone)]
pub(crate) struct RaftLog {
    store: Arc<LogStore>,
    machine: Arc<dyn StateMachine>,
}

impl RaftLog {
    pub(crate) fn new(store: Arc<LogStore>, machine: Arc<dyn StateMachine>) -> Self {
        Self { store, machine }
    }

    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let entries = match self.store.read_cached(from, to, bytes_max) {
            Some(entries) => entries,
            None => {
                let store = self.store.clone();
                atoll_blocking::spawn(move || store.read(from, to, bytes_max))
                    .await
                    .map_err(io::Error::other)??
            }
        };
        entries.into_iter().map(from_log_entry).collect()
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

async fn finish(result: oneshot::Receiver<Result<(), LogError>>) -> io::Result<()> {
    Ok(result.await.unwrap_or(Err(LogError::Closed))?)
}

impl RaftLogReader<Group> for RaftLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, RUN_BYTES_MAX).await
    }

    // The default reads the whole range at once, which after a restart is all there is to replay.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let log = self.clone();
        let runs = stream::unfold(from, move |from| {
            let log = log.clone();
            async move {
                if from >= to {
                    return None;
                }
                let (run, next) = match log.read(from, to, RUN_BYTES_MAX).await {
                    Ok(entries) => match entries.last() {
                        Some(last) => {
                            let next = last.log_id.index + 1;
                            (entries.into_iter().map(Ok).collect(), next)
                        }
                        None => return None,
                    },
                    Err(error) => (vec![Err(error)], to),
                };
                Some((stream::iter(run), next))
            }
        });
        runs.flatten()
    }

    async fn read_vote(&mut self) -> io::Result<Option<GroupVote>> {
        Ok(self.store.vote().map(GroupVote::from))
    }
}

impl RaftLogStorage<Group> for RaftLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Group>> {
        let (base, last) = self.store.ends();
        Ok(LogState {
            last_purged_log_id: base.map(GroupLogId::from),
            last_log_id: last.map(GroupLogId::from),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &GroupVote) -> io::Result<()> {
        finish(self.store.save_vote(VoteRecord::from(vote))).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Group>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().map(to_log_entry).collect();
        let done = Box::new(move |result: Result<(), LogError>| {
            callback.io_completed(result.map_err(io::Error::from));
        });
        Ok(self.store.append(entries, done)?)
    }

    async fn truncate_after(&mut self, last: Option<GroupLogId>) -> io::Result<()> {
        finish(self.store.truncate_after(last.map(LogPosition::from))).await
    }

    async fn purge(&mut self, upto: GroupLogId) -> io::Result<()> {
        let upto = LogPosition::from(upto);
        // Nothing else can bring these entries back.
        let flushed = self.machine.flushed();
        if flushed.is_none_or(|flushed| flushed.index < upto.index) {
            return Err(io::Error::other(format!(
                "entries up to {upto} were to be dropped, but the state is durable up to {flushed:?} only"
            )));
        }
        match self.store.purge(upto) {
            Some(result) => finish(result).await,
            None => Ok(()),
        }
    }
}
