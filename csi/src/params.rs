//! Parameters of a StorageClass, and the spec that they make. One that isn't honoured is refused by name.

use std::collections::HashMap;

use atoll_crds::names::{annotations, labels};
use atoll_crds::quantity::Quantity;
use atoll_crds::v1alpha1::cluster::{COPIES_MAX, METADATA_REPLICAS};
use atoll_crds::v1alpha1::{Access, Backing, Encryption, FileSystemClusterSpec};

use crate::error::CsiError;

/// The parameters, for the message about one that isn't among them.
const KNOWN: &str = "copies, storageServers, storageSize, storageClass, metadataServers, metadataSize, \
                     metadataStorageClass, encryption, rootUid, rootGid, rootMode";
/// Parameters that external-provisioner consumes or adds.
const SIDECAR_PREFIX: &str = "csi.storage.k8s.io/";
/// The PVC and PV that a volume is made for, as `--extra-create-metadata` tells them.
const PVC_NAME: &str = "csi.storage.k8s.io/pvc/name";
const PVC_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const PV_NAME: &str = "csi.storage.k8s.io/pv/name";
/// Storage servers of one volume at most, as the resource's schema says.
const STORAGE_SERVERS_MAX: u8 = 100;
/// The largest user or group id; the one above means "nobody" to system calls.
const OWNER_ID_MAX: i64 = u32::MAX as i64 - 1;

/// Parsed parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    copies: Option<u8>,
    storage_servers: Option<u8>,
    storage_size: Option<Quantity>,
    storage_class: Option<String>,
    metadata_servers: Option<u8>,
    metadata_size: Option<Quantity>,
    metadata_class: Option<String>,
    encryption: Option<Encryption>,
    root_uid: Option<i64>,
    root_gid: Option<i64>,
    root_mode: Option<String>,
    /// For whom the volume is made, if the caller says so.
    pub origin: Origin,
}

/// Labels or annotations: names and values.
pub type Marks = Vec<(String, String)>;

/// The PVC and PV that a volume is made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Name and namespace of the PVC.
    pub pvc: Option<(String, String)>,
    /// Name of the PV.
    pub pv: Option<String>,
}

impl Parameters {
    /// Parses them.
    ///
    /// # Errors
    /// [`CsiError::Invalid`], which names the parameter.
    pub fn parse(parameters: &HashMap<String, String>) -> Result<Parameters, CsiError> {
        let mut parsed = Parameters::default();
        let mut names: Vec<&String> = parameters.keys().collect();
        names.sort();
        for name in names {
            let value = parameters[name].trim();
            match name.as_str() {
                "copies" => parsed.copies = Some(number(name, value, 1, COPIES_MAX)?),
                "storageServers" => {
                    parsed.storage_servers = Some(number(name, value, 1, STORAGE_SERVERS_MAX)?);
                }
                "storageSize" => parsed.storage_size = Some(size(name, value)?),
                "storageClass" => parsed.storage_class = Some(text(name, value)?),
                "metadataServers" => {
                    let servers = value.parse().ok().filter(|servers| METADATA_REPLICAS.contains(servers));
                    parsed.metadata_servers = Some(servers.ok_or_else(|| wrong(name, value, "1, 3 or 5"))?);
                }
                "metadataSize" => parsed.metadata_size = Some(size(name, value)?),
                "metadataStorageClass" => parsed.metadata_class = Some(text(name, value)?),
                "encryption" => {
                    parsed.encryption = Some(match value {
                        "disabled" => Encryption::Disabled,
                        "required" => Encryption::Required,
                        _ => return Err(wrong(name, value, "disabled or required")),
                    });
                }
                "rootUid" => parsed.root_uid = Some(number(name, value, 0, OWNER_ID_MAX)?),
                "rootGid" => parsed.root_gid = Some(number(name, value, 0, OWNER_ID_MAX)?),
                "rootMode" => {
                    let octal =
                        (3..=5).contains(&value.len()) && value.bytes().all(|c| (b'0'..=b'7').contains(&c));
                    if !octal {
                        return Err(wrong(name, value, "octal permission bits such as 0755"));
                    }
                    parsed.root_mode = Some(value.to_owned());
                }
                _ if name.starts_with(SIDECAR_PREFIX) => {}
                _ => {
                    return Err(CsiError::Invalid(format!(
                        "StorageClass parameter '{name}' is unknown; choose among {KNOWN}"
                    )));
                }
            }
        }
        let given = |name| parameters.get(name).filter(|value: &&String| !value.is_empty()).cloned();
        parsed.origin = Origin { pvc: given(PVC_NAME).zip(given(PVC_NAMESPACE)), pv: given(PV_NAME) };
        if let (Some(servers), copies) = (parsed.storage_servers, parsed.copies.unwrap_or(3))
            && servers < copies
        {
            return Err(CsiError::Invalid(format!(
                "StorageClass parameter 'storageServers' is {servers} and 'copies' is {copies}: each copy \
                 needs a different server"
            )));
        }
        Ok(parsed)
    }

    /// The spec of a volume of this size.
    #[must_use]
    pub fn spec(&self, capacity_bytes: u64, access: Access, secret: Option<String>) -> FileSystemClusterSpec {
        let mut spec = FileSystemClusterSpec::with_capacity(Quantity::from_bytes(capacity_bytes));
        spec.access = access;
        spec.client_secret_name = secret;
        spec.copies = self.copies.unwrap_or(spec.copies);
        spec.encryption = self.encryption.unwrap_or_default();
        spec.root.uid = self.root_uid.unwrap_or(spec.root.uid);
        spec.root.gid = self.root_gid.unwrap_or(spec.root.gid);
        if let Some(mode) = &self.root_mode {
            spec.root.mode.clone_from(mode);
        }
        spec.storage.replicas = self.storage_servers;
        spec.storage.size.clone_from(&self.storage_size);
        spec.storage.storage_class_name.clone_from(&self.storage_class);
        spec.metadata.replicas = self.metadata_servers;
        let class = self.metadata_class.as_ref().or(self.storage_class.as_ref());
        if class.is_some() || self.metadata_size.is_some() {
            let (size, storage_class_name) = (self.metadata_size.clone(), class.cloned());
            spec.metadata.storage = Some(Backing { size, storage_class_name });
        }
        spec
    }
}

impl Origin {
    /// The labels and annotations that lead from a cluster back to its PVC and PV.
    #[must_use]
    pub fn marks(&self) -> (Marks, Marks) {
        let (mut label, mut annotation) = (Vec::new(), Vec::new());
        if let Some((name, namespace)) = &self.pvc {
            label.push((labels::PVC_NAMESPACE.to_owned(), namespace.clone()));
            annotation.push((annotations::PVC_NAME.to_owned(), name.clone()));
        }
        if let Some(pv) = &self.pv {
            annotation.push((annotations::PV_NAME.to_owned(), pv.clone()));
            if let Some(uid) = pv.strip_prefix("pvc-") {
                label.push((labels::PVC_UID.to_owned(), uid.to_owned()));
            }
        }
        (label, annotation)
    }
}

fn wrong(name: &str, value: &str, expected: &str) -> CsiError {
    CsiError::Invalid(format!("StorageClass parameter '{name}' is '{value}': expected {expected}"))
}

fn number<N>(name: &str, value: &str, min: N, max: N) -> Result<N, CsiError>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    value
        .parse()
        .ok()
        .filter(|number| *number >= min && *number <= max)
        .ok_or_else(|| wrong(name, value, &format!("a number from {min} to {max}")))
}

fn size(name: &str, value: &str) -> Result<Quantity, CsiError> {
    let quantity = Quantity::from(value);
    quantity
        .bytes()
        .map_err(|error| CsiError::Invalid(format!("StorageClass parameter '{name}': {error}")))?;
    Ok(quantity)
}

fn text(name: &str, value: &str) -> Result<String, CsiError> {
    if value.is_empty() { Err(wrong(name, value, "a name")) } else { Ok(value.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &[(&str, &str)]) -> Result<Parameters, CsiError> {
        Parameters::parse(&parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn parameters_become_a_spec() {
        let parsed = parse(&[
            ("copies", "2"),
            ("storageServers", "4"),
            ("storageSize", "20Gi"),
            ("storageClass", "fast"),
            ("metadataServers", "5"),
            ("metadataSize", "2Gi"),
            ("encryption", "required"),
            ("rootUid", "1000"),
            ("rootGid", "2000"),
            ("rootMode", "2770"),
            (PVC_NAME, "data"),
            (PVC_NAMESPACE, "shop"),
            (PV_NAME, "pvc-1234"),
            ("csi.storage.k8s.io/fstype", ""),
        ])
        .unwrap();
        let spec = parsed.spec(10 << 30, Access::Exclusive, Some("pvc-1234".into()));
        assert_eq!((spec.capacity.as_str(), spec.copies, spec.access), ("10Gi", 2, Access::Exclusive));
        assert_eq!((spec.storage.replicas, spec.encryption), (Some(4), Encryption::Required));
        assert_eq!((spec.root.uid, spec.root.gid, spec.root.mode.as_str()), (1000, 2000, "2770"));
        assert_eq!(spec.metadata.replicas, Some(5));
        let metadata = spec.metadata.storage.unwrap();
        assert_eq!(metadata.storage_class_name.as_deref(), Some("fast"), "one class for all disks");
        assert_eq!(spec.client_secret_name.as_deref(), Some("pvc-1234"));
        let (labels, annotations) = parsed.origin.marks();
        assert_eq!(labels.len() + annotations.len(), 4, "{labels:?} {annotations:?}");
    }

    #[test]
    fn without_parameters_all_is_left_to_the_resource() {
        let spec = parse(&[]).unwrap().spec(5 << 30, Access::Shared, None);
        let plain = FileSystemClusterSpec::with_capacity(Quantity::from("5Gi"));
        assert_eq!(spec, plain);
        assert_eq!(parse(&[]).unwrap().origin.marks(), (Vec::new(), Vec::new()));
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        for (name, value) in [
            ("replicas", "3"),
            ("copies", "0"),
            ("copies", "6"),
            ("copies", "many"),
            ("storageServers", "2"),
            ("storageSize", "big"),
            ("metadataServers", "2"),
            ("storageClass", ""),
            ("encryption", "maybe"),
            ("rootUid", "-1"),
            ("rootUid", "4294967295"),
            ("rootMode", "0888"),
        ] {
            let error = parse(&[(name, value)]).unwrap_err();
            assert!(matches!(&error, CsiError::Invalid(text) if text.contains(name)), "{error}");
        }
    }
}
