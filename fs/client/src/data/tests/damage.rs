//! Bytes that change where nobody writes them: on a disk, on the way, in memory.

use std::os::unix::fs::FileExt;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_bad_replica_is_passed_over_and_three_are_an_error() {
    let cluster = cluster_of(3, VolumeConfig { chunk_bytes: 8 << 20, ..VolumeConfig::default() });
    let ino = cluster.metadata.create("a").ino;
    let data = Random(3).bytes(300_000);
    cluster.write_all(ino, 0, &data).await;
    cluster.data.flush(ino).await.unwrap();
    for good in 1..=3 {
        for server in 1..=3 {
            cluster.storage.set_mood(server, if server == good { Mood::Well } else { Mood::Corrupt });
        }
        for at in (0..300_000).step_by(50_000) {
            assert!(cluster.read(ino, at, 1000).await.unwrap() == data[at as usize..at as usize + 1000]);
        }
    }
    let bad = cluster.data.counters().bad_replicas;
    assert!(bad > 0);
    // Each was told to look itself, so that it reports what it has.
    assert_eq!(cluster.storage.found_corrupt.load(Ordering::Relaxed), bad);
    cluster.storage.set_mood(3, Mood::Corrupt);
    assert_eq!(cluster.read(ino, 5000, 10).await, Err(FsError::Io.into()));
    cluster.storage.set_mood(3, Mood::Silent);
    cluster.storage.set_mood(1, Mood::Well);
    assert_eq!(cluster.read(ino, 5000, 10).await.unwrap(), data[5000..5010]);
}

#[tokio::test(start_paused = true)]
async fn damage_on_the_way_costs_a_second_reply() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    let data = Random(3).bytes(300_000);
    cluster.write_all(ino, 0, &data).await;
    cluster.data.flush(ino).await.unwrap();
    for server in 1..=3 {
        cluster.storage.set_mood(server, Mood::CorruptOnTheWay);
    }
    let before = cluster.storage.reads.load(Ordering::Relaxed);
    assert!(cluster.read(ino, 70_000, 1000).await.unwrap() == data[70_000..71_000]);
    assert_eq!(cluster.storage.reads.load(Ordering::Relaxed), before + 2);
    assert_eq!(cluster.data.counters().bad_replicas, 0);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_changed_in_memory_are_an_error_and_never_committed() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    let data = Random(4).bytes(300_000);
    cluster.write_all(ino, 0, &data).await;
    let memory = std::fs::File::from(cluster.arena.fd().try_clone_to_owned().unwrap());
    let mut all = vec![0; memory.metadata().unwrap().len() as usize];
    memory.read_exact_at(&mut all, 0).unwrap();
    let at = all.windows(64).position(|window| window == &data[123_456..123_520]).unwrap();
    memory.write_all_at(&[data[123_456] ^ 4], at as u64).unwrap();
    let flushed = tokio::time::timeout(Duration::from_secs(60), cluster.data.flush(ino)).await;
    assert_eq!(flushed.expect("it isn't tried for ever"), Err(FsError::Io.into()));
    assert_eq!(cluster.metadata.attributes(ino).size, 0);
}
