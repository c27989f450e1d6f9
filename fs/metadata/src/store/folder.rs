//! The folder of a metadata server: whose it is, and in which format.
//!
//! ```text
//! identity       whose folder this is; written first, so a folder without it is empty or foreign
//! lock           held while a process uses the folder
//! current        name of the folder below that holds the state
//! state-<n>/     RocksDB
//! raft/          log and vote
//! members        where the group's members are
//! damaged-<id>/  state and log of the member that this one takes the place of
//! ballast        see `ballast`
//! ```
//!
//! A member whose state or log is damaged may not come back with less than it had: it could vote for another leader than
//! it has voted for, and what it had acknowledged would be gone. It [is replaced](Folder::replace_member): the folder gets
//! another member's identity, which says whose place it takes, and then what is damaged is moved out of the way. What
//! was moved stays until the new member [votes](Folder::rejoined).
//!
//! Small files are replaced by writing a temporary one, syncing it, renaming it and syncing the folder, so a
//! crash leaves the old content or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use atoll_core::ids::{ClusterId, MemberId};

/// The format of the folder that this program writes.
const FORMAT: u32 = 1;
const IDENTITY: &str = "identity";
const LOCK: &str = "lock";
const CURRENT: &str = "current";
const STATE_PREFIX: &str = "state-";
const RAFT: &str = "raft";
const MEMBERS: &str = "members";
const DAMAGED_PREFIX: &str = "damaged-";
/// In a folder of damaged files: all of them are there.
const MOVED: &str = "moved";
/// What a fresh disk may hold before it is ours.
const IGNORED: [&str; 3] = ["lost+found", LOCK, "identity.new"];

/// Why a folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system refused.
    #[error("can't {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Not a folder.
    #[error("{path} is not a directory: give the metadata server a directory of its own")]
    NotFolder {
        /// What was given.
        path: PathBuf,
    },
    /// Somebody else's files.
    #[error(
        "{path} has files that are not a metadata server's ({example}): nothing was changed; give the \
         metadata server an empty directory"
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// One of the files.
        example: String,
    },
    /// Another volume's.
    #[error(
        "{path} belongs to cluster {found}, this server was started for cluster {expected}: nothing was \
         changed; use that cluster's id, or another directory"
    )]
    OtherCluster {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        expected: ClusterId,
    },
    /// Written by a newer program.
    #[error(
        "{path} has format {found}, this program reads formats up to {FORMAT}: use the version that wrote \
         it, or a newer one"
    )]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The identity can't be read.
    #[error("{path} is damaged ({detail}): restore it from a backup, or replace this member")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Another process uses it.
    #[error("{path} is in use by another process: is this metadata server running already?")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

impl FolderError {
    /// Whether the disk is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if atoll_raft::is_full(source))
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { action, path, source }
}

/// An open folder; nobody else can open it while this lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    cluster: ClusterId,
    member: MemberId,
    replaces: Vec<MemberId>,
    _lock: File,
}

impl Folder {
    /// Opens the folder at `path` for a member of `cluster`. A missing or empty one becomes `new_member`'s;
    /// anything else that isn't this cluster's is refused untouched.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn open(path: &Path, cluster: ClusterId, new_member: MemberId) -> Result<Folder, FolderError> {
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => return Err(FolderError::NotFolder { path: path.into() }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path).map_err(io_error("create the directory", path))?;
                if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    sync_folder(parent)?;
                }
            }
            Err(error) => return Err(io_error("examine", path)(error)),
        }
        let before = Identity::read(path)?;
        match &before {
            Some(identity) => identity.check(path, cluster)?,
            None => refuse_foreign(path)?,
        }
        let lock = lock(path)?;
        // Once more: another process may have made it its own before this one had the lock.
        let identity = match Identity::read(path)? {
            Some(identity) => {
                identity.check(path, cluster)?;
                identity
            }
            None => {
                let identity = Identity { cluster, member: new_member, replaces: Vec::new() };
                replace(&path.join(IDENTITY), identity.text().as_bytes())?;
                identity
            }
        };
        let Identity { cluster, member, replaces } = identity;
        let folder = Folder { path: path.into(), cluster, member, replaces, _lock: lock };
        match folder.replaces.first() {
            Some(old) => folder.move_damaged(*old)?,
            None => folder.remove_damaged()?,
        }
        Ok(folder)
    }

    /// Whose place this member is to take, if it isn't known to vote yet: the first of these that is in the group.
    #[must_use]
    pub fn replaces(&self) -> &[MemberId] {
        &self.replaces
    }

    /// The folder becomes the one of `new`, which is to take this member's place; state and log are moved out of the way.
    ///
    /// # Errors
    /// If the disk refuses. Opening the folder goes on with it then, if the new identity was written.
    pub fn replace_member(self, new: MemberId) -> Result<(), FolderError> {
        // Damaged again before it was known to have the place: either it or its predecessor is in the group.
        let mut replaces = vec![self.member];
        replaces.extend(self.replaces.iter().copied());
        let identity = Identity { cluster: self.cluster, member: new, replaces };
        replace(&self.path.join(IDENTITY), identity.text().as_bytes())?;
        self.move_damaged(self.member)
    }

    /// This member votes in its predecessor's place: what was kept of that one goes.
    ///
    /// # Errors
    /// If the disk refuses; it is done when the folder is opened next, or may be done again.
    pub fn rejoined(&self) -> Result<(), FolderError> {
        let identity = Identity { cluster: self.cluster, member: self.member, replaces: Vec::new() };
        replace(&self.path.join(IDENTITY), identity.text().as_bytes())?;
        self.remove_damaged()
    }

    /// Moves what the member `old` had out of the way, unless that was done.
    fn move_damaged(&self, old: MemberId) -> Result<(), FolderError> {
        let aside = self.path.join(format!("{DAMAGED_PREFIX}{old}"));
        if aside.join(MOVED).exists() {
            return Ok(());
        }
        fs::create_dir_all(&aside).map_err(io_error("create the directory", &aside))?;
        sync_folder(&self.path)?;
        for name in self.names()? {
            if name == RAFT || name == CURRENT || name.starts_with(STATE_PREFIX) {
                let from = self.path.join(&name);
                fs::rename(&from, aside.join(&name)).map_err(io_error("move", &from))?;
            }
        }
        sync_folder(&aside)?;
        sync_folder(&self.path)?;
        replace(&aside.join(MOVED), b"")
    }

    fn remove_damaged(&self) -> Result<(), FolderError> {
        // Nothing that somebody has put there under a name like these.
        let is_ours =
            |name: &str| name.strip_prefix(DAMAGED_PREFIX).is_some_and(|id| id.parse::<MemberId>().is_ok());
        for name in self.names()?.iter().filter(|name| is_ours(name)) {
            let path = self.path.join(name);
            fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, FolderError> {
        let entries = fs::read_dir(&self.path).map_err(io_error("list", &self.path))?;
        entries
            .map(|entry| {
                Ok(entry.map_err(io_error("list", &self.path))?.file_name().to_string_lossy().into_owned())
            })
            .collect()
    }

    /// Writes down where the members of the group are, for the day when the log can't be read.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write_members(&self, members: &BTreeMap<MemberId, String>) -> Result<(), FolderError> {
        let lines: String = members.iter().map(|(member, address)| format!("{member} {address}\n")).collect();
        replace(&self.path.join(MEMBERS), lines.as_bytes())
    }

    /// Where the members of the group were when it was last known. What can't be read is left out.
    #[must_use]
    pub fn members(&self) -> BTreeMap<MemberId, String> {
        let text = fs::read(self.path.join(MEMBERS)).unwrap_or_default();
        let line = |line: &str| {
            let (member, address) = line.split_once(' ')?;
            Some((member.parse().ok()?, address.to_owned()))
        };
        String::from_utf8_lossy(&text).lines().filter_map(line).collect()
    }

    /// Whose disk this is.
    #[must_use]
    pub fn member(&self) -> MemberId {
        self.member
    }

    /// The cluster that it belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For the Raft log.
    #[must_use]
    pub fn raft(&self) -> PathBuf {
        self.path.join(RAFT)
    }

    /// The folder of the current state. What other states a crash has left is removed.
    ///
    /// # Errors
    /// If the folder can't be read or written.
    pub fn current_state(&self) -> Result<PathBuf, FolderError> {
        let pointer = self.path.join(CURRENT);
        let name = match fs::read_to_string(&pointer) {
            Ok(name) => {
                let name = name.trim().to_owned();
                if !name.starts_with(STATE_PREFIX) || name.contains('/') {
                    let detail = format!("it names the state directory '{name}'");
                    return Err(FolderError::Damaged { path: pointer, detail });
                }
                name
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = format!("{STATE_PREFIX}1");
                replace(&pointer, name.as_bytes())?;
                name
            }
            Err(error) => return Err(io_error("read", &pointer)(error)),
        };
        for entry in fs::read_dir(&self.path).map_err(io_error("list", &self.path))? {
            let entry = entry.map_err(io_error("list", &self.path))?;
            let found = entry.file_name().to_string_lossy().into_owned();
            if found.starts_with(STATE_PREFIX) && found != name {
                fs::remove_dir_all(entry.path()).map_err(io_error("remove the old state", &entry.path()))?;
            }
        }
        Ok(self.path.join(name))
    }

    /// A new, empty folder for a state that is to take the place of the current one.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn next_state(&self, current: &Path) -> Result<PathBuf, FolderError> {
        let number = current
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(STATE_PREFIX)?.parse::<u64>().ok())
            .unwrap_or(0);
        let next = self.path.join(format!("{STATE_PREFIX}{}", number + 1));
        match fs::remove_dir_all(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove what is left of", &next)(error));
            }
            _ => {}
        }
        fs::create_dir(&next).map_err(io_error("create the directory", &next))?;
        Ok(next)
    }

    /// Makes `state` (all of whose files are synced) the current one, durably.
    ///
    /// # Errors
    /// If the disk refuses; the old one stays current then.
    pub fn switch_state(&self, state: &Path) -> Result<(), FolderError> {
        let name = state.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        sync_folder(state)?;
        replace(&self.path.join(CURRENT), name.as_bytes())
    }
}

/// Moves every file of `from` into `to`, and syncs both files and folder. Copies where they are on different
/// filesystems.
///
/// # Errors
/// If a file can't be moved; it can be tried again.
pub fn move_files(from: &Path, to: &Path) -> Result<(), FolderError> {
    for entry in fs::read_dir(from).map_err(io_error("list", from))? {
        let source = entry.map_err(io_error("list", from))?.path();
        let target = to.join(source.file_name().unwrap_or_default());
        match fs::rename(&source, &target) {
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                fs::copy(&source, &target).map_err(io_error("copy", &source))?;
            }
            other => other.map_err(io_error("move", &source))?,
        }
    }
    for entry in fs::read_dir(to).map_err(io_error("list", to))? {
        let moved = entry.map_err(io_error("list", to))?.path();
        File::open(&moved).and_then(|file| file.sync_all()).map_err(io_error("sync", &moved))?;
    }
    sync_folder(to)
}

struct Identity {
    cluster: ClusterId,
    member: MemberId,
    /// Whose place it is to take, the latest first.
    replaces: Vec<MemberId>,
}

impl Identity {
    fn text(&self) -> String {
        let replaces: String = self.replaces.iter().map(|old| format!("replaces {old}\n")).collect();
        format!("atoll-metadata {FORMAT}\ncluster {}\nmember {}\n{replaces}end\n", self.cluster, self.member)
    }

    fn read(folder: &Path) -> Result<Option<Identity>, FolderError> {
        let path = folder.join(IDENTITY);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let mut lines = text.lines();
        let format = match lines.next().and_then(|line| line.strip_prefix("atoll-metadata ")) {
            Some(format) => format.parse::<u32>().ok(),
            None => {
                // Somebody else's file of the same name.
                return Err(FolderError::Foreign { path: folder.into(), example: IDENTITY.into() });
            }
        };
        let damaged = |detail: &str| FolderError::Damaged { path: path.clone(), detail: detail.into() };
        let format = format.ok_or_else(|| damaged("its format isn't a number"))?;
        if format > FORMAT {
            return Err(FolderError::Newer { path: folder.into(), found: format });
        }
        let mut field = |name: &str| lines.next().and_then(|line| line.strip_prefix(name)).map(str::to_owned);
        let cluster =
            field("cluster ").and_then(|id| id.parse().ok()).ok_or_else(|| damaged("no cluster id"))?;
        let member =
            field("member ").and_then(|id| id.parse().ok()).ok_or_else(|| damaged("no member id"))?;
        let mut last = lines.next();
        let mut replaces = Vec::new();
        while let Some(id) = last.and_then(|line| line.strip_prefix("replaces ")) {
            replaces.push(
                id.parse().map_err(|_| damaged("the id of the member that it replaces can't be read"))?,
            );
            last = lines.next();
        }
        if last.is_none_or(|line| !line.starts_with("end")) {
            return Err(damaged("it is truncated"));
        }
        Ok(Some(Identity { cluster, member, replaces }))
    }

    fn check(&self, path: &Path, expected: ClusterId) -> Result<(), FolderError> {
        if self.cluster == expected {
            return Ok(());
        }
        Err(FolderError::OtherCluster { path: path.into(), found: self.cluster, expected })
    }
}

fn refuse_foreign(path: &Path) -> Result<(), FolderError> {
    for entry in fs::read_dir(path).map_err(io_error("list", path))? {
        let name = entry.map_err(io_error("list", path))?.file_name().to_string_lossy().into_owned();
        if !IGNORED.contains(&name.as_str()) {
            return Err(FolderError::Foreign { path: path.into(), example: name });
        }
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File, FolderError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    // SAFETY: the descriptor is open for as long as `file` lives.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(file);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock {
        return Err(FolderError::InUse { path: folder.into() });
    }
    Err(io_error("lock", &path)(error))
}

fn sync_folder(path: &Path) -> Result<(), FolderError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("sync", path))
}

/// Gives the file at `path` this content, durably, whole or not at all.
fn replace(path: &Path, content: &[u8]) -> Result<(), FolderError> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io_error("write", path))?;
    match path.parent() {
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0xc1);
    const MEMBER: MemberId = MemberId(7);

    #[test]
    fn a_new_folder_keeps_its_first_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let folder = Folder::open(&path, CLUSTER, MEMBER).unwrap();
        assert_eq!(folder.member(), MEMBER);
        drop(folder);
        assert_eq!(Folder::open(&path, CLUSTER, MemberId(8)).unwrap().member(), MEMBER);
    }

    #[test]
    fn two_processes_can_not_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Folder::open(dir.path(), CLUSTER, MEMBER).unwrap();
        let error = Folder::open(dir.path(), CLUSTER, MEMBER).unwrap_err();
        assert!(matches!(error, FolderError::InUse { .. }), "{error}");
    }

    #[test]
    fn what_is_not_ours_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("photos.tar"), b"precious").unwrap();
        let error = Folder::open(dir.path(), CLUSTER, MEMBER).unwrap_err();
        assert!(error.to_string().contains("photos.tar"), "{error}");
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["photos.tar"]);

        let error = Folder::open(&dir.path().join("photos.tar"), CLUSTER, MEMBER).unwrap_err();
        assert!(matches!(error, FolderError::NotFolder { .. }), "{error}");
    }

    #[test]
    fn other_clusters_newer_formats_and_damage_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        drop(Folder::open(dir.path(), CLUSTER, MEMBER).unwrap());
        let error = Folder::open(dir.path(), ClusterId(0xc2), MEMBER).unwrap_err();
        assert!(matches!(error, FolderError::OtherCluster { found: CLUSTER, .. }), "{error}");

        let file = dir.path().join(IDENTITY);
        let good = fs::read_to_string(&file).unwrap();
        fs::write(&file, good.replace("metadata 1", "metadata 9")).unwrap();
        let error = Folder::open(dir.path(), CLUSTER, MEMBER).unwrap_err();
        assert!(matches!(error, FolderError::Newer { found: 9, .. }), "{error}");

        fs::write(&file, &good[..good.len() - 8]).unwrap();
        let error = Folder::open(dir.path(), CLUSTER, MEMBER).unwrap_err();
        assert!(matches!(error, FolderError::Damaged { .. }), "{error}");

        fs::write(&file, "something else").unwrap();
        let error = Folder::open(dir.path(), CLUSTER, MEMBER).unwrap_err();
        assert!(matches!(error, FolderError::Foreign { .. }), "{error}");
    }

    /// A folder with a state and a log in it.
    fn lived_in(path: &Path) -> Folder {
        let folder = Folder::open(path, CLUSTER, MEMBER).unwrap();
        let state = folder.current_state().unwrap();
        for (dir, file) in [(state, "tables"), (folder.raft(), "log")] {
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(file), file).unwrap();
        }
        let members = BTreeMap::from([(MEMBER, "a:1".to_owned()), (MemberId(9), "b:1".to_owned())]);
        folder.write_members(&members).unwrap();
        assert_eq!(folder.members(), members);
        folder
    }

    #[test]
    fn who_steps_aside_is_another_member_and_keeps_the_damage_until_it_votes() {
        let dir = tempfile::tempdir().unwrap();
        let new = MemberId(8);
        lived_in(dir.path()).replace_member(new).unwrap();
        let folder = Folder::open(dir.path(), CLUSTER, MemberId(1)).unwrap();
        assert_eq!((folder.member(), folder.replaces()), (new, &[MEMBER][..]));
        assert_eq!(folder.members().len(), 2);
        assert!(!folder.raft().exists() && !folder.current_state().unwrap().exists());
        let kept = dir.path().join(format!("damaged-{MEMBER}"));
        assert!(kept.join("state-1/tables").exists() && kept.join("raft/log").exists());
        // What it has got since isn't taken for the damaged one's.
        fs::create_dir(folder.raft()).unwrap();
        drop(folder);
        let folder = Folder::open(dir.path(), CLUSTER, MemberId(1)).unwrap();
        assert!(folder.raft().exists());
        // Damaged again before it is known to vote.
        folder.replace_member(MemberId(10)).unwrap();
        let folder = Folder::open(dir.path(), CLUSTER, MemberId(1)).unwrap();
        assert_eq!((folder.member(), folder.replaces()), (MemberId(10), &[new, MEMBER][..]));
        assert!(!folder.raft().exists() && kept.join("raft/log").exists());
        folder.rejoined().unwrap();
        drop(folder);
        let folder = Folder::open(dir.path(), CLUSTER, MemberId(1)).unwrap();
        assert_eq!((folder.member(), folder.replaces()), (MemberId(10), &[][..]));
        assert!(!kept.exists() && !dir.path().join(format!("damaged-{new}")).exists());
    }

    #[test]
    fn stepping_aside_goes_on_where_a_crash_has_stopped_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(lived_in(dir.path()));
        // The new identity is there, half is moved.
        let identity = Identity { cluster: CLUSTER, member: MemberId(8), replaces: vec![MEMBER] };
        fs::write(dir.path().join(IDENTITY), identity.text()).unwrap();
        let kept = dir.path().join(format!("damaged-{MEMBER}"));
        fs::create_dir(&kept).unwrap();
        fs::rename(dir.path().join(RAFT), kept.join(RAFT)).unwrap();
        let folder = Folder::open(dir.path(), CLUSTER, MemberId(1)).unwrap();
        assert!(kept.join("state-1/tables").exists() && !folder.raft().exists());
        assert!(!dir.path().join("state-1").exists());
    }

    #[test]
    fn a_state_is_switched_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), CLUSTER, MEMBER).unwrap();
        let first = folder.current_state().unwrap();
        fs::create_dir(&first).unwrap();
        let next = folder.next_state(&first).unwrap();
        // Not switched: the new one is what a crash left.
        assert_eq!(folder.current_state().unwrap(), first);
        assert!(!next.exists());
        let next = folder.next_state(&first).unwrap();
        fs::write(next.join("f"), b"x").unwrap();
        folder.switch_state(&next).unwrap();
        assert_eq!(folder.current_state().unwrap(), next);
        assert!(!first.exists() && next.join("f").exists());
    }
}
