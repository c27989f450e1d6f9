//! The workspace as cargo resolves it: its crates, their manifests and who depends on whom.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

/// The part of `cargo metadata`'s answer that rules ask about.
#[derive(Debug, Default, Deserialize)]
pub struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Option<Resolve>,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: String,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<DepKind>,
}

#[derive(Debug, Deserialize)]
struct DepKind {
    /// Absent for a normal dependency, else `dev` or `build`.
    kind: Option<String>,
}

/// Crates and the arrows between them, tests' and build scripts' dependencies left out.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The crates of the workspace, with the folder that each is in.
    pub members: BTreeMap<String, String>,
    /// The direct dependencies of every crate. Versions of one crate count as one.
    pub arrows: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// The graph in an answer of `cargo metadata`; folders are named as seen from `root`.
    #[must_use]
    pub fn new(metadata: &Metadata, root: &Path) -> Self {
        let names: BTreeMap<&str, &str> =
            metadata.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
        let name = |id: &str| names.get(id).copied().unwrap_or_default().to_owned();
        let members = metadata
            .packages
            .iter()
            .filter(|package| metadata.workspace_members.contains(&package.id))
            .map(|package| {
                let manifest = Path::new(&package.manifest_path);
                let folder = manifest.parent().and_then(|folder| folder.strip_prefix(root).ok());
                (package.name.clone(), folder.unwrap_or(Path::new("")).display().to_string())
            })
            .collect();
        let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in metadata.resolve.iter().flat_map(|resolve| &resolve.nodes) {
            let normal =
                node.deps.iter().filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            arrows.entry(name(&node.id)).or_default().extend(normal.map(|edge| name(&edge.pkg)));
        }
        Self { members, arrows }
    }

    /// The crates that `from` needs, itself left out, each with a way to it: `["atoll-core", "bytes"]`.
    #[must_use]
    pub fn reachable(&self, from: &str) -> BTreeMap<&str, Vec<&str>> {
        let mut ways: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let Some((from, _)) = self.arrows.get_key_value(from) else { return ways };
        let mut queue = VecDeque::from([vec![from.as_str()]]);
        while let Some(way) = queue.pop_front() {
            let last = way.last().copied().unwrap_or_default();
            for next in self.arrows.get(last).into_iter().flatten() {
                if next != from && !ways.contains_key(next.as_str()) {
                    let further = [way.as_slice(), &[next.as_str()]].concat();
                    ways.insert(next, further.clone());
                    queue.push_back(further);
                }
            }
        }
        ways
    }
}

/// Asks cargo for the graph of the workspace at `root`; `arguments` choose features.
///
/// # Errors
/// What cargo says if it cannot read the workspace.
pub fn graph(root: &Path, arguments: &[&str]) -> Result<Graph, String> {
    // Without a platform cargo wants the crates of Windows and Android too.
    let version = run(root, "rustc", &["-vV"])?;
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc -vV names no host")?;
    let mut all = vec!["metadata", "--format-version", "1", "--locked", "--filter-platform", host];
    all.extend_from_slice(arguments);
    let metadata: Metadata = serde_json::from_str(&run(root, &cargo(), &all)?)
        .map_err(|error| format!("cargo metadata: {error}"))?;
    Ok(Graph::new(&metadata, root))
}

/// What `cargo build` and `cargo test` compile: "name version features", one a line, for dependencies of `kinds`
/// (`normal,build`, or with `,dev`).
///
/// # Errors
/// What cargo says if it cannot read the workspace.
pub fn compiled(root: &Path, kinds: &str) -> Result<BTreeSet<String>, String> {
    let arguments =
        ["tree", "--locked", "--workspace", "--prefix", "none", "--format", "{p} {f}", "--edges", kinds];
    let tree = run(root, &cargo(), &arguments)?;
    let lines =
        tree.lines().map(|line| line.trim_end_matches(" (*)").trim_end()).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

/// The cargo that runs the test, if one does.
fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

fn run(root: &Path, program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {}: {said}", arguments.join(" ")));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("{program}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{
        "packages": [
            { "id": "a 1", "name": "a", "manifest_path": "/r/fs/a/Cargo.toml" },
            { "id": "b 1", "name": "b", "manifest_path": "/r/fs/b/Cargo.toml" },
            { "id": "c 1", "name": "c", "manifest_path": "/registry/c/Cargo.toml" },
            { "id": "d 1", "name": "d", "manifest_path": "/registry/d/Cargo.toml" }
        ],
        "workspace_members": ["a 1", "b 1"],
        "resolve": { "nodes": [
            { "id": "a 1", "deps": [
                { "pkg": "b 1", "dep_kinds": [{ "kind": null }, { "kind": "dev" }] },
                { "pkg": "d 1", "dep_kinds": [{ "kind": "dev" }] }
            ] },
            { "id": "b 1", "deps": [{ "pkg": "c 1", "dep_kinds": [{ "kind": null }] }] },
            { "id": "c 1", "deps": [] },
            { "id": "d 1", "deps": [] }
        ] }
    }"#;

    #[test]
    fn the_graph_has_the_ways_of_programs_and_not_those_of_tests() {
        let metadata: Metadata = serde_json::from_str(ANSWER).expect("an answer");
        let graph = Graph::new(&metadata, Path::new("/r"));
        assert_eq!(graph.members["a"], "fs/a");
        assert_eq!(graph.members.len(), 2);
        let reachable = graph.reachable("a");
        assert_eq!(reachable["c"], ["a", "b", "c"]);
        assert!(!reachable.contains_key("d"), "a dependency of tests alone");
    }
}
