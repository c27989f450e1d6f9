//! The node plugin's side: finds the mount host of this node and talks to it.
//!
//! The socket is in the pod's own emptyDir and is reached through kubelet's folder of pods. Any tenant can make a pod with
//! such a folder, so the pod's uid comes from the API server, and who listens has to be of our own user id.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atoll_crds::names::labels;
use atoll_fuse::bundle::Bundle;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use parking_lot::Mutex;

use super::packet::PacketSocket;
use super::protocol::{Failure, Reply, Request, Start};
use super::{COMPONENT, SOCKET, SOCKET_VOLUME};
use crate::error::{CsiError, Pending};

/// How long the mount host may take to start a client that opens its session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(95);
/// How long a client may take to serve its mount.
const SERVE_TIMEOUT: Duration = Duration::from_secs(65);
/// How long the mount host may take for anything else, beyond what it was told to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where mount hosts are found.
pub enum Finder {
    /// One, whose socket's folder is known.
    Folder(PathBuf),
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

    /// Uids of the mount hosts on this node, those that are to stay first.
    async fn uids(&self) -> Result<Vec<String>, Pending> {
        let selector = format!("{}={},{}={COMPONENT}", labels::NAME, labels::NAME_VALUE, labels::COMPONENT);
        let parameters =
            ListParams::default().labels(&selector).fields(&format!("spec.nodeName={}", self.node));
        let pods = match self.api.list(&parameters).await {
            Ok(pods) => pods.items,
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

impl Finder {
    async fn folders(&self) -> Result<Vec<PathBuf>, Pending> {
        match self {
            Finder::Folder(folder) => Ok(vec![folder.clone()]),
            Finder::Pods(pods) => {
                let folder = |uid: String| {
                    pods.kubelet.join(format!("pods/{uid}/volumes/kubernetes.io~empty-dir/{SOCKET_VOLUME}"))
                };
                Ok(pods.uids().await?.into_iter().map(folder).collect())
            }
        }
    }

    /// Asks the first mount host that can be reached to start a client. The client has its session then.
    ///
    /// # Errors
    /// [`Pending`] if there is none, or the cluster doesn't answer; [`CsiError::Precondition`] if the cluster refuses.
    pub async fn start(&self, start: Start) -> Result<Starting, CsiError> {
        let folders = self.folders().await?;
        let volume = start.volume.clone();
        let answered = blocking(move || {
            let host = connect_first(&folders)?;
            host.send(&Request::Start(start)).map_err(away)?;
            let reply: Reply = host.receive(Instant::now() + CONNECT_TIMEOUT).map_err(away)?;
            Ok((host, reply))
        });
        let (host, reply) = answered.await?;
        match reply {
            Reply::Connected => Ok(Starting { host }),
            other => Err(refused(&volume, other)),
        }
    }

    /// Waits until no mount host of this node has a client of a volume.
    ///
    /// # Errors
    /// [`Pending`] if there still is one.
    pub async fn ended(&self, volume: &str, wait: Duration) -> Result<(), CsiError> {
        let deadline = Instant::now() + wait;
        for folder in self.folders().await? {
            let volume = volume.to_owned();
            let asked = blocking(move || {
                // Clients don't outlive their mount host: where none listens there is none.
                let Ok(host) = connect(&folder) else { return Ok(Reply::Ended) };
                let wait = deadline.saturating_duration_since(Instant::now());
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                host.send(&Request::Ended { volume, wait_ms }).map_err(away)?;
                host.receive(Instant::now() + wait + ANSWER_TIMEOUT).map_err(away)
            });
            match asked.await? {
                Reply::Ended => {}
                Reply::Running { state } => {
                    return Err(Pending::NotYet(format!(
                        "the client is still {state}: it writes buffered data, or the volume is still in use \
                         in a mount namespace of this node"
                    ))
                    .into());
                }
                other => return Err(nonsense(&other)),
            }
        }
        Ok(())
    }

    /// Whether a mount host can be reached; the text says why not.
    pub async fn problem(&self) -> Option<String> {
        let folders = match self.folders().await {
            Ok(folders) => folders,
            Err(pending) => return Some(pending.to_string()),
        };
        let asked = blocking(move || {
            let host = connect_first(&folders)?;
            host.send(&Request::List).map_err(away)?;
            host.receive::<Reply>(Instant::now() + ANSWER_TIMEOUT).map_err(away)
        });
        asked.await.err().map(|error| error.to_string())
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

fn connect_first(folders: &[PathBuf]) -> Result<PacketSocket, Pending> {
    let mut reasons = Vec::new();
    for folder in folders {
        match connect(folder) {
            Ok(host) => return Ok(host),
            Err(error) => reasons.push(format!("{}: {error}", folder.display())),
        }
    }
    if reasons.is_empty() {
        reasons.push("no mount host pod runs on this node".to_owned());
    }
    Err(Pending::Unavailable(format!("the mount host can't be reached: {}", reasons.join("; "))))
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
        Reply::Full { clients } => CsiError::Exhausted(format!(
            "the mount host of this node has {clients} volumes and accepts no more, or is stopping"
        )),
        other => nonsense(&other),
    }
}

fn nonsense(reply: &Reply) -> CsiError {
    CsiError::Internal(format!("unexpected reply of the mount host: {reply:?}"))
}
