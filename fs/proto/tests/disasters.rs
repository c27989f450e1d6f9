//! Servers that die, stop, or don't read, and clients that do.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_proto::frame::{FrameReader, FrameType, OutFrame};
use atoll_proto::{
    Address, Body, Connection, Encryption, Listener, Peer, PeerState, RpcError, ServerOptions, handshake,
};
use common::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Passes bytes between a client and a server until it is cut.
struct Cable {
    address: Address,
    cut: tokio_util::sync::CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Cable {
    async fn to(server: &Address) -> Cable {
        let Address::Tcp(server) = server.clone() else { unreachable!() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = Address::Tcp(listener.local_addr().expect("bound").to_string());
        let cut = tokio_util::sync::CancellationToken::new();
        let until_cut = cut.clone();
        let task = tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.expect("accepts");
            let mut far = TcpStream::connect(server).await.expect("connects");
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = until_cut.cancelled() => {}
            }
        });
        Cable { address, cut, task }
    }
}

#[tokio::test]
async fn calls_in_flight_end_with_an_unknown_outcome_and_later_ones_are_not_sent() {
    let running = Running::tcp().await;
    let cable = Cable::to(&running.address).await;
    let connection = Connection::connect(&cable.address, &options()).await.expect("connects");
    let calls = (0..100).map(|_| connection.call::<Gate>(&(), ()));
    let calls = futures::future::join_all(calls);
    let cutting = async {
        until("all calls wait", || running.server.waiting.load(Ordering::SeqCst) == 100).await;
        cable.cut.cancel();
    };
    let (results, ()) = tokio::join!(calls, cutting);
    for result in results {
        let error = result.expect_err("the gate is closed");
        assert!(matches!(error, RpcError::OutcomeUnknown { .. }) && !error.is_safe_to_retry(), "{error}");
    }
    assert!(connection.is_closed());
    let error = connection.call::<Echo>(&1, ()).await.expect_err("closed");
    assert!(matches!(error, RpcError::NotSent { .. }) && error.is_safe_to_retry(), "{error}");
    assert!(connection.send::<Note>(&1, ()).is_err());
    cable.task.await.expect("no panic");
    running.server.gate.notify_waiters();
    running.stop().await;
}

#[tokio::test]
async fn a_shutdown_finishes_what_was_begun_and_says_that_the_rest_was_not() {
    let running = Running::tcp_with(
        Encryption::Off,
        ServerOptions { requests_in_flight: 4, ..ServerOptions::default() },
    )
    .await;
    let connection = running.connect().await;
    // The fifth and later ones find the server not reading.
    let calls = (0..10).map(|_| connection.call::<Gate>(&(), ()));
    let calls = futures::future::join_all(calls);
    let stopping = async {
        until("four wait", || running.server.waiting.load(Ordering::SeqCst) == 4).await;
        running.shutdown.cancel();
        // Whoever comes now finds nobody.
        let gone = async { while Connection::connect(&running.address, &options()).await.is_ok() {} };
        tokio::time::timeout(HANG, gone).await.expect("nobody listens any more");
        running.server.gate.notify_waiters();
    };
    let (results, ()) = tokio::join!(calls, stopping);
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 4);
    for error in results.into_iter().filter_map(Result::err) {
        assert!(matches!(error, RpcError::NotSent { .. }), "{error}");
    }
    assert_eq!(running.server.started.load(Ordering::SeqCst), 4);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_costs_a_bounded_amount_and_others_nothing() {
    let limits = ServerOptions {
        requests_in_flight: 50,
        request_bytes_in_flight: 8 << 20,
        ..ServerOptions::default()
    };
    let running = Running::tcp_with(Encryption::Off, limits).await;
    let stream = running.address.dial().await.expect("dials");
    let established =
        handshake::connect(stream, &client_identity(Encryption::Off), None).await.expect("agreed");
    let mut sink = established.sink;
    // 1000 answers of 1 MiB each are asked for, none is read.
    for id in 1..=1000u64 {
        let frame = OutFrame::encode(FrameType::Request, 0xf03, id, &(1u32 << 20), Body::Empty);
        sink.add(frame.expect("fits"), None);
    }
    std::future::poll_fn(|cx| sink.poll_write_all(cx)).await.expect("the requests are short");
    until("some are answered", || running.server.started.load(Ordering::SeqCst) > 0).await;
    let other = running.connect().await;
    for _ in 0..100 {
        other.call::<Echo>(&1, vec![1; 1000]).await.expect("others are served");
    }
    // What is worked on fits into the bound and the socket's buffers (a few MiB).
    let begun = running.server.started.load(Ordering::SeqCst) - 100;
    assert!(begun < 100, "{begun} answers of 1 MiB were made for a client that doesn't read");

    let mut reader = FrameReader::new(established.source);
    for _ in 0..1000 {
        let frame =
            tokio::time::timeout(HANG, reader.next()).await.expect("comes").expect("reads").expect("a frame");
        assert_eq!(frame.body.len(), 1 << 20);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_client_has_no_more_in_flight_than_its_bound_and_loses_nothing() {
    use atoll_proto::client::CALLS_IN_FLIGHT_MAX;
    let running = Running::memory(Encryption::Off);
    let connection = running.connect().await;
    let calls = (0..CALLS_IN_FLIGHT_MAX + 50).map(|_| connection.call::<Gate>(&(), ()));
    let calls = futures::future::join_all(calls);
    let opening = async {
        until("the bound is reached", || {
            running.server.waiting.load(Ordering::SeqCst) == CALLS_IN_FLIGHT_MAX
        })
        .await;
        running.server.gate.notify_waiters();
        until("the rest waits", || running.server.waiting.load(Ordering::SeqCst) == CALLS_IN_FLIGHT_MAX + 50)
            .await;
        running.server.gate.notify_waiters();
    };
    let (results, ()) = tokio::join!(calls, opening);
    assert!(results.iter().all(Result::is_ok));
    running.stop().await;
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_no_trace() {
    let running = Running::memory(Encryption::Off);
    let connection = running.connect().await;
    for _ in 0..400 {
        let call = connection.call_within::<Gate>(&(), (), Duration::from_millis(1));
        assert!(call.await.is_err());
    }
    running.server.gate.notify_waiters();
    assert_eq!(connection.call::<Echo>(&3, ()).await.expect("there is room").0, 3);
    running.stop().await;
}

#[tokio::test]
async fn a_peer_connects_when_needed_and_again_after_a_restart() {
    let running = Running::tcp().await;
    let Running { address, .. } = &running;
    let address = address.clone();
    let peer = Peer::new(address.clone(), options());
    assert!(matches!(peer.state(), PeerState::Idle));
    assert_eq!(peer.call::<Echo>(&1, ()).await.expect("connects").0, 1);
    assert!(matches!(peer.state(), PeerState::Connected));
    let many = futures::future::join_all((0..20).map(|_| peer.call::<Echo>(&1, ()))).await;
    assert!(many.iter().all(Result::is_ok));
    assert_eq!(running.server.connected.load(Ordering::SeqCst), 1, "one connection is shared");
    running.stop().await;

    let error =
        peer.call_within::<Echo>(&1, (), Duration::from_millis(300)).await.expect_err("nobody is there");
    assert!(matches!(error, RpcError::NotSent { .. }), "{error}");

    let listener = Listener::bind(&address).await.expect("the port is free again");
    let running = Running::start(listener, address, Encryption::Off, ServerOptions::default());
    assert_eq!(peer.call::<Echo>(&2, ()).await.expect("connects again").0, 2);
    peer.disconnect();
    assert_eq!(peer.call::<Echo>(&3, ()).await.expect("connects again").0, 3);
    running.stop().await;
}

#[tokio::test]
async fn many_callers_make_one_attempt_and_share_its_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = Address::Tcp(listener.local_addr().expect("bound").to_string());
    let attempts = tokio::spawn(async move {
        let mut attempts = 0;
        loop {
            // Each is closed at once.
            match tokio::time::timeout(Duration::from_millis(500), listener.accept()).await {
                Ok(accepted) => drop(accepted.expect("accepts")),
                Err(_) => return attempts,
            }
            attempts += 1;
        }
    });
    let peer = Peer::new(address, options());
    let results = futures::future::join_all((0..50).map(|_| peer.connection())).await;
    assert!(results.iter().all(Result::is_err));
    assert!(matches!(peer.state(), PeerState::Failed { attempts: 1, .. }), "{:?}", peer.state());
    assert_eq!(attempts.await.expect("no panic"), 1);
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    // Time is virtual here: it jumps whenever nothing else can happen.
    tokio::time::pause();
    let (here, there) = tokio::io::duplex(1 << 20);
    let accepting = tokio::spawn(async move {
        let stream = atoll_proto::transport::Stream::memory(there, "a client".into());
        handshake::accept(stream, &server_identity(Encryption::Off), false).await
    });
    let stream = atoll_proto::transport::Stream::memory(here, "a server that falls silent".into());
    let connection = Connection::over(stream, &options()).await.expect("agreed");
    let silent = accepting.await.expect("no panic").expect("agreed");
    let error =
        connection.call_within::<Echo>(&1, (), Duration::from_secs(3600)).await.expect_err("no answer");
    assert!(matches!(error, RpcError::OutcomeUnknown { .. }), "{error}");
    assert!(
        connection.closed_reason().expect("closed").contains("did not respond"),
        "{:?}",
        connection.closed_reason()
    );
    drop(silent);
}

#[tokio::test]
async fn a_quiet_connection_stays_open() {
    tokio::time::pause();
    let running = Running::memory(Encryption::Off);
    let connection = running.connect().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(connection.call::<Echo>(&1, ()).await.expect("is open").0, 1);
    assert_eq!(running.server.disconnected.load(Ordering::SeqCst), 0);
    running.stop().await;
}

#[tokio::test]
async fn a_silent_client_is_let_go() {
    tokio::time::pause();
    let running = Running::memory(Encryption::Off);
    let stream = running.address.dial().await.expect("dials");
    let silent = handshake::connect(stream, &client_identity(Encryption::Off), None).await.expect("agreed");
    until_virtual(|| running.server.disconnected.load(Ordering::SeqCst) == 1).await;
    drop(silent);
    running.stop().await;
}

/// As [`until`], with virtual time to spare.
async fn until_virtual(condition: impl Fn() -> bool) {
    for _ in 0..3600 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("never");
}

#[tokio::test]
async fn a_client_that_does_not_take_pushes_loses_its_connection() {
    let running = Running::memory(Encryption::Off);
    let (pushes, _never_read) = tokio::sync::mpsc::channel(10);
    let connection =
        Connection::connect(&running.address, &options().with_pushes(pushes)).await.expect("connects");
    let error = connection.call::<PushMe>(&11, ()).await;
    tokio::time::timeout(HANG, connection.closed()).await.expect("is closed");
    assert!(connection.closed_reason().expect("a reason").contains("too slowly"), "{error:?}");
    running.stop().await;
}

#[tokio::test]
async fn bytes_that_are_cut_off_in_the_middle_of_an_answer_fail_the_call() {
    let running = Running::tcp().await;
    let Address::Tcp(server) = running.address.clone() else { unreachable!() };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let through = Address::Tcp(listener.local_addr().expect("bound").to_string());
    let task = tokio::spawn(async move {
        let (near, _) = listener.accept().await.expect("accepts");
        let far = TcpStream::connect(server).await.expect("connects");
        let (mut near_read, mut near_write) = near.into_split();
        let (far_read, mut far_write) = far.into_split();
        let there = tokio::spawn(async move { tokio::io::copy(&mut near_read, &mut far_write).await });
        tokio::io::copy(&mut far_read.take(200_000), &mut near_write).await.expect("passes on");
        near_write.shutdown().await.expect("closes");
        there.abort();
    });
    let connection = Connection::connect(&through, &options()).await.expect("connects");
    let error = connection.call::<Fetch>(&(1 << 20), ()).await.expect_err("cut off");
    assert!(
        matches!(&error, RpcError::OutcomeUnknown { reason } if reason.contains("into a frame")),
        "{error}"
    );
    task.await.expect("no panic");
    running.stop().await;
}
