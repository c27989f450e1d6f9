use std::collections::BTreeMap;
use std::slice::from_ref;

use atoll_core::ids::SessionId;
use atoll_proto::checksum::checksums;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::write::Written;
use super::*;
use crate::disk::faulty::{Fault, FaultyDisk, Op};

const CLUSTER: ClusterId = ClusterId(0xc1);
const CHUNK: ChunkId = ChunkId(0x77);
const WRITER: Writer = Writer { session: SessionId(5), incarnation: 1 };
const GENERATION: Generation = Generation(1);
const BLOCKS: u32 = 64;
const PATH: &str = "chunk";

fn header(layout: Layout) -> Header {
    let geometry = Geometry::new(u64::from(BLOCKS) * BLOCK).unwrap();
    Header {
        cluster: CLUSTER,
        chunk: CHUNK,
        geometry,
        layout,
        generation: GENERATION,
        writer: WRITER,
        sealed: None,
        suspect: false,
        trimmed: Bitmap::new(geometry.blocks()),
    }
}

fn new_chunk(disk: &FaultyDisk, layout: Layout) -> ChunkFile {
    let chunk = ChunkFile::create(disk, PATH, header(layout)).unwrap();
    disk.sync_dir("").unwrap();
    chunk
}

fn reopen(disk: &FaultyDisk) -> ChunkFile {
    ChunkFile::open(disk, PATH, CLUSTER, CHUNK, false).unwrap()
}

fn disk() -> FaultyDisk {
    FaultyDisk::new(1, 64 << 20)
}

fn bytes(fill: u8, blocks: u32) -> Vec<u8> {
    vec![fill; (blocks as u64 * BLOCK) as usize]
}

fn write_as(
    chunk: &ChunkFile,
    generation: Generation,
    writer: Writer,
    block: u32,
    data: &[u8],
) -> Result<Written, ChunkError> {
    let sums = checksums(CHUNK, block.into(), data);
    chunk.write(generation, writer, u64::from(block) * BLOCK, data, &sums)
}

fn write(chunk: &ChunkFile, block: u32, data: &[u8]) -> Result<Written, ChunkError> {
    write_as(chunk, GENERATION, WRITER, block, data)
}

fn read(chunk: &ChunkFile, block: u32, blocks: u32) -> Result<Vec<u8>, ChunkError> {
    let (offset, length) = (u64::from(block) * BLOCK, u64::from(blocks) * BLOCK);
    chunk.read(offset, length, Verified::Here).map(|read| read.data.to_vec())
}

/// As a reader that verifies does.
fn read_raw(chunk: &ChunkFile, block: u32, blocks: u32) -> Result<Blocks, ChunkError> {
    chunk.read(u64::from(block) * BLOCK, u64::from(blocks) * BLOCK, Verified::ByReader)
}

#[test]
fn what_was_written_is_read_with_its_checksums() {
    for layout in [Layout::Small, Layout::Stream] {
        let disk = disk();
        let chunk = new_chunk(&disk, layout);
        let mut data = bytes(3, 2);
        data.extend([4; 100]);
        assert_eq!(write(&chunk, 0, &data).unwrap(), Written::New);
        let mut padded = data.clone();
        padded.resize(3 * BLOCK as usize, 0);
        let got = chunk.read(0, data.len() as u64, Verified::Here).unwrap();
        assert_eq!(got.data, padded);
        assert_eq!(got.checksums, checksums(CHUNK, 0, &data));
        assert_eq!(read_raw(&chunk, 0, 3).unwrap(), got);
        assert_eq!(read(&chunk, 2, 1).unwrap(), padded[2 * BLOCK as usize..]);
        assert!(matches!(read(&chunk, 2, 2), Err(ChunkError::Missing(b)) if b == [3]));
        assert_eq!(chunk.info().unwrap().written_bytes, 3 * BLOCK);
    }
}

#[test]
fn a_reader_that_verifies_gets_what_is_stored() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    let data = bytes(3, 4);
    write(&chunk, 0, &data).unwrap();
    disk.flip_bit(PATH, chunk.geometry.data_at(2) + 77, 3);
    // One sees the damage here, the other one at the reader's.
    assert!(matches!(read(&chunk, 0, 4), Err(ChunkError::Corrupt(blocks)) if blocks == [2]));
    let got = read_raw(&chunk, 0, 4).unwrap();
    assert_eq!(got.checksums, checksums(CHUNK, 0, &data));
    let found = atoll_proto::checksum::verify(CHUNK, 0, &got.data, &got.checksums);
    let blocks = vec![2];
    assert_eq!(found, Err(atoll_proto::checksum::ChecksumError::Corrupt { chunk: CHUNK, blocks }));
    // What isn't there is never served, whoever verifies.
    assert!(matches!(read_raw(&chunk, 3, 2), Err(ChunkError::Missing(b)) if b == [4]));
    chunk.trim(from_ref(&(BLOCK..2 * BLOCK))).unwrap();
    assert!(matches!(read_raw(&chunk, 0, 4), Err(ChunkError::Gone(b)) if b == [1]));
}

#[test]
fn a_checksum_of_zero_is_given_out_as_zero() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    // CRC is linear and has 32 bits: of blocks that differ in 33 bits one combination has the checksum 0.
    let mut data = vec![0; BLOCK as usize];
    let target = block_checksum(CHUNK, 0, &data);
    let mut basis: Vec<(u32, u64)> = Vec::new();
    for bit in 0..64u64 {
        let mut with = vec![0; BLOCK as usize];
        with[bit as usize / 8] = 1 << (bit % 8);
        let (mut sum, mut bits) = (block_checksum(CHUNK, 0, &with) ^ target, 1u64 << bit);
        for (other, others) in &basis {
            if sum ^ other < sum {
                (sum, bits) = (sum ^ other, bits ^ others);
            }
        }
        if sum != 0 {
            basis.push((sum, bits));
            basis.sort_unstable_by(|a, b| b.cmp(a));
        }
    }
    let (mut rest, mut bits) = (target, 0);
    for (sum, combination) in &basis {
        if rest ^ sum < rest {
            (rest, bits) = (rest ^ sum, bits ^ combination);
        }
    }
    data[..8].copy_from_slice(&bits.to_le_bytes());
    assert_eq!((rest, block_checksum(CHUNK, 0, &data)), (0, 0));
    write(&chunk, 0, &data).unwrap();
    assert_eq!(chunk.read_table(0..1).unwrap(), [1], "0 means that it was never written");
    let got = read_raw(&chunk, 0, 1).unwrap();
    assert_eq!((got.checksums, &got.data[..]), (vec![0], &data[..]));
    assert_eq!(read(&chunk, 0, 1).unwrap(), data);
    // Damaged, neither fits.
    disk.flip_bit(PATH, chunk.geometry.data_at(0) + 3, 0);
    let got = read_raw(&chunk, 0, 1).unwrap();
    assert!(atoll_proto::checksum::verify(CHUNK, 0, &got.data, &got.checksums).is_err());
}

#[test]
fn a_small_chunk_is_written_over_zeroes() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Small);
    write(&chunk, 0, &bytes(1, 1)).unwrap();
    chunk.sync().unwrap();
    let length = disk.contents(PATH).unwrap().len();
    assert_eq!(length as u64, chunk.geometry.data_at(BLOCKS), "filled to its end");
    write(&chunk, 1, &bytes(1, 1)).unwrap();
    assert_eq!(
        disk.contents(PATH).unwrap().len(),
        length,
        "a write within the filled part leaves the length"
    );
    let stream = ChunkFile::create(&disk, "other", header(Layout::Stream)).unwrap();
    write(&stream, 0, &bytes(1, 1)).unwrap();
    assert_eq!(disk.contents("other").unwrap().len() as u64, stream.geometry.data_at(1));
}

#[test]
fn damage_on_the_way_is_refused_before_it_is_written() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    let data = bytes(3, 2);
    let mut sums = checksums(CHUNK, 0, &data);
    sums[1] ^= 1;
    assert!(
        matches!(chunk.write(GENERATION, WRITER, 0, &data, &sums), Err(ChunkError::BadChecksums(b)) if b == [1])
    );
    assert!(matches!(
        chunk.write(GENERATION, WRITER, 0, &data, &sums[..1]),
        Err(ChunkError::BadChecksums(b)) if b == [0, 1]
    ));
    // Meant for another place.
    let elsewhere = checksums(CHUNK, 1, &data);
    assert!(matches!(
        chunk.write(GENERATION, WRITER, 0, &data, &elsewhere),
        Err(ChunkError::BadChecksums(_))
    ));
    assert!(matches!(read(&chunk, 0, 1), Err(ChunkError::Missing(_))));
}

#[test]
fn ranges_are_whole_blocks_within_the_capacity() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    let data = bytes(1, 2);
    for (offset, data) in [
        (1, &data[..]),
        (0, &[][..]),
        (u64::from(BLOCKS - 1) * BLOCK, &data[..]),
        (u64::MAX - 4095, &data[..]),
    ] {
        let result = chunk.write(GENERATION, WRITER, offset, data, &[]);
        assert!(matches!(result, Err(ChunkError::BadRange { .. })), "{offset}: {result:?}");
    }
    assert!(matches!(chunk.read(7, 4096, Verified::Here), Err(ChunkError::BadRange { .. })));
}

#[test]
fn the_same_again_is_fine_and_something_else_is_not() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 4)).unwrap();
    assert_eq!(write(&chunk, 0, &bytes(1, 4)).unwrap(), Written::Again);
    assert_eq!(write(&chunk, 2, &bytes(1, 1)).unwrap(), Written::Again);
    assert!(matches!(write(&chunk, 1, &bytes(2, 1)), Err(ChunkError::Overwrite { block: 1 })));
    // Its end overlaps, its beginning is the same: still a change.
    assert!(matches!(
        write(&chunk, 3, &[bytes(2, 1), bytes(2, 1)].concat()),
        Err(ChunkError::Overwrite { block: 3 })
    ));
    // A repetition that goes further is new.
    assert_eq!(write(&chunk, 3, &bytes(1, 2)).unwrap(), Written::New);
    assert_eq!(read(&chunk, 0, 5).unwrap(), bytes(1, 5));
}

#[test]
fn requests_that_overtook_one_another_are_both_taken() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 4, &bytes(2, 4)).unwrap();
    write(&chunk, 0, &bytes(1, 4)).unwrap();
    assert_eq!(read(&chunk, 0, 8).unwrap(), [bytes(1, 4), bytes(2, 4)].concat());
    chunk.sync_covers(GENERATION, Some(8 * BLOCK)).unwrap();
}

#[test]
fn others_and_older_ones_are_fenced_also_after_a_restart() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 1)).unwrap();
    let stranger = Writer { session: SessionId(6), incarnation: 9 };
    assert!(matches!(
        write_as(&chunk, GENERATION, stranger, 1, &bytes(1, 1)),
        Err(ChunkError::OtherWriter { session: SessionId(5), incarnation: 1 })
    ));
    let successor = Writer { incarnation: 2, ..WRITER };
    write_as(&chunk, Generation(3), successor, 1, &bytes(1, 1)).unwrap();
    drop(chunk);
    disk.power_on();
    let chunk = reopen(&disk);
    assert!(matches!(
        write_as(&chunk, Generation(3), WRITER, 2, &bytes(1, 1)),
        Err(ChunkError::OtherWriter { incarnation: 2, .. })
    ));
    assert!(matches!(
        write_as(&chunk, Generation(2), successor, 2, &bytes(1, 1)),
        Err(ChunkError::StaleGeneration { current: Generation(3) })
    ));
    assert!(matches!(chunk.sync_covers(Generation(2), None), Err(ChunkError::StaleGeneration { .. })));
    assert!(matches!(chunk.seal(Generation(2), 0), Err(ChunkError::StaleGeneration { .. })));
}

#[test]
fn a_seal_is_durable_cuts_the_tail_and_ends_writing() {
    for layout in [Layout::Small, Layout::Stream] {
        let disk = disk();
        let chunk = new_chunk(&disk, layout);
        write(&chunk, 0, &bytes(1, 8)).unwrap();
        assert_eq!(chunk.seal(Generation(2), 4 * BLOCK + 10).unwrap(), Vec::<u64>::new());
        disk.power_on();
        let chunk = reopen(&disk);
        assert_eq!(disk.contents(PATH).unwrap().len() as u64, chunk.geometry.data_at(5));
        assert_eq!(read(&chunk, 0, 5).unwrap(), bytes(1, 5));
        assert!(matches!(read(&chunk, 4, 2), Err(ChunkError::Missing(b)) if b == [5]));
        let write_again =
            |block, fill, blocks| write_as(&chunk, Generation(2), WRITER, block, &bytes(fill, blocks));
        assert!(matches!(write_again(5, 1, 1), Err(ChunkError::Sealed { .. })));
        assert!(matches!(write_again(1, 2, 1), Err(ChunkError::Sealed { .. })));
        assert_eq!(write_again(1, 1, 2).unwrap(), Written::Again);
        chunk.sync_covers(Generation(2), Some(4 * BLOCK)).unwrap();
        assert!(matches!(chunk.sync_covers(Generation(2), Some(8 * BLOCK)), Err(ChunkError::Sealed { .. })));
        chunk.seal(Generation(3), 4 * BLOCK + 10).unwrap();
        chunk.seal(Generation(2), 4 * BLOCK + 10).unwrap();
        assert_eq!(chunk.info().unwrap().generation, Generation(3));
        assert!(matches!(chunk.seal(Generation(3), BLOCK), Err(ChunkError::Sealed { .. })));
    }
}

#[test]
fn a_seal_names_what_is_missing() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 1)).unwrap();
    write(&chunk, 3, &bytes(1, 1)).unwrap();
    assert_eq!(chunk.seal(GENERATION, 5 * BLOCK).unwrap(), vec![1, 2, 4]);
    assert_eq!(chunk.seal(GENERATION, 5 * BLOCK).unwrap(), vec![1, 2, 4]);
}

#[test]
fn trimmed_blocks_are_gone_and_never_zeroes() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 16)).unwrap();
    chunk.seal(GENERATION, 16 * BLOCK - 100).unwrap();
    let before = chunk.file.allocated().unwrap();
    assert_eq!(chunk.trim(&[2 * BLOCK..4 * BLOCK, 6 * BLOCK - 1..7 * BLOCK + 1]).unwrap(), 3 * BLOCK);
    assert_eq!(before - chunk.file.allocated().unwrap(), 3 * BLOCK);
    assert_eq!(chunk.trim(from_ref(&(2 * BLOCK..4 * BLOCK))).unwrap(), 0);
    // The chunk's end is within its last block.
    assert_eq!(chunk.trim(from_ref(&(15 * BLOCK..16 * BLOCK - 100))).unwrap(), BLOCK);
    disk.power_on();
    let chunk = reopen(&disk);
    assert!(matches!(read(&chunk, 0, 16), Err(ChunkError::Gone(b)) if b == [2, 3, 6, 15]));
    assert_eq!(read(&chunk, 0, 2).unwrap(), bytes(1, 2));
    assert!(matches!(write(&chunk, 2, &bytes(1, 1)), Err(ChunkError::Gone(_))));
    assert_eq!(chunk.check(0..BLOCKS).unwrap(), read::Checked { good_blocks: 12, bad: vec![] });
    assert_eq!(chunk.seal(GENERATION, 16 * BLOCK - 100).unwrap(), Vec::<u64>::new(), "trimmed isn't missing");
}

#[test]
fn a_flipped_bit_is_one_bad_block() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 16)).unwrap();
    disk.flip_bit(PATH, chunk.geometry.data_at(5) + 77, 3);
    disk.flip_bit(PATH, chunk.geometry.checksum_at(9), 0);
    assert!(matches!(read(&chunk, 0, 16), Err(ChunkError::Corrupt(b)) if b == [5, 9]));
    assert_eq!(read(&chunk, 0, 5).unwrap(), bytes(1, 5));
    assert_eq!(chunk.check(0..BLOCKS).unwrap(), read::Checked { good_blocks: 14, bad: vec![5, 9] });
    // The whole chunk is unreadable for the disk: every block is bad, and the check goes on.
    disk.fail(Fault { op: Op::Read, path_contains: PATH.into(), errno: libc::EIO, times: 1 });
    assert!(matches!(chunk.check(0..BLOCKS), Err(ChunkError::Io(_))), "the checksums can't be read");
}

#[test]
fn a_piece_that_cant_be_read_is_tried_block_by_block() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 4)).unwrap();
    let table = chunk.read_table(0..4).unwrap();
    // The read of the piece fails, then that of its first block.
    disk.fail(Fault { op: Op::Read, path_contains: PATH.into(), errno: libc::EIO, times: 2 });
    let mut found = read::Checked::default();
    chunk.check_run(0..4, &table, &mut found);
    assert_eq!(found, read::Checked { good_blocks: 3, bad: vec![0] });
}

#[test]
fn a_file_cut_short_has_bad_blocks() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 4)).unwrap();
    chunk.file.set_len(chunk.geometry.data_at(2)).unwrap();
    assert!(matches!(read(&chunk, 0, 4), Err(ChunkError::Corrupt(b)) if b == [2, 3]));
}

#[test]
fn the_header_survives_damage_to_either_slot() {
    for slot in [0, SLOT_BYTES] {
        let disk = disk();
        let chunk = new_chunk(&disk, Layout::Stream);
        write(&chunk, 0, &bytes(1, 1)).unwrap();
        chunk.sync().unwrap();
        drop(chunk);
        disk.flip_bit(PATH, slot + 20, 1);
        assert_eq!(read(&reopen(&disk), 0, 1).unwrap(), bytes(1, 1));
        disk.flip_bit(PATH, SLOT_BYTES - slot + 20, 1);
        assert!(matches!(ChunkFile::open(&disk, PATH, CLUSTER, CHUNK, false), Err(ChunkError::Damaged(_))));
    }
}

#[test]
fn a_file_of_another_cluster_or_chunk_is_refused() {
    let disk = disk();
    drop(new_chunk(&disk, Layout::Stream));
    assert!(matches!(ChunkFile::open(&disk, PATH, ClusterId(1), CHUNK, false), Err(ChunkError::Damaged(_))));
    assert!(matches!(ChunkFile::open(&disk, PATH, CLUSTER, ChunkId(1), false), Err(ChunkError::Damaged(_))));
    assert!(matches!(ChunkFile::open(&disk, "no", CLUSTER, CHUNK, false), Err(ChunkError::NotFound)));
}

#[test]
fn a_failed_sync_closes_the_replica_for_writing() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 1)).unwrap();
    chunk.sync().unwrap();
    write(&chunk, 1, &bytes(2, 1)).unwrap();
    disk.fail(Fault { op: Op::Sync, path_contains: PATH.into(), errno: libc::EIO, times: 1 });
    assert!(matches!(chunk.sync(), Err(ChunkError::Io(_))));
    assert!(matches!(chunk.sync(), Err(ChunkError::Suspect)), "a second sync proves nothing");
    assert!(matches!(chunk.sync_covers(GENERATION, Some(BLOCK)), Err(ChunkError::Suspect)));
    assert!(matches!(write(&chunk, 2, &bytes(2, 1)), Err(ChunkError::Suspect)));
    assert_eq!(read(&chunk, 0, 1).unwrap(), bytes(1, 1));
    drop(chunk);
    let chunk = reopen(&disk);
    assert!(chunk.is_suspect(), "the disk took the note");
    assert!(matches!(write(&chunk, 2, &bytes(2, 1)), Err(ChunkError::Suspect)));
}

#[test]
fn a_full_disk_is_told_and_forgotten_when_there_is_room() {
    let disk = FaultyDisk::new(1, 30 * BLOCK);
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 16)).unwrap();
    assert!(matches!(write(&chunk, 16, &bytes(1, 16)), Err(ChunkError::NoSpace)));
    assert!(matches!(read(&chunk, 16, 1), Err(ChunkError::Missing(_))));
    disk.set_capacity(100 * BLOCK);
    write(&chunk, 16, &bytes(2, 16)).unwrap();
    chunk.sync().unwrap();
}

#[test]
fn one_that_was_only_closed_goes_on() {
    let disk = disk();
    let chunk = new_chunk(&disk, Layout::Stream);
    write(&chunk, 0, &bytes(1, 2)).unwrap();
    drop(chunk);
    let chunk = ChunkFile::open(&disk, PATH, CLUSTER, CHUNK, true).unwrap();
    chunk.sync_covers(GENERATION, None).unwrap();
    assert_eq!(write(&chunk, 0, &bytes(1, 2)).unwrap(), Written::Again);
    assert!(matches!(write(&chunk, 1, &bytes(2, 1)), Err(ChunkError::Overwrite { block: 1 })));
    assert_eq!(chunk.read_cached(0, 2 * BLOCK, Verified::Here).unwrap().unwrap().data, bytes(1, 2));
}

/// What a run with power cuts remembers of one block.
#[derive(Debug, Clone)]
struct Sent {
    data: Vec<u8>,
    durable: bool,
}

#[derive(Default)]
struct Model {
    blocks: BTreeMap<u32, Sent>,
    trim_tried: Vec<u32>,
    trim_done: Vec<u32>,
    /// Tried, and whether it was acknowledged.
    seal: Option<(u64, bool)>,
    next: u32,
}

/// Writes, syncs, trims and seals at random until the power goes at a random call, then looks at every block;
/// several times over on the same disk. `Err` tells which promise was broken.
fn run_with_cuts(seed: u64, syncs_work: bool) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = FaultyDisk::new(seed, 64 << 20);
    let layout = if rng.random_bool(0.5) { Layout::Small } else { Layout::Stream };
    drop(new_chunk(&disk, layout));
    if !syncs_work {
        disk.leave_syncs_out();
    }
    let mut model = Model::default();
    for round in 0..4 {
        let chunk =
            ChunkFile::open(&disk, PATH, CLUSTER, CHUNK, false).map_err(|e| format!("round {round}: {e}"))?;
        look(&chunk, &mut model).map_err(|e| format!("round {round}: {e}"))?;
        disk.power_off_after(rng.random_range(1..60));
        // A sealed and trimmed chunk has nothing left to change: the power goes all the same.
        for _ in 0..200 {
            if !disk.is_off() {
                step(&chunk, &mut model, &mut rng);
            }
        }
        drop(chunk);
        disk.power_on();
    }
    let chunk = ChunkFile::open(&disk, PATH, CLUSTER, CHUNK, false).map_err(|e| e.to_string())?;
    look(&chunk, &mut model)
}

fn step(chunk: &ChunkFile, model: &mut Model, rng: &mut StdRng) {
    match rng.random_range(0..100) {
        0..50 if model.next < BLOCKS => {
            // Usually where the last one ended; sometimes what was sent before, again.
            let resend: Vec<u32> = model.blocks.iter().filter(|(_, s)| !s.durable).map(|(b, _)| *b).collect();
            if !resend.is_empty() && rng.random_bool(0.4) {
                let block = resend[rng.random_range(0..resend.len())];
                let _ = write(chunk, block, &model.blocks[&block].data.clone());
                return;
            }
            let count = rng.random_range(1..=6.min(BLOCKS - model.next));
            let data: Vec<u8> = (0..count as u64 * BLOCK).map(|_| rng.random()).collect();
            for (block, part) in (model.next..).zip(data.chunks(BLOCK as usize)) {
                model.blocks.insert(block, Sent { data: part.to_vec(), durable: false });
            }
            let _ = write(chunk, model.next, &data);
            model.next += count;
        }
        0..85 => {
            let length = u64::from(model.next) * BLOCK;
            if chunk.sync_covers(GENERATION, Some(length)).is_ok()
                && chunk.sync().is_ok()
                && model.seal.is_none()
            {
                model.blocks.values_mut().for_each(|sent| sent.durable = true);
            }
        }
        85..97 => {
            let Some(block) =
                model.blocks.keys().nth(rng.random_range(0..model.blocks.len().max(1))).copied()
            else {
                return;
            };
            model.trim_tried.push(block);
            let range = u64::from(block) * BLOCK..u64::from(block + 1) * BLOCK;
            // Nothing is trimmed in a chunk where nothing was written: 0 isn't an acknowledgement then.
            if let Ok(bytes) = chunk.trim(from_ref(&range))
                && bytes > 0
            {
                model.trim_done.push(block);
            }
        }
        _ => {
            let durable = model.blocks.iter().take_while(|(_, sent)| sent.durable).count() as u64 * BLOCK;
            let length = model.seal.map_or(durable, |(length, _)| length);
            model.seal = Some((length, model.seal.is_some_and(|(_, done)| done)));
            match chunk.seal(GENERATION, length) {
                Ok(_) => model.seal = Some((length, true)),
                Err(error) => {
                    assert!(!matches!(error, ChunkError::Sealed { .. }), "sealed otherwise: {error}")
                }
            }
        }
    }
}

fn look(chunk: &ChunkFile, model: &mut Model) -> Result<(), String> {
    let info = chunk.info().map_err(|e| e.to_string())?;
    if let Some((length, true)) = model.seal
        && info.sealed != Some(length)
    {
        return Err(format!("sealed at {length}, found {:?}", info.sealed));
    }
    for block in 0..BLOCKS {
        let got = read(chunk, block, 1);
        let cut = info.sealed.is_some_and(|length| u64::from(block) * BLOCK >= length);
        let trimmed = (model.trim_tried.contains(&block), model.trim_done.contains(&block));
        let fine = match (model.blocks.get(&block), &got) {
            (_, Err(ChunkError::Missing(_))) if cut => true,
            (_, Err(ChunkError::Gone(_))) => trimmed.0,
            (Some(sent), Ok(data)) => !trimmed.1 && !cut && *data == sent.data,
            (Some(sent), Err(ChunkError::Missing(_) | ChunkError::Corrupt(_))) => !sent.durable && !trimmed.1,
            (None, Err(ChunkError::Missing(_))) => true,
            _ => false,
        };
        if !fine {
            let durable = model.blocks.get(&block).map(|sent| sent.durable);
            let got = got.map(|data| data[..8].to_vec());
            return Err(format!(
                "block {block}: durable {durable:?}, trimmed {trimmed:?}, cut {cut}, got {got:?}"
            ));
        }
    }
    Ok(())
}

#[test]
fn what_was_synced_survives_power_cuts_and_nothing_else_is_served_wrongly() {
    for seed in 0..1500 {
        run_with_cuts(seed, true).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

#[test]
fn the_power_cut_test_fails_without_syncs() {
    let failures = (0..100).filter(|seed| run_with_cuts(*seed, false).is_err()).count();
    assert!(failures > 50, "only {failures} of 100 runs noticed that nothing was synced");
}

#[test]
fn a_sync_after_a_restart_never_vouches_for_what_the_cut_took() {
    let (mut refused, mut vouched) = (0, 0);
    for seed in 0..200 {
        let disk = FaultyDisk::new(seed, 64 << 20);
        let chunk = new_chunk(&disk, Layout::Stream);
        let blocks = seed as u32 % 3 + 1;
        let length = u64::from(blocks) * BLOCK;
        for block in 0..blocks {
            write(&chunk, block, &bytes(block as u8 + 1, 1)).unwrap();
        }
        drop(chunk);
        disk.power_on();
        let chunk = reopen(&disk);
        assert!(
            matches!(chunk.sync_covers(GENERATION, None), Err(ChunkError::Behind { .. })),
            "who doesn't say can't know"
        );
        let whole = (0..blocks).all(|block| read(&chunk, block, 1).is_ok());
        match chunk.sync_covers(GENERATION, Some(length)) {
            Ok(()) => {
                assert!(whole, "seed {seed}");
                vouched += 1;
            }
            Err(ChunkError::Behind { whole_bytes }) => {
                assert!(!whole && whole_bytes < length, "seed {seed}");
                refused += 1;
                // The writer sends it all again.
                for block in 0..blocks {
                    write(&chunk, block, &bytes(block as u8 + 1, 1)).unwrap();
                }
                chunk.sync_covers(GENERATION, Some(length)).unwrap();
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(refused > 0 && vouched > 0, "{refused} {vouched}");
}
