//! What operations are to a journal: which can be carried out here, and what they concern. Pure.

use atoll_core::commands::{ClientOp, NewPlace, Outcome, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT};
use atoll_core::ids::InodeId;
use atoll_proto::metadata::Query;
use bytes::Bytes;

/// What a change in a slot may concern of what is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Nothing, and it doesn't matter what comes first.
    Nothing,
    /// Access times.
    Times,
    /// An inode; `content`: where its bytes are, too.
    Inode { ino: InodeId, content: bool },
    /// Names, and the inodes that they lead to.
    Names,
}

pub(super) fn scope(op: &ClientOp) -> Scope {
    let inode = |ino, content| Scope::Inode { ino, content };
    match op {
        ClientOp::CreateChunk(_)
        | ClientOp::SealChunk(_)
        | ClientOp::ShrinkChunk(_)
        | ClientOp::Reserve(_)
        | ClientOp::Unreserve(_) => Scope::Nothing,
        ClientOp::Touch(_) => Scope::Times,
        ClientOp::SetAttr(op) => inode(op.ino, op.changes.size.is_some()),
        ClientOp::SetXattr(op) => inode(op.ino, false),
        ClientOp::RemoveXattr(op) => inode(op.ino, false),
        ClientOp::SetAcl(op) => inode(op.ino, false),
        ClientOp::Write(op) => inode(op.ino, true),
        ClientOp::Append(op) => inode(op.ino, true),
        ClientOp::Fallocate(op) => inode(op.ino, true),
        ClientOp::CopyFileRange(op) => inode(op.to, true),
        _ => Scope::Names,
    }
}

/// Whether an operation can be carried out here: its outcome depends on records alone, and what it makes can be numbered here.
pub(super) fn can_be_journaled(op: &ClientOp) -> bool {
    match op {
        ClientOp::Create(_)
        | ClientOp::Link(_)
        | ClientOp::Unlink(_)
        | ClientOp::SetAttr(_)
        | ClientOp::SetXattr(_)
        | ClientOp::RemoveXattr(_)
        | ClientOp::SetAcl(_) => true,
        ClientOp::Rename(op) => op.flags & RENAME_WHITEOUT == 0,
        ClientOp::Write(op) => op.pieces.iter().all(|piece| matches!(piece.place, NewPlace::Inline(_))),
        _ => false,
    }
}

/// The name that an operation may take away from what has it: of which one.
pub(super) fn name_removed(op: &ClientOp) -> Option<(InodeId, &Bytes)> {
    match op {
        ClientOp::Unlink(op) => Some((op.parent, &op.name)),
        ClientOp::Rename(op) if op.flags & (RENAME_EXCHANGE | RENAME_NOREPLACE) == 0 => {
            Some((op.new_parent, &op.new_name))
        }
        _ => None,
    }
}

/// The inodes that an operation names.
pub(in crate::session) fn inodes_of(op: &ClientOp) -> [Option<InodeId>; 3] {
    let [first, second] = op.directories();
    let own = match (op, scope(op)) {
        (ClientOp::Create(op), _) => op.ino,
        (ClientOp::Link(op), _) => Some(op.ino),
        (_, Scope::Inode { ino, .. }) => Some(ino),
        _ => None,
    };
    [first, second, own]
}

/// The inodes that have lost their last name.
pub(super) fn last_names_gone(outcome: &Outcome) -> [Option<InodeId>; 2] {
    outcome.described().map(|attributes| {
        attributes.filter(|attributes| attributes.nlink == 0).map(|attributes| attributes.ino)
    })
}

/// For the log: what an operation is, and the name that it is about.
pub(super) fn named(op: &ClientOp) -> (&'static str, Bytes) {
    match op {
        ClientOp::Create(op) => ("create", op.name.clone()),
        ClientOp::Link(op) => ("link", op.name.clone()),
        ClientOp::Unlink(op) => (if op.directory { "rmdir" } else { "unlink" }, op.name.clone()),
        ClientOp::Rename(op) => ("rename", op.new_name.clone()),
        ClientOp::SetAttr(_) => ("setattr", Bytes::new()),
        ClientOp::SetXattr(_) | ClientOp::SetAcl(_) => ("setxattr", Bytes::new()),
        ClientOp::RemoveXattr(_) => ("removexattr", Bytes::new()),
        _ => ("write", Bytes::new()),
    }
}

/// What a question depends on may still be in the journal.
pub(in crate::session) fn depends_on_journal(query: &Query) -> bool {
    !matches!(
        query,
        Query::Servers(_)
            | Query::Chunks(_)
            | Query::AwaitLocks(_)
            | Query::AdoptSession(_)
            | Query::Journal(_)
    )
}
