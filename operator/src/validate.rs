//! From what was asked for to what can be: a [`Wanted`] can be built as it is, or there is a [`Problem`].

use std::collections::BTreeMap;

use atoll_core::limits::BLOCK_BYTES;
use atoll_core::records::VolumeConfig;
use atoll_crds::names::{self, Component, labels};
use atoll_crds::v1alpha1::cluster::METADATA_REPLICAS;
use atoll_crds::v1alpha1::{
    Access, Encryption, FileSystemCluster, PlacementSpec, PodOptions, Reason, Resources, WhenUnsatisfiable,
};
use atoll_crds::{Quantity, quantity::QuantityError};

use crate::config::{Images, PullPolicy, VERSION};
use crate::observe::{ClassFact, Observed};

const GIB: u64 = 1 << 30;
/// Disk of a metadata server when none is asked for: this part of the capacity…
const METADATA_PART: u64 = 20;
/// …but between these two (bytes).
const METADATA_BYTES_MIN: u64 = 2 * GIB;
const METADATA_BYTES_MAX: u64 = 100 * GIB;
/// The smallest disks that a server can work on (bytes): ballast, log segments and open chunks have to fit.
const METADATA_DISK_BYTES_MIN: u64 = GIB / 2;
const STORAGE_DISK_BYTES_MIN: u64 = GIB / 2;
/// Room beyond the data on a storage server's disk when no size is asked for: open chunks, ballast (bytes)…
const STORAGE_ROOM_BYTES: u64 = GIB;
/// …and this part of the data, for what is dead and not yet trimmed.
const STORAGE_ROOM_PART: u64 = 10;
/// Inline data may take this part of a metadata server's disk.
const INLINE_PART: u64 = 10;
/// Storage servers of one volume at most; also in the resource's schema.
pub const SERVERS_MAX: u8 = 100;

/// Why something isn't done, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word.
    pub reason: Reason,
    /// In a sentence that says what to do.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: Reason, message: impl Into<String>) -> Problem {
        Problem { reason, message: message.into() }
    }
}

/// What shall be. It can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Namespace of everything.
    pub namespace: String,
    /// Name of the cluster.
    pub name: String,
    /// Uid of the resource, for owner references.
    pub uid: String,
    /// Version that the pods run.
    pub version: String,
    /// Its image.
    pub image: String,
    /// When kubelet pulls it, unless the spec says otherwise.
    pub pull_policy: PullPolicy,
    /// How copies are kept apart.
    pub placement: PlacementSpec,
    /// Connections are encrypted.
    pub encrypt: bool,
    /// The Secret with the key.
    pub secret: String,
    /// Pods by kind.
    pub workloads: BTreeMap<Component, Workload>,
    /// What the volume is made with.
    pub volume: VolumeConfig,
}

/// Pods of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// How many, for now: those that have to be drained before they go are among them.
    pub replicas: u8,
    /// How many there shall be in the end.
    pub replicas_asked: u8,
    /// The spec says how many: the operator adds none by itself.
    pub replicas_are_fixed: bool,
    /// The disk of each.
    pub disk: Disk,
    /// The size of it that the spec names.
    pub size_asked: Option<Quantity>,
    /// What their container asks for.
    pub resources: Resources,
    /// Where they run, and what else they have, as the spec has it…
    pub asked: PodOptions,
    /// …and with the operator's defaults.
    pub pod: PodOptions,
}

/// A disk to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub size: Quantity,
    /// Its class; none: the default one.
    pub class: Option<String>,
}

impl Wanted {
    /// The pods of one kind.
    pub fn workload(&self, component: Component) -> &Workload {
        &self.workloads[&component]
    }

    /// On how many nodes the pods of a component have to be at least, so that the loss of one takes one copy, or no majority.
    pub fn domains(&self, component: Component) -> usize {
        match component {
            Component::Metadata => usize::from(self.workload(component).replicas).min(3),
            Component::Storage => self.copies(),
        }
    }

    /// Copies of every byte.
    pub fn copies(&self) -> usize {
        self.volume.copies.into()
    }
}

/// Checks everything about a spec that its schema can't.
///
/// # Errors
/// The first thing that can't be, with what to do.
pub fn validate(cluster: &FileSystemCluster, images: &Images) -> Result<Wanted, Problem> {
    let spec = &cluster.spec;
    let invalid = |message: String| Problem::new(Reason::InvalidSpec, message);
    let name = cluster.name_str();
    if !names::is_cluster_name(name) {
        return Err(invalid(format!(
            "'{name}' isn't a valid cluster name: use at most {} lower-case letters, digits and '-', \
             beginning with a letter",
            names::CLUSTER_NAME_CHARS_MAX
        )));
    }
    let size = |field: &str, quantity: &Quantity| {
        quantity.bytes().map_err(|error: QuantityError| invalid(format!("spec.{field}: {error}")))
    };
    let capacity = size("capacity", &spec.capacity)?;
    let is_made = cluster.status.as_ref().is_some_and(|status| status.bootstrapped || status.adopted);
    // What a StorageClass says of numbers and sizes is what a claim's volume begins with: nobody edits its resource.
    let is_claims = cluster.metadata.labels.as_ref().and_then(|found| found.get(labels::MANAGED_BY));
    let is_claims = is_claims.is_some_and(|by| by == labels::MANAGED_BY_CSI);
    let asked = |size: &Option<Quantity>| size.clone().filter(|_| !is_claims);
    if !METADATA_REPLICAS.contains(&spec.metadata_replicas()) {
        return Err(invalid(format!(
            "spec.metadata.replicas: {} is invalid; choose 1, 3 or 5",
            spec.metadata_replicas()
        )));
    }
    if spec.storage_replicas() < spec.copies {
        return Err(invalid(format!(
            "spec.storage.replicas: {} servers can't hold {} copies; raise replicas or lower copies",
            spec.storage_replicas(),
            spec.copies
        )));
    }
    // What its pods are told to run stays, whoever the operator is: the plan changes it, one step at a time.
    let target = target_version(cluster);
    let version = target.or(spec.version.as_deref()).unwrap_or(VERSION);
    let image = images.of(version).ok_or_else(|| {
        if target.is_some() {
            let message = format!(
                "this operator has no image of {version}, which the pods run, only of {}: add it (ATOLL_IMAGES, --images), or \
                 run an operator of that version; the pods stay as they are",
                images.versions().join(", ")
            );
            return Problem::new(Reason::UnknownVersion, message);
        }
        let message = format!(
            "spec.version: this operator has no image of {version}, only of {}; choose one of them, or \
             upgrade the operator",
            images.versions().join(", ")
        );
        Problem::new(Reason::UnknownVersion, message)
    })?;
    let backing = spec.metadata.storage.clone().unwrap_or_default();
    let metadata_bytes = match &backing.size {
        Some(asked) => {
            at_least("metadata.storage.size", size("metadata.storage.size", asked)?, METADATA_DISK_BYTES_MIN)?
        }
        None => default_metadata_bytes(capacity),
    };
    let storage_bytes = match &spec.storage.size {
        Some(asked) => {
            let bytes = at_least("storage.size", size("storage.size", asked)?, STORAGE_DISK_BYTES_MIN)?;
            let needed = capacity.saturating_mul(spec.copies.into());
            let there = bytes.saturating_mul(spec.storage_replicas().into());
            // One that is there grows as far as it can, and says what keeps it.
            if there < needed && !is_made {
                return Err(invalid(format!(
                    "spec.storage.size: {} servers of {asked} can't hold {} copies of {}; leave the size out, or make \
                     it at least {}",
                    spec.storage_replicas(),
                    spec.copies,
                    spec.capacity,
                    Quantity::from_bytes(default_storage_bytes(
                        capacity,
                        spec.copies,
                        spec.storage_replicas()
                    ))
                )));
            }
            bytes
        }
        None => default_storage_bytes(capacity, spec.copies, spec.storage_replicas()),
    };
    let mode =
        u32::from_str_radix(&spec.root.mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
            invalid(format!("spec.root.mode: '{}' isn't an octal mode such as 0755", spec.root.mode))
        })?;
    let id = |field: &str, number: i64| {
        u32::try_from(number)
            .map_err(|_| invalid(format!("spec.root.{field}: {number} isn't a user or group id")))
    };
    let volume = VolumeConfig {
        bytes_total: capacity / BLOCK_BYTES * BLOCK_BYTES,
        inodes_total: (capacity / BLOCK_BYTES).max(1024),
        copies: spec.copies,
        copies_min: spec.copies.saturating_sub(1).max(1),
        inline_budget_bytes: inline_budget(metadata_bytes),
        exclusive: spec.access == Access::Exclusive,
        root: (id("uid", spec.root.uid)?, id("gid", spec.root.gid)?, mode),
        ..VolumeConfig::default()
    };
    let metadata = Workload {
        replicas: spec.metadata_replicas(),
        replicas_asked: spec.metadata_replicas(),
        replicas_are_fixed: true,
        size_asked: asked(&backing.size),
        disk: Disk { size: Quantity::from_bytes(metadata_bytes), class: backing.storage_class_name },
        resources: spec.metadata.resources.clone().unwrap_or_else(|| default_resources(Component::Metadata)),
        asked: spec.metadata.pod.clone(),
        pod: spec.metadata.pod.over(&images.pods),
    };
    let storage = Workload {
        replicas: spec.storage_replicas(),
        replicas_asked: spec.storage_replicas(),
        replicas_are_fixed: spec.storage.replicas.is_some() && !is_claims,
        size_asked: asked(&spec.storage.size),
        disk: Disk {
            size: Quantity::from_bytes(storage_bytes),
            class: spec.storage.storage_class_name.clone(),
        },
        resources: spec.storage.resources.clone().unwrap_or_else(|| default_resources(Component::Storage)),
        asked: spec.storage.pod.clone(),
        pod: spec.storage.pod.over(&images.pods),
    };
    Ok(Wanted {
        namespace: cluster.namespace_str().to_owned(),
        name: name.to_owned(),
        uid: cluster.metadata.uid.clone().unwrap_or_default(),
        version: version.to_owned(),
        image: image.to_owned(),
        pull_policy: images.pull_policy,
        placement: spec.placement.clone(),
        encrypt: spec.encryption == Encryption::Required,
        secret: cluster.client_secret_name(),
        workloads: BTreeMap::from([(Component::Metadata, metadata), (Component::Storage, storage)]),
        volume,
    })
}

/// The version that a cluster's pods are told to run. Earlier operators wrote it where the one is now that runs.
pub fn target_version(cluster: &FileSystemCluster) -> Option<&str> {
    let status = cluster.status.as_ref()?;
    status.target_version.as_deref().or(status.version.as_deref())
}

fn at_least(field: &str, bytes: u64, min: u64) -> Result<u64, Problem> {
    if bytes >= min {
        return Ok(bytes);
    }
    let message = format!("spec.{field}: a server needs at least {}", Quantity::from_bytes(min));
    Err(Problem::new(Reason::InvalidSpec, message))
}

/// Whole GiB: what provisioners give anyway.
fn whole_gib(bytes: u64) -> u64 {
    bytes.div_ceil(GIB) * GIB
}

/// Disk of a metadata server for a volume of `capacity` bytes.
pub fn default_metadata_bytes(capacity: u64) -> u64 {
    whole_gib((capacity / METADATA_PART).clamp(METADATA_BYTES_MIN, METADATA_BYTES_MAX))
}

/// Disk of each of `servers` storage servers that keep `copies` of `capacity` bytes.
pub fn default_storage_bytes(capacity: u64, copies: u8, servers: u8) -> u64 {
    let share = capacity.saturating_mul(copies.into()).div_ceil(u64::from(servers.max(1)));
    whole_gib(share.saturating_add(share / STORAGE_ROOM_PART).saturating_add(STORAGE_ROOM_BYTES))
}

/// How much of a disk of so many bytes data may take, if there is to be room to work in.
fn share_of(disk: u64) -> u64 {
    let bytes = disk.saturating_sub(STORAGE_ROOM_BYTES);
    let parts = STORAGE_ROOM_PART + 1;
    STORAGE_ROOM_PART * (bytes / parts) + (bytes % parts).min(STORAGE_ROOM_PART - 1)
}

/// Whether disks of these sizes can keep `copies` of `capacity` bytes, no two copies of a byte on one of them. `whole`: all of
/// a disk counts, since whoever asked for its size has left room to work in.
pub fn holds_with_room(disks: &[u64], copies: u8, capacity: u64, whole: bool) -> bool {
    let share = |disk: u64| if whole { disk } else { share_of(disk) };
    let there: u128 = disks.iter().map(|disk| u128::from(share(*disk).min(capacity))).sum();
    there >= u128::from(capacity) * u128::from(copies)
}

/// Bytes of inline data, for a metadata server's disk of so many.
pub fn inline_budget(disk: u64) -> u64 {
    disk / INLINE_PART
}

/// What a container asks for when the spec doesn't say: little, so that small clusters can have many volumes, and
/// no limit of CPU, which would be a limit of the volume's speed.
fn default_resources(component: Component) -> Resources {
    let (memory, limit) = match component {
        Component::Metadata => ("128Mi", "1Gi"),
        Component::Storage => ("96Mi", "1Gi"),
    };
    Resources {
        requests: BTreeMap::from([("cpu".into(), "25m".into()), ("memory".into(), memory.into())]),
        limits: BTreeMap::from([("memory".into(), limit.into())]),
    }
}

/// Whether the Kubernetes cluster has what a volume that isn't made yet needs.
///
/// # Errors
/// What is missing.
pub fn check_surroundings(wanted: &Wanted, seen: &Observed) -> Result<(), Problem> {
    for component in Component::ALL {
        if !seen.statefulsets.contains_key(&component) {
            check_class(component, wanted.workload(component).disk.class.as_deref(), &seen.classes)?;
        }
    }
    if wanted.placement.when_unsatisfiable == WhenUnsatisfiable::ScheduleAnyway {
        return Ok(());
    }
    let too_few = |message: String| Err(Problem::new(Reason::TooFewNodes, message));
    let (copies, there) = (wanted.copies(), seen.nodes_usable);
    if copies > there {
        return too_few(format!(
            "{copies} copies need {copies} nodes, and pods can run on {there}: lower copies (for a PVC: use a \
             StorageClass with fewer copies, such as atoll-single), or add nodes"
        ));
    }
    let needed = wanted.domains(Component::Metadata);
    if needed > there {
        return too_few(format!(
            "{needed} nodes are needed for the metadata servers, and pods can run on {there}: set metadata.replicas to 1, add \
             nodes, or set placement.whenUnsatisfiable to ScheduleAnyway"
        ));
    }
    Ok(())
}

fn check_class(component: Component, class: Option<&str>, classes: &[ClassFact]) -> Result<(), Problem> {
    let field = match component {
        Component::Metadata => "spec.metadata.storage.storageClassName",
        Component::Storage => "spec.storage.storageClassName",
    };
    let found = match class {
        Some(name) => classes.iter().find(|class| class.name == name).ok_or_else(|| {
            let known: Vec<&str> = usable(classes).collect();
            format!("{field}: StorageClass '{name}' doesn't exist; choose among: {}", listed(&known))
        }),
        None => classes.iter().find(|class| class.is_default).ok_or_else(|| {
            let known: Vec<&str> = usable(classes).collect();
            format!("there is no default StorageClass: name one in {field}; choose among: {}", listed(&known))
        }),
    }
    .map_err(|message| Problem::new(Reason::StorageClassMissing, message))?;
    if found.provisioner == names::DRIVER_NAME {
        let message = format!(
            "{field}: the StorageClass '{}' is Atoll's own, so the cluster's disks would need a cluster \
             themselves; name a class of disks",
            found.name
        );
        return Err(Problem::new(Reason::StorageClassRefused, message));
    }
    Ok(())
}

fn usable(classes: &[ClassFact]) -> impl Iterator<Item = &str> {
    classes.iter().filter(|class| class.provisioner != names::DRIVER_NAME).map(|class| class.name.as_str())
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn problem(change: impl FnOnce(&mut FileSystemCluster)) -> Problem {
        let mut cluster = testing::cluster("1Gi");
        change(&mut cluster);
        validate(&cluster, &testing::images()).expect_err("refused")
    }

    #[test]
    fn a_capacity_alone_can_be_built() {
        let wanted = validate(&testing::cluster("10Gi"), &testing::images()).expect("valid");
        assert_eq!(wanted.version, VERSION);
        let storage = wanted.workload(Component::Storage);
        assert_eq!((storage.replicas, storage.disk.size.as_str()), (3, "12Gi"));
        let metadata = wanted.workload(Component::Metadata);
        assert_eq!((metadata.replicas, metadata.disk.size.as_str()), (3, "2Gi"));
        assert_eq!(
            (wanted.volume.bytes_total, wanted.volume.copies, wanted.volume.copies_min),
            (10 << 30, 3, 2)
        );
        assert_eq!(wanted.volume.inline_budget_bytes, (2 << 30) / 10);
        assert_eq!(wanted.volume.root, (0, 0, 0o755));
    }

    #[test]
    fn disks_are_large_enough_for_what_they_shall_hold() {
        for (capacity, copies, servers) in
            [(1 << 30, 1, 1), (100 << 30, 2, 5), (1 << 40, 3, 3), (1 << 50, 5, 100)]
        {
            let bytes = default_storage_bytes(capacity, copies, servers);
            assert!(
                bytes * u64::from(servers) > capacity * u64::from(copies),
                "{capacity} {copies} {servers}"
            );
            assert_eq!(bytes % GIB, 0);
        }
        assert_eq!(default_metadata_bytes(1 << 30), METADATA_BYTES_MIN);
        assert_eq!(default_metadata_bytes(1 << 50), METADATA_BYTES_MAX);
        assert_eq!(default_metadata_bytes(100 << 30), 5 << 30);
    }

    #[test]
    fn what_a_disk_was_made_for_it_holds_and_copies_need_different_disks() {
        for (capacity, copies, servers) in
            [(1 << 30, 1, 1), (100 << 30, 2, 5), ((1 << 40) + 4096, 3, 3), (1 << 50, 5, 100), (7 << 30, 2, 3)]
        {
            let disks = vec![default_storage_bytes(capacity, copies, servers); servers.into()];
            assert!(holds_with_room(&disks, copies, capacity, false), "{capacity} {copies} {servers}");
            assert!(!holds_with_room(&disks[1..], copies, capacity, false) || servers == 100);
        }
        assert_eq!(share_of(GIB + 11 * GIB), 10 * GIB);
        assert_eq!(share_of(5), 0);
        // 30 GiB in all, but only 11 of them are beside the large one.
        assert!(holds_with_room(&[20 << 30, 6 << 30, 5 << 30], 2, 11 << 30, true));
        assert!(!holds_with_room(&[20 << 30, 6 << 30, 5 << 30], 2, 12 << 30, true));
        assert!(!holds_with_room(&[20 << 30, 6 << 30, 5 << 30], 2, 11 << 30, false));
    }

    #[test]
    fn a_volume_that_is_there_may_ask_for_more_than_its_disks_were_named_for() {
        let mut cluster = testing::cluster("1Gi");
        cluster.spec.storage.size = Some("600Mi".into());
        assert!(validate(&cluster, &testing::images()).is_err());
        cluster.status.get_or_insert_default().bootstrapped = true;
        let wanted = validate(&cluster, &testing::images()).expect("valid");
        assert_eq!(wanted.workload(Component::Storage).size_asked, Some("600Mi".into()));
        // A claim's volume begins with what its StorageClass says.
        let managed = (labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_CSI.to_owned());
        cluster.metadata.labels = Some([managed].into());
        cluster.spec.storage.replicas = Some(3);
        let storage =
            validate(&cluster, &testing::images()).expect("valid").workloads[&Component::Storage].clone();
        assert_eq!((storage.size_asked, storage.replicas_are_fixed, storage.replicas), (None, false, 3));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_do() {
        let found = problem(|cluster| cluster.spec.version = Some("9.9.9".into()));
        assert_eq!(found.reason, Reason::UnknownVersion);
        assert!(found.message.contains(VERSION), "{}", found.message);
        let found = problem(|cluster| cluster.metadata.name = Some("Ab".into()));
        assert!(found.message.contains("lower-case"), "{}", found.message);
        let found = problem(|cluster| cluster.spec.capacity = "much".into());
        assert!(found.message.contains("spec.capacity"), "{}", found.message);
        let found = problem(|cluster| cluster.spec.metadata.replicas = Some(2));
        assert!(found.message.contains("metadata.replicas"), "{}", found.message);
        let found = problem(|cluster| cluster.spec.storage.replicas = Some(2));
        assert!(found.message.contains("storage.replicas"), "{}", found.message);
        let found = problem(|cluster| cluster.spec.storage.size = Some("600Mi".into()));
        assert!(found.message.contains("at least 3Gi"), "{}", found.message);
        let found = problem(|cluster| cluster.spec.storage.size = Some("1Mi".into()));
        assert!(found.message.contains("at least 512Mi"), "{}", found.message);
        let found = problem(|cluster| cluster.spec.root.mode = "99".into());
        assert!(found.message.contains("octal"), "{}", found.message);
    }

    #[test]
    fn the_surroundings_have_to_fit() {
        let wanted = validate(&testing::cluster("1Gi"), &testing::images()).expect("valid");
        let mut seen = testing::observed("1Gi");
        assert_eq!(check_surroundings(&wanted, &seen), Ok(()));
        seen.nodes_usable = 2;
        let found = check_surroundings(&wanted, &seen).expect_err("too few");
        assert_eq!(found.reason, Reason::TooFewNodes);
        assert!(found.message.contains("3 copies need 3 nodes"), "{}", found.message);
        seen.nodes_usable = 3;
        seen.classes[0].is_default = false;
        let found = check_surroundings(&wanted, &seen).expect_err("no default");
        assert_eq!(found.reason, Reason::StorageClassMissing);
        assert!(found.message.contains("choose among: disks"), "{}", found.message);

        let named = |name: &str| {
            let mut cluster = testing::cluster("1Gi");
            cluster.spec.storage.storage_class_name = Some(name.into());
            let wanted = validate(&cluster, &testing::images()).expect("valid");
            check_surroundings(&wanted, &testing::observed("1Gi"))
        };
        assert_eq!(named("disks"), Ok(()));
        assert_eq!(named("none").expect_err("missing").reason, Reason::StorageClassMissing);
        let found = named("atoll").expect_err("our own");
        assert_eq!(found.reason, Reason::StorageClassRefused);
    }
}
