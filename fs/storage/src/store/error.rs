//! Why a folder can't be served.

use std::io;

use atoll_core::ids::ClusterId;

use super::identity::FOLDER_FORMAT;

/// Why a folder can't be served. Each says what to do; none of them has changed anything.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder holds something that isn't ours.
    #[error(
        "{folder} has '{found}' and is not a storage server's directory: nothing was changed; give an empty \
         directory, or the right one"
    )]
    Foreign {
        /// The folder.
        folder: String,
        /// The first thing in it that isn't ours.
        found: String,
    },
    /// The folder belongs to another cluster.
    #[error(
        "{folder} belongs to cluster {found}, this server to {ours}: nothing was changed; use that cluster's \
         id, or another directory"
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
        "{folder} has format {found}, this program reads formats up to {FOLDER_FORMAT}: use the version that \
         wrote it, or a newer one"
    )]
    Newer {
        /// The folder.
        folder: String,
        /// Its format.
        found: u32,
    },
    /// The identity file makes no sense.
    #[error(
        "the identity file in {folder} is damaged ({reason}): nothing was changed; restore the file, or \
         replace this server"
    )]
    BadIdentity {
        /// The folder.
        folder: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process serves it.
    #[error("{folder} is in use by another process: stop that process first")]
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
