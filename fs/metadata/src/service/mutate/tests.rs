//! With a real server.

use std::collections::BTreeMap;
use std::path::Path;

use atoll_core::commands::RENAME_WHITEOUT;
use atoll_core::ids::{ROOT, SlotId};
use atoll_core::query::is_purging;
use atoll_proto::metadata::{AskRequest, Query};
use atoll_proto::queries;
use atoll_raft::StateMachine;
use futures::poll;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;
use crate::RunningMetadata;
use crate::test_server;

const HANG: Duration = Duration::from_secs(60);

/// A server with one session, which numbers what it asks for.
struct Fixture {
    server: RunningMetadata,
    session: SessionId,
    sequence: u64,
}

impl Fixture {
    async fn start(dir: &Path) -> Fixture {
        let server = test_server::start(dir).await;
        let open =
            ClientOp::from(ops::OpenSession { client: "test".into(), incarnation: 1, supersedes: None });
        let session = match mutate(server.node(), INTERNAL, 0, open, false).await.unwrap() {
            Outcome::Session(session, _) => session,
            other => panic!("{other:?}"),
        };
        Fixture { server, session, sequence: 0 }
    }

    fn node(&self) -> &Arc<Node> {
        self.server.node()
    }

    async fn mutate(&mut self, op: ClientOp, opens: bool) -> Outcome {
        self.sequence += 1;
        mutate(self.node(), self.session, self.sequence, op, opens).await.unwrap()
    }

    async fn make(&mut self, name: &'static str, mode: u32, opens: bool) -> InodeId {
        let create = ops::Create {
            parent: ROOT,
            name: name.into(),
            ino: None,
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Default::default(),
            umask: 0,
        };
        match self.mutate(create.into(), opens).await {
            Outcome::Inode(made) => made.ino,
            other => panic!("{other:?}"),
        }
    }

    async fn unlink(&mut self, name: &'static str, directory: bool) -> Outcome {
        self.mutate(ops::Unlink { parent: ROOT, name: name.into(), directory }.into(), false).await
    }

    async fn rename(&mut self, from: &'static str, to: &'static str, flags: u32) -> Outcome {
        let rename = ops::Rename {
            parent: ROOT,
            name: from.into(),
            new_parent: ROOT,
            new_name: to.into(),
            flags,
            whiteout: (0, 0),
        };
        self.mutate(rename.into(), false).await
    }

    fn open(&self, ino: InodeId) -> impl Future<Output = Result<(), MetadataError>> + use<> {
        let query = Query::Open(queries::Open { ino, segments: 1 });
        let (node, session) = (self.node().clone(), self.session);
        async move { node.ask(AskRequest { session, query }).await.map(drop) }
    }

    fn inodes_used(&self) -> u64 {
        query::superblock(&*self.node().machine.store()).unwrap().inodes_used
    }

    fn is_gone(&self, ino: InodeId) -> bool {
        let store = self.node().machine.store();
        let orphan = store.get(Family::System, &keys::orphan(ino)).unwrap();
        query::inode(&*store, ino).is_err() && orphan.is_none()
    }

    async fn until_gone(&self, ino: InodeId) {
        let gone = async {
            while !self.is_gone(ino) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(HANG, gone).await.expect("it is freed");
    }

    fn entries(&self) -> u64 {
        self.node().machine.applied().position.unwrap().index
    }
}

async fn mutate(
    node: &Arc<Node>,
    session: SessionId,
    sequence: u64,
    op: ClientOp,
    opens: bool,
) -> Result<Outcome, MetadataError> {
    let command = Command { session, slot: SlotId(1), sequence, time: clock::now(), expect: None, op };
    Ok(node.mutate(MutateRequest { command, opens }).await?.outcome)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_holds_is_freed_in_the_entry_that_removes_its_last_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::start(dir.path()).await;
    let used = fixture.inodes_used();
    let unlinked = fixture.make("unlinked", 0o100_644, false).await;
    let removed = fixture.make("removed", 0o040_755, false).await;
    let replaced = fixture.make("replaced", 0o100_644, false).await;
    fixture.make("replacing", 0o100_644, false).await;
    let before = fixture.entries();
    assert!(matches!(fixture.unlink("unlinked", false).await, Outcome::Inode(_)));
    assert!(fixture.is_gone(unlinked));
    assert!(matches!(fixture.unlink("removed", true).await, Outcome::Inode(_)));
    assert!(fixture.is_gone(removed));
    fixture.rename("replacing", "replaced", RENAME_WHITEOUT).await.into_result().unwrap();
    assert!(fixture.is_gone(replaced));
    // An entry each, and the background had nothing to do.
    assert_eq!((fixture.entries(), fixture.inodes_used()), (before + 3, used + 2));
    assert!(fixture.server.node().leading().unwrap().sessions.lock().is_left(unlinked));
    fixture.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_or_has_another_name_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::start(dir.path()).await;
    let held = fixture.make("held", 0o100_644, true).await;
    let linked = fixture.make("linked", 0o100_644, false).await;
    let link = ops::Link { ino: linked, parent: ROOT, name: "other".into() };
    fixture.mutate(link.into(), false).await.into_result().unwrap();
    let full = fixture.make("full", 0o040_755, false).await;
    let inside = ops::Create {
        parent: full,
        name: "inside".into(),
        ino: None,
        mode: 0o100_644,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Default::default(),
        umask: 0,
    };
    fixture.mutate(inside.into(), false).await.into_result().unwrap();
    let exchanged = fixture.make("exchanged", 0o100_644, false).await;

    fixture.unlink("held", false).await.into_result().unwrap();
    fixture.unlink("linked", false).await.into_result().unwrap();
    assert_eq!(fixture.unlink("full", true).await, Outcome::Refused(FsError::NotEmpty));
    assert_eq!(fixture.unlink("absent", false).await, Outcome::Refused(FsError::NotFound));
    fixture.rename("full", "exchanged", RENAME_EXCHANGE).await.into_result().unwrap();
    let store = fixture.node().machine.store();
    for ino in [held, linked, full, exchanged] {
        assert!(query::inode(&*store, ino).is_ok() && !is_purging(&*store, ino).unwrap(), "{ino}");
        fixture.open(ino).await.unwrap();
    }
    drop(store);
    let leader = fixture.node().lead().unwrap();
    fixture.node().let_go_of(&leader, fixture.session, &[held]);
    drop(leader);
    fixture.until_gone(held).await;
    fixture.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_what_is_being_unlinked_waits_for_what_becomes_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::start(dir.path()).await;
    let stays = fixture.make("stays", 0o100_644, false).await;
    let goes = fixture.make("goes", 0o100_644, false).await;
    let leader = fixture.node().lead().unwrap();
    for (ino, name) in [(stays, None), (goes, Some("goes"))] {
        let unlinking = leader.begin_unlinking(ino).expect("nobody holds it");
        let mut open = Box::pin(fixture.open(ino));
        assert!(poll!(&mut open).is_pending());
        // Who comes second ends nothing of what the first one has begun.
        assert!(leader.begin_unlinking(ino).is_none());
        assert!(poll!(&mut open).is_pending() && leader.sessions.lock().is_unlinking(ino));
        if let Some(name) = name {
            // Another one is at it, so this one leaves it to the background.
            fixture.unlink(name, false).await.into_result().unwrap();
            fixture.until_gone(ino).await;
        }
        drop(unlinking);
        let opened = tokio::time::timeout(HANG, open).await.expect("an answer");
        assert_eq!(opened.is_ok(), name.is_none(), "{opened:?}");
    }
    drop(leader);
    fixture.server.shutdown().await;
}

/// A span's name and its fields.
type Span = (&'static str, BTreeMap<&'static str, String>);

/// Spans with their `id` and `op`.
#[derive(Clone, Default)]
struct Recorder(Arc<parking_lot::Mutex<Vec<Span>>>);

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target() == "atoll::trace"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        span.record(&mut fields);
        let mut seen = self.0.lock();
        seen.push((span.metadata().name(), fields.0));
        Id::from_u64(seen.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutation_has_one_id_where_it_is_led_and_where_it_is_applied() {
    let recorder = Recorder::default();
    // For all threads: who applies is none of this test's. What other tests do is recorded, too.
    tracing::subscriber::set_global_default(recorder.clone()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::start(dir.path()).await;
    let remove = ops::RemoveXattr { ino: ROOT, name: "user.none".into() };
    fixture.mutate(remove.into(), false).await;
    let id = format!("{}.1.{}", fixture.session, fixture.sequence);
    let seen = recorder.0.lock().clone();
    for (name, of_entries) in [("lead", false), ("apply", true)] {
        let found = seen.iter().find(|(span, fields)| {
            *span == name && fields.get("id") == Some(&id) && fields["op"] == "RemoveXattr"
        });
        let (_, fields) = found.unwrap_or_else(|| panic!("no span {name} of {id} in {seen:?}"));
        assert_eq!(fields.contains_key("index"), of_entries);
    }
    fixture.server.shutdown().await;
}
