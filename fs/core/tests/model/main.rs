//! Random commands against a model of a filesystem in plain collections; all invariants between the records
//! are checked along the way, and every refusal must leave no trace.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod promises;
mod reference;
mod volume;

use std::collections::{BTreeMap, BTreeSet};

use atoll_core::attributes::{AttributeChanges, FileKind, KillPriv, Timestamp};
use atoll_core::commands::{FallocateMode, NewPiece, NewPlace, Op, Outcome, RENAME_EXCHANGE, ops};
use atoll_core::error::FsError;
use atoll_core::extents::split;
use atoll_core::ids::{InodeId, ROOT, SegmentIndex};
use atoll_core::keys;
use atoll_core::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use atoll_core::query;
use atoll_core::records::VolumeConfig;
use atoll_core::store::Family;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::reference::{Model, Node, expect, pick};
use crate::volume::Volume;

fn step(rng: &mut StdRng, volume: &mut Volume, model: &mut Model) {
    let directories: Vec<InodeId> =
        model.nodes.iter().filter(|(_, node)| node.directory).map(|(ino, _)| *ino).collect();
    let files: Vec<InodeId> =
        model.nodes.iter().filter(|(_, node)| !node.directory).map(|(ino, _)| *ino).collect();
    let names: [&[u8]; 6] = [b"a", b"b", b"c", b"d d", b"\xff\xfe", b"..."];
    let (parent, name) = (pick(rng, &directories), pick(rng, &names));
    let (parent2, name2) = (pick(rng, &directories), pick(rng, &names));
    let bytes = |name: &[u8]| Bytes::copy_from_slice(name);
    match rng.random_range(0..14) {
        0 | 1 => {
            let directory = rng.random_bool(0.4);
            let kind = if directory { FileKind::Directory } else { FileKind::File };
            let op = Op::from(ops::Create {
                parent,
                name: bytes(name),
                ino: None,
                mode: kind.mode_bits() | 0o644,
                uid: 1,
                gid: 2,
                rdev: 0,
                target: Bytes::new(),
                umask: 0,
            });
            let exists = model.nodes[&parent].entries.contains_key(name);
            let outcome = volume.client(op);
            expect(&outcome, &if exists { Err(FsError::Exists) } else { Ok(()) }, "create");
            if let Outcome::Inode(attributes) = outcome {
                model.nodes.insert(attributes.ino, Node { directory, links: 1, ..Node::default() });
                model.nodes.get_mut(&parent).unwrap().entries.insert(name.to_vec(), attributes.ino);
            }
        }
        2 => {
            let directory = rng.random_bool(0.4);
            let outcome = volume.client(Op::from(ops::Unlink { parent, name: bytes(name), directory }));
            expect(&outcome, &model.unlink(parent, name, directory), "unlink");
        }
        3 => {
            let exchange = rng.random_bool(0.3);
            let flags = if exchange { RENAME_EXCHANGE } else { 0 };
            let op = Op::from(ops::Rename {
                parent,
                name: bytes(name),
                new_parent: parent2,
                new_name: bytes(name2),
                flags,
                whiteout: (0, 0),
            });
            let outcome = volume.client(op);
            expect(&outcome, &model.rename((parent, name), (parent2, name2), exchange), "rename");
        }
        4 if !files.is_empty() => {
            let ino = pick(rng, &files);
            let exists = model.nodes[&parent].entries.contains_key(name);
            let outcome = volume.client(Op::from(ops::Link { ino, parent, name: bytes(name) }));
            expect(&outcome, &if exists { Err(FsError::Exists) } else { Ok(()) }, "link");
            if !exists {
                model.nodes.get_mut(&parent).unwrap().entries.insert(name.to_vec(), ino);
                model.nodes.get_mut(&ino).unwrap().links += 1;
            }
        }
        5 if !files.is_empty() => {
            let ino = pick(rng, &files);
            let size = random_offset(rng);
            let changes = AttributeChanges { size: Some(size), ..AttributeChanges::default() };
            let outcome = volume.client(Op::from(ops::SetAttr { ino, changes }));
            expect(&outcome, &Ok(()), "truncate");
            model.nodes.get_mut(&ino).unwrap().content.resize(size as usize, 0);
        }
        6 if !files.is_empty() => {
            let ino = pick(rng, &files);
            let (offset, length) = (random_offset(rng), rng.random_range(1..9000));
            let mode = pick(rng, &[FallocateMode::Allocate, FallocateMode::Punch, FallocateMode::Zero]);
            let keep_size = mode == FallocateMode::Punch || rng.random_bool(0.5);
            let outcome = volume.client(Op::from(ops::Fallocate {
                ino,
                offset,
                length,
                mode,
                keep_size,
                kill_priv: KillPriv::SETID,
            }));
            expect(&outcome, &Ok(()), "allocate");
            let content = &mut model.nodes.get_mut(&ino).unwrap().content;
            let end = (offset + length) as usize;
            if !keep_size && content.len() < end {
                content.resize(end, 0);
            }
            if mode != FallocateMode::Allocate {
                let stop = end.min(content.len());
                if (offset as usize) < stop {
                    content[offset as usize..stop].fill(0);
                }
            }
        }
        7 => volume.background(),
        8 | 9 if !files.is_empty() => copy(rng, volume, model, &files),
        _ if !files.is_empty() => {
            let ino = pick(rng, &files);
            write(rng, volume, model, ino);
        }
        _ => {}
    }
}

fn random_offset(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..4) {
        0 => rng.random_range(0..20_000),
        1 => SEGMENT_BYTES - rng.random_range(0..6000),
        2 => SEGMENT_BYTES + rng.random_range(0..6000),
        _ => rng.random_range(0..3 * SEGMENT_BYTES),
    }
}

fn write(rng: &mut StdRng, volume: &mut Volume, model: &mut Model, ino: InodeId) {
    let append = rng.random_bool(0.2);
    let offset = if append { model.nodes[&ino].content.len() as u64 } else { random_offset(rng) };
    let length = rng.random_range(1..12_000usize);
    let mut data = vec![0u8; length];
    rng.fill(&mut data[..]);
    let reservation = if rng.random_bool(0.5) {
        let bytes = (length as u64 + BLOCK_BYTES).next_multiple_of(BLOCK_BYTES);
        assert_eq!(
            volume.client(Op::from(ops::Reserve { bytes, bytes_min: bytes })),
            Outcome::Reserved(bytes)
        );
        bytes
    } else {
        0
    };
    let outcome = if append {
        let data = NewPlace::Inline(Bytes::from(data.clone()));
        volume.client(Op::from(ops::Append {
            ino,
            data,
            length: length as u64,
            kill_priv: KillPriv::NONE,
            reservation,
        }))
    } else {
        let mut pieces = Vec::new();
        if rng.random_bool(0.4) {
            let place = NewPlace::Inline(Bytes::from(data.clone()));
            pieces.push(NewPiece { offset, length: length as u64, place });
        } else {
            for (segment, start, end) in split(offset, offset + length as u64) {
                let at = segment.0 * SEGMENT_BYTES + u64::from(start);
                let part = &data[(at - offset) as usize..][..(end - start) as usize];
                let place = volume.store_in_chunk(part);
                pieces.push(NewPiece { offset: at, length: u64::from(end - start), place });
            }
        }
        // A chunk that filled up in between is sealed already: such a commit is refused as a whole.
        let mtime = Timestamp { seconds: volume.clock, nanos: 1 };
        let op = Op::from(ops::Write { ino, pieces, mtime, kill_priv: KillPriv::SETID, reservation });
        volume.client(op)
    };
    if outcome == Outcome::Refused(FsError::StaleChunk) {
        return;
    }
    expect(&outcome, &Ok(()), "write");
    let content = &mut model.nodes.get_mut(&ino).unwrap().content;
    let end = offset as usize + length;
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset as usize..end].copy_from_slice(&data);
}

/// Both files refer to the same bytes afterwards; writing one must leave the other alone.
fn copy(rng: &mut StdRng, volume: &mut Volume, model: &mut Model, files: &[InodeId]) {
    let (from, to) = (pick(rng, files), pick(rng, files));
    let (offset, to_offset) = (random_offset(rng), random_offset(rng));
    let length = rng.random_range(1..2 * SEGMENT_BYTES);
    let source = &model.nodes[&from].content;
    let end = (offset + length).min(source.len() as u64);
    let data = source.get(offset as usize..end as usize).unwrap_or_default().to_vec();
    let copied = data.len() as u64;
    let overlaps = from == to && offset < to_offset + copied && to_offset < offset + copied;
    let op = Op::from(ops::CopyFileRange { from, offset, to, to_offset, length, kill_priv: KillPriv::SETID });
    match volume.client(op) {
        Outcome::Copied(bytes, _) => assert!(bytes == copied && !(overlaps && copied > 0)),
        outcome => return expect(&outcome, &Err::<(), _>(FsError::InvalidArgument), "copy onto itself"),
    }
    if copied > 0 {
        let content = &mut model.nodes.get_mut(&to).unwrap().content;
        let end = (to_offset + copied) as usize;
        content.resize(content.len().max(end), 0);
        content[to_offset as usize..end].copy_from_slice(&data);
    }
}

fn compare(volume: &Volume, model: &Model) {
    let mut reached = BTreeSet::new();
    for (ino, node) in &model.nodes {
        reached.insert(*ino);
        if node.directory {
            let (_, entries, end) = query::read_directory(&volume.store, *ino, 0, |_| false).unwrap();
            assert!(end);
            let found: BTreeMap<Vec<u8>, InodeId> =
                entries.iter().map(|entry| (entry.name.to_vec(), entry.ino)).collect();
            assert_eq!(found, node.entries, "directory {ino}");
        } else {
            assert_eq!(query::inode(&volume.store, *ino).unwrap().nlink, node.links);
            assert!(volume.read(*ino) == node.content, "content of {ino} differs");
        }
    }
}

fn run_seed(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let config = VolumeConfig { chunk_bytes: 1 << 20, ..VolumeConfig::default() };
    let mut volume = Volume::new(config);
    let mut model = Model::new();
    for at in 0..400 {
        step(&mut rng, &mut volume, &mut model);
        if at % 20 == 0 {
            volume.check();
            compare(&volume, &model);
        }
    }
    volume.background();
    volume.background();
    volume.check();
    compare(&volume, &model);

    // All deleted, nothing may be left.
    assert_eq!(volume.client(Op::from(ops::CloseSession)), Outcome::Done);
    let op = Op::from(ops::OpenSession { client: "again".into(), incarnation: 2, supersedes: None });
    let Outcome::Session(session, _) = volume.internal(op) else { panic!("no session") };
    (volume.session, volume.sequence) = (session, 0);
    remove_all(&mut volume, &model, ROOT);
    volume.background();
    volume.background();
    volume.check();
    assert_eq!(volume.store.len(Family::Inodes), 1);
    assert_eq!(volume.store.len(Family::Extents), 0);
    assert_eq!(volume.store.len(Family::Inline), 0);
    assert!(volume.prefix(&keys::chunks()).is_empty(), "a chunk is left that nothing refers to");
    assert!(volume.prefix(&keys::every_task()).is_empty());
    let superblock = query::superblock(&volume.store).unwrap();
    assert_eq!((superblock.bytes_used, superblock.bytes_reserved, superblock.inodes_used), (0, 0, 1));
}

fn remove_all(volume: &mut Volume, model: &Model, directory: InodeId) {
    for (name, ino) in &model.nodes[&directory].entries {
        let is_directory = model.nodes[ino].directory;
        if is_directory {
            remove_all(volume, model, *ino);
        }
        let op = Op::from(ops::Unlink {
            parent: directory,
            name: Bytes::from(name.clone()),
            directory: is_directory,
        });
        assert!(!matches!(volume.client(op), Outcome::Refused(_)));
    }
}

#[test]
fn random_commands_agree_with_a_model_and_keep_every_invariant() {
    // ATOLL_SEED replays one seed, ATOLL_SEEDS runs more.
    if let Ok(seed) = std::env::var("ATOLL_SEED") {
        return run_seed(seed.parse().expect("ATOLL_SEED is a number"));
    }
    let seeds = std::env::var("ATOLL_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    for seed in 0..seeds {
        let failed = std::panic::catch_unwind(|| run_seed(seed)).is_err();
        assert!(!failed, "replay: ATOLL_SEED={seed} cargo test -p atoll-core --test model");
    }
}

/// A file whose segments are more than one command frees: truncations leave work to the purge, and what it has
/// not reached yet must be as good as gone.
#[test]
fn a_big_truncation_is_complete_at_once_however_late_the_purge_comes() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut volume = Volume::new(VolumeConfig::default());
        let name = Bytes::from_static(b"big");
        let op = Op::from(ops::Create {
            parent: ROOT,
            name: name.clone(),
            ino: None,
            mode: FileKind::File.mode_bits(),
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            umask: 0,
        });
        let Outcome::Inode(attributes) = volume.client(op) else { panic!("no file") };
        let ino = attributes.ino;
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        let mut size = 0u64;
        let segments = 200;
        for _ in 0..12 {
            match rng.random_range(0..3) {
                0 => {
                    for _ in 0..rng.random_range(1..300) {
                        let offset = rng.random_range(0..segments * 4) * SEGMENT_BYTES / 4;
                        let byte = rng.random();
                        let place = NewPlace::Inline(Bytes::copy_from_slice(&[byte]));
                        let pieces = vec![NewPiece { offset, length: 1, place }];
                        let mtime = Timestamp::default();
                        let op = Op::from(ops::Write {
                            ino,
                            pieces,
                            mtime,
                            kill_priv: KillPriv::NONE,
                            reservation: 0,
                        });
                        expect(&volume.client(op), &Ok(()), "write");
                        model.insert(offset, byte);
                        size = size.max(offset + 1);
                    }
                }
                1 => {
                    let to =
                        if rng.random_bool(0.3) { 0 } else { rng.random_range(0..segments * SEGMENT_BYTES) };
                    let changes = AttributeChanges { size: Some(to), ..AttributeChanges::default() };
                    let outcome = volume.client(Op::from(ops::SetAttr { ino, changes }));
                    if outcome != Outcome::Refused(FsError::TryAgain) {
                        size = to;
                        model.retain(|offset, _| *offset < to);
                    }
                }
                _ => {
                    for _ in 0..rng.random_range(0..4) {
                        volume.internal(Op::from(ops::PurgeTruncated { ino, segments_max: 30 }));
                    }
                }
            }
            volume.check();
            let record = query::inode(&volume.store, ino).unwrap();
            assert_eq!(record.size, size, "seed {seed}");
            let mut found = BTreeMap::new();
            for (segment, pieces) in
                query::segments(&volume.store, ino, &record, SegmentIndex(0), u64::MAX).unwrap()
            {
                for piece in pieces {
                    let bytes = query::inline_bytes(&volume.store, ino, segment, &piece).unwrap().unwrap();
                    for (at, byte) in bytes.iter().enumerate() {
                        found.insert(segment.0 * SEGMENT_BYTES + u64::from(piece.start) + at as u64, *byte);
                    }
                }
            }
            assert!(found == model, "seed {seed}: content differs");
        }
        assert!(!matches!(
            volume.client(Op::from(ops::Unlink { parent: ROOT, name, directory: false })),
            Outcome::Refused(_)
        ));
        volume.background();
        volume.check();
        assert_eq!(volume.store.len(Family::Extents), 0);
        assert_eq!(query::superblock(&volume.store).unwrap().bytes_used, 0);
    }
}
