//! Metrics and health over HTTP: `/metrics` (OpenMetrics), `/healthz` (the process works), `/readyz` (it can
//! serve).

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::exit::{Context, Failure};

/// Says why the process can't serve right now; `None`: it can.
pub type Readiness = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Serves until the process ends. Returns the address, for a port of 0.
///
/// # Errors
/// If the address can't be listened on.
pub async fn serve(listen: &str, registry: Arc<Registry>, ready: Readiness) -> Result<String, Failure> {
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failure::failed(format_args!(
            "can't listen on {listen} for metrics: {error}; is the port in use? Choose another one with --http"
        ))
    })?;
    let address = listener.local_addr().context("metrics address")?.to_string();
    #[cfg(not(feature = "count-allocations"))]
    let router = Router::new();
    #[cfg(feature = "count-allocations")]
    let router =
        Router::new().route("/allocations", get(|| async { crate::allocations::count().to_string() }));
    let router = router
        .route("/metrics", get(move || metrics(Arc::clone(&registry))))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || readiness(Arc::clone(&ready))));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the HTTP endpoint failed");
        }
    });
    Ok(address)
}

async fn metrics(registry: Arc<Registry>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readiness(ready: Readiness) -> impl IntoResponse {
    match ready() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}
