//! A member becomes the only one after a majority was lost for good ([`atoll_raft::unsafe_recovery`]).

use std::path::Path;

use atoll_core::ids::{ClusterId, MemberId};
use atoll_raft::{LogPosition, RaftConfig};

use crate::server::StartError;
use crate::store::folder::Folder;

/// Makes the stopped member with its folder at `dir` the only one of its group, reachable at `address`. Blocks.
///
/// # Errors
/// If the folder is none of this cluster's members', or the member runs, or belongs to no group.
pub fn unsafe_recovery(
    dir: &Path,
    cluster: ClusterId,
    address: String,
) -> Result<(MemberId, LogPosition), StartError> {
    let folder = Folder::open(dir, cluster, MemberId(rand::random()))?;
    let config = RaftConfig::new(folder.member().0, folder.raft());
    let position = atoll_raft::unsafe_recovery(&config, address)?;
    Ok((folder.member(), position))
}
