//! What is committed is done, and every test runs.

use crate::{Finding, Repository, Verdict};

/// Words that mark something as unfinished, put together so that this file has none of them.
const MARKS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const MACROS: &[&str] = &["todo!", "unimplemented!"];

/// No unfinished code, no test that is switched off.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    let mut marks = Vec::new();
    let files = repository.files.iter().filter(|(path, _)| path.ends_with(".rs") || path.ends_with(".sh"));
    for (path, text) in files {
        for (line, text) in text.lines().enumerate() {
            if MARKS.iter().any(|mark| has_word(text, mark)) {
                marks.push(Finding::at(path, line + 1, text.trim()));
            }
        }
    }
    let (mut macros, mut ignored) = (Vec::new(), Vec::new());
    for (path, source) in &repository.sources {
        let unfinished =
            source.mentions.iter().filter(|mention| MACROS.iter().any(|name| mention.matches(name)));
        macros.extend(unfinished.map(|mention| Finding::at(path, mention.line, mention.text())));
        let off = source.attributes.iter().filter(|attribute| attribute.parts == ["ignore"]);
        ignored.extend(off.map(|attribute| Finding::at(path, attribute.line, "#[ignore]")));
    }
    vec![
        Verdict {
            rule: "nothing is marked as unfinished",
            instead: "do it now, or file an issue and say nothing here",
            findings: marks,
        },
        Verdict {
            rule: "no code panics because it isn't written yet",
            instead: "write it, or leave the case out of the type",
            findings: macros,
        },
        Verdict {
            rule: "no test is switched off",
            instead: "mend it, or remove it with what it tests; what takes long gets a target in the Makefile",
            findings: ignored,
        },
    ]
}

/// Whether `text` has `word` with no letter, digit or underscore beside it.
fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(part_of_word) && !text[at + word.len()..].starts_with(part_of_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_found() {
        let mark = format!("// {}: later\nfn a() {{}}", MARKS[0]);
        let script = format!("echo {}\n", MARKS[1]);
        let repository = Repository::planted(&[
            ("fs/a/src/lib.rs", &mark),
            ("hack/a.sh", &script),
            ("csi/src/b.rs", "fn b() { todo!(\"x\") }"),
            ("csi/tests/c.rs", "#[test]\n#[ignore]\nfn c() {}"),
            ("csi/src/d.rs", "#[test] #[ignore = \"slow\"] fn c() {}"),
            ("csi/src/e.rs", "fn mytodo() {} // XXXL"),
        ]);
        let found: Vec<usize> = verdicts(&repository).iter().map(|verdict| verdict.findings.len()).collect();
        assert_eq!(found, [2, 1, 2]);
        assert_eq!(verdicts(&repository)[2].findings[0].place, "csi/src/d.rs:1");
    }
}
