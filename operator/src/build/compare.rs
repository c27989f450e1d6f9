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

/// Everything in `wanted` is in `seen` as well; the API server adds defaults, and others may add what they own.
pub fn is_as_wanted<T: Serialize>(wanted: &T, seen: &T) -> bool {
    match (serde_json::to_value(wanted), serde_json::to_value(seen)) {
        (Ok(wanted), Ok(seen)) => is_within(&wanted, &seen),
        _ => false,
    }
}

fn is_within(wanted: &Value, seen: &Value) -> bool {
    match (wanted, seen) {
        (Value::Object(wanted), Value::Object(seen)) => wanted.iter().all(|(key, value)| {
            value.is_null() || seen.get(key).is_some_and(|found| is_within(value, found))
        }),
        (Value::Array(wanted), Value::Array(seen)) => {
            wanted.len() == seen.len()
                && wanted.iter().zip(seen).all(|(wanted, seen)| is_within(wanted, seen))
        }
        (Value::String(wanted), Value::String(seen)) => wanted == seen || is_same_quantity(wanted, seen),
        (wanted, seen) => wanted == seen,
    }
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
fn hash(value: &Value) -> u64 {
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
