//! Readers get lost in long files.

use crate::{Finding, Repository, Verdict};

/// Lines that a file may have.
const LINES_MAX: usize = 700;
/// Files that are longer, each with the reason; an entry that isn't needed any more is a finding too.
const LONGER: &[(&str, &str)] = &[];

/// No file is too long.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    vec![short(repository, LONGER)]
}

fn short(repository: &Repository, longer: &[(&str, &str)]) -> Verdict {
    let mut findings = Vec::new();
    for (path, text) in
        repository.files.iter().filter(|(path, _)| path.ends_with(".rs") || path.ends_with(".sh"))
    {
        let (lines, excepted) = (text.lines().count(), longer.iter().any(|(file, _)| file == path));
        if lines > LINES_MAX && !excepted {
            findings.push(Finding::new(path, format!("{lines} lines")));
        } else if lines <= LINES_MAX && excepted {
            findings
                .push(Finding::new(path, "is no exception any more: remove it from the list in hack/tidy"));
        }
    }
    Verdict {
        rule: "a file has at most 700 lines",
        instead: "cut it by role or by operation, so that the folder's listing tells what is where",
        findings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_found_and_an_exception_only_while_it_is_one() {
        let long = "\n".repeat(LINES_MAX + 1);
        let repository =
            Repository::planted(&[("a.rs", &long), ("b.sh", &long), ("c.rs", &long), ("d.rs", "")]);
        let found = short(&repository, &[("c.rs", "why"), ("d.rs", "why")]).findings;
        let places: Vec<&str> = found.iter().map(|finding| finding.place.as_str()).collect();
        assert_eq!(places, ["a.rs", "b.sh", "d.rs"]);
    }
}
