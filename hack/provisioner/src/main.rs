//! atoll-provisioner: the storage of test clusters. It makes, grows and deletes volumes that are folders and images on
//! the disks of the nodes that `hack/kube` raises. Not for use anywhere else: its nodes are processes of this machine.
//!
//! `decide` says what a claim or a volume needs; `reconcile` and `disk` do it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

mod decide;
mod disk;
mod error;
mod object;
mod quantity;
mod reconcile;

/// Makes volumes on the nodes of a test cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// How to reach the API server.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The cluster's state folder.
    #[arg(long)]
    state: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Box<dyn std::error::Error>> {
    // Two libraries could be the process's one for cryptography; this is the one that is linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(&cli.kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    reconcile::serve(Client::try_from(config)?, disk::Disks::new(cli.state)).await?;
    Ok(())
}
