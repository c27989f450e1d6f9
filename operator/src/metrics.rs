//! Counters, and how many clusters are in which phase.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::caches::Caches;
use crate::error::Error;
use crate::plan::Action;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

/// Everything that is counted.
#[derive(Clone)]
pub struct Metrics {
    reconciles: Family<ResultLabel, Counter>,
    durations: Histogram,
    actions: Family<ActionLabel, Counter>,
    clusters: Family<PhaseLabel, Gauge>,
    leader: Gauge,
    unreadable: Family<KindLabel, Gauge>,
}

impl Metrics {
    /// Makes them part of a registry.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            reconciles: Family::default(),
            durations: Histogram::new(exponential_buckets(0.005, 2.0, 13)),
            actions: Family::default(),
            clusters: Family::default(),
            leader: Gauge::default(),
            unreadable: Family::default(),
        };
        registry.register("reconciles", "Reconciliations, by result", metrics.reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "Duration of a reconciliation",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register("actions", "Changes applied, by kind", metrics.actions.clone());
        registry.register("clusters", "FileSystemClusters, by phase", metrics.clusters.clone());
        registry.register(
            "leader",
            "1 if this operator holds the leader election lease",
            metrics.leader.clone(),
        );
        registry.register(
            "unreadable_objects",
            "Objects that this version can't read, by kind",
            metrics.unreadable.clone(),
        );
        metrics
    }

    /// A look at a cluster has ended.
    pub fn reconciled(&self, took: Duration, error: Option<&Error>) {
        self.durations.observe(took.as_secs_f64());
        let result = error.map_or("ok", Error::label);
        self.reconciles.get_or_create(&ResultLabel { result }).inc();
    }

    /// An action was carried out.
    pub fn acted(&self, action: &Action) {
        let action = match action {
            Action::AddFinalizer => "add_finalizer",
            Action::RemoveFinalizer => "remove_finalizer",
            Action::WithdrawConfirmation => "withdraw_confirmation",
            Action::SetClusterId { .. } => "set_cluster_id",
            Action::CreateSecret(_) => "create_secret",
            Action::RestoreSecret(_) => "restore_secret",
            Action::Apply(_) => "apply",
            Action::Bootstrap(_) => "bootstrap",
            Action::LabelMember { .. } => "label_member",
            Action::MarkDisk { .. } => "mark_disk",
            Action::MarkKey(_) => "mark_key",
            Action::ChangeMembers(_) => "change_members",
            Action::PinVersion(_) => "pin_version",
            Action::TransferLeader(_) => "transfer_leader",
            Action::RaiseFeatureLevel(_) => "raise_feature_level",
            Action::RestartPod { .. } => "restart_pod",
            Action::ResizeDisk { .. } => "resize_disk",
            Action::Recreate(_) => "recreate",
            Action::ResizeVolume(_) => "resize_volume",
            Action::DiscardClaim(_) => "discard_claim",
            Action::DiscardDisk { .. } => "discard_disk",
            Action::EvictPod { .. } => "evict_pod",
            Action::MarkRemoved { .. } => "mark_removed",
            Action::ChangeServer(_) => "change_server",
            Action::Delete(..) => "delete",
        };
        self.actions.get_or_create(&ActionLabel { action }).inc();
    }

    /// This operator holds the lease.
    pub fn lead(&self) {
        self.leader.set(1);
    }

    /// Counts the clusters by phase, and what can't be read by kind.
    pub fn count(&self, caches: &Caches) {
        self.unreadable.clear();
        for (kind, count) in caches.unreadable.counts() {
            self.unreadable.get_or_create(&KindLabel { kind }).set(count);
        }
        self.clusters.clear();
        for cluster in caches.clusters.state() {
            let phase = cluster.status.as_ref().and_then(|status| status.phase);
            let phase = phase.map_or("Unknown", |phase| phase.as_str());
            self.clusters.get_or_create(&PhaseLabel { phase }).inc();
        }
    }
}
