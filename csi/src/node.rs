//! The node service: stages volumes (one FUSE mount for each volume and node, on the staging path and nowhere else),
//! publishes them (binds), and takes both away. What it knows is in the mount table; nothing is kept here.

mod service;
pub mod watch;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::ids::ClusterId;
use atoll_crds::names::{VolumeHandle, secret};
use atoll_fuse::device::{self, MountOptions};
use atoll_proto::handshake::ClusterKey;
use tokio::time::Instant;

use crate::access::Access;
use crate::csi::VolumeHealth;
use crate::error::{CsiError, Pending};
use crate::health;
use crate::mount_flags::MountFlags;
use crate::mount_host::client::{Finder, Starting};
use crate::mount_host::protocol::{Key, Start};
use crate::mounter;
use crate::target_path::{
    self, Liveness, NodePath, Publish, Stage, Unpublish, Unstage, is_volume, plan_publish, plan_stage,
    plan_unpublish, plan_unstage, uppermost,
};

pub use service::NodeService;

/// Descriptors of the device for one mount, unless flags say otherwise.
const READERS_DEFAULT: usize = 2;
/// How long Unstage waits for the client to write everything out and end.
const END_TIMEOUT: Duration = Duration::from_secs(90);
/// How long Stage waits for another node to let go of a volume that is for one at a time.
const ELSEWHERE_TIMEOUT: Duration = Duration::from_secs(80);
/// How often it is looked whether it has.
const ELSEWHERE_POLL: Duration = Duration::from_secs(2);
/// Mounts that may lie on top of one another at a target: more mean that something goes round in circles.
const LAYERS_MAX: usize = 64;

/// Where a volume's metadata servers are reached.
pub type Addresses = Arc<dyn Fn(&VolumeHandle) -> Vec<String> + Send + Sync>;

/// A node.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where its mount host is found.
    pub finder: Finder,
    /// Where volumes are reached.
    pub addresses: Addresses,
}

/// What a client has to know of a volume's cluster, from the secrets of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    cluster: ClusterId,
    key: Key,
    encrypt: bool,
}

/// A parsed NodeStageVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageRequest {
    /// The volume.
    pub handle: VolumeHandle,
    /// Where to mount.
    pub staging: NodePath,
    /// How.
    pub flags: MountFlags,
    /// By which key.
    pub credentials: Credentials,
}

/// A parsed NodePublishVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRequest {
    /// The volume.
    pub handle: VolumeHandle,
    /// Where it is mounted.
    pub staging: NodePath,
    /// Where it shall be visible.
    pub target: NodePath,
    /// Who may use it.
    pub access: Access,
    /// How it is mounted.
    pub flags: MountFlags,
    /// Nothing can be changed there.
    pub read_only: bool,
    /// By which key, should it have to be mounted again.
    pub credentials: Option<Credentials>,
}

impl Credentials {
    /// Parses the Secret with a cluster's key, as kubelet passes it on.
    ///
    /// # Errors
    /// [`CsiError::Invalid`], which names the entry and never its value.
    pub fn parse(secrets: &HashMap<String, String>) -> Result<Credentials, CsiError> {
        let entry = |name: &str| {
            secrets.get(name).map(|value| value.trim()).filter(|value| !value.is_empty()).ok_or_else(|| {
                CsiError::Invalid(format!(
                    "the secret has no entry '{name}': the StorageClass or PersistentVolume must name the \
                     Secret with the cluster's key as node-stage and node-publish secret"
                ))
            })
        };
        let cluster = entry(secret::CLUSTER)?.parse().map_err(|_| {
            CsiError::Invalid(format!("the secret's entry '{}' is not a cluster id", secret::CLUSTER))
        })?;
        let key = entry(secret::KEY)?;
        ClusterKey::parse(key.as_bytes())
            .map_err(|_| CsiError::Invalid(format!("the secret's entry '{}' is not a key", secret::KEY)))?;
        let encrypt = match secrets.get(secret::ENCRYPTION).map(String::as_str) {
            None | Some("" | secret::ENCRYPTION_DISABLED) => false,
            Some(secret::ENCRYPTION_REQUIRED) => true,
            Some(_) => {
                return Err(CsiError::Invalid(format!(
                    "the secret's entry '{}' is neither '{}' nor '{}'",
                    secret::ENCRYPTION,
                    secret::ENCRYPTION_DISABLED,
                    secret::ENCRYPTION_REQUIRED
                )));
            }
        };
        Ok(Credentials { cluster, key: Key::new(key.to_owned()), encrypt })
    }
}

impl Node {
    /// Mounts a volume on its staging path, or finds that it is.
    ///
    /// # Errors
    /// See [`plan_stage`], and what can go wrong with clusters, mount hosts and mounts.
    pub async fn stage(&self, request: &StageRequest) -> Result<(), CsiError> {
        let volume = request.handle.to_string();
        let staging = request.staging.as_path();
        let source = target_path::source(request.credentials.cluster, &volume);
        let table = mounter::table()?;
        let found = uppermost(&table, staging);
        let liveness = match found {
            Some(found) if is_volume(found, &volume) => mounter::liveness(staging).await?,
            _ => Liveness::Alive,
        };
        match plan_stage(found, liveness, &source, &request.flags, device::has_selinux())? {
            Stage::Done => return Ok(()),
            Stage::Replace => {
                tracing::warn!(volume, path = %request.staging, "detaching a dead mount");
                mounter::unmount(staging, true).await?;
                // There may be another below, of a crash before the last one.
                return Box::pin(self.stage(request)).await;
            }
            Stage::Mount => {}
        }
        mounter::prepare_folder(staging)?;
        let starting = self.start_client(request, &volume).await?;
        let mut options = MountOptions::new(request.credentials.cluster);
        options.source = source;
        options.nosuid = request.flags.nosuid;
        options.nodev = request.flags.nodev;
        options.noexec = request.flags.noexec;
        options.read_only = request.flags.read_only;
        options.noatime = request.flags.noatime;
        options.context.clone_from(&request.flags.context);
        let readers = request.flags.readers.map_or(READERS_DEFAULT, usize::from);
        let bundle = mounter::mount_device(staging, options, readers).await?;
        let served = starting.serve(bundle, &volume).await;
        let usable = match served {
            Ok(()) => mounter::liveness(staging).await,
            Err(error) => Err(error),
        };
        match usable {
            Ok(Liveness::Alive) => {
                device::read_ahead(staging);
                Ok(())
            }
            Ok(Liveness::Silent) => {
                Err(Pending::NotYet(format!("the mount at {} doesn't respond", request.staging)).into())
            }
            Ok(Liveness::Dead) => Err(self.take_back(staging, died(&request.staging)).await),
            Err(error) => Err(self.take_back(staging, error).await),
        }
    }

    /// Starts a client. While another node has the volume this is tried again for a while: kubelet waits for minutes after
    /// a call that failed, and the other node may be about to let go.
    async fn start_client(&self, request: &StageRequest, volume: &str) -> Result<Starting, CsiError> {
        let deadline = Instant::now() + ELSEWHERE_TIMEOUT;
        loop {
            match self.finder.start(self.client(request, volume)).await {
                Err(CsiError::Pending(Pending::Elsewhere(why))) if Instant::now() < deadline => {
                    tracing::info!(volume, why, "the volume can't be staged yet");
                    tokio::time::sleep(ELSEWHERE_POLL).await;
                }
                Err(CsiError::Pending(Pending::Elsewhere(why))) => {
                    return Err(Pending::Elsewhere(format!(
                        "{why} (a Deployment with a ReadWriteOnce volume needs strategy: Recreate)"
                    ))
                    .into());
                }
                result => return result,
            }
        }
    }

    fn client(&self, request: &StageRequest, volume: &str) -> Start {
        Start {
            volume: volume.to_owned(),
            cluster: request.credentials.cluster.to_string(),
            key: request.credentials.key.clone(),
            encrypt: request.credentials.encrypt,
            metadata: (self.addresses)(&request.handle),
            node: self.name.clone(),
            flags: request.flags.clone(),
        }
    }

    /// Takes a mount away that nobody will serve.
    async fn take_back(&self, staging: &Path, error: CsiError) -> CsiError {
        if let Err(second) = mounter::unmount(staging, true).await {
            tracing::warn!(error = %second, "a failed stage could not be undone");
        }
        error
    }

    /// Unmounts a volume, and waits until its client has written everything out and ended its session.
    ///
    /// # Errors
    /// See [`plan_unstage`]; [`Pending::NotYet`] while the client isn't done.
    pub async fn unstage(&self, handle: &VolumeHandle, staging: &NodePath) -> Result<(), CsiError> {
        let volume = handle.to_string();
        let path = staging.as_path();
        for _ in 0..LAYERS_MAX {
            let table = mounter::table()?;
            let liveness = match uppermost(&table, path) {
                Some(found) if is_volume(found, &volume) => mounter::liveness(path).await?,
                _ => Liveness::Alive,
            };
            match plan_unstage(&table, path, &volume, liveness)? {
                Unstage::Done => return self.finder.ended(&volume, END_TIMEOUT).await,
                Unstage::Unmount => mounter::unmount(path, false).await?,
                Unstage::Detach => mounter::unmount(path, true).await?,
            }
        }
        Err(CsiError::Internal(format!("there are too many mounts at {staging}")))
    }

    /// Binds a staged volume to a target path. A dead mount is replaced first, since kubelet won't ask for Stage again.
    ///
    /// # Errors
    /// See [`plan_publish`].
    pub async fn publish(&self, request: &PublishRequest) -> Result<(), CsiError> {
        let volume = request.handle.to_string();
        let (staging, target) = (request.staging.as_path(), request.target.as_path());
        self.repair(request, &volume).await?;
        let table = mounter::table()?;
        let staged =
            uppermost(&table, staging).filter(|staged| is_volume(staged, &volume)).ok_or_else(|| {
                CsiError::Precondition(format!("volume {volume} is not staged at {}", request.staging))
            })?;
        let read_only = request.read_only || request.flags.read_only;
        match plan_publish(&table, staged, target, &volume, request.access, read_only)? {
            Publish::Done => return Ok(()),
            Publish::Rebind => {
                tracing::warn!(volume, path = %request.target, "detaching a dead mount");
                mounter::unmount(target, true).await?;
                return Box::pin(self.publish(request)).await;
            }
            Publish::Bind => {}
        }
        mounter::prepare_folder(target)?;
        mounter::bind(staging, target, read_only).await?;
        // The folder is never taken for the mount: what is there now has to be the volume.
        let table = mounter::table()?;
        match uppermost(&table, target).map(|bound| bound.device) {
            Some(device) if device == staged.device => Ok(()),
            _ => Err(CsiError::Internal(format!("the mount at {} isn't this volume's", request.target))),
        }
    }

    /// Makes sure that a living mount is at the staging path.
    async fn repair(&self, request: &PublishRequest, volume: &str) -> Result<(), CsiError> {
        let staging = request.staging.as_path();
        let table = mounter::table()?;
        let missing = match uppermost(&table, staging) {
            None => "not staged",
            Some(found) if is_volume(found, volume) => match mounter::liveness(staging).await? {
                Liveness::Alive => return Ok(()),
                Liveness::Dead => "dead",
                Liveness::Silent => {
                    return Err(
                        Pending::NotYet(format!("the mount at {} doesn't respond", request.staging)).into()
                    );
                }
            },
            // The plan says what is wrong with it.
            Some(_) => return Ok(()),
        };
        let Some(credentials) = request.credentials.clone() else {
            return Err(CsiError::Precondition(format!(
                "volume {volume} is {missing} at {}, and without a node-publish secret it can't be mounted again here",
                request.staging
            )));
        };
        tracing::warn!(
            volume, path = %request.staging,
            "the staged volume is {missing}; mounting the volume again"
        );
        let again = StageRequest {
            handle: request.handle.clone(),
            staging: request.staging.clone(),
            flags: request.flags.clone(),
            credentials,
        };
        self.stage(&again).await
    }

    /// Takes a target path away, however many mounts of the volume lie there. Never talks to the cluster.
    ///
    /// # Errors
    /// See [`plan_unpublish`].
    pub async fn unpublish(&self, volume: &str, target: &NodePath) -> Result<(), CsiError> {
        let path = target.as_path();
        for _ in 0..LAYERS_MAX {
            let table = mounter::table()?;
            match plan_unpublish(&table, path, volume)? {
                Unpublish::RemoveFolder => return mounter::remove_folder(path),
                Unpublish::Unmount => match mounter::unmount(path, false).await {
                    Err(CsiError::Pending(Pending::NotYet(why))) => {
                        // In use, or a hang. What nobody serves can't be waited for.
                        if mounter::liveness(path).await? == Liveness::Dead {
                            mounter::unmount(path, true).await?;
                        } else {
                            return Err(Pending::NotYet(why).into());
                        }
                    }
                    result => result?,
                },
            }
        }
        Err(CsiError::Internal(format!("there are too many mounts at {target}")))
    }

    /// Use of a volume that is published or staged at a path.
    ///
    /// # Errors
    /// [`CsiError::NotFound`] if it isn't; [`Pending::NotYet`] if it doesn't answer.
    pub async fn usage(&self, volume: &str, path: &Path) -> Result<mounter::Usage, CsiError> {
        let table = mounter::table()?;
        match uppermost(&table, path) {
            Some(found) if is_volume(found, volume) => mounter::usage(path).await,
            _ => Err(CsiError::NotFound(format!("volume {volume} is not mounted at {}", path.display()))),
        }
    }
}

impl Node {
    /// What is wrong with a volume here. Of several mounts (an earlier one is dead) the one that was made last counts.
    ///
    /// # Errors
    /// [`CsiError::NotFound`] if nothing is known of it here.
    pub async fn health(&self, volume: &str) -> Result<VolumeHealth, CsiError> {
        let table = mounter::table()?;
        let liveness = match table.iter().rfind(|mount| is_volume(mount, volume)) {
            Some(mount) => Some(mounter::liveness_of("health", &mount.path).await?),
            None => None,
        };
        let problem = match liveness {
            None => self.finder.problem().await,
            Some(_) => None,
        };
        let health = health::of_mount(volume, liveness, problem.as_deref());
        health.ok_or_else(|| CsiError::NotFound(format!("volume {volume} is not mounted on this node")))
    }
}

fn died(path: &NodePath) -> CsiError {
    Pending::NotYet(format!("the client of the mount at {path} died; see the mount host's log")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "0123456789abcdef0123456789abcdef";

    fn parse(entries: &[(&str, &str)]) -> Result<Credentials, CsiError> {
        Credentials::parse(&entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn credentials_come_from_the_secret_and_a_wrong_one_is_never_shown() {
        let key = "5e".repeat(32);
        let good = parse(&[("cluster", CLUSTER), ("key", &key), ("encryption", "required")]).unwrap();
        assert!(good.encrypt && good.cluster.to_string() == CLUSTER);
        assert!(!format!("{good:?}").contains(&key));
        assert!(!parse(&[("cluster", CLUSTER), ("key", &format!("{key}\n"))]).unwrap().encrypt);
        let wrong: [(&[(&str, &str)], &str); 5] = [
            (&[], "cluster"),
            (&[("cluster", "x"), ("key", &key)], "cluster"),
            (&[("cluster", CLUSTER)], "key"),
            (&[("cluster", CLUSTER), ("key", "5ec4e7")], "key"),
            (&[("cluster", CLUSTER), ("key", &key), ("encryption", "perhaps")], "encryption"),
        ];
        for (entries, named) in wrong {
            let error = parse(entries).unwrap_err();
            assert!(
                matches!(&error, CsiError::Invalid(text) if text.contains(&format!("'{named}'"))),
                "{error}"
            );
            assert!(!error.to_string().contains("5ec4e7") && !error.to_string().contains("perhaps"));
        }
    }
}
