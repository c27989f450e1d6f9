//! From what was read to what is wrong and what to do. Pure.

use atoll_crds::names::{Component, DRIVER_NAME, NAMESPACE_SYSTEM};
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster, Reason};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::Serialize;

use super::facts::{
    ClaimFacts, ClusterFacts, Facts, PodFacts, claims_of, condition, containers, is_ready, node_of, said,
};

/// A volume is full from here on (per cent).
const FULL_PERCENT: i128 = 98;
/// Reasons by which the operator says no more than that it works on it, or what other causes say better.
const SAID_BETTER: [Reason; 10] = [
    Reason::Applying,
    Reason::Bootstrapping,
    Reason::VolumesPending,
    Reason::PodsStarting,
    Reason::PodsFailing,
    Reason::PodsRefused,
    Reason::ImageUnavailable,
    Reason::NodeNotReady,
    Reason::MetadataUnreachable,
    Reason::StorageUnavailable,
];

/// The kinds of causes, the deepest first: what is further down often follows from what is further up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// Atoll isn't installed.
    NotInstalled,
    /// A node with servers doesn't report.
    NodeNotReady,
    /// The operator doesn't run.
    OperatorDown,
    /// The CSI controller doesn't run.
    ControllerDown,
    /// No node plugin on the pod's node.
    NodePluginDown,
    /// No mount host on the pod's node.
    MountHostDown,
    /// The operator was told to do nothing.
    Paused,
    /// A server's image can't be had.
    ImageUnavailable,
    /// A server doesn't get enough memory.
    OutOfMemory,
    /// A server ends again and again.
    ServerCrashes,
    /// The API server refuses servers' pods.
    PodsRefused,
    /// A server's disk isn't provisioned.
    DiskPending,
    /// No node for a server.
    ServerUnschedulable,
    /// Most metadata servers are away.
    MajorityLost,
    /// What the operator says of the cluster.
    Reported,
    /// A volume without free space.
    Full,
    /// The FileSystemCluster is gone.
    ClusterMissing,
    /// The PersistentVolume is gone.
    VolumeMissing,
    /// The StorageClass doesn't exist.
    ClassMissing,
    /// No StorageClass was named, and there is no default one.
    NoDefaultClass,
    /// The driver refuses what the class or claim asks for.
    RequestRefused,
    /// A claim that nothing binds.
    ClaimUnbound,
    /// The claim waits for its first pod.
    WaitsForPod,
    /// The claim is being deleted.
    ClaimDeleting,
    /// The claim doesn't exist.
    ClaimMissing,
    /// The Secret with the key is gone.
    SecretMissing,
    /// Another node, or another pod, has the volume.
    UsedElsewhere,
    /// The mount of a running pod has ended.
    MountLost,
    /// The mount of a running pod doesn't respond.
    MountNotResponding,
    /// The mount fails for another reason.
    MountFailed,
    /// The volume isn't one of Atoll's.
    NotAtoll,
    /// No node for the pod.
    PodUnschedulable,
    /// The pod's own program or image is the trouble.
    Application,
}

/// What is wrong. The field names are a contract with programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// Which kind.
    pub kind: Kind,
    /// The object that has it.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl Cause {
    fn new(
        kind: Kind,
        object: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Cause {
        Cause { kind, object: object.into(), problem: problem.into(), remedy: remedy.into() }
    }
}

/// All causes, the deepest first.
pub fn causes(facts: &Facts) -> Vec<Cause> {
    let mut found = Vec::new();
    installed(facts, &mut found);
    for cluster in &facts.clusters {
        of_cluster(facts, cluster, &mut found);
    }
    for claim in &facts.claims {
        of_claim(facts, claim, &mut found);
    }
    if let Some(pod) = &facts.pod {
        of_pod(facts, pod, &mut found);
    }
    // Stable: those of one kind stay in the order of the objects.
    found.sort_by_key(|cause| cause.kind);
    found.dedup();
    found
}

fn installed(facts: &Facts, found: &mut Vec<Cause>) {
    let of_ours = facts.claims.iter().any(|claim| claim.stranger(&facts.system).is_none());
    let concerned = !facts.clusters.is_empty() || of_ours;
    if facts.system.driver == Some(false) && concerned {
        found.push(Cause::new(
            Kind::NotInstalled,
            format!("CSIDriver {DRIVER_NAME}"),
            "doesn't exist: Atoll isn't installed in this Kubernetes cluster",
            "install it (kubectl apply -k config/default, or the Helm chart); volumes that existed before are found again",
        ));
    }
}

fn of_cluster(facts: &Facts, facts_of: &ClusterFacts, found: &mut Vec<Cause>) {
    let object = facts_of.words();
    let Some(cluster) = &facts_of.cluster else {
        let remedy = if facts_of.kept_disks > 0 {
            format!(
                "its {} disks are kept: kubectl atoll adopt {} -n {}",
                facts_of.kept_disks, facts_of.name, facts_of.namespace
            )
        } else {
            "restore it from a backup; kubectl atoll orphans -A shows disks that are kept".to_owned()
        };
        found.push(Cause::new(Kind::ClusterMissing, object, "doesn't exist any more", remedy));
        return;
    };
    let before = found.len();
    operator(facts, cluster, &object, found);
    servers(facts, facts_of, found);
    disks(facts_of, found);
    refused(facts_of, found);
    majority(facts_of, cluster, found);
    full(cluster, &object, found);
    reported(cluster, &object, found.len() > before, found);
}

fn operator(facts: &Facts, cluster: &FileSystemCluster, object: &str, found: &mut Vec<Cause>) {
    if cluster.spec.paused {
        found.push(Cause::new(
            Kind::Paused,
            object,
            "spec.paused is true: the operator changes nothing",
            format!(
                "kubectl -n {} patch fsc {} --type merge -p '{{\"spec\":{{\"paused\":false}}}}'",
                cluster.namespace_str(),
                cluster.name_str()
            ),
        ));
    }
    if facts.system.is_ready("operator", None) == Some(false) {
        found.push(Cause::new(
            Kind::OperatorDown,
            format!("Deployment {NAMESPACE_SYSTEM}/atoll-operator"),
            "has no ready pod: nothing is created, changed or replaced; volumes that are mounted continue",
            format!("kubectl -n {NAMESPACE_SYSTEM} describe pods -l app.kubernetes.io/component=operator"),
        ));
    }
}

fn servers(facts: &Facts, facts_of: &ClusterFacts, found: &mut Vec<Cause>) {
    for pod in facts_of.pods.iter().filter(|pod| !is_ready(pod)) {
        let object = format!("pod {}/{}", facts_of.namespace, pod.name_any());
        if let Some(problem) = node_of(pod).and_then(|node| facts.system.ailing_node(node)) {
            let node = node_of(pod).unwrap_or_default();
            found.push(Cause::new(
                Kind::NodeNotReady,
                object,
                problem,
                format!(
                    "bring the node back; if it is gone for good: kubectl delete node {node}, or once it is certainly off: \
                     kubectl taint node {node} node.kubernetes.io/out-of-service=lost:NoExecute"
                ),
            ));
            continue;
        }
        if let Some((status, message)) = condition(pod, "PodScheduled")
            && status == "False"
        {
            found.push(Cause::new(
                Kind::ServerUnschedulable,
                object,
                format!("no node takes it: {message}"),
                "add nodes or free resources; copies are on different nodes by rule (docs/placement.md); tolerations and node \
                 selectors are in spec.metadata.pod and spec.storage.pod",
            ));
            continue;
        }
        found.extend(failing(pod, &object, Owner::Atoll));
    }
}

/// Whose pod it is, so whom the remedy is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Atoll,
    User,
}

/// Why a container of a pod doesn't run.
fn failing(pod: &Pod, object: &str, owner: Owner) -> Option<Cause> {
    for container in containers(pod) {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or("");
        let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or("");
        let (kind_of_image, kind_of_crash, whose) = match owner {
            Owner::Atoll => (Kind::ImageUnavailable, Kind::ServerCrashes, ""),
            Owner::User => (Kind::Application, Kind::Application, " (not a matter of its volumes)"),
        };
        if ["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"].contains(&reason) {
            return Some(Cause::new(
                kind_of_image,
                object,
                format!("image {} can't be had{whose}: {reason} {message}", container.image),
                "check the image's name and the registry; a private registry needs pull secrets (docs/placement.md)",
            ));
        }
        let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let ended = ended.or_else(|| container.state.as_ref().and_then(|state| state.terminated.as_ref()));
        let Some(ended) = ended.filter(|ended| ended.exit_code != 0) else { continue };
        if container.ready {
            continue;
        }
        let cause = ended.reason.as_deref().unwrap_or("Error");
        if cause == "OOMKilled" {
            let kind = if owner == Owner::Atoll { Kind::OutOfMemory } else { Kind::Application };
            return Some(Cause::new(
                kind,
                object,
                format!(
                    "container {} was ended since it needed more memory than its limit{whose}",
                    container.name
                ),
                match owner {
                    Owner::Atoll => {
                        "raise the limit: spec.metadata.resources or spec.storage.resources of the FileSystemCluster"
                    }
                    Owner::User => "raise the container's memory limit",
                },
            ));
        }
        let said = ended.message.as_deref().map(str::trim).filter(|said| !said.is_empty());
        return Some(Cause::new(
            kind_of_crash,
            object,
            format!(
                "container {} has ended {} times, last with exit code {}{whose}: {}",
                container.name,
                container.restart_count,
                ended.exit_code,
                said.unwrap_or("it said nothing")
            ),
            format!(
                "kubectl -n {} logs {} -c {} --previous",
                pod.namespace().unwrap_or_default(),
                pod.name_any(),
                container.name
            ),
        ));
    }
    None
}

fn disks(facts_of: &ClusterFacts, found: &mut Vec<Cause>) {
    for disk in &facts_of.disks {
        let status = disk.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        let name = disk.name_any();
        let object = format!("PersistentVolumeClaim {}/{name}", facts_of.namespace);
        if status == "Lost" {
            found.push(Cause::new(
                Kind::DiskPending,
                object,
                "its PersistentVolume doesn't exist any more",
                "the operator replaces the server; restore the PersistentVolume if it was deleted by mistake (docs/replacing.md)",
            ));
        } else if status == "Pending"
            && let Some(message) =
                said(&facts_of.events, "PersistentVolumeClaim", &name, "ProvisioningFailed")
        {
            let class = disk.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
            found.push(Cause::new(
                Kind::DiskPending,
                object,
                format!("a server's disk isn't provisioned: {message}"),
                format!(
                    "check StorageClass {} and its provisioner; another one can be named in spec.storage.storage and \
                     spec.metadata.storage before the disk exists",
                    class.as_deref().unwrap_or("(the default one)")
                ),
            ));
        }
    }
}

fn refused(facts_of: &ClusterFacts, found: &mut Vec<Cause>) {
    for set in &facts_of.sets {
        let name = set.name_any();
        let status = set.status.clone().unwrap_or_default();
        let lacks = status.replicas < set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        if lacks && let Some(message) = said(&facts_of.events, "StatefulSet", &name, "FailedCreate") {
            found.push(Cause::new(
                Kind::PodsRefused,
                format!("StatefulSet {}/{name}", facts_of.namespace),
                format!("its pods aren't created: {message}"),
                format!(
                    "change the quota, limit or policy of namespace {} that the message names; servers comply with \
                     Pod Security level restricted",
                    facts_of.namespace
                ),
            ));
        }
    }
}

fn majority(facts_of: &ClusterFacts, cluster: &FileSystemCluster, found: &mut Vec<Cause>) {
    let status = cluster.status.as_ref();
    let made = status.is_some_and(|status| status.bootstrapped);
    let replicas = i32::from(cluster.spec.metadata_replicas());
    let ready = facts_of.pods_of(Component::Metadata).filter(|pod| is_ready(pod)).count();
    // Who may not read pods has what the operator says.
    let ready = if facts_of.pods.is_empty() {
        status.and_then(|status| status.metadata.as_ref()).map_or(replicas, |metadata| metadata.ready)
    } else {
        i32::try_from(ready).unwrap_or(i32::MAX)
    };
    if made && ready * 2 <= replicas {
        found.push(Cause::new(
            Kind::MajorityLost,
            facts_of.words(),
            format!("{ready} of {replicas} metadata servers are ready: without a majority all calls wait, and nothing is lost"),
            "correct what keeps the others from starting (above); only if their disks are lost for good: \
             kubectl atoll unsafe-recovery (docs/lost-majority.md)",
        ));
    }
}

fn full(cluster: &FileSystemCluster, object: &str, found: &mut Vec<Cause>) {
    let Some(usage) = cluster.status.as_ref().and_then(|status| status.usage.as_ref()) else { return };
    for (what, used, total) in
        [("bytes", usage.bytes_used, usage.bytes_total), ("inodes", usage.inodes_used, usage.inodes_total)]
    {
        if total > 0 && i128::from(used) * 100 >= i128::from(total) * FULL_PERCENT {
            found.push(Cause::new(
                Kind::Full,
                object,
                format!("{used} of {total} {what} are in use: writes get 'No space left on device'"),
                "delete files, or expand the volume: raise spec.resources.requests.storage of its claim, or spec.capacity \
                 (docs/growing.md)",
            ));
        }
    }
}

fn reported(cluster: &FileSystemCluster, object: &str, is_explained: bool, found: &mut Vec<Cause>) {
    if cluster.status.is_none() {
        if !is_explained {
            found.push(Cause::new(
                Kind::Reported,
                object,
                "the operator has not reported its status yet",
                "wait some seconds; if it stays so, does the operator watch this namespace (docs/namespaces.md)?",
            ));
        }
        return;
    }
    let bad = [
        (ConditionType::Ready, "False"),
        (ConditionType::Available, "False"),
        (ConditionType::Degraded, "True"),
        (ConditionType::NameConflict, "True"),
        (ConditionType::UpgradeBlocked, "True"),
        (ConditionType::DeletionBlocked, "True"),
        (ConditionType::ExpansionPending, "True"),
        (ConditionType::Stalled, "True"),
    ];
    let mut told: Vec<&str> = Vec::new();
    for (kind, value) in bad {
        let Some(condition) = cluster.condition(kind).filter(|found| found.status == value) else { continue };
        let is_better = SAID_BETTER.iter().any(|reason| reason.as_str() == condition.reason);
        if told.contains(&condition.message.as_str()) || (is_explained && is_better) {
            continue;
        }
        told.push(&condition.message);
        found.push(Cause::new(
            Kind::Reported,
            object,
            format!("{} is {value}, {}: {}", kind.as_str(), condition.reason, condition.message),
            format!(
                "what the message says; more: kubectl -n {} describe fsc {}",
                cluster.namespace_str(),
                cluster.name_str()
            ),
        ));
    }
}

fn of_claim(facts: &Facts, claim: &ClaimFacts, found: &mut Vec<Cause>) {
    let object = claim.words();
    let Some(resource) = &claim.claim else {
        found.push(Cause::new(
            Kind::ClaimMissing,
            object,
            "doesn't exist, and the pod names it",
            format!("create it, or correct the name in the pod: kubectl -n {} get pvc", claim.namespace),
        ));
        return;
    };
    if let Some(stranger) = claim.stranger(&facts.system) {
        if facts.claims.len() == 1 || claim.phase() != "Bound" {
            found.push(Cause::new(
                Kind::NotAtoll,
                object,
                format!("its volume isn't an Atoll volume, but one of {stranger}"),
                format!("see its Events: kubectl -n {} describe pvc {}", claim.namespace, claim.name),
            ));
        }
        return;
    }
    if resource.metadata.deletion_timestamp.is_some() {
        found.push(Cause::new(
            Kind::ClaimDeleting,
            object.clone(),
            "is being deleted: it goes once no pod uses it, and no new pod can use it",
            "delete the pods that use it (describe shows them as 'Used By'); a deletion can't be called off",
        ));
    }
    match claim.phase() {
        "Lost" => found.push(Cause::new(
            Kind::VolumeMissing,
            object,
            "its PersistentVolume doesn't exist any more",
            "create a PersistentVolume for the FileSystemCluster (docs/csi.md, 'Existing volumes') and a claim for it; \
             kubectl atoll list -A shows the volumes there are",
        )),
        "Bound" => {}
        _ => unbound(facts, claim, &object, found),
    }
}

fn unbound(facts: &Facts, claim: &ClaimFacts, object: &str, found: &mut Vec<Cause>) {
    match claim.class_name() {
        None if facts.system.has_default_class() == Some(false) => {
            found.push(Cause::new(
                Kind::NoDefaultClass,
                object,
                "names no StorageClass, and this Kubernetes cluster has no default one",
                format!("set storageClassName; Atoll's classes: {}", facts.system.ours()),
            ));
            return;
        }
        Some("") => {
            found.push(Cause::new(
                Kind::ClaimUnbound,
                object,
                "names no StorageClass on purpose (\"\"), and no PersistentVolume fits it",
                "create a PersistentVolume that fits (docs/csi.md, 'Existing volumes'), or name a StorageClass",
            ));
            return;
        }
        Some(name) if facts.system.class(name).is_some_and(|class| class.is_none()) => {
            found.push(Cause::new(
                Kind::ClassMissing,
                object,
                format!("StorageClass {name} doesn't exist"),
                format!(
                    "create the class, or a claim that names another one; Atoll's classes: {}",
                    facts.system.ours()
                ),
            ));
            return;
        }
        _ => {}
    }
    let failed = said(&claim.events, "PersistentVolumeClaim", &claim.name, "ProvisioningFailed");
    // gRPC codes after which the same request is refused again.
    const FINAL: [&str; 5] =
        ["InvalidArgument", "OutOfRange", "AlreadyExists", "FailedPrecondition", "NotFound"];
    if let Some(message) = &failed
        && FINAL.iter().any(|code| message.contains(&format!("code = {code}")))
    {
        found.push(Cause::new(
            Kind::RequestRefused,
            object,
            format!("the driver refuses it: {message}"),
            "correct the StorageClass (it can't be changed: delete and create it) or the claim; docs/parameters.md has all \
             parameters",
        ));
        return;
    }
    if facts.system.is_ready("csi-controller", None) == Some(false) {
        found.push(Cause::new(
            Kind::ControllerDown,
            format!("Deployment {NAMESPACE_SYSTEM}/atoll-csi-controller"),
            "has no ready pod: no volumes are created, expanded or deleted",
            format!(
                "kubectl -n {NAMESPACE_SYSTEM} describe pods -l app.kubernetes.io/component=csi-controller"
            ),
        ));
        return;
    }
    let waits = said(&claim.events, "PersistentVolumeClaim", &claim.name, "WaitForFirstConsumer");
    if waits.is_some() && claim.cluster.is_none() && facts.pod.is_none() {
        found.push(Cause::new(
            Kind::WaitsForPod,
            object,
            "waits until a pod uses it, as its StorageClass says",
            "create the pod; or a class with volumeBindingMode: Immediate, as Atoll's own have",
        ));
        return;
    }
    // With a cluster, what is wrong with that is the cause.
    if claim.cluster.is_none() {
        found.push(Cause::new(
            Kind::ClaimUnbound,
            object,
            failed.map_or_else(
                || "has no volume yet, and nothing was said of it".to_owned(),
                |message| format!("has no volume yet: {message}"),
            ),
            format!(
                "wait a minute; then: kubectl -n {NAMESPACE_SYSTEM} logs -l app.kubernetes.io/component=csi-controller \
                 --all-containers"
            ),
        ));
    }
}

fn of_pod(facts: &Facts, facts_of: &PodFacts, found: &mut Vec<Cause>) {
    let pod = &facts_of.pod;
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let object = format!("pod {namespace}/{name}");
    let event = |reason: &str| said(&facts_of.events, "Pod", &name, reason);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("");
    let uses = !claims_of(pod).is_empty();
    if let Some(message) = event("VolumeMountLost") {
        found.push(Cause::new(
            Kind::MountLost,
            object.clone(),
            message,
            format!("delete the pod, so that it is created again: kubectl -n {namespace} delete pod {name}"),
        ));
    }
    if let Some(message) = event("VolumeNotResponding") {
        found.push(Cause::new(
            Kind::MountNotResponding,
            object.clone(),
            message,
            "correct what is wrong with the volume (above); calls continue by themselves",
        ));
    }
    if let Some(("False", message)) = condition(pod, "PodScheduled") {
        unscheduled(&object, message, found);
        return;
    }
    if uses && phase == "Pending" {
        on_node(facts, pod, &object, found);
        if let Some(message) = event("FailedMount").or_else(|| event("FailedAttachVolume")) {
            mount_failed(&object, &message, &namespace, found);
        }
    }
    if !is_ready(pod) && phase != "Succeeded" {
        found.extend(failing(pod, &object, Owner::User));
    }
}

fn unscheduled(object: &str, message: &str, found: &mut Vec<Cause>) {
    if message.contains("ReadWriteOncePod") {
        found.push(Cause::new(
            Kind::UsedElsewhere,
            object,
            format!("another pod uses the claim, whose mode is ReadWriteOncePod: {message}"),
            "delete the other pod; a Deployment needs strategy: Recreate",
        ));
    } else if !(message.contains("unbound immediate PersistentVolumeClaims")
        || message.contains("persistentvolumeclaim") && message.contains("not found"))
    {
        // Claims that aren't bound, or aren't there, are causes of their own.
        found.push(Cause::new(
            Kind::PodUnschedulable,
            object,
            format!("no node takes it: {message}"),
            "free resources, add nodes, or change what the pod asks for; an Atoll volume can be reached from every node",
        ));
    }
}

fn on_node(facts: &Facts, pod: &Pod, object: &str, found: &mut Vec<Cause>) {
    let Some(node) = node_of(pod) else { return };
    if let Some(problem) = facts.system.ailing_node(node) {
        found.push(Cause::new(
            Kind::NodeNotReady,
            object,
            problem,
            format!("bring the node back, or delete the pod, so that it starts elsewhere: kubectl describe node {node}"),
        ));
    }
    for (component, kind, what) in [
        ("csi-node", Kind::NodePluginDown, "atoll-csi-node, which mounts,"),
        ("mount-host", Kind::MountHostDown, "atoll-mount-host, which serves mounts,"),
    ] {
        let problem = match (
            facts.system.is_there(component, Some(node)),
            facts.system.is_ready(component, Some(node)),
        ) {
            (Some(false), _) => format!("no pod of DaemonSet {what} is on node {node}"),
            (Some(true), Some(false)) => format!("the pod of DaemonSet {what} isn't ready on node {node}"),
            _ => continue,
        };
        found.push(Cause::new(
            kind,
            object,
            problem,
            format!(
                "kubectl -n {NAMESPACE_SYSTEM} describe pods -l app.kubernetes.io/component={component} --field-selector \
                 spec.nodeName={node}"
            ),
        ));
    }
}

fn mount_failed(object: &str, message: &str, namespace: &str, found: &mut Vec<Cause>) {
    let lower = message.to_lowercase();
    let (kind, remedy) = if message.contains("strategy: Recreate") {
        (
            Kind::UsedElsewhere,
            "a volume with the mode ReadWriteOnce belongs to one node: delete the pod that uses it there; a Deployment needs \
             strategy: Recreate; for pods on several nodes create a claim with ReadWriteMany"
                .to_owned(),
        )
    } else if message.contains(&format!("driver name {DRIVER_NAME} not found")) {
        (
            Kind::NodePluginDown,
            format!(
                "the node plugin isn't registered with this node's kubelet: kubectl -n {NAMESPACE_SYSTEM} get pods -l \
                 app.kubernetes.io/component=csi-node -o wide; is kubelet's directory another one (docs/platforms.md)?"
            ),
        )
    } else if lower.contains("secret") && lower.contains("not found") {
        (
            Kind::SecretMissing,
            "the operator creates the Secret again if it has read the key: kubectl atoll status shows it; otherwise restore \
             it from a backup: without the key the disks can't be read"
                .to_owned(),
        )
    } else {
        (Kind::MountFailed, format!("kubectl atoll events -n {namespace}; kubelet tries again by itself"))
    };
    found.push(Cause::new(kind, object, format!("a volume can't be mounted: {message}"), remedy));
}
