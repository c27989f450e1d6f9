use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_core::attributes::{AttributeChanges, Attributes, KillPriv};
use atoll_core::commands::{Op, ops};
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_core::limits::SEGMENT_BYTES;
use atoll_core::query;
use atoll_core::records::{Place, VolumeConfig};
use bytes::Bytes;

use super::testing::{FakeMetadata, FakeStorage, Mood, Random};
use super::{DataConfig, DataPath, ErrorMark, Extents};
use crate::arena::{Arena, ArenaConfig};
use crate::metadata::{ClientError, Metadata};
use crate::write::chunk_writer::FULL_WAIT_MAX;

mod behind;
mod damage;

const ARENA_BYTES: u64 = 8 << 20;

struct Cluster {
    storage: Arc<FakeStorage>,
    metadata: Arc<FakeMetadata>,
    arena: Arc<Arena>,
    data: DataPath<FakeMetadata>,
}

fn cluster_of(servers: u64, config: VolumeConfig) -> Cluster {
    let storage = FakeStorage::new(servers);
    let metadata = FakeMetadata::new(Arc::clone(&storage), config);
    let arena = Arena::create(ArenaConfig { op_slots: 2, data_bytes: ARENA_BYTES }).unwrap();
    let data = client(&metadata, &arena);
    Cluster { storage, metadata, arena, data }
}

fn cluster() -> Cluster {
    cluster_of(4, VolumeConfig { chunk_bytes: 8 << 20, bytes_total: 1 << 30, ..VolumeConfig::default() })
}

fn client(metadata: &Arc<FakeMetadata>, arena: &Arc<Arena>) -> DataPath<FakeMetadata> {
    let storage = Arc::clone(&metadata.storage);
    DataPath::new(Arc::clone(metadata), storage, Arc::clone(arena), DataConfig::for_arena(ARENA_BYTES))
}

impl Cluster {
    fn attributes(&self, ino: InodeId) -> Attributes {
        let mut attributes = self.metadata.attributes(ino);
        self.data.overlay(ino, &mut attributes);
        attributes
    }

    async fn write(&self, ino: InodeId, offset: u64, data: &[u8]) -> Result<u32, ClientError> {
        let attributes = self.attributes(ino);
        self.data.write(ino, offset, Bytes::copy_from_slice(data), &attributes, KillPriv::NONE).await
    }

    async fn write_all(&self, ino: InodeId, offset: u64, data: &[u8]) {
        assert_eq!(self.write(ino, offset, data).await, Ok(data.len() as u32));
    }

    async fn read(&self, ino: InodeId, offset: u64, size: u32) -> Result<Vec<u8>, ClientError> {
        let known = self.attributes(ino);
        Ok(self.data.read(ino, offset, size, &known).await?.concat())
    }

    async fn truncate(&self, ino: InodeId, size: u64) {
        self.data.before_truncate(ino, size).await.unwrap();
        let changes = AttributeChanges { size: Some(size), ..AttributeChanges::default() };
        let attributes = self.metadata.mutate(ops::SetAttr { ino, changes }).await.unwrap();
        self.data.after_truncate(ino, &attributes);
    }

    fn volume(&self) -> atoll_core::records::Superblock {
        query::superblock(&*self.metadata.store.lock()).unwrap()
    }
}

fn put(model: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let end = offset as usize + data.len();
    if model.len() < end {
        model.resize(end, 0);
    }
    model[offset as usize..end].copy_from_slice(data);
}

#[tokio::test(start_paused = true)]
async fn what_is_written_is_read_before_and_after_the_flush() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    let data = Random(1).bytes(3_000_000);
    cluster.write_all(ino, 100, &data).await;
    assert!(cluster.data.has_dirty(ino));
    assert_eq!(cluster.attributes(ino).size, 3_000_100);
    let mut expected = vec![0; 100];
    expected.extend(&data);
    assert!(cluster.read(ino, 0, 4_000_000).await.unwrap() == expected);
    cluster.data.flush(ino).await.unwrap();
    assert!(!cluster.data.has_dirty(ino));
    assert_eq!(cluster.arena.usage().bytes_used, 0);
    assert!(cluster.read(ino, 0, 4_000_000).await.unwrap() == expected);
    cluster.storage.cut_power();
    assert!(cluster.metadata.durable_content(ino) == expected);
    let other = Arena::create(ArenaConfig::default()).unwrap();
    let fresh = client(&cluster.metadata, &other);
    let known = cluster.metadata.attributes(ino);
    assert_eq!(fresh.read(ino, 50, 100, &known).await.unwrap().concat(), expected[50..150]);
}

#[tokio::test(start_paused = true)]
async fn small_files_travel_in_the_commit_and_streams_in_whole_segments() {
    let cluster = cluster();
    let small = cluster.metadata.create("small").ino;
    cluster.write_all(small, 0, &[7; 9000]).await;
    cluster.data.flush(small).await.unwrap();
    assert!(matches!(cluster.metadata.pieces(small)[0][0].place, Place::Inline { .. }));
    assert_eq!(cluster.storage.chunks(), []);

    let big = cluster.metadata.create("big").ino;
    let segments = 30;
    for at in 0..segments * 8 {
        cluster.write_all(big, at * (SEGMENT_BYTES / 8), &Random(at).bytes(SEGMENT_BYTES as usize / 8)).await;
        assert!(cluster.data.counters().dirty_bytes <= ARENA_BYTES);
    }
    cluster.data.flush(big).await.unwrap();
    let pieces = cluster.metadata.pieces(big);
    assert_eq!(pieces.len() as u64, segments);
    let whole = pieces.iter().filter(|pieces| pieces.len() == 1).count() as u64;
    assert!(whole >= segments - 1, "{whole} segments of {segments} are one extent");
    // 30 MiB in chunks of 8 MiB, and the one that was opened ahead.
    assert!(cluster.data.counters().chunks_opened <= 6, "{:?}", cluster.data.counters());

    // Whoever flushed it behind its writer has ended.
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A small write to a big file that somebody waits for is one commit and nothing else.
    let before = cluster.data.counters().chunk_bytes_written;
    cluster.write_all(big, 12345, &[9; 4096]).await;
    cluster.data.flush(big).await.unwrap();
    assert_eq!(cluster.data.counters().chunk_bytes_written, before);
    assert_eq!(cluster.read(big, 12340, 10).await.unwrap()[5..], [9; 5]);

    cluster.metadata.inline.store(false, Ordering::Relaxed);
    let other = cluster.metadata.create("other").ino;
    cluster.write_all(other, 0, &[8; 100]).await;
    cluster.data.flush(other).await.unwrap();
    assert!(matches!(cluster.metadata.pieces(other)[0][0].place, Place::Chunk { .. }));
}

#[tokio::test(start_paused = true)]
async fn what_was_written_flows_out_by_itself() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    cluster.write_all(ino, 0, &[1; 100_000]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!cluster.data.has_dirty(ino));
    assert!(cluster.metadata.durable_content(ino) == vec![1; 100_000]);
    // Idle: what was reserved is given back.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(cluster.volume().bytes_reserved, 0);
    assert_eq!(cluster.volume().bytes_used, 102_400);
}

#[tokio::test(start_paused = true)]
async fn a_full_volume_is_told_at_write_and_never_later() {
    let config = VolumeConfig { chunk_bytes: 8 << 20, bytes_total: 3 << 20, ..VolumeConfig::default() };
    let cluster = cluster_of(3, config);
    let (a, b) = (cluster.metadata.create("a").ino, cluster.metadata.create("b").ino);
    let mut accepted = 0;
    let mut random = Random(5);
    for at in 0..1000u64 {
        let ino = if at % 2 == 0 { a } else { b };
        match cluster.write(ino, at / 2 * 40_960, &random.bytes(40_960)).await {
            Ok(count) => accepted += u64::from(count),
            Err(error) => {
                assert_eq!(error, FsError::NoSpace.into());
                break;
            }
        }
    }
    assert_eq!(accepted, 3 << 20, "every block of the quota can be used");
    cluster.data.flush_all().await.unwrap();
    assert_eq!(cluster.volume().bytes_used, 3 << 20);
    // Overwriting is free; anything new is refused at once.
    cluster.write_all(a, 5000, &[9; 20_000]).await;
    cluster.data.flush(a).await.unwrap();
    assert!(cluster.metadata.durable_content(a)[5000..25_000] == [9; 20_000]);
    assert_eq!(cluster.read(a, 24_999, 1).await.unwrap(), [9]);
    assert_eq!(cluster.write(a, 40_960 * 1000, &[1]).await, Err(FsError::NoSpace.into()));
    cluster.truncate(a, 0).await;
    cluster.write_all(a, 0, &[1; 300_000]).await;
    cluster.data.flush(a).await.unwrap();
    cluster.data.close().await.unwrap();
    assert_eq!(cluster.volume().bytes_reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn a_write_never_waits_for_a_dead_server() {
    for mood in [Mood::Down, Mood::Silent, Mood::Full] {
        let cluster = cluster();
        let ino = cluster.metadata.create("a").ino;
        let first = Random(1).bytes(2_000_000);
        cluster.write_all(ino, 0, &first).await;
        cluster.data.flush(ino).await.unwrap();
        for server in 1..=3 {
            // One of three is enough to hit the open chunk.
            cluster.storage.set_mood(server, if server == 2 { mood } else { Mood::Well });
        }
        let second = Random(2).bytes(2_000_000);
        cluster.write_all(ino, 2_000_000, &second).await;
        let begun = tokio::time::Instant::now();
        cluster.data.flush(ino).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{mood:?}: {:?}", begun.elapsed());
        cluster.storage.set_mood(2, Mood::Well);
        assert!(cluster.read(ino, 0, 4_000_000).await.unwrap() == [first, second].concat(), "{mood:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_only_this_client_misses_is_left_out() {
    let three = VolumeConfig { chunk_bytes: 8 << 20, ..VolumeConfig::default() };
    let two = VolumeConfig { copies: 2, copies_min: 1, ..three.clone() };
    let data = [5; 500_000];
    let flush_without = async |servers: u64, config: VolumeConfig, mood| {
        let cluster = cluster_of(servers, config);
        cluster.metadata.blind.store(true, Ordering::Relaxed);
        cluster.storage.set_mood(servers, mood);
        let ino = cluster.metadata.create("a").ino;
        cluster.write_all(ino, 0, &data).await;
        let begun = tokio::time::Instant::now();
        cluster.data.flush(ino).await.unwrap();
        (begun.elapsed(), cluster, ino)
    };
    for mood in [Mood::Silent, Mood::Down] {
        let (time, ..) = flush_without(2, two.clone(), mood).await;
        assert!(time > Duration::from_secs(2), "stalls are ordinary, and one copy would be left: {time:?}");
        assert!(time < Duration::from_secs(20), "{time:?}");
        let (time, ..) = flush_without(3, three.clone(), mood).await;
        assert!(time < Duration::from_secs(1), "two copies are left: {time:?}");
    }
    let (_, cluster, ino) = flush_without(3, three, Mood::Down).await;
    cluster.storage.set_mood(1, Mood::Down);
    cluster.write_all(ino, 0, &[6; 500_000]).await;
    let flush = cluster.data.flush(ino);
    // One copy is fewer than the two that the volume asks for: it waits, and goes on when there are two.
    assert!(tokio::time::timeout(Duration::from_secs(60), flush).await.is_err());
    cluster.storage.set_mood(1, Mood::Well);
    cluster.data.flush(ino).await.unwrap();
    assert!(cluster.read(ino, 0, 500_000).await.unwrap() == vec![6; 500_000]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_with_an_old_map_asks_again() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    cluster.write_all(ino, 0, &[1; 400_000]).await;
    cluster.data.flush(ino).await.unwrap();
    let old = cluster.storage.chunks();
    let arena = Arena::create(ArenaConfig::default()).unwrap();
    let reader = client(&cluster.metadata, &arena);
    let known = cluster.metadata.attributes(ino);
    assert_eq!(reader.read(ino, 5, 5, &known).await.unwrap().concat(), [1; 5]);
    cluster.data.shared.writers.retire_all();
    cluster.write_all(ino, 0, &[2; 400_000]).await;
    cluster.data.flush(ino).await.unwrap();
    for chunk in old {
        cluster.storage.trim(chunk);
    }
    assert_eq!(reader.read(ino, 5, 5, &known).await.unwrap().concat(), [2; 5]);
}

#[tokio::test(start_paused = true)]
async fn a_sealed_chunk_costs_a_rewrite_and_no_data() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    cluster.metadata.inline.store(false, Ordering::Relaxed);
    for round in 0..20u8 {
        cluster.write_all(ino, u64::from(round) * 1000, &[round + 1; 1000]).await;
        for chunk in cluster.storage.chunks() {
            cluster.metadata.internal(Op::from(ops::SealChunk { chunk }));
        }
        cluster.data.flush(ino).await.unwrap();
    }
    let content = cluster.metadata.durable_content(ino);
    assert!((0..20).all(|round| content[round * 1000..][..1000] == [round as u8 + 1; 1000]));
}

#[tokio::test(start_paused = true)]
async fn full_disks_are_waited_for_a_while_then_told() {
    let cluster = cluster();
    cluster.metadata.inline.store(false, Ordering::Relaxed);
    let ino = cluster.metadata.create("a").ino;
    cluster.write_all(ino, 0, &[1; 5000]).await;
    cluster.data.flush(ino).await.unwrap();
    let mut mark = cluster.data.error_mark(ino);
    let all = |mood: Mood| (1..=4).for_each(|server| cluster.storage.set_mood(server, mood));

    // Something is deleted while it waits: nobody notices.
    all(Mood::Full);
    cluster.write_all(ino, 5000, &[2; 5000]).await;
    let room = async {
        tokio::time::sleep(FULL_WAIT_MAX / 2).await;
        all(Mood::Well);
    };
    let (flushed, ()) = tokio::join!(cluster.data.flush(ino), room);
    flushed.unwrap();
    assert_eq!(cluster.data.take_error(ino, &mut mark), Ok(()));

    // They stay full: it is told once, and only what was not committed is gone. The second time nobody waits.
    all(Mood::Full);
    for longest in [2 * FULL_WAIT_MAX, FULL_WAIT_MAX / 2] {
        cluster.write_all(ino, 10_000, &[3; 5000]).await;
        let began = tokio::time::Instant::now();
        assert_eq!(cluster.data.flush(ino).await, Err(FsError::NoSpace.into()));
        assert!(began.elapsed() <= longest, "{:?}", began.elapsed());
        assert_eq!(cluster.data.take_error(ino, &mut mark), Err(FsError::NoSpace.into()));
        assert_eq!(cluster.data.take_error(ino, &mut mark), Ok(()));
    }
    assert_eq!(cluster.metadata.durable_content(ino), [vec![1; 5000], vec![2; 5000]].concat());

    all(Mood::Well);
    cluster.write_all(ino, 10_000, &[4; 5000]).await;
    cluster.data.flush(ino).await.unwrap();
    assert_eq!(cluster.metadata.durable_content(ino).len(), 15_000);
    cluster.data.close().await.unwrap();
    assert_eq!(cluster.volume().bytes_reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_told_once_to_each_handle() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    cluster.write_all(ino, 0, &[1; 100]).await;
    cluster.data.flush(ino).await.unwrap();
    let mut first = cluster.data.error_mark(ino);
    let mut second = ErrorMark::default();
    cluster.write_all(ino, 0, &[2; 500]).await;
    cluster.metadata.new_session();
    cluster.data.on_session_lost();
    for mark in [&mut first, &mut second] {
        assert_eq!(cluster.data.take_error(ino, mark), Err(ClientError::SessionLost));
        assert_eq!(cluster.data.take_error(ino, mark), Ok(()));
    }
    assert_eq!(cluster.read(ino, 0, 1000).await.unwrap(), [1; 100]);
    cluster.write_all(ino, 50, &[3; 600_000]).await;
    cluster.data.flush(ino).await.unwrap();
    assert_eq!(cluster.metadata.durable_content(ino).len(), 600_050);
    assert_eq!(cluster.arena.usage().bytes_used, 0);
}

#[tokio::test(start_paused = true)]
async fn a_successor_commits_what_a_dead_process_had_accepted() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    let mut model = Vec::new();
    let mut random = Random(11);
    for _ in 0..200 {
        let (offset, length) = (random.below(60_000), random.below(5000) + 1);
        let data = random.bytes(length as usize);
        cluster.write_all(ino, offset, &data).await;
        put(&mut model, offset, &data);
        if random.below(50) == 0 {
            cluster.data.flush(ino).await.unwrap();
        }
    }
    // Dead: nothing of it runs any more, the memory stays.
    let fd = cluster.arena.fd().try_clone_to_owned().unwrap();
    let adopted = Arena::adopt(fd).unwrap();
    assert_eq!(adopted.damaged, 0);
    assert!(!adopted.data.is_empty());
    let successor = client(&cluster.metadata, &adopted.arena);
    successor.adopt(adopted.data, 0).await.unwrap();
    let known = cluster.metadata.attributes(ino);
    assert!(successor.read(ino, 0, 100_000, &known).await.unwrap().concat() == model);
    successor.flush_all().await.unwrap();
    assert!(cluster.metadata.durable_content(ino) == model);
    std::mem::forget(cluster.data);
}

#[tokio::test(start_paused = true)]
async fn what_a_successor_commits_takes_away_what_the_write_did() {
    const SETID: u32 = 0o6755;
    let cluster = cluster();
    let stranger = KillPriv::SETID | KillPriv::CAPABILITY;
    let files = ["by root", "by a stranger", "by both"].map(|name| cluster.metadata.create(name).ino);
    let mode = |ino| cluster.metadata.attributes(ino).mode & 0o7777;
    for (ino, writes) in files.into_iter().zip([
        &[KillPriv::CAPABILITY][..],
        &[stranger],
        // The second one goes on where the first one ended, in the same block.
        &[KillPriv::NONE, stranger],
    ]) {
        let changes = AttributeChanges { mode: Some(SETID), ..AttributeChanges::default() };
        cluster.metadata.mutate(ops::SetAttr { ino, changes }).await.unwrap();
        for (at, kill_priv) in writes.iter().enumerate() {
            let (known, data) = (cluster.attributes(ino), Bytes::from_static(b"x"));
            cluster.data.write(ino, at as u64, data, &known, *kill_priv).await.unwrap();
        }
        assert_eq!(mode(ino), SETID, "nothing is committed yet");
    }
    // One that was written by a program that didn't note what is lost.
    let unknown = cluster.metadata.create("unknown").ino;
    let changes = AttributeChanges { mode: Some(SETID), ..AttributeChanges::default() };
    cluster.metadata.mutate(ops::SetAttr { ino: unknown, changes }).await.unwrap();
    let block = cluster.arena.store(unknown, 0, b"x").unwrap();
    let adopted = Arena::adopt(cluster.arena.fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!((adopted.data.len(), adopted.damaged), (4, 0));
    let successor = client(&cluster.metadata, &adopted.arena);
    successor.adopt(adopted.data, 0).await.unwrap();
    successor.flush_all().await.unwrap();
    assert_eq!(files.map(mode), [SETID, 0o755, 0o755]);
    assert_eq!(mode(unknown), 0o755);
    std::mem::forget((cluster.data, block));
}

#[tokio::test(start_paused = true)]
async fn appends_of_two_clients_don_t_overwrite_each_other() {
    let cluster = cluster();
    let ino = cluster.metadata.create("log").ino;
    let arena = Arena::create(ArenaConfig::default()).unwrap();
    let other = client(&cluster.metadata, &arena);
    let mut expected: u64 = 0;
    let mut random = Random(7);
    for round in 0..40u64 {
        let length = if round % 5 == 0 { 700_000 } else { random.below(3000) + 1 };
        let data = Bytes::from(vec![round as u8 + 1; length as usize]);
        let by = if round % 2 == 0 { &cluster.data } else { &other };
        let (offset, attributes) = by.append(ino, data, KillPriv::NONE).await.unwrap();
        assert_eq!(offset, expected);
        expected += length;
        assert_eq!(attributes.size, expected);
        let tail = by.read(ino, offset, length as u32, &attributes).await.unwrap().concat();
        assert!(tail == vec![round as u8 + 1; length as usize]);
    }
    cluster.data.close().await.unwrap();
    other.close().await.unwrap();
    assert_eq!(cluster.volume().bytes_reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_read_ahead_and_within_its_budget() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    let data = Random(9).bytes(6 << 20);
    cluster.write_all(ino, 0, &data).await;
    cluster.data.flush(ino).await.unwrap();
    *cluster.storage.delay.lock() = Duration::from_millis(10);
    let arena = Arena::create(ArenaConfig::default()).unwrap();
    let reader = client(&cluster.metadata, &arena);
    let known = cluster.metadata.attributes(ino);
    let begun = tokio::time::Instant::now();
    let mut read = Vec::new();
    while read.len() < data.len() {
        read.extend(reader.read(ino, read.len() as u64, 128 << 10, &known).await.unwrap().concat());
    }
    assert!(read == data);
    // 48 requests of 10 ms one after the other would be 480 ms.
    assert!(begun.elapsed() < Duration::from_millis(240), "{:?}", begun.elapsed());
    tokio::time::sleep(Duration::from_secs(30)).await;
    let all = (reader.shared.config.readahead_bytes_max / super::BUDGET_UNIT_BYTES) as usize;
    assert_eq!(reader.shared.readahead_budget.available_permits(), all);
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_before_a_commit_does_not_hide_it() {
    let cluster = cluster();
    let attributes = cluster.metadata.create("a");
    let ino = attributes.ino;
    let stale = Extents::of_new_file(attributes);
    cluster.write_all(ino, 0, &[1; 50_000]).await;
    cluster.data.flush(ino).await.unwrap();
    cluster.data.install_map(ino, &stale);
    assert_eq!(cluster.read(ino, 0, 10).await.unwrap(), [1; 10]);
}

/// Random operations on two files, compared with byte vectors, while servers fail and chunks are sealed.
async fn agrees_with_a_model(seed: u64) {
    let mut random = Random(seed);
    let cluster = cluster();
    let inos = [cluster.metadata.create("a").ino, cluster.metadata.create("b").ino];
    let mut models = [Vec::new(), Vec::new()];
    if seed.is_multiple_of(2) {
        *cluster.storage.delay.lock() = Duration::from_millis(3);
        *cluster.metadata.delay.lock() = Duration::from_millis(1);
    }
    cluster.metadata.inline.store(!seed.is_multiple_of(3), Ordering::Relaxed);
    for step in 0..400 {
        let which = random.below(2) as usize;
        let (ino, model) = (inos[which], &mut models[which]);
        let limit = if seed.is_multiple_of(5) { 5 << 20 } else { 100_000 };
        match random.below(24) {
            0..=9 => {
                let (offset, most) = (random.below(limit), [10, 5000, 200_000][random.below(3) as usize]);
                let length = random.below(most) as usize + 1;
                let data = random.bytes(length);
                cluster.write_all(ino, offset, &data).await;
                put(model, offset, &data);
            }
            10..=11 => {
                // A stream.
                let data = random.bytes(300_000);
                for part in data.chunks(4096) {
                    let offset = model.len() as u64;
                    cluster.write_all(ino, offset, part).await;
                    model.extend_from_slice(part);
                }
                if model.len() > 6 << 20 {
                    cluster.truncate(ino, 1000).await;
                    model.truncate(1000);
                }
            }
            12..=17 => {
                let (offset, size) = (random.below(limit + 1000), random.below(200_000) + 1);
                let end = model.len().min((offset + size) as usize);
                let expected = model.get(offset as usize..end).unwrap_or_default();
                let found = cluster.read(ino, offset, size as u32).await.unwrap();
                assert!(found == expected, "seed {seed}, step {step}: {size} bytes at {offset} differ");
            }
            18 => cluster.data.flush(ino).await.unwrap(),
            19 => {
                let size = random.below(limit);
                cluster.truncate(ino, size).await;
                model.resize(size as usize, 0);
            }
            20 => {
                let data = random.bytes(3000);
                let (offset, _) =
                    cluster.data.append(ino, data.clone().into(), KillPriv::NONE).await.unwrap();
                assert_eq!(offset, model.len() as u64, "seed {seed}, step {step}");
                model.extend_from_slice(&data);
            }
            21 => {
                for server in 1..=4 {
                    cluster.storage.set_mood(server, Mood::Well);
                }
                let mood = [Mood::Well, Mood::Down, Mood::Silent, Mood::Corrupt][random.below(4) as usize];
                cluster.storage.set_mood(random.below(4) + 1, mood);
            }
            22 => {
                if let Some(chunk) = cluster.storage.chunks().last() {
                    cluster.metadata.internal(Op::from(ops::SealChunk { chunk: *chunk }));
                }
            }
            _ => match random.below(3) {
                0 => cluster.data.invalidate(ino),
                1 => cluster.data.forget(ino),
                _ => tokio::time::sleep(Duration::from_millis(random.below(3000))).await,
            },
        }
        assert_eq!(cluster.attributes(ino).size, models[which].len() as u64, "seed {seed}, step {step}");
    }
    for server in 1..=4 {
        cluster.storage.set_mood(server, Mood::Well);
    }
    cluster.data.close().await.unwrap();
    cluster.storage.cut_power();
    for (ino, model) in inos.iter().zip(&models) {
        assert!(cluster.metadata.durable_content(*ino) == *model, "seed {seed}: contents differ");
    }
    assert_eq!(cluster.arena.usage().bytes_used, 0, "seed {seed}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.volume().bytes_reserved, 0, "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn random_operations_agree_with_a_model() {
    for seed in 0..24 {
        agrees_with_a_model(seed).await;
    }
}

/// Whatever was committed of a file at any moment is what it was after some number of its writes.
async fn commits_are_prefixes(seed: u64) {
    let mut random = Random(seed);
    let cluster = cluster();
    cluster.metadata.keep_history.store(true, Ordering::Relaxed);
    cluster.metadata.inline.store(seed.is_multiple_of(2), Ordering::Relaxed);
    *cluster.storage.delay.lock() = Duration::from_millis(seed % 4);
    *cluster.metadata.delay.lock() = Duration::from_millis(seed % 3);
    let ino = cluster.metadata.create("a").ino;
    let data = Arc::new(cluster.data);
    let mut model = Vec::new();
    let mut states = vec![Vec::new()];
    let mut flushes = Vec::new();
    for step in 0..300u64 {
        let (offset, length) = (random.below(30_000), random.below(3000) + 1);
        let bytes = random.bytes(length as usize);
        let attributes = cluster.metadata.attributes(ino);
        data.write(ino, offset, bytes.clone().into(), &attributes, KillPriv::NONE).await.unwrap();
        put(&mut model, offset, &bytes);
        states.push(model.clone());
        if random.below(6) == 0 {
            let data = Arc::clone(&data);
            flushes.push(tokio::spawn(async move { data.flush(ino).await }));
        }
        if step % 40 == seed % 40 {
            cluster.storage.set_mood(step / 40 % 4 + 1, Mood::Silent);
            cluster.storage.set_mood((step / 40 + 3) % 4 + 1, Mood::Well);
        }
        tokio::time::sleep(Duration::from_millis(random.below(3))).await;
    }
    for flush in flushes {
        flush.await.unwrap().unwrap();
    }
    data.flush(ino).await.unwrap();
    let mut at = 0;
    let history = cluster.metadata.history.lock();
    assert!(history.len() > 4, "{} commits", history.len());
    for (commit, (_, content)) in history.iter().enumerate() {
        let found = states[at..].iter().position(|state| state == content);
        at += found.unwrap_or_else(|| panic!("seed {seed}: commit {commit} is no prefix of the writes"));
    }
    assert_eq!(at, states.len() - 1);
}

#[tokio::test(start_paused = true)]
async fn every_commit_is_a_prefix_of_what_was_written() {
    for seed in 0..12 {
        commits_are_prefixes(seed).await;
    }
}

/// Real threads: each task has ranges of its own of one file, so that what it reads must be what it wrote last.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_of_one_file_on_many_threads_find_their_own_bytes() {
    const TASKS: u64 = 6;
    const STRIPE: u64 = 7000;
    let cluster = Arc::new(cluster());
    let ino = cluster.metadata.create("a").ino;
    let tasks = (0..TASKS).map(|task| {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move {
            let mut random = Random(task);
            let mut stripes = vec![vec![0; STRIPE as usize]; 60];
            for _ in 0..400 {
                let row = random.below(60);
                let offset = (row * TASKS + task) * STRIPE;
                let inside = random.below(STRIPE - 1);
                match random.below(8) {
                    0 => cluster.data.flush(ino).await.unwrap(),
                    1..=3 => {
                        let mut found = cluster.read(ino, offset, STRIPE as u32).await.unwrap();
                        // What lies behind the end of the file was never written.
                        found.resize(STRIPE as usize, 0);
                        assert!(found == stripes[row as usize], "task {task}, row {row}");
                    }
                    _ => {
                        let length = random.below(STRIPE - inside) as usize + 1;
                        let data = random.bytes(length);
                        cluster.write_all(ino, offset + inside, &data).await;
                        stripes[row as usize][inside as usize..inside as usize + length]
                            .copy_from_slice(&data);
                    }
                }
            }
            stripes
        })
    });
    let stripes = futures::future::join_all(tasks).await;
    cluster.data.flush(ino).await.unwrap();
    let content = cluster.metadata.durable_content(ino);
    for (task, stripes) in stripes.into_iter().enumerate() {
        for (row, stripe) in stripes.unwrap().iter().enumerate() {
            let at = (row * TASKS as usize + task) * STRIPE as usize;
            let end = (at + STRIPE as usize).min(content.len());
            assert!(
                content.get(at..end).unwrap_or_default() == &stripe[..end.saturating_sub(at)],
                "task {task}, row {row}"
            );
        }
    }
    assert_eq!(cluster.arena.usage().bytes_used, 0);
}
