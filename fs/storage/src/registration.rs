//! Speaks to the metadata service: registers, sends heartbeats, passes on tasks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use atoll_core::ids::ChunkId;
use atoll_proto::admin::{self, MemberIdentity};
use atoll_proto::registration::{
    BadReplica, HEARTBEAT_REPLICAS_MAX, Heartbeat, InventoryChanges, Register, RegistrationError,
    ScrubbedReplica, TASKS_MAX,
};
use atoll_proto::{Address, ConnectOptions, Connection, Identity, RpcError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::pool::{Lane, PoolClosed};
use crate::service::{StorageService, replica_info};
use crate::store::FOLDER_FORMAT;
use crate::store::changes::News;
use crate::tasks::TaskWorkers;

/// How long the metadata service may take to answer; then another member is asked.
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// A leader that hasn't answered for so long may have been stopped or cut off: the others are asked who leads.
const SILENCE: Duration = Duration::from_millis(500);
/// How often they are asked, and how long they may take to answer.
const PROBE_INTERVAL: Duration = Duration::from_millis(300);
const PROBE_DEADLINE: Duration = Duration::from_millis(1000);
/// The pause after the first failure; it doubles with each further one…
const RETRY_MIN: Duration = Duration::from_millis(100);
/// …up to this: while a new leader doesn't hear of this server, nothing is written to it.
const RETRY_MAX: Duration = Duration::from_millis(500);
/// The pause after it was told that it isn't wanted.
const UNWANTED_PAUSE: Duration = Duration::from_secs(5);
/// Bounds of the heartbeats' interval, whatever the metadata service names.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// How often one leader may name another before there is a pause: during an election they may be wrong in turn.
const HINTS_MAX: u32 = 4;

/// What a server says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Announcement {
    /// Where the metadata service is.
    pub metadata: Vec<Address>,
    /// Who we are.
    pub identity: Identity,
    /// Where we are reached.
    pub address: String,
    /// What placement may look at.
    pub labels: BTreeMap<String, String>,
}

/// The loop that keeps us registered.
pub(crate) struct Registrar {
    service: Arc<StorageService>,
    announcement: Announcement,
    tasks: TaskWorkers,
    registered: Arc<AtomicBool>,
    /// Members that the leader has told of: the configured addresses may be one name for all of them.
    learnt: Mutex<Vec<Address>>,
}

/// Why a round with one member ended.
#[derive(Debug)]
enum Ended {
    /// It isn't the leader.
    NotLeader(Option<String>),
    /// It doesn't know us: register again.
    Forgotten,
    /// It can't be reached, or failed.
    Lost(String),
    /// It doesn't want us. That needs a human; it is asked again in case one comes.
    Unwanted(RegistrationError),
}

/// A whole inventory that is being sent: what comes after this chunk is next.
struct Scan {
    after: Option<ChunkId>,
}

impl Registrar {
    pub(crate) fn new(
        service: Arc<StorageService>,
        announcement: Announcement,
        tasks: TaskWorkers,
        registered: Arc<AtomicBool>,
    ) -> Self {
        Self { service, announcement, tasks, registered, learnt: Mutex::default() }
    }

    /// Keeps registered with whoever leads, until it is told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep_registered() => {}
        }
        self.set_registered(false);
    }

    async fn keep_registered(&self) {
        if self.announcement.metadata.is_empty() {
            tracing::warn!(
                "no metadata server is configured, so this storage server can't register: set --metadata"
            );
            std::future::pending::<()>().await;
        }
        let (mut hints, mut pause) = (0, RETRY_MIN);
        let (mut hint, mut last_reasons): (Option<Address>, String) = (None, String::new());
        loop {
            let leader = match hint.take() {
                Some(hint) => Ok(hint),
                None => match &self.members()[..] {
                    [only] => Ok(only.clone()),
                    _ => self.find_leader(None).await,
                },
            };
            let address = match leader {
                Ok(address) => address,
                Err(reasons) => {
                    if reasons != last_reasons {
                        tracing::info!(reasons, "no reachable metadata server is the leader; retrying");
                        last_reasons = reasons;
                    }
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    continue;
                }
            };
            let mut heard = false;
            let ended = self.round(&address, &mut heard).await;
            self.set_registered(false);
            if heard {
                (hints, pause) = (0, RETRY_MIN);
                last_reasons.clear();
            }
            match ended {
                Ended::NotLeader(leader) => {
                    hint = leader.and_then(|leader| leader.parse().ok());
                    hints += 1;
                    if hint.is_some() && hints <= HINTS_MAX {
                        continue;
                    }
                    (hint, hints) = (None, 0);
                }
                Ended::Forgotten => hint = Some(address),
                Ended::Lost(reason) => {
                    tracing::info!(
                        %address, reason,
                        "the metadata servers can't be reached; retrying"
                    );
                }
                Ended::Unwanted(error) => {
                    tracing::error!(%address, %error, "the metadata servers refuse this storage server");
                    pause = UNWANTED_PAUSE;
                }
            }
            // Servers that lost the same leader shouldn't all come back at once.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn set_registered(&self, registered: bool) {
        self.registered.store(registered, Ordering::Relaxed);
        self.service.metrics.set_registered(registered);
    }

    /// Registers with one member and sends it heartbeats for as long as it wants them.
    async fn round(&self, address: &Address, heard: &mut bool) -> Ended {
        let options = ConnectOptions::new(self.announcement.identity.clone());
        let connection = match Connection::connect(address, &options).await {
            Ok(connection) => connection,
            Err(error) => return Ended::Lost(error.to_string()),
        };
        let register = match self.register().await {
            Ok(register) => register,
            Err(reason) => return Ended::Lost(reason),
        };
        let reply = match connection.call_within::<Register>(&register, (), CALL_DEADLINE).await {
            Ok((reply, _)) => reply,
            Err(error) => return ended(error),
        };
        *heard = true;
        self.set_registered(true);
        tracing::info!(%address, server = %register.server, "registered with the metadata servers");
        let mut scan = reply.full_inventory.then_some(Scan { after: None });
        for sequence in 1.. {
            let (heartbeat, news) = match self.heartbeat(sequence, &mut scan).await {
                Ok(heartbeat) => heartbeat,
                Err(reason) => return Ended::Lost(reason),
            };
            let result = tokio::select! {
                result = connection.call_within::<Heartbeat>(&heartbeat, (), CALL_DEADLINE) => result.map_err(ended),
                leader = self.elsewhere(address) => Err(Ended::NotLeader(Some(leader))),
            };
            let reply = match result {
                Ok((reply, _)) => reply,
                Err(ended) => {
                    self.service.store.changes().put_back(news);
                    self.tasks.put_back(heartbeat.done);
                    return ended;
                }
            };
            let interval = bounded_interval(reply.heartbeat_interval_ms);
            self.tasks.take(reply.tasks);
            self.learn(&reply.members);
            if reply.full_inventory && scan.is_none() {
                scan = Some(Scan { after: None });
            }
            if scan.is_none() {
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = connection.closed() => return Ended::Lost("the connection was closed".to_owned()),
                }
            }
        }
        Ended::Forgotten
    }

    /// Comes back when another member than this silent one leads: its address.
    async fn elsewhere(&self, silent: &Address) -> String {
        if self.members().len() < 2 {
            return std::future::pending().await;
        }
        tokio::time::sleep(SILENCE).await;
        loop {
            if let Ok(leader) = self.find_leader(Some(silent)).await {
                return leader.to_string();
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }

    /// Asks all members but `silent` at the same time who leads: one that was stopped would take a connection and never say a
    /// word. The address of the leader, or why nobody knows one.
    async fn find_leader(&self, silent: Option<&Address>) -> Result<Address, String> {
        let options = ConnectOptions::new(self.announcement.identity.clone());
        let silent = silent.map(ToString::to_string);
        let all = self.members();
        let members = all.iter().map(|address| (address.to_string(), address));
        let members: Vec<_> = members.filter(|(name, _)| silent.as_ref() != Some(name)).collect();
        let mut asked: FuturesUnordered<_> =
            members.iter().map(|(_, address)| admin::who(address, &options, PROBE_DEADLINE)).collect();
        let (mut answers, mut reasons) = (Vec::new(), Vec::new());
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(who) if who.is_leader => {
                    return who.address.parse().map_err(|e| format!("{}: {e}", who.address));
                }
                Ok(who) => {
                    reasons.push(format!("{} isn't the leader", who.address));
                    answers.push(who);
                }
                Err(reason) => reasons.push(reason),
            }
        }
        let not =
            |name: &str| silent.as_deref() == Some(name) || members.iter().any(|(asked, _)| asked == name);
        if let Some(stranger) = named_stranger(&answers, not) {
            return stranger.parse().map_err(|e| format!("{stranger}: {e}"));
        }
        reasons.sort();
        Err(reasons.join("; "))
    }

    /// All members that are known: the configured ones, then those that the leader has told of.
    fn members(&self) -> Vec<Address> {
        self.announcement.metadata.iter().chain(&*self.learnt.lock()).cloned().collect()
    }

    /// Takes note of the members that aren't configured by these names.
    fn learn(&self, names: &[String]) {
        let configured: Vec<String> = self.announcement.metadata.iter().map(Address::to_string).collect();
        let strangers = names.iter().filter(|name| !configured.contains(name));
        *self.learnt.lock() = strangers.filter_map(|name| name.parse().ok()).collect();
    }

    async fn register(&self) -> Result<Register, String> {
        let store = self.service.store.clone();
        let space = self.service.pool.run(Lane::Background, move |_place| store.space()).await;
        let space = space.map_err(|PoolClosed| PoolClosed.to_string())?.map_err(|error| error.to_string())?;
        let identity = self.service.store.identity();
        Ok(Register {
            server: identity.server,
            cluster: identity.cluster,
            address: self.announcement.address.clone(),
            labels: self.announcement.labels.clone(),
            capacity: space.capacity_bytes,
            used: space.capacity_bytes.saturating_sub(space.free_bytes),
            format_version: FOLDER_FORMAT,
            incarnation: identity.incarnation,
        })
    }

    /// What the next heartbeat says, and the news in it, to be put back if it isn't heard. While a whole inventory is
    /// being sent, a page of it takes the place of the new replicas: these are in it, or come afterwards.
    async fn heartbeat(&self, sequence: u64, scan: &mut Option<Scan>) -> Result<(Heartbeat, News), String> {
        let (store, metrics) = (self.service.store.clone(), self.service.metrics.clone());
        let after = scan.as_ref().map(|scan| scan.after);
        let job = move |_place| {
            store.tidy();
            metrics.refresh(&store);
            let mut news = store.changes().take(HEARTBEAT_REPLICAS_MAX);
            // With too much news only a whole inventory tells: it begins with this heartbeat.
            let after =
                if std::mem::take(&mut news.overflow) && after.is_none() { Some(None) } else { after };
            let page = after.map(|after| (after, store.list(after, HEARTBEAT_REPLICAS_MAX)));
            if page.is_some() {
                let present = std::mem::take(&mut news.present);
                store.changes().put_back(News { present, ..News::default() });
            }
            let changes = changes(&store, &news, page);
            store.space().map(|space| (store.writable_bytes(&space), space, news, changes))
        };
        let done = self
            .service
            .pool
            .run(Lane::Background, job)
            .await
            .map_err(|PoolClosed| PoolClosed.to_string())?;
        let (free, space, news, changes) = done.map_err(|error| error.to_string())?;
        let sending = changes.from.is_some() || changes.through.is_some() || changes.complete;
        *scan = match (sending && !changes.complete, changes.through) {
            (true, Some(through)) => Some(Scan { after: Some(through) }),
            _ => None,
        };
        let identity = self.service.store.identity();
        let heartbeat = Heartbeat {
            server: identity.server,
            incarnation: identity.incarnation,
            sequence,
            used: space.capacity_bytes.saturating_sub(space.free_bytes),
            free,
            chunks: self.service.store.len() as u64,
            disk_errors: self.service.store.disk_errors(),
            changes,
            done: self.tasks.outcomes(TASKS_MAX),
        };
        Ok((heartbeat, news))
    }
}

/// A leader that somebody names and that was not asked: one that came later than the configuration. Who was asked and didn't
/// say that it leads doesn't lead, whatever others still believe.
fn named_stranger(answers: &[MemberIdentity], was_asked: impl Fn(&str) -> bool) -> Option<String> {
    let named = answers.iter().filter_map(|who| Some((who.term, &who.leader.as_ref()?.1)));
    named.filter(|(_, name)| !was_asked(name)).max().map(|(_, name)| name.clone())
}

type Page = (Option<ChunkId>, (Vec<crate::store::Replica>, bool));

fn changes(store: &crate::store::Store, news: &News, page: Option<Page>) -> InventoryChanges {
    let bad = news.bad.iter().filter_map(|(chunk, blocks)| {
        let generation = store.replica(*chunk)?.generation;
        Some(BadReplica { chunk: *chunk, generation, blocks: blocks.iter().copied().collect() })
    });
    let scrubbed = news.scrubbed.iter().filter_map(|(chunk, blocks)| {
        let generation = store.replica(*chunk)?.generation;
        Some(ScrubbedReplica { chunk: *chunk, generation, blocks: *blocks })
    });
    let mut changes = InventoryChanges {
        bad: bad.collect(),
        scrubbed: scrubbed.collect(),
        // What was copied here again meanwhile isn't gone.
        removed: news.removed.iter().copied().filter(|chunk| !store.has(*chunk)).collect(),
        ..InventoryChanges::default()
    };
    match page {
        Some((after, (replicas, more))) => {
            changes.from = after;
            changes.through = replicas.last().map(|replica| replica.chunk);
            changes.complete = !more;
            changes.present = replicas.into_iter().map(replica_info).collect();
        }
        None => {
            let present = news.present.iter().filter_map(|chunk| store.replica(*chunk));
            changes.present = present.map(replica_info).collect();
        }
    }
    changes
}

fn bounded_interval(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX)
}

fn ended(error: RpcError) -> Ended {
    match error.typed::<RegistrationError>() {
        Some(RegistrationError::NotLeader { leader }) => Ended::NotLeader(leader),
        Some(RegistrationError::NotRegistered) => Ended::Forgotten,
        Some(unwanted) => Ended::Unwanted(unwanted),
        None => Ended::Lost(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::ids::{ClusterId, MemberId};

    use super::*;

    #[test]
    fn a_leader_that_came_later_is_found_and_a_dead_one_is_not() {
        let who = |term, leader: Option<&str>| MemberIdentity {
            member: MemberId(1),
            address: "a:1".into(),
            cluster: ClusterId(1),
            in_group: true,
            is_leader: false,
            leader: leader.map(|name| (MemberId(9), name.to_owned())),
            term,
            disk_full: false,
        };
        let was_asked = |name: &str| ["a:1", "b:1", "c:1"].contains(&name);
        // Its followers take the dead one for alive until its lease is over.
        assert_eq!(named_stranger(&[who(3, Some("c:1")), who(3, None)], was_asked), None);
        let answers = [who(3, Some("old:1")), who(4, Some("new:1")), who(5, Some("c:1"))];
        assert_eq!(named_stranger(&answers, was_asked), Some("new:1".into()));
    }
}
