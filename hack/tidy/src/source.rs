//! A Rust file as rules see it: the paths, macros, attributes and strings that its tokens spell, each with its line, comments
//! left out but for documentation.
//!
//! Tokens instead of text, so that neither a comment nor the way a `use` is folded changes an answer:
//! `use std::{fs, io}` has the paths `std::fs` and `std::io`. Tokens instead of a syntax tree, so that what stands in a
//! macro counts as well.

use proc_macro2::{Delimiter, Group, Ident, Literal, Spacing, TokenStream, TokenTree};

/// A path, macro or attribute in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention {
    /// `std::fs::File` as its parts; a macro's last part ends in `!`.
    pub parts: Vec<String>,
    /// The line of its first part.
    pub line: usize,
    /// Whether only tests see it.
    pub in_test: bool,
}

impl Mention {
    /// Whether `pattern` (`std::fs`, `rand::*`, `println!`) is a run of its parts; `*` is any one part.
    #[must_use]
    pub fn matches(&self, pattern: &str) -> bool {
        let pattern: Vec<&str> = pattern.split("::").collect();
        self.parts
            .windows(pattern.len())
            .any(|window| window.iter().zip(&pattern).all(|(part, wanted)| *wanted == "*" || part == wanted))
    }

    /// As it would be written in one line.
    #[must_use]
    pub fn text(&self) -> String {
        self.parts.join("::")
    }
}

/// A string, or the lines of documentation of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// As it stands in the file, without quotes: a line of it is a line of the file.
    pub text: String,
    /// Its first line.
    pub line: usize,
    /// Whether only tests see it.
    pub in_test: bool,
}

/// What a file's tokens say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Every path, of one part or more, and every call of a macro.
    pub mentions: Vec<Mention>,
    /// The path of every attribute: `test`, `tokio::test`, `ignore`.
    pub attributes: Vec<Mention>,
    /// The names of test functions.
    pub tests: Vec<String>,
    /// The modules in files of their own that only tests see: `#[cfg(test)] mod tests;`.
    pub test_modules: Vec<String>,
    /// Every string but those of bytes, and those of attributes about the code itself, such as `reason = "…"`.
    pub strings: Vec<Text>,
    /// The documentation of every item.
    pub docs: Vec<Text>,
}

impl Source {
    /// Whether documentation in this file becomes a program's `--help` or the description of a resource's field.
    #[must_use]
    pub fn docs_are_shown(&self) -> bool {
        let has_flags =
            self.attributes.iter().any(|found| found.parts == ["arg"] || found.parts == ["command"]);
        has_flags || self.mentions.iter().any(|mention| mention.matches("JsonSchema"))
    }
}

/// Attributes whose strings are for readers of the code.
const ABOUT_CODE: &[&str] =
    &["allow", "cfg", "cfg_attr", "deny", "doc", "expect", "ignore", "must_use", "warn"];

/// Reads a file.
///
/// # Errors
/// If it isn't made of Rust's tokens.
pub fn read(text: &str) -> Result<Source, String> {
    let tokens: TokenStream =
        text.parse().map_err(|error| format!("these are no tokens of Rust: {error}"))?;
    let mut source = Source::default();
    scan(tokens, false, &mut source);
    Ok(source)
}

/// What the attributes before an item say of it.
#[derive(Default)]
struct Pending {
    only_in_tests: bool,
    is_test: bool,
}

fn scan(tokens: TokenStream, in_test: bool, source: &mut Source) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut whole = in_test;
    let mut pending = Pending::default();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let seen_by_tests_alone = whole || pending.only_in_tests;
        match token {
            TokenTree::Punct(hash) if hash.as_char() == '#' => {
                let inner = is_punct(tokens.get(at + 1), '!');
                let Some(TokenTree::Group(group)) = tokens.get(at + 1 + usize::from(inner)) else {
                    at += 1;
                    continue;
                };
                if group.delimiter() == Delimiter::Bracket {
                    let attribute = Attribute::read(group);
                    attribute_texts(group, &attribute.path, seen_by_tests_alone, source);
                    whole |= inner && attribute.only_in_tests;
                    pending.only_in_tests |= !inner && attribute.only_in_tests;
                    pending.is_test |= attribute.is_test;
                    source.attributes.push(Mention { in_test: seen_by_tests_alone, ..attribute.path });
                }
                at += 2 + usize::from(inner);
            }
            TokenTree::Ident(word) if word == "fn" => {
                if let Some(TokenTree::Ident(name)) = tokens.get(at + 1)
                    && pending.is_test
                {
                    source.tests.push(name.to_string());
                }
                pending.is_test = false;
                at += 1;
            }
            TokenTree::Ident(word) if word == "mod" => {
                if let Some(TokenTree::Ident(name)) = tokens.get(at + 1)
                    && is_punct(tokens.get(at + 2), ';')
                    && seen_by_tests_alone
                {
                    source.test_modules.push(name.to_string());
                }
                at += 1;
            }
            TokenTree::Ident(first) => at = path(&tokens, at, first, seen_by_tests_alone, source),
            TokenTree::Group(group) => {
                scan(group.stream(), seen_by_tests_alone, source);
                // The item's body; what comes behind it is another item.
                if group.delimiter() == Delimiter::Brace {
                    pending = Pending::default();
                }
                at += 1;
            }
            TokenTree::Punct(end) => {
                if matches!(end.as_char(), ';' | ',') {
                    pending = Pending::default();
                }
                at += 1;
            }
            TokenTree::Literal(literal) => {
                source.strings.extend(text(literal, seen_by_tests_alone));
                at += 1;
            }
        }
    }
}

/// The documentation or the strings of an attribute.
fn attribute_texts(group: &Group, path: &Mention, in_test: bool, source: &mut Source) {
    if path.parts == ["doc"] {
        let lines = literals(group.stream(), in_test);
        match (lines.as_slice(), source.docs.last_mut()) {
            ([next], Some(last)) if last.line + last.text.matches('\n').count() + 1 == next.line => {
                last.text.push('\n');
                last.text.push_str(&next.text);
            }
            _ => source.docs.extend(lines),
        }
    } else if !path.parts.iter().any(|part| ABOUT_CODE.contains(&part.as_str())) {
        source.strings.extend(literals(group.stream(), in_test));
    }
}

fn literals(tokens: TokenStream, in_test: bool) -> Vec<Text> {
    let found = tokens.into_iter().map(|token| match token {
        TokenTree::Literal(literal) => text(&literal, in_test).into_iter().collect(),
        TokenTree::Group(group) => literals(group.stream(), in_test),
        _ => Vec::new(),
    });
    found.flatten().collect()
}

/// A literal, if it is a string: ends of lines that are written `\n` or left out with `\` are spaces.
fn text(literal: &Literal, in_test: bool) -> Option<Text> {
    let written = literal.to_string();
    let raw = written.strip_prefix('r');
    let text = raw.unwrap_or(&written).trim_matches('#').strip_prefix('"')?.strip_suffix('"')?;
    let text = if raw.is_some() { text.to_owned() } else { text.replace("\\\n", " \n").replace("\\n", "  ") };
    Some(Text { text, line: literal.span().start().line, in_test })
}

struct Attribute {
    path: Mention,
    only_in_tests: bool,
    is_test: bool,
}

impl Attribute {
    fn read(group: &Group) -> Self {
        let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
        let mut found = Source::default();
        if let Some(TokenTree::Ident(first)) = tokens.first() {
            path(&tokens, 0, first, false, &mut found);
        }
        let line = group.span_open().start().line;
        let path = found.mentions.into_iter().next();
        let path = path.unwrap_or(Mention { parts: Vec::new(), line, in_test: false });
        let is_test = path.parts.last().is_some_and(|last| last == "test");
        let only_in_tests = path.parts == ["cfg"]
            && matches!(tokens.get(1), Some(TokenTree::Group(condition)) if needs_test(condition.stream()));
        Self { path, only_in_tests, is_test }
    }
}

/// Whether the condition of a `cfg` is `test`, or `all(…)` with it.
fn needs_test(condition: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = condition.into_iter().collect();
    match tokens.as_slice() {
        [TokenTree::Ident(word)] => word == "test",
        [TokenTree::Ident(word), TokenTree::Group(all)] if word == "all" => {
            let parts: Vec<TokenTree> = all.stream().into_iter().collect();
            parts
                .split(|token| is_punct(Some(token), ','))
                .any(|part| needs_test(part.iter().cloned().collect()))
        }
        _ => false,
    }
}

/// Reads the path whose first part is at `at`; returns where it ends.
fn path(tokens: &[TokenTree], at: usize, first: &Ident, in_test: bool, source: &mut Source) -> usize {
    let line = first.span().start().line;
    let mut parts = vec![plain(first)];
    let mut end = at + 1;
    while is_colons(tokens, end) {
        match tokens.get(end + 2) {
            Some(TokenTree::Ident(part)) => {
                parts.push(plain(part));
                end += 3;
            }
            Some(TokenTree::Punct(star)) if star.as_char() == '*' => {
                parts.push("*".into());
                end += 3;
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                folded(&parts, group.stream(), in_test, source);
                return end + 3;
            }
            _ => break,
        }
    }
    if is_punct(tokens.get(end), '!') && matches!(tokens.get(end + 1), Some(TokenTree::Group(_))) {
        if let Some(last) = parts.last_mut() {
            last.push('!');
        }
        end += 1;
    }
    source.mentions.push(Mention { parts, line, in_test });
    end
}

/// The paths of `prefix::{…}`.
fn folded(prefix: &[String], group: TokenStream, in_test: bool, source: &mut Source) {
    let tokens: Vec<TokenTree> = group.into_iter().collect();
    for element in tokens.split(|token| is_punct(Some(token), ',')) {
        let mut found = Source::default();
        match element.first() {
            Some(TokenTree::Ident(word)) if word == "self" => {
                let line = word.span().start().line;
                source.mentions.push(Mention { parts: prefix.to_vec(), line, in_test });
            }
            Some(TokenTree::Ident(first)) => {
                path(element, 0, first, in_test, &mut found);
            }
            Some(star @ TokenTree::Punct(_)) => {
                let line = star.span().start().line;
                found.mentions.push(Mention { parts: vec!["*".into()], line, in_test });
            }
            _ => {}
        }
        for mut mention in found.mentions {
            mention.parts.splice(0..0, prefix.iter().cloned());
            source.mentions.push(mention);
        }
    }
}

fn plain(word: &Ident) -> String {
    let word = word.to_string();
    word.strip_prefix("r#").map_or(word.clone(), str::to_owned)
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(first)) if first.as_char() == ':' && first.spacing() == Spacing::Joint)
        && is_punct(tokens.get(at + 1), ':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let source = read(text).expect("tokens");
        source.mentions.iter().filter(|mention| !mention.in_test).map(Mention::text).collect()
    }

    #[test]
    fn a_folded_use_has_all_of_its_paths() {
        assert_eq!(
            paths("use std::{fs::{self, File}, io as i, net::*};"),
            ["use", "std::fs", "std::fs::File", "std::io", "std::net::*"]
        );
    }

    #[test]
    fn comments_and_strings_have_none() {
        assert_eq!(paths("// std::fs\n/* a::b */ /// c::d\nlet x = \"e::f\";"), ["let", "x"]);
    }

    #[test]
    fn strings_are_those_for_users_and_documentation_is_apart() {
        let text = concat!(
            "/// One\n/// two.\n#[error(\"three {0}\")]\nstruct A;\n",
            "#[expect(x, reason = \"no\")]\nconst B: &str = \"four \\\n five\\nsix\";\n",
            "#[arg(help = \"seven\")] fn b() { warn!(%x, r#\"eight \"9\"\"#, b\"no\", 'n'); }\n",
            "#[cfg(test)] mod tests { const C: &str = \"ten\"; }",
        );
        let source = read(text).expect("tokens");
        let strings: Vec<(&str, usize, bool)> =
            source.strings.iter().map(|found| (found.text.as_str(), found.line, found.in_test)).collect();
        let expected = [
            ("three {0}", 3, false),
            ("four  \n five  six", 6, false),
            ("seven", 8, false),
            ("eight \"9\"", 8, false),
            ("ten", 9, true),
        ];
        assert_eq!(strings, expected);
        assert_eq!(source.docs, [Text { text: " One\n two.".into(), line: 1, in_test: false }]);
    }

    #[test]
    fn a_call_in_a_macro_counts() {
        let found = paths("assert!(std::fs::read(x) != y);");
        assert_eq!(found, ["assert!", "std::fs::read", "x", "y"]);
    }

    #[test]
    fn what_only_tests_see_is_marked() {
        let text = "a::b(); #[cfg(test)] mod tests { c::d(); #[test] fn one() {} }\
            #[cfg(all(test, unix))] use e::f; g::h();\
            #[cfg(any(test, feature = \"testing\"))] fn i() { j::k() }";
        let found = paths(text);
        for (path, outside) in
            [("a::b", true), ("c::d", false), ("e::f", false), ("g::h", true), ("j::k", true)]
        {
            assert_eq!(found.iter().any(|found| found == path), outside, "{path} in {found:?}");
        }
        assert_eq!(read(text).expect("tokens").tests, ["one"]);
        assert!(paths("#![cfg(test)]\nuse a::b;").is_empty());
    }

    #[test]
    fn tests_of_every_kind_are_known() {
        let text = "#[tokio::test(start_paused = true)] async fn one() {}\
            proptest! { #[test] fn two(x in 0..3) {} } #[cfg(test)] fn helper() {} #[cfg(test)] mod more;";
        let source = read(text).expect("tokens");
        assert_eq!(source.tests, ["one", "two"]);
        assert_eq!(source.test_modules, ["more"]);
    }

    #[test]
    fn patterns_match_runs_of_parts() {
        let mention = Mention {
            parts: ["std", "time", "Instant", "now"].map(String::from).to_vec(),
            line: 1,
            in_test: false,
        };
        assert!(
            mention.matches("Instant::now") && mention.matches("std::time") && mention.matches("time::*")
        );
        assert!(!mention.matches("now::*") && !mention.matches("std::Instant"));
        assert!(paths("println!(\"x\")") == ["println!"] && paths("a != (b)") == ["a", "b"]);
    }
}
