//! Parameters of a StorageClass: lines of `name=value`.

use std::collections::HashMap;

use atoll_crds::quantity::Quantity;
use atoll_crds::v1alpha1::Access;
use atoll_csi::params::Parameters;

pub(crate) fn read(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let parameters: HashMap<String, String> =
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for value in parameters.values() {
        let _ = Quantity::from(value.as_str()).bytes();
    }
    let Ok(parsed) = Parameters::parse(&parameters) else { return false };
    let spec = parsed.spec(1 << 30, Access::default(), None);
    if let Some(size) = &spec.storage.size {
        assert!(size.bytes().is_ok(), "a size was taken that is none");
    }
    let _ = parsed.origin.marks();
    assert_eq!(Parameters::parse(&parameters).as_ref(), Ok(&parsed));
    true
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "copies=3\nstorageServers=5\nstorageSize=10Gi\nstorageClass=fast\nencryption=required",
        "metadataServers=3\nmetadataSize=1.5Gi\nmetadataStorageClass=fast\nrootUid=1000\nrootGid=1000\nrootMode=0755",
        "csi.storage.k8s.io/pvc/name=data\ncsi.storage.k8s.io/pvc/namespace=shop\ncsi.storage.k8s.io/pv/name=pvc-1",
        "storageSize=1e3\nmetadataSize=500M",
    ];
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}
