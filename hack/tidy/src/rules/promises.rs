//! Documents name tests, and code names planted faults: both have to exist.

use std::collections::BTreeSet;

use crate::{Finding, Repository, Verdict};

/// The promises to applications; each names its tests as "test: `name`".
const PROMISES: &str = "SEMANTICS.md";
/// Where the planted faults are listed, each as the first string of a line.
const FAULTS: &str = "fs/faults/src/lib.rs";

/// Every named test and every named fault exists.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    vec![promises(repository), faults(repository)]
}

fn promises(repository: &Repository) -> Verdict {
    let known: BTreeSet<&str> =
        repository.sources.values().flat_map(|source| &source.tests).map(String::as_str).collect();
    let mut findings = Vec::new();
    let mut named = 0;
    for (line, text) in repository.files.get(PROMISES).into_iter().flat_map(|text| text.lines().enumerate()) {
        for (at, mark) in text.match_indices("test: ") {
            // "latest: " is no mark.
            if text[..at].ends_with(char::is_alphanumeric) {
                continue;
            }
            let rest = text[at + mark.len()..].trim_start_matches('`');
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
            let name = rest[..end].rsplit("::").next().unwrap_or_default();
            named += 1;
            if !known.contains(name) {
                findings.push(Finding::at(PROMISES, line + 1, format!("there is no test '{name}'")));
            }
        }
    }
    if named == 0 {
        findings.push(Finding::new(PROMISES, "is missing, or names no test"));
    }
    Verdict {
        rule: "every promise names a test that exists",
        instead: "name the test that proves it now; a promise that nothing proves is removed or gets a test",
        findings,
    }
}

fn faults(repository: &Repository) -> Verdict {
    let listed: BTreeSet<&str> = repository
        .files
        .get(FAULTS)
        .into_iter()
        .flat_map(|text| text.split_once("pub const ALL").map_or("", |(_, list)| list).split("];").take(1))
        .flat_map(|list| list.split('(').skip(1))
        .filter_map(|entry| entry.trim_start().strip_prefix('"')?.split('"').next())
        .collect();
    let mut made = BTreeSet::new();
    let mut findings = Vec::new();
    for (path, text) in repository.files.iter().filter(|(path, _)| path.ends_with(".rs") && *path != FAULTS) {
        for (line, text) in text.lines().enumerate() {
            for (at, call) in text.match_indices("faults::planted(\"") {
                let name = text[at + call.len()..].split('"').next().unwrap_or_default();
                made.insert(name);
                if !listed.contains(name) {
                    findings.push(Finding::at(path, line + 1, format!("there is no fault '{name}'")));
                }
            }
        }
    }
    let unused = listed.difference(&made);
    findings.extend(unused.map(|name| Finding::new(FAULTS, format!("nothing makes the fault '{name}'"))));
    Verdict {
        rule: "every planted fault that code asks for is listed, and every listed one is made somewhere",
        instead: "correct the name, or remove the fault from the list with its last place",
        findings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_does_not_exist_is_found() {
        let repository = Repository::planted(&[
            (PROMISES, "- One. `test: there`\n- Two. `test: suite::gone` test: `there` the latest: one\n"),
            ("fs/a/src/lib.rs", "#[test] fn there() {}\nfn gone() {}"),
        ]);
        let found = promises(&repository).findings;
        assert_eq!(found, [Finding::at(PROMISES, 2, "there is no test 'gone'")]);
        assert_eq!(promises(&Repository::default()).findings.len(), 1, "no promises at all");
    }

    #[test]
    fn a_fault_without_entry_and_an_entry_without_fault_are_found() {
        let repository = Repository::planted(&[
            (
                FAULTS,
                "pub const ALL: &[(&str, &str)] = &[(\"used\", \"what\"), (\n  \"unused\",\n \"what\")];\nfn x(a: (\"n\")) {}",
            ),
            (
                "fs/a/src/lib.rs",
                "fn a() { if atoll_faults::planted(\"used\") || atoll_faults::planted(\"odd\") {} }",
            ),
        ]);
        let found: Vec<String> =
            faults(&repository).findings.into_iter().map(|finding| finding.what).collect();
        assert_eq!(found, ["there is no fault 'odd'", "nothing makes the fault 'unused'"]);
    }
}
