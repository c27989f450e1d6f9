//! Sessions: how they end, and what is kept while they hold it open.

use std::time::Duration;

use atoll_core::commands::{Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::ids::SlotId;
use atoll_proto::metadata::{CloseNotice, MetadataError, ReclaimRequest};
use atoll_proto::queries;

use crate::client::{Client, config, create, eventually, inline, start, unlink, write};

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_file_is_kept_while_it_is_open_and_goes_when_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut writer, reader) = (Client::open(&server).await, Client::open(&server).await);
    let ino = writer.create("a").await;
    writer.run(write(ino, 0, 3, inline(b"abc".to_vec()))).await;
    reader.ask(queries::Open { ino, segments: 1 }).await;
    writer.run(unlink("a")).await;
    writer.create("b").await;
    // Something else that is unlinked goes, so the worker has been there.
    writer.run(unlink("b")).await;
    eventually("only the open file is left", async || server.status().unwrap().orphans == 1).await;
    reader.ask(queries::GetAttr { ino }).await;
    let notice = CloseNotice { session: reader.session, closed: vec![ino] };
    reader.connection.send::<CloseNotice>(&notice, ()).unwrap();
    eventually("the closed file is freed", async || server.status().unwrap().orphans == 0).await;
    assert_eq!(
        reader.try_ask(queries::Open { ino, segments: 1 }).await,
        Err(MetadataError::Fs(FsError::Stale))
    );
    let volume = server.status().unwrap().volume;
    assert_eq!((volume.bytes_used, volume.inodes_used), (0, 1));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_made_to_be_opened_is_held_before_anybody_can_free_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut maker, mut other) = (Client::open(&server).await, Client::open(&server).await);
    let mut held = Vec::new();
    for number in 0..200 {
        let (name, opens) = (format!("f{number}"), number % 2 == 0);
        let command = maker.command(create(&name));
        let made = maker.send_to_open(&command, opens).await.unwrap();
        other.run(unlink(&name)).await;
        // Sent again, as after a connection that broke, it changes nothing; but what is gone is said to be.
        let Outcome::Inode(attributes) = &made else { panic!("{made:?}") };
        if opens {
            assert_eq!(maker.send_to_open(&command, opens).await.unwrap(), made);
            held.push(attributes.ino);
        }
    }
    eventually("what wasn't opened is gone", async || server.status().unwrap().orphans == 100).await;
    for ino in &held {
        maker.ask(queries::Open { ino: *ino, segments: 0 }).await;
    }
    let notice = CloseNotice { session: maker.session, closed: held.clone() };
    maker.connection.send::<CloseNotice>(&notice, ()).unwrap();
    eventually("what was closed is gone", async || server.status().unwrap().orphans == 0).await;
    assert_eq!(
        maker.try_ask(queries::Open { ino: held[0], segments: 0 }).await,
        Err(MetadataError::Fs(FsError::Stale))
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_before_its_maker_was_answered_is_not_said_to_be_open() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut maker, mut other) = (Client::open(&server).await, Client::open(&server).await);
    // As if another leader had carried it out, and nothing was heard of that.
    let command = maker.command(create("a"));
    maker.send_to_open(&command, false).await.unwrap();
    other.run(unlink("a")).await;
    eventually("it is gone", async || server.status().unwrap().orphans == 0).await;
    assert_eq!(maker.send_to_open(&command, true).await.unwrap(), Outcome::Refused(FsError::Stale));
    assert_eq!(server.status().unwrap().sessions.iter().map(|session| session.open_files).sum::<u64>(), 0);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_many_delete_at_once_are_all_freed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let mut tasks = Vec::new();
    for task in 0..6 {
        let mut client = Client::open(&server).await;
        tasks.push(tokio::spawn(async move {
            for number in 0..400 {
                let name = format!("{task}-{number}");
                client.create(&name).await;
                assert!(matches!(client.run(unlink(&name)).await, Outcome::Inode(_)));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    eventually("all are freed", async || server.status().unwrap().orphans == 0).await;
    assert_eq!(server.status().unwrap().volume.inodes_used, 1);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_nothing_is_freed_until_sessions_have_told_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut writer, mut reader) = (Client::open(&server).await, Client::open(&server).await);
    let ino = writer.create("a").await;
    reader.ask(queries::Open { ino, segments: 1 }).await;
    writer.run(unlink("a")).await;
    server.shutdown().await;

    let server = start(config(dir.path())).await;
    writer.reconnect(server.address()).await;
    reader.reconnect(server.address()).await;
    for client in [&writer, &reader] {
        assert!(client.beat().await.unwrap().reclaim);
    }
    let tell = |session, open| ReclaimRequest { session, open, more: false, locks: None };
    writer.call::<ReclaimRequest>(&tell(writer.session, vec![])).await.unwrap();
    reader.ask(queries::GetAttr { ino }).await;
    reader.call::<ReclaimRequest>(&tell(reader.session, vec![ino])).await.unwrap();
    assert!(!reader.beat().await.unwrap().reclaim);
    writer.create("b").await;
    writer.run(unlink("b")).await;
    eventually("only the open file is left", async || server.status().unwrap().orphans == 1).await;
    reader.ask(queries::GetAttr { ino }).await;
    // The session's end is as good as a close.
    assert_eq!(reader.run(ops::CloseSession).await, Outcome::Done);
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
    silent.ask(queries::Open { ino, segments: 1 }).await;
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
    let op = ops::OpenSession { client: "test".into(), incarnation: 2, supersedes: Some(silent.session) };
    let Outcome::Session(_, slots) = successor.run(op).await else { panic!() };
    assert_eq!(slots, [(SlotId(1), last.sequence, outcome)]);
    server.shutdown().await;
}
