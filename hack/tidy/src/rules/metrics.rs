//! Metrics: the catalogue has what the code registers, alerts and dashboard name nothing else, every alert has its runbook.

use std::collections::{BTreeMap, BTreeSet};

use crate::repository::is_below;
use crate::{Finding, Repository, Verdict};

/// The catalogue.
const CATALOGUE: &str = "docs/metrics.md";
/// Alerts, dashboard.
const MONITORING: &str = "config/monitoring";
/// The alerts.
const ALERTS: &str = "config/monitoring/alerts.yaml";
/// A file for each alert.
const RUNBOOKS: &str = "docs/runbooks";
/// The list of them.
const INDEX: &str = "docs/runbooks/README.md";
/// With what the names begin that a crate registers.
const PREFIXES: &[(&str, &str)] = &[
    ("operator/src", "atoll_operator"),
    ("csi/src", "atoll"),
    ("fs/metadata/src", "atoll_metadata"),
    ("fs/storage/src", "atoll_storage"),
    ("fs/atoll-fs/src", "atoll"),
];
/// Calls whose first argument is a metric's name.
const CALLS: &[&str] = &["register", "register_with_unit", "encode_descriptor", "gauge"];
/// A collector that has its names in tables: they begin so.
const TABLES: (&str, &str) = ("fs/atoll-fs/src/metrics.rs", "mount_");

/// The catalogue, the alerts, the dashboard and the runbooks.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    let registered = registered(repository);
    let catalogue = catalogue(repository);
    vec![
        Verdict {
            rule: "docs/metrics.md has every metric of the code, and no other",
            instead: "add its line, or remove it: `name` | type | labels | meaning",
            findings: documented(&registered, &catalogue),
        },
        Verdict {
            rule: "alerts and dashboard name metrics that there are",
            instead: "correct the name; a counter ends with _total, a histogram has _bucket, _sum and _count",
            findings: named(repository, &catalogue),
        },
        Verdict {
            rule: "every alert has its runbook, and every runbook its alert",
            instead: "add docs/runbooks/ALERT.md, the alert's runbook_url, and its line in docs/runbooks/README.md",
            findings: explained(repository),
        },
    ]
}

/// The names that code registers, with their units and without what the format appends for a type, and where.
fn registered(repository: &Repository) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (path, text) in repository.files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        let Some((_, prefix)) = PREFIXES.iter().find(|(folder, _)| is_below(path, folder)) else { continue };
        // Tests come last in a file.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (at, _) in text.match_indices('"') {
            let Some(end) = text[at + 1..].find('"').map(|end| at + 1 + end) else { continue };
            let name = &text[at + 1..end];
            let is_name =
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            let Some(before) = text[..at].trim_end().strip_suffix('(').filter(|_| is_name) else { continue };
            let is_call = CALLS.iter().any(|call| {
                before
                    .strip_suffix(call)
                    .is_some_and(|rest| !rest.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            });
            let is_in_table = path == TABLES.0 && name.starts_with(TABLES.1);
            if is_call || is_in_table {
                let unit = unit(&text[end + 1..]).map(|unit| format!("_{unit}")).unwrap_or_default();
                found.insert(format!("{prefix}_{name}{unit}"), path.clone());
            }
        }
    }
    found
}

/// The unit that the rest of a call names.
fn unit(rest: &str) -> Option<&'static str> {
    let (mut depth, mut in_text) = (0, false);
    let end = rest.find(|c| {
        match c {
            '"' => in_text = !in_text,
            '(' if !in_text => depth += 1,
            ')' if !in_text => depth -= 1,
            _ => {}
        }
        depth < 0
    });
    let call = &rest[..end.unwrap_or(rest.len())];
    [("Unit::Seconds", "seconds"), ("Unit::Bytes", "bytes")]
        .into_iter()
        .find(|(word, _)| call.contains(word))
        .map(|(_, unit)| unit)
}

/// A line of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    line: usize,
    kind: String,
}

/// The lines of the catalogue, by name.
fn catalogue(repository: &Repository) -> BTreeMap<String, Entry> {
    let text = repository.files.get(CATALOGUE).map_or("", String::as_str);
    let mut found = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let Some(rest) = line.strip_prefix("| `atoll_") else { continue };
        let mut cells = rest.split('|');
        let name = cells.next().unwrap_or_default().trim().trim_end_matches('`');
        let kind = cells.next().unwrap_or_default().trim().to_owned();
        found.insert(format!("atoll_{name}"), Entry { line: at + 1, kind });
    }
    found
}

/// A catalogue's name without what the format appends for its type; `None`: the name and the type don't fit.
fn base<'a>(name: &'a str, kind: &str) -> Option<&'a str> {
    match (kind, name.strip_suffix("_total")) {
        ("counter", Some(base)) => Some(base),
        ("gauge" | "histogram", None) => Some(name),
        _ => None,
    }
}

fn documented(registered: &BTreeMap<String, String>, catalogue: &BTreeMap<String, Entry>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut known = BTreeSet::new();
    for (name, Entry { line, kind }) in catalogue {
        match base(name, kind) {
            None => findings.push(Finding::at(CATALOGUE, *line, format!("{name} can't be a {kind}"))),
            Some(base) if registered.contains_key(base) => {
                known.insert(base);
            }
            Some(_) => findings.push(Finding::at(CATALOGUE, *line, format!("no code registers {name}"))),
        }
    }
    let missing = registered.iter().filter(|(name, _)| !known.contains(name.as_str()));
    findings.extend(missing.map(|(name, path)| Finding::new(path, format!("{name} isn't in {CATALOGUE}"))));
    if registered.is_empty() {
        findings.push(Finding::new(CATALOGUE, "no code registers anything: this rule reads the wrong files"));
    }
    findings
}

fn named(repository: &Repository, catalogue: &BTreeMap<String, Entry>) -> Vec<Finding> {
    let mut known = BTreeSet::new();
    for (name, Entry { kind, .. }) in catalogue {
        if kind == "histogram" {
            known.extend(["bucket", "sum", "count"].map(|end| format!("{name}_{end}")));
        } else {
            known.insert(name.clone());
        }
    }
    let mut findings = Vec::new();
    let files = repository.files.iter().filter(|(path, _)| is_below(path, MONITORING));
    for (path, text) in files.filter(|(path, _)| !path.ends_with("kustomization.yaml")) {
        for (at, line) in text.lines().enumerate() {
            let words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            // Label names of Kubernetes, which relabelling reads, begin otherwise.
            for word in words.filter(|word| word.starts_with("atoll_") && !known.contains(*word)) {
                findings.push(Finding::at(path, at + 1, format!("there is no {word}")));
            }
        }
    }
    findings
}

fn explained(repository: &Repository) -> Vec<Finding> {
    let text = repository.files.get(ALERTS).map_or("", String::as_str);
    let index = repository.files.get(INDEX).map_or("", String::as_str);
    let mut findings = Vec::new();
    let mut alerts = BTreeSet::new();
    for rule in text.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap_or_default().trim();
        alerts.insert(name);
        if !rule.contains(&format!("/{RUNBOOKS}/{name}.md\n")) {
            findings
                .push(Finding::new(ALERTS, format!("{name}: its runbook_url isn't {RUNBOOKS}/{name}.md")));
        }
        let runbook = repository.files.get(&format!("{RUNBOOKS}/{name}.md"));
        match runbook {
            None => findings.push(Finding::new(ALERTS, format!("{name} has no {RUNBOOKS}/{name}.md"))),
            Some(runbook)
                if !runbook.starts_with(&format!("# {name}\n")) || !runbook.contains("## What to do") =>
            {
                findings
                    .push(Finding::new(format!("{RUNBOOKS}/{name}.md"), "lacks its title or 'What to do'"));
            }
            Some(_) => {}
        }
        if !index.contains(&format!("({name}.md)")) {
            findings.push(Finding::new(INDEX, format!("lacks {name}")));
        }
    }
    let runbooks = repository.files.keys().filter(|path| is_below(path, RUNBOOKS) && *path != INDEX);
    for path in runbooks {
        let name = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".md");
        if !alerts.contains(name) {
            findings.push(Finding::new(path, "belongs to no alert"));
        }
    }
    if alerts.is_empty() {
        findings.push(Finding::new(ALERTS, "has no alerts"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "fn a() {
        registry.register(\"reconciles\", \"Words (two)\", x.clone());
        registry.register_with_unit(
            \"took\",
            \"Words\",
            Unit::Seconds,
            y);
        gauge.encode(encoder.encode_descriptor(\"now\", help, None, t)?);
        other.deregister(\"nothing\");
    }
    #[cfg(test)] mod tests { fn b() { registry.register(\"test\", \"\", x); } }";
    const LINES: &str = "| `atoll_operator_reconciles_total` | counter | | a |\n| `atoll_operator_took_seconds` | histogram | | b |\n\
                         | `atoll_operator_now` | gauge | | c |\n";
    const ALERT: &str = "    - alert: A\n      expr: atoll_operator_now > 0\n      annotations:\n        \
                         runbook_url: https://x/docs/runbooks/A.md\n";
    const RUNBOOK: &str = "# A\n\n## What to do\n\n- this\n";

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let verdicts = verdicts(&Repository::planted(files));
        let findings = verdicts.into_iter().flat_map(|verdict| verdict.findings);
        findings.map(|finding| format!("{}: {}", finding.place, finding.what)).collect()
    }

    fn files<'a>(code: &'a str, lines: &'a str, alerts: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("operator/src/metrics.rs", code),
            (CATALOGUE, lines),
            (ALERTS, alerts),
            ("docs/runbooks/A.md", RUNBOOK),
            (INDEX, "[A](A.md)"),
        ]
    }

    #[test]
    fn what_fits_together_is_no_finding() {
        assert_eq!(found(&files(CODE, LINES, ALERT)), Vec::<String>::new());
    }

    #[test]
    fn a_metric_without_line_and_a_line_without_metric_are_found() {
        let short = LINES.replace("| `atoll_operator_now` | gauge | | c |\n", "");
        let of = found(&files(CODE, &short, &ALERT.replace("now", "reconciles_total")));
        assert_eq!(of, ["operator/src/metrics.rs: atoll_operator_now isn't in docs/metrics.md"]);
        let more = format!("{LINES}| `atoll_operator_gone` | gauge | | d |\n");
        assert_eq!(
            found(&files(CODE, &more, ALERT)),
            ["docs/metrics.md:4: no code registers atoll_operator_gone"]
        );
        let wrong = LINES.replace("now` | gauge", "now` | counter");
        assert!(found(&files(CODE, &wrong, ALERT))[0].contains("can't be a counter"));
        let no_unit = LINES.replace("took_seconds", "took");
        assert_eq!(found(&files(CODE, &no_unit, ALERT)).len(), 2);
    }

    #[test]
    fn an_alert_on_what_there_is_not_is_found() {
        for (right, wrong) in [("now", "noww"), ("now", "reconciles"), ("now", "took_seconds")] {
            let of = found(&files(CODE, LINES, &ALERT.replace(right, wrong)));
            assert_eq!(of, [format!("config/monitoring/alerts.yaml:2: there is no atoll_operator_{wrong}")]);
        }
        assert_eq!(
            found(&files(CODE, LINES, &ALERT.replace("now", "took_seconds_bucket"))),
            Vec::<String>::new()
        );
    }

    #[test]
    fn an_alert_without_runbook_and_a_runbook_without_alert_are_found() {
        let of = found(&files(CODE, LINES, &ALERT.replace("alert: A", "alert: B")));
        assert_eq!(of.len(), 4, "{of:?}");
        assert!(of.iter().any(|finding| finding == "docs/runbooks/A.md: belongs to no alert"), "{of:?}");
    }

    #[test]
    fn names_in_the_tables_of_a_collector_are_read() {
        let code = "let a: [(&str, &str, Option<&Unit>, u64); 2] = [
            (\"mount_cached\", \"Bytes (of)\", Some(&Unit::Bytes), x.y(z)),
            (\"mount_lost\", \"Changes\", None, 1)];
            let (name, help) = (\"mount_requests\", \"Requests\");";
        let repository = Repository::planted(&[(TABLES.0, code)]);
        let names: Vec<String> = registered(&repository).into_keys().collect();
        assert_eq!(names, ["atoll_mount_cached_bytes", "atoll_mount_lost", "atoll_mount_requests"]);
    }
}
