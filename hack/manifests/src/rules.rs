//! What every rendering of the chart has: images from one registry, pull secrets, kubelet's directory, restricted pods, labels.

use serde_json::Value;

use crate::objects::Objects;

/// kubelet's directory where nothing else is said.
const KUBELET: &str = "/var/lib/kubelet";
/// The label by which uninstalling finds what was installed.
const LABEL: (&str, &str) = ("app.kubernetes.io/name", "atoll");
/// Kinds that hold data, or that outlive every uninstall: no release may have them, since deleting it would delete them.
const NEVER: [&str; 7] = [
    "CustomResourceDefinition",
    "FileSystemCluster",
    "Namespace",
    "PersistentVolumeClaim",
    "Secret",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];
/// Pods that need more than the Pod Security level restricted allows.
const OF_NODES: [&str; 3] = ["atoll-csi-node", "atoll-mount-host", "atoll-holder"];

/// What the values ask for.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The registry of every image.
    pub registry: Option<String>,
    /// A pull secret of every pod.
    pub pull_secret: Option<String>,
    /// kubelet's directory.
    pub kubelet: String,
    /// Every process listens on `[::]`.
    pub ipv6: bool,
    /// Kinds that have to be there.
    pub has: Vec<String>,
}

/// What isn't as it has to be, a line each.
pub fn violations(objects: &Objects, expected: &Expected) -> Vec<String> {
    let mut found = Vec::new();
    for kind in &expected.has {
        if !objects.0.keys().any(|key| key.split(' ').next() == Some(kind)) {
            found.push(format!("there is no {kind}"));
        }
    }
    for (key, object) in &objects.0 {
        let kind = key.split(' ').next().unwrap_or_default();
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        if NEVER.contains(&kind) {
            found.push(format!("{key}: uninstalling would delete it"));
        }
        let label = object.pointer("/metadata/labels").and_then(|labels| labels.get(LABEL.0));
        if label.and_then(Value::as_str) != Some(LABEL.1) {
            found.push(format!("{key}: lacks the label {}={}", LABEL.0, LABEL.1));
        }
        if let Some(pod) = object.pointer("/spec/template/spec") {
            of_pod(key, name, pod, expected, &mut found);
        }
        texts(object, &mut |text| {
            let is_default = text.replace(&expected.kubelet, "").contains(KUBELET);
            if is_default {
                found.push(format!("{key}: names {KUBELET}: {text}"));
            }
        });
    }
    if let Some(secret) = &expected.pull_secret {
        let config =
            objects.0.iter().find(|(key, _)| key.starts_with("ConfigMap") && key.ends_with("config"));
        let text = config.and_then(|(_, object)| object.pointer("/data/config.yaml")?.as_str()).unwrap_or("");
        let config: Value = serde_yaml::from_str(text).unwrap_or_default();
        if config.pointer("/pods/imagePullSecrets/0/name").and_then(Value::as_str) != Some(secret) {
            found.push(format!("the operator's configuration doesn't give servers the pull secret {secret}"));
        }
    }
    found
}

fn of_pod(key: &str, name: &str, pod: &Value, expected: &Expected, found: &mut Vec<String>) {
    if let Some(secret) = &expected.pull_secret
        && pod.pointer("/imagePullSecrets/0/name").and_then(Value::as_str) != Some(secret)
    {
        found.push(format!("{key}: lacks the pull secret {secret}"));
    }
    let containers = pod.get("containers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for container in containers {
        let word = |path: &str| container.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (image, container_name) = (word("/image"), word("/name"));
        if let Some(registry) = &expected.registry
            && !image.starts_with(&format!("{registry}/"))
        {
            found.push(format!("{key}: image {image} isn't from {registry}"));
        }
        if image.ends_with(":latest")
            || !image.rsplit('/').next().is_some_and(|last| last.contains([':', '@']))
        {
            found.push(format!("{key}: image {image} names no version"));
        }
        if container.pointer("/resources/requests/memory").is_none() {
            found.push(format!("{key}: container {container_name} requests no memory"));
        }
        let context = |path: &str| container.pointer(&format!("/securityContext{path}"));
        if context("/readOnlyRootFilesystem") != Some(&Value::Bool(true)) {
            found.push(format!("{key}: container {container_name} can write to its image"));
        }
        let is_restricted = context("/allowPrivilegeEscalation") == Some(&Value::Bool(false))
            && context("/capabilities/drop/0").and_then(Value::as_str) == Some("ALL")
            && pod.pointer("/securityContext/runAsNonRoot") == Some(&Value::Bool(true))
            && pod.pointer("/securityContext/seccompProfile/type").is_some();
        if !OF_NODES.contains(&name) && !is_restricted {
            found.push(format!("{key}: container {container_name} doesn't comply with restricted"));
        }
        let env = container.get("env").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let http = env.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("ATOLL_HTTP"));
        let address = http.and_then(|entry| entry.get("value")?.as_str()).unwrap_or("");
        let is_ours = word("/command/0").starts_with("/usr/bin/atoll");
        if expected.ipv6 && is_ours {
            let port = container.pointer("/ports/0/containerPort").and_then(Value::as_u64).unwrap_or(0);
            if address != format!("[::]:{port}") {
                found.push(format!(
                    "{key}: container {container_name} listens on '{address}', not on [::]:{port}"
                ));
            }
        }
    }
}

fn texts(value: &Value, look: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().for_each(|item| texts(item, look)),
        Value::Object(map) => map.values().for_each(|item| texts(item, look)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "kind: Deployment
metadata: {name: d, namespace: n, labels: {app.kubernetes.io/name: atoll}}
spec:
  template:
    spec:
      imagePullSecrets: [{name: s}]
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: c
        image: r.example:5000/m/atoll:1
        command: [/usr/bin/atoll-x]
        env: [{name: ATOLL_HTTP, value: '[::]:80'}]
        ports: [{containerPort: 80}]
        resources: {requests: {memory: 1Mi}}
        securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumes: [{hostPath: {path: /snap/var/lib/kubelet/plugins}}]
---
kind: ConfigMap
metadata: {name: a-config, labels: {app.kubernetes.io/name: atoll}}
data: {config.yaml: 'pods: {imagePullSecrets: [{name: s}]}'}
";

    fn expected() -> Expected {
        Expected {
            registry: Some("r.example:5000/m".into()),
            pull_secret: Some("s".into()),
            kubelet: "/snap/var/lib/kubelet".into(),
            ipv6: true,
            has: vec!["Deployment".into()],
        }
    }

    fn of(text: &str) -> Vec<String> {
        violations(&Objects::parse(text).expect("objects"), &expected())
    }

    #[test]
    fn what_is_as_it_has_to_be_is_no_finding() {
        assert_eq!(of(GOOD), Vec::<String>::new());
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        for (from, to, words) in [
            ("r.example:5000/m/", "ghcr.io/", "isn't from r.example"),
            ("atoll:1", "atoll", "names no version"),
            ("atoll:1", "atoll:latest", "names no version"),
            ("imagePullSecrets: [{name: s}]\n      sec", "sec", "lacks the pull secret"),
            ("'pods: {imagePullSecrets: [{name: s}]}'", "'{}'", "doesn't give servers the pull secret"),
            ("/snap/var/lib/kubelet/plugins", "/var/lib/kubelet/plugins", "names /var/lib/kubelet"),
            ("'[::]:80'", "0.0.0.0:80", "not on [::]:80"),
            ("memory: 1Mi", "cpu: 1", "requests no memory"),
            ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "can write to its image"),
            ("runAsNonRoot: true, ", "", "doesn't comply with restricted"),
            ("labels: {app.kubernetes.io/name: atoll}}\nspec", "labels: {}}\nspec", "lacks the label"),
            ("kind: ConfigMap", "kind: Secret", "uninstalling would delete it"),
            ("kind: Deployment", "kind: StatefulSet", "there is no Deployment"),
        ] {
            let found = of(&GOOD.replace(from, to));
            assert!(found.iter().any(|finding| finding.contains(words)), "{words}: {found:?}");
        }
    }
}
