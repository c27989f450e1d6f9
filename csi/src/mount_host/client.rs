//! The node plugin's side: finds the mount host of this node and talks to it.
//!
//! The socket is in the pod's own emptyDir and is reached through kubelet's folder of pods. Any tenant can make a pod with
//! such a folder, so the pod's uid comes from the API server, and who listens has to be of our own user id.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atoll_crds::Quantity;
use atoll_crds::names::labels;
use atoll_fuse::bundle::Bundle;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use parking_lot::Mutex;

use super::packet::PacketSocket;
use super::protocol::{ClientState, Failure, Reply, Request, Start};
use super::{COMPONENT, SOCKET, SOCKET_VOLUME};
use crate::error::{CsiError, Pending};
use crate::holder;

/// How long the mount host may take to start a client that opens its session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(95);
/// How long a client may take to serve its mount.
const SERVE_TIMEOUT: Duration = Duration::from_secs(65);
/// How long the mount host may take for anything else, beyond what it was told to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call waits while no mount host of the node leads: one takes over from another one, mostly.
const LEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it is waited for a mount host's pod whose memory is asked for.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked for.
const MEMORY_POLL: Duration = Duration::from_secs(1);
/// How often it is asked which one does.
const LEADER_POLL: Duration = Duration::from_millis(200);

/// Finds the mount host that serves this node's mounts.
pub struct Finder {
    hosts: Hosts,
    /// The directory of the holder's socket.
    holder: PathBuf,
    /// How long a call waits while no mount host leads.
    leader_timeout: Duration,
}

/// Where mount hosts are found.
enum Hosts {
    /// Those whose sockets' folders are known.
    Folders(Vec<PathBuf>),
    /// Pods of this node and namespace.
    Pods(Box<Pods>),
}

/// Mount hosts that are pods.
pub struct Pods {
    api: Api<Pod>,
    node: String,
    kubelet: PathBuf,
    /// Uids as they were found last, for when the API server is away.
    known: Mutex<Vec<String>>,
}

impl Pods {
    /// Pods of a namespace on a node. `kubelet` is its folder, usually /var/lib/kubelet.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, node: &str, kubelet: PathBuf) -> Pods {
        let api = Api::namespaced(client, namespace);
        Pods { api, node: node.to_owned(), kubelet, known: Mutex::default() }
    }

    async fn list(&self) -> Result<Vec<Pod>, kube::Error> {
        let selector = format!("{}={},{}={COMPONENT}", labels::NAME, labels::NAME_VALUE, labels::COMPONENT);
        let parameters =
            ListParams::default().labels(&selector).fields(&format!("spec.nodeName={}", self.node));
        Ok(self.api.list(&parameters).await?.items)
    }

    /// The memory that this node's mount host has by its pod's limit (bytes), once there is such a pod.
    async fn memory(&self) -> Option<Memory> {
        match self.list().await {
            Ok(pods) => pods.iter().map(memory_of).min(),
            Err(error) => {
                tracing::warn!(%error, "searching for this node's mount host");
                None
            }
        }
    }

    /// Uids of the mount hosts on this node, those that are to stay first.
    async fn uids(&self) -> Result<Vec<String>, Pending> {
        let pods = match self.list().await {
            Ok(pods) => pods,
            Err(error) => {
                let known = self.known.lock().clone();
                if known.is_empty() {
                    return Err(Pending::Unavailable(format!(
                        "searching for this node's mount host: {error}"
                    )));
                }
                tracing::warn!(
                    %error,
                    "searching for this node's mount host failed; using the last known one"
                );
                return Ok(known);
            }
        };
        let mut found: Vec<(bool, String)> = pods
            .into_iter()
            .filter_map(|pod| Some((pod.metadata.deletion_timestamp.is_some(), pod.metadata.uid?)))
            .collect();
        found.sort();
        let uids: Vec<String> = found.into_iter().map(|(_, uid)| uid).collect();
        self.known.lock().clone_from(&uids);
        Ok(uids)
    }
}

/// What a mount host has by the limit of its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Memory {
    Bytes(u64),
    Unlimited,
}

fn memory_of(pod: &Pod) -> Memory {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let host = containers.filter(|container| container.name == COMPONENT);
    let limits = host.filter_map(|container| container.resources.as_ref()?.limits.as_ref()?.get("memory"));
    let bytes = limits.filter_map(|limit| Quantity::from(limit.0.as_str()).bytes().ok());
    bytes.min().map_or(Memory::Unlimited, Memory::Bytes)
}

impl Finder {
    /// Memory of this node's mount host (bytes); `None` if it has no limit, or doesn't exist yet: it is awaited for
    /// `MEMORY_TIMEOUT`, since kubelet asks only once.
    pub async fn memory(&self) -> Option<u64> {
        let Hosts::Pods(pods) = &self.hosts else { return None };
        let deadline = tokio::time::Instant::now() + MEMORY_TIMEOUT;
        loop {
            match pods.memory().await {
                Some(Memory::Bytes(bytes)) => return Some(bytes),
                Some(Memory::Unlimited) => return None,
                None if tokio::time::Instant::now() >= deadline => return None,
                None => tokio::time::sleep(MEMORY_POLL).await,
            }
        }
    }

    /// One mount host, whose socket's directory is known, and its holder's.
    #[must_use]
    pub fn folder(host: PathBuf, holder: PathBuf) -> Finder {
        Finder::folders_of(vec![host], holder)
    }

    /// Several mount hosts.
    #[must_use]
    pub fn folders_of(hosts: Vec<PathBuf>, holder: PathBuf) -> Finder {
        Finder { hosts: Hosts::Folders(hosts), holder, leader_timeout: LEADER_TIMEOUT }
    }

    /// Those of this node's pods.
    #[must_use]
    pub fn pods(pods: Pods, holder: PathBuf) -> Finder {
        Finder { hosts: Hosts::Pods(Box::new(pods)), holder, leader_timeout: LEADER_TIMEOUT }
    }

    /// Waits for so long while no mount host leads.
    #[must_use]
    pub fn with_leader_timeout(self, leader_timeout: Duration) -> Finder {
        Finder { leader_timeout, ..self }
    }

    async fn folders(&self) -> Result<Vec<PathBuf>, Pending> {
        match &self.hosts {
            Hosts::Folders(folders) => Ok(folders.clone()),
            Hosts::Pods(pods) => {
                let folder = |uid: String| {
                    pods.kubelet.join(format!("pods/{uid}/volumes/kubernetes.io~empty-dir/{SOCKET_VOLUME}"))
                };
                Ok(pods.uids().await?.into_iter().map(folder).collect())
            }
        }
    }

    /// Asks the mount host that leads to start a client. The client has its session then.
    ///
    /// # Errors
    /// [`Pending`] if none leads, or the cluster doesn't answer; [`CsiError::Precondition`] if the cluster refuses.
    pub async fn start(&self, start: Start) -> Result<Starting, CsiError> {
        let deadline = Instant::now() + self.leader_timeout;
        loop {
            let folders = self.folders().await?;
            let asked = start.clone();
            let answered = blocking(move || {
                let request = Request::Start(asked);
                ask_leader(&folders, &request, Instant::now() + CONNECT_TIMEOUT)
            });
            match answered.await {
                Ok((host, Reply::Connected)) => return Ok(Starting { host }),
                Ok((_, other)) => return Err(refused(&start.volume, other)),
                Err(CsiError::Pending(Pending::Unavailable(why))) if Instant::now() < deadline => {
                    tracing::debug!(why, "no mount host leads yet");
                    tokio::time::sleep(LEADER_POLL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until this node has no client of a volume.
    ///
    /// # Errors
    /// [`Pending`] if there still is one, or nobody can say.
    pub async fn ended(&self, volume: &str, wait: Duration) -> Result<(), CsiError> {
        let deadline = Instant::now() + wait;
        loop {
            let folders = self.folders().await?;
            let (asked, holder) = (volume.to_owned(), self.holder.clone());
            let found = blocking(move || {
                let left = deadline.saturating_duration_since(Instant::now());
                let wait_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let request = Request::Ended { volume: asked.clone(), wait_ms };
                let answered = ask_leader(&folders, &request, deadline + ANSWER_TIMEOUT);
                Ok(match answered {
                    Ok((_, reply)) => Presence::said(reply),
                    Err(_) => {
                        let hosts = folders.iter().filter(|folder| connect(folder).is_ok()).count();
                        Presence::without_leader(&holder::link::has(&holder, &asked), hosts)
                    }
                })
            });
            match found.await? {
                Presence::Ended => return Ok(()),
                Presence::Unknown(why) if Instant::now() < deadline => {
                    tracing::debug!(volume, why, "it isn't known yet whether the volume has a client");
                    tokio::time::sleep(LEADER_POLL).await;
                }
                Presence::Unknown(why) => return Err(Pending::Unavailable(why).into()),
                Presence::Running(why) => return Err(Pending::NotYet(why).into()),
                Presence::Nonsense(reply) => return Err(nonsense(&reply)),
            }
        }
    }

    /// The volumes that the mount host which leads serves; `None` if none leads.
    pub async fn serving(&self) -> Option<BTreeSet<String>> {
        let folders = self.folders().await.ok()?;
        let asked = blocking(move || {
            let listed = folders.iter().filter_map(|folder| {
                let host = connect(folder).ok()?;
                host.send(&Request::List).ok()?;
                host.receive::<Reply>(Instant::now() + ANSWER_TIMEOUT).ok()
            });
            Ok(listed.into_iter().find_map(|reply| match reply {
                Reply::Clients { clients, leading: true } => Some(clients),
                _ => None,
            }))
        });
        let clients = asked.await.ok()??;
        let serving = clients.into_iter().filter(|client| client.state == ClientState::Serving);
        Some(serving.map(|client| client.volume).collect())
    }

    /// Why no mount host of this node takes new volumes; `None`: one does.
    pub async fn problem(&self) -> Option<String> {
        let folders = match self.folders().await {
            Ok(folders) => folders,
            Err(pending) => return Some(pending.to_string()),
        };
        let asked = blocking(move || {
            let mut reasons = Vec::new();
            for folder in &folders {
                let listed = connect(folder).and_then(|host| {
                    host.send(&Request::List)?;
                    host.receive::<Reply>(Instant::now() + ANSWER_TIMEOUT)
                });
                match listed {
                    Ok(Reply::Clients { leading: true, .. }) => return Ok(None),
                    Ok(_) => reasons.push("a mount host doesn't serve the mounts yet".to_owned()),
                    Err(error) => reasons.push(format!("{}: {error}", folder.display())),
                }
            }
            Ok(Some(no_leader(reasons).to_string()))
        });
        asked.await.unwrap_or_else(|error| Some(error.to_string()))
    }
}

/// Whether a volume has a client on this node.
#[derive(Debug, PartialEq, Eq)]
enum Presence {
    Ended,
    Running(String),
    /// Nobody can say, and why.
    Unknown(String),
    Nonsense(Reply),
}

impl Presence {
    /// What the mount host that leads says.
    fn said(reply: Reply) -> Presence {
        match reply {
            Reply::Ended => Presence::Ended,
            Reply::Running { state } => Presence::Running(format!(
                "the client is still {state}: it writes buffered data, or the volume is still in use in a \
                 mount namespace of this node"
            )),
            other => Presence::Nonsense(other),
        }
    }

    /// What can be said while no mount host leads. `held`: what the holder says, if there is one; `hosts`: how many mount
    /// hosts there are. Where nobody is, nobody has the mount's descriptors.
    fn without_leader(held: &io::Result<Option<bool>>, hosts: usize) -> Presence {
        match (held, hosts) {
            (Ok(Some(false)), _) | (Ok(None), 0) => Presence::Ended,
            (Ok(Some(true)), _) => Presence::Unknown(
                "the volume's client is being replaced: no mount host of this node serves the mounts yet"
                    .to_owned(),
            ),
            (Ok(None), _) => {
                Presence::Unknown("a mount host waits for the holder of this node's mounts".to_owned())
            }
            (Err(error), _) => {
                Presence::Unknown(format!("the holder of this node's mounts doesn't respond: {error}"))
            }
        }
    }
}

/// A client that waits for its mount. If this is dropped it ends.
pub struct Starting {
    host: PacketSocket,
}

impl Starting {
    /// Gives it the mount, and waits until it serves it.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn serve(self, bundle: Bundle, volume: &str) -> Result<(), CsiError> {
        let answered = blocking(move || {
            self.host.send_bundle(&bundle).map_err(away)?;
            drop(bundle);
            self.host.receive(Instant::now() + SERVE_TIMEOUT).map_err(away)
        });
        match answered.await? {
            Reply::Serving => Ok(()),
            other => Err(refused(volume, other)),
        }
    }
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Pending> + Send + 'static,
) -> Result<T, CsiError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(CsiError::Internal(format!("mount host: {error}"))),
    }
}

/// Asks one mount host after the other, until one leads; its answer, and the connection.
fn ask_leader(
    folders: &[PathBuf],
    request: &Request,
    deadline: Instant,
) -> Result<(PacketSocket, Reply), Pending> {
    let mut reasons = Vec::new();
    for folder in folders {
        let host = match connect(folder) {
            Ok(host) => host,
            Err(error) => {
                reasons.push(format!("{}: {error}", folder.display()));
                continue;
            }
        };
        let answered = host.send(request).and_then(|()| host.receive(deadline));
        match answered.map_err(away)? {
            Reply::NotLeading => reasons.push("a mount host doesn't serve the mounts yet".to_owned()),
            reply => return Ok((host, reply)),
        }
    }
    Err(no_leader(reasons))
}

fn no_leader(mut reasons: Vec<String>) -> Pending {
    if reasons.is_empty() {
        reasons.push("no mount host pod runs on this node".to_owned());
    }
    Pending::Unavailable(format!("the mount host can't be reached: {}", reasons.join("; ")))
}

/// Connects through /proc/self/fd, since a socket's path has room for 107 bytes only.
fn connect(folder: &Path) -> io::Result<PacketSocket> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
    let host = PacketSocket::connect(Path::new(&format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())))?;
    // Clients could put a socket of their own there.
    let uid = host.peer_uid()?;
    if uid != nix::unistd::getuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {uid} listens on that socket"),
        ));
    }
    Ok(host)
}

fn away(error: io::Error) -> Pending {
    Pending::Unavailable(format!("the mount host doesn't respond: {error}"))
}

fn refused(volume: &str, reply: Reply) -> CsiError {
    match reply {
        Reply::Failed { failure: Failure::Unreachable, message } => Pending::Unavailable(message).into(),
        Reply::Failed { failure: Failure::Taken, message } => Pending::Elsewhere(message).into(),
        Reply::Failed { failure: Failure::Refused, message } => CsiError::Precondition(message),
        Reply::Failed { failure: Failure::Other, message } => CsiError::Internal(message),
        Reply::Busy { state } => {
            Pending::NotYet(format!("an earlier client of volume {volume} is still {state}")).into()
        }
        Reply::Full { why: Some(why), .. } => CsiError::Exhausted(format!("volume {volume}: {why}")),
        Reply::Full { clients, why: None } => CsiError::Exhausted(format!(
            "the mount host of this node has {clients} volumes and accepts no more, or is stopping"
        )),
        other => nonsense(&other),
    }
}

fn nonsense(reply: &Reply) -> CsiError {
    CsiError::Internal(format!("unexpected reply of the mount host: {reply:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_host_s_memory_is_its_container_s_limit() {
        let pod = |limits: serde_json::Value| -> Pod {
            let host = serde_json::json!({ "name": COMPONENT, "resources": { "limits": limits } });
            let other =
                serde_json::json!({ "name": "proxy", "resources": { "limits": { "memory": "1Mi" } } });
            let spec = serde_json::json!({ "spec": { "containers": [other, host] } });
            serde_json::from_value(spec).unwrap()
        };
        assert_eq!(memory_of(&pod(serde_json::json!({ "memory": "2Gi" }))), Memory::Bytes(2 << 30));
        assert_eq!(memory_of(&pod(serde_json::json!({ "cpu": "1" }))), Memory::Unlimited);
        assert_eq!([Memory::Unlimited, Memory::Bytes(7)].iter().min(), Some(&Memory::Bytes(7)));
    }

    #[test]
    fn a_volume_has_ended_when_nobody_can_have_its_descriptors() {
        assert_eq!(Presence::said(Reply::Ended), Presence::Ended);
        assert!(matches!(Presence::without_leader(&Ok(Some(true)), 0), Presence::Unknown(_)));
        assert_eq!(Presence::without_leader(&Ok(Some(false)), 2), Presence::Ended);
        assert_eq!(Presence::without_leader(&Ok(None), 0), Presence::Ended, "both are gone");
        assert!(matches!(Presence::without_leader(&Ok(None), 1), Presence::Unknown(_)));
        let broken = Err(io::ErrorKind::TimedOut.into());
        assert!(matches!(Presence::without_leader(&broken, 0), Presence::Unknown(_)));
    }
}
