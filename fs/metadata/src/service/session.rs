//! Sessions' heartbeats, and what they hold open and have locked.

use atoll_core::commands::{Op, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SessionId};
use atoll_core::keys;
use atoll_core::lock_table::NotHeld;
use atoll_core::query;
use atoll_core::records::SessionRecord;
use atoll_core::store::Family;
use atoll_core::txn::load;
use atoll_proto::metadata::{
    CloseNotice, LocksTold, MetadataError, ReclaimRequest, SessionHeartbeat, SessionHeartbeatReply,
    SessionState,
};

use crate::changes::Work;
use crate::clock;
use crate::leader::Leader;
use crate::node::{Node, query_error, store_error};
use crate::reads::Lane;
use crate::sessions::OpenError;

pub(super) const EXPIRED: MetadataError = MetadataError::Fs(FsError::SessionExpired);

impl Node {
    /// A session is alive.
    pub(crate) fn session_heartbeat(
        &self,
        request: &SessionHeartbeat,
    ) -> Result<SessionHeartbeatReply, MetadataError> {
        let leader = self.lead()?;
        let volume = query::superblock(&*self.machine.store()).map_err(query_error)?;
        let now = clock::since_boot();
        let members = self.all_addresses();
        let servers_version = leader.servers.lock().version(now);
        let reply = {
            let mut sessions = leader.sessions.lock();
            sessions.heard(request.session, now).map_err(|_| EXPIRED)?;
            SessionHeartbeatReply {
                now: clock::now(),
                lifetime_ms: sessions.lifetime().as_millis() as u32,
                term: leader.term,
                reclaim: sessions.must_reclaim(request.session),
                return_reservation: sessions.take_recall(request.session),
                inline_allowed: inline_allowed(volume.inline_bytes, volume.config.inline_budget_bytes)
                    && !self.is_full(&leader),
                volume: volume.volume_use(),
                servers_version,
                members,
                config: volume.config,
            }
        };
        leader.confirm()?;
        Ok(reply)
    }

    /// Another process has the session from now on. What the one before it was writing is sealed, and what it has is told.
    pub(crate) async fn adopt_session(&self, session: SessionId) -> Result<SessionState, MetadataError> {
        let leader = self.lead()?;
        leader.sessions.lock().heard(session, clock::since_boot()).map_err(|_| EXPIRED)?;
        leader.propose_all(self.seals_of(Lane::Request, session).await?).await?;
        let record: Option<SessionRecord> =
            load(&*self.machine.store(), Family::System, &keys::session(session))
                .map_err(|error| store_error(&error))?;
        let Some(record) = record.filter(|record| record.ended.is_none()) else { return Err(EXPIRED) };
        let state = {
            let locks = leader.locks.lock();
            let sessions = leader.sessions.lock();
            let (locks, last_change) = locks.table.held(session);
            SessionState {
                open: sessions.held(session),
                locks,
                last_change,
                is_told: !sessions.must_reclaim(session),
                bytes_reserved: record.bytes_reserved,
            }
        };
        leader.confirm()?;
        Ok(state)
    }

    /// A session tells what it holds open and what it has locked.
    pub(crate) async fn reclaim(&self, request: &ReclaimRequest) -> Result<(), MetadataError> {
        let leader = self.lead()?;
        match tell(&leader, request)? {
            Ok(()) => {}
            // All is told anew, to the leader of then.
            Err(NotHeld::Incomplete) => return Err(MetadataError::Fs(FsError::Stale)),
            Err(error) => {
                // One of two sessions is wrong about what it was granted, which can't be. This one, which comes later, loses
                // what it has, and its open files say so.
                let session = request.session;
                tracing::error!(%session, %error, "a session can't have the locks that it reports, and ends");
                leader.propose(Op::from(ops::ExpireSession { session })).await?;
                self.session_ended(session);
                return Err(EXPIRED);
            }
        }
        if leader.sessions.lock().all_reclaimed() {
            leader.changes.look_again(Work::Orphans);
        }
        leader.told.notify_waiters();
        leader.confirm()
    }

    /// A session holds files no more.
    pub(crate) fn close(&self, notice: &CloseNotice) -> Result<(), MetadataError> {
        let leader = self.lead()?;
        self.let_go_of(&leader, notice.session, &notice.closed);
        Ok(())
    }

    /// A session holds these no more.
    pub(crate) fn let_go_of(&self, leader: &Leader, session: SessionId, inodes: &[InodeId]) {
        let let_go: Vec<InodeId> = {
            let mut sessions = leader.sessions.lock();
            inodes.iter().copied().filter(|ino| sessions.release(session, *ino)).collect()
        };
        for ino in let_go {
            leader.changes.again(Work::Orphans, &keys::orphan(ino));
        }
    }

    /// A session has ended: it is taken out of the leader's memory, and what it held may be freed now.
    pub(crate) fn session_ended(&self, session: SessionId) {
        let Some(leader) = self.leading() else { return };
        let let_go = leader.sessions.lock().ended(session);
        for ino in let_go {
            leader.changes.again(Work::Orphans, &keys::orphan(ino));
        }
        leader.locks.lock().ended(session);
        leader.told.notify_waiters();
        // It may have been the last one that had not said what it holds.
        leader.changes.look_again(Work::Orphans);
    }
}

/// Takes down what a session tells. An inner error: it can't have these locks, and nothing is taken down.
fn tell(leader: &Leader, request: &ReclaimRequest) -> Result<Result<(), NotHeld>, MetadataError> {
    let ReclaimRequest { session, ref open, more, ref locks } = *request;
    // Together: whoever sees that all have told sees what they have.
    let mut known = leader.locks.lock();
    let mut sessions = leader.sessions.lock();
    sessions.heard(session, clock::since_boot()).map_err(|_| EXPIRED)?;
    if !sessions.must_reclaim(session) {
        // A message that comes again is as of a time before what was locked and released since.
        known.table.forget_claims(session);
    } else if let Some(LocksTold { term, telling, part, locks }) = locks {
        // Otherwise a build that came before tells of none: what it has is in records, and known already.
        if *term != leader.term {
            return Ok(Err(NotHeld::Incomplete));
        }
        let claimed = known.table.claim(session, (*telling, *part), locks);
        if let Err(error) = claimed.and_then(|()| if more { Ok(()) } else { known.table.adopt(session) }) {
            return Ok(Err(error));
        }
    }
    sessions.reclaim(session, open, more).map_err(|error| match error {
        OpenError::Unknown => EXPIRED,
        OpenError::TooMany | OpenError::Going | OpenError::Unlinking => MetadataError::Fs(FsError::TryAgain),
    })?;
    Ok(Ok(()))
}

/// Clients are told a little before the budget is used up, so that hardly any write is refused.
pub(super) fn inline_allowed(used: u64, budget: u64) -> bool {
    used < budget - budget / 8
}
