//! Sessions: how they end, and what is kept while they hold it open.

use std::time::Duration;

use atoll_core::commands::{Op, Outcome};
use atoll_core::error::FsError;
use atoll_core::ids::SlotId;
use atoll_proto::metadata::{CloseNotice, MetadataError, Query, ReclaimRequest};

use crate::client::{Client, config, create, eventually, inline, start, unlink, write};

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_file_is_kept_while_it_is_open_and_goes_when_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut writer, reader) = (Client::open(&server).await, Client::open(&server).await);
    let ino = writer.create("a").await;
    writer.run(write(ino, 0, 3, inline(b"abc".to_vec()))).await;
    reader.ask(Query::Open { ino, segments: 1 }).await;
    writer.run(unlink("a")).await;
    writer.create("b").await;
    // Something else that is unlinked goes, so the worker has been there.
    writer.run(unlink("b")).await;
    eventually("only the open file is left", async || server.status().unwrap().orphans == 1).await;
    reader.ask(Query::Inode { ino }).await;
    let notice = CloseNotice { session: reader.session, closed: vec![ino] };
    reader.connection.send::<CloseNotice>(&notice, ()).unwrap();
    eventually("the closed file is freed", async || server.status().unwrap().orphans == 0).await;
    assert_eq!(
        reader.try_ask(Query::Open { ino, segments: 1 }).await,
        Err(MetadataError::Fs(FsError::Stale))
    );
    let volume = server.status().unwrap().volume;
    assert_eq!((volume.bytes_used, volume.inodes_used), (0, 1));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_nothing_is_freed_until_sessions_have_told_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut writer, mut reader) = (Client::open(&server).await, Client::open(&server).await);
    let ino = writer.create("a").await;
    reader.ask(Query::Open { ino, segments: 1 }).await;
    writer.run(unlink("a")).await;
    server.shutdown().await;

    let server = start(config(dir.path())).await;
    writer.reconnect(server.address()).await;
    reader.reconnect(server.address()).await;
    for client in [&writer, &reader] {
        assert!(client.beat().await.unwrap().reclaim);
    }
    let tell = |session, open| ReclaimRequest { session, open, more: false };
    writer.call::<ReclaimRequest>(&tell(writer.session, vec![])).await.unwrap();
    reader.ask(Query::Inode { ino }).await;
    reader.call::<ReclaimRequest>(&tell(reader.session, vec![ino])).await.unwrap();
    assert!(!reader.beat().await.unwrap().reclaim);
    writer.create("b").await;
    writer.run(unlink("b")).await;
    eventually("only the open file is left", async || server.status().unwrap().orphans == 1).await;
    reader.ask(Query::Inode { ino }).await;
    // The session's end is as good as a close.
    assert_eq!(reader.run(Op::CloseSession).await, Outcome::Done);
    eventually("the file is freed", async || server.status().unwrap().orphans == 0).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_session_is_ended_fenced_and_its_successor_learns_what_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.session_lifetime = Duration::from_secs(2);
    let server = start(config).await;
    let mut silent = Client::open(&server).await;
    let ino = silent.create("a").await;
    silent.ask(Query::Open { ino, segments: 1 }).await;
    let last = silent.command(unlink("a"));
    let outcome = silent.send(&last).await.unwrap();
    eventually("the session is ended", async || {
        server.status().unwrap().sessions.is_empty() && server.status().unwrap().orphans == 0
    })
    .await;
    assert_eq!(silent.beat().await, Err(MetadataError::Fs(FsError::SessionExpired)));
    assert_eq!(silent.run(create("late")).await, Outcome::Refused(FsError::SessionExpired));
    // What it did is still known: to itself, and to its successor.
    assert_eq!(silent.send(&last).await.unwrap(), outcome);
    let mut successor = Client::without_session(server.address()).await;
    let op = Op::OpenSession { client: "test".into(), incarnation: 2, supersedes: Some(silent.session) };
    let Outcome::Session(_, slots) = successor.run(op).await else { panic!() };
    assert_eq!(slots, [(SlotId(1), last.sequence, outcome)]);
    server.shutdown().await;
}
