//! What is committed after its file was closed, and after attributes were set.

use atoll_core::attributes::{TimeChange, Timestamp};

use super::*;

const SETID: u32 = 0o6755;
/// More than what a file may have that is small enough for the commit itself.
const BYTES: usize = 100_000;

fn to(seconds: i64) -> AttributeChanges {
    let time = Timestamp { seconds, nanos: 5 };
    AttributeChanges { mtime: Some(TimeChange::To(time)), ..AttributeChanges::default() }
}

fn mode(mode: u32) -> AttributeChanges {
    AttributeChanges { mode: Some(mode), ..AttributeChanges::default() }
}

impl Cluster {
    async fn change(
        &self,
        ino: InodeId,
        changes: AttributeChanges,
    ) -> Option<Result<Attributes, ClientError>> {
        let change = |kill_priv| {
            let changes = AttributeChanges { kill_priv, ..changes.clone() };
            self.metadata.mutate(ops::SetAttr { ino, changes })
        };
        let changed = self.data.change_before_commit(ino, changes.mtime, change).await?;
        Some(changed.map(|attributes| {
            self.data.after_change(ino, &attributes);
            *attributes
        }))
    }

    async fn write_as(&self, ino: InodeId, offset: u64, data: &[u8], kill_priv: KillPriv) {
        let known = self.attributes(ino);
        let data = Bytes::copy_from_slice(data);
        self.data.write(ino, offset, data, &known, kill_priv).await.unwrap();
    }

    /// What is committed is what was shown.
    async fn settles_as_shown(&self, ino: InodeId) -> Attributes {
        let shown = self.attributes(ino);
        self.data.flush(ino).await.unwrap();
        let settled = self.attributes(ino);
        let of = |attributes: &Attributes| {
            (attributes.mtime, attributes.ctime, attributes.mode, attributes.size, attributes.uid)
        };
        assert_eq!(of(&settled), of(&shown));
        settled
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_set_before_data_is_committed_stays() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    let data = Random(3).bytes(BYTES);
    cluster.write_as(ino, 0, &data, KillPriv::ALL).await;
    for changes in [to(7), mode(SETID), to(9)] {
        cluster.change(ino, changes).await.unwrap().unwrap();
    }
    assert!(cluster.data.has_dirty(ino));
    let settled = cluster.settles_as_shown(ino).await;
    assert_eq!((settled.mtime.seconds, settled.mode & 0o7777), (9, SETID));
    assert!(cluster.metadata.durable_content(ino) == data);
    // What is written after that counts again.
    cluster.write_as(ino, 10, &data, KillPriv::SETID).await;
    let settled = cluster.settles_as_shown(ino).await;
    assert!(settled.mtime.seconds != 9 && settled.mode & 0o7777 == 0o755);
}

#[tokio::test(start_paused = true)]
async fn what_is_written_after_attributes_were_set_has_its_own_time() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    cluster.write_as(ino, 0, &Random(3).bytes(BYTES), KillPriv::NONE).await;
    cluster.change(ino, to(7)).await.unwrap().unwrap();
    cluster.write_as(ino, 0, b"more", KillPriv::NONE).await;
    let settled = cluster.settles_as_shown(ino).await;
    assert!(settled.mtime.seconds != 7);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_refused_leaves_what_the_commit_sets() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    cluster.metadata.mutate(ops::SetAttr { ino, changes: mode(SETID) }).await.unwrap();
    cluster.write_as(ino, 0, &Random(3).bytes(BYTES), KillPriv::SETID).await;
    let before = cluster.attributes(ino);
    let refused = cluster
        .data
        .change_before_commit(ino, to(7).mtime, |_| async { Err(FsError::NotPermitted.into()) })
        .await;
    assert_eq!(refused, Some(Err(FsError::NotPermitted.into())));
    assert_eq!(cluster.attributes(ino).mtime, before.mtime);
    let settled = cluster.settles_as_shown(ino).await;
    assert_eq!((settled.mtime, settled.mode & 0o7777), (before.mtime, 0o755));
    // In the future, ctime would be as late.
    cluster.write_as(ino, 0, b"more", KillPriv::NONE).await;
    assert_eq!(cluster.change(ino, to(1 << 40)).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_successor_leaves_what_was_set_before_the_data_was_committed() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    let data = Random(3).bytes(BYTES);
    cluster.write_as(ino, 0, &data, KillPriv::ALL).await;
    cluster.change(ino, mode(SETID)).await.unwrap().unwrap();
    cluster.change(ino, to(7)).await.unwrap().unwrap();
    let other = cluster.metadata.create("b").ino;
    cluster.write_as(other, 0, &data, KillPriv::NONE).await;
    let written = cluster.attributes(other).mtime;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let adopted = Arena::adopt(cluster.arena.fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(adopted.damaged, 0);
    let successor = client(&cluster.metadata, &adopted.arena);
    successor.adopt(adopted.data, 0).await.unwrap();
    successor.flush_all().await.unwrap();
    let settled = cluster.metadata.attributes(ino);
    assert_eq!((settled.mtime.seconds, settled.mode & 0o7777), (7, SETID));
    assert_eq!(
        cluster.metadata.attributes(other).mtime,
        written,
        "the time of the write, not of its adoption"
    );
    assert!(cluster.metadata.durable_content(ino) == data);
    std::mem::forget(cluster.data);
}

#[tokio::test(start_paused = true)]
async fn closed_files_are_committed_soon_and_small_ones_at_once() {
    let cluster = cluster();
    let small = cluster.metadata.create("small").ino;
    cluster.write_as(small, 0, b"few", KillPriv::NONE).await;
    assert!(!cluster.data.close_behind(small), "the caller flushes it");
    let files: Vec<InodeId> =
        (0..200).map(|number| cluster.metadata.create(&format!("f{number}")).ino).collect();
    let data = Random(3).bytes(20_000);
    for ino in &files {
        cluster.write_as(*ino, 0, &data, KillPriv::NONE).await;
        assert!(cluster.data.close_behind(*ino));
    }
    tokio::time::sleep(Duration::from_millis(900)).await;
    for ino in &files {
        assert!(!cluster.data.has_dirty(*ino) && cluster.metadata.durable_content(*ino) == data);
    }
    assert!(cluster.data.has_dirty(small));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_of_a_file_that_is_removed_before() {
    let cluster = cluster();
    let ino = cluster.metadata.create("a").ino;
    cluster.write_as(ino, 0, &Random(3).bytes(BYTES), KillPriv::NONE).await;
    assert!(cluster.data.close_behind(ino));
    cluster.data.removed(ino);
    assert!(!cluster.data.has_dirty(ino));
    assert_eq!(cluster.arena.usage().bytes_used, 0);
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(cluster.data.counters().chunk_bytes_written, 0);
    cluster.data.return_reservation().await;
    assert_eq!(cluster.volume().bytes_reserved, 0, "what was reserved for it came back");
}
