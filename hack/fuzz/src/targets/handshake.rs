//! What somebody sends who connects to a server (first byte even) or is connected to (odd).

use atoll_core::ids::{ClusterId, SessionId};
use atoll_proto::handshake::{ClusterKey, Encryption, Identity, Role, accept, connect};
use atoll_proto::transport::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Bytes that fit into a pipe: more than a handshake has in each direction.
const PIPE_BYTES: usize = 64 << 10;

fn identity(role: Role) -> Identity {
    Identity { cluster: ClusterId(7), role, key: ClusterKey::new([3; 32]), encryption: Encryption::Accepted }
}

/// Runs it on this thread, without waiting for anything but itself.
#[expect(
    clippy::disallowed_methods,
    reason = "a fuzzer that can't begin has nothing to clean up, and no caller to tell"
)]
pub(super) fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: std::io::Result<tokio::runtime::Runtime> =
            tokio::runtime::Builder::new_current_thread().enable_time().build();
    }
    RUNTIME.with(|runtime| match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            eprintln!("no runtime: {error}");
            std::process::exit(2);
        }
    })
}

pub(crate) fn read(data: &[u8]) -> bool {
    let Some((side, sent)) = data.split_first() else { return false };
    on_a_runtime(async {
        let (here, mut there) = tokio::io::duplex(PIPE_BYTES);
        let sent = &sent[..sent.len().min(PIPE_BYTES)];
        if there.write_all(sent).await.is_err() || there.shutdown().await.is_err() {
            return false;
        }
        let stream = Stream::memory(here, "there".to_owned());
        let agreed = if side % 2 == 0 {
            accept(stream, &identity(Role::Storage(atoll_core::ids::ServerId(1))), false).await
        } else {
            connect(stream, &identity(Role::Client(SessionId(5))), None).await
        };
        // Nobody can prove that it knows the key without having been answered.
        assert!(agreed.is_err(), "a handshake was agreed with somebody who had not been answered");
        let mut answer = Vec::new();
        there.read_to_end(&mut answer).await.is_ok_and(|_| !answer.is_empty())
    })
}

/// Passes on what one end says, and keeps it.
async fn recorded(
    mut from: tokio::io::ReadHalf<DuplexStream>,
    mut to: tokio::io::WriteHalf<DuplexStream>,
) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        all.extend(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    all
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    on_a_runtime(async {
        let (client, client_side) = tokio::io::duplex(PIPE_BYTES);
        let (server, server_side) = tokio::io::duplex(PIPE_BYTES);
        let (client_read, client_write) = tokio::io::split(client_side);
        let (server_read, server_write) = tokio::io::split(server_side);
        let me = identity(Role::Client(SessionId(5)));
        let it = identity(Role::Storage(atoll_core::ids::ServerId(1)));
        let dialled = async {
            let _ = connect(Stream::memory(client, "server".to_owned()), &me, None).await;
        };
        let served = async {
            let _ = accept(Stream::memory(server, "client".to_owned()), &it, false).await;
        };
        let (mut asked, mut answered, (), ()) = tokio::join!(
            recorded(client_read, server_write),
            recorded(server_read, client_write),
            dialled,
            served
        );
        asked.insert(0, 0);
        answered.insert(0, 1);
        vec![asked, answered]
    })
}
