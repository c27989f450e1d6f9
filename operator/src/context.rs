//! What every reconcile is given.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use atoll_crds::names::Component;
use atoll_crds::v1alpha1::FileSystemCluster;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use crate::caches::Caches;
use crate::config::Images;
use crate::keys::KnownKey;
use crate::leader::Leadership;
use crate::metadata::Servers;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// Clusters whose servers say nothing, and that are waited for at the same time.
pub const DOUBTFUL_MAX: usize = 16;
/// Clusters whose servers are waited for at the same time, those included.
pub const ASKED_MAX: u16 = 64;

/// What every reconcile is given.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What it tells unasked.
    pub caches: Caches,
    /// Images by version.
    pub images: Images,
    /// The highest feature level that this operator knows.
    pub feature_level: u32,
    /// What is decided for all clusters.
    pub settings: Settings,
    /// Counters.
    pub metrics: Metrics,
    /// Clusters' own servers.
    pub servers: Box<dyn Servers>,
    /// Whether this operator may act.
    pub leadership: Leadership,
    /// Where Events go.
    pub recorder: Recorder,
    /// Clusters whose objects are looked at or changed at the same time. Who waits for a cluster's own servers isn't counted.
    working: Semaphore,
    /// Clusters whose servers said nothing the last time and are asked again at the same time.
    doubtful: Semaphore,
    /// What may be forgotten: it only paces what is done.
    pub memory: Mutex<HashMap<ObjectRef<FileSystemCluster>, Memory>>,
    /// Clusters that were offered a version a moment ago, which the cache may not show yet.
    pub offered: Mutex<HashMap<ObjectRef<FileSystemCluster>, Instant>>,
}

/// What is remembered of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Failures in a row.
    pub failures: u32,
    /// Questions in a row that the cluster's servers took their time to leave without an answer.
    pub silent: u32,
    /// Since when its leader has said nothing.
    pub leaderless: Option<Instant>,
    /// The address of the metadata server that led when it was asked last.
    pub led: Option<String>,
    /// Its Secret, as it was read last.
    pub key: Option<KnownKey>,
    /// What admission webhooks have made something else of ([`Observed::contested`](crate::observe::Observed::contested)), and
    /// since when that is known.
    pub contested: BTreeMap<String, (u64, Instant)>,
    /// The changes that were made last, and how often in a row.
    pub repeated: Option<Repeated>,
    /// What the Events of its objects said when they were read last, and when that was.
    pub warned: Option<(Instant, Warnings)>,
    /// Nodes of its disks and pods that don't exist, and since when that is known.
    pub missing_nodes: BTreeMap<String, Instant>,
    /// When the status was written last.
    pub written: Option<Instant>,
    /// Since when a confirmation of a deletion is there that hasn't begun.
    pub confirmed: Option<Instant>,
}

/// The same changes, again and again.
#[derive(Clone, Copy, Debug)]
pub struct Repeated {
    /// Which.
    pub what: u64,
    /// How often, after the first time.
    pub times: u32,
    /// When they were made last.
    pub at: Instant,
}

/// What Events say of a cluster's objects.
#[derive(Clone, Debug, Default)]
pub struct Warnings {
    /// Why PVCs wait.
    pub pvcs: BTreeMap<String, String>,
    /// Why pods aren't created.
    pub pods: BTreeMap<Component, String>,
}

/// What a context is made from.
pub struct Parts {
    /// The API server.
    pub client: Client,
    /// What it tells unasked.
    pub caches: Caches,
    /// Clusters' own servers.
    pub servers: Box<dyn Servers>,
    /// Whether this operator may act.
    pub leadership: Leadership,
    /// Images by version.
    pub images: Images,
    /// The highest feature level that this operator knows.
    pub feature_level: u32,
    /// What is decided for all clusters.
    pub settings: Settings,
    /// Counters.
    pub metrics: Metrics,
    /// Where Events go.
    pub recorder: Recorder,
    /// Clusters that are worked on at the same time.
    pub concurrency: u16,
}

impl Context {
    /// With an empty memory.
    pub fn new(parts: Parts) -> Context {
        let Parts { client, caches, servers, leadership, images, feature_level, .. } = parts;
        let Parts { settings, metrics, recorder, concurrency, .. } = parts;
        Context {
            client,
            caches,
            servers,
            leadership,
            images,
            feature_level,
            settings,
            metrics,
            recorder,
            working: Semaphore::new(usize::from(concurrency.max(1))),
            doubtful: Semaphore::new(DOUBTFUL_MAX),
            memory: Mutex::default(),
            offered: Mutex::default(),
        }
    }

    /// Waits for its turn to speak to the API server. Whoever holds this waits for nobody else.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.working.acquire().await.ok()
    }

    /// A place among those whose servers say nothing; `None`: there are enough of them.
    pub fn doubtful(&self) -> Option<SemaphorePermit<'_>> {
        self.doubtful.try_acquire().ok()
    }
}

/// Who speaks in Events.
pub fn recorder(client: &Client, instance: String) -> Recorder {
    let reporter = Reporter { controller: "atoll-operator".to_owned(), instance: Some(instance) };
    Recorder::new(client.clone(), reporter)
}
