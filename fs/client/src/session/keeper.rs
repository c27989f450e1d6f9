//! Keeps the session: opens it, sends its heartbeats, opens a new one when it is lost, and tells the leader
//! which files are open and what is locked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_core::commands::{ClientOp, Command, Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SessionId, SlotId};
use atoll_proto::metadata::{
    CloseNotice, LocksTold, MutateReply, ReclaimRequest, SessionHeartbeat, SessionHeartbeatReply, kind,
};
use atoll_proto::{Body, Rpc};
use bytes::Bytes;
use tokio::time::Instant;

use super::leader::Refusal;
use super::{Current, Heard, Inner, Lost, SessionError, State, clock};
use crate::metadata::Event;

/// The lifetime that is assumed before the first heartbeat's reply.
const LIFETIME_ASSUMED: Duration = Duration::from_secs(15);
/// Heartbeats go out at least so often; they also bring the clock and what the volume's use is.
const HEARTBEAT_PERIOD_MAX: Duration = Duration::from_secs(5);
/// One in so many parts of the session's lifetime doesn't count for who relies on it: clocks don't run equally fast.
const MARGIN: u32 = 10;
/// Close notices are collected for so long.
const CLOSE_NOTICE_DELAY: Duration = Duration::from_millis(50);
/// The pause before a refused session is asked for again.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

struct Close;

impl Rpc for Close {
    const KIND: u16 = kind::CLOSE;
    type Request = CloseNotice;
    type Reply = ();
}

impl Inner {
    /// Opens the first session, in time.
    pub(super) async fn open_first(&self) -> Result<(), SessionError> {
        let opening = async {
            loop {
                let current = self.open(None).await?;
                let begun = match self.heartbeat(current.id, 0).await {
                    Ok(_) => self.begin_journal(current).await,
                    Err(refusal) => Err(refusal),
                };
                match begun {
                    Ok(()) => return Ok(current),
                    // It was cut off for so long in between. Nothing was done in it.
                    Err(Refusal::Fs(FsError::SessionExpired)) => {}
                    Err(Refusal::Fs(error)) => return Err(SessionError::Refused(error)),
                    Err(Refusal::Impossible(reason) | Refusal::Garbled(reason)) => {
                        return Err(SessionError::Hopeless(reason));
                    }
                }
            }
        };
        let current = self.in_connect_time(opening).await?;
        self.state.send_replace(State::Open(current));
        Ok(())
    }

    /// What `opening` returns, in time, or why that will never be.
    pub(super) async fn in_connect_time<T>(
        &self,
        opening: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, SessionError> {
        let limit = self.options.connect_timeout;
        let hopeless = async {
            let mut connected = self.service.connected();
            while connected.changed().await.is_ok() {
                if let Some(error) = self.service.hopeless() {
                    return error.to_string();
                }
            }
            std::future::pending().await
        };
        let opened = tokio::select! {
            opened = tokio::time::timeout(limit, opening) => opened,
            reason = hopeless => return Err(SessionError::Hopeless(reason)),
        };
        opened.map_err(|_| {
            let problem = self.service.connected().borrow().problem.clone();
            SessionError::Away { after: limit, problem: problem.unwrap_or_else(|| "no reply".into()) }
        })?
    }

    /// Opens a session.
    pub(super) async fn open(&self, supersedes: Option<SessionId>) -> Result<Current, SessionError> {
        let command = Command {
            session: SessionId(0),
            slot: SlotId(0),
            sequence: 0,
            time: self.clock.now(),
            expect: None,
            op: ClientOp::from(ops::OpenSession {
                client: self.options.client.clone(),
                incarnation: self.incarnation,
                supersedes,
            }),
        };
        let garbled = |error: &dyn std::fmt::Display| SessionError::Hopeless(error.to_string());
        let message = postcard::to_allocvec(&command).map_err(|error| garbled(&error))?;
        let reply = match self.service.call(kind::MUTATE, &message.into()).await {
            Ok(reply) => postcard::from_bytes::<MutateReply>(&reply).map_err(|error| garbled(&error))?,
            Err(Refusal::Fs(error)) => return Err(SessionError::Refused(error)),
            Err(refusal) => return Err(garbled(&refusal)),
        };
        let (id, outcomes) = match reply.outcome {
            Outcome::Session(id, outcomes) => (id, outcomes),
            Outcome::Refused(error) => return Err(SessionError::Refused(error)),
            other => return Err(garbled(&format!("unexpected reply {other:?}"))),
        };
        if let Some(session) = supersedes {
            let mut lost = self.lost.lock();
            if lost.len() == super::LOST_SESSIONS_MAX {
                lost.pop_front();
            }
            lost.push_back(Arc::new(Lost { session, outcomes }));
        }
        self.last_session.store(id.0, Ordering::Relaxed);
        self.note_session(id);
        let epoch = self.sessions_lost.load(Ordering::Relaxed) + 1;
        tracing::info!(session = %id, ?supersedes, "session opened");
        Ok(Current { id, epoch })
    }

    /// Sends one heartbeat; returns the leader's term if the leader was told all open files.
    pub(super) async fn heartbeat(&self, session: SessionId, reclaimed_term: u64) -> Result<u64, Refusal> {
        let sent = clock::since_boot();
        let beat = SessionHeartbeat { session, reclaimed_term };
        let reply = self.service.call(kind::SESSION_HEARTBEAT, &encode(&beat)?).await?;
        let reply: SessionHeartbeatReply =
            postcard::from_bytes(&reply).map_err(|error| Refusal::Garbled(error.to_string()))?;
        let (term, reclaim) = (reply.term, reply.reclaim);
        self.service.learn(&reply.members);
        self.note(reply, sent);
        if !reclaim {
            self.locks_known_to(term);
        // Else the next beat does it: it comes when the last of those files is known.
        } else if self.open_files.lock().may_tell_all(term) {
            match self.reclaim(session, term).await {
                // A part was for another leader, which has to be asked what it knows.
                Err(Refusal::Fs(FsError::Stale)) => self.kick.notify_one(),
                reclaimed => reclaimed?,
            }
        }
        // Those that could not be told before, or may have been told too early.
        if self.open_files.lock().has_closed() {
            self.close_notices.notify_one();
        }
        Ok(term)
    }

    /// Tells the leader of this term all open files and all locks.
    async fn reclaim(&self, session: SessionId, term: u64) -> Result<(), Refusal> {
        let locks = self.held_locks.lock().tell(term);
        // Otherwise another leader has asked meanwhile.
        if let Some(locks) = locks {
            self.tell_all(session, locks).await?;
            self.locks_known_to(term);
        }
        Ok(())
    }

    /// Tells the leader, whichever that is, all open files, and these locks. Each message says whose part it is: a leader that
    /// hasn't got all of them takes none.
    pub(super) async fn tell_all(
        &self,
        session: SessionId,
        mut locks: Vec<LocksTold>,
    ) -> Result<(), Refusal> {
        let files = self.open_files.lock().messages();
        let parts = files.len().max(locks.len());
        while let Some(last) = locks.last()
            && locks.len() < parts
        {
            locks.push(LocksTold { part: last.part + 1, locks: Vec::new(), ..*last });
        }
        let (mut files, mut locks) = (files.into_iter(), locks.into_iter());
        for part in 1..=parts {
            let (open, locks) = (files.next().unwrap_or_default(), locks.next());
            tracing::debug!(
                %session,
                files = open.len(),
                locks = locks.as_ref().map_or(0, |told| told.locks.len()),
                "reporting open files and locks to the new leader"
            );
            let request = ReclaimRequest { session, open, more: part < parts, locks };
            self.service.call(kind::RECLAIM, &encode(&request)?).await?;
            self.open_files.lock().told_open(&request.open);
        }
        Ok(())
    }

    fn locks_known_to(&self, term: u64) {
        self.held_locks.lock().is_known_to(term);
        self.locks_told.notify_waiters();
    }

    /// Tells the leader of the files that were closed since it was told last.
    pub(super) fn tell_closed(&self) {
        let State::Open(current) = *self.state.borrow() else { return };
        // Under the lock: who opens one of these files right now asks the service after this is queued on the
        // same connection, or takes the file out of the notice.
        let mut files = self.open_files.lock();
        loop {
            let closed: Vec<InodeId> = files.take_closed();
            if closed.is_empty() {
                break;
            }
            let notice = CloseNotice { session: current.id, closed };
            let sent =
                self.service.connection().map(|connection| connection.send::<Close>(&notice, Body::Empty));
            if !matches!(sent, Some(Ok(()))) {
                // With the next one that is closed, or after the next heartbeat.
                files.put_back(notice.closed);
                break;
            }
        }
    }

    fn note(&self, reply: SessionHeartbeatReply, sent: Duration) {
        self.clock.sample(reply.now, sent, clock::since_boot());
        let recall = reply.return_reservation;
        let lifetime = Duration::from_millis(u64::from(reply.lifetime_ms));
        if *self.heard.read().config != reply.config {
            self.journal_config(&reply.config);
        }
        *self.heard.write() = Heard {
            lifetime,
            // The leader counts from when it received this, a new one from when it began.
            valid_until: sent + lifetime - lifetime / MARGIN,
            term: reply.term,
            inline_allowed: reply.inline_allowed,
            volume: reply.volume,
            servers_version: reply.servers_version,
            config: Arc::new(reply.config),
        };
        if recall {
            self.tell(Event::ReturnReservation);
        }
    }

    fn heartbeat_period(&self) -> Duration {
        let lifetime = self.heard.read().lifetime;
        let lifetime = if lifetime.is_zero() { LIFETIME_ASSUMED } else { lifetime };
        (lifetime / 3).min(HEARTBEAT_PERIOD_MAX)
    }

    /// The session is gone: everybody is told, then a new one is opened. `None`: the volume is another client's now,
    /// and this one gets nothing of it any more.
    async fn replace(&self, lost: Current) -> Option<Current> {
        self.heard.write().valid_until = Duration::ZERO;
        self.open_files.lock().session_lost();
        self.state.send_replace(State::Opening);
        tracing::warn!(
            session = %lost.id,
            "the session is lost: what was not committed is lost, and affected open files return EIO"
        );
        let current = loop {
            match self.open(Some(lost.id)).await {
                Ok(current) => break Current { epoch: lost.epoch + 1, ..current },
                Err(SessionError::Refused(FsError::Taken)) => {
                    tracing::error!(
                        "another client took the volume over: unmount this mount and mount it again"
                    );
                    self.sessions_lost.fetch_add(1, Ordering::SeqCst);
                    self.journal_lost(0);
                    self.tell(Event::SessionLost { was_parted: true });
                    return None;
                }
                Err(error) => {
                    tracing::error!(%error, "no new session could be opened; retrying");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        };
        self.sessions_lost.fetch_add(1, Ordering::SeqCst);
        let known = self.lost.lock().iter().find(|known| known.session == lost.id).map(Arc::clone);
        self.journal_lost(known.map_or(0, |known| Self::committed_of(&known.outcomes)));
        // Before anything can happen in the new session: nobody may use what belonged to the old one.
        self.open_files.lock().session_lost();
        self.held_locks.lock().lost();
        self.tell(Event::SessionLost { was_parted: was_parted(lost.id, current.id) });
        // The new session holds nothing open yet, whatever the leader thinks it was told. It has locked nothing.
        if let Err(error) = self.tell_all(current.id, Vec::new()).await {
            tracing::warn!(%error, "the open files could not be reported to the leader; retrying");
        }
        if let Err(error) = self.begin_journal(current).await {
            tracing::warn!(%error, "no journal is kept in this session");
        }
        self.state.send_replace(State::Open(current));
        Some(current)
    }
}

/// Whether others may have had a session between these two: sessions are numbered in a row.
pub(super) fn was_parted(lost: SessionId, next: SessionId) -> bool {
    lost.0.checked_add(1) != Some(next.0)
}

fn encode<M: serde::Serialize>(message: &M) -> Result<Bytes, Refusal> {
    postcard::to_allocvec(message).map(Bytes::from).map_err(|error| Refusal::Impossible(error.to_string()))
}

/// The task that keeps the session until the client stops.
pub(super) async fn keep(inner: Arc<Inner>) {
    let token = inner.token.clone();
    tokio::select! {
        () = token.cancelled() => {}
        () = beat(&inner) => {}
    }
    inner.slots.close();
    inner.state.send_replace(State::Stopped);
}

async fn beat(inner: &Inner) {
    let State::Open(mut current) = *inner.state.borrow() else { return };
    let mut connected = inner.service.connected();
    let mut leader = connected.borrow_and_update().leader.clone();
    let mut term = inner.heard.read().term;
    let mut next = Instant::now() + inner.heartbeat_period();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = inner.kick.notified() => {}
            // Whoever leads next, or again, waits for being told what is open and locked.
            () = parted(inner) => {}
            changed = connected.changed() => {
                // The same of a new leader; anything else can wait for the next beat.
                let now = connected.borrow_and_update().leader.clone();
                if changed.is_ok() && now == leader {
                    continue;
                }
                leader = now;
            }
        }
        if *inner.state.borrow() == State::Stopped {
            return;
        }
        next = Instant::now() + inner.heartbeat_period();
        let found_lost = inner.found_lost.lock().take() == Some(current.id);
        let result = match found_lost {
            true => Err(Refusal::Fs(FsError::SessionExpired)),
            false => inner.heartbeat(current.id, term).await,
        };
        match result {
            Ok(now) => term = now,
            Err(Refusal::Fs(FsError::SessionExpired)) => {
                if *inner.state.borrow() == State::Stopped || inner.closing.load(Ordering::Acquire) {
                    return;
                }
                let Some(new) = inner.replace(current).await else { return };
                current = new;
                inner.kick.notify_one();
            }
            Err(refusal) => tracing::warn!(%refusal, "a heartbeat was refused"),
        }
    }
}

/// Comes back when the connection to the leader is closed, if there is one.
async fn parted(inner: &Inner) {
    match inner.service.connection() {
        Some(connection) => connection.closed().await,
        // Whoever asks something next makes one.
        None => std::future::pending().await,
    }
}

/// The task that tells the leader which files were closed.
pub(super) async fn tell_closed(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.token.cancelled() => return,
            () = inner.close_notices.notified() => {}
        }
        tokio::select! {
            () = inner.token.cancelled() => return,
            () = tokio::time::sleep(CLOSE_NOTICE_DELAY) => {}
        }
        inner.tell_closed();
    }
}
