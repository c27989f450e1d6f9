//! Who is let in, and what the others are told.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::Ordering;

use atoll_core::ids::{ClusterId, MemberId, ServerId};
use atoll_proto::handshake::{HandshakeError, MAGIC};
use atoll_proto::{
    Address, ConnectError, ConnectOptions, Connection, Encryption, Identity, Listener, Role, Rpc, RpcError,
    ServerOptions,
};
use common::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn refused(running: &Running, options: ConnectOptions) -> HandshakeError {
    match Connection::connect(&running.address, &options).await {
        Err(ConnectError::Handshake { source, .. }) => source,
        Err(other) => panic!("failed before the handshake: {other}"),
        Ok(_) => panic!("was let in"),
    }
}

fn as_identity(change: impl FnOnce(&mut Identity)) -> ConnectOptions {
    let mut identity = client_identity(Encryption::Accepted);
    change(&mut identity);
    ConnectOptions::new(identity)
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let running = Running::tcp().await;
    let connection = running.connect().await;
    let remote = connection.remote();
    assert_eq!(remote.role, Role::Metadata(MemberId(7)));
    assert_eq!((remote.protocol, remote.feature_level, remote.encrypted), (1, 1, false));
    running.stop().await;
}

#[tokio::test]
async fn another_key_is_told_what_to_do() {
    for policy in [Encryption::Off, Encryption::Required] {
        let running = Running::tcp_with(policy, ServerOptions::default()).await;
        let error = refused(&running, as_identity(|identity| identity.key = key(2))).await;
        assert!(matches!(error, HandshakeError::WrongKey { cluster: ClusterId(0xc1) }), "{error}");
        assert!(error.to_string().contains("Secret"), "{error}");
        assert_eq!(running.server.connected.load(Ordering::SeqCst), 0);
        running.stop().await;
    }
}

#[tokio::test]
async fn another_cluster_is_named() {
    let running = Running::tcp().await;
    let error = refused(&running, as_identity(|identity| identity.cluster = ClusterId(0xc2))).await;
    let expected = (ClusterId(0xc2), ClusterId(0xc1));
    assert!(
        matches!(error, HandshakeError::WrongCluster { asked, there } if (asked, there) == expected),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains("000000c1 answers here, not 0000"), "{text}");
    running.stop().await;
}

#[tokio::test]
async fn another_member_at_the_same_address_is_noticed() {
    let running = Running::tcp().await;
    let asked = Role::Storage(ServerId(9));
    let error = refused(&running, options().expecting(asked)).await;
    let there = Role::Metadata(MemberId(7));
    assert!(
        matches!(error, HandshakeError::WrongPeer { asked: a, there: t } if a == asked && t == there),
        "{error}"
    );
    let expected = options().expecting(there);
    Connection::connect(&running.address, &expected).await.expect("the right one is let in");
    running.stop().await;
}

#[tokio::test]
async fn policies_of_encryption_are_agreed_on_or_refused() {
    use Encryption::{Accepted, Off, Required};
    for (server, client, encrypted) in [
        (Off, Off, Some(false)),
        (Off, Accepted, Some(false)),
        (Off, Required, None),
        (Accepted, Accepted, Some(false)),
        (Accepted, Required, Some(true)),
        (Required, Off, None),
        (Required, Accepted, Some(true)),
        (Required, Required, Some(true)),
    ] {
        let running = Running::memory(server);
        let options = as_identity(|identity| identity.encryption = client);
        match encrypted {
            Some(encrypted) => {
                let connection = Connection::connect(&running.address, &options).await.expect("agreed");
                assert_eq!(connection.remote().encrypted, encrypted, "{server:?} and {client:?}");
                assert_eq!(connection.call::<Echo>(&5, vec![1; 100_000]).await.expect("answers").0, 5);
            }
            None => {
                let error = refused(&running, options).await;
                assert!(matches!(error, HandshakeError::Encryption { .. }), "{error}");
            }
        }
        running.stop().await;
    }
}

/// A hello of another protocol version, as another release would send it.
fn foreign_hello(min: u16, max: u16) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let mut fields = Vec::new();
    fields.extend(min.to_le_bytes());
    fields.extend(max.to_le_bytes());
    fields.extend(77u32.to_le_bytes());
    fields.extend([0xee; 60]);
    bytes.extend((fields.len() as u16).to_le_bytes());
    bytes.extend(fields);
    bytes
}

#[tokio::test]
async fn a_server_of_another_protocol_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = Address::Tcp(listener.local_addr().expect("bound").to_string());
    let newer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        stream.write_all(&foreign_hello(3, 9)).await.expect("writes");
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let Err(ConnectError::Handshake { source, .. }) = Connection::connect(&address, &options()).await else {
        panic!("was let in");
    };
    assert!(matches!(source, HandshakeError::Protocol { theirs_level: 77, .. }), "{source}");
    assert!(source.to_string().contains("3 to 9"), "{source}");
    newer.await.expect("no panic");
}

#[tokio::test]
async fn a_client_of_another_protocol_gets_our_hello_and_is_closed() {
    let running = Running::tcp().await;
    let Address::Tcp(address) = &running.address else { unreachable!() };
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(&foreign_hello(3, 9)).await.expect("writes");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("closed in order");
    assert_eq!(answer[..8], MAGIC);
    assert_eq!(answer[10..14], [1, 0, 1, 0], "our versions are 1 to 1");
    running.stop().await;
}

#[tokio::test]
async fn another_program_is_recognised() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = Address::Tcp(listener.local_addr().expect("bound").to_string());
    let other = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("writes");
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let Err(ConnectError::Handshake { source, .. }) = Connection::connect(&address, &options()).await else {
        panic!("was let in");
    };
    assert!(matches!(&source, HandshakeError::NotAtoll { began } if began == b"HTTP/1.1"), "{source}");
    other.await.expect("no panic");
}

#[tokio::test]
async fn nobody_there_is_told_apart() {
    let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".into())).await.expect("binds");
    let address = Address::Tcp(listener.local_address());
    drop(listener);
    let error = Connection::connect(&address, &options()).await.err().expect("nobody is there");
    assert!(matches!(&error, ConnectError::Dial { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_full_server_says_so_and_takes_the_next_when_one_left() {
    let limits = ServerOptions { connections: 2, ..ServerOptions::default() };
    let running = Running::tcp_with(Encryption::Off, limits).await;
    let (first, second) = (running.connect().await, running.connect().await);
    let error = refused(&running, options()).await;
    assert!(matches!(error, HandshakeError::Busy), "{error}");
    drop(second);
    until("the place is free again", || running.server.disconnected.load(Ordering::SeqCst) == 1).await;
    let again = tokio::time::timeout(HANG, async {
        loop {
            match Connection::connect(&running.address, &options()).await {
                Ok(connection) => return connection,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    let again = again.await.expect("is let in");
    assert!(again.call::<Echo>(&1, ()).await.is_ok() && first.call::<Echo>(&1, ()).await.is_ok());
    running.stop().await;
}

/// Whoever repeats the bytes of a handshake that he overheard knows the first message, but not its key.
#[tokio::test]
async fn a_repeated_handshake_is_not_believed() {
    let running = Running::tcp().await;
    let Address::Tcp(server) = running.address.clone() else { unreachable!() };
    let middle = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let through = Address::Tcp(middle.local_addr().expect("bound").to_string());
    let overheard = tokio::spawn(async move {
        let (near, _) = middle.accept().await.expect("accepts");
        let far = TcpStream::connect(server).await.expect("connects");
        let (mut near_read, mut near_write) = near.into_split();
        let (mut far_read, mut far_write) = far.into_split();
        let back = tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(bytes @ 1..) = near_read.read(&mut buffer).await {
            heard.extend_from_slice(&buffer[..bytes]);
            far_write.write_all(&buffer[..bytes]).await.expect("passes on");
        }
        drop(far_write);
        back.abort();
        heard
    });
    let connection = Connection::connect(&through, &options()).await.expect("connects through the middle");
    connection.send::<Note>(&1, ()).expect("queued");
    until("the note came", || running.server.notes.load(Ordering::SeqCst) == 1).await;
    drop(connection);
    let heard = overheard.await.expect("no panic");

    let Address::Tcp(server) = &running.address else { unreachable!() };
    let mut stream = TcpStream::connect(server).await.expect("connects");
    stream.write_all(&heard).await.expect("writes");
    let _ = stream.read_to_end(&mut Vec::new()).await;
    assert_eq!(running.server.connected.load(Ordering::SeqCst), 1, "only the first was let in");
    assert_eq!(running.server.notes.load(Ordering::SeqCst), 1);
    running.stop().await;
}

/// Whoever changes the hello on its way (to turn encryption off, say) is found out.
#[tokio::test]
async fn a_changed_hello_is_noticed() {
    let running = Running::tcp_with(Encryption::Accepted, ServerOptions::default()).await;
    let Address::Tcp(server) = running.address.clone() else { unreachable!() };
    let middle = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let through = Address::Tcp(middle.local_addr().expect("bound").to_string());
    let changing = tokio::spawn(async move {
        let (near, _) = middle.accept().await.expect("accepts");
        let far = TcpStream::connect(server).await.expect("connects");
        let (mut near_read, mut near_write) = near.into_split();
        let (mut far_read, mut far_write) = far.into_split();
        let mut hello = [0; 50];
        near_read.read_exact(&mut hello).await.expect("a hello");
        // The feature level's first byte.
        hello[14] ^= 2;
        far_write.write_all(&hello).await.expect("passes on");
        let back = tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
        let _ = tokio::io::copy(&mut near_read, &mut far_write).await;
        drop(far_write);
        let _ = back.await;
    });
    let Err(ConnectError::Handshake { source, .. }) = Connection::connect(&through, &options()).await else {
        panic!("the change went unnoticed");
    };
    assert!(matches!(source, HandshakeError::WrongKey { .. }), "{source}");
    changing.await.expect("no panic");
    running.stop().await;
}

#[tokio::test]
async fn random_bytes_at_every_stage_do_no_harm() {
    let running = Running::tcp().await;
    let Address::Tcp(address) = running.address.clone() else { unreachable!() };
    let mut random = StdRng::seed_from_u64(5);
    for round in 0..200 {
        let mut bytes: Vec<u8> = (0..random.random_range(0..400)).map(|_| random.random()).collect();
        if round % 4 > 0 {
            bytes.splice(0..0, MAGIC);
        }
        if round % 4 > 1 && bytes.len() > 50 {
            // A hello whose fields are right as far as a stranger can know them.
            bytes[8..18].copy_from_slice(&[40, 0, 1, 0, 1, 0, 1, 0, 0, 0]);
            bytes[18..34].copy_from_slice(&0xc1u128.to_le_bytes());
            bytes[34..38].copy_from_slice(&[3, 1, 0, 0]);
        }
        let mut stream = TcpStream::connect(&address).await.expect("connects");
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    assert_eq!(running.server.connected.load(Ordering::SeqCst), 0);
    let connection = running.connect().await;
    assert!(connection.call::<Echo>(&1, ()).await.is_ok(), "the server goes on");
    running.stop().await;
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_after_the_handshake_is_told_and_closed() {
    use atoll_proto::frame::{FrameReader, FrameType, OutFrame};
    use atoll_proto::{Body, Status, StatusCode, handshake};

    let running = Running::tcp().await;
    let mut random = StdRng::seed_from_u64(6);
    for round in 0..40 {
        let stream = running.address.dial().await.expect("dials");
        let identity = client_identity(Encryption::Accepted);
        let established = handshake::connect(stream, &identity, None).await.expect("agreed");
        let mut sink = established.sink;
        let mut reader = FrameReader::new(established.source);
        let mut frame = match round % 4 {
            // What only a server sends.
            0 => OutFrame::raw(FrameType::Reply, 1, 1, &[], Body::Empty).expect("fits"),
            _ => OutFrame::raw(FrameType::Request, Echo::KIND, 1, &[1, 2, 3], Body::Empty).expect("fits"),
        };
        if round % 4 > 0 {
            let mut head = frame.head.to_vec();
            let at = random.random_range(4..head.len());
            head[at] ^= random.random_range(1..=255u8);
            frame.head = head.into();
        }
        sink.add(frame, None);
        std::future::poll_fn(|cx| sink.poll_write_all(cx)).await.expect("writes");
        let last = tokio::time::timeout(HANG, reader.next()).await.expect("an answer");
        let last = last.expect("a frame").expect("not only the end");
        assert_eq!((last.frame_type, last.request_id), (FrameType::Error, 0), "round {round}");
        let status: Status = postcard_status(&last.meta);
        assert_eq!(status.code, StatusCode::Protocol, "{status}");
    }
    until("all are gone", || running.server.disconnected.load(Ordering::SeqCst) == 40).await;
    running.stop().await;
}

fn postcard_status(meta: &[u8]) -> atoll_proto::Status {
    postcard::from_bytes(meta).expect("a status")
}

#[tokio::test]
async fn a_refusal_by_the_handler_reaches_the_caller() {
    use atoll_proto::{Handler, PeerInfo, Request, Response, Status, StatusCode, serve};
    struct NoClients;
    impl Handler for NoClients {
        async fn handle(&self, _: &PeerInfo, _: Request) -> Result<Response, Status> {
            Ok(Response::default())
        }
        fn connected(&self, peer: &PeerInfo) -> Result<(), Status> {
            match peer.remote.role {
                Role::Client(_) => Err(Status::new(StatusCode::Forbidden, "no clients here")),
                _ => Ok(()),
            }
        }
    }
    let (listener, address) = atoll_proto::transport::memory("no clients");
    let shutdown = tokio_util::sync::CancellationToken::new();
    let identity = server_identity(Encryption::Off);
    let serving = tokio::spawn(serve(listener, identity, std::sync::Arc::new(NoClients), shutdown.clone()));
    let connection = Connection::connect(&address, &options()).await.expect("the handshake is fine");
    tokio::time::timeout(HANG, connection.closed()).await.expect("is closed");
    let reason = connection.closed_reason().expect("has a reason");
    assert!(reason.contains("no clients here"), "{reason}");
    let error = connection.call::<Echo>(&1, ()).await.expect_err("closed");
    assert!(matches!(error, RpcError::NotSent { .. }), "{error}");
    shutdown.cancel();
    serving.await.expect("no panic");
}
