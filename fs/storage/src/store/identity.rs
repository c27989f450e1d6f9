//! Whose folder it is: the identity file, and what is refused.

use std::io;
use std::sync::Arc;

use atoll_core::ids::{ClusterId, ServerId};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use crate::disk::{Disk, DiskFile};

/// Version of the folder's layout that this build writes.
pub const FOLDER_FORMAT: u32 = 1;
/// Says whose folder this is.
pub(super) const IDENTITY_FILE: &str = "atoll-storage.json";
const IDENTITY_TEMPORARY: &str = "atoll-storage.json.new";
/// Keeps the folder to one process.
pub(super) const LOCK_FILE: &str = "lock";
/// An identity file is a few hundred bytes; a longer one isn't ours.
const IDENTITY_BYTES_MAX: u64 = 64 << 10;

/// Who the owner of a folder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The cluster whose chunks are here.
    pub cluster: ClusterId,
    /// The storage server.
    pub server: ServerId,
    /// Counts the starts on this folder, this one included.
    pub incarnation: u64,
}

/// The file. Ids are written as text, since JSON's numbers end at 2^53 for many readers.
#[derive(Debug, Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    cluster: String,
    server: String,
    starts: u64,
}

/// Reads the folder's identity, or writes one into an empty folder; counts the start. The caller holds the lock.
///
/// The file is written to a temporary name, synced and renamed, and the folder is synced: it is there as a
/// whole or not at all. Nothing else is written before it, so that a folder without it holds nothing of
/// ours but what this function left behind.
pub(super) fn claim(disk: &dyn Disk, cluster: ClusterId) -> Result<StoreIdentity, StoreError> {
    let io = |doing| move |source| StoreError::Io { doing, source };
    let identity = match disk.open(IDENTITY_FILE) {
        Ok(file) => known(&read(file).map_err(io("read the identity file"))?, cluster, disk)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            expect_empty(disk)?;
            StoreIdentity { cluster, server: ServerId(rand::random_range(1..=u64::MAX)), incarnation: 1 }
        }
        Err(error) => return Err(io("open the identity file")(error)),
    };
    write(disk, &identity).map_err(io("write the identity file"))?;
    Ok(identity)
}

fn read(file: Arc<dyn DiskFile>) -> io::Result<Vec<u8>> {
    let mut text = vec![0; file.len()?.min(IDENTITY_BYTES_MAX) as usize];
    let read = file.read_at(&mut text, 0)?;
    text.truncate(read);
    Ok(text)
}

/// The identity that comes with the next start.
fn known(text: &[u8], cluster: ClusterId, disk: &dyn Disk) -> Result<StoreIdentity, StoreError> {
    let folder = || disk.describe();
    let damaged = |reason: String| StoreError::BadIdentity { folder: folder(), reason };
    // The version first: a newer release may have changed everything else.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
    if version.format > FOLDER_FORMAT {
        return Err(StoreError::Newer { folder: folder(), found: version.format });
    }
    let file: IdentityFile = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
    let found: ClusterId =
        file.cluster.parse().map_err(|_| damaged(format!("cluster '{}'", file.cluster)))?;
    let server: ServerId = file.server.parse().map_err(|_| damaged(format!("server '{}'", file.server)))?;
    if found != cluster {
        return Err(StoreError::OtherCluster { folder: folder(), found, ours: cluster });
    }
    Ok(StoreIdentity { cluster, server, incarnation: file.starts + 1 })
}

/// Foreign data is never touched: a folder that holds anything is only taken if it is ours.
fn expect_empty(disk: &dyn Disk) -> Result<(), StoreError> {
    let entries = disk.list("").map_err(|source| StoreError::Io { doing: "list the directory", source })?;
    let foreign = entries.into_iter().find(|entry| {
        // `lost+found` is in every new ext4 filesystem.
        let ours = [LOCK_FILE, IDENTITY_TEMPORARY].contains(&entry.name.as_str());
        !(ours || entry.is_dir && entry.name == "lost+found")
    });
    match foreign {
        Some(entry) => Err(StoreError::Foreign { folder: disk.describe(), found: entry.name }),
        None => Ok(()),
    }
}

fn write(disk: &dyn Disk, identity: &StoreIdentity) -> io::Result<()> {
    let file = IdentityFile {
        format: FOLDER_FORMAT,
        cluster: identity.cluster.to_string(),
        server: identity.server.to_string(),
        starts: identity.incarnation,
    };
    let mut text = serde_json::to_vec_pretty(&file)?;
    text.push(b'\n');
    let temporary = disk.create(IDENTITY_TEMPORARY)?;
    temporary.write_at(&text, 0)?;
    temporary.sync_data()?;
    disk.rename(IDENTITY_TEMPORARY, IDENTITY_FILE)?;
    disk.sync_dir("")
}
