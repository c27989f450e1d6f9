//! The session with the metadata service: [`MetadataClient`] finds the leader, keeps the session alive, gives
//! every mutation its number and sends it until its outcome is known.
//!
//! While the service is away requests wait; [`MetadataClient::status`] says so. A session that is lost (the
//! cluster didn't hear of us for its lifetime, or evicted us) is replaced by a new one, which learns what became
//! of the old one's last mutations: those that took effect get their outcome, those that didn't can't any more
//! and are done in the new session, unless they were about data: other clients may have changed the file
//! since, and its application was promised nothing before its next fsync or close.

pub mod clock;
mod held_locks;
mod journal;
mod keeper;
mod leader;
mod locking;
mod mutations;
mod open_files;
mod slots;
mod succession;

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_blocking::Detach;
use atoll_core::attributes::{Attributes, Timestamp, VolumeUse};
use atoll_core::commands::{ClientOp, NewPlace, Outcome, ops};
use atoll_core::encode::USUAL_BYTES;
use atoll_core::error::FsError;
use atoll_core::ids::{ClusterId, InodeId, SessionId, SlotId};
use atoll_core::locks::LockChange;
use atoll_core::records::VolumeConfig;
use atoll_proto::metadata::{Answer, FileExtents, Query, kind};
use atoll_proto::queries;
use atoll_proto::{Address, ClusterKey, Encryption, Identity, Role};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::arena::{Arena, Origin, SessionRecord};
use crate::metadata::{ClientError, Event, Hook, Made, Metadata, Wanted};
use crate::origin;
use clock::Clock;
use held_locks::HeldLocks;
use journal::Journal;
pub use journal::JournalStatus;
use leader::{Refusal, Service};
use locking::Turns;
use mutations::{CarriedOut, Unanswered};
use open_files::OpenFiles;
use slots::{Slot, Slots};
pub use succession::{Committed, Inherited, Predecessor};

/// Mutations in flight when nothing else is said.
pub const MUTATIONS_IN_FLIGHT_DEFAULT: u32 = 64;
/// How long the first connection may take when nothing else is said.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// How long a stopping client tries to say goodbye.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// How long it tries to commit what it has carried out.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Lost sessions whose last outcomes are remembered for mutations still in flight.
const LOST_SESSIONS_MAX: usize = 8;

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Metadata servers, any of them; the leader is found.
    pub addresses: Vec<Address>,
    /// The cluster that must answer there.
    pub cluster: ClusterId,
    /// Its key.
    pub key: ClusterKey,
    /// Policy of encryption.
    pub encryption: Encryption,
    /// What this client calls itself (host and mount point), for administrators.
    pub client: String,
    /// How long requests wait for a cluster that is away; `None`: for ever.
    pub timeout: Option<Duration>,
    /// How long [`MetadataClient::connect`] tries.
    pub connect_timeout: Duration,
    /// Mutations in flight; further ones wait. (At most as many as the arena has slots for.)
    pub mutations_in_flight: u32,
}

impl SessionOptions {
    /// The defaults for everything but who and where.
    #[must_use]
    pub fn new(addresses: Vec<Address>, cluster: ClusterId, key: ClusterKey, client: String) -> Self {
        SessionOptions {
            addresses,
            cluster,
            key,
            encryption: Encryption::default(),
            client,
            timeout: None,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            mutations_in_flight: MUTATIONS_IN_FLIGHT_DEFAULT,
        }
    }
}

/// There is no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// No address was given.
    #[error("no address of a metadata server is configured")]
    NoAddress,
    /// Nobody answered in time.
    #[error("the cluster did not respond within {} s: {problem}", .after.as_secs())]
    Away {
        /// How long it was tried.
        after: Duration,
        /// The last problem.
        problem: String,
    },
    /// Whoever answers there will never serve us.
    #[error("{0}")]
    Hopeless(String),
    /// The cluster refused.
    #[error("the cluster refuses this client: {0}")]
    Refused(FsError),
}

/// The way to the metadata service.
#[derive(Clone, Debug, Default)]
pub struct Connected {
    /// The member that answered last.
    pub leader: Option<String>,
    /// Since when nobody answers; `None` if somebody does.
    pub waiting_since: Option<Instant>,
    /// Why the last attempt failed, while waiting.
    pub problem: Option<String>,
}

/// How the client is, for `status` and metrics.
#[derive(Clone, Debug)]
pub struct Status {
    /// Somebody answers.
    pub connected: bool,
    /// The member that answered last.
    pub leader: Option<String>,
    /// How long nobody has answered.
    pub waiting: Option<Duration>,
    /// Why the last attempt failed, while waiting.
    pub problem: Option<String>,
    /// The session, if there is one now.
    pub session: Option<SessionId>,
    /// Sessions that were lost.
    pub sessions_lost: u64,
    /// Use of the volume as of the last heartbeat.
    pub volume: VolumeUse,
    /// What was carried out here.
    pub journal: JournalStatus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A (new) session is being opened.
    Opening,
    Open(Current),
    Stopped,
}

/// A session; the epoch counts them from 1 and tells the slots to begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Current {
    id: SessionId,
    epoch: u64,
}

/// What became of the last mutations of a session that is lost.
#[derive(Debug)]
struct Lost {
    session: SessionId,
    outcomes: Vec<(SlotId, u64, Outcome)>,
}

impl Lost {
    fn outcome(&self, slot: SlotId, sequence: u64) -> Option<Outcome> {
        let found = self.outcomes.iter().find(|(known, last, _)| *known == slot && *last == sequence);
        found.map(|(_, _, outcome)| outcome.clone())
    }
}

struct Inner {
    options: SessionOptions,
    service: Service,
    arena: Arc<Arena>,
    slots: Arc<Slots>,
    clock: Clock,
    incarnation: u64,
    state: watch::Sender<State>,
    last_session: AtomicU64,
    sessions_lost: AtomicU64,
    lost: Mutex<VecDeque<Arc<Lost>>>,
    /// A session that somebody found to be gone.
    found_lost: Mutex<Option<SessionId>>,
    kick: Notify,
    open_files: Mutex<OpenFiles>,
    close_notices: Notify,
    held_locks: Mutex<HeldLocks>,
    lock_turns: Turns,
    /// Fires when a leader knows what is locked.
    locks_told: Notify,
    heard: RwLock<Heard>,
    hooks: RwLock<Vec<Hook>>,
    /// How often the mount was taken over.
    takeovers: u64,
    journal: Journal,
    /// What requests of the kernel have led to already that may come again.
    unanswered: Unanswered,
    /// The session is being ended: no other one is opened when it is gone.
    closing: AtomicBool,
    /// Goes on with what was sent and nobody waits for any more.
    runtime: Handle,
    token: CancellationToken,
}

/// What the last heartbeat told; of the volume's use, the last answer about it as well.
#[derive(Clone, Debug, Default)]
struct Heard {
    lifetime: Duration,
    /// The session is valid until then, by [`clock::since_boot`]; zero if it isn't known.
    valid_until: Duration,
    term: u64,
    inline_allowed: bool,
    volume: VolumeUse,
    servers_version: u64,
    config: Arc<VolumeConfig>,
}

/// See the module. Clones share the session; dropping the last one lets it expire ([`close`](Self::close)
/// ends it properly).
#[derive(Clone)]
pub struct MetadataClient {
    inner: Arc<Inner>,
    _stop: Arc<DropGuard>,
}

impl MetadataClient {
    /// Opens a session.
    ///
    /// # Errors
    /// If nobody answers in time, or who answers won't have us.
    pub async fn connect(options: SessionOptions, arena: Arc<Arena>) -> Result<Self, SessionError> {
        let (client, _) = Self::begin(options, arena, None).await?;
        Ok(client)
    }

    /// Continues the session of a process that is dead and that had this arena.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn succeed(
        options: SessionOptions,
        arena: Arc<Arena>,
        predecessor: Predecessor,
    ) -> Result<(Self, Inherited), SessionError> {
        Self::begin(options, arena, Some(predecessor)).await
    }

    async fn begin(
        options: SessionOptions,
        arena: Arc<Arena>,
        predecessor: Option<Predecessor>,
    ) -> Result<(Self, Inherited), SessionError> {
        if options.addresses.is_empty() {
            return Err(SessionError::NoAddress);
        }
        let identity = Identity {
            cluster: options.cluster,
            role: Role::Client(SessionId(0)),
            key: options.key.clone(),
            encryption: options.encryption,
        };
        let slots = options.mutations_in_flight.clamp(1, arena.op_slots() - 1);
        let token = CancellationToken::new();
        let inner = Arc::new(Inner {
            service: Service::new(&options.addresses, identity),
            slots: Slots::new(slots),
            arena,
            clock: Clock::default(),
            // A successor of this process on this machine has a higher one; the low bits tell processes of
            // different boots apart.
            incarnation: ((clock::since_boot().as_micros() as u64) << 12)
                | u64::from(rand::random::<u16>() >> 4),
            state: watch::channel(State::Opening).0,
            last_session: AtomicU64::new(0),
            sessions_lost: AtomicU64::new(0),
            lost: Mutex::default(),
            found_lost: Mutex::default(),
            kick: Notify::new(),
            open_files: Mutex::default(),
            close_notices: Notify::new(),
            held_locks: Mutex::default(),
            lock_turns: Turns::default(),
            locks_told: Notify::new(),
            heard: RwLock::default(),
            hooks: RwLock::default(),
            takeovers: predecessor.as_ref().map_or(0, |predecessor| predecessor.session.takeovers + 1),
            journal: Journal::default(),
            unanswered: Unanswered::default(),
            runtime: Handle::current(),
            closing: AtomicBool::new(false),
            token: token.clone(),
            options,
        });
        let inherited = match predecessor {
            None => inner.open_first().await.map(|()| Inherited::default()),
            Some(predecessor) => inner.succeed(predecessor).await,
        }?;
        tokio::spawn(keeper::keep(Arc::clone(&inner)));
        tokio::spawn(keeper::tell_closed(Arc::clone(&inner)));
        tokio::spawn(journal::commit(Arc::clone(&inner)));
        if inner.open_files.lock().has_closed() {
            inner.close_notices.notify_one();
        }
        Ok((MetadataClient { inner, _stop: Arc::new(token.drop_guard()) }, inherited))
    }

    /// How often the mount was taken over.
    #[must_use]
    pub fn takeovers(&self) -> u64 {
        self.inner.takeovers
    }

    /// Ends the session. What is still in flight ends with [`ClientError::Stopped`]. Data must have been
    /// flushed before.
    pub async fn close(&self) {
        self.inner.closing.store(true, Ordering::Release);
        // Nothing more is carried out here.
        let committed = self.inner.journal_committed(self.inner.journal_end());
        if !matches!(tokio::time::timeout(COMMIT_TIMEOUT, committed).await, Ok(Ok(()))) {
            tracing::error!("the last operations could not be committed");
        }
        let goodbye = self.mutate(ops::CloseSession);
        if !matches!(tokio::time::timeout(CLOSE_DEADLINE, goodbye).await, Ok(Ok(_))) {
            tracing::info!("the session could not be ended; it expires at the end of its lifetime");
        }
        self.inner.state.send_replace(State::Stopped);
        self.inner.slots.close();
        self.inner.token.cancel();
    }

    /// How the client is.
    #[must_use]
    pub fn status(&self) -> Status {
        let connected = self.inner.service.connected().borrow().clone();
        Status {
            connected: connected.leader.is_some() && connected.waiting_since.is_none(),
            leader: connected.leader,
            waiting: connected.waiting_since.map(|since| since.elapsed()),
            problem: connected.problem,
            session: match *self.inner.state.borrow() {
                State::Open(current) => Some(current.id),
                State::Opening | State::Stopped => None,
            },
            sessions_lost: self.inner.sessions_lost.load(Ordering::Relaxed),
            volume: self.inner.heard.read().volume,
            journal: self.inner.journal_status(),
        }
    }

    /// Changes whenever the way to the service does.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<Connected> {
        self.inner.service.connected()
    }

    /// Does something that takes a slot, in time.
    async fn in_slot<T: Send + 'static, F: Future<Output = Result<T, ClientError>> + Send + 'static>(
        &self,
        request: impl FnOnce(Arc<Inner>, Slot) -> F,
    ) -> Result<T, ClientError> {
        let inner = Arc::clone(&self.inner);
        let carry_out = async {
            let slot = inner.slots.take().await.ok_or(ClientError::Stopped)?;
            // Who waits may be interrupted, but what was sent keeps its slot until its outcome is known.
            Detach::new(request(Arc::clone(&inner), slot), inner.runtime.clone()).await
        };
        self.in_time(carry_out).await
    }

    async fn in_time<T>(
        &self,
        request: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match self.inner.options.timeout {
            None => request.await,
            Some(limit) => tokio::time::timeout(limit, request).await.unwrap_or(Err(ClientError::TimedOut)),
        }
    }
}

/// What becomes of a mutation that was in flight when its session was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// If it did not take effect it is done in the new session: to its application it just took longer.
    Repeat,
    /// It counts only if it took effect.
    Keep,
    /// What it is about belongs to the old session.
    Forget,
}

fn fate(op: &ClientOp) -> Fate {
    match op {
        ClientOp::Append(ops::Append { data: NewPlace::Inline(_), reservation: 0, .. }) => Fate::Repeat,
        ClientOp::Write(_) | ClientOp::Append(_) => Fate::Keep,
        ClientOp::CreateChunk(_)
        | ClientOp::SealChunk(_)
        | ClientOp::ShrinkChunk(_)
        | ClientOp::Reserve(_)
        | ClientOp::Unreserve(_)
        | ClientOp::CloseSession(_) => Fate::Forget,
        _ => Fate::Repeat,
    }
}

/// When a mutation was asked for. Until it is sent it waits for a slot, possibly for longer than its session lives.
struct Asked {
    /// Sessions that were lost by then.
    sessions_lost: u64,
    wanted: Option<Wanted>,
    /// What it comes from.
    origin: Origin,
}

impl Asked {
    /// Sent in `current` it would do what belongs to a session that is lost.
    fn is_void(&self, fate: Fate, current: Current) -> bool {
        if atoll_faults::planted("lost-write-sent") {
            return false;
        }
        let of_another = matches!(fate, Fate::Keep | Fate::Forget) && current.epoch != self.sessions_lost + 1;
        of_another || self.wanted.as_ref().is_some_and(|wanted| !wanted())
    }
}

impl Inner {
    fn asked(&self, wanted: Option<Wanted>) -> Asked {
        let origin = Origin { request: origin::request(), order: origin::order() };
        Asked { sessions_lost: self.sessions_lost.load(Ordering::Acquire), wanted, origin }
    }

    /// For a successor of this process.
    fn note_session(&self, session: SessionId) {
        let (incarnation, takeovers) = (self.incarnation, self.takeovers);
        self.arena.note_session(SessionRecord { session, incarnation, takeovers });
    }

    /// The session, once there is one.
    async fn current(&self) -> Result<Current, ClientError> {
        let mut state = self.state.subscribe();
        match state.wait_for(|state| *state != State::Opening).await.as_deref() {
            Ok(State::Open(current)) => Ok(*current),
            _ => Err(ClientError::Stopped),
        }
    }

    /// Waits until the session that was found to be gone is replaced; what became of its last mutations.
    async fn replaced(&self, session: SessionId) -> Result<Option<Arc<Lost>>, ClientError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(ClientError::Stopped);
        }
        let mut state = self.state.subscribe();
        if matches!(*state.borrow(), State::Open(current) if current.id == session) {
            *self.found_lost.lock() = Some(session);
            self.kick.notify_one();
        }
        let replaced = |state: &State| match state {
            State::Open(current) => current.id != session,
            State::Opening => false,
            State::Stopped => true,
        };
        match state.wait_for(replaced).await.as_deref() {
            Ok(State::Open(_)) => {
                Ok(self.lost.lock().iter().find(|lost| lost.session == session).map(Arc::clone))
            }
            _ => Err(ClientError::Stopped),
        }
    }

    /// The leader has said that it holds a file; `sessions_lost`: as counted before it was asked. Of a session that is lost
    /// since then that means nothing.
    fn is_held(&self, ino: InodeId, sessions_lost: u64) {
        let mut files = self.open_files.lock();
        if self.sessions_lost.load(Ordering::SeqCst) == sessions_lost {
            files.is_held(ino);
        }
    }

    async fn question(&self, query: &Query) -> Result<Answer, ClientError> {
        if journal::depends_on_journal(query) && !atoll_faults::planted("journal-overtaken") {
            // What is lost of it the answer shows.
            let _ = self.journal_committed(self.journal_end()).await;
        }
        loop {
            let current = self.current().await?;
            // The same bytes as an `AskRequest`, without copying the query into one.
            let message = postcard::to_extend(&(current.id, query), Vec::with_capacity(USUAL_BYTES))
                .map_err(|_| FsError::InvalidArgument)?;
            match self.service.call(kind::ASK, &message.into()).await {
                Ok(reply) => {
                    return postcard::from_bytes(&reply).map_err(|error| {
                        tracing::error!(%error, "a reply can't be decoded");
                        FsError::Io.into()
                    });
                }
                Err(Refusal::Fs(FsError::SessionExpired)) => {
                    self.replaced(current.id).await?;
                }
                Err(Refusal::Fs(error)) => return Err(error.into()),
                Err(refusal) => {
                    tracing::error!(%refusal, "a query was refused: this is a bug, please report it");
                    return Err(FsError::Io.into());
                }
            }
        }
    }

    fn tell(&self, event: Event) {
        for hook in self.hooks.read().iter() {
            hook(event);
        }
    }
}

impl Metadata for MetadataClient {
    async fn execute(&self, op: ClientOp) -> Result<Outcome, ClientError> {
        Ok(self.execute_described(op).await?.0)
    }

    async fn execute_described(&self, op: ClientOp) -> Result<(Outcome, Vec<Attributes>), ClientError> {
        let asked = self.inner.asked(None);
        if let Some(CarriedOut { outcome, parents, .. }) = self.inner.done_here(&op, &asked).await {
            return Ok((outcome, parents));
        }
        // Queued before it, so that a file that nobody has open is freed in the same entry.
        let removes_file = matches!(op, ClientOp::Unlink(ops::Unlink { directory: false, .. }));
        if removes_file && self.inner.open_files.lock().release_retained() {
            self.inner.tell_closed();
        }
        self.in_slot(|inner, slot| async move {
            let CarriedOut { outcome, parents, .. } = inner.carry_out(slot, op, false, &asked).await?;
            Ok((outcome, parents))
        })
        .await
    }

    async fn execute_if(&self, op: ClientOp, wanted: Wanted) -> Result<Outcome, ClientError> {
        let asked = self.inner.asked(Some(wanted));
        if let Some((CarriedOut { outcome, .. }, _)) = self.inner.carry_out_here(&op, &asked) {
            return Ok(outcome);
        }
        self.in_slot(|inner, slot| async move { Ok(inner.carry_out(slot, op, false, &asked).await?.outcome) })
            .await
    }

    async fn make(&self, op: ClientOp) -> Result<Made, ClientError> {
        let asked = self.inner.asked(None);
        if let Some(made) = self.inner.make_here(&op, &asked) {
            return Ok(made);
        }
        if self.inner.adopt_directories(&op).await
            && let Some(made) = self.inner.make_here(&op, &asked)
        {
            return Ok(made);
        }
        self.in_slot(|inner, slot| async move { inner.make(slot, op).await }).await
    }

    async fn sync(&self) -> Result<(), ClientError> {
        let end = self.inner.journal_end();
        if atoll_faults::planted("journal-synced-early") {
            return Ok(());
        }
        self.in_time(self.inner.journal_committed(end)).await
    }

    fn take_lost(&self) -> BTreeSet<InodeId> {
        self.inner.take_lost()
    }

    async fn query(&self, query: Query) -> Result<Answer, ClientError> {
        if let Some(answer) = self.inner.answered_here(&query).await {
            return answer;
        }
        let opening = match &query {
            Query::Open(queries::Open { ino, .. }) => Some((*ino, self.inner.open_files.lock().open(*ino))),
            Query::StatFs(_) => {
                // What was unlinked counts for as long as the leader takes it for open.
                self.inner.tell_closed();
                None
            }
            _ => None,
        };
        let sessions_lost = self.inner.sessions_lost.load(Ordering::SeqCst);
        let answer = self.in_time(self.inner.question(&query)).await;
        if let Ok(Answer::Volume(volume)) = &answer {
            self.inner.heard.write().volume = *volume;
        }
        match (opening, &answer) {
            (Some((ino, true)), Err(_)) => self.closed(ino),
            (Some((ino, _)), Ok(_)) => self.inner.is_held(ino, sessions_lost),
            _ => {}
        }
        answer
    }

    async fn change_locks(
        &self,
        change: LockChange,
        known_change: Option<u64>,
        segments: u32,
    ) -> Result<Option<FileExtents>, ClientError> {
        let inner = Arc::clone(&self.inner);
        // Who waits may be interrupted, but what was sent goes on until its outcome is known.
        let changed = async move { inner.change_locks(change, known_change, segments).await };
        self.in_time(Detach::new(changed, self.inner.runtime.clone())).await
    }

    fn session(&self) -> SessionId {
        SessionId(self.inner.last_session.load(Ordering::Relaxed))
    }

    fn incarnation(&self) -> u64 {
        self.inner.incarnation
    }

    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    fn config(&self) -> Arc<VolumeConfig> {
        Arc::clone(&self.inner.heard.read().config)
    }

    fn inline_allowed(&self) -> bool {
        self.inner.heard.read().inline_allowed
    }

    fn servers_version(&self) -> u64 {
        self.inner.heard.read().servers_version
    }

    fn volume(&self) -> VolumeUse {
        self.inner.heard.read().volume
    }

    fn valid_for(&self) -> Duration {
        self.inner.heard.read().valid_until.saturating_sub(clock::since_boot())
    }

    fn away_for(&self) -> Option<Duration> {
        self.inner.service.connected().borrow().waiting_since.map(|since| since.elapsed())
    }

    fn closed(&self, ino: InodeId) {
        if self.inner.open_files.lock().close(ino, false) {
            self.inner.close_notices.notify_one();
        }
    }

    fn closed_for_now(&self, ino: InodeId) {
        if self.inner.open_files.lock().close(ino, true) {
            self.inner.close_notices.notify_one();
        }
    }

    fn open_again(&self, ino: InodeId) -> bool {
        self.inner.open_files.lock().open_again(ino) || self.inner.open_known(ino)
    }

    fn answered(&self, request: u64) {
        self.inner.unanswered.answered(request);
    }

    fn unlinked(&self, ino: InodeId) {
        if self.inner.open_files.lock().release(ino) {
            self.inner.close_notices.notify_one();
        }
    }

    fn subscribe(&self, hook: Hook) {
        self.inner.hooks.write().push(hook);
    }
}

#[cfg(test)]
mod tests;
