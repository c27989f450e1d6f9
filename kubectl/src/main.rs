//! `kubectl atoll`: how volumes are, and the few things that an administrator does to them by hand.
//!
//! What is shown is put together in `view`, which is pure; everything it needs is read with `get` and `list` alone.

mod adopt;
mod cli;
mod clients;
mod confirm;
mod delete;
mod drain;
mod dump;
mod events;
mod exit;
mod find;
mod fsck;
mod generate;
mod list;
mod orphans;
mod output;
mod proxy;
mod recovery;
mod status;
mod top;
mod uninstall;
mod upgrade;
mod view;
mod why;

use std::process::ExitCode;

use clap::Parser;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::cli::{Cli, Command, Connection};
use crate::exit::{Code, Failure};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The second call of a process is refused; this is the first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the async runtime can't be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("error: {}", failure.message);
            }
            failure.exit_code()
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    // What needs no Kubernetes cluster.
    let connection = match &cli.command {
        Command::Completion(args) => return generate::completion(args.shell),
        Command::Man(args) => return generate::man(&args.directory),
        Command::Complete(args) => return output::text(&generate::candidates(&args.words)),
        Command::Status(args) => &args.selection.listing.connection,
        Command::List(args) => &args.listing.connection,
        Command::Why(args) => &args.connection,
        Command::Clients(args) => &args.selection.listing.connection,
        Command::Events(args) => &args.selection.listing.connection,
        Command::Top(args) => &args.selection.listing.connection,
        Command::Fsck(args) => &args.connection,
        Command::Drain(args) => &args.connection,
        Command::Dump(args) => &args.selection.connection,
        Command::Delete(args) => &args.connection,
        Command::Orphans(args) => &args.listing.connection,
        Command::Adopt(args) => &args.connection,
        Command::Upgrade(args) => &args.connection,
        Command::UnsafeRecovery(args) => &args.connection,
        Command::Uninstall(args) => &args.connection,
    };
    let (client, namespace) = connect(connection).await?;
    match &cli.command {
        Command::Status(args) => status::run(client, &namespace, args).await,
        Command::List(args) => list::run(client, &namespace, args).await,
        Command::Why(args) => why::run(client, &namespace, args).await,
        Command::Clients(args) => clients::run(client, &namespace, args).await,
        Command::Events(args) => events::run(client, &namespace, args).await,
        Command::Top(args) => top::run(client, &namespace, args).await,
        Command::Fsck(args) => fsck::run(client, &namespace, args).await,
        Command::Drain(args) => drain::run(client, &namespace, args).await,
        Command::Dump(args) => dump::run(client, &namespace, args).await,
        Command::Delete(args) => delete::run(client, &namespace, args).await,
        Command::Orphans(args) => orphans::run(client, &namespace, args).await,
        Command::Adopt(args) => adopt::run(client, &namespace, args).await,
        Command::Upgrade(args) => upgrade::run(client, &namespace, args).await,
        Command::UnsafeRecovery(args) => recovery::run(client, &namespace, args).await,
        Command::Uninstall(args) => uninstall::run(client, args).await,
        Command::Completion(_) | Command::Man(_) | Command::Complete(_) => Ok(()),
    }
}

/// A client, and the namespace that is meant.
async fn connect(connection: &Connection) -> Result<(Client, String), Failure> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Failure::new(
            Code::Unreachable,
            format_args!(
                "no access to a Kubernetes cluster: {error}; name a file with --kubeconfig, or a context \
                 with --context"
            ),
        )
    };
    let options = KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
    let config = match &connection.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| unreachable(&error))?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(|error| unreachable(&error))?
        }
        None if connection.context.is_some() => {
            Config::from_kubeconfig(&options).await.map_err(|error| unreachable(&error))?
        }
        None => Config::infer().await.map_err(|error| unreachable(&error))?,
    };
    let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| unreachable(&error))?;
    Ok((client, namespace))
}
