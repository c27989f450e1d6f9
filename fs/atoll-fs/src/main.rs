//! `atoll-fs`: the processes of an Atoll filesystem, and the commands of its administrator.

mod admin;
#[cfg(feature = "count-allocations")]
mod allocations;
mod bootstrap;
mod cli;
mod cluster;
mod exit;
mod fsck;
mod fstab;
mod generate;
mod http;
#[cfg(feature = "servers")]
mod local;
mod memory;
mod metrics;
mod mount;
mod mountpoint;
mod served;
#[cfg(feature = "servers")]
mod servers;
mod signals;
mod size;
mod status;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::cli::{Cli, Command, LogFormat};
use crate::exit::{Failure, Outcome};

fn main() -> ExitCode {
    if let Some(code) = fstab::run() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // fsck(8) has a code of its own for wrong flags.
        Err(error) if error.use_stderr() && std::env::args().any(|argument| argument == "fsck") => {
            let _ = error.print();
            return ExitCode::from(fsck::USAGE);
        }
        Err(error) => error.exit(),
    };
    if let Command::Fsck(args) = &cli.command {
        return match start_logging(&cli) {
            Ok(()) => fsck::run(args),
            Err(failure) => {
                eprintln!("atoll-fs: {failure}");
                ExitCode::from(fsck::USAGE)
            }
        };
    }
    match start_logging(&cli).and_then(|()| run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("atoll-fs: {failure}");
            failure.exit_code()
        }
    }
}

fn run(command: Command) -> Outcome {
    match command {
        #[cfg(feature = "servers")]
        Command::Metadata(args) => servers::metadata(args),
        #[cfg(feature = "servers")]
        Command::Storage(args) => servers::storage(args),
        Command::Mount(args) => mount::run(args),
        #[cfg(feature = "servers")]
        Command::Local(command) => local::run(command),
        Command::Bootstrap(args) => bootstrap::run(&args),
        Command::Admin(command) => admin::run(&command),
        Command::Status(args) => status::run(&args),
        Command::Fsck(_) => unreachable!("it has exit codes of its own: main runs it"),
        Command::Keygen(args) => cluster::keygen(&args),
        Command::Completion(args) => generate::completion(args.shell),
        Command::Man(args) => generate::man(&args.directory),
    }
}

fn start_logging(cli: &Cli) -> Outcome {
    let filter = EnvFilter::try_new(&cli.log).map_err(|error| {
        Failure::failed(format_args!("--log '{}': {error}; try a level such as info or debug", cli.log))
    })?;
    // Spans are off unless they are asked for: docs/tracing.md.
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}
