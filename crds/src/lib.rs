//! The custom resource `FileSystemCluster` and every name that is derived from it: what the operator, the CSI
//! driver and the kubectl plugin agree on. No client, no I/O.

pub mod names;
pub mod quantity;
pub mod v1alpha1;

pub use quantity::Quantity;
