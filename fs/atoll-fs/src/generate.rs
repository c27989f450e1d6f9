//! `atoll-fs completion` and `atoll-fs man`: generated from the definition of the command line.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::{Cli, CompletionShell};
use crate::exit::{Failure, Outcome};

/// The name of the program.
const PROGRAM: &str = "atoll-fs";

/// Prints the completion script of a shell.
///
/// # Errors
/// If it can't be written.
pub fn completion(shell: CompletionShell) -> Outcome {
    let script = script(match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    });
    match std::io::stdout().write_all(&script) {
        // Who reads it has seen enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format_args!("can't write: {error}")))
        }
        _ => Ok(()),
    }
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
    script
}

/// Writes a manual page for the program and for each of its commands.
///
/// # Errors
/// If they can't be written.
pub fn man(directory: &Path) -> Outcome {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .map_err(|error| Failure::failed(format_args!("{}: {error}", directory.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_completed_and_has_a_manual_page() {
        let directory = tempfile::tempdir().unwrap();
        man(directory.path()).unwrap();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
                let page = directory.path().join(format!("{PROGRAM}-{}.1", command.get_name()));
                assert!(page.exists(), "{}", page.display());
            }
        }
        let deep = directory.path().join("atoll-fs-admin-members-replace.1");
        assert!(deep.exists(), "commands of commands, too");
        let main = std::fs::read_to_string(directory.path().join("atoll-fs.1")).unwrap();
        assert!(main.contains("Exit codes"), "{main}");
    }
}
