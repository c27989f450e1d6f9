//! Metrics and health over HTTP: `/metrics` (OpenMetrics), `/healthz` (the process works), `/readyz` (it works on
//! clusters, or is ready to take over).

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::caches::Caches;
use crate::metrics::Metrics;
use crate::prerequisites::Unmet;

/// What the endpoint tells of.
pub struct Told {
    /// Everything that is counted.
    pub registry: Registry,
    /// To be counted when asked.
    pub metrics: Metrics,
    /// Set once this operator works on clusters.
    pub caches: OnceLock<Caches>,
    /// Set once the API server has answered.
    pub reached: OnceLock<()>,
    /// What this operator should keep, and can't.
    pub unmet: Unmet,
}

/// Serves until the process ends.
///
/// # Errors
/// If the address can't be listened on.
pub async fn serve(listen: &str, told: Arc<Told>) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let ready = Arc::clone(&told);
    let router = Router::new()
        .route("/metrics", get(move || metrics(Arc::clone(&told))))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || readiness(Arc::clone(&ready))));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the HTTP endpoint failed");
        }
    });
    Ok(())
}

async fn metrics(told: Arc<Told>) -> Response {
    if let Some(caches) = told.caches.get() {
        told.metrics.count(caches);
    }
    let mut text = String::new();
    match encode(&mut text, &told.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readiness(told: Arc<Told>) -> Response {
    let (code, text) = verdict(told.reached.get().is_some(), told.unmet.first());
    (code, text).into_response()
}

/// Pure: a candidate is ready to take over once it has heard of the API server; who leads, if it can do its work.
fn verdict(reached: bool, unmet: Option<String>) -> (StatusCode, String) {
    match (reached, unmet) {
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "the API server has not responded yet\n".to_owned()),
        (true, Some(unmet)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("what all volumes need can't be created: {unmet}\n"))
        }
        (true, None) => (StatusCode::OK, "ok\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_do_its_work_is_not_ready_and_says_why() {
        assert_eq!(verdict(false, None).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(verdict(true, None), (StatusCode::OK, "ok\n".to_owned()));
        let (code, text) = verdict(true, Some("Namespace atoll-volumes: forbidden".into()));
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("Namespace atoll-volumes: forbidden"), "{text}");
    }
}
