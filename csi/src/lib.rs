//! The CSI driver of Atoll: a volume is a FileSystemCluster, a mount is a client process.
//!
//! ```text
//! controller  CreateVolume, DeleteVolume: the custom resource is the RPC; no state
//!   params, access, mount_flags   StorageClass parameters and capabilities, parsed
//!   clusters                      the store of FileSystemClusters
//!   health                        what is wrong with a volume, in the specification's terms (pure)
//! node        Stage, Publish, …: the mount table is the state
//!   target_path                   what to do about what is mounted where (pure)
//!   mounter                       the system calls, each with a deadline
//!   lost_mounts                   which pods have to know that nobody serves their mount (pure)
//!   budget                        what a volume's client may take of the node's memory (pure)
//! mount_host  the clients' supervisor, and the node plugin's way to it
//! holder      keeps the mounts' descriptors while mount hosts come and go
//! identity, registration, server, authority, rpc, op_guard, error: what a driver needs besides
//! ```
//!
//! Of the filesystem it knows the handshake's key, and the device and bundle of `fs/fuse`, whose formats it shares with
//! the clients that it starts; nothing of metadata, storage or files.

pub mod access;
pub mod authority;
pub mod budget;
pub mod clusters;
pub mod controller;
pub mod error;
pub mod health;
pub mod holder;
pub mod identity;
pub mod lost_mounts;
pub mod mount_flags;
pub mod mount_host;
pub mod mounter;
pub mod node;
pub mod op_guard;
pub mod params;
pub mod registration;
pub mod rpc;
pub mod server;
pub mod target_path;
pub mod volume_id;

/// The CSI specification, as generated from its protobuf.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Kubelet's registration of plugins, as generated from its protobuf.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod pluginregistration {
    tonic::include_proto!("pluginregistration");
}
