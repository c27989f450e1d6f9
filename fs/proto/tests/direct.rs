//! Calls within one process, without a socket.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_proto::client::{CALLS_IN_FLIGHT_MAX, push_channel};
use atoll_proto::{Address, Connection, Encryption, Identity, Role, RpcError, ServerOptions, StatusCode};
use bytes::Bytes;
use common::*;
use tokio::task::JoinHandle;

/// A server at a socket that only speaks encrypted: who is connected without encryption has no socket.
async fn start() -> Running {
    let options = ServerOptions { in_process: true, ..ServerOptions::default() };
    let running = Running::tcp_with(Encryption::Required, options).await;
    // It is found from its first turn on.
    until("it is found", || is_direct(&running.address)).await;
    running
}

fn is_direct(address: &Address) -> bool {
    let connected = futures::FutureExt::now_or_never(Connection::connect(address, &options()));
    connected.is_some_and(|connection| connection.is_ok_and(|connection| !connection.remote().encrypted))
}

impl Running {
    /// A call that the server has begun and does not answer before its gate is opened.
    async fn wait_at_the_gate(&self, connection: &Connection) -> JoinHandle<Result<((), Bytes), RpcError>> {
        let before = self.server.waiting.load(Ordering::SeqCst);
        let connection = connection.clone();
        let waiting = tokio::spawn(async move { connection.call::<Gate>(&(), ()).await });
        until("it waits", || self.server.waiting.load(Ordering::SeqCst) == before + 1).await;
        waiting
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_answer_as_over_a_socket_but_at_once() {
    let running = start().await;
    let connection = running.connect().await;
    assert!(!connection.remote().encrypted);
    assert_eq!(connection.remote().role, server_identity(Encryption::Off).role);
    for len in [0, 1, 4096, 4 << 20] {
        let sent = bytes(len);
        let call = connection.call::<Echo>(&7, sent.clone());
        // Nobody else takes part.
        let (number, body) =
            futures::FutureExt::now_or_never(call).expect("answers at once").expect("answers");
        assert_eq!((number, body.len()), (7, len));
        assert!(body[..len - len / 2] == sent[len / 2..] && body[len - len / 2..] == sent[..len / 2]);
    }
    assert_eq!(connection.answers(), 4);
    let parts = vec![Bytes::from(bytes(10)), Bytes::from(bytes(20))];
    assert_eq!(connection.call::<Echo>(&1, parts).await.expect("answers").1.len(), 30);

    let refused = connection.call::<Fail>(&"no".into(), ()).await;
    assert!(matches!(refused, Err(RpcError::Refused(status)) if status.code == StatusCode::Unavailable));
    for later in [false, true] {
        let panicked = connection.call::<Panic>(&later, ()).await;
        assert!(matches!(panicked, Err(RpcError::Refused(status)) if status.code == StatusCode::Internal));
    }
    let long = connection.call::<Echo>(&1, bytes((4 << 20) + 1)).await;
    assert!(matches!(long, Err(RpcError::Unsendable { .. })));
    let late = connection.call_within::<Gate>(&(), (), Duration::from_millis(1)).await;
    assert!(matches!(late, Err(RpcError::OutcomeUnknown { .. })));
    // It goes on.
    assert_eq!(running.server.waiting.load(Ordering::SeqCst), 1);
    running.server.gate.notify_one();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_has_begun_before_the_next_call() {
    let running = start().await;
    let connection = running.connect().await;
    for number in 1..=100 {
        connection.send::<Note>(&number, ()).expect("is sent");
        assert_eq!(running.server.notes.load(Ordering::SeqCst), number as usize);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_arrive_and_connections_are_counted() {
    let running = start().await;
    let begun = running.server.connected.load(Ordering::SeqCst);
    let (pushes, mut received) = push_channel();
    let options = options().with_pushes(pushes);
    let connection = Connection::connect(&running.address, &options).await.expect("connects");
    connection.call::<PushMe>(&3, ()).await.expect("answers");
    for number in 0..3 {
        let push = received.recv().await.expect("a push");
        assert_eq!(push.decode::<Note>().expect("a note"), number);
    }
    assert_eq!(running.server.connected.load(Ordering::SeqCst), begun + 1);
    let ended = running.server.disconnected.load(Ordering::SeqCst);
    drop(connection);
    assert_eq!(running.server.disconnected.load(Ordering::SeqCst), ended + 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_answers_what_it_has_begun_and_nothing_new() {
    let running = start().await;
    let connection = running.connect().await;
    let waiting = running.wait_at_the_gate(&connection).await;
    running.shutdown.cancel();
    assert!(connection.is_closed());
    assert!(matches!(connection.call::<Echo>(&1, ()).await, Err(RpcError::NotSent { .. })));
    assert!(matches!(connection.send::<Note>(&1, ()), Err(RpcError::NotSent { .. })));
    tokio::time::timeout(HANG, connection.closed()).await.expect("is closed");
    running.server.gate.notify_one();
    waiting.await.unwrap().expect("is answered");
    let address = running.address.clone();
    let server = std::sync::Arc::downgrade(&running.server);
    running.stop().await;
    assert!(!is_direct(&address));
    // Connections that are still there don't keep it.
    assert!(server.upgrade().is_none());
    assert!(matches!(connection.call::<Echo>(&1, ()).await, Err(RpcError::NotSent { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_connection_ends_its_calls() {
    let running = start().await;
    let connection = running.connect().await;
    let waiting = running.wait_at_the_gate(&connection).await;
    connection.abort();
    assert!(matches!(waiting.await.unwrap(), Err(RpcError::OutcomeUnknown { .. })));
    assert!(matches!(connection.call::<Echo>(&1, ()).await, Err(RpcError::NotSent { .. })));
    running.server.gate.notify_one();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_up_counts_until_the_server_is_done_with_it() {
    let running = start().await;
    let connection = running.connect().await;
    for _ in 0..CALLS_IN_FLIGHT_MAX {
        let call = connection.call::<Gate>(&(), ());
        // It has begun; that its caller goes doesn't end it.
        assert!(futures::FutureExt::now_or_never(call).is_none());
    }
    assert_eq!(running.server.waiting.load(Ordering::SeqCst), CALLS_IN_FLIGHT_MAX);
    let next = tokio::spawn({
        let connection = connection.clone();
        async move { connection.call::<Echo>(&1, ()).await }
    });
    // Messages can't wait.
    assert!(matches!(connection.send::<Note>(&1, ()), Err(RpcError::NotSent { .. })));
    assert_eq!(running.server.notes.load(Ordering::SeqCst), 0);
    let within = connection.call_within::<Echo>(&2, (), Duration::from_millis(1)).await;
    assert!(matches!(within, Err(RpcError::NotSent { .. })));
    assert!(!next.is_finished());
    running.server.gate.notify_waiters();
    next.await.unwrap().expect("is answered");
    until("all have ended", || connection.send::<Note>(&1, ()).is_ok()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_others_learns_that_the_connection_is_closed() {
    let running = start().await;
    let connection = running.connect().await;
    for _ in 0..CALLS_IN_FLIGHT_MAX {
        assert!(futures::FutureExt::now_or_never(connection.call::<Gate>(&(), ())).is_none());
    }
    let next = tokio::spawn({
        let connection = connection.clone();
        async move { connection.call::<Echo>(&1, ()).await }
    });
    connection.abort();
    let next = tokio::time::timeout(HANG, next).await.expect("ends").unwrap();
    assert!(matches!(next, Err(RpcError::NotSent { .. })));
    running.server.gate.notify_waiters();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_belong_is_told_so_by_the_socket() {
    let running = start().await;
    let mut stranger = options();
    stranger.identity = Identity { key: key(2), ..stranger.identity };
    assert!(Connection::connect(&running.address, &stranger).await.is_err());
    let expecting = options().expecting(Role::Client(atoll_core::ids::SessionId(1)));
    assert!(Connection::connect(&running.address, &expecting).await.is_err());
    // And who listens without saying that it can be called so has callers at its socket only.
    let other = Running::tcp_with(Encryption::Required, ServerOptions::default()).await;
    assert!(other.connect().await.remote().encrypted);
    other.stop().await;
    running.stop().await;
}
