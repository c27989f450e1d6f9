//! What disks keep of their volume makes the resource again, or says what is different.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use atoll_crds::names::{annotations, labels};
use atoll_crds::v1alpha1::{Access, Encryption, FileSystemCluster, FileSystemClusterSpec, KeptVolume};

fn cluster() -> FileSystemCluster {
    let mut cluster = FileSystemCluster::new("db", FileSystemClusterSpec::with_capacity("1Gi".into()));
    cluster.metadata.labels =
        Some([(labels::PVC_NAMESPACE.to_owned(), "web".to_owned()), ("other".into(), "x".into())].into());
    cluster.metadata.annotations = Some(
        [(annotations::VOLUME_NAME.to_owned(), "pvc-1".to_owned()), ("other".into(), "x".into())].into(),
    );
    cluster
}

#[test]
fn a_record_makes_the_resource_that_it_is_of() {
    let mut first = cluster();
    first.spec.paused = true;
    first.spec.deletion_confirmation = Some("00000000000000000000000000000007".into());
    let text = KeptVolume::of(&first).to_text().unwrap();
    let second = KeptVolume::parse(&text).unwrap().resource("ns", "db");
    assert_eq!((second.namespace_str(), second.name_str()), ("ns", "db"));
    assert_eq!(second.spec, cluster().spec, "neither paused nor about to be deleted");
    assert_eq!(second.metadata.labels.unwrap().into_keys().collect::<Vec<_>>(), [labels::PVC_NAMESPACE]);
    assert_eq!(
        second.metadata.annotations.unwrap().into_keys().collect::<Vec<_>>(),
        [annotations::VOLUME_NAME]
    );
    assert!(KeptVolume::parse("{}").is_err());
}

#[test]
fn what_the_disks_do_not_have_is_named_by_field() {
    let kept = KeptVolume::of(&cluster());
    let differs = |change: fn(&mut FileSystemClusterSpec)| {
        let mut spec = cluster().spec;
        change(&mut spec);
        kept.differences("db", &spec)
    };
    assert_eq!(differs(|_| {}), Vec::<String>::new());
    assert_eq!(differs(|spec| spec.capacity = "2Gi".into()), Vec::<String>::new());
    assert_eq!(differs(|spec| spec.storage.replicas = Some(5)), Vec::<String>::new());
    assert_eq!(differs(|spec| spec.client_secret_name = Some("db-key".into())), Vec::<String>::new());
    assert_eq!(differs(|spec| spec.root.uid = 7), Vec::<String>::new());
    assert_eq!(
        differs(|spec| spec.access = Access::Exclusive),
        ["spec.access is Exclusive, and the disks have Shared"]
    );
    assert_eq!(
        differs(|spec| spec.encryption = Encryption::Required),
        ["spec.encryption is Required, and the disks have Disabled"]
    );
    assert_eq!(
        differs(|spec| spec.client_secret_name = Some("other".into())),
        ["spec.clientSecretName is other, and the disks have db-key"]
    );
    // One copy less is one server and two metadata servers less as well, unless the spec says otherwise.
    assert_eq!(differs(|spec| spec.copies = 1).len(), 3);
    assert_eq!(
        differs(|spec| spec.metadata.replicas = Some(1)),
        ["spec.metadata.replicas is 1, and the disks have 3"]
    );
}
