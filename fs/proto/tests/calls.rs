//! Calls over whole connections.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_proto::client::push_channel;
use atoll_proto::{Address, Connection, Encryption, Listener, RpcError, ServerOptions, StatusCode};
use bytes::Bytes;
use common::*;

async fn echo(connection: &Connection, len: usize) {
    let sent = bytes(len);
    let (number, body) =
        connection.call::<Echo>(&len.try_into().unwrap(), sent.clone()).await.expect("answers");
    assert_eq!(number, len as u64);
    let mut halves = sent[len / 2..].to_vec();
    halves.extend(&sent[..len / 2]);
    assert!(body == halves, "the body of {len} bytes came back changed");
}

async fn echo_all_sizes(connection: &Connection) {
    for len in [0, 1, 1000, 4096, 16 << 10, (16 << 10) + 1, 65519, 65520, 70_000, 1 << 20, 3 << 20, 4 << 20] {
        echo(connection, len).await;
    }
}

#[tokio::test]
async fn bodies_of_all_sizes_make_the_round_trip_over_every_transport() {
    let running = Running::tcp().await;
    echo_all_sizes(&running.connect().await).await;
    running.stop().await;

    let running = Running::memory(Encryption::Off);
    echo_all_sizes(&running.connect().await).await;
    running.stop().await;

    let folder = tempfile::tempdir().expect("a folder");
    let address = Address::Unix(folder.path().join("socket"));
    let listener = Listener::bind(&address).await.expect("binds");
    let running = Running::start(listener, address, Encryption::Off, ServerOptions::default());
    echo_all_sizes(&running.connect().await).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_connections_carry_the_same() {
    let running = Running::tcp_with(Encryption::Required, ServerOptions::default()).await;
    let connection = running.connect().await;
    assert!(connection.remote().encrypted);
    echo_all_sizes(&connection).await;
    let calls = (0..8).map(|_| echo(&connection, 3 << 20));
    futures::future::join_all(calls).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_at_once() {
    let running = Running::tcp().await;
    let connection = running.connect().await;
    let calls = (0..1000u64).map(|i| {
        let connection = connection.clone();
        tokio::spawn(async move {
            if i % 3 == 0 {
                assert_eq!(connection.call::<Sleep>(&(i % 20), ()).await.expect("answers").0, i % 20);
            } else {
                echo(&connection, (i * 37 % 9000) as usize).await;
            }
        })
    });
    for call in futures::future::join_all(calls).await {
        call.expect("no call failed");
    }
    running.stop().await;
}

#[tokio::test]
async fn answers_come_in_any_order() {
    let running = Running::tcp().await;
    let connection = running.connect().await;
    let slow = connection.call::<Gate>(&(), ());
    let fast = async {
        until("the slow call waits", || running.server.waiting.load(Ordering::SeqCst) == 1).await;
        echo(&connection, 10).await;
        running.server.gate.notify_one();
    };
    let (slow, ()) = tokio::join!(slow, fast);
    slow.expect("answers in the end");
    running.stop().await;
}

#[tokio::test]
async fn a_refusal_is_not_a_failure_of_the_way() {
    let running = Running::tcp().await;
    let connection = running.connect().await;
    let error = connection.call::<Fail>(&"not now".into(), ()).await.expect_err("refused");
    assert!(matches!(&error, RpcError::Refused(status) if status.code == StatusCode::Unavailable), "{error}");
    assert!(!error.is_transport());
    let error = connection.call_raw(0xfff, Bytes::new(), (), HANG).await.expect_err("unknown");
    assert!(matches!(&error, RpcError::Refused(status) if status.code == StatusCode::UnknownKind), "{error}");
    let error =
        connection.call_raw(0xf04, Bytes::from_static(&[200]), (), HANG).await.expect_err("malformed");
    assert!(matches!(&error, RpcError::Refused(status) if status.code == StatusCode::BadRequest), "{error}");
    echo(&connection, 10).await;
    running.stop().await;
}

#[tokio::test]
async fn what_is_too_long_is_refused_before_it_is_sent() {
    let running = Running::tcp().await;
    let connection = running.connect().await;
    let error = connection.call::<Echo>(&1, vec![0; (4 << 20) + 1]).await.expect_err("too long");
    assert!(matches!(error, RpcError::Unsendable { .. }), "{error}");
    let error = connection.call::<Fetch>(&((4 << 20) + 1), ()).await.expect_err("too long an answer");
    assert!(matches!(&error, RpcError::Refused(status) if status.code == StatusCode::Internal), "{error}");
    echo(&connection, 10).await;
    running.stop().await;
}

#[tokio::test]
async fn a_deadline_says_that_the_outcome_is_unknown_and_the_connection_goes_on() {
    let running = Running::tcp().await;
    let connection = running.connect().await;
    let error = connection
        .call_within::<Gate>(&(), (), Duration::from_millis(50))
        .await
        .expect_err("nobody opens the gate");
    assert!(matches!(error, RpcError::OutcomeUnknown { .. }), "{error}");
    running.server.gate.notify_one();
    echo(&connection, 10).await;
    running.stop().await;
}

#[tokio::test]
async fn one_way_messages_and_pushes_arrive() {
    let running = Running::tcp().await;
    let (pushes, mut pushed) = push_channel();
    let connection =
        Connection::connect(&running.address, &options().with_pushes(pushes)).await.expect("connects");
    for number in 0..100 {
        connection.send::<Note>(&number, ()).expect("queued");
    }
    until("all notes came", || running.server.notes.load(Ordering::SeqCst) == 100).await;
    connection.call::<PushMe>(&50, ()).await.expect("answers");
    for number in 0..50 {
        let push = pushed.recv().await.expect("pushed");
        assert_eq!(push.decode::<Note>().expect("a note"), number);
    }
    connection.send::<Note>(&1, ()).expect("queued");
    connection.close(HANG).await;
    until("the last note came before the end", || running.server.notes.load(Ordering::SeqCst) == 101).await;
    until("the server noticed", || running.server.disconnected.load(Ordering::SeqCst) == 1).await;
    running.stop().await;
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_connection() {
    let running = Running::memory(Encryption::Off);
    let connection = running.connect().await;
    let other = connection.clone();
    drop(connection);
    echo(&other, 10).await;
    drop(other);
    until("the server noticed", || running.server.disconnected.load(Ordering::SeqCst) == 1).await;
    running.stop().await;
}

#[tokio::test]
async fn a_handler_that_panics_costs_one_request() {
    let running = Running::memory(Encryption::Off);
    let connection = running.connect().await;
    for late in [false, true] {
        let error = connection.call::<Panic>(&late, ()).await.expect_err("has a bug");
        assert!(
            matches!(&error, RpcError::Refused(status) if status.code == StatusCode::Internal),
            "{error}"
        );
        echo(&connection, 10).await;
    }
    running.stop().await;
}
