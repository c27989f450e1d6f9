//! What a lookup, a quota, a slot and a move promise, one by one.

use atoll_core::attributes::{AttributeChanges, FileKind, KillPriv, Timestamp};
use atoll_core::commands::{ClientOp, Command, NewPiece, NewPlace, Op, Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{ClusterId, InodeId, ROOT, SegmentIndex, ServerId, SessionId, SlotId, journaled_inode};
use atoll_core::keys;
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::query;
use atoll_core::records::{ChunkKind, VolumeConfig};
use bytes::Bytes;

use crate::reference::expect;
use crate::volume::Volume;

fn create(name: &'static str) -> Op {
    Op::from(ops::Create {
        parent: ROOT,
        name: Bytes::from_static(name.as_bytes()),
        ino: None,
        mode: FileKind::File.mode_bits() | 0o6755,
        uid: 5,
        gid: 6,
        rdev: 0,
        target: Bytes::new(),
        umask: 0,
    })
}

fn file(volume: &mut Volume, name: &'static str) -> InodeId {
    let Outcome::Inode(attributes) = volume.client(create(name)) else { panic!("no file") };
    attributes.ino
}

fn inline(ino: InodeId, offset: u64, bytes: &'static [u8], reservation: u64) -> Op {
    let piece = NewPiece { offset, length: bytes.len() as u64, place: NewPlace::Inline(bytes.into()) };
    let mtime = Timestamp::default();
    Op::from(ops::Write { ino, pieces: vec![piece], mtime, kill_priv: KillPriv::SETID, reservation })
}

#[test]
fn a_slot_answers_a_retry_and_refuses_anything_else_out_of_order() {
    let mut volume = Volume::new(VolumeConfig::default());
    let first = volume.command(volume.session, create("a"));
    let outcome = volume.run(&first);
    assert!(matches!(outcome, Outcome::Inode(_)));
    assert_eq!(volume.run(&first), outcome);
    let other = Command { op: create("b"), ..first.clone() };
    assert_eq!(volume.run(&other), Outcome::Refused(FsError::BadSequence));
    let skipped = Command { sequence: first.sequence + 2, ..other.clone() };
    assert_eq!(volume.run(&skipped), Outcome::Refused(FsError::BadSequence));
    let elsewhere = Command { slot: SlotId(2), sequence: 1, ..other };
    assert!(matches!(volume.run(&elsewhere), Outcome::Inode(_)));
    let stranger = Command { session: SessionId(99), ..first };
    assert_eq!(volume.run(&stranger), Outcome::Refused(FsError::SessionExpired));
}

#[test]
fn a_refusal_is_remembered_as_well() {
    let mut volume = Volume::new(VolumeConfig::default());
    let unlink = Op::from(ops::Unlink { parent: ROOT, name: Bytes::from_static(b"a"), directory: false });
    let early = volume.command(volume.session, unlink);
    assert_eq!(volume.run(&early), Outcome::Refused(FsError::NotFound));
    let later = Command { slot: SlotId(2), sequence: 1, ..volume.command(volume.session, create("a")) };
    assert!(matches!(volume.run(&later), Outcome::Inode(_)));
    assert_eq!(volume.run(&early), Outcome::Refused(FsError::NotFound));
}

#[test]
fn a_journal_entry_with_another_outcome_than_told_breaks_the_journal() {
    let mut volume = Volume::new(VolumeConfig::default());
    let journal = |volume: &mut Volume, sequence, expect, op| {
        let command = volume.command(volume.session, op);
        volume.run(&Command { slot: SlotId(0), sequence, expect, ..command })
    };
    let told = Some(atoll_core::namespace::hash_of(&Outcome::Done));
    assert_eq!(journal(&mut volume, 1, told, create("a")), Outcome::Refused(FsError::JournalBroken));
    assert_eq!(journal(&mut volume, 2, None, create("b")), Outcome::Refused(FsError::JournalBroken));
    let (_, entries, _) = query::read_directory(&volume.store, ROOT, 0, |_| false).unwrap();
    assert!(entries.is_empty(), "a refused journal entry left a name behind");
    volume.check();
}

#[test]
fn the_next_session_learns_what_became_of_the_last_operations() {
    let mut volume = Volume::new(VolumeConfig::default());
    let outcome = volume.client(create("a"));
    let (old, sequence) = (volume.session, volume.sequence);
    let op = Op::from(ops::OpenSession { client: "next".into(), incarnation: 2, supersedes: Some(old) });
    let Outcome::Session(_, previous) = volume.internal(op) else { panic!("no session") };
    assert_eq!(previous, vec![(SlotId(1), sequence, outcome)]);
    assert_eq!(volume.client(create("b")), Outcome::Refused(FsError::SessionExpired));
}

#[test]
fn an_exclusive_volume_belongs_to_one_machine_until_its_session_has_ended() {
    let mut volume = Volume::new(VolumeConfig { exclusive: true, ..VolumeConfig::default() });
    // The model's own session.
    assert_eq!(volume.client(Op::from(ops::CloseSession)), Outcome::Done);
    let open = |client: &str, supersedes| {
        Op::Client(ClientOp::OpenSession(ops::OpenSession {
            client: client.to_owned(),
            incarnation: 1,
            supersedes,
        }))
    };
    let Outcome::Session(first, _) = volume.internal(open("node-1:a", None)) else { panic!("no session") };
    for other in ["node-2:a", "node-10:a", "node-1.x:a"] {
        assert_eq!(volume.internal(open(other, None)), Outcome::Refused(FsError::Taken), "{other}");
    }
    // The same machine begins again, after a crash: the old session can do nothing any more.
    let Outcome::Session(second, _) = volume.internal(open("node-1:b", None)) else { panic!("no session") };
    (volume.session, volume.sequence) = (first, 0);
    assert_eq!(volume.client(create("late")), Outcome::Refused(FsError::SessionExpired));
    // It expires, another machine takes over, and who comes back with it stays outside.
    assert_eq!(volume.internal(Op::from(ops::ExpireSession { session: second })), Outcome::Done);
    let Outcome::Session(taken, _) = volume.internal(open("node-2:a", None)) else { panic!("no session") };
    assert_eq!(volume.internal(open("node-1:b", Some(second))), Outcome::Refused(FsError::Taken));
    (volume.session, volume.sequence) = (taken, 0);
    assert!(matches!(volume.client(create("file")), Outcome::Inode(_)));
    volume.check();
}

#[test]
fn quota_is_exact_and_a_reservation_never_fails_late() {
    let config = VolumeConfig { bytes_total: 3 * BLOCK_BYTES, inodes_total: 3, ..VolumeConfig::default() };
    let mut volume = Volume::new(config);
    let (one, two) = (file(&mut volume, "one"), file(&mut volume, "two"));
    assert_eq!(volume.client(create("three")), Outcome::Refused(FsError::NoSpace));
    let reserve = |bytes| Op::from(ops::Reserve { bytes, bytes_min: bytes });
    assert_eq!(volume.client(reserve(2 * BLOCK_BYTES)), Outcome::Reserved(2 * BLOCK_BYTES));
    assert_eq!(volume.client(reserve(2 * BLOCK_BYTES)), Outcome::Refused(FsError::NoSpace));
    expect(&volume.client(inline(one, 0, b"x", 0)), &Ok(()), "the free block");
    expect(&volume.client(inline(two, 0, b"x", 0)), &Err::<(), _>(FsError::NoSpace), "nothing free");
    expect(&volume.client(inline(two, 0, b"x", BLOCK_BYTES)), &Ok(()), "promised");
    // Overwriting costs nothing, and a promise of one block pays for one.
    expect(&volume.client(inline(two, 0, b"yy", 0)), &Ok(()), "overwrite");
    expect(&volume.client(inline(two, BLOCK_BYTES, b"z", BLOCK_BYTES)), &Ok(()), "rest of the promise");
    let superblock = query::superblock(&volume.store).unwrap();
    assert_eq!((superblock.bytes_used, superblock.bytes_reserved), (3 * BLOCK_BYTES - BLOCK_BYTES, 0));
    volume.check();
}

#[test]
fn a_write_clears_set_id_bits_and_a_chown_too() {
    let mut volume = Volume::new(VolumeConfig::default());
    let ino = file(&mut volume, "a");
    assert_eq!(query::inode(&volume.store, ino).unwrap().mode & 0o7777, 0o6755);
    volume.client(inline(ino, 0, b"x", 0));
    assert_eq!(query::inode(&volume.store, ino).unwrap().mode & 0o7777, 0o755);
    let again = AttributeChanges { mode: Some(0o6755), ..AttributeChanges::default() };
    volume.client(Op::from(ops::SetAttr { ino, changes: again }));
    let chown = AttributeChanges { uid: Some(9), ..AttributeChanges::default() };
    volume.client(Op::from(ops::SetAttr { ino, changes: chown }));
    let record = query::inode(&volume.store, ino).unwrap();
    assert_eq!((record.uid, record.mode & 0o7777), (9, 0o755));
}

#[test]
fn a_move_gives_up_if_the_range_changed_in_between() {
    let mut volume = Volume::new(VolumeConfig { inline_file_bytes: 4, ..VolumeConfig::default() });
    let ino = file(&mut volume, "a");
    volume.client(inline(ino, 0, b"0123456789", 0));
    assert_eq!(volume.prefix(&keys::migrations()).len(), 1, "the segment isn't marked for the move");
    let record = query::inode(&volume.store, ino).unwrap();
    let segments = query::segments(&volume.store, ino, &record, SegmentIndex(0), 1).unwrap();
    let expected = segments[0].1.clone();
    let op = Op::from(ops::CreateChunk {
        kind: ChunkKind::Small,
        incarnation: 1,
        replicas: vec![ServerId(1), ServerId(2)],
    });
    let Outcome::Chunk(chunk, chunk_record) = volume.internal(op) else { panic!("no chunk") };
    let generation = chunk_record.generation;
    let relocate = |offset| {
        Op::from(ops::Relocate {
            ino,
            segment: SegmentIndex(0),
            expected: expected.clone(),
            chunk,
            generation,
            offset,
        })
    };
    volume.client(inline(ino, 3, b"X", 0));
    assert_eq!(volume.internal(relocate(0)), Outcome::Refused(FsError::Changed));
    let expected =
        query::segments(&volume.store, ino, &query::inode(&volume.store, ino).unwrap(), SegmentIndex(0), 1)
            .unwrap()[0]
            .1
            .clone();
    let content = volume.read(ino);
    volume.chunks.insert(chunk, content.clone());
    let op =
        Op::from(ops::Relocate { ino, segment: SegmentIndex(0), expected, chunk, generation, offset: 0 });
    assert_eq!(volume.internal(op), Outcome::Done);
    assert_eq!(volume.read(ino), content);
    assert!(volume.prefix(&keys::migrations()).is_empty());
    volume.check();
}

#[test]
fn an_evicted_writer_can_commit_nothing() {
    let mut volume = Volume::new(VolumeConfig { copies_min: 1, ..VolumeConfig::default() });
    let ino = file(&mut volume, "a");
    let place = volume.store_in_chunk(b"data");
    let write = Op::from(ops::Write {
        ino,
        pieces: vec![NewPiece { offset: 0, length: 4, place }],
        mtime: Timestamp::default(),
        kill_priv: KillPriv::NONE,
        reservation: 0,
    });
    let (old, old_sequence) = (volume.session, volume.sequence);
    let op = Op::from(ops::OpenSession { client: "other".into(), incarnation: 1, supersedes: None });
    let Outcome::Session(other, _) = volume.internal(op) else { panic!("no session") };
    (volume.session, volume.sequence) = (other, 0);
    assert_eq!(volume.client(write.clone()), Outcome::Refused(FsError::StaleChunk), "another's chunk");
    assert_eq!(volume.internal(Op::from(ops::ExpireSession { session: old })), Outcome::Done);
    (volume.session, volume.sequence) = (old, old_sequence);
    assert_eq!(volume.client(write), Outcome::Refused(FsError::SessionExpired));
    assert_eq!(
        volume.client(Op::from(ops::Bootstrap {
            cluster: ClusterId(1),
            hash_key: (0, 0),
            config: VolumeConfig::default()
        })),
        Outcome::Refused(FsError::SessionExpired)
    );
    volume.check();
}

#[test]
fn a_refusal_by_the_leader_is_kept_for_the_retry_that_could_be_let_through() {
    let mut volume = Volume::new(VolumeConfig::default());
    let asked = volume.command(volume.session, create("a"));
    let request = atoll_core::namespace::request_hash(&asked.op);
    let refused =
        Command { op: Op::Refuse(ops::Refuse { error: FsError::NoSpace, request }), ..asked.clone() };
    assert_eq!(volume.run(&refused), Outcome::Refused(FsError::NoSpace));
    assert_eq!(volume.run(&asked), Outcome::Refused(FsError::NoSpace));
}

#[test]
fn a_journal_is_carried_out_once_and_in_its_order() {
    let mut volume = Volume::new(VolumeConfig { inodes_total: 2, ..VolumeConfig::default() });
    let session = volume.session;
    let number = |sequence| journaled_inode(session, sequence).unwrap();
    let journal = |volume: &mut Volume, sequence, ino, name: &'static str| {
        let Op::Client(ClientOp::Create(op)) = create(name) else { panic!("no creation") };
        let op = Op::from(ops::Create { ino, ..op });
        let command = volume.command(session, op);
        let expect = Some(number(sequence).0);
        volume.run(&Command { slot: SlotId(0), sequence, expect, ..command })
    };
    let made = |outcome: Outcome| match outcome {
        Outcome::Inode(attributes) => attributes.ino,
        other => panic!("{other:?}"),
    };
    assert_eq!(journal(&mut volume, 2, Some(number(2)), "b"), Outcome::Refused(FsError::BadSequence));
    assert_eq!(made(journal(&mut volume, 1, Some(number(1)), "a")), number(1));
    assert_eq!(journal(&mut volume, 1, Some(number(1)), "a"), Outcome::Done, "it comes again");
    // That the volume is full by now is no reason to refuse what its application was told is done.
    assert_eq!(made(journal(&mut volume, 2, Some(number(2)), "b")), number(2));
    assert_eq!(journal(&mut volume, 1, Some(number(1)), "a"), Outcome::Done, "an old one comes again");
    let in_slot = |volume: &mut Volume, slot, op| {
        let command = volume.command(session, op);
        volume.run(&Command { slot: SlotId(slot), sequence: 1, ..command })
    };
    assert_eq!(in_slot(&mut volume, 1, create("c")), Outcome::Refused(FsError::NoSpace));
    volume.check();
    // A number that is another entry's.
    let refused = journal(&mut volume, 3, Some(number(2)), "d");
    assert_eq!(refused, Outcome::Refused(FsError::JournalBroken));
    assert_eq!(journal(&mut volume, 3, Some(number(3)), "d"), Outcome::Refused(FsError::JournalBroken));
    let changes = AttributeChanges::default();
    let outside = in_slot(&mut volume, 2, Op::from(ops::SetAttr { ino: number(1), changes }));
    assert!(matches!(outside, Outcome::Inode(_)), "the session goes on");
    volume.check();
}

#[test]
fn only_entries_of_a_journal_choose_numbers() {
    let mut volume = Volume::new(VolumeConfig::default());
    let Op::Client(ClientOp::Create(op)) = create("a") else { panic!("no creation") };
    let ino = journaled_inode(volume.session, 1);
    let outcome = volume.client(Op::from(ops::Create { ino, ..op }));
    assert_eq!(outcome, Outcome::Refused(FsError::InvalidArgument));
    volume.check();
}
