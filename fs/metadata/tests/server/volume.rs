//! Making the volume, using it, stopping and starting it; what is refused.

use atoll_core::commands::{Command, Op, Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{ClusterId, InodeId, ROOT, SegmentIndex, SessionId};
use atoll_metadata::{MetadataServer, StartError};
use atoll_proto::metadata::{
    BootstrapRequest, ClusterStatus, DirectoryPage, FileExtents, MetadataError, MutateReply, PieceData,
    StatusRequest, kind,
};
use atoll_proto::queries;
use atoll_proto::{Address, Role, Rpc, RpcError};
use prometheus_client::registry::Registry;

use crate::client::{self, CLUSTER, Client, config, connect, create, inline, start, write};

#[tokio::test(flavor = "multi_thread")]
async fn files_are_made_written_read_listed_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let mut client = Client::open(&server).await;
    let ino = client.create("a").await;
    let outcome = client.run(write(ino, 0, 5, inline(b"hello".to_vec()))).await;
    assert!(matches!(outcome, Outcome::Inode(attributes) if attributes.size == 5));
    for number in 0..50 {
        client.create(&format!("f{number}")).await;
    }

    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        let query = queries::ReadDir { ino: ROOT, cookie, bytes_max: 1000, plus: true };
        let DirectoryPage { entries, end, .. } = client.ask(query).await;
        assert!(entries.iter().all(|entry| entry.attributes.as_ref().is_some_and(|a| a.ino == entry.ino)));
        names.extend(entries.iter().map(|entry| entry.name.clone()));
        cookie = entries.last().map_or(cookie, |entry| entry.cookie);
        if end {
            break;
        }
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 51);

    let member = server.member();
    server.shutdown().await;
    let server = start(config(dir.path())).await;
    assert_eq!(server.member(), member);
    client.reconnect(server.address()).await;
    assert_eq!(client.lookup("a").await.unwrap().size, 5);
    assert_eq!(client.lookup("nothing").await, Err(FsError::NotFound));
    let query = queries::Extents { ino, first: SegmentIndex(0), segments: 4 };
    let FileExtents { segments, covered, .. } = client.ask(query).await;
    assert_eq!(covered, 4);
    assert_eq!(segments[0].1[0].data, PieceData::Inline(b"hello".as_slice().into()));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutation_is_carried_out_once_even_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let mut client = Client::open(&server).await;
    let command = client.command(create("once"));
    let first = client.send(&command).await.unwrap();
    assert!(matches!(first, Outcome::Inode(_)));
    assert_eq!(client.send(&command).await.unwrap(), first);
    server.shutdown().await;

    let server = start(config(dir.path())).await;
    client.reconnect(server.address()).await;
    assert_eq!(client.send(&command).await.unwrap(), first);
    assert_eq!(client.run(create("once")).await, Outcome::Refused(FsError::Exists));
    // Many at once, the same one each time.
    let command = client.command(create("twice"));
    let all = futures::future::join_all((0..20).map(|_| client.send(&command))).await;
    let outcomes: Vec<Outcome> = all.into_iter().map(Result::unwrap).collect();
    assert!(matches!(outcomes[0], Outcome::Inode(_)));
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_made_once_and_for_its_own_id() {
    let dir = tempfile::tempdir().unwrap();
    let server = MetadataServer::start(config(dir.path()), &mut Registry::default()).await.unwrap();
    let before = Client::without_session(server.address()).await;
    let asked = before.try_ask(queries::StatFs).await;
    assert!(matches!(asked, Err(MetadataError::NotLeader { leader: None })), "{asked:?}");

    let admin = connect(server.address(), Role::Admin).await;
    let mut request =
        BootstrapRequest { cluster: ClusterId(1), config: client::volume(), members: Vec::new() };
    let error = admin.call::<BootstrapRequest>(&request, ()).await.unwrap_err();
    assert_eq!(client::refusal(&error), MetadataError::Fs(FsError::WrongCluster));
    request.cluster = CLUSTER;
    for _ in 0..2 {
        admin.call::<BootstrapRequest>(&request, ()).await.unwrap();
    }
    let (status, _): (ClusterStatus, _) = admin.call::<StatusRequest>(&StatusRequest, ()).await.unwrap();
    assert!(status.is_leader && status.cluster == Some(CLUSTER));
    assert_eq!(status.members.len(), 1);
    assert!(
        status.problems.iter().any(|problem| problem.contains("storage servers")),
        "{:?}",
        status.problems
    );
    // A client may not do this.
    let error = before.call::<BootstrapRequest>(&request).await.unwrap_err();
    assert!(error.to_string().contains("isn't allowed"), "{error}");
    server.shutdown().await;
}

/// A mutation as the wire has it, of any kind.
struct AnyMutation;

impl Rpc for AnyMutation {
    const KIND: u16 = kind::MUTATE;
    type Request = (Command, bool);
    type Reply = MutateReply;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_service_does_is_refused_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let mut client = Client::open(&server).await;
    client.create("a").await;
    // It is no operation of a client's: what asks for it can't be read.
    let Command { session, slot, sequence, time, expect, .. } = client.command(client::unlink("a"));
    let op = Op::from(ops::ExpireSession { session });
    let command = Command { session, slot, sequence, time, expect, op };
    let error = client.call::<AnyMutation>(&(command, false)).await.unwrap_err();
    assert!(matches!(error, RpcError::Refused(_)), "{error}");
    // Nor may anybody speak as the service itself.
    let mut command = client.command(client::unlink("a"));
    command.session = SessionId(0);
    let error = client.send(&command).await.unwrap_err();
    assert_eq!(client::refusal(&error), MetadataError::Fs(FsError::NotPermitted));
    assert!(client.lookup("a").await.is_ok());
    assert_eq!(
        client.try_ask(queries::GetAttr { ino: InodeId(4711) }).await,
        Err(MetadataError::Fs(FsError::Stale))
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_or_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let error = MetadataServer::start(config(dir.path()), &mut Registry::default()).await.err().unwrap();
    assert!(error.to_string().contains("in use"), "{error}");
    let other = tempfile::tempdir().unwrap();
    let mut taken = config(other.path());
    taken.listen = Address::Tcp(server.address().to_owned());
    let error = MetadataServer::start(taken, &mut Registry::default()).await.err().unwrap();
    assert!(matches!(error, StartError::Bind(_)), "{error}");
    let mut foreign = config(dir.path());
    foreign.cluster = ClusterId(99);
    server.shutdown().await;
    let error = MetadataServer::start(foreign, &mut Registry::default()).await.err().unwrap();
    assert!(error.to_string().contains("belongs to cluster"), "{error}");
}
