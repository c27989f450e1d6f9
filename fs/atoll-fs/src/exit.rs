//! How a command ends: messages that say what to do, and exit codes that mean something.

use std::fmt;
use std::process::ExitCode;

/// Exit codes. 2 is a wrong flag (from the argument parser).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Something failed while it ran.
    Failed = 1,
    /// What was asked for isn't there or isn't running.
    NotFound = 3,
    /// Refused so that nothing is lost: foreign data, a folder in use, a mount point with content.
    Refused = 4,
    /// The cluster can't be reached, or not in time.
    Unreachable = 5,
    /// The cluster answers and says that something is wrong with it.
    Unhealthy = 6,
    /// The volume is for one machine at a time, and another one has it.
    Taken = 7,
}

/// Why a command ended without success.
#[derive(Debug)]
pub struct Failure {
    /// Its exit code.
    pub code: Code,
    /// What happened and what to do, for a person.
    pub message: String,
}

impl Failure {
    /// A failure with a message.
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Failure { code, message: message.to_string() }
    }

    /// Something failed while it ran.
    pub fn failed(message: impl fmt::Display) -> Self {
        Failure::new(Code::Failed, message)
    }

    /// Refused so that nothing is lost.
    pub fn refused(message: impl fmt::Display) -> Self {
        Failure::new(Code::Refused, message)
    }

    /// The exit code for `main`.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// What commands return.
pub type Outcome = Result<(), Failure>;

/// Adds what was being done to an error.
pub trait Context<T> {
    /// `what: error`, as a failure.
    fn context(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::failed(format_args!("{what}: {error}")))
    }
}
