//! The nodes' disks: folders and images below the cluster's state folder. Every step may be done twice, and a step that
//! was interrupted is completed by doing it again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::decide::{Kind, Storage};
use crate::error::{Error, IoContext};
use crate::object;

/// All disks of one cluster.
#[derive(Clone, Debug)]
pub struct Disks {
    state: PathBuf,
}

impl Disks {
    /// `state` is the cluster's state folder, as `hack/kube` lays it out.
    pub fn new(state: PathBuf) -> Self {
        Self { state }
    }

    /// The first process of a node, if it is on. Its record is a pid and a start time.
    pub fn power(&self, node: &str) -> Option<i32> {
        let record = fs::read_to_string(self.state.join("run").join(format!("{node}.init.pid"))).ok()?;
        let (pid, start) = record.trim().split_once(' ')?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the start time is the 22nd field, the state the third.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        let alive = fields.next()? != "Z" && fields.nth(18)? == start;
        alive.then(|| pid.parse().ok()).flatten()
    }

    /// Makes the storage of a new volume.
    pub fn create(&self, storage: &Storage) -> Result<(), Error> {
        let folder = self.folder(storage)?;
        match storage.kind {
            Kind::Folder | Kind::Shared => fs::create_dir_all(&folder).doing("make", &folder),
            Kind::Image => {
                let image = image(&folder);
                if !image.exists() {
                    let unfinished = image.with_extension("img.tmp");
                    let file = fs::File::create(&unfinished).doing("make", &unfinished)?;
                    file.set_len(storage.bytes).doing("size", &unfinished)?;
                    // XFS, since ext4 grows only for those who have CAP_SYS_RESOURCE. With a small log, so that the
                    // size is for its user. The variables are those by which its own tests make it this small.
                    run(Command::new("mkfs.xfs")
                        .envs([("TEST_DIR", "/"), ("TEST_DEV", "/"), ("QA_CHECK_FS", "1")])
                        .args(["-q", "-f", "-l", "size=5m", "-m", "reflink=0"])
                        .arg(&unfinished))?;
                    fs::rename(&unfinished, &image).doing("name", &image)?;
                }
                fs::create_dir_all(&folder).doing("make", &folder)?;
                self.mount(storage)
            }
        }
    }

    /// Gives a volume more room.
    pub fn expand(&self, storage: &Storage) -> Result<(), Error> {
        match storage.kind {
            Kind::Folder | Kind::Shared => Ok(()),
            Kind::Image => {
                let image = image(&self.folder(storage)?);
                // It must be mounted to grow, and a node that is off mounts it when it is on again.
                self.mount(storage)?;
                let device = self.device(storage)?.ok_or_else(|| Error::Off(storage.node.clone()))?;
                let file = fs::OpenOptions::new().write(true).open(&image).doing("open", &image)?;
                if file.metadata().doing("stat", &image)?.len() < storage.bytes {
                    file.set_len(storage.bytes).doing("grow", &image)?;
                }
                self.on_node(storage, &["losetup", "--set-capacity", &device])?;
                self.on_node(storage, &["xfs_growfs", "-d", &object::path(storage)]).map(drop)
            }
        }
    }

    /// Deletes a volume's bytes.
    pub fn delete(&self, storage: &Storage) -> Result<(), Error> {
        let folder = self.folder(storage)?;
        if let Some(node) = &storage.node {
            let disk = self.state.join("nodes").join(node);
            // Without power the bytes can't be reached, but a node that was removed takes them along.
            if disk.exists() && self.power(node).is_none() {
                return Err(Error::Off(Some(node.clone())));
            }
        }
        match storage.kind {
            Kind::Folder | Kind::Shared => gone(fs::remove_dir_all(&folder)).doing("remove", &folder),
            Kind::Image => {
                if storage.node.as_deref().is_some_and(|node| self.power(node).is_some())
                    && self.device(storage)?.is_some()
                {
                    self.on_node(storage, &["umount", &object::path(storage)])?;
                }
                let image = image(&folder);
                gone(fs::remove_file(&image)).doing("remove", &image)?;
                // Never what is in it: if it isn't empty it is still mounted.
                gone(fs::remove_dir(&folder)).doing("remove", &folder)
            }
        }
    }

    /// What lies on the disks of all nodes that are on, and on the shared one: names of volumes with their kind and
    /// node. Their sizes aren't known.
    pub fn all(&self) -> Result<Vec<Storage>, Error> {
        let mut found = Vec::new();
        let shared = self.state.join("network-volumes");
        for volume in names(&shared)? {
            found.push(Storage { volume, kind: Kind::Shared, node: None, bytes: 0 });
        }
        for node in names(&self.state.join("nodes"))? {
            if self.power(&node).is_none() {
                continue;
            }
            let volumes = self.state.join("nodes").join(&node).join("disk/volumes");
            let names = names(&volumes)?;
            for name in &names {
                let volume = name.strip_suffix(".img").unwrap_or(name).to_owned();
                let kind =
                    if volumes.join(format!("{volume}.img")).exists() { Kind::Image } else { Kind::Folder };
                // An image has a file and a folder.
                if kind == Kind::Image && !name.ends_with(".img") {
                    continue;
                }
                found.push(Storage { volume, kind, node: Some(node.clone()), bytes: 0 });
            }
        }
        Ok(found)
    }

    /// Where the machine sees a volume.
    fn folder(&self, storage: &Storage) -> Result<PathBuf, Error> {
        // Names come from objects that anybody with rights on them may write.
        let plain =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !plain(&storage.volume) || !storage.node.as_deref().is_none_or(plain) {
            return Err(Error::Name(storage.volume.clone()));
        }
        Ok(match &storage.node {
            None => self.state.join("network-volumes").join(&storage.volume),
            Some(node) => self.state.join("nodes").join(node).join("disk/volumes").join(&storage.volume),
        })
    }

    fn mount(&self, storage: &Storage) -> Result<(), Error> {
        if self.device(storage)?.is_some() {
            return Ok(());
        }
        let path = object::path(storage);
        self.on_node(storage, &["mount", "-o", "loop", &format!("{path}.img"), &path]).map(drop)
    }

    /// The loop device that is mounted at an image's place on its node.
    fn device(&self, storage: &Storage) -> Result<Option<String>, Error> {
        let path = object::path(storage);
        let mounts = self.on_node(storage, &["cat", "/proc/self/mountinfo"])?;
        Ok(source(&mounts, &path))
    }

    fn on_node(&self, storage: &Storage, command: &[&str]) -> Result<String, Error> {
        let init = storage.node.as_deref().and_then(|node| self.power(node));
        let init = init.ok_or_else(|| Error::Off(storage.node.clone()))?;
        run(Command::new("nsenter")
            .arg("--target")
            .arg(init.to_string())
            .args(["--mount", "--pid", "--"])
            .args(command))
    }
}

fn image(folder: &Path) -> PathBuf {
    folder.with_extension("img")
}

/// What is mounted at a place, by /proc/self/mountinfo; of several the last, which hides the others.
fn source(mounts: &str, path: &str) -> Option<String> {
    let line = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some(path))?;
    let (_, after) = line.split_once(" - ")?;
    Some(after.split(' ').nth(1)?.to_owned())
}

fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).doing("list", folder)? {
        // Names that aren't text are nobody's volumes.
        names.extend(entry.doing("list", folder)?.file_name().into_string());
    }
    Ok(names)
}

/// What isn't there need not be removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn run(command: &mut Command) -> Result<String, Error> {
    let said = || format!("{command:?}");
    let name = said();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| Error::Io { what: name.clone(), error })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Program { name, said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(kind: Kind, node: Option<&str>) -> Storage {
        Storage { volume: "pvc-1".into(), kind, node: node.map(str::to_owned), bytes: 1 << 24 }
    }

    /// A cluster whose nodes are this process.
    fn cluster() -> (tempfile::TempDir, Disks) {
        let state = tempfile::tempdir().unwrap();
        for folder in ["run", "network-volumes", "nodes/node-0/disk/volumes"] {
            fs::create_dir_all(state.path().join(folder)).unwrap();
        }
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let start = stat[stat.rfind(')').unwrap() + 1..].split_whitespace().nth(19).unwrap();
        let record = format!("{} {start}\n", std::process::id());
        fs::write(state.path().join("run/node-0.init.pid"), record).unwrap();
        let disks = Disks::new(state.path().to_owned());
        (state, disks)
    }

    #[test]
    fn folders_are_made_found_and_deleted_twice() {
        let (state, disks) = cluster();
        for (storage, place) in [
            (storage(Kind::Folder, Some("node-0")), "nodes/node-0/disk/volumes/pvc-1"),
            (storage(Kind::Shared, None), "network-volumes/pvc-1"),
        ] {
            disks.create(&storage).unwrap();
            disks.create(&storage).unwrap();
            fs::write(state.path().join(place).join("file"), "x").unwrap();
            assert_eq!(disks.all().unwrap(), [Storage { bytes: 0, ..storage.clone() }]);
            disks.delete(&storage).unwrap();
            disks.delete(&storage).unwrap();
            assert!(!state.path().join(place).exists());
        }
    }

    #[test]
    fn a_node_is_on_while_its_first_process_is_the_one_of_the_record() {
        let (state, disks) = cluster();
        assert_eq!(disks.power("node-0"), Some(std::process::id() as i32));
        assert_eq!(disks.power("node-1"), None);
        fs::write(state.path().join("run/node-0.init.pid"), format!("{} 1\n", std::process::id())).unwrap();
        assert_eq!(disks.power("node-0"), None, "another process with the same number");
        let folder = storage(Kind::Folder, Some("node-0"));
        assert!(matches!(disks.delete(&folder), Err(Error::Off(_))), "its disk is out of reach");
        fs::remove_dir_all(state.path().join("nodes/node-0")).unwrap();
        disks.delete(&folder).unwrap();
    }

    #[test]
    fn names_stay_in_their_folder() {
        let (_state, disks) = cluster();
        for name in ["../x", "a/b", "", "."] {
            let bad = Storage { volume: name.into(), ..storage(Kind::Shared, None) };
            assert!(matches!(disks.delete(&bad), Err(Error::Name(_))), "{name}");
        }
    }

    #[test]
    fn the_device_of_a_mount_is_found() {
        let mounts = "1 0 7:0 / /a rw shared:1 - ext4 /dev/loop0 rw\n2 0 7:1 / /a rw - ext4 /dev/loop1 rw\n";
        assert_eq!(source(mounts, "/a").as_deref(), Some("/dev/loop1"));
        assert_eq!(source(mounts, "/b"), None);
    }
}
