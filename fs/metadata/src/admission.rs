//! What the leader decides about a command before it is proposed: things that no record shows.
//!
//! Pure: what servers have room and how full the disk is are arguments. A command that isn't let through is
//! replaced by a refusal, which goes through the log like any other command, so that the session's slot has it.

use atoll_core::commands::{ClientOp, Command, NewPlace, Op, ops};
use atoll_core::error::FsError;
use atoll_core::ids::ServerId;
use atoll_core::namespace::request_hash;
use atoll_core::records::Superblock;

use crate::placement::{self, Candidate};

/// What is known besides the records.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Servers that may get a new replica.
    pub candidates: Vec<Candidate>,
    /// Bytes of data that all servers together still hold, in all copies, see [`Servers::room`]; `None`: not known.
    ///
    /// [`Servers::room`]: crate::servers::Servers::room
    pub room: Option<u64>,
    /// The metadata disk has little room: only what frees some is let through.
    pub disk_low: bool,
    /// For placement.
    pub seed: u64,
}

/// Whether a client may ask for this.
#[must_use]
pub fn is_allowed(op: &ClientOp) -> bool {
    // Only entries of a journal have one.
    !matches!(op, ClientOp::Create(ops::Create { ino: Some(_), .. }))
}

/// Whether this can be decided without [`Facts`], so that nobody has to gather them.
#[must_use]
pub fn needs_facts(op: &Op) -> bool {
    inline_bytes(op) > 0
        || matches!(op, Op::Client(ClientOp::CreateChunk(_)) | Op::Client(ClientOp::Reserve(_)))
}

/// Fills in what the leader decides; a command that can't be let through becomes a refusal.
pub fn admit(command: &mut Command, volume: &Superblock, facts: &Facts) {
    if let Err(error) = check(&mut command.op, volume, facts) {
        // Of what was asked for: what the leader chooses is no part of it.
        let request = request_hash(&command.op);
        command.op = Op::Refuse(ops::Refuse { error, request });
    }
}

fn check(op: &mut Op, volume: &Superblock, facts: &Facts) -> Result<(), FsError> {
    if facts.disk_low && grows(op) {
        return Err(FsError::NoSpace);
    }
    // An append that would cross into the next segment has no other way.
    let budget = match op {
        Op::Client(ClientOp::Append(_)) => volume.config.inline_budget_bytes.saturating_mul(2),
        _ => volume.config.inline_budget_bytes,
    };
    if inline_bytes(op) > 0 && volume.inline_bytes >= budget {
        return Err(FsError::InlineBudget);
    }
    match op {
        Op::Client(ClientOp::CreateChunk(ops::CreateChunk { replicas, .. })) => {
            *replicas = choose(volume, facts, replicas);
            let needed = usize::from(volume.config.copies_min);
            if replicas.len() < needed {
                // Servers come back; a full disk has to be made room on.
                let full = facts.candidates.len() >= needed;
                return Err(if full { FsError::NoSpace } else { FsError::NoServers });
            }
        }
        Op::Client(ClientOp::Reserve(ops::Reserve { bytes, bytes_min })) => {
            let Some(room) = facts.room else { return Ok(()) };
            // What was promised before has to find room too.
            let free = room.saturating_sub(volume.bytes_reserved);
            if *bytes_min > free {
                return Err(FsError::NoSpace);
            }
            let fits = free / atoll_core::limits::BLOCK_BYTES * atoll_core::limits::BLOCK_BYTES;
            *bytes = (*bytes).min(fits.max(*bytes_min));
        }
        _ => {}
    }
    Ok(())
}

/// Servers for the replicas of a new chunk: as many as copies are wanted, or as there are. Those of `avoid` only if there
/// aren't enough others.
#[must_use]
pub fn choose(volume: &Superblock, facts: &Facts, avoid: &[ServerId]) -> Vec<ServerId> {
    let config = &volume.config;
    let place = |candidates: &[Candidate]| {
        placement::place(candidates, &[], usize::from(config.copies), config.chunk_bytes, facts.seed)
    };
    let others = || facts.candidates.iter().filter(|candidate| !avoid.contains(&candidate.server));
    if !avoid.is_empty() && others().count() >= usize::from(config.copies) {
        let chosen = place(&others().cloned().collect::<Vec<_>>());
        if chosen.len() == usize::from(config.copies) {
            return chosen;
        }
    }
    place(&facts.candidates)
}

/// Bytes that would be kept in the metadata service's own store.
fn inline_bytes(op: &Op) -> u64 {
    match op {
        Op::Client(ClientOp::Write(ops::Write { pieces, .. })) => pieces
            .iter()
            .filter(|piece| matches!(piece.place, NewPlace::Inline(_)))
            .map(|piece| piece.length)
            .sum(),
        Op::Client(ClientOp::Append(ops::Append { data: NewPlace::Inline(bytes), .. })) => bytes.len() as u64,
        _ => 0,
    }
}

/// Bytes of the replicas that a committed command refers to, as one server has them.
#[must_use]
pub fn extent_bytes(op: &Op) -> u64 {
    let bytes = |length: u64| length.next_multiple_of(atoll_core::limits::BLOCK_BYTES);
    match op {
        Op::Client(ClientOp::Write(ops::Write { pieces, .. })) => pieces
            .iter()
            .filter(|piece| matches!(piece.place, NewPlace::Chunk { .. }))
            .map(|piece| bytes(piece.length))
            .sum(),
        Op::Client(ClientOp::Append(ops::Append { data: NewPlace::Chunk { .. }, length, .. })) => {
            bytes(*length)
        }
        _ => 0,
    }
}

/// Whether it makes the records grow. Deleting, moving, committing what is written and everything that ends
/// something always goes on.
fn grows(op: &Op) -> bool {
    inline_bytes(op) > 0
        || matches!(
            op,
            Op::Client(ClientOp::Create(_))
                | Op::Client(ClientOp::Tmpfile(_))
                | Op::Client(ClientOp::Link(_))
                | Op::Client(ClientOp::SetXattr(_))
                | Op::Client(ClientOp::SetAcl(_))
                | Op::Client(ClientOp::CopyFileRange(_))
                | Op::Client(ClientOp::SetLock(_))
                | Op::Client(ClientOp::CreateChunk(_))
        )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use atoll_core::attributes::KillPriv;
    use atoll_core::commands::NewPiece;
    use atoll_core::ids::{ClusterId, InodeId, SessionId, SlotId};
    use atoll_core::records::{ChunkKind, VolumeConfig};

    use super::*;

    fn volume() -> Superblock {
        Superblock {
            cluster: ClusterId(1),
            feature_level: 1,
            hash_key: (0, 0),
            config: VolumeConfig { inline_budget_bytes: 1000, ..VolumeConfig::default() },
            next_inode: 16,
            next_chunk: 1,
            next_session: 1,
            next_inline: 1,
            epoch: 1,
            bytes_used: 0,
            bytes_reserved: 8192,
            inodes_used: 1,
            inline_bytes: 0,
            created: Default::default(),
        }
    }

    fn facts(servers: u64) -> Facts {
        let candidates = (1..=servers)
            .map(|number| Candidate { server: ServerId(number), labels: BTreeMap::new(), free: 1 << 40 })
            .collect();
        Facts { candidates, room: Some(1 << 30), disk_low: false, seed: 7 }
    }

    fn admitted(op: Op, volume: &Superblock, facts: &Facts) -> Op {
        let mut command = Command {
            session: SessionId(3),
            slot: SlotId(1),
            sequence: 1,
            time: Default::default(),
            expect: None,
            op,
        };
        admit(&mut command, volume, facts);
        command.op
    }

    fn refusal(asked: &Op, error: FsError) -> Op {
        Op::Refuse(ops::Refuse { error, request: request_hash(asked) })
    }

    fn chunk() -> Op {
        Op::from(ops::CreateChunk { kind: ChunkKind::Small, incarnation: 1, replicas: Vec::new() })
    }

    fn inline_write() -> Op {
        let piece = NewPiece { offset: 0, length: 2, place: NewPlace::Inline(vec![1, 2].into()) };
        Op::from(ops::Write {
            ino: InodeId(16),
            pieces: vec![piece],
            mtime: Default::default(),
            kill_priv: KillPriv::NONE,
            reservation: 0,
        })
    }

    #[test]
    fn a_chunk_gets_as_many_replicas_as_there_are_servers_down_to_the_least() {
        for (servers, expected) in [(5, 3), (3, 3), (2, 2)] {
            let Op::Client(ClientOp::CreateChunk(ops::CreateChunk { replicas, .. })) =
                admitted(chunk(), &volume(), &facts(servers))
            else {
                panic!()
            };
            assert_eq!(replicas.len(), expected);
        }
        assert_eq!(admitted(chunk(), &volume(), &facts(1)), refusal(&chunk(), FsError::NoServers));
    }

    #[test]
    fn servers_that_a_client_can_not_reach_are_avoided_if_there_are_enough_others() {
        for (servers, avoided) in [(5, true), (4, true), (3, false)] {
            let facts = facts(servers);
            let avoid = facts.candidates[0].server;
            let Op::Client(ClientOp::CreateChunk(ops::CreateChunk { kind, incarnation, .. })) = chunk()
            else {
                panic!()
            };
            let asked = Op::from(ops::CreateChunk { kind, incarnation, replicas: vec![avoid] });
            let Op::Client(ClientOp::CreateChunk(ops::CreateChunk { replicas, .. })) =
                admitted(asked, &volume(), &facts)
            else {
                panic!()
            };
            assert_eq!((replicas.len(), !replicas.contains(&avoid)), (3, avoided));
        }
    }

    #[test]
    fn full_disks_are_told_from_missing_servers() {
        let mut facts = facts(3);
        for candidate in &mut facts.candidates {
            candidate.free = volume().config.chunk_bytes - 1;
        }
        assert_eq!(admitted(chunk(), &volume(), &facts), refusal(&chunk(), FsError::NoSpace));
        facts.candidates.truncate(1);
        assert_eq!(admitted(chunk(), &volume(), &facts), refusal(&chunk(), FsError::NoServers));
    }

    #[test]
    fn a_reservation_that_the_disks_can_not_hold_is_refused_or_made_smaller() {
        let mut facts = facts(3);
        facts.room = Some(8192 + 5000);
        let reserve = |bytes, bytes_min| Op::from(ops::Reserve { bytes, bytes_min });
        let refused = refusal(&reserve(1 << 20, 8192), FsError::NoSpace);
        assert_eq!(admitted(reserve(1 << 20, 8192), &volume(), &facts), refused);
        assert_eq!(admitted(reserve(1 << 20, 4096), &volume(), &facts), reserve(4096, 4096));
        facts.room = None;
        assert_eq!(admitted(reserve(1 << 20, 8192), &volume(), &facts), reserve(1 << 20, 8192));
    }

    #[test]
    fn inline_data_beyond_the_budget_has_to_go_to_a_chunk() {
        let mut volume = volume();
        assert_eq!(admitted(inline_write(), &volume, &facts(3)), inline_write());
        volume.inline_bytes = 1000;
        assert_eq!(
            admitted(inline_write(), &volume, &facts(3)),
            refusal(&inline_write(), FsError::InlineBudget)
        );
    }

    #[test]
    fn a_client_does_not_choose_the_number_of_what_it_makes() {
        let create = |ino| {
            ClientOp::from(ops::Create {
                parent: InodeId(1),
                name: b"a".as_slice().into(),
                ino,
                mode: 0o100_644,
                uid: 0,
                gid: 0,
                rdev: 0,
                target: Default::default(),
                umask: 0,
            })
        };
        assert!(is_allowed(&create(None)) && !is_allowed(&create(Some(InodeId(20)))));
    }

    #[test]
    fn a_full_metadata_disk_lets_deletions_through() {
        let facts = Facts { disk_low: true, ..facts(3) };
        let unlink =
            Op::from(ops::Unlink { parent: InodeId(1), name: b"a".as_slice().into(), directory: false });
        assert_eq!(admitted(unlink.clone(), &volume(), &facts), unlink);
        assert_eq!(admitted(inline_write(), &volume(), &facts), refusal(&inline_write(), FsError::NoSpace));
        assert_eq!(admitted(chunk(), &volume(), &facts), refusal(&chunk(), FsError::NoSpace));
    }
}
