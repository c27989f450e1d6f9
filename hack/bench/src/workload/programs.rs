//! Running programs.

use std::process::{Command, Output, Stdio};

use crate::fault::Fault;

/// How much of what a program said goes into an error, in bytes.
const SAID_MAX: usize = 300;

/// A program with an environment that doesn't depend on who runs it.
pub fn program(name: &'static str) -> Command {
    let mut command = Command::new(name);
    command
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Has it in the caches: nobody should pay for reading it from the disk.
///
/// # Errors
/// If it isn't installed.
pub fn warm(name: &'static str) -> Result<(), Fault> {
    run(name, program(name).arg("--version"))
}

/// Runs it to its end.
///
/// # Errors
/// If it can't be started or fails.
pub fn run(name: &'static str, command: &mut Command) -> Result<(), Fault> {
    let output = command.output().map_err(|error| Fault::Program { name, said: error.to_string() })?;
    succeeded(name, &output)
}

/// An error with the end of what it said if the program failed.
pub fn succeeded(name: &'static str, output: &Output) -> Result<(), Fault> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let start = said.char_indices().rev().nth(SAID_MAX).map_or(0, |(index, _)| index);
    Err(Fault::Program { name, said: format!("{}: {}", output.status, said[start..].trim()) })
}
