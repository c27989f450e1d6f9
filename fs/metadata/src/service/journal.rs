//! Journals: mutations that a client has carried out itself, on a volume for one mount, and that follow in batches.

use std::ops::ControlFlow;
use std::sync::Arc;

use atoll_core::attributes::FileKind;
use atoll_core::commands::{ClientOp, Command, INTERNAL, NewPlace, Op, Outcome, RENAME_WHITEOUT, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SessionId, SlotId};
use atoll_core::keys;
use atoll_core::query::{self, OpResult, load};
use atoll_core::records::{EntryRecord, Record, SessionRecord, SlotRecord};
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::metadata::{InodeRecords, JournalBatch, JournalReply, JournalState, MetadataError};
use atoll_proto::queries;
use bytes::Bytes;

use super::mutate::SEGMENTS_WITH_UNLINK_MAX;
use super::session::inline_allowed;
use crate::leader::internal;
use crate::node::{Node, query_error};
use crate::proposer::BATCH_COMMANDS_MAX;

/// Entries of a directory in one answer.
const ENTRIES_MAX: usize = 4096;
/// Bytes of records in one answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Bytes of extended attributes in one answer.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Whether a client can have carried this out itself. What depends on the servers, on chunks or on who has a file open isn't
/// its to decide.
fn is_journaled(op: &ClientOp) -> bool {
    match op {
        ClientOp::Create(create) => create.ino.is_some(),
        ClientOp::Rename(rename) => rename.flags & RENAME_WHITEOUT == 0,
        ClientOp::Write(write) => write.pieces.iter().all(|piece| matches!(piece.place, NewPlace::Inline(_))),
        ClientOp::Link(_)
        | ClientOp::Unlink(_)
        | ClientOp::SetAttr(_)
        | ClientOp::SetXattr(_)
        | ClientOp::RemoveXattr(_)
        | ClientOp::SetAcl(_) => true,
        _ => false,
    }
}

/// What became of commands in their order: how many of them are done, and why the next one isn't.
fn judge<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> (u64, Option<FsError>) {
    let mut done = 0;
    for outcome in outcomes {
        match outcome {
            // Any other refusal is what its application was told.
            Outcome::Refused(
                error @ (FsError::JournalBroken | FsError::BadSequence | FsError::SessionExpired),
            ) => return (done, Some(*error)),
            _ => done += 1,
        }
    }
    (done, None)
}

impl Node {
    /// Carries entries of a session's journal out.
    pub(crate) async fn journal(
        self: &Arc<Self>,
        batch: JournalBatch,
    ) -> Result<JournalReply, MetadataError> {
        let JournalBatch { session, first, entries } = batch;
        let is_sound = session != INTERNAL
            && first > 0
            && entries.len() <= BATCH_COMMANDS_MAX / 2
            && entries.iter().all(|entry| is_journaled(&entry.op));
        if !is_sound {
            return Err(MetadataError::Fs(FsError::NotPermitted));
        }
        let leader = self.lead()?;
        if !query::superblock(&*self.machine.store()).map_err(query_error)?.config.exclusive {
            return Err(MetadataError::Fs(FsError::NotPermitted));
        }
        self.note_heard(&leader, session)?;
        let mut commands = Vec::with_capacity(entries.len() * 2);
        let mut unlinking = Vec::new();
        let mut own = Vec::with_capacity(entries.len());
        for (sequence, entry) in (first..).zip(entries) {
            own.push(commands.len());
            commands.push(Command {
                session,
                slot: SlotId(0),
                sequence,
                time: entry.time,
                expect: Some(entry.expect),
                op: Op::from(entry.op),
            });
            // What is held all the same, or can't be told, is freed in the background.
            if let Some(ino) = entry.frees
                && let Some(begun) = leader.begin_unlinking(ino)
            {
                unlinking.push(begun);
                let purge = ops::PurgeOrphan { ino, segments_max: SEGMENTS_WITH_UNLINK_MAX };
                commands.push(internal(Op::from(purge)));
            }
        }
        let outcomes = leader.propose_together(&commands).await?;
        let (done, refused) = judge(own.iter().filter_map(|at| outcomes.get(*at)));
        if let Some(error) = refused
            && error == FsError::JournalBroken
        {
            tracing::error!(%session, entry = first + done, "a mount's journal can't be carried out any further");
        }
        let volume = query::superblock(&*self.machine.store()).map_err(query_error)?;
        Ok(JournalReply {
            applied: first + done - 1,
            refused,
            disk_low: self.is_full(&leader),
            inline_allowed: inline_allowed(volume.inline_bytes, volume.config.inline_budget_bytes),
        })
    }
}

/// What the session's journal begins with.
pub(super) fn state(records: &dyn Read, session: SessionId) -> OpResult<JournalState> {
    let volume = query::superblock(records)?;
    if !volume.config.exclusive {
        return Err(FsError::Unsupported.into());
    }
    let record: Option<SessionRecord> = load(records, Family::System, &keys::session(session))?;
    let record = record.filter(|record| record.ended.is_none()).ok_or(FsError::SessionExpired)?;
    let last: Option<SlotRecord> = load(records, Family::System, &keys::slot(session, SlotId(0)))?;
    Ok(JournalState {
        superblock: volume.encode().into(),
        applied: last.map_or(0, |slot| slot.sequence),
        is_broken: record.journal_broken,
    })
}

type Pairs = Vec<(Bytes, Bytes)>;

/// What a range of keys has, up to `bytes_max` and `count_max`; and whether that is all.
fn range(
    records: &dyn Read,
    family: Family,
    from: &[u8],
    to: &[u8],
    (count_max, bytes_max): (usize, usize),
) -> Result<(Pairs, bool), StoreError> {
    let (mut found, mut bytes, mut is_all) = (Vec::new(), 0, true);
    records.scan(family, from, to, &mut |key, value| {
        if found.len() == count_max || bytes > bytes_max {
            is_all = false;
            return ControlFlow::Break(());
        }
        bytes += key.len() + value.len();
        found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    })?;
    Ok((found, is_all))
}

/// Stored records of an inode.
pub(super) fn records(records: &dyn Read, asked: &queries::Records) -> OpResult<InodeRecords> {
    let queries::Records { ino, from } = *asked;
    if !query::superblock(records)?.config.exclusive {
        return Err(FsError::Unsupported.into());
    }
    let inode = query::inode(records, ino)?;
    let mut answer = InodeRecords {
        xattrs: Some(Vec::new()),
        entries: Vec::new(),
        children: Vec::new(),
        next: None,
        inode: inode.encode().into(),
    };
    if inode.xattr_list_bytes > 0 {
        let prefix = keys::inode(ino);
        let limits = (usize::MAX, XATTR_BYTES_MAX);
        let (found, is_all) = range(records, Family::Xattrs, &prefix, &prefix_end(&prefix), limits)?;
        answer.xattrs = is_all.then_some(found);
    }
    if inode.kind() != FileKind::Directory {
        return Ok(answer);
    }
    let (start, end) = (keys::entry_at(ino, from), prefix_end(&keys::entries(ino)));
    let (entries, is_all) = range(records, Family::Names, &start, &end, (ENTRIES_MAX, ANSWER_BYTES_MAX / 2))?;
    if !is_all {
        answer.next = entries.last().and_then(|(key, _)| keys::cookie_of(key)).map(|cookie| cookie + 1);
    }
    let mut named: Vec<InodeId> = Vec::with_capacity(entries.len());
    for (_, value) in &entries {
        if let EntryRecord::Entry { ino, .. } = EntryRecord::decode(value)? {
            named.push(ino);
        }
    }
    answer.entries = entries;
    let keys: Vec<Vec<u8>> = named.iter().map(|ino| keys::inode(*ino)).collect();
    let (mut bytes, found) = (0, records.get_many(Family::Inodes, &keys)?);
    for (ino, value) in named.into_iter().zip(found) {
        bytes += value.as_ref().map_or(0, Vec::len);
        if bytes > ANSWER_BYTES_MAX / 2 {
            break;
        }
        answer.children.extend(value.map(|value| (ino, Bytes::from(value))));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_broken_entry_is_not_done() {
        let refused = Outcome::Refused;
        let judged = |outcomes: &[Outcome]| judge(outcomes.iter());
        assert_eq!(judged(&[]), (0, None));
        assert_eq!(judged(&[Outcome::Done, refused(FsError::NotFound)]), (2, None));
        let broken = [Outcome::Done, refused(FsError::JournalBroken), refused(FsError::JournalBroken)];
        assert_eq!(judged(&broken), (1, Some(FsError::JournalBroken)));
        assert_eq!(judged(&[refused(FsError::BadSequence)]), (0, Some(FsError::BadSequence)));
    }
}
