//! What is measured: a folder, the mount it lies on, and the processes that serve it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A folder to measure.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name in tables.
    pub name: String,
    /// Where the work is done: a new folder of this run.
    pub folder: PathBuf,
    /// The mount it lies on.
    pub mount: Mount,
    /// Processes that serve it.
    pub pids: Vec<i32>,
    /// Its FUSE connection may be aborted, and what is in it needn't be removed.
    pub disposable: bool,
    /// How long it took until it was usable: the first time, when it was made, then again.
    pub started: Vec<Duration>,
    /// Which target it is judged by: its place among all of them.
    pub against: Option<usize>,
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type of the filesystem.
    pub kind: String,
    /// Minor number of its device; for FUSE the number of the connection.
    pub minor: u32,
}

impl Mount {
    /// The mount that holds a path, which must be absolute and without links; `None` if the table can't be read.
    pub fn of(path: &Path) -> Option<Mount> {
        find(&fs::read_to_string("/proc/self/mountinfo").ok()?, path)
    }

    /// The file that aborts the connection of a FUSE mount when something is written to it.
    pub fn abort_file(&self) -> Option<PathBuf> {
        let file = PathBuf::from(format!("/sys/fs/fuse/connections/{}/abort", self.minor));
        self.kind.starts_with("fuse").then_some(file)
    }
}

/// The mount that holds `path`: of the deepest ones the last in the table, which covers those before it.
fn find(table: &str, path: &Path) -> Option<Mount> {
    let mut best: Option<Mount> = None;
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut left = left.split(' ');
        let (Some(device), Some(point)) = (left.nth(2), left.nth(1)) else { continue };
        let point = PathBuf::from(unescape(point));
        if !path.starts_with(&point) {
            continue;
        }
        if best.as_ref().is_some_and(|best| best.point.components().count() > point.components().count()) {
            continue;
        }
        let minor = device.split(':').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        best = Some(Mount { point, kind: right.split(' ').next().unwrap_or_default().to_owned(), minor });
    }
    best
}

/// Spaces and the like are written as \040 in the mount table.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                result.push(char::from(byte));
                result.push_str(&part[3..]);
            }
            None => result.push_str(part),
        }
    }
    result
}

/// Processes that serve an Atoll mount, as they say themselves in `/run/atoll/*.json`.
pub fn serving(mountpoint: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/run/atoll") else { return Vec::new() };
    let files = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "json"));
    files.filter_map(|file| server(&fs::read_to_string(file).ok()?, mountpoint)).collect()
}

fn server(announcement: &str, mountpoint: &Path) -> Option<i32> {
    let value: serde_json::Value = serde_json::from_str(announcement).ok()?;
    let serves = value.get("mountpoint")?.as_str().is_some_and(|path| Path::new(path) == mountpoint);
    serves.then(|| value.get("pid")?.as_i64()?.try_into().ok()).flatten()
}

/// Memory of processes in bytes: each page counted once, shared ones in parts (Pss). `None` if one can't be read.
pub fn memory(pids: &[i32]) -> Option<u64> {
    let one = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    if pids.is_empty() { None } else { pids.iter().map(one).sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 27 0:44 / /mnt/a\\040b rw,nosuid - fuse.atoll atoll:1 rw
32 31 0:45 / /mnt/a\\040b rw,nosuid - fuse passthrough rw
33 27 0:46 / /mnt/ab rw - tmpfs none rw
";

    #[test]
    fn the_mount_of_a_path_is_the_deepest_and_newest() {
        let mount = find(TABLE, Path::new("/mnt/a b/x")).unwrap();
        assert_eq!((mount.kind.as_str(), mount.minor), ("fuse", 45));
        assert_eq!(mount.abort_file().unwrap(), Path::new("/sys/fs/fuse/connections/45/abort"));
        let mount = find(TABLE, Path::new("/mnt/abc")).unwrap();
        assert_eq!((mount.point.as_path(), mount.kind.as_str()), (Path::new("/"), "ext4"));
        assert_eq!(mount.abort_file(), None);
        assert_eq!(find(TABLE, Path::new("/mnt/ab")).unwrap().kind, "tmpfs");
    }

    #[test]
    fn a_server_announces_its_mount() {
        let text = r#"{ "pid": 77, "started": 5, "mountpoint": "/mnt/x" }"#;
        assert_eq!(server(text, Path::new("/mnt/x")), Some(77));
        assert_eq!(server(text, Path::new("/mnt/y")), None);
        assert_eq!(server("{", Path::new("/mnt/y")), None);
    }
}
