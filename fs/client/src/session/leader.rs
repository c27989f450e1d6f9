//! Finding the leader and getting an answer from it, however long that takes.
//!
//! Every request may be sent again: questions and heartbeats by nature, mutations because they are numbered.
//! So a request that got no answer goes to the next member, after a pause, until somebody answers it. Which
//! member and which pause is decided by [`Members`], purely.

use std::sync::Arc;
use std::time::Duration;

use atoll_core::error::FsError;
use atoll_proto::admin::WhoRequest;
use atoll_proto::metadata::MetadataError;
use atoll_proto::{Address, ConnectOptions, Connection, Identity, Peer, RpcError, StatusCode};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Connected;

/// How long an attempt may take before the request is sent again, perhaps to another member.
pub const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5);
/// The pause after a first failed attempt.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(300);
/// A leader that hasn't answered for so long may have been stopped or cut off, which nobody tells: the others are asked
/// who leads. An answer that takes longer, from a leader that is only slow, is still waited for.
const SILENCE: Duration = Duration::from_millis(700);
/// How often they are asked.
const PROBE_INTERVAL: Duration = Duration::from_millis(300);
/// How long they may take to answer.
const PROBE_DEADLINE: Duration = Duration::from_millis(1000);
/// A member that couldn't be reached is not asked again before this much later, whoever says that it leads: the others
/// take a leader that has died for alive until its lease is over.
const OUT_OF_REACH: Duration = Duration::from_millis(1000);
/// Hints in a row that are followed without a pause: members that don't agree could send us around for ever.
const HINTS_WITHOUT_PAUSE: u32 = 2;
/// Members that were learnt from hints and are not in the configuration.
const LEARNT_MAX: usize = 8;

/// An answer that settles a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The filesystem refused, before anything was done.
    #[error("{0}")]
    Fs(FsError),
    /// The request can't be carried out by any member (it is malformed to them, or too large); nothing was done.
    #[error("{0}")]
    Impossible(String),
    /// Something was done, and the answer can't be read.
    #[error("{0}")]
    Garbled(String),
}

/// What to do after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// That was it.
    Settled(Refusal),
    /// The member says who leads.
    Ask(String),
    /// This member can't; another may.
    Elsewhere,
    /// There is no connection to this member; another may be within reach.
    OutOfReach,
    /// The same again.
    Again,
}

fn next(error: &RpcError) -> Next {
    if let Some(error) = error.typed::<MetadataError>() {
        return match error {
            MetadataError::NotLeader { leader: Some((_, address)) } => Next::Ask(address),
            MetadataError::NotLeader { leader: None } | MetadataError::Failed(_) => Next::Elsewhere,
            MetadataError::LeadershipLost => Next::Elsewhere,
            MetadataError::NotBootstrapped => Next::Elsewhere,
            MetadataError::Fs(FsError::TryAgain) => Next::Again,
            MetadataError::Fs(error) => Next::Settled(Refusal::Fs(error)),
            MetadataError::Refused(reason) => Next::Settled(Refusal::Impossible(reason)),
        };
    }
    match error {
        RpcError::Refused(status) => match status.code {
            StatusCode::BadRequest | StatusCode::UnknownKind | StatusCode::Forbidden => {
                Next::Settled(Refusal::Impossible(status.to_string()))
            }
            StatusCode::Busy => Next::Again,
            // A failure inside, or one of a newer version's: whether anything was done is not known, and to send
            // it again finds out.
            _ => Next::Elsewhere,
        },
        RpcError::NotSent { .. } => Next::OutOfReach,
        RpcError::OutcomeUnknown { .. } => Next::Elsewhere,
        RpcError::Unsendable { reason } => Next::Settled(Refusal::Impossible(reason.clone())),
        RpcError::BadReply { reason, .. } => Next::Settled(Refusal::Garbled(reason.clone())),
        // The enumeration may grow.
        _ => Next::Elsewhere,
    }
}

/// Which member to ask. Many requests share it, so each says which choice it is talking about.
#[derive(Debug)]
struct Members {
    /// As configured, then as learnt.
    names: Vec<String>,
    configured: usize,
    current: usize,
    /// Who was asked last without a hint.
    turn: usize,
    /// Counts choices: a failure of an older one changes nothing.
    choice: u64,
    /// Failed choices in a row.
    failures: u32,
    hints: u32,
    /// Who couldn't be reached last, and when.
    out_of_reach: Option<(String, Instant)>,
}

impl Members {
    fn new(names: Vec<String>) -> Self {
        let configured = names.len();
        Members {
            names,
            configured,
            current: 0,
            turn: 0,
            choice: 0,
            failures: 0,
            hints: 0,
            out_of_reach: None,
        }
    }

    /// The choice failed. Returns how long to wait (`random` spreads those who wait at the same time).
    fn failed(&mut self, choice: u64, next: &Next, now: Instant, random: u32) -> Duration {
        if choice != self.choice {
            // Somebody else has chosen anew meanwhile: join them.
            return Duration::ZERO;
        }
        match next {
            Next::Ask(name) if self.is_out_of_reach(name, now) => self.go_on(),
            Next::Ask(name) => {
                self.choose(name);
                self.hints += 1;
                if self.hints <= HINTS_WITHOUT_PAUSE {
                    return Duration::ZERO;
                }
            }
            Next::Elsewhere => self.go_on(),
            Next::OutOfReach => {
                self.out_of_reach = self.names.get(self.current).map(|name| (name.clone(), now));
                self.go_on();
            }
            Next::Again | Next::Settled(_) => {}
        }
        self.failures = self.failures.saturating_add(1);
        pause(self.failures, random)
    }

    /// Everybody's turn comes, whatever the hints say: the one that they name may be out of reach, or no longer lead.
    fn go_on(&mut self) {
        let mut others = (1..=self.names.len()).map(|step| (self.turn + step) % self.names.len());
        self.turn = others.find(|turn| *turn != self.current).unwrap_or(self.current);
        self.current = self.turn;
        self.choice += 1;
    }

    fn is_out_of_reach(&self, name: &str, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        self.out_of_reach.as_ref().is_some_and(|(member, at)| member == name && since(*at) < OUT_OF_REACH)
    }

    fn choose(&mut self, name: &str) {
        self.choice += 1;
        if let Some(known) = self.names.iter().position(|known| known == name) {
            self.current = known;
            return;
        }
        if self.names.len() - self.configured >= LEARNT_MAX {
            self.names.remove(self.configured);
        }
        self.names.push(name.to_owned());
        self.current = self.names.len() - 1;
    }

    /// There is this member, too. Whether it wasn't known.
    fn learn(&mut self, name: &str) -> bool {
        let is_new =
            self.names.len() - self.configured < LEARNT_MAX && !self.names.iter().any(|known| known == name);
        if is_new {
            self.names.push(name.to_owned());
        }
        is_new
    }

    /// The choice answered.
    fn answered(&mut self, choice: u64) {
        if choice == self.choice {
            self.failures = 0;
            self.hints = 0;
            self.out_of_reach = None;
        }
    }
}

fn pause(failures: u32, random: u32) -> Duration {
    let longest = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX);
    longest / 2 + longest.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// The metadata service: whichever member answers.
pub struct Service {
    members: Mutex<Members>,
    /// Peers by name; few.
    peers: Mutex<Vec<(String, Peer)>>,
    options: ConnectOptions,
    connected: watch::Sender<Connected>,
    /// Held by the one request that asks the others who leads; the rest waits for what it finds out.
    probing: tokio::sync::Mutex<()>,
}

impl Service {
    /// The members at these addresses. Nothing happens until something is asked.
    #[must_use]
    pub fn new(addresses: &[Address], identity: Identity) -> Self {
        // As often as the members are gone through: one that is back must not wait for its turn to be dialled.
        let options = ConnectOptions::new(identity).with_pauses_up_to(PAUSE_MAX);
        let peers: Vec<(String, Peer)> = addresses
            .iter()
            .map(|address| (address.to_string(), Peer::new(address.clone(), options.clone())))
            .collect();
        let members = Members::new(peers.iter().map(|(name, _)| name.clone()).collect());
        let (connected, _) = watch::channel(Connected::default());
        let probing = tokio::sync::Mutex::new(());
        Service { members: Mutex::new(members), peers: Mutex::new(peers), options, connected, probing }
    }

    /// Whether somebody answers.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<Connected> {
        self.connected.subscribe()
    }

    fn target(&self) -> (Option<Peer>, String, u64) {
        let members = self.members.lock();
        let Some(name) = members.names.get(members.current).cloned() else {
            return (None, String::new(), members.choice);
        };
        let choice = members.choice;
        drop(members);
        (self.peer(&name), name, choice)
    }

    /// The member of this name, which may have been learnt only now; `None` if the name is no address.
    fn peer(&self, name: &str) -> Option<Peer> {
        let mut peers = self.peers.lock();
        if let Some((_, peer)) = peers.iter().find(|(known, _)| known == name) {
            return Some(peer.clone());
        }
        let configured = self.members.lock().configured;
        let peer = Peer::new(name.parse().ok()?, self.options.clone());
        if peers.len() - configured >= LEARNT_MAX {
            peers.remove(configured);
        }
        peers.push((name.to_owned(), peer.clone()));
        Some(peer)
    }

    /// The connection to the member that is taken for the leader, if there is one.
    #[must_use]
    pub fn connection(&self) -> Option<Connection> {
        self.target().0?.connected()
    }

    /// There are these members: the configured addresses may be one name for all of them, or of those that there were.
    pub fn learn(&self, names: &[String]) {
        for name in names {
            if self.members.lock().learn(name) {
                self.peer(name);
            }
        }
    }

    /// Sends the request until it is answered.
    pub async fn call(&self, kind: u16, message: &Bytes) -> Result<Bytes, Refusal> {
        loop {
            let (peer, name, choice) = self.target();
            let started = Instant::now();
            let attempt = async {
                match peer {
                    Some(peer) => attempt(&peer, kind, message).await,
                    None => Err(RpcError::NotSent { reason: format!("'{name}' is not an address") }),
                }
            };
            let (error, next) = tokio::select! {
                biased;
                result = attempt => match result {
                    Ok(reply) => {
                        self.answered(&name, choice);
                        return Ok(reply);
                    }
                    Err(error) => {
                        let next = next(&error);
                        (error, next)
                    }
                },
                next = self.elsewhere(&name, choice) => {
                    let reason = format!("{name} doesn't respond, and another member is the leader");
                    (RpcError::OutcomeUnknown { reason }, next)
                }
            };
            if let Next::Settled(refusal) = next {
                self.answered(&name, choice);
                return Err(refusal);
            }
            tracing::debug!(member = name, kind, %error, ?next, "a request to a metadata server failed");
            self.away(started, &error);
            let pause = self.members.lock().failed(choice, &next, Instant::now(), rand::random());
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Comes back when somebody else than this silent member leads, or was chosen meanwhile.
    async fn elsewhere(&self, silent: &str, choice: u64) -> Next {
        if self.members.lock().names.len() < 2 {
            // Nobody else is known: no timer for each request of a volume with one metadata server.
            return std::future::pending().await;
        }
        tokio::time::sleep(SILENCE).await;
        loop {
            let one = self.probing.lock().await;
            if self.members.lock().choice != choice {
                return Next::Again;
            }
            if let Some(leader) = self.probe(silent).await {
                return Next::Ask(leader);
            }
            drop(one);
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }

    /// Asks all other members whether they lead; the name of the one that does.
    async fn probe(&self, silent: &str) -> Option<String> {
        let others: Vec<(String, Peer)> =
            self.peers.lock().iter().filter(|(name, _)| name != silent).cloned().collect();
        let asked = others.into_iter().map(async |(name, peer)| {
            let connection = tokio::time::timeout(PROBE_DEADLINE, peer.connection()).await.ok()?.ok()?;
            let who = connection.call_within::<WhoRequest>(&WhoRequest, (), PROBE_DEADLINE).await.ok()?.0;
            who.is_leader.then_some(name)
        });
        let mut asked: futures::stream::FuturesUnordered<_> = asked.collect();
        while let Some(answer) = asked.next().await {
            if answer.is_some() {
                return answer;
            }
        }
        None
    }

    fn answered(&self, name: &str, choice: u64) {
        self.members.lock().answered(choice);
        self.connected.send_if_modified(|connected| {
            let back = connected.waiting_since.take().is_some();
            let moved = connected.leader.as_deref() != Some(name);
            if moved {
                connected.leader = Some(name.to_owned());
            }
            if back {
                connected.problem = None;
            }
            back || moved
        });
    }

    fn away(&self, since: Instant, error: &RpcError) {
        let problem = error.to_string();
        self.connected.send_if_modified(|connected| {
            let changed = connected.waiting_since.is_none() || connected.problem.as_ref() != Some(&problem);
            connected.waiting_since.get_or_insert(since);
            connected.problem = Some(problem);
            changed
        });
    }

    /// All configured members refuse this client for a reason that waiting won't change (another key, another
    /// cluster, another protocol): the reason.
    #[must_use]
    pub fn hopeless(&self) -> Option<Arc<atoll_proto::ConnectError>> {
        let configured = self.members.lock().configured;
        let peers = self.peers.lock();
        let mut reason = None;
        for (_, peer) in peers.iter().take(configured) {
            match peer.state() {
                atoll_proto::PeerState::Failed { error, .. } if is_hopeless(&error) => reason = Some(error),
                _ => return None,
            }
        }
        reason
    }
}

fn is_hopeless(error: &atoll_proto::ConnectError) -> bool {
    use atoll_proto::handshake::HandshakeError;
    match error {
        atoll_proto::ConnectError::Handshake { source, .. } => matches!(
            source,
            HandshakeError::WrongCluster { .. }
                | HandshakeError::WrongKey { .. }
                | HandshakeError::Protocol { .. }
                | HandshakeError::Encryption { .. }
                | HandshakeError::NotAtoll { .. }
        ),
        _ => false,
    }
}

async fn attempt(peer: &Peer, kind: u16, message: &Bytes) -> Result<Bytes, RpcError> {
    let started = Instant::now();
    let connection = match peer.connected() {
        Some(connection) => connection,
        None => match tokio::time::timeout(ATTEMPT_DEADLINE, peer.connection()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(RpcError::NotSent { reason: error.to_string() }),
            Err(_) => {
                let reason = match peer.state() {
                    atoll_proto::PeerState::Failed { error, .. } => error.to_string(),
                    _ => {
                        format!("no connection to {} within {} s", peer.address(), ATTEMPT_DEADLINE.as_secs())
                    }
                };
                return Err(RpcError::NotSent { reason });
            }
        },
    };
    let left = ATTEMPT_DEADLINE.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
    let reply = connection.call_raw(kind, message.clone(), atoll_proto::Body::Empty, left).await?;
    Ok(reply.meta)
}

#[cfg(test)]
mod tests {
    use atoll_core::ids::MemberId;
    use atoll_proto::Status;

    use super::*;

    fn members() -> Members {
        Members::new(vec!["a:1".into(), "b:1".into(), "c:1".into()])
    }

    fn refused(error: &MetadataError) -> Next {
        next(&RpcError::Refused(Status::service(error)))
    }

    #[test]
    fn what_follows_from_each_answer() {
        let hint = MetadataError::NotLeader { leader: Some((MemberId(2), "b:1".into())) };
        assert_eq!(refused(&hint), Next::Ask("b:1".into()));
        assert_eq!(refused(&MetadataError::NotLeader { leader: None }), Next::Elsewhere);
        assert_eq!(refused(&MetadataError::LeadershipLost), Next::Elsewhere);
        assert_eq!(refused(&MetadataError::NotBootstrapped), Next::Elsewhere);
        assert_eq!(refused(&MetadataError::Failed("disk".into())), Next::Elsewhere);
        let reason = MetadataError::Refused("no".into());
        assert_eq!(refused(&reason), Next::Settled(Refusal::Impossible("no".into())));
        assert_eq!(
            refused(&MetadataError::Fs(FsError::NotFound)),
            Next::Settled(Refusal::Fs(FsError::NotFound))
        );
        assert_eq!(refused(&MetadataError::Fs(FsError::TryAgain)), Next::Again);
        let lost = RpcError::OutcomeUnknown { reason: "lost".into() };
        assert_eq!(next(&lost), Next::Elsewhere);
        assert_eq!(next(&RpcError::NotSent { reason: "refused".into() }), Next::OutOfReach);
        let bad = RpcError::Refused(Status::bad_request("what?"));
        assert!(matches!(next(&bad), Next::Settled(Refusal::Impossible(_))));
        let busy = RpcError::Refused(Status::new(StatusCode::Busy, "busy"));
        assert_eq!(next(&busy), Next::Again);
    }

    #[test]
    fn goes_around_and_follows_hints() {
        let (mut members, now) = (members(), Instant::now());
        let pause = members.failed(0, &Next::Elsewhere, now, 0);
        assert_eq!((members.current, pause), (1, PAUSE_MIN / 2));
        // Another request that had tried the first member, too, does not skip the second.
        assert_eq!(members.failed(0, &Next::Elsewhere, now, 0), Duration::ZERO);
        assert_eq!(members.current, 1);
        assert_eq!(members.failed(1, &Next::Ask("a:1".into()), now, 0), Duration::ZERO);
        assert_eq!(members.current, 0);
        assert_eq!(members.failed(2, &Next::Ask("d:1".into()), now, 0), Duration::ZERO);
        assert_eq!(members.names[members.current], "d:1");
        assert!(members.failed(3, &Next::Ask("a:1".into()), now, 0) > Duration::ZERO, "sent around for ever");
        members.answered(4);
        assert_eq!((members.failures, members.hints), (0, 0));
    }

    #[test]
    fn members_that_were_learnt_have_their_turn() {
        let mut members = Members::new(vec!["all:1".into()]);
        assert!(members.learn("a:1") && members.learn("b:1") && !members.learn("a:1"));
        assert_eq!(members.names[members.current], "all:1", "nothing is wrong with this one");
        members.failed(0, &Next::Elsewhere, Instant::now(), 0);
        assert_eq!(members.names[members.current], "a:1");
        members.failed(1, &Next::Elsewhere, Instant::now(), 0);
        assert_eq!(members.names[members.current], "b:1");
        for number in 0..2 * LEARNT_MAX {
            members.learn(&format!("{number}:1"));
        }
        assert_eq!(members.names.len(), 1 + LEARNT_MAX);
    }

    #[test]
    fn a_hint_to_somebody_out_of_reach_keeps_nobody_from_being_asked() {
        let (mut members, now) = (members(), Instant::now());
        let mut asked = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let name = members.names[members.current].clone();
            let next = if name == "d:1" { Next::Elsewhere } else { Next::Ask("d:1".into()) };
            asked.insert(name);
            members.failed(members.choice, &next, now, 0);
        }
        assert_eq!(asked.len(), 4, "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_to_somebody_who_was_out_of_reach_a_moment_ago_is_not_followed() {
        let (mut members, now) = (members(), Instant::now());
        let hint = Next::Ask("a:1".into());
        members.failed(0, &Next::OutOfReach, now, 0);
        assert_eq!(members.current, 1);
        assert!(members.failed(1, &hint, now + OUT_OF_REACH / 2, 0) > Duration::ZERO);
        assert_eq!(members.current, 2, "the dead leader was asked again");
        assert_eq!(members.failed(2, &hint, now + OUT_OF_REACH, 0), Duration::ZERO);
        assert_eq!(members.current, 0, "it may be back");
    }

    #[test]
    fn learns_a_bounded_number_of_members() {
        let mut members = members();
        for number in 0..20 {
            members.choose(&format!("n{number}:1"));
            assert_eq!(members.names[members.current], format!("n{number}:1"));
        }
        assert_eq!(members.names.len(), 3 + LEARNT_MAX);
        assert_eq!(members.names[..3], ["a:1", "b:1", "c:1"].map(String::from));
    }

    #[test]
    fn pauses_are_bounded() {
        assert_eq!(pause(1, 0), PAUSE_MIN / 2);
        assert_eq!(pause(u32::MAX, u32::MAX), PAUSE_MAX);
    }
}
