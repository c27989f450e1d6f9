//! `kubectl atoll completion` and `kubectl atoll man`: generated from the definition of the command line.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::{Cli, CompletionFor};
use crate::exit::{Code, Failure};
use crate::output;

/// The name of the program.
const PROGRAM: &str = "kubectl-atoll";

/// Prints the completion of a shell.
///
/// # Errors
/// If it can't be written.
pub fn completion(shell: CompletionFor) -> Result<(), Failure> {
    output::text(&match shell {
        CompletionFor::Bash => script(Shell::Bash),
        CompletionFor::Zsh => script(Shell::Zsh),
        CompletionFor::Fish => script(Shell::Fish),
        CompletionFor::Kubectl => FOR_KUBECTL.to_owned(),
    })
}

/// What kubectl asks when a user completes `kubectl atoll`: a program of the name `kubectl_complete-atoll` in the PATH.
const FOR_KUBECTL: &str = "#!/bin/sh\nexec kubectl-atoll __complete -- \"$@\"\n";

/// The command line under the name that a shell knows it by.
fn command() -> clap::Command {
    Cli::command().name(PROGRAM).bin_name(PROGRAM)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), PROGRAM, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a manual page for the program and for each of its verbs.
///
/// # Errors
/// If they can't be written.
pub fn man(directory: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command(), directory))
        .map_err(|error| Failure::new(Code::Failed, format_args!("{}: {error}", directory.display())))?;
    output::text(&format!("manual pages are in {}: man -l {0}/{PROGRAM}.1\n", directory.display()))
}

/// What may follow the words of a command line, as kubectl's `kubectl_complete-atoll` has to print it: a word a line, then a
/// directive. The last word is the one that is being typed.
pub fn candidates(words: &[String]) -> String {
    /// Cobra's ShellCompDirectiveNoFileComp.
    const NO_FILES: &str = ":4\n";
    let mut command = command();
    command.build();
    let (typed, before) = words.split_last().map_or(("", &[][..]), |(last, rest)| (last.as_str(), rest));
    let mut at = &command;
    for word in before {
        if let Some(next) = at.find_subcommand(word) {
            at = next;
        }
    }
    let mut found: Vec<String> = Vec::new();
    if typed.starts_with('-') {
        let flags = at.get_arguments().filter(|argument| !argument.is_hide_set());
        for argument in flags {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let help = help.lines().next().unwrap_or_default().to_owned();
            found.extend(argument.get_long().map(|long| format!("--{long}\t{help}")));
        }
    } else if let Some(argument) = before.last().and_then(|word| flag(at, word)) {
        let values = argument.get_possible_values();
        found.extend(values.iter().map(|value| value.get_name().to_owned()));
    } else {
        let verbs = at.get_subcommands().filter(|verb| !verb.is_hide_set());
        found.extend(verbs.map(|verb| {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            format!("{}\t{}", verb.get_name(), about.lines().next().unwrap_or_default())
        }));
    }
    found.retain(|line| line.starts_with(typed));
    found.into_iter().map(|line| line + "\n").collect::<String>() + NO_FILES
}

/// The flag that a word is and that takes a value.
fn flag<'a>(command: &'a clap::Command, word: &str) -> Option<&'a clap::Arg> {
    command.get_arguments().find(|argument| {
        let is_it = argument.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long))
            || argument.get_short().is_some_and(|short| word == format!("-{short}"));
        is_it && argument.get_action().takes_values()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_completes_every_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
                assert!(script.contains(verb.get_name()), "{shell}: {}", verb.get_name());
            }
        }
    }

    #[test]
    fn every_verb_has_a_manual_page() {
        let directory = tempfile::tempdir().expect("a directory");
        clap_mangen::generate_to(command(), directory.path()).expect("pages");
        for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let page = directory.path().join(format!("{PROGRAM}-{}.1", verb.get_name()));
            let text =
                std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(text.contains(".SH DESCRIPTION") || text.contains(".SH OPTIONS"), "{text}");
        }
        let main = std::fs::read_to_string(directory.path().join("kubectl-atoll.1")).expect("a page");
        assert!(main.contains("Exit codes"), "{main}");
    }

    #[test]
    fn kubectl_is_told_what_may_follow() {
        let of =
            |words: &[&str]| candidates(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let verbs = of(&["w"]);
        assert!(verbs.starts_with("why\t") && verbs.ends_with("\n:4\n"), "{verbs}");
        assert!(of(&[""]).lines().count() > 10);
        assert!(of(&["status", "--all"]).starts_with("--all-namespaces\t"));
        assert_eq!(of(&["list", "-o", "w"]), "wide\n:4\n");
        assert_eq!(of(&["list", "-A", "x"]), ":4\n");
    }
}
