//! Whoever reads a module reads what it uses; where modules use each other in a circle, that is all of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Finding, Repository, Verdict};

/// Circles that there are, by the folder of their crate. None may be added, and none of these may grow; one that has become
/// smaller is a finding, too: it stays as small as it is.
const CIRCLES: &[(&str, &[&str])] = &[
    // An operation is one file: what it is, and how it is carried out, for which it needs records; and records have outcomes.
    (
        "fs/core",
        &[
            "check",
            "chunks",
            "commands",
            "extents",
            "fsck",
            "keys",
            "locks",
            "namespace",
            "purge",
            "query",
            "records",
            "sessions",
            "txn",
            "volume",
        ],
    ),
    ("fs/proto", &["client", "direct", "peer", "server"]),
    ("fs/proto", &["frame", "secure"]),
    ("fs/proto", &["handshake", "transport"]),
    ("fs/proto", &["metadata", "queries"]),
    ("fs/raft", &["flush", "group", "machine", "snapshot"]),
    ("fs/raft", &["log_store", "recovery", "writer"]),
    // The leader's value holds what workers keep for a term, and they get it from the node.
    ("fs/metadata", &["leader", "node", "workers"]),
    ("fs/storage", &["copier", "service"]),
    ("fs/client", &["data", "write"]),
    ("fs/fuse", &["bundle", "notify", "session", "slots"]),
    ("fs/atoll-fs", &["mount", "served"]),
    ("csi", &["holder", "mount_host"]),
    ("operator", &["caches", "unreadable"]),
    ("operator", &["disk", "nodes", "observe", "validate"]),
    ("hack/provisioner", &["decide", "object"]),
];

/// No circles between a crate's modules. Between crates cargo allows none.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    let folders: Vec<&str> = repository.graph.members.values().map(String::as_str).collect();
    vec![known(&folders.iter().flat_map(|folder| circles(repository, folder)).collect(), CIRCLES)]
}

/// A crate's folder, and modules of it that use each other in a circle.
type Circle = (String, BTreeSet<String>);

fn known(found: &BTreeSet<Circle>, listed: &[(&str, &[&str])]) -> Verdict {
    let listed: BTreeSet<Circle> = listed
        .iter()
        .map(|(folder, modules)| {
            ((*folder).to_owned(), modules.iter().map(|name| (*name).to_owned()).collect())
        })
        .collect();
    let shown =
        |modules: &BTreeSet<String>| modules.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let new = found.difference(&listed).map(|(folder, modules)| {
        Finding::new(folder, format!("{} use each other in a circle", shown(modules)))
    });
    let gone = listed.difference(found).map(|(folder, modules)| {
        Finding::new(
            folder,
            format!("the circle of {} is another one or none: list what there is", shown(modules)),
        )
    });
    Verdict {
        rule: "a crate's modules don't use each other in a circle, but for the circles that hack/tidy lists",
        instead: "move what both need into a module below them, or what only one needs to that one",
        findings: new.chain(gone).collect(),
    }
}

/// The circles among the top modules of the crate in `folder`.
fn circles(repository: &Repository, folder: &str) -> Vec<Circle> {
    let source = format!("{folder}/src/");
    let module_of = |path: &str| -> Option<String> {
        let first = path.strip_prefix(&source)?.split('/').next()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (!matches!(name, "lib" | "main" | "bin")).then(|| name.to_owned())
    };
    let modules: BTreeSet<String> = repository.sources.keys().filter_map(|path| module_of(path)).collect();
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, mention) in repository.code(&source[..source.len() - 1]) {
        let Some(from) = module_of(path).and_then(|name| modules.get(&name)) else { continue };
        let is_top = path[source.len()..].matches('/').count() == 0;
        let used = match mention.parts.as_slice() {
            [root, name, ..] if root == "crate" || (root == "super" && is_top) => modules.get(name),
            _ => None,
        };
        if let Some(to) = used.filter(|to| *to != from) {
            uses.entry(from).or_default().insert(to);
        }
    }
    // Two modules are in the same circle if each is reached from the other.
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        uses.keys().map(|from| (*from, reach(&uses, from))).collect();
    let mut found: BTreeSet<BTreeSet<String>> = BTreeSet::new();
    for (from, to) in &reached {
        let mutual = to.iter().filter(|other| reached.get(*other).is_some_and(|back| back.contains(from)));
        let circle: BTreeSet<String> = mutual.map(|name| (*name).to_owned()).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().map(|circle| (folder.to_owned(), circle)).collect()
}

fn reach<'a>(uses: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let mut next: Vec<&str> = uses.get(from).into_iter().flatten().copied().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(uses.get(module).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let repository = Repository::planted(files);
        let found = circles(&repository, "a");
        found.into_iter().map(|(_, modules)| modules.into_iter().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn a_circle_is_found_whichever_way_its_modules_are_named() {
        let files = [
            ("a/src/lib.rs", "mod b; mod c; mod d; mod e;"),
            ("a/src/b.rs", "use crate::{c::X, d};"),
            ("a/src/c/deep.rs", "fn f() { crate::d::g() }"),
            ("a/src/d.rs", "use super::b; use crate::e;"),
            ("a/src/e.rs", "struct E;"),
        ];
        assert_eq!(found(&files), ["b c d"]);
    }

    #[test]
    fn tests_and_modules_of_modules_make_none() {
        let files = [
            ("a/src/lib.rs", "mod b; mod c;"),
            ("a/src/b.rs", "use crate::c;"),
            ("a/src/c.rs", "mod b; #[cfg(test)] mod tests { use crate::b; }"),
            ("a/src/c/b.rs", "use super::b; use crate::c;"),
        ];
        assert!(found(&files).is_empty());
    }

    #[test]
    fn a_circle_that_is_another_one_is_found() {
        let circle = |modules: &[&str]| {
            ("a".to_owned(), modules.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>())
        };
        let there = BTreeSet::from([circle(&["b", "c"]), circle(&["d", "e"])]);
        let places = known(&there, &[("a", &["b", "c"]), ("a", &["d", "e", "f"])]).findings;
        assert_eq!(places.len(), 2, "{places:?}");
        assert!(known(&there, &[("a", &["c", "b"]), ("a", &["d", "e"])]).findings.is_empty());
    }
}
