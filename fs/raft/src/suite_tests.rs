//! openraft's own tests for logs and state machines.
//!
//! Left out are two that expect a snapshot to have content as soon as it's built (here files are
//! made when they are to be sent; the tests of whole nodes cover that).

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{LogState, OptionalSend, RaftLogReader, StorageError};
use tempfile::TempDir;

use crate::disk::RealDisk;
use crate::flush::Flushing;
use crate::group::{Entry, Group, GroupLogId, GroupVote};
use crate::log_store::{LogConfig, LogStore};
use crate::machine::Machine;
use crate::raft_log::RaftLog;
use crate::snapshot::Snapshots;
use crate::test_support::ListMachine;
use crate::types::{
    AppliedEntry, AppliedPayload, AppliedState, LogPosition, StateMachine, StateMachineError,
};

/// The suite applies from whatever position it likes, and drops log that was never applied.
struct Lenient {
    list: Arc<ListMachine>,
    /// Says that everything is flushed.
    all_flushed: bool,
}

impl StateMachine for Lenient {
    fn applied(&self) -> AppliedState {
        self.list.applied()
    }

    fn apply(&self, entries: Vec<AppliedEntry>) -> Result<Vec<Bytes>, StateMachineError> {
        let mut results = Vec::new();
        for entry in entries {
            let from = self.list.applied().position.map_or(0, |p| p.index + 1);
            for index in from..entry.position.index {
                let position = LogPosition { term: 0, index };
                self.list.apply(vec![AppliedEntry { position, payload: AppliedPayload::Blank }])?;
            }
            results.extend(self.list.apply(vec![entry])?);
        }
        Ok(results)
    }

    fn flush(&self) -> Result<Option<LogPosition>, StateMachineError> {
        self.list.flush()
    }

    fn flushed(&self) -> Option<LogPosition> {
        match self.all_flushed {
            true => Some(LogPosition { term: u64::MAX, index: u64::MAX }),
            false => self.list.flushed(),
        }
    }

    fn checkpoint(&self, dir: &Path) -> Result<AppliedState, StateMachineError> {
        self.list.checkpoint(dir)
    }

    fn verify(
        &self,
        dir: &Path,
        pace: &mut dyn FnMut(u64) -> Result<(), StateMachineError>,
    ) -> Result<(), StateMachineError> {
        self.list.verify(dir, pace)
    }

    fn install(&self, dir: &Path) -> Result<(), StateMachineError> {
        self.list.install(dir)
    }
}

/// The suite begins empty logs at index 1.
#[derive(Clone)]
struct FromOne {
    log: RaftLog,
    hidden: Option<GroupLogId>,
}

impl RaftLogReader<Group> for FromOne {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.log.try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.log.limited_get_log_entries(start, end).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl futures::Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.log.entries_stream(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<GroupVote>> {
        self.log.read_vote().await
    }
}

impl RaftLogStorage<Group> for FromOne {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Group>> {
        let mut state = self.log.get_log_state().await?;
        if state.last_purged_log_id == self.hidden {
            state.last_purged_log_id = None;
        }
        if state.last_log_id == self.hidden {
            state.last_log_id = None;
        }
        Ok(state)
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &GroupVote) -> io::Result<()> {
        self.log.save_vote(vote).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Group>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let first = entries.first().map_or(0, |e| e.log_id.index);
        if first > 0 && self.log.get_log_state().await?.last_log_id.is_none() {
            let before = GroupLogId::new_term_index(0, first - 1);
            self.log.purge(before).await?;
            self.hidden = Some(before);
        }
        self.log.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<GroupLogId>) -> io::Result<()> {
        self.log.truncate_after(last).await
    }

    async fn purge(&mut self, upto: GroupLogId) -> io::Result<()> {
        self.log.purge(upto).await
    }
}

struct Builder;

impl StoreBuilder<Group, FromOne, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, FromOne, Machine), StorageError<Group>> {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { dir: dir.path().to_owned(), member: 0, segment_bytes: 64 << 10 };
        let store = Arc::new(LogStore::open(&config, Arc::new(RealDisk { sync: false })).unwrap());
        let list = ListMachine::open(&dir.path().join("state"));
        let machine: Arc<dyn StateMachine> = Arc::new(Lenient { list: list.clone(), all_flushed: false });
        let flushing = Flushing::new(store.clone(), machine.clone(), 1 << 20, 0);
        let snapshots = Snapshots::new(dir.path().to_owned(), store.clone());
        let running = Arc::new(AtomicBool::new(false));
        let log = RaftLog::new(store, Arc::new(Lenient { list, all_flushed: true }));
        let machine = Machine::new(machine, flushing, snapshots, running);
        Ok((dir, FromOne { log, hidden: None }, machine))
    }
}

type Tests = Suite<Group, FromOne, Machine, Builder, TempDir>;

async fn run<F, T>(name: &str, test: F)
where
    F: Fn(FromOne, Machine) -> T,
    T: Future<Output = io::Result<()>>,
{
    let (_dir, log, machine) = Builder.build().await.unwrap();
    test(log, machine).await.unwrap_or_else(|e| panic!("{name}: {e}"));
}

macro_rules! run_all {
    ($($name:ident)*) => { $( run(stringify!($name), Tests::$name).await; )* };
}

#[tokio::test(flavor = "multi_thread")]
async fn log_and_state_machine_pass_openrafts_suite() {
    run_all!(
        last_membership_in_log_initial
        last_membership_in_log
        last_membership_in_log_multi_step
        get_membership_initial
        get_membership_from_log_and_empty_sm
        get_membership_from_empty_log_and_sm
        get_membership_from_log_le_sm_last_applied
        get_membership_from_log_gt_sm_last_applied_1
        get_membership_from_log_gt_sm_last_applied_2
        get_initial_state_without_init
        get_initial_state_membership_from_empty_log_and_sm
        get_initial_state_membership_from_sm_inlog_is_smaller
        get_initial_state_membership_from_log_insm_is_smaller
        get_initial_state_with_state
        get_initial_state_last_log_gt_sm
        get_initial_state_last_log_lt_sm
        get_initial_state_inverted_log_order
        get_initial_state_conflict_at_same_index
        get_initial_state_log_ids
        get_initial_state_re_apply_committed
        save_vote
        get_log_entries
        limited_get_log_entries
        leader_bounded_stream
        entries_stream
        try_get_log_entry
        log_reader_reads_new_entries
        initial_logs
        get_log_state
        get_log_id
        last_id_in_log
        last_applied_state
        purge_logs_upto_0
        purge_logs_upto_5
        purge_logs_upto_20
        delete_logs_after_11
        delete_logs_after_5
        delete_logs_after_0
        delete_logs_after_none
        append_to_log
        snapshot_meta_optional
        apply_single
        apply_multiple
    );
}
