//! Parameters and mount options that the driver understands are documented, and no others.

use std::collections::BTreeSet;

use crate::{Finding, Repository, Verdict};

/// Where users find them.
const DOCUMENT: &str = "docs/parameters.md";
/// Where the driver says which there are, for the message that refuses others; and under which heading they are documented.
const LISTS: &[(&str, &str)] =
    &[("csi/src/params.rs", "StorageClass"), ("csi/src/mount_flags.rs", "Mount options")];

/// The driver's lists and the document have the same names.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    let mut findings = Vec::new();
    let document = repository.files.get(DOCUMENT).map_or("", String::as_str);
    for (path, heading) in LISTS {
        let known = known(repository.files.get(*path).map_or("", String::as_str));
        if known.is_empty() {
            findings.push(Finding::new(*path, "has no list KNOWN: this rule reads the wrong file"));
        }
        let documented = documented(document, heading);
        let missing = known.difference(&documented).map(|name| format!("'{name}' isn't under '{heading}'"));
        findings.extend(missing.map(|what| Finding::new(DOCUMENT, what)));
        let others = documented.difference(&known).map(|name| format!("{path} knows no '{name}'"));
        findings.extend(others.map(|what| Finding::new(DOCUMENT, what)));
    }
    vec![Verdict {
        rule: "docs/parameters.md has the parameters and mount options that the driver understands",
        instead: "add or remove the line",
        findings,
    }]
}

/// The names in the text `KNOWN`, without their values.
fn known(source: &str) -> BTreeSet<String> {
    let text = source.split("const KNOWN: &str = \"").nth(1).and_then(|rest| rest.split('"').next());
    let names = text
        .unwrap_or_default()
        .split(',')
        .map(|name| name.trim_matches(|c: char| c.is_whitespace() || c == '\\'));
    names
        .map(|name| name.split('=').next().unwrap_or(name).to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

/// The names in the first cells of the table under a heading.
fn documented(document: &str, heading: &str) -> BTreeSet<String> {
    let section = document.split("\n## ").find(|section| section.starts_with(heading)).unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|line| line.split('|').nth(1));
    let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names.map(|name| name.split('=').next().unwrap_or(name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(parameters: &str, options: &str, document: &str) -> Vec<String> {
        let list = |names: &str| format!("const KNOWN: &str = \"{names}\";");
        let (parameters, options) = (list(parameters), list(options));
        let files = [(LISTS[0].0, parameters.as_str()), (LISTS[1].0, options.as_str()), (DOCUMENT, document)];
        let findings = verdicts(&Repository::planted(&files)).remove(0).findings;
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn lists_and_document_have_the_same_names() {
        let document = "# P\n\n## StorageClass\n\n| `a` | x `y` |\n| `b`, `c` | |\n\n## Mount options (x)\n\n| `d=<n>` | |\n";
        assert_eq!(found("a, b, \\\n  c", "d=<size>", document), Vec::<String>::new());
        assert_eq!(found("a, b, c, e", "d=<size>", document), ["'e' isn't under 'StorageClass'"]);
        assert_eq!(found("a, b, c", "", document).len(), 2);
        assert_eq!(found("a, b", "d", document), ["csi/src/params.rs knows no 'c'"]);
    }
}
