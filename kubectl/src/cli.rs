//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Shows the state of Atoll volumes, upgrades and deletes them.
///
/// Exit codes: 0 done, and healthy; 1 failed; 2 wrong flags; 3 not found; 4 refused so that nothing is lost; 5 the
/// Kubernetes cluster can't be reached; 6 a volume has a problem (it was shown).
#[derive(Parser, Debug)]
#[command(name = "kubectl-atoll", bin_name = "kubectl atoll", version, propagate_version = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Shows the state of a volume: health, space, pods, mounts, problems and what to do about them.
    Status(StatusArgs),
    /// Lists volumes.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Finds out why a pod, a claim or a volume doesn't work, and says what to do.
    Why(WhyArgs),
    /// Lists the mounts of volumes.
    Clients(ClientsArgs),
    /// Lists the Events of volumes, of whichever object and namespace.
    Events(EventsArgs),
    /// Shows what volumes do now: requests, latency, bytes read and written, repair.
    Top(TopArgs),
    /// Checks a whole volume while it is in use; repairs what --repair names.
    Fsck(FsckArgs),
    /// Drains storage servers: gives one a new disk, or removes those with the highest numbers.
    Drain(DrainArgs),
    /// Writes a support bundle: objects, Events, logs and metrics of volumes and of Atoll itself, without secrets.
    Dump(DumpArgs),
    /// Deletes a FileSystemCluster with all its data, or keeps the data (--keep-data).
    Delete(DeleteArgs),
    /// Lists disks that were kept after their FileSystemCluster was deleted.
    Orphans(OrphansArgs),
    /// Creates the FileSystemCluster of kept disks again: their data can be used as before.
    Adopt(AdoptArgs),
    /// Has the servers of a volume run another version, or follows an upgrade that is in progress.
    Upgrade(UpgradeArgs),
    /// Makes one metadata server the only one, after most of them were lost for good. What only the others had is lost.
    UnsafeRecovery(RecoveryArgs),
    /// Uninstalls Atoll in the right order, keeps all data, and shows what stays.
    Uninstall(UninstallArgs),
    /// Prints the completion script of a shell.
    Completion(CompletionArgs),
    /// Writes the manual pages.
    Man(ManArgs),
    /// What may follow the words of a command line.
    #[command(name = "__complete", hide = true)]
    Complete(CompleteArgs),
}

/// Which Kubernetes cluster.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// Namespace of the PersistentVolumeClaim or FileSystemCluster. Default: the context's.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig file.
    #[arg(long, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// The kubeconfig file. Default: the one that kubectl uses.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// How a listing is chosen and shown: the same for all verbs that list.
#[derive(Args, Clone, Debug)]
pub struct Listing {
    #[command(flatten)]
    pub connection: Connection,
    /// Volumes of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Output format.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

impl Listing {
    /// The namespace that is listed; `None`: all.
    #[must_use]
    pub fn scope<'a>(&self, namespace: &'a str) -> Option<&'a str> {
        (!self.all_namespaces).then_some(namespace)
    }

    /// Where nothing was found, for messages.
    #[must_use]
    pub fn place(&self, namespace: &str) -> String {
        if self.all_namespaces { String::new() } else { format!(" in namespace {namespace}") }
    }
}

/// One volume, or a listing of several.
#[derive(Args, Debug)]
pub struct Selection {
    /// A PersistentVolumeClaim or a FileSystemCluster: NAME, pvc/NAME or fsc/NAME. Default: all in the namespace.
    #[arg(value_name = "PVC|FSC", conflicts_with = "all_namespaces")]
    pub target: Option<String>,
    #[command(flatten)]
    pub listing: Listing,
}

/// `kubectl atoll status`
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    pub selection: Selection,
}

/// `kubectl atoll list`
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub listing: Listing,
}

/// `kubectl atoll why`
#[derive(Args, Debug)]
pub struct WhyArgs {
    /// A pod, a PersistentVolumeClaim or a FileSystemCluster: NAME, pod/NAME, pvc/NAME or fsc/NAME.
    #[arg(value_name = "POD|PVC|FSC")]
    pub target: String,
    #[command(flatten)]
    pub connection: Connection,
    /// Output format.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// `kubectl atoll clients`
#[derive(Args, Debug)]
pub struct ClientsArgs {
    #[command(flatten)]
    pub selection: Selection,
}

/// `kubectl atoll events`
#[derive(Args, Debug)]
pub struct EventsArgs {
    #[command(flatten)]
    pub selection: Selection,
    /// Only warnings.
    #[arg(short, long)]
    pub warnings: bool,
}

/// `kubectl atoll top`
#[derive(Args, Debug)]
pub struct TopArgs {
    #[command(flatten)]
    pub selection: Selection,
    /// One line for each server instead of one for each volume.
    #[arg(short, long)]
    pub servers: bool,
    /// Seconds between the two readings.
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
}

/// `kubectl atoll fsck`
#[derive(Args, Debug)]
pub struct FsckArgs {
    /// A PersistentVolumeClaim or a FileSystemCluster: NAME, pvc/NAME or fsc/NAME.
    #[arg(value_name = "PVC|FSC")]
    pub target: String,
    #[command(flatten)]
    pub connection: Connection,
    /// Names of the kinds of damage to repair (docs/fsck.md), or `all`. Default: nothing is changed.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub repair: Vec<String>,
    /// Also read every stored block and verify its checksum: takes as long as reading all data.
    #[arg(long)]
    pub data: bool,
    /// Print one JSON object per line: progress, findings, the end.
    #[arg(long)]
    pub json: bool,
    /// Seconds to wait until the pod that checks has started. The check itself may take as long as it takes.
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `kubectl atoll drain`
#[derive(Args, Debug)]
#[group(id = "what", required = true, multiple = false, args = ["server", "replicas"])]
pub struct DrainArgs {
    /// A PersistentVolumeClaim or a FileSystemCluster: NAME, pvc/NAME or fsc/NAME.
    #[arg(value_name = "PVC|FSC")]
    pub target: String,
    #[command(flatten)]
    pub connection: Connection,
    /// Number of the storage server that gets a new disk: 0 for the pod NAME-storage-0. Its disk is deleted once its replicas are on
    /// the other servers.
    #[arg(long, value_name = "NUMBER")]
    pub server: Option<u32>,
    /// Number of storage servers to keep (spec.storage.replicas): those with the highest numbers are drained and removed.
    #[arg(long, value_name = "NUMBER")]
    pub replicas: Option<u8>,
    /// Don't ask for confirmation.
    #[arg(short, long)]
    pub yes: bool,
    /// Return at once; don't wait until it is done.
    #[arg(long)]
    pub no_wait: bool,
    /// Seconds to wait until it is done. It continues afterwards.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `kubectl atoll dump`
#[derive(Args, Debug)]
pub struct DumpArgs {
    #[command(flatten)]
    pub selection: DumpSelection,
    /// The file to write. Default: atoll-dump-TIME.tar.gz in the current directory; `-` is standard output.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Lines of each container's log at most.
    #[arg(long, default_value_t = 5000, value_name = "LINES")]
    pub log_lines: u32,
}

/// The volumes of a support bundle.
#[derive(Args, Debug)]
pub struct DumpSelection {
    /// A PersistentVolumeClaim or a FileSystemCluster: NAME, pvc/NAME or fsc/NAME. Default: all in the namespace.
    #[arg(value_name = "PVC|FSC", conflicts_with = "all_namespaces")]
    pub target: Option<String>,
    #[command(flatten)]
    pub connection: Connection,
    /// Volumes of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

/// `kubectl atoll completion`
#[derive(Args, Debug)]
pub struct CompletionArgs {
    /// The shell; `kubectl`: the program that kubectl asks, to be saved as kubectl_complete-atoll in the PATH.
    pub shell: CompletionFor,
}

/// What completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompletionFor {
    /// bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
    /// kubectl itself.
    Kubectl,
}

/// `kubectl atoll man`
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The directory to write to.
    #[arg(value_name = "DIRECTORY")]
    pub directory: PathBuf,
}

/// `kubectl-atoll __complete`
#[derive(Args, Debug)]
pub struct CompleteArgs {
    /// The words after `kubectl atoll`; the last one is being typed.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// `kubectl atoll delete`
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The FileSystemCluster: NAME or fsc/NAME. One that was created for a PersistentVolumeClaim is deleted with it.
    #[arg(value_name = "FSC")]
    pub target: String,
    #[command(flatten)]
    pub connection: Connection,
    /// Don't ask for confirmation.
    #[arg(short, long)]
    pub yes: bool,
    /// Keep the disks and the key: a FileSystemCluster of the same name adopts them.
    #[arg(long)]
    pub keep_data: bool,
    /// Return at once; don't wait until it is deleted.
    #[arg(long)]
    pub no_wait: bool,
    /// Seconds to wait until it is deleted.
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `kubectl atoll orphans`
#[derive(Args, Debug)]
pub struct OrphansArgs {
    #[command(flatten)]
    pub listing: Listing,
}

/// `kubectl atoll adopt`
#[derive(Args, Debug)]
pub struct AdoptArgs {
    /// The name that the FileSystemCluster had, or pv/NAME: the PersistentVolume that refers to it.
    #[arg(value_name = "FSC|PV", required_unless_present = "all")]
    pub target: Option<String>,
    #[command(flatten)]
    pub connection: Connection,
    /// All kept disks, in all namespaces.
    #[arg(long, conflicts_with = "target")]
    pub all: bool,
}

/// `kubectl atoll upgrade`
#[derive(Args, Debug)]
pub struct UpgradeArgs {
    /// A PersistentVolumeClaim or a FileSystemCluster: NAME, pvc/NAME or fsc/NAME.
    #[arg(value_name = "PVC|FSC")]
    pub target: String,
    #[command(flatten)]
    pub connection: Connection,
    /// Version that the servers are to run (spec.version), a later or an earlier one. Without it, an upgrade that is in progress is
    /// followed.
    #[arg(long, value_name = "VERSION", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub to: Option<String>,
    /// Name no version any more: the volume keeps the one it has until the operator's policy upgrades it.
    #[arg(long, conflicts_with_all = ["to", "no_wait", "timeout"])]
    pub unpin: bool,
    /// Return at once; don't wait until all servers run the version.
    #[arg(long, requires = "to")]
    pub no_wait: bool,
    /// Seconds to wait until all servers run the version. The upgrade continues afterwards.
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `kubectl atoll unsafe-recovery`
#[derive(Args, Debug)]
pub struct RecoveryArgs {
    /// A PersistentVolumeClaim or a FileSystemCluster: NAME, pvc/NAME or fsc/NAME.
    #[arg(value_name = "PVC|FSC")]
    pub target: String,
    #[command(flatten)]
    pub connection: Connection,
    /// Number of the metadata server whose disk is left: 0 for the pod NAME-metadata-0.
    #[arg(long, value_name = "NUMBER")]
    pub member: u32,
    /// Confirms that the other metadata servers are lost for good: their disks are deleted.
    #[arg(long, required = true)]
    pub the_others_are_gone: bool,
    /// Don't ask for confirmation.
    #[arg(short, long)]
    pub yes: bool,
    /// Seconds to wait for each step.
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `kubectl atoll uninstall`
#[derive(Args, Debug)]
pub struct UninstallArgs {
    #[command(flatten)]
    pub connection: Connection,
    /// Don't ask for confirmation.
    #[arg(short, long)]
    pub yes: bool,
    /// Uninstall while volumes are mounted: pods that use them get errors until they are restarted.
    #[arg(long)]
    pub ignore_mounts: bool,
    /// Seconds to wait for each object until it is deleted.
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    pub timeout: u64,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Human-readable.
    Table,
    /// Human-readable, with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Only the resources, one a line, as other kubectl commands take them.
    Name,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_calls_itself_kubectl_atoll() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("kubectl atoll"), "{help}");
        let cli = Cli::parse_from(["kubectl-atoll", "status", "pvc/data", "-n", "web", "-o", "json"]);
        let Command::Status(args) = cli.command else { panic!("not status") };
        let (target, listing) = (args.selection.target, args.selection.listing);
        assert_eq!((target.as_deref(), listing.output), (Some("pvc/data"), Format::Json));
        assert!(Cli::try_parse_from(["kubectl-atoll", "status", "x", "-A"]).is_err());
        let recover = ["kubectl-atoll", "unsafe-recovery", "x", "--member", "1"];
        assert!(Cli::try_parse_from(recover).is_err());
        assert!(Cli::try_parse_from(recover.into_iter().chain(["--the-others-are-gone"])).is_ok());
        let upgrade =
            |more: &[&str]| Cli::try_parse_from(["kubectl-atoll", "upgrade", "x"].iter().chain(more)).is_ok();
        assert!(upgrade(&[]) && upgrade(&["--to", "0.2.0", "--no-wait"]) && upgrade(&["--unpin"]));
        for wrong in [&["--no-wait"][..], &["--to", ""], &["--unpin", "--to", "0.2.0"], &["--to"]] {
            assert!(!upgrade(wrong), "{wrong:?}");
        }
        let drain =
            |more: &[&str]| Cli::try_parse_from(["kubectl-atoll", "drain", "x"].iter().chain(more)).is_ok();
        assert!(drain(&["--server", "1"]) && drain(&["--replicas", "3", "-y"]));
        assert!(!drain(&[]) && !drain(&["--server", "1", "--replicas", "3"]));
        assert!(Cli::try_parse_from(["kubectl-atoll", "adopt"]).is_err());
        assert!(Cli::try_parse_from(["kubectl-atoll", "adopt", "--all"]).is_ok());
    }
}
