//! One promise, or one disaster, a file.

mod deletion_in_use;
mod deletion_keeps_data;
mod deletion_waits;
mod diagnosis;
mod drain;
mod grow;
mod killed_pods;
mod lost_majority;
mod lost_node;
mod many_volumes;
mod mount_host;
mod new_disk;
mod new_storage_disk;
mod node_plugin;
mod outlives;
mod provision;
mod quota;
mod refusals;
mod shared;
mod shrink;
mod static_volume;
mod stuck_upgrade;
mod unfinished;
mod uninstall;
mod upgrade;

use futures::future::LocalBoxFuture;

use crate::cluster::Cluster;
use crate::failure::Outcome;

/// Something that holds on a real Kubernetes.
pub struct Promise {
    /// Also the name of its namespace, after `e2e-`.
    pub name: &'static str,
    /// What is promised.
    pub says: &'static str,
    /// Every change has to keep it.
    pub short: bool,
    /// Proves it, in a namespace that is empty before and removed afterwards.
    pub run: fn(&Cluster) -> LocalBoxFuture<'_, Outcome>,
}

/// All of them, in the order in which they are proved.
pub fn all() -> Vec<Promise> {
    vec![
        provision::PROMISE,
        shared::PROMISE,
        killed_pods::PROMISE,
        new_disk::PROMISE,
        new_storage_disk::PROMISE,
        lost_majority::PROMISE,
        node_plugin::PROMISE,
        outlives::PROMISE,
        mount_host::PROMISE,
        static_volume::PROMISE,
        deletion_keeps_data::PROMISE,
        deletion_waits::PROMISE,
        deletion_in_use::PROMISE,
        unfinished::PROMISE,
        refusals::PROMISE,
        diagnosis::PROMISE,
        quota::PROMISE,
        many_volumes::PROMISE,
        grow::PROMISE,
        shrink::PROMISE,
        drain::PROMISE,
        lost_node::PROMISE,
        stuck_upgrade::PROMISE,
        upgrade::PROMISE,
        uninstall::PROMISE,
    ]
}
