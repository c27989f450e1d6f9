//! What can go wrong, and whether it is worth another try.

use std::io;
use std::path::Path;

/// Why a volume is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or is away.
    #[error("API server: {0}")]
    Api(#[from] kube::Error),
    /// The disk of a node that is powered off can't be reached.
    #[error("{} is powered off", .0.as_deref().unwrap_or("the node"))]
    Off(Option<String>),
    /// The name of a volume or a node that no object of ours has.
    #[error("'{0}' is no name of a volume")]
    Name(String),
    /// A call to the system failed.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// The error.
        error: io::Error,
    },
    /// A program failed.
    #[error("{name}: {said}")]
    Program {
        /// Its name and arguments.
        name: String,
        /// What it said.
        said: String,
    },
    /// A task of this program ended early.
    #[error("{0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Adds to an error what was being done.
pub trait IoContext<T> {
    /// `verb` and `path` name it: "make /x".
    fn doing(self, verb: &str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn doing(self, verb: &str, path: &Path) -> Result<T, Error> {
        self.map_err(|error| Error::Io { what: format!("{verb} {}", path.display()), error })
    }
}
