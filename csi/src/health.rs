//! Volume health, in the specification's terms: what is wrong with a volume, seen from its cluster (controller) and from a node.
//! Pure.

use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster};

use crate::csi::StorageHealthErrorType;
use crate::csi::VolumeHealth;
use crate::csi::VolumeHealthErrorType as ErrorType;
use crate::csi::node_get_storage_health_response::StorageBackendHealth;
use crate::csi::volume_health::VolumeHealthEntry;
use crate::target_path::Liveness;

/// A node's mounts of a volume can't be made or continued, since nobody serves them.
const MOUNT_HOST_UNAVAILABLE: &str = "MountHostUnavailable";

/// A volume's health as its cluster reports it.
#[must_use]
pub fn of_cluster(volume: &str, cluster: &FileSystemCluster) -> VolumeHealth {
    let entry = |kind: ConditionType, adverse: &str, status: ErrorType| {
        let found = cluster.condition(kind).filter(|found| found.status == adverse)?;
        Some(entry(status, &found.reason, &found.message))
    };
    let entries = [
        entry(ConditionType::Available, "False", ErrorType::Inaccessible),
        entry(ConditionType::Degraded, "True", ErrorType::Degraded),
    ];
    VolumeHealth { volume_id: volume.to_owned(), health_statuses: entries.into_iter().flatten().collect() }
}

/// A volume's health as its mount on a node shows it. `mount` is what the mount answers; `None`: it doesn't exist. `problem` is why
/// no mount host of the node takes volumes. `None` if nothing is known of the volume here.
#[must_use]
pub fn of_mount(volume: &str, mount: Option<Liveness>, problem: Option<&str>) -> Option<VolumeHealth> {
    let lost =
        "the mount has ended: pods get 'Transport endpoint is not connected' until they are created again";
    let silent = "the mount doesn't respond: calls wait until its client continues";
    let adverse = match (mount, problem) {
        (Some(Liveness::Alive), _) => None,
        (Some(Liveness::Dead), _) => Some(entry(ErrorType::Inaccessible, "MountLost", lost)),
        (Some(Liveness::Silent), _) => Some(entry(ErrorType::Inaccessible, "MountNotResponding", silent)),
        (None, Some(problem)) => Some(entry(ErrorType::Inaccessible, MOUNT_HOST_UNAVAILABLE, problem)),
        (None, None) => return None,
    };
    Some(VolumeHealth { volume_id: volume.to_owned(), health_statuses: adverse.into_iter().collect() })
}

/// What concerns all volumes of a node.
#[must_use]
pub fn of_node(problem: Option<String>) -> Vec<StorageBackendHealth> {
    let health = |message| StorageBackendHealth {
        status: StorageHealthErrorType::StorageUnreachable.into(),
        reason: MOUNT_HOST_UNAVAILABLE.to_owned(),
        message,
        volume_capability: None,
    };
    problem.map(health).into_iter().collect()
}

fn entry(status: ErrorType, reason: &str, message: &str) -> VolumeHealthEntry {
    VolumeHealthEntry { status: status.into(), reason: reason.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use atoll_crds::v1alpha1::{FileSystemClusterSpec, FileSystemClusterStatus, Reason, conditions};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn cluster(found: &[(ConditionType, bool, Reason)]) -> FileSystemCluster {
        let mut status = FileSystemClusterStatus::default();
        for (kind, holds, reason) in found {
            let now = Time(Timestamp::UNIX_EPOCH);
            conditions::set(&mut status.conditions, *kind, *holds, (*reason, "why"), None, now);
        }
        let spec = FileSystemClusterSpec::with_capacity("5Gi".into());
        FileSystemCluster { status: Some(status), ..FileSystemCluster::new("pvc-1", spec) }
    }

    fn statuses(health: &VolumeHealth) -> Vec<(ErrorType, &str)> {
        let entries = health.health_statuses.iter();
        entries.map(|entry| (entry.status(), entry.reason.as_str())).collect()
    }

    #[test]
    fn a_cluster_s_conditions_are_its_volume_s_health() {
        use ConditionType::{Available, Degraded, Ready};
        let well = cluster(&[
            (Available, true, Reason::Serving),
            (Degraded, false, Reason::AsSpecified),
            // Not as specified, and not worse for that.
            (Ready, false, Reason::RollingOut),
        ]);
        assert!(statuses(&of_cluster("v", &well)).is_empty());
        assert!(statuses(&of_cluster("v", &cluster(&[]))).is_empty(), "nothing is known yet");
        let ill =
            cluster(&[(Available, false, Reason::MetadataUnreachable), (Degraded, true, Reason::Unhealthy)]);
        let health = of_cluster("v", &ill);
        assert_eq!(
            statuses(&health),
            [(ErrorType::Inaccessible, "MetadataUnreachable"), (ErrorType::Degraded, "Unhealthy")]
        );
        assert_eq!((health.volume_id.as_str(), health.health_statuses[0].message.as_str()), ("v", "why"));
    }

    #[test]
    fn a_node_tells_of_its_own_mount_alone() {
        let seen = |mount, problem| of_mount("v", mount, problem);
        assert!(seen(Some(Liveness::Alive), Some("no mount host")).unwrap().health_statuses.is_empty());
        for liveness in [Liveness::Dead, Liveness::Silent] {
            let health = seen(Some(liveness), None).unwrap();
            assert_eq!(statuses(&health)[0].0, ErrorType::Inaccessible, "{liveness:?}");
        }
        let health = seen(None, Some("no mount host")).unwrap();
        assert_eq!(statuses(&health), [(ErrorType::Inaccessible, MOUNT_HOST_UNAVAILABLE)]);
        assert_eq!(seen(None, None), None);
        assert!(of_node(None).is_empty());
        assert_eq!(of_node(Some("no mount host".to_owned()))[0].message, "no mount host");
    }
}
