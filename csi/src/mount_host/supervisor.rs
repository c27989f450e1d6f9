//! The supervisor: starts client processes, hands mounts over to them, and knows when they end. Plain threads: there are
//! as many as clients and calls, and nothing here is hot.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_fuse::bundle::Bundle;
use parking_lot::{Condvar, Mutex};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use thiserror::Error;

use super::packet::{PacketListener, PacketSocket};
use super::protocol::{ClientInfo, ClientState, Failure, Reply, Request, Start};

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
/// How long clients may take to write everything out and end, when the supervisor ends.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client that could not start may take to end.
const FAILED_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that has served for so long and dies is succeeded at once; one that dies sooner after a pause of at least …
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// … this, doubled each time, …
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// … up to this.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How the supervisor is set up.
#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    /// Its socket.
    pub socket: PathBuf,
    /// The client's program, `atoll-fs`.
    pub program: PathBuf,
    /// Clients at most.
    pub clients_max: usize,
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
    /// The client's program isn't there.
    #[error("the client's program {0} doesn't exist: name it with --program")]
    Program(PathBuf),
}

struct Entry {
    pid: u32,
    uid: u32,
    state: ClientState,
    /// Closing it tells the client to end.
    control: Option<Arc<PacketSocket>>,
    /// Set once it serves: what a successor needs if it dies.
    kept: Option<Arc<Kept>>,
}

/// What a client's successor needs. When the last of this and of the client goes, the mount is dead.
struct Kept {
    start: Start,
    bundle: Bundle,
    /// What the client has taken responsibility for: data and operations that the cluster doesn't have yet.
    arena: OwnedFd,
    /// Deaths in a row, each soon after the client began to serve.
    deaths: Mutex<Deaths>,
}

#[derive(Clone, Copy)]
struct Deaths {
    count: u32,
    serving_since: Instant,
}

impl Kept {
    /// The pause before a successor starts, the first one since the client died or, after `failed` attempts, another one.
    fn backoff(&self, now: Instant, failed: u32) -> Duration {
        let mut deaths = self.deaths.lock();
        if failed == 0 {
            let is_soon = now.duration_since(deaths.serving_since) < SETTLED_AFTER;
            deaths.count = if is_soon { deaths.count + 1 } else { 0 };
        }
        match deaths.count + failed {
            0 => Duration::ZERO,
            count => (BACKOFF_MIN * (1 << (count - 1).min(16))).min(BACKOFF_MAX),
        }
    }
}

#[derive(Default)]
struct Table {
    clients: HashMap<String, Entry>,
    stopping: bool,
}

struct Shared {
    config: SupervisorConfig,
    table: Mutex<Table>,
    changed: Condvar,
    started: Counter,
    failed: Counter,
    succeeded: Counter,
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
        let path = config.socket.clone();
        let failed = |error| SupervisorError::Socket { path: path.clone(), error };
        let listener = listen(&path).map_err(failed)?;
        let shared = Arc::new(Shared {
            config,
            table: Mutex::default(),
            changed: Condvar::new(),
            started: Counter::default(),
            failed: Counter::default(),
            succeeded: Counter::default(),
        });
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
        registry.register_collector(Box::new(Clients(self.clone())));
    }

    /// The clients there are.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientInfo> {
        self.0.list()
    }

    /// Takes no new clients, waits until those that are there have ended because their filesystems were unmounted, for at
    /// most `grace`, then tells the others to write everything out and end.
    pub fn stop(&self, grace: Duration) {
        let mut table = self.0.table.lock();
        table.stopping = true;
        let deadline = Instant::now() + grace;
        while !table.clients.is_empty() && !self.0.changed.wait_until(&mut table, deadline).timed_out() {}
        for (volume, entry) in &mut table.clients {
            tracing::warn!(volume, pid = entry.pid, "the volume is still mounted; stopping its client");
            entry.state = ClientState::Ending;
            entry.control = None;
        }
        let deadline = Instant::now() + END_TIMEOUT;
        while !table.clients.is_empty() && !self.0.changed.wait_until(&mut table, deadline).timed_out() {}
        for (volume, entry) in &table.clients {
            tracing::error!(volume, pid = entry.pid, "a client did not stop within its timeout");
        }
        drop(table);
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
        let gauge = ConstGauge::new(self.0.clients().len() as f64);
        let help = "Client processes";
        gauge.encode(encoder.encode_descriptor("mount_host_clients", help, None, gauge.metric_type())?)
    }
}

/// Makes the socket; one that an earlier process left behind is removed, and nothing else.
fn listen(path: &Path) -> io::Result<PacketListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that isn't a socket"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = PacketListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
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
            Request::List => peer.send(&Reply::Clients { clients: self.list() }),
        }
    }

    fn list(&self) -> Vec<ClientInfo> {
        let table = self.table.lock();
        let mut clients: Vec<ClientInfo> = table
            .clients
            .iter()
            .map(|(volume, entry)| ClientInfo {
                volume: volume.clone(),
                pid: entry.pid,
                uid: entry.uid,
                state: entry.state,
            })
            .collect();
        clients.sort_by(|a, b| a.volume.cmp(&b.volume));
        clients
    }

    fn await_end(&self, volume: &str, deadline: Instant) -> Reply {
        let mut table = self.table.lock();
        loop {
            let Some(entry) = table.clients.get(volume) else { return Reply::Ended };
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
        match hand_over(peer, &control, start) {
            Ok(kept) => {
                let serving = {
                    let mut table = self.table.lock();
                    let entry = table.clients.get_mut(&start.volume);
                    entry.map(|entry| {
                        entry.state = ClientState::Serving;
                        entry.kept = kept;
                    })
                };
                tracing::info!(volume = start.volume, alive = serving.is_some(), "a client serves its mount");
                peer.send(&Reply::Serving)
            }
            Err(problem) => {
                // It ends when its controlling socket is closed; whoever asked may try again after that.
                drop(control);
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
        let mut table = self.table.lock();
        if let Some(entry) = table.clients.get(&start.volume) {
            return Ok(Err(Reply::Busy { state: entry.state }));
        }
        if table.stopping || table.clients.len() >= self.config.clients_max {
            return Ok(Err(Reply::Full { clients: table.clients.len() }));
        }
        let taken = |uid: &u32| table.clients.values().any(|entry| entry.uid == *uid);
        let Some(uid) = (UID_FIRST..).find(|uid| !taken(uid)) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let (child, control) = self.spawn_process(start, uid, false)?;
        let pid = child.id();
        let (waiting, volume) = (Arc::clone(self), start.volume.clone());
        std::thread::Builder::new().name("wait".to_owned()).spawn(move || waiting.reap(&volume, child))?;
        let state = ClientState::Starting;
        let entry = Entry { pid, uid, state, control: Some(Arc::clone(&control)), kept: None };
        table.clients.insert(start.volume.clone(), entry);
        drop(table);
        self.started.inc();
        tracing::info!(volume = start.volume, pid, uid, "started a client");
        Ok(Ok(control))
    }

    fn spawn_process(
        &self,
        start: &Start,
        uid: u32,
        takeover: bool,
    ) -> io::Result<(Child, Arc<PacketSocket>)> {
        let (control, theirs) = PacketSocket::pair()?;
        let mut child = command(&self.config, start, uid, takeover).stdin(Stdio::from(theirs)).spawn()?;
        if let Some(errors) = child.stderr.take() {
            let volume = start.volume.clone();
            let logs = std::thread::Builder::new().name("log".to_owned());
            if let Err(error) = logs.spawn(move || copy_log(&volume, errors)) {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        }
        // A client that died at once is seen by whoever reads from it.
        let _ = control.send_bytes(start.key.as_bytes());
        Ok((child, Arc::new(control)))
    }

    fn reap(self: &Arc<Self>, volume: &str, mut child: Child) {
        let pid = child.id();
        let status = child.wait();
        let mut table = self.table.lock();
        let stopping = table.stopping;
        let kept = match (&status, table.clients.get_mut(volume)) {
            (Ok(status), Some(entry))
                if !stopping && entry.state == ClientState::Serving && died(*status) =>
            {
                entry.state = ClientState::Starting;
                entry.control = None;
                entry.kept.clone()
            }
            _ => None,
        };
        let state = match kept {
            Some(_) => None,
            None => table.clients.remove(volume).map(|entry| entry.state),
        };
        drop(table);
        self.changed.notify_all();
        match status {
            Ok(status) if status.success() => tracing::info!(volume, pid, "the client ended"),
            Ok(status) => {
                self.failed.inc();
                if kept.is_some() {
                    tracing::error!(
                        volume,
                        pid,
                        status = words(status),
                        "the client died; another one continues"
                    );
                } else {
                    tracing::error!(
                        volume,
                        pid,
                        ?state,
                        status = words(status),
                        "the client failed; pods that use the volume must be restarted"
                    );
                }
            }
            Err(error) => tracing::error!(volume, pid, %error, "waiting for a client process failed"),
        }
        if let Some(kept) = kept {
            self.succeed(volume, &kept);
        }
    }

    /// Starts a client that continues where a dead one stopped, again and again until one serves or the cluster refuses.
    fn succeed(self: &Arc<Self>, volume: &str, kept: &Arc<Kept>) {
        for failed in 0.. {
            std::thread::sleep(kept.backoff(Instant::now(), failed));
            let uid = {
                let table = self.table.lock();
                table.clients.get(volume).filter(|_| !table.stopping).map(|entry| entry.uid)
            };
            let Some(uid) = uid else { return self.give_up(volume, "the mount host is stopping") };
            let (mut child, control) = match self.spawn_process(&kept.start, uid, true) {
                Ok(spawned) => spawned,
                Err(error) => {
                    tracing::error!(volume, %error, "a successor of the client can't be started; retrying");
                    continue;
                }
            };
            let pid = child.id();
            match continue_with(&control, kept) {
                Ok(()) => {
                    kept.deaths.lock().serving_since = Instant::now();
                    if let Some(entry) = self.table.lock().clients.get_mut(volume) {
                        entry.pid = pid;
                        entry.state = ClientState::Serving;
                        entry.control = Some(control);
                    }
                    self.started.inc();
                    self.succeeded.inc();
                    tracing::info!(volume, pid, "another client continues to serve the mount");
                    self.changed.notify_all();
                    let (waiting, volume) = (Arc::clone(self), volume.to_owned());
                    let thread = std::thread::Builder::new().name("wait".to_owned());
                    if let Err(error) = thread.spawn(move || waiting.reap(&volume, child)) {
                        tracing::error!(%error, "the client isn't waited for: it has no successor if it dies");
                    }
                    return;
                }
                Err((failure, message)) => {
                    drop(control);
                    let _ = child.kill();
                    let _ = child.wait();
                    tracing::error!(
                        volume,
                        pid,
                        message,
                        "a successor of the client doesn't serve the mount"
                    );
                    if matches!(failure, Failure::Refused | Failure::Taken) {
                        return self.give_up(volume, "the cluster refuses it");
                    }
                }
            }
        }
    }

    /// The mount has no client any more.
    fn give_up(&self, volume: &str, why: &str) {
        self.table.lock().clients.remove(volume);
        self.changed.notify_all();
        tracing::error!(volume, why, "the mount is dead; pods that use the volume must be restarted");
    }
}

/// Whether a client ended without having had the chance to write everything out.
fn died(status: ExitStatus) -> bool {
    // A panic aborts it: what has an exit code has written everything out, or said that it can't.
    status.signal().is_some()
}

/// Gives a successor what its predecessor had, and waits until it serves.
fn continue_with(control: &PacketSocket, kept: &Kept) -> Result<(), (Failure, String)> {
    let lost = |error: io::Error| (Failure::Other, format!("no message from the client: {error}"));
    control.send_descriptor(b"arena", kept.arena.as_fd()).map_err(lost)?;
    said(control, "connected", Instant::now() + CONNECT_TIMEOUT)?;
    control.send_bundle(&kept.bundle).map_err(lost)?;
    said(control, "serving", Instant::now() + MOUNT_TIMEOUT)?;
    Ok(())
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// The command line of a client. The key isn't in it.
fn command(config: &SupervisorConfig, start: &Start, uid: u32, takeover: bool) -> Command {
    let mut command = Command::new(&config.program);
    command
        .args(["mount", "--control-fd", "0"])
        .args(["--cluster", &start.cluster, "--metadata", &start.metadata.join(",")])
        .args(["--host", &start.node, "--name", &start.volume]);
    if takeover {
        command.arg("--takeover");
    }
    if start.encrypt {
        command.arg("--encrypt");
    }
    if let Some(bytes) = start.flags.buffer_bytes {
        command.args(["--buffer", &bytes.to_string()]);
    }
    if let Some(seconds) = start.flags.timeout_seconds {
        command.args(["--timeout", &seconds.to_string()]);
    }
    command
        .env_clear()
        .envs(config.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .uid(uid)
        .gid(uid);
    command
}

/// Copies a client's log to ours, each line with the volume's name.
fn copy_log(volume: &str, errors: impl io::Read) {
    for line in BufReader::new(errors).lines().map_while(Result::ok) {
        eprintln!("[{volume}] {line}");
    }
}

enum Problem {
    /// The client said no, or died.
    Client(Failure, String),
    /// The node plugin is gone, or talks nonsense.
    Peer(io::Error),
}

/// Waits for the client's session, gets the mount from the node plugin, passes it on, waits until it is served. Returns what
/// a successor needs.
fn hand_over(
    peer: &PacketSocket,
    control: &PacketSocket,
    start: &Start,
) -> Result<Option<Arc<Kept>>, Problem> {
    let arena = expect(peer, control, "connected", Instant::now() + CONNECT_TIMEOUT)?.pop();
    peer.send(&Reply::Connected).map_err(Problem::Peer)?;
    let deadline = Instant::now() + MOUNT_TIMEOUT;
    let bundle = peer.receive_bundle(deadline).map_err(|error| Problem::Peer(io::Error::other(error)))?;
    control
        .send_bundle(&bundle)
        .map_err(|error| Problem::Client(Failure::Other, format!("handing the mount over: {error}")))?;
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
    let deaths = Mutex::new(Deaths { count: 0, serving_since: Instant::now() });
    Ok(arena.map(|arena| Arc::new(Kept { start: start.clone(), bundle, arena, deaths })))
}

/// Waits for one word of the client, while the node plugin is still there.
fn expect(
    peer: &PacketSocket,
    control: &PacketSocket,
    word: &str,
    deadline: Instant,
) -> Result<Vec<OwnedFd>, Problem> {
    match control.readable_before(peer, deadline) {
        Ok(true) => {}
        Ok(false) => {
            return Err(Problem::Peer(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closed the connection",
            )));
        }
        // Said by what comes next.
        Err(_) => {}
    }
    said(control, word, deadline).map_err(|(failure, message)| Problem::Client(failure, message))
}

/// Waits for one word of the client, and returns the descriptors that come with it.
fn said(control: &PacketSocket, word: &str, deadline: Instant) -> Result<Vec<OwnedFd>, (Failure, String)> {
    let (said, descriptors) = match control.receive_descriptors(deadline) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let message = format!("the client did not report '{word}' within its timeout");
            return Err((Failure::Unreachable, message));
        }
        Err(error) => return Err((Failure::Other, format!("no message from the client: {error}"))),
    };
    let said = String::from_utf8_lossy(&said);
    if said == word {
        return Ok(descriptors);
    }
    let failed = said.strip_prefix("failed ").and_then(|rest| rest.split_once(' '));
    Err(match failed.and_then(|(code, message)| Some((code.parse().ok()?, message))) {
        Some((code, message)) => (Failure::from_exit_code(code), message.to_owned()),
        None if said.is_empty() => {
            (Failure::Other, "the client ended during its start; see the mount host's log".to_owned())
        }
        None => (Failure::Other, format!("the client reported '{said}' instead of '{word}'")),
    })
}

#[cfg(test)]
mod tests;
