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
        let missing = SETTINGS.iter().filter(|setting| !text.contains(*setting));
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
}
