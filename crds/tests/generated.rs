//! The committed custom resource definitions are those of the types, and say what they have to.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use atoll_crds::v1alpha1::FileSystemClusterSpec;
use atoll_crds::{definition, names};
use serde_json::{Value, json};

fn committed_text() -> String {
    // The build folder may be shared by several checkouts: which one this is is known only when the test runs.
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let path = PathBuf::from(folder).join("../config/crd/filesystemclusters.yaml");
    std::fs::read_to_string(&path).expect("config/crd/filesystemclusters.yaml")
}

fn committed() -> Value {
    serde_yaml::from_str(&committed_text()).expect("YAML")
}

#[test]
fn the_committed_definition_is_the_generated_one() {
    let generated = definition::document().expect("serialises");
    assert!(
        committed_text() == generated,
        "config/crd is out of date: cargo run -p atoll-crds --bin crdgen > config/crd/filesystemclusters.yaml"
    );
}

#[test]
fn every_field_is_documented() {
    fn undocumented(path: &str, schema: &Value, missing: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if property["description"].as_str().is_none_or(str::is_empty) {
                missing.push(path.clone());
            }
            undocumented(&path, property, missing);
            undocumented(&path, &property["items"], missing);
        }
    }
    let definition = committed();
    let root = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let mut missing = Vec::new();
    for part in ["spec", "status"] {
        undocumented(part, &root[part], &mut missing);
    }
    assert_eq!(missing, Vec::<String>::new(), "kubectl explain has nothing to say about these");
}

#[test]
fn a_capacity_alone_is_a_spec() {
    let spec: FileSystemClusterSpec = serde_json::from_value(json!({ "capacity": "1Gi" })).expect("valid");
    assert_eq!(spec, FileSystemClusterSpec::with_capacity("1Gi".into()));
    assert_eq!((spec.metadata_replicas(), spec.storage_replicas()), (3, 3));
    let schema = committed();
    let spec = &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    assert_eq!(spec["required"], json!(["capacity"]));
}

#[test]
fn every_rule_has_a_message() {
    fn rules(schema: &Value, found: &mut Vec<Value>) {
        match schema {
            Value::Object(map) => {
                found.extend(
                    map.get("x-kubernetes-validations")
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten()
                        .cloned(),
                );
                map.values().for_each(|value| rules(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| rules(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    rules(&committed(), &mut found);
    assert!(found.len() >= 15, "{} rules", found.len());
    for rule in found {
        assert!(rule["message"].as_str().is_some_and(|message| message.len() > 20), "{rule}");
    }
}

#[test]
fn the_definition_has_the_names_that_others_use() {
    let definition = committed();
    assert_eq!(definition["spec"]["group"], names::GROUP);
    assert_eq!(definition["metadata"]["name"], format!("filesystemclusters.{}", names::GROUP));
    assert_eq!(definition["spec"]["names"]["shortNames"], json!(["fsc"]));
    assert_eq!(definition["spec"]["versions"][0]["subresources"], json!({ "status": {} }));
}

#[test]
fn no_value_is_something_else_in_yaml() {
    // YAML 1.1, which kubectl reads, takes these for booleans.
    const BOOLEANS: [&str; 8] = ["y", "n", "yes", "no", "on", "off", "true", "false"];
    fn values(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(map) => {
                let listed = map.get("enum").and_then(Value::as_array).into_iter().flatten();
                found.extend(listed.filter_map(Value::as_str).map(str::to_lowercase));
                map.values().for_each(|value| values(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| values(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    values(&committed(), &mut found);
    assert!(found.contains(&"shared".to_owned()));
    found.retain(|value| BOOLEANS.contains(&value.as_str()));
    assert_eq!(found, Vec::<String>::new());
}
