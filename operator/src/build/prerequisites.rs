//! What has to be there before there can be volumes, and outlives every uninstall: the definition of the custom resource,
//! the namespace of the volumes, the policies that protect it, and the CSI driver's rights in it.
//!
//! They aren't part of what is installed (`config/default`), or whoever uninstalls it would delete all volumes with them.
//! The operator creates them and keeps them as they are here.

use atoll_crds::definition;
use kube::ResourceExt;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;

use crate::config::VERSION;

/// The files of `config/volumes`, in the order in which they are applied: what protects the namespace exists before it.
const FILES: [&str; 4] = [
    include_str!("../../../config/volumes/priority.yaml"),
    include_str!("../../../config/volumes/protection.yaml"),
    include_str!("../../../config/volumes/namespace.yaml"),
    include_str!("../../../config/volumes/rbac.yaml"),
];

/// The annotation with the version of the operator that applied an object last.
const VERSION_ANNOTATION: &str = "atoll.dev/applied-by-version";

/// An object that the operator keeps, of whatever kind.
#[derive(Clone, Debug)]
pub struct Prerequisite {
    /// Its kind.
    pub kind: ApiResource,
    /// What it has to be.
    pub object: DynamicObject,
}

/// One of the files is not what it has to be.
#[derive(Debug, thiserror::Error)]
pub enum PrerequisiteError {
    /// It is no YAML.
    #[error("config/volumes: {0}")]
    Yaml(#[from] serde_yaml::Error),
    /// It is no object.
    #[error("an object of config/crd or config/volumes: {0}")]
    Object(#[from] serde_json::Error),
    /// It doesn't say of which kind it is.
    #[error("an object of config/crd or config/volumes has no kind")]
    Kind,
}

/// All of them, in the order in which they are applied.
///
/// # Errors
/// If a file that was compiled in is invalid.
pub fn prerequisites() -> Result<Vec<Prerequisite>, PrerequisiteError> {
    let mut found = vec![prerequisite(definition::filesystemclusters()?)?];
    for file in FILES {
        for document in serde_yaml::Deserializer::from_str(file) {
            found.push(prerequisite(serde_json::Value::deserialize(document)?)?);
        }
    }
    Ok(found)
}

fn prerequisite(value: serde_json::Value) -> Result<Prerequisite, PrerequisiteError> {
    let mut object: DynamicObject = serde_json::from_value(value)?;
    let types = object.types.as_ref().ok_or(PrerequisiteError::Kind)?;
    let kind = GroupVersionKind::try_from(types).map_err(|_| PrerequisiteError::Kind)?;
    object.annotations_mut().insert(VERSION_ANNOTATION.to_owned(), VERSION.to_owned());
    Ok(Prerequisite { kind: ApiResource::from_gvk(&kind), object })
}

impl Prerequisite {
    /// For a message: `Namespace atoll-volumes`.
    pub fn brief(&self) -> String {
        format!("{} {}", self.kind.kind, self.object.name_any())
    }

    /// Whether what is there may be replaced: what a newer operator applied is left alone, since an older definition would
    /// drop the fields that it doesn't know from resources that have them.
    pub fn may_replace(&self, found: &DynamicObject) -> bool {
        let by = found.annotations().get(VERSION_ANNOTATION).map(String::as_str).unwrap_or_default();
        numbers(by) <= numbers(VERSION)
    }
}

/// The numbers of a version, without what comes after them: a pre-release counts as its release.
fn numbers(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    release.split('.').filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The operator's rights as they are installed.
    const RIGHTS: &str = include_str!("../../../config/rbac/operator.yaml");

    fn all() -> Vec<Prerequisite> {
        prerequisites().expect("valid")
    }

    #[test]
    fn what_protects_the_namespace_is_applied_before_it() {
        let briefs: Vec<String> = all().iter().map(Prerequisite::brief).collect();
        assert_eq!(
            briefs,
            [
                "CustomResourceDefinition filesystemclusters.atoll.dev",
                "PriorityClass atoll-servers",
                "ValidatingAdmissionPolicy atoll-volumes",
                "ValidatingAdmissionPolicyBinding atoll-volumes",
                "ValidatingAdmissionPolicy atoll-clusters-of-claims",
                "ValidatingAdmissionPolicyBinding atoll-clusters-of-claims",
                "ValidatingAdmissionPolicy atoll-keys",
                "ValidatingAdmissionPolicyBinding atoll-keys",
                "Namespace atoll-volumes",
                "RoleBinding atoll-csi-volumes",
            ]
        );
    }

    #[test]
    fn the_operator_has_the_right_to_keep_each_of_them_by_its_name() {
        let documents: Vec<serde_json::Value> = serde_yaml::Deserializer::from_str(RIGHTS)
            .map(|document| serde_json::Value::deserialize(document).expect("YAML"))
            .collect();
        let rules: Vec<&serde_json::Value> = documents
            .iter()
            .filter(|found| found["kind"] == "ClusterRole")
            .flat_map(|role| role["rules"].as_array().expect("rules"))
            .collect();
        let has = |list: &serde_json::Value, text: &str| {
            list.as_array().is_some_and(|list| list.iter().any(|item| item == text))
        };
        for needed in all() {
            let name = needed.object.name_any();
            let grants = |rule: &&serde_json::Value| {
                has(&rule["apiGroups"], &needed.kind.group)
                    && has(&rule["resources"], &needed.kind.plural)
                    && has(&rule["resourceNames"], &name)
                    && ["get", "list", "watch", "create", "patch"]
                        .iter()
                        .all(|verb| has(&rule["verbs"], verb))
            };
            assert!(rules.iter().any(grants), "no rule for {}", needed.brief());
            let deletes = rules
                .iter()
                .any(|rule| has(&rule["resources"], &needed.kind.plural) && has(&rule["verbs"], "delete"));
            assert!(!deletes, "the operator could delete {}", needed.brief());
        }
    }

    #[test]
    fn what_a_newer_operator_applied_is_left_alone() {
        let ours = all().remove(0);
        let by = |version: Option<&str>| {
            let mut found = ours.object.clone();
            found.annotations_mut().clear();
            if let Some(version) = version {
                found.annotations_mut().insert(VERSION_ANNOTATION.into(), version.into());
            }
            found
        };
        assert!(ours.may_replace(&by(None)));
        assert!(ours.may_replace(&by(Some(VERSION))));
        assert!(ours.may_replace(&by(Some("0.0.9"))));
        assert!(!ours.may_replace(&by(Some("99.0.0-rc.1"))));
        assert_eq!(numbers("1.10.2+x"), [1, 10, 2]);
        assert!(numbers("1.10.0") > numbers("1.9.9"));
    }
}
