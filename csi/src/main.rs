//! `atoll-csi`: the CSI driver's processes.

mod cli;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use atoll_crds::names::VolumeHandle;
use atoll_csi::clusters::KubernetesClusters;
use atoll_csi::controller::ControllerService;
use atoll_csi::csi::controller_server::ControllerServer;
use atoll_csi::csi::identity_server::IdentityServer;
use atoll_csi::csi::node_server::NodeServer;
use atoll_csi::holder::Keeper;
use atoll_csi::identity::IdentityService;
use atoll_csi::mount_host::client::{Finder, Pods};
use atoll_csi::mount_host::{SOCKET, Supervisor, SupervisorConfig};
use atoll_csi::node::watch::Watch;
use atoll_csi::node::{Node, NodeService};
use atoll_csi::registration::{self, State};
use atoll_csi::rpc::Rpcs;
use atoll_csi::server::{self, Readiness};
use clap::Parser;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::cli::{Cli, Command, ControllerArgs, HolderArgs, LogFormat, MountHostArgs, NodeArgs};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = start_logging(&cli).and_then(|()| {
        // The API server is reached by TLS; one provider, chosen here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let result = runtime.block_on(run(cli));
        // A system call that hangs on a dead mount must not hold the process up.
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("atoll-csi: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(cli: &Cli) -> Outcome {
    let filter = EnvFilter::try_new(&cli.log)
        .map_err(|error| format!("--log '{}': {error}; try a level such as info or debug", cli.log))?;
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

async fn run(cli: Cli) -> Outcome {
    let stop = stop_on_signal()?;
    match &cli.command {
        Command::Controller(args) => controller(args, stop).await,
        Command::Node(args) => node(args, stop).await,
        Command::MountHost(args) => mount_host(&cli, args, stop).await,
        Command::Holder(args) => holder(args, stop).await,
    }
}

/// A token that SIGTERM and SIGINT cancel.
fn stop_on_signal() -> Result<CancellationToken, std::io::Error> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let asked = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        asked.cancel();
    });
    Ok(stop)
}

async fn controller(args: &ControllerArgs, stop: CancellationToken) -> Outcome {
    let socket = server::endpoint_path(&args.endpoint)?;
    let rpcs = Arc::new(Rpcs::default());
    let clusters = KubernetesClusters::new(kube::Client::try_default().await?, &args.namespace);
    let service = ControllerService::new(Arc::new(clusters), Arc::clone(&rpcs));
    let mut registry = Registry::with_prefix("atoll");
    rpcs.register(&mut registry);
    let health = server::probe(socket.clone());
    server::serve_http(&args.http, registry, Arc::clone(&health), health).await?;
    let router = Server::builder()
        .add_service(IdentityServer::new(IdentityService::new(Arc::clone(&rpcs))))
        .add_service(ControllerServer::new(service));
    tracing::info!(endpoint = args.endpoint, namespace = args.namespace, "starting the CSI controller");
    Ok(server::serve(router, &socket, stop).await?)
}

async fn node(args: &NodeArgs, stop: CancellationToken) -> Outcome {
    let socket = server::endpoint_path(&args.endpoint)?;
    let client = kube::Client::try_default().await?;
    let pods = Pods::new(client.clone(), &args.namespace, &args.node, args.kubelet.clone());
    let node = Arc::new(Node {
        name: args.node.clone(),
        finder: Finder::pods(pods, args.holder.clone()),
        addresses: Arc::new(VolumeHandle::metadata_addresses),
    });
    tokio::spawn(Watch::new(Arc::clone(&node), client, args.kubelet.clone()).run());
    let rpcs = Arc::new(Rpcs::default());
    let service = NodeService::new(Arc::clone(&node), args.volumes_max, Arc::clone(&rpcs));
    let mut registry = Registry::with_prefix("atoll");
    rpcs.register(&mut registry);
    let state = Arc::new(watch::channel(State::Waiting).0);
    let ready = node_readiness(&node, &state);
    server::serve_http(&args.http, registry, server::probe(socket.clone()), ready).await?;
    let router = Server::builder()
        .add_service(IdentityServer::new(IdentityService::new(Arc::clone(&rpcs))))
        .add_service(NodeServer::new(service));
    let registry_folder = args.kubelet.join("plugins_registry");
    let registering =
        registration::serve(&registry_folder, &args.kubelet_endpoint, Arc::clone(&state), stop.clone());
    tracing::info!(endpoint = args.endpoint, node = args.node, "starting the CSI node plugin");
    let refused = async {
        let mut state = state.subscribe();
        match state.wait_for(|state| matches!(state, State::Refused(_))).await.as_deref() {
            Ok(State::Refused(why)) => why.clone(),
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        result = async { tokio::try_join!(server::serve(router, &socket, stop.clone()), registering) } => {
            result?;
            Ok(())
        }
        why = refused => Err(format!("kubelet refused the driver: {why}").into()),
    }
}

/// Registered, the device is there, and the mount host can be reached.
fn node_readiness(node: &Arc<Node>, state: &Arc<watch::Sender<State>>) -> Readiness {
    let (node, state) = (Arc::clone(node), Arc::clone(state));
    Arc::new(move || {
        let (node, state) = (Arc::clone(&node), Arc::clone(&state));
        Box::pin(async move {
            if *state.borrow() != State::Registered {
                return Some("kubelet has not registered the driver yet".to_owned());
            }
            if let Err(error) = std::fs::metadata("/dev/fuse") {
                return Some(format!("/dev/fuse: {error} (is the fuse module loaded?)"));
            }
            node.finder.problem().await
        })
    })
}

async fn mount_host(cli: &Cli, args: &MountHostArgs, stop: CancellationToken) -> Outcome {
    let config = SupervisorConfig {
        socket: args.folder.join(SOCKET),
        holder: args.holder.clone(),
        program: args.program.clone(),
        clients_max: args.volumes_max,
        memory: args.memory,
        client_timeout: Duration::from_secs(args.client_timeout.into()),
        environment: vec![
            ("ATOLL_LOG".to_owned(), args.client_log.clone()),
            ("ATOLL_LOG_FORMAT".to_owned(), cli.log_format.name().to_owned()),
        ],
    };
    let supervisor = Supervisor::start(config)?;
    let mut registry = Registry::with_prefix("atoll");
    supervisor.register(&mut registry);
    let asked = supervisor.clone();
    let ready: Readiness = Arc::new(move || {
        let asked = asked.clone();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || asked.problem()).await.unwrap_or_else(|e| Some(e.to_string()))
        })
    });
    let health: Readiness = Arc::new(|| Box::pin(async { None }));
    server::serve_http(&args.http, registry, health, ready).await?;
    tracing::info!(folder = %args.folder.display(), "starting the mount host");
    stop.cancelled().await;
    let grace = Duration::from_secs(args.grace.into());
    tokio::task::spawn_blocking(move || supervisor.stop(grace)).await?;
    Ok(())
}

async fn holder(args: &HolderArgs, stop: CancellationToken) -> Outcome {
    let folder = args.folder.clone();
    let keeper = tokio::select! {
        // It waits for the holder before it.
        started = tokio::task::spawn_blocking(move || Keeper::start(&folder)) => started??,
        () = stop.cancelled() => return Ok(()),
    };
    let mut registry = Registry::with_prefix("atoll");
    keeper.register(&mut registry);
    // That it listens at the address says that it has the lock and the socket.
    let health: Readiness = Arc::new(|| Box::pin(async { None }));
    server::serve_http(&args.http, registry, Arc::clone(&health), health).await?;
    tracing::info!(folder = %args.folder.display(), "keeping the mounts of this node");
    stop.cancelled().await;
    let grace = Duration::from_secs(args.grace.into());
    match tokio::task::spawn_blocking(move || keeper.stop(grace)).await? {
        0 => Ok(()),
        lost => {
            Err(format!("{lost} mounts end with the holder: no mount host had them within the grace period")
                .into())
        }
    }
}
