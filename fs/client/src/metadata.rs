//! The metadata service as the rest of the client sees it. [`crate::session`] implements it over the wire;
//! tests implement it over records in memory.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::attributes::{Attributes, Timestamp, VolumeUse};
use atoll_core::commands::{ClientOp, Mutation, Outcome, Reply};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SessionId};
use atoll_core::locks::LockChange;
use atoll_core::records::VolumeConfig;
use atoll_proto::metadata::{Answer, FileExtents, Query};
use atoll_proto::queries::{Answers, Question};

use crate::vfs::Errno;

/// Why a request to the cluster came to nothing. While servers are merely away requests wait; they fail only
/// if the mount was given a timeout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The filesystem refused.
    #[error("{0}")]
    Fs(#[from] FsError),
    /// The session that this belonged to is lost: what it had not committed is gone.
    #[error("the session is lost")]
    SessionLost,
    /// The cluster was away for longer than the mount's timeout.
    #[error("the cluster did not respond within the timeout")]
    TimedOut,
    /// The client is stopping.
    #[error("the client has stopped")]
    Stopped,
}

impl From<ClientError> for Errno {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Fs(error) => error.into(),
            // EIO: what was written is lost, or can't be reached.
            ClientError::SessionLost | ClientError::Stopped => Errno(5),
            // ETIMEDOUT
            ClientError::TimedOut => Errno(110),
        }
    }
}

/// What the rest of the client has to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is lost and a new one is about to be used: chunks and reservations of the old one are gone,
    /// and so is what was not committed. Told before anything happens in the new session.
    SessionLost {
        /// Others may have had a session between the two.
        was_parted: bool,
    },
    /// Operations that were carried out here and not committed are lost, though the session isn't.
    JournalLost,
    /// Another session needs room: give back what is reserved and not used.
    ReturnReservation,
}

/// Called with each [`Event`]; must not wait.
pub type Hook = Box<dyn Fn(Event) + Send + Sync>;

/// A file that was just made, and counts as open. Until it is [kept](Self::keep) that ends with this: whoever asked for it
/// may have gone away.
#[must_use]
pub struct Made {
    /// Its attributes.
    pub attributes: Attributes,
    /// Those of the directory that it was made in, if they may be kept.
    pub parents: Vec<Attributes>,
    settle: Option<Box<dyn FnOnce(bool) + Send>>,
}

impl Made {
    /// `settle` is told whether it stays open.
    pub fn new(attributes: Attributes, settle: impl FnOnce(bool) + Send + 'static) -> Made {
        Made { attributes, parents: Vec::new(), settle: Some(Box::new(settle)) }
    }

    /// The same, with what is known of the directory that it was made in.
    pub fn in_directories(mut self, parents: Vec<Attributes>) -> Made {
        self.parents = parents;
        self
    }

    /// It stays open until [`Metadata::closed`].
    #[must_use]
    pub fn keep(mut self) -> Attributes {
        if let Some(settle) = self.settle.take() {
            settle(true);
        }
        self.attributes.clone()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(settle) = self.settle.take() {
            settle(false);
        }
    }
}

/// A reply to something else than what was asked.
pub(crate) fn unexpected() -> ClientError {
    tracing::error!("unexpected reply of the metadata server: this is a bug, please report it");
    FsError::Io.into()
}

/// Says whether a mutation should still be sent, see [`Metadata::execute_if`].
pub type Wanted = Box<dyn Fn() -> bool + Send + Sync>;

/// Requests to the metadata service. Retries, finding the leader, slots and exactly-once are its business.
pub trait Metadata: Send + Sync + 'static {
    /// Carries out one mutation, once. `Outcome::Refused` is returned as [`ClientError::Fs`].
    fn execute(&self, op: ClientOp) -> impl Future<Output = Result<Outcome, ClientError>> + Send;

    /// The same, with the directories in which it changed a name as they are afterwards, if those may be kept.
    fn execute_described(
        &self,
        op: ClientOp,
    ) -> impl Future<Output = Result<(Outcome, Vec<Attributes>), ClientError>> + Send {
        async move { Ok((self.execute(op).await?, Vec::new())) }
    }

    /// As [`execute`](Metadata::execute), if it is still `wanted` in the session that it is sent in: asked once that is known, at most microseconds
    /// before it is sent. Otherwise nothing is sent.
    ///
    /// # Errors
    /// [`ClientError::SessionLost`] if it isn't wanted.
    fn execute_if(
        &self,
        op: ClientOp,
        wanted: Wanted,
    ) -> impl Future<Output = Result<Outcome, ClientError>> + Send {
        async move { if wanted() { self.execute(op).await } else { Err(ClientError::SessionLost) } }
    }

    /// The same, with the outcome that this operation has.
    fn mutate<R>(&self, op: R) -> impl Future<Output = Result<R::Outcome, ClientError>> + Send
    where
        R: Mutation + Into<ClientOp> + Send,
    {
        let op = op.into();
        async move { R::Outcome::from_outcome(self.execute(op).await?).ok_or_else(unexpected) }
    }

    /// Carries out one mutation, which makes a file that counts as open from then on: before anybody else could remove it
    /// for good. `Stale`: it is made and gone already.
    fn make(&self, op: ClientOp) -> impl Future<Output = Result<Made, ClientError>> + Send {
        async move {
            let attributes =
                Box::<Attributes>::from_outcome(self.execute(op).await?).ok_or_else(unexpected)?;
            Ok(Made::new(*attributes, |_| {}))
        }
    }

    /// Completes when all mutations that are done so far are committed: on a volume for this mount alone some are done before
    /// that.
    ///
    /// # Errors
    /// [`ClientError::SessionLost`] if some of them are lost.
    fn sync(&self) -> impl Future<Output = Result<(), ClientError>> + Send {
        std::future::ready(Ok(()))
    }

    /// The inodes of which mutations are lost that were done and not committed, since this was asked last.
    fn take_lost(&self) -> BTreeSet<InodeId> {
        BTreeSet::new()
    }

    /// Asks something.
    fn query(&self, query: Query) -> impl Future<Output = Result<Answer, ClientError>> + Send;

    /// The same, with the answer that this question has.
    fn ask<Q>(&self, question: Q) -> impl Future<Output = Result<Q::Answer, ClientError>> + Send
    where
        Q: Question + Send,
    {
        let query = question.into();
        async move { Q::Answer::from_answer(self.query(query).await?).ok_or_else(unexpected) }
    }

    /// Changes what the session has locked of an inode; of each, one change at a time. For who takes a lock: the file as of
    /// then or later, with the first `segments` of it if it isn't as of `known_change`; `None` if it has to be asked for.
    /// Once this was polled it goes on until the outcome is known, whether somebody waits for that or not.
    fn change_locks(
        &self,
        _change: LockChange,
        _known_change: Option<u64>,
        _segments: u32,
    ) -> impl Future<Output = Result<Option<FileExtents>, ClientError>> + Send {
        std::future::ready(Err(FsError::Unsupported.into()))
    }

    /// The current session.
    fn session(&self) -> SessionId;

    /// Names this process towards chunks: a successor has a higher one.
    fn incarnation(&self) -> u64;

    /// Now, by the leader's clock.
    fn now(&self) -> Timestamp;

    /// The volume's configuration.
    fn config(&self) -> Arc<VolumeConfig>;

    /// New small data may travel inside commits (the inline budget has room).
    fn inline_allowed(&self) -> bool;

    /// Changes whenever a storage server's address or state does: ask [`Servers`](atoll_proto::queries::Servers) then.
    fn servers_version(&self) -> u64;

    /// Use of the volume as it was heard of last; from memory.
    fn volume(&self) -> VolumeUse {
        VolumeUse::default()
    }

    /// For how long from now on the session is valid for sure, whatever becomes of the connection. By this machine's clock
    /// that goes on in suspend.
    fn valid_for(&self) -> Duration {
        Duration::ZERO
    }

    /// How long the cluster hasn't answered; `None` if it does.
    fn away_for(&self) -> Option<Duration> {
        None
    }

    /// Whether the file is open here, as far as is known.
    fn is_open(&self, _ino: InodeId) -> bool {
        true
    }

    /// The last handle of a file is closed: the service is told, in the background.
    fn closed(&self, _ino: InodeId) {}

    /// The same of a file that has a name, on a volume for this mount alone: the service needn't be told before that name
    /// goes, so that the file can be [opened again](Metadata::open_again).
    fn closed_for_now(&self, ino: InodeId) {
        self.closed(ino);
    }

    /// Opens a file that the service is known to hold for this session, without asking it. False if that isn't known:
    /// [`Open`](atoll_proto::queries::Open) has to be asked then.
    fn open_again(&self, _ino: InodeId) -> bool {
        false
    }

    /// The kernel has taken the reply to a request with this number.
    fn answered(&self, _request: u64) {}

    /// The last name of the file has gone.
    fn unlinked(&self, _ino: InodeId) {}

    /// What was written to a file is lost.
    fn lost(&self, _ino: InodeId) {}

    /// Calls `hook` with each event from now on.
    fn subscribe(&self, _hook: Hook) {}
}
