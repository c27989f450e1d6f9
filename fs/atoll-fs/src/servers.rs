//! `atoll-fs metadata` and `atoll-fs storage`: a server each, until SIGTERM.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use atoll_metadata::server::{MetadataConfig, MetadataServer, StartError as MetadataError};
use atoll_metadata::store::folder::FolderError;
use atoll_metadata::store::records::Backend;
use atoll_proto::Encryption;
use atoll_storage::store::StoreError;
use atoll_storage::{StartError as StorageError, StorageConfig, StorageServer};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use crate::cli::{MetadataArgs, StorageArgs};
use crate::cluster::{self, serving_runtime};
use crate::exit::{Failure, Outcome};
use crate::{http, signals};

/// How long a leader that is to end looks for another one to lead.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);
/// Threads that answer requests; what blocks has threads of its own.
const SERVER_THREADS: usize = 2;
/// Those of a storage server. Its disk's work is done by others; what is left is to pass bytes on, and a second thread would
/// be woken for each request only to find nothing to do.
const STORAGE_THREADS: usize = 1;

/// Runs a metadata server.
///
/// # Errors
/// If it can't start.
pub fn metadata(args: MetadataArgs) -> Outcome {
    let (id, key, encryption) = cluster::identity(&args.cluster)?;
    let listen = args.listen.parse().map_err(Failure::failed)?;
    let config = MetadataConfig {
        advertise: args.advertise,
        encryption,
        session_lifetime: Duration::from_secs(args.session_lifetime.into()),
        repair_after: Duration::from_secs(args.repair_after.into()),
        repair_bytes_per_second: args.repair_rate.0,
        snapshot_bytes_per_second: args.snapshot_rate.0,
        ballast_bytes: args.ballast.0,
        records: args
            .block_cache
            .map_or_else(Backend::default, |size| Backend::Rocks { cache_bytes: size.0 }),
        sync: !args.unsafe_no_sync,
        ..MetadataConfig::new(args.data, listen, id, key)
    };
    serving_runtime(SERVER_THREADS)?.block_on(async {
        let asked_to_end = signals::listen()?;
        let mut registry = Registry::default();
        tokio::pin!(asked_to_end);
        // A damaged member looks for another one that leads, which may take a while. To be killed meanwhile is as good.
        let mut server = tokio::select! {
            started = MetadataServer::start(config, &mut registry) => started.map_err(metadata_failure)?,
            signal = &mut asked_to_end => {
                tracing::info!(signal, "stopping during the start");
                return Ok(());
            }
        };
        let health = Arc::new(Mutex::new(server.health_probe()));
        let ready: http::Readiness = {
            let health = health.clone();
            Arc::new(move || (health.lock())().err())
        };
        http::serve(&args.http, Arc::new(registry), ready).await?;
        loop {
            tokio::select! {
                signal = &mut asked_to_end => {
                    tracing::info!(signal, "stopping");
                    let transferring = tokio::time::timeout(TRANSFER_TIMEOUT, server.transfer_leadership());
                    if transferring.await.is_err() {
                        tracing::info!("no other metadata server became the leader within the timeout");
                    }
                    server.shutdown().await;
                    return Ok(());
                }
                damage = server.damaged() => {
                    server = tokio::select! {
                        rebuilt = server.rebuild(&damage) => rebuilt.map_err(metadata_failure)?,
                        signal = &mut asked_to_end => {
                            tracing::info!(signal, "stopping while this metadata server is being rebuilt");
                            return Ok(());
                        }
                    };
                    *health.lock() = server.health_probe();
                }
            }
        }
    })
}

/// Runs a storage server.
///
/// # Errors
/// If it can't start.
pub fn storage(args: StorageArgs) -> Outcome {
    let (id, key, encryption) = cluster::identity(&args.cluster)?;
    let listen = args.listen.parse().map_err(Failure::failed)?;
    let config = StorageConfig {
        advertise: args.advertise,
        metadata: cluster::addresses(&args.metadata.metadata)?,
        encryption,
        labels: labels(&args.labels)?,
        ballast_bytes: args.ballast.0,
        scrub_bytes_per_s: args.scrub_rate.0,
        scrub_pause: Duration::from_secs(args.scrub_pause),
        sync: !args.unsafe_no_sync,
        ..StorageConfig::new(args.data, listen, id, key)
    };
    // Encryption is work that two can share.
    let threads = if encryption == Encryption::Required { SERVER_THREADS } else { STORAGE_THREADS };
    serving_runtime(threads)?.block_on(async {
        let asked_to_end = signals::listen()?;
        let server = StorageServer::start(config).await.map_err(storage_failure)?;
        let mut registry = Registry::default();
        server.register_metrics(&mut registry);
        let registered = server.registration();
        let ready: http::Readiness = Arc::new(move || {
            (!registered())
                .then(|| "not registered: the metadata servers could not be reached lately".to_owned())
        });
        http::serve(&args.http, Arc::new(registry), ready).await?;
        let signal = asked_to_end.await;
        tracing::info!(signal, "stopping");
        server.shutdown().await;
        Ok(())
    })
}

/// A label without a value says nothing: where a zone isn't known, it is left out.
fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    texts
        .iter()
        .filter(|text| !text.ends_with('='))
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Failure::failed(format_args!("--labels '{text}': write KEY=VALUE, such as zone=a"))),
        })
        .collect()
}

fn refused(error: impl Display) -> Failure {
    Failure::refused(error)
}

/// The exit code by the kind of error: what would touch somebody else's data is a refusal.
pub fn metadata_failure(error: MetadataError) -> Failure {
    match error {
        MetadataError::Folder(FolderError::Io { .. }) => Failure::failed(error),
        MetadataError::Folder(_)
        | MetadataError::State(_)
        | MetadataError::Raft(_)
        | MetadataError::NewerLevel { .. } => refused(error),
        MetadataError::Bind(_)
        | MetadataError::Advertise(_)
        | MetadataError::NobodyLeads { .. }
        | MetadataError::Stopped => Failure::failed(error),
    }
}

/// As [`metadata_failure`].
pub fn storage_failure(error: StorageError) -> Failure {
    match error {
        StorageError::Store(StoreError::Io { .. }) => Failure::failed(error),
        StorageError::Store(_) => refused(error),
        StorageError::Folder { .. } | StorageError::Bind(_) | StorageError::NoAddress { .. } => {
            Failure::failed(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_those_without_a_value_left_out() {
        let read = |texts: &[&str]| labels(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let found = read(&["host=node-1", "zone="]).unwrap();
        assert_eq!(found, BTreeMap::from([("host".to_owned(), "node-1".to_owned())]));
        for wrong in ["zone", "=a"] {
            assert!(read(&[wrong]).unwrap_err().to_string().contains("KEY=VALUE"), "{wrong}");
        }
    }
}
