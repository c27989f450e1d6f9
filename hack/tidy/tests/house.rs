//! The rules, on this repository.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::LazyLock;

use atoll_tidy::{Repository, Verdict, rules};

static HERE: LazyLock<Repository> = LazyLock::new(|| Repository::here().expect("the repository is readable"));

fn holds(verdicts: fn(&Repository) -> Vec<Verdict>) {
    let broken: Vec<String> = verdicts(&HERE)
        .into_iter()
        .filter(|verdict| !verdict.findings.is_empty())
        .map(|verdict| verdict.to_string())
        .collect();
    assert!(broken.is_empty(), "rules of the house are broken:\n\n{}", broken.join("\n"));
}

#[test]
fn crates_know_what_they_may() {
    holds(rules::dependencies::verdicts);
}

#[test]
fn modules_have_no_circles() {
    holds(rules::circles::verdicts);
}

#[test]
fn crates_take_the_settings_of_the_workspace() {
    holds(rules::manifests::verdicts);
}

#[test]
fn links_lead_somewhere() {
    holds(rules::links::verdicts);
}

#[test]
fn metrics_are_documented_and_alerts_have_runbooks() {
    holds(rules::metrics::verdicts);
}

#[test]
fn parameters_are_documented() {
    holds(rules::parameters::verdicts);
}

#[test]
fn promises_name_tests_and_faults_are_listed() {
    holds(rules::promises::verdicts);
}

#[test]
fn what_is_absent_is_absent() {
    holds(rules::seams::verdicts);
}

#[test]
fn files_are_short() {
    holds(rules::size::verdicts);
}

#[test]
fn nothing_is_unfinished() {
    holds(rules::unfinished::verdicts);
}

#[test]
fn words_are_those_of_the_glossary() {
    holds(rules::words::verdicts);
}

/// Reading something else than the repository would find nothing, too.
#[test]
fn the_whole_repository_is_read() {
    assert!(HERE.graph.members.len() > 15 && HERE.sources.len() > 300, "{:?}", HERE.graph.members);
    for folder in HERE.graph.members.values() {
        let file = format!("{folder}/src");
        assert!(HERE.sources.keys().any(|path| path.starts_with(&file)), "nothing of {folder}");
    }
    assert!(HERE.code("fs/storage/src/disk").any(|(_, mention)| mention.matches("std::fs")), "the real disk");
}
