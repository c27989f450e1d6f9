//! Objects of a rendering, by kind, namespace and name, and how two renderings differ.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};

/// By this the chart restarts the operator for a new configuration; kustomize gives the ConfigMap another name for it.
const CHECKSUM: &str = "checksum/config";
/// Characters of the hash that kustomize appends to a ConfigMap's name.
const HASH_CHARS: usize = 10;

/// `Kind namespace/name` and the object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects(pub BTreeMap<String, Value>);

impl Objects {
    /// Reads documents of YAML.
    ///
    /// # Errors
    /// If one isn't YAML, isn't an object, or is there twice.
    pub fn parse(text: &str) -> Result<Objects, String> {
        let mut found = BTreeMap::new();
        for document in serde_yaml::Deserializer::from_str(text) {
            let value = Value::deserialize(document).map_err(|error| error.to_string())?;
            if value.is_null() {
                continue;
            }
            let word = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let (kind, name) = (word("/kind"), word("/metadata/name"));
            if kind.is_empty() || name.is_empty() {
                return Err(format!("a document without kind or name: {value}"));
            }
            let key = format!("{kind} {}/{name}", word("/metadata/namespace"));
            if found.insert(key.clone(), value.clone()).is_some() {
                return Err(format!("{key} is there twice"));
            }
        }
        Ok(Objects(found).without_hashes())
    }

    /// Names without the hashes that kustomize appends, wherever they stand.
    fn without_hashes(self) -> Objects {
        let names: Vec<(String, String)> = self
            .0
            .keys()
            .filter_map(|key| {
                let name = key.strip_prefix("ConfigMap ")?.split_once('/')?.1;
                let (plain, hash) = name.rsplit_once('-')?;
                let is_hash = hash.len() == HASH_CHARS
                    && hash.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
                is_hash.then(|| (name.to_owned(), plain.to_owned()))
            })
            .collect();
        let renamed = |text: &str| {
            names.iter().fold(text.to_owned(), |text, (name, plain)| text.replace(name.as_str(), plain))
        };
        Objects(self.0.into_iter().map(|(key, value)| (renamed(&key), map_texts(value, &renamed))).collect())
    }
}

fn map_texts(value: Value, change: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(&text)),
        Value::Array(items) => items.into_iter().map(|item| map_texts(item, change)).collect(),
        Value::Object(map) => map.into_iter().map(|(key, item)| (key, map_texts(item, change))).collect(),
        other => other,
    }
}

/// What is equal though it is written in another way: files in ConfigMaps, and what is empty.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut found = Map::new();
            for (key, item) in map {
                if key == CHECKSUM {
                    continue;
                }
                let parsed = item.as_str().filter(|_| key.ends_with(".yaml") || key.ends_with(".json"));
                let parsed = parsed.and_then(|text| serde_yaml::from_str::<Value>(text).ok());
                let item = normal(parsed.as_ref().unwrap_or(item));
                if !item.is_null() && item != Value::Object(Map::new()) {
                    found.insert(key.clone(), item);
                }
            }
            Value::Object(found)
        }
        Value::Array(items) => Value::Array(items.iter().map(normal).collect()),
        other => other.clone(),
    }
}

/// How two renderings differ, a line each. `only_left` may be in the first alone.
pub fn differences(left: &Objects, right: &Objects, only_left: &[String]) -> Vec<String> {
    let keys: BTreeSet<&String> = left.0.keys().chain(right.0.keys()).collect();
    let mut found = Vec::new();
    let mut excused: BTreeSet<&str> = only_left.iter().map(String::as_str).collect();
    for key in keys {
        match (left.0.get(key), right.0.get(key)) {
            (Some(one), Some(other)) => compare(key, &normal(one), &normal(other), &mut found),
            (Some(_), None) => {
                let (kind, name) = key.split_once(' ').unwrap_or((key, ""));
                let short = format!("{kind}/{}", name.rsplit('/').next().unwrap_or(""));
                if !excused.remove(short.as_str()) {
                    found.push(format!("{key}: only in the kustomize bases"));
                }
            }
            (None, _) => found.push(format!("{key}: only in the chart")),
        }
    }
    found.extend(excused.into_iter().map(|name| format!("{name}: is no exception any more")));
    found
}

fn compare(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for key in keys {
                let nothing = Value::Null;
                let (one, other) = (one.get(key).unwrap_or(&nothing), other.get(key).unwrap_or(&nothing));
                compare(&format!("{path} .{key}"), one, other, found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (at, (one, other)) in one.iter().zip(other).enumerate() {
                compare(&format!("{path}[{at}]"), one, other, found);
            }
        }
        (one, other) if one == other => {}
        (one, other) => found.push(format!("{path}: kustomize has {one}, the chart has {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: &str = "kind: ConfigMap
metadata: {name: c-h69hk58k74, namespace: n}
data: {config.yaml: \"# words\\na: {b: 1}\\n\"}
---
kind: Deployment
metadata: {name: d, namespace: n}
spec: {template: {spec: {volumes: [{configMap: {name: c-h69hk58k74}}]}}}
---
kind: Namespace
metadata: {name: n}
";
    const RIGHT: &str = "# comment
---
kind: Deployment
metadata: {name: d, namespace: n}
spec: {template: {metadata: {annotations: {checksum/config: x}}, spec: {volumes: [{configMap: {name: c}}]}}}
---
kind: ConfigMap
metadata: {namespace: n, name: c}
data: {config.yaml: \"a:\\n  b: 1\\n\"}
";

    fn of(left: &str, right: &str, only_left: &[&str]) -> Vec<String> {
        let only_left: Vec<String> = only_left.iter().map(|name| (*name).to_owned()).collect();
        differences(&Objects::parse(left).expect("left"), &Objects::parse(right).expect("right"), &only_left)
    }

    #[test]
    fn what_is_only_written_in_another_way_is_the_same() {
        assert_eq!(of(LEFT, RIGHT, &["Namespace/n"]), Vec::<String>::new());
    }

    #[test]
    fn what_one_has_alone_is_found() {
        assert_eq!(of(LEFT, RIGHT, &[]), ["Namespace /n: only in the kustomize bases"]);
        assert_eq!(of(RIGHT, LEFT, &["Namespace/n"])[0], "Namespace /n: only in the chart");
        assert_eq!(of(RIGHT, RIGHT, &["Namespace/n"]), ["Namespace/n: is no exception any more"]);
    }

    #[test]
    fn every_difference_is_found_with_its_place() {
        let changed = RIGHT.replace("b: 1", "b: 2").replace("name: c}}", "name: e}}");
        assert_eq!(
            of(LEFT, &changed, &["Namespace/n"]),
            [
                "ConfigMap n/c .data .config.yaml .a .b: kustomize has 1, the chart has 2",
                "Deployment n/d .spec .template .spec .volumes[0] .configMap .name: kustomize has \"c\", the chart has \"e\"",
            ]
        );
        let more = RIGHT.replace("volumes: [", "volumes: [{name: x}, ");
        assert_eq!(of(LEFT, &more, &["Namespace/n"]).len(), 1);
    }

    #[test]
    fn documents_that_are_no_objects_are_refused() {
        assert!(Objects::parse("kind: A\n").is_err());
        let twice = "kind: A\nmetadata: {name: a}\n---\nkind: A\nmetadata: {name: a}\n";
        assert!(Objects::parse(twice).expect_err("twice").contains("twice"));
        assert_eq!(Objects::parse("---\n# nothing\n").expect("empty"), Objects::default());
    }
}
