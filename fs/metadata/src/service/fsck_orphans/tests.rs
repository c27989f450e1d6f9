//! With a real server, whose memory of who holds what is tampered with.

use atoll_core::commands::{INTERNAL, Op, Outcome, ops};
use atoll_core::ids::{ROOT, SessionId};

use super::*;
use crate::test_server::{run, start};

const HANG: Duration = Duration::from_secs(60);

/// A session, and a file without a name that it holds; the worker has seen that it does.
async fn held(node: &Arc<Node>) -> (SessionId, InodeId) {
    let leader = node.lead().unwrap();
    let open = Op::from(ops::OpenSession { client: "test".into(), incarnation: 1, supersedes: None });
    let Outcome::Session(session, _) = run(node, INTERNAL, 0, open).await else { panic!("no session") };
    let making = leader.making.begin(InodeId(1));
    leader.sessions.lock().opened(session, clock::since_boot());
    let make = Op::from(ops::Tmpfile { parent: ROOT, mode: 0o600, uid: 0, gid: 0, umask: 0, linkable: true });
    let Outcome::Inode(made) = run(node, session, 1, make).await else { panic!("no file") };
    leader.sessions.lock().hold(session, made.ino).unwrap();
    assert!(leader.changes.knows(Work::Orphans, &keys::orphan(made.ino)), "it waits while it is being made");
    drop(making);
    until("the worker has left it alone", || !leader.changes.knows(Work::Orphans, &keys::orphan(made.ino)))
        .await;
    (session, made.ino)
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let looked = tokio::time::timeout(HANG, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(looked.await.is_ok(), "never: {what}");
}

fn is_there(node: &Node, ino: InodeId) -> bool {
    is_unlinked(&*node.machine.store(), ino).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_file_that_nobody_holds_and_nobody_frees_is_found_and_freed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let node = server.node();
    let leader = node.lead().unwrap();
    let (session, ino) = held(node).await;
    assert_eq!(look(node, &leader).await.unwrap(), [], "it is held");
    // Nobody has it looked at again.
    assert!(leader.sessions.lock().release(session, ino));
    let found = look(node, &leader).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].kind, &found[0].subject), (Kind::OrphanForgotten, &Subject::Orphan(ino)));
    assert!(repair(node, &leader, &found, &BTreeSet::new()).await.unwrap().is_empty() && is_there(node, ino));
    let asked = BTreeSet::from([Kind::OrphanForgotten]);
    let done = repair(node, &leader, &found, &asked).await.unwrap();
    assert_eq!(done, BTreeSet::from([(Kind::OrphanForgotten, Subject::Orphan(ino))]));
    assert!(!is_there(node, ino));
    drop(leader);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_let_go_of_is_freed_however_that_comes() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let node = server.node();
    let leader = node.lead().unwrap();
    let (session, closed) = held(node).await;
    node.let_go_of(&leader, session, &[closed]);
    until("what was closed is gone", || !is_there(node, closed)).await;
    let (session, ended) = held(node).await;
    node.session_ended(session);
    until("what an ended session held is gone", || !is_there(node, ended)).await;
    assert_eq!(look(node, &leader).await.unwrap(), []);
    drop(leader);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_session_has_not_spoken_nothing_counts_as_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (_, ino) = held(server.node()).await;
    server.shutdown().await;
    let server = start(dir.path()).await;
    assert_eq!(look(server.node(), &server.node().lead().unwrap()).await.unwrap(), []);
    assert!(is_there(server.node(), ino));
    server.shutdown().await;
}
