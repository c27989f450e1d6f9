//! `atoll.dev/v1alpha1`.

pub mod cluster;
pub mod conditions;
pub mod kept;
pub mod placement;
pub mod status;

pub use cluster::{
    Access, Backing, Encryption, FileSystemCluster, FileSystemClusterSpec, MetadataSpec, Resources, RootSpec,
    StorageSpec,
};
pub use conditions::{ConditionStatus, ConditionType, Reason};
pub use kept::KeptVolume;
pub use placement::{ImagePullPolicy, PlacementSpec, PodOptions, WhenUnsatisfiable};
pub use status::{
    ClientStatus, FileSystemClusterStatus, MemberStatus, MetadataStatus, Phase, RolloutStatus, ServerStatus,
    StorageStatus, UsageStatus,
};
