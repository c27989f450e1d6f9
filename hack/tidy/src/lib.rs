//! The rules of this repository that no compiler checks, as tests: `cargo test` in this crate, a part of `make verify`.
//!
//! Readers are told where things are by what is absent ("no clock in `fs/core`"); a test here fails when such a
//! sentence stops being true, and says what to do instead. [`Repository`] is what is looked at: the workspace as cargo
//! resolves it and the text of every file. Each module of [`rules`] is one subject; a rule is a function from a
//! repository to [`Finding`]s, so that its own tests can hand it a repository with a planted violation.
//! `tests/house.rs` runs all of them on this repository.

pub mod repository;
pub mod rules;
pub mod source;
pub mod workspace;

pub use repository::Repository;

/// A place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// A file, with its line if it has one, or a crate.
    pub place: String,
    /// What is there.
    pub what: String,
}

impl Finding {
    /// A finding in a file or a crate.
    #[must_use]
    pub fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }

    /// A finding on a line of a file.
    #[must_use]
    pub fn at(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self::new(format!("{path}:{line}"), what)
    }
}

/// What must hold, and where it doesn't.
#[derive(Debug)]
pub struct Verdict {
    /// The rule, in one sentence.
    pub rule: &'static str,
    /// What to do instead, or why.
    pub instead: &'static str,
    /// Where it is broken.
    pub findings: Vec<Finding>,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}\n  instead: {}", self.rule, self.instead)?;
        for Finding { place, what } in &self.findings {
            writeln!(f, "    {place}: {what}")?;
        }
        Ok(())
    }
}
