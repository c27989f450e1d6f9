//! What is installed fits what the programs do: rights and networks, read from the files of `config`.

use std::collections::{BTreeMap, BTreeSet};

use atoll_crds::names::{Component, labels, ports};
use serde::Deserialize;
use serde_json::Value;

use crate::build::statefulset::statefulset;
use crate::testing::{self, ID};

const RIGHTS: &str = include_str!("../../config/rbac/operator.yaml");
const WATCHED: [&str; 2] = [
    include_str!("../../config/watched/volumes.yaml"),
    include_str!("../../config/watched/namespace/rbac.yaml"),
];
const WORKLOADS: [&str; 4] = [
    include_str!("../../config/operator/deployment.yaml"),
    include_str!("../../config/csi/controller.yaml"),
    include_str!("../../config/csi/node.yaml"),
    include_str!("../../config/csi/mount-host.yaml"),
];
const POLICIES: [&str; 2] = [
    include_str!("../../config/network/system/policies.yaml"),
    include_str!("../../config/network/volumes/policies.yaml"),
];

fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text).map(|found| Value::deserialize(found).expect("YAML")).collect()
}

fn texts(list: &Value) -> BTreeSet<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn role(name: &str) -> Vec<Value> {
    let all = documents(RIGHTS);
    let of = |found: &&Value| found["kind"] == "ClusterRole" && found["metadata"]["name"] == name;
    all.iter().find(of).expect("the role")["rules"].as_array().expect("rules").clone()
}

/// What a role may do with objects of a kind, whatever they are called.
fn verbs(rules: &[Value], plural: &str) -> BTreeSet<String> {
    let of = |rule: &&Value| texts(&rule["resources"]).contains(plural) && rule["resourceNames"].is_null();
    rules.iter().filter(of).flat_map(|rule| texts(&rule["verbs"])).map(str::to_owned).collect()
}

#[test]
fn rights_on_what_belongs_to_volumes_are_a_role_of_their_own() {
    let (everywhere, of_volumes) = (role("atoll-operator"), role("atoll-operator-volumes"));
    for plural in [
        "filesystemclusters",
        "statefulsets",
        "services",
        "poddisruptionbudgets",
        "pods",
        "persistentvolumeclaims",
    ] {
        let verbs = verbs(&of_volumes, plural);
        assert!(verbs.contains("list") && verbs.contains("watch"), "{plural}: {verbs:?}");
    }
    // Whoever may list or watch Secrets may read all of them.
    let of_secrets: BTreeSet<String> = ["get", "create", "patch", "delete"].map(str::to_owned).into();
    assert_eq!(verbs(&of_volumes, "secrets"), of_secrets);
    // What is bound in all namespaces changes nothing in any of them but what has one of these names.
    for rule in &everywhere {
        let reads = texts(&rule["verbs"]).iter().all(|verb| ["get", "list", "watch"].contains(verb));
        let what = texts(&rule["resources"]);
        assert!(!what.contains("secrets") && !what.contains("pods"), "{rule}");
        assert!(reads || !texts(&rule["resourceNames"]).is_empty(), "{rule}");
    }
}

#[test]
fn a_namespace_that_is_watched_has_the_operator_bound_to_that_role() {
    let installed = documents(RIGHTS);
    let everywhere = installed.iter().find(|found| {
        found["kind"] == "ClusterRoleBinding" && found["metadata"]["name"] == "atoll-operator-volumes"
    });
    let everywhere = everywhere.expect("bound everywhere, unless told otherwise");
    for text in WATCHED {
        let binding = documents(text).remove(0);
        assert_eq!(binding["kind"], "RoleBinding");
        assert_eq!(
            (&binding["roleRef"], &binding["subjects"]),
            (&everywhere["roleRef"], &everywhere["subjects"])
        );
    }
    let overlay = include_str!("../../config/watched/kustomization.yaml");
    assert!(overlay.contains("name: ATOLL_NAMESPACES") && overlay.contains("{name: atoll-operator-volumes}"));
}

/// The ports of each component's pods.
fn listening() -> BTreeMap<String, BTreeSet<u64>> {
    let mut found: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let installed = WORKLOADS
        .iter()
        .flat_map(|text| documents(text))
        .filter(|found| !found["spec"]["template"].is_null());
    let of_servers = Component::ALL.map(|component| {
        serde_json::to_value(statefulset(&testing::wanted("1Gi"), component, ID, None)).expect("serialises")
    });
    for workload in installed.chain(of_servers) {
        let template = &workload["spec"]["template"];
        let component = template["metadata"]["labels"][labels::COMPONENT].as_str().expect("a component");
        assert_eq!(template["metadata"]["labels"][labels::NAME], labels::NAME_VALUE);
        let containers = template["spec"]["containers"].as_array().expect("containers");
        let listed = containers.iter().filter_map(|container| container["ports"].as_array()).flatten();
        let ports = listed.map(|port| port["containerPort"].as_u64().expect("a number"));
        found.entry(component.to_owned()).or_default().extend(ports);
    }
    found
}

/// What a policy's rules let in: ports, and the components that may come in there; none: whoever comes.
fn lets_in(policy: &Value) -> BTreeMap<u64, BTreeSet<String>> {
    let rules = policy["spec"]["ingress"].as_array().expect("rules");
    let of = |rule: &Value| {
        let from = rule["from"].as_array().into_iter().flatten();
        let components: BTreeSet<String> = from
            .flat_map(|from| {
                assert_eq!(from["podSelector"]["matchLabels"][labels::NAME], labels::NAME_VALUE);
                let expression = &from["podSelector"]["matchExpressions"][0];
                assert_eq!(
                    (&expression["key"], &expression["operator"]),
                    (&labels::COMPONENT.into(), &"In".into())
                );
                texts(&expression["values"]).into_iter().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        let ports = rule["ports"].as_array().expect("ports").clone();
        ports
            .into_iter()
            .map(move |port| (port["port"].as_u64().expect("a number"), components.clone()))
            .collect::<Vec<_>>()
    };
    rules.iter().flat_map(of).collect()
}

#[test]
fn networks_let_in_what_the_programs_listen_on_and_nothing_else() {
    let listening = listening();
    let mut covered = BTreeSet::new();
    for policy in POLICIES.iter().flat_map(|text| documents(text)) {
        let selected = &policy["spec"]["podSelector"]["matchLabels"];
        let component = selected[labels::COMPONENT].as_str().expect("a component");
        assert_eq!(
            (&selected[labels::NAME], &policy["spec"]["policyTypes"]),
            (&labels::NAME_VALUE.into(), &serde_json::json!(["Ingress"]))
        );
        let ports: BTreeSet<u64> = lets_in(&policy).into_keys().collect();
        assert_eq!(Some(&ports), listening.get(component), "{component}");
        covered.insert(component.to_owned());
    }
    assert_eq!(covered, listening.keys().cloned().collect());
}

#[test]
fn servers_are_reached_by_each_other_the_mounts_and_the_operator_alone() {
    for policy in documents(POLICIES[1]) {
        let component =
            policy["metadata"]["labels"][labels::COMPONENT].as_str().expect("a component").to_owned();
        let (own, http, comes) = if component == Component::Metadata.as_str() {
            (
                ports::METADATA,
                ports::METADATA_HTTP,
                vec!["metadata", "mount-host", "operator", "storage", "tool"],
            )
        } else {
            (ports::STORAGE, ports::STORAGE_HTTP, vec!["metadata", "mount-host", "storage"])
        };
        let lets_in = lets_in(&policy);
        let of = |port: u16| {
            lets_in.get(&port.into()).expect("a rule").iter().map(String::as_str).collect::<Vec<_>>()
        };
        assert_eq!((of(own), of(http)), (comes, Vec::new()), "{component}");
        // Only the servers of volumes are in their namespace; the others are recognised by theirs, which tenants can't give away.
        for from in policy["spec"]["ingress"][0]["from"].as_array().expect("who") {
            let values = texts(&from["podSelector"]["matchExpressions"][0]["values"]);
            let is_of_system = values.contains("mount-host");
            let namespace = &from["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"];
            assert_eq!(namespace == "atoll-system", is_of_system, "{from}");
        }
    }
}
