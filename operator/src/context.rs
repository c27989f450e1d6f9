//! What every reconcile is given.

use std::collections::HashMap;
use std::time::Instant;

use atoll_crds::v1alpha1::FileSystemCluster;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::Mutex;

use crate::caches::Caches;
use crate::config::Images;
use crate::metrics::Metrics;

/// What every reconcile is given.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What it tells unasked.
    pub caches: Caches,
    /// Images by version.
    pub images: Images,
    /// Counters.
    pub metrics: Metrics,
    /// Where Events go.
    pub recorder: Recorder,
    /// What may be forgotten: it only paces what is done.
    pub memory: Mutex<HashMap<ObjectRef<FileSystemCluster>, Memory>>,
}

/// What is remembered of a cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Failures in a row.
    pub failures: u32,
    /// When the status was written last.
    pub written: Option<Instant>,
    /// Since when a confirmation of a deletion is there that hasn't begun.
    pub confirmed: Option<Instant>,
}

impl Context {
    /// With an empty memory.
    pub fn new(
        client: Client,
        caches: Caches,
        images: Images,
        metrics: Metrics,
        instance: String,
    ) -> Context {
        let reporter = Reporter { controller: "atoll-operator".to_owned(), instance: Some(instance) };
        Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            caches,
            images,
            metrics,
            memory: Mutex::default(),
        }
    }
}
