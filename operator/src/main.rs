//! The operator: keeps the pods of every FileSystemCluster as they shall be.
//!
//! Observe, validate, plan, apply, report: what decides (`validate`, `plan`, `build`, `state`, `trouble`, `report`) is
//! pure; what acts (`gather`, `apply`, `metadata`, `caches`, `leader`, `prerequisites`) decides nothing. See DESIGN.md.

mod apply;
mod build;
mod caches;
mod config;
mod context;
mod disk;
mod error;
mod events;
#[cfg(test)]
mod faults;
mod gather;
mod http;
#[cfg(test)]
mod installed;
mod keys;
mod leader;
mod metadata;
mod metrics;
mod nodes;
mod observe;
mod placement;
mod plan;
mod policy;
mod prerequisites;
mod reconcile;
mod report;
#[cfg(test)]
mod scale;
mod settings;
mod state;
#[cfg(test)]
mod testing;
mod trouble;
mod unreadable;
mod validate;
mod version;
mod watches;

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use atoll_proto::version::FEATURE_LEVEL;
use clap::Parser;
use futures::{StreamExt, stream};
use kube::Client;
use kube::runtime::controller::{self, Error as ControllerError};
use prometheus_client::registry::Registry;
use rand::Rng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt};

use crate::caches::{Caches, Wake};
use crate::config::{Config, Images, LogFormat};
use crate::context::{ASKED_MAX, Context, Parts};
use crate::error::call;
use crate::http::Told;
use crate::leader::{Candidate, Leadership};
use crate::metadata::{Network, Servers};
use crate::metrics::Metrics;
use crate::prerequisites::Unmet;
use crate::reconcile::{after_failure, reconcile};
use crate::settings::Settings;

/// Threads that work on clusters; all they do is wait for the network.
const THREADS: usize = 2;
/// Changes that come within this time are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How long reconciles that are under way may take to end after SIGTERM.
const STOP_WAIT_MAX: Duration = Duration::from_secs(20);

/// Why the operator ends.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    #[error(transparent)]
    Images(#[from] config::ImagesError),
    #[error(
        "no access to the API server: {0}; a pod needs a service account, other environments a kubeconfig"
    )]
    Client(#[from] kube::Error),
    #[error("can't listen on {address} for metrics: {source}; choose another address with --http")]
    Http { address: String, source: std::io::Error },
    #[error(transparent)]
    Prerequisites(#[from] build::prerequisites::PrerequisiteError),
    #[error("can't listen for signals: {0}")]
    Signals(std::io::Error),
    #[error("the leader election lease is lost: another operator may be active, so this one stops")]
    LeaseLost,
    #[error("a watch has ended")]
    WatchEnded,
}

/// Spans are off unless they are asked for: docs/tracing.md. kube has some of its own, whose ends nobody asked for.
fn start_logging(filter: EnvFilter, format: LogFormat) {
    let ours = filter_fn(|metadata| metadata.target() == "atoll::trace");
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry
            .with(fmt::layer().with_writer(std::io::stderr))
            .with(
                fmt::layer().with_span_events(FmtSpan::CLOSE).with_writer(std::io::stderr).with_filter(ours),
            )
            .init(),
        LogFormat::Json => registry
            .with(fmt::layer().json().with_writer(std::io::stderr))
            .with(
                fmt::layer()
                    .json()
                    .with_span_events(FmtSpan::CLOSE)
                    .with_writer(std::io::stderr)
                    .with_filter(ours),
            )
            .init(),
    }
}

fn main() -> ExitCode {
    let config = Config::parse();
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    start_logging(filter, config.log_format);
    // The second call of a process is refused; this is the first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(config)),
        Err(error) => {
            tracing::error!(%error, "the async runtime can't be started");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the operator stops because of an error");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<(), Fatal> {
    let stopping = stop_on_signals()?;
    let settings = Settings::read(config.config.as_deref())?;
    let mut images = Images::parse(&config)?;
    images.pods = settings.pods.clone();
    let mut registry = Registry::with_prefix("atoll_operator");
    let metrics = Metrics::register(&mut registry);
    let told = Arc::new(Told {
        registry,
        metrics: metrics.clone(),
        caches: OnceLock::new(),
        reached: OnceLock::new(),
        unmet: Unmet::default(),
    });
    http::serve(&config.http, Arc::clone(&told))
        .await
        .map_err(|source| Fatal::Http { address: config.http.clone(), source })?;
    let client = Client::try_default().await?;
    tracing::info!(version = config::VERSION, versions = ?images.versions(), "the operator is starting");
    reach(&client, &told, &stopping).await;

    let me =
        config.identity.clone().unwrap_or_else(|| format!("operator-{:08x}", rand::rng().random::<u32>()));
    let mut candidate = Candidate::new(client.clone(), &config.namespace, me.clone());
    if !config.no_leader_election {
        tokio::select! {
            () = candidate.acquire() => {}
            () = stopping.cancelled() => return Ok(()),
        }
    }
    metrics.lead();
    let leadership = if config.no_leader_election { Leadership::always() } else { candidate.leadership() };
    let result = tokio::select! {
        result = work(&config, client, Box::new(Network), (images, settings), &told, (me, leadership), stopping) => result,
        () = candidate.keep(), if !config.no_leader_election => Err(Fatal::LeaseLost),
    };
    if !config.no_leader_election && !matches!(result, Err(Fatal::LeaseLost)) {
        candidate.release().await;
    }
    result
}

/// Waits until the API server has answered once.
async fn reach(client: &Client, told: &Told, stopping: &CancellationToken) {
    loop {
        match call("ask the API server for its version", client.apiserver_version()).await {
            Ok(version) => {
                tracing::info!(version = version.git_version, "the API server responds");
                let _ = told.reached.set(());
                return;
            }
            Err(error) => tracing::warn!(%error, "the API server doesn't respond; retrying"),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Works on clusters until it is told to stop.
#[expect(
    clippy::disallowed_methods,
    reason = "wakes are no more than the objects that the caches hold; with a bound the watches would wait for a reader that \
              waits for the watches"
)]
async fn work(
    config: &Config,
    client: Client,
    servers: Box<dyn Servers>,
    (images, settings): (Images, Settings),
    told: &Told,
    (me, leadership): (String, Leadership),
    stopping: CancellationToken,
) -> Result<(), Fatal> {
    let (wakes, mut woken) = mpsc::unbounded_channel::<Wake>();
    let kept = tokio::select! {
        kept = prerequisites::create(&client, &told.unmet) => kept?,
        () = stopping.cancelled() => return Ok(()),
    };
    let mut watches = JoinSet::new();
    watches.spawn(prerequisites::keep(client.clone(), kept, told.unmet.clone()));
    let recorder = context::recorder(&client, me);
    let caches = Caches::start(&client, &config.watched_namespaces(), &recorder, &wakes, &mut watches);
    tokio::select! {
        ready = caches.ready() => if !ready { return Err(Fatal::WatchEnded) },
        () = stopping.cancelled() => return Ok(()),
    }
    let _ = told.caches.set(caches.clone());
    let clusters = caches.clusters.clone();
    let context = Arc::new(Context::new(Parts {
        client,
        caches,
        servers,
        leadership,
        images,
        feature_level: FEATURE_LEVEL,
        settings,
        metrics: told.metrics.clone(),
        recorder,
        concurrency: config.concurrency,
    }));
    let memory = Arc::clone(&context);
    let asked_to_stop = stopping.clone();
    let queue = stream::poll_fn(move |cx| woken.poll_recv(cx))
        .map(Ok::<_, Infallible>)
        .take_until(async move { asked_to_stop.cancelled().await });
    // Those that wait for their cluster's servers keep nobody from being worked on.
    let in_progress_max = config.concurrency.saturating_add(ASKED_MAX);
    let settings = controller::Config::default().concurrency(in_progress_max).debounce(DEBOUNCE);
    let reconciles = controller::applier(
        |cluster, context| Box::pin(reconcile(cluster, context)),
        after_failure,
        context,
        clusters,
        queue,
        settings,
    );
    let running = reconciles.for_each(|result| {
        let memory = Arc::clone(&memory);
        async move {
            match result {
                // Failures are logged where the pause after them is chosen.
                Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
                Err(ControllerError::ObjectNotFound(gone)) => {
                    tracing::debug!(cluster = %gone, "the cluster was deleted");
                    memory.memory.lock().await.retain(|key, _| key.clone().erase() != *gone);
                }
                Err(error) => tracing::warn!(%error, "a cluster can't be reconciled"),
            }
        }
    });
    let ended = async {
        stopping.cancelled().await;
        tokio::time::sleep(STOP_WAIT_MAX).await;
    };
    tokio::select! {
        () = running => {}
        () = ended => tracing::warn!("reconciliations in progress are cancelled"),
        _ = watches.join_next() => return Err(Fatal::WatchEnded),
    }
    tracing::info!("the operator is stopping");
    Ok(())
}

/// SIGTERM and SIGINT mean: finish what is under way, then go.
fn stop_on_signals() -> Result<CancellationToken, Fatal> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Fatal::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Fatal::Signals)?;
    let stopping = CancellationToken::new();
    let token = stopping.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(stopping)
}
