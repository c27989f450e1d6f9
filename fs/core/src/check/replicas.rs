//! What a storage server holds of a chunk, against what the records say that it should.

use super::Kind;
use crate::ids::Generation;
use crate::records::{ChunkRecord, TaskRecord};

/// A replica as its server describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its generation.
    pub generation: Generation,
    /// Bytes written, holes counted.
    pub length: u64,
    /// It takes no more writes.
    pub sealed: bool,
    /// A block without its checksum is known.
    pub bad: bool,
}

/// What is wrong with a replica that the records place on a server. Nothing that a task to the server is about to
/// change, and nothing that a writer is about to: of an open chunk only what was committed has to be there.
#[must_use]
pub fn judge(record: &ChunkRecord, task: &TaskRecord, held: Option<&Held>) -> Option<(Kind, String)> {
    if record.committed == 0 || task.delete {
        return None;
    }
    let Some(held) = held else {
        return Some((Kind::ReplicaMissing, "has no replica".into()));
    };
    if held.bad {
        return Some((Kind::ReplicaBad, "has a replica with corrupt blocks".into()));
    }
    if held.length < record.committed {
        let words = format!("has only {} bytes of {}", held.length, record.committed);
        return Some((Kind::ReplicaShort, words));
    }
    if !record.sealed || task.seal.is_some() {
        return None;
    }
    if held.generation != record.generation || !held.sealed {
        let words = format!(
            "has generation {}{}, and the chunk is sealed at {}",
            held.generation,
            if held.sealed { "" } else { ", not sealed" },
            record.generation
        );
        return Some((Kind::ReplicaGeneration, words));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ServerId, SessionId};
    use crate::records::ChunkKind;

    fn kind(record: &ChunkRecord, task: &TaskRecord, held: Option<&Held>) -> Option<Kind> {
        judge(record, task, held).map(|(kind, _)| kind)
    }

    #[test]
    fn a_replica_is_wrong_only_where_nothing_is_about_to_change_it() {
        let open = ChunkRecord {
            generation: Generation(2),
            writer: SessionId(1),
            incarnation: 1,
            replicas: vec![ServerId(1)],
            copies: 1,
            kind: ChunkKind::Stream,
            capacity: 1 << 20,
            committed: 8192,
            sealed: false,
            live_blocks: 2,
            dead_blocks: 0,
        };
        let sealed = ChunkRecord { sealed: true, ..open.clone() };
        let none = TaskRecord::default();
        let seal = TaskRecord { seal: Some((Generation(2), 8192)), ..none.clone() };
        let delete = TaskRecord { delete: true, ..none.clone() };
        let held = Held { generation: Generation(2), length: 8192, sealed: true, bad: false };
        assert_eq!(kind(&sealed, &none, Some(&held)), None);
        assert_eq!(kind(&sealed, &none, None), Some(Kind::ReplicaMissing));
        assert_eq!(kind(&sealed, &delete, None), None);
        assert_eq!(kind(&ChunkRecord { committed: 0, ..open.clone() }, &none, None), None);
        let short = Held { length: 4096, ..held };
        assert_eq!(kind(&open, &none, Some(&short)), Some(Kind::ReplicaShort));
        assert_eq!(kind(&sealed, &none, Some(&Held { bad: true, ..held })), Some(Kind::ReplicaBad));
        let old = Held { generation: Generation(1), sealed: false, ..held };
        assert_eq!(kind(&open, &none, Some(&old)), None);
        assert_eq!(kind(&sealed, &seal, Some(&old)), None);
        assert_eq!(kind(&sealed, &none, Some(&old)), Some(Kind::ReplicaGeneration));
    }
}
