//! The command line. Every flag has an environment variable, for containers; none begins with `CSI_` but the one that the
//! specification names.

use std::path::PathBuf;

use atoll_crds::names::{NAMESPACE_SYSTEM, NAMESPACE_VOLUMES};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// The CSI driver of Atoll.
#[derive(Parser, Debug)]
#[command(name = "atoll-csi", version, propagate_version = true)]
pub struct Cli {
    /// Format of the logs on standard error.
    #[arg(long, global = true, env = "ATOLL_LOG_FORMAT", default_value = "text", hide_short_help = true)]
    pub log_format: LogFormat,
    /// What to log: a level (error, warn, info, debug, trace) or filters by module.
    #[arg(long, global = true, env = "ATOLL_LOG", default_value = "info", hide_short_help = true)]
    pub log: String,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// The flag's value.
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serves the controller service: creates a FileSystemCluster for each volume.
    Controller(ControllerArgs),
    /// Serves the node service: mounts and binds. Needs the privilege to mount.
    Node(NodeArgs),
    /// Runs the clients of this node's volumes, one process each. Needs the capabilities to start and stop processes
    /// of other users (SETUID, SETGID, KILL), and nothing else.
    MountHost(MountHostArgs),
    /// Keeps the descriptors of this node's mounts, so that they continue while the mount host is replaced. Needs no privilege.
    Holder(HolderArgs),
}

/// `atoll-csi controller`
#[derive(Args, Debug)]
pub struct ControllerArgs {
    /// Socket to serve at.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///csi/csi.sock", value_name = "ENDPOINT")]
    pub endpoint: String,
    /// Namespace of the clusters that are created for volumes.
    #[arg(long, env = "ATOLL_VOLUMES_NAMESPACE", default_value = NAMESPACE_VOLUMES, value_name = "NAME")]
    pub namespace: String,
    /// Address for metrics and health (`/metrics`, `/healthz`, `/readyz`).
    #[arg(long, env = "ATOLL_HTTP", default_value = "0.0.0.0:8081", value_name = "ADDRESS")]
    pub http: String,
}

/// `atoll-csi node`
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// Socket to serve at.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///csi/csi.sock", value_name = "ENDPOINT")]
    pub endpoint: String,
    /// The same socket as kubelet sees it.
    #[arg(
        long,
        env = "ATOLL_KUBELET_ENDPOINT",
        default_value = "/var/lib/kubelet/plugins/csi.atoll.dev/csi.sock",
        value_name = "PATH"
    )]
    pub kubelet_endpoint: PathBuf,
    /// Kubelet's directory.
    #[arg(long, env = "ATOLL_KUBELET", default_value = "/var/lib/kubelet", value_name = "DIR")]
    pub kubelet: PathBuf,
    /// This node's name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node: String,
    /// Namespace of the mount hosts.
    #[arg(long, env = "POD_NAMESPACE", default_value = NAMESPACE_SYSTEM, value_name = "NAME")]
    pub namespace: String,
    /// Directory of the holder's socket.
    #[arg(
        long,
        env = "ATOLL_HOLDER_FOLDER",
        default_value = "/var/lib/kubelet/plugins/csi.atoll.dev/holder",
        value_name = "DIR"
    )]
    pub holder: PathBuf,
    /// Maximum number of volumes on this node; fewer if the mount host has no memory for them.
    #[arg(long, env = "ATOLL_VOLUMES_MAX", default_value_t = 64, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub volumes_max: u32,
    /// Address for metrics and health (`/metrics`, `/healthz`, `/readyz`).
    #[arg(long, env = "ATOLL_HTTP", default_value = "0.0.0.0:8082", value_name = "ADDRESS")]
    pub http: String,
}

/// `atoll-csi mount-host`
#[derive(Args, Debug)]
pub struct MountHostArgs {
    /// Directory for the socket of the mount host.
    #[arg(long, env = "ATOLL_SOCKET_FOLDER", default_value = "/run/atoll", value_name = "DIR")]
    pub folder: PathBuf,
    /// Directory of the holder's socket, the same for all mount hosts of the node.
    #[arg(long, env = "ATOLL_HOLDER_FOLDER", default_value = "/run/atoll-holder", value_name = "DIR")]
    pub holder: PathBuf,
    /// The client program.
    #[arg(long, env = "ATOLL_CLIENT", default_value = "/usr/bin/atoll-fs", value_name = "FILE")]
    pub program: PathBuf,
    /// Maximum number of clients.
    #[arg(long, env = "ATOLL_VOLUMES_MAX", default_value_t = 64, value_name = "N")]
    pub volumes_max: usize,
    /// Memory of this mount host and all of its clients, in bytes: its container's limit. Volumes for whose clients there is not enough
    /// are refused. Default: nobody limits it.
    #[arg(long, env = "ATOLL_MEMORY", value_name = "BYTES")]
    pub memory: Option<u64>,
    /// Seconds after which a client that gets nothing done is ended, for another one to take its mount over.
    #[arg(long, env = "ATOLL_CLIENT_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub client_timeout: u32,
    /// What clients log, as --log.
    #[arg(long, env = "ATOLL_CLIENT_LOG", default_value = "info", value_name = "FILTER")]
    pub client_log: String,
    /// Seconds after SIGTERM to wait for a holder that keeps the mounts, or until they were unmounted, if there is no holder.
    #[arg(long, env = "ATOLL_GRACE", default_value_t = 120, value_name = "SECONDS")]
    pub grace: u32,
    /// Address for metrics and health (`/metrics`, `/healthz`, `/readyz`).
    #[arg(long, env = "ATOLL_HTTP", default_value = "0.0.0.0:8083", value_name = "ADDRESS")]
    pub http: String,
}

/// `atoll-csi holder`
#[derive(Args, Debug)]
pub struct HolderArgs {
    /// Directory for the socket of the holder, on the node.
    #[arg(long, env = "ATOLL_HOLDER_FOLDER", default_value = "/run/atoll-holder", value_name = "DIR")]
    pub folder: PathBuf,
    /// Seconds after SIGTERM to wait for a mount host that has the mounts as well, if none has them yet.
    #[arg(long, env = "ATOLL_GRACE", default_value_t = 120, value_name = "SECONDS")]
    pub grace: u32,
    /// Address for metrics and health (`/metrics`, `/healthz`, `/readyz`).
    #[arg(long, env = "ATOLL_HTTP", default_value = "0.0.0.0:8084", value_name = "ADDRESS")]
    pub http: String,
}
