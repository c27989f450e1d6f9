//! Which crate may know which: the arrows of ARCHITECTURE.md, and what is absent below them.

use std::collections::{BTreeMap, BTreeSet};

use crate::workspace::Graph;
use crate::{Finding, Repository, Verdict};

/// What a crate of the workspace may depend on.
struct Room {
    name: &'static str,
    /// The crates of the workspace that it may name as dependencies. It need not.
    arrows: &'static [&'static str],
    /// Crates that it must not reach by any way; `kube-*` is every name that begins so.
    absent: &'static [&'static [&'static str]],
    /// Why not.
    why: &'static str,
}

const KUBERNETES: &[&str] = &["kube", "kube-*", "k8s-openapi", "tonic", "tonic-*"];
const SERVERS: &[&str] = &["openraft", "openraft-*", "rocksdb", "librocksdb-sys"];
const KERNEL: &[&str] = &["fuser"];
/// What would bring I/O, a clock or randomness.
const EFFECTS: &[&str] = &["tokio", "tokio-*", "mio", "nix", "rand", "rand_*", "getrandom"];
const EFFECTS_BUT_CHANCE: &[&str] = &["tokio", "tokio-*", "mio", "parking_lot"];

/// Every crate of the workspace.
const ROOMS: &[Room] = &[
    Room {
        name: "atoll-faults",
        arrows: &[],
        absent: &[&["*"]],
        why: "it is under all others, the core among them",
    },
    Room {
        name: "atoll-blocking",
        arrows: &[],
        absent: &[KUBERNETES, SERVERS, KERNEL],
        why: "it says where work is done, not which",
    },
    Room {
        name: "atoll-core",
        arrows: &["atoll-faults"],
        absent: &[EFFECTS, KUBERNETES, SERVERS, KERNEL],
        why: "the core decides; it has no I/O, no clock, no randomness",
    },
    Room {
        name: "atoll-proto",
        arrows: &["atoll-blocking", "atoll-core"],
        absent: &[KUBERNETES, SERVERS, KERNEL],
        why: "the operator and the CSI driver build on it",
    },
    Room {
        name: "atoll-raft",
        arrows: &["atoll-blocking", "atoll-faults"],
        absent: &[KUBERNETES, &["rocksdb", "librocksdb-sys"], KERNEL],
        why: "it is the slowest crate to compile and must change rarely; entries are opaque bytes to it",
    },
    Room {
        name: "base2histogram",
        arrows: &[],
        absent: &[&["*"]],
        why: "it is what openraft counts in, in the place of a crate that takes 26 MiB for it",
    },
    Room {
        name: "atoll-metadata",
        arrows: &["atoll-blocking", "atoll-core", "atoll-faults", "atoll-proto", "atoll-raft"],
        absent: &[KUBERNETES, KERNEL],
        why: "a metadata server knows records, not mounts and not Kubernetes",
    },
    Room {
        name: "atoll-storage",
        arrows: &["atoll-blocking", "atoll-core", "atoll-faults", "atoll-proto"],
        absent: &[KUBERNETES, SERVERS, KERNEL],
        why: "a storage server knows chunks, not metadata",
    },
    Room {
        name: "atoll-client",
        arrows: &["atoll-blocking", "atoll-core", "atoll-faults", "atoll-proto"],
        absent: &[KUBERNETES, SERVERS, KERNEL],
        why: "a client builds without the servers and without a kernel",
    },
    Room {
        name: "atoll-fuse",
        arrows: &["atoll-client", "atoll-core"],
        absent: &[KUBERNETES, SERVERS],
        why: "the mount builds without the servers",
    },
    Room {
        name: "atoll-fs",
        arrows: &[
            "atoll-blocking",
            "atoll-client",
            "atoll-core",
            "atoll-fuse",
            "atoll-metadata",
            "atoll-proto",
            "atoll-storage",
        ],
        absent: &[KUBERNETES],
        why: "the file system knows nothing of Kubernetes",
    },
    Room {
        name: "atoll-sim",
        arrows: &[
            "atoll-blocking",
            "atoll-client",
            "atoll-core",
            "atoll-metadata",
            "atoll-faults",
            "atoll-proto",
            "atoll-raft",
            "atoll-storage",
        ],
        absent: &[KUBERNETES, KERNEL],
        why: "a simulated world has no kernel and no Kubernetes",
    },
    Room {
        name: "atoll-crds",
        arrows: &[],
        absent: &[SERVERS, KERNEL],
        why: "it names things, and everybody has to be able to build on it",
    },
    Room {
        name: "atoll-operator",
        arrows: &["atoll-core", "atoll-crds", "atoll-proto"],
        absent: &[SERVERS, KERNEL],
        why: "of the file system it knows messages and types alone",
    },
    Room {
        name: "atoll-csi",
        arrows: &["atoll-core", "atoll-crds", "atoll-fuse", "atoll-proto"],
        absent: &[SERVERS],
        why: "of the file system it knows messages, the device and the bundle of a mount",
    },
    Room {
        name: "kubectl-atoll",
        arrows: &["atoll-crds"],
        absent: &[SERVERS, KERNEL],
        why: "it shows what the custom resources say",
    },
    Room {
        name: "atoll-e2e",
        arrows: &["atoll-crds"],
        absent: &[SERVERS, KERNEL],
        why: "it sees what a user of Kubernetes sees",
    },
    Room {
        name: "atoll-bench",
        arrows: &[],
        absent: &[KUBERNETES, SERVERS, KERNEL],
        why: "it measures mounted file systems, whichever they are",
    },
    Room {
        name: "atoll-fuzz",
        arrows: &[
            "atoll-core",
            "atoll-crds",
            "atoll-csi",
            "atoll-fuse",
            "atoll-proto",
            "atoll-raft",
            "atoll-storage",
        ],
        absent: &[&["rocksdb", "librocksdb-sys"]],
        why: "it reads bytes, and stores none",
    },
    Room {
        name: "atoll-provisioner",
        arrows: &[],
        absent: &[SERVERS, KERNEL],
        why: "it stands in for somebody else's driver",
    },
    Room {
        name: "atoll-manifests",
        arrows: &[],
        absent: &[KUBERNETES, SERVERS, KERNEL],
        why: "it compares texts that others rendered",
    },
    Room {
        name: "atoll-shuttle",
        arrows: &[],
        absent: &[EFFECTS_BUT_CHANCE, KUBERNETES, SERVERS, KERNEL],
        why: "it includes sources word for word, with shuttle's locks in the place of the real ones",
    },
    Room {
        name: "atoll-tidy",
        arrows: &[],
        absent: &[KUBERNETES, SERVERS, KERNEL],
        why: "rules are checked in seconds",
    },
];

/// Crates from elsewhere that one crate of the workspace alone names, so that there is one way to use them.
const OWNED: &[(&str, &str)] = &[
    ("openraft", "atoll-raft"),
    ("rocksdb", "atoll-metadata"),
    ("fuser", "atoll-fuse"),
    ("snow", "atoll-proto"),
];

/// The arrows, what is absent, and what would be compiled twice.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    let graph = &repository.graph;
    let mut absences = absent(graph, ROOMS);
    let bare = Room {
        name: "atoll-fs",
        arrows: &[],
        absent: &[SERVERS],
        why: "the mount alone builds without RocksDB (--no-default-features)",
    };
    absences.extend(absent(&repository.bare_graph, &[bare]));
    vec![
        Verdict {
            rule: "every crate of the workspace has an entry in hack/tidy that says what it may know",
            instead: "add it to ROOMS in hack/tidy/src/rules/dependencies.rs, and to ARCHITECTURE.md",
            findings: entries(graph, ROOMS),
        },
        Verdict {
            rule: "arrows between crates are those of ARCHITECTURE.md",
            instead: "put what both need into a crate below them; a new arrow is a decision: draw it there first",
            findings: arrows(graph, ROOMS),
        },
        Verdict {
            rule: "what is absent from a crate is absent from all that it depends on",
            instead: "ask the crate above for it as an argument, or do it there",
            findings: absences,
        },
        Verdict {
            rule: "some crates are named by their one owner alone",
            instead: "use what the owner offers, or make it offer more",
            findings: owned(graph, OWNED),
        },
        Verdict {
            rule: "a dev-dependency adds no feature to a crate that programs are made of: cargo would compile it twice",
            instead: "give the feature to a dependency as well (see 'Not used here' in fs/atoll-fs/Cargo.toml)",
            findings: compiled_twice(&repository.programs, &repository.programs_and_tests),
        },
    ]
}

fn entries(graph: &Graph, rooms: &[Room]) -> Vec<Finding> {
    let known: BTreeSet<&str> = rooms.iter().map(|room| room.name).collect();
    let members: BTreeSet<&str> = graph.members.keys().map(String::as_str).collect();
    let missing = members.difference(&known).map(|name| Finding::new(*name, "has no entry"));
    missing
        .chain(known.difference(&members).map(|name| Finding::new(*name, "is no crate any more")))
        .collect()
}

fn arrows(graph: &Graph, rooms: &[Room]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for room in rooms {
        let named = graph.arrows.get(room.name).into_iter().flatten();
        let ours = named.filter(|name| graph.members.contains_key(*name));
        let odd = ours.filter(|name| !room.arrows.contains(&name.as_str()));
        findings.extend(odd.map(|name| Finding::new(room.name, format!("depends on {name}"))));
    }
    findings
}

fn absent(graph: &Graph, rooms: &[Room]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for room in rooms {
        for (name, way) in graph.reachable(room.name) {
            if room.absent.iter().copied().flatten().any(|pattern| is_like(name, pattern)) {
                findings.push(Finding::new(room.name, format!("{}; {}", way.join(" -> "), room.why)));
            }
        }
    }
    findings
}

fn owned(graph: &Graph, owned: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, owner) in owned {
        let users =
            graph.members.keys().filter(|user| graph.arrows.get(*user).is_some_and(|to| to.contains(*name)));
        let others = users.filter(|user| user != owner);
        findings
            .extend(others.map(|user| Finding::new(user, format!("depends on {name}, which is {owner}'s"))));
    }
    findings
}

fn compiled_twice(programs: &BTreeSet<String>, all: &BTreeSet<String>) -> Vec<Finding> {
    /// "name version" and the features of each such line.
    fn by_package(lines: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<&str>> {
        let mut found: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for line in lines {
            let mut words = line.split(' ');
            let package = [words.next(), words.next()].into_iter().flatten().collect::<Vec<_>>().join(" ");
            found.entry(package).or_default().insert(line);
        }
        found
    }
    let (programs, all) = (by_package(programs), by_package(all));
    let mut findings = Vec::new();
    for (package, with_tests) in &all {
        let Some(alone) = programs.get(package) else { continue };
        findings.extend(
            with_tests.difference(alone).map(|line| Finding::new(package, format!("in tests as '{line}'"))),
        );
    }
    findings
}

/// Whether a crate's name is the pattern, or begins as the pattern does before a `*`.
fn is_like(name: &str, pattern: &str) -> bool {
    pattern.strip_suffix('*').map_or(name == pattern, |start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Room = Room { name: "a", arrows: &["b"], absent: &[&["rocksdb", "kube-*"]], why: "why" };
    const B: Room = Room { name: "b", arrows: &[], absent: &[&["*"]], why: "why" };

    fn graph(arrows: &[(&str, &[&str])]) -> Graph {
        let name = |name: &&str| (*name).to_owned();
        Graph {
            members: ["a", "b", "c"].iter().map(|member| (name(member), format!("fs/{member}"))).collect(),
            arrows: arrows.iter().map(|(from, to)| (name(from), to.iter().map(name).collect())).collect(),
        }
    }

    #[test]
    fn a_crate_without_entry_and_an_entry_without_crate_are_found() {
        let found = entries(&graph(&[]), &[A, B, Room { name: "old", ..A }]);
        let places: Vec<&str> = found.iter().map(|finding| finding.place.as_str()).collect();
        assert_eq!(places, ["c", "old"]);
    }

    #[test]
    fn an_arrow_too_many_is_found() {
        let graph = graph(&[("a", &["b", "c", "serde"]), ("b", &["a"])]);
        assert_eq!(
            arrows(&graph, &[A, B]),
            [Finding::new("a", "depends on c"), Finding::new("b", "depends on a")]
        );
    }

    #[test]
    fn what_is_absent_is_found_however_far_away() {
        let graph =
            graph(&[("a", &["x"]), ("x", &["y"]), ("y", &["rocksdb", "kube-core", "kube"]), ("b", &["y"])]);
        let found = absent(&graph, &[A]);
        assert_eq!(found[0], Finding::new("a", "a -> x -> y -> kube-core; why"));
        assert_eq!(found[1], Finding::new("a", "a -> x -> y -> rocksdb; why"));
        assert_eq!((found.len(), absent(&graph, &[B]).len()), (2, 4));
    }

    #[test]
    fn a_second_user_of_an_owned_crate_is_found() {
        let graph = graph(&[("a", &["rocksdb"]), ("b", &["rocksdb"])]);
        assert_eq!(
            owned(&graph, &[("rocksdb", "a")]),
            [Finding::new("b", "depends on rocksdb, which is a's")]
        );
    }

    #[test]
    fn a_feature_that_only_tests_have_is_found() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let programs = lines(&["nix v1 fs", "rand v1 std"]);
        let all = lines(&["nix v1 fs", "nix v1 fs,time", "rand v1 std", "tempfile v1 default"]);
        assert_eq!(compiled_twice(&programs, &all), [Finding::new("nix v1", "in tests as 'nix v1 fs,time'")]);
    }
}
