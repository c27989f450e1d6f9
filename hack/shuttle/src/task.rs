//! `tokio::task`.

/// As `tokio::task::yield_now`.
pub async fn yield_now() {
    shuttle::future::yield_now().await;
}
