//! Conditions: how a cluster is, in words.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Characters of a condition's message at most; the API server takes 32768, a screen far fewer.
const MESSAGE_CHARS_MAX: usize = 1024;

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The volume is as it has to be for use: it can be mounted, and all of it can be used. Clients of the kind of kstatus wait
    /// for it.
    Ready,
    /// All data can be read and written, also while the resource is being deleted or isn't as specified.
    Available,
    /// The operator is on its way from what is to what shall be.
    Progressing,
    /// Something is worse than it should be, though the volume may be usable.
    Degraded,
    /// The volume, or a disk, is smaller than the spec says.
    ExpansionPending,
    /// Another version of the pods was asked for, and can't be had, or doesn't get ready. A resource for which none was asked
    /// doesn't have it.
    UpgradeBlocked,
    /// Copies share a node, whose loss would take more than one of them, or pods wait for a node since they may not. A resource of
    /// which that was never so doesn't have it.
    PlacementDegraded,
    /// The resource was deleted, and something has to go first. Only a resource that is being deleted has it.
    DeletionBlocked,
    /// An object of a derived name belongs to somebody else. A resource that never had this conflict doesn't have it.
    NameConflict,
    /// As `Progressing`, in the word of kstatus. There only while it is true.
    Reconciling,
    /// It doesn't go on by itself: somebody has to do what the message says. The word is that of kstatus. There only while it
    /// is true.
    Stalled,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It doesn't.
    False,
    /// Nobody can tell.
    Unknown,
}

impl ConditionStatus {
    /// As in `status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ConditionStatus::True => "True",
            ConditionStatus::False => "False",
            ConditionStatus::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> ConditionStatus {
        if holds { ConditionStatus::True } else { ConditionStatus::False }
    }
}

impl ConditionType {
    /// All of them.
    pub const ALL: [ConditionType; 11] = [
        ConditionType::Ready,
        ConditionType::Available,
        ConditionType::Progressing,
        ConditionType::Degraded,
        ConditionType::ExpansionPending,
        ConditionType::UpgradeBlocked,
        ConditionType::PlacementDegraded,
        ConditionType::DeletionBlocked,
        ConditionType::NameConflict,
        ConditionType::Reconciling,
        ConditionType::Stalled,
    ];

    /// As in `type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ConditionType::Ready => "Ready",
            ConditionType::Available => "Available",
            ConditionType::Progressing => "Progressing",
            ConditionType::Degraded => "Degraded",
            ConditionType::ExpansionPending => "ExpansionPending",
            ConditionType::UpgradeBlocked => "UpgradeBlocked",
            ConditionType::PlacementDegraded => "PlacementDegraded",
            ConditionType::DeletionBlocked => "DeletionBlocked",
            ConditionType::NameConflict => "NameConflict",
            ConditionType::Reconciling => "Reconciling",
            ConditionType::Stalled => "Stalled",
        }
    }
}

/// Why a condition is as it is. The message says which object and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// All is as it shall be.
    AsSpecified,
    /// Pods are re-created, one at a time.
    RollingOut,
    /// The version waits for its turn: a window, others, or that the cluster is healthy.
    UpgradeWaiting,
    /// The pods run the version, and servers or mounts don't know its feature level yet.
    FeatureLevelWaiting,
    /// The version can't read the disks any more, or is one that this operator may not run.
    VersionRefused,
    /// A node can't get a pod's image.
    ImageUnavailable,
    /// The metadata service answers and enough storage servers are there.
    Serving,
    /// Objects are being made or changed.
    Applying,
    /// PVCs wait for their volumes.
    VolumesPending,
    /// Pods wait for a node or for their image, or start.
    PodsStarting,
    /// Pods aren't created, since the API server refuses them: quota, Pod Security, limits, a webhook.
    PodsRefused,
    /// Pods end again and again.
    PodsFailing,
    /// The volume is being made.
    Bootstrapping,
    /// The metadata service doesn't answer.
    MetadataUnreachable,
    /// Too few storage servers are registered.
    StorageUnavailable,
    /// As many storage servers as there are copies are away, and chunks lack copies: some data may be on none of the others.
    DataUnavailable,
    /// The metadata service reports problems.
    Unhealthy,
    /// The spec asks for what can't be.
    InvalidSpec,
    /// The operator has no image of this version.
    UnknownVersion,
    /// Pods that should be on different nodes are on one.
    SharedNode,
    /// Fewer nodes than copies.
    TooFewNodes,
    /// The backing StorageClass doesn't exist, or there is no default one.
    StorageClassMissing,
    /// The backing StorageClass is one of Atoll's own.
    StorageClassRefused,
    /// An object of this name belongs to somebody else.
    NameConflict,
    /// The PVCs hold another cluster's data, or data whose volume is gone.
    ForeignData,
    /// The disks that are there were made for another spec.
    AdoptionRefused,
    /// The Secret with the key is gone or not this cluster's.
    KeyMissing,
    /// The API server refuses what the operator does (quota, admission, rights).
    ApiRefused,
    /// An object of the cluster is one that this version of the operator can't read.
    ObjectUnreadable,
    /// The volume's disks are being expanded.
    ResizingDisks,
    /// Storage servers are being added, so that the volume has room.
    AddingServers,
    /// The disks have room, and the volume is being resized.
    ResizingVolume,
    /// The size that is asked for can't be had.
    ExpansionInfeasible,
    /// A disk is asked to grow, and its StorageClass can't.
    NotExpandable,
    /// The volume can't get as small as that: files use more.
    CapacityInUse,
    /// A server whose disk or node is gone for good is being replaced.
    ReplacingServer,
    /// A server whose disk or node is gone for good can't be replaced.
    ReplacementBlocked,
    /// A node isn't ready, and servers or disks on it are waited for.
    NodeNotReady,
    /// Storage servers that the spec doesn't ask for any more are being drained.
    DrainingServers,
    /// Servers that the spec doesn't ask for any more are being removed.
    RemovingServers,
    /// Servers that the spec doesn't ask for any more can't be removed.
    ShrinkBlocked,
    /// The operator was told to do nothing.
    Paused,
    /// The resource is being deleted.
    Deleting,
    /// Deletion waits (for mounts, pods, or a terminating CRD or namespace).
    DeletionBlocked,
    /// Deletion waits: the volume is mounted.
    Mounted,
    /// Deletion waits: nobody says whether the volume is mounted.
    MountsUnknown,
    /// Deletion waits: PersistentVolumes refer to the resource.
    ReferencedByVolume,
}

impl Reason {
    /// As in `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::AsSpecified => "AsSpecified",
            Reason::RollingOut => "RollingOut",
            Reason::UpgradeWaiting => "UpgradeWaiting",
            Reason::FeatureLevelWaiting => "FeatureLevelWaiting",
            Reason::VersionRefused => "VersionRefused",
            Reason::ImageUnavailable => "ImageUnavailable",
            Reason::Serving => "Serving",
            Reason::Applying => "Applying",
            Reason::VolumesPending => "VolumesPending",
            Reason::PodsStarting => "PodsStarting",
            Reason::PodsRefused => "PodsRefused",
            Reason::PodsFailing => "PodsFailing",
            Reason::Bootstrapping => "Bootstrapping",
            Reason::MetadataUnreachable => "MetadataUnreachable",
            Reason::StorageUnavailable => "StorageUnavailable",
            Reason::DataUnavailable => "DataUnavailable",
            Reason::Unhealthy => "Unhealthy",
            Reason::InvalidSpec => "InvalidSpec",
            Reason::UnknownVersion => "UnknownVersion",
            Reason::SharedNode => "SharedNode",
            Reason::TooFewNodes => "TooFewNodes",
            Reason::StorageClassMissing => "StorageClassMissing",
            Reason::StorageClassRefused => "StorageClassRefused",
            Reason::NameConflict => "NameConflict",
            Reason::ForeignData => "ForeignData",
            Reason::AdoptionRefused => "AdoptionRefused",
            Reason::KeyMissing => "KeyMissing",
            Reason::ApiRefused => "ApiRefused",
            Reason::ObjectUnreadable => "ObjectUnreadable",
            Reason::ResizingDisks => "ResizingDisks",
            Reason::AddingServers => "AddingServers",
            Reason::ResizingVolume => "ResizingVolume",
            Reason::ExpansionInfeasible => "ExpansionInfeasible",
            Reason::NotExpandable => "NotExpandable",
            Reason::CapacityInUse => "CapacityInUse",
            Reason::ReplacingServer => "ReplacingServer",
            Reason::ReplacementBlocked => "ReplacementBlocked",
            Reason::NodeNotReady => "NodeNotReady",
            Reason::DrainingServers => "DrainingServers",
            Reason::RemovingServers => "RemovingServers",
            Reason::ShrinkBlocked => "ShrinkBlocked",
            Reason::Paused => "Paused",
            Reason::Deleting => "Deleting",
            Reason::DeletionBlocked => "DeletionBlocked",
            Reason::Mounted => "Mounted",
            Reason::MountsUnknown => "MountsUnknown",
            Reason::ReferencedByVolume => "ReferencedByVolume",
        }
    }

    /// It doesn't pass by waiting: somebody has to do what the message says.
    #[must_use]
    pub fn needs_somebody(self) -> bool {
        match self {
            Reason::InvalidSpec
            | Reason::UnknownVersion
            | Reason::VersionRefused
            | Reason::ImageUnavailable
            | Reason::TooFewNodes
            | Reason::StorageClassMissing
            | Reason::StorageClassRefused
            | Reason::NameConflict
            | Reason::ForeignData
            | Reason::AdoptionRefused
            | Reason::KeyMissing
            | Reason::ApiRefused
            | Reason::ObjectUnreadable
            | Reason::PodsRefused
            | Reason::PodsFailing
            | Reason::ExpansionInfeasible
            | Reason::NotExpandable
            | Reason::CapacityInUse
            | Reason::ReplacementBlocked
            | Reason::ShrinkBlocked
            | Reason::Paused => true,
            Reason::AsSpecified
            | Reason::RollingOut
            | Reason::UpgradeWaiting
            | Reason::FeatureLevelWaiting
            | Reason::SharedNode
            | Reason::Serving
            | Reason::Applying
            | Reason::VolumesPending
            | Reason::PodsStarting
            | Reason::Bootstrapping
            | Reason::MetadataUnreachable
            | Reason::StorageUnavailable
            | Reason::DataUnavailable
            | Reason::Unhealthy
            | Reason::ResizingDisks
            | Reason::AddingServers
            | Reason::ResizingVolume
            | Reason::ReplacingServer
            | Reason::NodeNotReady
            | Reason::DrainingServers
            | Reason::RemovingServers
            | Reason::Deleting
            | Reason::DeletionBlocked
            | Reason::Mounted
            | Reason::MountsUnknown
            | Reason::ReferencedByVolume => false,
        }
    }

    /// A deletion waits for it.
    #[must_use]
    pub fn blocks_deletion(self) -> bool {
        matches!(self, Reason::Mounted | Reason::MountsUnknown | Reason::ReferencedByVolume)
    }
}

/// Sets a condition among others. The time of transition changes only with the status.
pub fn set(
    conditions: &mut Vec<Condition>,
    kind: ConditionType,
    status: impl Into<ConditionStatus>,
    (reason, message): (Reason, &str),
    generation: Option<i64>,
    now: Time,
) {
    let status = status.into().as_str();
    let message: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    let last_transition_time = match conditions.iter().find(|condition| condition.type_ == kind.as_str()) {
        Some(before) if before.status == status => before.last_transition_time.clone(),
        _ => now,
    };
    let condition = Condition {
        type_: kind.as_str().to_owned(),
        status: status.to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time,
    };
    match conditions.iter_mut().find(|found| found.type_ == condition.type_) {
        Some(found) => *found = condition,
        None => conditions.push(condition),
    }
}

/// Removes a condition.
pub fn clear(conditions: &mut Vec<Condition>, kind: ConditionType) {
    conditions.retain(|found| found.type_ != kind.as_str());
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    #[test]
    fn the_time_of_a_transition_changes_with_the_status_alone() {
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        let mut conditions = Vec::new();
        let ready = ConditionType::Ready;
        set(&mut conditions, ready, false, (Reason::PodsStarting, "a"), Some(1), at(1));
        set(&mut conditions, ready, false, (Reason::Bootstrapping, "b"), Some(2), at(2));
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time, at(1));
        assert_eq!((conditions[0].message.as_str(), conditions[0].observed_generation), ("b", Some(2)));
        set(&mut conditions, ready, true, (Reason::Serving, "c"), Some(2), at(3));
        assert_eq!(conditions[0].last_transition_time, at(3));
        set(
            &mut conditions,
            ConditionType::Degraded,
            false,
            (Reason::AsSpecified, &"ä".repeat(5000)),
            None,
            at(4),
        );
        assert_eq!(conditions[1].message.chars().count(), MESSAGE_CHARS_MAX);
        set(&mut conditions, ready, ConditionStatus::Unknown, (Reason::DataUnavailable, "d"), None, at(5));
        assert_eq!((conditions[0].status.as_str(), &conditions[0].last_transition_time), ("Unknown", &at(5)));
        clear(&mut conditions, ready);
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn types_and_reasons_are_words_as_the_api_conventions_have_them() {
        let is_word = |text: &str| {
            text.starts_with(|first: char| first.is_ascii_uppercase())
                && text.chars().all(|letter| letter.is_ascii_alphanumeric())
        };
        for kind in ConditionType::ALL {
            assert!(is_word(kind.as_str()) && format!("{kind:?}") == kind.as_str(), "{kind:?}");
        }
        for reason in [Reason::AsSpecified, Reason::DataUnavailable, Reason::ObjectUnreadable] {
            assert!(is_word(reason.as_str()) && format!("{reason:?}") == reason.as_str(), "{reason:?}");
        }
    }
}
