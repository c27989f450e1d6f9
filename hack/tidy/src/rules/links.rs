//! Links between documents lead to files and headings that are there.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Finding, Repository, Verdict};

/// Every link of every document to a file or heading of this repository.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    let documents = || repository.files.iter().filter(|(path, _)| path.ends_with(".md"));
    let anchors: BTreeMap<&str, BTreeSet<String>> =
        documents().map(|(path, text)| (path.as_str(), anchors(text))).collect();
    let mut findings = Vec::new();
    for (path, text) in documents() {
        for (line, target) in links(text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = match target.split_once('#') {
                Some((file, anchor)) => (file, Some(anchor)),
                None => (target.as_str(), None),
            };
            let Some(file) = resolved(path, file) else {
                findings.push(Finding::at(path, line, format!("'{target}' leads out of the repository")));
                continue;
            };
            if !file.is_empty() && !repository.paths.contains(&file) {
                findings.push(Finding::at(path, line, format!("'{target}': there is no {file}")));
                continue;
            }
            if let Some(anchor) = anchor
                && !anchors.get(file.as_str()).is_some_and(|known| known.contains(anchor))
            {
                findings.push(Finding::at(
                    path,
                    line,
                    format!("'{target}': {file} has no heading #{anchor}"),
                ));
            }
        }
    }
    vec![Verdict {
        rule: "links between documents lead to files and headings that are there",
        instead: "correct the link, or the heading",
        findings,
    }]
}

/// The path that a link of the document `from` means; `None`: outside of the repository.
fn resolved(from: &str, link: &str) -> Option<String> {
    if link.is_empty() {
        return Some(from.to_owned());
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// The lines of a document that are prose, each with its number: none of a block of code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            return None;
        }
        (!in_code).then_some((at + 1, line))
    })
}

/// The targets of links, each with its line.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code(line);
        let mut rest = line.as_str();
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            let end = rest.find([')', ' ']).unwrap_or(rest.len());
            found.push((number, rest[..end].to_owned()));
        }
    }
    found
}

/// A line without what stands in backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("")
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in prose(text) {
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        let Some(title) = line.get(level..).filter(|_| (1..=6).contains(&level)) else { continue };
        let Some(title) = title.strip_prefix(' ') else { continue };
        let slug: String = linkless(title)
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let mut name = slug.clone();
        let mut number = 0;
        while !found.insert(name.clone()) {
            number += 1;
            name = format!("{slug}-{number}");
        }
    }
    found
}

/// A heading's text: of links only what is shown.
fn linkless(title: &str) -> String {
    let mut found = String::new();
    let mut rest = title;
    while let Some(at) = rest.find("](") {
        found.push_str(&rest[..at]);
        let end = rest[at..].find(')').map_or(rest.len(), |end| at + end + 1);
        rest = &rest[end..];
    }
    found + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let findings = verdicts(&Repository::planted(files)).remove(0).findings;
        findings.into_iter().map(|finding| format!("{}: {}", finding.place, finding.what)).collect()
    }

    #[test]
    fn links_that_lead_somewhere_are_none() {
        let files = [
            (
                "README.md",
                "# A\n[a](docs/a.md) [b](docs/a.md#one-two) [w](https://x/y#z) [c](#a) [d](docs/a.md#one-two-1)\n",
            ),
            ("docs/a.md", "# `One` [Two](../README.md)!\n\n# One two\n[up](../README.md#a)\n"),
        ];
        assert_eq!(found(&files), Vec::<String>::new());
    }

    #[test]
    fn links_that_lead_nowhere_are_found_with_their_line() {
        let files = [
            ("README.md", "# A\n\n[a](docs/b.md)\n[b](docs/a.md#two)\n[c](#b)\n[d](../x.md)\n"),
            ("docs/a.md", "# One\n```\n# Two\n[x](nowhere.md)\n```\n`[x](nowhere.md)`\n"),
        ];
        let found = found(&files);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].starts_with("README.md:3") && found[0].contains("no docs/b.md"), "{found:?}");
        assert!(found[1].starts_with("README.md:4") && found[1].contains("#two"), "{found:?}");
        assert!(found[3].contains("out of the repository"), "{found:?}");
    }
}
