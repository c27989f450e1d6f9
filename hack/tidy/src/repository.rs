//! What rules look at: the workspace, and every file of the repository that is text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::source::{self, Mention, Source, Text};
use crate::workspace::{self, Graph};

/// Files that rules read, by the end of their name.
const TEXTS: &[&str] = &[".rs", ".sh", ".md", ".toml", ".yaml", ".json", "Makefile"];
/// Folders that hold what was built or what git keeps.
const NOT_OURS: &[&str] = &[".git", "target"];
/// Folders of a crate whose programs are no part of what is shipped.
const TEST_FOLDERS: &[&str] = &["tests", "benches", "examples"];

/// A repository, read whole.
#[derive(Debug, Default)]
pub struct Repository {
    /// The workspace with the default features.
    pub graph: Graph,
    /// The workspace without them: the mount alone.
    pub bare_graph: Graph,
    /// What programs are compiled of: "name version features".
    pub programs: BTreeSet<String>,
    /// What programs and tests are compiled of.
    pub programs_and_tests: BTreeSet<String>,
    /// Every file, by its path in the repository.
    pub files: BTreeMap<String, String>,
    /// Every path in the repository, of files and folders of any kind.
    pub paths: BTreeSet<String>,
    /// Every Rust file, by its path in the repository.
    pub sources: BTreeMap<String, Source>,
    /// The Rust files that only tests are made of.
    test_files: BTreeSet<String>,
}

impl Repository {
    /// The repository that this crate is in, as it lies on the disk.
    ///
    /// # Errors
    /// What cannot be read, in words.
    pub fn here() -> Result<Self, String> {
        // All clones of a machine may share one build folder: which one this is is known only at run time.
        let manifest = std::env::var("CARGO_MANIFEST_DIR").map_err(|_| "run this with cargo test")?;
        let root = PathBuf::from(manifest).join("../..");
        let root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
        let (mut files, mut paths) = (BTreeMap::new(), BTreeSet::new());
        read_folder(&root, &root, &mut files, &mut paths)?;
        let mut repository = Self::of_files(files)?;
        repository.paths = paths;
        repository.graph = workspace::graph(&root, &[])?;
        repository.bare_graph = workspace::graph(&root, &["--no-default-features"])?;
        repository.programs = workspace::compiled(&root, "normal,build")?;
        repository.programs_and_tests = workspace::compiled(&root, "normal,build,dev")?;
        Ok(repository)
    }

    /// A repository of these files, without crates.
    ///
    /// # Errors
    /// The Rust file that cannot be read.
    pub fn of_files(files: BTreeMap<String, String>) -> Result<Self, String> {
        let mut sources = BTreeMap::new();
        for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".rs")) {
            sources.insert(path.clone(), source::read(text).map_err(|error| format!("{path}: {error}"))?);
        }
        let test_files = test_files(&sources);
        let paths = files.keys().cloned().collect();
        Ok(Self { files, paths, sources, test_files, ..Self::default() })
    }

    /// A repository of these files, for the tests of rules.
    ///
    /// # Panics
    /// If a Rust file among them cannot be read.
    #[cfg(test)]
    #[must_use]
    pub fn planted(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        Self::of_files(files).expect("Rust files")
    }

    /// The paths and macros in code below `folder` (`""`: everywhere) that is no test's, with the file of each.
    pub fn code<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = (&'a str, &'a Mention)> {
        let files = self.sources.iter().filter(move |(path, _)| is_below(path, folder));
        files.filter(|(path, _)| !self.is_test(path)).flat_map(|(path, source)| {
            source
                .mentions
                .iter()
                .filter(|mention| !mention.in_test)
                .map(move |mention| (path.as_str(), mention))
        })
    }

    /// The strings of code that is no test's, and the documentation that programs show to their users, with the file of
    /// each.
    pub fn shown_texts(&self) -> impl Iterator<Item = (&str, &Text)> {
        let files = self.sources.iter().filter(|(path, _)| !self.is_test(path));
        files.flat_map(|(path, source)| {
            let docs: &[Text] = if source.docs_are_shown() { &source.docs } else { &[] };
            let texts = source.strings.iter().chain(docs).filter(|text| !text.in_test);
            texts.map(move |text| (path.as_str(), text))
        })
    }

    fn is_test(&self, path: &str) -> bool {
        self.test_files.contains(path) || path.split('/').any(|part| TEST_FOLDERS.contains(&part))
    }
}

/// Whether a file is `folder` or in it.
#[must_use]
pub fn is_below(path: &str, folder: &str) -> bool {
    folder.is_empty()
        || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The files of modules that are declared under `#[cfg(test)]`.
fn test_files(sources: &BTreeMap<String, Source>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, source) in sources {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = match name {
            "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
            _ => path.trim_end_matches(".rs").to_owned(),
        };
        for module in &source.test_modules {
            let file = format!("{folder}/{module}.rs");
            let inside = format!("{folder}/{module}");
            found.extend(sources.keys().filter(|path| **path == file || is_below(path, &inside)).cloned());
        }
    }
    found
}

fn read_folder(
    root: &Path,
    folder: &Path,
    files: &mut BTreeMap<String, String>,
    paths: &mut BTreeSet<String>,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let kind = entry.file_type().map_err(failed)?;
        let short = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if NOT_OURS.contains(&name.as_ref()) {
            continue;
        }
        paths.insert(short.clone());
        if kind.is_dir() {
            read_folder(root, &path, files, paths)?;
        } else if kind.is_file() && TEXTS.iter().any(|end| name.ends_with(end)) {
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            files.insert(short, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_no_test_alone_is_made_of() {
        let repository = Repository::planted(&[
            ("fs/a/src/lib.rs", "mod b; #[cfg(test)] mod checks; one::x();"),
            ("fs/a/src/b.rs", "#[cfg(test)] mod tests; two::x();"),
            ("fs/a/src/checks.rs", "three::x();"),
            ("fs/a/src/b/tests.rs", "four::x();"),
            ("fs/a/src/b/tests/deep.rs", "five::x();"),
            ("fs/a/src/b/real.rs", "six::x();"),
            ("fs/a/tests/whole.rs", "seven::x();"),
            ("fs/ab/src/lib.rs", "eight::x();"),
        ]);
        let found: Vec<_> = repository.code("fs/a").filter(|(_, mention)| mention.matches("*::x")).collect();
        let found: Vec<_> = found.iter().map(|(_, mention)| mention.parts[0].as_str()).collect();
        assert_eq!(found, ["two", "six", "one"]);
    }
}
