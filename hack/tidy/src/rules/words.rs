//! Text that users see has one word for each concept: the glossary's.

use crate::repository::is_below;
use crate::{Finding, Repository, Verdict};

/// Words of earlier texts, which [`GLOSSARY`] replaces.
struct Replaced {
    /// The forms of the word or phrase, in lower case.
    words: &'static [&'static str],
    /// What to write.
    instead: &'static str,
    /// Phrases in which a form may stand.
    but: &'static [&'static str],
}

const fn replaced(words: &'static [&'static str], instead: &'static str) -> Replaced {
    Replaced { words, instead, but: &[] }
}

/// The words, and what to write instead.
const REPLACED: &[Replaced] = &[
    replaced(&["office"], "leadership, leader state"),
    replaced(
        &["hands over", "hand over", "handing over", "handed over"],
        "transfer (leadership), pass (a mount)",
    ),
    replaced(&["steps aside", "step aside", "stepping aside"], "is replaced by a new member"),
    replaced(&["founding", "founder", "founds", "found the group"], "bootstrap"),
    replaced(&["orders", "an order", "no order", "order to trim", "order to delete"], "task"),
    replaced(&["anew"], "again; rebuilt (a member), re-replicated (a replica), re-created (an object)"),
    Replaced {
        words: &["is made", "are made", "was made", "were made", "being made"],
        instead: "created",
        but: &["is made of", "are made of"],
    },
    replaced(
        &["taken out", "takes out", "take out", "taking out"],
        "removed (from the replica set, from the group)",
    ),
    replaced(&["a further", "further replica", "further ones"], "an additional, another"),
    replaced(&["room"], "free space, quota or back-pressure, whichever it is"),
    replaced(&["evacuate", "evacuated", "evacuates", "evacuation", "evacuating"], "drain"),
    replaced(&["piece", "pieces"], "extent"),
    replaced(&["suspect", "suspects"], "suspected (a server), corrupt (a replica)"),
    replaced(&["given up", "gives up", "giving up"], "lost (a server), released (the ballast)"),
    replaced(&["give back", "gives back", "given back", "giving back"], "free, release"),
    replaced(&["silent"], "doesn't respond, has sent no heartbeat"),
    replaced(&["patience"], "timeout"),
    replaced(&["wanted"], "desired"),
    replaced(&["look at", "looks at", "looked at", "looking at"], "check, read, reconcile"),
    replaced(&["mutant", "mutants"], "planted fault"),
    replaced(&["folder", "folders"], "directory"),
    replaced(&["under way"], "in progress"),
    replaced(&["go on", "goes on", "going on", "gone on", "went on"], "continue"),
    replaced(&["is none", "are none"], "isn't a …, there are no …"),
    replaced(&["make no sense", "makes no sense"], "is invalid"),
    replaced(&["shall"], "must, or the present tense"),
    replaced(&["whoever", "somebody"], "who it is: the caller, a process, an administrator"),
    replaced(&["so many"], "at most N"),
    replaced(&["for people"], "human-readable"),
];

/// Where the words are defined; it names those that it replaces.
const GLOSSARY: &str = "docs/GLOSSARY.md";
const CHANGES: &str = "CHANGELOG.md";
const DOCUMENTS: &[&str] = &["ARCHITECTURE.md", CHANGES, "README.md", "SEMANTICS.md"];
/// What is not shipped speaks to developers alone.
const NOT_SHIPPED: &[&str] = &["e2e", "fs/sim", "hack"];

/// No text that users see has a replaced word.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    let mut findings = documents(repository);
    for (path, text) in repository.shown_texts() {
        // A single word is a name: of a field, a command, a file.
        let is_prose = text.text.trim().contains(char::is_whitespace);
        if is_prose && !NOT_SHIPPED.iter().any(|folder| is_below(path, folder)) {
            findings.extend(find(path, text.line, &text.text, ('{', '}')));
        }
    }
    vec![Verdict {
        rule: "text that users see has the words of docs/GLOSSARY.md",
        instead: "write the word that is named; names of commands, fields and files stand in backticks in documents",
        findings,
    }]
}

fn documents(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_document = |path: &str| DOCUMENTS.contains(&path) || (is_below(path, "docs") && path != GLOSSARY);
    for (path, text) in repository.files.iter().filter(|(path, _)| path.ends_with(".md") && is_document(path))
    {
        // What was released was said in the words of its time.
        let released = text.match_indices("\n## ").nth(1).filter(|_| path == CHANGES);
        let text = released.map_or(text.as_str(), |(end, _)| &text[..end]);
        findings.extend(find(path, 1, text, ('`', '`')));
    }
    if !repository.files.contains_key(GLOSSARY) {
        findings.push(Finding::new(GLOSSARY, "is missing"));
    }
    findings
}

/// The replaced words in `text`, whose first line is `line`. What stands between the two `marks` isn't read.
fn find(path: &str, line: usize, text: &str, marks: (char, char)) -> Vec<Finding> {
    let words = words(text, marks);
    let said: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
    let mut findings = Vec::new();
    for Replaced { words: forms, instead, but } in REPLACED {
        for form in *forms {
            for at in places(&said, form) {
                let is_excepted = but.iter().any(|phrase| {
                    let length = phrase.split(' ').count();
                    places(&said, phrase).iter().any(|start| (*start..start + length).contains(&at))
                });
                if !is_excepted {
                    findings.push(Finding::at(path, line + words[at].1, format!("'{form}': {instead}")));
                }
            }
        }
    }
    findings
}

/// Where `phrase` begins in `said`.
fn places(said: &[&str], phrase: &str) -> Vec<usize> {
    let phrase: Vec<&str> = phrase.split(' ').collect();
    let windows = said.windows(phrase.len()).enumerate();
    windows.filter(|(_, window)| *window == phrase.as_slice()).map(|(at, _)| at).collect()
}

/// The words of a text in lower case and its punctuation, each with the number of lines before it; what stands between the
/// two `marks` is one word, which no other equals.
fn words(text: &str, marks: (char, char)) -> Vec<(String, usize)> {
    let mut words: Vec<(String, usize)> = Vec::new();
    let (mut line, mut in_marks, mut in_word) = (0, false, false);
    for c in text.chars() {
        let is_part = c.is_alphanumeric() || matches!(c, '_' | '-' | '\'' | '’');
        if in_marks {
            in_marks = c != marks.1;
        } else if c == marks.0 {
            in_marks = true;
            words.push((c.to_string(), line));
        } else if is_part && in_word {
            if let Some((word, _)) = words.last_mut() {
                word.extend(c.to_lowercase());
            }
        } else if !c.is_whitespace() {
            words.push((c.to_lowercase().collect(), line));
        }
        in_word = is_part && !in_marks;
        line += usize::from(c == '\n');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_GLOSSARY: usize = 1;

    fn found(path: &str, text: &str) -> usize {
        verdicts(&Repository::planted(&[(path, text)]))[0].findings.len() - NO_GLOSSARY
    }

    #[test]
    fn every_form_is_found_wherever_users_read_it() {
        for form in REPLACED.iter().flat_map(|entry| entry.words) {
            let several = |text: &str| found("csi/src/a.rs", text) >= 1;
            assert!(
                several(&format!("fn a() {{ warn!(%x, \"it says {form}: {{y}}\"); }}")),
                "{form} in a log"
            );
            assert!(several(&format!("#[error(\"it says {form}\")] struct A;")), "{form} in an error");
            let help = format!("struct A {{\n/// It says\n/// {form}.\n#[arg(long)]\na: u8 }}");
            assert!(several(&help), "{form} in a help text");
            let broken = format!("One.\n\nIt says {}.\n", form.replace(' ', "\n  "));
            assert!(found("docs/a.md", &broken) >= 1, "{form} in a document");
            let capital = form.to_uppercase();
            assert!(found("README.md", &format!("{capital} it says.")) >= 1, "{capital}");
        }
    }

    #[test]
    fn a_finding_names_the_line_and_the_word_to_write() {
        let planted = [(GLOSSARY, "the office"), ("SEMANTICS.md", "One.\n\n- Two three,\n  the office.\n")];
        let verdicts = verdicts(&Repository::planted(&planted));
        assert_eq!(
            verdicts[0].findings,
            [Finding::at("SEMANTICS.md", 4, "'office': leadership, leader state")]
        );
        let code = "const A: &str = \"one \\\n  two the office\";";
        assert_eq!(find("a", 7, "one\ntwo the office", ('{', '}'))[0].place, "a:8");
        assert_eq!(found("kubectl/src/a.rs", code), 1);
    }

    #[test]
    fn names_comments_tests_and_the_past_are_left_alone() {
        for text in [
            "// the office\n/// the office\nfn office() {}",
            "fn a() { json!({ \"office\": 1, \"x\": \"folder\" }); }",
            "fn a() { warn!(\"{folder} is in use\"); }",
            "fn a() { warn!(\"offices, a sub-folder, the folder_name\"); }",
            "#[cfg(test)] mod tests { const A: &str = \"the office\"; }",
            "#[expect(x, reason = \"the office\")] fn a() {}",
        ] {
            assert_eq!(found("operator/src/a.rs", text), 0, "{text}");
        }
        assert_eq!(found("hack/a/src/a.rs", "const A: &str = \"the office\";"), 0);
        assert_eq!(found("docs/a.md", "see `the office` and\n```text\nthe office\n```\n"), 0);
        assert_eq!(found("operator/DESIGN.md", "the office"), 0);
        let changes = "# Changelog\n\n## Unreleased\n\n- the office\n\n## 0.1.0\n\n- the office\n";
        assert_eq!(found(CHANGES, changes), 1);
    }

    #[test]
    fn a_phrase_is_of_words_side_by_side() {
        assert_eq!(found("README.md", "It goes. On the way; it goes, on and on."), 0);
        assert_eq!(found("README.md", "The text is made of words."), 0);
        assert_eq!(found("README.md", "The text is made, of course."), 1);
    }
}
