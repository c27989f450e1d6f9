//! openraft's types, chosen once, and the conversions between them and ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use bytes::Bytes;
use openraft::alias::{EntryOf, StoredMembershipOf};
use openraft::entry::RaftEntry;
use openraft::vote::leader_id_std::{CommittedLeaderId, LeaderId};
use openraft::{BasicNode, EntryPayload, LogId, Membership, StoredMembership, Vote};
use serde::{Deserialize, Serialize};

use crate::clock::BootRuntime;
use crate::log_store::LogEntry;
use crate::machine::Machine;
use crate::record::Kind;
use crate::types::{LogPosition, MemberId};
use crate::vote::VoteRecord;

/// A command: bytes of which nothing is known here.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command(pub(crate) Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

// Standard Raft, one leader per term, so that a position is (term, index) and nothing else.
openraft::declare_raft_types!(
    pub(crate) Group:
        D = Command,
        R = Bytes,
        NodeId = MemberId,
        Node = BasicNode,
        Term = u64,
        LeaderId = LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = BootRuntime,
);

pub(crate) type Raft = openraft::Raft<Group, Machine>;
pub(crate) type Entry = EntryOf<Group>;
pub(crate) type GroupLogId = LogId<CommittedLeaderId<u64>>;
pub(crate) type GroupVote = Vote<LeaderId<u64, MemberId>>;
pub(crate) type GroupMembership = Membership<MemberId, BasicNode>;
pub(crate) type GroupStoredMembership = StoredMembershipOf<Group>;

impl From<LogPosition> for GroupLogId {
    fn from(position: LogPosition) -> Self {
        LogId::new_term_index(position.term, position.index)
    }
}

impl From<GroupLogId> for LogPosition {
    fn from(id: GroupLogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<VoteRecord> for GroupVote {
    fn from(vote: VoteRecord) -> Self {
        if vote.committed {
            Self::new_committed(vote.term, vote.node)
        } else {
            Self::new(vote.term, vote.node)
        }
    }
}

impl From<&GroupVote> for VoteRecord {
    fn from(vote: &GroupVote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

/// Version of the encodings of memberships below.
const MEMBERSHIP_FORMAT: u8 = 1;

/// A membership as it is kept in the log and in the state machine: our own structure, so that a
/// change inside openraft can't change what is on disk. postcard, after a version byte.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MembershipRecord {
    /// Position of its entry; not in the entry itself.
    position: Option<LogPosition>,
    /// Voters: one set, or two while the group changes from the first to the second.
    configs: Vec<BTreeSet<MemberId>>,
    /// All members, voters and learners, and their addresses.
    members: BTreeMap<MemberId, String>,
}

fn encode_membership_record(position: Option<LogPosition>, membership: &GroupMembership) -> Vec<u8> {
    let record = MembershipRecord {
        position,
        configs: membership.get_joint_config().clone(),
        members: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
    };
    postcard::to_extend(&record, vec![MEMBERSHIP_FORMAT]).unwrap_or_else(|e| {
        // Numbers, strings and collections of known length into a growing vector.
        unreachable!("a membership can always be encoded: {e}")
    })
}

fn decode_membership_record(bytes: &[u8]) -> io::Result<(Option<LogPosition>, GroupMembership)> {
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("bad membership: {why}"));
    let record: MembershipRecord = match bytes.split_first() {
        Some((&MEMBERSHIP_FORMAT, rest)) => postcard::from_bytes(rest).map_err(|e| bad(e.to_string()))?,
        Some((version, _)) => return Err(bad(format!("unknown version {version}"))),
        None => return Err(bad("no bytes".into())),
    };
    if record.configs.is_empty() {
        return Ok((record.position, GroupMembership::default()));
    }
    let nodes: BTreeMap<_, _> =
        record.members.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
    let membership = Membership::new(record.configs, nodes).map_err(|e| bad(e.to_string()))?;
    Ok((record.position, membership))
}

/// The membership of an entry, as its payload.
pub(crate) fn encode_membership(membership: &GroupMembership) -> Vec<u8> {
    encode_membership_record(None, membership)
}

/// The membership of an entry at a position, as the state machine keeps it.
pub(crate) fn encode_stored_membership(membership: &GroupStoredMembership) -> Vec<u8> {
    let position = (*membership.log_id()).map(LogPosition::from);
    encode_membership_record(position, membership.membership())
}

/// Reads what the state machine has kept.
pub(crate) fn decode_stored_membership(bytes: Option<&[u8]>) -> io::Result<GroupStoredMembership> {
    let Some(bytes) = bytes else {
        return Ok(GroupStoredMembership::default());
    };
    let (position, membership) = decode_membership_record(bytes)?;
    Ok(StoredMembership::new(position.map(GroupLogId::from), membership))
}

/// An entry as the log keeps it.
pub(crate) fn to_log_entry(entry: Entry) -> LogEntry {
    let position = LogPosition::from(entry.log_id());
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (Kind::Blank, Bytes::new()),
        EntryPayload::Normal(command) => (Kind::Normal, command.0),
        EntryPayload::Membership(membership) => {
            (Kind::Membership, Bytes::from(encode_membership(&membership)))
        }
    };
    LogEntry { position, kind, payload }
}

/// An entry as openraft wants it.
pub(crate) fn from_log_entry(entry: LogEntry) -> io::Result<Entry> {
    let payload = match entry.kind {
        Kind::Blank => EntryPayload::Blank,
        Kind::Normal => EntryPayload::Normal(Command(entry.payload)),
        Kind::Membership => EntryPayload::Membership(decode_membership_record(&entry.payload)?.1),
        Kind::Continue | Kind::Truncate | Kind::Jump => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a mark is no entry"));
        }
    };
    Ok(Entry::new(entry.position.into(), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memberships_survive() {
        let nodes = BTreeMap::from([1, 2, 3, 9].map(|id| (id, BasicNode::new(format!("m{id}:7000")))));
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 9])];
        let membership = Membership::new(joint, nodes).unwrap();
        let stored = StoredMembership::new(Some(LogId::new_term_index(3, 77)), membership.clone());
        let bytes = encode_stored_membership(&stored);
        assert_eq!(decode_stored_membership(Some(&bytes)).unwrap(), stored);
        assert_eq!(decode_stored_membership(None).unwrap(), GroupStoredMembership::default());
        let entry = Entry::new(LogId::new_term_index(3, 77), EntryPayload::Membership(membership));
        assert_eq!(from_log_entry(to_log_entry(entry.clone())).unwrap(), entry);
        let mut newer = bytes.clone();
        newer[0] = 2;
        assert!(decode_stored_membership(Some(&newer)).is_err());
        assert!(decode_stored_membership(Some(&bytes[..bytes.len() - 3])).is_err());
    }
}
