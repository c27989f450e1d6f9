//! What a local cluster keeps in its data folder, and what it says about itself while it runs.
//!
//! ```text
//! DIR/cluster.json     what the cluster is (written once)
//! DIR/key              the cluster's key, for its owner's eyes only
//! DIR/metadata/        the metadata server's data
//! DIR/storage-0/ …     a storage server's data each
//! DIR/log              the background process's log
//! /run/atoll/ID.json   which process serves the cluster, and where (gone with the next boot, as it should be)
//! ```

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use atoll_core::ids::ClusterId;
use atoll_proto::handshake::ClusterKey;
use serde::{Deserialize, Serialize};

use crate::exit::{Context, Failure};

/// The newest format of a data folder that this program knows.
const FORMAT: u32 = 1;
/// Where running clusters say which process they are.
const RUN: &str = "/run/atoll";

/// What a local cluster is; written when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Format of the folder.
    pub format: u32,
    /// Its id, 32 hexadecimal digits.
    pub cluster: String,
    /// Storage servers, each of which gets a copy.
    pub copies: u8,
    /// Bytes the volume may hold.
    pub capacity: u64,
    /// Its volume may have several mounts. (What was created before there was this may.)
    #[serde(default = "yes")]
    pub shared: bool,
}

fn yes() -> bool {
    true
}

/// A data folder that was opened.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// What it holds.
    pub cluster: Cluster,
    /// Its id.
    pub id: ClusterId,
    /// Its key.
    pub key: ClusterKey,
}

/// A running cluster, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Process id.
    pub pid: u32,
    /// When the process started (clock ticks since boot), to tell it from a later one with the same id.
    pub started: u64,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its data folder.
    pub data: PathBuf,
    /// Address of its metadata server.
    pub metadata: String,
    /// Address of its metrics and health endpoints.
    pub http: String,
}

/// The data folder for a mount point if none was named.
pub fn default_data(mountpoint: &Path) -> PathBuf {
    let name: String = mountpoint
        .to_string_lossy()
        .trim_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' })
        .collect();
    Path::new("/var/lib/atoll/local").join(if name.is_empty() { "root".into() } else { name })
}

/// Opens the folder at `path`, or makes a new cluster there if it is empty or absent.
///
/// # Errors
/// If it holds anything else, a newer format, or a cluster with other parameters than those asked for.
pub fn open_or_create(
    path: &Path,
    copies: Option<u8>,
    capacity: Option<u64>,
    shared: bool,
) -> Result<(Folder, bool), Failure> {
    if let Some(folder) = open(path)? {
        if let Some(copies) = copies
            && copies != folder.cluster.copies
        {
            return Err(Failure::refused(format_args!(
                "{} has a cluster of {} copies, not {copies}: leave --copies out to use it, or name another \
                 directory with --data",
                path.display(),
                folder.cluster.copies
            )));
        }
        if let Some(capacity) = capacity
            && capacity != folder.cluster.capacity
        {
            return Err(Failure::refused(format_args!(
                "{} has a cluster of {} bytes, not {capacity}: leave --capacity out to use it",
                path.display(),
                folder.cluster.capacity
            )));
        }
        if shared && !folder.cluster.shared {
            return Err(Failure::refused(format_args!(
                "{} has a volume for one mount: leave --shared out to use it, or name another directory with --data",
                path.display()
            )));
        }
        return Ok((folder, false));
    }
    create(path, copies.unwrap_or(3), capacity.unwrap_or(10 << 30), shared).map(|folder| (folder, true))
}

/// Opens the cluster in the folder at `path`; `None` if the folder is absent or empty.
///
/// # Errors
/// If it holds something else than a cluster of this format.
pub fn open(path: &Path) -> Result<Option<Folder>, Failure> {
    let file = path.join("cluster.json");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A creation that was cut off leaves a key at most: it is done again.
            let others = match fs::read_dir(path) {
                Ok(entries) => entries
                    .filter_map(Result::ok)
                    .filter(|entry| {
                        !["key", "key.tmp", "cluster.json.tmp", "log"].iter().any(|n| entry.file_name() == *n)
                    })
                    .count(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
                Err(error) => return Err(Failure::failed(format_args!("{}: {error}", path.display()))),
            };
            if others == 0 {
                return Ok(None);
            }
            return Err(Failure::refused(format_args!(
                "{} isn't empty and has no Atoll cluster: nothing was changed; name an empty or new \
                 directory with --data",
                path.display()
            )));
        }
        Err(error) => return Err(Failure::failed(format_args!("{}: {error}", file.display()))),
    };
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let damaged = |error: &dyn std::fmt::Display| {
        Failure::refused(format_args!("{} can't be read: {error}; nothing was changed", file.display()))
    };
    let found: Format = serde_json::from_str(&text).map_err(|error| damaged(&error))?;
    if found.format > FORMAT {
        return Err(Failure::refused(format_args!(
            "{} was written by a newer atoll-fs (format {}, this one reads {FORMAT}): use the newer program",
            path.display(),
            found.format
        )));
    }
    let cluster: Cluster = serde_json::from_str(&text).map_err(|error| damaged(&error))?;
    let id = cluster.cluster.parse().map_err(|error| damaged(&error))?;
    let key_file = path.join("key");
    let key = fs::read(&key_file).map_err(|error| {
        Failure::refused(format_args!(
            "{}: {error}; without its key the cluster can't be used",
            key_file.display()
        ))
    })?;
    let key = ClusterKey::parse(&key).context(key_file.display())?;
    Ok(Some(Folder { path: path.to_owned(), cluster, id, key }))
}

fn create(path: &Path, copies: u8, capacity: u64, shared: bool) -> Result<Folder, Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Failure::failed(format_args!("can't create {}: {error}", path.display())))?;
    let id = ClusterId(rand::random());
    let cluster = Cluster { format: FORMAT, cluster: id.to_string(), copies, capacity, shared };
    let key = ClusterKey::random();
    write_durably(&path.join("key"), key.to_hex().as_bytes())?;
    let text = serde_json::to_string_pretty(&cluster).context("cluster.json")?;
    // Last: a folder with this file has all it needs.
    write_durably(&path.join("cluster.json"), text.as_bytes())?;
    Ok(Folder { path: path.to_owned(), cluster, id, key })
}

/// Writes a small file so that after a crash it is there whole or not at all.
fn write_durably(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        let temporary = PathBuf::from(format!("{}.tmp", path.display()));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|error| Failure::failed(format_args!("can't write {}: {error}", path.display())))
}

fn run_file(id: ClusterId) -> PathBuf {
    Path::new(RUN).join(format!("{id}.json"))
}

/// The folder for the sockets of a running cluster. Short, since a socket's path ends at 107 bytes.
///
/// # Errors
/// If it can't be made.
pub fn socket_folder(id: ClusterId) -> Result<PathBuf, Failure> {
    let path = Path::new(RUN).join(format!("{id}"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).context(path.display())?;
    Ok(path)
}

/// Says which process serves the cluster.
///
/// # Errors
/// If the file can't be written.
pub fn announce(id: ClusterId, running: &Running) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(RUN).context(RUN)?;
    let text = serde_json::to_string_pretty(running).context("run file")?;
    write_durably(&run_file(id), text.as_bytes())
}

/// Takes back what [`announce`] said.
pub fn withdraw(id: ClusterId) {
    let _ = fs::remove_file(run_file(id));
    let _ = fs::remove_dir_all(Path::new(RUN).join(format!("{id}")));
}

/// The process that serves the cluster, if it lives.
pub fn running(id: ClusterId) -> Option<Running> {
    let running: Running = serde_json::from_slice(&fs::read(run_file(id)).ok()?).ok()?;
    (start_of(running.pid) == Some(running.started)).then_some(running)
}

/// When a process started, in clock ticks since boot; `None` if there is none, or only its zombie.
pub fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after the last one are plain.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_folder_is_made_once_and_found_again() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data");
        let (first, new) = open_or_create(&path, None, Some(1 << 30), false).unwrap();
        assert!(new);
        let (again, new) = open_or_create(&path, Some(3), None, false).unwrap();
        assert!(!new);
        assert_eq!((again.id, again.key.to_hex()), (first.id, first.key.to_hex()));
        let other = open_or_create(&path, Some(1), None, false).unwrap_err();
        assert!(other.code == crate::exit::Code::Refused && other.message.contains("--copies"), "{other}");
        let other = open_or_create(&path, None, Some(5), false).unwrap_err();
        assert!(other.message.contains("--capacity"), "{other}");
        let other = open_or_create(&path, None, None, true).unwrap_err();
        assert!(other.message.contains("--shared"), "{other}");
    }

    #[test]
    fn foreign_data_is_never_touched() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("thesis.txt"), "years of work").unwrap();
        let error = open_or_create(temporary.path(), None, None, false).unwrap_err();
        assert!(error.message.contains("--data"), "{error}");
        let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn a_folder_of_a_newer_program_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("cluster.json"), r#"{"format": 99, "shape": "unknown"}"#).unwrap();
        let error = open(temporary.path()).unwrap_err();
        assert!(error.message.contains("newer"), "{error}");
    }

    #[test]
    fn an_interrupted_creation_is_done_again() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("key"), "half").unwrap();
        assert!(open_or_create(temporary.path(), None, None, false).unwrap().1);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        assert!(start_of(std::process::id()).is_some());
        assert_eq!(start_of(u32::MAX), None);
    }

    #[test]
    fn mount_points_have_folders_of_their_own() {
        assert_eq!(default_data(Path::new("/mnt/a b")), Path::new("/var/lib/atoll/local/mnt_a_b"));
        assert_eq!(default_data(Path::new("/")), Path::new("/var/lib/atoll/local/root"));
    }
}
