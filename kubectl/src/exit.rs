//! How a command ends.

use std::fmt;
use std::process::ExitCode;

/// Exit codes. 2 is a wrong flag (from the argument parser). The same as `atoll-fs`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Something failed.
    Failed = 1,
    /// What was asked for isn't there.
    NotFound = 3,
    /// Refused so that nothing is lost.
    Refused = 4,
    /// The Kubernetes cluster can't be reached.
    Unreachable = 5,
    /// A volume isn't healthy.
    Unhealthy = 6,
}

/// Why a command ended without success.
#[derive(Debug)]
pub struct Failure {
    /// Its exit code.
    pub code: Code,
    /// What happened and what to do; empty if all was said.
    pub message: String,
}

impl Failure {
    /// A failure with a message.
    pub fn new(code: Code, message: impl fmt::Display) -> Failure {
        Failure { code, message: message.to_string() }
    }

    /// The exit code for `main`.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code as u8)
    }

    /// What the API server said while `doing`.
    pub fn api(doing: impl fmt::Display) -> impl FnOnce(kube::Error) -> Failure {
        move |error| match &error {
            kube::Error::Api(status)
                if status.code == 404 && status.message.contains("could not find the requested") =>
            {
                Failure::new(
                    Code::NotFound,
                    "this Kubernetes cluster has no FileSystemClusters: install Atoll first",
                )
            }
            kube::Error::Api(status) if status.code == 404 => {
                Failure::new(Code::NotFound, format_args!("can't {doing}: {}", status.message))
            }
            kube::Error::Api(status) if status.code == 403 => {
                Failure::new(Code::Failed, format_args!("you aren't allowed to {doing}: {}", status.message))
            }
            kube::Error::Api(status) => {
                Failure::new(Code::Failed, format_args!("can't {doing}: {}", status.message))
            }
            _ => Failure::new(Code::Unreachable, format_args!("can't {doing}: {error}")),
        }
    }
}
