//! Every crate takes the workspace's settings, so that one line changes all of them.

use crate::{Finding, Repository, Verdict};

/// Lines that every crate's manifest has.
const SETTINGS: &[&str] = &[
    "version.workspace = true",
    "edition.workspace = true",
    "rust-version.workspace = true",
    "license.workspace = true",
    "publish.workspace = true",
    "[lints]\nworkspace = true",
];

/// Every manifest is a member's, and takes the workspace's settings and lints.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    let (mut strangers, mut settings) = (Vec::new(), Vec::new());
    for (path, text) in repository.files.iter().filter(|(path, _)| path.ends_with("/Cargo.toml")) {
        let folder = path.trim_end_matches("/Cargo.toml");
        if !repository.graph.members.values().any(|member| member == folder) {
            strangers.push(Finding::new(path, "is in no workspace that is checked"));
        }
        // What takes the place of another crate has that one's version.
        let replaces = repository.files.iter().any(|(path, root)| {
            path == "Cargo.toml"
                && root.split_once("[patch.crates-io]").is_some_and(|(_, patches)| {
                    patches.lines().any(|line| line.contains(&format!("{{ path = \"{folder}\" }}")))
                })
        });
        let is_its_own = |setting: &&&str| !(replaces && **setting == "version.workspace = true");
        // Whole lines: rust-version is not version.
        let lines = format!("\n{text}");
        let missing =
            SETTINGS.iter().filter(is_its_own).filter(|setting| !lines.contains(&format!("\n{setting}")));
        settings.extend(
            missing.map(|setting| Finding::new(path, format!("lacks {}", setting.replace('\n', " ")))),
        );
    }
    vec![
        Verdict {
            rule: "every crate is a member of the workspace",
            instead: "add it to [workspace] members: what is outside is neither linted nor tested",
            findings: strangers,
        },
        Verdict {
            rule: "every crate takes version, edition, licence and lints from the workspace",
            instead: "copy these lines from another crate's Cargo.toml",
            findings: settings,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_outside_and_a_crate_without_lints_are_found() {
        let whole = SETTINGS.join("\n");
        let without = whole.replace("[lints]\nworkspace = true", "[lints]\n");
        let mut repository = Repository::planted(&[
            ("Cargo.toml", ""),
            ("fs/a/Cargo.toml", &whole),
            ("fs/b/Cargo.toml", &without),
        ]);
        repository.graph.members.insert("b".into(), "fs/b".into());
        let found = verdicts(&repository);
        assert_eq!(
            found[0].findings,
            [Finding::new("fs/a/Cargo.toml", "is in no workspace that is checked")]
        );
        assert_eq!(found[1].findings, [Finding::new("fs/b/Cargo.toml", "lacks [lints] workspace = true")]);
    }

    #[test]
    fn a_crate_in_the_place_of_another_has_a_version_of_its_own() {
        let other =
            SETTINGS.join("\n").replace("version.workspace = true\nedition", "version = \"2.1.0\"\nedition");
        let found = |root: &str| {
            let mut repository = Repository::planted(&[("Cargo.toml", root), ("fs/a/Cargo.toml", &other)]);
            repository.graph.members.insert("a".into(), "fs/a".into());
            verdicts(&repository)[1].findings.len()
        };
        assert_eq!(found("[patch.crates-io]\na = { path = \"fs/a\" }\n"), 0);
        assert_eq!(found("[dependencies]\na = { path = \"fs/a\" }\n"), 1);
    }
}
