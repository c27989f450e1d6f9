//! Quota: reservations, and what is refused when the volume or its disks are full.

use atoll_core::commands::{Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::records::VolumeConfig;
use atoll_metadata::MetadataServer;
use atoll_proto::admin::ResizeVolume;
use atoll_proto::metadata::{MetadataError, StatusRequest};
use atoll_proto::{Role, queries};

use crate::client::{Client, config, connect, inline, unlink, write};

const MIB: u64 = 1 << 20;

async fn small_volume(
    dir: &std::path::Path,
    change: impl FnOnce(&mut VolumeConfig),
) -> atoll_metadata::RunningMetadata {
    let server = MetadataServer::start(config(dir), &mut Default::default()).await.unwrap();
    let mut volume = VolumeConfig { bytes_total: 8 * MIB, ..crate::client::volume() };
    change(&mut volume);
    server.bootstrap(volume).await.unwrap();
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_waits_until_others_give_back_what_they_do_not_use() {
    let dir = tempfile::tempdir().unwrap();
    let server = small_volume(dir.path(), |_| {}).await;
    let (mut first, mut second) = (Client::open(&server).await, Client::open(&server).await);
    let all = ops::Reserve { bytes: 8 * MIB, bytes_min: 8 * MIB };
    assert_eq!(first.run(all).await, Outcome::Reserved(8 * MIB));
    let asking =
        tokio::spawn(async move { (second.run(ops::Reserve { bytes: MIB, bytes_min: MIB }).await, second) });
    crate::client::eventually("the first is asked to give back", async || {
        first.beat().await.unwrap().return_reservation
    })
    .await;
    assert_eq!(first.run(ops::Unreserve { bytes: 4 * MIB }).await, Outcome::Done);
    let (outcome, _second) = asking.await.unwrap();
    assert_eq!(outcome, Outcome::Reserved(MIB));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_refuses_and_deleting_makes_room_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = small_volume(dir.path(), |_| {}).await;
    let mut client = Client::open(&server).await;
    let mut full = 0;
    for number in 0.. {
        let ino = client.create(&format!("f{number}")).await;
        match client.run(write(ino, 0, 512 << 10, inline(vec![1; 512 << 10]))).await {
            Outcome::Inode(_) => full += 1,
            Outcome::Refused(error) => {
                assert_eq!(error, FsError::NoSpace);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(full, 16);
    client.run(unlink("f0")).await;
    // What is unlinked is freed by the background; a reservation waits for it.
    let outcome = client.run(ops::Reserve { bytes: 512 << 10, bytes_min: 512 << 10 }).await;
    assert_eq!(outcome, Outcome::Reserved(512 << 10));
    let volume = client.ask(queries::StatFs).await;
    assert_eq!(volume.bytes_free(), 0);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_budget_nothing_more_is_kept_inline() {
    let dir = tempfile::tempdir().unwrap();
    let server = small_volume(dir.path(), |volume| volume.inline_budget_bytes = 64 << 10).await;
    let mut client = Client::open(&server).await;
    assert!(client.beat().await.unwrap().inline_allowed);
    for number in 0..8 {
        let ino = client.create(&format!("f{number}")).await;
        let outcome = client.run(write(ino, 0, 8 << 10, inline(vec![1; 8 << 10]))).await;
        assert!(matches!(outcome, Outcome::Inode(_)));
    }
    assert!(!client.beat().await.unwrap().inline_allowed);
    let ino = client.create("one more").await;
    let command = client.command(write(ino, 0, 1, inline(vec![1])));
    let refused = Outcome::Refused(FsError::InlineBudget);
    assert_eq!(client.send(&command).await.unwrap(), refused);
    assert_eq!(client.send(&command).await.unwrap(), refused);
    for name in ["f0", "f1"] {
        assert!(matches!(client.run(unlink(name)).await, Outcome::Inode(_)));
    }
    crate::client::eventually("there is room", async || client.beat().await.unwrap().inline_allowed).await;
    assert!(matches!(client.run(write(ino, 0, 1, inline(vec![1]))).await, Outcome::Inode(_)));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_that_grows_can_be_written_at_once_and_never_gets_smaller_than_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let server = small_volume(dir.path(), |_| {}).await;
    let mut client = Client::open(&server).await;
    for number in 0..16 {
        let ino = client.create(&format!("f{number}")).await;
        let outcome = client.run(write(ino, 0, 512 << 10, inline(vec![1; 512 << 10]))).await;
        assert!(matches!(outcome, Outcome::Inode(_)), "{outcome:?}");
    }
    let ino = client.create("more").await;
    let more = || write(ino, 0, 512 << 10, inline(vec![1; 512 << 10]));
    assert_eq!(client.run(more()).await, Outcome::Refused(FsError::NoSpace));

    let admin = connect(server.address(), Role::Admin).await;
    let size = |bytes_total| ResizeVolume { bytes_total, inodes_total: 5000, inline_budget_bytes: 99 * MIB };
    let status = async || admin.call::<StatusRequest>(&StatusRequest, ()).await.unwrap().0;
    for _ in 0..2 {
        admin.call::<ResizeVolume>(&size(9 * MIB), ()).await.unwrap();
    }
    let grown = status().await;
    assert_eq!((grown.volume.bytes_total, grown.volume.inodes_total), (9 * MIB, 5000));
    assert_eq!(grown.inline_budget_bytes, 99 * MIB);
    assert!(matches!(client.run(more()).await, Outcome::Inode(_)));
    assert_eq!(client.ask(queries::StatFs).await.bytes_total, 9 * MIB);

    for wrong in [size(8 * MIB), size(9 * MIB + 1), ResizeVolume { inodes_total: 3, ..size(9 * MIB) }] {
        let refused = crate::client::refusal(&admin.call::<ResizeVolume>(&wrong, ()).await.unwrap_err());
        assert!(matches!(refused, MetadataError::Refused(_)), "{refused:?}");
    }
    assert_eq!(status().await.volume.bytes_total, 9 * MIB);
    // It is no client's to change.
    let error = client.call::<ResizeVolume>(&size(64 * MIB)).await.unwrap_err();
    assert!(error.to_string().contains("isn't allowed"), "{error}");
    server.shutdown().await;
}

/// A small filesystem in memory, unmounted in the end.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(bytes: u64) -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(mounted.success(), "this test mounts a tmpfs and has to run as root");
        Disk(dir)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_grows_and_deleting_goes_on() {
    let disk = Disk::mount(256 * MIB);
    let dir = disk.0.path().join("metadata");
    let mut config = config(&dir);
    config.ballast_bytes = 32 * MIB;
    let server = MetadataServer::start(config.clone(), &mut Default::default()).await.unwrap();
    let volume = VolumeConfig { bytes_total: 1 << 40, ..crate::client::volume() };
    server.bootstrap(volume).await.unwrap();
    let mut client = Client::open(&server).await;
    // Bytes that don't compress.
    let mut content = vec![0_u8; 256 << 10];
    let mut state = 1_u64;
    let mut files = 0;
    let refused = loop {
        let name = format!("f{files}");
        let ino = match client.run(crate::client::create(&name)).await {
            Outcome::Inode(attributes) => attributes.ino,
            Outcome::Refused(error) => break error,
            other => panic!("{other:?}"),
        };
        files += 1;
        for byte in &mut content {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *byte = (state >> 56) as u8;
        }
        match client.run(write(ino, 0, content.len() as u64, inline(content.clone()))).await {
            Outcome::Inode(_) => {}
            Outcome::Refused(error) => break error,
            other => panic!("{other:?}"),
        }
        assert!(files < 2000, "the disk is never full");
    };
    assert_eq!(refused, FsError::NoSpace);
    assert!(files > 20, "{files}");
    assert_eq!(server.health(), Ok(()));
    let problems = server.status().unwrap().problems;
    assert!(problems.iter().any(|problem| problem.contains("full")), "{problems:?}");
    for number in 0..files {
        assert!(matches!(client.run(unlink(&format!("f{number}"))).await, Outcome::Inode(_)));
    }
    crate::client::eventually("all is freed", async || server.status().unwrap().orphans == 0).await;
    // It can be stopped and started as it is.
    server.shutdown().await;
    let server = MetadataServer::start(config, &mut Default::default()).await.unwrap();
    server.bootstrap(crate::client::volume()).await.unwrap();
    assert_eq!(server.status().unwrap().volume.inodes_used, 1);
    server.shutdown().await;
}
