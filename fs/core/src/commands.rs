//! The commands that change the volume, and their outcomes.
//!
//! A command is what a Raft entry holds; applying it depends on the entry and on the records alone. It is
//! identified by `(session, slot, sequence)` and takes effect once, however often it is sent.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::attributes::{Attributes, Timestamp};
use crate::error::FsError;
use crate::ids::{ChunkId, Generation, InodeId, SessionId, SlotId};
use crate::records::ChunkRecord;
use crate::txn::{OpResult, Txn};

/// The session of the metadata service itself: its commands are idempotent by nature and use no slots.
pub const INTERNAL: SessionId = SessionId(0);

/// `RENAME_NOREPLACE` of renameat2(2).
pub const RENAME_NOREPLACE: u32 = 1;
/// `RENAME_EXCHANGE` of renameat2(2).
pub const RENAME_EXCHANGE: u32 = 2;
/// `RENAME_WHITEOUT` of renameat2(2).
pub const RENAME_WHITEOUT: u32 = 4;

/// One mutation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command<O = Op> {
    /// Who asks.
    pub session: SessionId,
    /// In which of its slots; slot 0 is the journal.
    pub slot: SlotId,
    /// 1 for the first operation of a slot, then one more each.
    pub sequence: u64,
    /// When it happened, by the client's clock corrected by the leader's.
    pub time: Timestamp,
    /// Of an entry of the journal: [`projection`] of the outcome that the client has told its application already.
    pub expect: Option<u64>,
    /// What to do.
    pub op: O,
}

impl<O> Command<O> {
    /// What names it on its way, in what is logged.
    #[must_use]
    pub fn id(&self) -> MutationId {
        MutationId { session: self.session, slot: self.slot, sequence: self.sequence }
    }
}

/// What makes a mutation one of its own; as text `session.slot.sequence`, in hexadecimal and twice decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MutationId {
    /// Who asks.
    pub session: SessionId,
    /// In which slot.
    pub slot: SlotId,
    /// Which of that slot, counted from 1.
    pub sequence: u64,
}

impl fmt::Display for MutationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.session, self.slot.0, self.sequence)
    }
}

impl From<Command<ClientOp>> for Command {
    fn from(asked: Command<ClientOp>) -> Command {
        let Command { session, slot, sequence, time, expect, op } = asked;
        Command { session, slot, sequence, time, expect, op: op.into() }
    }
}

/// New bytes of a file: where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewPlace {
    /// Here.
    Inline(Bytes),
    /// In a chunk of the session's, durable on all its replicas. Starts at a block of the chunk and lies
    /// within one segment of the file.
    Chunk {
        /// The chunk.
        chunk: ChunkId,
        /// Its generation when the bytes were written.
        generation: Generation,
        /// First byte in the chunk.
        offset: u64,
    },
}

/// New bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPiece {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Where they are.
    pub place: NewPlace,
}

/// How `setxattr` treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// Fail if it exists (`XATTR_CREATE`).
    Create,
    /// Fail if it doesn't exist (`XATTR_REPLACE`).
    Replace,
}

/// What fallocate(2) does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FallocateMode {
    /// Allocate what isn't mapped, without changing content.
    Allocate,
    /// Make it a hole.
    Punch,
    /// Make it read as zeroes and stay allocated.
    Zero,
}

/// The operations themselves: each is in the file that carries it out.
pub mod ops {
    pub use super::Refuse;
    pub use crate::chunks::{
        CreateChunk, DeleteStray, SealChunk, SetReplicas, ShrinkChunk, SweepChunk, TasksDone,
    };
    pub use crate::fsck::{Fsck, FsckTotals};
    pub use crate::locks::{ReleaseLocks, SetLock};
    pub use crate::namespace::{
        Append, CopyFileRange, Create, Fallocate, Link, Relocate, RemoveXattr, Rename, SetAcl, SetAttr,
        SetXattr, Tmpfile, Touch, Unlink, Write,
    };
    pub use crate::purge::{PurgeOrphan, PurgeTruncated};
    pub use crate::sessions::{CloseSession, ExpireSession, ForgetSession, OpenSession};
    pub use crate::volume::{
        Bootstrap, ChangeServer, Configure, PutServer, RaiseFeatureLevel, Reserve, Unreserve,
    };
}

/// What an operation depends on besides its own fields and the records.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Who asks.
    pub session: SessionId,
    /// When.
    pub now: Timestamp,
    /// Of an entry of a journal: the number of the inode that it makes, if it makes one. Its caller was told that all went
    /// well, so nothing that depends on others is a reason to refuse it.
    pub journaled: Option<InodeId>,
}

/// One operation. Checks everything that it can be refused for, and changes the records of the transaction.
pub trait Mutation {
    /// What comes of it.
    type Outcome: Reply;

    /// Carries it out.
    ///
    /// # Errors
    /// What it is refused for, or the store's. The transaction is undone then.
    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Self::Outcome>;
}

/// What comes of an operation, as slots and replies have it: [`Outcome`].
pub trait Reply: Sized {
    /// For the slot.
    fn into_outcome(self) -> Outcome;
    /// From a reply; `None` if it is one to another operation.
    fn from_outcome(outcome: Outcome) -> Option<Self>;
}

/// What the leader put in the place of a command that it can't let through for a reason that no record
/// shows (a server's disk is full). The slot keeps the refusal like any other outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Why.
    pub error: FsError,
    /// [`request_hash`](crate::namespace::request_hash) of what the client asked for, so that a retry which
    /// could be let through by now still meets the refusal that may have been answered already.
    pub request: u64,
}

macro_rules! operations {
    (client: $($client:ident),+; service: $($service:ident),+; then: $($later:ident),+) => {
        /// What clients ask for. On the wire and in logs variants have numbers: they are only appended, and no others can be.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[expect(missing_docs, reason = "the operations have them")]
        pub enum ClientOp {
            $($client(ops::$client)),+
        }

        /// What only the metadata service asks for.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the operations have them")]
        pub enum ServiceOp {
            $($service(ops::$service),)+
            $($later(ops::$later)),+
        }

        /// An operation as logs have it: one number for each of both kinds.
        #[derive(Serialize)]
        enum StoredRef<'a> {
            $($client(&'a ops::$client),)+
            $($service(&'a ops::$service),)+
            Refuse(&'a Refuse),
            $($later(&'a ops::$later)),+
        }

        /// The same when it is read.
        #[derive(Deserialize)]
        enum Stored {
            $($client(ops::$client),)+
            $($service(ops::$service),)+
            Refuse(Refuse),
            $($later(ops::$later)),+
        }

        impl Serialize for Op {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let stored = match self {
                    $(Op::Client(ClientOp::$client(op)) => StoredRef::$client(op),)+
                    $(Op::Service(ServiceOp::$service(op)) => StoredRef::$service(op),)+
                    Op::Refuse(refusal) => StoredRef::Refuse(refusal),
                    $(Op::Service(ServiceOp::$later(op)) => StoredRef::$later(op)),+
                };
                stored.serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for Op {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Op, D::Error> {
                Ok(match Stored::deserialize(deserializer)? {
                    $(Stored::$client(op) => op.into(),)+
                    $(Stored::$service(op) => op.into(),)+
                    Stored::Refuse(refusal) => Op::Refuse(refusal),
                    $(Stored::$later(op) => op.into()),+
                })
            }
        }

        impl ClientOp {
            /// The operation's name, as in this code.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    $(ClientOp::$client(_) => stringify!($client)),+
                }
            }

            pub(crate) fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Outcome> {
                match self {
                    $(ClientOp::$client(op) => op.apply(txn, context).map(Reply::into_outcome)),+
                }
            }
        }

        impl ServiceOp {
            /// The operation's name, as in this code.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    $(ServiceOp::$service(_) => stringify!($service),)+
                    $(ServiceOp::$later(_) => stringify!($later)),+
                }
            }

            pub(crate) fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<Outcome> {
                match self {
                    $(ServiceOp::$service(op) => op.apply(txn, context).map(Reply::into_outcome),)+
                    $(ServiceOp::$later(op) => op.apply(txn, context).map(Reply::into_outcome)),+
                }
            }
        }

        $(
            impl From<ops::$client> for ClientOp {
                fn from(op: ops::$client) -> ClientOp {
                    ClientOp::$client(op)
                }
            }

            impl From<ops::$client> for Op {
                fn from(op: ops::$client) -> Op {
                    Op::Client(ClientOp::$client(op))
                }
            }
        )+
        $(
            impl From<ops::$service> for Op {
                fn from(op: ops::$service) -> Op {
                    Op::Service(ServiceOp::$service(op))
                }
            }
        )+
        $(
            impl From<ops::$later> for Op {
                fn from(op: ops::$later) -> Op {
                    Op::Service(ServiceOp::$later(op))
                }
            }
        )+
    };
}

operations! {
    client:
        Create, Tmpfile, Link, Unlink, Rename, SetAttr, Write, Append, Fallocate, SetXattr, RemoveXattr,
        SetAcl, CopyFileRange, SetLock, ReleaseLocks, Touch, CreateChunk, SealChunk, ShrinkChunk, Reserve,
        Unreserve, OpenSession, CloseSession;
    service:
        Bootstrap, Configure, PutServer, ExpireSession, ForgetSession, PurgeOrphan, PurgeTruncated,
        SweepChunk, TasksDone, DeleteStray, Relocate, SetReplicas;
    then: Fsck, FsckTotals, ChangeServer, RaiseFeatureLevel
}

/// An operation in a log. Stored: numbers are only appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A client's, or the service's own of the same kind.
    Client(ClientOp),
    /// The service's own.
    Service(ServiceOp),
    /// What the leader let none of through.
    Refuse(Refuse),
}

impl Op {
    /// The operation's name, as in this code.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Op::Client(op) => op.name(),
            Op::Service(op) => op.name(),
            Op::Refuse(_) => "Refuse",
        }
    }
}

impl From<ClientOp> for Op {
    fn from(op: ClientOp) -> Op {
        Op::Client(op)
    }
}

impl From<Refuse> for Op {
    fn from(refusal: Refuse) -> Op {
        Op::Refuse(refusal)
    }
}

/// What becomes of a storage server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerChange {
    /// It gets no new replicas, and those that it has go elsewhere.
    Drain,
    /// It is used as any other (again).
    Undrain,
    /// It is none of the cluster's any more. Only after it was drained; that no chunk names it the leader has seen,
    /// and none can come to, since it gets no new ones.
    Forget,
}

/// Something that a server was ordered to do and has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskDone {
    /// The replica is deleted.
    Deleted(ChunkId),
    /// The replica is sealed.
    Sealed(ChunkId, Generation),
    /// These ranges (first block, blocks) are trimmed.
    Trimmed(ChunkId, Vec<(u64, u64)>),
}

/// What came of a command. Stored in slots and replayed: variants are only appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done; nothing to tell.
    Done,
    /// Refused; nothing was changed.
    Refused(FsError),
    /// The inode's attributes afterwards.
    Inode(Box<Attributes>),
    /// An append: where it went, and the attributes afterwards.
    Appended(u64, Box<Attributes>),
    /// A new chunk.
    Chunk(ChunkId, Box<ChunkRecord>),
    /// Bytes of quota that the session got.
    Reserved(u64),
    /// A session began. With the last outcomes of the one that it supersedes.
    Session(SessionId, Vec<(SlotId, u64, Outcome)>),
    /// Background work: true if there is more to do.
    More(bool),
    /// fallocate(2): done up to this byte; the rest needs further commands.
    Allocated(u64, Box<Attributes>),
    /// A copy within the map: how many bytes, and the attributes of the second file afterwards.
    Copied(u64, Box<Attributes>),
    /// A rename that replaced something: attributes of what was moved, and of what was replaced, afterwards.
    Replaced(Box<Attributes>, Box<Attributes>),
}

impl ClientOp {
    /// The directories in which it changes names.
    #[must_use]
    pub fn directories(&self) -> [Option<InodeId>; 2] {
        match self {
            ClientOp::Create(op) => [Some(op.parent), None],
            ClientOp::Unlink(op) => [Some(op.parent), None],
            ClientOp::Link(op) => [Some(op.parent), None],
            ClientOp::Rename(op) => [Some(op.parent), (op.new_parent != op.parent).then_some(op.new_parent)],
            _ => [None; 2],
        }
    }
}

impl Outcome {
    /// The attributes that it has, each of another inode.
    #[must_use]
    pub fn described(&self) -> [Option<&Attributes>; 2] {
        match self {
            Outcome::Inode(attributes)
            | Outcome::Appended(_, attributes)
            | Outcome::Allocated(_, attributes)
            | Outcome::Copied(_, attributes) => [Some(attributes), None],
            Outcome::Replaced(moved, replaced) => [Some(moved), Some(replaced)],
            _ => [None; 2],
        }
    }

    /// The outcome as a result.
    ///
    /// # Errors
    /// What the command was refused with.
    pub fn into_result(self) -> Result<Outcome, FsError> {
        match self {
            Outcome::Refused(error) => Err(error),
            other => Ok(other),
        }
    }
}

/// What of an outcome an application has to rely on: that it went well, and for which inodes. The rest may differ for good
/// reasons: access times are told separately, blocks are freed in the background.
#[must_use]
pub fn projection(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Refused(_) => 0,
        Outcome::Inode(attributes) | Outcome::Allocated(_, attributes) | Outcome::Copied(_, attributes) => {
            attributes.ino.0
        }
        Outcome::Appended(offset, attributes) => attributes.ino.0 ^ offset.rotate_left(32),
        Outcome::Replaced(moved, replaced) => moved.ino.0 ^ replaced.ino.0.rotate_left(32),
        Outcome::Done
        | Outcome::Chunk(..)
        | Outcome::Reserved(_)
        | Outcome::Session(..)
        | Outcome::More(_) => u64::MAX,
    }
}

/// An append's outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where it went: first byte in the file.
    pub offset: u64,
    /// The file's attributes afterwards.
    pub attributes: Box<Attributes>,
}

/// What came of fallocate(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Done up to this byte; the rest needs further commands.
    pub until: u64,
    /// The file's attributes afterwards.
    pub attributes: Box<Attributes>,
}

/// What came of a copy within the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// How many bytes.
    pub bytes: u64,
    /// Attributes of the second file afterwards.
    pub attributes: Box<Attributes>,
}

/// A rename's outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// Attributes of what was moved, afterwards.
    pub moved: Box<Attributes>,
    /// Of what it replaced.
    pub replaced: Option<Box<Attributes>>,
}

/// A chunk that was made, or has other replicas now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedChunk {
    /// Its id.
    pub chunk: ChunkId,
    /// Its record.
    pub record: Box<ChunkRecord>,
}

/// A session that began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedSession {
    /// Its id.
    pub session: SessionId,
    /// The last outcomes of the one that it supersedes: slot, sequence, outcome.
    pub previous: Vec<(SlotId, u64, Outcome)>,
}

macro_rules! replies {
    ($($reply:ty: $value:pat => $outcome:expr, $found:pat => $made:expr;)+) => {
        $(
            impl Reply for $reply {
                fn into_outcome(self) -> Outcome {
                    let $value = self;
                    $outcome
                }

                fn from_outcome(outcome: Outcome) -> Option<Self> {
                    match outcome {
                        $found => Some($made),
                        _ => None,
                    }
                }
            }
        )+
    };
}

replies! {
    (): () => Outcome::Done, Outcome::Done => ();
    Box<Attributes>: attributes => Outcome::Inode(attributes), Outcome::Inode(attributes) => attributes;
    u64: bytes => Outcome::Reserved(bytes), Outcome::Reserved(bytes) => bytes;
    bool: more => Outcome::More(more), Outcome::More(more) => more;
    Appended: Appended { offset, attributes } => Outcome::Appended(offset, attributes),
        Outcome::Appended(offset, attributes) => Appended { offset, attributes };
    Allocated: Allocated { until, attributes } => Outcome::Allocated(until, attributes),
        Outcome::Allocated(until, attributes) => Allocated { until, attributes };
    Copied: Copied { bytes, attributes } => Outcome::Copied(bytes, attributes),
        Outcome::Copied(bytes, attributes) => Copied { bytes, attributes };
    CreatedChunk: CreatedChunk { chunk, record } => Outcome::Chunk(chunk, record),
        Outcome::Chunk(chunk, record) => CreatedChunk { chunk, record };
    OpenedSession: OpenedSession { session, previous } => Outcome::Session(session, previous),
        Outcome::Session(session, previous) => OpenedSession { session, previous };
}

impl Reply for Renamed {
    fn into_outcome(self) -> Outcome {
        match self.replaced {
            Some(replaced) => Outcome::Replaced(self.moved, replaced),
            None => Outcome::Inode(self.moved),
        }
    }

    fn from_outcome(outcome: Outcome) -> Option<Renamed> {
        match outcome {
            Outcome::Replaced(moved, replaced) => Some(Renamed { moved, replaced: Some(replaced) }),
            Outcome::Inode(moved) => Some(Renamed { moved, replaced: None }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FsError;
    use crate::ids::{ChunkId, InodeId, ServerId};

    fn stored(op: &Op) -> Vec<u8> {
        postcard::to_allocvec(op).unwrap()
    }

    #[test]
    fn operations_have_the_numbers_that_logs_have() {
        let numbered: [(u8, Op); 9] = [
            (2, ops::Link { ino: InodeId(5), parent: InodeId(1), name: "a".into() }.into()),
            (17, ops::SealChunk { chunk: ChunkId(1) }.into()),
            (22, ops::CloseSession.into()),
            (26, ops::ExpireSession { session: SessionId(1) }.into()),
            (
                34,
                ops::SetReplicas { chunk: ChunkId(1), generation: Generation(2), replicas: Vec::new() }
                    .into(),
            ),
            (35, Refuse { error: FsError::NoSpace, request: 7 }.into()),
            (37, ops::FsckTotals(Default::default()).into()),
            (38, ops::ChangeServer { server: ServerId(1), change: ServerChange::Undrain }.into()),
            (39, ops::RaiseFeatureLevel { level: 2 }.into()),
        ];
        for (number, op) in numbered {
            let bytes = stored(&op);
            assert_eq!(bytes[0], number, "{op:?}");
            assert_eq!(postcard::from_bytes::<Op>(&bytes).unwrap(), op);
        }
    }

    #[test]
    fn what_a_client_asks_for_is_stored_as_it_came() {
        let asked = ClientOp::from(ops::Reserve { bytes: 4096, bytes_min: 1 });
        assert_eq!(postcard::to_allocvec(&asked).unwrap(), stored(&asked.clone().into()));
        // No client asks for what is the service's own.
        let own = stored(&ops::ExpireSession { session: SessionId(1) }.into());
        assert!(postcard::from_bytes::<ClientOp>(&own).is_err());
    }

    #[test]
    fn a_mutation_has_a_name_that_can_be_searched_for() {
        let op = Op::from(ops::SealChunk { chunk: ChunkId(1) });
        let command = Command {
            session: SessionId(0x1f),
            slot: SlotId(2),
            sequence: 30,
            time: Timestamp::default(),
            expect: None,
            op,
        };
        let session = command.session;
        assert_eq!((command.id().to_string(), command.op.name()), (format!("{session}.2.30"), "SealChunk"));
    }

    #[test]
    fn a_reply_to_something_else_is_none() {
        assert_eq!(<()>::from_outcome(Outcome::Done), Some(()));
        assert_eq!(u64::from_outcome(Outcome::Done), None);
        assert_eq!(Box::<Attributes>::from_outcome(Outcome::Reserved(1)), None);
    }
}
