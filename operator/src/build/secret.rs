//! The Secret with the cluster's id and key.

use std::collections::BTreeMap;

use atoll_core::ids::ClusterId;
use atoll_crds::names::{labels, secret};
use atoll_proto::ClusterKey;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{created_for, labels_of};
use crate::validate::Wanted;

/// The Secret of a new cluster. It has no owner: whoever keeps the disks needs the key.
pub fn secret(wanted: &Wanted, id: ClusterId, key: &ClusterKey) -> Secret {
    let mut labels = labels_of(wanted);
    labels.insert(labels::CLUSTER_ID.to_owned(), id.to_string());
    let encryption = if wanted.encrypt { secret::ENCRYPTION_REQUIRED } else { secret::ENCRYPTION_DISABLED };
    Secret {
        metadata: ObjectMeta {
            name: Some(wanted.secret.clone()),
            namespace: Some(wanted.namespace.clone()),
            labels: Some(labels),
            annotations: Some(created_for(wanted)),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        type_: Some(secret::TYPE.to_owned()),
        string_data: Some(BTreeMap::from([
            (secret::CLUSTER.to_owned(), id.to_string()),
            (secret::KEY.to_owned(), key.to_hex()),
            (secret::ENCRYPTION.to_owned(), encryption.to_owned()),
        ])),
        ..Secret::default()
    }
}

/// What a Secret holds.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Whose it is.
    pub cluster: ClusterId,
    /// The key.
    pub key: ClusterKey,
    /// Whether its connections are encrypted, if it says so.
    pub encrypts: Option<bool>,
}

/// Reads a Secret. The error says what is wrong with it.
///
/// # Errors
/// If it isn't one of ours.
pub fn read(found: &Secret) -> Result<Credentials, String> {
    let value = |key: &str| {
        let data = found.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
        data.ok_or_else(|| format!("it has no '{key}'"))
    };
    let text = std::str::from_utf8(value(secret::CLUSTER)?).unwrap_or_default().trim();
    let cluster = text.parse().map_err(|_| format!("its '{}' isn't a cluster id", secret::CLUSTER))?;
    let key =
        ClusterKey::parse(value(secret::KEY)?).map_err(|error| format!("its key is invalid: {error}"))?;
    let encrypts = match value(secret::ENCRYPTION).ok().and_then(|text| std::str::from_utf8(text).ok()) {
        Some(secret::ENCRYPTION_REQUIRED) => Some(true),
        Some(secret::ENCRYPTION_DISABLED) => Some(false),
        _ => None,
    };
    Ok(Credentials { cluster, key, encrypts })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;
    use crate::testing;

    /// What the API server makes of it.
    pub fn stored(mut secret: Secret) -> Secret {
        let data = secret.string_data.take().unwrap_or_default();
        secret.data =
            Some(data.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))).collect());
        secret
    }

    #[test]
    fn a_secret_is_read_as_it_was_written() {
        let wanted = testing::wanted("1Gi");
        let key = ClusterKey::random();
        let written = secret(&wanted, ClusterId(7), &key);
        assert_eq!(written.metadata.owner_references, None, "the key outlives the resource");
        let read = read(&stored(written)).expect("ours");
        assert_eq!((read.cluster, read.key.to_hex()), (ClusterId(7), key.to_hex()));
        assert_eq!(read.encrypts, Some(false));
    }

    #[test]
    fn another_secret_is_refused_with_what_is_wrong() {
        assert!(read(&Secret::default()).expect_err("empty").contains("no 'cluster'"));
        let mut found = stored(secret(&testing::wanted("1Gi"), ClusterId(7), &ClusterKey::random()));
        found.data.as_mut().expect("data").insert("key".into(), ByteString(b"short".to_vec()));
        assert!(read(&found).expect_err("short").contains("is invalid"));
    }
}
