//! Locks, access control lists, files without a name, whiteouts: what each promises on the records.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;

use atoll_core::acl::{ACCESS_NAME, DEFAULT_NAME};
use atoll_core::attributes::{AttributeChanges, Attributes, FileKind, KillPriv, Timestamp};
use atoll_core::check::check;
use atoll_core::commands::{
    ClientOp, Command, FallocateMode, INTERNAL, Op, Outcome, RENAME_EXCHANGE, RENAME_WHITEOUT, ServerChange,
    XattrMode, ops,
};
use atoll_core::error::FsError;
use atoll_core::ids::{ClusterId, InodeId, ROOT, ServerId, SessionId, SlotId};
use atoll_core::keys;
use atoll_core::limits::{LINKS_MAX, SEGMENT_BYTES};
use atoll_core::locks::{LockClass, LockMode, LockRange, LockRequest, LockScope, TO_THE_END};
use atoll_core::namespace::{Txn, execute};
use atoll_core::query;
use atoll_core::records::VolumeConfig;
use atoll_core::seek::{Seek, Sought, seek};
use atoll_core::store::{Family, MemStore, Read, StoreError, Visit};
use bytes::Bytes;
use common::create;

/// A volume and its sessions.
struct Volume {
    store: MemStore,
    sequences: BTreeMap<SessionId, u64>,
    clock: i64,
}

impl Volume {
    fn new() -> Self {
        let mut volume = Volume { store: MemStore::default(), sequences: BTreeMap::new(), clock: 1000 };
        let config = VolumeConfig::default();
        volume.run(INTERNAL, Op::from(ops::Bootstrap { cluster: ClusterId(7), hash_key: (1, 2), config }));
        let op =
            Op::from(ops::PutServer { server: ServerId(1), address: String::new(), labels: BTreeMap::new() });
        volume.run(INTERNAL, op);
        volume
    }

    fn session(&mut self) -> SessionId {
        let op = Op::from(ops::OpenSession { client: "test".into(), incarnation: 1, supersedes: None });
        match self.run(INTERNAL, op) {
            Outcome::Session(session, _) => session,
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, session: SessionId, op: Op) -> Outcome {
        self.clock += 1;
        let sequence = self.sequences.entry(session).or_default();
        *sequence += 1;
        let time = Timestamp { seconds: self.clock, nanos: 0 };
        let command = Command { session, slot: SlotId(1), sequence: *sequence, time, expect: None, op };
        let mut txn = Txn::open(&self.store).unwrap();
        let outcome = execute(&mut txn, &command).unwrap();
        let writes = txn.into_writes();
        self.store.write(writes);
        assert_eq!(check(&self.store).unwrap(), Vec::<String>::new(), "after {command:?}");
        outcome
    }

    fn inode(&mut self, session: SessionId, op: Op) -> Attributes {
        match self.run(session, op) {
            Outcome::Inode(attributes) => *attributes,
            other => panic!("{other:?}"),
        }
    }
}

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

fn lock(ino: InodeId, owner: u64, mode: Option<LockMode>, start: u64, end: u64) -> LockRequest {
    LockRequest {
        ino,
        class: LockClass::Record,
        owner,
        handle: owner * 10,
        pid: 7,
        mode,
        range: LockRange { start, end },
    }
}

#[test]
fn locks_of_one_owner_keep_others_off_and_go_with_owner_handle_and_session() {
    let mut volume = Volume::new();
    let (a, b) = (volume.session(), volume.session());
    let ino = volume.inode(a, create(ROOT, "file", FILE | 0o644, 0)).ino;
    let exclusive = Some(LockMode::Exclusive);
    let set = |volume: &mut Volume, session, owner, mode, start, end| {
        volume.run(session, Op::from(ops::SetLock(lock(ino, owner, mode, start, end))))
    };
    let locked = Outcome::Refused(FsError::Locked);
    assert_eq!(set(&mut volume, a, 1, exclusive, 0, 99), Outcome::Done);
    assert_eq!(
        set(&mut volume, b, 1, exclusive, 99, TO_THE_END),
        locked,
        "the same owner of another session"
    );
    assert_eq!(set(&mut volume, b, 1, exclusive, 100, TO_THE_END), Outcome::Done);
    assert_eq!(set(&mut volume, a, 2, Some(LockMode::Shared), 50, 50), locked);
    assert_eq!(set(&mut volume, a, 1, None, 50, 50), Outcome::Done);
    assert_eq!(set(&mut volume, a, 2, Some(LockMode::Shared), 50, 50), Outcome::Done);
    assert_eq!(set(&mut volume, a, 1, Some(LockMode::Shared), 0, 99), Outcome::Done, "downgraded around it");
    // flock has nothing to do with these.
    let flock =
        LockRequest { class: LockClass::Flock, range: LockRange::ALL, ..lock(ino, 5, exclusive, 0, 0) };
    assert_eq!(volume.run(b, Op::from(ops::SetLock(flock))), Outcome::Done);
    assert_eq!(volume.run(a, Op::from(ops::SetLock(flock))), locked);

    let release = |scope| Op::from(ops::ReleaseLocks { ino, scope });
    assert_eq!(volume.run(a, release(LockScope::Owner(LockClass::Record, 1))), Outcome::Done);
    assert_eq!(set(&mut volume, b, 1, exclusive, 0, 49), Outcome::Done);
    assert_eq!(set(&mut volume, b, 1, exclusive, 50, 50), locked);
    assert_eq!(volume.run(a, release(LockScope::Handle(20))), Outcome::Done);
    assert_eq!(set(&mut volume, b, 1, exclusive, 50, 99), Outcome::Done);
    assert_eq!(volume.run(INTERNAL, Op::from(ops::ExpireSession { session: b })), Outcome::Done);
    assert_eq!(set(&mut volume, a, 1, exclusive, 0, TO_THE_END), Outcome::Done);
    assert_eq!(volume.run(a, Op::from(ops::SetLock(flock))), Outcome::Done);
    assert_eq!(volume.run(a, Op::from(ops::CloseSession)), Outcome::Done);
    assert_eq!(volume.store.len(Family::System), {
        // Superblock, server, two ended sessions and a slot of each.
        6
    });
}

#[test]
fn locks_that_make_no_sense_are_refused_and_an_unlock_of_nothing_is_done() {
    let mut volume = Volume::new();
    let a = volume.session();
    let ino = volume.inode(a, create(ROOT, "file", FILE | 0o644, 0)).ino;
    let shared = Some(LockMode::Shared);
    let invalid = Outcome::Refused(FsError::InvalidArgument);
    assert_eq!(volume.run(a, Op::from(ops::SetLock(lock(ino, 1, shared, 5, 4)))), invalid);
    assert_eq!(volume.run(a, Op::from(ops::SetLock(lock(ino, 1, shared, 0, u64::MAX)))), invalid);
    assert_eq!(volume.run(a, Op::from(ops::SetLock(lock(ino, 1, None, 0, 4)))), Outcome::Done);
    let gone = Outcome::Refused(FsError::Stale);
    assert_eq!(volume.run(a, Op::from(ops::SetLock(lock(InodeId(999), 1, shared, 0, 4)))), gone);
}

#[test]
fn locks_go_with_the_inode() {
    let mut volume = Volume::new();
    let a = volume.session();
    let ino = volume.inode(a, create(ROOT, "file", FILE | 0o644, 0)).ino;
    volume.run(a, Op::from(ops::SetLock(lock(ino, 1, Some(LockMode::Exclusive), 0, 4))));
    volume.run(a, Op::from(ops::Unlink { parent: ROOT, name: "file".into(), directory: false }));
    assert_eq!(
        volume.run(INTERNAL, Op::from(ops::PurgeOrphan { ino, segments_max: 10 })),
        Outcome::More(false)
    );
}

fn acl(entries: &[(u16, u16, u32)]) -> Bytes {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, allowed, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&allowed.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value.into()
}

const NO_ID: u32 = u32::MAX;

#[test]
fn permission_bits_and_access_control_list_say_the_same() {
    let mut volume = Volume::new();
    let a = volume.session();
    let ino = volume.inode(a, create(ROOT, "file", FILE | 0o6640, 0)).ino;
    let full = acl(&[(1, 7, NO_ID), (2, 6, 1001), (4, 5, NO_ID), (0x10, 4, NO_ID), (0x20, 1, NO_ID)]);
    let set = |default, value, kill_sgid| Op::from(ops::SetAcl { ino, default, value, kill_sgid });
    let after = volume.inode(a, set(false, Some(full), true));
    assert_eq!((after.mode, after.acl), (FILE | 0o4741, true));
    let changes = AttributeChanges { mode: Some(0o620), ..AttributeChanges::default() };
    volume.inode(a, Op::from(ops::SetAttr { ino, changes }));
    let value = query::xattr(&volume.store, ino, ACCESS_NAME).unwrap();
    let expected = acl(&[(1, 6, NO_ID), (2, 6, 1001), (4, 5, NO_ID), (0x10, 2, NO_ID), (0x20, 0, NO_ID)]);
    assert_eq!(value, expected);
    let minimal = acl(&[(1, 7, NO_ID), (4, 5, NO_ID), (0x20, 5, NO_ID)]);
    let after = volume.inode(a, set(false, Some(minimal.clone()), false));
    assert_eq!((after.mode, after.acl), (FILE | 0o755, false));
    assert_eq!(volume.run(a, set(false, None, false)), Outcome::Refused(FsError::NoAttribute));
    assert_eq!(volume.run(a, set(true, Some(minimal), false)), Outcome::Refused(FsError::Denied));
    let nonsense = set(false, Some(Bytes::from_static(b"nonsense")), false);
    assert_eq!(volume.run(a, nonsense), Outcome::Refused(FsError::InvalidArgument));
    let plain = Op::from(ops::SetXattr {
        ino,
        name: Bytes::from_static(ACCESS_NAME),
        value: Bytes::new(),
        mode: atoll_core::commands::XattrMode::Set,
    });
    assert_eq!(volume.run(a, plain), Outcome::Refused(FsError::InvalidArgument));
}

#[test]
fn what_is_made_inherits_the_default_list_instead_of_the_umask() {
    let mut volume = Volume::new();
    let a = volume.session();
    let directory = volume.inode(a, create(ROOT, "d", DIRECTORY | 0o777, 0o022));
    assert_eq!(directory.mode, DIRECTORY | 0o755, "the umask counts where nothing is inherited");
    let value = acl(&[(1, 7, NO_ID), (2, 7, 1001), (4, 7, NO_ID), (0x10, 7, NO_ID), (0x20, 0, NO_ID)]);
    let op = Op::from(ops::SetAcl {
        ino: directory.ino,
        default: true,
        value: Some(value.clone()),
        kill_sgid: false,
    });
    volume.inode(a, op);
    let file = volume.inode(a, create(directory.ino, "f", FILE | 0o664, 0o077));
    assert_eq!((file.mode, file.acl), (FILE | 0o660, true));
    let own = query::xattr(&volume.store, file.ino, ACCESS_NAME).unwrap();
    assert_eq!(own, acl(&[(1, 6, NO_ID), (2, 7, 1001), (4, 7, NO_ID), (0x10, 6, NO_ID), (0x20, 0, NO_ID)]));
    let below = volume.inode(a, create(directory.ino, "e", DIRECTORY | 0o777, 0o077));
    assert_eq!(query::xattr(&volume.store, below.ino, DEFAULT_NAME).unwrap(), value);
    let unnamed = Op::from(ops::Tmpfile {
        parent: below.ino,
        mode: 0o666,
        uid: 1,
        gid: 2,
        umask: 0o077,
        linkable: true,
    });
    assert_eq!(volume.inode(a, unnamed).mode, FILE | 0o660);
}

#[test]
fn a_file_without_a_name_may_get_one_and_is_an_orphan_until_then() {
    let mut volume = Volume::new();
    let a = volume.session();
    let unnamed =
        |linkable| Op::from(ops::Tmpfile { parent: ROOT, mode: 0o600, uid: 1, gid: 2, umask: 0, linkable });
    let link = |ino, name: &'static str| {
        Op::Client(ClientOp::Link(ops::Link { ino, parent: ROOT, name: name.into() }))
    };
    let file = volume.inode(a, unnamed(true));
    assert_eq!((file.nlink, file.kind()), (0, FileKind::File));
    assert_eq!(volume.inode(a, link(file.ino, "name")).nlink, 1);
    assert_eq!(
        volume.run(INTERNAL, Op::from(ops::PurgeOrphan { ino: file.ino, segments_max: 1 })),
        Outcome::More(false)
    );
    assert!(query::inode(&volume.store, file.ino).is_ok());
    // Its last name goes: it never gets one again.
    volume.run(a, Op::from(ops::Unlink { parent: ROOT, name: "name".into(), directory: false }));
    assert_eq!(volume.run(a, link(file.ino, "again")), Outcome::Refused(FsError::NotFound));
    let exclusive = volume.inode(a, unnamed(false));
    assert_eq!(volume.run(a, link(exclusive.ino, "never")), Outcome::Refused(FsError::NotFound));
    for ino in [file.ino, exclusive.ino] {
        volume.run(INTERNAL, Op::from(ops::PurgeOrphan { ino, segments_max: 1 }));
    }
    assert_eq!(query::superblock(&volume.store).unwrap().inodes_used, 1);
}

/// A store that takes down in which families a range was searched.
struct Searched<'a> {
    store: &'a MemStore,
    families: RefCell<Vec<Family>>,
}

impl Read for Searched<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.families.borrow_mut().push(family);
        self.store.scan(family, from, to, visit)
    }
}

#[test]
fn what_an_orphan_has_is_searched_for_only_if_its_inode_says_that_there_may_be_more() {
    let allocate = |ino, offset| {
        let (mode, kill_priv) = (FallocateMode::Allocate, KillPriv::NONE);
        Op::from(ops::Fallocate { ino, offset, length: 4096, mode, keep_size: true, kill_priv })
    };
    let attribute = |ino| {
        let (name, value) = (Bytes::from("user.a"), Bytes::from("value"));
        Op::from(ops::SetXattr { ino, name, value, mode: XattrMode::Set })
    };
    type Fill<'a> = &'a dyn Fn(InodeId) -> Vec<Op>;
    let cases: [(Fill<'_>, &[Family]); 5] = [
        (&|_| vec![], &[]),
        (&|ino| vec![allocate(ino, 0), allocate(ino, SEGMENT_BYTES / 2)], &[]),
        (&|ino| vec![allocate(ino, SEGMENT_BYTES)], &[Family::Extents]),
        (&|ino| vec![allocate(ino, 0), allocate(ino, SEGMENT_BYTES)], &[Family::Extents]),
        (&|ino| vec![allocate(ino, 0), attribute(ino)], &[Family::Xattrs]),
    ];
    for (number, (fill, expected)) in cases.into_iter().enumerate() {
        let mut volume = Volume::new();
        let a = volume.session();
        let before = [Family::Extents, Family::Xattrs, Family::Inodes].map(|family| volume.store.len(family));
        let ino = volume.inode(a, create(ROOT, "file", FILE | 0o644, 0)).ino;
        for op in fill(ino) {
            volume.run(a, op);
        }
        volume.run(a, Op::from(ops::Unlink { parent: ROOT, name: "file".into(), directory: false }));
        let writes = {
            let searched = Searched { store: &volume.store, families: RefCell::default() };
            let mut txn = Txn::open(&searched).unwrap();
            let (time, op) = (Timestamp::default(), Op::from(ops::PurgeOrphan { ino, segments_max: 10 }));
            let command =
                Command { session: INTERNAL, slot: SlotId(0), sequence: 99, time, expect: None, op };
            assert_eq!(execute(&mut txn, &command).unwrap(), Outcome::More(false));
            let mut families = searched.families.take();
            families.retain(|family| *family != Family::System);
            assert_eq!(families, expected, "case {number}");
            txn.into_writes()
        };
        volume.store.write(writes);
        let after = [Family::Extents, Family::Xattrs, Family::Inodes].map(|family| volume.store.len(family));
        assert_eq!(after, before, "case {number}");
        assert_eq!(check(&volume.store).unwrap(), Vec::<String>::new(), "case {number}");
    }
}

#[test]
fn a_whiteout_is_left_behind() {
    let mut volume = Volume::new();
    let a = volume.session();
    volume.inode(a, create(ROOT, "file", FILE | 0o644, 0));
    let rename = |flags| {
        Op::from(ops::Rename {
            parent: ROOT,
            name: "file".into(),
            new_parent: ROOT,
            new_name: "moved".into(),
            flags,
            whiteout: (5, 6),
        })
    };
    let invalid = Outcome::Refused(FsError::InvalidArgument);
    assert_eq!(volume.run(a, rename(RENAME_WHITEOUT | RENAME_EXCHANGE)), invalid);
    volume.inode(a, rename(RENAME_WHITEOUT));
    let superblock = query::superblock(&volume.store).unwrap();
    let left = query::lookup(&volume.store, superblock.hash_key, ROOT, b"file").unwrap();
    assert_eq!((left.mode, left.rdev, left.uid, left.gid, left.nlink), (0o020_000, 0, 5, 6, 1));
    assert_eq!(superblock.inodes_used, 3);
}

#[test]
fn much_is_allocated_and_punched_in_several_steps() {
    let mut volume = Volume::new();
    let a = volume.session();
    let ino = volume.inode(a, create(ROOT, "file", FILE | 0o644, 0)).ino;
    let length = 2500 * SEGMENT_BYTES;
    for mode in [FallocateMode::Allocate, FallocateMode::Punch] {
        let (mut at, mut steps) = (1000, 0);
        while at < length {
            let keep_size = mode == FallocateMode::Punch;
            let op = Op::from(ops::Fallocate {
                ino,
                offset: at,
                length: length - at,
                mode,
                keep_size,
                kill_priv: KillPriv::NONE,
            });
            let Outcome::Allocated(until, attributes) = volume.run(a, op) else { panic!("refused") };
            assert!(until > at);
            assert_eq!(attributes.size, if keep_size { length } else { until });
            at = until;
            steps += 1;
        }
        assert_eq!(steps, 3, "{mode:?}");
    }
    let record = query::inode(&volume.store, ino).unwrap();
    assert_eq!(record.mapped, 0);
    assert_eq!(seek(&volume.store, ino, &record, 0, Seek::Data).unwrap(), Sought::Nothing);
}

#[test]
fn reading_is_no_change() {
    let mut volume = Volume::new();
    let a = volume.session();
    let before = volume.inode(a, create(ROOT, "file", FILE | 0o644, 0));
    let time = Timestamp { seconds: 5000, nanos: 1 };
    let earlier = Timestamp { seconds: 4000, nanos: 1 };
    let times = vec![(before.ino, time), (before.ino, earlier), (InodeId(999), time)];
    assert_eq!(volume.run(a, Op::from(ops::Touch { times })), Outcome::Done);
    let after = query::inode(&volume.store, before.ino).unwrap().attributes(before.ino);
    assert_eq!(after, Attributes { atime: time, ..before });
}

#[test]
fn an_inode_has_65000_links_and_no_more() {
    let mut store = MemStore::default();
    let mut txn = Txn::open(&store).unwrap();
    let mut sequence = 0;
    let mut run = |txn: &mut Txn<'_>, op| {
        sequence += 1;
        let time = Timestamp::default();
        execute(txn, &Command { session: INTERNAL, slot: SlotId(0), sequence, time, expect: None, op })
            .unwrap()
    };
    let config = VolumeConfig::default();
    run(&mut txn, Op::from(ops::Bootstrap { cluster: ClusterId(7), hash_key: (1, 2), config }));
    let Outcome::Inode(file) = run(&mut txn, create(ROOT, "file", FILE, 0)) else { panic!("no file") };
    for number in 1..LINKS_MAX {
        let op = Op::from(ops::Link { ino: file.ino, parent: ROOT, name: number.to_string().into() });
        assert!(matches!(run(&mut txn, op), Outcome::Inode(_)));
    }
    let op = Op::from(ops::Link { ino: file.ino, parent: ROOT, name: "one more".into() });
    assert_eq!(run(&mut txn, op), Outcome::Refused(FsError::TooManyLinks));
    let writes = txn.into_writes();
    store.write(writes);
    assert_eq!(query::inode(&store, file.ino).unwrap().nlink, LINKS_MAX);
    assert!(store.len(Family::Names) > LINKS_MAX as usize);
    assert!(keys::parents(file.ino).len() > 8);
}

#[test]
fn a_storage_server_is_forgotten_only_after_it_was_drained() {
    let mut volume = Volume::new();
    let server = ServerId(1);
    let change = |change| Op::from(ops::ChangeServer { server, change });
    assert_eq!(volume.run(INTERNAL, change(ServerChange::Forget)), Outcome::Refused(FsError::TryAgain));
    assert_eq!(volume.run(INTERNAL, change(ServerChange::Drain)), Outcome::Done);
    // It registers anew: that doesn't change what is wanted of it.
    let again = Op::from(ops::PutServer { server, address: "elsewhere:1".into(), labels: BTreeMap::new() });
    volume.run(INTERNAL, again);
    assert_eq!(volume.run(INTERNAL, change(ServerChange::Undrain)), Outcome::Done);
    assert_eq!(volume.run(INTERNAL, change(ServerChange::Forget)), Outcome::Refused(FsError::TryAgain));
    volume.run(INTERNAL, change(ServerChange::Drain));
    assert_eq!(volume.run(INTERNAL, change(ServerChange::Forget)), Outcome::Done);
    assert_eq!(volume.run(INTERNAL, change(ServerChange::Forget)), Outcome::Done, "again");
    assert_eq!(volume.run(INTERNAL, change(ServerChange::Undrain)), Outcome::Refused(FsError::NotFound));
    let session = volume.session();
    assert_eq!(volume.run(session, change(ServerChange::Drain)), Outcome::Refused(FsError::NotPermitted));
}

#[test]
fn a_feature_level_is_raised_and_never_lowered() {
    let mut volume = Volume::new();
    let level = |volume: &Volume| query::superblock(&volume.store).unwrap().feature_level;
    assert_eq!(level(&volume), 1, "whatever build made it");
    for (asked, expected) in [(3, 3), (2, 3), (3, 3)] {
        let raise = Op::from(ops::RaiseFeatureLevel { level: asked });
        assert_eq!(volume.run(INTERNAL, raise), Outcome::Done);
        assert_eq!(level(&volume), expected);
    }
    let session = volume.session();
    let refused = volume.run(session, Op::from(ops::RaiseFeatureLevel { level: 4 }));
    assert_eq!((refused, level(&volume)), (Outcome::Refused(FsError::NotPermitted), 3));
}
