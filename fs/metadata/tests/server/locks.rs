//! Locks in the leader's memory: what is granted, what is remembered, and what a new leader waits for.

use std::path::Path;
use std::time::Duration;

use atoll_core::commands::{Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_core::lock_table::Claim;
use atoll_core::lock_waits::{Verdict, Wait};
use atoll_core::locks::{LockChange, LockClass, LockMode, LockRange, LockRequest, LockScope, ReleaseLocks};
use atoll_metadata::RunningMetadata;
use atoll_proto::metadata::{Answer, AskRequest, LockAnswer, LocksTold, MetadataError, ReclaimRequest};
use atoll_proto::queries::{self, ChangeLocks};

use crate::client::{Client, HANG, config, inline, refusal, start, write};

const X: Option<LockMode> = Some(LockMode::Exclusive);
const LOCKED: LockAnswer = LockAnswer::Refused(FsError::Locked);

fn request(ino: InodeId, mode: Option<LockMode>) -> LockRequest {
    let (class, range) = (LockClass::Record, LockRange { start: 0, end: 9 });
    LockRequest { ino, class, owner: 1, handle: 1, pid: 7, mode, range }
}

fn change(term: u64, number: u64, request: LockRequest) -> ChangeLocks {
    let change = LockChange::Set(request);
    ChangeLocks { term, number, floor: number, change, known_change: None, segments: 4 }
}

async fn term(client: &Client) -> u64 {
    client.beat().await.unwrap().term
}

/// Whether the answer says that it is done.
async fn set(client: &Client, number: u64, request: LockRequest) -> bool {
    let answer = client.ask(change(term(client).await, number, request)).await;
    assert!(matches!(answer, LockAnswer::Done(_)) || answer == LOCKED, "{answer:?}");
    answer != LOCKED
}

async fn restarted(server: RunningMetadata, clients: &mut [&mut Client], dir: &Path) -> RunningMetadata {
    server.shutdown().await;
    let mut config = config(dir);
    config.session_lifetime = Duration::from_secs(5);
    let server = start(config).await;
    for client in clients {
        client.reconnect(server.address()).await;
    }
    server
}

async fn tell(client: &Client, term: u64, locks: Vec<Claim>) -> Result<(), MetadataError> {
    let told = LocksTold { term, telling: 1, part: 0, locks };
    let request =
        ReclaimRequest { session: client.session, open: Vec::new(), more: false, locks: Some(told) };
    client.call::<ReclaimRequest>(&request).await.map_err(|error| refusal(&error))
}

fn claim(ino: InodeId) -> Claim {
    let request = request(ino, X);
    Claim { ino, class: request.class, owner: request.owner, lock: request.lock().unwrap() }
}

/// Entries that are applied. An outcome is answered a moment before the status counts its entry.
async fn applied_at_rest(server: &RunningMetadata) -> u64 {
    let mut last = server.status().unwrap().applied;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = server.status().unwrap().applied;
        if std::mem::replace(&mut last, now) == now {
            return now;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_brings_the_file_if_it_has_changed_and_costs_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut a, b) = (Client::open(&server).await, Client::open(&server).await);
    let ino = a.create("a").await;
    a.run(write(ino, 0, 5, inline(b"hello".to_vec()))).await;
    let applied = applied_at_rest(&server).await;
    let term = term(&a).await;
    let LockAnswer::Done(Some(file)) = a.ask(change(term, 1, request(ino, X))).await else { panic!() };
    assert_eq!((file.attributes.size, file.covered, file.segments.len()), (5, 4, 1));
    assert_eq!(b.ask(change(term, 1, request(ino, X))).await, LOCKED);
    let found = b.ask(queries::GetLk(request(ino, X))).await.unwrap();
    assert_eq!(found.0.session, a.session);
    assert_eq!(a.ask(change(term, 2, request(ino, None))).await, LockAnswer::Done(None));
    // Late, from another connection.
    assert_eq!(a.ask(change(term, 1, request(ino, X))).await, LockAnswer::Refused(FsError::BadSequence));
    let known =
        ChangeLocks { known_change: Some(file.attributes.change), ..change(term, 2, request(ino, X)) };
    let LockAnswer::Done(Some(file)) = b.ask(known).await else { panic!() };
    assert_eq!((file.attributes.size, file.covered, file.segments.len()), (5, 0, 0));
    let closed = LockChange::Release(ReleaseLocks { ino, scope: LockScope::Handle(1) });
    let release = ChangeLocks { change: closed, ..change(term, 3, request(ino, X)) };
    assert_eq!(b.ask(release).await, LockAnswer::Done(None));
    let gone = a.try_ask(change(term, 3, request(InodeId(999), X))).await;
    assert_eq!(gone, Err(MetadataError::Fs(FsError::Stale)));
    assert_eq!(server.status().unwrap().applied, applied);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_grants_nothing_before_all_have_told_what_they_hold_or_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut a, mut b, mut silent) =
        (Client::open(&server).await, Client::open(&server).await, Client::open(&server).await);
    let (held, free) = (a.create("a").await, a.create("b").await);
    assert!(set(&a, 1, request(held, X)).await);
    let old = term(&a).await;
    let server = restarted(server, &mut [&mut a, &mut b, &mut silent], dir.path()).await;
    let now = term(&b).await;
    assert_eq!(b.ask(change(old, 1, request(free, X))).await, LockAnswer::Untold(now));
    assert_eq!(b.ask(change(now, 1, request(free, X))).await, LockAnswer::Untold(now));
    if old != now {
        assert_eq!(tell(&b, old, Vec::new()).await, Err(MetadataError::Fs(FsError::Stale)));
    }
    tell(&b, now, Vec::new()).await.unwrap();
    assert!(!b.beat().await.unwrap().reclaim);
    let again = Err(MetadataError::Fs(FsError::TryAgain));
    assert_eq!(b.try_ask(change(now, 1, request(held, X))).await, again, "it isn't known yet who holds it");
    assert_eq!(b.try_ask(queries::GetLk(request(held, X))).await.err(), again.err());
    tell(&a, now, vec![claim(held)]).await.unwrap();
    assert_eq!(b.ask(change(now, 1, request(held, X))).await, LOCKED);
    // Who keeps silent is gone after its lifetime, and what may have been its is free.
    let keeps_on = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            a.beat().await.unwrap();
        }
    };
    let granted = async {
        let mut answer = b.try_ask(change(now, 2, request(free, X))).await;
        while answer == Err(MetadataError::Fs(FsError::TryAgain)) {
            answer = b.try_ask(change(now, 2, request(free, X))).await;
        }
        answer
    };
    let granted = tokio::select! { granted = granted => granted, () = keeps_on => unreachable!() };
    assert!(matches!(granted, Ok(LockAnswer::Done(Some(_)))), "{granted:?}");
    assert_eq!(silent.beat().await, Err(MetadataError::Fs(FsError::SessionExpired)));
    assert!(!set(&b, 3, request(held, X)).await);
    // Told once more, as of before that, it takes nothing back.
    assert!(set(&a, 5, request(held, None)).await);
    tell(&a, now, vec![claim(held)]).await.unwrap();
    assert!(set(&b, 4, request(held, X)).await);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_claims_what_another_one_holds_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut a, mut b) = (Client::open(&server).await, Client::open(&server).await);
    let ino = a.create("a").await;
    let server = restarted(server, &mut [&mut a, &mut b], dir.path()).await;
    let now = term(&a).await;
    tell(&a, now, vec![claim(ino)]).await.unwrap();
    let expired = Err(MetadataError::Fs(FsError::SessionExpired));
    assert_eq!(tell(&b, now, vec![claim(ino)]).await, expired);
    assert_eq!(b.beat().await.err(), expired.err());
    let c = Client::open(&server).await;
    assert!(!set(&c, 1, request(ino, X)).await);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_locks_of_a_session_go_with_it_and_who_waits_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let (mut a, b) = (Client::open(&server).await, Client::open(&server).await);
    let ino = a.create("a").await;
    assert!(set(&a, 1, request(ino, X)).await);
    let LockRequest { class, owner, range, .. } = request(ino, X);
    let wait = Wait { id: 4, ino, class, owner, mode: LockMode::Shared, range, is_process: true };
    let asked = AskRequest { session: b.session, query: queries::AwaitLocks { waits: vec![wait] }.into() };
    let waiting = tokio::spawn({
        let connection = b.connection.clone();
        async move { connection.call_within::<AskRequest>(&asked, (), HANG).await.unwrap().0 }
    });
    assert_eq!(a.run(ops::CloseSession).await, Outcome::Done);
    let answer = waiting.await.unwrap();
    assert_eq!(answer, Answer::Locks(vec![(4, Verdict::Free)]));
    assert!(set(&b, 1, request(ino, X)).await);
    let late = a.try_ask(change(1, 2, request(ino, None))).await;
    assert_eq!(late, Err(MetadataError::Fs(FsError::SessionExpired)));
    server.shutdown().await;
}

/// Mounts of earlier builds.
#[tokio::test(flavor = "multi_thread")]
async fn mutations_take_no_locks() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(config(dir.path())).await;
    let mut a = Client::open(&server).await;
    let ino = a.create("a").await;
    let lock = a.command(ops::SetLock(request(ino, X)));
    let refused = a.send(&lock).await.unwrap_err();
    assert_eq!(refusal(&refused), MetadataError::Fs(FsError::NoLocks));
    a.sequence -= 1;
    assert_eq!(a.run(ops::SetLock(request(ino, None))).await, Outcome::Done);
    assert_eq!(a.run(ReleaseLocks { ino, scope: LockScope::Handle(1) }).await, Outcome::Done);
    server.shutdown().await;
}
