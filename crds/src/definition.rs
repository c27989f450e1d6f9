//! The definitions of the custom resources as they are installed.

use kube::CustomResourceExt;
use serde_json::Value;

use crate::v1alpha1::FileSystemCluster;

/// The definition of `FileSystemCluster`, made for `kubectl explain`: the line breaks of comments are none of the text's.
///
/// # Errors
/// If the types can't be serialised.
pub fn filesystemclusters() -> Result<Value, serde_json::Error> {
    let mut definition = serde_json::to_value(FileSystemCluster::crd())?;
    tidy(&mut definition);
    Ok(definition)
}

fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text =
                    text.split("\n\n").map(|part| part.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
            }
            // The API server knows no such format; the limits say as much.
            if map.get("format").is_some_and(|format| format == "uint8") {
                map.insert("format".to_owned(), "int32".into());
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(values) => values.iter_mut().for_each(tidy),
        _ => {}
    }
}
