//! The StatefulSets and their pods.

use std::collections::BTreeMap;

use atoll_core::ids::ClusterId;
use atoll_crds::names::{self, Component, annotations, env, ports, secret};
use atoll_crds::v1alpha1::placement::TOPOLOGY_KEYS;
use atoll_crds::v1alpha1::{ImagePullPolicy, Resources, WhenUnsatisfiable};
use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, KeyToPath,
    LocalObjectReference, ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile,
    SecretVolumeSource, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use serde_json::json;

use super::{compare, component_labels, created_for, disk_labels, label_selector, owned_meta};
use crate::validate::{Disk, Wanted};

/// The user and group that the servers run as; nobody else's on a node.
const USER: i64 = 65532;
/// Where a server's disk is mounted.
const DATA_PATH: &str = "/var/lib/atoll";
/// Where the key is mounted.
const KEY_PATH: &str = "/etc/atoll/key";
/// The volume with the key.
const KEY_VOLUME: &str = "key";
/// The servers' PriorityClass (`config/volumes/priority.yaml`).
const PRIORITY_CLASS: &str = "atoll-servers";
/// The program.
const PROGRAM: &str = "/usr/bin/atoll-fs";
/// How long a server may take to write everything out (seconds).
const GRACE_SECONDS: i64 = 60;
/// How long a server may take to start (seconds): a crash leaves a log to be replayed, and disks can be slow.
const STARTUP_SECONDS_MAX: i32 = 1800;

/// The StatefulSet of a component. Its disks can't be changed once it exists, so an existing one's are kept.
pub fn statefulset(
    wanted: &Wanted,
    component: Component,
    id: ClusterId,
    existing: Option<&StatefulSet>,
) -> StatefulSet {
    let workload = wanted.workload(component);
    let disk = existing.and_then(disk_of).unwrap_or_else(|| workload.disk.clone());
    // Nor can their labels and annotations: those of an earlier release, or of an earlier resource, stay.
    let marks = existing.and_then(marks_of).unwrap_or_else(|| ObjectMeta {
        labels: Some(disk_labels(wanted, component, id)),
        annotations: Some(created_for(wanted)),
        ..ObjectMeta::default()
    });
    let name = names::workload(&wanted.name, component);
    StatefulSet {
        metadata: owned_meta(wanted, name.clone(), component_labels(wanted, component)),
        spec: Some(StatefulSetSpec {
            replicas: Some(workload.replicas.into()),
            service_name: Some(name),
            selector: label_selector(wanted, component),
            // The operator decides which pod goes when: the controller's own order can deadlock on a broken roll-out.
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            revision_history_limit: Some(3),
            template: template(wanted, component, id),
            volume_claim_templates: Some(vec![claim(marks, &disk)]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// The disk that an existing StatefulSet asks for.
pub fn disk_of(existing: &StatefulSet) -> Option<Disk> {
    let templates = existing.spec.as_ref()?.volume_claim_templates.as_ref()?;
    let spec = templates.first()?.spec.as_ref()?;
    let size = spec.resources.as_ref()?.requests.as_ref()?.get("storage")?;
    Some(Disk { size: size.0.as_str().into(), class: spec.storage_class_name.clone() })
}

/// Labels and annotations of the disks that an existing StatefulSet asks for.
fn marks_of(existing: &StatefulSet) -> Option<ObjectMeta> {
    let found = &existing.spec.as_ref()?.volume_claim_templates.as_ref()?.first()?.metadata;
    Some(ObjectMeta {
        labels: found.labels.clone(),
        annotations: found.annotations.clone(),
        ..ObjectMeta::default()
    })
}

fn claim(marks: ObjectMeta, disk: &Disk) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some(names::DATA_VOLUME.to_owned()), ..marks },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: disk.class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), disk.size.clone().into())])),
                limits: None,
            }),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// A hash of what was asked for, as far as pods have to be made anew for it. What follows from this program alone, or from the
/// operator's configuration, isn't in it: another operator stops nobody's pods.
fn requested(wanted: &Wanted, component: Component) -> String {
    let workload = wanted.workload(component);
    let mut asked = json!({ "version": wanted.version, "resources": workload.resources });
    // What isn't said is left out, so that a field that a later release adds changes no hash.
    if !workload.asked.is_default() {
        asked["pod"] = json!(workload.asked);
    }
    if !wanted.placement.is_default() {
        asked["placement"] = json!(wanted.placement);
    }
    format!("{:016x}", compare::hash(&asked))
}

fn template(wanted: &Wanted, component: Component, id: ClusterId) -> PodTemplateSpec {
    let options = &wanted.workload(component).pod;
    let list = |secrets: &[LocalObjectReference]| (!secrets.is_empty()).then(|| secrets.to_vec());
    let priority = options.priority_class_name.clone().unwrap_or_else(|| PRIORITY_CLASS.to_owned());
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(joined(&options.labels, component_labels(wanted, component))),
            annotations: Some(joined(
                &options.annotations,
                BTreeMap::from([
                    (annotations::VERSION.to_owned(), wanted.version.clone()),
                    (annotations::REQUESTED.to_owned(), requested(wanted, component)),
                ]),
            )),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            affinity: options.affinity.clone(),
            node_selector: Some(joined(
                &options.node_selector,
                BTreeMap::from([("kubernetes.io/os".to_owned(), "linux".to_owned())]),
            )),
            tolerations: (!options.tolerations.is_empty()).then(|| options.tolerations.clone()),
            priority_class_name: (!priority.is_empty()).then_some(priority),
            service_account_name: options.service_account_name.clone(),
            image_pull_secrets: list(&options.image_pull_secrets),
            topology_spread_constraints: Some(apart(wanted, component)),
            containers: vec![container(wanted, component, id)],
            volumes: Some(vec![Volume {
                name: KEY_VOLUME.to_owned(),
                secret: Some(SecretVolumeSource {
                    secret_name: Some(wanted.secret.clone()),
                    default_mode: Some(0o440),
                    items: Some(vec![KeyToPath {
                        key: secret::KEY.to_owned(),
                        path: secret::KEY.to_owned(),
                        mode: None,
                    }]),
                    ..SecretVolumeSource::default()
                }),
                ..Volume::default()
            }]),
            ..PodSpec::default()
        }),
    }
}

/// `ours` and what somebody else adds to it.
fn joined(theirs: &BTreeMap<String, String>, ours: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut found = theirs.clone();
    found.extend(ours);
    found
}

/// How pods of a component are kept apart: by the topology that is asked for, on as many nodes as it takes that the loss of one
/// takes one copy, or no majority; and by zones and nodes as far as there are some.
fn apart(wanted: &Wanted, component: Component) -> Vec<TopologySpreadConstraint> {
    let placement = &wanted.placement;
    let is_rule = placement.when_unsatisfiable == WhenUnsatisfiable::DoNotSchedule;
    let domains = i32::try_from(wanted.domains(component)).unwrap_or(i32::MAX);
    let asked = TopologySpreadConstraint {
        // With fewer such nodes each gets one pod, and the others wait.
        min_domains: is_rule.then_some(domains),
        // A node that takes no pods is no place for one.
        node_taints_policy: is_rule.then(|| "Honor".to_owned()),
        ..spread(wanted, component, &placement.topology_key, placement.when_unsatisfiable)
    };
    let others = TOPOLOGY_KEYS.into_iter().filter(|key| *key != placement.topology_key);
    let others = others.map(|key| spread(wanted, component, key, WhenUnsatisfiable::ScheduleAnyway));
    [asked].into_iter().chain(others).collect()
}

fn spread(
    wanted: &Wanted,
    component: Component,
    key: &str,
    when_unsatisfiable: WhenUnsatisfiable,
) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: when_unsatisfiable.as_str().to_owned(),
        label_selector: Some(label_selector(wanted, component)),
        ..TopologySpreadConstraint::default()
    }
}

fn container(wanted: &Wanted, component: Component, id: ClusterId) -> Container {
    let port = |name: &str, port: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let asked = wanted.workload(component).pod.image_pull_policy;
    let pull_policy = asked.map_or(wanted.pull_policy.as_str(), ImagePullPolicy::as_str);
    Container {
        name: component.as_str().to_owned(),
        image: Some(wanted.image.clone()),
        image_pull_policy: Some(pull_policy.to_owned()),
        command: Some(vec![PROGRAM.to_owned(), component.as_str().to_owned()]),
        env: Some(environment(wanted, component, id)),
        ports: Some(vec![
            port(ports::NAME_SERVER, component.port()),
            port(ports::NAME_HTTP, component.http_port()),
        ]),
        resources: Some(requirements(&wanted.workload(component).resources)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        startup_probe: Some(probe("/healthz", 1, STARTUP_SECONDS_MAX)),
        readiness_probe: Some(probe("/readyz", 3, 3)),
        // Only whether the process works: without a quorum, or without the metadata service, a restart of every pod
        // would make things worse.
        liveness_probe: Some(probe("/healthz", 20, 6)),
        // What a server says last is why it doesn't start.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![
            mount(names::DATA_VOLUME, DATA_PATH, false),
            mount(KEY_VOLUME, KEY_PATH, true),
        ]),
        ..Container::default()
    }
}

fn environment(wanted: &Wanted, component: Component, id: ClusterId) -> Vec<EnvVar> {
    let is =
        |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), ..EnvVar::default() };
    let from = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                api_version: Some("v1".to_owned()),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let service = names::workload(&wanted.name, component);
    let (namespace, port) = (&wanted.namespace, component.port());
    let mut variables = vec![
        // First, since others refer to it.
        from(env::POD_NAME, "metadata.name"),
        is(env::CLUSTER, id.to_string()),
        is(env::KEY_FILE, format!("{KEY_PATH}/{}", secret::KEY)),
        is(env::DATA, format!("{DATA_PATH}/{component}")),
        is(env::LISTEN, format!("0.0.0.0:{port}")),
        is(env::ADVERTISE, format!("$({}).{service}.{namespace}.svc:{port}", env::POD_NAME)),
        is(env::HTTP, format!("0.0.0.0:{}", component.http_port())),
        is(env::LOG_FORMAT, "json".to_owned()),
    ];
    if wanted.encrypt {
        variables.push(is(env::ENCRYPT, "true".to_owned()));
    }
    match component {
        Component::Metadata => {}
        Component::Storage => {
            variables.push(from(env::NODE_NAME, "spec.nodeName"));
            // Kubernetes copies the node's zone onto its pods (1.35 and later); elsewhere this is empty.
            variables.push(from("NODE_ZONE", "metadata.labels['topology.kubernetes.io/zone']"));
            variables.push(is(env::LABELS, format!("host=$({}),zone=$(NODE_ZONE)", env::NODE_NAME)));
            variables.push(is(env::METADATA, names::metadata_address(namespace, &wanted.name)));
        }
    }
    variables
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ports::NAME_HTTP.to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn requirements(resources: &Resources) -> ResourceRequirements {
    let quantities = |from: &BTreeMap<String, atoll_crds::Quantity>| {
        let found: BTreeMap<String, _> =
            from.iter().map(|(name, quantity)| (name.clone(), quantity.clone().into())).collect();
        (!found.is_empty()).then_some(found)
    };
    ResourceRequirements {
        requests: quantities(&resources.requests),
        limits: quantities(&resources.limits),
        claims: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn built(component: Component) -> StatefulSet {
        statefulset(&testing::wanted("1Gi"), component, ClusterId(7), None)
    }

    fn pod(set: &StatefulSet) -> PodSpec {
        set.spec.clone().expect("spec").template.spec.expect("pod")
    }

    fn variable(set: &StatefulSet, name: &str) -> Option<String> {
        let variables = pod(set).containers.remove(0).env.expect("environment");
        variables.into_iter().find(|found| found.name == name).and_then(|found| found.value)
    }

    #[test]
    fn pods_keep_to_the_restricted_pod_security_standard() {
        for component in Component::ALL {
            let pod = pod(&built(component));
            let context = pod.security_context.expect("pod context");
            assert_eq!(context.run_as_non_root, Some(true));
            assert_eq!(context.seccomp_profile.expect("seccomp").type_, "RuntimeDefault");
            let container = pod.containers[0].security_context.clone().expect("container context");
            assert_eq!(container.allow_privilege_escalation, Some(false));
            assert_eq!(container.read_only_root_filesystem, Some(true));
            assert_eq!(container.capabilities.expect("capabilities").drop, Some(vec!["ALL".to_owned()]));
            assert_eq!(pod.automount_service_account_token, Some(false));
            assert!(pod.volumes.into_iter().flatten().all(|volume| volume.host_path.is_none()));
        }
    }

    #[test]
    fn the_operator_decides_which_pod_goes_and_disks_outlive_the_set() {
        for component in Component::ALL {
            let set = built(component);
            let spec = set.spec.expect("spec");
            assert_eq!(spec.pod_management_policy.as_deref(), Some("Parallel"));
            assert_eq!(spec.update_strategy.and_then(|strategy| strategy.type_).as_deref(), Some("OnDelete"));
            let retention = spec.persistent_volume_claim_retention_policy.expect("policy");
            assert_eq!(retention.when_deleted.as_deref(), Some("Retain"));
            let claim = &spec.volume_claim_templates.expect("claims")[0];
            let labels = claim.metadata.labels.as_ref().expect("labels");
            assert_eq!(labels[names::labels::CLUSTER_ID], ClusterId(7).to_string());
            assert_eq!(claim.metadata.owner_references, None);
        }
    }

    #[test]
    fn copies_are_kept_on_different_nodes_by_rule_unless_softness_is_chosen() {
        let rules = |wanted: &Wanted, component| {
            let set = statefulset(wanted, component, ClusterId(7), None);
            let found = pod(&set).topology_spread_constraints.expect("constraints");
            let brief =
                |one: TopologySpreadConstraint| (one.topology_key, one.when_unsatisfiable, one.min_domains);
            found.into_iter().map(brief).collect::<Vec<_>>()
        };
        let of = |key: &str, when: &str, domains| (key.to_owned(), when.to_owned(), domains);
        let (host, zone) = ("kubernetes.io/hostname", "topology.kubernetes.io/zone");
        let mut wanted = testing::wanted("1Gi");
        wanted.workloads.get_mut(&Component::Storage).expect("storage").replicas = 5;
        wanted.workloads.get_mut(&Component::Metadata).expect("metadata").replicas = 5;
        for component in Component::ALL {
            let expected = [of(host, "DoNotSchedule", Some(3)), of(zone, "ScheduleAnyway", None)];
            assert_eq!(rules(&wanted, component), expected);
        }
        wanted.placement.topology_key = zone.to_owned();
        wanted.placement.when_unsatisfiable = WhenUnsatisfiable::ScheduleAnyway;
        let expected = [of(zone, "ScheduleAnyway", None), of(host, "ScheduleAnyway", None)];
        assert_eq!(rules(&wanted, Component::Storage), expected);
    }

    #[test]
    fn pods_have_what_the_spec_says_and_what_is_the_operators_stays() {
        let mut wanted = testing::wanted("1Gi");
        let plain = statefulset(&wanted, Component::Storage, ClusterId(7), None);
        assert_eq!(pod(&plain).priority_class_name.as_deref(), Some("atoll-servers"));
        let hash = |set: &StatefulSet| {
            let meta = set.spec.clone().expect("spec").template.metadata.expect("meta");
            meta.annotations.expect("annotations")[annotations::REQUESTED].clone()
        };
        let options = atoll_crds::v1alpha1::PodOptions {
            priority_class_name: Some(String::new()),
            image_pull_policy: Some(ImagePullPolicy::Always),
            image_pull_secrets: vec![LocalObjectReference { name: "registry".into() }],
            labels: BTreeMap::from([
                ("team".into(), "a".into()),
                (names::labels::CLUSTER.into(), "other".into()),
            ]),
            node_selector: BTreeMap::from([("kubernetes.io/os".into(), "windows".into())]),
            ..Default::default()
        };
        // Of the operator's configuration: pods that run stay as they are.
        wanted.workloads.get_mut(&Component::Storage).expect("storage").pod = options.clone();
        let set = statefulset(&wanted, Component::Storage, ClusterId(7), None);
        assert_eq!(hash(&set), hash(&plain));
        let made = pod(&set);
        assert_eq!((made.priority_class_name, made.affinity), (None, None));
        assert_eq!(made.containers[0].image_pull_policy.as_deref(), Some("Always"));
        assert_eq!(made.image_pull_secrets.expect("secrets")[0].name, "registry");
        assert_eq!(made.node_selector.expect("selector")["kubernetes.io/os"], "linux");
        let labels = set.spec.clone().expect("spec").template.metadata.expect("meta").labels.expect("labels");
        assert_eq!((labels["team"].as_str(), labels[names::labels::CLUSTER].as_str()), ("a", "db"));
        // Of the spec: they are made anew.
        wanted.workloads.get_mut(&Component::Storage).expect("storage").asked = options;
        assert_ne!(hash(&statefulset(&wanted, Component::Storage, ClusterId(7), None)), hash(&plain));
    }

    #[test]
    fn servers_are_told_where_they_are_and_where_the_others_are() {
        let storage = built(Component::Storage);
        assert_eq!(variable(&storage, env::ADVERTISE).as_deref(), Some("$(POD_NAME).db-storage.ns.svc:7500"));
        assert_eq!(variable(&storage, env::METADATA).as_deref(), Some("db-metadata.ns.svc:7400"));
        assert_eq!(variable(&storage, env::LABELS).as_deref(), Some("host=$(NODE_NAME),zone=$(NODE_ZONE)"));
        assert_eq!(variable(&storage, env::ENCRYPT), None);
        let metadata = built(Component::Metadata);
        assert_eq!(variable(&metadata, env::METADATA), None);
        let mut wanted = testing::wanted("1Gi");
        wanted.encrypt = true;
        let set = statefulset(&wanted, Component::Metadata, ClusterId(7), None);
        assert_eq!(variable(&set, env::ENCRYPT).as_deref(), Some("true"));
    }

    #[test]
    fn the_disks_of_a_set_that_exists_stay_as_they_are() {
        let before = built(Component::Storage);
        let mut wanted = testing::wanted("1Gi");
        let storage = wanted.workloads.get_mut(&Component::Storage).expect("storage");
        storage.replicas = 5;
        storage.disk = Disk { size: "999Gi".into(), class: Some("other".into()) };
        // A resource that was created again has another uid, and a later release other labels.
        wanted.uid = "uid-2".into();
        let mut before = before;
        let claim =
            &mut before.spec.as_mut().expect("spec").volume_claim_templates.as_mut().expect("claims")[0];
        claim.metadata.labels.as_mut().expect("labels").remove(names::labels::INSTANCE);
        let after = statefulset(&wanted, Component::Storage, ClusterId(7), Some(&before));
        let claims = |set: &StatefulSet| set.spec.clone().expect("spec").volume_claim_templates;
        assert_eq!(claims(&after), claims(&before));
        assert_eq!(after.spec.expect("spec").replicas, Some(5));
    }
}
