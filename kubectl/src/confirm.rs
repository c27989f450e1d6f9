//! Asks before what can't be taken back.

use std::io::{IsTerminal, Write};

use crate::exit::{Code, Failure};

/// Says what will happen, and has the name of the resource typed for it.
///
/// # Errors
/// Unless it is typed; without a terminal `--yes` is named.
pub fn ask(consequence: &str, name: &str) -> Result<(), Failure> {
    eprintln!("{consequence}");
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Code::Refused, "standard input isn't a terminal: use --yes"));
    }
    eprint!("Type the name of the FileSystemCluster to continue: ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    match std::io::stdin().read_line(&mut answer) {
        Ok(_) if answer.trim() == name => Ok(()),
        _ => Err(Failure::new(Code::Refused, "nothing was changed")),
    }
}
