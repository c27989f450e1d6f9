//! Versions of servers, in memory: what the pods of each know, and whether they start.

use atoll_core::limits::FEATURE_LEVEL_FIRST;
use atoll_crds::names::annotations;
use clap::Parser;
use serde_json::{Value, json};

use super::api_server::State;
use super::kubernetes::NAMESPACE;
use crate::config::{Config, Images};

/// A release before the operator's, which knows the first feature level alone.
pub const EARLIER: &str = "0.0.9";
/// One whose image can't be pulled.
pub const BROKEN: &str = "0.0.8";
/// A marker in the API server: the operator's release is one that has the next feature level.
const NEXT: &str = "next-release";
const BROKEN_IMAGE: &str = "registry.example/absent";

/// Images of all of them.
pub fn images() -> Images {
    let others = format!("{EARLIER}=registry.example/atoll:{EARLIER},{BROKEN}={BROKEN_IMAGE}");
    Images::parse(&Config::parse_from(["atoll-operator", "--images", &others])).expect("valid")
}

/// A pod, or the template of one, has an image that can be pulled.
pub fn starts(pod: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array();
    !containers.into_iter().flatten().any(|container| container["image"] == BROKEN_IMAGE)
}

/// What kubelet says of the containers of a pod that doesn't start.
pub fn cannot_be_pulled() -> Value {
    json!([{
        "name": "x", "ready": false, "restartCount": 0, "image": BROKEN_IMAGE, "imageID": "",
        "state": { "waiting": { "reason": "ImagePullBackOff", "message": "not found" } },
    }])
}

/// The version that a pod was made for.
pub fn version_of(pod: &Value) -> &str {
    pod["metadata"]["annotations"][annotations::VERSION].as_str().unwrap_or_default()
}

/// A feature level that releases have after the first one, whatever this build has.
pub const NEXT_LEVEL: u32 = FEATURE_LEVEL_FIRST + 1;

/// The feature level of the operator's release.
pub fn newest(state: &State) -> u32 {
    let has_next = state.get("configmaps", NAMESPACE, NEXT).is_some();
    if has_next { NEXT_LEVEL } else { FEATURE_LEVEL_FIRST }
}

/// From now on the operator's release knows the level after the first one.
pub fn know_next_level(state: &mut State) {
    let marker = json!({ "metadata": { "name": NEXT, "namespace": NAMESPACE } });
    state.create("configmaps", marker).expect("new");
}

fn level_of(state: &State, pod: &Value) -> u32 {
    if version_of(pod) == EARLIER { FEATURE_LEVEL_FIRST } else { newest(state) }
}

/// The highest feature level that all servers know, and who knows no more than that although there is more.
pub fn known(state: &State) -> (u32, Vec<String>) {
    let pods: Vec<Value> = state.all("pods").into_iter().filter(starts).collect();
    let behind = pods.iter().filter(|pod| level_of(state, pod) < newest(state));
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let level = pods.iter().map(|pod| level_of(state, pod)).min().unwrap_or(FEATURE_LEVEL_FIRST);
    (level, behind.map(name).collect())
}

/// No server runs a version that can't read what a volume of this level has.
pub fn check(state: &State, level: u32) {
    for pod in state.all("pods").iter().filter(|pod| starts(pod)) {
        let (name, version) = (&pod["metadata"]["name"], version_of(pod));
        assert!(
            level_of(state, pod) >= level,
            "{name} runs {version}, and the volume has feature level {level}"
        );
    }
}
