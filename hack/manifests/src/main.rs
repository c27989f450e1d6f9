//! What the kustomize bases and the chart have in common, and what every rendering of the chart has to have. hack/chart.sh renders;
//! this compares.

mod objects;
mod rules;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::objects::{Objects, differences};
use crate::rules::{Expected, violations};

/// Compares and checks rendered manifests.
#[derive(Parser, Debug)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Whether two files have the same objects, whatever their order.
    Same {
        /// What kustomize renders.
        left: PathBuf,
        /// What helm renders.
        right: PathBuf,
        /// Objects that the first may have alone: KIND/NAME.
        #[arg(long, value_name = "KIND/NAME")]
        only_left: Vec<String>,
    },
    /// Whether what helm renders has what its values ask for.
    Check {
        /// What helm renders.
        file: PathBuf,
        /// The registry of every image.
        #[arg(long)]
        registry: Option<String>,
        /// A pull secret of every pod, and of the servers' pods.
        #[arg(long)]
        pull_secret: Option<String>,
        /// kubelet's directory.
        #[arg(long, default_value = "/var/lib/kubelet")]
        kubelet: String,
        /// Every process listens on `[::]`.
        #[arg(long)]
        ipv6: bool,
        /// Kinds that have to be there.
        #[arg(long)]
        has: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            findings.iter().for_each(|finding| eprintln!("{finding}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<Vec<String>, String> {
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Objects::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    };
    match cli.command {
        Command::Same { left, right, only_left } => {
            Ok(differences(&read(&left)?, &read(&right)?, &only_left))
        }
        Command::Check { file, registry, pull_secret, kubelet, ipv6, has } => {
            Ok(violations(&read(&file)?, &Expected { registry, pull_secret, kubelet, ipv6, has }))
        }
    }
}
