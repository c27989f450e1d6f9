//! The command line. Every flag of a server or mount has an environment variable, for containers.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::size::Size;

/// A distributed filesystem for one volume: metadata servers, storage servers and mounts.
///
/// To try it: `atoll-fs local up /mnt/atoll` mounts a filesystem whose data is kept three times on this
/// machine; `atoll-fs local down /mnt/atoll` takes it down again and keeps the data.
///
/// Exit codes: 0 done; 1 failed; 2 wrong flags; 3 not there or not running; 4 refused so that nothing is
/// lost; 5 cluster not reachable; 6 cluster reachable and not healthy; 7 another machine has
/// the volume, which is for one at a time.
#[derive(Parser, Debug)]
#[command(name = "atoll-fs", version, propagate_version = true)]
pub struct Cli {
    /// How logs are written to standard error.
    #[arg(long, global = true, env = "ATOLL_LOG_FORMAT", default_value = "text", hide_short_help = true)]
    pub log_format: LogFormat,
    /// What is logged: a level (error, warn, info, debug, trace) or filters by module.
    #[arg(
        long,
        global = true,
        env = "ATOLL_LOG",
        default_value = "info,openraft=warn",
        hide_short_help = true
    )]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs a metadata server.
    #[cfg(feature = "servers")]
    Metadata(MetadataArgs),
    /// Runs a storage server.
    #[cfg(feature = "servers")]
    Storage(StorageArgs),
    /// Mounts a filesystem and serves the mount until it is unmounted.
    Mount(MountArgs),
    /// A whole cluster in one process, mounted: for trying, developing and small machines.
    #[cfg(feature = "servers")]
    #[command(subcommand)]
    Local(LocalCommand),
    /// Makes the volume of a cluster whose metadata servers have just been started for the first time.
    ///
    /// All metadata servers that are named found the group together, so all of them have to run: one, three or five.
    Bootstrap(BootstrapArgs),
    /// Changes the group of metadata servers, and takes storage servers out of the cluster.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Shows how a cluster is.
    Status(StatusArgs),
    /// Checks the whole volume while it is used, says what is wrong, and repairs what it is asked to.
    ///
    /// Exit codes, as those of fsck(8): 0 nothing is wrong; 1 what was wrong is repaired; 4 something wrong is left;
    /// 8 the check failed; 16 wrong flags.
    Fsck(FsckArgs),
    /// Makes a new cluster id and key, for `--cluster` and `--key-file`.
    Keygen(KeygenArgs),
}

/// What every process of a cluster is told.
#[derive(Args, Clone, Debug)]
pub struct ClusterArgs {
    /// The cluster's id: 32 hexadecimal digits.
    #[arg(long, env = "ATOLL_CLUSTER", value_name = "ID")]
    pub cluster: String,
    /// File with the cluster's key, as `atoll-fs keygen` writes it.
    #[arg(long, env = "ATOLL_KEY_FILE", value_name = "FILE")]
    pub key_file: PathBuf,
    /// Encrypt all connections (every process of the cluster has to be told). The key is proven in any case.
    #[arg(long, env = "ATOLL_ENCRYPT")]
    pub encrypt: bool,
}

/// Where the metadata servers are.
#[derive(Args, Clone, Debug)]
pub struct MetadataAddresses {
    /// Addresses of the metadata servers, separated by commas: host:port or unix:/path.
    #[arg(long, env = "ATOLL_METADATA", value_name = "ADDRESSES", value_delimiter = ',', required = true)]
    pub metadata: Vec<String>,
}

/// `atoll-fs metadata`
#[cfg(feature = "servers")]
#[derive(Args, Debug)]
pub struct MetadataArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Folder for the metadata. Empty or absent at the first start; never formatted if it holds anything else.
    #[arg(long, env = "ATOLL_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Address to listen on.
    #[arg(long, env = "ATOLL_LISTEN", default_value = "0.0.0.0:7400", value_name = "ADDRESS")]
    pub listen: String,
    /// Address under which others reach this server, if it isn't the one it listens on.
    #[arg(long, env = "ATOLL_ADVERTISE", value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// Address for metrics and health (`/metrics`, `/healthz`, `/readyz`).
    #[arg(long, env = "ATOLL_HTTP", default_value = "0.0.0.0:7480", value_name = "ADDRESS")]
    pub http: String,
    /// Seconds without a sign of life after which a client's session ends.
    #[arg(long, env = "ATOLL_SESSION_LIFETIME", default_value_t = 15, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(2..=3600))]
    pub session_lifetime: u32,
    /// Seconds without a sign of life after which a storage server is given up: its replicas are made anew elsewhere.
    #[arg(long, env = "ATOLL_REPAIR_AFTER", default_value_t = 300, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(10..=86400 * 30))]
    pub repair_after: u32,
    /// Bytes copied a second for repair and balance; 0: no limit.
    #[arg(long, env = "ATOLL_REPAIR_RATE", default_value = "100Mi", value_name = "SIZE")]
    pub repair_rate: Size,
    /// Bytes of snapshots sent a second to metadata servers that lag behind the log or are new; 0: no limit.
    #[arg(long, env = "ATOLL_SNAPSHOT_RATE", default_value = "100Mi", value_name = "SIZE")]
    pub snapshot_rate: Size,
    /// Bytes kept aside so that deleting works on a full disk.
    #[arg(long, env = "ATOLL_BALLAST", default_value = "64Mi", value_name = "SIZE")]
    pub ballast: Size,
    /// Leave out every sync to disk. Loses data when the machine does; only there to prove that tests notice.
    #[arg(long, hide = true)]
    pub unsafe_no_sync: bool,
}

/// `atoll-fs storage`
#[cfg(feature = "servers")]
#[derive(Args, Debug)]
pub struct StorageArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// Folder for the chunks. Empty or absent at the first start; never formatted if it holds anything else.
    #[arg(long, env = "ATOLL_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Address to listen on.
    #[arg(long, env = "ATOLL_LISTEN", default_value = "0.0.0.0:7500", value_name = "ADDRESS")]
    pub listen: String,
    /// Address under which clients reach this server, if it isn't the one it listens on.
    #[arg(long, env = "ATOLL_ADVERTISE", value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// Address for metrics and health (`/metrics`, `/healthz`, `/readyz`).
    #[arg(long, env = "ATOLL_HTTP", default_value = "0.0.0.0:7580", value_name = "ADDRESS")]
    pub http: String,
    /// Labels for placement, such as zone=a,host=node-1: copies go to servers that differ in them.
    #[arg(long, env = "ATOLL_LABELS", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Bytes kept aside so that deleting works on a full disk.
    #[arg(long, env = "ATOLL_BALLAST", default_value = "64Mi", value_name = "SIZE")]
    pub ballast: Size,
    /// How much is read a second to look for damage; 0: nothing is.
    #[arg(long, env = "ATOLL_SCRUB_RATE", default_value = "4Mi", value_name = "SIZE")]
    pub scrub_rate: Size,
    /// Seconds of pause after all was looked at, before it is looked at again.
    #[arg(long, env = "ATOLL_SCRUB_PAUSE", default_value_t = 600, value_name = "SECONDS")]
    pub scrub_pause: u64,
    /// Leave out every sync to disk. Loses data when the machine does; only there to prove that tests notice.
    #[arg(long, hide = true)]
    pub unsafe_no_sync: bool,
}

/// Which program talks to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// Atoll's own FUSE session.
    Atoll,
    /// The `fuser` library: a second opinion; see SEMANTICS.md for what it can't do.
    Fuser,
}

/// How a mount behaves.
#[derive(Args, Clone, Debug)]
pub struct MountBehaviour {
    /// Which program talks to the kernel.
    #[arg(long, env = "ATOLL_TRANSPORT", default_value = "atoll")]
    pub transport: Transport,
    /// Threads that read requests from the kernel.
    #[arg(long, env = "ATOLL_READERS", default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub readers: u16,
    /// Bytes that may be buffered before they are written out.
    #[arg(long, env = "ATOLL_BUFFER", default_value = "64Mi", value_name = "SIZE")]
    pub buffer: Size,
    /// Seconds after which operations fail while the cluster can't be reached. Default: they wait.
    #[arg(long, env = "ATOLL_TIMEOUT", value_name = "SECONDS")]
    pub timeout: Option<u32>,
}

/// `atoll-fs mount`
#[derive(Args, Debug)]
pub struct MountArgs {
    /// The cluster's id: 32 hexadecimal digits.
    #[arg(long, env = "ATOLL_CLUSTER", value_name = "ID")]
    pub cluster: String,
    /// File with the cluster's key, as `atoll-fs keygen` writes it.
    #[arg(long, env = "ATOLL_KEY_FILE", value_name = "FILE", required_unless_present = "control_fd")]
    pub key_file: Option<PathBuf>,
    /// Encrypt all connections (every process of the cluster has to be told). The key is proven in any case.
    #[arg(long, env = "ATOLL_ENCRYPT")]
    pub encrypt: bool,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    #[command(flatten)]
    pub behaviour: MountBehaviour,
    /// Address for metrics and health. Default: none.
    #[arg(long, env = "ATOLL_HTTP", value_name = "ADDRESS")]
    pub http: Option<String>,
    /// Name of this machine: it is part of the session's name, and storage servers with the label host=NAME are read
    /// from first. Default: the host name.
    #[arg(long, env = "ATOLL_HOST", value_name = "NAME")]
    pub host: Option<String>,
    /// What the session is called, after the machine's name. Default: the mount point.
    #[arg(long, env = "ATOLL_NAME", value_name = "TEXT")]
    pub name: Option<String>,
    /// Serve a mount that another process makes. The descriptor is a socket of packets (SOCK_SEQPACKET) to that process,
    /// which sends the key, reads `connected`, mounts, sends the mount's descriptors and reads `serving`. Needs no
    /// privilege and no /dev/fuse.
    #[arg(long, value_name = "FD", conflicts_with = "mountpoint", requires = "name")]
    pub control_fd: Option<i32>,
    /// Where to mount: an empty folder.
    #[arg(required_unless_present = "control_fd")]
    pub mountpoint: Option<PathBuf>,
}

/// `atoll-fs local`
#[cfg(feature = "servers")]
#[derive(Subcommand, Debug)]
pub enum LocalCommand {
    /// Starts the cluster and mounts it; returns when the mount is usable. Does nothing if it is up already;
    /// after a crash it finds and detaches its own dead mount and goes on where the disk is.
    Up(LocalUpArgs),
    /// Writes everything out, unmounts and stops. The data stays.
    Down(LocalDownArgs),
    /// Shows how the cluster is.
    Status(LocalStatusArgs),
}

/// `atoll-fs local up`
#[cfg(feature = "servers")]
#[derive(Args, Clone, Debug)]
pub struct LocalUpArgs {
    /// Where to mount: an empty folder (made if it doesn't exist).
    pub mountpoint: PathBuf,
    /// Folder for the data. Default: one under /var/lib/atoll/local, named after the mount point.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Copies of every byte, on as many storage servers. Default for a new cluster: 3.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub copies: Option<u8>,
    /// Size of the volume. Default for a new cluster: 10Gi.
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<Size>,
    #[command(flatten)]
    pub behaviour: MountBehaviour,
    /// Stay in the foreground and log to standard error.
    #[arg(long)]
    pub foreground: bool,
    /// Leave out every sync to disk. Loses data when the machine does; only there to prove that tests notice.
    #[arg(long, hide = true)]
    pub unsafe_no_sync: bool,
    /// File descriptor to write to when the mount is usable (used by `up` itself).
    #[arg(long, hide = true)]
    pub ready_fd: Option<i32>,
}

/// `atoll-fs local down`
#[cfg(feature = "servers")]
#[derive(Args, Debug)]
pub struct LocalDownArgs {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its data folder, if it isn't the default one.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `atoll-fs local status`
#[cfg(feature = "servers")]
#[derive(Args, Debug)]
pub struct LocalStatusArgs {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its data folder, if it isn't the default one.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// How to print it.
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `atoll-fs bootstrap`
#[derive(Args, Debug)]
pub struct BootstrapArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// Size of the volume.
    #[arg(long, env = "ATOLL_CAPACITY", value_name = "SIZE")]
    pub capacity: Size,
    /// Files, folders and other inodes that the volume may have. Default: one for each 4 KiB of capacity.
    #[arg(long, env = "ATOLL_INODES", value_name = "N")]
    pub inodes: Option<u64>,
    /// Copies of every byte.
    #[arg(long, env = "ATOLL_COPIES", default_value_t = 3, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=5))]
    pub copies: u8,
    /// Copies without which nothing is written. Default: one fewer than --copies, at least one.
    #[arg(long, env = "ATOLL_COPIES_MIN", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub copies_min: Option<u8>,
    /// Bytes that small files may take in the metadata servers.
    #[arg(long, env = "ATOLL_INLINE_BUDGET", default_value = "1Gi", value_name = "SIZE")]
    pub inline_budget: Size,
    /// The volume is for one machine at a time: a second one can't mount it while the first has a session.
    #[arg(long, env = "ATOLL_EXCLUSIVE")]
    pub exclusive: bool,
    /// Owner of the root folder.
    #[arg(long, default_value_t = 0, value_name = "UID")]
    pub root_uid: u32,
    /// Group of the root folder.
    #[arg(long, default_value_t = 0, value_name = "GID")]
    pub root_gid: u32,
    /// Permissions of the root folder, octal.
    #[arg(long, default_value = "755", value_name = "MODE")]
    pub root_mode: String,
}

/// `atoll-fs status`
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// How to print it.
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

/// `atoll-fs fsck`
#[derive(Args, Debug)]
pub struct FsckArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// Names of what is to be repaired (docs/fsck.md), or `all`. Without it nothing is written.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub repair: Vec<String>,
    /// Also read every block of what is stored and verify its checksum: takes as long as reading all of it.
    #[arg(long)]
    pub data: bool,
    /// One JSON object a line: progress, findings, the end.
    #[arg(long)]
    pub json: bool,
}

/// `atoll-fs admin`
#[derive(Subcommand, Debug)]
pub enum AdminCommand {
    /// Adds a metadata server, replaces one whose disk is gone, or removes one. 'atoll-fs status' shows them.
    #[command(subcommand)]
    Members(MembersCommand),
    /// Has all replicas of a storage server go elsewhere; 'atoll-fs status' shows how far that is.
    Evacuate(ServerArgs),
    /// Uses a storage server again that was to be evacuated.
    Keep(ServerArgs),
    /// Takes a stopped storage server that was evacuated out of the cluster. Of one that is gone for good, evacuation makes
    /// the replicas anew from the other copies.
    Forget(ServerArgs),
    /// The way out when most metadata servers are lost for good: a stopped one goes on alone. What only the others had
    /// is lost; they must never be started again with their old folders.
    #[cfg(feature = "servers")]
    GoOnAlone(GoOnAloneArgs),
    /// Has another metadata server lead, before this one's machine is taken down.
    TransferLeader(TransferLeaderArgs),
}

/// `atoll-fs admin evacuate`, `keep` and `forget`
#[derive(Args, Debug)]
pub struct ServerArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// The storage server's id, as 'atoll-fs status' shows it.
    pub server: String,
}

/// `atoll-fs admin go-on-alone`
#[cfg(feature = "servers")]
#[derive(Args, Debug)]
pub struct GoOnAloneArgs {
    /// The cluster's id: 32 hexadecimal digits.
    #[arg(long, env = "ATOLL_CLUSTER", value_name = "ID")]
    pub cluster: String,
    /// Folder of the stopped metadata server.
    #[arg(long, env = "ATOLL_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Address under which it will be reached.
    #[arg(long, value_name = "ADDRESS")]
    pub address: String,
    /// That the other members are gone for good, and their folders will never be used again.
    #[arg(long)]
    pub the_others_are_gone: bool,
}

/// `atoll-fs admin members`
#[derive(Subcommand, Debug)]
pub enum MembersCommand {
    /// Adds the new metadata server at an address; returns when it has everything and votes.
    Add(AddMemberArgs),
    /// Has the new metadata server at an address take the place of a member whose disk is gone.
    Replace(ReplaceMemberArgs),
    /// Takes a member out, for good.
    Remove(RemoveMemberArgs),
}

/// `atoll-fs admin members add`
#[derive(Args, Debug)]
pub struct AddMemberArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// Where the new server listens.
    pub address: String,
}

/// `atoll-fs admin members replace`
#[derive(Args, Debug)]
pub struct ReplaceMemberArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// The id of the member that is gone, as 'atoll-fs status' shows it.
    pub member: String,
    /// Where the new server listens; it may be the old one's address.
    pub address: String,
}

/// `atoll-fs admin members remove`
#[derive(Args, Debug)]
pub struct RemoveMemberArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// The member's id, as 'atoll-fs status' shows it.
    pub member: String,
}

/// `atoll-fs admin transfer-leader`
#[derive(Args, Debug)]
pub struct TransferLeaderArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// The id of the one that is to lead. Default: the one with most of the log.
    pub member: Option<String>,
}

/// `atoll-fs keygen`
#[derive(Args, Debug)]
pub struct KeygenArgs {
    /// File to write the key to; must not exist. The cluster id is printed.
    pub key_file: PathBuf,
}

impl Transport {
    /// The flag's value.
    #[cfg(feature = "servers")]
    pub fn flag(self) -> &'static str {
        match self {
            Transport::Atoll => "atoll",
            Transport::Fuser => "fuser",
        }
    }
}
