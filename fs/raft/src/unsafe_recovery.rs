//! The way out when a majority of the members is lost for good: one that is left goes on alone.
//!
//! Raft can't decide this by itself: members that are only cut off could go on too, and there would be two groups. So
//! an administrator says it, to a member that is stopped. What the lost members had and this one hadn't is lost.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::{BasicNode, Membership};
use tokio::sync::oneshot;

use crate::error::{LogError, RaftError};
use crate::group::encode_membership;
use crate::log_store::LogEntry;
use crate::node::open_log;
use crate::record::Kind;
use crate::types::{LogPosition, RaftConfig};
use crate::vote::VoteRecord;

/// Makes the stopped member of `config` the only one of its group, at `addr`: appends the membership to its log, in a
/// term of its own. Everything in its log counts as committed from now on. Started again, it leads at once. Returns the
/// position up to which its log goes. Blocks.
///
/// # Errors
/// If it runs, belongs to no group, or its log can't be read or written; then nothing has changed.
pub fn unsafe_recovery(config: &RaftConfig, addr: String) -> Result<LogPosition, RaftError> {
    let (_lock, store) = open_log(config)?;
    let (base, last) = store.ends();
    let Some(last) = last.or(base) else {
        return Err(RaftError::Membership(
            "this member has no log: it has not belonged to a group yet".into(),
        ));
    };
    let term = store.vote().map_or(0, |vote| vote.term).max(last.term) + 1;
    let voters = vec![BTreeSet::from([config.member])];
    let nodes = BTreeMap::from([(config.member, BasicNode { addr })]);
    let membership =
        Membership::new(voters, nodes).map_err(|error| RaftError::Membership(error.to_string()))?;
    let position = LogPosition { term, index: last.index + 1 };
    let payload = Bytes::from(encode_membership(&membership));
    // First the vote: an entry of a term that this member hasn't voted in would be none of its own.
    wait(store.save_vote(VoteRecord { term, node: config.member, committed: false }))?;
    let (done, appended) = oneshot::channel();
    let entry = LogEntry { position, kind: Kind::Membership, payload };
    store.append(vec![entry], Box::new(move |result| drop(done.send(result))))?;
    wait(appended)?;
    store.close();
    Ok(position)
}

fn wait(result: oneshot::Receiver<Result<(), LogError>>) -> Result<(), RaftError> {
    Ok(result.blocking_recv().unwrap_or(Err(LogError::Closed))?)
}
