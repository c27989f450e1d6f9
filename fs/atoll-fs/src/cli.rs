//! The command line. Every flag of a server or mount has an environment variable, for containers.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::size::Size;

/// A distributed filesystem for one volume: metadata servers, storage servers and mounts.
///
/// To try it: `atoll-fs local up /mnt/atoll` mounts a filesystem with three copies of all data on this
/// machine; `atoll-fs local down /mnt/atoll` stops it and keeps the data.
///
/// Exit codes: 0 done; 1 failed; 2 wrong flags; 3 not found or not running; 4 refused so that nothing is
/// lost; 5 cluster not reachable; 6 cluster reachable and not healthy; 7 another machine uses
/// the volume, which is for one at a time.
#[derive(Parser, Debug)]
#[command(name = "atoll-fs", version, propagate_version = true)]
pub struct Cli {
    /// Format of the logs on standard error.
    #[arg(long, global = true, env = "ATOLL_LOG_FORMAT", default_value = "text", hide_short_help = true)]
    pub log_format: LogFormat,
    /// What to log: a level (error, warn, info, debug, trace) or filters by module.
    #[arg(
        long,
        global = true,
        env = "ATOLL_LOG",
        default_value = "info,openraft=warn",
        hide_short_help = true
    )]
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
    /// Runs a whole cluster in one process, mounted: for tests, development and small machines.
    #[cfg(feature = "servers")]
    #[command(subcommand)]
    Local(LocalCommand),
    /// Creates the volume of a cluster whose metadata servers have just been started for the first time.
    ///
    /// All named metadata servers form the group together, so all of them must run: one, three or five.
    Bootstrap(BootstrapArgs),
    /// Changes the members of the group of metadata servers; drains and removes storage servers.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Shows the state of a cluster: health, space, servers, mounts and problems.
    Status(StatusArgs),
    /// Checks the whole volume while it is in use, reports damage, and repairs the kinds that --repair names.
    ///
    /// Exit codes, as those of fsck(8): 0 no damage; 1 all damage is repaired; 4 some damage is left;
    /// 8 the check failed; 16 wrong flags.
    Fsck(FsckArgs),
    /// Creates a new cluster id and key, for `--cluster` and `--key-file`.
    Keygen(KeygenArgs),
    /// Prints the completion script of a shell.
    Completion(CompletionArgs),
    /// Writes the manual pages.
    Man(ManArgs),
}

/// Flags of every process of a cluster.
#[derive(Args, Clone, Debug)]
pub struct ClusterArgs {
    /// The cluster's id: 32 hexadecimal digits.
    #[arg(long, env = "ATOLL_CLUSTER", value_name = "ID")]
    pub cluster: String,
    /// File with the cluster's key, as `atoll-fs keygen` writes it.
    #[arg(long, env = "ATOLL_KEY_FILE", value_name = "FILE")]
    pub key_file: PathBuf,
    /// Encrypt all connections (set it for every process of the cluster). The key authenticates both ends in any case.
    #[arg(long, env = "ATOLL_ENCRYPT")]
    pub encrypt: bool,
}

/// Addresses of the metadata servers.
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
    /// Directory for the metadata. Empty or absent at the first start; never formatted if it has other content.
    #[arg(long, env = "ATOLL_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Address to listen on.
    #[arg(long, env = "ATOLL_LISTEN", default_value = "0.0.0.0:7400", value_name = "ADDRESS")]
    pub listen: String,
    /// Address under which others reach this server. Default: the one it listens on.
    #[arg(long, env = "ATOLL_ADVERTISE", value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// Address for metrics and health (`/metrics`, `/healthz`, `/readyz`).
    #[arg(long, env = "ATOLL_HTTP", default_value = "0.0.0.0:7480", value_name = "ADDRESS")]
    pub http: String,
    /// Seconds without a heartbeat after which a client's session expires.
    #[arg(long, env = "ATOLL_SESSION_LIFETIME", default_value_t = 15, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(2..=3600))]
    pub session_lifetime: u32,
    /// Seconds without a heartbeat after which a storage server counts as lost and its replicas are re-replicated.
    #[arg(long, env = "ATOLL_REPAIR_AFTER", default_value_t = 300, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(10..=86400 * 30))]
    pub repair_after: u32,
    /// Bytes per second copied for repair and balancing; 0: no limit.
    #[arg(long, env = "ATOLL_REPAIR_RATE", default_value = "100Mi", value_name = "SIZE")]
    pub repair_rate: Size,
    /// Bytes per second of snapshots sent to metadata servers that lag behind the log or are new; 0: no limit.
    #[arg(long, env = "ATOLL_SNAPSHOT_RATE", default_value = "100Mi", value_name = "SIZE")]
    pub snapshot_rate: Size,
    /// Memory for records that were read. Default: 1/32 of the memory that the process may use, 8Mi to 128Mi.
    #[arg(long, env = "ATOLL_BLOCK_CACHE", value_name = "SIZE")]
    pub block_cache: Option<Size>,
    /// Bytes reserved by a file (the ballast) that is released when the disk is full, so that deletions still work.
    #[arg(long, env = "ATOLL_BALLAST", default_value = "64Mi", value_name = "SIZE")]
    pub ballast: Size,
    /// Leave out every sync to disk: a power failure loses acknowledged data. Only for tests of the tests.
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
    /// Directory for the chunks. Empty or absent at the first start; never formatted if it has other content.
    #[arg(long, env = "ATOLL_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Address to listen on.
    #[arg(long, env = "ATOLL_LISTEN", default_value = "0.0.0.0:7500", value_name = "ADDRESS")]
    pub listen: String,
    /// Address under which clients reach this server. Default: the one it listens on.
    #[arg(long, env = "ATOLL_ADVERTISE", value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// Address for metrics and health (`/metrics`, `/healthz`, `/readyz`).
    #[arg(long, env = "ATOLL_HTTP", default_value = "0.0.0.0:7580", value_name = "ADDRESS")]
    pub http: String,
    /// Labels for placement, such as zone=a,host=node-1: the copies of a chunk go to servers with different labels.
    #[arg(long, env = "ATOLL_LABELS", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Bytes reserved by a file (the ballast) that is released when the disk is full, so that deletions still work.
    #[arg(long, env = "ATOLL_BALLAST", default_value = "64Mi", value_name = "SIZE")]
    pub ballast: Size,
    /// Bytes per second that the scrub reads to find corrupt blocks; 0: no scrub.
    #[arg(long, env = "ATOLL_SCRUB_RATE", default_value = "4Mi", value_name = "SIZE")]
    pub scrub_rate: Size,
    /// Seconds between the end of a scrub of all chunks and the next one.
    #[arg(long, env = "ATOLL_SCRUB_PAUSE", default_value_t = 600, value_name = "SECONDS")]
    pub scrub_pause: u64,
    /// Leave out every sync to disk: a power failure loses acknowledged data. Only for tests of the tests.
    #[arg(long, hide = true)]
    pub unsafe_no_sync: bool,
}

/// The FUSE implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// Atoll's own FUSE session.
    Atoll,
    /// The `fuser` library, for comparison; SEMANTICS.md lists what it can't do.
    Fuser,
}

/// Flags of a mount.
#[derive(Args, Clone, Debug)]
pub struct MountBehaviour {
    /// The FUSE implementation.
    #[arg(long, env = "ATOLL_TRANSPORT", default_value = "atoll")]
    pub transport: Transport,
    /// Threads that read requests from the kernel.
    #[arg(long, env = "ATOLL_READERS", default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub readers: u16,
    /// Bytes that may be buffered before they are written to the cluster.
    #[arg(long, env = "ATOLL_BUFFER", default_value = "64Mi", value_name = "SIZE")]
    pub buffer: Size,
    /// Seconds after which operations fail when the cluster can't be reached. Default: they wait.
    #[arg(long, env = "ATOLL_TIMEOUT", value_name = "SECONDS")]
    pub timeout: Option<u32>,
    /// Reading a file leaves its access time as it is. Default: it moves as with `relatime`.
    #[arg(long, env = "ATOLL_NOATIME")]
    pub noatime: bool,
}

/// What a mount doesn't allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Restriction {
    /// Changes.
    Ro,
    /// Set-id bits.
    Nosuid,
    /// Device nodes.
    Nodev,
    /// Programs.
    Noexec,
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
    /// Encrypt all connections (set it for every process of the cluster). The key authenticates both ends in any case.
    #[arg(long, env = "ATOLL_ENCRYPT")]
    pub encrypt: bool,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    #[command(flatten)]
    pub behaviour: MountBehaviour,
    /// Address for metrics and health. Default: none.
    #[arg(long, env = "ATOLL_HTTP", value_name = "ADDRESS")]
    pub http: Option<String>,
    /// Name of this machine: it is part of the session's name, and reads prefer storage servers with the label
    /// host=NAME. Default: the host name.
    #[arg(long, env = "ATOLL_HOST", value_name = "NAME")]
    pub host: Option<String>,
    /// Name of the session, after the machine's name. Default: the mount point.
    #[arg(long, env = "ATOLL_NAME", value_name = "TEXT")]
    pub name: Option<String>,
    /// Serve a mount that another process creates. The descriptor is a socket of packets (SOCK_SEQPACKET) to that process,
    /// which sends the key, reads `connected`, mounts, sends the mount's descriptors and reads `serving`. Needs no
    /// privilege and no /dev/fuse.
    #[arg(long, value_name = "FD", conflicts_with = "mountpoint", requires = "name")]
    pub control_fd: Option<i32>,
    /// Continue the mount of a client process that has died: the other process sends the dead one's memory of unwritten data
    /// after the key.
    #[arg(long, requires = "control_fd")]
    pub takeover: bool,
    /// What the mount doesn't allow, separated by commas.
    #[arg(short, long, value_name = "OPTIONS", value_delimiter = ',', conflicts_with = "control_fd")]
    pub options: Vec<Restriction>,
    /// The SELinux context of all files.
    #[arg(long, value_name = "CONTEXT", conflicts_with = "control_fd")]
    pub context: Option<String>,
    /// File descriptor to write to when the mount is usable (used by `mount.atoll`).
    #[arg(long, hide = true, value_name = "FD")]
    pub ready_fd: Option<i32>,
    /// File that is locked as long as the process lives, and says in the end how it ended (used by `mount.atoll`).
    #[arg(long, hide = true, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Where to mount: an empty directory.
    #[arg(required_unless_present = "control_fd")]
    pub mountpoint: Option<PathBuf>,
}

/// `atoll-fs local`
#[cfg(feature = "servers")]
#[derive(Subcommand, Debug)]
pub enum LocalCommand {
    /// Starts the cluster and mounts it; returns when the mount is usable. Does nothing if it is already up;
    /// after a crash it detaches its own dead mount and continues with the data on the disk.
    Up(LocalUpArgs),
    /// Writes all buffered data, unmounts and stops. The data is kept.
    Down(LocalDownArgs),
    /// Shows the state of the cluster.
    Status(LocalStatusArgs),
}

/// `atoll-fs local up`
#[cfg(feature = "servers")]
#[derive(Args, Clone, Debug)]
pub struct LocalUpArgs {
    /// Where to mount: an empty directory (created if it doesn't exist).
    pub mountpoint: PathBuf,
    /// Directory for the data. Default: one under /var/lib/atoll/local, named after the mount point.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Copies of every byte, on as many storage servers. Default for a new cluster: 3.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub copies: Option<u8>,
    /// Size of the volume. Default for a new cluster: 10Gi.
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<Size>,
    /// A new cluster's volume may have several mounts, so the kernel keeps nothing of it that another mount could change.
    /// Otherwise it belongs to this mount, and the kernel keeps names and attributes.
    #[arg(long)]
    pub shared: bool,
    #[command(flatten)]
    pub behaviour: MountBehaviour,
    /// Stay in the foreground and log to standard error.
    #[arg(long)]
    pub foreground: bool,
    /// Leave out every sync to disk: a power failure loses acknowledged data. Only for tests of the tests.
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
    /// Its data directory, if it isn't the default one.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `atoll-fs local status`
#[cfg(feature = "servers")]
#[derive(Args, Debug)]
pub struct LocalStatusArgs {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its data directory, if it isn't the default one.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Output format.
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Human-readable.
    Table,
    /// JSON.
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
    /// Maximum number of files, directories and other inodes. Default: one for each 4 KiB of capacity.
    #[arg(long, env = "ATOLL_INODES", value_name = "N")]
    pub inodes: Option<u64>,
    /// Number of copies of every byte.
    #[arg(long, env = "ATOLL_COPIES", default_value_t = 3, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=5))]
    pub copies: u8,
    /// Minimum number of copies for a write to succeed. Default: one fewer than --copies, at least one.
    #[arg(long, env = "ATOLL_COPIES_MIN", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub copies_min: Option<u8>,
    /// Bytes of small files that the metadata servers may store.
    #[arg(long, env = "ATOLL_INLINE_BUDGET", default_value = "1Gi", value_name = "SIZE")]
    pub inline_budget: Size,
    /// The volume is for one machine at a time: a second one can't mount it while the first has a session.
    #[arg(long, env = "ATOLL_EXCLUSIVE")]
    pub exclusive: bool,
    /// Owner of the root directory.
    #[arg(long, default_value_t = 0, value_name = "UID")]
    pub root_uid: u32,
    /// Group of the root directory.
    #[arg(long, default_value_t = 0, value_name = "GID")]
    pub root_gid: u32,
    /// Permissions of the root directory, octal.
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
    /// Output format.
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
    /// Names of the kinds of damage to repair (docs/fsck.md), or `all`. Default: nothing is changed.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub repair: Vec<String>,
    /// Also read every stored block and verify its checksum: takes as long as reading all data.
    #[arg(long)]
    pub data: bool,
    /// Print one JSON object per line: progress, findings, the end.
    #[arg(long)]
    pub json: bool,
}

/// `atoll-fs admin`
#[derive(Subcommand, Debug)]
pub enum AdminCommand {
    /// Adds a metadata server, replaces one whose disk is gone, or removes one. 'atoll-fs status' shows them.
    #[command(subcommand)]
    Members(MembersCommand),
    /// Drains a storage server: moves all its replicas to other servers; 'atoll-fs status' shows the progress.
    #[command(alias = "evacuate")]
    Drain(ServerArgs),
    /// Ends the drain of a storage server: it is used again.
    #[command(alias = "keep")]
    Undrain(ServerArgs),
    /// Removes a stopped and drained storage server from the cluster. A lost one can be drained as well: its replicas are
    /// re-replicated from the other copies.
    Forget(ServerArgs),
    /// Unsafe recovery when most metadata servers are lost for good: makes a stopped one the only member. What only the
    /// others had is lost; they must never be started again with their old data directories.
    #[cfg(feature = "servers")]
    #[command(alias = "go-on-alone")]
    UnsafeRecovery(UnsafeRecoveryArgs),
    /// Transfers leadership to another metadata server, for example before the leader's machine is stopped.
    TransferLeader(TransferLeaderArgs),
    /// Changes the size of the volume. Mounts show it at once; nothing is restarted. A size below what files use is refused.
    /// On Kubernetes the operator does this: change the claim or the `FileSystemCluster` instead.
    Resize(ResizeArgs),
}

/// `atoll-fs admin resize`
#[derive(Args, Debug)]
#[group(id = "size", required = true, multiple = true, args = ["capacity", "inodes"])]
pub struct ResizeArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// Size of the volume. Default: it stays as it is.
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<Size>,
    /// Maximum number of files, directories and other inodes. Default: as many as there can be now, and when the volume
    /// grows at least one for each 4 KiB of capacity.
    #[arg(long, value_name = "N")]
    pub inodes: Option<u64>,
}

/// `atoll-fs admin drain`, `undrain` and `forget`
#[derive(Args, Debug)]
pub struct ServerArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// The storage server's id, as 'atoll-fs status' shows it.
    pub server: String,
}

/// `atoll-fs admin unsafe-recovery`
#[cfg(feature = "servers")]
#[derive(Args, Debug)]
pub struct UnsafeRecoveryArgs {
    /// The cluster's id: 32 hexadecimal digits.
    #[arg(long, env = "ATOLL_CLUSTER", value_name = "ID")]
    pub cluster: String,
    /// Data directory of the stopped metadata server.
    #[arg(long, env = "ATOLL_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Address under which others will reach it.
    #[arg(long, value_name = "ADDRESS")]
    pub address: String,
    /// Confirms that the other members are lost for good and their data directories will never be used again.
    #[arg(long)]
    pub the_others_are_gone: bool,
}

/// `atoll-fs admin members`
#[derive(Subcommand, Debug)]
pub enum MembersCommand {
    /// Adds the new metadata server at an address; returns when it has all data and a vote.
    Add(AddMemberArgs),
    /// Replaces a member whose disk is lost by the new metadata server at an address.
    Replace(ReplaceMemberArgs),
    /// Removes a member permanently.
    Remove(RemoveMemberArgs),
}

/// `atoll-fs admin members add`
#[derive(Args, Debug)]
pub struct AddMemberArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// Address of the new server.
    pub address: String,
}

/// `atoll-fs admin members replace`
#[derive(Args, Debug)]
pub struct ReplaceMemberArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub metadata: MetadataAddresses,
    /// The id of the lost member, as 'atoll-fs status' shows it.
    pub member: String,
    /// Address of the new server; it may be the old one's.
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
    /// The id of the new leader. Default: the member with the longest log.
    pub member: Option<String>,
}

/// `atoll-fs keygen`
#[derive(Args, Debug)]
pub struct KeygenArgs {
    /// File to write the key to; must not exist. The cluster id is printed.
    pub key_file: PathBuf,
}

/// `atoll-fs completion`
#[derive(Args, Debug)]
pub struct CompletionArgs {
    /// The shell.
    pub shell: CompletionShell,
}

/// Shells with completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompletionShell {
    /// bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// `atoll-fs man`
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The directory to write to.
    #[arg(value_name = "DIRECTORY")]
    pub directory: PathBuf,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn commands_are_understood_by_the_names_of_earlier_builds() {
        let command = Cli::command();
        let admin = command.find_subcommand("admin").unwrap();
        for (former, name) in [("evacuate", "drain"), ("keep", "undrain"), ("go-on-alone", "unsafe-recovery")]
        {
            assert_eq!(admin.find_subcommand(former).map(clap::Command::get_name), Some(name));
        }
    }
}
