//! Whether an object is as it shall be, so that a reconcile with nothing to do writes nothing.

use atoll_crds::names::annotations;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;

/// Gives the object an annotation with the hash of what it shall be, which tells when something was taken *out* of
/// it: a field that is no longer asked for is still there in the object that was seen.
pub fn stamp<T: Serialize>(object: &mut T, meta: impl FnOnce(&mut T) -> &mut ObjectMeta) {
    let hash = hash(&serde_json::to_value(&*object).unwrap_or_default());
    let annotations = meta(object).annotations.get_or_insert_default();
    annotations.insert(annotations::TEMPLATE_HASH.to_owned(), format!("{hash:016x}"));
}

/// Lists whose elements belong to whoever applied them, as server-side apply has it, with the fields that tell them apart
/// (`x-kubernetes-list-map-keys`; a container's ports and a Service's have different ones). All others are one value.
const KEYED: [(&str, &[&str]); 11] = [
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("volumes", &["name"]),
    ("env", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("ports", &["containerPort", "port"]),
    ("hostAliases", &["ip"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("ownerReferences", &["uid"]),
];

/// Everything in `wanted` is in `seen` as well; the API server adds defaults, and others may add what they own: labels, a
/// container, a volume.
pub fn is_as_wanted<T: Serialize>(wanted: &T, seen: &T) -> bool {
    difference(wanted, seen).is_none()
}

/// The first field of `wanted` that isn't so in `seen`, as a path.
pub fn difference<T: Serialize>(wanted: &T, seen: &T) -> Option<String> {
    match (serde_json::to_value(wanted), serde_json::to_value(seen)) {
        (Ok(wanted), Ok(seen)) => {
            differs("", &wanted, &seen).map(|path| path.trim_start_matches('.').to_owned())
        }
        _ => Some(String::new()),
    }
}

/// What tells whether two objects are the ones of an earlier comparison: all of what is desired, and of what was seen all but
/// its status and its versions.
pub fn fingerprint<T: Serialize>(wanted: &T, seen: &T) -> u64 {
    let mut seen = serde_json::to_value(seen).unwrap_or_default();
    if let Some(object) = seen.as_object_mut() {
        object.remove("status");
    }
    if let Some(meta) = seen["metadata"].as_object_mut() {
        for own in ["resourceVersion", "generation", "managedFields"] {
            meta.remove(own);
        }
    }
    hash(&Value::Array(vec![serde_json::to_value(wanted).unwrap_or_default(), seen]))
}

/// Below `field`, the name of an object's member.
fn differs(field: &str, wanted: &Value, seen: &Value) -> Option<String> {
    let here = |differ: bool| differ.then(String::new);
    match (wanted, seen) {
        (Value::Object(wanted), Value::Object(seen)) => wanted.iter().find_map(|(key, value)| {
            let found = seen.get(key).unwrap_or(&Value::Null);
            if value.is_null() {
                return None;
            }
            differs(key, value, found).map(|below| format!(".{key}{below}"))
        }),
        (Value::Array(wanted), Value::Array(seen)) => match keys_of(field) {
            Some(keys) => wanted.iter().find_map(|wanted| {
                let of_key = |found: &&Value| keys.iter().all(|key| wanted[*key] == found[*key]);
                match seen.iter().find(of_key) {
                    Some(found) => {
                        differs("", wanted, found).map(|below| format!("{}{below}", name(keys, wanted)))
                    }
                    None => Some(name(keys, wanted)),
                }
            }),
            None if wanted.len() != seen.len() => Some(String::new()),
            None => wanted.iter().zip(seen).enumerate().find_map(|(index, (wanted, seen))| {
                differs("", wanted, seen).map(|below| format!("[{index}]{below}"))
            }),
        },
        (Value::String(wanted), Value::String(seen)) => {
            here(wanted != seen && !is_same_quantity(wanted, seen))
        }
        (wanted, seen) => here(wanted != seen),
    }
}

fn keys_of(field: &str) -> Option<&'static [&'static str]> {
    KEYED.iter().find(|(name, _)| *name == field).map(|(_, keys)| *keys)
}

/// Which element it is: `[disk]`.
fn name(keys: &[&str], element: &Value) -> String {
    let parts: Vec<String> = keys
        .iter()
        .filter(|key| !element[**key].is_null())
        .map(|key| element[*key].as_str().map_or_else(|| element[*key].to_string(), str::to_owned))
        .collect();
    format!("[{}]", parts.join(","))
}

/// The API server writes quantities its own way: `1024Mi` comes back as `1Gi`, `0.5` as `500m`.
fn is_same_quantity(one: &str, other: &str) -> bool {
    match (thousandths(one), thousandths(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

fn thousandths(text: &str) -> Option<u128> {
    let parse = |text: &str| atoll_crds::Quantity::from(text).bytes().ok().map(u128::from);
    if let Some(digits) = text.strip_suffix('m') {
        return digits.parse().ok();
    }
    match text.split_once('.') {
        // "0.5" without a unit: three digits behind the point are enough.
        Some((whole, part)) if part.bytes().all(|byte| byte.is_ascii_digit()) && part.len() <= 3 => {
            format!("{whole}{part:0<3}").parse().ok()
        }
        _ => parse(text).map(|whole| whole * 1000),
    }
}

/// FNV-1a over the JSON, whose keys are in order: the same for every version of the compiler, unlike `Hash`.
/// A hash of a value that is the same in every release.
pub fn hash(value: &Value) -> u64 {
    value
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_add_is_no_difference_and_what_they_change_is() {
        let wanted = json!({ "a": { "b": 1, "list": [{ "name": "x" }] }, "q": "1024Mi", "none": null });
        let seen =
            json!({ "a": { "b": 1, "list": [{ "name": "x", "extra": 2 }], "c": 3 }, "q": "1Gi", "more": 4 });
        assert!(is_within(&wanted, &seen));
        for changed in [
            json!({ "a": { "b": 2, "list": [{ "name": "x" }] }, "q": "1Gi" }),
            json!({ "a": { "b": 1, "list": [] }, "q": "1Gi" }),
            json!({ "a": { "b": 1, "list": [{ "name": "x" }, { "name": "y" }] }, "q": "1Gi" }),
            json!({ "a": { "b": 1, "list": [{ "name": "x" }] }, "q": "2Gi" }),
            json!({ "a": { "b": 1, "list": [{ "name": "x" }] } }),
        ] {
            assert!(!is_within(&wanted, &changed), "{changed}");
        }
    }

    fn is_within(wanted: &Value, seen: &Value) -> bool {
        is_as_wanted(wanted, seen)
    }

    #[test]
    fn what_a_webhook_adds_to_a_pod_is_no_difference() {
        let wanted = json!({ "spec": {
            "containers": [{
                "name": "server", "image": "a", "env": [{ "name": "X", "value": "1" }],
                "ports": [{ "containerPort": 7000 }, { "containerPort": 7001, "name": "http" }],
                "volumeMounts": [{ "mountPath": "/data", "name": "data" }],
            }],
            "volumes": [{ "name": "key" }],
            "tolerations": [{ "key": "a" }],
        } });
        let mut seen = json!({ "spec": {
            "initContainers": [{ "name": "init" }],
            "containers": [
                { "name": "proxy", "image": "b" },
                {
                    "name": "server", "image": "a",
                    "env": [{ "name": "HOST", "value": "n" }, { "name": "X", "value": "1" }],
                    "ports": [
                        { "containerPort": 9000 }, { "containerPort": 7001, "name": "http" },
                        { "containerPort": 7000, "protocol": "TCP" },
                    ],
                    "volumeMounts": [{ "mountPath": "/ca", "name": "ca" }, { "mountPath": "/data", "name": "data" }],
                },
            ],
            "volumes": [{ "name": "ca" }, { "name": "key" }],
            "tolerations": [{ "key": "a" }],
        } });
        assert_eq!(difference(&wanted, &seen), None);
        // What it changes is, and so is what it adds to a list that is one value.
        let before = seen.clone();
        seen["spec"]["containers"][1]["image"] = json!("mirror/a");
        assert_eq!(difference(&wanted, &seen).as_deref(), Some("spec.containers[server].image"));
        seen = before;
        seen["spec"]["tolerations"] = json!([{ "key": "a" }, { "key": "b" }]);
        assert_eq!(difference(&wanted, &seen).as_deref(), Some("spec.tolerations"));
        seen["spec"]["tolerations"] = json!([{ "key": "a" }]);
        seen["spec"]["volumes"] = json!([{ "name": "ca" }]);
        assert_eq!(difference(&wanted, &seen).as_deref(), Some("spec.volumes[key]"));
    }

    #[test]
    fn a_fingerprint_is_of_what_is_desired_and_what_is_there() {
        let wanted = json!({ "spec": { "image": "a" } });
        let seen = |image: &str, version: &str| json!({ "metadata": { "resourceVersion": version }, "spec": { "image": image }, "status": version });
        let print = |wanted: &Value, seen: &Value| fingerprint(wanted, seen);
        assert_eq!(print(&wanted, &seen("m", "1")), print(&wanted, &seen("m", "2")));
        assert_ne!(print(&wanted, &seen("m", "1")), print(&wanted, &seen("n", "1")));
        assert_ne!(print(&wanted, &seen("m", "1")), print(&json!({ "spec": {} }), &seen("m", "1")));
    }

    #[test]
    fn quantities_are_compared_by_what_they_mean() {
        for (one, other, same) in [
            ("0.5", "500m", true),
            ("1", "1000m", true),
            ("1024Mi", "1Gi", true),
            ("25m", "25m", true),
            ("1", "1m", false),
            ("abc", "abd", false),
        ] {
            assert_eq!(one == other || is_same_quantity(one, other), same, "{one} {other}");
        }
    }

    #[test]
    fn the_stamp_follows_the_content() {
        let stamped = |labels: &[&str]| {
            let labels = labels.iter().map(|label| ((*label).to_owned(), String::new())).collect();
            let mut meta = ObjectMeta { labels: Some(labels), ..ObjectMeta::default() };
            stamp(&mut meta, |meta| meta);
            meta.annotations.expect("stamped")[annotations::TEMPLATE_HASH].clone()
        };
        assert_eq!(stamped(&["a"]), stamped(&["a"]));
        assert_ne!(stamped(&["a"]), stamped(&["a", "b"]));
    }
}
