//! The volume's records as Raft's state machine: entries in, outcomes out.
//!
//! An entry is a batch of commands. Whatever one call applies becomes one atomic write, together with the
//! position of its last entry, so the store is always exactly the state at that position: a crash loses
//! what wasn't flushed, all families at the same point, and Raft brings it again.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use atoll_core::commands::{Command, Op, Outcome, ServiceOp};
use atoll_core::encode;
use atoll_core::namespace::{Txn, execute};
use atoll_core::store::{Family, Read, StoreError, Write};
use atoll_raft::{
    AppliedEntry, AppliedPayload, AppliedState, LogPosition, StateMachine, StateMachineError, WaitForRoom,
};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tracing::Span;

use crate::changes::ChangeFeed;
use crate::counts::{Counted, Counts};
use crate::metrics::Metrics;
use crate::store::folder::{self, Folder, FolderError};
use crate::store::records::{Backend, Records};
use crate::store::rocks::is_no_space;

/// The format of entries and results that is written.
const ENTRY_VERSION: u8 = 1;
/// Segments that may be freed by the way; [`reads_many`].
const SEGMENTS_FEW: u32 = 4;
/// The format of the store as a whole.
const STORE_VERSION: u8 = 1;
/// Term and index of the last applied entry.
const POSITION_KEY: &[u8] = b"AP";
/// The last membership, as Raft gave it.
const MEMBERSHIP_KEY: &[u8] = b"AM";
/// [`STORE_VERSION`].
const VERSION_KEY: &[u8] = b"AV";

/// Why an entry can't be applied, or the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A batch of a newer version.
    #[error(
        "the log has entries of format {found}, this program reads formats up to {ENTRY_VERSION}: use the \
         newer program"
    )]
    NewerEntry {
        /// Its format.
        found: u8,
    },
    /// A batch that can't be read.
    #[error("a log entry can't be decoded: {0}")]
    BadEntry(String),
    /// The store of a newer version.
    #[error(
        "the metadata store has format {found}, this program reads formats up to {STORE_VERSION}: use the \
         version that wrote it, or a newer one"
    )]
    NewerStore {
        /// Its format.
        found: u8,
    },
    /// Raft gives an entry that was applied already.
    #[error("entry {got} comes after {last} was applied")]
    OutOfOrder {
        /// The entry.
        got: LogPosition,
        /// What was applied.
        last: LogPosition,
    },
}

impl MachineError {
    /// Whether the disk no longer holds what was written to it.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Store(StoreError::Corrupt(_)) | Self::Folder(FolderError::Damaged { .. }))
    }
}

impl From<MachineError> for StateMachineError {
    fn from(error: MachineError) -> Self {
        StateMachineError::new(error)
    }
}

/// Adds a command to others of one job, encoded to be put into a [`Batch`].
#[must_use]
pub fn append_command(encoded: Vec<u8>, command: &Command) -> Vec<u8> {
    encode::append(encoded, command)
}

/// A batch of commands in the making; it becomes one entry: a byte of format version, their number, the commands.
#[derive(Default)]
pub struct Batch {
    count: usize,
    body: Vec<u8>,
}

impl Batch {
    /// Adds encoded commands.
    pub fn add(&mut self, commands: usize, encoded: &[u8]) {
        self.count += commands;
        self.body.extend_from_slice(encoded);
    }

    /// How many there are.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.count
    }

    /// Bytes of the commands.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// The entry.
    #[must_use]
    pub fn finish(self) -> Bytes {
        let mut entry = encode::append(vec![ENTRY_VERSION], &self.count);
        entry.extend_from_slice(&self.body);
        entry.into()
    }
}

/// The commands of an entry.
///
/// # Errors
/// If the bytes make no sense, or are of a newer version.
pub fn decode_batch(entry: &[u8]) -> Result<Vec<Command>, MachineError> {
    decode(entry)
}

/// The result of an entry: the outcomes of its commands.
#[must_use]
pub fn encode_outcomes(outcomes: &[Outcome]) -> Bytes {
    encode(outcomes)
}

/// The outcomes of a batch, in the order of its commands.
///
/// # Errors
/// If the bytes make no sense.
pub fn decode_outcomes(bytes: &[u8]) -> Result<Vec<Outcome>, MachineError> {
    decode(bytes)
}

fn encode<T: serde::Serialize + ?Sized>(value: &T) -> Bytes {
    encode::append(vec![ENTRY_VERSION], value).into()
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, MachineError> {
    match bytes.split_first() {
        Some((&ENTRY_VERSION, body)) => {
            postcard::from_bytes(body).map_err(|error| MachineError::BadEntry(error.to_string()))
        }
        Some((&found, _)) if found > ENTRY_VERSION => Err(MachineError::NewerEntry { found }),
        _ => Err(MachineError::BadEntry("it has no format".into())),
    }
}

/// The state machine.
pub struct Machine {
    folder: Arc<Folder>,
    backend: Backend,
    /// The records and their counts. Replaced as a whole when a snapshot is installed.
    store: RwLock<(Arc<Records>, Arc<Counts>)>,
    state: RwLock<PathBuf>,
    applied: Mutex<AppliedState>,
    /// Fires when something was applied.
    grew: Notify,
    flushed: Mutex<Option<LogPosition>>,
    /// One flush at a time: the position is read before it and is durable after it.
    flushing: Mutex<()>,
    room: WaitForRoom,
    changes: Arc<ChangeFeed>,
    metrics: Metrics,
}

impl Machine {
    /// Opens the state in `folder`, or makes an empty one.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn open(
        folder: Arc<Folder>,
        backend: &Backend,
        changes: Arc<ChangeFeed>,
        metrics: Metrics,
    ) -> Result<Machine, MachineError> {
        let state = folder.current_state()?;
        let store = Records::open(backend, &state)?;
        match store.get(Family::System, VERSION_KEY)?.as_deref() {
            Some([found]) if *found > STORE_VERSION => {
                return Err(MachineError::NewerStore { found: *found });
            }
            Some(_) => {}
            None => {
                store.write(&[(Family::System, VERSION_KEY.to_vec(), Some(vec![STORE_VERSION]))])?;
                store.flush()?;
            }
        }
        let applied = read_applied(&store)?;
        Ok(Machine {
            folder,
            backend: backend.clone(),
            flushed: Mutex::new(applied.position),
            store: RwLock::new((Arc::new(store), Arc::default())),
            state: RwLock::new(state),
            grew: Notify::new(),
            applied: Mutex::new(applied),
            flushing: Mutex::new(()),
            room: WaitForRoom::default(),
            changes,
            metrics,
        })
    }

    /// The records. Take a snapshot of it to read several that belong together.
    #[must_use]
    pub fn store(&self) -> Arc<Records> {
        self.store.read().0.clone()
    }

    /// How many chunks and orphans there are. Who asks first waits until they are counted.
    ///
    /// # Errors
    /// If the records can't be read.
    pub(crate) fn counts(&self) -> Result<Counted, StoreError> {
        let (store, counts) = self.store.read().clone();
        counts.now(&store)
    }

    /// Whether something that is committed waits for room on the disk.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        self.room.is_waiting()
    }

    /// What of the records was found damaged since they were opened, if anything.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        self.store().damage().map(str::to_owned)
    }

    fn apply_entries(&self, entries: Vec<AppliedEntry>) -> Result<Vec<Bytes>, MachineError> {
        let started = Instant::now();
        let (store, counts) = self.store.read().clone();
        let mut applied = self.applied.lock().clone();
        let mut txn = Txn::open(&*store)?;
        let mut results = Vec::new();
        let mut commands_applied = 0;
        for entry in entries {
            if let Some(last) = applied.position
                && entry.position.index <= last.index
            {
                return Err(MachineError::OutOfOrder { got: entry.position, last });
            }
            match entry.payload {
                AppliedPayload::Normal(bytes) => {
                    let commands = decode_batch(&bytes)?;
                    commands_applied += commands.len();
                    let mut carry_out = || {
                        let outcomes = commands.iter().map(|command| {
                            let _span = span(command, entry.position).entered();
                            execute(&mut txn, command)
                        });
                        outcomes.collect::<Result<Vec<_>, _>>()
                    };
                    let outcomes = if commands.iter().any(|command| reads_many(&command.op)) {
                        atoll_blocking::in_place(carry_out)?
                    } else {
                        carry_out()?
                    };
                    results.push(encode_outcomes(&outcomes));
                }
                AppliedPayload::Blank => {}
                AppliedPayload::Membership(bytes) => applied.membership = Some(bytes),
            }
            applied.position = Some(entry.position);
        }
        let mut writes = txn.into_writes();
        writes.extend(applied_writes(&applied));
        let written = self.room.until(is_no_space, || counts.write(&store, &writes))?;
        *self.applied.lock() = applied;
        self.grew.notify_waiters();
        self.changes.note(&written);
        self.metrics.applied(commands_applied, started.elapsed());
        Ok(results)
    }

    /// Is done when something was applied after this was called.
    pub fn grew(&self) -> Notified<'_> {
        self.grew.notified()
    }

    fn flush_store(&self) -> Result<Option<LogPosition>, MachineError> {
        let _one = self.flushing.lock();
        let position = self.applied.lock().position;
        let store = self.store();
        if !atoll_faults::planted("flush-skipped") {
            store.flush()?;
        }
        let mut flushed = self.flushed.lock();
        if position > *flushed {
            *flushed = position;
        }
        Ok(*flushed)
    }

    fn install_files(&self, dir: &Path) -> Result<(), MachineError> {
        let _one = self.flushing.lock();
        let old = self.state.read().clone();
        let next = self.room.until(FolderError::is_no_space, || self.folder.next_state(&old))?;
        self.room.until(FolderError::is_no_space, || folder::move_files(dir, &next))?;
        // Opened before it becomes the current one: a copy that can't be opened must not replace what can.
        let store = self.room.until(is_no_space, || Records::open(&self.backend, &next))?;
        let applied = read_applied(&store)?;
        self.room.until(FolderError::is_no_space, || self.folder.switch_state(&next))?;
        *self.flushed.lock() = applied.position;
        *self.applied.lock() = applied;
        self.grew.notify_waiters();
        *self.store.write() = (Arc::new(store), Arc::default());
        *self.state.write() = next;
        // Who still reads the old one has its files open; what can't be removed now is when it is opened next.
        if let Err(error) = std::fs::remove_dir_all(&old) {
            tracing::debug!(%error, "the replaced state is not removed yet");
        }
        Ok(())
    }
}

/// See docs/tracing.md.
fn span(command: &Command, position: LogPosition) -> Span {
    tracing::debug_span!(
        target: "atoll::trace", "apply", id = %command.id(), op = command.op.name(), index = position.index
    )
}

/// Whether carrying it out may go through many records, which the runtime has to be told: this is one of its threads (see
/// [`reads`](crate::reads)). What clients request is bounded by the size of its message; telling costs about as much as
/// carrying that out.
fn reads_many(op: &Op) -> bool {
    match op {
        Op::Service(ServiceOp::PurgeOrphan(purge)) => purge.segments_max > SEGMENTS_FEW,
        Op::Service(
            ServiceOp::SweepChunk(_)
            | ServiceOp::PurgeTruncated(_)
            | ServiceOp::ExpireSession(_)
            | ServiceOp::TasksDone(_)
            | ServiceOp::Fsck(_),
        ) => true,
        Op::Service(_) | Op::Client(_) | Op::Refuse(_) => false,
    }
}

fn read_applied(store: &Records) -> Result<AppliedState, MachineError> {
    let position = match store.get(Family::System, POSITION_KEY)? {
        None => None,
        Some(bytes) => {
            let (term, index) = postcard::from_bytes(&bytes)
                .map_err(|error| StoreError::Damaged(format!("applied position: {error}")))?;
            Some(LogPosition { term, index })
        }
    };
    Ok(AppliedState { position, membership: store.get(Family::System, MEMBERSHIP_KEY)? })
}

fn applied_writes(applied: &AppliedState) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some(position) = applied.position {
        let value = encode::append(Vec::new(), &(position.term, position.index));
        writes.push((Family::System, POSITION_KEY.to_vec(), Some(value)));
    }
    if let Some(membership) = &applied.membership {
        writes.push((Family::System, MEMBERSHIP_KEY.to_vec(), Some(membership.clone())));
    }
    writes
}

impl StateMachine for Machine {
    fn applied(&self) -> AppliedState {
        self.applied.lock().clone()
    }

    fn apply(&self, entries: Vec<AppliedEntry>) -> Result<Vec<Bytes>, StateMachineError> {
        Ok(self.apply_entries(entries)?)
    }

    fn flush(&self) -> Result<Option<LogPosition>, StateMachineError> {
        Ok(self.flush_store()?)
    }

    fn flushed(&self) -> Option<LogPosition> {
        *self.flushed.lock()
    }

    fn checkpoint(&self, dir: &Path) -> Result<AppliedState, StateMachineError> {
        let applied = self.applied.lock().clone();
        self.store().checkpoint(dir).map_err(MachineError::from)?;
        Ok(applied)
    }

    fn verify(
        &self,
        dir: &Path,
        pace: &mut dyn FnMut(u64) -> Result<(), StateMachineError>,
    ) -> Result<(), StateMachineError> {
        let mut stopped = None;
        let verified = self.store().verify(dir, &mut |bytes| match pace(bytes) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                stopped = Some(error);
                ControlFlow::Break(())
            }
        });
        match stopped {
            Some(error) => Err(error),
            None => Ok(verified.map_err(MachineError::from)?),
        }
    }

    fn install(&self, dir: &Path) -> Result<(), StateMachineError> {
        Ok(self.install_files(dir)?)
    }

    fn stop_waiting(&self) {
        self.room.give_up();
    }
}

#[cfg(test)]
mod tests;
