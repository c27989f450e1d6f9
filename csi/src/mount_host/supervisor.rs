//! The supervisor: starts client processes, passes mounts on to them, and knows when they end. Plain threads: there are
//! as many as clients and calls, and nothing here is hot.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `supervisor.rs` | the table of clients, and the node plugin's calls |
//! | `process.rs` | how a client process is started, spoken to, and ends |
//! | `succession.rs` | a client that died, or another mount host's, is succeeded |
//! | `pulse.rs` | a client that gets nothing done any more is ended |
//! | `leading.rs` | which mount host of the node serves its mounts, and how they pass from one to the next |

mod leading;
mod process;
mod pulse;
mod succession;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use thiserror::Error;

use super::packet::{PacketListener, PacketSocket, listen};
use super::protocol::{ClientInfo, ClientState, Failure, Reply, Request, Start};
use crate::budget;
use crate::holder::link::Link;
use process::{Problem, Spawner, expect};
use succession::Kept;

/// The first user id of a client: outside of those that systems give to people, services, containers and user namespaces.
const UID_FIRST: u32 = 1_879_100_000;
/// How long a client may take to open its session; it gives up itself before.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(90);
/// How long mounting may take after that, and INIT.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long who connects may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call waits for the end of a client at most.
const ENDED_TIMEOUT_MAX: Duration = Duration::from_secs(110);
/// How long a volume waits for a holder that is being restarted.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that could not start may take to end.
const FAILED_TIMEOUT: Duration = Duration::from_secs(5);

/// Why volumes wait while there is no holder.
const NO_HOLDER: &str =
    "the holder of this node's mounts can't be reached: see the atoll-holder pod of this node";

/// How the supervisor is set up.
#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    /// Its socket.
    pub socket: PathBuf,
    /// The directory with the holder's socket and the lock of who leads.
    pub holder: PathBuf,
    /// The client's program, `atoll-fs`.
    pub program: PathBuf,
    /// Clients at most.
    pub clients_max: usize,
    /// Memory of this mount host and all of its clients (bytes); `None`: nobody limits it.
    pub memory: Option<u64>,
    /// How long a client that serves may get nothing done until it is ended, for another one to continue.
    pub client_timeout: Duration,
    /// Environment of the clients: what and how they log.
    pub environment: Vec<(String, String)>,
}

/// Why the supervisor doesn't start.
#[derive(Debug, Error)]
pub enum SupervisorError {
    /// The socket can't be made.
    #[error("socket {path}: {error}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Threads, or the clock, can't be had.
    #[error("starting: {0}")]
    System(#[from] io::Error),
    /// The client's program isn't there.
    #[error("the client's program {0} doesn't exist: name it with --program")]
    Program(PathBuf),
}

/// A client's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    /// Not running: it has died, or another mount host's client has to end first.
    None,
    /// It is being started.
    Starting,
    /// It runs, or was not waited for yet: its number is its own for as long as the table is locked.
    Running(u32),
}

struct Entry {
    process: Process,
    uid: u32,
    /// Memory that it is counted with (bytes).
    budget: u64,
    state: ClientState,
    /// Tells the client to end.
    control: Option<Arc<PacketSocket>>,
    /// Set once it has a mount: what a successor needs if it dies.
    kept: Option<Arc<Kept>>,
}

/// What this mount host is among those of its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Role {
    /// Another one serves the mounts, or nobody does yet.
    #[default]
    Waiting,
    /// It serves them.
    Leading,
    /// It ends its clients, for another mount host to continue.
    Leaving,
}

#[derive(Default)]
struct Table {
    clients: HashMap<String, Entry>,
    role: Role,
    /// The process ends: no new clients.
    stopping: bool,
    /// Volumes of another mount host that this one doesn't serve yet.
    adopting: BTreeSet<String>,
    /// Volumes whose mounts are a later release's.
    unreadable: BTreeSet<String>,
}

struct Shared {
    config: SupervisorConfig,
    table: Mutex<Table>,
    changed: Condvar,
    spawner: Spawner,
    /// Never called while the table is locked: it locks the table itself, for a holder that asks for the mounts.
    link: OnceLock<Arc<Link>>,
    /// Held by who speaks with clients that serve: their answers come in the order of the questions.
    talking: Mutex<()>,
    /// A client of this mount host has served.
    has_served: AtomicBool,
    started: Counter,
    failed: Counter,
    succeeded: Counter,
    adopted: Counter,
    oversized: Counter,
}

/// A running supervisor.
#[derive(Clone)]
pub struct Supervisor(Arc<Shared>);

impl Supervisor {
    /// Listens, and serves in threads of its own until the process ends.
    ///
    /// # Errors
    /// See [`SupervisorError`].
    pub fn start(config: SupervisorConfig) -> Result<Supervisor, SupervisorError> {
        if !config.program.is_file() {
            return Err(SupervisorError::Program(config.program));
        }
        process::raise_descriptor_limit();
        let path = config.socket.clone();
        let failed = |error| SupervisorError::Socket { path: path.clone(), error };
        let listener = listen(&path).map_err(failed)?;
        let shared = Arc::new(Shared {
            config,
            table: Mutex::default(),
            changed: Condvar::new(),
            spawner: Spawner::start()?,
            link: OnceLock::new(),
            talking: Mutex::default(),
            has_served: AtomicBool::new(false),
            started: Counter::default(),
            failed: Counter::default(),
            succeeded: Counter::default(),
            adopted: Counter::default(),
            oversized: Counter::default(),
        });
        leading::start(&shared)?;
        pulse::start(&shared)?;
        let accepting = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || accept(&accepting, &listener))
            .map_err(failed)?;
        Ok(Supervisor(shared))
    }

    /// Makes the figures part of a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("mount_host_started", "Client processes started", self.0.started.clone());
        let help = "Client processes that ended before they had unmounted and written everything";
        registry.register("mount_host_failed", help, self.0.failed.clone());
        let help = "Client processes that died and whose mounts another one continues to serve";
        registry.register("mount_host_succeeded", help, self.0.succeeded.clone());
        let help = "Mounts of other mount hosts that client processes of this one continue to serve";
        registry.register("mount_host_adopted", help, self.0.adopted.clone());
        let help = "Client processes that were ended since all together took more memory than there is";
        registry.register("mount_host_oversized", help, self.0.oversized.clone());
        registry.register_collector(Box::new(Clients(self.clone())));
    }

    /// The clients there are.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientInfo> {
        self.0.list()
    }

    /// Why this mount host doesn't serve, or doesn't serve everything that it has to; `None`: it does.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.0.problem()
    }

    /// Ends for good: takes no new clients, has those that are there write out what they have, and ends them, so that another
    /// mount host continues. Without a holder that keeps the mounts this waits for one, or until they were unmounted, for
    /// at most `grace`; then mounts end with this mount host.
    pub fn stop(&self, grace: Duration) {
        leading::stop(&self.0, grace);
        let _ = std::fs::remove_file(&self.0.config.socket);
    }
}

struct Clients(Supervisor);

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

impl Collector for Clients {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Clients(Supervisor(shared)) = self;
        let mut gauge = |name, help, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("mount_host_clients", "Client processes", self.0.clients().len() as f64)?;
        let help = "Memory that the client processes are counted with (bytes)";
        gauge("mount_host_memory_budgets", help, shared.table.lock().budgets() as f64)?;
        match shared.config.memory {
            Some(memory) => {
                gauge("mount_host_memory_limit", "Memory of this mount host (bytes)", memory as f64)
            }
            None => Ok(()),
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &PacketListener) {
    loop {
        match listener.accept() {
            Ok(peer) => {
                let serving = Arc::clone(shared);
                let thread = std::thread::Builder::new().name("call".to_owned()).spawn(move || {
                    if let Err(error) = serving.serve(&peer) {
                        tracing::warn!(%error, "a call of the node plugin failed");
                    }
                });
                if let Err(error) = thread {
                    tracing::error!(%error, "a call of the node plugin can't be served");
                }
            }
            Err(error) => {
                tracing::error!(%error, "accepting a connection failed");
                // Out of descriptors, most likely: not to be made worse by turning round.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, peer: &PacketSocket) -> io::Result<()> {
        // Clients run in the same pod under other ids, and have nothing to ask for.
        let uid = peer.peer_uid()?;
        if uid != nix::unistd::getuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {uid} isn't allowed to call"),
            ));
        }
        match peer.receive(Instant::now() + REQUEST_TIMEOUT)? {
            Request::Start(start) => self.start(peer, &start),
            Request::Ended { volume, wait_ms } => {
                let wait = Duration::from_millis(wait_ms).min(ENDED_TIMEOUT_MAX);
                peer.send(&self.await_end(&volume, Instant::now() + wait))
            }
            Request::List => {
                let (clients, leading) = (self.list(), self.table.lock().role == Role::Leading);
                peer.send(&Reply::Clients { clients, leading })
            }
        }
    }

    fn list(&self) -> Vec<ClientInfo> {
        let table = self.table.lock();
        let mut clients: Vec<ClientInfo> = table
            .clients
            .iter()
            .map(|(volume, entry)| ClientInfo {
                volume: volume.clone(),
                pid: match entry.process {
                    Process::Running(pid) => pid,
                    Process::None | Process::Starting => 0,
                },
                uid: entry.uid,
                state: entry.state,
            })
            .collect();
        clients.sort_by(|a, b| a.volume.cmp(&b.volume));
        clients
    }

    fn link(&self) -> &Link {
        // It is set before the first call is served.
        self.link.wait()
    }

    fn await_end(&self, volume: &str, deadline: Instant) -> Reply {
        let mut table = self.table.lock();
        loop {
            let Some(entry) = table.clients.get(volume) else {
                return match table.role {
                    Role::Leading if !table.unreadable.contains(volume) => Reply::Ended,
                    _ => Reply::NotLeading,
                };
            };
            let state = entry.state;
            if self.changed.wait_until(&mut table, deadline).timed_out() && table.clients.contains_key(volume)
            {
                return Reply::Running { state };
            }
        }
    }

    fn start(self: &Arc<Self>, peer: &PacketSocket, start: &Start) -> io::Result<()> {
        let control = match self.spawn(start) {
            Ok(Ok(control)) => control,
            Ok(Err(reply)) => return peer.send(&reply),
            Err(error) => {
                let message = format!("starting {}: {error}", self.config.program.display());
                return peer.send(&Reply::Failed { failure: Failure::Other, message });
            }
        };
        match self.pass_on(peer, &control, start) {
            Ok(()) => {
                let serving = self.table.lock().clients.get_mut(&start.volume).map(|entry| {
                    entry.state = ClientState::Serving;
                });
                self.has_served.store(true, Ordering::Relaxed);
                tracing::info!(volume = start.volume, alive = serving.is_some(), "a client serves its mount");
                peer.send(&Reply::Serving)
            }
            Err(problem) => {
                // It ends when it is told to; the caller may try again after that.
                control.end();
                if let Some(entry) = self.table.lock().clients.get_mut(&start.volume) {
                    entry.control = None;
                    entry.state = ClientState::Ending;
                }
                self.await_end(&start.volume, Instant::now() + FAILED_TIMEOUT);
                match problem {
                    Problem::Client(failure, message) => {
                        tracing::warn!(
                            volume = start.volume,
                            message,
                            "the client refused to serve the volume"
                        );
                        peer.send(&Reply::Failed { failure, message })
                    }
                    Problem::Peer(error) => Err(error),
                }
            }
        }
    }

    /// Starts a client process and gives it its key.
    fn spawn(self: &Arc<Self>, start: &Start) -> io::Result<Result<Arc<PacketSocket>, Reply>> {
        let role = self.table.lock().role;
        if role != Role::Leading || self.link().turn().is_some_and(|turn| !turn.yours) {
            return Ok(Err(Reply::NotLeading));
        }
        if !self.link().await_connected(HOLDER_TIMEOUT) {
            let message = NO_HOLDER.to_owned();
            return Ok(Err(Reply::Failed { failure: Failure::Unreachable, message }));
        }
        let uid = {
            let mut table = self.table.lock();
            if let Some(entry) = table.clients.get(&start.volume) {
                return Ok(Err(Reply::Busy { state: entry.state }));
            }
            if table.role != Role::Leading || table.stopping || table.unreadable.contains(&start.volume) {
                return Ok(Err(Reply::NotLeading));
            }
            let clients = table.clients.len();
            if clients >= self.config.clients_max {
                return Ok(Err(Reply::Full { clients, why: None }));
            }
            let budget = budget::of(&start.flags);
            if let Some(why) = budget::refusal(self.config.memory, table.budgets(), budget) {
                return Ok(Err(Reply::Full { clients, why: Some(why) }));
            }
            let uid = table.free_uid();
            let (process, state) = (Process::Starting, ClientState::Starting);
            let entry = Entry { process, uid, budget, state, control: None, kept: None };
            table.clients.insert(start.volume.clone(), entry);
            uid
        };
        // Without the lock: starting a process takes as long as the disk takes.
        let (child, control) = match self.spawner.client(&self.config, start, uid, false) {
            Ok(spawned) => spawned,
            Err(error) => {
                self.table.lock().clients.remove(&start.volume);
                self.changed.notify_all();
                return Err(error);
            }
        };
        let pid = child.id();
        if let Some(entry) = self.table.lock().clients.get_mut(&start.volume) {
            entry.process = Process::Running(pid);
            entry.control = Some(Arc::clone(&control));
        }
        self.watch(&start.volume, child);
        self.started.inc();
        tracing::info!(volume = start.volume, pid, uid, "started a client");
        Ok(Ok(control))
    }

    /// Waits for the end of a client in a thread of its own.
    fn watch(self: &Arc<Self>, volume: &str, child: Child) {
        let (waiting, volume) = (Arc::clone(self), volume.to_owned());
        let thread = std::thread::Builder::new().name("wait".to_owned());
        if let Err(error) = thread.spawn(move || waiting.reap(&volume, child)) {
            tracing::error!(%error, "the client isn't waited for: it has no successor if it dies");
        }
    }

    /// Waits for the client's session, gets the mount from the node plugin, has the holder keep it, passes it on, and waits
    /// until it is served.
    fn pass_on(
        &self,
        peer: &PacketSocket,
        control: &Arc<PacketSocket>,
        start: &Start,
    ) -> Result<(), Problem> {
        let arena = expect(peer, control, "connected", Instant::now() + CONNECT_TIMEOUT)?.pop();
        peer.send(&Reply::Connected).map_err(Problem::Peer)?;
        let deadline = Instant::now() + MOUNT_TIMEOUT;
        let bundle = peer.receive_bundle(deadline).map_err(|error| Problem::Peer(io::Error::other(error)))?;
        let lost =
            |error: io::Error| Problem::Client(Failure::Other, format!("passing the mount on: {error}"));
        match arena {
            // Before the first request is answered: from then on nobody may lose it.
            Some(arena) => {
                let kept = Arc::new(Kept::new(start.clone(), bundle, arena, Arc::clone(control)));
                if let Some(entry) = self.table.lock().clients.get_mut(&start.volume) {
                    entry.kept = Some(Arc::clone(&kept));
                }
                kept.with(|mount| self.link().keep(mount)).map_err(|error| {
                    Problem::Client(Failure::Unreachable, format!("{NO_HOLDER} ({error})"))
                })?;
                control.send_bundle(&kept.bundle).map_err(lost)?;
            }
            None => control.send_bundle(&bundle).map_err(lost)?,
        }
        match expect(peer, control, "serving", deadline) {
            // The mount is the client's, whatever becomes of who made it: the next Stage finds it alive.
            Err(Problem::Peer(error)) => {
                tracing::info!(
                    volume = start.volume, %error,
                    "the node plugin disconnected while a client was starting"
                );
            }
            result => drop(result?),
        }
        Ok(())
    }
}

impl Table {
    /// Memory that the clients are counted with (bytes).
    fn budgets(&self) -> u64 {
        self.clients.values().map(|entry| entry.budget).sum()
    }

    /// The lowest user id that no client has.
    fn free_uid(&self) -> u32 {
        let taken: BTreeSet<u32> = self.clients.values().map(|entry| entry.uid).collect();
        (UID_FIRST..).find(|uid| !taken.contains(uid)).unwrap_or(UID_FIRST)
    }
}

#[cfg(test)]
mod tests;
