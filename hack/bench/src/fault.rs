//! What can go wrong while measuring.

use std::fmt;
use std::io;
use std::path::Path;

/// Why a workload has no result.
#[derive(Debug)]
pub enum Fault {
    /// A call to the filesystem failed.
    Io {
        /// What was being done, to which file.
        what: String,
        /// The error.
        error: io::Error,
    },
    /// The filesystem gave back something else than was written.
    Wrong(String),
    /// A program failed.
    Program {
        /// Its name.
        name: &'static str,
        /// The end of what it said.
        said: String,
    },
    /// Somebody wants the run to end.
    Interrupted,
}

impl Fault {
    /// True if the target is gone: its server ended or its connection was aborted.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Fault::Io { error, .. } if is_disconnect(error))
    }
}

/// True for the errors of a FUSE mount that nobody serves.
pub fn is_disconnect(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Io { what, error } => write!(f, "{what}: {error}"),
            Fault::Wrong(what) => write!(f, "WRONG DATA: {what}"),
            Fault::Program { name, said } => write!(f, "{name} failed: {said}"),
            Fault::Interrupted => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for Fault {}

/// Adds to an error what was being done.
pub trait Context<T> {
    /// `verb` and `path` name it: "open /mnt/x".
    fn doing(self, verb: &str, path: &Path) -> Result<T, Fault>;
}

impl<T> Context<T> for io::Result<T> {
    fn doing(self, verb: &str, path: &Path) -> Result<T, Fault> {
        // Only the last parts: the folder is the same everywhere and long.
        let short = path.iter().rev().take(2).collect::<Vec<_>>();
        let short: std::path::PathBuf = short.into_iter().rev().collect();
        self.map_err(|error| Fault::Io { what: format!("{verb} {}", short.display()), error })
    }
}
