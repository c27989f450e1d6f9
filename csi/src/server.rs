//! Serving: the socket, the HTTP endpoint for health and figures, and their orderly end.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router as GrpcRouter;
use tonic::transport::{Endpoint, Error as TransportError};

use crate::authority::AnyAuthority;
use crate::csi::ProbeRequest;
use crate::csi::identity_client::IdentityClient;

/// How long a probe through the socket may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long calls may take to end when the process is asked to. Work that is under way then is done again by the next call.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a server doesn't start or go on.
#[derive(Debug, Error)]
pub enum ServeError {
    /// `--endpoint` isn't what it has to be.
    #[error("invalid endpoint '{0}': write unix:///path/to/name.sock")]
    Endpoint(String),
    /// The socket can't be made.
    #[error("socket {path}: {error}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The address for health and figures can't be listened on.
    #[error("can't listen on {address}: {error}; is the port in use? Choose another one with --http")]
    Http {
        /// Which.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Serving failed.
    #[error("serving: {0}")]
    Transport(#[from] TransportError),
}

/// The path of a socket's endpoint as CSI writes it.
///
/// # Errors
/// [`ServeError::Endpoint`]
pub fn endpoint_path(endpoint: &str) -> Result<PathBuf, ServeError> {
    let path =
        endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    if !path.starts_with('/') || !path.ends_with(".sock") {
        return Err(ServeError::Endpoint(endpoint.to_owned()));
    }
    Ok(PathBuf::from(path))
}

/// Listens at a path. A socket that an earlier process left behind is removed; anything else that is there stays.
///
/// # Errors
/// [`ServeError::Socket`]
pub fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |error| ServeError::Socket { path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).map_err(failed)?,
        Ok(_) => {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that isn't a socket");
            return Err(failed(error));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    UnixListener::bind(path).map_err(failed)
}

/// Serves RPCs at a socket until the token is cancelled; then those under way are finished, for a while, and the socket is
/// removed.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(router: GrpcRouter, path: &Path, stop: CancellationToken) -> Result<(), ServeError> {
    let incoming = UnixListenerStream::new(listen(path)?).map(|accepted| accepted.map(AnyAuthority::new));
    let asked = stop.clone();
    let serving = router.serve_with_incoming_shutdown(incoming, async move { asked.cancelled().await });
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    let result = tokio::select! {
        result = serving => result.map_err(ServeError::from),
        () = overdue => {
            tracing::warn!("stopping though calls are still in progress");
            Ok(())
        }
    };
    let _ = std::fs::remove_file(path);
    result
}

/// Says why the process can't do its work right now; `None`: it can.
pub type Readiness = Arc<dyn Fn() -> BoxFuture<'static, Option<String>> + Send + Sync>;

/// Serves `/healthz`, `/readyz` and `/metrics` until the process ends.
///
/// # Errors
/// [`ServeError::Http`]
pub async fn serve_http(
    address: &str,
    registry: Registry,
    health: Readiness,
    ready: Readiness,
) -> Result<(), ServeError> {
    let failed = |error| ServeError::Http { address: address.to_owned(), error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let registry = Arc::new(registry);
    let router = Router::new()
        .route("/metrics", get(move || metrics(Arc::clone(&registry))))
        .route("/healthz", get(move || answer(health())))
        .route("/readyz", get(move || answer(ready())));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the HTTP endpoint failed");
        }
    });
    Ok(())
}

async fn metrics(registry: Arc<Registry>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn answer(problem: BoxFuture<'static, Option<String>>) -> impl IntoResponse {
    match problem.await {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}

/// Health: Probe, through the socket, so that a server that hangs is seen.
pub fn probe(socket: PathBuf) -> Readiness {
    Arc::new(move || {
        let socket = socket.clone();
        Box::pin(async move {
            match tokio::time::timeout(PROBE_TIMEOUT, probe_once(&socket)).await {
                Ok(Ok(())) => None,
                Ok(Err(problem)) => Some(problem),
                Err(_) => Some(format!("no reply within {} s", PROBE_TIMEOUT.as_secs())),
            }
        })
    })
}

async fn probe_once(socket: &Path) -> Result<(), String> {
    let endpoint =
        Endpoint::from_shared(format!("unix:{}", socket.display())).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let answer = IdentityClient::new(channel).probe(ProbeRequest {}).await;
    answer.map(drop).map_err(|status| status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_socket_by_its_path() {
        for endpoint in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(endpoint_path(endpoint).unwrap(), Path::new("/csi/csi.sock"));
        }
        for wrong in ["", "tcp://127.0.0.1:1", "unix://csi.sock", "unix:///csi/socket"] {
            assert!(endpoint_path(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn only_a_socket_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        drop(listen(&path).unwrap());
        drop(listen(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"somebody's").unwrap();
        assert!(matches!(listen(&path), Err(ServeError::Socket { .. })));
        assert!(path.exists());
    }
}
