//! Questions to the metadata service, each with what it is answered with.

use atoll_core::attributes::{Attributes, VolumeUse};
use atoll_core::ids::{ChunkId, InodeId, SegmentIndex};
use atoll_core::lock_waits::{Verdict, Wait};
use atoll_core::locks::{HeldLock, Holder, LockChange, LockRequest};
use atoll_core::seek::{self, Sought};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::metadata::{
    Answer, ChunkInfo, DirectoryPage, FileExtents, InodeRecords, JournalState, LockAnswer, ServerInfo,
    SessionState,
};

/// A question; changes no record.
pub trait Question: Into<Query> {
    /// What it is answered with.
    type Answer: Answers;
}

/// The inode that `name` names in `parent`; `.` and `..` too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// The directory.
    pub parent: InodeId,
    /// The name.
    pub name: Bytes,
}

/// Attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetAttr {
    /// Of which.
    pub ino: InodeId,
}

/// Target of a symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLink {
    /// Of which.
    pub ino: InodeId,
}

/// Entries of a directory after a cookie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDir {
    /// The directory.
    pub ino: InodeId,
    /// Entries after this one; 0: from the start. `.` and `..` are not among them.
    pub cookie: u64,
    /// About how many bytes of names and attributes to return.
    pub bytes_max: u32,
    /// With attributes.
    pub plus: bool,
}

/// Registers that the session holds the file open (it is kept when its last name goes) and returns its
/// attributes and first extents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Which.
    pub ino: InodeId,
    /// How many segments to map along, from the start.
    pub segments: u32,
}

/// Attributes and extents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extents {
    /// Of which.
    pub ino: InodeId,
    /// First segment.
    pub first: SegmentIndex,
    /// How many.
    pub segments: u32,
}

/// Value of an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetXattr {
    /// Of which inode.
    pub ino: InodeId,
    /// Which.
    pub name: Bytes,
}

/// Names of the extended attributes, each ended by NUL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListXattr {
    /// Of which inode.
    pub ino: InodeId,
}

/// Size and use of the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatFs;

/// Replicas of chunks, as far as these still exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunks {
    /// Which.
    pub chunks: Vec<ChunkId>,
}

/// The storage servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers;

/// The next data or hole of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lseek {
    /// Which file.
    pub ino: InodeId,
    /// At or after this byte.
    pub offset: u64,
    /// What to look for.
    pub kind: seek::Seek,
}

/// Which lock is in the way of this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetLk(pub LockRequest);

/// These are all locks that the session waits for. Answered, after a while at the latest, with what there is to
/// tell of them; another such question of the session ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitLocks {
    /// All of them; none: nobody waits any more.
    pub waits: Vec<Wait>,
}

/// Changes what the session has locked of an inode, in the leader's memory. It may be sent again and may come late: see
/// [`lock_table`](atoll_core::lock_table).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeLocks {
    /// The leader's term that this is for. The session has told the leader of that term what it holds.
    pub term: u64,
    /// The session's number of this change.
    pub number: u64,
    /// The session's lowest number that is still under way.
    pub floor: u64,
    /// What to do.
    pub change: LockChange,
    /// What is known of the file is as of this value of its change counter, if anything is.
    pub known_change: Option<u64>,
    /// How many segments to map along, from the start, for who takes a lock of a file that has changed since.
    pub segments: u32,
}

/// A process has succeeded the one that had this session, and asks what that has left: see [`SessionState`]. The chunks that
/// it could still write are sealed first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptSession;

/// What the session has to know to keep a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal;

/// Stored records of an inode, and of a directory those of its entries and of what they name. Only on a volume for one mount:
/// nobody else changes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// Which.
    pub ino: InodeId,
    /// Of a directory: entries from this cookie on.
    pub from: u64,
}

macro_rules! questions {
    ($($name:ident => $answer:ty;)+) => {
        /// Any question. On the wire: variants are only appended.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[expect(missing_docs, reason = "the questions have them")]
        pub enum Query {
            $($name($name)),+
        }

        $(
            impl From<$name> for Query {
                fn from(question: $name) -> Query {
                    Query::$name(question)
                }
            }

            impl Question for $name {
                type Answer = $answer;
            }
        )+
    };
}

questions! {
    Lookup => Attributes;
    GetAttr => Attributes;
    ReadLink => Bytes;
    ReadDir => DirectoryPage;
    Open => FileExtents;
    Extents => FileExtents;
    GetXattr => Bytes;
    ListXattr => Bytes;
    StatFs => VolumeUse;
    Chunks => Vec<ChunkInfo>;
    Servers => Vec<ServerInfo>;
    Lseek => Sought;
    GetLk => Option<(Holder, HeldLock)>;
    AwaitLocks => Vec<(u64, Verdict)>;
    ChangeLocks => LockAnswer;
    AdoptSession => SessionState;
    Journal => JournalState;
    Records => InodeRecords;
}

/// What a question is answered with.
pub trait Answers: Sized {
    /// For the wire.
    fn into_answer(self) -> Answer;
    /// From the wire; `None` if it answers another kind of question.
    fn from_answer(answer: Answer) -> Option<Self>;
}

macro_rules! answers {
    ($($variant:ident: $answer:ty;)+) => {
        $(
            impl Answers for $answer {
                fn into_answer(self) -> Answer {
                    Answer::$variant(self)
                }

                fn from_answer(answer: Answer) -> Option<$answer> {
                    match answer {
                        Answer::$variant(answer) => Some(answer),
                        _ => None,
                    }
                }
            }
        )+
    };
}

answers! {
    Inode: Attributes;
    Bytes: Bytes;
    Directory: DirectoryPage;
    Extents: FileExtents;
    Volume: VolumeUse;
    Chunks: Vec<ChunkInfo>;
    Servers: Vec<ServerInfo>;
    Sought: Sought;
    Lock: Option<(Holder, HeldLock)>;
    Locks: Vec<(u64, Verdict)>;
    LocksChanged: LockAnswer;
    Session: SessionState;
    Journal: JournalState;
    Records: InodeRecords;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_have_the_numbers_that_the_wire_has() {
        let numbered: [(u8, Query); 8] = [
            (0, Lookup { parent: InodeId(1), name: "a".into() }.into()),
            (4, Open { ino: InodeId(5), segments: 1 }.into()),
            (8, StatFs.into()),
            (10, Servers.into()),
            (13, AwaitLocks { waits: Vec::new() }.into()),
            (15, AdoptSession.into()),
            (16, Journal.into()),
            (17, Records { ino: InodeId(5), from: 0 }.into()),
        ];
        for (number, query) in numbered {
            let bytes = postcard::to_allocvec(&query).unwrap();
            assert_eq!(bytes[0], number, "{query:?}");
            assert_eq!(postcard::from_bytes::<Query>(&bytes).unwrap(), query);
        }
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let answer = Vec::<ServerInfo>::new().into_answer();
        assert_eq!(Bytes::from_answer(answer.clone()), None);
        assert_eq!(Vec::<ServerInfo>::from_answer(answer), Some(Vec::new()));
    }
}
