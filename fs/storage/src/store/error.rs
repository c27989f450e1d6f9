//! Why a folder can't be served.

use std::io;

use atoll_core::ids::ClusterId;

use super::identity::FOLDER_FORMAT;

/// Why a folder can't be served. Each says what to do; none of them has changed anything.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder holds something that isn't ours.
    #[error(
        "{folder} holds '{found}' and is no Atoll storage folder: it is left alone; give an empty folder, or the right one"
    )]
    Foreign {
        /// The folder.
        folder: String,
        /// The first thing in it that isn't ours.
        found: String,
    },
    /// The folder belongs to another cluster.
    #[error(
        "{folder} belongs to cluster {found}, this server to {ours}: it is left alone; start it with that cluster, or give another folder"
    )]
    OtherCluster {
        /// The folder.
        folder: String,
        /// Its cluster.
        found: ClusterId,
        /// The cluster that this server was started for.
        ours: ClusterId,
    },
    /// A newer release wrote it.
    #[error(
        "{folder} has format {found}, this release knows {FOLDER_FORMAT}: start the release that wrote it, or a newer one"
    )]
    Newer {
        /// The folder.
        folder: String,
        /// Its format.
        found: u32,
    },
    /// The identity file makes no sense.
    #[error(
        "the identity file in {folder} is damaged ({reason}): it is left alone; restore the file, or replace this server"
    )]
    BadIdentity {
        /// The folder.
        folder: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process serves it.
    #[error("{folder} is in use by another process: stop that one first")]
    Locked {
        /// The folder.
        folder: String,
    },
    /// The disk failed, or the folder isn't writable.
    #[error("can't {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
}
